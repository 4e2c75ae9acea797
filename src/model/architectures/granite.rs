//! Granite 3 and 4 (dense): four scales.

use super::dense::{self, Dense};
use super::{Architecture, Pairs};
use crate::model::metadata::{Key, Metadata, key};
use crate::model::{ModelError, ModelSpec};

const ATTENTION: Key = key(&"attention.scale", &"attention_multiplier");
const EMBEDDING: Key = key(&"embedding_scale", &"embedding_multiplier");
const RESIDUAL: Key = key(&"residual_scale", &"residual_multiplier");
const LOGIT: Key = key(&"logit_scale", &"logits_scaling");
const ROPE: Key = key(&"rope.scaling.finetuned", &"");

pub(super) static GRANITE: Architecture = Architecture {
    name: "granite",
    model_types: &["granite"],
    classes: &["GraniteForCausalLM"],
    gguf_pairs: Pairs::Interleaved,
    hf_pairs: Pairs::HalfSplit,
    norms_less_one: false,
    experts_turned: false,
    renamed: &[],
    build,
};

pub(super) fn build(m: &dyn Metadata) -> Result<ModelSpec, ModelError> {
    let mut spec = dense::build(m, Dense::default())?;
    // 0 stands for none in GGUF files.
    let scale = |key: Key| {
        Ok::<_, ModelError>(m.float(key, "a number from 0", |x| x >= 0.0)?.filter(|x| *x != 0.0))
    };
    spec.embedding_scale = scale(EMBEDDING)?.unwrap_or(1.0) as f32;
    spec.logit_scale = 1.0 / scale(LOGIT)?.unwrap_or(1.0) as f32;
    let (residual, attention) = (scale(RESIDUAL)?, scale(ATTENTION)?);
    // llama.cpp: false says that the model knows no positions at all.
    let positions = m.bool(ROPE)? != Some(false);
    spec.layers.iter_mut().for_each(|layer| layer.residual_scale = residual.unwrap_or(1.0) as f32);
    for own in spec.attentions_mut() {
        own.scale = attention.map_or(own.scale, |scale| scale as f32);
        own.rope = own.rope.filter(|_| positions);
    }
    Ok(spec)
}

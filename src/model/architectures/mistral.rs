//! Mistral 7B and its like from checkpoints (their GGUF files say llama), Ministral, and Ministral 3: yarn, and queries that grow with
//! their position (llama.cpp's `mistral3`).

use super::dense::{self, Dense};
use super::{Architecture, Pairs, layers, rope};
use crate::model::metadata::Metadata;
use crate::model::{ModelError, ModelSpec};

pub(super) static MISTRAL: Architecture = Architecture {
    name: "mistral",
    model_types: &["mistral"],
    classes: &["MistralForCausalLM"],
    gguf_pairs: Pairs::Interleaved,
    hf_pairs: Pairs::HalfSplit,
    norms_less_one: false,
    experts_turned: false,
    renamed: &[],
    build: |m| {
        let mut spec = dense::build(m, Dense::default())?;
        layers::window_everywhere(m, &mut spec)?;
        Ok(spec)
    },
};

pub(super) static MINISTRAL: Architecture = Architecture {
    name: "ministral",
    model_types: &["ministral"],
    classes: &["MinistralForCausalLM"],
    build: |m| {
        let mut spec = dense::build(m, Dense::default())?;
        // Without `layer_types` all layers have the window: none of 0 sees everything.
        let local = match m.has_layer_types() {
            true => layers::local(m, spec.layers.len(), 1)?,
            false => vec![true; spec.layers.len()],
        };
        layers::set_windows(m, &mut spec, &local)?;
        Ok(spec)
    },
    ..MISTRAL
};

pub(super) static MISTRAL3: Architecture = Architecture {
    name: "mistral3",
    model_types: &["ministral3", "mistral3"],
    classes: &["Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"],
    build: mistral3,
    ..MISTRAL
};

fn mistral3(m: &dyn Metadata) -> Result<ModelSpec, ModelError> {
    let mut spec = dense::build(m, Dense { theta: 1e6, ..Dense::default() })?;
    spec.query_growth = rope::growth(m)?;
    layers::window_everywhere(m, &mut spec)?;
    Ok(spec)
}

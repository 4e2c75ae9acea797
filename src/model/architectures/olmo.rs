//! OLMo (norms without weights), OLMo 2 and 3 (norms behind the branches, norms of all queries and keys; 3 has windows).

use super::dense::{self, Dense};
use super::{Architecture, Pairs, layers};
use crate::model::metadata::{Key, Metadata, key};
use crate::model::{ModelError, ModelSpec, NormKind, Norms, QkNorm, Rope};

const WINDOW: Key = key(&"attention.sliding_window", &"sliding_window");

pub(super) static OLMO: Architecture = Architecture {
    name: "olmo",
    model_types: &["olmo"],
    classes: &["OlmoForCausalLM"],
    gguf_pairs: Pairs::Interleaved,
    hf_pairs: Pairs::HalfSplit,
    norms_less_one: false,
    experts_turned: false,
    renamed: &[],
    build: |m| {
        let mut spec = dense::build(
            m,
            Dense { norm: NormKind::Layer, epsilon: Some(1e-5), ..Dense::default() },
        )?;
        spec.norm.weights = false;
        Ok(spec)
    },
};

pub(super) static OLMO2: Architecture = Architecture {
    name: "olmo2",
    model_types: &["olmo2"],
    classes: &["Olmo2ForCausalLM"],
    gguf_pairs: Pairs::HalfSplit,
    build: after,
    ..OLMO
};

/// Its GGUF files say olmo2 and have a window.
pub(super) static OLMO3: Architecture = Architecture {
    name: "olmo3",
    model_types: &["olmo3"],
    classes: &["Olmo3ForCausalLM"],
    ..OLMO2
};

fn after(m: &dyn Metadata) -> Result<ModelSpec, ModelError> {
    let mut spec = dense::build(m, Dense { norms: Norms::After, theta: 5e5, ..Dense::default() })?;
    spec.attentions_mut().for_each(|a| a.qk_norm = Some(QkNorm::Whole));
    if m.find(WINDOW).is_none() {
        return Ok(spec);
    }
    let local = layers::local(m, spec.layers.len(), 4)?;
    layers::set_windows(m, &mut spec, &local)?;
    // Layers with a window have the base without the scaling.
    if let Some(Rope { theta, dims, .. }) = spec.ropes.first().cloned() {
        spec.ropes.push(Rope::plain(theta, dims));
        for (attention, _) in spec.attentions_mut().zip(local).filter(|(_, local)| *local) {
            attention.rope = Some(1);
        }
    }
    Ok(spec)
}

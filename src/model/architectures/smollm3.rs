//! SmolLM3: every fourth layer knows no positions.

use super::dense::{self, Dense};
use super::{Architecture, Pairs, layers};
use crate::model::metadata::{Key, Metadata, key};
use crate::model::{ModelError, ModelSpec};

/// 1 where a layer has positions.
const ROPE_LAYERS: Key = key(&"", &"no_rope_layers");
const INTERVAL: Key = key(&"", &"no_rope_layer_interval");

pub(super) static SMOLLM3: Architecture = Architecture {
    name: "smollm3",
    model_types: &["smollm3"],
    classes: &["SmolLM3ForCausalLM"],
    gguf_pairs: Pairs::Interleaved,
    hf_pairs: Pairs::HalfSplit,
    norms_less_one: false,
    experts_turned: false,
    renamed: &[],
    build,
};

fn build(m: &dyn Metadata) -> Result<ModelSpec, ModelError> {
    let mut spec = dense::build(m, Dense { theta: 2e6, ..Dense::default() })?;
    let interval = m.integer(INTERVAL, 1..=1 << 16)?.unwrap_or(4);
    let positions = match m.flags(ROPE_LAYERS, spec.layers.len())? {
        Some(flags) => flags,
        None => (1..=spec.layers.len()).map(|i| !i.is_multiple_of(interval)).collect(),
    };
    for (attention, positions) in spec.attentions_mut().zip(&positions) {
        attention.rope = positions.then_some(0);
    }
    if m.bool(key(&"", &"use_sliding_window"))? == Some(true) {
        let local: Vec<bool> = match m.has_layer_types() {
            true => layers::local(m, spec.layers.len(), 1)?,
            false => positions.iter().map(|positions| !positions).collect(),
        };
        layers::set_windows(m, &mut spec, &local)?;
    } else {
        layers::window(m, spec.context)?;
    }
    Ok(spec)
}

//! EXAONE 4: norms behind the branches, norms of each head; where there is a window, only the layers that have it know positions.

use super::dense::{self, Dense};
use super::{Architecture, Pairs, layers};
use crate::model::metadata::{Key, Metadata, key};
use crate::model::{ModelError, ModelSpec, Norms, QkNorm};

const WINDOW: Key = key(&"attention.sliding_window", &"sliding_window");

pub(super) static EXAONE4: Architecture = Architecture {
    name: "exaone4",
    model_types: &["exaone4"],
    classes: &["Exaone4ForCausalLM"],
    gguf_pairs: Pairs::HalfSplit,
    hf_pairs: Pairs::HalfSplit,
    norms_less_one: false,
    experts_turned: false,
    renamed: &[],
    build,
};

fn build(m: &dyn Metadata) -> Result<ModelSpec, ModelError> {
    let mut spec = dense::build(m, Dense { norms: Norms::After, ..Dense::default() })?;
    spec.attentions_mut().for_each(|a| a.qk_norm = Some(QkNorm::PerHead));
    if m.integer(WINDOW, 0..=u64::MAX)?.is_none_or(|window| window == 0) {
        return Ok(spec);
    }
    let local = layers::local(m, spec.layers.len(), 4)?;
    layers::set_windows(m, &mut spec, &local)?;
    for (attention, local) in spec.attentions_mut().zip(local) {
        attention.rope = local.then_some(0);
    }
    Ok(spec)
}

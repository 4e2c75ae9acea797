//! What differs from layer to layer: windows and layers without positions. In: metadata. Out: flags and sizes.
// Untrusted input.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use crate::model::metadata::{Container, Key, Metadata, key};
use crate::model::{ModelError, ModelSpec};

const WINDOW: Key = key(&"attention.sliding_window", &"sliding_window");
const PATTERN: Key = key(&"attention.sliding_window_pattern", &"sliding_window_pattern");
const TYPES: Key = key(&"", &"layer_types");
const USED: Key = key(&"", &"use_sliding_window");

/// Width of the sliding window; `None` where there is none, or none that a request could reach past.
pub(super) fn window(m: &dyn Metadata, context: usize) -> Result<Option<usize>, ModelError> {
    let window = m.integer(WINDOW, 0..=u64::MAX)?;
    // transformers' `use_sliding_window`: false unless the config says so, where it exists at all.
    let used = m.bool(USED)?.unwrap_or(true);
    Ok(window.filter(|window| used && *window > 0 && *window < context))
}

/// Whether each layer sees a window alone: as `layer_types` or the pattern says, else one of `every` layers sees everything.
pub(super) fn local(
    m: &dyn Metadata,
    layers: usize,
    every: usize,
) -> Result<Vec<bool>, ModelError> {
    let repeated = |every: usize| {
        (1..=layers).map(|i| every > 0 && !i.is_multiple_of(every)).collect::<Vec<bool>>()
    };
    if let Some(types) = m.texts(TYPES, layers)? {
        return types
            .iter()
            .map(|kind| match kind.as_str() {
                "sliding_attention" => Ok(true),
                "full_attention" => Ok(false),
                other => {
                    let text = format!(
                        "has '{}'; sliding_attention and full_attention are known",
                        crate::units::shown(other)
                    );
                    Err(m.refuse(TYPES, &text))
                }
            })
            .collect();
    }
    match m.find(PATTERN) {
        Some((_, crate::model::metadata::Item::List(_))) => {
            Ok(m.flags(PATTERN, layers)?.unwrap_or_default())
        }
        Some((_, crate::model::metadata::Item::Integer(_))) => {
            Ok(repeated(m.integer(PATTERN, 0..=1 << 16)?.unwrap_or(every)))
        }
        _ => Ok(repeated(every)),
    }
}

/// Gives the layers of `local` the file's window.
pub(super) fn set_windows(
    m: &dyn Metadata,
    spec: &mut ModelSpec,
    local: &[bool],
) -> Result<(), ModelError> {
    let window = window(m, spec.context)?;
    for (layer, local) in spec.layers.iter_mut().zip(local) {
        if let Some(attention) = layer.attention_mut() {
            attention.window = window.filter(|_| *local);
        }
    }
    Ok(())
}

/// The window of all layers (mistral, phi 3, starcoder 2).
pub(super) fn window_everywhere(m: &dyn Metadata, spec: &mut ModelSpec) -> Result<(), ModelError> {
    let all = vec![true; spec.layers.len()];
    set_windows(m, spec, &all)
}

/// The windows of qwen 2 and 3: in configs that use them, from layer `max_window_layers` on; GGUF files have the field and no use for it.
pub(super) fn qwen_windows(m: &dyn Metadata, spec: &mut ModelSpec) -> Result<(), ModelError> {
    let window = window(m, spec.context)?;
    let used = m.bool(USED)?.unwrap_or(false) && m.container() == Container::Checkpoint;
    let Some(window) = window.filter(|_| used) else { return Ok(()) };
    let first = m.integer(key(&"", &"max_window_layers"), 0..=1 << 16)?.unwrap_or(28);
    let local = match m.find(TYPES) {
        Some(_) => local(m, spec.layers.len(), 1)?,
        None => (0..spec.layers.len()).map(|i| i >= first).collect(),
    };
    for (layer, local) in spec.layers.iter_mut().zip(local) {
        if let Some(attention) = layer.attention_mut() {
            attention.window = Some(window).filter(|_| local);
        }
    }
    Ok(())
}

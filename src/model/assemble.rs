//! From a blueprint and the tensors that a container holds to the weights by role: names, shapes, fused tensors, rotary order, and
//! refusal of what is missing or left over. In: checked places in files. Out: [`FileWeights`]. It reads no weights.
// What it reads is a stranger's.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use super::ModelError;
use super::architectures::{Architecture, Pairs};
use super::kinds::{self, FUSED, Shape, TensorKind};
use super::metadata::Container;
use super::source::Source;
use super::spec::{LayerSpec, Mixer, ModelSpec};
use super::tensors::{Encoding, FileWeights, RowOrder, Tensor};
use std::collections::HashMap;
use std::sync::Arc;

/// A tensor as a container's header has it.
#[derive(Clone)]
pub(super) struct Stored {
    pub source: Arc<Source>,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    pub encoding: Encoding,
    /// Absolute, in bytes.
    pub offset: u64,
}

/// What a container holds.
pub(super) struct Contents<'a> {
    pub container: Container,
    /// By the container's names.
    pub tensors: HashMap<String, Stored>,
    /// What implies the shapes, in messages.
    pub implied_by: &'static str,
    /// What stands in front of `model.` or of `layers.` in the names of nested checkpoints.
    pub prefix: Prefix,
    /// Makes an error about the file.
    pub error: &'a dyn Fn(&str) -> ModelError,
    /// Tensors that may be left over.
    pub harmless: &'a dyn Fn(&str) -> bool,
}

/// Where a checkpoint's names begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefix {
    /// `model.layers.0…`, `lm_head…`.
    Plain,
    /// `language_model.model.layers.0…`, `language_model.lm_head…`.
    Outside,
    /// `model.language_model.layers.0…`, `lm_head…`.
    Inside,
}

impl Prefix {
    /// How the names of a checkpoint with these names begin.
    pub(super) fn of(has: impl Fn(&str) -> bool) -> Prefix {
        match () {
            _ if has("language_model.model.embed_tokens.weight") => Prefix::Outside,
            _ if has("model.language_model.embed_tokens.weight") => Prefix::Inside,
            _ => Prefix::Plain,
        }
    }

    /// The full name.
    pub(super) fn apply(self, name: String) -> String {
        match (self, name.strip_prefix("model.")) {
            (Prefix::Plain, _) => name,
            (Prefix::Outside, _) => format!("language_model.{name}"),
            (Prefix::Inside, Some(rest)) => format!("model.language_model.{rest}"),
            (Prefix::Inside, None) => name,
        }
    }
}

impl Contents<'_> {
    /// The container's name of a kind.
    fn name(&self, architecture: &Architecture, kind: &TensorKind, layer: usize) -> String {
        let own = architecture.renamed.iter().find(|r| r.container == self.container && (r.role)(layer) == (kind.role)(layer));
        let stem = match (own, self.container) {
            (Some(own), _) => own.name,
            (None, Container::Gguf) => kind.gguf,
            (None, Container::Checkpoint) => kind.hf,
        };
        self.full(stem, layer)
    }

    fn full(&self, stem: &str, layer: usize) -> String {
        let name = stem.replace("{}", &layer.to_string());
        if self.container == Container::Checkpoint { self.prefix.apply(name) } else { name }
    }

    fn wrong_shape(&self, name: &str, shape: &[usize], expected: &[usize]) -> ModelError {
        (self.error)(&format!("tensor {name} has the shape {shape:?}; {} implies {expected:?}", self.implied_by))
    }

    /// Puts the parts of fused tensors beside the others, under the names of their kinds.
    fn split_fused(&mut self, architecture: &Architecture, spec: &ModelSpec) -> Result<(), ModelError> {
        for (index, layer) in spec.layers.iter().enumerate() {
            for fused in FUSED {
                let stem = if self.container == Container::Gguf { fused.gguf } else { fused.hf };
                let whole = self.full(stem, index);
                let mut parts = Vec::new();
                for role in fused.roles {
                    let Some(kind) = kinds::kind(role(index)) else { continue };
                    let Some(shape) = (kind.shape)(spec, layer) else { continue };
                    parts.push((kind, self.name(architecture, kind, index), shape));
                }
                // Only where all are wanted and the first is not there by itself.
                let Some((first, own, (_, columns))) = parts.first().cloned() else { continue };
                if parts.len() != fused.roles.len() || self.tensors.contains_key(&own) {
                    continue;
                }
                let Some(stored) = self.tensors.remove(&whole) else { continue };
                let count = |shape: Shape| if first.vector { shape.1 } else { shape.0 };
                let total: usize = parts.iter().map(|part| count(part.2)).sum();
                let expected = if first.vector { vec![total] } else { vec![total, columns] };
                if stored.shape != expected {
                    return Err(self.wrong_shape(&whole, &stored.shape, &expected));
                }
                let (block, bytes) = stored.encoding.block();
                if first.vector && block > 1 {
                    return Err((self.error)(&format!("tensor {whole} is {}, which a vector cannot be", stored.encoding.name())));
                }
                let row = if first.vector { 1 } else { columns };
                let row_bytes = row.checked_div(block).unwrap_or(0).saturating_mul(bytes);
                let mut before = 0usize;
                for (_, name, shape) in parts {
                    let offset = stored.offset.saturating_add(before.saturating_mul(row_bytes) as u64);
                    before = before.saturating_add(count(shape));
                    let shape = if first.vector { vec![shape.1] } else { vec![shape.0, shape.1] };
                    self.tensors.insert(name, Stored { offset, shape, ..stored.clone() });
                }
            }
        }
        Ok(())
    }
}

/// The order of rows (of a vector's elements) in the file.
fn order(kind: &TensorKind, spec: &ModelSpec, layer: &LayerSpec, pairs: Pairs) -> RowOrder {
    let Mixer::Attention(attention) = &layer.mixer;
    match attention.rope.and_then(|rope| spec.ropes.get(rope)) {
        Some(rope) if kind.rotary && pairs == Pairs::HalfSplit => {
            RowOrder::HalfSplit { head_dim: attention.head_dim, dims: rope.dims }
        }
        // A layer without positions: scores do not depend on the order that queries and keys share.
        _ => RowOrder::AsStored,
    }
}

/// All weights of a model. Refuses tensors that are missing, of another shape, or left over.
pub(super) fn assemble(architecture: &Architecture, spec: &ModelSpec, mut contents: Contents) -> Result<FileWeights, ModelError> {
    contents.split_fused(architecture, spec)?;
    let pairs = match contents.container {
        Container::Gguf => architecture.gguf_pairs,
        Container::Checkpoint => architecture.hf_pairs,
    };
    let less_one = architecture.norms_less_one && contents.container == Container::Checkpoint;
    let mut tensors = HashMap::new();
    for (kind, index, (rows, columns)) in kinds::present(spec) {
        let name = contents.name(architecture, kind, index);
        let stored = contents.tensors.remove(&name);
        let stored = stored.ok_or_else(|| (contents.error)(&format!("tensor {name} is missing")))?;
        let expected = if kind.vector { vec![columns] } else { vec![rows, columns] };
        if stored.shape != expected {
            return Err(contents.wrong_shape(&name, &stored.shape, &expected));
        }
        let order = spec.layers.get(index).map_or(RowOrder::AsStored, |layer| order(kind, spec, layer, pairs));
        if kind.vector && order != RowOrder::AsStored && stored.encoding.block().0 > 1 {
            return Err((contents.error)(&format!("tensor {name} is {}, which a vector cannot be", stored.encoding.name())));
        }
        let plus = if kind.norm && less_one { 1.0 } else { 0.0 };
        let Stored { source, encoding, offset, shape: _ } = stored;
        tensors.insert((kind.role)(index), Tensor { source, name, offset, rows, columns, encoding, order, plus });
    }
    // A tensor that nothing uses (a bias, a damaged name) means that the answers would be another model's.
    if let Some(name) = contents.tensors.keys().filter(|name| !(contents.harmless)(name)).min() {
        let name = crate::units::shown(name);
        let family = architecture.name;
        return Err((contents.error)(&format!("tensor {name} is not part of the {family} architecture as llmopt knows it")));
    }
    Ok(FileWeights { tensors })
}

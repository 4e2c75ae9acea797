//! From a spec and the tensors that a container holds to the weights by role: names, shapes, fused tensors, rotary order, and
//! refusal of what is missing or left over. In: checked places in files. Out: [`FileWeights`]. It reads no weights.
//! Over 500 lines: names, shapes and what is left over are one check of one file.
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

use super::ModelError;
use super::architectures::{Architecture, Pairs};
use super::kinds::{self, FUSED, Shape, TensorKind};
use super::metadata::Container;
use super::source::Source;
use super::spec::{LayerSpec, Mixer, ModelSpec};
use super::tensors::{FileWeights, Place, RowOrder, Tensor, Turned};
use crate::kernels::Encoding;
use std::collections::HashMap;
use std::sync::Arc;

/// A tensor as a container's header has it, or put together from several.
#[derive(Clone)]
pub(super) struct Stored {
    /// Where it lies; of several places each holds as many rows.
    pub places: Vec<Place>,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    pub encoding: Encoding,
    /// Rows lie as columns in each place.
    pub turned: Option<Turned>,
}

impl Stored {
    /// One place; `offset` is absolute, in bytes.
    pub(super) fn new(
        source: Arc<Source>,
        shape: Vec<usize>,
        encoding: Encoding,
        offset: u64,
    ) -> Stored {
        Stored { places: vec![Place { source, offset }], shape, encoding, turned: None }
    }

    /// Bytes of so many values; 0 where they fill no block.
    fn bytes(&self, values: usize) -> u64 {
        let (block, bytes) = (self.encoding.block(), self.encoding.block_bytes());
        values.checked_div(block).unwrap_or(0).saturating_mul(bytes) as u64
    }

    /// Each of its places moved.
    fn moved(&self, by: u64) -> Vec<Place> {
        self.places
            .iter()
            .map(|p| Place { source: p.source.clone(), offset: p.offset.saturating_add(by) })
            .collect()
    }
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
        self.full(self.stem(architecture, kind), layer)
    }

    /// The same for any layer and expert.
    fn stem(&self, architecture: &Architecture, kind: &TensorKind) -> &'static str {
        let own = architecture
            .renamed
            .iter()
            .find(|r| r.container == self.container && (r.role)(0) == (kind.role)(0));
        match (own, self.container) {
            (Some(own), _) => own.name,
            (None, Container::Gguf) => kind.gguf,
            (None, Container::Checkpoint) => kind.hf,
        }
    }

    fn full(&self, stem: &str, layer: usize) -> String {
        let name = stem.replace("{}", &layer.to_string());
        // Tensors of single experts take the place of one of all: its name has no number.
        let name = name.replace(".[].", ".");
        if self.container == Container::Checkpoint { self.prefix.apply(name) } else { name }
    }

    fn wrong_shape(&self, name: &str, shape: &[usize], expected: &[usize]) -> ModelError {
        (self.error)(&format!(
            "tensor {name} has the shape {shape:?}; {} implies {expected:?}",
            self.implied_by
        ))
    }

    /// Puts the parts of fused tensors beside the others, under the names of their kinds.
    fn split_fused(
        &mut self,
        architecture: &Architecture,
        spec: &ModelSpec,
    ) -> Result<(), ModelError> {
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
                if stored.places.len() != 1 {
                    continue;
                }
                let count = |shape: Shape| if first.vector { shape.1 } else { shape.0 };
                let total: usize = parts.iter().map(|part| count(part.2)).sum();
                let expected = if first.vector { vec![total] } else { vec![total, columns] };
                if stored.shape != expected {
                    return Err(self.wrong_shape(&whole, &stored.shape, &expected));
                }
                let (block, bytes) = (stored.encoding.block(), stored.encoding.block_bytes());
                if first.vector && block > 1 {
                    return Err((self.error)(&format!(
                        "tensor {whole} is {}, which a vector cannot be",
                        stored.encoding.ggml_name()
                    )));
                }
                let row = if first.vector { 1 } else { columns };
                let row_bytes = row.checked_div(block).unwrap_or(0).saturating_mul(bytes);
                let mut before = 0usize;
                for (_, name, shape) in parts {
                    let places = stored.moved(before.saturating_mul(row_bytes) as u64);
                    before = before.saturating_add(count(shape));
                    let shape = if first.vector { vec![shape.1] } else { vec![shape.0, shape.1] };
                    self.tensors.insert(name, Stored { places, shape, ..stored.clone() });
                }
            }
        }
        Ok(())
    }
}

/// Tensors of experts under the names of their kinds: from one tensor an expert, from gate and up in one tensor, or from tensors whose
/// rows are columns.
fn gather_experts(
    contents: &mut Contents,
    architecture: &Architecture,
    spec: &ModelSpec,
) -> Result<(), ModelError> {
    for (kind, layer, (rows, columns)) in kinds::present(spec).filter(|(kind, ..)| kind.experts) {
        let Some(mixture) = spec.layers.get(layer).and_then(|l| l.ffn.mixture()) else { continue };
        let (name, count) = (contents.name(architecture, kind, layer), mixture.experts);
        if contents.tensors.contains_key(&name) {
            continue;
        }
        // One tensor an expert.
        let stem = contents.stem(architecture, kind);
        let single = |expert: usize| contents.full(&stem.replace("[]", &expert.to_string()), layer);
        if stem.contains("[]") && contents.tensors.contains_key(&single(0)) {
            let expected = match kind.vector {
                true => vec![columns.checked_div(count).unwrap_or(0)],
                false => vec![rows.checked_div(count).unwrap_or(0), columns],
            };
            let (mut places, mut encoding) = (Vec::new(), None);
            for expert in 0..count {
                let one = single(expert);
                let missing = || (contents.error)(&format!("tensor {one} is missing"));
                let stored = contents.tensors.get(&one).ok_or_else(missing)?;
                if stored.shape != expected {
                    return Err(contents.wrong_shape(&one, &stored.shape, &expected));
                }
                if *encoding.get_or_insert(stored.encoding) != stored.encoding {
                    let text = format!(
                        "tensor {one} is {}; that of expert 0 is not",
                        stored.encoding.ggml_name()
                    );
                    return Err((contents.error)(&text));
                }
                places.extend(stored.places.iter().cloned());
            }
            let Some(encoding) = encoding else { continue };
            let names: Vec<String> = (0..count).map(single).collect();
            names.iter().for_each(|name| drop(contents.tensors.remove(name)));
            let shape = if kind.vector {
                vec![count, columns.checked_div(count).unwrap_or(0)]
            } else {
                [vec![count], expected].concat()
            };
            contents.tensors.insert(name, Stored { places, shape, encoding, turned: None });
        }
    }
    Ok(())
}

/// The parts of what all experts' gates and ups, or all downs, are in.
fn split_experts(
    contents: &mut Contents,
    architecture: &Architecture,
    spec: &ModelSpec,
) -> Result<(), ModelError> {
    for (index, layer) in spec.layers.iter().enumerate() {
        let Some(mixture) = layer.ffn.mixture() else { continue };
        let (count, width, hidden) = (mixture.experts, mixture.width, spec.hidden);
        let named = |contents: &Contents, role: fn(usize) -> super::Role| {
            kinds::kind(role(index))
                .map(|kind| contents.name(architecture, kind, index))
                .unwrap_or_default()
        };
        let both = width.saturating_mul(2);
        for stacked in STACKED.iter().filter(|s| {
            s.container == contents.container && s.turned == architecture.experts_turned
        }) {
            let whole = contents.full(stacked.name, index);
            let names: Vec<String> =
                stacked.roles.iter().map(|role| named(contents, *role)).collect();
            if names.iter().any(|name| *name != whole && contents.tensors.contains_key(name)) {
                continue;
            }
            let Some(stored) = contents.tensors.remove(&whole) else { continue };
            // Rows of one expert in the file's tensor, of each part, and the width of a row.
            let (rows, columns) = match (stacked.roles.len(), stacked.bias) {
                (2, false) => (both, hidden),
                (2, true) => (1, both),
                (_, false) => (hidden, width),
                (_, true) => (1, hidden),
            };
            let expected = match (stacked.bias, stacked.turned) {
                (true, _) => vec![count, columns],
                (false, false) => vec![count, rows, columns],
                (false, true) => vec![count, columns, rows],
            };
            if stored.shape != expected {
                return Err(contents.wrong_shape(&whole, &stored.shape, &expected));
            }
            let block = stored.encoding.block();
            if block > 1 && (stacked.turned || stacked.bias) {
                return Err((contents.error)(&format!(
                    "tensor {whole} is {}, whose rows cannot be split",
                    stored.encoding.ggml_name()
                )));
            }
            let Some(place) = stored.places.first().cloned() else { continue };
            let expert_bytes = stored.bytes(rows.saturating_mul(columns));
            for (part, name) in names.into_iter().enumerate() {
                let parts = stacked.roles.len();
                let own = rows.saturating_mul(columns).checked_div(parts).unwrap_or(0);
                // Interleaved parts begin where the whole begins, the others one behind the other.
                let before =
                    if stacked.turned { 0 } else { stored.bytes(own.saturating_mul(part)) };
                let at = |expert: usize| {
                    let offset =
                        (expert as u64).saturating_mul(expert_bytes).saturating_add(before);
                    Place {
                        source: place.source.clone(),
                        offset: place.offset.saturating_add(offset),
                    }
                };
                let turned = stacked.turned.then_some(Turned { step: parts, phase: part });
                let shape = match stacked.bias {
                    true => vec![count, columns.checked_div(parts).unwrap_or(0)],
                    false => vec![count, rows.checked_div(parts).unwrap_or(0), columns],
                };
                let stored = Stored {
                    places: (0..count).map(at).collect(),
                    shape,
                    encoding: stored.encoding,
                    turned,
                };
                contents.tensors.insert(name, stored);
            }
        }
    }
    Ok(())
}

/// A tensor of all experts that has another form than its kind's.
struct Stacked {
    container: Container,
    name: &'static str,
    roles: &'static [fn(usize) -> super::Role],
    bias: bool,
    /// Rows are columns, and those of gate and up come in turn.
    turned: bool,
}

/// Llama.cpp's `create_tensor_gate_up_exps`; what transformers' modules of experts hold (5.24: `modeling_qwen3_moe.py`,
/// `modeling_gpt_oss.py`), and what checkpoints of granitemoe do.
static STACKED: &[Stacked] = &[
    Stacked {
        container: Container::Gguf,
        name: "blk.{}.ffn_gate_up_exps.weight",
        roles: &[super::Role::ExpertGate, super::Role::ExpertUp],
        bias: false,
        turned: false,
    },
    Stacked {
        container: Container::Checkpoint,
        name: "model.layers.{}.mlp.experts.gate_up_proj",
        roles: &[super::Role::ExpertGate, super::Role::ExpertUp],
        bias: false,
        turned: false,
    },
    Stacked {
        container: Container::Checkpoint,
        name: "model.layers.{}.mlp.experts.down_proj",
        roles: &[super::Role::ExpertDown],
        bias: false,
        turned: false,
    },
    Stacked {
        container: Container::Checkpoint,
        name: "model.layers.{}.block_sparse_moe.input_linear.weight",
        roles: &[super::Role::ExpertGate, super::Role::ExpertUp],
        bias: false,
        turned: false,
    },
    Stacked {
        container: Container::Checkpoint,
        name: "model.layers.{}.block_sparse_moe.output_linear.weight",
        roles: &[super::Role::ExpertDown],
        bias: false,
        turned: false,
    },
    Stacked {
        container: Container::Checkpoint,
        name: "model.layers.{}.mlp.experts.gate_up_proj",
        roles: &[super::Role::ExpertGate, super::Role::ExpertUp],
        bias: false,
        turned: true,
    },
    Stacked {
        container: Container::Checkpoint,
        name: "model.layers.{}.mlp.experts.down_proj",
        roles: &[super::Role::ExpertDown],
        bias: false,
        turned: true,
    },
    Stacked {
        container: Container::Checkpoint,
        name: "model.layers.{}.mlp.experts.gate_up_proj_bias",
        roles: &[super::Role::ExpertGateBias, super::Role::ExpertUpBias],
        bias: true,
        turned: true,
    },
    Stacked {
        container: Container::Checkpoint,
        name: "model.layers.{}.mlp.experts.down_proj_bias",
        roles: &[super::Role::ExpertDownBias],
        bias: true,
        turned: true,
    },
];

/// The shape that a tensor of a kind has in the file.
fn expected_shape(kind: &TensorKind, (rows, columns): Shape, experts: usize) -> Vec<usize> {
    let of_one = |n: usize| n.checked_div(experts).unwrap_or(0);
    match (kind.vector, kind.experts) {
        (true, false) => vec![columns],
        (false, false) => vec![rows, columns],
        (true, true) => vec![experts, of_one(columns)],
        (false, true) => vec![experts, of_one(rows), columns],
    }
}

/// Whether a vector has so many values, in rows of `taps` where that is not 1; dimensions of 1 do not count.
fn is_vector_of(shape: &[usize], n: usize, taps: usize) -> bool {
    let expected = [n.checked_div(taps).unwrap_or(0), taps];
    shape.iter().filter(|d| **d != 1).eq(expected.iter().filter(|d| **d != 1))
}

/// Taps of the layer's convolution.
fn taps_of(layer: &LayerSpec) -> usize {
    match &layer.mixer {
        Mixer::Attention(_) => 1,
        Mixer::Convolution(convolution) => convolution.taps,
        Mixer::DeltaNet(net) => net.taps,
    }
}

/// The order of rows (of a vector's elements) in the file.
fn order(kind: &TensorKind, spec: &ModelSpec, layer: &LayerSpec, pairs: Pairs) -> RowOrder {
    let Some(attention) = layer.attention() else { return RowOrder::AsStored };
    match attention.rope.and_then(|rope| spec.ropes.get(rope)) {
        Some(rope) if kind.rotary && pairs == Pairs::HalfSplit => {
            // Gates stand behind each head's query.
            let query = matches!((kind.role)(0), super::Role::Query(_) | super::Role::QueryBias(_));
            let rows = if attention.gate && query { 2 } else { 1 };
            RowOrder::HalfSplit {
                head_dim: attention.head_dim.saturating_mul(rows),
                dims: rope.dims,
            }
        }
        // A layer without positions: scores do not depend on the order that queries and keys share.
        _ => RowOrder::AsStored,
    }
}

/// All weights of a model. Refuses tensors that are missing, of another shape, or left over.
pub(super) fn assemble(
    architecture: &Architecture,
    spec: &ModelSpec,
    mut contents: Contents,
) -> Result<FileWeights, ModelError> {
    contents.split_fused(architecture, spec)?;
    gather_experts(&mut contents, architecture, spec)?;
    split_experts(&mut contents, architecture, spec)?;
    let pairs = match contents.container {
        Container::Gguf => architecture.gguf_pairs,
        Container::Checkpoint => architecture.hf_pairs,
    };
    let less_one = architecture.norms_less_one && contents.container == Container::Checkpoint;
    let mut tensors = HashMap::new();
    for (kind, index, (rows, columns)) in kinds::present(spec) {
        let name = contents.name(architecture, kind, index);
        let stored = contents.tensors.remove(&name);
        let stored =
            stored.ok_or_else(|| (contents.error)(&format!("tensor {name} is missing")))?;
        let experts = spec.layers.get(index).and_then(|l| l.ffn.mixture()).map_or(1, |m| m.experts);
        let expected = expected_shape(kind, (rows, columns), experts);
        let rows_of_taps = matches!(
            (kind.role)(index),
            super::Role::ConvolutionTaps(_) | super::Role::DeltaTaps(_)
        );
        let taps = spec.layers.get(index).filter(|_| rows_of_taps).map_or(1, taps_of);
        let loose = kind.loose && is_vector_of(&stored.shape, columns, taps);
        if stored.shape != expected && !loose {
            return Err(contents.wrong_shape(&name, &stored.shape, &expected));
        }
        let order = spec
            .layers
            .get(index)
            .map_or(RowOrder::AsStored, |layer| order(kind, spec, layer, pairs));
        let apart = order != RowOrder::AsStored || kind.experts;
        if kind.vector && apart && stored.encoding.is_quantized() {
            return Err((contents.error)(&format!(
                "tensor {name} is {}, which a vector cannot be",
                stored.encoding.ggml_name()
            )));
        }
        let plus = if kind.norm && less_one { 1.0 } else { 0.0 };
        let logarithm = contents.container == Container::Checkpoint
            && matches!((kind.role)(index), super::Role::DeltaDecay(_));
        let Stored { places, encoding, shape: _, turned } = stored;
        tensors.insert(
            (kind.role)(index),
            Tensor { places, name, rows, columns, encoding, order, plus, turned, logarithm },
        );
    }
    // A tensor that nothing uses (a bias, a damaged name) means that the answers would be another model's.
    if let Some(name) = contents.tensors.keys().filter(|name| !(contents.harmless)(name)).min() {
        let name = crate::units::shown(name);
        let family = architecture.name;
        return Err((contents.error)(&format!(
            "tensor {name} is not part of the {family} architecture as llmopt knows it"
        )));
    }
    Ok(FileWeights { tensors, file_type: None })
}

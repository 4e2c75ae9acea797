//! The activations of one step, and what the rows of a batch are. Plain memory: the forward pass fills it.

use super::packed::{Layer, Packed, PackedModel};
use crate::kernels::{Activations, AttentionUnit, Row, Rows};
use crate::model::{LayerSpec, Mixer};
use crate::units::TokenId;

/// The activations of one step.
pub(super) struct Workspace {
    /// The residual stream: rows × hidden.
    pub x: Rows,
    /// Its norm.
    pub normed: Activations,
    /// Queries: rows × query width.
    pub queries: Rows,
    /// Attention's output.
    pub attended: Activations,
    /// silu(gate) * up: rows × ffn.
    pub product: Activations,
    /// The norm of the rows that are scored.
    pub last: Activations,
    /// The emulated dtype's f32 temporary.
    pub wide: Vec<f32>,
}

/// The largest widths of any layer.
struct Widths {
    query: usize,
    ffn: usize,
}

impl Widths {
    fn of(model: &PackedModel) -> Widths {
        let query = |layer: &LayerSpec| match &layer.mixer {
            Mixer::Attention(attention) => attention.query_width(),
        };
        let layers = || model.spec().layers.iter();
        Widths { query: layers().map(query).max().unwrap_or(0), ffn: layers().map(|l| l.ffn.width()).max().unwrap_or(0) }
    }
}

impl Workspace {
    pub(super) fn new(model: &PackedModel, rows: usize) -> Workspace {
        let (hidden, widths, quantized) = (model.spec().hidden, Widths::of(model), Quantized::of(model));
        Workspace {
            x: Rows::new(rows, hidden),
            normed: Activations::new(rows, hidden, quantized.hidden),
            queries: Rows::new(rows, widths.query),
            attended: Activations::new(rows, widths.query, quantized.attended),
            product: Activations::new(rows, widths.ffn, quantized.product),
            last: Activations::new(rows, hidden, model.output.format.is_quantized()),
            wide: vec![0.0; model.wide_floats()],
        }
    }

    pub(super) fn bytes(model: &PackedModel, rows: usize) -> usize {
        let (hidden, widths, quantized) = (model.spec().hidden, Widths::of(model), Quantized::of(model));
        Rows::bytes(rows, hidden)
            + Activations::bytes(rows, hidden, quantized.hidden)
            + Rows::bytes(rows, widths.query)
            + Activations::bytes(rows, widths.query, quantized.attended)
            + Activations::bytes(rows, widths.ffn, quantized.product)
            + Activations::bytes(rows, hidden, model.output.format.is_quantized())
            + model.wide_floats() * 4
    }
}

/// Which activations some matrix wants as int8 blocks.
struct Quantized {
    hidden: bool,
    attended: bool,
    product: bool,
}

impl Quantized {
    fn of(model: &PackedModel) -> Quantized {
        let any = |pick: fn(&Layer) -> [Packed; 4]| model.layers.iter().any(|l| pick(l).iter().any(|m| m.format.is_quantized()));
        Quantized {
            hidden: any(|l| [l.query, l.key, l.value, l.gate_up]),
            attended: any(|l| [l.output; 4]),
            product: any(|l| [l.down; 4]),
        }
    }
}

/// What the rows of a batch are, worked out once a step.
#[derive(Default)]
pub(super) struct Step {
    pub tokens: Vec<TokenId>,
    pub rows: Vec<Row>,
    pub units: Vec<AttentionUnit>,
    /// Rows to score, and the segment each belongs to.
    pub scored: Vec<u32>,
    pub scored_for: Vec<usize>,
}

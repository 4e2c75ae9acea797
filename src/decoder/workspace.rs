//! The activations of one step, and what the rows of a batch are. Plain memory: the forward pass fills it.

use super::packed::{FfnInput, Layer, Packed, PackedModel};
use crate::kernels::{Activations, AttentionUnit, Row, Rows};
use crate::model::{Mixer, Norms};
use crate::units::TokenId;

/// The activations of one step. What no layer needs has no rows.
pub(super) struct Workspace {
    /// The residual stream: rows × hidden.
    pub x: Rows,
    /// Its norm.
    pub normed: Activations,
    /// What a branch gives, before its norm: rows × hidden.
    pub branch: Rows,
    /// Queries: rows × query width.
    pub queries: Rows,
    /// Keys and values where they are normed by themselves: rows × key width.
    pub keys: Rows,
    pub values: Rows,
    /// Attention's output.
    pub attended: Activations,
    /// Of each width that occurs.
    pub ffn: Vec<FfnWorkspace>,
    /// The norm of the rows that are scored.
    pub last: Activations,
    /// The emulated dtype's f32 temporary.
    pub wide: Vec<f32>,
}

/// Inside the feed-forward part.
pub(super) struct FfnWorkspace {
    pub width: usize,
    /// Where they are computed apart.
    pub gate: Rows,
    pub up: Rows,
    /// activation(gate) * up.
    pub product: Activations,
}

/// What a workspace holds, in rows × width.
struct Plan {
    hidden: usize,
    query: usize,
    key: usize,
    /// Each width with whether gate and up are kept apart, and whether the product is quantized.
    ffn: Vec<(usize, bool, bool)>,
    branches: bool,
    keys_apart: bool,
    quantized_hidden: bool,
    quantized_attended: bool,
    quantized_last: bool,
}

impl Plan {
    fn of(model: &PackedModel) -> Plan {
        let spec = model.spec();
        let any = |pick: &dyn Fn(&Layer) -> bool| model.layers.iter().any(pick);
        let quantized = |m: &Packed| m.format.is_quantized();
        let mut ffn: Vec<(usize, bool, bool)> = Vec::new();
        for (layer, spec) in model.layers.iter().zip(&spec.layers) {
            let width = spec.ffn.width();
            let apart = !matches!(layer.input, FfnInput::Together(_));
            match ffn.iter_mut().find(|(w, _, _)| *w == width) {
                Some((_, a, q)) => (*a, *q) = (*a || apart, *q || quantized(&layer.down)),
                None => ffn.push((width, apart, quantized(&layer.down))),
            }
        }
        let Mixer::Attention(first) = &spec.layers[0].mixer;
        let branch = |norms: Norms| matches!(norms, Norms::After | Norms::Both | Norms::ParallelApart);
        Plan {
            hidden: spec.hidden,
            query: first.query_width(),
            key: first.kv_width(),
            ffn,
            branches: spec.layers.iter().any(|l| branch(l.norms)),
            keys_apart: spec.query_growth.is_some() || spec.layers.iter().any(|l| l.attention().qk_norm.is_some()),
            quantized_hidden: any(&|l| l.hidden_matrices().any(quantized)),
            quantized_attended: any(&|l| quantized(&l.output)),
            quantized_last: quantized(&model.output),
        }
    }
}

impl Workspace {
    pub(super) fn new(model: &PackedModel, rows: usize) -> Workspace {
        let plan = Plan::of(model);
        let only = |wanted: bool| if wanted { rows } else { 0 };
        let ffn = plan.ffn.iter().map(|&(width, apart, quantized)| FfnWorkspace {
            width,
            gate: Rows::new(only(apart), width),
            up: Rows::new(only(apart), width),
            product: Activations::new(rows, width, quantized),
        });
        Workspace {
            x: Rows::new(rows, plan.hidden),
            normed: Activations::new(rows, plan.hidden, plan.quantized_hidden),
            branch: Rows::new(only(plan.branches), plan.hidden),
            queries: Rows::new(rows, plan.query),
            keys: Rows::new(only(plan.keys_apart), plan.key),
            values: Rows::new(only(plan.keys_apart), plan.key),
            attended: Activations::new(rows, plan.query, plan.quantized_attended),
            ffn: ffn.collect(),
            last: Activations::new(rows, plan.hidden, plan.quantized_last),
            wide: vec![0.0; model.wide_floats()],
        }
    }

    pub(super) fn bytes(model: &PackedModel, rows: usize) -> usize {
        let plan = Plan::of(model);
        let only = |wanted: bool| if wanted { rows } else { 0 };
        let ffn = plan
            .ffn
            .iter()
            .map(|&(width, apart, quantized)| 2 * Rows::bytes(only(apart), width) + Activations::bytes(rows, width, quantized));
        Rows::bytes(rows, plan.hidden)
            + Activations::bytes(rows, plan.hidden, plan.quantized_hidden)
            + Rows::bytes(only(plan.branches), plan.hidden)
            + Rows::bytes(rows, plan.query)
            + 2 * Rows::bytes(only(plan.keys_apart), plan.key)
            + Activations::bytes(rows, plan.query, plan.quantized_attended)
            + ffn.sum::<usize>()
            + Activations::bytes(rows, plan.hidden, plan.quantized_last)
            + model.wide_floats() * 4
    }

    /// Inside a feed-forward part of this width.
    pub(super) fn of_width(ffn: &mut [FfnWorkspace], width: usize) -> &mut FfnWorkspace {
        ffn.iter_mut().find(|w| w.width == width).expect("one for each width of the model")
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

//! The activations of one step, and what the rows of a batch are. Plain memory: the forward pass fills it.

use super::packed::{FfnInput, FfnWeights, Layer, MixerWeights, Packed, PackedModel};
use crate::kernels::{Activations, AttentionUnit, Row, Rows, StateSegment};
use crate::model::{Attention, DeltaNet, Mixer, Mixture, Norms};
use crate::units::TokenId;

/// The activations of one step. What no layer needs has no rows.
pub(super) struct Workspace {
    /// The residual stream: rows × hidden.
    pub x: Rows,
    /// Its norm.
    pub normed: Activations,
    /// What a branch gives, before its norm: rows × hidden.
    pub branch: Rows,
    /// Of each shape of attention that occurs.
    pub attention: Vec<AttentionWorkspace>,
    /// Where a layer is a short convolution.
    pub convolution: Option<ConvolutionWorkspace>,
    /// Of each shape of delta nets that occurs.
    pub deltas: Vec<DeltaWorkspace>,
    /// Of each width that occurs.
    pub ffn: Vec<FfnWorkspace>,
    /// Of each shape of mixtures that occurs.
    pub mixtures: Vec<MixtureWorkspace>,
    /// The norm of the rows that are scored.
    pub last: Activations,
    /// The emulated dtype's f32 temporary.
    pub wide: Vec<f32>,
    /// Vectors of the last step's scores, one a row, to be written again.
    pub spare: Vec<Vec<f32>>,
}

/// Inside attention.
pub(super) struct AttentionWorkspace {
    pub shape: AttentionShape,
    /// Queries: rows × query width.
    pub queries: Rows,
    /// Keys and values where they are normed by themselves: rows × key width.
    pub keys: Rows,
    pub values: Rows,
    /// Attention's output.
    pub attended: Activations,
    /// Where there are gates: queries and gates as the matrix gives them, gates, the output before them.
    pub both: Rows,
    pub gates: Rows,
    pub ungated: Activations,
}

/// Inside a short convolution.
pub(super) struct ConvolutionWorkspace {
    /// B, C, x.
    pub projected: Rows,
    pub out: Activations,
}

/// Inside a delta net.
pub(super) struct DeltaWorkspace {
    pub shape: DeltaNet,
    /// Queries, keys, values before the convolution and behind it.
    pub input: Rows,
    pub mixed: Rows,
    pub gates: Rows,
    pub beta: Rows,
    pub decay: Rows,
    pub out: Activations,
}

/// Heads, key/value heads and their width.
pub(super) type AttentionShape = (usize, usize, usize);

/// The shape of a layer's attention.
pub(super) fn shape_of(attention: &Attention) -> AttentionShape {
    (attention.heads, attention.kv_heads, attention.head_dim)
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

/// An expert of a row and its weight.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Choice {
    pub expert: u32,
    pub weight: f32,
    /// Where among the rows that are grouped by expert.
    pub place: u32,
}

/// Inside a mixture of experts. Rows are those of all experts together, `used` for each row of the batch.
pub(super) struct MixtureWorkspace {
    /// Experts, how many are used, their width.
    pub shape: (usize, usize, usize),
    /// The router's: rows of the batch × experts.
    pub scores: Rows,
    /// `used` for each row of the batch.
    pub choices: Vec<Choice>,
    /// The row of the batch of each row here.
    pub picked: Vec<u32>,
    /// Their inputs, grouped by expert.
    pub gathered: Activations,
    /// Where they are computed apart.
    pub gate: Rows,
    pub up: Rows,
    /// activation(gate) * up.
    pub product: Activations,
    /// What experts give.
    pub out: Rows,
}

/// What a workspace holds, in rows × width.
struct Plan {
    hidden: usize,
    /// Each shape with whether keys are kept apart, and whether the output is quantized.
    attention: Vec<(AttentionShape, bool, bool)>,
    /// Shapes with gates.
    gated: Vec<AttentionShape>,
    /// Whether its output is quantized.
    convolution: Option<bool>,
    deltas: Vec<(DeltaNet, bool, bool)>,
    /// Each width with whether gate and up are kept apart, and whether the product is quantized.
    ffn: Vec<(usize, bool, bool)>,
    /// Each with whether gate and up are kept apart, and whether inputs and products are quantized.
    mixtures: Vec<(Mixture, bool, [bool; 2])>,
    branches: bool,
    quantized_hidden: bool,
    quantized_last: bool,
}

/// Adds an entry, or what it needs to the entry of its key.
fn join<K: PartialEq>(all: &mut Vec<(K, bool, bool)>, key: K, a: bool, b: bool) {
    match all.iter_mut().find(|(k, _, _)| *k == key) {
        Some((_, x, y)) => (*x, *y) = (*x || a, *y || b),
        None => all.push((key, a, b)),
    }
}

impl Plan {
    fn of(model: &PackedModel) -> Plan {
        let spec = model.spec();
        let any = |pick: &dyn Fn(&Layer) -> bool| model.layers.iter().any(pick);
        let quantized = |m: &Packed| m.format.is_quantized();
        let apart = |input: &FfnInput| !matches!(input, FfnInput::Together(_));
        let mut plan = Plan {
            hidden: spec.hidden,
            attention: Vec::new(),
            gated: Vec::new(),
            convolution: None,
            deltas: Vec::new(),
            ffn: Vec::new(),
            mixtures: Vec::new(),
            branches: false,
            quantized_hidden: any(&|l| l.hidden_matrices().any(quantized)),
            quantized_last: quantized(&model.output),
        };
        for (layer, spec_of) in model.layers.iter().zip(&spec.layers) {
            match (&spec_of.mixer, &layer.mixer) {
                (Mixer::Attention(attention), MixerWeights::Attention(weights)) => {
                    let keys = spec.query_growth.is_some()
                        || attention.qk_norm.is_some()
                        || attention.gate;
                    join(
                        &mut plan.attention,
                        shape_of(attention),
                        keys,
                        quantized(&weights.output),
                    );
                    if attention.gate && !plan.gated.contains(&shape_of(attention)) {
                        plan.gated.push(shape_of(attention));
                    }
                }
                (Mixer::Convolution(_), MixerWeights::Convolution(weights)) => {
                    plan.convolution =
                        Some(plan.convolution.unwrap_or(false) || quantized(&weights.output));
                }
                (Mixer::DeltaNet(net), MixerWeights::DeltaNet(weights)) => {
                    join(&mut plan.deltas, *net, false, quantized(&weights.output));
                }
                _ => unreachable!("packed by its spec"),
            }
            match (&layer.ffn, spec_of.ffn.mixture()) {
                (FfnWeights::Dense(dense), _) => {
                    join(
                        &mut plan.ffn,
                        spec_of.ffn.width(),
                        apart(&dense.input),
                        quantized(&dense.down),
                    );
                }
                (FfnWeights::Mixture(weights), Some(mixture)) => {
                    if let (Some(shared), Some(dense)) = (mixture.shared, &weights.shared) {
                        join(
                            &mut plan.ffn,
                            shared.width,
                            apart(&dense.input),
                            quantized(&dense.down),
                        );
                    }
                    let key = (mixture.experts, mixture.used, mixture.width);
                    let (kept, product) =
                        (apart(&weights.experts.input), quantized(&weights.experts.down));
                    let inputs = weights.experts.inputs().into_iter().any(quantized);
                    match plan
                        .mixtures
                        .iter_mut()
                        .find(|(m, ..)| (m.experts, m.used, m.width) == key)
                    {
                        Some((_, a, [i, p])) => {
                            (*a, *i, *p) = (*a || kept, *i || inputs, *p || product)
                        }
                        None => plan.mixtures.push((*mixture, kept, [inputs, product])),
                    }
                }
                (FfnWeights::Mixture(_), None) => unreachable!("packed by its spec"),
            }
            let joined = matches!(spec_of.norms, Norms::After | Norms::Both | Norms::ParallelApart);
            plan.branches |= joined || spec_of.ffn.mixture().is_some();
        }
        plan
    }
}

impl Workspace {
    pub(super) fn new(model: &PackedModel, rows: usize) -> Workspace {
        let plan = Plan::of(model);
        let only = |wanted: bool| if wanted { rows } else { 0 };
        let attention = plan.attention.iter().map(|&(shape, keys, quantized)| {
            let (heads, kv_heads, head_dim) = shape;
            let gated = only(plan.gated.contains(&shape));
            AttentionWorkspace {
                both: Rows::new(gated, 2 * heads * head_dim),
                gates: Rows::new(gated, heads * head_dim),
                ungated: Activations::new(gated, heads * head_dim, false),
                shape,
                queries: Rows::new(rows, heads * head_dim),
                keys: Rows::new(only(keys), kv_heads * head_dim),
                values: Rows::new(only(keys), kv_heads * head_dim),
                attended: Activations::new(rows, heads * head_dim, quantized),
            }
        });
        let ffn = plan.ffn.iter().map(|&(width, apart, quantized)| FfnWorkspace {
            width,
            gate: Rows::new(only(apart), width),
            up: Rows::new(only(apart), width),
            product: Activations::new(rows, width, quantized),
        });
        let convolution = plan.convolution.map(|quantized| ConvolutionWorkspace {
            projected: Rows::new(rows, 3 * plan.hidden),
            out: Activations::new(rows, plan.hidden, quantized),
        });
        let deltas = plan.deltas.iter().map(|&(net, _, quantized)| DeltaWorkspace {
            shape: net,
            input: Rows::new(rows, net.channels()),
            mixed: Rows::new(rows, net.channels()),
            gates: Rows::new(rows, net.value_width()),
            beta: Rows::new(rows, net.value_heads),
            decay: Rows::new(rows, net.value_heads),
            out: Activations::new(rows, net.value_width(), quantized),
        });
        let mixtures = plan
            .mixtures
            .iter()
            .map(|(m, apart, q)| MixtureWorkspace::new(m, plan.hidden, rows, *apart, *q));
        Workspace {
            x: Rows::new(rows, plan.hidden),
            normed: Activations::new(rows, plan.hidden, plan.quantized_hidden),
            branch: Rows::new(only(plan.branches), plan.hidden),
            attention: attention.collect(),
            convolution,
            deltas: deltas.collect(),
            ffn: ffn.collect(),
            mixtures: mixtures.collect(),
            last: Activations::new(rows, plan.hidden, plan.quantized_last),
            wide: vec![0.0; model.wide_floats()],
            spare: Vec::new(),
        }
    }

    pub(super) fn bytes(model: &PackedModel, rows: usize) -> usize {
        let plan = Plan::of(model);
        let only = |wanted: bool| if wanted { rows } else { 0 };
        let convolution = plan.convolution.map_or(0, |quantized| {
            Rows::bytes(rows, 3 * plan.hidden) + Activations::bytes(rows, plan.hidden, quantized)
        });
        let deltas = plan.deltas.iter().map(|&(net, _, quantized)| {
            2 * Rows::bytes(rows, net.channels())
                + Rows::bytes(rows, net.value_width())
                + 2 * Rows::bytes(rows, net.value_heads)
                + Activations::bytes(rows, net.value_width(), quantized)
        });
        let attention =
            plan.attention.iter().map(|&((heads, kv_heads, head_dim), keys, quantized)| {
                let gated = only(plan.gated.contains(&(heads, kv_heads, head_dim)));
                Rows::bytes(gated, 2 * heads * head_dim)
                    + 2 * Rows::bytes(gated, heads * head_dim)
                    + Rows::bytes(rows, heads * head_dim)
                    + 2 * Rows::bytes(only(keys), kv_heads * head_dim)
                    + Activations::bytes(rows, heads * head_dim, quantized)
            });
        let ffn = plan.ffn.iter().map(|&(width, apart, quantized)| {
            2 * Rows::bytes(only(apart), width) + Activations::bytes(rows, width, quantized)
        });
        let mixtures = plan
            .mixtures
            .iter()
            .map(|(m, apart, q)| MixtureWorkspace::bytes(m, plan.hidden, rows, *apart, *q));
        Rows::bytes(rows, plan.hidden)
            + Activations::bytes(rows, plan.hidden, plan.quantized_hidden)
            + Rows::bytes(only(plan.branches), plan.hidden)
            + attention.sum::<usize>()
            + convolution
            + deltas.sum::<usize>()
            + ffn.sum::<usize>()
            + mixtures.sum::<usize>()
            + Activations::bytes(rows, plan.hidden, plan.quantized_last)
            + model.wide_floats() * 4
    }

    /// Inside attention of this shape.
    pub(super) fn of_shape(
        all: &mut [AttentionWorkspace],
        shape: AttentionShape,
    ) -> &mut AttentionWorkspace {
        all.iter_mut().find(|w| w.shape == shape).expect("one for each shape of the model")
    }

    /// Inside a delta net of this shape.
    pub(super) fn of_net<'a>(
        all: &'a mut [DeltaWorkspace],
        net: &DeltaNet,
    ) -> &'a mut DeltaWorkspace {
        all.iter_mut().find(|w| w.shape == *net).expect("one for each shape of the model")
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
    /// Of each number of heads and key/value heads that occurs.
    pub units: Vec<((usize, usize), Vec<AttentionUnit>)>,
    /// Rows to score, and the segment each belongs to.
    pub scored: Vec<u32>,
    pub scored_for: Vec<usize>,
    /// Rows and states of each segment, where layers have states.
    pub states: Vec<StateSegment>,
}

impl Step {
    /// The units of a layer's attention.
    pub(super) fn units_of(&self, attention: &Attention) -> &[AttentionUnit] {
        let key = (attention.heads, attention.kv_heads);
        self.units.iter().find(|(k, _)| *k == key).map_or(&[], |(_, units)| units)
    }
}

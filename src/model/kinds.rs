//! The table of tensors: for each kind its role, its name in either container, its shape as the spec implies it, and whether it
//! makes queries or keys (and so has a rotary order). Roles, names, shape checks, permutations and lists of matrices follow from it.
//! Over 500 lines: one table of data, a few lines a kind of tensor.

use super::Role;
use super::spec::{
    Attention, Convolution, DeltaNet, Ffn, LayerSpec, Mixture, ModelSpec, Norms, QkNorm, Shared,
};

/// Rows and columns.
pub(crate) type Shape = (usize, usize);

/// One kind of tensor.
pub(crate) struct TensorKind {
    /// Its role in a layer (the argument is ignored outside of layers).
    pub role: fn(usize) -> Role,
    /// Name in GGUF files; `{}` is the layer's number.
    pub gguf: &'static str,
    /// Name in safetensors files, as llama has it; an architecture may rename it.
    pub hf: &'static str,
    /// One row with one dimension in the file .
    pub vector: bool,
    /// It holds the rows (a vector's elements) of all experts; in the file the experts are a dimension of their own, or tensors of
    /// their own. `[]` in its name is the expert's number.
    pub experts: bool,
    /// A vector with a dimension of 1 beside it, or taps of channels, a row each: dimensions of 1 do not count.
    pub loose: bool,
    /// Its rows (a vector's elements) are those of query or key heads, in the file's order of rotary pairs.
    pub rotary: bool,
    /// A vector of weights that some families' checkpoints hold less 1.
    pub norm: bool,
    /// `None` if a model of this spec has no such tensor.
    pub shape: fn(&ModelSpec, &LayerSpec) -> Option<Shape>,
}

/// A tensor that holds the rows of several kinds, in this order.
pub(crate) struct Fused {
    /// As [`TensorKind::gguf`].
    pub gguf: &'static str,
    /// As [`TensorKind::hf`].
    pub hf: &'static str,
    /// The roles whose rows it holds, first to last.
    pub roles: &'static [fn(usize) -> Role],
}

const MATRIX: TensorKind = TensorKind {
    role: |_| Role::Output,
    gguf: "",
    hf: "",
    vector: false,
    experts: false,
    loose: false,
    rotary: false,
    norm: false,
    shape: |_, _| None,
};
const VECTOR: TensorKind = TensorKind { vector: true, ..MATRIX };
const EXPERTS: TensorKind = TensorKind { experts: true, ..MATRIX };
const EXPERT_BIASES: TensorKind = TensorKind { vector: true, experts: true, ..MATRIX };
const NORM: TensorKind = TensorKind { norm: true, ..VECTOR };

/// The shape of a tensor of attention, where the layer has that.
fn attention(layer: &LayerSpec, shape: impl FnOnce(&Attention) -> Option<Shape>) -> Option<Shape> {
    layer.attention().and_then(shape)
}

/// The shape of a tensor of a short convolution, where the layer is one.
fn convolution(
    layer: &LayerSpec,
    shape: impl FnOnce(&Convolution) -> Option<Shape>,
) -> Option<Shape> {
    layer.convolution().and_then(shape)
}

/// The shape of a tensor of a delta net, where the layer is one.
fn delta(layer: &LayerSpec, shape: impl FnOnce(&DeltaNet) -> Option<Shape>) -> Option<Shape> {
    layer.delta_net().and_then(shape)
}

/// The shape of a tensor of experts, where the layer has them.
fn experts(layer: &LayerSpec, shape: impl FnOnce(&Mixture) -> Option<Shape>) -> Option<Shape> {
    layer.ffn.mixture().and_then(shape)
}

/// The shape of a tensor of the expert that all positions use, where there is one.
fn shared(layer: &LayerSpec, shape: impl FnOnce(Shared) -> Option<Shape>) -> Option<Shape> {
    layer.ffn.mixture().and_then(|mixture| mixture.shared).and_then(shape)
}

fn row(exists: bool, columns: usize) -> Option<Shape> {
    exists.then_some((1, columns))
}

/// The shape by (width, has a gate, biases of the input matrices, bias of the output matrix) of a dense part.
fn ffn(
    layer: &LayerSpec,
    shape: impl FnOnce(usize, bool, bool, bool) -> Option<Shape>,
) -> Option<Shape> {
    match layer.ffn {
        Ffn::Gated { width, activation: _, input_bias, output_bias } => {
            shape(width, true, input_bias, output_bias)
        }
        Ffn::Plain { width, activation: _, input_bias, output_bias } => {
            shape(width, false, input_bias, output_bias)
        }
        Ffn::Mixture(_) => None,
    }
}

/// Whether there are norms (before attention, after it, before the feed-forward part, after it).
fn norms(layer: &LayerSpec) -> (bool, bool, bool, bool) {
    match layer.norms {
        Norms::Before | Norms::ParallelApart => (true, false, true, false),
        Norms::After => (false, true, false, true),
        Norms::Both => (true, true, true, true),
        Norms::Parallel => (true, false, false, false),
    }
}

/// Width of a query or key norm's weights, where there is one.
fn qk_norm(spec: &ModelSpec, layer: &LayerSpec, width: fn(&Attention) -> usize) -> Option<Shape> {
    let a = layer.attention()?;
    let columns = match a.qk_norm? {
        QkNorm::PerHead | QkNorm::PerHeadRotated => a.head_dim,
        QkNorm::Whole => width(a),
    };
    row(spec.norm.weights, columns)
}

/// What comes before the layers.
pub(crate) static FIRST: &[TensorKind] = &[TensorKind {
    role: |_| Role::TokenEmbedding,
    gguf: "token_embd.weight",
    hf: "model.embed_tokens.weight",
    shape: |s, _| Some((s.vocab, s.hidden)),
    ..MATRIX
}];

/// A layer's, in the order of execution.
pub(crate) static LAYER: &[TensorKind] = &[
    TensorKind {
        role: Role::AttentionNorm,
        gguf: "blk.{}.attn_norm.weight",
        hf: "model.layers.{}.input_layernorm.weight",
        shape: |s, l| row(s.norm.weights && norms(l).0, s.hidden),
        ..NORM
    },
    TensorKind {
        role: Role::AttentionNormBias,
        gguf: "blk.{}.attn_norm.bias",
        hf: "model.layers.{}.input_layernorm.bias",
        shape: |s, l| row(s.norm.bias && norms(l).0, s.hidden),
        ..VECTOR
    },
    TensorKind {
        role: Role::Query,
        gguf: "blk.{}.attn_q.weight",
        hf: "model.layers.{}.self_attn.q_proj.weight",
        rotary: true,
        shape: |s, l| attention(l, |a| Some((a.query_rows(), s.hidden))),
        ..MATRIX
    },
    TensorKind {
        role: Role::QueryBias,
        gguf: "blk.{}.attn_q.bias",
        hf: "model.layers.{}.self_attn.q_proj.bias",
        rotary: true,
        shape: |_, l| attention(l, |a| row(a.qkv_bias, a.query_rows())),
        ..VECTOR
    },
    TensorKind {
        role: Role::Key,
        gguf: "blk.{}.attn_k.weight",
        hf: "model.layers.{}.self_attn.k_proj.weight",
        rotary: true,
        shape: |s, l| attention(l, |a| Some((a.kv_width(), s.hidden))),
        ..MATRIX
    },
    TensorKind {
        role: Role::KeyBias,
        gguf: "blk.{}.attn_k.bias",
        hf: "model.layers.{}.self_attn.k_proj.bias",
        rotary: true,
        shape: |_, l| attention(l, |a| row(a.qkv_bias, a.kv_width())),
        ..VECTOR
    },
    TensorKind {
        role: Role::Value,
        gguf: "blk.{}.attn_v.weight",
        hf: "model.layers.{}.self_attn.v_proj.weight",
        shape: |s, l| attention(l, |a| Some((a.kv_width(), s.hidden))),
        ..MATRIX
    },
    TensorKind {
        role: Role::ValueBias,
        gguf: "blk.{}.attn_v.bias",
        hf: "model.layers.{}.self_attn.v_proj.bias",
        shape: |_, l| attention(l, |a| row(a.qkv_bias, a.kv_width())),
        ..VECTOR
    },
    TensorKind {
        role: Role::QueryNorm,
        gguf: "blk.{}.attn_q_norm.weight",
        hf: "model.layers.{}.self_attn.q_norm.weight",
        rotary: true,
        shape: |s, l| qk_norm(s, l, Attention::query_width),
        ..NORM
    },
    TensorKind {
        role: Role::KeyNorm,
        gguf: "blk.{}.attn_k_norm.weight",
        hf: "model.layers.{}.self_attn.k_norm.weight",
        rotary: true,
        shape: |s, l| qk_norm(s, l, Attention::kv_width),
        ..NORM
    },
    TensorKind {
        role: Role::Sinks,
        gguf: "blk.{}.attn_sinks.weight",
        hf: "model.layers.{}.self_attn.sinks",
        shape: |_, l| attention(l, |a| row(a.sinks, a.heads)),
        ..VECTOR
    },
    TensorKind {
        role: Role::AttentionOutput,
        gguf: "blk.{}.attn_output.weight",
        hf: "model.layers.{}.self_attn.o_proj.weight",
        shape: |s, l| attention(l, |a| Some((s.hidden, a.query_width()))),
        ..MATRIX
    },
    TensorKind {
        role: Role::AttentionOutputBias,
        gguf: "blk.{}.attn_output.bias",
        hf: "model.layers.{}.self_attn.o_proj.bias",
        shape: |s, l| attention(l, |a| row(a.output_bias, s.hidden)),
        ..VECTOR
    },
    TensorKind {
        role: Role::ConvolutionInput,
        gguf: "blk.{}.shortconv.in_proj.weight",
        hf: "model.layers.{}.conv.in_proj.weight",
        shape: |s, l| convolution(l, |_| Some((s.hidden.saturating_mul(3), s.hidden))),
        ..MATRIX
    },
    TensorKind {
        role: Role::ConvolutionInputBias,
        gguf: "blk.{}.shortconv.in_proj.bias",
        hf: "model.layers.{}.conv.in_proj.bias",
        shape: |s, l| convolution(l, |c| row(c.bias, s.hidden.saturating_mul(3))),
        ..VECTOR
    },
    TensorKind {
        role: Role::ConvolutionTaps,
        gguf: "blk.{}.shortconv.conv.weight",
        hf: "model.layers.{}.conv.conv.weight",
        loose: true,
        shape: |s, l| convolution(l, |c| row(true, s.hidden.saturating_mul(c.taps))),
        ..VECTOR
    },
    TensorKind {
        role: Role::ConvolutionTapsBias,
        gguf: "blk.{}.shortconv.conv.bias",
        hf: "model.layers.{}.conv.conv.bias",
        shape: |s, l| convolution(l, |c| row(c.bias, s.hidden)),
        ..VECTOR
    },
    TensorKind {
        role: Role::ConvolutionOutput,
        gguf: "blk.{}.shortconv.out_proj.weight",
        hf: "model.layers.{}.conv.out_proj.weight",
        shape: |s, l| convolution(l, |_| Some((s.hidden, s.hidden))),
        ..MATRIX
    },
    TensorKind {
        role: Role::ConvolutionOutputBias,
        gguf: "blk.{}.shortconv.out_proj.bias",
        hf: "model.layers.{}.conv.out_proj.bias",
        shape: |s, l| convolution(l, |c| row(c.bias, s.hidden)),
        ..VECTOR
    },
    TensorKind {
        role: Role::DeltaInput,
        gguf: "blk.{}.attn_qkv.weight",
        hf: "model.layers.{}.linear_attn.in_proj_qkv.weight",
        shape: |s, l| delta(l, |d| Some((d.channels(), s.hidden))),
        ..MATRIX
    },
    TensorKind {
        role: Role::DeltaGate,
        gguf: "blk.{}.attn_gate.weight",
        hf: "model.layers.{}.linear_attn.in_proj_z.weight",
        shape: |s, l| delta(l, |d| Some((d.value_width(), s.hidden))),
        ..MATRIX
    },
    TensorKind {
        role: Role::DeltaBeta,
        gguf: "blk.{}.ssm_beta.weight",
        hf: "model.layers.{}.linear_attn.in_proj_b.weight",
        shape: |s, l| delta(l, |d| Some((d.value_heads, s.hidden))),
        ..MATRIX
    },
    TensorKind {
        role: Role::DeltaAlpha,
        gguf: "blk.{}.ssm_alpha.weight",
        hf: "model.layers.{}.linear_attn.in_proj_a.weight",
        shape: |s, l| delta(l, |d| Some((d.value_heads, s.hidden))),
        ..MATRIX
    },
    TensorKind {
        role: Role::DeltaTaps,
        gguf: "blk.{}.ssm_conv1d.weight",
        hf: "model.layers.{}.linear_attn.conv1d.weight",
        loose: true,
        shape: |_, l| delta(l, |d| row(true, d.channels().saturating_mul(d.taps))),
        ..VECTOR
    },
    TensorKind {
        role: Role::DeltaStep,
        gguf: "blk.{}.ssm_dt.bias",
        hf: "model.layers.{}.linear_attn.dt_bias",
        shape: |_, l| delta(l, |d| row(true, d.value_heads)),
        ..VECTOR
    },
    TensorKind {
        role: Role::DeltaDecay,
        gguf: "blk.{}.ssm_a",
        hf: "model.layers.{}.linear_attn.A_log",
        shape: |_, l| delta(l, |d| row(true, d.value_heads)),
        ..VECTOR
    },
    TensorKind {
        role: Role::DeltaNorm,
        gguf: "blk.{}.ssm_norm.weight",
        hf: "model.layers.{}.linear_attn.norm.weight",
        shape: |_, l| delta(l, |d| row(true, d.value_dim)),
        ..VECTOR
    },
    TensorKind {
        role: Role::DeltaOutput,
        gguf: "blk.{}.ssm_out.weight",
        hf: "model.layers.{}.linear_attn.out_proj.weight",
        shape: |s, l| delta(l, |d| Some((s.hidden, d.value_width()))),
        ..MATRIX
    },
    TensorKind {
        role: Role::AttentionPostNorm,
        gguf: "blk.{}.post_attention_norm.weight",
        hf: "model.layers.{}.post_attention_layernorm.weight",
        shape: |s, l| row(s.norm.weights && norms(l).1, s.hidden),
        ..NORM
    },
    TensorKind {
        role: Role::FfnNorm,
        gguf: "blk.{}.ffn_norm.weight",
        hf: "model.layers.{}.post_attention_layernorm.weight",
        shape: |s, l| row(s.norm.weights && norms(l).2, s.hidden),
        ..NORM
    },
    TensorKind {
        role: Role::FfnNormBias,
        gguf: "blk.{}.ffn_norm.bias",
        hf: "model.layers.{}.post_attention_layernorm.bias",
        shape: |s, l| row(s.norm.bias && norms(l).2, s.hidden),
        ..VECTOR
    },
    TensorKind {
        role: Role::Gate,
        gguf: "blk.{}.ffn_gate.weight",
        hf: "model.layers.{}.mlp.gate_proj.weight",
        shape: |s, l| ffn(l, |width, gate, _, _| gate.then_some((width, s.hidden))),
        ..MATRIX
    },
    TensorKind {
        role: Role::GateBias,
        gguf: "blk.{}.ffn_gate.bias",
        hf: "model.layers.{}.mlp.gate_proj.bias",
        shape: |_, l| ffn(l, |width, gate, bias, _| row(gate && bias, width)),
        ..VECTOR
    },
    TensorKind {
        role: Role::Up,
        gguf: "blk.{}.ffn_up.weight",
        hf: "model.layers.{}.mlp.up_proj.weight",
        shape: |s, l| ffn(l, |width, _, _, _| Some((width, s.hidden))),
        ..MATRIX
    },
    TensorKind {
        role: Role::UpBias,
        gguf: "blk.{}.ffn_up.bias",
        hf: "model.layers.{}.mlp.up_proj.bias",
        shape: |_, l| ffn(l, |width, _, bias, _| row(bias, width)),
        ..VECTOR
    },
    TensorKind {
        role: Role::Down,
        gguf: "blk.{}.ffn_down.weight",
        hf: "model.layers.{}.mlp.down_proj.weight",
        shape: |s, l| ffn(l, |width, _, _, _| Some((s.hidden, width))),
        ..MATRIX
    },
    TensorKind {
        role: Role::DownBias,
        gguf: "blk.{}.ffn_down.bias",
        hf: "model.layers.{}.mlp.down_proj.bias",
        shape: |s, l| ffn(l, |_, _, _, bias| row(bias, s.hidden)),
        ..VECTOR
    },
    TensorKind {
        role: Role::Router,
        gguf: "blk.{}.ffn_gate_inp.weight",
        hf: "model.layers.{}.mlp.gate.weight",
        shape: |s, l| experts(l, |m| Some((m.experts, s.hidden))),
        ..MATRIX
    },
    TensorKind {
        role: Role::RouterBias,
        gguf: "blk.{}.ffn_gate_inp.bias",
        hf: "model.layers.{}.mlp.gate.bias",
        shape: |_, l| experts(l, |m| row(m.router_bias, m.experts)),
        ..VECTOR
    },
    TensorKind {
        role: Role::ChoiceBias,
        gguf: "blk.{}.exp_probs_b.bias",
        hf: "model.layers.{}.mlp.expert_bias",
        shape: |_, l| experts(l, |m| row(m.choice_bias, m.experts)),
        ..VECTOR
    },
    TensorKind {
        role: Role::ExpertGate,
        gguf: "blk.{}.ffn_gate_exps.weight",
        hf: "model.layers.{}.mlp.experts.[].gate_proj.weight",
        shape: |s, l| experts(l, |m| Some((m.experts.saturating_mul(m.width), s.hidden))),
        ..EXPERTS
    },
    TensorKind {
        role: Role::ExpertGateBias,
        gguf: "blk.{}.ffn_gate_exps.bias",
        hf: "model.layers.{}.mlp.experts.[].gate_proj.bias",
        shape: |_, l| experts(l, |m| row(m.biases, m.experts.saturating_mul(m.width))),
        ..EXPERT_BIASES
    },
    TensorKind {
        role: Role::ExpertUp,
        gguf: "blk.{}.ffn_up_exps.weight",
        hf: "model.layers.{}.mlp.experts.[].up_proj.weight",
        shape: |s, l| experts(l, |m| Some((m.experts.saturating_mul(m.width), s.hidden))),
        ..EXPERTS
    },
    TensorKind {
        role: Role::ExpertUpBias,
        gguf: "blk.{}.ffn_up_exps.bias",
        hf: "model.layers.{}.mlp.experts.[].up_proj.bias",
        shape: |_, l| experts(l, |m| row(m.biases, m.experts.saturating_mul(m.width))),
        ..EXPERT_BIASES
    },
    TensorKind {
        role: Role::ExpertDown,
        gguf: "blk.{}.ffn_down_exps.weight",
        hf: "model.layers.{}.mlp.experts.[].down_proj.weight",
        shape: |s, l| experts(l, |m| Some((m.experts.saturating_mul(s.hidden), m.width))),
        ..EXPERTS
    },
    TensorKind {
        role: Role::ExpertDownBias,
        gguf: "blk.{}.ffn_down_exps.bias",
        hf: "model.layers.{}.mlp.experts.[].down_proj.bias",
        shape: |s, l| experts(l, |m| row(m.biases, m.experts.saturating_mul(s.hidden))),
        ..EXPERT_BIASES
    },
    TensorKind {
        role: Role::SharedShare,
        gguf: "blk.{}.ffn_gate_inp_shexp.weight",
        hf: "model.layers.{}.mlp.shared_expert_gate.weight",
        loose: true,
        shape: |s, l| shared(l, |e| row(e.gate, s.hidden)),
        ..VECTOR
    },
    TensorKind {
        role: Role::SharedGate,
        gguf: "blk.{}.ffn_gate_shexp.weight",
        hf: "model.layers.{}.mlp.shared_expert.gate_proj.weight",
        shape: |s, l| shared(l, |e| Some((e.width, s.hidden))),
        ..MATRIX
    },
    TensorKind {
        role: Role::SharedUp,
        gguf: "blk.{}.ffn_up_shexp.weight",
        hf: "model.layers.{}.mlp.shared_expert.up_proj.weight",
        shape: |s, l| shared(l, |e| Some((e.width, s.hidden))),
        ..MATRIX
    },
    TensorKind {
        role: Role::SharedDown,
        gguf: "blk.{}.ffn_down_shexp.weight",
        hf: "model.layers.{}.mlp.shared_expert.down_proj.weight",
        shape: |s, l| shared(l, |e| Some((s.hidden, e.width))),
        ..MATRIX
    },
    TensorKind {
        role: Role::FfnPostNorm,
        gguf: "blk.{}.post_ffw_norm.weight",
        hf: "model.layers.{}.post_feedforward_layernorm.weight",
        shape: |s, l| row(s.norm.weights && norms(l).3, s.hidden),
        ..NORM
    },
];

/// What comes after the layers.
pub(crate) static LAST: &[TensorKind] = &[
    TensorKind {
        role: |_| Role::OutputNorm,
        gguf: "output_norm.weight",
        hf: "model.norm.weight",
        shape: |s, _| row(s.norm.weights, s.hidden),
        ..NORM
    },
    TensorKind {
        role: |_| Role::OutputNormBias,
        gguf: "output_norm.bias",
        hf: "model.norm.bias",
        shape: |s, _| row(s.norm.bias, s.hidden),
        ..VECTOR
    },
    TensorKind {
        role: |_| Role::Output,
        gguf: "output.weight",
        hf: "lm_head.weight",
        shape: |s, _| (!s.tied_embeddings).then_some((s.vocab, s.hidden)),
        ..MATRIX
    },
    TensorKind {
        role: |_| Role::OutputBias,
        gguf: "output.bias",
        hf: "lm_head.bias",
        shape: |s, _| row(s.output_bias, s.vocab),
        ..VECTOR
    },
];

/// Tensors that hold several kinds; looked for where the kinds' own are missing.
pub(crate) static FUSED: &[Fused] = &[
    Fused {
        gguf: "blk.{}.attn_qkv.weight",
        hf: "model.layers.{}.self_attn.qkv_proj.weight",
        roles: &[Role::Query, Role::Key, Role::Value],
    },
    Fused {
        gguf: "blk.{}.attn_qkv.bias",
        hf: "model.layers.{}.self_attn.qkv_proj.bias",
        roles: &[Role::QueryBias, Role::KeyBias, Role::ValueBias],
    },
    // GGUF files keep the name of the second half.
    Fused {
        gguf: "blk.{}.ffn_up.weight",
        hf: "model.layers.{}.mlp.gate_up_proj.weight",
        roles: &[Role::Gate, Role::Up],
    },
];

/// The kinds that a model of this spec has, each with its layer (0 outside of layers) and shape, in the order of execution.
pub(crate) fn present(
    spec: &ModelSpec,
) -> impl Iterator<Item = (&'static TensorKind, usize, Shape)> + '_ {
    // Kinds outside of layers do not look at the layer they are given; a model has at least one.
    let any = spec.layers.first();
    let outer = move |kinds: &'static [TensorKind]| {
        kinds.iter().filter_map(move |kind| Some((kind, 0, (kind.shape)(spec, any?)?)))
    };
    let layers = spec.layers.iter().enumerate().flat_map(move |(i, layer)| {
        LAYER.iter().filter_map(move |kind| Some((kind, i, (kind.shape)(spec, layer)?)))
    });
    outer(FIRST).chain(layers).chain(outer(LAST))
}

/// Every weight of a model with its shape (rows, columns), in the order of execution. [`Role::Output`] only if it is not tied.
pub fn roles(spec: &ModelSpec) -> impl Iterator<Item = (Role, Shape)> + '_ {
    present(spec).map(|(kind, layer, shape)| ((kind.role)(layer), shape))
}

/// The matrices that a model computes with, in the order of execution, then the output matrix (also where it is the embedding) and the
/// token embedding where it is another.
pub fn matrices(spec: &ModelSpec) -> impl Iterator<Item = Role> + '_ {
    let outer: &[Role] =
        if spec.tied_embeddings { &[Role::Output] } else { &[Role::Output, Role::TokenEmbedding] };
    let layers =
        roles(spec).map(|(role, _)| role).filter(|role| is_matrix(*role) && role.layer().is_some());
    layers.chain(outer.iter().copied())
}

/// Weights of a model: all of them, and those that a token passes through (the experts that are used, everything else; of the embedding
/// one row is read, which counts as all of it, as model cards count).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Parameters {
    /// All.
    pub total: u64,
    /// What a token passes through.
    pub active: u64,
}

impl std::fmt::Display for Parameters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let short = |n: u64| match n {
            1_000_000_000.. => format!("{:.2} billion", n as f64 / 1e9),
            1_000_000.. => format!("{:.1} million", n as f64 / 1e6),
            _ => n.to_string(),
        };
        write!(f, "{} parameters", short(self.total))?;
        if self.active < self.total { write!(f, ", {} active", short(self.active)) } else { Ok(()) }
    }
}

/// Counts the weights of a model.
pub fn parameters(spec: &ModelSpec) -> Parameters {
    let (mut total, mut active) = (0u64, 0u64);
    for (role, (rows, columns)) in roles(spec) {
        let weights = (rows as u64).saturating_mul(columns as u64);
        total = total.saturating_add(weights);
        // Matrices of experts stand one below the other: each has the same share of them.
        let (experts, used) = (spec.experts_of(role) as u64, spec.experts_used(role) as u64);
        active = active.saturating_add(weights / experts * used);
    }
    Parameters { total, active }
}

/// Whether it is a matrix (what decoders keep in panels) and not a vector.
pub fn is_matrix(role: Role) -> bool {
    kind(role).is_some_and(|kind| !kind.vector)
}

/// Transformers' name of a role in a llama checkpoint.
pub fn llama_name(role: Role) -> String {
    let layer = role.layer().unwrap_or(0).to_string();
    kind(role).map_or_else(String::new, |kind| kind.hf.replace("{}", &layer))
}

/// The table's row of a role.
pub(crate) fn kind(role: Role) -> Option<&'static TensorKind> {
    let layer = role.layer().unwrap_or(0);
    [FIRST, LAYER, LAST].into_iter().flatten().find(|kind| (kind.role)(layer) == role)
}

impl Role {
    /// Its layer.
    pub fn layer(self) -> Option<usize> {
        use Role::*;
        match self {
            TokenEmbedding | Output | OutputBias | OutputNorm | OutputNormBias => None,
            AttentionNorm(i)
            | AttentionNormBias(i)
            | Query(i)
            | QueryBias(i)
            | Key(i)
            | KeyBias(i)
            | Value(i)
            | ValueBias(i)
            | QueryNorm(i)
            | KeyNorm(i)
            | Sinks(i)
            | AttentionOutput(i)
            | AttentionOutputBias(i)
            | AttentionPostNorm(i)
            | ConvolutionInput(i)
            | ConvolutionInputBias(i)
            | ConvolutionTaps(i)
            | ConvolutionTapsBias(i)
            | ConvolutionOutput(i)
            | ConvolutionOutputBias(i)
            | DeltaInput(i)
            | DeltaGate(i)
            | DeltaBeta(i)
            | DeltaAlpha(i)
            | DeltaTaps(i)
            | DeltaStep(i)
            | DeltaDecay(i)
            | DeltaNorm(i)
            | DeltaOutput(i)
            | FfnNorm(i)
            | FfnNormBias(i)
            | Gate(i)
            | GateBias(i)
            | Up(i)
            | UpBias(i)
            | Down(i)
            | DownBias(i)
            | Router(i)
            | RouterBias(i)
            | ChoiceBias(i)
            | ExpertGate(i)
            | ExpertGateBias(i)
            | ExpertUp(i)
            | ExpertUpBias(i)
            | ExpertDown(i)
            | ExpertDownBias(i)
            | SharedShare(i)
            | SharedGate(i)
            | SharedUp(i)
            | SharedDown(i)
            | FfnPostNorm(i) => Some(i),
        }
    }
}

impl ModelSpec {
    /// How many matrices of one shape a weight holds, one below the other: that of experts as many as there are, any other one.
    pub fn experts_of(&self, role: Role) -> usize {
        let experts = kind(role).is_some_and(|kind| kind.experts);
        let layer = role.layer().filter(|_| experts).and_then(|i| self.layers.get(i));
        layer.and_then(|l| l.ffn.mixture()).map_or(1, |m| m.experts.max(1))
    }

    /// How many of them one row of a batch is multiplied with: as many as it chooses, else 1.
    pub fn experts_used(&self, role: Role) -> usize {
        let experts = kind(role).is_some_and(|kind| kind.experts);
        let layer = role.layer().filter(|_| experts).and_then(|i| self.layers.get(i));
        layer.and_then(|l| l.ffn.mixture()).map_or(1, |m| m.used)
    }

    /// How many there are, and how many a step of `rows` rows reads if rows choose independently and each expert is as likely as any.
    pub fn experts_read(&self, role: Role, rows: usize) -> (usize, f64) {
        let (experts, used) = (self.experts_of(role), self.experts_used(role));
        if experts == 1 {
            return (1, 1.0);
        }
        let missed = (1.0 - used as f64 / experts as f64).powi(rows.min(1 << 20) as i32);
        (experts, experts as f64 * (1.0 - missed))
    }

    /// Rows and columns of a weight: outputs × inputs of a matrix; a vector is one row. (0, 0) for a weight that the model has not.
    pub fn shape(&self, role: Role) -> Shape {
        let role =
            if role == Role::Output && self.tied_embeddings { Role::TokenEmbedding } else { role };
        let layer = self.layers.get(role.layer().unwrap_or(0));
        kind(role).zip(layer).and_then(|(kind, layer)| (kind.shape)(self, layer)).unwrap_or((0, 0))
    }
}

//! The table of tensors: for each kind its role, its name in either container, its shape as the blueprint implies it, and whether it
//! makes queries or keys (and so has a rotary order). Roles, names, shape checks, permutations and lists of matrices follow from it.

use super::Role;
use super::spec::{Attention, Ffn, LayerSpec, Mixer, ModelSpec, Norms, QkNorm};

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
    /// One row with one dimension in the file.
    pub vector: bool,
    /// Its rows (a vector's elements) are those of query or key heads, in the file's order of rotary pairs.
    pub rotary: bool,
    /// A vector of weights that some families' checkpoints hold less 1.
    pub norm: bool,
    /// `None` if a model of this blueprint has no such tensor.
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

const MATRIX: TensorKind =
    TensorKind { role: |_| Role::Output, gguf: "", hf: "", vector: false, rotary: false, norm: false, shape: |_, _| None };
const VECTOR: TensorKind = TensorKind { vector: true, ..MATRIX };
const NORM: TensorKind = TensorKind { norm: true, ..VECTOR };

fn attention(layer: &LayerSpec) -> &Attention {
    let Mixer::Attention(attention) = &layer.mixer;
    attention
}

fn row(exists: bool, columns: usize) -> Option<Shape> {
    exists.then_some((1, columns))
}

/// (width, has a gate, biases of the input matrices, bias of the output matrix).
fn ffn(layer: &LayerSpec) -> (usize, bool, bool, bool) {
    match layer.ffn {
        Ffn::Gated { width, activation: _, input_bias, output_bias } => (width, true, input_bias, output_bias),
        Ffn::Plain { width, activation: _, input_bias, output_bias } => (width, false, input_bias, output_bias),
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
    let a = attention(layer);
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
        shape: |s, l| Some((attention(l).query_width(), s.hidden)),
        ..MATRIX
    },
    TensorKind {
        role: Role::QueryBias,
        gguf: "blk.{}.attn_q.bias",
        hf: "model.layers.{}.self_attn.q_proj.bias",
        rotary: true,
        shape: |_, l| row(attention(l).qkv_bias, attention(l).query_width()),
        ..VECTOR
    },
    TensorKind {
        role: Role::Key,
        gguf: "blk.{}.attn_k.weight",
        hf: "model.layers.{}.self_attn.k_proj.weight",
        rotary: true,
        shape: |s, l| Some((attention(l).kv_width(), s.hidden)),
        ..MATRIX
    },
    TensorKind {
        role: Role::KeyBias,
        gguf: "blk.{}.attn_k.bias",
        hf: "model.layers.{}.self_attn.k_proj.bias",
        rotary: true,
        shape: |_, l| row(attention(l).qkv_bias, attention(l).kv_width()),
        ..VECTOR
    },
    TensorKind {
        role: Role::Value,
        gguf: "blk.{}.attn_v.weight",
        hf: "model.layers.{}.self_attn.v_proj.weight",
        shape: |s, l| Some((attention(l).kv_width(), s.hidden)),
        ..MATRIX
    },
    TensorKind {
        role: Role::ValueBias,
        gguf: "blk.{}.attn_v.bias",
        hf: "model.layers.{}.self_attn.v_proj.bias",
        shape: |_, l| row(attention(l).qkv_bias, attention(l).kv_width()),
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
        shape: |_, l| row(attention(l).sinks, attention(l).heads),
        ..VECTOR
    },
    TensorKind {
        role: Role::AttentionOutput,
        gguf: "blk.{}.attn_output.weight",
        hf: "model.layers.{}.self_attn.o_proj.weight",
        shape: |s, l| Some((s.hidden, attention(l).query_width())),
        ..MATRIX
    },
    TensorKind {
        role: Role::AttentionOutputBias,
        gguf: "blk.{}.attn_output.bias",
        hf: "model.layers.{}.self_attn.o_proj.bias",
        shape: |s, l| row(attention(l).output_bias, s.hidden),
        ..VECTOR
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
        shape: |s, l| ffn(l).1.then_some((ffn(l).0, s.hidden)),
        ..MATRIX
    },
    TensorKind {
        role: Role::GateBias,
        gguf: "blk.{}.ffn_gate.bias",
        hf: "model.layers.{}.mlp.gate_proj.bias",
        shape: |_, l| row(ffn(l).1 && ffn(l).2, ffn(l).0),
        ..VECTOR
    },
    TensorKind {
        role: Role::Up,
        gguf: "blk.{}.ffn_up.weight",
        hf: "model.layers.{}.mlp.up_proj.weight",
        shape: |s, l| Some((ffn(l).0, s.hidden)),
        ..MATRIX
    },
    TensorKind {
        role: Role::UpBias,
        gguf: "blk.{}.ffn_up.bias",
        hf: "model.layers.{}.mlp.up_proj.bias",
        shape: |_, l| row(ffn(l).2, ffn(l).0),
        ..VECTOR
    },
    TensorKind {
        role: Role::Down,
        gguf: "blk.{}.ffn_down.weight",
        hf: "model.layers.{}.mlp.down_proj.weight",
        shape: |s, l| Some((s.hidden, ffn(l).0)),
        ..MATRIX
    },
    TensorKind {
        role: Role::DownBias,
        gguf: "blk.{}.ffn_down.bias",
        hf: "model.layers.{}.mlp.down_proj.bias",
        shape: |s, l| row(ffn(l).3, s.hidden),
        ..VECTOR
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
    Fused { gguf: "blk.{}.ffn_up.weight", hf: "model.layers.{}.mlp.gate_up_proj.weight", roles: &[Role::Gate, Role::Up] },
];

/// The kinds that a model of this blueprint has, each with its layer (0 outside of layers) and shape, in the order of execution.
pub(crate) fn present(spec: &ModelSpec) -> impl Iterator<Item = (&'static TensorKind, usize, Shape)> + '_ {
    // Kinds outside of layers do not look at the layer they are given; a model has at least one.
    let any = spec.layers.first();
    let outer =
        move |kinds: &'static [TensorKind]| kinds.iter().filter_map(move |kind| Some((kind, 0, (kind.shape)(spec, any?)?)));
    let layers = spec
        .layers
        .iter()
        .enumerate()
        .flat_map(move |(i, layer)| LAYER.iter().filter_map(move |kind| Some((kind, i, (kind.shape)(spec, layer)?))));
    outer(FIRST).chain(layers).chain(outer(LAST))
}

/// Every weight of a model with its shape (rows, columns), in the order of execution. [`Role::Output`] only if it is not tied.
pub fn roles(spec: &ModelSpec) -> impl Iterator<Item = (Role, Shape)> + '_ {
    present(spec).map(|(kind, layer, shape)| ((kind.role)(layer), shape))
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
            | FfnNorm(i)
            | FfnNormBias(i)
            | Gate(i)
            | GateBias(i)
            | Up(i)
            | UpBias(i)
            | Down(i)
            | DownBias(i)
            | FfnPostNorm(i) => Some(i),
        }
    }
}

impl ModelSpec {
    /// Rows and columns of a weight: outputs × inputs of a matrix; a vector is one row. (0, 0) for a weight that the model has not.
    pub fn shape(&self, role: Role) -> Shape {
        let role = if role == Role::Output && self.tied_embeddings { Role::TokenEmbedding } else { role };
        let layer = self.layers.get(role.layer().unwrap_or(0));
        kind(role).zip(layer).and_then(|(kind, layer)| (kind.shape)(self, layer)).unwrap_or((0, 0))
    }
}

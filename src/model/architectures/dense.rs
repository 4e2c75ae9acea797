//! What dense families have in common, read from metadata: sizes, norm, rope. Families begin with it and change what they have otherwise.
//! GGUF keys are those of ggml's docs/gguf.md, fields of configs those of transformers.
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

use super::rope::{self, Wanted};
use crate::kernels::MAX_TAPS;
use crate::model::metadata::{Container, Key, Metadata, key};
use crate::model::spec::{
    Activation, Convolution, DeltaNet, Ffn, LayerSpec, Mixer, Mixture, ModelSpec, Norm, NormKind,
    Norms,
};
use crate::model::{ModelError, Rope};

/// Positions beyond which a context length is not believed.
pub(in crate::model) const MAX_CONTEXT: u64 = 1 << 27;
/// Most elements of any width; rows of 2^24 f32 values are 64 MiB.
pub(super) const MAX_WIDTH: u64 = 1 << 24;
/// Most layers, heads, or dimensions of a head.
const MAX_COUNT: u64 = 1 << 16;

const LAYERS: Key = key(&"block_count", &"num_hidden_layers");
/// Blocks behind the layers that guess further tokens: not part of the model.
const GUESSING: Key = key(&"nextn_predict_layers", &"");
const CONTEXT: Key = key(&"context_length", &"max_position_embeddings");
const HIDDEN: Key = key(&"embedding_length", &"hidden_size");
const FFN: Key = key(&"feed_forward_length", &"intermediate_size");
/// Width of each expert.
pub(super) const EXPERT_FFN: Key = key(&"expert_feed_forward_length", &"moe_intermediate_size");
const HEADS: Key = key(&"attention.head_count", &"num_attention_heads");
const KV_HEADS: Key = key(&"attention.head_count_kv", &"num_key_value_heads");
const HEAD_DIM: Key = key(&"attention.key_length", &"head_dim");
const VALUE_DIM: Key = key(&"attention.value_length", &"");
const VOCAB: Key = key(&"vocab_size", &"vocab_size");
const TIED: Key = key(&"", &"tie_word_embeddings");
const RMS_EPSILON: Key =
    Key { gguf: &["attention.layer_norm_rms_epsilon"], hf: &["rms_norm_eps", "norm_eps"] };
const LAYER_EPSILON: Key = Key {
    gguf: &["attention.layer_norm_epsilon"],
    hf: &["layer_norm_eps", "norm_epsilon", "norm_eps", "layer_norm_epsilon"],
};
/// The activation of the feed-forward part, where a config says it.
pub(super) const ACTIVATION: Key = Key { gguf: &[], hf: &["hidden_activation", "hidden_act"] };

const ATTENTION_BIAS: Key = Key { gguf: &[], hf: &["attention_bias", "use_qkv_bias"] };
const MLP_BIAS: Key = key(&"", &"mlp_bias");
const ALL_BIASES: Key = key(&"", &"use_bias");

/// How a family differs from llama in what every family has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dense {
    /// Kind of norm.
    pub norm: NormKind,
    /// Epsilon where the file says none (and need not).
    pub epsilon: Option<f64>,
    /// Where layers are normalized.
    pub norms: Norms,
    /// The activation of GGUF files, and of configs that say none.
    pub activation: Activation,
    /// The feed-forward part has a gate.
    pub gated: bool,
    /// Base of the rope where the file says none.
    pub theta: f64,
    /// Share of a head that rotates where a config says none.
    pub partial: f64,
    /// The ends of yarn's ramp are rounded where the file does not say.
    pub truncate: bool,
    /// Sizes that configs leave out where they are the family's default.
    pub defaults: Defaults,
}

/// Sizes of configs that do not say them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Defaults {
    pub context: Option<usize>,
    pub heads: Option<usize>,
    pub kv_heads: Option<usize>,
    pub head_dim: Option<usize>,
    pub vocab: Option<usize>,
}

impl Default for Dense {
    fn default() -> Dense {
        Dense {
            norm: NormKind::Rms,
            epsilon: None,
            norms: Norms::Before,
            activation: Activation::Silu,
            gated: true,
            theta: 10_000.0,
            partial: 1.0,
            truncate: true,
            defaults: Defaults::default(),
        }
    }
}

/// The spec of a family that is llama but for `dense`, with one rope for all layers.
pub(super) fn build(m: &dyn Metadata, dense: Dense) -> Result<ModelSpec, ModelError> {
    let Dense { norm, epsilon, norms, activation, gated, theta, partial, truncate, defaults } =
        dense;
    let defaults =
        if m.container() == Container::Checkpoint { defaults } else { Defaults::default() };
    let layers = m.need(LAYERS, 1..=MAX_COUNT)?;
    let guessing = m.integer(GUESSING, 0..=MAX_COUNT)?.unwrap_or(0);
    let layers = layers.checked_sub(guessing).filter(|n| *n > 0);
    let layers = layers
        .ok_or_else(|| m.refuse(GUESSING, &format!("is {guessing}, which leaves no layers")))?;
    // Each layer has tensors of its own, which are looked up one by one; nothing is allocated by a number that this does not hold.
    if layers > m.tensors() {
        return Err(m.refuse(
            LAYERS,
            &format!("is {layers}, but the file holds only {} tensors", m.tensors()),
        ));
    }
    let context = m
        .integer(CONTEXT, 1..=MAX_CONTEXT)?
        .or(defaults.context)
        .ok_or_else(|| m.missing(CONTEXT))?;
    let hidden = m.need(HIDDEN, 1..=MAX_WIDTH)?;
    // Where all layers have experts, some files say their width alone.
    let ffn = match m.per_layer(FFN, 1..=MAX_WIDTH, layers)? {
        Some(ffn) => ffn,
        None => m.per_layer(EXPERT_FFN, 1..=MAX_WIDTH, layers)?.ok_or_else(|| m.missing(FFN))?,
    };
    let heads = m.per_layer(HEADS, 1..=MAX_COUNT, layers)?;
    let heads =
        heads.or(defaults.heads.map(|n| vec![n; layers])).ok_or_else(|| m.missing(HEADS))?;
    // 0 where a layer has none.
    let kv_heads = m
        .per_layer(KV_HEADS, 0..=MAX_COUNT, layers)?
        .or(defaults.kv_heads.map(|n| vec![n; layers]));
    let kv_heads = kv_heads.unwrap_or_else(|| heads.clone());
    if kv_heads.iter().all(|n| *n == 0) {
        return Err(m.refuse(KV_HEADS, "is 0; where a layer attends it is at least 1"));
    }
    let most = heads.iter().copied().max().unwrap_or(1);
    let head_dim = match m.integer(HEAD_DIM, 1..=MAX_COUNT)?.or(defaults.head_dim) {
        Some(n) => n,
        None if hidden.is_multiple_of(most) => hidden.checked_div(most).unwrap_or(1),
        None => {
            return Err(m.refuse(
                HIDDEN,
                &format!("is {hidden}, not a multiple of the {most} of {}", m.name(HEADS)),
            ));
        }
    };
    if m.integer(VALUE_DIM, 1..=MAX_COUNT)?.is_some_and(|n| n != head_dim) {
        return Err(m.refuse(VALUE_DIM, &format!("differs from the key length {head_dim}")));
    }
    let (vocab, tied) = vocabulary(m, defaults.vocab)?;
    let spec_norm = Norm {
        kind: norm,
        epsilon: match norm {
            NormKind::Rms => read_epsilon(m, RMS_EPSILON, epsilon)?,
            NormKind::Layer => read_epsilon(m, LAYER_EPSILON, epsilon)?,
        },
        weights: true,
        bias: false,
    };
    let rope: Rope =
        rope::read(m, Wanted { theta, partial, truncate, ..Wanted::new(head_dim, context) })?;
    // Some configs have the activation under both names; the first one counts, as in transformers.
    m.find(key(&"", &"hidden_act"));
    let activation = match m.text(ACTIVATION)? {
        Some(name) => named_activation(m, &name)?,
        None => activation,
    };
    let layers = heads.iter().zip(&kv_heads).zip(&ffn).map(|((&heads, &kv_heads), &width)| {
        let plain = LayerSpec::plain(heads, kv_heads, head_dim, width);
        let (input_bias, output_bias) = (false, false);
        let ffn = match gated {
            true => Ffn::Gated { width, activation, input_bias, output_bias },
            false => Ffn::Plain { width, activation, input_bias, output_bias },
        };
        LayerSpec { ffn, norms, ..plain }
    });
    let mut spec = ModelSpec {
        architecture: String::new(),
        hidden,
        vocab,
        context,
        layers: layers.collect(),
        norm: spec_norm,
        ropes: vec![rope],
        embedding_scale: 1.0,
        query_growth: None,
        logit_scale: 1.0,
        logit_softcap: None,
        output_bias: m.has_tensor("output.bias", "lm_head.bias"),
        tied_embeddings: tied,
    };
    biases(m, &mut spec, "model.layers.0.mlp.up_proj.bias", "model.layers.0.mlp.down_proj.bias");
    let attention = match m.bool(ATTENTION_BIAS)? {
        Some(said) => Some(said),
        None => m.bool(ALL_BIASES)?,
    };
    let inner = match m.bool(MLP_BIAS)? {
        Some(said) => Some(said),
        None => m.bool(ALL_BIASES)?,
    };
    for layer in &mut spec.layers {
        if let Some(own) = layer.attention_mut() {
            // What a config promises must be there; what it denies is refused as a tensor that nobody uses.
            own.qkv_bias = attention.unwrap_or(own.qkv_bias);
            own.output_bias &= attention != Some(false);
        }
        if let Ffn::Gated { input_bias, output_bias, .. }
        | Ffn::Plain { input_bias, output_bias, .. } = &mut layer.ffn
        {
            (*input_bias, *output_bias) =
                (inner.unwrap_or(*input_bias), inner.unwrap_or(*output_bias));
        }
    }
    Ok(spec)
}

/// Gives all layers the biases that the first one has.
pub(super) fn biases(m: &dyn Metadata, spec: &mut ModelSpec, up: &str, down: &str) {
    let has = |gguf: &str, hf: &str| m.has_tensor(gguf, hf);
    let qkv = has("blk.0.attn_q.bias", "model.layers.0.self_attn.q_proj.bias")
        || has("blk.0.attn_qkv.bias", "model.layers.0.self_attn.qkv_proj.bias");
    let output = has("blk.0.attn_output.bias", "model.layers.0.self_attn.o_proj.bias");
    let (up, down) = (has("blk.0.ffn_up.bias", up), has("blk.0.ffn_down.bias", down));
    for layer in &mut spec.layers {
        if let Some(attention) = layer.attention_mut() {
            (attention.qkv_bias, attention.output_bias) = (qkv, output);
        }
        if let Ffn::Gated { input_bias, output_bias, .. }
        | Ffn::Plain { input_bias, output_bias, .. } = &mut layer.ffn
        {
            (*input_bias, *output_bias) = (up, down);
        }
    }
}

/// The vocabulary's size, and whether the embedding is the output matrix.
fn vocabulary(m: &dyn Metadata, default: Option<usize>) -> Result<(usize, bool), ModelError> {
    let no_output = !m.has_tensor("output.weight", "lm_head.weight");
    match m.vocabulary() {
        Some(tokens) => {
            if m.integer(VOCAB, 0..=u64::MAX)?.is_some_and(|n| n != tokens) {
                return Err(m.refuse(
                    VOCAB,
                    &format!("differs from the {tokens} tokens of 'tokenizer.ggml.tokens'"),
                ));
            }
            Ok((tokens, no_output))
        }
        // Where a config does not say, transformers' default depends on the class: the tensors tell.
        None => {
            let vocab =
                m.integer(VOCAB, 1..=1 << 22)?.or(default).ok_or_else(|| m.missing(VOCAB))?;
            Ok((vocab, m.bool(TIED)?.unwrap_or(no_output)))
        }
    }
}

fn read_epsilon(m: &dyn Metadata, key: Key, default: Option<f64>) -> Result<f32, ModelError> {
    // GGUF files may say 0; transformers has no norm without one.
    let found = match m.container() {
        Container::Gguf => m.float(key, "a number from 0, below 1", |x| (0.0..1.0).contains(&x))?,
        Container::Checkpoint => {
            m.float(key, "a number above 0, below 1", |x| x > 0.0 && x < 1.0)?
        }
    };
    let found = found.or(default);
    found.map(|x| x as f32).ok_or_else(|| m.missing(key))
}

/// The activation of this name in transformers' `ACT2FN`.
pub(super) fn named_activation(m: &dyn Metadata, name: &str) -> Result<Activation, ModelError> {
    Ok(match name {
        "silu" | "swish" => Activation::Silu,
        "gelu" => Activation::Gelu,
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" | "gelu_tanh" => Activation::GeluTanh,
        "relu" => Activation::Relu,
        "relu2" => Activation::Relu2,
        other => {
            let other = crate::units::shown(other);
            let text = format!(
                "is '{other}', which llmopt does not compute; silu, gelu, gelu_pytorch_tanh, relu and relu2 are"
            );
            return Err(m.refuse(ACTIVATION, &text));
        }
    })
}

/// The rules between the numbers of a spec.
pub(super) fn check(spec: &ModelSpec) -> Result<(), String> {
    for layer in &spec.layers {
        if let Some(mixture) = layer.ffn.mixture() {
            check_mixture(mixture)?;
        }
        let a = match &layer.mixer {
            Mixer::Attention(a) => a,
            Mixer::Convolution(Convolution { taps, bias: _ }) => {
                check_taps(*taps)?;
                continue;
            }
            Mixer::DeltaNet(net) => {
                check_delta(net)?;
                continue;
            }
        };
        let (heads, kv_heads, head_dim) = (a.heads, a.kv_heads, a.head_dim);
        if !heads.is_multiple_of(kv_heads) {
            return Err(format!(
                "{heads} attention heads cannot share {kv_heads} key/value heads: not a multiple"
            ));
        }
        if !head_dim.is_multiple_of(2) {
            return Err(format!("the head size {head_dim} is odd; rotary positions need pairs"));
        }
        if let Some(rope) = a.rope.and_then(|rope| spec.ropes.get(rope)) {
            check_rope(rope, head_dim)?;
        }
    }
    Ok(())
}

fn check_taps(taps: usize) -> Result<(), String> {
    match taps {
        1..=MAX_TAPS => Ok(()),
        taps => {
            Err(format!("a convolution over {taps} positions is not computed; 1 to {MAX_TAPS} are"))
        }
    }
}

fn check_delta(net: &DeltaNet) -> Result<(), String> {
    let DeltaNet { key_heads, value_heads, key_dim, value_dim, taps, tiled: _ } = *net;
    check_taps(taps)?;
    if [key_heads, value_heads, key_dim, value_dim].contains(&0) {
        return Err("a delta net of no heads, or of heads without width".into());
    }
    // The widest that anybody has published is 64 heads of 128 by 128.
    let floats = (value_heads as u64)
        .checked_mul(key_dim as u64)
        .and_then(|n| n.checked_mul(value_dim as u64));
    if floats.is_none_or(|n| n > 1 << 30) {
        return Err(format!(
            "a state of {value_heads} heads of {key_dim} x {value_dim} is more than any model has"
        ));
    }
    if !value_heads.is_multiple_of(key_heads) {
        return Err(format!(
            "{value_heads} value heads cannot share {key_heads} key heads: not a multiple"
        ));
    }
    Ok(())
}

fn check_mixture(mixture: &Mixture) -> Result<(), String> {
    let Mixture { experts, used, .. } = *mixture;
    match () {
        _ if experts == 0 => Err("a mixture of 0 experts computes nothing".into()),
        _ if used == 0 => Err(format!("0 of {experts} experts are used; at least 1 must be")),
        _ if used > experts => {
            Err(format!("{used} experts are used of only {experts} that there are"))
        }
        _ => Ok(()),
    }
}

fn check_rope(rope: &Rope, head_dim: usize) -> Result<(), String> {
    let Rope { theta: _, dims, factors, magnitude: _, long } = rope;
    if !dims.is_multiple_of(2) || *dims > head_dim || *dims == 0 {
        return Err(format!(
            "{dims} rotary dimensions do not fit a head of {head_dim}: an even number up to that is possible"
        ));
    }
    for factors in std::iter::once(factors).chain(long.iter().map(|long| &long.factors)) {
        if !factors.is_empty() && factors.len() != dims.checked_div(2).unwrap_or(0) {
            return Err(format!(
                "{} rotary frequency factors for {dims} rotary dimensions; there must be half as many",
                factors.len()
            ));
        }
        if factors.iter().any(|f| !f.is_finite() || *f <= 0.0) {
            return Err("a rotary frequency factor is not a number above 0".into());
        }
    }
    Ok(())
}

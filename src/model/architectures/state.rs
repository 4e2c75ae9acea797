//! Families whose layers keep a state: LFM2 and LFM2 MoE (short convolutions), Qwen 3.5 and its MoE (gated delta nets, gated attention).
//! GGUF keys and names are those of llama.cpp's `lfm2.cpp`, `qwen35.cpp`; configs those of transformers 5.24.
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

use super::dense::{self, Dense};
use super::mixture::{self, Wanted};
use super::{Architecture, Pairs, Renamed};
use crate::model::metadata::{Container, Item, Key, Metadata, key};
use crate::model::spec::{Convolution, DeltaNet, Ffn, Mixer, Routing};
use crate::model::{ModelError, ModelSpec, QkNorm, Role};

const TYPES: Key = key(&"", &"layer_types");
const ATTENTION_LAYERS: Key = key(&"", &"full_attn_idxs");
const KV_HEADS: Key = key(&"attention.head_count_kv", &"");
const CACHE: Key = key(&"shortconv.l_cache", &"conv_L_cache");
const CONV_BIAS: Key = key(&"", &"conv_bias");
const ADJUST: Key = key(&"", &"block_auto_adjust_ff_dim");
const MULTIPLIER: Key = key(&"", &"block_ffn_dim_multiplier");
const MULTIPLE: Key = key(&"", &"block_multiple_of");
const BLOCK_WIDTH: Key = key(&"", &"block_ff_dim");

/// Whether each layer has attention: by `layer_types`, whose other kind is `other`.
fn by_types(m: &dyn Metadata, layers: usize, other: &str) -> Result<Option<Vec<bool>>, ModelError> {
    let Some(types) = m.texts(TYPES, layers)? else { return Ok(None) };
    let attention = |kind: &String| match kind.as_str() {
        "full_attention" => Ok(true),
        kind if kind == other => Ok(false),
        kind => Err(m.refuse(
            TYPES,
            &format!("has '{}'; {other} and full_attention are known", crate::units::shown(kind)),
        )),
    };
    types.iter().map(attention).collect::<Result<_, _>>().map(Some)
}

pub(super) static LFM2: Architecture = Architecture {
    name: "lfm2",
    model_types: &["lfm2"],
    classes: &["Lfm2ForCausalLM"],
    gguf_pairs: Pairs::HalfSplit,
    hf_pairs: Pairs::HalfSplit,
    norms_less_one: false,
    experts_turned: false,
    renamed: &[
        Renamed::gguf(|_| Role::OutputNorm, "token_embd_norm.weight"),
        Renamed::hf(|_| Role::OutputNorm, "model.embedding_norm.weight"),
        Renamed::hf(Role::AttentionNorm, "model.layers.{}.operator_norm.weight"),
        Renamed::hf(Role::FfnNorm, "model.layers.{}.ffn_norm.weight"),
        Renamed::hf(Role::QueryNorm, "model.layers.{}.self_attn.q_layernorm.weight"),
        Renamed::hf(Role::KeyNorm, "model.layers.{}.self_attn.k_layernorm.weight"),
        Renamed::hf(Role::AttentionOutput, "model.layers.{}.self_attn.out_proj.weight"),
        Renamed::hf(Role::Gate, "model.layers.{}.feed_forward.w1.weight"),
        Renamed::hf(Role::Up, "model.layers.{}.feed_forward.w3.weight"),
        Renamed::hf(Role::Down, "model.layers.{}.feed_forward.w2.weight"),
        Renamed::hf(Role::Router, "model.layers.{}.feed_forward.gate.weight"),
        Renamed::hf(Role::ChoiceBias, "model.layers.{}.feed_forward.expert_bias"),
        Renamed::hf(Role::ExpertGate, "model.layers.{}.feed_forward.experts.[].w1.weight"),
        Renamed::hf(Role::ExpertUp, "model.layers.{}.feed_forward.experts.[].w3.weight"),
        Renamed::hf(Role::ExpertDown, "model.layers.{}.feed_forward.experts.[].w2.weight"),
    ],
    build: |m| {
        let mut spec = lfm2(m)?;
        adjusted_width(m, &mut spec)?;
        Ok(spec)
    },
};

pub(super) static LFM2_MOE: Architecture = Architecture {
    name: "lfm2moe",
    model_types: &["lfm2_moe"],
    classes: &["Lfm2MoeForCausalLM"],
    build: |m| {
        let mut spec = lfm2(m)?;
        mixture::set(
            m,
            &mut spec,
            Wanted { routing: Routing::Sigmoid, normalized: [true, true], shared: false },
        )?;
        let bias = m.bool(key(&"", &"use_expert_bias"))?.unwrap_or(true);
        mixture::each(&mut spec, |mixture| mixture.choice_bias = bias);
        Ok(spec)
    },
    ..LFM2
};

fn lfm2(m: &dyn Metadata) -> Result<ModelSpec, ModelError> {
    let mut spec = dense::build(m, Dense { theta: 1e6, epsilon: Some(1e-5), ..Dense::default() })?;
    let count = spec.layers.len();
    let attention = match by_types(m, count, "conv")? {
        Some(attention) => attention,
        None => match (m.container(), m.find(KV_HEADS)) {
            (Container::Gguf, Some((_, Item::List(_)))) => {
                let heads = m.per_layer(KV_HEADS, 0..=1 << 16, count)?.unwrap_or_default();
                heads.iter().map(|n| *n > 0).collect()
            }
            (Container::Gguf, _) => {
                return Err(
                    m.refuse(KV_HEADS, "is not a list: 0 stands for layers with a convolution")
                );
            }
            _ => {
                let chosen = m.indices(ATTENTION_LAYERS, count)?;
                (0..count).map(|i| chosen.contains(&i)).collect()
            }
        },
    };
    let taps = m.integer(CACHE, 1..=1 << 16)?;
    let taps = match (taps, m.container()) {
        (Some(taps), _) => taps,
        (None, Container::Checkpoint) => 3,
        (None, Container::Gguf) => return Err(m.missing(CACHE)),
    };
    let bias = m.bool(CONV_BIAS)?.unwrap_or(false);
    for (layer, attention) in spec.layers.iter_mut().zip(attention) {
        if !attention {
            layer.mixer = Mixer::Convolution(Convolution { taps, bias });
        } else if let Some(own) = layer.attention_mut() {
            own.qk_norm = Some(QkNorm::PerHead);
        }
    }
    Ok(spec)
}

/// Configs say a width that is cut to two thirds and rounded up (`Lfm2MLP`).
fn adjusted_width(m: &dyn Metadata, spec: &mut ModelSpec) -> Result<(), ModelError> {
    if m.container() == Container::Gguf {
        return Ok(());
    }
    let own = m.integer(BLOCK_WIDTH, 1..=dense::MAX_WIDTH)?;
    let adjust = m.bool(ADJUST)?.unwrap_or(true);
    let multiplier = m.positive(MULTIPLIER)?.unwrap_or(1.0);
    let multiple = m.integer(MULTIPLE, 1..=dense::MAX_WIDTH)?.unwrap_or(256);
    for layer in &mut spec.layers {
        if let Ffn::Gated { width, .. } = &mut layer.ffn {
            *width = own.unwrap_or(*width);
            if adjust {
                let cut = width.saturating_mul(2).checked_div(3).unwrap_or(0);
                let scaled = (multiplier * cut as f64) as usize;
                *width = scaled.checked_next_multiple_of(multiple).unwrap_or(usize::MAX);
            }
            if *width == 0 || *width as u64 > dense::MAX_WIDTH {
                return Err(m.refuse(MULTIPLIER, &format!("makes a feed-forward part of {width}")));
            }
        }
    }
    Ok(())
}

const INTERVAL: Key = key(&"full_attention_interval", &"full_attention_interval");
const RECURRENT: Key = key(&"attention.recurrent_layers", &"");
const TAPS: Key = key(&"ssm.conv_kernel", &"linear_conv_kernel_dim");
const KEY_HEADS: Key = key(&"ssm.group_count", &"linear_num_key_heads");
const VALUE_HEADS: Key = key(&"ssm.time_step_rank", &"linear_num_value_heads");
const KEY_DIM: Key = key(&"ssm.state_size", &"linear_key_head_dim");
const VALUE_DIM: Key = key(&"", &"linear_value_head_dim");
const INNER: Key = key(&"ssm.inner_size", &"");

pub(super) static QWEN35: Architecture = Architecture {
    name: "qwen35",
    model_types: &["qwen3_5_text", "qwen3_5"],
    classes: &["Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"],
    gguf_pairs: Pairs::HalfSplit,
    hf_pairs: Pairs::HalfSplit,
    norms_less_one: true,
    experts_turned: false,
    renamed: &[Renamed::gguf(Role::FfnNorm, "blk.{}.post_attention_norm.weight")],
    build: qwen35,
};

pub(super) static QWEN35_MOE: Architecture = Architecture {
    name: "qwen35moe",
    model_types: &["qwen3_5_moe_text", "qwen3_5_moe"],
    classes: &["Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"],
    build: |m| {
        let mut spec = qwen35(m)?;
        mixture::set(
            m,
            &mut spec,
            Wanted { routing: Routing::Softmax, normalized: [true, true], shared: true },
        )?;
        Ok(spec)
    },
    ..QWEN35
};

fn qwen35(m: &dyn Metadata) -> Result<ModelSpec, ModelError> {
    let mut spec = dense::build(m, Dense { partial: 0.25, ..Dense::default() })?;
    let count = spec.layers.len();
    // The blocks behind the layers are in the list too.
    let recurrent = match m.find(RECURRENT) {
        Some((_, Item::List(all))) if all.len() >= count => m.flags(RECURRENT, all.len())?,
        Some(_) => m.flags(RECURRENT, count)?,
        None => None,
    };
    let interval = m.integer(INTERVAL, 1..=1 << 16)?.unwrap_or(4);
    let attention: Vec<bool> = match (by_types(m, count, "linear_attention")?, recurrent) {
        (Some(attention), _) => attention,
        (None, Some(recurrent)) => {
            recurrent.iter().take(count).map(|recurrent| !recurrent).collect()
        }
        (None, None) => (1..=count).map(|i| i.is_multiple_of(interval)).collect(),
    };
    let gguf = m.container() == Container::Gguf;
    let size = |key: Key, default: usize| -> Result<usize, ModelError> {
        let found = m.integer(key, 1..=1 << 16)?;
        found.or((!gguf).then_some(default)).ok_or_else(|| m.missing(key))
    };
    let (key_heads, value_heads) = (size(KEY_HEADS, 16)?, size(VALUE_HEADS, 32)?);
    let (key_dim, taps) = (size(KEY_DIM, 128)?, size(TAPS, 4)?);
    let value_dim = match gguf {
        false => size(VALUE_DIM, 128)?,
        true => {
            let inner = m.need(INNER, 1..=dense::MAX_WIDTH)?;
            if !inner.is_multiple_of(value_heads) {
                return Err(m.refuse(
                    INNER,
                    &format!(
                        "is {inner}, not a multiple of the {value_heads} of {}",
                        m.name(VALUE_HEADS)
                    ),
                ));
            }
            inner.checked_div(value_heads).unwrap_or(0)
        }
    };
    for (layer, attention) in spec.layers.iter_mut().zip(attention) {
        if !attention {
            layer.mixer = Mixer::DeltaNet(DeltaNet {
                key_heads,
                value_heads,
                key_dim,
                value_dim,
                taps,
                tiled: gguf,
            });
        } else if let Some(own) = layer.attention_mut() {
            (own.qk_norm, own.gate) = (Some(QkNorm::PerHead), true);
        }
    }
    Ok(spec)
}

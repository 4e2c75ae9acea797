//! Families with experts: what their metadata has in common, Qwen 2 and 3 MoE, Mixtral, OLMoE, Granite MoE, gpt-oss. GGUF keys are
//! those of llama.cpp's `llama-arch.cpp`, fields of configs those of transformers.
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
use super::{Architecture, Pairs, Renamed, granite, layers};
use crate::model::metadata::{Container, Key, Metadata, key};
use crate::model::spec::{Activation, Ffn, Mixture, Routing, Shared};
use crate::model::{ModelError, ModelSpec, QkNorm, Role};

const EXPERTS: Key = Key { gguf: &["expert_count"], hf: &["num_local_experts", "num_experts"] };
const USED: Key = key(&"expert_used_count", &"num_experts_per_tok");
const SHARED_WIDTH: Key = Key {
    gguf: &["expert_shared_feed_forward_length"],
    hf: &["shared_expert_intermediate_size", "shared_intermediate_size"],
};
const NORMALIZED: Key = key(&"expert_weights_norm", &"norm_topk_prob");
const SCALE: Key = key(&"expert_weights_scale", &"routed_scaling_factor");
const ROUTING: Key = key(&"expert_gating_func", &"");
const GROUPS: Key = Key { gguf: &["expert_group_count"], hf: &["n_group"] };
const SPARSE_STEP: Key = key(&"", &"decoder_sparse_step");
const DENSE_LAYERS: Key = key(&"", &"mlp_only_layers");
const LEADING: Key = key(&"leading_dense_block_count", &"num_dense_layers");
/// Most experts of a layer.
const MOST: u64 = 1 << 16;

/// How a family's mixtures differ from a softmax over all without more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// Where the file does not say.
    pub routing: Routing,
    /// Where the file does not say, in GGUF files and in configs.
    pub normalized: [bool; 2],
    /// There is a shared expert with a share.
    pub shared: bool,
}

/// Whether a file has experts.
pub(super) fn has_experts(m: &dyn Metadata) -> Result<bool, ModelError> {
    Ok(m.integer(EXPERTS, 0..=MOST)?.is_some_and(|n| n > 0))
}

/// Gives the layers experts, but for those that the file says are dense.
pub(super) fn set(
    m: &dyn Metadata,
    spec: &mut ModelSpec,
    wanted: Wanted,
) -> Result<(), ModelError> {
    let Wanted { routing, normalized, shared } = wanted;
    let gguf = m.container() == Container::Gguf;
    let experts = m.need(EXPERTS, 1..=MOST)?;
    let used = m.need(USED, 1..=MOST)?;
    if used > experts {
        return Err(m.refuse(USED, &format!("is {used}, but there are only {experts} experts")));
    }
    if m.integer(GROUPS, 0..=MOST)?.is_some_and(|groups| groups > 1) {
        return Err(m.refuse(GROUPS, "is set: groups of experts are not computed by llmopt here"));
    }
    let routing = match m.integer(ROUTING, 0..=1 << 16)? {
        None | Some(0) => routing,
        Some(1) => Routing::Softmax,
        Some(2) => Routing::Sigmoid,
        Some(3) => Routing::SoftmaxOfChosen,
        Some(other) => return Err(m.refuse(ROUTING, &format!("is {other}; 1 to 3 are computed"))),
    };
    let [in_gguf, in_config] = normalized;
    let default = if gguf { in_gguf } else { in_config };
    let normalized = m.bool(NORMALIZED)?.unwrap_or(default);
    // llama.cpp takes 0 for not set.
    let scale =
        m.float(SCALE, "a number from 0", |x| x >= 0.0)?.filter(|x| *x != 0.0).unwrap_or(1.0)
            as f32;
    let count = spec.layers.len();
    let step = m.integer(SPARSE_STEP, 1..=1 << 16)?.unwrap_or(1);
    let dense = m.indices(DENSE_LAYERS, count)?;
    let leading = m.integer(LEADING, 0..=1 << 16)?.unwrap_or(0);
    let shared_width = m.integer(SHARED_WIDTH, 0..=dense::MAX_WIDTH)?.filter(|n| *n > 0);
    let widths = m.per_layer(dense::EXPERT_FFN, 1..=dense::MAX_WIDTH, count)?;
    let router_bias = m.has_tensor("blk.0.ffn_gate_inp.bias", "model.layers.0.mlp.router.bias");
    let biases =
        m.has_tensor("blk.0.ffn_down_exps.bias", "model.layers.0.mlp.experts.down_proj_bias");
    for (i, layer) in spec.layers.iter_mut().enumerate() {
        let number = i.saturating_add(1);
        if !number.is_multiple_of(step) || dense.contains(&i) || i < leading {
            continue;
        }
        let Ffn::Gated { width: dense_width, activation, .. } = layer.ffn else { continue };
        let width = widths.as_ref().and_then(|w| w.get(i).copied()).unwrap_or(dense_width);
        let shared =
            shared.then(|| Shared { width: shared_width.unwrap_or(dense_width), gate: true });
        layer.ffn = Ffn::Mixture(Mixture {
            experts,
            used,
            width,
            activation,
            routing,
            normalized,
            scale,
            router_bias,
            choice_bias: false,
            biases,
            shared,
        });
    }
    Ok(())
}

/// Changes the mixtures of all layers.
pub(super) fn each(spec: &mut ModelSpec, change: impl Fn(&mut Mixture)) {
    for layer in &mut spec.layers {
        if let Ffn::Mixture(mixture) = &mut layer.ffn {
            change(mixture);
        }
    }
}

pub(super) static QWEN2_MOE: Architecture = Architecture {
    name: "qwen2moe",
    model_types: &["qwen2_moe"],
    classes: &["Qwen2MoeForCausalLM"],
    gguf_pairs: Pairs::HalfSplit,
    hf_pairs: Pairs::HalfSplit,
    norms_less_one: false,
    experts_turned: false,
    renamed: &[],
    build: |m| {
        let mut spec = dense::build(m, Dense::default())?;
        let biases = m.bool(key(&"", &"qkv_bias"))?.unwrap_or(true);
        spec.attentions_mut().for_each(|a| a.qkv_bias = biases);
        layers::qwen_windows(m, &mut spec)?;
        set(
            m,
            &mut spec,
            Wanted { routing: Routing::Softmax, normalized: [false, false], shared: true },
        )?;
        Ok(spec)
    },
};

pub(super) static QWEN3_MOE: Architecture = Architecture {
    name: "qwen3moe",
    model_types: &["qwen3_moe"],
    classes: &["Qwen3MoeForCausalLM"],
    build: |m| {
        let mut spec = dense::build(m, Dense::default())?;
        spec.attentions_mut().for_each(|a| a.qk_norm = Some(QkNorm::PerHead));
        layers::qwen_windows(m, &mut spec)?;
        set(
            m,
            &mut spec,
            Wanted { routing: Routing::Softmax, normalized: [true, false], shared: false },
        )?;
        Ok(spec)
    },
    ..QWEN2_MOE
};

/// Its GGUF files say llama.
pub(super) static MIXTRAL: Architecture = Architecture {
    name: "mixtral",
    model_types: &["mixtral"],
    classes: &["MixtralForCausalLM"],
    gguf_pairs: Pairs::Interleaved,
    renamed: &[
        Renamed::hf(Role::Router, "model.layers.{}.block_sparse_moe.gate.weight"),
        Renamed::hf(Role::ExpertGate, "model.layers.{}.block_sparse_moe.experts.[].w1.weight"),
        Renamed::hf(Role::ExpertUp, "model.layers.{}.block_sparse_moe.experts.[].w3.weight"),
        Renamed::hf(Role::ExpertDown, "model.layers.{}.block_sparse_moe.experts.[].w2.weight"),
    ],
    build: |m| {
        let mut spec = dense::build(m, Dense { theta: 1e6, ..Dense::default() })?;
        layers::window_everywhere(m, &mut spec)?;
        set(m, &mut spec, LLAMA)?;
        Ok(spec)
    },
    ..QWEN2_MOE
};

/// The mixtures of GGUF files that say llama.
pub(super) const LLAMA: Wanted =
    Wanted { routing: Routing::Softmax, normalized: [true, true], shared: false };

pub(super) static OLMOE: Architecture = Architecture {
    name: "olmoe",
    model_types: &["olmoe"],
    classes: &["OlmoeForCausalLM"],
    build: |m| {
        let mut spec = dense::build(m, Dense::default())?;
        spec.attentions_mut().for_each(|a| a.qk_norm = Some(QkNorm::Whole));
        set(
            m,
            &mut spec,
            Wanted { routing: Routing::Softmax, normalized: [false, false], shared: false },
        )?;
        Ok(spec)
    },
    ..QWEN2_MOE
};

pub(super) static GRANITE_MOE: Architecture = Architecture {
    name: "granitemoe",
    model_types: &["granitemoe"],
    classes: &["GraniteMoeForCausalLM"],
    gguf_pairs: Pairs::Interleaved,
    renamed: &[Renamed::hf(Role::Router, "model.layers.{}.block_sparse_moe.router.layer.weight")],
    build: |m| {
        let mut spec = granite::build(m)?;
        let shared = m.integer(SHARED_WIDTH, 0..=dense::MAX_WIDTH)?.is_some_and(|n| n > 0);
        set(
            m,
            &mut spec,
            Wanted { routing: Routing::SoftmaxOfChosen, normalized: [false, false], shared },
        )?;
        each(&mut spec, |mixture| {
            mixture.shared = mixture.shared.map(|shared| Shared { gate: false, ..shared })
        });
        Ok(spec)
    },
    ..QWEN2_MOE
};

const LIMIT: Key = key(&"", &"swiglu_limit");
const ALPHA: Key = key(&"", &"swiglu_alpha");

/// Its experts have biases and a clamped activation; the ends of yarn's ramp are not rounded, whatever the container says.
pub(super) static GPT_OSS: Architecture = Architecture {
    name: "gpt-oss",
    model_types: &["gpt_oss"],
    classes: &["GptOssForCausalLM"],
    experts_turned: true,
    renamed: &[
        Renamed::gguf(Role::FfnNorm, "blk.{}.post_attention_norm.weight"),
        Renamed::hf(Role::Router, "model.layers.{}.mlp.router.weight"),
        Renamed::hf(Role::RouterBias, "model.layers.{}.mlp.router.bias"),
    ],
    build: |m| {
        let mut spec =
            dense::build(m, Dense { theta: 150_000.0, truncate: false, ..Dense::default() })?;
        spec.attentions_mut().for_each(|a| a.sinks = true);
        let local = layers::local(m, spec.layers.len(), 2)?;
        layers::set_windows(m, &mut spec, &local)?;
        set(
            m,
            &mut spec,
            Wanted { routing: Routing::SoftmaxOfChosen, normalized: [false, false], shared: false },
        )?;
        let limit = m.positive(LIMIT)?.unwrap_or(7.0) as f32;
        let alpha = m.positive(ALPHA)?.unwrap_or(1.702) as f32;
        each(&mut spec, |mixture| mixture.activation = Activation::Clamped { limit, alpha });
        Ok(spec)
    },
    ..QWEN2_MOE
};

//! The llama architecture (Llama 2 and 3, SmolLM, SmolLM2 and what else is published under that name): RMS norm, rotary positions,
//! grouped attention without biases, SwiGLU. GGUF keys are those of ggml's docs/gguf.md.

use crate::model::gguf::Gguf;
use crate::model::{Activation, ModelError, ModelSpec, Norm, Role, Rope};

/// Positions beyond which a context length is not believed.
pub(crate) const MAX_CONTEXT: u64 = 1 << 27;
/// Most elements of any width; rows of 2^24 f32 values are 64 MiB.
pub(crate) const MAX_WIDTH: u64 = 1 << 24;

/// GGUF's name of a role.
pub(in crate::model) fn gguf_name(role: Role) -> String {
    match role {
        Role::TokenEmbedding => "token_embd.weight".into(),
        Role::Output => "output.weight".into(),
        Role::OutputNorm => "output_norm.weight".into(),
        Role::AttentionNorm(i) => format!("blk.{i}.attn_norm.weight"),
        Role::Query(i) => format!("blk.{i}.attn_q.weight"),
        Role::Key(i) => format!("blk.{i}.attn_k.weight"),
        Role::Value(i) => format!("blk.{i}.attn_v.weight"),
        Role::AttentionOutput(i) => format!("blk.{i}.attn_output.weight"),
        Role::FfnNorm(i) => format!("blk.{i}.ffn_norm.weight"),
        Role::Gate(i) => format!("blk.{i}.ffn_gate.weight"),
        Role::Up(i) => format!("blk.{i}.ffn_up.weight"),
        Role::Down(i) => format!("blk.{i}.ffn_down.weight"),
    }
}

/// The blueprint from GGUF metadata; `vocab` is the number of tokens, `factors` those of `rope_freqs.weight`.
pub(in crate::model) fn from_gguf(file: &Gguf, vocab: usize, factors: Option<Vec<f32>>) -> Result<ModelSpec, ModelError> {
    const A: &str = "llama";
    let key = |name: &str| format!("{A}.{name}");
    for (name, neutral) in [("expert_count", 0), ("expert_used_count", 0)] {
        if file.integer(&key(name), 0..=u64::MAX)?.is_some_and(|n| n != neutral) {
            return Err(file.error(format_args!("metadata '{}' is set: mixtures of experts are not supported", key(name))));
        }
    }
    let layers = file.need_integer(&key("block_count"), 1..=1 << 16)?;
    // Each layer has nine tensors, which are looked up one by one; nothing is allocated by this number.
    if layers > file.tensors.len() {
        return Err(file.error(format_args!(
            "metadata '{}' is {layers}, but the file holds only {} tensors",
            key("block_count"),
            file.tensors.len()
        )));
    }
    let context = file.need_integer(&key("context_length"), 1..=MAX_CONTEXT)?;
    let hidden = file.need_integer(&key("embedding_length"), 1..=MAX_WIDTH)?;
    let ffn = file.need_integer(&key("feed_forward_length"), 1..=MAX_WIDTH)?;
    let heads = file.need_integer(&key("attention.head_count"), 1..=1 << 16)?;
    let kv_heads = file.integer(&key("attention.head_count_kv"), 1..=1 << 16)?.unwrap_or(heads);
    let head_dim = match file.integer(&key("attention.key_length"), 1..=1 << 16)? {
        Some(n) => n,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(file.error(format_args!(
                "metadata '{}' {hidden} is not a multiple of '{}' {heads}",
                key("embedding_length"),
                key("attention.head_count")
            )));
        }
    };
    if file.integer(&key("attention.value_length"), 1..=1 << 16)?.is_some_and(|n| n != head_dim) {
        return Err(
            file.error(format_args!("metadata '{}' differs from the key length {head_dim}", key("attention.value_length")))
        );
    }
    let dims = file.integer(&key("rope.dimension_count"), 1..=1 << 16)?.unwrap_or(head_dim);
    let theta = file.float(&key("rope.freq_base"), "a number above 0", |x| x > 0.0)?.unwrap_or(10_000.0);
    let epsilon = key("attention.layer_norm_rms_epsilon");
    let epsilon = file
        .float(&epsilon, "a number from 0 to 1", |x| (0.0..1.0).contains(&x))?
        .ok_or_else(|| file.error(format_args!("metadata '{epsilon}' is missing")))?;
    if file.integer(&key("vocab_size"), 0..=u64::MAX)?.is_some_and(|n| n != vocab) {
        return Err(file
            .error(format_args!("metadata '{}' differs from the {vocab} tokens of 'tokenizer.ggml.tokens'", key("vocab_size"))));
    }
    if file.bool(&key("attention.causal"))? == Some(false) {
        return Err(file.error(format_args!("metadata '{}' is false: the model does not generate text", key("attention.causal"))));
    }
    if file.integer(&key("attention.sliding_window"), 0..=u64::MAX)?.is_some_and(|n| n != 0 && n < context) {
        return Err(
            file.error(format_args!("metadata '{}' is set: sliding windows are not supported", key("attention.sliding_window")))
        );
    }
    for name in ["embedding_scale", "residual_scale", "logit_scale", "attention.scale"] {
        let neutral = if name == "attention.scale" { 1.0 / (head_dim as f32).sqrt() } else { 1.0 };
        if file.float(&key(name), "a number", |_| true)?.is_some_and(|x| x != 0.0 && (x - neutral).abs() > 1e-6) {
            return Err(
                file.error(format_args!("metadata '{}' is set, which the llama architecture here does not use", key(name)))
            );
        }
    }
    let linear = match file.text(&key("rope.scaling.type"))? {
        None | Some("none" | "linear") => {
            let factor = file.float(&key("rope.scaling.factor"), "a number above 0", |x| x > 0.0)?;
            let old = file.float(&key("rope.scale_linear"), "a number above 0", |x| x > 0.0)?;
            let none = file.text(&key("rope.scaling.type"))? == Some("none");
            factor.or(old).filter(|_| !none).unwrap_or(1.0)
        }
        Some(other) => {
            let other = crate::units::shown(other);
            return Err(file.error(format_args!(
                "metadata '{}' is '{other}', which is not supported; none and linear (and rope_freqs.weight) are",
                key("rope.scaling.type")
            )));
        }
    };
    let factors = match factors {
        Some(factors) => factors.iter().map(|f| f * linear).collect(),
        None if linear != 1.0 => vec![linear; dims / 2],
        None => Vec::new(),
    };
    let spec = ModelSpec {
        architecture: A.into(),
        layers,
        hidden,
        ffn,
        heads,
        kv_heads,
        head_dim,
        vocab,
        context,
        norm: Norm::Rms { epsilon },
        rope: Rope { theta, dims, factors },
        activation: Activation::SwiGlu,
        tied_embeddings: !file.tensors.contains_key("output.weight"),
    };
    check(&spec).map_err(|text| file.error(text))?;
    Ok(spec)
}

/// The rules between the numbers of a blueprint.
pub(in crate::model) fn check(spec: &ModelSpec) -> Result<(), String> {
    let ModelSpec { heads, kv_heads, head_dim, .. } = *spec;
    if !heads.is_multiple_of(kv_heads) {
        return Err(format!("{heads} attention heads cannot share {kv_heads} key/value heads: not a multiple"));
    }
    if !head_dim.is_multiple_of(2) {
        return Err(format!("the head size {head_dim} is odd; rotary positions need pairs"));
    }
    let Rope { dims, factors, .. } = &spec.rope;
    if !dims.is_multiple_of(2) || *dims > head_dim {
        return Err(format!("{dims} rotary dimensions do not fit a head of {head_dim}: an even number up to that is possible"));
    }
    if !factors.is_empty() && factors.len() != dims / 2 {
        return Err(format!(
            "{} rotary frequency factors for {dims} rotary dimensions; there must be half as many",
            factors.len()
        ));
    }
    if factors.iter().any(|f| !f.is_finite() || *f <= 0.0) {
        return Err("a rotary frequency factor is not a number above 0".into());
    }
    Ok(())
}

//! Gemma 1 to 3 (text). Embeddings are scaled by the root of the hidden size in f32 (transformers rounds that factor to the weights'
//! dtype); checkpoints hold norms less 1; the 27B models scale queries by hidden / heads instead of the head's width.

use super::dense::{self, Defaults, Dense};
use super::rope::{self, Wanted};
use super::{Architecture, Pairs, Renamed, layers};
use crate::model::metadata::{Container, Key, Metadata, key};
use crate::model::{Activation, Ffn, LayerSpec, ModelError, ModelSpec, Norms, QkNorm, Role};

const SCALAR: Key = key(&"", &"query_pre_attn_scalar");
const SCORE_CAP: Key = key(&"attn_logit_softcapping", &"attn_logit_softcapping");
const LOGIT_CAP: Key = key(&"final_logit_softcapping", &"final_logit_softcapping");

pub(super) static GEMMA: Architecture = Architecture {
    name: "gemma",
    model_types: &["gemma"],
    classes: &["GemmaForCausalLM"],
    gguf_pairs: Pairs::HalfSplit,
    hf_pairs: Pairs::HalfSplit,
    norms_less_one: true,
    experts_turned: false,
    renamed: &[],
    build: |m| base(m, Norms::Before, Defaults::default()),
};

/// Here the llama name of the feed-forward norm belongs to the norm of attention's output.
const SANDWICH: &[Renamed] =
    &[Renamed::hf(Role::FfnNorm, "model.layers.{}.pre_feedforward_layernorm.weight")];

pub(super) static GEMMA2: Architecture = Architecture {
    name: "gemma2",
    model_types: &["gemma2"],
    classes: &["Gemma2ForCausalLM"],
    renamed: SANDWICH,
    build: |m| {
        let mut spec = base(m, Norms::Both, Defaults::default())?;
        query_scale(m, &mut spec, 46)?;
        let local = layers::local(m, spec.layers.len(), 2)?;
        layers::set_windows(m, &mut spec, &local)?;
        caps(m, &mut spec)?;
        Ok(spec)
    },
    ..GEMMA
};

pub(super) static GEMMA3: Architecture = Architecture {
    name: "gemma3",
    model_types: &["gemma3_text", "gemma3"],
    classes: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
    renamed: SANDWICH,
    build: |m| {
        let mut spec = base(m, Norms::Both, GEMMA3_DEFAULTS)?;
        query_scale(m, &mut spec, 62)?;
        let local = layers::local(m, spec.layers.len(), 6)?;
        layers::set_windows(m, &mut spec, &local)?;
        caps(m, &mut spec)?;
        let head_dim = spec.layers.iter().find_map(LayerSpec::attention).map_or(0, |a| a.head_dim);
        // Global layers have the larger base and the scaling, local ones a plain rope of their own.
        let global = Wanted { theta: 1e6, ..Wanted::new(head_dim, spec.context) };
        let own = Wanted {
            theta: 1e4,
            gguf_theta: "rope.freq_base_swa",
            hf_theta: "rope_local_base_freq",
            layer_type: "sliding_attention",
            scaled: false,
            ..global
        };
        spec.ropes = vec![rope::read(m, global)?, rope::read(m, own)?];
        for (attention, local) in spec.attentions_mut().zip(local) {
            attention.rope = Some(usize::from(local));
            attention.qk_norm = Some(QkNorm::PerHead);
        }
        Ok(spec)
    },
    ..GEMMA
};

/// What the configs of gemma 3 leave out (transformers' Gemma3TextConfig, and Gemma3Config for the vocabulary).
const GEMMA3_DEFAULTS: Defaults = Defaults {
    context: Some(131_072),
    heads: Some(8),
    kv_heads: Some(4),
    head_dim: Some(256),
    vocab: Some(262_208),
};

fn base(m: &dyn Metadata, norms: Norms, defaults: Defaults) -> Result<ModelSpec, ModelError> {
    let dense = Dense {
        norms,
        activation: Activation::GeluTanh,
        epsilon: Some(1e-6),
        defaults,
        ..Dense::default()
    };
    let mut spec = dense::build(m, dense)?;
    spec.embedding_scale = (spec.hidden as f32).sqrt();
    for layer in &mut spec.layers {
        // Early configs say gelu and mean its approximation (transformers' GemmaConfig).
        if let Ffn::Gated { activation: activation @ Activation::Gelu, .. } = &mut layer.ffn {
            *activation = Activation::GeluTanh;
        }
    }
    Ok(spec)
}

/// The scale of queries; in GGUF files the size of `large` layers is told by their number (llama.cpp).
fn query_scale(m: &dyn Metadata, spec: &mut ModelSpec, large: usize) -> Result<(), ModelError> {
    let scalar = m.positive(SCALAR)?;
    let (hidden, count) = (spec.hidden as f64, spec.layers.len());
    for attention in spec.attentions_mut() {
        let scalar = match (scalar, m.container()) {
            (Some(scalar), _) => scalar,
            (None, Container::Gguf) if count == large => hidden / attention.heads as f64,
            (None, Container::Gguf) => attention.head_dim as f64,
            (None, Container::Checkpoint) => 256.0,
        };
        attention.scale = (1.0 / scalar.sqrt()) as f32;
    }
    Ok(())
}

/// Soft caps of scores and logits. Files of gemma 2 that do not say have 50 and 30 (both readers' defaults).
fn caps(m: &dyn Metadata, spec: &mut ModelSpec) -> Result<(), ModelError> {
    let (scores, logits) = (m.positive(SCORE_CAP)?, m.positive(LOGIT_CAP)?);
    let old = m.container() == Container::Gguf && !m.has_tensor("blk.0.attn_q_norm.weight", "");
    let or = |found: Option<f64>, default: f64| found.or(old.then_some(default)).map(|x| x as f32);
    spec.logit_softcap = or(logits, 30.0);
    let cap = or(scores, 50.0);
    spec.attentions_mut().for_each(|a| a.softcap = cap);
    Ok(())
}

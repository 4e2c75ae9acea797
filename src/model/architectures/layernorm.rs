//! Families with LayerNorm: StarCoder 2, StableLM 2, Nemotron (norms less 1, relu squared), Command R (both branches take one norm).

use super::dense::{self, Dense};
use super::{Architecture, Pairs, Renamed, layers};
use crate::model::metadata::{Key, key};
use crate::model::{Activation, NormKind, Norms, Role};

const LOGIT: Key = key(&"logit_scale", &"logit_scale");

pub(super) static STARCODER2: Architecture = Architecture {
    name: "starcoder2",
    model_types: &["starcoder2"],
    classes: &["Starcoder2ForCausalLM"],
    gguf_pairs: Pairs::HalfSplit,
    hf_pairs: Pairs::HalfSplit,
    norms_less_one: false,
    experts_turned: false,
    renamed: &[
        Renamed::hf(Role::Up, "model.layers.{}.mlp.c_fc.weight"),
        Renamed::hf(Role::UpBias, "model.layers.{}.mlp.c_fc.bias"),
        Renamed::hf(Role::Down, "model.layers.{}.mlp.c_proj.weight"),
        Renamed::hf(Role::DownBias, "model.layers.{}.mlp.c_proj.bias"),
    ],
    build: |m| {
        let dense = Dense {
            norm: NormKind::Layer,
            gated: false,
            activation: Activation::GeluTanh,
            ..Dense::default()
        };
        let mut spec = dense::build(m, dense)?;
        dense::biases(
            m,
            &mut spec,
            "model.layers.0.mlp.c_fc.bias",
            "model.layers.0.mlp.c_proj.bias",
        );
        spec.norm.bias = true;
        layers::window_everywhere(m, &mut spec)?;
        Ok(spec)
    },
};

pub(super) static STABLELM: Architecture = Architecture {
    name: "stablelm",
    model_types: &["stablelm"],
    classes: &["StableLmForCausalLM"],
    renamed: &[],
    build: |m| {
        // Models whose branches run side by side have no norm of the second (llama.cpp goes by that too; its files' flag is not reliable).
        let ffn_norm =
            m.has_tensor("blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight");
        m.find(key(&"use_parallel_residual", &"use_parallel_residual"));
        let norms = if ffn_norm { Norms::Before } else { Norms::Parallel };
        let mut spec = dense::build(
            m,
            Dense { norm: NormKind::Layer, norms, partial: 0.25, ..Dense::default() },
        )?;
        spec.norm.bias = true;
        Ok(spec)
    },
    ..STARCODER2
};

pub(super) static NEMOTRON: Architecture = Architecture {
    name: "nemotron",
    model_types: &["nemotron"],
    classes: &["NemotronForCausalLM"],
    norms_less_one: true,
    experts_turned: false,
    renamed: &[],
    build: |m| {
        let dense = Dense {
            norm: NormKind::Layer,
            gated: false,
            activation: Activation::Relu2,
            partial: 0.5,
            ..Dense::default()
        };
        let mut spec = dense::build(m, dense)?;
        spec.norm.bias = true;
        Ok(spec)
    },
    ..STARCODER2
};

pub(super) static COHERE: Architecture = Architecture {
    name: "command-r",
    model_types: &["cohere"],
    classes: &["CohereForCausalLM"],
    gguf_pairs: Pairs::Interleaved,
    hf_pairs: Pairs::Interleaved,
    renamed: &[],
    build: |m| {
        let dense =
            Dense { norm: NormKind::Layer, norms: Norms::Parallel, theta: 5e5, ..Dense::default() };
        let mut spec = dense::build(m, dense)?;
        spec.logit_scale = m.positive(LOGIT)?.unwrap_or(0.0625) as f32;
        Ok(spec)
    },
    ..STARCODER2
};

pub(super) static COHERE2: Architecture = Architecture {
    name: "cohere2",
    model_types: &["cohere2"],
    classes: &["Cohere2ForCausalLM"],
    build: |m| {
        let mut spec = (COHERE.build)(m)?;
        // Only the layers with a window know positions.
        let local = layers::local(m, spec.layers.len(), 4)?;
        layers::set_windows(m, &mut spec, &local)?;
        for (attention, local) in spec.attentions_mut().zip(local) {
            attention.rope = local.then_some(0);
        }
        Ok(spec)
    },
    ..COHERE
};

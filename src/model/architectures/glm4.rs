//! GLM-4 (the 0414 models): norms before and behind, fused gate and up, half of each head rotates.

use super::dense::{self, Dense};
use super::{Architecture, Pairs, Renamed};
use crate::model::{Norms, Role};

pub(super) static GLM4: Architecture = Architecture {
    name: "glm4",
    model_types: &["glm4"],
    classes: &["Glm4ForCausalLM"],
    gguf_pairs: Pairs::Interleaved,
    hf_pairs: Pairs::Interleaved,
    norms_less_one: false,
    experts_turned: false,
    renamed: &[
        Renamed::hf(Role::AttentionPostNorm, "model.layers.{}.post_self_attn_layernorm.weight"),
        Renamed::hf(Role::FfnPostNorm, "model.layers.{}.post_mlp_layernorm.weight"),
    ],
    build: |m| dense::build(m, Dense { norms: Norms::Both, partial: 0.5, ..Dense::default() }),
};

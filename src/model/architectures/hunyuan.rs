//! Hunyuan dense: norms of each head's queries and keys behind the rotation.

use super::dense::{self, Dense};
use super::{Architecture, Pairs, Renamed};
use crate::model::{QkNorm, Role};

pub(super) static HUNYUAN: Architecture = Architecture {
    name: "hunyuan-dense",
    model_types: &["hunyuan_v1_dense"],
    classes: &["HunYuanDenseV1ForCausalLM"],
    gguf_pairs: Pairs::HalfSplit,
    hf_pairs: Pairs::HalfSplit,
    norms_less_one: false,
    experts_turned: false,
    renamed: &[
        Renamed::hf(Role::QueryNorm, "model.layers.{}.self_attn.query_layernorm.weight"),
        Renamed::hf(Role::KeyNorm, "model.layers.{}.self_attn.key_layernorm.weight"),
    ],
    build: |m| {
        let mut spec = dense::build(m, Dense::default())?;
        spec.attentions_mut().for_each(|a| a.qk_norm = Some(QkNorm::PerHeadRotated));
        Ok(spec)
    },
};

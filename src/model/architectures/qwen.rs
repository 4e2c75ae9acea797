//! Qwen 2 and 2.5 (biases of queries, keys and values, which the tensors show) and Qwen 3 (norms of each head's queries and keys).

use super::dense::{self, Dense};
use super::{Architecture, Pairs, layers};
use crate::model::QkNorm;

pub(super) static QWEN2: Architecture = Architecture {
    name: "qwen2",
    model_types: &["qwen2"],
    classes: &["Qwen2ForCausalLM"],
    gguf_pairs: Pairs::HalfSplit,
    hf_pairs: Pairs::HalfSplit,
    norms_less_one: false,
    experts_turned: false,
    renamed: &[],
    build: |m| {
        let mut spec = dense::build(m, Dense::default())?;
        spec.attentions_mut().for_each(|a| a.qkv_bias = true);
        layers::qwen_windows(m, &mut spec)?;
        Ok(spec)
    },
};

pub(super) static QWEN3: Architecture = Architecture {
    name: "qwen3",
    model_types: &["qwen3"],
    classes: &["Qwen3ForCausalLM"],
    build: |m| {
        let mut spec = dense::build(m, Dense::default())?;
        spec.attentions_mut().for_each(|a| a.qk_norm = Some(QkNorm::PerHead));
        layers::qwen_windows(m, &mut spec)?;
        Ok(spec)
    },
    ..QWEN2
};

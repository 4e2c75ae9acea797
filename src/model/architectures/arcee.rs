//! Arcee AFM: llama with a feed-forward part without a gate, relu squared.

use super::dense::{self, Dense};
use super::{Architecture, Pairs};
use crate::model::Activation;

pub(super) static ARCEE: Architecture = Architecture {
    name: "arcee",
    model_types: &["arcee"],
    classes: &["ArceeForCausalLM"],
    gguf_pairs: Pairs::Interleaved,
    hf_pairs: Pairs::HalfSplit,
    norms_less_one: false,
    experts_turned: false,
    renamed: &[],
    build: |m| {
        dense::build(m, Dense { gated: false, activation: Activation::Relu2, ..Dense::default() })
    },
};

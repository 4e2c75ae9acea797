//! Llama 1 to 3, SmolLM, SmolLM2, and what else is published under that name.

use super::dense::{self, Dense};
use super::{Architecture, Pairs};

pub(super) static LLAMA: Architecture = Architecture {
    name: "llama",
    model_types: &["llama"],
    classes: &["LlamaForCausalLM"],
    gguf_pairs: Pairs::Interleaved,
    hf_pairs: Pairs::HalfSplit,
    norms_less_one: false,
    renamed: &[],
    build: |m| dense::build(m, Dense::default()),
};

//! Llama 1 to 3, SmolLM, SmolLM2, and what else is published under that name: in GGUF files Mistral and Mixtral as well.

use super::dense::{self, Dense};
use super::{Architecture, Pairs, layers, mixture};
use crate::model::metadata::Container;

pub(super) static LLAMA: Architecture = Architecture {
    name: "llama",
    model_types: &["llama"],
    classes: &["LlamaForCausalLM"],
    gguf_pairs: Pairs::Interleaved,
    hf_pairs: Pairs::HalfSplit,
    norms_less_one: false,
    experts_turned: false,
    renamed: &[],
    build: |m| {
        let mut spec = dense::build(m, Dense::default())?;
        if m.container() == Container::Gguf {
            // Mixtral's and Mistral's files say llama too.
            layers::window_everywhere(m, &mut spec)?;
            if mixture::has_experts(m)? {
                mixture::set(m, &mut spec, mixture::LLAMA)?;
            }
        }
        Ok(spec)
    },
};

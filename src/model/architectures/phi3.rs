//! Phi 3, 3.5, 4 and 4-mini: fused matrices (`model/kinds.rs`), a share of each head rotates, longrope.

use super::dense::{self, Dense};
use super::{Architecture, Pairs, layers};

pub(super) static PHI3: Architecture = Architecture {
    name: "phi3",
    model_types: &["phi3"],
    classes: &["Phi3ForCausalLM"],
    gguf_pairs: Pairs::HalfSplit,
    hf_pairs: Pairs::HalfSplit,
    norms_less_one: false,
    experts_turned: false,
    renamed: &[],
    build: |m| {
        let mut spec = dense::build(m, Dense::default())?;
        // transformers computes the window of Phi-3-mini-4k; llama.cpp leaves it out.
        layers::window_everywhere(m, &mut spec)?;
        Ok(spec)
    },
};

//! Helium: llama with interleaved pairs in its checkpoints (llama.cpp does not know it).

use super::dense::{self, Dense};
use super::{Architecture, Pairs};

pub(super) static HELIUM: Architecture = Architecture {
    name: "helium",
    model_types: &["helium"],
    classes: &["HeliumForCausalLM"],
    gguf_pairs: Pairs::Interleaved,
    hf_pairs: Pairs::Interleaved,
    norms_less_one: false,
    experts_turned: false,
    renamed: &[],
    build: |m| dense::build(m, Dense { theta: 1e5, ..Dense::default() }),
};

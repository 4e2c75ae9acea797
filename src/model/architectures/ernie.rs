//! ERNIE 4.5 (dense).

use super::dense::{self, Dense};
use super::{Architecture, Pairs};

pub(super) static ERNIE: Architecture = Architecture {
    name: "ernie4_5",
    model_types: &["ernie4_5"],
    classes: &["Ernie4_5ForCausalLM"],
    gguf_pairs: Pairs::Interleaved,
    hf_pairs: Pairs::Interleaved,
    norms_less_one: false,
    experts_turned: false,
    renamed: &[],
    build: |m| dense::build(m, Dense { theta: 5e5, ..Dense::default() }),
};

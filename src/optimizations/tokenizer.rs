//! `tokenizer`: Build the tokenizer once and encode batches in parallel instead of building it for every request.

use super::{Difficulty, Expected, Optimization, Phase, Promise};
use crate::pipeline::TokenizerPolicy;

/// See the module's head.
pub static TOKENIZER: Optimization = Optimization {
    name: "tokenizer",
    audit: "Fast tokenizers",
    summary: "Build the tokenizer once and encode batches in parallel instead of building it for every request.",
    phase: Phase::Two,
    difficulty: Difficulty::Easy,
    expected: Expected::Range(1.1, 1.2),
    answers: Promise::Identical,
    needs: &[],
    apply: |config| config.tokenizer = TokenizerPolicy::Shared,
};

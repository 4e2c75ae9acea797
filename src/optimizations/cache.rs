//! `cache`: Answer a repeated request from memory; generate identical requests in flight once.

use super::{Difficulty, Expected, Optimization, Phase, Promise};
use crate::pipeline::AnswerPolicy;

/// See the module's head.
pub static CACHE: Optimization = Optimization {
    name: "cache",
    audit: "Response caching",
    summary: "Answer a repeated request from memory; generate identical requests in flight once.",
    phase: Phase::One,
    difficulty: Difficulty::Easy,
    expected: Expected::Infinite,
    answers: Promise::Identical,
    needs: &[],
    apply: |config| config.answers = AnswerPolicy::Reuse { capacity: 4096 },
};

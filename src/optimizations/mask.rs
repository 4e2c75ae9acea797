//! `mask`: Do no work on padding: ragged batches, finished rows dropped.

use super::{Difficulty, Expected, Optimization, Phase, Promise};
use crate::engine::PaddingPolicy;

/// See the module's head.
pub static MASK: Optimization = Optimization {
    name: "mask",
    audit: "Attention masks",
    summary: "Do no work on padding: ragged batches, finished rows dropped.",
    phase: Phase::Two,
    difficulty: Difficulty::Medium,
    expected: Expected::Range(1.1, 1.15),
    answers: Promise::Identical,
    needs: &[],
    apply: |config| config.padding = PaddingPolicy::Ragged,
};

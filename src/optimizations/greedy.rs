//! `greedy`: Take the most probable token when the temperature is below 0.3.

use super::{Difficulty, Expected, Optimization, Phase, Promise};
use crate::engine::SamplingPolicy;

/// See the module's head.
pub static GREEDY: Optimization = Optimization {
    name: "greedy",
    audit: "Greedy decoding",
    summary: "Take the most probable token when the temperature is below 0.3.",
    phase: Phase::One,
    difficulty: Difficulty::Easy,
    expected: Expected::Range(1.3, 1.5),
    answers: Promise::Differ,
    needs: &[],
    apply: |config| config.sampling = SamplingPolicy::GreedyBelow(0.3),
};

//! `queue`: Fill a finished row's place in the next step instead of running each batch to its end.

use super::{Difficulty, Expected, Optimization, Phase, Promise};
use crate::engine::BatchingPolicy;

/// See the module's head.
pub static QUEUE: Optimization = Optimization {
    name: "queue",
    audit: "Queue system",
    summary: "Fill a finished row's place in the next step instead of running each batch to its end.",
    phase: Phase::Three,
    difficulty: Difficulty::Unstated,
    expected: Expected::Unstated,
    answers: Promise::Identical,
    needs: &[],
    apply: |config| config.batching = BatchingPolicy::Continuous,
};

//! `early-stop`: Stop at the end of the answer instead of at the token limit.

use super::{Difficulty, Expected, Optimization, Phase, Promise};
use crate::engine::StoppingPolicy;

/// See the module's head.
pub static EARLY_STOP: Optimization = Optimization {
    name: "early-stop",
    audit: "Early stopping",
    summary: "Stop at the end of the answer instead of at the token limit.",
    phase: Phase::One,
    difficulty: Difficulty::Medium,
    expected: Expected::Range(1.2, 1.3),
    answers: Promise::Prefix,
    needs: &[],
    apply: |config| config.stopping = StoppingPolicy::Early,
};

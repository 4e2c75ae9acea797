//! `static-memory`: Allocate workspace, keys and values once instead of anew for each step.

use super::{Difficulty, Expected, Optimization, Phase, Promise};
use crate::pipeline::MemoryPolicy;

/// See the module's head.
pub static STATIC_MEMORY: Optimization = Optimization {
    name: "static-memory",
    audit: "Static allocation",
    summary: "Allocate workspace, keys and values once instead of anew for each step.",
    phase: Phase::Three,
    difficulty: Difficulty::Unstated,
    expected: Expected::Unstated,
    answers: Promise::Identical,
    needs: &[],
    apply: |config| config.memory = MemoryPolicy::Preallocated,
};

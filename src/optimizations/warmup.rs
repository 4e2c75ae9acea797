//! `warmup`: Touch weights and buffers, start threads and generate once before the first request.

use super::{Difficulty, Expected, Optimization, Phase, Promise};
use crate::pipeline::WarmupPolicy;

/// See the module's head.
pub static WARMUP: Optimization = Optimization {
    name: "warmup",
    audit: "Warmup on startup",
    summary: "Touch weights and buffers, start threads and generate once before the first request.",
    phase: Phase::Two,
    difficulty: Difficulty::Unstated,
    expected: Expected::FirstRequest,
    answers: Promise::Identical,
    needs: &[],
    apply: |config| config.warmup = WarmupPolicy::Warm,
};

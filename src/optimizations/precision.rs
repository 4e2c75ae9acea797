//! `precision`: Compute with the dtype that suits this CPU instead of emulated bf16.

use super::{Difficulty, Expected, Optimization, Phase, Promise};

/// See the module's head.
pub static PRECISION: Optimization = Optimization {
    name: "precision",
    audit: "Float32 on CPU",
    summary: "Compute with the dtype that suits this CPU instead of emulated bf16.",
    phase: Phase::One,
    difficulty: Difficulty::Easy,
    expected: Expected::Range(1.3, 1.5),
    answers: Promise::Differ,
    needs: &[],
    apply: |config| config.dtype = config.requested_dtype,
};

//! `quantized`: Compute 4- and 8-bit weights as stored, with int8 activations, instead of widening them to f32.

use super::{Difficulty, Expected, Optimization, Phase, Promise};
use crate::pipeline::QuantizedPolicy;

/// See the module's head.
pub static QUANTIZED: Optimization = Optimization {
    name: "quantized",
    audit: "Quantized weights",
    summary: "Compute 4- and 8-bit weights as stored, with int8 activations, instead of widening them to f32.",
    phase: Phase::Beyond,
    difficulty: Difficulty::Unstated,
    expected: Expected::Unstated,
    answers: Promise::Differ,
    needs: &["precision"],
    apply: |config| config.quantized = QuantizedPolicy::AsStored,
};

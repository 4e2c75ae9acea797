//! `shared-prefix`: Prefill common beginnings of prompts once.

use super::{Difficulty, Expected, Optimization, Phase, Promise};
use crate::engine::PrefixPolicy;

/// See the module's head.
pub static SHARED_PREFIX: Optimization = Optimization {
    name: "shared-prefix",
    audit: "Shared prefixes",
    summary: "Prefill common beginnings of prompts once.",
    phase: Phase::Beyond,
    difficulty: Difficulty::Unstated,
    expected: Expected::Unstated,
    answers: Promise::Identical,
    needs: &[],
    apply: |config| config.prefix = PrefixPolicy::Share,
};

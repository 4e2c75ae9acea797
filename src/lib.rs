//! llmopt: answers files of prompts with a language model on CPUs, and measures what each optimization is worth there.
//!
//! The list below is the layer order: a module uses only modules listed above it (held by `tests/architecture.rs`).
//! docs/architecture.md is the map.

pub mod units;

pub mod system;

pub mod machine;

pub mod kernels;

pub mod model;

pub mod roofline;

pub mod text;

pub mod decoder;

pub mod engine;

pub mod pipeline;

pub mod optimizations;

pub mod bench;

pub mod report;

pub mod cli;

// Files that unit and integration tests share say `llmopt::`.
#[cfg(test)]
extern crate self as llmopt;

/// Tiny random models for unit tests; integration tests include the same file as `mod common`.
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
pub(crate) mod tiny;

/// The forward pass as plainly as it can be written.
#[cfg(test)]
#[path = "../tests/common/textbook.rs"]
pub(crate) mod textbook;

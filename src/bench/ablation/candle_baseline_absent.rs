//! In place of `candle_baseline.rs` in a build without the feature `candle`: the bench leaves candle out and says so.

use super::trial::BenchError;
use crate::pipeline::{Control, LoadedModel, Prompt};
use std::sync::Arc;

/// There is none.
pub enum Candle {}

impl Candle {
    /// Refuses.
    pub fn new(_loaded: &Arc<LoadedModel>, _batch: usize) -> Result<Candle, BenchError> {
        Err(BenchError::Failed("this llmopt was built without the feature 'candle'".into()))
    }

    /// Never called.
    pub fn run(
        &mut self,
        _prompts: &[Prompt],
        _control: &Control,
    ) -> Result<(f64, u64), BenchError> {
        match *self {}
    }
}

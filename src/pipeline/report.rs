//! What a run tells when it is over: counts, time per stage, latency histograms. Plain data in fixed memory, however many prompts.

use super::SourceFailure;
use crate::engine::{Observer, Stage};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Seconds per stage, and rows of forward passes. Stages on different threads overlap: their sum may exceed the wall time.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct StageTimes {
    /// Seconds.
    pub seconds: BTreeMap<Stage, f64>,
    /// Prompt rows computed.
    pub prefill_rows: u64,
    /// Generated-token rows computed.
    pub decode_rows: u64,
    /// Forward passes.
    pub forward_passes: u64,
}

impl StageTimes {
    /// Adds time to a stage.
    pub fn add(&mut self, stage: Stage, seconds: f64) {
        *self.seconds.entry(stage).or_insert(0.0) += seconds;
    }

    /// Seconds spent in a stage.
    pub fn of(&self, stage: Stage) -> f64 {
        self.seconds.get(&stage).copied().unwrap_or(0.0)
    }
}

/// Times the engine's stages; shared with the tokenizer's thread, an [`Observer`] of every run.
#[derive(Debug, Default)]
pub struct Clock {
    /// What was measured so far.
    pub times: StageTimes,
    running: Option<(Stage, Instant)>,
}

impl Observer for Arc<Mutex<Clock>> {
    fn begin(&mut self, stage: Stage) {
        self.lock().unwrap_or_else(PoisonError::into_inner).running = Some((stage, Instant::now()));
    }

    fn end(&mut self, stage: Stage, prefill_rows: usize, decode_rows: usize) {
        self.lock().unwrap_or_else(PoisonError::into_inner).ended(stage, prefill_rows, decode_rows);
    }
}

impl Clock {
    fn ended(&mut self, stage: Stage, prefill_rows: usize, decode_rows: usize) {
        let Some((_, since)) = self.running.take() else { return };
        let seconds = since.elapsed().as_secs_f64();
        let rows = prefill_rows + decode_rows;
        if rows == 0 {
            self.times.add(stage, seconds);
            return;
        }
        self.times.add(Stage::Prefill, seconds * prefill_rows as f64 / rows as f64);
        self.times.add(Stage::Decode, seconds * decode_rows as f64 / rows as f64);
        self.times.prefill_rows += prefill_rows as u64;
        self.times.decode_rows += decode_rows as u64;
        self.times.forward_passes += 1;
    }
}

/// Histograms in microseconds, three significant digits, fixed size; error records are not in them.
#[derive(Debug, Clone)]
pub struct Latencies {
    /// Acceptance to first forward pass.
    pub queue: hdrhistogram::Histogram<u64>,
    /// Acceptance to first token.
    pub ttft: hdrhistogram::Histogram<u64>,
    /// Time per token after the first, one value per answer with two or more tokens, generated answers only.
    pub per_token: hdrhistogram::Histogram<u64>,
    /// Acceptance to the end.
    pub end_to_end: hdrhistogram::Histogram<u64>,
}

impl Default for Latencies {
    fn default() -> Self {
        // 1 µs to one day; larger values saturate. The bounds are constants that satisfy the constructor's conditions.
        let new = || {
            hdrhistogram::Histogram::new_with_bounds(1, 86_400_000_000, 3)
                .expect("valid constant bounds")
        };
        Latencies { queue: new(), ttft: new(), per_token: new(), end_to_end: new() }
    }
}

impl Latencies {
    /// Adds one answer's times.
    pub fn record(&mut self, answer: &super::Answer) {
        let us = |ms: f64| (ms * 1e3).max(1.0) as u64;
        self.queue.saturating_record(us(answer.queue_ms));
        self.ttft.saturating_record(us(answer.ttft_ms));
        self.end_to_end.saturating_record(us(answer.latency_ms));
        if !answer.cached && answer.completion_tokens > 1 {
            let per_token =
                (answer.latency_ms - answer.ttft_ms) / (answer.completion_tokens - 1) as f64;
            self.per_token.saturating_record(us(per_token));
        }
    }
}

/// Why a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The source is empty and everything is answered.
    Complete,
    /// [`super::Control::stop`] was called, or the sink asked for it.
    Stopped,
    /// The deadline passed.
    Deadline,
    /// The source failed with this line; what was accepted before is answered.
    SourceFailed(SourceFailure),
}

/// A run's figures.
#[derive(Debug, Clone)]
pub struct RunReport {
    /// Why it ended.
    pub ended: Ended,
    /// Answers given, errors included.
    pub answers: u64,
    /// Of these, error records.
    pub errors: u64,
    /// Of these, not generated for their record.
    pub cached: u64,
    /// Prompt tokens of all answers.
    pub prompt_tokens: u64,
    /// Answer tokens of all answers, cached ones included.
    pub completion_tokens: u64,
    /// Answer tokens that were generated (cached ones not).
    pub generated_tokens: u64,
    /// Wall time from the call to the last answer, warm-up not included, seconds.
    pub wall_s: f64,
    /// Seconds that records waited in the queue, summed.
    pub queue_s: f64,
    /// Where the time went.
    pub stages: StageTimes,
    /// Distributions.
    pub latencies: Latencies,
}

impl RunReport {
    /// Nothing yet.
    pub fn new() -> Self {
        RunReport {
            ended: Ended::Complete,
            answers: 0,
            errors: 0,
            cached: 0,
            prompt_tokens: 0,
            completion_tokens: 0,
            generated_tokens: 0,
            wall_s: 0.0,
            queue_s: 0.0,
            stages: StageTimes::default(),
            latencies: Latencies::default(),
        }
    }

    /// Counts one answer.
    pub fn count(&mut self, answer: &super::Answer) {
        self.answers += 1;
        self.prompt_tokens += answer.prompt_tokens as u64;
        self.completion_tokens += answer.completion_tokens as u64;
        self.queue_s += answer.queue_ms / 1e3;
        if answer.error.is_some() {
            self.errors += 1;
            return;
        }
        if answer.cached {
            self.cached += 1;
        } else {
            self.generated_tokens += answer.completion_tokens as u64;
        }
        self.latencies.record(answer);
    }
}

impl Default for RunReport {
    fn default() -> Self {
        RunReport::new()
    }
}

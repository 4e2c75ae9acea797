//! Prompts to answers: the configuration (policies as data), the response cache, and the wiring of tokenizer, engine and writer.
//! In: prompt records and a [`PipelineConfig`]. Out: answers. It knows nothing of optimizations, benchmarks or command lines.

mod cache;
mod control;
mod dtype;
mod error;
mod loaded_model;
mod prompt;
mod report;
mod request_queue;
mod run;
mod settings;

pub use crate::text::prompts::RecordError;
pub use crate::text::{Content, Message};
pub use control::{Control, Stopping};
pub use dtype::ResolvedDtype;
pub use error::PipelineError;
pub use loaded_model::{Identity, LoadedModel, Options, Pipeline};
pub use prompt::{
    Alternative, Answer, Form, Generation, Input, Prompt, SourceFailure, TokenLogprob, clipped,
};
pub use report::{Ended, Latencies, RunReport, StageTimes};
pub use run::{GRACE, Order};
pub use settings::Settings;

use crate::engine::{BatchingPolicy, PaddingPolicy, PrefixPolicy, SamplingPolicy, StoppingPolicy};
use crate::kernels::{Format, KvElement};

/// Which numbers the model computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum DtypePolicy {
    /// The audit's start: weights widened on every call, every operation's output rounded to bf16.
    Bf16Emulated,
    /// As stored for a quantized file (if [`QuantizedPolicy::AsStored`]); else the fastest storage with bit-identical answers.
    Auto,
    /// As stored in the file, whatever it is.
    Native,
    /// This one; a file of another type is converted at load.
    Fixed(Format),
}

/// Whether answers are reused (the audit's `cache`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum AnswerPolicy {
    /// Every prompt is generated.
    Generate,
    /// An LRU of this many answers; identical requests in flight are generated once.
    Reuse {
        /// Answers kept.
        capacity: usize,
    },
}

/// How text becomes ids (the audit's `tokenizer`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum TokenizerPolicy {
    /// Built anew for every request, one request at a time.
    RebuiltPerRequest,
    /// Built once, warmed, batches encoded in parallel.
    Shared,
}

/// Whether the first request pays for cold weights and buffers (the audit's `warmup`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum WarmupPolicy {
    /// It does.
    Cold,
    /// Pages touched, threads up, one short generation first.
    Warm,
}

/// When working memory is allocated (the audit's `static-memory`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum MemoryPolicy {
    /// Workspace anew each step; each sequence's keys and values copied into a larger allocation each step.
    PerStep,
    /// Once.
    Preallocated,
}

/// What becomes of a quantized file's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum QuantizedPolicy {
    /// Widened to f32 at load.
    Widened,
    /// Computed as stored: blocks, int8 activations.
    AsStored,
}

/// Numbers with flags; not optimizations.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Sizes {
    /// Worker threads.
    pub threads: usize,
    /// Most sequences decoded together.
    pub batch: usize,
    /// Most rows of one forward pass.
    pub chunk: usize,
    /// Most bytes for keys and values; `None`: min(¼ of usable memory, batch × 2048 positions).
    pub kv_bytes: Option<u64>,
    /// How keys and values are held; `None`: f16 with quantized layers, otherwise f32.
    pub kv_dtype: Option<KvElement>,
}

/// Everything an optimization can change, each field with the one that does, and the sizes. Two configurations run in one process: nothing here is global.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct PipelineConfig {
    /// Of weights: `precision`.
    pub dtype: DtypePolicy,
    /// `greedy`.
    pub sampling: SamplingPolicy,
    /// `cache`.
    pub answers: AnswerPolicy,
    /// `early-stop`.
    pub stopping: StoppingPolicy,
    /// `tokenizer`.
    pub tokenizer: TokenizerPolicy,
    /// `mask`.
    pub padding: PaddingPolicy,
    /// `warmup`.
    pub warmup: WarmupPolicy,
    /// `queue`.
    pub batching: BatchingPolicy,
    /// `static-memory`.
    pub memory: MemoryPolicy,
    /// `quantized`.
    pub quantized: QuantizedPolicy,
    /// `shared-prefix`.
    pub prefix: PrefixPolicy,
    /// The dtype asked for (`--dtype`); `precision` puts it into `dtype`.
    pub requested_dtype: DtypePolicy,
    /// No optimization changes these.
    pub sizes: Sizes,
}

impl PipelineConfig {
    /// The audit's starting point: every optimization off.
    pub fn audit_baseline(requested_dtype: DtypePolicy, sizes: Sizes) -> Self {
        PipelineConfig {
            dtype: DtypePolicy::Bf16Emulated,
            sampling: SamplingPolicy::AlwaysSample,
            answers: AnswerPolicy::Generate,
            stopping: StoppingPolicy::MaxTokensOnly,
            tokenizer: TokenizerPolicy::RebuiltPerRequest,
            padding: PaddingPolicy::PadToLongest,
            warmup: WarmupPolicy::Cold,
            batching: BatchingPolicy::Blocking,
            memory: MemoryPolicy::PerStep,
            quantized: QuantizedPolicy::Widened,
            prefix: PrefixPolicy::Recompute,
            requested_dtype,
            sizes,
        }
    }
}

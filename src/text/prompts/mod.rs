//! Prompt files, untrusted: JSONL, CSV, TXT, OpenAI Batch lines, or standard input. In: paths. Out: records one at a time, in memory
//! that does not grow with the file, each good record or each bad one with its line and what is wrong with it. What makes a whole file
//! useless (no such file, no `prompt` column, a quote that is never closed) is found when the files are opened, before any work.
// Untrusted input.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

mod array;
pub mod choices;
mod csv;
mod fault;
mod fields;
mod files;
mod ids;
mod json;
mod labels;
mod lines;
mod openai;
#[cfg(feature = "parquet")]
mod parquet;
mod reading;
mod record;
mod source;

pub use fault::LONGEST_RECORD;
pub use fields::{GenerationFields, StopOn};
pub use files::{PromptFiles, PromptReader, texts_below};
pub use reading::Reading;
pub use record::{
    Endpoint, InputCell, InputError, InputFormat, OpenAiRequest, Origin, OriginalPrompt,
    PromptRequest, Record, RecordError,
};

#[cfg(test)]
mod tests;

//! What a record of a prompt file is, whatever the format: its id, its place, the prompt as given, what it asks for or what is wrong, and
//! the checks that all formats share. No reader is known here.
// Untrusted input.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

use super::fault::{Fault, TOO_LONG};
use super::fields::GenerationFields;
use crate::text::Content;
use crate::units::shown;
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, VecDeque};
use std::str::FromStr;
use std::sync::Arc;

/// Different unknown names that are warned of.
pub(super) const MAX_WARNINGS: usize = 20;

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InputFormat {
    /// An object a line.
    Jsonl,
    /// A header with `prompt`, then a record a row.
    Csv,
    /// A prompt a line.
    Txt,
    /// OpenAI Batch API requests, a line each.
    OpenAi,
    /// An array of objects.
    Json,
    /// CSV with tabs.
    Tsv,
    /// A Parquet file.
    Parquet,
}

impl FromStr for InputFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "jsonl" => Ok(InputFormat::Jsonl),
            "csv" => Ok(InputFormat::Csv),
            "txt" => Ok(InputFormat::Txt),
            "openai" => Ok(InputFormat::OpenAi),
            "json" => Ok(InputFormat::Json),
            "tsv" => Ok(InputFormat::Tsv),
            "parquet" => Ok(InputFormat::Parquet),
            _ => Err("known are jsonl, json, csv, tsv, txt, parquet, openai".to_string()),
        }
    }
}

/// Why no more prompts can be had: one line that names the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// The file is not one of prompts (exit status 2).
    #[error("{0}")]
    Bad(String),
    /// Reading failed (exit status 1).
    #[error("{0}")]
    Io(String),
}

/// The prompt as the file had it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginalPrompt {
    /// Text.
    Text(String),
    /// The JSON of `messages`, byte for byte.
    Messages(String),
    /// An OpenAI request whose envelope could be read.
    OpenAi(Box<OpenAiRequest>),
    /// It was not found or could not be read.
    Nothing,
}

/// What an answer to an OpenAI request repeats of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenAiRequest {
    /// Where it was to be sent.
    pub endpoint: Endpoint,
    /// `body.model`.
    pub model: Option<String>,
    /// Digest of the whole request, 24 hex digits.
    pub digest: String,
}

impl OpenAiRequest {
    /// The digest of a request's text: the first 12 bytes of its SHA-256.
    pub fn digest_of(text: &str) -> String {
        Sha256::digest(text.as_bytes()).iter().take(12).map(|b| format!("{b:02x}")).collect()
    }
}

/// Which kind of completion is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`: `messages`.
    Chat,
    /// `/v1/completions`: `prompt`, continued without a chat template.
    Completions,
}

/// A record of a prompt file, good or bad.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Where it stands and what its answer repeats of it.
    pub origin: Origin,
    /// What to answer, or why it cannot be.
    pub request: Result<PromptRequest, RecordError>,
}

/// Where a record stands, and what the line of its answer repeats of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Origin {
    /// Its id; `<label>:<line>` if it has none, or none of its own. See [`super::PromptFiles::labels`].
    pub id: String,
    /// The file has it as a number.
    pub id_is_number: bool,
    /// As given on the command line.
    pub file: Arc<str>,
    /// The line on which it begins, from 1.
    pub line: u64,
    /// The prompt as the file had it.
    pub prompt: OriginalPrompt,
    /// Values of [`super::PromptFiles::columns`], as far as they are carried.
    pub carried: Vec<InputCell>,
    /// All fields that are carried, as a JSON object, where lines are to have it.
    pub input: Option<String>,
}

/// The value of a field that is carried to the line of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputCell {
    /// The record has no such field.
    Missing,
    /// A text.
    Text(String),
    /// Another value, as JSON writes it.
    Json(String),
}

impl Origin {
    /// Its place for people: the path as typed and the line.
    pub fn place(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }
}

/// What a good record asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptRequest {
    /// The prompt.
    pub content: Content,
    /// Settings of its own.
    pub generation: GenerationFields,
}

/// Why one record has no answer.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RecordError {
    /// A word for programs: `bad_json`, `bad_field`, `missing_prompt`, `empty_prompt`, `duplicate_id`, `not_utf8`, `record_too_long`, `bad_csv`, `unsupported`
    /// where a reader found it; `prompt_too_long`, `not_finite`, … where answering did.
    pub code: String,
    /// One line for people; a reader's has the file and line in it.
    pub message: String,
}

impl RecordError {
    /// One of this code.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        RecordError { code: code.to_string(), message: message.into() }
    }
}

/// What one format's reader makes of one record.
#[derive(Debug)]
pub(super) struct Parsed {
    pub id: Option<String>,
    pub id_is_number: bool,
    pub prompt: OriginalPrompt,
    pub carried: Vec<InputCell>,
    pub input: Option<String>,
    pub request: Result<PromptRequest, Fault>,
    /// It has the form of a record, whatever else is wrong with it: a prompt is there.
    pub usable: bool,
    /// Its path below the folder that was named, where it is a file of its own.
    pub below: Option<String>,
}

impl Parsed {
    pub fn bad(code: &'static str, message: impl Into<String>) -> Parsed {
        let usable = code == TOO_LONG;
        Parsed {
            id: None,
            id_is_number: false,
            prompt: OriginalPrompt::Nothing,
            carried: Vec::new(),
            input: None,
            request: Err((code, message.into())),
            usable,
            below: None,
        }
    }
}

/// Things worth saying once.
#[derive(Default)]
pub(super) struct Warnings {
    pub said: BTreeSet<String>,
    pub waiting: VecDeque<String>,
    /// Names of fields that were met: as many as are enough to tell what was meant, and all that are hoped for.
    pub met: BTreeSet<String>,
}

/// Names that are kept to tell what a mistyped one was to be.
const MAX_MET: usize = 100;

impl Warnings {
    /// A field that some record has.
    pub fn meet(&mut self, name: &str, hoped: &[String]) {
        if (self.met.len() < MAX_MET || hoped.iter().any(|h| h == name)) && !self.met.contains(name)
        {
            self.met.insert(name.to_string());
        }
    }

    /// Whatever it is, once.
    pub fn say(&mut self, line: String) {
        self.waiting.push_back(line);
    }

    /// A field or column that means nothing here.
    pub fn unknown_field(&mut self, name: &str) {
        if self.said.len() < MAX_WARNINGS && !self.said.contains(name) {
            let short: String = name.chars().take(60).collect();
            self.said.insert(name.chars().take(1000).collect());
            self.waiting.push_back(format!("field '{}' is unknown and ignored", shown(&short)));
            if self.said.len() == MAX_WARNINGS {
                self.waiting.push_back("more unknown fields are not told of".to_string());
            }
        }
    }
}

/// White space is a prompt; nothing is not.
pub(super) fn prompt(text: &str) -> Result<Content, Fault> {
    if text.is_empty() {
        Err(("empty_prompt", "the prompt is empty".to_string()))
    } else {
        Ok(Content::Text(text.to_string()))
    }
}

//! Prompt files, from strangers: JSONL, CSV, TXT, OpenAI Batch lines, or standard input. In: paths. Out: records one at a time, in memory
//! that does not grow with the file, each good record or each bad one with its line and what is wrong with it. What makes a whole file
//! useless (no such file, no `prompt` column, a quote that is never closed) is found when the files are opened, before any work.
// What it reads is a stranger's.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod csv;
mod fields;
mod ids;
mod json;
mod lines;
mod openai;
mod source;

pub use fields::{GenerationFields, StopOn};
pub use openai::Endpoint;

use super::Content;
use crate::units::shown;
use ids::Ids;
use serde_json::value::RawValue;
use source::Source;
use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

/// Longest record in bytes. 16 M tokens of ordinary text do not fit a model, and a file may be made of nothing but such records.
pub const LONGEST_RECORD: usize = 8 << 20;
/// Different unknown names that are warned of.
const MOST_WARNINGS: usize = 20;

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InputFormat {
    /// An object a line.
    Jsonl,
    /// A header with `prompt`, then a record a row.
    Csv,
    /// A prompt a line.
    Txt,
    /// OpenAI Batch API requests.
    OpenAi,
}

impl FromStr for InputFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "jsonl" => Ok(InputFormat::Jsonl),
            "csv" => Ok(InputFormat::Csv),
            "txt" => Ok(InputFormat::Txt),
            "openai" => Ok(InputFormat::OpenAi),
            _ => Err("known are jsonl, csv, txt, openai".to_string()),
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
#[derive(Debug, Clone)]
pub enum Given {
    /// Text.
    Prompt(String),
    /// The JSON of `messages`, byte for byte.
    Messages(Box<RawValue>),
    /// It was not found or could not be read.
    Nothing,
}

impl PartialEq for Given {
    fn eq(&self, other: &Given) -> bool {
        match (self, other) {
            (Given::Prompt(a), Given::Prompt(b)) => a == b,
            (Given::Messages(a), Given::Messages(b)) => a.get() == b.get(),
            (Given::Nothing, Given::Nothing) => true,
            _ => false,
        }
    }
}

/// What an answer to an OpenAI request repeats of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenAiRequest {
    /// Where it was to be sent.
    pub endpoint: Endpoint,
    /// `body.model`.
    pub model: Option<String>,
    /// The line, byte for byte.
    pub line: String,
}

/// A record of a prompt file, good or bad: where it stands and what its answer repeats of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Its id; `file:line` if it has none, or none of its own.
    pub id: String,
    /// As given on the command line.
    pub file: Arc<str>,
    /// The line on which it begins, from 1.
    pub line: u64,
    /// The prompt as the file had it.
    pub given: Given,
    /// Values of [`PromptFiles::columns`]; empty where the file lacks the column.
    pub carried: Vec<String>,
    /// Set for OpenAI requests whose envelope could be read.
    pub openai: Option<OpenAiRequest>,
    /// What to answer, or why it cannot be.
    pub asked: Result<Asked, RecordError>,
}

/// What a good record asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The prompt.
    pub content: Content,
    /// Settings of its own.
    pub generation: GenerationFields,
}

/// Why a record has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordError {
    /// A word for programs: `bad_json`, `bad_field`, `missing_prompt`, `empty_prompt`, `duplicate_id`, `not_utf8`, `record_too_long`, `bad_csv`, `unsupported`.
    pub code: &'static str,
    /// One line for people, the file and line in it.
    pub message: String,
}

/// A record's fault before its place is known.
type Fault = (&'static str, String);

/// What one format's reader makes of one record.
#[derive(Debug)]
struct Parsed {
    id: Option<String>,
    given: Given,
    carried: Vec<String>,
    openai: Option<OpenAiRequest>,
    asked: Result<Asked, Fault>,
}

impl Parsed {
    fn bad(code: &'static str, message: impl Into<String>) -> Parsed {
        Parsed { id: None, given: Given::Nothing, carried: Vec::new(), openai: None, asked: Err((code, message.into())) }
    }
}

/// Things worth saying once.
#[derive(Default)]
struct Warnings {
    said: BTreeSet<String>,
    waiting: VecDeque<String>,
}

impl Warnings {
    /// A field or column that means nothing here.
    fn unknown_field(&mut self, name: &str) {
        if self.said.len() < MOST_WARNINGS && !self.said.contains(name) {
            let short: String = name.chars().take(60).collect();
            self.said.insert(name.chars().take(1000).collect());
            self.waiting.push_back(format!("field '{}' is unknown and ignored", shown(&short)));
            if self.said.len() == MOST_WARNINGS {
                self.waiting.push_back("more unknown fields are not told of".to_string());
            }
        }
    }
}

/// The files, looked at: they are there, and each can be a file of prompts.
pub struct PromptFiles {
    files: Vec<(Source, InputFormat)>,
    columns: Arc<[String]>,
    notices: Vec<String>,
}

impl PromptFiles {
    /// Looks at every file. `format` is for all of them; without it the extension decides.
    pub fn open(paths: &[PathBuf], format: Option<InputFormat>) -> Result<PromptFiles, InputError> {
        let mut files = Vec::with_capacity(paths.len());
        let (mut columns, mut notices) = (Vec::new(), Vec::new());
        for path in paths {
            let mut source = Source::of(path)?;
            if files.iter().any(|(other, _): &(Source, _)| other.name() == source.name()) {
                return Err(InputError::Bad(format!("{}: given twice", shown(source.name()))));
            }
            let format = match format {
                Some(format) => format,
                None => by_extension(path)?,
            };
            source.look(&mut notices)?;
            if format == InputFormat::Csv {
                let (header, checked) = csv::check(&mut source)?;
                columns.extend(checked.into_iter().filter(|c| !columns.contains(c)).collect::<Vec<_>>());
                source.keep_header(header);
            }
            files.push((source, format));
        }
        Ok(PromptFiles { files, columns: columns.into(), notices })
    }

    /// Names of the CSV columns that are carried through to CSV output: all but `id` and `prompt`.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Whether these are OpenAI requests.
    pub fn are_openai(&self) -> bool {
        self.files.iter().any(|(_, f)| *f == InputFormat::OpenAi)
    }

    /// Whether [`PromptFiles::reader`] may be called more than once: all are ordinary files.
    pub fn can_be_read_twice(&self) -> bool {
        self.files.iter().all(|(source, _)| source.is_regular())
    }

    /// The records from the beginning. What is not an ordinary file is read by the first reader only.
    pub fn reader(&self) -> PromptReader {
        PromptReader {
            names: self.files.iter().map(|(s, _)| s.name().clone()).collect(),
            waiting: self.files.iter().map(|(s, f)| (s.clone(), *f)).collect(),
            columns: self.columns.clone(),
            current: None,
            ids: Ids::default(),
            warnings: Warnings { waiting: self.notices.iter().cloned().collect(), ..Warnings::default() },
            failed: false,
        }
    }
}

fn by_extension(path: &std::path::Path) -> Result<InputFormat, InputError> {
    let help = "give --input-format jsonl, csv, txt or openai";
    if path.as_os_str() == "-" {
        return Err(InputError::Bad(format!("standard input has no extension; {help}")));
    }
    match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
        Some("jsonl" | "ndjson") => Ok(InputFormat::Jsonl),
        Some("csv") => Ok(InputFormat::Csv),
        Some("txt") => Ok(InputFormat::Txt),
        _ => Err(InputError::Bad(format!(
            "{}: the format cannot be told from the extension; {help}",
            shown(&path.to_string_lossy())
        ))),
    }
}

/// One file being read.
struct Open {
    name: Arc<str>,
    records: Records,
}

enum Records {
    Lines(lines::Lines, InputFormat),
    Csv(Box<csv::Rows>),
}

/// Records one after the other; a failure to read ends them. It never reads further than the record it gives.
pub struct PromptReader {
    names: Vec<Arc<str>>,
    waiting: VecDeque<(Source, InputFormat)>,
    columns: Arc<[String]>,
    current: Option<Open>,
    ids: Ids,
    warnings: Warnings,
    failed: bool,
}

impl PromptReader {
    /// Warnings since the last call, one line each; each thing is said once.
    pub fn take_warnings(&mut self) -> Vec<String> {
        self.warnings.waiting.drain(..).collect()
    }

    fn open_next(&mut self) -> Option<Result<Open, InputError>> {
        let (source, format) = self.waiting.pop_front()?;
        let name = source.name().clone();
        let records = match format {
            InputFormat::Csv => csv::Rows::open(&source, &self.columns).map(|rows| Records::Csv(Box::new(rows))),
            _ => source.open().map(|reader| Records::Lines(lines::Lines::new(reader), format)),
        };
        Some(records.map(|records| Open { name, records }))
    }

    fn finish(&mut self, file: Arc<str>, line: u64, parsed: Parsed) -> Record {
        let place = format!("{file}:{line}");
        let mut asked = parsed.asked;
        let own = parsed.id.is_some();
        let mut id = parsed.id.unwrap_or_else(|| place.clone());
        if own && (!self.ids.insert(&id) || self.is_anothers_place(&id, &place)) {
            let short: String = id.chars().take(60).collect();
            asked = Err(("duplicate_id", format!("the id '{}' is another record's", shown(&short))));
            id = place;
        }
        let asked = asked.map_err(|(code, message)| RecordError { code, message: format!("{}:{line}: {message}", shown(&file)) });
        Record { id, file, line, given: parsed.given, carried: parsed.carried, openai: parsed.openai, asked }
    }

    /// Whether this id is the one that another record of these files has for want of its own.
    fn is_anothers_place(&self, id: &str, place: &str) -> bool {
        id != place
            && id.rsplit_once(':').is_some_and(|(file, line)| {
                !line.is_empty()
                    && line.bytes().all(|b| b.is_ascii_digit())
                    && !line.starts_with('0')
                    && self.names.iter().any(|n| **n == *file)
            })
    }
}

impl Iterator for PromptReader {
    type Item = Result<Record, InputError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        loop {
            if self.current.is_none() {
                match self.open_next()? {
                    Ok(open) => self.current = Some(open),
                    Err(error) => {
                        self.failed = true;
                        return Some(Err(error));
                    }
                }
            }
            let open = self.current.as_mut()?;
            let read = match &mut open.records {
                Records::Lines(lines, format) => lines.next_record(*format, &mut self.warnings),
                Records::Csv(rows) => rows.next_record(),
            };
            match read {
                Ok(Some((line, mut parsed))) => {
                    let file = open.name.clone();
                    if parsed.carried.is_empty() && !self.columns.is_empty() {
                        parsed.carried = vec![String::new(); self.columns.len()];
                    }
                    return Some(Ok(self.finish(file, line, parsed)));
                }
                Ok(None) => self.current = None,
                Err(error) => {
                    self.failed = true;
                    return Some(Err(InputError::Io(format!("{}: {error}", shown(&open.name)))));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;

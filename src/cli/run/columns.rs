//! What an output line can say, as one table: a new field of the record is one row here. In: an answer with its record. Out: values, and
//! how each is written in JSON and in CSV. The same values are read back from a journal, whose lines have all of them.
// Journals are read back, and what they hold is untrusted.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

use super::answer_json;
use crate::engine::FinishReason;
use crate::pipeline::{Answer, RecordError, Settings};
use crate::text::prompts::{Origin, OriginalPrompt};
use serde_json::value::RawValue;
use std::borrow::Cow;

/// An answer with everything its line says.
pub struct Line<'a> {
    pub answer: &'a Answer,
    /// What it repeats of its record.
    pub origin: &'a Origin,
    /// Alias or file name.
    pub model: &'a str,
    /// As resolved.
    pub dtype: &'a str,
    pub settings: Settings,
    /// Unix time, seconds.
    pub created: u64,
}

/// What one column says of one answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// The record has no such thing: a JSON line leaves it out, other forms have nothing in its place.
    Absent,
    /// Nothing: `null`, an empty cell.
    Null,
    Text(Cow<'a, str>),
    /// A number, boolean, list or object, as JSON writes it.
    Json(Cow<'a, str>),
    /// Milliseconds and the like.
    Real(f64),
    /// An object in JSON, `code: message` in a cell.
    Error(Cow<'a, RecordError>),
}

/// What a column holds, for formats whose columns have types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Text,
    /// Whole numbers.
    Whole,
    Real,
    Flag,
    /// JSON text.
    Json,
    Error,
}

/// One of our columns.
pub struct OutputColumn {
    pub name: &'static str,
    pub kind: Type,
    /// CSV and Parquet have it without being asked.
    pub usual: bool,
    /// What it says of an answer.
    pub value: for<'a> fn(&'a Line<'a>) -> Value<'a>,
}

/// The columns in the order of a JSON line. A row whose value is [`Value::Absent`] for most records is no usual column.
pub const TABLE: &[OutputColumn] = &[
    usual("id", Type::Text, |l| match l.origin.id_is_number {
        true if serde_json::from_str::<&RawValue>(&l.answer.id).is_ok() => {
            Value::Json(Cow::Borrowed(&l.answer.id))
        }
        _ => text(&l.answer.id),
    }),
    usual("prompt", Type::Text, |l| match &l.origin.prompt {
        OriginalPrompt::Text(prompt) => text(prompt),
        OriginalPrompt::Messages(json) => Value::Json(one_line(json)),
        OriginalPrompt::OpenAi(_) | OriginalPrompt::Nothing => Value::Null,
    }),
    asked("messages", Type::Json, |l| match &l.origin.prompt {
        OriginalPrompt::Messages(json) => Value::Json(one_line(json)),
        _ => Value::Absent,
    }),
    usual("answer", Type::Text, |l| answer_json::text(l.answer).map_or(Value::Null, text)),
    asked("reasoning", Type::Text, |l| l.answer.reasoning.as_deref().map_or(Value::Absent, text)),
    asked("parsed", Type::Json, |l| {
        answer_json::parsed(l.answer).map_or(Value::Absent, |raw| Value::Json(one_line(raw.get())))
    }),
    asked("choice_probs", Type::Json, |l| json(answer_json::choice_probs(l.answer))),
    asked("logprobs", Type::Json, |l| json(answer_json::logprobs(l.answer))),
    usual("finish_reason", Type::Text, |l| text(word(l.answer.finish_reason))),
    usual("decoding", Type::Text, |l| match l.answer.error {
        None => text(if l.answer.greedy { "greedy" } else { "sampled" }),
        Some(_) => Value::Null,
    }),
    asked("rope", Type::Text, |l| l.answer.rope.map_or(Value::Absent, |set| text(set.name()))),
    usual("prompt_tokens", Type::Whole, |l| whole(l.answer.prompt_tokens)),
    usual("completion_tokens", Type::Whole, |l| whole(l.answer.completion_tokens)),
    usual("cached", Type::Flag, |l| {
        Value::Json(Cow::Borrowed(if l.answer.cached { "true" } else { "false" }))
    }),
    usual("queue_ms", Type::Real, |l| Value::Real(rounded(l.answer.queue_ms))),
    usual("ttft_ms", Type::Real, |l| Value::Real(rounded(l.answer.ttft_ms))),
    usual("latency_ms", Type::Real, |l| Value::Real(rounded(l.answer.latency_ms))),
    usual("model", Type::Text, |l| text(l.model)),
    usual("dtype", Type::Text, |l| text(l.dtype)),
    usual("settings", Type::Text, |l| Value::Text(Cow::Owned(l.settings.to_string()))),
    usual("error", Type::Error, |l| {
        l.answer.error.as_ref().map_or(Value::Null, |e| Value::Error(Cow::Borrowed(e)))
    }),
];

type Say = for<'a> fn(&'a Line<'a>) -> Value<'a>;

const fn usual(name: &'static str, kind: Type, value: Say) -> OutputColumn {
    OutputColumn { name, kind, usual: true, value }
}

const fn asked(name: &'static str, kind: Type, value: Say) -> OutputColumn {
    OutputColumn { name, kind, usual: false, value }
}

/// The place of one of our columns in [`TABLE`].
pub fn place(name: &str) -> Option<usize> {
    TABLE.iter().position(|output| output.name == name)
}

fn text(text: &str) -> Value<'_> {
    Value::Text(Cow::Borrowed(text))
}

fn json<'a>(value: Option<serde_json::Value>) -> Value<'a> {
    value.map_or(Value::Absent, |value| Value::Json(Cow::Owned(value.to_string())))
}

fn whole<'a>(n: usize) -> Value<'a> {
    Value::Json(Cow::Owned(n.to_string()))
}

/// The same JSON on one line for every reader: NEL and the separators of lines and paragraphs, which JSON allows inside strings and many
/// programs take for line ends, are escaped; line ends between tokens become spaces.
pub fn one_line(json: &str) -> Cow<'_, str> {
    const ENDS: [char; 5] = ['\u{85}', '\u{2028}', '\u{2029}', '\n', '\r'];
    if !json.contains(ENDS) {
        return Cow::Borrowed(json);
    }
    let mut line = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        match c {
            '\u{85}' | '\u{2028}' | '\u{2029}' => {
                line.push_str(&format!("\\u{:04x}", u32::from(c)))
            }
            '\n' | '\r' => line.push(' '),
            c => line.push(c),
        }
    }
    Cow::Owned(line)
}

/// Microseconds are enough.
fn rounded(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}

fn word(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::StopString => "stop_string",
        FinishReason::Sentence => "sentence",
        FinishReason::Loop => "loop",
        FinishReason::Length => "length",
        FinishReason::Choice => "choice",
        FinishReason::Error => "error",
    }
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

impl<'a> Value<'a> {
    /// As a JSON value.
    pub fn json(&self) -> Cow<'_, str> {
        match self {
            Value::Absent | Value::Null => Cow::Borrowed("null"),
            Value::Text(text) => Cow::Owned(quoted(text)),
            Value::Json(json) => Cow::Borrowed(json),
            Value::Real(x) => Cow::Owned(serde_json::to_string(x).unwrap_or_default()),
            Value::Error(error) => Cow::Owned(serde_json::to_string(&**error).unwrap_or_default()),
        }
    }

    /// As the text of a cell; nested values are JSON text.
    pub fn cell(&self) -> Cow<'_, str> {
        match self {
            Value::Absent | Value::Null => Cow::Borrowed(""),
            Value::Json(json) if json == "null" => Cow::Borrowed(""),
            Value::Text(text) | Value::Json(text) => Cow::Borrowed(text),
            Value::Real(x) => Cow::Owned(x.to_string()),
            Value::Error(error) => Cow::Owned(format!("{}: {}", error.code, error.message)),
        }
    }

    /// The same with texts of its own.
    #[cfg(feature = "parquet")]
    pub fn into_owned(self) -> Value<'static> {
        match self {
            Value::Absent => Value::Absent,
            Value::Null => Value::Null,
            Value::Text(text) => Value::Text(Cow::Owned(text.into_owned())),
            Value::Json(json) => Value::Json(Cow::Owned(json.into_owned())),
            Value::Real(x) => Value::Real(x),
            Value::Error(error) => Value::Error(Cow::Owned(error.into_owned())),
        }
    }

    /// A value as JSON has it.
    pub fn from_json(raw: &'a RawValue) -> Value<'a> {
        match raw.get() {
            "null" => Value::Null,
            json if json.starts_with('"') => match serde_json::from_str::<String>(json) {
                Ok(text) => Value::Text(Cow::Owned(text)),
                Err(_) => Value::Json(Cow::Borrowed(json)),
            },
            json => Value::Json(Cow::Borrowed(json)),
        }
    }

    /// A value of one of our columns, read back from a journal.
    pub fn read_back(raw: &'a RawValue, kind: Type) -> Value<'a> {
        match (Value::from_json(raw), kind) {
            (Value::Json(json), Type::Real) => json.parse().map(Value::Real).unwrap_or(Value::Null),
            (Value::Json(json), Type::Error) => match serde_json::from_str(&json) {
                Ok(error) => Value::Error(Cow::Owned(error)),
                Err(_) => Value::Null,
            },
            (value, _) => value,
        }
    }
}

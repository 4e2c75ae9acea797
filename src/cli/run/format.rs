//! Output lines: how an answer is written in each format, and how such a line is read back for a resume. Writing and reading live
//! side by side because they must agree. In: answers, or the bytes of one record. Out: the bytes of one line, or a [`Past`].
//! Over 500 lines: what one format writes stands beside what reads it back.
// Untrusted input.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

use super::answer_json;
pub use super::columns::Line;
use super::columns::{self, TABLE, Value, one_line};
use crate::pipeline::{RecordError, Settings};
use crate::text::prompts::{Endpoint, InputCell, OpenAiRequest, OriginalPrompt};
use crate::units::shown;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A JSON object a line.
    Json,
    /// A header, then a row an answer, its cells separated by this.
    Separated(u8),
    /// OpenAI Batch API response lines.
    OpenAi,
    /// For people: id and answer.
    Text,
    /// A Parquet file, made from a journal.
    #[cfg_attr(
        not(feature = "parquet"),
        expect(dead_code, reason = "no build without the feature makes one")
    )]
    Parquet,
}

/// What an output file is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineFormat {
    pub kind: Kind,
    columns: Arc<[Column]>,
    /// `--columns` named them: a line has just these, and its error if it has one.
    chosen: bool,
}

/// One column or field of an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub source: Source,
}

/// Where a column's values come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A row of [`TABLE`].
    Ours(usize),
    /// A field of the input: its name, and its place among the columns that are carried.
    Carried(String, usize),
    /// All fields of the input that are carried, as an object.
    Input,
    /// A property of the answer's JSON object.
    Property(String),
}

/// The name of the object of carried fields.
const INPUT: &str = "input";

/// What makes a name of ours another one than that of a column of the input.
const PREFIX: &str = "llmopt.";

/// What names of columns begin with that hold properties of the answer.
const ANSWER: &str = "answer.";

impl Line<'_> {
    fn open_ai(&self) -> String {
        use serde_json::json;
        let a = self.answer;
        let nothing = OpenAiRequest {
            digest: OpenAiRequest::digest_of(&a.id),
            model: None,
            endpoint: Endpoint::Chat,
        };
        let request = if let OriginalPrompt::OpenAi(request) = &self.origin.prompt {
            request
        } else {
            &nothing
        };
        let model = request.model.as_deref().unwrap_or(self.model);
        let settings = self.settings.to_string();
        let (status, body) = match &a.error {
            None => {
                let chat = request.endpoint == Endpoint::Chat;
                let (kind, prefix) = if chat {
                    ("chat.completion", "chatcmpl")
                } else {
                    ("text_completion", "cmpl")
                };
                let usage = json!({
                    "prompt_tokens": a.prompt_tokens,
                    "completion_tokens": a.completion_tokens,
                    "total_tokens": a.prompt_tokens + a.completion_tokens,
                });
                let body = json!({
                    "id": format!("{prefix}-{}", request.digest),
                    "object": kind,
                    "created": self.created,
                    "model": model,
                    "choices": answer_json::open_ai_choices(a, chat),
                    "usage": usage,
                    "system_fingerprint": settings,
                });
                (200, body)
            }
            Some(error) => {
                // Faults of the request are 400, faults of ours 500.
                let status = if error.code == "not_finite" { 500 } else { 400 };
                let kind = if status == 400 { "invalid_request_error" } else { "server_error" };
                let error = json!({"message": error.message, "type": kind, "param": null, "code": error.code});
                (status, json!({"error": error, "system_fingerprint": settings}))
            }
        };
        let line = json!({
            "id": format!("batch_req_{}", request.digest),
            "custom_id": a.id,
            "response": {"status_code": status, "request_id": request.digest, "body": body},
            "error": a.error.as_ref().map(|e| json!({"code": e.code, "message": e.message})),
        });
        line.to_string()
    }
}

/// One row of separated cells with its line end.
fn row<'a>(separator: u8, fields: impl Iterator<Item = Cow<'a, str>>) -> Vec<u8> {
    let mut writer = csv::WriterBuilder::new().delimiter(separator).from_writer(Vec::new());
    // Writing to memory does not fail; a row that did would be empty and show as such.
    fields.for_each(|field| drop(writer.write_field(field.as_bytes())));
    let _ = writer.write_record(None::<&[u8]>);
    writer.into_inner().unwrap_or_default()
}

/// Text that a terminal shows as it is: control characters other than line ends and tabs are spelled out.
fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' && c != '\t' {
            shown.extend(c.escape_default())
        } else {
            shown.push(c)
        }
    }
    shown
}

/// A record of an output file, read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Past {
    /// [`LineFormat::id_key`] of its id.
    pub id: String,
    /// [`LineFormat::key`] of its prompt.
    pub key: String,
    /// `None`: written by something that knows no settings.
    pub settings: Option<Settings>,
    pub model: Option<String>,
    pub dtype: Option<String>,
    pub error: Option<RecordError>,
}

#[derive(Deserialize)]
struct PastJson<'a> {
    #[serde(borrow)]
    id: &'a RawValue,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
    // The answer itself is not needed, only that the record has the field; borrowed so that it costs nothing.
    #[serde(borrow)]
    answer: Option<&'a RawValue>,
    settings: Option<String>,
    model: Option<String>,
    dtype: Option<String>,
    error: Option<RecordError>,
}

#[derive(Deserialize)]
struct PastOpenAi {
    id: String,
    custom_id: String,
    response: PastResponse,
    error: Option<RecordError>,
}

#[derive(Deserialize)]
struct PastResponse {
    body: serde_json::Value,
}

/// What a name stands for where no field of the input is called so: a column of ours, all fields, a property of the answer.
fn own(name: &str, properties: &[String]) -> Option<Source> {
    let plain = name.strip_prefix(PREFIX).unwrap_or(name);
    let property = || {
        let name =
            plain.strip_prefix(ANSWER).filter(|name| properties.iter().any(|p| p == name))?;
        Some(Source::Property(name.to_string()))
    };
    let column = columns::place(plain).map(Source::Ours);
    column.or_else(|| (name == INPUT).then_some(Source::Input)).or_else(property)
}

/// Whether a column of this name needs no field of the input.
pub fn is_own(name: &str, properties: &[String]) -> bool {
    own(name, properties).is_some()
}

/// Names of the fields of answers.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|output| output.name)
}

/// A name that none of these is: the same with `llmopt.` before it, as often as it takes.
fn free<'c>(name: &str, taken: impl Iterator<Item = &'c str> + Clone) -> String {
    let mut name = name.to_string();
    while taken.clone().any(|other| other == name) {
        name.insert_str(0, PREFIX);
    }
    name
}

/// Our columns under names that no carried one has.
fn ours(usual: bool, extra: &[&str], carried: &[String]) -> Vec<Column> {
    let wanted =
        |n: &usize| TABLE.get(*n).is_some_and(|o| !usual || o.usual || extra.contains(&o.name));
    let named = |n: usize| {
        let name = TABLE.get(n).map_or("", |o| o.name);
        Column { name: free(name, carried.iter().map(String::as_str)), source: Source::Ours(n) }
    };
    (0..TABLE.len()).filter(wanted).map(named).collect()
}

impl LineFormat {
    fn new(kind: Kind, columns: Vec<Column>, chosen: bool) -> LineFormat {
        LineFormat { kind, columns: columns.into(), chosen }
    }

    /// JSON lines with every field.
    pub fn jsonl() -> LineFormat {
        let mut columns = ours(false, &[], &[]);
        columns.push(Column { name: INPUT.into(), source: Source::Input });
        LineFormat::new(Kind::Json, columns, false)
    }

    /// OpenAI's response lines.
    pub fn open_ai() -> LineFormat {
        LineFormat::new(Kind::OpenAi, Vec::new(), false)
    }

    /// Id and answer for people.
    pub fn text() -> LineFormat {
        LineFormat::new(Kind::Text, Vec::new(), false)
    }

    /// Rows: our usual columns and the `extra` ones, then those carried from the input. One of ours that is called like a carried one
    /// becomes `llmopt.NAME`.
    pub fn table(kind: Kind, extra: &[&str], carried: &[String]) -> LineFormat {
        let mut columns = ours(true, extra, carried);
        columns.extend(carried.iter().enumerate().map(|(n, name)| Column {
            name: name.clone(),
            source: Source::Carried(name.clone(), n),
        }));
        LineFormat::new(kind, columns, false)
    }

    /// The same with a column `answer.NAME` for each property of the answer's JSON object, behind `answer`.
    pub fn with_properties(self, names: &[String]) -> LineFormat {
        let mut columns = self.columns.to_vec();
        let answer = columns::place("answer").map(Source::Ours);
        let at = columns
            .iter()
            .position(|c| Some(&c.source) == answer.as_ref())
            .map_or(columns.len(), |at| at + 1);
        let taken: Vec<String> = columns.iter().map(|c| c.name.clone()).collect();
        let property = |name: &String| Column {
            name: free(&format!("{ANSWER}{name}"), taken.iter().map(String::as_str)),
            source: Source::Property(name.clone()),
        };
        columns.splice(at..at, names.iter().map(property));
        LineFormat { columns: columns.into(), ..self }
    }

    /// Just these columns in this order. The error names one that is neither ours nor carried, nor a property of the answer.
    pub fn chosen(
        kind: Kind,
        names: &[String],
        carried: &[String],
        properties: &[String],
    ) -> Result<LineFormat, String> {
        let column = |name: &String| {
            let field =
                carried.iter().position(|c| c == name).map(|n| Source::Carried(name.clone(), n));
            field.or_else(|| own(name, properties)).map(|source| Column { name: name.clone(), source }).ok_or_else(|| {
                let known: Vec<&str> = TABLE.iter().map(|o| o.name).collect();
                let fields = if carried.is_empty() {
                    String::new()
                } else {
                    let some: Vec<&str> = carried.iter().take(8).map(String::as_str).collect();
                    format!(", and the input's {}", shown(&some.join(", ")))
                };
                format!(
                    "--columns: {} is neither a field of answers nor one of the input; known are {}{fields}",
                    shown(name),
                    known.join(", ")
                )
            })
        };
        let columns = names.iter().map(column).collect::<Result<Vec<_>, _>>()?;
        if let Some(twice) = columns
            .iter()
            .enumerate()
            .find(|(n, c)| columns.iter().take(*n).any(|other| other.name == c.name))
        {
            return Err(format!("--columns: {} is there twice", shown(&twice.1.name)));
        }
        Ok(LineFormat::new(kind, columns, true))
    }

    /// The columns, in order.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Whether records are rows of cells, which may hold line ends between quotes.
    pub fn is_separated(&self) -> bool {
        matches!(self.kind, Kind::Separated(_))
    }

    /// Whether ids are text only, so that the number 1 and the text "1" are one.
    pub fn ids_are_text(&self) -> bool {
        matches!(self.kind, Kind::Separated(_) | Kind::Parquet)
    }

    /// Whether lines say all that a resume compares, where it finds it.
    pub fn carries_resume(&self) -> bool {
        let has = |wanted: &str| {
            let found = self
                .columns
                .iter()
                .find(|c| columns::place(wanted).is_some_and(|n| c.source == Source::Ours(n)));
            found.is_some_and(|c| self.is_separated() || c.name == wanted)
        };
        match self.kind {
            Kind::OpenAi => true,
            Kind::Json | Kind::Separated(_) => {
                ["id", "prompt", "answer", "finish_reason", "settings", "error"]
                    .into_iter()
                    .all(has)
            }
            Kind::Text | Kind::Parquet => false,
        }
    }

    /// Whether a failed record shows as one.
    pub fn tells_errors(&self) -> bool {
        self.columns
            .iter()
            .any(|c| columns::place("error").is_some_and(|n| c.source == Source::Ours(n)))
    }

    /// The same with a column `error` at its end.
    pub fn with_errors(&self) -> LineFormat {
        let mut columns = self.columns.to_vec();
        let taken = columns.iter().any(|c| c.name == "error");
        let name = if taken { "llmopt.error" } else { "error" }.to_string();
        columns.extend(columns::place("error").map(|n| Column { name, source: Source::Ours(n) }));
        LineFormat { columns: columns.into(), ..self.clone() }
    }

    /// What an empty file begins with.
    pub fn header(&self) -> Option<Vec<u8>> {
        match self.kind {
            Kind::Separated(separator) => {
                Some(row(separator, self.columns.iter().map(|c| Cow::Borrowed(&c.name[..]))))
            }
            _ => None,
        }
    }

    /// What each line that is JSON begins with.
    pub fn beginning(&self) -> &'static str {
        let id = columns::place("id").map(Source::Ours);
        match self.columns.first() {
            Some(first) if Some(&first.source) == id.as_ref() && first.name == "id" => "{\"id\":",
            _ => "{\"",
        }
    }

    /// What a resume finds a record by: its id. In JSON the number 1 and the text "1" are two ids; CSV and OpenAI know text only.
    pub fn id_key(&self, id: &str, is_number: bool) -> String {
        match self.kind {
            Kind::Json if is_number => format!("\0n{id}"),
            Kind::Json if id.starts_with('\0') => format!("\0t{id}"),
            _ => id.to_string(),
        }
    }

    /// What a resume compares: the same for an input record and for the line that it led to. A CSV file does not say whether
    /// a prompt was given as text or as messages.
    pub fn key(&self, prompt: &OriginalPrompt) -> String {
        match prompt {
            OriginalPrompt::Messages(json) if self.is_separated() => format!("p{}", one_line(json)),
            OriginalPrompt::Text(text) => format!("p{text}"),
            OriginalPrompt::Messages(json) => format!("m{}", one_line(json)),
            OriginalPrompt::OpenAi(request) => format!("o{}", request.digest),
            OriginalPrompt::Nothing => "n".into(),
        }
    }

    fn value<'a>(source: &Source, line: &'a Line<'a>) -> Value<'a> {
        match source {
            Source::Ours(n) => TABLE.get(*n).map_or(Value::Absent, |output| (output.value)(line)),
            Source::Carried(_, n) => match line.origin.carried.get(*n) {
                Some(InputCell::Text(text)) => Value::Text(Cow::Borrowed(text)),
                Some(InputCell::Json(json)) => Value::Json(Cow::Borrowed(json)),
                Some(InputCell::Missing) | None => Value::Null,
            },
            Source::Property(name) => answer_json::property(line.answer, name)
                .map_or(Value::Null, |text| Value::Text(Cow::Owned(text))),
            Source::Input => line
                .origin
                .input
                .as_ref()
                .map_or(Value::Absent, |json| Value::Json(Cow::Borrowed(json))),
        }
    }

    /// One line, with its line end.
    pub fn line(&self, line: &Line) -> Vec<u8> {
        match self.kind {
            Kind::OpenAi => return (one_line(&line.open_ai()).into_owned() + "\n").into_bytes(),
            Kind::Text => return self.text_line(line),
            _ => {}
        }
        self.written(
            self.columns.iter().map(|c| Self::value(&c.source, line)).collect(),
            line.answer.error.as_ref(),
        )
    }

    /// A line of these values, one for each column.
    fn written(&self, values: Vec<Value>, error: Option<&RecordError>) -> Vec<u8> {
        if let Kind::Separated(separator) = self.kind {
            return row(separator, values.iter().map(Value::cell));
        }
        let mut json = String::from("{");
        let mut add = |name: &str, value: &str| {
            if json.len() > 1 {
                json.push(',');
            }
            json.push_str(&serde_json::to_string(name).unwrap_or_default());
            json.push(':');
            json.push_str(value);
        };
        // Messages stand under their own name where that is a field too.
        let messages = columns::place("messages").map(Source::Ours);
        let conversation = self
            .columns
            .iter()
            .zip(&values)
            .any(|(c, v)| Some(&c.source) == messages.as_ref() && *v != Value::Absent);
        let prompt = columns::place("prompt").map(Source::Ours);
        for (column, value) in self.columns.iter().zip(&values) {
            let twice = conversation && Some(&column.source) == prompt.as_ref();
            if !twice && (*value != Value::Absent || self.chosen) {
                add(&column.name, &value.json());
            }
        }
        if let Some(error) = error.filter(|_| !self.tells_errors()) {
            let taken = self.columns.iter().any(|c| c.name == "error");
            add(
                if taken { "llmopt.error" } else { "error" },
                &Value::Error(Cow::Borrowed(error)).json(),
            );
        }
        json.push('}');
        (one_line(&json).into_owned() + "\n").into_bytes()
    }

    fn text_line(&self, line: &Line) -> Vec<u8> {
        let answer = match &line.answer.error {
            None => harmless(line.answer.text.trim_end()),
            Some(error) => format!("error {}: {}", harmless(&error.code), harmless(&error.message)),
        };
        let gap = if answer.contains('\n') { "\n" } else { " " };
        format!("{}:{gap}{answer}\n", shown(&line.answer.id)).into_bytes()
    }

    /// The values of a journal's line for these columns.
    pub fn journal_values<'a>(&self, record: &'a [u8]) -> Result<Vec<Value<'a>>, String> {
        let mut fields: BTreeMap<Cow<str>, &'a RawValue> =
            serde_json::from_slice(record).map_err(|e| plain(&e))?;
        if let Some(messages) = fields.get("messages").copied() {
            fields.insert("prompt".into(), messages);
        }
        let needs_input = self.columns.iter().any(|c| matches!(c.source, Source::Carried(..)));
        let input: HashMap<String, &'a RawValue> = match fields.get(INPUT).filter(|_| needs_input) {
            Some(object) => serde_json::from_str(object.get()).map_err(|e| plain(&e))?,
            None => HashMap::new(),
        };
        let value = |column: &Column| match &column.source {
            Source::Ours(n) => TABLE
                .get(*n)
                .and_then(|o| fields.get(o.name).map(|raw| Value::read_back(raw, o.kind)))
                .unwrap_or(Value::Absent),
            Source::Carried(name, _) => {
                input.get(name).map_or(Value::Null, |raw| Value::from_json(raw))
            }
            Source::Property(name) => {
                let text =
                    fields.get("parsed").and_then(|raw| answer_json::property_of(raw.get(), name));
                text.map_or(Value::Null, |text| Value::Text(Cow::Owned(text)))
            }
            Source::Input => fields.get(INPUT).map_or(Value::Absent, |raw| Value::from_json(raw)),
        };
        Ok(self.columns.iter().map(value).collect())
    }

    /// The line that a journal's line becomes.
    pub fn journal_line(&self, record: &[u8]) -> Result<Vec<u8>, String> {
        Ok(self.written(self.journal_values(record)?, None))
    }

    /// Reads a record back; the error says what is wrong with it.
    pub fn read(&self, record: &[u8]) -> Result<Past, String> {
        match self.kind {
            Kind::Json | Kind::Text | Kind::Parquet => self.read_json(record),
            Kind::OpenAi => read_open_ai(record),
            Kind::Separated(separator) => self.read_row(record, separator),
        }
    }

    fn read_json(&self, record: &[u8]) -> Result<Past, String> {
        let past: PastJson = serde_json::from_slice(record).map_err(|e| plain(&e))?;
        if past.answer.is_none() && past.error.is_none() {
            return Err("it has neither an answer nor an error".into());
        }
        let prompt = match (past.prompt, past.messages) {
            (Some(prompt), None) if prompt.get().starts_with('"') => {
                OriginalPrompt::Text(serde_json::from_str(prompt.get()).map_err(|e| plain(&e))?)
            }
            (None, Some(messages)) => OriginalPrompt::Messages(messages.get().to_string()),
            (Some(messages), None) if messages.get().starts_with('[') => {
                OriginalPrompt::Messages(messages.get().to_string())
            }
            (None, None) if past.error.is_some() => OriginalPrompt::Nothing,
            _ => return Err("it has no prompt".into()),
        };
        let id = match past.id.get() {
            text if text.starts_with('"') => {
                self.id_key(&serde_json::from_str::<String>(text).map_err(|e| plain(&e))?, false)
            }
            number if number.starts_with(|c: char| c == '-' || c.is_ascii_digit()) => {
                self.id_key(number, true)
            }
            _ => return Err("its id is not a text".into()),
        };
        Ok(Past {
            id,
            key: self.key(&prompt),
            settings: settings(past.settings.as_deref())?,
            model: past.model,
            dtype: past.dtype,
            error: past.error,
        })
    }

    fn read_row(&self, record: &[u8], separator: u8) -> Result<Past, String> {
        let columns = self.columns.len();
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(separator)
            .has_headers(false)
            .flexible(true)
            .from_reader(record);
        let mut row = csv::StringRecord::new();
        match reader.read_record(&mut row) {
            Ok(true) if row.len() == columns => {}
            Ok(true) => return Err(format!("it has {} columns, the header {columns}", row.len())),
            Ok(false) => return Err("it is empty".into()),
            Err(e) => return Err(shown(&e.to_string())),
        }
        // A quote inside a field that does not begin with one, or a lone carriage return: not written by us, and what follows is no part of it.
        if !matches!(reader.read_record(&mut csv::StringRecord::new()), Ok(false)) {
            return Err("it is more than one row".into());
        }
        let field = |name: &str| {
            let source = columns::place(name).map(Source::Ours);
            let at = self.columns.iter().position(|c| Some(&c.source) == source.as_ref());
            at.and_then(|at| row.get(at)).unwrap_or("")
        };
        let some = |text: &str| (!text.is_empty()).then(|| text.to_string());
        let error = match field("error") {
            "" => None,
            text => text.split_once(": ").map(|(code, message)| RecordError::new(code, message)),
        };
        let reason = field("finish_reason");
        if error.is_none() && (reason.is_empty() || reason == "error") {
            return Err(format!("its finish_reason '{}' is none of an answer", shown(reason)));
        }
        let prompt = field("prompt");
        Ok(Past {
            id: field("id").to_string(),
            key: format!("p{prompt}"),
            settings: settings(some(field("settings")).as_deref())?,
            model: some(field("model")),
            dtype: some(field("dtype")),
            error,
        })
    }
}

fn settings(text: Option<&str>) -> Result<Option<Settings>, String> {
    match text {
        None => Ok(None),
        Some(text) => Settings::parse(text)
            .map(Some)
            .ok_or(format!("settings '{}' are not 16 hex digits", shown(text))),
    }
}

fn read_open_ai(record: &[u8]) -> Result<Past, String> {
    let past: PastOpenAi = serde_json::from_slice(record).map_err(|e| plain(&e))?;
    let digest =
        past.id.strip_prefix("batch_req_").ok_or("its id does not begin with batch_req_")?;
    let prompt = OriginalPrompt::OpenAi(Box::new(OpenAiRequest {
        digest: digest.into(),
        model: None,
        endpoint: Endpoint::Chat,
    }));
    let settings = settings(past.response.body.get("system_fingerprint").and_then(|s| s.as_str()))?;
    Ok(Past {
        id: past.custom_id,
        key: LineFormat::open_ai().key(&prompt),
        settings,
        model: None,
        dtype: None,
        error: past.error,
    })
}

/// A JSON error without the position in a line that the caller names better.
fn plain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    shown(text.split(" at line ").next().unwrap_or(&text))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::engine::FinishReason;
    use crate::pipeline::Answer;
    use crate::text::prompts::Origin;

    pub fn answer(id: &str, text: &str) -> Answer {
        Answer {
            index: 0,
            id: id.into(),
            text: text.into(),
            reasoning: None,
            json: false,
            choice_probs: None,
            logprobs: None,
            more: Vec::new(),
            tokens: vec![1, 2],
            finish_reason: FinishReason::Stop,
            greedy: true,
            rope: None,
            prompt_tokens: 5,
            completion_tokens: 2,
            cached: false,
            forward_rows: 6,
            queue_ms: 0.12345,
            ttft_ms: 1.5,
            latency_ms: 2.0,
            error: None,
        }
    }

    pub fn origin(id: &str, prompt: OriginalPrompt, carried: &[&str]) -> Origin {
        let carried = carried.iter().map(|c| InputCell::Text(c.to_string())).collect();
        Origin {
            id: id.into(),
            id_is_number: false,
            file: "in".into(),
            line: 1,
            prompt,
            carried,
            input: None,
        }
    }

    pub fn line<'a>(answer: &'a Answer, origin: &'a Origin) -> Line<'a> {
        let settings = Settings { model: 1, generation: 2 };
        Line { answer, origin, model: "tiny", dtype: "f32", settings, created: 1_700_000_000 }
    }

    pub fn csv(carried: &[&str]) -> LineFormat {
        let carried: Vec<String> = carried.iter().map(|c| c.to_string()).collect();
        LineFormat::table(Kind::Separated(b','), &[], &carried)
    }

    fn write(format: &LineFormat, answer: &Answer, prompt: &OriginalPrompt) -> String {
        let carried =
            vec![
                "x";
                format.columns().iter().filter(|c| matches!(c.source, Source::Carried(..))).count()
            ];
        String::from_utf8(format.line(&line(answer, &origin(&answer.id, prompt.clone(), &carried))))
            .unwrap()
    }

    #[test]
    fn a_json_line_has_the_contracts_fields_in_order() {
        let text = write(
            &LineFormat::jsonl(),
            &answer("a", "hi\n\"there\""),
            &OriginalPrompt::Text("q".into()),
        );
        assert_eq!(
            text,
            concat!(
                r#"{"id":"a","prompt":"q","answer":"hi\n\"there\"","finish_reason":"stop","decoding":"greedy","prompt_tokens":5,"#,
                r#""completion_tokens":2,"cached":false,"queue_ms":0.123,"ttft_ms":1.5,"latency_ms":2.0,"model":"tiny","dtype":"f32","#,
                r#""settings":"0000000100000002","error":null}"#,
                "\n"
            )
        );
        let messages = r#"[{"role":"user","content":"q"}]"#;
        let text = write(
            &LineFormat::jsonl(),
            &answer("a", ""),
            &OriginalPrompt::Messages(messages.into()),
        );
        assert!(
            text.starts_with(&format!(r#"{{"id":"a","messages":{messages},"answer":"""#)),
            "{text}"
        );
    }

    #[test]
    fn every_format_reads_back_what_it_wrote() {
        let mut failed = answer("b\n,\"", "");
        failed.error = Some(RecordError::new("too_long", "is: too, \"long\""));
        failed.finish_reason = FinishReason::Error;
        let csv = csv(&["topic", "answer"]);
        let header = String::from_utf8(csv.header().unwrap()).unwrap();
        assert!(
            header.starts_with("id,prompt,llmopt.answer,finish_reason,")
                && header.ends_with(",error,topic,answer\n"),
            "{header}"
        );
        for format in [LineFormat::jsonl(), csv, LineFormat::open_ai()] {
            for answer in [answer("a\nß", "text\n\"quoted\", and\r\nmore"), failed.clone()] {
                let prompt = match format {
                    LineFormat { kind: Kind::OpenAi, .. } => {
                        OriginalPrompt::OpenAi(Box::new(OpenAiRequest {
                            digest: OpenAiRequest::digest_of("{}"),
                            model: None,
                            endpoint: Endpoint::Chat,
                        }))
                    }
                    _ => OriginalPrompt::Text("what\n\"is\", it".into()),
                };
                let past = format.read(write(&format, &answer, &prompt).as_bytes()).unwrap();
                assert_eq!(
                    (&past.id, &past.key, &past.error),
                    (&answer.id, &format.key(&prompt), &answer.error)
                );
                assert_eq!(past.settings, Some(Settings { model: 1, generation: 2 }));
            }
        }
    }

    #[test]
    fn a_record_is_one_line_for_every_reader_and_is_found_again() {
        let odd = "a\u{2028}b\u{2029}c\u{85}d\n\r\u{b}\u{c}\u{1c}e";
        let messages = "[{\"role\":\"user\",\r\n \"content\":\"x\u{2028}y\"}]".to_string();
        for prompt in [OriginalPrompt::Text(odd.into()), OriginalPrompt::Messages(messages)] {
            let text = write(&LineFormat::jsonl(), &answer(odd, odd), &prompt);
            let ends = |c: char| {
                matches!(
                    c,
                    '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                        ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
                )
            };
            assert_eq!((text.matches(ends).count(), text.ends_with('\n')), (1, true), "{text}");
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!((value["id"].as_str(), value["answer"].as_str()), (Some(odd), Some(odd)));
            let past = LineFormat::jsonl().read(text.as_bytes()).unwrap();
            assert_eq!((past.id.as_str(), past.key), (odd, LineFormat::jsonl().key(&prompt)));
        }
        let line = write(&LineFormat::open_ai(), &answer(odd, odd), &OriginalPrompt::Nothing);
        assert_eq!(line.matches(['\u{85}', '\u{2028}', '\u{2029}', '\n']).count(), 1, "{line}");
    }

    #[test]
    fn an_open_ai_error_line_has_an_error_and_a_status_of_400_or_more() {
        let mut failed = answer("b", "");
        failed.error = Some(RecordError::new("unsupported", "n > 1"));
        let value: serde_json::Value =
            serde_json::from_str(&write(&LineFormat::open_ai(), &failed, &OriginalPrompt::Nothing))
                .unwrap();
        assert!(
            value["response"]["status_code"] == 400 && value["error"]["code"] == "unsupported",
            "{value}"
        );
        let good = write(&LineFormat::open_ai(), &answer("b", "yes"), &OriginalPrompt::Nothing);
        let value: serde_json::Value = serde_json::from_str(&good).unwrap();
        assert!(value["error"].is_null() && value["response"]["status_code"] == 200);
        assert_eq!(value["response"]["body"]["choices"][0]["message"]["content"], "yes");
        assert_eq!(value["response"]["body"]["system_fingerprint"], "0000000100000002");
    }

    #[test]
    fn an_id_is_a_number_where_the_input_has_one_and_is_found_again_as_it_was() {
        let prompt = OriginalPrompt::Text("q".into());
        let number = |id: &str| {
            let origin = Origin { id_is_number: true, ..origin(id, prompt.clone(), &[]) };
            LineFormat::jsonl().line(&line(&answer(id, "x"), &origin))
        };
        for id in ["1", "-7", "1.0", "18446744073709551617", "1e400"] {
            let text = String::from_utf8(number(id)).unwrap();
            assert!(text.starts_with(&format!("{{\"id\":{id},")), "{text}");
            assert_eq!(
                LineFormat::jsonl().read(text.as_bytes()).unwrap().id,
                LineFormat::jsonl().id_key(id, true)
            );
            assert_ne!(LineFormat::jsonl().id_key(id, true), LineFormat::jsonl().id_key(id, false));
            assert_eq!(csv(&[]).id_key(id, true), csv(&[]).id_key(id, false));
        }
        for id in ["\0n1", "\0", "n1"] {
            let past = LineFormat::jsonl()
                .read(write(&LineFormat::jsonl(), &answer(id, "x"), &prompt).as_bytes())
                .unwrap();
            assert_eq!(past.id, LineFormat::jsonl().id_key(id, false));
            assert_ne!(past.id, LineFormat::jsonl().id_key("1", true));
        }
    }

    #[test]
    fn an_answer_that_was_cut_is_length_for_openai_and_one_that_ended_is_stop() {
        for (reason, word) in [
            (FinishReason::Stop, "stop"),
            (FinishReason::StopString, "stop"),
            (FinishReason::Length, "length"),
            (FinishReason::Sentence, "length"),
            (FinishReason::Loop, "length"),
        ] {
            let text = write(
                &LineFormat::open_ai(),
                &Answer { finish_reason: reason, ..answer("a", "x") },
                &OriginalPrompt::Nothing,
            );
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(
                value["response"]["body"]["choices"][0]["finish_reason"], word,
                "{reason:?}"
            );
        }
    }

    #[test]
    fn rows_that_only_look_like_one_are_refused() {
        let format = csv(&[]);
        let row = write(&format, &answer("a", "yes"), &OriginalPrompt::Text("q".into()));
        assert!(format.read(row.as_bytes()).is_ok());
        for more in [row.repeat(2), format!("x\"{row}garbage\"\n"), row.replace('\n', "\r") + &row]
        {
            let error = format.read(more.as_bytes()).unwrap_err();
            assert!(error.contains("more than one row"), "{more}: {error}");
        }
    }

    #[test]
    fn what_is_no_record_is_named() {
        for (text, word) in [
            ("{}", "id"),
            ("[]", ""),
            (r#"{"id":"a","prompt":"q"}"#, "neither"),
            (r#"{"id":"a","answer":"x"}"#, "prompt"),
            (r#"{"id":["a"],"prompt":"q","answer":"x"}"#, "id"),
            (r#"{"id":"a","prompt":"q","answer":"x","settings":"7"}"#, "settings"),
            ("{\"id\":\"a\0", ""),
        ] {
            let error = LineFormat::jsonl().read(text.as_bytes()).unwrap_err();
            assert!(error.contains(word) && !error.contains("line 1"), "{text}: {error}");
        }
    }
}

//! Output lines: how an answer is written in each format, and how such a line is read back for a resume. Writing and reading live
//! side by side because they must agree. In: answers, or the bytes of one record. Out: the bytes of one line, or a [`Past`].
// What it reads is a stranger's.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

use crate::engine::FinishReason;
use crate::pipeline::{Answer, RecordError, Settings};
use crate::text::prompts::{Endpoint, Given, OpenAiRequest, Origin};
use crate::units::shown;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;

/// What an output file is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// A JSON object a line.
    Jsonl,
    /// A header, then a row an answer; these columns of the input are carried through.
    Csv { carried: Vec<String> },
    /// OpenAI Batch API response lines.
    OpenAi,
}

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

/// The columns of CSV output, before those carried through.
const COLUMNS: [&str; 15] = [
    "id",
    "prompt",
    "answer",
    "finish_reason",
    "decoding",
    "prompt_tokens",
    "completion_tokens",
    "cached",
    "queue_ms",
    "ttft_ms",
    "latency_ms",
    "model",
    "dtype",
    "settings",
    "error",
];

/// An id as its file gave it.
#[derive(Serialize)]
#[serde(untagged)]
enum JsonId<'a> {
    Number(Box<RawValue>),
    Text(&'a str),
}

#[derive(Serialize)]
struct JsonLine<'a> {
    id: JsonId<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<Option<&'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<&'a RawValue>,
    answer: Option<&'a str>,
    finish_reason: FinishReason,
    decoding: Option<&'static str>,
    prompt_tokens: usize,
    completion_tokens: usize,
    cached: bool,
    queue_ms: f64,
    ttft_ms: f64,
    latency_ms: f64,
    model: &'a str,
    dtype: &'a str,
    settings: String,
    error: Option<&'a RecordError>,
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
        FinishReason::Error => "error",
    }
}

impl Line<'_> {
    fn decoding(&self) -> Option<&'static str> {
        self.answer.error.is_none().then_some(if self.answer.greedy { "greedy" } else { "sampled" })
    }

    fn json(&self) -> String {
        let a = self.answer;
        let messages = match &self.origin.given {
            Given::Messages(json) => RawValue::from_string(json.clone()).ok(),
            _ => None,
        };
        let prompt = match &self.origin.given {
            Given::Prompt(text) => Some(Some(text.as_str())),
            _ if messages.is_some() => None,
            _ => Some(None),
        };
        let line = JsonLine {
            id: match RawValue::from_string(a.id.clone()) {
                Ok(number) if self.origin.id_is_number => JsonId::Number(number),
                _ => JsonId::Text(&a.id),
            },
            prompt,
            messages: messages.as_deref(),
            answer: a.error.is_none().then_some(&a.text),
            finish_reason: a.finish_reason,
            decoding: self.decoding(),
            prompt_tokens: a.prompt_tokens,
            completion_tokens: a.completion_tokens,
            cached: a.cached,
            queue_ms: rounded(a.queue_ms),
            ttft_ms: rounded(a.ttft_ms),
            latency_ms: rounded(a.latency_ms),
            model: self.model,
            dtype: self.dtype,
            settings: self.settings.to_string(),
            error: a.error.as_ref(),
        };
        serde_json::to_string(&line).unwrap_or_default()
    }

    fn csv(&self) -> Vec<u8> {
        let a = self.answer;
        let prompt = match &self.origin.given {
            Given::Prompt(text) => text.as_str(),
            Given::Messages(json) => json,
            _ => "",
        };
        let error = a.error.as_ref().map(|e| format!("{}: {}", e.code, e.message)).unwrap_or_default();
        let settings = self.settings.to_string();
        let (prompt_tokens, completion_tokens) = (a.prompt_tokens.to_string(), a.completion_tokens.to_string());
        let times = [a.queue_ms, a.ttft_ms, a.latency_ms].map(|t| rounded(t).to_string());
        let fields: [&str; COLUMNS.len()] = [
            &a.id,
            prompt,
            &a.text,
            word(a.finish_reason),
            self.decoding().unwrap_or(""),
            &prompt_tokens,
            &completion_tokens,
            if a.cached { "true" } else { "false" },
            &times[0],
            &times[1],
            &times[2],
            self.model,
            self.dtype,
            &settings,
            &error,
        ];
        csv_row(fields.into_iter().chain(self.origin.carried.iter().map(String::as_str)))
    }

    fn open_ai(&self) -> String {
        use serde_json::json;
        let a = self.answer;
        let nothing = OpenAiRequest { digest: OpenAiRequest::digest_of(&a.id), model: None, endpoint: Endpoint::Chat };
        let request = if let Given::OpenAi(request) = &self.origin.given { request } else { &nothing };
        let model = request.model.as_deref().unwrap_or(self.model);
        let settings = self.settings.to_string();
        let (status, body) = match &a.error {
            None => {
                // OpenAI knows two ends: the model's or the caller's, and one that something cut.
                let reason = match a.finish_reason {
                    FinishReason::Stop | FinishReason::StopString => "stop",
                    FinishReason::Length | FinishReason::Sentence | FinishReason::Loop | FinishReason::Error => "length",
                };
                let (kind, prefix, choice) = if request.endpoint == Endpoint::Chat {
                    let message = json!({"role": "assistant", "content": a.text});
                    let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": reason});
                    ("chat.completion", "chatcmpl", choice)
                } else {
                    let choice = json!({"index": 0, "text": a.text, "logprobs": null, "finish_reason": reason});
                    ("text_completion", "cmpl", choice)
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
                    "choices": [choice],
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

/// The same JSON on one line for every reader: NEL and the separators of lines and paragraphs, which JSON allows inside strings and many
/// programs take for line ends, are escaped; line ends between tokens become spaces.
fn one_line(json: &str) -> Cow<'_, str> {
    const ENDS: [char; 5] = ['\u{85}', '\u{2028}', '\u{2029}', '\n', '\r'];
    if !json.contains(ENDS) {
        return Cow::Borrowed(json);
    }
    let mut line = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        match c {
            '\u{85}' | '\u{2028}' | '\u{2029}' => line.push_str(&format!("\\u{:04x}", u32::from(c))),
            '\n' | '\r' => line.push(' '),
            c => line.push(c),
        }
    }
    Cow::Owned(line)
}

/// One CSV row with its line end.
fn csv_row<'a>(fields: impl Iterator<Item = &'a str>) -> Vec<u8> {
    let mut writer = csv::WriterBuilder::new().from_writer(Vec::new());
    // Writing to memory does not fail; a row that did would be empty and show as such.
    let _ = writer.write_record(fields);
    writer.into_inner().unwrap_or_default()
}

/// A record of an output file, read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Past {
    /// [`Format::id_key`] of its id.
    pub id: String,
    /// [`Format::key`] of its prompt.
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
    prompt: Option<Option<String>>,
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

impl Format {
    /// What an empty file begins with.
    pub fn header(&self) -> Option<Vec<u8>> {
        match self {
            Format::Csv { carried } => Some(csv_row(COLUMNS.iter().copied().chain(carried.iter().map(String::as_str)))),
            _ => None,
        }
    }

    /// The columns of a CSV input that are carried through, under names that do not clash with ours.
    pub fn csv(names: impl IntoIterator<Item = String>) -> Format {
        let rename = |name: String| if COLUMNS.contains(&name.as_str()) { format!("input_{name}") } else { name };
        Format::Csv { carried: names.into_iter().map(rename).collect() }
    }

    /// What a resume finds a record by: its id. In JSON the number 1 and the text "1" are two ids; CSV and OpenAI know text only.
    pub fn id_key(&self, id: &str, is_number: bool) -> String {
        match self {
            Format::Jsonl if is_number => format!("\0n{id}"),
            Format::Jsonl if id.starts_with('\0') => format!("\0t{id}"),
            _ => id.to_string(),
        }
    }

    /// What a resume compares: the same for an input record and for the line that it led to. A CSV file does not say whether
    /// a prompt was given as text or as messages.
    pub fn key(&self, given: &Given) -> String {
        match (given, self) {
            (Given::Messages(json), Format::Csv { .. }) => format!("p{}", one_line(json)),
            (Given::Prompt(text), _) => format!("p{text}"),
            (Given::Messages(json), _) => format!("m{}", one_line(json)),
            (Given::OpenAi(request), _) => format!("o{}", request.digest),
            (Given::Nothing, _) => "n".into(),
        }
    }

    /// One line, with its line end.
    pub fn line(&self, line: &Line) -> Vec<u8> {
        match self {
            Format::Csv { .. } => line.csv(),
            Format::Jsonl => (one_line(&line.json()).into_owned() + "\n").into_bytes(),
            Format::OpenAi => (one_line(&line.open_ai()).into_owned() + "\n").into_bytes(),
        }
    }

    /// Reads a record back; the error says what is wrong with it.
    pub fn read(&self, record: &[u8]) -> Result<Past, String> {
        match self {
            Format::Jsonl => read_json(record),
            Format::OpenAi => read_open_ai(record),
            Format::Csv { carried } => read_csv(record, COLUMNS.len() + carried.len()),
        }
    }
}

fn settings(text: Option<&str>) -> Result<Option<Settings>, String> {
    match text {
        None => Ok(None),
        Some(text) => Settings::parse(text).map(Some).ok_or(format!("settings '{}' are not 16 hex digits", shown(text))),
    }
}

fn read_json(record: &[u8]) -> Result<Past, String> {
    let past: PastJson = serde_json::from_slice(record).map_err(|e| plain(&e))?;
    if past.answer.is_none() && past.error.is_none() {
        return Err("it has neither an answer nor an error".into());
    }
    let given = match (past.prompt, past.messages) {
        (Some(Some(text)), None) => Given::Prompt(text),
        (None | Some(None), Some(messages)) => Given::Messages(messages.get().to_string()),
        (Some(None), None) | (None, None) if past.error.is_some() => Given::Nothing,
        _ => return Err("it has no prompt".into()),
    };
    let id = match past.id.get() {
        text if text.starts_with('"') => {
            Format::Jsonl.id_key(&serde_json::from_str::<String>(text).map_err(|e| plain(&e))?, false)
        }
        number if number.starts_with(|c: char| c == '-' || c.is_ascii_digit()) => Format::Jsonl.id_key(number, true),
        _ => return Err("its id is not a text".into()),
    };
    Ok(Past {
        id,
        key: Format::Jsonl.key(&given),
        settings: settings(past.settings.as_deref())?,
        model: past.model,
        dtype: past.dtype,
        error: past.error,
    })
}

fn read_open_ai(record: &[u8]) -> Result<Past, String> {
    let past: PastOpenAi = serde_json::from_slice(record).map_err(|e| plain(&e))?;
    let digest = past.id.strip_prefix("batch_req_").ok_or("its id does not begin with batch_req_")?;
    let given = Given::OpenAi(Box::new(OpenAiRequest { digest: digest.into(), model: None, endpoint: Endpoint::Chat }));
    let settings = settings(past.response.body.get("system_fingerprint").and_then(|s| s.as_str()))?;
    Ok(Past { id: past.custom_id, key: Format::OpenAi.key(&given), settings, model: None, dtype: None, error: past.error })
}

fn read_csv(record: &[u8], columns: usize) -> Result<Past, String> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(record);
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
    let field = |name: &str| COLUMNS.iter().position(|c| *c == name).and_then(|i| row.get(i)).unwrap_or("");
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

/// A JSON error without the position in a line that the caller names better.
fn plain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    shown(text.split(" at line ").next().unwrap_or(&text))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn answer(id: &str, text: &str) -> Answer {
        Answer {
            index: 0,
            id: id.into(),
            text: text.into(),
            tokens: vec![1, 2],
            finish_reason: FinishReason::Stop,
            greedy: true,
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

    pub fn origin(id: &str, given: Given, carried: &[&str]) -> Origin {
        let carried = carried.iter().map(|c| c.to_string()).collect();
        Origin { id: id.into(), id_is_number: false, file: "in".into(), line: 1, given, carried }
    }

    pub fn line<'a>(answer: &'a Answer, origin: &'a Origin) -> Line<'a> {
        let settings = Settings { model: 1, generation: 2 };
        Line { answer, origin, model: "tiny", dtype: "f32", settings, created: 1_700_000_000 }
    }

    fn write(format: &Format, answer: &Answer, given: &Given) -> String {
        let carried = vec!["x"; if let Format::Csv { carried } = format { carried.len() } else { 0 }];
        String::from_utf8(format.line(&line(answer, &origin(&answer.id, given.clone(), &carried)))).unwrap()
    }

    #[test]
    fn a_json_line_has_the_contracts_fields_in_order() {
        let text = write(&Format::Jsonl, &answer("a", "hi\n\"there\""), &Given::Prompt("q".into()));
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
        let text = write(&Format::Jsonl, &answer("a", ""), &Given::Messages(messages.into()));
        assert!(text.starts_with(&format!(r#"{{"id":"a","messages":{messages},"answer":"""#)), "{text}");
    }

    #[test]
    fn every_format_reads_back_what_it_wrote() {
        let mut failed = answer("b\n,\"", "");
        failed.error = Some(RecordError::new("too_long", "is: too, \"long\""));
        failed.finish_reason = FinishReason::Error;
        let csv = Format::csv(["topic".to_string(), "answer".to_string()]);
        assert_eq!(csv, Format::Csv { carried: vec!["topic".into(), "input_answer".into()] });
        for format in [Format::Jsonl, csv, Format::OpenAi] {
            for answer in [answer("a\nß", "text\n\"quoted\", and\r\nmore"), failed.clone()] {
                let given = match format {
                    Format::OpenAi => Given::OpenAi(Box::new(OpenAiRequest {
                        digest: OpenAiRequest::digest_of("{}"),
                        model: None,
                        endpoint: Endpoint::Chat,
                    })),
                    _ => Given::Prompt("what\n\"is\", it".into()),
                };
                let past = format.read(write(&format, &answer, &given).as_bytes()).unwrap();
                assert_eq!((&past.id, &past.key, &past.error), (&answer.id, &format.key(&given), &answer.error));
                assert_eq!(past.settings, Some(Settings { model: 1, generation: 2 }));
            }
        }
    }

    #[test]
    fn a_record_is_one_line_for_every_reader_and_is_found_again() {
        let odd = "a\u{2028}b\u{2029}c\u{85}d\n\r\u{b}\u{c}\u{1c}e";
        let messages = "[{\"role\":\"user\",\r\n \"content\":\"x\u{2028}y\"}]".to_string();
        for given in [Given::Prompt(odd.into()), Given::Messages(messages)] {
            let text = write(&Format::Jsonl, &answer(odd, odd), &given);
            let ends =
                |c: char| matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
            assert_eq!((text.matches(ends).count(), text.ends_with('\n')), (1, true), "{text}");
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!((value["id"].as_str(), value["answer"].as_str()), (Some(odd), Some(odd)));
            let past = Format::Jsonl.read(text.as_bytes()).unwrap();
            assert_eq!((past.id.as_str(), past.key), (odd, Format::Jsonl.key(&given)));
        }
        let line = write(&Format::OpenAi, &answer(odd, odd), &Given::Nothing);
        assert_eq!(line.matches(['\u{85}', '\u{2028}', '\u{2029}', '\n']).count(), 1, "{line}");
    }

    #[test]
    fn an_open_ai_error_line_has_an_error_and_a_status_of_400_or_more() {
        let mut failed = answer("b", "");
        failed.error = Some(RecordError::new("unsupported", "n > 1"));
        let value: serde_json::Value = serde_json::from_str(&write(&Format::OpenAi, &failed, &Given::Nothing)).unwrap();
        assert!(value["response"]["status_code"] == 400 && value["error"]["code"] == "unsupported", "{value}");
        let good = write(&Format::OpenAi, &answer("b", "yes"), &Given::Nothing);
        let value: serde_json::Value = serde_json::from_str(&good).unwrap();
        assert!(value["error"].is_null() && value["response"]["status_code"] == 200);
        assert_eq!(value["response"]["body"]["choices"][0]["message"]["content"], "yes");
        assert_eq!(value["response"]["body"]["system_fingerprint"], "0000000100000002");
    }

    #[test]
    fn an_id_is_a_number_where_the_input_has_one_and_is_found_again_as_it_was() {
        let given = Given::Prompt("q".into());
        let number = |id: &str| {
            let origin = Origin { id_is_number: true, ..origin(id, given.clone(), &[]) };
            Format::Jsonl.line(&line(&answer(id, "x"), &origin))
        };
        for id in ["1", "-7", "1.0", "18446744073709551617", "1e400"] {
            let text = String::from_utf8(number(id)).unwrap();
            assert!(text.starts_with(&format!("{{\"id\":{id},")), "{text}");
            assert_eq!(Format::Jsonl.read(text.as_bytes()).unwrap().id, Format::Jsonl.id_key(id, true));
            assert_ne!(Format::Jsonl.id_key(id, true), Format::Jsonl.id_key(id, false));
            assert_eq!(Format::csv([]).id_key(id, true), Format::csv([]).id_key(id, false));
        }
        for id in ["\0n1", "\0", "n1"] {
            let past = Format::Jsonl.read(write(&Format::Jsonl, &answer(id, "x"), &given).as_bytes()).unwrap();
            assert_eq!(past.id, Format::Jsonl.id_key(id, false));
            assert_ne!(past.id, Format::Jsonl.id_key("1", true));
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
            let text = write(&Format::OpenAi, &Answer { finish_reason: reason, ..answer("a", "x") }, &Given::Nothing);
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value["response"]["body"]["choices"][0]["finish_reason"], word, "{reason:?}");
        }
    }

    #[test]
    fn rows_that_only_look_like_one_are_refused() {
        let format = Format::csv([]);
        let row = write(&format, &answer("a", "yes"), &Given::Prompt("q".into()));
        assert!(format.read(row.as_bytes()).is_ok());
        for more in [row.repeat(2), format!("x\"{row}garbage\"\n"), row.replace('\n', "\r") + &row] {
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
            let error = Format::Jsonl.read(text.as_bytes()).unwrap_err();
            assert!(error.contains(word) && !error.contains("line 1"), "{text}: {error}");
        }
    }
}

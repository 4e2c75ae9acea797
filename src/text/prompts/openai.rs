//! A line of an OpenAI Batch API file to a record: `custom_id`, `method`, `url`, `body`. Whatever the body asks for that would change
//! the answer and is not supported is refused by its name, never ignored.

use super::fields::GenerationFields;
use super::json::{Fields, messages};
use super::record::{Asked, Endpoint, Fault, Given, OpenAiRequest, Parsed, Warnings, prompt};
use crate::text::Content;
use serde_json::Value;

/// Settings that mean what the flag of that name means.
const SETTINGS: [&str; 5] = ["temperature", "top_p", "top_k", "seed", "stop"];
/// Fields that do not change an answer.
const HARMLESS: [&str; 8] =
    ["model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "stream_options"];
/// Fields that would change an answer, and the values that mean "as usual" (`null` always does).
const UNSUPPORTED: [(&str, &[&str]); 22] = [
    ("n", &["1"]),
    ("best_of", &["1"]),
    ("tools", &["[]"]),
    ("tool_choice", &["\"none\"", "\"auto\""]),
    ("parallel_tool_calls", &["true", "false"]),
    ("functions", &["[]"]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("response_format", &[]),
    ("logprobs", &["false"]),
    ("top_logprobs", &[]),
    ("stream", &["false"]),
    ("logit_bias", &["{}"]),
    ("frequency_penalty", &["0", "0.0"]),
    ("presence_penalty", &["0", "0.0"]),
    ("suffix", &[]),
    ("echo", &["false"]),
    ("modalities", &["[\"text\"]"]),
    ("audio", &[]),
    ("prediction", &[]),
    ("web_search_options", &[]),
    ("reasoning_effort", &["\"none\""]),
    ("verbosity", &["\"medium\""]),
];

/// A line of the file.
pub(super) fn read(text: &str, warnings: &mut Warnings) -> Parsed {
    let fields = match Fields::of(text) {
        Ok(fields) => fields,
        Err((code, message)) => return Parsed::bad(code, message),
    };
    let (id, id_fault) = match fields.text("custom_id") {
        Ok(Some(id)) => (Some(id), None),
        Ok(None) => (None, Some(("bad_field", "custom_id is missing".to_string()))),
        Err(fault) => (None, Some(fault)),
    };
    let mut given = Given::Nothing;
    let mut request = OpenAiRequest { endpoint: Endpoint::Chat, model: None, line: text.trim().to_string() };
    let asked = ask(&fields, &mut given, &mut request, warnings);
    Parsed { id, given, carried: Vec::new(), openai: Some(request), asked: id_fault.map_or(asked, Err) }
}

fn ask(fields: &Fields, given: &mut Given, request: &mut OpenAiRequest, warnings: &mut Warnings) -> Result<Asked, Fault> {
    let refuse = |message: String| Err(("unsupported", message));
    request.endpoint = match fields.text("url")?.as_deref() {
        Some("/v1/chat/completions") => Endpoint::Chat,
        Some("/v1/completions") => Endpoint::Completions,
        Some(_) => return refuse("url: only /v1/chat/completions and /v1/completions are supported".to_string()),
        None => return Err(("bad_field", "url is missing".to_string())),
    };
    match fields.text("method")?.as_deref() {
        Some("POST") => {}
        Some(_) => return refuse("method: only POST is supported".to_string()),
        None => return Err(("bad_field", "method is missing".to_string())),
    }
    for (name, _) in &fields.0 {
        if !matches!(&**name, "custom_id" | "method" | "url" | "body") {
            warnings.unknown_field(name);
        }
    }
    let Some(body) = fields.get("body")? else { return Err(("bad_field", "body is missing".to_string())) };
    let body = Fields::of(body.get()).map_err(|(_, message)| ("bad_field", format!("body: {message}")))?;
    request.model = body.text("model")?;
    // What is asked is told before what is wrong with the settings, so that an error line can repeat it.
    let content = match request.endpoint {
        Endpoint::Chat => match body.get("messages")? {
            Some(raw) => {
                *given = Given::Messages(raw.to_owned());
                messages(raw, warnings)?
            }
            None => return Err(("missing_prompt", "body.messages is missing".to_string())),
        },
        Endpoint::Completions => {
            let text = match body.value("prompt")? {
                Some(Value::String(text)) => text,
                Some(Value::Array(many)) if matches!(&many[..], [Value::String(_)]) => many
                    .into_iter()
                    .find_map(|text| if let Value::String(text) = text { Some(text) } else { None })
                    .unwrap_or_default(),
                Some(_) => return refuse("prompt: only one string is supported".to_string()),
                None => return Err(("missing_prompt", "body.prompt is missing".to_string())),
            };
            *given = Given::Prompt(text.clone());
            match prompt(&text)? {
                Content::Text(text) => Content::Completion(text),
                other => other,
            }
        }
    };
    for (name, usual) in UNSUPPORTED {
        let Some(raw) = body.get(name)? else { continue };
        let written: String = raw.get().chars().filter(|c| !c.is_whitespace()).collect();
        let text_format = name == "response_format" && written == "{\"type\":\"text\"}";
        if !usual.contains(&&*written) && !text_format {
            return refuse(format!("{name}: this value is not supported"));
        }
    }
    let mut generation = GenerationFields::default();
    for name in SETTINGS {
        if let Some(value) = body.value(name)? {
            generation.set(name, &value)?;
        }
    }
    for name in ["max_tokens", "max_completion_tokens"] {
        let Some(value) = body.value(name)? else { continue };
        let before = generation.max_tokens;
        generation.set("max_tokens", &value).map_err(|(code, message)| (code, message.replacen("max_tokens", name, 1)))?;
        if before.is_some() && before != generation.max_tokens {
            return Err(("bad_field", "max_tokens and max_completion_tokens differ; give one".to_string()));
        }
    }
    let content_name = if request.endpoint == Endpoint::Chat { "messages" } else { "prompt" };
    for (name, _) in &body.0 {
        let known = HARMLESS.contains(&&**name)
            || SETTINGS.contains(&&**name)
            || UNSUPPORTED.iter().any(|(n, _)| n == name)
            || matches!(&**name, "max_tokens" | "max_completion_tokens")
            || name == content_name;
        if !known {
            warnings.unknown_field(&format!("body.{name}"));
        }
    }
    Ok(Asked { content, generation })
}

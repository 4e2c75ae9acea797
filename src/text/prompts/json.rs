//! A JSON line to a record. Names are kept in order with their exact text, so that a number as an id is neither rounded nor mixed up
//! with another, and a field that is there twice is seen.

use super::fault::Fault;
use super::fields::GenerationFields;
use super::reading::{Found, Rules, made, places};
use super::record::{InputCell, OriginalPrompt, Parsed, PromptRequest, Warnings, prompt};
use crate::text::{Content, Message, RowTemplate};
use crate::units::shown;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// An object's fields in order, values as they are written.
pub(super) struct Fields<'t>(pub Vec<(Cow<'t, str>, &'t RawValue)>);

impl<'de: 't, 't> Deserialize<'de> for Fields<'t> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name<'t>(Cow<'t, str>);
        impl<'de: 't, 't> Deserialize<'de> for Name<'t> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl<'de> Visitor<'de> for Text {
                    type Value = Cow<'de, str>;
                    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                        f.write_str("a name")
                    }
                    fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Self::Value, E> {
                        Ok(Cow::Borrowed(v))
                    }
                    fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
                        Ok(Cow::Owned(v.to_string()))
                    }
                }
                deserializer.deserialize_str(Text).map(Name)
            }
        }
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Vec<(Cow<'de, str>, &'de RawValue)>;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object such as {\"prompt\": \"…\"}")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(name) = map.next_key::<Name>()? {
                    fields.push((name.0, map.next_value::<&RawValue>()?));
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(Object).map(Fields)
    }
}

impl<'t> Fields<'t> {
    /// The fields of an object. Errors say where it stops being one.
    pub fn of(text: &'t str) -> Result<Fields<'t>, Fault> {
        serde_json::from_str(text).map_err(|e| {
            let message = e.to_string();
            // serde_json counts lines of the one line that it was given.
            let what = message.split(" at line ").next().unwrap_or(&message);
            let hint = match text.trim() {
                "{" => "; it seems to stand on several lines: a record has one (`jq -c . FILE` makes it so), those of an array in a .json may have many",
                _ => "",
            };
            ("bad_json", format!("not a JSON object: {} at column {}{hint}", shown(what), e.column()))
        })
    }

    /// The field of this name; an error if it is there twice.
    pub fn get(&self, name: &str) -> Result<Option<&'t RawValue>, Fault> {
        let mut found = self.0.iter().filter(|(n, _)| n == name).map(|(_, v)| *v);
        match (found.next(), found.next()) {
            (_, Some(_)) => Err(("bad_field", format!("{name} is there twice"))),
            (Some(value), None) if value.get() != "null" => Ok(Some(value)),
            _ => Ok(None),
        }
    }

    /// The field of this name as a value.
    pub fn value(&self, name: &str) -> Result<Option<Value>, Fault> {
        self.get(name)?.map(|raw| value(name, raw)).transpose()
    }

    /// The field of this name as text.
    pub fn text(&self, name: &str) -> Result<Option<String>, Fault> {
        match self.value(name)? {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(("bad_field", format!("{name} must be a string"))),
        }
    }
}

fn value(name: &str, raw: &RawValue) -> Result<Value, Fault> {
    serde_json::from_str(raw.get()).map_err(|e| {
        let message = e.to_string();
        let what = match lone_surrogate(raw.get()) {
            Some(half) => {
                format!("{half} is half of a surrogate pair and no character; write both halves, or the character itself")
            }
            None => shown(message.split(" at line ").next().unwrap_or(&message)),
        };
        ("bad_field", format!("{name}: {what}"))
    })
}

/// The first escape in JSON text that is one half of a surrogate pair without the other.
fn lone_surrogate(json: &str) -> Option<String> {
    let escape = |at: usize| -> Option<u16> {
        let digits = json.get(at..)?.strip_prefix("\\u")?.get(..4)?;
        u16::from_str_radix(digits, 16).ok()
    };
    let mut at = 0;
    while let Some(found) = json.get(at..).and_then(|rest| rest.find('\\')) {
        at += found;
        match escape(at) {
            Some(0xd800..=0xdbff) if matches!(escape(at + 6), Some(0xdc00..=0xdfff)) => at += 12,
            Some(0xd800..=0xdfff) => return json.get(at..at + 6).map(String::from),
            Some(_) => at += 6,
            None => at += 2,
        }
    }
    None
}

/// A string, or a number as it is written; and whether it is a number.
fn id(name: &str, raw: &RawValue) -> Result<(String, bool), Fault> {
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'"') => match value(name, raw)? {
            Value::String(id) => Ok((id, false)),
            _ => Err(("bad_field", format!("{} is no valid text", shown(name)))),
        },
        Some(b'-' | b'0'..=b'9') => Ok((text.to_string(), true)),
        _ => Err(("bad_field", format!("{} must be a string or a number", shown(name)))),
    }
}

/// A line of a JSONL file.
pub(super) fn read(text: &str, rules: &Rules, warnings: &mut Warnings) -> Parsed {
    let fields = match Fields::of(text) {
        Ok(fields) => fields,
        Err((code, message)) => return Parsed::bad(code, message),
    };
    if !rules.hoped.is_empty() {
        data(&fields, rules).for_each(|(name, _)| warnings.meet(name, &rules.hoped));
    }
    let id_name = rules.reading.id_name();
    let (id, id_fault) =
        match fields.get(id_name).and_then(|raw| raw.map(|raw| id(id_name, raw)).transpose()) {
            Ok(id) => (id, None),
            Err(fault) => (None, Some(fault)),
        };
    let mut found = Found::default();
    let request = ask(&fields, rules, &mut found, warnings);
    let id_is_number = id.as_ref().is_some_and(|(_, number)| *number);
    Parsed {
        id: id.map(|(text, _)| text),
        id_is_number,
        prompt: found.prompt,
        carried: carried(&fields, rules),
        input: rules.object.then(|| object(&fields, rules)),
        request: id_fault.map_or(request, Err),
        usable: found.usable,
        below: None,
    }
}

/// Fields that are no part of the line by themselves and no settings.
fn data<'f, 't>(
    fields: &'f Fields<'t>,
    rules: &'f Rules,
) -> impl Iterator<Item = (&'f str, &'t RawValue)> {
    let kept = |name: &str| {
        !rules.reading.is_told(name) && !rules.reading.settings().any(|setting| setting == name)
    };
    fields.0.iter().map(|(name, raw)| (&**name, *raw)).filter(move |(name, _)| kept(name))
}

/// Names of the fields that are carried.
pub(super) fn names(text: &str, rules: &Rules) -> Vec<String> {
    let fields = Fields::of(text).unwrap_or(Fields(Vec::new()));
    data(&fields, rules).map(|(name, _)| name.to_string()).collect()
}

fn carried(fields: &Fields, rules: &Rules) -> Vec<InputCell> {
    if rules.columns.is_empty() {
        return Vec::new();
    }
    let cell = |raw: &RawValue| match serde_json::from_str(raw.get()) {
        Ok(Value::String(text)) => InputCell::Text(text),
        _ => InputCell::Json(raw.get().to_string()),
    };
    let places = places(
        &rules.columns.iter().map(|c| &c[..]).collect::<Vec<_>>(),
        data(fields, rules).map(|(name, raw)| (raw, name)),
    );
    places.into_iter().map(|raw| raw.map_or(InputCell::Missing, cell)).collect()
}

fn object(fields: &Fields, rules: &Rules) -> String {
    let pairs: Vec<String> = data(fields, rules)
        .map(|(name, raw)| {
            format!("{}:{}", serde_json::to_string(name).unwrap_or_default(), raw.get())
        })
        .collect();
    format!("{{{}}}", pairs.join(","))
}

/// The prompt that a template makes of a record's fields.
fn templated(fields: &Fields, template: &RowTemplate, found: &mut Found) -> Result<Content, Fault> {
    let there = |name: &str| fields.0.iter().any(|(n, raw)| n == name && raw.get() != "null");
    if there("messages")
        && !there("prompt")
        && !template.names().iter().any(|name| name == "messages")
    {
        return Err((
            "bad_field",
            "the record is a conversation (messages), and --template makes prompts of other fields; leave it out".to_string(),
        ));
    }
    found.usable = template.needed().iter().all(|name| there(name));
    let mut values = Vec::with_capacity(fields.0.len());
    for (name, raw) in &fields.0 {
        if values.iter().any(|(n, _)| *n == &**name) {
            return Err(("bad_field", format!("{} is there twice", shown(name))));
        }
        values.push((&**name, value(name, raw)?));
    }
    made(template, &values, found)
}

/// The prompt in the field that `--prompt-field` names: a text, or a conversation in either of two forms.
fn named(
    fields: &Fields,
    name: &str,
    found: &mut Found,
    warnings: &mut Warnings,
) -> Result<Content, Fault> {
    let Some(raw) = fields.get(name)? else { return Err(missing(fields, Some(name))) };
    match raw.get().as_bytes().first() {
        Some(b'"') => {
            found.usable = true;
            let text = fields.text(name)?.unwrap_or_default();
            found.prompt = OriginalPrompt::Text(text.clone());
            prompt(&text)
        }
        Some(b'[') => {
            found.usable = true;
            found.prompt = OriginalPrompt::Messages(raw.get().to_string());
            messages(raw, Extra::Told(warnings))
        }
        _ => Err(("bad_field", format!("{} must be a text or a list of messages", shown(name)))),
    }
}

fn ask(
    fields: &Fields,
    rules: &Rules,
    found: &mut Found,
    warnings: &mut Warnings,
) -> Result<PromptRequest, Fault> {
    let reading = &rules.reading;
    let content = match (&reading.template, &reading.prompt_field) {
        (Some(template), _) => templated(fields, template, found)?,
        (None, Some(name)) => named(fields, name, found, warnings)?,
        (None, None) => usual(fields, found, warnings)?,
    };
    if !reading.carries() && !rules.object {
        for (name, _) in data(fields, rules) {
            warnings.unknown_field(name);
        }
    }
    let mut generation = GenerationFields::default();
    for name in reading.settings() {
        if let Some(value) = fields.value(name)? {
            generation.set(name, &value)?;
        }
    }
    check_turn(&content, &generation)?;
    Ok(PromptRequest { content, generation })
}

/// `prompt` or `messages`.
fn usual(fields: &Fields, found: &mut Found, warnings: &mut Warnings) -> Result<Content, Fault> {
    let prompt_field = fields.get("prompt")?;
    let list = prompt_field.is_some_and(|raw| raw.get().starts_with('['));
    Ok(match (prompt_field, fields.get("messages")?) {
        (Some(_), Some(_)) => {
            found.usable = true;
            if let Ok(Some(text)) = fields.text("prompt") {
                found.prompt = OriginalPrompt::Text(text);
            }
            return Err(("bad_field", "prompt and messages are both there; give one".to_string()));
        }
        (None, None) => return Err(missing(fields, None)),
        // A conversation under the name of prompt, as TRL's data sets have it.
        (Some(raw), None) | (None, Some(raw)) if list || prompt_field.is_none() => {
            found.usable = raw.get().starts_with('[');
            found.prompt = OriginalPrompt::Messages(raw.get().to_string());
            messages(raw, Extra::Told(warnings))?
        }
        (Some(raw), _) | (_, Some(raw)) => {
            found.usable = raw.get().starts_with('"');
            let text = fields.text("prompt")?.unwrap_or_default();
            found.prompt = OriginalPrompt::Text(text.clone());
            prompt(&text)?
        }
    })
}

/// That a last message which is to be continued is the assistant's.
pub(super) fn check_turn(content: &Content, generation: &GenerationFields) -> Result<(), Fault> {
    let bad = |message: &str| Err(("bad_field", message.to_string()));
    if generation.continue_final_message != Some(true) {
        return Ok(());
    }
    if generation.add_generation_prompt == Some(true) {
        return bad("continue_final_message and add_generation_prompt are both true; give one");
    }
    match content {
        Content::Messages(messages)
            if messages
                .last()
                .is_some_and(|m| m.role == "assistant" && !m.content.trim().is_empty()) =>
        {
            Ok(())
        }
        Content::Messages(_) => {
            bad("continue_final_message: the last message is not the assistant's, or is empty")
        }
        _ => bad("continue_final_message: there are no messages"),
    }
}

/// Why an object without `prompt` and `messages` is no record, and what it seems to be.
fn missing(fields: &Fields, asked: Option<&str>) -> Fault {
    let has = |name: &str| {
        asked != Some(name) && fields.0.iter().any(|(n, raw)| n == name && raw.get() != "null")
    };
    let hint = if has("custom_id") && has("body") {
        return (
            "missing_prompt",
            "this is an OpenAI request; give --input-format openai".to_string(),
        );
    } else if has("conversations") {
        "conversations is ShareGPT's form: --prompt-field conversations reads it".to_string()
    } else if has("instruction") && (has("input") || has("output")) {
        "instruction and input are Alpaca's form: --template '{{ instruction }}{% if input is defined and input %}{{ \"\\n\\n\" ~ input }}{% endif %}' reads it".to_string()
    } else if let Some(name) = ["instruction", "question", "text", "query", "input", "content"]
        .into_iter()
        .find(|n| has(n))
    {
        format!("--prompt-field {name} takes its field {name}")
    } else {
        let names: Vec<String> = fields
            .0
            .iter()
            .take(8)
            .map(|(n, _)| shown(&n.chars().take(30).collect::<String>()))
            .collect();
        format!(
            "its fields are {}",
            if names.is_empty() { "none".to_string() } else { names.join(", ") }
        )
    };
    let what = match asked {
        Some(name) => format!("{} is not there", shown(name)),
        None => "neither prompt nor messages is there".to_string(),
    };
    ("missing_prompt", format!("{what}; {hint}"))
}

/// Whether an object is an OpenAI request (`custom_id` and `body`), or a record with a prompt; `None` if it is neither.
pub(super) fn is_openai(text: &str) -> Option<bool> {
    let fields = Fields::of(text).ok()?;
    let has = |name: &str| fields.0.iter().any(|(n, _)| n == name);
    match (has("custom_id") && has("body"), has("prompt") || has("messages")) {
        (true, false) => Some(true),
        (_, true) => Some(false),
        _ => None,
    }
}

/// What becomes of a message's other fields.
pub(super) enum Extra<'a> {
    /// A warning each.
    Told(&'a mut Warnings),
    /// The record is refused, unless they do nothing.
    Refused,
}

impl Extra<'_> {
    /// A field of message `n` besides role and content.
    fn meet(&mut self, n: usize, name: &str, value: &Value) -> Result<(), Fault> {
        match self {
            Extra::Told(warnings) => warnings.unknown_field(&format!("messages.{name}")),
            Extra::Refused => {
                let nothing = value.is_null()
                    || (name == "tool_calls" && value.as_array().is_some_and(Vec::is_empty));
                if !nothing && !matches!(name, "name" | "refusal") {
                    let name = shown(&name.chars().take(60).collect::<String>());
                    return Err((
                        "unsupported",
                        format!("messages[{n}].{name}: this field is not supported"),
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Roles that chat templates know.
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// What ShareGPT's `from` means.
fn role_of(from: &str) -> Option<&'static str> {
    match from {
        "human" | "user" => Some("user"),
        "gpt" | "assistant" | "chatgpt" | "model" => Some("assistant"),
        "system" => Some("system"),
        "tool" | "function" | "observation" => Some("tool"),
        _ => None,
    }
}

/// A conversation: an array of objects with `role` and `content`, or ShareGPT's `from` and `value`.
pub(super) fn messages(raw: &RawValue, mut extra: Extra) -> Result<Content, Fault> {
    let bad = |what: String| ("bad_field", format!("messages{what}"));
    let Value::Array(items) = value("messages", raw)? else {
        return Err(bad(" must be an array".to_string()));
    };
    let mut messages = Vec::with_capacity(items.len());
    for (n, item) in items.iter().enumerate() {
        let Value::Object(item) = item else { return Err(bad(format!("[{n}] must be an object"))) };
        if !item.contains_key("role")
            && matches!(extra, Extra::Told(_))
            && let Some(from) = item.get("from").and_then(Value::as_str)
        {
            let role = role_of(from)
                .ok_or_else(|| bad(format!("[{n}].from must be human, gpt, system or tool")))?
                .to_string();
            let text = item
                .get("value")
                .and_then(Value::as_str)
                .ok_or_else(|| bad(format!("[{n}].value must be a string")))?;
            messages.push(Message { role, content: text.to_string() });
            continue;
        }
        let role = match item.get("role").and_then(Value::as_str) {
            // OpenAI's newer name for it; no template but gpt-oss's knows it.
            Some("developer") => "system".to_string(),
            Some(role) if ROLES.contains(&role) => role.to_string(),
            _ => return Err(bad(format!("[{n}].role must be one of {}", ROLES.join(", ")))),
        };
        for (name, value) in item.iter().filter(|(k, _)| !matches!(k.as_str(), "role" | "content"))
        {
            extra.meet(n, name, value)?;
        }
        let content = match item.get("content") {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => parts
                .iter()
                .map(|part| {
                    part.get("text").filter(|_| part["type"] == "text").and_then(Value::as_str)
                })
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| {
                    bad(format!("[{n}].content must be text; other parts are not supported"))
                })?
                .join("\n"),
            _ => return Err(bad(format!("[{n}].content must be a string"))),
        };
        messages.push(Message { role, content });
    }
    if messages.iter().all(|m| m.content.is_empty()) {
        return Err(("empty_prompt", "the messages are empty".to_string()));
    }
    Ok(Content::Messages(messages))
}

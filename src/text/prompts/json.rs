//! A JSON line to a record. Names are kept in order with their exact text, so that a number as an id is neither rounded nor mixed up
//! with another, and a field that is there twice is seen.

use super::fault::Fault;
use super::fields::{self, GenerationFields};
use super::record::{Asked, Given, Parsed, Warnings, prompt};
use crate::text::{Content, Message};
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
            ("bad_json", format!("not a JSON object: {} at column {}", shown(what), e.column()))
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
fn id(raw: &RawValue) -> Result<(String, bool), Fault> {
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'"') => match value("id", raw)? {
            Value::String(id) => Ok((id, false)),
            _ => Err(("bad_field", "id is no valid text".to_string())),
        },
        Some(b'-' | b'0'..=b'9') => Ok((text.to_string(), true)),
        _ => Err(("bad_field", "id must be a string or a number".to_string())),
    }
}

/// A line of a JSONL file.
pub(super) fn read(text: &str, warnings: &mut Warnings) -> Parsed {
    let fields = match Fields::of(text) {
        Ok(fields) => fields,
        Err((code, message)) => return Parsed::bad(code, message),
    };
    let (id, id_fault) = match fields.get("id").and_then(|raw| raw.map(id).transpose()) {
        Ok(id) => (id, None),
        Err(fault) => (None, Some(fault)),
    };
    let mut found = Found::default();
    let asked = ask(&fields, &mut found, warnings);
    let id_is_number = id.as_ref().is_some_and(|(_, number)| *number);
    Parsed {
        id: id.map(|(text, _)| text),
        id_is_number,
        given: found.given,
        carried: Vec::new(),
        asked: id_fault.map_or(asked, Err),
        usable: found.usable,
    }
}

/// What could be read of a record so far, for the line of an error too.
pub(super) struct Found {
    pub given: Given,
    /// A prompt is there.
    pub usable: bool,
}

impl Default for Found {
    fn default() -> Self {
        Found { given: Given::Nothing, usable: false }
    }
}

fn ask(fields: &Fields, found: &mut Found, warnings: &mut Warnings) -> Result<Asked, Fault> {
    let prompt_field = fields.get("prompt")?;
    let list = prompt_field.is_some_and(|raw| raw.get().starts_with('['));
    let content = match (prompt_field, fields.get("messages")?) {
        (Some(_), Some(_)) => {
            found.usable = true;
            if let Ok(Some(text)) = fields.text("prompt") {
                found.given = Given::Prompt(text);
            }
            return Err(("bad_field", "prompt and messages are both there; give one".to_string()));
        }
        (None, None) => return Err(missing(fields)),
        // A conversation under the name of prompt, as TRL's data sets have it.
        (Some(raw), None) | (None, Some(raw)) if list || prompt_field.is_none() => {
            found.usable = raw.get().starts_with('[');
            found.given = Given::Messages(raw.get().to_string());
            messages(raw, Extra::Told(warnings))?
        }
        (Some(raw), _) | (_, Some(raw)) => {
            found.usable = raw.get().starts_with('"');
            let text = fields.text("prompt")?.unwrap_or_default();
            found.given = Given::Prompt(text.clone());
            prompt(&text)?
        }
    };
    for (name, _) in &fields.0 {
        if !matches!(&**name, "id" | "prompt" | "messages") && !fields::NAMES.contains(&&**name) {
            warnings.unknown_field(name);
        }
    }
    let mut generation = GenerationFields::default();
    for name in fields::NAMES {
        if let Some(value) = fields.value(name)? {
            generation.set(name, &value)?;
        }
    }
    check_turn(&content, &generation)?;
    Ok(Asked { content, generation })
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
        Content::Messages(messages) if messages.last().is_some_and(|m| m.role == "assistant" && !m.content.trim().is_empty()) => {
            Ok(())
        }
        Content::Messages(_) => bad("continue_final_message: the last message is not the assistant's, or is empty"),
        _ => bad("continue_final_message: there are no messages"),
    }
}

/// Why an object without `prompt` and `messages` is no record, and what it seems to be.
fn missing(fields: &Fields) -> Fault {
    let has = |name: &str| fields.0.iter().any(|(n, _)| n == name);
    let hint = if has("custom_id") && has("body") {
        return ("missing_prompt", "this is an OpenAI request; give --input-format openai".to_string());
    } else if has("conversations") {
        "conversations is ShareGPT's form: write it as \"messages\": [{\"role\": \"user\", \"content\": \"…\"}]".to_string()
    } else if has("instruction") && (has("input") || has("output")) {
        "instruction and input are Alpaca's form: join them to one field prompt".to_string()
    } else if let Some(name) = ["instruction", "question", "text", "query", "input", "content"].into_iter().find(|n| has(n)) {
        format!("call its field {name} prompt")
    } else {
        let names: Vec<String> = fields.0.iter().take(8).map(|(n, _)| shown(&n.chars().take(30).collect::<String>())).collect();
        format!("its fields are {}", if names.is_empty() { "none".to_string() } else { names.join(", ") })
    };
    ("missing_prompt", format!("neither prompt nor messages is there; {hint}"))
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
                let nothing = value.is_null() || (name == "tool_calls" && value.as_array().is_some_and(Vec::is_empty));
                if !nothing && !matches!(name, "name" | "refusal") {
                    let name = shown(&name.chars().take(60).collect::<String>());
                    return Err(("unsupported", format!("messages[{n}].{name}: this field is not supported")));
                }
            }
        }
        Ok(())
    }
}

/// Roles that chat templates know.
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// A conversation: an array of objects with `role` and `content`.
pub(super) fn messages(raw: &RawValue, mut extra: Extra) -> Result<Content, Fault> {
    let bad = |what: String| ("bad_field", format!("messages{what}"));
    let Value::Array(items) = value("messages", raw)? else { return Err(bad(" must be an array".to_string())) };
    let mut messages = Vec::with_capacity(items.len());
    for (n, item) in items.iter().enumerate() {
        let Value::Object(item) = item else { return Err(bad(format!("[{n}] must be an object"))) };
        let role = match item.get("role").and_then(Value::as_str) {
            // OpenAI's newer name for it; no template but gpt-oss's knows it.
            Some("developer") => "system".to_string(),
            Some(role) if ROLES.contains(&role) => role.to_string(),
            _ => return Err(bad(format!("[{n}].role must be one of {}", ROLES.join(", ")))),
        };
        for (name, value) in item.iter().filter(|(k, _)| !matches!(k.as_str(), "role" | "content")) {
            extra.meet(n, name, value)?;
        }
        let content = match item.get("content") {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => parts
                .iter()
                .map(|part| part.get("text").filter(|_| part["type"] == "text").and_then(Value::as_str))
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| bad(format!("[{n}].content must be text; other parts are not supported")))?
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

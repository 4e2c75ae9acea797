//! A JSON line to a record. Names are kept in order with their exact text, so that a number as an id is neither rounded nor mixed up
//! with another, and a field that is there twice is seen.

use super::fields::{self, GenerationFields};
use super::record::{Asked, Fault, Given, Parsed, Warnings, prompt};
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
        ("bad_field", format!("{name}: {}", shown(message.split(" at line ").next().unwrap_or(&message))))
    })
}

/// A string, or a number as it is written.
fn id(raw: &RawValue) -> Result<String, Fault> {
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'"') => serde_json::from_str(text).map_err(|_| ("bad_field", "id is no valid text".to_string())),
        Some(b'-' | b'0'..=b'9') => Ok(text.to_string()),
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
    let mut given = Given::Nothing;
    let asked = ask(&fields, &mut given, warnings);
    Parsed { id, given, carried: Vec::new(), openai: None, asked: id_fault.map_or(asked, Err) }
}

fn ask(fields: &Fields, given: &mut Given, warnings: &mut Warnings) -> Result<Asked, Fault> {
    for (name, _) in &fields.0 {
        if !matches!(&**name, "id" | "prompt" | "messages") && !fields::NAMES.contains(&&**name) {
            warnings.unknown_field(name);
        }
    }
    let content = match (fields.get("prompt")?, fields.get("messages")?) {
        (Some(_), Some(_)) => return Err(("bad_field", "prompt and messages are both there; give one".to_string())),
        (None, None) if fields.get("custom_id")?.is_some() && fields.get("body")?.is_some() => {
            return Err(("missing_prompt", "this is an OpenAI request; give --input-format openai".to_string()));
        }
        (None, None) => return Err(("missing_prompt", "neither prompt nor messages is there".to_string())),
        (Some(_), None) => {
            let text = fields.text("prompt")?.unwrap_or_default();
            *given = Given::Prompt(text.clone());
            prompt(&text)?
        }
        (None, Some(raw)) => {
            *given = Given::Messages(raw.to_owned());
            messages(raw, warnings)?
        }
    };
    let mut generation = GenerationFields::default();
    for name in fields::NAMES {
        if let Some(value) = fields.value(name)? {
            generation.set(name, &value)?;
        }
    }
    Ok(Asked { content, generation })
}

/// Roles that chat templates know.
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// A conversation: an array of objects with `role` and `content`.
pub(super) fn messages(raw: &RawValue, warnings: &mut Warnings) -> Result<Content, Fault> {
    let bad = |what: String| ("bad_field", format!("messages{what}"));
    let Value::Array(items) = value("messages", raw)? else { return Err(bad(" must be an array".to_string())) };
    let mut messages = Vec::with_capacity(items.len());
    for (n, item) in items.iter().enumerate() {
        let Value::Object(item) = item else { return Err(bad(format!("[{n}] must be an object"))) };
        let role = match item.get("role").and_then(Value::as_str) {
            Some(role) if ROLES.contains(&role) => role.to_string(),
            _ => return Err(bad(format!("[{n}].role must be one of {}", ROLES.join(", ")))),
        };
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
        for name in item.keys().filter(|k| !matches!(k.as_str(), "role" | "content")) {
            warnings.unknown_field(&format!("messages.{name}"));
        }
        messages.push(Message { role, content });
    }
    if messages.iter().all(|m| m.content.is_empty()) {
        return Err(("empty_prompt", "the messages are empty".to_string()));
    }
    Ok(Content::Messages(messages))
}

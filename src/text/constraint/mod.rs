//! Answers that must have a form: a JSON schema, any JSON object, a regular expression, a Lark grammar, one of several texts.
//! In: a [`Constraint`] as it was asked for. Out: a [`Grammar`], compiled once for each content, whose [`Matching`] says at every place
//! of an answer which tokens may come next and which one must. Grammars are computed by the crate `llguidance`, within limits: a hostile
//! one ends in an error.

mod grammar;
mod schema;

pub use grammar::{Grammar, Grammars, Mask, Matching, Words};

use serde_json::Value;

/// The form that an answer must have.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize)]
pub enum Constraint {
    /// The text of a JSON schema.
    Schema(String),
    /// Any JSON object.
    Object,
    /// A regular expression that the whole answer matches.
    Regex(String),
    /// The text of a Lark grammar.
    Lark(String),
    /// One of these texts, generated like any answer.
    OneOf(Vec<String>),
}

impl Constraint {
    /// Whether the answer is JSON.
    pub fn is_json(&self) -> bool {
        matches!(self, Constraint::Schema(_) | Constraint::Object)
    }

    /// A schema given as a value: an object, or its text.
    pub fn schema(value: &Value) -> Option<Constraint> {
        match value {
            Value::String(text) => Some(Constraint::Schema(text.clone())),
            Value::Object(_) | Value::Bool(_) => Some(Constraint::Schema(value.to_string())),
            _ => None,
        }
    }

    /// OpenAI's `response_format`; `None` for plain text. The error says what it must be.
    pub fn response_format(value: &Value) -> Result<Option<Constraint>, String> {
        const KINDS: &str = "an object whose 'type' is text, json_object or json_schema";
        let fields = value.as_object().ok_or_else(|| format!("must be {KINDS}"))?;
        let only = |names: &[&str]| match fields.keys().find(|name| !names.contains(&name.as_str()))
        {
            Some(name) => Err(format!(
                "has the field '{}', which is not supported",
                crate::units::shown(name)
            )),
            None => Ok(()),
        };
        match fields.get("type").and_then(Value::as_str) {
            Some("text") => only(&["type"]).map(|()| None),
            Some("json_object") => only(&["type"]).map(|()| Some(Constraint::Object)),
            Some("json_schema") => {
                only(&["type", "json_schema"])?;
                // `strict` is what happens here anyway; name and description are for people.
                let inner = fields.get("json_schema").and_then(Value::as_object);
                let known = |name: &String| {
                    ["name", "description", "schema", "strict"].contains(&name.as_str())
                };
                if let Some(name) = inner.and_then(|inner| inner.keys().find(|name| !known(name))) {
                    return Err(format!(
                        "json_schema has the field '{}', which is not supported",
                        crate::units::shown(name)
                    ));
                }
                match inner
                    .and_then(|inner| inner.get("schema"))
                    .filter(|schema| !schema.is_string())
                {
                    Some(schema) => Constraint::schema(schema)
                        .map(Some)
                        .ok_or("json_schema.schema must be an object".into()),
                    None => Err("json_schema.schema is missing or no object".into()),
                }
            }
            _ => Err(format!("must be {KINDS}")),
        }
    }

    /// Names of the properties that have a column in CSV output: those of the schema's object.
    pub fn properties(&self) -> Vec<String> {
        match self {
            Constraint::Schema(text) => schema::properties(text),
            _ => Vec::new(),
        }
    }

    /// That the schema can be enforced, without a model; the grammar's limits are checked when it is compiled.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Constraint::Schema(text) => schema::prepare(text).map(drop),
            _ => Ok(()),
        }
    }
}

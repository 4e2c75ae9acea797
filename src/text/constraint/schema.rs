//! JSON schemas before they become grammars: what is not enforced is refused by name, references stay inside the schema, the depth is
//! bounded, calendar formats become patterns that know leap years, and objects that list their properties have no others.
// Untrusted input.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

use crate::units::shown;
use serde_json::{Map, Value};
use std::collections::HashSet;

/// Keywords that the grammar enforces.
const ENFORCED: [&str; 27] = [
    "anyOf",
    "oneOf",
    "allOf",
    "$ref",
    "const",
    "enum",
    "type",
    "items",
    "additionalItems",
    "prefixItems",
    "minItems",
    "maxItems",
    "properties",
    "additionalProperties",
    "patternProperties",
    "required",
    "minProperties",
    "maxProperties",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
];

/// Keywords that say something to people or name a place, and allow or forbid no value.
const ANNOTATIONS: [&str; 18] = [
    "$anchor",
    "$defs",
    "definitions",
    "$schema",
    "$comment",
    "title",
    "description",
    "default",
    "readOnly",
    "writeOnly",
    "examples",
    "example",
    "deprecated",
    "contentMediaType",
    "contentEncoding",
    "discriminator",
    "$id",
    "id",
];

/// Formats that the grammar enforces.
const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// Levels of schemas inside schemas, references followed.
const MAX_DEPTH: usize = 128;
/// Bytes of a schema.
const MAX_LENGTH: usize = 1 << 20;
/// Whole numbers beyond this are not kept exactly.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// A day of the proleptic Gregorian calendar, RFC 3339.
const DATE: &str = concat!(
    "([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))",
    "|([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)"
);
/// A time of day with its zone, RFC 3339, without leap seconds: which minutes have one is no matter of form.
const TIME: &str =
    "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])";

/// Reads a schema's text and makes it ready to compile. The error is one line that names the place and the keyword.
pub(super) fn prepare(text: &str) -> Result<Value, String> {
    if text.len() > MAX_LENGTH {
        return Err(format!("the schema has {} bytes; the limit is {MAX_LENGTH}", text.len()));
    }
    let mut schema: Value =
        serde_json::from_str(text).map_err(|e| format!("the schema is not JSON: {e}"))?;
    if !schema.is_object() && !schema.is_boolean() {
        return Err(
            "a schema is an object, such as {\"type\": \"object\", \"properties\": {…}}".into()
        );
    }
    let mut check = Check { root: &schema, followed: HashSet::new(), combines: false };
    check.schema(&schema, "#", 0)?;
    let close = !check.combines;
    let mut left = MAX_DEPTH;
    rewrite(&mut schema, close, &mut left);
    if let Value::Object(fields) = &mut schema {
        // The draft that the grammar's reader knows best; the walk has refused what another draft reads otherwise.
        for name in ["$schema", "$id", "id"] {
            fields.shift_remove(name);
        }
        // Its own options, in place of any that the schema's author wrote: compact white space.
        let options = serde_json::json!({"whitespace_flexible": false, "item_separator": ",", "key_separator": ":"});
        fields.insert("x-guidance".into(), options);
    }
    Ok(schema)
}

/// Names of the properties that a schema's objects at the top may have, in their order: those that have a column in CSV output.
pub(super) fn properties(text: &str) -> Vec<String> {
    let schema: Value = serde_json::from_str(text).unwrap_or_default();
    let mut at = Some(&schema);
    for _ in 0..MAX_DEPTH {
        let Some(fields) = at.and_then(Value::as_object) else { break };
        if let Some(Value::Object(properties)) = fields.get("properties") {
            return properties.keys().cloned().collect();
        }
        at = match fields.get("$ref").and_then(Value::as_str) {
            Some(reference) => target(&schema, reference),
            None => fields
                .get("allOf")
                .and_then(Value::as_array)
                .filter(|all| all.len() == 1)
                .and_then(|all| all.first()),
        };
    }
    Vec::new()
}

/// What a reference within the schema stands for.
fn target<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    let fragment = reference.strip_prefix('#')?;
    if fragment.is_empty() {
        return Some(root);
    }
    if fragment.starts_with('/') {
        return root.pointer(&percent_decoded(fragment));
    }
    anchor(root, fragment, MAX_DEPTH)
}

fn anchor<'a>(value: &'a Value, name: &str, left: usize) -> Option<&'a Value> {
    let left = left.checked_sub(1)?;
    match value {
        Value::Object(fields) if fields.get("$anchor").and_then(Value::as_str) == Some(name) => {
            Some(value)
        }
        Value::Object(fields) => fields.values().find_map(|v| anchor(v, name, left)),
        Value::Array(many) => many.iter().find_map(|v| anchor(v, name, left)),
        _ => None,
    }
}

fn percent_decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes: Vec<u8> = parts.next().unwrap_or_default().bytes().collect();
    for part in parts {
        match part.get(..2).and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend(part.bytes().skip(2));
            }
            None => {
                bytes.push(b'%');
                bytes.extend(part.bytes());
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The walk that refuses.
struct Check<'a> {
    root: &'a Value,
    /// References that were followed.
    followed: HashSet<String>,
    /// Some value must satisfy several schemas of objects at once, so that none of them may be closed.
    combines: bool,
}

/// Keywords about an object's properties.
const OBJECT: [&str; 6] = [
    "properties",
    "patternProperties",
    "additionalProperties",
    "required",
    "minProperties",
    "maxProperties",
];

impl Check<'_> {
    fn schema(&mut self, schema: &Value, path: &str, depth: usize) -> Result<(), String> {
        let at = || shown(&path.chars().take(200).collect::<String>()).to_string();
        if depth > MAX_DEPTH {
            return Err(format!(
                "{}: schemas lie more than {MAX_DEPTH} deep in one another, references followed",
                at()
            ));
        }
        let fields = match schema {
            Value::Bool(_) => return Ok(()),
            Value::Object(fields) => fields,
            _ => return Err(format!("{}: a schema is an object, true or false", at())),
        };
        for (name, value) in fields {
            let short = || shown(&name.chars().take(60).collect::<String>()).to_string();
            let idle = matches!(
                (name.as_str(), value),
                ("uniqueItems", Value::Bool(false))
                    | ("unevaluatedProperties" | "unevaluatedItems", Value::Bool(true))
            );
            let known = ENFORCED.contains(&name.as_str()) || ANNOTATIONS.contains(&name.as_str());
            if !known && !idle && (!name.starts_with("x-") || name == "x-guidance") {
                return Err(format!(
                    "{}: '{}' is not enforced; leave it out, or say it otherwise",
                    at(),
                    short()
                ));
            }
            if name == "$id" && depth > 0 {
                return Err(format!(
                    "{}: '$id' inside a schema is not supported; leave it out",
                    at()
                ));
            }
            self.keyword(name, value, fields, path, depth)?;
        }
        let branches = |name: &str| fields.get(name).and_then(Value::as_array).map_or(0, Vec::len);
        let joined = ["anyOf", "oneOf", "allOf", "$ref"]
            .iter()
            .filter(|name| fields.contains_key(**name))
            .count();
        let own = OBJECT.iter().any(|name| fields.contains_key(*name));
        self.combines |= branches("allOf") > 1 || joined > 1 || (joined > 0 && own);
        Ok(())
    }

    fn keyword(
        &mut self,
        name: &str,
        value: &Value,
        fields: &Map<String, Value>,
        path: &str,
        depth: usize,
    ) -> Result<(), String> {
        let refuse = |what: String| {
            Err(format!("{}: {what}", shown(&path.chars().take(200).collect::<String>())))
        };
        match (name, value) {
            ("anyOf" | "oneOf" | "allOf" | "prefixItems" | "items", Value::Array(many)) => {
                for (i, schema) in many.iter().enumerate() {
                    self.schema(schema, &format!("{path}/{name}/{i}"), depth + 1)?;
                }
            }
            ("anyOf" | "oneOf" | "allOf" | "prefixItems", _) => {
                return refuse(format!("'{name}' must be an array"));
            }
            ("items" | "additionalItems" | "additionalProperties", schema) => {
                self.schema(schema, &format!("{path}/{name}"), depth + 1)?;
            }
            ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(many)) => {
                for (key, schema) in many {
                    self.schema(schema, &format!("{path}/{name}/{key}"), depth + 1)?;
                }
            }
            ("properties" | "patternProperties" | "$defs" | "definitions", _) => {
                return refuse(format!("'{name}' must be an object"));
            }
            ("$ref", Value::String(reference)) => {
                let short = shown(&reference.chars().take(100).collect::<String>()).to_string();
                if !reference.starts_with('#') {
                    return refuse(format!(
                        "'$ref' to '{short}': only references within the schema ('#/$defs/…') are followed"
                    ));
                }
                let Some(schema) = target(self.root, reference) else {
                    return refuse(format!("'$ref' to '{short}', which is not in the schema"));
                };
                if self.followed.insert(reference.clone()) {
                    self.schema(schema, reference, depth + 1)?;
                }
            }
            ("$ref", _) => return refuse("'$ref' must be a string".into()),
            ("format", Value::String(format)) if FORMATS.contains(&format.as_str()) => {}
            ("format", Value::String(format)) => {
                let short = shown(&format.chars().take(60).collect::<String>()).to_string();
                return refuse(format!(
                    "'format' '{short}' is not enforced; known are {}",
                    FORMATS.join(", ")
                ));
            }
            ("format", _) => return refuse("'format' must be a string".into()),
            ("const", value) => {
                return exact(value).map_or_else(|what| refuse(format!("'const' {what}")), Ok);
            }
            ("enum", Value::Array(many)) if !many.is_empty() => {
                return many
                    .iter()
                    .try_for_each(exact)
                    .map_or_else(|what| refuse(format!("'enum' {what}")), Ok);
            }
            ("enum", _) => return refuse("'enum' must be an array that is not empty".into()),
            // A name that is written twice counts once.
            ("minProperties", Value::Number(n)) if n.as_f64().is_some_and(|n| n > 1.0) => {
                let required = fields.get("required").and_then(Value::as_array).map_or(0, Vec::len);
                if n.as_f64().is_some_and(|n| n > required as f64) {
                    return refuse(
                        "'minProperties' above the number of 'required' properties is not enforced"
                            .into(),
                    );
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// That a constant's numbers are those that the grammar will allow.
fn exact(value: &Value) -> Result<(), String> {
    match value {
        Value::Number(n)
            if n.as_f64().is_none_or(|x| x.abs() > EXACT)
                || n.as_i64().is_some_and(|n| n.unsigned_abs() > 1 << 53) =>
        {
            Err(format!("has the number {n}: numbers beyond 2^53 are not kept exactly"))
        }
        Value::Array(many) => many.iter().try_for_each(exact),
        Value::Object(fields) => fields.values().try_for_each(exact),
        _ => Ok(()),
    }
}

/// Keywords whose value is a count.
const COUNTS: [&str; 6] =
    ["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"];

/// Counts that are written with a fraction of zero, as integers.
fn whole_counts(fields: &mut Map<String, Value>) {
    for name in COUNTS {
        if let Some(value) = fields.get_mut(name)
            && let Some(count) = value
                .as_f64()
                .filter(|n| value.is_f64() && n.fract() == 0.0 && (0.0..EXACT).contains(n))
        {
            *value = Value::from(count as u64);
        }
    }
}

/// Closes objects that list their properties, and spells out calendar formats. The walk before has bounded the depth.
fn rewrite(schema: &mut Value, close: bool, left: &mut usize) {
    let Value::Object(fields) = schema else { return };
    if *left == 0 {
        return;
    }
    *left -= 1;
    for (name, value) in fields.iter_mut() {
        match (name.as_str(), value) {
            ("anyOf" | "oneOf" | "allOf" | "prefixItems" | "items", Value::Array(many)) => {
                many.iter_mut().for_each(|schema| rewrite(schema, close, left));
            }
            ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(many)) => {
                many.values_mut().for_each(|schema| rewrite(schema, close, left));
            }
            ("items" | "additionalItems" | "additionalProperties", schema) => {
                rewrite(schema, close, left)
            }
            _ => {}
        }
    }
    *left += 1;
    whole_counts(fields);
    for name in ["uniqueItems", "unevaluatedProperties", "unevaluatedItems"] {
        fields.shift_remove(name);
    }
    let listed = fields.get("properties").and_then(Value::as_object);
    let required = fields.get("required").and_then(Value::as_array);
    let all_listed = required.is_none_or(|names| {
        names.iter().all(|name| {
            name.as_str().is_some_and(|name| listed.is_some_and(|listed| listed.contains_key(name)))
        })
    });
    if close && listed.is_some() && all_listed && !fields.contains_key("additionalProperties") {
        fields.insert("additionalProperties".into(), Value::Bool(false));
    }
    // Whoever lists properties or items means an object or an array; the schema alone would allow a number, too.
    let open = ["type", "const", "enum", "anyOf", "oneOf", "allOf", "$ref"]
        .iter()
        .all(|name| !fields.contains_key(*name));
    if close && open {
        let kind = match () {
            _ if fields.contains_key("properties") || fields.contains_key("required") => {
                Some("object")
            }
            _ if fields.contains_key("items") || fields.contains_key("prefixItems") => {
                Some("array")
            }
            _ => None,
        };
        kind.into_iter()
            .for_each(|kind| drop(fields.insert("type".into(), Value::String(kind.into()))));
    }
    let pattern = match fields.get("format").and_then(Value::as_str) {
        Some("date") => format!("^{DATE}$"),
        Some("time") => format!("^{TIME}$"),
        Some("date-time") => format!("^{DATE}T{TIME}$"),
        _ => return,
    };
    fields.shift_remove("format");
    if !fields.contains_key("pattern") {
        fields.insert("pattern".into(), Value::String(pattern));
        return;
    }
    let also = serde_json::json!({"pattern": pattern});
    match fields.get_mut("allOf") {
        Some(Value::Array(all)) => all.push(also),
        _ => {
            fields.insert("allOf".into(), Value::Array(vec![also]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_enforced_is_refused_by_name_and_place() {
        for (schema, words) in [
            (r#"{"type": "array", "uniqueItems": true}"#, vec!["#", "'uniqueItems'"]),
            (r#"{"properties": {"a": {"not": {}}}}"#, vec!["#/properties/a", "'not'"]),
            (r#"{"if": true, "then": true}"#, vec!["'if'"]),
            (r#"{"properties": {"a": {"maxlength": 3}}}"#, vec!["'maxlength'"]),
            (r#"{"properties": {"a": {"nullable": true}}}"#, vec!["'nullable'"]),
            (
                r##"{"$ref": "https://example.org/a.json"}"##,
                vec!["'$ref'", "example.org", "within"],
            ),
            (r##"{"$ref": "#/$defs/a"}"##, vec!["'$ref'", "#/$defs/a"]),
            (r#"{"type": "string", "format": "iri"}"#, vec!["'format'", "'iri'", "date-time"]),
            (r#"{"const": 9007199254740993}"#, vec!["'const'", "9007199254740993"]),
            (r#"{"enum": []}"#, vec!["'enum'"]),
            (r#"{"x-guidance": {"lenient": true}}"#, vec!["'x-guidance'"]),
            (r#"{"minProperties": 2}"#, vec!["'minProperties'"]),
            (r#"{"properties": []}"#, vec!["'properties'"]),
            (r#"{"items": 3}"#, vec!["#/items"]),
            ("[1]", vec!["object"]),
            ("{", vec!["not JSON"]),
        ] {
            let error = prepare(schema).unwrap_err();
            assert!(
                words.iter().all(|word| error.contains(word)) && !error.contains('\n'),
                "{schema}: {error}"
            );
        }
        for fine in [
            r#"{"type": "array", "uniqueItems": false, "description": "x", "x-order": 1}"#,
            r#"{"type": "array", "maxItems": 2.0}"#,
            r##"{"$defs": {"a": {"type": "string"}}, "$ref": "#/$defs/a"}"##,
            r##"{"$defs": {"a b": {"type": "string"}}, "$ref": "#/$defs/a%20b"}"##,
            r##"{"properties": {"next": {"$ref": "#"}}}"##,
            "true",
        ] {
            prepare(fine).unwrap_or_else(|e| panic!("{fine}: {e}"));
        }
    }

    #[test]
    fn a_schema_too_deep_or_too_long_is_refused_and_references_count_as_depth() {
        let deep = |n: usize| format!("{}true{}", r#"{"items":"#.repeat(n), "}".repeat(n));
        assert!(prepare(&deep(100)).is_ok());
        assert!(prepare(&deep(140)).is_err(), "JSON's own limit");
        let chain = |n: usize| {
            let defs: serde_json::Map<String, Value> = (0..n)
                .map(|i| {
                    (
                        format!("d{i}"),
                        serde_json::json!({"items": {"$ref": format!("#/$defs/d{}", i + 1)}}),
                    )
                })
                .chain([(format!("d{n}"), Value::Bool(true))])
                .collect();
            serde_json::json!({"$ref": "#/$defs/d0", "$defs": defs}).to_string()
        };
        assert!(prepare(&chain(30)).is_ok());
        assert!(prepare(&chain(20_000)).unwrap_err().contains("deep"));
        assert!(
            prepare(&format!("{{\"title\": \"{}\"}}", "x".repeat(1 << 20)))
                .unwrap_err()
                .contains("bytes")
        );
    }

    #[test]
    fn objects_that_list_their_properties_are_closed_unless_several_schemas_meet_in_one_value() {
        let closed =
            |schema: &str| prepare(schema).unwrap()["additionalProperties"] == Value::Bool(false);
        assert!(closed(r#"{"properties": {"a": true}}"#));
        assert!(!closed(
            r#"{"properties": {"a": true}, "additionalProperties": {"type": "string"}}"#
        ));
        assert!(!closed(r#"{"properties": {"a": true}, "required": ["b"]}"#));
        assert!(!closed(r#"{"type": "object"}"#));
        assert_eq!(prepare(r#"{"properties": {"a": true}}"#).unwrap()["type"], "object");
        assert_eq!(prepare(r#"{"items": true}"#).unwrap()["type"], "array");
        assert!(!closed(r#"{"properties": {"a": true}, "allOf": [{"properties": {"b": true}}]}"#));
        assert_eq!(
            properties(
                r##"{"$ref": "#/$defs/x", "$defs": {"x": {"properties": {"b": 1, "a": 2}}}}"##
            ),
            ["b", "a"]
        );
    }
}

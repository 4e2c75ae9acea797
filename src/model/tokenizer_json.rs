//! `tokenizer.json` to the data of a tokenizer. In: the file's bytes. Out: what [`Raw`] checks, and what the file says about BOS. The file
//! never reaches the `tokenizers` crate, whose reader can be made to abort the process. BPE over bytes or characters is read, with the
//! normalizers, pre-tokenizers and decoders that published models have; whatever else the file asks for is refused by name.
//! Over 500 lines: one reader, which refuses by name what it does not know.
// Untrusted input.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use super::pretokenizers::{Cut, GPT2};
use super::vocabulary::{
    Field, MAX_REPLACEMENT, Match, Normalizer, Raw, RawModel, SPACE, TokenKind, TokenizerSpec,
    Whole, byte_of,
};
use crate::units::{TokenId, shown};
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;

/// Most bytes of a pattern; the longest published ones have some 500.
const MAX_PATTERN: usize = 1 << 14;
/// Most steps of a sequence of normalizers, pre-tokenizers or decoders; published files have at most 8.
const MAX_STEPS: usize = 64;
/// Times that a normalizer may lengthen a text; a record of 8 MiB becomes 528 MiB at most. Real files triple (a space becomes `▁`).
const MAX_GROWTH: usize = 66;

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    vocab: Value,
    #[serde(default)]
    merges: Vec<Value>,
    #[serde(default)]
    dropout: Value,
    #[serde(default)]
    continuing_subword_prefix: Value,
    #[serde(default)]
    end_of_word_suffix: Value,
    unk_token: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    single_word: bool,
    normalized: Option<bool>,
}

/// What the file says.
pub(super) struct Read {
    /// Not yet checked; BOS and the ends are to be filled in.
    pub(super) raw: Raw,
    /// The token that the post-processor puts in front of a text.
    pub(super) first: Option<String>,
}

/// Reads the file; errors name the field.
pub(super) fn read(json: &[u8]) -> Result<Read, String> {
    let file: File = serde_json::from_slice(json).map_err(|e| shown(&e.to_string()))?;
    let model = &file.model;
    // Files written before 2021 have no type.
    if !matches!(model.kind.as_deref(), Some("BPE") | None) {
        return Err(format!(
            "model: '{}' is not supported; only BPE is",
            shown(model.kind.as_deref().unwrap_or_default())
        ));
    }
    for (field, value) in [
        ("dropout", &model.dropout),
        ("continuing_subword_prefix", &model.continuing_subword_prefix),
        ("end_of_word_suffix", &model.end_of_word_suffix),
    ] {
        if !value.is_null() && value != "" {
            return Err(format!("model.{field}: only null is supported"));
        }
    }
    let mut spec = tokens(&file)?;
    if let Some(text) = &model.unk_token {
        let id = spec.tokens.iter().position(|t| t == text);
        let id = id.ok_or_else(|| format!("model.unk_token: '{}' is not a token", shown(text)))?;
        spec.unknown = Some(id as TokenId);
    }
    normalizers(&file.normalizer, &mut spec.normalizers)?;
    let byte_level = pre_tokenizers(&file.pre_tokenizer, &mut spec)?;
    decoders(&file.decoder, byte_level, &mut spec)?;
    // A token of the user's is looked for in the text as it stands, which is right only if normalizing it changes nothing.
    for added in file.added_tokens.iter().filter(|a| !a.special && a.normalized.unwrap_or(true)) {
        let changed = spec.normalizers.iter().any(|n| match n {
            Normalizer::Prepend { .. } => !file.normalizer.is_null() && prepends(&file.normalizer),
            Normalizer::Replace { from, .. } => {
                !file.normalizer.is_null() && added.content.contains(from.as_str())
            }
            Normalizer::Lowercase => added.content.chars().any(char::is_uppercase),
            Normalizer::Nfc | Normalizer::Nfkc => !added.content.is_ascii(),
            Normalizer::Strip { .. } | Normalizer::OneSpace => {
                added.content.contains(char::is_whitespace)
            }
        });
        if changed {
            return Err(format!(
                "added_tokens: '{}' is looked for in normalized text, which is not supported",
                shown(&added.content)
            ));
        }
    }
    let merges = merges(&model.merges)?;
    let whole = if model.ignore_merges { Whole::Always } else { Whole::Never };
    let model = if byte_level {
        if model.byte_fallback {
            return Err("model.byte_fallback: true together with the pre-tokenizer ByteLevel is not supported".into());
        }
        spec.unknown = None;
        RawModel::ByteBpe { merges, whole }
    } else {
        if model.byte_fallback {
            for (text, kind) in spec.tokens.iter().zip(&mut spec.kinds) {
                if *kind == TokenKind::Normal && byte_of(text).is_some() {
                    *kind = TokenKind::Byte;
                }
            }
        }
        RawModel::TextBpe { merges, whole, fuse_unknown: model.fuse_unk }
    };
    let first = first(&file.post_processor);
    Ok(Read { raw: Raw { spec, model, special: Vec::new() }, first })
}

/// Names a fault of [`Raw::check`] as this file calls the field.
pub(super) fn field(field: Field) -> &'static str {
    match field {
        Field::Tokens | Field::Kinds | Field::Scores => "model.vocab",
        Field::Merges => "model.merges",
        Field::Special => "special tokens",
    }
}

/// Tokens and kinds by id.
fn tokens(file: &File) -> Result<TokenizerSpec, String> {
    let vocab =
        file.model.vocab.as_object().ok_or("model.vocab: an object of texts and ids is needed")?;
    let count = vocab.len().saturating_add(file.added_tokens.len());
    // Ids without a text in between are padding; many of them are a bomb.
    let limit = (count as u64).saturating_mul(2).saturating_add(4096);
    let mut tokens: Vec<Option<(String, TokenKind)>> = Vec::new();
    let mut put = |id: u64, text: &str, kind: TokenKind, field: &str| -> Result<(), String> {
        if id >= limit {
            return Err(format!("{field}: id {id} is far past the {count} tokens of the file"));
        }
        let at = id as usize;
        if tokens.len() <= at {
            tokens.resize(at.saturating_add(1), None);
        }
        match tokens.get_mut(at) {
            Some(Some((other, _))) if other != text => Err(format!(
                "{field}: '{}' and '{}' have the same id {id}",
                shown(other),
                shown(text)
            )),
            Some(token) => {
                *token = Some((text.to_string(), kind));
                Ok(())
            }
            None => Ok(()),
        }
    };
    for (text, id) in vocab {
        let number = id.as_u64().ok_or_else(|| {
            format!("model.vocab: the id of '{}' is not a whole number", shown(text))
        })?;
        put(number, text, TokenKind::Normal, "model.vocab")?;
    }
    let mut matches = HashMap::new();
    for added in &file.added_tokens {
        if added.content.is_empty() {
            return Err(format!("added_tokens: id {} has no text", added.id));
        }
        if added.single_word {
            return Err(format!(
                "added_tokens: '{}' needs whole words, which is not supported",
                shown(&added.content)
            ));
        }
        let kind = if added.special { TokenKind::Control } else { TokenKind::UserDefined };
        put(added.id.into(), &added.content, kind, "added_tokens")?;
        if added.lstrip || added.rstrip {
            matches.insert(added.id, Match { lstrip: added.lstrip, rstrip: added.rstrip });
        }
    }
    let mut spec = TokenizerSpec { matches, ..TokenizerSpec::default() };
    for token in tokens {
        // An id without a text.
        let (text, kind) = token.unwrap_or((String::new(), TokenKind::Unused));
        spec.tokens.push(text);
        spec.kinds.push(kind);
    }
    Ok(spec)
}

fn merges(values: &[Value]) -> Result<Vec<(String, String)>, String> {
    let pair = |(rank, merge): (usize, &Value)| {
        let two = match merge {
            Value::String(text) => text.split_once(' ').filter(|(_, right)| !right.contains(' ')),
            Value::Array(pair) => match &pair[..] {
                [Value::String(left), Value::String(right)] => {
                    Some((left.as_str(), right.as_str()))
                }
                _ => None,
            },
            _ => None,
        };
        let (left, right) =
            two.ok_or_else(|| format!("model.merges[{rank}]: not a pair of texts"))?;
        Ok((left.to_string(), right.to_string()))
    };
    values.iter().enumerate().map(pair).collect()
}

fn kind(value: &Value) -> String {
    match value.get("type") {
        Some(Value::String(name)) => shown(name),
        _ => "without a type".to_string(),
    }
}

/// The steps of a `Sequence` (whose list is called `list`), or the one step there is. Sequences inside sequences are opened too.
fn steps<'v>(value: &'v Value, list: &str, field: &str) -> Result<Vec<&'v Value>, String> {
    let (mut open, mut steps) = (vec![value], Vec::new());
    while let Some(value) = open.pop() {
        match value {
            Value::Null => {}
            value if kind(value) == "Sequence" => {
                let inner = value
                    .get(list)
                    .and_then(Value::as_array)
                    .ok_or_else(|| format!("{field}: a Sequence without {list}"))?;
                if open.len().saturating_add(steps.len()).saturating_add(inner.len()) > MAX_STEPS {
                    return Err(format!("{field}: more than {MAX_STEPS} steps"));
                }
                open.extend(inner.iter().rev());
            }
            value => steps.push(value),
        }
    }
    Ok(steps)
}

fn text<'v>(value: &'v Value, name: &str) -> Option<&'v str> {
    value.get(name)?.as_str()
}

fn flag(value: &Value, name: &str, default: bool) -> bool {
    value.get(name).and_then(Value::as_bool).unwrap_or(default)
}

fn prepends(normalizer: &Value) -> bool {
    steps(normalizer, "normalizers", "normalizer")
        .is_ok_and(|steps| steps.iter().any(|s| kind(s) == "Prepend"))
}

/// A replacement, short enough not to blow a prompt up.
fn replacement(text: Option<&str>, field: &str) -> Result<String, String> {
    match text {
        Some(text) if text.len() <= MAX_REPLACEMENT => Ok(text.to_string()),
        Some(text) => Err(format!(
            "{field}: a text of {} bytes; at most {MAX_REPLACEMENT} are put into a prompt",
            text.len()
        )),
        None => Err(format!("{field}: a text is missing")),
    }
}

/// The text that a `Replace` looks for.
fn replaced(step: &Value, field: &str) -> Result<String, String> {
    match step.get("pattern").and_then(|p| p.get("String")).and_then(Value::as_str) {
        Some(from) if !from.is_empty() && from.len() <= MAX_PATTERN => Ok(from.to_string()),
        _ => Err(format!("{field}: 'Replace' is supported with a String that is not empty")),
    }
}

/// The most bytes that one byte may become. Normal forms are stable, so that each counts once: U+FDFA, three bytes, has a compatibility form
/// of 33; U+0390 triples in NFC. What stands in front of a text counts apart: [`MAX_STEPS`] times [`MAX_REPLACEMENT`].
fn growth(steps: &[Normalizer]) -> usize {
    let forms = [(Normalizer::Nfkc, 11), (Normalizer::Nfc, 3), (Normalizer::Lowercase, 2)];
    let forms = forms.into_iter().filter(|(form, _)| steps.contains(form)).map(|(_, times)| times);
    let replaced = steps.iter().map(|step| match step {
        Normalizer::Replace { from, to } => to.len().div_ceil(from.len().max(1)).max(1),
        _ => 1,
    });
    forms.chain(replaced).fold(1, usize::saturating_mul)
}

fn normalizers(value: &Value, out: &mut Vec<Normalizer>) -> Result<(), String> {
    for step in steps(value, "normalizers", "normalizer")? {
        out.push(match kind(step).as_str() {
            "NFC" => Normalizer::Nfc,
            "NFKC" => Normalizer::Nfkc,
            "Lowercase" => Normalizer::Lowercase,
            "Strip" => Normalizer::Strip { left: flag(step, "strip_left", true), right: flag(step, "strip_right", true) },
            "Replace" => Normalizer::Replace {
                from: replaced(step, "normalizer")?,
                to: replacement(text(step, "content"), "normalizer: Replace")?,
            },
            "Prepend" => Normalizer::Prepend {
                text: replacement(text(step, "prepend"), "normalizer: Prepend")?,
                unless_there: false,
                only_first: false,
            },
            other => {
                return Err(format!(
                    "normalizer: '{other}' is not supported; NFC, NFKC, Lowercase, Strip, Replace and Prepend are"
                ));
            }
        });
    }
    let growth = growth(out);
    if growth > MAX_GROWTH {
        return Err(format!(
            "normalizer: {growth} bytes may come of one; at most {MAX_GROWTH} are computed"
        ));
    }
    Ok(())
}

/// Whether `prepend_scheme` (or, in older files, `add_prefix_space`) puts a space in front, and whether only at the very beginning.
fn scheme(step: &Value, field: &str) -> Result<Option<bool>, String> {
    match text(step, "prepend_scheme") {
        Some("always") => Ok(Some(false)),
        Some("first") => Ok(Some(true)),
        Some("never") => Ok(None),
        Some(other) => {
            Err(format!("{field}: Metaspace: the prepend_scheme '{}' is unknown", shown(other)))
        }
        None => Ok(flag(step, "add_prefix_space", true).then_some(false)),
    }
}

/// Reads the pre-tokenizers; whether the last one is ByteLevel.
fn pre_tokenizers(value: &Value, spec: &mut TokenizerSpec) -> Result<bool, String> {
    let mut byte_level = false;
    for (n, step) in steps(value, "pretokenizers", "pre_tokenizer")?.into_iter().enumerate() {
        if byte_level {
            return Err(format!(
                "pre_tokenizer: '{}' behind ByteLevel is not supported",
                kind(step)
            ));
        }
        match kind(step).as_str() {
            "ByteLevel" => {
                byte_level = true;
                if flag(step, "add_prefix_space", true) {
                    if n > 0 {
                        return Err("pre_tokenizer: ByteLevel with add_prefix_space behind another step is not supported".into());
                    }
                    // Its decoder leaves that space where it is.
                    spec.normalizers.push(Normalizer::Prepend {
                        text: " ".into(),
                        unless_there: true,
                        only_first: false,
                    });
                }
                if flag(step, "use_regex", true) {
                    spec.cuts.push(Cut::Words { pattern: GPT2.into(), lines_apart: false });
                }
            }
            "Digits" if flag(step, "individual_digits", false) => {
                spec.cuts.push(Cut::Isolate(r"\p{N}".into()))
            }
            "Digits" => spec.cuts.push(Cut::Isolate(r"\p{N}+".into())),
            "Punctuation" => spec.cuts.push(Cut::Isolate(
                match text(step, "behavior").unwrap_or("Isolated") {
                    "Isolated" => r"[\p{P}!-/:-@\[-`{-~]",
                    "Contiguous" => r"[\p{P}!-/:-@\[-`{-~]+",
                    other => {
                        return Err(format!(
                            "pre_tokenizer: Punctuation: the behavior '{}' is not supported",
                            shown(other)
                        ));
                    }
                }
                .into(),
            )),
            "Split" => spec.cuts.push(split(step)?),
            "Metaspace" => {
                if n > 0 || text(step, "replacement").is_some_and(|r| !r.chars().eq([SPACE])) {
                    return Err(
                        "pre_tokenizer: Metaspace is supported as the first step and with '▁'"
                            .into(),
                    );
                }
                spec.normalizers.push(Normalizer::Replace { from: " ".into(), to: SPACE.into() });
                if let Some(only_first) = scheme(step, "pre_tokenizer")? {
                    spec.normalizers.push(Normalizer::Prepend {
                        text: SPACE.into(),
                        unless_there: true,
                        only_first,
                    });
                }
                if flag(step, "split", true) {
                    spec.cuts.push(Cut::BeginAt(SPACE.to_string().into()));
                }
            }
            other => {
                return Err(format!(
                    "pre_tokenizer: '{other}' is not supported; ByteLevel, Digits, Punctuation, Split, Metaspace and sequences of them are"
                ));
            }
        }
    }
    Ok(byte_level)
}

/// White space that gives back its last character, which the linear engine cannot say; ours does it by hand.
const TAILS: [&str; 2] = [r"|\s+(?!\S)|\s+", r"|\s+(?!\S)"];

fn split(step: &Value) -> Result<Cut, String> {
    if flag(step, "invert", false) {
        return Err("pre_tokenizer: Split with invert is not supported".into());
    }
    let given = step.get("pattern");
    let pattern = match given.and_then(|p| p.get("Regex")).and_then(Value::as_str) {
        Some(regex) => regex.to_string(),
        None => match given.and_then(|p| p.get("String")).and_then(Value::as_str) {
            Some(text) => regex::escape(text),
            None => return Err("pre_tokenizer: Split without a pattern".into()),
        },
    };
    let behavior = text(step, "behavior").unwrap_or_default();
    let body = TAILS.iter().find_map(|tail| pattern.strip_suffix(tail));
    let words = body.is_some();
    let whole = match body {
        Some(body) => format!(r"{body}|\s+"),
        None => pattern.clone(),
    };
    if whole.is_empty() || whole.len() > MAX_PATTERN {
        return Err(format!(
            "pre_tokenizer: Split with a pattern of {} bytes; 1 to {MAX_PATTERN} are read",
            whole.len()
        ));
    }
    regex::Regex::new(&whole).map_err(|_| {
        let short: String = whole.chars().take(120).collect();
        format!(
            "pre_tokenizer: Split: the pattern '{}' is not supported (look-around, or not a regular expression)",
            shown(&short)
        )
    })?;
    match (behavior, words) {
        ("Isolated", true) => {
            Ok(Cut::Words { lines_apart: whole.contains(r"\s*[\r\n]"), pattern: whole.into() })
        }
        ("Isolated", false) => Ok(Cut::Isolate(whole.into())),
        ("MergedWithPrevious", false) => Ok(Cut::EndAt(whole.into())),
        ("MergedWithNext", false) => Ok(Cut::BeginAt(whole.into())),
        (other, _) => {
            Err(format!("pre_tokenizer: Split: the behavior '{}' is not supported", shown(other)))
        }
    }
}

fn decoders(value: &Value, byte_level: bool, spec: &mut TokenizerSpec) -> Result<(), String> {
    for step in steps(value, "decoders", "decoder")? {
        match (kind(step).as_str(), byte_level) {
            ("ByteLevel", true) | ("ByteFallback" | "Fuse", false) => {}
            ("Replace", false)
                if replaced(step, "decoder")?.chars().eq([SPACE])
                    && text(step, "content") == Some(" ") =>
            {
                spec.escaped_spaces = true;
            }
            ("Strip", false)
                if text(step, "content") == Some(" ")
                    && step.get("stop").is_none_or(|s| s == 0) =>
            {
                spec.own_space = step.get("start").is_some_and(|s| s == 1);
            }
            ("Metaspace", false) => {
                spec.escaped_spaces = true;
                spec.own_space = scheme(step, "decoder")?.is_some();
            }
            (other, _) => return Err(format!("decoder: '{other}' is not supported here")),
        }
    }
    Ok(())
}

/// The special token in front of a single text.
fn first(post_processor: &Value) -> Option<String> {
    let first = |p: &Value| {
        Some(p.get("single")?.get(0)?.get("SpecialToken")?.get("id")?.as_str()?.to_string())
    };
    steps(post_processor, "processors", "post_processor").ok()?.into_iter().find_map(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Letters, a merge, BOS.
    fn file() -> Value {
        let mut vocab = serde_json::Map::new();
        let letters = super::super::vocabulary::byte_alphabet();
        let texts =
            letters.iter().map(char::to_string).chain(["<s>", "he", "[INST]"].map(String::from));
        texts.enumerate().for_each(|(id, text)| drop(vocab.insert(text, json!(id))));
        json!({
            "added_tokens": [{"id": 256, "content": "<s>", "special": true}, {"id": 258, "content": "[INST]", "special": false}],
            "normalizer": null, "decoder": {"type": "ByteLevel"},
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
            "model": {"type": "BPE", "vocab": vocab, "merges": ["h e"]},
        })
    }

    fn with(pointer: &str, value: Value) -> Value {
        let mut file = file();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        match file.pointer_mut(parent).unwrap() {
            Value::Object(map) => drop(map.insert(key.to_string(), value)),
            Value::Array(list) => list[key.parse::<usize>().unwrap()] = value,
            _ => unreachable!("{parent}"),
        }
        file
    }

    fn refusal(file: &Value) -> String {
        match read(file.to_string().as_bytes()) {
            Err(text) => text,
            Ok(read) => match read.raw.check() {
                Err((at, text)) => format!("{}: {text}", field(at)),
                Ok(_) => "accepted".into(),
            },
        }
    }

    #[test]
    fn the_post_processor_says_what_stands_in_front_of_a_text() {
        let first = |value: Value| {
            read(with("/post_processor", value).to_string().as_bytes()).unwrap().first
        };
        let template = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]});
        assert_eq!(first(template.clone()).as_deref(), Some("<s>"));
        let bytes = json!({"type": "ByteLevel", "trim_offsets": false});
        assert_eq!(
            first(json!({"type": "Sequence", "processors": [bytes, template]})).as_deref(),
            Some("<s>")
        );
        let none = json!({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}]});
        assert_eq!((first(none), first(Value::Null)), (None, None));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        assert_eq!(refusal(&file()), "accepted");
        let split = |regex: &str, behavior: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior});
        let long = "x".repeat(1 << 20);
        for (pointer, value, message) in [
            ("/model/type", json!("Unigram"), "model: 'Unigram'"),
            ("/model/vocab/zzz", json!(4_000_000_000u32), "far past"),
            ("/model/vocab/zzz", json!(-1), "not a whole number"),
            ("/model/vocab/zzz", json!(7), "have the same id 7"),
            ("/model/merges", json!([["a"]]), "merges[0]"),
            ("/model/merges", json!([["a", "b".repeat(500)]]), "which is not a token"),
            ("/model/byte_fallback", json!(true), "byte_fallback"),
            ("/model/dropout", json!(0.1), "model.dropout"),
            ("/model/unk_token", json!("nosuch"), "model.unk_token: 'nosuch'"),
            ("/normalizer", json!({"type": "StripAccents"}), "normalizer: 'StripAccents'"),
            (
                "/normalizer",
                json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
                "normalizer: 'Precompiled'",
            ),
            (
                "/normalizer",
                json!({"type": "Prepend", "prepend": long}),
                "at most 32 are put into a prompt",
            ),
            (
                "/normalizer",
                json!({"type": "Replace", "pattern": {"String": "a"}, "content": long}),
                "at most 32",
            ),
            (
                "/normalizer",
                json!({"type": "Replace", "pattern": {"String": ""}, "content": "x"}),
                "not empty",
            ),
            (
                "/normalizer",
                json!({"type": "Replace", "pattern": {"Regex": "a+"}, "content": "x"}),
                "'Replace'",
            ),
            (
                "/normalizer",
                json!({"type": "Sequence", "normalizers": vec![json!({"type": "NFC"}); 1000]}),
                "more than 64 steps",
            ),
            (
                "/normalizer",
                json!({"type": "Sequence", "normalizers": vec![json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}); 7]}),
                "128 bytes may come of one",
            ),
            (
                "/normalizer",
                json!({"type": "Sequence", "normalizers":
                    vec![json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(32)}); 64]}),
                "bytes may come of one",
            ),
            ("/normalizer", json!(7), "normalizer: 'without a type'"),
            (
                "/pre_tokenizer",
                json!({"type": "BertPreTokenizer"}),
                "pre_tokenizer: 'BertPreTokenizer'",
            ),
            ("/pre_tokenizer", split("(?=a)b", "Isolated"), "look-around"),
            ("/pre_tokenizer", split("(", "Isolated"), "not supported"),
            ("/pre_tokenizer", split("(((a{1000}){1000}){1000})", "Isolated"), "not supported"),
            ("/pre_tokenizer", split("a", "Removed"), "'Removed'"),
            (
                "/pre_tokenizer",
                json!({"type": "Sequence", "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": false}, {"type": "Digits"}]}),
                "behind ByteLevel",
            ),
            ("/decoder", json!({"type": "WordPiece"}), "decoder: 'WordPiece'"),
            ("/added_tokens/0", json!({"id": 256, "content": ""}), "has no text"),
            (
                "/added_tokens/0",
                json!({"id": 256, "content": "<s>", "single_word": true}),
                "whole words",
            ),
            ("/added_tokens/0", json!({"id": 0, "content": "<s>"}), "have the same id 0"),
        ] {
            let text = refusal(&with(pointer, value));
            assert!(text.contains(message), "{pointer}: {text}");
        }
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(
            read(deep.as_bytes()).is_err()
                && read(format!("{{\"model\":{deep}}}").as_bytes()).is_err()
        );
    }

    #[test]
    fn a_token_of_the_users_that_the_normalizer_would_change_is_refused() {
        let mut file = with("/normalizer", json!({"type": "Lowercase"}));
        assert!(refusal(&file).contains("'[INST]' is looked for in normalized text"));
        file["added_tokens"][1]["normalized"] = json!(false);
        assert_eq!(refusal(&file), "accepted");
    }
}

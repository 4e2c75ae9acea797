//! `tokenizer.json` to the same plain data that a GGUF file holds. In: the file's bytes. Out: tokens, types, merges and the name of the
//! pre-tokenizer. The file never reaches the `tokenizers` crate, whose reader can be made to abort the process; what is not byte-level
//! BPE with a known pre-tokenizer is refused by name.
// What it reads is a stranger's.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

use crate::model::{PRE_TOKENIZERS, Vocabulary};
use crate::units::shown;
use serde::Deserialize;
use serde_json::Value;

/// Patterns of the `Split` pre-tokenizer that are one of ours.
const LLAMA3: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    model: Value,
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
}

/// What the file says.
pub(super) struct Read {
    /// Tokens, types, merges, pre; nothing else is filled in.
    pub vocabulary: Vocabulary,
    /// A word that is itself a token is not merged.
    pub ignore_merges: bool,
}

pub(super) fn read(json: &[u8]) -> Result<Read, String> {
    let file: File = serde_json::from_slice(json).map_err(|e| shown(&e.to_string()))?;
    if !file.normalizer.is_null() {
        return Err(format!("normalizer: '{}' is not supported; only null is", kind(&file.normalizer)));
    }
    let model = &file.model;
    if kind(model) != "BPE" {
        return Err(format!("model: '{}' is not supported; only byte-level BPE is", kind(model)));
    }
    for field in ["dropout", "continuing_subword_prefix", "end_of_word_suffix"] {
        if !matches!(&model[field], Value::Null) && model[field] != "" {
            return Err(format!("model.{field}: only null is supported"));
        }
    }
    if model["byte_fallback"] == true {
        return Err("model.byte_fallback: true is not supported; only byte-level BPE is".to_string());
    }
    let vocab = model["vocab"].as_object().ok_or("model.vocab: an object of texts and ids is needed")?;
    let count = vocab.len() + file.added_tokens.len();
    let mut tokens: Vec<Option<(String, i32)>> = Vec::new();
    let mut put = |id: u64, text: &str, kind: i32, field: &str| -> Result<(), String> {
        // Ids without a text in between are padding; many of them are a bomb.
        if id >= 2 * count as u64 + 4096 {
            return Err(format!("{field}: id {id} is far past the {count} tokens of the file"));
        }
        if tokens.len() <= id as usize {
            tokens.resize(id as usize + 1, None);
        }
        if let Some(token) = tokens.get_mut(id as usize) {
            *token = Some((text.to_string(), kind));
        }
        Ok(())
    };
    for (text, id) in vocab {
        put(
            id.as_u64().ok_or_else(|| format!("model.vocab: the id of '{}' is not a whole number", shown(text)))?,
            text,
            1,
            "model.vocab",
        )?;
    }
    for added in &file.added_tokens {
        if added.content.is_empty() {
            return Err(format!("added_tokens: id {} has no text", added.id));
        }
        if added.lstrip || added.rstrip || added.single_word {
            return Err(format!("added_tokens: '{}' strips or needs whole words, which is not supported", shown(&added.content)));
        }
        put(added.id.into(), &added.content, if added.special { 3 } else { 4 }, "added_tokens")?;
    }
    let (mut texts, mut types) = (Vec::with_capacity(tokens.len()), Vec::with_capacity(tokens.len()));
    for (id, token) in tokens.into_iter().enumerate() {
        let (text, kind) = token.unwrap_or_else(|| (format!("[unused id {id}]"), 5));
        texts.push(text);
        types.push(kind);
    }
    let merges = model["merges"].as_array().ok_or("model.merges: an array is needed")?;
    let merges = merges
        .iter()
        .enumerate()
        .map(|(rank, merge)| match merge {
            Value::String(text) => Ok(text.clone()),
            Value::Array(pair) => match &pair[..] {
                [Value::String(left), Value::String(right)] => Ok(format!("{left} {right}")),
                _ => Err(format!("model.merges[{rank}]: not a pair of texts")),
            },
            _ => Err(format!("model.merges[{rank}]: not a pair of texts")),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let pre = pre(&file.pre_tokenizer)?.to_string();
    let ignore_merges = model["ignore_merges"] == true;
    Ok(Read { vocabulary: Vocabulary { tokens: texts, types, merges, pre, ..Default::default() }, ignore_merges })
}

fn kind(value: &Value) -> String {
    match &value["type"] {
        Value::String(name) => shown(name),
        _ => "without a type".to_string(),
    }
}

/// Which of our pre-tokenizers this is.
fn pre(value: &Value) -> Result<&'static str, String> {
    let steps: Vec<&Value> = match kind(value).as_str() {
        "Sequence" => value["pretokenizers"].as_array().map(|a| a.iter().collect()).unwrap_or_default(),
        _ => vec![value],
    };
    let (last, before) = steps.split_last().ok_or("pre_tokenizer: an empty sequence is not supported")?;
    let byte_level = kind(last) == "ByteLevel" && last["add_prefix_space"] == false;
    let cuts_words = last["use_regex"] != false;
    let found = match before {
        [] if cuts_words => Some("gpt-2"),
        [digits] if cuts_words && kind(digits) == "Digits" && digits["individual_digits"] == true => Some("smollm"),
        [split] if !cuts_words && kind(split) == "Split" && split["behavior"] == "Isolated" && split["invert"] != true => {
            match split.pointer("/pattern/Regex").and_then(Value::as_str) {
                Some(LLAMA3) => Some("llama-bpe"),
                Some(QWEN2) => Some("qwen2"),
                _ => None,
            }
        }
        _ => None,
    };
    found.filter(|_| byte_level).ok_or_else(|| format!("pre_tokenizer is none of those known: {}", PRE_TOKENIZERS.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::super::tokenizer::{Tokenizer, tests::tiny};
    use super::*;
    use crate::model::ModelError;
    use serde_json::json;

    /// The tiny vocabulary as a `tokenizer.json`.
    fn file() -> Value {
        let v = tiny();
        let vocab: serde_json::Map<_, _> = v.tokens.iter().enumerate().map(|(id, t)| (t.clone(), json!(id))).collect();
        let added: Vec<_> = (0..4).map(|id| json!({"id": id, "content": v.tokens[id], "special": id < 3})).collect();
        json!({
            "added_tokens": added, "normalizer": null,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": true}, {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}]},
            "model": {"type": "BPE", "vocab": vocab, "merges": v.merges},
        })
    }

    fn build(file: &Value) -> Result<Tokenizer, ModelError> {
        Tokenizer::build(&Vocabulary { tokenizer_json: Some(file.to_string().into_bytes()), ..Default::default() })
    }

    #[test]
    fn the_same_data_gives_the_same_ids() {
        let (gguf, json) = (Tokenizer::build(&tiny()).unwrap(), build(&file()).unwrap());
        for text in ["user the 12é", "a<fn>b<|im_end|>", "\n\n  x"] {
            assert_eq!(gguf.encode(text), json.encode(text));
            assert_eq!(gguf.encode_with_control(text), json.encode_with_control(text));
        }
        let mut pairs = file();
        pairs["model"]["merges"] = tiny().merges.iter().map(|m| json!(m.split(' ').collect::<Vec<_>>())).collect();
        assert_eq!(build(&pairs).unwrap().encode("user"), gguf.encode("user"));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let split = |regex: &str| {
            json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]})
        };
        assert_eq!(pre(&split(LLAMA3)), Ok("llama-bpe"));
        assert_eq!(pre(&split(QWEN2)), Ok("qwen2"));
        assert!(pre(&split("(")).is_err() && pre(&json!({"type": "ByteLevel", "add_prefix_space": true})).is_err());
        for (pointer, value, message) in [
            ("/model/type", json!("Unigram"), "model: 'Unigram'"),
            ("/model/vocab/zzz", json!(4_000_000_000u32), "far past"),
            ("/model/vocab/zzz", json!(-1), "not a whole number"),
            ("/model/merges", json!([["a"]]), "merges[0]"),
            ("/model/merges", json!([["a", "b".repeat(500)]]), "not an ordinary token"),
            ("/model/byte_fallback", json!(true), "byte_fallback"),
            ("/normalizer", json!({"type": "Strip"}), "normalizer: 'Strip'"),
            ("/pre_tokenizer", json!({"type": "FixedLength", "length": 0}), "pre_tokenizer"),
            ("/pre_tokenizer", json!({"type": "Sequence", "pretokenizers": []}), "empty sequence"),
            ("/added_tokens/0/content", json!(""), "has no text"),
            ("/added_tokens/0/lstrip", json!(true), "strips"),
        ] {
            let mut broken = file();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            match broken.pointer_mut(parent).unwrap() {
                Value::Object(map) => map.insert(key.to_string(), value),
                _ => unreachable!("{parent}"),
            };
            let Err(ModelError::Invalid(error)) = build(&broken) else { panic!("{pointer} was accepted") };
            assert!(error.starts_with("tokenizer") && error.contains(message), "{error}");
        }
    }
}

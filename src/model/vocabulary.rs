//! The tokenizer's data of a GGUF file, checked. In: `tokenizer.ggml.*`. Out: a [`Vocabulary`] whose ids, merges and alphabet hold.
//! It does not tokenize.
// What it reads is a stranger's.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use super::gguf::Gguf;
use super::{ModelError, Vocabulary};
use crate::units::{TokenId, shown};
use std::collections::HashSet;

/// Pre-tokenizers that `text` builds (its tests hold that), as `tokenizer.ggml.pre` names them.
pub const PRE_TOKENIZERS: &[&str] = &["smollm", "gpt-2", "default", "llama-bpe", "qwen2"];

/// Longest token text in bytes; real ones stay under 1 KiB.
const MAX_TOKEN: usize = 1 << 16;

/// Most bytes of a chat template; the longest published ones are some 20 KiB.
pub(super) const MAX_TEMPLATE: usize = 1 << 20;

/// GPT-2's byte-to-unicode alphabet: printable bytes stand for themselves, the others for U+0100 upwards.
pub fn byte_alphabet() -> [char; 256] {
    let mut next = 256u32;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        if matches!(byte, 33..=126 | 161..=172 | 174..=255) {
            char::from(byte)
        } else {
            let letter = char::from_u32(next).unwrap_or('\0');
            next = next.saturating_add(1);
            letter
        }
    })
}

/// Bytes that any text may hold. Published vocabularies do leave out bytes that no text has (0xC0, 0xF5 …) and rare controls.
fn needed(byte: u8) -> bool {
    matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7e | 0x80..=0xbf | 0xc2..=0xf0)
}

/// Reads and checks the vocabulary.
pub(super) fn from_gguf(file: &Gguf) -> Result<Vocabulary, ModelError> {
    let model = file.need_text("tokenizer.ggml.model")?;
    if model != "gpt2" {
        return Err(file.error(format_args!(
            "metadata 'tokenizer.ggml.model' is '{}', which is not supported; gpt2 (byte-level BPE) is",
            shown(model)
        )));
    }
    let pre = file.need_text("tokenizer.ggml.pre")?;
    if !PRE_TOKENIZERS.contains(&pre) {
        return Err(file.error(format_args!(
            "metadata 'tokenizer.ggml.pre' is '{}', an unknown pre-tokenizer; known: {}",
            shown(pre),
            PRE_TOKENIZERS.join(", ")
        )));
    }
    let tokens = file.texts("tokenizer.ggml.tokens")?;
    let count = tokens.len();
    if count == 0 {
        return Err(file.error("metadata 'tokenizer.ggml.tokens' is empty"));
    }
    let types = file.integers("tokenizer.ggml.token_type")?;
    if types.len() != count {
        return Err(
            file.error(format_args!("metadata 'tokenizer.ggml.token_type' has {} elements for {count} tokens", types.len()))
        );
    }
    if let Some((i, kind)) = types.iter().enumerate().find(|(_, kind)| !(1..=6).contains(*kind)) {
        return Err(file.error(format_args!("metadata 'tokenizer.ggml.token_type': element {i} is {kind}; 1 to 6 exist")));
    }
    if file.has("tokenizer.ggml.scores") {
        // BPE has no use for them, but a wrong length says that the arrays do not belong together.
        let scores = file.array_len("tokenizer.ggml.scores");
        if scores != Some(count as u64) {
            return Err(
                file.error(format_args!("metadata 'tokenizer.ggml.scores' does not have {count} elements as the tokens do"))
            );
        }
    }

    let alphabet = byte_alphabet();
    let letters: HashSet<char> = alphabet.iter().copied().collect();
    let mut known: HashSet<&str> = HashSet::with_capacity(count);
    for (i, (token, kind)) in tokens.iter().zip(types).enumerate() {
        let problem = if token.is_empty() {
            "is empty"
        } else if token.len() > MAX_TOKEN {
            "is longer than 64 KiB"
        } else if *kind == 1 && token.chars().any(|c| !letters.contains(&c)) {
            "has characters that are not in the byte alphabet"
        } else if *kind == 6 {
            "is a byte token, which byte-level BPE does not have"
        } else if !known.insert(token) {
            "appears twice"
        } else {
            continue;
        };
        let text: String = token.chars().take(40).collect();
        return Err(file.error(format_args!("metadata 'tokenizer.ggml.tokens': element {i} ('{}') {problem}", shown(&text))));
    }
    for (byte, letter) in (0..=255u8).zip(alphabet).filter(|(byte, _)| needed(*byte)) {
        let mut buffer = [0; 4];
        if !known.contains(&*letter.encode_utf8(&mut buffer)) {
            return Err(file.error(format_args!("metadata 'tokenizer.ggml.tokens' has no token for the byte 0x{byte:02x}")));
        }
    }

    let merges = file.texts("tokenizer.ggml.merges")?;
    let mut both = String::new();
    for (i, merge) in merges.iter().enumerate() {
        let problem = match merge.split_once(' ') {
            Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
                both.clear();
                both.extend([left, right]);
                match [left, right, &both].into_iter().find(|part| !known.contains(*part)) {
                    None => continue,
                    Some(part) => format!("names '{}', which is not a token", shown(&part.chars().take(40).collect::<String>())),
                }
            }
            _ => "is not two texts with a space between".to_string(),
        };
        return Err(file.error(format_args!("metadata 'tokenizer.ggml.merges': element {i} {problem}")));
    }

    let id = |key: &str| -> Result<Option<TokenId>, ModelError> {
        Ok(file.integer(&format!("tokenizer.ggml.{key}"), 0..=(count as u64).saturating_sub(1))?.map(|n| n as TokenId))
    };
    let bos = id("bos_token_id")?;
    let mut eos = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        eos.extend(id(key)?.filter(|n| !eos.contains(n)));
    }
    if eos.is_empty() {
        return Err(file.error("metadata 'tokenizer.ggml.eos_token_id' is missing"));
    }
    for key in ["unknown_token_id", "padding_token_id", "separator_token_id", "mask_token_id"] {
        id(key)?;
    }
    let add_bos = file.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(false);
    if add_bos && bos.is_none() {
        return Err(file.error("metadata 'tokenizer.ggml.add_bos_token' is true, but 'tokenizer.ggml.bos_token_id' is missing"));
    }
    let chat_template = file.text("tokenizer.chat_template")?.map(String::from);
    if chat_template.as_ref().is_some_and(|text| text.len() > MAX_TEMPLATE) {
        return Err(file.error(format_args!("metadata 'tokenizer.chat_template' is longer than {MAX_TEMPLATE} bytes")));
    }
    let text_of = |id: Option<TokenId>| id.and_then(|id| tokens.get(id as usize)).cloned().unwrap_or_default();
    Ok(Vocabulary {
        tokens: tokens.to_vec(),
        types: types.iter().map(|t| *t as i32).collect(),
        merges: merges.to_vec(),
        pre: pre.to_string(),
        tokenizer_json: None,
        bos,
        bos_text: text_of(bos),
        eos_text: text_of(eos.first().copied()),
        eos,
        add_bos,
        chat_template,
    })
}

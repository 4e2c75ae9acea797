//! What each token of a vocabulary is and the bytes that it adds to text. In: a checked [`TokenizerSpec`]. Out: [`Pieces`], which the
//! tokenizer and every detokenizer read.

use crate::model::{SPACE, TokenKind, TokenModel, TokenizerSpec, byte_alphabet, byte_of};
use crate::units::TokenId;
use std::collections::HashMap;

/// What a token is, as far as text is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Made by merges.
    Normal,
    /// Structure of a conversation, or unused: no text, and no text becomes it.
    Control,
    /// Stands for characters without a token; no text.
    Unknown,
    /// Found in text as it stands, before words are cut.
    UserDefined,
    /// A user-defined token that the chat template writes: it has its text, but users cannot type it.
    Marker,
}

/// The bytes that each token stands for.
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Where each token's bytes end; control tokens have none.
    ends: Vec<u32>,
    pub kinds: Vec<Kind>,
}

impl Pieces {
    /// The bytes of a token; empty for control tokens and for ids past the vocabulary.
    pub fn text(&self, token: TokenId) -> &[u8] {
        let id = token as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start as usize..end as usize]
    }
}

/// What each token adds to text.
pub(super) fn pieces(spec: &TokenizerSpec, kinds: Vec<Kind>) -> Result<Pieces, String> {
    let letters: HashMap<char, u8> = byte_alphabet().into_iter().zip(0..=255).collect();
    let byte_level = matches!(spec.model, TokenModel::ByteBpe { .. });
    let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(kinds.len()));
    for ((text, kind), token) in spec.tokens.iter().zip(&kinds).zip(&spec.kinds) {
        match kind {
            Kind::Control | Kind::Unknown => {}
            Kind::Normal if *token == TokenKind::Byte => bytes.extend(byte_of(text)),
            Kind::Normal if byte_level => {
                for letter in text.chars() {
                    // A letter outside the alphabet stands for itself (as in emoji that Command R adds as ordinary tokens).
                    match letters.get(&letter) {
                        Some(&byte) => bytes.push(byte),
                        None => bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes()),
                    }
                }
            }
            _ if spec.escaped_spaces => {
                bytes.extend_from_slice(text.replace(SPACE, " ").as_bytes())
            }
            _ => bytes.extend_from_slice(text.as_bytes()),
        }
        ends.push(
            u32::try_from(bytes.len())
                .map_err(|_| "the vocabulary holds more than 4 GiB of text".to_string())?,
        );
    }
    Ok(Pieces { bytes, ends, kinds })
}

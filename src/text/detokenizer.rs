//! Token ids back to text, one at a time. In: ids as they are generated. Out: the text that is certain so far: a character whose
//! bytes are still incomplete is held back; bytes that cannot become one are U+FFFD. Control tokens have no text.

use super::pieces::Pieces;
use crate::units::TokenId;
use std::sync::Arc;

/// Ids in, text out; what it gives over its life is what decoding all the bytes at once would give.
#[derive(Clone)]
pub struct Detokenizer {
    pieces: Arc<Pieces>,
    /// The beginning of a character; at most 3 bytes between calls.
    held: Vec<u8>,
}

impl Detokenizer {
    pub(super) fn new(pieces: Arc<Pieces>) -> Detokenizer {
        Detokenizer { pieces, held: Vec::new() }
    }

    /// Appends to `out` the text that `token` completes.
    pub fn push(&mut self, token: TokenId, out: &mut String) {
        self.held.extend_from_slice(self.pieces.text(token));
        let mut rest = &self.held[..];
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (good, bad) = rest.split_at(error.valid_up_to());
                    out.push_str(&String::from_utf8_lossy(good));
                    let Some(length) = error.error_len() else {
                        rest = bad;
                        break;
                    };
                    out.push(char::REPLACEMENT_CHARACTER);
                    rest = bad.get(length..).unwrap_or_default();
                }
            }
        }
        self.held = rest.to_vec();
    }

    /// Appends what is held back: the text is over.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&String::from_utf8_lossy(&self.held));
        self.held.clear();
    }
}

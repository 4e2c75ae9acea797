//! Where a model's thoughts begin and end. In: a chat template, a vocabulary, the ids of a prompt. Out: the two marks, and whether the
//! prompt ends inside a thought or after a closed one.

use super::Tokenizer;
use crate::units::TokenId;

/// Marks of thoughts, as models and their templates write them.
const KNOWN: [(&str, &str); 7] = [
    ("<think>", "</think>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<reasoning>", "</reasoning>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
];

/// Tokens at the end of a prompt among which a mark is looked for.
const TAIL: usize = 64;

/// A mark that opens a thought, and the one that closes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// Such as `<think>`.
    pub open: &'static str,
    /// Such as `</think>`.
    pub close: &'static str,
}

/// Where a prompt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThoughtAtEnd {
    /// No thought is near.
    None,
    /// Inside one that begins there.
    Open,
    /// After one that was closed.
    Closed,
}

impl Marks {
    /// Those that a template mentions.
    pub fn of_template(source: &str) -> Option<Marks> {
        Self::all().find(|marks| source.contains(marks.open) && source.contains(marks.close))
    }

    /// Those that are tokens of a vocabulary.
    pub fn of_vocabulary(tokenizer: &Tokenizer) -> Option<Marks> {
        Self::all().find(|marks| tokenizer.special(marks.open).is_some() && tokenizer.special(marks.close).is_some())
    }

    fn all() -> impl Iterator<Item = Marks> {
        KNOWN.into_iter().map(|(open, close)| Marks { open, close })
    }

    /// The tokens that spell the opening mark.
    pub fn open_tokens(&self, tokenizer: &Tokenizer) -> Vec<TokenId> {
        match tokenizer.special(self.open) {
            Some(id) => vec![id],
            None => tokenizer.encode_continued(self.open).unwrap_or_default(),
        }
    }

    /// Where a prompt ends; `continued`: it ends with what the assistant said so far, which may be a thought.
    pub fn at_end(&self, tokenizer: &Tokenizer, ids: &[TokenId], continued: bool) -> ThoughtAtEnd {
        let tail = if continued { ids } else { &ids[ids.len().saturating_sub(TAIL)..] };
        let bytes: Vec<u8> = tail.iter().flat_map(|id| tokenizer.spelled(*id).iter().copied()).collect();
        let text = String::from_utf8_lossy(&bytes);
        let (opened, closed) = (text.rfind(self.open), text.rfind(self.close));
        let after = |at: usize, mark: &str| text.get(at + mark.len()..).unwrap_or_default().trim();
        match (opened, closed) {
            (Some(open), closed) if closed.is_none_or(|close| close < open) => {
                // What a user wrote is followed by the template's text.
                if continued || after(open, self.open).is_empty() { ThoughtAtEnd::Open } else { ThoughtAtEnd::None }
            }
            (_, Some(close)) if continued || after(close, self.close).is_empty() => ThoughtAtEnd::Closed,
            _ => ThoughtAtEnd::None,
        }
    }
}

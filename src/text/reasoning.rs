//! Where a model's thoughts begin and end. In: a chat template, a vocabulary, the ids of a prompt. Out: the two marks, and whether the
//! prompt ends inside a thought or after a closed one.

use super::Tokenizer;
use super::specials::Part;
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

/// Harmony's channels (gpt-oss): the closing mark goes on to the channel of the answer.
const HARMONY: Marks = Marks {
    open: "<|channel|>analysis<|message|>",
    close: "<|end|><|start|>assistant<|channel|>final<|message|>",
};
/// What a template of harmony writes before an answer.
const FINAL: &str = "<|channel|>final<|message|>";

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
        let known =
            Self::all().find(|marks| source.contains(marks.open) && source.contains(marks.close));
        known.or_else(|| {
            (source.contains(HARMONY.open) && source.contains(FINAL)).then_some(HARMONY)
        })
    }

    /// Those that are tokens of a vocabulary.
    pub fn of_vocabulary(tokenizer: &Tokenizer) -> Option<Marks> {
        let has = |mark: &str| tokenizer.special(mark).is_some();
        let known = Self::all().find(|marks| has(marks.open) && has(marks.close));
        known.or_else(|| {
            ["<|channel|>", "<|message|>", "<|start|>", "<|end|>"]
                .into_iter()
                .all(has)
                .then_some(HARMONY)
        })
    }

    fn all() -> impl Iterator<Item = Marks> {
        KNOWN.into_iter().map(|(open, close)| Marks { open, close })
    }

    /// The tokens that spell the opening mark.
    pub fn open_tokens(&self, tokenizer: &Tokenizer) -> Vec<TokenId> {
        spelled(tokenizer, self.open)
    }

    /// The tokens that spell the closing mark, where control tokens are among them; they have no text.
    pub fn close_tokens(&self, tokenizer: &Tokenizer) -> Vec<TokenId> {
        let has_control =
            tokenizer.scaffold(self.close).iter().any(|part| matches!(part, Part::Token(_)));
        if has_control { spelled(tokenizer, self.close) } else { Vec::new() }
    }

    /// Where a prompt ends; `continued`: it ends with what the assistant said so far, which may be a thought.
    pub fn at_end(&self, tokenizer: &Tokenizer, ids: &[TokenId], continued: bool) -> ThoughtAtEnd {
        let tail = if continued { ids } else { &ids[ids.len().saturating_sub(TAIL)..] };
        let bytes: Vec<u8> =
            tail.iter().flat_map(|id| tokenizer.spelled(*id).iter().copied()).collect();
        let text = String::from_utf8_lossy(&bytes);
        let (opened, closed) = (text.rfind(self.open), text.rfind(self.close));
        let after = |at: usize, mark: &str| text.get(at + mark.len()..).unwrap_or_default().trim();
        match (opened, closed) {
            (Some(open), closed) if closed.is_none_or(|close| close < open) => {
                // What a user wrote is followed by the template's text.
                if continued || after(open, self.open).is_empty() {
                    ThoughtAtEnd::Open
                } else {
                    ThoughtAtEnd::None
                }
            }
            (_, Some(close)) if continued || after(close, self.close).is_empty() => {
                ThoughtAtEnd::Closed
            }
            _ => ThoughtAtEnd::None,
        }
    }
}

/// A mark's tokens: control tokens, and the text between them.
fn spelled(tokenizer: &Tokenizer, mark: &str) -> Vec<TokenId> {
    let part = |part| match part {
        Part::Token(id) => vec![id],
        Part::Text(text) => tokenizer.encode_continued(text).unwrap_or_default(),
    };
    tokenizer.scaffold(mark).into_iter().flat_map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tokenizer::tests::tiny;
    use super::*;
    use crate::model::{TokenKind, byte_alphabet, example};

    #[test]
    fn channels_of_harmony_are_found_in_templates_and_vocabularies_and_spelled_by_their_tokens() {
        let template = "{{ '<|start|>assistant<|channel|>analysis<|message|>' }}{{ '<|start|>assistant<|channel|>final<|message|>' }}";
        assert_eq!(Marks::of_template(template), Some(HARMONY));
        assert_eq!(Marks::of_template("<|channel|>final<|message|>"), None);
        let names = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"];
        let bytes =
            byte_alphabet().into_iter().map(|letter| (letter.to_string(), TokenKind::Normal));
        let tokens =
            names.iter().map(|name| (name.to_string(), TokenKind::Control)).chain(bytes).collect();
        let tokenizer = Tokenizer::build(&example::byte_bpe(tokens, &[]).unwrap()).unwrap();
        assert_eq!(Marks::of_vocabulary(&tokenizer), Some(HARMONY));
        let letters = |word: &str| word.bytes().map(|b| u32::from(b) + 5).collect::<Vec<TokenId>>();
        assert_eq!(
            HARMONY.open_tokens(&tokenizer),
            [vec![3], letters("analysis"), vec![2]].concat()
        );
        let close = [vec![1, 0], letters("assistant"), vec![3], letters("final"), vec![2]].concat();
        assert_eq!(HARMONY.close_tokens(&tokenizer), close);
        // Marks that are plain text are told by their text.
        let plain = Tokenizer::build(&tiny()).unwrap();
        assert_eq!(
            (
                Marks::of_vocabulary(&plain),
                Marks { open: "<think>", close: "</think>" }.close_tokens(&plain)
            ),
            (None, vec![])
        );
    }
}

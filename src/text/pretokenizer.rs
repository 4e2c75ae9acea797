//! Cuts text into the words inside which byte-pair merges happen: one rule per name in `tokenizer.ggml.pre`, as llama.cpp's
//! `llama-vocab.cpp` defines them. In: text. Out: pieces that cover it, in order. The patterns have no look-ahead, so that a linear
//! engine runs them: the backtracking one stops silently inside long runs. `\s+(?!\S)|\s+` is `\s+` that gives back its last
//! character if text follows.

use regex::Regex;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";
const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";

/// One cut; the next one works inside the pieces of this one.
enum Stage {
    /// Each match is a piece, and so is what lies between two matches.
    Isolate(Regex),
    /// Matches cover everything; white space gives back its last character if text follows, unless it ends a line and lines are matched apart.
    Words { pattern: Regex, lines_apart: bool },
}

/// The rule of one pre-tokenizer.
pub(super) struct PreTokenizer {
    stages: Vec<Stage>,
    /// A word that is itself a token is not merged.
    pub ignore_merges: bool,
}

impl PreTokenizer {
    /// The rule called `name`; `None` if it is unknown.
    pub fn named(name: &str) -> Option<PreTokenizer> {
        let isolate = |pattern: &str| Stage::Isolate(Regex::new(pattern).expect("a constant pattern"));
        let words =
            |pattern: &str, lines_apart| Stage::Words { pattern: Regex::new(pattern).expect("a constant pattern"), lines_apart };
        let stages = match name {
            "smollm" => vec![isolate(r"\p{N}"), words(GPT2, false)],
            "gpt-2" => vec![words(GPT2, false)],
            "default" => {
                vec![isolate(r"[\p{P}\$\+<=>\^~\|]+"), words(GPT2, false), isolate(r"\p{N}+"), isolate("[0-9][0-9][0-9]")]
            }
            "llama-bpe" => vec![words(LLAMA3, true)],
            "qwen2" => vec![words(QWEN2, true)],
            _ => return None,
        };
        Some(PreTokenizer { stages, ignore_merges: name == "llama-bpe" })
    }

    /// The pieces of `text`; together they are `text`.
    pub fn split<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut pieces = vec![text];
        for stage in &self.stages {
            let mut finer = Vec::with_capacity(pieces.len() * 2);
            for piece in pieces {
                stage.split(piece, &mut finer);
            }
            pieces = finer;
        }
        pieces
    }
}

impl Stage {
    fn split<'t>(&self, text: &'t str, out: &mut Vec<&'t str>) {
        let mut at = 0;
        let push = |out: &mut Vec<&'t str>, from: usize, to: usize| {
            if from < to {
                out.push(&text[from..to]);
            }
        };
        match self {
            Stage::Isolate(pattern) => {
                for found in pattern.find_iter(text) {
                    push(out, at, found.start());
                    push(out, found.start(), found.end());
                    at = found.end();
                }
            }
            Stage::Words { pattern, lines_apart } => {
                while let Some(found) = pattern.find_at(text, at) {
                    push(out, at, found.start());
                    let mut end = found.end();
                    if let Some(last) = found.as_str().chars().next_back()
                        && last.is_whitespace()
                        && !(*lines_apart && matches!(last, '\r' | '\n'))
                        && end < text.len()
                        && found.len() > last.len_utf8()
                    {
                        end -= last.len_utf8();
                    }
                    push(out, found.start(), end);
                    at = end;
                }
            }
        }
        push(out, at, text.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PRE_TOKENIZERS;
    use proptest::prelude::*;

    fn cut(name: &str, text: &str) -> Vec<String> {
        PreTokenizer::named(name).unwrap().split(text).into_iter().map(String::from).collect()
    }

    #[test]
    fn digits_spaces_and_lines_are_cut_as_each_rule_says() {
        assert_eq!(cut("smollm", "in  1234!"), ["in", "  ", "1", "2", "3", "4", "!"]);
        assert_eq!(cut("gpt-2", "in  1234!"), ["in", " ", " 1234", "!"]);
        assert_eq!(cut("default", "in 1234!"), ["in", " ", "123", "4", "!"].map(String::from).to_vec().as_slice());
        assert_eq!(cut("llama-bpe", "a  \n\n  b 12345"), ["a", "  \n\n", " ", " b", " ", "123", "45"]);
        assert_eq!(cut("qwen2", "I'LL x\t\ty 12"), ["I", "'LL", " x", "\t", "\ty", " ", "1", "2"]);
        assert!(PreTokenizer::named("sentencepiece").is_none());
    }

    #[test]
    fn long_runs_are_cut_to_their_end() {
        let text = format!("{}x{}", " ".repeat(1_200_000), "a".repeat(300_000));
        for &name in PRE_TOKENIZERS {
            let pieces = cut(name, &text);
            assert_eq!(pieces.concat(), text, "{name}");
            assert!(pieces.len() >= 2, "{name}: {}", pieces.len());
        }
    }

    proptest! {
        #[test]
        fn pieces_cover_any_text(text in r"[\PC\s]{0,60}") {
            for &name in PRE_TOKENIZERS {
                prop_assert_eq!(cut(name, &text).concat(), &text[..]);
            }
        }
    }
}

//! Cuts text into the words inside which merges happen. In: the [`Cut`]s of a tokenizer, text. Out: pieces that cover it, in order.
//! A linear engine runs the patterns: the backtracking one stops silently inside long runs.

use crate::model::Cut;
use regex::Regex;

/// Compiled steps.
pub(super) struct PreTokenizer {
    stages: Vec<(Rule, Regex)>,
}

/// What a match does.
#[derive(Clone, Copy)]
enum Rule {
    Isolate,
    Words { lines_apart: bool },
    EndAt,
    BeginAt,
}

impl PreTokenizer {
    /// Compiles the steps; the error shows the pattern.
    pub fn new(cuts: &[Cut]) -> Result<PreTokenizer, String> {
        let compiled = cuts.iter().map(|cut| {
            let (rule, pattern) = match cut {
                Cut::Isolate(pattern) => (Rule::Isolate, pattern),
                Cut::Words { pattern, lines_apart } => {
                    (Rule::Words { lines_apart: *lines_apart }, pattern)
                }
                Cut::EndAt(pattern) => (Rule::EndAt, pattern),
                Cut::BeginAt(pattern) => (Rule::BeginAt, pattern),
            };
            let regex = Regex::new(pattern).map_err(|_| {
                format!("the pattern '{}' is not supported", crate::units::shown(pattern))
            })?;
            Ok((rule, regex))
        });
        Ok(PreTokenizer { stages: compiled.collect::<Result<_, String>>()? })
    }

    /// The pieces of `text`; together they are `text`.
    pub fn split<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut pieces = vec![text];
        for (rule, pattern) in &self.stages {
            let mut finer = Vec::with_capacity(pieces.len() * 2);
            for piece in pieces {
                split(*rule, pattern, piece, &mut finer);
            }
            pieces = finer;
        }
        pieces
    }
}

fn split<'t>(rule: Rule, pattern: &Regex, text: &'t str, out: &mut Vec<&'t str>) {
    let mut at = 0;
    let push = |out: &mut Vec<&'t str>, from: usize, to: usize| {
        if from < to {
            out.push(&text[from..to]);
        }
    };
    match rule {
        Rule::Isolate => {
            for found in pattern.find_iter(text) {
                push(out, at, found.start());
                push(out, found.start(), found.end());
                at = found.end();
            }
        }
        Rule::EndAt => {
            for found in pattern.find_iter(text) {
                push(out, at, found.end());
                at = found.end();
            }
        }
        Rule::BeginAt => {
            for found in pattern.find_iter(text) {
                push(out, at, found.start());
                at = found.start();
            }
        }
        Rule::Words { lines_apart } => {
            let mut search = 0;
            while let Some(found) = pattern.find_at(text, search) {
                if found.is_empty() {
                    let Some(skipped) = text[found.end()..].chars().next() else { break };
                    search = found.end() + skipped.len_utf8();
                    continue;
                }
                push(out, at, found.start());
                let mut end = found.end();
                if let Some(last) = found.as_str().chars().next_back()
                    && last.is_whitespace()
                    && !(lines_apart && matches!(last, '\r' | '\n'))
                    && end < text.len()
                    && found.len() > last.len_utf8()
                    && found.as_str().chars().all(char::is_whitespace)
                {
                    end -= last.len_utf8();
                }
                push(out, found.start(), end);
                at = end;
                search = end;
            }
        }
    }
    push(out, at, text.len());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model;
    use proptest::prelude::*;

    fn cut(name: &str, text: &str) -> Vec<String> {
        let rule = model::PreTokenizer::named(name).unwrap();
        PreTokenizer::new(&rule.cuts).unwrap().split(text).into_iter().map(String::from).collect()
    }

    #[test]
    fn digits_spaces_and_lines_are_cut_as_each_rule_says() {
        assert_eq!(cut("smollm", "in  1234!"), ["in", "  ", "1", "2", "3", "4", "!"]);
        assert_eq!(cut("gpt-2", "in  1234!"), ["in", " ", " 1234", "!"]);
        assert_eq!(
            cut("default", "in 1234!"),
            ["in", " ", "123", "4", "!"].map(String::from).to_vec().as_slice()
        );
        assert_eq!(
            cut("llama-bpe", "a  \n\n  b 12345"),
            ["a", "  \n\n", " ", " b", " ", "123", "45"]
        );
        assert_eq!(cut("qwen2", "I'LL x\t\ty 12"), ["I", "'LL", " x", "\t", "\ty", " ", "1", "2"]);
        // Marks stay with their letters.
        assert_eq!(cut("qwen35", "a\u{301}b"), ["a\u{301}b"]);
        assert_eq!(cut("qwen2", "a\u{301}b"), ["a", "\u{301}b"]);
        // Upper and lower case, English suffixes, signs with slashes.
        assert_eq!(
            cut("gpt-4o", "HTMLParser don't a./\n12345"),
            ["HTMLParser", " don't", " a", "./\n", "123", "45"]
        );
        assert_eq!(cut("gpt-4o", "fooBar ÉÉé"), ["foo", "Bar", " ÉÉé"]);
        assert_eq!(cut("tekken", "don't 12"), ["don", "'t", " ", "1", "2"]);
        assert_eq!(cut("deepseek-v3", "abc漢字12345, x"), ["abc", "漢字", "123", "45", ",", " x"]);
        assert_eq!(cut("spark2_5", "a  \n b\nc"), ["a", "  \n", " b", "\n", "c"]);
        assert!(model::PreTokenizer::named("sentencepiece").is_none());
    }

    #[test]
    fn each_kind_of_cut_puts_the_match_where_it_belongs() {
        let cut = |cut: Cut, text: &'static str| PreTokenizer::new(&[cut]).unwrap().split(text);
        assert_eq!(cut(Cut::Isolate("x".into()), "axxb"), ["a", "x", "x", "b"]);
        assert_eq!(cut(Cut::EndAt("x".into()), "axxb"), ["ax", "x", "b"]);
        assert_eq!(cut(Cut::BeginAt("x".into()), "axxb"), ["a", "x", "xb"]);
        assert_eq!(
            cut(Cut::Words { pattern: r"x*|\s+".into(), lines_apart: false }, "axxb").concat(),
            "axxb"
        );
        assert!(PreTokenizer::new(&[Cut::Isolate("(?=x)".into())]).is_err());
    }

    #[test]
    fn long_runs_are_cut_to_their_end() {
        let text = format!("{}x{}", " ".repeat(1_200_000), "a".repeat(300_000));
        for name in ["smollm", "gpt-2", "default", "llama-bpe", "qwen2", "gpt-4o", "deepseek-v3"] {
            let pieces = cut(name, &text);
            assert_eq!(pieces.concat(), text, "{name}");
            assert!(pieces.len() >= 2, "{name}: {}", pieces.len());
        }
    }

    /// The patterns as the models' own `tokenizer.json` have them, look-ahead and all, run by the `tokenizers` crate.
    #[test]
    fn rules_cut_as_tokenizers_does_with_the_original_patterns() {
        use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
        use tokenizers::{
            OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _,
            SplitDelimiterBehavior::Isolated,
        };
        const CASED: [&str; 2] = [
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
        ];
        let suffix = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)";
        let rest = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let slashes = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let [upper, lower] = CASED;
        let originals: [(&str, Vec<String>); 6] = [
            ("llama-bpe", vec![format!(r"{suffix}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{rest}")]),
            ("qwen2", vec![format!(r"{suffix}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{rest}")]),
            (
                "qwen35",
                vec![format!(
                    r"{suffix}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                )],
            ),
            ("gpt-4o", vec![format!(r"{upper}{suffix}?|{lower}{suffix}?|\p{{N}}{{1,3}}|{slashes}")]),
            ("tekken", vec![format!(r"{upper}|{lower}|\p{{N}}|{slashes}")]),
            (
                "deepseek-v3",
                vec![
                    r"\p{N}{1,3}".into(),
                    "[一-龥\u{3040}-ゟ゠-ヿ]+".into(),
                    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##.into(),
                ],
            ),
        ];
        let texts: Vec<String> = include_str!("../../tests/data/tokens-smollm.jsonl")
            .lines()
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).unwrap()["text"]
                    .as_str()
                    .unwrap()
                    .to_string()
            })
            .collect();
        assert!(texts.len() >= 600);
        for (name, patterns) in originals {
            let ours = PreTokenizer::new(&model::PreTokenizer::named(name).unwrap().cuts).unwrap();
            let theirs: Vec<Split> = patterns
                .into_iter()
                .map(|p| Split::new(SplitPattern::Regex(p), Isolated, false).unwrap())
                .collect();
            for text in texts.iter().filter(|t| !t.is_empty()) {
                let mut cut = PreTokenizedString::from(text.as_str());
                theirs.iter().for_each(|split| split.pre_tokenize(&mut cut).unwrap());
                let want: Vec<&str> = cut
                    .get_splits(OffsetReferential::Original, OffsetType::Byte)
                    .into_iter()
                    .map(|(piece, ..)| piece)
                    .collect();
                assert_eq!(ours.split(text), want, "{name}: {text:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn pieces_cover_any_text(text in r"[\PC\s]{0,60}") {
            thread_local!(static ALL: Vec<(&'static str, PreTokenizer)> = model::PreTokenizer::names()
                .map(|name| (name, PreTokenizer::new(&model::PreTokenizer::named(name).unwrap().cuts).unwrap()))
                .collect());
            ALL.with(|all| {
                for (name, rule) in all {
                    assert_eq!(rule.split(&text).concat(), text, "{name}");
                }
            });
        }
    }
}

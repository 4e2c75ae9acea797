//! Tokens that stand in text as they are: control tokens of a template, user-defined tokens. In: text. Out: the text cut at them, the
//! leftmost first and of those that begin together the longest, as transformers does it; one pass of an automaton, however many tokens
//! there are.

use crate::model::Match;
use crate::units::TokenId;
use aho_corasick::{AhoCorasick, Input, MatchKind};

/// A part of a text: words, or a token that stood in it as it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Part<'t> {
    Text(&'t str),
    Token(TokenId),
}

/// A set of such tokens.
pub(super) struct Specials {
    automaton: Option<AhoCorasick>,
    tokens: Vec<(TokenId, Match)>,
}

impl Specials {
    /// The set of these texts, none of them empty.
    pub fn new<'t>(
        all: impl Iterator<Item = (&'t str, TokenId, Match)>,
    ) -> Result<Specials, String> {
        let (mut texts, mut tokens) = (Vec::new(), Vec::new());
        for (text, id, rule) in all.filter(|(text, ..)| !text.is_empty()) {
            texts.push(text);
            tokens.push((id, rule));
        }
        if texts.is_empty() {
            return Ok(Specials { automaton: None, tokens });
        }
        let built = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts);
        Ok(Specials { automaton: Some(built.map_err(|e| format!("special tokens: {e}"))?), tokens })
    }

    /// `text` cut at the tokens that `wanted` takes; others stay text.
    pub fn cut<'t>(&self, text: &'t str, wanted: impl Fn(TokenId) -> bool) -> Vec<Part<'t>> {
        let mut parts = Vec::new();
        let push = |parts: &mut Vec<Part<'t>>, from: usize, to: usize| {
            if from < to {
                parts.push(Part::Text(&text[from..to]));
            }
        };
        let (mut done, mut at) = (0, 0);
        while let Some(automaton) = &self.automaton {
            #[cfg(test)]
            tests::SEARCHES.with(|s| s.set(s.get() + 1));
            let Some(found) = automaton.find(Input::new(text).span(at..text.len())) else { break };
            let (id, rule) = self.tokens[found.pattern().as_usize()];
            at = found.end();
            if !wanted(id) {
                continue;
            }
            let before = &text[done..found.start()];
            push(
                &mut parts,
                done,
                done + if rule.lstrip { before.trim_end().len() } else { before.len() },
            );
            parts.push(Part::Token(id));
            if rule.rstrip {
                at = text.len() - text[at..].trim_start().len();
            }
            done = at;
        }
        push(&mut parts, done, text.len());
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local!(pub static SEARCHES: Cell<usize> = const { Cell::new(0) });

    fn specials(texts: &[(&str, Match)]) -> Specials {
        Specials::new(
            texts.iter().enumerate().map(|(id, (text, rule))| (*text, id as TokenId, *rule)),
        )
        .unwrap()
    }

    #[test]
    fn the_leftmost_longest_token_is_found() {
        let plain = Match::default();
        let set = specials(&[("ab", plain), ("bcd", plain), ("abc", plain)]);
        assert_eq!(set.cut("xabcd", |_| true), [Part::Text("x"), Part::Token(2), Part::Text("d")]);
        assert_eq!(set.cut("xabcd", |id| id != 2), [Part::Text("xabcd")]);
        assert_eq!(specials(&[]).cut("x", |_| true), [Part::Text("x")]);
        assert_eq!(set.cut("", |_| true), []);
    }

    #[test]
    fn a_token_takes_the_white_space_that_belongs_to_it() {
        let set = specials(&[
            ("<l>", Match { lstrip: true, rstrip: false }),
            ("<r>", Match { lstrip: false, rstrip: true }),
        ]);
        assert_eq!(
            set.cut("a \n<l> b <r>\u{a0}\n c<r>  ", |_| true),
            [
                Part::Text("a"),
                Part::Token(0),
                Part::Text(" b "),
                Part::Token(1),
                Part::Text("c"),
                Part::Token(1)
            ]
        );
    }

    #[test]
    fn the_work_grows_with_the_text_and_not_with_the_number_of_tokens() {
        let texts: Vec<String> = (0..4000).map(|i| format!("<{i}>")).collect();
        let work = |tokens: usize, repeats: usize| {
            let set = specials(
                &texts[..tokens].iter().map(|t| (&t[..], Match::default())).collect::<Vec<_>>(),
            );
            let text: String = (0..repeats).map(|i| format!("a<{}>", i % 500)).collect();
            SEARCHES.with(|s| s.set(0));
            let parts = set.cut(&text, |_| true).len();
            assert_eq!(parts, 2 * repeats);
            SEARCHES.with(Cell::get)
        };
        assert_eq!(work(500, 1000), 1001);
        assert_eq!(work(4000, 1000), 1001);
        assert_eq!(work(500, 2000), 2001);
    }
}

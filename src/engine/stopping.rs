//! What ends a sequence before its limit: end-of-sequence tokens, stop strings, a sentence's end near the limit, text that goes in
//! circles. In: generated ids, one at a time. Out: whether to stop, why, and the text. A pure function of the ids and the limit.

use super::{FinishReason, StopRules, StoppingPolicy};
use crate::text::Detokenizer;
use crate::units::TokenId;
use std::sync::Arc;

/// Turns one sequence's generated ids into text, a token at a time.
pub trait TextDecoder: Send {
    /// Appends what this token adds to the text. Control tokens add nothing; an incomplete character is held back.
    fn push(&mut self, token: TokenId, text: &mut String);

    /// Appends what was held back; adds nothing when called again.
    fn finish(&mut self, text: &mut String);
}

impl TextDecoder for Detokenizer {
    fn push(&mut self, token: TokenId, text: &mut String) {
        Detokenizer::push(self, token, text);
    }

    fn finish(&mut self, text: &mut String) {
        Detokenizer::finish(self, text);
    }
}

/// Makes a [`TextDecoder`] for each sequence.
pub type TextDecoders = Box<dyn Fn() -> Box<dyn TextDecoder> + Send>;

/// Longest period that counts as going in circles.
const LONGEST_PERIOD: usize = 32;
/// Fewest tokens that must repeat.
const LOOP_TOKENS: usize = 64;
/// Fewest repeats.
const LOOP_REPEATS: usize = 4;

/// The end of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop(pub FinishReason);

/// Watches one sequence's tokens.
pub struct StopWatch {
    policy: StoppingPolicy,
    rules: Arc<StopRules>,
    eos: Arc<[TokenId]>,
    limit: usize,
    decoder: Box<dyn TextDecoder>,
    tokens: Vec<TokenId>,
    text: String,
    /// `repeats[p - 1]`: how many of the last tokens equal the one `p` before them.
    repeats: [usize; LONGEST_PERIOD],
}

impl StopWatch {
    /// A watch for a sequence of at most `limit` tokens; `eos` are the model's end-of-sequence tokens.
    pub fn new(
        policy: StoppingPolicy,
        rules: Arc<StopRules>,
        eos: Arc<[TokenId]>,
        limit: usize,
        decoder: Box<dyn TextDecoder>,
    ) -> StopWatch {
        StopWatch { policy, rules, eos, limit, decoder, tokens: Vec::new(), text: String::new(), repeats: [0; LONGEST_PERIOD] }
    }

    /// The tokens so far.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Takes the next token; says if it is the last one.
    pub fn push(&mut self, token: TokenId) -> Option<Stop> {
        self.tokens.push(token);
        let before = self.text.len();
        self.decoder.push(token, &mut self.text);
        self.count_repeats();
        if self.policy == StoppingPolicy::Early {
            if self.rules.eos && self.eos.contains(&token) {
                return Some(Stop(FinishReason::Stop));
            }
            if let Some(start) = stop_string(&self.text, before, &self.rules.strings) {
                self.cut(start);
                return Some(Stop(FinishReason::StopString));
            }
            let watched = self.rules.sentence && self.near_limit();
            if let Some(end) = watched.then(|| sentence_end(&self.text, before)).flatten() {
                self.cut(end);
                return Some(Stop(FinishReason::Sentence));
            }
            if self.rules.repetition && self.in_circles() {
                return Some(Stop(FinishReason::Loop));
            }
        }
        (self.tokens.len() >= self.limit).then_some(Stop(FinishReason::Length))
    }

    /// The tokens and the text: without control tokens, cut before a stop string or after the sentence.
    pub fn finish(mut self) -> (Vec<TokenId>, String) {
        self.decoder.finish(&mut self.text);
        (self.tokens, self.text)
    }

    /// Cuts the text; what the decoder holds back belongs to what is cut.
    fn cut(&mut self, at: usize) {
        self.decoder.finish(&mut self.text);
        self.text.truncate(at);
    }

    /// In the last 10 % of the limit, at least 8 tokens.
    fn near_limit(&self) -> bool {
        self.tokens.len() + (self.limit / 10).max(8) > self.limit
    }

    fn count_repeats(&mut self) {
        let n = self.tokens.len();
        for period in 1..=LONGEST_PERIOD.min(n - 1) {
            let again = self.tokens[n - 1] == self.tokens[n - 1 - period];
            self.repeats[period - 1] = if again { self.repeats[period - 1] + 1 } else { 0 };
        }
    }

    /// The last 64 or more tokens are at least 4 repeats of one period of at most 32.
    fn in_circles(&self) -> bool {
        (1..=LONGEST_PERIOD).any(|period| self.repeats[period - 1] + period >= LOOP_TOKENS.max(LOOP_REPEATS * period))
    }
}

/// Where the first stop string that ends after byte `from` begins.
fn stop_string(text: &str, from: usize, strings: &[String]) -> Option<usize> {
    let found = strings.iter().filter(|s| !s.is_empty()).filter_map(|s| {
        let mut start = (from + 1).saturating_sub(s.len());
        while !text.is_char_boundary(start) {
            start += 1;
        }
        text[start..].find(s.as_str()).map(|i| start + i)
    });
    found.min()
}

/// Where the first sentence ends whose following white space begins at or after byte `from`; code fences hold no sentences.
fn sentence_end(text: &str, from: usize) -> Option<usize> {
    let spaces = text[from..].char_indices().filter(|(_, c)| c.is_whitespace()).map(|(i, _)| from + i);
    for end in spaces {
        let words = text[..end].trim_end_matches(['"', '\'', '”', '’', '»', '」']);
        if words.ends_with(['.', '?', '!']) && !in_code(&text[..end]) {
            return Some(end);
        }
    }
    None
}

/// Whether a text ends inside a fenced block of code.
fn in_code(text: &str) -> bool {
    text.lines().filter(|line| line.trim_start().starts_with("```")).count() % 2 == 1
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Tokens below 128 are characters, above they are control tokens.
    pub(in crate::engine) struct Ascii;

    impl TextDecoder for Ascii {
        fn push(&mut self, token: TokenId, text: &mut String) {
            if token < 128 {
                text.push(char::from(token as u8));
            }
        }
        fn finish(&mut self, _: &mut String) {}
    }

    pub(in crate::engine) fn rules(strings: &[&str], eos: bool, sentence: bool, repetition: bool) -> Arc<StopRules> {
        Arc::new(StopRules { eos, strings: strings.iter().map(|s| s.to_string()).collect(), sentence, repetition })
    }

    /// Feeds tokens until something stops; (reason, tokens used, text).
    fn run(
        policy: StoppingPolicy,
        rules: Arc<StopRules>,
        limit: usize,
        tokens: &[TokenId],
    ) -> Option<(FinishReason, usize, String)> {
        let mut watch = StopWatch::new(policy, rules, [200].into(), limit, Box::new(Ascii));
        for (i, &token) in tokens.iter().enumerate() {
            if let Some(Stop(reason)) = watch.push(token) {
                return Some((reason, i + 1, watch.finish().1));
            }
        }
        None
    }

    fn ids(text: &str) -> Vec<TokenId> {
        text.bytes().map(u32::from).collect()
    }

    fn early(rules: Arc<StopRules>, limit: usize, text: &str) -> Option<(FinishReason, usize, String)> {
        run(StoppingPolicy::Early, rules, limit, &ids(text))
    }

    #[test]
    fn the_end_token_stops_and_is_not_shown() {
        let tokens = [ids("ab"), vec![200], ids("cd")].concat();
        let all = rules(&["zzz"], true, true, true);
        assert_eq!(run(StoppingPolicy::Early, all.clone(), 5, &tokens), Some((FinishReason::Stop, 3, "ab".into())));
        assert_eq!(run(StoppingPolicy::MaxTokensOnly, all, 5, &tokens), Some((FinishReason::Length, 5, "abcd".into())));
        let no_eos = rules(&[], false, false, false);
        assert_eq!(run(StoppingPolicy::Early, no_eos, 5, &tokens), Some((FinishReason::Length, 5, "abcd".into())));
    }

    #[test]
    fn text_is_cut_before_the_first_stop_string() {
        let two = rules(&["END", "ND"], true, false, false);
        assert_eq!(early(two, 99, "the END."), Some((FinishReason::StopString, 7, "the ".into())));
        assert_eq!(early(rules(&[""], true, false, false), 3, "abc").unwrap().0, FinishReason::Length);
        assert_eq!(early(rules(&["abc"], true, false, false), 3, "abc").unwrap(), (FinishReason::StopString, 3, String::new()));
    }

    #[test]
    fn a_stop_string_is_found_across_characters_of_several_bytes() {
        assert_eq!(stop_string("naïve é!", 7, &["é!".into()]), Some(7));
        assert_eq!(stop_string("ééé", 4, &["éé".into()]), Some(2));
        assert_eq!(stop_string("abab", 3, &["ab".into()]), Some(2), "the one found before would have stopped before");
    }

    #[test]
    fn a_sentence_ends_only_near_the_limit_before_white_space_and_outside_code() {
        let r = || rules(&[], true, true, false);
        let long = "One. Two. Three. ".repeat(12);
        // Limit 100: the last 10 tokens begin at 91; the first white space after a period there is token 94.
        let (reason, used, text) = early(r(), 100, &long).unwrap();
        assert_eq!((reason, used), (FinishReason::Sentence, 95));
        assert_eq!(text, &long[..94]);
        assert_eq!(early(r(), 9, "he said \"Go.\" and").unwrap().0, FinishReason::Length);
        assert_eq!(early(r(), 14, "he said \"Go.\" and").unwrap(), (FinishReason::Sentence, 14, "he said \"Go.\"".into()));
        assert_eq!(early(r(), 12, "pi = 3.14159 x"), Some((FinishReason::Length, 12, "pi = 3.14159".into())));
        assert_eq!(early(r(), 16, "a\n```\nb. c.\n```\n").unwrap().0, FinishReason::Length);
        assert_eq!(early(r(), 18, "a\n```\nb.\n```\nOK. .").unwrap().0, FinishReason::Sentence);
    }

    #[test]
    fn circles_are_64_tokens_and_four_repeats() {
        let r = || rules(&[], true, false, true);
        let stops = |period: usize| {
            let tokens: Vec<TokenId> = (0..400).map(|i| 300 + (i % period) as TokenId).collect();
            run(StoppingPolicy::Early, r(), 400, &tokens).map(|(reason, used, _)| (reason, used)).unwrap()
        };
        assert_eq!(stops(1), (FinishReason::Loop, 64));
        assert_eq!(stops(16), (FinishReason::Loop, 64));
        assert_eq!(stops(17), (FinishReason::Loop, 68));
        assert_eq!(stops(32), (FinishReason::Loop, 128));
        assert_eq!(stops(33), (FinishReason::Length, 400));
    }

    proptest! {
        #[test]
        fn circles_are_found_as_a_plain_reading_of_the_rule_finds_them(
            head in prop::collection::vec(0u32..3, 0..40),
            unit in prop::collection::vec(0u32..3, 1..36),
            times in 1usize..40,
        ) {
            let tokens: Vec<TokenId> = head.iter().copied().chain(unit.iter().copied().cycle().take(unit.len() * times)).collect();
            let plain = (1..=tokens.len()).find(|&n| {
                (1..=32usize).any(|p| {
                    let len = 64.max(4 * p);
                    len <= n && (n - len + p..n).all(|i| tokens[i] == tokens[i - p])
                })
            });
            let found = run(StoppingPolicy::Early, rules(&[], true, false, true), usize::MAX / 2, &tokens).map(|f| f.1);
            prop_assert_eq!(found, plain);
        }
    }
}

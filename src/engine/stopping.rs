//! What ends a sequence before its limit: end-of-sequence tokens, stop strings, a sentence's end near the limit,
//! repetition. In: generated ids, one at a time. Out: whether to stop, why, the text, and the thought apart from it. A pure function of the
//! ids and the limit.

use super::{FinishReason, StopRules, StoppingPolicy, Thought};
use crate::text::Detokenizer;
use crate::units::TokenId;
use std::sync::Arc;

/// Turns one sequence's generated ids into text, a token at a time.
pub trait TextDecoder: Send {
    /// Appends what this token adds to the text. Control tokens add nothing; an incomplete character is held back.
    fn push(&mut self, token: TokenId, text: &mut String);

    /// Appends what was held back; adds nothing when called again.
    fn finish(&mut self, text: &mut String);

    /// The control token that is spelled like this: it has no text of its own, so a stop string of that spelling means the token.
    fn control(&self, _text: &str) -> Option<TokenId> {
        None
    }
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
    /// Control tokens that stop strings spell.
    controls: Vec<TokenId>,
    limit: usize,
    decoder: Box<dyn TextDecoder>,
    tokens: Vec<TokenId>,
    text: String,
    /// Where the model's thought begins and ends, and where the answer is with it.
    thought: Option<(Arc<Thought>, Thinking)>,
    /// Control tokens that open and close a thought.
    thought_controls: [Option<TokenId>; 2],
    reasoning: String,
    /// Lengths of the thought before each of its tokens.
    lengths: Vec<usize>,
    fences: Fences,
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
        thought: Option<Arc<Thought>>,
    ) -> StopWatch {
        let controls = rules.strings.iter().filter_map(|s| decoder.control(s)).collect();
        let mark =
            |text: fn(&Thought) -> &String| thought.as_ref().and_then(|t| decoder.control(text(t)));
        let thought_controls = [mark(|t| &t.open), mark(|t| &t.close)];
        let thought = thought.map(|thought| {
            let state = if thought.opened { Thinking::Inside } else { Thinking::Before };
            (thought, state)
        });
        StopWatch {
            thought,
            thought_controls,
            reasoning: String::new(),
            lengths: Vec::new(),
            policy,
            rules,
            eos,
            controls,
            limit,
            decoder,
            tokens: Vec::new(),
            text: String::new(),
            fences: Fences::default(),
            repeats: [0; LONGEST_PERIOD],
        }
    }

    /// The tokens so far.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Takes the next token; says if it is the last one.
    pub fn push(&mut self, token: TokenId) -> Option<Stop> {
        self.tokens.push(token);
        let before = self.text.len();
        self.count_repeats();
        let thinking = self.is_thinking();
        match thinking {
            true => self.think(token),
            false => {
                self.decoder.push(token, &mut self.text);
                self.begin_thought(token);
            }
        }
        let before = before.min(self.text.len());
        let ends = self.rules.eos && self.eos.contains(&token);
        if self.policy == StoppingPolicy::Early && ends {
            return Some(Stop(FinishReason::Stop));
        }
        if self.policy == StoppingPolicy::Early && !thinking && !self.is_thinking() {
            if self.controls.contains(&token) {
                return Some(Stop(FinishReason::StopString));
            }
            if let Some(start) = stop_string(&self.text, before, &self.rules.strings) {
                self.cut(start);
                return Some(Stop(FinishReason::StopString));
            }
            let watched = self.rules.sentence && self.near_limit();
            if let Some(end) =
                watched.then(|| sentence_end(&self.text, before, &mut self.fences)).flatten()
            {
                self.cut(end);
                return Some(Stop(FinishReason::Sentence));
            }
            if self.rules.repetition && self.in_circles() {
                return Some(Stop(FinishReason::Loop));
            }
        }
        (self.tokens.len() >= self.limit).then_some(Stop(FinishReason::Length))
    }

    /// The text and the thought: without control tokens, the text cut before a stop string or after the sentence.
    pub fn finish(mut self) -> Said {
        let thinking = self.is_thinking();
        self.decoder.finish(if thinking { &mut self.reasoning } else { &mut self.text });
        let thought = self
            .thought
            .as_ref()
            .is_some_and(|(_, state)| matches!(state, Thinking::Inside | Thinking::After));
        let reasoning = thought.then(|| self.reasoning.trim().to_string());
        if thought {
            // White space between the thought and the answer is neither's.
            self.text = self.text.trim_start().to_string();
        }
        Said { tokens: self.tokens, text: self.text, reasoning }
    }

    /// The newest token lies inside a thought.
    pub fn is_thinking(&self) -> bool {
        matches!(self.thought, Some((_, Thinking::Inside)))
    }

    /// The answer so far is white space at most, and a thought may begin.
    pub fn may_think(&self) -> bool {
        matches!(self.thought, Some((_, Thinking::Before))) && self.text.trim().is_empty()
    }

    /// The text so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// A token outside a thought: whether one begins with it.
    fn begin_thought(&mut self, token: TokenId) {
        let Some((thought, state @ Thinking::Before)) = &mut self.thought else { return };
        let begun = self.text.trim_start();
        let (open, said) = (&thought.open_tokens, &self.tokens);
        let answer = open
            .first()
            .and_then(|first| thought.close_tokens.iter().rposition(|token| token == first));
        let answer = answer.map_or(&[][..], |at| &thought.close_tokens[at..]);
        if self.thought_controls[0] == Some(token) || open == said {
            self.text.clear();
            *state = Thinking::Inside;
        } else if let Some(rest) = begun.strip_prefix(thought.open.as_str()) {
            self.reasoning = rest.to_string();
            self.text.clear();
            *state = Thinking::Inside;
        } else if answer == said.as_slice() {
            // The channel of answers was opened without a thought.
            self.text.clear();
            *state = Thinking::Never;
        } else if !thought.open.starts_with(begun)
            && !open.starts_with(said)
            && !answer.starts_with(said)
        {
            *state = Thinking::Never;
        }
    }

    /// A token inside a thought: whether the thought ends with it.
    fn think(&mut self, token: TokenId) {
        let Some((thought, state)) = &mut self.thought else { return };
        let before = self.reasoning.len();
        let closes = &thought.close_tokens;
        if closes.len() > 1 {
            self.lengths.push(before);
        }
        self.decoder.push(token, &mut self.reasoning);
        if closes.len() > 1
            && let Some(first) = self.lengths.len().checked_sub(closes.len())
            && self.tokens.ends_with(closes)
        {
            self.decoder.finish(&mut self.reasoning);
            self.reasoning.truncate(self.lengths[first]);
            *state = Thinking::After;
        } else if self.thought_controls[1] == Some(token) {
            self.decoder.finish(&mut self.reasoning);
            *state = Thinking::After;
        } else if let Some(at) =
            stop_string(&self.reasoning, before, std::slice::from_ref(&thought.close))
        {
            // What the closing token says besides belongs to the answer, without the white space between.
            self.text = self.reasoning[at + thought.close.len()..].trim_start().to_string();
            self.reasoning.truncate(at);
            *state = Thinking::After;
        }
        // A model that was asked to think opens its thought again where the template has opened it.
        let opens = self.reasoning.trim_start();
        if thought.opened
            && let Some(rest) = opens.strip_prefix(thought.open.as_str())
        {
            self.reasoning = rest.to_string();
        }
    }

    /// Cuts the text; what the decoder holds back belongs to what is cut.
    fn cut(&mut self, at: usize) {
        self.decoder.finish(&mut self.text);
        self.text.truncate(at);
    }

    /// In the last tenth of the limit, rounded down: a limit below 10 has none.
    fn near_limit(&self) -> bool {
        self.tokens.len() + self.limit / 10 > self.limit
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
        (1..=LONGEST_PERIOD).any(|period| {
            self.repeats[period - 1] + period >= LOOP_TOKENS.max(LOOP_REPEATS * period)
        })
    }
}

/// Where an answer is with its thought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Thinking {
    /// One may begin.
    Before,
    /// It is one.
    Inside,
    /// It has ended.
    After,
    /// The answer began without one.
    Never,
}

/// All that a sequence said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The ids.
    pub tokens: Vec<TokenId>,
    /// The answer.
    pub text: String,
    /// The thought before it, if there was one.
    pub reasoning: Option<String>,
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

/// Quotes and brackets that belong to the sentence before them.
const CLOSING: [char; 12] = ['"', '\'', '”', '’', '»', '」', '』', '）', '】', '》', '〉', '＂'];
/// Ends of sentences that no white space follows.
const FULL_WIDTH: [char; 4] = ['。', '！', '？', '｡'];
/// Ends of sentences that white space follows: of Latin, Greek and Cyrillic text, Arabic, Urdu, Hindi, Armenian, Amharic.
const SPACED: [char; 9] = ['.', '?', '!', '؟', '۔', '।', '॥', '։', '።'];

/// Words that end with a period inside a sentence, as they are written.
const ABBREVIATIONS: &[&str] = &[
    "Mr", "Mrs", "Ms", "Mx", "Dr", "Prof", "St", "Ste", "Sr", "Jr", "Rev", "Hon", "Gen", "Col",
    "Maj", "Capt", "Cpt", "Lt", "Sgt", "Cpl", "Adm", "Gov", "Sen", "Rep", "Pres", "Mt", "Ft",
    "Ave", "Blvd", "Rd", "Inc", "Ltd", "Co", "Corp", "Bros", "Dept", "Univ", "Assn", "Jan", "Feb",
    "Mar", "Apr", "Jun", "Jul", "Aug", "Sep", "Sept", "Oct", "Nov", "Dec", "Mon", "Tue", "Tues",
    "Wed", "Thu", "Thur", "Thurs", "Fri", "No", "Nr", "Nos", "Fig", "Figs", "Eq", "Eqs", "Sec",
    "Ch", "Vol", "Art", "Ed", "Eds", "fig", "eq", "sec", "vol", "vs", "etc", "approx", "cf", "pp",
    "al", "viz", "esp", "resp", "est", "ca", "bzw", "usw", "Hr", "Fr", "Str", "Sra", "Mme", "Mlle",
    "им", "гл", "стр",
];

/// Where the first sentence ends that is seen to end at or after byte `from`: at the white space behind it, or after a full-width mark at
/// whatever is no closing quote. Code fences hold no sentences.
fn sentence_end(text: &str, from: usize, fences: &mut Fences) -> Option<usize> {
    text[from..].char_indices().map(|(i, c)| (from + i, c)).find_map(|(end, next)| {
        let words = text[..end].trim_end_matches(CLOSING);
        let ends = if CLOSING.contains(&next) {
            false
        } else if words.ends_with(FULL_WIDTH) {
            !FULL_WIDTH.contains(&next)
        } else {
            next.is_whitespace()
                && words.ends_with(SPACED)
                && !(words.ends_with('.') && is_mark(words))
        };
        (ends && !fences.open_at(text, end)).then_some(end)
    })
}

/// Whether the period at the end of `text` is no sentence's: it stands after a list number, a lone letter or an abbreviation.
fn is_mark(text: &str) -> bool {
    let before = text.trim_end_matches('.');
    if text.len() - before.len() > 1 {
        return false;
    }
    let word = before.rsplit(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    let whole = before.rsplit(char::is_whitespace).next().unwrap_or_default();
    let line = before.rsplit('\n').next().unwrap_or_default();
    // A number that is all of its line so far, whatever marks the list or table stand before it; or a short one anywhere.
    let digits = |s: &str| !s.is_empty() && s.chars().all(char::is_numeric);
    let first = line.trim_start_matches(|c: char| !c.is_alphanumeric())
        == whole.trim_start_matches(|c: char| !c.is_alphanumeric());
    let roman =
        |s: &str| !s.is_empty() && s.len() <= 5 && s.chars().all(|c| "ivxlcIVXLC".contains(c));
    let number = digits(word)
        && (word.chars().count() <= 3 && !whole.contains(['.', ','])
            || first && whole.chars().all(|c| !c.is_alphabetic()));
    number
        || (first && roman(word))
        || word.chars().count() == 1 && !digits(word)
        || ABBREVIATIONS.contains(&word)
}

/// Whether a place lies in a fenced block of code; each line is looked at once.
#[derive(Default)]
struct Fences {
    /// Where the first line begins that was not whole yet.
    at: usize,
    /// Inside a block there.
    inside: bool,
}

impl Fences {
    /// Whether `text[..end]` ends inside a block; `end` never goes back.
    fn open_at(&mut self, text: &str, end: usize) -> bool {
        let is_fence = |line: &str| line.trim_start().starts_with("```");
        while let Some(length) = text[self.at..end].find('\n') {
            self.inside ^= is_fence(&text[self.at..self.at + length]);
            self.at += length + 1;
        }
        self.inside ^ is_fence(&text[self.at..end])
    }
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

        fn control(&self, text: &str) -> Option<TokenId> {
            (text == "<end>").then_some(200)
        }
    }

    pub(in crate::engine) fn rules(
        strings: &[&str],
        eos: bool,
        sentence: bool,
        repetition: bool,
    ) -> Arc<StopRules> {
        Arc::new(StopRules {
            eos,
            strings: strings.iter().map(|s| s.to_string()).collect(),
            sentence,
            repetition,
        })
    }

    /// Feeds tokens until something stops; (reason, tokens used, text).
    fn run(
        policy: StoppingPolicy,
        rules: Arc<StopRules>,
        limit: usize,
        tokens: &[TokenId],
    ) -> Option<(FinishReason, usize, String)> {
        let mut watch = StopWatch::new(policy, rules, [200].into(), limit, Box::new(Ascii), None);
        for (i, &token) in tokens.iter().enumerate() {
            if let Some(Stop(reason)) = watch.push(token) {
                return Some((reason, i + 1, watch.finish().text));
            }
        }
        None
    }

    fn ids(text: &str) -> Vec<TokenId> {
        text.bytes().map(u32::from).collect()
    }

    fn early(
        rules: Arc<StopRules>,
        limit: usize,
        text: &str,
    ) -> Option<(FinishReason, usize, String)> {
        run(StoppingPolicy::Early, rules, limit, &ids(text))
    }

    #[test]
    fn the_end_token_stops_and_is_not_shown() {
        let tokens = [ids("ab"), vec![200], ids("cd")].concat();
        let all = rules(&["zzz"], true, true, true);
        assert_eq!(
            run(StoppingPolicy::Early, all.clone(), 5, &tokens),
            Some((FinishReason::Stop, 3, "ab".into()))
        );
        assert_eq!(
            run(StoppingPolicy::MaxTokensOnly, all, 5, &tokens),
            Some((FinishReason::Length, 5, "abcd".into()))
        );
        let no_eos = rules(&[], false, false, false);
        assert_eq!(
            run(StoppingPolicy::Early, no_eos, 5, &tokens),
            Some((FinishReason::Length, 5, "abcd".into()))
        );
    }

    #[test]
    fn text_is_cut_before_the_first_stop_string() {
        let two = rules(&["END", "ND"], true, false, false);
        assert_eq!(early(two, 99, "the END."), Some((FinishReason::StopString, 7, "the ".into())));
        assert_eq!(
            early(rules(&[""], true, false, false), 3, "abc").unwrap().0,
            FinishReason::Length
        );
        assert_eq!(
            early(rules(&["abc"], true, false, false), 3, "abc").unwrap(),
            (FinishReason::StopString, 3, String::new())
        );
    }

    #[test]
    fn a_stop_string_is_found_across_characters_of_several_bytes() {
        assert_eq!(stop_string("naïve é!", 7, &["é!".into()]), Some(7));
        assert_eq!(stop_string("ééé", 4, &["éé".into()]), Some(2));
        assert_eq!(
            stop_string("abab", 3, &["ab".into()]),
            Some(2),
            "the one found before would have stopped before"
        );
    }

    #[test]
    fn a_sentence_ends_only_in_the_last_tenth_before_white_space_and_outside_code() {
        let r = || rules(&[], true, true, false);
        let long = "One. Two. Three. ".repeat(12);
        // Limit 100: the last 10 tokens begin at 91; the first white space after a period there is token 94.
        let (reason, used, text) = early(r(), 100, &long).unwrap();
        assert_eq!((reason, used), (FinishReason::Sentence, 95));
        assert_eq!(text, &long[..94]);
        // Rounded down: none below 10, one token of 19, two of 20.
        for (limit, space, reason) in [
            (9, 9, FinishReason::Length),
            (19, 18, FinishReason::Length),
            (19, 19, FinishReason::Sentence),
            (20, 18, FinishReason::Length),
            (20, 19, FinishReason::Sentence),
            (20, 20, FinishReason::Sentence),
        ] {
            let text = format!("{} Xyz. {}", "x".repeat(space - 6), "y".repeat(30));
            let found = early(r(), limit, &text).unwrap();
            assert_eq!(found.0, reason, "limit {limit}, white space at {space}: {found:?}");
        }
        let near = |text: &str| ends(text).map(|end| text[..end].to_string());
        assert_eq!(near("he said \"Go.\" and").as_deref(), Some("he said \"Go.\""));
        assert_eq!(near("pi = 3.14159 x"), None);
        assert_eq!(near("a\n```\nbb. cc.\n```\n"), None);
        assert_eq!(near("a\n```\nbb.\n```\nOK. .").as_deref(), Some("a\n```\nbb.\n```\nOK."));
    }

    /// Where the sentence rule would stop if all of the text were near the limit, given a character at a time.
    fn ends(text: &str) -> Option<usize> {
        let mut fences = Fences::default();
        text.char_indices()
            .find_map(|(at, c)| sentence_end(&text[..at + c.len_utf8()], at, &mut fences))
    }

    #[test]
    fn list_numbers_lone_letters_and_abbreviations_end_no_sentence() {
        for text in [
            "1. Dog\n2. Cat\n",
            "9. ",
            "animals:\n  10. Owl\n",
            "- 3. x",
            "**12. x",
            "| 1. | Dog |\n| 2. | Cat |",
            "1.2. Scope\n1.2.10. More\n",
            "2024. Year\n",
            "iv. fourth\nVII. seventh",
            "a. first\nB. second",
            "Dogs 1. bark 2. bite 3. sleep",
            "Meet Dr. Smith and Mr. Jones at St. Paul on Jan. 5 at 3 p.m. sharp",
            "cats, dogs, etc. are animals, e.g. owls, i.e. birds",
            "See Fig. 3 and Eq. 2, vol. 7, pp. 3, J. R. R. Tolkien vs. the U.S. army",
            "call obj.method( x ); a.b = 3.0 ; f(\"x.\"); ",
            "```py\nprint('Done.')\n# Done. Really.\nx",
            "версия им. Ленина и т. д. и",
        ] {
            assert_eq!(ends(text).map(|end| &text[..end]), None, "{text:?}");
        }
        for (text, sentence) in [
            ("8. Cat.\n9. Dog", "8. Cat."),
            ("It was in 1999. Then", "It was in 1999."),
            ("It costs 3.50. Then", "It costs 3.50."),
            ("He said no. Then", "He said no."),
            ("| Dogs bark. | Cats", "| Dogs bark."),
            ("Is it you and I? Yes", "Is it you and I?"),
            ("Well... Then", "Well..."),
            ("Go!\n", "Go!"),
            ("这是一句话。下一句", "这是一句话。"),
            ("他说：「走吧。」然后", "他说：「走吧。」"),
            ("行きますか？はい", "行きますか？"),
            ("すごい！！次", "すごい！！"),
            ("Это конец. Да", "Это конец."),
            ("Αυτό είναι. Ναι", "Αυτό είναι."),
            ("यह एक वाक्य है। दूसरा", "यह एक वाक्य है।"),
            ("ما هذا؟ هذا", "ما هذا؟"),
            ("이것은 문장입니다. 다음", "이것은 문장입니다."),
        ] {
            assert_eq!(ends(text).map(|end| &text[..end]), Some(sentence), "{text:?}");
        }
    }

    #[test]
    fn fences_are_counted_once_a_line() {
        let text = "a\n```\nb\n```\nc ```\n  ```x\nd";
        for cut in (0..=text.len()).filter(|&i| text.is_char_boundary(i)) {
            let plain =
                text[..cut].lines().filter(|line| line.trim_start().starts_with("```")).count() % 2
                    == 1;
            assert_eq!(Fences::default().open_at(text, cut), plain, "{:?}", &text[..cut]);
        }
        let mut fences = Fences::default();
        let inside: Vec<bool> = (0..=text.len()).map(|cut| fences.open_at(text, cut)).collect();
        assert_eq!(
            inside,
            (0..=text.len()).map(|cut| Fences::default().open_at(text, cut)).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_stop_string_that_spells_a_control_token_stops_on_the_token() {
        let tokens = [ids("ab"), vec![200], ids("cd")].concat();
        let spelled = rules(&["<end>"], false, false, false);
        assert_eq!(
            run(StoppingPolicy::Early, spelled.clone(), 9, &tokens),
            Some((FinishReason::StopString, 3, "ab".into()))
        );
        assert_eq!(
            run(StoppingPolicy::MaxTokensOnly, spelled.clone(), 5, &tokens).unwrap().0,
            FinishReason::Length
        );
        // Typed out in the text it is a stop string like any other.
        assert_eq!(
            early(spelled, 9, "ab<end>cd"),
            Some((FinishReason::StopString, 7, "ab".into()))
        );
    }

    #[test]
    fn circles_are_64_tokens_and_four_repeats() {
        let r = || rules(&[], true, false, true);
        let stops = |period: usize| {
            let tokens: Vec<TokenId> = (0..400).map(|i| 300 + (i % period) as TokenId).collect();
            run(StoppingPolicy::Early, r(), 400, &tokens)
                .map(|(reason, used, _)| (reason, used))
                .unwrap()
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

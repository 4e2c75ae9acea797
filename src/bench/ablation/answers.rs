//! What became of the answers: each row's promise, checked on the answers of the same run. In: token ids of both sides. Out: tallies.
//! Nothing is assumed: a row that may differ and does not is reported as identical.

use crate::optimizations::Promise;
use crate::units::TokenId;
use serde::{Deserialize, Serialize};

/// One answer of a trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerTokens {
    /// The prompt's id.
    pub id: String,
    /// Generated ids, an end-of-sequence token included.
    pub tokens: Vec<TokenId>,
}

/// Pairs of answers compared so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Pairs.
    pub pairs: u64,
    /// Of these, the same ids.
    pub identical: u64,
    /// Of these, the answer with the optimization is a beginning of (or the same as) the one without.
    pub prefix: u64,
    /// Tokens before the first difference, of all pairs.
    pub agreed: u64,
    /// Tokens of the longer answer, of all pairs.
    pub tokens: u64,
    /// The first prompt whose answers are not identical.
    pub first_not_identical: Option<String>,
    /// The first prompt whose answer is not a beginning.
    pub first_not_prefix: Option<String>,
}

/// What was seen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnswersSeen {
    /// All pairs have the same ids.
    Identical,
    /// All answers with are beginnings of the answers without.
    Prefix,
    /// Some differ; this share of the tokens stands before the first difference.
    Differ(f64),
}

impl Tally {
    /// Compares two trials of one slice, answers in the same order of prompts.
    pub fn add(&mut self, without: &[AnswerTokens], with: &[AnswerTokens]) {
        for (a, b) in without.iter().zip(with) {
            debug_assert_eq!(a.id, b.id, "answers of different prompts");
            let agreed = a.tokens.iter().zip(&b.tokens).take_while(|(x, y)| x == y).count();
            self.pairs += 1;
            self.agreed += agreed as u64;
            self.tokens += a.tokens.len().max(b.tokens.len()) as u64;
            if a.tokens == b.tokens {
                self.identical += 1;
            } else {
                self.first_not_identical.get_or_insert_with(|| a.id.clone());
            }
            if agreed == b.tokens.len() {
                self.prefix += 1;
            } else {
                self.first_not_prefix.get_or_insert_with(|| a.id.clone());
            }
        }
    }

    /// Adds another tally.
    pub fn merge(&mut self, other: &Tally) {
        self.pairs += other.pairs;
        self.identical += other.identical;
        self.prefix += other.prefix;
        self.agreed += other.agreed;
        self.tokens += other.tokens;
        self.first_not_identical =
            self.first_not_identical.take().or_else(|| other.first_not_identical.clone());
        self.first_not_prefix =
            self.first_not_prefix.take().or_else(|| other.first_not_prefix.clone());
    }

    /// What was seen; `None` before the first pair.
    pub fn seen(&self) -> Option<AnswersSeen> {
        match self {
            Tally { pairs: 0, .. } => None,
            t if t.identical == t.pairs => Some(AnswersSeen::Identical),
            t if t.prefix == t.pairs => Some(AnswersSeen::Prefix),
            t => Some(AnswersSeen::Differ(t.agreed as f64 / t.tokens.max(1) as f64)),
        }
    }

    /// The first prompt that breaks this promise.
    pub fn broken(&self, promise: Promise) -> Option<&str> {
        match promise {
            Promise::Identical => self.first_not_identical.as_deref(),
            Promise::Prefix => self.first_not_prefix.as_deref(),
            Promise::Differ => None,
        }
    }
}

impl AnswersSeen {
    /// As files write it: `identical`, `prefix`, `differ`.
    pub fn name(self) -> &'static str {
        match self {
            AnswersSeen::Identical => "identical",
            AnswersSeen::Prefix => "prefix",
            AnswersSeen::Differ(_) => "differ",
        }
    }

    /// Share of the tokens before the first difference; of a beginning, all that there are.
    pub fn agreement(self) -> f64 {
        match self {
            AnswersSeen::Identical | AnswersSeen::Prefix => 1.0,
            AnswersSeen::Differ(agreement) => agreement,
        }
    }
}

/// For people.
impl std::fmt::Display for AnswersSeen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AnswersSeen::Identical => f.write_str("identical"),
            AnswersSeen::Prefix => f.write_str("prefix"),
            // Not all of it, however it rounds.
            AnswersSeen::Differ(agreement) => {
                write!(f, "agree {:.0} %", (agreement * 100.0).min(99.0))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(answers: &[&[TokenId]]) -> Vec<AnswerTokens> {
        answers
            .iter()
            .enumerate()
            .map(|(i, t)| AnswerTokens { id: format!("p{i}"), tokens: t.to_vec() })
            .collect()
    }

    fn tally(without: &[&[TokenId]], with: &[&[TokenId]]) -> Tally {
        let mut tally = Tally::default();
        tally.add(&given(without), &given(with));
        tally
    }

    #[test]
    fn identical_prefix_and_differing_answers_are_told_apart() {
        let same = tally(&[&[1, 2], &[3]], &[&[1, 2], &[3]]);
        assert_eq!(same.seen(), Some(AnswersSeen::Identical));
        let shorter = tally(&[&[1, 2], &[3]], &[&[1], &[3]]);
        assert_eq!(shorter.seen(), Some(AnswersSeen::Prefix));
        let other = tally(&[&[1, 2], &[3, 4]], &[&[1, 2], &[3, 5]]);
        assert_eq!(other.seen(), Some(AnswersSeen::Differ(0.75)));
        assert_eq!(Tally::default().seen(), None);
        let shown = |seen: Option<AnswersSeen>| {
            seen.map(|s| (s.to_string(), s.name(), s.agreement())).unwrap()
        };
        assert_eq!(shown(same.seen()), ("identical".into(), "identical", 1.0));
        assert_eq!(shown(shorter.seen()), ("prefix".into(), "prefix", 1.0));
        assert_eq!(shown(other.seen()), ("agree 75 %".into(), "differ", 0.75));
        assert_eq!(AnswersSeen::Differ(0.999).to_string(), "agree 99 %");
        // A longer answer is not a beginning.
        assert_eq!(tally(&[&[1]], &[&[1, 2]]).seen(), Some(AnswersSeen::Differ(0.5)));
    }

    #[test]
    fn a_broken_promise_names_the_first_prompt() {
        let mut t = tally(&[&[1], &[1, 2], &[7]], &[&[1], &[1], &[8]]);
        assert_eq!(t.broken(Promise::Identical), Some("p1"));
        assert_eq!(t.broken(Promise::Prefix), Some("p2"));
        assert_eq!(t.broken(Promise::Differ), None);
        t.merge(&tally(&[&[1]], &[&[2]]));
        assert_eq!((t.pairs, t.broken(Promise::Identical)), (4, Some("p1")));
    }
}

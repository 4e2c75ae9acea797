//! What goes into a pipeline and what comes out: prompts with their generation settings, answers, errors of single records.
//! Plain data; no file formats (those are `text`'s and `cli`'s).

use crate::engine::{FinishReason, Penalties, Sampling, StopRules};
use crate::model::RopeSet;
use crate::text::prompts::RecordError;
use crate::text::{Constraint, Content, Turn};
use crate::units::TokenId;

/// Generation settings of one prompt: the flags, with the record's own fields of the same name put over them.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Generation {
    /// Most tokens to generate; ≥ 1. Clipped to the context by the pipeline.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// What ends the answer early (`--stop`, `--stop-on`).
    pub stop: StopRules,
    /// A system message put in front.
    pub system: Option<String>,
    /// No chat template: BOS only if the file says so, control-token text is parsed.
    pub raw: bool,
    /// How a conversation is handed to the chat template.
    pub turn: Turn,
    /// What the answer is to be besides text.
    pub form: Box<Form>,
}

#[cfg(test)]
impl Generation {
    /// The command line's defaults, for tests.
    pub(crate) fn usual() -> Generation {
        Generation {
            max_tokens: 128,
            sampling: Sampling { temperature: 0.2, top_p: 0.95, top_k: 50, seed: 0 },
            stop: StopRules { eos: true, strings: vec![], sentence: true, repetition: true },
            system: None,
            raw: false,
            turn: Turn::default(),
            form: Box::default(),
        }
    }
}

/// Tokens of an answer to a prompt of `prompt` tokens for which `max_tokens` are asked: what the context leaves of them, at least 1.
pub fn clipped(max_tokens: usize, prompt: usize, context: usize) -> usize {
    max_tokens.min(context.saturating_sub(prompt)).max(1)
}

/// What an answer is to be besides text that ends somewhere; by default nothing.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Form {
    /// The form that it must have.
    pub constraint: Option<Constraint>,
    /// The texts of which it is one, scored instead of generated; at least two, all different.
    pub choices: Option<Vec<String>>,
    /// Log probabilities, and of so many alternatives.
    pub logprobs: Option<usize>,
    /// Answers to one prompt, the i-th drawn with seed + i; ≥ 1.
    pub n: usize,
    /// How scores of tokens change that were there before.
    pub penalties: Penalties,
    /// Tokens below this share of the best one's probability are left out; 0 is off.
    pub min_p: f32,
}

impl Default for Form {
    fn default() -> Form {
        Form {
            constraint: None,
            choices: None,
            logprobs: None,
            n: 1,
            penalties: Penalties::default(),
            min_p: 0.0,
        }
    }
}

impl Form {
    /// Of the rules that may end an answer early only the end-of-sequence tokens are read.
    pub fn rules_its_end(&self) -> bool {
        self.constraint.is_some() || self.choices.is_some()
    }
}

/// A prompt, accepted for answering.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// The caller's name for it; the pipeline only hands it on.
    pub id: String,
    /// What is asked.
    pub content: Content,
    /// How to answer.
    pub generation: Generation,
    /// An answer that is cut before it has its form is an answer, as OpenAI has it, rather than an error.
    pub accepts_cut: bool,
}

/// What a source yields. `T` is the caller's: whatever is needed to write the answer down travels with the prompt and comes back with it.
#[derive(Debug, Clone, PartialEq)]
pub enum Input<T = ()> {
    /// To be answered.
    Prompt(Prompt, T),
    /// A record that cannot be answered; becomes an answer with this error, in its place.
    Rejected {
        /// Its id.
        id: String,
        /// Why.
        error: RecordError,
        /// What comes back with it.
        with: T,
    },
    /// The source cannot be read any further; what was accepted is answered, then the run fails with this.
    Failed(SourceFailure),
}

/// Why a source cannot be read any further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFailure {
    /// One line for people.
    pub message: String,
    /// What was found is refused, rather than that reading failed.
    pub refused: bool,
}

/// A token with its text and its log probability, and the best ones of its place.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The text; control tokens as they are spelled, bytes that are no text replaced.
    pub token: String,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its raw probability.
    pub logprob: f32,
    /// The most probable tokens of the place, without a `top` of their own.
    pub top: Vec<TokenLogprob>,
}

/// Another answer to the same prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Alternative {
    /// The text.
    pub text: String,
    /// The thought before it.
    pub reasoning: Option<String>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Log probabilities, if they were asked for.
    pub logprobs: Option<Vec<TokenLogprob>>,
}

/// One record's answer. Every accepted input gets exactly one, unless the run is stopped before.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Place of the record among the source's items, from 0.
    pub index: u64,
    /// The prompt's id.
    pub id: String,
    /// The text, without control tokens, cut before a stop string.
    pub text: String,
    /// The thought before it, if the model's marks say that there was one.
    pub reasoning: Option<String>,
    /// The text is JSON because it had to be.
    pub json: bool,
    /// The choices with their probabilities.
    pub choice_probs: Option<Vec<(String, f64)>>,
    /// Log probabilities of the tokens.
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// The other answers where several were asked for.
    pub more: Vec<Alternative>,
    /// Generated ids (a cached answer has the ids of the one it repeats).
    pub tokens: Vec<TokenId>,
    /// Why it ended; [`FinishReason::Error`] if `error` is set.
    pub finish_reason: FinishReason,
    /// Argmax was used.
    pub greedy: bool,
    /// Which set of a longrope's divisors it was computed with; `None` for models that have one only, and without an answer.
    pub rope: Option<RopeSet>,
    /// Tokens of the prompt, template included.
    pub prompt_tokens: usize,
    /// Tokens of the answer (of all where several were asked for), an end-of-sequence token included if one was generated.
    pub completion_tokens: usize,
    /// Not generated for this record: taken from memory or from an identical request in flight.
    pub cached: bool,
    /// Rows of forward passes computed for this record: prompt rows not shared + generated rows; 0 for a cached answer.
    pub forward_rows: usize,
    /// Acceptance into the bounded queue to the first forward pass, ms.
    pub queue_ms: f64,
    /// Acceptance to the first token, ms.
    pub ttft_ms: f64,
    /// Acceptance to the end, ms.
    pub latency_ms: f64,
    /// Set if there is no answer, or only the beginning of one (`incomplete`).
    pub error: Option<RecordError>,
}

//! From requests (tokens in) to completions (tokens out): schedule → forward → sample → record, one step at a time.
//! In: [`Request`]s. Out: [`Event`]s. It owns a decoder and the sequences in flight; it has no clock, no files and prints nothing.

mod choices;
mod masks;
mod observer;
mod sampler;
mod scheduler;
mod scoring;
mod sequence;
mod step;
mod stopping;
#[cfg(test)]
mod tests;

pub use choices::Choices;
pub use observer::{Observer, Stage};
pub use scoring::ScoredToken;
pub use step::Engine;
pub use stopping::{Stop, StopWatch, TextDecoder, TextDecoders};

use crate::text::Grammar;
use crate::units::TokenId;
use std::sync::Arc;

/// The policies the engine reads, and its sizes.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Whether low temperatures are argmax.
    pub sampling: SamplingPolicy,
    /// Whether an answer can end before its limit.
    pub stopping: StoppingPolicy,
    /// Whether rows are padded to the longest of a step.
    pub padding: PaddingPolicy,
    /// Whether a finished row's place is filled at once.
    pub batching: BatchingPolicy,
    /// Whether a beginning that another request computed is taken over.
    pub prefix: PrefixPolicy,
    /// Most sequences together; the decoder's slots and rows bound it too.
    pub batch: usize,
    /// Most rows of one forward pass, if the decoder takes as many.
    pub chunk: usize,
    /// The model's end-of-sequence tokens.
    pub eos: Arc<[TokenId]>,
    /// Tokens that a constraint forces run together in one step; the answer is the same without.
    pub fast_forward: bool,
    /// Threads that compute masks during forward passes; 0 computes them after the pass.
    pub mask_threads: usize,
}

/// Names a request from submission to its end; chosen by the caller, unique among those in flight.
pub type Ticket = u64;

/// How the next token is chosen. Draws are keyed by (seed, prompt ids, position), nothing else.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Sampling {
    /// 0 means argmax.
    pub temperature: f32,
    /// Nucleus: the smallest set of tokens whose probability reaches this; 1 switches it off.
    pub top_p: f32,
    /// Only the k most probable tokens; 0 switches it off.
    pub top_k: usize,
    /// Key of the draws.
    pub seed: u64,
}

/// How the scores of tokens that were already there change before a token is chosen.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Penalties {
    /// Subtracted from the score of every token of the answer so far (OpenAI's `presence_penalty`); 0 is off.
    pub presence: f32,
    /// The same for each time that the answer has it (OpenAI's `frequency_penalty`); 0 is off.
    pub frequency: f32,
    /// Scores of tokens of prompt or answer are divided by it where positive, multiplied otherwise (transformers' and vLLM's
    /// `repetition_penalty`); 1 is off.
    pub repetition: f32,
}

impl Default for Penalties {
    fn default() -> Penalties {
        Penalties { presence: 0.0, frequency: 0.0, repetition: 1.0 }
    }
}

/// Where a model's thoughts begin and end in its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thought {
    /// The mark that opens one, such as `<think>`.
    pub open: String,
    /// The mark that closes it.
    pub close: String,
    /// The prompt ends inside a thought.
    pub opened: bool,
    /// The tokens that spell `open`.
    pub open_tokens: Vec<TokenId>,
    /// The tokens that spell `close`, where control tokens are among them.
    pub close_tokens: Vec<TokenId>,
}

/// What a request may ask for besides tokens; by default nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Extras {
    /// Read before a token is chosen.
    pub penalties: Penalties,
    /// Tokens below this share of the best one's probability are left out (vLLM's `min_p`); 0 is off.
    pub min_p: f32,
    /// The log probability of every token, and of so many of the best ones of its place.
    pub logprobs: Option<usize>,
    /// The form that the answer must have.
    pub constraint: Option<Arc<Grammar>>,
    /// How thoughts are told from the answer.
    pub thought: Option<Arc<Thought>>,
    /// The answer is one of these, scored instead of generated; `max_tokens` is the length of the longest, its end included.
    pub choices: Option<Arc<Choices>>,
}

/// Whether a low temperature is taken as greedy (the audit's `greedy`). Temperature 0 is argmax in both.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub enum SamplingPolicy {
    /// Sample: temperature, top-k, top-p over the fully sorted vocabulary.
    AlwaysSample,
    /// Argmax below this temperature; otherwise sample from the k best only.
    GreedyBelow(f32),
}

/// What ends a sequence before its limit (the audit's `early-stop`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum StoppingPolicy {
    /// Nothing does: all tokens up to the limit are generated.
    MaxTokensOnly,
    /// What the request's [`StopRules`] say.
    Early,
}

/// What may end this request early (read under [`StoppingPolicy::Early`] only).
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize)]
pub struct StopRules {
    /// The model's end-of-sequence tokens.
    pub eos: bool,
    /// The strings of `--stop`; one that spells a control token means the token.
    pub strings: Vec<String>,
    /// End of a sentence in the last tenth of the limit, rounded down.
    pub sentence: bool,
    /// The text goes round in circles.
    pub repetition: bool,
}

/// Whether padding is computed (the audit's `mask`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum PaddingPolicy {
    /// Prefills padded to the longest admitted in the step; decode rows score as many positions as the longest live sequence.
    PadToLongest,
    /// No work on padding.
    Ragged,
}

/// When new sequences may join (the audit's `queue`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum BatchingPolicy {
    /// A batch is run to its end before the next one starts.
    Blocking,
    /// A finished row's place is filled in the next step.
    Continuous,
}

/// Whether common beginnings are prefilled once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum PrefixPolicy {
    /// Every prompt is prefilled whole.
    Recompute,
    /// Common beginnings are prefilled once.
    Share,
}

/// Tokens in, and how to go on from them.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The caller's name for it.
    pub ticket: Ticket,
    /// Prompt ids; not empty.
    pub prompt: Arc<[TokenId]>,
    /// Most tokens to generate; ≥ 1; prompt + max_tokens fits the context (the caller clips).
    pub max_tokens: usize,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// What may end it early. Under a constraint and inside a thought only the end-of-sequence tokens count.
    pub stop: Arc<StopRules>,
    /// What else is asked for.
    pub extras: Arc<Extras>,
}

impl Request {
    /// Most positions it needs; the last token is never run.
    pub fn positions(&self) -> usize {
        self.prompt.len() + self.max_tokens.max(1) - 1
    }
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// An end-of-sequence token.
    Stop,
    /// A `--stop` string.
    StopString,
    /// A sentence's end close to the limit.
    Sentence,
    /// The text went round in circles.
    Loop,
    /// The limit.
    Length,
    /// One of the choices was the best.
    Choice,
    /// It failed; the record says why.
    Error,
}

/// What a step tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The sequence's prefill began (it left the queue).
    Admitted {
        /// Of the request.
        ticket: Ticket,
        /// Of its prompt, positions taken over from others.
        reused_tokens: usize,
    },
    /// A token was generated (the first one ends the prefill).
    Token {
        /// Of the request.
        ticket: Ticket,
        /// The one generated.
        token: TokenId,
    },
    /// It ended.
    Finished {
        /// Of the request.
        ticket: Ticket,
        /// All of it.
        completion: Completion,
    },
    /// It failed alone (scores not finite, a constraint past its limits); the others go on.
    Failed {
        /// Of the request.
        ticket: Ticket,
        /// A word for programs: `not_finite`, `no_memory`, `constraint`.
        code: &'static str,
        /// One line for people.
        message: String,
    },
}

/// Tokens out.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// Generated ids, an end-of-sequence token included if one was generated.
    pub tokens: Vec<TokenId>,
    /// The text, without control tokens, cut before a stop string; without thoughts.
    pub text: String,
    /// The thought, if the model's marks say that there was one.
    pub reasoning: Option<String>,
    /// Log probabilities of the tokens, if they were asked for.
    pub logprobs: Option<Vec<ScoredToken>>,
    /// Of each of the request's choices: the sum of its tokens' log probabilities.
    pub choices: Option<Vec<(String, f64)>>,
    /// The limit came before the answer had the form that was asked for.
    pub incomplete: bool,
    /// Why it ended.
    pub reason: FinishReason,
    /// Argmax was used (temperature 0 or below the policy's threshold).
    pub greedy: bool,
}

//! One forward pass over a ragged batch. In: token ids in segments. Out: for the rows that ask, the next-token scores in the form
//! asked for. A decoder owns keys and values and the scratch memory; it knows no requests, no sampling policy and no text.
//! Implementations: `native` (ours), `candle` (candle-transformers' f32 llama: baseline and oracle), `fake` (tests).

#[cfg(feature = "candle")]
pub mod candle;
pub mod fake;
#[cfg(test)]
mod flips;
mod forward;
mod mixture;
pub mod native;
mod packed;
pub mod page_table;
mod recurrent;
mod workspace;

use crate::model::ModelSpec;
use crate::units::TokenId;

/// Where a sequence lives in the decoder, from [`Decoder::open`] to [`Decoder::close`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub usize);

/// What a segment asks to know of its LAST row's next-token distribution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LogitsRequest {
    /// Nothing: a prefill chunk that is not the prompt's last.
    Nothing,
    /// The highest score and its id, ties to the lowest id.
    Argmax,
    /// The `k` highest scores with their ids, sorted by descending score, ties to the lowest id.
    TopK(usize),
    /// All scores, of the last row.
    Logits,
    /// The same and the highest one's id, ties to the lowest: of answers that have a form, which most often allows it.
    LogitsAndArgmax,
    /// All scores, of every row of the segment (perplexity, KL divergence).
    AllLogits,
}

/// Consecutive tokens of one sequence within a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// The sequence.
    pub slot: Slot,
    /// Position (0-based) of the first token; all earlier positions are already in the cache, or in an earlier segment of
    /// this batch, or belong to a shared prefix that such a segment writes.
    pub start: usize,
    /// The segment's tokens: `batch.tokens[range]`. Empty only for a segment of nothing but padding (`logits` is `Nothing` then).
    pub tokens: std::ops::Range<usize>,
    /// What to return for it.
    pub logits: LogitsRequest,
    /// Rows to compute in addition and throw away (the audit's padding, `mask` off); 0 for a ragged batch. They go through every
    /// layer, score max(`start` + tokens, `padded_context`) positions each, and write nothing to the sequence's pages. They count as
    /// rows of the batch.
    pub padding_rows: usize,
    /// Score at least this many positions for each row (`mask` off: the longest live sequence); 0 for a ragged batch. May be more
    /// than the sequence has room for: what is read there does not matter.
    pub padded_context: usize,
}

/// A ragged batch: a flat list of tokens and the segments that own them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// Token ids of all segments.
    pub tokens: Vec<TokenId>,
    /// The segments, in the order of their tokens. A slot may appear in one segment only.
    pub segments: Vec<Segment>,
}

/// What a segment gets back; the variants answer [`LogitsRequest`].
#[derive(Debug, Clone, PartialEq)]
pub enum LogitsOutput {
    /// For [`LogitsRequest::Nothing`].
    Nothing,
    /// (id, score).
    Argmax(TokenId, f32),
    /// (id, score) by descending score.
    TopK(Vec<(TokenId, f32)>),
    /// `vocab` scores for [`LogitsRequest::Logits`]; rows × `vocab` for [`LogitsRequest::AllLogits`].
    Logits(Vec<f32>),
    /// `vocab` scores and the id of the highest.
    LogitsAndArgmax(Vec<f32>, TokenId),
}

impl LogitsOutput {
    /// All scores, where they were asked for.
    pub fn scores(&self) -> Option<&[f32]> {
        match self {
            LogitsOutput::Logits(scores) | LogitsOutput::LogitsAndArgmax(scores, _) => Some(scores),
            LogitsOutput::Nothing | LogitsOutput::Argmax(..) | LogitsOutput::TopK(_) => None,
        }
    }
}

/// What a decoder can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Sequences open at the same time.
    pub slots: usize,
    /// Token positions of all sequences together.
    pub positions: usize,
    /// Most rows of one batch, padding included (a longer prefill is cut into chunks by the scheduler).
    pub rows: usize,
}

/// A sequence was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Where it lives.
    pub slot: Slot,
    /// Leading prompt tokens whose keys and values exist already or will have been written by a sequence that was opened
    /// earlier and whose prefill rows stand earlier in the same batch or in an earlier batch. Always < the prompt's length.
    /// The first segment of the sequence starts at this position. The scheduler prefills in the order of opening.
    pub reused: usize,
}

/// A forward pass that failed.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The model produced a score that is not finite for this slot: its weights are damaged or its numbers overflow.
    #[error(
        "the model produced a score that is not a finite number (slot {0:?}); its weights may be damaged"
    )]
    NotFinite(Slot),
    /// A worker panicked or an internal rule was broken; the decoder must not be used again.
    #[error("{0}")]
    Broken(String),
}

/// One forward pass over a ragged batch.
pub trait Decoder: Send {
    /// The spec of its model.
    fn spec(&self) -> &ModelSpec;

    /// What it can hold.
    fn capacity(&self) -> Capacity;

    /// Opens a sequence for `prompt` (not empty) that will take at most `positions` positions in all, prompt included; `None` if there is no
    /// slot or no room just now. With `share`, keys and values of a common beginning are taken over, and this prompt's are offered.
    fn open(&mut self, prompt: &[TokenId], positions: usize, share: bool) -> Option<Opened>;

    /// The same for a sequence that forks will go on from: `spare` more positions are kept for them, in whole pages.
    fn open_for_forks(
        &mut self,
        prompt: &[TokenId],
        positions: usize,
        spare: usize,
        share: bool,
    ) -> Option<Opened> {
        let _ = spare;
        self.open(prompt, positions, share)
    }

    /// Opens a sequence that goes on from the first `at` positions of an open one, which must have run; `positions` in all. The last of
    /// them that fill no page are copied, the rest is shared. Its pages come from what was kept when the first of the line was opened,
    /// and go back there at its end; it is closed before the sequence that it goes on from. Where layers have a state, `at` is where the
    /// parent is, which has a prompt of its own, has one fork at a time and does not run meanwhile. `None` if there is no room just now,
    /// or if this decoder cannot fork.
    fn fork(&mut self, parent: Slot, at: usize, positions: usize) -> Option<Slot> {
        let _ = (parent, at, positions);
        None
    }

    /// One forward pass. `outputs[i]` answers `batch.segments[i]`. After `NotFinite` nothing has happened: the same batch without that
    /// slot may be run again (positions are written again with the same values).
    fn forward(
        &mut self,
        batch: &Batch,
        outputs: &mut Vec<LogitsOutput>,
    ) -> Result<(), DecodeError>;

    /// Ends a sequence; its positions are free again (shared ones once nobody needs them). If its prefill was not finished, sequences
    /// opened after it that have not run yet must be closed as well (and may be opened again): they may count on what it promised.
    fn close(&mut self, slot: Slot);

    /// Forgets all shared prefixes (between trials of a benchmark).
    fn clear_prefix_cache(&mut self);

    /// Positions in use by open sequences and kept prefixes: (open, kept).
    fn used_positions(&self) -> (usize, usize);

    /// Names of the kernels in use, for `-v` and results, such as `x86-avx2-f32-6x16`.
    fn kernels(&self) -> Vec<String>;
}

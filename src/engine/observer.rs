//! The engine's stages and who may watch them: the only place where a clock may be near the loop. In: beginnings and ends of stages.
//! Out: nothing; what an observer makes of them is its own business and changes no token.

/// The stages whose times explain a ratio.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Text to ids (template included).
    Tokenize,
    /// Accepted, not yet admitted.
    Queue,
    /// Steps, or the share of steps by rows, spent on prompt tokens.
    Prefill,
    /// Steps, or the share of steps by rows, spent on generated tokens.
    Decode,
    /// Choosing tokens.
    Sample,
    /// Ids to text, stop rules.
    Detokenize,
}

/// Watches the engine's stages; the only place that may look at a clock.
pub trait Observer: Send {
    /// A stage begins on the engine's thread.
    fn begin(&mut self, stage: Stage);
    /// The stage that began last ends. For a forward pass `prefill_rows` and `decode_rows` say how to share it; 0 otherwise.
    fn end(&mut self, stage: Stage, prefill_rows: usize, decode_rows: usize);
}

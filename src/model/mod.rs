//! Model files: from a name, a path or a hub id to a validated spec ([`ModelSpec`]) and its weights.
//! In: GGUF files, safetensors folders, aliases, hub ids. Out: [`Model`]. Nothing in a file is believed before it is checked.
//! It does not compute with weights, and never prints.

mod alias;
pub mod architectures;
mod assemble;
mod cache;
mod child;
#[cfg(feature = "hub")]
mod choice;
mod gguf;
#[cfg(feature = "hub")]
mod http;
#[cfg(feature = "hub")]
mod hub;
#[cfg(not(feature = "hub"))]
#[path = "hub_absent.rs"]
mod hub;
mod hub_id;
mod kinds;
mod load;
mod metadata;
mod opening;
mod pretokenizers;
mod resolver;
mod safetensors;
mod source;
mod spec;
mod tensors;
mod tokenizer_json;
mod vocabulary;

pub use alias::{ALIASES, Alias, AliasOrigin};
pub use cache::Environment;
pub use kinds::{Parameters, is_matrix, llama_name, matrices, parameters, roles};
pub use load::open;
pub use opening::{OpenOptions, OpeningProgress, OpeningStage};
pub use pretokenizers::{Cut, PreTokenizer};
pub use spec::{
    Activation, Attention, Convolution, DeltaNet, Ffn, LayerSpec, LongRope, Mixer, Mixture,
    ModelSpec, Norm, NormKind, Norms, Plain, QkNorm, QueryGrowth, Rope, RopeSet, Routing, Shared,
};
#[cfg(test)]
pub(crate) use vocabulary::example;
pub use vocabulary::{
    Match, Merge, Normalizer, SPACE, TokenKind, TokenModel, TokenizerSpec, Vocabulary, Whole,
    byte_alphabet, byte_of,
};

use crate::kernels::{Encoding, Format};

/// Why a model could not be had: one line for people, naming the file and the field.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ModelError {
    /// The file, folder, alias or hub id is bad or unsupported (exit status 2).
    #[error("{0}")]
    Invalid(String),
    /// Reading failed although the file may be good (exit status 1).
    #[error("{0}")]
    Io(String),
    /// There is not enough memory for it (exit status 75).
    #[error("{0}")]
    Memory(String),
}

impl ModelError {
    /// The error with the model's path in front, where what was read from it is refused later (tokenizer, template).
    pub fn at(self, path: &std::path::Path) -> Self {
        self.within(&source::shown(path))
    }

    /// The error with a place in front.
    pub fn within(self, place: &str) -> Self {
        let place = |text: String| format!("{place}: {text}");
        match self {
            ModelError::Invalid(text) => ModelError::Invalid(place(text)),
            ModelError::Io(text) => ModelError::Io(place(text)),
            ModelError::Memory(text) => ModelError::Memory(place(text)),
        }
    }
}

/// Which weight: what a decoder asks for. Matrices are rows × columns = outputs × inputs, vectors one row; the shapes, and when each
/// exists, are in [`roles`]' table (`model/kinds.rs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the table in kinds.rs has each one's names, shape and condition")]
pub enum Role {
    TokenEmbedding,
    /// The token embedding if the spec says tied.
    Output,
    OutputBias,
    OutputNorm,
    OutputNormBias,
    /// The norm before attention (before both branches, if they are parallel and share it).
    AttentionNorm(usize),
    AttentionNormBias(usize),
    /// Rows in interleaved rotary order, as all that makes queries and keys.
    Query(usize),
    QueryBias(usize),
    Key(usize),
    KeyBias(usize),
    Value(usize),
    ValueBias(usize),
    QueryNorm(usize),
    KeyNorm(usize),
    /// One score per head.
    Sinks(usize),
    AttentionOutput(usize),
    AttentionOutputBias(usize),
    /// B, C and x of a short convolution.
    ConvolutionInput(usize),
    ConvolutionInputBias(usize),
    /// Taps of each channel, one channel behind the other; as one row.
    ConvolutionTaps(usize),
    ConvolutionTapsBias(usize),
    ConvolutionOutput(usize),
    ConvolutionOutputBias(usize),
    /// Queries, keys, values of a delta net.
    DeltaInput(usize),
    DeltaGate(usize),
    DeltaBeta(usize),
    DeltaAlpha(usize),
    /// As [`Role::ConvolutionTaps`].
    DeltaTaps(usize),
    /// Added to alpha.
    DeltaStep(usize),
    /// What the softplus of alpha is multiplied with to be the logarithm of the decay: below 0.
    DeltaDecay(usize),
    DeltaNorm(usize),
    DeltaOutput(usize),
    /// The norm of attention's output.
    AttentionPostNorm(usize),
    /// The norm before the feed-forward part.
    FfnNorm(usize),
    FfnNormBias(usize),
    Gate(usize),
    GateBias(usize),
    Up(usize),
    UpBias(usize),
    Down(usize),
    DownBias(usize),
    /// Scores of experts.
    Router(usize),
    RouterBias(usize),
    /// Added for the choice alone.
    ChoiceBias(usize),
    /// Of all experts, one below the other.
    ExpertGate(usize),
    ExpertGateBias(usize),
    ExpertUp(usize),
    ExpertUpBias(usize),
    ExpertDown(usize),
    ExpertDownBias(usize),
    /// A vector: the share of the shared expert.
    SharedShare(usize),
    SharedGate(usize),
    SharedUp(usize),
    SharedDown(usize),
    /// The norm of the feed-forward part's output.
    FfnPostNorm(usize),
}

/// Where weights come from; implemented by the readers of files and by tests.
pub trait Weights: Send + Sync {
    /// (rows, columns) of a weight; vectors are 1 × n.
    fn shape(&self, role: Role) -> (usize, usize);

    /// How the file holds it.
    fn encoding(&self, role: Role) -> Encoding;

    /// The format in which the file holds it, if kernels know that format; `None` for every other GGUF type.
    fn format(&self, role: Role) -> Option<Format> {
        self.encoding(role).format()
    }

    /// What the file calls its mixture of types (`q4_k_m`), if it does.
    fn file_type(&self) -> Option<&'static str> {
        None
    }

    /// Rows `rows` of the weight in `format`, row-major, appended to `out`: the file's own bytes if it holds that format; widened
    /// exactly or dequantized if `format` is F32; otherwise converted from the f32 values (rounded to nearest even, or quantized).
    fn read(
        &self,
        role: Role,
        rows: std::ops::Range<usize>,
        format: Format,
        out: &mut Vec<u8>,
    ) -> Result<(), ModelError>;
}

/// A validated model: spec, vocabulary and a reader of its weights.
pub struct Model {
    /// The alias or file name, as records and results show it.
    pub name: String,
    /// Where it was read from, for messages.
    pub path: std::path::PathBuf,
    /// SHA-256 of the file (of the sorted files' digests for a folder), 64 hex digits.
    pub digest: String,
    /// The spec.
    pub spec: ModelSpec,
    /// The tokenizer's data.
    pub vocabulary: Vocabulary,
    /// The weights.
    pub weights: Box<dyn Weights>,
}

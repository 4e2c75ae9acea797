//! Arithmetic on slices: packed weight panels, the kernels that multiply by them, attention, norms, the worker pool, and the
//! read and FMA probes. In: plain slices and panels. Out: plain slices. It knows no model, no file and no clock.
//! The only home of `unsafe`.
#![allow(unsafe_code)]

pub mod probes;

mod arena;
mod attention;
#[cfg(test)]
mod boundary_tests;
mod dispatch;
mod formats;
mod gemm;
mod isa;
mod math;
mod ops;
mod pages;
mod panels;
#[cfg(test)]
mod phase_tests;
mod phases;
mod pool;
mod scratch;
mod state;
#[cfg(test)]
mod tests;
mod views;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use arena::{Arena, NoMemory, one_heap};
pub use attention::AttentionUnit;
pub use dispatch::KernelSet;
pub use formats::{Encoding, Part, WidenedType};
pub use gemm::ActBlock;
pub use math::ActivationFn;
pub use ops::{
    Activations, Attending, Context, Delta, Group, HeadsBy, KvArena, NormWeights, Rotation, Rows,
    ScoreRequest, Scores, Scoring, StateArena, Team, attention_units,
};
pub use pages::{KvElement, KvLayer, KvShape, PAGE, Row};
pub use panels::{COLUMNS, Panels, pack_panel, padded, panel_bytes};
pub use pool::Pool;
pub use state::{Around, MAX_TAPS, StateSegment};

/// How a weight matrix is stored in panels and what it is multiplied with. Every format has one numeric path for all batch sizes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum Format {
    /// IEEE single precision; f32 activations.
    #[serde(rename = "f32")]
    F32,
    /// The upper half of an f32, widened exactly; f32 activations: the bits of the f32 run for weights that are bf16 values.
    #[serde(rename = "bf16")]
    Bf16,
    /// IEEE half precision, widened exactly; f32 activations.
    #[serde(rename = "f16")]
    F16,
    /// ggml Q8_0: blocks of 32 signed bytes with one f16 scale; int8 activations.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// ggml Q4_1: blocks of 32 nibbles with f16 scale and minimum; int8 activations.
    #[serde(rename = "q4_1")]
    Q4_1,
    /// ggml Q4_0: blocks of 32 nibbles with one f16 scale; int8 activations.
    #[serde(rename = "q4_0")]
    Q4_0,
    /// ggml Q5_0: blocks of 32 five-bit codes with one f16 scale; int8 activations.
    #[serde(rename = "q5_0")]
    Q5_0,
    /// ggml Q5_1: blocks of 32 five-bit codes with f16 scale and minimum; int8 activations.
    #[serde(rename = "q5_1")]
    Q5_1,
    /// ggml Q4_K: blocks of 256 nibbles with scales and minima for each 32; int8 activations.
    #[serde(rename = "q4_k")]
    Q4K,
    /// ggml Q5_K: blocks of 256 five-bit codes with scales and minima for each 32; int8 activations.
    #[serde(rename = "q5_k")]
    Q5K,
    /// ggml Q6_K: blocks of 256 six-bit codes with scales for each 16; int8 activations.
    #[serde(rename = "q6_k")]
    Q6K,
    /// ggml IQ4_NL: blocks of 32 nibbles on a curve with one f16 scale; int8 activations.
    #[serde(rename = "iq4_nl")]
    Iq4Nl,
    /// ggml IQ4_XS: blocks of 256 nibbles on a curve with scales for each 32; int8 activations.
    #[serde(rename = "iq4_xs")]
    Iq4Xs,
    /// ggml Q2_K: blocks of 256 two-bit codes with scales and minima for each 16; int8 activations.
    #[serde(rename = "q2_k")]
    Q2K,
    /// ggml Q3_K: blocks of 256 three-bit codes with scales for each 16; int8 activations.
    #[serde(rename = "q3_k")]
    Q3K,
    /// ggml MXFP4: blocks of 32 four-bit floats with one power of two; int8 activations.
    #[serde(rename = "mxfp4")]
    Mxfp4,
}

impl Format {
    /// All formats, in the order help and tables show them.
    pub const ALL: [Format; 16] = [
        Format::F32,
        Format::Bf16,
        Format::F16,
        Format::Q8_0,
        Format::Q4_1,
        Format::Q4_0,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
        Format::Iq4Nl,
        Format::Iq4Xs,
        Format::Q2K,
        Format::Q3K,
        Format::Mxfp4,
    ];

    /// The name as typed after `--dtype` and as written in results.
    pub fn name(self) -> &'static str {
        self.kind().name
    }

    /// Weights of a block (1 for the float formats); a row's length must be a multiple of it.
    pub fn block(self) -> usize {
        self.kind().block
    }

    /// Bytes of one block in the file's row-major layout (ggml's `block_q8_0` is 34, `block_q4_1` is 20).
    pub fn block_bytes(self) -> usize {
        self.kind().bytes
    }

    /// The format of rows whose length this one does not divide: ggml's rule for blocks of 256 (llama-quant.cpp,
    /// `tensor_type_fallback`), itself where the length fits, f32 where nothing else does.
    pub fn fitting(self, k: usize) -> Format {
        let smaller = match self {
            Format::Q4K => Format::Q5_0,
            Format::Q5K => Format::Q5_1,
            Format::Q6K => Format::Q8_0,
            Format::Iq4Xs | Format::Q2K | Format::Q3K => Format::Iq4Nl,
            _ => Format::F32,
        };
        if k.is_multiple_of(self.block()) {
            self
        } else if k.is_multiple_of(smaller.block()) {
            smaller
        } else {
            Format::F32
        }
    }

    /// Bytes of a row of `k` weights in the file's row-major layout.
    pub fn row_bytes(self, k: usize) -> usize {
        k.div_ceil(self.block()) * self.block_bytes()
    }

    /// Whether weights are held in blocks with scales (and activations therefore become int8).
    pub fn is_quantized(self) -> bool {
        self.block() > 1
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

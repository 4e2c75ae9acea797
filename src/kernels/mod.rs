//! Arithmetic on slices: packed weight panels, the kernels that multiply by them, attention, norms, the worker pool, and the
//! read and FMA probes. In: plain slices and panels. Out: plain slices. It knows no model, no file and no clock.
//! The only home of `unsafe` (plus one mmap in `model`).
#![allow(unsafe_code)]

pub mod probes;

mod arena;
mod attention;
#[cfg(test)]
mod boundary_tests;
mod gemm;
mod isa;
mod math;
mod ops;
mod pages;
mod panels;
#[cfg(test)]
mod phase_tests;
mod pool;
mod table;
#[cfg(test)]
mod tests;
mod units;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use arena::{Arena, NoMemory};
pub use attention::AttentionUnit;
pub use gemm::ActBlock;
pub use math::Activation;
pub use ops::{
    Activations, Attending, Context, HeadsBy, KvArena, NormWeights, Rotation, Rows, Scores, Scoring, Team, Want, attention_units,
};
pub use pages::{KvElement, KvLayer, KvShape, PAGE, Row};
pub use panels::{COLUMNS, Panels, pack_panel, padded, panel_bytes};
pub use pool::Pool;
pub use table::KernelSet;

/// How a weight matrix is stored in panels and what it is multiplied with. Every format has one numeric path for all batch sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
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
}

impl Format {
    /// All formats, in the order help and tables show them.
    pub const ALL: [Format; 5] = [Format::F32, Format::Bf16, Format::F16, Format::Q8_0, Format::Q4_1];

    /// The name as typed after `--dtype` and as written in results.
    pub fn name(self) -> &'static str {
        match self {
            Format::F32 => "f32",
            Format::Bf16 => "bf16",
            Format::F16 => "f16",
            Format::Q8_0 => "q8_0",
            Format::Q4_1 => "q4_1",
        }
    }

    /// Weights that share one scale (1 for the float formats); a row's length must be a multiple of it.
    pub fn block(self) -> usize {
        match self {
            Format::F32 | Format::Bf16 | Format::F16 => 1,
            Format::Q8_0 | Format::Q4_1 => 32,
        }
    }

    /// Bytes of one block in the file's row-major layout (ggml's `block_q8_0` is 34, `block_q4_1` is 20).
    pub fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::Bf16 | Format::F16 => 2,
            Format::Q8_0 => 34,
            Format::Q4_1 => 20,
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

//! Slices as raw parts, as `ops/` makes them once it has checked them, and as the phases read and write them.
#![allow(unsafe_code)]

use super::Format;
use super::gemm::ActBlock;

/// A matrix as raw parts.
#[derive(Clone, Copy)]
pub(crate) struct Matrix {
    pub format: Format,
    pub w: *const u8,
    pub n: usize,
    pub k: usize,
    pub panel_bytes: usize,
}

/// Activations as raw parts; the pointer a format does not need may dangle.
#[derive(Clone, Copy)]
pub(crate) struct Input {
    pub f: *const f32,
    pub f_stride: usize,
    pub q: *const ActBlock,
    pub q_stride: usize,
}

/// Where activations go: f32 rows, int8 blocks, or both.
#[derive(Clone, Copy)]
pub(crate) struct Sink {
    pub f: *mut f32,
    pub f_stride: usize,
    pub q: *mut ActBlock,
    pub q_stride: usize,
}

impl Input {
    /// The rows from `row` on.
    pub(crate) fn from(self, row: usize) -> Input {
        let (f, q) =
            (self.f.wrapping_add(row * self.f_stride), self.q.wrapping_add(row * self.q_stride));
        Input { f, q, ..self }
    }
}

impl Sink {
    /// The rows from `row` on.
    pub(crate) fn from(self, row: usize) -> Sink {
        let (f, q) =
            (self.f.wrapping_add(row * self.f_stride), self.q.wrapping_add(row * self.q_stride));
        Sink { f, q, ..self }
    }
}

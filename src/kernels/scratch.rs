//! What one worker keeps from unit to unit: a tile of products, the running softmax of attention, the best scores of rows.
//! Made once a worker; a wider head or tile makes it grow.

use super::gemm::WIDE;
use std::collections::BinaryHeap;

/// Positions of one step of the online softmax; absolute, so that no run-time quantity moves its edges.
pub(crate) const SPAN: usize = 64;
/// (row, head) pairs of one attention unit at most.
pub(crate) const ATTENTION_ROWS: usize = 48;

/// The running softmax of a (row, head).
#[derive(Clone, Copy)]
pub(crate) struct Softmax {
    pub maximum: f32,
    pub sum: f32,
    /// The positions that it sees of the span: from `first` up to `limit`.
    pub first: usize,
    pub limit: usize,
}

impl Softmax {
    pub(crate) const NOTHING: Softmax =
        Softmax { maximum: f32::NEG_INFINITY, sum: 0.0, first: 0, limit: 0 };
}

/// A worker's scratch memory.
pub(crate) struct Scratch {
    pub(super) wide: Vec<f32>,
    pub(super) tile: Vec<f32>,
    pub(super) queries: Vec<f32>,
    pub(super) scores: Vec<f32>,
    pub(super) sums: Vec<f32>,
    /// A span of one head's keys and values, widened.
    pub(super) pages: Vec<f32>,
    /// One head, up to 16.
    pub(super) head: Vec<f32>,
    /// The width of heads that the vectors above have room for.
    head_dim: usize,
    pub(super) state: Vec<Softmax>,
    /// Of each scored row: its best so far.
    pub best: Vec<Best>,
}

impl Scratch {
    pub(crate) fn new(head_dim: usize) -> Scratch {
        let mut scratch = Scratch {
            wide: vec![0.0; WIDE],
            tile: Vec::new(),
            queries: Vec::new(),
            scores: vec![0.0; ATTENTION_ROWS * SPAN],
            sums: Vec::new(),
            pages: Vec::new(),
            head: Vec::new(),
            head_dim: 0,
            state: vec![Softmax::NOTHING; 2 * ATTENTION_ROWS],
            best: Vec::new(),
        };
        scratch.fit(head_dim);
        scratch
    }

    /// Makes room for heads of this width; called before every phase that works on heads, so that no caller need promise a width.
    pub(crate) fn fit(&mut self, head_dim: usize) {
        if self.head_dim < head_dim {
            let whole = head_dim
                .checked_next_multiple_of(16)
                .filter(|w| w.checked_mul(2 * ATTENTION_ROWS).is_some());
            let padded = whole.expect("heads that memory can hold");
            self.queries = vec![0.0; ATTENTION_ROWS * head_dim];
            self.sums = vec![0.0; 2 * ATTENTION_ROWS * padded];
            self.pages = vec![0.0; 2 * SPAN * padded];
            self.head = vec![0.0; padded];
            self.head_dim = head_dim;
        }
    }

    /// Bytes it holds with tiles of `floats`; saturates.
    pub(crate) fn bytes(head_dim: usize, floats: usize) -> usize {
        let of_a_pair =
            head_dim.saturating_mul(3).saturating_add(SPAN + 32 + 2 * size_of::<Softmax>() / 4);
        let pages = head_dim.saturating_mul(2 * SPAN);
        let all = of_a_pair
            .saturating_mul(ATTENTION_ROWS)
            .saturating_add(head_dim.saturating_add(WIDE))
            .saturating_add(pages);
        all.saturating_add(floats).saturating_mul(4)
    }

    pub(crate) fn tile(&mut self, floats: usize) {
        if self.tile.len() < floats {
            self.tile.resize(floats, 0.0);
        }
    }
}

/// A score and its token, ordered so that the heap's greatest is the one to give up first: the lowest score, of equals the highest id.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ranked(pub f32, pub u32);

impl Eq for Ranked {}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.0.partial_cmp(&self.0).unwrap_or(std::cmp::Ordering::Equal).then(self.1.cmp(&other.1))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// A worker's share of a row's scores.
#[derive(Clone, Debug)]
pub(crate) struct Best {
    pub argmax: Ranked,
    pub top: BinaryHeap<Ranked>,
    /// A score was NaN or infinite.
    pub bad: bool,
}

impl Best {
    pub(crate) fn new() -> Best {
        Best { argmax: Ranked(f32::NEG_INFINITY, u32::MAX), top: BinaryHeap::new(), bad: false }
    }
}

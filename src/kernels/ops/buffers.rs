//! What phases read and write: rows of activations, their int8 blocks, the arenas of keys, values and states. A shape is checked when it is made.
#![allow(unsafe_code)]

use super::super::arena::{Arena, NoMemory};
use super::super::gemm::ActBlock;
use super::super::pages::KvShape;
use super::super::panels::{COLUMNS, Panels};
use super::super::state::{StateBlocks, StateSegment};
use super::super::views::{Input, Sink};
use super::{times, whole};

/// f32 rows with a stride of whole panels; what lies past the width is zero.
#[derive(Clone, Default)]
pub struct Rows {
    pub(super) data: Vec<f32>,
    pub(super) stride: usize,
}

impl Rows {
    /// `rows` zero rows of `width`. Panics if that is more than memory can hold.
    pub fn new(rows: usize, width: usize) -> Rows {
        let stride = whole(width);
        Rows { data: vec![0.0; times(rows, stride)], stride }
    }

    /// Bytes of such rows; saturates.
    pub fn bytes(rows: usize, width: usize) -> usize {
        width
            .checked_next_multiple_of(COLUMNS)
            .unwrap_or(usize::MAX)
            .saturating_mul(rows)
            .saturating_mul(4)
    }

    /// Rows it holds.
    pub fn count(&self) -> usize {
        self.data.len().checked_div(self.stride).unwrap_or(0)
    }

    /// Row r, padding included.
    pub fn row(&self, r: usize) -> &[f32] {
        &self.data[r * self.stride..][..self.stride]
    }

    /// Row r, padding included.
    pub fn row_mut(&mut self, r: usize) -> &mut [f32] {
        &mut self.data[r * self.stride..][..self.stride]
    }
}

/// Activations: f32 rows and, for quantized matrices, the same rows as int8 blocks.
#[derive(Clone, Default)]
pub struct Activations {
    pub(super) rows: Rows,
    pub(super) blocks: Vec<ActBlock>,
    pub(super) blocks_stride: usize,
    pub(super) width: usize,
}

impl Activations {
    /// `rows` rows of `width`; with int8 blocks if `quantized`. Panics if that is more than memory can hold.
    pub fn new(rows: usize, width: usize, quantized: bool) -> Activations {
        let blocks_stride = if quantized { width / 32 } else { 0 };
        let blocks = vec![ActBlock::ZERO; times(rows, blocks_stride)];
        Activations { rows: Rows::new(rows, width), blocks, blocks_stride, width }
    }

    /// Bytes of such activations; saturates.
    pub fn bytes(rows: usize, width: usize, quantized: bool) -> usize {
        let blocks = if quantized { width / 32 } else { 0 };
        Rows::bytes(rows, width)
            .saturating_add(rows.saturating_mul(blocks).saturating_mul(size_of::<ActBlock>()))
    }

    /// Row r, padding included.
    pub fn row(&self, r: usize) -> &[f32] {
        self.rows.row(r)
    }

    /// The int8 blocks of row r.
    pub fn blocks(&self, r: usize) -> &[ActBlock] {
        &self.blocks[r * self.blocks_stride..][..self.blocks_stride]
    }

    /// Whether all numbers are the same, bit for bit.
    pub fn same_bits(&self, other: &Activations) -> bool {
        let bits = |a: &Activations| a.rows.data.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let blocks = |a: &Activations| {
            a.blocks
                .iter()
                .map(|b| (b.q, b.d.to_bits(), b.dsum.to_bits(), b.correction))
                .collect::<Vec<_>>()
        };
        bits(self) == bits(other) && blocks(self) == blocks(other)
    }

    /// The f32 rows.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    pub(super) fn has_blocks(&self) -> bool {
        self.blocks_stride > 0
    }

    pub(super) fn input(&self, rows: usize, m: &Panels) -> Input {
        assert!(rows <= self.rows.count() && m.k <= self.width);
        assert!(
            !m.format.is_quantized()
                || (self.blocks_stride >= m.k / 32
                    && self.blocks.len() >= rows * self.blocks_stride)
        );
        Input {
            f: self.rows.data.as_ptr(),
            f_stride: self.rows.stride,
            q: self.blocks.as_ptr(),
            q_stride: self.blocks_stride,
        }
    }

    pub(super) fn sink(&mut self, rows: usize, width: usize) -> Sink {
        assert!(rows <= self.rows.count() && width == self.width);
        Sink {
            f: self.rows.data.as_mut_ptr(),
            f_stride: self.rows.stride,
            q: self.blocks.as_mut_ptr(),
            q_stride: self.blocks_stride,
        }
    }
}

/// Keys and values of all sequences: pages of 16 positions, reserved at once, touched only as used.
pub struct KvArena {
    pub(super) arena: Arena,
    pub(super) shape: KvShape,
    pub(super) pages: usize,
}

impl KvArena {
    /// Room for `pages` pages.
    pub fn new(shape: KvShape, pages: usize) -> Result<KvArena, NoMemory> {
        // A shape whose sizes saturated fits nowhere, not even in no pages: its offsets mean nothing.
        let page_bytes = Some(shape.page_bytes())
            .filter(|&bytes| bytes < usize::MAX)
            .ok_or(NoMemory(usize::MAX))?;
        let bytes = page_bytes.checked_mul(pages).ok_or(NoMemory(usize::MAX))?;
        Ok(KvArena { arena: Arena::new(bytes)?, shape, pages })
    }

    /// Pages it holds.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Its shape.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Makes a page what another one is, in all layers.
    pub fn copy_page(&mut self, from: u32, to: u32) {
        assert!(
            (from as usize) < self.pages && (to as usize) < self.pages,
            "pages {from} and {to} of {}",
            self.pages
        );
        let bytes = self.shape.page_bytes();
        let from = from as usize * bytes;
        self.arena.bytes_mut().copy_within(from..from + bytes, to as usize * bytes);
    }

    /// Layer `layer` of these pages, copied into a new allocation one page larger (the audit's growing cache).
    pub fn copy_layer(&self, layer: usize, pages: &[u32]) -> Vec<u8> {
        let (bytes, page_bytes, offset) = (
            self.shape.layer_bytes(layer),
            self.shape.page_bytes(),
            self.shape.layer_offset(layer),
        );
        let mut copy = Vec::with_capacity(times(pages.len() + 1, bytes));
        for &page in pages {
            assert!((page as usize) < self.pages, "page {page} of {}", self.pages);
            copy.extend_from_slice(
                &self.arena.bytes()[page as usize * page_bytes + offset..][..bytes],
            );
        }
        copy
    }

    /// Where a layer begins in the first page.
    pub(super) fn layer(&self, layer: usize) -> *const u8 {
        self.arena.bytes()[self.shape.layer_offset(layer).min(self.arena.bytes().len())..].as_ptr()
    }

    pub(super) fn layer_mut(&mut self, layer: usize) -> *mut u8 {
        let from = self.shape.layer_offset(layer).min(self.arena.bytes().len());
        self.arena.bytes_mut()[from..].as_mut_ptr()
    }
}

/// States of sequences: blocks of f32, reserved at once, touched only as used. A block holds all layers one behind the other.
pub struct StateArena {
    pub(super) arena: Arena,
    /// In floats.
    pub(super) stride: usize,
    pub(super) blocks: usize,
}

impl StateArena {
    /// `blocks` blocks of `floats` floats.
    pub fn new(floats: usize, blocks: usize) -> Result<StateArena, NoMemory> {
        let stride = floats.checked_next_multiple_of(COLUMNS).ok_or(NoMemory(usize::MAX))?;
        let bytes = stride
            .checked_mul(blocks)
            .and_then(|all| all.checked_mul(4))
            .ok_or(NoMemory(usize::MAX))?;
        Ok(StateArena { arena: Arena::new(bytes)?, stride, blocks })
    }

    /// Floats that a convolution's state takes.
    pub fn convolution_floats(columns: usize, taps: usize) -> usize {
        columns
            .checked_next_multiple_of(COLUMNS)
            .unwrap_or(usize::MAX)
            .saturating_mul(taps.saturating_sub(1))
    }

    /// Floats that a delta rule's state takes.
    pub fn delta_floats(heads: usize, key_dim: usize, value_dim: usize) -> usize {
        let row = value_dim.checked_next_multiple_of(COLUMNS).unwrap_or(usize::MAX);
        heads.saturating_mul(key_dim).saturating_mul(row)
    }

    /// Checks segments against the arena, and that those that write have blocks of their own.
    pub(super) fn view(
        &mut self,
        offset: usize,
        floats: usize,
        segments: &[StateSegment],
    ) -> StateBlocks {
        assert!(
            offset.checked_add(floats).is_some_and(|end| end <= self.stride),
            "a layer past the end of a block"
        );
        let mut written = Vec::new();
        for s in segments {
            assert!(
                s.from.is_none_or(|b| b < self.blocks)
                    && s.to < self.blocks
                    && s.from != Some(s.to),
                "blocks of states"
            );
            assert!(s.saves.windows(2).all(|w| w[0].0 < w[1].0), "saves in order");
            assert!(
                s.saves.iter().all(|(rows, b)| (1..=s.rows).contains(rows) && *b < self.blocks),
                "saves within the segment"
            );
            written.push(s.to);
            written.extend(s.saves.iter().map(|save| save.1));
        }
        written.sort_unstable();
        assert!(written.windows(2).all(|w| w[0] != w[1]), "two segments write the same block");
        let data = self.arena.bytes_mut().as_mut_ptr() as *mut f32;
        assert!(data.is_aligned(), "an arena begins at a multiple of 64");
        StateBlocks { data, stride: self.stride, offset }
    }
}

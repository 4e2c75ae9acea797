//! The phases of a forward pass, one unit of work at a time, over [`Isa`]: norm, q/k/v with rotation and page writes, attention, the
//! products that add to the residual, gate and up, the output matrix with argmax or top-k. In: raw views that `ops.rs` made from checked
//! slices. Out: writes to places that belong to this unit alone. No unit's result depends on which worker runs it or on other units.
#![allow(unsafe_code)]
#![allow(clippy::missing_safety_doc, clippy::needless_range_loop, clippy::too_many_arguments)]

use super::Format;
use super::gemm::{ActBlock, Element, F16, F32, Gemm, WIDE, score_tile, value_tile, with_rows};
use super::isa::Isa;
use super::math::{Activation, activate, exp, layer_norm, quantize_block, quantize_row, rms_norm, rounded, soft_cap};
use std::collections::BinaryHeap;

/// Positions of a page of keys and values.
pub const PAGE: usize = 16;
/// Positions of one step of the online softmax; absolute, so that no run-time quantity moves its edges.
pub(crate) const SPAN: usize = 64;
/// (row, head) pairs of one attention unit at most.
pub(crate) const ATTENTION_ROWS: usize = 48;

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

/// How a product is cut into units: groups of `panels` panels × groups of `rows` rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Grid {
    pub panels: usize,
    pub rows: usize,
    pub row_groups: usize,
}

/// A worker's scratch memory.
pub(crate) struct Scratch {
    wide: Vec<f32>,
    tile: Vec<f32>,
    queries: Vec<f32>,
    scores: Vec<f32>,
    sums: Vec<f32>,
    /// One head, up to 16.
    head: Vec<f32>,
    /// The width of heads that the vectors above have room for.
    head_dim: usize,
    state: Vec<State>,
    /// Of each scored row: its best so far.
    pub best: Vec<Best>,
}

/// The running softmax of a (row, head).
#[derive(Clone, Copy)]
struct State {
    maximum: f32,
    sum: f32,
    /// The positions that it sees of the span: from `first` up to `limit`.
    first: usize,
    limit: usize,
}

impl State {
    const NOTHING: State = State { maximum: f32::NEG_INFINITY, sum: 0.0, first: 0, limit: 0 };
}

impl Scratch {
    pub(crate) fn new(head_dim: usize) -> Scratch {
        let mut scratch = Scratch {
            wide: vec![0.0; WIDE],
            tile: Vec::new(),
            queries: Vec::new(),
            scores: vec![0.0; ATTENTION_ROWS * SPAN],
            sums: Vec::new(),
            head: Vec::new(),
            head_dim: 0,
            state: vec![State::NOTHING; 2 * ATTENTION_ROWS],
            best: Vec::new(),
        };
        scratch.fit(head_dim);
        scratch
    }

    /// Makes room for heads of this width; called before every phase that works on heads, so that no caller need promise a width.
    pub(crate) fn fit(&mut self, head_dim: usize) {
        if self.head_dim < head_dim {
            let padded = head_dim.next_multiple_of(16);
            self.queries = vec![0.0; ATTENTION_ROWS * head_dim];
            self.sums = vec![0.0; 2 * ATTENTION_ROWS * padded];
            self.head = vec![0.0; padded];
            self.head_dim = head_dim;
        }
    }

    /// Bytes it holds with tiles of `floats`.
    pub(crate) fn bytes(head_dim: usize, floats: usize) -> usize {
        4 * (WIDE
            + floats
            + ATTENTION_ROWS * (head_dim + SPAN + 2 * head_dim.next_multiple_of(16) + 16)
            + head_dim.next_multiple_of(16))
    }

    pub(crate) fn tile(&mut self, floats: usize) {
        if self.tile.len() < floats {
            self.tile.resize(floats, 0.0);
        }
    }
}

/// Multiplies rows `row..row + rows` by panels `panel..panel + panels` into the worker's tile, whose rows are `panels * 16` long.
#[inline(always)]
unsafe fn multiply<S: Isa>(m: &Matrix, x: &Input, row: usize, rows: usize, panel: usize, panels: usize, s: &mut Scratch) {
    debug_assert!(s.tile.len() >= rows * panels * 16);
    unsafe {
        (S::GEMM)(&Gemm {
            format: m.format,
            w: m.w.add(panel * m.panel_bytes),
            panels,
            k: m.k,
            x: x.f.wrapping_add(row * x.f_stride),
            x_stride: x.f_stride,
            q: x.q.wrapping_add(row * x.q_stride),
            q_stride: x.q_stride,
            rows,
            out: s.tile.as_mut_ptr(),
            out_stride: panels * 16,
            wide: s.wide.as_mut_ptr(),
        });
    }
}

/// The rows and panels of a unit of a product with `count` panels and `rows` rows.
#[inline(always)]
fn cut(grid: &Grid, unit: usize, count: usize, rows: usize) -> (usize, usize, usize, usize) {
    let (group, part) = (unit / grid.row_groups, unit % grid.row_groups);
    let (row, panel) = (part * grid.rows, group * grid.panels);
    (row, grid.rows.min(rows - row), panel, grid.panels.min(count - panel))
}

/// Which norm, and what it is multiplied with: `weights` are padded to 16 with zeros.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormBy {
    pub w: *const f32,
    /// Null: an RMS norm or a layer norm without bias.
    pub bias: *const f32,
    pub n: usize,
    pub epsilon: f32,
    /// The mean is taken away first (LayerNorm).
    pub centred: bool,
    pub round: bool,
}

impl NormBy {
    /// Norm of one row; `out` may be `x`.
    #[inline(always)]
    unsafe fn row<S: Isa>(&self, x: *const f32, out: *mut f32) {
        unsafe {
            if self.centred {
                layer_norm::<S>(x, self.w, self.bias, self.n, self.epsilon, self.round, out);
            } else {
                rms_norm::<S>(x, self.w, self.n, self.epsilon, self.round, out);
            }
        }
    }
}

/// Norm of rows, to f32 rows and/or int8 blocks.
pub(crate) struct NormArgs {
    pub x: *const f32,
    pub x_stride: usize,
    pub by: NormBy,
    /// Row i reads row `pick[i]` if not null.
    pub pick: *const u32,
    pub rows: usize,
    pub rows_per_unit: usize,
    pub out: Sink,
    pub to_q: bool,
}

#[inline(always)]
pub(crate) unsafe fn norm<S: Isa>(a: &NormArgs, unit: usize) {
    unsafe {
        for r in unit * a.rows_per_unit..((unit + 1) * a.rows_per_unit).min(a.rows) {
            let from = if a.pick.is_null() { r } else { *a.pick.add(r) as usize };
            let out = a.out.f.add(r * a.out.f_stride);
            a.by.row::<S>(a.x.add(from * a.x_stride), out);
            if a.to_q {
                quantize_row::<S>(out, a.by.n, a.out.q.add(r * a.out.q_stride));
            }
        }
    }
}

/// Quantizes whole rows (where a producer's units do not end at blocks of 32).
pub(crate) struct QuantizeArgs {
    pub x: *const f32,
    pub x_stride: usize,
    pub n: usize,
    pub q: *mut ActBlock,
    pub q_stride: usize,
    pub rows: usize,
    pub rows_per_unit: usize,
}

#[inline(always)]
pub(crate) unsafe fn quantize<S: Isa>(a: &QuantizeArgs, unit: usize) {
    unsafe {
        for r in unit * a.rows_per_unit..((unit + 1) * a.rows_per_unit).min(a.rows) {
            quantize_row::<S>(a.x.add(r * a.x_stride), a.n, a.q.add(r * a.q_stride));
        }
    }
}

/// A row of the batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Its absolute position in its sequence.
    pub position: u32,
    /// The page that takes its key and value; [`Row::NOWHERE`] for a padding row, which leaves nothing behind.
    pub page: u32,
}

impl Row {
    /// No page.
    pub const NOWHERE: u32 = u32::MAX;
}

/// Shape of the keys and values: a page holds, of each layer and kv head, keys `[head_dim][16]` and values `[16][head_dim up to 16]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvShape {
    /// Layers.
    pub layers: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// f16 instead of f32.
    pub half: bool,
}

impl KvShape {
    /// Bytes of one element.
    pub fn element(&self) -> usize {
        if self.half { 2 } else { 4 }
    }

    /// Bytes of a head's share of a page in one layer.
    pub fn head_bytes(&self) -> usize {
        PAGE * (self.head_dim + self.head_dim.next_multiple_of(16)) * self.element()
    }

    /// Bytes of a layer's share of a page.
    pub fn layer_bytes(&self) -> usize {
        self.kv_heads * self.head_bytes()
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.layers * self.layer_bytes()
    }
}

/// v + the bias of its 16 columns, if there is one.
#[inline(always)]
unsafe fn biased<S: Isa>(v: S::F, bias: *const f32, column: usize, round: bool) -> S::F {
    if bias.is_null() { v } else { unsafe { rounded::<S>(round, S::add(v, S::load(bias.add(column)))) } }
}

/// Which of the three a part of the q/k/v product is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Part {
    Query,
    Key,
    Value,
}

/// q, k, v of all rows: rotated, scaled, written to workspace and pages.
pub(crate) struct QkvArgs {
    /// Each with its bias, padded to 16; null for none.
    pub parts: [(Part, Matrix, *const f32); 3],
    pub input: Input,
    pub grid: Grid,
    pub rows: usize,
    pub row: *const Row,
    /// Of each position `[cos; head_dim]`, `[∓sin; head_dim]`.
    pub rotation: *const f32,
    pub shape: KvShape,
    /// This layer of the page arena.
    pub kv: *mut u8,
    pub page_bytes: usize,
    pub q: *mut f32,
    pub q_stride: usize,
    pub scale: f32,
    pub round: bool,
}

#[inline(always)]
pub(crate) unsafe fn qkv<S: Isa>(a: &QkvArgs, s: &mut Scratch, unit: usize) {
    let mut unit = unit;
    for (part, m, bias) in &a.parts {
        let count = m.n.div_ceil(16);
        let units = count.div_ceil(a.grid.panels) * a.grid.row_groups;
        if unit >= units {
            unit -= units;
            continue;
        }
        let (row, rows, panel, panels) = cut(&a.grid, unit, count, a.rows);
        unsafe {
            multiply::<S>(m, &a.input, row, rows, panel, panels, s);
            for r in 0..rows {
                let info = *a.row.add(row + r);
                for p in 0..panels {
                    let v = rounded::<S>(a.round, S::load(s.tile.as_ptr().add((r * panels + p) * 16)));
                    let column = (panel + p) * 16;
                    let columns = (m.n - column).min(16);
                    let v = biased::<S>(v, *bias, column, a.round);
                    let v = if *part == Part::Value {
                        v
                    } else {
                        rotate::<S>(a.rotation, a.shape.head_dim, a.round, v, column, info.position as usize)
                    };
                    if *part == Part::Query {
                        S::store(a.q.add((row + r) * a.q_stride + column), S::mul(v, S::splat(a.scale)));
                    } else if info.page != Row::NOWHERE {
                        let page = a.kv.add(info.page as usize * a.page_bytes);
                        let lane = info.position as usize % PAGE;
                        if a.shape.half {
                            keep::<S, F16>(&a.shape, *part == Part::Key, page, lane, column, columns, v);
                        } else {
                            keep::<S, F32>(&a.shape, *part == Part::Key, page, lane, column, columns, v);
                        }
                    }
                }
            }
        }
        return;
    }
}

/// Rotates the pairs of 16 columns that begin at `column` of all heads side by side.
#[inline(always)]
unsafe fn rotate<S: Isa>(rotation: *const f32, hd: usize, round: bool, v: S::F, column: usize, position: usize) -> S::F {
    unsafe {
        let table = rotation.add(position * 2 * hd);
        let (cos, sin) = if hd.is_multiple_of(16) {
            let d = column % hd;
            (S::load(table.add(d)), S::load(table.add(hd + d)))
        } else {
            let (mut cos, mut sin) = ([0f32; 16], [0f32; 16]);
            for i in 0..16 {
                let d = (column + i) % hd;
                cos[i] = *table.add(d);
                sin[i] = *table.add(hd + d);
            }
            (S::load(cos.as_ptr()), S::load(sin.as_ptr()))
        };
        rounded::<S>(round, S::fma(v, cos, S::mul(S::swap_pairs(v), sin)))
    }
}

/// Puts 16 columns of a key or value into their page.
#[inline(always)]
unsafe fn keep<S: Isa, E: Element<S>>(
    shape: &KvShape,
    key: bool,
    page: *mut u8,
    lane: usize,
    column: usize,
    columns: usize,
    v: S::F,
) {
    unsafe {
        let (hd, padded) = (shape.head_dim, shape.head_dim.next_multiple_of(16));
        let (mut head, mut d) = (column / hd, column % hd);
        if !key && hd.is_multiple_of(16) {
            E::store(page.add(head * shape.head_bytes()), hd * PAGE + lane * padded + d, v);
            return;
        }
        let mut raw = [0u32; 16];
        let raw = raw.as_mut_ptr() as *mut u8;
        E::store(raw, 0, v);
        for i in 0..columns {
            let at = if key { d * PAGE + lane } else { hd * PAGE + lane * padded + d };
            let to = page.add(head * shape.head_bytes() + at * E::SIZE);
            std::ptr::copy_nonoverlapping(raw.add(i * E::SIZE), to, E::SIZE);
            d += 1;
            if d == hd {
                (head, d) = (head + 1, 0);
            }
        }
    }
}

/// Queries, keys and values that were computed apart: norms of heads, rotation, scale, and where they go. A unit is some rows.
pub(crate) struct HeadsArgs {
    pub q: *mut f32,
    pub q_stride: usize,
    pub heads: usize,
    pub k: *const f32,
    pub k_stride: usize,
    pub v: *const f32,
    pub v_stride: usize,
    /// Of queries and of keys; `n` is the head's width. A null `w` is none.
    pub norms: [NormBy; 2],
    /// The norm comes after the rotation.
    pub rotated_first: bool,
    /// Null: no positions.
    pub rotation: *const f32,
    pub scale: f32,
    /// One more factor of each row's queries; null for none.
    pub row_scale: *const f32,
    pub rows: usize,
    pub rows_per_unit: usize,
    pub row: *const Row,
    pub shape: KvShape,
    pub kv: *mut u8,
    pub page_bytes: usize,
    pub round: bool,
}

#[inline(always)]
pub(crate) unsafe fn heads<S: Isa>(a: &HeadsArgs, s: &mut Scratch, unit: usize) {
    unsafe {
        let hd = a.shape.head_dim;
        let padded = hd.next_multiple_of(16);
        let head = s.head.as_mut_ptr();
        for r in unit * a.rows_per_unit..((unit + 1) * a.rows_per_unit).min(a.rows) {
            let info = *a.row.add(r);
            let more = if a.row_scale.is_null() { 1.0 } else { *a.row_scale.add(r) };
            for h in 0..a.heads {
                let q = a.q.add(r * a.q_stride + h * hd);
                one_head::<S>(a, q, head, 0, info.position as usize);
                let scale = S::splat(a.scale);
                for c in 0..padded / 16 {
                    let v = S::mul(S::load(head.add(c * 16)), scale);
                    let v = if a.row_scale.is_null() { v } else { rounded::<S>(a.round, S::mul(v, S::splat(more))) };
                    S::store(head.add(c * 16), v);
                }
                std::ptr::copy_nonoverlapping(head, q, hd);
            }
            if info.page == Row::NOWHERE {
                continue;
            }
            let page = a.kv.add(info.page as usize * a.page_bytes);
            for h in 0..a.shape.kv_heads {
                one_head::<S>(a, a.k.add(r * a.k_stride + h * hd), head, 1, info.position as usize);
                put_head::<S>(a, true, page, info.position as usize, h, head);
                std::ptr::copy_nonoverlapping(a.v.add(r * a.v_stride + h * hd), head, hd);
                put_head::<S>(a, false, page, info.position as usize, h, head);
            }
        }
    }
}

/// One head into `out`, whose end up to 16 is zero: norm and rotation in their order.
#[inline(always)]
unsafe fn one_head<S: Isa>(a: &HeadsArgs, from: *const f32, out: *mut f32, which: usize, position: usize) {
    unsafe {
        let hd = a.shape.head_dim;
        let padded = hd.next_multiple_of(16);
        S::store(out.add(padded - 16), S::zero());
        std::ptr::copy_nonoverlapping(from, out, hd);
        let norm = &a.norms[which];
        if !norm.w.is_null() && !a.rotated_first {
            norm.row::<S>(out, out);
        }
        if !a.rotation.is_null() {
            for c in 0..padded / 16 {
                let v = rotate::<S>(a.rotation, hd, a.round, S::load(out.add(c * 16)), c * 16, position);
                S::store(out.add(c * 16), v);
            }
            // What lies past the head was turned with its beginning.
            for d in hd..padded {
                *out.add(d) = 0.0;
            }
        }
        if !norm.w.is_null() && a.rotated_first {
            norm.row::<S>(out, out);
        }
    }
}

/// Puts a head's key or value into its page.
#[inline(always)]
unsafe fn put_head<S: Isa>(a: &HeadsArgs, key: bool, page: *mut u8, position: usize, head: usize, from: *const f32) {
    unsafe {
        let hd = a.shape.head_dim;
        for c in 0..hd.div_ceil(16) {
            let (v, columns) = (S::load(from.add(c * 16)), (hd - c * 16).min(16));
            let column = head * hd + c * 16;
            if a.shape.half {
                keep::<S, F16>(&a.shape, key, page, position % PAGE, column, columns, v);
            } else {
                keep::<S, F32>(&a.shape, key, page, position % PAGE, column, columns, v);
            }
        }
    }
}

/// The pages of one segment in one layer.
#[derive(Clone, Copy)]
pub(crate) struct View {
    pub base: *const u8,
    pub page_bytes: usize,
    pub pages: *const u32,
    /// Pages that exist (for reading past the end, with `padded_context`).
    pub count: usize,
}

/// Rows of one segment × some heads that share a kv head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionUnit {
    /// Which segment's pages.
    pub segment: u32,
    /// First row of the batch.
    pub row: u32,
    /// Rows; their positions do not decrease.
    pub rows: u32,
    /// First query head.
    pub head: u32,
    /// Query heads; all of the same kv head.
    pub heads: u32,
    /// Score at least this many positions, and throw away what is too much.
    pub padded_context: u32,
}

/// Attention of all rows.
pub(crate) struct AttentionArgs {
    pub units: *const AttentionUnit,
    pub count: usize,
    pub views: *const View,
    pub row: *const Row,
    pub shape: KvShape,
    pub group: usize,
    pub q: *const f32,
    pub q_stride: usize,
    pub out: Sink,
    /// Heads are whole blocks of 32: quantize here.
    pub to_q: bool,
    /// A row at position q sees the positions above q - window; `usize::MAX` for all.
    pub window: usize,
    /// Scores become cap * tanh(score / cap); 0 for no cap.
    pub cap: f32,
    /// Of each head, one more score in the softmax's denominator; null for none.
    pub sinks: *const f32,
    pub round: bool,
}

#[inline(always)]
pub(crate) unsafe fn attention<S: Isa, const NP: usize>(a: &AttentionArgs, s: &mut Scratch, unit: usize) {
    if a.shape.half { unsafe { attend::<S, F16, NP>(a, s, unit) } } else { unsafe { attend::<S, F32, NP>(a, s, unit) } }
}

#[inline(always)]
unsafe fn attend<S: Isa, E: Element<S>, const NP: usize>(a: &AttentionArgs, s: &mut Scratch, unit: usize) {
    unsafe {
        let u = *a.units.add(unit);
        let (hd, padded) = (a.shape.head_dim, a.shape.head_dim.next_multiple_of(16));
        let (first, rows, heads) = (u.row as usize, u.rows as usize, u.heads as usize);
        let n = rows * heads;
        debug_assert!(n <= ATTENTION_ROWS);
        for i in 0..n {
            let from = a.q.add((first + i / heads) * a.q_stride + (u.head as usize + i % heads) * hd);
            std::ptr::copy_nonoverlapping(from, s.queries.as_mut_ptr().add(i * hd), hd);
        }
        s.sums[..n * padded].fill(0.0);
        for i in 0..n {
            s.state[i] = State::NOTHING;
            if !a.sinks.is_null() {
                // e^(sink - maximum) of a maximum that is the sink so far.
                (s.state[i].maximum, s.state[i].sum) = (*a.sinks.add(u.head as usize + i % heads), 1.0);
            }
        }
        let position = |i: usize| (*a.row.add(first + i / heads)).position as usize;
        // The first position that a row sees: neither it nor the spans it falls into depend on the other rows of the unit.
        let begin = |i: usize| (position(i) + 1).saturating_sub(a.window);
        let spans = position(n - 1) / SPAN + 1;
        let behind = begin(0) / SPAN;
        // While a span is scored, the one that comes next is fetched: of this unit, then of the unit this worker most likely runs next.
        let mut next = Span::of(a, &u, behind);
        for span in behind..spans {
            let now = next;
            if span + 1 < spans {
                next = Span::of(a, &u, span + 1);
            } else if unit + 1 < a.count {
                let after = *a.units.add(unit + 1);
                let seen = ((*a.row.add(after.row as usize)).position as usize + 1).saturating_sub(a.window);
                next = Span::of(a, &after, seen / SPAN);
            }
            let mut from = 0;
            while position(from) < span * SPAN {
                from += 1;
            }
            let mut to = n;
            while begin(to - 1) >= (span + 1) * SPAN {
                to -= 1;
            }
            for i in from..to {
                s.state[i].first = begin(i).saturating_sub(span * SPAN);
                s.state[i].limit = (position(i) + 1 - span * SPAN).min(SPAN);
            }
            span_step::<S, E, NP>(s, &now, &next, from, to, 0, hd, a.cap, a.round);
        }
        // The audit's padding: the same work on positions nobody needs, its result left behind in the second half of the state.
        for span in spans..(u.padded_context as usize).div_ceil(SPAN) {
            s.state[ATTENTION_ROWS..ATTENTION_ROWS + n].fill(State { limit: SPAN, ..State::NOTHING });
            let padding = Span::padding(a, &u, span);
            span_step::<S, E, NP>(s, &padding, &padding, 0, n, ATTENTION_ROWS, hd, a.cap, a.round);
        }
        for i in 0..n {
            let (row, column) = (first + i / heads, (u.head as usize + i % heads) * hd);
            let inverse = S::splat(1.0 / s.state[i].sum);
            let sums = s.sums.as_mut_ptr().add(i * padded);
            for c in 0..padded / 16 {
                S::store(sums.add(c * 16), rounded::<S>(a.round, S::mul(S::load(sums.add(c * 16)), inverse)));
            }
            if a.to_q {
                quantize_row::<S>(sums, hd, a.out.q.add(row * a.out.q_stride + column / 32));
            } else {
                std::ptr::copy_nonoverlapping(sums, a.out.f.add(row * a.out.f_stride + column), hd);
            }
        }
    }
}

/// The pages of up to 64 positions, at one kv head's keys.
#[derive(Clone, Copy)]
struct Span {
    pages: [*const u8; SPAN / PAGE],
    count: usize,
}

impl Span {
    /// Span `span` of what the rows of a unit see. The rest of `pages` repeats one of them.
    #[inline(always)]
    unsafe fn of(a: &AttentionArgs, u: &AttentionUnit, span: usize) -> Span {
        unsafe {
            let last = (*a.row.add((u.row + u.rows) as usize - 1)).position as usize;
            let count = (last / PAGE + 1 - span * (SPAN / PAGE)).min(SPAN / PAGE);
            Span::from(a, u, count, |p| span * (SPAN / PAGE) + p.min(count - 1))
        }
    }

    /// A span past the end: pages that exist, in turn.
    #[inline(always)]
    unsafe fn padding(a: &AttentionArgs, u: &AttentionUnit, span: usize) -> Span {
        unsafe {
            let exist = (*a.views.add(u.segment as usize)).count;
            Span::from(a, u, SPAN / PAGE, |p| (span * (SPAN / PAGE) + p) % exist)
        }
    }

    #[inline(always)]
    unsafe fn from(a: &AttentionArgs, u: &AttentionUnit, count: usize, page: impl Fn(usize) -> usize) -> Span {
        unsafe {
            let view = *a.views.add(u.segment as usize);
            let kv_head = u.head as usize / a.group * a.shape.head_bytes();
            let mut pages = [std::ptr::null(); SPAN / PAGE];
            for p in 0..SPAN / PAGE {
                pages[p] = view.base.add(*view.pages.add(page(p)) as usize * view.page_bytes + kv_head);
            }
            Span { pages, count }
        }
    }
}

/// One span of up to 64 positions for rows `from..n`, which see those that their state says (both ends not decreasing): scores, running
/// softmax, values (online softmax: Milakov and Gimelshein, arXiv 1805.02867).
#[inline(always)]
unsafe fn span_step<S: Isa, E: Element<S>, const NP: usize>(
    s: &mut Scratch,
    span: &Span,
    next: &Span,
    from: usize,
    n: usize,
    state: usize,
    hd: usize,
    cap: f32,
    round: bool,
) {
    unsafe {
        let padded = hd.next_multiple_of(16);
        let scores = s.scores.as_mut_ptr();
        let pages = &span.pages[..span.count];
        let mut r = from;
        while r < n {
            let rows = (n - r).min(S::ATTENTION_ROWS);
            let (x, out) = (s.queries.as_ptr().add(r * hd), scores.add(r * SPAN));
            macro_rules! tile {
                ($mr:literal) => {
                    // Few rows need several pages at a time to keep the multipliers busy.
                    if $mr <= 2 {
                        score_rows::<S, E, $mr, 4>(pages, &next.pages, r == from, x, hd, out)
                    } else if $mr <= 4 {
                        score_rows::<S, E, $mr, 2>(pages, &next.pages, r == from, x, hd, out)
                    } else {
                        score_rows::<S, E, $mr, NP>(pages, &next.pages, r == from, x, hd, out)
                    }
                };
            }
            with_rows!(rows, S::ATTENTION_ROWS, tile!);
            r += rows;
        }

        const LANES: [f32; 16] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];
        let lanes = S::load(LANES.as_ptr());
        let nothing = S::splat(f32::NEG_INFINITY);
        for r in from..n {
            let State { maximum, sum: total, first, limit } = s.state[state + r];
            let row = scores.add(r * SPAN);
            let mut v = [nothing; SPAN / PAGE];
            for c in first / PAGE..limit.div_ceil(PAGE) {
                let x = rounded::<S>(round, S::load(row.add(c * PAGE)));
                let x = if cap > 0.0 { rounded::<S>(round, soft_cap::<S>(x, cap)) } else { x };
                let left = limit - c * PAGE;
                let x = if left >= PAGE { x } else { S::select_gt(S::splat(left as f32), lanes, x, nothing) };
                v[c] = if first <= c * PAGE { x } else { S::select_gt(S::splat((first - c * PAGE) as f32), lanes, nothing, x) };
            }
            let largest = S::largest(S::max(S::max(v[0], v[1]), S::max(v[2], v[3])));
            let maximum_now = if largest > maximum { largest } else { maximum };
            let m = S::splat(maximum_now);
            let mut parts = [S::zero(); SPAN / PAGE];
            for c in 0..pages.len() {
                // Pages it does not see weigh nothing.
                if c * PAGE < limit && (c + 1) * PAGE > first {
                    parts[c] = rounded::<S>(round, exp::<S>(S::sub(v[c], m)));
                }
                S::store(row.add(c * PAGE), parts[c]);
            }
            let sum = S::sum(S::add(S::add(parts[0], parts[1]), S::add(parts[2], parts[3])));
            if maximum_now == maximum {
                // e^0 is 1 exactly.
                s.state[state + r].sum = total + sum;
                continue;
            }
            let correction = exp::<S>(S::splat(maximum - maximum_now));
            let sums = s.sums.as_mut_ptr().add((state + r) * padded);
            let mut lane = [0f32; 16];
            S::store(lane.as_mut_ptr(), correction);
            (s.state[state + r].maximum, s.state[state + r].sum) = (maximum_now, total.mul_add(lane[0], sum));
            for c in 0..padded / 16 {
                S::store(sums.add(c * 16), S::mul(S::load(sums.add(c * 16)), correction));
            }
        }

        let mut r = from;
        while r < n {
            let rows = (n - r).min(S::ATTENTION_ROWS);
            // No further than the tile's last row sees: what lies behind may never have been written.
            let count = s.state[state + r + rows - 1].limit;
            let (x, out) = (scores.add(r * SPAN), s.sums.as_mut_ptr().add((state + r) * padded));
            macro_rules! tile {
                ($mr:literal) => {
                    if $mr <= 2 {
                        value_rows::<S, E, $mr, 4>(pages, x, count, out, hd)
                    } else if $mr <= 4 {
                        value_rows::<S, E, $mr, 2>(pages, x, count, out, hd)
                    } else {
                        value_rows::<S, E, $mr, NP>(pages, x, count, out, hd)
                    }
                };
            }
            with_rows!(rows, S::ATTENTION_ROWS, tile!);
            r += rows;
        }
    }
}

/// Scores of `MR` rows at all pages of a span, `NP` at a time while there are so many.
#[inline(always)]
unsafe fn score_rows<S: Isa, E: Element<S>, const MR: usize, const NP: usize>(
    pages: &[*const u8],
    next: &[*const u8; SPAN / PAGE],
    fetch: bool,
    x: *const f32,
    hd: usize,
    out: *mut f32,
) {
    unsafe {
        let mut p = 0;
        while p < pages.len() {
            let out = out.add(p * PAGE);
            if p + NP <= pages.len() {
                let (mut keys, mut ahead) = ([std::ptr::null(); NP], [std::ptr::null(); NP]);
                keys.copy_from_slice(&pages[p..p + NP]);
                ahead.copy_from_slice(&next[p..p + NP]);
                if fetch {
                    score_tile::<S, E, MR, NP, true>(keys, ahead, x, hd, out, SPAN);
                } else {
                    score_tile::<S, E, MR, NP, false>(keys, ahead, x, hd, out, SPAN);
                }
                p += NP;
            } else {
                if fetch {
                    score_tile::<S, E, MR, 1, true>([pages[p]], [next[p]], x, hd, out, SPAN);
                } else {
                    score_tile::<S, E, MR, 1, false>([pages[p]], [next[p]], x, hd, out, SPAN);
                }
                p += 1;
            }
        }
    }
}

/// Weighted values of `MR` rows over the first `count` positions of a span, `NL` lines of 16 at a time while there are so many.
#[inline(always)]
unsafe fn value_rows<S: Isa, E: Element<S>, const MR: usize, const NL: usize>(
    pages: &[*const u8],
    x: *const f32,
    count: usize,
    out: *mut f32,
    hd: usize,
) {
    unsafe {
        let padded = hd.next_multiple_of(16);
        let mut line = 0;
        while line < padded / 16 {
            let offset = (hd * PAGE + line * 16) * E::SIZE;
            let out = out.add(line * 16);
            if line + NL <= padded / 16 {
                value_tile::<S, E, MR, NL>(pages, offset, padded, x, SPAN, count, out, padded);
                line += NL;
            } else {
                value_tile::<S, E, MR, 1>(pages, offset, padded, x, SPAN, count, out, padded);
                line += 1;
            }
        }
    }
}

/// A product that is added to the residual stream.
pub(crate) struct ResidualArgs {
    pub m: Matrix,
    pub input: Input,
    pub grid: Grid,
    pub rows: usize,
    /// Padded to 16; null for none.
    pub bias: *const f32,
    /// What the branch is multiplied with; 1 changes no bit.
    pub scale: f32,
    pub x: *mut f32,
    pub x_stride: usize,
    /// The product takes the place of `x` instead of being added to it.
    pub store: bool,
    pub round: bool,
}

#[inline(always)]
pub(crate) unsafe fn residual<S: Isa>(a: &ResidualArgs, s: &mut Scratch, unit: usize) {
    unsafe {
        let (row, rows, panel, panels) = cut(&a.grid, unit, a.m.n.div_ceil(16), a.rows);
        multiply::<S>(&a.m, &a.input, row, rows, panel, panels, s);
        for r in 0..rows {
            for p in 0..panels {
                let v = rounded::<S>(a.round, S::load(s.tile.as_ptr().add((r * panels + p) * 16)));
                let column = (panel + p) * 16;
                let v = biased::<S>(v, a.bias, column, a.round);
                let v = rounded::<S>(a.round, S::mul(v, S::splat(a.scale)));
                let x = a.x.add((row + r) * a.x_stride + column);
                S::store(x, if a.store { v } else { rounded::<S>(a.round, S::add(S::load(x), v)) });
            }
        }
    }
}

/// x += scale * branch, or the branch's norm. A unit is some rows.
pub(crate) struct AddArgs {
    /// Normed in place.
    pub branch: *mut f32,
    pub stride: usize,
    /// A null `w` is none.
    pub by: NormBy,
    pub scale: f32,
    pub x: *mut f32,
    pub rows: usize,
    pub rows_per_unit: usize,
}

#[inline(always)]
pub(crate) unsafe fn add<S: Isa>(a: &AddArgs, unit: usize) {
    unsafe {
        for r in unit * a.rows_per_unit..((unit + 1) * a.rows_per_unit).min(a.rows) {
            let (branch, x) = (a.branch.add(r * a.stride), a.x.add(r * a.stride));
            if !a.by.w.is_null() {
                a.by.row::<S>(branch, branch);
            }
            for c in 0..a.stride / 16 {
                let v = rounded::<S>(a.by.round, S::mul(S::load(branch.add(c * 16)), S::splat(a.scale)));
                let x = x.add(c * 16);
                S::store(x, rounded::<S>(a.by.round, S::add(S::load(x), v)));
            }
        }
    }
}

/// activation(gate) * up, or activation(up), of rows that were computed apart. A unit is some rows.
pub(crate) struct ActivateArgs {
    /// Null: no gate.
    pub gate: *const f32,
    pub up: *const f32,
    pub stride: usize,
    pub activation: Activation,
    pub n: usize,
    pub rows: usize,
    pub rows_per_unit: usize,
    pub out: Sink,
    pub to_q: bool,
    pub round: bool,
}

#[inline(always)]
pub(crate) unsafe fn activate_rows<S: Isa>(a: &ActivateArgs, unit: usize) {
    unsafe {
        for r in unit * a.rows_per_unit..((unit + 1) * a.rows_per_unit).min(a.rows) {
            let out = a.out.f.add(r * a.out.f_stride);
            for c in 0..a.stride / 16 {
                let up = S::load(a.up.add(r * a.stride + c * 16));
                let v = if a.gate.is_null() {
                    rounded::<S>(a.round, activate::<S>(a.activation, up))
                } else {
                    let gate = S::load(a.gate.add(r * a.stride + c * 16));
                    rounded::<S>(a.round, S::mul(rounded::<S>(a.round, activate::<S>(a.activation, gate)), up))
                };
                S::store(out.add(c * 16), v);
            }
            if a.to_q {
                quantize_row::<S>(out, a.n, a.out.q.add(r * a.out.q_stride));
            }
        }
    }
}

/// activation(gate) * up; the matrix holds gate and up panels in turn.
pub(crate) struct GateUpArgs {
    pub m: Matrix,
    pub input: Input,
    /// `panels` is a multiple of 4: whole blocks of 32 outputs.
    pub grid: Grid,
    pub rows: usize,
    pub activation: Activation,
    pub out: Sink,
    pub to_q: bool,
    pub round: bool,
}

/// activation(gate) * up of the j-th pair of panels of a tile's row.
#[inline(always)]
unsafe fn gated<S: Isa>(activation: Activation, tile: *const f32, j: usize, round: bool) -> S::F {
    unsafe {
        let gate = rounded::<S>(round, S::load(tile.add(j * 32)));
        let up = rounded::<S>(round, S::load(tile.add(j * 32 + 16)));
        rounded::<S>(round, S::mul(rounded::<S>(round, activate::<S>(activation, gate)), up))
    }
}

#[inline(always)]
pub(crate) unsafe fn gate_up<S: Isa>(a: &GateUpArgs, s: &mut Scratch, unit: usize) {
    unsafe {
        let (row, rows, panel, panels) = cut(&a.grid, unit, a.m.n.div_ceil(16), a.rows);
        multiply::<S>(&a.m, &a.input, row, rows, panel, panels, s);
        for r in 0..rows {
            let tile = s.tile.as_ptr().add(r * panels * 16);
            if a.to_q {
                for b in 0..panels / 4 {
                    let out = a.out.q.add((row + r) * a.out.q_stride + panel / 4 + b);
                    let (first, second) =
                        (gated::<S>(a.activation, tile, 2 * b, a.round), gated::<S>(a.activation, tile, 2 * b + 1, a.round));
                    quantize_block::<S>(first, second, out);
                }
            } else {
                for j in 0..panels / 2 {
                    S::store(
                        a.out.f.add((row + r) * a.out.f_stride + (panel / 2 + j) * 16),
                        gated::<S>(a.activation, tile, j, a.round),
                    );
                }
            }
        }
    }
}

/// What a scored row wants.
#[derive(Clone, Copy)]
pub(crate) enum Score {
    Argmax,
    TopK(usize),
    /// All scores, to this place of `n` floats.
    All(*mut f32),
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

/// The output matrix.
pub(crate) struct HeadArgs {
    pub m: Matrix,
    pub input: Input,
    pub grid: Grid,
    pub rows: usize,
    pub score: *const Score,
    /// Padded to 16; null for none.
    pub bias: *const f32,
    /// What scores are multiplied with; 1 changes no bit.
    pub scale: f32,
    /// Scores become cap * tanh(score / cap); 0 for no cap.
    pub cap: f32,
    pub round: bool,
}

#[inline(always)]
pub(crate) unsafe fn head<S: Isa>(a: &HeadArgs, s: &mut Scratch, unit: usize) {
    unsafe {
        let (row, rows, panel, panels) = cut(&a.grid, unit, a.m.n.div_ceil(16), a.rows);
        multiply::<S>(&a.m, &a.input, row, rows, panel, panels, s);
        for r in 0..rows {
            let tile = s.tile.as_mut_ptr().add(r * panels * 16);
            let columns = (panels * 16).min(a.m.n - panel * 16);
            // Columns that are padding repeat a real score: nothing below need know of them.
            for c in columns..panels * 16 {
                *tile.add(c) = *tile.add(columns - 1);
            }
            let best = &mut s.best[row + r];
            let mut finite = S::zero();
            for p in 0..panels {
                let v = rounded::<S>(a.round, S::load(tile.add(p * 16)));
                let v = biased::<S>(v, a.bias, (panel + p) * 16, a.round);
                let v = rounded::<S>(a.round, S::mul(v, S::splat(a.scale)));
                // A cap would make an infinite score finite.
                finite = S::fma(v, S::zero(), finite);
                let v = if a.cap > 0.0 { rounded::<S>(a.round, soft_cap::<S>(v, a.cap)) } else { v };
                S::store(tile.add(p * 16), v);
            }
            best.bad |= S::sum(finite) != 0.0;
            match *a.score.add(row + r) {
                Score::Argmax => {
                    for p in 0..panels {
                        if S::any_ge(S::load(tile.add(p * 16)), S::splat(best.argmax.0)) {
                            for c in p * 16..(p * 16 + 16).min(columns) {
                                best.argmax = best.argmax.min(Ranked(*tile.add(c), (panel * 16 + c) as u32));
                            }
                        }
                    }
                }
                Score::TopK(k) => {
                    for p in 0..panels {
                        let full = best.top.len() >= k;
                        let bar = best.top.peek().map_or(f32::NEG_INFINITY, |t| t.0);
                        if full && !S::any_ge(S::load(tile.add(p * 16)), S::splat(bar)) {
                            continue;
                        }
                        for c in p * 16..(p * 16 + 16).min(columns) {
                            let new = Ranked(*tile.add(c), (panel * 16 + c) as u32);
                            if best.top.len() < k {
                                best.top.push(new);
                            } else if best.top.peek().is_some_and(|t| new < *t) {
                                best.top.pop();
                                best.top.push(new);
                            }
                        }
                    }
                }
                Score::All(to) => {
                    std::ptr::copy_nonoverlapping(tile, to.add(panel * 16), columns);
                }
            }
        }
    }
}

/// Widens whole panels to f32 panels (the emulated dtype's temporary).
pub(crate) struct WidenArgs {
    pub m: Matrix,
    pub out: *mut f32,
    pub panels_per_unit: usize,
}

#[inline(always)]
pub(crate) unsafe fn widen<S: Isa>(a: &WidenArgs, unit: usize) {
    unsafe {
        let from = unit * a.panels_per_unit;
        for panel in from..(from + a.panels_per_unit).min(a.m.n.div_ceil(16)) {
            let w = a.m.w.add(panel * a.m.panel_bytes) as *const u16;
            let out = a.out.add(panel * a.m.k * 16);
            for pair in 0..a.m.k.div_ceil(2) {
                let (even, odd) = S::load_bf16_pairs(w.add(pair * 32));
                S::store(out.add(pair * 32), even);
                if pair * 2 + 1 < a.m.k {
                    S::store(out.add(pair * 32 + 16), odd);
                }
            }
        }
    }
}

//! The phases of a forward pass as safe functions: each checks its slices, cuts the work into units and runs them on the team's workers.
//! In: slices, panels, pages. Out: the same. This is the boundary between safe code above and the raw views of `phases.rs` below.
//! Over 500 lines: a safe function a phase, each with the checks that its unsafe part rests on; to be cut by phase.
#![allow(unsafe_code)]
#![allow(clippy::too_many_arguments)]

use super::Format;
use super::arena::{Arena, NoMemory};
use super::attention::{AttentionArgs, AttentionUnit, View};
use super::dispatch::KernelSet;
use super::gemm::ActBlock;
use super::math::ActivationFn;
use super::pages::{KvShape, PAGE, Row};
use super::panels::{COLUMNS, Panels};
use super::phases::*;
use super::pool::{PerWorker, Pool};
use super::scratch::{ATTENTION_ROWS, Best, Scratch};
use super::state::{Around, ConvolveArgs, DeltaArgs, MAX_TAPS, StateBlocks, StateSegment, UNIT, delta_floats};
use super::views::{Input, Matrix, Sink};
use std::ops::Range;

/// f32 rows with a stride of whole panels; what lies past the width is zero.
#[derive(Clone, Default)]
pub struct Rows {
    data: Vec<f32>,
    stride: usize,
}

/// The product of two sizes. Panics where it is no size.
fn times(a: usize, b: usize) -> usize {
    a.checked_mul(b).unwrap_or_else(|| panic!("{a} times {b} is more than memory can hold"))
}

/// A width up to whole panels. Panics where that is no size.
fn whole(width: usize) -> usize {
    width.checked_next_multiple_of(COLUMNS).unwrap_or_else(|| panic!("rows of {width} are more than memory can hold"))
}

impl Rows {
    /// `rows` zero rows of `width`. Panics if that is more than memory can hold.
    pub fn new(rows: usize, width: usize) -> Rows {
        let stride = whole(width);
        Rows { data: vec![0.0; times(rows, stride)], stride }
    }

    /// Bytes of such rows; saturates.
    pub fn bytes(rows: usize, width: usize) -> usize {
        width.checked_next_multiple_of(COLUMNS).unwrap_or(usize::MAX).saturating_mul(rows).saturating_mul(4)
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
    rows: Rows,
    blocks: Vec<ActBlock>,
    blocks_stride: usize,
    width: usize,
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
        Rows::bytes(rows, width).saturating_add(rows.saturating_mul(blocks).saturating_mul(size_of::<ActBlock>()))
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
        let blocks =
            |a: &Activations| a.blocks.iter().map(|b| (b.q, b.d.to_bits(), b.dsum.to_bits(), b.correction)).collect::<Vec<_>>();
        bits(self) == bits(other) && blocks(self) == blocks(other)
    }

    /// The f32 rows.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    fn has_blocks(&self) -> bool {
        self.blocks_stride > 0
    }

    fn input(&self, rows: usize, m: &Panels) -> Input {
        assert!(rows <= self.rows.count() && m.k <= self.width);
        assert!(!m.format.is_quantized() || (self.blocks_stride >= m.k / 32 && self.blocks.len() >= rows * self.blocks_stride));
        Input { f: self.rows.data.as_ptr(), f_stride: self.rows.stride, q: self.blocks.as_ptr(), q_stride: self.blocks_stride }
    }

    fn sink(&mut self, rows: usize, width: usize) -> Sink {
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
    arena: Arena,
    shape: KvShape,
    pages: usize,
}

impl KvArena {
    /// Room for `pages` pages.
    pub fn new(shape: KvShape, pages: usize) -> Result<KvArena, NoMemory> {
        // A shape whose sizes saturated fits nowhere, not even in no pages: its offsets mean nothing.
        let page_bytes = Some(shape.page_bytes()).filter(|&bytes| bytes < usize::MAX).ok_or(NoMemory(usize::MAX))?;
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
        assert!((from as usize) < self.pages && (to as usize) < self.pages, "pages {from} and {to} of {}", self.pages);
        let bytes = self.shape.page_bytes();
        let from = from as usize * bytes;
        self.arena.bytes_mut().copy_within(from..from + bytes, to as usize * bytes);
    }

    /// Layer `layer` of these pages, copied into a new allocation one page larger (the audit's growing cache).
    pub fn copy_layer(&self, layer: usize, pages: &[u32]) -> Vec<u8> {
        let (bytes, page_bytes, offset) =
            (self.shape.layer_bytes(layer), self.shape.page_bytes(), self.shape.layer_offset(layer));
        let mut copy = Vec::with_capacity(times(pages.len() + 1, bytes));
        for &page in pages {
            assert!((page as usize) < self.pages, "page {page} of {}", self.pages);
            copy.extend_from_slice(&self.arena.bytes()[page as usize * page_bytes + offset..][..bytes]);
        }
        copy
    }

    /// Where a layer begins in the first page.
    fn layer(&self, layer: usize) -> *const u8 {
        self.arena.bytes()[self.shape.layer_offset(layer).min(self.arena.bytes().len())..].as_ptr()
    }

    fn layer_mut(&mut self, layer: usize) -> *mut u8 {
        let from = self.shape.layer_offset(layer).min(self.arena.bytes().len());
        self.arena.bytes_mut()[from..].as_mut_ptr()
    }
}

/// Where attention finds a segment's keys and values in one layer.
pub enum Context<'a> {
    /// These pages of the arena.
    Pages(&'a [u32]),
    /// A copy made by [`KvArena::copy_layer`].
    Copy(&'a [u8]),
}

/// What a scored row wants.
pub enum ScoreRequest<'a> {
    /// The best.
    Argmax,
    /// The k best.
    TopK(usize),
    /// All scores, `n` of them.
    All(&'a mut [f32]),
}

/// What a scored row gets.
#[derive(Debug, Clone, PartialEq)]
pub enum Scores {
    /// (id, score), ties to the lowest id.
    Argmax(u32, f32),
    /// (id, score) by descending score, ties to the lowest id.
    TopK(Vec<(u32, f32)>),
    /// Written where asked.
    All,
    /// A score was not finite.
    NotFinite,
}

/// Rotary embedding, softmax scale and rounding of a q/k/v phase.
pub struct Rotation<'a> {
    /// Of each position `[cos; head_dim]`, then `[-sin, +sin, ..; head_dim]`.
    pub table: &'a [f32],
    /// What queries are multiplied with.
    pub scale: f32,
}

/// Weights of a norm: vectors padded to 16 with zeros.
#[derive(Clone, Copy)]
pub struct NormWeights<'a> {
    /// What the normed values are multiplied with; ones where a model has no weights.
    pub weights: &'a [f32],
    /// What is added then (LayerNorm).
    pub bias: Option<&'a [f32]>,
    /// Added to the mean square or the variance.
    pub epsilon: f32,
    /// The mean is taken away first: LayerNorm instead of RMS norm.
    pub centred: bool,
}

impl<'a> NormWeights<'a> {
    /// An RMS norm.
    pub fn rms(weights: &'a [f32], epsilon: f32) -> NormWeights<'a> {
        NormWeights { weights, bias: None, epsilon, centred: false }
    }

    /// As raw parts, for `n` values. Panics on vectors that are not `n` values up to 16.
    fn by(&self, n: usize, round: bool) -> NormBy {
        assert!(n > 0 && self.weights.len() == whole(n) && self.bias.is_none_or(|b| b.len() == whole(n)));
        let bias = pointer(self.bias);
        NormBy { w: self.weights.as_ptr(), bias, n, epsilon: self.epsilon, centred: self.centred, round }
    }
}

/// No norm.
const UNNORMED: NormBy = NormBy { w: std::ptr::null(), bias: std::ptr::null(), n: 0, epsilon: 0.0, centred: false, round: false };

/// How queries and keys that were computed apart become what attention reads.
pub struct HeadsBy<'a> {
    /// Norms of each query head and of each key head.
    pub norms: Option<[NormWeights<'a>; 2]>,
    /// The norms come after the rotation.
    pub rotated_first: bool,
    /// As [`Rotation::table`]; `None` for no positions.
    pub table: Option<&'a [f32]>,
    /// What queries are multiplied with.
    pub scale: f32,
    /// One more factor of each row's queries.
    pub row_scales: Option<&'a [f32]>,
}

/// What is particular about a layer's attention.
#[derive(Clone, Copy)]
pub struct Attending<'a> {
    /// Query heads.
    pub heads: usize,
    /// A query at position q sees the keys above q - window.
    pub window: Option<usize>,
    /// Scores become cap * tanh(score / cap).
    pub cap: Option<f32>,
    /// Of each head, one more score in the softmax's denominator.
    pub sinks: Option<&'a [f32]>,
}

impl Attending<'_> {
    /// All positions, no cap, no sinks.
    pub fn plain(heads: usize) -> Attending<'static> {
        Attending { heads, window: None, cap: None, sinks: None }
    }
}

/// What happens to scores behind the output matrix.
#[derive(Clone, Copy)]
pub struct Scoring<'a> {
    /// Padded to 16.
    pub bias: Option<&'a [f32]>,
    /// What they are multiplied with.
    pub scale: f32,
    /// Then they become cap * tanh(score / cap).
    pub cap: Option<f32>,
}

impl Scoring<'_> {
    /// As the matrix gives them.
    pub const PLAIN: Scoring<'static> = Scoring { bias: None, scale: 1.0, cap: None };
}

/// Rows of an input that meet a matrix of their own: those of one expert.
#[derive(Clone)]
pub struct Group<'a> {
    /// The matrix; all groups of a phase have matrices of one shape.
    pub m: Panels<'a>,
    /// Its rows.
    pub rows: Range<usize>,
    /// Padded to 16.
    pub bias: Option<&'a [f32]>,
}

/// States of sequences: blocks of f32, reserved at once, touched only as used. A block holds all layers one behind the other.
pub struct StateArena {
    arena: Arena,
    /// In floats.
    stride: usize,
    blocks: usize,
}

impl StateArena {
    /// `blocks` blocks of `floats` floats.
    pub fn new(floats: usize, blocks: usize) -> Result<StateArena, NoMemory> {
        let stride = floats.checked_next_multiple_of(COLUMNS).ok_or(NoMemory(usize::MAX))?;
        let bytes = stride.checked_mul(blocks).and_then(|all| all.checked_mul(4)).ok_or(NoMemory(usize::MAX))?;
        Ok(StateArena { arena: Arena::new(bytes)?, stride, blocks })
    }

    /// Floats that a convolution's state takes.
    pub fn convolution_floats(columns: usize, taps: usize) -> usize {
        columns.checked_next_multiple_of(COLUMNS).unwrap_or(usize::MAX).saturating_mul(taps.saturating_sub(1))
    }

    /// Floats that a delta rule's state takes.
    pub fn delta_floats(heads: usize, key_dim: usize, value_dim: usize) -> usize {
        let row = value_dim.checked_next_multiple_of(COLUMNS).unwrap_or(usize::MAX);
        heads.saturating_mul(key_dim).saturating_mul(row)
    }

    /// Checks segments against the arena, and that those that write have blocks of their own.
    fn view(&mut self, offset: usize, floats: usize, segments: &[StateSegment]) -> StateBlocks {
        assert!(offset.checked_add(floats).is_some_and(|end| end <= self.stride), "a layer past the end of a block");
        let mut written = Vec::new();
        for s in segments {
            assert!(s.from.is_none_or(|b| b < self.blocks) && s.to < self.blocks && s.from != Some(s.to), "blocks of states");
            assert!(s.saves.windows(2).all(|w| w[0].0 < w[1].0), "saves in order");
            assert!(s.saves.iter().all(|(rows, b)| (1..=s.rows).contains(rows) && *b < self.blocks), "saves within the segment");
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

/// A gated delta rule.
pub struct Delta<'a> {
    /// Heads of queries and keys, and of values.
    pub heads: [usize; 2],
    /// Widths of a query or key, and of a value.
    pub dims: [usize; 2],
    /// Value head h has key head h mod key heads; else the one of its group of neighbours.
    pub tiled: bool,
    /// 1 / width and 1 / root of the width, `dims[0]` of them padded to 16: what unit queries and keys are made with.
    pub units: [&'a [f32]; 2],
    /// Of each head's output.
    pub norm: NormWeights<'a>,
}

/// Null for none.
fn pointer<T>(v: Option<&[T]>) -> *const T {
    v.map_or(std::ptr::null(), <[T]>::as_ptr)
}

/// A bias of `n` outputs as the kernels take it. Panics if it is not padded to 16 with zeros.
fn bias_of(bias: Option<&[f32]>, n: usize) -> *const f32 {
    if let Some(bias) = bias {
        assert!(bias.len() == whole(n), "a bias of {} values for {n} outputs", bias.len());
        assert!(bias[n..].iter().all(|b| *b == 0.0), "a bias padded with zeros");
    }
    pointer(bias)
}

/// 0 for none.
fn cap_of(cap: Option<f32>) -> f32 {
    assert!(cap.is_none_or(|c| c > 0.0 && c.is_finite()), "a soft cap of {cap:?}");
    cap.unwrap_or(0.0)
}

/// Buffers that phases use again.
#[derive(Default)]
struct Buffers {
    /// (page, position in it) that rows write.
    places: Vec<(u32, u32)>,
    /// (row, head) pairs that attention units compute.
    seen: Vec<bool>,
    /// 0, 1, 2 ..: the pages of a copy.
    identity: Vec<u32>,
    views: Vec<View>,
}

// SAFETY: the pointers in `views` are those of one call's arguments; they are followed during that call alone.
unsafe impl Send for Buffers {}

/// Workers, their scratch memory and a kernel set.
pub struct Team {
    pool: Pool,
    scratch: PerWorker<Scratch>,
    set: KernelSet,
    /// Round every operation's output to bf16.
    round: bool,
    buffers: Buffers,
}

fn matrix(p: &Panels) -> Matrix {
    let panel_bytes = super::panels::panel_bytes(p.format, p.k);
    Matrix { format: p.format, w: p.data.as_ptr(), n: p.n, k: p.k, panel_bytes }
}

/// Lets workers share raw views. SAFETY of use: each `ops` function says why its units do not collide.
struct Shared<T>(T);
// SAFETY: see `Shared`.
unsafe impl<T> Sync for Shared<T> {}
impl<T> Shared<T> {
    fn get(&self) -> &T {
        &self.0
    }
}

impl Team {
    /// `threads` workers (the caller is one of them).
    pub fn new(set: KernelSet, threads: usize, head_dim: usize, round_bf16: bool) -> std::io::Result<Team> {
        let pool = Pool::new(threads)?;
        let scratch = PerWorker::new(pool.threads(), || Scratch::new(head_dim));
        Ok(Team { pool, scratch, set, round: round_bf16, buffers: Buffers::default() })
    }

    /// The kernel set.
    pub fn set(&self) -> KernelSet {
        self.set
    }

    /// Why the team must not be used any more.
    pub fn broken(&self) -> Option<String> {
        self.pool.broken()
    }

    /// Bytes of scratch memory of `threads` workers; saturates.
    pub fn scratch_bytes(threads: usize, head_dim: usize, rows: usize) -> usize {
        Scratch::bytes(head_dim, rows.min(ROW_GROUP) * MAX_PANELS * COLUMNS).saturating_mul(threads)
    }

    /// Runs `work(unit)` on the workers: phases that need no kernel.
    pub fn each(&mut self, units: usize, work: impl Fn(usize) + Sync) {
        self.pool.run(units, |_, unit| work(unit));
    }

    /// Runs `work(index, chunk)` on chunks of `data`, in parallel.
    pub fn chunks<T: Send>(&mut self, data: &mut [T], chunk: usize, work: impl Fn(usize, &mut [T]) + Sync) {
        let (len, start) = (data.len(), Shared(data.as_mut_ptr()));
        self.pool.run(len.div_ceil(chunk), |_, unit| {
            let from = unit * chunk;
            let count = chunk.min(len - from);
            // SAFETY: chunks of different units do not overlap, all lie within `data`, which is borrowed for the whole run.
            work(unit, unsafe { std::slice::from_raw_parts_mut(start.get().add(from), count) });
        });
    }

    /// Runs `fill(r, row)` on the first `rows` rows (without their padding, `width` long), in parallel if there are many.
    pub fn fill(&mut self, x: &mut Rows, rows: usize, width: usize, fill: impl Fn(usize, &mut [f32]) + Sync) {
        assert!(rows <= x.count() && width <= x.stride);
        let (stride, per_unit) = (x.stride, self.rows_per_unit(rows));
        self.chunks(&mut x.data[..rows * stride], stride * per_unit, |unit, chunk| {
            for (i, row) in chunk.chunks_exact_mut(stride).enumerate() {
                fill(unit * per_unit + i, &mut row[..width]);
                // A phase may have left something there, of a row that was not finite.
                row[width..].fill(0.0);
            }
        });
    }

    fn rows_per_unit(&self, rows: usize) -> usize {
        // One or two rows are done before another worker would have woken.
        if rows <= 2 { rows.max(1) } else { rows.div_ceil(4 * self.pool.threads()) }
    }

    /// Cuts a product of `rows` rows and `panels` panels; units hold multiples of `multiple` panels.
    fn grid(&mut self, rows: usize, panels: usize, multiple: usize) -> Grid {
        self.grid_among(rows, multiple, panels * row_groups(rows).1)
    }

    /// The same for one of several products that have `all` panels together, those of each group of rows counted.
    fn grid_among(&mut self, rows: usize, multiple: usize, all: usize) -> Grid {
        let (group, row_groups) = row_groups(rows);
        let wanted = all.div_ceil(6 * self.pool.threads());
        let grid = Grid { panels: (wanted / multiple * multiple).clamp(multiple, MAX_PANELS), rows: group, row_groups };
        for scratch in self.scratch.iter_mut() {
            scratch.tile(grid.rows * grid.panels * COLUMNS);
        }
        grid
    }

    /// Norm of the first `rows` rows of `x` (or of those in `pick`), `n` wide, into `out`.
    pub fn norm(&mut self, x: &Rows, pick: Option<&[u32]>, rows: usize, norm: &NormWeights, n: usize, out: &mut Activations) {
        assert!(whole(n) == x.stride && pick.map_or(rows <= x.count(), |p| p.len() == rows));
        assert!(pick.is_none_or(|p| p.iter().all(|&r| (r as usize) < x.count())));
        let to_q = out.has_blocks();
        let args = Shared(NormArgs {
            x: x.data.as_ptr(),
            x_stride: x.stride,
            by: norm.by(n, self.round),
            pick: pick.map_or(std::ptr::null(), <[u32]>::as_ptr),
            rows,
            rows_per_unit: self.rows_per_unit(rows),
            out: out.sink(rows, n),
            to_q,
        });
        let norm = self.set.table().norm;
        // SAFETY: the set's features are there (`KernelSet`); a unit writes its own rows of `out` only; all rows were checked above.
        self.pool.run(rows.div_ceil(args.get().rows_per_unit), |_, unit| unsafe { norm(args.get(), unit) });
    }

    /// Norm of the first `rows` rows of `x`, `n` wide, in place.
    pub fn norm_in_place(&mut self, x: &mut Rows, rows: usize, norm: &NormWeights, n: usize) {
        assert!(whole(n) == x.stride && rows <= x.count());
        let data = x.data.as_mut_ptr();
        let args = Shared(NormArgs {
            x: data,
            x_stride: x.stride,
            by: norm.by(n, self.round),
            pick: std::ptr::null(),
            rows,
            rows_per_unit: self.rows_per_unit(rows),
            out: Sink { f: data, f_stride: x.stride, q: std::ptr::null_mut(), q_stride: 0 },
            to_q: false,
        });
        let norm = self.set.table().norm;
        // SAFETY: as in `norm`; a row is read before its values are replaced, 16 at a time (`rms_norm`, `layer_norm`).
        self.pool.run(rows.div_ceil(args.get().rows_per_unit), |_, unit| unsafe { norm(args.get(), unit) });
    }

    /// x += scale * norm(branch), or x += scale * branch without a norm, on the first `rows` rows, `n` wide. `branch` is left normed.
    pub fn add_normed(&mut self, branch: &mut Rows, norm: Option<&NormWeights>, n: usize, scale: f32, rows: usize, x: &mut Rows) {
        assert!(whole(n) == x.stride && x.stride == branch.stride && rows <= x.count() && rows <= branch.count());
        let args = Shared(AddArgs {
            branch: branch.data.as_mut_ptr(),
            stride: x.stride,
            by: norm.map_or(NormBy { round: self.round, ..UNNORMED }, |norm| norm.by(n, self.round)),
            scale,
            x: x.data.as_mut_ptr(),
            rows,
            rows_per_unit: self.rows_per_unit(rows),
        });
        let add = self.set.table().add;
        // SAFETY: features as in `norm`; a unit reads and writes its own rows of `branch` and `x` only.
        self.pool.run(rows.div_ceil(args.get().rows_per_unit), |_, unit| unsafe { add(args.get(), unit) });
    }

    /// activation(gate) * up, or activation(up) without a gate, of the first `rows` rows into `out`.
    pub fn activate(&mut self, gate: Option<&Rows>, up: &Rows, activation: ActivationFn, rows: usize, out: &mut Activations) {
        let n = out.width;
        assert!(gate.is_some() || !matches!(activation, ActivationFn::Clamped { .. }), "an activation of gate and up");
        assert!(up.stride == whole(n) && rows <= up.count() && gate.is_none_or(|g| g.stride == up.stride && rows <= g.count()));
        let to_q = out.has_blocks();
        assert!(!to_q || n.is_multiple_of(32));
        let args = Shared(ActivateArgs {
            gate: gate.map_or(std::ptr::null(), |g| g.data.as_ptr()),
            up: up.data.as_ptr(),
            stride: up.stride,
            activation,
            n,
            rows,
            rows_per_unit: self.rows_per_unit(rows),
            out: out.sink(rows, n),
            to_q,
            round: self.round,
        });
        let activate = self.set.table().activate;
        // SAFETY: features as in `norm`; a unit writes its own rows of `out` only, whose stride is that of `up`.
        self.pool.run(rows.div_ceil(args.get().rows_per_unit), |_, unit| unsafe { activate(args.get(), unit) });
    }

    /// From rows of queries, keys and values: queries normed, rotated, scaled in place; keys likewise and values into the pages that
    /// `rows` name.
    pub fn heads(
        &mut self,
        q: &mut Rows,
        k: &Rows,
        v: &Rows,
        rows: &[Row],
        by: &HeadsBy,
        kv: &mut KvArena,
        layer: usize,
        heads: usize,
    ) {
        let (shape, kv_heads) = (kv.shape.head(layer), kv.shape.layers()[layer].kv_heads);
        let hd = shape.head_dim;
        assert!(hd > 0 && kv_heads > 0, "layer {layer} keeps no keys and values");
        assert!(q.stride == whole(times(heads, hd)) && k.stride == whole(times(kv_heads, hd)) && v.stride == k.stride);
        assert!([q.count(), k.count(), v.count()].iter().all(|c| *c >= rows.len()));
        assert!(by.row_scales.is_none_or(|s| s.len() == rows.len()), "a scale for each row");
        self.check_places(rows, kv.pages, by.table.map(|t| t.len() / times(2, hd)));
        for scratch in self.scratch.iter_mut() {
            scratch.fit(hd);
        }
        let norms = by.norms.as_ref().map_or([UNNORMED; 2], |norms| [norms[0].by(hd, self.round), norms[1].by(hd, self.round)]);
        let args = Shared(HeadsArgs {
            q: q.data.as_mut_ptr(),
            q_stride: q.stride,
            heads,
            kv_heads,
            k: k.data.as_ptr(),
            k_stride: k.stride,
            v: v.data.as_ptr(),
            v_stride: v.stride,
            norms,
            rotated_first: by.rotated_first,
            rotation: by.table.map_or(std::ptr::null(), <[f32]>::as_ptr),
            scale: by.scale,
            row_scale: by.row_scales.map_or(std::ptr::null(), <[f32]>::as_ptr),
            rows: rows.len(),
            rows_per_unit: self.rows_per_unit(rows.len()),
            row: rows.as_ptr(),
            shape,
            kv: kv.layer_mut(layer),
            page_bytes: kv.shape.page_bytes(),
            round: self.round,
        });
        let (run, scratch) = (self.set.table().heads, &self.scratch);
        // SAFETY: features as in `norm`; a unit writes its own rows of `q` and, of each row, the one place in the pages that no other row
        // has (`check_places`); sizes were checked above, the scratch has room for a head (`fit`), scratch by worker number.
        self.pool.run(rows.len().div_ceil(args.get().rows_per_unit), |worker, unit| unsafe {
            run(args.get(), scratch.get(worker), unit)
        });
    }

    /// The first `rows` rows of `x` as activations: what a branch without a norm in front of it reads.
    pub fn activations(&mut self, x: &Rows, rows: usize, out: &mut Activations) {
        assert!(whole(out.width) == x.stride && rows <= x.count() && rows <= out.rows.count());
        let values = rows * x.stride;
        out.rows.data[..values].copy_from_slice(&x.data[..values]);
        if out.has_blocks() {
            self.quantize(out, rows);
        }
    }

    /// Makes the int8 blocks of the first `rows` rows.
    pub fn quantize(&mut self, x: &mut Activations, rows: usize) {
        let n = x.width;
        let sink = x.sink(rows, n);
        assert!(x.has_blocks() && n.is_multiple_of(32));
        let rows_per_unit = self.rows_per_unit(rows);
        let args = Shared(QuantizeArgs {
            x: sink.f,
            x_stride: sink.f_stride,
            n,
            q: sink.q,
            q_stride: sink.q_stride,
            rows,
            rows_per_unit,
        });
        let quantize = self.set.table().quantize;
        // SAFETY: as in `norm`.
        self.pool.run(rows.div_ceil(rows_per_unit), |_, unit| unsafe { quantize(args.get(), unit) });
    }

    /// Queries (rotated, scaled) into `q`, keys (rotated) and values into the pages that `rows` name; each with its bias, padded to 16.
    pub fn qkv(
        &mut self,
        parts: [&Panels; 3],
        biases: [Option<&[f32]>; 3],
        input: &Activations,
        rows: &[Row],
        rotation: &Rotation,
        kv: &mut KvArena,
        layer: usize,
        q: &mut Rows,
    ) {
        let (shape, kv_heads) = (kv.shape.head(layer), kv.shape.layers()[layer].kv_heads);
        let hd = shape.head_dim;
        assert!(hd > 0 && kv_heads > 0, "layer {layer} keeps no keys and values");
        assert!(parts[1].n == times(kv_heads, hd) && parts[2].n == parts[1].n && parts[0].n.is_multiple_of(hd));
        assert!(q.count() >= rows.len() && q.stride == whole(parts[0].n));
        self.check_places(rows, kv.pages, Some(rotation.table.len() / times(2, hd)));
        let inputs = parts.map(|p| input.input(rows.len(), p));
        let panels = parts.iter().map(|p| p.count()).sum();
        let grid = self.grid(rows.len(), panels, 2);
        let units: usize = parts.iter().map(|p| p.count().div_ceil(grid.panels) * grid.row_groups).sum();
        let args = Shared(QkvArgs {
            parts: [
                (Projection::Query, matrix(parts[0]), bias_of(biases[0], parts[0].n)),
                (Projection::Key, matrix(parts[1]), bias_of(biases[1], parts[1].n)),
                (Projection::Value, matrix(parts[2]), bias_of(biases[2], parts[2].n)),
            ],
            input: inputs[0],
            grid,
            rows: rows.len(),
            row: rows.as_ptr(),
            rotation: rotation.table.as_ptr(),
            shape,
            kv: kv.layer_mut(layer),
            page_bytes: kv.shape.page_bytes(),
            q: q.data.as_mut_ptr(),
            q_stride: q.stride,
            scale: rotation.scale,
            round: self.round,
        });
        let (run, scratch) = (self.set.table().qkv, &self.scratch);
        // SAFETY: features as in `norm`; a unit writes its own columns of its own rows of `q`, or, of each row, its own columns of the one
        // place in the pages that no other row has (`distinct_places`); sizes were checked above; scratch by worker number.
        self.pool.run(units, |worker, unit| unsafe { run(args.get(), scratch.get(worker), unit) });
    }

    /// That rows have their rotations and pages, and that no two write the same place.
    fn check_places(&mut self, rows: &[Row], pages: usize, positions: Option<usize>) {
        for row in rows {
            assert!(positions.is_none_or(|p| (row.position as usize) < p), "rotation of position {}", row.position);
            assert!(row.page == Row::NOWHERE || (row.page as usize) < pages, "page {} of {pages}", row.page);
        }
        assert!(distinct_places(rows, &mut self.buffers.places), "two rows write the same place of a page");
    }

    /// Attention of all `units` (see [`attention_units`]) into `out`; quantized there too if `out` has blocks.
    pub fn attention(
        &mut self,
        units: &[AttentionUnit],
        rows: &[Row],
        contexts: &[Context],
        kv: &KvArena,
        layer: usize,
        by: Attending,
        q: &Rows,
        out: &mut Activations,
    ) {
        let shape = kv.shape.head(layer);
        let (hd, kv_heads) = (shape.head_dim, kv.shape.layers()[layer].kv_heads);
        assert!(hd > 0 && kv_heads > 0, "layer {layer} keeps no keys and values");
        let heads = by.heads;
        assert!(heads > 0 && heads.is_multiple_of(kv_heads) && q.count() >= rows.len());
        assert!(q.stride == whole(times(heads, hd)));
        assert!(by.window != Some(0), "a window of at least one position");
        assert!(by.sinks.is_none_or(|s| s.len() >= heads), "a sink for each head (padding may follow)");
        for scratch in self.scratch.iter_mut() {
            scratch.fit(hd);
        }
        let (group, layer_bytes) = (heads / kv_heads, kv.shape.layer_bytes(layer));
        let Buffers { seen, identity, views, .. } = &mut self.buffers;
        let copied = |c: &Context| if let Context::Copy(b) = c { b.len() / layer_bytes } else { 0 };
        let most = contexts.iter().map(copied).max().unwrap_or(0);
        if identity.len() < most {
            identity.extend(identity.len() as u32..u32::try_from(most).expect("fewer than 2^32 pages"));
        }
        views.clear();
        views.extend(contexts.iter().map(|context| match context {
            Context::Pages(pages) => {
                assert!(pages.iter().all(|&p| (p as usize) < kv.pages), "a page past the arena");
                let page_bytes = kv.shape.page_bytes();
                View { base: kv.layer(layer), page_bytes, pages: pages.as_ptr(), count: pages.len() }
            }
            Context::Copy(bytes) => {
                View { base: bytes.as_ptr(), page_bytes: layer_bytes, pages: identity.as_ptr(), count: copied(context) }
            }
        }));
        for u in units {
            let (first, last) = (u.row as usize, u.row as usize + u.rows as usize);
            let (head, end) = (u.head as usize, u.head as usize + u.heads as usize);
            assert!(first < last && last <= rows.len() && head < end && end <= heads);
            assert!(times(last - first, end - head) <= ATTENTION_ROWS, "a unit of {} rows x {} heads", u.rows, u.heads);
            assert!(head / group == (end - 1) / group, "heads of one kv head");
            assert!(rows[first..last].is_sorted_by_key(|r| r.position), "positions that do not decrease");
            assert!(
                (rows[last - 1].position as usize) < times(views[u.segment as usize].count, PAGE),
                "attention past the pages"
            );
        }
        assert!(distinct_units(units, rows.len(), heads, seen), "two units compute the same");
        let to_q = out.has_blocks() && shape.head_dim.is_multiple_of(32);
        let args = Shared(AttentionArgs {
            units: units.as_ptr(),
            count: units.len(),
            views: views.as_ptr(),
            row: rows.as_ptr(),
            shape,
            group,
            q: q.data.as_ptr(),
            q_stride: q.stride,
            out: out.sink(rows.len(), heads * shape.head_dim),
            to_q,
            window: by.window.unwrap_or(usize::MAX),
            cap: cap_of(by.cap),
            sinks: pointer(by.sinks),
            round: self.round,
        });
        let (run, scratch) = (self.set.table().attention, &self.scratch);
        // SAFETY: features as in `norm`; a unit writes its own heads of its own rows of `out` (`distinct_units`; whole blocks of 32 when
        // quantizing); rows, heads, pages were checked above; scratch by worker number.
        self.pool.run(units.len(), |worker, unit| unsafe { run(args.get(), scratch.get(worker), unit) });
        if out.has_blocks() && !to_q {
            self.quantize(out, rows.len());
        }
    }

    /// x += scale * (input · m + bias); `bias` is padded to 16.
    pub fn add_product(&mut self, m: &Panels, input: &Activations, rows: usize, x: &mut Rows, bias: Option<&[f32]>, scale: f32) {
        self.residual(m, input, rows, x, bias, scale, false);
    }

    /// out = input · m + bias; `bias` is padded to 16.
    pub fn product(&mut self, m: &Panels, input: &Activations, rows: usize, bias: Option<&[f32]>, out: &mut Rows) {
        self.residual(m, input, rows, out, bias, 1.0, true);
    }

    fn residual(
        &mut self,
        m: &Panels,
        input: &Activations,
        rows: usize,
        x: &mut Rows,
        bias: Option<&[f32]>,
        scale: f32,
        store: bool,
    ) {
        assert!(x.count() >= rows && x.stride == whole(m.n));
        let grid = self.grid(rows, m.count(), 2);
        let units = m.count().div_ceil(grid.panels) * grid.row_groups;
        let args = Shared(ResidualArgs {
            m: matrix(m),
            input: input.input(rows, m),
            grid,
            rows,
            bias: bias_of(bias, m.n),
            scale,
            x: x.data.as_mut_ptr(),
            x_stride: x.stride,
            store,
            round: self.round,
        });
        let (run, scratch) = (self.set.table().residual, &self.scratch);
        // SAFETY: features as in `norm`; a unit reads and writes its own columns of its own rows of `x`; scratch by worker number.
        self.pool.run(units, |worker, unit| unsafe { run(args.get(), scratch.get(worker), unit) });
    }

    /// activation(gate) * up into `out`; `m` holds gate and up panels in turn.
    pub fn gate_up(&mut self, m: &Panels, input: &Activations, rows: usize, activation: ActivationFn, out: &mut Activations) {
        assert!(m.n.is_multiple_of(2) && m.n / 2 == whole(out.width), "gate and up panels in turn");
        let to_q = out.has_blocks();
        assert!(!to_q || out.width.is_multiple_of(32));
        let grid = self.grid(rows, m.count(), 4);
        let units = m.count().div_ceil(grid.panels) * grid.row_groups;
        let width = out.width;
        let args = Shared(GateUpArgs {
            m: matrix(m),
            input: input.input(rows, m),
            grid,
            rows,
            activation,
            out: out.sink(rows, width),
            to_q,
            round: self.round,
        });
        let (run, scratch) = (self.set.table().gate_up, &self.scratch);
        // SAFETY: features as in `norm`; a unit writes its own columns (whole blocks of 32) of its own rows of `out`; scratch by worker.
        self.pool.run(units, |worker, unit| unsafe { run(args.get(), scratch.get(worker), unit) });
    }

    /// Rows `pick` of `x`, in that order, as rows of `out`.
    pub fn gather(&mut self, x: &Activations, pick: &[u32], out: &mut Activations) {
        assert!(pick.len() <= out.rows.count() && x.width == out.width && (!out.has_blocks() || x.has_blocks()));
        let per_unit = self.rows_per_unit(pick.len()).max(1);
        let (stride, blocks) = (out.rows.stride, out.blocks_stride);
        self.chunks(&mut out.rows.data[..pick.len() * stride], (stride * per_unit).max(1), |unit, chunk| {
            for (row, from) in chunk.chunks_exact_mut(stride.max(1)).zip(&pick[unit * per_unit..]) {
                row.copy_from_slice(x.row(*from as usize));
            }
        });
        self.chunks(&mut out.blocks[..pick.len() * blocks], (blocks * per_unit).max(1), |unit, chunk| {
            for (row, from) in chunk.chunks_exact_mut(blocks.max(1)).zip(&pick[unit * per_unit..]) {
                row.copy_from_slice(x.blocks(*from as usize));
            }
        });
    }

    /// Checks groups, cuts each, and numbers their units: (grid, first unit) of each, and how many units there are.
    fn cut_groups(&mut self, groups: &[Group], multiple: usize) -> (Vec<(Grid, usize)>, usize) {
        assert!(groups.windows(2).all(|g| g[0].rows.end <= g[1].rows.start), "groups one behind the other");
        assert!(groups.windows(2).all(|g| (g[0].m.n, g[0].m.k) == (g[1].m.n, g[1].m.k)), "matrices of one shape");
        let all = groups.iter().map(|g| g.m.count() * row_groups(g.rows.len()).1).sum();
        let mut units = 0;
        let cut = groups
            .iter()
            .map(|g| {
                let grid = self.grid_among(g.rows.len(), multiple, all);
                let first = units;
                units += g.m.count().div_ceil(grid.panels) * grid.row_groups;
                (grid, first)
            })
            .collect();
        (cut, units)
    }

    /// As [`Team::product`], each group of rows with its own matrix and bias. Rows of no group stay as they are.
    pub fn product_of_groups(&mut self, groups: &[Group], input: &Activations, out: &mut Rows) {
        let (cut, units) = self.cut_groups(groups, 2);
        let args: Vec<ResidualArgs> = groups
            .iter()
            .zip(&cut)
            .map(|(g, (grid, _))| {
                assert!(out.count() >= g.rows.end && out.stride == whole(g.m.n));
                ResidualArgs {
                    m: matrix(&g.m),
                    input: input.input(g.rows.end, &g.m).from(g.rows.start),
                    grid: *grid,
                    rows: g.rows.len(),
                    bias: bias_of(g.bias, g.m.n),
                    scale: 1.0,
                    x: out.data.as_mut_ptr().wrapping_add(g.rows.start * out.stride),
                    x_stride: out.stride,
                    store: true,
                    round: self.round,
                }
            })
            .collect();
        let (run, scratch, args) = (self.set.table().residual, &self.scratch, Shared(args));
        // SAFETY: features as in `norm`; groups have rows of their own, a unit writes its own columns of its own rows; scratch by worker.
        self.pool.run(units, |worker, unit| unsafe {
            let group = cut.partition_point(|(_, first)| *first <= unit) - 1;
            run(&args.get()[group], scratch.get(worker), unit - cut[group].1)
        });
    }

    /// As [`Team::gate_up`], each group of rows with its own matrix. Rows of no group stay as they are.
    pub fn gate_up_of_groups(&mut self, groups: &[Group], input: &Activations, activation: ActivationFn, out: &mut Activations) {
        let to_q = out.has_blocks();
        assert!(!to_q || out.width.is_multiple_of(32));
        let (cut, units) = self.cut_groups(groups, 4);
        let width = out.width;
        let args: Vec<GateUpArgs> = groups
            .iter()
            .zip(&cut)
            .map(|(g, (grid, _))| {
                assert!(g.m.n.is_multiple_of(2) && g.m.n / 2 == whole(width) && g.bias.is_none(), "gate and up panels in turn");
                GateUpArgs {
                    m: matrix(&g.m),
                    input: input.input(g.rows.end, &g.m).from(g.rows.start),
                    grid: *grid,
                    rows: g.rows.len(),
                    activation,
                    out: out.sink(g.rows.end, width).from(g.rows.start),
                    to_q,
                    round: self.round,
                }
            })
            .collect();
        let (run, scratch, args) = (self.set.table().gate_up, &self.scratch, Shared(args));
        // SAFETY: as in `product_of_groups`; whole blocks of 32 of its own rows.
        self.pool.run(units, |worker, unit| unsafe {
            let group = cut.partition_point(|(_, first)| *first <= unit) - 1;
            run(&args.get()[group], scratch.get(worker), unit - cut[group].1)
        });
    }

    /// A convolution of the first rows of `x` (see [`Around`]) into `out`, `columns` wide: for each segment from its state on. `weights`
    /// are [taps][columns up to 16], `offset` is where the layer begins in a block.
    #[allow(clippy::type_complexity)]
    pub fn convolve(
        &mut self,
        x: &Rows,
        around: Around,
        (weights, taps, bias): (&[f32], usize, Option<&[f32]>),
        columns: usize,
        segments: &[StateSegment],
        (states, offset): (&mut StateArena, usize),
        out: &mut Rows,
    ) {
        let parts = if around == Around::Gates { 3 } else { 1 };
        assert!((1..=MAX_TAPS).contains(&taps) && weights.len() == times(taps, whole(columns)));
        assert!(x.stride == whole(times(parts, columns)) && out.stride == whole(columns));
        check_segments(segments, x.count().min(out.count()));
        let states = states.view(offset, StateArena::convolution_floats(columns, taps), segments);
        let args = Shared(ConvolveArgs {
            x: x.data.as_ptr(),
            x_stride: x.stride,
            columns,
            around,
            weights: weights.as_ptr(),
            taps,
            bias: bias_of(bias, columns),
            segments: segments.as_ptr(),
            count: segments.len(),
            states,
            out: out.data.as_mut_ptr(),
            out_stride: out.stride,
            round: self.round,
        });
        let run = self.set.table().convolve;
        // SAFETY: features as in `norm`; a unit reads and writes its own columns of all rows and blocks, segments one after the other;
        // sizes were checked above.
        self.pool.run(whole(columns).div_ceil(UNIT), |_, unit| unsafe { run(args.get(), unit) });
    }

    /// As [`Team::convolve`], into activations.
    pub fn convolve_into(
        &mut self,
        x: &Rows,
        around: Around,
        weights: (&[f32], usize, Option<&[f32]>),
        columns: usize,
        segments: &[StateSegment],
        states: (&mut StateArena, usize),
        out: &mut Activations,
    ) {
        assert!(out.width == columns);
        self.convolve(x, around, weights, columns, segments, states, &mut out.rows);
        if out.has_blocks() {
            let rows = segments.iter().map(|s| s.row + s.rows + s.padding).max().unwrap_or(0);
            self.quantize(out, rows);
        }
    }

    /// The gated delta rule of queries, keys and values side by side in `mixed`, with each row's and value head's `beta` and `decay`, and
    /// the gates `z`, into `out`.
    pub fn delta(
        &mut self,
        by: &Delta,
        mixed: &Rows,
        z: &Rows,
        [beta, decay]: [&Rows; 2],
        segments: &[StateSegment],
        (states, offset): (&mut StateArena, usize),
        out: &mut Activations,
    ) {
        let ([key_heads, value_heads], [key_dim, value_dim]) = (by.heads, by.dims);
        assert!(key_heads > 0 && value_heads.is_multiple_of(key_heads) && key_dim > 0 && value_dim > 0);
        let (keys, values) = (times(key_heads, key_dim), times(value_heads, value_dim));
        assert!(mixed.stride == whole(2 * keys + values) && z.stride == whole(values) && out.width == values);
        assert!(beta.stride == whole(value_heads) && decay.stride == beta.stride);
        let counts = [mixed.count(), z.count(), beta.count(), decay.count(), out.rows.count()];
        check_segments(segments, counts.into_iter().min().unwrap_or(0));
        let states = states.view(offset, StateArena::delta_floats(value_heads, key_dim, value_dim), segments);
        for scratch in self.scratch.iter_mut() {
            scratch.tile(delta_floats(key_dim, value_dim));
        }
        // x / sqrt(|x|² + 1e-6) is the norm of weights 1 / sqrt(n) with an epsilon of 1e-6 / n.
        let epsilon = 1e-6 / key_dim as f32;
        let unit = by.units.map(|weights| NormWeights::rms(weights, epsilon).by(key_dim, false));
        let args = Shared(DeltaArgs {
            mixed: mixed.data.as_ptr(),
            mixed_stride: mixed.stride,
            z: z.data.as_ptr(),
            z_stride: z.stride,
            beta: beta.data.as_ptr(),
            decay: decay.data.as_ptr(),
            gates_stride: beta.stride,
            key_heads,
            value_heads,
            key_dim,
            value_dim,
            tiled: by.tiled,
            unit,
            norm: by.norm.by(value_dim, self.round),
            segments: segments.as_ptr(),
            count: segments.len(),
            states,
            out: out.rows.data.as_mut_ptr(),
            out_stride: out.rows.stride,
            round: self.round,
        });
        let (run, scratch) = (self.set.table().delta, &self.scratch);
        // SAFETY: features as in `norm`; a unit is a value head: it writes its own columns of all rows and its own part of the blocks,
        // segments one after the other; sizes were checked above; scratch by worker number.
        self.pool.run(value_heads, |worker, head| unsafe { run(args.get(), scratch.get(worker), head) });
        if out.has_blocks() {
            let rows = segments.iter().map(|s| s.row + s.rows + s.padding).max().unwrap_or(0);
            self.quantize(out, rows);
        }
    }

    /// The output matrix on the rows of `input`, one for each of `wants`.
    pub fn head(&mut self, m: &Panels, input: &Activations, scoring: &Scoring, wants: &mut [ScoreRequest]) -> Vec<Scores> {
        let rows = wants.len();
        let scores: Vec<RawScoreRequest> = wants
            .iter_mut()
            .map(|want| match want {
                ScoreRequest::Argmax => RawScoreRequest::Argmax,
                ScoreRequest::TopK(k) => RawScoreRequest::TopK((*k).min(m.n)),
                ScoreRequest::All(to) => {
                    assert_eq!(to.len(), m.n);
                    RawScoreRequest::All(to.as_mut_ptr())
                }
            })
            .collect();
        let grid = self.grid(rows, m.count(), 2);
        let units = m.count().div_ceil(grid.panels) * grid.row_groups;
        for scratch in self.scratch.iter_mut() {
            scratch.best.clear();
            scratch.best.resize(rows, Best::new());
        }
        let args = Shared(HeadArgs {
            m: matrix(m),
            input: input.input(rows, m),
            grid,
            rows,
            score: scores.as_ptr(),
            bias: bias_of(scoring.bias, m.n),
            scale: scoring.scale,
            cap: cap_of(scoring.cap),
            round: self.round,
        });
        let (run, scratch) = (self.set.table().head, &self.scratch);
        // SAFETY: features as in `norm`; a unit writes its own columns of the places in `wants` (distinct borrows of `n` floats) and its
        // worker's scratch.
        self.pool.run(units, |worker, unit| unsafe { run(args.get(), scratch.get(worker), unit) });
        let mut merged = vec![Best::new(); rows];
        for scratch in self.scratch.iter_mut() {
            for (all, part) in merged.iter_mut().zip(&mut scratch.best) {
                all.bad |= part.bad;
                all.argmax = all.argmax.min(part.argmax);
                all.top.append(&mut part.top);
            }
        }
        let answer = |(best, score): (Best, &RawScoreRequest)| match score {
            _ if best.bad => Scores::NotFinite,
            RawScoreRequest::Argmax => Scores::Argmax(best.argmax.1, best.argmax.0),
            RawScoreRequest::TopK(k) => {
                Scores::TopK(best.top.into_sorted_vec().into_iter().take(*k).map(|r| (r.1, r.0)).collect())
            }
            RawScoreRequest::All(_) => Scores::All,
        };
        merged.into_iter().zip(&scores).map(answer).collect()
    }

    /// Widens a bf16 matrix to f32 panels in `out`: the emulated dtype's temporary. `out` has 16 floats more than
    /// that needs, so that lines can be aligned.
    pub fn widen<'a>(&mut self, m: &Panels, out: &'a mut [f32]) -> Panels<'a> {
        assert!(m.format == Format::Bf16);
        let len = times(times(m.count(), m.k), COLUMNS);
        let aligned = out.as_ptr().align_offset(64);
        let out = &mut out[aligned..][..len];
        let panels_per_unit = m.count().div_ceil(4 * self.pool.threads());
        let args = Shared(WidenArgs { m: matrix(m), out: out.as_mut_ptr(), panels_per_unit });
        let run = self.set.table().widen;
        // SAFETY: features as in `norm`; a unit writes its own panels of `out`, which has room for all.
        self.pool.run(m.count().div_ceil(panels_per_unit.max(1)), |_, unit| unsafe { run(args.get(), unit) });
        // SAFETY: f32 values may be read as bytes; the length in bytes is that of the slice.
        let bytes = unsafe { std::slice::from_raw_parts(out.as_ptr() as *const u8, len * 4) };
        Panels::new(Format::F32, m.n, m.k, bytes)
    }
}

/// Rows of a group of a unit's rows, and how many groups `rows` rows make.
fn row_groups(rows: usize) -> (usize, usize) {
    let groups = rows.div_ceil(ROW_GROUP).max(1);
    // Whole tiles in every group but the last.
    let group = rows.div_ceil(groups).next_multiple_of(16).clamp(1, rows.max(1));
    (group, rows.div_ceil(group).max(1))
}

/// Rows of one unit at most: their activations stay in L2.
const ROW_GROUP: usize = 128;
/// Panels of one unit at most.
const MAX_PANELS: usize = 8;

/// Segments one behind the other, within `rows` rows.
fn check_segments(segments: &[StateSegment], rows: usize) {
    let end = |s: &StateSegment| s.row.saturating_add(s.rows).saturating_add(s.padding);
    assert!(segments.windows(2).all(|w| end(&w[0]) <= w[1].row), "segments one behind the other");
    assert!(segments.last().is_none_or(|s| end(s) <= rows), "segments past the rows");
}

/// No two rows write the same place.
fn distinct_places(rows: &[Row], places: &mut Vec<(u32, u32)>) -> bool {
    places.clear();
    places.extend(rows.iter().filter(|r| r.page != Row::NOWHERE).map(|r| (r.page, r.position % PAGE as u32)));
    places.sort_unstable();
    places.windows(2).all(|w| w[0] != w[1])
}

/// No two units compute the same head of the same row. The units were checked to lie within `rows` and `heads`.
fn distinct_units(units: &[AttentionUnit], rows: usize, heads: usize, seen: &mut Vec<bool>) -> bool {
    seen.clear();
    seen.resize(times(rows, heads), false);
    units.iter().all(|u| {
        (u.row as usize..u.row as usize + u.rows as usize).all(|row| {
            (u.head as usize..u.head as usize + u.heads as usize)
                .all(|head| !std::mem::replace(&mut seen[row * heads + head], true))
        })
    })
}

/// Cuts a segment's rows (`first..first + rows` of the batch) into attention units.
pub fn attention_units(
    segment: usize,
    first: usize,
    rows: usize,
    padded_context: usize,
    heads: usize,
    kv_heads: usize,
    heads_apart: bool,
    out: &mut Vec<AttentionUnit>,
) {
    let group = heads / kv_heads;
    let together = if heads_apart { 1 } else { group.min(ATTENTION_ROWS) };
    let most_rows = ATTENTION_ROWS / together;
    for head in (0..kv_heads).flat_map(|h| (h * group..(h + 1) * group).step_by(together)) {
        let heads = together.min((head / group + 1) * group - head);
        for row in (0..rows).step_by(most_rows) {
            out.push(AttentionUnit {
                segment: segment as u32,
                row: (first + row) as u32,
                rows: most_rows.min(rows - row) as u32,
                head: head as u32,
                heads: heads as u32,
                padded_context: padded_context as u32,
            });
        }
    }
}

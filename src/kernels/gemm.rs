//! Rows times panels, for every format: the two kernels of this program, written once over [`Isa`].
//!
//! Numerics, the same for every number of rows (so a row's result never depends on the rows beside it):
//! * float formats: weights widened exactly; `acc = fma(x[k], w[k], acc)`, k ascending, in blocks of 256 whose sums are added in order;
//! * quantized formats: int8 activations ([`ActBlock`]); a part of 32 has one integer sum, the whole numbers of [`super::formats::Part`]
//!   times activations, exact; `acc = fma(d * dx, sum, acc)`, for types with minima then `acc = fma(m, dx * Σx, acc)`, parts ascending.
#![allow(unsafe_code)]
#![allow(clippy::missing_safety_doc, clippy::needless_range_loop, clippy::too_many_arguments)]

use super::Format;
use super::formats::{self, Blocks, Sum, eight};
use super::isa::Isa;
use super::panels::panel_bytes;

/// k of a float block: also what fits in L1 beside the activations.
pub(crate) const BLOCK: usize = 256;

/// 32 activations as int8 with what their block needs.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(16))]
pub struct ActBlock {
    /// round-half-even(x / d), in -127..=127.
    pub q: [i8; 32],
    /// max |x| / 127.
    pub d: f32,
    /// d times the sum of `q`.
    pub dsum: f32,
    /// -128 times the sum of `q`: undoes the offset of weights stored plus 128.
    pub correction: i32,
    /// Sums of the first and of the last 16 of `q`.
    pub halves: [i16; 2],
}

impl ActBlock {
    /// All zero.
    pub const ZERO: ActBlock = ActBlock { q: [0; 32], d: 0.0, dsum: 0.0, correction: 0, halves: [0; 2] };
}

/// One multiplication: `out[r][c] = Σ_k x[r][k] * w[c][k]` for `rows` rows and the columns of `panels` panels.
pub(crate) struct Gemm {
    pub format: Format,
    /// The first panel.
    pub w: *const u8,
    pub panels: usize,
    pub k: usize,
    /// Float formats: row r at `x + r * x_stride`.
    pub x: *const f32,
    pub x_stride: usize,
    /// Quantized formats: row r at `q + r * q_stride`.
    pub q: *const ActBlock,
    pub q_stride: usize,
    pub rows: usize,
    /// Row r at `out + r * out_stride`.
    pub out: *mut f32,
    pub out_stride: usize,
    /// `WIDE` floats of scratch.
    pub wide: *mut f32,
}

/// Floats of scratch a [`Gemm`] needs: a block of two panels.
pub(crate) const WIDE: usize = 2 * BLOCK * 16;

/// How 16 columns of float weights are read.
trait Weight<S: Isa> {
    /// Not f32: worth widening once for many rows.
    const NARROW: bool;
    /// Two k come out of one load.
    const PAIRS: bool;
    /// Bytes of two k.
    const TWO: usize;
    unsafe fn one(p: *const u8, k: usize) -> S::F;
    unsafe fn pair(p: *const u8, k: usize) -> (S::F, S::F);
}

struct WideF32;
struct HalfBf16;
struct HalfF16;

impl<S: Isa> Weight<S> for WideF32 {
    const NARROW: bool = false;
    const PAIRS: bool = false;
    const TWO: usize = 128;
    #[inline(always)]
    unsafe fn one(p: *const u8, k: usize) -> S::F {
        unsafe { S::load((p as *const f32).add(k * 16)) }
    }
    #[inline(always)]
    unsafe fn pair(p: *const u8, k: usize) -> (S::F, S::F) {
        unsafe { (S::load((p as *const f32).add(k * 16)), S::load((p as *const f32).add(k * 16 + 16))) }
    }
}

impl<S: Isa> Weight<S> for HalfBf16 {
    const NARROW: bool = true;
    const PAIRS: bool = true;
    const TWO: usize = 64;
    #[inline(always)]
    unsafe fn one(p: *const u8, k: usize) -> S::F {
        unsafe { S::load_bf16_pairs((p as *const u16).add(k / 2 * 32)).0 }
    }
    #[inline(always)]
    unsafe fn pair(p: *const u8, k: usize) -> (S::F, S::F) {
        unsafe { S::load_bf16_pairs((p as *const u16).add(k / 2 * 32)) }
    }
}

impl<S: Isa> Weight<S> for HalfF16 {
    const NARROW: bool = true;
    const PAIRS: bool = false;
    const TWO: usize = 64;
    #[inline(always)]
    unsafe fn one(p: *const u8, k: usize) -> S::F {
        unsafe { S::load_f16((p as *const u16).add(k * 16)) }
    }
    #[inline(always)]
    unsafe fn pair(p: *const u8, k: usize) -> (S::F, S::F) {
        unsafe { (S::load_f16((p as *const u16).add(k * 16)), S::load_f16((p as *const u16).add(k * 16 + 16))) }
    }
}

/// Runs `$call!(rows)` with the run-time number of rows as a constant.
macro_rules! with_rows {
    ($rows:expr, $max:expr, $call:ident!) => {
        match $rows {
            1 => $call!(1),
            2 if $max >= 2 => $call!(2),
            3 if $max >= 3 => $call!(3),
            4 if $max >= 4 => $call!(4),
            5 if $max >= 5 => $call!(5),
            6 if $max >= 6 => $call!(6),
            7 if $max >= 7 => $call!(7),
            8 if $max >= 8 => $call!(8),
            _ => unreachable!("a tile has at most {} rows", $max),
        }
    };
}
pub(crate) use with_rows;

/// The product of one format each, to be compiled for a set as functions of their own: in one function their temporaries fill a thread's
/// stack where nothing is optimised, and the compiler takes minutes.
pub(crate) mod products {
    use super::*;

    macro_rules! products {
        ($($name:ident: $call:expr;)*) => {
            $(
                #[inline(always)]
                pub(crate) unsafe fn $name<S: Isa>(g: &Gemm) {
                    unsafe { $call(g) }
                }
            )*
        };
    }

    products! {
        f32: float::<S, WideF32>;
        bf16: float::<S, HalfBf16>;
        f16: float::<S, HalfF16>;
        q8_0: quantized::<S, Bytes>;
        q4_1: quantized::<S, Coded<formats::Q41>>;
        q4_0: quantized::<S, Coded<formats::Q40>>;
        q5_0: quantized::<S, Coded<formats::Q50>>;
        q5_1: quantized::<S, Coded<formats::Q51>>;
        q4_k: quantized::<S, Coded<formats::Q4K>>;
        q5_k: quantized::<S, Coded<formats::Q5K>>;
        q6_k: quantized::<S, Coded<formats::Q6K>>;
        iq4_nl: quantized::<S, Coded<formats::Iq4Nl>>;
        iq4_xs: quantized::<S, Coded<formats::Iq4Xs>>;
    }
}

/// Many rows: two panels at a time, where a set's registers hold such tiles. A core with two 512-bit multipliers is then no longer held
/// up by its loads (10 for 16 products instead of 9 for 8). Few rows wait for memory, and that is read fastest as one stream.
#[inline(always)]
unsafe fn float<S: Isa, W: Weight<S>>(g: &Gemm) {
    let mut panel = 0;
    while panel < g.panels {
        let two = g.rows >= S::TWO_PANELS && g.panels - panel >= 2;
        for block in 0..g.k.div_ceil(BLOCK).max(1) {
            unsafe {
                if two {
                    float_block::<S, W, 2>(g, panel, block * BLOCK);
                } else {
                    float_block::<S, W, 1>(g, panel, block * BLOCK);
                }
            }
        }
        panel += if two { 2 } else { 1 };
    }
}

/// `NP` panels' block of k from `k`, all rows.
#[inline(always)]
unsafe fn float_block<S: Isa, W: Weight<S>, const NP: usize>(g: &Gemm, panel: usize, k: usize) {
    unsafe {
        let kc = (g.k - k).min(BLOCK);
        let bytes = panel_bytes(g.format, g.k);
        let w = g.w.add(panel * bytes + k / 2 * W::TWO);
        let (x, out) = (g.x.add(k), g.out.add(panel * 16));
        let ahead = Ahead { from: w.wrapping_add(kc / 2 * W::TWO), panel: bytes, two: W::TWO };
        if W::NARROW && g.rows > S::DIRECT_ROWS {
            for p in 0..NP {
                widen::<S, W>(w.add(p * bytes), kc, g.wide.add(p * BLOCK * 16));
            }
            float_rows::<S, WideF32, NP>(g, g.wide as *const u8, BLOCK * 64, &ahead, x, kc, out, k == 0);
        } else {
            float_rows::<S, W, NP>(g, w, bytes, &ahead, x, kc, out, k == 0);
        }
    }
}

/// Widens `kc` k of a panel to f32, `[kc][16]`.
#[inline(always)]
unsafe fn widen<S: Isa, W: Weight<S>>(w: *const u8, kc: usize, out: *mut f32) {
    unsafe {
        let mut k = 0;
        while k + 2 <= kc {
            let (a, b) = W::pair(w, k);
            S::store(out.add(k * 16), a);
            S::store(out.add(k * 16 + 16), b);
            k += 2;
        }
        if k < kc {
            S::store(out.add(k * 16), W::one(w, k));
        }
    }
}

/// Weights as they lie in memory that come after a block: where, bytes from panel to panel, bytes of two k.
struct Ahead {
    from: *const u8,
    panel: usize,
    two: usize,
}

/// Panels `w_step` bytes apart, in memory or widened; `ahead` is what the next block reads.
#[inline(always)]
unsafe fn float_rows<S: Isa, W: Weight<S>, const NP: usize>(
    g: &Gemm,
    w: *const u8,
    w_step: usize,
    ahead: &Ahead,
    x: *const f32,
    kc: usize,
    out: *mut f32,
    first: bool,
) {
    unsafe {
        let mut r = 0;
        while r < g.rows {
            let rows = tile_rows(g.rows - r, S::ROWS);
            let (x, out) = (x.add(r * g.x_stride), out.add(r * g.out_stride));
            macro_rules! tile {
                ($mr:literal) => {
                    // Several rows keep the core busy long enough to fetch the block that follows; for few the hardware does better alone.
                    if r < FETCHING_ROWS {
                        float_tile::<S, W, $mr, NP, { $mr > 4 }>(w, w_step, ahead, x, g.x_stride, kc, out, g.out_stride, first)
                    } else {
                        float_tile::<S, W, $mr, NP, false>(w, w_step, ahead, x, g.x_stride, kc, out, g.out_stride, first)
                    }
                };
            }
            with_rows!(rows, S::ROWS, tile!);
            r += rows;
        }
    }
}

/// The tiles of this many rows prefetch what follows their weights.
const FETCHING_ROWS: usize = 16;

/// Rows of the next tile: as many as fit, the last two tiles evened out.
#[inline(always)]
fn tile_rows(left: usize, most: usize) -> usize {
    if left <= most {
        left
    } else if left < 2 * most {
        left.div_ceil(2)
    } else {
        most
    }
}

/// `MR` rows × `NP` panels over one block of k; the block's sums are stored (`first`) or added. `FETCH`: prefetches the block that follows.
#[inline(always)]
unsafe fn float_tile<S: Isa, W: Weight<S>, const MR: usize, const NP: usize, const FETCH: bool>(
    w: *const u8,
    w_step: usize,
    ahead: &Ahead,
    x: *const f32,
    x_stride: usize,
    kc: usize,
    out: *mut f32,
    out_stride: usize,
    first: bool,
) {
    unsafe {
        let mut acc = [[S::zero(); NP]; MR];
        // A pointer for every four rows, and three strides: a pointer for every row would leave too few registers.
        let mut group = [x; 2];
        for i in 1..MR.div_ceil(4) {
            group[i] = x.add(4 * i * x_stride);
        }
        let mut w = [w; NP];
        for p in 1..NP {
            w[p] = w[0].wrapping_add(p * w_step);
        }
        let mut k = 0;
        if W::PAIRS {
            while k + 2 <= kc {
                let (mut even, mut odd) = ([S::zero(); NP], [S::zero(); NP]);
                for p in 0..NP {
                    (even[p], odd[p]) = W::pair(w[p], k);
                    if FETCH {
                        S::prefetch(ahead.from.wrapping_add(p * ahead.panel + k / 2 * ahead.two));
                    }
                }
                for r in 0..MR {
                    let a = S::splat(*group[r / 4].add(r % 4 * x_stride));
                    for p in 0..NP {
                        acc[r][p] = S::fma(a, even[p], acc[r][p]);
                    }
                }
                for r in 0..MR {
                    let a = S::splat(*group[r / 4].add(r % 4 * x_stride + 1));
                    for p in 0..NP {
                        acc[r][p] = S::fma(a, odd[p], acc[r][p]);
                    }
                }
                for i in 0..MR.div_ceil(4) {
                    group[i] = group[i].wrapping_add(2);
                }
                k += 2;
            }
        }
        while k < kc {
            let mut b = [S::zero(); NP];
            for p in 0..NP {
                b[p] = W::one(w[p], k);
                if FETCH {
                    S::prefetch(ahead.from.wrapping_add(p * ahead.panel + k * ahead.two / 2));
                }
            }
            for r in 0..MR {
                let a = S::splat(*group[r / 4].add(r % 4 * x_stride));
                for p in 0..NP {
                    acc[r][p] = S::fma(a, b[p], acc[r][p]);
                }
            }
            for i in 0..MR.div_ceil(4) {
                group[i] = group[i].wrapping_add(1);
            }
            k += 1;
        }
        for r in 0..MR {
            for p in 0..NP {
                let o = out.add(r * out_stride + p * 16);
                S::store(o, if first { acc[r][p] } else { S::add(S::load(o), acc[r][p]) });
            }
        }
    }
}

/// Two panels at a time for many rows, as in [`float`].
#[inline(always)]
unsafe fn quantized<S: Isa, T: Tile<S>>(g: &Gemm) {
    let mut panel = 0;
    while panel < g.panels {
        unsafe {
            if g.rows >= S::TWO_PANELS && g.panels - panel >= 2 {
                quantized_rows::<S, T, 2>(g, panel);
                panel += 2;
            } else {
                quantized_rows::<S, T, 1>(g, panel);
                panel += 1;
            }
        }
    }
}

/// Rows of an integer tile of `panels` panels.
#[inline(always)]
const fn quant_rows<S: Isa>(panels: usize) -> usize {
    if panels == 2 { S::QUANT_ROWS_OF_TWO } else { S::QUANT_ROWS }
}

/// `NP` panels, all rows.
#[inline(always)]
unsafe fn quantized_rows<S: Isa, T: Tile<S>, const NP: usize>(g: &Gemm, panel: usize) {
    unsafe {
        let bytes = panel_bytes(g.format, g.k);
        let w = g.w.add(panel * bytes);
        let mut r = 0;
        while r < g.rows {
            let rows = tile_rows(g.rows - r, quant_rows::<S>(NP));
            let (x, out) = (g.q.add(r * g.q_stride), g.out.add(r * g.out_stride + panel * 16));
            macro_rules! tile {
                ($mr:literal) => {
                    if r < FETCHING_ROWS && $mr > 4 {
                        T::tile::<$mr, NP, true>(w, bytes, x, g.q_stride, g.k / 32, out, g.out_stride)
                    } else {
                        T::tile::<$mr, NP, false>(w, bytes, x, g.q_stride, g.k / 32, out, g.out_stride)
                    }
                };
            }
            with_rows!(rows, quant_rows::<S>(NP), tile!);
            r += rows;
        }
    }
}

/// The four activations of quad `i`.
#[inline(always)]
unsafe fn quad(x: *const ActBlock, i: usize) -> i32 {
    unsafe { (x as *const i32).add(i).read() }
}

/// A tile of a quantized type: `MR` rows × `NP` panels, `bytes` apart. `FETCH`: prefetches the panels that follow.
trait Tile<S: Isa> {
    unsafe fn tile<const MR: usize, const NP: usize, const FETCH: bool>(
        w: *const u8,
        bytes: usize,
        x: *const ActBlock,
        x_stride: usize,
        blocks: usize,
        out: *mut f32,
        out_stride: usize,
    );
}

/// q8_0.
struct Bytes;
/// All types of [`formats`] whose codes are nibbles and more.
struct Coded<Q>(Q);

impl<S: Isa> Tile<S> for Bytes {
    #[inline(always)]
    unsafe fn tile<const MR: usize, const NP: usize, const FETCH: bool>(
        w: *const u8,
        bytes: usize,
        x: *const ActBlock,
        x_stride: usize,
        blocks: usize,
        out: *mut f32,
        out_stride: usize,
    ) {
        unsafe { tile8::<S, MR, NP, FETCH>(w, bytes, x, x_stride, blocks, out, out_stride) }
    }
}

impl<S: Isa, Q: Blocks<S>> Tile<S> for Coded<Q> {
    #[inline(always)]
    unsafe fn tile<const MR: usize, const NP: usize, const FETCH: bool>(
        w: *const u8,
        bytes: usize,
        x: *const ActBlock,
        x_stride: usize,
        blocks: usize,
        out: *mut f32,
        out_stride: usize,
    ) {
        unsafe { coded::<S, Q, MR, NP, FETCH>(w, bytes, x, x_stride, blocks, out, out_stride) }
    }
}

/// `MR` rows × `NP` q8_0 panels, `bytes` apart. `FETCH`: prefetches the panels that follow.
#[inline(always)]
unsafe fn tile8<S: Isa, const MR: usize, const NP: usize, const FETCH: bool>(
    w: *const u8,
    bytes: usize,
    x: *const ActBlock,
    x_stride: usize,
    blocks: usize,
    out: *mut f32,
    out_stride: usize,
) {
    unsafe {
        let mut acc = [[S::zero(); NP]; MR];
        for b in 0..blocks {
            let (at, scales) = eight(b);
            let mut sum = [[S::start8(0); NP]; MR];
            for r in 0..MR {
                sum[r] = [S::start8((*x.add(r * x_stride + b)).correction); NP];
            }
            for i in 0..8 {
                let mut line = [S::line8(w.add(at + i * 64)); NP];
                for p in 1..NP {
                    line[p] = S::line8(w.add(p * bytes + at + i * 64));
                }
                if FETCH {
                    for p in 0..NP {
                        S::prefetch(w.wrapping_add((NP + p) * bytes + at + i * 64));
                    }
                }
                for r in 0..MR {
                    let x = quad(x.add(r * x_stride + b), i);
                    for p in 0..NP {
                        sum[r][p] = S::dot8(sum[r][p], line[p], x);
                    }
                }
            }
            for p in 0..NP {
                let d = S::load_f16(w.add(p * bytes + scales) as *const u16);
                for r in 0..MR {
                    let dx = S::splat((*x.add(r * x_stride + b)).d);
                    acc[r][p] = S::fma(S::mul(d, dx), S::to_float(sum[r][p]), acc[r][p]);
                }
            }
        }
        for r in 0..MR {
            for p in 0..NP {
                S::store(out.add(r * out_stride + p * 16), acc[r][p]);
            }
        }
    }
}

/// `MR` rows × `NP` panels of a type of codes, `bytes` apart. `FETCH`: prefetches the panels that follow.
#[inline(always)]
unsafe fn coded<S: Isa, Q: Blocks<S>, const MR: usize, const NP: usize, const FETCH: bool>(
    w: *const u8,
    bytes: usize,
    x: *const ActBlock,
    x_stride: usize,
    blocks: usize,
    out: *mut f32,
    out_stride: usize,
) {
    unsafe {
        let mut acc = [[S::zero(); NP]; MR];
        for b in 0..blocks {
            let (w, part) = (w.add(b / Q::SUPER * Q::BYTES), b % Q::SUPER);
            let mut planes = [Q::planes(w, part); NP];
            for p in 1..NP {
                planes[p] = Q::planes(w.add(p * bytes), part);
            }
            let (mut low, mut high) = ([[S::start4(); NP]; MR], [[S::start4(); NP]; MR]);
            let mut total = [[S::splat_i(0); NP]; MR];
            for r in 0..MR {
                let correction = (*x.add(r * x_stride + b)).correction;
                total[r] = match Q::SUM {
                    Sum::Signed => [S::start8(correction); NP],
                    Sum::Halves => [S::splat_i(0); NP],
                    Sum::Four | Sum::Five => [S::splat_i(correction / 128 * Q::OFFSET); NP],
                };
            }
            for i in 0..4 {
                let mut line = [Q::line(w, part, i, &mut planes[0]); NP];
                for p in 1..NP {
                    line[p] = Q::line(w.add(p * bytes), part, i, &mut planes[p]);
                }
                if FETCH {
                    for p in 0..NP {
                        S::prefetch(w.wrapping_add((NP + p) * bytes + Q::at(part, i)));
                    }
                }
                if matches!(Q::SUM, Sum::Signed) {
                    for p in 0..NP {
                        let (l, h) = (S::signed(line[p].0), S::signed(line[p].1));
                        for r in 0..MR {
                            let x = x.add(r * x_stride + b);
                            total[r][p] = S::dot8(S::dot8(total[r][p], l, quad(x, i)), h, quad(x, i + 4));
                        }
                    }
                } else {
                    for r in 0..MR {
                        let x = x.add(r * x_stride + b);
                        let (a, b) = (quad(x, i), quad(x, i + 4));
                        for p in 0..NP {
                            if matches!(Q::SUM, Sum::Halves) {
                                low[r][p] = S::dot2(low[r][p], line[p].0, a);
                                high[r][p] = S::dot2(high[r][p], line[p].1, b);
                            } else {
                                low[r][p] = S::dot4(low[r][p], line[p], a, b);
                            }
                        }
                    }
                }
                let full = i == 3 || S::SHORT && i == 1;
                if full && matches!(Q::SUM, Sum::Five) {
                    for r in 0..MR {
                        for p in 0..NP {
                            total[r][p] = S::flush(total[r][p], low[r][p]);
                            low[r][p] = S::start4();
                        }
                    }
                }
                if full && matches!(Q::SUM, Sum::Halves) {
                    for p in 0..NP {
                        let (first, last) = Q::factors(w.add(p * bytes), part);
                        let (first, last) = (S::factors(first), S::factors(last));
                        for r in 0..MR {
                            total[r][p] = S::flush_by(total[r][p], low[r][p], first);
                            total[r][p] = S::flush_by(total[r][p], high[r][p], last);
                            (low[r][p], high[r][p]) = (S::start4(), S::start4());
                            if i == 3 {
                                let halves = (*x.add(r * x_stride + b)).halves;
                                total[r][p] = S::fold(total[r][p], first, halves[0] as i32 * -(Q::OFFSET / 2));
                                total[r][p] = S::fold(total[r][p], last, halves[1] as i32 * -(Q::OFFSET / 2));
                            }
                        }
                    }
                }
            }
            for p in 0..NP {
                let d = Q::step(w.add(p * bytes), part);
                let m = Q::minimum(w.add(p * bytes), part);
                for r in 0..MR {
                    let x = x.add(r * x_stride + b);
                    let sum = match Q::SUM {
                        Sum::Four if Q::OFFSET == 0 => S::finish4(low[r][p]),
                        Sum::Four => S::flush(total[r][p], low[r][p]),
                        _ => total[r][p],
                    };
                    acc[r][p] = S::fma(S::mul(d, S::splat((*x).d)), S::to_float(sum), acc[r][p]);
                    if Q::MINIMUM {
                        acc[r][p] = S::fma(m, S::splat((*x).dsum), acc[r][p]);
                    }
                }
            }
        }
        for r in 0..MR {
            for p in 0..NP {
                S::store(out.add(r * out_stride + p * 16), acc[r][p]);
            }
        }
    }
}

/// What attention multiplies by: a page of keys is a panel, a page of values has its own line length.
pub(crate) trait Element<S: Isa> {
    const SIZE: usize;
    unsafe fn load(p: *const u8, index: usize) -> S::F;
    unsafe fn store(p: *mut u8, index: usize, v: S::F);
}

pub(crate) struct F32;
pub(crate) struct F16;

impl<S: Isa> Element<S> for F32 {
    const SIZE: usize = 4;
    #[inline(always)]
    unsafe fn load(p: *const u8, index: usize) -> S::F {
        unsafe { S::load((p as *const f32).add(index)) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut u8, index: usize, v: S::F) {
        unsafe { S::store((p as *mut f32).add(index), v) }
    }
}

impl<S: Isa> Element<S> for F16 {
    const SIZE: usize = 2;
    #[inline(always)]
    unsafe fn load(p: *const u8, index: usize) -> S::F {
        unsafe { S::load_f16((p as *const u16).add(index)) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut u8, index: usize, v: S::F) {
        unsafe { S::store_f16((p as *mut u16).add(index), v) }
    }
}

/// `MR` rows × `NP` pages of keys, `[hd][16]` each: `out[r][16 p + i] = Σ_d x[r][d] * keys[p][d][i]`. `FETCH`: prefetches keys and
/// values of the pages that come `next`.
#[inline(always)]
pub(crate) unsafe fn score_tile<S: Isa, E: Element<S>, const MR: usize, const NP: usize, const FETCH: bool>(
    keys: [*const u8; NP],
    next: [*const u8; NP],
    x: *const f32,
    hd: usize,
    out: *mut f32,
    out_stride: usize,
) {
    unsafe {
        let mut acc = [[S::zero(); NP]; MR];
        for d in 0..hd {
            let mut b = [S::zero(); NP];
            for p in 0..NP {
                b[p] = E::load(keys[p], d * 16);
                if FETCH {
                    S::prefetch(next[p].wrapping_add(d * 16 * E::SIZE));
                    S::prefetch(next[p].wrapping_add((hd + d) * 16 * E::SIZE));
                }
            }
            for r in 0..MR {
                let a = S::splat(*x.add(r * hd + d));
                for p in 0..NP {
                    acc[r][p] = S::fma(a, b[p], acc[r][p]);
                }
            }
        }
        for r in 0..MR {
            for p in 0..NP {
                S::store(out.add(r * out_stride + p * 16), acc[r][p]);
            }
        }
    }
}

/// `MR` rows × `NL` lines of 16 columns of the values of `count` positions in pages of 16, added to `out`, positions ascending. Those of
/// page p begin at `pages[p] + offset`, `line` elements apart.
#[inline(always)]
pub(crate) unsafe fn value_tile<S: Isa, E: Element<S>, const MR: usize, const NL: usize>(
    pages: &[*const u8],
    offset: usize,
    line: usize,
    x: *const f32,
    x_stride: usize,
    count: usize,
    out: *mut f32,
    out_stride: usize,
) {
    unsafe {
        let mut acc = [[S::zero(); NL]; MR];
        for r in 0..MR {
            for l in 0..NL {
                acc[r][l] = S::load(out.add(r * out_stride + l * 16));
            }
        }
        for p in 0..count.div_ceil(16) {
            let (w, x) = (pages[p].add(offset), x.add(p * 16));
            for k in 0..(count - p * 16).min(16) {
                let mut b = [S::zero(); NL];
                for l in 0..NL {
                    b[l] = E::load(w, k * line + l * 16);
                }
                for r in 0..MR {
                    let a = S::splat(*x.add(r * x_stride + k));
                    for l in 0..NL {
                        acc[r][l] = S::fma(a, b[l], acc[r][l]);
                    }
                }
            }
        }
        for r in 0..MR {
            for l in 0..NL {
                S::store(out.add(r * out_stride + l * 16), acc[r][l]);
            }
        }
    }
}

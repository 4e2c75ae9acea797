//! Rows times panels, for every format: the matrix product, written once over [`Isa`] with two micro-kernels, of float ([`float_tile`])
//! and of integer products ([`coded`]).
//!
//! The method is that of Goto and van de Geijn (*Anatomy of High-Performance Matrix Multiplication*, ACM TOMS 34(3), 2008), in the words of
//! BLIS: weights are *packed* once, at load, into panels of NR = 16 columns (`panels.rs`); k is *blocked* (KC = [`BLOCK`]), so that a
//! panel's block and the activations stay in L1; the *micro-kernel* holds MR rows × NR columns of sums in registers over one block.
//! Activations are few and lie in cache, so they are not packed.
//!
//! Numerics, the same for every number of rows (so a row's result never depends on the rows beside it):
//! * float formats: weights widened exactly; `acc = fma(x[k], w[k], acc)`, k ascending, in blocks of 256 whose sums are added in order;
//! * quantized formats: int8 activations ([`ActBlock`]); a part of 32 has one integer sum, the whole numbers of [`super::formats::Part`]
//!   times activations, exact; `acc = fma(d * dx, sum, acc)`, for types with minima then `acc = fma(m, dx * Σx, acc)`, with minima of 16
//!   weights each `acc = fma(m * dx, Σ minima * Σx, acc)`, parts ascending.
//!
//! Over 500 lines: the micro-kernels and the loops around them, which are tuned together.
#![allow(unsafe_code)]
#![allow(clippy::missing_safety_doc, clippy::needless_range_loop, clippy::too_many_arguments)]

use super::Format;
use super::formats::{self, Blocks, Minimum, Sum, Unpacked, has_factors};
use super::isa::Isa;
use super::panels::panel_bytes;

/// KC, the k of a float block: 16 KiB of f32 weights, which fit in L1 beside the activations.
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
    pub const ZERO: ActBlock =
        ActBlock { q: [0; 32], d: 0.0, dsum: 0.0, correction: 0, halves: [0; 2] };
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

/// An instruction set that the products are compiled for.
pub(crate) trait Compiled: Isa {
    /// The products as functions of their own, with the set's CPU features.
    const GEMM: unsafe fn(&Gemm);
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
        unsafe {
            (S::load((p as *const f32).add(k * 16)), S::load((p as *const f32).add(k * 16 + 16)))
        }
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
        unsafe {
            (
                S::load_f16((p as *const u16).add(k * 16)),
                S::load_f16((p as *const u16).add(k * 16 + 16)),
            )
        }
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
        q8_0: quantized::<S, formats::Q80>;
        q4_1: quantized::<S, formats::Q41>;
        q4_0: quantized::<S, formats::Q40>;
        q5_0: quantized::<S, formats::Q50>;
        q5_1: quantized::<S, formats::Q51>;
        q4_k: quantized::<S, formats::Q4K>;
        q5_k: quantized::<S, formats::Q5K>;
        q6_k: quantized::<S, formats::Q6K>;
        iq4_nl: quantized::<S, formats::Iq4Nl>;
        iq4_xs: quantized::<S, formats::Iq4Xs>;
        q2_k: quantized::<S, formats::Q2K>;
        q3_k: quantized::<S, formats::Q3K>;
        mxfp4: quantized::<S, formats::Mxfp4>;
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
        let next = if g.rows <= FEW_ROWS && S::NEAR > 0 { S::NEAR } else { kc / 2 * W::TWO };
        let ahead = Ahead { from: w.wrapping_add(next), panel: bytes, two: W::TWO };
        if W::NARROW && g.rows > S::DIRECT_ROWS {
            for p in 0..NP {
                widen::<S, W>(w.add(p * bytes), kc, g.wide.add(p * BLOCK * 16));
            }
            float_rows::<S, WideF32, NP>(
                g,
                g.wide as *const u8,
                BLOCK * 64,
                &ahead,
                x,
                kc,
                out,
                k == 0,
            );
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
        let near = S::NEAR > 0 && g.rows <= FEW_ROWS;
        let mut r = 0;
        while r < g.rows {
            let rows = tile_rows(g.rows - r, S::ROWS);
            let (x, out) = (x.add(r * g.x_stride), out.add(r * g.out_stride));
            macro_rules! tile {
                ($mr:literal) => {
                    // Several rows keep the core busy long enough to fetch the block that follows, few what is near.
                    if r < FETCHING_ROWS && ($mr > FEW_ROWS || near) {
                        float_tile::<S, W, $mr, NP, true>(w, w_step, ahead, x, g.x_stride, kc, out, g.out_stride, first)
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
/// Up to this many rows a product waits for memory ([`Isa::NEAR`]).
const FEW_ROWS: usize = 4;

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

/// The micro-kernel of floats: `MR` rows × `NP` panels over one block of k; the block's sums are stored (`first`) or added. `FETCH`: prefetches the block that follows.
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
unsafe fn quantized<S: Isa, Q: Blocks<S>>(g: &Gemm) {
    let mut panel = 0;
    while panel < g.panels {
        unsafe {
            if Q::UNPACKED && g.rows > S::QUANT_DIRECT_ROWS {
                unpacked_rows::<S, Q>(g, panel);
                panel += 1;
            } else if g.rows >= S::TWO_PANELS && g.panels - panel >= 2 {
                quantized_rows::<S, Q, 2>(g, panel);
                panel += 2;
            } else {
                quantized_rows::<S, Q, 1>(g, panel);
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
unsafe fn quantized_rows<S: Isa, Q: Blocks<S>, const NP: usize>(g: &Gemm, panel: usize) {
    unsafe {
        let bytes = panel_bytes(g.format, g.k);
        let start = g.w.add(panel * bytes);
        let follows = Coded {
            w: start,
            step: bytes,
            ahead: start.wrapping_add(NP * bytes),
            blocks: g.k / 32,
        };
        let near = Coded { ahead: start.wrapping_add(S::NEAR), ..follows };
        let mut r = 0;
        while r < g.rows {
            let rows = tile_rows(g.rows - r, quant_rows::<S>(NP));
            let (x, out) = (g.q.add(r * g.q_stride), g.out.add(r * g.out_stride + panel * 16));
            macro_rules! tile {
                ($mr:literal) => {
                    if r < FETCHING_ROWS && $mr > FEW_ROWS {
                        coded::<S, Q, $mr, NP, true>(
                            &follows,
                            x,
                            g.q_stride,
                            out,
                            g.out_stride,
                            true,
                        )
                    } else if r == 0 && S::NEAR > 0 {
                        coded::<S, Q, $mr, NP, true>(&near, x, g.q_stride, out, g.out_stride, true)
                    } else {
                        coded::<S, Q, $mr, NP, false>(
                            &follows,
                            x,
                            g.q_stride,
                            out,
                            g.out_stride,
                            true,
                        )
                    }
                };
            }
            with_rows!(rows, quant_rows::<S>(NP), tile!);
            r += rows;
        }
    }
}

/// Most parts of a chunk that is unpacked: with the activations of a tile it fits in L1.
const CHUNK: usize = 16;

/// A panel, all rows, a chunk of k at a time: unpacked once, then read by every tile of rows. A tile's sums wait in `out` from chunk to chunk,
/// as they are.
#[inline(always)]
unsafe fn unpacked_rows<S: Isa, Q: Blocks<S>>(g: &Gemm, panel: usize) {
    const {
        assert!(
            CHUNK * Unpacked::<Q>::part_bytes::<S>() <= WIDE * 4 && CHUNK.is_multiple_of(Q::SUPER)
        )
    };
    unsafe {
        let (bytes, blocks) = (panel_bytes(g.format, g.k), g.k / 32);
        let panel_end = g.w.wrapping_add((panel + 1) * bytes);
        let step = blocks.div_ceil(blocks.div_ceil(CHUNK).max(1)).next_multiple_of(Q::SUPER);
        let mut from = 0;
        // Nothing to add up: zeros all the same.
        while from < blocks.max(1) {
            let parts = step.min(blocks - from);
            let packed = g.w.add(panel * bytes + from / Q::SUPER * Q::BYTES);
            Unpacked::<Q>::fill::<S>(packed, parts, g.wide as *mut u8);
            let next = packed.wrapping_add(step / Q::SUPER * Q::BYTES);
            let ahead = if from + parts == blocks { panel_end } else { next };
            let w = Coded { w: g.wide as *const u8, step: 0, ahead, blocks: parts };
            let mut r = 0;
            while r < g.rows {
                let rows = tile_rows(g.rows - r, S::QUANT_ROWS);
                let (x, out) =
                    (g.q.add(r * g.q_stride + from), g.out.add(r * g.out_stride + panel * 16));
                macro_rules! tile {
                    ($mr:literal) => {
                        if r == 0 {
                            coded::<S, Unpacked<Q>, $mr, 1, true>(
                                &w,
                                x,
                                g.q_stride,
                                out,
                                g.out_stride,
                                from == 0,
                            )
                        } else {
                            coded::<S, Unpacked<Q>, $mr, 1, false>(
                                &w,
                                x,
                                g.q_stride,
                                out,
                                g.out_stride,
                                from == 0,
                            )
                        }
                    };
                }
                with_rows!(rows, S::QUANT_ROWS, tile!);
                r += rows;
            }
            from += parts.max(1);
        }
    }
}

/// The four activations of quad `i`.
#[inline(always)]
unsafe fn quad(x: *const ActBlock, i: usize) -> i32 {
    unsafe { (x as *const i32).add(i).read() }
}

/// Panels of a type of codes: where, bytes from panel to panel, what is wanted next, and parts of k.
struct Coded {
    w: *const u8,
    step: usize,
    ahead: *const u8,
    blocks: usize,
}

/// The micro-kernel of codes: `MR` rows × `NP` panels; the sums are stored (`first`) or continue those that are there. `FETCH`: prefetches what is wanted next.
#[inline(always)]
unsafe fn coded<S: Isa, Q: Blocks<S>, const MR: usize, const NP: usize, const FETCH: bool>(
    g: &Coded,
    x: *const ActBlock,
    x_stride: usize,
    out: *mut f32,
    out_stride: usize,
    first: bool,
) {
    unsafe {
        let mut acc = [[S::zero(); NP]; MR];
        if !first {
            for r in 0..MR {
                for p in 0..NP {
                    acc[r][p] = S::load(out.add(r * out_stride + p * 16));
                }
            }
        }
        let (mut group, mut x, mut ahead) = (g.w, x, g.ahead);
        let mut left = g.blocks;
        while left > 0 {
            // Blocks of 256 always fill a group.
            let parts = if Q::SUPER == 8 { 8 } else { left.min(Q::SUPER) };
            for part in 0..parts {
                if FETCH {
                    for p in 0..NP {
                        for line in 0..Q::AHEAD.div_ceil(64) {
                            S::prefetch(ahead.wrapping_add(p * g.step + line * 64));
                        }
                    }
                    ahead = ahead.wrapping_add(Q::AHEAD);
                }
                coded_part::<S, Q, MR, NP>(group, part, g.step, x, x_stride, &mut acc);
                x = x.add(1);
            }
            group = group.wrapping_add(Q::BYTES);
            left -= parts;
        }
        for r in 0..MR {
            for p in 0..NP {
                S::store(out.add(r * out_stride + p * 16), acc[r][p]);
            }
        }
    }
}

/// Adds the products of a line of codes with the activations of quad `i`.
#[inline(always)]
unsafe fn add_products<S: Isa, const MR: usize, const NP: usize>(
    sum: &mut [[S::Sum4; NP]; MR],
    line: &[S::B; NP],
    x: *const ActBlock,
    x_stride: usize,
    i: usize,
) {
    for r in 0..MR {
        unsafe {
            let x = quad(x.add(r * x_stride), i);
            for p in 0..NP {
                sum[r][p] = S::dot2(sum[r][p], line[p], x);
            }
        }
    }
}

/// One part of 32 of k.
#[inline(always)]
unsafe fn coded_part<S: Isa, Q: Blocks<S>, const MR: usize, const NP: usize>(
    group: *const u8,
    part: usize,
    step: usize,
    x: *const ActBlock,
    x_stride: usize,
    acc: &mut [[S::F; NP]; MR],
) {
    unsafe {
        let at = |p: usize| group.wrapping_add(p * step);
        let mut planes = [Q::planes(group, part); NP];
        for p in 1..NP {
            planes[p] = Q::planes(at(p), part);
        }
        let mut sum = [[S::start4(); NP]; MR];
        let mut total = [[S::splat_i(0); NP]; MR];
        for r in 0..MR {
            let correction = (*x.add(r * x_stride)).correction;
            match Q::SUM {
                Sum::Signed => total[r] = [S::start8(correction); NP],
                // -128 Σx over 128 / OFFSET.
                Sum::Four | Sum::Five if Q::OFFSET > 0 => {
                    total[r] = [S::splat_over(correction, 7 - Q::OFFSET.ilog2()); NP];
                }
                _ => (),
            }
        }
        if has_factors(Q::SUM) && MR * NP == 1 {
            // One row has registers for both running sums, and unpacks once.
            let (mut sums, mut planes) = ([S::start4(); 2], planes[0]);
            for i in 0..4 {
                let (low, high) = Q::line(group, part, i, &mut planes);
                sums[0] = S::dot2(sums[0], low, quad(x, i));
                sums[1] = S::dot2(sums[1], high, quad(x, i + 4));
                if i == 3 || matches!(Q::SUM, Sum::Halves) && S::SHORT && i == 1 {
                    for half in 0..2 {
                        let factor = Q::factor(group, part, half);
                        total[0][0] = S::flush_by(total[0][0], sums[half], factor);
                        sums[half] = S::start4();
                    }
                }
            }
        } else if has_factors(Q::SUM) {
            // The first 16 of k, then the last: two running sums a row would not fit into registers. Codes are unpacked twice where they
            // lie in memory, which waits for memory anyway.
            for half in 0..2 {
                let mut planes = planes;
                for i in 0..4 {
                    let mut line = [Q::half(group, part, i, half, &mut planes[0]); NP];
                    for p in 1..NP {
                        line[p] = Q::half(at(p), part, i, half, &mut planes[p]);
                    }
                    add_products::<S, MR, NP>(&mut sum, &line, x, x_stride, i + 4 * half);
                    if i == 3 || matches!(Q::SUM, Sum::Halves) && S::SHORT && i == 1 {
                        for p in 0..NP {
                            let factor = Q::factor(at(p), part, half);
                            for r in 0..MR {
                                total[r][p] = S::flush_by(total[r][p], sum[r][p], factor);
                                sum[r][p] = S::start4();
                            }
                        }
                    }
                }
            }
        } else {
            for i in 0..4 {
                if matches!(Q::SUM, Sum::Signed) {
                    for half in 0..2 {
                        for p in 0..NP {
                            // Four weights at a time, prepared in registers: the other line would push sums out of them.
                            let line = Q::signed(at(p), part, i, half);
                            for r in 0..MR {
                                total[r][p] = S::dot8(
                                    total[r][p],
                                    line,
                                    quad(x.add(r * x_stride), i + 4 * half),
                                );
                            }
                        }
                    }
                    continue;
                }
                let mut line = [Q::line(group, part, i, &mut planes[0]); NP];
                for p in 1..NP {
                    line[p] = Q::line(at(p), part, i, &mut planes[p]);
                }
                add_products::<S, MR, NP>(&mut sum, &line.map(|l| l.0), x, x_stride, i);
                add_products::<S, MR, NP>(&mut sum, &line.map(|l| l.1), x, x_stride, i + 4);
                if matches!(Q::SUM, Sum::Five) && (i == 3 || S::SHORT && i == 1) {
                    for r in 0..MR {
                        for p in 0..NP {
                            total[r][p] = S::flush(total[r][p], sum[r][p]);
                            sum[r][p] = S::start4();
                        }
                    }
                }
            }
        }
        for p in 0..NP {
            let (d, m) = (Q::step(at(p), part), Q::minimum(at(p), part));
            for r in 0..MR {
                let x = x.add(r * x_stride);
                let halves = (&raw const (*x).halves as *const i32).read();
                if has_factors(Q::SUM) && Q::OFFSET > 0 {
                    total[r][p] = S::dot_pairs(total[r][p], Q::offsets(at(p), part), halves);
                }
                let sum = match Q::SUM {
                    Sum::Four if Q::OFFSET == 0 => S::finish4(sum[r][p]),
                    Sum::Four => S::flush(total[r][p], sum[r][p]),
                    _ => total[r][p],
                };
                let dx = S::splat((*x).d);
                acc[r][p] = S::fma(S::mul(d, dx), S::to_float(sum), acc[r][p]);
                match Q::MINIMUM {
                    Minimum::None => (),
                    Minimum::One => acc[r][p] = S::fma(m, S::splat((*x).dsum), acc[r][p]),
                    Minimum::Two => {
                        let sum = S::dot_pairs(S::splat_i(0), Q::minima(at(p), part), halves);
                        acc[r][p] = S::fma(S::mul(m, dx), S::to_float(sum), acc[r][p]);
                    }
                }
            }
        }
    }
}

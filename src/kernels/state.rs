//! Layers with a state: causal convolutions over a few positions and the gated delta rule, one unit of channels or one head at a time
//! for all segments of a batch in their order. In: raw views that `ops/` made from checked slices. Out: this unit's columns of all rows
//! and its part of the states. A row is computed after those before it, one by one, so no sum depends on where a batch was cut.
#![allow(unsafe_code)]
#![allow(clippy::missing_safety_doc, clippy::needless_range_loop)]

use super::isa::Isa;
use super::math::{rounded, silu};
use super::phases::NormBy;
use super::scratch::Scratch;

/// Most positions that a convolution reaches over.
pub const MAX_TAPS: usize = 8;
/// Columns of a unit of a convolution.
pub(crate) const UNIT: usize = 64;

/// Rows of one sequence and where its state comes from and goes.
#[derive(Clone, Debug, PartialEq)]
pub struct StateSegment {
    /// First row of the batch.
    pub row: usize,
    /// Rows that count.
    pub rows: usize,
    /// Rows behind them that are computed and change nothing.
    pub padding: usize,
    /// The block that holds the state before the first row; `None`: zeros.
    pub from: Option<usize>,
    /// The block that takes the state behind the last row that counts; another one than `from`.
    pub to: usize,
    /// After so many rows (at least 1, ascending) the state is also put into this block.
    pub saves: Vec<(usize, usize)>,
}

/// States as raw parts: blocks of `stride` floats.
#[derive(Clone, Copy)]
pub(crate) struct StateBlocks {
    pub data: *mut f32,
    pub stride: usize,
    /// Where the layer begins in a block.
    pub offset: usize,
}

impl StateBlocks {
    #[inline(always)]
    unsafe fn at(&self, block: usize) -> *mut f32 {
        unsafe { self.data.add(block * self.stride + self.offset) }
    }
}

/// What goes into a convolution and what becomes of its result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Around {
    /// Rows hold (B, C, x) side by side: C * convolution(B * x).
    Gates,
    /// silu(convolution(x)).
    Silu,
}

/// y[t] = Σ taps[j] * x[t - (taps - 1) + j], j ascending, for each column. The state is the last inputs: [taps - 1][columns up to 16].
pub(crate) struct ConvolveArgs {
    pub x: *const f32,
    pub x_stride: usize,
    pub columns: usize,
    pub around: Around,
    /// [taps][columns up to 16].
    pub weights: *const f32,
    pub taps: usize,
    /// Padded to 16; null for none.
    pub bias: *const f32,
    pub segments: *const StateSegment,
    pub count: usize,
    pub states: StateBlocks,
    pub out: *mut f32,
    pub out_stride: usize,
    pub round: bool,
}

#[inline(always)]
pub(crate) unsafe fn convolve<S: Isa>(a: &ConvolveArgs, unit: usize) {
    unsafe {
        let padded = a.columns.next_multiple_of(16);
        for c in (unit * UNIT..((unit + 1) * UNIT).min(padded)).step_by(16) {
            for s in 0..a.count {
                convolve_segment::<S>(a, &*a.segments.add(s), c, padded);
            }
        }
    }
}

/// 16 columns of one segment.
#[inline(always)]
unsafe fn convolve_segment<S: Isa>(a: &ConvolveArgs, s: &StateSegment, c: usize, padded: usize) {
    unsafe {
        let kept = a.taps - 1;
        let mut last = [S::zero(); MAX_TAPS];
        if let Some(from) = s.from {
            for j in 0..kept {
                last[j] = S::load(a.states.at(from).add(j * padded + c));
            }
        }
        let keep = |block: usize, last: &[S::F; MAX_TAPS]| {
            for j in 0..kept {
                S::store(a.states.at(block).add(j * padded + c), last[j]);
            }
        };
        let mut saves = s.saves.iter();
        let mut save = saves.next();
        // The rows' parts lie side by side without padding: a part need not begin at a multiple of 16, and the last 16 may reach past it.
        let part = |row: usize, part: usize| {
            let from = a.x.add(row * a.x_stride + part * a.columns + c);
            if c + 16 <= a.columns {
                return S::load(from);
            }
            let mut all = [0f32; 16];
            std::ptr::copy_nonoverlapping(from, all.as_mut_ptr(), a.columns - c);
            S::load(all.as_ptr())
        };
        for i in 0..s.rows + s.padding {
            let row = s.row + i;
            let x = match a.around {
                Around::Gates => rounded::<S>(a.round, S::mul(part(row, 0), part(row, 2))),
                Around::Silu => part(row, 0),
            };
            let weight = |j: usize| S::load(a.weights.add(j * padded + c));
            let mut y = S::zero();
            for j in 0..kept {
                y = S::fma(weight(j), last[j], y);
            }
            y = S::fma(weight(kept), x, y);
            if !a.bias.is_null() {
                y = S::add(y, S::load(a.bias.add(c)));
            }
            let y = rounded::<S>(a.round, y);
            let y = match a.around {
                Around::Gates => S::mul(part(row, 1), y),
                Around::Silu => silu::<S>(y),
            };
            S::store(a.out.add(row * a.out_stride + c), rounded::<S>(a.round, y));
            if i >= s.rows {
                continue;
            }
            for j in 1..kept {
                last[j - 1] = last[j];
            }
            if kept > 0 {
                last[kept - 1] = x;
            }
            if let Some((_, block)) = save.filter(|(rows, _)| *rows == i + 1) {
                keep(*block, &last);
                save = saves.next();
            }
        }
        if s.rows > 0 {
            keep(s.to, &last);
        }
    }
}

/// The gated delta rule (arXiv 2412.06464; transformers' `torch_recurrent_gated_delta_rule`): with S a head's state of key × value,
/// S = decay S; d = beta (v - Sᵀk); S = S + k dᵀ; o = Sᵀq; then o's norm times silu(z). The state of a layer is
/// [value heads][key width][value width up to 16].
pub(crate) struct DeltaArgs {
    /// Queries of all key heads, keys, then values of all value heads.
    pub mixed: *const f32,
    pub mixed_stride: usize,
    pub z: *const f32,
    pub z_stride: usize,
    /// Of each row and value head.
    pub beta: *const f32,
    pub decay: *const f32,
    pub gates_stride: usize,
    pub key_heads: usize,
    pub value_heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    /// Value head h has key head h mod `key_heads`; else the one of its group of neighbours.
    pub tiled: bool,
    /// x / |x| by the norm kernel: of queries (divided by the root of their width besides), and of keys.
    pub unit: [NormBy; 2],
    pub norm: NormBy,
    pub segments: *const StateSegment,
    pub count: usize,
    pub states: StateBlocks,
    pub out: *mut f32,
    pub out_stride: usize,
    pub round: bool,
}

/// Floats of scratch that a head needs.
pub(crate) fn delta_floats(key_dim: usize, value_dim: usize) -> usize {
    2 * key_dim.next_multiple_of(16) + 4 * value_dim.next_multiple_of(16)
}

#[inline(always)]
pub(crate) unsafe fn delta<S: Isa>(a: &DeltaArgs, s: &mut Scratch, head: usize) {
    unsafe {
        let (kd, vd) = (a.key_dim, a.value_dim);
        let (kp, vp) = (kd.next_multiple_of(16), vd.next_multiple_of(16));
        let scratch = s.tile.as_mut_ptr();
        debug_assert!(s.tile.len() >= delta_floats(kd, vd));
        let (q, k) = (scratch, scratch.add(kp));
        let (v, z, d, o) = (k.add(kp), k.add(kp + vp), k.add(kp + 2 * vp), k.add(kp + 3 * vp));
        let key_head =
            if a.tiled { head % a.key_heads } else { head / (a.value_heads / a.key_heads) };
        let size = kd * vp;
        let own = |block: usize| a.states.at(block).add(head * size);
        // A vector into its place, whose end up to 16 is zero.
        let fetch = |from: *const f32, n: usize, to: *mut f32| {
            S::store(to.add(n.next_multiple_of(16) - 16), S::zero());
            std::ptr::copy_nonoverlapping(from, to, n);
        };
        for i in 0..a.count {
            let segment = &*a.segments.add(i);
            let to = own(segment.to);
            let mut saves = segment.saves.iter();
            let mut save = saves.next();
            let mut from = segment.from.map_or(std::ptr::null(), |block| own(block) as *const f32);
            if from.is_null() && segment.rows > 0 {
                std::ptr::write_bytes(to, 0, size);
                from = to;
            }
            for i in 0..segment.rows + segment.padding {
                let row = segment.row + i;
                let mixed = a.mixed.add(row * a.mixed_stride);
                fetch(mixed.add(key_head * kd), kd, q);
                fetch(mixed.add((a.key_heads + key_head) * kd), kd, k);
                fetch(mixed.add(2 * a.key_heads * kd + head * vd), vd, v);
                fetch(a.z.add(row * a.z_stride + head * vd), vd, z);
                a.unit[0].row::<S>(q, q);
                a.unit[1].row::<S>(k, k);
                let beta = S::splat(*a.beta.add(row * a.gates_stride + head));
                let decay = S::splat(*a.decay.add(row * a.gates_stride + head));
                let counts = i < segment.rows;
                if counts {
                    chunks::<S>(vp, |c, n| decayed::<S>(from, to, k, decay, kd, vp, c, n, d));
                    for c in (0..vp).step_by(16) {
                        let off = S::sub(S::load(v.add(c)), S::load(d.add(c)));
                        S::store(d.add(c), S::mul(off, beta));
                    }
                    chunks::<S>(vp, |c, n| written::<S>(to, k, q, d, kd, vp, c, n, o));
                    from = to;
                } else if from.is_null() {
                    std::ptr::write_bytes(o, 0, vp);
                } else {
                    // A row that does not count reads the state and leaves it.
                    chunks::<S>(vp, |c, n| read::<S>(from, q, decay, kd, vp, c, n, o));
                }
                a.norm.row::<S>(o, o);
                for c in (0..vp).step_by(16) {
                    let gate = rounded::<S>(a.round, silu::<S>(S::load(z.add(c))));
                    S::store(o.add(c), rounded::<S>(a.round, S::mul(S::load(o.add(c)), gate)));
                }
                std::ptr::copy_nonoverlapping(o, a.out.add(row * a.out_stride + head * vd), vd);
                if let Some((_, block)) = save.filter(|(rows, _)| counts && *rows == i + 1) {
                    std::ptr::copy_nonoverlapping(to, own(*block), size);
                    save = saves.next();
                }
            }
        }
    }
}

/// Runs `work(first column, vectors of 16)` over `columns` (a multiple of 16): four vectors at a time, then one.
#[inline(always)]
unsafe fn chunks<S: Isa>(columns: usize, work: impl Fn(usize, usize)) {
    let mut c = 0;
    while c < columns {
        let n = if columns - c >= 64 { 4 } else { 1 };
        work(c, n);
        c += n * 16;
    }
}

/// Runs `$f` with the number of vectors as a constant.
macro_rules! with_vectors {
    ($n:expr, $f:ident($($argument:expr),*)) => {
        if $n == 4 { $f::<S, 4>($($argument),*) } else { $f::<S, 1>($($argument),*) }
    };
}

/// to = decay * from; out = toᵀk, keys ascending.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn decayed<S: Isa>(
    from: *const f32,
    to: *mut f32,
    k: *const f32,
    decay: S::F,
    kd: usize,
    vp: usize,
    c: usize,
    n: usize,
    out: *mut f32,
) {
    #[inline(always)]
    unsafe fn of<S: Isa, const N: usize>(
        from: *const f32,
        to: *mut f32,
        k: *const f32,
        decay: S::F,
        kd: usize,
        vp: usize,
        out: *mut f32,
    ) {
        unsafe {
            let mut sums = [S::zero(); N];
            for i in 0..kd {
                let key = S::splat(*k.add(i));
                for p in 0..N {
                    let state = S::mul(S::load(from.add(i * vp + p * 16)), decay);
                    S::store(to.add(i * vp + p * 16), state);
                    sums[p] = S::fma(key, state, sums[p]);
                }
            }
            for p in 0..N {
                S::store(out.add(p * 16), sums[p]);
            }
        }
    }
    unsafe { with_vectors!(n, of(from.add(c), to.add(c), k, decay, kd, vp, out.add(c))) }
}

/// to = to + k dᵀ; out = toᵀq, keys ascending.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn written<S: Isa>(
    to: *mut f32,
    k: *const f32,
    q: *const f32,
    d: *const f32,
    kd: usize,
    vp: usize,
    c: usize,
    n: usize,
    out: *mut f32,
) {
    #[inline(always)]
    unsafe fn of<S: Isa, const N: usize>(
        to: *mut f32,
        k: *const f32,
        q: *const f32,
        d: *const f32,
        kd: usize,
        vp: usize,
        out: *mut f32,
    ) {
        unsafe {
            let (mut sums, mut change) = ([S::zero(); N], [S::zero(); N]);
            for p in 0..N {
                change[p] = S::load(d.add(p * 16));
            }
            for i in 0..kd {
                let (key, query) = (S::splat(*k.add(i)), S::splat(*q.add(i)));
                for p in 0..N {
                    let state = S::fma(key, change[p], S::load(to.add(i * vp + p * 16)));
                    S::store(to.add(i * vp + p * 16), state);
                    sums[p] = S::fma(query, state, sums[p]);
                }
            }
            for p in 0..N {
                S::store(out.add(p * 16), sums[p]);
            }
        }
    }
    unsafe { with_vectors!(n, of(to.add(c), k, q, d.add(c), kd, vp, out.add(c))) }
}

/// out = decay * fromᵀq.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn read<S: Isa>(
    from: *const f32,
    q: *const f32,
    decay: S::F,
    kd: usize,
    vp: usize,
    c: usize,
    n: usize,
    out: *mut f32,
) {
    #[inline(always)]
    unsafe fn of<S: Isa, const N: usize>(
        from: *const f32,
        q: *const f32,
        decay: S::F,
        kd: usize,
        vp: usize,
        out: *mut f32,
    ) {
        unsafe {
            let mut sums = [S::zero(); N];
            for i in 0..kd {
                let query = S::splat(*q.add(i));
                for p in 0..N {
                    sums[p] = S::fma(query, S::load(from.add(i * vp + p * 16)), sums[p]);
                }
            }
            for p in 0..N {
                S::store(out.add(p * 16), S::mul(sums[p], decay));
            }
        }
    }
    unsafe { with_vectors!(n, of(from.add(c), q, decay, kd, vp, out.add(c))) }
}

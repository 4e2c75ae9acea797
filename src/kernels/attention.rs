//! Attention of one unit (rows of a segment × heads that share a kv head) over the pages of its segment, by the online softmax: spans of
//! 64 positions, each scored, weighted by `exp(score - running maximum)` and added to running sums. In: raw views that `ops/` made from
//! checked slices. Out: this unit's heads of this unit's rows. Spans lie at absolute positions, so a row's bits depend on its sequence alone.
#![allow(unsafe_code)]
#![allow(clippy::missing_safety_doc, clippy::needless_range_loop, clippy::too_many_arguments)]

use super::gemm::with_rows;
use super::isa::Isa;
use super::math::{LANES, exp, quantize_row, rounded, soft_cap};
use super::pages::{Element, F16, F32, HeadShape, KvElement, PAGE, Row, widen_page};
use super::scratch::{ATTENTION_ROWS, SPAN, Scratch, Softmax};
use super::views::Sink;

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
    pub shape: HeadShape,
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
pub(crate) unsafe fn attention<S: Isa, const NP: usize>(
    a: &AttentionArgs,
    s: &mut Scratch,
    unit: usize,
) {
    unsafe {
        match a.shape.element {
            KvElement::F32 => attend::<S, F32, NP, false>(a, s, unit),
            KvElement::F16 => attend::<S, F16, NP, false>(a, s, unit),
            KvElement::Q8_0 => attend::<S, F32, NP, true>(a, s, unit),
        }
    }
}

/// `BYTES`: pages are int8, and a span is widened to `E` (f32) before it is scored.
#[inline(always)]
unsafe fn attend<S: Isa, E: Element<S>, const NP: usize, const BYTES: bool>(
    a: &AttentionArgs,
    s: &mut Scratch,
    unit: usize,
) {
    unsafe {
        let u = *a.units.add(unit);
        let (hd, padded) = (a.shape.head_dim, a.shape.head_dim.next_multiple_of(16));
        let (first, rows, heads) = (u.row as usize, u.rows as usize, u.heads as usize);
        let n = rows * heads;
        debug_assert!(n <= ATTENTION_ROWS);
        for i in 0..n {
            let from =
                a.q.add((first + i / heads) * a.q_stride + (u.head as usize + i % heads) * hd);
            std::ptr::copy_nonoverlapping(from, s.queries.as_mut_ptr().add(i * hd), hd);
        }
        s.sums[..n * padded].fill(0.0);
        for i in 0..n {
            s.state[i] = Softmax::NOTHING;
            if !a.sinks.is_null() {
                // e^(sink - maximum) of a maximum that is the sink so far.
                (s.state[i].maximum, s.state[i].sum) =
                    (*a.sinks.add(u.head as usize + i % heads), 1.0);
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
                let seen = ((*a.row.add(after.row as usize)).position as usize + 1)
                    .saturating_sub(a.window);
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
            if BYTES {
                let now = now.widened::<S>(hd, s);
                span_step::<S, E, NP>(s, &now, &now, from, to, 0, hd, a.cap, a.round);
            } else {
                span_step::<S, E, NP>(s, &now, &next, from, to, 0, hd, a.cap, a.round);
            }
        }
        // The audit's padding: the same work on positions nobody needs, its result left behind in the second half of the state.
        for span in spans..(u.padded_context as usize).div_ceil(SPAN) {
            s.state[ATTENTION_ROWS..ATTENTION_ROWS + n]
                .fill(Softmax { limit: SPAN, ..Softmax::NOTHING });
            let mut padding = Span::padding(a, &u, span);
            if BYTES {
                padding = padding.widened::<S>(hd, s);
            }
            span_step::<S, E, NP>(s, &padding, &padding, 0, n, ATTENTION_ROWS, hd, a.cap, a.round);
        }
        for i in 0..n {
            let (row, column) = (first + i / heads, (u.head as usize + i % heads) * hd);
            let inverse = S::splat(1.0 / s.state[i].sum);
            let sums = s.sums.as_mut_ptr().add(i * padded);
            for c in 0..padded / 16 {
                S::store(
                    sums.add(c * 16),
                    rounded::<S>(a.round, S::mul(S::load(sums.add(c * 16)), inverse)),
                );
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
            let last = (*a.row.add(u.row as usize + u.rows as usize - 1)).position as usize;
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

    /// The same in f32, in the worker's memory.
    #[inline(always)]
    unsafe fn widened<S: Isa>(&self, hd: usize, s: &mut Scratch) -> Span {
        let mut pages = [std::ptr::null(); SPAN / PAGE];
        debug_assert!(s.pages.len() >= SPAN * 2 * hd);
        for p in 0..SPAN / PAGE {
            unsafe {
                let to = s.pages.as_mut_ptr().add(p * PAGE * 2 * hd);
                if p < self.count {
                    widen_page::<S>(self.pages[p], hd, to);
                }
                pages[p] = to as *const u8;
            }
        }
        Span { pages, count: self.count }
    }

    #[inline(always)]
    unsafe fn from(
        a: &AttentionArgs,
        u: &AttentionUnit,
        count: usize,
        page: impl Fn(usize) -> usize,
    ) -> Span {
        unsafe {
            let view = *a.views.add(u.segment as usize);
            let kv_head = u.head as usize / a.group * a.shape.bytes;
            let mut pages = [std::ptr::null(); SPAN / PAGE];
            for p in 0..SPAN / PAGE {
                pages[p] =
                    view.base.add(*view.pages.add(page(p)) as usize * view.page_bytes + kv_head);
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

        let lanes = S::load(LANES.as_ptr());
        let nothing = S::splat(f32::NEG_INFINITY);
        for r in from..n {
            let Softmax { maximum, sum: total, first, limit } = s.state[state + r];
            let row = scores.add(r * SPAN);
            let mut v = [nothing; SPAN / PAGE];
            for c in first / PAGE..limit.div_ceil(PAGE) {
                let x = rounded::<S>(round, S::load(row.add(c * PAGE)));
                let x = if cap > 0.0 { rounded::<S>(round, soft_cap::<S>(x, cap)) } else { x };
                let left = limit - c * PAGE;
                let x = if left >= PAGE {
                    x
                } else {
                    S::select_gt(S::splat(left as f32), lanes, x, nothing)
                };
                v[c] = if first <= c * PAGE {
                    x
                } else {
                    S::select_gt(S::splat((first - c * PAGE) as f32), lanes, nothing, x)
                };
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
            (s.state[state + r].maximum, s.state[state + r].sum) =
                (maximum_now, total.mul_add(lane[0], sum));
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

/// `MR` rows × `NP` pages of keys, `[hd][16]` each: `out[r][16 p + i] = Σ_d x[r][d] * keys[p][d][i]`. `FETCH`: prefetches keys and
/// values of the pages that come `next`.
#[inline(always)]
unsafe fn score_tile<S: Isa, E: Element<S>, const MR: usize, const NP: usize, const FETCH: bool>(
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
unsafe fn value_tile<S: Isa, E: Element<S>, const MR: usize, const NL: usize>(
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

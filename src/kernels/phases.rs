//! The phases of a forward pass, each cut into units of work (work items) that threads take, over [`Isa`]: norm, q/k/v with rotation and page writes, attention, the
//! products that add to the residual, gate and up, the output matrix with argmax or top-k. In: raw views that `ops/` made from checked
//! slices. Out: writes to places that belong to this unit alone. No unit's result depends on which worker runs it or on other units.
//! Over 500 lines: a unit of work a phase; attention and layers with a state have files of their own.
#![allow(unsafe_code)]
#![allow(clippy::missing_safety_doc, clippy::needless_range_loop, clippy::too_many_arguments)]

use super::gemm::{ActBlock, Compiled, Gemm};
use super::isa::Isa;
use super::math::{
    ActivationFn, gated, layer_norm, quantize_block, quantize_row, rms_norm, rounded, soft_cap,
    ungated,
};
use super::pages::{HeadShape, PAGE, Row, store_kv};
use super::scratch::{Ranked, Scratch};
use super::views::{Input, Matrix, Sink};

/// How a product is cut into units: groups of `panels` panels × groups of `rows` rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Grid {
    pub panels: usize,
    pub rows: usize,
    pub row_groups: usize,
}

/// Multiplies rows `row..row + rows` by panels `panel..panel + panels` into the worker's tile, whose rows are `panels * 16` long.
#[inline(always)]
unsafe fn multiply<S: Compiled>(
    m: &Matrix,
    x: &Input,
    row: usize,
    rows: usize,
    panel: usize,
    panels: usize,
    s: &mut Scratch,
) {
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
    pub(crate) unsafe fn row<S: Isa>(&self, x: *const f32, out: *mut f32) {
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

/// v + the bias of its 16 columns, if there is one.
#[inline(always)]
unsafe fn biased<S: Isa>(v: S::F, bias: *const f32, column: usize, round: bool) -> S::F {
    if bias.is_null() {
        v
    } else {
        unsafe { rounded::<S>(round, S::add(v, S::load(bias.add(column)))) }
    }
}

/// Which of the three a part of the q/k/v product is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Projection {
    Query,
    Key,
    Value,
}

/// q, k, v of all rows: rotated, scaled, written to workspace and pages.
pub(crate) struct QkvArgs {
    /// Each with its bias, padded to 16; null for none.
    pub parts: [(Projection, Matrix, *const f32); 3],
    pub input: Input,
    pub grid: Grid,
    pub rows: usize,
    pub row: *const Row,
    /// Of each position `[cos; head_dim]`, `[∓sin; head_dim]`.
    pub rotation: *const f32,
    pub shape: HeadShape,
    /// This layer of the page arena.
    pub kv: *mut u8,
    pub page_bytes: usize,
    pub q: *mut f32,
    pub q_stride: usize,
    pub scale: f32,
    pub round: bool,
}

#[inline(always)]
pub(crate) unsafe fn qkv<S: Compiled>(a: &QkvArgs, s: &mut Scratch, unit: usize) {
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
                    let v =
                        rounded::<S>(a.round, S::load(s.tile.as_ptr().add((r * panels + p) * 16)));
                    let column = (panel + p) * 16;
                    let columns = (m.n - column).min(16);
                    let v = biased::<S>(v, *bias, column, a.round);
                    let v = if *part == Projection::Value {
                        v
                    } else {
                        rotate::<S>(
                            a.rotation,
                            a.shape.head_dim,
                            a.round,
                            v,
                            column,
                            info.position as usize,
                        )
                    };
                    if *part == Projection::Query {
                        S::store(
                            a.q.add((row + r) * a.q_stride + column),
                            S::mul(v, S::splat(a.scale)),
                        );
                    } else if info.page != Row::NOWHERE {
                        let page = a.kv.add(info.page as usize * a.page_bytes);
                        let lane = info.position as usize % PAGE;
                        store_kv::<S>(
                            &a.shape,
                            *part == Projection::Key,
                            page,
                            lane,
                            column,
                            columns,
                            v,
                        );
                    }
                }
            }
        }
        return;
    }
}

/// Rotates the pairs of 16 columns that begin at `column` of all heads side by side.
#[inline(always)]
unsafe fn rotate<S: Isa>(
    rotation: *const f32,
    hd: usize,
    round: bool,
    v: S::F,
    column: usize,
    position: usize,
) -> S::F {
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

/// Queries, keys and values that were computed apart: norms of heads, rotation, scale, and where they go. A unit is some rows.
pub(crate) struct HeadsArgs {
    pub q: *mut f32,
    pub q_stride: usize,
    pub heads: usize,
    pub kv_heads: usize,
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
    pub shape: HeadShape,
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
                    let v = if a.row_scale.is_null() {
                        v
                    } else {
                        rounded::<S>(a.round, S::mul(v, S::splat(more)))
                    };
                    S::store(head.add(c * 16), v);
                }
                std::ptr::copy_nonoverlapping(head, q, hd);
            }
            if info.page == Row::NOWHERE {
                continue;
            }
            let page = a.kv.add(info.page as usize * a.page_bytes);
            for h in 0..a.kv_heads {
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
unsafe fn one_head<S: Isa>(
    a: &HeadsArgs,
    from: *const f32,
    out: *mut f32,
    which: usize,
    position: usize,
) {
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
                let v = rotate::<S>(
                    a.rotation,
                    hd,
                    a.round,
                    S::load(out.add(c * 16)),
                    c * 16,
                    position,
                );
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
unsafe fn put_head<S: Isa>(
    a: &HeadsArgs,
    key: bool,
    page: *mut u8,
    position: usize,
    head: usize,
    from: *const f32,
) {
    unsafe {
        let hd = a.shape.head_dim;
        for c in 0..hd.div_ceil(16) {
            let (v, columns) = (S::load(from.add(c * 16)), (hd - c * 16).min(16));
            let column = head * hd + c * 16;
            store_kv::<S>(&a.shape, key, page, position % PAGE, column, columns, v);
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
pub(crate) unsafe fn residual<S: Compiled>(a: &ResidualArgs, s: &mut Scratch, unit: usize) {
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
                let v = rounded::<S>(
                    a.by.round,
                    S::mul(S::load(branch.add(c * 16)), S::splat(a.scale)),
                );
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
    pub activation: ActivationFn,
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
                    ungated::<S>(a.activation, up, a.round)
                } else {
                    gated::<S>(
                        a.activation,
                        S::load(a.gate.add(r * a.stride + c * 16)),
                        up,
                        a.round,
                    )
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
    pub activation: ActivationFn,
    pub out: Sink,
    pub to_q: bool,
    pub round: bool,
}

/// activation(gate) * up of the j-th pair of panels of a tile's row.
#[inline(always)]
unsafe fn gated_pair<S: Isa, const SILU: bool>(
    activation: ActivationFn,
    tile: *const f32,
    j: usize,
    round: bool,
) -> S::F {
    unsafe {
        // Known when this is compiled, the commonest one keeps its constants in registers.
        let activation = if SILU { ActivationFn::Silu } else { activation };
        let gate = rounded::<S>(round, S::load(tile.add(j * 32)));
        let up = rounded::<S>(round, S::load(tile.add(j * 32 + 16)));
        gated::<S>(activation, gate, up, round)
    }
}

#[inline(always)]
pub(crate) unsafe fn gate_up<S: Compiled>(a: &GateUpArgs, s: &mut Scratch, unit: usize) {
    match a.activation {
        ActivationFn::Silu => unsafe { gate_up_by::<S, true>(a, s, unit) },
        _ => unsafe { gate_up_by::<S, false>(a, s, unit) },
    }
}

#[inline(always)]
unsafe fn gate_up_by<S: Compiled, const SILU: bool>(a: &GateUpArgs, s: &mut Scratch, unit: usize) {
    unsafe {
        let (row, rows, panel, panels) = cut(&a.grid, unit, a.m.n.div_ceil(16), a.rows);
        multiply::<S>(&a.m, &a.input, row, rows, panel, panels, s);
        for r in 0..rows {
            let tile = s.tile.as_ptr().add(r * panels * 16);
            if a.to_q {
                for b in 0..panels / 4 {
                    let out = a.out.q.add((row + r) * a.out.q_stride + panel / 4 + b);
                    let first = gated_pair::<S, SILU>(a.activation, tile, 2 * b, a.round);
                    quantize_block::<S>(
                        first,
                        gated_pair::<S, SILU>(a.activation, tile, 2 * b + 1, a.round),
                        out,
                    );
                }
            } else {
                for j in 0..panels / 2 {
                    S::store(
                        a.out.f.add((row + r) * a.out.f_stride + (panel / 2 + j) * 16),
                        gated_pair::<S, SILU>(a.activation, tile, j, a.round),
                    );
                }
            }
        }
    }
}

/// What a scored row wants.
#[derive(Clone, Copy)]
pub(crate) enum RawScoreRequest {
    Argmax,
    TopK(usize),
    /// All scores, to this place of `n` floats.
    All(*mut f32),
}

/// The output matrix.
pub(crate) struct HeadArgs {
    pub m: Matrix,
    pub input: Input,
    pub grid: Grid,
    pub rows: usize,
    pub score: *const RawScoreRequest,
    /// Padded to 16; null for none.
    pub bias: *const f32,
    /// What scores are multiplied with; 1 changes no bit.
    pub scale: f32,
    /// Scores become cap * tanh(score / cap); 0 for no cap.
    pub cap: f32,
    pub round: bool,
}

#[inline(always)]
pub(crate) unsafe fn head<S: Compiled>(a: &HeadArgs, s: &mut Scratch, unit: usize) {
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
                let v =
                    if a.cap > 0.0 { rounded::<S>(a.round, soft_cap::<S>(v, a.cap)) } else { v };
                finite = S::fma(v, S::zero(), finite);
                S::store(tile.add(p * 16), v);
            }
            best.bad |= S::sum(finite) != 0.0;
            match *a.score.add(row + r) {
                RawScoreRequest::Argmax => {
                    highest::<S>(tile, panel, panels, columns, &mut best.argmax)
                }
                RawScoreRequest::TopK(k) => {
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
                RawScoreRequest::All(to) => {
                    highest::<S>(tile, panel, panels, columns, &mut best.argmax);
                    std::ptr::copy_nonoverlapping(tile, to.add(panel * 16), columns);
                }
            }
        }
    }
}

/// Takes the highest of a tile's scores, of `columns` from `panel` on, if it ranks before `best`.
#[inline(always)]
unsafe fn highest<S: Isa>(
    tile: *const f32,
    panel: usize,
    panels: usize,
    columns: usize,
    best: &mut Ranked,
) {
    for p in 0..panels {
        unsafe {
            if S::any_ge(S::load(tile.add(p * 16)), S::splat(best.0)) {
                for c in p * 16..(p * 16 + 16).min(columns) {
                    *best = (*best).min(Ranked(*tile.add(c), (panel * 16 + c) as u32));
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

//! Products: those that join the residual stream, gate and up, groups of rows with matrices of their own, the output matrix.
#![allow(unsafe_code)]
#![allow(clippy::too_many_arguments)]

use super::super::Format;
use super::super::math::ActivationFn;
use super::super::panels::{COLUMNS, Panels};
use super::super::phases::{GateUpArgs, Grid, HeadArgs, RawScoreRequest, ResidualArgs, WidenArgs};
use super::super::scratch::Best;
use super::buffers::{Activations, Rows};
use super::{Shared, Team, bias_of, cap_of, matrix, row_groups, times, whole};
use std::ops::Range;

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
    /// Written where asked; the id of the highest, ties to the lowest id.
    All(u32),
    /// A score was not finite.
    NotFinite,
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

impl Team {
    /// x += scale * (input · m + bias); `bias` is padded to 16.
    pub fn add_product(
        &mut self,
        m: &Panels,
        input: &Activations,
        rows: usize,
        x: &mut Rows,
        bias: Option<&[f32]>,
        scale: f32,
    ) {
        self.residual(m, input, rows, x, bias, scale, false);
    }

    /// out = input · m + bias; `bias` is padded to 16.
    pub fn product(
        &mut self,
        m: &Panels,
        input: &Activations,
        rows: usize,
        bias: Option<&[f32]>,
        out: &mut Rows,
    ) {
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
    pub fn gate_up(
        &mut self,
        m: &Panels,
        input: &Activations,
        rows: usize,
        activation: ActivationFn,
        out: &mut Activations,
    ) {
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
        assert!(
            pick.len() <= out.rows.count()
                && x.width == out.width
                && (!out.has_blocks() || x.has_blocks())
        );
        let per_unit = self.rows_per_unit(pick.len()).max(1);
        let (stride, blocks) = (out.rows.stride, out.blocks_stride);
        self.chunks(
            &mut out.rows.data[..pick.len() * stride],
            (stride * per_unit).max(1),
            |unit, chunk| {
                for (row, from) in
                    chunk.chunks_exact_mut(stride.max(1)).zip(&pick[unit * per_unit..])
                {
                    row.copy_from_slice(x.row(*from as usize));
                }
            },
        );
        self.chunks(
            &mut out.blocks[..pick.len() * blocks],
            (blocks * per_unit).max(1),
            |unit, chunk| {
                for (row, from) in
                    chunk.chunks_exact_mut(blocks.max(1)).zip(&pick[unit * per_unit..])
                {
                    row.copy_from_slice(x.blocks(*from as usize));
                }
            },
        );
    }

    /// Checks groups, cuts each, and numbers their units: (grid, first unit) of each, and how many units there are.
    fn cut_groups(&mut self, groups: &[Group], multiple: usize) -> (Vec<(Grid, usize)>, usize) {
        assert!(
            groups.windows(2).all(|g| g[0].rows.end <= g[1].rows.start),
            "groups one behind the other"
        );
        assert!(
            groups.windows(2).all(|g| (g[0].m.n, g[0].m.k) == (g[1].m.n, g[1].m.k)),
            "matrices of one shape"
        );
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
    pub fn gate_up_of_groups(
        &mut self,
        groups: &[Group],
        input: &Activations,
        activation: ActivationFn,
        out: &mut Activations,
    ) {
        let to_q = out.has_blocks();
        assert!(!to_q || out.width.is_multiple_of(32));
        let (cut, units) = self.cut_groups(groups, 4);
        let width = out.width;
        let args: Vec<GateUpArgs> = groups
            .iter()
            .zip(&cut)
            .map(|(g, (grid, _))| {
                assert!(
                    g.m.n.is_multiple_of(2) && g.m.n / 2 == whole(width) && g.bias.is_none(),
                    "gate and up panels in turn"
                );
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

    /// The output matrix on the rows of `input`, one for each of `wants`.
    pub fn head(
        &mut self,
        m: &Panels,
        input: &Activations,
        scoring: &Scoring,
        wants: &mut [ScoreRequest],
    ) -> Vec<Scores> {
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
            RawScoreRequest::TopK(k) => Scores::TopK(
                best.top.into_sorted_vec().into_iter().take(*k).map(|r| (r.1, r.0)).collect(),
            ),
            RawScoreRequest::All(_) => Scores::All(best.argmax.1),
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
        self.pool.run(m.count().div_ceil(panels_per_unit.max(1)), |_, unit| unsafe {
            run(args.get(), unit)
        });
        // SAFETY: f32 values may be read as bytes; the length in bytes is that of the slice.
        let bytes = unsafe { std::slice::from_raw_parts(out.as_ptr() as *const u8, len * 4) };
        Panels::new(Format::F32, m.n, m.k, bytes)
    }
}

//! Layers with a state: short convolutions and the gated delta rule.
#![allow(unsafe_code)]
#![allow(clippy::too_many_arguments)]

use super::super::state::{
    Around, ConvolveArgs, DeltaArgs, MAX_TAPS, StateSegment, UNIT, delta_floats,
};
use super::buffers::{Activations, Rows, StateArena};
use super::elementwise::NormWeights;
use super::{Shared, Team, bias_of, times, whole};

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

/// Segments one behind the other, within `rows` rows.
fn check_segments(segments: &[StateSegment], rows: usize) {
    let end = |s: &StateSegment| s.row.saturating_add(s.rows).saturating_add(s.padding);
    assert!(segments.windows(2).all(|w| end(&w[0]) <= w[1].row), "segments one behind the other");
    assert!(segments.last().is_none_or(|s| end(s) <= rows), "segments past the rows");
}

impl Team {
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
        assert!(
            key_heads > 0 && value_heads.is_multiple_of(key_heads) && key_dim > 0 && value_dim > 0
        );
        let (keys, values) = (times(key_heads, key_dim), times(value_heads, value_dim));
        assert!(
            mixed.stride == whole(2 * keys + values)
                && z.stride == whole(values)
                && out.width == values
        );
        assert!(beta.stride == whole(value_heads) && decay.stride == beta.stride);
        let counts = [mixed.count(), z.count(), beta.count(), decay.count(), out.rows.count()];
        check_segments(segments, counts.into_iter().min().unwrap_or(0));
        let states = states.view(
            offset,
            StateArena::delta_floats(value_heads, key_dim, value_dim),
            segments,
        );
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
        self.pool
            .run(value_heads, |worker, head| unsafe { run(args.get(), scratch.get(worker), head) });
        if out.has_blocks() {
            let rows = segments.iter().map(|s| s.row + s.rows + s.padding).max().unwrap_or(0);
            self.quantize(out, rows);
        }
    }
}

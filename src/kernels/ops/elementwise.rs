//! Phases that go over rows one by one: norms, additions to the residual stream, activations, quantization.
#![allow(unsafe_code)]
#![allow(clippy::too_many_arguments)]

use super::super::math::ActivationFn;
use super::super::phases::{ActivateArgs, AddArgs, NormArgs, NormBy, QuantizeArgs};
use super::super::views::Sink;
use super::buffers::{Activations, Rows};
use super::{Shared, Team, pointer, whole};

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
    pub(super) fn by(&self, n: usize, round: bool) -> NormBy {
        assert!(
            n > 0
                && self.weights.len() == whole(n)
                && self.bias.is_none_or(|b| b.len() == whole(n))
        );
        let bias = pointer(self.bias);
        NormBy {
            w: self.weights.as_ptr(),
            bias,
            n,
            epsilon: self.epsilon,
            centred: self.centred,
            round,
        }
    }
}

/// No norm.
pub(super) const UNNORMED: NormBy = NormBy {
    w: std::ptr::null(),
    bias: std::ptr::null(),
    n: 0,
    epsilon: 0.0,
    centred: false,
    round: false,
};

impl Team {
    /// Norm of the first `rows` rows of `x` (or of those in `pick`), `n` wide, into `out`.
    pub fn norm(
        &mut self,
        x: &Rows,
        pick: Option<&[u32]>,
        rows: usize,
        norm: &NormWeights,
        n: usize,
        out: &mut Activations,
    ) {
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
        self.pool.run(rows.div_ceil(args.get().rows_per_unit), |_, unit| unsafe {
            norm(args.get(), unit)
        });
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
        self.pool.run(rows.div_ceil(args.get().rows_per_unit), |_, unit| unsafe {
            norm(args.get(), unit)
        });
    }

    /// x += scale * norm(branch), or x += scale * branch without a norm, on the first `rows` rows, `n` wide. `branch` is left normed.
    pub fn add_normed(
        &mut self,
        branch: &mut Rows,
        norm: Option<&NormWeights>,
        n: usize,
        scale: f32,
        rows: usize,
        x: &mut Rows,
    ) {
        assert!(
            whole(n) == x.stride
                && x.stride == branch.stride
                && rows <= x.count()
                && rows <= branch.count()
        );
        let args = Shared(AddArgs {
            branch: branch.data.as_mut_ptr(),
            stride: x.stride,
            by: norm
                .map_or(NormBy { round: self.round, ..UNNORMED }, |norm| norm.by(n, self.round)),
            scale,
            x: x.data.as_mut_ptr(),
            rows,
            rows_per_unit: self.rows_per_unit(rows),
        });
        let add = self.set.table().add;
        // SAFETY: features as in `norm`; a unit reads and writes its own rows of `branch` and `x` only.
        self.pool.run(rows.div_ceil(args.get().rows_per_unit), |_, unit| unsafe {
            add(args.get(), unit)
        });
    }

    /// activation(gate) * up, or activation(up) without a gate, of the first `rows` rows into `out`.
    pub fn activate(
        &mut self,
        gate: Option<&Rows>,
        up: &Rows,
        activation: ActivationFn,
        rows: usize,
        out: &mut Activations,
    ) {
        let n = out.width;
        assert!(
            gate.is_some() || !matches!(activation, ActivationFn::Clamped { .. }),
            "an activation of gate and up"
        );
        assert!(
            up.stride == whole(n)
                && rows <= up.count()
                && gate.is_none_or(|g| g.stride == up.stride && rows <= g.count())
        );
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
        self.pool.run(rows.div_ceil(args.get().rows_per_unit), |_, unit| unsafe {
            activate(args.get(), unit)
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
        self.pool
            .run(rows.div_ceil(rows_per_unit), |_, unit| unsafe { quantize(args.get(), unit) });
    }
}

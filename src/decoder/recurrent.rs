//! Layers with a state, short convolutions and gated delta nets: their products around the kernels that go from row to row
//! (`kernels/state.rs`). In: the layer's normed input. Out: what the branch's last matrix reads.

use super::forward::{Pass, panels_of};
use super::packed::{ConvolutionWeights, DeltaWeights};
use super::workspace::{ConvolutionWorkspace, DeltaWorkspace, Workspace};
use crate::kernels::{Around, Delta, NormWeights, StateArena};
use crate::model::{Convolution, DeltaNet};

impl Pass<'_> {
    /// A short convolution of layer `l`.
    pub(super) fn convolution(
        &mut self,
        l: usize,
        weights: &ConvolutionWeights,
        spec: &Convolution,
        w: &mut Workspace,
    ) {
        // Biases: the layer has those that there are.
        let Convolution { taps, bias: _ } = *spec;
        let (rows, hidden) = (self.step.rows.len(), self.model.spec().hidden);
        let Workspace { normed, convolution, wide, .. } = w;
        let ConvolutionWorkspace { projected, out } =
            convolution.as_mut().expect("a workspace of the model");
        let m = panels_of(self.model, &weights.input, self.team, wide);
        self.team.product(&m, normed, rows, weights.input_bias.as_deref(), projected);
        let by = (&weights.taps[..], taps, weights.taps_bias.as_deref());
        let states = (&mut *self.states, self.state_offsets[l]);
        self.team.convolve_into(
            projected,
            Around::Gates,
            by,
            hidden,
            &self.step.states,
            states,
            out,
        );
    }

    /// A gated delta net of layer `l`.
    pub(super) fn delta_net(
        &mut self,
        l: usize,
        weights: &DeltaWeights,
        net: &DeltaNet,
        w: &mut Workspace,
    ) {
        let DeltaNet { key_heads, value_heads, key_dim, value_dim, taps, tiled } = *net;
        let rows = self.step.rows.len();
        let round = self.model.emulated();
        let rounded = move |x: f64| if round { half::bf16::from_f64(x).to_f32() } else { x as f32 };
        let Workspace { normed, deltas, wide, .. } = w;
        let DeltaWorkspace { shape: _, input, mixed, gates, beta, decay, out } =
            Workspace::of_net(deltas, net);
        for (m, out) in [
            (&weights.input, &mut *input),
            (&weights.gate, &mut *gates),
            (&weights.beta, &mut *beta),
            (&weights.alpha, &mut *decay),
        ] {
            let m = panels_of(self.model, m, self.team, wide);
            self.team.product(&m, normed, rows, None, out);
        }
        self.team.fill(beta, rows, value_heads, |_, row| {
            row.iter_mut().for_each(|x| *x = rounded(1.0 / (1.0 + (-f64::from(*x)).exp())));
        });
        self.team.fill(decay, rows, value_heads, |_, row| {
            for (x, (step, decay)) in row.iter_mut().zip(weights.step.iter().zip(&weights.decay)) {
                let x_step = f64::from(*x) + f64::from(*step);
                // Softplus, as torch has it: past 20 it is its argument.
                let positive = if x_step > 20.0 { x_step } else { x_step.exp().ln_1p() };
                *x = rounded((f64::from(*decay) * positive).exp());
            }
        });
        let offset = self.state_offsets[l];
        let by = (&weights.taps[..], taps, None);
        self.team.convolve(
            input,
            Around::Silu,
            by,
            net.channels(),
            &self.step.states,
            (&mut *self.states, offset),
            mixed,
        );
        let offset = offset + StateArena::convolution_floats(net.channels(), taps);
        // Its norm is plain, by the model's epsilon.
        let norm = NormWeights::rms(&weights.norm.weights, self.model.spec().norm.epsilon);
        let units = [&weights.units[0][..], &weights.units[1][..]];
        let by = Delta {
            heads: [key_heads, value_heads],
            dims: [key_dim, value_dim],
            tiled,
            units,
            norm,
        };
        self.team.delta(
            &by,
            mixed,
            gates,
            [beta, decay],
            &self.step.states,
            (&mut *self.states, offset),
            out,
        );
    }
}

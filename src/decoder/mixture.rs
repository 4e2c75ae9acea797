//! Mixtures of experts: which experts each row uses, rows brought together by expert so that each expert's matrices are read once and
//! meet many rows, and the weighted sum of what comes out. In: the layer's normed input. Out: the branch. An expert that no row uses is
//! not read.

use super::forward::{Pass, dense, kernel_activation, panels_of};
use super::packed::{FfnInput, MixtureWeights, Packed, PackedModel};
use super::workspace::{Choice, MixtureWorkspace, Workspace};
use crate::kernels::{Activations, Group, Rows, Team, padded};
use crate::model::{Mixture, Routing};
use std::ops::Range;

/// Which experts a row uses by the router's scores, in the order of their numbers. Equal ones: the lower number. `bias` is added for the
/// choice alone. The sums over experts are in f64, in the order of their numbers.
fn choose(mixture: &Mixture, scores: &[f32], bias: Option<&[f32]>, out: &mut [Choice]) {
    let Mixture { experts, routing, normalized, scale, .. } = *mixture;
    let scores = &scores[..experts];
    let sigmoid = |s: f32| 1.0 / (1.0 + (-f64::from(s)).exp());
    let most = scores.iter().fold(f32::NEG_INFINITY, |a, s| a.max(*s));
    let exp = |e: usize| f64::from(scores[e] - most).exp();
    let total: f64 = if routing == Routing::Softmax { (0..experts).map(exp).sum() } else { 0.0 };
    // Experts are ranked by their scores where routing is by softmax without a bias: its probabilities have the same order.
    let rank = |e: usize| {
        let own =
            if routing == Routing::Sigmoid { sigmoid(scores[e]) } else { f64::from(scores[e]) };
        match (bias, routing) {
            (None, _) => own,
            (Some(bias), Routing::Softmax) => exp(e) / total + f64::from(bias[e]),
            (Some(bias), _) => own + f64::from(bias[e]),
        }
    };
    let ranks: Vec<f64> = (0..experts).map(rank).collect();
    let mut order: Vec<u32> = (0..experts as u32).collect();
    order.sort_by(|a, b| ranks[*b as usize].total_cmp(&ranks[*a as usize]).then(a.cmp(b)));
    order.truncate(out.len());
    order.sort_unstable();
    let mut weights: Vec<f64> = match routing {
        Routing::Sigmoid => order.iter().map(|e| sigmoid(scores[*e as usize])).collect(),
        Routing::Softmax => order.iter().map(|e| exp(*e as usize) / total).collect(),
        Routing::SoftmaxOfChosen => {
            let total: f64 = order.iter().map(|e| exp(*e as usize)).sum();
            order.iter().map(|e| exp(*e as usize) / total).collect()
        }
    };
    if normalized {
        // So that sigmoids that are all 0 divide (transformers' Lfm2MoeTopKRouter).
        let least = if routing == Routing::Sigmoid { 1e-6 } else { 0.0 };
        let total = weights.iter().sum::<f64>() + least;
        weights.iter_mut().for_each(|w| *w /= total);
    }
    for ((out, expert), weight) in out.iter_mut().zip(order).zip(weights) {
        *out = Choice { expert, weight: (weight * f64::from(scale)) as f32, place: 0 };
    }
}

/// Gives each choice its place among rows grouped by expert; of each expert that is used its number and places, and the row of each place.
fn group(
    choices: &mut [Choice],
    used: usize,
    experts: usize,
    picked: &mut Vec<u32>,
) -> Vec<(usize, Range<usize>)> {
    let mut counts = vec![0usize; experts];
    choices.iter().for_each(|c| counts[c.expert as usize] += 1);
    let mut next = 0;
    let mut groups = Vec::new();
    for (expert, count) in counts.iter_mut().enumerate() {
        if *count > 0 {
            groups.push((expert, next..next + *count));
        }
        (*count, next) = (next, next + *count);
    }
    picked.clear();
    picked.resize(choices.len(), 0);
    for (i, choice) in choices.iter_mut().enumerate() {
        let place = &mut counts[choice.expert as usize];
        picked[*place] = (i / used) as u32;
        choice.place = *place as u32;
        *place += 1;
    }
    groups
}

/// Those of a matrix of experts that are used, with their rows. `biases`: of all experts, each padded.
fn groups_of<'a>(
    model: &'a PackedModel,
    m: &Packed,
    biases: Option<&'a [f32]>,
    groups: &[(usize, Range<usize>)],
) -> Vec<Group<'a>> {
    let bias = |expert: usize| biases.map(|all| &all[expert * padded(m.n)..][..padded(m.n)]);
    groups
        .iter()
        .map(|(expert, rows)| Group {
            m: model.expert(m, *expert),
            rows: rows.clone(),
            bias: bias(*expert),
        })
        .collect()
}

/// Runs a phase over groups: all at once, or one at a time where each matrix is widened first.
fn each<'a>(
    model: &PackedModel,
    team: &mut Team,
    wide: &mut [f32],
    groups: &[Group<'a>],
    mut phase: impl FnMut(&mut Team, &[Group]),
) {
    if !model.emulated() {
        return phase(team, groups);
    }
    for Group { m, rows, bias } in groups {
        let m = team.widen(m, wide);
        phase(team, &[Group { m, rows: rows.clone(), bias: *bias }]);
    }
}

impl Pass<'_> {
    /// The branch of a mixture, from `w.normed` into `w.branch`.
    pub(super) fn mixture(
        &mut self,
        weights: &MixtureWeights,
        mixture: &Mixture,
        w: &mut Workspace,
    ) {
        // Without `..`: what is not computed here does not compile.
        let Mixture {
            experts,
            used,
            width: _,
            activation,
            // In `choose`.
            routing: _,
            normalized: _,
            scale: _,
            // The layer has those that there are.
            router_bias: _,
            choice_bias: _,
            biases: _,
            shared,
        } = *mixture;
        let (model, rows, hidden) = (self.model, self.step.rows.len(), self.model.spec().hidden);
        let round = model.emulated();
        let rounded = move |x: f32| if round { half::bf16::from_f32(x).to_f32() } else { x };
        let Workspace { normed, branch, ffn, wide, mixtures, .. } = w;
        let own = MixtureWorkspace::of(mixtures, mixture);
        let MixtureWorkspace {
            shape: _,
            scores,
            choices,
            picked,
            gathered,
            gate,
            up,
            product,
            out,
        } = own;

        let router = panels_of(model, &weights.router, self.team, wide);
        self.team.product(&router, normed, rows, weights.router_bias.as_deref(), scores);
        let per_unit = rows.div_ceil(16).max(1) * used;
        let (scores, bias) = (&*scores, weights.choice_bias.as_deref());
        choices.clear();
        choices.resize(rows * used, Choice::default());
        self.team.chunks(choices, per_unit, |unit, choices| {
            for (i, choices) in choices.chunks_exact_mut(used).enumerate() {
                choose(mixture, scores.row(unit * per_unit / used + i), bias, choices);
            }
        });
        let groups = group(choices, used, experts, picked);

        self.team.gather(normed, picked, gathered);
        let experts = &weights.experts;
        let activation = kernel_activation(activation);
        let [gate_bias, up_bias] = experts.input_biases.each_ref().map(|bias| bias.as_deref());
        match &experts.input {
            FfnInput::Together(m) => {
                each(model, self.team, wide, &groups_of(model, m, None, &groups), |team, groups| {
                    team.gate_up_of_groups(groups, gathered, activation, product)
                })
            }
            FfnInput::Apart { gate: first, up: second } => {
                for (m, bias, out) in [(first, gate_bias, &mut *gate), (second, up_bias, &mut *up)]
                {
                    each(
                        model,
                        self.team,
                        wide,
                        &groups_of(model, m, bias, &groups),
                        |team, groups| team.product_of_groups(groups, gathered, out),
                    );
                }
                self.team.activate(Some(gate), up, activation, picked.len(), product);
            }
            FfnInput::Plain(_) => unreachable!("experts have gates"),
        }
        each(
            model,
            self.team,
            wide,
            &groups_of(model, &experts.down, experts.down_bias.as_deref(), &groups),
            |team, groups| team.product_of_groups(groups, product, out),
        );

        let (choices, out) = (&*choices, &*out);
        let add = |r: usize, row: &mut [f32]| {
            for Choice { expert: _, weight, place } in &choices[r * used..][..used] {
                let weight = rounded(*weight);
                for (x, y) in row.iter_mut().zip(out.row(*place as usize)) {
                    *x = rounded(*x + rounded(weight * y));
                }
            }
        };
        let Some((shared, weights)) =
            shared.zip(weights.shared.as_ref().map(|dense| (dense, weights.share.as_deref())))
        else {
            self.team.fill(branch, rows, hidden, |r, row| {
                row.fill(0.0);
                add(r, row);
            });
            return;
        };
        let (weights, share) = weights;
        let own =
            dense(model, self.team, weights, activation, shared.width, rows, normed, ffn, wide);
        let down = panels_of(model, &weights.down, self.team, wide);
        self.team.product(&down, own, rows, None, branch);
        let share = share.map(|by| (by, &*normed));
        self.team.fill(branch, rows, hidden, |r, row| {
            if let Some((by, normed)) = share {
                let dot: f64 =
                    by.iter().zip(normed.row(r)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                let share = rounded((1.0 / (1.0 + (-f64::from(rounded(dot as f32))).exp())) as f32);
                row.iter_mut().for_each(|x| *x = rounded(*x * share));
            }
            add(r, row);
        });
    }
}

impl MixtureWorkspace {
    pub(super) fn new(
        mixture: &Mixture,
        hidden: usize,
        rows: usize,
        apart: bool,
        quantized: [bool; 2],
    ) -> MixtureWorkspace {
        let (used, width) = (mixture.used, mixture.width);
        let rows_apart = if apart { rows * used } else { 0 };
        MixtureWorkspace {
            shape: (mixture.experts, used, width),
            scores: Rows::new(rows, mixture.experts),
            choices: Vec::new(),
            picked: Vec::new(),
            gathered: Activations::new(rows * used, hidden, quantized[0]),
            gate: Rows::new(rows_apart, width),
            up: Rows::new(rows_apart, width),
            product: Activations::new(rows * used, width, quantized[1]),
            out: Rows::new(rows * used, hidden),
        }
    }

    pub(super) fn bytes(
        mixture: &Mixture,
        hidden: usize,
        rows: usize,
        apart: bool,
        quantized: [bool; 2],
    ) -> usize {
        let all = rows.saturating_mul(mixture.used);
        let rows_apart = if apart { all } else { 0 };
        [
            Rows::bytes(rows, mixture.experts),
            all.saturating_mul(size_of::<Choice>() + 4),
            Activations::bytes(all, hidden, quantized[0]),
            Rows::bytes(rows_apart, mixture.width).saturating_mul(2),
            Activations::bytes(all, mixture.width, quantized[1]),
            Rows::bytes(all, hidden),
        ]
        .into_iter()
        .fold(0, usize::saturating_add)
    }

    /// That of mixtures of this shape.
    fn of<'a>(all: &'a mut [MixtureWorkspace], mixture: &Mixture) -> &'a mut MixtureWorkspace {
        let shape = (mixture.experts, mixture.used, mixture.width);
        all.iter_mut().find(|w| w.shape == shape).expect("one for each shape of the model")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Activation;

    fn mixture(routing: Routing, normalized: bool, scale: f32) -> Mixture {
        Mixture {
            experts: 5,
            used: 2,
            width: 8,
            activation: Activation::Silu,
            routing,
            normalized,
            scale,
            router_bias: false,
            choice_bias: false,
            biases: false,
            shared: None,
        }
    }

    fn chosen(mixture: &Mixture, scores: &[f32], bias: Option<&[f32]>) -> Vec<(u32, f32)> {
        let mut out = vec![Choice::default(); mixture.used];
        choose(mixture, scores, bias, &mut out);
        out.iter().map(|c| (c.expert, c.weight)).collect()
    }

    #[test]
    fn equal_scores_go_to_the_lower_number_and_weights_follow_the_routing() {
        let even = chosen(&mixture(Routing::SoftmaxOfChosen, false, 1.0), &[1.0; 5], None);
        assert_eq!(even, [(0, 0.5), (1, 0.5)]);
        let later =
            chosen(&mixture(Routing::Softmax, false, 1.0), &[0.0, 2.0, 0.0, 2.0, 2.0], None);
        let weight = (2f64.exp() / (3.0 * 2f64.exp() + 2.0)) as f32;
        assert_eq!(later, [(1, weight), (3, weight)]);
        let scaled =
            chosen(&mixture(Routing::Softmax, true, 3.0), &[0.0, 2.0, 0.0, 2.0, 2.0], None);
        assert_eq!(scaled, [(1, 1.5), (3, 1.5)]);
        // The bias decides, and is not part of the weight.
        let biased = chosen(
            &mixture(Routing::Sigmoid, false, 1.0),
            &[0.0; 5],
            Some(&[0.0, 0.0, 1.0, 0.0, 2.0]),
        );
        assert_eq!(biased, [(2, 0.5), (4, 0.5)]);
        // What is no number ends as a weight that is none, and nothing panics.
        let broken = chosen(&mixture(Routing::Softmax, true, 1.0), &[f32::NAN; 5], None);
        assert!(broken.iter().all(|c| c.1.is_nan()));
    }

    #[test]
    fn rows_are_grouped_by_expert_in_their_own_order() {
        let of = |expert| Choice { expert, weight: 1.0, place: 0 };
        let mut choices = [of(1), of(4), of(0), of(4), of(1), of(2)];
        let mut picked = Vec::new();
        let groups = group(&mut choices, 2, 5, &mut picked);
        assert_eq!(groups, [(0, 0..1), (1, 1..3), (2, 3..4), (4, 4..6)]);
        assert_eq!(picked, [1, 0, 2, 2, 0, 1]);
        assert_eq!(choices.map(|c| c.place), [1, 4, 0, 5, 2, 3]);
    }
}

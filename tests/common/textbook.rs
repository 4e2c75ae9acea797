//! The forward pass as a textbook has it, in f64, for every field of a spec: the second oracle beside transformers' fixtures.
//! In: a spec, weights by role, token ids. Out: the scores after each of them. It shares nothing with the decoder: no panels, no
//! phases, no online softmax. Included by path where it is needed, as `mod textbook`.
#![allow(dead_code)]

use llmopt::kernels::Format;
use llmopt::model::{
    Activation, Attention, Convolution, DeltaNet, Ffn, LayerSpec, LongRope, Mixer, Mixture,
    ModelSpec, Norm, NormKind, Norms, QkNorm, QueryGrowth, Role, Rope, Routing, Shared, Weights,
    roles,
};
use std::collections::HashMap;

/// All weights in f64.
struct Values(HashMap<Role, Vec<f64>>);

impl Values {
    fn of(spec: &ModelSpec, weights: &dyn Weights) -> Values {
        let read = |role: Role, rows: usize| {
            let mut bytes = Vec::new();
            weights.read(role, 0..rows, Format::F32, &mut bytes).unwrap();
            bytes
                .chunks_exact(4)
                .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
                .collect()
        };
        Values(roles(spec).map(|(role, (rows, _))| (role, read(role, rows))).collect())
    }

    fn get(&self, role: Role) -> Option<&[f64]> {
        self.0.get(&role).map(Vec::as_slice)
    }

    /// W x + b.
    fn product(&self, weights: Role, bias: Role, x: &[f64]) -> Vec<f64> {
        self.product_of(weights, bias, x, 0, 1)
    }

    /// W x + b of one of several matrices that stand one below the other.
    fn product_of(
        &self,
        weights: Role,
        bias: Role,
        x: &[f64],
        which: usize,
        count: usize,
    ) -> Vec<f64> {
        let part = |all: &'_ [f64]| {
            all[which * all.len() / count..(which + 1) * all.len() / count].to_vec()
        };
        let weights = part(self.get(weights).unwrap_or_else(|| panic!("no {weights:?}")));
        let mut y: Vec<f64> = weights
            .chunks(x.len())
            .map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum())
            .collect();
        if let Some(bias) = self.get(bias).map(part) {
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
        y
    }
}

fn norm(norm: &Norm, weights: Option<&[f64]>, bias: Option<&[f64]>, x: &[f64]) -> Vec<f64> {
    let Norm { kind, epsilon, weights: _, bias: _ } = norm;
    let n = x.len() as f64;
    let mean = match kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => x.iter().sum::<f64>() / n,
    };
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    let scale = 1.0 / (variance + f64::from(*epsilon)).sqrt();
    let at = |values: Option<&[f64]>, i: usize, default: f64| values.map_or(default, |v| v[i]);
    x.iter()
        .enumerate()
        .map(|(i, x)| (x - mean) * scale * at(weights, i, 1.0) + at(bias, i, 0.0))
        .collect()
}

/// The error function by its series, as exact as f64 has it.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while f64::abs(term) > 1e-17 * f64::abs(sum).max(1e-30) && n < 200.0 {
        n += 1.0;
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::GeluTanh => {
            0.5 * x
                * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
        Activation::Relu => x.max(0.0),
        Activation::Relu2 => x.max(0.0).powi(2),
        Activation::Clamped { .. } => panic!("it needs a gate"),
    }
}

/// activation(gate) * up.
fn gated(activation: Activation, gate: f64, up: f64) -> f64 {
    match activation {
        Activation::Clamped { limit, alpha } => {
            let (limit, alpha) = (f64::from(limit), f64::from(alpha));
            let (gate, up) = (gate.min(limit), up.clamp(-limit, limit));
            gate / (1.0 + (-alpha * gate).exp()) * (up + 1.0)
        }
        other => activate(other, gate) * up,
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// A mixture of experts.
fn mix(values: &Values, l: usize, mixture: &Mixture, x: &[f64]) -> Vec<f64> {
    let Mixture {
        experts,
        used,
        width: _,
        activation,
        routing,
        normalized,
        scale,
        router_bias: _,
        choice_bias: _,
        biases: _,
        shared,
    } = *mixture;
    let scores = values.product(Role::Router(l), Role::RouterBias(l), x);
    let exps: Vec<f64> = scores.iter().map(|s| s.exp()).collect();
    let total: f64 = exps.iter().sum();
    let mut weights: Vec<f64> = match routing {
        Routing::Sigmoid => scores.iter().map(|s| sigmoid(*s)).collect(),
        Routing::Softmax | Routing::SoftmaxOfChosen => exps.iter().map(|e| e / total).collect(),
    };
    let bias = values.get(Role::ChoiceBias(l));
    let rank = |e: usize| weights[e] + bias.map_or(0.0, |b| b[e]);
    let mut chosen: Vec<usize> = Vec::new();
    for _ in 0..used {
        let rest = (0..experts).filter(|e| !chosen.contains(e));
        // The first of equal ones.
        chosen.push(rest.reduce(|best, e| if rank(e) > rank(best) { e } else { best }).unwrap());
    }
    let sum: f64 = chosen.iter().map(|e| weights[*e]).sum();
    if normalized || routing == Routing::SoftmaxOfChosen {
        let least = if routing == Routing::Sigmoid { 1e-6 } else { 0.0 };
        weights.iter_mut().for_each(|w| *w /= sum + least);
    }
    let mut out = vec![0.0; x.len()];
    let mut add =
        |weight: f64, y: Vec<f64>| out.iter_mut().zip(y).for_each(|(out, y)| *out += weight * y);
    for e in chosen {
        let gate = values.product_of(Role::ExpertGate(l), Role::ExpertGateBias(l), x, e, experts);
        let up = values.product_of(Role::ExpertUp(l), Role::ExpertUpBias(l), x, e, experts);
        let inner: Vec<f64> = gate.iter().zip(up).map(|(g, u)| gated(activation, *g, u)).collect();
        let y = values.product_of(Role::ExpertDown(l), Role::ExpertDownBias(l), &inner, e, experts);
        add(weights[e] * f64::from(scale), y);
    }
    if let Some(Shared { width: _, gate: share }) = shared {
        // A dense part.s, which is not here.
        let none = Role::GateBias(l);
        let gate = values.product(Role::SharedGate(l), none, x);
        let inner: Vec<f64> = gate
            .iter()
            .zip(values.product(Role::SharedUp(l), none, x))
            .map(|(g, u)| gated(activation, *g, u))
            .collect();
        let share =
            if share { sigmoid(values.product(Role::SharedShare(l), none, x)[0]) } else { 1.0 };
        add(share, values.product(Role::SharedDown(l), none, &inner));
    }
    out
}

/// Turns the pairs (2i, 2i + 1) of one head; `positions` is what the request may take in all.
fn rotate(rope: &Rope, head: &mut [f64], position: usize, positions: usize) {
    let Rope { theta, dims, factors, magnitude, long } = rope;
    let (factors, magnitude) = match long {
        Some(LongRope { above, factors, magnitude }) if positions > *above => (factors, magnitude),
        _ => (factors, magnitude),
    };
    for i in 0..dims / 2 {
        let divisor = factors.get(i).map_or(1.0, |f| f64::from(*f));
        let frequency = f64::from(*theta).powf(-2.0 * i as f64 / *dims as f64) / divisor;
        let (sin, cos) = (position as f64 * frequency).sin_cos();
        let (sin, cos) = (sin * f64::from(*magnitude), cos * f64::from(*magnitude));
        let (a, b) = (head[2 * i], head[2 * i + 1]);
        (head[2 * i], head[2 * i + 1]) = (a * cos - b * sin, a * sin + b * cos);
    }
}

fn capped(cap: Option<f32>, x: f64) -> f64 {
    cap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh())
}

/// Scores after each token, of a request that takes `positions` positions in all.
pub fn logits(
    spec: &ModelSpec,
    weights: &dyn Weights,
    tokens: &[u32],
    positions: usize,
) -> Vec<Vec<f64>> {
    let ModelSpec {
        architecture: _,
        hidden,
        vocab: _,
        context: _,
        layers,
        norm: norms_of,
        ropes,
        embedding_scale,
        query_growth,
        logit_scale,
        logit_softcap,
        output_bias: _,
        tied_embeddings,
    } = spec;
    let values = Values::of(spec, weights);
    let embedding = values.get(Role::TokenEmbedding).unwrap();
    let mut xs: Vec<Vec<f64>> = tokens
        .iter()
        .map(|t| {
            embedding[*t as usize * hidden..][..*hidden]
                .iter()
                .map(|x| x * f64::from(*embedding_scale))
                .collect()
        })
        .collect();
    let normed = |weights: Role, bias: Role, x: &[f64]| {
        norm(norms_of, values.get(weights), values.get(bias), x)
    };
    for (l, LayerSpec { mixer, ffn, norms, residual_scale }) in layers.iter().enumerate() {
        let (mut keys, mut all_values, mut past, mut states) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (p, x) in xs.iter_mut().enumerate() {
            let input = match norms {
                Norms::After => x.clone(),
                _ => normed(Role::AttentionNorm(l), Role::AttentionNormBias(l), x),
            };
            let mixed = match mixer {
                Mixer::Attention(attention) => {
                    let kept = (&mut keys, &mut all_values);
                    attend(
                        &values,
                        norms_of,
                        ropes,
                        query_growth,
                        attention,
                        l,
                        &input,
                        p,
                        positions,
                        kept,
                    )
                }
                Mixer::Convolution(convolution) => {
                    convolve(&values, convolution, l, &input, &mut past)
                }
                Mixer::DeltaNet(net) => {
                    delta(&values, norms_of, net, l, &input, &mut past, &mut states)
                }
            };
            let mixed = match norms {
                Norms::After | Norms::Both => {
                    norm(norms_of, values.get(Role::AttentionPostNorm(l)), None, &mixed)
                }
                _ => mixed,
            };
            let add = |x: &mut Vec<f64>, y: &[f64]| {
                x.iter_mut().zip(y).for_each(|(x, y)| *x += f64::from(*residual_scale) * y)
            };
            let shared = x.clone();
            add(x, &mixed);
            let input = match norms {
                Norms::After => x.clone(),
                Norms::Parallel => input,
                Norms::ParallelApart => normed(Role::FfnNorm(l), Role::FfnNormBias(l), &shared),
                Norms::Before | Norms::Both => normed(Role::FfnNorm(l), Role::FfnNormBias(l), x),
            };
            let up = |input: &[f64]| values.product(Role::Up(l), Role::UpBias(l), input);
            let down = |inner: Vec<f64>| values.product(Role::Down(l), Role::DownBias(l), &inner);
            let down = match *ffn {
                Ffn::Gated { width: _, activation, input_bias: _, output_bias: _ } => {
                    let gate = values.product(Role::Gate(l), Role::GateBias(l), &input);
                    down(
                        gate.iter()
                            .zip(up(&input))
                            .map(|(g, u)| gated(activation, *g, u))
                            .collect(),
                    )
                }
                Ffn::Plain { width: _, activation, input_bias: _, output_bias: _ } => {
                    down(up(&input).iter().map(|u| activate(activation, *u)).collect())
                }
                Ffn::Mixture(mixture) => mix(&values, l, &mixture, &input),
            };
            let down = match norms {
                Norms::After | Norms::Both => {
                    norm(norms_of, values.get(Role::FfnPostNorm(l)), None, &down)
                }
                _ => down,
            };
            add(x, &down);
        }
    }
    let output = if *tied_embeddings { Role::TokenEmbedding } else { Role::Output };
    let score = |x: &Vec<f64>| {
        let x = normed(Role::OutputNorm, Role::OutputNormBias, x);
        let scores = values.product(output, Role::OutputBias, &x);
        scores.iter().map(|s| capped(*logit_softcap, s * f64::from(*logit_scale))).collect()
    };
    xs.iter().map(score).collect()
}

/// Attention of the token at `position`, whose key and value join the others.
#[allow(clippy::too_many_arguments)]
fn attend(
    values: &Values,
    norm_of: &Norm,
    ropes: &[Rope],
    growth: &Option<QueryGrowth>,
    attention: &Attention,
    l: usize,
    x: &[f64],
    position: usize,
    positions: usize,
    (keys, all_values): (&mut Vec<Vec<f64>>, &mut Vec<Vec<f64>>),
) -> Vec<f64> {
    let Attention {
        heads,
        kv_heads,
        head_dim: hd,
        qkv_bias: _,
        output_bias: _,
        qk_norm,
        rope,
        window,
        scale,
        softcap,
        sinks,
        gate,
    } = *attention;
    let mut q = values.product(Role::Query(l), Role::QueryBias(l), x);
    // Behind each head's query stands its gate.
    let gates: Vec<f64> = if gate {
        q.chunks(2 * hd).flat_map(|both| both[hd..].to_vec()).collect()
    } else {
        Vec::new()
    };
    if gate {
        q = q.chunks(2 * hd).flat_map(|both| both[..hd].to_vec()).collect();
    }
    let mut k = values.product(Role::Key(l), Role::KeyBias(l), x);
    let turn = |x: &mut [f64]| {
        if let Some(rope) = rope {
            x.chunks_mut(hd).for_each(|head| rotate(&ropes[rope], head, position, positions));
        }
    };
    let each = |weights: Role, x: &[f64]| -> Vec<f64> {
        x.chunks(hd).flat_map(|head| norm(norm_of, values.get(weights), None, head)).collect()
    };
    match qk_norm {
        Some(QkNorm::PerHead) => {
            (q, k) = (each(Role::QueryNorm(l), &q), each(Role::KeyNorm(l), &k))
        }
        Some(QkNorm::Whole) => {
            q = norm(norm_of, values.get(Role::QueryNorm(l)), None, &q);
            k = norm(norm_of, values.get(Role::KeyNorm(l)), None, &k);
        }
        Some(QkNorm::PerHeadRotated) | None => {}
    }
    turn(&mut q);
    turn(&mut k);
    if qk_norm == Some(QkNorm::PerHeadRotated) {
        (q, k) = (each(Role::QueryNorm(l), &q), each(Role::KeyNorm(l), &k));
    }
    if let Some(QueryGrowth { beta, original }) = growth {
        let scale = 1.0 + f64::from(*beta) * (1.0 + (position / original) as f64).ln();
        q.iter_mut().for_each(|q| *q *= scale);
    }
    keys.push(k);
    all_values.push(values.product(Role::Value(l), Role::ValueBias(l), x));
    let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
    let mut mixed = vec![0.0; heads * hd];
    for head in 0..heads {
        let kv = head / (heads / kv_heads) * hd;
        let score = |key: &Vec<f64>| {
            let dot: f64 = (0..hd).map(|d| q[head * hd + d] * key[kv + d]).sum();
            capped(softcap, dot * f64::from(scale))
        };
        let scores: Vec<f64> = keys[first..].iter().map(score).collect();
        let sink = if sinks { values.get(Role::Sinks(l)).map(|s| s[head]) } else { None };
        let most = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
        let total: f64 = weights.iter().sum::<f64>() + sink.map_or(0.0, |s| (s - most).exp());
        for (weight, value) in weights.iter().zip(&all_values[first..]) {
            (0..hd).for_each(|d| mixed[head * hd + d] += weight / total * value[kv + d]);
        }
    }
    mixed.iter_mut().zip(gates).for_each(|(x, gate)| *x *= sigmoid(gate));
    values.product(Role::AttentionOutput(l), Role::AttentionOutputBias(l), &mixed)
}

/// Σ taps[j] x[t - (taps - 1) + j] of each channel; `past` are the inputs so far, the last one this position's.
fn causal(weights: &[f64], taps: usize, past: &[Vec<f64>]) -> Vec<f64> {
    let last = past.len() - 1;
    (0..past[last].len())
        .map(|c| {
            (0..taps)
                .filter(|j| last + j + 1 >= taps)
                .map(|j| weights[c * taps + j] * past[last + j + 1 - taps][c])
                .sum()
        })
        .collect()
}

/// A short convolution at the next position.
fn convolve(
    values: &Values,
    spec: &Convolution,
    l: usize,
    x: &[f64],
    past: &mut Vec<Vec<f64>>,
) -> Vec<f64> {
    let Convolution { taps, bias: _ } = *spec;
    let all = values.product(Role::ConvolutionInput(l), Role::ConvolutionInputBias(l), x);
    let (b, rest) = all.split_at(x.len());
    let (c, x) = rest.split_at(x.len());
    past.push(b.iter().zip(x).map(|(b, x)| b * x).collect());
    let mut y = causal(values.get(Role::ConvolutionTaps(l)).unwrap(), taps, past);
    if let Some(bias) = values.get(Role::ConvolutionTapsBias(l)) {
        y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
    }
    y.iter_mut().zip(c).for_each(|(y, c)| *y *= c);
    values.product(Role::ConvolutionOutput(l), Role::ConvolutionOutputBias(l), &y)
}

/// A gated delta net at the next position; `states` are its heads' matrices.
fn delta(
    values: &Values,
    norm_of: &Norm,
    net: &DeltaNet,
    l: usize,
    x: &[f64],
    past: &mut Vec<Vec<f64>>,
    states: &mut Vec<Vec<f64>>,
) -> Vec<f64> {
    let DeltaNet { key_heads, value_heads, key_dim, value_dim, taps, tiled } = *net;
    let none = Role::GateBias(usize::MAX);
    past.push(values.product(Role::DeltaInput(l), none, x));
    let mixed: Vec<f64> = causal(values.get(Role::DeltaTaps(l)).unwrap(), taps, past)
        .iter()
        .map(|y| y * sigmoid(*y))
        .collect();
    let z = values.product(Role::DeltaGate(l), none, x);
    let (beta, alpha) =
        (values.product(Role::DeltaBeta(l), none, x), values.product(Role::DeltaAlpha(l), none, x));
    let (steps, decays) =
        (values.get(Role::DeltaStep(l)).unwrap(), values.get(Role::DeltaDecay(l)).unwrap());
    states.resize(value_heads, vec![0.0; key_dim * value_dim]);
    let unit = |x: &[f64]| -> Vec<f64> {
        let length = (x.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
        x.iter().map(|x| x / length).collect()
    };
    let mut out = Vec::new();
    for h in 0..value_heads {
        let own = if tiled { h % key_heads } else { h / (value_heads / key_heads) };
        let q = unit(&mixed[own * key_dim..][..key_dim]);
        let k = unit(&mixed[(key_heads + own) * key_dim..][..key_dim]);
        let v = &mixed[2 * key_heads * key_dim + h * value_dim..][..value_dim];
        let decay = (decays[h] * (alpha[h] + steps[h]).exp().ln_1p()).exp();
        let state = &mut states[h];
        state.iter_mut().for_each(|s| *s *= decay);
        let at = |state: &[f64], by: &[f64], d: usize| -> f64 {
            (0..key_dim).map(|i| state[i * value_dim + d] * by[i]).sum()
        };
        let change: Vec<f64> =
            (0..value_dim).map(|d| (v[d] - at(state, &k, d)) * sigmoid(beta[h])).collect();
        (0..key_dim).for_each(|i| {
            (0..value_dim).for_each(|d| state[i * value_dim + d] += k[i] * change[d])
        });
        let o: Vec<f64> =
            (0..value_dim).map(|d| at(state, &q, d) / (key_dim as f64).sqrt()).collect();
        let square = o.iter().map(|o| o * o).sum::<f64>() / value_dim as f64;
        let scale = 1.0 / (square + f64::from(norm_of.epsilon)).sqrt();
        let weights = values.get(Role::DeltaNorm(l)).unwrap();
        out.extend((0..value_dim).map(|d| {
            let gate = z[h * value_dim + d];
            o[d] * scale * weights[d] * gate * sigmoid(gate)
        }));
    }
    values.product(Role::DeltaOutput(l), none, &out)
}

//! The phases that model families differ in: biases, activations, norms of heads and branches, windows, soft caps, sinks. Each in every
//! kernel set by equality of bits, at sizes that fill no tile, and against plain arithmetic in f64.
#![allow(clippy::needless_range_loop)]

use super::tests::{Random, pack};
use super::*;

/// A matrix of `n` rows of `k` f32 weights, with the weights.
struct Made {
    n: usize,
    k: usize,
    arena: Arena,
    weights: Vec<f32>,
}

impl Made {
    fn new(random: &mut Random, n: usize, k: usize) -> Made {
        let weights = random.floats(n * k);
        let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
        Made { n, k, arena: pack(Format::F32, n, k, &bytes), weights }
    }

    fn panels(&self) -> Panels<'_> {
        Panels::new(Format::F32, self.n, self.k, self.arena.bytes())
    }

    fn product(&self, x: &[f32]) -> Vec<f64> {
        self.weights
            .chunks(self.k)
            .map(|w| w.iter().zip(x).map(|(w, x)| *w as f64 * *x as f64).sum())
            .collect()
    }
}

fn rows_of(random: &mut Random, rows: usize, width: usize) -> Rows {
    let mut x = Rows::new(rows, width);
    (0..rows).for_each(|r| x.row_mut(r)[..width].copy_from_slice(&random.floats(width)));
    x
}

/// Rows as activations, unchanged.
fn activations_of(team: &mut Team, x: &Rows, rows: usize, width: usize) -> Activations {
    let mut one = Rows::new(rows, width);
    (0..rows).for_each(|r| one.row_mut(r)[..width].fill(1.0));
    let mut out = Activations::new(rows, width, false);
    // relu(1) * x is x.
    team.activate(Some(&one), x, ActivationFn::Relu, rows, &mut out);
    out
}

/// A vector padded to 16 with zeros.
fn padded_floats(random: &mut Random, n: usize) -> Vec<f32> {
    let mut v = random.floats(n);
    v.resize(padded(n), 0.0);
    v
}

fn bits(x: &Rows) -> Vec<u32> {
    (0..x.count()).flat_map(|r| x.row(r).iter().map(|x| x.to_bits())).collect()
}

/// Runs `compute` in every set on one and three workers; all results must be equal. Returns one.
fn same_in_all_sets<T: PartialEq>(what: &str, compute: impl Fn(&mut Team) -> T) -> T {
    let mut first = None;
    for set in KernelSet::available() {
        for threads in [1, 3] {
            let mut team = Team::new(set, threads, 2, false).unwrap();
            let got = compute(&mut team);
            assert_eq!(team.broken(), None, "{what} {set:?}");
            match &first {
                None => first = Some(got),
                Some(first) => {
                    assert!(*first == got, "{what}: {set:?} with {threads} threads differs")
                }
            }
        }
    }
    first.unwrap()
}

/// Bits of what activations hold: rows and blocks.
fn held(x: &Activations, rows: usize) -> (Vec<u32>, Vec<ActBlock>) {
    let floats = (0..rows).flat_map(|r| x.row(r).iter().map(|x| x.to_bits())).collect();
    (floats, (0..rows).flat_map(|r| x.blocks(r).to_vec()).collect())
}

fn near(got: f32, want: f64, relative: f64, absolute: f64) -> bool {
    (got as f64 - want).abs() <= relative * want.abs() + absolute
}

const ROWS: usize = 19;

#[test]
fn products_take_a_bias_and_a_scale_and_without_them_keep_their_bits() {
    let mut random = Random(3);
    for (n, k) in [(1, 5), (37, 33), (48, 17)] {
        let m = Made::new(&mut random, n, k);
        let (x, start, bias) = (
            rows_of(&mut random, ROWS, k),
            rows_of(&mut random, ROWS, n),
            padded_floats(&mut random, n),
        );
        for bias in [None, Some(&bias[..])] {
            for scale in [1.0, 0.22] {
                let [stored, added] = same_in_all_sets("product", |team| {
                    let input = activations_of(team, &x, ROWS, k);
                    let (mut out, mut sum) = (Rows::new(ROWS, n), start.clone());
                    team.product(&m.panels(), &input, ROWS, bias, &mut out);
                    team.add_product(&m.panels(), &input, ROWS, &mut sum, bias, scale);
                    [bits(&out), bits(&sum)]
                });
                for r in 0..ROWS {
                    let want = m.product(x.row(r));
                    for c in 0..padded(n) {
                        let at = r * padded(n) + c;
                        let (out, sum) = (f32::from_bits(stored[at]), f32::from_bits(added[at]));
                        if c >= n {
                            assert_eq!((out, sum), (0.0, 0.0), "padding stays zero");
                            continue;
                        }
                        let want = want[c] + bias.map_or(0.0, |b| b[c] as f64);
                        assert!(near(out, want, 1e-4, 1e-4), "{n}x{k} at {r},{c}: {out} {want}");
                        let want = start.row(r)[c] as f64 + scale as f64 * want;
                        assert!(near(sum, want, 1e-4, 1e-4), "{n}x{k} at {r},{c}: {sum} {want}");
                        if scale == 1.0 {
                            assert_eq!(
                                sum.to_bits(),
                                (start.row(r)[c] + out).to_bits(),
                                "a scale of 1 changes no bit"
                            );
                        }
                    }
                }
            }
        }
    }
}

/// erf in f64: its series, or the continued fraction of erfc.
fn erf64(x: f64) -> f64 {
    let y = x.abs();
    let value = if y < 3.0 {
        let (mut term, mut sum, mut n) = (y, y, 0.0);
        while term.abs() > 1e-18 * sum.abs() && n < 200.0 {
            n += 1.0;
            term *= -y * y / n;
            sum += term / (2.0 * n + 1.0);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    } else {
        let mut fraction = 0.0;
        for n in (1..60).rev() {
            fraction = n as f64 / 2.0 / (y + fraction);
        }
        1.0 - (-y * y).exp() / (std::f64::consts::PI.sqrt() * (y + fraction))
    };
    value.copysign(x)
}

fn activation64(activation: ActivationFn, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match activation {
        ActivationFn::Silu => x * sigmoid(x),
        ActivationFn::GeluTanh => {
            x / 2.0
                * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
        ActivationFn::Gelu => x / 2.0 * (1.0 + erf64(x / 2f64.sqrt())),
        ActivationFn::GeluQuick => x * sigmoid(1.702 * x),
        ActivationFn::Relu => x.max(0.0),
        ActivationFn::Relu2 => x.max(0.0).powi(2),
        ActivationFn::Sigmoid => sigmoid(x),
        ActivationFn::Clamped { limit, alpha } => {
            let gate = x.min(limit as f64);
            gate * sigmoid(alpha as f64 * gate)
        }
    }
}

fn gated64(activation: ActivationFn, gate: f64, up: f64) -> f64 {
    let up = match activation {
        ActivationFn::Clamped { limit, .. } => up.clamp(-limit as f64, limit as f64) + 1.0,
        _ => up,
    };
    activation64(activation, gate) * up
}

const ACTIVATIONS: [ActivationFn; 8] = [
    ActivationFn::Silu,
    ActivationFn::GeluTanh,
    ActivationFn::Gelu,
    ActivationFn::GeluQuick,
    ActivationFn::Relu,
    ActivationFn::Relu2,
    ActivationFn::Sigmoid,
    ActivationFn::Clamped { limit: 7.0, alpha: 1.702 },
];

/// What one activation makes of `x`, in every set.
fn activate_all(activation: ActivationFn, x: &[f32]) -> Vec<f32> {
    let mut up = Rows::new(1, x.len());
    up.row_mut(0)[..x.len()].copy_from_slice(x);
    let got = same_in_all_sets("activate", |team| {
        let mut out = Activations::new(1, x.len(), false);
        match activation {
            ActivationFn::Clamped { .. } => {
                let zero = Rows::new(1, x.len());
                team.activate(Some(&up), &zero, activation, 1, &mut out);
            }
            _ => team.activate(None, &up, activation, 1, &mut out),
        }
        held(&out, 1).0
    });
    got[..x.len()].iter().map(|b| f32::from_bits(*b)).collect()
}

#[test]
fn tanh_and_erf_keep_the_error_they_state() {
    // By the activations and the soft cap that are made of them: no other way leads to them from outside a kernel.
    let x: Vec<f32> = (-4000..=4000).map(|i| i as f32 / 500.0).collect();
    for (activation, slope) in [(ActivationFn::Gelu, 0.5), (ActivationFn::GeluTanh, 0.5)] {
        for (x, got) in x.iter().zip(activate_all(activation, &x)) {
            let want = activation64(activation, *x as f64);
            // The error of erf or tanh itself, 3e-7, times x/2, and four roundings.
            let most = slope * x.abs() as f64 * 3e-7 + 2.5e-7 * want.abs() + 1e-9;
            assert!((got as f64 - want).abs() <= most, "{activation:?}({x}) = {got}, not {want}");
        }
    }
    let caps = scores_of(&x, &Scoring { cap: Some(1.0), ..Scoring::PLAIN });
    for (x, got) in x.iter().zip(&caps) {
        assert!(near(*got, (*x as f64).tanh(), 3e-7, 0.0), "tanh({x}) = {got}");
    }
}

/// Scores that are these numbers (a matrix of one column), after `logits`.
fn scores_of(x: &[f32], logits: &Scoring) -> Vec<f32> {
    let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
    let arena = pack(Format::F32, x.len(), 1, &bytes);
    let m = Panels::new(Format::F32, x.len(), 1, arena.bytes());
    let got = same_in_all_sets("head", |team| {
        let mut one = Rows::new(1, 1);
        one.row_mut(0)[0] = 1.0;
        let input = activations_of(team, &one, 1, 1);
        let mut out = vec![0.0; x.len()];
        let scores = team.head(&m, &input, logits, &mut [ScoreRequest::All(&mut out)]);
        assert!(matches!(scores[..], [Scores::All(_)]));
        out.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    });
    got.into_iter().map(f32::from_bits).collect()
}

#[test]
fn activations_are_their_formulas() {
    let x: Vec<f32> =
        (-300..=300).map(|i| i as f32 / 20.0).chain([0.0, -0.0, 1e-30, 60.0, -60.0]).collect();
    for activation in ACTIVATIONS {
        for (x, got) in x.iter().zip(activate_all(activation, &x)) {
            let want = activation64(activation, *x as f64);
            assert!(near(got, want, 2e-6, 2e-6), "{activation:?}({x}) = {got}, not {want}");
        }
    }
}

#[test]
fn what_is_not_finite_stays_so_through_every_activation_and_cap() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for activation in ACTIVATIONS {
            let got = activate_all(activation, &[1.0, bad, 2.0]);
            assert!(
                got[0].is_finite() && !got[1].is_finite() && got[2].is_finite(),
                "{activation:?} of {bad}: {got:?}"
            );
        }
        let mut gate = Rows::new(1, 1);
        gate.row_mut(0)[0] = 0.5;
        let mut up = Rows::new(1, 1);
        up.row_mut(0)[0] = bad;
        for activation in ACTIVATIONS {
            let got = same_in_all_sets("activate", |team| {
                let mut out = Activations::new(1, 1, false);
                team.activate(Some(&gate), &up, activation, 1, &mut out);
                out.row(0)[0].to_bits()
            });
            assert!(!f32::from_bits(got).is_finite(), "{activation:?} times {bad}");
        }
        let arena = pack(
            Format::F32,
            2,
            1,
            &[1f32, bad].iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>(),
        );
        let m = Panels::new(Format::F32, 2, 1, arena.bytes());
        for set in KernelSet::available() {
            let mut team = Team::new(set, 1, 2, false).unwrap();
            let mut one = Rows::new(1, 1);
            one.row_mut(0)[0] = 1.0;
            let input = activations_of(&mut team, &one, 1, 1);
            let capped = Scoring { cap: Some(30.0), ..Scoring::PLAIN };
            assert_eq!(
                team.head(&m, &input, &capped, &mut [ScoreRequest::Argmax]),
                [Scores::NotFinite],
                "{set:?}: a cap of {bad}"
            );
        }
    }
}

#[test]
fn gate_and_up_are_activated_with_their_biases_as_rows_and_as_blocks() {
    let mut random = Random(21);
    let k = 21;
    for (width, quantized) in [(19, false), (33, false), (96, true), (160, true)] {
        let (gate, up) = (Made::new(&mut random, width, k), Made::new(&mut random, width, k));
        // Panels in turn.
        let both: Vec<u8> = gate
            .arena
            .bytes()
            .chunks(panel_bytes(Format::F32, k))
            .zip(up.arena.bytes().chunks(panel_bytes(Format::F32, k)))
            .flat_map(|(g, u)| [g, u].concat())
            .collect();
        let m = Panels::new(Format::F32, 2 * padded(width), k, &both);
        let (gate_bias, up_bias) =
            (padded_floats(&mut random, width), padded_floats(&mut random, width));
        let x = rows_of(&mut random, ROWS, k);
        for activation in ACTIVATIONS {
            for bias in [None, Some(())] {
                let got = same_in_all_sets("gate_up", |team| {
                    let input = activations_of(team, &x, ROWS, k);
                    let mut fused = Activations::new(ROWS, width, quantized);
                    team.gate_up(&m, &input, ROWS, activation, &mut fused);
                    // The same from rows.
                    let (mut g, mut u) = (Rows::new(ROWS, width), Rows::new(ROWS, width));
                    let of = |b: &[f32]| bias.map(|_| b.to_vec());
                    team.product(&gate.panels(), &input, ROWS, of(&gate_bias).as_deref(), &mut g);
                    team.product(&up.panels(), &input, ROWS, of(&up_bias).as_deref(), &mut u);
                    let mut unfused = Activations::new(ROWS, width, quantized);
                    team.activate(Some(&g), &u, activation, ROWS, &mut unfused);
                    let (fused, unfused) = (held(&fused, ROWS), held(&unfused, ROWS));
                    if bias.is_none() {
                        assert_eq!(fused.1, unfused.1, "{activation:?}: blocks");
                        assert!(quantized || fused.0 == unfused.0, "{activation:?}: rows");
                    }
                    unfused.0
                });
                for r in 0..ROWS {
                    let (g, u) = (gate.product(x.row(r)), up.product(x.row(r)));
                    for c in 0..width {
                        let bias = |b: &[f32]| if bias.is_some() { b[c] as f64 } else { 0.0 };
                        let want =
                            gated64(activation, g[c] + bias(&gate_bias), u[c] + bias(&up_bias));
                        let got = f32::from_bits(got[r * padded(width) + c]);
                        let largest = (g[c].abs() + 1.0) * (u[c].abs() + 1.0) * (g[c].abs() + 1.0);
                        assert!(
                            near(got, want, 1e-4, 1e-5 * largest),
                            "{activation:?} {r},{c}: {got} {want}"
                        );
                    }
                }
            }
        }
    }
}

/// A norm in f64.
fn norm64(by: &NormWeights, n: usize, x: &[f32]) -> Vec<f64> {
    let x: Vec<f64> = x[..n].iter().map(|x| *x as f64).collect();
    let mean_of = |x: &[f64]| x.iter().sum::<f64>() / n as f64;
    let mean = if by.centred { mean_of(&x) } else { 0.0 };
    let variance = mean_of(&x.iter().map(|x| (x - mean) * (x - mean)).collect::<Vec<_>>());
    let scale = 1.0 / (variance + by.epsilon as f64).sqrt();
    (0..n)
        .map(|i| {
            (x[i] - mean) * scale * by.weights[i] as f64 + by.bias.map_or(0.0, |b| b[i] as f64)
        })
        .collect()
}

#[test]
fn norms_of_every_kind_into_activations_in_place_and_behind_a_branch() {
    let mut random = Random(8);
    for n in [1, 15, 17, 32, 100] {
        let (x, branch) = (rows_of(&mut random, ROWS, n), rows_of(&mut random, ROWS, n));
        let (w, b) = (padded_floats(&mut random, n), padded_floats(&mut random, n));
        for by in [
            NormWeights::rms(&w, 1e-5),
            NormWeights { weights: &w, bias: Some(&b), epsilon: 1e-5, centred: true },
            NormWeights { weights: &w, bias: None, epsilon: 1e-6, centred: true },
        ] {
            let what = format!("centred {} bias {}", by.centred, by.bias.is_some());
            let (normed, sum) = same_in_all_sets("norm", |team| {
                let mut out = Activations::new(ROWS, n, n.is_multiple_of(32));
                team.norm(&x, None, ROWS, &by, n, &mut out);
                let mut place = x.clone();
                team.norm_in_place(&mut place, ROWS, &by, n);
                assert_eq!(held(&out, ROWS).0, bits(&place), "{what}: in place");
                let (mut sum, mut plain) = (x.clone(), x.clone());
                team.add_normed(&mut branch.clone(), None, n, 0.25, ROWS, &mut plain);
                for r in 0..ROWS {
                    for c in 0..n {
                        assert_eq!(
                            plain.row(r)[c],
                            x.row(r)[c] + branch.row(r)[c] * 0.25,
                            "a branch without a norm"
                        );
                    }
                }
                team.add_normed(&mut branch.clone(), Some(&by), n, 0.5, ROWS, &mut sum);
                (bits(&place), bits(&sum))
            });
            for r in 0..ROWS {
                let (want, added) = (norm64(&by, n, x.row(r)), norm64(&by, n, branch.row(r)));
                for c in 0..padded(n) {
                    let [got, sum] = [&normed, &sum].map(|v| f32::from_bits(v[r * padded(n) + c]));
                    if c >= n {
                        assert_eq!((got, sum), (0.0, 0.0), "{what} {n}: padding");
                        continue;
                    }
                    assert!(
                        near(got, want[c], 1e-4, 2e-5),
                        "{what} {n} at {r},{c}: {got} {}",
                        want[c]
                    );
                    let want = x.row(r)[c] as f64 + 0.5 * added[c];
                    assert!(near(sum, want, 1e-4, 2e-5), "{what} {n} at {r},{c}: {sum} {want}");
                }
            }
        }
    }
}

#[test]
fn a_sum_of_squares_that_overflows_makes_a_row_nan_and_not_zero() {
    for (n, large) in [(32, 1e20f32), (17, f32::INFINITY), (1, -3e38)] {
        let weights = vec![1.0; padded(n)];
        for centred in [false, true] {
            // The variance of one number is 0.
            if n == 1 && centred {
                continue;
            }
            let by = NormWeights { weights: &weights, bias: None, epsilon: 1e-5, centred };
            let got = same_in_all_sets("norm", |team| {
                let mut x = Rows::new(2, n);
                x.row_mut(0)[..n].fill(1.0);
                x.row_mut(1)[..n].fill(1.0);
                x.row_mut(1)[n - 1] = large;
                team.norm_in_place(&mut x, 2, &by, n);
                (0..2)
                    .map(|r| x.row(r)[..n].iter().filter(|x| x.is_nan()).count())
                    .collect::<Vec<_>>()
            });
            assert_eq!(got, [0, n], "centred {centred} of {n} with {large}");
        }
    }
}

/// What a head does, for the tests of attention.
struct Case<'a> {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    element: KvElement,
    options: Attending<'a>,
}

/// Attention in f64 of queries that are scaled already. Keys and values: of each position all heads.
fn attend64(
    case: &Case,
    q: &[f32],
    position: usize,
    keys: &[Vec<f64>],
    values: &[Vec<f64>],
) -> Vec<f64> {
    let hd = case.head_dim;
    let mut out = Vec::new();
    for head in 0..case.heads {
        let kv = head / (case.heads / case.kv_heads) * hd;
        let first = (position + 1).saturating_sub(case.options.window.unwrap_or(usize::MAX));
        let scores: Vec<f64> = (first..=position)
            .map(|p| (0..hd).map(|d| q[head * hd + d] as f64 * keys[p][kv + d]).sum::<f64>())
            .map(|s| case.options.cap.map_or(s, |c| c as f64 * (s / c as f64).tanh()))
            .collect();
        let total: f64 = scores.iter().map(|s| s.exp()).sum::<f64>()
            + case.options.sinks.map_or(0.0, |s| (s[head] as f64).exp());
        for d in 0..hd {
            out.push(
                scores.iter().zip(first..).map(|(s, p)| s.exp() / total * values[p][kv + d]).sum(),
            );
        }
    }
    out
}

#[test]
fn windows_caps_and_sinks_are_the_textbooks_whatever_the_chunk() {
    let positions = 150;
    let pages: Vec<u32> = (0..14).map(|i| (i * 5 + 3) % 14).collect();
    let all: Vec<Row> = (0..positions as u32)
        .map(|p| Row { position: p, page: pages[p as usize / PAGE] })
        .collect();
    let sinks: Vec<f32> = (0..6).map(|i| i as f32 - 2.5).collect();
    let options = [
        Attending::plain(6),
        Attending { window: Some(1), ..Attending::plain(6) },
        Attending { window: Some(64), ..Attending::plain(6) },
        Attending { heads: 6, window: Some(75), cap: Some(2.0), sinks: Some(&sinks) },
        Attending { window: Some(1000), cap: Some(50.0), ..Attending::plain(6) },
        Attending { sinks: Some(&sinks), ..Attending::plain(6) },
    ];
    for (i, options) in options.into_iter().enumerate() {
        let (head_dim, element) =
            if i % 2 == 0 { (10, KvElement::F32) } else { (16, KvElement::F16) };
        let case = Case { heads: 6, kv_heads: 2, head_dim, element, options };
        let mut random = Random(i as u64);
        let (q, k, v) = (
            rows_of(&mut random, positions, 6 * head_dim),
            rows_of(&mut random, positions, 2 * head_dim),
            rows_of(&mut random, positions, 2 * head_dim),
        );
        // A layer of another shape before it: offsets are per layer.
        let layers = vec![KvLayer { kv_heads: 3, head_dim: 6 }, KvLayer { kv_heads: 2, head_dim }];
        let shape = KvShape::new(layers, element);
        let by = HeadsBy {
            norms: None,
            rotated_first: false,
            table: None,
            scale: 0.5,
            row_scales: None,
        };
        let mut scaled = q.clone();
        let got = same_in_all_sets("attention", |team| {
            let mut results = Vec::new();
            for (chunk, apart) in [(150, false), (1, true), (47, false)] {
                let mut kv = KvArena::new(shape.clone(), 14).unwrap();
                let mut result = Vec::new();
                for first in (0..positions).step_by(chunk) {
                    let rows = &all[first..(first + chunk).min(positions)];
                    let part = |x: &Rows, width: usize| {
                        let mut part = Rows::new(rows.len(), width);
                        (0..rows.len())
                            .for_each(|r| part.row_mut(r).copy_from_slice(x.row(first + r)));
                        part
                    };
                    let (mut q, k, v) =
                        (part(&q, 6 * head_dim), part(&k, 2 * head_dim), part(&v, 2 * head_dim));
                    team.heads(&mut q, &k, &v, rows, &by, &mut kv, 1, 6);
                    let mut units = Vec::new();
                    attention_units(
                        0,
                        0,
                        rows.len(),
                        if apart { 70 } else { 0 },
                        6,
                        2,
                        apart,
                        &mut units,
                    );
                    let mut out = Activations::new(rows.len(), 6 * head_dim, false);
                    team.attention(
                        &units,
                        rows,
                        &[Context::Pages(&pages)],
                        &kv,
                        1,
                        case.options,
                        &q,
                        &mut out,
                    );
                    let copy = kv.copy_layer(1, &pages);
                    let mut again = Activations::new(rows.len(), 6 * head_dim, false);
                    team.attention(
                        &units,
                        rows,
                        &[Context::Copy(&copy)],
                        &kv,
                        1,
                        case.options,
                        &q,
                        &mut again,
                    );
                    assert!(out.same_bits(&again), "a copy of the pages is as good");
                    result.extend(held(&out, rows.len()).0);
                }
                results.push(result);
            }
            assert!(
                results[0] == results[1] && results[0] == results[2],
                "options {i}: chunks differ"
            );
            results.remove(0)
        });
        (0..positions).for_each(|r| scaled.row_mut(r).iter_mut().for_each(|q| *q *= 0.5));
        let plain = |x: &Rows| -> Vec<Vec<f64>> {
            (0..positions).map(|r| x.row(r).iter().map(|x| *x as f64).collect()).collect()
        };
        let (keys, values) = (plain(&k), plain(&v));
        for r in [0, 1, 62, 63, 64, 65, 74, 75, 127, 128, 139, 149] {
            let want = attend64(&case, scaled.row(r), r, &keys, &values);
            for (c, want) in want.iter().enumerate() {
                let got = f32::from_bits(got[r * padded(6 * head_dim) + c]);
                let most = if case.element == KvElement::F16 { 0.02 } else { 1e-4 };
                assert!(
                    near(got, *want, most, most),
                    "options {i} row {r} column {c}: {got} {want}"
                );
            }
        }
    }
}

#[test]
fn heads_are_normed_rotated_and_scaled_as_in_f64() {
    let mut random = Random(77);
    for head_dim in [6, 16, 20, 32] {
        let (heads, kv_heads, count) = (5, 2, 18);
        let (q, k, v) = (
            rows_of(&mut random, count, heads * head_dim),
            rows_of(&mut random, count, kv_heads * head_dim),
            rows_of(&mut random, count, kv_heads * head_dim),
        );
        let table: Vec<f32> = (0..count)
            .flat_map(|p| {
                let angle = move |d: usize| p as f32 * 0.3 / (d / 2 + 1) as f32;
                let sign = |d: usize| if d.is_multiple_of(2) { -1.0 } else { 1.0 };
                let cos = (0..head_dim).map(move |d| angle(d).cos());
                cos.chain((0..head_dim).map(move |d| sign(d) * angle(d).sin())).collect::<Vec<_>>()
            })
            .collect();
        let shared = padded_floats(&mut random, head_dim);
        let own = padded_floats(&mut random, head_dim);
        let row_scale: Vec<f32> = (0..count).map(|r| 1.0 + r as f32 / 10.0).collect();
        let norms = [
            NormWeights::rms(&shared, 1e-6),
            NormWeights { weights: &own, bias: None, epsilon: 1e-6, centred: true },
        ];
        let rows: Vec<Row> =
            (0..count as u32).map(|p| Row { position: p, page: p / PAGE as u32 }).collect();
        for (norms, table, rotated_first) in [
            (Some(norms), Some(&table[..]), false),
            (Some(norms), Some(&table[..]), true),
            (Some(norms), None, false),
            (None, Some(&table[..]), false),
        ] {
            let by =
                HeadsBy { norms, rotated_first, table, scale: 0.25, row_scales: Some(&row_scale) };
            let shape = KvShape::uniform(2, kv_heads, head_dim, KvElement::F32);
            let (queries, kept) = same_in_all_sets("heads", |team| {
                let mut kv = KvArena::new(shape.clone(), 2).unwrap();
                let mut q = q.clone();
                team.heads(&mut q, &k, &v, &rows, &by, &mut kv, 1, heads);
                (bits(&q), kv.copy_layer(1, &[0, 1]))
            });
            let want = |x: &Rows, r: usize, head: usize, part: usize| -> Vec<f64> {
                let x = &x.row(r)[head * head_dim..][..head_dim];
                let mut y: Vec<f32> = x.to_vec();
                let normed = |y: &mut Vec<f32>| {
                    if let (Some(norms), true) = (norms, part < 2) {
                        *y = norm64(&norms[part], head_dim, y).iter().map(|y| *y as f32).collect();
                    }
                };
                if !rotated_first {
                    normed(&mut y);
                }
                if let (Some(table), true) = (table, part < 2) {
                    let at = &table[r * 2 * head_dim..];
                    y = (0..head_dim).map(|d| y[d] * at[d] + y[d ^ 1] * at[head_dim + d]).collect();
                }
                if rotated_first {
                    normed(&mut y);
                }
                let y: Vec<f64> = y.iter().map(|y| *y as f64).collect();
                y
            };
            for r in 0..count {
                for head in 0..heads {
                    for (d, want) in want(&q, r, head, 0).iter().enumerate() {
                        let got = f32::from_bits(
                            queries[r * padded(heads * head_dim) + head * head_dim + d],
                        );
                        assert!(
                            near(got, want * 0.25 * row_scale[r] as f64, 1e-4, 1e-5),
                            "q of row {r} head {head} at {d}"
                        );
                    }
                }
                for head in 0..kv_heads {
                    let (keys, values) = (want(&k, r, head, 1), want(&v, r, head, 2));
                    let page =
                        r / PAGE * shape.layer_bytes(1) + head * shape.layer_bytes(1) / kv_heads;
                    for d in 0..head_dim {
                        let at = |i: usize| {
                            f32::from_le_bytes(kept[page + 4 * i..][..4].try_into().unwrap())
                        };
                        assert!(
                            near(at(d * PAGE + r % PAGE), keys[d], 1e-4, 1e-5),
                            "k of row {r} head {head} at {d}"
                        );
                        let place = head_dim * PAGE + r % PAGE * padded(head_dim) + d;
                        assert!(
                            near(at(place), values[d], 1e-4, 1e-5),
                            "v of row {r} head {head} at {d}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn the_fused_path_with_biases_gives_the_bits_of_the_unfused_one() {
    let mut random = Random(5);
    for head_dim in [10, 16, 32] {
        let (heads, kv_heads, count, k) = (3, 1, 21, 27);
        let parts = [heads, kv_heads, kv_heads].map(|h| Made::new(&mut random, h * head_dim, k));
        let biases = [heads, kv_heads, kv_heads].map(|h| padded_floats(&mut random, h * head_dim));
        let x = rows_of(&mut random, count, k);
        let table = padded_floats(&mut random, count * 2 * head_dim);
        let rows: Vec<Row> =
            (0..count as u32).map(|p| Row { position: p, page: p / PAGE as u32 }).collect();
        for with_bias in [true, false] {
            let rotation = Rotation { table: &table, scale: 0.3 };
            let by = HeadsBy {
                norms: None,
                rotated_first: false,
                table: Some(&table),
                scale: 0.3,
                row_scales: None,
            };
            let biases = [0, 1, 2].map(|i| with_bias.then_some(&biases[i][..]));
            let shape = KvShape::uniform(1, kv_heads, head_dim, KvElement::F16);
            same_in_all_sets("qkv", |team| {
                let input = activations_of(team, &x, count, k);
                let mut kv = KvArena::new(shape.clone(), 2).unwrap();
                let mut fused = Rows::new(count, heads * head_dim);
                let panels = [0, 1, 2].map(|i| parts[i].panels());
                let all = [&panels[0], &panels[1], &panels[2]];
                team.qkv(all, biases, &input, &rows, &rotation, &mut kv, 0, &mut fused);
                let mut other = KvArena::new(shape.clone(), 2).unwrap();
                let mut made = [0, 1, 2].map(|i| Rows::new(count, parts[i].n));
                for i in 0..3 {
                    team.product(all[i], &input, count, biases[i], &mut made[i]);
                }
                let [mut q, k, v] = made;
                team.heads(&mut q, &k, &v, &rows, &by, &mut other, 0, heads);
                for r in 0..count {
                    let width = heads * head_dim;
                    let of = |x: &Rows| {
                        x.row(r)[..width].iter().map(|x| x.to_bits()).collect::<Vec<_>>()
                    };
                    assert_eq!(of(&fused), of(&q), "queries of row {r}");
                }
                let pages = kv.copy_layer(0, &[0, 1]);
                assert!(pages == other.copy_layer(0, &[0, 1]), "keys and values");
                (bits(&fused), pages)
            });
        }
    }
}

#[test]
fn scores_are_biased_scaled_and_capped_before_anyone_ranks_them() {
    let mut random = Random(31);
    let (n, k, rows) = (77, 13, 5);
    let m = Made::new(&mut random, n, k);
    let (x, bias) = (rows_of(&mut random, rows, k), padded_floats(&mut random, n));
    for logits in [
        Scoring::PLAIN,
        Scoring { bias: Some(&bias), scale: 0.125, cap: None },
        Scoring { bias: None, scale: 1.0, cap: Some(30.0) },
        Scoring { bias: Some(&bias), scale: -0.5, cap: Some(3.0) },
    ] {
        let all = same_in_all_sets("head", |team| {
            let input = activations_of(team, &x, rows, k);
            let mut places = vec![vec![0.0; n]; rows];
            let mut wants: Vec<ScoreRequest> =
                places.iter_mut().map(|p| ScoreRequest::All(p)).collect();
            team.head(&m.panels(), &input, &logits, &mut wants);
            let best =
                team.head(&m.panels(), &input, &logits, &mut [const { ScoreRequest::Argmax }; 5]);
            let top =
                team.head(&m.panels(), &input, &logits, &mut [const { ScoreRequest::TopK(9) }; 5]);
            for r in 0..rows {
                let mut ranked: Vec<(u32, f32)> =
                    places[r].iter().enumerate().map(|(i, s)| (i as u32, *s)).collect();
                ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                assert_eq!(
                    best[r],
                    Scores::Argmax(ranked[0].0, ranked[0].1),
                    "scale {}",
                    logits.scale
                );
                assert_eq!(top[r], Scores::TopK(ranked[..9].to_vec()), "scale {}", logits.scale);
            }
            places.concat().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        });
        for r in 0..rows {
            for (c, want) in m.product(x.row(r)).iter().enumerate() {
                let want = (want + logits.bias.map_or(0.0, |b| b[c] as f64)) * logits.scale as f64;
                let want = logits.cap.map_or(want, |cap| cap as f64 * (want / cap as f64).tanh());
                let got = f32::from_bits(all[r * n + c]);
                assert!(
                    near(got, want, 1e-4, 1e-4),
                    "scale {} at {r},{c}: {got} {want}",
                    logits.scale
                );
            }
        }
    }
}

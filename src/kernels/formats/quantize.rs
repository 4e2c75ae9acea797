//! From values to blocks, as ggml's reference does it (ggml-quants.c, `quantize_row_*_ref`, facts only): steps of the K types are searched for
//! so that the squared error, weighted, is least among some twenty candidates. In: whole blocks of finite values. Out: bytes as files have them.
//! Sums run in ggml's order; where its compiler fuses a multiplication with an addition a last bit may differ, and with it now and then a code.

use half::f16;

/// Nearest integer, ties to even.
fn nearest(x: f32) -> i32 {
    x.round_ties_even() as i32
}

fn put(out: &mut Vec<u8>, x: f32) -> f32 {
    let half = f16::from_f32(x);
    out.extend(half.to_le_bytes());
    half.to_f32()
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The value of largest magnitude, the first of equals.
fn largest(block: &[f32]) -> f32 {
    block.iter().fold(0f32, |m, x| if x.abs() > m.abs() { *x } else { m })
}

fn range(block: &[f32]) -> (f32, f32) {
    block.iter().fold((f32::MAX, f32::MIN), |(l, h), v| (l.min(*v), h.max(*v)))
}

pub(super) fn q8_0(block: &[f32], out: &mut Vec<u8>) {
    let d = largest(block).abs() / 127.0;
    let by = inverse(d);
    put(out, d);
    out.extend(block.iter().map(|v| (v * by).round() as i8 as u8));
}

pub(super) fn q4_0(block: &[f32], out: &mut Vec<u8>) {
    let d = largest(block) / -8.0;
    let by = inverse(d);
    let code = |v: f32| ((v * by + 8.5) as i8 as u8).min(15);
    put(out, d);
    out.extend((0..16).map(|i| code(block[i]) | code(block[i + 16]) << 4));
}

pub(super) fn q4_1(block: &[f32], out: &mut Vec<u8>) {
    let (low, high) = range(block);
    let d = (high - low) / 15.0;
    let by = inverse(d);
    let code = |v: f32| (((v - low) * by + 0.5) as u8).min(15);
    put(out, d);
    put(out, low);
    out.extend((0..16).map(|i| code(block[i]) | code(block[i + 16]) << 4));
}

/// Fifth bits, then nibbles.
fn put_five(codes: &[u8; 32], out: &mut Vec<u8>) {
    let fifth =
        codes.iter().enumerate().fold(0u32, |bits, (i, code)| bits | u32::from(code >> 4 & 1) << i);
    out.extend(fifth.to_le_bytes());
    out.extend((0..16).map(|i| codes[i] & 15 | codes[i + 16] << 4));
}

pub(super) fn q5_0(block: &[f32], out: &mut Vec<u8>) {
    let d = largest(block) / -16.0;
    let by = inverse(d);
    put(out, d);
    put_five(&std::array::from_fn(|i| ((block[i] * by + 16.5) as i8 as u8).min(31)), out);
}

pub(super) fn q5_1(block: &[f32], out: &mut Vec<u8>) {
    let (low, high) = range(block);
    let d = (high - low) / 31.0;
    let by = inverse(d);
    put(out, d);
    put(out, low);
    put_five(&std::array::from_fn(|i| (((block[i] - low) * by + 0.5) as u8).min(31)), out);
}

/// What a search found for a run of values: a step, a negated minimum, codes.
struct Found<const N: usize> {
    step: f32,
    minimum: f32,
    codes: [u8; N],
}

/// Of 32 values with codes to `most` (`make_qkx2_quants`): from the plain step on, `tries` + 1 candidates whose inverse steps are `first` + i / 10
/// + `most` over the range, each then fitted by least squares to the codes that it gives. A better one's minimum is where the next begin.
fn step_and_minimum(x: &[f32], most: i32, first: f32, tries: i32) -> Found<32> {
    let mean_square = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
    let weights: Vec<f32> = x.iter().map(|v| mean_square.sqrt() + v.abs()).collect();
    let (low, high) = range(x);
    let mut low = low.min(0.0);
    if high == low {
        return Found { step: 0.0, minimum: -low, codes: [0; 32] };
    }
    let (mut sum_w, mut sum_x) = (0f32, 0f32);
    for (w, x) in weights.iter().zip(x) {
        sum_w += w;
        sum_x += w * x;
    }
    let codes_of = |inverse: f32, low: f32| -> [u8; 32] {
        std::array::from_fn(|i| nearest(inverse * (x[i] - low)).clamp(0, most) as u8)
    };
    let error = |codes: &[u8; 32], step: f32, minimum: f32| {
        x.iter().zip(&weights).zip(codes).fold(0f32, |sum, ((x, w), l)| {
            let off = step * *l as f32 + minimum - x;
            sum + w * (off * off)
        })
    };
    let inverse = most as f32 / (high - low);
    let (mut step, mut codes) = (1.0 / inverse, codes_of(inverse, low));
    let mut least = error(&codes, step, low);
    for i in 0..=tries {
        let other = codes_of((first + 0.1 * i as f32 + most as f32) / (high - low), low);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0f32, 0f32, 0f32);
        for ((w, x), l) in weights.iter().zip(x).zip(other) {
            let l = l as f32;
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * x;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut fit = (
                (sum_w * sum_xl - sum_x * sum_l) / determinant,
                (sum_l2 * sum_x - sum_l * sum_xl) / determinant,
            );
            if fit.1 > 0.0 {
                fit = (sum_xl / sum_l2, 0.0);
            }
            let error = error(&other, fit.0, fit.1);
            if error < least {
                (step, low, codes, least) = (fit.0, fit.1, other, error);
            }
        }
    }
    Found { step, minimum: -low, codes }
}

/// Eight steps and minima in six bits each, and the f16 steps of these: the head of Q4_K and Q5_K. Returns the codes.
fn put_super(block: &[f32], most: i32, first: f32, tries: i32, out: &mut Vec<u8>) -> [u8; 256] {
    let parts: [Found<32>; 8] =
        std::array::from_fn(|j| step_and_minimum(&block[j * 32..][..32], most, first, tries));
    let (step, minimum) =
        parts.iter().fold((0f32, 0f32), |(s, m), part| (s.max(part.step), m.max(part.minimum)));
    let in_63 = |largest: f32| if largest > 0.0 { 63.0 / largest } else { 0.0 };
    let (by_step, by_minimum) = (in_63(step), in_63(minimum));
    let six = |x: f32| (nearest(x) as u8).min(63);
    let factors: [(u8, u8); 8] =
        std::array::from_fn(|j| (six(by_step * parts[j].step), six(by_minimum * parts[j].minimum)));
    let (d, dm) = (put(out, step / 63.0), put(out, minimum / 63.0));
    let mut packed = [0u8; 12];
    for (j, (s, m)) in factors.into_iter().enumerate() {
        if j < 4 {
            packed[j] = s;
            packed[j + 4] = m;
        } else {
            packed[j + 4] = s & 15 | (m & 15) << 4;
            packed[j - 4] |= (s >> 4) << 6;
            packed[j] |= (m >> 4) << 6;
        }
    }
    out.extend(packed);
    std::array::from_fn(|i| {
        let (s, m) = factors[i / 32];
        let (step, minimum) = (d * s as f32, dm * m as f32);
        // Where the step became 0 the search's codes stay: they mean nothing.
        if step == 0.0 {
            parts[i / 32].codes[i % 32]
        } else {
            nearest((block[i] + minimum) / step).clamp(0, most) as u8
        }
    })
}

pub(super) fn q4_k(block: &[f32], out: &mut Vec<u8>) {
    let codes = put_super(block, 15, -1.0, 20, out);
    out.extend(
        (0..128).map(|i| codes[i / 32 * 64 + i % 32] | codes[i / 32 * 64 + 32 + i % 32] << 4),
    );
}

pub(super) fn q5_k(block: &[f32], out: &mut Vec<u8>) {
    let codes = put_super(block, 31, -0.5, 15, out);
    out.extend((0..32).map(|i| (0..8).fold(0, |bits, j| bits | (codes[j * 32 + i] >> 4) << j)));
    out.extend(
        (0..128).map(|i| codes[i / 32 * 64 + i % 32] & 15 | codes[i / 32 * 64 + 32 + i % 32] << 4),
    );
}

/// Of 16 values with codes -32..=31, kept plus 32 (`make_qx_quants`, weights x²): 19 candidates around the plain one, each fitted to its codes.
fn step_of_16(x: &[f32]) -> Found<16> {
    let most = largest(x);
    if most.abs() < 1e-15 {
        return Found { step: 0.0, minimum: 0.0, codes: [0; 16] };
    }
    let codes_of = |inverse: f32| -> [i32; 16] {
        std::array::from_fn(|i| nearest(inverse * x[i]).clamp(-32, 31))
    };
    let sums = |codes: &[i32; 16]| {
        x.iter().zip(codes).fold((0f32, 0f32), |(lx, l2), (x, l)| {
            let (l, w) = (*l as f32, x * x);
            (lx + w * x * l, l2 + w * l * l)
        })
    };
    let mut codes = codes_of(-32.0 / most);
    let (lx, l2) = sums(&codes);
    let mut step = if l2 > 0.0 { lx / l2 } else { 0.0 };
    let mut best = step * lx;
    for i in (-9..=9).filter(|i| *i != 0) {
        let other = codes_of(-(32.0 + 0.1 * i as f32) / most);
        let (lx, l2) = sums(&other);
        if l2 > 0.0 && lx * lx > best * l2 {
            (step, codes) = (lx / l2, other);
            best = step * lx;
        }
    }
    Found { step, minimum: 0.0, codes: codes.map(|l| (l + 32) as u8) }
}

pub(super) fn q6_k(block: &[f32], out: &mut Vec<u8>) {
    let parts: [Found<16>; 16] = std::array::from_fn(|s| step_of_16(&block[s * 16..][..16]));
    let steps: [f32; 16] = std::array::from_fn(|s| parts[s].step);
    let most = largest(&steps);
    if most.abs() < 1e-15 {
        out.extend([0; 210]);
        return;
    }
    let by = -128.0 / most;
    let d = f16::from_f32(1.0 / by);
    let factors = steps.map(|s| nearest(by * s).min(127) as i8);
    let codes: [u8; 256] = std::array::from_fn(|i| {
        let step = d.to_f32() * factors[i / 16] as f32;
        // As in `put_super`.
        if step == 0.0 {
            parts[i / 16].codes[i % 16]
        } else {
            (nearest(block[i] / step).clamp(-32, 31) + 32) as u8
        }
    });
    let at = |half: usize, run: usize, i: usize| codes[half * 128 + run * 32 + i];
    for half in 0..2 {
        out.extend(
            (0..64).map(|i| at(half, i / 32, i % 32) & 15 | at(half, i / 32 + 2, i % 32) << 4),
        );
    }
    for half in 0..2 {
        out.extend(
            (0..32)
                .map(|i| (0..4).fold(0, |bits, run| bits | (at(half, run, i) >> 4) << (2 * run))),
        );
    }
    out.extend(factors.map(|f| f as u8));
    out.extend(d.to_le_bytes());
}

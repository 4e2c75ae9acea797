//! Elementwise mathematics over [`Isa`], with a fixed order of operations: exponential, hyperbolic tangent, error function, activations,
//! norms, quantization.
//! Rows are padded to multiples of 16 with zeros, so no routine has a tail.
#![allow(unsafe_code)]
#![allow(clippy::missing_safety_doc)]

use super::gemm::ActBlock;
use super::isa::Isa;

/// e^x. Relative error below 2e-7; 0 below -87, infinity above 88.5; NaN stays NaN.
#[inline(always)]
pub(crate) unsafe fn exp<S: Isa>(x: S::F) -> S::F {
    unsafe {
        // x = n ln 2 + r, |r| <= ln 2 / 2; adding 1.5 * 2^23 rounds to an integer.
        let magic = S::splat(12_582_912.0);
        let t = S::fma(x, S::splat(std::f32::consts::LOG2_E), magic);
        let n = S::sub(t, magic);
        // ln 2 in two parts, the first with few bits so that n * part is exact.
        let r = S::fma(n, S::splat(-0.693_359_4), x);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        // e^r by Taylor's coefficients adjusted for the interval (Cephes expf).
        let mut p = S::splat(1.987_569_1e-4);
        p = S::fma(p, r, S::splat(1.398_2e-3));
        p = S::fma(p, r, S::splat(8.333_452e-3));
        p = S::fma(p, r, S::splat(4.166_579_6e-2));
        p = S::fma(p, r, S::splat(1.666_666_6e-1));
        p = S::fma(p, r, S::splat(0.5));
        p = S::fma(p, S::mul(r, r), S::add(r, S::splat(1.0)));
        let e = S::mul(p, S::power(t));
        let e = S::select_gt(S::splat(-87.0), x, S::zero(), e);
        S::select_gt(x, S::splat(88.5), S::splat(f32::INFINITY), e)
    }
}

/// x / (1 + e^-x).
#[inline(always)]
pub(crate) unsafe fn silu<S: Isa>(x: S::F) -> S::F {
    unsafe { S::div(x, S::add(S::splat(1.0), exp::<S>(S::sub(S::zero(), x)))) }
}

/// x / (1 + e^-kx): with k = 1 silu, with k = 1.702 the sigmoid approximation of gelu.
#[inline(always)]
unsafe fn times_sigmoid<S: Isa>(x: S::F, kx: S::F) -> S::F {
    unsafe { S::div(x, S::add(S::splat(1.0), exp::<S>(S::sub(S::zero(), kx)))) }
}

/// tanh x as 1 - 2 / (e^2x + 1). Absolute error below 3e-7.
#[inline(always)]
pub(crate) unsafe fn tanh<S: Isa>(x: S::F) -> S::F {
    unsafe {
        let e = exp::<S>(S::add(x, x));
        S::sub(S::splat(1.0), S::div(S::splat(2.0), S::add(e, S::splat(1.0))))
    }
}

/// cap * tanh(x / cap).
#[inline(always)]
pub(crate) unsafe fn soft_cap<S: Isa>(x: S::F, cap: f32) -> S::F {
    unsafe { S::mul(S::splat(cap), tanh::<S>(S::div(x, S::splat(cap)))) }
}

/// The error function. Absolute error below 6e-7 (Abramowitz and Stegun 7.1.26, and what f32 adds to it).
#[inline(always)]
pub(crate) unsafe fn erf<S: Isa>(x: S::F) -> S::F {
    unsafe {
        let negative = S::sub(S::zero(), x);
        let z = S::max(x, negative);
        let t = S::div(S::splat(1.0), S::fma(z, S::splat(0.327_591_1), S::splat(1.0)));
        let mut p = S::splat(1.061_405_4);
        p = S::fma(p, t, S::splat(-1.453_152));
        p = S::fma(p, t, S::splat(1.421_413_7));
        p = S::fma(p, t, S::splat(-0.284_496_74));
        p = S::fma(p, t, S::splat(0.254_829_6));
        let tail = S::mul(S::mul(p, t), exp::<S>(S::mul(negative, x)));
        let y = S::sub(S::splat(1.0), tail);
        S::select_gt(S::zero(), x, S::sub(S::zero(), y), y)
    }
}

/// What a feed-forward layer does to its gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x * sigmoid(x).
    Silu,
    /// x * Phi(x), Phi by the error function.
    Gelu,
    /// x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x³))).
    GeluTanh,
    /// x * sigmoid(1.702 x).
    GeluQuick,
    /// max(x, 0).
    Relu,
    /// max(x, 0)².
    Relu2,
}

/// The activation of 16 values. A caller's loop over `kind` costs one predictable branch.
#[inline(always)]
pub(crate) unsafe fn activate<S: Isa>(kind: Activation, x: S::F) -> S::F {
    unsafe {
        match kind {
            Activation::Silu => silu::<S>(x),
            Activation::Gelu => {
                let half = S::mul(x, S::splat(0.5));
                S::fma(half, erf::<S>(S::mul(x, S::splat(std::f32::consts::FRAC_1_SQRT_2))), half)
            }
            // (1 + tanh u) / 2 is the sigmoid of 2u: no difference of nearly equal numbers.
            Activation::GeluTanh => {
                let cubed = S::mul(S::mul(x, x), x);
                let u = S::mul(S::fma(cubed, S::splat(0.044_715), x), S::splat(2.0 * 0.797_884_6));
                times_sigmoid::<S>(x, u)
            }
            Activation::GeluQuick => times_sigmoid::<S>(x, S::mul(x, S::splat(1.702))),
            // The comparison keeps NaN, which a maximum may not.
            Activation::Relu => S::select_gt(S::zero(), x, S::zero(), x),
            Activation::Relu2 => {
                let x = S::select_gt(S::zero(), x, S::zero(), x);
                S::mul(x, x)
            }
        }
    }
}

/// Rounds to bf16 if `on` (the emulated dtype), else leaves v alone.
#[inline(always)]
pub(crate) unsafe fn rounded<S: Isa>(on: bool, v: S::F) -> S::F {
    if on { unsafe { S::round_bf16(v) } } else { v }
}

/// Quantizes 32 values.
#[inline(always)]
pub(crate) unsafe fn quantize_block<S: Isa>(a: S::F, b: S::F, out: *mut ActBlock) {
    unsafe {
        let largest = S::magnitude(a, b);
        // Below, 127 / largest would overflow; the values then count as zeros.
        let scale = if largest >= 1e-30 { 127.0 / largest } else { 0.0 };
        let d = largest / 127.0;
        let sum = S::quantize(a, b, scale, (*out).q.as_mut_ptr());
        (*out).d = d;
        (*out).dsum = d * sum as f32;
        (*out).correction = -128 * sum;
    }
}

/// Quantizes `n` values (a multiple of 32).
#[inline(always)]
pub(crate) unsafe fn quantize_row<S: Isa>(x: *const f32, n: usize, out: *mut ActBlock) {
    unsafe {
        for b in 0..n / 32 {
            quantize_block::<S>(S::load(x.add(b * 32)), S::load(x.add(b * 32 + 16)), out.add(b));
        }
    }
}

/// 1 / sqrt(mean + epsilon); NaN where the sum overflowed: 1 / infinity would turn a row of huge numbers into zeros, and the numbers of a
/// damaged model into an answer.
#[inline(always)]
fn inverse_root(mean: f32, epsilon: f32) -> f32 {
    if mean.is_finite() { 1.0 / (mean + epsilon).sqrt() } else { f32::NAN }
}

/// (x - mean) / sqrt(variance + epsilon) * w + bias over `n` values in rows padded to 16; a null `bias` is none. Sums run in 16 lanes, then
/// a tree. What lies past `n` does not count, and becomes 0 as `w` and `bias` are 0 there.
#[inline(always)]
pub(crate) unsafe fn layer_norm<S: Isa>(
    x: *const f32,
    w: *const f32,
    bias: *const f32,
    n: usize,
    epsilon: f32,
    round: bool,
    out: *mut f32,
) {
    const LANES: [f32; 16] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];
    unsafe {
        let lanes = S::load(LANES.as_ptr());
        let chunks = n.div_ceil(16);
        let mut sums = S::zero();
        for i in 0..chunks {
            sums = S::add(sums, S::load(x.add(i * 16)));
        }
        let mean = S::splat(S::sum(sums) / n as f32);
        let mut squares = S::zero();
        for i in 0..chunks {
            let d = S::sub(S::load(x.add(i * 16)), mean);
            let d = S::select_gt(S::splat((n - i * 16) as f32), lanes, d, S::zero());
            squares = S::fma(d, d, squares);
        }
        let scale = S::splat(inverse_root(S::sum(squares) / n as f32, epsilon));
        for i in 0..chunks {
            let d = rounded::<S>(round, S::mul(S::sub(S::load(x.add(i * 16)), mean), scale));
            let v = rounded::<S>(round, S::mul(d, S::load(w.add(i * 16))));
            let v = if bias.is_null() { v } else { rounded::<S>(round, S::add(v, S::load(bias.add(i * 16)))) };
            S::store(out.add(i * 16), v);
        }
    }
}

/// x / sqrt(mean(x²) + epsilon) * w over `n` values in rows padded to 16; the sum of squares runs in 16 lanes, then a tree. `out` may be `x`.
#[inline(always)]
pub(crate) unsafe fn rms_norm<S: Isa>(x: *const f32, w: *const f32, n: usize, epsilon: f32, round: bool, out: *mut f32) {
    unsafe {
        let mut squares = S::zero();
        for i in 0..n.div_ceil(16) {
            let v = S::load(x.add(i * 16));
            squares = S::fma(v, v, squares);
        }
        let scale = S::splat(inverse_root(S::sum(squares) / n as f32, epsilon));
        for i in 0..n.div_ceil(16) {
            let v = rounded::<S>(round, S::mul(S::load(x.add(i * 16)), scale));
            S::store(out.add(i * 16), rounded::<S>(round, S::mul(v, S::load(w.add(i * 16)))));
        }
    }
}

//! Elementwise mathematics over [`Isa`], with a fixed order of operations: exponential, hyperbolic tangent, error function, activations,
//! norms, quantization.
//! Rows are padded to multiples of 16 with zeros, so no routine has a tail.
#![allow(unsafe_code)]
#![allow(clippy::missing_safety_doc, clippy::needless_range_loop)]

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

/// |x|; NaN stays NaN.
#[inline(always)]
unsafe fn magnitude<S: Isa>(x: S::F) -> S::F {
    unsafe { S::max(x, S::sub(S::zero(), x)) }
}

/// Horner's rule, the highest coefficient first.
#[inline(always)]
unsafe fn polynomial<S: Isa, const N: usize>(x: S::F, coefficients: [f32; N]) -> S::F {
    unsafe {
        let mut p = S::splat(coefficients[0]);
        for i in 1..N {
            p = S::fma(p, x, S::splat(coefficients[i]));
        }
        p
    }
}

/// tanh(x). Relative error below 3e-7; 1 and -1 at the infinities; NaN stays NaN.
#[inline(always)]
pub(crate) unsafe fn tanh<S: Isa>(x: S::F) -> S::F {
    unsafe {
        let y = magnitude::<S>(x);
        // Below 0.625 the odd polynomial of Cephes' tanhf, above 1 - 2 / (e^2x + 1).
        let z = S::mul(x, x);
        let p = polynomial::<S, 5>(
            z,
            [-5.704_989e-3, 2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1],
        );
        let small = S::fma(S::mul(p, z), x, x);
        let one = S::splat(1.0);
        let large = S::sub(one, S::div(S::splat(2.0), S::add(exp::<S>(S::add(y, y)), one)));
        let large = S::select_gt(S::zero(), x, S::sub(S::zero(), large), large);
        S::select_gt(S::splat(0.625), y, small, large)
    }
}

/// erf(x). Absolute error below 2e-7, relative error below 1 below 3e-7; 1 and -1 at the infinities; NaN stays NaN.
/// The coefficients interpolate erf(√z)/√z on [0, 1] and e^(x²) erfc(x) in t = 1/(1 + x/2) on [1, 6] at Chebyshev's points.
#[inline(always)]
pub(crate) unsafe fn erf<S: Isa>(x: S::F) -> S::F {
    unsafe {
        let (y, z) = (magnitude::<S>(x), S::mul(x, x));
        let p = polynomial::<S, 7>(
            z,
            [
                7.875_875e-5,
                -8.016_864_3e-4,
                5.189_087_2e-3,
                -2.685_421_1e-2,
                1.128_359_4e-1,
                -3.761_262_6e-1,
                std::f32::consts::FRAC_2_SQRT_PI,
            ],
        );
        let small = S::mul(p, x);
        let one = S::splat(1.0);
        let t = S::div(one, S::fma(y, S::splat(0.5), one));
        let q = polynomial::<S, 7>(
            t,
            [
                -8.630_241e-2,
                3.992_206e-2,
                2.850_288_4e-1,
                1.776_674_8e-1,
                3.035_771_5e-1,
                2.787_357_3e-1,
                2.117_253_2e-4,
            ],
        );
        let large = S::sub(one, S::mul(q, exp::<S>(S::sub(S::zero(), z))));
        let large = S::select_gt(S::zero(), x, S::sub(S::zero(), large), large);
        S::select_gt(one, y, small, large)
    }
}

/// c * tanh(x / c); not finite stays not finite (tanh would make an infinity c).
#[inline(always)]
pub(crate) unsafe fn soft_cap<S: Isa>(x: S::F, c: f32) -> S::F {
    unsafe { S::fma(x, S::zero(), S::mul(S::splat(c), tanh::<S>(S::mul(x, S::splat(1.0 / c))))) }
}

/// What a feed-forward layer does with its gate (or, without one, with its only product).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ActivationFn {
    /// x σ(x).
    Silu,
    /// x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))).
    GeluTanh,
    /// x/2 (1 + erf(x/√2)).
    Gelu,
    /// x σ(1.702 x).
    GeluQuick,
    /// max(x, 0).
    Relu,
    /// max(x, 0)².
    Relu2,
    /// σ(x).
    Sigmoid,
    /// gpt-oss: with g = min(gate, limit) and u = up within ±limit, (u + 1) g σ(alpha g) (transformers' modeling_gpt_oss.py).
    Clamped {
        /// Largest gate, and largest magnitude of up: 7.
        limit: f32,
        /// 1.702.
        alpha: f32,
    },
}

/// x / (1 + e^-kx): with k = 1 silu, with k = 1.702 the sigmoid approximation of gelu.
#[inline(always)]
unsafe fn times_sigmoid<S: Isa>(x: S::F, kx: S::F) -> S::F {
    unsafe { S::div(x, S::add(S::splat(1.0), exp::<S>(S::sub(S::zero(), kx)))) }
}

/// The activation of x; of [`ActivationFn::Clamped`] the gate's part. Not finite stays not finite.
#[inline(always)]
unsafe fn activated<S: Isa>(activation: ActivationFn, x: S::F) -> S::F {
    unsafe {
        match activation {
            ActivationFn::Silu => silu::<S>(x),
            // (1 + tanh u) / 2 is the sigmoid of 2u: no difference of nearly equal numbers.
            ActivationFn::GeluTanh => {
                let cubed = S::mul(S::mul(x, x), x);
                times_sigmoid::<S>(
                    x,
                    S::mul(S::fma(cubed, S::splat(0.044_715), x), S::splat(2.0 * 0.797_884_6)),
                )
            }
            ActivationFn::Gelu => {
                let half = S::mul(x, S::splat(0.5));
                S::fma(half, erf::<S>(S::mul(x, S::splat(std::f32::consts::FRAC_1_SQRT_2))), half)
            }
            ActivationFn::GeluQuick => times_sigmoid::<S>(x, S::mul(x, S::splat(1.702))),
            // x * 0 is 0 for what is finite, NaN for what is not.
            ActivationFn::Relu => S::fma(x, S::zero(), S::max(S::zero(), x)),
            ActivationFn::Relu2 => {
                let y = S::max(S::zero(), x);
                S::fma(x, S::zero(), S::mul(y, y))
            }
            ActivationFn::Sigmoid => S::fma(x, S::zero(), times_sigmoid::<S>(S::splat(1.0), x)),
            ActivationFn::Clamped { limit, alpha } => {
                let limit = S::splat(limit);
                let gate = S::fma(x, S::zero(), S::select_gt(x, limit, limit, x));
                times_sigmoid::<S>(gate, S::mul(gate, S::splat(alpha)))
            }
        }
    }
}

/// activation(gate) * up, rounded after each operation.
#[inline(always)]
pub(crate) unsafe fn gated<S: Isa>(
    activation: ActivationFn,
    gate: S::F,
    up: S::F,
    round: bool,
) -> S::F {
    unsafe {
        let gate = rounded::<S>(round, activated::<S>(activation, gate));
        let up = match activation {
            ActivationFn::Clamped { limit, .. } => {
                let (least, most) = (S::splat(-limit), S::splat(limit));
                let within = S::select_gt(up, most, most, S::select_gt(least, up, least, up));
                rounded::<S>(round, S::add(S::fma(up, S::zero(), within), S::splat(1.0)))
            }
            _ => up,
        };
        rounded::<S>(round, S::mul(gate, up))
    }
}

/// activation(x) alone.
#[inline(always)]
pub(crate) unsafe fn ungated<S: Isa>(activation: ActivationFn, x: S::F, round: bool) -> S::F {
    unsafe { rounded::<S>(round, activated::<S>(activation, x)) }
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
        let (first, last) = S::quantize(a, b, scale, (*out).q.as_mut_ptr());
        let sum = first + last;
        (*out).d = d;
        (*out).dsum = d * sum as f32;
        (*out).correction = -128 * sum;
        (*out).halves = [first as i16, last as i16];
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
            let v = if bias.is_null() {
                v
            } else {
                rounded::<S>(round, S::add(v, S::load(bias.add(i * 16))))
            };
            S::store(out.add(i * 16), v);
        }
    }
}

/// x / sqrt(mean(x²) + epsilon) * w over `n` values in rows padded to 16; the sum of squares runs in 16 lanes, then a tree. `out` may be `x`.
#[inline(always)]
pub(crate) unsafe fn rms_norm<S: Isa>(
    x: *const f32,
    w: *const f32,
    n: usize,
    epsilon: f32,
    round: bool,
    out: *mut f32,
) {
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

/// The numbers of the lanes.
pub(crate) const LANES: [f32; 16] =
    [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

//! Elementwise mathematics over [`Isa`], with a fixed order of operations: exponential, sigmoid-weighted product, RMS norm, quantization.
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

/// x / sqrt(mean(x²) + epsilon) * w over `n` values in rows padded to 16; the sum of squares runs in 16 lanes, then a tree.
#[inline(always)]
pub(crate) unsafe fn rms_norm<S: Isa>(x: *const f32, w: *const f32, n: usize, epsilon: f32, round: bool, out: *mut f32) {
    unsafe {
        let mut squares = S::zero();
        for i in 0..n.div_ceil(16) {
            let v = S::load(x.add(i * 16));
            squares = S::fma(v, v, squares);
        }
        let scale = S::splat(1.0 / (S::sum(squares) / n as f32 + epsilon).sqrt());
        for i in 0..n.div_ceil(16) {
            let v = rounded::<S>(round, S::mul(S::load(x.add(i * 16)), scale));
            S::store(out.add(i * 16), rounded::<S>(round, S::mul(v, S::load(w.add(i * 16)))));
        }
    }
}

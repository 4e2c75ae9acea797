//! [`Isa`] for x86: AVX2 + FMA + F16C, and AVX-512 F/BW/DQ/VL + VNNI. Nothing here decides anything: one intrinsic or two a method.
//! The methods carry no `target_feature` themselves: they are always inlined into functions that do (see `dispatch.rs`).
//! Over 500 lines: two instruction sets, a few lines a method.
#![allow(unsafe_code)]
#![allow(clippy::missing_safety_doc)]

use super::isa::Isa;
use core::arch::x86_64::*;

/// AVX2 + FMA + F16C: sixteen lanes are two registers.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// AVX-512 F/BW/DQ/VL + VNNI: sixteen lanes are one register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

type Two = [__m256; 2];

/// Helpers are functions, not closures: a closure does not get its caller's CPU features, and then nothing in it is inlined.
#[inline(always)]
unsafe fn h_load(p: *const u16) -> __m256 {
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p as *const __m128i)) }
}

#[inline(always)]
unsafe fn to_bf16(v: __m256) -> __m256 {
    unsafe {
        let b = _mm256_castps_si256(v);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(b), _mm256_set1_epi32(1));
        let r = _mm256_add_epi32(b, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let r = _mm256_castsi256_ps(_mm256_and_si256(r, _mm256_set1_epi32(0xffff_0000u32 as i32)));
        _mm256_blendv_ps(r, v, _mm256_cmp_ps::<_CMP_UNORD_Q>(v, v))
    }
}

#[inline(always)]
unsafe fn power_of(t: __m256) -> __m256 {
    unsafe {
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(
            _mm256_castps_si256(t),
            _mm256_set1_epi32(127),
        )))
    }
}

#[inline(always)]
unsafe fn abs_bits(v: __m256) -> __m256i {
    unsafe { _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7fff_ffff)) }
}

#[inline(always)]
unsafe fn scaled(v: __m256, s: __m256) -> __m256i {
    unsafe { _mm256_cvtps_epi32(_mm256_mul_ps(v, s)) }
}

#[inline(always)]
unsafe fn half_signed(raised: __m256i) -> (__m256i, __m256i) {
    unsafe {
        let w = _mm256_xor_si256(raised, _mm256_set1_epi8(-128));
        (_mm256_abs_epi8(w), w)
    }
}

/// Of eight signed bytes each twice, in 16 bits.
#[inline(always)]
unsafe fn twice(bytes: __m128i) -> __m256i {
    unsafe {
        let v = _mm256_cvtepi8_epi32(bytes);
        _mm256_blend_epi16::<0xaa>(v, _mm256_slli_epi32::<16>(v))
    }
}

/// 2^(e - 128) of eight bytes; the two smallest are no normal numbers.
#[inline(always)]
unsafe fn half_e8m0(p: *const u8) -> __m256 {
    unsafe {
        let e = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p as *const __m128i));
        let one = _mm256_set1_epi32(1);
        let small = _mm256_slli_epi32::<21>(_mm256_add_epi32(one, _mm256_min_epi32(e, one)));
        _mm256_castsi256_ps(_mm256_max_epi32(
            _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, one)),
            small,
        ))
    }
}

#[inline(always)]
unsafe fn half_dot8(s: __m256i, (magnitude, signed): (__m256i, __m256i), x: __m256i) -> __m256i {
    unsafe {
        let products = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, signed));
        _mm256_add_epi32(s, _mm256_madd_epi16(products, _mm256_set1_epi16(1)))
    }
}

impl Isa for Avx2 {
    const NAME: &'static str = "x86-avx2";
    const ROWS: usize = 6;
    const ATTENTION_ROWS: usize = 6;
    const QUANT_ROWS: usize = 4;
    const DIRECT_ROWS: usize = 4;
    /// Two to four rows from memory: Q6_K and Q3_K 1.2 to 1.4 times as fast as unpacked first.
    const QUANT_DIRECT_ROWS: usize = 4;
    /// One row, two threads, Zen 3, from memory: Q6_K 10.9 to 18.5 GB/s, Q5_K 11.9 to 17, Q4_K 15.6 to 18, Q8_0 14.5 to 16.5; 1 to 8 KiB are alike.
    const NEAR: usize = 2048;
    type F = Two;
    type I = [__m256i; 2];
    /// (magnitudes, signed values) of each half.
    type Line8 = [(__m256i, __m256i); 2];
    const LINE8: usize = 128;
    type B = [__m256i; 2];
    type Sum4 = [__m256i; 2];
    const SHORT: bool = true;

    #[inline(always)]
    unsafe fn zero() -> Two {
        unsafe { [_mm256_setzero_ps(); 2] }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Two {
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Two {
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Two) {
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Two {
        unsafe { [h_load(p), h_load(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: Two) {
        unsafe {
            _mm_storeu_si128(p as *mut __m128i, _mm256_cvtps_ph::<0>(v[0]));
            _mm_storeu_si128(p.add(8) as *mut __m128i, _mm256_cvtps_ph::<0>(v[1]));
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> (Two, Two) {
        unsafe {
            let a = _mm256_loadu_si256(p as *const __m256i);
            let b = _mm256_loadu_si256(p.add(16) as *const __m256i);
            let mask = _mm256_set1_epi32(0xffff_0000u32 as i32);
            let low = [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(a)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(b)),
            ];
            (
                low,
                [
                    _mm256_castsi256_ps(_mm256_and_si256(a, mask)),
                    _mm256_castsi256_ps(_mm256_and_si256(b, mask)),
                ],
            )
        }
    }
    #[inline(always)]
    unsafe fn round_bf16(v: Two) -> Two {
        unsafe { [to_bf16(v[0]), to_bf16(v[1])] }
    }
    #[inline(always)]
    unsafe fn add(a: Two, b: Two) -> Two {
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn sub(a: Two, b: Two) -> Two {
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn mul(a: Two, b: Two) -> Two {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn div(a: Two, b: Two) -> Two {
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn fma(a: Two, b: Two, c: Two) -> Two {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn max(a: Two, b: Two) -> Two {
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn select_gt(a: Two, b: Two, x: Two, y: Two) -> Two {
        unsafe {
            [
                _mm256_blendv_ps(y[0], x[0], _mm256_cmp_ps::<_CMP_GT_OQ>(a[0], b[0])),
                _mm256_blendv_ps(y[1], x[1], _mm256_cmp_ps::<_CMP_GT_OQ>(a[1], b[1])),
            ]
        }
    }
    #[inline(always)]
    unsafe fn any_ge(a: Two, b: Two) -> bool {
        unsafe {
            let m = _mm256_or_ps(
                _mm256_cmp_ps::<_CMP_GE_OQ>(a[0], b[0]),
                _mm256_cmp_ps::<_CMP_GE_OQ>(a[1], b[1]),
            );
            _mm256_movemask_ps(m) != 0
        }
    }
    #[inline(always)]
    unsafe fn swap_pairs(v: Two) -> Two {
        unsafe { [_mm256_permute_ps::<0xb1>(v[0]), _mm256_permute_ps::<0xb1>(v[1])] }
    }
    #[inline(always)]
    unsafe fn power(t: Two) -> Two {
        unsafe { [power_of(t[0]), power_of(t[1])] }
    }
    #[inline(always)]
    unsafe fn sum(v: Two) -> f32 {
        unsafe {
            let v = _mm256_add_ps(v[0], v[1]);
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }
    #[inline(always)]
    unsafe fn largest(v: Two) -> f32 {
        unsafe {
            let v = _mm256_max_ps(v[0], v[1]);
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }
    }
    #[inline(always)]
    unsafe fn magnitude(a: Two, b: Two) -> f32 {
        unsafe {
            let v = _mm256_max_epi32(abs_bits(a[0]), abs_bits(a[1]));
            let v = _mm256_max_epi32(v, _mm256_max_epi32(abs_bits(b[0]), abs_bits(b[1])));
            let v = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            let v = _mm_max_epi32(v, _mm_shuffle_epi32::<0x4e>(v));
            let v = _mm_max_epi32(v, _mm_shuffle_epi32::<0xb1>(v));
            f32::from_bits(_mm_cvtsi128_si32(v) as u32)
        }
    }
    #[inline(always)]
    unsafe fn quantize(a: Two, b: Two, scale: f32, out: *mut i8) -> (i32, i32) {
        unsafe {
            let s = _mm256_set1_ps(scale);
            let (i0, i1, i2, i3) =
                (scaled(a[0], s), scaled(a[1], s), scaled(b[0], s), scaled(b[1], s));
            let packed = _mm256_packs_epi16(_mm256_packs_epi32(i0, i1), _mm256_packs_epi32(i2, i3));
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            _mm256_storeu_si256(out as *mut __m256i, _mm256_permutevar8x32_epi32(packed, order));
            let t = _mm256_hadd_epi32(_mm256_add_epi32(i0, i1), _mm256_add_epi32(i2, i3));
            let t = _mm_add_epi32(_mm256_castsi256_si128(t), _mm256_extracti128_si256::<1>(t));
            let t = _mm_hadd_epi32(t, t);
            (_mm_cvtsi128_si32(t), _mm_extract_epi32::<1>(t))
        }
    }
    #[inline(always)]
    unsafe fn to_float(v: [__m256i; 2]) -> Two {
        unsafe { [_mm256_cvtepi32_ps(v[0]), _mm256_cvtepi32_ps(v[1])] }
    }
    #[inline(always)]
    unsafe fn load_i(p: *const i32) -> [__m256i; 2] {
        unsafe { Self::load_b(p as *const u8) }
    }
    #[inline(always)]
    unsafe fn store_i(p: *mut i32, v: [__m256i; 2]) {
        unsafe { Self::store_b(p as *mut u8, v) }
    }
    #[inline(always)]
    unsafe fn load_line8(p: *const u8) -> [(__m256i, __m256i); 2] {
        unsafe {
            let (a, b) = (Self::load_b(p), Self::load_b(p.add(64)));
            [(a[0], b[0]), (a[1], b[1])]
        }
    }
    #[inline(always)]
    unsafe fn store_line8(p: *mut u8, v: [(__m256i, __m256i); 2]) {
        unsafe {
            Self::store_b(p, [v[0].0, v[1].0]);
            Self::store_b(p.add(64), [v[0].1, v[1].1]);
        }
    }
    #[inline(always)]
    unsafe fn start8(_correction: i32) -> [__m256i; 2] {
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    /// |w| ≤ 128 and |x| ≤ 127, so a pair's sum is at most 32 512: `maddubs` cannot saturate.
    #[inline(always)]
    unsafe fn dot8(sum: [__m256i; 2], line: [(__m256i, __m256i); 2], x: i32) -> [__m256i; 2] {
        unsafe {
            let x = _mm256_set1_epi32(x);
            [half_dot8(sum[0], line[0], x), half_dot8(sum[1], line[1], x)]
        }
    }
    #[inline(always)]
    unsafe fn signed(b: [__m256i; 2]) -> [(__m256i, __m256i); 2] {
        unsafe { [half_signed(b[0]), half_signed(b[1])] }
    }
    #[inline(always)]
    unsafe fn load_b(p: *const u8) -> [__m256i; 2] {
        unsafe {
            [
                _mm256_loadu_si256(p as *const __m256i),
                _mm256_loadu_si256(p.add(32) as *const __m256i),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store_b(p: *mut u8, v: [__m256i; 2]) {
        unsafe {
            _mm256_storeu_si256(p as *mut __m256i, v[0]);
            _mm256_storeu_si256(p.add(32) as *mut __m256i, v[1]);
        }
    }
    #[inline(always)]
    unsafe fn nibbles(p: *const u8) -> ([__m256i; 2], [__m256i; 2]) {
        unsafe {
            let w = Self::load_b(p);
            (Self::and_b(w, 15), Self::and_b(Self::shr_b(w, 4), 15))
        }
    }
    #[inline(always)]
    unsafe fn and_b(v: [__m256i; 2], mask: u8) -> [__m256i; 2] {
        unsafe {
            let mask = _mm256_set1_epi8(mask as i8);
            [_mm256_and_si256(v[0], mask), _mm256_and_si256(v[1], mask)]
        }
    }
    #[inline(always)]
    unsafe fn or_b(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn shl_b(v: [__m256i; 2], n: i32) -> [__m256i; 2] {
        unsafe {
            let n = _mm_cvtsi32_si128(n);
            [_mm256_sll_epi16(v[0], n), _mm256_sll_epi16(v[1], n)]
        }
    }
    #[inline(always)]
    unsafe fn shr_b(v: [__m256i; 2], n: i32) -> [__m256i; 2] {
        unsafe {
            let n = _mm_cvtsi32_si128(n);
            [_mm256_srl_epi16(v[0], n), _mm256_srl_epi16(v[1], n)]
        }
    }
    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], v: [__m256i; 2]) -> [__m256i; 2] {
        unsafe {
            let table =
                _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr() as *const __m128i));
            [_mm256_shuffle_epi8(table, v[0]), _mm256_shuffle_epi8(table, v[1])]
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Two {
        unsafe {
            let (a, b) =
                (_mm_loadl_epi64(p as *const __m128i), _mm_loadl_epi64(p.add(8) as *const __m128i));
            [
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(a)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b)),
            ]
        }
    }
    #[inline(always)]
    /// Each factor twice, in 16 bits.
    unsafe fn factors(p: *const i8) -> [__m256i; 2] {
        unsafe {
            [
                twice(_mm_loadl_epi64(p as *const __m128i)),
                twice(_mm_loadl_epi64(p.add(8) as *const __m128i)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_e8m0(p: *const u8) -> Two {
        unsafe { [half_e8m0(p), half_e8m0(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn factors4(p: *const u8, high: bool) -> [__m256i; 2] {
        unsafe {
            let v = _mm_loadu_si128(p as *const __m128i);
            let v = _mm_and_si128(if high { _mm_srli_epi16::<4>(v) } else { v }, _mm_set1_epi8(15));
            [twice(v), twice(_mm_unpackhi_epi64(v, v))]
        }
    }
    #[inline(always)]
    unsafe fn pair(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        unsafe { [_mm256_blend_epi16::<0xaa>(a[0], b[0]), _mm256_blend_epi16::<0xaa>(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn scale_pairs(pairs: [__m256i; 2], by: i16) -> [__m256i; 2] {
        unsafe {
            let by = _mm256_set1_epi16(by);
            [_mm256_mullo_epi16(pairs[0], by), _mm256_mullo_epi16(pairs[1], by)]
        }
    }
    #[inline(always)]
    unsafe fn dot_pairs(total: [__m256i; 2], pairs: [__m256i; 2], halves: i32) -> [__m256i; 2] {
        unsafe { Self::flush_by(total, pairs, [_mm256_set1_epi32(halves); 2]) }
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> [__m256i; 2] {
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    unsafe fn splat_over(x: i32, n: u32) -> [__m256i; 2] {
        unsafe { [_mm256_sra_epi32(_mm256_set1_epi32(x), _mm_cvtsi32_si128(n as i32)); 2] }
    }
    #[inline(always)]
    unsafe fn start4() -> [__m256i; 2] {
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    /// 16-bit sums: a whole part of codes to 15 (16 × 15 × 127 = 30 480), half a part of codes to 31, two lines of codes to 63 fit.
    #[inline(always)]
    unsafe fn dot2(sum: [__m256i; 2], line: [__m256i; 2], x: i32) -> [__m256i; 2] {
        unsafe {
            let x = _mm256_set1_epi32(x);
            [
                _mm256_add_epi16(sum[0], _mm256_maddubs_epi16(line[0], x)),
                _mm256_add_epi16(sum[1], _mm256_maddubs_epi16(line[1], x)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn flush(total: [__m256i; 2], sum: [__m256i; 2]) -> [__m256i; 2] {
        unsafe { Self::flush_by(total, sum, [_mm256_set1_epi16(1); 2]) }
    }
    #[inline(always)]
    unsafe fn flush_by(
        total: [__m256i; 2],
        sum: [__m256i; 2],
        factors: [__m256i; 2],
    ) -> [__m256i; 2] {
        unsafe {
            [
                _mm256_add_epi32(total[0], _mm256_madd_epi16(sum[0], factors[0])),
                _mm256_add_epi32(total[1], _mm256_madd_epi16(sum[1], factors[1])),
            ]
        }
    }
    #[inline(always)]
    unsafe fn finish4(sum: [__m256i; 2]) -> [__m256i; 2] {
        unsafe {
            let ones = _mm256_set1_epi16(1);
            [_mm256_madd_epi16(sum[0], ones), _mm256_madd_epi16(sum[1], ones)]
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p as *const i8) }
    }
}

impl Isa for Avx512 {
    const NAME: &'static str = "x86-avx512";
    const ROWS: usize = 8;
    const ATTENTION_ROWS: usize = 8;
    const QUANT_ROWS: usize = 8;
    const DIRECT_ROWS: usize = 16;
    const QUANT_DIRECT_ROWS: usize = usize::MAX;
    const TWO_PANELS: usize = 24;
    const QUANT_ROWS_OF_TWO: usize = 6;
    type F = __m512;
    type I = __m512i;
    type Line8 = __m512i;
    const LINE8: usize = 64;
    type B = __m512i;
    type Sum4 = __m512i;
    const SHORT: bool = false;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p as *const __m256i)) }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: __m512) {
        unsafe { _mm256_storeu_si256(p as *mut __m256i, _mm512_cvtps_ph::<0>(v)) }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> (__m512, __m512) {
        unsafe {
            let w = _mm512_loadu_si512(p as *const __m512i);
            let high = _mm512_and_si512(w, _mm512_set1_epi32(0xffff_0000u32 as i32));
            (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(w)), _mm512_castsi512_ps(high))
        }
    }
    #[inline(always)]
    unsafe fn round_bf16(v: __m512) -> __m512 {
        unsafe {
            let b = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(b), _mm512_set1_epi32(1));
            let r = _mm512_add_epi32(b, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let r =
                _mm512_castsi512_ps(_mm512_and_si512(r, _mm512_set1_epi32(0xffff_0000u32 as i32)));
            _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v), r, v)
        }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn select_gt(a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b), y, x) }
    }
    #[inline(always)]
    unsafe fn any_ge(a: __m512, b: __m512) -> bool {
        unsafe { _mm512_cmp_ps_mask::<_CMP_GE_OQ>(a, b) != 0 }
    }
    #[inline(always)]
    unsafe fn swap_pairs(v: __m512) -> __m512 {
        unsafe { _mm512_permute_ps::<0xb1>(v) }
    }
    #[inline(always)]
    unsafe fn power(t: __m512) -> __m512 {
        unsafe {
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(
                _mm512_castps_si512(t),
                _mm512_set1_epi32(127),
            )))
        }
    }
    #[inline(always)]
    unsafe fn sum(v: __m512) -> f32 {
        unsafe { Avx2::sum([_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v)]) }
    }
    #[inline(always)]
    unsafe fn largest(v: __m512) -> f32 {
        unsafe { Avx2::largest([_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v)]) }
    }
    #[inline(always)]
    unsafe fn magnitude(a: __m512, b: __m512) -> f32 {
        unsafe {
            let mask = _mm512_set1_epi32(0x7fff_ffff);
            let (a, b) = (
                _mm512_and_si512(_mm512_castps_si512(a), mask),
                _mm512_and_si512(_mm512_castps_si512(b), mask),
            );
            f32::from_bits(_mm512_reduce_max_epi32(_mm512_max_epi32(a, b)) as u32)
        }
    }
    #[inline(always)]
    unsafe fn quantize(a: __m512, b: __m512, scale: f32, out: *mut i8) -> (i32, i32) {
        unsafe {
            let s = _mm512_set1_ps(scale);
            let (i0, i1) =
                (_mm512_cvtps_epi32(_mm512_mul_ps(a, s)), _mm512_cvtps_epi32(_mm512_mul_ps(b, s)));
            _mm_storeu_si128(out as *mut __m128i, _mm512_cvtsepi32_epi8(i0));
            _mm_storeu_si128(out.add(16) as *mut __m128i, _mm512_cvtsepi32_epi8(i1));
            (_mm512_reduce_add_epi32(i0), _mm512_reduce_add_epi32(i1))
        }
    }
    #[inline(always)]
    unsafe fn to_float(v: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    unsafe fn load_i(p: *const i32) -> __m512i {
        unsafe { _mm512_loadu_si512(p as *const __m512i) }
    }
    #[inline(always)]
    unsafe fn store_i(p: *mut i32, v: __m512i) {
        unsafe { _mm512_storeu_si512(p as *mut __m512i, v) }
    }
    #[inline(always)]
    unsafe fn load_line8(p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p as *const __m512i) }
    }
    #[inline(always)]
    unsafe fn store_line8(p: *mut u8, v: __m512i) {
        unsafe { _mm512_storeu_si512(p as *mut __m512i, v) }
    }
    /// (w + 128) · x - 128 · Σx = w · x, exactly.
    #[inline(always)]
    unsafe fn start8(correction: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(correction) }
    }
    #[inline(always)]
    unsafe fn dot8(sum: __m512i, line: __m512i, x: i32) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, line, _mm512_set1_epi32(x)) }
    }
    #[inline(always)]
    unsafe fn signed(b: __m512i) -> __m512i {
        b
    }
    #[inline(always)]
    unsafe fn load_b(p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p as *const __m512i) }
    }
    #[inline(always)]
    unsafe fn store_b(p: *mut u8, v: __m512i) {
        unsafe { _mm512_storeu_si512(p as *mut __m512i, v) }
    }
    #[inline(always)]
    unsafe fn nibbles(p: *const u8) -> (__m512i, __m512i) {
        unsafe {
            let (w, mask) = (_mm512_loadu_si512(p as *const __m512i), _mm512_set1_epi8(15));
            (_mm512_and_si512(w, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(w), mask))
        }
    }
    #[inline(always)]
    unsafe fn and_b(v: __m512i, mask: u8) -> __m512i {
        unsafe { _mm512_and_si512(v, _mm512_set1_epi8(mask as i8)) }
    }
    #[inline(always)]
    unsafe fn or_b(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn shl_b(v: __m512i, n: i32) -> __m512i {
        unsafe { _mm512_sll_epi16(v, _mm_cvtsi32_si128(n)) }
    }
    #[inline(always)]
    unsafe fn shr_b(v: __m512i, n: i32) -> __m512i {
        unsafe { _mm512_srl_epi16(v, _mm_cvtsi32_si128(n)) }
    }
    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], v: __m512i) -> __m512i {
        unsafe {
            _mm512_shuffle_epi8(
                _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr() as *const __m128i)),
                v,
            )
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(Self::factors(p)) }
    }
    #[inline(always)]
    unsafe fn factors(p: *const i8) -> __m512i {
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(p as *const __m128i)) }
    }
    #[inline(always)]
    unsafe fn load_e8m0(p: *const u8) -> __m512 {
        unsafe {
            let e = _mm512_cvtepu8_epi32(_mm_loadu_si128(p as *const __m128i));
            let one = _mm512_set1_epi32(1);
            let small = _mm512_slli_epi32::<21>(_mm512_add_epi32(one, _mm512_min_epi32(e, one)));
            _mm512_castsi512_ps(_mm512_max_epi32(
                _mm512_slli_epi32::<23>(_mm512_sub_epi32(e, one)),
                small,
            ))
        }
    }
    #[inline(always)]
    unsafe fn factors4(p: *const u8, high: bool) -> __m512i {
        unsafe {
            let v = _mm512_cvtepu8_epi32(_mm_loadu_si128(p as *const __m128i));
            _mm512_and_si512(
                if high { _mm512_srli_epi32::<4>(v) } else { v },
                _mm512_set1_epi32(15),
            )
        }
    }
    #[inline(always)]
    unsafe fn pair(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_mask_blend_epi16(0xaaaa_aaaa, a, _mm512_slli_epi32::<16>(b)) }
    }
    #[inline(always)]
    unsafe fn scale_pairs(pairs: __m512i, by: i16) -> __m512i {
        unsafe { _mm512_mullo_epi16(pairs, _mm512_set1_epi16(by)) }
    }
    #[inline(always)]
    unsafe fn dot_pairs(total: __m512i, pairs: __m512i, halves: i32) -> __m512i {
        unsafe { _mm512_add_epi32(total, _mm512_madd_epi16(pairs, _mm512_set1_epi32(halves))) }
    }
    #[inline(always)]
    unsafe fn splat_over(x: i32, n: u32) -> __m512i {
        unsafe { _mm512_sra_epi32(_mm512_set1_epi32(x), _mm_cvtsi32_si128(n as i32)) }
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn start4() -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn dot2(sum: __m512i, line: __m512i, x: i32) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, line, _mm512_set1_epi32(x)) }
    }
    #[inline(always)]
    unsafe fn flush(total: __m512i, sum: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(total, sum) }
    }
    #[inline(always)]
    unsafe fn flush_by(total: __m512i, sum: __m512i, factors: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(total, _mm512_mullo_epi32(sum, factors)) }
    }
    #[inline(always)]
    unsafe fn finish4(sum: __m512i) -> __m512i {
        sum
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p as *const i8) }
    }
}

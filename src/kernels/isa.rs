//! What a kernel needs of an instruction set: sixteen f32 lanes and the two integer dot products, as one trait, with the portable
//! implementation that is the reference. Kernels are written once over [`Isa`]; each lane of each implementation computes the same
//! correctly rounded operations in the same order, so all sets give the same bits.
#![allow(unsafe_code)]
#![allow(clippy::missing_safety_doc, clippy::needless_range_loop)]

/// Sixteen lanes. Every method is `unsafe` for one reason: the CPU must have the implementation's features (and pointers must cover what
/// the method reads or writes, without alignment).
pub(crate) trait Isa: Copy + 'static {
    /// As kernels are named: `x86-avx2`.
    const NAME: &'static str;
    /// Rows of a float tile.
    const ROWS: usize;
    /// Rows of a tile of attention.
    const ATTENTION_ROWS: usize;
    /// Rows of an integer tile.
    const QUANT_ROWS: usize;
    /// Up to this many rows 16-bit weights are widened in registers; above, a block of the panel is widened to L1 once.
    const DIRECT_ROWS: usize;
    /// The same of quantized weights: above, a chunk of the panel is unpacked to L1 once.
    const QUANT_DIRECT_ROWS: usize;
    /// Few rows wait for memory: their weights are prefetched so many bytes ahead in the same stream; 0 where the hardware does better alone.
    const NEAR: usize = 0;
    /// From this many rows on panels are computed two at a time (quantized ones in tiles of `QUANT_ROWS_OF_TWO` rows).
    const TWO_PANELS: usize = usize::MAX;
    const QUANT_ROWS_OF_TWO: usize = 1;
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen i32.
    type I: Copy;
    /// A line of 8-bit weights (16 columns × 4 k), prepared for several rows, and its bytes in memory.
    type Line8: Copy;
    const LINE8: usize;
    /// 64 bytes: 16 columns × 4 k.
    type B: Copy;
    /// Running sums of products with unsigned codes.
    type Sum4: Copy;
    /// Running sums have 16 bits: a part's sum of codes above 15 does not fit.
    const SHORT: bool;

    unsafe fn zero() -> Self::F;
    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, v: Self::F);
    /// Sixteen f16 values, widened exactly.
    unsafe fn load_f16(p: *const u16) -> Self::F;
    /// Rounded to nearest even.
    unsafe fn store_f16(p: *mut u16, v: Self::F);
    /// Sixteen pairs of bf16: (low halves, high halves), widened exactly.
    unsafe fn load_bf16_pairs(p: *const u16) -> (Self::F, Self::F);
    /// Rounds each lane to bf16, nearest even; NaN stays NaN.
    unsafe fn round_bf16(v: Self::F) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// a * b + c with one rounding.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `if a > b { a } else { b }`: b if either is NaN.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `if a > b { x } else { y }`.
    unsafe fn select_gt(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
    /// Whether any lane has a >= b.
    unsafe fn any_ge(a: Self::F, b: Self::F) -> bool;
    /// Swaps lanes 2i and 2i + 1.
    unsafe fn swap_pairs(v: Self::F) -> Self::F;
    /// The float with the bits `(bits(t) + 127) << 23`: 2^n for t = n + 1.5 * 2^23.
    unsafe fn power(t: Self::F) -> Self::F;
    /// ((l + l8) + (l4 + l12)) …: halves folded onto each other, 8, 4, 2, 1.
    unsafe fn sum(v: Self::F) -> f32;
    /// The same tree with [`Isa::max`].
    unsafe fn largest(v: Self::F) -> f32;
    /// The largest magnitude of 32 values, compared as integers: NaN counts as larger than everything.
    unsafe fn magnitude(a: Self::F, b: Self::F) -> f32;
    /// round-half-even(x * scale) of 32 values to bytes; returns the sums of the first and of the last 16.
    unsafe fn quantize(a: Self::F, b: Self::F, scale: f32, out: *mut i8) -> (i32, i32);
    unsafe fn to_float(v: Self::I) -> Self::F;
    unsafe fn load_i(p: *const i32) -> Self::I;
    unsafe fn store_i(p: *mut i32, v: Self::I);
    /// What [`Isa::store_line8`] wrote.
    unsafe fn load_line8(p: *const u8) -> Self::Line8;
    unsafe fn store_line8(p: *mut u8, v: Self::Line8);
    /// Where a block's sum starts; `correction` is -128 times the sum of the block's activations.
    unsafe fn start8(correction: i32) -> Self::I;
    /// Adds the products of four k per column; `x` is the four activations' bytes.
    unsafe fn dot8(sum: Self::I, line: Self::Line8, x: i32) -> Self::I;
    /// Bytes of weights plus 128, prepared for [`Isa::dot8`].
    unsafe fn signed(b: Self::B) -> Self::Line8;
    unsafe fn load_b(p: *const u8) -> Self::B;
    unsafe fn store_b(p: *mut u8, v: Self::B);
    /// The low and the high nibbles of 64 bytes.
    unsafe fn nibbles(p: *const u8) -> (Self::B, Self::B);
    unsafe fn and_b(v: Self::B, mask: u8) -> Self::B;
    unsafe fn or_b(a: Self::B, b: Self::B) -> Self::B;
    /// Shifts 16-bit words: bits that cross from byte to byte are the caller's to mask.
    unsafe fn shl_b(v: Self::B, n: i32) -> Self::B;
    unsafe fn shr_b(v: Self::B, n: i32) -> Self::B;
    /// The table's entries for bytes below 16.
    unsafe fn lookup(table: &[u8; 16], v: Self::B) -> Self::B;
    /// Sixteen signed bytes as floats.
    unsafe fn load_i8(p: *const i8) -> Self::F;
    /// Sixteen powers of two: 2^(byte - 128), as MXFP4 has them.
    unsafe fn load_e8m0(p: *const u8) -> Self::F;
    /// Sixteen whole factors of signed bytes, for [`Isa::flush_by`] and [`Isa::pair`].
    unsafe fn factors(p: *const i8) -> Self::I;
    /// The same of the low or of the high nibbles of sixteen bytes.
    unsafe fn factors4(p: *const u8, high: bool) -> Self::I;
    /// Of each lane's factors in `a` and `b` a pair of 16 bits each, for [`Isa::dot_pairs`].
    unsafe fn pair(a: Self::I, b: Self::I) -> Self::I;
    /// Both of each pair times `by`; 16 bits hold the products.
    unsafe fn scale_pairs(pairs: Self::I, by: i16) -> Self::I;
    /// `total` + the first of each pair times the low 16 bits of `halves` + the second times the high ones.
    unsafe fn dot_pairs(total: Self::I, pairs: Self::I, halves: i32) -> Self::I;
    unsafe fn splat_i(x: i32) -> Self::I;
    /// `x` divided by 2^n; `x` is a multiple of it.
    unsafe fn splat_over(x: i32, n: u32) -> Self::I;
    unsafe fn start4() -> Self::Sum4;
    /// Adds the products of a line of codes with four activations.
    unsafe fn dot2(sum: Self::Sum4, line: Self::B, x: i32) -> Self::Sum4;
    unsafe fn finish4(sum: Self::Sum4) -> Self::I;
    /// `total + sum`.
    unsafe fn flush(total: Self::I, sum: Self::Sum4) -> Self::I;
    /// `total + sum * factors`.
    unsafe fn flush_by(total: Self::I, sum: Self::Sum4, factors: Self::I) -> Self::I;
    /// Asks for a cache line to be brought to L2; any address will do.
    unsafe fn prefetch(p: *const u8);
}

/// Plain Rust: the reference, and what CPUs without AVX2 run. Slow where `mul_add` is a library call.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; 16] {
    let mut out = [0.0; 16];
    for i in 0..16 {
        out[i] = f(i);
    }
    out
}

/// `if a > b { a } else { b }`.
#[inline(always)]
fn greater(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// 16-bit words of 64 bytes, each changed.
#[inline(always)]
fn words(v: [u8; 64], f: impl Fn(u16) -> u16) -> [u8; 64] {
    let mut out = v;
    for pair in out.as_chunks_mut::<2>().0 {
        *pair = f(u16::from_le_bytes(*pair)).to_le_bytes();
    }
    out
}

impl Isa for Portable {
    const NAME: &'static str = "portable";
    const ROWS: usize = 1;
    const ATTENTION_ROWS: usize = 1;
    const QUANT_ROWS: usize = 1;
    const DIRECT_ROWS: usize = usize::MAX;
    const QUANT_DIRECT_ROWS: usize = usize::MAX;
    type F = [f32; 16];
    type I = [i32; 16];
    type Line8 = [u8; 64];
    const LINE8: usize = 64;
    type B = [u8; 64];
    type Sum4 = [i32; 16];
    const SHORT: bool = false;

    #[inline(always)]
    unsafe fn zero() -> [f32; 16] {
        [0.0; 16]
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 16] {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 16] {
        unsafe { (p as *const [f32; 16]).read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 16]) {
        unsafe { (p as *mut [f32; 16]).write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> [f32; 16] {
        let h = unsafe { (p as *const [u16; 16]).read_unaligned() };
        each(|i| half::f16::from_bits(h[i]).to_f32_const())
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: [f32; 16]) {
        let mut h = [0u16; 16];
        for i in 0..16 {
            h[i] = half::f16::from_f32_const(v[i]).to_bits();
        }
        unsafe { (p as *mut [u16; 16]).write_unaligned(h) }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> ([f32; 16], [f32; 16]) {
        let w = unsafe { (p as *const [u32; 16]).read_unaligned() };
        (each(|i| f32::from_bits(w[i] << 16)), each(|i| f32::from_bits(w[i] & 0xffff_0000)))
    }
    #[inline(always)]
    unsafe fn round_bf16(v: [f32; 16]) -> [f32; 16] {
        each(|i| round_to_bf16(v[i]))
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        each(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn max(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| greater(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn select_gt(a: [f32; 16], b: [f32; 16], x: [f32; 16], y: [f32; 16]) -> [f32; 16] {
        each(|i| if a[i] > b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    unsafe fn any_ge(a: [f32; 16], b: [f32; 16]) -> bool {
        (0..16).any(|i| a[i] >= b[i])
    }
    #[inline(always)]
    unsafe fn swap_pairs(v: [f32; 16]) -> [f32; 16] {
        each(|i| v[i ^ 1])
    }
    #[inline(always)]
    unsafe fn power(t: [f32; 16]) -> [f32; 16] {
        each(|i| f32::from_bits(t[i].to_bits().wrapping_add(127) << 23))
    }
    #[inline(always)]
    unsafe fn sum(v: [f32; 16]) -> f32 {
        let mut v = v;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                v[i] += v[i + half];
            }
        }
        v[0]
    }
    #[inline(always)]
    unsafe fn largest(v: [f32; 16]) -> f32 {
        let mut v = v;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                v[i] = greater(v[i], v[i + half]);
            }
        }
        v[0]
    }
    #[inline(always)]
    unsafe fn magnitude(a: [f32; 16], b: [f32; 16]) -> f32 {
        let bits = a.iter().chain(&b).map(|x| x.to_bits() & 0x7fff_ffff).max();
        f32::from_bits(bits.unwrap_or(0))
    }
    #[inline(always)]
    unsafe fn quantize(a: [f32; 16], b: [f32; 16], scale: f32, out: *mut i8) -> (i32, i32) {
        let mut sums = [0; 2];
        for i in 0..32 {
            let x = if i < 16 { a[i] } else { b[i - 16] };
            let q = (x * scale).round_ties_even() as i32 as i8;
            sums[i / 16] += q as i32;
            unsafe { out.add(i).write(q) };
        }
        (sums[0], sums[1])
    }
    #[inline(always)]
    unsafe fn to_float(v: [i32; 16]) -> [f32; 16] {
        each(|i| v[i] as f32)
    }
    #[inline(always)]
    unsafe fn load_i(p: *const i32) -> [i32; 16] {
        unsafe { (p as *const [i32; 16]).read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_i(p: *mut i32, v: [i32; 16]) {
        unsafe { (p as *mut [i32; 16]).write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_line8(p: *const u8) -> [u8; 64] {
        unsafe { Self::load_b(p) }
    }
    #[inline(always)]
    unsafe fn store_line8(p: *mut u8, v: [u8; 64]) {
        unsafe { Self::store_b(p, v) }
    }
    #[inline(always)]
    unsafe fn start8(_correction: i32) -> [i32; 16] {
        [0; 16]
    }
    #[inline(always)]
    unsafe fn dot8(sum: [i32; 16], line: [u8; 64], x: i32) -> [i32; 16] {
        let x = x.to_le_bytes();
        let mut sum = sum;
        for i in 0..64 {
            sum[i / 4] += (line[i] as i32 - 128) * x[i % 4] as i8 as i32;
        }
        sum
    }
    #[inline(always)]
    unsafe fn signed(b: [u8; 64]) -> [u8; 64] {
        b
    }
    #[inline(always)]
    unsafe fn load_b(p: *const u8) -> [u8; 64] {
        unsafe { (p as *const [u8; 64]).read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_b(p: *mut u8, v: [u8; 64]) {
        unsafe { (p as *mut [u8; 64]).write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn nibbles(p: *const u8) -> ([u8; 64], [u8; 64]) {
        let w = unsafe { (p as *const [u8; 64]).read_unaligned() };
        (w.map(|w| w & 15), w.map(|w| w >> 4))
    }
    #[inline(always)]
    unsafe fn and_b(v: [u8; 64], mask: u8) -> [u8; 64] {
        v.map(|v| v & mask)
    }
    #[inline(always)]
    unsafe fn or_b(a: [u8; 64], b: [u8; 64]) -> [u8; 64] {
        let mut out = a;
        for i in 0..64 {
            out[i] |= b[i];
        }
        out
    }
    #[inline(always)]
    unsafe fn shl_b(v: [u8; 64], n: i32) -> [u8; 64] {
        words(v, |w| w << n)
    }
    #[inline(always)]
    unsafe fn shr_b(v: [u8; 64], n: i32) -> [u8; 64] {
        words(v, |w| w >> n)
    }
    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], v: [u8; 64]) -> [u8; 64] {
        v.map(|v| table[v as usize & 15])
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> [f32; 16] {
        let v = unsafe { (p as *const [i8; 16]).read_unaligned() };
        each(|i| v[i] as f32)
    }
    #[inline(always)]
    unsafe fn factors(p: *const i8) -> [i32; 16] {
        unsafe { (p as *const [i8; 16]).read_unaligned() }.map(i32::from)
    }
    #[inline(always)]
    unsafe fn load_e8m0(p: *const u8) -> [f32; 16] {
        let e = unsafe { (p as *const [u8; 16]).read_unaligned() };
        each(|i| power_of_byte(e[i]))
    }
    #[inline(always)]
    unsafe fn factors4(p: *const u8, high: bool) -> [i32; 16] {
        unsafe { (p as *const [u8; 16]).read_unaligned() }
            .map(|f| (if high { f >> 4 } else { f & 15 }) as i32)
    }
    #[inline(always)]
    unsafe fn pair(a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        std::array::from_fn(|i| a[i] & 0xffff | b[i] << 16)
    }
    #[inline(always)]
    unsafe fn scale_pairs(pairs: [i32; 16], by: i16) -> [i32; 16] {
        pairs.map(|p| {
            (p as i16).wrapping_mul(by) as u16 as i32
                | (((p >> 16) as i16).wrapping_mul(by) as i32) << 16
        })
    }
    #[inline(always)]
    unsafe fn dot_pairs(total: [i32; 16], pairs: [i32; 16], halves: i32) -> [i32; 16] {
        let (first, last) = (halves as i16 as i32, halves >> 16);
        std::array::from_fn(|i| total[i] + pairs[i] as i16 as i32 * first + (pairs[i] >> 16) * last)
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> [i32; 16] {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn splat_over(x: i32, n: u32) -> [i32; 16] {
        [x >> n; 16]
    }
    #[inline(always)]
    unsafe fn start4() -> [i32; 16] {
        [0; 16]
    }
    #[inline(always)]
    unsafe fn dot2(sum: [i32; 16], line: [u8; 64], x: i32) -> [i32; 16] {
        let x = x.to_le_bytes();
        let mut sum = sum;
        for i in 0..64 {
            sum[i / 4] += line[i] as i32 * x[i % 4] as i8 as i32;
        }
        sum
    }
    #[inline(always)]
    unsafe fn finish4(sum: [i32; 16]) -> [i32; 16] {
        sum
    }
    #[inline(always)]
    unsafe fn flush(total: [i32; 16], sum: [i32; 16]) -> [i32; 16] {
        std::array::from_fn(|i| total[i] + sum[i])
    }
    #[inline(always)]
    unsafe fn flush_by(total: [i32; 16], sum: [i32; 16], factors: [i32; 16]) -> [i32; 16] {
        std::array::from_fn(|i| total[i] + sum[i] * factors[i])
    }
    #[inline(always)]
    unsafe fn prefetch(_p: *const u8) {}
}

/// 2^(e - 128): ggml's `GGML_E8M0_TO_FP32_HALF` (ggml-impl.h). The two smallest are no normal numbers.
pub(crate) fn power_of_byte(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e as u32 - 1) << 23 })
}

/// Nearest even; NaN stays NaN.
#[inline(always)]
pub(crate) fn round_to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    if x.is_nan() { x } else { f32::from_bits(rounded) }
}

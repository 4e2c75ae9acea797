//! The weight types: one entry of a table each, with its number in ggml, the shape of its blocks, what a block's numbers mean, the panel it
//! is packed into and what the kernel reads from that panel. In: blocks as files have them. Out: values, panels. `gemm.rs` multiplies.
//!
//! A block's weights are `d * f[i / 16] * (code[i] - offset) + m` (or the table's number for a code) in parts of 32, which is what activations
//! come in. All products of a part are exact in f32, so a value has one rounding: that of adding `m`.
//! Panels hold 16 columns. Codes lie in lines of 64 bytes `[16 columns][4]`: line i has k = 4i + j in the low nibbles and 16 + 4i + j in the
//! high ones. A fifth bit is a line more: bit i of byte j belongs to k = 4i + j, bit 4 + i to 16 + 4i + j. Fifth and sixth bits are two lines,
//! of the low and of the high nibbles: bits 2i and 2i + 1. Codes of two bits are two such lines alone, and a third bit is a fifth's line.
//! Over 500 lines: the table, the traits and what they promise are read together; each type has a file of its own.

mod encoding;
mod float;
mod iq4_nl;
mod iq4_xs;
mod mxfp4;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod quantize;

pub use encoding::{Encoding, WidenedType};
pub(crate) use iq4_nl::Iq4Nl;
pub(crate) use iq4_xs::Iq4Xs;
pub(crate) use mxfp4::Mxfp4;
pub(crate) use q2_k::Q2K;
pub(crate) use q3_k::Q3K;
pub(crate) use q4_0::Q40;
pub(crate) use q4_1::Q41;
pub(crate) use q4_k::Q4K;
pub(crate) use q5_0::Q50;
pub(crate) use q5_1::Q51;
pub(crate) use q5_k::Q5K;
pub(crate) use q6_k::Q6K;
pub(crate) use q8_0::Q80;

use super::Format;

/// 32 weights: `d * q[i] + m * minima[i / 16]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Whole numbers, at most 2^12 in magnitude.
    pub q: [i32; 32],
    /// The step.
    pub d: f32,
    /// What is added, or its step: 0 for types without minima.
    pub m: f32,
    /// Whole numbers of the first and of the last 16: ones but for types that have minima for 16 each.
    pub minima: [i32; 2],
}

impl Part {
    /// With one minimum.
    fn new(q: [i32; 32], d: f32, m: f32) -> Part {
        Part { q, d, m, minima: [1; 2] }
    }
}

/// Appends a block of these values.
pub(crate) type Quantize = fn(&[f32], &mut Vec<u8>);

/// A weight type.
pub(crate) struct Kind {
    /// As typed after `--dtype`.
    pub name: &'static str,
    /// `enum ggml_type`.
    pub ggml: u32,
    /// Weights of a block.
    pub block: usize,
    /// Bytes of a block in a file.
    pub bytes: usize,
    /// Offsets of f16 numbers in a block: it is finite if these are.
    pub halves: &'static [usize],
    /// Appends a block of these values. Types that are only read have none.
    pub quantize: Option<Quantize>,
    /// Part `j` of a block. Float types have none.
    pub part: fn(&[u8], usize) -> Part,
    /// Weights a column in a group of a panel.
    pub group: usize,
    /// Bytes of a group.
    pub group_bytes: usize,
    /// Writes a row of whole blocks as column `c` of a panel that is zero there.
    pub pack: fn(row: &[u8], c: usize, panel: &mut [u8]),
    /// Weight `i` of column `c` in a group.
    pub weight: fn(group: &[u8], c: usize, i: usize) -> f32,
}

/// In the order of [`Format`].
static KINDS: [&Kind; Format::ALL.len()] = [
    &float::F32,
    &float::BF16,
    &float::F16,
    &q8_0::KIND,
    &q4_1::KIND,
    &q4_0::KIND,
    &q5_0::KIND,
    &q5_1::KIND,
    &q4_k::KIND,
    &q5_k::KIND,
    &q6_k::KIND,
    &iq4_nl::KIND,
    &iq4_xs::KIND,
    &q2_k::KIND,
    &q3_k::KIND,
    &mxfp4::KIND,
];

impl Format {
    pub(crate) fn kind(self) -> &'static Kind {
        KINDS[self as usize]
    }

    /// Byte offsets of a block's f16 numbers; a block of a quantized type is finite if these are.
    pub fn half_offsets(self) -> &'static [usize] {
        self.kind().halves
    }

    /// Whether values can be stored in this type ([`Format::encode`]).
    pub fn is_written(self) -> bool {
        self.kind().quantize.is_some()
    }

    /// Whole blocks of finite values, appended to `out`: rounded to nearest even for floats, ggml's reference for blocks (`quantize_row_*_ref`).
    /// Nothing for types that are only read. Panics if the values are no whole blocks.
    pub fn encode(self, values: &[f32], out: &mut Vec<u8>) {
        let kind = self.kind();
        assert!(
            values.len().is_multiple_of(kind.block),
            "{} values are no whole blocks of {self}",
            values.len()
        );
        if let Some(quantize) = kind.quantize {
            values.chunks_exact(kind.block).for_each(|block| quantize(block, out));
        }
    }

    /// The values of whole blocks as files have them, appended to `out`; ggml's `dequantize_row_*`, bit for bit but for the sign of zeros.
    pub fn dequantize(self, blocks: &[u8], out: &mut Vec<f32>) {
        let kind = self.kind();
        match self {
            Format::F32 => {
                out.extend(blocks.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)))
            }
            Format::Bf16 => out.extend(
                blocks.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()),
            ),
            Format::F16 => out.extend(
                blocks
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|b| half::f16::from_le_bytes(*b).to_f32_const()),
            ),
            _ => {
                for block in blocks.chunks_exact(kind.bytes) {
                    for j in 0..kind.block / 32 {
                        let part = (kind.part)(block, j);
                        let minima = part.minima.map(|m| part.m * m as f32);
                        out.extend(
                            part.q
                                .iter()
                                .enumerate()
                                .map(|(i, q)| part.d * *q as f32 + minima[i / 16]),
                        );
                    }
                }
            }
        }
    }
}

/// The f16 at a place.
#[inline]
pub(super) fn half_at(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32_const()
}

/// Writes a number of two bytes for column `c` of a line of 16.
#[inline]
pub(super) fn put_half(to: &mut [u8], c: usize, half: &[u8]) {
    to[c * 2..c * 2 + 2].copy_from_slice(half);
}

/// Sixteen bytes as they lie in memory.
#[inline]
pub(super) fn sixteen(bytes: &[u8]) -> u128 {
    u128::from_le_bytes(std::array::from_fn(|i| bytes[i]))
}

const LOW_NIBBLES: u128 = 0x0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f;

/// Of 32 bytes the low (`shift` 0) or the high nibbles (4): byte i has that of byte i and, above it, that of byte 16 + i.
#[inline]
pub(super) fn nibble_pairs(bytes: &[u8], shift: u32) -> u128 {
    let (first, last) =
        (sixteen(bytes) >> shift & LOW_NIBBLES, sixteen(&bytes[16..]) >> shift & LOW_NIBBLES);
    first | last << 4
}

/// Nibbles of 32 codes, in pairs of code i and code 16 + i, into the four lines at the beginning of `lines`.
#[inline]
pub(super) fn put_nibbles(pairs: u128, c: usize, lines: &mut [u8]) {
    for (quad, line) in
        pairs.to_le_bytes().as_chunks::<4>().0.iter().zip(lines.as_chunks_mut::<64>().0)
    {
        line[c * 4..c * 4 + 4].copy_from_slice(quad);
    }
}

/// Fifth bits of 32 codes, bit k of code k, into a line.
#[inline]
pub(super) fn put_fifth(bits: u32, c: usize, line: &mut [u8]) {
    for j in 0..4 {
        // Every fourth bit from the j-th on, put together.
        let mut v = bits >> j & 0x1111_1111;
        v = (v | v >> 3) & 0x0303_0303;
        v = (v | v >> 6) & 0x000f_000f;
        line[c * 4 + j] = (v | v >> 12) as u8;
    }
}

/// Bit `j` of 32 bytes.
pub(super) fn bit_of_each(bytes: &[u8], j: usize) -> u32 {
    (0..4).fold(0, |bits, q| {
        let eight = u64::from_le_bytes(std::array::from_fn(|i| bytes[q * 8 + i]));
        // Each byte's bit 7 - i ends in the highest byte at place i.
        let gathered =
            (eight >> j & 0x0101_0101_0101_0101).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        bits | (gathered as u32) << (q * 8)
    })
}

/// Run `j` of the two-bit codes of 256 weights in ggml's K-quants: of each 128 weights, four runs of 32 in two bits each of the same 32 bytes.
#[inline]
pub(super) fn run(bytes: &[u8], j: usize) -> [u8; 32] {
    std::array::from_fn(|i| bytes[j / 4 * 32 + i] >> (j % 4 * 2) & 3)
}

/// Run `j` of two-bit codes (as [`run`]) into two lines.
#[inline]
pub(super) fn put_run(bytes: &[u8], j: usize, c: usize, lines: &mut [u8]) {
    for half in 0..2 {
        let two = sixteen(&bytes[j / 4 * 32 + half * 16..]) >> (j % 4 * 2)
            & (LOW_NIBBLES & 0x0303_0303_0303_0303_0303_0303_0303_0303);
        let folded = (two | two >> 30 | two >> 60 | two >> 90) as u32;
        lines[half * 64 + c * 4..][..4].copy_from_slice(&folded.to_le_bytes());
    }
}

/// The low four bits of code `i` of a column.
pub(super) fn nibble(lines: &[u8], c: usize, i: usize) -> u8 {
    lines[i % 16 / 4 * 64 + c * 4 + i % 4] >> (i / 16 * 4) & 15
}

/// The fifth bit of code `i`, in its place.
pub(super) fn fifth(line: &[u8], c: usize, i: usize) -> u8 {
    (line[c * 4 + i % 4] >> (i % 16 / 4 + i / 16 * 4) & 1) << 4
}

/// The fifth and sixth bits of code `i`, in their place.
pub(super) fn sixth(lines: &[u8], c: usize, i: usize) -> u8 {
    (lines[i / 16 * 64 + c * 4 + i % 4] >> (i % 16 / 4 * 2) & 3) << 4
}

/// Factor and minimum (six bits each) of part `j` in the twelve bytes of Q4_K and Q5_K (ggml-quants.c, `get_scale_min_k4`).
pub(super) fn six_bits(s: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4)
    }
}

/// What the numbers of IQ4_NL and IQ4_XS mean (ggml-common.h, `kvalues_iq4nl`).
pub(super) const CURVE: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// The same plus 128, as the kernels want signed weights.
pub(super) const RAISED: [u8; 16] = {
    let mut out = [0; 16];
    let mut i = 0;
    while i < 16 {
        out[i] = (CURVE[i] as i16 + 128) as u8;
        i += 1;
    }
    out
};

/// How a part's products are summed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sum {
    /// Codes to 15: 16 bits hold a part's sum.
    Four,
    /// Codes to 31: 16 bits hold half of it.
    Five,
    /// Codes to 15, a factor for each 16 weights.
    Quarters,
    /// Codes to 63, a factor for each 16 weights: 16 bits hold the sum of 8.
    Halves,
    /// Signed bytes, plus 128.
    Signed,
}

/// What is added to a part's weights.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Minimum {
    None,
    /// One number a column.
    One,
    /// A step a column, times a whole number for each 16 weights.
    Two,
}

/// What the kernel reads from a group of a panel, `SUPER` parts in `BYTES` bytes. Every method is `unsafe` for one reason: the set's CPU
/// features, and `group` must cover the group.
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Blocks<S: super::isa::Isa> {
    const SUPER: usize;
    const BYTES: usize;
    const SUM: Sum;
    /// What codes are more than the weights: 2^n.
    const OFFSET: i32 = 0;
    const MINIMUM: Minimum = Minimum::None;
    /// Unpacked once for many rows. Not where lines are bytes already: to load what was prepared cost 8 % at 16 rows.
    const UNPACKED: bool = true;
    /// Bytes of a part in the panel that lies in memory: what is prefetched meanwhile.
    const AHEAD: usize = Self::BYTES.div_ceil(Self::SUPER);
    /// Further bits of a part's codes.
    type Planes: Copy;
    unsafe fn planes(group: *const u8, part: usize) -> Self::Planes;
    /// Codes of line `i`: k = 4i + j, and 16 + 4i + j. Called with i ascending.
    unsafe fn line(
        group: *const u8,
        part: usize,
        i: usize,
        planes: &mut Self::Planes,
    ) -> (S::B, S::B);
    /// One of the two.
    #[inline(always)]
    unsafe fn half(
        group: *const u8,
        part: usize,
        i: usize,
        half: usize,
        planes: &mut Self::Planes,
    ) -> S::B {
        let (low, high) = unsafe { Self::line(group, part, i, planes) };
        if half == 0 { low } else { high }
    }
    /// The same of [`Sum::Signed`] (which has no planes), prepared.
    #[inline(always)]
    unsafe fn signed(group: *const u8, part: usize, i: usize, half: usize) -> S::Line8 {
        unsafe { S::signed(Self::half(group, part, i, half, &mut Self::planes(group, part))) }
    }
    /// The steps of the columns.
    unsafe fn step(group: *const u8, part: usize) -> S::F;
    /// Their minima, or the steps of these.
    #[inline(always)]
    unsafe fn minimum(_group: *const u8, _part: usize) -> S::F {
        unsafe { S::zero() }
    }
    /// Factors of the first or of the last 16 weights.
    #[inline(always)]
    unsafe fn factor(_group: *const u8, _part: usize, _half: usize) -> S::I {
        unsafe { S::splat_i(0) }
    }
    /// Pairs of what the sums of 16 activations each are multiplied with: the factors times -`OFFSET`.
    #[inline(always)]
    unsafe fn offsets(group: *const u8, part: usize) -> S::I {
        unsafe {
            let pairs = S::pair(Self::factor(group, part, 0), Self::factor(group, part, 1));
            S::scale_pairs(pairs, -(Self::OFFSET as i16))
        }
    }
    /// Pairs of the whole numbers of [`Minimum::Two`].
    #[inline(always)]
    unsafe fn minima(_group: *const u8, _part: usize) -> S::I {
        unsafe { S::splat_i(0) }
    }
}

/// Whether a type has a factor for each 16 weights.
pub(crate) const fn has_factors(sum: Sum) -> bool {
    matches!(sum, Sum::Quarters | Sum::Halves)
}

/// Parts of a panel unpacked for many rows, so that no tile of rows does it again: a part is eight lines of codes (of signed bytes: as the
/// set wants them), `[16]` steps, and what the type has of `[16]` minima, `[2][16]` factors, `[16]` offsets, `[16]` minima's pairs.
pub(crate) struct Unpacked<Q>(Q);

impl<Q> Unpacked<Q> {
    const fn line_bytes<S: super::isa::Isa>() -> usize
    where
        Q: Blocks<S>,
    {
        if matches!(Q::SUM, Sum::Signed) { S::LINE8 } else { 64 }
    }

    /// Where a part's steps, minima, factors, pairs of minima lie, and its end.
    const fn places<S: super::isa::Isa>() -> [usize; 5]
    where
        Q: Blocks<S>,
    {
        let steps = 8 * Self::line_bytes::<S>();
        let minima = steps + 64;
        let factors = minima + if matches!(Q::MINIMUM, Minimum::None) { 0 } else { 64 };
        let pairs = factors
            + match (has_factors(Q::SUM), Q::OFFSET) {
                (false, _) => 0,
                (true, 0) => 128,
                (true, _) => 192,
            };
        [
            steps,
            minima,
            factors,
            pairs,
            pairs + if matches!(Q::MINIMUM, Minimum::Two) { 64 } else { 0 },
        ]
    }

    /// Bytes of a part.
    pub(crate) const fn part_bytes<S: super::isa::Isa>() -> usize
    where
        Q: Blocks<S>,
    {
        Self::places::<S>()[4]
    }

    /// Unpacks `parts` parts of a panel.
    #[inline(always)]
    pub(crate) unsafe fn fill<S: super::isa::Isa>(w: *const u8, parts: usize, out: *mut u8)
    where
        Q: Blocks<S>,
    {
        let [steps, minima, factors, pairs, end] = Self::places::<S>();
        let line = Self::line_bytes::<S>();
        unsafe {
            for b in 0..parts {
                let (group, part) = (w.add(b / Q::SUPER * Q::BYTES), b % Q::SUPER);
                let out = out.add(b * end);
                let mut planes = Q::planes(group, part);
                for i in 0..4 {
                    if matches!(Q::SUM, Sum::Signed) {
                        S::store_line8(out.add(i * line), Q::signed(group, part, i, 0));
                        S::store_line8(out.add((4 + i) * line), Q::signed(group, part, i, 1));
                    } else {
                        let (low, high) = Q::line(group, part, i, &mut planes);
                        S::store_b(out.add(i * line), low);
                        S::store_b(out.add((4 + i) * line), high);
                    }
                }
                S::store(out.add(steps) as *mut f32, Q::step(group, part));
                if !matches!(Q::MINIMUM, Minimum::None) {
                    S::store(out.add(minima) as *mut f32, Q::minimum(group, part));
                }
                if has_factors(Q::SUM) {
                    S::store_i(out.add(factors) as *mut i32, Q::factor(group, part, 0));
                    S::store_i(out.add(factors + 64) as *mut i32, Q::factor(group, part, 1));
                    if Q::OFFSET > 0 {
                        S::store_i(out.add(factors + 128) as *mut i32, Q::offsets(group, part));
                    }
                }
                if matches!(Q::MINIMUM, Minimum::Two) {
                    S::store_i(out.add(pairs) as *mut i32, Q::minima(group, part));
                }
            }
        }
    }
}

impl<S: super::isa::Isa, Q: Blocks<S>> Blocks<S> for Unpacked<Q> {
    const SUPER: usize = 1;
    const BYTES: usize = Unpacked::<Q>::part_bytes::<S>();
    const SUM: Sum = Q::SUM;
    const OFFSET: i32 = Q::OFFSET;
    const MINIMUM: Minimum = Q::MINIMUM;
    const AHEAD: usize = Q::AHEAD;
    type Planes = ();
    #[inline(always)]
    unsafe fn planes(_: *const u8, _: usize) {}
    #[inline(always)]
    unsafe fn line(group: *const u8, _: usize, i: usize, _: &mut ()) -> (S::B, S::B) {
        unsafe { (S::load_b(group.add(i * 64)), S::load_b(group.add(i * 64 + 256))) }
    }
    #[inline(always)]
    unsafe fn half(group: *const u8, _: usize, i: usize, half: usize, _: &mut ()) -> S::B {
        unsafe { S::load_b(group.add(i * 64 + half * 256)) }
    }
    #[inline(always)]
    unsafe fn signed(group: *const u8, _: usize, i: usize, half: usize) -> S::Line8 {
        unsafe { S::load_line8(group.add((i + 4 * half) * S::LINE8)) }
    }
    #[inline(always)]
    unsafe fn step(group: *const u8, _: usize) -> S::F {
        unsafe { S::load(group.add(Self::places::<S>()[0]) as *const f32) }
    }
    #[inline(always)]
    unsafe fn minimum(group: *const u8, _: usize) -> S::F {
        unsafe { S::load(group.add(Self::places::<S>()[1]) as *const f32) }
    }
    #[inline(always)]
    unsafe fn factor(group: *const u8, _: usize, half: usize) -> S::I {
        unsafe { S::load_i(group.add(Self::places::<S>()[2] + half * 64) as *const i32) }
    }
    #[inline(always)]
    unsafe fn offsets(group: *const u8, _: usize) -> S::I {
        unsafe { S::load_i(group.add(Self::places::<S>()[2] + 128) as *const i32) }
    }
    #[inline(always)]
    unsafe fn minima(group: *const u8, _: usize) -> S::I {
        unsafe { S::load_i(group.add(Self::places::<S>()[3]) as *const i32) }
    }
}

/// A line of nibbles as what a table has for them.
#[inline(always)]
pub(super) unsafe fn looked_up<S: super::isa::Isa>(
    table: &[u8; 16],
    line: *const u8,
) -> (S::B, S::B) {
    unsafe {
        let (low, high) = S::nibbles(line);
        (S::lookup(table, low), S::lookup(table, high))
    }
}

/// Adds a fifth bit to the codes of the next line.
#[inline(always)]
pub(super) unsafe fn with_fifth<S: super::isa::Isa>(
    (low, high): (S::B, S::B),
    plane: &mut S::B,
) -> (S::B, S::B) {
    unsafe {
        let out =
            (S::or_b(low, S::and_b(S::shl_b(*plane, 4), 16)), S::or_b(high, S::and_b(*plane, 16)));
        *plane = S::shr_b(*plane, 1);
        out
    }
}

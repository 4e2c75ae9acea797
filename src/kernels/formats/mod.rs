//! The weight types: one entry of a table each, with its number in ggml, the shape of its blocks, what a block's numbers mean, the panel it
//! is packed into and what the kernel reads from that panel. In: blocks as files have them. Out: values, panels. `gemm.rs` multiplies.
//!
//! A block's weights are `d * f[i / 16] * (code[i] - offset) + m` (or the table's number for a code) in parts of 32, which is what activations
//! come in. All products of a part are exact in f32, so a value has one rounding: that of adding `m`.
//! Panels hold 16 columns. Codes lie in lines of 64 bytes `[16 columns][4]`: line i has k = 4i + j in the low nibbles and 16 + 4i + j in the
//! high ones. A fifth bit is a line more: bit i of byte j belongs to k = 4i + j, bit 4 + i to 16 + 4i + j. Fifth and sixth bits are two lines,
//! of the low and of the high nibbles: bits 2i and 2i + 1.

mod float;
mod iq4_nl;
mod iq4_xs;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;

pub(crate) use iq4_nl::Iq4Nl;
pub(crate) use iq4_xs::Iq4Xs;
pub(crate) use q4_0::Q40;
pub(crate) use q4_1::Q41;
pub(crate) use q4_k::Q4K;
pub(crate) use q5_0::Q50;
pub(crate) use q5_1::Q51;
pub(crate) use q5_k::Q5K;
pub(crate) use q6_k::Q6K;
pub(crate) use q8_0::place as eight;

use super::Format;

/// 32 weights: `d * q[i] + m`.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Whole numbers, at most 2^12 in magnitude.
    pub q: [i32; 32],
    /// The step.
    pub d: f32,
    /// What is added to each: 0 for types without minima.
    pub m: f32,
}

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
];

impl Format {
    pub(crate) fn kind(self) -> &'static Kind {
        KINDS[self as usize]
    }

    /// The type of this number in ggml (`enum ggml_type`).
    pub fn of_ggml(number: u32) -> Option<Format> {
        Format::ALL.into_iter().find(|f| f.kind().ggml == number)
    }

    /// Byte offsets of a block's f16 numbers; a block of a quantized type is finite if these are.
    pub fn half_offsets(self) -> &'static [usize] {
        self.kind().halves
    }

    /// The values of whole blocks as files have them, appended to `out`; ggml's `dequantize_row_*`, bit for bit.
    pub fn dequantize(self, blocks: &[u8], out: &mut Vec<f32>) {
        let kind = self.kind();
        match self {
            Format::F32 => out.extend(blocks.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))),
            Format::Bf16 => out.extend(blocks.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32())),
            Format::F16 => out.extend(blocks.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32_const())),
            _ => {
                for block in blocks.chunks_exact(kind.bytes) {
                    for j in 0..kind.block / 32 {
                        let part = (kind.part)(block, j);
                        out.extend(part.q.iter().map(|q| part.d * *q as f32 + part.m));
                    }
                }
            }
        }
    }
}

/// The f16 at a place.
pub(super) fn half_at(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32_const()
}

/// Writes a number of two bytes for column `c` of a line of 16.
pub(super) fn put_half(to: &mut [u8], c: usize, half: &[u8]) {
    to[c * 2..c * 2 + 2].copy_from_slice(half);
}

/// The low four bits of 32 codes into the four lines at the beginning of `lines`.
pub(super) fn put_nibbles(codes: &[u8; 32], c: usize, lines: &mut [u8]) {
    for (i, line) in lines.chunks_exact_mut(64).take(4).enumerate() {
        for j in 0..4 {
            line[c * 4 + j] = codes[4 * i + j] & 15 | codes[16 + 4 * i + j] << 4;
        }
    }
}

/// Their fifth bits into a line.
pub(super) fn put_fifth(codes: &[u8; 32], c: usize, line: &mut [u8]) {
    for j in 0..4 {
        let bits = |from: usize| (0..4).fold(0, |a, i| a | (codes[from + 4 * i + j] >> 4 & 1) << i);
        line[c * 4 + j] = bits(0) | bits(16) << 4;
    }
}

/// Their fifth and sixth bits into two lines.
pub(super) fn put_sixth(codes: &[u8; 32], c: usize, lines: &mut [u8]) {
    for half in 0..2 {
        for j in 0..4 {
            lines[half * 64 + c * 4 + j] = (0..4).fold(0, |a, i| a | (codes[half * 16 + 4 * i + j] >> 4 & 3) << (2 * i));
        }
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
    if j < 4 { (s[j] & 63, s[j + 4] & 63) } else { (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4) }
}

/// What the numbers of IQ4_NL and IQ4_XS mean (ggml-common.h, `kvalues_iq4nl`).
pub(super) const CURVE: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
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
    /// Codes to 63, a factor for each 16 weights: 16 bits hold the sum of 8.
    Halves,
    /// Signed bytes, plus 128.
    Signed,
}

/// What the kernel reads from a group of a panel, `SUPER` parts in `BYTES` bytes. Every method is `unsafe` for one reason: the set's CPU
/// features, and `group` must cover the group.
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Blocks<S: super::isa::Isa> {
    const SUPER: usize;
    const BYTES: usize;
    const SUM: Sum;
    /// What codes are more than the weights.
    const OFFSET: i32 = 0;
    /// Whether minima are added.
    const MINIMUM: bool = false;
    /// Further bits of a part's codes.
    type Planes: Copy;
    unsafe fn planes(group: *const u8, part: usize) -> Self::Planes;
    /// Codes of line `i`: k = 4i + j, and 16 + 4i + j. Called with i ascending.
    unsafe fn line(group: *const u8, part: usize, i: usize, planes: &mut Self::Planes) -> (S::B, S::B);
    /// Where line `i` lies.
    fn at(part: usize, i: usize) -> usize;
    /// The steps of the columns.
    unsafe fn step(group: *const u8, part: usize) -> S::F;
    /// Their minima.
    #[inline(always)]
    unsafe fn minimum(_group: *const u8, _part: usize) -> S::F {
        unsafe { S::zero() }
    }
    /// Factors of each 16 weights, 16 bytes each.
    #[inline(always)]
    unsafe fn factors(group: *const u8, _part: usize) -> (*const i8, *const i8) {
        (group as *const i8, group as *const i8)
    }
}

/// Adds a fifth bit to the codes of the next line.
#[inline(always)]
pub(super) unsafe fn with_fifth<S: super::isa::Isa>((low, high): (S::B, S::B), plane: &mut S::B) -> (S::B, S::B) {
    unsafe {
        let out = (S::or_b(low, S::and_b(S::shl_b(*plane, 4), 16)), S::or_b(high, S::and_b(*plane, 16)));
        *plane = S::shr_b(*plane, 1);
        out
    }
}

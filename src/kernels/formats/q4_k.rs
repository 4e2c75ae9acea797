//! Q4_K: 256 nibbles, eight factors and minima of six bits, an f16 step of each (`block_q4_K`). A group is a block: `[16]` steps of the factors,
//! `[16]` steps of the minima negated, `[8][2][16]` factors and minima as bytes, `[8]` four lines: 2.8 % more than the file.

use super::super::isa::Isa;
use super::{
    Blocks, Kind, Minimum, Part, Sum, half_at, nibble, nibble_pairs, put_half, put_nibbles,
    quantize, six_bits,
};

/// Bytes before the lines: also Q5_K's.
pub(super) const HEAD: usize = 64 + 256;
const BYTES: usize = HEAD + 8 * 256;

fn codes(block: &[u8], j: usize) -> [u8; 32] {
    std::array::from_fn(|i| block[16 + j / 2 * 32 + i] >> (j % 2 * 4) & 15)
}

/// Step and minimum of part `j`: also Q5_K's.
pub(super) fn numbers(block: &[u8], j: usize) -> (f32, f32) {
    let (factor, minimum) = six_bits(&block[4..16], j);
    (half_at(block, 0) * factor as f32, -(half_at(block, 2) * minimum as f32))
}

/// Steps, factors and minima of a block into the head of a group.
pub(super) fn put_head(block: &[u8], c: usize, group: &mut [u8]) {
    put_half(group, c, &block[..2]);
    put_half(&mut group[32..], c, &[block[2], block[3] ^ 0x80]);
    for j in 0..8 {
        let (factor, minimum) = six_bits(&block[4..16], j);
        group[64 + j * 32 + c] = factor;
        group[64 + j * 32 + 16 + c] = minimum;
    }
}

/// Step and minimum of part `j` in a column of a group.
pub(super) fn head(group: &[u8], c: usize, j: usize) -> (f32, f32) {
    let at = 64 + j * 32 + c;
    (half_at(group, c * 2) * group[at] as f32, half_at(group, 32 + c * 2) * group[at + 16] as f32)
}

fn part(block: &[u8], j: usize) -> Part {
    let (d, m) = numbers(block, j);
    Part::new(codes(block, j).map(i32::from), d, m)
}

pub(super) static KIND: Kind = Kind {
    name: "q4_k",
    ggml: 12,
    block: 256,
    bytes: 144,
    halves: &[0, 2],
    quantize: Some(quantize::q4_k),
    part,
    group: 256,
    group_bytes: BYTES,
    pack: |row, c, panel| {
        for (block, group) in row.chunks_exact(144).zip(panel.chunks_exact_mut(BYTES)) {
            put_head(block, c, group);
            for j in 0..8 {
                let pairs = nibble_pairs(&block[16 + j / 2 * 32..], j as u32 % 2 * 4);
                put_nibbles(pairs, c, &mut group[HEAD + j * 256..]);
            }
        }
    },
    weight: |group, c, i| {
        let (d, m) = head(group, c, i / 32);
        d * nibble(&group[HEAD + i / 32 * 256..], c, i % 32) as f32 + m
    },
};

/// The columns' steps: an f16 times six bits, exact. Also Q5_K's.
#[inline(always)]
pub(super) unsafe fn step<S: Isa>(group: *const u8, part: usize) -> S::F {
    unsafe {
        S::mul(S::load_f16(group as *const u16), S::load_i8(group.add(64 + part * 32) as *const i8))
    }
}

/// Their minima.
#[inline(always)]
pub(super) unsafe fn minimum<S: Isa>(group: *const u8, part: usize) -> S::F {
    unsafe {
        S::mul(
            S::load_f16(group.add(32) as *const u16),
            S::load_i8(group.add(80 + part * 32) as *const i8),
        )
    }
}

pub(crate) struct Q4K;

impl<S: Isa> Blocks<S> for Q4K {
    const SUPER: usize = 8;
    const BYTES: usize = BYTES;
    const SUM: Sum = Sum::Four;
    const MINIMUM: Minimum = Minimum::One;
    type Planes = ();
    #[inline(always)]
    unsafe fn planes(_: *const u8, _: usize) {}
    #[inline(always)]
    unsafe fn line(group: *const u8, part: usize, i: usize, _: &mut ()) -> (S::B, S::B) {
        unsafe { S::nibbles(group.add(HEAD + part * 256 + i * 64)) }
    }
    #[inline(always)]
    unsafe fn step(group: *const u8, part: usize) -> S::F {
        unsafe { step::<S>(group, part) }
    }
    #[inline(always)]
    unsafe fn minimum(group: *const u8, part: usize) -> S::F {
        unsafe { minimum::<S>(group, part) }
    }
}

//! Q6_K: 256 codes of six bits less 32, a signed byte as factor of each 16, an f16 step (`block_q6_K`). A group is a block: `[16]` steps,
//! 32 bytes of nothing, `[16][16]` factors, `[8]` four lines and two of fifth and sixth bits: 1 % more than the file.

use super::super::isa::Isa;
use super::{
    Blocks, Kind, Part, Sum, half_at, nibble, nibble_pairs, put_half, put_nibbles, put_run,
    quantize, run, sixth,
};

const LINES: usize = 64 + 256;
const BYTES: usize = LINES + 8 * 384;

/// Where the nibbles of part `j` lie, and by how much they are shifted. ggml: of each 128 weights, four runs of 32: low nibbles of bytes
/// 0.. and 32.., then their high nibbles.
fn nibbles_at(j: usize) -> (usize, u32) {
    (j / 4 * 64 + j % 2 * 32, j as u32 % 4 / 2 * 4)
}

fn codes(block: &[u8], j: usize) -> [u8; 32] {
    let ((at, shift), high) = (nibbles_at(j), run(&block[128..], j));
    std::array::from_fn(|i| block[at + i] >> shift & 15 | high[i] << 4)
}

fn part(block: &[u8], j: usize) -> Part {
    let codes = codes(block, j);
    let factor = |i: usize| block[192 + j * 2 + i / 16] as i8 as i32;
    Part::new(std::array::from_fn(|i| factor(i) * (codes[i] as i32 - 32)), half_at(block, 208), 0.0)
}

pub(super) static KIND: Kind = Kind {
    name: "q6_k",
    ggml: 14,
    block: 256,
    bytes: 210,
    halves: &[208],
    quantize: Some(quantize::q6_k),
    part,
    group: 256,
    group_bytes: BYTES,
    pack: |row, c, panel| {
        for (block, group) in row.chunks_exact(210).zip(panel.chunks_exact_mut(BYTES)) {
            put_half(group, c, &block[208..210]);
            for (s, factor) in block[192..208].iter().enumerate() {
                group[64 + s * 16 + c] = *factor;
            }
            for j in 0..8 {
                let ((at, shift), lines) = (nibbles_at(j), &mut group[LINES + j * 384..]);
                put_nibbles(nibble_pairs(&block[at..], shift), c, lines);
                put_run(&block[128..], j, c, &mut lines[256..]);
            }
        }
    },
    weight: |group, c, i| {
        let lines = &group[LINES + i / 32 * 384..];
        let code = nibble(lines, c, i % 32) | sixth(&lines[256..], c, i % 32);
        half_at(group, c * 2)
            * (group[64 + i / 16 * 16 + c] as i8 as i32 * (code as i32 - 32)) as f32
    },
};

pub(crate) struct Q6K;

impl<S: Isa> Blocks<S> for Q6K {
    const SUPER: usize = 8;
    const BYTES: usize = BYTES;
    const SUM: Sum = Sum::Halves;
    const OFFSET: i32 = 32;
    type Planes = (S::B, S::B);
    #[inline(always)]
    unsafe fn planes(group: *const u8, part: usize) -> (S::B, S::B) {
        unsafe {
            (
                S::load_b(group.add(LINES + part * 384 + 256)),
                S::load_b(group.add(LINES + part * 384 + 320)),
            )
        }
    }
    #[inline(always)]
    unsafe fn line(
        group: *const u8,
        part: usize,
        i: usize,
        planes: &mut (S::B, S::B),
    ) -> (S::B, S::B) {
        unsafe {
            let (low, high) = S::nibbles(group.add(LINES + part * 384 + i * 64));
            let (a, b) = *planes;
            *planes = (S::shr_b(a, 2), S::shr_b(b, 2));
            (
                S::or_b(low, S::and_b(S::shl_b(a, 4), 48)),
                S::or_b(high, S::and_b(S::shl_b(b, 4), 48)),
            )
        }
    }
    #[inline(always)]
    unsafe fn step(group: *const u8, _: usize) -> S::F {
        unsafe { S::load_f16(group as *const u16) }
    }
    #[inline(always)]
    unsafe fn factor(group: *const u8, part: usize, half: usize) -> S::I {
        unsafe { S::factors(group.add(64 + part * 32 + half * 16) as *const i8) }
    }
}

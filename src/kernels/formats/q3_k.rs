//! Q3_K: 256 codes of three bits less 4, for each 16 a factor of six bits less 32, an f16 step (`block_q3_K`). A group is a block: `[16]` steps,
//! 32 bytes of nothing, `[16][16]` factors (signed bytes), `[8]` two lines and one of third bits: 5.5 % more than the file.

use super::super::isa::Isa;
use super::{
    Blocks, Kind, Part, Sum, bit_of_each, fifth, half_at, put_fifth, put_half, put_run, run, sixth,
};

const LINES: usize = 64 + 256;
const BYTES: usize = LINES + 8 * 192;

/// Two bits from a run, third bits of run j are bits j of 32 bytes.
fn codes(block: &[u8], j: usize) -> [u8; 32] {
    let low = run(&block[32..], j);
    std::array::from_fn(|i| low[i] | (block[i] >> j & 1) << 2)
}

/// Of the factors' six bits, four lie in nibbles of eight bytes and two in four bytes (ggml-quants.c, `dequantize_row_q3_K`).
fn factor(block: &[u8], s: usize) -> i8 {
    let low = block[96 + s % 8] >> (s / 8 * 4) & 15;
    let high = block[104 + s % 4] >> (s / 4 * 2) & 3;
    (low | high << 4) as i8 - 32
}

fn part(block: &[u8], j: usize) -> Part {
    let codes = codes(block, j);
    let q = std::array::from_fn(|i| factor(block, 2 * j + i / 16) as i32 * (codes[i] as i32 - 4));
    Part::new(q, half_at(block, 108), 0.0)
}

pub(super) static KIND: Kind = Kind {
    name: "q3_k",
    ggml: 11,
    block: 256,
    bytes: 110,
    halves: &[108],
    quantize: None,
    part,
    group: 256,
    group_bytes: BYTES,
    pack: |row, c, panel| {
        for (block, group) in row.chunks_exact(110).zip(panel.chunks_exact_mut(BYTES)) {
            put_half(group, c, &block[108..110]);
            for s in 0..16 {
                group[64 + s * 16 + c] = factor(block, s) as u8;
            }
            for j in 0..8 {
                let lines = &mut group[LINES + j * 192..];
                put_run(&block[32..], j, c, lines);
                put_fifth(bit_of_each(block, j), c, &mut lines[128..]);
            }
        }
    },
    weight: |group, c, i| {
        let lines = &group[LINES + i / 32 * 192..];
        let code = sixth(lines, c, i % 32) >> 4 | fifth(&lines[128..], c, i % 32) >> 2;
        half_at(group, c * 2)
            * (group[64 + i / 16 * 16 + c] as i8 as i32 * (code as i32 - 4)) as f32
    },
};

pub(crate) struct Q3K;

impl<S: Isa> Blocks<S> for Q3K {
    const SUPER: usize = 8;
    const BYTES: usize = BYTES;
    const SUM: Sum = Sum::Quarters;
    const OFFSET: i32 = 4;
    type Planes = (S::B, S::B, S::B);
    #[inline(always)]
    unsafe fn planes(group: *const u8, part: usize) -> (S::B, S::B, S::B) {
        let lines = LINES + part * 192;
        unsafe {
            (
                S::load_b(group.add(lines)),
                S::load_b(group.add(lines + 64)),
                S::load_b(group.add(lines + 128)),
            )
        }
    }
    #[inline(always)]
    unsafe fn line(
        _: *const u8,
        _: usize,
        _: usize,
        planes: &mut (S::B, S::B, S::B),
    ) -> (S::B, S::B) {
        unsafe {
            let (a, b, c) = *planes;
            *planes = (S::shr_b(a, 2), S::shr_b(b, 2), S::shr_b(c, 1));
            let (low, high) = (S::and_b(S::shl_b(c, 2), 4), S::and_b(S::shr_b(c, 2), 4));
            (S::or_b(S::and_b(a, 3), low), S::or_b(S::and_b(b, 3), high))
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

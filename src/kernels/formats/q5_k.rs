//! Q5_K: Q4_K with codes of five bits (`block_q5_K`). A group is Q4_K's head, then `[8]` four lines and one of fifth bits: 2.3 % more than the file.

use super::super::isa::Isa;
use super::q4_k::{HEAD, head, minimum, numbers, put_head, step};
use super::{
    Blocks, Kind, Minimum, Part, Sum, bit_of_each, fifth, nibble, nibble_pairs, put_fifth,
    put_nibbles, quantize, with_fifth,
};

const BYTES: usize = HEAD + 8 * 320;

fn codes(block: &[u8], j: usize) -> [u8; 32] {
    std::array::from_fn(|i| {
        block[48 + j / 2 * 32 + i] >> (j % 2 * 4) & 15 | (block[16 + i] >> j & 1) << 4
    })
}

fn part(block: &[u8], j: usize) -> Part {
    let (d, m) = numbers(block, j);
    Part::new(codes(block, j).map(i32::from), d, m)
}

pub(super) static KIND: Kind = Kind {
    name: "q5_k",
    ggml: 13,
    block: 256,
    bytes: 176,
    halves: &[0, 2],
    quantize: Some(quantize::q5_k),
    part,
    group: 256,
    group_bytes: BYTES,
    pack: |row, c, panel| {
        for (block, group) in row.chunks_exact(176).zip(panel.chunks_exact_mut(BYTES)) {
            put_head(block, c, group);
            for j in 0..8 {
                let lines = &mut group[HEAD + j * 320..];
                put_nibbles(nibble_pairs(&block[48 + j / 2 * 32..], j as u32 % 2 * 4), c, lines);
                put_fifth(bit_of_each(&block[16..], j), c, &mut lines[256..]);
            }
        }
    },
    weight: |group, c, i| {
        let (d, m) = head(group, c, i / 32);
        let lines = &group[HEAD + i / 32 * 320..];
        d * (nibble(lines, c, i % 32) | fifth(&lines[256..], c, i % 32)) as f32 + m
    },
};

pub(crate) struct Q5K;

impl<S: Isa> Blocks<S> for Q5K {
    const SUPER: usize = 8;
    const BYTES: usize = BYTES;
    const SUM: Sum = Sum::Five;
    const MINIMUM: Minimum = Minimum::One;
    type Planes = S::B;
    #[inline(always)]
    unsafe fn planes(group: *const u8, part: usize) -> S::B {
        unsafe { S::load_b(group.add(HEAD + part * 320 + 256)) }
    }
    #[inline(always)]
    unsafe fn line(group: *const u8, part: usize, i: usize, plane: &mut S::B) -> (S::B, S::B) {
        unsafe { with_fifth::<S>(S::nibbles(group.add(HEAD + part * 320 + i * 64)), plane) }
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

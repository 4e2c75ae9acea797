//! Q5_0: 32 codes of five bits less 16 and an f16 step (`block_q5_0`). A group is two blocks: `[2]` four lines and one of fifth bits, then
//! `[2][16]` steps.

use super::super::isa::Isa;
use super::{
    Blocks, Kind, Part, Sum, fifth, half_at, nibble, put_fifth, put_half, put_nibbles, quantize,
    sixteen, with_fifth,
};

const BYTES: usize = 2 * 320 + 64;

/// The 32 codes of five bits; fifth bits first, as in Q5_0 and Q5_1.
pub(super) fn codes(bits: &[u8]) -> [u8; 32] {
    let fifth = u32::from_le_bytes([bits[0], bits[1], bits[2], bits[3]]);
    std::array::from_fn(|i| bits[4 + i % 16] >> (i / 16 * 4) & 15 | ((fifth >> i & 1) as u8) << 4)
}

fn part(block: &[u8], _: usize) -> Part {
    Part::new(codes(&block[2..]).map(|q| q as i32 - 16), half_at(block, 0), 0.0)
}

pub(super) static KIND: Kind = Kind {
    name: "q5_0",
    ggml: 6,
    block: 32,
    bytes: 22,
    halves: &[0],
    quantize: Some(quantize::q5_0),
    part,
    group: 64,
    group_bytes: BYTES,
    pack: |row, c, panel| {
        for (b, block) in row.chunks_exact(22).enumerate() {
            let group = &mut panel[b / 2 * BYTES..][..BYTES];
            put_half(&mut group[640 + b % 2 * 32..], c, &block[..2]);
            let lines = &mut group[b % 2 * 320..];
            put_nibbles(sixteen(&block[6..]), c, lines);
            put_fifth(
                u32::from_le_bytes([block[2], block[3], block[4], block[5]]),
                c,
                &mut lines[256..],
            );
        }
    },
    weight: |group, c, i| {
        let (lines, k) = (&group[i / 32 * 320..], i % 32);
        let code = nibble(lines, c, k) | fifth(&lines[256..], c, k);
        half_at(group, 640 + i / 32 * 32 + c * 2) * (code as i32 - 16) as f32
    },
};

pub(crate) struct Q50;

impl<S: Isa> Blocks<S> for Q50 {
    const SUPER: usize = 2;
    const BYTES: usize = BYTES;
    const SUM: Sum = Sum::Five;
    const OFFSET: i32 = 16;
    type Planes = S::B;
    #[inline(always)]
    unsafe fn planes(group: *const u8, part: usize) -> S::B {
        unsafe { S::load_b(group.add(part * 320 + 256)) }
    }
    #[inline(always)]
    unsafe fn line(group: *const u8, part: usize, i: usize, plane: &mut S::B) -> (S::B, S::B) {
        unsafe { with_fifth::<S>(S::nibbles(group.add(part * 320 + i * 64)), plane) }
    }
    #[inline(always)]
    unsafe fn step(group: *const u8, part: usize) -> S::F {
        unsafe { S::load_f16(group.add(640 + part * 32) as *const u16) }
    }
}

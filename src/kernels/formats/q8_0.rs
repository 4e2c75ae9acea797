//! Q8_0: 32 signed bytes and an f16 step (`block_q8_0`). A group is two blocks: `[2][8 quads][16 columns][4 k]` bytes, weight + 128, then
//! `[2][16]` steps.

use super::super::isa::Isa;
use super::{Blocks, Kind, Part, Sum, half_at, put_half, quantize};

/// Bytes of a group.
const PAIR: usize = 2 * 512 + 64;

/// Where block b of a panel begins, and its steps.
fn place(b: usize) -> (usize, usize) {
    (b / 2 * PAIR + b % 2 * 512, b / 2 * PAIR + 1024 + b % 2 * 32)
}

fn part(block: &[u8], _: usize) -> Part {
    Part::new(std::array::from_fn(|i| block[2 + i] as i8 as i32), half_at(block, 0), 0.0)
}

pub(super) static KIND: Kind = Kind {
    name: "q8_0",
    ggml: 8,
    block: 32,
    bytes: 34,
    halves: &[0],
    quantize: Some(quantize::q8_0),
    part,
    group: 64,
    group_bytes: PAIR,
    pack: |row, c, panel| {
        for (b, block) in row.chunks_exact(34).enumerate() {
            let (quads, steps) = place(b);
            put_half(&mut panel[steps..], c, &block[..2]);
            for (i, q) in block[2..].as_chunks::<4>().0.iter().enumerate() {
                panel[quads + i * 64 + c * 4..][..4].copy_from_slice(&q.map(|q| q ^ 0x80));
            }
        }
    },
    weight: |group, c, i| {
        let (quads, steps) = place(i / 32);
        half_at(group, steps + c * 2)
            * (group[quads + i % 32 / 4 * 64 + c * 4 + i % 4] as i32 - 128) as f32
    },
};

pub(crate) struct Q80;

impl<S: Isa> Blocks<S> for Q80 {
    const SUPER: usize = 2;
    const BYTES: usize = PAIR;
    const SUM: Sum = Sum::Signed;
    const UNPACKED: bool = false;
    type Planes = ();
    #[inline(always)]
    unsafe fn planes(_: *const u8, _: usize) {}
    #[inline(always)]
    unsafe fn line(group: *const u8, part: usize, i: usize, _: &mut ()) -> (S::B, S::B) {
        let at = part * 512 + i * 64;
        unsafe { (S::load_b(group.add(at)), S::load_b(group.add(at + 256))) }
    }
    #[inline(always)]
    unsafe fn half(group: *const u8, part: usize, i: usize, half: usize, _: &mut ()) -> S::B {
        unsafe { S::load_b(group.add(part * 512 + half * 256 + i * 64)) }
    }
    #[inline(always)]
    unsafe fn step(group: *const u8, part: usize) -> S::F {
        unsafe { S::load_f16(group.add(1024 + part * 32) as *const u16) }
    }
}

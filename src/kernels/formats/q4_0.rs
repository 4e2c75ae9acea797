//! Q4_0: 32 nibbles less 8 and an f16 step (`block_q4_0`). A group is two blocks: `[2]` four lines, then `[2][16]` steps.

use super::super::isa::Isa;
use super::{Blocks, Kind, Part, Sum, half_at, nibble, put_half, quantize};

pub(super) const BYTES: usize = 2 * 256 + 64;

fn part(block: &[u8], _: usize) -> Part {
    Part::new(
        std::array::from_fn(|i| (block[2 + i % 16] >> (i / 16 * 4) & 15) as i32 - 8),
        half_at(block, 0),
        0.0,
    )
}

/// Also IQ4_NL's.
pub(super) fn pack(row: &[u8], c: usize, panel: &mut [u8]) {
    for (b, block) in row.chunks_exact(18).enumerate() {
        let group = &mut panel[b / 2 * BYTES..][..BYTES];
        put_half(&mut group[512 + b % 2 * 32..], c, &block[..2]);
        for (i, q) in block[2..].as_chunks::<4>().0.iter().enumerate() {
            group[b % 2 * 256 + i * 64 + c * 4..][..4].copy_from_slice(q);
        }
    }
}

pub(super) static KIND: Kind = Kind {
    name: "q4_0",
    ggml: 2,
    block: 32,
    bytes: 18,
    halves: &[0],
    quantize: Some(quantize::q4_0),
    part,
    group: 64,
    group_bytes: BYTES,
    pack,
    weight: |group, c, i| {
        half_at(group, 512 + i / 32 * 32 + c * 2)
            * (nibble(&group[i / 32 * 256..], c, i % 32) as i32 - 8) as f32
    },
};

pub(crate) struct Q40;

impl<S: Isa> Blocks<S> for Q40 {
    const SUPER: usize = 2;
    const BYTES: usize = BYTES;
    const SUM: Sum = Sum::Four;
    const OFFSET: i32 = 8;
    type Planes = ();
    #[inline(always)]
    unsafe fn planes(_: *const u8, _: usize) {}
    #[inline(always)]
    unsafe fn line(group: *const u8, part: usize, i: usize, _: &mut ()) -> (S::B, S::B) {
        unsafe { S::nibbles(group.add(part * 256 + i * 64)) }
    }
    #[inline(always)]
    unsafe fn step(group: *const u8, part: usize) -> S::F {
        unsafe { S::load_f16(group.add(512 + part * 32) as *const u16) }
    }
}

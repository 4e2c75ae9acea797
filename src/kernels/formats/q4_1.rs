//! Q4_1: 32 nibbles, an f16 step and an f16 minimum (`block_q4_1`). A group is a block: four lines, steps, minima.

use super::super::isa::Isa;
use super::{Blocks, Kind, Minimum, Part, Sum, half_at, nibble, put_half, quantize};

const BYTES: usize = 256 + 64;

fn part(block: &[u8], _: usize) -> Part {
    Part::new(
        std::array::from_fn(|i| (block[4 + i % 16] >> (i / 16 * 4) & 15) as i32),
        half_at(block, 0),
        half_at(block, 2),
    )
}

pub(super) static KIND: Kind = Kind {
    name: "q4_1",
    ggml: 3,
    block: 32,
    bytes: 20,
    halves: &[0, 2],
    quantize: Some(quantize::q4_1),
    part,
    group: 32,
    group_bytes: BYTES,
    pack: |row, c, panel| {
        for (block, out) in row.chunks_exact(20).zip(panel.chunks_exact_mut(BYTES)) {
            put_half(&mut out[256..], c, &block[..2]);
            put_half(&mut out[288..], c, &block[2..4]);
            // ggml: byte i holds k = i in its low nibble, k = i + 16 in its high one: our lines, but for the order of bytes.
            for (i, q) in block[4..].as_chunks::<4>().0.iter().enumerate() {
                out[i * 64 + c * 4..][..4].copy_from_slice(q);
            }
        }
    },
    weight: |group, c, i| {
        half_at(group, 256 + c * 2) * nibble(group, c, i) as f32 + half_at(group, 288 + c * 2)
    },
};

pub(crate) struct Q41;

impl<S: Isa> Blocks<S> for Q41 {
    const SUPER: usize = 1;
    const BYTES: usize = BYTES;
    const SUM: Sum = Sum::Four;
    const MINIMUM: Minimum = Minimum::One;
    type Planes = ();
    #[inline(always)]
    unsafe fn planes(_: *const u8, _: usize) {}
    #[inline(always)]
    unsafe fn line(group: *const u8, _: usize, i: usize, _: &mut ()) -> (S::B, S::B) {
        unsafe { S::nibbles(group.add(i * 64)) }
    }
    #[inline(always)]
    unsafe fn step(group: *const u8, _: usize) -> S::F {
        unsafe { S::load_f16(group.add(256) as *const u16) }
    }
    #[inline(always)]
    unsafe fn minimum(group: *const u8, _: usize) -> S::F {
        unsafe { S::load_f16(group.add(288) as *const u16) }
    }
}

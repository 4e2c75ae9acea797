//! Q5_1: 32 codes of five bits, an f16 step and an f16 minimum (`block_q5_1`). A group is a block: four lines, one of fifth bits, steps, minima.

use super::super::isa::Isa;
use super::q5_0::codes;
use super::{
    Blocks, Kind, Minimum, Part, Sum, fifth, half_at, nibble, put_fifth, put_half, put_nibbles,
    quantize, sixteen, with_fifth,
};

const BYTES: usize = 320 + 64;

fn part(block: &[u8], _: usize) -> Part {
    Part::new(codes(&block[4..]).map(i32::from), half_at(block, 0), half_at(block, 2))
}

pub(super) static KIND: Kind = Kind {
    name: "q5_1",
    ggml: 7,
    block: 32,
    bytes: 24,
    halves: &[0, 2],
    quantize: Some(quantize::q5_1),
    part,
    group: 32,
    group_bytes: BYTES,
    pack: |row, c, panel| {
        for (block, group) in row.chunks_exact(24).zip(panel.chunks_exact_mut(BYTES)) {
            put_half(&mut group[320..], c, &block[..2]);
            put_half(&mut group[352..], c, &block[2..4]);
            put_nibbles(sixteen(&block[8..]), c, group);
            put_fifth(
                u32::from_le_bytes([block[4], block[5], block[6], block[7]]),
                c,
                &mut group[256..],
            );
        }
    },
    weight: |group, c, i| {
        let code = nibble(group, c, i) | fifth(&group[256..], c, i);
        half_at(group, 320 + c * 2) * code as f32 + half_at(group, 352 + c * 2)
    },
};

pub(crate) struct Q51;

impl<S: Isa> Blocks<S> for Q51 {
    const SUPER: usize = 1;
    const BYTES: usize = BYTES;
    const SUM: Sum = Sum::Five;
    const MINIMUM: Minimum = Minimum::One;
    type Planes = S::B;
    #[inline(always)]
    unsafe fn planes(group: *const u8, _: usize) -> S::B {
        unsafe { S::load_b(group.add(256)) }
    }
    #[inline(always)]
    unsafe fn line(group: *const u8, _: usize, i: usize, plane: &mut S::B) -> (S::B, S::B) {
        unsafe { with_fifth::<S>(S::nibbles(group.add(i * 64)), plane) }
    }
    #[inline(always)]
    unsafe fn step(group: *const u8, _: usize) -> S::F {
        unsafe { S::load_f16(group.add(320) as *const u16) }
    }
    #[inline(always)]
    unsafe fn minimum(group: *const u8, _: usize) -> S::F {
        unsafe { S::load_f16(group.add(352) as *const u16) }
    }
}

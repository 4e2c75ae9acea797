//! IQ4_NL: 32 nibbles that number the points of a curve, and an f16 step (`block_iq4_nl`). Panels are Q4_0's.

use super::super::isa::Isa;
use super::{Blocks, CURVE, Kind, Part, RAISED, Sum, half_at, looked_up, nibble, q4_0};

fn part(block: &[u8], _: usize) -> Part {
    let point = |i: usize| CURVE[(block[2 + i % 16] >> (i / 16 * 4) & 15) as usize] as i32;
    Part::new(std::array::from_fn(point), half_at(block, 0), 0.0)
}

pub(super) static KIND: Kind = Kind {
    name: "iq4_nl",
    ggml: 20,
    block: 32,
    bytes: 18,
    halves: &[0],
    quantize: None,
    part,
    group: 64,
    group_bytes: q4_0::BYTES,
    pack: q4_0::pack,
    weight: |group, c, i| {
        half_at(group, 512 + i / 32 * 32 + c * 2)
            * CURVE[nibble(&group[i / 32 * 256..], c, i % 32) as usize] as f32
    },
};

pub(crate) struct Iq4Nl;

impl<S: Isa> Blocks<S> for Iq4Nl {
    const SUPER: usize = 2;
    const BYTES: usize = q4_0::BYTES;
    const SUM: Sum = Sum::Signed;
    type Planes = ();
    #[inline(always)]
    unsafe fn planes(_: *const u8, _: usize) {}
    #[inline(always)]
    unsafe fn line(group: *const u8, part: usize, i: usize, _: &mut ()) -> (S::B, S::B) {
        unsafe { looked_up::<S>(&RAISED, group.add(part * 256 + i * 64)) }
    }
    #[inline(always)]
    unsafe fn step(group: *const u8, part: usize) -> S::F {
        unsafe { S::load_f16(group.add(512 + part * 32) as *const u16) }
    }
}

//! MXFP4: 32 nibbles that number the values of a four-bit float (doubled), and a power of two in a byte (`block_mxfp4`). A group is four blocks:
//! `[4]` four lines, then `[4][16]` bytes of powers: as many bytes as the file.

use super::super::isa::{Isa, power_of_byte};
use super::{Blocks, Kind, Part, Sum, looked_up, nibble};

const BYTES: usize = 4 * 256 + 64;

/// ggml-common.h, `kvalues_mxfp4`.
pub(super) const VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
/// The same plus 16.
const CODES: [u8; 16] = {
    let mut out = [0; 16];
    let mut i = 0;
    while i < 16 {
        out[i] = (VALUES[i] + 16) as u8;
        i += 1;
    }
    out
};

fn part(block: &[u8], _: usize) -> Part {
    let value = |i: usize| VALUES[(block[1 + i % 16] >> (i / 16 * 4) & 15) as usize] as i32;
    Part::new(std::array::from_fn(value), power_of_byte(block[0]), 0.0)
}

pub(super) static KIND: Kind = Kind {
    name: "mxfp4",
    ggml: 39,
    block: 32,
    bytes: 17,
    halves: &[],
    quantize: None,
    part,
    group: 128,
    group_bytes: BYTES,
    pack: |row, c, panel| {
        for (b, block) in row.chunks_exact(17).enumerate() {
            let group = &mut panel[b / 4 * BYTES..][..BYTES];
            group[1024 + b % 4 * 16 + c] = block[0];
            for (i, q) in block[1..].as_chunks::<4>().0.iter().enumerate() {
                group[b % 4 * 256 + i * 64 + c * 4..][..4].copy_from_slice(q);
            }
        }
    },
    weight: |group, c, i| {
        let value = VALUES[nibble(&group[i / 32 * 256..], c, i % 32) as usize];
        power_of_byte(group[1024 + i / 32 * 16 + c]) * value as f32
    },
};

pub(crate) struct Mxfp4;

impl<S: Isa> Blocks<S> for Mxfp4 {
    const SUPER: usize = 4;
    const BYTES: usize = BYTES;
    const SUM: Sum = Sum::Five;
    const OFFSET: i32 = 16;
    type Planes = ();
    #[inline(always)]
    unsafe fn planes(_: *const u8, _: usize) {}
    #[inline(always)]
    unsafe fn line(group: *const u8, part: usize, i: usize, _: &mut ()) -> (S::B, S::B) {
        unsafe { looked_up::<S>(&CODES, group.add(part * 256 + i * 64)) }
    }
    #[inline(always)]
    unsafe fn step(group: *const u8, part: usize) -> S::F {
        unsafe { S::load_e8m0(group.add(1024 + part * 16)) }
    }
}

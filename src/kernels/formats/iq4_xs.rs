//! IQ4_XS: 256 nibbles that number the points of IQ4_NL's curve, eight factors of six bits less 32, an f16 step (`block_iq4_xs`). A group is
//! a block: `[16]` steps, 32 bytes of nothing, `[8][16]` factors (signed bytes), `[8]` four lines: 2.9 % more than the file.

use super::super::isa::Isa;
use super::{
    Blocks, CURVE, Kind, Part, RAISED, Sum, half_at, looked_up, nibble, put_half, put_nibbles,
    sixteen,
};

const LINES: usize = 64 + 128;
const BYTES: usize = LINES + 8 * 256;

fn codes(block: &[u8], j: usize) -> [u8; 32] {
    std::array::from_fn(|i| block[8 + j * 16 + i % 16] >> (i / 16 * 4) & 15)
}

fn factor(block: &[u8], j: usize) -> i8 {
    let high = u16::from_le_bytes([block[2], block[3]]) >> (2 * j) & 3;
    (block[4 + j / 2] >> (j % 2 * 4) & 15) as i8 + (high as i8) * 16 - 32
}

fn part(block: &[u8], j: usize) -> Part {
    let d = half_at(block, 0) * factor(block, j) as f32;
    Part::new(codes(block, j).map(|q| CURVE[q as usize] as i32), d, 0.0)
}

pub(super) static KIND: Kind = Kind {
    name: "iq4_xs",
    ggml: 23,
    block: 256,
    bytes: 136,
    halves: &[0],
    quantize: None,
    part,
    group: 256,
    group_bytes: BYTES,
    pack: |row, c, panel| {
        for (block, out) in row.chunks_exact(136).zip(panel.chunks_exact_mut(BYTES)) {
            put_half(out, c, &block[..2]);
            for j in 0..8 {
                out[64 + j * 16 + c] = factor(block, j) as u8;
                put_nibbles(sixteen(&block[8 + j * 16..]), c, &mut out[LINES + j * 256..]);
            }
        }
    },
    weight: |group, c, i| {
        let point = CURVE[nibble(&group[LINES + i / 32 * 256..], c, i % 32) as usize];
        half_at(group, c * 2) * group[64 + i / 32 * 16 + c] as i8 as f32 * point as f32
    },
};

pub(crate) struct Iq4Xs;

impl<S: Isa> Blocks<S> for Iq4Xs {
    const SUPER: usize = 8;
    const BYTES: usize = BYTES;
    const SUM: Sum = Sum::Signed;
    type Planes = ();
    #[inline(always)]
    unsafe fn planes(_: *const u8, _: usize) {}
    #[inline(always)]
    unsafe fn line(group: *const u8, part: usize, i: usize, _: &mut ()) -> (S::B, S::B) {
        unsafe { looked_up::<S>(&RAISED, group.add(LINES + part * 256 + i * 64)) }
    }
    /// An f16 times six bits: exact.
    #[inline(always)]
    unsafe fn step(group: *const u8, part: usize) -> S::F {
        unsafe {
            S::mul(
                S::load_f16(group as *const u16),
                S::load_i8(group.add(64 + part * 16) as *const i8),
            )
        }
    }
}

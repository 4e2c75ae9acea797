//! Q2_K: 256 codes of two bits, for each 16 a factor and a minimum of four bits, an f16 step of each (`block_q2_K`). A group is a block:
//! `[16]` steps of the factors, `[16]` steps of the minima negated, `[16][16]` bytes of a factor and a minimum, `[8]` two lines: as many
//! bytes as the file.

use super::super::isa::Isa;
use super::{Blocks, Kind, Minimum, Part, Sum, half_at, put_half, put_run, run, sixth};

const LINES: usize = 64 + 256;
const BYTES: usize = LINES + 8 * 128;

fn part(block: &[u8], j: usize) -> Part {
    let (codes, both) = (run(&block[16..], j), &block[2 * j..2 * j + 2]);
    Part {
        q: std::array::from_fn(|i| (both[i / 16] & 15) as i32 * codes[i] as i32),
        d: half_at(block, 80),
        m: -half_at(block, 82),
        minima: [(both[0] >> 4) as i32, (both[1] >> 4) as i32],
    }
}

pub(super) static KIND: Kind = Kind {
    name: "q2_k",
    ggml: 10,
    block: 256,
    bytes: 84,
    halves: &[80, 82],
    quantize: None,
    part,
    group: 256,
    group_bytes: BYTES,
    pack: |row, c, panel| {
        for (block, group) in row.chunks_exact(84).zip(panel.chunks_exact_mut(BYTES)) {
            put_half(group, c, &block[80..82]);
            put_half(&mut group[32..], c, &[block[82], block[83] ^ 0x80]);
            for (s, both) in block[..16].iter().enumerate() {
                group[64 + s * 16 + c] = *both;
            }
            for j in 0..8 {
                put_run(&block[16..], j, c, &mut group[LINES + j * 128..]);
            }
        }
    },
    weight: |group, c, i| {
        let both = group[64 + i / 16 * 16 + c];
        let code = sixth(&group[LINES + i / 32 * 128..], c, i % 32) >> 4;
        half_at(group, c * 2) * ((both & 15) as i32 * code as i32) as f32
            + half_at(group, 32 + c * 2) * (both >> 4) as f32
    },
};

pub(crate) struct Q2K;

impl<S: Isa> Blocks<S> for Q2K {
    const SUPER: usize = 8;
    const BYTES: usize = BYTES;
    const SUM: Sum = Sum::Quarters;
    const MINIMUM: Minimum = Minimum::Two;
    type Planes = (S::B, S::B);
    #[inline(always)]
    unsafe fn planes(group: *const u8, part: usize) -> (S::B, S::B) {
        unsafe {
            (
                S::load_b(group.add(LINES + part * 128)),
                S::load_b(group.add(LINES + part * 128 + 64)),
            )
        }
    }
    #[inline(always)]
    unsafe fn line(_: *const u8, _: usize, _: usize, planes: &mut (S::B, S::B)) -> (S::B, S::B) {
        unsafe {
            let (a, b) = *planes;
            *planes = (S::shr_b(a, 2), S::shr_b(b, 2));
            (S::and_b(a, 3), S::and_b(b, 3))
        }
    }
    #[inline(always)]
    unsafe fn step(group: *const u8, _: usize) -> S::F {
        unsafe { S::load_f16(group as *const u16) }
    }
    #[inline(always)]
    unsafe fn minimum(group: *const u8, _: usize) -> S::F {
        unsafe { S::load_f16(group.add(32) as *const u16) }
    }
    #[inline(always)]
    unsafe fn factor(group: *const u8, part: usize, half: usize) -> S::I {
        unsafe { S::factors4(group.add(64 + part * 32 + half * 16), false) }
    }
    #[inline(always)]
    unsafe fn minima(group: *const u8, part: usize) -> S::I {
        let at = 64 + part * 32;
        unsafe { S::pair(S::factors4(group.add(at), true), S::factors4(group.add(at + 16), true)) }
    }
}

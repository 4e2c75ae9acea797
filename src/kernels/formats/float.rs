//! F32, BF16 (even k in the low half of a word, odd k in the high half: a shift or a mask widens them) and F16.

use super::{Kind, Part, half_at};

fn no_part(_: &[u8], _: usize) -> Part {
    unreachable!("float types have no parts")
}

pub(super) static F32: Kind = Kind {
    name: "f32",
    ggml: 0,
    block: 1,
    bytes: 4,
    halves: &[],
    quantize: Some(|v, out| out.extend(v[0].to_le_bytes())),
    part: no_part,
    group: 1,
    group_bytes: 64,
    pack: |row, c, panel| {
        for (w, line) in row.as_chunks::<4>().0.iter().zip(panel.chunks_exact_mut(64)) {
            line[c * 4..c * 4 + 4].copy_from_slice(w);
        }
    },
    weight: |group, c, _| {
        f32::from_le_bytes([group[c * 4], group[c * 4 + 1], group[c * 4 + 2], group[c * 4 + 3]])
    },
};

pub(super) static BF16: Kind = Kind {
    name: "bf16",
    ggml: 30,
    block: 1,
    bytes: 2,
    halves: &[],
    quantize: Some(|v, out| out.extend(half::bf16::from_f32(v[0]).to_le_bytes())),
    part: no_part,
    group: 2,
    group_bytes: 64,
    pack: |row, c, panel| {
        for (pair, line) in row.chunks(4).zip(panel.chunks_exact_mut(64)) {
            line[c * 4..c * 4 + pair.len()].copy_from_slice(pair);
        }
    },
    weight: |group, c, i| {
        half::bf16::from_le_bytes([group[c * 4 + i * 2], group[c * 4 + i * 2 + 1]]).to_f32()
    },
};

pub(super) static F16: Kind = Kind {
    name: "f16",
    ggml: 1,
    block: 1,
    bytes: 2,
    halves: &[0],
    quantize: Some(|v, out| out.extend(half::f16::from_f32(v[0]).to_le_bytes())),
    part: no_part,
    group: 1,
    group_bytes: 32,
    pack: |row, c, panel| {
        for (w, line) in row.as_chunks::<2>().0.iter().zip(panel.chunks_exact_mut(32)) {
            line[c * 2..c * 2 + 2].copy_from_slice(w);
        }
    },
    weight: |group, c, _| half_at(group, c * 2),
};

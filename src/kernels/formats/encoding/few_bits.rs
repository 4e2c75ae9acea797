//! Types of one to four bits without codebooks that no kernel computes with: TQ1_0 and TQ2_0 (ternary), Q1_0, Q2_0 and NVFP4. In: blocks as
//! files have them. Out: their values, with ggml's operations (ggml-quants.c, `dequantize_row_*`).

use super::super::{half_at, mxfp4};
use super::Reading;

/// A code less 1, times `d`.
fn less_one(d: f32, code: u8) -> f32 {
    (f32::from(code) - 1.0) * d
}

/// The ternary digit `n` of a byte, from the highest: the byte is a fraction of 256 in base 3.
fn digit(byte: u8, n: u32) -> u8 {
    ((u16::from(byte.wrapping_mul(3u8.wrapping_pow(n))) * 3) >> 8) as u8
}

/// 256 weights: 32 bytes and 16 bytes of five digits each, 4 of four, then `d`. The first digits of all bytes, then the second ones.
fn tq1_0(block: &[u8], out: &mut Vec<f32>) {
    let d = half_at(block, 52);
    for (bytes, digits) in [(&block[..32], 5), (&block[32..48], 5), (&block[48..52], 4)] {
        for n in 0..digits {
            out.extend(bytes.iter().map(|byte| less_one(d, digit(*byte, n))));
        }
    }
}

/// 256 weights: of each 128 the lowest two bits of 32 bytes, then the next ones; then `d`.
fn tq2_0(block: &[u8], out: &mut Vec<f32>) {
    let d = half_at(block, 64);
    for bytes in [&block[..32], &block[32..64]] {
        for shift in [0, 2, 4, 6] {
            out.extend(bytes.iter().map(|byte| less_one(d, byte >> shift & 3)));
        }
    }
}

/// 128 weights: `d`, then a bit each, set for `d` and clear for `-d`.
fn q1_0(block: &[u8], out: &mut Vec<f32>) {
    let d = half_at(block, 0);
    for byte in &block[2..18] {
        out.extend((0..8).map(|bit| if byte >> bit & 1 == 1 { d } else { -d }));
    }
}

/// 64 weights: `d`, then two bits each.
fn q2_0(block: &[u8], out: &mut Vec<f32>) {
    let d = half_at(block, 0);
    for byte in &block[2..18] {
        out.extend([0, 2, 4, 6].map(|shift| less_one(d, byte >> shift & 3)));
    }
}

/// Half of an E4M3 number without sign (ggml-impl.h, `ggml_ue4m3_to_fp32`), exactly: of the eight bits the first counts for nothing.
fn half_of_e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    match (byte, exponent) {
        (0 | 127, _) => 0.0,
        (_, 0) => mantissa * 2f32.powi(-10),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 11),
    }
}

/// 64 weights: four E4M3 numbers, then of each 16 weights the low nibbles of 8 bytes and the high ones, which number the values of a
/// four-bit float.
fn nvfp4(block: &[u8], out: &mut Vec<f32>) {
    for (part, bytes) in block[4..36].chunks_exact(8).enumerate() {
        let d = half_of_e4m3(block[part]);
        for shift in [0, 4] {
            let value = |byte: &u8| mxfp4::VALUES[usize::from(byte >> shift & 15)];
            out.extend(bytes.iter().map(|byte| f32::from(value(byte)) * d));
        }
    }
}

pub(super) static TQ1_0: Reading = Reading {
    name: "tq1_0",
    ggml: 34,
    block: 256,
    bytes: 54,
    values: tq1_0,
    finite: |block| half_at(block, 52).is_finite(),
};
pub(super) static TQ2_0: Reading = Reading {
    name: "tq2_0",
    ggml: 35,
    block: 256,
    bytes: 66,
    values: tq2_0,
    finite: |block| half_at(block, 64).is_finite(),
};
pub(super) static NVFP4: Reading = Reading {
    name: "nvfp4",
    ggml: 40,
    block: 64,
    bytes: 36,
    values: nvfp4,
    // All ones are no number (OCP 8-bit Floating Point, E4M3); ggml reads 0, or 240 with the first bit, and writes neither.
    finite: |block| block[..4].iter().all(|d| d & 127 != 127),
};
pub(super) static Q1_0: Reading = Reading {
    name: "q1_0",
    ggml: 41,
    block: 128,
    bytes: 18,
    values: q1_0,
    finite: |block| half_at(block, 0).is_finite(),
};
pub(super) static Q2_0: Reading = Reading {
    name: "q2_0",
    ggml: 42,
    block: 64,
    bytes: 18,
    values: q2_0,
    finite: |block| half_at(block, 0).is_finite(),
};

//! Weight matrices as the kernels read them: panels of 16 columns (16 rows of the file), k running along memory, so that one load brings
//! the next weight of all 16 outputs. In: rows in the file's layout. Out: panels. It computes nothing.
//!
//! | format | a panel |
//! |---|---|
//! | f32 | `[K][16]` f32 |
//! | bf16 | `[K/2][16][2]` u16: even k in the low half of a word, odd k in the high half: a shift or a mask widens them |
//! | f16 | `[K][16]` u16 |
//! | q8_0 | `[K/64]{[2 blocks][8 quads][16 columns][4 k]` bytes, weight + 128; `[2][16]` scales (f16)`}` |
//! | q4_1 | `[K/32]{[4 lines][16 columns][4]` bytes, line i: k = 4i + j in the low nibbles, 16 + 4i + j in the high; `[16]` scales, `[16]` minima (f16)`}` |
//!
//! A panel is read from end to end as one stream of whole cache lines: what the hardware prefetchers do best (scales apart from the
//! weights, two panels at a time, or software prefetch each cost 10 to 60 % of the bandwidth on Zen 4).
//! Columns past N, the k past an odd K (bf16) and the block past an odd number of blocks (q8_0) are zero. Panels begin at multiples of 64 bytes.

use super::Format;

/// Columns of a panel.
pub const COLUMNS: usize = 16;

/// Columns up to whole panels. Panics where that is no size.
pub fn padded(n: usize) -> usize {
    n.checked_next_multiple_of(COLUMNS).unwrap_or_else(|| panic!("{n} columns are more than memory can hold"))
}

/// Bytes of one panel of `k` weights a column. Panics where that is no size.
pub fn panel_bytes(format: Format, k: usize) -> usize {
    // No format takes 256 bytes for the 16 weights of a k.
    assert!(k <= usize::MAX >> 8, "{k} weights a column are more than memory can hold");
    let bytes = match format {
        Format::F32 => k * 64,
        Format::Bf16 => k.div_ceil(2) * 64,
        Format::F16 => k * 32,
        Format::Q8_0 => (k / 32).div_ceil(2) * EIGHT_PAIR,
        Format::Q4_1 => k / 32 * FOUR_BLOCK,
    };
    bytes.next_multiple_of(64)
}

/// Bytes of two blocks of a q8_0 panel with their scales.
pub(crate) const EIGHT_PAIR: usize = 2 * 512 + 64;
/// Bytes of a block of a q4_1 panel with its scales and minima.
pub(crate) const FOUR_BLOCK: usize = 256 + 64;

/// Where block b of a q8_0 panel begins, and its scales.
fn eight(b: usize) -> (usize, usize) {
    (b / 2 * EIGHT_PAIR + b % 2 * 512, b / 2 * EIGHT_PAIR + 1024 + b % 2 * 32)
}

/// A matrix in panels: `n` outputs of `k` inputs each.
#[derive(Clone, Copy)]
pub struct Panels<'a> {
    pub(crate) format: Format,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) data: &'a [u8],
}

impl<'a> Panels<'a> {
    /// `data` holds `n.div_ceil(16)` panels. Panics if its length is another, or a quantized `k` is not a multiple of 32.
    pub fn new(format: Format, n: usize, k: usize, data: &'a [u8]) -> Panels<'a> {
        let bytes = n.div_ceil(COLUMNS).checked_mul(panel_bytes(format, k));
        assert_eq!(Some(data.len()), bytes, "{n} x {k} {format} panels");
        assert!(k.is_multiple_of(format.block()), "{format} rows come in blocks of {}", format.block());
        Panels { format, n, k, data }
    }

    pub(crate) fn count(&self) -> usize {
        self.n.div_ceil(COLUMNS)
    }

    /// Floats of the same matrix in f32 panels.
    pub fn wide_floats(&self) -> usize {
        self.count() * self.k * COLUMNS
    }

    /// Weight (row of the file = output `n`) as f32: `out` has `k` places. One rounding a weight (q4_1: scale * q + minimum, fused).
    pub fn row(&self, n: usize, out: &mut [f32]) {
        assert!(n < self.n && out.len() == self.k);
        let bytes = panel_bytes(self.format, self.k);
        let panel = &self.data[n / COLUMNS * bytes..][..bytes];
        let c = n % COLUMNS;
        let half_at = |at: usize| u16::from_le_bytes([panel[at], panel[at + 1]]);
        let f16_at = |at: usize| half::f16::from_bits(half_at(at)).to_f32_const();
        for (k, out) in out.iter_mut().enumerate() {
            let (block, i) = (k / 32, k % 32);
            *out = match self.format {
                Format::F32 => {
                    let at = k * 64 + c * 4;
                    f32::from_le_bytes([panel[at], panel[at + 1], panel[at + 2], panel[at + 3]])
                }
                Format::Bf16 => f32::from_bits((half_at(k / 2 * 64 + c * 4 + k % 2 * 2) as u32) << 16),
                Format::F16 => f16_at(k * 32 + c * 2),
                Format::Q8_0 => {
                    let (quads, scales) = eight(block);
                    let q = panel[quads + i / 4 * 64 + c * 4 + i % 4];
                    f16_at(scales + c * 2) * (q as i32 - 128) as f32
                }
                Format::Q4_1 => {
                    let at = block * FOUR_BLOCK;
                    let byte = panel[at + i % 16 / 4 * 64 + c * 4 + i % 4];
                    let q = if i < 16 { byte & 15 } else { byte >> 4 };
                    f16_at(at + 256 + c * 2).mul_add(q as f32, f16_at(at + 288 + c * 2))
                }
            };
        }
    }
}

/// Packs up to 16 rows of the file (`rows`: whole rows of `k` weights one after the other) into one panel. Panics on lengths that do not fit.
pub fn pack_panel(format: Format, k: usize, rows: &[u8], out: &mut [u8]) {
    let row_bytes = format.row_bytes(k);
    assert!(rows.len() <= COLUMNS * row_bytes && (row_bytes == 0 || rows.len().is_multiple_of(row_bytes)));
    assert!(out.len() == panel_bytes(format, k) && k.is_multiple_of(format.block()));
    out.fill(0);
    if row_bytes == 0 {
        return;
    }
    for (c, row) in rows.chunks_exact(row_bytes).enumerate() {
        match format {
            Format::F32 => {
                for (w, line) in row.as_chunks::<4>().0.iter().zip(out.chunks_exact_mut(64)) {
                    line[c * 4..c * 4 + 4].copy_from_slice(w);
                }
            }
            Format::Bf16 => {
                for (pair, line) in row.chunks(4).zip(out.chunks_exact_mut(64)) {
                    line[c * 4..c * 4 + pair.len()].copy_from_slice(pair);
                }
            }
            Format::F16 => {
                for (w, line) in row.as_chunks::<2>().0.iter().zip(out.chunks_exact_mut(32)) {
                    line[c * 2..c * 2 + 2].copy_from_slice(w);
                }
            }
            Format::Q8_0 => {
                for (b, block) in row.chunks_exact(34).enumerate() {
                    let (quads, scales) = eight(b);
                    out[scales + c * 2..][..2].copy_from_slice(&block[..2]);
                    for (i, q) in block[2..].as_chunks::<4>().0.iter().enumerate() {
                        out[quads + i * 64 + c * 4..][..4].copy_from_slice(&q.map(|q| q ^ 0x80));
                    }
                }
            }
            Format::Q4_1 => {
                for (block, out) in row.chunks_exact(20).zip(out.chunks_exact_mut(FOUR_BLOCK)) {
                    out[256 + c * 2..][..2].copy_from_slice(&block[..2]);
                    out[288 + c * 2..][..2].copy_from_slice(&block[2..4]);
                    // ggml: byte i holds k = i in its low nibble, k = i + 16 in its high one: our lines, but for the order of bytes.
                    for (i, q) in block[4..].as_chunks::<4>().0.iter().enumerate() {
                        out[i * 64 + c * 4..][..4].copy_from_slice(q);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows go in and come out of panels unchanged, at sizes that fill no panel.
    #[test]
    fn packing_loses_nothing() {
        for format in Format::ALL {
            let k = if format.is_quantized() { 96 } else { 37 };
            let n = 21;
            let row_bytes = format.row_bytes(k);
            // Scales of 1.0 = 0x3c00 and small numbers: finite whatever the format.
            let rows: Vec<u8> =
                (0..n * row_bytes).map(|i| if format.is_quantized() { 0x3c } else { (i * 7 % 61) as u8 }).collect();
            let mut data = vec![0; n.div_ceil(16) * panel_bytes(format, k)];
            for (rows, panel) in rows.chunks(16 * row_bytes).zip(data.chunks_exact_mut(panel_bytes(format, k))) {
                pack_panel(format, k, rows, panel);
            }
            let panels = Panels::new(format, n, k, &data);
            for r in 0..n {
                let mut got = vec![0.0; k];
                panels.row(r, &mut got);
                let row = &rows[r * row_bytes..][..row_bytes];
                for (i, got) in got.iter().enumerate() {
                    let half = |at: usize| u16::from_le_bytes([row[at], row[at + 1]]);
                    let want = match format {
                        Format::F32 => f32::from_le_bytes(row[i * 4..i * 4 + 4].try_into().unwrap()),
                        Format::Bf16 => half::bf16::from_bits(half(i * 2)).to_f32(),
                        Format::F16 => half::f16::from_bits(half(i * 2)).to_f32(),
                        Format::Q8_0 => half::f16::from_bits(half(i / 32 * 34)).to_f32() * 0x3c as f32,
                        Format::Q4_1 => {
                            let s = half::f16::from_bits(half(i / 32 * 20)).to_f32();
                            s * (if i % 32 < 16 { 0xc } else { 0x3 }) as f32 + s
                        }
                    };
                    assert_eq!(got.to_bits(), want.to_bits(), "{format} row {r} k {i}");
                }
            }
        }
    }
}

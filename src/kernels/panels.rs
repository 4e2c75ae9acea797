//! Packing: weight matrices as the kernels read them, in panels of 16 columns (16 rows of the file), k running along memory, so that one load brings
//! the next weight of all 16 outputs. In: rows in the file's layout. Out: panels. It computes nothing.
//!
//! What a panel of each weight type holds is told in `formats/`.
//!
//! A panel is read from end to end as one stream of whole cache lines: what the hardware prefetchers do best (scales apart from the
//! weights, two panels at a time, or software prefetch each cost 10 to 60 % of the bandwidth with 512-bit vectors on Zen 4; with 256-bit
//! ones on Zen 3 few rows gain by prefetch, [`super::isa::Isa::NEAR`]).
//! Columns past N, the k past an odd K (bf16) and the block past an odd number of blocks (q8_0) are zero. Panels begin at multiples of 64 bytes.

use super::Format;

/// Columns of a panel.
pub const COLUMNS: usize = 16;

/// Columns up to whole panels. Panics where that is no size.
pub fn padded(n: usize) -> usize {
    n.checked_next_multiple_of(COLUMNS)
        .unwrap_or_else(|| panic!("{n} columns are more than memory can hold"))
}

/// Bytes of one panel of `k` weights a column. Panics where that is no size.
pub fn panel_bytes(format: Format, k: usize) -> usize {
    // No format takes 256 bytes for the 16 weights of a k.
    assert!(k <= usize::MAX >> 8, "{k} weights a column are more than memory can hold");
    let kind = format.kind();
    (k.div_ceil(kind.group) * kind.group_bytes).next_multiple_of(64)
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
        assert!(
            k.is_multiple_of(format.block()),
            "{format} rows come in blocks of {}",
            format.block()
        );
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
        let kind = self.format.kind();
        for (out, group) in out.chunks_mut(kind.group).zip(panel.chunks_exact(kind.group_bytes)) {
            out.iter_mut()
                .enumerate()
                .for_each(|(i, out)| *out = (kind.weight)(group, n % COLUMNS, i));
        }
    }
}

/// Packs up to 16 rows of the file (`rows`: whole rows of `k` weights one after the other) into one panel. Panics on lengths that do not fit.
pub fn pack_panel(format: Format, k: usize, rows: &[u8], out: &mut [u8]) {
    let row_bytes = format.row_bytes(k);
    assert!(
        rows.len() <= COLUMNS * row_bytes
            && (row_bytes == 0 || rows.len().is_multiple_of(row_bytes))
    );
    assert!(out.len() == panel_bytes(format, k) && k.is_multiple_of(format.block()));
    // Memory that was written before keeps nothing of it in the columns past the last row, nor past a number of blocks that fills no group.
    // Sixteen rows of whole groups write every byte: fresh memory is then touched once.
    if rows.len() < COLUMNS * row_bytes || !k.is_multiple_of(format.kind().group) {
        out.fill(0);
    }
    if row_bytes == 0 {
        return;
    }
    for (c, row) in rows.chunks_exact(row_bytes).enumerate() {
        (format.kind().pack)(row, c, out);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Random;
    use super::*;

    /// Rows go in and come out of panels as the values that the file means, at sizes that fill no panel.
    #[test]
    fn packing_loses_nothing() {
        let mut random = Random(3);
        for format in Format::ALL {
            let (n, ks) = (
                21,
                if format.is_quantized() { [format.block(), 3 * format.block()] } else { [37, 64] },
            );
            for k in ks {
                let row_bytes = format.row_bytes(k);
                let rows = random.rows(format, n, k);
                let mut data = vec![0xff; n.div_ceil(16) * panel_bytes(format, k)];
                for (rows, panel) in
                    rows.chunks(16 * row_bytes).zip(data.chunks_exact_mut(panel_bytes(format, k)))
                {
                    pack_panel(format, k, rows, panel);
                }
                let panels = Panels::new(format, n, k, &data);
                for (r, row) in rows.chunks(row_bytes).enumerate() {
                    let (mut got, mut want) = (vec![0.0; k], Vec::new());
                    panels.row(r, &mut got);
                    format.dequantize(row, &mut want);
                    assert_eq!(got, want, "{format} row {r} of {k}");
                }
            }
        }
    }

    /// One line of memory after the other, at most 6 % more of them than the file has.
    #[test]
    fn panels_are_little_larger_than_files() {
        for format in Format::ALL {
            let (panel, file) = (panel_bytes(format, 4096), 16 * format.row_bytes(4096));
            assert!(panel >= file && panel * 100 <= file * 106, "{format}: {panel} for {file}");
        }
    }
}

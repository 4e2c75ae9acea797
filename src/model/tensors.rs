//! Tensors of a model file: where they lie, how they are encoded, and reading rows of them in any [`Format`].
//! In: a checked place in a file. Out: bytes in the wanted format.

use super::source::Source;
use super::{ModelError, Role, Weights};
use crate::kernels::{Encoding, Format};
use rayon::prelude::*;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// The index of the first block of `bytes` that holds a value or a scale that is not finite.
fn first_not_finite(encoding: Encoding, bytes: &[u8]) -> Option<usize> {
    let format = match encoding {
        Encoding::Computed(format) => format,
        Encoding::Widened(widened) => {
            return bytes
                .chunks_exact(encoding.block_bytes())
                .position(|block| !widened.is_finite(block));
        }
    };
    const F16_EXPONENT: u16 = 0x7c00;
    const F32_EXPONENT: u32 = 0x7f80_0000;
    let word = |b: &[u8], at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
    // The loops carry no exit, so that the compiler can vectorize them; a second one finds the place.
    let bad = |block: &[u8]| match format {
        Format::F32 => {
            u32::from_le_bytes([block[0], block[1], block[2], block[3]]) & F32_EXPONENT
                == F32_EXPONENT
        }
        Format::Bf16 => u32::from(word(block, 0)) << 16 & F32_EXPONENT == F32_EXPONENT,
        // 255 is no scale (OCP Microscaling Formats, E8M0: NaN).
        Format::Mxfp4 => block[0] == 255,
        _ => format.half_offsets().iter().any(|at| word(block, *at) & F16_EXPONENT == F16_EXPONENT),
    };
    let any = match format {
        Format::F32 => bytes.chunks_exact(4).fold(false, |a, b| {
            a | (u32::from_le_bytes([b[0], b[1], b[2], b[3]]) & F32_EXPONENT == F32_EXPONENT)
        }),
        Format::Bf16 => bytes
            .chunks_exact(2)
            .fold(false, |a, b| a | (u16::from_le_bytes([b[0], b[1]]) & 0x7f80 == 0x7f80)),
        Format::F16 => bytes.chunks_exact(2).fold(false, |a, b| {
            a | (u16::from_le_bytes([b[0], b[1]]) & F16_EXPONENT == F16_EXPONENT)
        }),
        _ => true,
    };
    if any { bytes.chunks_exact(format.block_bytes()).position(bad) } else { None }
}

/// In which order a file holds the rows of a query or key matrix, or the elements of a vector that belongs to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowOrder {
    /// As [`super::Role`] promises.
    AsStored,
    /// Rotary pairs are (i, i + dims / 2) within the first `dims` rows of each head; read as (2i, 2i + 1).
    HalfSplit { head_dim: usize, dims: usize },
}

/// A place in a file.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) source: Arc<Source>,
    /// Absolute, in bytes.
    pub(super) offset: u64,
}

/// Rows that lie as columns of a place, which holds `step` parts in turn; this is part `phase`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turned {
    pub(super) step: usize,
    pub(super) phase: usize,
}

/// One weight: checked places in files.
#[derive(Clone)]
pub(super) struct Tensor {
    /// One, or one for each expert: as many rows (elements of a vector) in each.
    pub(super) places: Vec<Place>,
    /// The file's own name of it.
    pub(super) name: String,
    pub(super) rows: usize,
    /// A multiple of the encoding's block.
    pub(super) columns: usize,
    pub(super) encoding: Encoding,
    pub(super) order: RowOrder,
    /// Added to each value: 1 for the norms of checkpoints that hold them less 1.
    pub(super) plus: f32,
    /// Its rows are columns in the file.
    pub(super) turned: Option<Turned>,
    /// The file has the logarithms of the values' magnitudes; the values are below 0.
    pub(super) logarithm: bool,
}

impl Tensor {
    fn row_bytes(&self) -> usize {
        let (block, bytes) = (self.encoding.block(), self.encoding.block_bytes());
        self.columns / block * bytes
    }

    /// The file's bytes of these rows, appended to `out` in the order that [`super::Role`] promises.
    fn stored(&self, rows: Range<usize>, out: &mut Vec<u8>) -> Result<(), ModelError> {
        let (width, begin) = (self.row_bytes(), out.len());
        out.resize(begin + rows.len() * width, 0);
        let out = &mut out[begin..];
        match self.order {
            RowOrder::HalfSplit { head_dim, dims } if self.rows > 1 => {
                self.ordered(rows, width, head_dim, dims, out)
            }
            // A vector: its elements are what rows are to a matrix.
            RowOrder::HalfSplit { head_dim, dims } if !rows.is_empty() => {
                self.ordered(0..self.columns, width / self.columns, head_dim, dims, out)
            }
            _ => self.placed(rows, width, out),
        }
    }

    /// The place of a tensor that has only one.
    fn only(&self) -> &Place {
        &self.places[0]
    }

    /// Rows of `width` bytes from their places.
    fn placed(&self, rows: Range<usize>, width: usize, out: &mut [u8]) -> Result<(), ModelError> {
        if let ([Place { source, offset }], None) = (&self.places[..], self.turned) {
            return source.read_at(offset + (rows.start * width) as u64, out);
        }
        // The elements of a vector are what rows are to a matrix.
        let (count, width, columns, rows) = match self.rows {
            1 => (
                self.columns,
                width / self.columns.max(1),
                1,
                0..if rows.is_empty() { 0 } else { self.columns },
            ),
            count => (count, width, self.columns, rows),
        };
        let of_one = count / self.places.len();
        for (i, Place { source, offset }) in self.places.iter().enumerate() {
            let (from, to) = (rows.start.max(i * of_one), rows.end.min((i + 1) * of_one));
            if from >= to {
                continue;
            }
            let out = &mut out[(from - rows.start) * width..(to - rows.start) * width];
            let Some(Turned { step, phase }) = self.turned else {
                source.read_at(offset + ((from - i * of_one) * width) as u64, out)?;
                continue;
            };
            let value = width / columns.max(1);
            let mut whole = vec![0; of_one * step * columns * value];
            source.read_at(*offset, &mut whole)?;
            for (row, out) in (from - i * of_one..to - i * of_one).zip(out.chunks_exact_mut(width))
            {
                for (column, out) in out.chunks_exact_mut(value).enumerate() {
                    out.copy_from_slice(
                        &whole[((column * of_one + row) * step + phase) * value..][..value],
                    );
                }
            }
        }
        Ok(())
    }

    /// Rows of `width` bytes from the half-split order into the interleaved one.
    fn ordered(
        &self,
        rows: Range<usize>,
        width: usize,
        head_dim: usize,
        dims: usize,
        out: &mut [u8],
    ) -> Result<(), ModelError> {
        // Whole heads are read once; rows outside `rows` are dropped.
        let mut head = vec![0; head_dim * width];
        for h in rows.start / head_dim..rows.end.div_ceil(head_dim) {
            let Place { source, offset } = self.only();
            source.read_at(offset + (h * head_dim * width) as u64, &mut head)?;
            for row in rows.start.max(h * head_dim)..rows.end.min((h + 1) * head_dim) {
                let within = row % head_dim;
                let from =
                    if within < dims { within / 2 + within % 2 * (dims / 2) } else { within };
                out[(row - rows.start) * width..][..width]
                    .copy_from_slice(&head[from * width..][..width]);
            }
        }
        Ok(())
    }

    /// These rows as f32 values.
    fn values(&self, rows: Range<usize>) -> Result<Vec<f32>, ModelError> {
        let count = rows.len() * self.columns;
        let mut bytes = Vec::new();
        self.stored(rows, &mut bytes)?;
        let mut out = Vec::with_capacity(count);
        self.encoding.dequantize(&bytes, &mut out);
        if self.plus != 0.0 {
            out.iter_mut().for_each(|v| *v += self.plus);
        }
        if self.logarithm {
            out.iter_mut().for_each(|v| *v = -v.exp());
        }
        Ok(out)
    }

    /// Rows in `format`, appended to `out`.
    pub(super) fn read(
        &self,
        rows: Range<usize>,
        format: Format,
        out: &mut Vec<u8>,
    ) -> Result<(), ModelError> {
        let place =
            || format!("{}: tensor {}", super::source::shown(self.only().source.path()), self.name);
        if rows.start > rows.end || rows.end > self.rows {
            return Err(ModelError::Io(format!(
                "{}: rows {rows:?} of {} were asked for",
                place(),
                self.rows
            )));
        }
        if self.encoding == Encoding::Computed(format) && self.plus == 0.0 && !self.logarithm {
            return self.stored(rows, out);
        }
        if !format.is_written() {
            return Err(ModelError::Invalid(format!(
                "{}: {format} is read but not written; use --dtype q4_k",
                place()
            )));
        }
        if !self.columns.is_multiple_of(format.block()) {
            return Err(ModelError::Invalid(format!(
                "{}: rows of {} values cannot be stored as {format}, whose blocks hold {}; use --dtype f32, bf16 or f16",
                place(),
                self.columns,
                format.block()
            )));
        }
        // A megabyte at a time: a whole embedding as f32 would double the peak memory.
        let step = ((1 << 18) / self.columns.max(1)).max(1);
        for begin in rows.clone().step_by(step) {
            let values = self.values(begin..rows.end.min(begin + step))?;
            format.encode(&values, out);
        }
        Ok(())
    }

    /// An error naming the tensor if a value or a scale is not finite.
    fn check_finite(&self) -> Result<(), ModelError> {
        let width = self.row_bytes();
        let (values, size) = (self.encoding.block(), self.encoding.block_bytes());
        let parts = self.turned.map_or(1, |turned| turned.step);
        let of_one = self.rows * width / self.places.len() * parts;
        let step = ((1 << 20) / size.max(1)).max(1) * size;
        let mut bytes = Vec::new();
        for (i, Place { source, offset }) in self.places.iter().enumerate() {
            for begin in (0..of_one).step_by(step) {
                bytes.clear();
                bytes.resize(step.min(of_one - begin), 0);
                source.read_at(offset + begin as u64, &mut bytes)?;
                if let Some(block) = first_not_finite(self.encoding, &bytes) {
                    let at = i * of_one + begin + block * size;
                    let (row, column) = (at / width, at % width / size * values);
                    let what = if values > 1 { "a scale" } else { "a value" };
                    return Err(ModelError::Invalid(format!(
                        "{}: tensor {}: {what} in row {row}, column {column} is not a finite number; the file is damaged",
                        super::source::shown(source.path()),
                        self.name
                    )));
                }
            }
        }
        Ok(())
    }
}

/// The weights of a model, by role.
pub(super) struct FileWeights {
    pub(super) tensors: HashMap<Role, Tensor>,
    /// What the file calls its mixture of types.
    pub(super) file_type: Option<&'static str>,
}

impl FileWeights {
    /// Refuses values that are not finite, on all threads.
    pub(super) fn check_finite(&self) -> Result<(), ModelError> {
        let mut all: Vec<&Tensor> = self.tensors.values().collect();
        all.sort_by_key(|t| t.only().offset);
        // `find_first`, so that the same tensor is named every time.
        all.par_iter().map(|t| t.check_finite()).find_first(Result::is_err).unwrap_or(Ok(()))
    }

    fn get(&self, role: Role) -> &Tensor {
        let role = if role == Role::Output && !self.tensors.contains_key(&role) {
            Role::TokenEmbedding
        } else {
            role
        };
        // Loading checked that all roles of the spec exist.
        self.tensors.get(&role).unwrap_or_else(|| panic!("{role:?} is not part of this model"))
    }
}

impl Weights for FileWeights {
    fn shape(&self, role: Role) -> (usize, usize) {
        let tensor = self.get(role);
        (tensor.rows, tensor.columns)
    }

    fn encoding(&self, role: Role) -> Encoding {
        self.get(role).encoding
    }

    fn file_type(&self) -> Option<&'static str> {
        self.file_type
    }

    fn read(
        &self,
        role: Role,
        rows: Range<usize>,
        format: Format,
        out: &mut Vec<u8>,
    ) -> Result<(), ModelError> {
        self.get(role).read(rows, format, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Our dequantizers against candle's, a port of ggml's of its own: blocks of any bytes (scales finite) mean the same values; and what we
    /// quantize in blocks of 32 is what its quantizers give, but for a code in a hundred where its sums run in another order.
    #[cfg(feature = "candle")]
    #[test]
    fn blocks_mean_and_become_what_candle_says() {
        use candle_core::quantized::{GgmlDType, QStorage, QTensor};
        let cpu = candle_core::Device::Cpu;
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u32
        };
        for (format, kind) in [
            (Format::Q8_0, GgmlDType::Q8_0),
            (Format::Q4_1, GgmlDType::Q4_1),
            (Format::Q4_0, GgmlDType::Q4_0),
            (Format::Q5_0, GgmlDType::Q5_0),
            (Format::Q5_1, GgmlDType::Q5_1),
            (Format::Q2K, GgmlDType::Q2K),
            (Format::Q3K, GgmlDType::Q3K),
            (Format::Q4K, GgmlDType::Q4K),
            (Format::Q5K, GgmlDType::Q5K),
            (Format::Q6K, GgmlDType::Q6K),
        ] {
            assert_eq!(
                (format.block(), format.block_bytes()),
                (kind.block_size(), kind.type_size()),
                "{format}"
            );
            let mut bytes: Vec<u8> = (0..64 * format.block_bytes()).map(|_| next() as u8).collect();
            for block in bytes.chunks_exact_mut(format.block_bytes()) {
                for at in format.half_offsets() {
                    let scale = half::f16::from_f32(next() as f32 / (1u64 << 30) as f32 - 1.0);
                    block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
                }
            }
            let mut ours = Vec::new();
            format.dequantize(&bytes, &mut ours);
            let storage =
                QStorage::from_data(std::borrow::Cow::Borrowed(&bytes), &cpu, kind).expect("known");
            let tensor = QTensor::new(storage, (64, format.block())).expect("a tensor");
            let theirs: Vec<f32> =
                tensor.dequantize(&cpu).and_then(|t| t.flatten_all()?.to_vec1()).expect("values");
            assert_eq!(ours, theirs, "{format}");
            // Its searches for K types are older than ggml's, which tests/blocks.rs compares with.
            if format.is_written() && format.block() == 32 {
                let values: Vec<f32> = (0..32 * 256)
                    .map(|_| (0..4).map(|_| next() as f32 / (1u64 << 31) as f32 - 0.5).sum())
                    .collect();
                let mut ours = Vec::new();
                format.encode(&values, &mut ours);
                let tensor =
                    candle_core::Tensor::from_slice(&values, (32, 256), &cpu).expect("a tensor");
                let theirs = QTensor::quantize(&tensor, kind)
                    .and_then(|q| Ok(q.data()?.into_owned()))
                    .expect("quantized");
                assert_eq!(ours.len(), theirs.len(), "{format}");
                let other = ours.iter().zip(&theirs).filter(|(a, b)| a != b).count();
                assert!(other * 100 <= ours.len(), "{format}: {other} of {} bytes", ours.len());
            }
        }
    }

    /// What is written means nearly what went in: half a step of the coarsest scale, for all types that can be written.
    #[test]
    fn what_is_quantized_is_near_what_was_given() {
        let values: Vec<f32> =
            (0..1024).map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0) * 0.1).collect();
        for format in Format::ALL.into_iter().filter(|f| f.is_written()) {
            for values in [&values[..], &[0.0; 256], &[-0.25; 256], &[1e-7; 256]] {
                let mut bytes = Vec::new();
                format.encode(values, &mut bytes);
                assert_eq!(bytes.len(), values.len() / 256 * format.row_bytes(256), "{format}");
                let mut back = Vec::new();
                format.dequantize(&bytes, &mut back);
                for (got, want) in back.iter().zip(values) {
                    assert!((got - want).abs() < 0.02, "{format}: {got} for {want}");
                }
            }
        }
    }
}

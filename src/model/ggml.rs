//! What candle knows of ggml's block types and we do not: reading two of them, writing six. In: bytes or values of a tensor. Out: values or bytes;
//! without the feature `candle` a refusal.

#[cfg(feature = "candle")]
pub(super) use candle_core::quantized::GgmlDType;

/// Whether this build writes block types by candle's quantizers.
pub(super) const IS_WRITTEN: bool = cfg!(feature = "candle");

/// Values of a tensor of this shape.
#[cfg(feature = "candle")]
pub(super) fn dequantize(kind: GgmlDType, bytes: &[u8], shape: (usize, usize)) -> Result<Vec<f32>, String> {
    use candle_core::quantized::{QStorage, QTensor};
    let values = || -> candle_core::Result<Vec<f32>> {
        let cpu = candle_core::Device::Cpu;
        let storage = QStorage::from_data(std::borrow::Cow::Borrowed(bytes), &cpu, kind)?;
        QTensor::new(storage, shape)?.dequantize(&cpu)?.flatten_all()?.to_vec1()
    };
    values().map_err(|e| format!("candle cannot dequantize it: {e}"))
}

/// Rows of `columns` values as blocks.
#[cfg(feature = "candle")]
pub(super) fn quantize(kind: GgmlDType, values: &[f32], columns: usize, out: &mut Vec<u8>) -> Result<(), String> {
    use candle_core::quantized::QTensor;
    let bytes = || -> candle_core::Result<Vec<u8>> {
        let shape = (values.len() / columns.max(1), columns);
        let tensor = candle_core::Tensor::from_slice(values, shape, &candle_core::Device::Cpu)?;
        Ok(QTensor::quantize(&tensor, kind)?.data()?.into_owned())
    };
    out.extend_from_slice(&bytes().map_err(|e| e.to_string())?);
    Ok(())
}

/// candle's names of the types.
#[cfg(not(feature = "candle"))]
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(dead_code, reason = "the names stand in tables; none is made without candle")]
pub(super) enum GgmlDType {
    Q4_0,
    Q5_0,
    Q5_1,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Q8K,
}

#[cfg(not(feature = "candle"))]
impl GgmlDType {
    /// Values in a block (ggml-common.h: `QK4_0`, `QK_K`).
    pub(super) fn block_size(self) -> usize {
        if matches!(self, GgmlDType::Q4_0 | GgmlDType::Q5_0 | GgmlDType::Q5_1) { 32 } else { 256 }
    }

    /// Bytes of a block (ggml-common.h: `sizeof(block_q4_0)` and so on).
    pub(super) fn type_size(self) -> usize {
        use GgmlDType::*;
        match self {
            Q4_0 => 18,
            Q5_0 => 22,
            Q5_1 => 24,
            Q2K => 84,
            Q3K => 110,
            Q4K => 144,
            Q5K => 176,
            Q6K => 210,
            Q8K => 292,
        }
    }
}

#[cfg(not(feature = "candle"))]
const ABSENT: &str = "this llmopt was built without the feature 'candle'";

/// Refuses.
#[cfg(not(feature = "candle"))]
pub(super) fn dequantize(_kind: GgmlDType, _bytes: &[u8], _shape: (usize, usize)) -> Result<Vec<f32>, String> {
    Err(ABSENT.into())
}

/// Refuses.
#[cfg(not(feature = "candle"))]
pub(super) fn quantize(_kind: GgmlDType, _values: &[f32], _columns: usize, _out: &mut Vec<u8>) -> Result<(), String> {
    Err(ABSENT.into())
}

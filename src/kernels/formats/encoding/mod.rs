//! How a file holds a weight: in a format that kernels compute with, or in a type that is only read, whose values are widened.
//! In: a number of ggml. Out: the shape of its blocks, their values.

mod codebooks;
mod few_bits;

use super::Format;

/// Appends the values of a block.
pub(super) type Values = fn(&[u8], &mut Vec<f32>);

/// A type that is only read.
pub(super) struct Reading {
    /// As `--dtype` would spell it.
    pub name: &'static str,
    /// `enum ggml_type`.
    pub ggml: u32,
    /// Weights of a block.
    pub block: usize,
    /// Bytes of a block.
    pub bytes: usize,
    /// Any bytes are a block.
    pub values: Values,
    /// Whether the scales of a block are numbers; its values are finite then.
    pub finite: fn(&[u8]) -> bool,
}

/// A weight type of ggml without a kernel: its values are widened to f32 at load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WidenedType {
    /// Blocks of 256, vectors of 8 from a table of 256 with signs: 2.06 bits a weight.
    Iq2Xxs,
    /// Blocks of 256, vectors of 8 from a table of 512 with signs: 2.31 bits a weight.
    Iq2Xs,
    /// Blocks of 256, vectors of 8 from a table of 1,024 with signs: 2.56 bits a weight.
    Iq2S,
    /// Blocks of 256, vectors of 4 from a table of 256 with signs: 3.06 bits a weight.
    Iq3Xxs,
    /// Blocks of 256, vectors of 4 from a table of 512 with signs: 3.44 bits a weight.
    Iq3S,
    /// Blocks of 256, vectors of 8 from a table of 2,048: 1.56 bits a weight.
    Iq1S,
    /// The same with more steps: 1.75 bits a weight.
    Iq1M,
    /// Blocks of 256 ternary weights, five in a byte: 1.69 bits a weight.
    Tq1_0,
    /// Blocks of 256 ternary weights, four in a byte: 2.06 bits a weight.
    Tq2_0,
    /// Blocks of 64 four-bit floats with an eight-bit float for each 16: 4.5 bits a weight.
    Nvfp4,
    /// Blocks of 128 signs: 1.13 bits a weight.
    Q1_0,
    /// Blocks of 64 two-bit codes: 2.25 bits a weight.
    Q2_0,
}

/// In the order of [`WidenedType`].
static READINGS: [&Reading; WidenedType::ALL.len()] = [
    &codebooks::IQ2_XXS,
    &codebooks::IQ2_XS,
    &codebooks::IQ2_S,
    &codebooks::IQ3_XXS,
    &codebooks::IQ3_S,
    &codebooks::IQ1_S,
    &codebooks::IQ1_M,
    &few_bits::TQ1_0,
    &few_bits::TQ2_0,
    &few_bits::NVFP4,
    &few_bits::Q1_0,
    &few_bits::Q2_0,
];

impl WidenedType {
    /// All of them, in the order of tables.
    pub const ALL: [WidenedType; 12] = [
        WidenedType::Iq2Xxs,
        WidenedType::Iq2Xs,
        WidenedType::Iq2S,
        WidenedType::Iq3Xxs,
        WidenedType::Iq3S,
        WidenedType::Iq1S,
        WidenedType::Iq1M,
        WidenedType::Tq1_0,
        WidenedType::Tq2_0,
        WidenedType::Nvfp4,
        WidenedType::Q1_0,
        WidenedType::Q2_0,
    ];

    fn reading(self) -> &'static Reading {
        READINGS[self as usize]
    }

    /// Whether a block's scales are numbers; its values are finite then.
    pub fn is_finite(self, block: &[u8]) -> bool {
        (self.reading().finite)(block)
    }
}

/// How a file holds a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// In a format that kernels compute with.
    Computed(Format),
    /// In a type that no kernel computes with.
    Widened(WidenedType),
}

impl From<Format> for Encoding {
    fn from(format: Format) -> Encoding {
        Encoding::Computed(format)
    }
}

impl Encoding {
    /// Every type that is read, those with a kernel first.
    pub fn all() -> impl Iterator<Item = Encoding> {
        let computed = Format::ALL.into_iter().map(Encoding::Computed);
        computed.chain(WidenedType::ALL.into_iter().map(Encoding::Widened))
    }

    /// The type of this number in ggml (`enum ggml_type`).
    pub fn of_ggml(number: u32) -> Option<Encoding> {
        Encoding::all().find(|e| e.ggml() == number)
    }

    /// Its number in ggml.
    pub fn ggml(self) -> u32 {
        match self {
            Encoding::Computed(format) => format.kind().ggml,
            Encoding::Widened(widened) => widened.reading().ggml,
        }
    }

    /// The type's name as GGUF tools print it: `Q4_K`, `IQ2_XXS`.
    pub fn ggml_name(self) -> String {
        match self {
            Encoding::Computed(format) => format.name().to_uppercase(),
            Encoding::Widened(widened) => widened.reading().name.to_uppercase(),
        }
    }

    /// The format, where kernels compute with it.
    pub fn format(self) -> Option<Format> {
        match self {
            Encoding::Computed(format) => Some(format),
            Encoding::Widened(_) => None,
        }
    }

    /// Weights of a block; a row's length must be a multiple of it.
    pub fn block(self) -> usize {
        match self {
            Encoding::Computed(format) => format.block(),
            Encoding::Widened(widened) => widened.reading().block,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Encoding::Computed(format) => format.block_bytes(),
            Encoding::Widened(widened) => widened.reading().bytes,
        }
    }

    /// Bytes of a row of `k` weights.
    pub fn row_bytes(self, k: usize) -> usize {
        k.div_ceil(self.block()) * self.block_bytes()
    }

    /// Whether weights are held in blocks with scales.
    pub fn is_quantized(self) -> bool {
        self.block() > 1
    }

    /// The values of whole blocks, appended to `out`; ggml's `dequantize_row_*`, bit for bit but for the sign of zeros of formats with a kernel.
    pub fn dequantize(self, blocks: &[u8], out: &mut Vec<f32>) {
        match self {
            Encoding::Computed(format) => format.dequantize(blocks, out),
            Encoding::Widened(widened) => {
                let reading = widened.reading();
                blocks.chunks_exact(reading.bytes).for_each(|block| (reading.values)(block, out));
            }
        }
    }
}

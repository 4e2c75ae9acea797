//! Dispatch: the units of `phases.rs` compiled once per instruction set, chosen at run time by what the CPU has.
//! Possessing a [`KernelSet`] proves that this CPU can run it.
#![allow(unsafe_code)]
#![allow(clippy::missing_safety_doc)]

use super::Format;
use super::attention::{self, AttentionArgs};
use super::gemm::{Compiled, Gemm, products};
use super::isa::{Isa, Portable};
use super::phases::{self, *};
use super::scratch::Scratch;
use super::state::{self, ConvolveArgs, DeltaArgs};
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};

/// One instruction set's kernels. Every function needs that set's CPU features; see `ops/` for what the arguments must satisfy.
pub(crate) struct DispatchTable {
    pub isa: &'static str,
    /// Rows × columns of the float and of the integer tile.
    pub float_tile: (usize, usize),
    pub quant_tile: (usize, usize),
    /// Called through [`Compiled::GEMM`]; here for the tests.
    #[cfg(test)]
    pub gemm: unsafe fn(&Gemm),
    pub norm: unsafe fn(&NormArgs, usize),
    pub quantize: unsafe fn(&QuantizeArgs, usize),
    pub qkv: unsafe fn(&QkvArgs, &mut Scratch, usize),
    pub attention: unsafe fn(&AttentionArgs, &mut Scratch, usize),
    pub residual: unsafe fn(&ResidualArgs, &mut Scratch, usize),
    pub gate_up: unsafe fn(&GateUpArgs, &mut Scratch, usize),
    pub head: unsafe fn(&HeadArgs, &mut Scratch, usize),
    pub heads: unsafe fn(&HeadsArgs, &mut Scratch, usize),
    pub add: unsafe fn(&AddArgs, usize),
    pub activate: unsafe fn(&ActivateArgs, usize),
    pub widen: unsafe fn(&WidenArgs, usize),
    pub convolve: unsafe fn(&ConvolveArgs, usize),
    pub delta: unsafe fn(&DeltaArgs, &mut Scratch, usize),
}

/// `$np`: pages (or lines of values) of a tile of attention.
macro_rules! dispatch_table {
    ($module:ident, $isa:ty, $np:literal $(, $feature:literal)?) => {
        pub(crate) mod $module {
            use super::*;
            /// Multiplies.
            unsafe fn gemm(g: &Gemm) {
                unsafe {
                    match g.format {
                        Format::F32 => f32(g),
                        Format::Bf16 => bf16(g),
                        Format::F16 => f16(g),
                        Format::Q8_0 => q8_0(g),
                        Format::Q4_1 => q4_1(g),
                        Format::Q4_0 => q4_0(g),
                        Format::Q5_0 => q5_0(g),
                        Format::Q5_1 => q5_1(g),
                        Format::Q4K => q4_k(g),
                        Format::Q5K => q5_k(g),
                        Format::Q6K => q6_k(g),
                        Format::Iq4Nl => iq4_nl(g),
                        Format::Iq4Xs => iq4_xs(g),
                        Format::Q2K => q2_k(g),
                        Format::Q3K => q3_k(g),
                        Format::Mxfp4 => mxfp4(g),
                    }
                }
            }
            $(#[target_feature(enable = $feature)])?
            #[inline(never)]
            unsafe fn f32(g: &Gemm) {
                unsafe { products::f32::<$isa>(g) }
            }
            $(#[target_feature(enable = $feature)])?
            #[inline(never)]
            unsafe fn bf16(g: &Gemm) {
                unsafe { products::bf16::<$isa>(g) }
            }
            $(#[target_feature(enable = $feature)])?
            #[inline(never)]
            unsafe fn f16(g: &Gemm) {
                unsafe { products::f16::<$isa>(g) }
            }
            $(#[target_feature(enable = $feature)])?
            #[inline(never)]
            unsafe fn q8_0(g: &Gemm) {
                unsafe { products::q8_0::<$isa>(g) }
            }
            $(#[target_feature(enable = $feature)])?
            #[inline(never)]
            unsafe fn q4_1(g: &Gemm) {
                unsafe { products::q4_1::<$isa>(g) }
            }
            $(#[target_feature(enable = $feature)])?
            #[inline(never)]
            unsafe fn q4_0(g: &Gemm) {
                unsafe { products::q4_0::<$isa>(g) }
            }
            $(#[target_feature(enable = $feature)])?
            #[inline(never)]
            unsafe fn q5_0(g: &Gemm) {
                unsafe { products::q5_0::<$isa>(g) }
            }
            $(#[target_feature(enable = $feature)])?
            #[inline(never)]
            unsafe fn q5_1(g: &Gemm) {
                unsafe { products::q5_1::<$isa>(g) }
            }
            $(#[target_feature(enable = $feature)])?
            #[inline(never)]
            unsafe fn q4_k(g: &Gemm) {
                unsafe { products::q4_k::<$isa>(g) }
            }
            $(#[target_feature(enable = $feature)])?
            #[inline(never)]
            unsafe fn q5_k(g: &Gemm) {
                unsafe { products::q5_k::<$isa>(g) }
            }
            $(#[target_feature(enable = $feature)])?
            #[inline(never)]
            unsafe fn q6_k(g: &Gemm) {
                unsafe { products::q6_k::<$isa>(g) }
            }
            $(#[target_feature(enable = $feature)])?
            #[inline(never)]
            unsafe fn iq4_nl(g: &Gemm) {
                unsafe { products::iq4_nl::<$isa>(g) }
            }
            $(#[target_feature(enable = $feature)])?
            #[inline(never)]
            unsafe fn iq4_xs(g: &Gemm) {
                unsafe { products::iq4_xs::<$isa>(g) }
            }
            $(#[target_feature(enable = $feature)])?
            #[inline(never)]
            unsafe fn q2_k(g: &Gemm) {
                unsafe { products::q2_k::<$isa>(g) }
            }
            $(#[target_feature(enable = $feature)])?
            #[inline(never)]
            unsafe fn q3_k(g: &Gemm) {
                unsafe { products::q3_k::<$isa>(g) }
            }
            $(#[target_feature(enable = $feature)])?
            #[inline(never)]
            unsafe fn mxfp4(g: &Gemm) {
                unsafe { products::mxfp4::<$isa>(g) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn norm(a: &NormArgs, unit: usize) {
                unsafe { phases::norm::<$isa>(a, unit) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn quantize(a: &QuantizeArgs, unit: usize) {
                unsafe { phases::quantize::<$isa>(a, unit) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn qkv(a: &QkvArgs, s: &mut Scratch, unit: usize) {
                unsafe { phases::qkv::<$isa>(a, s, unit) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn attention(a: &AttentionArgs, s: &mut Scratch, unit: usize) {
                unsafe { attention::attention::<$isa, $np>(a, s, unit) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn residual(a: &ResidualArgs, s: &mut Scratch, unit: usize) {
                unsafe { phases::residual::<$isa>(a, s, unit) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn gate_up(a: &GateUpArgs, s: &mut Scratch, unit: usize) {
                unsafe { phases::gate_up::<$isa>(a, s, unit) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn head(a: &HeadArgs, s: &mut Scratch, unit: usize) {
                unsafe { phases::head::<$isa>(a, s, unit) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn heads(a: &HeadsArgs, s: &mut Scratch, unit: usize) {
                unsafe { phases::heads::<$isa>(a, s, unit) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn add(a: &AddArgs, unit: usize) {
                unsafe { phases::add::<$isa>(a, unit) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn activate(a: &ActivateArgs, unit: usize) {
                unsafe { phases::activate_rows::<$isa>(a, unit) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn widen(a: &WidenArgs, unit: usize) {
                unsafe { phases::widen::<$isa>(a, unit) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn convolve(a: &ConvolveArgs, unit: usize) {
                unsafe { state::convolve::<$isa>(a, unit) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn delta(a: &DeltaArgs, s: &mut Scratch, unit: usize) {
                unsafe { state::delta::<$isa>(a, s, unit) }
            }
            impl Compiled for $isa {
                const GEMM: unsafe fn(&Gemm) = gemm;
            }
            pub(crate) static TABLE: DispatchTable = DispatchTable {
                isa: <$isa>::NAME,
                float_tile: (<$isa>::ROWS, 16),
                quant_tile: (<$isa>::QUANT_ROWS, 16),
                #[cfg(test)]
                gemm,
                norm,
                quantize,
                qkv,
                attention,
                residual,
                gate_up,
                head,
                heads,
                add,
                activate,
                widen,
                convolve,
                delta,
            };
        }
    };
}

dispatch_table!(portable, Portable, 1);
#[cfg(target_arch = "x86_64")]
dispatch_table!(avx2, Avx2, 1, "avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
dispatch_table!(avx512, Avx512, 2, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c");

/// A set of kernels that this CPU can run. All sets give the same bits.
#[derive(Clone, Copy)]
pub struct KernelSet(&'static DispatchTable);

impl KernelSet {
    /// Plain Rust: the reference; runs everywhere.
    pub fn portable() -> KernelSet {
        KernelSet(&portable::TABLE)
    }

    /// The sets this CPU can run, the fastest last.
    pub fn available() -> Vec<KernelSet> {
        #[allow(unused_mut)]
        let mut sets = vec![KernelSet::portable()];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") && has!("f16c") {
                sets.push(KernelSet(&avx2::TABLE));
                if has!("avx512f")
                    && has!("avx512bw")
                    && has!("avx512dq")
                    && has!("avx512vl")
                    && has!("avx512vnni")
                {
                    sets.push(KernelSet(&avx512::TABLE));
                }
            }
        }
        sets
    }

    /// The fastest set this CPU can run.
    pub fn best() -> KernelSet {
        *KernelSet::available().last().unwrap_or(&KernelSet::portable())
    }

    /// The set of this name (`portable`, `avx2`, `avx512`). An error names those this CPU can run.
    pub fn named(name: &str) -> Result<KernelSet, String> {
        let sets = KernelSet::available();
        sets.iter().copied().find(|s| s.name() == name).ok_or_else(|| {
            let names: Vec<_> = sets.iter().map(|s| s.name()).collect();
            format!(
                "no kernel set '{}' on this CPU; it can run {}",
                crate::units::shown(name),
                names.join(", ")
            )
        })
    }

    /// `portable`, `avx2`, `avx512`.
    pub fn name(self) -> &'static str {
        self.0.isa.trim_start_matches("x86-")
    }

    pub(crate) fn table(self) -> &'static DispatchTable {
        self.0
    }

    /// Names of its kernels for these formats, such as `x86-avx2-f32-6x16`.
    pub fn kernel_names(self, formats: &[super::Format]) -> Vec<String> {
        let name = |f: &super::Format| {
            let (rows, columns) =
                if f.is_quantized() { self.0.quant_tile } else { self.0.float_tile };
            format!("{}-{f}-{rows}x{columns}", self.0.isa)
        };
        formats.iter().map(name).collect()
    }
}

impl std::fmt::Debug for KernelSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl PartialEq for KernelSet {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

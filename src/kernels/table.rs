//! The kernel sets: the units of `units.rs` compiled once per instruction set, chosen at run time by what the CPU has.
//! Possessing a [`KernelSet`] proves that this CPU can run it.
#![allow(unsafe_code)]
#![allow(clippy::missing_safety_doc)]

use super::isa::{Isa, Portable};
use super::units::*;
use super::x86::{Avx2, Avx512};

/// One instruction set's kernels. Every function needs that set's CPU features; see `ops.rs` for what the arguments must satisfy.
pub(crate) struct Table {
    pub isa: &'static str,
    /// Rows × columns of the float and of the integer tile.
    pub float_tile: (usize, usize),
    pub quant_tile: (usize, usize),
    pub norm: unsafe fn(&NormArgs, usize),
    pub quantize: unsafe fn(&QuantizeArgs, usize),
    pub qkv: unsafe fn(&QkvArgs, &mut Scratch, usize),
    pub attention: unsafe fn(&AttentionArgs, &mut Scratch, usize),
    pub residual: unsafe fn(&ResidualArgs, &mut Scratch, usize),
    pub gate_up: unsafe fn(&GateUpArgs, &mut Scratch, usize),
    pub head: unsafe fn(&HeadArgs, &mut Scratch, usize),
    pub widen: unsafe fn(&WidenArgs, usize),
}

/// `$np`: panels of a float tile.
macro_rules! table {
    ($name:ident, $isa:ty, $np:literal $(, $feature:literal)?) => {
        pub(crate) static $name: Table = {
            $(#[target_feature(enable = $feature)])?
            unsafe fn norm_(a: &NormArgs, unit: usize) {
                unsafe { norm::<$isa>(a, unit) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn quantize_(a: &QuantizeArgs, unit: usize) {
                unsafe { quantize::<$isa>(a, unit) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn qkv_(a: &QkvArgs, s: &mut Scratch, unit: usize) {
                unsafe { qkv::<$isa, $np>(a, s, unit) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn attention_(a: &AttentionArgs, s: &mut Scratch, unit: usize) {
                unsafe { attention::<$isa, $np>(a, s, unit) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn residual_(a: &ResidualArgs, s: &mut Scratch, unit: usize) {
                unsafe { residual::<$isa, $np>(a, s, unit) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn gate_up_(a: &GateUpArgs, s: &mut Scratch, unit: usize) {
                unsafe { gate_up::<$isa, $np>(a, s, unit) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn head_(a: &HeadArgs, s: &mut Scratch, unit: usize) {
                unsafe { head::<$isa, $np>(a, s, unit) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn widen_(a: &WidenArgs, unit: usize) {
                unsafe { widen::<$isa>(a, unit) }
            }
            Table {
                isa: <$isa>::NAME,
                float_tile: (<$isa>::ROWS, $np * 16),
                quant_tile: (<$isa>::QUANT_ROWS, 16),
                norm: norm_,
                quantize: quantize_,
                qkv: qkv_,
                attention: attention_,
                residual: residual_,
                gate_up: gate_up_,
                head: head_,
                widen: widen_,
            }
        };
    };
}

table!(PORTABLE, Portable, 1);
#[cfg(target_arch = "x86_64")]
table!(AVX2, Avx2, 1, "avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
table!(AVX512, Avx512, 2, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c");

/// A set of kernels that this CPU can run. All sets give the same bits.
#[derive(Clone, Copy)]
pub struct KernelSet(&'static Table);

impl KernelSet {
    /// Plain Rust: the reference; runs everywhere.
    pub fn portable() -> KernelSet {
        KernelSet(&PORTABLE)
    }

    /// The sets this CPU can run, the fastest last.
    pub fn available() -> Vec<KernelSet> {
        #[allow(unused_mut)]
        let mut sets = vec![KernelSet::portable()];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") && has!("f16c") {
                sets.push(KernelSet(&AVX2));
                if has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") && has!("avx512vnni") {
                    sets.push(KernelSet(&AVX512));
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
            format!("no kernel set '{}' on this CPU; it can run {}", crate::units::shown(name), names.join(", "))
        })
    }

    /// `portable`, `avx2`, `avx512`.
    pub fn name(self) -> &'static str {
        self.0.isa.trim_start_matches("x86-")
    }

    pub(crate) fn table(self) -> &'static Table {
        self.0
    }

    /// Names of its kernels for these formats, such as `x86-avx2-f32-6x16`.
    pub fn kernel_names(self, formats: &[super::Format]) -> Vec<String> {
        let name = |f: &super::Format| {
            let (rows, columns) = if f.is_quantized() { self.0.quant_tile } else { self.0.float_tile };
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

//! CPU features that decide which kernels run: detected at run time and compiled in. In: CPUID through std, the `flags` line for what
//! std cannot detect on stable Rust (AMX). Out: a list in a fixed order. It chooses no kernel.

use serde::{Deserialize, Serialize};

/// One feature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feature {
    /// Rust's name of it (`avx2`, `avx512vnni`, `amx-bf16`, `dotprod`).
    pub name: String,
    /// This CPU has it and the system lets programs use it.
    pub detected: bool,
    /// This program was compiled to assume it everywhere.
    pub compiled: bool,
}

/// The features that matter on this architecture. `flags` is the kernel's list.
pub(super) fn detect(flags: &str) -> Vec<Feature> {
    let mut found = by_std();
    if cfg!(target_arch = "x86_64") {
        found.extend(["amx-tile", "amx-int8", "amx-bf16"].map(|name| Feature {
            name: name.into(),
            detected: has_flag(flags, &name.replace('-', "_")),
            compiled: false,
        }));
    }
    found
}

fn has_flag(flags: &str, name: &str) -> bool {
    flags.split_whitespace().any(|f| f == name)
}

#[cfg(target_arch = "x86_64")]
fn by_std() -> Vec<Feature> {
    macro_rules! features {
        ($($name:tt)*) => {
            vec![$(Feature {
                name: $name.into(),
                detected: std::arch::is_x86_feature_detected!($name),
                compiled: cfg!(target_feature = $name),
            }),*]
        };
    }
    features!("avx2" "fma" "f16c" "avxvnni" "avx512f" "avx512bw" "avx512vl" "avx512vnni" "avx512bf16" "avx512fp16")
}

#[cfg(target_arch = "aarch64")]
fn by_std() -> Vec<Feature> {
    macro_rules! features {
        ($($name:tt)*) => {
            vec![$(Feature {
                name: $name.into(),
                detected: std::arch::is_aarch64_feature_detected!($name),
                compiled: cfg!(target_feature = $name),
            }),*]
        };
    }
    features!("neon" "fp16" "dotprod" "i8mm" "bf16" "sve")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn by_std() -> Vec<Feature> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn amx_comes_from_the_flags_and_whole_words_only() {
        let amx = |flags: &str| {
            detect(flags).into_iter().filter(|f| f.detected && f.name.starts_with("amx")).count()
        };
        assert_eq!(amx("fpu amx_bf16 avx512f amx_tile amx_int8"), 3);
        assert_eq!(amx("fpu amx_bf16x xamx_tile"), 0);
    }

    #[test]
    fn what_is_compiled_in_is_there() {
        // A program compiled for features the CPU lacks would not get this far.
        assert!(detect("").iter().all(|f| !f.compiled || f.detected));
    }
}

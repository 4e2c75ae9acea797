//! Loops that do one thing as fast as the machine can: read memory, multiply-add f32, multiply-add int8. In: a slice or a number of
//! rounds. Out: a value that keeps the work alive. They are what `roofline` measures the limit with and of the gate; they hold no clock and no threads.
//! Those of [`Isa::reference`] are also the gate's fixed reference and must not be changed: old results are compared with them.

/// An instruction set a probe was written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isa {
    /// Plain Rust, whatever the compiler makes of it.
    Portable,
    /// 256-bit vectors with FMA.
    Avx2,
    /// 256-bit vectors with int8 dot products.
    AvxVnni,
    /// 512-bit vectors.
    Avx512,
    /// 512-bit vectors with int8 dot products.
    Avx512Vnni,
    /// 128-bit vectors of Arm.
    Neon,
}

impl Isa {
    /// Those this CPU can run, the fixed reference first.
    pub fn detected() -> Vec<Isa> {
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
        let mut found = vec![Isa::reference()];
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avxvnni") {
                found.push(Isa::AvxVnni);
            }
            if std::arch::is_x86_feature_detected!("avx512f") {
                found.push(Isa::Avx512);
            }
            if std::arch::is_x86_feature_detected!("avx512vnni")
                && std::arch::is_x86_feature_detected!("avx512bw")
            {
                found.push(Isa::Avx512Vnni);
            }
        }
        found
    }

    /// The one that the gate's reference uses on this CPU.
    pub fn reference() -> Isa {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
        {
            return Isa::Avx2;
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            return Isa::Neon;
        }
        Isa::Portable
    }

    fn available(self) -> bool {
        self == Isa::Portable || Isa::detected().contains(&self)
    }
}

/// Reads every byte of `data` once (up to 255 at the end are left out) and returns the sum of its 64-bit words.
/// Falls back to plain Rust if the CPU lacks `isa`.
pub fn read(isa: Isa, data: &[u8]) -> u64 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the features that the function is compiled for were just detected.
        Isa::Avx2 | Isa::AvxVnni if isa.available() => unsafe { x86::read_avx2(data) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512 | Isa::Avx512Vnni if isa.available() => unsafe { x86::read_avx512(data) },
        _ => read_portable(data),
    }
}

/// Multiply-adds per round of [`fma`] with this instruction set.
pub fn fma_per_round(isa: Isa) -> u64 {
    match isa {
        Isa::Portable => 64,
        Isa::Avx2 | Isa::AvxVnni => 12 * 8,
        Isa::Avx512 | Isa::Avx512Vnni => 16 * 16,
        Isa::Neon => 16 * 4,
    }
}

/// `rounds` rounds of independent f32 multiply-adds in registers. Falls back to plain Rust if the CPU lacks `isa`.
pub fn fma(isa: Isa, rounds: u64) -> f32 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the features that the function is compiled for were just detected.
        Isa::Avx2 | Isa::AvxVnni if isa.available() => unsafe { x86::fma_avx2(rounds) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512 | Isa::Avx512Vnni if isa.available() => unsafe { x86::fma_avx512(rounds) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Isa::Neon if isa.available() => unsafe { arm::fma_neon(rounds) },
        _ => fma_portable(rounds),
    }
}

/// Multiply-adds per round of [`int8`]; `None` where there is no probe for this instruction set.
pub fn int8_per_round(isa: Isa) -> Option<u64> {
    match isa {
        Isa::Avx2 => Some(8 * 32),
        Isa::AvxVnni => Some(12 * 32),
        Isa::Avx512Vnni => Some(16 * 64),
        _ => None,
    }
}

/// `rounds` rounds of int8 multiply-adds in registers: with AVX2 eight `maddubs` summed in 16 bits for one `maddwd` (the most that 4-bit
/// weights allow), with VNNI `vpdpbusd`. 0 where there is no probe or the CPU lacks `isa`.
pub fn int8(isa: Isa, rounds: u64) -> i32 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the features that the function is compiled for were just detected.
        Isa::Avx2 if isa.available() => unsafe { x86::int8_avx2(rounds) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::AvxVnni if isa.available() => unsafe { x86::int8_avxvnni(rounds) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512Vnni if isa.available() => unsafe { x86::int8_vnni(rounds) },
        _ => {
            std::hint::black_box(rounds);
            0
        }
    }
}

fn read_portable(data: &[u8]) -> u64 {
    let mut sums = [0u64; 8];
    for block in data.chunks_exact(64) {
        for (sum, word) in sums.iter_mut().zip(block.chunks_exact(8)) {
            *sum = sum.wrapping_add(u64::from_ne_bytes(word.try_into().unwrap_or_default()));
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

fn fma_portable(rounds: u64) -> f32 {
    let (x, y) = (std::hint::black_box(0.999_999f32), std::hint::black_box(1e-7f32));
    let mut a: [f32; 64] = std::array::from_fn(|i| i as f32);
    for _ in 0..rounds {
        for v in &mut a {
            // Not mul_add: without hardware FMA that is a library call.
            *v = *v * x + y;
        }
    }
    a.iter().sum()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Sums 256 bytes a round in eight accumulators.
    #[target_feature(enable = "avx2")]
    pub fn read_avx2(data: &[u8]) -> u64 {
        let mut sums = [_mm256_setzero_si256(); 8];
        for block in data.chunks_exact(256) {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: 32 bytes at 32 i are within the block's 256; the load may be unaligned.
                let v = unsafe { _mm256_loadu_si256(block.as_ptr().add(32 * i).cast()) };
                *sum = _mm256_add_epi64(*sum, v);
            }
        }
        let mut words = [0u64; 4];
        let total = sums
            .into_iter()
            .reduce(|a, b| _mm256_add_epi64(a, b))
            .unwrap_or(_mm256_setzero_si256());
        // SAFETY: `words` is 32 bytes long.
        unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), total) };
        words.iter().fold(0, |a, b| a.wrapping_add(*b))
    }

    /// Sums 256 bytes a round in four accumulators.
    #[target_feature(enable = "avx512f")]
    pub fn read_avx512(data: &[u8]) -> u64 {
        let mut sums = [_mm512_setzero_si512(); 4];
        for block in data.chunks_exact(256) {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: 64 bytes at 64 i are within the block's 256; the load may be unaligned.
                let v = unsafe { _mm512_loadu_si512(block.as_ptr().add(64 * i).cast()) };
                *sum = _mm512_add_epi64(*sum, v);
            }
        }
        let total = sums
            .into_iter()
            .reduce(|a, b| _mm512_add_epi64(a, b))
            .unwrap_or(_mm512_setzero_si512());
        _mm512_reduce_add_epi64(total) as u64
    }

    /// 12 accumulators of 8 lanes: 4-5 cycles of latency on two pipes need 8 to 10.
    #[target_feature(enable = "avx2,fma")]
    pub fn fma_avx2(rounds: u64) -> f32 {
        let (x, y) = (_mm256_set1_ps(black_box(0.999_999)), _mm256_set1_ps(black_box(1e-7)));
        let mut a: [__m256; 12] = std::array::from_fn(|i| _mm256_set1_ps(i as f32));
        for _ in 0..rounds {
            for v in &mut a {
                *v = _mm256_fmadd_ps(*v, x, y);
            }
        }
        let total = a.into_iter().reduce(|a, b| _mm256_add_ps(a, b)).unwrap_or(x);
        _mm256_cvtss_f32(total)
    }

    /// 16 accumulators of 16 lanes.
    #[target_feature(enable = "avx512f")]
    pub fn fma_avx512(rounds: u64) -> f32 {
        let (x, y) = (_mm512_set1_ps(black_box(0.999_999)), _mm512_set1_ps(black_box(1e-7)));
        let mut a: [__m512; 16] = std::array::from_fn(|i| _mm512_set1_ps(i as f32));
        for _ in 0..rounds {
            for v in &mut a {
                *v = _mm512_fmadd_ps(*v, x, y);
            }
        }
        let total = a.into_iter().reduce(|a, b| _mm512_add_ps(a, b)).unwrap_or(x);
        _mm512_cvtss_f32(total)
    }

    /// Eight products of 32 bytes summed in 16 bits, then widened into 32.
    #[target_feature(enable = "avx2")]
    pub fn int8_avx2(rounds: u64) -> i32 {
        let ones = _mm256_set1_epi16(1);
        // One weight vector for each product, behind a barrier, or the compiler would multiply once and reuse it.
        let weights: [__m256i; 8] =
            std::array::from_fn(|i| _mm256_set1_epi8(black_box(i as i8 + 1)));
        let mut x = _mm256_set1_epi8(black_box(1));
        let mut sum = _mm256_setzero_si256();
        for _ in 0..rounds {
            let mut short = _mm256_setzero_si256();
            for w in weights {
                short = _mm256_add_epi16(short, _mm256_maddubs_epi16(w, x));
            }
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(short, ones));
            // The next round depends on this one's x only, and differs from it.
            x = _mm256_sub_epi8(_mm256_setzero_si256(), x);
        }
        _mm_cvtsi128_si32(_mm256_castsi256_si128(sum))
    }

    /// 12 accumulators of 32 products.
    #[target_feature(enable = "avx2,avxvnni")]
    pub fn int8_avxvnni(rounds: u64) -> i32 {
        let (w, x) = (_mm256_set1_epi8(black_box(3)), _mm256_set1_epi8(black_box(-1)));
        let mut a: [__m256i; 12] = std::array::from_fn(|i| _mm256_set1_epi32(i as i32));
        for _ in 0..rounds {
            for v in &mut a {
                *v = _mm256_dpbusd_avx_epi32(*v, w, x);
            }
        }
        let total = a.into_iter().reduce(|a, b| _mm256_add_epi32(a, b)).unwrap_or(x);
        _mm_cvtsi128_si32(_mm256_castsi256_si128(total))
    }

    /// 16 accumulators of 64 products.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub fn int8_vnni(rounds: u64) -> i32 {
        let (w, x) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(-1)));
        let mut a: [__m512i; 16] = std::array::from_fn(|i| _mm512_set1_epi32(i as i32));
        for _ in 0..rounds {
            for v in &mut a {
                *v = _mm512_dpbusd_epi32(*v, w, x);
            }
        }
        let total = a.into_iter().reduce(|a, b| _mm512_add_epi32(a, b)).unwrap_or(x);
        _mm512_reduce_add_epi32(total)
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;
    use std::hint::black_box;

    /// 16 accumulators of 4 lanes.
    #[target_feature(enable = "neon")]
    pub fn fma_neon(rounds: u64) -> f32 {
        let (x, y) = (vdupq_n_f32(black_box(0.999_999)), vdupq_n_f32(black_box(1e-7)));
        let mut a: [float32x4_t; 16] = std::array::from_fn(|i| vdupq_n_f32(i as f32));
        for _ in 0..rounds {
            for v in &mut a {
                *v = vfmaq_f32(y, *v, x);
            }
        }
        a.into_iter().map(|v| vaddvq_f32(v)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_reads_every_word() {
        let data: Vec<u8> = (0..256 * 37).map(|i| (i * 7 % 251) as u8).collect();
        let expected = data
            .chunks_exact(8)
            .fold(0u64, |s, w| s.wrapping_add(u64::from_ne_bytes(w.try_into().unwrap())));
        for isa in Isa::detected().into_iter().chain([Isa::Portable]) {
            assert_eq!(read(isa, &data), expected, "{isa:?}");
            assert_eq!(read(isa, &[]), 0, "{isa:?}");
        }
    }

    #[test]
    fn multiply_adds_are_really_done() {
        // After n rounds a value v is about v·x^n + n·y; the first lane of the sum follows it.
        for isa in Isa::detected().into_iter().chain([Isa::Portable]) {
            let (none, many) = (fma(isa, 0), fma(isa, 100_000));
            let expected = none as f64 * 0.999_999f64.powi(100_000);
            assert!(
                (many as f64 - expected).abs() < 0.02 * expected,
                "{isa:?}: {none} → {many}, expected about {expected}"
            );
        }
    }

    #[test]
    fn int8_products_are_really_done() {
        for isa in Isa::detected() {
            match (isa, int8_per_round(isa)) {
                // Each 32-bit lane takes 4 products 3 · -1 a round and accumulator: 16 × 16 × -12.
                (Isa::Avx512Vnni, Some(_)) => {
                    assert_eq!(int8(isa, 5) - int8(isa, 4), 16 * 16 * -12)
                }
                // As above; only the first lane is returned.
                (Isa::AvxVnni, Some(_)) => assert_eq!(int8(isa, 5) - int8(isa, 4), 12 * -12),
                // Each 32-bit lane takes 4 products of each weight 1…8 a round: ±144, the sign changing with each round.
                (Isa::Avx2, Some(_)) => {
                    assert_eq!((int8(isa, 1), int8(isa, 2), int8(isa, 3)), (144, 0, 144))
                }
                _ => assert_eq!(int8(isa, 3), 0),
            }
        }
    }
}

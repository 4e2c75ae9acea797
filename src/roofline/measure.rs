//! Read bandwidth and multiply-add peaks at 1…N threads, as medians of several passes. In: a number of threads. Out: rates.
//! The probes are in `kernels::probes`; here are threads, clock and medians. Nothing is pinned: neither are the engine's workers.

use crate::kernels::Arena;
use crate::kernels::probes::{self, Isa};
use crate::units::Bytes;
use serde::{Deserialize, Serialize};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// How long measuring may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// About a second.
    Quick,
    /// A few seconds.
    Thorough,
}

/// Rates at one number of threads; medians.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Threads that worked together.
    pub threads: usize,
    /// Bytes read from memory a second.
    pub read: f64,
    /// f32 operations (a multiply-add is two) a second.
    pub fma: f64,
    /// int8 operations (a multiply-add is two) a second, where there is a probe.
    pub int8: Option<f64>,
}

/// What this machine can do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// At 1, 2, 4, … threads and at the number asked for, ascending.
    pub rates: Vec<Rates>,
    /// Memory that the read probe went through; far more than the caches hold.
    pub buffer: Bytes,
    /// Passes behind each median.
    pub passes: usize,
    /// Times it was measured; each rate is the best of them ([`Limits::raise`]). Files of earlier versions measured once.
    #[serde(default = "once")]
    pub probes: usize,
    /// The instruction set that was fastest at f32 multiply-adds.
    pub fma_isa: Isa,
    /// The one that was fastest at int8 multiply-adds.
    pub int8_isa: Option<Isa>,
}

fn once() -> usize {
    1
}

impl Limits {
    /// Measures at 1, 2, 4, … and `threads` threads.
    pub fn measure(threads: usize, effort: Effort) -> Limits {
        let threads = threads.max(1);
        let (passes, most, rounds) = match effort {
            Effort::Quick => (5, 256 << 20, 1 << 18),
            Effort::Thorough => (11, 512 << 20, 1 << 21),
        };
        let buffer = Buffer::new(buffer_bytes(most), threads);
        let isas = Isa::detected();
        let widest = isas.last().copied().unwrap_or(Isa::Portable);
        let mut counts: Vec<usize> =
            std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|n| *n < threads).collect();
        counts.push(threads);
        let (mut fma_isa, mut int8_isa) = (widest, None);
        let rates = counts
            .iter()
            .map(|&threads| {
                let best = |rate: &dyn Fn(Isa) -> Option<f64>| {
                    isas.iter()
                        .filter_map(|&isa| Some((isa, rate(isa)?)))
                        .max_by(|a, b| a.1.total_cmp(&b.1))
                };
                let fma = best(&|isa| Some(fma_rate(isa, threads, rounds, passes)));
                let int8 = best(&|isa| int8_rate(isa, threads, rounds / 4, passes));
                fma_isa = fma.map_or(widest, |f| f.0);
                int8_isa = int8.map(|i| i.0);
                Rates {
                    threads,
                    read: read_rate(widest, &buffer, threads, passes),
                    fma: fma.map_or(0.0, |f| f.1),
                    int8: int8.map(|i| i.1),
                }
            })
            .collect();
        Limits {
            rates,
            buffer: Bytes(buffer.bytes().len() as u64),
            passes,
            probes: 1,
            fma_isa,
            int8_isa,
        }
    }

    /// Takes over what was better at another moment: on a shared machine a limit is the best that was seen while the work was measured.
    pub fn raise(&mut self, other: &Limits) {
        for r in &mut self.rates {
            if let Some(o) = other.rates.iter().find(|o| o.threads == r.threads) {
                r.read = r.read.max(o.read);
                r.fma = r.fma.max(o.fma);
                r.int8 = r.int8.into_iter().chain(o.int8).reduce(f64::max);
            }
        }
        self.probes += other.probes;
    }

    /// The rates at this many threads, or at the nearest smaller number that was measured.
    pub fn at(&self, threads: usize) -> Option<&Rates> {
        self.rates.iter().rev().find(|r| r.threads <= threads).or(self.rates.first())
    }
}

/// Eight times the caches, at least 128 MiB, at most `most` and a quarter of the usable memory.
fn buffer_bytes(most: u64) -> usize {
    let caches: u64 = crate::machine::Files::system().caches().iter().map(|c| c.size.0).sum();
    let wanted = (8 * caches).clamp(128 << 20, most);
    wanted.min(crate::machine::usable_memory() / 4).max(1 << 20) as usize
}

/// Touched memory in huge pages where the system has them.
struct Buffer(Result<Arena, Vec<u8>>);

impl Buffer {
    fn new(bytes: usize, threads: usize) -> Buffer {
        let mut buffer = Buffer(Arena::new(bytes).map_err(|_| vec![0u8; bytes]));
        let data: &mut [u8] = match &mut buffer.0 {
            Ok(arena) => arena.bytes_mut(),
            Err(vec) => vec,
        };
        // Written, not only zero: unwritten pages are one shared page of zeros.
        std::thread::scope(|scope| {
            for part in data.chunks_mut(bytes.div_ceil(threads)) {
                scope.spawn(|| part.fill(1));
            }
        });
        buffer
    }

    fn bytes(&self) -> &[u8] {
        match &self.0 {
            Ok(arena) => arena.bytes(),
            Err(vec) => vec,
        }
    }
}

/// Seconds from the first thread's start to the last one's end, of `work(thread)` on this many threads at once.
fn together(threads: usize, work: impl Fn(usize) + Sync) -> f64 {
    // Spinning, not sleeping: a thread woken by another starts on that one's core, and two threads on one core measure half the machine.
    let here = AtomicUsize::new(0);
    let run = |id: usize| {
        here.fetch_add(1, Ordering::AcqRel);
        while here.load(Ordering::Acquire) < threads {
            std::hint::spin_loop();
        }
        let start = Instant::now();
        work(id);
        (start, Instant::now())
    };
    let run = &run;
    let times: Vec<(Instant, Instant)> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|id| scope.spawn(move || run(id))).collect();
        let first = run(0);
        std::iter::once(first).chain(others.into_iter().filter_map(|t| t.join().ok())).collect()
    });
    let start = times.iter().map(|t| t.0).min();
    let end = times.iter().map(|t| t.1).max();
    start.zip(end).map_or(f64::NAN, |(s, e)| (e - s).as_secs_f64())
}

/// The median rate of `passes` passes over `units`, after one to warm up.
fn median_rate(units: f64, passes: usize, mut pass: impl FnMut() -> f64) -> f64 {
    pass();
    let mut rates: Vec<f64> = (0..passes).map(|_| units / pass().max(1e-9)).collect();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn read_pass(isa: Isa, buffer: &Buffer, threads: usize) -> f64 {
    let data = buffer.bytes();
    let part = data.len() / threads / 4096 * 4096;
    together(threads, |id| {
        black_box(probes::read(isa, black_box(&data[id * part..(id + 1) * part])));
    })
}

fn read_rate(isa: Isa, buffer: &Buffer, threads: usize, passes: usize) -> f64 {
    let units = (buffer.bytes().len() / threads / 4096 * 4096 * threads) as f64;
    median_rate(units, passes, || read_pass(isa, buffer, threads))
}

fn fma_pass(isa: Isa, threads: usize, rounds: u64) -> f64 {
    together(threads, |_| {
        black_box(probes::fma(isa, black_box(rounds)));
    })
}

fn fma_rate(isa: Isa, threads: usize, rounds: u64, passes: usize) -> f64 {
    let units = (2 * probes::fma_per_round(isa) * rounds * threads as u64) as f64;
    median_rate(units, passes, || fma_pass(isa, threads, rounds))
}

fn int8_rate(isa: Isa, threads: usize, rounds: u64, passes: usize) -> Option<f64> {
    let units = (2 * probes::int8_per_round(isa)? * rounds * threads as u64) as f64;
    Some(median_rate(units, passes, || {
        together(threads, |_| {
            black_box(probes::int8(isa, black_box(rounds)));
        })
    }))
}

/// The gate's fixed reference: one read loop and one multiply-add loop whose code never changes, timed in every round of a benchmark, so that
/// tokens a second can be compared between moments and machines as a quotient.
pub struct Reference {
    buffer: Buffer,
    threads: usize,
    isa: Isa,
}

/// One timing of the reference.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ReferenceRates {
    /// Bytes read a second.
    pub read: f64,
    /// f32 operations a second.
    pub fma: f64,
}

impl ReferenceRates {
    /// One number for both: the geometric mean in G units a second, so that neither loop's unit weighs more.
    pub fn score(&self) -> f64 {
        (self.read * self.fma).sqrt() / 1e9
    }
}

impl Reference {
    /// Takes 128 MiB and touches it.
    pub fn new(threads: usize) -> Reference {
        let threads = threads.max(1);
        Reference { buffer: Buffer::new(128 << 20, threads), threads, isa: Isa::reference() }
    }

    /// Times both loops once: about 10 ms each on a machine of ten years ago.
    pub fn time(&self) -> ReferenceRates {
        const ROUNDS: u64 = 1 << 21;
        let part = self.buffer.bytes().len() / self.threads / 4096 * 4096;
        let read = (part * self.threads) as f64
            / read_pass(self.isa, &self.buffer, self.threads).max(1e-9);
        let operations = 2 * probes::fma_per_round(self.isa) * ROUNDS * self.threads as u64;
        ReferenceRates {
            read,
            fma: operations as f64 / fma_pass(self.isa, self.threads, ROUNDS).max(1e-9),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rate_is_a_positive_number_and_thread_counts_ascend_to_the_one_asked_for() {
        let limits = Limits::measure(3, Effort::Quick);
        assert_eq!(limits.rates.iter().map(|r| r.threads).collect::<Vec<_>>(), [1, 2, 3]);
        for r in &limits.rates {
            assert!(
                r.read.is_finite() && r.read > 0.0 && r.fma.is_finite() && r.fma > 0.0,
                "{r:?}"
            );
            assert!(r.int8.is_none_or(|i| i.is_finite() && i > 0.0), "{r:?}");
        }
        assert_eq!(limits.at(3).unwrap().threads, 3);
        assert_eq!(limits.at(64).unwrap().threads, 3);
        assert_eq!(limits.at(2).unwrap().threads, 2);
        let text = serde_json::to_string(&limits).unwrap();
        assert!(serde_json::from_str::<Limits>(&text).is_ok());
    }

    #[test]
    fn a_limit_is_the_best_that_was_seen() {
        let mut limits = Limits::measure(2, Effort::Quick);
        let (mut other, before) = (limits.clone(), limits.clone());
        other.rates[1].read *= 2.0;
        other.rates[1].fma /= 2.0;
        limits.raise(&other);
        assert_eq!((limits.rates[0], limits.probes), (before.rates[0], 2));
        assert_eq!(
            (limits.rates[1].read, limits.rates[1].fma),
            (2.0 * before.rates[1].read, before.rates[1].fma)
        );
    }

    #[test]
    fn the_reference_gives_a_score() {
        let rates = Reference::new(2).time();
        assert!(rates.score().is_finite() && rates.score() > 0.0);
        assert_eq!(ReferenceRates { read: 4e9, fma: 9e9 }.score(), 6.0);
    }

    #[test]
    fn medians_ignore_one_slow_pass() {
        let mut times = [9.0, 1.0, 100.0, 1.0, 2.0, 1.0].into_iter();
        assert_eq!(median_rate(10.0, 5, || times.next().unwrap()), 10.0);
    }
}

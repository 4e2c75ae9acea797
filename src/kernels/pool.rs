//! Worker threads for phases of a few microseconds: spawned once, they spin between phases, yield when that lasts, and sleep when it
//! lasts longer. A phase is a number of units; each worker claims its own share in order and then
//! helps others with theirs, so a stolen core costs one unit, not the phase.
//! A panic in a unit is caught and breaks the pool: later phases do nothing and [`Pool::broken`] says why. It knows no kernels.
#![allow(unsafe_code)]

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};

/// Spins before yielding: some 20 to 50 µs, more than the gap between two phases.
const SPINS: usize = 1500;
/// Yields before sleeping.
const YIELDS: usize = 200;

/// What a phase runs: (worker, unit).
type Work = dyn Fn(usize, usize) + Sync;

/// Keeps an atomic on a cache line of its own.
#[repr(align(128))]
struct Line<T>(T);

struct Shared {
    /// Counts phases; a change is the start signal.
    phase: Line<AtomicUsize>,
    /// Of each worker's share of the units: the next to claim.
    next: Vec<Line<AtomicUsize>>,
    /// Workers that have not finished the phase.
    active: Line<AtomicUsize>,
    /// Workers asleep or about to sleep.
    sleeping: Line<AtomicUsize>,
    job: UnsafeCell<Option<(*const Work, usize)>>,
    quit: AtomicBool,
    failed: AtomicBool,
    reason: Mutex<Option<String>>,
}

// SAFETY: `job` is written by the owner only while no worker reads it: before `phase` changes (Release) and after `active` fell to
// zero (Acquire). All else is atomics and a mutex.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` refers to a `Sync` closure that outlives the phase; it is not used outside it.
unsafe impl Send for Shared {}

/// A team of workers; the calling thread is worker 0.
pub struct Pool {
    shared: Arc<Shared>,
    sleepers: Vec<Thread>,
    handles: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A team of `threads` workers (at least one: the caller). An error if the system refuses a thread.
    pub fn new(threads: usize) -> std::io::Result<Pool> {
        let shared = Arc::new(Shared {
            phase: Line(AtomicUsize::new(0)),
            next: (0..threads.max(1)).map(|_| Line(AtomicUsize::new(0))).collect(),
            active: Line(AtomicUsize::new(0)),
            sleeping: Line(AtomicUsize::new(0)),
            job: UnsafeCell::new(None),
            quit: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            reason: Mutex::new(None),
        });
        let mut pool = Pool { shared, sleepers: Vec::new(), handles: Vec::new() };
        for worker in 1..threads.max(1) {
            let shared = pool.shared.clone();
            let builder = std::thread::Builder::new().name(format!("llmopt-worker-{worker}"));
            let handle = builder.spawn(move || work(&shared, worker))?;
            pool.sleepers.push(handle.thread().clone());
            pool.handles.push(handle);
        }
        Ok(pool)
    }

    /// Workers, the caller included.
    pub fn threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// Why the pool must not be used any more, if a unit panicked.
    pub fn broken(&self) -> Option<String> {
        if !self.shared.failed.load(Ordering::Acquire) {
            return None;
        }
        let reason = self.shared.reason.lock().unwrap_or_else(PoisonError::into_inner);
        Some(reason.clone().unwrap_or_else(|| "a worker panicked".to_string()))
    }

    /// Runs `work(worker, unit)` for every unit below `units`, each once, on all workers; returns when all are done. A worker runs one
    /// unit at a time. After a panic (now or earlier) units are left out: ask [`Pool::broken`].
    pub fn run<F: Fn(usize, usize) + Sync>(&mut self, units: usize, work: F) {
        let shared = &*self.shared;
        if units == 0 || shared.failed.load(Ordering::Relaxed) {
            return;
        }
        if self.handles.is_empty() || units == 1 {
            shared.guarded(|| (0..units).for_each(|unit| work(0, unit)));
            return;
        }
        let erased: *const (dyn Fn(usize, usize) + Sync + '_) = &work;
        // SAFETY: only the lifetime is erased; the pointer is used by workers between the change of `phase` and their decrement of
        // `active`, and this function does not return (nor unwind: `claim` catches panics) before `active` is zero.
        let erased: *const Work = unsafe { std::mem::transmute(erased) };
        // SAFETY: no worker is active, see `Shared`.
        unsafe { *shared.job.get() = Some((erased, units)) };
        for (share, next) in shared.next.iter().enumerate() {
            next.0.store(shared.begin(share, units), Ordering::Relaxed);
        }
        shared.active.0.store(self.handles.len(), Ordering::Relaxed);
        shared.phase.0.fetch_add(1, Ordering::SeqCst);
        if shared.sleeping.0.load(Ordering::SeqCst) > 0 {
            self.sleepers.iter().for_each(Thread::unpark);
        }
        shared.claim(&work, 0, units);
        let mut waited = 0;
        while shared.active.0.load(Ordering::Acquire) > 0 {
            pause(&mut waited);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.quit.store(true, Ordering::SeqCst);
        self.shared.phase.0.fetch_add(1, Ordering::SeqCst);
        self.sleepers.iter().for_each(Thread::unpark);
        for handle in self.handles.drain(..) {
            let _ = handle.join();
        }
    }
}

impl Shared {
    /// The first unit of a worker's share.
    fn begin(&self, share: usize, units: usize) -> usize {
        share * units / self.next.len()
    }

    /// Runs units until none is left: those of the worker's own share in order (neighbours in memory), then what others have left.
    fn claim(&self, work: &(impl Fn(usize, usize) + Sync + ?Sized), worker: usize, units: usize) {
        self.guarded(|| {
            for i in 0..self.next.len() {
                let share = (worker + i) % self.next.len();
                let end = self.begin(share + 1, units);
                loop {
                    // A look first: finished shares are not written to, so their line stays shared.
                    if self.next[share].0.load(Ordering::Relaxed) >= end
                        || self.failed.load(Ordering::Relaxed)
                    {
                        break;
                    }
                    let unit = self.next[share].0.fetch_add(1, Ordering::Relaxed);
                    if unit >= end {
                        break;
                    }
                    work(worker, unit);
                }
            }
        });
    }

    /// Runs `work`; a panic in it breaks the pool instead of unwinding.
    fn guarded(&self, work: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            let mut reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
            reason.get_or_insert_with(|| format!("a worker panicked: {}", message(&*panic)));
            self.failed.store(true, Ordering::Release);
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// One wait: spin first, then leave the core to others.
fn pause(waited: &mut usize) {
    if *waited < SPINS {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
    *waited += 1;
}

fn work(shared: &Shared, worker: usize) {
    let mut seen = 0;
    loop {
        let mut waited = 0;
        while shared.phase.0.load(Ordering::Acquire) == seen {
            if waited < SPINS + YIELDS {
                pause(&mut waited);
                continue;
            }
            // Sleep. The owner changes `phase` before it reads `sleeping`, we do it the other way round, both SeqCst: one sees the other.
            shared.sleeping.0.fetch_add(1, Ordering::SeqCst);
            while shared.phase.0.load(Ordering::SeqCst) == seen {
                std::thread::park();
            }
            shared.sleeping.0.fetch_sub(1, Ordering::SeqCst);
        }
        seen = seen.wrapping_add(1);
        if shared.quit.load(Ordering::SeqCst) {
            return;
        }
        // SAFETY: `phase` changed (Acquire), so `job` is written and stays so until this worker's decrement of `active`.
        if let Some((job, units)) = unsafe { *shared.job.get() } {
            // SAFETY: the closure lives until `run` returns, which is after the decrement below.
            shared.claim(unsafe { &*job }, worker, units);
        }
        shared.active.0.fetch_sub(1, Ordering::Release);
    }
}

/// One value a worker; handed out by worker number.
pub(crate) struct PerWorker<T>(Vec<Line<UnsafeCell<T>>>);

// SAFETY: values are reached through `get`, whose caller promises one user at a time, or through `&mut self`.
unsafe impl<T: Send> Sync for PerWorker<T> {}

impl<T> PerWorker<T> {
    pub(crate) fn new(workers: usize, make: impl Fn() -> T) -> Self {
        PerWorker((0..workers).map(|_| Line(UnsafeCell::new(make()))).collect())
    }

    /// # Safety
    /// `worker` must be the number [`Pool::run`] passed to the calling unit, of a pool whose `run` this `PerWorker` serves alone.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn get(&self, worker: usize) -> &mut T {
        // SAFETY: a worker runs one unit at a time (see `Pool::run`), so nobody else holds this value.
        unsafe { &mut *self.0[worker].0.get() }
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().map(|line| line.0.get_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_runs_once_with_more_threads_than_cores_too() {
        for threads in [1, 2, 3, 16] {
            let mut pool = Pool::new(threads).unwrap();
            for units in [0, 1, 2, 7, 100] {
                let counts: Vec<AtomicUsize> = (0..units).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..50 {
                    pool.run(units, |worker, unit| {
                        assert!(worker < threads);
                        counts[unit].fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert!(
                    counts.iter().all(|c| c.load(Ordering::Relaxed) == 50),
                    "{threads} threads, {units} units"
                );
            }
        }
    }

    #[test]
    fn a_sleeping_pool_wakes() {
        let mut pool = Pool::new(3).unwrap();
        let sum = AtomicUsize::new(0);
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(30));
            pool.run(10, |_, unit| {
                sum.fetch_add(unit, Ordering::Relaxed);
            });
        }
        assert_eq!(sum.load(Ordering::Relaxed), 3 * 45);
    }

    #[test]
    fn a_panic_is_an_error_and_never_a_hang() {
        let mut pool = Pool::new(2).unwrap();
        let broken = std::panic::catch_unwind(AssertUnwindSafe(|| {
            pool.run(64, |_, unit| assert!(unit != 40, "unit {unit} is bad"));
        }));
        assert!(broken.is_ok(), "the panic must not leave `run`");
        assert!(pool.broken().unwrap().contains("unit 40 is bad"));
        pool.run(4, |_, _| unreachable!("a broken pool does nothing"));
    }
}

//! Control of a running pipeline from other threads: when to stop, and how far it is.
//! In: signals, deadlines. Out: counters for a progress display. No printing.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

/// How far a run has been told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stopping {
    /// Go on.
    No,
    /// Admit nothing new; finish what is in flight within the grace, drop the rest.
    Drain,
    /// Drop everything now.
    Now,
}

/// Shared between a run, its signal handlers and its progress display. A fresh one goes on for ever.
#[derive(Debug, Default)]
pub struct Control {
    stopping: AtomicU8,
    /// No new work and no running work after this moment (`--max-time`).
    pub deadline: Option<Instant>,
    /// Records accepted so far.
    pub accepted: AtomicU64,
    /// Records answered so far, errors included.
    pub answered: AtomicU64,
    /// Tokens generated so far, of unfinished answers too.
    pub tokens: AtomicU64,
}

impl Control {
    /// One that ends at `deadline`.
    pub fn until(deadline: Option<Instant>) -> Self {
        Control { deadline, ..Default::default() }
    }

    /// Asks the run to stop; never takes back a stronger request.
    pub fn stop(&self, how: Stopping) {
        self.stopping.fetch_max(how as u8, Ordering::SeqCst);
    }

    /// What was asked for so far.
    pub fn stopping(&self) -> Stopping {
        match self.stopping.load(Ordering::SeqCst) {
            0 => Stopping::No,
            1 => Stopping::Drain,
            _ => Stopping::Now,
        }
    }
}

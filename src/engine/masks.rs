//! Threads that work out which tokens a constraint allows next while the forward pass runs. In: cells whose grammar has gone on by the
//! newest token. Out: their masks, in the cells. Whoever needs a mask that nobody has begun computes it; so a mask never waits for a thread.

use crate::text::{Mask, Matching};
use crate::units::TokenId;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// An answer's place in its grammar, and the mask of the next token once it is known.
pub(super) struct Cell(Mutex<Inside>);

struct Inside {
    matching: Matching,
    mask: Option<Result<Mask, String>>,
}

impl Cell {
    pub(super) fn new(matching: Matching) -> Arc<Cell> {
        Arc::new(Cell(Mutex::new(Inside { matching, mask: None })))
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        // Computing a mask catches its panics; whatever else happened left the place as it was.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tokens that may come next: waits for the thread that computes them, or does it here.
    pub(super) fn mask(&self) -> Result<Mask, String> {
        let mut inside = self.lock();
        match inside.mask.take() {
            Some(mask) => mask,
            None => inside.matching.mask(),
        }
    }

    /// Whether the mask has this token, where that is told without the mask of all.
    pub(super) fn allows(&self, token: TokenId) -> Option<bool> {
        self.lock().matching.allows(token)
    }

    fn prepare(&self) {
        let mut inside = self.lock();
        if inside.mask.is_none() {
            inside.mask = Some(inside.matching.mask());
        }
    }

    /// Works with the place in the grammar; a mask that was computed is no longer that of the place.
    pub(super) fn advance<T>(&self, work: impl FnOnce(&mut Matching) -> T) -> T {
        let mut inside = self.lock();
        inside.mask = None;
        work(&mut inside.matching)
    }
}

/// See the module's head.
pub(super) struct Masks {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Arc<Cell>>,
    closed: bool,
}

impl Masks {
    /// So many threads, started when the first cell comes.
    pub(super) fn new() -> Masks {
        Masks { queue: Arc::default(), threads: Vec::new() }
    }

    /// Has a cell's mask computed while something else is done; `threads` workers serve all cells.
    pub(super) fn begin(&mut self, cell: Arc<Cell>, threads: usize) {
        while self.threads.len() < threads {
            let queue = self.queue.clone();
            let work = move || {
                while let Some(cell) = queue.next() {
                    cell.prepare();
                }
            };
            // Where the system refuses a thread, masks are computed when they are needed.
            let Ok(thread) = std::thread::Builder::new().name("masks".to_string()).spawn(work)
            else {
                break;
            };
            self.threads.push(thread);
        }
        let mut state = self.queue.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.waiting.push_back(cell);
        self.queue.changed.notify_one();
    }

    /// What waits is needed now, and whoever needs it will do it.
    pub(super) fn stop_waiting(&self) {
        self.queue.state.lock().unwrap_or_else(PoisonError::into_inner).waiting.clear();
    }
}

impl Queue {
    fn next(&self) -> Option<Arc<Cell>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |state: &mut State| state.waiting.is_empty() && !state.closed;
        let mut state =
            self.changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
        if state.closed { None } else { state.waiting.pop_front() }
    }
}

impl Drop for Masks {
    fn drop(&mut self) {
        self.queue.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.queue.changed.notify_all();
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

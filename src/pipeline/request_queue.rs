//! The bounded queue between a source and the engine: reader thread → tokenizer thread → engine's thread. At most `capacity`
//! records are inside, counted from acceptance to the moment the engine's thread takes them, so a source of any length needs
//! fixed memory. Generic over what is accepted and what it becomes; it knows no prompts.

use super::SourceFailure;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// An item of the source, numbered and timed when it was accepted.
#[derive(Debug)]
pub struct Accepted<T> {
    /// Its place in the source, from 0.
    pub index: u64,
    /// When it got its place in the queue.
    pub at: Instant,
    /// The item.
    pub item: T,
}

/// What the engine's thread gets.
#[derive(Debug)]
pub enum Next<T> {
    /// The next item.
    Item(Accepted<T>),
    /// Nothing now, but more may come.
    Empty,
    /// Nothing, and nothing will come; with what is said by a source or a stage that failed.
    Ended(Option<Failed>),
}

/// A source or a stage that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failed {
    /// The source said so.
    Source(SourceFailure),
    /// A thread panicked.
    Panic(&'static str),
}

/// See the module's head. `A`: accepted. `R`: ready for the engine.
#[derive(Debug)]
pub struct RequestQueue<A, R> {
    capacity: usize,
    state: Mutex<State<A, R>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<A, R> {
    accepted: u64,
    waiting: VecDeque<Accepted<A>>,
    /// Taken by the tokenizer, not ready yet.
    working: usize,
    ready: VecDeque<Accepted<R>>,
    source_ended: bool,
    /// The engine has stopped: items are neither accepted nor handed out.
    closed: bool,
    failed: Option<Failed>,
}

impl<A, R> RequestQueue<A, R> {
    /// An empty queue for `capacity` ≥ 1 records.
    pub fn new(capacity: usize) -> Self {
        let state = State {
            accepted: 0,
            waiting: VecDeque::new(),
            working: 0,
            ready: VecDeque::new(),
            source_ended: false,
            closed: false,
            failed: None,
        };
        RequestQueue {
            capacity: capacity.max(1),
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<A, R>> {
        // Every critical section leaves the state whole, so the data behind a poisoned lock is valid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reader: accepts an item as soon as there is room; false once the queue is closed.
    pub fn accept(&self, item: A) -> bool {
        let full = |s: &mut State<A, R>| {
            !s.closed && s.waiting.len() + s.working + s.ready.len() >= self.capacity
        };
        let mut state =
            self.changed.wait_while(self.lock(), full).unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return false;
        }
        let index = state.accepted;
        state.accepted += 1;
        state.waiting.push_back(Accepted { index, at: Instant::now(), item });
        self.changed.notify_all();
        true
    }

    /// Reader: there is no more.
    pub fn end(&self, failed: Option<Failed>) {
        let mut state = self.lock();
        state.source_ended = true;
        state.failed = state.failed.take().or(failed);
        self.changed.notify_all();
    }

    /// Tokenizer: what waits now, at most `most` items, at least one; `None` if there is no more.
    pub fn take(&self, most: usize) -> Option<Vec<Accepted<A>>> {
        let idle = |s: &mut State<A, R>| !s.closed && s.waiting.is_empty() && !s.source_ended;
        let mut state =
            self.changed.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        if state.closed || state.waiting.is_empty() {
            return None;
        }
        let count = state.waiting.len().min(most);
        state.working += count;
        Some(state.waiting.drain(..count).collect())
    }

    /// Tokenizer: gives back what it took, in the same order.
    pub fn give(&self, items: Vec<Accepted<R>>) {
        let mut state = self.lock();
        state.working -= items.len();
        state.ready.extend(items);
        self.changed.notify_all();
    }

    /// Tokenizer: it cannot go on; what it took is lost with it.
    pub fn fail(&self, failed: Failed) {
        let mut state = self.lock();
        state.failed = Some(failed);
        state.closed = true;
        self.changed.notify_all();
    }

    /// Engine: the next record, without waiting.
    pub fn next(&self) -> Next<R> {
        let mut state = self.lock();
        match state.ready.pop_front() {
            Some(item) => {
                self.changed.notify_all();
                Next::Item(item)
            }
            None if state.closed
                || (state.source_ended && state.waiting.is_empty() && state.working == 0) =>
            {
                Next::Ended(state.failed.clone())
            }
            None => Next::Empty,
        }
    }

    /// Engine: whether a batch of `size` can be taken, or as many as there are just now with nothing on its way.
    pub fn settled(&self, size: usize) -> bool {
        let state = self.lock();
        state.ready.len() >= size || (state.waiting.is_empty() && state.working == 0)
    }

    /// Engine: waits until something changes, at most this long.
    pub fn wait(&self, most: Duration) {
        let state = self.lock();
        if state.ready.is_empty() && !state.closed {
            let _ = self.changed.wait_timeout(state, most);
        }
    }

    /// Records accepted so far.
    pub fn accepted(&self) -> u64 {
        self.lock().accepted
    }

    /// Ends everything: waiting threads return, what is inside is dropped.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.waiting.clear();
        state.ready.clear();
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn everything_comes_through_once_in_order_within_the_bound() {
        let queue: Arc<RequestQueue<u32, u32>> = Arc::new(RequestQueue::new(5));
        let reader = std::thread::spawn({
            let queue = queue.clone();
            move || {
                (0..1000).for_each(|i| assert!(queue.accept(i)));
                queue.end(None);
            }
        });
        let tokenizer = std::thread::spawn({
            let queue = queue.clone();
            move || {
                while let Some(items) = queue.take(3) {
                    assert!((1..=3).contains(&items.len()));
                    queue.give(
                        items
                            .into_iter()
                            .map(|a| Accepted { index: a.index, at: a.at, item: a.item * 2 })
                            .collect(),
                    );
                }
            }
        });
        let mut seen = 0u64;
        loop {
            match queue.next() {
                Next::Item(a) => {
                    assert_eq!((a.index, a.item), (seen, seen as u32 * 2));
                    seen += 1;
                    assert!(queue.accepted() <= seen + 5);
                }
                Next::Empty => queue.wait(Duration::from_millis(50)),
                Next::Ended(failed) => {
                    assert_eq!(failed, None);
                    break;
                }
            }
        }
        assert_eq!(seen, 1000);
        reader.join().unwrap();
        tokenizer.join().unwrap();
    }

    #[test]
    fn closing_frees_a_blocked_reader_and_a_blocked_tokenizer() {
        let queue: Arc<RequestQueue<u32, u32>> = Arc::new(RequestQueue::new(1));
        assert!(queue.accept(1));
        let reader = std::thread::spawn({
            let queue = queue.clone();
            move || queue.accept(2)
        });
        assert_eq!(queue.take(9).map(|v| v.len()), Some(1));
        let tokenizer = std::thread::spawn({
            let queue = queue.clone();
            move || queue.take(9).is_none()
        });
        std::thread::sleep(Duration::from_millis(20));
        queue.close();
        assert!(!reader.join().unwrap() && tokenizer.join().unwrap());
        assert!(matches!(queue.next(), Next::Ended(None)));
    }

    #[test]
    fn a_failure_is_told_after_what_was_accepted_before_it() {
        let queue: RequestQueue<u32, u32> = RequestQueue::new(4);
        assert!(queue.accept(1));
        queue.end(Some(Failed::Source(SourceFailure {
            message: "line 2 is broken".into(),
            refused: true,
        })));
        assert!(matches!(queue.next(), Next::Empty) && !queue.settled(2));
        let items = queue.take(9).unwrap();
        queue.give(items);
        assert!(queue.settled(2) && matches!(queue.next(), Next::Item(_)));
        assert!(
            matches!(queue.next(), Next::Ended(Some(Failed::Source(_)))) && queue.take(1).is_none()
        );
    }
}

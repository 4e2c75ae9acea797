//! Answers in memory, for one run: least recently used first out. The key is everything an answer depends on.

use crate::engine::{Extras, Request, StoppingPolicy};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// SHA-256 over prompt ids and generation settings (within one pipeline, model and numeric path are fixed).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// The key of a request.
    pub fn of(request: &Request, stopping: StoppingPolicy) -> Key {
        let mut sha = Sha256::new();
        sha.update((request.prompt.len() as u64).to_le_bytes());
        for id in request.prompt.iter() {
            sha.update(id.to_le_bytes());
        }
        let s = &request.sampling;
        sha.update((request.max_tokens as u64).to_le_bytes());
        sha.update(s.temperature.to_bits().to_le_bytes());
        sha.update(s.top_p.to_bits().to_le_bytes());
        sha.update((s.top_k as u64).to_le_bytes());
        sha.update(s.seed.to_le_bytes());
        // Everything else is named, so that a new field cannot be forgotten.
        let Extras { penalties, min_p, logprobs, constraint, thought, choices } = &*request.extras;
        sha.update(
            format!("{penalties:?} {min_p:?} {logprobs:?} {thought:?} {choices:?}").as_bytes(),
        );
        sha.update(constraint.as_ref().map_or(&[0; 32], |grammar| grammar.digest()));
        if stopping == StoppingPolicy::Early {
            sha.update([
                1,
                request.stop.eos as u8,
                request.stop.sentence as u8,
                request.stop.repetition as u8,
            ]);
            for text in &request.stop.strings {
                sha.update((text.len() as u64).to_le_bytes());
                sha.update(text.as_bytes());
            }
        }
        Key(sha.finalize().into())
    }
}

/// A least-recently-used map, bounded by entries and by bytes.
#[derive(Debug)]
pub struct Lru<V> {
    entries: HashMap<Key, Entry<V>>,
    by_age: BTreeMap<u64, Key>,
    clock: u64,
    bytes: usize,
    capacity: usize,
    capacity_bytes: usize,
}

#[derive(Debug)]
struct Entry<V> {
    value: Arc<V>,
    used: u64,
    bytes: usize,
}

impl<V> Lru<V> {
    /// An empty one.
    pub fn new(capacity: usize, capacity_bytes: usize) -> Self {
        Lru {
            entries: HashMap::new(),
            by_age: BTreeMap::new(),
            clock: 0,
            bytes: 0,
            capacity,
            capacity_bytes,
        }
    }

    /// The value, which becomes the youngest.
    pub fn get(&mut self, key: &Key) -> Option<Arc<V>> {
        self.clock += 1;
        let entry = self.entries.get_mut(key)?;
        self.by_age.remove(&entry.used);
        self.by_age.insert(self.clock, *key);
        entry.used = self.clock;
        Some(entry.value.clone())
    }

    /// Keeps a value of about `bytes`; drops the oldest ones until everything fits again.
    pub fn put(&mut self, key: Key, value: Arc<V>, bytes: usize) {
        if self.capacity == 0 || bytes > self.capacity_bytes {
            return;
        }
        self.clock += 1;
        self.by_age.insert(self.clock, key);
        self.bytes += bytes;
        if let Some(old) = self.entries.insert(key, Entry { value, used: self.clock, bytes }) {
            self.by_age.remove(&old.used);
            self.bytes -= old.bytes;
        }
        while self.entries.len() > self.capacity || self.bytes > self.capacity_bytes {
            let Some((_, oldest)) = self.by_age.pop_first() else { return };
            if let Some(old) = self.entries.remove(&oldest) {
                self.bytes -= old.bytes;
            }
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.by_age.clear();
        self.bytes = 0;
    }

    /// Entries held.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Choices, Sampling, StopRules};

    fn request(prompt: &[u32]) -> Request {
        Request {
            ticket: 0,
            prompt: prompt.into(),
            max_tokens: 8,
            sampling: Sampling { temperature: 0.2, top_p: 0.95, top_k: 50, seed: 0 },
            stop: Arc::new(StopRules {
                eos: true,
                strings: vec![],
                sentence: true,
                repetition: true,
            }),
            extras: Arc::default(),
        }
    }

    #[test]
    fn everything_an_answer_depends_on_is_in_the_key_and_the_ticket_is_not() {
        let key = |r: &Request| Key::of(r, StoppingPolicy::Early);
        let base = request(&[1, 2, 3]);
        let mut renamed = base.clone();
        renamed.ticket = 9;
        assert_eq!(key(&base), key(&renamed));
        let mut seen = vec![
            key(&base),
            Key::of(&base, StoppingPolicy::MaxTokensOnly),
            key(&request(&[1, 2])),
            key(&request(&[1, 2, 4])),
        ];
        let edits: [fn(&mut Request); 13] = [
            |r| Arc::make_mut(&mut r.extras).min_p = 0.1,
            |r| Arc::make_mut(&mut r.extras).penalties.presence = 0.1,
            |r| Arc::make_mut(&mut r.extras).logprobs = Some(0),
            |r| Arc::make_mut(&mut r.extras).logprobs = Some(1),
            |r| {
                let choices =
                    Choices { texts: vec!["a".into(), "b".into()], tokens: vec![vec![1], vec![2]] };
                Arc::make_mut(&mut r.extras).choices = Some(Arc::new(choices));
            },
            |r| r.max_tokens = 9,
            |r| r.sampling.temperature = 0.0,
            |r| r.sampling.top_p = 1.0,
            |r| r.sampling.top_k = 0,
            |r| r.sampling.seed = 1,
            |r| Arc::make_mut(&mut r.stop).eos = false,
            |r| Arc::make_mut(&mut r.stop).strings.push("a".into()),
            |r| Arc::make_mut(&mut r.stop).repetition = false,
        ];
        for edit in edits {
            let mut r = base.clone();
            edit(&mut r);
            seen.push(key(&r));
        }
        for (i, a) in seen.iter().enumerate() {
            assert!(!seen[..i].contains(a), "{i}");
        }
    }

    #[test]
    fn the_least_recently_used_goes_first_by_count_and_by_bytes() {
        let key = |i: u32| Key::of(&request(&[i]), StoppingPolicy::Early);
        let mut lru = Lru::new(2, 100);
        lru.put(key(1), Arc::new(1), 10);
        lru.put(key(2), Arc::new(2), 10);
        assert_eq!(lru.get(&key(1)).as_deref(), Some(&1));
        lru.put(key(3), Arc::new(3), 10);
        assert_eq!((lru.get(&key(2)), lru.len()), (None, 2));
        lru.put(key(4), Arc::new(4), 95);
        assert_eq!(
            (lru.get(&key(1)), lru.get(&key(3)), lru.get(&key(4)).as_deref(), lru.len()),
            (None, None, Some(&4), 1)
        );
        lru.put(key(5), Arc::new(5), 101);
        assert_eq!((lru.get(&key(5)), lru.len()), (None, 1));
        lru.put(key(4), Arc::new(6), 5);
        assert_eq!((lru.get(&key(4)).as_deref(), lru.len()), (Some(&6), 1));
        lru.clear();
        assert_eq!((lru.get(&key(4)), lru.len()), (None, 0));
    }
}

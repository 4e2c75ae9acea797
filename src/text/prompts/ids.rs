//! Which ids were seen: at most 30 bytes each, whatever their length.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hasher, RandomState};

/// Ids by 96 bits of two keyed hashes: among a thousand million ids, two different ones are taken for one with a chance below 1e-11,
/// and nobody can choose ids that are. 13 bytes a slot, at least 7/16 of them used: 30 bytes an id.
#[derive(Default)]
pub(super) struct Ids {
    seen: HashSet<[u32; 3]>,
    keys: [RandomState; 2],
}

impl Ids {
    /// Whether the id is new.
    pub fn insert(&mut self, id: &str) -> bool {
        let [a, b] = [0, 1].map(|i| {
            let mut hasher = self.keys[i].build_hasher();
            hasher.write(id.as_bytes());
            hasher.finish()
        });
        self.seen.insert([a as u32, (a >> 32) as u32, b as u32])
    }
}

//! Which ids were seen: at most 16 bytes each, whatever their length. In: ids as text. Out: whether one is new. They cannot be listed.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Tables that grow one at a time, so that old and new slots of all ids never exist together.
const TABLES: usize = 64;

/// Ids by 96 bits of two keyed hashes: among a thousand million ids, two different ones are taken for one with a chance below 1e-11,
/// and nobody can choose ids that are. 12 bytes a slot, from 0.75 to 0.85 of them used. The library's sets double instead, all at once: 44
/// bytes an id at the worst moment.
pub(super) struct Ids {
    tables: Vec<Table>,
    keys: [RandomState; 2],
}

impl Default for Ids {
    fn default() -> Self {
        Self { tables: (0..TABLES).map(|_| Table::default()).collect(), keys: Default::default() }
    }
}

impl Ids {
    /// Whether the id is new; a number and the same characters as text are two ids.
    pub fn insert(&mut self, id: &str, is_number: bool) -> bool {
        let [a, b] = self.keys.each_ref().map(|key| {
            let mut hasher = key.build_hasher();
            hasher.write(id.as_bytes());
            hasher.write_u8(u8::from(is_number));
            hasher.finish()
        });
        self.insert_hash([a as u32, (a >> 32) as u32, b as u32])
    }

    fn insert_hash(&mut self, mut hash: [u32; 3]) -> bool {
        if hash == EMPTY {
            hash = [1; 3];
        }
        // The first word is the place within the table.
        self.tables.get_mut(hash[1] as usize % TABLES).is_some_and(|table| table.insert(hash))
    }

    #[cfg(test)]
    fn slots(&self) -> usize {
        self.tables.iter().map(|table| table.slots.len()).sum()
    }
}

/// What no id is.
const EMPTY: [u32; 3] = [0; 3];

/// A hash table with linear probing.
#[derive(Default)]
struct Table {
    slots: Vec<[u32; 3]>,
    used: usize,
}

impl Table {
    fn insert(&mut self, hash: [u32; 3]) -> bool {
        // Room first, so that there always is an empty slot.
        if (self.used + 1) * 20 > self.slots.len() * 17 {
            let larger = (self.slots.len() * 9 / 8).max(self.slots.len() + 8);
            for old in std::mem::replace(&mut self.slots, vec![EMPTY; larger]) {
                if old != EMPTY {
                    self.put(old);
                }
            }
        }
        let new = self.put(hash);
        self.used += usize::from(new);
        new
    }

    /// Puts a hash into the first empty slot from its place on, unless it is met before.
    fn put(&mut self, hash: [u32; 3]) -> bool {
        let place = ((u64::from(hash[0]) * self.slots.len() as u64) >> 32) as usize;
        let (before, after) = self.slots.split_at_mut(place);
        for slot in after.iter_mut().chain(before) {
            if *slot == EMPTY {
                *slot = hash;
                return true;
            }
            if *slot == hash {
                return false;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn an_id_is_new_once_and_takes_sixteen_bytes_at_most() {
        let mut ids = Ids::default();
        for i in 0..300_000u32 {
            assert!(ids.insert(&format!("r{i}"), false), "{i}");
            if i >= 20_000 {
                assert!(ids.slots() * 12 <= 16 * (i as usize + 1), "{i}");
            }
        }
        assert!((0..300_000u32).all(|i| !ids.insert(&format!("r{i}"), false)));
        assert!(ids.insert("7", false) && ids.insert("7", true) && !ids.insert("7", true));
        assert!(ids.insert("", false) && !ids.insert("", false) && ids.insert("r300000", false));
    }

    proptest::proptest! {
        /// Hashes that collide in table and place, the empty slot's among them.
        #[test]
        fn it_is_a_set(hashes in proptest::collection::vec([0u32..3, 0u32..3, 0u32..12], 0..400), top in proptest::bool::ANY) {
            let mut ids = Ids::default();
            let mut expected = HashSet::new();
            for mut hash in hashes {
                if top {
                    hash[0] = !hash[0];
                }
                let same = if hash == EMPTY { [1; 3] } else { hash };
                proptest::prop_assert_eq!(ids.insert_hash(hash), expected.insert(same));
            }
        }
    }
}

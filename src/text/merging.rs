//! The merges of byte-pair encoding inside one word. In: symbols (bytes or characters) that may have a token. Out: the same symbols merged
//! until no pair of neighbours has a merge: of all pairs the one of the lowest rank first, of equal ones the leftmost. A heap keeps this
//! at n log n, whatever the word; SentencePiece's scores and BPE's ranks differ only in where a pair's rank comes from.

use crate::units::TokenId;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A symbol without a token.
pub(super) const NONE: TokenId = TokenId::MAX;

/// A piece of the word.
#[derive(Debug, Clone, Copy)]
pub(super) struct Symbol {
    /// Its token, or [`NONE`].
    pub id: TokenId,
    /// Where it begins in the word, in bytes.
    pub start: u32,
    /// Its bytes; 0 once its left neighbour has taken it in.
    pub len: u32,
    previous: u32,
    next: u32,
}

/// No neighbour.
const END: u32 = u32::MAX;

/// A merge that may happen: rank, index of the left symbol, length of both together, result.
type Candidate = Reverse<(u32, u32, u32, TokenId)>;

/// Symbols and candidates; kept between words to save allocations.
#[derive(Default)]
pub(super) struct Word {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Candidate>,
}

impl Word {
    /// Begins a new word.
    pub fn clear(&mut self) {
        self.symbols.clear();
        self.heap.clear();
    }

    /// Appends a symbol of `len` bytes.
    pub fn push(&mut self, id: TokenId, len: usize) {
        let at = self.symbols.len() as u32;
        let start = self.symbols.last().map_or(0, |s| s.start + s.len);
        if let Some(last) = self.symbols.last_mut() {
            last.next = at;
        }
        self.symbols.push(Symbol {
            id,
            start,
            len: len as u32,
            previous: at.checked_sub(1).unwrap_or(END),
            next: END,
        });
    }

    /// Merges all that `pair` (rank and result of two neighbours) has a merge for.
    pub fn merge(&mut self, pair: impl Fn(&Symbol, &Symbol) -> Option<(u32, TokenId)>) {
        for left in 0..self.symbols.len().saturating_sub(1) {
            self.consider(left as u32, &pair);
        }
        while let Some(Reverse((_, at, len, result))) = self.heap.pop() {
            let left = self.symbols[at as usize];
            // Out of date: a part has been taken in by another merge since. Lengths only grow, so that they tell.
            if left.len == 0
                || left.next == END
                || left.len + self.symbols[left.next as usize].len != len
            {
                continue;
            }
            let right = self.symbols[left.next as usize];
            self.symbols[left.next as usize].len = 0;
            let merged = &mut self.symbols[at as usize];
            merged.id = result;
            merged.len = len;
            merged.next = right.next;
            if right.next != END {
                self.symbols[right.next as usize].previous = at;
            }
            if left.previous != END {
                self.consider(left.previous, &pair);
            }
            self.consider(at, &pair);
        }
    }

    fn consider(&mut self, at: u32, pair: &impl Fn(&Symbol, &Symbol) -> Option<(u32, TokenId)>) {
        let left = &self.symbols[at as usize];
        if left.next == END {
            return;
        }
        let right = &self.symbols[left.next as usize];
        if let Some((rank, result)) = pair(left, right) {
            self.heap.push(Reverse((rank, at, left.len + right.len, result)));
        }
    }

    /// The symbols that are left, in order.
    pub fn symbols(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter().filter(|s| s.len > 0)
    }
}

/// The rank of a score: a higher score is a lower rank, equal scores are equal ranks.
pub(super) fn rank_of(score: f32) -> u32 {
    // -0.0 + 0.0 is 0.0: both zeros have one rank.
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    !ascending
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn ranks_run_against_scores() {
        let scores = [f32::MAX, 3.0, 1.0, 0.0, -0.0, -1e-30, -1.0, -1e9, f32::MIN];
        for (a, b) in scores.iter().zip(&scores[1..]) {
            assert_eq!(rank_of(*a) < rank_of(*b), a > b, "{a} {b}");
            assert_eq!(rank_of(*a) == rank_of(*b), a == b, "{a} {b}");
        }
    }

    proptest! {
        /// Against the definition, which looks at all pairs again after every merge.
        #[test]
        fn the_heap_finds_what_the_definition_finds(
            word in prop::collection::vec(0u32..4, 1..40),
            merges in prop::collection::vec((0u32..8, 0u32..8), 0..24),
        ) {
            let mut table = HashMap::new();
            for (rank, &(left, right)) in merges.iter().enumerate() {
                table.entry((left, right)).or_insert((rank as u32 / 2, 4 + rank as u32 % 4));
            }
            let mut plain: Vec<u32> = word.clone();
            loop {
                let best = plain.windows(2).enumerate().filter_map(|(at, p)| Some((table.get(&(p[0], p[1]))?.0, at))).min();
                let Some((_, at)) = best else { break };
                plain[at] = table[&(plain[at], plain[at + 1])].1;
                plain.remove(at + 1);
            }
            let mut fast = Word::default();
            word.iter().for_each(|&id| fast.push(id, 1));
            fast.merge(|l, r| table.get(&(l.id, r.id)).copied());
            prop_assert_eq!(fast.symbols().map(|s| s.id).collect::<Vec<_>>(), plain);
            prop_assert_eq!(fast.symbols().map(|s| s.len as usize).sum::<usize>(), word.len());
        }
    }
}

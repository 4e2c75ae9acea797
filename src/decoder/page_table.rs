//! The page table of keys and values (paged attention: Kwon et al., arXiv 2309.06180): page lists of open sequences, reference counts, a
//! free list, and the prefix cache, a trie over whole pages of token ids, evicted from its leaves, least recently used first (RadixAttention:
//! Zheng et al., arXiv 2312.07104).
//! In: prompts. Out: page numbers. It is plain data: it holds no keys, no values, no memory of any size, and computes nothing.
//!
//! A prompt's whole pages are promised at [`PageTable::open`], before anybody wrote them: a sequence opened later may refer to them,
//! because prefills run in the order of opening. Where that fails (the writer is closed before it has written), the promise is
//! withdrawn: the pages leave the trie and the sequences that counted on them are told apart by [`PageTable::orphaned`].
//! Over 500 lines: one plain structure, whose invariants every function keeps.

use super::{Opened, Slot};
use crate::units::TokenId;
use std::collections::{BTreeSet, HashMap};

pub use crate::kernels::PAGE;

/// No page: the parent of a prompt's first page.
const ROOT: u32 = u32::MAX;

/// No position is so late.
const NEVER: usize = usize::MAX;

/// A page's content as the trie knows it: the page before it and its own token ids. A parent leaves the trie after its children,
/// so a page number in a key never means anything but the page that carried it when the key was made.
type Key = (u32, [TokenId; PAGE]);

#[derive(Debug, Default)]
struct Page {
    /// Open sequences that refer to it.
    refs: u32,
    /// Its place in the trie.
    key: Option<Key>,
    /// Registered pages whose parent it is.
    children: Vec<u32>,
    /// All its positions hold keys and values.
    written: bool,
    /// The clock when its last reference was released; used while it is in the prefix cache without one.
    stamp: u64,
}

#[derive(Debug)]
struct Sequence {
    pages: Vec<u32>,
    /// The first of `pages` that belongs to this sequence alone or is promised by it; those before it are others'.
    own: usize,
    /// Leading pages known to be written.
    written: usize,
    /// A page it counted on was never written.
    orphaned: bool,
    /// Pages kept for forks of this sequence and of its forks.
    spare: Vec<u32>,
    /// The slot whose spare pages a fork uses; `None` for a sequence with a prompt of its own.
    root: Option<usize>,
    /// The checkpoint of its state that it begins with, until it has begun.
    resumes: Option<usize>,
}

/// A state at the end of a page that begins a prompt.
#[derive(Debug)]
struct Checkpoint {
    /// The page in the trie; [`ROOT`] where nobody new will find it.
    page: u32,
    /// Who writes it.
    writer: Slot,
    /// After so many positions; [`NEVER`] for room that is kept for the state of a fork.
    border: usize,
    written: bool,
    /// When it was last made or used.
    stamp: u64,
}

/// See the module's head.
#[derive(Debug)]
pub struct PageTable {
    /// Those that were used so far, from number 0 on: a model may claim a context of millions of pages.
    pages: Vec<Page>,
    /// How many there may be.
    most: usize,
    /// Pages of these that nobody needs, the lowest number last (and used first, so that untouched memory stays untouched).
    free: Vec<u32>,
    slots: Vec<Option<Sequence>>,
    /// The slots of sequences with prompts of their own; those of forks come after.
    most_open: usize,
    trie: HashMap<Key, u32>,
    /// Cached pages without children, by age: what may be evicted next.
    leaves: BTreeSet<(u64, u32)>,
    /// Pages of the trie to which no open sequence refers.
    kept: usize,
    clock: u64,
    /// Sequences have states: a beginning is taken over only as far as there is a checkpoint.
    stateful: bool,
    checkpoints: Vec<Option<Checkpoint>>,
}

impl PageTable {
    /// A table of `pages` pages for at most `slots` sequences at a time.
    pub fn new(pages: usize, slots: usize) -> PageTable {
        assert!(pages < ROOT as usize, "page numbers are 32 bits");
        PageTable {
            pages: Vec::new(),
            most: pages,
            free: Vec::new(),
            slots: (0..slots).map(|_| None).collect(),
            most_open: slots,
            trie: HashMap::new(),
            leaves: BTreeSet::new(),
            kept: 0,
            clock: 0,
            stateful: false,
            checkpoints: Vec::new(),
        }
    }

    /// The same for sequences that have a state besides: of which `checkpoints` can be kept at page borders.
    pub fn with_checkpoints(pages: usize, slots: usize, checkpoints: usize) -> PageTable {
        let checkpoints = (0..checkpoints).map(|_| None).collect();
        PageTable { stateful: true, checkpoints, ..PageTable::new(pages, slots) }
    }

    /// How many of these pages, which begin a prompt, a sequence can take over that has a state, and the checkpoint it begins with. Where
    /// the last one has no checkpoint, it gets one: by its writer, if that has not come so far, else by this sequence, for later ones.
    fn resume(&mut self, pages: &[u32], slot: Slot) -> (usize, Option<usize>) {
        let Some(&last) = pages.last() else { return (0, None) };
        if self.checkpoint_of(last).is_none()
            && let Some(number) = self.free_checkpoint(None)
        {
            let ahead = self.slots.iter().position(|s| {
                let place = s.as_ref().and_then(|s| {
                    Some((s, s.pages[s.own..].iter().position(|p| *p == last)? + s.own))
                });
                place.is_some_and(|(s, i)| s.written <= i)
            });
            let writer = ahead.map_or(slot, Slot);
            let (border, stamp) = (pages.len() * PAGE, self.clock);
            self.checkpoints[number] =
                Some(Checkpoint { page: last, writer, border, written: false, stamp });
        }
        for count in (1..=pages.len()).rev() {
            let Some(number) = self.checkpoint_of(pages[count - 1]) else { continue };
            let Some(found) = self.checkpoints[number].as_mut() else { continue };
            if found.written || found.writer != slot {
                self.clock += 1;
                found.stamp = self.clock;
                return (count, Some(number));
            }
        }
        (0, None)
    }

    fn checkpoint_of(&self, page: u32) -> Option<usize> {
        self.checkpoints.iter().position(|c| c.as_ref().is_some_and(|c| c.page == page))
    }

    /// A checkpoint that nobody waits for, and not `needed`: an unused one, else the one that was used least recently.
    fn free_checkpoint(&self, needed: Option<usize>) -> Option<usize> {
        let unused = self.checkpoints.iter().position(Option::is_none);
        let idle = || {
            let candidates =
                self.checkpoints.iter().enumerate().filter_map(|(i, c)| Some((i, c.as_ref()?)));
            let candidates = candidates.filter(|(i, _)| Some(*i) != needed);
            candidates
                .filter(|(i, c)| c.written && !self.awaited(*i))
                .min_by_key(|(_, c)| c.stamp)
                .map(|(i, _)| i)
        };
        unused.or_else(idle)
    }

    /// Whether a sequence that has not begun counts on a checkpoint.
    fn awaited(&self, number: usize) -> bool {
        self.slots.iter().flatten().any(|s| s.resumes == Some(number))
    }

    /// The checkpoint that a sequence begins with; `None` once it has begun.
    pub fn resumes(&self, slot: Slot) -> Option<usize> {
        self.sequence(slot).resumes
    }

    /// The checkpoint that is kept for the states of forks of an open sequence, if it has any.
    pub fn spare_state(&self, slot: Slot) -> Option<usize> {
        self.checkpoints
            .iter()
            .position(|c| c.as_ref().is_some_and(|c| c.writer == slot && c.border == NEVER))
    }

    /// The checkpoints that a sequence writes on its way from `start` to `end` positions: (after so many positions, number), ascending.
    pub fn saves(&self, slot: Slot, start: usize, end: usize) -> Vec<(usize, usize)> {
        let own = |(number, c): (usize, &Option<Checkpoint>)| {
            let c = c.as_ref().filter(|c| {
                c.writer == slot && !c.written && start < c.border && c.border <= end
            })?;
            Some((c.border, number))
        };
        let mut all: Vec<(usize, usize)> =
            self.checkpoints.iter().enumerate().filter_map(own).collect();
        all.sort_unstable();
        all
    }

    /// Opens a sequence with room for `positions` positions, prompt included. With `share` its leading whole pages are taken from the
    /// trie where they are there (always fewer positions than the prompt has, so that there is a row to compute), and its own whole
    /// pages are promised to later sequences. `None` if there is no slot or no room.
    pub fn open(&mut self, prompt: &[TokenId], positions: usize, share: bool) -> Option<Opened> {
        self.open_for_forks(prompt, positions, 0, share)
    }

    /// The same, and keeps pages of `spare` positions for forks, and with states room for that of one.
    pub fn open_for_forks(
        &mut self,
        prompt: &[TokenId],
        positions: usize,
        spare: usize,
        share: bool,
    ) -> Option<Opened> {
        assert!(
            !prompt.is_empty() && positions >= prompt.len(),
            "a sequence has a prompt, and room for it"
        );
        let slot = self.slots[..self.most_open].iter().position(Option::is_none)?;
        let own_need = positions.div_ceil(PAGE);
        let need = own_need + spare.div_ceil(PAGE);
        let mut pages = Vec::with_capacity(need);
        if share {
            let mut parent = ROOT;
            for tokens in prompt[..prompt.len() - 1].chunks_exact(PAGE) {
                let Some(&page) = self.trie.get(&key(parent, tokens)) else { break };
                pages.push(page);
                parent = page;
            }
        }
        let found = pages.len();
        let mut resumes = None;
        if self.stateful {
            let (count, checkpoint) = self.resume(&pages, Slot(slot));
            pages.truncate(count);
            resumes = checkpoint;
        }
        if self.stateful && spare > 0 {
            let Some(number) = self.free_checkpoint(resumes) else {
                self.drop_unwritten(Slot(slot));
                return None;
            };
            let (page, writer, border, stamp) = (ROOT, Slot(slot), NEVER, self.clock);
            self.checkpoints[number] =
                Some(Checkpoint { page, writer, border, written: false, stamp });
        }
        let own = pages.len();
        for &page in &pages {
            self.retain(page);
        }
        if need - own > self.most - self.pages.len() + self.free.len() + self.kept {
            for &page in &pages {
                self.release(page);
            }
            // It will not write the checkpoint that it was to write.
            self.drop_unwritten(Slot(slot));
            return None;
        }
        while pages.len() < need {
            let page = self
                .free
                .pop()
                .or_else(|| self.untouched())
                .or_else(|| self.evict())
                .expect("counted above");
            self.pages[page as usize] = Page { refs: 1, ..Page::default() };
            pages.push(page);
        }
        // What a state made it compute again is in the trie already, and what follows hangs there.
        if share && own == found {
            for (i, tokens) in prompt.chunks_exact(PAGE).enumerate().skip(own) {
                let parent = if i == 0 { ROOT } else { pages[i - 1] };
                let key = key(parent, tokens);
                // Only a prompt of whole pages can meet its own last page here; it computes that one again, for itself.
                if self.trie.contains_key(&key) {
                    break;
                }
                self.trie.insert(key, pages[i]);
                self.pages[pages[i] as usize].key = Some(key);
                if parent != ROOT {
                    self.pages[parent as usize].children.push(pages[i]);
                }
            }
        }
        let spare = pages.split_off(own_need);
        self.slots[slot] = Some(Sequence {
            pages,
            own,
            written: own,
            orphaned: false,
            resumes,
            spare,
            root: None,
        });
        Some(Opened { slot: Slot(slot), reused: own * PAGE })
    }

    /// Opens a sequence that goes on from the first `at` positions of another; `positions` in all. `None` if its line has no spare pages
    /// for it. The page that holds the last of those positions is not shared but copied: the pair says from which page to which.
    pub fn fork(
        &mut self,
        parent: Slot,
        at: usize,
        positions: usize,
    ) -> Option<(Slot, Option<(u32, u32)>)> {
        assert!(positions >= at && at > 0, "a fork goes on");
        let (shared, need) = (at / PAGE, positions.div_ceil(PAGE));
        let sequence = self.sequence(parent);
        let root = sequence.root.unwrap_or(parent.0);
        assert!(
            sequence.written >= shared && sequence.pages.len() * PAGE >= at,
            "what is shared has run"
        );
        let (mut pages, from) =
            (sequence.pages[..shared].to_vec(), sequence.pages.get(shared).copied());
        let spare =
            &mut self.slots[root].as_mut().expect("the first of a line is closed last").spare;
        let left = spare.len().checked_sub(need - shared)?;
        let own = spare.split_off(left);
        let copy = from.filter(|_| !at.is_multiple_of(PAGE)).zip(own.first().copied());
        pages.iter().for_each(|&page| self.retain(page));
        pages.extend(own);
        // Slots past those of prompts are made as they are needed.
        let slot = (self.most_open..self.slots.len())
            .find(|i| self.slots[*i].is_none())
            .unwrap_or(self.slots.len());
        self.slots.resize_with(self.slots.len().max(slot + 1), || None);
        self.slots[slot] = Some(Sequence {
            pages,
            own: shared,
            written: shared,
            orphaned: false,
            resumes: None,
            spare: Vec::new(),
            root: Some(root),
        });
        Some((Slot(slot), copy))
    }

    /// The pages of an open sequence: position p is in `pages[p / PAGE]`.
    pub fn pages(&self, slot: Slot) -> &[u32] {
        &self.sequence(slot).pages
    }

    /// Whether this slot holds an open sequence.
    pub fn is_open(&self, slot: Slot) -> bool {
        self.slots.get(slot.0).is_some_and(Option::is_some)
    }

    /// Leading positions that were taken over from others at `open`.
    pub fn reused(&self, slot: Slot) -> usize {
        self.sequence(slot).own * PAGE
    }

    /// Records that the first `positions` positions of this sequence hold keys and values now; call it after every forward pass that
    /// succeeded. What was promised and is not written when the sequence is closed is withdrawn.
    pub fn written(&mut self, slot: Slot, positions: usize) {
        let sequence = self.slots[slot.0].as_mut().expect("an open slot");
        let whole = positions / PAGE;
        while sequence.written < whole.min(sequence.pages.len()) {
            self.pages[sequence.pages[sequence.written] as usize].written = true;
            sequence.written += 1;
        }
        if positions > sequence.own * PAGE {
            sequence.resumes = None;
        }
        for checkpoint in self
            .checkpoints
            .iter_mut()
            .flatten()
            .filter(|c| c.writer == slot && c.border <= positions)
        {
            checkpoint.written = true;
        }
    }

    /// Withdraws the checkpoints that a sequence was to write, as its pages are at its end.
    fn drop_unwritten(&mut self, slot: Slot) {
        for (number, checkpoint) in self.checkpoints.iter_mut().enumerate() {
            if checkpoint.as_ref().is_some_and(|c| c.writer == slot && !c.written) {
                *checkpoint = None;
                for other in self.slots.iter_mut().flatten().filter(|s| s.resumes == Some(number)) {
                    other.orphaned = true;
                }
            }
        }
    }

    /// Whether a sequence counted on a page whose writer was closed before writing it: it must be closed and opened again.
    pub fn orphaned(&self, slot: Slot) -> bool {
        self.sequence(slot).orphaned
    }

    /// Ends a sequence. Its written prompt pages are kept for later prompts; the rest is free unless others refer to it.
    pub fn close(&mut self, slot: Slot) {
        let mut sequence = self.slots.get_mut(slot.0).and_then(Option::take).expect("an open slot");
        if let Some(root) = sequence.root {
            let own = sequence.pages.split_off(sequence.own);
            let root = self.slots[root].as_mut().expect("the first of a line is closed last");
            root.spare.extend(own);
        }
        let spare = std::mem::take(&mut sequence.spare);
        spare.into_iter().for_each(|page| self.release(page));
        self.drop_unwritten(slot);
        // From the end, because children leave the trie before their parents.
        for &page in sequence.pages[sequence.own..].iter().rev() {
            if self.pages[page as usize].written {
                continue;
            }
            if self.pages[page as usize].key.is_some() {
                self.withdraw(page);
            }
            if self.pages[page as usize].refs > 1 {
                for other in self.slots.iter_mut().flatten() {
                    other.orphaned |= other.pages[..other.own].contains(&page);
                }
            }
        }
        self.clock += 1;
        for &page in &sequence.pages {
            self.release(page);
        }
    }

    /// Forgets every kept beginning. Open sequences keep their pages; nobody new will share them.
    pub fn forget(&mut self) {
        self.trie.clear();
        self.leaves.clear();
        for number in 0..self.checkpoints.len() {
            if !self.awaited(number)
                && self.checkpoints[number].as_ref().is_some_and(|c| c.border != NEVER)
            {
                self.checkpoints[number] = None;
            } else if let Some(checkpoint) = &mut self.checkpoints[number] {
                checkpoint.page = ROOT;
            }
        }
        self.kept = 0;
        for (number, page) in self.pages.iter_mut().enumerate() {
            page.children.clear();
            if page.key.take().is_some() && page.refs == 0 {
                self.free.push(number as u32);
            }
        }
        self.free.sort_unstable_by(|a, b| b.cmp(a));
    }

    /// Positions whose pages are held by open sequences, and positions in kept pages nobody refers to now: (open, kept).
    pub fn used(&self) -> (usize, usize) {
        let held = self.pages.len() - self.free.len() - self.kept;
        (held * PAGE, self.kept * PAGE)
    }

    /// The first page that was never used.
    fn untouched(&mut self) -> Option<u32> {
        let number = self.pages.len();
        (number < self.most).then(|| {
            self.pages.push(Page::default());
            number as u32
        })
    }

    fn sequence(&self, slot: Slot) -> &Sequence {
        self.slots.get(slot.0).and_then(Option::as_ref).expect("an open slot")
    }

    fn retain(&mut self, number: u32) {
        let page = &mut self.pages[number as usize];
        if page.refs == 0 {
            self.kept -= 1;
            self.leaves.remove(&(page.stamp, number));
        }
        page.refs += 1;
    }

    fn release(&mut self, number: u32) {
        let page = &mut self.pages[number as usize];
        page.refs -= 1;
        if page.refs > 0 {
            return;
        }
        if page.key.is_none() {
            self.free.push(number);
            return;
        }
        page.stamp = self.clock;
        self.kept += 1;
        if page.children.is_empty() {
            self.leaves.insert((page.stamp, number));
        }
    }

    /// Takes the oldest leaf out of the trie and returns it. A kept page's children are kept too (who holds a child holds its
    /// parents), so as long as anything is kept there is a leaf.
    fn evict(&mut self) -> Option<u32> {
        let (_, number) = self.leaves.pop_first()?;
        self.kept -= 1;
        self.unlink(number);
        Some(number)
    }

    /// Takes a page and everything below it out of the trie.
    fn withdraw(&mut self, number: u32) {
        for child in std::mem::take(&mut self.pages[number as usize].children) {
            self.withdraw(child);
        }
        if self.pages[number as usize].refs == 0 {
            self.kept -= 1;
            self.leaves.remove(&(self.pages[number as usize].stamp, number));
            self.free.push(number);
        }
        self.unlink(number);
    }

    fn unlink(&mut self, number: u32) {
        let Some(key) = self.pages[number as usize].key.take() else { return };
        self.trie.remove(&key);
        if let Some(number) = self.checkpoint_of(number) {
            match self.awaited(number) {
                // A sequence waits for this checkpoint and holds its page: the checkpoint stays, the page alone leaves the trie.
                true => self.checkpoints[number].iter_mut().for_each(|c| c.page = ROOT),
                false => self.checkpoints[number] = None,
            }
        }
        if key.0 != ROOT {
            let parent = &mut self.pages[key.0 as usize];
            parent.children.retain(|&c| c != number);
            if parent.children.is_empty() && parent.refs == 0 && parent.key.is_some() {
                self.leaves.insert((parent.stamp, key.0));
            }
        }
    }
}

fn key(parent: u32, tokens: &[TokenId]) -> Key {
    (parent, tokens.try_into().expect("a whole page"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The table's invariants.
    fn check(table: &PageTable) {
        let mut refs = vec![0; table.pages.len()];
        for sequence in table.slots.iter().flatten() {
            let mut mine = sequence.pages.clone();
            mine.sort_unstable();
            mine.dedup();
            assert_eq!(mine.len(), sequence.pages.len(), "a page twice in one sequence");
            for &page in sequence.pages.iter().chain(&sequence.spare) {
                refs[page as usize] += 1;
            }
        }
        let mut free = table.free.clone();
        free.sort_unstable();
        free.dedup();
        assert_eq!(free.len(), table.free.len(), "a page twice in the free list");
        let mut kept = 0;
        for (number, page) in table.pages.iter().enumerate() {
            let number = number as u32;
            assert_eq!(page.refs, refs[number as usize], "references of page {number}");
            let is_free = free.binary_search(&number).is_ok();
            let is_kept = page.refs == 0 && page.key.is_some();
            kept += is_kept as usize;
            assert_eq!(page.refs > 0, !is_free && !is_kept, "page {number} is held, kept or free");
            assert!(!(is_free && is_kept), "page {number} is free and kept");
            assert!(!is_kept || page.written, "page {number} is kept and was never written");
            assert_eq!(
                table.leaves.contains(&(page.stamp, number)),
                is_kept && page.children.is_empty(),
                "leaf {number}"
            );
            if let Some(key) = page.key {
                assert_eq!(table.trie.get(&key), Some(&number));
                if key.0 != ROOT {
                    assert!(
                        table.pages[key.0 as usize].key.is_some(),
                        "page {number} has an unregistered parent"
                    );
                    assert!(table.pages[key.0 as usize].children.contains(&number));
                }
            }
            for &child in &page.children {
                assert_eq!(table.pages[child as usize].key.unwrap().0, number);
            }
        }
        assert_eq!(kept, table.kept);
        assert_eq!(table.trie.len(), table.pages.iter().filter(|p| p.key.is_some()).count());
        assert_eq!(table.used(), (refs.iter().filter(|r| **r > 0).count() * PAGE, kept * PAGE));
    }

    fn prompt(seed: u32, len: usize) -> Vec<TokenId> {
        (0..len as u32).map(|i| if i < 20 { i } else { i + seed * 1000 }).collect()
    }

    #[test]
    fn a_later_prompt_takes_over_whole_pages_only_and_never_itself_whole() {
        let mut table = PageTable::new(16, 4);
        let a = table.open(&prompt(1, 33), 40, true).unwrap();
        assert_eq!(a.reused, 0);
        let b = table.open(&prompt(1, 33), 40, true).unwrap();
        assert_eq!(b.reused, 32);
        let c = table.open(&prompt(2, 33), 40, true).unwrap();
        assert_eq!(c.reused, 16);
        let d = table.open(&prompt(1, 32), 40, true).unwrap();
        assert_eq!(d.reused, 16, "a prompt of whole pages keeps a row to compute");
        assert!(table.open(&prompt(1, 3), 3, true).is_none(), "no fifth slot");
        check(&table);
        assert_eq!(table.pages(a.slot)[..2], table.pages(b.slot)[..2]);
        assert_ne!(table.pages(a.slot)[1], table.pages(c.slot)[1]);
    }

    #[test]
    fn written_pages_are_kept_and_evicted_from_the_leaves_when_room_is_needed() {
        let mut table = PageTable::new(4, 2);
        let a = table.open(&prompt(1, 33), 48, true).unwrap();
        table.written(a.slot, 48);
        table.close(a.slot);
        check(&table);
        assert_eq!(table.used(), (0, 32));
        let b = table.open(&prompt(2, 20), 64, true).unwrap();
        assert_eq!(b.reused, 16);
        check(&table);
        assert_eq!(table.used(), (64, 0), "the leaf made room, its parent is in use");
        assert!(table.open(&prompt(3, 20), 48, true).is_none());
        check(&table);
    }

    #[test]
    fn an_unfinished_writer_takes_its_promises_back() {
        let mut table = PageTable::new(16, 3);
        let a = table.open(&prompt(1, 50), 60, true).unwrap();
        table.written(a.slot, 17);
        let b = table.open(&prompt(1, 60), 64, true).unwrap();
        assert_eq!(b.reused, 48);
        table.close(a.slot);
        check(&table);
        assert!(table.orphaned(b.slot));
        table.close(b.slot);
        check(&table);
        let c = table.open(&prompt(1, 50), 60, true).unwrap();
        table.forget();
        assert_eq!(c.reused, 16, "the page that was written is kept, the promised ones are gone");
        assert!(!table.orphaned(c.slot));
    }

    #[test]
    fn without_sharing_nothing_is_taken_or_offered() {
        let mut table = PageTable::new(16, 3);
        let a = table.open(&prompt(1, 50), 60, false).unwrap();
        table.written(a.slot, 60);
        let b = table.open(&prompt(1, 50), 60, true).unwrap();
        let c = table.open(&prompt(1, 50), 60, false).unwrap();
        assert_eq!((a.reused, b.reused, c.reused), (0, 0, 0));
        table.close(a.slot);
        assert_eq!(table.used().1, 0);
        check(&table);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Open { family: u32, len: usize, extra: usize, share: bool },
        Write { which: usize, by: usize },
        Close { which: usize },
        Forget,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u32..4, 1usize..70, 0usize..40, prop::bool::weighted(0.8))
                .prop_map(|(family, len, extra, share)| Step::Open { family, len, extra, share }),
            3 => (0usize..8, 1usize..50).prop_map(|(which, by)| Step::Write { which, by }),
            3 => (0usize..8).prop_map(|which| Step::Close { which }),
            1 => Just(Step::Forget),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn every_page_is_accounted_for_whatever_happens(pages in 4usize..24, steps in prop::collection::vec(step(), 1..60)) {
            let mut table = PageTable::new(pages, 5);
            // (slot, positions, positions written, what it may read: page contents are (writer, index))
            let mut open: Vec<(Slot, Vec<TokenId>, usize, usize)> = Vec::new();
            let mut content: HashMap<u32, Vec<TokenId>> = HashMap::new();
            for step in steps {
                match step {
                    Step::Open { family, len, extra, share } => {
                        let tokens = prompt(family, len);
                        let before: Vec<u32> = open.iter().flat_map(|o| table.pages(o.0).to_vec()).collect();
                        if let Some(opened) = table.open(&tokens, len + extra, share) {
                            prop_assert!(opened.reused < len && opened.reused % PAGE == 0);
                            let mine = table.pages(opened.slot);
                            prop_assert_eq!(mine.len(), (len + extra).div_ceil(PAGE));
                            for (i, page) in mine.iter().enumerate() {
                                if i * PAGE < opened.reused {
                                    prop_assert_eq!(&content[page], &tokens[..(i + 1) * PAGE], "shared page holds this beginning");
                                } else {
                                    prop_assert!(!before.contains(page), "page {} is in use", page);
                                    content.insert(*page, tokens[..tokens.len().min((i + 1) * PAGE)].to_vec());
                                }
                            }
                            open.push((opened.slot, tokens, len + extra, opened.reused));
                        } else {
                            let (held, _) = table.used();
                            prop_assert!(open.len() == 5 || (len + extra).div_ceil(PAGE) + held / PAGE > pages, "refused with room left");
                        }
                    }
                    Step::Write { which, by } if !open.is_empty() => {
                        // Prefills run in the order of opening: a sequence goes on only when those before it have their prompts.
                        let which = which % open.len();
                        if (0..which).all(|i| open[i].3 >= open[i].1.len()) {
                            open[which].3 = (open[which].3 + by).min(open[which].2);
                            table.written(open[which].0, open[which].3);
                        }
                    }
                    Step::Close { which } if !open.is_empty() => {
                        let closed = open.remove(which % open.len());
                        table.close(closed.0);
                        // As the engine does: who counted on it is closed as well.
                        while let Some(i) = open.iter().rposition(|o| table.orphaned(o.0)) {
                            let orphan = open.remove(i);
                            table.close(orphan.0);
                            check(&table);
                        }
                    }
                    Step::Forget => table.forget(),
                    _ => {}
                }
                check(&table);
            }
            for o in open.drain(..).rev() {
                table.close(o.0);
                check(&table);
            }
            table.forget();
            check(&table);
            prop_assert_eq!(table.used(), (0, 0));
            prop_assert_eq!(table.most - table.pages.len() + table.free.len(), pages);
        }
    }

    #[test]
    fn a_state_is_taken_over_where_it_was_kept_and_kept_where_prompts_part() {
        let mut table = PageTable::with_checkpoints(32, 4, 2);
        let a = table.open(&prompt(1, 50), 60, true).unwrap();
        // They part after 20 tokens: the first, which has not come so far, keeps its state after the first page for the second.
        let b = table.open(&prompt(2, 50), 60, true).unwrap();
        assert_eq!((a.reused, b.reused), (0, 16));
        assert_eq!(
            (table.saves(a.slot, 0, 15), table.saves(a.slot, 0, 16)),
            (vec![], vec![(16, 0)])
        );
        assert_eq!(table.resumes(b.slot), Some(0));
        table.written(a.slot, 50);
        table.written(b.slot, 17);
        assert_eq!((table.resumes(b.slot), table.saves(a.slot, 0, 50)), (None, vec![]));
        // The same prompt as the first: that has come past the third page, so it is computed again from where there is a state, and kept.
        let c = table.open(&prompt(1, 50), 60, true).unwrap();
        assert_eq!((c.reused, table.saves(c.slot, 16, 60)), (16, vec![(48, 1)]));
        let d = table.open(&prompt(1, 50), 60, true).unwrap();
        assert_eq!(d.reused, 48, "promised by the one before");
        table.close(c.slot);
        assert!(table.orphaned(d.slot), "it was never written");
        table.close(d.slot);
        table.close(a.slot);
        table.close(b.slot);
        table.forget();
        check(&table);
        assert!(table.checkpoints.iter().all(Option::is_none));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn a_sequence_begins_with_the_state_of_its_own_beginning(
            pages in 8usize..24, kept in 0usize..4, steps in prop::collection::vec(step(), 1..60)
        ) {
            let mut table = PageTable::with_checkpoints(pages, 5, kept);
            // (slot, prompt, positions in all, positions computed)
            let mut open: Vec<(Slot, Vec<TokenId>, usize, usize)> = Vec::new();
            let mut content: HashMap<usize, Vec<TokenId>> = HashMap::new();
            for step in steps {
                match step {
                    Step::Open { family, len, extra, share } => {
                        let tokens = prompt(family, len);
                        if let Some(opened) = table.open(&tokens, len + extra, share) {
                            prop_assert!(opened.reused < len && opened.reused % PAGE == 0);
                            prop_assert_eq!(table.resumes(opened.slot).is_some(), opened.reused > 0);
                            open.push((opened.slot, tokens, len + extra, opened.reused));
                        }
                    }
                    Step::Write { which, by } if !open.is_empty() => {
                        let which = which % open.len();
                        if (0..which).all(|i| open[i].3 >= open[i].1.len()) {
                            let (slot, tokens, most, done) = &mut open[which];
                            if let Some(number) = table.resumes(*slot) {
                                prop_assert_eq!(content.get(&number), Some(&tokens[..*done].to_vec()), "the state it begins with");
                            }
                            let end = (*done + by).min(*most);
                            for (border, number) in table.saves(*slot, *done, end) {
                                prop_assert!(border <= tokens.len());
                                content.insert(number, tokens[..border].to_vec());
                            }
                            *done = end;
                            table.written(*slot, end);
                        }
                    }
                    Step::Close { which } if !open.is_empty() => {
                        let closed = open.remove(which % open.len());
                        table.close(closed.0);
                        while let Some(i) = open.iter().rposition(|o| table.orphaned(o.0)) {
                            let orphan = open.remove(i);
                            table.close(orphan.0);
                        }
                    }
                    Step::Forget => table.forget(),
                    _ => {}
                }
                check(&table);
            }
            for o in open.drain(..).rev() {
                table.close(o.0);
            }
            table.forget();
            check(&table);
            prop_assert!(table.checkpoints.iter().all(Option::is_none), "a checkpoint is left");
            prop_assert_eq!(table.used(), (0, 0));
        }
    }
}

//! Our own decoder: the forward pass (`forward.rs`) over a packed model (`packed.rs`), with paged keys and values.
//! A row's result depends on nothing but its own sequence, bit for bit: not on the batch, chunks, threads, padding, shared pages or the
//! memory policy.
//! Over 500 lines: opening, stepping and closing sequences share the pages, the states and the workspace.

pub use super::packed::{FormatPlan, NativeError, Packed, PackedModel, WeightLayout};

use super::forward::{Pass, Rotations};
use super::page_table::PageTable;
use super::workspace::{Step, Workspace};
use super::{Batch, Capacity, DecodeError, Decoder, LogitsOutput, Opened, Segment, Slot};
use crate::kernels::{
    Context, KernelSet, KvArena, KvElement, PAGE, Row, StateArena, StateSegment, Team,
    attention_units,
};
use crate::model::{LayerSpec, ModelSpec, RopeSet};
use crate::units::TokenId;
use std::sync::Arc;

/// When working memory is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// The workspace anew each step; each sequence's keys and values copied into a larger allocation each step and layer.
    PerStep,
    /// Once.
    Preallocated,
}

/// Sizes and choices of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct NativeOptions {
    /// Workers, the calling thread included.
    pub threads: usize,
    /// Which kernels.
    pub kernels: KernelSet,
    /// Sequences open at the same time.
    pub slots: usize,
    /// Most rows of one batch.
    pub rows: usize,
    /// Most bytes for keys and values; reserved, touched only as used.
    pub kv_bytes: u64,
    /// When memory is allocated.
    pub memory: Memory,
}

/// Memory that a decoder needs, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// The packed weights.
    pub weights: u64,
    /// Keys and values when all positions are used.
    pub kv: u64,
    /// Workspace and scratch.
    pub scratch: u64,
}

impl MemoryEstimate {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.kv + self.scratch
    }
}

/// The states of sequences: two blocks a slot, one that a step reads and one that it writes, and blocks of checkpoints at page borders.
/// A step that failed has changed nothing that counts.
struct States {
    arena: StateArena,
    /// Where each layer begins in a block.
    offsets: Vec<usize>,
    /// Layers have states at all.
    any: bool,
    /// Of each slot: how many positions its state has seen, and which of its two blocks holds it.
    slots: Vec<(usize, usize)>,
    /// Sequences that go on from others, at most one from each.
    forks: Vec<ForkState>,
}

/// The state of a sequence that goes on from another, which does not run meanwhile: its two blocks are the one that the other would write
/// next, and a checkpoint's.
struct ForkState {
    slot: Slot,
    root: Slot,
    seen: usize,
    /// Which of its blocks holds its state; `None` while that is still the other's.
    current: Option<usize>,
    blocks: [usize; 2],
}

impl States {
    /// The block of a checkpoint.
    fn checkpoint(&self, number: usize) -> usize {
        2 * self.slots.len() + number
    }

    /// The block that holds the state of a sequence with a prompt of its own, once it has begun.
    fn held(&self, slot: Slot) -> usize {
        2 * slot.0 + self.slots[slot.0].1
    }

    /// Begins a fork of `parent` after `at` positions: only of one with a prompt of its own, where its state is now, and only one.
    fn fork(&mut self, table: &PageTable, parent: Slot, at: usize, slot: Slot) {
        let other = 2 * parent.0 + 1 - self.slots[parent.0].1;
        let spare = table.spare_state(parent).map(|number| self.checkpoint(number));
        let blocks = [other, spare.expect("asked before")];
        self.forks.push(ForkState { slot, root: parent, seen: at, current: None, blocks });
    }

    /// Whether a fork of `parent` after `at` positions could begin.
    fn can_fork(&self, table: &PageTable, parent: Slot, at: usize) -> bool {
        let here = self.slots.get(parent.0).is_some_and(|(seen, _)| *seen == at);
        here && self.forks.iter().all(|fork| fork.root != parent)
            && table.spare_state(parent).is_some()
    }

    /// A segment of this sequence has run up to `end`.
    fn ran(&mut self, slot: Slot, end: usize) {
        if let Some(fork) = self.forks.iter_mut().find(|fork| fork.slot == slot) {
            (fork.seen, fork.current) = (end, Some(fork.current.map_or(0, |current| 1 - current)));
        } else if let Some((seen, current)) = self.slots.get_mut(slot.0) {
            (*seen, *current) = (end, 1 - *current);
        }
    }

    /// What a segment reads and writes; an error if it does not go on where the state is.
    fn segment(
        &self,
        table: &PageTable,
        segment: &Segment,
        row: usize,
    ) -> Result<StateSegment, &'static str> {
        let Segment { slot, start, ref tokens, padding_rows, .. } = *segment;
        let fork = self.forks.iter().find(|fork| fork.slot == slot);
        let Some((seen, current)) =
            fork.map(|f| (f.seen, 0)).or_else(|| self.slots.get(slot.0).copied())
        else {
            return Err("a segment of a sequence that has no state");
        };
        // Nothing but padding begins anywhere: it reads the state that there is and leaves it.
        if seen != start && !tokens.is_empty() {
            return Err("a segment that does not begin where the state of its sequence is");
        }
        if let Some(fork) = fork {
            let from =
                fork.current.map_or_else(|| self.held(fork.root), |current| fork.blocks[current]);
            let to = fork.blocks[fork.current.map_or(0, |current| 1 - current)];
            return Ok(StateSegment {
                row,
                rows: tokens.len(),
                padding: padding_rows,
                from: Some(from),
                to,
                saves: Vec::new(),
            });
        }
        let from = match table.resumes(slot) {
            _ if seen == 0 => None,
            Some(checkpoint) => Some(self.checkpoint(checkpoint)),
            None => Some(2 * slot.0 + current),
        };
        let saves = table.saves(slot, start, start + tokens.len());
        let saves = saves
            .into_iter()
            .map(|(border, number)| (border - start, self.checkpoint(number)))
            .collect();
        Ok(StateSegment {
            row,
            rows: tokens.len(),
            padding: padding_rows,
            from,
            to: 2 * slot.0 + 1 - current,
            saves,
        })
    }
}

/// How a budget for keys, values and states is cut: (pages, checkpoints).
fn cut_budget(model: &PackedModel, options: &NativeOptions, element: KvElement) -> (usize, usize) {
    let block = model.state_bytes_per_sequence() / 2;
    let left = options
        .kv_bytes
        .saturating_sub(model.state_bytes_per_sequence().saturating_mul(options.slots as u64));
    // A quarter for checkpoints, at most four a slot: pages without one can still be shared from the checkpoint before them.
    let checkpoints = (left / 4).checked_div(block).unwrap_or(0).min(4 * options.slots as u64);
    let pages = (left - checkpoints * block) / (model.kv_shape(element).page_bytes().max(1) as u64);
    (pages.min(u32::MAX as u64 - 1) as usize, checkpoints as usize)
}

/// See the module's head.
pub struct NativeDecoder {
    model: Arc<PackedModel>,
    options: NativeOptions,
    team: Team,
    table: PageTable,
    kv: KvArena,
    /// For sequences within a longrope's first set, and for longer ones.
    rotations: [Vec<Rotations>; 2],
    /// Of each slot: its sequence is longer than that.
    long: Vec<bool>,
    states: States,
    workspace: Option<Workspace>,
    step: Step,
}

impl NativeDecoder {
    /// A decoder of a packed model, keys and values kept as usual. Fails if memory or threads are refused.
    pub fn new(
        model: Arc<PackedModel>,
        options: NativeOptions,
    ) -> Result<NativeDecoder, NativeError> {
        let usual = model.usual_kv();
        NativeDecoder::with_kv(model, options, usual)
    }

    /// The same with keys and values in `element`, which must hold all of the model's heads ([`KvElement::holds`]).
    pub fn with_kv(
        model: Arc<PackedModel>,
        options: NativeOptions,
        element: KvElement,
    ) -> Result<NativeDecoder, NativeError> {
        let estimate = NativeDecoder::estimate(&model, &options);
        let memory = |what, bytes| NativeError::Memory { what, bytes };
        let shape = model.kv_shape(element);
        assert!(
            shape.layers().iter().all(|l| element.holds(l.head_dim)),
            "heads that {} holds",
            element.name()
        );
        let (pages, checkpoints) = cut_budget(&model, &options, element);
        if pages == 0 {
            let bytes =
                shape.page_bytes() as u64 + model.state_bytes_per_sequence() * options.slots as u64;
            return Err(memory(
                "keys and values of 16 positions (and the states of all sequences)",
                bytes,
            ));
        }
        let (offsets, floats) = model.state_layout();
        let any = model.spec().has_state();
        let blocks = if any { 2 * options.slots + checkpoints } else { 0 };
        let states = States {
            arena: StateArena::new(floats, blocks).map_err(|_| memory("states", estimate.kv))?,
            offsets,
            any,
            slots: vec![(0, 0); options.slots],
            forks: Vec::new(),
        };
        let head_dim = shape.widest_head();
        let kv = KvArena::new(shape, pages).map_err(|_| memory("keys and values", estimate.kv))?;
        let spec = model.spec();
        let team = Team::new(options.kernels, options.threads, head_dim, model.emulated())
            .map_err(NativeError::Threads)?;
        let workspace = match options.memory {
            Memory::Preallocated => Some(Workspace::new(&model, options.rows)),
            Memory::PerStep => None,
        };
        let rotations = [false, true].map(|long| Rotations::of(spec, long));
        let long = vec![false; options.slots];
        let table = match states.any {
            true => PageTable::with_checkpoints(pages, options.slots, checkpoints),
            false => PageTable::new(pages, options.slots),
        };
        Ok(NativeDecoder {
            model,
            options,
            team,
            table,
            kv,
            rotations,
            long,
            states,
            workspace,
            step: Step::default(),
        })
    }

    /// The memory such a decoder needs.
    pub fn estimate(model: &PackedModel, options: &NativeOptions) -> MemoryEstimate {
        let scratch = Workspace::bytes(model, options.rows)
            + Team::scratch_bytes(
                options.threads,
                model.kv_shape(model.usual_kv()).widest_head(),
                options.rows,
            );
        MemoryEstimate { weights: model.bytes(), kv: options.kv_bytes, scratch: scratch as u64 }
    }

    /// The packed model.
    pub fn model(&self) -> &Arc<PackedModel> {
        &self.model
    }

    /// One pass over sequences that turn by the same tables.
    fn pass(
        &mut self,
        batch: &Batch,
        outputs: &mut Vec<LogitsOutput>,
        long: bool,
    ) -> Result<(), DecodeError> {
        if let Some(reason) = self.team.broken() {
            return Err(DecodeError::Broken(reason));
        }
        self.plan(batch)?;
        if self.step.rows.is_empty() {
            outputs.resize(batch.segments.len(), LogitsOutput::Nothing);
            return Ok(());
        }
        let positions = self.step.rows.iter().map(|r| r.position as usize + 1).max().unwrap_or(0);
        let rotations = &mut self.rotations[usize::from(long)];
        rotations.iter_mut().for_each(|rotations| rotations.up_to(positions));
        let mut workspace = match self.workspace.take() {
            Some(workspace) => workspace,
            None => Workspace::new(&self.model, self.step.rows.len()),
        };
        let mut pass = Pass {
            model: &self.model,
            team: &mut self.team,
            kv: &mut self.kv,
            step: &self.step,
            rotations,
            states: &mut self.states.arena,
            state_offsets: &self.states.offsets,
            contexts: batch
                .segments
                .iter()
                .map(|s| Context::Pages(self.table.pages(s.slot)))
                .collect(),
            pages: batch.segments.iter().map(|s| self.table.pages(s.slot)).collect(),
            copies: self.options.memory == Memory::PerStep,
        };
        pass.layers(batch, &mut workspace);
        let scored = pass.score(batch, &mut workspace, outputs);
        if self.options.memory == Memory::Preallocated {
            self.workspace = Some(workspace);
        }
        match self.team.broken() {
            Some(reason) => Err(DecodeError::Broken(reason)),
            None => scored,
        }
    }

    /// Works out rows and attention units; checks what the caller promised.
    fn plan(&mut self, batch: &Batch) -> Result<(), DecodeError> {
        let spec = self.model.spec();
        let step = &mut self.step;
        *step = Step::default();
        for attention in spec.layers.iter().filter_map(LayerSpec::attention) {
            let key = (attention.heads, attention.kv_heads);
            if step.units.iter().all(|(k, _)| *k != key) {
                step.units.push((key, Vec::new()));
            }
        }
        // One unit a head instead of one a kv head when there would be too few units for the workers.
        let few = |kv_heads| {
            batch.segments.len() * kv_heads < 3 * self.options.threads && batch.tokens.len() < 64
        };
        for (s, segment) in batch.segments.iter().enumerate() {
            let broken = |what: &str| {
                DecodeError::Broken(format!(
                    "{what} (slot {:?}, start {})",
                    segment.slot, segment.start
                ))
            };
            if !self.table.is_open(segment.slot) {
                return Err(broken("a segment of a sequence that is not open"));
            }
            let pages = self.table.pages(segment.slot);
            let tokens = batch
                .tokens
                .get(segment.tokens.clone())
                .ok_or_else(|| broken("a segment past the batch's tokens"))?;
            let end = segment.start + tokens.len();
            if end > pages.len() * PAGE {
                return Err(broken("a segment past its sequence's positions"));
            }
            if tokens.iter().any(|t| *t as usize >= spec.vocab) {
                return Err(broken("a token that the vocabulary does not have"));
            }
            let first = step.rows.len();
            if self.states.any {
                step.states.push(self.states.segment(&self.table, segment, first).map_err(broken)?);
            }
            step.tokens.extend_from_slice(tokens);
            step.rows.extend(
                (segment.start..end).map(|p| Row { position: p as u32, page: pages[p / PAGE] }),
            );
            let mut units = |first, rows, context| {
                for ((heads, kv_heads), units) in &mut step.units {
                    attention_units(
                        s,
                        first,
                        rows,
                        context,
                        *heads,
                        *kv_heads,
                        few(*kv_heads),
                        units,
                    );
                }
            };
            units(first, tokens.len(), segment.padded_context);
            if segment.padding_rows > 0 {
                step.tokens.resize(step.tokens.len() + segment.padding_rows, 0);
                let row = Row { position: end.max(1) as u32 - 1, page: Row::NOWHERE };
                step.rows.resize(step.rows.len() + segment.padding_rows, row);
                units(first + tokens.len(), segment.padding_rows, segment.padded_context);
            }
            let scored = match segment.logits {
                super::LogitsRequest::Nothing => 0,
                super::LogitsRequest::AllLogits => tokens.len(),
                _ if tokens.is_empty() => {
                    return Err(broken("a segment without tokens wants scores"));
                }
                _ => 1,
            };
            let last = first + tokens.len();
            step.scored.extend((last - scored..last).map(|r| r as u32));
            step.scored_for.extend(std::iter::repeat_n(s, scored));
        }
        if step.rows.len() > self.options.rows {
            return Err(DecodeError::Broken(format!(
                "a batch of {} rows, {} are the most",
                step.rows.len(),
                self.options.rows
            )));
        }
        Ok(())
    }
}

impl Decoder for NativeDecoder {
    fn spec(&self) -> &ModelSpec {
        self.model.spec()
    }

    fn capacity(&self) -> Capacity {
        Capacity {
            slots: self.options.slots,
            positions: self.kv.pages() * PAGE,
            rows: self.options.rows,
        }
    }

    fn open(&mut self, prompt: &[TokenId], positions: usize, share: bool) -> Option<Opened> {
        self.open_for_forks(prompt, positions, 0, share)
    }

    fn open_for_forks(
        &mut self,
        prompt: &[TokenId],
        positions: usize,
        spare: usize,
        share: bool,
    ) -> Option<Opened> {
        // Keys of a long sequence are turned otherwise than those of a short one with the same beginning.
        let long = self.spec().rope_set(positions) == Some(RopeSet::Long);
        let opened = self.table.open_for_forks(prompt, positions, spare, share && !long)?;
        self.long[opened.slot.0] = long;
        self.states.slots[opened.slot.0] = (opened.reused, 0);
        Some(opened)
    }

    fn fork(&mut self, parent: Slot, at: usize, positions: usize) -> Option<Slot> {
        // A state cannot be had for earlier positions.
        if self.states.any && !self.states.can_fork(&self.table, parent, at) {
            return None;
        }
        let (slot, copy) = self.table.fork(parent, at, positions)?;
        if let Some((from, to)) = copy {
            self.kv.copy_page(from, to);
        }
        let long = self.long[parent.0];
        self.long.resize(self.long.len().max(slot.0 + 1), false);
        self.long[slot.0] = long;
        if self.states.any {
            self.states.fork(&self.table, parent, at, slot);
        }
        Some(slot)
    }

    fn forward(
        &mut self,
        batch: &Batch,
        outputs: &mut Vec<LogitsOutput>,
    ) -> Result<(), DecodeError> {
        let vocab = self.model.spec().vocab;
        let scores = outputs.drain(..).filter_map(|output| match output {
            LogitsOutput::Logits(scores) | LogitsOutput::LogitsAndArgmax(scores, _)
                if scores.len() == vocab =>
            {
                Some(scores)
            }
            _ => None,
        });
        match &mut self.workspace {
            Some(workspace) => workspace.spare = scores.collect(),
            None => drop(scores),
        }
        let long: Vec<bool> = batch
            .segments
            .iter()
            .map(|s| self.long.get(s.slot.0).copied().unwrap_or(false))
            .collect();
        let passed = match long.first() {
            // Long and short sequences of a longrope model turn by different tables: each kind has a pass of its own.
            Some(first) if long.iter().any(|other| other != first) => {
                outputs.resize(batch.segments.len(), LogitsOutput::Nothing);
                [false, true].into_iter().try_for_each(|kind| {
                    let mut part = Batch::default();
                    let chosen: Vec<usize> = (0..long.len()).filter(|i| long[*i] == kind).collect();
                    for segment in chosen.iter().map(|i| &batch.segments[*i]) {
                        let tokens = batch.tokens.get(segment.tokens.clone()).unwrap_or_default();
                        let from = part.tokens.len();
                        part.tokens.extend_from_slice(tokens);
                        part.segments
                            .push(Segment { tokens: from..part.tokens.len(), ..segment.clone() });
                    }
                    let mut some = Vec::new();
                    self.pass(&part, &mut some, kind)?;
                    chosen.iter().zip(some).for_each(|(i, output)| outputs[*i] = output);
                    Ok(())
                })
            }
            first => self.pass(batch, outputs, first.copied().unwrap_or(false)),
        };
        if passed.is_err() {
            outputs.clear();
            return passed;
        }
        for segment in &batch.segments {
            if !segment.tokens.is_empty() {
                self.states.ran(segment.slot, segment.start + segment.tokens.len());
            }
            self.table.written(segment.slot, segment.start + segment.tokens.len());
        }
        Ok(())
    }

    fn close(&mut self, slot: Slot) {
        self.states.forks.retain(|fork| fork.slot != slot);
        self.table.close(slot);
    }

    fn clear_prefix_cache(&mut self) {
        self.table.forget();
    }

    fn used_positions(&self) -> (usize, usize) {
        self.table.used()
    }

    fn kernels(&self) -> Vec<String> {
        self.options.kernels.kernel_names(&self.model.formats())
    }
}

#[cfg(test)]
mod tests {
    use super::super::LogitsRequest;
    use super::*;
    use crate::kernels::Format;
    use crate::model::Model;
    use crate::tiny::{Stored, Tiny, Values};

    fn load(tiny: &Tiny) -> Model {
        let folder = tempfile::tempdir().unwrap();
        let path = tiny.write(folder.path());
        crate::model::open(path.to_str().unwrap(), &crate::model::OpenOptions::default()).unwrap()
    }

    fn odd(stored: Stored) -> Tiny {
        let quantized = matches!(stored, Stored::Q8_0 | Stored::Q4_1);
        let (hidden, ffn, heads, kv_heads, head_dim) =
            if quantized { (96, 608, 6, 2, 16) } else { (54, 601, 6, 2, 10) };
        Tiny {
            hidden,
            ffn,
            heads,
            kv_heads,
            head_dim,
            vocab: 333,
            values: Values::Fine,
            ..Tiny::seeded(3)
        }
        .stored(stored)
    }

    fn decoder(
        model: &Arc<PackedModel>,
        kernels: KernelSet,
        threads: usize,
        memory: Memory,
    ) -> NativeDecoder {
        let options =
            NativeOptions { threads, kernels, slots: 4, rows: 64, kv_bytes: 8 << 20, memory };
        NativeDecoder::new(model.clone(), options).unwrap()
    }

    fn tokens(n: usize) -> Vec<TokenId> {
        (0..n as u32).map(|i| (i * 37 + i * i) % 320).collect()
    }

    /// All logits of a sequence, fed in chunks.
    fn logits(decoder: &mut NativeDecoder, tokens: &[TokenId], chunk: usize) -> Vec<u32> {
        let opened = decoder.open(tokens, tokens.len(), false).unwrap();
        let mut bits = Vec::new();
        for (i, part) in tokens.chunks(chunk).enumerate() {
            let segment = Segment {
                slot: opened.slot,
                start: i * chunk,
                tokens: 0..part.len(),
                logits: LogitsRequest::AllLogits,
                padding_rows: 0,
                padded_context: 0,
            };
            let mut outputs = Vec::new();
            decoder
                .forward(&Batch { tokens: part.to_vec(), segments: vec![segment] }, &mut outputs)
                .unwrap();
            let LogitsOutput::Logits(scores) = &outputs[0] else { panic!("logits were asked for") };
            bits.extend(scores.iter().map(|x| x.to_bits()));
        }
        decoder.close(opened.slot);
        bits
    }

    #[test]
    fn all_kernel_sets_chunks_threads_and_memory_policies_give_the_same_bits() {
        for stored in Stored::ALL {
            let model =
                Arc::new(PackedModel::pack(&load(&odd(stored)), FormatPlan::AsStored, 2).unwrap());
            let tokens = tokens(75);
            let want = logits(
                &mut decoder(&model, KernelSet::portable(), 1, Memory::Preallocated),
                &tokens,
                64,
            );
            for set in KernelSet::available() {
                for (threads, chunk, memory) in [
                    (2, 1, Memory::Preallocated),
                    (3, 13, Memory::PerStep),
                    (1, 50, Memory::Preallocated),
                ] {
                    let got = logits(&mut decoder(&model, set, threads, memory), &tokens, chunk);
                    let differing = want.iter().zip(&got).filter(|(a, b)| a != b).count();
                    assert_eq!(
                        differing, 0,
                        "{stored:?} {set:?} {threads} threads, chunks of {chunk}, {memory:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn activations_that_overflow_end_as_not_finite_and_leave_the_next_request_alone() {
        // A hidden width that is no multiple of 16: rows have padding, in which nothing may stay behind.
        let tiny = odd(Stored::F32);
        let mut file = tiny.container();
        let embedding = file.tensors.iter_mut().find(|t| t.name == "token_embd.weight").unwrap();
        // The squares of token 5 overflow; its values, and the scores they give other tokens, do not.
        let row = tiny.hidden * 4;
        embedding.data[5 * row..6 * row]
            .as_chunks_mut::<4>()
            .0
            .iter_mut()
            .for_each(|x| *x = 1e25f32.to_le_bytes());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("overflow.gguf");
        std::fs::write(&path, file.bytes()).unwrap();
        let model =
            crate::model::open(path.to_str().unwrap(), &crate::model::OpenOptions::default())
                .unwrap();
        let model = Arc::new(PackedModel::pack(&model, FormatPlan::AsStored, 1).unwrap());
        let healthy = [7, 8, 9, 10, 11];
        for set in KernelSet::available() {
            let want = logits(&mut decoder(&model, set, 1, Memory::Preallocated), &healthy, 5);
            let mut decoder = decoder(&model, set, 2, Memory::Preallocated);
            for bad in [vec![5], vec![7, 5, 9, 10, 5]] {
                let slot = decoder.open(&bad, bad.len(), false).unwrap().slot;
                let segment = Segment {
                    slot,
                    start: 0,
                    tokens: 0..bad.len(),
                    logits: LogitsRequest::AllLogits,
                    padding_rows: 0,
                    padded_context: 0,
                };
                let mut outputs = Vec::new();
                let got = decoder
                    .forward(&Batch { tokens: bad.clone(), segments: vec![segment] }, &mut outputs);
                assert!(
                    matches!(got, Err(DecodeError::NotFinite(s)) if s == slot),
                    "{set:?} {bad:?}: {got:?}"
                );
                decoder.close(slot);
                assert!(
                    logits(&mut decoder, &healthy, 5) == want,
                    "{set:?}: a request after {bad:?}"
                );
            }
        }
    }

    #[test]
    fn the_emulated_dtype_gives_the_same_bits_in_all_sets() {
        let model = Arc::new(
            PackedModel::pack(&load(&odd(Stored::F32)), FormatPlan::WidenedBf16Emulated, 2)
                .unwrap(),
        );
        let tokens = tokens(20);
        let want =
            logits(&mut decoder(&model, KernelSet::portable(), 1, Memory::PerStep), &tokens, 16);
        assert!(want.iter().all(|bits| bits & 0xffff == 0), "scores are bf16 values");
        for set in KernelSet::available() {
            assert!(
                want == logits(&mut decoder(&model, set, 2, Memory::Preallocated), &tokens, 7),
                "{set:?}"
            );
        }
    }

    #[test]
    fn notes_say_which_types_are_widened_or_converted_and_why() {
        let notes = |partner: Option<Stored>, plan| {
            let tiny = odd(Stored::Q4_1);
            let mut file = tiny.container();
            if let Some(stored) = partner {
                let up = tiny
                    .stored(stored)
                    .tensors()
                    .into_iter()
                    .find(|t| t.name == "blk.1.ffn_up.weight")
                    .unwrap();
                *file.tensors.iter_mut().find(|t| t.name == up.name).unwrap() =
                    crate::tiny::Tensor::of(&up);
            }
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("mixed.gguf");
            std::fs::write(&path, file.bytes()).unwrap();
            let model =
                crate::model::open(path.to_str().unwrap(), &crate::model::OpenOptions::default())
                    .unwrap();
            PackedModel::notes(&model, plan)
        };
        assert_eq!(notes(None, FormatPlan::AsStored), [""; 0]);
        // Gate and up of different types are computed apart, each as stored.
        assert_eq!(notes(Some(Stored::Q8_0), FormatPlan::AsStored), [""; 0]);
        assert_eq!(
            notes(Some(Stored::Q8_0), FormatPlan::All(Format::Q8_0)),
            ["weights converted at load: Q4_1 to q8_0"]
        );
    }

    #[test]
    fn logits_are_those_of_the_textbook() {
        for (stored, most) in [
            (Stored::F32, 1e-4),
            (Stored::Bf16, 1e-4),
            (Stored::F16, 1e-4),
            (Stored::Q8_0, 0.1),
            (Stored::Q4_1, 0.1),
        ] {
            let model = load(&odd(stored));
            let tokens = tokens(70);
            let want = crate::textbook::logits(&model.spec, &*model.weights, &tokens, tokens.len())
                .concat();
            let packed = Arc::new(PackedModel::pack(&model, FormatPlan::AsStored, 1).unwrap());
            let got = logits(
                &mut decoder(&packed, KernelSet::best(), 2, Memory::Preallocated),
                &tokens,
                33,
            );
            let scale = want.iter().map(|x| x.abs()).fold(0.0, f64::max);
            let worst = want
                .iter()
                .zip(&got)
                .map(|(w, g)| (w - f32::from_bits(*g) as f64).abs())
                .fold(0.0, f64::max);
            assert!(worst < most * scale, "{stored:?}: off by {worst} of {scale}");
        }
    }

    #[test]
    fn argmax_and_the_best_k_are_those_of_all_scores() {
        let model = Arc::new(
            PackedModel::pack(&load(&odd(Stored::Q4_1)), FormatPlan::AsStored, 1).unwrap(),
        );
        let tokens = tokens(40);
        for set in KernelSet::available() {
            let mut decoder = decoder(&model, set, 2, Memory::Preallocated);
            let slot = decoder.open(&tokens, tokens.len(), false).unwrap().slot;
            let mut ask = |logits| {
                let segment = Segment {
                    slot,
                    start: 0,
                    tokens: 0..tokens.len(),
                    logits,
                    padding_rows: 0,
                    padded_context: 0,
                };
                let mut outputs = Vec::new();
                decoder
                    .forward(
                        &Batch { tokens: tokens.clone(), segments: vec![segment] },
                        &mut outputs,
                    )
                    .unwrap();
                outputs.remove(0)
            };
            let LogitsOutput::Logits(scores) = ask(LogitsRequest::Logits) else {
                panic!("logits were asked for")
            };
            let mut ranked: Vec<(TokenId, f32)> =
                scores.iter().enumerate().map(|(i, s)| (i as TokenId, *s)).collect();
            ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            assert_eq!(ask(LogitsRequest::Argmax), LogitsOutput::Argmax(ranked[0].0, ranked[0].1));
            let both = LogitsOutput::LogitsAndArgmax(scores, ranked[0].0);
            assert_eq!(ask(LogitsRequest::LogitsAndArgmax), both);
            assert_eq!(ask(LogitsRequest::TopK(50)), LogitsOutput::TopK(ranked[..50].to_vec()));
            assert_eq!(ask(LogitsRequest::TopK(1000)), LogitsOutput::TopK(ranked));
        }
    }
}

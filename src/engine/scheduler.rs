//! Decides what runs in the next step: who is admitted, and which rows go into the batch. In: requests, and whether the decoder has
//! room. Out: a [`Batch`]. It has no clock and no model and does not look at tokens or scores.
//!
//! All decode rows come first, the rest of the step's rows are prefill chunks, strictly in the order of opening: shared prefixes
//! count on that (see [`crate::decoder::Opened`]).

use super::sequence::Sequence;
use super::{BatchingPolicy, EngineConfig, Event, PaddingPolicy, PrefixPolicy, Request, Ticket};
use crate::decoder::{Batch, Capacity, Decoder, LogitsRequest, Segment, Slot};
use std::collections::VecDeque;

/// See the module's head.
pub(super) struct Scheduler {
    padding: PaddingPolicy,
    batching: BatchingPolicy,
    prefix: PrefixPolicy,
    /// Most sequences at a time.
    batch: usize,
    /// Most rows of a step.
    rows: usize,
    capacity: Capacity,
    queue: VecDeque<Waiting>,
    /// In the order of opening.
    running: Vec<Sequence>,
    /// Branches of running sequences that are scored, each after the one it goes on from.
    forks: Vec<Fork>,
    /// Most rows of branches in a step: each gives all of its scores.
    fork_rows: usize,
    /// Finished sequences whose rows are computed until the batch ends (`mask` and `queue` off).
    finished: Vec<Slot>,
}

struct Waiting {
    request: Request,
    /// Its admission was told already; it came back because it counted on a sequence that failed.
    announced: bool,
}

/// A branch that goes on from a running sequence; every row of it is scored.
#[derive(Debug)]
pub(super) struct Fork {
    pub(super) slot: Slot,
    /// The running sequence.
    pub(super) root: Slot,
    /// Positions whose keys and values exist.
    pub(super) done: usize,
    /// Tokens that have not run yet.
    pub(super) left: Vec<u32>,
}

/// What a segment of the batch does, for the commit after it ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Planned {
    /// Index among the running sequences; `None` for the row of a finished one and for those of a branch.
    sequence: Option<usize>,
    /// The branch whose rows these are: its root, and itself.
    pub(super) fork: Option<(Slot, Slot)>,
    tokens: usize,
    padding: usize,
    /// These are rows of a prompt.
    pub(super) prefill: bool,
    /// The slot and the position of the token it will give, if it gives one.
    pub(super) gives: Option<(Slot, usize)>,
}

impl Planned {
    /// Rows computed, padding included.
    pub(super) fn rows(&self) -> usize {
        self.tokens + self.padding
    }
}

/// Memory for the scores of branches in one step.
const FORK_BYTES: usize = 64 << 20;

impl Scheduler {
    pub(super) fn new(config: &EngineConfig, capacity: Capacity, vocab: usize) -> Scheduler {
        let batch = config.batch.min(capacity.slots).min(capacity.rows).max(1);
        Scheduler {
            padding: config.padding,
            batching: config.batching,
            prefix: config.prefix,
            batch,
            rows: config.chunk.max(batch).min(capacity.rows),
            capacity,
            queue: VecDeque::new(),
            running: Vec::new(),
            forks: Vec::new(),
            fork_rows: (FORK_BYTES / (4 * vocab.max(1))).max(1),
            finished: Vec::new(),
        }
    }

    pub(super) fn submit(&mut self, request: Request) {
        self.queue.push_back(Waiting { request, announced: false });
    }

    pub(super) fn queue_len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn running(&self) -> &[Sequence] {
        &self.running
    }

    /// Opens waiting requests, first come first served, as far as the policy and the decoder's room allow. The new sequences are the
    /// last of [`Scheduler::running`].
    pub(super) fn admit(&mut self, decoder: &mut dyn Decoder, events: &mut Vec<Event>) {
        if self.batching == BatchingPolicy::Blocking && !self.running.is_empty() {
            return;
        }
        let before = self.running.len();
        let apart = decoder.spec().has_state();
        while self.running.len() < self.batch {
            let Some(Waiting { request, announced }) = self.queue.pop_front() else { break };
            let positions = request.positions();
            let spare = request
                .extras
                .choices
                .as_ref()
                .map_or(0, |choices| choices.spare(request.prompt.len(), apart));
            let share = self.prefix == PrefixPolicy::Share;
            let Some(opened) = decoder.open_for_forks(&request.prompt, positions, spare, share)
            else {
                if self.running.is_empty() {
                    // Nothing runs whose end would make room for it.
                    let message = match positions + spare <= self.capacity.positions {
                        true => {
                            "there is no room for the state of a choice beside those of all sequences: give more --kv-memory \
                                 or lower --batch-size"
                                .to_string()
                        }
                        false => format!(
                            "the prompt's {} tokens and {} more need {} positions; keys and values have room for {}: \
                             give more --kv-memory or lower --max-tokens",
                            request.prompt.len(),
                            request.max_tokens,
                            positions + spare,
                            self.capacity.positions
                        ),
                    };
                    events.push(Event::Failed {
                        ticket: request.ticket,
                        code: "no_memory",
                        message,
                    });
                    continue;
                }
                self.queue.push_front(Waiting { request, announced });
                break;
            };
            if !announced {
                events
                    .push(Event::Admitted { ticket: request.ticket, reused_tokens: opened.reused });
            }
            self.running.push(Sequence {
                request,
                slot: opened.slot,
                done: opened.reused,
                padding: 0,
                pending: Vec::new(),
            });
        }
        if self.padding == PaddingPolicy::PadToLongest {
            let longest =
                self.running[before..].iter().map(|s| s.request.prompt.len()).max().unwrap_or(0);
            for sequence in &mut self.running[before..] {
                sequence.padding = longest - sequence.request.prompt.len();
            }
        }
    }

    /// Fills `batch` with the next step's rows; `planned[i]` belongs to `batch.segments[i]`. `logits` says what form of scores a
    /// sequence's next token is chosen from.
    pub(super) fn plan(
        &self,
        logits: impl Fn(Slot) -> LogitsRequest,
        batch: &mut Batch,
        planned: &mut Vec<Planned>,
    ) {
        batch.tokens.clear();
        batch.segments.clear();
        planned.clear();
        let padded_context = match self.padding {
            PaddingPolicy::PadToLongest => {
                self.running.iter().map(|s| s.done + 1).max().unwrap_or(0)
            }
            PaddingPolicy::Ragged => 0,
        };
        let mut push =
            |plan: Planned, slot: Slot, start: usize, tokens: &[u32], padded_context: usize| {
                let first = batch.tokens.len();
                batch.tokens.extend_from_slice(tokens);
                batch.segments.push(Segment {
                    slot,
                    start,
                    tokens: first..batch.tokens.len(),
                    logits: match plan.gives {
                        _ if plan.fork.is_some() => LogitsRequest::AllLogits,
                        Some(_) => logits(slot),
                        None => LogitsRequest::Nothing,
                    },
                    padding_rows: plan.padding,
                    padded_context,
                });
                planned.push(plan);
            };
        let mut room = self.rows;
        // Every sequence has a row; what is left of the step goes to tokens that were forced.
        let mut spare = room.saturating_sub(self.running.len() + self.finished.len());
        for (i, sequence) in self.running.iter().enumerate().filter(|(_, s)| !s.is_prefilling()) {
            let pending = &sequence.pending;
            // Nothing: its branches are running.
            if pending.is_empty() {
                continue;
            }
            let tokens = pending.len().min(1 + spare);
            spare -= tokens - 1;
            let gives =
                (tokens == pending.len()).then_some((sequence.slot, sequence.done + tokens));
            let plan = Planned {
                sequence: Some(i),
                fork: None,
                tokens,
                padding: 0,
                prefill: tokens > 1,
                gives,
            };
            push(plan, sequence.slot, sequence.done, &pending[..tokens], padded_context);
            room -= tokens;
        }
        for &slot in &self.finished {
            let plan = Planned {
                sequence: None,
                fork: None,
                tokens: 0,
                padding: 1,
                prefill: false,
                gives: None,
            };
            push(plan, slot, 0, &[], padded_context);
            room -= 1;
        }
        let mut fork_rows = self.fork_rows.min(room);
        for fork in &self.forks {
            let tokens = fork.left.len().min(fork_rows);
            if tokens > 0 {
                let fork_of = Some((fork.root, fork.slot));
                let plan = Planned {
                    sequence: None,
                    fork: fork_of,
                    tokens,
                    padding: 0,
                    prefill: true,
                    gives: None,
                };
                push(plan, fork.slot, fork.done, &fork.left[..tokens], 0);
                room -= tokens;
                fork_rows -= tokens;
            }
        }
        for (i, sequence) in self.running.iter().enumerate().filter(|(_, s)| s.is_prefilling()) {
            if room == 0 {
                break;
            }
            let padding = sequence.padding.min(room);
            let left = &sequence.request.prompt[sequence.done..];
            let tokens = left.len().min(room - padding);
            let gives =
                (tokens == left.len()).then_some((sequence.slot, sequence.request.prompt.len()));
            let plan =
                Planned { sequence: Some(i), fork: None, tokens, padding, prefill: true, gives };
            push(plan, sequence.slot, sequence.done, &left[..tokens], 0);
            room -= padding + tokens;
        }
    }

    /// The planned rows have run.
    pub(super) fn commit(&mut self, planned: &[Planned]) {
        for plan in planned {
            if let Some((_, slot)) = plan.fork
                && let Some(fork) = self.forks.iter_mut().find(|f| f.slot == slot)
            {
                fork.left.drain(..plan.tokens);
                fork.done += plan.tokens;
            }
            if let Some(i) = plan.sequence {
                let sequence = &mut self.running[i];
                if !sequence.is_prefilling() {
                    sequence.pending.drain(..plan.tokens);
                }
                sequence.done += plan.tokens;
                sequence.padding -= plan.padding;
            }
        }
    }

    /// A sequence's newest token, which one of its next rows runs.
    pub(super) fn note_token(&mut self, slot: Slot, token: u32) {
        if let Some(sequence) = self.running.iter_mut().find(|s| s.slot == slot) {
            sequence.pending.push(token);
        }
    }

    /// A branch of a running sequence has been opened.
    pub(super) fn fork(&mut self, fork: Fork) {
        self.forks.push(fork);
    }

    /// The running sequence from which this slot's goes on; itself if it is one.
    pub(super) fn root(&self, slot: Slot) -> Slot {
        self.forks.iter().find(|f| f.slot == slot).map_or(slot, |f| f.root)
    }

    /// Whether branches of this sequence are open.
    pub(super) fn has_forks(&self, root: Slot) -> bool {
        self.forks.iter().any(|f| f.root == root)
    }

    /// A branch is not needed any more, nor any that goes on from it.
    pub(super) fn close_fork(&mut self, slot: Slot, decoder: &mut dyn Decoder) {
        self.forks.retain(|f| f.slot != slot);
        decoder.close(slot);
    }

    /// Closes the branches of a sequence, those that go on from others first.
    fn close_forks(&mut self, root: Slot, decoder: &mut dyn Decoder) {
        self.forks.iter().rev().filter(|f| f.root == root).for_each(|f| decoder.close(f.slot));
        self.forks.retain(|f| f.root != root);
    }

    /// A sequence has ended.
    pub(super) fn finish(&mut self, slot: Slot, decoder: &mut dyn Decoder) {
        let Some(i) = self.running.iter().position(|s| s.slot == slot) else { return };
        self.close_forks(slot, decoder);
        self.running.remove(i);
        match (self.padding, self.batching) {
            (PaddingPolicy::PadToLongest, BatchingPolicy::Blocking) => self.finished.push(slot),
            _ => decoder.close(slot),
        }
        self.close_finished(decoder);
    }

    /// Gives the places of finished sequences back once the batch has ended.
    fn close_finished(&mut self, decoder: &mut dyn Decoder) {
        if self.running.is_empty() {
            self.finished.drain(..).rev().for_each(|slot| decoder.close(slot));
        }
    }

    /// A sequence has failed. Those opened after it that may count on what its prefill has not written go back to the head of
    /// the queue. Returns every slot that was closed, the failed one last.
    pub(super) fn fail(&mut self, slot: Slot, decoder: &mut dyn Decoder) -> Vec<Slot> {
        let Some(i) = self.running.iter().position(|s| s.slot == slot) else { return Vec::new() };
        let mut closed = Vec::new();
        if self.prefix == PrefixPolicy::Share && self.running[i].is_prefilling() {
            // Prefills run in order, so none of these has run a row.
            for sequence in self.running.drain(i + 1..).rev() {
                decoder.close(sequence.slot);
                closed.push(sequence.slot);
                self.queue.push_front(Waiting { request: sequence.request, announced: true });
            }
        }
        self.close_forks(slot, decoder);
        self.running.remove(i);
        decoder.close(slot);
        closed.push(slot);
        self.close_finished(decoder);
        closed
    }

    /// Drops what waits; returns the tickets.
    pub(super) fn cancel_queued(&mut self) -> Vec<Ticket> {
        self.queue.drain(..).map(|w| w.request.ticket).collect()
    }

    /// Closes everything that runs; returns the tickets.
    pub(super) fn cancel_running(&mut self, decoder: &mut dyn Decoder) -> Vec<Ticket> {
        let mut tickets: Vec<Ticket> = self.running.iter().map(|s| s.request.ticket).collect();
        self.forks.drain(..).rev().for_each(|fork| decoder.close(fork.slot));
        for sequence in self.running.drain(..).rev() {
            decoder.close(sequence.slot);
        }
        self.close_finished(decoder);
        tickets.sort_unstable();
        tickets
    }
}

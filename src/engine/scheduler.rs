//! Decides what runs in the next step: who is admitted, and which rows go into the batch. In: requests, and whether the decoder has
//! room. Out: a [`Batch`]. It has no clock and no model and does not look at tokens or scores.
//!
//! All decode rows come first, the rest of the step's rows are prefill chunks, strictly in the order of opening: shared prefixes
//! count on that (see [`crate::decoder::Opened`]).

use super::sequence::Sequence;
use super::{BatchingPolicy, EngineConfig, Event, PaddingPolicy, PrefixPolicy, Request, Ticket};
use crate::decoder::{Batch, Capacity, Decoder, Segment, Slot, Want};
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
    /// Finished sequences whose rows are computed until the batch ends (`mask` and `queue` off).
    finished: Vec<Slot>,
}

struct Waiting {
    request: Request,
    /// Its admission was told already; it came back because it counted on a sequence that failed.
    announced: bool,
}

/// What a segment of the batch does, for the commit after it ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Planned {
    /// Index among the running sequences; `None` for the row of a finished one.
    sequence: Option<usize>,
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

impl Scheduler {
    pub(super) fn new(config: &EngineConfig, capacity: Capacity) -> Scheduler {
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
        while self.running.len() < self.batch {
            let Some(Waiting { request, announced }) = self.queue.pop_front() else { break };
            let positions = Sequence::positions(&request);
            let Some(opened) = decoder.open(&request.prompt, positions, self.prefix == PrefixPolicy::Share) else {
                if self.running.is_empty() {
                    // Nobody will ever make room for it.
                    let message = format!(
                        "the prompt's {} tokens and {} more need {positions} positions; keys and values have room for {}: \
                         give more --kv-memory or lower --max-tokens",
                        request.prompt.len(),
                        request.max_tokens,
                        self.capacity.positions
                    );
                    events.push(Event::Failed { ticket: request.ticket, message });
                    continue;
                }
                self.queue.push_front(Waiting { request, announced });
                break;
            };
            if !announced {
                events.push(Event::Admitted { ticket: request.ticket, reused_tokens: opened.reused });
            }
            self.running.push(Sequence { request, slot: opened.slot, done: opened.reused, padding: 0, last: None });
        }
        if self.padding == PaddingPolicy::PadToLongest {
            let longest = self.running[before..].iter().map(|s| s.request.prompt.len()).max().unwrap_or(0);
            for sequence in &mut self.running[before..] {
                sequence.padding = longest - sequence.request.prompt.len();
            }
        }
    }

    /// Fills `batch` with the next step's rows; `planned[i]` belongs to `batch.segments[i]`. `want` says what form of scores a
    /// sequence's next token is chosen from.
    pub(super) fn plan(&self, want: impl Fn(Slot) -> Want, batch: &mut Batch, planned: &mut Vec<Planned>) {
        batch.tokens.clear();
        batch.segments.clear();
        planned.clear();
        let padded_context = match self.padding {
            PaddingPolicy::PadToLongest => self.running.iter().map(|s| s.done + 1).max().unwrap_or(0),
            PaddingPolicy::Ragged => 0,
        };
        let mut push = |plan: Planned, slot: Slot, start: usize, tokens: &[u32], padded_context: usize| {
            let first = batch.tokens.len();
            batch.tokens.extend_from_slice(tokens);
            batch.segments.push(Segment {
                slot,
                start,
                tokens: first..batch.tokens.len(),
                want: if plan.gives.is_some() { want(slot) } else { Want::Nothing },
                padding_rows: plan.padding,
                padded_context,
            });
            planned.push(plan);
        };
        let mut room = self.rows;
        for (i, sequence) in self.running.iter().enumerate().filter(|(_, s)| !s.is_prefilling()) {
            let last = sequence.last.expect("a prefill ends with a token");
            let gives = Some((sequence.slot, sequence.done + 1));
            let plan = Planned { sequence: Some(i), tokens: 1, padding: 0, prefill: false, gives };
            push(plan, sequence.slot, sequence.done, &[last], padded_context);
            room -= 1;
        }
        for &slot in &self.finished {
            push(Planned { sequence: None, tokens: 0, padding: 1, prefill: false, gives: None }, slot, 0, &[], padded_context);
            room -= 1;
        }
        for (i, sequence) in self.running.iter().enumerate().filter(|(_, s)| s.is_prefilling()) {
            if room == 0 {
                break;
            }
            let padding = sequence.padding.min(room);
            let left = &sequence.request.prompt[sequence.done..];
            let tokens = left.len().min(room - padding);
            let gives = (tokens == left.len()).then_some((sequence.slot, sequence.request.prompt.len()));
            let plan = Planned { sequence: Some(i), tokens, padding, prefill: true, gives };
            push(plan, sequence.slot, sequence.done, &left[..tokens], 0);
            room -= padding + tokens;
        }
    }

    /// The planned rows have run.
    pub(super) fn commit(&mut self, planned: &[Planned]) {
        for plan in planned {
            if let Some(i) = plan.sequence {
                self.running[i].done += plan.tokens;
                self.running[i].padding -= plan.padding;
            }
        }
    }

    /// A sequence's newest token, which its next row runs.
    pub(super) fn note_token(&mut self, slot: Slot, token: u32) {
        if let Some(sequence) = self.running.iter_mut().find(|s| s.slot == slot) {
            sequence.last = Some(token);
        }
    }

    /// A sequence has ended.
    pub(super) fn finish(&mut self, slot: Slot, decoder: &mut dyn Decoder) {
        let Some(i) = self.running.iter().position(|s| s.slot == slot) else { return };
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
        for sequence in self.running.drain(..).rev() {
            decoder.close(sequence.slot);
        }
        self.close_finished(decoder);
        tickets.sort_unstable();
        tickets
    }
}

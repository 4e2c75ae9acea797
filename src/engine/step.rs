//! The loop's body: schedule → forward → sample → record. In: submitted requests. Out: events. It owns the decoder; whoever calls
//! [`Engine::step`] again and again owns the time.

use super::sampler::{Sampler, is_greedy};
use super::scheduler::{Planned, Scheduler};
use super::{
    BatchingPolicy, Completion, Event, Observer, PaddingPolicy, PrefixPolicy, Request, SamplingPolicy, Stage, Stop, StopWatch,
    StoppingPolicy, TextDecoders, Ticket,
};
use crate::decoder::{Batch, Capacity, DecodeError, Decoder, Output, Slot};
use crate::units::TokenId;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// The policies the engine reads, and its sizes.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    pub sampling: SamplingPolicy,
    pub stopping: StoppingPolicy,
    pub padding: PaddingPolicy,
    pub batching: BatchingPolicy,
    pub prefix: PrefixPolicy,
    /// Most sequences together; the decoder's slots and rows bound it too.
    pub batch: usize,
    /// Most rows of one forward pass, if the decoder takes as many.
    pub chunk: usize,
    /// The model's end-of-sequence tokens.
    pub eos: Arc<[TokenId]>,
}

/// See the module's head.
pub struct Engine {
    config: EngineConfig,
    decoder: Box<dyn Decoder>,
    text: TextDecoders,
    observer: Option<Box<dyn Observer>>,
    scheduler: Scheduler,
    /// By slot: what goes on in it.
    generations: Vec<Option<Generation>>,
    /// Why nothing works any more.
    broken: Option<String>,
    batch: Batch,
    planned: Vec<Planned>,
    outputs: Vec<Output>,
    chosen: Vec<(Slot, TokenId)>,
}

struct Generation {
    ticket: Ticket,
    sampler: Sampler,
    watch: StopWatch,
    greedy: bool,
}

impl Engine {
    /// An engine around a decoder without open sequences. `text` makes the detokenizer of each sequence.
    pub fn new(decoder: Box<dyn Decoder>, config: EngineConfig, text: TextDecoders) -> Engine {
        let capacity = decoder.capacity();
        Engine {
            scheduler: Scheduler::new(&config, capacity),
            config,
            decoder,
            text,
            observer: None,
            generations: (0..capacity.slots).map(|_| None).collect(),
            broken: None,
            batch: Batch::default(),
            planned: Vec::new(),
            outputs: Vec::new(),
            chosen: Vec::new(),
        }
    }

    /// Has this observer told of every stage from now on.
    pub fn observe(&mut self, observer: Box<dyn Observer>) {
        self.observer = Some(observer);
    }

    /// Takes a request into the queue.
    pub fn submit(&mut self, request: Request) {
        self.scheduler.submit(request);
    }

    /// Sequences that have been admitted and have not ended.
    pub fn in_flight(&self) -> usize {
        self.scheduler.running().len()
    }

    /// Requests that wait for admission.
    pub fn queue_len(&self) -> usize {
        self.scheduler.queue_len()
    }

    /// What the decoder can hold.
    pub fn capacity(&self) -> Capacity {
        self.decoder.capacity()
    }

    /// The decoder, to look at.
    pub fn decoder(&self) -> &dyn Decoder {
        &*self.decoder
    }

    /// Forgets all shared prefixes (between trials of a benchmark).
    pub fn forget_prefixes(&mut self) {
        self.decoder.forget_prefixes();
    }

    /// Drops the requests that wait; those admitted go on. Returns the tickets dropped.
    pub fn cancel_queued(&mut self) -> Vec<Ticket> {
        self.scheduler.cancel_queued()
    }

    /// Drops everything, admitted or not. Returns the tickets dropped.
    pub fn cancel_all(&mut self) -> Vec<Ticket> {
        let mut tickets = self.scheduler.cancel_running(&mut *self.decoder);
        tickets.extend(self.scheduler.cancel_queued());
        self.generations.iter_mut().for_each(|g| *g = None);
        tickets
    }

    /// Gives the decoder back, without open sequences, so that another engine can use it.
    pub fn into_decoder(mut self) -> Box<dyn Decoder> {
        self.cancel_all();
        self.decoder
    }

    /// One step: admits, runs one forward pass, chooses tokens, tells what happened. Does nothing if nobody waits or runs. A
    /// sequence whose scores are not finite fails alone; after any error the engine must not be used again.
    pub fn step(&mut self, events: &mut Vec<Event>) -> Result<(), DecodeError> {
        if let Some(message) = &self.broken {
            return Err(DecodeError::Broken(message.clone()));
        }
        let result = self.run_rows(events).and_then(|()| self.take_tokens(events));
        if let Err(error) = &result {
            self.broken = Some(error.to_string());
        }
        result
    }

    /// Admits, plans and runs a forward pass until one succeeds.
    fn run_rows(&mut self, events: &mut Vec<Event>) -> Result<(), DecodeError> {
        loop {
            self.admit(events);
            let vocab = self.decoder.spec().vocab;
            let generations = &self.generations;
            let want = |slot: Slot| generations[slot.0].as_ref().expect("admitted").sampler.want(vocab);
            self.scheduler.plan(want, &mut self.batch, &mut self.planned);
            if self.batch.segments.is_empty() {
                return Ok(());
            }
            match self.forward() {
                Ok(()) => {
                    self.scheduler.commit(&self.planned);
                    return Ok(());
                }
                Err(DecodeError::NotFinite(slot)) => self.fail(slot, events)?,
                Err(error) => return Err(error),
            }
        }
    }

    fn admit(&mut self, events: &mut Vec<Event>) {
        self.scheduler.admit(&mut *self.decoder, events);
        for sequence in self.scheduler.running().iter().rev() {
            let generation = &mut self.generations[sequence.slot.0];
            if generation.is_some() {
                break;
            }
            let request = &sequence.request;
            *generation = Some(Generation {
                ticket: request.ticket,
                sampler: Sampler::new(request.sampling, self.config.sampling, &request.prompt),
                watch: StopWatch::new(
                    self.config.stopping,
                    request.stop.clone(),
                    self.config.eos.clone(),
                    request.max_tokens,
                    (self.text)(),
                ),
                greedy: is_greedy(request.sampling, self.config.sampling),
            });
        }
    }

    fn forward(&mut self) -> Result<(), DecodeError> {
        let rows = |prefill: bool| self.planned.iter().filter(|p| p.prefill == prefill).map(Planned::rows).sum();
        let (prefill_rows, decode_rows): (usize, usize) = (rows(true), rows(false));
        let stage = if prefill_rows > 0 { Stage::Prefill } else { Stage::Decode };
        self.begin(stage);
        // A panic in the decoder must not take the answers that are already written with it.
        let result =
            catch_unwind(AssertUnwindSafe(|| self.decoder.forward(&self.batch, &mut self.outputs))).unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
                Err(DecodeError::Broken(format!("internal error in the forward pass: {}", text.unwrap_or("a panic"))))
            });
        self.end(stage, prefill_rows, decode_rows);
        result
    }

    /// Ends the sequence in this slot with an error of its own.
    fn fail(&mut self, slot: Slot, events: &mut Vec<Event>) -> Result<(), DecodeError> {
        let closed = self.scheduler.fail(slot, &mut *self.decoder);
        let failed = closed.iter().filter_map(|s| self.generations[s.0].take()).last();
        let Some(generation) = failed else {
            return Err(DecodeError::Broken(format!(
                "the decoder reports scores that are not finite for {slot:?}, which is not open"
            )));
        };
        let message = "the model produced a score that is not a finite number; its weights may be damaged".to_string();
        events.push(Event::Failed { ticket: generation.ticket, message });
        Ok(())
    }

    /// Chooses a token for every row that gives one, and ends the sequences that are complete.
    fn take_tokens(&mut self, events: &mut Vec<Event>) -> Result<(), DecodeError> {
        if self.batch.segments.is_empty() {
            return Ok(());
        }
        self.begin(Stage::Sample);
        self.chosen.clear();
        for (plan, output) in self.planned.iter().zip(&self.outputs) {
            let Some((slot, position)) = plan.gives else { continue };
            let token = self.generations[slot.0].as_ref().and_then(|g| g.sampler.choose(output, position));
            let Some(token) = token else {
                return Err(DecodeError::Broken("the decoder answered something else than it was asked".into()));
            };
            self.chosen.push((slot, token));
        }
        self.end(Stage::Sample, 0, 0);
        self.begin(Stage::Detokenize);
        for i in 0..self.chosen.len() {
            let (slot, token) = self.chosen[i];
            self.scheduler.note_token(slot, token);
            let generation = self.generations[slot.0].as_mut().expect("it was sampled");
            events.push(Event::Token { ticket: generation.ticket, token });
            if let Some(Stop(reason)) = generation.watch.push(token) {
                let Generation { ticket, watch, greedy, .. } = self.generations[slot.0].take().expect("as before");
                let (tokens, text) = watch.finish();
                events.push(Event::Finished { ticket, completion: Completion { tokens, text, reason, greedy } });
                self.scheduler.finish(slot, &mut *self.decoder);
            }
        }
        self.end(Stage::Detokenize, 0, 0);
        Ok(())
    }

    fn begin(&mut self, stage: Stage) {
        if let Some(observer) = &mut self.observer {
            observer.begin(stage);
        }
    }

    fn end(&mut self, stage: Stage, prefill_rows: usize, decode_rows: usize) {
        if let Some(observer) = &mut self.observer {
            observer.end(stage, prefill_rows, decode_rows);
        }
    }
}

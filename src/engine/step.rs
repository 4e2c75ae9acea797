//! The loop's body: schedule → forward → sample → record. In: submitted requests. Out: events. It owns the decoder; whoever calls
//! [`Engine::step`] again and again owns the time.
//! Over 500 lines: one step in its order; schedule, sampling and stopping have files of their own.

use super::choices::Scoring;
use super::masks::{Cell, Masks};
use super::sampler::{Sampler, is_greedy};
use super::scheduler::{Fork, Planned, Scheduler};
use super::scoring::{ScoredToken, scored};
use super::stopping::Said;
use super::{
    Completion, EngineConfig, Event, FinishReason, Observer, Request, Stage, Stop, StopWatch,
    TextDecoders, Ticket,
};
use crate::decoder::{Batch, Capacity, DecodeError, Decoder, LogitsOutput, LogitsRequest, Slot};
use crate::text::Mask;
use crate::units::TokenId;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

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
    masks: Masks,
    batch: Batch,
    planned: Vec<Planned>,
    outputs: Vec<LogitsOutput>,
    chosen: Vec<Chosen>,
}

struct Generation {
    ticket: Ticket,
    sampler: Sampler,
    watch: StopWatch,
    greedy: bool,
    constrained: Option<Constrained>,
    /// Choices are scored; nothing is generated.
    scoring: Option<Scoring>,
    prompt_len: usize,
    /// How many alternatives are wanted with each log probability.
    logprobs: Option<usize>,
    scored: Vec<ScoredToken>,
}

/// An answer that must have a form.
struct Constrained {
    cell: Arc<Cell>,
    phase: Phase,
    /// What opens a thought.
    open: Vec<TokenId>,
}

/// Where an answer is with its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A thought or the answer may begin.
    Either,
    /// So many tokens of the mark that opens a thought were chosen.
    Opening(usize),
    /// Inside a thought everything may be said.
    Thinking,
    /// The form decides.
    Bound,
}

impl Constrained {
    /// The tokens that may come next; all if `None`.
    fn mask(&self, vocab: usize) -> Result<Option<Mask>, String> {
        match self.phase {
            Phase::Thinking => Ok(None),
            Phase::Opening(n) => {
                Ok(Some(Mask::of(vocab, self.open.get(n..=n).unwrap_or_default())))
            }
            Phase::Bound => self.cell.mask().map(Some),
            Phase::Either => {
                let mut mask = self.cell.mask()?;
                self.open.first().into_iter().for_each(|token| mask.allow(*token));
                Ok(Some(mask))
            }
        }
    }
}

/// What came out of a row.
enum Chosen {
    Token {
        slot: Slot,
        token: TokenId,
        scored: Option<ScoredToken>,
    },
    /// Its constraint went past its limits.
    Nothing {
        slot: Slot,
        why: String,
    },
}

/// What a token leads to.
enum Then {
    GoesOn,
    Ends(FinishReason),
    Fails(String),
}

impl Engine {
    /// An engine around a decoder without open sequences. `text` makes the detokenizer of each sequence.
    pub fn new(decoder: Box<dyn Decoder>, config: EngineConfig, text: TextDecoders) -> Engine {
        let capacity = decoder.capacity();
        Engine {
            scheduler: Scheduler::new(&config, capacity, decoder.spec().vocab),
            config,
            decoder,
            text,
            observer: None,
            generations: (0..capacity.slots).map(|_| None).collect(),
            broken: None,
            masks: Masks::new(),
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
    pub fn clear_prefix_cache(&mut self) {
        self.decoder.clear_prefix_cache();
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
            let logits =
                |slot: Slot| generations[slot.0].as_ref().expect("admitted").logits_request(vocab);
            self.scheduler.plan(logits, &mut self.batch, &mut self.planned);
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
        // A state cannot be shared by two that go on from it.
        let apart = self.decoder.spec().has_state();
        for sequence in self.scheduler.running().iter().rev() {
            let generation = &mut self.generations[sequence.slot.0];
            if generation.is_some() {
                break;
            }
            let request = &sequence.request;
            let extras = &request.extras;
            let watch = StopWatch::new(
                self.config.stopping,
                request.stop.clone(),
                self.config.eos.clone(),
                request.max_tokens,
                (self.text)(),
                extras.thought.clone(),
            );
            let constrained = extras.constraint.as_ref().map(|grammar| {
                let open = extras
                    .thought
                    .as_ref()
                    .map_or(Vec::new(), |thought| thought.open_tokens.clone());
                let phase = match () {
                    _ if watch.is_thinking() => Phase::Thinking,
                    _ if watch.may_think() && !open.is_empty() => Phase::Either,
                    _ => Phase::Bound,
                };
                Constrained { cell: Cell::new(grammar.start()), phase, open }
            });
            let generation = generation.insert(Generation {
                ticket: request.ticket,
                sampler: Sampler::new(request, self.config.sampling),
                watch,
                greedy: is_greedy(request.sampling, self.config.sampling),
                constrained,
                scoring: extras.choices.clone().map(|choices| Scoring::new(choices, apart)),
                prompt_len: request.prompt.len(),
                logprobs: extras.logprobs,
                scored: Vec::new(),
            });
            if let Some(constrained) =
                generation.constrained.as_ref().filter(|_| generation.wants_masks())
            {
                self.masks.begin(constrained.cell.clone(), self.config.mask_threads);
            }
        }
    }

    fn forward(&mut self) -> Result<(), DecodeError> {
        let rows = |prefill: bool| {
            self.planned.iter().filter(|p| p.prefill == prefill).map(Planned::rows).sum()
        };
        let (prefill_rows, decode_rows): (usize, usize) = (rows(true), rows(false));
        let stage = if prefill_rows > 0 { Stage::Prefill } else { Stage::Decode };
        self.begin(stage);
        // A panic in the decoder must not take the answers that are already written with it.
        let result =
            catch_unwind(AssertUnwindSafe(|| self.decoder.forward(&self.batch, &mut self.outputs)))
                .unwrap_or_else(|panic| {
                    let text = panic
                        .downcast_ref::<String>()
                        .map(String::as_str)
                        .or_else(|| panic.downcast_ref::<&str>().copied());
                    Err(DecodeError::Broken(format!(
                        "internal error in the forward pass: {}",
                        text.unwrap_or("a panic")
                    )))
                });
        self.end(stage, prefill_rows, decode_rows);
        result
    }

    /// Ends the sequence in this slot with an error of its own.
    fn fail(&mut self, slot: Slot, events: &mut Vec<Event>) -> Result<(), DecodeError> {
        let message =
            "the model produced a score that is not a finite number; its weights may be damaged"
                .to_string();
        self.fail_with(slot, "not_finite", message, events)
    }

    fn fail_with(
        &mut self,
        slot: Slot,
        code: &'static str,
        message: String,
        events: &mut Vec<Event>,
    ) -> Result<(), DecodeError> {
        let slot = self.scheduler.root(slot);
        let closed = self.scheduler.fail(slot, &mut *self.decoder);
        let failed = closed.iter().filter_map(|s| self.generations[s.0].take()).last();
        let Some(generation) = failed else {
            return Err(DecodeError::Broken(format!(
                "a failure ({code}) of {slot:?}, which is not open"
            )));
        };
        events.push(Event::Failed { ticket: generation.ticket, code, message });
        Ok(())
    }

    /// Chooses a token for every row that gives one, and ends the sequences that are complete.
    fn take_tokens(&mut self, events: &mut Vec<Event>) -> Result<(), DecodeError> {
        if self.batch.segments.is_empty() {
            return Ok(());
        }
        self.begin(Stage::Sample);
        self.masks.stop_waiting();
        self.chosen.clear();
        let vocab = self.decoder.spec().vocab;
        let mut scored = Vec::new();
        for (plan, output) in self.planned.iter().zip(&self.outputs) {
            let row = match (plan.fork, plan.gives) {
                (Some((root, branch)), _) => Some((root, Some(branch))),
                (None, Some((slot, _))) => self.generations[slot.0]
                    .as_ref()
                    .filter(|g| g.scoring.is_some())
                    .map(|_| (slot, None)),
                (None, None) => None,
            };
            if let Some((root, branch)) = row {
                let scoring = self.generations[root.0].as_mut().and_then(|g| g.scoring.as_mut());
                let (Some(scoring), Some(scores)) = (scoring, output.scores()) else {
                    return Err(DecodeError::Broken(
                        "a branch without scores, or of nothing that is scored".into(),
                    ));
                };
                match branch.map(|branch| scoring.branch_in(branch)) {
                    None => scoring.begin(scores),
                    Some(Some(branch)) => {
                        scoring.take(branch, scores, vocab).into_iter().for_each(|slot| {
                            self.scheduler.close_fork(slot, &mut *self.decoder);
                        })
                    }
                    Some(None) => {
                        return Err(DecodeError::Broken(
                            "rows of a branch that is not open".into(),
                        ));
                    }
                }
                if !scored.contains(&root) {
                    scored.push(root);
                }
                continue;
            }
            let Some((slot, position)) = plan.gives else { continue };
            let Some(chosen) = self.generations[slot.0]
                .as_ref()
                .and_then(|g| g.choose(slot, output, position, vocab))
            else {
                return Err(DecodeError::Broken(
                    "the decoder answered something else than it was asked".into(),
                ));
            };
            self.chosen.push(chosen);
        }
        for root in scored {
            self.score_on(root, events)?;
        }
        self.end(Stage::Sample, 0, 0);
        self.begin(Stage::Detokenize);
        for chosen in std::mem::take(&mut self.chosen) {
            match chosen {
                Chosen::Token { slot, token, scored } => {
                    self.take_token(slot, token, scored, events)?
                }
                Chosen::Nothing { slot, why } => self.fail_with(slot, "constraint", why, events)?,
            }
        }
        self.end(Stage::Detokenize, 0, 0);
        Ok(())
    }

    /// Opens the next branches of a sequence whose choices are scored, or tells the sums.
    fn score_on(&mut self, root: Slot, events: &mut Vec<Event>) -> Result<(), DecodeError> {
        let Some(generation) = self.generations[root.0].as_mut() else { return Ok(()) };
        let prompt = generation.prompt_len;
        let Some(scoring) = generation.scoring.as_mut() else { return Ok(()) };
        if scoring.is_done() {
            let generation = self.generations[root.0].take().expect("as before");
            events.push(generation.finished(FinishReason::Choice));
            self.scheduler.finish(root, &mut *self.decoder);
            return Ok(());
        }
        while let Some(branch) = scoring.tree.branches.get(scoring.next) {
            let parent = match branch.parent {
                None => root,
                Some(parent) if !scoring.has_run(parent) => break,
                Some(parent) => scoring.slots[parent].expect("open until its branches have run"),
            };
            let at = prompt + branch.depth;
            let Some(slot) = self.decoder.fork(parent, at, at + branch.tokens.len()) else { break };
            self.scheduler.fork(Fork { slot, root, done: at, left: branch.tokens.clone() });
            scoring.slots[scoring.next] = Some(slot);
            scoring.next += 1;
        }
        if !self.scheduler.has_forks(root) {
            let message =
                "the choices do not fit into the memory for keys and values: give more --kv-memory"
                    .to_string();
            return self.fail_with(root, "no_memory", message, events);
        }
        Ok(())
    }

    /// A sequence has a token, and those that its constraint forces after it.
    fn take_token(
        &mut self,
        slot: Slot,
        token: TokenId,
        scored: Option<ScoredToken>,
        events: &mut Vec<Event>,
    ) -> Result<(), DecodeError> {
        let generation = self.generations[slot.0].as_mut().expect("it was sampled");
        generation.scored.extend(scored);
        // A log probability needs the scores of every token, so each has a step of its own then.
        let fast_forward = self.config.fast_forward && generation.logprobs.is_none();
        let mut next = Some(token);
        while let Some(token) = next.take() {
            self.scheduler.note_token(slot, token);
            events.push(Event::Token { ticket: generation.ticket, token });
            match generation.push(token) {
                Then::GoesOn => {}
                Then::Ends(reason) => {
                    let generation = self.generations[slot.0].take().expect("as before");
                    events.push(generation.finished(reason));
                    self.scheduler.finish(slot, &mut *self.decoder);
                    return Ok(());
                }
                Then::Fails(why) => return self.fail_with(slot, "constraint", why, events),
            }
            let Some(constrained) = &generation.constrained else { break };
            next = match constrained.phase {
                Phase::Bound if fast_forward => {
                    constrained.cell.advance(|matching| matching.forced())
                }
                Phase::Opening(n) if fast_forward => constrained.open.get(n).copied(),
                _ => None,
            };
            if next.is_none() && generation.wants_masks() {
                self.masks.begin(constrained.cell.clone(), self.config.mask_threads);
            }
        }
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

impl Generation {
    /// What form of scores the next token is chosen from.
    fn logits_request(&self, vocab: usize) -> LogitsRequest {
        if self.scoring.is_some() {
            return LogitsRequest::Logits;
        }
        let masked = self.constrained.as_ref().is_some_and(|c| c.phase != Phase::Thinking);
        self.sampler.logits_request(vocab, masked)
    }

    /// Whether a mask is wanted for every token: otherwise only where the form forbids what the model says. Which of the two depends on the
    /// request alone, so that what a grammar's limits allow does too.
    fn wants_masks(&self) -> bool {
        match self.constrained.as_ref().map(|c| c.phase) {
            Some(Phase::Bound) => !self.sampler.is_favourite(),
            Some(Phase::Either) => true,
            _ => false,
        }
    }

    /// The highest score's token, if the form decides and is known to allow it.
    fn allowed_favourite(&self, output: &LogitsOutput) -> Option<TokenId> {
        let constrained = self.constrained.as_ref().filter(|c| c.phase == Phase::Bound)?;
        let token = self.sampler.favourite(output)?;
        (constrained.cell.allows(token) == Some(true)).then_some(token)
    }

    /// The next token by these scores; `None` if they are not what was asked for.
    fn choose(
        &self,
        slot: Slot,
        output: &LogitsOutput,
        position: usize,
        vocab: usize,
    ) -> Option<Chosen> {
        let token = match self.allowed_favourite(output) {
            Some(token) => token,
            None => {
                let mask = match self.constrained.as_ref().map_or(Ok(None), |c| c.mask(vocab)) {
                    Ok(mask) => mask,
                    Err(why) => return Some(Chosen::Nothing { slot, why }),
                };
                let Some(token) =
                    self.sampler.choose(output, position, self.watch.tokens(), mask.as_ref())
                else {
                    // The mask allows none of the model's tokens.
                    let dead = mask.filter(|_| output.scores().is_some())?;
                    debug_assert!((0..vocab as TokenId).all(|id| !dead.allows(id)));
                    return Some(Chosen::Nothing {
                        slot,
                        why: "the constraint allows none of the model's tokens here".to_string(),
                    });
                };
                token
            }
        };
        let scored = match self.logprobs {
            Some(top) => Some(scored(output.scores()?, token, top)),
            None => None,
        };
        Some(Chosen::Token { slot, token, scored })
    }

    /// Goes on by a token.
    fn push(&mut self, token: TokenId) -> Then {
        let was_thinking = self.watch.is_thinking();
        let stop = self.watch.push(token);
        if let Some(constrained) = &mut self.constrained {
            let outcome = match constrained.phase {
                Phase::Thinking => Ok(()),
                Phase::Opening(n) => {
                    constrained.phase = Phase::Opening(n + 1);
                    Ok(())
                }
                // A token that both the form and a thought's opening mark begin with is the form's.
                Phase::Either => {
                    match constrained.cell.advance(|matching| matching.consume_all(&[token])) {
                        Ok(0) if constrained.open.first() == Some(&token) => {
                            constrained.phase = Phase::Opening(1);
                            Ok(())
                        }
                        fitting => {
                            constrained.phase = Phase::Bound;
                            let rest = |n| {
                                if n == 0 {
                                    constrained.cell.advance(|matching| matching.consume(token))
                                } else {
                                    Ok(())
                                }
                            };
                            fitting.and_then(rest)
                        }
                    }
                }
                Phase::Bound => constrained.cell.advance(|matching| matching.consume(token)),
            };
            if let Err(why) = outcome {
                return Then::Fails(why);
            }
            if matches!(constrained.phase, Phase::Opening(n) if n >= constrained.open.len()) {
                constrained.phase = Phase::Thinking;
            }
            if constrained.phase == Phase::Thinking && was_thinking && !self.watch.is_thinking() {
                constrained.phase = Phase::Bound;
            }
            if constrained.phase == Phase::Bound
                && constrained.cell.advance(|matching| matching.has_ended())
            {
                return Then::Ends(FinishReason::Stop);
            }
        }
        match stop {
            Some(Stop(reason)) => Then::Ends(reason),
            None => Then::GoesOn,
        }
    }

    fn finished(self, reason: FinishReason) -> Event {
        let Generation {
            ticket,
            sampler: _,
            watch,
            greedy,
            constrained,
            scoring,
            prompt_len: _,
            logprobs,
            scored,
        } = self;
        let best =
            scoring.as_ref().and_then(|scoring| scoring.choices.texts.get(scoring.best()).cloned());
        let choices = scoring
            .map(|scoring| scoring.choices.texts.iter().cloned().zip(scoring.sums).collect());
        let incomplete = constrained.is_some_and(|c| {
            c.phase != Phase::Bound || !c.cell.advance(|matching| matching.is_complete())
        });
        let Said { tokens, text, reasoning } = watch.finish();
        let logprobs = logprobs.map(|_| scored);
        let text = best.unwrap_or(text);
        Event::Finished {
            ticket,
            completion: Completion {
                tokens,
                text,
                reasoning,
                logprobs,
                choices,
                incomplete,
                reason,
                greedy,
            },
        }
    }
}

//! One run: a source of prompts in, answers out. Reader thread → tokenizer thread → engine on the calling thread, answers to a
//! sink. In: an engine, an encoder, an answer cache. Out: a [`RunReport`]. It opens no file and prints nothing.
//! Over 500 lines: three threads and what passes between them, which are read together.

use super::cache::{Key, Lru};
use super::report::{Clock, Ended};
use super::request_queue::{Accepted, Failed, Next, RequestQueue};
use super::{
    Alternative, Answer, Control, Form, Input, PipelineError, Prompt, RecordError, RunReport,
    Stopping, TokenLogprob, clipped,
};
use crate::engine::{
    BatchingPolicy, Completion, Engine, Event, Extras, FinishReason, Request, Stage,
    StoppingPolicy, Ticket,
};
use crate::model::RopeSet;
use crate::text::Constraint;
use crate::units::TokenId;
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How answers come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As they are finished.
    Finished,
    /// As they came in; admission is held back past 4 batches of unwritten answers.
    Input,
}

/// A prompt as the engine takes it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Encoded {
    /// Its ids, template included.
    pub ids: Vec<TokenId>,
    /// What else is asked for: the constraint compiled, the choices as ids.
    pub extras: Extras,
}

impl From<Vec<TokenId>> for Encoded {
    fn from(ids: Vec<TokenId>) -> Encoded {
        Encoded { ids, extras: Extras::default() }
    }
}

/// Prompts to ids; what the audit's `tokenizer` switches.
pub trait Encode: Send + Sync {
    /// Each prompt for the engine, or why it cannot be answered.
    fn encode(&self, prompts: &[&Prompt]) -> Vec<Result<Encoded, RecordError>>;

    /// The bytes that a token is spelled with, control tokens too.
    fn spelled(&self, _token: TokenId) -> Vec<u8> {
        Vec::new()
    }

    /// Most prompts it wants at once.
    fn at_once(&self) -> usize;
}

/// An answer that can be given again.
#[derive(Debug)]
pub(super) struct CachedAnswer {
    text: String,
    reasoning: Option<String>,
    json: bool,
    tokens: Vec<TokenId>,
    reason: FinishReason,
    greedy: bool,
    incomplete: bool,
    choice_probs: Option<Vec<(String, f64)>>,
    logprobs: Option<Vec<TokenLogprob>>,
}

impl CachedAnswer {
    /// What a completion says, with what the caller of the engine knows of it.
    fn of(completion: Completion, json: bool, encoder: &dyn Encode) -> CachedAnswer {
        let Completion { tokens, text, reasoning, logprobs, choices, incomplete, reason, greedy } =
            completion;
        let scored = |token: TokenId, logprob: f32, top: Vec<TokenLogprob>| {
            let bytes = encoder.spelled(token);
            TokenLogprob {
                token: String::from_utf8_lossy(&bytes).into_owned(),
                bytes,
                logprob,
                top,
            }
        };
        let logprobs = logprobs.map(|all| {
            let top = |top: Vec<(TokenId, f32)>| {
                top.into_iter().map(|(token, logprob)| scored(token, logprob, Vec::new())).collect()
            };
            all.into_iter().map(|one| scored(one.token, one.logprob, top(one.top))).collect()
        });
        let choice_probs = choices.map(|sums| {
            let best = sums.iter().map(|s| s.1).fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = sums.iter().map(|s| (s.1 - best).exp()).sum();
            sums.into_iter().map(|(text, sum)| (text, (sum - best).exp() / total)).collect()
        });
        CachedAnswer {
            text,
            reasoning,
            json,
            tokens,
            reason,
            greedy,
            incomplete,
            choice_probs,
            logprobs,
        }
    }

    /// About how much memory it takes.
    fn bytes(&self) -> usize {
        let logprobs =
            self.logprobs.iter().flatten().map(|one| 100 * (1 + one.top.len())).sum::<usize>();
        let choices =
            self.choice_probs.iter().flatten().map(|(text, _)| text.len() + 32).sum::<usize>();
        self.text.len()
            + self.reasoning.as_ref().map_or(0, String::len)
            + 4 * self.tokens.len()
            + logprobs
            + choices
            + 160
    }
}

/// What a run needs; made anew for each run by the pipeline.
pub(super) struct Run<'a> {
    pub engine: &'a mut Engine,
    /// `None`: every prompt is generated.
    pub cache: Option<&'a mut Lru<CachedAnswer>>,
    pub encoder: Arc<dyn Encode>,
    pub clock: Arc<Mutex<Clock>>,
    pub batching: BatchingPolicy,
    pub stopping: StoppingPolicy,
    pub batch: usize,
    /// The model's context.
    pub context: usize,
    pub order: Order,
    pub control: &'a Control,
}

/// How long rows in flight may go on after [`Stopping::Drain`].
pub const GRACE: Duration = Duration::from_secs(5);

/// A record on its way, from its admission on.
struct Pending<T> {
    index: u64,
    id: String,
    /// The caller's.
    with: T,
    accepted: Instant,
    prompt_tokens: usize,
    rope: Option<RopeSet>,
    /// The answers it asks for, as far as they are there.
    parts: Vec<Option<Part>>,
    /// One that is cut is an answer.
    accepts_cut: bool,
}

/// One of the answers to a record.
struct Part {
    outcome: Result<Arc<CachedAnswer>, RecordError>,
    cached: bool,
    forward_rows: usize,
    /// Its first forward pass, or for one that waits for an identical request, the moment it began to wait.
    started: Option<Instant>,
    first_token: Option<Instant>,
}

/// Who waits for a request: one of the answers to a record.
struct Waiter {
    index: u64,
    part: usize,
    started: Option<Instant>,
    prompt_tokens: usize,
}

/// A request in the engine and everybody who waits for it; the first is the one it is generated for.
struct InFlight {
    waiters: Vec<Waiter>,
    key: Option<Key>,
    reused: usize,
    first_token: Option<Instant>,
    /// The answer has to be JSON.
    json: bool,
}

type Ready<T> = (Input<T>, Result<Encoded, RecordError>);

struct State<'a, T> {
    sink: &'a mut dyn FnMut(Answer, T) -> ControlFlow<()>,
    order: Order,
    /// Finished out of order, waiting for their turn.
    held: BTreeMap<u64, (Answer, T)>,
    /// Index of the next answer to hand out in input order.
    next: u64,
    /// Records of which some answer is missing.
    records: HashMap<u64, Pending<T>>,
    /// The next request's name.
    ticket: Ticket,
    flights: HashMap<Ticket, InFlight>,
    by_key: HashMap<Key, Ticket>,
    waiting: usize,
    report: RunReport,
    sink_closed: bool,
    /// Generated answers and the time from their admission to their end, summed: what a new one will about take.
    served: (u32, Duration),
}

impl Run<'_> {
    /// See [`super::Pipeline::run`].
    pub fn run<T: Send + 'static>(
        mut self,
        source: impl Iterator<Item = Input<T>> + Send + 'static,
        sink: &mut dyn FnMut(Answer, T) -> ControlFlow<()>,
    ) -> Result<RunReport, PipelineError> {
        let begin = Instant::now();
        let queue: Arc<RequestQueue<Input<T>, Ready<T>>> =
            Arc::new(RequestQueue::new(4 * self.batch));
        spawn("reader", read(source, queue.clone()))?;
        let tokenizing = tokenize(self.encoder.clone(), self.clock.clone(), queue.clone());
        let tokenizer = spawn("tokenizer", tokenizing).inspect_err(|_| queue.close())?;
        let mut state = State {
            sink,
            order: self.order,
            held: BTreeMap::new(),
            next: 0,
            records: HashMap::new(),
            ticket: 0,
            flights: HashMap::new(),
            by_key: HashMap::new(),
            waiting: 0,
            report: RunReport::new(),
            sink_closed: false,
            served: (0, Duration::ZERO),
        };
        let ended = self.answer_all(&queue, &mut state);
        queue.close();
        self.engine.cancel_all();
        let ended = ended?;
        // The tokenizer ends within one batch; the reader may be blocked in a read that never returns and is left alone.
        let _ = tokenizer.join();
        let mut report = state.report;
        report.ended = ended;
        report.wall_s = begin.elapsed().as_secs_f64();
        report.stages = self.clock.lock().unwrap_or_else(PoisonError::into_inner).times.clone();
        report.stages.add(Stage::Queue, report.queue_s);
        Ok(report)
    }

    fn answer_all<T>(
        &mut self,
        queue: &RequestQueue<Input<T>, Ready<T>>,
        state: &mut State<T>,
    ) -> Result<Ended, PipelineError> {
        let mut events = Vec::new();
        let mut draining: Option<Instant> = None;
        let mut source_ended = None;
        loop {
            let now = Instant::now();
            self.control.accepted.store(queue.accepted(), Ordering::Relaxed);
            if state.sink_closed || self.control.stopping() == Stopping::Now {
                return Ok(Ended::Stopped);
            }
            if self.control.deadline.is_some_and(|d| now >= d) {
                return Ok(Ended::Deadline);
            }
            if self.control.stopping() == Stopping::Drain && draining.is_none() {
                draining = Some(now);
                self.engine.cancel_queued().iter().for_each(|ticket| state.forget(*ticket));
            }
            if draining.is_some_and(|since| state.flights.is_empty() || now >= since + GRACE) {
                return Ok(Ended::Stopped);
            }
            let too_late = self
                .control
                .deadline
                .is_some_and(|d| d.saturating_duration_since(now) < state.mean_service());
            if too_late && state.flights.is_empty() && source_ended.is_none() {
                return Ok(Ended::Deadline);
            }
            if draining.is_none() && source_ended.is_none() && !too_late {
                source_ended = self.admit(queue, state);
            }
            if state.sink_closed {
                continue;
            }
            if state.flights.is_empty() {
                match source_ended {
                    Some(None) => return Ok(Ended::Complete),
                    Some(Some(Failed::Source(failure))) => return Ok(Ended::SourceFailed(failure)),
                    Some(Some(Failed::Panic(thread))) => {
                        return Err(PipelineError::Internal(format!(
                            "the {thread} thread panicked"
                        )));
                    }
                    None => queue.wait(Duration::from_millis(50)),
                }
                continue;
            }
            events.clear();
            let before = Instant::now();
            match catch_unwind(AssertUnwindSafe(|| self.engine.step(&mut events))) {
                Ok(result) => result.map_err(|e| PipelineError::Internal(e.to_string()))?,
                Err(_) => return Err(PipelineError::Internal("the engine panicked".into())),
            }
            if self.engine.in_flight() == 0 && self.engine.queue_len() > 0 && events.is_empty() {
                return Err(PipelineError::Internal(
                    "the decoder has no room for a request that it could hold".into(),
                ));
            }
            let now = Instant::now();
            for event in events.drain(..) {
                // Admission is the first thing in a step, everything else comes after its forward pass.
                let at = if matches!(event, Event::Admitted { .. }) { before } else { now };
                self.take(event, at, state);
            }
        }
    }

    /// Takes records from the queue while there is room; `Some` once there will never be more.
    fn admit<T>(
        &mut self,
        queue: &RequestQueue<Input<T>, Ready<T>>,
        state: &mut State<T>,
    ) -> Option<Option<Failed>> {
        if self.batching == BatchingPolicy::Blocking
            && (!state.flights.is_empty() || !queue.settled(self.batch))
        {
            // The next batch is gathered while this one runs, so that it starts whole.
            return None;
        }
        while self.has_room(state) {
            match queue.next() {
                Next::Item(item) => self.begin(item, state),
                Next::Empty => return None,
                Next::Ended(failed) => return Some(failed),
            }
        }
        None
    }

    fn has_room<T>(&self, state: &State<T>) -> bool {
        let unwritten = state.held.len() + state.flights.len() + state.waiting;
        !state.sink_closed
            && state.flights.len() < self.batch
            && state.waiting < 4 * self.batch
            && unwritten < 4 * self.batch
    }

    /// One record leaves the queue: it is answered at once (rejected, kept in memory), waits for an identical one, or is submitted.
    fn begin<T>(&mut self, accepted: Accepted<Ready<T>>, state: &mut State<T>) {
        let Accepted { index, at, item: (input, encoded) } = accepted;
        let pending = |id: String, with: T| Pending {
            index,
            id,
            with,
            accepted: at,
            prompt_tokens: 0,
            rope: None,
            parts: Vec::new(),
            accepts_cut: false,
        };
        let (prompt, mut pending) = match input {
            Input::Prompt(prompt, with) => {
                let id = prompt.id.clone();
                (prompt, pending(id, with))
            }
            Input::Rejected { id, error, with } => {
                return state.emit(failed(pending(id, with), error), self.control);
            }
            Input::Failed(_) => return,
        };
        let encoded = match encoded {
            Ok(encoded) => encoded,
            Err(error) => return state.emit(failed(pending, error), self.control),
        };
        pending.prompt_tokens = encoded.ids.len();
        let request = match self.request(&prompt, encoded) {
            Ok(request) => request,
            Err(error) => return state.emit(failed(pending, error), self.control),
        };
        pending.rope = self.engine.decoder().spec().rope_set(request.positions());
        let (json, n) = (
            prompt.generation.form.constraint.as_ref().is_some_and(Constraint::is_json),
            prompt.generation.form.n.max(1),
        );
        pending.parts.resize_with(n, || None);
        pending.accepts_cut = prompt.accepts_cut;
        state.records.insert(index, pending);
        for part in 0..n {
            let mut request = request.clone();
            request.ticket = state.ticket;
            request.sampling.seed = request.sampling.seed.wrapping_add(part as u64);
            state.ticket += 1;
            self.ask(request, Waiter { index, part, started: None, prompt_tokens: 0 }, json, state);
        }
    }

    /// One of the answers to a record: from memory, with an identical request, or from the engine.
    fn ask<T>(&mut self, request: Request, mut waiter: Waiter, json: bool, state: &mut State<T>) {
        waiter.prompt_tokens = request.prompt.len();
        let mut key = None;
        if let Some(cache) = &mut self.cache {
            let k = Key::of(&request, self.stopping);
            if let Some(kept) = cache.get(&k) {
                let part = Part {
                    outcome: Ok(kept),
                    cached: true,
                    forward_rows: 0,
                    started: None,
                    first_token: None,
                };
                return state.answer(&waiter, part, self.control);
            }
            if let Some(flight) =
                state.by_key.get(&k).and_then(|ticket| state.flights.get_mut(ticket))
            {
                waiter.started = Some(Instant::now());
                state.waiting += 1;
                return flight.waiters.push(waiter);
            }
            state.by_key.insert(k, request.ticket);
            key = Some(k);
        }
        state.flights.insert(
            request.ticket,
            InFlight { waiters: vec![waiter], key, reused: 0, first_token: None, json },
        );
        self.engine.submit(request);
    }

    /// The request of a prompt, clipped to the context; an error if it cannot be answered at all.
    fn request(&self, prompt: &Prompt, encoded: Encoded) -> Result<Request, RecordError> {
        let generation = &prompt.generation;
        let Encoded { ids, mut extras } = encoded;
        if ids.is_empty() {
            return Err(RecordError::new("empty_prompt", "the prompt has no tokens"));
        }
        if ids.len() >= self.context {
            return Err(too_long(ids.len(), self.context));
        }
        let longest = extras.choices.as_ref().map(|choices| choices.longest() + 1);
        if longest.is_some_and(|longest| ids.len() + longest > self.context) {
            let message = format!(
                "the prompt has {} tokens and the longest choice {}; the model's context is {}",
                ids.len(),
                longest.unwrap_or(0),
                self.context
            );
            return Err(RecordError::new("prompt_too_long", message));
        }
        let max_tokens = clipped(longest.unwrap_or(generation.max_tokens), ids.len(), self.context);
        let positions = self.engine.capacity().positions;
        if ids.len() + max_tokens > positions {
            let need = ids.len() + max_tokens;
            let message = format!(
                "needs {need} positions of keys and values, --kv-memory holds {positions}; raise it or lower max_tokens"
            );
            return Err(RecordError::new("no_memory", message));
        }
        let Form { constraint: _, choices: _, logprobs, n: _, penalties, min_p } = *generation.form;
        (extras.logprobs, extras.penalties, extras.min_p) = (logprobs, penalties, min_p);
        Ok(Request {
            ticket: 0,
            prompt: ids.into(),
            max_tokens,
            sampling: generation.sampling,
            stop: Arc::new(generation.stop.clone()),
            extras: Arc::new(extras),
        })
    }

    fn take<T>(&mut self, event: Event, now: Instant, state: &mut State<T>) {
        match event {
            Event::Admitted { ticket, reused_tokens } => {
                if let Some(flight) = state.flights.get_mut(&ticket) {
                    flight.reused = reused_tokens;
                    flight.waiters[0].started = Some(now);
                }
            }
            Event::Token { ticket, .. } => {
                self.control.tokens.fetch_add(1, Ordering::Relaxed);
                if let Some(flight) = state.flights.get_mut(&ticket) {
                    flight.first_token.get_or_insert(now);
                }
            }
            Event::Finished { ticket, completion } => {
                let Some(flight) = state.remove(ticket) else { return };
                if let Some(started) = flight.waiters[0].started {
                    state.served = (
                        state.served.0 + 1,
                        state.served.1 + now.saturating_duration_since(started),
                    );
                }
                let kept = Arc::new(CachedAnswer::of(completion, flight.json, &*self.encoder));
                if let (Some(cache), Some(key)) = (&mut self.cache, flight.key) {
                    cache.put(key, kept.clone(), kept.bytes());
                }
                for (n, waiter) in flight.waiters.iter().enumerate() {
                    // Each generated token but the last one goes through a forward pass of its own.
                    let rows =
                        waiter.prompt_tokens - flight.reused + kept.tokens.len().saturating_sub(1);
                    let part = Part {
                        outcome: Ok(kept.clone()),
                        cached: n > 0,
                        forward_rows: if n > 0 { 0 } else { rows },
                        started: waiter.started,
                        first_token: flight.first_token,
                    };
                    state.answer(waiter, part, self.control);
                }
            }
            Event::Failed { ticket, code, message } => {
                let Some(flight) = state.remove(ticket) else { return };
                for waiter in &flight.waiters {
                    let outcome = Err(RecordError::new(code, &message));
                    let part = Part {
                        outcome,
                        cached: false,
                        forward_rows: 0,
                        started: waiter.started,
                        first_token: None,
                    };
                    state.answer(waiter, part, self.control);
                }
            }
        }
    }
}

impl<T> State<'_, T> {
    fn mean_service(&self) -> Duration {
        self.served.1.checked_div(self.served.0).unwrap_or_default()
    }

    /// One of the answers to a record is there; with the last of them the record is answered.
    fn answer(&mut self, waiter: &Waiter, part: Part, control: &Control) {
        let Some(pending) = self.records.get_mut(&waiter.index) else { return };
        if let Some(place) = pending.parts.get_mut(waiter.part) {
            *place = Some(part);
        }
        if pending.parts.iter().all(Option::is_some)
            && let Some(pending) = self.records.remove(&waiter.index)
        {
            self.emit(answered(pending), control);
        }
    }

    fn remove(&mut self, ticket: Ticket) -> Option<InFlight> {
        let flight = self.flights.remove(&ticket)?;
        if let Some(key) = flight.key {
            self.by_key.remove(&key);
        }
        self.waiting -= flight.waiters.len() - 1;
        Some(flight)
    }

    fn forget(&mut self, ticket: Ticket) {
        self.remove(ticket);
    }

    /// Hands an answer out, or keeps it until its turn.
    fn emit(&mut self, (answer, with): (Answer, T), control: &Control) {
        if self.order == Order::Finished {
            return self.hand_out(answer, with, control);
        }
        self.held.insert(answer.index, (answer, with));
        while let Some((answer, with)) = self.held.remove(&self.next) {
            self.next += 1;
            self.hand_out(answer, with, control);
        }
    }

    fn hand_out(&mut self, answer: Answer, with: T, control: &Control) {
        if self.sink_closed {
            return;
        }
        self.report.count(&answer);
        control.answered.fetch_add(1, Ordering::Relaxed);
        self.sink_closed = (self.sink)(answer, with).is_break();
    }
}

fn too_long(tokens: usize, context: usize) -> RecordError {
    let message = format!(
        "the prompt has {tokens} tokens, the model's context is {context}; at most {} fit",
        context - 1
    );
    RecordError::new("prompt_too_long", message)
}

/// The reader thread's work: everything the source yields into the queue.
fn read<T: Send + 'static>(
    source: impl Iterator<Item = Input<T>> + Send + 'static,
    queue: Arc<RequestQueue<Input<T>, Ready<T>>>,
) -> impl FnOnce() + Send {
    move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            for input in source {
                if let Input::Failed(failure) = input {
                    return Some(Failed::Source(failure));
                }
                if !queue.accept(input) {
                    return None;
                }
            }
            None
        }));
        queue.end(outcome.unwrap_or(Some(Failed::Panic("reader"))));
    }
}

/// The tokenizer thread's work: ids for everything that waits.
fn tokenize<T: Send + 'static>(
    encoder: Arc<dyn Encode>,
    clock: Arc<Mutex<Clock>>,
    queue: Arc<RequestQueue<Input<T>, Ready<T>>>,
) -> impl FnOnce() + Send + 'static {
    move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            while let Some(items) = queue.take(encoder.at_once()) {
                let since = Instant::now();
                let prompts: Vec<&Prompt> = items
                    .iter()
                    .filter_map(|a| if let Input::Prompt(p, _) = &a.item { Some(p) } else { None })
                    .collect();
                let mut encoded = encoder.encode(&prompts).into_iter();
                clock
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .times
                    .add(Stage::Tokenize, since.elapsed().as_secs_f64());
                let ready = items.into_iter().map(|a| {
                    let ids = match &a.item {
                        Input::Prompt(..) => {
                            encoded.next().unwrap_or_else(|| Ok(Encoded::default()))
                        }
                        _ => Ok(Encoded::default()),
                    };
                    Accepted { index: a.index, at: a.at, item: (a.item, ids) }
                });
                queue.give(ready.collect());
            }
        }));
        if outcome.is_err() {
            queue.fail(Failed::Panic("tokenizer"));
        }
    }
}

fn spawn(
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> Result<std::thread::JoinHandle<()>, PipelineError> {
    let thread = std::thread::Builder::new().name(name.to_string()).spawn(work);
    thread.map_err(|e| PipelineError::Memory(format!("the {name} thread cannot be started: {e}")))
}

fn ms(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64() * 1e3
}

/// The answer of a record whose parts are all there.
fn answered<T>(mut pending: Pending<T>) -> (Answer, T) {
    let now = Instant::now();
    let parts: Vec<Part> = std::mem::take(&mut pending.parts).into_iter().flatten().collect();
    if let Some(error) = parts.iter().find_map(|part| part.outcome.as_ref().err()) {
        return failed(pending, error.clone());
    }
    let started = parts.iter().filter_map(|part| part.started).min().unwrap_or(now);
    // One that waits for an identical request has its first token when it began to wait, if that one's came earlier.
    let first = parts.iter().filter_map(|part| part.first_token).min().unwrap_or(now).max(started);
    let (cached, forward_rows) =
        (parts.iter().all(|part| part.cached), parts.iter().map(|part| part.forward_rows).sum());
    let mut kept = parts.into_iter().filter_map(|part| part.outcome.ok());
    let Some(chosen) = kept.next() else {
        return failed(pending, RecordError::new("internal", "no answer was asked for"));
    };
    let more: Vec<Arc<CachedAnswer>> = kept.collect();
    let all = || std::iter::once(&chosen).chain(&more);
    let incomplete = (!pending.accepts_cut && all().any(|kept| kept.incomplete)).then(|| {
        RecordError::new(
            "incomplete",
            "the answer was cut before it had its form: give more max_tokens, or a form that is shorter",
        )
    });
    let alternative = |kept: &Arc<CachedAnswer>| Alternative {
        text: kept.text.clone(),
        reasoning: kept.reasoning.clone(),
        finish_reason: kept.reason,
        logprobs: kept.logprobs.clone(),
    };
    let answer = Answer {
        index: pending.index,
        id: pending.id,
        text: chosen.text.clone(),
        reasoning: chosen.reasoning.clone(),
        json: chosen.json && !chosen.incomplete,
        choice_probs: chosen.choice_probs.clone(),
        logprobs: chosen.logprobs.clone(),
        more: more.iter().map(alternative).collect(),
        tokens: chosen.tokens.clone(),
        finish_reason: if incomplete.is_some() { FinishReason::Error } else { chosen.reason },
        greedy: chosen.greedy,
        rope: pending.rope,
        prompt_tokens: pending.prompt_tokens,
        completion_tokens: all().map(|kept| kept.tokens.len()).sum(),
        cached,
        forward_rows,
        queue_ms: ms(pending.accepted, started),
        ttft_ms: ms(pending.accepted, first),
        latency_ms: ms(pending.accepted, now),
        error: incomplete,
    };
    (answer, pending.with)
}

fn failed<T>(pending: Pending<T>, error: RecordError) -> (Answer, T) {
    let now = Instant::now();
    let started =
        pending.parts.iter().flatten().filter_map(|part| part.started).min().unwrap_or(now);
    let answer = Answer {
        index: pending.index,
        id: pending.id,
        text: String::new(),
        reasoning: None,
        json: false,
        choice_probs: None,
        logprobs: None,
        more: Vec::new(),
        tokens: Vec::new(),
        finish_reason: FinishReason::Error,
        greedy: false,
        rope: None,
        prompt_tokens: pending.prompt_tokens,
        completion_tokens: 0,
        cached: false,
        forward_rows: 0,
        queue_ms: ms(pending.accepted, started),
        ttft_ms: 0.0,
        latency_ms: ms(pending.accepted, now),
        error: Some(error),
    };
    (answer, pending.with)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::{Capacity, fake::FakeDecoder};
    use crate::engine::{
        EngineConfig, PaddingPolicy, PrefixPolicy, Sampling, SamplingPolicy, StopRules, TextDecoder,
    };
    use crate::pipeline::{Content, Generation, SourceFailure};

    /// A letter is a token; `!` cannot be encoded, `%` panics.
    struct Letters;

    impl Encode for Letters {
        fn encode(&self, prompts: &[&Prompt]) -> Vec<Result<Encoded, RecordError>> {
            let ids = |p: &&Prompt| {
                let Content::Text(text) = &p.content else {
                    return Err(RecordError::new("x", "x"));
                };
                assert!(!text.contains('%'), "told to panic");
                if text.contains('!') {
                    Err(RecordError::new("bad", text))
                } else {
                    Ok(text.bytes().map(TokenId::from).collect::<Vec<_>>().into())
                }
            };
            prompts.iter().map(ids).collect()
        }

        fn at_once(&self) -> usize {
            3
        }
    }

    struct Plain;

    impl TextDecoder for Plain {
        fn push(&mut self, token: TokenId, text: &mut String) {
            text.push_str(&format!("{token} "));
        }

        fn finish(&mut self, _text: &mut String) {}
    }

    fn engine(decoder: FakeDecoder, batching: BatchingPolicy) -> Engine {
        let config = EngineConfig {
            sampling: SamplingPolicy::GreedyBelow(0.3),
            stopping: StoppingPolicy::Early,
            padding: PaddingPolicy::Ragged,
            batching,
            prefix: PrefixPolicy::Recompute,
            batch: 3,
            chunk: 16,
            eos: [0].into(),
            fast_forward: true,
            mask_threads: 1,
        };
        Engine::new(Box::new(decoder), config, Box::new(|| Box::new(Plain)))
    }

    fn fake() -> FakeDecoder {
        FakeDecoder::new(256, Capacity { slots: 3, positions: 512, rows: 16 })
    }

    fn prompt(text: &str) -> Input<String> {
        let sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 };
        let stop = StopRules { eos: true, strings: vec![], sentence: false, repetition: false };
        let generation = Generation {
            max_tokens: 5,
            sampling,
            stop,
            system: None,
            raw: false,
            turn: crate::text::Turn::default(),
            form: Box::default(),
        };
        Input::Prompt(
            Prompt {
                id: text.into(),
                content: Content::Text(text.into()),
                generation,
                accepts_cut: false,
            },
            format!("with {text}"),
        )
    }

    struct Setup {
        engine: Engine,
        cache: Option<Lru<CachedAnswer>>,
        batching: BatchingPolicy,
        order: Order,
        /// Shared, so that a sink can stop the run that feeds it.
        control: Arc<Control>,
    }

    impl Setup {
        fn new() -> Setup {
            let batching = BatchingPolicy::Continuous;
            let control = Arc::new(Control::default());
            Setup {
                engine: engine(fake(), batching),
                cache: None,
                batching,
                order: Order::Finished,
                control,
            }
        }

        fn run(
            &mut self,
            source: impl Iterator<Item = Input<String>> + Send + 'static,
            sink: &mut dyn FnMut(Answer, String) -> ControlFlow<()>,
        ) -> Result<RunReport, PipelineError> {
            let clock = Arc::new(Mutex::new(Clock::default()));
            self.engine.observe(Box::new(clock.clone()));
            let run = Run {
                engine: &mut self.engine,
                cache: self.cache.as_mut(),
                encoder: Arc::new(Letters),
                clock,
                batching: self.batching,
                stopping: StoppingPolicy::Early,
                batch: 3,
                context: 40,
                order: self.order,
                control: &self.control,
            };
            run.run(source, sink)
        }

        fn all(&mut self, texts: &[&str]) -> (Vec<Answer>, RunReport) {
            let source: Vec<Input<String>> = texts.iter().map(|t| prompt(t)).collect();
            let mut answers = Vec::new();
            let report = self.run(source.into_iter(), &mut |a, with| {
                assert_eq!(
                    with,
                    format!("with {}", a.id),
                    "what came along comes back with its own answer"
                );
                answers.push(a);
                ControlFlow::Continue(())
            });
            (answers, report.unwrap())
        }
    }

    const TEXTS: [&str; 9] =
        ["ab", "abc", "ab", "b", "a!", "ab", "zzzzzzzzzzzzzzzzzzzzzzzzzzzz", "c", "ab"];

    #[test]
    fn every_record_is_answered_once_and_the_same_whatever_the_policies() {
        let mut expected: Option<Vec<_>> = None;
        for batching in [BatchingPolicy::Blocking, BatchingPolicy::Continuous] {
            for order in [Order::Finished, Order::Input] {
                for cached in [false, true] {
                    let cache = cached.then(|| Lru::new(10, 10_000));
                    let mut setup = Setup {
                        engine: engine(fake(), batching),
                        cache,
                        batching,
                        order,
                        ..Setup::new()
                    };
                    let (mut answers, report) = setup.all(&TEXTS);
                    assert_eq!(
                        (report.ended, report.answers, report.errors),
                        (Ended::Complete, 9, 1)
                    );
                    assert_eq!(report.cached, if cached { 3 } else { 0 });
                    if order == Order::Input {
                        assert!(answers.iter().map(|a| a.index).eq(0..9));
                    }
                    answers.sort_by_key(|a| a.index);
                    let rows: usize = answers.iter().map(|a| a.forward_rows).sum();
                    assert_eq!(rows as u64, report.stages.prefill_rows + report.stages.decode_rows);
                    for a in &answers {
                        assert!(a.queue_ms >= 0.0 && a.ttft_ms <= a.latency_ms, "{a:?}");
                        assert!(!a.cached || a.forward_rows == 0);
                    }
                    let what: Vec<_> = answers
                        .into_iter()
                        .map(|a| (a.id, a.text, a.tokens, a.finish_reason, a.error))
                        .collect();
                    assert_eq!(expected.get_or_insert_with(|| what.clone()), &what);
                }
            }
        }
    }

    #[test]
    fn a_repeated_run_is_answered_from_memory_without_a_forward_pass() {
        let mut setup = Setup { cache: Some(Lru::new(10, 10_000)), ..Setup::new() };
        setup.all(&TEXTS);
        let (answers, report) = setup.all(&["ab", "abc", "c"]);
        assert!(answers.iter().all(|a| a.cached && a.forward_rows == 0));
        assert_eq!(
            (report.stages.forward_passes, report.generated_tokens, report.cached),
            (0, 0, 3)
        );
    }

    #[test]
    fn a_prompt_past_the_context_is_an_error_with_its_length_and_near_it_is_clipped() {
        let (answers, report) = Setup::new().all(&[&"x".repeat(40), &"x".repeat(38)]);
        let error = answers[0].error.as_ref().unwrap();
        assert!(
            error.code == "prompt_too_long"
                && error.message.contains("40 tokens")
                && error.message.contains("39"),
            "{error:?}"
        );
        assert_eq!(
            (answers[1].completion_tokens, answers[1].finish_reason, report.errors),
            (2, FinishReason::Length, 1)
        );
    }

    #[test]
    fn scores_that_are_not_finite_fail_their_record_and_everybody_who_waits_for_it() {
        let decoder = fake().not_finite_after(TokenId::from(b'q'));
        let cache = Some(Lru::new(10, 10_000));
        let mut setup =
            Setup { engine: engine(decoder, BatchingPolicy::Continuous), cache, ..Setup::new() };
        let (mut answers, _) = setup.all(&["q", "a", "q", "b"]);
        answers.sort_by_key(|a| a.index);
        let failed: Vec<_> =
            answers.iter().map(|a| a.error.as_ref().map(|e| e.code.as_str())).collect();
        assert_eq!(failed, [Some("not_finite"), None, Some("not_finite"), None]);
    }

    #[test]
    fn a_panic_anywhere_ends_the_run_with_an_error_and_never_hangs() {
        let keep_quiet = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let mut nothing = |_: Answer, _: String| ControlFlow::Continue(());
        let decoder = fake().panic_at(TokenId::from(b'q'));
        let mut broken =
            Setup { engine: engine(decoder, BatchingPolicy::Continuous), ..Setup::new() };
        let in_decoder = broken.run([prompt("a"), prompt("q")].into_iter(), &mut nothing);
        let in_tokenizer = Setup::new().run([prompt("a"), prompt("%")].into_iter(), &mut nothing);
        let in_source = Setup::new()
            .run((0..).map(|i| if i < 5 { prompt("a") } else { panic!("told to") }), &mut nothing);
        std::panic::set_hook(keep_quiet);
        for outcome in [in_decoder, in_tokenizer, in_source] {
            assert!(matches!(outcome, Err(PipelineError::Internal(_))), "{outcome:?}");
        }
    }

    #[test]
    fn stopping_finishes_what_is_in_flight_and_admits_nothing_new() {
        for how in [Stopping::Drain, Stopping::Now] {
            let mut setup = Setup::new();
            let control = setup.control.clone();
            let mut answers = 0;
            let report = setup.run((0..).map(|i| prompt(&format!("{i}"))), &mut |_, _| {
                answers += 1;
                if answers == 7 {
                    control.stop(how);
                }
                ControlFlow::Continue(())
            });
            let report = report.unwrap();
            assert_eq!((report.ended, report.answers), (Ended::Stopped, answers));
            assert!(answers <= if how == Stopping::Now { 9 } else { 10 }, "{answers}");
            assert_eq!(setup.engine.in_flight() + setup.engine.queue_len(), 0);
        }
    }

    #[test]
    fn a_deadline_a_closed_sink_and_a_failing_source_end_the_run() {
        let mut setup = Setup::new();
        let deadline = Some(Instant::now() + Duration::from_millis(30));
        setup.control = Arc::new(Control::until(deadline));
        let endless = || (0..).map(|i| prompt(&format!("{i}")));
        let report = setup.run(endless(), &mut |_, _| ControlFlow::Continue(())).unwrap();
        assert_eq!(report.ended, Ended::Deadline);
        let report = Setup::new().run(endless(), &mut |_, _| ControlFlow::Break(())).unwrap();
        assert_eq!((report.ended, report.answers), (Ended::Stopped, 1));
        let line_2 = SourceFailure { message: "line 2".into(), refused: true };
        let source = [prompt("a"), Input::Failed(line_2.clone()), prompt("b")];
        let report =
            Setup::new().run(source.into_iter(), &mut |_, _| ControlFlow::Continue(())).unwrap();
        assert_eq!((report.ended, report.answers), (Ended::SourceFailed(line_2), 1));
    }

    #[test]
    fn an_endless_source_is_held_back_while_answers_wait_for_their_turn() {
        let mut setup = Setup { order: Order::Input, ..Setup::new() };
        let mut taken = 0u64;
        let counted = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let source = {
            let counted = counted.clone();
            (0..).map(move |i| {
                counted.fetch_add(1, Ordering::SeqCst);
                prompt(&format!("{i}"))
            })
        };
        setup
            .run(source, &mut |a, _| {
                assert_eq!(a.index, taken);
                taken += 1;
                // 4 batches in the queue, 4 admitted, and the one in the reader's hands.
                assert!(counted.load(Ordering::SeqCst) <= taken + 12 + 12 + 1);
                if taken == 200 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .unwrap();
    }
}

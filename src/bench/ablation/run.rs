//! The bench itself: prepare every configuration, measure what fresh processes, candle and clients have to tell, then rounds until the
//! intervals are narrow or the time is over. In: a [`Job`]. Out: a [`BenchResult`] and latency histograms. It prints nothing; a watcher is
//! told of everything that takes long, and after every round.
//!
//! The time is kept: preparing estimates a round, so that a budget without room for two is refused before anything is measured; extras get
//! what two rounds leave; no round begins that cannot end in time; and the control's deadline ends a trial that takes longer than thought.
//! Over 500 lines: one order of measurements that share a budget of time.

use super::answers::AnswerTokens;
use super::candle_baseline::Candle;
use super::plan::Plan;
use super::result::{BenchResult, CandleBaseline, ConfigFacts, Hit, Round, RowAnswers, Sample};
use super::subprocess::FreshProcess;
use super::trial::{self, BenchError};
use super::{analysis, load_generator};
use crate::bench::statistics::{self, Random};
use crate::bench::workload::Workload;
use crate::engine::Stage;
use crate::kernels::Format;
use crate::optimizations::Set;
use crate::pipeline::{
    Control, DtypePolicy, Latencies, LoadedModel, Options, Pipeline, PipelineConfig, Prompt,
    Stopping,
};
use crate::roofline::{Reference, ReferenceRates};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What to measure.
pub struct Job<'a> {
    /// The model.
    pub loaded: Arc<LoadedModel>,
    /// Of every pipeline.
    pub options: Options,
    /// The audit's starting point with the dtype asked for and the sizes.
    pub base: PipelineConfig,
    /// Which configurations, and which pairs are rows.
    pub plan: Plan,
    /// Which prompts.
    pub workload: Workload,
    /// Not more rounds than these a run; without it, as many as the time allows and the intervals need.
    pub rounds: Option<usize>,
    /// Whole runs, each with configurations prepared anew; at least one.
    pub runs: usize,
    /// Nothing begins that cannot end until then. `control` has it too.
    pub deadline: Instant,
    /// Of the orders of configurations.
    pub seed: u64,
    /// How to start fresh processes; `None`: they are left out.
    pub child: Option<FreshProcess>,
    /// Pairs of fresh processes.
    pub pairs: usize,
    /// Slices of the candle baseline; 0 leaves it out.
    pub candle_baseline: usize,
    /// Numbers of closed-loop clients.
    pub clients: Vec<usize>,
    /// By which it is stopped from outside.
    pub control: &'a Control,
}

/// What a watcher is told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum BenchProgress {
    /// This configuration is being prepared (packing, first touch).
    Preparing {
        /// Finished before.
        done: usize,
        /// In all.
        of: usize,
    },
    /// A repeated run begins.
    Run {
        /// From 0.
        run: usize,
        /// In all.
        of: usize,
    },
    /// Fresh processes are being run.
    Starts {
        /// Finished before.
        done: usize,
        /// In all.
        of: usize,
    },
    /// Candle is being measured.
    CandleBaseline,
    /// Clients are being simulated.
    Clients {
        /// How many at a time.
        clients: usize,
    },
    /// What a round takes, and how many there is time for.
    Estimate {
        /// Seconds of a round.
        round_s: f64,
        /// Rounds there is time for.
        rounds: usize,
    },
    /// A trial of this round is over.
    Trial {
        /// From 1.
        round: usize,
        /// Trials over, this one included.
        done: usize,
        /// In all.
        of: usize,
    },
    /// Rounds so far; the result is worth saving.
    Round {
        /// Rounds over.
        done: usize,
        /// Seconds of a round.
        round_s: f64,
        /// Seconds left.
        left_s: f64,
    },
}

/// A watcher; its error ends the bench.
pub type Watcher<'a> = &'a mut dyn FnMut(&BenchResult, BenchProgress) -> Result<(), BenchError>;

/// Extras may take this share of the time each.
const SHARE: f64 = 0.15;

/// Kinds of extras: fresh processes, the hit, candle, clients.
const EXTRAS: f64 = 4.0;

/// A round may take this many times its estimate.
const MARGIN: f64 = 1.25;

/// Rounds without which there is no interval.
const FEWEST: usize = 2;

/// Configurations ready to be measured.
pub struct Prepared {
    pipelines: Vec<Pipeline>,
    /// What a round will take, seconds, from short trials of every configuration.
    pub round_s: f64,
}

impl Prepared {
    /// Seconds that all runs need at least from here on.
    pub fn least_s(&self, runs: usize) -> f64 {
        runs as f64 * FEWEST as f64 * self.round_s * MARGIN
    }
}

/// Runs everything; `result` gets the measurements, `latencies` one set of histograms a configuration. On an error or an interruption
/// the whole rounds stay in `result`.
pub fn run(
    job: &Job,
    prepared: Prepared,
    result: &mut BenchResult,
    latencies: &mut Vec<Latencies>,
    watch: Watcher,
) -> Result<(), BenchError> {
    let mut random = Random::new(job.seed);
    let Prepared { mut pipelines, round_s } = prepared;
    latencies.resize_with(pipelines.len(), Latencies::default);
    let left = job.deadline.saturating_duration_since(Instant::now());
    let spare = left.as_secs_f64() - job.runs as f64 * FEWEST as f64 * round_s * MARGIN;
    let share = left.mul_f64(SHARE).min(Duration::from_secs_f64((spare / EXTRAS).max(0.0)));
    starts(job, result, &mut random, share, watch)?;
    hit(job, result, share)?;
    candle_baseline(job, result, &mut random, share, watch)?;
    load(job, result, share, watch)?;
    for run in 0..job.runs.max(1) {
        watch(result, BenchProgress::Run { run, of: job.runs })?;
        if run > 0 {
            // New pipelines in new memory: where things lie is a part of how runs differ.
            pipelines.clear();
            job.loaded.forget_unused_weights();
            result.configs.clear();
            pipelines = prepare(job, result, watch)?.pipelines;
        }
        // What is left is shared by the runs that are left.
        let left = job.deadline.saturating_duration_since(Instant::now());
        let deadline = job.deadline
            - left.mul_f64(
                (job.runs - run).saturating_sub(1) as f64 / (job.runs - run).max(1) as f64,
            );
        rounds(job, run, deadline, round_s, result, &mut pipelines, latencies, watch)?;
    }
    result.complete = true;
    Ok(())
}

fn interrupted(control: &Control) -> Result<(), BenchError> {
    if control.stopping() == Stopping::No { Ok(()) } else { Err(BenchError::Interrupted) }
}

/// Builds a pipeline for each configuration (weights of one kind are packed once) and has each answer a few tokens: the first time to
/// touch everything, then to estimate a round.
pub fn prepare(
    job: &Job,
    result: &mut BenchResult,
    watch: Watcher,
) -> Result<Prepared, BenchError> {
    let mut prepared = Prepared { pipelines: Vec::new(), round_s: 0.0 };
    let of = job.plan.configs.len();
    for config in &job.plan.configs {
        interrupted(job.control)?;
        watch(result, BenchProgress::Preparing { done: prepared.pipelines.len(), of })?;
        let mut pipeline = Pipeline::new(&job.loaded, &config.set.apply(&job.base), &job.options)?;
        let prompts: Vec<Prompt> =
            job.workload.slices.iter().flatten().take(2).cloned().map(short).collect();
        trial::run(&mut pipeline, 0, &prompts, job.control)?;
        prepared.round_s +=
            estimate(job, &trial::run(&mut pipeline, 0, &prompts, job.control)?.sample);
        result.configs.push(ConfigFacts {
            label: config.label.clone(),
            on: config.set.iter().map(|o| o.name.to_string()).collect(),
            dtype: pipeline.dtype().name.clone(),
            reason: pipeline.dtype().reason.clone(),
            kernels: pipeline.kernels().to_vec(),
        });
        prepared.pipelines.push(pipeline);
    }
    Ok(prepared)
}

/// Seconds that a slice will take, from a trial of short prompts: the prompts' tokens, the steps to the limit, and the rest by the prompt.
fn estimate(job: &Job, short: &Sample) -> f64 {
    let slices = job.workload.slices.len().max(1) as f64;
    let prompts = job.workload.slices.iter().map(Vec::len).sum::<usize>() as f64 / slices;
    let most =
        job.workload.slices.iter().flatten().map(|p| p.generation.max_tokens).max().unwrap_or(1)
            as f64;
    let (prefill, decode) = (short.stages.of(Stage::Prefill), short.stages.of(Stage::Decode));
    let answers = short.answers.max(1) as f64;
    let rest = (short.seconds - prefill - decode).max(0.0) / answers;
    // Two prompts of two tokens each: their second tokens came from one decode step.
    let steps = (prompts / job.base.sizes.batch.max(1) as f64).ceil() * most;
    prompts * (prefill / answers + rest) + steps * decode
}

fn short(mut prompt: Prompt) -> Prompt {
    prompt.generation.max_tokens = prompt.generation.max_tokens.min(2);
    prompt
}

fn warmup() -> Set {
    Set::of(|o| o.name == "warmup")
}

/// Whether there is time for an extra at all; else a note says that it was left out.
fn worth(result: &mut BenchResult, share: Duration, what: &str) -> bool {
    let worth = share > Duration::from_secs(1);
    if !worth {
        result.notes.push(format!("{what}: left out for want of time"));
    }
    worth
}

/// Warm-up, load time and peak memory, in fresh processes.
fn starts(
    job: &Job,
    result: &mut BenchResult,
    random: &mut Random,
    share: Duration,
    watch: Watcher,
) -> Result<(), BenchError> {
    let Some(child) = job.child.as_ref().filter(|_| worth(result, share, "fresh processes")) else {
        return Ok(());
    };
    let plan = &job.plan;
    let mut what = vec![("start", plan.start_set), ("everything", plan.everything_set)];
    if plan.everything_set.has("warmup") && !plan.start_set.has("warmup") {
        what.push(("start + warmup", plan.start_set.with(warmup())));
        what.push(("everything - warmup", plan.everything_set.without(warmup())));
    }
    let begin = Instant::now();
    let mut told = Ok(());
    let mut enough = |pair: usize| {
        told = watch(result, BenchProgress::Starts { done: pair, of: job.pairs })
            .and_then(|()| interrupted(job.control));
        let next = begin.elapsed().mul_f64((pair + 1) as f64 / pair.max(1) as f64);
        told.is_err() || (pair >= 1 && next > share)
    };
    let starts = child.pairs(&what, job.pairs, random, &mut enough)?;
    told?;
    let pairs = starts.len() / what.len();
    if pairs < job.pairs {
        result
            .notes
            .push(format!("fresh processes: {pairs} pairs of {} for want of time", job.pairs));
    }
    result.starts = starts;
    Ok(())
}

/// What a hit of the answer cache is worth: prompts generated one after the other, then asked again.
fn hit(job: &Job, result: &mut BenchResult, share: Duration) -> Result<(), BenchError> {
    let cached = job.plan.start_set.with(Set::of(|o| o.name == "cache"));
    let planned = job.plan.configs.iter().any(|c| c.set == cached);
    if !planned || !cached.has("cache") {
        return Ok(());
    }
    let mut pipeline = Pipeline::new(&job.loaded, &cached.apply(&job.base), &job.options)?;
    let mut seen = HashSet::new();
    let slice = job.workload.slices.iter().flatten().take(crate::bench::workload::SLICE);
    let prompts: Vec<&Prompt> =
        slice.filter(|p| seen.insert(format!("{:?}", p.content))).take(3).collect();
    pipeline.reset();
    let mut hit = Hit {
        prompts: 0,
        generated_s: 0.0,
        repeated_s: 0.0,
        forward_passes: 0,
        tokens: Some(0),
        tokenize_s: Some(0.0),
    };
    for prompt in &prompts {
        // One at least; more while a third of what extras may take lasts.
        if hit.prompts > 0 && hit.generated_s > share.as_secs_f64() / 3.0 {
            break;
        }
        let trial = trial::answer(&mut pipeline, 0, &[(*prompt).clone()], job.control)?;
        hit.prompts += 1;
        hit.generated_s += trial.sample.seconds;
        hit.tokens = hit.tokens.map(|t| t + trial.sample.generated_tokens);
    }
    for prompt in &prompts[..hit.prompts] {
        let trial = trial::answer(&mut pipeline, 0, &[(*prompt).clone()], job.control)?;
        hit.repeated_s += trial.sample.seconds;
        hit.tokenize_s = hit.tokenize_s.map(|s| s + trial.sample.stages.of(Stage::Tokenize));
        hit.forward_passes += trial.sample.stages.forward_passes;
    }
    result.hit = Some(hit);
    Ok(())
}

/// candle and our own storages on the same slices.
fn candle_baseline(
    job: &Job,
    result: &mut BenchResult,
    random: &mut Random,
    share: Duration,
    watch: Watcher,
) -> Result<(), BenchError> {
    if job.candle_baseline == 0 || !worth(result, share, "candle baseline") {
        return Ok(());
    }
    watch(result, BenchProgress::CandleBaseline)?;
    let begin = Instant::now();
    let precision = Set::of(|o| o.name == "precision");
    let mut ours = Vec::new();
    for (name, set, dtype) in [
        ("bf16-emulated (the audit's start)", Set::none(), DtypePolicy::Auto),
        ("f32", precision, DtypePolicy::Fixed(Format::F32)),
        ("bf16", precision, DtypePolicy::Fixed(Format::Bf16)),
    ] {
        let config = set.apply(&PipelineConfig { requested_dtype: dtype, ..job.base.clone() });
        let mut pipeline = Pipeline::new(&job.loaded, &config, &job.options)?;
        let prompts: Vec<Prompt> =
            job.workload.slices.iter().flatten().take(1).cloned().map(short).collect();
        trial::run(&mut pipeline, 0, &prompts, job.control)?;
        ours.push((name, pipeline));
    }
    let mut candle = match Candle::new(&job.loaded, job.base.sizes.batch) {
        Ok(candle) => Some(candle),
        Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
        Err(error) => {
            result.notes.push(format!("candle-transformers was left out: {error}"));
            None
        }
    };
    let mut names: Vec<String> = ours.iter().map(|o| o.0.to_string()).collect();
    names.extend(candle.is_some().then(|| "candle-transformers f32".to_string()));
    let mut seconds: Vec<(String, Vec<f64>)> =
        names.iter().map(|n| (n.clone(), Vec::new())).collect();
    let mut tokens: Vec<(String, Vec<u64>)> =
        names.iter().map(|n| (n.clone(), Vec::new())).collect();
    'slices: for (done, slice) in
        job.workload.slices.iter().cycle().take(job.candle_baseline).enumerate()
    {
        let each = begin.elapsed().mul_f64(1.0 / done.max(1) as f64);
        if done > 0 && begin.elapsed() + each > share {
            result.notes.push(format!(
                "candle baseline: {done} slices of {} for want of time",
                job.candle_baseline
            ));
            break;
        }
        let mut order: Vec<usize> = (0..names.len()).collect();
        random.shuffle(&mut order);
        for i in order {
            interrupted(job.control)?;
            if begin.elapsed() > share.mul_f64(1.5) {
                result.notes.push("candle baseline: cut short for want of time".into());
                break 'slices;
            }
            // One batch of each slice: candle takes its prompts one after the other, and the rounds need the time.
            let slice = &slice[..slice.len().min(job.base.sizes.batch.max(2))];
            let (s, t) = match (ours.get_mut(i), &mut candle) {
                (Some((_, pipeline)), _) => {
                    let sample = trial::run(pipeline, 0, slice, job.control)?.sample;
                    (sample.seconds, sample.generated_tokens)
                }
                (None, Some(candle)) => candle.run(slice, job.control)?,
                (None, None) => continue,
            };
            seconds[i].1.push(s);
            tokens[i].1.push(t);
        }
    }
    // A slice that not all of them ran is no comparison.
    let whole = seconds.iter().map(|s| s.1.len()).min().unwrap_or(0);
    seconds.iter_mut().for_each(|s| s.1.truncate(whole));
    tokens.iter_mut().for_each(|t| t.1.truncate(whole));
    result.candle_baseline = (whole > 0).then_some(CandleBaseline { seconds, tokens });
    drop((ours, candle));
    job.loaded.forget_unused_weights();
    Ok(())
}

/// Closed-loop clients with `queue` on and off. The answer cache stays off: the prompts come round again.
fn load(
    job: &Job,
    result: &mut BenchResult,
    share: Duration,
    watch: Watcher,
) -> Result<(), BenchError> {
    let begin = Instant::now();
    let prompts: Vec<Prompt> = job.workload.slices.iter().flatten().cloned().collect();
    let on = job
        .plan
        .everything_set
        .without(Set::of(|o| o.name == "cache"))
        .with(Set::of(|o| o.name == "queue"));
    for &clients in &job.clients {
        watch(result, BenchProgress::Clients { clients })?;
        for queue in [false, true] {
            interrupted(job.control)?;
            if begin.elapsed() > share
                || (result.clients.is_empty() && share < Duration::from_secs(1))
            {
                result.notes.push(format!(
                    "{clients} clients, queue {}: left out for want of time",
                    if queue { "on" } else { "off" }
                ));
                continue;
            }
            let set = if queue { on } else { on.without(Set::of(|o| o.name == "queue")) };
            let mut pipeline = Pipeline::new(&job.loaded, &set.apply(&job.base), &job.options)?;
            let requests = (4 * clients).clamp(12, 64);
            result.clients.push(load_generator::run(
                &mut pipeline,
                queue,
                clients,
                requests,
                &prompts,
                job.control,
            )?);
        }
    }
    Ok(())
}

/// Medians of the reference, read and multiply-add apart.
fn reference(times: &[ReferenceRates]) -> ReferenceRates {
    let median = |f: fn(&ReferenceRates) -> f64| {
        statistics::median(&times.iter().map(f).collect::<Vec<_>>()).unwrap_or(f64::NAN)
    };
    ReferenceRates { read: median(|r| r.read), fma: median(|r| r.fma) }
}

/// Rounds of one run until the intervals are narrow, the time is over or there are as many as were asked for; at least two.
#[allow(clippy::too_many_arguments)]
fn rounds(
    job: &Job,
    run: usize,
    deadline: Instant,
    estimated: f64,
    result: &mut BenchResult,
    pipelines: &mut [Pipeline],
    latencies: &mut [Latencies],
    watch: Watcher,
) -> Result<(), BenchError> {
    let fixed = Reference::new(job.base.sizes.threads);
    // Seeded anew in each run: two runs with one seed go through the same slices in the same order.
    let mut random = Random::new(job.seed ^ 0x5eed);
    let mut slices: Vec<usize> = (0..job.workload.slices.len()).collect();
    random.shuffle(&mut slices);
    let mut longest = 0.0f64;
    for done in 0.. {
        let left = deadline.saturating_duration_since(Instant::now()).as_secs_f64();
        let enough = match job.rounds {
            Some(most) => done >= most,
            None => {
                done >= FEWEST
                    && statistics::narrow_enough(
                        analysis::watched(result, run).iter().map(Vec::as_slice),
                        done,
                    )
            }
        };
        // A round that would not fit does not begin; two are needed for any interval at all.
        if enough || (done >= FEWEST && longest > left) {
            return Ok(());
        }
        let begin = Instant::now();
        let place = Place { run, done, slice: slices[done % slices.len()] };
        match round(job, place, &fixed, &mut random, result, pipelines, latencies, watch) {
            Err(BenchError::TimeOver) if done >= FEWEST => return Ok(()),
            outcome => outcome?,
        }
        longest = longest.max(begin.elapsed().as_secs_f64());
        let left = deadline.saturating_duration_since(Instant::now()).as_secs_f64();
        if done == 0 {
            let more = (left / longest.max(estimated / MARGIN).max(1e-9)) as usize;
            let rounds = job.rounds.unwrap_or(usize::MAX).min(1 + more).max(FEWEST);
            watch(result, BenchProgress::Estimate { round_s: longest, rounds })?;
        }
        watch(result, BenchProgress::Round { done: done + 1, round_s: longest, left_s: left })?;
    }
    Ok(())
}

/// Which round it is.
#[derive(Clone, Copy)]
struct Place {
    run: usize,
    done: usize,
    slice: usize,
}

/// Every configuration once on one slice, in random order, and the fixed reference beside everything-on. It counts only if it is whole.
#[allow(clippy::too_many_arguments)]
fn round(
    job: &Job,
    place: Place,
    fixed: &Reference,
    random: &mut Random,
    result: &mut BenchResult,
    pipelines: &mut [Pipeline],
    latencies: &mut [Latencies],
    watch: Watcher,
) -> Result<(), BenchError> {
    let configs = pipelines.len();
    let Place { run, done, slice } = place;
    let mut order: Vec<usize> = (0..configs).collect();
    random.shuffle(&mut order);
    let mut samples = Vec::with_capacity(configs);
    let mut answers: Vec<Vec<AnswerTokens>> = vec![Vec::new(); configs];
    let (mut references, mut measured) = (Vec::new(), Vec::with_capacity(configs));
    for (i, &config) in order.iter().enumerate() {
        interrupted(job.control)?;
        let near = config == job.plan.everything || config == job.plan.again;
        if near {
            references.extend((0..3).map(|_| fixed.time()));
        }
        let trial =
            trial::run(&mut pipelines[config], config, &job.workload.slices[slice], job.control)?;
        if near {
            references.extend((0..3).map(|_| fixed.time()));
        }
        samples.push(trial.sample);
        answers[config] = trial.answers;
        measured.push((config, trial.latencies));
        watch(result, BenchProgress::Trial { round: done + 1, done: i + 1, of: configs })?;
    }
    check_answers(job, result, &answers);
    for (config, l) in measured {
        add(&mut latencies[config], &l);
    }
    result.rounds.push(Round { run, slice, reference: reference(&references), samples });
    Ok(())
}

/// Adds a round's answers to the tallies of all pairs.
fn check_answers(job: &Job, result: &mut BenchResult, answers: &[Vec<AnswerTokens>]) {
    for row in &job.plan.rows {
        let mut pairs: Vec<_> = [row.alone, row.removed].into_iter().flatten().collect();
        pairs.dedup();
        for pair in pairs {
            let at = result
                .answers
                .iter()
                .position(|a| a.row == row.name && a.pair == pair)
                .unwrap_or_else(|| {
                    result.answers.push(RowAnswers {
                        row: row.name.clone(),
                        pair,
                        tally: Default::default(),
                    });
                    result.answers.len() - 1
                });
            result.answers[at].tally.add(&answers[pair.without], &answers[pair.with]);
        }
    }
}

fn add(to: &mut Latencies, from: &Latencies) {
    // Histograms of the same bounds can always be added.
    let _ = to.queue.add(&from.queue);
    let _ = to.ttft.add(&from.ttft);
    let _ = to.per_token.add(&from.per_token);
    let _ = to.end_to_end.add(&from.end_to_end);
}

/// The starting point with `--dtype auto` timed once, so that all configurations use the same storage.
pub fn pinned(
    base: PipelineConfig,
    loaded: &Arc<LoadedModel>,
    options: &Options,
) -> Result<PipelineConfig, BenchError> {
    let precision = Set::of(|o| o.name == "precision");
    let quantized =
        loaded.model.weights.format(crate::model::Role::Query(0)).is_none_or(|f| f.is_quantized());
    if base.requested_dtype != DtypePolicy::Auto || quantized {
        return Ok(base);
    }
    let chosen = Pipeline::new(loaded, &precision.apply(&base), options)?.dtype().name.clone();
    let format = Format::ALL.into_iter().find(|f| f.name() == chosen);
    Ok(PipelineConfig {
        requested_dtype: format.map_or(base.requested_dtype, DtypePolicy::Fixed),
        ..base
    })
}

/// Token counts of the workload, for `--dry-run`: (prompts, prompt tokens).
pub fn count(loaded: &LoadedModel, workload: &Workload) -> Result<(usize, usize), BenchError> {
    let mut tokens = 0;
    let mut prompts = 0;
    for prompt in workload.slices.iter().flatten() {
        let generation = &prompt.generation;
        let ids = loaded.prompt_encoder().prompt_ids(
            &prompt.content,
            generation.system.as_deref(),
            generation.raw,
        );
        tokens += ids
            .map_err(|e| {
                BenchError::Workload(format!("prompt {}: {e}", crate::units::shown(&prompt.id)))
            })?
            .len();
        prompts += 1;
    }
    Ok((prompts, tokens))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_of_a_round_is_the_median_of_each_loop() {
        let rate = |read, fma| ReferenceRates { read, fma };
        let median = reference(&[rate(1.0, 9.0), rate(2.0, 8.0), rate(100.0, 1.0)]);
        assert_eq!((median.read, median.fma), (2.0, 8.0));
    }
}

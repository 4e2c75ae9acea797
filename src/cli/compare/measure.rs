//! What is measured of settings, in order: fresh processes, distributions of a text, rounds of forward passes.

use super::args::{Args, Budget};
use super::models::Models;
use super::{fresh, tell};
use crate::bench::compare::comparison::{self, Amounts, Auto, Comparison, Figure, SCHEMA};
use crate::bench::compare::figures::{ChildReport, child_figures, quality_figures};
use crate::bench::compare::forward::{self, Forward, ForwardPlan, Subject};
use crate::bench::compare::quality::{self, Agreement, Quality, Windows};
use crate::bench::statistics::Random;
use crate::cli::console::Console;
use crate::cli::setting::Setting;
use crate::cli::{Failure, results};
use crate::decoder::Decoder;
use crate::machine::{Activity, Busy, Machine};
use crate::pipeline::{DtypePolicy, Pipeline};
use crate::roofline::{Effort, Limits, Work};
use crate::units::{seconds, shown_path};
use std::time::Instant;

/// Rounds between two looks at the machine's limits.
const PROBE_EVERY: usize = 2;

/// What a comparison is made of.
pub struct CompareJob<'a> {
    /// The flags.
    pub args: &'a Args,
    /// At least one; the first is the reference.
    pub settings: &'a [Setting],
    /// Their models.
    pub models: &'a Models,
    /// Where it runs.
    pub machine: Machine,
    /// The text; without it quality is left out.
    pub windows: Option<&'a Windows>,
    /// What the time allows.
    pub budget: &'a Budget,
    /// When the process began.
    pub begin: Instant,
}

/// Measures everything.
pub fn measure(job: CompareJob, console: &mut Console) -> Result<Comparison, Failure> {
    let args = job.args;
    let activity = Activity::now();
    let threads = job.settings.iter().map(|s| s.shared.sizes().threads).max().unwrap_or(1);
    tell(args, console, "measuring the machine's limits");
    let mut limits =
        Limits::measure(threads, if args.quick { Effort::Quick } else { Effort::Thorough });
    let mut random = Random::new(args.shared.seed ^ 0x00c0_ffee);
    let reports = fresh::processes(args, console, job.settings, job.budget, &mut random)?;
    tell(args, console, "loading all settings side by side");
    let (mut found, mut subjects) = load(&job, console)?;
    let auto = auto(job.settings, job.models);
    if let Some(windows) = job.windows {
        tell(
            args,
            console,
            &format!("{} tokens of text with every setting", windows.predictions()),
        );
        distributions(windows, &reports, &mut found, &mut subjects)?;
    }
    tell(args, console, "rounds of forward passes");
    let forward = passes(&job, threads, &mut limits, &mut subjects)?;
    let cached = cached_bytes(&job.machine);
    for (s, setting) in found.iter_mut().enumerate() {
        let mut figures = forward.figures(s, &subjects[s], &limits, cached);
        figures.extend(child_figures(&reports[s], &reports[0], s == 0));
        figures.extend(quality_figures(setting.agreement.as_ref(), setting.quality.as_ref()));
        figures.sort_by_key(|f: &Figure| f.measure);
        setting.figures = figures;
    }
    let busy = activity.zip(Activity::now()).and_then(|(a, b)| b.since(&a));
    let first = &job.models.of(&job.settings[0]).model;
    Ok(Comparison {
        kind: "compare".into(),
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION").into(),
        commit: results::commit(),
        command: std::env::args().collect(),
        started: results::utc_now(),
        model: first.name.clone(),
        model_digest: first.digest.clone(),
        limits,
        busy,
        quick: args.quick,
        rounds: forward.rounds,
        amounts: forward.amounts,
        auto,
        settings: found,
        notes: notes(&job, &forward, busy),
        machine: job.machine,
    })
}

/// Every setting in memory, with what is known of it without a measurement.
fn load(
    job: &CompareJob,
    console: &mut Console,
) -> Result<(Vec<comparison::MeasuredSetting>, Vec<Subject>), Failure> {
    let (mut found, mut subjects) = (Vec::new(), Vec::new());
    for s in job.settings {
        let loaded = job.models.of(s);
        let pipeline = Pipeline::new(loaded, &s.config(), &s.shared.options())?;
        for note in &pipeline.dtype().notes {
            console.detail(format!("llmopt: {}: {note}", s.name));
        }
        let formats = pipeline.formats().clone();
        let dtype = pipeline.dtype().clone();
        let mut reason = dtype.reason.clone();
        dtype.notes.iter().for_each(|n| reason.push_str(&format!("; {n}")));
        let sizes = s.shared.sizes();
        found.push(comparison::MeasuredSetting {
            name: s.name.clone(),
            flags: s.flags(),
            parameters: Some(crate::model::parameters(&loaded.model.spec)),
            dtype: dtype.name,
            dtype_reason: reason,
            threads: sizes.threads,
            batch: sizes.batch,
            kernels: pipeline.kernels().to_vec(),
            bytes_per_token: Work::decode(&loaded.model.spec, &formats, 1).weight_bytes,
            figures: Vec::new(),
            agreement: None,
            quality: None,
        });
        let decoder = pipeline.into_decoder();
        subjects.push(Subject {
            name: s.name.clone(),
            batch: s.shared.batch_size,
            threads: sizes.threads,
            formats,
            decoder,
        });
    }
    Ok((found, subjects))
}

/// How answers and distributions agree with the reference's.
fn distributions(
    windows: &Windows,
    reports: &[Vec<ChildReport>],
    found: &mut [comparison::MeasuredSetting],
    subjects: &mut [Subject],
) -> Result<(), Failure> {
    let mut decoders: Vec<&mut dyn Decoder> =
        subjects.iter_mut().map(|s| s.decoder.as_mut() as &mut dyn Decoder).collect();
    let rows = quality::measure(&mut decoders, windows, &mut |_| {})
        .map_err(|e| Failure::failed(e.to_string()))?;
    for ((setting, rows_of), report) in found.iter_mut().zip(&rows).zip(reports) {
        setting.quality = Some(Quality::of(rows_of, &rows[0]));
        setting.agreement = Some(Agreement::of(&reports[0][0].answers, &report[0].answers));
    }
    Ok(())
}

/// Rounds of forward passes. Memory is not equally fast from minute to minute where others use it too: the limits are looked at again
/// between rounds.
fn passes(
    job: &CompareJob,
    threads: usize,
    limits: &mut Limits,
    subjects: &mut [Subject],
) -> Result<Forward, Failure> {
    let plan = ForwardPlan {
        budget: job.budget.total.saturating_sub(job.begin.elapsed()),
        least: job.budget.least,
        most: job.budget.most,
        seed: job.args.shared.seed,
    };
    let mut between = |rounds: usize, _: usize| {
        if rounds.is_multiple_of(PROBE_EVERY) {
            limits.raise(&Limits::measure(threads, Effort::Quick));
        }
    };
    forward::forward(subjects, &plan, &mut between).map_err(|e| Failure::failed(e.to_string()))
}

/// How it was measured.
fn notes(job: &CompareJob, forward: &Forward, busy: Option<Busy>) -> Vec<String> {
    let mut notes = vec![
        format!(
            "{} rounds; in each every forward measure was taken of every setting before the next one, in random order; intervals are 95 %, \
             ratios of neighbours in time.",
            forward.rounds
        ),
        "The intervals cover this run alone: several results given to compare show how far runs differ.".into(),
        "Forward passes: fixed token ids, no stop, no cache, no shared prefix. Workload: the first prompts of the built-in one, all \
         optimizations on unless the setting says otherwise."
            .into(),
        format!("It took {}.", seconds(job.begin.elapsed().as_secs_f64())),
    ];
    if forward.amounts != Amounts::FULL {
        notes.push(format!(
            "Shortened to fit the time or the model's context: decode_1 has {} steps instead of 128, decode_batch {} instead of 64 after prompts \
             of {} tokens instead of 64.",
            forward.amounts.decode, forward.amounts.batch, forward.amounts.prompt
        ));
    }
    if let Some(b) = busy {
        notes.push(format!(
            "Meanwhile other processes used {:.0} % of the machine, other guests took {:.0} %.",
            b.others * 100.0,
            b.stolen * 100.0
        ));
    }
    if job.windows.is_some() {
        let text =
            job.args.text.as_ref().map_or("prompts/perplexity.txt".into(), |p| shown_path(p));
        notes.push(format!(
            "Text for distributions: {text}, in windows that each begin with an empty context."
        ));
    }
    notes
}

/// What `--dtype auto` would choose, where only dtypes are compared; nothing if that cannot be found out.
fn auto(settings: &[Setting], models: &Models) -> Option<Auto> {
    let first = settings.first().filter(|_| settings.iter().all(Setting::is_only_dtype))?;
    let mut shared = first.shared.clone();
    shared.dtype = DtypePolicy::Auto;
    let pipeline =
        Pipeline::new(models.of(first), &shared.config(first.on), &shared.options()).ok()?;
    let dtype = pipeline.dtype();
    Some(Auto { dtype: dtype.name.clone(), reason: dtype.reason.clone() })
}

/// Bytes that the last level of caches holds for all usable cores.
fn cached_bytes(machine: &Machine) -> f64 {
    machine.caches.last().map_or(0.0, |c| {
        let instances = machine.logical_cpus.div_ceil(c.shared_by.max(1));
        (c.size.0 * instances as u64) as f64
    })
}

//! `llmopt bench`: measure what each optimization gains; write the speedup table. In: flags. Out: a new folder of results, a report on
//! standard output, an exit status. The measuring is `bench`'s, the words are `report`'s; here are files, gate and progress.

use super::args::Shared;
use super::console::{self, Console, Level};
use super::failure::status;
use super::files::Touched;
use super::loading::open_model;
use super::run::inputs::Inputs;
use super::run::progress::{Style, style};
use super::run::signals::Signals;
use super::{Failure, results};
use crate::bench::children::{self, Child};
use crate::bench::gate::{self, Thresholds};
use crate::bench::plan::{Phases, Plan};
use crate::bench::replay::{Draw, replay};
use crate::bench::result::{BenchResult, ModelFacts, SCHEMA, SCHEMA_NAME};
use crate::bench::rows::{Analysis, analyse};
use crate::bench::run::{self, Job, Progress};
use crate::bench::statistics::LEAST_ROUNDS;
use crate::bench::trial::BenchError;
use crate::bench::workload::Workload;
use crate::machine::Machine;
use crate::optimizations::Set;
use crate::pipeline::{Control, DtypePolicy, Latencies, Loaded, Options, Pipeline, PipelineConfig};
use crate::report::{self, Align, Cell, Format, Table, histograms, speedup};
use crate::roofline::{Effort, Limits};
use crate::text::prompts::Reading;
use crate::units::{counted, seconds};
use indicatif::ProgressBar;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// `bench`'s flags, as typed.
#[derive(clap::Args, Debug)]
#[command(
    mut_arg("batch_size", |a| a.default_value("3")),
    mut_arg("max_tokens", |a| a.default_value("24")),
    after_help = "Writes result.json, speedup.{md,csv,json}, report.md and latency histograms into a new folder below --out."
)]
pub struct Args {
    /// Prompt files to measure with [default: a workload that is compiled in]
    pub prompts: Vec<PathBuf>,
    /// The audit's phase to measure; `all` measures what the audit does not have, too
    #[arg(long, value_name = "P", default_value = "all", help_heading = "Plan")]
    pub phase: Phases,
    /// Measure what is lost by removing each one, with a single phase too
    #[arg(long, help_heading = "Plan", conflicts_with = "quick")]
    pub full: bool,
    /// A first look: short slices, few rounds, at most 2 minutes; refused by the gate
    #[arg(long, help_heading = "Plan")]
    pub quick: bool,
    /// Exactly this many rounds (if there is time) instead of until the intervals are narrow
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=10_000), allow_negative_numbers = true, help_heading = "Plan")]
    pub rounds: Option<u64>,
    /// Most seconds [default: 105 with --quick, 285 for a single phase, 1140 for all]
    #[arg(long, value_name = "S", value_parser = super::args::positive_seconds, allow_negative_numbers = true, help_heading = "Plan")]
    pub time_budget: Option<f64>,
    /// Closed-loop clients to simulate, such as 1,4,16; or none [default: 1,4,16 where phase 3 is measured]
    #[arg(long, value_name = "LIST", value_parser = client_list, help_heading = "Plan")]
    pub concurrency: Option<ClientList>,

    /// An earlier result.json (or its folder): fail if this run is slower than it
    #[arg(long, value_name = "FILE", help_heading = "Gate")]
    pub baseline: Option<PathBuf>,
    /// Percent that a ratio may lose against the baseline
    #[arg(long, value_name = "PCT", default_value = "10", value_parser = percent, allow_negative_numbers = true, help_heading = "Gate")]
    pub max_regression: f64,
    /// Refuse a baseline of another machine instead of comparing ratios only
    #[arg(long, requires = "baseline", help_heading = "Gate")]
    pub same_machine: bool,
    /// Fail if the total speedup is certainly below this
    #[arg(long, value_name = "X", value_parser = positive, allow_negative_numbers = true, help_heading = "Gate")]
    pub min_speedup: Option<f64>,

    /// What is written to standard output
    #[arg(long, value_name = "F", default_value = "table", help_heading = "Display")]
    pub format: Format,
    /// Where the folder of results is made
    #[arg(long, value_name = "DIR", default_value = "results", help_heading = "Display")]
    pub out: PathBuf,

    #[command(flatten)]
    pub shared: Shared,

    /// A fresh process's part: measure its first requests with this set
    #[arg(long, hide = true, value_name = "SET")]
    pub fresh_process: Option<String>,
    /// For studies of the gate: every forward pass of every configuration takes this many percent longer
    #[arg(long, hide = true, value_name = "PCT", default_value = "0", value_parser = clap::value_parser!(u32).range(..=1000))]
    pub test_delay: u32,
    /// For studies of the gate: rounds only, no fresh processes, clients or yardstick
    #[arg(long, hide = true)]
    pub rounds_only: bool,
    /// For studies of the gate: replays the recorded rounds of this result instead of measuring
    #[arg(long, hide = true, value_name = "FILE")]
    pub replay: Option<PathBuf>,
    /// With --replay: the result whose rounds are played as the run to be judged
    #[arg(long, hide = true, value_name = "FILE", requires = "replay")]
    pub replay_against: Option<PathBuf>,
}

/// What `--concurrency` lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientList(Vec<usize>);

fn client_list(text: &str) -> Result<ClientList, String> {
    if text == "none" {
        return Ok(ClientList(Vec::new()));
    }
    let one = |t: &str| t.trim().parse::<usize>().ok().filter(|n| (1..=1024).contains(n));
    let list: Option<Vec<usize>> = text.split(',').map(one).collect();
    list.map(ClientList).ok_or_else(|| "a comma-separated list of numbers from 1 to 1024; or none".into())
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse::<f64>().ok().filter(|x| *x > 0.0 && x.is_finite()).ok_or_else(|| "must be a number above 0".into())
}

fn percent(text: &str) -> Result<f64, String> {
    text.parse::<f64>().ok().filter(|x| (0.0..100.0).contains(x)).ok_or_else(|| "must be a number from 0 to below 100".into())
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Failure {
        match error {
            BenchError::Pipeline(error) => error.into(),
            BenchError::Workload(message) => Failure::usage(message),
            BenchError::Failed(message) => Failure::failed(message),
            BenchError::Interrupted => Failure::failed("interrupted"),
        }
    }
}

/// Runs it; the result is the exit status.
pub fn main(args: &Args) -> Result<u8, Failure> {
    let begun = Instant::now();
    if let Some(set) = &args.fresh_process {
        return fresh_process(args, set, begun);
    }
    if let Some(recorded) = &args.replay {
        return replays(recorded, args.replay_against.as_deref());
    }
    let mut console = Console::new(args.shared.level());
    // Everything that can be refused without the model is refused first.
    touched(args).check()?;
    let baseline =
        args.baseline.as_deref().map(BenchResult::read).transpose().map_err(|e| Failure::usage(format!("--baseline {e}")))?;
    if args.quick && (baseline.is_some() || args.min_speedup.is_some()) {
        return Err(Failure::usage(
            "--quick measures too little for a gate; leave it out, or leave out --baseline and --min-speedup",
        ));
    }
    let workload = workload(args, &mut console)?;
    let workload = if args.quick { workload.shortened() } else { workload };
    let all = args.phase == Phases::All;
    let plan = Plan::new(args.phase, (all || args.full) && !args.quick, !args.quick);
    let control = Arc::new(Control::default());
    let signals = Signals::watch(control.clone())?;
    let model = open_model(&args.shared, console.level)?;
    let machine = Machine::detect();
    let facts = ModelFacts { name: model.name.clone(), digest: model.digest.clone() };
    if let Some(before) = &baseline {
        refuse_early(before, &facts, &workload, args, &machine)?;
    }
    let loaded = Loaded::open(model)?;
    if let Some(system) = &args.shared.system {
        loaded.prompting().check_system(system).map_err(|e| Failure::usage(format!("--system: {e}")))?;
    }
    let (prompts, tokens) = run::count(&loaded, &workload)?;
    let budget = budget(args);
    let amount = format!(
        "{} with {} in {}; {}, {}; at most {}",
        counted(prompts as u64, "prompt"),
        counted(tokens as u64, "token"),
        counted(workload.slices.len() as u64, "slice"),
        counted(plan.configs.len() as u64, "configuration"),
        args.rounds
            .map_or(format!("at least {LEAST_ROUNDS} rounds if there is time"), |n| format!("{n} rounds if there is time")),
        seconds(budget)
    );
    if args.shared.dry_run {
        console.release();
        console.say(format!("llmopt: bench --phase {}: {amount}", args.phase.name()));
        return Ok(status::DONE);
    }
    let options = Options { test_delay_percent: args.test_delay, ..args.shared.options() };
    let base = pinned(args, &loaded, &options)?;
    let folder = results::Folder::new(&args.out, &format!("{}-phase-{}{}", machine.label(), args.phase.name(), quick(args)))?;
    signals.created(Some(folder.path().to_path_buf()));
    let mut result = BenchResult {
        schema_name: SCHEMA_NAME.into(),
        schema: SCHEMA,
        complete: false,
        quick: args.quick,
        started: results::utc_now(),
        command: std::env::args().collect(),
        version: env!("CARGO_PKG_VERSION").into(),
        commit: results::commit(),
        machine,
        limits: Some(Limits::measure(base.sizes.threads, Effort::Quick)),
        model: facts,
        workload: workload.facts(),
        phases: args.phase,
        threads: base.sizes.threads,
        batch: base.sizes.batch,
        seed: args.shared.seed,
        configs: Vec::new(),
        rows: plan.rows.clone(),
        start: plan.start,
        everything: plan.everything,
        again: plan.again,
        rounds: Vec::new(),
        starts: Vec::new(),
        hit: None,
        answers: Vec::new(),
        yardstick: None,
        clients: Vec::new(),
        notes: Vec::new(),
    };
    console.release();
    console.say(format!("llmopt: bench --phase {}: {amount}", args.phase.name()));
    signals.begin();
    // A signal ends the trial; analysis and report come after it.
    signals.end();
    let job = Job {
        loaded,
        options,
        base,
        plan,
        workload,
        rounds: args.rounds.map(|n| n as usize).or(args.quick.then_some(3)),
        deadline: begun + Duration::from_secs_f64(budget),
        seed: args.shared.seed,
        child: child(args)?.filter(|_| !args.rounds_only),
        pairs: 5,
        yardstick: if args.quick || args.rounds_only { 0 } else { 3 },
        clients: if args.rounds_only { Vec::new() } else { clients(args) },
        control: &control,
    };
    let mut latencies = Vec::new();
    let mut display = Display::new(style(args.shared.progress, console.level), begun);
    let outcome = run::run(&job, &mut result, &mut latencies, &mut |result, progress| {
        display.tell(progress);
        match progress {
            Progress::Round { .. } => folder.write("result.json", &result.to_json()).map_err(|f| BenchError::Failed(f.message)),
            _ => Ok(()),
        }
    });
    drop(display);
    let interrupted = signals.got();
    match outcome {
        Ok(()) => {}
        // What there is, is shown and kept.
        Err(_) if interrupted.is_some() && !result.rounds.is_empty() => {}
        Err(error) => {
            folder.remove_if_empty();
            if let Some((signal, status)) = interrupted {
                console::line(&format!("llmopt: interrupted by {signal} before the first round; nothing was measured"));
                return Ok(status);
            }
            return Err(error.into());
        }
    }
    if interrupted.is_none() {
        result.limits.iter_mut().for_each(|limits| limits.raise(&Limits::measure(job.base.sizes.threads, Effort::Quick)));
    }
    let analysis = analyse(&result);
    let report = speedup::report(&result, &analysis, &latencies);
    write(&folder, &result, &report, &latencies)?;
    // An interrupted run judges nothing; one that cannot be judged is shown all the same.
    let judged = match interrupted {
        Some(_) => Ok((vec!["no verdict: the run was interrupted".to_string()], false)),
        None => judge(args, baseline.as_ref(), &result, &analysis),
    };
    let (lines, failed, refused) = match judged {
        Ok((lines, failed)) => (lines, failed, None),
        Err(failure) => (vec![format!("no verdict: {}", failure.message)], false, Some(failure)),
    };
    summary_page(&result, &analysis, &lines);
    let printed = results::print(&report.render(args.format, results::width()));
    console.say(format!("llmopt: results are in {}", folder.shown()));
    for line in &lines {
        match failed {
            true => console::line(&format!("llmopt: {line}")),
            false => console.say(format!("llmopt: {line}")),
        }
    }
    printed?;
    match interrupted {
        Some((signal, status)) => {
            let rounds = counted(result.rounds.len() as u64, "whole round");
            console::line(&format!("llmopt: interrupted by {signal}: {rounds} kept, no verdict"));
            Ok(status)
        }
        None if refused.is_some() => refused.map_or(Ok(status::DONE), Err),
        None => Ok(if failed { status::GATE } else { status::DONE }),
    }
}

/// Every file that the command reads and writes. Results go into a folder of their own, which is new.
fn touched(args: &Args) -> Touched {
    let mut touched = Touched::default();
    args.prompts.iter().for_each(|path| touched.reads("", path));
    args.baseline.iter().for_each(|path| touched.reads("--baseline", path));
    touched.reads_model(&args.shared.model);
    args.shared.chat_template.iter().for_each(|path| touched.reads("--chat-template", path));
    touched.writes_standard_output();
    step_summary().iter().for_each(|path| touched.writes("GITHUB_STEP_SUMMARY", path));
    touched
}

/// The page that GitHub shows for a job.
fn step_summary() -> Option<PathBuf> {
    std::env::var_os("GITHUB_STEP_SUMMARY").filter(|p| !p.is_empty()).map(PathBuf::from)
}

/// A fresh process's part.
fn fresh_process(args: &Args, set: &str, begun: Instant) -> Result<u8, Failure> {
    super::leave_with_parent();
    let names = set.split('+').filter(|n| *n != "none");
    let set = Set::named(names).map_err(Failure::usage)?;
    let loaded = Loaded::open(open_model(&args.shared, Level::Quiet)?)?;
    let workload = Workload::built_in(&args.shared.generation());
    let prompts: Vec<_> = workload.slices.iter().flatten().take(2).cloned().collect();
    let config = args.shared.config(set);
    let report = children::measure(&loaded, &config, &args.shared.options(), &prompts, begun, &Control::default())?;
    let json = serde_json::to_string(&report).map_err(|e| Failure::failed(e.to_string()))?;
    results::print(&format!("{json}\n"))?;
    Ok(status::DONE)
}

/// Replays recorded rounds through the gate: how often it fails, as a table.
fn replays(recorded: &Path, against: Option<&Path>) -> Result<u8, Failure> {
    let before = BenchResult::read(recorded).map_err(|e| Failure::usage(format!("--replay {e}")))?;
    let now = against.map(BenchResult::read).transpose().map_err(|e| Failure::usage(format!("--replay-against {e}")))?;
    let columns = [
        ("draw", "Drawn as"),
        ("rounds", "Rounds"),
        ("max", "--max-regression"),
        ("failed", "Gate fails"),
        ("speed", "by speed"),
        ("n", "Replays"),
    ];
    let mut table = Table::new(&columns.map(|(key, title)| (key, title, Align::Right)));
    let mut why = String::new();
    for (draw, name) in [(Draw::Slices, "same slices"), (Draw::Blocks, "blocks")] {
        for rounds in [6, 8, 12, 24, 30] {
            let found = match replay(&before, now.as_ref(), draw, rounds, &[2.0, 3.0, 5.0, 10.0], 10_000, 1) {
                Ok(found) => found,
                Err(error) => {
                    why = error;
                    continue;
                }
            };
            for r in found {
                let share = |n: usize| format!("{:.2} %", n as f64 / r.replays as f64 * 100.0);
                table.push(vec![
                    Cell::text(name),
                    Cell::text(rounds.to_string()),
                    Cell::text(format!("{} %", r.max_regression)),
                    Cell::text(share(r.failed)),
                    Cell::text(share(r.speed)),
                    Cell::text(r.replays.to_string()),
                ]);
            }
        }
    }
    if table.rows.is_empty() {
        return Err(Failure::usage(format!("--replay: {why}")));
    }
    let what = if now.is_some() { "share of replays in which the slower side is found" } else { "share of false alarms" };
    results::print(&format!("{} recorded rounds, {what}\n{}", before.rounds.len(), report::format::markdown::table(&table)))?;
    Ok(status::DONE)
}

fn workload(args: &Args, console: &mut Console) -> Result<Workload, Failure> {
    let generation = args.shared.generation();
    if args.prompts.is_empty() {
        let mut workload = Workload::built_in(&generation);
        if let Some(limit) = args.shared.limit {
            workload.slices.truncate((limit as usize).div_ceil(crate::bench::workload::SLICE).max(1));
        }
        return Ok(workload);
    }
    let names: Vec<String> = args.prompts.iter().map(|p| p.display().to_string()).collect();
    let inputs = Inputs::open(&args.prompts, &[], Reading::default(), args.shared.limit)?;
    let mut prompts = Vec::new();
    let (tell, told) = std::sync::mpsc::channel();
    for record in inputs.records(Arc::new(args.shared.clone()), move |line| drop(tell.send(line))) {
        let (origin, prompt) = record?;
        // A record that `run` would answer with an error cannot be timed.
        prompts.push(prompt.map_err(|e| Failure::usage(format!("{}: {}", crate::units::shown(&origin.id), e.message)))?);
    }
    told.try_iter().for_each(|line| console.warn(line));
    Workload::of_prompts(&names.join(" "), prompts).map_err(Failure::usage)
}

fn quick(args: &Args) -> &'static str {
    if args.quick { "-quick" } else { "" }
}

/// Seconds for everything, from the start of the process.
fn budget(args: &Args) -> f64 {
    let usual = match (args.quick, args.phase, args.full) {
        (true, ..) => 105.0,
        (_, Phases::All, _) | (_, _, true) => 1140.0,
        _ => 285.0,
    };
    let asked = args.time_budget.unwrap_or(usual);
    args.shared.max_time.map_or(asked, |most| most.min(asked))
}

fn clients(args: &Args) -> Vec<usize> {
    let usual = match (args.quick, args.phase) {
        (false, Phases::Three | Phases::All) => vec![1, 4, 16],
        _ => Vec::new(),
    };
    args.concurrency.as_ref().map_or(usual, |c| c.0.clone())
}

/// The audit's starting point. `--dtype auto` is timed once, so that all configurations use the same storage.
fn pinned(args: &Args, loaded: &Arc<Loaded>, options: &Options) -> Result<PipelineConfig, Failure> {
    let base = args.shared.config(Set::none());
    let precision = Set::of(|o| o.name == "precision");
    let weights = &loaded.model.weights;
    let quantized = weights.format(crate::model::Role::Query(0)).is_none_or(|f| f.is_quantized());
    if base.requested_dtype != DtypePolicy::Auto || quantized {
        return Ok(base);
    }
    let chosen = Pipeline::new(loaded, &precision.apply(&base), options)?.dtype().name.clone();
    let format = crate::kernels::Format::ALL.into_iter().find(|f| f.name() == chosen);
    Ok(PipelineConfig { requested_dtype: format.map_or(base.requested_dtype, DtypePolicy::Fixed), ..base })
}

/// This program with the same flags, as a fresh process.
fn child(args: &Args) -> Result<Option<Child>, Failure> {
    let program = std::env::current_exe().map_err(|e| Failure::failed(format!("this program's own path: {e}")))?;
    let mut rest: Vec<std::ffi::OsString> = vec!["bench".into()];
    // Prompts and everything about files and gates have no part in it; the model and the numbers have.
    let shared = &args.shared;
    let mut flag = |name: &str, value: String| rest.push(format!("--{name}={value}").into());
    flag("model", shared.model.clone());
    flag("dtype", results::dtype_name(shared.dtype));
    flag("threads", shared.sizes().threads.to_string());
    flag("batch-size", shared.batch_size.to_string());
    shared.kv_memory.into_iter().for_each(|b| flag("kv-memory", b.0.to_string()));
    shared.kernels.iter().for_each(|k| flag("kernels", k.clone()));
    flag("temperature", shared.temperature.to_string());
    flag("seed", shared.seed.to_string());
    shared.system.iter().for_each(|s| flag("system", s.clone()));
    shared.chat_template.iter().for_each(|path| flag("chat-template", format!("@{}", path.display())));
    shared.template_arg.iter().for_each(|(name, value)| flag("template-arg", format!("{name}={value}")));
    if shared.raw {
        rest.push("--raw".into());
    }
    rest.push("--fresh-process".into());
    let wanted = !args.quick || matches!(args.phase, Phases::Two);
    Ok(wanted.then_some(Child { program, args: rest }))
}

/// Reasons to refuse a baseline that are known before anything is measured.
fn refuse_early(
    before: &BenchResult,
    model: &ModelFacts,
    workload: &Workload,
    args: &Args,
    machine: &Machine,
) -> Result<(), Failure> {
    let refuse = |why: String| Err(Failure::usage(format!("--baseline: {why}")));
    if before.quick {
        return refuse("it was made with --quick: too little was measured for a gate".into());
    }
    if before.model.digest != model.digest {
        return refuse(format!("it is of another model ({}, now {})", crate::units::shown(&before.model.name), model.name));
    }
    if before.workload.digest != workload.facts().digest {
        return refuse("it is of another workload or other generation settings".into());
    }
    if before.phases != args.phase {
        return refuse(format!("it measured --phase {}, this run --phase {}", before.phases.name(), args.phase.name()));
    }
    let differences = before.machine.differences(machine);
    if args.same_machine && !differences.is_empty() {
        return refuse(format!("it is of another machine (--same-machine): {}", differences.join("; ")));
    }
    Ok(())
}

/// Broken promises and gates: lines for people, and whether any fails.
fn judge(
    args: &Args,
    baseline: Option<&BenchResult>,
    result: &BenchResult,
    analysis: &Analysis,
) -> Result<(Vec<String>, bool), Failure> {
    let mut lines = Vec::new();
    let mut failed = false;
    for row in &analysis.rows {
        if let Some((promise, prompt)) = &row.broken {
            let promise = format!("{promise:?}").to_lowercase();
            lines.push(format!("answers: {}: must be {promise}, but prompt {prompt} shows others", row.name));
            failed = true;
        }
    }
    if let Some(before) = baseline {
        let thresholds = Thresholds { max_regression: args.max_regression, same_machine: args.same_machine };
        let outcome = gate::compare(before, result, thresholds).map_err(|e| Failure::usage(format!("--baseline: {e}")))?;
        if !outcome.machines.is_empty() {
            let what = outcome.machines.join("; ");
            lines.insert(0, format!("gate: another machine, so only ratios are compared ({what})"));
        }
        let slower: Vec<_> = outcome.failed().collect();
        failed |= !slower.is_empty();
        lines.extend(slower.iter().map(|c| format!("gate: {} is past --max-regression {} %", c.line(), args.max_regression)));
        if slower.is_empty() {
            let nearest = outcome.nearest().map_or(String::new(), |c| format!("; nearest is {}", c.line()));
            lines.push(format!(
                "gate: none of {} comparisons is past --max-regression {} %{nearest}",
                outcome.checks.len(),
                args.max_regression
            ));
        }
    }
    if let Some(least) = args.min_speedup {
        match gate::min_speedup(analysis, least).map_err(Failure::usage)? {
            Some(line) => {
                failed = true;
                lines.push(format!("gate: {line}"));
            }
            None => lines.push(format!("gate: the total speedup is not below --min-speedup {least}")),
        }
    }
    Ok((lines, failed))
}

/// Everything but `result.json`, which is there already, and that once more.
fn write(
    folder: &results::Folder,
    result: &BenchResult,
    report: &report::Report,
    latencies: &[Latencies],
) -> Result<(), Failure> {
    folder.write("result.json", &result.to_json())?;
    folder.write("report.md", &report.render(Format::Md, 80))?;
    folder.write("report.html", &report.page())?;
    folder.write("speedup.md", &speedup::tables(&analyse(result)))?;
    folder.write("speedup.csv", &report.render(Format::Csv, 80))?;
    folder.write("speedup.json", &report.render(Format::Json, 80))?;
    folder.write("machine.json", &format!("{:#}\n", serde_json::to_value(&result.machine).unwrap_or_default()))?;
    for (config, l) in result.configs.iter().zip(latencies) {
        let name = results::file_name(&config.label);
        for (what, histogram) in [("first-token", &l.ttft), ("per-token", &l.per_token), ("whole", &l.end_to_end)] {
            folder.write(&format!("latency/{name}.{what}.hgrm"), &histograms::hgrm(histogram))?;
            folder.write(&format!("latency/{name}.{what}.csv"), &histograms::csv(histogram))?;
        }
    }
    Ok(())
}

/// Appends the short report to the page that GitHub shows for a job; a page that cannot be written is not worth a failure.
fn summary_page(result: &BenchResult, analysis: &Analysis, gate: &[String]) {
    if let Some(path) = step_summary() {
        let text = speedup::summary(result, analysis, gate).render(Format::Md, 80);
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        let _ = file.and_then(|mut f| std::io::Write::write_all(&mut f, text.as_bytes()));
    }
}

/// Progress on stderr.
struct Display {
    style: Style,
    bar: Option<ProgressBar>,
    begun: Instant,
    last: Instant,
}

impl Display {
    fn new(style: Style, begun: Instant) -> Display {
        let bar = (style == Style::Bar).then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Display { style, bar, begun, last: begun }
    }

    fn tell(&mut self, progress: Progress) {
        let used = seconds(self.begun.elapsed().as_secs_f64());
        let (text, important) = match progress {
            Progress::Preparing { done, of } => (format!("preparing configuration {} of {of}", done + 1), false),
            Progress::Starts { done, of } => (format!("fresh processes, pair {} of {of}", done + 1), false),
            Progress::Yardstick => ("the yardstick: our storages and candle".to_string(), true),
            Progress::Clients { clients } => (counted(clients as u64, "client"), true),
            Progress::Estimate { round_s, rounds } => {
                (format!("a round takes {}, so {rounds} rounds at most", seconds(round_s)), true)
            }
            Progress::Trial { round, done, of } => (format!("round {round}, {done} of {of}, {used} used"), false),
            Progress::Round { done, round_s: _, left_s } => {
                (format!("round {done} is over, {used} used, at most {} left", seconds(left_s)), true)
            }
        };
        match (&self.bar, self.style) {
            (Some(bar), _) => bar.set_message(text),
            // Without a terminal: what matters, and a sign of life every ten seconds.
            (None, Style::Lines) if important || self.last.elapsed() > Duration::from_secs(10) => {
                self.last = Instant::now();
                console::line(&format!("llmopt: {text}"));
            }
            _ => {}
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

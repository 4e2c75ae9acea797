//! How often is the gate of `llmopt bench` wrong on this machine? Records rounds with and without a delay of every forward pass, replays
//! them through the gate, and judges whole runs. `scripts/gate-study.sh` is the whole study. In: flags. Out: result files and tables.

mod delay;
mod simulation;
#[cfg(test)]
#[path = "../../src/bench/ablation/test_data.rs"]
mod test_data;

use clap::{Parser, Subcommand};
use llmopt::bench::ablation::gate::{self, MAX_REGRESSION, Thresholds};
use llmopt::bench::ablation::plan::{Phases, Plan};
use llmopt::bench::ablation::result::{BenchResult, Facts, ModelFacts, write_whole};
use llmopt::bench::ablation::run::{self, Job};
use llmopt::bench::workload::Workload;
use llmopt::cli::args::SharedArgs;
use llmopt::decoder::Decoder;
use llmopt::machine::Machine;
use llmopt::model::{self, Environment, OpenOptions};
use llmopt::optimizations::Set;
use llmopt::pipeline::{Control, LoadedModel, Options};
use llmopt::report::{Align, Cell, Table, format::markdown};
use simulation::{Draw, replay};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A study of the gate's errors.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Measure rounds (no fresh processes, clients or candle) and keep them
    Record(Box<Record>),
    /// Replay recorded rounds through the gate: false alarms of one file, or how often the second one is found slower
    Replay { before: PathBuf, now: Option<PathBuf> },
    /// Judge one result against another; exits with 3 where the gate fails
    Gate {
        before: PathBuf,
        now: PathBuf,
        #[arg(long, default_value_t = MAX_REGRESSION)]
        max_regression: f64,
    },
}

#[derive(clap::Args)]
#[command(mut_arg("batch_size", |a| a.default_value("3")), mut_arg("max_tokens", |a| a.default_value("24")))]
struct Record {
    /// Every forward pass of every configuration takes this many percent longer; the fixed reference does not
    #[arg(long, default_value = "0", value_parser = clap::value_parser!(u32).range(..=1000))]
    delay: u32,
    /// The audit's phase
    #[arg(long, default_value = "3")]
    phase: Phases,
    /// Rounds
    #[arg(long, default_value = "24")]
    rounds: usize,
    /// The file to write
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    shared: SharedArgs,
}

/// Percent; a decoder's wrapper is a plain function.
static DELAY: AtomicU32 = AtomicU32::new(0);

fn delayed(decoder: Box<dyn Decoder>) -> Box<dyn Decoder> {
    Box::new(delay::Delayed::new(decoder, DELAY.load(Ordering::Relaxed)))
}

fn main() -> ExitCode {
    let done = match Cli::parse().what {
        What::Record(args) => record(&args).map(|()| ExitCode::SUCCESS),
        What::Replay { before, now } => {
            replays(&before, now.as_deref()).map(|()| ExitCode::SUCCESS)
        }
        What::Gate { before, now, max_regression } => judge(&before, &now, max_regression),
    };
    done.unwrap_or_else(|error| {
        eprintln!("gate_study: {error}");
        ExitCode::from(2)
    })
}

fn record(args: &Record) -> Result<(), String> {
    let options = OpenOptions { progress: None, environment: Environment::from_process() };
    let model = model::open(&args.shared.model, &options).map_err(|e| e.to_string())?;
    let facts = ModelFacts {
        name: model.name.clone(),
        digest: model.digest.clone(),
        parameters: Some(llmopt::model::parameters(&model.spec)),
    };
    let loaded = LoadedModel::open(model).map_err(|e| e.to_string())?;
    DELAY.store(args.delay, Ordering::Relaxed);
    let options = Options { around: (args.delay > 0).then_some(delayed), ..args.shared.options() };
    let base = run::pinned(args.shared.config(Set::none()), &loaded, &options)
        .map_err(|e| e.to_string())?;
    let plan = Plan::new(args.phase, args.phase == Phases::All, true);
    let workload = Workload::built_in(&args.shared.generation());
    let facts = Facts {
        quick: false,
        started: llmopt::cli::results::utc_now(),
        commit: llmopt::cli::results::commit(),
        machine: Machine::detect(),
        limits: None,
        model: facts,
        workload: workload.facts(),
        threads: base.sizes.threads,
        batch: base.sizes.batch,
        seed: args.shared.seed,
    };
    let mut result = BenchResult::begin(facts, &plan);
    let control = Control::default();
    let job = Job {
        loaded,
        options,
        base,
        plan,
        workload,
        rounds: Some(args.rounds),
        runs: 1,
        deadline: Instant::now() + Duration::from_secs(24 * 3600),
        seed: args.shared.seed,
        child: None,
        pairs: 0,
        candle_baseline: 0,
        clients: Vec::new(),
        control: &control,
    };
    let watch = &mut |_: &BenchResult, _: run::BenchProgress| Ok(());
    let prepared = run::prepare(&job, &mut result, watch).map_err(|e| e.to_string())?;
    run::run(&job, prepared, &mut result, &mut Vec::new(), watch).map_err(|e| e.to_string())?;
    write_whole(&args.out, &result.to_json()).map_err(|e| format!("{}: {e}", args.out.display()))
}

/// Whole runs: one line, and what the gate says as the exit status.
fn judge(before: &Path, now: &Path, max_regression: f64) -> Result<ExitCode, String> {
    let (before, now) = (BenchResult::read(before)?, BenchResult::read(now)?);
    let outcome = gate::compare(&before, &now, Thresholds { max_regression, same_machine: false })?;
    let failed: Vec<String> = outcome.failed().map(|c| c.line()).collect();
    let nearest = outcome.nearest().map_or(String::new(), |c| c.line());
    match failed.is_empty() {
        true => println!("passed; nearest is {nearest}"),
        false => println!("failed: {}", failed.join("; ")),
    }
    Ok(ExitCode::from(if failed.is_empty() { 0 } else { 3 }))
}

/// How often the gate fails in replays, as a table.
fn replays(recorded: &Path, against: Option<&Path>) -> Result<(), String> {
    let before = BenchResult::read(recorded)?;
    let now = against.map(BenchResult::read).transpose()?;
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
        for rounds in [3, 6, 8, 12, 24, 30] {
            let found = match replay(
                &before,
                now.as_ref(),
                draw,
                rounds,
                &[2.0, 3.0, 5.0, 10.0, 20.0],
                10_000,
                1,
            ) {
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
        return Err(why);
    }
    let what = if now.is_some() {
        "share of replays in which the slower side is found"
    } else {
        "share of false alarms"
    };
    println!("{} recorded rounds, {what}\n{}", before.rounds.len(), markdown::table(&table));
    Ok(())
}

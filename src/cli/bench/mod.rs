//! `llmopt bench`: measure what each optimization gains; write the speedup table. In: flags. Out: a new folder of results, a report on
//! standard output, an exit status. The measuring is `bench`'s, the words are `report`'s; here is the order in which things happen.

mod args;
mod display;
mod fresh;
mod judge;
mod ready;
mod written;

pub use args::Args;

use super::console::{self, Console};
use super::failure::status;
use super::progress::style;
use super::{Failure, results};
use crate::bench::ablation::analysis::analyse;
use crate::bench::ablation::result::BenchResult;
use crate::bench::ablation::run::{self, BenchProgress, Job, Prepared};
use crate::bench::ablation::trial::BenchError;
use crate::pipeline::Latencies;
use crate::report::speedup;
use crate::roofline::{Effort, Limits};
use crate::units::counted;
use display::BenchDisplay;
use judge::Judged;
use ready::Ready;
use std::time::Instant;

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Failure {
        match error {
            BenchError::Pipeline(error) => error.into(),
            BenchError::Workload(message) => Failure::usage(message),
            BenchError::Failed(message) => Failure::failed(message),
            BenchError::Interrupted => Failure::failed("interrupted"),
            error @ BenchError::TimeOver => {
                Failure::failed(format!("{error}; more --time-budget would work"))
            }
        }
    }
}

/// Runs it; the result is the exit status.
pub fn main(args: &Args) -> Result<u8, Failure> {
    let begun = Instant::now();
    if let Some(set) = &args.fresh_process {
        return fresh::process(args, set, begun);
    }
    let mut console = Console::new(args.shared.level());
    let ready = Ready::new(args, &mut console, begun)?;
    let announce = format!("llmopt: bench --phase {}: {}", args.phase.name(), ready.amount);
    if args.shared.dry_run {
        console.release();
        console.say(announce);
        return Ok(status::DONE);
    }
    let (job, mut result) = ready.job(args)?;
    let mut display = BenchDisplay::new(style(args.shared.progress, console.level), begun);
    let prepared = run::prepare(&job, &mut result, &mut |_, progress| {
        display.quietly(progress);
        Ok(())
    });
    let prepared = match prepared {
        Err(BenchError::TimeOver) => {
            return ready.enough_time(args, None, begun).map(|()| status::DONE);
        }
        other => other?,
    };
    ready.enough_time(args, Some(&prepared), begun)?;
    let folder = folder(args, &ready)?;
    console.release();
    console.say(announce);
    ready.signals.begin();
    // A signal ends the trial; analysis and report come after it.
    ready.signals.end();
    let mut latencies = Vec::new();
    let outcome = measure(&job, prepared, &folder, &mut result, &mut latencies, &mut display);
    drop(display);
    let interrupted = ready.signals.got();
    if let Err(error) = outcome
        && (interrupted.is_none() || result.rounds.is_empty())
    {
        folder.remove_if_empty();
        let Some((signal, status)) = interrupted else { return Err(error.into()) };
        console::line(&format!(
            "llmopt: interrupted by {signal} before the first whole round: nothing was measured, no verdict"
        ));
        return Ok(status);
    }

    let analysis = analyse(&result);
    let report = speedup::report(&result, &analysis, &latencies);
    written::all(&folder, &result, &report, &latencies)?;
    let judged = match interrupted {
        Some((signal, _)) => {
            Judged::interrupted(args, &analysis, &format!("the run was interrupted by {signal}"))
        }
        None => Judged::of(args, ready.baseline.as_ref(), &result, &analysis),
    };
    written::junit(&folder, &judged)?;
    written::summary_page(&result, &analysis, &judged.lines);
    let printed = results::print(&report.render(args.format, results::width()));
    console.say(format!("llmopt: results are in {}", folder.shown()));
    for line in &judged.lines {
        match judged.failed {
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
        None => judged.status(),
    }
}

/// The new folder of results; an early signal takes it away again.
fn folder(args: &Args, ready: &Ready) -> Result<results::Folder, Failure> {
    let quick = if args.quick { "-quick" } else { "" };
    let name = format!("{}-phase-{}{quick}", ready.machine.label(), args.phase.name());
    let folder = results::Folder::new(&args.out, &name)?;
    ready.signals.created(Some(folder.path().to_path_buf()));
    Ok(folder)
}

/// All runs; whole rounds are on the disk as they end.
fn measure(
    job: &Job,
    prepared: Prepared,
    folder: &results::Folder,
    result: &mut BenchResult,
    latencies: &mut Vec<Latencies>,
    display: &mut BenchDisplay,
) -> Result<(), BenchError> {
    let look = || Limits::measure(job.base.sizes.threads, Effort::Quick);
    result.limits = Some(look());
    run::run(job, prepared, result, latencies, &mut |result, progress| {
        display.tell(progress);
        match progress {
            BenchProgress::Round { .. } => folder
                .write("result.json", &result.to_json())
                .map_err(|f| BenchError::Failed(f.message)),
            _ => Ok(()),
        }
    })?;
    // Memory is not equally fast from minute to minute where others use it too.
    if Instant::now() < job.deadline {
        result.limits.iter_mut().for_each(|limits| limits.raise(&look()));
    }
    Ok(())
}

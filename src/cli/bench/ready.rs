//! Everything that can be refused before anything is measured, cheapest first: flags, files, the model, the baseline, the time.

use super::{Args, fresh};
use crate::bench::ablation::plan::{Phases, Plan};
use crate::bench::ablation::result::{BenchResult, Facts, ModelFacts};
use crate::bench::ablation::run::{self, Job, Prepared};
use crate::bench::statistics::MIN_ROUNDS;
use crate::bench::workload::Workload;
use crate::cli::console::Console;
use crate::cli::inputs::Inputs;
use crate::cli::loading::open_model;
use crate::cli::signals::Signals;
use crate::cli::{Failure, results};
use crate::machine::Machine;
use crate::optimizations::Set;
use crate::pipeline::{Control, LoadedModel};
use crate::text::prompts::Reading;
use crate::units::{counted, seconds};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is certain before anything is measured.
pub struct Ready {
    /// The result to be judged against.
    pub baseline: Option<BenchResult>,
    /// How much is measured, for people.
    pub amount: String,
    /// Configurations and their rows.
    pub plan: Plan,
    /// Where it all runs.
    pub machine: Machine,
    /// Signals ask for the end through it, and the time budget ends it.
    pub control: Arc<Control>,
    /// What was caught so far.
    pub signals: Arc<Signals>,
    /// The end of the time budget.
    pub deadline: Instant,
    model: ModelFacts,
    workload: Workload,
    loaded: Arc<LoadedModel>,
}

/// Kept of the budget for the last files and the report.
const LAST: f64 = 1.0;

impl Ready {
    /// Refuses what can be refused.
    pub fn new(args: &Args, console: &mut Console, begun: Instant) -> Result<Ready, Failure> {
        args.touched().check()?;
        let baseline = args.baseline.as_deref().map(BenchResult::read).transpose();
        let baseline = baseline.map_err(|e| Failure::usage(format!("--baseline {e}")))?;
        let workload = workload(args, console)?;
        let workload = if args.quick { workload.shortened() } else { workload };
        let plan = Plan::new(
            args.phase,
            (args.phase == Phases::All || args.full) && !args.quick,
            !args.quick,
        );
        let deadline = begun + Duration::from_secs_f64((args.budget() - LAST).max(0.0));
        let control = Arc::new(Control::until(Some(deadline)));
        let signals = Signals::watch(control.clone())?;
        let model = open_model(&args.shared, console.level)?;
        let machine = Machine::detect();
        let facts = ModelFacts {
            name: model.name.clone(),
            digest: model.digest.clone(),
            parameters: Some(crate::model::parameters(&model.spec)),
        };
        if let Some(before) = &baseline {
            refuse_early(before, &facts, &workload, args, &machine)?;
        }
        let loaded = LoadedModel::open(model)?;
        if let Some(system) = &args.shared.system {
            loaded
                .prompt_encoder()
                .check_system(system)
                .map_err(|e| Failure::usage(format!("--system: {e}")))?;
        }
        let amount = amount(args, &plan, &workload, run::count(&loaded, &workload)?);
        Ok(Ready {
            baseline,
            amount,
            plan,
            machine,
            control,
            signals,
            deadline,
            model: facts,
            workload,
            loaded,
        })
    }

    /// The job, and a result without any measurement.
    pub fn job(&self, args: &Args) -> Result<(Job<'_>, BenchResult), Failure> {
        let options = args.shared.options();
        let base = run::pinned(args.shared.config(Set::none()), &self.loaded, &options)?;
        let facts = Facts {
            quick: args.quick,
            started: results::utc_now(),
            commit: results::commit(),
            machine: self.machine.clone(),
            limits: None,
            model: self.model.clone(),
            workload: self.workload.facts(),
            threads: base.sizes.threads,
            batch: base.sizes.batch,
            seed: args.shared.seed,
        };
        let result = BenchResult::begin(facts, &self.plan);
        let job = Job {
            loaded: self.loaded.clone(),
            options,
            base,
            plan: self.plan.clone(),
            workload: self.workload.clone(),
            rounds: args.rounds.map(|n| n as usize).or(args.quick.then_some(3)),
            runs: args.repeat as usize,
            deadline: self.deadline,
            seed: args.shared.seed,
            child: fresh::child(args)?,
            pairs: 5,
            candle_baseline: if args.quick { 0 } else { 3 },
            clients: args.clients(),
            control: &self.control,
        };
        Ok((job, result))
    }

    /// Refuses a time that cannot hold two rounds of every run, with the least that can; `prepared` is none where it was over before
    /// anything could be told of a round.
    pub fn enough_time(
        &self,
        args: &Args,
        prepared: Option<&Prepared>,
        begun: Instant,
    ) -> Result<(), Failure> {
        let least = prepared.map(|p| p.least_s(args.repeat as usize));
        if least
            .is_some_and(|least| Instant::now() + Duration::from_secs_f64(least) <= self.deadline)
        {
            return Ok(());
        }
        let runs = if args.repeat > 1 {
            format!(" of each of {} runs", args.repeat)
        } else {
            String::new()
        };
        let typed = match (args.shared.max_time, args.time_budget) {
            (Some(most), asked) if asked.is_none_or(|a| most <= a) => format!("--max-time {most}"),
            (_, Some(asked)) => format!("--time-budget {asked}"),
            _ => format!("the usual time budget of {} s", args.budget()),
        };
        let flag = if typed.starts_with("--max-time") { "--max-time" } else { "--time-budget" };
        let configurations = counted(self.plan.configs.len() as u64, "configuration");
        let rest = match least {
            Some(least) => {
                let needed = (begun.elapsed().as_secs_f64() + least + LAST).ceil();
                format!(
                    ", which take about {} here; at least {flag} {needed:.0} would do",
                    seconds(least)
                )
            }
            None => format!(": it was over while they were made ready; more {flag} would do"),
        };
        Err(Failure::usage(format!(
            "{typed}: cannot hold two rounds{runs} of {configurations}{rest}"
        )))
    }
}

/// What is measured and how long that may take.
fn amount(
    args: &Args,
    plan: &Plan,
    workload: &Workload,
    (prompts, tokens): (usize, usize),
) -> String {
    let rounds = match args.rounds {
        Some(n) => format!("{n} rounds if there is time"),
        None if args.quick => "3 rounds".into(),
        None => format!("at least {MIN_ROUNDS} rounds if there is time"),
    };
    format!(
        "{} with {} in {}; {}, {rounds}{}; at most {}",
        counted(prompts as u64, "prompt"),
        counted(tokens as u64, "token"),
        counted(workload.slices.len() as u64, "slice"),
        counted(plan.configs.len() as u64, "configuration"),
        if args.repeat > 1 { format!(", {} runs", args.repeat) } else { String::new() },
        seconds(args.budget())
    )
}

fn workload(args: &Args, console: &mut Console) -> Result<Workload, Failure> {
    let generation = args.shared.generation();
    if args.prompts.is_empty() {
        let mut workload = Workload::built_in(&generation);
        if let Some(limit) = args.shared.limit {
            workload
                .slices
                .truncate((limit as usize).div_ceil(crate::bench::workload::SLICE).max(1));
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
        prompts.push(prompt.map_err(|e| {
            Failure::usage(format!("{}: {}", crate::units::shown(&origin.id), e.message))
        })?);
    }
    told.try_iter().for_each(|line| console.warn(line));
    Workload::of_prompts(&names.join(" "), prompts).map_err(Failure::usage)
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
    if before.quick != args.quick {
        let (made, now) = if before.quick { ("with", "without") } else { ("without", "with") };
        return refuse(format!(
            "it was made {made} --quick, this run {now} it; both the same way would work"
        ));
    }
    if before.model.digest != model.digest {
        return refuse(format!(
            "it is of another model ({}, now {})",
            crate::units::shown(&before.model.name),
            model.name
        ));
    }
    if before.workload.digest != workload.facts().digest {
        return refuse("it is of another workload or other generation settings".into());
    }
    if before.phases != args.phase {
        return refuse(format!(
            "it measured --phase {}, this run --phase {}",
            before.phases.name(),
            args.phase.name()
        ));
    }
    let differences = before.machine.differences(machine);
    if args.same_machine && !differences.is_empty() {
        return refuse(format!(
            "it is of another machine (--same-machine): {}",
            differences.join("; ")
        ));
    }
    Ok(())
}

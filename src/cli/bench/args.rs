//! `bench`'s flags, as typed, and what follows from them alone.

use crate::bench::ablation::gate::{MAX_REGRESSION, QUICK_MAX_REGRESSION};
use crate::bench::ablation::plan::Phases;
use crate::cli::args::{SharedArgs, positive_seconds};
use crate::cli::files::Touched;
use crate::report::ReportFormat;
use std::path::PathBuf;

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
    /// A first look: short slices, few rounds, at most 2 minutes; its gate compares with another --quick result, more loosely
    #[arg(long, help_heading = "Plan")]
    pub quick: bool,
    /// Exactly this many rounds a run (if there is time) instead of until the intervals are narrow
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=10_000), allow_negative_numbers = true, help_heading = "Plan")]
    pub rounds: Option<u64>,
    /// Whole runs, to see how far runs of one setting differ; three or more give verdicts and gates something to go by
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u64).range(1..=100), allow_negative_numbers = true, help_heading = "Plan")]
    pub repeat: u64,
    /// Most seconds for everything [default, for each run: 105 with --quick, 285 for a single phase, 1140 for all]
    #[arg(long, value_name = "S", value_parser = positive_seconds, allow_negative_numbers = true, help_heading = "Plan")]
    pub time_budget: Option<f64>,
    /// Closed-loop clients to simulate, such as 1,4,16; or none [default: 1,4,16 where phase 3 is measured]
    #[arg(long, value_name = "LIST", value_parser = client_list, help_heading = "Plan")]
    pub concurrency: Option<ClientList>,

    /// An earlier result.json (or its folder): fail if this run is slower than it
    #[arg(long, value_name = "FILE", help_heading = "Gate")]
    pub baseline: Option<PathBuf>,
    /// Percent that a row or the speed may lose against the baseline [default: 3; 20 with --quick]
    #[arg(long, value_name = "PCT", value_parser = percent, allow_negative_numbers = true, help_heading = "Gate")]
    pub max_regression: Option<f64>,
    /// Refuse a baseline of another machine instead of comparing ratios only
    #[arg(long, requires = "baseline", help_heading = "Gate")]
    pub same_machine: bool,
    /// Fail if the total speedup is certainly below this
    #[arg(long, value_name = "X", value_parser = positive, allow_negative_numbers = true, help_heading = "Gate")]
    pub min_speedup: Option<f64>,

    /// What is written to standard output
    #[arg(long, value_name = "F", default_value = "table", help_heading = "Display")]
    pub format: ReportFormat,
    /// Where the folder of results is made
    #[arg(long, value_name = "DIR", default_value = "results", help_heading = "Display")]
    pub out: PathBuf,

    #[command(flatten)]
    pub shared: SharedArgs,

    /// A fresh process's part: measure its first requests with this set
    #[arg(long, hide = true, value_name = "SET")]
    pub fresh_process: Option<String>,
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
    list.map(ClientList)
        .ok_or_else(|| "a comma-separated list of numbers from 1 to 1024; or none".into())
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse::<f64>()
        .ok()
        .filter(|x| *x > 0.0 && x.is_finite())
        .ok_or_else(|| "must be a number above 0".into())
}

fn percent(text: &str) -> Result<f64, String> {
    text.parse::<f64>()
        .ok()
        .filter(|x| (0.0..100.0).contains(x))
        .ok_or_else(|| "must be a number from 0 to below 100".into())
}

impl Args {
    /// Seconds for everything, from the start of the process.
    pub fn budget(&self) -> f64 {
        let usual = match (self.quick, self.phase, self.full) {
            (true, ..) => 105.0,
            (_, Phases::All, _) | (_, _, true) => 1140.0,
            _ => 285.0,
        };
        // An asked budget is for everything; the usual one is for a run.
        let asked = self.time_budget.unwrap_or(usual * self.repeat as f64);
        self.shared.max_time.map_or(asked, |most| most.min(asked))
    }

    /// Percent that may be lost.
    pub fn max_regression(&self) -> f64 {
        self.max_regression.unwrap_or(if self.quick {
            QUICK_MAX_REGRESSION
        } else {
            MAX_REGRESSION
        })
    }

    /// Numbers of closed-loop clients.
    pub fn clients(&self) -> Vec<usize> {
        let usual = match (self.quick, self.phase) {
            (false, Phases::Three | Phases::All) => vec![1, 4, 16],
            _ => Vec::new(),
        };
        self.concurrency.as_ref().map_or(usual, |c| c.0.clone())
    }

    /// Every file that the command reads and writes. Results go into a folder of their own, which is new.
    pub fn touched(&self) -> Touched {
        let mut touched = Touched::default();
        self.prompts.iter().for_each(|path| touched.reads_prompts(path));
        self.baseline.iter().for_each(|path| touched.reads("--baseline", path));
        touched.reads_model(&self.shared.model);
        self.shared.chat_template.iter().for_each(|path| touched.reads("--chat-template", path));
        touched.writes_standard_output();
        step_summary().iter().for_each(|path| touched.writes("GITHUB_STEP_SUMMARY", path));
        touched
    }
}

/// The page that GitHub shows for a job.
pub fn step_summary() -> Option<PathBuf> {
    std::env::var_os("GITHUB_STEP_SUMMARY").filter(|p| !p.is_empty()).map(PathBuf::from)
}

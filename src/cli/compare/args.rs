//! `compare`'s flags, as typed, and what the time allows.

use crate::cli::args::SharedArgs;
use crate::report::ReportFormat;
use std::path::PathBuf;
use std::time::Duration;

/// `compare`'s flags, as typed.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "A setting is a dtype, or key=value,… over the flags of `run`, lists joined by '+':\n  \
                        llmopt compare f32 bf16\n  llmopt compare threads=1 threads=2\n  \
                        llmopt compare dtype=bf16 dtype=bf16,batch-size=4,without=queue+mask\n  llmopt compare old.json new.json"
)]
pub struct Args {
    /// Settings, or two or more results files or folders; the first is the reference
    #[arg(required = true, value_name = "A")]
    pub what: Vec<String>,
    /// Speed only, at most a minute
    #[arg(long, help_heading = "Compare")]
    pub quick: bool,
    /// Text for perplexity and divergence instead of the built-in one
    #[arg(long, value_name = "FILE", help_heading = "Compare")]
    pub text: Option<PathBuf>,
    /// How to show the report
    #[arg(long, value_name = "F", default_value = "table", help_heading = "Compare")]
    pub format: ReportFormat,
    /// Folder for results [default: results/; for results files: nothing is written]
    #[arg(long, value_name = "DIR", help_heading = "Compare")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub shared: SharedArgs,
    /// A fresh process of a comparison: prompts and tokens of its workload
    #[arg(long, value_names = ["PROMPTS", "TOKENS"], num_args = 2, hide = true)]
    pub child: Option<Vec<usize>>,
}

/// What the time allows.
pub struct Budget {
    /// For everything.
    pub total: Duration,
    /// For fresh processes.
    pub processes: Duration,
    /// Rounds of fresh processes.
    pub passes: usize,
    /// Prompts and tokens of each.
    pub prompts: usize,
    pub tokens: usize,
    /// Rounds of the forward passes.
    pub least: usize,
    pub most: usize,
}

impl Budget {
    /// For this many settings.
    pub fn of(args: &Args, settings: usize) -> Budget {
        let mut budget = match args.quick {
            true => Budget {
                total: Duration::from_secs(50),
                processes: Duration::from_secs(15),
                passes: 1,
                prompts: 20,
                tokens: 12,
                least: 4,
                most: 8,
            },
            false => Budget {
                total: Duration::from_secs(220),
                processes: Duration::from_secs(80),
                passes: 3,
                prompts: 24,
                tokens: 64,
                least: 5,
                most: 12,
            },
        };
        // Two settings are what the times are made for; more take longer.
        let scale = settings.max(2) as f64 / 2.0;
        budget.total = budget.total.mul_f64(if settings > 2 { scale } else { 1.0 });
        budget.processes = budget.processes.mul_f64(if settings > 2 { scale } else { 1.0 });
        if let Some(limit) = args.shared.limit {
            budget.prompts = budget.prompts.min(limit.max(1) as usize);
        }
        if let Some(most) = args.shared.max_time {
            let share = (most / budget.total.as_secs_f64()).min(1.0);
            budget.total = budget.total.mul_f64(share);
            budget.processes = budget.processes.mul_f64(share);
        }
        budget
    }
}

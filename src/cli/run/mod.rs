//! `llmopt run`: answer every prompt in the files. In: flags and prompt files. Out: a line for each answer, a summary, an exit
//! status. The order of things is the point: everything that can be refused is refused before the model is loaded, nothing in an
//! existing output changes before answers are certain to come, and a finished answer is written before the next step begins.

mod answer_json;
mod answering;
mod columns;
mod destination;
mod dry_run;
mod existing_output;
mod format;
mod format_choice;
mod journal;
mod load;
mod look_ahead;
mod output;
#[cfg(feature = "parquet")]
mod parquet;
mod record_flags;
mod resume_index;
mod structured_output;
mod summary;

use super::Failure;
use super::args::{SharedArgs, Toggles, optimizations_help};
use super::console::{self, Console};
use super::failure::status;
use super::files::Touched;
use super::inputs::Inputs;
use super::shard::Shard;
use super::signals::{self, Signals};
use crate::pipeline::{Control, Ended, PipelineConfig};
use crate::text::Constraint;
use crate::units;
use destination::Destination;
use format_choice::{OutputName, named};
use journal::JournaledOutput;
use output::PreparedOutput;
use record_flags::RecordFlags;
use resume_index::Scan;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use structured_output::StructuredOutputFlags;

/// `run`'s flags, as typed.
#[derive(clap::Args, Debug)]
#[command(after_help = examples_and_optimizations(), args_override_self = true)]
pub struct Args {
    /// Prompt files (.jsonl, .json, .csv, .tsv, .txt, .parquet; .gz and .zst of them), folders of .txt and .md; '-' is standard input
    #[arg(required_unless_present = "prompt")]
    pub prompts: Vec<PathBuf>,
    /// Answer this prompt; repeatable
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Vec<String>,
    #[command(flatten)]
    pub records: RecordFlags,
    /// Write answers here (a name in .jsonl, .csv, .tsv or .parquet, a device or a pipe) instead of to standard output
    #[arg(short, long, value_name = "FILE", help_heading = "Files")]
    pub output: Option<PathBuf>,
    /// Replace an output that exists
    #[arg(long, help_heading = "Files", conflicts_with = "resume")]
    pub overwrite: bool,
    /// Answer what an existing output lacks; its error records once more
    #[arg(long, help_heading = "Files", requires = "output")]
    pub resume: bool,
    /// Only one part of the records: I/N (0 ≤ I < N), or auto under Slurm, Kubernetes or SkyPilot
    #[arg(long, value_name = "I/N|auto", value_parser = Shard::parse, help_heading = "Amount")]
    pub shard: Option<Shard>,
    /// Write answers in the input's order [default for CSV, TSV and Parquet]
    #[arg(long, help_heading = "Files")]
    pub ordered: bool,
    /// JSON lines on a terminal too, where answers are shown as text
    #[arg(long, help_heading = "Files", conflicts_with = "output")]
    pub json_lines: bool,
    /// Write the summary to this file as JSON, with latency histograms beside it
    #[arg(long, value_name = "FILE", help_heading = "Files")]
    pub stats: Option<PathBuf>,
    #[command(flatten)]
    pub form: StructuredOutputFlags,
    #[command(flatten)]
    pub shared: SharedArgs,
    #[command(flatten)]
    pub toggles: Toggles,
}

/// Six commands as people need them, one line each.
const EXAMPLES: &str = "\
Examples:
  llmopt run prompts.jsonl -o answers.jsonl
  llmopt run tickets.csv -o out.csv --template 'Summarise: {{ ticket_text }}' --columns id,customer,answer
  llmopt run letters/ -o out.csv --system 'Answer in one sentence.'
  llmopt run big.jsonl.gz -o answers.jsonl --resume
  llmopt run big.jsonl -o part-0.jsonl --shard 0/4
  llmopt run -p 'What is the capital of France?'";

fn examples_and_optimizations() -> String {
    format!("{EXAMPLES}\n\n{}", optimizations_help())
}

/// Runs it; the result is the exit status.
pub fn main(args: &Args) -> Result<u8, Failure> {
    // What the flags and the beginnings of the files show.
    let mut run = Run::new(args)?;
    let mut inputs = run.inputs()?;
    if let Some(stats) = &args.stats {
        summary::check(stats, args.overwrite || args.resume)?;
    }
    let signals = Signals::watch(run.control.clone())?;
    let format = run.line_format(&inputs)?;
    // The output, opened and locked; nothing in it changes yet.
    let (format, mut prepared) = match run.open_output(&mut inputs, format)? {
        Destination::Ready(format, prepared) => (format, prepared),
        Destination::Ended(status) => return Ok(status),
    };
    if prepared.0.as_ref().is_some_and(PreparedOutput::is_regular) {
        signals.advise(signals::RESUME);
    }
    signals.created(prepared.0.as_ref().and_then(PreparedOutput::created_path));
    // What it has already, and what is left to do.
    let (resume_index, scan) = run.read_output(prepared.0.as_ref(), &format)?;
    let ahead = run.look_ahead(&inputs, &format, &resume_index, &scan, prepared.0.as_ref())?;
    if args.resume && ahead.todo == Some(0) && !args.shared.dry_run {
        return run.complete(&mut prepared, &scan, &ahead, &inputs, &format);
    }
    // The model, and what only it can refuse.
    let (loaded, mut pipeline) = run.load()?;
    if args.shared.dry_run {
        return run.dry_run(inputs, &loaded, pipeline);
    }
    // A model of the cache has its place only now.
    run.touched.reads_model(&loaded.model.path.to_string_lossy());
    run.touched.check()?;
    if let Some(prepared) = prepared.0.as_ref() {
        run.check_settings(prepared, &scan, &pipeline.identity())?;
    }
    // From here on the output changes.
    let kept = scan.answers + ahead.kept_errors;
    let mut writer = run.commit(&mut prepared, &format, &scan, &signals)?;
    run.say_begun(&scan);
    let outcome = run.answer(&inputs, &format, resume_index, &mut pipeline, &mut writer, &ahead);
    signals.end();
    let synced = writer.sync(true);
    let outcome = outcome?;
    synced?;
    if outcome.closed {
        return Ok(status::DONE);
    }
    let stats = run.summarize(&outcome, &loaded, &pipeline, &ahead, kept);
    if let Some(failure) = outcome.failure {
        return Err(failure);
    }
    if let Some(status) = run.say_cut_short(&outcome.report, &ahead, &signals, writer.is_regular())
    {
        return Ok(status);
    }
    let errors = outcome.report.errors + ahead.kept_errors;
    if outcome.report.ended == Ended::Complete {
        run.order_output(&mut writer, &inputs, &format)?;
        run.make_from_journal(errors)?;
    }
    stats?;
    Ok(if errors > 0 { status::RECORDS } else { status::DONE })
}

/// What every step of the command needs.
struct Run<'a> {
    args: &'a Args,
    /// As typed, with the form of answers read.
    flags: Arc<SharedArgs>,
    config: PipelineConfig,
    control: Arc<Control>,
    touched: Touched,
    output_name: OutputName,
    console: Console,
    /// The file that is made at the end, where the output is a journal.
    journaled: Option<JournaledOutput>,
}

impl Run<'_> {
    /// What the flags mean; no file may have two roles.
    fn new(args: &Args) -> Result<Run<'_>, Failure> {
        let begin = Instant::now();
        let config = args.shared.config(args.toggles.set()?);
        let deadline = args.shared.max_time.map(|s| begin + Duration::from_secs_f64(s));
        let control = Arc::new(Control::until(deadline));
        let touched = touched(args);
        touched.check()?;
        let flags = Arc::new(SharedArgs { form: args.form.read()?, ..args.shared.clone() });
        let output_name = args.output.as_deref().map_or(Ok(OutputName::Lines), named)?;
        let console = Console::new(args.shared.level());
        Ok(Run { args, flags, config, control, touched, output_name, console, journaled: None })
    }

    /// The prompt files, each looked at.
    fn inputs(&self) -> Result<Inputs, Failure> {
        let Args { prompts, prompt, records, shard, .. } = self.args;
        let properties = self.properties();
        let reading = records.reading(|name| format::is_own(name, &properties), format::names())?;
        let mut inputs = Inputs::open(prompts, prompt, reading, self.args.shared.limit)?;
        inputs.take_shard(*shard);
        Ok(inputs)
    }

    /// The properties of answers that must be JSON of a schema: columns can be made of them.
    fn properties(&self) -> Vec<String> {
        self.flags.form.constraint.as_ref().map_or(Vec::new(), Constraint::properties)
    }

    /// The input's order: where it is asked for, and where rows have one.
    fn ordered(&self, inputs: &Inputs) -> bool {
        self.args.ordered || inputs.are_tables()
    }

    /// What is said once answers are certain to come.
    fn say_begun(&mut self, scan: &Scan) {
        self.console.release();
        if scan.torn > 0 {
            self.console.say(format!(
                "llmopt: a torn last record of {} was cut off",
                units::Bytes(scan.torn)
            ));
        }
        let streamed = self.args.prompts.iter().any(|path| path.as_os_str() == "-");
        if streamed && self.console.level > console::Level::Quiet {
            // A program that feeds this one waits for it.
            console::line("ready");
        }
    }
}

/// Every file that the command reads and writes, as far as it is known before the model is there.
fn touched(args: &Args) -> Touched {
    let mut touched = Touched::default();
    args.prompts.iter().for_each(|path| touched.reads_prompts(path));
    touched.reads_model(&args.shared.model);
    args.form.touch(&mut touched);
    args.shared.chat_template.iter().for_each(|path| touched.reads("--chat-template", path));
    args.records.touch(&mut touched);
    if !args.shared.dry_run {
        match &args.output {
            Some(path) => {
                touched.writes("-o", path);
                touched.writes("-o", &journal::path_beside(path));
            }
            None => touched.writes_standard_output(),
        }
        args.stats
            .iter()
            .flat_map(|stats| summary::files(stats))
            .for_each(|path| touched.writes("--stats", &path));
    }
    touched
}

//! `llmopt run`: answer every prompt in the files. In: flags and prompt files. Out: a line for each answer, a summary, an exit
//! status. The order of things is the point: everything that can be refused is refused before the model is loaded, nothing in an
//! existing output changes before answers are certain to come, and a finished answer is written before the next step begins.
//! Over 500 lines: the flags of the command and the order of its steps; to be cut after its parts have settled.

mod columns;
mod form;
mod format;
mod journal;
mod output;
#[cfg(feature = "parquet")]
mod parquet;
mod parts;
mod records;
mod resume_index;
mod summary;

use super::Failure;
use super::args::{SharedArgs, Toggles, optimizations_help};
use super::console::{self, Console};
use super::failure::status;
use super::files::Touched;
use super::inputs::{Inputs, Item};
use super::loading::open_under;
use super::progress::{self, Loading, RunDisplay};
use super::shard::Shard;
use super::signals::{self, Signals};
use crate::engine::StoppingPolicy;
use crate::pipeline::{
    Answer, Content, Control, Ended, Generation, Identity, LoadedModel, Order, Pipeline,
    PipelineConfig, RecordError, Settings, SourceFailure, clipped,
};
use crate::text::prompts::{Given, Origin};
use crate::text::{Constraint, ToEncode as Presented};
use crate::units::{self, counted};
use format::{Kind, Line, LineFormat, Source};
use journal::Goal;
use output::{Existing, PreparedOutput, WriteError, Writer};
use records::Records;
use resume_index::{RecordVerdict, Replacements, ResumeIndex, Scan};
use std::fs::File;
use std::io::{BufReader, IsTerminal};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};
use summary::Faults;

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
    pub records: Records,
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
    pub form: form::FormFlags,
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
    let begin = Instant::now();
    let config = args.shared.config(args.toggles.set()?);
    let deadline = args.shared.max_time.map(|s| begin + Duration::from_secs_f64(s));
    let control = Arc::new(Control::until(deadline));
    let touched = touched(args);
    touched.check()?;
    let flags = Arc::new(SharedArgs { form: args.form.read()?, ..args.shared.clone() });
    let named = args.output.as_deref().map_or(Ok(Named::Lines), named)?;
    let mut run = Run {
        args,
        flags,
        config,
        control,
        touched,
        console: Console::new(args.shared.level()),
        goal: None,
    };
    let properties = run.flags.form.constraint.as_ref().map_or(Vec::new(), Constraint::properties);
    let reading =
        args.records.reading(|name| format::is_own(name, &properties), format::names())?;
    let mut inputs = Inputs::open(&args.prompts, &args.prompt, reading, args.shared.limit)?;
    inputs.take_shard(args.shard);
    if let Some(stats) = &args.stats {
        summary::check(stats, args.overwrite || args.resume)?;
    }
    let signals = Signals::watch(run.control.clone())?;
    let mut format = run.format(&inputs, named)?;
    if format.ids_are_text() {
        inputs.take_ids_as_text();
    }
    let has = |wanted: fn(&Source) -> bool| format.columns().iter().any(|c| wanted(&c.source));
    let (columns, object) =
        (has(|s| matches!(s, Source::Carried(..))), has(|s| *s == Source::Input));
    let prepared = match &args.output {
        Some(path) if !args.shared.dry_run && !is_device(path) && !format.carries_resume() => {
            let format = std::mem::replace(&mut format, LineFormat::jsonl());
            let mut goal = Goal { path: path.clone(), format, existed: false };
            inputs.carry(false, columns || object);
            goal.check(args.overwrite || args.resume)?;
            if args.resume && goal.is_finished() {
                return run.finished(&inputs, &goal);
            }
            let mut journal = Abandon(Some(PreparedOutput::open(&goal.journal(), run.existing())?));
            // Another run may have made the file, and taken its journal away, until this one had the lock.
            goal.existed = goal.exists();
            let made = journal.0.as_ref().is_some_and(|journal| journal.created_path().is_some());
            if goal.existed && made && !args.overwrite {
                drop(journal);
                return if args.resume {
                    run.finished(&inputs, &goal)
                } else {
                    goal.check(false).map(|()| status::FAILED)
                };
            }
            run.goal = Some(goal);
            journal.0.take()
        }
        output => {
            let shown = args.records.columns.is_some()
                || args.records.template.is_some()
                || args.records.prompt_field.is_some();
            inputs.carry(columns, object && shown);
            match output {
                Some(path) if !args.shared.dry_run => {
                    Some(PreparedOutput::open(path, run.existing())?)
                }
                _ => None,
            }
        }
    };
    if prepared.as_ref().is_some_and(PreparedOutput::is_regular) {
        signals.advise(signals::RESUME);
    }
    signals.created(prepared.as_ref().and_then(PreparedOutput::created_path));
    // A file that was made here goes away again if the run never begins.
    let mut prepared = Abandon(prepared);
    run.all(inputs, format, &mut prepared, &signals)
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
                touched.writes(
                    "-o",
                    &Goal { path: path.clone(), format: LineFormat::jsonl(), existed: false }
                        .journal(),
                );
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

/// What a base model says to a prompt that is to be a turn of a conversation.
const NO_TEMPLATE: &str = "the model has no chat template (it is a base model): give --raw to continue texts as they stand, or --chat-template @FILE";

/// A prompt that the model can be given: a turn of a conversation needs a template, a text to be continued does not.
fn presentable(
    prompt: crate::pipeline::Prompt,
    has_template: bool,
) -> Result<crate::pipeline::Prompt, RecordError> {
    match prompt.content {
        Content::Text(_) | Content::Messages(_) if !has_template && !prompt.generation.raw => {
            Err(RecordError::new("no_chat_template", NO_TEMPLATE))
        }
        _ => Ok(prompt),
    }
}

/// What an output's name says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    /// JSON lines.
    Lines,
    Csv,
    Tsv,
    #[cfg(feature = "parquet")]
    Parquet,
}

fn is_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| !meta.is_file() && !meta.is_dir())
}

/// What an output's name says; a name that says nothing known is bad usage, unless it is that of a device or pipe.
fn named(path: &Path) -> Result<Named, Failure> {
    if is_device(path) {
        return Ok(Named::Lines);
    }
    let shown = units::shown(&path.display().to_string());
    match path.extension().map(|e| e.to_string_lossy().to_lowercase()).as_deref() {
        Some("csv") => Ok(Named::Csv),
        Some("tsv") => Ok(Named::Tsv),
        #[cfg(feature = "parquet")]
        Some("parquet") => Ok(Named::Parquet),
        #[cfg(not(feature = "parquet"))]
        Some("parquet") => Err(Failure::usage(format!("output {shown}: {}", journal::NO_PARQUET))),
        Some("jsonl") | None => Ok(Named::Lines),
        Some(other) => Err(Failure::usage(format!(
            "output {shown}: .{} is no format that can be written; a name in .jsonl, .csv, .tsv or .parquet would work",
            units::shown(other)
        ))),
    }
}

/// The most letters of a prompt that are shown.
const SHOWN: usize = 2000;

/// A prompt for people, each of its lines moved in.
fn shown_prompt(id: &str, content: &Content) -> Vec<String> {
    let text = match content {
        Content::Text(text) | Content::Completion(text) => text.clone(),
        Content::Messages(messages) => messages
            .iter()
            .map(|m| format!("[{}] {}", m.role, m.content))
            .collect::<Vec<_>>()
            .join("\n"),
    };
    let mut lines = vec![format!("llmopt: the first prompt, {}:", units::shown(id))];
    let cut: String = text.chars().take(SHOWN).collect();
    lines.extend(cut.lines().map(|line| format!("    {}", units::shown(line))));
    if cut.len() < text.len() {
        lines.push("    …".to_string());
    }
    lines
}

/// Removes what was created if it is never committed.
struct Abandon(Option<PreparedOutput>);

impl Drop for Abandon {
    fn drop(&mut self) {
        if let Some(prepared) = self.0.take() {
            prepared.abandon();
        }
    }
}

struct Run<'a> {
    args: &'a Args,
    flags: Arc<SharedArgs>,
    config: PipelineConfig,
    control: Arc<Control>,
    touched: Touched,
    console: Console,
    /// The file that is made at the end, where the output is a journal.
    goal: Option<Goal>,
}

/// What is known of the input before the model is loaded.
#[derive(Debug, Default)]
struct Plan {
    /// Records to answer; `None` for standard input.
    todo: Option<u64>,
    /// All records.
    all: Option<u64>,
    /// Error records of the output that stay.
    kept_errors: u64,
    /// Records are missing before others that are there.
    disordered: bool,
}

impl Run<'_> {
    fn existing(&self) -> Existing {
        match (self.args.overwrite, self.args.resume) {
            (true, _) => Existing::Overwrite,
            (_, true) => Existing::Resume,
            _ => Existing::Refuse,
        }
    }

    fn format(&self, inputs: &Inputs, named: Named) -> Result<LineFormat, Failure> {
        let columns = self.args.records.columns.as_ref().map(|c| &c.0[..]);
        if inputs.open_ai() {
            return match (columns, named) {
                (None, Named::Lines) => Ok(LineFormat::open_ai()),
                (Some(_), _) => Err(Failure::usage(
                    "--columns: answers to OpenAI requests have OpenAI's own form; leave it out",
                )),
                _ => Err(Failure::usage(
                    "answers to OpenAI requests are JSON lines; name an output in .jsonl",
                )),
            };
        }
        let kind = match named {
            Named::Lines => Kind::Json,
            // A file of tabs is called .tsv; that of another separator keeps it.
            Named::Csv => {
                Kind::Separated(self.args.records.delimiter.or(inputs.separator()).unwrap_or(b','))
            }
            Named::Tsv => Kind::Separated(b'\t'),
            #[cfg(feature = "parquet")]
            Named::Parquet => Kind::Parquet,
        };
        let terminal =
            self.args.output.is_none() && std::io::stdout().is_terminal() && !self.args.json_lines;
        let form = &self.flags.form;
        let properties = form.constraint.as_ref().map_or(Vec::new(), Constraint::properties);
        match (columns, kind) {
            (Some(names), kind) => LineFormat::chosen(kind, names, inputs.columns(), &properties)
                .map_err(Failure::usage),
            (None, Kind::Json) if terminal => Ok(LineFormat::text()),
            (None, Kind::Json) => Ok(LineFormat::jsonl()),
            (None, kind) => {
                let json = properties.is_empty()
                    && form.constraint.as_ref().is_some_and(Constraint::is_json);
                let extra = [
                    ("parsed", json),
                    ("choice_probs", form.choices.is_some()),
                    ("logprobs", form.logprobs.is_some()),
                ];
                let extra: Vec<&str> =
                    extra.iter().filter(|(_, wanted)| *wanted).map(|(name, _)| *name).collect();
                Ok(LineFormat::table(kind, &extra, inputs.columns()).with_properties(&properties))
            }
        }
    }

    /// The input's order: where it is asked for, and where rows have one.
    fn ordered(&self, inputs: &Inputs) -> bool {
        self.args.ordered || inputs.are_tables()
    }

    /// A file that is there without a journal, asked to be gone on with: it must have a row for each record.
    fn finished(&mut self, inputs: &Inputs, goal: &Goal) -> Result<u8, Failure> {
        let mut records = 0u64;
        for record in inputs.records(self.flags.clone(), |_| ()) {
            drop(record?);
            records += 1;
        }
        let rows = goal.rows()?;
        if rows != records {
            return Err(journal::not_complete(&goal.path, rows, records));
        }
        self.console.release();
        self.console.say(format!(
            "llmopt: the output is complete: {} kept, nothing to do",
            counted(rows, "row")
        ));
        Ok(status::DONE)
    }

    /// Ids of the input's records, as the output's format knows them.
    fn ids(
        &self,
        inputs: &Inputs,
        format: &LineFormat,
    ) -> impl Iterator<Item = Result<String, Failure>> + use<> {
        let format = format.clone();
        inputs.records(self.flags.clone(), |_| ()).map(move |record| {
            record.map(|(origin, _)| format.id_key(&origin.id, origin.id_is_number))
        })
    }

    /// Puts a complete output into the input's order, where it is to have it and was not written in it: after parts were joined.
    fn order_output(
        &self,
        writer: &mut Sink,
        inputs: &Inputs,
        format: &LineFormat,
    ) -> Result<(), Failure> {
        if !self.args.resume
            || !self.ordered(inputs)
            || !inputs.can_be_read_twice()
            || !writer.is_regular()
        {
            return Ok(());
        }
        let content = writer.content()?;
        if resume_index::in_order(format, BufReader::new(content), &mut self.ids(inputs, format))? {
            return Ok(());
        }
        writer.rewrite(|old, out| {
            resume_index::put_in_order(format, old, &mut self.ids(inputs, format), out)
        })
    }

    /// Makes the file from the journal once every record has its line.
    fn make(&self, errors: u64) -> Result<(), Failure> {
        let Some(goal) = &self.goal else { return Ok(()) };
        goal.make(errors > 0)?;
        if errors == 0 { goal.forget_journal() } else { Ok(()) }
    }

    fn generation_half(&self, generation: &Generation) -> u32 {
        Settings::generation_half(generation, self.config.sampling, self.config.stopping)
    }

    fn all(
        &mut self,
        inputs: Inputs,
        format: LineFormat,
        prepared: &mut Abandon,
        signals: &Signals,
    ) -> Result<u8, Failure> {
        let mut resume_index = ResumeIndex::default();
        let mut scan = Scan::default();
        if self.args.resume
            && let Some(prepared) = &prepared.0
        {
            let file = self.content(prepared)?;
            let length =
                file.metadata().map_err(|e| Failure::failed(format!("output: {e}")))?.len();
            scan = resume_index.read(prepared.path(), &format, BufReader::new(file), length)?;
            if let Some(hash) = scan.doubled {
                return Err(resume_index.doubled(
                    prepared.path(),
                    &format,
                    BufReader::new(self.content(prepared)?),
                    hash,
                ));
            }
            self.check_names(prepared, &scan)?;
        }
        let plan = self.look_ahead(&inputs, &format, &resume_index, &scan, prepared.0.as_ref())?;
        if self.args.resume && plan.todo == Some(0) && !self.args.shared.dry_run {
            return self.complete(prepared, &scan, &plan, &inputs, &format);
        }
        let (loaded, mut pipeline) = self.load()?;
        if self.args.shared.dry_run {
            return self.dry_run(inputs, &loaded, pipeline);
        }
        // A model of the cache has its place only now.
        self.touched.reads_model(&loaded.model.path.to_string_lossy());
        self.touched.check()?;
        if let Some(prepared) = &prepared.0 {
            self.check_settings(prepared, &scan, &pipeline.identity())?;
        }
        let kept = scan.answers + plan.kept_errors;
        let mut writer = self.commit(prepared, &format, &scan, signals)?;
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
        let outcome =
            self.answer(&inputs, &format, resume_index, &mut pipeline, &mut writer, &plan);
        signals.end();
        let synced = writer.sync(true);
        let Outcome { report, failure, closed, faults } = outcome?;
        synced?;
        if closed {
            return Ok(status::DONE);
        }
        match loaded.prompt_encoder().doubled_bos() {
            0 => {}
            n => self.console.warn(format!(
                "{} with the model's BOS token and got another in front, as the model's file asks; leave it out of raw prompts",
                if n == 1 { "1 prompt begins".to_string() } else { format!("{n} prompts begin") }
            )),
        }
        let about = summary::About {
            model: &loaded.model.name,
            dtype: pipeline.dtype(),
            kernels: pipeline.kernels(),
            config: &self.config,
            kept,
            faults: &faults,
        };
        // Of the input's own records: an output may have others besides.
        let had = plan.all.zip(plan.todo).map_or(kept, |(all, todo)| all - todo);
        let progress =
            self.args.resume.then_some(summary::RunProgress { kept: had, all: plan.all });
        for line in summary::lines(&report, &faults, progress.as_ref()) {
            self.console.say(format!("llmopt: {line}"));
        }
        let fresh = !self.args.overwrite && !self.args.resume;
        let stats = self
            .args
            .stats
            .as_ref()
            .map_or(Ok(()), |path| summary::write(path, fresh, &report, &about));
        let left = match plan.todo {
            Some(todo) => format!("{} of {todo} answered", report.answers),
            None => format!("{} answered", report.answers),
        };
        let go_on = if writer.is_regular() { "; --resume goes on" } else { "" };
        if let Some(failure) = failure {
            return Err(failure);
        }
        if let Some((signal, status)) = signals.got().filter(|_| report.ended == Ended::Stopped) {
            console::line(&format!("llmopt: interrupted by {signal}: {left}{go_on}"));
            return Ok(status);
        }
        if report.ended == Ended::Deadline {
            console::line(&format!("llmopt: --max-time is over: {left}{go_on}"));
            return Ok(status::LEFT);
        }
        if report.ended == Ended::Complete {
            self.order_output(&mut writer, &inputs, &format)?;
            self.make(report.errors + plan.kept_errors)?;
        }
        stats?;
        Ok(if report.errors + plan.kept_errors > 0 { status::RECORDS } else { status::DONE })
    }

    fn content(&self, prepared: &PreparedOutput) -> Result<File, Failure> {
        prepared
            .content()
            .map_err(|e| Failure::failed(format!("output {}: {e}", prepared.path().display())))
    }

    /// What the output's records say of their model, compared with what is known before it is loaded.
    fn check_names(&self, prepared: &PreparedOutput, scan: &Scan) -> Result<(), Failure> {
        if scan.model_halves.len() > 1 {
            let (_, line) = scan.model_halves[1];
            let path = prepared.path().display();
            return Err(Failure::usage(format!(
                "output {path}: line {line} was written with another model, dtype or template than the lines before it; name another file"
            )));
        }
        Ok(())
    }

    /// Reads the input once if it can be read twice: counts what is to be done and finds every reason to refuse the run.
    fn look_ahead(
        &mut self,
        inputs: &Inputs,
        format: &LineFormat,
        resume_index: &ResumeIndex,
        scan: &Scan,
        prepared: Option<&PreparedOutput>,
    ) -> Result<Plan, Failure> {
        let mut plan = Plan::default();
        if !inputs.can_be_read_twice() {
            return Ok(plan);
        }
        let (mut todo, mut all, mut first_new) = (0, 0, None);
        let mut matched = false;
        let mut seen = resume_index.unseen();
        let (warn, warnings) = std::sync::mpsc::channel();
        let warn = move |line: String| drop(warn.send(line));
        for record in inputs.records(self.flags.clone(), warn) {
            let mut record = record?;
            resume_index.as_known(&mut record.0);
            all += 1;
            let verdict = self.judge(&record, format, resume_index);
            matched |= verdict != RecordVerdict::New;
            if let Some(place) =
                resume_index.place(&format.id_key(&record.0.id, record.0.id_is_number))
            {
                seen.mark(place);
            }
            match verdict {
                RecordVerdict::New => {
                    todo += 1;
                    first_new.get_or_insert(record.0.id);
                }
                verdict @ (RecordVerdict::Retry | RecordVerdict::Done) => {
                    todo += u64::from(verdict == RecordVerdict::Retry);
                    plan.kept_errors +=
                        u64::from(verdict == RecordVerdict::Done && record.1.is_err());
                    // Parts that were joined stand in another order: what is missing is answered first, then all are put in order.
                    plan.disordered |= first_new.is_some();
                }
                verdict => return Err(self.conflict(verdict, &record, format, prepared)),
            }
        }
        warnings.try_iter().for_each(|line| self.console.warn(line));
        (plan.todo, plan.all) = (Some(todo), Some(all));
        if all == 0 && self.args.shard.is_some() {
            self.console.warn("this part has no records");
        }
        let whole = self.args.shard.is_none() && self.args.shared.limit.is_none();
        if self.args.ordered
            && whole
            && matched
            && seen.count < resume_index.ids()
            && let Some(prepared) = prepared
        {
            return Err(resume_index.foreign(
                prepared.path(),
                format,
                BufReader::new(self.content(prepared)?),
                &seen,
            ));
        }
        if let Some(past) = scan.first_id.as_ref().filter(|_| !matched)
            && let Some(now) = first_new
        {
            return Err(Failure::usage(format!(
                "output {}: none of its {} is of these prompts (it begins with '{}', they with '{}'); name its own prompts, another file, or --overwrite",
                prepared.map(|p| p.path().display().to_string()).unwrap_or_default(),
                counted(scan.answers + scan.errors, "record"),
                units::shown(past),
                units::shown(&now),
            )));
        }
        Ok(plan)
    }

    fn judge(
        &self,
        record: &Item,
        format: &LineFormat,
        resume_index: &ResumeIndex,
    ) -> RecordVerdict {
        judge(record, format, resume_index, &|g| self.generation_half(g))
    }

    /// The line for a record that the output has otherwise.
    fn conflict(
        &self,
        verdict: RecordVerdict,
        (origin, prompt): &Item,
        format: &LineFormat,
        prepared: Option<&PreparedOutput>,
    ) -> Failure {
        let path = self.args.output.clone().unwrap_or_default();
        let past = prepared.and_then(|p| p.content().ok()).and_then(|f| {
            ResumeIndex::look_up(
                format,
                BufReader::new(f),
                &format.id_key(&origin.id, origin.id_is_number),
            )
        });
        let line = past.as_ref().map(|(_, line)| format!("line {line}: ")).unwrap_or_default();
        let what = match (verdict, prompt, past.and_then(|(past, _)| past.settings)) {
            (RecordVerdict::OtherSettings, Ok(prompt), Some(settings)) => {
                let differs = resume_index::what_differs(
                    &prompt.generation,
                    self.config.sampling,
                    self.config.stopping,
                    settings.generation,
                );
                differs.unwrap_or_else(|| {
                    "written with other generation settings (--max-tokens, --temperature, --top-p, --top-k, --seed, --stop, --stop-on, --system, --raw, or the record's own)".into()
                })
            }
            _ => "it was written for another prompt".into(),
        };
        Failure::usage(format!(
            "output {}: {line}'{}': {what}; name another file, or --overwrite",
            path.display(),
            origin.id
        ))
    }

    /// Everything is there already. It must still be of this model, dtype and template: the model's file is read for its digest, and
    /// nothing of it is kept.
    fn complete(
        &mut self,
        prepared: &mut Abandon,
        scan: &Scan,
        plan: &Plan,
        inputs: &Inputs,
        format: &LineFormat,
    ) -> Result<u8, Failure> {
        let shared = &self.args.shared;
        let loading =
            Loading::start(progress::style(shared.progress, self.console.level), &shared.model);
        let identity = Identity::of(&open_under(&loading, shared)?, &self.config);
        drop(loading);
        if let Some(prepared) = &prepared.0 {
            self.check_settings(prepared, scan, &identity)?;
        }
        if let Some(prepared) = prepared.0.take() {
            let mut writer = prepared.commit(scan.keep, scan.newline)?;
            self.order_output(&mut writer, inputs, format)?;
        }
        self.make(plan.kept_errors)?;
        self.console.release();
        let kept = counted(scan.answers, "answer");
        self.console.say(format!("llmopt: the output is complete: {kept} kept, nothing to do"));
        Ok(if plan.kept_errors > 0 { status::RECORDS } else { status::DONE })
    }

    fn load(&mut self) -> Result<(Arc<LoadedModel>, Pipeline), Failure> {
        let shared = &self.args.shared;
        let since = Instant::now();
        let loading =
            Loading::start(progress::style(shared.progress, self.console.level), &shared.model);
        let loaded = LoadedModel::open(open_under(&loading, shared)?)?;
        if let Some(system) = &shared.system {
            loaded
                .prompt_encoder()
                .check_system(system)
                .map_err(|e| Failure::usage(format!("--system: {e}")))?;
        }
        let template = !shared.raw && loaded.prompt_encoder().has_template();
        let checked = loaded.check_form(&self.flags.form, template);
        checked.map_err(|e| Failure::usage(format!("{}: {}", self.args.form.name(), e.message)))?;
        let pipeline = Pipeline::new(&loaded, &self.config, &shared.options())?;
        drop(loading);
        let console = &mut self.console;
        if let Some(notice) = loaded.prompt_encoder().date_notice().filter(|_| !shared.raw) {
            console.warn(notice);
        }
        if !shared.raw && !loaded.prompt_encoder().has_template() {
            console.warn(NO_TEMPLATE);
        }
        if self.config.stopping == StoppingPolicy::MaxTokensOnly && !shared.stop.is_empty() {
            console.warn("--stop is ignored: 'early-stop' is off");
        }
        let dtype = pipeline.dtype();
        let (model, took) = (&loaded.model, units::seconds(since.elapsed().as_secs_f64()));
        console.detail(format!(
            "llmopt: {} ({}) loaded in {took}",
            model.name,
            crate::model::parameters(&model.spec)
        ));
        let chosen = format!("llmopt: dtype {}: {}", dtype.name, dtype.reason);
        match self.config.dtype {
            crate::pipeline::DtypePolicy::Auto => console.say(chosen),
            _ => console.detail(chosen),
        }
        for note in &dtype.notes {
            console.say(format!("llmopt: {note}"));
        }
        console.detail(format!("llmopt: kernels {}", pipeline.kernels().join(", ")));
        let sizes = &self.config.sizes;
        let positions = pipeline.positions();
        let threads = counted(sizes.threads as u64, "thread");
        let positions = counted(positions as u64, "position");
        console
            .detail(format!("llmopt: {threads}, batch size {}, room for {positions}", sizes.batch));
        Ok((loaded, pipeline))
    }

    /// The halves of the settings that need the model.
    fn check_settings(
        &mut self,
        prepared: &PreparedOutput,
        scan: &Scan,
        now: &Identity,
    ) -> Result<(), Failure> {
        let refuse = |what: String| {
            Failure::usage(format!(
                "output {}: {what}; name another file, or --overwrite",
                prepared.path().display()
            ))
        };
        let Identity { model: name, dtype, half: ours } = now;
        let other = |names: &std::collections::BTreeSet<String>, now: &str| {
            names.iter().find(|n| *n != now).cloned()
        };
        let (other_model, other_dtype) = (other(&scan.models, name), other(&scan.dtypes, dtype));
        if let Some((_, line)) = scan.model_halves.first().filter(|(half, _)| half != ours) {
            return Err(refuse(match (other_model, other_dtype) {
                (Some(then), _) => {
                    format!("line {line} was written with model {then}, this run has {name}")
                }
                (None, Some(then)) => {
                    format!("line {line} was written with dtype {then}, this run has {dtype}")
                }
                (None, None) => format!(
                    "line {line} was written with another model file or chat template under the name {name}"
                ),
            }));
        }
        if scan.bare > 0 {
            if let Some(then) = other_model {
                return Err(refuse(format!(
                    "it was written with model {then}, this run has {name}"
                )));
            }
            if let Some(then) = other_dtype {
                return Err(refuse(format!(
                    "it was written with dtype {then}, this run has {dtype}"
                )));
            }
            self.console.warn(format!(
                "{} kept without settings, matched by id, prompt, model and dtype",
                counted(scan.bare, "record")
            ));
        }
        Ok(())
    }

    /// The writer, with the output made ready: torn tail cut, header written.
    fn commit(
        &mut self,
        prepared: &mut Abandon,
        format: &LineFormat,
        scan: &Scan,
        signals: &Signals,
    ) -> Result<Sink, Failure> {
        signals.begin();
        let Some(prepared) = prepared.0.take() else {
            let stdout = crate::system::duplicate(std::io::stdout())
                .map_err(|e| Failure::failed(format!("standard output: {e}")))?;
            let mut writer = Writer::new(stdout, "(standard output)".into(), 0, false);
            return match format.header().map_or(Ok(()), |h| writer.header(&h)) {
                Ok(()) | Err(WriteError::Closed) => Ok(writer),
                Err(WriteError::Failed(failure)) => Err(failure),
            };
        };
        let mut writer = prepared.commit(scan.keep, scan.newline)?;
        match format
            .header()
            .filter(|_| scan.keep == 0)
            .map_or(Ok(()), |header| writer.header(&header))
        {
            Ok(()) | Err(WriteError::Closed) => Ok(writer),
            Err(WriteError::Failed(failure)) => Err(failure),
        }
    }

    /// Everything from the first prompt to the last answer.
    #[allow(clippy::too_many_lines, reason = "to be cut: the order of what happens around a run")]
    fn answer(
        &mut self,
        inputs: &Inputs,
        format: &LineFormat,
        resume_index: ResumeIndex,
        pipeline: &mut Pipeline,
        writer: &mut Sink,
        plan: &Plan,
    ) -> Result<Outcome, Failure> {
        let order =
            if self.ordered(inputs) && !plan.disordered { Order::Input } else { Order::Finished };
        let (matched, streamed) =
            (Arc::new(AtomicBool::new(resume_index.is_empty())), !inputs.can_be_read_twice());
        let source = {
            let (format, matched) = (format.clone(), matched.clone());
            let (sampling, stopping) = (self.config.sampling, self.config.stopping);
            let twice = inputs.can_be_read_twice();
            let level = self.console.level;
            let records = inputs.records(self.flags.clone(), move |line: String| {
                // Warnings about a file that was read before have been given then.
                if !twice && level > console::Level::Quiet {
                    console::line(&format!("llmopt: warning: {line}"));
                }
            });
            let has_template = pipeline.model().vocabulary.chat_template.is_some();
            records.filter_map(move |record| {
                let mut record = match record {
                    Ok(record) => record,
                    Err(Failure { message, status }) => {
                        let refused = status == status::USAGE;
                        return Some(crate::pipeline::Input::Failed(SourceFailure { message, refused }));
                    }
                };
                resume_index.as_known(&mut record.0);
                let half = |g: &Generation| Settings::generation_half(g, sampling, stopping);
                let verdict = judge(&record, &format, &resume_index, &half);
                matched.fetch_or(verdict != RecordVerdict::New, Ordering::Relaxed);
                let (origin, prompt) = record;
                match verdict {
                    RecordVerdict::Done => return None,
                    RecordVerdict::New | RecordVerdict::Retry => {}
                    RecordVerdict::OtherPrompt | RecordVerdict::OtherSettings => {
                        let message = format!(
                            "the output has '{}' for another prompt or other settings; name another file",
                            units::shown(&origin.id)
                        );
                        return Some(crate::pipeline::Input::Failed(SourceFailure { message, refused: true }));
                    }
                };
                let prompt = prompt.and_then(|prompt| presentable(prompt, has_template));
                let generation = prompt.as_ref().map(|p| half(&p.generation)).unwrap_or(0);
                let id = origin.id.clone();
                let with = Ticket { origin, generation, retry: verdict == RecordVerdict::Retry };
                Some(match prompt {
                    Ok(prompt) => crate::pipeline::Input::Prompt(crate::pipeline::Prompt { id, ..prompt }, with),
                    Err(error) => crate::pipeline::Input::Rejected { id, error, with },
                })
            })
        };
        let style = progress::style(self.args.shared.progress, self.console.level);
        let display = RunDisplay::start(style, self.control.clone(), plan.todo);
        let (model, dtype, half) = (
            pipeline.model().name.clone(),
            pipeline.dtype().name.clone(),
            pipeline.model_settings(),
        );
        let mut failure = None;
        let mut closed = false;
        let mut told = false;
        let level = self.console.level;
        let mut synced = Instant::now();
        let mut replacements = Replacements::default();
        let mut faults = Faults::default();
        let watch = writer.watch(self.control.clone());
        let mut sink = |answer: Answer, Ticket { origin, generation, retry }: Ticket| {
            if let Some(error) = &answer.error {
                faults.count(&error.code, answer.index, &origin.place());
            }
            let line = format.line(&Line {
                answer: &answer,
                origin: &origin,
                model: &model,
                dtype: &dtype,
                settings: Settings { model: half, generation },
                created: SystemTime::now()
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .map_or(0, |d| d.as_secs()),
            });
            if let Given::OpenAi(request) = &origin.given
                && let Some(asked) = request
                    .model
                    .as_ref()
                    .filter(|m| **m != model && !std::mem::replace(&mut told, true))
                && level > console::Level::Quiet
            {
                let text = format!(
                    "llmopt: warning: a request asks for model '{asked}'; {model} answers it, and all others like it"
                );
                display.suspend(|| console::line(&text));
            }
            let due = synced.elapsed() >= Duration::from_secs(1);
            let outcome = display
                .suspend(|| match retry {
                    true => replacements
                        .add(&format.id_key(&answer.id, origin.id_is_number), line, format, writer)
                        .map_err(WriteError::Failed),
                    false => writer.line(&line),
                })
                .and_then(|()| writer.sync(due).map_err(WriteError::Failed));
            if due {
                synced = Instant::now();
            }
            match outcome {
                Ok(()) => ControlFlow::Continue(()),
                Err(WriteError::Closed) => {
                    closed = true;
                    ControlFlow::Break(())
                }
                Err(WriteError::Failed(f)) => {
                    failure = Some(f);
                    ControlFlow::Break(())
                }
            }
        };
        let ran = pipeline.run(source, order, &self.control, &mut sink);
        failure = failure.or(replacements.write(format, writer).err());
        let report = ran?;
        failure =
            failure.or_else(|| writer.undelivered(watch.as_ref(), report.ended == Ended::Complete));
        // Prompts from a pipe cannot be looked at before they are answered.
        if streamed && report.answers > 0 && !matched.load(Ordering::Relaxed) {
            self.console.warn("none of the records that the output had is of these prompts");
        }
        if let Ended::SourceFailed(source) = &report.ended {
            // Status 2 would say that nothing was written.
            let usage = source.refused && report.answers == 0;
            let status = if usage { status::USAGE } else { status::FAILED };
            failure = failure.or(Some(Failure { status, message: source.message.clone() }));
        }
        Ok(Outcome { report, failure, closed, faults })
    }

    /// Counts prompts and tokens, times a few, and says what the whole would take.
    fn dry_run(
        &mut self,
        inputs: Inputs,
        loaded: &Arc<LoadedModel>,
        mut pipeline: Pipeline,
    ) -> Result<u8, Failure> {
        let context = loaded.model.spec.context;
        let (mut prompts, mut errors, mut tokens, mut most) = (0u64, 0u64, 0u64, 0u64);
        let mut sample = Vec::new();
        let mut first = None;
        let records = inputs.records(self.flags.clone(), |_| ());
        for record in records {
            let (_, prompt) = record?;
            let prompt =
                prompt.and_then(|p| presentable(p, loaded.prompt_encoder().has_template()));
            let ids = prompt.as_ref().ok().and_then(|p| {
                let g = &p.generation;
                let prompt = Presented {
                    content: &p.content,
                    system: g.system.as_deref(),
                    raw: g.raw,
                    turn: &g.turn,
                };
                let ids = loaded.prompt_encoder().prompt_ids_batch(&[prompt]).pop()?;
                ids.ok().filter(|ids| ids.len() < context)
            });
            prompts += 1;
            if let Ok(prompt) = &prompt
                && first.is_none()
            {
                first = Some(shown_prompt(&prompt.id, &prompt.content));
            }
            let (Some(ids), Ok(prompt)) = (ids, prompt) else {
                errors += 1;
                continue;
            };
            tokens += ids.len() as u64;
            most += clipped(prompt.generation.max_tokens, ids.len(), context) as u64;
            if sample.len() < self.config.sizes.batch {
                let generation = Generation { max_tokens: 16, ..prompt.generation };
                sample.push(crate::pipeline::Input::Prompt(
                    crate::pipeline::Prompt { generation, ..prompt },
                    (),
                ));
            }
        }
        self.console.release();
        first.into_iter().flatten().for_each(|line: String| self.console.say(line));
        let errors =
            if errors > 0 { format!(" ({errors} cannot be answered)") } else { String::new() };
        self.console.say(format!(
            "llmopt: {}{errors}, {}, at most {}",
            counted(prompts, "prompt"),
            counted(tokens, "prompt token"),
            counted(most, "answer token")
        ));
        if sample.is_empty() {
            return Ok(status::DONE);
        }
        let report =
            pipeline.run(sample.into_iter(), Order::Finished, &self.control, &mut |_, ()| {
                ControlFlow::Continue(())
            })?;
        let stages = &report.stages;
        let per_row =
            |stage, rows: u64| if rows == 0 { 0.0 } else { stages.of(stage) / rows as f64 };
        let prefill = per_row(crate::engine::Stage::Prefill, stages.prefill_rows);
        let decode = per_row(crate::engine::Stage::Decode, stages.decode_rows);
        let estimate = prefill * tokens as f64 + decode * most as f64;
        self.console.say(format!(
            "llmopt: at most about {} ({} prompt tokens/s and {} answer tokens/s, timed on a few prompts; answers that end early and repeated prompts take less)",
            units::seconds(estimate),
            units::rate(if prefill > 0.0 { 1.0 / prefill } else { 0.0 }),
            units::rate(if decode > 0.0 { 1.0 / decode } else { 0.0 }),
        ));
        Ok(status::DONE)
    }
}

/// Where answers go.
type Sink = Writer<File>;

/// What a line needs besides the answer; it travels with the prompt.
struct Ticket {
    origin: Origin,
    /// Second half of the settings.
    generation: u32,
    /// The output has an error record for it, which the answer replaces.
    retry: bool,
}

struct Outcome {
    report: crate::pipeline::RunReport,
    failure: Option<Failure>,
    /// Nobody reads standard output any more.
    closed: bool,
    faults: Faults,
}

fn judge(
    (origin, prompt): &Item,
    format: &LineFormat,
    resume_index: &ResumeIndex,
    half: &dyn Fn(&Generation) -> u32,
) -> RecordVerdict {
    let id = format.id_key(&origin.id, origin.id_is_number);
    match prompt {
        Ok(prompt) => resume_index.judge(&id, format, &origin.given, half(&prompt.generation)),
        Err(error) => resume_index.judge_rejected(&id, error),
    }
}

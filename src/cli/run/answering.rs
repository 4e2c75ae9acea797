//! Everything from the first prompt to the last answer. In: the records, what the output has of them, a pipeline. Out: a line in the output
//! for each answer as it comes, and a [`RunOutcome`].

use super::Run;
use super::format::{Line, LineFormat};
use super::load::presentable;
use super::look_ahead::{LookAhead, judge};
use super::output::{WriteError, Writer};
use super::resume_index::{RecordVerdict, Replacements, ResumeIndex};
use super::summary::{Faults, RunOutcome};
use crate::cli::Failure;
use crate::cli::console;
use crate::cli::failure::status;
use crate::cli::inputs::Inputs;
use crate::cli::progress::{self, RunDisplay};
use crate::pipeline::{
    Answer, Ended, Generation, Input, Order, Pipeline, Prompt, Settings, SourceFailure,
};
use crate::text::prompts::{Origin, OriginalPrompt};
use crate::units;
use std::fs::File;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// What a line needs besides the answer; it travels with the prompt.
struct RecordContext {
    origin: Origin,
    /// Second half of the settings.
    generation: u32,
    /// The output has an error record for it, which the answer replaces.
    retry: bool,
}

impl Run<'_> {
    /// Answers what the output lacks.
    pub fn answer(
        &mut self,
        inputs: &Inputs,
        format: &LineFormat,
        resume_index: ResumeIndex,
        pipeline: &mut Pipeline,
        writer: &mut Writer<File>,
        ahead: &LookAhead,
    ) -> Result<RunOutcome, Failure> {
        let order =
            if self.ordered(inputs) && !ahead.disordered { Order::Input } else { Order::Finished };
        let matched = Arc::new(AtomicBool::new(resume_index.is_empty()));
        let has_template = pipeline.model().vocabulary.chat_template.is_some();
        let source = self.source(inputs, format, resume_index, has_template, matched.clone());
        let style = progress::style(self.args.shared.progress, self.console.level);
        let display = RunDisplay::start(style, self.control.clone(), ahead.todo);
        let watch = writer.watch(self.control.clone());
        let mut sink = Sink {
            format,
            writer,
            display: &display,
            level: self.console.level,
            model: pipeline.model().name.clone(),
            dtype: pipeline.dtype().name.clone(),
            settings: pipeline.model_settings(),
            synced: Instant::now(),
            told_model: false,
            replacements: Replacements::default(),
            faults: Faults::default(),
            failure: None,
            closed: false,
        };
        let ran = pipeline
            .run(source, order, &self.control, &mut |answer, context| sink.take(answer, context));
        let Sink { writer, mut replacements, faults, mut failure, closed, .. } = sink;
        failure = failure.or(replacements.write(format, writer).err());
        let report = ran?;
        failure =
            failure.or_else(|| writer.undelivered(watch.as_ref(), report.ended == Ended::Complete));
        // Prompts from a pipe cannot be looked at before they are answered.
        if !inputs.can_be_read_twice() && report.answers > 0 && !matched.load(Ordering::Relaxed) {
            self.console.warn("none of the records that the output had is of these prompts");
        }
        if let Ended::SourceFailed(source) = &report.ended {
            // Status 2 would say that nothing was written.
            let usage = source.refused && report.answers == 0;
            let status = if usage { status::USAGE } else { status::FAILED };
            failure = failure.or(Some(Failure { status, message: source.message.clone() }));
        }
        Ok(RunOutcome { report, failure, closed, faults })
    }

    /// The records that are to be answered. `matched` becomes true with the first one that the output knows.
    fn source(
        &self,
        inputs: &Inputs,
        format: &LineFormat,
        resume_index: ResumeIndex,
        has_template: bool,
        matched: Arc<AtomicBool>,
    ) -> impl Iterator<Item = Input<RecordContext>> + Send + use<> {
        let format = format.clone();
        let (sampling, stopping) = (self.config.sampling, self.config.stopping);
        let twice = inputs.can_be_read_twice();
        let level = self.console.level;
        let records = inputs.records(self.flags.clone(), move |line: String| {
            // Warnings about a file that was read before have been given then.
            if !twice && level > console::Level::Quiet {
                console::line(&format!("llmopt: warning: {line}"));
            }
        });
        records.filter_map(move |record| {
            let mut record = match record {
                Ok(record) => record,
                Err(Failure { message, status }) => {
                    let refused = status == status::USAGE;
                    return Some(Input::Failed(SourceFailure { message, refused }));
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
                    return Some(Input::Failed(SourceFailure { message, refused: true }));
                }
            };
            let prompt = prompt.and_then(|prompt| presentable(prompt, has_template));
            let generation = prompt.as_ref().map(|p| half(&p.generation)).unwrap_or(0);
            let id = origin.id.clone();
            let retry = verdict == RecordVerdict::Retry;
            let with = RecordContext { origin, generation, retry };
            Some(match prompt {
                Ok(prompt) => Input::Prompt(Prompt { id, ..prompt }, with),
                Err(error) => Input::Rejected { id, error, with },
            })
        })
    }
}

/// How often lines are written through to the disk.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// Takes answers as they come and writes their lines.
struct Sink<'a> {
    format: &'a LineFormat,
    writer: &'a mut Writer<File>,
    display: &'a RunDisplay,
    level: console::Level,
    model: String,
    dtype: String,
    /// First half of the settings.
    settings: u32,
    synced: Instant,
    /// It has been said that requests name another model.
    told_model: bool,
    replacements: Replacements,
    faults: Faults,
    failure: Option<Failure>,
    closed: bool,
}

impl Sink<'_> {
    fn take(&mut self, answer: Answer, context: RecordContext) -> ControlFlow<()> {
        let RecordContext { origin, generation, retry } = context;
        if let Some(error) = &answer.error {
            self.faults.count(&error.code, answer.index, &origin.place());
        }
        let line = self.format.line(&Line {
            answer: &answer,
            origin: &origin,
            model: &self.model,
            dtype: &self.dtype,
            settings: Settings { model: self.settings, generation },
            created: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |d| d.as_secs()),
        });
        self.tell_other_model(&origin);
        let due = self.synced.elapsed() >= SYNC_EVERY;
        let Sink { format, writer, replacements, .. } = self;
        let outcome = self
            .display
            .suspend(|| match retry {
                true => replacements
                    .add(&format.id_key(&answer.id, origin.id_is_number), line, format, writer)
                    .map_err(WriteError::Failed),
                false => writer.line(&line),
            })
            .and_then(|()| writer.sync(due).map_err(WriteError::Failed));
        if due {
            self.synced = Instant::now();
        }
        match outcome {
            Ok(()) => ControlFlow::Continue(()),
            Err(WriteError::Closed) => {
                self.closed = true;
                ControlFlow::Break(())
            }
            Err(WriteError::Failed(failure)) => {
                self.failure = Some(failure);
                ControlFlow::Break(())
            }
        }
    }

    /// Says once that an OpenAI request names a model which is not the one that answers.
    fn tell_other_model(&mut self, origin: &Origin) {
        let OriginalPrompt::OpenAi(request) = &origin.prompt else { return };
        let other = request.model.as_ref().filter(|named| **named != self.model);
        let Some(asked) = other.filter(|_| !self.told_model) else { return };
        self.told_model = true;
        if self.level > console::Level::Quiet {
            let text = format!(
                "llmopt: warning: a request asks for model '{asked}'; {} answers it, and all others like it",
                self.model
            );
            self.display.suspend(|| console::line(&text));
        }
    }
}

//! The input, read once before the model is loaded. In: the records, the index of what the output has. Out: how many are to be answered
//! ([`LookAhead`]), or the reason why this output is not gone on with by these prompts.

use super::Run;
use super::format::LineFormat;
use super::output::PreparedOutput;
use super::resume_index::{self, RecordVerdict, ResumeIndex, Scan};
use crate::cli::Failure;
use crate::cli::inputs::{Inputs, Item};
use crate::pipeline::{Generation, Settings};
use crate::units::{self, counted};
use std::io::BufReader;

/// What is known of the input before the model is loaded.
#[derive(Debug, Default)]
pub struct LookAhead {
    /// Records to answer; `None` for standard input.
    pub todo: Option<u64>,
    /// All records.
    pub all: Option<u64>,
    /// Error records of the output that stay.
    pub kept_errors: u64,
    /// Records are missing before others that are there.
    pub disordered: bool,
}

impl Run<'_> {
    /// Reads the input once if it can be read twice: counts what is to be done and finds every reason to refuse the run.
    pub fn look_ahead(
        &mut self,
        inputs: &Inputs,
        format: &LineFormat,
        resume_index: &ResumeIndex,
        scan: &Scan,
        prepared: Option<&PreparedOutput>,
    ) -> Result<LookAhead, Failure> {
        let mut ahead = LookAhead::default();
        if !inputs.can_be_read_twice() {
            return Ok(ahead);
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
                    ahead.kept_errors +=
                        u64::from(verdict == RecordVerdict::Done && record.1.is_err());
                    // Parts that were joined stand in another order: what is missing is answered first, then all are put in order.
                    ahead.disordered |= first_new.is_some();
                }
                verdict => return Err(self.conflict(verdict, &record, format, prepared)),
            }
        }
        warnings.try_iter().for_each(|line| self.console.warn(line));
        (ahead.todo, ahead.all) = (Some(todo), Some(all));
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
                "output {}: none of its {} is of these prompts (it begins with '{}', they with \
                 '{}'); name its own prompts, another file, or --overwrite",
                prepared.map(|p| p.path().display().to_string()).unwrap_or_default(),
                counted(scan.answers + scan.errors, "record"),
                units::shown(past),
                units::shown(&now),
            )));
        }
        Ok(ahead)
    }

    fn judge(
        &self,
        record: &Item,
        format: &LineFormat,
        resume_index: &ResumeIndex,
    ) -> RecordVerdict {
        let half = |generation: &Generation| {
            Settings::generation_half(generation, self.config.sampling, self.config.stopping)
        };
        judge(record, format, resume_index, &half)
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
                    "written with other generation settings (--max-tokens, --temperature, \
                     --top-p, --top-k, --seed, --stop, --stop-on, --system, --raw, or the \
                     record's own)"
                        .into()
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
}

/// What the output has of a record. `half` gives the second half of the settings.
pub fn judge(
    (origin, prompt): &Item,
    format: &LineFormat,
    resume_index: &ResumeIndex,
    half: &dyn Fn(&Generation) -> u32,
) -> RecordVerdict {
    let id = format.id_key(&origin.id, origin.id_is_number);
    match prompt {
        Ok(prompt) => resume_index.judge(&id, format, &origin.prompt, half(&prompt.generation)),
        Err(error) => resume_index.judge_rejected(&id, error),
    }
}

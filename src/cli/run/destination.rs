//! Where answers go: the output itself or, where that cannot be gone on with, a journal from which it is made at the end. In: `-o`,
//! `--overwrite`, `--resume`. Out: an output that is opened and locked before the model is loaded, its [`Writer`] once answers are certain to come.

use super::format::{LineFormat, Source};
use super::format_choice::is_device;
use super::journal::{JournaledOutput, not_complete};
use super::output::{Existing, PreparedOutput, WriteError, Writer};
use super::resume_index::Scan;
use super::{Args, Run};
use crate::cli::Failure;
use crate::cli::failure::status;
use crate::cli::inputs::Inputs;
use crate::cli::signals::Signals;
use crate::units::counted;
use std::fs::File;

/// An output that is not committed yet: what was created for it is removed if it never is. `None` for standard output.
pub struct Uncommitted(pub Option<PreparedOutput>);

impl Drop for Uncommitted {
    fn drop(&mut self) {
        if let Some(prepared) = self.0.take() {
            prepared.abandon();
        }
    }
}

/// What opening the output came to.
pub enum Destination {
    /// The lines to write, and where to.
    Ready(LineFormat, Uncommitted),
    /// There is nothing to do: the exit status.
    Ended(u8),
}

impl Run<'_> {
    fn existing(&self) -> Existing {
        match (self.args.overwrite, self.args.resume) {
            (true, _) => Existing::Overwrite,
            (_, true) => Existing::Resume,
            _ => Existing::Refuse,
        }
    }

    /// Opens and locks the output, or the journal of one that cannot be gone on with; tells the inputs what lines carry of their records.
    pub fn open_output(
        &mut self,
        inputs: &mut Inputs,
        format: LineFormat,
    ) -> Result<Destination, Failure> {
        if format.ids_are_text() {
            inputs.take_ids_as_text();
        }
        let has = |wanted: fn(&Source) -> bool| format.columns().iter().any(|c| wanted(&c.source));
        let (columns, object) =
            (has(|s| matches!(s, Source::Carried(..))), has(|s| *s == Source::Input));
        let path = self.args.output.as_ref().filter(|_| !self.args.shared.dry_run);
        if let Some(path) = path.filter(|path| !is_device(path) && !format.carries_resume()) {
            inputs.carry(false, columns || object);
            return self.open_journal(
                inputs,
                JournaledOutput { path: path.clone(), format, existed: false },
            );
        }
        let records = &self.args.records;
        let shown = records.columns.is_some()
            || records.template.is_some()
            || records.prompt_field.is_some();
        inputs.carry(columns, object && shown);
        let prepared = path.map(|path| PreparedOutput::open(path, self.existing())).transpose()?;
        Ok(Destination::Ready(format, Uncommitted(prepared)))
    }

    /// Opens the journal of an output that is made at the end.
    fn open_journal(
        &mut self,
        inputs: &Inputs,
        mut output: JournaledOutput,
    ) -> Result<Destination, Failure> {
        let Args { overwrite, resume, .. } = *self.args;
        output.check(overwrite || resume)?;
        if resume && output.is_finished() {
            return self.finished(inputs, &output);
        }
        let journal = Uncommitted(Some(PreparedOutput::open(&output.journal(), self.existing())?));
        // Another run may have made the file, and taken its journal away, until this one had the lock.
        output.existed = output.exists();
        let made = journal.0.as_ref().is_some_and(|journal| journal.created_path().is_some());
        if output.existed && made && !overwrite {
            drop(journal);
            return if resume {
                self.finished(inputs, &output)
            } else {
                output.check(false).map(|()| Destination::Ended(status::FAILED))
            };
        }
        self.journaled = Some(output);
        Ok(Destination::Ready(LineFormat::jsonl(), journal))
    }

    /// A file that is there without a journal, asked to be gone on with: it must have a row for each record.
    fn finished(
        &mut self,
        inputs: &Inputs,
        output: &JournaledOutput,
    ) -> Result<Destination, Failure> {
        let mut records = 0u64;
        for record in inputs.records(self.flags.clone(), |_| ()) {
            drop(record?);
            records += 1;
        }
        let rows = output.rows()?;
        if rows != records {
            return Err(not_complete(&output.path, rows, records));
        }
        self.console.release();
        self.console.say(format!(
            "llmopt: the output is complete: {} kept, nothing to do",
            counted(rows, "row")
        ));
        Ok(Destination::Ended(status::DONE))
    }

    /// The writer, with the output made ready: torn tail cut, header written.
    pub fn commit(
        &mut self,
        prepared: &mut Uncommitted,
        format: &LineFormat,
        scan: &Scan,
        signals: &Signals,
    ) -> Result<Writer<File>, Failure> {
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

    /// Makes the file from the journal once every record has its line.
    pub fn make_from_journal(&self, errors: u64) -> Result<(), Failure> {
        let Some(output) = &self.journaled else { return Ok(()) };
        output.make(errors > 0)?;
        if errors == 0 { output.forget_journal() } else { Ok(()) }
    }
}

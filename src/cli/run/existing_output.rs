//! An output that is gone on with. In: the file, locked, and the model once it is known. Out: the index of its records, or the reason why
//! this run must not add to it; one that is complete is put in order.

use super::Run;
use super::destination::Uncommitted;
use super::format::LineFormat;
use super::look_ahead::LookAhead;
use super::output::{PreparedOutput, Writer};
use super::resume_index::{self, ResumeIndex, Scan};
use crate::cli::Failure;
use crate::cli::failure::status;
use crate::cli::inputs::Inputs;
use crate::cli::loading::open_under;
use crate::cli::progress::{self, Loading};
use crate::pipeline::Identity;
use crate::units::counted;
use std::fs::File;
use std::io::BufReader;

impl Run<'_> {
    /// What the output has already, where it is to be gone on with.
    pub fn read_output(
        &self,
        prepared: Option<&PreparedOutput>,
        format: &LineFormat,
    ) -> Result<(ResumeIndex, Scan), Failure> {
        let mut resume_index = ResumeIndex::default();
        let Some(prepared) = prepared.filter(|_| self.args.resume) else {
            return Ok((resume_index, Scan::default()));
        };
        let file = self.content(prepared)?;
        let length = file.metadata().map_err(|e| Failure::failed(format!("output: {e}")))?.len();
        let scan = resume_index.read(prepared.path(), format, BufReader::new(file), length)?;
        if let Some(hash) = scan.doubled {
            return Err(resume_index.doubled(
                prepared.path(),
                format,
                BufReader::new(self.content(prepared)?),
                hash,
            ));
        }
        self.check_names(prepared, &scan)?;
        Ok((resume_index, scan))
    }

    /// The output as it was found.
    pub fn content(&self, prepared: &PreparedOutput) -> Result<File, Failure> {
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

    /// The halves of the settings that need the model.
    pub fn check_settings(
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

    /// Everything is there already. It must still be of this model, dtype and template: the model's file is read for its digest, and
    /// nothing of it is kept.
    pub fn complete(
        &mut self,
        prepared: &mut Uncommitted,
        scan: &Scan,
        ahead: &LookAhead,
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
        self.make_from_journal(ahead.kept_errors)?;
        self.console.release();
        let kept = counted(scan.answers, "answer");
        self.console.say(format!("llmopt: the output is complete: {kept} kept, nothing to do"));
        Ok(if ahead.kept_errors > 0 { status::RECORDS } else { status::DONE })
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
    pub fn order_output(
        &self,
        writer: &mut Writer<File>,
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
}

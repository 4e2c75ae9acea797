//! Which form the output's lines have. In: the output's name, `--columns`, the inputs. Out: a [`LineFormat`].

use super::Run;
use super::format::{Kind, LineFormat};
#[cfg(not(feature = "parquet"))]
use super::journal::NO_PARQUET;
use crate::cli::Failure;
use crate::cli::inputs::Inputs;
use crate::text::Constraint;
use crate::units;
use std::io::IsTerminal;
use std::path::Path;

/// What an output's name says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputName {
    /// JSON lines.
    Lines,
    Csv,
    Tsv,
    #[cfg(feature = "parquet")]
    Parquet,
}

/// Whether a path leads to what is neither file nor folder.
pub fn is_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| !meta.is_file() && !meta.is_dir())
}

/// What an output's name says; a name that says nothing known is bad usage, unless it is that of a device or pipe.
pub fn named(path: &Path) -> Result<OutputName, Failure> {
    if is_device(path) {
        return Ok(OutputName::Lines);
    }
    let shown = units::shown_path(path);
    match path.extension().map(|e| e.to_string_lossy().to_lowercase()).as_deref() {
        Some("csv") => Ok(OutputName::Csv),
        Some("tsv") => Ok(OutputName::Tsv),
        #[cfg(feature = "parquet")]
        Some("parquet") => Ok(OutputName::Parquet),
        #[cfg(not(feature = "parquet"))]
        Some("parquet") => Err(Failure::usage(format!("output {shown}: {}", NO_PARQUET))),
        Some("jsonl") | None => Ok(OutputName::Lines),
        Some(other) => Err(Failure::usage(format!(
            "output {shown}: .{} is no format that can be written; a name in .jsonl, .csv, .tsv or .parquet would work",
            units::shown(other)
        ))),
    }
}

impl Run<'_> {
    /// The form that the flags and the inputs give.
    pub fn line_format(&self, inputs: &Inputs) -> Result<LineFormat, Failure> {
        let named = self.output_name;
        let columns = self.args.records.columns.as_ref().map(|c| &c.0[..]);
        if inputs.open_ai() {
            return match (columns, named) {
                (None, OutputName::Lines) => Ok(LineFormat::open_ai()),
                (Some(_), _) => Err(Failure::usage(
                    "--columns: answers to OpenAI requests have OpenAI's own form; leave it out",
                )),
                _ => Err(Failure::usage(
                    "answers to OpenAI requests are JSON lines; name an output in .jsonl",
                )),
            };
        }
        let kind = match named {
            OutputName::Lines => Kind::Json,
            // A file of tabs is called .tsv; that of another separator keeps it.
            OutputName::Csv => {
                Kind::Separated(self.args.records.delimiter.or(inputs.separator()).unwrap_or(b','))
            }
            OutputName::Tsv => Kind::Separated(b'\t'),
            #[cfg(feature = "parquet")]
            OutputName::Parquet => Kind::Parquet,
        };
        let terminal =
            self.args.output.is_none() && std::io::stdout().is_terminal() && !self.args.json_lines;
        let form = &self.flags.form;
        let properties = self.properties();
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
}

//! All prompt files of a run: which reader each one gets, and the records of one file after the other with ids that are never used twice.
// What it reads is a stranger's.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

use super::fields::GenerationFields;
use super::ids::Ids;
use super::record::{
    Asked, Given, InputError, InputFormat, Parsed, Record, RecordError, Warnings, prompt,
};
use super::source::Source;
use super::{csv, json, lines, openai};
use crate::units::shown;
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// The files, looked at: they are there, and each can be a file of prompts.
pub struct PromptFiles {
    files: Vec<(Source, Kind)>,
    columns: Arc<[String]>,
    notices: Vec<String>,
}

impl PromptFiles {
    /// Looks at every file. `format` is for all of them; without it the extension decides.
    pub fn open(paths: &[PathBuf], format: Option<InputFormat>) -> Result<PromptFiles, InputError> {
        let mut files = Vec::with_capacity(paths.len());
        let (mut columns, mut notices) = (Vec::new(), Vec::new());
        for path in paths {
            let mut source = Source::of(path)?;
            if files.iter().any(|(other, _): &(Source, Kind)| other.name() == source.name()) {
                return Err(InputError::Bad(format!("{}: given twice", shown(source.name()))));
            }
            let format = match format {
                Some(format) => format,
                None => by_extension(path)?,
            };
            source.look(&mut notices)?;
            let kind = if format == InputFormat::Csv {
                let (header, checked) = csv::check(&source)?;
                columns.extend(checked.into_iter().filter(|c| !columns.contains(c)).collect::<Vec<_>>());
                Kind::Csv(Arc::new(header))
            } else {
                Kind::Lines(format)
            };
            files.push((source, kind));
        }
        Ok(PromptFiles { files, columns: columns.into(), notices })
    }

    /// Names of the CSV columns that are carried through to CSV output: all but `id` and `prompt`.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Whether these are OpenAI requests.
    pub fn are_openai(&self) -> bool {
        self.files.iter().any(|(_, kind)| matches!(kind, Kind::Lines(InputFormat::OpenAi)))
    }

    /// Whether [`PromptFiles::reader`] may be called more than once: all are ordinary files.
    pub fn can_be_read_twice(&self) -> bool {
        self.files.iter().all(|(source, _)| source.is_regular())
    }

    /// The records from the beginning. What is not an ordinary file is read by the first reader only.
    pub fn reader(&self) -> PromptReader {
        PromptReader {
            names: self.files.iter().map(|(s, _)| s.name().clone()).collect(),
            waiting: self.files.iter().map(|(s, kind)| (s.clone(), kind.clone())).collect(),
            columns: self.columns.clone(),
            current: None,
            ids: Ids::default(),
            warnings: Warnings { waiting: self.notices.iter().cloned().collect(), ..Warnings::default() },
            failed: false,
        }
    }
}

fn by_extension(path: &std::path::Path) -> Result<InputFormat, InputError> {
    let help = "give --input-format jsonl, csv, txt or openai";
    if path.as_os_str() == "-" {
        return Err(InputError::Bad(format!("standard input has no extension; {help}")));
    }
    match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
        Some("jsonl" | "ndjson") => Ok(InputFormat::Jsonl),
        Some("csv") => Ok(InputFormat::Csv),
        Some("txt") => Ok(InputFormat::Txt),
        _ => Err(InputError::Bad(format!(
            "{}: the format cannot be told from the extension; {help}",
            shown(&path.to_string_lossy())
        ))),
    }
}

/// How one file is read.
#[derive(Clone)]
enum Kind {
    /// A record a line.
    Lines(InputFormat),
    /// Rows under this header.
    Csv(Arc<csv::Header>),
}

/// One file being read.
struct Open {
    name: Arc<str>,
    records: Records,
}

enum Records {
    Lines(lines::Lines, InputFormat),
    Csv(Box<csv::Rows>),
}

/// Records one after the other; a failure to read ends them. It never reads further than the record it gives.
pub struct PromptReader {
    names: Vec<Arc<str>>,
    waiting: VecDeque<(Source, Kind)>,
    columns: Arc<[String]>,
    current: Option<Open>,
    ids: Ids,
    warnings: Warnings,
    failed: bool,
}

impl PromptReader {
    /// Warnings since the last call, one line each; each thing is said once.
    pub fn take_warnings(&mut self) -> Vec<String> {
        self.warnings.waiting.drain(..).collect()
    }

    fn open_next(&mut self) -> Option<Result<Open, InputError>> {
        let (source, kind) = self.waiting.pop_front()?;
        let name = source.name().clone();
        let records = match kind {
            Kind::Csv(header) => {
                csv::Rows::open(&source, header, &self.columns).map(|rows| Records::Csv(Box::new(rows)))
            }
            Kind::Lines(format) => source.open().map(|reader| Records::Lines(lines::Lines::new(reader), format)),
        };
        Some(records.map(|records| Open { name, records }))
    }

    fn finish(&mut self, file: Arc<str>, line: u64, parsed: Parsed) -> Record {
        let place = format!("{file}:{line}");
        let mut asked = parsed.asked;
        let own = parsed.id.is_some();
        let mut id = parsed.id.unwrap_or_else(|| place.clone());
        if own && (!self.ids.insert(&id) || self.is_anothers_place(&id, &place)) {
            let short: String = id.chars().take(60).collect();
            asked = Err(("duplicate_id", format!("the id '{}' is another record's", shown(&short))));
            id = place;
        }
        let asked = asked.map_err(|(code, message)| RecordError { code, message: format!("{}:{line}: {message}", shown(&file)) });
        Record { id, file, line, given: parsed.given, carried: parsed.carried, openai: parsed.openai, asked }
    }

    /// Whether this id is the one that another record of these files has for want of its own.
    fn is_anothers_place(&self, id: &str, place: &str) -> bool {
        id != place
            && id.rsplit_once(':').is_some_and(|(file, line)| {
                !line.is_empty()
                    && line.bytes().all(|b| b.is_ascii_digit())
                    && !line.starts_with('0')
                    && self.names.iter().any(|n| **n == *file)
            })
    }
}

impl Iterator for PromptReader {
    type Item = Result<Record, InputError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        loop {
            if self.current.is_none() {
                match self.open_next()? {
                    Ok(open) => self.current = Some(open),
                    Err(error) => {
                        self.failed = true;
                        return Some(Err(error));
                    }
                }
            }
            let open = self.current.as_mut()?;
            let read = match &mut open.records {
                Records::Lines(lines, format) => next_in(lines, *format, &mut self.warnings),
                Records::Csv(rows) => rows.next_record(),
            };
            match read {
                Ok(Some((line, mut parsed))) => {
                    let file = open.name.clone();
                    if parsed.carried.is_empty() && !self.columns.is_empty() {
                        parsed.carried = vec![String::new(); self.columns.len()];
                    }
                    return Some(Ok(self.finish(file, line, parsed)));
                }
                Ok(None) => self.current = None,
                Err(error) => {
                    self.failed = true;
                    return Some(Err(InputError::Io(format!("{}: {error}", shown(&open.name)))));
                }
            }
        }
    }
}

/// The next record of a file of one record a line; blank lines are none in JSON.
pub(super) fn next_in(
    lines: &mut lines::Lines,
    format: InputFormat,
    warnings: &mut Warnings,
) -> io::Result<Option<(u64, Parsed)>> {
    loop {
        let Some((line, text)) = lines.next_line()? else { return Ok(None) };
        let parsed = match (text, format) {
            (Err((code, message)), _) => Parsed::bad(code, message),
            (Ok(text), InputFormat::Txt) => plain(text),
            (Ok(text), _) if text.trim().is_empty() => continue,
            (Ok(text), InputFormat::OpenAi) => openai::read(text, warnings),
            (Ok(text), _) => json::read(text, warnings),
        };
        return Ok(Some((line, parsed)));
    }
}

fn plain(text: &str) -> Parsed {
    Parsed {
        id: None,
        given: Given::Prompt(text.to_string()),
        carried: Vec::new(),
        openai: None,
        asked: prompt(text).map(|content| Asked { content, generation: GenerationFields::default() }),
    }
}

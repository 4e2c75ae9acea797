//! All prompt files of a run: which reader each one gets, told by its name, then by its first bytes, and the records of one file after
//! the other with ids that are never used twice.
// What it reads is a stranger's.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

use super::array::Elements;
use super::fault::{Fault, LONGEST_RECORD};
use super::fields::GenerationFields;
use super::ids::Ids;
use super::labels::labels;
use super::lines::Lines;
use super::record::{Asked, Given, InputError, InputFormat, Origin, Parsed, Record, RecordError, Warnings, prompt};
use super::source::Source;
use super::{csv, json, openai};
use crate::units::shown;
use std::collections::{HashSet, VecDeque};
use std::io::{self, BufRead, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Records of an ordinary file that are read before anything is done with it.
const LOOKED_AT: usize = 100;

/// What a JSON object is read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Record,
    OpenAi,
}

/// How one file is read.
#[derive(Clone)]
enum Kind {
    /// A prompt a line.
    Text,
    /// An object a line.
    Lines(Dialect),
    /// Objects in an array.
    Array(Dialect),
    /// Rows under this header.
    Csv(Arc<csv::Header>),
}

/// A file and what is known of it.
#[derive(Clone)]
struct File {
    source: Source,
    /// For the ids of records without one.
    label: Arc<str>,
    kind: Kind,
}

/// The files, looked at: they are there, and each can be a file of prompts.
pub struct PromptFiles {
    files: Vec<File>,
    columns: Arc<[String]>,
    notices: Vec<String>,
    ids_are_text: bool,
}

impl PromptFiles {
    /// Looks at every file. `format` is for all of them; without it the name decides, and the first bytes where they say otherwise.
    pub fn open(paths: &[PathBuf], format: Option<InputFormat>) -> Result<PromptFiles, InputError> {
        let mut notices = Vec::new();
        let sources = paths.iter().map(|path| Source::of(path)).collect::<Result<Vec<_>, _>>()?;
        let labels = labels(paths).map_err(|twice| {
            let name = sources.get(twice).map(|s| shown(s.name())).unwrap_or_default();
            InputError::Bad(format!("{name}: given twice"))
        })?;
        let mut files = Vec::with_capacity(paths.len());
        let (mut columns, mut known) = (Vec::new(), HashSet::new());
        for ((path, mut source), label) in paths.iter().zip(sources).zip(labels) {
            source.look(&mut notices)?;
            let kind = match kind(&source, path, format, &mut notices)? {
                Found::Kind(kind) => kind,
                Found::Csv => match csv::check(&source)? {
                    Some((header, names)) => {
                        columns.extend(names.into_iter().filter(|name| known.insert(name.clone())));
                        Kind::Csv(Arc::new(header))
                    }
                    None => Kind::Text,
                },
            };
            let file = File { source, label: label.into(), kind };
            file.can_be_used()?;
            files.push(file);
        }
        let openai = |file: &File| matches!(file.kind, Kind::Lines(Dialect::OpenAi) | Kind::Array(Dialect::OpenAi));
        if let (Some(one), Some(other)) = (files.iter().find(|f| openai(f)), files.iter().find(|f| !openai(f))) {
            return Err(InputError::Bad(format!(
                "{} has OpenAI requests, {} has not; give them to two runs",
                shown(one.source.name()),
                shown(other.source.name())
            )));
        }
        Ok(PromptFiles { files, columns: columns.into(), notices, ids_are_text: false })
    }

    /// Names of the CSV columns that are carried through to CSV output: all but `id` and `prompt`.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// What each file is called in the ids of records that have none: its base name, and more of its path only where two share it.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|file| &*file.label)
    }

    /// Whether these are OpenAI requests.
    pub fn are_openai(&self) -> bool {
        self.files.iter().any(|f| matches!(f.kind, Kind::Lines(Dialect::OpenAi) | Kind::Array(Dialect::OpenAi)))
    }

    /// Whether [`PromptFiles::reader`] may be called more than once: all are ordinary files.
    pub fn can_be_read_twice(&self) -> bool {
        self.files.iter().all(|file| file.source.is_regular())
    }

    /// That the number 1 and the text "1" are one id, as in CSV output.
    pub fn take_ids_as_text(&mut self) {
        self.ids_are_text = true;
    }

    /// The records from the beginning. What is not an ordinary file is read by the first reader only.
    pub fn reader(&self) -> PromptReader {
        PromptReader {
            labels: self.files.iter().map(|file| file.label.clone()).collect(),
            waiting: self.files.iter().cloned().collect(),
            columns: self.columns.clone(),
            current: None,
            ids: Ids::default(),
            ids_are_text: self.ids_are_text,
            warnings: Warnings { waiting: self.notices.iter().cloned().collect(), ..Warnings::default() },
            failed: false,
        }
    }
}

/// What [`kind`] found.
enum Found {
    Kind(Kind),
    /// CSV, whose header is still to be read.
    Csv,
}

/// How a file is read: by the format that was asked for, else by its name, else by how it begins.
fn kind(source: &Source, path: &Path, format: Option<InputFormat>, notices: &mut Vec<String>) -> Result<Found, InputError> {
    if let Some(format) = format {
        return Ok(Found::Kind(match format {
            InputFormat::Txt => Kind::Text,
            InputFormat::Csv => return Ok(Found::Csv),
            InputFormat::Jsonl => Kind::Lines(Dialect::Record),
            InputFormat::Json => Kind::Array(dialect(source, &Start::of(source)?, true)?),
            InputFormat::OpenAi if source.is_regular() && Start::of(source)?.is_array() => Kind::Array(Dialect::OpenAi),
            InputFormat::OpenAi => Kind::Lines(Dialect::OpenAi),
        }));
    }
    let name = shown(source.name());
    let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    match extension.as_deref() {
        Some("txt") => Ok(Found::Kind(Kind::Text)),
        Some(kind @ ("jsonl" | "ndjson" | "json")) => {
            let start = Start::of(source)?;
            let array = start.is_array();
            match (array, kind) {
                (true, "jsonl" | "ndjson") => {
                    notices.push(format!("{name} is a JSON array, not a record a line; it is read as one"))
                }
                (false, "json") if !start.is_empty() => {
                    notices.push(format!("{name} is no JSON array; it is read as a record a line"));
                }
                _ => {}
            }
            let dialect = dialect(source, &start, array)?;
            Ok(Found::Kind(if array { Kind::Array(dialect) } else { Kind::Lines(dialect) }))
        }
        Some("csv") => {
            if source.is_regular() {
                let start = Start::of(source)?;
                if start.is_array() || json::is_openai(start.text()).is_some() {
                    notices.push(format!("{name} is JSON, not CSV; it is read as JSON"));
                    return start.json(source).map(Found::Kind);
                }
            }
            Ok(Found::Csv)
        }
        _ => {
            let start = Start::of(source)?;
            if start.is_array() || start.text().starts_with('{') {
                return start.json(source).map(Found::Kind);
            }
            if start.text().split([',', ';', '\t']).any(|name| name.trim().trim_matches('"') == "prompt") {
                return Ok(Found::Csv);
            }
            if &**source.name() == "-" {
                return Ok(Found::Kind(Kind::Text));
            }
            Err(InputError::Bad(format!(
                "{name}: the format can be told neither from the extension nor from its beginning; give --input-format jsonl, json, csv, txt or openai"
            )))
        }
    }
}

/// What objects are, by the first of them that shows it.
fn dialect(source: &Source, start: &Start, array: bool) -> Result<Dialect, InputError> {
    let of = |openai: bool| if openai { Dialect::OpenAi } else { Dialect::Record };
    if !array && let Some(openai) = json::is_openai(start.text()) {
        return Ok(of(openai));
    }
    if !source.is_regular() {
        return Ok(Dialect::Record);
    }
    let reader = source.open()?;
    let (mut lines, mut elements) = if array { (None, Some(Elements::new(reader))) } else { (Some(Lines::new(reader)), None) };
    for _ in 0..LOOKED_AT {
        let next = match (&mut lines, &mut elements) {
            (Some(lines), _) => lines.next_line(),
            (_, Some(elements)) => elements.next_element(),
            _ => Ok(None),
        };
        let next = next.map_err(|e| InputError::Io(format!("{}: {e}", shown(source.name()))))?;
        match next {
            None => break,
            Some((_, Ok(text))) => {
                if let Some(openai) = json::is_openai(text) {
                    return Ok(of(openai));
                }
            }
            Some(_) => {}
        }
    }
    Ok(Dialect::Record)
}

/// The first line of a file that is not blank; a stream is read no further, and gives it again.
struct Start(Vec<u8>);

impl Start {
    fn of(source: &Source) -> Result<Start, InputError> {
        let failed = |e: io::Error| InputError::Io(format!("{}: {e}", shown(source.name())));
        let mut reader = source.open()?;
        let (mut all, mut line) = (Vec::new(), Vec::new());
        let most = LONGEST_RECORD as u64 + 1;
        loop {
            line.clear();
            let count = (&mut reader).take(most).read_until(b'\n', &mut line).map_err(failed)?;
            all.extend_from_slice(&line);
            if count == 0 || line.iter().any(|b| !b.is_ascii_whitespace()) || all.len() as u64 >= most {
                break;
            }
        }
        if !source.is_regular() {
            source.put_back(Box::new(Cursor::new(all).chain(reader)));
        }
        Ok(Start(line))
    }

    /// The line without white space around it; empty if it is no text.
    fn text(&self) -> &str {
        let bytes = self.0.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&self.0);
        std::str::from_utf8(bytes).unwrap_or_default().trim()
    }

    fn is_empty(&self) -> bool {
        self.text().is_empty()
    }

    /// An array of objects, or one whose first element stands on the next line.
    fn is_array(&self) -> bool {
        self.text().strip_prefix('[').is_some_and(|rest| matches!(rest.trim_start().as_bytes().first(), None | Some(b'{' | b']')))
    }

    /// The kind of what begins like JSON.
    fn json(&self, source: &Source) -> Result<Kind, InputError> {
        let array = self.is_array();
        let dialect = dialect(source, self, array)?;
        Ok(if array { Kind::Array(dialect) } else { Kind::Lines(dialect) })
    }
}

impl File {
    fn records(&self, columns: &[String]) -> Result<Records, InputError> {
        let reader = || self.source.open();
        Ok(match &self.kind {
            Kind::Text => Records::Text(Lines::new(reader()?)),
            Kind::Lines(dialect) => Records::Lines(Lines::new(reader()?), *dialect),
            Kind::Array(dialect) => Records::Array(Elements::new(reader()?), *dialect),
            Kind::Csv(header) => Records::Csv(Box::new(csv::Rows::open(&self.source, header.clone(), columns)?)),
        })
    }

    /// That one of an ordinary file's first records at least has the form of one: a file that is wholly wrong is said to be, once, before any work.
    fn can_be_used(&self) -> Result<(), InputError> {
        if !self.source.is_regular() {
            return Ok(());
        }
        let name = shown(self.source.name());
        let mut records = self.records(&[])?;
        let mut warnings = Warnings::default();
        let mut first: Option<(u64, Fault)> = None;
        for count in 0..LOOKED_AT {
            let next = records.next(&mut warnings).map_err(|e| InputError::Io(format!("{name}: {e}")))?;
            match (next, first) {
                (None, None) => return Err(InputError::Bad(format!("{name}: there is no record in it"))),
                (None, Some((line, (_, message)))) => {
                    let which = if count == 1 {
                        "its one record has not".to_string()
                    } else {
                        format!("none of its {count} records has")
                    };
                    return Err(unusable(&name, &which, line, &message));
                }
                (Some((_, parsed)), _) if parsed.usable => return Ok(()),
                (Some((line, parsed)), None) => first = parsed.asked.err().map(|fault| (line, fault)),
                (Some(_), some) => first = some,
            }
        }
        let Some((line, (_, message))) = first else { return Ok(()) };
        Err(unusable(&name, &format!("none of its first {LOOKED_AT} records has"), line, &message))
    }
}

fn unusable(name: &str, which: &str, line: u64, message: &str) -> InputError {
    InputError::Bad(format!("{name}:{line}: {message}; {which} the form of a record"))
}

/// One file being read.
struct Open {
    label: Arc<str>,
    name: Arc<str>,
    regular: bool,
    records: Records,
    /// A record came.
    begun: bool,
}

enum Records {
    Text(Lines),
    Lines(Lines, Dialect),
    Array(Elements, Dialect),
    Csv(Box<csv::Rows>),
}

impl Records {
    /// The next record and its line or number; blank lines are none in JSON.
    fn next(&mut self, warnings: &mut Warnings) -> io::Result<Option<(u64, Parsed)>> {
        match self {
            Records::Text(lines) => text(lines),
            Records::Lines(lines, dialect) => loop {
                let Some((line, text)) = lines.next_line()? else { return Ok(None) };
                if text.as_ref().is_ok_and(|text| text.trim().is_empty()) {
                    continue;
                }
                return Ok(Some((line, object(text, *dialect, warnings))));
            },
            Records::Array(elements, dialect) => {
                let next = elements.next_element()?;
                Ok(next.map(|(number, text)| (number, object(text, *dialect, warnings))))
            }
            Records::Csv(rows) => rows.next_record(),
        }
    }
}

fn object(text: Result<&str, Fault>, dialect: Dialect, warnings: &mut Warnings) -> Parsed {
    match (text, dialect) {
        (Err((code, message)), _) => Parsed::bad(code, message),
        (Ok(text), Dialect::OpenAi) => openai::read(text, warnings),
        (Ok(text), Dialect::Record) => json::read(text, warnings),
    }
}

/// The next line as a prompt.
pub(super) fn text(lines: &mut Lines) -> io::Result<Option<(u64, Parsed)>> {
    let next = lines.next_line()?;
    Ok(next.map(|(line, text)| {
        let parsed = match text {
            Err((code, message)) => Parsed::bad(code, message),
            Ok(text) => Parsed {
                id: None,
                id_is_number: false,
                given: Given::Prompt(text.to_string()),
                carried: Vec::new(),
                asked: prompt(text).map(|content| Asked { content, generation: GenerationFields::default() }),
                usable: true,
            },
        };
        (line, parsed)
    }))
}

/// Records one after the other; a failure to read ends them. It never reads further than the record it gives.
pub struct PromptReader {
    labels: HashSet<Arc<str>>,
    waiting: VecDeque<File>,
    columns: Arc<[String]>,
    current: Option<Open>,
    ids: Ids,
    ids_are_text: bool,
    warnings: Warnings,
    failed: bool,
}

impl PromptReader {
    /// Warnings since the last call, one line each; each thing is said once.
    pub fn take_warnings(&mut self) -> Vec<String> {
        self.warnings.waiting.drain(..).collect()
    }

    fn open_next(&mut self) -> Option<Result<Open, InputError>> {
        let file = self.waiting.pop_front()?;
        let open = file.records(&self.columns).map(|records| Open {
            label: file.label.clone(),
            name: file.source.name().clone(),
            regular: file.source.is_regular(),
            records,
            begun: false,
        });
        Some(open)
    }

    fn finish(&mut self, file: Arc<str>, label: Arc<str>, line: u64, parsed: Parsed) -> Record {
        let place = format!("{label}:{line}");
        let Parsed { id, mut id_is_number, given, carried, mut asked, usable: _ } = parsed;
        let id = match id {
            Some(id) => {
                let number = id_is_number && !self.ids_are_text;
                if self.ids.insert(&id, number) && !self.is_anothers_place(&id, &place) {
                    id
                } else {
                    let short: String = id.chars().take(60).collect();
                    asked = Err(("duplicate_id", format!("the id '{}' is another record's", shown(&short))));
                    id_is_number = false;
                    place
                }
            }
            None => place,
        };
        // Labels and not paths: a run that is resumed by another spelling of the path finds the same errors.
        let asked = asked.map_err(|(code, message)| RecordError::new(code, format!("{}:{line}: {message}", shown(&label))));
        Record { origin: Origin { id, id_is_number, file, line, given, carried }, asked }
    }

    /// Whether this id is the one that another record of these files has for want of its own.
    fn is_anothers_place(&self, id: &str, place: &str) -> bool {
        id != place
            && id.rsplit_once(':').is_some_and(|(file, line)| {
                !line.is_empty()
                    && line.bytes().all(|b| b.is_ascii_digit())
                    && !line.starts_with('0')
                    && self.labels.contains(file)
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
            match open.records.next(&mut self.warnings) {
                Ok(Some((line, mut parsed))) => {
                    open.begun = true;
                    let (name, label) = (open.name.clone(), open.label.clone());
                    if parsed.carried.is_empty() && !self.columns.is_empty() {
                        parsed.carried = vec![String::new(); self.columns.len()];
                    }
                    return Some(Ok(self.finish(name, label, line, parsed)));
                }
                Ok(None) => {
                    if !open.begun && !open.regular {
                        let name = if &*open.name == "-" { "standard input".to_string() } else { shown(&open.name) };
                        self.warnings.say(format!("{name} is empty: there is no prompt in it"));
                    }
                    self.current = None;
                }
                Err(error) => {
                    self.failed = true;
                    return Some(Err(InputError::Io(format!("{}: {error}", shown(&open.name)))));
                }
            }
        }
    }
}

//! All prompt files of a run: which reader each one gets, told by its name, then by its first bytes, and the records of one file after
//! the other with ids that are never used twice.
//! Over 500 lines: telling kinds, opening and going on from file to file share one state; to be cut where telling ends.
// Untrusted input.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

use super::array::Elements;
use super::fault::{Fault, LONGEST_RECORD, too_long, utf8};
use super::fields::GenerationFields;
use super::ids::Ids;
use super::labels::labels;
use super::lines::Lines;
use super::reading::{self, Reading, Rules, made};
use super::record::{
    InputCell, InputError, InputFormat, Origin, OriginalPrompt, Parsed, PromptRequest, Record,
    RecordError, Warnings, prompt,
};
use super::source::Source;
use super::{csv, json, openai};
use crate::units::shown;
use sha2::{Digest, Sha256};
use std::collections::{HashSet, VecDeque};
use std::io::{self, BufRead, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

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
    /// Rows of a Parquet file.
    #[cfg(feature = "parquet")]
    Parquet,
    /// Files below a folder, a prompt each.
    Folder(Tree),
    /// Prompts of the command line.
    Typed(Arc<[String]>),
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
    rules: Rules,
    notices: Vec<String>,
    ids_are_text: bool,
}

impl PromptFiles {
    /// Looks at every file. `format` is for all of them; without it the name decides, and the first bytes where they say otherwise.
    pub fn open(paths: &[PathBuf], format: Option<InputFormat>) -> Result<PromptFiles, InputError> {
        Self::open_as(paths, &[], Reading { format, ..Reading::default() })
    }

    /// The same for records that are read as `reading` says; `typed` are prompts of the command line, which come last.
    pub fn open_as(
        paths: &[PathBuf],
        typed: &[String],
        reading: Reading,
    ) -> Result<PromptFiles, InputError> {
        let mut notices = Vec::new();
        let rules = Rules { reading: Arc::new(reading), ..Rules::default() };
        let sources = paths.iter().map(|path| Source::of(path)).collect::<Result<Vec<_>, _>>()?;
        let labels = labels(paths).map_err(|twice| {
            let name = sources.get(twice).map(|s| shown(s.name())).unwrap_or_default();
            InputError::Bad(format!("{name}: given twice"))
        })?;
        let mut files = Vec::with_capacity(paths.len());
        let (mut columns, mut known) = (Vec::new(), HashSet::new());
        let (mut open_ended, mut hoped) = (false, Vec::new());
        for ((path, mut source), label) in paths.iter().zip(sources).zip(labels) {
            source.look(&mut notices)?;
            let reading = &rules.reading;
            let mut names = Vec::new();
            let kind = match kind(&source, path, reading, &mut notices)? {
                Found::Kind(kind) => kind,
                #[cfg(feature = "parquet")]
                Found::Parquet => {
                    names = super::parquet::check(&source, &rules)?;
                    Kind::Parquet
                }
                #[cfg(not(feature = "parquet"))]
                Found::Parquet => return Err(no_parquet(&source)),
                Found::Csv(separator) => match csv::check(&source, separator, reading)? {
                    Some((header, carried)) => {
                        names = carried;
                        Kind::Csv(Arc::new(header))
                    }
                    None => Kind::Text,
                },
            };
            let file = File { source, label: label.into(), kind };
            file.check_reading(reading)?;
            file.can_be_used(&rules)?;
            if reading.carries()
                && matches!(file.kind, Kind::Lines(Dialect::Record) | Kind::Array(Dialect::Record))
            {
                open_ended = true;
                names = file.first_names(&rules)?;
            }
            columns.extend(names.into_iter().filter(|name| known.insert(name.clone())));
            files.push(file);
        }
        open_ended &= files.iter().any(|file| !file.source.is_regular());
        if !typed.is_empty() {
            let file = File {
                source: Source::none("prompt"),
                label: "prompt".into(),
                kind: Kind::Typed(typed.into()),
            };
            file.check_reading(&rules.reading)?;
            files.push(file);
        }
        let openai = |file: &File| {
            matches!(file.kind, Kind::Lines(Dialect::OpenAi) | Kind::Array(Dialect::OpenAi))
        };
        if let (Some(one), Some(other)) =
            (files.iter().find(|f| openai(f)), files.iter().find(|f| !openai(f)))
        {
            return Err(InputError::Bad(format!(
                "{} has OpenAI requests, {} has not; give them to two runs",
                shown(one.source.name()),
                shown(other.source.name())
            )));
        }
        if open_ended {
            // What records of a stream have is not known before they come.
            hoped.extend(
                rules.reading.wanted.iter().filter(|name| known.insert(name.to_string())).cloned(),
            );
            columns.extend(hoped.iter().cloned());
        }
        let rules = Rules { columns: columns.into(), hoped: hoped.into(), ..rules };
        Ok(PromptFiles { files, rules, notices, ids_are_text: false })
    }

    /// Names of the fields that are carried to columns of the output: those of CSV headers, and of the first records of JSON files where fields
    /// are carried at all. Values that a line has anyway, as its id or its prompt, are none.
    pub fn columns(&self) -> &[String] {
        &self.rules.columns
    }

    /// What separates the cells of the first CSV file.
    pub fn separator(&self) -> Option<u8> {
        self.files.iter().find_map(|f| {
            if let Kind::Csv(header) = &f.kind { Some(header.separator) } else { None }
        })
    }

    /// Whether all are tables, whose rows have an order that people expect to find again.
    pub fn are_tables(&self) -> bool {
        !self.files.is_empty() && self.files.iter().all(|f| f.is_table())
    }

    /// What is carried: values of columns, all fields as one object. Nothing is until this says so.
    pub fn carry(&mut self, columns: bool, object: bool) {
        self.rules.object = object;
        if !columns {
            self.rules.columns = Arc::default();
        }
    }

    /// What each file is called in the ids of records that have none: its base name, and more of its path only where two share it.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|file| &*file.label)
    }

    /// Whether these are OpenAI requests.
    pub fn are_openai(&self) -> bool {
        self.files
            .iter()
            .any(|f| matches!(f.kind, Kind::Lines(Dialect::OpenAi) | Kind::Array(Dialect::OpenAi)))
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
            rules: self.rules.clone(),
            current: None,
            ids: Ids::default(),
            ids_are_text: self.ids_are_text,
            warnings: Warnings {
                waiting: self.notices.iter().cloned().collect(),
                ..Warnings::default()
            },
            failed: false,
        }
    }
}

/// What [`kind`] found.
enum Found {
    Kind(Kind),
    /// CSV with this separator, whose header is still to be read.
    Csv(u8),
    /// Parquet, whose columns are still to be read.
    Parquet,
}

/// How a file is read: by the format that was asked for, else by its name, else by how it begins.
fn kind(
    source: &Source,
    path: &Path,
    reading: &Reading,
    notices: &mut Vec<String>,
) -> Result<Found, InputError> {
    if source.is_folder() {
        return Ok(Found::Kind(Kind::Folder(Tree::new(path))));
    }
    let separated = |start: &Start| {
        Found::Csv(reading.delimiter.unwrap_or_else(|| csv::separator(start.line(), reading)))
    };
    let tabs = |start: &Start| {
        Found::Csv(reading.delimiter.or(csv::named_separator(start.line())).unwrap_or(b'\t'))
    };
    if let Some(format) = reading.format {
        return Ok(Found::Kind(match format {
            InputFormat::Txt => Kind::Text,
            InputFormat::Csv => return Ok(separated(&Start::of(source)?)),
            InputFormat::Tsv => return Ok(tabs(&Start::of(source)?)),
            InputFormat::Parquet => return seekable(source),
            InputFormat::Jsonl => Kind::Lines(Dialect::Record),
            InputFormat::Json => Kind::Array(dialect(source, &Start::of(source)?, true)?),
            InputFormat::OpenAi if source.is_regular() && Start::of(source)?.is_array() => {
                Kind::Array(Dialect::OpenAi)
            }
            InputFormat::OpenAi => Kind::Lines(Dialect::OpenAi),
        }));
    }
    let name = shown(source.name());
    let extension = extension(path);
    if extension.as_deref() == Some("parquet") || source.is_parquet() {
        return seekable(source);
    }
    match extension.as_deref() {
        Some("txt") => Ok(Found::Kind(Kind::Text)),
        Some(kind @ ("jsonl" | "ndjson" | "json")) => {
            let start = Start::of(source)?;
            let array = start.is_array();
            match (array, kind) {
                (true, "jsonl" | "ndjson") => notices.push(format!(
                    "{name} is a JSON array, not a record a line; it is read as one"
                )),
                (false, "json") if !start.is_empty() => {
                    notices.push(format!("{name} is no JSON array; it is read as a record a line"));
                }
                _ => {}
            }
            let dialect = dialect(source, &start, array)?;
            Ok(Found::Kind(if array { Kind::Array(dialect) } else { Kind::Lines(dialect) }))
        }
        Some(table @ ("csv" | "tsv")) => {
            let start = Start::of(source)?;
            if start.is_array() || json::is_openai(start.text()).is_some() {
                notices.push(format!("{name} is JSON, not CSV; it is read as JSON"));
                return start.json(source).map(Found::Kind);
            }
            Ok(if table == "tsv" { tabs(&start) } else { separated(&start) })
        }
        _ => {
            let start = Start::of(source)?;
            if start.is_array() || start.text().starts_with('{') {
                return start.json(source).map(Found::Kind);
            }
            let names: Vec<&str> = start
                .text()
                .split([',', ';', '\t'])
                .map(|name| name.trim().trim_matches('"'))
                .collect();
            let wanted = reading
                .prompt_field
                .as_slice()
                .iter()
                .chain(reading.template.iter().flat_map(|t| t.needed()));
            let wanted: Vec<&str> = wanted.map(String::as_str).collect();
            let is_header = match &wanted[..] {
                [] => names.contains(&"prompt"),
                wanted => {
                    wanted.iter().all(|name| names.contains(name))
                        && (names.len() > 1 || wanted != ["prompt"])
                }
            };
            if is_header || csv::named_separator(start.line()).is_some() {
                return Ok(separated(&start));
            }
            if &**source.name() == "-" {
                // Of an empty stream nothing is known that a flag could contradict.
                return Ok(Found::Kind(if start.nothing {
                    Kind::Lines(Dialect::Record)
                } else {
                    Kind::Text
                }));
            }
            Err(InputError::Bad(format!(
                "{name}: the format can be told neither from the extension nor from its \
                 beginning; give --input-format jsonl, json, csv, tsv, txt or openai"
            )))
        }
    }
}

/// The extension that tells a format: in small letters, without that of a packer.
fn extension(path: &Path) -> Option<String> {
    let of = |path: &Path| path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    match of(path).as_deref() {
        Some("gz" | "zst") => of(&path.with_extension("")),
        other => other.map(String::from),
    }
}

/// A Parquet file is read from its end on.
fn seekable(source: &Source) -> Result<Found, InputError> {
    match source.is_regular() {
        true => Ok(Found::Parquet),
        false => Err(InputError::Bad(format!(
            "{}: a Parquet file cannot be read from a pipe; name the file",
            shown(source.name())
        ))),
    }
}

#[cfg(not(feature = "parquet"))]
fn no_parquet(source: &Source) -> InputError {
    InputError::Bad(format!(
        "{}: this build of llmopt cannot read Parquet files; build it with --features parquet, or write the file as CSV or JSONL",
        shown(source.name())
    ))
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
    let (mut lines, mut elements) =
        if array { (None, Some(Elements::new(reader))) } else { (Some(Lines::new(reader)), None) };
    for _ in 0..LOOKED_AT {
        let next = match (&mut lines, &mut elements) {
            (Some(lines), _) => lines.next_line(),
            (_, Some(elements)) => elements.next_element(),
            _ => Ok(None),
        };
        let next = next.map_err(|e| unreadable(source, &e))?;
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
struct Start {
    line: Vec<u8>,
    /// Not even a blank line is there.
    nothing: bool,
}

impl Start {
    fn of(source: &Source) -> Result<Start, InputError> {
        let failed = |e: io::Error| unreadable(source, &e);
        let mut reader = source.open()?;
        let (mut all, mut line) = (Vec::new(), Vec::new());
        let most = LONGEST_RECORD as u64 + 1;
        loop {
            line.clear();
            let count = (&mut reader).take(most).read_until(b'\n', &mut line).map_err(failed)?;
            all.extend_from_slice(&line);
            if count == 0
                || line.iter().any(|b| !b.is_ascii_whitespace())
                || all.len() as u64 >= most
            {
                break;
            }
        }
        let nothing = all.is_empty();
        if !source.is_regular() {
            source.put_back(Box::new(Cursor::new(all).chain(reader)));
        }
        Ok(Start { line, nothing })
    }

    /// The line without white space around it; empty if it is no text.
    fn text(&self) -> &str {
        let bytes = self.line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&self.line);
        std::str::from_utf8(bytes).unwrap_or_default().trim()
    }

    /// The line with the white space around it, which may separate columns.
    fn line(&self) -> &str {
        let bytes = self.line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&self.line);
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    fn is_empty(&self) -> bool {
        self.text().is_empty()
    }

    /// An array of objects, or one whose first element stands on the next line.
    fn is_array(&self) -> bool {
        self.text().strip_prefix('[').is_some_and(|rest| {
            matches!(rest.trim_start().as_bytes().first(), None | Some(b'{' | b']'))
        })
    }

    /// The kind of what begins like JSON.
    fn json(&self, source: &Source) -> Result<Kind, InputError> {
        let array = self.is_array();
        let dialect = dialect(source, self, array)?;
        Ok(if array { Kind::Array(dialect) } else { Kind::Lines(dialect) })
    }
}

impl File {
    fn records(&self, rules: &Rules) -> Result<Records, InputError> {
        let reader = || self.source.open();
        Ok(match &self.kind {
            Kind::Text => Records::Text(Lines::new(reader()?)),
            Kind::Lines(dialect) => Records::Lines(Lines::new(reader()?), *dialect),
            Kind::Array(dialect) => Records::Array(Elements::new(reader()?), *dialect),
            Kind::Csv(header) => Records::Csv(Box::new(csv::Rows::open(
                &self.source,
                header.clone(),
                rules.clone(),
            )?)),
            #[cfg(feature = "parquet")]
            Kind::Parquet => Records::Parquet(Box::new(
                super::parquet::Rows::open(&self.source, rules)
                    .map_err(|e| unreadable(&self.source, &e))?,
            )),
            Kind::Folder(tree) => Records::Folder(Walk::new(tree.clone())),
            Kind::Typed(prompts) => Records::Typed(prompts.clone(), 0),
        })
    }

    fn is_table(&self) -> bool {
        match self.kind {
            Kind::Csv(_) => true,
            #[cfg(feature = "parquet")]
            Kind::Parquet => true,
            _ => false,
        }
    }

    /// That what the reading asks for can be there at all, where that is known without a look at the records.
    fn check_reading(&self, reading: &Reading) -> Result<(), InputError> {
        let bad =
            |what: String| Err(InputError::Bad(format!("{}: {what}", shown(self.source.name()))));
        match self.kind {
            Kind::Text | Kind::Folder(_) | Kind::Typed(_)
                if reading.is_data() || reading.id_field.is_some() =>
            {
                match reading.check_names(&["prompt".to_string()], "texts have only") {
                    Ok(()) => Ok(()),
                    // An empty stream that was to be a table.
                    Err(_)
                        if !self.source.is_regular()
                            && reading.format.is_some_and(|f| f != InputFormat::Txt) =>
                    {
                        Ok(())
                    }
                    Err(what) => bad(what),
                }
            }
            Kind::Lines(Dialect::OpenAi) | Kind::Array(Dialect::OpenAi) if reading.is_data() => {
                let flag = if reading.template.is_some() { "--template" } else { "--prompt-field" };
                bad(format!(
                    "these are OpenAI requests, whose prompts are in their bodies; leave {flag} out"
                ))
            }
            _ => Ok(()),
        }
    }

    /// Names of the fields of an ordinary file's first records, and of those that columns ask for wherever they are: a column of nothing
    /// would be made of a name mistyped.
    fn first_names(&self, rules: &Rules) -> Result<Vec<String>, InputError> {
        let (mut names, mut known) = (Vec::new(), HashSet::new());
        if !self.source.is_regular() {
            return Ok(names);
        }
        let mut records = self.records(rules)?;
        let wanted = &rules.reading.wanted;
        for count in 0.. {
            let further = count >= LOOKED_AT;
            if further && wanted.iter().all(|name| known.contains(name)) {
                break;
            }
            let next = match &mut records {
                Records::Lines(lines, _) => lines.next_line(),
                Records::Array(elements, _) => elements.next_element(),
                _ => return Ok(names),
            };
            let Some((_, text)) = next.map_err(|e| unreadable(&self.source, &e))? else { break };
            let mut found = json::names(text.unwrap_or_default(), rules);
            found.retain(|name| (!further || wanted.contains(name)) && known.insert(name.clone()));
            names.extend(found);
        }
        Ok(names)
    }

    /// That one of an ordinary file's first records at least has the form of one: a file that is wholly wrong is said to be, once, before any work.
    fn can_be_used(&self, rules: &Rules) -> Result<(), InputError> {
        if !self.source.is_regular() {
            return Ok(());
        }
        let name = shown(self.source.name());
        let mut records = self.records(rules)?;
        let mut warnings = Warnings::default();
        let mut first: Option<(u64, Fault)> = None;
        for count in 0..LOOKED_AT {
            let next =
                records.next(rules, &mut warnings).map_err(|e| unreadable(&self.source, &e))?;
            match (next, first) {
                (None, None) => {
                    return Err(InputError::Bad(format!("{name}: there is no record in it")));
                }
                (None, Some((line, (_, message)))) => {
                    let which = if count == 1 {
                        "its one record has not".to_string()
                    } else {
                        format!("none of its {count} records has")
                    };
                    return Err(unusable(&name, &which, line, &message));
                }
                // A template that fails for every record, as one with an unknown filter does, is wrong itself.
                (Some((_, parsed)), _)
                    if parsed.usable && !matches!(parsed.request, Err(("template", _))) =>
                {
                    return Ok(());
                }
                (Some((line, parsed)), None) => {
                    first = parsed.request.err().map(|fault| (line, fault))
                }
                (Some(_), some) => first = some,
            }
        }
        let Some((line, (_, message))) = first else { return Ok(()) };
        Err(unusable(&name, &format!("none of its first {LOOKED_AT} records has"), line, &message))
    }
}

/// The failure of reading a file: what is packed wrongly makes a bad file.
fn unreadable(source: &Source, error: &io::Error) -> InputError {
    let message = format!("{}: {}", shown(source.name()), super::source::why(error));
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
            InputError::Bad(message)
        }
        _ => InputError::Io(message),
    }
}

fn unusable(name: &str, which: &str, line: u64, message: &str) -> InputError {
    InputError::Bad(format!("{name}:{line}: {message}; {which} the form of a record"))
}

/// One file being read.
struct Open {
    label: Arc<str>,
    source: Source,
    records: Records,
    /// A record came.
    begun: bool,
}

enum Records {
    Text(Lines),
    Lines(Lines, Dialect),
    Array(Elements, Dialect),
    Csv(Box<csv::Rows>),
    #[cfg(feature = "parquet")]
    Parquet(Box<super::parquet::Rows>),
    Folder(Walk),
    /// Prompts, and how many of them have been given.
    Typed(Arc<[String]>, usize),
}

impl Records {
    /// The next record and its line or number; blank lines are none in JSON.
    fn next(
        &mut self,
        rules: &Rules,
        warnings: &mut Warnings,
    ) -> io::Result<Option<(u64, Parsed)>> {
        match self {
            Records::Text(lines) => text(lines, rules),
            Records::Lines(lines, dialect) => loop {
                lines.skip_blank()?;
                let Some((line, text)) = lines.next_line()? else { return Ok(None) };
                if text.as_ref().is_ok_and(|text| text.trim().is_empty()) {
                    continue;
                }
                return Ok(Some((line, object(text, *dialect, rules, warnings))));
            },
            Records::Array(elements, dialect) => {
                let next = elements.next_element()?;
                Ok(next.map(|(number, text)| (number, object(text, *dialect, rules, warnings))))
            }
            Records::Csv(rows) => rows.next_record(),
            #[cfg(feature = "parquet")]
            Records::Parquet(rows) => rows.next_record(rules),
            Records::Folder(walk) => walk.next_record(rules),
            Records::Typed(prompts, given) => {
                let next = prompts.get(*given).map(|text| plain(text, rules));
                *given += 1;
                Ok(next.map(|parsed| (*given as u64, parsed)))
            }
        }
    }
}

fn object(
    text: Result<&str, Fault>,
    dialect: Dialect,
    rules: &Rules,
    warnings: &mut Warnings,
) -> Parsed {
    match (text, dialect) {
        (Err((code, message)), _) => Parsed::bad(code, message),
        (Ok(text), Dialect::OpenAi) => openai::read(text, warnings),
        (Ok(text), Dialect::Record) => json::read(text, rules, warnings),
    }
}

/// The next line as a prompt.
pub(super) fn text(lines: &mut Lines, rules: &Rules) -> io::Result<Option<(u64, Parsed)>> {
    let next = lines.next_line()?;
    Ok(next.map(|(line, text)| {
        let parsed = match text {
            Err((code, message)) => Parsed::bad(code, message),
            Ok(text) => plain(text, rules),
        };
        (line, parsed)
    }))
}

/// A text that is all there is of its record; a template sees it as `prompt`.
fn plain(text: &str, rules: &Rules) -> Parsed {
    let mut found = reading::Found { prompt: OriginalPrompt::Text(text.to_string()), usable: true };
    let content = match &rules.reading.template {
        Some(template) => made(template, &[("prompt", text.into())], &mut found),
        None => prompt(text),
    };
    Parsed {
        id: None,
        id_is_number: false,
        prompt: found.prompt,
        carried: Vec::new(),
        input: None,
        request: content
            .map(|content| PromptRequest { content, generation: GenerationFields::default() }),
        usable: true,
        below: None,
    }
}

/// A folder whose texts are prompts.
#[derive(Clone)]
struct Tree {
    root: PathBuf,
    /// Digest of names, lengths and times, once somebody has gone through all of it: the next one must find the same.
    seen: Arc<Mutex<Option<[u8; 32]>>>,
}

impl Tree {
    fn new(root: &Path) -> Tree {
        Tree { root: root.to_path_buf(), seen: Arc::default() }
    }
}

/// What cannot be read below a folder, with its place: the folder alone would not say which of thousands it is.
fn unreadable_below(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!(
            "{}: {}; mend it or take it out",
            shown(&path.to_string_lossy()),
            super::source::why(error)
        ),
    )
}

/// The texts below a folder that are its prompts, up to the first that cannot be read.
pub fn texts_below(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let mut walk = Walk::new(Tree::new(folder));
    std::iter::from_fn(move || walk.next_path().ok().flatten())
}

/// The files below a folder in the order of their names, those of a folder within it where that one stands.
struct Walk {
    tree: Tree,
    /// What is left of each folder on the way, the last one first.
    waiting: Vec<Vec<PathBuf>>,
    begun: bool,
    digest: Option<Sha256>,
}

/// Folders in folders that are gone into.
const MAX_DEPTH: usize = 64;

impl Walk {
    fn new(tree: Tree) -> Walk {
        Walk { tree, waiting: Vec::new(), begun: false, digest: Some(Sha256::new()) }
    }

    /// Entries of a folder, last first; hidden ones are none.
    fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
        let hidden = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
        };
        let failed = |e| unreadable_below(folder, &e);
        let listed = std::fs::read_dir(folder).map_err(failed)?;
        let mut all =
            listed.map(|e| e.map(|e| e.path())).collect::<io::Result<Vec<_>>>().map_err(failed)?;
        all.retain(|path| !hidden(path));
        all.sort_by(|a, b| b.cmp(a));
        Ok(all)
    }

    fn next_path(&mut self) -> io::Result<Option<PathBuf>> {
        if !std::mem::replace(&mut self.begun, true) {
            self.waiting.push(Self::entries(&self.tree.root)?);
        }
        while let Some(level) = self.waiting.last_mut() {
            let Some(path) = level.pop() else {
                self.waiting.pop();
                continue;
            };
            // Links to folders could lead round in circles.
            if std::fs::symlink_metadata(&path).map_err(|e| unreadable_below(&path, &e))?.is_dir() {
                if self.waiting.len() >= MAX_DEPTH {
                    return Err(io::Error::other(format!(
                        "{}: more than {MAX_DEPTH} folders deep",
                        path.display()
                    )));
                }
                self.waiting.push(Self::entries(&path)?);
                continue;
            }
            let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
            if matches!(extension.as_deref(), Some("txt" | "md"))
                && std::fs::metadata(&path).map_err(|e| unreadable_below(&path, &e))?.is_file()
            {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    fn next_record(&mut self, rules: &Rules) -> io::Result<Option<(u64, Parsed)>> {
        let Some(path) = self.next_path()? else {
            if let Some(digest) = self.digest.take() {
                let found: [u8; 32] = digest.finalize().into();
                let mut seen = self.tree.seen.lock().unwrap_or_else(PoisonError::into_inner);
                if *seen.get_or_insert(found) != found {
                    return Err(io::Error::other(
                        "its files were changed after they were first looked at; start again once they are complete",
                    ));
                }
            }
            return Ok(None);
        };
        let mut bytes = Vec::new();
        let mut read = || {
            let file = std::fs::File::open(&path)?;
            let length = file.metadata()?.len();
            file.take(LONGEST_RECORD as u64 + 1).read_to_end(&mut bytes)?;
            Ok(length)
        };
        let length = read().map_err(|e: io::Error| unreadable_below(&path, &e))?;
        let below =
            path.strip_prefix(&self.tree.root).unwrap_or(&path).to_string_lossy().into_owned();
        if let Some(digest) = &mut self.digest {
            digest.update(below.as_bytes());
            digest.update(length.to_le_bytes());
            digest.update(&bytes);
        }
        let read = match bytes.len() > LONGEST_RECORD {
            true => Err(too_long(length)),
            false => utf8(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes)),
        };
        let parsed = match read {
            Ok(text) => plain(text, rules),
            Err((code, message)) => Parsed { usable: true, ..Parsed::bad(code, message) },
        };
        Ok(Some((1, Parsed { below: Some(below), ..parsed })))
    }
}

/// Records one after the other; a failure to read ends them. It never reads further than the record it gives.
pub struct PromptReader {
    labels: HashSet<Arc<str>>,
    waiting: VecDeque<File>,
    rules: Rules,
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

    /// What is to be said once reading has ended: columns that are asked for and that no record had.
    pub fn take_last_warnings(&mut self) -> Vec<String> {
        let (met, hoped) = (&self.warnings.met, std::mem::take(&mut self.rules.hoped));
        if met.is_empty() {
            return Vec::new();
        }
        let one = |name: &String| {
            let known =
                self.rules.reading.own.iter().copied().chain(met.iter().map(String::as_str));
            let meant = crate::units::did_you_mean(name, known);
            let some: Vec<&str> = met.iter().take(8).map(String::as_str).collect();
            format!(
                "--columns: no record has {}; {meant}records have {}",
                shown(name),
                shown(&some.join(", "))
            )
        };
        hoped.iter().filter(|name| !met.contains(*name)).map(one).collect()
    }

    fn open_next(&mut self) -> Option<Result<Open, InputError>> {
        let file = self.waiting.pop_front()?;
        let open = file.records(&self.rules).map(|records| Open {
            label: file.label.clone(),
            source: file.source.clone(),
            records,
            begun: false,
        });
        Some(open)
    }

    fn finish(
        &mut self,
        mut file: Arc<str>,
        mut label: Arc<str>,
        line: u64,
        parsed: Parsed,
    ) -> Record {
        let Parsed { id, mut id_is_number, prompt, carried, input, mut request, usable: _, below } =
            parsed;
        let mut place = format!("{label}:{line}");
        if let Some(path) = below {
            place = format!("{label}/{path}");
            (file, label) =
                (format!("{}/{path}", file.trim_end_matches('/')).into(), place.clone().into());
        }
        let id = match id {
            Some(id) => {
                let number = id_is_number && !self.ids_are_text;
                if self.ids.insert(&id, number) && !self.is_anothers_place(&id, &place) {
                    id
                } else {
                    let short: String = id.chars().take(60).collect();
                    request = Err((
                        "duplicate_id",
                        format!("the id '{}' is another record's", shown(&short)),
                    ));
                    id_is_number = false;
                    place
                }
            }
            None => place,
        };
        // Labels and not paths: a run that is resumed by another spelling of the path finds the same errors.
        let request = request.map_err(|(code, message)| {
            RecordError::new(code, format!("{}:{line}: {message}", shown(&label)))
        });
        Record { origin: Origin { id, id_is_number, file, line, prompt, carried, input }, request }
    }

    /// Whether this id is the default id (`file:line`) of another record of these files.
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
            match open.records.next(&self.rules, &mut self.warnings) {
                Ok(Some((line, mut parsed))) => {
                    open.begun = true;
                    let (name, label) = (open.source.name().clone(), open.label.clone());
                    if parsed.carried.is_empty() && !self.rules.columns.is_empty() {
                        parsed.carried = vec![InputCell::Missing; self.rules.columns.len()];
                    }
                    return Some(Ok(self.finish(name, label, line, parsed)));
                }
                Ok(None) => {
                    if !open.begun && !open.source.is_regular() {
                        let name = open.source.name();
                        let name =
                            if &**name == "-" { "standard input".to_string() } else { shown(name) };
                        self.warnings.say(format!("{name} is empty: there is no prompt in it"));
                    }
                    self.current = None;
                }
                Err(error) => {
                    self.failed = true;
                    return Some(Err(unreadable(&open.source, &error)));
                }
            }
        }
    }
}

//! CSV to records, as RFC 4180 has it, with any line ends. The reader is our own because it must know on which line a quote opened that
//! is never closed: other readers swallow the rest of the file without a word. Such a file is refused before any work, a header without
//! `prompt` too. A row of another length than the header is one bad record. Blank lines are none.
//!
//! Over 500 lines: the reader of bytes and what a row means share the states that a quote, a line end and a header leave behind.

use super::fault::{Fault, LONGEST_RECORD, too_long, utf8};
use super::fields::GenerationFields;
use super::reading::{Found, Reading, Rules, made, places};
use super::record::{InputCell, InputError, OriginalPrompt, Parsed, PromptRequest, prompt};
use super::source::{Reader, Source};
use crate::units::shown;
use serde_json::Value;
use std::io::{self, BufRead};
use std::sync::Arc;

/// Columns of a file.
#[derive(Debug)]
pub(super) struct Header {
    names: Vec<String>,
    /// The column of the prompt; the last one that a template needs.
    prompt: usize,
    id: Option<usize>,
    /// Columns that are settings.
    settings: Vec<usize>,
    /// Columns that are carried: all but those whose values a line says anyway.
    carried: Vec<usize>,
    /// Lines that it took.
    lines: u64,
    /// What separates cells.
    pub separator: u8,
}

/// A row as it stands in the file.
#[derive(Debug, Default)]
struct Row {
    /// All fields' bytes, unquoted.
    bytes: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
    /// The line on which it begins.
    line: u64,
    /// Bytes it has in the file.
    length: u64,
    /// The line on which a quote opened that the end of the file left open.
    unclosed: Option<u64>,
}

impl Row {
    /// Empty, and without the room of a long one.
    fn begin(&mut self, line: u64) {
        self.bytes.clear();
        self.bytes.shrink_to(1 << 16);
        self.ends.clear();
        self.ends.shrink_to(1 << 12);
        (self.length, self.unclosed, self.line) = (0, None, line);
    }

    fn fields(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| self.bytes.get(start..end).unwrap_or_default())
    }

    fn is_too_long(&self) -> bool {
        self.length > LONGEST_RECORD as u64
    }
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    /// At the beginning of a field.
    Start,
    /// In a field without quotes.
    Bare,
    /// Between quotes.
    Quoted,
    /// After a quote between quotes: the end, or half of a doubled one.
    Quote,
}

/// Cuts bytes into rows.
struct Cutter {
    reader: Reader,
    separator: u8,
    line: u64,
    at_start: bool,
    /// The last row ended with CR: an LF that follows belongs to it.
    skip_lf: bool,
}

impl Cutter {
    fn new(reader: Reader, separator: u8) -> Cutter {
        Cutter { reader, separator, line: 1, at_start: true, skip_lf: false }
    }

    fn fill(&mut self) -> io::Result<&[u8]> {
        loop {
            match self.reader.fill_buf() {
                Ok(_) => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.reader.fill_buf()
    }

    /// The header's row; a line that names the separator stands before it.
    fn first(&mut self, row: &mut Row) -> io::Result<bool> {
        let found = self.next(row)?;
        let cells: Vec<&[u8]> = row.fields().take(3).collect();
        let line = cells.join(&self.separator);
        match found && std::str::from_utf8(&line).is_ok_and(|line| named_separator(line).is_some())
        {
            true => self.next(row),
            false => Ok(found),
        }
    }

    /// Goes over a byte order mark at the beginning of the file.
    fn skip_mark(&mut self) -> io::Result<()> {
        // Pipes may give three bytes in pieces; a mark in pieces is then part of the first name and reported as such.
        if std::mem::take(&mut self.at_start) && self.fill()?.starts_with(b"\xef\xbb\xbf") {
            self.reader.consume(3);
        }
        Ok(())
    }

    /// The next row that is not blank; false at the end. What is past [`LONGEST_RECORD`] is counted but not kept.
    fn next(&mut self, row: &mut Row) -> io::Result<bool> {
        row.begin(self.line);
        self.skip_mark()?;
        let (mut state, mut opened) = (State::Start, 0);
        let separator = self.separator;
        loop {
            let skip = self.skip_lf;
            let mut line = self.line;
            let chunk = self.fill()?;
            if chunk.is_empty() {
                self.skip_lf = false;
                if row.length == 0 {
                    return Ok(false);
                }
                row.unclosed = (state == State::Quoted).then_some(opened);
                row.ends.push(row.bytes.len());
                return Ok(true);
            }
            let (mut used, mut ended, mut cr) = (0, false, false);
            if skip && chunk.starts_with(b"\n") {
                used = 1;
            }
            let room = |row: &Row| row.bytes.len() < LONGEST_RECORD;
            while let Some(&byte) = chunk.get(used).filter(|_| !ended) {
                used += 1;
                let next = match (state, byte) {
                    (State::Quoted, b'"') => State::Quote,
                    (State::Quoted, _) => {
                        line += u64::from(byte == b'\n');
                        if room(row) {
                            row.bytes.push(byte);
                        }
                        State::Quoted
                    }
                    (State::Quote, b'"') => {
                        row.bytes.push(byte);
                        State::Quoted
                    }
                    (_, byte) if byte == separator => {
                        if row.ends.len() < LONGEST_RECORD {
                            row.ends.push(row.bytes.len());
                        }
                        State::Start
                    }
                    (_, b'\n' | b'\r') => {
                        line += 1;
                        cr = byte == b'\r';
                        if row.length == 0 {
                            // A blank line; the LF of a CR is dealt with above or right here.
                            if cr && chunk.get(used) == Some(&b'\n') {
                                used += 1;
                                cr = false;
                            }
                            if !cr {
                                // A run of empty lines is skipped at once: a file may have 10^9 of them.
                                let rest = chunk.get(used..).unwrap_or_default();
                                let more =
                                    rest.iter().position(|&b| b != b'\n').unwrap_or(rest.len());
                                used += more;
                                line += more as u64;
                            }
                            row.line = line;
                            if cr && used == chunk.len() {
                                break;
                            }
                            cr = false;
                            continue;
                        }
                        ended = true;
                        State::Start
                    }
                    (State::Start, b'"') => {
                        opened = line;
                        State::Quoted
                    }
                    (State::Start | State::Bare, _) => {
                        if room(row) {
                            row.bytes.push(byte);
                        }
                        State::Bare
                    }
                    // Text after a closing quote: taken as it stands.
                    (State::Quote, _) => {
                        if room(row) {
                            row.bytes.push(byte);
                        }
                        State::Bare
                    }
                };
                state = next;
                row.length += 1;
            }
            self.skip_lf = cr;
            self.line = line;
            self.reader.consume(used);
            if ended {
                row.ends.push(row.bytes.len());
                return Ok(true);
            }
        }
    }
}

/// The separator that a first line such as `sep=;` names, which spreadsheets write and take for no header.
pub(super) fn named_separator(line: &str) -> Option<u8> {
    let line = line.trim_end_matches(['\r', '\n']);
    let line = line.strip_prefix('"').and_then(|line| line.strip_suffix('"')).unwrap_or(line);
    let (name, separator) = (line.get(..4)?, line.get(4..)?);
    match separator.as_bytes() {
        [c] if name.eq_ignore_ascii_case("sep=")
            && c.is_ascii()
            && *c != b'"'
            && !c.is_ascii_alphanumeric() =>
        {
            Some(*c)
        }
        _ => None,
    }
}

/// The separator of a header's line: the one under which it has the columns that are asked for, of several the one that makes most columns.
pub(super) fn separator(line: &str, reading: &Reading) -> u8 {
    if let Some(named) = named_separator(line) {
        return named;
    }
    let line = line.trim_end_matches(['\r', '\n']).as_bytes().to_vec();
    let mut best = (false, 0, b',');
    for candidate in [b',', b';', b'\t'] {
        let mut row = Row::default();
        let mut cutter = Cutter::new(Box::new(io::Cursor::new(line.clone())), candidate);
        if !cutter.next(&mut row).unwrap_or(false) {
            continue;
        }
        let good = header(&row, 1, candidate, reading).is_ok();
        if (good, row.ends.len()) > (best.0, best.1) {
            best = (good, row.ends.len(), candidate);
        }
    }
    best.2
}

/// Reads the header, and an ordinary file to its end. Gives the header and the names of the columns that are carried through;
/// nothing for an empty stream.
pub(super) fn check(
    source: &Source,
    separator: u8,
    reading: &Reading,
) -> Result<Option<(Header, Vec<String>)>, InputError> {
    let name = shown(source.name());
    let io = |e: io::Error| InputError::Bad(format!("{name}: {}", super::source::why(&e)));
    let bad = |line: u64, what: String| InputError::Bad(format!("{name}:{line}: {what}"));
    let mut cutter = Cutter::new(source.open()?, separator);
    let mut row = Row::default();
    if !cutter.first(&mut row).map_err(io)? {
        if !source.is_regular() {
            return Ok(None);
        }
        return Err(bad(
            1,
            "the file is empty; a header with a column prompt is needed".to_string(),
        ));
    }
    let header =
        header(&row, cutter.line, separator, reading).map_err(|what| bad(row.line, what))?;
    if source.is_regular() {
        while cutter.next(&mut row).map_err(io)? {
            if let Some(line) = row.unclosed {
                return Err(bad(line, "a quote opens here and is never closed".to_string()));
            }
        }
    } else {
        source.put_back(Box::new(Resumed { reader: cutter.reader, skip_lf: cutter.skip_lf }));
    }
    let carried = header.carried_names().map(|(_, name)| name.to_string()).collect();
    Ok(Some((header, carried)))
}

/// A stream after its header; the LF of a header's CR LF may still be in it.
struct Resumed {
    reader: Reader,
    skip_lf: bool,
}

impl io::Read for Resumed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = io::Read::read(&mut self.fill_buf()?, buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Resumed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.skip_lf {
            let starts = self.reader.fill_buf()?.first() == Some(&b'\n');
            self.skip_lf = false;
            if starts {
                self.reader.consume(1);
            }
        }
        self.reader.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.reader.consume(count);
    }
}

fn header(row: &Row, next_line: u64, separator: u8, reading: &Reading) -> Result<Header, String> {
    if let Some(line) = row.unclosed {
        return Err(format!("a quote opens on line {line} and is never closed"));
    }
    if row.is_too_long() {
        return Err(too_long(row.length).1);
    }
    let names = row
        .fields()
        .map(|f| {
            std::str::from_utf8(f)
                .map(|name| name.trim().to_string())
                .map_err(|_| "the header is not UTF-8".to_string())
        })
        .collect::<Result<Vec<_>, _>>()?;
    let place = |wanted: &str| -> Result<Option<usize>, String> {
        let mut found = names.iter().enumerate().filter(|(_, n)| *n == wanted).map(|(i, _)| i);
        match (found.next(), found.next()) {
            (_, Some(_)) => Err(format!("the header has two columns {wanted}")),
            (found, None) => Ok(found),
        }
    };
    for name in reading.settings() {
        place(name)?;
    }
    let id = place(reading.id_name())?;
    let prompt = match (&reading.template, &reading.prompt_field) {
        (Some(_), _) | (None, Some(_)) => {
            reading.check_names(&names, "the header has")?;
            match (&reading.template, &reading.prompt_field) {
                (Some(template), _) => {
                    let needed = |name: &String| template.needed().contains(name);
                    names.iter().rposition(needed).unwrap_or(0)
                }
                (None, field) => place(field.as_deref().unwrap_or_default())?.unwrap_or(0),
            }
        }
        (None, None) => {
            let Some(prompt) = place("prompt")? else {
                let some: Vec<String> =
                    names.iter().take(8).map(|n| n.chars().take(30).collect()).collect();
                let likely =
                    |name: &&String| LIKELY.iter().any(|word| name.to_lowercase().contains(word));
                let named = some
                    .iter()
                    .find(likely)
                    .or_else(|| some.iter().find(|name| !name.is_empty() && *name != "id"));
                let example = named.map_or("NAME", |name| name);
                return Err(format!(
                    "the header has no column prompt, but {}; --prompt-field {} takes that column, --template makes a prompt of several",
                    shown(&some.join(", ")),
                    shown(&if example.contains(' ') {
                        format!("'{example}'")
                    } else {
                        example.to_string()
                    })
                ));
            };
            reading.check_names(&names, "the header has")?;
            prompt
        }
    };
    let own = |i: usize| reading.template.is_none() && i == prompt;
    let is_setting = |i: usize, name: &str| {
        !own(i) && Some(i) != id && reading.settings().any(|setting| setting == name)
    };
    let settings =
        names.iter().enumerate().filter(|(i, n)| is_setting(*i, n)).map(|(i, _)| i).collect();
    let mut known = std::collections::HashSet::new();
    let kept =
        |(_, name): &(usize, &String)| !reading.is_told(name) && known.insert(name.to_string());
    let carried = names.iter().enumerate().filter(kept).map(|(i, _)| i).collect();
    Ok(Header { prompt, id, settings, carried, lines: next_line, separator, names })
}

/// Words in the names of columns that are likely to be prompts.
const LIKELY: [&str; 9] = [
    "question",
    "instruction",
    "query",
    "text",
    "message",
    "content",
    "body",
    "input",
    "description",
];

impl Header {
    fn carried_names(&self) -> impl Iterator<Item = (usize, &str)> {
        self.carried.iter().filter_map(|&i| self.names.get(i).map(|name| (i, &name[..])))
    }
}

fn separated_by(separator: u8) -> &'static str {
    match separator {
        b',' => "commas",
        b';' => "semicolons",
        b'\t' => "tabs",
        _ => "the separator",
    }
}

/// The rows of a file.
pub(super) struct Rows {
    cutter: Cutter,
    header: Arc<Header>,
    rules: Rules,
    /// For each carried column of the run, the column of this file.
    carried: Vec<Option<usize>>,
    row: Row,
}

impl Rows {
    /// Opens a file that [`check`] has seen.
    pub fn open(source: &Source, header: Arc<Header>, rules: Rules) -> Result<Rows, InputError> {
        let mut cutter = Cutter::new(source.open()?, header.separator);
        let mut row = Row::default();
        if source.is_regular() {
            cutter
                .first(&mut row)
                .map_err(|e| InputError::Io(format!("{}: {e}", shown(source.name()))))?;
        } else {
            (cutter.line, cutter.at_start) = (header.lines, false);
        }
        let names: Vec<&str> = rules.columns.iter().map(String::as_str).collect();
        let carried = places(&names, header.carried_names());
        Ok(Rows { cutter, header, rules, carried, row })
    }

    /// The next record and its line.
    pub fn next_record(&mut self) -> io::Result<Option<(u64, Parsed)>> {
        if !self.cutter.next(&mut self.row)? {
            return Ok(None);
        }
        Ok(Some((self.row.line, self.read())))
    }

    fn read(&self) -> Parsed {
        let fields = self.row.ends.len();
        let columns = self.header.names.len();
        let prompt_place = self.header.prompt;
        if self.row.is_too_long() {
            let (code, message) = too_long(self.row.length);
            return Parsed::bad(code, message);
        }
        let cells: Vec<Result<&str, Fault>> = self.row.fields().map(utf8).collect();
        // Programs fill rows up with empty cells, or leave the last ones out.
        let surplus = cells.get(columns..).unwrap_or_default().iter().any(|cell| *cell != Ok(""));
        let wrong = if let Some(line) = self.row.unclosed {
            Some(format!(
                "a quote opens on line {line} and is never closed; what follows it is lost"
            ))
        } else if surplus {
            Some(format!(
                "the row has {fields} fields, the header {columns}; a field that holds {} needs quotes",
                separated_by(self.header.separator)
            ))
        } else if fields <= prompt_place {
            let name = self.header.names.get(prompt_place).map_or("prompt", String::as_str);
            Some(format!(
                "the row has {fields} fields and no {}, which is field {}",
                shown(name),
                prompt_place + 1
            ))
        } else {
            None
        };
        // What stands left of the first thing that is wrong is what it seems; a comma too many is most likely the prompt's.
        let sure = match (&wrong, self.row.unclosed) {
            (None, _) => columns,
            (Some(_), None) => prompt_place.min(fields),
            (Some(_), Some(_)) => prompt_place.min(fields.saturating_sub(1)),
        };
        let cell = |place: usize| match cells.get(place) {
            Some(Ok(text)) if place < sure => *text,
            _ => "",
        };
        let mut found = Found::default();
        let ask = || -> Result<PromptRequest, Fault> {
            if let Some(message) = wrong {
                return Err(("bad_csv", message));
            }
            if let Some(Err(fault)) = cells.iter().find(|cell| cell.is_err()) {
                return Err(fault.clone());
            }
            let content = match &self.rules.reading.template {
                Some(template) => {
                    let names = self.header.names.iter().enumerate();
                    let values: Vec<(&str, Value)> =
                        names.map(|(i, name)| (&name[..], Value::from(cell(i)))).collect();
                    made(template, &values, &mut found)?
                }
                None => prompt(cell(prompt_place))?,
            };
            let mut generation = GenerationFields::default();
            for &place in &self.header.settings {
                let name = self.header.names.get(place).map_or("", String::as_str);
                generation.set_text(name, cell(place))?;
            }
            Ok(PromptRequest { content, generation })
        };
        let request = ask();
        let templated = self.rules.reading.template.is_some();
        let readable = prompt_place < sure && matches!(cells.get(prompt_place), Some(Ok(_)));
        let prompt = match readable && !templated {
            true => OriginalPrompt::Text(cell(prompt_place).to_string()),
            false => found.prompt,
        };
        let object = || {
            let mut object = serde_json::Map::new();
            object.extend(
                self.header
                    .carried_names()
                    .map(|(i, name)| (name.to_string(), Value::from(cell(i)))),
            );
            Value::Object(object).to_string()
        };
        Parsed {
            // An empty cell is no id.
            id: self.header.id.map(|place| cell(place).to_string()).filter(|id| !id.is_empty()),
            id_is_number: false,
            prompt,
            carried: self
                .carried
                .iter()
                .map(|place| {
                    place.map_or(InputCell::Missing, |p| InputCell::Text(cell(p).to_string()))
                })
                .collect(),
            input: self.rules.object.then(object),
            request,
            usable: readable,
            below: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_separator_is_named_in_a_line_of_its_own() {
        for (line, named) in [
            ("sep=;", Some(b';')),
            ("SEP=,\r\n", Some(b',')),
            ("\"sep=|\"", Some(b'|')),
            ("sep=\t\n", Some(b'\t')),
            ("sep=", None),
            ("sep=;;", None),
            ("sep=a", None),
            ("sep=é", None),
            ("step=;", None),
            ("prompt", None),
            ("", None),
        ] {
            assert_eq!(named_separator(line), named, "{line:?}");
        }
        let mut cutter = Cutter::new(
            Box::new(io::Cursor::new(b"\n\n\r\n\nsep=;\r\n\na;b\n1;2\n".to_vec())),
            b';',
        );
        let mut row = Row::default();
        assert!(cutter.first(&mut row).unwrap());
        assert_eq!(
            (row.fields().collect::<Vec<_>>(), row.line),
            (vec![&b"a"[..], b"b"], 7),
            "blank lines are counted"
        );
        assert!(cutter.next(&mut row).unwrap() && row.line == 8);
    }
}

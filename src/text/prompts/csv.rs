//! CSV to records, as RFC 4180 has it, with any line ends. The reader is our own because it must know on which line a quote opened that
//! is never closed: other readers swallow the rest of the file without a word. Such a file is refused before any work, a header without
//! `prompt` too. A row of another length than the header is one bad record. Blank lines are none.

use super::fault::{Fault, LONGEST_RECORD, too_long, utf8};
use super::fields::{self, GenerationFields};
use super::record::{Asked, Given, InputError, Parsed, prompt};
use super::source::{Reader, Source};
use crate::units::shown;
use std::collections::HashMap;
use std::hash::Hash;
use std::io::{self, BufRead};
use std::sync::Arc;

/// Columns of a file.
#[derive(Debug)]
pub(super) struct Header {
    names: Vec<String>,
    prompt: usize,
    id: Option<usize>,
    /// Columns that are settings.
    settings: Vec<usize>,
    /// Lines that it took.
    lines: u64,
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
    line: u64,
    at_start: bool,
    /// The last row ended with CR: an LF that follows belongs to it.
    skip_lf: bool,
}

impl Cutter {
    fn new(reader: Reader) -> Cutter {
        Cutter { reader, line: 1, at_start: true, skip_lf: false }
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

    /// The next row that is not blank; false at the end. What is past [`LONGEST_RECORD`] is counted but not kept.
    fn next(&mut self, row: &mut Row) -> io::Result<bool> {
        row.bytes.clear();
        row.bytes.shrink_to(1 << 16);
        row.ends.clear();
        row.ends.shrink_to(1 << 12);
        (row.length, row.unclosed, row.line) = (0, None, self.line);
        let (mut state, mut opened) = (State::Start, 0);
        if self.at_start {
            self.at_start = false;
            // Pipes may give three bytes in pieces; a mark in pieces is then part of the first name and reported as such.
            if self.fill()?.starts_with(b"\xef\xbb\xbf") {
                self.reader.consume(3);
            }
        }
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
                    (_, b',') => {
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

/// Reads the header, and an ordinary file to its end. Gives the header and the names of the columns that are carried through;
/// nothing for an empty stream.
pub(super) fn check(source: &Source) -> Result<Option<(Header, Vec<String>)>, InputError> {
    let name = shown(source.name());
    let io = |e: io::Error| InputError::Bad(format!("{name}: {}", super::source::why(&e)));
    let bad = |line: u64, what: String| InputError::Bad(format!("{name}:{line}: {what}"));
    let mut cutter = Cutter::new(source.open()?);
    let mut row = Row::default();
    if !cutter.next(&mut row).map_err(io)? {
        if !source.is_regular() {
            return Ok(None);
        }
        return Err(bad(1, "the file is empty; a header with a column prompt is needed".to_string()));
    }
    let header = header(&row, cutter.line).map_err(|what| bad(row.line, what))?;
    if source.is_regular() {
        while cutter.next(&mut row).map_err(io)? {
            if let Some(line) = row.unclosed {
                return Err(bad(line, "a quote opens here and is never closed".to_string()));
            }
        }
    } else {
        source.put_back(Box::new(Resumed { reader: cutter.reader, skip_lf: cutter.skip_lf }));
    }
    let carried = header.carried().map(|(_, name)| name.to_string()).collect();
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

fn header(row: &Row, next_line: u64) -> Result<Header, String> {
    if let Some(line) = row.unclosed {
        return Err(format!("a quote opens on line {line} and is never closed"));
    }
    if row.is_too_long() {
        return Err(too_long(row.length).1);
    }
    let names = row
        .fields()
        .map(|f| std::str::from_utf8(f).map(|name| name.trim().to_string()).map_err(|_| "the header is not UTF-8".to_string()))
        .collect::<Result<Vec<_>, _>>()?;
    let place = |wanted: &str| -> Result<Option<usize>, String> {
        let mut found = names.iter().enumerate().filter(|(_, n)| *n == wanted).map(|(i, _)| i);
        match (found.next(), found.next()) {
            (_, Some(_)) => Err(format!("the header has two columns {wanted}")),
            (found, None) => Ok(found),
        }
    };
    for name in fields::NAMES {
        place(name)?;
    }
    let id = place("id")?;
    let Some(prompt) = place("prompt")? else {
        let some: Vec<String> = names.iter().take(8).map(|n| n.chars().take(30).collect()).collect();
        let hint = match &names[..] {
            [one] if one.contains(';') => "; separate columns with commas, not semicolons",
            [one] if one.contains('\t') => "; separate columns with commas, not tabs",
            _ => "",
        };
        return Err(format!("the header has no column prompt, but {}{hint}", shown(&some.join(", "))));
    };
    let is_setting = |i: usize, name: &str| i != prompt && Some(i) != id && fields::NAMES.contains(&name);
    let settings = names.iter().enumerate().filter(|(i, n)| is_setting(*i, n)).map(|(i, _)| i).collect();
    Ok(Header { names, prompt, id, settings, lines: next_line })
}

impl Header {
    fn carried(&self) -> impl Iterator<Item = (usize, &str)> {
        self.names.iter().enumerate().filter(|(i, _)| *i != self.prompt && Some(*i) != self.id).map(|(i, n)| (i, &n[..]))
    }
}

/// Where each of these names stands first among others, in time that grows with the names as they do.
pub(super) fn places<N: Hash + Eq, P: Copy>(wanted: &[N], among: impl IntoIterator<Item = (P, N)>) -> Vec<Option<P>> {
    let mut first = HashMap::new();
    for (place, name) in among {
        first.entry(name).or_insert(place);
    }
    wanted.iter().map(|name| first.get(name).copied()).collect()
}

/// The rows of a file.
pub(super) struct Rows {
    cutter: Cutter,
    header: Arc<Header>,
    /// For each carried column of the run, the column of this file.
    carried: Vec<Option<usize>>,
    row: Row,
}

impl Rows {
    /// Opens a file that [`check`] has seen.
    pub fn open(source: &Source, header: Arc<Header>, columns: &[String]) -> Result<Rows, InputError> {
        let mut cutter = Cutter::new(source.open()?);
        let mut row = Row::default();
        if source.is_regular() {
            cutter.next(&mut row).map_err(|e| InputError::Io(format!("{}: {e}", shown(source.name()))))?;
        } else {
            (cutter.line, cutter.at_start) = (header.lines, false);
        }
        let names: Vec<&str> = columns.iter().map(String::as_str).collect();
        let carried = places(&names, header.carried());
        Ok(Rows { cutter, header, carried, row })
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
            Some(format!("a quote opens on line {line} and is never closed; what follows it is lost"))
        } else if surplus {
            Some(format!("the row has {fields} fields, the header {columns}; a field that holds commas needs quotes"))
        } else if fields <= prompt_place {
            Some(format!("the row has {fields} fields and no prompt, which is field {}", prompt_place + 1))
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
        let asked = || -> Result<Asked, Fault> {
            if let Some(message) = wrong {
                return Err(("bad_csv", message));
            }
            if let Some(Err(fault)) = cells.iter().find(|cell| cell.is_err()) {
                return Err(fault.clone());
            }
            let content = prompt(cell(prompt_place))?;
            let mut generation = GenerationFields::default();
            for &place in &self.header.settings {
                let name = self.header.names.get(place).map_or("", String::as_str);
                generation.set_text(name, cell(place))?;
            }
            Ok(Asked { content, generation })
        };
        let readable = prompt_place < sure && matches!(cells.get(prompt_place), Some(Ok(_)));
        Parsed {
            // An empty cell is no id.
            id: self.header.id.map(|place| cell(place).to_string()).filter(|id| !id.is_empty()),
            id_is_number: false,
            given: if readable { Given::Prompt(cell(prompt_place).to_string()) } else { Given::Nothing },
            carried: self.carried.iter().map(|place| place.map_or(String::new(), |p| cell(p).to_string())).collect(),
            asked: asked(),
            usable: readable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local!(static COMPARED: Cell<usize> = const { Cell::new(0) });

    /// A name that counts how often names are compared.
    struct Counted(String);

    impl PartialEq for Counted {
        fn eq(&self, other: &Counted) -> bool {
            COMPARED.set(COMPARED.get() + 1);
            self.0 == other.0
        }
    }

    impl Eq for Counted {}

    impl Hash for Counted {
        fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
            self.0.hash(state);
        }
    }

    #[test]
    fn twice_as_many_columns_are_compared_about_twice_as_often() {
        let compared = |count: usize| {
            let names = || (0..count).map(|n| Counted(format!("column {n}")));
            let wanted: Vec<Counted> = names().collect();
            COMPARED.set(0);
            let found = places(&wanted, names().enumerate());
            assert!(found.iter().enumerate().all(|(n, place)| *place == Some(n)));
            COMPARED.get()
        };
        let (once, twice) = (compared(5_000), compared(10_000));
        assert!(once >= 5_000 && twice < 3 * once, "{once} comparisons of 5,000 names, {twice} of 10,000");
        assert_eq!(places(&["b", "c", "a"], [(0, "a"), (1, "b"), (2, "a")]), [Some(1), None, Some(0)]);
    }
}

//! A JSON array cut into its elements, each as text of bounded length, without holding the array. Whether an element is an object is
//! its reader's business.
// Untrusted input.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

use super::fault::{Fault, LONGEST_RECORD, too_long, utf8};
use super::source::Reader;
use std::io::{self, BufRead};

/// The elements of an array.
pub(super) struct Elements {
    reader: Reader,
    /// Elements so far.
    count: u64,
    place: Place,
    buffer: Vec<u8>,
    length: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// Before the opening bracket.
    Before,
    Inside,
    /// After the closing bracket.
    Closed,
    /// After the end, or after what makes the rest unreadable.
    After,
}

/// Where a byte stands inside an element.
#[derive(Default)]
struct Nesting {
    depth: u64,
    quoted: bool,
    escaped: bool,
}

impl Nesting {
    /// Whether this byte ends the element.
    fn ends(&mut self, byte: u8) -> bool {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' if self.quoted => self.escaped = true,
            b'"' => self.quoted = !self.quoted,
            _ if self.quoted => {}
            b'{' | b'[' => self.depth += 1,
            b',' | b']' if self.depth == 0 => return true,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        false
    }
}

fn bad<'t>(message: &str) -> Result<&'t str, Fault> {
    Err(("bad_json", message.to_string()))
}

impl Elements {
    pub fn new(reader: Reader) -> Elements {
        Elements { reader, count: 0, place: Place::Before, buffer: Vec::new(), length: 0 }
    }

    fn byte(&mut self) -> io::Result<Option<u8>> {
        loop {
            match self.reader.fill_buf() {
                Ok(chunk) => {
                    let byte = chunk.first().copied();
                    self.reader.consume(usize::from(byte.is_some()));
                    return Ok(byte);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Goes over white space, many bytes at a time.
    fn skip_white(&mut self) -> io::Result<()> {
        loop {
            let chunk = match self.reader.fill_buf() {
                Ok(chunk) => chunk,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            let white = chunk.iter().position(|b| !b.is_ascii_whitespace()).unwrap_or(chunk.len());
            if white == 0 {
                return Ok(());
            }
            self.reader.consume(white);
        }
    }

    /// The next byte that is neither white space nor, at the very beginning, a byte order mark.
    fn visible(&mut self) -> io::Result<Option<u8>> {
        loop {
            self.skip_white()?;
            match self.byte()? {
                Some(0xef | 0xbb | 0xbf) if self.place == Place::Before => {}
                Some(byte) if byte.is_ascii_whitespace() => {}
                other => return Ok(other),
            }
        }
    }

    /// Appends bytes up to the comma or bracket that ends an element, and gives that one; `None` if the file ends before.
    fn element(&mut self, first: u8) -> io::Result<Option<u8>> {
        let mut at = Nesting::default();
        if at.ends(first) {
            return Ok(Some(first));
        }
        self.append(&[first]);
        loop {
            let chunk = match self.reader.fill_buf() {
                Ok([]) => return Ok(None),
                Ok(chunk) => chunk,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            let end = chunk.iter().position(|byte| at.ends(*byte));
            let (part, last) = (
                chunk.get(..end.unwrap_or(chunk.len())).unwrap_or(chunk),
                end.and_then(|n| chunk.get(n).copied()),
            );
            let space = (LONGEST_RECORD + 1).saturating_sub(self.buffer.len());
            self.buffer.extend_from_slice(part.get(..space).unwrap_or(part));
            self.length += part.len() as u64;
            let used = part.len() + usize::from(last.is_some());
            self.reader.consume(used);
            if last.is_some() {
                return Ok(last);
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        self.length += bytes.len() as u64;
    }

    /// The next element's number, from 1, and its text or what is wrong with it; `None` at the end.
    pub fn next_element(&mut self) -> io::Result<Option<(u64, Result<&str, Fault>)>> {
        self.buffer.clear();
        self.buffer.shrink_to(1 << 16);
        self.length = 0;
        if self.place == Place::After {
            return Ok(None);
        }
        if self.place == Place::Closed {
            return self.rest();
        }
        let mut first = self.visible()?;
        if self.place == Place::Before {
            if first.is_none() {
                return Ok(None);
            }
            if first != Some(b'[') {
                self.place = Place::After;
                return Ok(Some((1, bad("the file is not an array"))));
            }
            self.place = Place::Inside;
            first = self.visible()?;
            if first == Some(b']') {
                return self.rest();
            }
        }
        self.count += 1;
        let ended = match first {
            Some(first) => self.element(first)?,
            None => None,
        };
        match ended {
            None => {
                self.place = Place::After;
                return Ok(Some((
                    self.count,
                    bad("the file ends inside the array: its last bracket is missing"),
                )));
            }
            Some(b']') => self.place = Place::Closed,
            Some(_) => {}
        }
        if self.length > LONGEST_RECORD as u64 {
            return Ok(Some((self.count, Err(too_long(self.length)))));
        }
        Ok(Some((self.count, utf8(&self.buffer).map(str::trim_end))))
    }

    /// What follows the array: nothing, or one more record that says so.
    fn rest(&mut self) -> io::Result<Option<(u64, Result<&str, Fault>)>> {
        self.place = Place::After;
        let follows = "something follows the array, which is not read: a file has one array; with a record a line, files can be joined";
        Ok(self.visible()?.map(|_| (self.count + 1, bad(follows))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Vec<String> {
        let mut elements = Elements::new(Box::new(io::Cursor::new(text.as_bytes().to_vec())));
        let mut all = Vec::new();
        while let Some((n, element)) = elements.next_element().unwrap() {
            assert_eq!(n, all.len() as u64 + 1);
            all.push(element.map_or_else(|(code, _)| format!("!{code}"), String::from));
        }
        all
    }

    #[test]
    fn an_array_is_cut_where_json_says_so() {
        assert_eq!(
            told("\u{feff} [ {\"a\": \"],}\\\"\"} ,\n [1,[2]],3 ]\n"),
            ["{\"a\": \"],}\\\"\"}", "[1,[2]]", "3"]
        );
        assert_eq!((told("[]"), told(" [ ] "), told("")), (vec![], vec![], vec![]));
        assert_eq!(told("[{\"a\":1},{\"b\""), ["{\"a\":1}", "!bad_json"]);
        assert_eq!(
            (told("[1,"), told("{\"a\":1}")),
            (vec!["1".to_string(), "!bad_json".into()], vec!["!bad_json".to_string()])
        );
        // Two files put together: what is not read is told.
        assert_eq!(told("[1]\n[2]\n"), ["1", "!bad_json"]);
        assert_eq!(
            (told("[1]]"), told("[] x")),
            (vec!["1".to_string(), "!bad_json".into()], vec!["!bad_json".to_string()])
        );
        let long = format!("[\"{}\",2]", "x".repeat(LONGEST_RECORD));
        assert_eq!(told(&long), ["!record_too_long", "2"]);
    }
}

//! Files of one record a line: cut into lines of bounded length, each as UTF-8 text. A byte order mark at the beginning and CR before
//! LF do not count.

use super::fault::{Fault, LONGEST_RECORD, too_long, utf8};
use super::source::Reader;
use std::io::{self, BufRead};

/// A line so long that there will be no end to it, such as `/dev/zero`.
const ENDLESS: u64 = 16 << 30;

/// The lines of a file.
pub(super) struct Lines {
    reader: Reader,
    line: u64,
    buffer: Vec<u8>,
}

impl Lines {
    pub fn new(reader: Reader) -> Lines {
        Lines { reader, line: 0, buffer: Vec::new() }
    }

    /// The next line's number, and its text or what is wrong with it; `None` at the end.
    pub fn next_line(&mut self) -> io::Result<Option<(u64, Result<&str, Fault>)>> {
        self.buffer.clear();
        // A line of megabytes is rare: its memory is not kept.
        self.buffer.shrink_to(1 << 16);
        let mut length = 0u64;
        let ended = loop {
            let chunk = match self.reader.fill_buf() {
                Ok(chunk) => chunk,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            if chunk.is_empty() {
                break false;
            }
            let end = chunk.iter().position(|&b| b == b'\n');
            let part = end.and_then(|end| chunk.get(..end)).unwrap_or(chunk);
            let space = (LONGEST_RECORD + 1).saturating_sub(self.buffer.len());
            self.buffer.extend_from_slice(part.get(..space).unwrap_or(part));
            length += part.len() as u64;
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                break true;
            }
            if length > ENDLESS {
                return Err(io::Error::other(format!("line {} has no end", self.line + 1)));
            }
        };
        if !ended && length == 0 {
            return Ok(None);
        }
        self.line += 1;
        let mut bytes = &self.buffer[..];
        if self.line == 1 {
            bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
            if bytes.is_empty() && !ended {
                return Ok(None);
            }
        }
        if length as usize > LONGEST_RECORD {
            return Ok(Some((self.line, Err(too_long(length)))));
        }
        let bytes = bytes.strip_suffix(b"\r").filter(|_| ended).unwrap_or(bytes);
        Ok(Some((self.line, utf8(bytes))))
    }
}

//! Files of one record a line: cut into lines of bounded length, each as UTF-8 text. A byte order mark at the beginning and CR before
//! LF do not count.

use super::fault::{Fault, LONGEST_RECORD, too_long, utf8};
use super::source::Reader;
use std::io::{self, BufRead};

/// A line so long that there will be no end to it, such as `/dev/zero`.
const ENDLESS: u64 = 16 << 30;

/// How many lines of white space alone there are at the beginning of these bytes, and where the last one of them ends.
fn blank(bytes: &[u8]) -> (u64, usize) {
    let white = bytes.iter().position(|b| !b.is_ascii_whitespace()).unwrap_or(bytes.len());
    let white = bytes.get(..white).unwrap_or_default();
    let length = white.iter().rposition(|&b| b == b'\n').map_or(0, |last| last + 1);
    (white.iter().filter(|&&b| b == b'\n').count() as u64, length)
}

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

    /// Goes over lines of nothing but white space, many at a time: a packed file may have a thousand million of them.
    pub fn skip_blank(&mut self) -> io::Result<()> {
        loop {
            let chunk = match self.reader.fill_buf() {
                Ok(chunk) => chunk,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            let (lines, length) = blank(chunk);
            if length == 0 {
                return Ok(());
            }
            self.line += lines;
            self.reader.consume(length);
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufReader, Read};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Counts how often it is looked into.
    struct Counted(BufReader<io::Take<io::Repeat>>, Arc<AtomicU64>);

    impl Read for Counted {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    impl BufRead for Counted {
        fn fill_buf(&mut self) -> io::Result<&[u8]> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.fill_buf()
        }

        fn consume(&mut self, count: usize) {
            self.0.consume(count);
        }
    }

    #[test]
    fn lines_of_nothing_cost_no_call_each_and_are_counted() {
        let calls = Arc::new(AtomicU64::new(0));
        let ends = BufReader::with_capacity(1 << 16, io::repeat(b'\n').take(1 << 24));
        let reader =
            Counted(ends, calls.clone()).chain(io::Cursor::new(b" \t\r\n\r\n {\"a\":1}\n \n\nx"));
        let mut lines = Lines::new(Box::new(reader));
        lines.skip_blank().unwrap();
        assert_eq!(lines.next_line().unwrap(), Some(((1 << 24) + 3, Ok(" {\"a\":1}"))));
        lines.skip_blank().unwrap();
        assert_eq!(lines.next_line().unwrap(), Some(((1 << 24) + 6, Ok("x"))));
        lines.skip_blank().unwrap();
        assert_eq!(lines.next_line().unwrap(), None);
        // 256 pieces of 64 KiB.
        assert!(calls.load(Ordering::Relaxed) < 1000, "{calls:?}");
    }
}

//! Which records are answered already. In: the records of an existing output, then the input's records one by one (their ids are
//! unique: a repeated one has been rejected). Out: a verdict for each. 16 bytes for a record of the output, whatever its
//! length: ids and prompts are kept as keyed hashes.
//! Over 500 lines: scanning an output and judging the input by it share one compact index.
// Untrusted input.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

use super::format::{LineFormat, Past};
use super::output::Writer;
use crate::cli::Failure;
use crate::pipeline::{RecordError, Settings};
use crate::text::prompts::{Origin, OriginalPrompt};
use crate::units::shown;
use serde::de::IgnoredAny;
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest record that is read back, bytes; llmopt writes none so long.
const MAX_LENGTH: u64 = 1 << 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Answer,
    /// An answer without `settings`.
    Bare,
    Error,
}

/// 16 bytes.
#[derive(Debug, Clone, Copy)]
struct Entry {
    id: u64,
    /// 30 bits of the keyed hash of the prompt (of code and message for an error), then the kind: a changed prompt is taken for the same
    /// with a chance of 1e-9, and nobody can choose one that is.
    key: u32,
    /// Second half of the settings.
    generation: u32,
}

impl Entry {
    fn new(id: u64, key: u64, kind: Kind, generation: u32) -> Entry {
        Entry { id, key: Self::bits(key) << 2 | kind as u32, generation }
    }

    fn bits(key: u64) -> u32 {
        (key >> 34) as u32
    }

    fn kind(&self) -> Kind {
        [Kind::Answer, Kind::Bare]
            .into_iter()
            .find(|kind| *kind as u32 == self.key & 3)
            .unwrap_or(Kind::Error)
    }

    fn has_key(&self, key: u64) -> bool {
        self.key >> 2 == Self::bits(key)
    }
}

/// What is to be done with a record of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordVerdict {
    /// Answer it.
    New,
    /// Answer it again: the output holds an error.
    Retry,
    /// The output has it.
    Done,
    /// The output has this id for another prompt.
    OtherPrompt,
    /// The output has it with other generation settings.
    OtherSettings,
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct ResumeIndex {
    hasher: RandomState,
    /// Sorted by id, answers before errors.
    past: Vec<Entry>,
}

/// What an existing output holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Bytes of whole records.
    pub keep: u64,
    /// The last whole record lacks its line end.
    pub newline: bool,
    /// Bytes after the whole records, to be cut.
    pub torn: u64,
    /// Answers.
    pub answers: u64,
    /// Error records.
    pub errors: u64,
    /// First halves of the settings, with the line where each came first.
    pub model_halves: Vec<(u32, u64)>,
    /// Models named by answers.
    pub models: BTreeSet<String>,
    /// Dtypes named by answers.
    pub dtypes: BTreeSet<String>,
    /// Answers without settings.
    pub bare: u64,
    /// Id of the first record.
    pub first_id: Option<String>,
    /// Hash of an id that two answers have, or two errors.
    pub doubled: Option<u64>,
}

/// Calls `each` for every whole record with its bytes, its first line (from 1) and whether it ends with a line end; returns the
/// position where the whole records end. The header of a CSV file is a record like the others.
fn records(
    format: &LineFormat,
    mut file: impl BufRead,
    mut each: impl FnMut(&[u8], u64, bool) -> Result<bool, Failure>,
) -> Result<u64, Failure> {
    let csv = format.is_separated();
    let (mut position, mut line) = (0u64, 1u64);
    let mut record = Vec::new();
    let failed = |e: io::Error| Failure::failed(format!("reading the output: {e}"));
    loop {
        record.clear();
        let mut quotes = 0usize;
        loop {
            let start = record.len();
            let count =
                (&mut file).take(MAX_LENGTH).read_until(b'\n', &mut record).map_err(failed)?;
            quotes +=
                if csv { record.iter().skip(start).filter(|&&b| b == b'"').count() } else { 0 };
            if count == 0
                || (record.ends_with(b"\n") && quotes.is_multiple_of(2))
                || record.len() as u64 > MAX_LENGTH
            {
                break;
            }
        }
        if record.is_empty()
            || !each(&record, line, record.ends_with(b"\n") && quotes.is_multiple_of(2))?
        {
            return Ok(position);
        }
        position += record.len() as u64;
        line += record.iter().filter(|&&b| b == b'\n').count() as u64;
    }
}

/// The bytes before the zeros at the end.
fn without_zeros(bytes: &[u8]) -> &[u8] {
    bytes.iter().rposition(|b| *b != 0).and_then(|last| bytes.get(..=last)).unwrap_or_default()
}

/// A record that its format accepts stands at the beginning of some line after the first of `tail`.
fn holds_a_record(format: &LineFormat, tail: &[u8]) -> bool {
    let starts = tail.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1);
    starts.take(100_000).any(|start| {
        let rest = tail.get(start..).unwrap_or_default();
        let mut quotes = 0usize;
        let end = rest.iter().position(|&b| {
            quotes += usize::from(b == b'"');
            b == b'\n' && quotes.is_multiple_of(2)
        });
        let record = end.and_then(|end| rest.get(..=end));
        record.is_some_and(|record| format.read(record).is_ok_and(|past| past.settings.is_some()))
    })
}

/// Whether bytes without a line end can be the beginning of a record of ours that a kill cut off; zeros at their end are a power cut's.
fn may_be_torn(format: &LineFormat, bytes: &[u8]) -> bool {
    let (bytes, beginning) = (without_zeros(bytes), format.beginning().as_bytes());
    // What is whole is not torn, but for a record to which a power cut gave zeros instead of its line end.
    format.read(bytes).is_ok()
        || (bytes.starts_with(beginning) || beginning.starts_with(bytes))
            && serde_json::from_slice::<IgnoredAny>(bytes).is_err()
}

/// Whether a file can be a journal of ours: it is empty, or its first line is a record with its settings or its error, or the torn beginning of
/// one.
pub fn is_journal(file: impl BufRead) -> Result<bool, Failure> {
    let format = LineFormat::jsonl();
    let mut ours = true;
    records(&format, file, |record, _, ended| {
        ours = match format.read(record) {
            Ok(past) => past.settings.is_some() || past.error.is_some(),
            Err(_) => !ended && may_be_torn(&format, record),
        };
        Ok(false)
    })?;
    Ok(ours)
}

impl ResumeIndex {
    fn hash(&self, text: &str) -> u64 {
        self.hasher.hash_one(text)
    }

    fn error_key(&self, error: &RecordError) -> u64 {
        self.hasher.hash_one((&error.code, &error.message))
    }

    /// Reads an existing output. A torn last record is left out; one broken before the last is refused.
    pub fn read(
        &mut self,
        path: &Path,
        format: &LineFormat,
        file: impl BufRead,
        length: u64,
    ) -> Result<Scan, Failure> {
        let mut scan = Scan::default();
        let refuse = |line: u64, what: String| {
            Failure::usage(format!(
                "output {}: line {line} is no record of this format: {what}; it is left as it is, name another file or --overwrite",
                path.display()
            ))
        };
        let mut header = format.header();
        let mut past = Vec::new();
        scan.keep = records(format, file, |record, line, ended| {
            if let Some(expected) = header.take() {
                return match record == expected {
                    true => Ok(true),
                    // Torn while it was written, perhaps with the zeros that a power cut leaves.
                    false if !ended && expected.starts_with(without_zeros(record)) => Ok(false),
                    false => Err(refuse(line, "its header has other columns".into())),
                };
            }
            let read = match format.read(record) {
                // A CSV row without its line end may lack a part of its last field.
                Ok(read) if ended || !format.is_separated() => read,
                Err(what) if ended => return Err(refuse(line, what)),
                _ if holds_a_record(format, record) => {
                    return Err(refuse(line, "a quote is not closed".into()));
                }
                // The only line of a stranger's file is no record that was torn.
                Err(what)
                    if !format.is_separated()
                        && past.is_empty()
                        && !may_be_torn(format, record) =>
                {
                    return Err(refuse(line, what));
                }
                _ => return Ok(false),
            };
            scan.newline = !ended;
            past.push(self.entry(&read, &mut scan, line));
            Ok(true)
        })?;
        scan.torn = length.saturating_sub(scan.keep);
        past.sort_unstable_by_key(|e: &Entry| (e.id, e.kind()));
        let failed = |e: &Entry| e.kind() == Kind::Error;
        scan.doubled = past
            .array_windows()
            .find(|[a, b]| a.id == b.id && failed(a) == failed(b))
            .map(|[a, _]| a.id);
        past.shrink_to_fit();
        self.past = past;
        Ok(scan)
    }

    fn entry(&self, past: &Past, scan: &mut Scan, line: u64) -> Entry {
        let (kind, key) = match (&past.error, past.settings) {
            (Some(error), _) => (Kind::Error, self.error_key(error)),
            (None, Some(_)) => (Kind::Answer, self.hash(&past.key)),
            (None, None) => (Kind::Bare, self.hash(&past.key)),
        };
        if kind == Kind::Error {
            scan.errors += 1;
        } else {
            scan.answers += 1;
            scan.bare += (kind == Kind::Bare) as u64;
            // A run writes one model and one dtype; a few more are enough to name.
            if scan.models.len() < 8 {
                scan.models.extend(past.model.clone());
            }
            if scan.dtypes.len() < 8 {
                scan.dtypes.extend(past.dtype.clone());
            }
            if let Some(s) = past.settings
                && scan.model_halves.len() < 8
                && !scan.model_halves.iter().any(|(half, _)| *half == s.model)
            {
                scan.model_halves.push((s.model, line));
            }
        }
        if scan.first_id.is_none() {
            scan.first_id = Some(past.id.clone());
        }
        let generation = past.settings.map_or(0, |s| s.generation);
        Entry::new(self.hash(&past.id), key, kind, generation)
    }

    /// The refusal of an output in which two records have the id of this hash.
    pub fn doubled(
        &self,
        path: &Path,
        format: &LineFormat,
        file: impl BufRead,
        hash: u64,
    ) -> Failure {
        let found = self.lines_of(format, file, &|past| self.hash(&past.id) == hash);
        let lines: Vec<String> = found.iter().map(|(_, line)| line.to_string()).collect();
        let id = found
            .first()
            .map(|(id, _)| shown(id.trim_start_matches(['\0', 'n', 't'])))
            .unwrap_or_default();
        Failure::usage(format!(
            "output {}: '{id}' is there more than once (lines {}); was a part joined twice? Leave one of them out",
            path.display(),
            lines.join(" and ")
        ))
    }

    /// The refusal of an output to be put into the input's order that has records which are not the input's.
    pub fn foreign(
        &self,
        path: &Path,
        format: &LineFormat,
        file: impl BufRead,
        seen: &Seen,
    ) -> Failure {
        let own = |past: &Past| self.place(&past.id).is_some_and(|n| seen.has(n));
        let found = self.lines_of(format, file, &|past| !own(past));
        let (id, line) = found.into_iter().next().unwrap_or_default();
        Failure::usage(format!(
            "output {}: line {line}: '{}' is no record of these prompts; was a part of another file joined to it?",
            path.display(),
            shown(id.trim_start_matches(['\0', 'n', 't']))
        ))
    }

    /// Ids and lines of the first two records that are wanted.
    fn lines_of(
        &self,
        format: &LineFormat,
        file: impl BufRead,
        wanted: &dyn Fn(&Past) -> bool,
    ) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        let mut header = format.header().is_some();
        let _ = records(format, file, |record, line, _| {
            if !std::mem::take(&mut header)
                && let Ok(past) = format.read(record)
                && wanted(&past)
            {
                found.push((past.id, line));
            }
            Ok(found.len() < 2)
        });
        found
    }

    /// Where the id stands among those of the output.
    pub fn place(&self, id: &str) -> Option<usize> {
        let hash = self.hash(id);
        let at = self.past.partition_point(|e| e.id < hash);
        self.past.get(at).filter(|e| e.id == hash).map(|_| at)
    }

    /// How many different ids the output has.
    pub fn ids(&self) -> usize {
        self.past.chunk_by(|a, b| a.id == b.id).count()
    }

    /// Nothing of the output has been met.
    pub fn unseen(&self) -> Seen {
        Seen { marks: vec![0; self.past.len().div_ceil(64)], count: 0 }
    }

    /// Whether the output had no records.
    pub fn is_empty(&self) -> bool {
        self.past.is_empty()
    }

    fn find(&self, id: u64) -> Option<&Entry> {
        let at = self.past.partition_point(|e| e.id < id);
        self.past.get(at).filter(|e| e.id == id)
    }

    /// A record whose default id an output of an earlier version spells otherwise, with the path in it, under that id: so it is found, and
    /// its error is replaced.
    pub fn as_known(&self, origin: &mut Origin) {
        let (id, place) = (&origin.id, origin.place());
        let default =
            *id != place && place.strip_suffix(id).is_some_and(|path| path.ends_with('/'));
        if self.past.is_empty() || !(default || *id == place) || self.find(self.hash(id)).is_some()
        {
            return;
        }
        let absolute = std::path::absolute(&place).map(|p| p.to_string_lossy().into_owned());
        // An id without a folder in it is that of the only input of this name, however its path is typed now.
        let here = (!id.contains('/')).then(|| format!("./{id}"));
        let spellings = [Some(place.clone()), Some(format!("./{place}")), absolute.ok(), here];
        if let Some(known) =
            spellings.into_iter().flatten().find(|id| self.find(self.hash(id)).is_some())
        {
            origin.id = known;
        }
    }

    /// Judges a record that can be answered.
    pub fn judge(
        &self,
        id: &str,
        format: &LineFormat,
        prompt: &OriginalPrompt,
        generation: u32,
    ) -> RecordVerdict {
        let (hash, key) = (self.hash(id), self.hash(&format.key(prompt)));
        let Some(entry) = self.find(hash) else { return RecordVerdict::New };
        match entry.kind() {
            Kind::Error => RecordVerdict::Retry,
            _ if !entry.has_key(key) => RecordVerdict::OtherPrompt,
            Kind::Answer if entry.generation != generation => RecordVerdict::OtherSettings,
            _ => RecordVerdict::Done,
        }
    }

    /// Judges a record that cannot be answered: an error record that says the same stays.
    pub fn judge_rejected(&self, id: &str, error: &RecordError) -> RecordVerdict {
        let (hash, key) = (self.hash(id), self.error_key(error));
        let Some(entry) = self.find(hash) else { return RecordVerdict::New };
        match entry.kind() {
            Kind::Error if entry.has_key(key) => RecordVerdict::Done,
            Kind::Error => RecordVerdict::Retry,
            _ => RecordVerdict::OtherPrompt,
        }
    }

    /// Finds the record of this id in the output, with its line: to say what differs.
    pub fn look_up(format: &LineFormat, file: impl BufRead, id: &str) -> Option<(Past, u64)> {
        let mut found = None;
        let mut header = format.header().is_some();
        let _ = records(format, file, |record, line, _| {
            if std::mem::take(&mut header) {
                return Ok(true);
            }
            found = format
                .read(record)
                .ok()
                .filter(|past| past.id == id && past.error.is_none())
                .map(|past| (past, line));
            Ok(found.is_none())
        });
        found
    }
}

/// Which records of an output have been met: a bit for each.
#[derive(Debug)]
pub struct Seen {
    marks: Vec<u64>,
    /// How many.
    pub count: usize,
}

impl Seen {
    /// Notes the record at a place.
    pub fn mark(&mut self, place: usize) {
        if !self.has(place)
            && let Some(word) = self.marks.get_mut(place / 64)
        {
            *word |= 1 << (place % 64);
            self.count += 1;
        }
    }

    fn has(&self, place: usize) -> bool {
        self.marks.get(place / 64).is_some_and(|word| word >> (place % 64) & 1 == 1)
    }
}

/// Whether the records of an output begin with those of these ids, in their order.
pub fn in_order(
    format: &LineFormat,
    file: impl BufRead,
    ids: &mut dyn Iterator<Item = Result<String, Failure>>,
) -> Result<bool, Failure> {
    let mut header = format.header().is_some();
    let mut same = true;
    records(format, file, |record, _, _| {
        if std::mem::take(&mut header) {
            return Ok(true);
        }
        let Some(id) = ids.next().transpose()? else { return Ok(false) };
        same = format.read(record).is_ok_and(|past| past.id == id);
        Ok(same)
    })?;
    Ok(same)
}

/// Writes the records of an output in the order of these ids, then what else there is. 16 bytes a record.
pub fn put_in_order(
    format: &LineFormat,
    file: &File,
    ids: &mut dyn Iterator<Item = Result<String, Failure>>,
    out: &mut dyn io::Write,
) -> io::Result<()> {
    use std::io::{Seek, SeekFrom};
    let hasher = RandomState::new();
    let mut index: Vec<(u64, u64)> = Vec::new();
    let (mut position, mut failed_ones) = (0u64, Vec::new());
    let mut header = format.header().is_some();
    let other = |f: Failure| io::Error::other(f.message);
    let mut reader = BufReader::with_capacity(1 << 16, file);
    reader.seek(SeekFrom::Start(0))?;
    let mut wrote_header = Ok(());
    records(format, &mut reader, |record, _, _| {
        if std::mem::take(&mut header) {
            wrote_header = out.write_all(record);
        } else if let Ok(past) = format.read(record) {
            let hash = hasher.hash_one(&past.id);
            index.push((hash, position));
            if past.error.is_some() {
                failed_ones.push(position);
            }
        }
        position += record.len() as u64;
        Ok(true)
    })
    .map_err(other)?;
    wrote_header?;
    // Of an answer and an error with one id the answer counts.
    index.sort_unstable_by_key(|&(hash, at)| (hash, failed_ones.binary_search(&at).is_ok(), at));
    index.dedup_by_key(|(hash, _)| *hash);
    let mut reader = BufReader::with_capacity(1 << 12, file);
    let mut copy = |at: u64| -> io::Result<()> {
        reader.seek(SeekFrom::Start(at))?;
        let mut wrote = Ok(());
        records(format, &mut reader, |record, _, ended| {
            wrote = out
                .write_all(record)
                .and_then(|()| if ended { Ok(()) } else { out.write_all(b"\n") });
            Ok(false)
        })
        .map_err(other)?;
        wrote
    };
    const DONE: u64 = u64::MAX;
    for id in ids {
        let hash = hasher.hash_one(&id.map_err(other)?);
        let place = index.binary_search_by_key(&hash, |(hash, _)| *hash).ok();
        if let Some((_, at)) = place.and_then(|n| index.get_mut(n)).filter(|(_, at)| *at != DONE) {
            copy(std::mem::replace(at, DONE))?;
        }
    }
    let mut rest: Vec<u64> = index.into_iter().map(|(_, at)| at).filter(|at| *at != DONE).collect();
    rest.sort_unstable();
    rest.into_iter().try_for_each(copy)
}

/// Answers to records whose error stands in the output, until they are written over it. They wait a second at least, since each
/// writing makes the whole file anew; a kill loses no more than what waits, and the errors are still there to be retried.
#[derive(Debug)]
pub struct Replacements {
    /// Lines by id.
    lines: HashMap<String, Vec<u8>>,
    bytes: usize,
    written: Instant,
    cost: Duration,
}

impl Default for Replacements {
    fn default() -> Self {
        Replacements {
            lines: HashMap::new(),
            bytes: 0,
            written: Instant::now(),
            cost: Duration::ZERO,
        }
    }
}

impl Replacements {
    /// Most bytes that wait.
    const MOST: usize = 8 << 20;

    /// Takes the line for the record `id`, and writes all that wait if it is time.
    pub fn add(
        &mut self,
        id: &str,
        line: Vec<u8>,
        format: &LineFormat,
        writer: &mut Writer<File>,
    ) -> Result<(), Failure> {
        self.bytes += line.len();
        self.lines.insert(id.to_string(), line);
        let due = self.written.elapsed() > (self.cost * 10).max(Duration::from_secs(1));
        if due || self.bytes > Self::MOST { self.write(format, writer) } else { Ok(()) }
    }

    /// Writes all that wait over the error records of the same ids.
    pub fn write(&mut self, format: &LineFormat, writer: &mut Writer<File>) -> Result<(), Failure> {
        if self.lines.is_empty() {
            return Ok(());
        }
        let since = Instant::now();
        writer.rewrite(|old, out| merge(format, BufReader::new(old), &self.lines, out))?;
        self.lines.clear();
        (self.bytes, self.written, self.cost) = (0, Instant::now(), since.elapsed());
        Ok(())
    }
}

/// Copies the records of an output, with these lines in place of the errors of the same ids.
fn merge(
    format: &LineFormat,
    file: impl BufRead,
    lines: &HashMap<String, Vec<u8>>,
    out: &mut dyn io::Write,
) -> io::Result<()> {
    let mut header = format.header().is_some();
    let outcome = records(format, file, |record, _, _| {
        let past = if std::mem::take(&mut header) { None } else { format.read(record).ok() };
        let line = past.filter(|past| past.error.is_some()).and_then(|past| lines.get(&past.id));
        out.write_all(line.map_or(record, |line| line))
            .map_err(|e| Failure::failed(e.to_string()))?;
        Ok(true)
    });
    outcome.map(|_| ()).map_err(|f| io::Error::other(f.message))
}

/// Says by which flag two digests of generation settings differ, found by trying what people change: one setting at a time.
pub fn what_differs(
    generation: &crate::pipeline::Generation,
    sampling: crate::engine::SamplingPolicy,
    stopping: crate::engine::StoppingPolicy,
    digest: u32,
) -> Option<String> {
    use crate::engine::{SamplingPolicy, StoppingPolicy};
    let same = |g: &crate::pipeline::Generation| {
        Settings::generation_half(g, sampling, stopping) == digest
    };
    let mut g = generation.clone();
    macro_rules! tried {
        ($flag:literal, $($field:ident).+, $values:expr) => {
            let now = g.$($field).+.clone();
            for value in $values {
                g.$($field).+ = value;
                if same(&g) {
                    return Some(format!("written with {} {}, this run has {}", $flag, g.$($field).+, now));
                }
            }
            g.$($field).+ = now;
        };
    }
    let hundredths = |most: i32| {
        (0..=most).map(|n| format!("{}.{:02}", n / 100, n % 100).parse::<f32>().unwrap_or(0.0))
    };
    tried!("--max-tokens", max_tokens, 1..=8192usize);
    tried!("--seed", sampling.seed, 0..=9999u64);
    tried!("--temperature", sampling.temperature, hundredths(200));
    tried!("--top-p", sampling.top_p, hundredths(100));
    tried!("--top-k", sampling.top_k, 0..=1000usize);
    tried!("--raw", raw, [false, true]);
    for bits in 0..8u8 {
        let mut g = generation.clone();
        (g.stop.eos, g.stop.sentence, g.stop.repetition) =
            (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
        if same(&g) {
            return Some("written with another --stop-on".into());
        }
    }
    if g.system.take().is_some() && same(&g) {
        return Some("written without --system".into());
    }
    g = generation.clone();
    if !std::mem::take(&mut g.stop.strings).is_empty() && same(&g) {
        return Some("written without --stop".into());
    }
    for other in [SamplingPolicy::AlwaysSample, SamplingPolicy::GreedyBelow(0.3)] {
        if other != sampling && Settings::generation_half(generation, other, stopping) == digest {
            return Some("written with 'greedy' switched the other way".into());
        }
    }
    for other in [StoppingPolicy::MaxTokensOnly, StoppingPolicy::Early] {
        if other != stopping && Settings::generation_half(generation, sampling, other) == digest {
            return Some("written with 'early-stop' switched the other way".into());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::format::tests::{answer, csv, line, origin};
    use super::*;

    fn written(format: &LineFormat, texts: &[(&str, &str)]) -> Vec<Vec<u8>> {
        let mut lines: Vec<Vec<u8>> = format.header().into_iter().collect();
        for (id, prompt) in texts {
            let mut answer = answer(id, "some\n\"answer\", yes");
            if prompt.is_empty() {
                answer.error = Some(RecordError::new("x", "broke"));
                answer.finish_reason = crate::engine::FinishReason::Error;
            }
            let origin = origin(id, OriginalPrompt::Text(prompt.to_string()), &[]);
            lines.push(format.line(&line(&answer, &origin)));
        }
        lines
    }

    fn read(format: &LineFormat, bytes: &[u8]) -> Result<(ResumeIndex, Scan), Failure> {
        let mut resume_index = ResumeIndex::default();
        let scan = resume_index.read(Path::new("out"), format, bytes, bytes.len() as u64)?;
        Ok((resume_index, scan))
    }

    const RECORDS: [(&str, &str); 4] = [("a", "q a"), ("b\n", "q\nb"), ("c", ""), ("d", "q d")];

    #[test]
    fn an_output_cut_at_any_byte_keeps_its_whole_records() {
        for format in [LineFormat::jsonl(), csv(&[])] {
            let lines = written(&format, &RECORDS);
            let whole = lines.concat();
            let csv = format.is_separated();
            for cut in 0..=whole.len() {
                for nuls in [0, 1, 4096] {
                    let bytes = [&whole[..cut], &vec![0; nuls][..]].concat();
                    let (_, scan) =
                        read(&format, &bytes).unwrap_or_else(|e| panic!("{cut} {nuls}: {e:?}"));
                    let starts: Vec<usize> =
                        (0..=lines.len()).map(|n| lines[..n].concat().len()).collect();
                    // A JSON record that lacks nothing but its line end is whole.
                    let newline = !csv && nuls == 0 && cut > 0 && starts.contains(&(cut + 1));
                    let keep =
                        if newline { cut } else { *starts.iter().rfind(|s| **s <= cut).unwrap() };
                    assert_eq!((scan.keep, scan.newline), (keep as u64, newline), "{cut} {nuls}");
                    assert_eq!(scan.torn as usize, bytes.len() - keep);
                }
            }
        }
    }

    #[test]
    fn a_record_broken_before_the_last_is_refused_with_its_line() {
        for format in [LineFormat::jsonl(), csv(&[])] {
            let lines = written(&format, &[("a", "q"), ("b", "q"), ("c", "q")]);
            let first = lines.len() - 3;
            for (broken, at) in
                [(&b"garbage\n"[..], 1), (b"\n", 0), (b"{\"id\":\"x\n", 2), (b"\0\0\0\n", 1)]
            {
                let mut lines = lines.clone();
                lines.insert(first + at, broken.to_vec());
                let failure = read(&format, &lines.concat()).unwrap_err();
                let number =
                    lines[..first + at].concat().iter().filter(|b| **b == b'\n').count() + 1;
                assert!(
                    failure.status == 2 && failure.message.contains(&format!("line {number} ")),
                    "{failure:?} {number}"
                );
            }
        }
        assert!(read(&csv(&[]), b"id,prompt\n").unwrap_err().message.contains("columns"));
    }

    #[test]
    fn verdicts_tell_new_done_duplicate_retry_and_changed_apart() {
        let format = LineFormat::jsonl();
        let (resume_index, scan) = read(&format, &written(&format, &RECORDS).concat()).unwrap();
        assert_eq!((scan.answers, scan.errors, scan.bare), (3, 1, 0));
        assert_eq!(scan.model_halves, [(1, 1)]);
        let judge = |id: &str, text: &str, generation| {
            resume_index.judge(id, &format, &OriginalPrompt::Text(text.into()), generation)
        };
        assert_eq!(judge("a", "q a", 2), RecordVerdict::Done);
        assert_eq!(judge("b\n", "q b", 2), RecordVerdict::OtherPrompt);
        assert_eq!(judge("d", "q d", 3), RecordVerdict::OtherSettings);
        assert_eq!(judge("c", "q c", 2), RecordVerdict::Retry);
        assert_eq!(judge("e", "q e", 2), RecordVerdict::New);
        assert_eq!(
            resume_index.judge_rejected("c", &RecordError::new("x", "broke")),
            RecordVerdict::Done
        );
        assert_eq!(
            resume_index.judge_rejected("a", &RecordError::new("x", "broke")),
            RecordVerdict::OtherPrompt
        );
        assert_eq!(
            resume_index.judge_rejected("e", &RecordError::new("x", "broke")),
            RecordVerdict::New
        );
    }

    #[test]
    fn a_default_id_is_found_however_earlier_versions_spelt_the_path() {
        let here = std::path::absolute("in/p.txt").unwrap();
        let known = |resume_index: &ResumeIndex, id: &str, place: &str| {
            let (file, line) = place.rsplit_once(':').unwrap();
            let mut origin = Origin {
                file: file.into(),
                line: line.parse().unwrap(),
                ..origin(id, OriginalPrompt::Nothing, &[])
            };
            resume_index.as_known(&mut origin);
            origin.id
        };
        for (then, id, place, found) in [
            ("in/p.txt:1", "p.txt:1", "in/p.txt:1", true),
            ("./in/p.txt:1", "p.txt:1", "in/p.txt:1", true),
            ("./p.txt:1", "p.txt:1", "p.txt:1", true),
            ("./p.txt:1", "p.txt:1", "/somewhere/p.txt:1", true),
            ("./p.txt:1", "in/p.txt:1", "in/p.txt:1", false),
            (&format!("{}:1", here.display()), "p.txt:1", "in/p.txt:1", true),
            ("in/p.txt:1", "p.txt:2", "in/p.txt:2", false),
            ("in/p.txt:1", "mine", "in/p.txt:1", false),
            ("in/p.txt:1", "t:1", "in/p.txt:1", false),
        ] {
            let (resume_index, scan) =
                read(&LineFormat::jsonl(), &written(&LineFormat::jsonl(), &[(then, "q")]).concat())
                    .unwrap();
            assert_eq!(scan.first_id.as_deref(), Some(then));
            assert_eq!(
                known(&resume_index, id, place),
                if found { then } else { id },
                "{then} {id} {place}"
            );
        }
        // The id as it is now comes first.
        let (resume_index, _) = read(
            &LineFormat::jsonl(),
            &written(&LineFormat::jsonl(), &[("in/p:1", "q"), ("p:1", "q")]).concat(),
        )
        .unwrap();
        assert_eq!(known(&resume_index, "p:1", "in/p:1"), "p:1");
    }

    #[test]
    fn merging_puts_answers_in_the_place_of_errors_and_of_nothing_else() {
        for format in [LineFormat::jsonl(), csv(&[])] {
            let lines = written(&format, &RECORDS);
            let fresh = |id: &str| {
                format.line(&line(
                    &answer(id, "new"),
                    &origin(id, OriginalPrompt::Text("q".into()), &[]),
                ))
            };
            // 'd' has an answer already, 'e' is not there.
            let waiting = ["c", "d", "e"].map(|id| (id.to_string(), fresh(id))).into();
            let mut out = Vec::new();
            merge(&format, &lines.concat()[..], &waiting, &mut out).unwrap();
            let at = lines.len() - 2;
            assert_eq!(out, [&lines[..at], &[fresh("c")], &lines[at + 1..]].concat().concat());
        }
    }

    #[test]
    fn an_output_without_settings_is_matched_by_id_and_prompt() {
        let (resume_index, scan) = read(
            &LineFormat::jsonl(),
            b"{\"id\":\"a\",\"prompt\":\"q\",\"answer\":\"x\",\"model\":\"m\"}\n",
        )
        .unwrap();
        assert_eq!(
            (scan.bare, scan.models.into_iter().collect::<Vec<_>>()),
            (1, vec!["m".to_string()])
        );
        assert_eq!(
            resume_index.judge("a", &LineFormat::jsonl(), &OriginalPrompt::Text("q".into()), 77),
            RecordVerdict::Done
        );
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

        /// Whatever stands behind whole records: it is cut or refused, never believed, never a panic, and what is kept reads the same again.
        #[test]
        fn any_bytes_behind_whole_records_are_cut_or_refused(
            count in 0usize..4,
            tail in proptest::collection::vec(proptest::prop_oneof![
                proptest::prelude::any::<u8>(),
                proptest::sample::select(b"\n\"{}[],:\0idpromtanswer".to_vec()),
            ], 0..200),
        ) {
            for format in [LineFormat::jsonl(), csv(&[]), LineFormat::open_ai()] {
                let lines = written(&format, &RECORDS[..count]);
                let bytes = [lines.concat(), tail.clone()].concat();
                let Ok((_, scan)) = read(&format, &bytes) else { continue };
                let kept = &bytes[..scan.keep as usize];
                proptest::prop_assert!(kept.len() >= lines.concat().len());
                let (_, again) = read(&format, kept).unwrap();
                proptest::prop_assert_eq!((again.keep, again.torn, again.answers, again.errors), (scan.keep, 0, scan.answers, scan.errors));
            }
        }
    }

    #[test]
    fn the_changed_setting_is_named() {
        use crate::engine::{SamplingPolicy::*, StoppingPolicy::*};
        let now = crate::pipeline::Generation::usual();
        let half =
            |g: &crate::pipeline::Generation| Settings::generation_half(g, GreedyBelow(0.3), Early);
        let explain =
            |digest| what_differs(&now, GreedyBelow(0.3), Early, digest).unwrap_or_default();
        let mut then = now.clone();
        then.sampling.seed = 7;
        assert_eq!(explain(half(&then)), "written with --seed 7, this run has 0");
        then = now.clone();
        then.sampling.temperature = 0.7;
        assert!(explain(half(&then)).contains("--temperature 0.7"));
        then = now.clone();
        then.max_tokens = 64;
        assert!(explain(half(&then)).contains("--max-tokens 64"));
        assert!(explain(Settings::generation_half(&now, AlwaysSample, Early)).contains("'greedy'"));
        assert!(
            explain(Settings::generation_half(&now, GreedyBelow(0.3), MaxTokensOnly))
                .contains("'early-stop'")
        );
        then.system = Some("x".into());
        assert_eq!(explain(half(&then)), "");
    }
}

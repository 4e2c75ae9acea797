//! The GGUF container. In: an untrusted file. Out: its metadata and its checked list of tensors, or one line saying what is wrong where.
//! Every count, length, product and padding is checked against the file before anything is allocated for it or sought; a file
//! is read once, front to back, through a buffer, and values nobody here needs are skipped. It does not know what tensors mean.
//! Over 500 lines: one container format; every check stands beside the read that it guards.
// Untrusted input.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use super::ModelError;
use super::source::{Source, shown};
use crate::kernels::Encoding;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most metadata values; real files have about 40.
const MAX_METADATA: u64 = 1 << 16;
/// Most tensors; a model of 500 layers has about 5 000.
const MAX_TENSORS: u64 = 1 << 18;
/// Most bytes of a key.
const MAX_KEY: u64 = 1 << 10;
/// Most bytes of a tensor's name: ggml's GGML_MAX_NAME is 64, its terminating zero included.
const MAX_NAME: u64 = 63;
/// Most bytes of one text value (chat templates are the longest, some 10 KiB).
const MAX_TEXT: u64 = 1 << 22;
/// Most elements of an array; the largest vocabularies have some 260 000 tokens.
const MAX_ARRAY: u64 = 1 << 22;
/// Most elements of an array with one for each layer.
const MAX_LAYERS: u64 = 1 << 16;
/// Alignments that are believed: powers of two in this range.
const ALIGNMENT: std::ops::RangeInclusive<u64> = 8..=1 << 16;

/// Most parts of a split model; each is an open file, of which a process may have 1 024.
const MAX_PARTS: u64 = 512;

/// The last component of a path.
fn path_name(path: &Path) -> &Path {
    path.file_name().map_or(path, Path::new)
}

/// The name of a part of a split model, `NAME-00001-of-00003.gguf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SplitName {
    path: PathBuf,
    /// What stands before `-00001`.
    stem: String,
    /// From 0.
    pub(super) number: usize,
    /// How many parts there are.
    pub(super) count: usize,
}

impl SplitName {
    /// Takes a file's name apart; `None` if it is not that of a part.
    pub(super) fn parse(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let digits = |text: &str| -> Option<usize> {
            (text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit()))
                .then(|| text.parse().ok())?
        };
        let (rest, count) = name.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let (number, count) = (digits(number)?.checked_sub(1)?, digits(count)?);
        let good = !stem.is_empty() && number < count;
        good.then(|| SplitName { path: path.to_path_buf(), stem: stem.into(), number, count })
    }

    /// The name without the numbers.
    #[cfg(feature = "hub")]
    pub(super) fn stem(&self) -> &str {
        &self.stem
    }

    /// The path of another part.
    pub(super) fn part(&self, number: usize) -> PathBuf {
        let name =
            format!("{}-{:05}-of-{:05}.gguf", self.stem, number.saturating_add(1), self.count);
        self.path.with_file_name(name)
    }
}

/// A metadata value, as far as anyone here needs it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i64>),
    Bools(Vec<bool>),
    Floats(Vec<f32>),
    /// An array of another kind, which was skipped: what it is, its length.
    Array(&'static str, u64),
}

impl Value {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Unsigned(_) | Value::Signed(_) => "an integer",
            Value::Float(_) => "a float",
            Value::Bool(_) => "a bool",
            Value::Text(_) => "a text",
            Value::Texts(_) => "an array of texts",
            Value::Integers(_) => "an array of integers",
            Value::Bools(_) => "an array of bools",
            Value::Floats(_) => "an array of floats",
            Value::Array(kind, _) => kind,
        }
    }
}

/// A tensor as the header has it, checked against the file's length.
#[derive(Debug, Clone)]
pub(super) struct TensorInfo {
    /// Rows and columns; a vector is one row.
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Its dimensions in the file, the slowest first.
    pub(super) shape: Vec<usize>,
    pub(super) encoding: Encoding,
    /// Absolute, in bytes.
    pub(super) offset: u64,
    /// Which of [`Gguf::parts`] holds it.
    pub(super) part: usize,
}

/// A checked header; that of a set of files if the model is split.
pub(super) struct Gguf {
    /// The first file: its metadata is the model's.
    source: Arc<Source>,
    /// All files, in order; one if the model is not split.
    pub(super) parts: Vec<Arc<Source>>,
    metadata: HashMap<String, Value>,
    pub(super) tensors: HashMap<String, TensorInfo>,
}

/// Reads the header front to back.
struct Reader<'a> {
    source: &'a Source,
    buffer: Vec<u8>,
    /// Position in `buffer`.
    at: usize,
    /// Position in the file of the buffer's end.
    read: u64,
}

impl<'a> Reader<'a> {
    fn error(&self, what: impl std::fmt::Display) -> ModelError {
        invalid(self.source.path(), what)
    }

    /// Bytes that were read and not yet taken.
    fn buffered(&self) -> usize {
        self.buffer.len().saturating_sub(self.at)
    }

    fn position(&self) -> u64 {
        self.read.saturating_sub(self.buffered() as u64)
    }

    fn left(&self) -> u64 {
        self.source.len().saturating_sub(self.position())
    }

    /// The next `n` bytes, at most [`MAX_TEXT`]; `what` names the field in the error of a file that ends here.
    fn take(&mut self, n: usize, what: &dyn Fn() -> String) -> Result<&[u8], ModelError> {
        if n as u64 > self.left() {
            return Err(self.error(format_args!(
                "{}: the file ends here, at byte {} of a header that needs {n} more bytes than the {} left; it is cut off",
                what(),
                self.position(),
                self.left()
            )));
        }
        if self.buffered() < n {
            self.buffer.drain(..self.at);
            self.at = 0;
            let old = self.buffer.len();
            let rest =
                usize::try_from(self.source.len().saturating_sub(self.read)).unwrap_or(usize::MAX);
            let more = (1 << 18).max(n.saturating_sub(old)).min(rest);
            self.buffer.resize(old.saturating_add(more), 0);
            self.source.read_at(self.read, self.buffer.get_mut(old..).unwrap_or_default())?;
            self.read = self.read.saturating_add(more as u64);
        }
        let bytes = self.buffer.get(self.at..).and_then(|rest| rest.get(..n)).unwrap_or_default();
        self.at = self.at.saturating_add(n);
        Ok(bytes)
    }

    fn skip(&mut self, n: u64, what: &dyn Fn() -> String) -> Result<(), ModelError> {
        if n > self.left() {
            return Err(self.error(format_args!(
                "{}: {n} bytes are announced but only {} are left in the file",
                what(),
                self.left()
            )));
        }
        let buffered = self.buffered() as u64;
        if n <= buffered {
            self.at = self.at.saturating_add(n as usize);
        } else {
            self.read = self.read.saturating_add(n.saturating_sub(buffered));
            self.buffer.clear();
            self.at = 0;
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self, what: &dyn Fn() -> String) -> Result<[u8; N], ModelError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: &dyn Fn() -> String) -> Result<u32, ModelError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &dyn Fn() -> String) -> Result<u64, ModelError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn text(&mut self, most: u64, what: &dyn Fn() -> String) -> Result<String, ModelError> {
        let len = self.u64(what)?;
        if len > most {
            return Err(self.error(format_args!(
                "{}: a text of {len} bytes; at most {most} are read",
                what()
            )));
        }
        let bytes = self.take(len as usize, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_string()),
            Err(_) => Err(self.error(format_args!("{}: not valid UTF-8", what()))),
        }
    }

    fn value(&mut self, key: &str) -> Result<Value, ModelError> {
        let what = || format!("metadata '{}'", crate::units::shown(key));
        let kind = self.u32(&what)?;
        self.value_of(kind, key, &what)
    }

    fn value_of(
        &mut self,
        kind: u32,
        key: &str,
        what: &dyn Fn() -> String,
    ) -> Result<Value, ModelError> {
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.array(what)?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.array(what)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array(what)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array(what)?).into()),
            4 => Value::Unsigned(self.u32(what)?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array(what)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array(what)?).into()),
            7 => match u8::from_le_bytes(self.array(what)?) {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => {
                    return Err(
                        self.error(format_args!("{}: a bool is 0 or 1, not {other}", what()))
                    );
                }
            },
            8 => Value::Text(self.text(MAX_TEXT, what)?),
            9 => self.array_value(key, what)?,
            10 => Value::Unsigned(self.u64(what)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(what)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(what)?)),
            other => {
                return Err(self.error(format_args!(
                    "{}: value type {other} does not exist in GGUF (0 to 12 do)",
                    what()
                )));
            }
        })
    }

    fn array_value(&mut self, key: &str, what: &dyn Fn() -> String) -> Result<Value, ModelError> {
        let (kind, count) = (self.u32(what)?, self.u64(what)?);
        // The least bytes an element takes: the count is checked against what is left before anything is done with it.
        let (size, name) = match kind {
            0 | 1 => (1, "an array of bytes"),
            7 => (1, "an array of bools"),
            2 | 3 => (2, "an array of integers"),
            4 | 5 => (4, "an array of integers"),
            6 => (4, "an array of floats"),
            8 => (8, "an array of texts"),
            10 | 11 => (8, "an array of integers"),
            12 => (8, "an array of floats"),
            9 => {
                return Err(
                    self.error(format_args!("{}: arrays of arrays are not supported", what()))
                );
            }
            other => {
                return Err(self.error(format_args!(
                    "{}: element type {other} does not exist in GGUF",
                    what()
                )));
            }
        };
        if count.checked_mul(size).is_none_or(|bytes| bytes > self.left()) {
            return Err(self.error(format_args!(
                "{}: an array of {count} elements is announced but only {} bytes are left in the file",
                what(),
                self.left()
            )));
        }
        if count > MAX_ARRAY {
            return Err(self.error(format_args!(
                "{}: an array of {count} elements; at most {MAX_ARRAY} are read",
                what()
            )));
        }
        let wanted = key.starts_with("tokenizer.ggml.");
        // Arrays with an element for each layer.
        let short = count <= MAX_LAYERS;
        match kind {
            8 if wanted => {
                let mut texts = Vec::with_capacity((count as usize).min(1 << 16));
                for i in 0..count {
                    texts.push(self.text(MAX_TEXT, &|| format!("{}, element {i}", what()))?);
                }
                Ok(Value::Texts(texts))
            }
            8 => {
                for i in 0..count {
                    let what = || format!("{}, element {i}", what());
                    let len = self.u64(&what)?;
                    self.skip(len, &what)?;
                }
                Ok(Value::Array(name, count))
            }
            5 if wanted || short => {
                let mut numbers = Vec::with_capacity((count as usize).min(1 << 16));
                for _ in 0..count {
                    numbers.push(i32::from_le_bytes(self.array(what)?).into());
                }
                Ok(Value::Integers(numbers))
            }
            4 if wanted || short => {
                let mut numbers = Vec::with_capacity((count as usize).min(1 << 16));
                for _ in 0..count {
                    numbers.push(self.u32(what)?.into());
                }
                Ok(Value::Integers(numbers))
            }
            7 if short => {
                let bytes = self.take(count as usize, what)?.to_vec();
                match bytes.iter().find(|b| **b > 1) {
                    Some(other) => {
                        Err(self.error(format_args!("{}: a bool is 0 or 1, not {other}", what())))
                    }
                    None => Ok(Value::Bools(bytes.iter().map(|b| *b == 1).collect())),
                }
            }
            6 if wanted => {
                let mut numbers = Vec::with_capacity((count as usize).min(1 << 16));
                for _ in 0..count {
                    numbers.push(f32::from_le_bytes(self.array(what)?));
                }
                Ok(Value::Floats(numbers))
            }
            _ => {
                self.skip(count.saturating_mul(size), what)?;
                Ok(Value::Array(name, count))
            }
        }
    }
}

/// The error for a bad file: names it, and the field.
pub(super) fn invalid(path: &Path, what: impl std::fmt::Display) -> ModelError {
    ModelError::Invalid(format!("{}: {what}", shown(path)))
}

impl Gguf {
    /// Reads and checks the header.
    #[allow(clippy::too_many_lines, reason = "one header, read from front to back")]
    pub(super) fn open(path: &Path) -> Result<Self, ModelError> {
        let source = Arc::new(Source::open(path)?);
        let mut reader = Reader { source: &source, buffer: Vec::new(), at: 0, read: 0 };
        if source.len() == 0 {
            return Err(reader.error("the file is empty"));
        }
        let magic: [u8; 4] = reader.array(&|| "GGUF magic".into())?;
        if magic != *b"GGUF" {
            let begin =
                [&magic[..], reader.take(reader.left().min(508) as usize, &String::new)?].concat();
            return Err(reader.error(format_args!("not a GGUF file: {}", what_it_is(&begin))));
        }
        let version = reader.u32(&|| "GGUF version".into())?;
        match version {
            2 | 3 => {}
            0x0100_0000..=0x0300_0000 if version & 0xff_ffff == 0 => {
                return Err(reader.error("GGUF version: the file is big-endian; convert it again with little-endian output"));
            }
            _ => {
                return Err(reader.error(format_args!(
                    "GGUF version {version} is not supported; versions 2 and 3 are"
                )));
            }
        }
        let tensor_count = reader.u64(&|| "tensor count".into())?;
        let metadata_count = reader.u64(&|| "metadata count".into())?;
        // A metadata value takes at least 13 bytes (length, type, one byte), a tensor's entry at least 32.
        for (name, count, least, most) in [
            ("metadata count", metadata_count, 13, MAX_METADATA),
            ("tensor count", tensor_count, 32, MAX_TENSORS),
        ] {
            if count > most || count.saturating_mul(least) > reader.left() {
                let room = reader.left().checked_div(least).unwrap_or(0);
                return Err(reader.error(format_args!(
                    "{name} {count}: the file has room for {room}, and at most {most} are read"
                )));
            }
        }

        let mut metadata = HashMap::new();
        for i in 0..metadata_count {
            let key = reader.text(MAX_KEY, &|| format!("metadata key {i}"))?;
            if key.is_empty() || key.contains(|c: char| c.is_control()) {
                return Err(reader.error(format_args!(
                    "metadata key {i} ('{}') is not a name",
                    crate::units::shown(&key)
                )));
            }
            let value = reader.value(&key)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(reader.error(format_args!("metadata '{key}' appears twice")));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(Value::Unsigned(n)) if n.is_power_of_two() && ALIGNMENT.contains(n) => *n,
            Some(other) => {
                let shown = match other {
                    Value::Unsigned(n) => n.to_string(),
                    other => other.kind().to_string(),
                };
                return Err(reader.error(format_args!(
                    "metadata 'general.alignment' is {shown}; it must be an unsigned power of two from {} to {}",
                    ALIGNMENT.start(),
                    ALIGNMENT.end()
                )));
            }
        };

        let mut order = Vec::with_capacity(tensor_count as usize);
        let mut names = HashSet::new();
        for i in 0..tensor_count {
            let name = reader.text(MAX_NAME, &|| format!("name of tensor {i}"))?;
            if name.is_empty() || name.contains(|c: char| c.is_control()) {
                return Err(reader.error(format_args!(
                    "the name of tensor {i} ('{}') is not a name",
                    crate::units::shown(&name)
                )));
            }
            if !names.insert(name.clone()) {
                return Err(reader.error(format_args!("tensor {name} appears twice")));
            }
            let what = || format!("tensor {name}");
            let count = reader.u32(&what)?;
            if !(1..=4).contains(&count) {
                return Err(reader.error(format_args!(
                    "tensor {name}: {count} dimensions; 1 to 4 are possible"
                )));
            }
            let mut dims = [1u64; 4];
            for dim in dims.iter_mut().take(count as usize) {
                *dim = reader.u64(&what)?;
            }
            let kind = reader.u32(&what)?;
            let offset = reader.u64(&what)?;
            let encoding = encoding(kind)
                .map_err(|text| reader.error(format_args!("tensor {name}: {text}")))?;
            let bytes = byte_size(&dims, encoding)
                .map_err(|text| reader.error(format_args!("tensor {name}: {text}")))?;
            order.push((name, dims, count, encoding, offset, bytes));
        }

        let data = reader
            .position()
            .checked_next_multiple_of(alignment)
            .filter(|at| *at <= source.len() || order.is_empty());
        let Some(data) = data else {
            return Err(reader.error("the file ends before its tensor data begins; it is cut off"));
        };
        // Something else than zeros here says that the counts were too small: a tensor's entry, say that of `output.weight`, is left over.
        let padding = data.saturating_sub(reader.position()).min(reader.left()) as usize;
        if reader.take(padding, &String::new)?.iter().any(|b| *b != 0) {
            return Err(
                reader.error("the padding behind the header is not zero; tensor count or metadata count do not fit the header")
            );
        }
        let mut tensors = HashMap::with_capacity(order.len());
        let mut spans = Vec::with_capacity(order.len());
        for (name, dims, count, encoding, offset, bytes) in order {
            if !offset.is_multiple_of(alignment) {
                return Err(reader.error(format_args!(
                    "tensor {name}: offset {offset} is not a multiple of the alignment {alignment}"
                )));
            }
            let begin = data.saturating_add(offset);
            if begin.saturating_add(bytes) > source.len() {
                return Err(reader.error(format_args!(
                    "tensor {name}: {bytes} bytes at offset {offset} reach past the end of the file ({} bytes); the file is cut off or damaged",
                    source.len()
                )));
            }
            spans.push((begin, bytes, name.clone()));
            let columns = dims[0] as usize;
            let rows = dims[1..].iter().product::<u64>() as usize;
            let shape = dims.iter().take(count as usize).rev().map(|n| *n as usize).collect();
            tensors.insert(
                name,
                TensorInfo { rows, columns, shape, encoding, offset: begin, part: 0 },
            );
        }
        spans.sort();
        for pair in spans.windows(2) {
            if let [(begin, bytes, first), (next, _, second)] = pair
                && begin.saturating_add(*bytes) > *next
            {
                return Err(
                    reader.error(format_args!("tensors {first} and {second} overlap in the file"))
                );
            }
        }
        Ok(Gguf { parts: vec![source.clone()], source, metadata, tensors })
    }

    /// Reads and checks the header of a file, and where it is a part of a split model those of all parts, whichever was named. Keys
    /// and names are those of `gguf-split`: `split.no` counts from 0, names from 1; the first part alone has the metadata.
    pub(super) fn open_set(path: &Path) -> Result<Self, ModelError> {
        let named = Gguf::open(path)?;
        let Some(count) = named.integer("split.count", 1..=MAX_PARTS)?.filter(|n| *n > 1) else {
            return Ok(named);
        };
        let own = named.split_number(count)?;
        let Some(name) = SplitName::parse(path).filter(|name| name.count == count) else {
            return Err(named.error(format_args!(
                "it is part {} of {count} of a split model, whose parts are found by their names; it must be called NAME-{:05}-of-{count:05}.gguf",
                own.saturating_add(1),
                own.saturating_add(1)
            )));
        };
        let mut all: Option<Gguf> = None;
        for number in 0..count {
            let path = name.part(number);
            if path.symlink_metadata().is_err() {
                return Err(named.error(format_args!(
                    "it is part {} of {count} of a split model, and {} is missing; all parts must lie in one folder",
                    own.saturating_add(1),
                    shown(&path)
                )));
            }
            let part = Gguf::open(&path)?;
            if part.integer("split.count", 1..=MAX_PARTS)? != Some(count) {
                return Err(part.error(format_args!(
                    "metadata 'split.count' is not {count}, as {} has it; the parts are of different models",
                    shown(path_name(&name.path))
                )));
            }
            let found = part.split_number(count)?;
            if found != number {
                return Err(part.error(format_args!(
                    "metadata 'split.no' is {found}, but the name says {number} (part {} of {count}); the file was renamed or is another part",
                    number.saturating_add(1)
                )));
            }
            match &mut all {
                None => all = Some(part),
                Some(all) => all.join(part)?,
            }
        }
        let all = all.unwrap_or(named);
        let total = all.integer("split.tensors.count", 0..=MAX_TENSORS)?;
        match total {
            None => Err(all.missing("split.tensors.count")),
            Some(total) if total != all.tensors.len() => Err(all.error(format_args!(
                "metadata 'split.tensors.count' is {total}, but the {count} parts hold {} tensors",
                all.tensors.len()
            ))),
            Some(_) => Ok(all),
        }
    }

    /// The number of a part, from 0.
    fn split_number(&self, count: usize) -> Result<usize, ModelError> {
        let last = (count as u64).saturating_sub(1);
        self.integer("split.no", 0..=last)?.ok_or_else(|| self.missing("split.no"))
    }

    /// Adds the tensors of the next part.
    fn join(&mut self, next: Gguf) -> Result<(), ModelError> {
        let total = "split.tensors.count";
        if next.integer(total, 0..=MAX_TENSORS)? != self.integer(total, 0..=MAX_TENSORS)? {
            let first = shown(path_name(self.path()));
            return Err(next.error(format_args!(
                "metadata '{total}' is not the one of {first}; the parts are of different models"
            )));
        }
        let (before, architecture) = (self.parts.len(), "general.architecture");
        if let Some(other) = next.text(architecture)?
            && self.text(architecture)?.is_some_and(|own| own != other)
        {
            return Err(next.error(format_args!(
                "metadata '{architecture}' is not the one of the first part"
            )));
        }
        let Gguf { source, parts: _, metadata: _, tensors } = next;
        for (name, info) in tensors {
            if self.tensors.insert(name.clone(), TensorInfo { part: before, ..info }).is_some() {
                return Err(invalid(
                    source.path(),
                    format_args!("tensor {name} is also in an earlier part"),
                ));
            }
        }
        self.parts.push(source);
        Ok(())
    }

    /// The file that holds a tensor.
    pub(super) fn source_of(&self, info: &TensorInfo) -> &Arc<Source> {
        self.parts.get(info.part).unwrap_or(&self.source)
    }

    /// The file, for messages.
    pub(super) fn path(&self) -> &Path {
        self.source.path()
    }

    /// An error about this file.
    pub(super) fn error(&self, what: impl std::fmt::Display) -> ModelError {
        invalid(self.path(), what)
    }

    fn wrong(&self, key: &str, value: &Value, wanted: &str) -> ModelError {
        let shown = match value {
            Value::Unsigned(n) => n.to_string(),
            Value::Signed(n) => n.to_string(),
            Value::Float(n) => n.to_string(),
            Value::Bool(b) => b.to_string(),
            other => other.kind().to_string(),
        };
        self.error(format_args!("metadata '{key}' is {shown}; it must be {wanted}"))
    }

    /// A metadata value.
    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// Whether the key exists.
    pub(super) fn has(&self, key: &str) -> bool {
        self.metadata.contains_key(key)
    }

    /// An optional integer in `range`.
    pub(super) fn integer(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let number = match value {
            Value::Unsigned(n) => Some(*n),
            Value::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        };
        match number.filter(|n| range.contains(n)) {
            Some(n) => Ok(Some(n as usize)),
            None => Err(self.wrong(
                key,
                value,
                &format!("an integer from {} to {}", range.start(), range.end()),
            )),
        }
    }

    /// An optional bool.
    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(value) => Err(self.wrong(key, value, "true or false")),
        }
    }

    /// An optional text.
    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(value) => Err(self.wrong(key, value, "a text")),
        }
    }

    /// A text that must be there.
    pub(super) fn need_text(&self, key: &str) -> Result<&str, ModelError> {
        self.text(key)?.ok_or_else(|| self.missing(key))
    }

    /// An array of texts that must be there.
    pub(super) fn texts(&self, key: &str) -> Result<&[String], ModelError> {
        match self.metadata.get(key) {
            None => Err(self.missing(key)),
            Some(Value::Texts(texts)) => Ok(texts),
            Some(value) => Err(self.wrong(key, value, "an array of texts")),
        }
    }

    /// An array of integers that must be there.
    pub(super) fn integers(&self, key: &str) -> Result<&[i64], ModelError> {
        match self.metadata.get(key) {
            None => Err(self.missing(key)),
            Some(Value::Integers(numbers)) => Ok(numbers),
            Some(value) => Err(self.wrong(key, value, "an array of 32-bit integers")),
        }
    }

    /// An array of 32-bit floats (or integers, which old files have) that must be there.
    pub(super) fn floats(&self, key: &str) -> Result<Vec<f32>, ModelError> {
        match self.metadata.get(key) {
            None => Err(self.missing(key)),
            Some(Value::Floats(numbers)) => Ok(numbers.clone()),
            Some(Value::Integers(numbers)) => Ok(numbers.iter().map(|n| *n as f32).collect()),
            Some(value) => Err(self.wrong(key, value, "an array of 32-bit floats")),
        }
    }

    /// The length of an array.
    pub(super) fn array_len(&self, key: &str) -> Option<u64> {
        match self.metadata.get(key)? {
            Value::Array(_, len) => Some(*len),
            Value::Texts(texts) => Some(texts.len() as u64),
            Value::Integers(numbers) => Some(numbers.len() as u64),
            Value::Bools(flags) => Some(flags.len() as u64),
            Value::Floats(numbers) => Some(numbers.len() as u64),
            _ => None,
        }
    }

    fn missing(&self, key: &str) -> ModelError {
        self.error(format_args!("metadata '{key}' is missing"))
    }
}

/// The type of a ggml type number, or why it is not read.
fn encoding(kind: u32) -> Result<Encoding, String> {
    Encoding::of_ggml(kind).ok_or_else(|| {
        let name = match kind {
            9 | 15 => "Q8_1 or Q8_K, which hold activations",
            24..=27 => "of integers",
            28 => "F64, which no f32 weight can hold exactly",
            4 | 5 | 31..=33 | 36..=38 => "no longer part of ggml",
            _ => "unknown",
        };
        let known: Vec<_> = Encoding::all().map(Encoding::ggml_name).collect();
        format!("ggml type {kind} ({name}) is not supported; {} are", known.join(", "))
    })
}

/// The name of a number of `general.file_type` (llama.h, `enum llama_ftype`), as `--dtype` would spell it.
pub(super) fn file_type(number: usize) -> Option<&'static str> {
    Some(match number {
        0 => "f32",
        1 => "f16",
        2 => "q4_0",
        3 => "q4_1",
        7 => "q8_0",
        8 => "q5_0",
        9 => "q5_1",
        10 => "q2_k",
        11 => "q3_k_s",
        12 => "q3_k_m",
        13 => "q3_k_l",
        14 => "q4_k_s",
        15 => "q4_k_m",
        16 => "q5_k_s",
        17 => "q5_k_m",
        18 => "q6_k",
        19 => "iq2_xxs",
        20 => "iq2_xs",
        21 => "q2_k_s",
        22 => "iq3_xs",
        23 => "iq3_xxs",
        24 => "iq1_s",
        25 => "iq4_nl",
        26 => "iq3_s",
        27 => "iq3_m",
        28 => "iq2_s",
        29 => "iq2_m",
        30 => "iq4_xs",
        31 => "iq1_m",
        32 => "bf16",
        36 => "tq1_0",
        37 => "tq2_0",
        38 => "mxfp4_moe",
        39 => "nvfp4",
        40 => "q1_0",
        41 => "q2_0",
        _ => return None,
    })
}

/// Bytes of a tensor of these dimensions, all products checked.
fn byte_size(dims: &[u64; 4], encoding: Encoding) -> Result<u64, String> {
    let (block, bytes) = (encoding.block(), encoding.block_bytes());
    if dims.contains(&0) {
        return Err("a dimension is 0".into());
    }
    if !dims[0].is_multiple_of(block as u64) {
        return Err(format!(
            "rows of {} values cannot be {}, whose blocks hold {block}",
            dims[0],
            encoding.ggml_name()
        ));
    }
    let count =
        dims.iter().try_fold(1u64, |n, d| n.checked_mul(*d)).filter(|n| *n <= i64::MAX as u64);
    count
        .and_then(|n| n.checked_div(block as u64)?.checked_mul(bytes as u64))
        .filter(|n| usize::try_from(*n).is_ok())
        .ok_or_else(|| format!("dimensions {dims:?} are more than any file can hold"))
}

/// A guess at what a file is that is not GGUF, from its first bytes, and what to do about it.
pub(super) fn what_it_is(begin: &[u8]) -> &'static str {
    let text = String::from_utf8_lossy(begin).trim_start().to_ascii_lowercase();
    match begin {
        [b'F', b'U', b'G', b'G', ..] => {
            "it is a big-endian GGUF; convert it again with little-endian output"
        }
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => {
            "it is a zip archive (a wheel or a PyTorch checkpoint?); unpack it and give the .gguf file inside"
        }
        [0x1f, 0x8b, ..] => "it is gzip-compressed; unpack it first",
        [0x80, _, ..]
            if begin.get(2).is_some_and(|b| matches!(b, b'}' | b']' | b'c' | 0x8a | 0x95)) =>
        {
            "it is a Python pickle, which is never loaded; give a GGUF file or a safetensors folder"
        }
        [b'g', b'g', ..]
        | [b'l', b'm', b'g', b'g']
        | [b't', b'j', b'g', b'g', ..]
        | [b'f', b'm', b'g', b'g', ..] => "it is an old GGML file; convert the model to GGUF",
        _ if text.starts_with("version https://git-lfs") => {
            "it is a Git LFS pointer, not the model itself; run `git lfs pull`, or download the file"
        }
        _ if text.starts_with("<!doctype")
            || text.starts_with("<html")
            || text.starts_with("<?xml") =>
        {
            "it is a web page, perhaps an error page saved in place of the model; download it again"
        }
        [_, _, _, _, _, 0, 0, 0, b'{', ..] => {
            "it is a safetensors file; give the folder that holds it together with config.json and tokenizer.json"
        }
        _ if text.starts_with('{') => {
            "it is JSON; give a GGUF file or a folder with config.json, *.safetensors and tokenizer.json"
        }
        _ if begin.iter().all(|b| *b == 0) => {
            "it begins with zeros; the download was probably cut off"
        }
        _ => "it does not begin with 'GGUF'; give a GGUF file or a safetensors folder",
    }
}

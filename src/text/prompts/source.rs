//! Where prompts are read from: an ordinary file, a pipe, standard input. In: a path as typed. Out: bytes. It refuses what is no text
//! before anything waits on it: folders, UTF-16, archives, model files, a FIFO that nobody writes to.
//! Over 500 lines: kinds of files are told, opened and refused by one set of rules.

use super::record::InputError;
use crate::system::{self, FileIdentity};
use crate::units::shown;
use sha2::{Digest, Sha256};
use std::fs::{File, Metadata};
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// How long a FIFO may go without a writer, in hundredths of a second.
const TIMEOUT: u32 = 200;

pub(super) type Reader = Box<dyn BufRead + Send>;

/// A place to read from; clones share what can be read only once.
#[derive(Clone)]
pub(super) struct Source {
    name: Arc<str>,
    path: PathBuf,
    /// For what can be read only once: the stream, until it is taken, and what was read of it while looking.
    once: Option<Arc<Mutex<Option<Reader>>>>,
    /// What an ordinary file was when it was looked at.
    first_look: Option<Look>,
    /// SHA-256 of an ordinary file's bytes, once somebody has read them all.
    digest: Arc<Mutex<Option<[u8; 32]>>>,
    folder: bool,
    /// An ordinary file that begins as Parquet files do.
    parquet: bool,
}

/// What shows that a file is still the one that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    identity: FileIdentity,
    content: Content,
}

/// What of it changes when a file is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Content {
    length: u64,
    modified: Option<SystemTime>,
}

impl Content {
    fn of(meta: &Metadata) -> Content {
        Content { length: meta.len(), modified: meta.modified().ok() }
    }
}

impl Look {
    fn at(path: &Path, meta: &Metadata) -> io::Result<Look> {
        Ok(Look { identity: system::identity_at(path)?, content: Content::of(meta) })
    }

    fn of(file: &File) -> io::Result<Look> {
        let content = Content::of(&file.metadata()?);
        Ok(Look { identity: system::identity(file)?, content })
    }
}

/// An ordinary file whose every piece is checked to be of the file that was looked at.
struct Watched {
    file: File,
    content: Content,
    sha: Option<Sha256>,
    digest: Arc<Mutex<Option<[u8; 32]>>>,
}

fn changed() -> io::Error {
    io::Error::other(
        "the file was changed after it was first looked at; start again once it is complete",
    )
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        if Content::of(&self.file.metadata()?) != self.content {
            return Err(changed());
        }
        if let Some(sha) = &mut self.sha {
            sha.update(buffer.get(..count).unwrap_or_default());
        }
        // Looks do not tell two contents of one moment and one length apart; the digests of two readings do.
        if count == 0
            && !buffer.is_empty()
            && let Some(sha) = self.sha.take()
        {
            let found: [u8; 32] = sha.finalize().into();
            let mut digest = self.digest.lock().unwrap_or_else(PoisonError::into_inner);
            if *digest.get_or_insert(found) != found {
                return Err(changed());
            }
        }
        Ok(count)
    }
}

impl Source {
    /// Checks that it is there and what kind of thing it is.
    pub fn of(path: &Path) -> Result<Source, InputError> {
        let name: Arc<str> = path.to_string_lossy().into();
        let source = |once: Option<Reader>| Source {
            name: name.clone(),
            path: path.to_path_buf(),
            once: once.map(|reader| Arc::new(Mutex::new(Some(reader)))),
            first_look: None,
            digest: Arc::default(),
            folder: false,
            parquet: false,
        };
        if path.as_os_str() == "-" {
            return Ok(source(Some(Box::new(Unpacked::new(Box::new(
                BufReader::new(io::stdin()),
            ))))));
        }
        let bad = |what: String| InputError::Bad(format!("{}: {what}", shown(&name)));
        let meta = std::fs::metadata(path).map_err(|e| bad(why(&e)))?;
        let kind = meta.file_type();
        if kind.is_dir() {
            return Ok(Source { folder: true, ..source(None) });
        }
        if system::is_socket_or_disk(&meta) {
            return Err(bad("is not a file of prompts but a device or socket".to_string()));
        }
        if kind.is_file() {
            let look = Look::at(path, &meta).map_err(|e| bad(why(&e)))?;
            return Ok(Source { first_look: Some(look), ..source(None) });
        }
        // A FIFO or character device. Opening a FIFO waits for a writer, perhaps for ever: so do not wait, and look for one.
        let file = system::open_without_waiting(path).map_err(|e| bad(why(&e)))?;
        let pipe = Pipe { file, begun: false, waited: 0 };
        Ok(source(Some(Box::new(Unpacked::new(Box::new(BufReader::new(pipe)))))))
    }

    /// What is read from nowhere: prompts that were typed.
    pub fn none(name: &str) -> Source {
        let (name, path) = (name.into(), PathBuf::new());
        Source {
            name,
            path,
            once: None,
            first_look: None,
            digest: Arc::default(),
            folder: false,
            parquet: false,
        }
    }

    /// Whether it is a folder, of which nothing is read here.
    pub fn is_folder(&self) -> bool {
        self.folder
    }

    /// Whether it is a file that begins as Parquet files do.
    pub fn is_parquet(&self) -> bool {
        self.parquet
    }

    /// Where it is.
    #[cfg(feature = "parquet")]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// That an ordinary file still is the one that was looked at.
    #[cfg(feature = "parquet")]
    pub fn unchanged(&self) -> io::Result<()> {
        match self.first_look {
            Some(first) if Look::at(&self.path, &std::fs::metadata(&self.path)?)? != first => {
                Err(changed())
            }
            _ => Ok(()),
        }
    }

    /// As typed.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Whether it can be read again.
    pub fn is_regular(&self) -> bool {
        self.once.is_none()
    }

    /// Looks at the first bytes; those of a stream only if they are there without waiting for a person.
    pub fn look(&mut self, notices: &mut Vec<String>) -> Result<(), InputError> {
        if &*self.name == "-" && io::stdin().is_terminal() {
            notices.push("reading prompts from the terminal; Ctrl-D ends them".to_string());
        }
        if !self.is_regular() || self.folder {
            return Ok(());
        }
        let mut start = [0; 4];
        let mut file = self
            .watched()
            .map_err(|e| InputError::Bad(format!("{}: {}", shown(&self.name), why(&e))))?;
        let mut count = 0;
        while count < start.len() {
            match file.read(start.get_mut(count..).unwrap_or_default()) {
                Ok(0) => break,
                Ok(n) => count += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    return Err(InputError::Bad(format!("{}: {}", shown(&self.name), why(&e))));
                }
            }
        }
        let start = start.get(..count).unwrap_or_default();
        let packed = Packing::of(start);
        let named = self.path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        let named = named.as_deref().filter(|e| matches!(*e, "gz" | "zst"));
        let name = shown(&self.name);
        match (packed, named) {
            (Some(packed), named) if named != Some(packed.extension()) => {
                notices.push(format!(
                    "{name} is packed with {}, which its name does not say; it is read as such",
                    packed.name()
                ));
            }
            (None, Some(end)) => notices.push(format!(
                "{name} is not packed, though its name ends with .{end}; it is read as it is"
            )),
            _ => {}
        }
        self.parquet = start == b"PAR1";
        let what = match start {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "is UTF-16 text; save it as UTF-8",
            b"PK\x03\x04" => "is a zip archive or an office document; save it as JSONL, CSV or TXT",
            b"GGUF" => "is a model, not a file of prompts; give it to --model",
            _ => return Ok(()),
        };
        Err(InputError::Bad(format!("{}: {what}", shown(&self.name))))
    }

    /// Opens it; a stream can be taken once.
    pub fn open(&self) -> Result<Reader, InputError> {
        match &self.once {
            Some(once) => {
                let taken = once.lock().unwrap_or_else(PoisonError::into_inner).take();
                taken.ok_or_else(|| {
                    InputError::Io(format!("{}: can be read only once", shown(&self.name)))
                })
            }
            // It could be read when it was looked at, so what is wrong now is no bad usage.
            None => self
                .watched()
                .map(|r| Box::new(Unpacked::new(r)) as Reader)
                .map_err(|e| InputError::Io(format!("{}: {}", shown(&self.name), why(&e)))),
        }
    }

    /// The ordinary file from its beginning, if it still is the one that was looked at.
    fn watched(&self) -> io::Result<Reader> {
        let file = File::open(&self.path)?;
        let look = Look::of(&file)?;
        if self.first_look.is_some_and(|first| first != look) {
            return Err(changed());
        }
        let watched = Watched {
            file,
            content: look.content,
            sha: Some(Sha256::new()),
            digest: self.digest.clone(),
        };
        Ok(Box::new(BufReader::with_capacity(1 << 16, watched)))
    }

    /// Gives back a stream of which only the header was read.
    pub fn put_back(&self, reader: Reader) {
        if let Some(once) = &self.once {
            *once.lock().unwrap_or_else(PoisonError::into_inner) = Some(reader);
        }
    }
}

/// An error of the system without its number.
pub(super) fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file".to_string(),
        io::ErrorKind::PermissionDenied => "cannot be read: permission denied".to_string(),
        _ => {
            let text = error.to_string();
            match error.raw_os_error() {
                Some(_) => text.split(" (os error").next().unwrap_or(&text).to_lowercase(),
                // One of ours, which may name a file.
                None => text,
            }
        }
    }
}

/// How a file of text is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    Gzip,
    Zstd,
}

impl Packing {
    /// By the first four bytes.
    fn of(start: &[u8]) -> Option<Packing> {
        match start {
            [0x1f, 0x8b, ..] => Some(Packing::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Packing::Zstd),
            // A frame that is skipped, as some programs put one first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Packing::Zstd),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        if self == Packing::Gzip { "gzip" } else { "zstd" }
    }

    fn extension(self) -> &'static str {
        if self == Packing::Gzip { "gz" } else { "zst" }
    }
}

/// A reader that unpacks what begins like a packed file, and gives everything else as it is.
enum Unpacked {
    /// Nothing was read yet.
    Unknown(Option<Reader>),
    Plain(Reader),
    Gzip(Box<BufReader<Members>>),
    Zstd(Box<BufReader<Frames>>),
}

/// Bytes that a packed file is unpacked to at a time.
const PIECE: usize = 1 << 16;

impl Unpacked {
    fn new(reader: Reader) -> Unpacked {
        Unpacked::Unknown(Some(reader))
    }

    fn known(&mut self) -> io::Result<&mut dyn BufRead> {
        if let Unpacked::Unknown(reader) = self {
            // A pipe may give its first bytes in pieces; then it is not taken for packed.
            let packing = match reader.as_mut() {
                Some(reader) => Packing::of(reader.fill_buf()?),
                None => None,
            };
            let reader: Reader = reader.take().unwrap_or_else(|| Box::new(io::empty()));
            *self = match packing {
                None => Unpacked::Plain(reader),
                Some(Packing::Gzip) => {
                    let members = Members(flate2::bufread::MultiGzDecoder::new(reader));
                    Unpacked::Gzip(Box::new(BufReader::with_capacity(PIECE, members)))
                }
                Some(Packing::Zstd) => {
                    Unpacked::Zstd(Box::new(BufReader::with_capacity(PIECE, Frames::new(reader))))
                }
            };
        }
        Ok(match self {
            Unpacked::Plain(reader) => reader,
            Unpacked::Gzip(reader) => reader,
            Unpacked::Zstd(reader) => reader,
            Unpacked::Unknown(_) => return Err(io::Error::other("nothing is known of this file")),
        })
    }
}

impl Read for Unpacked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.known()?.read(buffer)
    }
}

impl BufRead for Unpacked {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.known()?.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        if let Ok(reader) = self.known() {
            reader.consume(count);
        }
    }
}

/// The members of a gzip file, one after the other.
struct Members(flate2::bufread::MultiGzDecoder<Reader>);

impl Read for Members {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use io::ErrorKind as K;
        self.0.read(buffer).map_err(|e| match e.kind() {
            K::InvalidData | K::InvalidInput | K::UnexpectedEof => damaged("gzip", e),
            _ => e,
        })
    }
}

/// The frames of a zstd file, one after the other; those to be skipped are.
struct Frames {
    source: Reader,
    decoder: ruzstd::decoding::FrameDecoder,
    /// In the middle of a frame.
    inside: bool,
}

impl Frames {
    fn new(source: Reader) -> Frames {
        Frames { source, decoder: ruzstd::decoding::FrameDecoder::new(), inside: false }
    }

    /// Begins the next frame; false at the end.
    fn begin(&mut self) -> io::Result<bool> {
        use ruzstd::decoding::errors::{FrameDecoderError, FrameHeaderError, ReadFrameHeaderError};
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    if io::copy(&mut (&mut self.source).take(length), &mut io::sink())? < length {
                        return Err(damaged("zstd", "it ends too soon"));
                    }
                }
                Err(
                    FrameDecoderError::WindowSizeTooBig { requested: asked, .. }
                    | FrameDecoderError::FrameHeaderError(FrameHeaderError::WindowTooBig {
                        got: asked,
                    })
                    | FrameDecoderError::FailedToInitialize(FrameHeaderError::WindowTooBig {
                        got: asked,
                    }),
                ) => {
                    let asked = crate::units::Bytes(asked);
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!(
                            "the zstd data asks for a window of {asked}, and 128 MiB is the most; pack it without --long"
                        ),
                    ));
                }
                Err(error) => return Err(damaged("zstd", error)),
            }
        }
    }
}

fn damaged(what: &str, why: impl std::fmt::Display) -> io::Error {
    let why: String = why.to_string().chars().take(200).collect();
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the {what} data is damaged: {}", shown(&why)),
    )
}

impl Read for Frames {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use ruzstd::decoding::BlockDecodingStrategy;
        loop {
            if !self.inside && !self.begin()? {
                return Ok(0);
            }
            self.inside = true;
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let blocks = self
                    .decoder
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1));
                blocks.map_err(|e| damaged("zstd", e))?;
            }
            let count = self.decoder.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            self.inside = false;
        }
    }
}

/// A FIFO opened without waiting; reading waits, but not for ever for a first writer.
struct Pipe {
    file: File,
    begun: bool,
    waited: u32,
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let pause = match self.file.read(buffer) {
                Ok(0) if !self.begun && system::is_fifo(&self.file.metadata()?) => {
                    self.waited += 1;
                    if self.waited > TIMEOUT {
                        return Err(io::Error::other("nobody writes to this pipe"));
                    }
                    Duration::from_millis(10)
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => Duration::from_millis(5),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                done => {
                    self.begun = true;
                    return done;
                }
            };
            std::thread::sleep(pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(source: &Source) -> Result<String, String> {
        let mut text = String::new();
        let mut reader = source.open().map_err(|e| e.to_string())?;
        reader.read_to_string(&mut text).map_err(|e| e.to_string())?;
        Ok(text)
    }

    #[test]
    fn a_file_that_changes_after_the_first_look_is_noticed_however_it_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let other = folder.path().join("b.jsonl");
        type Change = fn(&Path, &Path, &Metadata);
        let changes: [(&str, Change); 6] = [
            ("emptied", |path, _, _| std::fs::write(path, "").unwrap()),
            ("appended to", |path, _, _| {
                io::Write::write_all(
                    &mut std::fs::OpenOptions::new().append(true).open(path).unwrap(),
                    b"three\n",
                )
                .unwrap()
            }),
            ("replaced by a file of the same length and time", |path, other, meta| {
                std::fs::write(other, "one\nTWO\n").unwrap();
                File::options()
                    .write(true)
                    .open(other)
                    .unwrap()
                    .set_modified(meta.modified().unwrap())
                    .unwrap();
                std::fs::rename(other, path).unwrap();
            }),
            ("removed", |path, _, _| std::fs::remove_file(path).unwrap()),
            ("rewritten", |path, _, _| std::fs::write(path, "one\nTWO\n").unwrap()),
            ("rewritten with its time set back", |path, _, meta| {
                std::fs::write(path, "one\nTWO\n").unwrap();
                File::options()
                    .write(true)
                    .open(path)
                    .unwrap()
                    .set_modified(meta.modified().unwrap())
                    .unwrap();
            }),
        ];
        for (what, change) in changes {
            std::fs::write(&path, "one\ntwo\n").unwrap();
            // A time of its own, so that no two writings share one.
            File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_modified(std::time::UNIX_EPOCH)
                .unwrap();
            let source = Source::of(&path).unwrap();
            assert_eq!(whole(&source).as_deref(), Ok("one\ntwo\n"));
            assert_eq!(whole(&source).as_deref(), Ok("one\ntwo\n"), "twice the same");
            change(&path, &other, &File::open(&path).unwrap().metadata().unwrap());
            let error = whole(&source).expect_err(what);
            let word = if what == "removed" { "no such file" } else { "was changed" };
            assert!(error.contains(word), "{what}: {error}");
        }
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, "x\n".repeat(1 << 17)).unwrap();
        let source = Source::of(&path).unwrap();
        let mut reader = source.open().unwrap();
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 17).unwrap();
        assert!(reader.read_to_string(&mut line).unwrap_err().to_string().contains("was changed"));
    }
}

//! Where prompts are read from: an ordinary file, a pipe, standard input. In: a path as typed. Out: bytes. It refuses what is no text
//! before anything waits on it: folders, UTF-16, archives, model files, a FIFO that nobody writes to.

use super::record::InputError;
use crate::units::shown;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a FIFO may go without a writer, in hundredths of a second.
const PATIENCE: u32 = 200;

pub(super) type Reader = Box<dyn BufRead + Send>;

/// A place to read from; clones share what can be read only once.
#[derive(Clone)]
pub(super) struct Source {
    name: Arc<str>,
    path: PathBuf,
    /// For what can be read only once: the stream, until it is taken, and what was read of it while looking.
    once: Option<Arc<Mutex<Option<Reader>>>>,
}

impl Source {
    /// Checks that it is there and what kind of thing it is.
    pub fn of(path: &Path) -> Result<Source, InputError> {
        let name: Arc<str> = path.to_string_lossy().into();
        let source = |once: Option<Reader>| Source {
            name: name.clone(),
            path: path.to_path_buf(),
            once: once.map(|reader| Arc::new(Mutex::new(Some(reader)))),
        };
        if path.as_os_str() == "-" {
            return Ok(source(Some(Box::new(BufReader::new(io::stdin())))));
        }
        let bad = |what: String| InputError::Bad(format!("{}: {what}", shown(&name)));
        let kind = std::fs::metadata(path).map_err(|e| bad(why(&e)))?.file_type();
        if kind.is_dir() {
            return Err(bad("is a folder; name the files in it".to_string()));
        }
        if kind.is_socket() || kind.is_block_device() {
            return Err(bad("is not a file of prompts but a device or socket".to_string()));
        }
        if kind.is_file() {
            return Ok(source(None));
        }
        // A FIFO or character device. Opening a FIFO waits for a writer, perhaps for ever: so do not wait, and look for one.
        let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(|e| bad(why(&e)))?;
        let pipe = Pipe { file, begun: false, waited: 0 };
        Ok(source(Some(Box::new(BufReader::new(pipe)))))
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
        if !self.is_regular() {
            return Ok(());
        }
        let mut start = [0; 4];
        let mut file = self.open()?;
        let mut count = 0;
        while count < start.len() {
            match file.read(start.get_mut(count..).unwrap_or_default()) {
                Ok(0) => break,
                Ok(n) => count += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(InputError::Bad(format!("{}: {}", shown(&self.name), why(&e)))),
            }
        }
        let what = match start.get(..count).unwrap_or_default() {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "is UTF-16 text; save it as UTF-8",
            [0x1f, 0x8b, ..] => "is compressed with gzip; unpack it first",
            [0x28, 0xb5, 0x2f, 0xfd] => "is compressed with zstd; unpack it first",
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
                taken.ok_or_else(|| InputError::Io(format!("{}: can be read only once", shown(&self.name))))
            }
            None => match File::open(&self.path) {
                Ok(file) => Ok(Box::new(BufReader::with_capacity(1 << 16, file))),
                Err(e) => Err(InputError::Bad(format!("{}: {}", shown(&self.name), why(&e)))),
            },
        }
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
            text.split(" (os error").next().unwrap_or(&text).to_lowercase()
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
                Ok(0) if !self.begun && self.file.metadata()?.file_type().is_fifo() => {
                    self.waited += 1;
                    if self.waited > PATIENCE {
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

//! Reading files that others may change meanwhile. In: a path. Out: bytes at an offset, the file's SHA-256.
//! Files are read with positioned reads into our own memory instead of being mapped: the weights are copied into panels anyway, a
//! file that shrinks while it is read is then an error and never a SIGBUS, and no `unsafe` is needed. It knows no file format.

use super::ModelError;
use crate::system::{self, read_exact_at};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Where a model lies.
#[derive(Debug)]
pub(super) enum Place {
    /// A file that should be GGUF.
    Gguf(PathBuf),
    /// A folder with a checkpoint.
    Folder(PathBuf),
}

/// An open regular file that is noticed when it changes.
pub(super) struct Source {
    file: File,
    path: PathBuf,
    len: u64,
    modified: Option<SystemTime>,
}

impl Source {
    /// Opens a regular file; anything else (a FIFO, a device, a folder) is refused without being read.
    pub(super) fn open(path: &Path) -> Result<Self, ModelError> {
        let metadata = std::fs::metadata(path).map_err(|e| cannot_read(path, &e))?;
        if !metadata.is_file() {
            return Err(ModelError::Invalid(format!("{}: not a regular file", shown(path))));
        }
        let file = File::open(path).map_err(|e| cannot_read(path, &e))?;
        let metadata = file.metadata().map_err(|e| cannot_read(path, &e))?;
        if !metadata.is_file() {
            return Err(ModelError::Invalid(format!("{}: not a regular file", shown(path))));
        }
        Ok(Source {
            file,
            path: path.to_path_buf(),
            len: metadata.len(),
            modified: metadata.modified().ok(),
        })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its length when it was opened.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `out` from `offset`; an error if the file has become shorter or was written to since it was opened.
    pub(super) fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), ModelError> {
        read_exact_at(&self.file, out, offset).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => self.changed(),
            _ => cannot_read(&self.path, &e),
        })?;
        let now = self.file.metadata().map_err(|e| cannot_read(&self.path, &e))?;
        if now.len() != self.len || now.modified().ok() != self.modified {
            return Err(self.changed());
        }
        Ok(())
    }

    fn changed(&self) -> ModelError {
        ModelError::Io(format!(
            "{}: the file was changed while it was read; start again once it is complete",
            shown(&self.path)
        ))
    }

    /// SHA-256 of the whole file, 64 hex digits; `tell` hears the bytes read so far and says whether to go on;
    /// where it does not, nobody wants the result.
    pub(super) fn digest(&self, tell: &dyn Fn(u64) -> bool) -> Result<String, ModelError> {
        let mut hash = Sha256::new();
        self.hash(&mut hash, tell)?;
        Ok(hex(&hash.finalize()))
    }

    /// Feeds the whole file to `hash`; `tell` hears the bytes read so far and says whether to go on.
    pub(super) fn hash(
        &self,
        hash: &mut dyn sha2::digest::Update,
        tell: &dyn Fn(u64) -> bool,
    ) -> Result<(), ModelError> {
        let mut buffer = vec![0u8; 1 << 20];
        let mut at = 0;
        while at < self.len {
            let n = buffer.len().min(usize::try_from(self.len - at).unwrap_or(usize::MAX));
            self.read_at(at, &mut buffer[..n])?;
            hash.update(&buffer[..n]);
            at += n as u64;
            if !tell(at) {
                break;
            }
        }
        Ok(())
    }
}

/// Lower-case hex digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A path as error messages show it: one line, whatever the name holds.
pub(super) fn shown(path: &Path) -> String {
    crate::units::shown(&path.display().to_string())
}

/// The error for a file that cannot be opened or read.
pub(super) fn cannot_read(path: &Path, error: &std::io::Error) -> ModelError {
    use std::io::ErrorKind::*;
    let text = format!("{}: {error}", shown(path));
    match error.kind() {
        NotFound | PermissionDenied | NotADirectory | IsADirectory | InvalidInput
        | InvalidFilename => ModelError::Invalid(text),
        // A loop of symbolic links has no stable kind.
        _ if system::is_circle_of_links(error) => ModelError::Invalid(text),
        _ => ModelError::Io(text),
    }
}

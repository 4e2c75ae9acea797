//! Windows: see the head of the module. Locks are mandatory here: while a run goes on, other programs cannot read its output.

use super::FileIdentity;
use signal_hook::consts::{SIGBREAK, SIGINT, SIGTERM};
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, Seek, SeekFrom};
use std::os::windows::fs::FileExt;
use std::os::windows::io::AsHandle;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often is looked whether Ctrl-C was pressed: its handler runs in a thread of the system's and can only note it.
const LOOK: Duration = Duration::from_millis(20);

/// `ERROR_CANT_RESOLVE_FILENAME`.
const CIRCLE: i32 = 1921;

/// `ERROR_TOO_MANY_OPEN_FILES`.
const TOO_MANY_FILES: i32 = 4;

fn identity_of(found: &winapi_util::file::Information) -> FileIdentity {
    FileIdentity { volume: found.volume_serial_number(), number: found.file_index() }
}

/// Of an open file.
pub fn identity(file: &File) -> io::Result<FileIdentity> {
    winapi_util::file::information(file).map(|found| identity_of(&found))
}

/// Of the file or folder that a path leads to.
pub fn identity_at(path: &Path) -> io::Result<FileIdentity> {
    let handle = winapi_util::Handle::from_path_any(path)?;
    winapi_util::file::information(&handle).map(|found| identity_of(&found))
}

/// A standard stream as a file of its own.
pub fn duplicate(stream: impl AsHandle) -> io::Result<File> {
    stream.as_handle().try_clone_to_owned().map(File::from)
}

/// Lets what is opened be appended to, cut and locked: what is opened for appending alone can be neither cut nor locked here.
pub fn appending(options: &mut OpenOptions) -> &mut OpenOptions {
    options.write(true)
}

/// Before a write to what was opened by [`appending`].
pub fn to_end(file: &mut File) -> io::Result<()> {
    file.seek(SeekFrom::End(0)).map(drop)
}

/// Gives a temporary file its name at once: whoever looks finds the old file or the whole new one. A `fresh` one takes no other's place. `old` is
/// closed before: the file that has the name now, if it is open.
pub fn persist(
    file: tempfile::NamedTempFile,
    path: &Path,
    fresh: bool,
    old: Option<File>,
) -> io::Result<File> {
    drop(old);
    if fresh {
        return file.persist_noclobber(path).map_err(|e| e.error);
    }
    // std's rename replaces a file that somebody has open, on NTFS; that of `tempfile` does not.
    let (file, temporary) = file.keep().map_err(|e| e.error)?;
    let renamed = std::fs::rename(&temporary, path);
    if renamed.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    renamed.map(|()| file)
}

/// The permissions of a file that is made in this folder.
pub fn ordinary_permissions(folder: &Path) -> io::Result<Permissions> {
    let probe = tempfile::Builder::new().prefix(".llmopt-").tempfile_in(folder)?;
    probe.as_file().metadata().map(|meta| meta.permissions())
}

/// Lets everybody read a file: here a temporary file inherits its folder's rights as others do.
pub fn readable_by_all(_file: &File) -> io::Result<()> {
    Ok(())
}

/// Whether it is a file that may be executed.
pub fn is_program(path: &Path) -> bool {
    path.is_file()
}

/// Fills `out` with the bytes at `offset`.
pub fn read_exact_at(file: &File, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !out.is_empty() {
        match file.seek_read(out, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                out = out.get_mut(n..).unwrap_or_default();
                offset += n as u64;
            }
        }
    }
    Ok(())
}

/// Moves `target` to `link`: links need privileges here.
pub fn link(target: &Path, _way: &Path, link: &Path) -> io::Result<()> {
    std::fs::rename(target, link)
}

/// Whether an error says that links lead in a circle.
pub fn is_circle_of_links(error: &io::Error) -> bool {
    error.raw_os_error() == Some(CIRCLE)
}

/// Whether an error says that this process may open no more files.
pub fn is_too_many_files(error: &io::Error) -> bool {
    error.raw_os_error() == Some(TOO_MANY_FILES)
}

/// The process that holds a lock on this file: the system does not say.
pub fn lock_holder(_file: &File) -> Option<u32> {
    None
}

/// Whether it is a pipe with a name in the file system: there are none.
pub fn is_fifo(_meta: &Metadata) -> bool {
    false
}

/// Whether it is a socket or a disk, from which no prompts are read: metadata do not tell.
pub fn is_socket_or_disk(_meta: &Metadata) -> bool {
    false
}

/// Opens a device for reading.
pub fn open_without_waiting(path: &Path) -> io::Result<File> {
    File::open(path)
}

/// Opens a FIFO for writing if somebody reads from it: there are none.
pub fn open_read_fifo(path: &Path) -> io::Result<Option<File>> {
    OpenOptions::new().write(true).open(path).map(Some)
}

/// Whether somebody has this FIFO open for reading: never asked, as there are none.
pub fn has_reader(_fifo: &Path) -> bool {
    true
}

/// Bytes in a pipe that nobody has read: never asked, as there are none.
pub fn unread(_pipe: &File) -> u64 {
    0
}

/// Bytes that this user may still write to the file system that holds `folder`: not looked up here.
pub fn free_disk(_folder: &Path) -> Option<u64> {
    None
}

/// Whether this process has lost the parent that it had: not looked up here. Ctrl-C reaches every process of the console, and one that
/// measures for another ends when nobody takes what it found.
pub fn orphaned() -> impl FnMut() -> bool + Send {
    || false
}

/// The signals that ask this process to end, by their numbers, as they come: Ctrl-C and Ctrl-Break.
pub fn signals() -> io::Result<impl Iterator<Item = i32> + Send> {
    let flags =
        [SIGINT, SIGTERM, SIGBREAK].map(|signal| (signal, Arc::new(AtomicBool::new(false))));
    for (signal, flag) in &flags {
        signal_hook::flag::register(*signal, flag.clone())?;
    }
    Ok(std::iter::from_fn(move || {
        loop {
            let set = |(_, flag): &&(i32, Arc<AtomicBool>)| flag.swap(false, Ordering::SeqCst);
            if let Some((signal, _)) = flags.iter().find(set) {
                return Some(*signal);
            }
            std::thread::sleep(LOOK);
        }
    }))
}

/// What a signal is called.
pub fn signal_name(signal: i32) -> &'static str {
    match signal {
        SIGINT => "Ctrl-C",
        SIGBREAK => "Ctrl-Break",
        _ => "SIGTERM",
    }
}

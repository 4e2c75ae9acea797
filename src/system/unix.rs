//! Unix: see the head of the module.

use super::FileIdentity;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

fn identity_of(meta: &Metadata) -> FileIdentity {
    FileIdentity { volume: meta.dev(), number: meta.ino() }
}

/// Of an open file.
pub fn identity(file: &File) -> io::Result<FileIdentity> {
    file.metadata().map(|meta| identity_of(&meta))
}

/// Of the file or folder that a path leads to.
pub fn identity_at(path: &Path) -> io::Result<FileIdentity> {
    std::fs::metadata(path).map(|meta| identity_of(&meta))
}

/// A standard stream as a file of its own.
pub fn duplicate(stream: impl AsFd) -> io::Result<File> {
    stream.as_fd().try_clone_to_owned().map(File::from)
}

/// Lets what is opened be appended to, cut and locked.
pub fn appending(options: &mut OpenOptions) -> &mut OpenOptions {
    options.append(true)
}

/// Before a write to what was opened by [`appending`]: here the system itself goes to the end.
pub fn to_end(_file: &mut File) -> io::Result<()> {
    Ok(())
}

/// Gives a temporary file its name at once: whoever looks finds the old file or the whole new one. A `fresh` one takes no other's place. `old` is
/// closed: the file that has the name now, if it is open.
pub fn persist(
    file: tempfile::NamedTempFile,
    path: &Path,
    fresh: bool,
    _old: Option<File>,
) -> io::Result<File> {
    if fresh { file.persist_noclobber(path) } else { file.persist(path) }.map_err(|e| e.error)
}

/// The permissions of a file that is made in this folder.
pub fn ordinary_permissions(folder: &Path) -> io::Result<Permissions> {
    let probe = tempfile::Builder::new()
        .prefix(".llmopt-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    probe.as_file().metadata().map(|meta| meta.permissions())
}

/// Lets everybody read a file that was made for its owner alone.
pub fn readable_by_all(file: &File) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(0o644))
}

/// Whether it is a file that may be executed.
pub fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Fills `out` with the bytes at `offset`.
pub fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(out, offset)
}

/// Makes `link`, which leads to `target` by the relative path `way`.
pub fn link(_target: &Path, way: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(way, link)
}

/// Whether an error says that links lead in a circle.
pub fn is_circle_of_links(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ELOOP)
}

/// Whether an error says that this process may open no more files.
pub fn is_too_many_files(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMFILE)
}

/// The process that holds a lock on this file, as /proc/locks lists it: `1: FLOCK ADVISORY WRITE 123 08:01:456 0 EOF`.
pub fn lock_holder(file: &File) -> Option<u32> {
    let meta = file.metadata().ok()?;
    let (major, minor) =
        ((meta.dev() >> 8) & 0xfff, (meta.dev() & 0xff) | ((meta.dev() >> 12) & 0xfff00));
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let key = format!("{major:02x}:{minor:02x}:{}", meta.ino());
    let line = locks.lines().find(|line| line.split_whitespace().any(|word| word == key))?;
    line.split_whitespace().nth(4)?.parse().ok().filter(|&pid| pid > 0)
}

/// Whether it is a pipe with a name.
pub fn is_fifo(meta: &Metadata) -> bool {
    meta.file_type().is_fifo()
}

/// Whether it is a socket or a disk, from which no prompts are read.
pub fn is_socket_or_disk(meta: &Metadata) -> bool {
    meta.file_type().is_socket() || meta.file_type().is_block_device()
}

/// Opens a FIFO or device for reading without waiting for a writer.
pub fn open_without_waiting(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

fn without_reader(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENXIO)
}

/// Opens a FIFO for writing if somebody reads from it; a write then waits for the reader, and fails when the last one has left.
pub fn open_read_fifo(path: &Path) -> io::Result<Option<File>> {
    match OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Err(e) if without_reader(&e) => Ok(None),
        Err(e) => Err(e),
        Ok(file) => {
            let flags = rustix::fs::fcntl_getfl(&file)?;
            rustix::fs::fcntl_setfl(&file, flags - rustix::fs::OFlags::NONBLOCK)?;
            Ok(Some(file))
        }
    }
}

/// Whether somebody has this FIFO open for reading.
pub fn has_reader(fifo: &Path) -> bool {
    let opened = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(fifo);
    !opened.is_err_and(|e| without_reader(&e))
}

/// Bytes in a pipe that nobody has read.
pub fn unread(pipe: &File) -> u64 {
    rustix::io::ioctl_fionread(pipe).unwrap_or(0)
}

/// Bytes that this user may still write to the file system that holds `folder`; `None` where the system does not say.
pub fn free_disk(folder: &Path) -> Option<u64> {
    let system = rustix::fs::statvfs(folder).ok()?;
    system.f_bavail.checked_mul(system.f_frsize)
}

/// Whether this process has lost the parent that it had: call it first where it is known to be there.
pub fn orphaned() -> impl FnMut() -> bool + Send {
    let parent = std::os::unix::process::parent_id();
    move || std::os::unix::process::parent_id() != parent
}

/// The signals that ask this process to end, by their numbers, as they come. A SIGHUP that is ignored (nohup) stays so.
pub fn signals() -> io::Result<impl Iterator<Item = i32> + Send> {
    // Without a handler a file size limit kills; with one the write fails and says so.
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
    let kinds =
        if hangup_is_ignored() { vec![SIGINT, SIGTERM] } else { vec![SIGINT, SIGTERM, SIGHUP] };
    let mut caught = signal_hook::iterator::Signals::new(kinds)?;
    Ok(std::iter::from_fn(move || caught.forever().next()))
}

/// What a signal is called.
pub fn signal_name(signal: i32) -> &'static str {
    match signal {
        SIGINT => "SIGINT",
        SIGHUP => "SIGHUP",
        _ => "SIGTERM",
    }
}

/// Bit 0 of `SigIgn` in /proc/self/status.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|l| l.strip_prefix("SigIgn:"))
        .and_then(|m| u64::from_str_radix(m.trim(), 16).ok());
    mask.is_some_and(|m| m & 1 != 0)
}

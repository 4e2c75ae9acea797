//! The output file: opened and locked before anything else happens, changed only once it is certain that answers will come,
//! appended to by whole lines. In: a path and what to do with a file that exists. Out: a [`Writer`]. It knows no record format.
//!
//! `--overwrite` writes a new file beside the old one and renames it over it at the moment of [`PreparedOutput::commit`]: a kill
//! before that leaves the old file, a kill after it the new one, which `--resume` continues.
//! Over 500 lines: files, FIFOs and devices are opened by one set of rules; half of the file is their reasons.

use crate::cli::Failure;
use crate::pipeline::{Control, Stopping};
use crate::system;
use crate::units::{Bytes, counted};
use std::collections::VecDeque;
use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// How long a FIFO may be without a reader before the run is given up: it has ended after 10 s.
const TIMEOUT: Duration = Duration::from_millis(9_500);

/// How often is looked whether a FIFO still has a reader.
const LOOK: Duration = Duration::from_millis(200);

/// What to do with a file that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Leave it alone: exit status 2.
    Refuse,
    /// Replace it.
    Overwrite,
    /// Keep its records and go on.
    Resume,
}

/// An output that can be written, with nothing written yet.
#[derive(Debug)]
pub struct PreparedOutput {
    /// As the user named it.
    shown: PathBuf,
    /// Where links lead.
    target: PathBuf,
    file: File,
    existing: Existing,
    /// Created by us, to be removed if the run never begins.
    created: bool,
    regular: bool,
    fifo: bool,
    /// What an existing file was when its content was read for a resume, or when it was opened.
    look: Look,
}

/// What shows that nobody else has written to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    length: u64,
    modified: Option<SystemTime>,
}

impl Look {
    fn of(meta: &Metadata) -> Look {
        Look { length: meta.len(), modified: meta.modified().ok() }
    }
}

/// Says where the path cannot be used and what would work.
fn refuse(path: &Path, what: impl std::fmt::Display) -> Failure {
    Failure::usage(format!("output {}: {what}", path.display()))
}

impl PreparedOutput {
    /// Opens and locks `path`. Everything that would make writing fail later and can be known now is exit status 2.
    pub fn open(path: &Path, existing: Existing) -> Result<PreparedOutput, Failure> {
        loop {
            let target = resolve(path)?;
            let mut options = OpenOptions::new();
            system::appending(&mut options).read(existing != Existing::Overwrite);
            let (file, created) = match options.clone().read(true).create_new(true).open(&target) {
                Ok(file) => (file, true),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    let meta = std::fs::metadata(&target).map_err(|e| refuse(path, e))?;
                    if meta.is_dir() {
                        return Err(refuse(path, "is a folder; name a file in it"));
                    }
                    let regular = meta.is_file();
                    if !regular && existing == Existing::Resume {
                        return Err(refuse(
                            path,
                            "is not a regular file, so a run into it cannot be resumed",
                        ));
                    }
                    if regular && existing == Existing::Refuse {
                        return Err(refuse(
                            path,
                            "exists; add --resume to go on with it or --overwrite to replace it",
                        ));
                    }
                    if system::is_fifo(&meta) {
                        let file = open_fifo(&target, path, TIMEOUT)?;
                        return Ok(PreparedOutput {
                            fifo: true,
                            ..PreparedOutput::stream(path, target, file, existing)?
                        });
                    }
                    if !regular {
                        // A device: nothing is ever read from it.
                        options.read(false);
                    }
                    (options.open(&target).map_err(|e| refuse(path, e))?, false)
                }
                Err(e) => return Err(refuse(path, explain(&e, &target))),
            };
            let meta = file.metadata().map_err(|e| refuse(path, e))?;
            let regular = meta.is_file();
            if regular {
                lock(&file, path)?;
                // Another run may have renamed a new file over this one between opening and locking.
                if !system::is_at(&file, &target) {
                    continue;
                }
            }
            let prepared = PreparedOutput::stream(path, target, file, existing)?;
            return Ok(PreparedOutput { created, regular, ..prepared });
        }
    }

    fn stream(
        path: &Path,
        target: PathBuf,
        file: File,
        existing: Existing,
    ) -> Result<PreparedOutput, Failure> {
        let look = Look::of(&file.metadata().map_err(|e| refuse(path, e))?);
        Ok(PreparedOutput {
            shown: path.into(),
            target,
            file,
            existing,
            created: false,
            regular: false,
            fifo: false,
            look,
        })
    }

    /// Whether a run into it can be gone on with.
    pub fn is_regular(&self) -> bool {
        self.regular
    }

    /// The existing content, for a resume.
    pub fn content(&self) -> io::Result<File> {
        let mut file = self.file.try_clone()?;
        file.rewind()?;
        Ok(file)
    }

    /// Path as the user named it.
    pub fn path(&self) -> &Path {
        &self.shown
    }

    /// Undoes the opening: a file that did not exist before is removed.
    pub fn abandon(self) {
        if self.created {
            let _ = std::fs::remove_file(&self.target);
        }
    }

    /// The path to remove if the process must leave before [`PreparedOutput::commit`].
    pub fn created_path(&self) -> Option<PathBuf> {
        self.created.then(|| self.target.clone())
    }

    /// Makes the file ready for appending: its first `keep` bytes stay, and get a line end if `newline` says that they lack one.
    pub fn commit(mut self, keep: u64, newline: bool) -> Result<Writer<File>, Failure> {
        let fail = |e: io::Error| Failure::failed(format!("output {}: {e}", self.shown.display()));
        if !self.regular {
            let quiet = is_standard_output(&self.file);
            // The end of standard output is a quiet one.
            let pipe =
                if self.fifo && !quiet { Some(self.file.try_clone().map_err(fail)?) } else { None };
            let writer = Writer {
                target: self.target,
                quiet,
                ..Writer::new(self.file, self.shown, 0, false)
            };
            return Ok(Writer {
                fifo: pipe.map(|pipe| Fifo { pipe, ends: VecDeque::new() }),
                ..writer
            });
        }
        self.check_untouched()?;
        if self.existing == Existing::Overwrite && !self.created {
            self.file = put(&self.target, &self.shown, false, Some(self.file), &mut |_| Ok(()))
                .map_err(fail)?;
        } else {
            if self.file.metadata().map_err(fail)?.len() != keep {
                self.file.set_len(keep).map_err(fail)?;
            }
            system::to_end(&mut self.file).map_err(fail)?;
            if newline {
                self.file.write_all(b"\n").map_err(fail)?;
            }
        }
        let length = self.file.metadata().map_err(fail)?.len();
        Ok(Writer { target: self.target, ..Writer::new(self.file, self.shown, length, true) })
    }
}

impl PreparedOutput {
    /// The file must be what it was when it was opened and read, and still have its name: the lock keeps out runs of llmopt alone.
    fn check_untouched(&self) -> Result<(), Failure> {
        let path = self.shown.display();
        let fail = |e: io::Error| Failure::failed(format!("output {path}: {e}"));
        let meta = self.file.metadata().map_err(fail)?;
        if Look::of(&meta) == self.look && system::is_at(&self.file, &self.target) {
            return Ok(());
        }
        Err(Failure::failed(format!(
            "output {path}: was changed by another program after it was looked at; it is left as it is, start again once it is complete"
        )))
    }
}

/// Opens a FIFO for writing once it has a reader.
fn open_fifo(target: &Path, path: &Path, patience: Duration) -> Result<File, Failure> {
    let since = Instant::now();
    loop {
        // Without waiting, and so that a wait for a reader has an end.
        match system::open_read_fifo(target) {
            Ok(None) if since.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(None) => {
                let waited = crate::units::seconds(patience.as_secs_f64());
                let message = format!(
                    "nobody has read from this pipe for {waited}; start its reader, or name a file"
                );
                return Err(Failure {
                    status: crate::cli::status::FAILED,
                    ..refuse(path, message)
                });
            }
            // A pipe may not be opened again by its name (another user's): then it must be opened as it is.
            Err(_) => {
                return OpenOptions::new().append(true).open(target).map_err(|e| refuse(path, e));
            }
            Ok(Some(file)) => return Ok(file),
        }
    }
}

/// Whether it is the same stream as standard output.
fn is_standard_output(file: &File) -> bool {
    let stdout = system::duplicate(io::stdout()).and_then(|stdout| system::identity(&stdout));
    stdout.ok().zip(system::identity(file).ok()).is_some_and(|(stdout, file)| stdout == file)
}

/// Stops the run once nobody reads a FIFO any more, also while nothing is written; ends when dropped.
pub struct ReaderWatch {
    gone: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
}

impl ReaderWatch {
    /// Whether the reader has left.
    pub fn gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }
}

impl Drop for ReaderWatch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

/// Follows links, so that a rename later replaces the target and not the link. The last part need not exist.
pub fn resolve(path: &Path) -> Result<PathBuf, Failure> {
    if path.file_name().is_none() && !path.exists() {
        return Err(refuse(path, "is not a file name"));
    }
    match std::fs::canonicalize(path) {
        Ok(target) => Ok(target),
        // A pipe of the shell (`/dev/fd/63`) is there and has no name of its own.
        Err(_) if path.exists() => Ok(path.to_path_buf()),
        Err(_) => match std::fs::read_link(path) {
            // A dangling link: the file is made where it leads.
            Ok(to) => Ok(path.parent().unwrap_or(Path::new("")).join(to)),
            Err(_) => Ok(path.to_path_buf()),
        },
    }
}

fn explain(error: &io::Error, target: &Path) -> String {
    let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match error.kind() {
        io::ErrorKind::NotFound => format!("the folder {} does not exist", folder.display()),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            format!("cannot be written ({error}); name a file in a folder that you may write to")
        }
        _ => error.to_string(),
    }
}

fn lock(file: &File, path: &Path) -> Result<(), Failure> {
    let tried = loop {
        match file.try_lock() {
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Interrupted => {}
            tried => break tried,
        }
    };
    match tried {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            let who = system::lock_holder(file)
                .map_or_else(|| "another process".into(), |pid| format!("process {pid}"));
            Err(refuse(
                path,
                format!("{who} is writing to it; wait for it to end or name another file"),
            ))
        }
        Err(TryLockError::Error(e)) => {
            Err(refuse(path, format!("cannot be locked ({e}); name a file on another file system")))
        }
    }
}

/// What writes a file's content.
type Content<'a> = &'a mut dyn FnMut(&mut (dyn Write + Send)) -> io::Result<()>;

/// Makes the file `path`, or makes it anew, at once: whoever looks finds the old one or the whole new one. A `fresh` one takes no other's
/// place: where a file stands, that is an error.
pub fn make(path: &Path, fresh: bool, write: Content) -> io::Result<()> {
    let target = resolve(path).map_err(|f| io::Error::other(f.message))?;
    put(&target, path, fresh, None, write).map(drop)
}

/// Each line of a file from where it stands, with its line end.
pub fn lines(journal: &File, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(1 << 16, journal);
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        each(&line)?;
    }
}

/// Writes a new file beside `target`, locks it, and gives it `target`'s name; `old` is what has that name, if it is open, and is closed.
fn put(
    target: &Path,
    shown: &Path,
    fresh: bool,
    old: Option<File>,
    write: Content,
) -> io::Result<File> {
    let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temp = tempfile::Builder::new()
        .prefix(".llmopt-")
        .suffix(".tmp")
        .append(cfg!(unix))
        .tempfile_in(folder)?;
    match std::fs::metadata(target) {
        Ok(meta) => temp.as_file().set_permissions(meta.permissions())?,
        // As a file that is made in the ordinary way has them; a temporary one is its owner's alone.
        Err(_) => temp.as_file().set_permissions(system::ordinary_permissions(folder)?)?,
    }
    {
        let mut buffered = io::BufWriter::new(temp.as_file_mut());
        write(&mut buffered)?;
        buffered.flush()?;
    }
    temp.as_file().sync_all()?;
    lock(temp.as_file(), shown).map_err(|f| io::Error::other(f.message))?;
    let file = system::persist(temp, target, fresh, old)?;
    // The new name survives a power cut only if the folder is written too; a file system that cannot do it says so here.
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
    Ok(file)
}

/// What a [`Writer`] needs of a file, so that a test can make it fail at any call.
pub trait Backing: Write {
    /// Before a line: to the end of a regular file.
    fn to_end(&mut self) -> io::Result<()>;
    /// Cuts or extends to a length.
    fn cut(&mut self, length: u64) -> io::Result<()>;
    /// Makes what is written survive a power cut.
    fn sync(&mut self) -> io::Result<()>;
}

impl Backing for File {
    fn to_end(&mut self) -> io::Result<()> {
        system::to_end(self)
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

impl Backing for io::Stdout {
    fn to_end(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn cut(&mut self, _length: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.flush()
    }
}

/// How a line was not written.
#[derive(Debug)]
pub enum WriteError {
    /// The reader of our pipe is gone: a quiet end.
    Closed,
    /// Everything else.
    Failed(Failure),
}

/// Appends whole lines. A line counts once [`Writer::line`] has returned: it survives the death of the process.
#[derive(Debug)]
pub struct Writer<B> {
    backing: B,
    /// As the user named it.
    path: PathBuf,
    /// Where links lead.
    target: PathBuf,
    length: u64,
    regular: bool,
    unsynced: u32,
    /// A reader that leaves ends the run without a word: it is standard output.
    quiet: bool,
    fifo: Option<Fifo>,
    /// Answers written.
    answers: u64,
}

/// What is needed to say how much of a FIFO was read.
#[derive(Debug)]
struct Fifo {
    pipe: File,
    /// Where the answers end of which a part may not have been read yet.
    ends: VecDeque<u64>,
}

/// A pipe holds no more than this, unless somebody with all rights has enlarged it further.
const MAX_IN_PIPE: u64 = 1 << 20;

impl<B: Backing> Writer<B> {
    /// Appends to `backing`, which holds `length` bytes of whole lines. `regular`: lines can be cut back and synced.
    pub fn new(backing: B, path: PathBuf, length: u64, regular: bool) -> Writer<B> {
        Writer {
            backing,
            target: path.clone(),
            path,
            length,
            regular,
            unsynced: 0,
            quiet: true,
            fifo: None,
            answers: 0,
        }
    }

    /// Writes one line (with its line end) by one call. If only a part of it could be written, that part is cut back.
    pub fn line(&mut self, line: &[u8]) -> Result<(), WriteError> {
        let mut sent = 0;
        let mut wrote = if self.regular { self.backing.to_end() } else { Ok(()) };
        while let Some(rest) = line.get(sent..).filter(|rest| wrote.is_ok() && !rest.is_empty()) {
            match self.backing.write(rest) {
                Ok(0) => wrote = Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => sent += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => wrote = Err(e),
            }
        }
        match wrote.and_then(|()| self.backing.flush()) {
            Ok(()) => {
                self.length += line.len() as u64;
                self.unsynced += 1;
                self.answers += 1;
                if let Some(fifo) = &mut self.fifo {
                    fifo.ends.push_back(self.length);
                    while fifo.ends.front().is_some_and(|end| end + MAX_IN_PIPE < self.length) {
                        fifo.ends.pop_front();
                    }
                }
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe && self.quiet => {
                Err(WriteError::Closed)
            }
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                Err(WriteError::Failed(self.left(sent as u64)))
            }
            Err(e) => {
                let cut = !self.regular || self.backing.cut(self.length).is_ok();
                let tail = if cut { "" } else { "; its last line may be torn, --resume cuts it" };
                Err(WriteError::Failed(self.failure(&e, tail)))
            }
        }
    }

    /// Writes lines through to the disk if there are any; `due` or every 64 of them.
    pub fn sync(&mut self, due: bool) -> Result<(), Failure> {
        if !self.regular || self.unsynced == 0 || !(due || self.unsynced >= 64) {
            return Ok(());
        }
        self.backing.sync().map_err(|e| self.failure(&e, ""))?;
        self.unsynced = 0;
        Ok(())
    }

    /// Whether a run into it can be gone on with.
    pub fn is_regular(&self) -> bool {
        self.regular
    }

    /// Writes the line that comes before all answers.
    pub fn header(&mut self, line: &[u8]) -> Result<(), WriteError> {
        self.line(line)?;
        self.answers = 0;
        self.fifo.iter_mut().for_each(|fifo| fifo.ends.clear());
        Ok(())
    }

    /// The line for a FIFO whose reader has left; `partly`: bytes of an answer that could not be written whole.
    fn left(&self, partly: u64) -> Failure {
        let unread = self.unread();
        let read = (self.length + partly).saturating_sub(unread);
        let missing =
            self.fifo.iter().flat_map(|fifo| &fifo.ends).filter(|end| **end > read).count() as u64;
        let delivered = counted(self.answers.saturating_sub(missing), "answer");
        let path = self.path.display();
        Failure::failed(format!(
            "output {path}: its reader has left; {delivered} delivered; start again with a reader, or name a file"
        ))
    }

    /// Bytes in the pipe that nobody has read.
    fn unread(&self) -> u64 {
        self.fifo.as_ref().map_or(0, |fifo| system::unread(&fifo.pipe))
    }

    /// For a FIFO: stops `control`'s run once nobody reads from it any more, also while nothing is written.
    pub fn watch(&self, control: Arc<Control>) -> Option<ReaderWatch> {
        self.fifo.as_ref()?;
        let watch = ReaderWatch { gone: Arc::default(), over: Arc::default() };
        let (gone, over, target) = (watch.gone.clone(), watch.over.clone(), self.target.clone());
        let work = move || {
            while !over.load(Ordering::SeqCst) {
                if !system::has_reader(&target) {
                    gone.store(true, Ordering::SeqCst);
                    return control.stop(Stopping::Now);
                }
                std::thread::sleep(LOOK);
            }
        };
        std::thread::Builder::new().name("reader watch".into()).spawn(work).ok().map(|_| watch)
    }

    /// The failure of a FIFO whose reader left before everything was written or read.
    pub fn undelivered(&self, watch: Option<&ReaderWatch>, complete: bool) -> Option<Failure> {
        self.fifo.as_ref()?;
        let lost = if complete {
            self.unread() > 0 && !system::has_reader(&self.target)
        } else {
            watch.is_some_and(ReaderWatch::gone)
        };
        lost.then(|| self.left(0))
    }

    fn failure(&self, error: &io::Error, tail: &str) -> Failure {
        let path = self.path.display();
        let advice = if self.regular { "; --resume goes on once there is room" } else { "" };
        Failure::failed(format!(
            "output {path}: {error} after {} of whole lines{tail}{advice}",
            Bytes(self.length)
        ))
    }
}

impl Writer<File> {
    /// What has been written so far, from its beginning.
    pub fn content(&self) -> Result<File, Failure> {
        let open = || -> io::Result<File> {
            let mut file = self.backing.try_clone()?;
            file.rewind()?;
            Ok(file)
        };
        open().map_err(|e| self.failure(&e, ""))
    }

    /// Replaces the file by what `edit` makes of its lines so far, at once: a kill leaves the old file or the new one.
    pub fn rewrite(
        &mut self,
        edit: impl Fn(&File, &mut (dyn Write + Send)) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let old = &mut self.backing;
        let fresh = old
            .rewind()
            .and_then(|()| put(&self.target, &self.path, false, None, &mut |out| edit(old, out)));
        let measured = fresh.and_then(|file| Ok((file.metadata()?.len(), file)));
        let (length, file) = measured.map_err(|e| self.failure(&e, ""))?;
        (self.backing, self.length, self.unsynced) = (file, length, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `room` bytes in all, in pieces of at most `piece`, then fails; fails the n-th sync.
    struct Faulty {
        bytes: Vec<u8>,
        room: usize,
        piece: usize,
        interrupts: usize,
        syncs_left: usize,
    }

    impl Write for Faulty {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            if self.interrupts > 0 && self.bytes.len().is_multiple_of(2) {
                self.interrupts -= 1;
                return Err(io::ErrorKind::Interrupted.into());
            }
            let count = data.len().min(self.piece).min(self.room - self.bytes.len());
            if count == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.bytes.extend_from_slice(&data[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Backing for Faulty {
        fn to_end(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn cut(&mut self, length: u64) -> io::Result<()> {
            self.bytes.truncate(length as usize);
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            self.syncs_left = self.syncs_left.checked_sub(1).ok_or(io::ErrorKind::QuotaExceeded)?;
            Ok(())
        }
    }

    fn faulty(room: usize, piece: usize) -> Writer<Faulty> {
        let backing = Faulty { bytes: vec![], room, piece, interrupts: 9, syncs_left: 1 };
        Writer::new(backing, "out.jsonl".into(), 0, true)
    }

    #[test]
    fn a_disk_full_at_any_byte_leaves_whole_lines_and_a_message_with_the_path() {
        let lines: Vec<String> = (0..6).map(|i| format!("{{\"id\":{i}}}\n")).collect();
        let whole = lines.concat();
        for room in 0..whole.len() {
            for piece in [1, 3, 1000] {
                let mut writer = faulty(room, piece);
                let error = lines
                    .iter()
                    .find_map(|l| writer.line(l.as_bytes()).err())
                    .expect("it must fail");
                let WriteError::Failed(failure) = error else { panic!("not a closed pipe") };
                assert!(
                    failure.status == 1 && failure.message.contains("out.jsonl"),
                    "{failure:?}"
                );
                let kept = String::from_utf8(writer.backing.bytes).unwrap();
                assert!(
                    whole.starts_with(&kept) && (kept.is_empty() || kept.ends_with('\n')),
                    "{room}: {kept:?}"
                );
                assert_eq!(
                    kept.len(),
                    (0..=6).map(|n| lines[..n].concat().len()).rfind(|&n| n <= room).unwrap()
                );
            }
        }
        let mut writer = faulty(whole.len(), 1);
        assert!(
            lines.iter().all(|l| writer.line(l.as_bytes()).is_ok()),
            "short and interrupted writes are no errors"
        );
    }

    #[test]
    fn a_failed_sync_is_an_error() {
        let mut writer = faulty(100, 100);
        assert!(writer.sync(true).is_ok(), "nothing to sync");
        writer.line(b"a\n").unwrap();
        assert!(writer.sync(false).is_ok() && writer.sync(true).is_ok());
        writer.line(b"b\n").unwrap();
        assert_eq!(writer.sync(true).unwrap_err().status, 1);
    }

    #[test]
    fn a_second_writer_is_refused_and_told_who_holds_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        let first = PreparedOutput::open(&path, Existing::Refuse).unwrap();
        for existing in [Existing::Resume, Existing::Overwrite] {
            let refused = PreparedOutput::open(&path, existing).unwrap_err();
            assert_eq!(refused.status, 2);
            assert!(
                refused.message.contains(&format!("process {}", std::process::id())),
                "{}",
                refused.message
            );
        }
        drop(first);
        assert!(PreparedOutput::open(&path, Existing::Resume).is_ok());
    }

    #[test]
    fn what_cannot_be_written_is_refused_before_any_work() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        std::fs::write(&file, "old\n").unwrap();
        for (path, existing, word) in [
            (folder.path().to_path_buf(), Existing::Overwrite, "folder"),
            (folder.path().join("no/such.jsonl"), Existing::Refuse, "does not exist"),
            (file.clone(), Existing::Refuse, "--resume"),
            (file.join("x"), Existing::Refuse, ""),
            ("/dev/null".into(), Existing::Resume, "regular"),
        ] {
            let refused = PreparedOutput::open(&path, existing).unwrap_err();
            assert!(refused.status == 2 && refused.message.contains(word), "{refused:?}");
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "old\n");
    }

    #[test]
    fn overwriting_keeps_the_old_file_until_the_commit_and_follows_links() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("a"), folder.path().join("link"));
        std::fs::write(&file, "old\n").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let prepared = PreparedOutput::open(&link, Existing::Overwrite).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "old\n");
        let mut writer = prepared.commit(0, false).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "");
        assert!(
            PreparedOutput::open(&link, Existing::Resume).unwrap_err().message.contains("process"),
            "the new file is locked too"
        );
        writer.line(b"new\n").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "new\n");
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file stays");
    }

    #[test]
    fn a_rewritten_file_is_appended_to_and_stays_locked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        std::fs::write(&path, "a\nb\ntorn").unwrap();
        let mut writer =
            PreparedOutput::open(&path, Existing::Resume).unwrap().commit(4, false).unwrap();
        writer.line(b"c\n").unwrap();
        let upper = |mut old: &File, out: &mut (dyn Write + Send)| {
            out.write_all(io::read_to_string(&mut old)?.to_uppercase().as_bytes())
        };
        writer.rewrite(upper).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "A\nB\nC\n");
        assert!(
            PreparedOutput::open(&path, Existing::Resume).unwrap_err().message.contains("process")
        );
        writer.line(b"d\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "A\nB\nC\nd\n");
        // A failure leaves the file as it was, and what was written can be gone on with.
        let failure = writer.rewrite(|_, _| Err(io::ErrorKind::StorageFull.into())).unwrap_err();
        assert!(failure.status == 1 && failure.message.contains("--resume"), "{failure:?}");
        writer.line(b"e\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "A\nB\nC\nd\ne\n");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn an_output_that_another_program_changes_meanwhile_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        type Change = fn(&Path);
        let changes: [(Change, &str); 3] = [
            (
                |path| {
                    OpenOptions::new().append(true).open(path).unwrap().write_all(b"c\n").unwrap()
                },
                "a\nb\nc\n",
            ),
            (|path| std::fs::write(path, "").unwrap(), ""),
            (
                |path| {
                    std::fs::write(path.with_extension("new"), "x\n").unwrap();
                    std::fs::rename(path.with_extension("new"), path).unwrap();
                },
                "x\n",
            ),
        ];
        for (change, left) in changes {
            for existing in [Existing::Resume, Existing::Overwrite] {
                std::fs::write(&path, "a\nb\n").unwrap();
                let prepared = PreparedOutput::open(&path, existing).unwrap();
                change(&path);
                let failure = prepared.commit(2, false).unwrap_err();
                assert!(
                    failure.status == 1 && failure.message.contains("another program"),
                    "{failure:?}"
                );
                assert_eq!(std::fs::read_to_string(&path).unwrap(), left);
            }
        }
    }

    fn fifo(folder: &Path) -> PathBuf {
        let path = folder.join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        path
    }

    #[test]
    fn a_fifo_without_a_reader_is_given_up_and_one_whose_reader_comes_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = fifo(folder.path());
        let failure = open_fifo(&path, &path, Duration::from_millis(100)).unwrap_err();
        assert!(
            failure.status == 1 && failure.message.contains("nobody has read from this pipe"),
            "{failure:?}"
        );
        let reader = std::thread::spawn({
            let path = path.clone();
            move || std::fs::read_to_string(path).unwrap()
        });
        let prepared = PreparedOutput::open(&path, Existing::Refuse).unwrap();
        assert!(!prepared.is_regular() && prepared.created_path().is_none());
        let mut writer = prepared.commit(0, false).unwrap();
        writer.line(b"a\n").unwrap();
        assert!(writer.undelivered(None, true).is_none());
        drop(writer);
        assert_eq!(reader.join().unwrap(), "a\n");
    }

    #[test]
    fn a_fifo_says_how_many_answers_its_reader_took() {
        let folder = tempfile::tempdir().unwrap();
        let path = fifo(folder.path());
        let mut reader = system::open_without_waiting(&path).unwrap();
        let mut writer =
            PreparedOutput::open(&path, Existing::Refuse).unwrap().commit(0, false).unwrap();
        writer.header(b"id\n").unwrap();
        (0..9).for_each(|_| writer.line(b"answer\n").unwrap());
        let mut some = [0; 3 + 4 * 7 + 5];
        io::Read::read_exact(&mut reader, &mut some).unwrap();
        let control = Arc::new(Control::default());
        let watch = writer.watch(control.clone()).unwrap();
        assert!(
            writer.undelivered(Some(&watch), false).is_none()
                && writer.undelivered(None, true).is_none()
        );
        drop(reader);
        let since = Instant::now();
        while control.stopping() != Stopping::Now {
            assert!(
                since.elapsed() < Duration::from_secs(2),
                "it is noticed although nothing is written"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        // All that was written is in the pipe, and five answers were never read.
        for failure in [
            writer.undelivered(Some(&watch), false).unwrap(),
            writer.undelivered(None, true).unwrap(),
        ] {
            assert!(
                failure.status == 1 && failure.message.contains("; 4 answers delivered"),
                "{failure:?}"
            );
        }
        let Err(WriteError::Failed(failure)) = writer.line(b"answer\n") else {
            panic!("it must fail, and not quietly")
        };
        assert!(
            failure.message.contains("; 4 answers delivered")
                && !failure.message.contains("--resume"),
            "{failure:?}"
        );
    }

    #[test]
    fn an_abandoned_output_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        PreparedOutput::open(&path, Existing::Refuse).unwrap().abandon();
        assert!(!path.exists());
    }
}

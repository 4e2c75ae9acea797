//! The output file: opened and locked before anything else happens, changed only once it is certain that answers will come,
//! appended to by whole lines. In: a path and what to do with a file that exists. Out: a [`Writer`]. It knows no record format.
//!
//! `--overwrite` writes a new file beside the old one and renames it over it at the moment of [`Prepared::commit`]: a kill
//! before that leaves the old file, a kill after it the new one, which `--resume` continues.

use crate::cli::Failure;
use crate::units::Bytes;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

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
pub struct Prepared {
    /// As the user named it.
    shown: PathBuf,
    /// Where links lead.
    target: PathBuf,
    file: File,
    existing: Existing,
    /// Created by us, to be removed if the run never begins.
    created: bool,
    regular: bool,
}

/// Says where the path cannot be used and what would work.
fn refuse(path: &Path, what: impl std::fmt::Display) -> Failure {
    Failure::usage(format!("output {}: {what}", path.display()))
}

impl Prepared {
    /// Opens and locks `path`. Everything that would make writing fail later and can be known now is exit status 2.
    pub fn open(path: &Path, existing: Existing) -> Result<Prepared, Failure> {
        loop {
            let target = resolve(path)?;
            let mut options = OpenOptions::new();
            options.append(true).read(existing != Existing::Overwrite);
            let (file, created) = match options.clone().read(true).create_new(true).open(&target) {
                Ok(file) => (file, true),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    let meta = std::fs::metadata(&target).map_err(|e| refuse(path, e))?;
                    if meta.is_dir() {
                        return Err(refuse(path, "is a folder; name a file in it"));
                    }
                    let regular = meta.is_file();
                    if !regular && existing == Existing::Resume {
                        return Err(refuse(path, "is not a regular file, so a run into it cannot be resumed"));
                    }
                    if regular && existing == Existing::Refuse {
                        return Err(refuse(path, "exists; add --resume to go on with it or --overwrite to replace it"));
                    }
                    if !regular {
                        // A device or pipe: nothing is ever read from it; a pipe may have no reading right at all.
                        options.read(meta.file_type().is_fifo());
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
                match std::fs::metadata(&target) {
                    Ok(now) if (now.dev(), now.ino()) == (meta.dev(), meta.ino()) => {}
                    _ => continue,
                }
            }
            return Ok(Prepared { shown: path.into(), target, file, existing, created, regular });
        }
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

    /// The path to remove if the process must leave before [`Prepared::commit`].
    pub fn created_path(&self) -> Option<PathBuf> {
        self.created.then(|| self.target.clone())
    }

    /// Makes the file ready for appending: its first `keep` bytes stay, and get a line end if `newline` says that they lack one.
    pub fn commit(mut self, keep: u64, newline: bool) -> Result<Writer<File>, Failure> {
        let fail = |e: io::Error| Failure::failed(format!("output {}: {e}", self.shown.display()));
        if !self.regular {
            return Ok(Writer::new(self.file, self.shown, 0, false));
        }
        if self.existing == Existing::Overwrite && !self.created {
            self.file = replace(&self.target, &self.shown, &mut |_| Ok(())).map_err(fail)?;
        } else {
            if self.file.metadata().map_err(fail)?.len() != keep {
                self.file.set_len(keep).map_err(fail)?;
            }
            if newline {
                self.file.write_all(b"\n").map_err(fail)?;
            }
        }
        let length = self.file.metadata().map_err(fail)?.len();
        Ok(Writer { target: self.target, ..Writer::new(self.file, self.shown, length, true) })
    }
}

/// Follows links, so that a rename later replaces the target and not the link. The last part need not exist.
fn resolve(path: &Path) -> Result<PathBuf, Failure> {
    if path.file_name().is_none() && !path.exists() {
        return Err(refuse(path, "is not a file name"));
    }
    match std::fs::canonicalize(path) {
        Ok(target) => Ok(target),
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
            let who = file.metadata().ok().and_then(|m| holder(&m)).map(|pid| format!("process {pid}"));
            let who = who.unwrap_or_else(|| "another process".into());
            Err(refuse(path, format!("{who} is writing to it; wait for it to end or name another file")))
        }
        Err(TryLockError::Error(e)) => Err(refuse(path, format!("cannot be locked ({e}); name a file on another file system"))),
    }
}

/// The process that holds a lock on this file, as /proc/locks lists it: `1: FLOCK ADVISORY WRITE 123 08:01:456 0 EOF`.
fn holder(meta: &std::fs::Metadata) -> Option<u32> {
    let (major, minor) = ((meta.dev() >> 8) & 0xfff, (meta.dev() & 0xff) | ((meta.dev() >> 12) & 0xfff00));
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let key = format!("{major:02x}:{minor:02x}:{}", meta.ino());
    let line = locks.lines().find(|line| line.split_whitespace().any(|word| word == key))?;
    line.split_whitespace().nth(4)?.parse().ok().filter(|&pid| pid > 0)
}

/// Writes a new file beside `target`, locks it, and renames it over `target`.
fn replace(target: &Path, shown: &Path, write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>) -> io::Result<File> {
    let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temp = tempfile::Builder::new().prefix(".llmopt-").suffix(".tmp").append(true).tempfile_in(folder)?;
    if let Ok(meta) = std::fs::metadata(target) {
        temp.as_file().set_permissions(meta.permissions())?;
    }
    {
        let mut buffered = io::BufWriter::new(temp.as_file_mut());
        write(&mut buffered)?;
        buffered.flush()?;
    }
    temp.as_file().sync_all()?;
    lock(temp.as_file(), shown).map_err(|f| io::Error::other(f.message))?;
    let file = temp.persist(target).map_err(|e| e.error)?;
    // The new name survives a power cut only if the folder is written too; a file system that cannot do it says so here.
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
    Ok(file)
}

/// What a [`Writer`] needs of a file, so that a test can make it fail at any call.
pub trait Backing: Write {
    /// Cuts or extends to a length.
    fn cut(&mut self, length: u64) -> io::Result<()>;
    /// Makes what is written survive a power cut.
    fn sync(&mut self) -> io::Result<()>;
}

impl Backing for File {
    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

impl Backing for io::Stdout {
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
}

impl<B: Backing> Writer<B> {
    /// Appends to `backing`, which holds `length` bytes of whole lines. `regular`: lines can be cut back and synced.
    pub fn new(backing: B, path: PathBuf, length: u64, regular: bool) -> Writer<B> {
        Writer { backing, target: path.clone(), path, length, regular, unsynced: 0 }
    }

    /// Writes one line (with its line end) by one call. If only a part of it could be written, that part is cut back.
    pub fn line(&mut self, line: &[u8]) -> Result<(), WriteError> {
        match self.backing.write_all(line).and_then(|()| self.backing.flush()) {
            Ok(()) => {
                self.length += line.len() as u64;
                self.unsynced += 1;
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(WriteError::Closed),
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

    fn failure(&self, error: &io::Error, tail: &str) -> Failure {
        let path = self.path.display();
        Failure::failed(format!(
            "output {path}: {error} after {} of whole lines{tail}; --resume goes on once there is room",
            Bytes(self.length)
        ))
    }
}

impl Writer<File> {
    /// Replaces the file by what `edit` makes of its lines so far, at once: a kill leaves the old file or the new one.
    pub fn rewrite(&mut self, edit: impl Fn(&File, &mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
        let old = &mut self.backing;
        let fresh = old.rewind().and_then(|()| replace(&self.target, &self.path, &mut |out| edit(old, out)));
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
                let error = lines.iter().find_map(|l| writer.line(l.as_bytes()).err()).expect("it must fail");
                let WriteError::Failed(failure) = error else { panic!("not a closed pipe") };
                assert!(failure.status == 1 && failure.message.contains("out.jsonl"), "{failure:?}");
                let kept = String::from_utf8(writer.backing.bytes).unwrap();
                assert!(whole.starts_with(&kept) && (kept.is_empty() || kept.ends_with('\n')), "{room}: {kept:?}");
                assert_eq!(kept.len(), (0..=6).map(|n| lines[..n].concat().len()).rfind(|&n| n <= room).unwrap());
            }
        }
        let mut writer = faulty(whole.len(), 1);
        assert!(lines.iter().all(|l| writer.line(l.as_bytes()).is_ok()), "short and interrupted writes are no errors");
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
        let first = Prepared::open(&path, Existing::Refuse).unwrap();
        for existing in [Existing::Resume, Existing::Overwrite] {
            let refused = Prepared::open(&path, existing).unwrap_err();
            assert_eq!(refused.status, 2);
            assert!(refused.message.contains(&format!("process {}", std::process::id())), "{}", refused.message);
        }
        drop(first);
        assert!(Prepared::open(&path, Existing::Resume).is_ok());
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
            let refused = Prepared::open(&path, existing).unwrap_err();
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
        let prepared = Prepared::open(&link, Existing::Overwrite).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "old\n");
        let mut writer = prepared.commit(0, false).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "");
        assert!(Prepared::open(&link, Existing::Resume).unwrap_err().message.contains("process"), "the new file is locked too");
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
        let mut writer = Prepared::open(&path, Existing::Resume).unwrap().commit(4, false).unwrap();
        writer.line(b"c\n").unwrap();
        let upper = |mut old: &File, out: &mut dyn Write| out.write_all(io::read_to_string(&mut old)?.to_uppercase().as_bytes());
        writer.rewrite(upper).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "A\nB\nC\n");
        assert!(Prepared::open(&path, Existing::Resume).unwrap_err().message.contains("process"));
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
    fn an_abandoned_output_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        Prepared::open(&path, Existing::Refuse).unwrap().abandon();
        assert!(!path.exists());
    }
}

//! Which files a command reads and which it writes, so that none is both: an output that is an input would be emptied before it is
//! read, one that is another output would be torn. In: paths with the flags that named them. Out: a refusal, before anything is
//! opened for writing. Regular files are told apart by device and inode, whatever their spelling; a file that does not exist yet, by its
//! folder and its name.

use super::Failure;
use crate::units::shown;
use std::fs::{File, Metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What tells a file from others.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Identity {
    /// Device and inode of one that exists.
    There(u64, u64),
    /// Folder's device and inode, and the name in small letters, since some file systems do not tell the case.
    ToCome(u64, u64, String),
}

/// Most links that are followed.
const MAX_LINKS: usize = 40;

/// Where links lead; the last part need not exist.
fn followed(path: &Path) -> PathBuf {
    let mut path = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        let Ok(to) = std::fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("")).join(to);
    }
    path
}

/// The identity of a regular file; `None` for everything that can be given twice: devices, pipes, folders, what cannot be found.
fn of_metadata(meta: &Metadata) -> Option<Identity> {
    meta.is_file().then(|| Identity::There(meta.dev(), meta.ino()))
}

impl Identity {
    fn of(path: &Path) -> Option<Identity> {
        if let Ok(meta) = std::fs::metadata(path) {
            return of_metadata(&meta);
        }
        let path = followed(path);
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let meta = std::fs::metadata(folder).ok()?;
        Some(Identity::ToCome(meta.dev(), meta.ino(), path.file_name()?.to_string_lossy().to_lowercase()))
    }

    /// Of a standard stream.
    fn of_stream(stream: impl AsFd) -> Option<Identity> {
        of_metadata(&File::from(stream.as_fd().try_clone_to_owned().ok()?).metadata().ok()?)
    }
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Touched {
    read: Vec<(String, Option<Identity>)>,
    written: Vec<(String, Option<Identity>)>,
}

/// As messages name it: `--stats a.json`.
fn named(flag: &str, path: &Path) -> String {
    let path = shown(&path.display().to_string());
    if flag.is_empty() { path } else { format!("{flag} {path}") }
}

impl Touched {
    /// A file that is read; `-` is standard input. Of a folder, everything below it.
    pub fn reads(&mut self, flag: &str, path: &Path) {
        if path.as_os_str() == "-" {
            return self.read.push(("standard input".into(), Identity::of_stream(std::io::stdin())));
        }
        self.read.push((named(flag, path), Identity::of(path)));
        self.reads_below(flag, path, 8);
    }

    fn reads_below(&mut self, flag: &str, folder: &Path, depth: usize) {
        let entries = if depth > 0 && folder.is_dir() { std::fs::read_dir(folder).ok() } else { None };
        for path in entries.into_iter().flatten().flatten().map(|e| e.path()) {
            match path.is_dir() {
                true => self.reads_below(flag, &path, depth - 1),
                false => self.read.push((named(flag, &path), Identity::of(&path))),
            }
        }
    }

    /// A model as `--model` names it: a file with the other parts of its set, or a folder. What is fetched is not known yet.
    pub fn reads_model(&mut self, name: &str) {
        let path = Path::new(name);
        self.reads("--model", path);
        let part = |path: &Path| path.file_name().and_then(|n| n.to_str()).and_then(|n| n.rsplit_once("-of-")).is_some();
        if path.is_file() && part(path) {
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let parts = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| part(p));
            parts.collect::<Vec<_>>().iter().for_each(|p| self.reads("--model", p));
        }
    }

    /// A file that is written.
    pub fn writes(&mut self, flag: &str, path: &Path) {
        self.written.push((named(flag, path), Identity::of(path)));
    }

    /// Standard output is written, perhaps into a file.
    pub fn writes_standard_output(&mut self) {
        self.written.push(("standard output".into(), Identity::of_stream(std::io::stdout())));
    }

    /// Refuses a file that would be written and read, or written twice.
    pub fn check(&self) -> Result<(), Failure> {
        let clash = |what: &str, other: &str, how: &str| {
            Err(Failure::usage(format!("{what}: is the same file as {other}, which is {how}; name another file")))
        };
        for (n, (what, identity)) in self.written.iter().enumerate() {
            let same = |(_, other): &&(String, Option<Identity>)| identity.is_some() && other == identity;
            if let Some((other, _)) = self.read.iter().find(same) {
                return clash(what, other, "read");
            }
            if let Some((other, _)) = self.written.iter().take(n).find(same) {
                return clash(what, other, "written too");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(reads: &[PathBuf], writes: &[PathBuf]) -> Option<String> {
        let mut touched = Touched::default();
        reads.iter().for_each(|p| touched.reads("", p));
        writes.iter().for_each(|p| touched.writes("--stats", p));
        touched.check().err().map(|f| {
            assert_eq!(f.status, 2);
            f.message
        })
    }

    #[test]
    fn a_file_is_the_same_however_it_is_spelt() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("a"), "").unwrap();
        std::fs::create_dir(at("sub")).unwrap();
        std::fs::write(at("sub/inner"), "").unwrap();
        std::os::unix::fs::symlink("a", at("link")).unwrap();
        std::os::unix::fs::symlink(at("link"), at("link to link")).unwrap();
        std::os::unix::fs::symlink("nothing yet", at("dangling")).unwrap();
        std::os::unix::fs::symlink(folder.path(), at("here")).unwrap();
        std::fs::hard_link(at("a"), at("hard")).unwrap();
        for other in ["a", "link", "link to link", "hard", "./a", "sub/../a", "here/a", "here/sub/../hard"] {
            let message = refused(&[at("a")], &[at(other)]).unwrap_or_else(|| panic!("{other}"));
            assert!(message.contains("--stats") && message.contains("which is read"), "{message}");
            assert!(refused(&[], &[at("a"), at(other)]).unwrap().contains("written too"), "{other}");
        }
        // Files that do not exist yet.
        for other in ["nothing yet", "Nothing Yet", "./nothing yet", "here/nothing yet", "dangling"] {
            assert!(refused(&[], &[at("nothing yet"), at(other)]).is_some(), "{other}");
        }
        // A folder that is read whole.
        assert!(refused(&[at("sub")], &[at("sub/inner")]).unwrap().contains("inner"));
        assert_eq!(refused(&[at("sub"), at("a")], &[at("sub/new"), at("b"), at("c")]), None);
        // What is no regular file may be given as often as one likes.
        let null = [PathBuf::from("/dev/null")];
        assert_eq!(refused(&null, &[null[0].clone(), null[0].clone()]), None);
    }

    #[test]
    fn all_parts_of_a_split_model_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"] {
            std::fs::write(at(name), "").unwrap();
        }
        let mut touched = Touched::default();
        touched.reads_model(at("m-00001-of-00002.gguf").to_str().unwrap());
        touched.writes("-o", &at("m-00002-of-00002.gguf"));
        assert!(touched.check().unwrap_err().message.contains("--model"));
    }
}

//! Which files a command reads and which it writes, so that none is both: an output that is an input would be emptied before it is
//! read, one that is another output would be torn. In: paths with the flags that named them. Out: a refusal, before anything is
//! opened for writing. Regular files are told apart by device and inode, whatever their spelling; a file that does not exist yet, by its
//! folder and its name.

use super::Failure;
use crate::system::{self, FileIdentity};
use crate::text::prompts::texts_below;
use crate::units::shown;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// What tells a file from others.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Identity {
    /// One that exists.
    There(FileIdentity),
    /// The folder's, and the name in small letters, since some file systems do not tell the case.
    ToCome(FileIdentity, String),
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

impl Identity {
    /// Of a regular file; `None` for everything that can be given twice: devices, pipes, folders, what cannot be found.
    fn of(path: &Path) -> Option<Identity> {
        if let Ok(meta) = std::fs::metadata(path) {
            let regular = meta.is_file().then(|| system::identity_at(path).ok());
            return regular.flatten().map(Identity::There);
        }
        let path = followed(path);
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some(Identity::ToCome(
            system::identity_at(folder).ok()?,
            path.file_name()?.to_string_lossy().to_lowercase(),
        ))
    }

    /// Of a standard stream.
    fn of_stream(stream: io::Result<File>) -> Option<Identity> {
        let file = stream.ok().filter(|file| file.metadata().is_ok_and(|meta| meta.is_file()))?;
        system::identity(&file).ok().map(Identity::There)
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
    /// A file that is read; `-` is standard input.
    pub fn reads(&mut self, flag: &str, path: &Path) {
        if path.as_os_str() == "-" {
            return self.read.push((
                "standard input".into(),
                Identity::of_stream(system::duplicate(io::stdin())),
            ));
        }
        self.read.push((named(flag, path), Identity::of(path)));
    }

    /// Prompts: a file, or a folder, of which the texts are read and nothing else: an output in it can be gone on with.
    pub fn reads_prompts(&mut self, path: &Path) {
        self.reads("", path);
        if path.is_dir() {
            texts_below(path).for_each(|path| self.reads("", &path));
        }
    }

    /// A model as `--model` names it: a file with the other parts of its set, or a folder, in which answers may lie too. What is fetched
    /// is not known yet.
    pub fn reads_model(&mut self, name: &str) {
        let path = Path::new(name);
        self.reads("--model", path);
        let part = |path: &Path| {
            path.file_name().and_then(|n| n.to_str()).and_then(|n| n.rsplit_once("-of-")).is_some()
        };
        let answers = |path: &Path| {
            path.extension()
                .is_some_and(|e| ["jsonl", "csv", "tsv", "parquet"].iter().any(|a| e == *a))
        };
        let (folder, wanted): (&Path, &dyn Fn(&Path) -> bool) = match path.is_dir() {
            true => (path, &|path| !answers(path)),
            false if path.is_file() && part(path) => (
                path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")),
                &part,
            ),
            false => return,
        };
        let all = std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .filter(|path| wanted(path));
        all.collect::<Vec<_>>().iter().for_each(|path| self.reads("--model", path));
    }

    /// A file that is written.
    pub fn writes(&mut self, flag: &str, path: &Path) {
        self.written.push((named(flag, path), Identity::of(path)));
    }

    /// Standard output is written, perhaps into a file.
    pub fn writes_standard_output(&mut self) {
        self.written
            .push(("standard output".into(), Identity::of_stream(system::duplicate(io::stdout()))));
    }

    /// Refuses a file that would be written and read, or written twice.
    pub fn check(&self) -> Result<(), Failure> {
        let clash = |what: &str, other: &str, how: &str| {
            Err(Failure::usage(format!(
                "{what}: is the same file as {other}, which is {how}; name another file"
            )))
        };
        for (n, (what, identity)) in self.written.iter().enumerate() {
            let same =
                |(_, other): &&(String, Option<Identity>)| identity.is_some() && other == identity;
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
        for other in
            ["a", "link", "link to link", "hard", "./a", "sub/../a", "here/a", "here/sub/../hard"]
        {
            let message = refused(&[at("a")], &[at(other)]).unwrap_or_else(|| panic!("{other}"));
            assert!(message.contains("--stats") && message.contains("which is read"), "{message}");
            assert!(
                refused(&[], &[at("a"), at(other)]).unwrap().contains("written too"),
                "{other}"
            );
        }
        // Files that do not exist yet.
        for other in ["nothing yet", "Nothing Yet", "./nothing yet", "here/nothing yet", "dangling"]
        {
            assert!(refused(&[], &[at("nothing yet"), at(other)]).is_some(), "{other}");
        }
        // What is no regular file may be given as often as one likes.
        let null = [PathBuf::from("/dev/null")];
        assert_eq!(refused(&null, &[null[0].clone(), null[0].clone()]), None);
    }

    #[test]
    fn the_texts_of_a_folder_are_read_and_what_else_lies_there_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("sub")).unwrap();
        for name in ["a.txt", "sub/b.md", "out.csv", "sub/.hidden.txt"] {
            std::fs::write(at(name), "").unwrap();
        }
        // Links that lead in circles are not followed: there would be 10^64 ways.
        (0..10)
            .for_each(|n| std::os::unix::fs::symlink(".", at(&format!("sub/round{n}"))).unwrap());
        std::os::unix::fs::symlink("../out.csv", at("sub/linked.txt")).unwrap();
        let clash = |written: &str| {
            let mut touched = Touched::default();
            touched.reads_prompts(folder.path());
            touched.writes("--stats", &at(written));
            touched.check().err().map(|f| f.message)
        };
        for name in ["a.txt", "sub/b.md", "sub/round3/b.md", "out.csv"] {
            assert!(clash(name).is_some_and(|message| message.contains("which is read")), "{name}");
        }
        std::fs::remove_file(at("sub/linked.txt")).unwrap();
        for name in ["out.csv", "sub/.hidden.txt", "new.txt", "sub"] {
            assert_eq!(clash(name), None, "{name}");
        }
    }

    #[test]
    fn an_output_that_lies_in_the_models_folder_can_be_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        ["config.json", "answers.jsonl"]
            .iter()
            .for_each(|name| std::fs::write(at(name), "").unwrap());
        let clash = |written: &str| {
            let mut touched = Touched::default();
            touched.reads_model(folder.path().to_str().unwrap());
            touched.writes("--stats", &at(written));
            touched.check().is_err()
        };
        assert_eq!((clash("config.json"), clash("answers.jsonl")), (true, false));
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

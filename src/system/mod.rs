//! What Unix and Windows have under different names or not at all, each in one small function of the same name and type:
//! identities of files, files that are appended to and replaced, pipes with names, links, permissions, signals. In: paths and open files.
//! Out: plain values; what a system has not is absent (`None`, `false`), never made up. No other module asks which of the two it runs on,
//! except `machine` (facts) and `kernels` (memory).

#[cfg(unix)]
mod unix;
#[cfg(unix)]
pub use unix::*;

#[cfg(windows)]
mod windows;
#[cfg(windows)]
pub use windows::*;

/// The signal of Ctrl-C.
pub use signal_hook::consts::SIGINT;

use std::fs::File;
use std::path::Path;

/// What tells a file from all others while it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileIdentity {
    /// The device, or the volume's serial number.
    pub volume: u64,
    /// The inode, or the file's number in its volume.
    pub number: u64,
}

/// Whether `path` leads to the file that is open.
pub fn is_at(file: &File, path: &Path) -> bool {
    identity(file).ok().zip(identity_at(path).ok()).is_some_and(|(open, named)| open == named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};

    #[test]
    fn a_file_is_known_by_every_name_and_handle_and_is_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("a"), "same").unwrap();
        std::fs::write(at("b"), "same").unwrap();
        std::fs::hard_link(at("a"), at("hard")).unwrap();
        let file = File::open(at("a")).unwrap();
        assert!(is_at(&file, &at("a")) && is_at(&file, &at("hard")) && !is_at(&file, &at("b")));
        assert!(is_at(&file, &folder.path().join(".").join("a")));
        assert!(!is_at(&file, &at("none")));
        // A folder has one too.
        assert_eq!(
            identity_at(folder.path()).unwrap(),
            identity_at(&folder.path().join(".")).unwrap()
        );
        std::fs::rename(at("b"), at("a")).unwrap();
        assert!(!is_at(&file, &at("a")), "another file has its name now");
    }

    #[test]
    fn what_is_appended_to_is_written_at_its_end_and_can_be_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let mut file = appending(File::options().create_new(true).read(true)).open(&path).unwrap();
        file.try_lock().unwrap();
        file.write_all(b"one\ntwo\n").unwrap();
        file.set_len(4).unwrap();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        file.rewind().unwrap();
        to_end(&mut file).unwrap();
        file.write_all(b"three\n").unwrap();
        drop(file);
        assert_eq!(
            (text.as_str(), std::fs::read_to_string(&path).unwrap().as_str()),
            ("one\n", "one\nthree\n")
        );
        // Without being read too, it can be locked as well.
        appending(&mut File::options()).open(&path).unwrap().try_lock().unwrap();
    }

    #[test]
    fn a_new_file_takes_the_place_of_one_that_is_open_and_locked_or_of_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let temporary = |text: &str| {
            let mut file = tempfile::NamedTempFile::new_in(folder.path()).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file
        };
        std::fs::write(&path, "old").unwrap();
        let old = appending(File::options().read(true)).open(&path).unwrap();
        old.try_lock().unwrap();
        let new = persist(temporary("new"), &path, false, Some(old)).unwrap();
        assert!(is_at(&new, &path));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        // A fresh one takes no other's place.
        let refused = persist(temporary("newer"), &path, true, None).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::AlreadyExists);
        drop(new);
        std::fs::remove_file(&path).unwrap();
        persist(temporary("fresh"), &path, true, None).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "fresh");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn bytes_are_read_where_they_are_asked_for_or_it_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "0123456789").unwrap();
        let file = File::open(&path).unwrap();
        let mut out = [0; 4];
        read_exact_at(&file, &mut out, 3).unwrap();
        assert_eq!(&out, b"3456");
        let error = read_exact_at(&file, &mut out, 7).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    }
}

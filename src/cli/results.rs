//! Folders of results, and what `bench` and `compare` print and write alike. In: text. Out: files that are whole or not there, and
//! standard output that may be closed at any time.

use super::Failure;
use crate::bench::ablation::result::write_whole;
use crate::pipeline::DtypePolicy;
use crate::units::{shown, shown_path};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A new folder for the results of one run.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Makes `out/<date>-<name>`, with a number if that exists. What stands in the way is bad usage: nothing was written.
    pub fn new(out: &Path, name: &str) -> Result<Folder, Failure> {
        let told = |what: &str| {
            Failure::usage(format!(
                "--out {}: {what}; name a folder that can be written",
                shown_path(out)
            ))
        };
        match std::fs::symlink_metadata(out) {
            Ok(meta) if meta.is_symlink() => return Err(told("is a symbolic link")),
            Ok(meta) if !meta.is_dir() => return Err(told("is not a folder")),
            Ok(_) => {}
            Err(_) => std::fs::create_dir_all(out).map_err(|e| told(&e.to_string()))?,
        }
        let date = &utc_now()[..10];
        for number in 1..10_000 {
            let suffix = if number == 1 { String::new() } else { format!("-{number}") };
            let path = out.join(format!("{date}-{}{suffix}", file_name(name)));
            // Making a folder succeeds for one of two runs only.
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Folder(path)),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(told(&e.to_string())),
            }
        }
        Err(told("has too many results of today"))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Its path for people.
    pub fn shown(&self) -> String {
        shown(&self.0.display().to_string())
    }

    /// Writes a file below it, whole or not at all.
    pub fn write(&self, name: &str, text: &str) -> Result<(), Failure> {
        let path = self.0.join(name);
        let parent = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let failed = |e: std::io::Error| {
            Failure::failed(format!("{}: cannot be written: {e}", shown_path(&path)))
        };
        parent.and_then(|()| write_whole(&path, text)).map_err(failed)
    }

    /// Takes it away again if nothing was written.
    pub fn remove_if_empty(&self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Letters, digits and hyphens of a text, for file names.
pub fn file_name(text: &str) -> String {
    let mut name = String::new();
    for c in text.chars().take(80) {
        match c {
            c if c.is_ascii_alphanumeric() => name.push(c.to_ascii_lowercase()),
            _ if !name.ends_with('-') && !name.is_empty() => name.push('-'),
            _ => {}
        }
    }
    let name = name.trim_end_matches('-');
    if name.is_empty() { "unnamed".into() } else { name.into() }
}

/// `2026-11-23T12:34:56Z`.
pub fn utc_now() -> String {
    utc(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()))
}

/// Seconds since 1970 as a date (days to civil date after Howard Hinnant, "chrono-compatible low-level date algorithms").
fn utc(since_1970: u64) -> String {
    let (days, time) = (since_1970 / 86_400, since_1970 % 86_400);
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        time / 3600,
        time / 60 % 60,
        time % 60
    )
}

/// Commit that the program was built from, with `+` if files were changed; known since the build (`build.rs`), if at all.
pub fn commit() -> Option<String> {
    option_env!("LLMOPT_COMMIT").map(String::from)
}

/// As typed after `--dtype`.
pub fn dtype_name(dtype: DtypePolicy) -> String {
    match dtype {
        DtypePolicy::Bf16Emulated => "bf16-emulated".into(),
        DtypePolicy::Auto => "auto".into(),
        DtypePolicy::Native => "native".into(),
        DtypePolicy::Fixed(format) => format.name().into(),
    }
}

/// Columns of standard output: the terminal's, at most 120; 80 elsewhere.
pub fn width() -> usize {
    if !std::io::stdout().is_terminal() {
        return 80;
    }
    comfy_table::Table::new().width().map_or(80, usize::from).min(120)
}

/// Writes to standard output. A closed pipe is a quiet end, a full disk is not.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("standard output: {e}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_795_430_096), "2026-11-23T10:34:56Z");
    }

    #[test]
    fn names_of_files_are_harmless() {
        assert_eq!(file_name("baseline + early-stop"), "baseline-early-stop");
        assert_eq!(file_name("../../etc/passwd\n=cmd"), "etc-passwd-cmd");
        assert_eq!(file_name("∞"), "unnamed");
    }

    #[test]
    fn two_runs_of_one_day_get_two_folders() {
        let out = tempfile::tempdir().unwrap();
        let (a, b) = (Folder::new(out.path(), "x").unwrap(), Folder::new(out.path(), "x").unwrap());
        assert_ne!(a.path(), b.path());
        a.write("sub/file", "text").unwrap();
        assert_eq!(std::fs::read_to_string(a.path().join("sub/file")).unwrap(), "text");
        assert!(std::fs::read_dir(a.path().join("sub")).unwrap().count() == 1);
        b.remove_if_empty();
        assert!(!b.path().exists() && a.path().exists());
    }

    #[test]
    fn what_is_no_folder_is_refused() {
        let out = tempfile::tempdir().unwrap();
        let file = out.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(Folder::new(&file, "x").unwrap_err().status, 2);
        assert_eq!(Folder::new(&file.join("below"), "x").unwrap_err().status, 2);
        #[cfg(unix)]
        {
            let link = out.path().join("link");
            std::os::unix::fs::symlink(out.path(), &link).unwrap();
            assert_eq!(Folder::new(&link, "x").unwrap_err().status, 2);
        }
    }
}

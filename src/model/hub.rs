//! Models of a hub, by id `org/name[:file]`. In: an id, a server that is not trusted. Out: a file or a folder in the hub's own cache layout
//! (shared with Python's tools). The `hf-hub` client talks to the server and writes into a scratch folder only: it joins names,
//! ETags and commits from the server to paths unchecked, so every name is checked here first and moved into the cache here.

use super::ModelError;
use super::cache::{Environment, Lock, is_plain_name, is_plain_path};
use super::load::{OpenOptions, Stage};
use super::resolver::{Alias, Place};
use super::source::{Source, shown};
use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use hf_hub::repository::{RepoTreeEntry, RepoTypeModel};
use hf_hub::{HFClient, HFRepositorySync};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most files of a repository; a model in hundreds of shards has fewer.
const MAX_FILES: usize = 4096;
/// The branch that is used.
const REVISION: &str = "main";

/// A hub id.
#[derive(Debug, PartialEq)]
pub(super) struct Id<'a> {
    organization: &'a str,
    name: &'a str,
    file: Option<&'a str>,
}

impl<'a> Id<'a> {
    /// Takes `org/name` and `org/name:file` apart; `None` if it is not of that form.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let (repository, file) = match text.split_once(':') {
            Some((repository, file)) => (repository, Some(file)),
            None => (text, None),
        };
        let (organization, name) = repository.split_once('/')?;
        let good = |part: &str| {
            let allowed = part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
            // `--` separates organization and name in the cache's folder names.
            allowed && !part.starts_with('.') && is_plain_name(part) && part.len() <= 96
        };
        let good = good(organization) && good(name) && file.is_none_or(is_plain_path);
        good.then_some(Id { organization, name, file })
    }
}

/// A file of a repository, as the server lists it, its name checked.
struct Entry {
    path: String,
    size: u64,
    /// Content hash in git; names the blob of small files.
    oid: String,
    /// Large files are named by their SHA-256, which the server may announce.
    lfs: Option<Option<String>>,
}

/// Finds the model in the hub cache, or fetches it.
pub(super) fn fetch(id: &Id, options: &OpenOptions) -> Result<Place, ModelError> {
    let environment = &options.environment;
    let shown_id = format!("{}/{}", id.organization, id.name);
    let cache = environment.hub_cache.as_deref().ok_or_else(|| {
        ModelError::Invalid("there is no folder for the hub cache: set HF_HUB_CACHE, HF_HOME or HOME".to_string())
    })?;
    let folder = cache.join(format!("models--{}--{}", id.organization, id.name));
    let help = |reason: &str| {
        ModelError::Invalid(format!(
            "hub model '{shown_id}': {}; download its files elsewhere and give the path of the folder or the .gguf file",
            crate::units::shown(reason)
        ))
    };
    if environment.hub_offline {
        let reason = format!("HF_HUB_OFFLINE is set and {} does not hold it", shown(&folder));
        return cached(&folder, id).ok_or_else(|| help(&reason));
    }
    match online(id, &folder, options) {
        Ok(place) => Ok(place),
        // Without a network, what an earlier run fetched still serves.
        Err(Failure::Unreachable(reason)) => cached(&folder, id).ok_or_else(|| help(&reason)),
        Err(Failure::Refused(reason)) => Err(help(&reason)),
    }
}

/// Why fetching failed.
enum Failure {
    /// The server did not answer; the cache may serve.
    Unreachable(String),
    /// It answered, and the answer is no use.
    Refused(String),
}

impl From<hf_hub::HFError> for Failure {
    fn from(error: hf_hub::HFError) -> Self {
        use hf_hub::HFError;
        match &error {
            HFError::Request { source, .. } if source.is_connect() || source.is_timeout() => {
                Failure::Unreachable(format!("the hub cannot be reached ({error})"))
            }
            HFError::Http { context } if context.status.is_server_error() => {
                Failure::Unreachable(format!("the hub failed ({error})"))
            }
            _ => Failure::Refused(error.to_string()),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::Refused(error.to_string())
    }
}

fn repository(environment: &Environment, organization: &str, name: &str) -> Result<HFRepositorySync<RepoTypeModel>, Failure> {
    let mut builder = HFClient::builder().cache_enabled(false).retry_max_attempts(2).user_agent("llmopt");
    if let Some(endpoint) = &environment.hub_endpoint {
        builder = builder.endpoint(endpoint);
    }
    if let Some(token) = &environment.hub_token {
        builder = builder.token(token);
    }
    Ok(builder.build_sync()?.model(organization, name))
}

/// The commit of the branch and the files in it.
fn list(repository: &HFRepositorySync<RepoTypeModel>) -> Result<(String, Vec<Entry>), Failure> {
    let commit = repository.info().revision(REVISION).send()?.sha.unwrap_or_default();
    if !is_hex(&commit, 40) {
        return Err(Failure::Refused(format!("the server names the commit '{commit}', which is not one")));
    }
    let tree = repository.list_tree().revision(commit.clone()).recursive(true).limit(MAX_FILES + 1).send()?;
    if tree.len() > MAX_FILES {
        return Err(Failure::Refused(format!("the server lists more than {MAX_FILES} files")));
    }
    let mut entries = Vec::new();
    for entry in tree {
        let (RepoTreeEntry::File { path, .. } | RepoTreeEntry::Directory { path, .. }) = &entry;
        if !is_plain_path(path) {
            let path: String = path.chars().take(80).collect();
            return Err(Failure::Refused(format!("the server lists the file name '{path}', which is not safe on every system")));
        }
        if let RepoTreeEntry::File { path, size, oid, lfs, .. } = entry {
            if !is_hex(&oid, 40) && !is_hex(&oid, 64) {
                return Err(Failure::Refused(format!("the server lists the content hash '{oid}', which is not one")));
            }
            entries.push(Entry { path, size, oid, lfs: lfs.map(|lfs| lfs.sha256) });
        }
    }
    Ok((commit, entries))
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.chars().all(|c| c.is_ascii_hexdigit())
}

/// The files that make up the model, and whether it is one GGUF file.
fn choose<'a>(entries: &'a [Entry], file: Option<&str>) -> Result<(Vec<&'a Entry>, bool), String> {
    let find = |name: &str| entries.iter().find(|e| e.path == name);
    if let Some(file) = file {
        let entry = find(file).ok_or_else(|| format!("it holds no file '{file}'"))?;
        return Ok((vec![entry], true));
    }
    let shards: Vec<&Entry> = entries.iter().filter(|e| !e.path.contains('/') && e.path.ends_with(".safetensors")).collect();
    if find("config.json").is_some() && find("tokenizer.json").is_some() && !shards.is_empty() {
        const BESIDE: [&str; 7] = [
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
            "chat_template.jinja",
            "chat_template.json",
            "model.safetensors.index.json",
        ];
        return Ok((BESIDE.iter().filter_map(|name| find(name)).chain(shards).collect(), false));
    }
    let models: Vec<&Entry> = entries.iter().filter(|e| e.path.ends_with(".gguf")).collect();
    match models[..] {
        [one] => Ok((vec![one], true)),
        [] => Err("it holds neither a .gguf file nor config.json, tokenizer.json and *.safetensors".into()),
        _ => {
            let names: Vec<&str> = models.iter().take(12).map(|e| &*e.path).collect();
            Err(format!("it holds several .gguf files; add one to the id after a colon: {}", names.join(", ")))
        }
    }
}

fn online(id: &Id, folder: &Path, options: &OpenOptions) -> Result<Place, Failure> {
    let repository = repository(&options.environment, id.organization, id.name)?;
    let (commit, entries) = list(&repository)?;
    let (wanted, single) = choose(&entries, id.file).map_err(Failure::Refused)?;
    let snapshot = folder.join("snapshots").join(&commit);
    let present = |entry: &Entry| snapshot.join(&entry.path).metadata().is_ok_and(|m| m.is_file() && m.len() == entry.size);
    if !wanted.iter().all(|entry| present(entry)) {
        let lock = Lock::take(folder, "llmopt").map_err(|e| Failure::Refused(e.to_string()))?;
        let total = wanted.iter().map(|e| e.size).sum();
        let mut before = 0;
        for entry in &wanted {
            // Another process may have fetched it while this one waited for the lock.
            if !present(entry) {
                let tell = |done| options.tell(Stage::Download, &entry.path, before + done, Some(total));
                let file = download(&repository, &commit, &entry.path, &lock.scratch, &tell)?;
                install(&file, entry, folder, &snapshot).map_err(Failure::Refused)?;
            }
            before += entry.size;
        }
        write_whole(&folder.join("refs"), REVISION, commit.as_bytes(), &lock.scratch)?;
    }
    Ok(match wanted[..] {
        [entry] if single => Place::Gguf(snapshot.join(&entry.path)),
        _ => Place::Folder(snapshot),
    })
}

/// Counts the bytes of a download.
struct Counter(AtomicU64);

impl ProgressHandler for Counter {
    fn on_progress(&self, event: &ProgressEvent) {
        match event {
            ProgressEvent::Download(DownloadEvent::Progress { files }) => {
                if let Some(file) = files.last() {
                    self.0.fetch_max(file.bytes_completed, Ordering::Relaxed);
                }
            }
            ProgressEvent::Download(DownloadEvent::AggregateProgress { bytes_completed, .. }) => {
                self.0.fetch_max(*bytes_completed, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}

/// Downloads one file, by a checked name, below `scratch`.
fn download(
    repository: &HFRepositorySync<RepoTypeModel>,
    commit: &str,
    path: &str,
    scratch: &Path,
    tell: &dyn Fn(u64),
) -> Result<PathBuf, Failure> {
    let counter = Arc::new(Counter(AtomicU64::new(0)));
    std::thread::scope(|scope| {
        let request = repository.download_file().filename(path).local_dir(scratch).revision(commit).progress(counter.clone());
        let worker = scope.spawn(|| request.send());
        while !worker.is_finished() {
            std::thread::sleep(std::time::Duration::from_millis(30));
            tell(counter.0.load(Ordering::Relaxed));
        }
        worker.join().unwrap_or_else(|_| Err(hf_hub::HFError::Other("the client panicked".into())))
    })?;
    Ok(scratch.join(path))
}

/// Moves a downloaded file to its place in the cache: `blobs/HASH`, and a link to it in the snapshot.
fn install(file: &Path, entry: &Entry, folder: &Path, snapshot: &Path) -> Result<(), String> {
    let failed = |path: &Path, e: std::io::Error| format!("{}: {e}", shown(path));
    let source = Source::open(file).map_err(|e| e.to_string())?;
    if source.len() != entry.size {
        return Err(format!("{}: {} bytes came, {} were announced", entry.path, source.len(), entry.size));
    }
    let blob = match &entry.lfs {
        None => entry.oid.clone(),
        Some(announced) => {
            let found = source.digest(&|_| {}).map_err(|e| e.to_string())?;
            if let Some(announced) = announced
                && *announced != found
            {
                return Err(format!("{}: what came has the SHA-256 {found}, not the announced one", entry.path));
            }
            found
        }
    };
    std::fs::File::open(file).and_then(|f| f.sync_all()).map_err(|e| failed(file, e))?;
    let blobs = folder.join("blobs");
    std::fs::create_dir_all(&blobs).map_err(|e| failed(&blobs, e))?;
    let blob = blobs.join(blob);
    std::fs::rename(file, &blob).map_err(|e| failed(&blob, e))?;
    let link = snapshot.join(&entry.path);
    let parent = link.parent().unwrap_or(snapshot);
    std::fs::create_dir_all(parent).map_err(|e| failed(parent, e))?;
    let _ = std::fs::remove_file(&link);
    link_to(&blob, &link, entry.path.split('/').count()).map_err(|e| failed(&link, e))
}

/// A relative link from `depth` folders below the snapshots to the blob, as Python's client makes them.
#[cfg(unix)]
fn link_to(blob: &Path, link: &Path, depth: usize) -> std::io::Result<()> {
    let name = blob.file_name().unwrap_or_default();
    let up: PathBuf = std::iter::repeat_n("..", depth + 1).collect();
    std::os::unix::fs::symlink(up.join("blobs").join(name), link)
}

/// Where links need privileges, the blob itself moves there.
#[cfg(not(unix))]
fn link_to(blob: &Path, link: &Path, _depth: usize) -> std::io::Result<()> {
    std::fs::rename(blob, link)
}

/// Writes a small file whole or not at all.
fn write_whole(folder: &Path, name: &str, bytes: &[u8], scratch: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let part = scratch.join("part");
    std::fs::write(&part, bytes)?;
    std::fs::rename(part, folder.join(name))
}

/// What the cache holds of the branch, without asking the server.
fn cached(folder: &Path, id: &Id) -> Option<Place> {
    let commit = std::fs::read_to_string(folder.join("refs").join(REVISION)).ok()?;
    let commit = commit.trim();
    if !is_hex(commit, 40) {
        return None;
    }
    let snapshot = folder.join("snapshots").join(commit);
    if let Some(file) = id.file {
        let path = snapshot.join(file);
        return path.is_file().then_some(Place::Gguf(path));
    }
    if snapshot.join("config.json").is_file() && snapshot.join("tokenizer.json").is_file() {
        return Some(Place::Folder(snapshot));
    }
    let mut models =
        std::fs::read_dir(&snapshot).ok()?.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "gguf"));
    match (models.next(), models.next()) {
        (Some(one), None) => Some(Place::Gguf(one)),
        _ => None,
    }
}

/// Fetches the file of an alias into the model cache.
pub(super) fn fetch_file(
    repository: &str,
    file: &str,
    alias: &Alias,
    lock: &Lock,
    target: &Path,
    options: &OpenOptions,
) -> Result<(), String> {
    if options.environment.hub_offline {
        return Err("HF_HUB_OFFLINE is set".into());
    }
    let text = |failure: Failure| match failure {
        Failure::Unreachable(reason) | Failure::Refused(reason) => reason,
    };
    let (organization, name) = repository.split_once('/').ok_or("not a repository")?;
    let handle = self::repository(&options.environment, organization, name).map_err(text)?;
    let tell = |done| options.tell(Stage::Download, alias.file, done, None);
    let path = download(&handle, REVISION, file, &lock.scratch, &tell).map_err(text)?;
    let mut reader = std::fs::File::open(&path).map_err(|e| e.to_string())?;
    super::cache::install(&mut reader, &lock.scratch, target, alias.sha256)
}

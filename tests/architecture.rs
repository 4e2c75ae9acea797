//! The rules of the house, read from the sources: the layer order of lib.rs, and what only some modules may do. Each rule is also
//! shown a source that breaks it, so that none can be true by accident.

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
                words.iter().filter(move |w| word_at(line, w)).map(move |w| format!("src/{}:{n}: {w}", self.path))
            })
            .collect()
    }

    fn is_below(&self, folders: &[&str]) -> bool {
        folders.iter().any(|f| self.path == *f || self.path.strip_prefix(f).is_some_and(|rest| rest.starts_with('/')))
    }
}

/// Blanks out comments and the contents of strings and characters; keeps line breaks.
fn code_only(text: &str) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    let at = |i: usize| bytes.get(i).copied().unwrap_or('\0');
    let keep_breaks = |out: &mut String, part: &[char]| out.extend(part.iter().filter(|c| **c == '\n'));
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
            'r' if matches!(at(i + 1), '"' | '#') && !(i > 0 && (at(i - 1).is_alphanumeric() || at(i - 1) == '_')) => {
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
    let module = |line: &str| line.trim().strip_prefix("pub mod ")?.strip_suffix(';').map(String::from);
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
        let name = |text: &str| text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
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
                found.push(format!("src/{}:{line}: {module} uses {used}, which stands below it", source.path));
            }
        }
    }
    found
}

/// Folders whose files are known to use one another without a circle.
const WITHOUT_CIRCLES: [&str; 1] = ["text/prompts"];

/// Circles among the files of a folder, and files that use what stands in the folder's `mod.rs`, which uses them all.
fn circles(folder: &str, sources: &[Source]) -> Vec<String> {
    let stem = |s: &Source| Some(s.path.strip_prefix(folder)?.strip_prefix('/')?.strip_suffix(".rs")?.to_string());
    let files: Vec<(String, &Source)> =
        sources.iter().filter_map(|s| Some((stem(s)?, s))).filter(|(n, _)| n != "mod" && n != "tests").collect();
    let mut found = Vec::new();
    let mut uses: Vec<(String, Vec<String>)> = Vec::new();
    for (name, source) in &files {
        let mut used: Vec<String> = Vec::new();
        for (line, path) in paths_after(source, "super::") {
            match files.iter().any(|(n, _)| *n == path) {
                true => used.push(path),
                // `use super::*` of a test module has no name.
                false if path.is_empty() || path == "super" || path == "tests" => {}
                false => found.push(format!("src/{}:{line}: uses {path} of its folder's mod.rs", source.path)),
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
    found.extend(
        (!uses.is_empty())
            .then(|| format!("src/{folder}: {} go round", uses.iter().map(|(n, _)| &n[..]).collect::<Vec<_>>().join(", "))),
    );
    found
}

/// `unsafe` outside `kernels/`; one block in `model/` may be (a memory map).
fn stray_unsafe(sources: &[Source]) -> Vec<String> {
    let in_model: Vec<String> = sources.iter().filter(|s| s.is_below(&["model"])).flat_map(|s| s.uses(&["unsafe"])).collect();
    let elsewhere = sources.iter().filter(|s| !s.is_below(&["kernels", "model"])).flat_map(|s| s.uses(&["unsafe"]));
    elsewhere.chain(in_model.into_iter().skip(1)).collect()
}

fn outside(sources: &[Source], folders: &[&str], words: &[&str]) -> Vec<String> {
    sources.iter().filter(|s| !s.is_below(folders)).flat_map(|s| s.uses(words)).collect()
}

fn stray_candle(sources: &[Source]) -> Vec<String> {
    outside(sources, &["model", "decoder/candle.rs"], &["candle_core", "candle_nn", "candle_transformers"])
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
    outside(sources, &["roofline", "bench", "pipeline", "cli"], &["Instant::now", "SystemTime::now", ".elapsed()"])
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
    let lib = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let layers = layers(&lib);
    let expected = "units machine kernels model roofline text decoder engine pipeline optimizations bench report cli";
    assert_eq!(layers.join(" "), expected);
    none(down_the_list(&layers, &sources()));

    let bad = [
        Source::new("engine/x.rs", "use crate::{units::Bytes, pipeline::{A, B}, decoder};"),
        Source::new("kernels/mod.rs", "fn f() { crate::cli::main() } // crate::bench"),
        Source::new("text/mod.rs", "let a = \"crate::cli\"; /* crate::cli */ use crate::units::TokenId;"),
        Source::new("attic/mod.rs", ""),
    ];
    let found = down_the_list(&layers, &bad);
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].contains("engine uses pipeline") && found[1].contains("kernels uses cli") && found[2].contains("attic"));
}

#[test]
fn unsafe_stays_in_kernels() {
    none(stray_unsafe(&sources()));
    let manifest = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    assert!(manifest.contains("[lints.rust]") && manifest.contains("unsafe_code = \"deny\""));

    let bad = [
        Source::new("engine/x.rs", "let s = \"unsafe\"; // unsafe\nunsafe { f() }"),
        Source::new("model/map.rs", "unsafe { map() }\nunsafe { again() }"),
        Source::new("kernels/x.rs", "unsafe { fine() } #![allow(unsafe_code)]"),
    ];
    assert_eq!(stray_unsafe(&bad), ["src/engine/x.rs:2: unsafe", "src/model/map.rs:2: unsafe"]);
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
        Source::new("pipeline/x.rs", "use std::io::stdout; let o = stdout(); let my_stdout = 1; // println!"),
    ];
    assert_eq!(stray_printing(&bad), ["src/engine/x.rs:2: eprintln!", "src/pipeline/x.rs:1: stdout()"]);
}

#[test]
fn clocks_are_read_only_where_time_is_the_subject() {
    none(stray_clocks(&sources()));
    let bad = [
        Source::new("engine/step.rs", "let t = std::time::Instant::now();\nlet d = t.elapsed();"),
        Source::new("report/x.rs", "let t = std::time::SystemTime::now();"),
        Source::new("bench/trial.rs", "let t = std::time::Instant::now();"),
    ];
    assert_eq!(stray_clocks(&bad).len(), 3);
}

/// What turns a false file into a panic is refused by clippy in the modules that read what strangers wrote.
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
        "text/bounded.rs",
        "text/rendering.rs",
        "text/prompts/mod.rs",
        "text/template.rs",
        "model/tokenizer_json.rs",
        "cli/run/format.rs",
        "cli/run/ledger.rs",
    ];
    let sources = sources();
    for reader in readers {
        let source = sources.iter().find(|s| s.path == reader).unwrap_or_else(|| panic!("{reader} is gone"));
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
        circles("x", &[a, Source::new("x/b.rs", b), Source::new("x/c.rs", ""), Source::new("x/mod.rs", "mod a; use super::a;")])
    };
    assert_eq!(shown("use super::c::C;"), Vec::<String>::new());
    assert_eq!(shown("use super::a::A;"), ["src/x: a, b go round"]);
    assert_eq!(shown("use super::Thing;"), ["src/x/b.rs:1: uses Thing of its folder's mod.rs"]);
}

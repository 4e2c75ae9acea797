//! Runs the program as a user does: tiny models in a folder, arguments, exit status, what it said. Every wait has an end.
#![allow(dead_code)]

use crate::common::Tiny;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// No single run of a tiny model may take longer.
const TIMEOUT: Duration = Duration::from_secs(300);

/// What a run left.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Exit status; a signal's number + 1000 if one ended it.
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Checks the exit status; shows everything if it is another.
    #[track_caller]
    pub fn expect(self, status: i32) -> Ran {
        assert_eq!(self.status, status, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// A refusal: status 2, one line that has this word, nothing on stdout.
    #[track_caller]
    pub fn refused(self, word: &str) -> Ran {
        let ran = self.expect(2);
        assert_eq!((ran.stdout.as_str(), ran.stderr.lines().count()), ("", 1), "{}", ran.stderr);
        assert!(ran.stderr.contains(word), "no '{word}' in: {}", ran.stderr);
        ran
    }

    /// The answers as JSON, in the order in which they came.
    #[track_caller]
    pub fn records(&self) -> Vec<serde_json::Value> {
        records(&self.stdout)
    }
}

/// A folder with a tiny model, removed when the test is over.
pub struct Bench {
    pub folder: tempfile::TempDir,
}

/// A tiny model whose template adds little, so that short contexts hold it.
pub fn tiny() -> Tiny {
    let template = "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}";
    Tiny { context: 512, chat_template: Some(template.into()), ..Tiny::seeded(3) }
}

/// The library of `tests/common/NAME.c`, to be loaded before a program's own (`LD_PRELOAD`).
pub fn preloadable(name: &str) -> PathBuf {
    shared(|folder| {
        let library = folder.join(format!("{name}.so"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/common/{name}.c"));
        let done = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-o"])
            .args([&library, &source])
            .status()
            .unwrap();
        assert!(done.success());
        library
    })
}

/// Moves what `make` wrote into a folder to a place below target/ that all test programs share; what is there with the same bytes stays.
pub fn shared(make: impl FnOnce(&Path) -> PathBuf) -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = tempfile::tempdir_in(root).unwrap();
    let made = make(folder.path());
    let place = root.join(made.file_name().unwrap());
    if std::fs::read(&place).ok() != std::fs::read(&made).ok() {
        std::fs::rename(made, &place).unwrap();
    }
    place
}

/// The file of [`tiny`], written once for all tests of a process.
pub fn model() -> &'static Path {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    MODEL.get_or_init(|| shared(|folder| tiny().write(folder)))
}

impl Bench {
    pub fn new() -> Bench {
        Bench { folder: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file and returns its name.
    pub fn file<'a>(&self, name: &'a str, content: impl AsRef<[u8]>) -> &'a str {
        std::fs::write(self.path(name), content).unwrap();
        name
    }

    pub fn text(&self, name: &str) -> String {
        String::from_utf8(std::fs::read(self.path(name)).unwrap()).unwrap()
    }

    /// `llmopt run` in the folder, with the tiny model and two threads, not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_llmopt"));
        command
            .current_dir(&self.folder)
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::null())
            .args(["run", "-m"])
            .arg(model());
        command.args(["--threads", "2", "--max-tokens", "8"]).args(arguments);
        command
    }

    /// `llmopt run` to its end.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        finish(self.start(self.command(arguments)))
    }

    /// Starts a command with its outputs caught.
    pub fn start(&self, mut command: Command) -> Child {
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

/// Waits for the end, reading both outputs meanwhile.
pub fn finish(mut child: Child) -> Ran {
    let read = |mut from: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = from.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = child.stdout.take().map(|o| read(Box::new(o)));
    let stderr = child.stderr.take().map(|o| read(Box::new(o)));
    let status = wait(&mut child);
    let text = |t: Option<std::thread::JoinHandle<String>>| {
        t.map(|t| t.join().unwrap()).unwrap_or_default()
    };
    Ran { status, stdout: text(stdout), stderr: text(stderr) }
}

/// The exit status, or 1000 + the signal; the test fails if it takes too long.
pub fn wait(child: &mut Child) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    let since = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap_or_else(|| 1000 + status.signal().unwrap_or(0));
        }
        if since.elapsed() > TIMEOUT {
            let _ = child.kill();
            panic!("it hangs");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends a signal by name.
pub fn signal(child: &Child, name: &str) {
    Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap();
}

/// Gives a child its whole standard input.
pub fn feed(child: &mut Child, text: &str) {
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
}

/// Gives a child prompts for as long as it reads, so that it never ends by itself.
pub fn feed_without_end(child: &mut Child) {
    let mut stdin = child.stdin.take().unwrap();
    std::thread::spawn(move || {
        let mut lines =
            (0..).map(|i| format!("{{\"id\":\"r{i}\",\"prompt\":\"What is {i} & {i}?\"}}\n"));
        lines.find(|line| stdin.write_all(line.as_bytes()).is_err());
    });
}

/// Lines of JSON.
#[track_caller]
pub fn records(text: &str) -> Vec<serde_json::Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect()
}

/// What of a record must not depend on when and how it was answered: everything but times and `cached`.
pub fn essence(record: &serde_json::Value) -> String {
    let mut record = record.clone();
    for name in ["queue_ms", "ttft_ms", "latency_ms", "cached"] {
        record.as_object_mut().unwrap().remove(name);
    }
    record.to_string()
}

/// The essences, sorted.
pub fn essences(text: &str) -> Vec<String> {
    let mut all: Vec<String> = records(text).iter().map(essence).collect();
    all.sort();
    all
}

//! What people see on stderr. Every line is escaped, so that no file can move a terminal's cursor; a dead stderr is ignored.

use crate::units::shown;
use std::borrow::Cow;
use std::io::{IsTerminal, Write};

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Errors only (`-q`).
    Quiet,
    /// Warnings, progress, the summary.
    Normal,
    /// Choices and their reasons too (`-v`).
    Verbose,
}

/// When progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ShowProgress {
    /// A bar on a terminal, a line now and then elsewhere, nothing with -q.
    Auto,
    /// The same, with -q too.
    Always,
    /// Never.
    Never,
}

/// Writes one escaped line to stderr.
pub fn line(text: &str) {
    let _ = std::io::stderr().lock().write_all(format!("{}\n", shown(text)).as_bytes());
}

/// Letters of the beginning and of the end of an error line; what is quoted in it may be megabytes of a stranger's file.
const BEGINNING: usize = 1500;
const END: usize = 500;

/// Writes an error line, without the middle of a very long one: what it is about stands at its beginning, what would work at its end.
pub fn error_line(text: &str) {
    line(&format!("llmopt: error: {}", without_middle(text)));
}

fn without_middle(text: &str) -> Cow<'_, str> {
    if text.chars().nth(BEGINNING + END).is_none() {
        return Cow::Borrowed(text);
    }
    let beginning = text.char_indices().nth(BEGINNING).map_or(text.len(), |(at, _)| at);
    let end = text.char_indices().rev().nth(END - 1).map_or(0, |(at, _)| at);
    Cow::Owned(format!("{} … {}", &text[..beginning], &text[end..]))
}

/// A level, and lines held back until it is certain that the command will run: a refusal is one line with nothing before it.
#[derive(Debug)]
pub struct Console {
    /// What is said.
    pub level: Level,
    held: Option<Vec<String>>,
}

impl Console {
    /// Holds everything back until [`Console::release`].
    pub fn new(level: Level) -> Console {
        Console { level, held: Some(Vec::new()) }
    }

    /// From here on lines are written as they come; those held back are written now.
    pub fn release(&mut self) {
        self.held.take().unwrap_or_default().iter().for_each(|text| line(text));
    }

    fn put(&mut self, text: String) {
        match &mut self.held {
            Some(held) => held.push(text),
            None => line(&text),
        }
    }

    /// For everybody.
    pub fn say(&mut self, text: impl Into<String>) {
        if self.level >= Level::Normal {
            self.put(text.into());
        }
    }

    /// For everybody, marked.
    pub fn warn(&mut self, text: impl std::fmt::Display) {
        self.say(format!("llmopt: warning: {text}"));
    }

    /// With `-v`.
    pub fn detail(&mut self, text: impl Into<String>) {
        if self.level >= Level::Verbose {
            self.put(text.into());
        }
    }
}

/// Whether stderr is a terminal that can show a moving bar.
pub fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_very_long_error_keeps_its_beginning_and_its_end() {
        for text in ["", "short", &"é".repeat(BEGINNING + END)] {
            assert_eq!(without_middle(text), text);
        }
        let long =
            without_middle(&format!("a.json: '{}' is wrong; b would work", "é".repeat(5_000_000)))
                .into_owned();
        assert!(
            long.starts_with("a.json: 'é") && long.ends_with("é' is wrong; b would work"),
            "{long}"
        );
        assert_eq!(long.chars().count(), BEGINNING + END + 3);
    }
}

//! Progress on stderr: a spinner on a terminal, lines elsewhere.

use crate::bench::run::Progress;
use crate::cli::console;
use crate::cli::run::progress::Style;
use crate::units::{counted, seconds};
use indicatif::ProgressBar;
use std::time::{Duration, Instant};

/// Progress on stderr.
pub struct Display {
    style: Style,
    bar: Option<ProgressBar>,
    begun: Instant,
    last: Instant,
}

impl Display {
    /// None is shown yet.
    pub fn new(style: Style, begun: Instant) -> Display {
        let bar = (style == Style::Bar).then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Display { style, bar, begun, last: begun }
    }

    /// Shows it on a terminal alone: nothing is certain yet, and a refusal is one line.
    pub fn quietly(&mut self, progress: Progress) {
        if self.bar.is_some() {
            self.tell(progress);
        }
    }

    /// Shows it.
    pub fn tell(&mut self, progress: Progress) {
        let used = seconds(self.begun.elapsed().as_secs_f64());
        let (text, important) = match progress {
            Progress::Preparing { done, of } => (format!("preparing configuration {} of {of}", done + 1), false),
            Progress::Run { run, of } => (format!("run {} of {of}", run + 1), of > 1),
            Progress::Starts { done, of } => (format!("fresh processes, pair {} of {of}", done + 1), false),
            Progress::Yardstick => ("the yardstick: our storages and candle".to_string(), true),
            Progress::Clients { clients } => (counted(clients as u64, "client"), true),
            Progress::Estimate { round_s, rounds } => {
                (format!("a round takes {}, so {rounds} rounds at most", seconds(round_s)), true)
            }
            Progress::Trial { round, done, of } => (format!("round {round}, {done} of {of}, {used} used"), false),
            Progress::Round { done, round_s: _, left_s } => {
                let left = if left_s > 1.0 { format!(", at most {} left", seconds(left_s)) } else { String::new() };
                (format!("round {done} is over, {used} used{left}"), true)
            }
        };
        match (&self.bar, self.style) {
            (Some(bar), _) => bar.set_message(text),
            // Without a terminal: what matters, and a sign of life every ten seconds.
            (None, Style::Lines) if important || self.last.elapsed() > Duration::from_secs(10) => {
                self.last = Instant::now();
                console::line(&format!("llmopt: {text}"));
            }
            _ => {}
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

//! Progress on stderr: a spinner on a terminal, lines elsewhere.

use crate::bench::ablation::run::BenchProgress;
use crate::cli::console;
use crate::cli::progress::Style;
use crate::units::{counted, seconds};
use indicatif::ProgressBar;
use std::time::{Duration, Instant};

/// Progress on stderr.
pub struct BenchDisplay {
    style: Style,
    bar: Option<ProgressBar>,
    begun: Instant,
    last: Instant,
}

impl BenchDisplay {
    /// None is shown yet.
    pub fn new(style: Style, begun: Instant) -> BenchDisplay {
        let bar = (style == Style::Bar).then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        BenchDisplay { style, bar, begun, last: begun }
    }

    /// Shows it on a terminal alone: nothing is certain yet, and a refusal is one line.
    pub fn quietly(&mut self, progress: BenchProgress) {
        if self.bar.is_some() {
            self.tell(progress);
        }
    }

    /// Shows it.
    pub fn tell(&mut self, progress: BenchProgress) {
        let used = seconds(self.begun.elapsed().as_secs_f64());
        let (text, important) = match progress {
            BenchProgress::Preparing { done, of } => {
                (format!("preparing configuration {} of {of}", done + 1), false)
            }
            BenchProgress::Run { run, of } => (format!("run {} of {of}", run + 1), of > 1),
            BenchProgress::Starts { done, of } => {
                (format!("fresh processes, pair {} of {of}", done + 1), false)
            }
            BenchProgress::CandleBaseline => {
                ("candle baseline: our storages and candle".to_string(), true)
            }
            BenchProgress::Clients { clients } => (counted(clients as u64, "client"), true),
            BenchProgress::Estimate { round_s, rounds } => {
                (format!("a round takes {}, so {rounds} rounds at most", seconds(round_s)), true)
            }
            BenchProgress::Trial { round, done, of } => {
                (format!("round {round}, {done} of {of}, {used} used"), false)
            }
            BenchProgress::Round { done, round_s: _, left_s } => {
                let left = if left_s > 1.0 {
                    format!(", at most {} left", seconds(left_s))
                } else {
                    String::new()
                };
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

impl Drop for BenchDisplay {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

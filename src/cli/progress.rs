//! How far the run is: a bar on a terminal, a plain line now and then elsewhere. In: the counters of a [`Control`]. Out: stderr,
//! from a thread of its own.

use crate::cli::console::{self, Level, ShowProgress};
use crate::pipeline::Control;
use crate::units;
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Seconds between plain lines.
const EVERY: Duration = Duration::from_secs(10);

/// How progress is shown here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Bar,
    Lines,
    Nothing,
}

/// From the flag, the level and the terminal.
pub fn style(when: ShowProgress, level: Level) -> Style {
    let shown = match when {
        ShowProgress::Never => false,
        ShowProgress::Always => true,
        ShowProgress::Auto => level > Level::Quiet,
    };
    match shown {
        false => Style::Nothing,
        true if console::stderr_is_terminal() => Style::Bar,
        true => Style::Lines,
    }
}

/// While the model is loaded: a spinner on a terminal, nothing elsewhere.
pub struct Loading(Option<ProgressBar>);

impl Loading {
    /// Shows that `model` is being loaded.
    pub fn start(style: Style, model: &str) -> Loading {
        let bar = (style == Style::Bar).then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_message(format!("loading {}", units::shown(model)));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Loading(bar)
    }

    /// A step forward.
    pub fn tell(&self, what: &str, done: u64, total: Option<u64>) {
        let Some(bar) = &self.0 else { return };
        let share = match total {
            Some(total) if total > 0 => format!("{} %", done * 100 / total),
            _ => units::Bytes(done).to_string(),
        };
        bar.set_message(format!("{} {share}", units::shown(what)));
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Progress of a run; ends when dropped.
pub struct RunDisplay {
    bar: Option<ProgressBar>,
    thread: Option<(Sender<()>, JoinHandle<()>)>,
}

impl RunDisplay {
    /// Shows `control`'s counters. `total`: records to answer, if known.
    pub fn start(style: Style, control: Arc<Control>, total: Option<u64>) -> RunDisplay {
        let bar = (style == Style::Bar).then(|| {
            let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
            let template = if total.is_some() {
                "{bar:30} {pos}/{len} prompts  {msg}"
            } else {
                "{spinner} {pos} prompts  {msg}"
            };
            bar.set_style(
                ProgressStyle::with_template(template)
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar
        });
        if style == Style::Nothing {
            return RunDisplay { bar: None, thread: None };
        }
        let (stop, stopped) = channel();
        let shown = bar.clone();
        let work = move || {
            let begin = Instant::now();
            let pause = if shown.is_some() { Duration::from_millis(200) } else { EVERY };
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                let (answered, tokens) = (
                    control.answered.load(Ordering::Relaxed),
                    control.tokens.load(Ordering::Relaxed),
                );
                let seconds = begin.elapsed().as_secs_f64();
                let speed = format!("{} tokens/s", units::rate(tokens as f64 / seconds));
                match &shown {
                    Some(bar) => {
                        bar.set_position(answered);
                        bar.set_message(format!("{speed}{}", left(answered, total, seconds)));
                    }
                    None => console::line(&plain(answered, total, &speed, seconds)),
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("progress".into())
            .spawn(work)
            .ok()
            .map(|handle| (stop, handle));
        RunDisplay { bar, thread }
    }

    /// Runs `write` while the bar is out of the way.
    pub fn suspend<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

/// `, 30.0 s left`: nothing before the first answer, when nobody knows.
fn left(answered: u64, total: Option<u64>, seconds: f64) -> String {
    let Some(total) = total.filter(|_| answered > 0) else { return String::new() };
    let left = seconds / answered as f64 * total.saturating_sub(answered) as f64;
    format!(", {} left", units::seconds(left))
}

fn plain(answered: u64, total: Option<u64>, speed: &str, seconds: f64) -> String {
    let left = left(answered, total, seconds);
    match total {
        Some(total) => format!("llmopt: {answered} of {total} prompts, {speed}{left}"),
        None => format!("llmopt: {answered} prompts, {speed}"),
    }
}

impl Drop for RunDisplay {
    fn drop(&mut self) {
        if let Some((stop, handle)) = self.thread.take() {
            drop(stop);
            let _ = handle.join();
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_say_how_far_and_how_long() {
        assert_eq!(
            plain(50, Some(200), "90 tokens/s", 10.0),
            "llmopt: 50 of 200 prompts, 90 tokens/s, 30.0 s left"
        );
        assert_eq!(
            plain(0, Some(200), "0.00 tokens/s", 10.0),
            "llmopt: 0 of 200 prompts, 0.00 tokens/s"
        );
        assert_eq!(plain(7, None, "90 tokens/s", 10.0), "llmopt: 7 prompts, 90 tokens/s");
    }
}

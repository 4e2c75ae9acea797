//! SIGINT, SIGTERM and SIGHUP: the first lets the run finish what is in flight, a second leaves at once. Before the run has begun
//! there is nothing to finish, so the first one leaves too, and takes an output file that it would leave empty with it.

use crate::cli::{Failure, console};
use crate::pipeline::{Control, GRACE, Stopping};
use crate::system::{self, SIGINT, signal_name as name};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What the signals' thread and the run share.
#[derive(Debug, Default)]
pub struct Signals {
    got: AtomicI32,
    begun: AtomicBool,
    over: AtomicBool,
    /// To be removed if the process leaves before the run has begun: a file, or a folder if it is empty.
    created: Mutex<Option<PathBuf>>,
    /// What an interrupted user is told besides.
    advice: Mutex<&'static str>,
}

/// The advice of a run into a file.
pub const RESUME: &str = "; what is written is whole, --resume goes on";

/// How long a run that was told to end may take for it beyond its grace, and how long for what comes after the last answer.
const MOST: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(60)];

impl Signals {
    /// Installs the handlers.
    pub fn watch(control: Arc<Control>) -> Result<Arc<Signals>, Failure> {
        let failed = |e: std::io::Error| {
            Failure::failed(format!("signal handlers cannot be installed: {e}"))
        };
        let caught = system::signals().map_err(failed)?;
        let signals = Arc::new(Signals::default());
        let shared = signals.clone();
        let work = move || {
            for signal in caught {
                let first = shared
                    .got
                    .compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst)
                    .is_ok();
                // Held until the end, so that the file is not removed while the run begins.
                let mut created = shared.created.lock().unwrap_or_else(PoisonError::into_inner);
                if first && shared.begun.load(Ordering::SeqCst) {
                    control.stop(Stopping::Drain);
                    if console::stderr_is_terminal() {
                        console::line(&format!(
                            "llmopt: finishing what is in flight, at most {} s; once more to leave at once",
                            GRACE.as_secs()
                        ));
                    }
                    // A write that nobody takes, or a disk that does not answer, must not keep the process for ever.
                    let late = shared.clone();
                    let leave = move || {
                        std::thread::sleep(GRACE + MOST[0]);
                        if late.over.load(Ordering::SeqCst) {
                            std::thread::sleep(MOST[1]);
                        }
                        late.leave(signal);
                    };
                    let _ = std::thread::Builder::new().name("last resort".into()).spawn(leave);
                    continue;
                }
                if let Some(path) = created.take()
                    && std::fs::remove_dir(&path).is_err()
                {
                    let _ = std::fs::remove_file(path);
                }
                shared.leave(signal);
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(work).map_err(failed)?;
        Ok(signals)
    }

    fn leave(&self, signal: i32) {
        let advice = *self.advice.lock().unwrap_or_else(PoisonError::into_inner);
        // A stderr that nobody reads must not keep the process either.
        let line = format!("llmopt: interrupted by {}{advice}", name(signal));
        let said = std::thread::Builder::new()
            .name("last word".into())
            .spawn(move || console::line(&line));
        let since = std::time::Instant::now();
        while said.as_ref().is_ok_and(|said| !said.is_finished())
            && since.elapsed() < Duration::from_secs(1)
        {
            std::thread::sleep(Duration::from_millis(2));
        }
        std::process::exit(i32::from(status(signal)));
    }

    /// What an interrupted user is told besides the signal.
    pub fn advise(&self, advice: &'static str) {
        *self.advice.lock().unwrap_or_else(PoisonError::into_inner) = advice;
    }

    /// From here on nothing is answered: what is left to do may take longer.
    pub fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    /// Remembers a file or folder to be removed if the process leaves before the run has begun.
    pub fn created(&self, path: Option<PathBuf>) {
        *self.created.lock().unwrap_or_else(PoisonError::into_inner) = path;
    }

    /// From here on the first signal lets the run finish what is in flight.
    pub fn begin(&self) {
        let mut created = self.created.lock().unwrap_or_else(PoisonError::into_inner);
        *created = None;
        self.begun.store(true, Ordering::SeqCst);
    }

    /// The signal that came, as its name and the exit status it asks for.
    pub fn got(&self) -> Option<(&'static str, u8)> {
        let signal = self.got.load(Ordering::SeqCst);
        (signal != 0).then(|| (name(signal), status(signal)))
    }
}

fn status(signal: i32) -> u8 {
    if signal == SIGINT { 130 } else { 143 }
}

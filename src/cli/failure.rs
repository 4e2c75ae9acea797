//! How a command fails: an exit status and one line. Panics become such a line too; nothing else is ever shown of them.

use crate::model::ModelError;
use crate::pipeline::PipelineError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

/// Exit statuses, as the contract numbers them.
pub mod status {
    /// Done.
    pub const DONE: u8 = 0;
    /// It failed: reading, writing, an internal error.
    pub const FAILED: u8 = 1;
    /// Bad usage, input file or model: nothing was written.
    pub const USAGE: u8 = 2;
    /// A gate failed.
    pub const GATE: u8 = 3;
    /// Finished, but some prompts have error records.
    pub const RECORDS: u8 = 4;
    /// Not enough memory, or the time is over, with work left.
    pub const LEFT: u8 = 75;
}

/// An exit status and the line that explains it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// See [`status`].
    pub status: u8,
    /// One line: what, where, what would work.
    pub message: String,
}

impl Failure {
    /// Bad usage, input or model.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure { status: status::USAGE, message: message.into() }
    }

    /// Reading, writing or an internal error.
    pub fn failed(message: impl Into<String>) -> Failure {
        Failure { status: status::FAILED, message: message.into() }
    }
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Failure {
        match error {
            ModelError::Invalid(message) => Failure::usage(message),
            ModelError::Io(message) => Failure::failed(message),
            ModelError::Memory(message) => Failure { status: status::LEFT, message },
        }
    }
}

impl From<PipelineError> for Failure {
    fn from(error: PipelineError) -> Failure {
        match error {
            PipelineError::Model(error) => error.into(),
            PipelineError::Config(message) => Failure::usage(message),
            PipelineError::Memory(message) => Failure { status: status::LEFT, message },
            PipelineError::Internal(message) => Failure::failed(message),
        }
    }
}

/// The first panic's place and message.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Runs `work`; a panic in it becomes a [`Failure`] that ends with `advice`, and no panic of any thread is printed from now on.
pub fn guarded<T>(advice: &str, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    std::panic::set_hook(Box::new(|info| {
        let message = info.payload().downcast_ref::<&str>().map(|s| s.to_string());
        let message = message
            .or_else(|| info.payload().downcast_ref::<String>().cloned())
            .unwrap_or_default();
        let place =
            info.location().map(|l| format!(" ({}:{})", l.file(), l.line())).unwrap_or_default();
        if let Ok(mut first) = PANIC.lock() {
            first.get_or_insert(format!("{message}{place}"));
        }
    }));
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let what = PANIC.lock().ok().and_then(|mut p| p.take()).unwrap_or_default();
        Err(Failure::failed(format!("internal error: {what}{advice}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_one_line_with_status_1() {
        let failure =
            guarded::<()>("; --resume goes on", || panic!("the {} broke", "pump")).unwrap_err();
        assert_eq!(failure.status, 1);
        assert!(failure.message.ends_with("; --resume goes on"), "{}", failure.message);
        assert!(
            failure.message.contains("the pump broke") && failure.message.contains("failure.rs"),
            "{}",
            failure.message
        );
        let _ = std::panic::take_hook();
    }
}

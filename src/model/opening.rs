//! How a model is opened: what hears of progress, what the environment says. In: closures, an environment. Out: plain data.

use super::cache::Environment;

/// What loading is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpeningStage {
    /// Fetching the model.
    Download,
    /// Reading and checking its bytes.
    Check,
}

/// A step forward while a model is opened.
#[derive(Debug, Clone)]
pub struct OpeningProgress<'a> {
    /// What is being done.
    pub stage: OpeningStage,
    /// The file.
    pub name: &'a str,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all, where known.
    pub total: Option<u64>,
}

/// How to open a model.
#[derive(Default)]
pub struct OpenOptions<'a> {
    /// Called with progress, from any thread, many times a second.
    pub progress: Option<&'a (dyn Fn(OpeningProgress) + Sync)>,
    /// Folders and tokens from the environment.
    pub environment: Environment,
}

impl OpenOptions<'_> {
    pub(super) fn tell(&self, stage: OpeningStage, name: &str, done: u64, total: Option<u64>) {
        if let Some(progress) = self.progress {
            progress(OpeningProgress { stage, name, done, total });
        }
    }
}

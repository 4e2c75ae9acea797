//! Why a pipeline cannot go on, by exit status.

use crate::decoder::native::NativeError;
use crate::model::ModelError;

/// Why a pipeline could not be built or a run could not go on.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The model, its tokenizer or its template is bad (exit status 2), or could not be read (1).
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The configuration cannot work (exit status 2).
    #[error("{0}")]
    Config(String),
    /// Not enough memory: says what is needed and what is there (exit status 75).
    #[error("{0}")]
    Memory(String),
    /// A worker failed or a rule was broken; finished answers were handed out (exit status 1).
    #[error("{0}")]
    Internal(String),
}

impl From<NativeError> for PipelineError {
    fn from(error: NativeError) -> Self {
        match error {
            NativeError::Model(e) => PipelineError::Model(e),
            NativeError::Memory { .. } | NativeError::Threads(_) => {
                PipelineError::Memory(error.to_string())
            }
            NativeError::Broken(message) => PipelineError::Internal(message),
        }
    }
}

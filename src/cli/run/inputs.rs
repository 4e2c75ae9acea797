//! Prompt files as `run` needs them: records with the generation settings that the flags leave them, and what an output line repeats
//! of them. In: paths, flags. Out: an iterator of [`Record`]s, in fixed memory. Reading the formats is `text`'s business.

use super::format::{Given, OpenAi};
use crate::cli::Failure;
use crate::cli::args::Shared;
use crate::pipeline::{Prompt, RecordError};
use crate::text::prompts::{self, Endpoint, InputError, InputFormat, PromptFiles};
use std::path::PathBuf;
use std::sync::Arc;

/// A record of a prompt file.
#[derive(Debug, Clone)]
pub struct Record {
    pub id: String,
    pub given: Given,
    /// Values of the CSV columns that are carried through.
    pub carried: Vec<String>,
    /// What to answer, or why it cannot be.
    pub prompt: Result<Prompt, RecordError>,
}

/// The files, looked at.
pub struct Inputs {
    files: PromptFiles,
    limit: usize,
}

impl From<InputError> for Failure {
    fn from(error: InputError) -> Failure {
        match error {
            InputError::Bad(message) => Failure::usage(message),
            InputError::Io(message) => Failure::failed(message),
        }
    }
}

impl Inputs {
    /// Looks at every file; only the first `limit` records of them all count.
    pub fn open(paths: &[PathBuf], format: Option<InputFormat>, limit: Option<u64>) -> Result<Inputs, Failure> {
        let files = PromptFiles::open(paths, format)?;
        Ok(Inputs { files, limit: limit.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX) })
    }

    /// Whether these are OpenAI requests.
    pub fn open_ai(&self) -> bool {
        self.files.are_openai()
    }

    /// Whether there may be a look ahead: all are ordinary files.
    pub fn can_be_read_twice(&self) -> bool {
        self.files.can_be_read_twice()
    }

    /// The CSV columns that are carried through.
    pub fn csv_columns(&self) -> Vec<String> {
        self.files.columns().to_vec()
    }

    /// The records from the beginning. `warn` hears each thing worth saying once.
    pub fn records<W: FnMut(String) + Send + 'static>(
        &self,
        flags: Arc<Shared>,
        mut warn: W,
    ) -> impl Iterator<Item = Result<Record, Failure>> + Send + use<W> {
        let mut reader = self.files.reader();
        std::iter::from_fn(move || {
            let next = reader.next();
            reader.take_warnings().into_iter().for_each(&mut warn);
            Some(next?.map(|record| prepare(record, &flags)).map_err(Failure::from))
        })
        .take(self.limit)
    }
}

fn prepare(record: prompts::Record, flags: &Shared) -> Record {
    let given = match (record.openai, record.given) {
        (Some(request), _) => Given::OpenAi(Box::new(OpenAi {
            digest: OpenAi::digest(&request.line),
            chat: request.endpoint == Endpoint::Chat,
            model: request.model,
        })),
        (None, prompts::Given::Prompt(text)) => Given::Prompt(text),
        (None, prompts::Given::Messages(json)) => Given::Messages(json.get().to_string()),
        (None, prompts::Given::Nothing) => Given::Nothing,
    };
    let prompt = match record.asked {
        Ok(asked) => {
            Ok(Prompt { id: record.id.clone(), content: asked.content, generation: flags.generation_with(&asked.generation) })
        }
        Err(error) => Err(RecordError::new(error.code, error.message)),
    };
    Record { id: record.id, given, carried: record.carried, prompt }
}

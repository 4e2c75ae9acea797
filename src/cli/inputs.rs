//! Prompt files as `run` needs them: records with the generation settings that the flags leave them, and what an output line repeats
//! of them. In: paths, flags. Out: an iterator of [`Item`]s, in fixed memory. Reading the formats is `text`'s business.

use super::shard::Shard;
use crate::cli::Failure;
use crate::cli::args::{OPENAI_MAX_TOKENS, SharedArgs};
use crate::pipeline::{Content, Prompt, RecordError};
use crate::text::prompts::{InputError, Origin, OriginalPrompt, PromptFiles, Reading, Record};
use std::path::PathBuf;
use std::sync::Arc;

/// A record's own part, and what to answer or why it cannot be.
pub type Item = (Origin, Result<Prompt, RecordError>);

/// The files, looked at.
pub struct Inputs {
    files: PromptFiles,
    limit: usize,
    shard: Option<Shard>,
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
    /// Looks at every file; `typed` are prompts of the command line; only the first `limit` records of them all count.
    pub fn open(
        paths: &[PathBuf],
        typed: &[String],
        reading: Reading,
        limit: Option<u64>,
    ) -> Result<Inputs, Failure> {
        let files = PromptFiles::open_as(paths, typed, reading)?;
        Ok(Inputs {
            files,
            limit: limit.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX),
            shard: None,
        })
    }

    /// Leaves all records out but those of one part; the limit has been counted before.
    pub fn take_shard(&mut self, shard: Option<Shard>) {
        self.shard = shard;
    }

    /// Whether these are OpenAI requests.
    pub fn open_ai(&self) -> bool {
        self.files.are_openai()
    }

    /// That the number 1 and the text "1" are one id, as in CSV output.
    pub fn take_ids_as_text(&mut self) {
        self.files.take_ids_as_text();
    }

    /// Whether there may be a look ahead: all are ordinary files.
    pub fn can_be_read_twice(&self) -> bool {
        self.files.can_be_read_twice()
    }

    /// Fields of the input that columns can be made of.
    pub fn columns(&self) -> &[String] {
        self.files.columns()
    }

    /// What separates the cells of the first CSV file.
    pub fn separator(&self) -> Option<u8> {
        self.files.separator()
    }

    /// Whether all are tables.
    pub fn are_tables(&self) -> bool {
        self.files.are_tables()
    }

    /// What is carried to lines: values of columns, all fields as an object.
    pub fn carry(&mut self, columns: bool, object: bool) {
        self.files.carry(columns, object);
    }

    /// The records from the beginning. `warn` hears each thing worth saying once.
    pub fn records<W: FnMut(String) + Send + 'static>(
        &self,
        flags: Arc<SharedArgs>,
        mut warn: W,
    ) -> impl Iterator<Item = Result<Item, Failure>> + Send + use<W> {
        let mut reader = self.files.reader();
        let flags = if self.open_ai() { Arc::new(flags.for_openai()) } else { flags };
        let (mut left, shard) = (self.limit, self.shard);
        let mut counts = Some(Counts::default());
        std::iter::from_fn(move || {
            loop {
                let next = if left == 0 { None } else { reader.next() };
                left = left.saturating_sub(1);
                reader.take_warnings().into_iter().for_each(&mut warn);
                let Some(record) = next else {
                    counts.take().into_iter().flat_map(Counts::lines).for_each(&mut warn);
                    reader.take_last_warnings().into_iter().for_each(&mut warn);
                    return None;
                };
                if let (Some(shard), Ok(record)) = (shard, &record)
                    && !shard.holds(&record.origin.id)
                {
                    continue;
                }
                return Some(
                    record
                        .map(|record| prepare(record, &flags, counts.get_or_insert_default()))
                        .map_err(Failure::from),
                );
            }
        })
    }
}

/// What is said once, with how many records it concerns.
#[derive(Default)]
struct Counts {
    /// Conversations that end with the assistant and are answered in a new turn.
    new_turns: u64,
    /// OpenAI requests without a limit.
    unlimited: u64,
}

impl Counts {
    fn lines(self) -> Vec<String> {
        let mut lines = Vec::new();
        let conversations =
            if self.new_turns == 1 { "conversation ends" } else { "conversations end" };
        if self.new_turns > 0 {
            lines.push(format!(
                "{} {conversations} with the assistant: a new turn follows; \
                 continue_final_message or --continue-final-message goes on with it",
                self.new_turns
            ));
        }
        let requests = if self.unlimited == 1 { "request gives" } else { "requests give" };
        if self.unlimited > 0 {
            lines.push(format!(
                "{} {requests} no max_tokens: the rest of the context, at most {OPENAI_MAX_TOKENS} tokens",
                self.unlimited
            ));
        }
        lines
    }
}

fn prepare(record: Record, flags: &SharedArgs, counts: &mut Counts) -> Item {
    let Record { origin, request } = record;
    let openai = matches!(origin.prompt, OriginalPrompt::OpenAi(_));
    let prompt = request.map(|request| {
        let mut generation = flags.generation_with(&request.generation);
        if assistant_is_last(&request.content) && !generation.raw {
            generation.turn.continue_final =
                request.generation.continue_final_message.unwrap_or(flags.continue_final_message);
            counts.new_turns +=
                u64::from(!generation.turn.continue_final && generation.turn.generation_prompt);
        }
        counts.unlimited +=
            u64::from(openai && request.generation.max_tokens.is_none() && !flags.typed.max_tokens);
        Prompt { id: origin.id.clone(), content: request.content, generation, accepts_cut: openai }
    });
    (origin, prompt)
}

/// Whether a conversation ends with something said by the assistant.
fn assistant_is_last(content: &Content) -> bool {
    matches!(content, Content::Messages(messages) if messages.last().is_some_and(|m| m.role == "assistant" && !m.content.trim().is_empty()))
}

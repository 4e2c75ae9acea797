//! The model and its pipeline. In: the flags. Out: a [`Pipeline`] whose settings have been checked, and what was chosen, said on stderr; whether
//! a prompt is one that this model can be given.

use super::Run;
use crate::cli::Failure;
use crate::cli::loading::open_under;
use crate::cli::progress::{self, Loading};
use crate::engine::StoppingPolicy;
use crate::pipeline::{Content, DtypePolicy, LoadedModel, Pipeline, Prompt, RecordError};
use crate::units::{self, counted};
use std::sync::Arc;
use std::time::Instant;

/// What a base model says to a prompt that is to be a turn of a conversation.
const NO_TEMPLATE: &str = "the model has no chat template (it is a base model): give --raw to \
    continue texts as they stand, or --chat-template @FILE";

/// A prompt that the model can be given: a turn of a conversation needs a template, a text to be continued does not.
pub fn presentable(prompt: Prompt, has_template: bool) -> Result<Prompt, RecordError> {
    match prompt.content {
        Content::Text(_) | Content::Messages(_) if !has_template && !prompt.generation.raw => {
            Err(RecordError::new("no_chat_template", NO_TEMPLATE))
        }
        _ => Ok(prompt),
    }
}

impl Run<'_> {
    /// Loads it; what the flags ask for and the model cannot do is refused.
    pub fn load(&mut self) -> Result<(Arc<LoadedModel>, Pipeline), Failure> {
        let shared = &self.args.shared;
        let since = Instant::now();
        let loading =
            Loading::start(progress::style(shared.progress, self.console.level), &shared.model);
        let loaded = LoadedModel::open(open_under(&loading, shared)?)?;
        if let Some(system) = &shared.system {
            loaded
                .prompt_encoder()
                .check_system(system)
                .map_err(|e| Failure::usage(format!("--system: {e}")))?;
        }
        let template = !shared.raw && loaded.prompt_encoder().has_template();
        let checked = loaded.check_form(&self.flags.form, template);
        checked.map_err(|e| Failure::usage(format!("{}: {}", self.args.form.name(), e.message)))?;
        let pipeline = Pipeline::new(&loaded, &self.config, &shared.options())?;
        drop(loading);
        let console = &mut self.console;
        if let Some(notice) = loaded.prompt_encoder().date_notice().filter(|_| !shared.raw) {
            console.warn(notice);
        }
        if !shared.raw && !loaded.prompt_encoder().has_template() {
            console.warn(NO_TEMPLATE);
        }
        if self.config.stopping == StoppingPolicy::MaxTokensOnly && !shared.stop.is_empty() {
            console.warn("--stop is ignored: 'early-stop' is off");
        }
        let dtype = pipeline.dtype();
        let (model, took) = (&loaded.model, units::seconds(since.elapsed().as_secs_f64()));
        console.detail(format!(
            "llmopt: {} ({}) loaded in {took}",
            model.name,
            crate::model::parameters(&model.spec)
        ));
        let chosen = format!("llmopt: dtype {}: {}", dtype.name, dtype.reason);
        match self.config.dtype {
            DtypePolicy::Auto => console.say(chosen),
            _ => console.detail(chosen),
        }
        for note in &dtype.notes {
            console.say(format!("llmopt: {note}"));
        }
        console.detail(format!("llmopt: kernels {}", pipeline.kernels().join(", ")));
        let sizes = &self.config.sizes;
        let positions = pipeline.positions();
        let threads = counted(sizes.threads as u64, "thread");
        let positions = counted(positions as u64, "position");
        console
            .detail(format!("llmopt: {threads}, batch size {}, room for {positions}", sizes.batch));
        Ok((loaded, pipeline))
    }
}

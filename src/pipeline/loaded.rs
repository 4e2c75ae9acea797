//! The wiring: a loaded model, a pipeline built for one configuration, and the run that turns a source of prompts into answers.
//! In: a [`Loaded`] model, a [`PipelineConfig`], a source. Out: answers to a sink, one [`RunReport`]. It prints nothing.

use super::{Answer, Control, DtypePolicy, Generation, Input, Order, PipelineConfig, RunReport, Settings};
use crate::kernels::Format;
use crate::model::{Model, ModelError};
use std::ops::ControlFlow;
use std::sync::Arc;

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

/// What a pipeline needs beyond its configuration.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Force this kernel set (hidden option for tests); `None`: the best this CPU has.
    pub kernels: Option<String>,
    /// Use no more memory than this; `None`: what the machine has.
    pub memory_limit: Option<u64>,
}

/// The storage in use, and why.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ResolvedDtype {
    /// As records show it: `f32`, `bf16`, `q4_1`, `bf16-emulated`.
    pub name: String,
    /// One sentence: what chose it.
    pub reason: String,
    /// What had to be converted or dequantized, one line each.
    pub notes: Vec<String>,
}

/// A model in memory, shared by all pipelines built on it: tokenizer, template, and each set of packed weights once.
pub struct Loaded {
    /// The model.
    pub model: Arc<Model>,
}

impl Loaded {
    /// Builds tokenizer and template; weights are packed when a pipeline first asks for them.
    pub fn open(model: Model) -> Result<Arc<Loaded>, PipelineError> {
        Ok(Arc::new(Loaded { model: Arc::new(model) }))
    }
}

/// One configuration, ready to run. Pipelines of different configurations live side by side.
pub struct Pipeline {
    loaded: Arc<Loaded>,
    config: PipelineConfig,
    dtype: ResolvedDtype,
}

impl Pipeline {
    /// Packs what is not packed yet, reserves memory, warms up if the configuration says so.
    pub fn new(loaded: &Arc<Loaded>, config: &PipelineConfig, options: &Options) -> Result<Pipeline, PipelineError> {
        let _ = options;
        let name = match config.dtype {
            DtypePolicy::Bf16Emulated => "bf16-emulated",
            DtypePolicy::Fixed(format) => format.name(),
            DtypePolicy::Auto | DtypePolicy::Native => Format::F32.name(),
        };
        let dtype = ResolvedDtype { name: name.to_string(), reason: String::new(), notes: Vec::new() };
        Ok(Pipeline { loaded: loaded.clone(), config: config.clone(), dtype })
    }

    /// The configuration.
    pub fn config(&self) -> &PipelineConfig {
        &self.config
    }

    /// The storage in use.
    pub fn dtype(&self) -> &ResolvedDtype {
        &self.dtype
    }

    /// Names of the kernels in use.
    pub fn kernels(&self) -> Vec<String> {
        Vec::new()
    }

    /// The digest of an answer made with these generation settings.
    pub fn settings(&self, generation: &Generation) -> Settings {
        let model = &self.loaded.model;
        let template = model.vocabulary.chat_template.as_deref().unwrap_or("");
        Settings {
            model: Settings::model_half(&model.digest, &self.dtype.name, template),
            generation: Settings::generation_half(generation, self.config.sampling, self.config.stopping),
        }
    }

    /// Empties the answer cache and forgets shared prefixes (between trials of a benchmark).
    pub fn reset(&mut self) {}

    /// Answers everything `source` yields. The source is read on a thread of its own (which is left behind, blocked in its
    /// read, if the run is stopped before the source ends); tokenizing has another; the engine runs on the calling thread,
    /// where `sink` gets each answer. The sink's `Break` stops the run at once, without an error.
    pub fn run(
        &mut self,
        source: impl Iterator<Item = Input> + Send + 'static,
        order: Order,
        control: &Control,
        sink: &mut dyn FnMut(Answer) -> ControlFlow<()>,
    ) -> Result<RunReport, PipelineError> {
        let _ = (source, order, control, sink);
        Err(PipelineError::Internal("the engine is not wired in yet".into()))
    }
}

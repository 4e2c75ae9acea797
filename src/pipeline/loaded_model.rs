//! A model in memory and the pipelines built on it. In: a [`Model`], a [`PipelineConfig`]. Out: a [`Pipeline`] that is ready to
//! run: tokenizer, packed weights, decoder, engine, answer cache. What pipelines of different configurations can share, they share.
//! Over 500 lines: making a pipeline ready is one order of steps that depend on one another.

use super::cache::Lru;
use super::dtype::ResolvedDtype;
use super::report::Clock;
use super::run::{CachedAnswer, Encode, Encoded, Run};
use super::{
    Answer, AnswerPolicy, Control, Form, Generation, Input, MemoryPolicy, Order, PipelineConfig,
    PipelineError, Prompt, RecordError, RunReport, Settings, TokenizerPolicy, WarmupPolicy,
};
use crate::decoder::Decoder;
use crate::decoder::native::{
    FormatPlan, Memory, NativeDecoder, NativeOptions, PackedModel, WeightLayout,
};
use crate::decoder::page_table::PAGE;
use crate::engine::{
    Choices, Engine, EngineConfig, Extras, Request, Sampling, StopRules, TextDecoder, Thought,
};
use crate::kernels::KernelSet;
use crate::machine;
use crate::model::Model;
use crate::text::{self, Grammars, PromptEncoder, ThoughtAtEnd, Turn, Words};
use crate::units::{Bytes, TokenId};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

/// What puts something around a decoder.
pub type DecoderWrapper = fn(Box<dyn Decoder>) -> Box<dyn Decoder>;

/// What a pipeline needs beyond its configuration.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Force this kernel set (hidden option for tests); `None`: the best this CPU has.
    pub kernels: Option<String>,
    /// Use no more memory than this; `None`: what the machine has.
    pub memory_limit: Option<u64>,
    /// What is put around the decoder, for programs that use the library to study it (`benches/gate_study` slows it down).
    pub around: Option<DecoderWrapper>,
}

/// A model in memory, shared by all pipelines built on it: tokenizer, template, and each set of packed weights once.
pub struct LoadedModel {
    /// The model.
    pub model: Arc<Model>,
    prompt_encoder: Arc<PromptEncoder>,
    grammars: Arc<Grammars>,
    packed: Mutex<HashMap<WeightLayout, Arc<PackedModel>>>,
}

impl LoadedModel {
    /// Builds tokenizer and template; weights are packed when a pipeline first asks for them.
    pub fn open(model: Model) -> Result<Arc<LoadedModel>, PipelineError> {
        let prompt_encoder = Arc::new(PromptEncoder::new(&model)?);
        let (vocab, eos, words) =
            (model.spec.vocab, model.vocabulary.eos.clone(), prompt_encoder.clone());
        let grammars = Arc::new(Grammars::new(move || {
            let tokenizer = words.tokenizer();
            let encoder = words.clone();
            Words {
                bytes: (0..vocab.max(tokenizer.len()) as TokenId)
                    .map(|id| tokenizer.said_bytes(id).to_vec())
                    .collect(),
                eos: eos.clone(),
                encode: Box::new(move |text| {
                    encoder.tokenizer().encode_continued(text).unwrap_or_default()
                }),
            }
        }));
        Ok(Arc::new(LoadedModel {
            model: Arc::new(model),
            prompt_encoder,
            grammars,
            packed: Mutex::default(),
        }))
    }

    /// That a model can answer in this form: the constraint compiles, and a model that thinks can be asked not to where choices are
    /// scored. For what the flags ask, before any prompt is read; `template`: prompts are written by the chat template.
    pub fn check_form(&self, form: &Form, template: bool) -> Result<(), RecordError> {
        if let Some(constraint) = &form.constraint {
            self.grammars
                .compile(constraint)
                .map_err(|message| RecordError::new("constraint", message))?;
        }
        if form.choices.is_none() {
            return Ok(());
        }
        let encoder = Encoder {
            prompt_encoder: self.prompt_encoder.clone(),
            grammars: self.grammars.clone(),
            shared: true,
        };
        let stop = StopRules { eos: true, strings: Vec::new(), sentence: false, repetition: false };
        let generation = Generation {
            max_tokens: 1,
            sampling: Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 },
            stop,
            system: None,
            raw: !template,
            turn: Turn::default(),
            form: Box::new(form.clone()),
        };
        let probe = Prompt {
            id: String::new(),
            content: text::Content::Text("Is it so?".to_string()),
            generation,
            accepts_cut: false,
        };
        encoder.encode(&[&probe]).into_iter().collect::<Result<Vec<_>, _>>().map(drop)
    }

    /// Tokenizer and template.
    pub fn prompt_encoder(&self) -> &PromptEncoder {
        &self.prompt_encoder
    }

    /// The packed weights of a plan, packed now if they are not yet.
    pub fn packed(
        &self,
        plan: FormatPlan,
        threads: usize,
    ) -> Result<Arc<PackedModel>, PipelineError> {
        let layout = PackedModel::layout(&self.model, plan);
        let mut packed = self.packed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = packed.get(&layout) {
            return Ok(found.clone());
        }
        let new = Arc::new(PackedModel::pack(&self.model, plan, threads)?);
        packed.insert(layout, new.clone());
        Ok(new)
    }

    /// Whether a plan's weights are packed already.
    fn is_packed(&self, plan: FormatPlan) -> bool {
        let layout = PackedModel::layout(&self.model, plan);
        self.packed.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&layout)
    }

    /// Frees the packed weights that no pipeline uses.
    pub fn forget_unused_weights(&self) {
        self.packed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, p| Arc::strong_count(p) > 1);
    }
}

/// Rows of the prompt that warms up.
const WARM_ROWS: usize = 32;

/// Prompts to what the engine takes.
struct Encoder {
    prompt_encoder: Arc<PromptEncoder>,
    grammars: Arc<Grammars>,
    /// One tokenizer for all prompts, batches in parallel; otherwise one for each prompt, one prompt at a time.
    shared: bool,
}

fn record_error(error: text::PromptError) -> RecordError {
    RecordError::new(error.code(), error.to_string())
}

/// How a prompt is presented: one that is scored, without a thought.
fn turn_of(prompt: &Prompt, prompt_encoder: &PromptEncoder) -> Result<Turn, RecordError> {
    let Generation { turn, form, .. } = &prompt.generation;
    if form.choices.is_none() || prompt_encoder.marks(true).is_none() {
        return Ok(turn.clone());
    }
    prompt_encoder.without_thought(turn).ok_or_else(|| {
        RecordError::new(
            "thinking",
            "choices are scored without a thought; leave enable_thinking out",
        )
    })
}

impl Encode for Encoder {
    fn encode(&self, prompts: &[&Prompt]) -> Vec<Result<Encoded, RecordError>> {
        let turns: Vec<_> =
            prompts.iter().map(|prompt| turn_of(prompt, &self.prompt_encoder)).collect();
        let presented: Vec<text::ToEncode> = prompts
            .iter()
            .zip(&turns)
            .map(|(prompt, turn)| {
                let Generation { system, raw, turn: own, .. } = &prompt.generation;
                let turn = turn.as_ref().unwrap_or(own);
                text::ToEncode {
                    content: &prompt.content,
                    system: system.as_deref(),
                    raw: *raw,
                    turn,
                }
            })
            .collect();
        let ids = match self.shared {
            true => self.prompt_encoder.prompt_ids_batch(&presented),
            false => presented
                .iter()
                .map(|prompt| self.prompt_encoder.prompt_ids_rebuilt(*prompt))
                .collect(),
        };
        let all = prompts.iter().zip(&presented).zip(ids.into_iter().zip(&turns));
        all.map(|((prompt, presented), (ids, turn))| {
            turn.as_ref().map_err(Clone::clone)?;
            self.with_extras(prompt, presented, ids.map_err(record_error)?)
        })
        .collect()
    }

    fn spelled(&self, token: TokenId) -> Vec<u8> {
        self.prompt_encoder.tokenizer().spelled(token).to_vec()
    }

    fn at_once(&self) -> usize {
        if self.shared { usize::MAX } else { 1 }
    }
}

impl Encoder {
    /// What a request has besides its ids: the constraint compiled, the choices as ids, the marks of thoughts.
    fn with_extras(
        &self,
        prompt: &Prompt,
        presented: &text::ToEncode,
        ids: Vec<TokenId>,
    ) -> Result<Encoded, RecordError> {
        let form = &prompt.generation.form;
        let tokenizer = self.prompt_encoder.tokenizer();
        let conversation = self.prompt_encoder.is_conversation(presented);
        let mut extras = Extras::default();
        if let Some(constraint) = &form.constraint {
            let compiled = self.grammars.compile(constraint);
            extras.constraint =
                Some(compiled.map_err(|message| RecordError::new("constraint", message))?);
        }
        let marks = self.prompt_encoder.marks(conversation);
        let at_end =
            marks.map(|marks| marks.at_end(tokenizer, &ids, presented.turn.continue_final));
        if let Some(texts) = &form.choices {
            let allowed = match at_end {
                None | Some(ThoughtAtEnd::Closed) => true,
                Some(ThoughtAtEnd::Open) => false,
                Some(ThoughtAtEnd::None) => {
                    !conversation || self.prompt_encoder.can_switch_thoughts()
                }
            };
            if !allowed {
                let message = "the model thinks before it answers, and its template has no empty thought: choices cannot be scored";
                return Err(RecordError::new("thinking", message));
            }
            extras.choices = Some(Arc::new(self.choices(texts, conversation)?));
        } else if let (Some(marks), Some(at_end)) = (marks, at_end)
            && at_end != ThoughtAtEnd::Closed
        {
            extras.thought = Some(Arc::new(Thought {
                open: marks.open.to_string(),
                close: marks.close.to_string(),
                opened: at_end == ThoughtAtEnd::Open,
                open_tokens: marks.open_tokens(tokenizer),
                close_tokens: marks.close_tokens(tokenizer),
            }));
        }
        Ok(Encoded { ids, extras })
    }

    fn choices(&self, texts: &[String], conversation: bool) -> Result<Choices, RecordError> {
        let end = self.prompt_encoder.end_of_answer(conversation);
        let end = end.ok_or_else(|| {
            RecordError::new("choices", "the model has no token that ends an answer")
        })?;
        let one = |text: &String| {
            let ids = self
                .prompt_encoder
                .tokenizer()
                .encode_continued(text)
                .map_err(|e| RecordError::new("tokenizer", e.to_string()))?;
            match ids.is_empty() {
                true => Err(RecordError::new(
                    "choices",
                    format!("the choice '{}' has no tokens", crate::units::shown(text)),
                )),
                false => Ok(ids.into_iter().chain([end]).collect()),
            }
        };
        Ok(Choices {
            texts: texts.to_vec(),
            tokens: texts.iter().map(one).collect::<Result<_, _>>()?,
        })
    }
}

/// A sequence's text, and what its stop strings mean in this model.
struct Text {
    detokenizer: text::Detokenizer,
    prompt_encoder: Arc<PromptEncoder>,
}

impl TextDecoder for Text {
    fn push(&mut self, token: TokenId, text: &mut String) {
        self.detokenizer.push(token, text);
    }

    fn finish(&mut self, text: &mut String) {
        self.detokenizer.finish(text);
    }

    fn control(&self, text: &str) -> Option<TokenId> {
        let tokenizer = self.prompt_encoder.tokenizer();
        let ids = tokenizer.encode_with_control(text).ok().filter(|_| text == text.trim())?;
        let mut controls = ids.iter().copied().filter(|id| tokenizer.is_control(*id));
        let only = controls.next().filter(|_| controls.next().is_none())?;
        // Some vocabularies put a space before all text.
        tokenizer.decode(&ids).trim().is_empty().then_some(only)
    }
}

/// What the records of one output have in common, and a resume compares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The model's name.
    pub model: String,
    /// Name of the storage in use.
    pub dtype: String,
    /// First half of the settings: model file, numeric path, template.
    pub half: u32,
}

impl Identity {
    /// That of a pipeline of this configuration, without building one: no weight is read.
    pub fn of(model: &Model, config: &PipelineConfig) -> Identity {
        Identity::with(model, &ResolvedDtype::resolve(model, config, None))
    }

    fn with(model: &Model, dtype: &ResolvedDtype) -> Identity {
        let half = Settings::model_half(
            &model.digest,
            &dtype.numeric_path,
            &model.vocabulary.template_identity(),
        );
        Identity { model: model.name.clone(), dtype: dtype.name.clone(), half }
    }
}

/// One configuration, ready to run. Pipelines of different configurations live side by side.
pub struct Pipeline {
    loaded: Arc<LoadedModel>,
    config: PipelineConfig,
    dtype: ResolvedDtype,
    kernels: Vec<String>,
    formats: crate::roofline::Formats,
    engine: Engine,
    encoder: Arc<dyn Encode>,
    cache: Option<Lru<CachedAnswer>>,
}

/// Most bytes of answers kept in memory.
const CACHE_BYTES: usize = 64 << 20;

/// Memory for everything that is not weights, keys and values or the decoder's workspace.
const OTHER_BYTES: u64 = 24 << 20;

impl Pipeline {
    /// Packs what is not packed yet, reserves memory, warms up if the configuration says so.
    #[allow(
        clippy::too_many_lines,
        reason = "to be cut: each step needs what the one before it made"
    )]
    pub fn new(
        loaded: &Arc<LoadedModel>,
        config: &PipelineConfig,
        options: &Options,
    ) -> Result<Pipeline, PipelineError> {
        let kernels = match &options.kernels {
            Some(name) => KernelSet::named(name).map_err(PipelineError::Config)?,
            None => KernelSet::best(),
        };
        let model = &loaded.model;
        let mut dtype = ResolvedDtype::resolve(model, config, Some(kernels));
        let have = options.memory_limit.unwrap_or(u64::MAX).min(machine::usable_memory());
        let weights =
            if loaded.is_packed(dtype.plan) { 0 } else { PackedModel::estimate(model, dtype.plan) };
        let refuse = |kv: u64, scratch: u64, have: u64| {
            PipelineError::Memory(format!(
                "not enough memory: weights as {} need {}{}, keys and values {}, working memory {}, \
                 and {} are left; a smaller model, --dtype, --batch-size or --kv-memory may fit",
                dtype.name,
                Bytes(weights),
                PackedModel::widened(model, dtype.plan)
                    .map_or(String::new(), |why| format!(" ({why})")),
                Bytes(kv),
                Bytes(scratch),
                Bytes(have)
            ))
        };
        // 0 bytes usable: /proc/meminfo could not be read.
        if let (0, Err(e)) = (machine::usable_memory(), std::fs::File::open("/proc/meminfo")) {
            return Err(PipelineError::Internal(format!(
                "the memory that is left cannot be looked up: /proc/meminfo: {e}"
            )));
        }
        if weights + OTHER_BYTES > have {
            return Err(refuse(0, OTHER_BYTES, have));
        }
        let packed = loaded.packed(dtype.plan, config.sizes.threads)?;
        let left = have - weights;
        let rows = config.sizes.chunk.max(config.sizes.batch);
        let kv_dtype = config.sizes.kv_dtype.unwrap_or(packed.usual_kv());
        let odd = |l: &crate::model::LayerSpec| {
            l.attention().map(|a| a.head_dim).filter(|d| !kv_dtype.holds(*d))
        };
        if let Some(width) = model.spec.layers.iter().find_map(odd) {
            return Err(PipelineError::Config(format!(
                "--kv-dtype {}: this model's heads are {width} wide, which is no multiple of 16; use f16",
                kv_dtype.name()
            )));
        }
        let position = packed.kv_bytes_per_position_in(kv_dtype);
        // Sequences with a state have all of theirs from the start, and checkpoints beside them.
        let states = packed.state_bytes_per_sequence() * config.sizes.batch as u64;
        let page = position * PAGE as u64 + states;
        if config.sizes.kv_bytes.is_some_and(|bytes| bytes < page) {
            let given = Bytes(config.sizes.kv_bytes.unwrap_or(0));
            return Err(PipelineError::Config(format!(
                "--kv-memory {given}: holds not one page: {PAGE} positions of this model{} take {} ({page} bytes); \
                 leave it out, or give {} for one answer of a whole context",
                if states > 0 { " and the states of a batch" } else { "" },
                Bytes(page),
                Bytes(
                    states + position * (model.spec.context as u64).next_multiple_of(PAGE as u64)
                )
            )));
        }
        // A prompt of the whole context must fit whatever the batch size: the answer to it must not depend on that.
        let wanted = 2 * states
            + position * (config.sizes.batch as u64 * 2048).max(model.spec.context as u64 + 16);
        let mut native = NativeOptions {
            threads: config.sizes.threads,
            kernels,
            slots: config.sizes.batch,
            rows,
            kv_bytes: config
                .sizes
                .kv_bytes
                .unwrap_or(wanted.min((machine::usable_memory() / 4).max(page))),
            memory: match config.memory {
                MemoryPolicy::PerStep => Memory::PerStep,
                MemoryPolicy::Preallocated => Memory::Preallocated,
            },
        };
        let scratch = NativeDecoder::estimate(&packed, &native).scratch + OTHER_BYTES;
        // Keys and values are touched only as used, but a limit on addresses counts them at once.
        if native.kv_bytes + scratch > left {
            match config.sizes.kv_bytes {
                None if left > scratch + states + 256 * position => {
                    native.kv_bytes = left - scratch
                }
                _ => return Err(refuse(native.kv_bytes, scratch, have)),
            }
        }
        let mut decoder: Box<dyn Decoder> =
            Box::new(NativeDecoder::with_kv(packed.clone(), native, kv_dtype)?);
        if let Some(around) = options.around {
            decoder = around(decoder);
        }
        dtype.notes = PackedModel::notes(model, dtype.plan);
        let engine_config = EngineConfig {
            sampling: config.sampling,
            stopping: config.stopping,
            padding: config.padding,
            batching: config.batching,
            prefix: config.prefix,
            batch: config.sizes.batch,
            chunk: config.sizes.chunk,
            eos: model.vocabulary.eos.clone().into(),
            fast_forward: true,
            mask_threads: config.sizes.threads.saturating_sub(1).clamp(1, 4),
        };
        let prompt_encoder = loaded.prompt_encoder.clone();
        let text = Box::new(move || {
            let detokenizer = prompt_encoder.tokenizer().detokenizer();
            Box::new(Text { detokenizer, prompt_encoder: prompt_encoder.clone() })
                as Box<dyn TextDecoder>
        });
        let encoder: Arc<dyn Encode> = Arc::new(Encoder {
            prompt_encoder: loaded.prompt_encoder.clone(),
            grammars: loaded.grammars.clone(),
            shared: config.tokenizer == TokenizerPolicy::Shared,
        });
        let mut pipeline = Pipeline {
            loaded: loaded.clone(),
            config: config.clone(),
            dtype,
            kernels: kernels.kernel_names(&packed.formats()),
            formats: packed.storage(kv_dtype),
            engine: Engine::new(decoder, engine_config, text),
            encoder,
            cache: match config.answers {
                AnswerPolicy::Generate => None,
                AnswerPolicy::Reuse { capacity } => Some(Lru::new(capacity, CACHE_BYTES)),
            },
        };
        if config.warmup == WarmupPolicy::Warm {
            pipeline.warm_up()?;
        }
        Ok(pipeline)
    }

    /// One short generation: reads every weight once, starts the threads, touches the working memory, encodes a text.
    fn warm_up(&mut self) -> Result<(), PipelineError> {
        let _ = self.loaded.prompt_encoder.tokenizer().encode("Warm up, 1 2 3.");
        let token = self.loaded.model.vocabulary.eos.first().copied().unwrap_or(0);
        // As many as touch every weight and every kind of tile; a whole chunk of a model of 10^9 weights would take seconds.
        let rows = self
            .config
            .sizes
            .chunk
            .min(WARM_ROWS)
            .min(self.loaded.model.spec.context.saturating_sub(4))
            .max(1);
        let rows = rows.min(self.engine.capacity().positions.saturating_sub(4)).max(1);
        self.engine.submit(Request {
            ticket: 0,
            prompt: vec![token; rows].into(),
            max_tokens: 2,
            sampling: Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 },
            stop: Arc::new(StopRules {
                eos: false,
                strings: Vec::new(),
                sentence: false,
                repetition: false,
            }),
            extras: Arc::default(),
        });
        let mut events = Vec::new();
        while self.engine.queue_len() + self.engine.in_flight() > 0 {
            events.clear();
            self.engine.step(&mut events).map_err(|e| PipelineError::Internal(e.to_string()))?;
            if events.is_empty() && self.engine.in_flight() == 0 {
                break;
            }
        }
        self.engine.cancel_all();
        self.engine.clear_prefix_cache();
        Ok(())
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.loaded.model
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
    pub fn kernels(&self) -> &[String] {
        &self.kernels
    }

    /// How its weights are stored, for counting bytes.
    pub fn formats(&self) -> &crate::roofline::Formats {
        &self.formats
    }

    /// The bare decoder, for measuring forward passes.
    pub fn into_decoder(self) -> Box<dyn Decoder> {
        self.engine.into_decoder()
    }

    /// Positions of keys and values that fit in memory.
    pub fn positions(&self) -> usize {
        self.engine.capacity().positions
    }

    /// The digest of an answer made with these generation settings.
    pub fn settings(&self, generation: &Generation) -> Settings {
        let generation =
            Settings::generation_half(generation, self.config.sampling, self.config.stopping);
        Settings { model: self.model_settings(), generation }
    }

    /// Its first half: model, numeric path, template.
    pub fn model_settings(&self) -> u32 {
        self.identity().half
    }

    /// What a resume compares.
    pub fn identity(&self) -> Identity {
        Identity::with(&self.loaded.model, &self.dtype)
    }

    /// Empties the answer cache and forgets shared prefixes (between trials of a benchmark).
    pub fn reset(&mut self) {
        if let Some(cache) = &mut self.cache {
            cache.clear();
        }
        self.engine.clear_prefix_cache();
    }

    /// Answers everything `source` yields. The source is read on a thread of its own (which is left behind, blocked in its
    /// read, if the run is stopped before the source ends); tokenizing has another; the engine runs on the calling thread,
    /// where `sink` gets each answer with what came along with its prompt. The sink's `Break` stops the run at once, without an error.
    pub fn run<T: Send + 'static>(
        &mut self,
        source: impl Iterator<Item = Input<T>> + Send + 'static,
        order: Order,
        control: &Control,
        sink: &mut dyn FnMut(Answer, T) -> ControlFlow<()>,
    ) -> Result<RunReport, PipelineError> {
        let clock = Arc::new(Mutex::new(Clock::default()));
        self.engine.observe(Box::new(clock.clone()));
        let run = Run {
            engine: &mut self.engine,
            cache: self.cache.as_mut(),
            encoder: self.encoder.clone(),
            clock,
            batching: self.config.batching,
            stopping: self.config.stopping,
            batch: self.config.sizes.batch,
            context: self.loaded.model.spec.context,
            order,
            control,
        };
        run.run(source, sink)
    }
}

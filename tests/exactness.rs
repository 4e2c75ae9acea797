//! One request gives the same bits whatever runs beside it: every score the decoder gives in any mixture of batch, other sequences,
//! chunking, threads, shared prefixes, padding, queue, memory policy and kernel set equals, bit for bit, the score the request gets
//! alone on one thread; and bf16 storage gives the bits of f32.

mod common;

use common::{Stored, Tiny, Values};
use llmopt::decoder::native::{FormatPlan, Memory, NativeDecoder, NativeOptions, PackedModel};
use llmopt::decoder::{Batch, Capacity, DecodeError, Decoder, LogitsOutput, Opened, Slot};
use llmopt::engine::{
    BatchingPolicy, Choices, Completion, Engine, EngineConfig, Event, Extras, FinishReason,
    PaddingPolicy, PrefixPolicy, Request, Sampling, SamplingPolicy, StopRules, StoppingPolicy,
    TextDecoder,
};
use llmopt::kernels::{Encoding, Format, KernelSet};
use llmopt::model::{
    self, Activation, Convolution, DeltaNet, Ffn, LongRope, Mixer, Mixture, Model, ModelError,
    ModelSpec, Norm, NormKind, Norms, OpenOptions, Plain, QkNorm, QueryGrowth, Role, Rope, Routing,
    Shared, Vocabulary, Weights,
};
use llmopt::text::Tokenizer;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex};

type Ids = Vec<u32>;

/// Everything the decoder answered, by the whole context it answered to.
type Heard = Arc<Mutex<Vec<(Ids, LogitsOutput)>>>;

/// A decoder that writes down what the one inside answers.
struct Recorder {
    inner: Box<dyn Decoder>,
    contexts: HashMap<Slot, Ids>,
    heard: Heard,
}

impl Decoder for Recorder {
    fn spec(&self) -> &ModelSpec {
        self.inner.spec()
    }
    fn capacity(&self) -> Capacity {
        self.inner.capacity()
    }
    fn open(&mut self, prompt: &[u32], positions: usize, share: bool) -> Option<Opened> {
        self.open_for_forks(prompt, positions, 0, share)
    }
    fn open_for_forks(
        &mut self,
        prompt: &[u32],
        positions: usize,
        spare: usize,
        share: bool,
    ) -> Option<Opened> {
        let opened = self.inner.open_for_forks(prompt, positions, spare, share)?;
        self.contexts.insert(opened.slot, prompt[..opened.reused].to_vec());
        Some(opened)
    }
    fn fork(&mut self, parent: Slot, at: usize, positions: usize) -> Option<Slot> {
        let slot = self.inner.fork(parent, at, positions)?;
        self.contexts.insert(slot, self.contexts[&parent][..at].to_vec());
        Some(slot)
    }
    fn forward(
        &mut self,
        batch: &Batch,
        outputs: &mut Vec<LogitsOutput>,
    ) -> Result<(), DecodeError> {
        self.inner.forward(batch, outputs)?;
        for (segment, output) in batch.segments.iter().zip(outputs.iter()) {
            let context = self.contexts.get_mut(&segment.slot).unwrap();
            context.extend(&batch.tokens[segment.tokens.clone()]);
            if *output != LogitsOutput::Nothing {
                self.heard.lock().unwrap().push((context.clone(), output.clone()));
            }
        }
        Ok(())
    }
    fn close(&mut self, slot: Slot) {
        self.inner.close(slot);
    }
    fn clear_prefix_cache(&mut self) {
        self.inner.clear_prefix_cache();
    }
    fn used_positions(&self) -> (usize, usize) {
        self.inner.used_positions()
    }
    fn kernels(&self) -> Vec<String> {
        self.inner.kernels()
    }
}

struct NoText;

impl TextDecoder for NoText {
    fn push(&mut self, _: u32, _: &mut String) {}
    fn finish(&mut self, _: &mut String) {}
}

/// One model, packed by each plan.
type Models = HashMap<FormatPlan, Arc<PackedModel>>;

/// How a mixture is run.
#[derive(Debug, Clone)]
struct Setting {
    plan: FormatPlan,
    kernels: usize,
    threads: usize,
    memory: Memory,
    slots: usize,
    pages: usize,
    rows: usize,
    batch: usize,
    chunk: usize,
    padding: PaddingPolicy,
    batching: BatchingPolicy,
    prefix: PrefixPolicy,
    sampling: SamplingPolicy,
}

impl Setting {
    /// Alone, one thread, whole prompts, every score of every token.
    fn alone(plan: FormatPlan) -> Setting {
        Setting {
            plan,
            kernels: KernelSet::available().len() - 1,
            threads: 1,
            memory: Memory::Preallocated,
            slots: 1,
            pages: 128,
            rows: 2048,
            batch: 1,
            chunk: 2048,
            padding: PaddingPolicy::Ragged,
            batching: BatchingPolicy::Continuous,
            prefix: PrefixPolicy::Recompute,
            sampling: SamplingPolicy::AlwaysSample,
        }
    }

    fn decoder(&self, models: &Models) -> NativeDecoder {
        let model = models[&self.plan].clone();
        let options = NativeOptions {
            threads: self.threads,
            kernels: KernelSet::available()[self.kernels],
            slots: self.slots,
            rows: self.rows,
            // Room for the states of all slots, and for a few checkpoints.
            kv_bytes: self.pages as u64 * 16 * model.kv_bytes_per_position()
                + model.state_bytes_per_sequence() * (self.slots as u64 + 6),
            memory: self.memory,
        };
        NativeDecoder::new(model, options).unwrap()
    }

    /// Runs the requests, submitted in two halves with a few steps between them; the tokens of each, and what was heard.
    fn run(&self, models: &Models, requests: &[Request]) -> (Vec<Ids>, Vec<(Ids, LogitsOutput)>) {
        let (done, heard) = self.complete(models, requests);
        let tokens = done.into_iter().map(|completion| {
            assert_eq!(completion.reason, FinishReason::Length);
            completion.tokens
        });
        (tokens.collect(), heard)
    }

    /// The same with all that the engine tells.
    fn complete(
        &self,
        models: &Models,
        requests: &[Request],
    ) -> (Vec<Completion>, Vec<(Ids, LogitsOutput)>) {
        let heard = Heard::default();
        let recorder = Recorder {
            inner: Box::new(self.decoder(models)),
            contexts: HashMap::new(),
            heard: heard.clone(),
        };
        let config = EngineConfig {
            sampling: self.sampling,
            stopping: StoppingPolicy::MaxTokensOnly,
            padding: self.padding,
            batching: self.batching,
            prefix: self.prefix,
            batch: self.batch,
            chunk: self.chunk,
            eos: [].into(),
            fast_forward: true,
            mask_threads: 1,
        };
        let mut engine = Engine::new(Box::new(recorder), config, Box::new(|| Box::new(NoText)));
        let mut events = Vec::new();
        let (first, second) = requests.split_at(requests.len().div_ceil(2));
        first.iter().for_each(|r| engine.submit(r.clone()));
        (0..3).for_each(|_| engine.step(&mut events).unwrap());
        second.iter().for_each(|r| engine.submit(r.clone()));
        while engine.in_flight() + engine.queue_len() > 0 {
            engine.step(&mut events).unwrap();
        }
        let mut done = BTreeMap::new();
        for event in events {
            match event {
                Event::Finished { ticket, completion } => {
                    done.insert(ticket, completion);
                }
                Event::Failed { message, .. } => panic!("{message}"),
                _ => {}
            }
        }
        drop(engine);
        let heard = Arc::try_unwrap(heard).unwrap().into_inner().unwrap();
        (requests.iter().map(|r| done.remove(&r.ticket).unwrap()).collect(), heard)
    }
}

/// A model in every format that holds its values, and what its requests get alone.
struct Subject {
    name: &'static str,
    models: Models,
    /// Plans whose answers are one and the same, the one for the reference first.
    plans: Vec<FormatPlan>,
    requests: Vec<Request>,
    tokens: Vec<Ids>,
    /// Every score after every context that occurs.
    scores: HashMap<Ids, Vec<f32>>,
}

impl Subject {
    fn tiny(
        name: &'static str,
        tiny: Tiny,
        plans: &[FormatPlan],
        prompts: &[Ids],
        max_tokens: usize,
    ) -> Subject {
        let folder = tempfile::tempdir().unwrap();
        let path = tiny.write(folder.path());
        let model = model::open(path.to_str().unwrap(), &OpenOptions::default()).unwrap();
        let pack =
            |plan: &FormatPlan| (*plan, Arc::new(PackedModel::pack(&model, *plan, 2).unwrap()));
        Subject::new(
            name,
            plans.iter().map(pack).collect(),
            plans,
            prompts,
            max_tokens,
            Setting::alone(plans[0]),
        )
    }

    fn new(
        name: &'static str,
        models: Models,
        plans: &[FormatPlan],
        prompts: &[Ids],
        max_tokens: usize,
        alone: Setting,
    ) -> Subject {
        let stop =
            Arc::new(StopRules { eos: false, strings: vec![], sentence: false, repetition: false });
        let requests = prompts.iter().enumerate().map(|(i, prompt)| Request {
            ticket: i as u64,
            prompt: prompt.as_slice().into(),
            max_tokens: max_tokens - i % 3,
            // Greedy, sampled from candidates, sampled from everything, in turn.
            sampling: Sampling {
                temperature: [0.0, 0.9, 1.3][i % 3],
                top_p: 0.9,
                top_k: [0, 11, 0][i % 3],
                seed: i as u64,
            },
            stop: stop.clone(),
            extras: Arc::default(),
        });
        let (requests, plans) = (requests.collect(), plans.to_vec());
        let mut subject =
            Subject { name, models, plans, requests, tokens: Vec::new(), scores: HashMap::new() };
        for request in &subject.requests {
            let (mut tokens, heard) = alone.run(&subject.models, std::slice::from_ref(request));
            subject.tokens.append(&mut tokens);
            for (context, output) in heard {
                let LogitsOutput::Logits(scores) = output else {
                    panic!("the reference asks for all scores")
                };
                assert!(
                    scores.iter().any(|s| *s != scores[0]),
                    "a model that knows nothing proves nothing"
                );
                subject.scores.insert(context, scores);
            }
        }
        subject
    }

    /// Runs these requests in this setting and compares every bit.
    fn check(&self, setting: &Setting, chosen: &[usize]) -> Result<(), TestCaseError> {
        // The same request may run twice at once, under two tickets.
        let requests: Vec<Request> = chosen
            .iter()
            .enumerate()
            .map(|(ticket, &i)| Request { ticket: ticket as u64, ..self.requests[i].clone() })
            .collect();
        let (tokens, heard) = setting.run(&self.models, &requests);
        for (context, output) in heard {
            let Some(scores) = self.scores.get(&context) else {
                return Err(TestCaseError::fail(format!(
                    "{}: a context of {} that nobody had alone",
                    self.name,
                    context.len()
                )));
            };
            prop_assert!(
                same(scores, &output),
                "{}: other scores after {} tokens",
                self.name,
                context.len()
            );
        }
        for (tokens, &i) in tokens.iter().zip(chosen) {
            prop_assert_eq!(tokens, &self.tokens[i], "{}: other tokens", self.name);
        }
        Ok(())
    }
}

/// Whether an answer is what these scores say, bit for bit.
fn same(scores: &[f32], output: &LogitsOutput) -> bool {
    let mut ranked: Vec<u32> = (0..scores.len() as u32).collect();
    let better = |a: &u32, b: &u32| {
        scores[*b as usize].partial_cmp(&scores[*a as usize]).unwrap().then(a.cmp(b))
    };
    let same_bits = |id: u32, score: f32| scores[id as usize].to_bits() == score.to_bits();
    match output {
        LogitsOutput::Nothing => true,
        LogitsOutput::Argmax(id, score) => {
            ranked.iter().copied().min_by(|a, b| better(a, b)) == Some(*id)
                && same_bits(*id, *score)
        }
        LogitsOutput::TopK(candidates) => {
            ranked.sort_by(better);
            candidates.iter().zip(&ranked).all(|(c, id)| c.0 == *id && same_bits(c.0, c.1))
                && !candidates.is_empty()
        }
        LogitsOutput::Logits(_) | LogitsOutput::LogitsAndArgmax(..) => {
            let all = output.scores().unwrap();
            let best = ranked.iter().copied().min_by(|a, b| better(a, b));
            all.len() == scores.len()
                && !matches!(output, LogitsOutput::LogitsAndArgmax(_, id) if best != Some(*id))
                && all.iter().zip(scores).all(|(a, b)| a.to_bits() == b.to_bits())
        }
    }
}

fn ids(len: usize, family: u32, seed: u32) -> Ids {
    (0..len as u32)
        .map(|i| if i < 40 { (i * 13 + family * 7) % 290 } else { (i * i + i * seed + seed) % 290 })
        .collect()
}

/// Prompts with common beginnings of 40 tokens in two families; one passes eight pages and two attention blocks.
fn prompts() -> Vec<Ids> {
    [1, 2, 13, 16, 17, 48, 49, 63, 64, 65, 100, 150]
        .iter()
        .enumerate()
        .map(|(i, &len)| ids(len, i as u32 % 2, i as u32))
        .collect()
}

/// K of 544 (past 512, no multiple of 256), three query heads to a key head, a vocabulary that is no multiple of 16.
fn blocks_of_32() -> Tiny {
    Tiny {
        layers: 2,
        hidden: 96,
        ffn: 544,
        heads: 6,
        kv_heads: 2,
        head_dim: 16,
        vocab: 301,
        context: 2048,
        ..Tiny::default()
    }
}

/// Nothing is a multiple of 16.
fn odd() -> Tiny {
    Tiny {
        layers: 2,
        hidden: 90,
        ffn: 530,
        heads: 9,
        kv_heads: 3,
        head_dim: 10,
        vocab: 307,
        tied: false,
        context: 2048,
        ..Tiny::default()
    }
}

fn setting(plans: Vec<FormatPlan>) -> impl Strategy<Value = Setting> {
    let sizes = (1usize..16, 20usize..80, 1usize..70, 1usize..70);
    let policies = (
        prop_oneof![Just(PaddingPolicy::Ragged), Just(PaddingPolicy::PadToLongest)],
        prop_oneof![Just(BatchingPolicy::Continuous), Just(BatchingPolicy::Blocking)],
        prop_oneof![Just(PrefixPolicy::Recompute), Just(PrefixPolicy::Share)],
        prop_oneof![Just(SamplingPolicy::AlwaysSample), Just(SamplingPolicy::GreedyBelow(0.3))],
        prop_oneof![Just(Memory::Preallocated), Just(Memory::PerStep)],
    );
    // The portable set is slow and takes its turn less often.
    let kernels = prop_oneof![1 => Just(0), 4 => 0..KernelSet::available().len()];
    (prop::sample::select(plans), kernels, 1usize..4, sizes, policies).prop_map(
        |(
            plan,
            kernels,
            threads,
            (batch, pages, rows, chunk),
            (padding, batching, prefix, sampling, memory),
        )| Setting {
            plan,
            kernels,
            threads,
            memory,
            slots: batch,
            pages,
            rows: rows.max(batch),
            batch,
            chunk,
            padding,
            batching,
            prefix,
            sampling,
        },
    )
}

/// Checks `cases` random mixtures of this subject's requests.
fn mixtures(subject: &Subject, cases: u32) {
    let mixture =
        (setting(subject.plans.clone()), prop::collection::vec(0..subject.requests.len(), 1..16));
    let mut runner =
        TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    runner.run(&mixture, |(setting, chosen)| subject.check(&setting, &chosen)).unwrap();
}

#[test]
fn f32_and_bf16_storage_give_the_same_bits_in_every_mixture() {
    let tiny = Tiny { name: "bf16".into(), values: Values::Fine, ..odd() }.stored(Stored::Bf16);
    mixtures(
        &Subject::tiny(
            "bf16 file",
            tiny,
            &[FormatPlan::All(Format::F32), FormatPlan::All(Format::Bf16), FormatPlan::AsStored],
            &prompts(),
            20,
        ),
        20,
    );
}

#[test]
fn f32_weights_give_the_same_bits_in_every_mixture() {
    let tiny = Tiny { values: Values::Fine, ..blocks_of_32() };
    mixtures(&Subject::tiny("f32 file", tiny, &[FormatPlan::All(Format::F32)], &prompts(), 20), 12);
}

#[test]
fn q8_0_weights_give_the_same_bits_in_every_mixture() {
    let tiny = Tiny { values: Values::Fine, ..blocks_of_32() }.stored(Stored::Q8_0);
    mixtures(
        &Subject::tiny("q8_0 file", tiny, &[FormatPlan::All(Format::Q8_0)], &prompts(), 20),
        14,
    );
}

#[test]
fn q4_1_weights_give_the_same_bits_in_every_mixture() {
    let tiny = Tiny { values: Values::Fine, ..blocks_of_32() }.stored(Stored::Q4_1);
    mixtures(
        &Subject::tiny("q4_1 file", tiny, &[FormatPlan::All(Format::Q4_1)], &prompts(), 20),
        14,
    );
}

#[test]
fn f16_and_the_emulated_bf16_give_the_same_bits_in_every_mixture() {
    let some: Vec<Ids> = prompts().into_iter().step_by(2).collect();
    for plan in [FormatPlan::All(Format::F16), FormatPlan::WidenedBf16Emulated] {
        let tiny = Tiny { values: Values::Fine, ..odd() }.stored(Stored::F16);
        mixtures(&Subject::tiny("f16 file", tiny, &[plan], &some, 10), 6);
    }
}

#[test]
fn past_a_thousand_positions_every_format_keeps_its_bits() {
    for (stored, format) in
        [(Stored::Bf16, Format::Bf16), (Stored::Q8_0, Format::Q8_0), (Stored::Q4_1, Format::Q4_1)]
    {
        let tiny = Tiny { layers: 1, values: Values::Fine, ..blocks_of_32() }.stored(stored);
        let plan = FormatPlan::All(format);
        let subject = Subject::tiny(
            "long",
            tiny,
            &[plan],
            &[ids(1020, 0, 5), ids(1041, 0, 6), ids(7, 0, 7)],
            12,
        );
        let together = Setting {
            threads: 3,
            slots: 3,
            pages: 210,
            rows: 61,
            batch: 3,
            chunk: 61,
            prefix: PrefixPolicy::Share,
            sampling: SamplingPolicy::GreedyBelow(0.3),
            ..Setting::alone(plan)
        };
        subject.check(&together, &[0, 1, 2, 1]).unwrap();
        let padded = Setting {
            padding: PaddingPolicy::PadToLongest,
            batching: BatchingPolicy::Blocking,
            memory: Memory::PerStep,
            threads: 2,
            prefix: PrefixPolicy::Recompute,
            ..together
        };
        subject.check(&padded, &[0, 2, 1]).unwrap();
    }
}

#[test]
fn the_default_model_as_stored_gives_the_same_bits_in_every_mixture() {
    let model = model::open("smollm2-135m", &OpenOptions::default()).unwrap();
    let tokenizer = Tokenizer::build(&model.vocabulary).unwrap();
    let template = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n";
    let questions = [
        "What is 7 times 8?",
        "Name three colours of the rainbow and say why.",
        "Hi",
        "Write a haiku about a slow computer.",
    ];
    let prompts: Vec<Ids> = questions
        .iter()
        .map(|q| {
            tokenizer
                .encode_with_control(&format!("{template}{q}<|im_end|>\n<|im_start|>assistant\n"))
                .unwrap()
        })
        .collect();
    let packed = Arc::new(PackedModel::pack(&model, FormatPlan::AsStored, 2).unwrap());
    let alone = Setting { pages: 16, rows: 256, ..Setting::alone(FormatPlan::AsStored) };
    let models = HashMap::from([(FormatPlan::AsStored, packed)]);
    let subject = Subject::new(
        "the default model",
        models,
        &[FormatPlan::AsStored],
        &prompts,
        8,
        alone.clone(),
    );
    let together = Setting {
        threads: 2,
        slots: 3,
        pages: 32,
        rows: 29,
        batch: 3,
        chunk: 29,
        prefix: PrefixPolicy::Share,
        sampling: SamplingPolicy::GreedyBelow(0.3),
        ..alone
    };
    subject.check(&together, &[0, 1, 2, 3, 0]).unwrap();
    let baseline = Setting {
        threads: 3,
        rows: 64,
        chunk: 64,
        memory: Memory::PerStep,
        padding: PaddingPolicy::PadToLongest,
        batching: BatchingPolicy::Blocking,
        prefix: PrefixPolicy::Recompute,
        sampling: SamplingPolicy::AlwaysSample,
        ..together
    };
    subject.check(&baseline, &[3, 2, 1, 0]).unwrap();
}

/// Weights made up from their role and place, in any format.
struct MadeUp(ModelSpec);

impl Weights for MadeUp {
    fn shape(&self, role: Role) -> (usize, usize) {
        self.0.shape(role)
    }
    fn encoding(&self, _: Role) -> Encoding {
        Format::F32.into()
    }
    fn read(
        &self,
        role: Role,
        rows: Range<usize>,
        format: Format,
        out: &mut Vec<u8>,
    ) -> Result<(), ModelError> {
        let (_, columns) = self.shape(role);
        for row in rows {
            let mut random = common::Random::new(row as u64, &format!("{role:?}"));
            let value = |random: &mut common::Random| match model::is_matrix(role) {
                true if role == Role::TokenEmbedding => random.normal(),
                true => 1.5 * random.normal() / (columns as f32).sqrt(),
                false if format!("{role:?}").contains("Bias") => 0.5 * random.normal(),
                // A state that grew from position to position would end as no number.
                false if matches!(role, Role::DeltaDecay(_)) => -random.normal().abs(),
                false => 1.0 + 0.3 * random.normal(),
            };
            let values: Vec<f32> = (0..columns).map(|_| value(&mut random)).collect();
            format.encode(&values, out);
        }
        Ok(())
    }
}

/// Blueprints that between them have everything that llama has not.
// A table, an entry a case.
#[allow(clippy::too_many_lines)]
fn kinds() -> Vec<(&'static str, ModelSpec)> {
    let sizes = Plain {
        layers: 3,
        hidden: 96,
        ffn: 160,
        heads: 6,
        kv_heads: 2,
        head_dim: 32,
        vocab: 301,
        context: 2048,
        theta: 1e4,
        epsilon: 1e-6,
    };
    let base = ModelSpec { tied_embeddings: false, ..ModelSpec::plain(sizes) };
    let gelu = Ffn::Gated {
        width: 160,
        activation: Activation::GeluTanh,
        input_bias: false,
        output_bias: false,
    };
    let mut gemma = ModelSpec { embedding_scale: 9.8, logit_softcap: Some(30.0), ..base.clone() };
    gemma.ropes.push(Rope { factors: vec![8.0; 16], ..Rope::plain(1e6, 32) });
    // Some of the requests are longer than that, and run beside shorter ones.
    gemma.ropes[0].long = Some(LongRope { above: 60, factors: vec![3.0; 16], magnitude: 1.2 });
    for (i, layer) in gemma.layers.iter_mut().enumerate() {
        (layer.ffn, layer.norms) = (gelu, Norms::Both);
        let attention = layer.attention_mut().unwrap();
        attention.qk_norm = Some(QkNorm::PerHead);
        attention.softcap = Some(20.0);
        (attention.window, attention.rope) =
            if i == 1 { (None, Some(1)) } else { (Some(21), Some(0)) };
    }
    let mut olmo = base.clone();
    for layer in &mut olmo.layers {
        layer.norms = Norms::After;
        layer.attention_mut().unwrap().qk_norm = Some(QkNorm::Whole);
        layer.attention_mut().unwrap().sinks = true;
    }
    olmo.layers[2].attention_mut().unwrap().rope = None;
    let mut starcoder = ModelSpec { output_bias: true, logit_scale: 0.5, ..base.clone() };
    starcoder.norm = Norm { kind: NormKind::Layer, bias: true, ..starcoder.norm };
    for (layer, norms) in
        starcoder.layers.iter_mut().zip([Norms::Before, Norms::Parallel, Norms::ParallelApart])
    {
        layer.norms = norms;
        layer.ffn = Ffn::Plain {
            width: 160,
            activation: Activation::Gelu,
            input_bias: true,
            output_bias: true,
        };
        let attention = layer.attention_mut().unwrap();
        (attention.qkv_bias, attention.output_bias, attention.window) = (true, true, Some(70));
    }
    let mut granite =
        ModelSpec { query_growth: Some(QueryGrowth { beta: 0.3, original: 16 }), ..base.clone() };
    for layer in &mut granite.layers {
        layer.residual_scale = 0.4;
        layer.attention_mut().unwrap().qk_norm = Some(QkNorm::PerHeadRotated);
        layer.ffn = Ffn::Gated {
            width: 160,
            activation: Activation::Silu,
            input_bias: true,
            output_bias: false,
        };
    }
    let mixture = Mixture {
        experts: 6,
        used: 2,
        width: 64,
        activation: Activation::Silu,
        routing: Routing::Softmax,
        normalized: true,
        scale: 1.0,
        router_bias: false,
        choice_bias: false,
        biases: false,
        shared: Some(Shared { width: 96, gate: true }),
    };
    // Layers with other numbers of heads, dense ones among those with experts, experts with biases.
    let mut experts = base.clone();
    for (i, layer) in experts.layers.iter_mut().enumerate().filter(|(i, _)| *i != 1) {
        let clamped = Activation::Clamped { limit: 2.0, alpha: 1.7 };
        let other = Mixture {
            activation: clamped,
            biases: true,
            router_bias: true,
            shared: None,
            ..mixture
        };
        layer.ffn = Ffn::Mixture(if i == 0 { mixture } else { other });
        let attention = layer.attention_mut().unwrap();
        (attention.heads, attention.kv_heads, attention.sinks) = (4 + 4 * i, 4, true);
    }
    let mut lfm = base.clone();
    lfm.layers[0].mixer = Mixer::Convolution(Convolution { taps: 3, bias: false });
    lfm.layers[2].mixer = Mixer::Convolution(Convolution { taps: 4, bias: true });
    lfm.layers[2].ffn = Ffn::Mixture(Mixture {
        routing: Routing::Sigmoid,
        choice_bias: true,
        shared: None,
        ..mixture
    });
    let mut qwen = base.clone();
    let net = DeltaNet {
        key_heads: 2,
        value_heads: 4,
        key_dim: 24,
        value_dim: 32,
        taps: 4,
        tiled: false,
    };
    qwen.layers[0].mixer = Mixer::DeltaNet(net);
    let attention = qwen.layers[1].attention_mut().unwrap();
    (attention.gate, attention.qk_norm) = (true, Some(QkNorm::PerHead));
    qwen.layers[2].mixer = Mixer::DeltaNet(DeltaNet { tiled: true, key_heads: 1, ..net });
    vec![
        ("experts", experts),
        ("lfm", lfm),
        ("qwen", qwen),
        ("gemma", gemma),
        ("olmo", olmo),
        ("starcoder", starcoder),
        ("granite", granite),
    ]
}

#[test]
fn every_kind_of_layer_gives_the_same_bits_in_every_mixture() {
    let some: Vec<Ids> = prompts().into_iter().step_by(2).collect();
    for (name, spec) in kinds() {
        let weights = Box::new(MadeUp(spec.clone()));
        let (name_of, path, digest) = (name.to_string(), Default::default(), String::new());
        let model =
            Model { name: name_of, path, digest, spec, vocabulary: Vocabulary::default(), weights };
        for plan in [
            FormatPlan::All(Format::F32),
            FormatPlan::All(Format::Q8_0),
            FormatPlan::WidenedBf16Emulated,
        ] {
            let packed = Arc::new(PackedModel::pack(&model, plan, 2).unwrap());
            let subject = Subject::new(
                name,
                HashMap::from([(plan, packed)]),
                &[plan],
                &some,
                10,
                Setting::alone(plan),
            );
            mixtures(&subject, 4);
        }
    }
}

/// Choices with shared beginnings, one of a single token, one longer than the rows of a step.
fn choices() -> Vec<Ids> {
    let end = 9;
    vec![
        vec![5, 6, 7, end],
        vec![5, 6, 8, end],
        vec![end],
        ids(20, 3, 3),
        vec![5, 6, end],
        vec![41, end],
    ]
}

/// ln of the probability that these scores give a token.
fn log_probability(scores: &[f32], token: u32) -> f64 {
    let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = scores.iter().map(|s| f64::from(s - best).exp()).sum();
    f64::from(scores[token as usize] - best) - total.ln()
}

#[test]
fn choices_after_a_prompt_have_the_scores_of_prompt_and_choice_alone_also_where_layers_have_a_state()
 {
    let prompts: Vec<Ids> =
        [1, 16, 40, 48, 65].iter().enumerate().map(|(i, len)| ids(*len, 0, i as u32)).collect();
    for (name, spec) in
        kinds().into_iter().filter(|(name, _)| ["lfm", "qwen", "olmo"].contains(name))
    {
        let weights = Box::new(MadeUp(spec.clone()));
        let (name_of, path, digest) = (name.to_string(), Default::default(), String::new());
        let model =
            Model { name: name_of, path, digest, spec, vocabulary: Vocabulary::default(), weights };
        let plan = FormatPlan::All(Format::F32);
        let models = HashMap::from([(plan, Arc::new(PackedModel::pack(&model, plan, 2).unwrap()))]);
        let scored = |i: usize, prompt: &Ids| {
            let texts = choices().iter().map(|tokens| format!("{tokens:?}")).collect();
            let choices = Some(Arc::new(Choices { texts, tokens: choices() }));
            let longest = choices.as_ref().map_or(0, |c| c.longest());
            Request {
                ticket: i as u64,
                prompt: prompt.as_slice().into(),
                max_tokens: longest + 1,
                sampling: Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 },
                stop: Arc::new(StopRules {
                    eos: false,
                    strings: vec![],
                    sentence: false,
                    repetition: false,
                }),
                extras: Arc::new(Extras { choices, ..Extras::default() }),
            }
        };
        let requests: Vec<Request> =
            prompts.iter().enumerate().map(|(i, prompt)| scored(i, prompt)).collect();
        let alone = Setting { pages: 64, rows: 128, chunk: 128, ..Setting::alone(plan) };
        // A decoder that is given prompt and choice as one prompt.
        let plain = |prompt: &Ids, choice: &Ids| -> f64 {
            let mut decoder = alone.decoder(&models);
            let all = [&prompt[..], &choice[..choice.len() - 1]].concat();
            let slot = decoder.open(&all, all.len(), false).unwrap().slot;
            let (logits, tokens) = (llmopt::decoder::LogitsRequest::AllLogits, 0..all.len());
            let segment = llmopt::decoder::Segment {
                slot,
                start: 0,
                tokens,
                logits,
                padding_rows: 0,
                padded_context: 0,
            };
            let mut outputs = Vec::new();
            decoder
                .forward(&Batch { tokens: all.clone(), segments: vec![segment] }, &mut outputs)
                .unwrap();
            let LogitsOutput::Logits(scores) = &outputs[0] else {
                panic!("all scores were asked for")
            };
            let rows: Vec<&[f32]> = scores.chunks_exact(301).skip(prompt.len() - 1).collect();
            rows.iter().zip(choice).map(|(row, token)| log_probability(row, *token)).sum()
        };
        let expected: Vec<Vec<f64>> =
            prompts.iter().map(|p| choices().iter().map(|c| plain(p, c)).collect()).collect();
        let mut first: Option<Vec<Vec<(String, f64)>>> = None;
        for setting in [
            alone.clone(),
            Setting {
                threads: 2,
                slots: 3,
                rows: 7,
                batch: 3,
                chunk: 7,
                prefix: PrefixPolicy::Share,
                ..alone.clone()
            },
            Setting {
                threads: 3,
                slots: 5,
                rows: 64,
                batch: 5,
                chunk: 5,
                memory: Memory::PerStep,
                ..alone.clone()
            },
            Setting {
                batching: BatchingPolicy::Blocking,
                padding: PaddingPolicy::PadToLongest,
                slots: 2,
                batch: 2,
                ..alone.clone()
            },
        ] {
            let (done, _) = setting.complete(&models, &requests);
            let sums: Vec<_> =
                done.into_iter().map(|completion| completion.choices.unwrap()).collect();
            for ((expected, sums), prompt) in expected.iter().zip(&sums).zip(&prompts) {
                for (plain, (choice, sum)) in expected.iter().zip(sums) {
                    let off = (sum - plain).abs();
                    assert!(
                        off < 1e-4 * plain.abs().max(1.0),
                        "{name}: {choice} after {}: {sum} and {plain}",
                        prompt.len()
                    );
                }
            }
            let first = first.get_or_insert_with(|| sums.clone());
            assert_eq!(*first, sums, "{name}: the same bits in {setting:?}");
        }
    }
}

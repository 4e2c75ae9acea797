//! The engine over a decoder without weights: every mix of requests and policies gives each request what it gets alone.

use super::stopping::tests::{Ascii, rules};
use super::*;
use crate::decoder::fake::FakeDecoder;
use crate::decoder::{Batch, Capacity, DecodeError, LogitsRequest};
use crate::text::{Constraint, Grammars, Words};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

const VOCAB: usize = 40;

fn config() -> EngineConfig {
    EngineConfig {
        sampling: SamplingPolicy::GreedyBelow(0.3),
        stopping: StoppingPolicy::Early,
        padding: PaddingPolicy::Ragged,
        batching: BatchingPolicy::Continuous,
        prefix: PrefixPolicy::Recompute,
        batch: 4,
        chunk: 16,
        eos: [0].into(),
        fast_forward: true,
        mask_threads: 1,
    }
}

fn capacity(slots: usize, positions: usize, rows: usize) -> Capacity {
    Capacity { slots, positions, rows }
}

fn engine(decoder: FakeDecoder, config: EngineConfig) -> Engine {
    Engine::new(Box::new(decoder), config, Box::new(|| Box::new(Ascii)))
}

fn request(ticket: Ticket, prompt: &[TokenId], max_tokens: usize, temperature: f32) -> Request {
    Request {
        ticket,
        prompt: prompt.into(),
        max_tokens,
        sampling: Sampling { temperature, top_p: 0.9, top_k: 7, seed: 3 },
        stop: rules(&[], true, true, true),
        extras: Arc::default(),
    }
}

type Outcome = Result<Completion, String>;

/// Runs until nothing is left; what became of each ticket.
fn drain(engine: &mut Engine) -> Result<BTreeMap<Ticket, Outcome>, DecodeError> {
    let mut outcomes = BTreeMap::new();
    let mut tokens: BTreeMap<Ticket, Vec<TokenId>> = BTreeMap::new();
    let mut events = Vec::new();
    let mut steps = 0;
    while engine.in_flight() + engine.queue_len() > 0 {
        engine.step(&mut events)?;
        steps += 1;
        assert!(steps < 100_000, "no progress");
    }
    for event in events {
        let ended = match event {
            Event::Admitted { ticket, .. } => {
                assert!(tokens.insert(ticket, Vec::new()).is_none(), "admitted twice");
                None
            }
            Event::Token { ticket, token } => {
                tokens.get_mut(&ticket).expect("admitted before its tokens").push(token);
                None
            }
            Event::Finished { ticket, completion } => {
                assert_eq!(
                    tokens[&ticket], completion.tokens,
                    "the tokens told are the tokens of the completion"
                );
                Some((ticket, Ok(completion)))
            }
            Event::Failed { ticket, message, .. } => Some((ticket, Err(message))),
        };
        if let Some((ticket, outcome)) = ended {
            assert!(outcomes.insert(ticket, outcome).is_none(), "ended twice");
        }
    }
    assert_eq!(engine.decoder().used_positions().0, 0, "every sequence was closed");
    Ok(outcomes)
}

fn alone(request: &Request, trouble: Option<TokenId>) -> Outcome {
    let mut decoder = FakeDecoder::new(VOCAB, capacity(1, 2048, 256));
    if let Some(token) = trouble {
        decoder = decoder.not_finite_after(token);
    }
    let mut engine = engine(decoder, config());
    engine.submit(request.clone());
    drain(&mut engine).unwrap().remove(&request.ticket).unwrap()
}

#[derive(Debug, Clone)]
struct Mix {
    requests: Vec<Request>,
    batch: usize,
    chunk: usize,
    slots: usize,
    rows: usize,
    pages: usize,
    padding: PaddingPolicy,
    batching: BatchingPolicy,
    prefix: PrefixPolicy,
    whole_vocabulary: bool,
    fast_forward: bool,
    mask_threads: usize,
    trouble: Option<TokenId>,
    /// Steps between submissions.
    gaps: Vec<usize>,
}

/// Tokens 1 to 30 are short texts, some the beginning of others; 0 ends an answer.
const TEXTS: [&str; 31] = [
    "", "{", "}", "\"", ":", ",", "[", "]", "a", "b", "ab", "0", "1", "2", "12", "{\"", "\":",
    "\"}", "name", "na", "me", "\"name", "true", "false", "tr", "ue", "-", ".", "yes", "no", "<",
];

/// Grammars over those.
fn grammars() -> &'static Grammars {
    static GRAMMARS: OnceLock<Grammars> = OnceLock::new();
    GRAMMARS.get_or_init(|| {
        Grammars::new(|| {
            let bytes = TEXTS
                .iter()
                .map(|text| text.as_bytes().to_vec())
                .chain((TEXTS.len()..VOCAB).map(|_| Vec::new()));
            // The longest token first, which is one spelling for each text.
            let encode = |text: &str| {
                let (mut ids, mut rest) = (Vec::new(), text);
                while !rest.is_empty() {
                    let fitting = (1..TEXTS.len())
                        .filter(|id| rest.starts_with(TEXTS[*id]))
                        .max_by_key(|id| TEXTS[*id].len());
                    let Some(id) = fitting else { break };
                    ids.push(id as TokenId);
                    rest = &rest[TEXTS[id].len()..];
                }
                ids
            };
            Words { bytes: bytes.collect(), eos: vec![0], encode: Box::new(encode) }
        })
    })
}

/// Forms of answers: none, and some with forced text at every place.
fn constraint(kind: usize) -> Option<Constraint> {
    match kind {
        0 => Some(Constraint::Schema(r#"{"properties": {"name": {"type": "boolean"}, "a": {"type": "array", "items": {"type": "integer"}}}, "required": ["name", "a"]}"#.into())),
        1 => Some(Constraint::Regex("(ab|ba|name)+<[0-2]{2,4}".into())),
        2 => Some(Constraint::OneOf(vec!["yes".into(), "no".into(), "name".into()])),
        3 => Some(Constraint::Lark("start: item (\",\" item)*\nitem: \"[\" (item | \"ab\" | /[012]+/) \"]\"\n".into())),
        _ => None,
    }
}

/// What requests ask for besides, one kind after the other.
fn extras(kind: usize) -> Arc<Extras> {
    let grammar = constraint(kind % 6).map(|c| grammars().compile(&c).unwrap());
    let thought = Thought {
        open: "\u{1e}".into(),
        close: "\u{2}".into(),
        opened: kind % 5 == 1,
        open_tokens: vec![30],
        close_tokens: vec![],
    };
    let texts = vec!["a".into(); 5];
    let choices = Choices {
        texts,
        tokens: vec![
            vec![8, 9, 10, 0],
            vec![8, 9, 0],
            vec![8, 9, 10, 11, 12, 0],
            vec![7, 0],
            vec![8, 31, 0],
        ],
    };
    Arc::new(Extras {
        penalties: if kind % 4 == 1 {
            Penalties { presence: 0.5, frequency: 0.3, repetition: 1.2 }
        } else {
            Penalties::default()
        },
        min_p: if kind.is_multiple_of(3) { 0.05 } else { 0.0 },
        logprobs: (kind % 7 == 2).then_some(2),
        constraint: grammar,
        thought: (kind % 5 < 2).then(|| Arc::new(thought)),
        choices: (kind % 11 == 3).then(|| Arc::new(choices)),
    })
}

fn one_request() -> impl Strategy<Value = Request> {
    let sampling = (
        prop_oneof![Just(0.0f32), Just(0.2), Just(0.9)],
        prop_oneof![Just(0usize), Just(5)],
        0u64..3,
    );
    (0u32..3, 1usize..60, 1usize..20, sampling, 0usize..420).prop_map(
        |(family, len, max_tokens, (temperature, top_k, seed), kind)| Request {
            ticket: 0,
            prompt: (0..len as u32)
                .map(|i| if i < 24 { i % 30 + 1 } else { (i * 7 + family) % 30 + 1 })
                .collect(),
            max_tokens: if kind % 11 == 3 { 6 } else { max_tokens },
            sampling: Sampling { temperature, top_p: 0.8, top_k, seed },
            stop: rules(&["!"], true, true, true),
            extras: extras(kind),
        },
    )
}

fn mix() -> impl Strategy<Value = Mix> {
    let policies = (
        prop_oneof![Just(PaddingPolicy::Ragged), Just(PaddingPolicy::PadToLongest)],
        prop_oneof![Just(BatchingPolicy::Continuous), Just(BatchingPolicy::Blocking)],
        prop_oneof![Just(PrefixPolicy::Recompute), Just(PrefixPolicy::Share)],
        any::<bool>(),
        any::<bool>(),
        0usize..3,
    );
    let sizes = (1usize..7, 1usize..40, 1usize..7, 1usize..64, 5usize..30);
    let trouble = prop_oneof![3 => Just(None), 1 => (1u32..40).prop_map(Some)];
    (prop::collection::vec((one_request(), 0usize..4), 1..10), policies, sizes, trouble).prop_map(
        |(
            requests,
            (padding, batching, prefix, whole_vocabulary, fast_forward, mask_threads),
            (batch, chunk, slots, rows, pages),
            trouble,
        )| {
            let (mut requests, gaps): (Vec<Request>, Vec<usize>) = requests.into_iter().unzip();
            requests.iter_mut().enumerate().for_each(|(i, r)| r.ticket = i as Ticket + 10);
            // Below 0.3 the two sampling policies are meant to differ.
            if whole_vocabulary {
                requests
                    .iter_mut()
                    .filter(|r| r.sampling.temperature == 0.2)
                    .for_each(|r| r.sampling.temperature = 0.0);
            }
            // A row that is not scored does not show that its scores are not finite.
            let fast_forward = fast_forward || trouble.is_some();
            Mix {
                requests,
                batch,
                chunk,
                slots,
                rows,
                pages,
                padding,
                batching,
                prefix,
                whole_vocabulary,
                fast_forward,
                mask_threads,
                trouble,
                gaps,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn every_mix_gives_each_request_what_it_gets_alone(mix in mix()) {
        let mut decoder = FakeDecoder::new(VOCAB, capacity(mix.slots, mix.pages * 16, mix.rows));
        if let Some(token) = mix.trouble {
            decoder = decoder.not_finite_after(token);
        }
        let log = decoder.log();
        let sampling = if mix.whole_vocabulary { SamplingPolicy::AlwaysSample } else { SamplingPolicy::GreedyBelow(0.3) };
        let config = EngineConfig {
            sampling, padding: mix.padding, batching: mix.batching, prefix: mix.prefix, batch: mix.batch, chunk: mix.chunk,
            fast_forward: mix.fast_forward, mask_threads: mix.mask_threads, ..config()
        };
        let mut engine = engine(decoder, config);
        let mut events = Vec::new();
        let (first, rest) = mix.requests.split_at(mix.requests.len() / 2);
        first.iter().for_each(|r| engine.submit(r.clone()));
        let mut early = BTreeMap::new();
        for (request, gap) in rest.iter().zip(&mix.gaps) {
            for _ in 0..*gap {
                engine.step(&mut events).unwrap();
            }
            engine.submit(request.clone());
        }
        while engine.in_flight() + engine.queue_len() > 0 {
            engine.step(&mut events).unwrap();
        }
        for event in events {
            match event {
                Event::Finished { ticket, completion } => prop_assert!(early.insert(ticket, Ok(completion)).is_none()),
                Event::Failed { ticket, message, .. } => prop_assert!(early.insert(ticket, Err(message)).is_none()),
                _ => {}
            }
        }
        prop_assert_eq!(engine.in_flight() + engine.queue_len(), 0);
        for request in &mix.requests {
            let got = &early[&request.ticket];
            let needs = request.prompt.len() + request.max_tokens - 1;
            let spare = request.extras.choices.as_ref().map_or(0, |choices| choices.spare(request.prompt.len(), false));
            if needs.div_ceil(16) + spare / 16 > mix.pages {
                prop_assert!(got.as_ref().unwrap_err().contains("--kv-memory"), "{:?}", got);
            } else {
                prop_assert_eq!(got, &alone(request, mix.trouble));
            }
        }
        for batch in log.lock().unwrap().iter() {
            let rows: usize = batch.segments.iter().map(|s| s.tokens.len() + s.padding_rows).sum();
            prop_assert!(rows <= mix.rows.min(mix.chunk.max(mix.batch)));
            if mix.padding == PaddingPolicy::Ragged {
                prop_assert!(batch.segments.iter().all(|s| s.padding_rows == 0 && s.padded_context == 0), "no work on padding");
            }
        }
    }
}

#[test]
fn greedy_tokens_are_the_highest_scores_and_sampled_ones_are_not_always() {
    let prompt = [5, 6, 7];
    let fake = FakeDecoder::new(VOCAB, capacity(1, 64, 64));
    let mut context = prompt.to_vec();
    let mut expected = Vec::new();
    for _ in 0..10 {
        let scores = fake.scores(&context);
        let best =
            (0..VOCAB).rev().max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap() as TokenId;
        expected.push(best);
        context.push(best);
    }
    let run = |temperature: f32| {
        let mut request = request(1, &prompt, 10, temperature);
        request.stop = rules(&[], false, false, false);
        alone(&request, None).unwrap()
    };
    assert_eq!((run(0.0).tokens, run(0.2).greedy), (expected.clone(), true));
    assert_eq!(run(0.2).tokens, expected);
    assert!(run(2.0).tokens != expected && !run(2.0).greedy);
}

#[test]
fn stop_strings_and_end_tokens_end_the_request_with_their_reasons() {
    let text = |s: &str| s.bytes().map(u32::from).collect::<Vec<_>>();
    let fake = FakeDecoder::new(128, capacity(4, 256, 64))
        .say(&[1], &text("yes STOP no"))
        .say(&[2], &[104, 105, 0]);
    let mut engine = engine(fake, config());
    let mut with_string = request(1, &[1], 30, 0.0);
    with_string.stop = rules(&["STOP"], true, false, false);
    engine.submit(with_string);
    engine.submit(request(2, &[2], 30, 0.0));
    let outcomes = drain(&mut engine).unwrap();
    let first = outcomes[&1].clone().unwrap();
    assert_eq!(
        (first.text.as_str(), first.reason, first.tokens.len()),
        ("yes ", FinishReason::StopString, 8)
    );
    let second = outcomes[&2].clone().unwrap();
    assert_eq!(
        (second.text.as_str(), second.reason, second.tokens.as_slice()),
        ("hi\0", FinishReason::Stop, &[104, 105, 0][..])
    );
}

#[test]
fn a_blocking_batch_ends_before_the_next_begins_and_a_continuous_one_refills() {
    let most_together_with_the_third = |batching| {
        let fake = FakeDecoder::new(VOCAB, capacity(2, 512, 64));
        let log = fake.log();
        let mut engine = engine(
            fake,
            EngineConfig {
                batching,
                batch: 2,
                stopping: StoppingPolicy::MaxTokensOnly,
                ..config()
            },
        );
        engine.submit(request(1, &[1, 2], 2, 0.0));
        engine.submit(request(2, &[1, 3], 9, 0.0));
        engine.submit(request(3, &[1, 4], 9, 0.0));
        drain(&mut engine).unwrap();
        let log = log.lock().unwrap();
        let third = log
            .iter()
            .position(|b| b.tokens.contains(&4) && b.segments.iter().any(|s| s.start == 0))
            .unwrap();
        (third, log[third].segments.len())
    };
    assert_eq!(most_together_with_the_third(BatchingPolicy::Continuous), (2, 2));
    assert_eq!(most_together_with_the_third(BatchingPolicy::Blocking), (9, 1));
}

/// Batches of an engine whose three prompts have 3, 10 and 5 tokens and answers of 2, 6 and 4.
fn padded(batching: BatchingPolicy) -> Vec<Batch> {
    let fake = FakeDecoder::new(VOCAB, capacity(4, 512, 64));
    let log = fake.log();
    let padding = PaddingPolicy::PadToLongest;
    let config = EngineConfig {
        batching,
        padding,
        chunk: 64,
        stopping: StoppingPolicy::MaxTokensOnly,
        ..config()
    };
    let mut engine = engine(fake, config);
    engine.submit(request(1, &[1; 3], 2, 0.0));
    engine.submit(request(2, &[2; 10], 6, 0.0));
    engine.submit(request(3, &[3; 5], 4, 0.0));
    drain(&mut engine).unwrap();
    log.lock().unwrap().clone()
}

#[test]
fn with_the_mask_off_prefills_are_padded_and_decode_rows_score_the_longest_context() {
    let batches = padded(BatchingPolicy::Continuous);
    let prefill: Vec<_> =
        batches[0].segments.iter().map(|s| (s.tokens.len(), s.padding_rows)).collect();
    assert_eq!(prefill, [(3, 7), (10, 0), (5, 5)]);
    assert!(batches[1].segments.iter().all(|s| s.padded_context == 11 && s.padding_rows == 0));
    assert_eq!(batches[2].segments.len(), 2, "the finished row is dropped");
    assert!(batches.last().unwrap().segments.iter().all(|s| s.padding_rows == 0));
}

#[test]
fn with_mask_and_queue_off_finished_rows_are_computed_until_the_batch_ends() {
    let batches = padded(BatchingPolicy::Blocking);
    assert_eq!(batches.len(), 6);
    for batch in &batches[1..] {
        assert_eq!(
            batch.segments.iter().map(|s| s.tokens.len() + s.padding_rows).sum::<usize>(),
            3
        );
    }
    assert_eq!(batches[5].segments.iter().filter(|s| s.padding_rows == 1).count(), 2);
}

#[test]
fn the_form_of_scores_asked_for_follows_the_sampling_policy() {
    let asked = |sampling, temperature| {
        let fake = FakeDecoder::new(VOCAB, capacity(1, 64, 64));
        let log = fake.log();
        let mut engine = engine(fake, EngineConfig { sampling, ..config() });
        engine.submit(request(1, &[1, 2], 1, temperature));
        drain(&mut engine).unwrap();
        log.lock().unwrap()[0].segments[0].logits
    };
    assert_eq!(asked(SamplingPolicy::AlwaysSample, 0.0), LogitsRequest::Logits);
    assert_eq!(asked(SamplingPolicy::AlwaysSample, 0.2), LogitsRequest::Logits);
    assert_eq!(asked(SamplingPolicy::GreedyBelow(0.3), 0.2), LogitsRequest::Argmax);
    assert_eq!(asked(SamplingPolicy::GreedyBelow(0.3), 0.5), LogitsRequest::TopK(7));
}

#[test]
fn shared_beginnings_run_once() {
    let prompt =
        |last: u32| -> Vec<TokenId> { (0..40).map(|i| i % 30 + 1).chain([last]).collect() };
    let rows = |prefix| {
        let fake = FakeDecoder::new(VOCAB, capacity(4, 1024, 256));
        let log = fake.log();
        let mut engine = engine(fake, EngineConfig { prefix, chunk: 256, ..config() });
        (1..=3).for_each(|i| engine.submit(request(i, &prompt(i as u32), 1, 0.0)));
        drain(&mut engine).unwrap();
        let log = log.lock().unwrap();
        (log.len(), log[0].tokens.len())
    };
    assert_eq!(rows(PrefixPolicy::Recompute), (1, 123));
    assert_eq!(rows(PrefixPolicy::Share), (1, 41 + 9 + 9));
}

#[test]
fn a_failing_prefill_does_not_take_those_with_it_that_count_on_its_pages() {
    // The first prompt's last token is the trouble; the others share two of its pages and are opened before it has run.
    let prompt =
        |last: u32| -> Vec<TokenId> { (0..40).map(|i| i % 30 + 1).chain([last]).collect() };
    let fake = FakeDecoder::new(VOCAB, capacity(4, 1024, 64)).not_finite_after(35);
    let mut engine =
        engine(fake, EngineConfig { prefix: PrefixPolicy::Share, chunk: 64, ..config() });
    for (ticket, last) in [(1, 35), (2, 36), (3, 37)] {
        engine.submit(request(ticket, &prompt(last), 1, 0.0));
    }
    let outcomes = drain(&mut engine).unwrap();
    assert!(outcomes[&1].as_ref().unwrap_err().contains("not a finite number"));
    for (ticket, last) in [(2, 36), (3, 37)] {
        assert_eq!(outcomes[&ticket], alone(&request(ticket, &prompt(last), 1, 0.0), None));
    }
}

#[test]
fn a_panic_in_the_decoder_is_an_error_and_the_engine_stays_down() {
    let mut engine = engine(FakeDecoder::new(VOCAB, capacity(2, 64, 64)).panic_at(9), config());
    engine.submit(request(1, &[8, 9], 3, 0.0));
    let error = drain(&mut engine).unwrap_err().to_string();
    assert!(error.contains("told to panic"), "{error}");
    assert!(engine.step(&mut Vec::new()).is_err());
}

#[test]
fn cancelling_gives_the_tickets_and_every_position_back() {
    let fake = FakeDecoder::new(VOCAB, capacity(2, 512, 8));
    let mut engine =
        engine(fake, EngineConfig { batch: 2, prefix: PrefixPolicy::Share, chunk: 8, ..config() });
    (1..=5).for_each(|i| engine.submit(request(i, &[7; 40], 20, 0.0)));
    let mut events = Vec::new();
    engine.step(&mut events).unwrap();
    assert_eq!((engine.in_flight(), engine.queue_len()), (2, 3));
    assert_eq!(engine.cancel_queued(), [3, 4, 5]);
    assert_eq!(engine.cancel_all(), [1, 2]);
    assert_eq!(engine.decoder().used_positions(), (0, 0));
    engine.submit(request(9, &[7; 40], 3, 0.0));
    assert_eq!(drain(&mut engine).unwrap()[&9], alone(&request(9, &[7; 40], 3, 0.0), None));
}

#[test]
fn observers_see_the_stages_and_how_the_rows_of_a_pass_divide() {
    #[derive(Clone, Default)]
    struct Notes(Arc<Mutex<Vec<(Stage, usize, usize)>>>);
    impl Observer for Notes {
        fn begin(&mut self, _: Stage) {}
        fn end(&mut self, stage: Stage, prefill_rows: usize, decode_rows: usize) {
            self.0.lock().unwrap().push((stage, prefill_rows, decode_rows));
        }
    }
    let notes = Notes::default();
    let mut engine = engine(FakeDecoder::new(VOCAB, capacity(2, 128, 64)), config());
    engine.observe(Box::new(notes.clone()));
    engine.submit(Request {
        stop: rules(&[], false, false, false),
        ..request(1, &[1, 2, 3], 2, 0.0)
    });
    drain(&mut engine).unwrap();
    let expected = [
        (Stage::Prefill, 3, 0),
        (Stage::Sample, 0, 0),
        (Stage::Detokenize, 0, 0),
        (Stage::Decode, 0, 1),
        (Stage::Sample, 0, 0),
        (Stage::Detokenize, 0, 0),
    ];
    assert_eq!(*notes.0.lock().unwrap(), expected);
}

#[test]
fn a_constrained_answer_has_its_form_and_forced_text_takes_no_steps_of_its_own() {
    let steps = |fast_forward: bool, mask_threads: usize| {
        let fake = FakeDecoder::new(VOCAB, capacity(4, 512, 64));
        let log = fake.log();
        let mut engine = engine(fake, EngineConfig { fast_forward, mask_threads, ..config() });
        for (ticket, kind) in [0, 1, 2, 3].into_iter().enumerate() {
            let grammar = grammars().compile(&constraint(kind).unwrap()).unwrap();
            let extras = Extras { constraint: Some(grammar), ..Extras::default() };
            let stop = rules(&[], true, false, false);
            engine.submit(Request {
                extras: Arc::new(extras),
                stop,
                ..request(ticket as Ticket, &[1, 2, 3], 60, 0.9)
            });
        }
        let outcomes = drain(&mut engine).unwrap();
        (outcomes, log.lock().unwrap().len())
    };
    let (outcomes, with) = steps(true, 1);
    let text = |ticket: Ticket| -> String {
        outcomes[&ticket].as_ref().unwrap().tokens.iter().map(|id| TEXTS[*id as usize]).collect()
    };
    for ticket in 0..4 {
        let completion = outcomes[&ticket].as_ref().unwrap();
        assert!(
            !completion.incomplete && completion.reason == FinishReason::Stop,
            "{completion:?}: {}",
            text(ticket)
        );
    }
    let value: serde_json::Value = serde_json::from_str(&text(0)).unwrap();
    assert!(value["name"].is_boolean() && value["a"].is_array(), "{value}");
    assert!(
        text(1).contains('<')
            && ["yes", "no", "name"].contains(&text(2).as_str())
            && text(3).starts_with('[')
    );
    let (slow, without) = steps(false, 0);
    assert_eq!(outcomes, slow, "the same answers");
    assert!(with < without, "{with} and {without} steps");
}

#[test]
fn an_answer_cut_before_its_form_is_complete_says_so() {
    for (limit, incomplete) in [(3, true), (60, false)] {
        let mut engine = engine(FakeDecoder::new(VOCAB, capacity(4, 512, 64)), config());
        let grammar = grammars().compile(&constraint(0).unwrap()).unwrap();
        let extras = Arc::new(Extras { constraint: Some(grammar), ..Extras::default() });
        engine.submit(Request { extras, ..request(1, &[1, 2, 3], limit, 0.9) });
        let completion = drain(&mut engine).unwrap().remove(&1).unwrap().unwrap();
        assert_eq!(
            (completion.incomplete, completion.reason == FinishReason::Length),
            (incomplete, incomplete)
        );
    }
}

#[test]
fn a_form_begins_where_the_thought_ends() {
    // The model opens a thought, thinks two tokens, closes it, and then wants to say 5 for ever.
    let prompt = [1, 2, 3];
    let fake =
        FakeDecoder::new(VOCAB, capacity(4, 512, 64)).say(&prompt, &[30, 20, 21, 2, 5, 5, 5, 5]);
    let mut engine = engine(fake, config());
    let grammar = grammars().compile(&Constraint::OneOf(vec!["yes".into(), "no".into()])).unwrap();
    let thought = Thought {
        open: "\u{1e}".into(),
        close: "\u{2}".into(),
        opened: false,
        open_tokens: vec![30],
        close_tokens: vec![],
    };
    let extras =
        Extras { constraint: Some(grammar), thought: Some(Arc::new(thought)), ..Extras::default() };
    engine.submit(Request { extras: Arc::new(extras), ..request(1, &prompt, 60, 0.0) });
    let completion = drain(&mut engine).unwrap().remove(&1).unwrap().unwrap();
    assert_eq!(completion.tokens[..4], [30, 20, 21, 2]);
    assert!(
        [28, 29].contains(&completion.tokens[4]) && completion.tokens.len() == 5,
        "{completion:?}"
    );
    assert_eq!(completion.reasoning.as_deref(), Some("\u{14}\u{15}"));
    assert_eq!((completion.reason, completion.incomplete), (FinishReason::Stop, false));
}

#[test]
fn thoughts_are_told_from_answers_wherever_they_begin_and_end() {
    let run = |opened: bool, said: &[TokenId]| {
        let fake = FakeDecoder::new(VOCAB, capacity(4, 512, 64)).say(&[1], said);
        let mut engine = engine(fake, config());
        let thought = Thought {
            open: "\u{1e}\u{1f}".into(),
            close: "\u{2}".into(),
            opened,
            open_tokens: vec![30, 31],
            close_tokens: vec![],
        };
        let extras = Arc::new(Extras { thought: Some(Arc::new(thought)), ..Extras::default() });
        let stop = rules(&["\u{14}"], true, true, true);
        engine.submit(Request { extras, stop, ..request(1, &[1], said.len(), 0.0) });
        let done = drain(&mut engine).unwrap().remove(&1).unwrap().unwrap();
        (done.reasoning, done.text, done.reason)
    };
    // A stop string does not count inside a thought; white space (10) around it belongs to nobody.
    let thought = Some("\u{14}\u{15}".to_string());
    assert_eq!(
        run(false, &[10, 30, 31, 20, 21, 2, 10, 7, 20]),
        (thought.clone(), "\u{7}".into(), FinishReason::StopString)
    );
    assert_eq!(
        run(true, &[10, 20, 21, 2, 7, 20]),
        (thought.clone(), "\u{7}".into(), FinishReason::StopString)
    );
    assert_eq!(
        run(true, &[30, 31, 20, 21, 2, 7, 20]),
        (thought.clone(), "\u{7}".into(), FinishReason::StopString)
    );
    assert_eq!(
        run(true, &[20, 21]),
        (thought.clone(), String::new(), FinishReason::Length),
        "never closed"
    );
    assert_eq!(
        run(true, &[20, 21, 0]),
        (Some("\u{14}\u{15}\0".into()), String::new(), FinishReason::Stop)
    );
    assert_eq!(
        run(false, &[7, 30, 31, 2]),
        (None, "\u{7}\u{1e}\u{1f}\u{2}".into(), FinishReason::Length),
        "too late for one"
    );
    assert_eq!(
        run(false, &[30, 7]),
        (None, "\u{1e}\u{7}".into(), FinishReason::Length),
        "half a mark is none"
    );
}

#[test]
fn a_thought_in_channels_is_told_by_their_tokens() {
    // 30 is a channel mark, 20 its name for thoughts and 21 for answers, 31 begins a message, 2 ends one and 29 begins the next.
    let run = |said: &[TokenId]| {
        let fake = FakeDecoder::new(VOCAB, capacity(4, 512, 64)).say(&[1], said);
        let mut engine = engine(fake, config());
        let (open_tokens, close_tokens) = (vec![30, 20, 31], vec![2, 29, 30, 21, 31]);
        let thought = Thought {
            open: "<open>".into(),
            close: "<close>".into(),
            opened: false,
            open_tokens,
            close_tokens,
        };
        let extras = Arc::new(Extras { thought: Some(Arc::new(thought)), ..Extras::default() });
        engine.submit(Request {
            extras,
            stop: rules(&[], true, false, false),
            ..request(1, &[1], said.len(), 0.0)
        });
        let done = drain(&mut engine).unwrap().remove(&1).unwrap().unwrap();
        (done.reasoning, done.text)
    };
    let both = |thought: &str, answer: &str| (Some(thought.to_string()), answer.to_string());
    assert_eq!(
        run(&[30, 20, 31, 14, 15, 2, 29, 30, 21, 31, 7, 8]),
        both("\u{e}\u{f}", "\u{7}\u{8}")
    );
    assert_eq!(run(&[30, 20, 31, 2, 29, 30, 21, 31, 7]), both("", "\u{7}"), "an empty thought");
    assert_eq!(run(&[30, 20, 31, 14, 15]), both("\u{e}\u{f}", ""), "never closed");
    assert_eq!(
        run(&[30, 20, 31, 14, 2, 29, 14]),
        both("\u{e}\u{2}\u{1d}\u{e}", ""),
        "half a mark closes nothing"
    );
    assert_eq!(
        run(&[30, 21, 31, 7, 8]),
        (None, "\u{7}\u{8}".into()),
        "the answer's channel at once"
    );
    assert_eq!(run(&[7, 8]), (None, "\u{7}\u{8}".into()));
}

/// Sum of log probabilities of tokens after a context, by the definition.
fn plain_sum(fake: &FakeDecoder, prompt: &[TokenId], tokens: &[TokenId]) -> f64 {
    let mut context = prompt.to_vec();
    let mut sum = 0.0;
    for &token in tokens {
        let scores = fake.scores(&context);
        let total: f64 = scores.iter().map(|s| f64::from(*s).exp()).sum();
        sum += f64::from(scores[token as usize]) - total.ln();
        context.push(token);
    }
    sum
}

#[test]
fn choices_are_scored_as_defined_and_shared_beginnings_run_once() {
    let fake = FakeDecoder::new(VOCAB, capacity(2, 512, 64));
    let log = fake.log();
    let prompt: Vec<TokenId> = (1..30).collect();
    let tokens = vec![
        vec![8, 9, 10, 0],
        vec![8, 9, 0],
        vec![8, 9, 10, 11, 12, 0],
        vec![7, 0],
        vec![8, 31, 0],
    ];
    let expected: Vec<f64> = tokens.iter().map(|t| plain_sum(&fake, &prompt, t)).collect();
    let mut engine = engine(fake, EngineConfig { chunk: 64, ..config() });
    let extras = Arc::new(Extras {
        choices: Some(Arc::new(Choices {
            texts: "a b c d e".split(' ').map(String::from).collect(),
            tokens,
        })),
        ..Extras::default()
    });
    engine.submit(Request { extras, ..request(1, &prompt, 6, 0.0) });
    let completion = drain(&mut engine).unwrap().remove(&1).unwrap().unwrap();
    assert_eq!((completion.reason, completion.tokens.len()), (FinishReason::Choice, 0));
    let sums = completion.choices.unwrap();
    let best = sums.iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert_eq!(completion.text, best.0);
    for ((_, got), expected) in sums.iter().zip(expected) {
        assert!((got - expected).abs() < 1e-5, "{got} and {expected}");
    }
    let rows: usize = log.lock().unwrap().iter().map(|batch| batch.tokens.len()).sum();
    assert_eq!(
        rows,
        prompt.len() + 7,
        "the prompt once, and 8, 9, 10, 11, 12 of the long one, 31 and 7"
    );
}

#[test]
fn log_probabilities_are_those_of_the_raw_scores_whatever_is_done_to_them() {
    let fake = FakeDecoder::new(VOCAB, capacity(2, 512, 64));
    let reference = FakeDecoder::new(VOCAB, capacity(2, 512, 64));
    let mut engine = engine(fake, config());
    let grammar = grammars().compile(&constraint(0).unwrap()).unwrap();
    let penalties = Penalties { presence: 1.0, ..Penalties::default() };
    let extras =
        Extras { constraint: Some(grammar), penalties, logprobs: Some(3), ..Extras::default() };
    let prompt = [4, 5, 6];
    engine.submit(Request { extras: Arc::new(extras), ..request(1, &prompt, 40, 0.9) });
    let completion = drain(&mut engine).unwrap().remove(&1).unwrap().unwrap();
    let scored = completion.logprobs.unwrap();
    assert_eq!(
        scored.iter().map(|s| s.token).collect::<Vec<_>>(),
        completion.tokens,
        "forced tokens too"
    );
    for (i, one) in scored.iter().enumerate() {
        let context = [&prompt[..], &completion.tokens[..i]].concat();
        assert!(
            (f64::from(one.logprob) - plain_sum(&reference, &context, &[one.token])).abs() < 1e-5
        );
        assert_eq!(one.top.len(), 3);
        assert!(one.top.iter().all(|(token, logprob)| {
            (f64::from(*logprob) - plain_sum(&reference, &context, &[*token])).abs() < 1e-5
        }));
    }
}

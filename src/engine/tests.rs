//! The engine over a decoder without weights: every mix of requests and policies gives each request what it gets alone.

use super::stopping::tests::{Ascii, rules};
use super::*;
use crate::decoder::fake::FakeDecoder;
use crate::decoder::{Batch, Capacity, DecodeError, Want};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Mutex;

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
                assert_eq!(tokens[&ticket], completion.tokens, "the tokens told are the tokens of the completion");
                Some((ticket, Ok(completion)))
            }
            Event::Failed { ticket, message } => Some((ticket, Err(message))),
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
    trouble: Option<TokenId>,
    /// Steps between submissions.
    gaps: Vec<usize>,
}

fn one_request() -> impl Strategy<Value = Request> {
    let sampling = (prop_oneof![Just(0.0f32), Just(0.2), Just(0.9)], prop_oneof![Just(0usize), Just(5)], 0u64..3);
    (0u32..3, 1usize..60, 1usize..20, sampling).prop_map(|(family, len, max_tokens, (temperature, top_k, seed))| Request {
        ticket: 0,
        prompt: (0..len as u32).map(|i| if i < 24 { i % 30 + 1 } else { (i * 7 + family) % 30 + 1 }).collect(),
        max_tokens,
        sampling: Sampling { temperature, top_p: 0.8, top_k, seed },
        stop: rules(&["!"], true, true, true),
    })
}

fn mix() -> impl Strategy<Value = Mix> {
    let policies = (
        prop_oneof![Just(PaddingPolicy::Ragged), Just(PaddingPolicy::PadToLongest)],
        prop_oneof![Just(BatchingPolicy::Continuous), Just(BatchingPolicy::Blocking)],
        prop_oneof![Just(PrefixPolicy::Recompute), Just(PrefixPolicy::Share)],
        any::<bool>(),
    );
    let sizes = (1usize..7, 1usize..40, 1usize..7, 1usize..64, 5usize..30);
    let trouble = prop_oneof![3 => Just(None), 1 => (1u32..40).prop_map(Some)];
    (prop::collection::vec((one_request(), 0usize..4), 1..10), policies, sizes, trouble).prop_map(
        |(requests, (padding, batching, prefix, whole_vocabulary), (batch, chunk, slots, rows, pages), trouble)| {
            let (mut requests, gaps): (Vec<Request>, Vec<usize>) = requests.into_iter().unzip();
            requests.iter_mut().enumerate().for_each(|(i, r)| r.ticket = i as Ticket + 10);
            // Below 0.3 the two sampling policies are meant to differ.
            if whole_vocabulary {
                requests.iter_mut().filter(|r| r.sampling.temperature == 0.2).for_each(|r| r.sampling.temperature = 0.0);
            }
            Mix { requests, batch, chunk, slots, rows, pages, padding, batching, prefix, whole_vocabulary, trouble, gaps }
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
            sampling, padding: mix.padding, batching: mix.batching, prefix: mix.prefix, batch: mix.batch, chunk: mix.chunk, ..config()
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
                Event::Failed { ticket, message } => prop_assert!(early.insert(ticket, Err(message)).is_none()),
                _ => {}
            }
        }
        prop_assert_eq!(engine.in_flight() + engine.queue_len(), 0);
        for request in &mix.requests {
            let got = &early[&request.ticket];
            let needs = request.prompt.len() + request.max_tokens - 1;
            if needs.div_ceil(16) > mix.pages {
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
        let best = (0..VOCAB).rev().max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap() as TokenId;
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
    let fake = FakeDecoder::new(128, capacity(4, 256, 64)).say(&[1], &text("yes STOP no")).say(&[2], &[104, 105, 0]);
    let mut engine = engine(fake, config());
    let mut with_string = request(1, &[1], 30, 0.0);
    with_string.stop = rules(&["STOP"], true, false, false);
    engine.submit(with_string);
    engine.submit(request(2, &[2], 30, 0.0));
    let outcomes = drain(&mut engine).unwrap();
    let first = outcomes[&1].clone().unwrap();
    assert_eq!((first.text.as_str(), first.reason, first.tokens.len()), ("yes ", FinishReason::StopString, 8));
    let second = outcomes[&2].clone().unwrap();
    assert_eq!((second.text.as_str(), second.reason, second.tokens.as_slice()), ("hi\0", FinishReason::Stop, &[104, 105, 0][..]));
}

#[test]
fn a_blocking_batch_ends_before_the_next_begins_and_a_continuous_one_refills() {
    let most_together_with_the_third = |batching| {
        let fake = FakeDecoder::new(VOCAB, capacity(2, 512, 64));
        let log = fake.log();
        let mut engine = engine(fake, EngineConfig { batching, batch: 2, stopping: StoppingPolicy::MaxTokensOnly, ..config() });
        engine.submit(request(1, &[1, 2], 2, 0.0));
        engine.submit(request(2, &[1, 3], 9, 0.0));
        engine.submit(request(3, &[1, 4], 9, 0.0));
        drain(&mut engine).unwrap();
        let log = log.lock().unwrap();
        let third = log.iter().position(|b| b.tokens.contains(&4) && b.segments.iter().any(|s| s.start == 0)).unwrap();
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
    let config = EngineConfig { batching, padding, chunk: 64, stopping: StoppingPolicy::MaxTokensOnly, ..config() };
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
    let prefill: Vec<_> = batches[0].segments.iter().map(|s| (s.tokens.len(), s.padding_rows)).collect();
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
        assert_eq!(batch.segments.iter().map(|s| s.tokens.len() + s.padding_rows).sum::<usize>(), 3);
    }
    assert_eq!(batches[5].segments.iter().filter(|s| s.padding_rows == 1).count(), 2);
}

#[test]
fn the_form_of_scores_asked_for_follows_the_sampling_policy() {
    let wants = |sampling, temperature| {
        let fake = FakeDecoder::new(VOCAB, capacity(1, 64, 64));
        let log = fake.log();
        let mut engine = engine(fake, EngineConfig { sampling, ..config() });
        engine.submit(request(1, &[1, 2], 1, temperature));
        drain(&mut engine).unwrap();
        log.lock().unwrap()[0].segments[0].want
    };
    assert_eq!(wants(SamplingPolicy::AlwaysSample, 0.0), Want::Logits);
    assert_eq!(wants(SamplingPolicy::AlwaysSample, 0.2), Want::Logits);
    assert_eq!(wants(SamplingPolicy::GreedyBelow(0.3), 0.2), Want::Argmax);
    assert_eq!(wants(SamplingPolicy::GreedyBelow(0.3), 0.5), Want::TopK(7));
}

#[test]
fn shared_beginnings_run_once() {
    let prompt = |last: u32| -> Vec<TokenId> { (0..40).map(|i| i % 30 + 1).chain([last]).collect() };
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
    let prompt = |last: u32| -> Vec<TokenId> { (0..40).map(|i| i % 30 + 1).chain([last]).collect() };
    let fake = FakeDecoder::new(VOCAB, capacity(4, 1024, 64)).not_finite_after(35);
    let mut engine = engine(fake, EngineConfig { prefix: PrefixPolicy::Share, chunk: 64, ..config() });
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
    let mut engine = engine(fake, EngineConfig { batch: 2, prefix: PrefixPolicy::Share, chunk: 8, ..config() });
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
    engine.submit(Request { stop: rules(&[], false, false, false), ..request(1, &[1, 2, 3], 2, 0.0) });
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

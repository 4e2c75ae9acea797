//! Every family against transformers, on the tiny random models of tests/data/families (scripts/make_family_fixtures.py): the greedy ids
//! behind prompts of one, a few and more tokens than any window, and the scores behind the prompts. A family that is refused is refused
//! by name, and listed here.

mod common;

use common::Tiny;
use llmopt::decoder::native::{FormatPlan, Memory, NativeDecoder, NativeOptions, PackedModel};
use llmopt::decoder::{Batch, Decoder, LogitsOutput, LogitsRequest, Segment};
use llmopt::kernels::{Format, KernelSet};
use llmopt::model::{self, Model, OpenOptions};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Families that transformers knows and llmopt refuses, each with a part of the line that says so.
const REFUSED: &[(&str, &str)] = &[
    ("gpt_neox", "architecture 'gpt_neox' is not supported"),
    ("olmo-clip", "clip_qkv is set to 8: not computed"),
    ("phi", "architecture 'phi' is not supported"),
];

/// As the script makes them: splitmix64 seeded by FNV-1a of the tensor's name.
fn values(name: &str, count: usize, offset: f32, scale: f32) -> Vec<f32> {
    let seed = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let value = |i: u64| {
        let mut z = seed.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        ((z >> 40) as f32 / (1u32 << 23) as f32 - 1.0) * scale + offset
    };
    (0..count as u64).map(value).collect()
}

/// The fixtures, by name.
fn fixtures() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/families");
    let mut all: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    let read = |path: PathBuf| {
        let fixture: Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        (fixture["family"].as_str().unwrap().to_string(), fixture)
    };
    all.into_iter().map(read).collect()
}

/// A fixture's model as a checkpoint folder.
fn write(fixture: &Value, folder: &Path) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for tensor in fixture["tensors"].as_array().unwrap() {
        let name = tensor[0].as_str().unwrap();
        let shape: Vec<usize> =
            tensor[1].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
        let (offset, scale) =
            (tensor[2].as_f64().unwrap() as f32, tensor[3].as_f64().unwrap() as f32);
        let begin = data.len();
        values(name, shape.iter().product(), offset, scale)
            .iter()
            .for_each(|v| data.extend(v.to_le_bytes()));
        let place = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert(name.into(), place);
    }
    let file = common::safetensors_file(&Value::Object(header).to_string(), &data);
    std::fs::write(folder.join("model.safetensors"), file).unwrap();
    std::fs::write(folder.join("config.json"), fixture["config"].to_string()).unwrap();
    let vocab = fixture["config"]["vocab_size"].as_u64().unwrap() as usize;
    let tokenizer = Tiny { vocab, ..Tiny::default() }.tokenizer_json();
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

fn decoder(model: &Model, plan: FormatPlan, kernels: KernelSet, memory: Memory) -> NativeDecoder {
    let packed = Arc::new(PackedModel::pack(model, plan, 2).unwrap_or_else(|e| panic!("{e}")));
    let kv_bytes = 128 * packed.kv_bytes_per_position() + packed.state_bytes_per_sequence();
    let options = NativeOptions { threads: 2, kernels, slots: 1, rows: 64, kv_bytes, memory };
    NativeDecoder::new(packed, options).unwrap_or_else(|e| panic!("{e}"))
}

/// Scores behind a prompt run in chunks, then greedy ids, `count` of them.
fn answer(
    decoder: &mut dyn Decoder,
    prompt: &[u32],
    chunk: usize,
    count: usize,
) -> (Vec<f32>, Vec<u32>) {
    let slot = decoder.open(prompt, prompt.len() + count, false).unwrap().slot;
    let (mut next, mut start, mut ids, mut first) = (prompt.to_vec(), 0, Vec::new(), Vec::new());
    while ids.len() < count {
        let rows = next.len().min(chunk);
        let logits =
            if rows == next.len() { LogitsRequest::Logits } else { LogitsRequest::Nothing };
        let segment =
            Segment { slot, start, tokens: 0..rows, logits, padding_rows: 0, padded_context: 0 };
        let mut outputs = Vec::new();
        decoder
            .forward(
                &Batch { tokens: next[..rows].to_vec(), segments: vec![segment] },
                &mut outputs,
            )
            .unwrap();
        start += rows;
        next.drain(..rows);
        let LogitsOutput::Logits(scores) = &outputs[0] else { continue };
        let best = (0..scores.len()).rev().max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap()
            as u32;
        if ids.is_empty() {
            first = scores.clone();
        }
        ids.push(best);
        next = vec![best];
    }
    decoder.close(slot);
    (first, ids)
}

/// A smaller margin between the best and the second score than this share of the largest score is a tie.
const TIE: f32 = 2e-5;

/// Largest difference of a score that is taken for rounding, as a share of the largest score.
const ROUNDING: f32 = 2e-4;

#[test]
fn every_family_gives_the_ids_and_scores_of_transformers() {
    let (mut right, mut table, mut faults) = (0, Vec::new(), Vec::new());
    for (name, fixture) in fixtures() {
        let folder = tempfile::tempdir().unwrap();
        write(&fixture, folder.path());
        let opened = model::open(folder.path().to_str().unwrap(), &OpenOptions::default());
        let refused = REFUSED.iter().find(|(family, _)| *family == name);
        let model = match (opened, refused) {
            (Ok(model), None) => model,
            (Ok(_), Some(_)) => {
                faults.push(format!("{name}: is not refused any more"));
                continue;
            }
            (Err(e), Some((_, part))) if e.to_string().contains(part) => {
                table.push(format!("{name:18} refused: {e}"));
                continue;
            }
            (Err(e), _) => {
                faults.push(format!("{name}: {e}"));
                continue;
            }
        };
        let mut decoder =
            decoder(&model, FormatPlan::All(Format::F32), KernelSet::best(), Memory::Preallocated);
        let mut worst = 0f32;
        for case in fixture["cases"].as_array().unwrap() {
            let list = |key: &str| -> Vec<u32> {
                case[key].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect()
            };
            let (prompt, greedy) = (list("prompt"), list("greedy"));
            let largest = case["largest"].as_f64().unwrap() as f32;
            let (scores, ids) = answer(&mut decoder, &prompt, 64, greedy.len());
            let expected =
                case["scores"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap() as f32);
            let off =
                expected.zip(&scores).map(|(e, s)| (e - s).abs()).fold(0.0, f32::max) / largest;
            worst = worst.max(off);
            if off.is_nan() || off > ROUNDING {
                faults.push(format!(
                    "{name}: prompt of {}: a score is off by {off:.1e} of the largest",
                    prompt.len()
                ));
            }
            // A margin within rounding is a tie: the first id that differs proves nothing then.
            let tie = (case["margin"].as_f64().unwrap() as f32) < TIE * largest;
            if ids != greedy && !tie {
                faults.push(format!(
                    "{name}: prompt of {}: {ids:?}, transformers has {greedy:?}",
                    prompt.len()
                ));
            }
        }
        right += 1;
        table.push(format!(
            "{name:18} {} right, scores within {worst:.1e}",
            model.spec.architecture
        ));
    }
    println!("{}\n{right} right, {} refused", table.join("\n"), REFUSED.len());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The same request, the same bits: for every family, in chunks that cut windows and pages, in every kernel set, with copied keys and
/// values, in f32 and quantized.
#[test]
fn every_family_has_the_same_bits_whatever_the_chunks_threads_memory_and_kernels() {
    for (name, fixture) in fixtures() {
        let folder = tempfile::tempdir().unwrap();
        write(&fixture, folder.path());
        let Ok(model) = model::open(folder.path().to_str().unwrap(), &OpenOptions::default())
        else {
            continue;
        };
        let counted = model::parameters(&model.spec);
        let spared = model
            .spec
            .layers
            .iter()
            .filter_map(|layer| layer.ffn.mixture())
            .any(|m| m.used < m.experts);
        assert_eq!(counted.active < counted.total, spared, "{name}: {counted}");
        let prompt: Vec<u32> = (0..45u32).map(|i| (i * i * 31 + i * 7 + 5) % 301).collect();
        for format in [Format::F32, Format::Bf16] {
            let plan = FormatPlan::All(format);
            let mut reference = decoder(&model, plan, KernelSet::portable(), Memory::Preallocated);
            let (scores, ids) = answer(&mut reference, &prompt, 64, 4);
            let bits = |scores: &[f32]| scores.iter().map(|s| s.to_bits()).collect::<Vec<_>>();
            for kernels in KernelSet::available() {
                for (chunk, memory) in
                    [(1, Memory::Preallocated), (7, Memory::PerStep), (64, Memory::Preallocated)]
                {
                    let (again, same) =
                        answer(&mut decoder(&model, plan, kernels, memory), &prompt, chunk, 4);
                    let equal = bits(&scores) == bits(&again) && ids == same;
                    assert!(equal, "{name} {format} {kernels:?} chunks of {chunk} {memory:?}");
                }
            }
        }
    }
}

/// Families of other designs, refused by name and not computed as something else.
#[test]
fn families_that_are_not_computed_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (_, fixture) = fixtures().into_iter().find(|(name, _)| name == "llama").unwrap();
    for (kind, class) in [
        ("gpt2", "GPT2LMHeadModel"),
        ("gpt_neox", "GPTNeoXForCausalLM"),
        ("phi", "PhiForCausalLM"),
        ("falcon", "FalconForCausalLM"),
        ("bloom", "BloomForCausalLM"),
        ("mpt", "MptForCausalLM"),
        ("opt", "OPTForCausalLM"),
        ("apertus", "ApertusForCausalLM"),
        ("gemma4", "Gemma4ForConditionalGeneration"),
        ("qwen3_next", "Qwen3NextForCausalLM"),
        ("granitemoehybrid", "GraniteMoeHybridForCausalLM"),
        ("deepseek_v3", "DeepseekV3ForCausalLM"),
        ("llama4", "Llama4ForConditionalGeneration"),
    ] {
        let mut fixture = fixture.clone();
        fixture["config"]["model_type"] = kind.into();
        fixture["config"]["architectures"] = serde_json::json!([class]);
        write(&fixture, folder.path());
        let line = model::open(folder.path().to_str().unwrap(), &OpenOptions::default())
            .err()
            .expect(kind)
            .to_string();
        assert!(
            line.contains(&format!("'{kind}'"))
                && line.contains("is not supported")
                && !line.contains('\n'),
            "{line}"
        );
    }
}

/// `scripts/models_table.py` was run after the last fixture.
#[test]
fn the_table_of_models_has_every_fixture_and_the_counts_of_ids() {
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/models.md"))
            .unwrap();
    let (mut right, mut ids) = (0, 0);
    for (name, fixture) in fixtures() {
        let kind = fixture["config"]["model_type"].as_str().unwrap();
        let row = text.lines().find(|line| line.starts_with(&format!("| {name} | `{kind}` |")));
        let row = row.unwrap_or_else(|| {
            panic!("{name} is not in docs/models.md: run scripts/models_table.py")
        });
        let count: usize = fixture["cases"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["greedy"].as_array().unwrap().len())
            .sum();
        let refused = REFUSED.iter().any(|(family, _)| *family == name);
        assert!(
            row.contains(&if refused { "refused".to_string() } else { format!("{count} ids") }),
            "{row}"
        );
        (right, ids) = if refused { (right, ids) } else { (right + 1, ids + count) };
    }
    assert!(
        text.contains(&format!("{right} right with {ids} greedy ids")),
        "run scripts/models_table.py"
    );
}

//! Files whose experts and states lie: counts of 0, 1 and more than there are, dimensions that do not fit, sizes that no model has. Each is
//! refused in one line that names what is wrong, or, where the lie is none, opened; none panics.

mod common;

use common::{Gguf, Random, Tensor, Tiny, Value};
use llmopt::decoder::native::{FormatPlan, PackedModel};
use llmopt::model::{self, OpenOptions};
use serde_json::{Value as Json, json};
use std::path::Path;

/// Opened and packed, or the line.
fn open(path: &Path) -> Result<(), String> {
    let model =
        model::open(path.to_str().unwrap(), &OpenOptions::default()).map_err(|e| e.to_string())?;
    PackedModel::pack(&model, FormatPlan::AsStored, 1).map(|_| ()).map_err(|e| e.to_string())
}

fn judge(name: &str, got: Result<(), String>, wanted: &str) -> Option<String> {
    match (got, wanted) {
        (Ok(()), "") => None,
        (Ok(()), _) => Some(format!("{name}: accepted, not refused with '{wanted}'")),
        (Err(line), _) if wanted.is_empty() => Some(format!("{name}: refused: {line}")),
        (Err(line), _) if line.contains('\n') || line.len() > 600 => {
            Some(format!("{name}: not one line: {line}"))
        }
        (Err(line), _) => {
            (!line.contains(wanted)).then(|| format!("{name}: '{line}' does not say '{wanted}'"))
        }
    }
}

/// A tiny llama whose second layer has four experts.
fn experts() -> Gguf {
    let tiny = Tiny::default();
    let mut file = tiny.container();
    let (hidden, ffn) = (tiny.hidden as u64, 32);
    for layer in 0..tiny.layers {
        for part in ["gate", "up", "down"] {
            file.tensors.retain(|t| t.name != format!("blk.{layer}.ffn_{part}.weight"));
        }
        let shapes = [
            ("ffn_gate_inp", vec![hidden, 4]),
            ("ffn_gate_exps", vec![hidden, ffn, 4]),
            ("ffn_up_exps", vec![hidden, ffn, 4]),
            ("ffn_down_exps", vec![ffn, hidden, 4]),
        ];
        for (name, dims) in shapes {
            let name = format!("blk.{layer}.{name}.weight");
            let mut random = Random::new(1, &name);
            let data = (0..dims.iter().product::<u64>())
                .flat_map(|_| (0.1 * random.normal()).to_le_bytes())
                .collect();
            file.tensors.push(Tensor { name, dims, ggml: 0, data, offset: None });
        }
    }
    file.set("llama.expert_count", Value::U32(4)).set("llama.expert_used_count", Value::U32(2));
    file.set("llama.expert_feed_forward_length", Value::U32(ffn as u32));
    file
}

// A table, an entry a case.
#[allow(clippy::too_many_lines)]
#[test]
fn gguf_files_whose_experts_lie_are_refused_in_one_line() {
    type Change = fn(&mut Gguf);
    fn set(file: &mut Gguf, key: &str, n: u32) {
        file.set(&format!("llama.{key}"), Value::U32(n));
    }
    fn dims(file: &mut Gguf, name: &str, dims: &[u64]) {
        file.tensor(name).dims = dims.to_vec();
    }
    let cases: &[(&str, Change, &str)] = &[
        ("control", |_| {}, ""),
        ("as many used as there are", |f| set(f, "expert_used_count", 4), ""),
        ("no experts", |f| set(f, "expert_count", 0), "expert_used_count' is set to 2"),
        (
            "one expert",
            |f| set(f, "expert_count", 1),
            "expert_used_count' is 2, but there are only 1",
        ),
        (
            "fewer than there are",
            |f| set(f, "expert_count", 3),
            "ffn_gate_inp.weight has the shape [4, 64]",
        ),
        (
            "more than there are",
            |f| set(f, "expert_count", 5),
            "ffn_gate_inp.weight has the shape [4, 64]",
        ),
        (
            "more than anybody has",
            |f| set(f, "expert_count", u32::MAX),
            "an integer from 0 to 65536",
        ),
        ("none used", |f| set(f, "expert_used_count", 0), "an integer from 1 to 65536"),
        (
            "more used than there are",
            |f| set(f, "expert_used_count", 5),
            "is 5, but there are only 4",
        ),
        (
            "how many is not said",
            |f| f.metadata.retain(|(key, _)| key != "llama.expert_used_count"),
            "'llama.expert_used_count' is missing",
        ),
        (
            "a text",
            |f| {
                f.set("llama.expert_count", Value::Str("4".into()));
            },
            "'llama.expert_count' is '4'",
        ),
        (
            "another width",
            |f| set(f, "expert_feed_forward_length", 48),
            "has the shape [4, 32, 64]; the metadata implies [4, 48, 64]",
        ),
        ("a width of nothing", |f| set(f, "expert_feed_forward_length", 0), "an integer from 1"),
        (
            "the widest",
            |f| set(f, "expert_feed_forward_length", 1 << 24),
            "implies [4, 16777216, 64]",
        ),
        ("another choice", |f| set(f, "expert_gating_func", 9), "is 9; 1 to 3 are computed"),
        ("groups", |f| set(f, "expert_group_count", 4), "groups of experts are not computed"),
        (
            "experts flat",
            |f| dims(f, "blk.1.ffn_up_exps.weight", &[64, 128]),
            "has the shape [128, 64]",
        ),
        (
            "experts turned",
            |f| dims(f, "blk.1.ffn_up_exps.weight", &[32, 64, 4]),
            "has the shape [4, 64, 32]",
        ),
        (
            "experts first",
            |f| dims(f, "blk.0.ffn_down_exps.weight", &[4, 64, 32]),
            "has the shape [32, 64, 4]",
        ),
        (
            "four dimensions",
            |f| dims(f, "blk.0.ffn_down_exps.weight", &[32, 64, 2, 2]),
            "has the shape [2, 2, 64, 32]",
        ),
        (
            "an expert of nothing",
            |f| dims(f, "blk.0.ffn_up_exps.weight", &[64, 0, 4]),
            "blk.0.ffn_up_exps.weight",
        ),
        (
            "more than any file",
            |f| dims(f, "blk.0.ffn_up_exps.weight", &[1 << 40, 1 << 40, 4]),
            "blk.0.ffn_up_exps.weight",
        ),
        (
            "a missing one",
            |f| f.tensors.retain(|t| t.name != "blk.1.ffn_up_exps.weight"),
            "blk.1.ffn_up_exps.weight is missing",
        ),
        (
            "dense ones beside them",
            |f| {
                let dense = Tiny::default().container().tensor("blk.0.ffn_up.weight").clone();
                f.tensors.push(dense);
            },
            "blk.0.ffn_up.weight is not part of the llama architecture",
        ),
        (
            "a value that is no number",
            |f| {
                f.tensor("blk.1.ffn_down_exps.weight").data[4000..4004]
                    .copy_from_slice(&f32::NAN.to_le_bytes())
            },
            "blk.1.ffn_down_exps.weight: a value in row",
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    let mut faults = Vec::new();
    for (name, change, wanted) in cases {
        let mut file = experts();
        change(&mut file);
        let path = folder.path().join("tiny.gguf");
        std::fs::write(&path, file.bytes()).unwrap();
        faults.extend(judge(name, open(&path), wanted));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// A fixture of tests/data/families as a checkpoint of random values, its config changed.
fn checkpoint(family: &str, change: &Json, folder: &Path) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/families")
        .join(format!("{family}.json"));
    let mut fixture: Json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for tensor in fixture["tensors"].as_array().unwrap() {
        let (name, begin) = (tensor[0].as_str().unwrap(), data.len());
        let count =
            tensor[1].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product::<u64>();
        let mut random = Random::new(3, name);
        (0..count).for_each(|_| data.extend((0.1 * random.normal()).to_le_bytes()));
        let entry =
            json!({"dtype": "F32", "shape": tensor[1], "data_offsets": [begin, data.len()]});
        header.insert(name.into(), entry);
    }
    let vocab = fixture["config"]["vocab_size"].as_u64().unwrap() as usize;
    for (key, value) in change.as_object().unwrap() {
        fixture["config"][key] = value.clone();
    }
    let file = common::safetensors_file(&Json::Object(header).to_string(), &data);
    std::fs::write(folder.join("model.safetensors"), file).unwrap();
    std::fs::write(folder.join("config.json"), fixture["config"].to_string()).unwrap();
    let tokenizer = Tiny { vocab, ..Tiny::default() }.tokenizer_json();
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

#[test]
fn checkpoints_whose_experts_or_states_lie_are_refused_in_one_line() {
    let kinds = ["conv", "conv", "conv", "conv", "attention"];
    let cases = [
        ("qwen3_moe", json!({}), ""),
        (
            "qwen3_moe",
            json!({"num_local_experts": 0}),
            "num_local_experts is 0; it must be an integer from 1",
        ),
        (
            "qwen3_moe",
            json!({"num_local_experts": 1}),
            "num_experts_per_tok is 2, but there are only 1",
        ),
        ("qwen3_moe", json!({"num_local_experts": 6}), "mlp.gate.weight has the shape [7, 48]"),
        ("qwen3_moe", json!({"num_local_experts": 8}), "experts.7.gate_proj.weight is missing"),
        ("qwen3_moe", json!({"num_local_experts": 65536}), "experts.7.gate_proj.weight is missing"),
        ("qwen3_moe", json!({"num_local_experts": 1e30}), "num_local_experts is"),
        ("qwen3_moe", json!({"num_experts_per_tok": 8}), "is 8, but there are only 7"),
        (
            "qwen3_moe",
            json!({"moe_intermediate_size": 25}),
            "gate_proj.weight has the shape [24, 48]",
        ),
        ("qwen3_moe", json!({"mlp_only_layers": [9]}), "a list of layers, numbers below 3"),
        ("qwen3_moe", json!({"decoder_sparse_step": 2}), "mlp.gate_proj.weight is missing"),
        ("gpt_oss", json!({}), ""),
        ("gpt_oss", json!({"num_local_experts": 5}), "has the shape [6, 48, 80]"),
        ("gpt_oss", json!({"intermediate_size": 39}), "has the shape [6, 48, 80]"),
        ("gpt_oss", json!({"swiglu_limit": -1}), "swiglu_limit is -1"),
        ("lfm2", json!({}), ""),
        ("lfm2", json!({"conv_L_cache": 5}), "conv.conv.weight has the shape [48, 1, 3]"),
        ("lfm2", json!({"conv_L_cache": 0}), "conv_L_cache is 0"),
        (
            "lfm2",
            json!({"conv_L_cache": 65536}),
            "a convolution over 65536 positions is not computed",
        ),
        (
            "lfm2",
            json!({"layer_types": kinds}),
            "layer_types has 'attention'; conv and full_attention are known",
        ),
        ("lfm2", json!({"layer_types": ["conv"]}), "a list of 5 texts"),
        ("lfm2", json!({"conv_bias": true}), "conv.in_proj.bias is missing"),
        ("lfm2", json!({"block_ffn_dim_multiplier": 1e300}), "block_ffn_dim_multiplier"),
        ("lfm2", json!({"block_multiple_of": 4096}), "w1.weight has the shape [64, 48]"),
        ("qwen3_5", json!({}), ""),
        ("qwen3_5", json!({"linear_num_value_heads": 3}), "3 value heads cannot share 2 key heads"),
        (
            "qwen3_5",
            json!({"linear_num_value_heads": 65536, "linear_key_head_dim": 65536}),
            "is more than any model has",
        ),
        ("qwen3_5", json!({"linear_num_key_heads": 0}), "linear_num_key_heads is 0"),
        ("qwen3_5", json!({"linear_key_head_dim": 9}), "in_proj_qkv.weight has the shape [80, 48]"),
        (
            "qwen3_5",
            json!({"linear_value_head_dim": 16}),
            "in_proj_qkv.weight has the shape [80, 48]",
        ),
        (
            "qwen3_5",
            json!({"linear_conv_kernel_dim": 80}),
            "a convolution over 80 positions is not computed",
        ),
        ("qwen3_5", json!({"linear_conv_kernel_dim": 2}), "conv1d.weight has the shape [80, 1, 4]"),
        ("qwen3_5", json!({"num_key_value_heads": 0}), "num_key_value_heads is 0"),
    ];
    let mut faults = Vec::new();
    for (family, change, wanted) in cases {
        let folder = tempfile::tempdir().unwrap();
        checkpoint(family, &change, folder.path());
        faults.extend(judge(&format!("{family} {change}"), open(folder.path()), wanted));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

//! Each family from a GGUF file is what it is from a checkpoint: the models of tests/data/families are written in both containers, in the
//! names, orders and keys of llama.cpp's converter, and opened; specs and all weights must be equal. That the checkpoint is computed
//! as transformers computes it is the matter of tests/families.rs.

mod common;

use common::{Gguf, Random, Tensor, Tiny, Value};
use llmopt::decoder::native::{FormatPlan, Memory, NativeDecoder, NativeOptions, PackedModel};
use llmopt::decoder::{Batch, Decoder, LogitsOutput, LogitsRequest, Segment};
use llmopt::kernels::{Format, KernelSet};
use llmopt::model::{self, Mixer, Model, ModelSpec, OpenOptions, Role};
use serde_json::Value as Json;
use std::path::Path;
use std::sync::Arc;

/// A tensor of a checkpoint.
struct Stored {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// Name in GGUF files by `model_type`; what is not listed has none.
const NAMES: &[(&str, &str)] = &[
    ("llama", "llama"),
    ("mistral", "llama"),
    ("ministral3", "mistral3"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("gemma", "gemma"),
    ("gemma2", "gemma2"),
    ("gemma3_text", "gemma3"),
    ("phi3", "phi3"),
    ("smollm3", "smollm3"),
    ("granite", "granite"),
    ("olmo", "olmo"),
    ("olmo2", "olmo2"),
    ("olmo3", "olmo2"),
    ("glm4", "glm4"),
    ("ernie4_5", "ernie4_5"),
    ("exaone4", "exaone4"),
    ("hunyuan_v1_dense", "hunyuan-dense"),
    ("seed_oss", "seed_oss"),
    ("arcee", "arcee"),
    ("starcoder2", "starcoder2"),
    ("stablelm", "stablelm"),
    ("cohere", "command-r"),
    ("cohere2", "cohere2"),
    ("nemotron", "nemotron"),
    ("qwen2_moe", "qwen2moe"),
    ("qwen3_moe", "qwen3moe"),
    ("mixtral", "llama"),
    ("olmoe", "olmoe"),
    ("granitemoe", "granitemoe"),
    ("gpt_oss", "gpt-oss"),
    ("lfm2", "lfm2"),
    ("lfm2_moe", "lfm2moe"),
    ("qwen3_5_text", "qwen35"),
    ("qwen3_5_moe_text", "qwen35moe"),
];

/// Families whose query and key rows the converter brings into the interleaved order.
const PERMUTED: &[&str] = &[
    "llama",
    "mistral",
    "ministral3",
    "smollm3",
    "granite",
    "olmo",
    "arcee",
    "mixtral",
    "granitemoe",
];

/// Families where the llama name of the feed-forward norm is that of attention's output.
const SANDWICH: &[&str] = &["gemma2", "gemma3_text", "olmo2", "olmo3", "exaone4", "seed_oss"];

const LESS_ONE: &[&str] =
    &["gemma", "gemma2", "gemma3_text", "nemotron", "qwen3_5_text", "qwen3_5_moe_text"];

fn gguf_name(kind: &str, name: &str) -> String {
    let parts = [
        ("input_layernorm", "attn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.qkv_proj", "attn_qkv"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("self_attn.query_layernorm", "attn_q_norm"),
        ("self_attn.key_layernorm", "attn_k_norm"),
        ("post_self_attn_layernorm", "post_attention_norm"),
        ("post_mlp_layernorm", "post_ffw_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
        ("mlp.gate_up_proj", "ffn_up"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("mlp.c_fc", "ffn_up"),
        ("mlp.c_proj", "ffn_down"),
        ("mlp.gate", "ffn_gate_inp"),
        ("mlp.router", "ffn_gate_inp"),
        ("block_sparse_moe.gate", "ffn_gate_inp"),
        ("block_sparse_moe.router.layer", "ffn_gate_inp"),
        ("mlp.experts.gate_proj", "ffn_gate_exps"),
        ("mlp.experts.up_proj", "ffn_up_exps"),
        ("mlp.experts.down_proj", "ffn_down_exps"),
        ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
        ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
        ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
        ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
        ("self_attn.sinks", "attn_sinks"),
        ("operator_norm", "attn_norm"),
        ("ffn_norm", "ffn_norm"),
        ("self_attn.q_layernorm", "attn_q_norm"),
        ("self_attn.k_layernorm", "attn_k_norm"),
        ("self_attn.out_proj", "attn_output"),
        ("conv.in_proj", "shortconv.in_proj"),
        ("conv.conv", "shortconv.conv"),
        ("conv.out_proj", "shortconv.out_proj"),
        ("feed_forward.w1", "ffn_gate"),
        ("feed_forward.w2", "ffn_down"),
        ("feed_forward.w3", "ffn_up"),
        ("feed_forward.gate", "ffn_gate_inp"),
        ("linear_attn.in_proj_qkv", "attn_qkv"),
        ("linear_attn.in_proj_z", "attn_gate"),
        ("linear_attn.in_proj_b", "ssm_beta"),
        ("linear_attn.in_proj_a", "ssm_alpha"),
        ("linear_attn.conv1d", "ssm_conv1d"),
        ("linear_attn.norm", "ssm_norm"),
        ("linear_attn.out_proj", "ssm_out"),
    ];
    for (end, own) in
        [(".A_log", "ssm_a"), (".dt_bias", "ssm_dt.bias"), (".expert_bias", "exp_probs_b.bias")]
    {
        if name.ends_with(end) {
            return format!("blk.{}.{own}", name.split('.').nth(2).unwrap());
        }
    }
    // Two are parameters, not modules.
    let name = &if name.ends_with(".sinks") { format!("{name}.weight") } else { name.to_string() };
    let (stem, end) = name.rsplit_once('.').unwrap();
    let own = match stem {
        "model.embed_tokens" => "token_embd".to_string(),
        "model.norm" => "output_norm".to_string(),
        "model.embedding_norm" => "token_embd_norm".to_string(),
        "lm_head" => "output".to_string(),
        _ => {
            let (layer, part) =
                stem.strip_prefix("model.layers.").unwrap().split_once('.').unwrap();
            let part = match part {
                "post_attention_layernorm"
                    if SANDWICH.contains(&kind)
                        || kind == "gpt_oss"
                        || kind.starts_with("qwen3_5") =>
                {
                    "post_attention_norm"
                }
                "post_attention_layernorm" => "ffn_norm",
                _ => parts.iter().find(|p| p.0 == part).unwrap_or_else(|| panic!("{name}")).1,
            };
            format!("blk.{layer}.{part}")
        }
    };
    format!("{own}.{end}")
}

/// A tensor of rotary factors.
type Factors = (&'static str, Vec<f32>);

/// The metadata that llama.cpp's converter writes, and the vectors of rotary factors.
#[allow(clippy::too_many_lines, reason = "a list of keys")]
fn metadata(kind: &str, gguf: &str, config: &Json) -> (Vec<(String, Value)>, Vec<Factors>) {
    let number = |name: &str| config[name].as_f64();
    let int = |name: &str| {
        Value::U32(config[name].as_u64().unwrap_or_else(|| panic!("{kind}: {name}")) as u32)
    };
    let heads = config["num_attention_heads"].as_u64().unwrap();
    let head_dim =
        config["head_dim"].as_u64().unwrap_or(config["hidden_size"].as_u64().unwrap() / heads);
    let kv = config["num_key_value_heads"].as_u64().unwrap_or(heads);
    let mut all: Vec<(&str, Value)> = vec![
        ("block_count", int("num_hidden_layers")),
        ("context_length", int("max_position_embeddings")),
        ("embedding_length", int("hidden_size")),
        ("feed_forward_length", int("intermediate_size")),
        ("attention.head_count", int("num_attention_heads")),
        ("attention.head_count_kv", Value::U32(kv as u32)),
        ("attention.key_length", Value::U32(head_dim as u32)),
        ("attention.value_length", Value::U32(head_dim as u32)),
    ];
    let float = |x: f64| Value::F32(x as f32);
    match number("rms_norm_eps") {
        Some(epsilon) => all.push(("attention.layer_norm_rms_epsilon", float(epsilon))),
        None if kind.starts_with("lfm2") => {
            all.push(("attention.layer_norm_rms_epsilon", float(number("norm_eps").unwrap())));
        }
        None => {
            let names = ["layer_norm_eps", "norm_epsilon", "norm_eps"];
            let epsilon = names.iter().find_map(|name| number(name)).unwrap_or(1e-5);
            all.push(("attention.layer_norm_epsilon", float(epsilon)));
        }
    }
    let ropes = &config["rope_parameters"];
    let rope = if ropes["full_attention"].is_object() { &ropes["full_attention"] } else { ropes };
    let theta = rope["rope_theta"].as_f64().unwrap();
    all.push(("rope.freq_base", float(theta)));
    let share = rope["partial_rotary_factor"].as_f64().unwrap_or(1.0);
    let dims = (head_dim as f64 * share) as usize;
    all.push(("rope.dimension_count", Value::U32(dims as u32)));
    let factor = rope["factor"].as_f64().unwrap_or(1.0);
    let original = rope["original_max_position_embeddings"].as_f64();
    let mut divisors = Vec::new();
    match rope["rope_type"].as_str().unwrap() {
        "linear" => all.extend([
            ("rope.scaling.type", Value::Str("linear".into())),
            ("rope.scaling.factor", float(factor)),
        ]),
        "yarn" => {
            all.extend([
                ("rope.scaling.type", Value::Str("yarn".into())),
                ("rope.scaling.factor", float(factor)),
            ]);
            all.push((
                "rope.scaling.original_context_length",
                Value::U32(original.unwrap() as u32),
            ));
            if let Some(all_dim) = rope["mscale_all_dim"].as_f64() {
                all.push(("rope.scaling.yarn_log_multiplier", float(all_dim)));
            }
        }
        "llama3" => {
            let (low, high) = (
                rope["low_freq_factor"].as_f64().unwrap(),
                rope["high_freq_factor"].as_f64().unwrap(),
            );
            let of = |i: usize| {
                let wave = 2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / dims as f64);
                let smooth = ((original.unwrap() / wave - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
            };
            divisors.push(("rope_freqs.weight", (0..dims / 2).map(of).collect()));
        }
        // The converter of phi 3 writes no type.
        "longrope" => {
            let set = |name: &str| {
                rope[name].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
            };
            divisors.push(("rope_factors_short.weight", set("short_factor")));
            divisors.push(("rope_factors_long.weight", set("long_factor")));
            let original = original.or(number("original_max_position_embeddings")).unwrap();
            let scale = number("max_position_embeddings").unwrap() / original;
            all.push(("rope.scaling.original_context_length", Value::U32(original as u32)));
            all.push((
                "rope.scaling.attn_factor",
                float((1.0 + scale.ln() / original.ln()).sqrt()),
            ));
        }
        _ => {}
    }
    if let Some(beta) = rope["llama_4_scaling_beta"].as_f64() {
        all.push(("attention.temperature_scale", float(beta)));
    }
    if let Some(window) =
        config["sliding_window"].as_u64().filter(|_| config["use_sliding_window"] != false)
    {
        all.push(("attention.sliding_window", Value::U32(window as u32)));
        let local = |kind: &Json| u8::from(kind == "sliding_attention");
        if let Some(types) = config["layer_types"].as_array() {
            let flags: Vec<u8> = types.iter().map(local).collect();
            let array =
                [7u32.to_le_bytes().to_vec(), (flags.len() as u64).to_le_bytes().to_vec(), flags]
                    .concat();
            all.push(("attention.sliding_window_pattern", Value::Raw(9, array)));
        }
    }
    let scales = [
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("attention.scale", "attention_multiplier"),
        ("logit_scale", "logits_scaling"),
        ("logit_scale", "logit_scale"),
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
    ];
    all.extend(scales.iter().filter_map(|(key, name)| Some((*key, float(number(name)?)))));
    let list = |numbers: Vec<u32>| {
        let numbers: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        Value::Raw(
            9,
            [
                4u32.to_le_bytes().to_vec(),
                (numbers.len() as u64 / 4).to_le_bytes().to_vec(),
                numbers,
            ]
            .concat(),
        )
    };
    if kind.starts_with("lfm2") {
        let kinds = config["layer_types"].as_array().unwrap();
        let heads = kinds.iter().map(|k| if k == "conv" { 0 } else { kv as u32 }).collect();
        all.retain(|(key, _)| *key != "attention.head_count_kv");
        all.extend([
            ("attention.head_count_kv", list(heads)),
            ("shortconv.l_cache", int("conv_L_cache")),
        ]);
    }
    if kind == "lfm2" && config["block_auto_adjust_ff_dim"] == true {
        // As the converter works it out.
        let (cut, of) = (
            2 * config["intermediate_size"].as_u64().unwrap() / 3,
            config["block_multiple_of"].as_u64().unwrap(),
        );
        all.retain(|(key, _)| *key != "feed_forward_length");
        all.push(("feed_forward_length", Value::U32(cut.next_multiple_of(of) as u32)));
    }
    if kind == "lfm2_moe" {
        all.extend([
            ("leading_dense_block_count", int("num_dense_layers")),
            ("expert_gating_func", Value::U32(2)),
        ]);
        all.push(("expert_weights_scale", float(number("routed_scaling_factor").unwrap())));
    }
    if kind.starts_with("qwen3_5") {
        let inner = config["linear_num_value_heads"].as_u64().unwrap()
            * config["linear_value_head_dim"].as_u64().unwrap();
        all.extend([
            ("ssm.conv_kernel", int("linear_conv_kernel_dim")),
            ("ssm.state_size", int("linear_key_head_dim")),
            ("ssm.group_count", int("linear_num_key_heads")),
            ("ssm.time_step_rank", int("linear_num_value_heads")),
            ("ssm.inner_size", Value::U32(inner as u32)),
            ("full_attention_interval", Value::U32(4)),
        ]);
    }
    let experts = [
        ("expert_count", "num_experts"),
        ("expert_count", "num_local_experts"),
        ("expert_used_count", "num_experts_per_tok"),
        ("expert_feed_forward_length", "moe_intermediate_size"),
        ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
    ];
    all.extend(
        experts
            .iter()
            .filter(|(_, name)| config[name].is_u64())
            .map(|(key, name)| (*key, int(name))),
    );
    (all.into_iter().map(|(key, value)| (format!("{gguf}.{key}"), value)).collect(), divisors)
}

/// Tensors of experts as one of all experts each: from one an expert, from gate and up in one, from rows that lie as columns.
fn with_experts_together(tensors: &[Stored]) -> Vec<Stored> {
    let mut all: Vec<Stored> = Vec::new();
    let mut singles: Vec<(String, Vec<&Stored>)> = Vec::new();
    let mut push = |name: String, shape: Vec<usize>, values: Vec<f32>| {
        all.push(Stored { name, shape, values })
    };
    for t in tensors {
        let layer = t.name.split('.').take(3).collect::<Vec<_>>().join(".");
        let part = |name: &str, end: &str| format!("{layer}.mlp.experts.{name}.{end}");
        let last = t.name.rsplit('.').next().unwrap();
        let stacked = t.name.contains(".experts.") || t.name.contains("_linear.");
        let number = t
            .name
            .split(".experts.")
            .nth(1)
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        match () {
            _ if number => {
                let own = t.name.rsplit('.').nth(1).unwrap();
                let own = match own {
                    "w1" => "gate_proj",
                    "w2" => "down_proj",
                    "w3" => "up_proj",
                    own => own,
                };
                let name = part(own, "weight");
                match singles.iter_mut().find(|(n, _)| *n == name) {
                    Some((_, list)) => list.push(t),
                    None => singles.push((name, vec![t])),
                }
            }
            _ if !stacked => push(t.name.clone(), t.shape.clone(), t.values.clone()),
            _ if t.name.contains("input_linear") => {
                let (e, rows, columns) = (t.shape[0], t.shape[1], t.shape[2]);
                for (half, name) in ["gate_proj", "up_proj"].into_iter().enumerate() {
                    let own = t.values.chunks(rows * columns).flat_map(|v| {
                        v[half * rows / 2 * columns..][..rows / 2 * columns].to_vec()
                    });
                    push(part(name, "weight"), vec![e, rows / 2, columns], own.collect());
                }
            }
            _ if t.name.contains("output_linear") => {
                push(part("down_proj", "weight"), t.shape.clone(), t.values.clone())
            }
            _ => {
                // gpt-oss: [experts, inputs, outputs], gate and up in turn; biases [experts, outputs].
                let (e, inputs, outputs) = if t.shape.len() == 3 {
                    (t.shape[0], t.shape[1], t.shape[2])
                } else {
                    (t.shape[0], 1, t.shape[1])
                };
                let end = if t.shape.len() == 3 { "weight" } else { "bias" };
                let (names, step): (&[&str], usize) = if last.starts_with("gate_up") {
                    (&["gate_proj", "up_proj"], 2)
                } else {
                    (&["down_proj"], 1)
                };
                for (phase, name) in names.iter().enumerate() {
                    let of_one = |v: &[f32]| -> Vec<f32> {
                        (0..outputs / step)
                            .flat_map(|o| (0..inputs).map(move |i| (i, o)))
                            .map(|(i, o)| v[i * outputs + o * step + phase])
                            .collect()
                    };
                    let own = t.values.chunks(inputs * outputs).flat_map(of_one).collect();
                    let shape = if t.shape.len() == 3 {
                        vec![e, outputs / step, inputs]
                    } else {
                        vec![e, outputs / step]
                    };
                    push(part(name, end), shape, own);
                }
            }
        }
    }
    for (name, mut list) in singles {
        list.sort_by_key(|t| {
            t.name
                .split(".experts.")
                .nth(1)
                .unwrap()
                .split('.')
                .next()
                .unwrap()
                .parse::<usize>()
                .unwrap()
        });
        let shape = [vec![list.len()], list[0].shape.clone()].concat();
        all.push(Stored {
            name,
            shape,
            values: list.iter().flat_map(|t| t.values.clone()).collect(),
        });
    }
    // The converter squeezes the vector of a shared expert's share.
    all.iter_mut()
        .filter(|t| t.name.contains("shared_expert_gate"))
        .for_each(|t| t.shape.retain(|n| *n != 1));
    all
}

/// The tensor as the converter has it.
fn converted(kind: &str, config: &Json, tensor: &Stored) -> Tensor {
    let mut values = tensor.values.clone();
    let columns = *tensor.shape.last().unwrap();
    // Value heads from the order of groups into the tiled one.
    if let Some((groups, of)) =
        config["linear_num_key_heads"].as_u64().zip(config["linear_num_value_heads"].as_u64())
    {
        let (groups, heads) = (groups as usize, of as usize);
        let dim = config["linear_value_head_dim"].as_u64().unwrap() as usize;
        let keys = 2 * groups * config["linear_key_head_dim"].as_u64().unwrap() as usize;
        let per = heads / groups;
        // Values of `size` elements a head, from `from` on; head j of the file is head (j mod groups) * per + j / groups.
        let turn = |values: &mut [f32], from: usize, size: usize| {
            let old = values[from..from + heads * size].to_vec();
            for j in 0..heads {
                let was = j % groups * per + j / groups;
                values[from + j * size..][..size].copy_from_slice(&old[was * size..][..size]);
            }
        };
        match tensor.name.split("linear_attn.").nth(1) {
            Some("in_proj_qkv.weight") => turn(&mut values, keys * columns, dim * columns),
            Some("in_proj_z.weight") => turn(&mut values, 0, dim * columns),
            Some("in_proj_a.weight" | "in_proj_b.weight") => turn(&mut values, 0, columns),
            Some("conv1d.weight") => turn(&mut values, keys * columns, dim * columns),
            Some("A_log") => {
                values.iter_mut().for_each(|v| *v = -v.exp());
                turn(&mut values, 0, 1);
            }
            Some("dt_bias") => turn(&mut values, 0, 1),
            Some("out_proj.weight") => values.chunks_mut(columns).for_each(|row| turn(row, 0, dim)),
            _ => {}
        }
    }
    let heads = ["q_proj", "k_proj"].iter().zip(["num_attention_heads", "num_key_value_heads"]);
    if let Some((_, count)) =
        heads.into_iter().find(|(part, _)| PERMUTED.contains(&kind) && tensor.name.contains(**part))
    {
        let heads = config[count].as_u64().unwrap() as usize;
        let (rows, width) =
            if tensor.shape.len() == 1 { (columns, 1) } else { (tensor.shape[0], columns) };
        let d = rows / heads;
        for row in 0..rows {
            // Row 2i + j of a head is row i + j * d / 2 of the checkpoint.
            let within = row % d;
            let from = row / d * d + within / 2 + within % 2 * (d / 2);
            values[row * width..][..width].copy_from_slice(&tensor.values[from * width..][..width]);
        }
    }
    if LESS_ONE.contains(&kind)
        && !tensor.name.contains("linear_attn")
        && tensor.name.contains("norm")
        && tensor.name.ends_with(".weight")
    {
        values.iter_mut().for_each(|v| *v += 1.0);
    }
    let squeezed = tensor.name.contains("conv");
    let dims =
        tensor.shape.iter().rev().filter(|n| !squeezed || **n != 1).map(|n| *n as u64).collect();
    let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Tensor { name: gguf_name(kind, &tensor.name), dims, ggml: 0, data, offset: None }
}

fn open(path: &Path) -> Result<Model, String> {
    model::open(path.to_str().unwrap(), &OpenOptions::default()).map_err(|e| e.to_string())
}

fn read(model: &Model, role: Role) -> Vec<u8> {
    let mut bytes = Vec::new();
    model.weights.read(role, 0..model.weights.shape(role).0, Format::F32, &mut bytes).unwrap();
    bytes
}

/// Scores behind some tokens.
fn scores(model: &Model) -> Vec<f32> {
    let packed = Arc::new(PackedModel::pack(model, FormatPlan::AsStored, 1).unwrap());
    let kv_bytes = 64 * packed.kv_bytes_per_position() + packed.state_bytes_per_sequence();
    let (kernels, memory) = (KernelSet::best(), Memory::Preallocated);
    let options = NativeOptions { threads: 1, kernels, slots: 1, rows: 64, kv_bytes, memory };
    let mut decoder = NativeDecoder::new(packed, options).unwrap();
    let tokens: Vec<u32> = (0..40).map(|i| i * 7 % 200).collect();
    let slot = decoder.open(&tokens, tokens.len(), false).unwrap().slot;
    let segment = Segment {
        slot,
        start: 0,
        tokens: 0..tokens.len(),
        logits: LogitsRequest::Logits,
        padding_rows: 0,
        padded_context: 0,
    };
    let mut outputs = Vec::new();
    decoder.forward(&Batch { tokens, segments: vec![segment] }, &mut outputs).unwrap();
    let LogitsOutput::Logits(scores) = outputs.remove(0) else { panic!("logits were asked for") };
    scores
}

#[test]
#[allow(clippy::too_many_lines, reason = "one story")]
fn a_gguf_file_of_every_family_is_the_model_of_its_checkpoint() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/families");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    let (mut equal, mut faults) = (Vec::new(), Vec::new());
    for path in paths {
        let fixture: Json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let (family, config) = (fixture["family"].as_str().unwrap(), &fixture["config"]);
        let kind = config["model_type"].as_str().unwrap();
        let Some((_, gguf)) = NAMES.iter().find(|(name, _)| *name == kind) else { continue };
        // What GGUF files of the family cannot say.
        if ["llama-gelu", "olmo-clip", "qwen3_moe-dense", "lfm2-biases"].contains(&family) {
            continue;
        }
        let tensors: Vec<Stored> = fixture["tensors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| {
                let name = t[0].as_str().unwrap().to_string();
                let shape: Vec<usize> =
                    t[1].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
                let mut random = Random::new(1, &name);
                let values = (0..shape.iter().product()).map(|_| random.normal()).collect();
                Stored { name, shape, values }
            })
            .collect();
        let place = tempfile::tempdir().unwrap();
        // One has a block that guesses further tokens, which is no part of the model.
        let guessing = family == "qwen3_5";
        let hidden = config["hidden_size"].as_u64().unwrap() as usize;
        let guesses = ["mtp.fc.weight", "mtp.layers.0.input_layernorm.weight", "mtp.norm.weight"]
            .map(|name| {
                let shape =
                    if name == "mtp.fc.weight" { vec![hidden, 2 * hidden] } else { vec![hidden] };
                Stored { name: name.into(), values: vec![0.5; shape.iter().product()], shape }
            });
        // The checkpoint.
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for Stored { name, shape, values } in
            tensors.iter().chain(guesses.iter().filter(|_| guessing))
        {
            let begin = data.len();
            values.iter().for_each(|v| data.extend(v.to_le_bytes()));
            let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]});
            header.insert(name.clone(), entry);
        }
        let checkpoint = place.path().join("checkpoint");
        std::fs::create_dir(&checkpoint).unwrap();
        let file = common::safetensors_file(&Json::Object(header).to_string(), &data);
        std::fs::write(checkpoint.join("model.safetensors"), file).unwrap();
        std::fs::write(checkpoint.join("config.json"), config.to_string()).unwrap();
        let vocab = config["vocab_size"].as_u64().unwrap() as usize;
        let tiny = Tiny { vocab, ..Tiny::default() };
        std::fs::write(checkpoint.join("tokenizer.json"), tiny.tokenizer_json().to_string())
            .unwrap();
        // The GGUF file.
        let mut container = tiny.container();
        container.metadata.retain(|(key, _)| !key.starts_with("llama."));
        let (metadata, divisors) = metadata(kind, gguf, config);
        for (key, value) in metadata {
            container.set(&key, value);
        }
        container.set("general.architecture", Value::Str(gguf.to_string()));
        let mut all: Vec<Tensor> =
            with_experts_together(&tensors).iter().map(|t| converted(kind, config, t)).collect();
        for (name, divisors) in divisors {
            let (dims, data) = (
                vec![divisors.len() as u64],
                divisors.iter().flat_map(|v| v.to_le_bytes()).collect(),
            );
            all.push(Tensor { name: name.into(), dims, ggml: 0, data, offset: None });
        }
        let layers = config["num_hidden_layers"].as_u64().unwrap() as u32;
        if guessing {
            // As the converter of llama.cpp writes it (`conversion/qwen.py`): behind the layers, and counted with them.
            let names = [
                "nextn.eh_proj",
                "nextn.enorm",
                "nextn.hnorm",
                "nextn.shared_head_norm",
                "attn_norm",
                "attn_q",
            ];
            all.extend(names.map(|name| {
                let dims = if name.ends_with("proj") {
                    vec![2 * hidden as u64, hidden as u64]
                } else {
                    vec![hidden as u64]
                };
                let data = 0.5f32.to_le_bytes().repeat(dims.iter().product::<u64>() as usize);
                Tensor {
                    name: format!("blk.{layers}.{name}.weight"),
                    dims,
                    ggml: 0,
                    data,
                    offset: None,
                }
            }));
            container.set(&format!("{gguf}.block_count"), Value::U32(layers + 1));
            container.set(&format!("{gguf}.nextn_predict_layers"), Value::U32(1));
        }
        let file = Gguf { tensors: all, ..container };
        let path = place.path().join("model.gguf");
        std::fs::write(&path, file.bytes()).unwrap();
        if guessing {
            let refused = |change: &dyn for<'a> Fn(&'a mut Gguf) -> &'a mut Gguf, says: &str| {
                let (mut other, path) = (file.clone(), place.path().join("other.gguf"));
                change(&mut other);
                std::fs::write(&path, other.bytes()).unwrap();
                let error = open(&path).err().unwrap_or_else(|| panic!("accepted: {says}"));
                assert!(error.contains(says) && !error.contains('\n'), "{error}");
            };
            let key = format!("{gguf}.nextn_predict_layers");
            refused(&|f| f.set(&key, Value::U32(layers + 1)), "leaves no layers");
            refused(&|f| f.set(&key, Value::U32(u32::MAX)), "nextn_predict_layers");
            refused(&|f| f.set(&key, Value::U32(0)), &format!("blk.{layers}."));
            refused(&|f| f.unset(&key), &format!("blk.{layers}."));
        }
        let (a, b) = match (open(&checkpoint), open(&path)) {
            (Ok(a), Ok(b)) => (a, b),
            (a, b) => {
                faults.extend(
                    [a.err(), b.err()].into_iter().flatten().map(|e| format!("{family}: {e}")),
                );
                continue;
            }
        };
        let plain = |spec: &ModelSpec| {
            let mut spec = ModelSpec { architecture: String::new(), ..spec.clone() };
            // Their value heads stand in another order.
            for layer in &mut spec.layers {
                if let Mixer::DeltaNet(net) = &mut layer.mixer {
                    net.tiled = false;
                }
            }
            // GGUF files tell the scale of gemma's queries by the size of the model.
            if kind.starts_with("gemma") {
                spec.attentions_mut().for_each(|a| a.scale = 1.0);
            }
            spec
        };
        if plain(&a.spec) != plain(&b.spec) {
            faults.push(format!(
                "{family}: other specs:\n{:?}\n{:?}",
                plain(&a.spec),
                plain(&b.spec)
            ));
            continue;
        }
        for (role, _) in model::roles(&a.spec) {
            // Without positions the order that queries and keys share does not matter; the converter permutes them all the same.
            let rope = role.layer().and_then(|layer| a.spec.layers[layer].attention()?.rope);
            if rope.is_none() && matches!(role, Role::Query(_) | Role::Key(_)) {
                continue;
            }
            // In another order: what they give is compared below.
            if format!("{role:?}").starts_with("Delta") {
                continue;
            }
            if read(&a, role) != read(&b, role) {
                faults.push(format!("{family}: other values of {role:?}"));
            }
        }
        if a.spec.layers.iter().any(|layer| layer.delta_net().is_some()) {
            let [a, b] = [scores(&a), scores(&b)];
            let largest = a.iter().fold(0f32, |most, s| most.max(s.abs()));
            let off = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            if off.is_nan() || off > 1e-4 * largest {
                faults.push(format!("{family}: scores differ by {off} of {largest}"));
            }
        }
        equal.push(family.to_string());
    }
    assert!(faults.is_empty(), "{}\nequal: {}", faults.join("\n"), equal.join(", "));
    assert!(equal.len() > 35, "{}", equal.join(", "));
}

//! gpt-oss from end to end: a model whose weights are written down, so that it thinks on harmony's channel `analysis` and answers on `final`,
//! run as a user runs it.

mod common;
#[path = "common/process.rs"]
mod process;

use process::Bench;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Tokens after the 256 bytes: words, then control tokens.
const WORDS: [&str; 6] = ["assistant", "analysis", "final", "hmm", "yes", "no"];
const CONTROL: [&str; 6] =
    ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"];
const HIDDEN: usize = 288;
/// The place in the hidden state that tells whether the thought was said.
const THOUGHT: usize = HIDDEN - 1;
const VOCAB: usize = 256 + WORDS.len() + CONTROL.len();

fn id(token: &str) -> usize {
    let all = || WORDS.iter().chain(&CONTROL);
    256 + all().position(|t| *t == token).unwrap()
}

/// What follows what, and how the thought that was said changes that: before it the first of two, after it the second.
const FOLLOWS: [(&str, &str, f32, f32); 11] = [
    ("<|start|>", "assistant", 10.0, 0.0),
    ("assistant", "<|channel|>", 10.0, 0.0),
    ("<|channel|>", "analysis", 11.0, -10.0),
    ("<|channel|>", "final", 10.0, 10.0),
    ("analysis", "<|message|>", 10.0, 0.0),
    ("final", "<|message|>", 10.0, 0.0),
    ("<|message|>", "hmm", 11.0, -10.0),
    ("<|message|>", "yes", 10.0, 10.0),
    ("hmm", "<|end|>", 10.0, 0.0),
    ("<|end|>", "<|start|>", 10.0, 0.0),
    ("yes", "<|return|>", 10.0, 0.0),
];

/// A tensor's shape and values by its name: embeddings are one-hot, the second layer's first head carries the thought's place to
/// [`THOUGHT`] (no score of attention differs, so that it is the share of positions that hold the thought), the output matrix is [`FOLLOWS`].
fn tensor(name: &str, shape: &[usize]) -> Vec<f32> {
    let mut values = vec![0.0; shape.iter().product()];
    let columns = *shape.last().unwrap();
    let mut put = |row: usize, column: usize, value: f32| values[row * columns + column] = value;
    match name {
        "model.embed_tokens.weight" => (0..VOCAB).for_each(|t| put(t, t, 1.0)),
        "lm_head.weight" => {
            for (from, to, score, after) in FOLLOWS {
                put(id(to), id(from), score);
                put(id(to), THOUGHT, after);
            }
            // Where the model may not say yes it says no.
            put(id("no"), id("<|message|>"), 9.0);
            put(id("<|return|>"), id("no"), 10.0);
        }
        "model.layers.1.self_attn.v_proj.weight" => put(0, id("hmm"), 1.0),
        "model.layers.1.self_attn.o_proj.weight" => put(THOUGHT, 0, 1.0),
        _ if name.ends_with("norm.weight") => values.fill(1.0),
        // No share of the attention goes to nothing.
        _ if name.ends_with("sinks") => values.fill(-100.0),
        _ => {}
    }
    values
}

fn model(folder: &Path) -> PathBuf {
    let (heads, head_dim, experts, width) = (2, 16, 2, 32);
    let mut tensors = vec![
        ("lm_head.weight".to_string(), vec![VOCAB, HIDDEN]),
        ("model.embed_tokens.weight".to_string(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".to_string(), vec![HIDDEN]),
    ];
    for layer in 0..2 {
        let mut put = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}"), shape.to_vec()))
        };
        put("input_layernorm.weight", &[HIDDEN]);
        put("post_attention_layernorm.weight", &[HIDDEN]);
        for part in ["q", "k", "v"] {
            put(&format!("self_attn.{part}_proj.weight"), &[heads * head_dim, HIDDEN]);
            put(&format!("self_attn.{part}_proj.bias"), &[heads * head_dim]);
        }
        put("self_attn.o_proj.weight", &[HIDDEN, heads * head_dim]);
        put("self_attn.o_proj.bias", &[HIDDEN]);
        put("self_attn.sinks", &[heads]);
        put("mlp.router.weight", &[experts, HIDDEN]);
        put("mlp.router.bias", &[experts]);
        put("mlp.experts.gate_up_proj", &[experts, HIDDEN, 2 * width]);
        put("mlp.experts.gate_up_proj_bias", &[experts, 2 * width]);
        put("mlp.experts.down_proj", &[experts, width, HIDDEN]);
        put("mlp.experts.down_proj_bias", &[experts, HIDDEN]);
    }
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in tensors {
        let begin = data.len();
        tensor(&name, &shape).iter().for_each(|v| data.extend(v.to_le_bytes()));
        let place = json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert(name, place);
    }
    let file = common::safetensors_file(&Value::Object(header).to_string(), &data);
    let config = json!({
        "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "attention_bias": true, "hidden_act": "silu",
        "hidden_size": HIDDEN, "head_dim": head_dim, "num_attention_heads": heads, "num_key_value_heads": heads,
        "intermediate_size": width, "num_local_experts": experts, "num_experts_per_tok": 1, "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5, "swiglu_limit": 7.0, "tie_word_embeddings": false, "vocab_size": VOCAB,
        "eos_token_id": id("<|return|>"), "rope_parameters": {"rope_theta": 150000.0, "rope_type": "default"},
    });
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let letters = byte_letters();
    let vocab: serde_json::Map<_, _> = letters
        .iter()
        .map(String::as_str)
        .chain(WORDS)
        .enumerate()
        .map(|(i, t)| (t.to_string(), json!(i)))
        .collect();
    let added: Vec<_> = CONTROL
        .iter()
        .map(|t| {
            json!({"id": id(t), "content": t, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
            "vocab": vocab, "merges": []},
    });
    // As gpt-oss's writes turns, its preamble and tools left out.
    let template = "{% for m in messages %}{% if m.role == 'assistant' %}\
        {% if m.thinking is defined and m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}\
        <|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>\
        {% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}\
        {% if add_generation_prompt %}<|start|>assistant{% endif %}";
    let folder = folder.join("harmony");
    std::fs::create_dir(&folder).unwrap();
    let put = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).unwrap();
    put("model.safetensors", &file);
    put("config.json", config.to_string().as_bytes());
    put("tokenizer.json", tokenizer.to_string().as_bytes());
    put("tokenizer_config.json", json!({"chat_template": template}).to_string().as_bytes());
    folder
}

/// The characters that stand for bytes in byte-level vocabularies (GPT-2's `bytes_to_unicode`).
fn byte_letters() -> Vec<String> {
    let own = |b: &u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut next = 256;
    (0..256u32)
        .map(|b| {
            let code = if own(&b) {
                b
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).unwrap().to_string()
        })
        .collect()
}

#[test]
fn harmonys_channels_become_reasoning_and_answer() {
    let bench = Bench::new();
    let model = model(bench.folder.path());
    let ask = |more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_llmopt"));
        command
            .current_dir(&bench.folder)
            .args(["run", "-p", "Is it?", "-o", "-", "-m"])
            .arg(&model);
        command.args(["--threads", "2", "--max-tokens", "32"]).args(more);
        let ran = process::finish(bench.start(command)).expect(0);
        let records = ran.records();
        assert_eq!(records.len(), 1, "{}", ran.stdout);
        let text = |name: &str| records[0][name].as_str().map(str::to_string);
        (text("reasoning"), text("answer").unwrap(), text("finish_reason").unwrap())
    };
    let said = |answer: &str| (Some("hmm".to_string()), answer.to_string(), "stop".to_string());
    assert_eq!(ask(&[]), said("yes"));
    // A thought is free; the form begins behind it, and forbids what the model would say.
    assert_eq!(ask(&["--regex", "yes|no"]), said("yes"));
    assert_eq!(ask(&["--regex", "no|never"]), said("no"));
}

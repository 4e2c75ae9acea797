//! Writes tiny random models, as GGUF files and as safetensors folders, for tests (and for `llmopt`'s own unit tests, which include
//! this file by path). In: a [`Tiny`] with knobs. Out: bytes or files. It uses nothing of llmopt, so that a reader and this writer
//! cannot share a mistake; [`Gguf`] is the container alone, which tests of malformed files take apart.
#![allow(dead_code, clippy::all)]

use serde_json::json;
use std::path::{Path, PathBuf};

/// How a tensor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    F32,
    Bf16,
    F16,
    Q8_0,
    Q4_1,
}

impl Stored {
    pub const ALL: [Stored; 5] =
        [Stored::F32, Stored::Bf16, Stored::F16, Stored::Q8_0, Stored::Q4_1];

    /// The type number of GGUF files.
    pub fn ggml(self) -> u32 {
        match self {
            Stored::F32 => 0,
            Stored::F16 => 1,
            Stored::Q4_1 => 3,
            Stored::Q8_0 => 8,
            Stored::Bf16 => 30,
        }
    }

    /// The `dtype` of safetensors files.
    pub fn safetensors(self) -> &'static str {
        match self {
            Stored::F32 => "F32",
            Stored::F16 => "F16",
            Stored::Bf16 => "BF16",
            _ => panic!("{self:?} does not exist in safetensors files"),
        }
    }
}

/// Which numbers the weights are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// One of 16 levels times a power of two: every [`Stored`] holds it exactly, so all formats hold the SAME model.
    Grid,
    /// Full f32 mantissas, rounded (or quantized) by the format: formats differ, as in life.
    Fine,
}

/// A tiny llama with random weights and a byte-level BPE vocabulary. Change fields, then call [`Tiny::gguf`] or [`Tiny::write`].
#[derive(Debug, Clone)]
pub struct Tiny {
    pub name: String,
    pub seed: u64,
    pub layers: usize,
    pub hidden: usize,
    pub ffn: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// At least 259: three control tokens and 256 bytes; the rest are merges.
    pub vocab: usize,
    pub context: usize,
    pub theta: f32,
    pub epsilon: f32,
    /// Format of the matrices of the layers; norms are always f32 in GGUF files.
    pub weights: Stored,
    /// Format of the token embedding and the output matrix.
    pub embedding: Stored,
    /// No `output.weight`: the token embedding serves.
    pub tied: bool,
    pub values: Values,
    /// Standard deviation of a matrix, times `sqrt(columns)`: larger means livelier answers.
    pub gain: f32,
    pub chat_template: Option<String>,
}

/// ChatML, as SmolLM2 has it.
pub const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

impl Default for Tiny {
    fn default() -> Self {
        Tiny {
            name: "tiny".into(),
            seed: 1,
            layers: 2,
            hidden: 64,
            ffn: 96,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            vocab: 320,
            context: 256,
            theta: 10_000.0,
            epsilon: 1e-5,
            weights: Stored::F32,
            embedding: Stored::F32,
            tied: true,
            values: Values::Grid,
            gain: 1.5,
            chat_template: Some(CHATML.into()),
        }
    }
}

/// A named matrix or vector of a model, as f32 values: `rows` × `columns`, row-major.
#[derive(Debug, Clone)]
pub struct Matrix {
    pub name: String,
    pub rows: usize,
    pub columns: usize,
    pub values: Vec<f32>,
    pub stored: Stored,
    /// The power of two that all values are multiples -8..=7 of ([`Values::Grid`]).
    pub step: Option<f32>,
    /// Written with one dimension (norms).
    pub vector: bool,
}

impl Tiny {
    /// The default sizes with another seed.
    pub fn seeded(seed: u64) -> Self {
        Tiny { seed, ..Tiny::default() }
    }

    /// The smallest model there is, for fuzzing: some 16 KiB as a GGUF file of 4-bit blocks.
    pub fn fuzzed() -> Self {
        Tiny {
            layers: 1,
            hidden: 32,
            ffn: 32,
            heads: 2,
            kv_heads: 1,
            vocab: 261,
            chat_template: None,
            ..Tiny::default()
        }
    }

    /// As wide as the largest blocks of weights.
    pub fn wide() -> Self {
        Tiny { hidden: 256, ffn: 256, heads: 4, kv_heads: 2, head_dim: 64, ..Tiny::default() }
    }

    /// All matrices in this format.
    pub fn stored(mut self, format: Stored) -> Self {
        self.weights = format;
        self.embedding = format;
        self
    }

    /// The tensors in GGUF's names and (interleaved) row order.
    pub fn tensors(&self) -> Vec<Matrix> {
        let (h, q, kv) = (self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut all = vec![self.matrix("token_embd.weight", self.vocab, h, self.embedding, 4.0)];
        for i in 0..self.layers {
            all.push(self.norm(&format!("blk.{i}.attn_norm.weight")));
            all.push(self.matrix(&format!("blk.{i}.attn_q.weight"), q, h, self.weights, 1.0));
            all.push(self.matrix(&format!("blk.{i}.attn_k.weight"), kv, h, self.weights, 1.0));
            all.push(self.matrix(&format!("blk.{i}.attn_v.weight"), kv, h, self.weights, 1.0));
            all.push(self.matrix(&format!("blk.{i}.attn_output.weight"), h, q, self.weights, 1.0));
            all.push(self.norm(&format!("blk.{i}.ffn_norm.weight")));
            all.push(self.matrix(
                &format!("blk.{i}.ffn_gate.weight"),
                self.ffn,
                h,
                self.weights,
                1.0,
            ));
            all.push(self.matrix(
                &format!("blk.{i}.ffn_up.weight"),
                self.ffn,
                h,
                self.weights,
                1.0,
            ));
            all.push(self.matrix(
                &format!("blk.{i}.ffn_down.weight"),
                h,
                self.ffn,
                self.weights,
                1.0,
            ));
        }
        all.push(self.norm("output_norm.weight"));
        if !self.tied {
            all.push(self.matrix("output.weight", self.vocab, h, self.embedding, 1.0));
        }
        all
    }

    fn matrix(&self, name: &str, rows: usize, columns: usize, stored: Stored, lift: f32) -> Matrix {
        let mut random = Random::new(self.seed, name);
        let deviation = self.gain * lift / (columns as f32).sqrt();
        // 16 equally likely levels -8..=7 have a standard deviation of 4.6.
        let step = (deviation / 4.6).log2().round().exp2();
        let mut value = || match self.values {
            Values::Grid => (random.below(16) as f32 - 8.0) * step,
            Values::Fine => random.normal() * deviation,
        };
        let values = (0..rows * columns).map(|_| value()).collect();
        let step = (self.values == Values::Grid).then_some(step);
        Matrix { name: name.into(), rows, columns, values, stored, step, vector: false }
    }

    fn norm(&self, name: &str) -> Matrix {
        let mut random = Random::new(self.seed, name);
        let values = (0..self.hidden).map(|_| 0.75 + random.below(8) as f32 / 16.0).collect();
        Matrix {
            name: name.into(),
            rows: 1,
            columns: self.hidden,
            values,
            stored: Stored::F32,
            step: None,
            vector: true,
        }
    }

    /// Token texts by id: three control tokens, the 256 bytes, then merges of earlier tokens; and the merges by rank.
    pub fn vocabulary(&self) -> (Vec<String>, Vec<String>) {
        let mut tokens: Vec<String> =
            ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(String::from).to_vec();
        tokens.extend((0..=255u8).map(|b| byte_char(b).to_string()));
        let mut seen: std::collections::HashSet<String> = tokens.iter().cloned().collect();
        let mut merges = Vec::new();
        let words = [
            "he", "in", "re", "on", "er", "at", "en", "es", "nd", "it", "or", "is", "Ġt", "Ġa",
            "Ġs", "Ġw", "Ġthe", "Ġan",
        ];
        let splits = [("Ġt", "he"), ("Ġa", "n")];
        for word in words {
            let split = splits.iter().find(|(a, b)| format!("{a}{b}") == word).copied();
            let first = word.chars().next().map_or(1, char::len_utf8);
            let (left, right) = split.unwrap_or(word.split_at(first));
            if tokens.len() < self.vocab && seen.insert(word.to_string()) {
                tokens.push(word.to_string());
                merges.push(format!("{left} {right}"));
            }
        }
        let letters: Vec<String> = ('a'..='z').map(String::from).collect();
        'fill: for left in tokens.clone().iter().skip(3) {
            for right in &letters {
                if tokens.len() >= self.vocab {
                    break 'fill;
                }
                let both = format!("{left}{right}");
                if seen.insert(both.clone()) {
                    tokens.push(both);
                    merges.push(format!("{left} {right}"));
                }
            }
        }
        assert_eq!(tokens.len(), self.vocab, "Tiny::vocab must be 259..=6900");
        (tokens, merges)
    }

    /// The container, to be changed by tests before [`Gguf::bytes`].
    pub fn container(&self) -> Gguf {
        let (tokens, merges) = self.vocabulary();
        let types = (0..tokens.len()).map(|i| if i < 3 { 3 } else { 1 }).collect();
        let int = |n: usize| Value::U32(n as u32);
        let mut metadata: Vec<(String, Value)> = [
            ("general.architecture", Value::Str("llama".into())),
            ("general.name", Value::Str(self.name.clone())),
            ("llama.block_count", int(self.layers)),
            ("llama.context_length", int(self.context)),
            ("llama.embedding_length", int(self.hidden)),
            ("llama.feed_forward_length", int(self.ffn)),
            ("llama.attention.head_count", int(self.heads)),
            ("llama.attention.head_count_kv", int(self.kv_heads)),
            ("llama.attention.key_length", int(self.head_dim)),
            ("llama.attention.value_length", int(self.head_dim)),
            ("llama.rope.dimension_count", int(self.head_dim)),
            ("llama.rope.freq_base", Value::F32(self.theta)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(self.epsilon)),
            ("llama.vocab_size", int(self.vocab)),
            ("tokenizer.ggml.model", Value::Str("gpt2".into())),
            ("tokenizer.ggml.pre", Value::Str("smollm".into())),
            ("tokenizer.ggml.tokens", Value::Strings(tokens)),
            ("tokenizer.ggml.token_type", Value::I32s(types)),
            ("tokenizer.ggml.merges", Value::Strings(merges)),
            ("tokenizer.ggml.bos_token_id", int(1)),
            ("tokenizer.ggml.eos_token_id", int(2)),
            ("tokenizer.ggml.unknown_token_id", int(0)),
            ("tokenizer.ggml.padding_token_id", int(2)),
            ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
        ]
        .map(|(key, value)| (key.to_string(), value))
        .to_vec();
        if let Some(template) = &self.chat_template {
            metadata.push(("tokenizer.chat_template".into(), Value::Str(template.clone())));
        }
        let tensors = self.tensors().iter().map(Tensor::of).collect();
        Gguf { metadata, tensors, ..Gguf::default() }
    }

    /// A whole GGUF file.
    pub fn gguf(&self) -> Vec<u8> {
        self.container().bytes()
    }

    /// Writes the model as a safetensors folder, in this many shards, with the matrices of the format of `weights` (a float one).
    pub fn write_checkpoint(&self, folder: &Path, shards: usize) {
        std::fs::create_dir_all(folder).expect("create the folder");
        let put = |name: &str, value: &serde_json::Value| {
            std::fs::write(folder.join(name), serde_json::to_vec_pretty(value).expect("JSON"))
                .expect("write a tiny model");
        };
        put("config.json", &self.config());
        put("tokenizer.json", &self.tokenizer_json());
        put(
            "tokenizer_config.json",
            &json!({"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": self.chat_template,
                "add_bos_token": false}),
        );
        put("generation_config.json", &json!({"bos_token_id": 1, "eos_token_id": 2}));
        let tensors = self.checkpoint_tensors();
        if shards == 1 {
            std::fs::write(folder.join("model.safetensors"), safetensors(&tensors))
                .expect("write a tiny model");
            return;
        }
        let mut map = serde_json::Map::new();
        for (i, part) in tensors.chunks(tensors.len().div_ceil(shards)).enumerate() {
            let name = format!("model-{:05}-of-{shards:05}.safetensors", i + 1);
            std::fs::write(folder.join(&name), safetensors(part)).expect("write a tiny model");
            map.extend(part.iter().map(|t| (t.name.clone(), json!(name))));
        }
        put("model.safetensors.index.json", &json!({"metadata": {}, "weight_map": map}));
    }

    /// `config.json` as transformers writes it.
    pub fn config(&self) -> serde_json::Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": self.hidden,
            "intermediate_size": self.ffn, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim, "vocab_size": self.vocab,
            "max_position_embeddings": self.context, "rms_norm_eps": self.epsilon as f64, "rope_theta": self.theta as f64,
            "tie_word_embeddings": self.tied, "bos_token_id": 1, "eos_token_id": 2,
        })
    }

    /// `tokenizer.json` of the same vocabulary, as SmolLM2 has it.
    pub fn tokenizer_json(&self) -> serde_json::Value {
        let (tokens, merges) = self.vocabulary();
        let ids: serde_json::Map<_, _> =
            tokens.iter().enumerate().map(|(i, t)| (t.clone(), json!(i))).collect();
        let added: Vec<_> = tokens[..3]
            .iter()
            .enumerate()
            .map(|(i, t)| {
                json!({"id": i, "content": t, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
            })
            .collect();
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, bytes]},
            "post_processor": null, "decoder": bytes,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": ids, "merges": merges},
        })
    }

    /// The tensors in the names and the (half-split) row order of checkpoints.
    pub fn checkpoint_tensors(&self) -> Vec<Matrix> {
        let names = [
            ("token_embd", "model.embed_tokens"),
            ("output_norm", "model.norm"),
            ("output", "lm_head"),
            ("attn_norm", "input_layernorm"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ];
        let rename = |name: &str| {
            let parts: Vec<&str> = name.split('.').collect();
            let of = |part: &str| names.iter().find(|(a, _)| *a == part).expect("a known part").1;
            match parts[..] {
                ["blk", layer, part, end] => format!("model.layers.{layer}.{}.{end}", of(part)),
                _ => format!("{}.{}", of(parts[0]), parts[1]),
            }
        };
        let mut all = self.tensors();
        for m in &mut all {
            if m.name.contains("attn_q") || m.name.contains("attn_k") {
                let (d, width) = (self.head_dim, m.columns);
                let old = m.values.clone();
                for row in 0..m.rows {
                    let (head, within) = (row / d, row % d);
                    let from = head * d + within % (d / 2) * 2 + within / (d / 2);
                    m.values[row * width..][..width].copy_from_slice(&old[from * width..][..width]);
                }
            }
            m.name = rename(&m.name);
        }
        all
    }

    /// Writes `NAME.gguf` into the folder and returns its path.
    pub fn write(&self, folder: &Path) -> PathBuf {
        let path = folder.join(format!("{}.gguf", self.name));
        std::fs::write(&path, self.gguf()).expect("write a tiny model");
        path
    }
}

/// A GGUF file before it is written.
#[derive(Debug, Clone)]
pub struct Gguf {
    pub magic: [u8; 4],
    pub version: u32,
    pub alignment: u64,
    pub metadata: Vec<(String, Value)>,
    pub tensors: Vec<Tensor>,
    /// Counts to write instead of the true ones.
    pub tensor_count: Option<u64>,
    pub metadata_count: Option<u64>,
}

impl Default for Gguf {
    fn default() -> Self {
        Gguf {
            magic: *b"GGUF",
            version: 3,
            alignment: 32,
            metadata: vec![],
            tensors: vec![],
            tensor_count: None,
            metadata_count: None,
        }
    }
}

/// A tensor of a GGUF file: what its header says, and its bytes.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub name: String,
    /// Fastest dimension first, as the file has it.
    pub dims: Vec<u64>,
    pub ggml: u32,
    pub data: Vec<u8>,
    /// Offset to write instead of the true one.
    pub offset: Option<u64>,
}

impl Tensor {
    pub fn of(m: &Matrix) -> Self {
        let dims =
            if m.vector { vec![m.columns as u64] } else { vec![m.columns as u64, m.rows as u64] };
        Tensor {
            name: m.name.clone(),
            dims,
            ggml: m.stored.ggml(),
            data: encode(&m.values, m.stored, m.step),
            offset: None,
        }
    }
}

/// A weight type of ggml of which tests only make blocks of any bytes.
pub struct BlockType {
    pub name: &'static str,
    /// The type number of GGUF files.
    pub ggml: u32,
    /// Weights of a block.
    pub block: usize,
    pub bytes: usize,
    /// Bytes that make the scale some 2^-8: each with those of its bits that are set whatever its lowest are, of which there are so many.
    pub scale: &'static [(usize, u8, u8)],
    /// Bytes that make the scale no finite number.
    pub not_finite: &'static [(usize, u8)],
}

const fn half_at_0(name: &'static str, ggml: u32, block: usize, bytes: usize) -> BlockType {
    let (scale, not_finite) = (&[(1, 0x1c, 2)], &[(1, 0x7e)]);
    BlockType { name, ggml, block, bytes, scale, not_finite }
}

/// The types that have no kernel.
pub const BLOCK_TYPES: [BlockType; 12] = [
    half_at_0("IQ2_XXS", 16, 256, 66),
    half_at_0("IQ2_XS", 17, 256, 74),
    half_at_0("IQ2_S", 22, 256, 82),
    half_at_0("IQ3_XXS", 18, 256, 98),
    half_at_0("IQ3_S", 21, 256, 110),
    half_at_0("IQ1_S", 19, 256, 50),
    // The scale's sixteen bits are the high four of four words, the lowest first.
    BlockType {
        scale: &[(53, 0xc0, 6), (55, 0x10, 4)],
        not_finite: &[(53, 0xff), (55, 0xff)],
        ..half_at_0("IQ1_M", 29, 256, 56)
    },
    BlockType {
        scale: &[(53, 0x1c, 2)],
        not_finite: &[(53, 0x7e)],
        ..half_at_0("TQ1_0", 34, 256, 54)
    },
    BlockType {
        scale: &[(65, 0x1c, 2)],
        not_finite: &[(65, 0xfc)],
        ..half_at_0("TQ2_0", 35, 256, 66)
    },
    BlockType {
        scale: &[(0, 0x08, 3), (1, 0x08, 3), (2, 0x08, 3), (3, 0x08, 3)],
        not_finite: &[(2, 0x7f)],
        ..half_at_0("NVFP4", 40, 64, 36)
    },
    half_at_0("Q1_0", 41, 128, 18),
    half_at_0("Q2_0", 42, 64, 18),
];

impl BlockType {
    /// Gives a tensor this type, and blocks of any bytes whose scales are some 2^-8.
    pub fn fill(&self, tensor: &mut Tensor) {
        let weights = tensor.dims.iter().product::<u64>() as usize;
        assert!(tensor.dims[0].is_multiple_of(self.block as u64), "{}", self.name);
        let mut random = Random::new(u64::from(self.ggml), &tensor.name);
        tensor.ggml = self.ggml;
        tensor.data = (0..weights / self.block * self.bytes).map(|_| random.next() as u8).collect();
        for block in tensor.data.chunks_exact_mut(self.bytes) {
            for (at, set, free) in self.scale {
                block[*at] = block[*at] & ((1 << free) - 1) | set;
            }
        }
    }
}

/// A metadata value.
#[derive(Debug, Clone)]
pub enum Value {
    U8(u8),
    U32(u32),
    I32(i32),
    U64(u64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Str(String),
    Bytes(Vec<u8>),
    Strings(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    /// (type number, the value's bytes as they are).
    Raw(u32, Vec<u8>),
}

impl Value {
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut put = |kind: u32, bytes: &[u8]| {
            out.extend(kind.to_le_bytes());
            out.extend(bytes);
        };
        let array = |kind: u32, count: usize, parts: Vec<u8>| {
            [kind.to_le_bytes().to_vec(), (count as u64).to_le_bytes().to_vec(), parts].concat()
        };
        match self {
            Value::U8(v) => put(0, &[*v]),
            Value::U32(v) => put(4, &v.to_le_bytes()),
            Value::I32(v) => put(5, &v.to_le_bytes()),
            Value::F32(v) => put(6, &v.to_le_bytes()),
            Value::Bool(v) => put(7, &[u8::from(*v)]),
            Value::Str(v) => put(8, &string(v.as_bytes())),
            Value::Bytes(v) => put(8, &string(v)),
            Value::U64(v) => put(10, &v.to_le_bytes()),
            Value::F64(v) => put(12, &v.to_le_bytes()),
            Value::Strings(v) => {
                put(9, &array(8, v.len(), v.iter().flat_map(|s| string(s.as_bytes())).collect()))
            }
            Value::I32s(v) => {
                put(9, &array(5, v.len(), v.iter().flat_map(|n| n.to_le_bytes()).collect()))
            }
            Value::F32s(v) => {
                put(9, &array(6, v.len(), v.iter().flat_map(|n| n.to_le_bytes()).collect()))
            }
            Value::Raw(kind, bytes) => put(*kind, bytes),
        }
    }
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

impl Gguf {
    /// Sets or adds a metadata value.
    pub fn set(&mut self, key: &str, value: Value) -> &mut Self {
        match self.metadata.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = value,
            None => self.metadata.push((key.into(), value)),
        }
        self
    }

    /// Removes a metadata value.
    pub fn unset(&mut self, key: &str) -> &mut Self {
        self.metadata.retain(|(k, _)| k != key);
        self
    }

    /// The tensor of this name.
    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors
            .iter_mut()
            .find(|t| t.name == name)
            .unwrap_or_else(|| panic!("no tensor {name}"))
    }

    /// Everything before the tensor data: header, metadata, tensor infos, padding.
    pub fn header(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.metadata_count.unwrap_or(self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            out.extend(string(key.as_bytes()));
            value.write(&mut out);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            out.extend(string(tensor.name.as_bytes()));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(tensor.ggml.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(offset).to_le_bytes());
            offset += (tensor.data.len() as u64).next_multiple_of(self.alignment);
        }
        out.resize(out.len().next_multiple_of(self.alignment as usize), 0);
        out
    }

    /// The whole file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        for tensor in &self.tensors {
            out.extend(&tensor.data);
            out.resize(out.len().next_multiple_of(self.alignment as usize), 0);
        }
        out
    }
}

/// A safetensors file.
pub fn safetensors(tensors: &[Matrix]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    for t in tensors {
        let begin = data.len();
        data.extend(encode(&t.values, t.stored, t.step));
        let shape = if t.vector { vec![t.columns] } else { vec![t.rows, t.columns] };
        header.insert(
            t.name.clone(),
            json!({"dtype": t.stored.safetensors(), "shape": shape, "data_offsets": [begin, data.len()]}),
        );
    }
    safetensors_file(&serde_json::Value::Object(header).to_string(), &data)
}

/// A safetensors file with this header text.
pub fn safetensors_file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// Values in a storage format: rounded to nearest even, or quantized with the nearest level. With `step`, values are multiples
/// -8..=7 of it, and are held exactly.
pub fn encode(values: &[f32], stored: Stored, step: Option<f32>) -> Vec<u8> {
    let half = |v: f32| half::f16::from_f32(v).to_le_bytes();
    match stored {
        Stored::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Stored::Bf16 => {
            values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect()
        }
        Stored::F16 => values.iter().flat_map(|v| half(*v)).collect(),
        Stored::Q8_0 => values
            .chunks_exact(32)
            .flat_map(|block| {
                let largest = block.iter().fold(0f32, |a, v| a.max(v.abs()));
                let d = step.unwrap_or(largest / 127.0);
                let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
                half(d)
                    .into_iter()
                    .chain(block.iter().map(move |v| (v * inverse).round() as i8 as u8))
                    .collect::<Vec<_>>()
            })
            .collect(),
        Stored::Q4_1 => values
            .chunks_exact(32)
            .flat_map(|block| {
                let (low, high) =
                    block.iter().fold((f32::MAX, f32::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
                let (m, d) = match step {
                    Some(step) => (-8.0 * step, step),
                    None => (low, (high - low) / 15.0),
                };
                let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
                let nibble = |v: f32| ((v - m) * inverse + 0.5).floor().clamp(0.0, 15.0) as u8;
                let packed = (0..16).map(move |i| nibble(block[i]) | nibble(block[i + 16]) << 4);
                half(d).into_iter().chain(half(m)).chain(packed).collect::<Vec<_>>()
            })
            .collect(),
    }
}

/// GPT-2's byte-to-unicode alphabet.
pub fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(256 + rank).expect("256..=323 are characters")
}

/// Splitmix64, keyed by a seed and a name, so that a tensor's values do not depend on the others.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64, name: &str) -> Self {
        let key = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
        });
        Random(key ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// About normal, mean 0, deviation 1: the sum of 12 uniform numbers.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| (self.next() >> 40) as f32 / (1u64 << 24) as f32).sum::<f32>() - 6.0
    }
}

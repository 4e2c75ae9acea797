//! Untrusted model files: a small valid model, changed one fault at a time. Every fault is refused with one line that names the file
//! and the field; nothing panics, nothing takes memory beyond what the file justifies; and the unchanged controls are accepted.

mod common;

use common::{
    BLOCK_TYPES, CHATML, Gguf, Matrix, Stored, Tensor, Tiny, Value, byte_char, encode, safetensors,
    safetensors_file,
};
use llmopt::model::{Model, ModelError, OpenOptions, open};
use llmopt::text::PromptEncoder;
use serde_json::json;
use std::path::Path;

/// A file and what must become of it.
struct Case {
    name: String,
    bytes: Vec<u8>,
    /// `Some(text)`: refused, with a message that holds `text`. `None`: accepted.
    refused: Option<String>,
}

/// Loads as `run` does: the file, then the tokenizer and the template in it.
fn load(path: &Path) -> Result<Model, ModelError> {
    let model = open(path.to_str().expect("a UTF-8 path"), &OpenOptions::default())?;
    PromptEncoder::new(&model)?;
    Ok(model)
}

fn base() -> Tiny {
    Tiny { tied: false, ..Tiny::default() }
}

/// Collects cases.
struct Cases(Vec<Case>);

impl Cases {
    fn bytes(&mut self, name: impl Into<String>, says: &str, bytes: Vec<u8>) {
        self.0.push(Case { name: name.into(), bytes, refused: Some(says.into()) });
    }

    /// The valid container with one change.
    fn change(&mut self, name: impl Into<String>, says: &str, change: impl FnOnce(&mut Gguf)) {
        let mut file = base().container();
        change(&mut file);
        self.bytes(name, says, file.bytes());
    }

    /// One metadata value replaced.
    fn set(&mut self, name: impl Into<String>, key: &str, value: Value) {
        self.change(name, key, |f| {
            f.set(key, value);
        });
    }

    fn good(&mut self, name: &str, file: Gguf) {
        self.0.push(Case { name: format!("control_{name}"), bytes: file.bytes(), refused: None });
    }
}

fn tokens(file: &mut Gguf) -> &mut Vec<String> {
    strings(file, "tokenizer.ggml.tokens")
}

fn strings<'a>(file: &'a mut Gguf, key: &str) -> &'a mut Vec<String> {
    match file.metadata.iter_mut().find(|(k, _)| k == key) {
        Some((_, Value::Strings(texts))) => texts,
        other => panic!("{key}: {other:?}"),
    }
}

fn types(file: &mut Gguf) -> &mut Vec<i32> {
    match file.metadata.iter_mut().find(|(k, _)| k == "tokenizer.ggml.token_type") {
        Some((_, Value::I32s(numbers))) => numbers,
        other => panic!("{other:?}"),
    }
}

/// An array value with any element type, count and bytes.
fn array(kind: u32, count: u64, bytes: &[u8]) -> Value {
    Value::Raw(9, [&kind.to_le_bytes()[..], &count.to_le_bytes(), bytes].concat())
}

fn text_of_len(len: u64, bytes: &[u8]) -> Value {
    Value::Raw(8, [&len.to_le_bytes()[..], bytes].concat())
}

// A table, an entry a case.
#[allow(clippy::too_many_lines)]
fn container_cases(c: &mut Cases) {
    let whole = base().gguf();
    let header = base().container().header().len();
    // Cut off everywhere: at each of the first bytes, along the header, along the data.
    c.bytes("empty", "empty", vec![]);
    for at in (1..40).step_by(3).chain((1..30).map(|i| header * i / 30)) {
        c.bytes(format!("trunc_{at}"), "", whole[..at].to_vec());
    }
    for i in 0..15 {
        let at = header + (whole.len() - header) * i / 15;
        c.bytes(format!("trunc_data_{i}"), "past the end of the file", whole[..at].to_vec());
    }

    for (name, begin, says) in [
        ("magic_ggml", &b"ggml"[..], "old GGML"),
        ("magic_ggjt", b"tjgg", "old GGML"),
        ("magic_fugg", b"FUGG", "big-endian"),
        ("magic_lower", b"gguf", "not a GGUF file"),
        ("magic_zero", &[0; 600], "begins with zeros"),
        ("html_page", b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (
            "lfs_pointer",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
            "Git LFS",
        ),
        ("zip", b"PK\x03\x04\x14\0\0\0", "zip"),
        ("gzip", b"\x1f\x8b\x08\0\0\0\0\0", "gzip"),
        ("pickle", b"\x80\x02}q\0X\x05\0", "pickle"),
        ("json", b"{\"a\": 1}", "JSON"),
        ("xml", b"<?xml version=\"1.0\"?><Error>AccessDenied</Error>", "web page"),
        ("short", b"GG", "cut off"),
    ] {
        c.bytes(name, says, begin.to_vec());
    }
    c.bytes(
        "safetensors",
        "safetensors file",
        safetensors(&base().stored(Stored::F32).checkpoint_tensors()),
    );
    for (name, version, says) in [
        ("version_0", 0, "version"),
        ("version_1", 1, "version"),
        ("version_4", 4, "version"),
        ("version_max", u32::MAX, "version"),
        ("big_endian", 0x0300_0000, "big-endian"),
    ] {
        c.change(name, says, |f| f.version = version);
    }
    let true_count = base().container().tensors.len() as u64;
    for (name, count) in [
        ("max", u64::MAX),
        ("2p63", 1 << 63),
        ("2p59", 1 << 59),
        ("2p32", 1 << 32),
        ("1M", 1 << 20),
    ] {
        c.change(format!("tensor_count_{name}"), "tensor count", |f| f.tensor_count = Some(count));
        c.change(format!("metadata_count_{name}"), "metadata count", |f| {
            f.metadata_count = Some(count)
        });
    }
    c.change("tensor_count_0", "", |f| f.tensor_count = Some(0));
    c.change("tensor_count_less", "", |f| f.tensor_count = Some(true_count - 1));
    c.change("tensor_count_more", "", |f| f.tensor_count = Some(true_count + 1));
    c.change("metadata_count_0", "", |f| f.metadata_count = Some(0));
    c.change("metadata_count_less", "", |f| f.metadata_count = Some(f.metadata.len() as u64 - 1));
    c.change("metadata_count_more", "", |f| f.metadata_count = Some(f.metadata.len() as u64 + 1));

    // Keys and values. The byte at 24 begins the first key's length.
    let patched = |at: usize, bytes: &[u8]| {
        let mut file = whole.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    for (name, len) in [
        ("max", u64::MAX),
        ("2p63", 1 << 63),
        ("2p32", 1 << 32),
        ("64k", 1 << 16),
        ("past", whole.len() as u64),
    ] {
        c.bytes(format!("key_len_{name}"), "metadata key 0", patched(24, &len.to_le_bytes()));
    }
    c.bytes("key_not_utf8", "metadata key 0", patched(34, &[0xff, 0xfe]));
    c.bytes("key_zero_byte", "metadata key 0", patched(34, &[0]));
    c.change("key_empty", "metadata key", |f| f.metadata.push((String::new(), Value::U8(1))));
    c.change("key_twice", "twice", |f| {
        f.metadata.push(("llama.block_count".into(), Value::U32(2)))
    });
    c.change("key_twice_unused", "twice", |f| {
        f.metadata.push(("x".into(), Value::U32(2)));
        f.metadata.push(("x".into(), Value::U32(2)));
    });
    for kind in [13, 255, u32::MAX] {
        c.set(format!("value_type_{kind}"), "x.y", Value::Raw(kind, vec![0; 8]));
        c.set(format!("array_type_{kind}"), "x.y", array(kind, 1, &[0; 8]));
    }
    c.set("bool_2", "x.y", Value::Raw(7, vec![2]));
    c.set("array_nested", "x.y", array(9, 1, &[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
    for (name, len) in
        [("max", u64::MAX), ("2p63", 1 << 63), ("2p40", 1 << 40), ("past", whole.len() as u64 + 1)]
    {
        c.set(format!("string_len_{name}"), "x.y", text_of_len(len, b"abc"));
        for (kind, of) in [(0, "u8"), (4, "u32"), (6, "f32"), (8, "strings"), (10, "u64")] {
            c.set(format!("array_len_{of}_{name}"), "x.y", array(kind, len, &[0; 16]));
        }
    }
    // Counts whose product with the element size wraps around to something small.
    c.set("array_wrap_u64", "x.y", array(10, (1 << 61) + 1, &[0; 16]));
    c.set("array_wrap_u32", "x.y", array(4, (1 << 62) + 1, &[0; 16]));
    c.set("array_string_len_max", "element 0", array(8, 1, &u64::MAX.to_le_bytes()));
    c.set("name_not_utf8", "general.name", Value::Bytes(vec![b'a', 0xff]));

    for (name, n) in [
        ("0", 0),
        ("1", 1),
        ("3", 3),
        ("4", 4),
        ("48", 48),
        ("2p17", 1 << 17),
        ("2p31", 1 << 31),
        ("max", u64::from(u32::MAX)),
    ] {
        c.set(format!("alignment_{name}"), "general.alignment", Value::U32(n as u32));
        c.set(format!("alignment_u64_{name}"), "general.alignment", Value::U64(n));
    }
    c.set("alignment_u64_largest", "general.alignment", Value::U64(u64::MAX));
    c.set("alignment_2p63", "general.alignment", Value::U64(1 << 63));
    c.set("alignment_text", "general.alignment", Value::Str("32".into()));
    c.set("alignment_negative", "general.alignment", Value::I32(-32));
    c.set("alignment_signed", "general.alignment", Value::I32(32));
    c.set("alignment_float", "general.alignment", Value::F32(32.0));
    c.set("alignment_array", "general.alignment", Value::I32s(vec![32]));
    // The tensors lie at multiples of 32, some not of 4096.
    c.change("alignment_larger_than_used", "tensor", |f| {
        f.set("general.alignment", Value::U32(4096));
    });
}

fn tensor_cases(c: &mut Cases) {
    const T: &str = "blk.0.attn_q.weight";
    c.change("name_empty", "name", |f| f.tensor(T).name = String::new());
    c.change("name_twice", "twice", |f| f.tensor(T).name = "blk.0.attn_k.weight".into());
    c.change("name_long", "name of tensor", |f| f.tensor(T).name = "x".repeat(64));
    c.change("name_control", "name", |f| f.tensor(T).name = "blk.0\n.attn_q.weight".into());
    c.change("name_unknown", "nobody", |f| {
        let extra =
            Tensor { name: "nobody.knows".into(), ..f.tensor("output_norm.weight").clone() };
        f.tensors.push(extra);
    });
    c.change("name_bias", "attn_k.bias is missing", |f| {
        let extra =
            Tensor { name: "blk.0.attn_q.bias".into(), ..f.tensor("output_norm.weight").clone() };
        f.tensors.push(extra);
    });
    for name in [
        "token_embd",
        "output_norm",
        "blk.0.attn_norm",
        "blk.1.attn_q",
        "blk.0.attn_k",
        "blk.1.attn_v",
        "blk.0.attn_output",
        "blk.1.ffn_norm",
        "blk.0.ffn_gate",
        "blk.1.ffn_up",
        "blk.0.ffn_down",
    ] {
        c.change(format!("missing_{name}"), name, |f| {
            f.tensors.retain(|t| t.name != format!("{name}.weight"))
        });
        c.change(format!("renamed_{name}"), name, |f| {
            f.tensor(&format!("{name}.weight")).name = format!("{name}.weighu")
        });
        c.change(format!("rows_less_{name}"), name, |f| {
            *f.tensor(&format!("{name}.weight")).dims.last_mut().expect("dims") -= 1
        });
        c.change(format!("extra_dim_{name}"), name, |f| {
            f.tensor(&format!("{name}.weight")).dims.extend([1, 1])
        });
    }
    c.change("norm_as_column", "output_norm.weight", |f| {
        f.tensor("output_norm.weight").dims = vec![1, 64]
    });
    c.change("norm_as_matrix", "output_norm.weight", |f| {
        f.tensor("output_norm.weight").dims = vec![64, 1]
    });
    c.change("transposed", "ffn_down", |f| f.tensor("blk.0.ffn_down.weight").dims.reverse());
    for (name, dims) in [
        ("none", vec![]),
        ("5", vec![64, 1, 1, 1, 64]),
        ("zero", vec![64, 0]),
        ("all_zero", vec![0, 0]),
        ("wrap_2p58", vec![64, 64 + (1 << 58)]),
        ("wrap_2p62", vec![64, 64 + (1 << 62)]),
        ("wrap_squared", vec![1 << 32, 1 << 32]),
        ("wrap_three", vec![1 << 22, 1 << 21, 1 << 21]),
        ("wrap_four", vec![64, 64, 1 << 32, 1 << 32]),
        ("wrap_bytes", vec![64, 1 << 56]),
        ("max", vec![u64::MAX, 1]),
        ("max_max", vec![u64::MAX, u64::MAX]),
        ("2p63", vec![1 << 63, 2]),
        ("2p63_minus", vec![(1 << 63) - 1, 1]),
    ] {
        c.change(format!("dims_{name}"), "attn_q", |f| f.tensor(T).dims = dims);
    }
    let others = [2, 3, 4, 5, 8, 9, 12, 15, 24, 28, 31, 36, 39, 43, 255, u32::MAX];
    for kind in others.into_iter().chain(BLOCK_TYPES.map(|t| t.ggml)) {
        // Types of the wrong size for a row of 64, unsupported ones, removed ones, ones that do not exist; and (2, 3, 8) types
        // of fewer bytes over f32 data, whose scales are then no finite numbers or leave a tensor of noise: made NaN here.
        c.change(format!("type_{kind}"), "attn_q", |f| {
            let t = f.tensor(T);
            t.ggml = kind;
            t.data.fill(0xff);
        });
    }
    let len = base().gguf().len() as u64;
    for (name, offset, says) in [
        ("plus_1", 1, "multiple of the alignment"),
        ("plus_16", 16, "multiple of the alignment"),
        ("file_length", len.next_multiple_of(32), "past the end"),
        ("last_block", (len / 32 - 1) * 32, "past the end"),
        ("2p62", 1 << 62, "past the end"),
        ("2p63", 1 << 63, "past the end"),
        ("max", u64::MAX, "multiple of the alignment"),
        ("max_aligned", u64::MAX - 31, "past the end"),
        ("0", 0, "overlap"),
        ("32", 32, "overlap"),
    ] {
        c.change(format!("offset_{name}"), says, |f| f.tensor(T).offset = Some(offset));
    }
    // A damaged output matrix is an error, and never taken for a tied one.
    // NVFP4 files may have scales of whole tensors: what is not computed is not left out.
    c.change("tensor_scale", "blk.0.attn_q.scale", |f| {
        let data = encode(&[0.5], Stored::F32, None);
        let name = "blk.0.attn_q.scale".into();
        f.tensors.push(Tensor { name, dims: vec![1], ggml: 0, data, offset: None });
    });
    const O: &str = "output.weight";
    c.change("output_weight_type", O, |f| f.tensor(O).ggml = 99);
    c.change("output_weight_iq", O, |f| f.tensor(O).ggml = 16);
    for (kind, name) in [
        (9, "Q8_1 or Q8_K"),
        (15, "Q8_1 or Q8_K"),
        (24, "integers"),
        (27, "integers"),
        (28, "F64"),
        (4, "no longer part of ggml"),
        (37, "no longer part of ggml"),
        (43, "unknown"),
    ] {
        c.change(format!("type_{kind}_named"), name, |f| f.tensor(T).ggml = kind);
    }
    c.change("output_weight_offset", O, |f| f.tensor(O).offset = Some(1 << 40));
    c.change("output_weight_dims", O, |f| f.tensor(O).dims[1] -= 1);
    c.change("output_weight_name", "output.weighu", |f| f.tensor(O).name = "output.weighu".into());
    c.change("output_weight_nan", O, |f| {
        f.tensor(O).data[..4].copy_from_slice(&f32::NAN.to_le_bytes())
    });
    c.change("output_weight_bias", "output.bias", |f| f.tensor(O).name = "output.bias".into());
}

fn weight_cases(c: &mut Cases) {
    // Values that are no finite numbers, first and last, in every format and in norms.
    let f16 = |x: f32| half::f16::from_f32(x).to_le_bytes().to_vec();
    let bf16 = |x: f32| half::bf16::from_f32(x).to_le_bytes().to_vec();
    for (bad_name, bad) in
        [("nan", f32::NAN), ("inf", f32::INFINITY), ("minus_inf", f32::NEG_INFINITY)]
    {
        for (stored, bytes, places) in [
            (Stored::F32, bad.to_le_bytes().to_vec(), [0usize, 4]),
            (Stored::F16, f16(bad), [0, 2]),
            (Stored::Bf16, bf16(bad), [0, 2]),
            // Counted from the end of the last block: its scale; Q4_1 has a minimum too, put first.
            (Stored::Q8_0, f16(bad), [0, 34]),
            (Stored::Q4_1, f16(bad), [2, 20]),
        ] {
            for (place, name) in ["first", "last"].iter().enumerate() {
                let mut file = base().stored(stored).container();
                let data = &mut file.tensor("blk.1.ffn_up.weight").data;
                let at = if place == 0 { places[0] } else { data.len() - places[1] };
                data[at..at + bytes.len()].copy_from_slice(&bytes);
                c.bytes(
                    format!("weight_{bad_name}_{stored:?}_{name}").to_lowercase(),
                    "blk.1.ffn_up.weight",
                    file.bytes(),
                );
            }
        }
        for kind in BLOCK_TYPES.iter().filter(|_| bad_name == "nan") {
            for (place, name) in ["first", "last"].iter().enumerate() {
                let mut file = Tiny { tied: false, ..Tiny::wide() }.container();
                let tensor = file.tensor("blk.1.ffn_up.weight");
                kind.fill(tensor);
                let block = place * (tensor.data.len() - kind.bytes);
                for (at, byte) in kind.not_finite {
                    tensor.data[block + at] = *byte;
                }
                let case = format!("weight_{bad_name}_{}_{name}", kind.name).to_lowercase();
                c.bytes(case, "tensor blk.1.ffn_up.weight: a scale in row", file.bytes());
            }
        }
        c.change(format!("norm_{bad_name}"), "blk.0.attn_norm.weight", |f| {
            f.tensor("blk.0.attn_norm.weight").data[8..12].copy_from_slice(&bad.to_le_bytes());
        });
        c.change(format!("embedding_{bad_name}"), "token_embd.weight", |f| {
            f.tensor("token_embd.weight").data[4096..4100].copy_from_slice(&bad.to_le_bytes());
        });
        c.change(format!("rope_freqs_{bad_name}"), "factor", |f| {
            let factors = [1.0, bad, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
            f.tensors.push(rope_freqs(&factors));
        });
    }
    c.change("rope_freqs_zero", "factor", |f| f.tensors.push(rope_freqs(&[0.0; 8])));
    c.change("rope_freqs_length", "factors", |f| f.tensors.push(rope_freqs(&[1.0; 7])));
}

fn rope_freqs(factors: &[f32]) -> Tensor {
    let data = encode(factors, Stored::F32, None);
    Tensor {
        name: "rope_freqs.weight".into(),
        dims: vec![factors.len() as u64],
        ggml: 0,
        data,
        offset: None,
    }
}

#[allow(clippy::too_many_lines, reason = "a list of cases")]
fn parameter_cases(c: &mut Cases) {
    let integers = [
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.head_count_kv",
        "llama.attention.key_length",
        "llama.rope.dimension_count",
    ];
    let optional = [
        "llama.attention.head_count_kv",
        "llama.attention.key_length",
        "llama.rope.dimension_count",
    ];
    for key in integers {
        let short = key.rsplit('.').next().expect("a name");
        c.set(format!("{short}_0"), key, Value::U32(0));
        c.set(format!("{short}_max"), key, Value::U32(u32::MAX));
        c.set(format!("{short}_u64_max"), key, Value::U64(u64::MAX));
        c.set(format!("{short}_negative"), key, Value::I32(-1));
        c.set(format!("{short}_text"), key, Value::Str("2".into()));
        c.set(format!("{short}_float"), key, Value::F32(2.0));
        // Widths and heads may differ from layer to layer: the tensors then have to.
        let per_layer = ["feed_forward_length", "head_count", "head_count_kv"].contains(&short);
        if per_layer {
            c.change(format!("{short}_array_too_long"), key, |f| {
                f.set(key, Value::I32s(vec![2, 2, 2]));
            });
            c.change(format!("{short}_array_negative"), key, |f| {
                f.set(key, Value::I32s(vec![2, -2]));
            });
        } else {
            c.set(format!("{short}_array"), key, Value::I32s(vec![2, 2]));
        }
        if !optional.contains(&key) {
            c.change(format!("{short}_missing"), key, |f| {
                f.unset(key);
            });
        }
    }
    for (name, key, n) in [
        ("blocks_one_more", "llama.block_count", 3),
        ("blocks_one_less", "llama.block_count", 1),
        ("blocks_513", "llama.block_count", 513),
        ("blocks_20", "llama.block_count", 20),
        ("hidden_32", "llama.embedding_length", 32),
        ("hidden_128", "llama.embedding_length", 128),
        ("ffn_95", "llama.feed_forward_length", 95),
        ("heads_3", "llama.attention.head_count", 3),
        ("heads_8", "llama.attention.head_count", 8),
        ("heads_kv_3", "llama.attention.head_count_kv", 3),
        ("heads_kv_4", "llama.attention.head_count_kv", 4),
        ("heads_kv_8", "llama.attention.head_count_kv", 8),
        ("key_length_15", "llama.attention.key_length", 15),
        ("value_length_8", "llama.attention.value_length", 8),
        ("rope_dims_odd", "llama.rope.dimension_count", 15),
        ("rope_dims_more", "llama.rope.dimension_count", 18),
        ("vocab_size_less", "llama.vocab_size", 319),
        ("vocab_size_more", "llama.vocab_size", 321),
        ("vocab_size_0", "llama.vocab_size", 0),
        ("experts_8", "llama.expert_count", 8),
        ("experts_max", "llama.expert_count", u32::MAX),
        ("experts_used", "llama.expert_used_count", 2),
    ] {
        c.change(name, "", |f| {
            f.set(key, Value::U32(n));
        });
    }
    for (name, x) in [
        ("nan", f32::NAN),
        ("inf", f32::INFINITY),
        ("negative", -1.0),
        ("minus_inf", f32::NEG_INFINITY),
    ] {
        c.set(format!("eps_{name}"), "llama.attention.layer_norm_rms_epsilon", Value::F32(x));
        c.set(
            format!("eps_f64_{name}"),
            "llama.attention.layer_norm_rms_epsilon",
            Value::F64(x.into()),
        );
        c.set(format!("theta_{name}"), "llama.rope.freq_base", Value::F32(x));
        c.set(format!("rope_factor_{name}"), "llama.rope.scaling.factor", Value::F32(x));
        c.set(format!("scale_{name}"), "llama.logit_scale", Value::F32(x));
    }
    c.set("eps_1", "llama.attention.layer_norm_rms_epsilon", Value::F32(1.0));
    c.set("eps_text", "llama.attention.layer_norm_rms_epsilon", Value::Str("1e-5".into()));
    c.change("eps_missing", "llama.attention.layer_norm_rms_epsilon", |f| {
        f.unset("llama.attention.layer_norm_rms_epsilon");
    });
    c.set("theta_0", "llama.rope.freq_base", Value::F32(0.0));
    c.set("theta_f64_max", "llama.rope.freq_base", Value::F64(1e300));
    c.change("rope_scaling_yarn", "llama.rope.scaling.factor", |f| {
        f.set("llama.rope.scaling.type", Value::Str("yarn".into()));
    });
    c.set("rope_scaling_unknown", "llama.rope.scaling.type", Value::Str("\u{1b}[31m".into()));
    c.set("not_causal", "llama.attention.causal", Value::Bool(false));
    c.set("logit_scale", "llama.logit_scale", Value::F32(0.5));
    c.change("architecture_unknown", "known: llama", |f| {
        f.set("general.architecture", Value::Str("mamba".into()));
    });
    for (name, value) in [
        ("gemma", Value::Str("gemma3".into())),
        ("empty", Value::Str(String::new())),
        ("escape", Value::Str("\u{1b}]0;x\u{7}\n::error::".into())),
        ("number", Value::U32(1)),
    ] {
        c.change(format!("architecture_{name}"), "", |f| {
            f.set("general.architecture", value);
        });
    }
    c.change("architecture_missing", "general.architecture", |f| {
        f.unset("general.architecture");
    });
}

#[allow(clippy::too_many_lines, reason = "a list of cases")]
fn vocabulary_cases(c: &mut Cases) {
    for key in ["model", "pre", "tokens", "token_type", "merges", "eos_token_id"] {
        let key = format!("tokenizer.ggml.{key}");
        c.change(format!("{key}_missing"), &key, |f| {
            f.unset(&key);
        });
        c.set(format!("{key}_wrong_type"), &key, Value::F32(1.0));
    }
    for (name, key, value) in [
        ("model_bert", "tokenizer.ggml.model", Value::Str("bert".into())),
        ("tok_pre_unknown", "tokenizer.ggml.pre", Value::Str("nosuch".into())),
        ("tok_pre_empty", "tokenizer.ggml.pre", Value::Str(String::new())),
        ("add_bos_text", "tokenizer.ggml.add_bos_token", Value::Str("true".into())),
        ("template_number", "tokenizer.chat_template", Value::U32(1)),
        ("template_not_utf8", "tokenizer.chat_template", Value::Bytes(vec![b'{', 0xc3, b'}'])),
        ("template_huge", "tokenizer.chat_template", Value::Str("x".repeat(3 << 20))),
        ("tokens_empty", "tokenizer.ggml.tokens", Value::Strings(vec![])),
        ("tokens_integers", "tokenizer.ggml.tokens", Value::I32s(vec![1; 320])),
        ("types_floats", "tokenizer.ggml.token_type", Value::F32s(vec![1.0; 320])),
        ("merges_integers", "tokenizer.ggml.merges", Value::I32s(vec![1; 61])),
        ("scores_short", "tokenizer.ggml.scores", Value::F32s(vec![0.0; 319])),
    ] {
        c.set(name, key, value);
    }
    // SentencePiece needs scores, one a token, all finite, and byte tokens that are bytes.
    let s = "tokenizer.ggml.scores";
    let pieces = |f: &mut Gguf, scores: Value| {
        f.set("tokenizer.ggml.model", Value::Str("llama".into())).set(s, scores);
    };
    let with = |bad: f32| {
        Value::F32s((0..320).map(|i| if i == 300 { bad } else { -(i as f32) }).collect())
    };
    c.change("spm_scores_missing", s, |f| {
        f.set("tokenizer.ggml.model", Value::Str("llama".into()));
    });
    c.change("spm_scores_short", s, |f| pieces(f, Value::F32s(vec![0.0; 319])));
    c.change("spm_scores_long", s, |f| pieces(f, Value::F32s(vec![0.0; 321])));
    c.change("spm_scores_texts", s, |f| pieces(f, Value::Strings(vec!["1".into(); 320])));
    for (name, bad) in [("nan", f32::NAN), ("inf", f32::INFINITY), ("minus_inf", f32::NEG_INFINITY)]
    {
        c.change(format!("spm_scores_{name}"), "element 300", |f| pieces(f, with(bad)));
    }
    for bad in ["<0x-1>", "<0x1>", "<0x100>", "<0xff>", "<0xGG>", "<0x 1>", "x"] {
        c.change(format!("spm_byte_{bad}"), "element 319", |f| {
            pieces(f, with(0.0));
            tokens(f)[319] = if bad == "x" { "xyzzy".into() } else { bad.into() };
            types(f)[319] = 6;
        });
    }
    c.change("spm_duplicate", "twice", |f| {
        pieces(f, with(0.0));
        tokens(f)[310] = "a".into();
    });
    for key in ["add_space_prefix", "remove_extra_whitespaces"] {
        let key = format!("tokenizer.ggml.{key}");
        c.change(format!("spm_{key}"), &key, |f| {
            pieces(f, with(0.0));
            f.set(&key, Value::U32(1));
        });
    }
    let t = "tokenizer.ggml.tokens";
    c.change("tokens_fewer", "token", |f| drop(tokens(f).pop()));
    c.change("tokens_more", "token", |f| tokens(f).push("qqqq".into()));
    c.change("tokens_and_types_fewer", "", |f| {
        tokens(f).pop();
        types(f).pop();
    });
    c.change("tokens_duplicate", "twice", |f| tokens(f)[310] = "a".into());
    c.change("tokens_missing_bytes", "byte 0x61", |f| tokens(f)[3 + 0x61] = "zzzz".into());
    c.change("tokens_missing_newline", "byte 0x0a", |f| tokens(f)[3 + 0x0a] = "zzzz".into());
    c.change("tokens_missing_high_byte", "byte 0x80", |f| tokens(f)[3 + 0x80] = "zzzz".into());
    c.change("tokens_control_twice", "twice", |f| tokens(f)[1] = "<|im_end|>".into());
    c.change("token_empty", "element 310", |f| tokens(f)[310] = String::new());
    // Unreachable as a token (Command R has such), but a merge names what stood there.
    c.change("token_outside_alphabet", "tokenizer.ggml.merges", |f| {
        *tokens(f).last_mut().expect("tokens") = "a b".into()
    });
    c.change("token_negative_byte", t, |f| {
        tokens(f)[319] = "<0x-1>".into();
        types(f)[319] = 6;
    });
    c.change("token_too_long", "element 319", |f| tokens(f)[319] = "x".repeat(70_000));
    c.change("token_not_utf8", "element 0", |f| {
        f.set(t, array(8, 1, &[2, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe]));
    });
    c.change("token_len_max", "element 1", |f| {
        f.set(
            t,
            array(8, 2, &[&[1, 0, 0, 0, 0, 0, 0, 0, b'a'][..], &u64::MAX.to_le_bytes()].concat()),
        );
    });
    c.change("types_fewer", "token_type", |f| types(f).truncate(319));
    c.change("types_more", "token_type", |f| types(f).push(1));
    for bad in [0, 7, -1, i32::MAX, i32::MIN] {
        c.change(format!("types_{bad}"), "token_type", |f| types(f)[5] = bad);
    }
    let m = "tokenizer.ggml.merges";
    for (name, merge) in [
        ("no_space", "ab"),
        ("two_spaces", "a b c"),
        ("empty", ""),
        ("space", " "),
        ("left_empty", " b"),
        ("right_empty", "a "),
        ("unknown_left", "qzqz e"),
        ("unknown_right", "h qzqz"),
        ("unknown_result", "z q"),
        ("control_part", "<|im_end|> a"),
    ] {
        c.change(format!("merges_{name}"), m, |f| strings(f, m)[0] = merge.into());
    }
    c.change("merge_too_long", m, |f| {
        strings(f, m)[0] = format!("{} {}", "h".repeat(5000), "e".repeat(5000))
    });
    c.change("merges_not_utf8", m, |f| {
        f.set(m, array(8, 1, &[3, 0, 0, 0, 0, 0, 0, 0, 0xff, b' ', b'a']));
    });
    for key in [
        "bos_token_id",
        "eos_token_id",
        "eot_token_id",
        "eom_token_id",
        "unknown_token_id",
        "padding_token_id",
    ] {
        let key = format!("tokenizer.ggml.{key}");
        c.set(format!("{key}_past"), &key, Value::U32(320));
        c.set(format!("{key}_max"), &key, Value::U32(u32::MAX));
        c.set(format!("{key}_negative"), &key, Value::I32(-1));
        c.set(format!("{key}_text"), &key, Value::Str("2".into()));
    }
    c.change("add_bos_without_bos", "bos_token_id", |f| {
        f.unset("tokenizer.ggml.bos_token_id")
            .set("tokenizer.ggml.add_bos_token", Value::Bool(true));
    });
}

fn template_cases(c: &mut Cases) {
    let nested = |open: &str, inner: &str, close: &str, n: usize| {
        format!("{}{inner}{}", open.repeat(n), close.repeat(n))
    };
    let loops =
        |n: usize, body: &str| nested("{% for i in range(1000) %}", body, "{% endfor %}", n);
    for (name, template) in [
        ("syntax", "{% for m in messages %}".to_string()),
        ("syntax_close", "{{ messages[0]['content'] }".into()),
        ("unknown_tag", "{% launch %}{{ messages[0].content }}".into()),
        ("empty", String::new()),
        ("drops_the_message", "<|im_start|>user{{ mesages[0].content }}".into()),
        ("drops_the_message_by_name", "{{ messages[0].contents }}".into()),
        ("repeats_the_message", "{{ messages[0].content }}{{ messages[0].content }}".into()),
        ("loop", loops(4, "x")),
        ("loop_messages", format!("{}{{{{ messages[0].content }}}}", loops(3, "{{ i }}"))),
        ("big_output", format!("{{{{ messages[0].content }}}}{}", loops(2, &"y".repeat(1000)))),
        (
            "big_string",
            "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}"
                .into(),
        ),
        ("repeat", "{{ 'x' * 5000000000 }}{{ messages[0].content }}".into()),
        ("range_huge", "{% for i in range(99999999999) %}x{% endfor %}".into()),
        ("macro_recursion", "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}".into()),
        ("deep", nested("{% if true %}", "{{ messages[0].content }}", "{% endif %}", 2000)),
        ("deep_expression", format!("{{{{ {} }}}}", nested("(", "1", ")", 20_000))),
        ("deep_minus", format!("{{{{ {}1 }}}}", "-".repeat(60_000))),
        ("include", "{% include '/etc/passwd' %}{{ messages[0].content }}".into()),
        ("import", "{% import 'os' as os %}{{ messages[0].content }}".into()),
        ("extends", "{% extends 'x' %}".into()),
        ("python", "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ messages[0].content }}".into()),
        ("globals", "{{ cycler.__init__.__globals__.os.popen('id').read() }}{{ messages[0].content }}".into()),
        ("raises", "{{ raise_exception('no\nway \u{1b}[31m') }}".into()),
        ("divides_by_zero", "{{ 1 // 0 }}{{ messages[0].content }}".into()),
        ("unknown_filter", "{{ messages[0].content | nosuch }}".into()),
        ("unknown_function", "{{ nosuch() }}{{ messages[0].content }}".into()),
        ("upper", "{{ messages[0].content | upper }}".into()),
    ] {
        c.change(format!("template_{name}"), "tokenizer.chat_template", |f| {
            f.set("tokenizer.chat_template", Value::Str(template));
        });
    }
}

fn controls(c: &mut Cases) {
    for kind in &BLOCK_TYPES {
        let mut file = Tiny { tied: false, ..Tiny::wide() }.container();
        file.tensors.iter_mut().filter(|t| t.dims.len() == 2).for_each(|t| kind.fill(t));
        c.good(&kind.name.to_lowercase(), file);
    }
    for stored in Stored::ALL {
        c.good(&format!("{stored:?}").to_lowercase(), base().stored(stored).container());
        c.good(
            &format!("tied_{stored:?}").to_lowercase(),
            Tiny::default().stored(stored).container(),
        );
    }
    let with = |change: &dyn Fn(&mut Gguf)| {
        let mut file = base().container();
        change(&mut file);
        file
    };
    c.good("version_2", with(&|f| f.version = 2));
    for alignment in [8, 64, 4096, 65536] {
        c.good(
            &format!("alignment_{alignment}"),
            with(&|f| {
                f.alignment = alignment;
                f.set("general.alignment", Value::U32(alignment as u32));
            }),
        );
    }
    // A window that the file names is computed.
    c.good(
        "sliding_window",
        with(&|f| {
            f.set("llama.attention.sliding_window", Value::U32(16));
        }),
    );
    c.good(
        "alignment_u64",
        with(&|f| {
            f.set("general.alignment", Value::U64(32));
        }),
    );
    c.good(
        "no_template",
        with(&|f| {
            f.unset("tokenizer.chat_template");
        }),
    );
    c.good(
        "no_optional_keys",
        with(&|f| {
            for key in [
                "llama.attention.key_length",
                "llama.attention.value_length",
                "llama.rope.dimension_count",
                "llama.vocab_size",
                "llama.rope.freq_base",
                "tokenizer.ggml.bos_token_id",
                "tokenizer.ggml.add_bos_token",
                "tokenizer.ggml.padding_token_id",
            ] {
                f.unset(key);
            }
        }),
    );
    c.good(
        "unknown_metadata",
        with(&|f| {
            f.set("x.a", Value::F64(f64::NAN))
                .set("x.b", Value::Strings(vec!["a".into(), String::new()]));
            f.set("x.c", array(10, 2, &[0; 16]))
                .set("x.d", array(7, 3, &[1, 0, 1]))
                .set("x.e", array(8, 0, &[]));
            f.set("x.f", Value::Raw(1, vec![255]))
                .set("x.g", Value::Raw(3, vec![255; 2]))
                .set("x.h", Value::Raw(11, vec![255; 8]));
        }),
    );
    c.good("tensors_in_another_order", with(&|f| f.tensors.reverse()));
    c.good(
        "merges_none",
        with(&|f| {
            f.set("tokenizer.ggml.merges", Value::Strings(vec![]));
        }),
    );
    c.good("wide_heads", Tiny { head_dim: 32, tied: false, ..Tiny::default() }.container());
    c.good(
        "rope_freqs",
        with(&|f| f.tensors.push(rope_freqs(&[1.0, 1.0, 1.5, 2.0, 4.0, 8.0, 8.0, 8.0]))),
    );
    c.good(
        "missing_rare_bytes",
        with(&|f| {
            // As in SmolLM2: bytes that no text holds have no token.
            for byte in [0xc0usize, 0xff, 0x04] {
                assert_eq!(tokens(f)[3 + byte], byte_char(byte as u8).to_string());
                tokens(f)[3 + byte] = format!("zz{}", byte_char(byte as u8 % 26 + 65));
            }
        }),
    );
    let mut trailing = base().container().bytes();
    trailing.extend([7; 100]);
    c.0.push(Case { name: "control_trailing_bytes".into(), bytes: trailing, refused: None });
}

fn all() -> Vec<Case> {
    let mut c = Cases(Vec::new());
    container_cases(&mut c);
    tensor_cases(&mut c);
    weight_cases(&mut c);
    parameter_cases(&mut c);
    vocabulary_cases(&mut c);
    template_cases(&mut c);
    controls(&mut c);
    c.0
}

/// Peak resident memory of this process, in MiB.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or("VmHWM: 0 kB");
    line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Checks one loaded case; `Err` says what is wrong with the outcome.
fn judge(
    name: &str,
    path: &Path,
    refused: Option<&str>,
    outcome: std::thread::Result<Result<Model, ModelError>>,
) -> Result<(), String> {
    match (outcome, refused) {
        (Err(_), _) => Err(format!("{name}: panicked")),
        (Ok(Ok(_)), None) => Ok(()),
        (Ok(Ok(_)), Some(says)) => Err(format!("{name}: accepted; '{says}' was expected")),
        (Ok(Err(error)), None) => Err(format!("{name}: refused: {error}")),
        (Ok(Err(ModelError::Io(text) | ModelError::Memory(text))), Some(_)) => {
            Err(format!("{name}: called an error of reading or memory: {text}"))
        }
        (Ok(Err(ModelError::Invalid(text))), Some(says)) => {
            let file = path.file_name().expect("a name").to_string_lossy();
            if text.contains(|c: char| c.is_control()) {
                Err(format!("{name}: not one line of plain text: {text:?}"))
            } else if !text.contains(&*file) || !text.contains(says) || text.len() > 600 {
                Err(format!("{name}: must name {file} and '{says}': {text}"))
            } else {
                Ok(())
            }
        }
    }
}

#[test]
fn every_malformed_gguf_file_is_refused_in_one_line_and_every_control_is_accepted() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let cases = all();
    let names: std::collections::HashSet<&String> = cases.iter().map(|c| &c.name).collect();
    assert_eq!(names.len(), cases.len(), "names are unique");
    let bad = cases.iter().filter(|c| c.refused.is_some()).count();
    assert!(bad >= 150, "{bad} faults");
    // For use by other programs: `MALFORMED_OUT=folder cargo test --release --test malformed`.
    let keep = std::env::var_os("MALFORMED_OUT");
    let mut wrong = Vec::new();
    for case in &cases {
        let path = folder.path().join(format!("{}.gguf", case.name));
        std::fs::write(&path, &case.bytes).expect("write");
        if let Some(keep) = &keep {
            let kind = if case.refused.is_some() { "error" } else { "ok" };
            let folder = Path::new(keep).join(kind);
            std::fs::create_dir_all(&folder)
                .and_then(|()| std::fs::copy(&path, folder.join(path.file_name().expect("name"))))
                .expect("copy");
        }
        let outcome = std::panic::catch_unwind(|| load(&path));
        wrong.extend(judge(&case.name, &path, case.refused.as_deref(), outcome).err());
        std::fs::remove_file(&path).expect("remove");
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    println!(
        "{bad} faults refused, {} controls accepted, peak memory {} MiB",
        cases.len() - bad,
        peak_mib()
    );
}

#[test]
fn the_program_ends_with_status_2_and_one_line_and_writes_nothing() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let prompts = folder.path().join("prompts.txt");
    std::fs::write(&prompts, "hello\n").expect("write");
    // Every 12th fault: each costs a process.
    let cases = all()
        .into_iter()
        .enumerate()
        .filter(|(i, case)| i % 12 == 0 || case.refused.is_none())
        .map(|(_, case)| case);
    for case in cases {
        let path = folder.path().join(format!("{}.gguf", case.name));
        let out = folder.path().join(format!("{}.jsonl", case.name));
        std::fs::write(&path, &case.bytes).expect("write");
        let run = std::process::Command::new(env!("CARGO_BIN_EXE_llmopt"))
            .arg("run")
            .arg(&prompts)
            .arg("-m")
            .arg(&path)
            .arg("-o")
            .arg(&out)
            .args(["--max-tokens", "2", "--threads", "1", "-q"])
            .output()
            .expect("the program runs");
        let said = String::from_utf8_lossy(&run.stderr);
        if case.refused.is_none() {
            // A base model refuses the conversation, not the run.
            let status = if case.name == "control_no_template" { 4 } else { 0 };
            assert_eq!(run.status.code(), Some(status), "{}: {said}", case.name);
            assert!(out.exists(), "{}", case.name);
            continue;
        }
        assert_eq!(run.status.code(), Some(2), "{}: {said}", case.name);
        assert!(
            said.lines().count() == 1 && said.contains(&*format!("{}.gguf", case.name)),
            "{}: {said}",
            case.name
        );
        assert!(run.stdout.is_empty() && !out.exists(), "{}", case.name);
    }
}

#[cfg(unix)]
#[test]
fn files_that_only_claim_to_be_large_and_things_that_are_no_files_are_refused() {
    use std::io::Write;
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = |name: &str| folder.path().join(name);
    // Sparse files: the lengths and counts hold within the file, and nothing is behind them.
    let bomb = |name: &str, metadata: Option<(&str, Value)>, tensors: u64, keys: u64, len: u64| {
        let mut file =
            Gguf { tensor_count: Some(tensors), metadata_count: Some(keys), ..Gguf::default() };
        if let Some((key, value)) = metadata {
            file.metadata.push((key.into(), value));
        }
        let mut out = std::fs::File::create(path(name)).expect("create");
        let mut begin = b"GGUF\x03\0\0\0".to_vec();
        begin.extend(tensors.to_le_bytes());
        begin.extend(keys.to_le_bytes());
        for (key, value) in &file.metadata {
            begin.extend((key.len() as u64).to_le_bytes());
            begin.extend(key.as_bytes());
            value.write(&mut begin);
        }
        out.write_all(&begin).and_then(|()| out.set_len(len)).expect("sparse");
    };
    const GIB: u64 = 1 << 30;
    bomb("tensors.gguf", None, GIB / 32, 0, GIB);
    bomb("tensors_250k.gguf", None, 250_000, 0, GIB);
    bomb("keys.gguf", None, 0, GIB / 16, GIB);
    bomb("keys_60k.gguf", None, 0, 60_000, GIB);
    bomb("array_u8.gguf", Some(("x", array(0, 256 << 20, &[]))), 0, 1, GIB);
    bomb("array_u64.gguf", Some(("x", array(10, 64 << 20, &[]))), 0, 1, GIB);
    bomb("array_text.gguf", Some(("x", array(8, 100 << 20, &[]))), 0, 1, GIB);
    bomb("array_text_4m.gguf", Some(("x", array(8, 4 << 20, &[]))), 0, 1, GIB);
    bomb("tokens.gguf", Some(("tokenizer.ggml.tokens", array(8, 100 << 20, &[]))), 0, 1, GIB);
    bomb("tokens_4m.gguf", Some(("tokenizer.ggml.tokens", array(8, 4 << 20, &[]))), 0, 1, GIB);
    bomb("types_4m.gguf", Some(("tokenizer.ggml.token_type", array(5, 4 << 20, &[]))), 0, 1, GIB);
    bomb("text.gguf", Some(("x", text_of_len(512 << 20, b""))), 0, 1, GIB);
    bomb(
        "template.gguf",
        Some(("tokenizer.chat_template", text_of_len(512 << 20, b""))),
        0,
        1,
        GIB,
    );
    bomb("zeros.gguf", None, 0, 0, GIB);

    std::fs::create_dir(path("folder")).expect("folder");
    std::fs::create_dir(path("folder.gguf")).expect("folder");
    std::os::unix::fs::symlink("nowhere", path("dangling.gguf")).expect("link");
    std::os::unix::fs::symlink("loop.gguf", path("loop.gguf")).expect("link");
    std::os::unix::fs::symlink("/dev/zero", path("endless.gguf")).expect("link");
    std::os::unix::fs::symlink("/dev/null", path("null.gguf")).expect("link");
    let made = std::process::Command::new("mkfifo")
        .arg(path("fifo.gguf"))
        .status()
        .is_ok_and(|s| s.success());
    assert!(made, "mkfifo");
    let before = peak_mib();
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(folder.path()).expect("folder").flatten() {
        let name = entry.file_name().into_string().expect("name");
        let outcome = std::panic::catch_unwind(|| load(&entry.path()));
        wrong.extend(judge(&name, &entry.path(), Some(""), outcome).err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let grown = peak_mib() - before;
    assert!(grown < 512, "{grown} MiB for refusing files");
}

/// A folder with one fault: the change, and what the error must hold.
type Change = Box<dyn Fn(&Path)>;

#[allow(clippy::too_many_lines, reason = "a list of cases")]
fn folder_cases() -> Vec<(String, &'static str, usize, Change)> {
    let mut all: Vec<(String, &'static str, usize, Change)> = Vec::new();
    let mut add = |name: &str, says: &'static str, shards: usize, change: Change| {
        all.push((name.into(), says, shards, change))
    };
    let write = |file: &'static str, bytes: Vec<u8>| -> Change {
        Box::new(move |folder| std::fs::write(folder.join(file), &bytes).expect("write"))
    };
    let edit = |file: &'static str, edit: fn(&mut serde_json::Value)| -> Change {
        Box::new(move |folder| {
            let path = folder.join(file);
            let mut value =
                serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
            edit(&mut value);
            std::fs::write(&path, value.to_string()).expect("write");
        })
    };
    let remove = |file: &'static str| -> Change {
        Box::new(move |folder| std::fs::remove_file(folder.join(file)).expect("remove"))
    };

    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        add(&format!("missing_{file}"), file, 1, remove(file));
        add(&format!("empty_{file}"), file, 1, write(file, vec![]));
        add(
            &format!("folder_{file}"),
            file,
            1,
            Box::new(move |folder| {
                std::fs::remove_file(folder.join(file))
                    .and_then(|()| std::fs::create_dir(folder.join(file)))
                    .expect("folder");
            }),
        );
        add(
            &format!("noise_{file}"),
            file,
            1,
            write(file, (0..5000u32).map(|i| (i * i % 251) as u8).collect()),
        );
    }
    add("config_deep", "config.json", 1, write("config.json", "[".repeat(100_000).into_bytes()));
    add("config_list", "config.json", 1, write("config.json", b"[]".to_vec()));
    add("config_huge", "config.json", 1, write("config.json", vec![b' '; 2 << 20]));
    for (field, says) in [
        ("hidden_size", "hidden_size"),
        ("intermediate_size", "intermediate_size"),
        ("num_hidden_layers", "num_hidden_layers"),
        ("num_attention_heads", "num_attention_heads"),
        ("num_key_value_heads", "num_key_value_heads"),
        ("head_dim", "head_dim"),
        ("vocab_size", "vocab_size"),
        ("max_position_embeddings", "max_position_embeddings"),
    ] {
        for (name, value) in [
            ("0", json!(0)),
            ("max", json!(u32::MAX)),
            ("u64_max", json!(u64::MAX)),
            ("negative", json!(-1)),
            ("text", json!("64")),
            ("float", json!(64.5)),
            ("list", json!([64])),
        ] {
            // The JSON reader names the place by line and column if the type is wrong.
            let says = if value.is_u64() { says } else { "config.json" };
            add(
                &format!("config_{field}_{name}"),
                says,
                1,
                Box::new(move |folder| {
                    let path = folder.join("config.json");
                    let mut config: serde_json::Value =
                        serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
                    config[field] = value.clone();
                    std::fs::write(&path, config.to_string()).expect("write");
                }),
            );
        }
    }
    add(
        "config_more_layers",
        "model.layers.2",
        1,
        edit("config.json", |c| c["num_hidden_layers"] = json!(3)),
    );
    add(
        "config_fewer_layers",
        "model.layers.1",
        1,
        edit("config.json", |c| c["num_hidden_layers"] = json!(1)),
    );
    add(
        "config_kv_heads_3",
        "config.json",
        1,
        edit("config.json", |c| c["num_key_value_heads"] = json!(3)),
    );
    add(
        "config_head_dim_odd",
        "config.json",
        1,
        edit("config.json", |c| c["head_dim"] = json!(15)),
    );
    add(
        "config_vocab_less",
        "tokenizer.json",
        1,
        edit("config.json", |c| c["vocab_size"] = json!(100)),
    );
    add(
        "config_vocab_more",
        "embed_tokens",
        1,
        edit("config.json", |c| c["vocab_size"] = json!(321)),
    );
    add("config_eps_0", "rms_norm_eps", 1, edit("config.json", |c| c["rms_norm_eps"] = json!(0.0)));
    add(
        "config_eps_huge",
        "rms_norm_eps",
        1,
        edit("config.json", |c| c["rms_norm_eps"] = json!(1e30)),
    );
    add(
        "config_eps_missing",
        "rms_norm_eps",
        1,
        edit("config.json", |c| c["rms_norm_eps"] = json!(null)),
    );
    add("config_theta_0", "rope_theta", 1, edit("config.json", |c| c["rope_theta"] = json!(0)));
    add(
        "config_theta_1e300",
        "rope_theta",
        1,
        edit("config.json", |c| c["rope_theta"] = json!(1e300)),
    );
    add(
        "config_type_qwen",
        "known: llama",
        1,
        edit("config.json", |c| c["model_type"] = json!("qwen9")),
    );
    add(
        "config_type_missing",
        "known: llama",
        1,
        edit("config.json", |c| c["model_type"] = json!(null)),
    );
    add(
        "config_class",
        "architectures",
        1,
        edit("config.json", |c| c["architectures"] = json!(["LlamaForSequenceClassification"])),
    );
    add(
        "config_bias",
        "q_proj.bias is missing",
        1,
        edit("config.json", |c| c["attention_bias"] = json!(true)),
    );
    add(
        "config_mlp_bias",
        "gate_proj.bias is missing",
        1,
        edit("config.json", |c| c["mlp_bias"] = json!(true)),
    );
    add("config_gelu", "hidden_act", 1, edit("config.json", |c| c["hidden_act"] = json!("mish")));
    add(
        "config_quantized",
        "quantization_config",
        1,
        edit("config.json", |c| c["quantization_config"] = json!({"bits": 4})),
    );
    add(
        "config_yarn",
        "factor",
        1,
        edit("config.json", |c| c["rope_scaling"] = json!({"rope_type": "yarn"})),
    );
    add(
        "config_linear_0",
        "factor",
        1,
        edit("config.json", |c| c["rope_scaling"] = json!({"type": "linear", "factor": 0.0})),
    );
    add(
        "config_llama3_partial",
        "low_freq_factor",
        1,
        edit("config.json", |c| c["rope_scaling"] = json!({"rope_type": "llama3", "factor": 8.0})),
    );
    add(
        "config_eos_past",
        "eos_token_id",
        1,
        edit("generation_config.json", |c| c["eos_token_id"] = json!(320)),
    );
    add(
        "config_eos_negative",
        "eos_token_id",
        1,
        edit("generation_config.json", |c| c["eos_token_id"] = json!([2, -1])),
    );
    add(
        "config_eos_text",
        "eos_token_id",
        1,
        edit("generation_config.json", |c| c["eos_token_id"] = json!("2")),
    );
    add(
        "template_number",
        "chat_template",
        1,
        edit("tokenizer_config.json", |c| c["chat_template"] = json!(1)),
    );
    add(
        "template_unnamed",
        "chat_template",
        1,
        edit("tokenizer_config.json", |c| {
            c["chat_template"] = json!([{"name": "x", "template": ""}])
        }),
    );
    add("template_not_utf8", "chat_template.jinja", 1, write("chat_template.jinja", vec![0xff]));
    add(
        "template_huge",
        "chat_template.jinja",
        1,
        write("chat_template.jinja", vec![b'x'; 2 << 20]),
    );

    // The header of a safetensors file.
    let tensors = || -> Vec<Matrix> { base().checkpoint_tensors() };
    for at in [0, 1, 7, 8, 9, 100, 2000] {
        add(
            &format!("trunc_{at}"),
            "model.safetensors",
            1,
            Box::new(move |folder| {
                let path = folder.join("model.safetensors");
                let bytes = std::fs::read(&path).expect("read");
                std::fs::write(&path, &bytes[..at]).expect("write");
            }),
        );
    }
    for (name, len) in [
        ("2p63", 1u64 << 63),
        ("max", u64::MAX),
        ("100m", 100_000_000),
        ("0", 0),
        ("past", 1 << 20),
    ] {
        add(
            &format!("header_len_{name}"),
            "model.safetensors",
            1,
            Box::new(move |folder| {
                let path = folder.join("model.safetensors");
                let mut bytes = std::fs::read(&path).expect("read");
                bytes[..8].copy_from_slice(&len.to_le_bytes());
                std::fs::write(&path, bytes).expect("write");
            }),
        );
    }
    let whole = safetensors(&tensors());
    add("data_short", "cut off", 1, write("model.safetensors", whole[..whole.len() - 1].to_vec()));
    add(
        "data_long",
        "model.safetensors",
        1,
        write("model.safetensors", [&whole[..], &[0]].concat()),
    );
    let header_len = u64::from_le_bytes(whole[..8].try_into().expect("8 bytes")) as usize;
    let header: serde_json::Value =
        serde_json::from_slice(&whole[8..8 + header_len]).expect("JSON");
    let data = whole[8 + header_len..].to_vec();
    const NORM: &str = "model.norm.weight";
    let embed = "model.embed_tokens.weight";
    let mut change_header =
        |name: &str, says: &'static str, key: &str, entry: serde_json::Value| {
            let mut header = header.clone();
            header[key] = entry;
            add(
                name,
                says,
                1,
                write("model.safetensors", safetensors_file(&header.to_string(), &data)),
            );
        };
    let norm = header[NORM].clone();
    let (begin, end) = (
        norm["data_offsets"][0].as_u64().expect("offset"),
        norm["data_offsets"][1].as_u64().expect("offset"),
    );
    for (name, offsets) in [
        ("overlap", json!([begin - 4, end])),
        ("gap", json!([begin + 4, end])),
        ("backwards", json!([end, begin])),
        ("past", json!([begin, end + 4])),
        ("max", json!([begin, u64::MAX])),
        ("negative", json!([-4, end])),
        ("one", json!([begin])),
        ("text", json!("0")),
    ] {
        change_header(
            &format!("offsets_{name}"),
            "model.safetensors",
            NORM,
            json!({"dtype": "F32", "shape": [64], "data_offsets": offsets}),
        );
    }
    for (name, dtype, shape) in [
        ("dtype_unknown", "Q4", json!([64])),
        ("dtype_i32", "I32", json!([64])),
        ("dtype_f64", "F64", json!([32])),
        ("shape_wrong", "F32", json!([32, 2])),
        ("shape_scalar", "F32", json!([])),
        ("shape_zero", "F32", json!([0])),
        ("shape_wraps", "F32", json!([1u64 << 62, 1u64 << 2, 64])),
        ("shape_negative", "F32", json!([-64])),
    ] {
        change_header(
            name,
            "model",
            NORM,
            json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}),
        );
    }
    change_header("entry_null", "model.safetensors", embed, json!(null));
    change_header("entry_unknown", "model.safetensors", "x", norm.clone());
    change_header("metadata_not_texts", "model.safetensors", "__metadata__", json!({"a": 1}));
    let mut renamed = header.clone();
    let moved = renamed.as_object_mut().expect("object").remove(NORM).expect("norm");
    renamed["model.norm.weighu"] = moved;
    add(
        "tensor_renamed",
        NORM,
        1,
        write("model.safetensors", safetensors_file(&renamed.to_string(), &data)),
    );
    let twice = header.to_string().replacen('{', &format!("{{\"{embed}\":{},", header[embed]), 1);
    add(
        "header_name_twice",
        "twice",
        1,
        write("model.safetensors", safetensors_file(&twice, &data)),
    );
    add(
        "header_deep",
        "model.safetensors",
        1,
        write("model.safetensors", safetensors_file(&"[".repeat(100_000), &[])),
    );
    add(
        "header_not_utf8",
        "model.safetensors",
        1,
        write("model.safetensors", [&4u64.to_le_bytes()[..], b"{\"\xff\""].concat()),
    );
    for (name, bad) in [("nan", f32::NAN), ("inf", f32::INFINITY)] {
        let mut tensors = tensors();
        tensors.iter_mut().find(|t| t.name.contains("1.mlp.up_proj")).expect("up").values[77] = bad;
        add(
            &format!("weight_{name}"),
            "model.layers.1.mlp.up_proj",
            1,
            write("model.safetensors", safetensors(&tensors)),
        );
    }
    let mut extra = tensors();
    extra.push(Matrix {
        name: "model.layers.0.self_attn.q_proj.bias".into(),
        ..extra.last().expect("tensors").clone()
    });
    add("tensor_bias", "q_proj.bias", 1, write("model.safetensors", safetensors(&extra)));
    let mut untied = tensors();
    untied.retain(|t| t.name != "lm_head.weight");
    add("output_missing", "lm_head", 1, write("model.safetensors", safetensors(&untied)));

    // Shards.
    const INDEX: &str = "model.safetensors.index.json";
    add("shard_missing", "model-00002-of-00003", 3, remove("model-00002-of-00003.safetensors"));
    add("index_noise", INDEX, 3, write(INDEX, b"{\"weight_map\": 3}".to_vec()));
    add("index_empty_map", "holds only 0 tensors", 3, edit(INDEX, |i| i["weight_map"] = json!({})));
    add(
        "index_entry_missing",
        "weight_map",
        3,
        edit(INDEX, |i| drop(i["weight_map"].as_object_mut().expect("map").remove(NORM))),
    );
    add(
        "index_entry_elsewhere",
        "weight_map",
        3,
        edit(INDEX, |i| i["weight_map"][NORM] = json!("model-00001-of-00003.safetensors")),
    );
    add(
        "index_entry_unknown",
        "weight_map",
        3,
        edit(INDEX, |i| i["weight_map"]["x"] = json!("model-00001-of-00003.safetensors")),
    );
    for (name, target) in [
        ("parent", "../x.safetensors"),
        ("absolute", "/etc/x.safetensors"),
        ("windows", "C:\\x.safetensors"),
        ("backslash", "..\\x.safetensors"),
        ("folder", "sub/x.safetensors"),
        ("empty", ""),
        ("dots", ".."),
        ("other_file", "config.json"),
        ("device", "nul.safetensors"),
        ("zero", "a\0.safetensors"),
    ] {
        add(
            &format!("index_names_{name}"),
            INDEX,
            3,
            Box::new(move |folder| {
                let path = folder.join(INDEX);
                let mut index: serde_json::Value =
                    serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
                index["weight_map"][NORM] = json!(target);
                std::fs::write(&path, index.to_string()).expect("write");
            }),
        );
    }
    add(
        "shard_twice",
        "weight_map",
        3,
        Box::new(|folder| {
            // The second shard's file holds what the first holds.
            std::fs::copy(
                folder.join("model-00001-of-00003.safetensors"),
                folder.join("model-00002-of-00003.safetensors"),
            )
            .expect("copy");
        }),
    );

    // The tokenizer: what the crate panics on or takes silently.
    add(
        "tokenizer_no_model",
        "tokenizer.json",
        1,
        edit("tokenizer.json", |t| t["model"] = json!(null)),
    );
    add(
        "tokenizer_vocab_past",
        "tokenizer.json",
        1,
        edit("tokenizer.json", |t| t["model"]["vocab"]["zzz"] = json!(9999)),
    );
    add(
        "tokenizer_vocab_max",
        "tokenizer.json",
        1,
        edit("tokenizer.json", |t| t["model"]["vocab"]["zzz"] = json!(u32::MAX)),
    );
    add(
        "tokenizer_vocab_negative",
        "tokenizer.json",
        1,
        edit("tokenizer.json", |t| t["model"]["vocab"]["zzz"] = json!(-1)),
    );
    add(
        "tokenizer_added_past",
        "tokenizer.json",
        1,
        edit("tokenizer.json", |t| t["added_tokens"][0]["id"] = json!(4000)),
    );
    add(
        "tokenizer_merge_too_long",
        "",
        1,
        edit("tokenizer.json", |t| {
            t["model"]["merges"][0] = json!(format!("{} e", "h".repeat(9000)))
        }),
    );
    add(
        "tokenizer_merge_unknown",
        "",
        1,
        edit("tokenizer.json", |t| t["model"]["merges"][0] = json!("qzq qzq")),
    );
    add(
        "tokenizer_merge_no_space",
        "",
        1,
        edit("tokenizer.json", |t| t["model"]["merges"][0] = json!("he")),
    );
    add(
        "tokenizer_model_type",
        "",
        1,
        edit("tokenizer.json", |t| t["model"]["type"] = json!("Nosuch")),
    );
    all
}

#[test]
fn every_malformed_checkpoint_folder_is_refused_in_one_line_and_controls_are_accepted() {
    let root = tempfile::tempdir().expect("temporary folder");
    let cases = folder_cases();
    let mut wrong = Vec::new();
    for (name, says, shards, change) in &cases {
        let folder = root.path().join(name.replace('.', "_"));
        base().write_checkpoint(&folder, *shards);
        change(&folder);
        let outcome = std::panic::catch_unwind(|| load(&folder));
        wrong.extend(judge(name, &folder, Some(says), outcome).err());
        std::fs::remove_dir_all(&folder).expect("remove");
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));

    for (i, (shards, tied, stored)) in
        [(1, true, Stored::F32), (2, false, Stored::Bf16), (5, true, Stored::F16)]
            .into_iter()
            .enumerate()
    {
        let folder = root.path().join(format!("control_{i}"));
        Tiny { tied, ..Tiny::default() }.stored(stored).write_checkpoint(&folder, shards);
        std::fs::write(folder.join("README.md"), "read me").expect("write");
        std::fs::write(folder.join("chat_template.jinja"), CHATML).expect("write");
        let model = load(&folder).expect("a control");
        assert_eq!(model.vocabulary.chat_template.as_deref(), Some(CHATML));
    }
}

/// Seeds of the fuzz targets, valid and broken in ways that reach far; they are committed. After a change of the tiny models:
/// `cargo test --release --test malformed -- --ignored write_the_fuzz_seeds`.
#[test]
#[ignore = "writes tests/fuzz/corpus"]
fn write_the_fuzz_seeds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let put = |target: &str, name: &str, bytes: &[u8]| {
        std::fs::create_dir_all(corpus.join(target)).expect("folder");
        std::fs::write(corpus.join(target).join(name), bytes).expect("write");
    };
    // f16 is read as bf16 is; the folder is kept small.
    for stored in Stored::ALL.into_iter().filter(|stored| *stored != Stored::F16) {
        put("gguf", &format!("{stored:?}").to_lowercase(), &Tiny::fuzzed().stored(stored).gguf());
    }
    let mut odd = Tiny { tied: false, ..Tiny::fuzzed() }.stored(Stored::Q8_0).container();
    odd.alignment = 8;
    odd.set("general.alignment", Value::U64(8)).set("x.y", array(8, 2, &[0; 16]));
    odd.tensors.push(rope_freqs(&[1.0; 8]));
    put("gguf", "odd", &odd.bytes());
    put("gguf", "cut", &odd.bytes()[..6000]);
    for stored in [Stored::F32, Stored::Bf16] {
        let tensors = Tiny::fuzzed().stored(stored).checkpoint_tensors();
        put("safetensors_header", &format!("{stored:?}").to_lowercase(), &safetensors(&tensors));
    }
    put("safetensors_header", "empty", &safetensors_file("{}", &[]));
}

#[test]
fn every_fuzz_seed_and_every_past_finding_is_loaded_or_refused() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let around = tempfile::tempdir().expect("temporary folder");
    Tiny::fuzzed().write_checkpoint(around.path(), 1);
    let (mut loaded, mut refused) = (0, 0);
    for target in ["gguf", "safetensors_header"] {
        for entry in std::fs::read_dir(corpus.join(target)).expect("seeds").flatten() {
            let path = match target {
                "gguf" => entry.path(),
                _ => {
                    std::fs::copy(entry.path(), around.path().join("model.safetensors"))
                        .expect("copy");
                    around.path().into()
                }
            };
            match load(&path) {
                Ok(_) => loaded += 1,
                Err(ModelError::Invalid(_)) => refused += 1,
                Err(error) => panic!("{}: {error}", entry.path().display()),
            }
        }
    }
    assert!(loaded >= 7 && refused >= 2, "{loaded} loaded, {refused} refused");
}

#[test]
fn one_flipped_bit_gives_another_digest() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = base().write(folder.path());
    let digest = load(&path).expect("valid").digest;
    let mut bytes = std::fs::read(&path).expect("read");
    let at = bytes.len() - 1000;
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).expect("write");
    assert_ne!(load(&path).expect("still valid").digest, digest);
}

//! A checkpoint answers as the GGUF file of the same weights: `scripts/to_safetensors.py` writes both from one quantized file, every weight
//! rounded to bf16; their weights are the same bits, and so are the ids of their prompts and of their answers.

mod common;

use common::{Stored, Tiny, Values};
use llmopt::decoder::native::{FormatPlan, Memory, NativeDecoder, NativeOptions, PackedModel};
use llmopt::decoder::{Batch, Decoder, LogitsOutput, LogitsRequest, Segment};
use llmopt::kernels::{Format, KernelSet};
use llmopt::model::{Model, OpenOptions, Role, open};
use llmopt::text::{Content, PromptEncoder};
use std::path::Path;
use std::sync::Arc;

fn model(path: &Path) -> Model {
    open(path.to_str().expect("a UTF-8 path"), &OpenOptions::default())
        .unwrap_or_else(|e| panic!("{e}"))
}

/// Runs the script: the folder and the rounded GGUF file.
fn convert(from: &Path, into: &Path) -> (Model, Model) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/to_safetensors.py");
    let (folder, rounded) = (into.join("checkpoint"), into.join("rounded.gguf"));
    let status = std::process::Command::new("python3")
        .arg(script)
        .arg(from)
        .arg(&folder)
        .arg(&rounded)
        .status();
    assert!(status.expect("python3").success());
    (model(&folder), model(&rounded))
}

fn roles(model: &Model) -> Vec<Role> {
    llmopt::model::roles(&model.spec).map(|(role, _)| role).chain([Role::Output]).collect()
}

fn bytes(model: &Model, role: Role, format: Format) -> Vec<u8> {
    let mut out = Vec::new();
    model
        .weights
        .read(role, 0..model.weights.shape(role).0, format, &mut out)
        .unwrap_or_else(|e| panic!("{e}"));
    out
}

/// The ids of a greedy answer.
fn answer(model: &Model, prompt: &[u32], tokens: usize) -> Vec<u32> {
    let packed =
        Arc::new(PackedModel::pack(model, FormatPlan::All(Format::Bf16), 2).expect("packed"));
    let kv_bytes =
        (prompt.len() + tokens).next_multiple_of(16) as u64 * packed.kv_bytes_per_position();
    let memory = Memory::Preallocated;
    let kernels = KernelSet::best();
    let options = NativeOptions { threads: 2, kernels, slots: 1, rows: 64, kv_bytes, memory };
    let mut decoder = NativeDecoder::new(packed, options).expect("a decoder");
    let slot = decoder.open(prompt, prompt.len() + tokens, false).expect("room").slot;
    let (mut ids, mut next, mut start) = (Vec::new(), prompt.to_vec(), 0);
    while ids.len() < tokens {
        let rows = next.len().min(64);
        let logits =
            if rows == next.len() { LogitsRequest::Argmax } else { LogitsRequest::Nothing };
        let segment =
            Segment { slot, start, tokens: 0..rows, logits, padding_rows: 0, padded_context: 0 };
        let mut outputs = Vec::new();
        decoder
            .forward(
                &Batch { tokens: next[..rows].to_vec(), segments: vec![segment] },
                &mut outputs,
            )
            .expect("a step");
        start += rows;
        next.drain(..rows);
        if let LogitsOutput::Argmax(id, _) = outputs[0] {
            ids.push(id);
            next = vec![id];
        }
    }
    ids
}

/// Weights, prompts and answers of both.
fn same(original: &Model, (checkpoint, rounded): (Model, Model), tokens: usize) {
    assert_eq!(checkpoint.spec, rounded.spec);
    for role in roles(&rounded) {
        // Rounding is done three times over: by the script into each file, and by the reader of the original.
        let expected = bytes(original, role, Format::Bf16);
        assert_eq!(bytes(&checkpoint, role, Format::Bf16), expected, "{role:?} of the checkpoint");
        assert_eq!(bytes(&rounded, role, Format::Bf16), expected, "{role:?} of the GGUF file");
    }
    let (a, b) = (
        PromptEncoder::new(&checkpoint).expect("a tokenizer"),
        PromptEncoder::new(&rounded).expect("a tokenizer"),
    );
    for text in [
        "What is 12 + 345?",
        "  Zwei\n\n\tZeilen — naïve café 日本語 🙂👩‍🚀",
        "<|im_end|> def f(x):\n    return x's",
    ] {
        let content = Content::Text(text.into());
        let ids = a.prompt_ids(&content, None, false).expect("ids");
        assert_eq!(ids, b.prompt_ids(&content, None, false).expect("ids"), "{text:?}");
        assert_eq!(answer(&checkpoint, &ids, tokens), answer(&rounded, &ids, tokens), "{text:?}");
    }
}

#[test]
fn a_checkpoint_answers_as_the_rounded_gguf_file() {
    for (stored, embedding, tied) in
        [(Stored::Q4_1, Stored::Q8_0, true), (Stored::F16, Stored::F32, false)]
    {
        let folder = tempfile::tempdir().expect("temporary folder");
        let tiny =
            Tiny { values: Values::Fine, weights: stored, embedding, tied, ..Tiny::default() };
        let path = tiny.write(folder.path());
        same(&model(&path), convert(&path, folder.path()), 24);
    }
}

#[test]
#[ignore = "half a minute of Python unless numpy is installed"]
fn the_default_model_as_a_checkpoint_answers_as_the_rounded_gguf_file() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let original = open("smollm2-135m", &OpenOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let both = convert(&original.path, folder.path());
    same(&original, both, 32);
}

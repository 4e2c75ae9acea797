//! Weights of types without a kernel: they are widened to f32 at load, said with the memory that takes, refused where it does not fit, and
//! from there on the model is the one of a file that holds their values in f32. What blocks mean is the matter of tests/blocks.rs.

mod common;
#[path = "common/process.rs"]
mod process;

use common::{BLOCK_TYPES, BlockType, Gguf, Tiny};
use llmopt::decoder::native::{FormatPlan, Memory, NativeDecoder, NativeOptions, PackedModel};
use llmopt::decoder::{Batch, Decoder, LogitsOutput, LogitsRequest, Segment};
use llmopt::kernels::{Encoding, Format, KernelSet};
use llmopt::model::{self, Model, OpenOptions};
use llmopt::pipeline::LoadedModel;
use process::{Bench, Ran};
use std::process::Command;
use std::sync::Arc;

/// A model all of whose matrices are of this type.
fn of_type(kind: &BlockType) -> Gguf {
    let mut file = Tiny { tied: false, ..Tiny::wide() }.container();
    file.tensors.iter_mut().filter(|t| t.dims.len() == 2).for_each(|t| kind.fill(t));
    file
}

/// The same weights as numbers of f32.
fn as_f32(mut file: Gguf) -> Gguf {
    for tensor in file.tensors.iter_mut().filter(|t| t.dims.len() == 2) {
        let mut values = Vec::new();
        Encoding::of_ggml(tensor.ggml).unwrap().dequantize(&tensor.data, &mut values);
        tensor.data = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        tensor.ggml = 0;
    }
    file
}

fn open(bench: &Bench, name: &str, file: &Gguf) -> Model {
    bench.file(name, file.bytes());
    model::open(bench.path(name).to_str().unwrap(), &OpenOptions::default()).unwrap()
}

/// Bits of the scores after each of some tokens.
fn logits(packed: PackedModel) -> Vec<u32> {
    let kv_bytes = packed.kv_bytes_per_position() * 64;
    let options = NativeOptions {
        threads: 1,
        kernels: KernelSet::portable(),
        slots: 1,
        rows: 64,
        kv_bytes,
        memory: Memory::Preallocated,
    };
    let mut decoder = NativeDecoder::new(Arc::new(packed), options).unwrap();
    let tokens: Vec<u32> = (0..20).map(|i| i * 7 % 200).collect();
    let slot = decoder.open(&tokens, tokens.len(), false).unwrap().slot;
    let segment = Segment {
        slot,
        start: 0,
        tokens: 0..tokens.len(),
        logits: LogitsRequest::AllLogits,
        padding_rows: 0,
        padded_context: 0,
    };
    let mut outputs = Vec::new();
    decoder.forward(&Batch { tokens, segments: vec![segment] }, &mut outputs).unwrap();
    let LogitsOutput::Logits(scores) = outputs.remove(0) else { panic!("logits were asked for") };
    scores.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_model_of_every_type_has_the_bits_of_its_values_in_f32() {
    let bench = Bench::new();
    for kind in &BLOCK_TYPES {
        let file = of_type(kind);
        let stored = open(&bench, "stored.gguf", &file);
        let wide = open(&bench, "wide.gguf", &as_f32(file));
        let pack = |model: &Model, plan| PackedModel::pack(model, plan, 1).unwrap();
        let packed = pack(&stored, FormatPlan::AsStored);
        // 2 layers of 256 × (256 + 128 + 128 + 256 + 3 × 256), embedding and output.
        let weights = 2 * 256 * 1536 + 2 * 256 * stored.spec.vocab;
        let (before, after) = (weights / kind.block * kind.bytes, weights * 4);
        let [before, after] = [before, after].map(|n| llmopt::units::Bytes(n as u64).to_string());
        let said = format!(
            "no kernel computes {} as stored: widened to f32 at load, {before} become {after}",
            kind.name
        );
        assert_eq!(PackedModel::notes(&stored, FormatPlan::AsStored), vec![said.clone()]);
        assert_eq!(PackedModel::widened(&stored, FormatPlan::AsStored), Some(said));
        assert_eq!(PackedModel::widened(&wide, FormatPlan::AsStored), None);
        let scores = logits(packed);
        assert!(scores.iter().all(|bits| f32::from_bits(*bits).is_finite()));
        assert!(scores == logits(pack(&wide, FormatPlan::AsStored)), "{}", kind.name);
        // Quantized anew at load: the same blocks from the same values.
        let q8 = FormatPlan::All(Format::Q8_0);
        assert!(logits(pack(&stored, q8)) == logits(pack(&wide, q8)), "{}", kind.name);
    }
}

/// What `compare native f32` and `bench` would otherwise hold twice.
#[test]
fn weights_that_are_the_same_under_two_plans_are_in_memory_once() {
    let bench = Bench::new();
    let file = of_type(&BLOCK_TYPES[0]);
    for (name, file) in [("stored.gguf", file.clone()), ("wide.gguf", as_f32(file))] {
        let loaded = LoadedModel::open(open(&bench, name, &file)).unwrap();
        let packed = |plan| loaded.packed(plan, 1).unwrap();
        let stored = packed(FormatPlan::AsStored);
        assert!(Arc::ptr_eq(&stored, &packed(FormatPlan::All(Format::F32))), "{name}");
        assert!(!Arc::ptr_eq(&stored, &packed(FormatPlan::All(Format::Bf16))), "{name}");
        // The emulated dtype holds bf16 too, and computes otherwise.
        let bf16 = packed(FormatPlan::All(Format::Bf16));
        assert!(!Arc::ptr_eq(&bf16, &packed(FormatPlan::WidenedBf16Emulated)), "{name}");
    }
}

fn llmopt(bench: &Bench, arguments: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llmopt"));
    command.current_dir(&bench.folder).args(arguments).args(["--threads", "2"]);
    process::finish(bench.start(command))
}

#[test]
fn run_says_what_it_widens_and_how_much_memory_that_takes() {
    let bench = Bench::new();
    let input = bench.file("in.txt", "hello\nthere\n");
    let mut file = of_type(&BLOCK_TYPES[0]);
    bench.file("stored.gguf", file.bytes());
    bench.file("wide.gguf", as_f32(file.clone()).bytes());
    let run = |model: &str, dtype: &str| {
        llmopt(&bench, &["run", input, "-m", model, "--max-tokens", "6", "--dtype", dtype])
            .expect(0)
    };
    let answers = |ran: &Ran| -> Vec<(String, String)> {
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_string();
        ran.records().iter().map(|r| (text(&r["answer"]), text(&r["dtype"]))).collect()
    };
    for dtype in ["auto", "native", "f32", "q8_0"] {
        let (stored, wide) = (run("stored.gguf", dtype), run("wide.gguf", dtype));
        assert_eq!(answers(&stored), answers(&wide), "{dtype}");
        let said = "no kernel computes IQ2_XXS as stored: widened to f32 at load, ";
        let has = stored.stderr.contains(said);
        assert_eq!(has, ["auto", "native"].contains(&dtype), "{dtype}: {}", stored.stderr);
        assert!(!wide.stderr.contains("widened"), "{dtype}: {}", wide.stderr);
    }
    // A mixture: the output matrix is computed as stored, and has the file's own name.
    file.set("general.file_type", common::Value::U32(19));
    let output = file.tensor("output.weight");
    let mut values = Vec::new();
    Encoding::of_ggml(16).unwrap().dequantize(&output.data, &mut values);
    (output.ggml, output.data) = (8, common::encode(&values, common::Stored::Q8_0, None));
    bench.file("mixed.gguf", file.bytes());
    let mixed = run("mixed.gguf", "auto");
    assert_eq!(answers(&mixed)[0].1, "iq2_xxs");
    let reason = "dtype iq2_xxs: a quantized file runs as stored, but for its IQ2_XXS weights, which are widened to f32 at load";
    assert!(mixed.stderr.contains(reason), "{}", mixed.stderr);
}

/// A file of 25 MiB whose weights take 386 MiB.
#[test]
fn what_does_not_fit_widened_is_refused_and_says_so() {
    let bench = Bench::new();
    let input = bench.file("in.txt", "hello\n");
    let ffn = 1 << 16;
    let mut file = of_type(&BLOCK_TYPES[0]);
    file.set("llama.feed_forward_length", common::Value::U32(ffn));
    for tensor in file.tensors.iter_mut().filter(|t| t.name.contains("ffn_") && t.dims.len() == 2) {
        let ffn = u64::from(ffn);
        tensor.dims =
            if tensor.name.contains("ffn_down") { vec![ffn, 256] } else { vec![256, ffn] };
        tensor.data = vec![0; ffn as usize * 66];
    }
    bench.file("large.gguf", file.bytes());
    let program = env!("CARGO_BIN_EXE_llmopt");
    let run =
        format!("ulimit -c 0 -v 358400; exec {program} run {input} -m large.gguf --threads 2");
    let mut shell = Command::new("bash");
    shell.current_dir(&bench.folder).args(["-c", &run]);
    let refused = process::finish(bench.start(shell)).expect(75);
    assert_eq!((refused.stderr.lines().count(), refused.stdout.as_str()), (1, ""), "{refused:?}");
    let said = "weights as f32 need 386 MiB (no kernel computes IQ2_XXS as stored: widened to f32 at load, 24.9 MiB become 386 MiB)";
    assert!(refused.stderr.contains(said), "{}", refused.stderr);
}

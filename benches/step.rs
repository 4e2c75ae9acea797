//! One decoder, a few speeds, one JSON line: what scripts/peers.py interleaves with llama.cpp's own tools. Fixed token ids, no stop,
//! no cache, no shared prefix; load time is part of no rate.
//!
//!     cargo bench --bench step -- --model M.gguf --dtype bf16 --threads 2 decode_1 prefill_512 decode_batch limits
//!
//! `decode_1`: 128 tokens of one sequence from an empty context. `prefill_512`: 512 tokens, scores for the last. `decode_batch`: 16
//! sequences, 64-token prompts, 64 tokens each. `decode_at_4096` (or another number): 32 tokens of one sequence behind so many. All in tokens/s. `load_s` is always there: seconds from the file's name to a decoder. `limits` adds each one's share of what bandwidth and FMA peak allow.

use clap::Parser;
use llmopt::bench::speed;
use llmopt::decoder::Decoder;
use llmopt::decoder::candle::CandleDecoder;
use llmopt::decoder::native::{FormatPlan, Memory, NativeDecoder, NativeOptions, PackedModel};
use llmopt::kernels::{Format, KernelSet, KvElement};
use llmopt::model::{self, OpenOptions};
use llmopt::roofline::{Effort, Formats, Limits, Work};
use serde_json::{Map, Value, json};
use std::sync::Arc;

#[derive(Parser)]
struct Args {
    #[arg(long, default_value = "smollm2-135m")]
    model: String,
    /// native, bf16-emulated, or a type that all matrices are stored in, such as f32 or q8_0
    #[arg(long, default_value = "native", value_parser = plan)]
    dtype: FormatPlan,
    #[arg(long, default_value_t = llmopt::machine::usable_threads())]
    threads: usize,
    /// portable, avx2, avx512
    #[arg(long, value_parser = KernelSet::named)]
    kernels: Option<KernelSet>,
    /// f32, f16, q8_0: how keys and values are held; what the model usually takes if it is left out
    #[arg(long, value_parser = kv_dtype)]
    kv_dtype: Option<KvElement>,
    /// Most rows of a forward pass
    #[arg(long, default_value_t = 256)]
    rows: usize,
    /// native, candle
    #[arg(long, default_value = "native")]
    decoder: String,
    #[arg(long, default_value_t = 1)]
    repeats: usize,
    what: Vec<String>,
    /// Given by cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn plan(name: &str) -> Result<FormatPlan, String> {
    let format = || Format::ALL.into_iter().find(|f| f.name() == name).map(FormatPlan::All);
    match name {
        "native" => Ok(FormatPlan::AsStored),
        "bf16-emulated" => Ok(FormatPlan::WidenedBf16Emulated),
        _ => format().ok_or_else(|| {
            format!(
                "no type; known are native, bf16-emulated, {}",
                Format::ALL.map(|f| f.name()).join(", ")
            )
        }),
    }
}

/// Steps that a `decode_at_N` times.
const AT_STEPS: usize = 32;

/// N of `decode_at_N`.
fn behind(what: &str) -> Option<usize> {
    what.strip_prefix("decode_at_")?.parse().ok()
}

fn kv_dtype(name: &str) -> Result<KvElement, String> {
    KvElement::ALL
        .into_iter()
        .find(|element| element.name() == name)
        .ok_or_else(|| "no type of keys and values; known are f32, f16, q8_0".to_string())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    let begun = std::time::Instant::now();
    let model = model::open(&args.model, &OpenOptions::default())?;
    let spec = model.spec.clone();
    let mut formats = Formats::all(Format::F32);
    let mut decoder: Box<dyn Decoder> = if args.decoder == "candle" {
        Box::new(CandleDecoder::new(&spec, model.weights.as_ref(), 1)?)
    } else {
        let packed = Arc::new(PackedModel::pack(&model, args.dtype, args.threads)?);
        let kv = args.kv_dtype.unwrap_or(packed.usual_kv());
        let behind = args.what.iter().filter_map(|what| behind(what)).max().unwrap_or(0);
        let positions = (16 * 160).max(behind + 2 * AT_STEPS) as u64;
        let kv_bytes = packed.kv_bytes_per_position_in(kv) * positions
            + packed.state_bytes_per_sequence() * 16;
        let kernels = args.kernels.unwrap_or_else(KernelSet::best);
        let (threads, rows) = (args.threads, args.rows);
        formats = packed.storage(kv);
        let memory = Memory::Preallocated;
        let options = NativeOptions { threads, kernels, slots: 16, rows, kv_bytes, memory };
        Box::new(NativeDecoder::with_kv(packed, options, kv)?)
    };
    drop(model);
    let load_s = begun.elapsed().as_secs_f64();
    speed::prefill(decoder.as_mut(), 16)?;
    let mut out = Map::new();
    out.insert("load_s".into(), json!(load_s));
    let mut shares = Map::new();
    let limits = args
        .what
        .iter()
        .any(|w| w == "limits")
        .then(|| Limits::measure(args.threads, Effort::Thorough));
    let rates = limits.as_ref().and_then(|l| l.at(args.threads));
    for what in args.what.iter().filter(|w| *w != "limits") {
        let mut best: Vec<f64> = Vec::new();
        for _ in 0..args.repeats.max(1) {
            best.push(match what.as_str() {
                "decode_1" => speed::decode_one(decoder.as_mut(), 128)?,
                "prefill_512" => speed::prefill(decoder.as_mut(), 512)?,
                "decode_batch" => speed::decode_batch(decoder.as_mut(), 16, 64, 64)?,
                other => match behind(other) {
                    Some(tokens) => speed::decode_batch(decoder.as_mut(), 1, tokens, AT_STEPS)?,
                    None => {
                        return Err(format!(
                            "'{other}' is not a measure; known are decode_1, prefill_512, decode_batch, \
                             decode_at_N, limits"
                        )
                        .into());
                    }
                },
            });
        }
        best.sort_by(f64::total_cmp);
        let seconds = best[best.len() / 2];
        let (tokens, work) = match what.as_str() {
            "decode_1" => (128.0, Work::decode(&spec, &formats, 128)),
            "prefill_512" => (512.0, Work::prefill(&spec, &formats, 512)),
            "decode_batch" => (1024.0, Work::decode_batch(&spec, &formats, 16, 64, 64)),
            other => {
                let behind = behind(other).expect("checked above");
                let work = Work::decode_batch(&spec, &formats, 1, behind, AT_STEPS);
                (AT_STEPS as f64, work)
            }
        };
        out.insert(what.clone(), json!(tokens / seconds));
        if let Some((limit, bound)) = rates.and_then(|r| work.limit(r, 0.0)) {
            let name = what.trim_end_matches("_1").trim_end_matches("_512");
            shares.insert(format!("{name}_share"), json!(tokens / seconds / limit));
            shares.insert(format!("{name}_bound"), json!(bound.to_string()));
        }
    }
    if let Some(rates) = rates {
        shares.insert("read_gb_s".into(), json!(rates.read / 1e9));
        shares.insert("fma_gflop_s".into(), json!(rates.fma / 1e9));
        out.insert("limits".into(), Value::Object(shares));
    }
    println!("{}", Value::Object(out));
    Ok(())
}

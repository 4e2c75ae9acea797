//! Times the whole step on the default model: decode of one sequence, prefill, a batch of 16.
//! `cargo bench --bench kernels -- [--model M] [--formats f32,bf16,..] [--kernels avx2] [--threads N] [--rows N] [--repeats N] [--only one|prefill|batch]`

use llmopt::decoder::native::{FormatPlan, Memory, NativeDecoder, NativeOptions, PackedModel};
use llmopt::decoder::{Batch, Decoder, Segment, Want};
use llmopt::kernels::{Format, KernelSet};
use std::sync::Arc;
use std::time::Instant;

fn flag(name: &str) -> Option<String> {
    let args: Vec<String> = std::env::args().collect();
    args.iter().position(|a| a == name).and_then(|i| args.get(i + 1).cloned())
}

fn number(name: &str, default: usize) -> usize {
    flag(name).map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{name} wants a number, not '{v}'")))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// One pass of the sequences at `starts`, each with the tokens given.
fn pass(decoder: &mut NativeDecoder, segments: &[(llmopt::decoder::Slot, usize, usize)], want: Want) {
    let mut batch = Batch::default();
    for &(slot, start, count) in segments {
        let from = batch.tokens.len();
        batch.tokens.extend((0..count).map(|i| ((start + i) * 7919 % 40000) as u32 + 100));
        batch.segments.push(Segment { slot, start, tokens: from..from + count, want, padding_rows: 0, padded_context: 0 });
    }
    let mut outputs = Vec::new();
    decoder.forward(&batch, &mut outputs).expect("the pass succeeds");
}

/// Seconds for a prompt of `prompt` tokens in chunks of `rows`, and for `count` tokens after it, with `sequences` of them together.
fn run(decoder: &mut NativeDecoder, sequences: usize, prompt: usize, count: usize, rows: usize) -> (f64, f64) {
    let tokens: Vec<u32> = vec![1; prompt.max(1)];
    let slots: Vec<_> = (0..sequences).map(|_| decoder.open(&tokens, prompt.max(1) + count, false).expect("room").slot).collect();
    let begin = Instant::now();
    for &slot in &slots {
        let mut start = 0;
        while start < prompt {
            let n = rows.min(prompt - start);
            pass(decoder, &[(slot, start, n)], if start + n == prompt { Want::Argmax } else { Want::Nothing });
            start += n;
        }
    }
    let prefill = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    for i in 0..count {
        let segments: Vec<_> = slots.iter().map(|s| (*s, prompt + i, 1)).collect();
        pass(decoder, &segments, Want::Argmax);
    }
    let decode = begin.elapsed().as_secs_f64();
    slots.into_iter().for_each(|s| decoder.close(s));
    (prefill, decode)
}

fn main() {
    let name = flag("--model").unwrap_or("smollm2-135m".to_string());
    let model = llmopt::model::open(&name, &Default::default()).unwrap_or_else(|e| panic!("{e}"));
    let set = flag("--kernels").map_or(KernelSet::best(), |n| KernelSet::named(&n).unwrap_or_else(|e| panic!("{e}")));
    let (threads, rows, repeats) = (number("--threads", 2), number("--rows", 512), number("--repeats", 5));
    let formats = flag("--formats").unwrap_or("f32,bf16,q8_0,q4_1".to_string());
    let only = flag("--only");
    for name in formats.split(',') {
        let plan = match name {
            "native" => FormatPlan::AsStored,
            "bf16-emulated" => FormatPlan::WidenedBf16Emulated,
            _ => FormatPlan::All(*Format::ALL.iter().find(|f| f.name() == name).expect("a known format")),
        };
        // The default model's own q4_1 file keeps its embedding in q8_0, as llama.cpp does.
        let plan = if name == "q4_1" { FormatPlan::AsStored } else { plan };
        let begin = Instant::now();
        let packed = Arc::new(PackedModel::pack(&model, plan, threads).unwrap_or_else(|e| panic!("{e}")));
        let load = begin.elapsed().as_secs_f64();
        let options = NativeOptions {
            threads,
            kernels: set,
            slots: 16,
            rows,
            kv_bytes: 1 << 30,
            memory: Memory::Preallocated,
            test_delay_percent: 0,
        };
        let bytes = packed.bytes() as f64;
        let mut decoder = NativeDecoder::new(packed, options).unwrap_or_else(|e| panic!("{e}"));
        let (mut one, mut prefill, mut batch) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..repeats {
            let times = |what: &str| only.as_ref().is_none_or(|o| o == what);
            one.push(if times("one") { run(&mut decoder, 1, 0, 128, rows).1 / 128.0 } else { f64::NAN });
            prefill.push(if times("prefill") { run(&mut decoder, 1, 512, 0, rows).0 / 512.0 } else { f64::NAN });
            batch.push(if times("batch") { run(&mut decoder, 16, 64, 64, rows).1 / 1024.0 } else { f64::NAN });
        }
        let (one, prefill, batch) = (median(one), median(prefill), median(batch));
        println!(
            "{name:14} {:8} pack {load:.2} s  decode_1 {:7.1} tok/s ({:5.1} GB/s)  prefill_512 {:7.1} tok/s ({:6.1} GFLOP/s)  batch_16 {:7.1} tok/s",
            set.name(),
            1.0 / one,
            bytes / one / 1e9,
            1.0 / prefill,
            2.0 * 106.2e6 / prefill / 1e9,
            1.0 / batch
        );
    }
}

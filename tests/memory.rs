//! Memory stays what it should be: a process holds the packed weights once, the pages of keys and values it touched, and little else;
//! and the number of prompts does not make it grow. A step allocates little, whatever the model's size.
#![cfg(target_os = "linux")]

mod common;
#[path = "common/process.rs"]
mod process;

use common::{Stored, Tiny};
use llmopt::decoder::native::{FormatPlan, PackedModel};
use llmopt::kernels::{Format, KvElement, KvShape, PAGE};
use llmopt::model::{self, Model, OpenOptions, Role};
use process::Bench;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

const MB: u64 = 1 << 20;

/// A huge page: what the system gives at a time.
const HUGE: u64 = 2 * MB;

/// The most resident memory of a run over `prompts`, by its own account, and the positions that all answers together take.
fn run(model: &str, dtype: &str, prompts: &str, max_tokens: usize) -> (u64, u64) {
    let bench = Bench::new();
    bench.file("p.txt", prompts);
    let mut command = Command::new(env!("CARGO_BIN_EXE_llmopt"));
    command.current_dir(&bench.folder).args([
        "run",
        "p.txt",
        "-q",
        "-m",
        model,
        "--dtype",
        dtype,
        "--threads",
        "2",
    ]);
    command.args([
        "--stop-on",
        "eos",
        "--stats",
        "s.json",
        "--max-tokens",
        &max_tokens.to_string(),
    ]);
    let ran = process::finish(bench.start(command)).expect(0);
    let count = |r: &serde_json::Value| {
        r["prompt_tokens"].as_u64().unwrap() + r["completion_tokens"].as_u64().unwrap()
    };
    let stats: serde_json::Value = serde_json::from_str(&bench.text("s.json")).unwrap();
    (stats["peak_rss_bytes"].as_u64().unwrap(), ran.records().iter().map(count).sum())
}

fn open(name: &str) -> Model {
    model::open(name, &OpenOptions::default()).unwrap()
}

/// Bytes of the packed weights, and of the keys and values of a position (f16 beside quantized weights).
fn packed(model: &Model, dtype: &str) -> (u64, u64) {
    let format = Format::ALL.into_iter().find(|f| f.name() == dtype);
    let half = format.or(model.weights.format(Role::Gate(0))).is_some_and(Format::is_quantized);
    let attention = model.spec.layers[0].attention().unwrap();
    let (layers, kv_heads, head_dim) =
        (model.spec.layers.len(), attention.kv_heads, attention.head_dim);
    let element = if half { KvElement::F16 } else { KvElement::F32 };
    let shape = KvShape::uniform(layers, kv_heads, head_dim, element);
    let weights =
        PackedModel::estimate(model, format.map_or(FormatPlan::AsStored, FormatPlan::All));
    (weights, (shape.page_bytes() / PAGE) as u64)
}

/// Runs a model as each dtype: packed weights, touched pages and at most `slack` bytes.
fn holds(name: &str, prompts: &str, max_tokens: usize, slack: u64) {
    let model = open(name);
    for dtype in ["f32", "bf16", "q8_0", "native"] {
        let (weights, position) = packed(&model, dtype);
        let (peak, positions) = run(name, dtype, prompts, max_tokens);
        // Whole pages of 16 positions, and the arena comes in huge pages; every answer counted as if it shared nothing.
        let lines = prompts.lines().count() as u64;
        let touched = ((positions + 16 * lines) * position).next_multiple_of(HUGE) + HUGE;
        let mb = |bytes: u64| bytes as f64 / MB as f64;
        println!(
            "{dtype:6} peak {:6.1} MB = weights {:6.1} + pages at most {:5.1} + {:5.1} (at most {:.0})",
            mb(peak),
            mb(weights),
            mb(touched),
            mb(peak) - mb(weights) - mb(touched),
            mb(slack)
        );
        assert!(peak > weights, "{dtype}: the weights are in memory");
        assert!(
            peak <= weights + touched + slack,
            "{dtype}: {peak} bytes, weights {weights}, pages {touched}, more {slack}"
        );
    }
}

/// A small model's weights would hide in the 100 MB of the promise: here all that is not weights and pages has to be less than the
/// smallest of the four packings, so that weights held twice are seen in each.
#[test]
fn a_run_holds_its_weights_once_beside_the_pages_it_touched() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Tiny {
        name: "heavy".into(),
        layers: 10,
        hidden: 768,
        ffn: 2560,
        heads: 12,
        kv_heads: 4,
        head_dim: 64,
        vocab: 4096,
        ..Tiny::default()
    };
    let path = tiny.stored(Stored::Q4_1).write(folder.path());
    let prompts: String = (0..6).map(|i| format!("Say {i}.\n")).collect();
    let (least, _) = packed(&open(path.to_str().unwrap()), "native");
    assert!(least > 40 * MB, "{least}");
    holds(path.to_str().unwrap(), &prompts, 4, least - MB);
}

#[test]
#[ignore = "the default model in four formats; figures for the documentation"]
fn on_the_default_model_a_run_holds_weights_touched_pages_and_100_mb() {
    // Few and short: what they could share is little, so that the pages counted are about those touched.
    let prompts: String = (0..6).map(|i| format!("Say {i}.\n")).collect();
    holds("smollm2-135m", &prompts, 16, 100 * MB);
}

/// Resident memory of a process, in bytes.
fn resident(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    1024 * line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
}

/// One process answers 10,000 prompts from its standard input; it is looked at after 1,000 and at the end.
fn growth(more: &[&str]) -> (u64, u64) {
    let bench = Bench::new();
    let folder = tempfile::tempdir().unwrap();
    let path = Tiny { chat_template: process::tiny().chat_template, ..Tiny::fuzzed() }
        .write(folder.path());
    let mut command = Command::new(env!("CARGO_BIN_EXE_llmopt"));
    command
        .current_dir(&bench.folder)
        .args(["run", "-", "-q", "--input-format", "txt", "-m"])
        .arg(path);
    command.args(["--threads", "2", "--max-tokens", "2", "--kv-memory", "1MB"]).args(more);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, mut answers) =
        (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()).lines());
    let mut take = |from: usize, to: usize| {
        let lines: String =
            (from..to).map(|i| format!("{i} bottles, {i} songs, {i} more to go\n")).collect();
        std::thread::scope(|scope| {
            // A thread writes while this one reads: neither pipe holds this many lines.
            scope.spawn(|| input.write_all(lines.as_bytes()).unwrap());
            for _ in from..to {
                let answer = answers.next().expect("an answer").unwrap();
                assert!(answer.contains("\"error\":null"), "{answer}");
            }
        });
        resident(child.id())
    };
    let (early, late) = (take(0, 1_000), take(1_000, 10_000));
    drop(input);
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert_eq!(process::wait(&mut child), 0, "{said}");
    println!(
        "{more:?}: {:.2} MB resident after 1,000 prompts, {:.2} MB after 10,000",
        early as f64 / 1e6,
        late as f64 / 1e6
    );
    (early, late)
}

#[test]
fn ten_thousand_prompts_need_no_more_memory_than_a_thousand() {
    // 32 bytes a record are promised, and the allocator's pages come and go.
    let (early, late) = growth(&["--without", "cache"]);
    assert!(late <= early + 32 * 9_000 + MB, "{early} {late}");
    // Answers are kept for requests that come again, at most 4,096 of them: less than a kilobyte each here.
    let (early, late) = growth(&[]);
    assert!(late <= early + 32 * 9_000 + MB + 3_096 * 1_024, "{early} {late}");
}

#[test]
fn a_claimed_context_costs_nothing_until_it_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let peak = |context: usize| {
        let name = format!("claims{context}");
        let path =
            Tiny { name, context, chat_template: process::tiny().chat_template, ..Tiny::fuzzed() }
                .write(folder.path());
        run(path.to_str().unwrap(), "native", "Say it.\n", 2).0
    };
    let (small, large) = (peak(512), peak(1 << 27));
    println!(
        "{:.1} MB with a context of 512, {:.1} MB with one of 2^27",
        small as f64 / 1e6,
        large as f64 / 1e6
    );
    assert!(large < small + 16 * MB, "{small} {large}");
}

/// Allocations and bytes of a decode step of one sequence: of a long answer those that a short one has not, for each token.
fn allocations(layers: usize, hidden: usize, more: &[&str]) -> (f64, f64) {
    let (bench, counting) = (Bench::new(), process::preloadable("allocations"));
    let tiny = Tiny {
        name: format!("counted{layers}"),
        layers,
        hidden,
        context: 1024,
        chat_template: process::tiny().chat_template,
        ..Tiny::default()
    };
    let model = tiny.write(&bench.path(""));
    bench.file("p.txt", "Say it.\n");
    let run = |tokens: usize| {
        let tokens = tokens.to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_llmopt"));
        command
            .current_dir(bench.path(""))
            .args(["run", "p.txt", "-q", "--threads", "1", "--temperature", "0", "-m"])
            .arg(&model);
        command.args(["--max-tokens", &tokens, "--without", "early-stop"]).args(more);
        command.env("LD_PRELOAD", &counting).env("ALLOCATIONS", bench.path("allocations"));
        let ran = process::finish(bench.start(command)).expect(0);
        assert_eq!(ran.records()[0]["completion_tokens"].to_string(), tokens);
        let counted = bench.text("allocations");
        let (count, bytes) = counted.split_once(' ').unwrap();
        (count.parse::<f64>().unwrap(), bytes.parse::<f64>().unwrap())
    };
    let (short, long) = (run(20), run(120));
    ((long.0 - short.0) / 100.0, (long.1 - short.1) / 100.0)
}

#[test]
fn a_step_allocates_little_and_the_same_for_every_model() {
    let (small, large) = (allocations(2, 64, &[]), allocations(12, 128, &[]));
    let anew = allocations(12, 128, &["--without", "static-memory"]);
    println!(
        "allocations and bytes of a step: {small:?} with 2 layers, {large:?} with 12, {anew:?} without static-memory"
    );
    // What a layer or a row of it needs is never allocated in a step: no count or size follows from the model's.
    assert!(
        (small.0 - large.0).abs() < 4.0 && (small.1 - large.1).abs() < 256.0,
        "{small:?} {large:?}"
    );
    assert!(large.0 < 24.0 && large.1 < 2048.0, "{large:?}");
    assert!(anew.1 > 4.0 * large.1, "{anew:?}: buffers made anew would be noticed");
}

//! Times every kernel at a model's real shapes and the whole step, each beside what this machine can do at best.
//!
//!     cargo bench --bench kernels -- [--kernels avx512] [--formats q8_0,q4_1] [--only WORD] [--threads N] [--model M] [--full]
//!
//! A line: microseconds a call, bytes and operations a second (a multiply-add is two), the limit that binds, and the share of it that is
//! reached: the least time the machine needs over the time taken. The limits are measured first: read bandwidth, f32 and int8 peaks of the
//! fastest instruction set. Products and attention take their weights, keys and values from memory (each call another copy, more than the
//! caches hold) and must read every byte once. Lines of a product name the whole phase: what the step runs, its epilogue included. The
//! kernels on rows work in the caches: only arithmetic limits them, and their GB/s are of bytes touched.
//! Weights are made up, in every format unless `--formats` names some; `--model M` takes a real model's. Quick by default; what would take
//! a set longer than 50 ms a call is left out. `--full` takes ten times as long and leaves nothing out.

use clap::Parser;
use llmopt::bench::speed;
use llmopt::decoder::native::{FormatPlan, Memory, NativeDecoder, NativeOptions, PackedModel};
use llmopt::kernels::{
    ActivationFn, Activations, Arena, Attending, COLUMNS, Context, Encoding, Format, KernelSet,
    KvArena, KvElement, KvShape, NormWeights, PAGE, Panels, Rotation, Row, Rows, ScoreRequest,
    Scoring, Team, attention_units, pack_panel, padded, panel_bytes,
};
use llmopt::model::{
    self, Model, ModelError, ModelSpec, OpenOptions, Plain, Role, Vocabulary, Weights,
};
use llmopt::roofline::{Effort, Formats, Limits, Rates, Work};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

#[derive(Parser)]
struct Args {
    /// portable, avx2, avx512; all that this CPU can run unless given
    #[arg(long, value_parser = KernelSet::named)]
    kernels: Option<KernelSet>,
    /// Some of the formats; all of them unless given
    #[arg(long, default_value_t = Format::ALL.map(Format::name).join(","))]
    formats: String,
    /// Only lines that have this word
    #[arg(long, default_value = "")]
    only: String,
    #[arg(long, default_value_t = llmopt::machine::usable_threads())]
    threads: usize,
    /// Take the weights of the step from this model instead of made-up ones of SmolLM2-135M's shapes
    #[arg(long)]
    model: Option<String>,
    #[arg(long)]
    full: bool,
    /// Given by cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Memory to go through: several times what caches hold, and as much as the quick read probe has, so that caches help both alike.
const REGION: usize = 256 << 20;
/// Seconds a call above which a quick run leaves a line out.
const TIMEOUT: f64 = 0.05;

/// The spec of the default model; of formats whose blocks do not divide its rows a wider one of its kind, so that all is in this format.
fn smollm2(format: Format) -> ModelSpec {
    let heads = if 576usize.is_multiple_of(format.block()) { 9 } else { 12 };
    ModelSpec::plain(Plain {
        layers: 30,
        hidden: heads * 64,
        ffn: 1536,
        heads,
        kv_heads: heads / 3,
        head_dim: 64,
        vocab: 49152,
        context: 8192,
        theta: 1e5,
        epsilon: 1e-5,
    })
}

/// Weights of these shapes in this format, small and finite; its output matrix is q8_0 where the layers are q4_1, as in the file.
struct MadeUp(ModelSpec, Format);

impl Weights for MadeUp {
    fn shape(&self, role: Role) -> (usize, usize) {
        self.0.shape(role)
    }

    fn encoding(&self, role: Role) -> Encoding {
        let outer = matches!(role, Role::TokenEmbedding | Role::Output);
        if outer && self.1 == Format::Q4_1 { Format::Q8_0 } else { self.1 }.into()
    }

    fn read(
        &self,
        role: Role,
        rows: Range<usize>,
        format: Format,
        out: &mut Vec<u8>,
    ) -> Result<(), ModelError> {
        rows.for_each(|row| row_of(format, self.shape(role).1, row, out));
        Ok(())
    }
}

/// A row as a file has it: numbers below 0.04 of both signs, all bytes and nibbles among them.
fn row_of(format: Format, k: usize, row: usize, out: &mut Vec<u8>) {
    for i in 0..k / format.block() {
        let mixed = (row * k + i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let value = ((mixed >> 40) as f32 / (1u64 << 24) as f32 - 0.5) / 16.0;
        let scale = half::f16::from_f32(1.0 / 4096.0).to_le_bytes();
        let bytes =
            |n: u64| (0..n).map(move |b| (mixed as u64).wrapping_mul(2 * b + 1).to_be_bytes()[0]);
        match format {
            Format::F32 => out.extend(value.to_le_bytes()),
            Format::Bf16 => out.extend(half::bf16::from_f32(value).to_le_bytes()),
            Format::F16 => out.extend(half::f16::from_f32(value).to_le_bytes()),
            Format::Q8_0 => {
                out.extend(scale);
                out.extend(bytes(32));
            }
            Format::Q4_1 => {
                out.extend(scale);
                out.extend(half::f16::from_f32(-7.5 / 4096.0).to_le_bytes());
                out.extend(bytes(16));
            }
            _ => {
                let begin = out.len();
                out.extend(bytes(format.block_bytes() as u64));
                // Types with factors of six bits and more: smaller steps.
                let step = if format.block() > 32 {
                    half::f16::from_f32(1.0 / 131072.0).to_le_bytes()
                } else {
                    scale
                };
                format
                    .half_offsets()
                    .iter()
                    .for_each(|at| out[begin + at..][..2].copy_from_slice(&step));
                if format == Format::Mxfp4 {
                    // 2^-10: the largest weight is 12 of them.
                    out[begin] = 118;
                }
            }
        }
    }
}

/// What a call asks of the machine.
#[derive(Clone, Copy, Default)]
struct Cost {
    /// Read from memory, once.
    memory: f64,
    /// Touched in caches; counted where nothing comes from memory.
    touched: f64,
    f32_ops: f64,
    int8_ops: f64,
}

impl Cost {
    fn product(format: Format, rows: usize, n: usize, k: usize) -> Cost {
        let ops = 2.0 * (rows * n * k) as f64;
        let bytes = (n.div_ceil(COLUMNS) * panel_bytes(format, k)) as f64;
        match format.is_quantized() {
            true => Cost { memory: bytes, int8_ops: ops, ..Cost::default() },
            false => Cost { memory: bytes, f32_ops: ops, ..Cost::default() },
        }
    }

    /// The least time, and what takes it.
    fn limit(&self, rates: &Rates) -> (f64, &'static str) {
        let int8 = if self.int8_ops > 0.0 {
            self.int8_ops / rates.int8.unwrap_or(f64::INFINITY)
        } else {
            0.0
        };
        [(self.memory / rates.read, "memory"), (self.f32_ops / rates.fma, "f32"), (int8, "int8")]
            .into_iter()
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .unwrap_or((0.0, ""))
    }
}

/// Times and prints.
struct Table<'a> {
    rates: &'a Rates,
    only: &'a str,
    full: bool,
    left_out: usize,
    /// Seconds an operation of the fastest product so far took: what the next will take at least.
    pace: f64,
}

impl Table<'_> {
    fn head(&self, title: &str) {
        println!(
            "\n{title}\n{:44} {:>4} {:>9} {:>6} {:>7} {:>6} {:>7}",
            "", "rows", "µs", "GB/s", "Gop/s", "limit", "share"
        );
    }

    fn wants(&self, name: &str) -> bool {
        name.contains(self.only)
    }

    fn line(&self, name: &str, rows: usize, seconds: f64, cost: Cost, more: &str) {
        let (least, bound) = cost.limit(self.rates);
        let bytes = if cost.memory > 0.0 { cost.memory } else { cost.touched };
        let rate = |units: f64, width: usize| match units {
            0.0 => format!("{:>width$}", "–"),
            _ if units / seconds < 1e10 => format!("{:>width$.2}", units / seconds / 1e9),
            _ => format!("{:>width$.1}", units / seconds / 1e9),
        };
        let share = if least > 0.0 {
            format!("{:>5.1} %", 100.0 * least / seconds)
        } else {
            format!("{:>7}", "–")
        };
        let bound = if least > 0.0 { bound } else { "–" };
        println!(
            "{name:44} {rows:>4} {:>9.1} {} {} {bound:>6} {share}{more}",
            seconds * 1e6,
            rate(bytes, 6),
            rate(cost.f32_ops + cost.int8_ops, 7)
        );
    }

    /// Times `call(i)`, i counting up, and prints its line; the median of several batches of calls.
    fn time(&mut self, name: &str, rows: usize, cost: Cost, mut call: impl FnMut(usize)) {
        if !self.wants(name) {
            return;
        }
        let ops = cost.f32_ops + cost.int8_ops;
        if self.pace < f64::INFINITY && self.pace * ops > TIMEOUT && !self.full {
            self.left_out += 1;
            return;
        }
        let mut count = 0;
        let mut batch = |calls: usize| {
            let since = Instant::now();
            for _ in 0..calls {
                call(count);
                count += 1;
            }
            since.elapsed().as_secs_f64() / calls as f64
        };
        // The first call meets cold buffers; the second says how many make a batch of about a millisecond.
        batch(1);
        let calls = ((1e-3 / batch(1)) as usize).clamp(1, 10_000);
        let (budget, begin, mut times) =
            (if self.full { 0.15 } else { 0.015 }, Instant::now(), Vec::new());
        while times.len() < 3 || begin.elapsed().as_secs_f64() < budget {
            times.push(batch(calls));
        }
        times.sort_by(f64::total_cmp);
        let seconds = times[times.len() / 2];
        if cost.memory > 0.0 {
            self.pace = self.pace.min(seconds / ops);
        }
        self.line(name, rows, seconds, cost, "");
    }
}

/// Normed rows of made-up numbers.
fn activations(team: &mut Team, rows: usize, width: usize, quantized: bool) -> Activations {
    let (x, ones) = (made_up_rows(rows, width), ones(width));
    let mut out = Activations::new(rows, width, quantized);
    team.norm(&x, None, rows, &NormWeights::rms(&ones, 1e-5), width, &mut out);
    out
}

fn made_up_rows(rows: usize, width: usize) -> Rows {
    let mut x = Rows::new(rows, width);
    for r in 0..rows {
        x.row_mut(r)[..width]
            .iter_mut()
            .enumerate()
            .for_each(|(i, x)| *x = ((r * 31 + i * 17) % 64) as f32 / 32.0 - 1.0);
    }
    x
}

/// A norm's weights, padded with zeros.
fn ones(width: usize) -> Vec<f32> {
    let mut w = vec![1.0; width];
    w.resize(padded(width), 0.0);
    w
}

/// Different panels a region holds; more would not be told apart, and fewer would make many columns score alike.
const DIFFERENT: usize = 251;

/// Fills the region with panels of this format.
fn fill(region: &mut Arena, team: &mut Team, format: Format, k: usize) {
    let bytes = panel_bytes(format, k);
    let panels: Vec<Vec<u8>> = (0..DIFFERENT)
        .map(|p| {
            let mut rows = Vec::new();
            (0..COLUMNS).for_each(|row| row_of(format, k, p * COLUMNS + row, &mut rows));
            let mut panel = vec![0; bytes];
            pack_panel(format, k, &rows, &mut panel);
            panel
        })
        .collect();
    team.chunks(region.bytes_mut(), bytes, |i, to| {
        to.copy_from_slice(&panels[i % DIFFERENT][..to.len()])
    });
}

/// A matrix of `n` columns and one row in f32 panels.
fn one_row(n: usize) -> Vec<u8> {
    let bytes = panel_bytes(Format::F32, 1);
    let mut panels = vec![0; n.div_ceil(COLUMNS) * bytes];
    for (p, panel) in panels.chunks_exact_mut(bytes).enumerate() {
        let mut rows = Vec::new();
        (0..COLUMNS).for_each(|c| row_of(Format::F32, 1, p * COLUMNS + c, &mut rows));
        pack_panel(Format::F32, 1, &rows, panel);
    }
    panels
}

/// Matrices of these many columns side by side: the i-th of the copies that the region holds.
fn copies<const N: usize>(
    region: &Arena,
    format: Format,
    n: [usize; N],
    k: usize,
    i: usize,
) -> [Panels<'_>; N] {
    let bytes = n.map(|n| n.div_ceil(COLUMNS) * panel_bytes(format, k));
    let all: usize = bytes.iter().sum();
    let mut rest = &region.bytes()[i % (REGION / all).max(1) * all..][..all];
    let mut place = 0;
    n.map(|n| {
        let (own, behind) = rest.split_at(bytes[place]);
        (rest, place) = (behind, place + 1);
        Panels::new(format, n, k, own)
    })
}

/// See [`copies`].
fn copy(region: &Arena, format: Format, n: usize, k: usize, i: usize) -> Panels<'_> {
    let [one] = copies(region, format, [n], k, i);
    one
}

fn rotation_table(positions: usize, head_dim: usize) -> Vec<f32> {
    (0..positions * 2 * head_dim)
        .map(|i| {
            if (i / head_dim).is_multiple_of(2) { 0.8 } else { 0.6 * (1.0 - 2.0 * (i % 2) as f32) }
        })
        .collect()
}

/// `rows` rows at positions of their own.
fn places(rows: usize) -> Vec<Row> {
    (0..rows as u32).map(|p| Row { position: p, page: p / PAGE as u32 }).collect()
}

fn kv_shape(spec: &ModelSpec, layers: usize, half: bool) -> KvShape {
    let attention = spec.layers[0].attention().expect("attention");
    let element = if half { KvElement::F16 } else { KvElement::F32 };
    KvShape::uniform(layers, attention.kv_heads, attention.head_dim, element)
}

/// The products of a layer and the head, with what is fused to them.
fn products(
    table: &mut Table,
    team: &mut Team,
    spec: &ModelSpec,
    format: Format,
    region: &mut Arena,
) {
    let attention = spec.layers[0].attention().expect("attention");
    let (h, q, kv, f) =
        (spec.hidden, attention.query_width(), attention.kv_width(), spec.layers[0].ffn.width());
    if ![h, q, f].iter().all(|k| k.is_multiple_of(format.block())) {
        println!("{format}: rows of {h}, {q}, {f} are no multiples of {}", format.block());
        return;
    }
    let quantized = format.is_quantized();
    let name = |what: &str, n: usize, k: usize| {
        format!("{what:24} {:>13} {format:>5}", format!("{n} x {k}"))
    };
    let sizes = [1, 2, 4, 16, 64];
    let names = [
        name("q·k·v, RoPE, pages", q + 2 * kv, h),
        name("attention out, residual", h, q),
        name("gate·up, silu", 2 * padded(f), h),
        name("down, residual", h, f),
        name("lm_head, argmax", spec.vocab, h),
    ];
    if !names.iter().any(|n| table.wants(n)) {
        return;
    }
    table.pace = f64::INFINITY;
    fill(region, team, format, h);
    for m in sizes {
        let input = activations(team, m, h, quantized);
        let mut pages =
            KvArena::new(kv_shape(spec, 1, quantized), m.div_ceil(PAGE)).expect("memory");
        let (rotation, rows, mut queries) =
            (rotation_table(m, attention.head_dim), places(m), Rows::new(m, q));
        let rotation = Rotation { table: &rotation, scale: 0.125 };
        // The three matrices lie side by side, as in the model.
        table.time(&names[0], m, Cost::product(format, m, q + 2 * kv, h), |i| {
            let [query, key, value] = copies(region, format, [q, kv, kv], h, i);
            team.qkv(
                [&query, &key, &value],
                [None; 3],
                &input,
                &rows,
                &rotation,
                &mut pages,
                0,
                &mut queries,
            );
        });
    }
    for m in sizes {
        let input = activations(team, m, h, quantized);
        let mut out = Activations::new(m, f, quantized);
        table.time(&names[2], m, Cost::product(format, m, 2 * padded(f), h), |i| {
            team.gate_up(
                &copy(region, format, 2 * padded(f), h, i),
                &input,
                m,
                ActivationFn::Silu,
                &mut out,
            );
        });
    }
    for m in sizes {
        let input = activations(team, m, h, quantized);
        table.time(&names[4], m, Cost::product(format, m, spec.vocab, h), |i| {
            let mut wants: Vec<ScoreRequest> = (0..m).map(|_| ScoreRequest::Argmax).collect();
            team.head(&copy(region, format, spec.vocab, h, i), &input, &Scoring::PLAIN, &mut wants);
        });
    }
    for (name, k) in [(&names[1], q), (&names[3], f)] {
        fill(region, team, format, k);
        for m in sizes {
            let (input, mut x) = (activations(team, m, k, quantized), made_up_rows(m, h));
            table.time(name, m, Cost::product(format, m, h, k), |i| {
                team.add_product(&copy(region, format, h, k, i), &input, m, &mut x, None, 1.0);
            });
        }
    }
    if format == Format::Bf16 {
        fill(region, team, format, h);
        let mut wide = vec![0.0; 2 * padded(f) * h + COLUMNS];
        let weights = (2 * padded(f) * h) as f64;
        // Two bytes read and four written: more than reading alone, so the share of the read limit is an upper bound's.
        let cost = Cost { memory: 6.0 * weights, ..Cost::default() };
        table.time(&name("widened (bf16-emulated)", 2 * padded(f), h), 0, cost, |i| {
            team.widen(&copy(region, format, 2 * padded(f), h, i), &mut wide);
        });
    }
}

/// What works on rows in the caches; epilogues of products are timed with one multiply-add an output in front of them.
fn rows(table: &mut Table, team: &mut Team, spec: &ModelSpec, threads: usize) {
    let attention = spec.layers[0].attention().expect("attention");
    let (h, q, kv, f) =
        (spec.hidden, attention.query_width(), attention.kv_width(), spec.layers[0].ffn.width());
    let elements = |m: usize, n: usize, bytes: f64, ops: f64| {
        let count = (m * n) as f64;
        Cost { touched: count * bytes, f32_ops: count * ops, ..Cost::default() }
    };
    table.time(
        &format!("an empty phase: {threads} workers start and meet"),
        0,
        Cost::default(),
        |_| team.each(threads, |_| {}),
    );
    for m in [1, 16, 256] {
        let (x, w) = (made_up_rows(m, h), ones(h));
        // Square and add, times the scale, times the weight.
        for (name, quantized, bytes) in
            [("RMS norm", false, 12.0), ("RMS norm, to int8", true, 13.5)]
        {
            let mut out = Activations::new(m, h, quantized);
            let ops = if quantized { 7.0 } else { 4.0 };
            table.time(&format!("{name} of {h}"), m, elements(m, h, bytes, ops), |_| {
                team.norm(&x, None, m, &NormWeights::rms(&w, 1e-5), h, &mut out)
            });
        }
        // Magnitude, times the scale, sum.
        let mut quantized = activations(team, m, f, true);
        table.time(&format!("activations to int8 of {f}"), m, elements(m, f, 5.5, 3.0), |_| {
            team.quantize(&mut quantized, m)
        });
    }
    let data = [one_row(q), one_row(kv), one_row(kv)];
    for half in [false, true] {
        for m in [1, 16, 256] {
            let input = activations(team, m, 1, false);
            let mut pages =
                KvArena::new(kv_shape(spec, 1, half), m.div_ceil(PAGE)).expect("memory");
            let (rotation, rows, mut queries) =
                (rotation_table(m, attention.head_dim), places(m), Rows::new(m, q));
            let rotation = Rotation { table: &rotation, scale: 0.125 };
            let [query, key, value] =
                [0, 1, 2].map(|i| Panels::new(Format::F32, [q, kv, kv][i], 1, &data[i]));
            let name = format!(
                "RoPE, scale, {} pages of {}",
                if half { "f16" } else { "f32" },
                q + 2 * kv
            );
            // One multiply-add of the product, three operations of the rotation, one of the scale.
            table.time(&name, m, elements(m, q + 2 * kv, 16.0, 6.0), |_| {
                team.qkv(
                    [&query, &key, &value],
                    [None; 3],
                    &input,
                    &rows,
                    &rotation,
                    &mut pages,
                    0,
                    &mut queries,
                );
            });
        }
    }
    let data = one_row(2 * padded(f));
    for quantized in [false, true] {
        for m in [1, 16, 256] {
            let (input, mut out) =
                (activations(team, m, 1, false), Activations::new(m, f, quantized));
            let panels = Panels::new(Format::F32, 2 * padded(f), 1, &data);
            // Two multiply-adds of the product; the exponential takes 24, the rest of silu and the product with up 4.
            let name = format!("silu · up{} of {f}", if quantized { ", to int8" } else { "" });
            table.time(&name, m, elements(m, f, 12.0, 32.0), |_| {
                team.gate_up(&panels, &input, m, ActivationFn::Silu, &mut out)
            });
        }
    }
    let data = one_row(spec.vocab);
    let panels = Panels::new(Format::F32, spec.vocab, 1, &data);
    for (name, k) in [("argmax", 0), ("top 50", 50), ("all scores", usize::MAX)] {
        for m in [1, 16] {
            let input = activations(team, m, 1, false);
            let mut scores = vec![0.0; m * spec.vocab];
            // A multiply-add of the product, one to find what is not finite, one comparison.
            table.time(
                &format!("{name} of {}", spec.vocab),
                m,
                elements(m, spec.vocab, 8.0, 5.0),
                |_| {
                    let mut wants: Vec<ScoreRequest> = match k {
                        0 => (0..m).map(|_| ScoreRequest::Argmax).collect(),
                        usize::MAX => {
                            scores.chunks_mut(spec.vocab).map(ScoreRequest::All).collect()
                        }
                        k => (0..m).map(|_| ScoreRequest::TopK(k)).collect(),
                    };
                    team.head(&panels, &input, &Scoring::PLAIN, &mut wants);
                },
            );
        }
    }
}

/// The token's row of the embedding, widened to f32: read from memory, each call other rows.
fn embedding(
    table: &mut Table,
    team: &mut Team,
    spec: &ModelSpec,
    format: Format,
    region: &mut Arena,
) {
    let h = spec.hidden;
    let name = format!("embedding rows {h} {format}");
    if !table.wants(&name) || !h.is_multiple_of(format.block()) {
        return;
    }
    fill(region, team, format, h);
    let panels = copy(region, format, spec.vocab, h, 0);
    for m in [1, 16, 256] {
        let mut x = Rows::new(m, h);
        let cost = Cost { touched: (m * (h * 4 + format.row_bytes(h))) as f64, ..Cost::default() };
        table.time(&name, m, cost, |i| {
            team.fill(&mut x, m, h, |r, row| panels.row(((i * m + r) * 7919) % spec.vocab, row));
        });
    }
}

/// Attention over pages that come from memory: (sequences, rows of each, positions before them).
fn attention(table: &mut Table, team: &mut Team, spec: &ModelSpec, half: bool, threads: usize) {
    let kind = if half { "f16" } else { "f32" };
    let cases = [
        (1, 1, 127),
        (1, 1, 511),
        (1, 1, 2047),
        (16, 1, 127),
        (16, 1, 511),
        (1, 256, 0),
        (1, 256, 1792),
    ];
    let name = |&(sequences, rows, before): &(usize, usize, usize)| match (sequences, rows) {
        (1, 1) => format!("attention decode, {} positions, {kind}", before + 1),
        (n, 1) => format!("attention decode, {n} of {} positions, {kind}", before + 1),
        (_, rows) => format!("attention prefill, {rows} after {before}, {kind}"),
    };
    if !cases.iter().any(|c| table.wants(&name(c))) {
        return;
    }
    let first = spec.layers[0].attention().expect("attention");
    let (q, kv, layers, pages) = (first.query_width(), first.kv_width(), 15, 512);
    let shape = kv_shape(spec, layers, half);
    let mut arena = KvArena::new(shape, pages).expect("memory");
    // Every page of every layer is written: untouched ones would all be one page of zeros.
    let mut filler = Team::new(KernelSet::best(), threads, first.head_dim, false).expect("threads");
    let positions = pages * PAGE;
    let (data, table_of) = (one_row(q), rotation_table(positions, first.head_dim));
    let rotation = Rotation { table: &table_of, scale: 0.125 };
    let [query, key, value] = [q, kv, kv].map(|n| {
        Panels::new(Format::F32, n, 1, &data[..n.div_ceil(COLUMNS) * panel_bytes(Format::F32, 1)])
    });
    let (input, all, mut queries) =
        (activations(&mut filler, positions, 1, false), places(positions), Rows::new(positions, q));
    for layer in 0..layers {
        filler.qkv(
            [&query, &key, &value],
            [None; 3],
            &input,
            &all,
            &rotation,
            &mut arena,
            layer,
            &mut queries,
        );
    }
    for case in cases {
        let (sequences, rows, before) = case;
        let positions = before + rows;
        let (each, total) = (positions.div_ceil(PAGE), sequences * rows);
        let row: Vec<Row> = (0..total)
            .map(|r| Row { position: (before + r % rows) as u32, page: Row::NOWHERE })
            .collect();
        let apart = total < 64 && sequences * first.kv_heads < 3 * threads;
        let mut units = Vec::new();
        for s in 0..sequences {
            attention_units(s, s * rows, rows, 0, first.heads, first.kv_heads, apart, &mut units);
        }
        let queries = made_up_rows(total, q);
        let mut out = Activations::new(total, q, half);
        let seen: usize = (before + 1..=positions).sum::<usize>() * sequences;
        let element = if half { 2 } else { 4 };
        let cost = Cost {
            memory: (sequences * positions * 2 * kv * element) as f64,
            f32_ops: 4.0 * (seen * q) as f64,
            ..Cost::default()
        };
        table.time(&name(&case), total, cost, |i| {
            let windows = pages / (sequences * each);
            let first = i / layers % windows * sequences * each;
            let lists: Vec<Vec<u32>> = (0..sequences)
                .map(|s| ((first + s * each) as u32..(first + (s + 1) * each) as u32).collect())
                .collect();
            let contexts: Vec<Context> = lists.iter().map(|l| Context::Pages(l)).collect();
            team.attention(
                &units,
                &row,
                &contexts,
                &arena,
                i % layers,
                Attending::plain(spec.layers[0].attention().expect("attention").heads),
                &queries,
                &mut out,
            );
        });
    }
}

/// Decode of one sequence, of sixteen, and prefill of 512 tokens.
fn steps(table: &mut Table, set: KernelSet, threads: usize, packed: &[(Format, Arc<PackedModel>)]) {
    for (format, model) in packed {
        let spec = model.spec().clone();
        let options = NativeOptions {
            threads,
            kernels: set,
            slots: 16,
            rows: 256,
            kv_bytes: model.kv_bytes_per_position() * 16 * 160,
            memory: Memory::Preallocated,
        };
        let mut decoder =
            NativeDecoder::new(model.clone(), options).unwrap_or_else(|e| panic!("{e}"));
        let formats: Formats = model.storage(model.usual_kv());
        // The portable set only decodes a few tokens: the rest would take minutes.
        let slow = set == KernelSet::portable() && KernelSet::available().len() > 1 && !table.full;
        let (tokens, passes) = match (table.full, slow) {
            (true, _) => (128, 5),
            (_, true) => (2, 1),
            _ => (16, 3),
        };
        let cases = [
            ("decode of one sequence", 1, tokens, Work::decode(&spec, &formats, tokens)),
            (
                "decode of a batch of 16",
                16,
                tokens,
                Work::decode_batch(&spec, &formats, 16, 64, tokens),
            ),
            ("prefill of 512 tokens", 512, 1, Work::prefill(&spec, &formats, 512)),
        ];
        for (what, rows, steps, work) in cases {
            let name = format!("{what} {:>5}", format.name());
            if !table.wants(&name) {
                continue;
            }
            if slow && rows > 1 {
                table.left_out += 1;
                continue;
            }
            let mut times: Vec<f64> = (0..passes)
                .map(|_| match rows {
                    1 => speed::decode_one(&mut decoder, steps),
                    16 => speed::decode_batch(&mut decoder, 16, 64, steps),
                    _ => speed::prefill(&mut decoder, 512),
                })
                .map(|seconds| seconds.unwrap_or_else(|e| panic!("{e}")))
                .collect();
            times.sort_by(f64::total_cmp);
            let seconds = times[passes / 2];
            let each = |total: f64| total / steps as f64;
            let cost = Cost {
                memory: each(work.weight_bytes + work.kv_bytes),
                touched: 0.0,
                f32_ops: each(work.f32_ops),
                int8_ops: each(work.int8_ops),
            };
            table.line(
                &name,
                rows,
                each(seconds),
                cost,
                &format!(" {:.0} tok/s", work.tokens / seconds),
            );
        }
    }
}

fn main() {
    let args = Args::parse();
    let formats: Vec<Format> = args
        .formats
        .split(',')
        .map(|name| {
            *Format::ALL
                .iter()
                .find(|f| f.name() == name)
                .unwrap_or_else(|| panic!("'{name}' is no format"))
        })
        .collect();
    let limits =
        Limits::measure(args.threads, if args.full { Effort::Thorough } else { Effort::Quick });
    let rates = *limits.at(args.threads).expect("rates");
    let machine = llmopt::machine::Machine::detect();
    println!(
        "{}, {} threads: reads {:.1} GB/s, f32 {:.0} Gop/s ({:?}){}",
        machine.cpu,
        args.threads,
        rates.read / 1e9,
        rates.fma / 1e9,
        limits.fma_isa,
        rates.int8.map_or(String::new(), |r| format!(
            ", int8 {:.0} Gop/s ({:?})",
            r / 1e9,
            limits.int8_isa.expect("a probe")
        ))
    );
    let file = args
        .model
        .as_ref()
        .map(|m| model::open(m, &OpenOptions::default()).unwrap_or_else(|e| panic!("{e}")));
    let spec_of = |format| file.as_ref().map_or_else(|| smollm2(format), |m| m.spec.clone());
    let spec = spec_of(Format::F32);
    let step = ["decode of one sequence", "decode of a batch of 16", "prefill of 512 tokens"];
    let wanted =
        |f: &&Format| step.iter().any(|s| format!("{s} {:>5}", f.name()).contains(&args.only));
    let packed: Vec<(Format, Arc<PackedModel>)> = formats
        .iter()
        .filter(wanted)
        .map(|&format| {
            let spec = spec_of(format);
            let made_up = Model {
                name: String::new(),
                path: Default::default(),
                digest: String::new(),
                spec: spec.clone(),
                vocabulary: Vocabulary::default(),
                weights: Box::new(MadeUp(spec.clone(), format)),
            };
            let model = file.as_ref().unwrap_or(&made_up);
            let stored = model.weights.format(Role::Gate(0)) == Some(format);
            let plan = if stored { FormatPlan::AsStored } else { FormatPlan::All(format) };
            (
                format,
                Arc::new(
                    PackedModel::pack(model, plan, args.threads).unwrap_or_else(|e| panic!("{e}")),
                ),
            )
        })
        .collect();
    let head = |format: Format| {
        let spec = spec_of(format);
        spec.vocab.next_multiple_of(COLUMNS) * format.row_bytes(spec.hidden)
    };
    let largest = formats.iter().map(|format| head(*format)).max().unwrap_or(0);
    let mut region = Arena::new(REGION.max(largest)).expect("memory");
    for set in
        KernelSet::available().into_iter().rev().filter(|s| args.kernels.is_none_or(|k| k == *s))
    {
        let mut team = Team::new(
            set,
            args.threads,
            spec.layers[0].attention().expect("attention").head_dim,
            false,
        )
        .expect("threads");
        let mut table = Table {
            rates: &rates,
            only: &args.only,
            full: args.full,
            left_out: 0,
            pace: f64::INFINITY,
        };
        table.head(&format!("{}: products, weights from memory", set.name()));
        for &format in &formats {
            products(&mut table, &mut team, &spec_of(format), format, &mut region);
        }
        table.pace = f64::INFINITY;
        table.head(&format!("{}: attention, keys and values from memory", set.name()));
        for half in [false, true] {
            attention(&mut table, &mut team, &spec, half, args.threads);
            table.pace = f64::INFINITY;
        }
        table.head(&format!("{}: rows, in the caches", set.name()));
        rows(&mut table, &mut team, &spec, args.threads);
        for &format in &formats {
            embedding(&mut table, &mut team, &spec_of(format), format, &mut region);
        }
        table.head(&format!("{}: the whole step", set.name()));
        steps(&mut table, set, args.threads, &packed);
        if table.left_out > 0 {
            println!("{} lines left out as too slow for this set; --full has them", table.left_out);
        }
    }
}

//! The report of a bench: the audit's table with what really happened beside it, and what explains it. In: a result, its analysis,
//! histograms. Out: a [`Report`]. It judges nothing and writes no file.
//! Over 500 lines: one page, a function a section.

use super::chart::{Bar, Chart, ChartMarks, Distributions, Dot, Stack};
use super::histograms::percentile;
use super::{Align, Bars, Block, Cell, Report, Section, Table, factor, interval};
use crate::bench::ablation::analysis::{Analysis, Ratio, RowResult};
use crate::bench::ablation::plan::TOTALS;
use crate::bench::ablation::result::{BenchResult, Sample, Start};
use crate::bench::statistics::{BUSY, Interval, MIN_ROUNDS, Verdict, mean_interval, median};
use crate::engine::Stage;
use crate::optimizations::{self, Difficulty, Phase};
use crate::pipeline::Latencies;
use crate::units::{Bytes, rate, seconds};

/// Header of `speedup.csv`, as the contract fixes it.
pub const HEADER: [&str; 17] = [
    "optimization",
    "phase",
    "difficulty",
    "expected_low",
    "expected_high",
    "alone",
    "alone_low",
    "alone_high",
    "removed",
    "removed_low",
    "removed_high",
    "cumulative",
    "cumulative_low",
    "cumulative_high",
    "verdict",
    "answers",
    "agreement",
];

fn phase(name: &str) -> &'static str {
    match optimizations::find(name).map(|o| o.phase) {
        Some(Phase::One) => "1",
        Some(Phase::Two) => "2",
        Some(Phase::Three) => "3",
        Some(Phase::Beyond) => "beyond",
        None => match name {
            "phase-1" => "1",
            "phase-2" => "2",
            _ => "",
        },
    }
}

fn difficulty(name: &str) -> &'static str {
    match optimizations::find(name).map(|o| o.difficulty) {
        Some(Difficulty::Easy) => "Easy",
        Some(Difficulty::Medium) => "Medium",
        Some(Difficulty::Unstated) | None => "",
    }
}

fn title(name: &str) -> String {
    let total = TOTALS.iter().find(|t| t.0 == name).map(|t| t.1);
    total.or(optimizations::find(name).map(|o| o.audit)).unwrap_or(name).to_string()
}

/// The table for programs: `speedup.csv`, `speedup.json`.
pub fn data(analysis: &Analysis) -> Table {
    let mut table = Table::of_keys(&HEADER);
    let three = |ratio: &Option<Ratio>| match ratio {
        Some(r) => {
            [r.interval.ratio, r.interval.low, r.interval.high].map(|v| Cell::number(v, factor(v)))
        }
        None => [Cell::empty(), Cell::empty(), Cell::empty()],
    };
    for row in &analysis.rows {
        let mut cells = vec![
            Cell::text(&*row.name),
            Cell::text(phase(&row.name)),
            Cell::text(difficulty(&row.name)),
        ];
        cells.push(Cell::rate(row.expected.map(|e| e.0)));
        cells.push(Cell::rate(row.expected.map(|e| e.1)));
        cells.extend(three(&row.alone));
        cells.extend(three(&row.removed));
        cells.extend(three(&row.cumulative));
        cells.push(Cell::text(row.verdict.map_or("", |v| v.name())));
        cells.push(Cell::text(row.answers.map_or("", |a| a.name())));
        cells.push(Cell::rate(row.answers.map(|a| a.agreement())));
        table.push(cells);
    }
    table
}

fn measured(row: &&RowResult) -> bool {
    row.alone.is_some() || row.removed.is_some() || row.cumulative.is_some()
}

fn expected(row: &RowResult) -> Cell {
    match row.expected {
        Some((low, _)) if low.is_infinite() => Cell::text("∞"),
        Some((low, high)) => Cell::text(format!("{low}–{high}")),
        None if row.name == "warmup" => Cell::text("1st request"),
        None => Cell::text("–"),
    }
}

fn ratio(ratio: &Option<Ratio>) -> Cell {
    ratio.as_ref().map_or_else(
        || Cell::text("–"),
        |r| Cell::text(format!("{}{}", interval(&r.interval), if r.per_token { "*" } else { "" })),
    )
}

/// A row in a line, as `junit.xml` has it.
pub fn row_line(row: &RowResult) -> String {
    let verdict = row.verdict.map_or(String::new(), |v| format!(", {}", v.name()));
    let expected = row.expected.map_or(String::new(), |(low, high)| match low.is_infinite() {
        true => " (expected: no forward pass for a hit)".into(),
        false => format!(" (expected {low}–{high})"),
    });
    let answers = row.answers.map_or(String::new(), |a| format!(", answers {a}"));
    format!("{}{verdict}{expected}{answers}", ratio(&row.alone).shown)
}

/// The audit's table: what was asked, the answer, how sure, then the rest. The cache has two lines: a hit, and what the workload gains.
fn audit_table(analysis: &Analysis) -> Table {
    let mut table = Table::new(&[
        ("optimization", "Optimization", Align::Left),
        ("alone", "Measured (95 %)", Align::Right),
        ("verdict", "Verdict", Align::Left),
        ("expected", "Expected", Align::Right),
        ("answers", "Answers", Align::Left),
        ("difficulty", "Effort", Align::Left),
    ]);
    for row in analysis.rows.iter().filter(measured) {
        let verdict = Cell::text(row.verdict.map_or("", |v| v.name()));
        let answers = Cell::text(row.answers.map_or(String::new(), |a| a.to_string()));
        let effort = Cell::text(difficulty(&row.name));
        let (name, gain) = (title(&row.name), ratio(&row.alone));
        if row.expected.is_some_and(|(low, _)| low.is_infinite()) {
            let hit = match row.verdict {
                Some(Verdict::Within) => "∞, no forward pass",
                Some(Verdict::Below) => "a forward pass",
                _ => "no hit",
            };
            table.push(vec![
                Cell::text(format!("{name}: hit")),
                Cell::text(hit),
                verdict,
                expected(row),
                answers,
                effort,
            ]);
            table.push(vec![Cell::text("  this workload"), gain]);
        } else {
            table.push(vec![Cell::text(name), gain, verdict, expected(row), answers, effort]);
        }
    }
    table
}

/// How far repeated runs differ beside what rounds within a run say; `None` for a single run.
fn runs_table(analysis: &Analysis) -> Option<Table> {
    let mut table = Table::new(&[
        ("optimization", "Optimization", Align::Left),
        ("ratio", "Measured", Align::Right),
        ("between", "between runs", Align::Right),
        ("within", "within a run", Align::Right),
    ]);
    for row in &analysis.rows {
        let Some((Some(between), within)) = row.alone.map(|r| (r.between, r.within)) else {
            continue;
        };
        let ends = |i: &Interval| format!("{}–{}", factor(i.low), factor(i.high));
        let cells = [title(&row.name), factor(within.ratio), ends(&between), ends(&within)];
        table.push(cells.into_iter().map(Cell::text).collect());
    }
    (!table.rows.is_empty()).then_some(table)
}

/// Removed and cumulative.
fn steps_table(analysis: &Analysis) -> Option<Table> {
    let rows: Vec<&RowResult> =
        analysis.rows.iter().filter(|r| r.removed.is_some() || r.cumulative.is_some()).collect();
    let removed = rows.iter().any(|r| r.removed.is_some());
    let mut columns = vec![("optimization", "Name", Align::Left)];
    if removed {
        columns.push(("removed", "Lost if removed", Align::Right));
    }
    columns.push(("cumulative", "Switched on in order", Align::Right));
    let mut table = Table::new(&columns);
    for row in &rows {
        let mut cells = vec![Cell::text(&*row.name)];
        if removed {
            cells.push(ratio(&row.removed));
        }
        cells.push(ratio(&row.cumulative));
        table.push(cells);
    }
    (rows.len() > 1).then_some(table)
}

/// Factors beside what the audit expected of them.
fn audit_chart(analysis: &Analysis) -> Option<Chart> {
    let dot = |row: &RowResult| {
        let r = row.alone.as_ref()?;
        let all = [r.interval.low, r.interval.ratio, r.interval.high];
        all.iter().all(|v| v.is_finite() && *v > 0.0).then(|| Dot {
            label: title(&row.name),
            measured: (r.interval.low, r.interval.ratio, r.interval.high),
            expected: row.expected.filter(|e| e.1.is_finite()),
            shown: interval(&r.interval),
        })
    };
    let dots: Vec<Dot> = analysis.rows.iter().filter_map(dot).collect();
    let within =
        |d: &&Dot| d.expected.is_some_and(|(low, high)| (low..=high).contains(&d.measured.1));
    let description = format!(
        "Measured factors with 95 % intervals on a logarithmic axis, over the ranges that the \
         audit expected. {} of {} points with a range lie in it: {}.",
        dots.iter().filter(within).count(),
        dots.iter().filter(|d| d.expected.is_some()).count(),
        dots.iter().map(|d| format!("{} {}", d.label, d.shown)).collect::<Vec<_>>().join("; ")
    );
    let title = "Gain of each optimization (dot and line) over the expected range (band)".into();
    (!dots.is_empty()).then_some(Chart { title, description, marks: ChartMarks::Dots(dots) })
}

/// How fast it becomes while one optimization after the other is switched on.
fn ladder_chart(analysis: &Analysis) -> Option<Chart> {
    let step = |row: &RowResult| {
        let r = row.cumulative.as_ref().filter(|r| r.interval.ratio.is_finite())?;
        Some(Bar {
            label: title(&row.name),
            value: r.interval.ratio,
            interval: Some((r.interval.low, r.interval.high)),
            shown: interval(&r.interval),
        })
    };
    let rows = analysis.rows.iter().filter(|r| TOTALS.iter().all(|t| t.0 != r.name));
    let bars: Vec<Bar> = rows.filter_map(step).collect();
    let last = bars.last().map_or(String::new(), |b| format!("; the last is {}", b.shown));
    let description = format!(
        "Times the baseline's speed after each step, in the audit's order, {} steps{last}.",
        bars.len()
    );
    let title = "Speed over the baseline, optimizations switched on in order".into();
    (bars.len() > 1).then_some(Chart { title, description, marks: ChartMarks::Bars(bars) })
}

/// Where the time of a slice went, for the configurations that a reader asks about first.
fn stages_chart(result: &BenchResult) -> Option<Chart> {
    let parts = [Stage::Prefill, Stage::Decode, Stage::Sample, Stage::Detokenize, Stage::Tokenize];
    let names =
        ["prefill", "decode", "sample", "detokenize", "tokenize (beside the forward passes)"];
    let mut rows = Vec::new();
    for config in first_configs(result) {
        let part =
            |stage: &Stage| of_samples(result, config, |s| s.stages.of(*stage)).unwrap_or(0.0);
        let total = of_samples(result, config, |s| s.seconds)?;
        rows.push(Stack {
            label: result.configs.get(config)?.label.clone(),
            parts: parts.iter().map(part).collect(),
            shown: format!("{} a slice", seconds(total)),
        });
    }
    let text =
        rows.iter().map(|r| format!("{}: {}", r.label, r.shown)).collect::<Vec<_>>().join("; ");
    let description = format!("Bars of stages laid end to end, medians over the rounds. {text}.");
    let marks = ChartMarks::Stacks(names.map(String::from).to_vec(), rows);
    Some(Chart { title: "Where the time of a slice went".into(), description, marks })
}

/// The start and everything on: what is drawn of each configuration.
fn first_configs(result: &BenchResult) -> Vec<usize> {
    if result.start == result.everything {
        vec![result.start]
    } else {
        vec![result.start, result.everything]
    }
}

/// How long whole answers took.
fn latency_chart(result: &BenchResult, latencies: &[Latencies]) -> Option<Chart> {
    let named: Vec<(&str, &hdrhistogram::Histogram<u64>)> = first_configs(result)
        .into_iter()
        .filter_map(|i| {
            Some((result.configs.get(i)?.label.as_str(), &latencies.get(i)?.end_to_end))
        })
        .collect();
    let drawn = Distributions::of(&named)?;
    let text = drawn
        .series
        .iter()
        .map(|s| format!("{}: {}", s.label, s.shown))
        .collect::<Vec<_>>()
        .join("; ");
    Some(Chart {
        title: "Latency of whole answers, logarithmic axis (lines: percentiles)".into(),
        description: format!(
            "Histograms of seconds from acceptance to the end of an answer. {text}."
        ),
        marks: ChartMarks::Distributions(drawn),
    })
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// What the table rests on.
fn notes(result: &BenchResult, analysis: &Analysis) -> Vec<String> {
    let detectable = &analysis.detectable;
    let mut notes = Vec::new();
    if result.quick {
        notes.push(
            "Made with --quick: short slices and few rounds, for a first look. Its gate compares with its like alone.".into(),
        );
    }
    if !result.complete {
        notes.push("Interrupted: these are the rounds measured until then.".into());
    }
    let runs = result.runs();
    notes.push(format!(
        "{} rounds{}; each ratio is a geometric mean over paired rounds with its 95 % interval. \
         About this machine and this workload, not about others.",
        detectable.rounds,
        if runs > 1 { format!(" in {runs} runs") } else { String::new() }
    ));
    if runs == 1 {
        notes.push(
            "The intervals cover this run alone: how far runs of the same setting differ is seen \
             by --repeat 3 or by several results given to compare."
                .into(),
        );
    }
    notes.push(made_of(result));
    if detectable.rounds < MIN_ROUNDS {
        notes.push(format!("Fewer than {MIN_ROUNDS} rounds: every verdict is unclear. More time (--time-budget) helps."));
    }
    if let Some(smallest) = detectable.smallest.filter(|_| detectable.rounds >= MIN_ROUNDS) {
        notes.push(format!(
            "Smallest effect that this machine can show now: {} (from the A/A pair, everything on against itself).",
            percent(smallest.exp() - 1.0)
        ));
    }
    if let Some(busy) = detectable.busy {
        let parts = [
            analysis.stolen.map(|s| format!("stolen {}", percent(s))),
            analysis.others.map(|o| format!("other processes {}", percent(o))),
        ];
        let parts = parts.into_iter().flatten().collect::<Vec<_>>().join(", ");
        let more = if busy > BUSY { " Too busy for verdicts." } else { "" };
        notes.push(format!("Time taken by others during the trials (median): {parts}.{more}"));
    }
    let starred = analysis
        .rows
        .iter()
        .any(|r| [r.alone, r.removed, r.cumulative].iter().flatten().any(|r| r.per_token));
    if starred {
        notes.push("* The two sides generated different numbers of tokens: the ratio is of seconds per generated token.".into());
    }
    if let Some(hit) = &result.hit {
        let gain = hit.generated_s / hit.repeated_s;
        let n = hit.prompts.max(1) as f64;
        let tokens = hit
            .tokens
            .map_or(String::new(), |t| format!(" for answers of {:.0} tokens", t as f64 / n));
        let tokenizing = hit
            .tokenize_s
            .map_or(String::new(), |s| format!(" ({} of it tokenizing)", seconds(s / n)));
        let alone = analysis.row("cache").and_then(|r| r.alone).map_or(String::new(), |r| {
            format!(
                " Over this workload, in which {} of {} prompts are repeats, it gains {}.",
                result.workload.repeats,
                result.workload.prompts,
                factor(r.interval.ratio)
            )
        });
        notes.push(format!(
            "A cached answer takes {}{tokenizing} instead of {} ({}x{tokens}) and {} forward passes: ∞ as the audit counts.{alone}",
            seconds(hit.repeated_s / n),
            seconds(hit.generated_s / n),
            factor(gain),
            hit.forward_passes
        ));
    }
    if analysis.row("precision").is_some_and(|r| r.alone.is_some()) {
        notes.push(
            "The baseline of Float32 on CPU widens each weight into a temporary on every call: another hour may find another ratio for this row and for what is \
             measured from the same baseline (--repeat, or several results given to compare, tell how far)."
                .into(),
        );
    }
    if let Some(beside) = beside_precision(result)
        .filter(|_| analysis.row("precision").is_some_and(|r| r.alone.is_some()))
    {
        notes.push(beside);
    }
    if analysis.row("warmup").is_some_and(|r| r.alone.is_some()) {
        notes.push("Warmup is measured on the first request of fresh processes (model file in the page cache).".into());
    }
    if let Some((row, promise, prompt)) = analysis.broken() {
        let promise = format!("{promise:?}").to_lowercase();
        notes.push(format!("BROKEN PROMISE: '{row}' promises answers that are {promise}; prompt {prompt} shows others."));
    }
    notes.extend(result.notes.iter().cloned());
    notes
}

/// What cache and early stopping can gain here, in a sentence.
fn made_of(result: &BenchResult) -> String {
    let w = &result.workload;
    let repeats = percent(w.repeats as f64 / w.prompts.max(1) as f64);
    let of = |f: fn(&Sample) -> u64| {
        mean(result, result.everything, |s| f(s) as f64 / s.answers.max(1) as f64)
    };
    let measured = match (of(|s| s.prompt_tokens), of(|s| s.completion_tokens), of(|s| s.early)) {
        (Some(prompt), Some(answer), Some(early)) => {
            format!(
                "; {} tokens a prompt, {} an answer, {} end before the limit of {}",
                rate(prompt),
                rate(answer),
                percent(early),
                w.max_tokens
            )
        }
        _ => String::new(),
    };
    format!(
        "The workload decides what cache and early stopping can gain: {repeats} of its prompts are repeats{measured}."
    )
}

/// The emulated baseline beside what it emulates, from candle beside it.
fn beside_precision(result: &BenchResult) -> Option<String> {
    let candle_baseline = result.candle_baseline.as_ref()?;
    let times: Option<Vec<String>> = candle_baseline
        .seconds
        .iter()
        .map(|(name, s)| Some(format!("{name} {}", seconds(median(s)?))))
        .collect();
    Some(format!(
        "Beside precision, one batch of the same prompts: {} (see the candle baseline).",
        times?.join(", ")
    ))
}

/// Medians over the rounds of something of a configuration's samples.
fn of_samples(result: &BenchResult, config: usize, f: impl Fn(&Sample) -> f64) -> Option<f64> {
    median(&result.rounds.iter().filter_map(|r| r.of(config)).map(f).collect::<Vec<_>>())
}

fn ms(value: Option<f64>) -> Cell {
    value.map_or_else(Cell::empty, |s| Cell::number(s * 1e3, rate(s * 1e3)))
}

/// Where the time went.
fn stages(result: &BenchResult) -> Table {
    let mut table = Table::new(&[
        ("configuration", "ms per slice", Align::Left),
        ("total", "total", Align::Right),
        ("tokenize", "token", Align::Right),
        ("prefill", "prefill", Align::Right),
        ("decode", "decode", Align::Right),
        ("sample", "sample", Align::Right),
        ("detokenize", "detok", Align::Right),
        ("queue", "queue", Align::Right),
        ("tokens", "n", Align::Right),
    ]);
    for (i, config) in result.configs.iter().enumerate() {
        let stage = |stage: Stage| ms(of_samples(result, i, |s| s.stages.of(stage)));
        let waiting =
            ms(of_samples(result, i, |s| s.stages.of(Stage::Queue) / s.answers.max(1) as f64));
        let tokens = of_samples(result, i, |s| s.generated_tokens as f64);
        table.push(vec![
            Cell::text(&*config.label),
            ms(of_samples(result, i, |s| s.seconds)),
            stage(Stage::Tokenize),
            stage(Stage::Prefill),
            stage(Stage::Decode),
            stage(Stage::Sample),
            stage(Stage::Detokenize),
            waiting,
            tokens.map_or_else(Cell::empty, |t| Cell::number(t, format!("{t:.0}"))),
        ]);
    }
    table
}

/// Percentiles and bars.
fn latency(result: &BenchResult, latencies: &[Latencies]) -> Vec<Block> {
    let mut table = Table::new(&[
        ("configuration", "Configuration", Align::Left),
        ("ttft_p50", "1st p50", Align::Right),
        ("ttft_max", "max", Align::Right),
        ("token_p50", "token p50", Align::Right),
        ("p50", "all p50", Align::Right),
        ("p90", "p90", Align::Right),
        ("max", "max", Align::Right),
        ("n", "n", Align::Right),
    ]);
    let mut bars = Bars { title: "Whole answers, mean".into(), bars: Vec::new() };
    for (config, l) in result.configs.iter().zip(latencies) {
        let most = |h: &hdrhistogram::Histogram<u64>| {
            if h.is_empty() { "–".into() } else { seconds(h.max() as f64 / 1e6) }
        };
        table.push(
            [
                config.label.clone(),
                percentile(&l.ttft, 50.0),
                most(&l.ttft),
                percentile(&l.per_token, 50.0),
                percentile(&l.end_to_end, 50.0),
                percentile(&l.end_to_end, 90.0),
                most(&l.end_to_end),
                l.end_to_end.len().to_string(),
            ]
            .into_iter()
            .map(Cell::text)
            .collect(),
        );
        let mean = l.end_to_end.mean() / 1e6;
        bars.bars.push((config.label.clone(), mean, seconds(mean)));
    }
    vec![
        Block::Text(
            "Time to the first token, per token, and to the end, from acceptance into the \
            queue; a percentile p from 10 / (1 − p) samples on."
                .into(),
        ),
        Block::Table(table),
        Block::Bars(bars),
    ]
}

/// Fresh processes.
fn starts(result: &BenchResult) -> Table {
    let mut table = Table::new(&[
        ("process", "Fresh process", Align::Left),
        ("ready", "ready in", Align::Right),
        ("first", "first request", Align::Right),
        ("second", "second", Align::Right),
        ("peak", "peak memory", Align::Right),
        ("n", "n", Align::Right),
    ]);
    let mut names: Vec<&str> = Vec::new();
    result.starts.iter().for_each(|s| {
        if !names.contains(&s.what.as_str()) {
            names.push(&s.what);
        }
    });
    names.sort();
    for name in names {
        let of = |f: fn(&Start) -> f64| {
            median(&result.starts.iter().filter(|s| s.what == name).map(f).collect::<Vec<_>>())
        };
        let time = |v: Option<f64>| v.map_or_else(Cell::empty, |v| Cell::number(v, seconds(v)));
        let peak = of(|s| s.peak_rss.map_or(f64::NAN, |b| b as f64)).filter(|p| p.is_finite());
        table.push(vec![
            Cell::text(label(result, name)),
            time(of(|s| s.ready_s)),
            time(of(|s| s.first_s)),
            time(of(|s| s.second_s)),
            peak.map_or_else(|| Cell::text("–"), |p| Cell::number(p, Bytes(p as u64).to_string())),
            Cell::text(result.starts.iter().filter(|s| s.what == name).count().to_string()),
        ]);
    }
    table
}

/// The start's own name in place of `start`.
fn label(result: &BenchResult, what: &str) -> String {
    let start = result.configs.get(result.start).map_or("start", |c| c.label.as_str());
    what.replacen("start", start, 1).replacen("everything", "everything on", 1)
}

/// Stock candle beside the baseline.
fn candle_baseline(result: &BenchResult) -> Option<Section> {
    let candle_baseline = result.candle_baseline.as_ref()?;
    let (_, first) = candle_baseline.seconds.first()?;
    let mut table = Table::new(&[
        ("what", "The same prompts", Align::Left),
        ("seconds", "s per slice", Align::Right),
        ("rate", "tokens/s", Align::Right),
        ("ratio", "over the first", Align::Right),
    ]);
    for ((name, times), (_, tokens)) in candle_baseline.seconds.iter().zip(&candle_baseline.tokens)
    {
        let logs: Vec<f64> = first.iter().zip(times).map(|(a, b)| (a / b).ln()).collect();
        let ratio = match (Interval::of_logs(&logs), logs.first()) {
            (Some(i), _) => interval(&i),
            (None, Some(log)) => factor(log.exp()),
            _ => String::new(),
        };
        let total: f64 = times.iter().sum();
        let tokens = tokens.iter().sum::<u64>() as f64;
        let middle = median(times);
        table.push(vec![
            Cell::text(&**name),
            middle.map_or_else(Cell::empty, |m| Cell::number(m, rate(m))),
            Cell::rate((total > 0.0).then(|| tokens / total)),
            Cell::text(ratio),
        ]);
    }
    let text = "So that the emulated baseline is seen for what it is: the audit's start, our own f32 and bf16 with nothing else switched on, and \
                stock candle-transformers in f32, which runs one sequence at a time.";
    Some(Section::new("Candle baseline", vec![Block::Text(text.into()), Block::Table(table)]))
}

/// Clients.
fn clients(result: &BenchResult) -> Option<Section> {
    let mut table = Table::new(&[
        ("clients", "Clients", Align::Right),
        ("queue", "queue", Align::Left),
        ("throughput", "tokens/s", Align::Right),
        ("requests", "requests/s", Align::Right),
        ("p50", "p50", Align::Right),
        ("p90", "p90", Align::Right),
        ("p99", "p99", Align::Right),
        ("max", "max", Align::Right),
        ("ttft", "1st token p50", Align::Right),
        ("n", "n", Align::Right),
    ]);
    for c in &result.clients {
        let histogram = |ms: &[f64]| {
            let mut h = Latencies::default().end_to_end;
            ms.iter().for_each(|v| h.saturating_record((v * 1e3).max(1.0) as u64));
            h
        };
        let (whole, first) = (histogram(&c.latency_ms), histogram(&c.ttft_ms));
        table.push(vec![
            Cell::text(c.clients.to_string()),
            Cell::text(if c.queue { "on" } else { "off" }),
            Cell::rate(Some(c.generated_tokens as f64 / c.seconds)),
            Cell::rate(Some(c.requests as f64 / c.seconds)),
            Cell::text(percentile(&whole, 50.0)),
            Cell::text(percentile(&whole, 90.0)),
            Cell::text(percentile(&whole, 99.0)),
            Cell::text(seconds(whole.max() as f64 / 1e6)),
            Cell::text(percentile(&first, 50.0)),
            Cell::text(c.requests.to_string()),
        ]);
    }
    let text = "Closed-loop clients: each sends its next prompt when its last one is answered. Everything on but the answer cache.";
    (!result.clients.is_empty()).then(|| {
        Section::new("The queue under load", vec![Block::Text(text.into()), Block::Table(table)])
    })
}

/// What the workload lets an optimization gain.
fn workload(result: &BenchResult) -> Vec<(String, String)> {
    let w = &result.workload;
    let early = of_samples(result, result.everything, |s| s.early as f64 / s.answers.max(1) as f64);
    let answers =
        mean(result, result.everything, |s| s.completion_tokens as f64 / s.answers.max(1) as f64);
    let prompt =
        mean(result, result.everything, |s| s.prompt_tokens as f64 / s.answers.max(1) as f64);
    let mut facts = vec![
        (
            "Workload".to_string(),
            format!("{}, {} prompts in {} slices", w.name, w.prompts, w.slices),
        ),
        (
            "Repeats".to_string(),
            format!(
                "{} of {} prompts ({})",
                w.repeats,
                w.prompts,
                percent(w.repeats as f64 / w.prompts.max(1) as f64)
            ),
        ),
        (
            "Limit".to_string(),
            format!(
                "{} tokens, temperature {}, batch {}, {} threads",
                w.max_tokens, w.temperature, result.batch, result.threads
            ),
        ),
    ];
    if let (Some(prompt), Some(answer), Some(early)) = (prompt, answers, early) {
        facts.push((
            "Lengths".into(),
            format!(
                "{} tokens a prompt, {} an answer with everything on",
                rate(prompt),
                rate(answer)
            ),
        ));
        facts.push((
            "Ended early".into(),
            format!("{} of the answers with everything on", percent(early)),
        ));
    }
    facts
}

fn mean(result: &BenchResult, config: usize, f: impl Fn(&Sample) -> f64) -> Option<f64> {
    mean_interval(&result.rounds.iter().filter_map(|r| r.of(config)).map(f).collect::<Vec<_>>())
        .map(|m| m.0)
}

/// What ran.
fn program(result: &BenchResult) -> Vec<(String, String)> {
    let everything = &result.configs.get(result.everything);
    let commit = result.commit.as_deref().map_or(String::new(), |c| format!(", commit {c}"));
    let mut facts = vec![
        ("Program".to_string(), format!("llmopt {}{commit}", result.version)),
        ("Command".to_string(), result.command.join(" ")),
        ("Started".to_string(), result.started.clone()),
        (
            "Model".to_string(),
            format!(
                "{}, sha256 {}",
                result.model.shown(),
                result.model.digest.chars().take(16).collect::<String>()
            ),
        ),
    ];
    if let Some(config) = everything {
        facts.push(("Storage".into(), format!("{} ({})", config.dtype, config.reason)));
        facts.push(("Kernels".into(), config.kernels.join(", ")));
    }
    facts
}

/// The whole report.
pub fn report(result: &BenchResult, analysis: &Analysis, latencies: &[Latencies]) -> Report {
    let mut first = vec![Block::Table(audit_table(analysis))];
    first.extend(audit_chart(analysis).map(Block::Chart));
    first.push(Block::Notes(notes(result, analysis)));
    if let Some(table) = runs_table(analysis) {
        let text = "95 % intervals. Within a run: what these rounds say of this hour and this \
            process. Between runs: what the next run may find. Verdicts and gates use the wider \
            one.";
        first.extend([Block::Text(text.into()), Block::Table(table)]);
    }
    if let Some(table) = steps_table(analysis) {
        first.extend(ladder_chart(analysis).map(Block::Chart));
        let removed = table.columns.iter().any(|column| column.title == "Lost if removed");
        first.push(Block::Table(table));
        let text = "Lost if removed: everything on against all but this one (for rows beyond the \
            audit: that and this one against everything on).";
        first.extend(removed.then(|| Block::Text(text.into())));
    }
    let mut sections = vec![Section::new("What each optimization gained", first)];
    if !result.rounds.is_empty() {
        let text = "Medians over the rounds. Tokenizing runs beside the forward passes; queue is \
            the mean wait of an answer; n are generated tokens.";
        let mut went: Vec<Block> = stages_chart(result).map(Block::Chart).into_iter().collect();
        went.extend([Block::Text(text.into()), Block::Table(stages(result))]);
        sections.push(Section::new("Where the time went", went));
        let mut took: Vec<Block> =
            latency_chart(result, latencies).map(Block::Chart).into_iter().collect();
        took.extend(latency(result, latencies));
        sections.push(Section::new("Latency", took));
    }
    if !result.starts.is_empty() {
        sections.push(Section::new(
            "Load time, first request, memory",
            vec![Block::Table(starts(result))],
        ));
    }
    sections.extend(clients(result));
    sections.extend(candle_baseline(result));
    sections.push(Section::new("Workload", vec![Block::Facts(workload(result))]));
    sections.push(super::machine::section(&result.machine, result.limits.as_ref()));
    sections.push(Section::new("Program", vec![Block::Facts(program(result))]));
    let title = format!(
        "llmopt bench --phase {}: {} on {}",
        result.phases.name(),
        result.model.shown(),
        result.machine.cpu
    );
    Report { title, sections, data: data(analysis) }
}

/// `speedup.md`: the audit's table, and what was lost and gained step by step.
pub fn tables(analysis: &Analysis) -> String {
    let tables = [Some(audit_table(analysis)), steps_table(analysis)];
    tables.iter().flatten().map(super::format::markdown::table).collect::<Vec<_>>().join("\n")
}

/// The short form for a CI's summary page.
pub fn summary(result: &BenchResult, analysis: &Analysis, gate: &[String]) -> Report {
    let mut blocks =
        vec![Block::Table(audit_table(analysis)), Block::Notes(notes(result, analysis))];
    if !gate.is_empty() {
        blocks.push(Block::Text("Gate:".into()));
        blocks.push(Block::Notes(gate.to_vec()));
    }
    let title = format!("llmopt bench --phase {}: {}", result.phases.name(), result.model.shown());
    Report { title, sections: vec![Section { title: String::new(), blocks }], data: data(analysis) }
}

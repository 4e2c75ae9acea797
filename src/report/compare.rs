//! A [`Comparison`] for people and as `compare.csv`: verdict first, then tables, limits, machine. In: the comparison. Out: a [`Report`]. It
//! decides nothing: which setting is the fastest was judged in `bench::compare::recommendation`.
//! Over 500 lines: one page, a function a section or sentence.

use super::chart::{Bar, Chart, ChartMarks};
use super::{Align, Block, Cell, Report, Section, Table, factor, interval};
use crate::bench::compare::comparison::{Comparison, Figure, Measure, MeasuredSetting};
use crate::bench::compare::recommendation::{Aim, Pick, Recommendation};
use crate::bench::statistics::{BUSY, Interval};
use crate::roofline::Bound;
use crate::units::{Bytes, rate};

/// The whole report.
pub fn report(comparison: &Comparison, recommendations: &[Recommendation]) -> Report {
    let reference = comparison.settings.first().map_or("", |s| s.name.as_str());
    // One setting has nobody to be compared with: no ratio, no verdict, and its own text alone.
    let alone = comparison.settings.len() == 1;
    let quick = if comparison.quick { " (quick: speed only)" } else { "" };
    let names: Vec<&str> = comparison.settings.iter().map(|s| s.name.as_str()).collect();
    let weights = comparison.settings.first().and_then(|s| s.parameters);
    let shown = weights.map_or_else(String::new, |parameters| format!(" ({parameters})"));
    let what = format!("{}{shown}: {}{quick}", comparison.model, names.join(" / "));
    let mut said = sentences(comparison, recommendations).into_iter();
    let title = said.next().unwrap_or_default();
    let mut sections = vec![
        Section::new("", vec![Block::Text(what), Block::Notes(said.collect())]),
        Section::new(
            if alone {
                "Speed and memory".to_string()
            } else {
                format!("Speed and memory (reference: {reference})")
            },
            std::iter::once(Block::Table(speed_table(comparison)))
                .chain(charts(comparison).into_iter().map(Block::Chart))
                .chain([Block::Notes(speed_notes(comparison))])
                .collect(),
        ),
    ];
    if !comparison.quick {
        sections.push(Section::new(
            if alone { "Quality" } else { "Quality against the reference" },
            vec![Block::Table(quality_table(comparison)), Block::Notes(quality_notes(comparison))],
        ));
    }
    let reasons = comparison.settings.iter().map(|s| {
        let other = s
            .parameters
            .filter(|own| Some(*own) != weights)
            .map_or_else(String::new, |own| format!(", {own}"));
        format!("{}: {} ({}){other}", s.name, s.dtype, s.dtype_reason)
    });
    sections.push(Section::new(
        "Settings",
        vec![Block::Table(settings_table(comparison)), Block::Notes(reasons.collect())],
    ));
    sections.push(super::machine::section(&comparison.machine, Some(&comparison.limits)));
    if !comparison.notes.is_empty() {
        sections.push(Section::new(
            "How it was measured",
            vec![Block::Notes(comparison.notes.clone())],
        ));
    }
    Report { title, sections, data: data(comparison) }
}

/// `compare.csv`.
pub fn data(comparison: &Comparison) -> Table {
    let mut table =
        Table::of_keys(&["setting", "measure", "value", "low", "high", "unit", "limit", "share"]);
    let number = |n: Option<f64>| n.map_or_else(Cell::empty, |n| Cell::number(n, rate(n)));
    for s in &comparison.settings {
        for f in &s.figures {
            table.push(vec![
                Cell::text(&s.name),
                Cell::text(f.measure.name()),
                number(f.value),
                number(f.low),
                number(f.high),
                Cell::text(f.measure.unit()),
                number(f.limit),
                number(f.share()),
            ]);
        }
    }
    table
}

fn title(measure: Measure) -> &'static str {
    match measure {
        Measure::LoadS => "load",
        Measure::Prefill64 => "prefill 64, tok/s",
        Measure::Prefill512 => "prefill 512, tok/s",
        Measure::Decode1 => "decode, one sequence, tok/s",
        Measure::DecodeBatch => "decode, a batch, tok/s",
        Measure::LatencyP50Ms => "latency p50",
        Measure::LatencyP99Ms => "latency p99",
        Measure::WorkloadTokS => "workload, tok/s",
        Measure::PeakRssBytes => "peak memory",
        Measure::AnswersIdentical => "answers identical",
        Measure::Top1Agreement => "same first choice",
        Measure::KlMean => "KL mean, nats",
        Measure::KlP99 => "KL 99 %, nats",
        Measure::Perplexity => "perplexity",
    }
}

/// A value in its unit, for people.
fn shown(measure: Measure, value: f64) -> String {
    match measure.unit() {
        "s" => crate::units::seconds(value),
        "ms" => crate::units::seconds(value / 1e3),
        "bytes" => Bytes(value as u64).to_string(),
        "share" => percent(value),
        "nats" if value == 0.0 => "0".into(),
        "nats" => format!("{value:.2e}"),
        "tok/s" => rate(value),
        _ => format!("{value:.3}"),
    }
}

fn percent(share: f64) -> String {
    // A share just below one must not read as all.
    let text = format!("{:.1} %", share * 100.0);
    if share < 1.0 && text == "100.0 %" { "99.9 %".into() } else { text.replace(".0 %", " %") }
}

fn value_and_interval(f: &Figure) -> String {
    match (f.value, f.low, f.high) {
        (Some(v), Some(low), Some(high)) if f.measure.unit() == "tok/s" && !steady(low, high) => {
            format!("{} (unsteady)", shown(f.measure, v))
        }
        (Some(v), Some(low), Some(high)) if low != v || high != v => {
            format!(
                "{} ({}–{})",
                shown(f.measure, v),
                shown(f.measure, low),
                shown(f.measure, high)
            )
        }
        (Some(v), _, _) => shown(f.measure, v),
        _ => "–".into(),
    }
}

/// An interval wider than a factor of ten to either side says nothing but that the machine was unsteady.
fn steady(low: f64, high: f64) -> bool {
    high / low < 100.0
}

/// A ratio with its interval, if that says anything.
fn ratio_text(i: &Interval) -> String {
    if steady(i.low, i.high) { interval(i) } else { format!("{} (unsteady)", factor(i.ratio)) }
}

/// Measures down, settings across: value with interval, how much better than the reference, share of the limit.
fn speed_table(comparison: &Comparison) -> Table {
    across(
        comparison,
        |m| !m.is_quality(),
        |f| {
            let mut text = value_and_interval(f);
            if let Some(i) = &f.against_reference {
                text.push_str(&format!(", {}×", ratio_text(i)));
            }
            if let Some(share) = f.share() {
                text.push_str(&format!(", {:.0} % of limit", share * 100.0));
            }
            text
        },
    )
}

/// Throughput, memory and share of the limit by setting: a picture a measure.
fn charts(comparison: &Comparison) -> Vec<Chart> {
    let drawn = [
        Measure::Decode1,
        Measure::DecodeBatch,
        Measure::Prefill512,
        Measure::WorkloadTokS,
        Measure::PeakRssBytes,
    ];
    let figures = |m: Measure| {
        comparison.settings.iter().filter_map(move |s| Some((s.name.clone(), s.figure(m)?)))
    };
    let mut charts = Vec::new();
    for measure in drawn {
        let bar = |(label, f): (String, &Figure)| {
            let value = f.value.filter(|v| v.is_finite())?;
            Some(Bar { label, value, interval: f.low.zip(f.high), shown: value_and_interval(f) })
        };
        let bars: Vec<Bar> = figures(measure).filter_map(bar).collect();
        charts.extend(bars_chart(title(measure).to_string(), bars));
    }
    for measure in [Measure::Decode1, Measure::DecodeBatch, Measure::Prefill512] {
        let bar = |(label, f): (String, &Figure)| {
            let share = f.share().filter(|s| s.is_finite())?;
            Some(Bar {
                label,
                value: share,
                interval: None,
                shown: format!("{:.0} %", share * 100.0),
            })
        };
        let bars: Vec<Bar> = figures(measure).filter_map(bar).collect();
        charts
            .extend(bars_chart(format!("Share of the machine's limit: {}", title(measure)), bars));
    }
    charts
}

fn bars_chart(title: String, bars: Vec<Bar>) -> Option<Chart> {
    let all: Vec<String> = bars.iter().map(|b| format!("{} {}", b.label, b.shown)).collect();
    let description = format!("Bars from zero with 95 % intervals: {}.", all.join("; "));
    (!bars.is_empty()).then_some(Chart { title, description, marks: ChartMarks::Bars(bars) })
}

fn quality_table(comparison: &Comparison) -> Table {
    across(comparison, Measure::is_quality, value_and_interval)
}

fn across(
    comparison: &Comparison,
    wanted: impl Fn(Measure) -> bool,
    cell: impl Fn(&Figure) -> String,
) -> Table {
    let mut columns = vec![("measure".to_string(), "".to_string(), Align::Left)];
    columns
        .extend(comparison.settings.iter().map(|s| (s.name.clone(), s.name.clone(), Align::Right)));
    let columns: Vec<(&str, &str, Align)> =
        columns.iter().map(|(k, t, a)| (k.as_str(), t.as_str(), *a)).collect();
    let mut table = Table::new(&columns);
    for measure in Measure::ALL.into_iter().filter(|m| wanted(*m)) {
        let figures: Vec<Option<&Figure>> =
            comparison.settings.iter().map(|s| s.figure(measure)).collect();
        if figures.iter().all(Option::is_none) {
            continue;
        }
        let mut row = vec![Cell::text(title(measure))];
        row.extend(figures.iter().map(|f| Cell::text(f.map_or("–".into(), &cell))));
        table.push(row);
    }
    table
}

fn speed_notes(comparison: &Comparison) -> Vec<String> {
    let mut notes = vec![
        "Value (95 % interval), times better than the reference (interval of paired rounds), share of what the machine's measured read \
         bandwidth and multiply-add rate allow."
            .to_string(),
    ];
    notes.extend(figure_notes(comparison, |m| !m.is_quality()));
    notes
}

fn quality_notes(comparison: &Comparison) -> Vec<String> {
    figure_notes(comparison, Measure::is_quality)
}

/// What is behind each measure; a setting is named only where its note differs from the first one's.
fn figure_notes(comparison: &Comparison, wanted: impl Fn(Measure) -> bool) -> Vec<String> {
    let mut notes = Vec::new();
    for measure in Measure::ALL.into_iter().filter(|m| wanted(*m)) {
        let all: Vec<(&str, &str)> = comparison
            .settings
            .iter()
            .filter_map(|s| Some((s.name.as_str(), s.figure(measure)?.note.as_str())))
            .collect();
        let Some(&(_, first)) = all.first() else { continue };
        if all.iter().all(|(_, note)| *note == first) {
            notes.push(format!("{}: {first}.", title(measure)));
        } else {
            notes.push(format!(
                "{}: {}.",
                title(measure),
                all.iter()
                    .map(|(name, note)| format!("{name} {note}"))
                    .collect::<Vec<_>>()
                    .join("; ")
            ));
        }
    }
    notes
}

fn settings_table(comparison: &Comparison) -> Table {
    let mut table = Table::new(&[
        ("setting", "setting", Align::Left),
        ("dtype", "computes with", Align::Left),
        ("bytes", "weights read a token", Align::Right),
        ("threads", "threads", Align::Right),
        ("batch", "batch", Align::Right),
        ("kernels", "kernels", Align::Left),
        ("flags", "flags", Align::Left),
    ]);
    for s in &comparison.settings {
        table.push(vec![
            Cell::text(&s.name),
            Cell::text(&s.dtype),
            Cell::number(s.bytes_per_token, megabytes(s.bytes_per_token)),
            Cell::number(s.threads as f64, s.threads.to_string()),
            Cell::number(s.batch as f64, s.batch.to_string()),
            Cell::text(s.kernels.join(", ")),
            Cell::text(&s.flags),
        ]);
    }
    table
}

fn megabytes(bytes: f64) -> String {
    if bytes < 1e6 { format!("{:.0} kB", bytes / 1e3) } else { format!("{} MB", rate(bytes / 1e6)) }
}

fn list(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [many @ .., last] => format!("{} and {last}", many.join(", ")),
    }
}

fn aim_name(aim: Aim) -> &'static str {
    match aim {
        Aim::Prefill => "Prefill (long prompts)",
        Aim::Decode => "Decode, one answer at a time",
        Aim::Batch => "Decode, many answers at a time",
        Aim::Workload => "The workload from end to end",
    }
}

/// The answer to what was asked, then what to do, sentence by sentence.
pub fn sentences(comparison: &Comparison, recommendations: &[Recommendation]) -> Vec<String> {
    let mut said = vec![answer(comparison, recommendations)];
    for v in recommendations {
        let name = aim_name(v.aim);
        if let Some(p) = &v.same_answers {
            said.push(
                format!("{name}: {} {}", same_answers(comparison, p), why(p))
                    .trim_end()
                    .to_string(),
            );
        }
        if let Some(p) = &v.any_answers {
            let text = match &v.same_answers {
                Some(same) => {
                    format!("{name}, if other answers will do: {}", other_answers(p, same))
                }
                None => format!("{name}: {}", unjudged(comparison, p)),
            };
            said.push(format!("{text} {}", why(p)).trim_end().to_string());
        }
    }
    said.extend(costs(recommendations));
    said.extend(features_sentence(recommendations));
    said.extend(bf16_sentence(comparison, recommendations));
    if let Some(auto) = &comparison.auto {
        said.push(auto_sentence(comparison, recommendations, &auto.dtype, &auto.reason));
    }
    said
}

/// What was asked, answered in a line: which setting is faster at what, by how much, and whether its answers are the same.
fn answer(comparison: &Comparison, recommendations: &[Recommendation]) -> String {
    let Some((first, others)) = comparison.settings.split_first() else {
        return "Nothing was measured.".into();
    };
    if let Some(taken) = comparison.disturbance().filter(|d| *d > BUSY) {
        return format!(
            "No verdict: other processes and guests used {:.0} % of the machine meanwhile, more than {:.0} %.",
            taken * 100.0,
            BUSY * 100.0
        );
    }
    match others {
        [] => format!("{} was measured alone: no ratios, no verdict.", first.name),
        [other] => of_two(comparison, first, other),
        _ => of_many(comparison, first, recommendations),
    }
}

/// `bf16 is faster than f32 here: one answer at a time 1.98 (1.95–2.01) times, …; its answers are identical.`
fn of_two(comparison: &Comparison, first: &MeasuredSetting, other: &MeasuredSetting) -> String {
    let (mut faster, mut slower, mut unclear) = (Vec::new(), Vec::new(), Vec::new());
    for aim in [Aim::Workload, Aim::Decode, Aim::Batch, Aim::Prefill] {
        let Some(i) = other.figure(aim.measure()).and_then(|f| f.against_reference) else {
            continue;
        };
        let text = format!("{} {}", short_name(aim), ratio_text(&i));
        match i {
            _ if !steady(i.low, i.high) => unclear.push(text),
            Interval { low, .. } if low > 1.0 => faster.push(text),
            Interval { high, .. } if high < 1.0 => slower.push(text),
            _ => unclear.push(text),
        }
    }
    let (a, b) = (&other.name, &first.name);
    let mut parts = match (faster.is_empty(), slower.is_empty()) {
        (true, true) if unclear.is_empty() => {
            return format!("No verdict: too few rounds to compare {a} with {b}.");
        }
        (true, true) => {
            vec![format!(
                "No clear difference between {b} and {a} here: {a} is {}",
                list(&std::mem::take(&mut unclear))
            )]
        }
        (false, true) => vec![format!("{a} is faster than {b} here: {}", list(&faster))],
        (true, false) => vec![format!("{a} is slower than {b} here: {}", list(&slower))],
        (false, false) => {
            vec![
                format!("It depends: {a} is faster than {b} for {}", list(&faster)),
                format!("slower for {}", list(&slower)),
            ]
        }
    };
    if !unclear.is_empty() {
        parts.push(format!("no clear difference for {}", list(&unclear)));
    }
    parts.push(match (other.same_answers(), other.agreement.as_ref()) {
        (Some(true), _) => "its answers are identical".into(),
        (_, Some(agreement)) => {
            format!("{} of its answers are identical", percent(agreement.identical))
        }
        (Some(false), None) => "its answers are others".into(),
        (None, None) if comparison.quick => "answers were not compared (--quick)".into(),
        (None, None) => "answers were not compared".into(),
    });
    format!("{}.", parts.join("; "))
}

/// The fastest for each aim, settings with several together.
fn of_many(
    comparison: &Comparison,
    first: &MeasuredSetting,
    recommendations: &[Recommendation],
) -> String {
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    for v in recommendations {
        let Some(pick) = v.any_answers.as_ref().or(v.same_answers.as_ref()) else { continue };
        let times = match (&pick.ratio, &pick.against) {
            (Some(i), Some(against)) if *against != first.name => {
                format!(" {} over {against}", ratio_text(i))
            }
            (Some(i), Some(_)) => format!(" {}", ratio_text(i)),
            _ => String::new(),
        };
        let unclear = if pick.clear { "" } else { ", not clearly" };
        let text = format!("{}{times}{unclear}", short_name(v.aim));
        match found.iter_mut().find(|f| f.0 == pick.setting) {
            Some((_, all)) => all.push(text),
            None => found.push((pick.setting.clone(), vec![text])),
        }
    }
    let answers = |name: &str| match comparison
        .settings
        .iter()
        .find(|s| s.name == name)
        .map(MeasuredSetting::same_answers)
    {
        _ if name == first.name => "",
        Some(Some(true)) => " with identical answers",
        Some(Some(false)) => " with other answers",
        _ => "",
    };
    let all: Vec<String> = found
        .iter()
        .map(|(name, aims)| format!("{name}{} ({})", answers(name), list(aims)))
        .collect();
    match all.is_empty() {
        true => "No verdict: no speed was measured.".into(),
        false => format!("Fastest here, times {}: {}.", first.name, all.join("; ")),
    }
}

fn short_name(aim: Aim) -> &'static str {
    match aim {
        Aim::Prefill => "long prompts",
        Aim::Decode => "one answer at a time",
        Aim::Batch => "many at a time",
        Aim::Workload => "the whole workload",
    }
}

/// What `--dtype auto` does, beside what was measured.
fn auto_sentence(
    comparison: &Comparison,
    recommendations: &[Recommendation],
    dtype: &str,
    reason: &str,
) -> String {
    let verdict =
        match crate::bench::compare::recommendation::auto_agrees(comparison, recommendations) {
            Some(true) => "; that agrees with what was measured here".to_string(),
            Some(false) if fastest_of_all(comparison, recommendations, dtype) => {
                format!(
                    "; that is the fastest measured here, but its answers are not those of {}",
                    comparison.settings.first().map_or("the reference", |s| s.name.as_str())
                )
            }
            Some(false) => "; that is not the fastest measured here".to_string(),
            None if comparison.settings.iter().all(|s| s.dtype != dtype) => {
                format!("; it was not among these settings: add {dtype} to see it beside them")
            }
            None => String::new(),
        };
    let reason = if reason.is_empty() {
        String::new()
    } else {
        format!(" ({})", reason.trim_end_matches('.'))
    };
    format!("--dtype auto chooses {dtype} for this file{reason}{verdict}.")
}

/// Whether it decodes fastest if other answers will do.
fn fastest_of_all(
    comparison: &Comparison,
    recommendations: &[Recommendation],
    dtype: &str,
) -> bool {
    let any = |aim: Aim| {
        recommendations.iter().find(|v| v.aim == aim).and_then(|v| v.any_answers.as_ref())
    };
    let pick = any(Aim::Batch).or_else(|| any(Aim::Decode));
    pick.is_some_and(|p| {
        comparison.settings.iter().any(|s| s.name == p.setting && s.dtype == dtype)
    })
}

/// The fastest of those with identical answers.
fn same_answers(comparison: &Comparison, p: &Pick) -> String {
    let bits =
        if p.cost.is_some_and(|c| c.same_bits) { " (every score has the same bits)" } else { "" };
    match (&p.ratio, p.against.as_deref()) {
        (Some(i), Some(against)) if p.clear => {
            format!(
                "use {}: {} times as fast as {against}, with identical answers{bits}.",
                p.flags,
                ratio_text(i)
            )
        }
        (Some(i), Some(against)) => format!(
            "no clear difference, either will do: {} is {} times as fast as {against}, with identical answers{bits}.",
            p.setting,
            ratio_text(i)
        ),
        (_, Some(against)) => format!(
            "{} has the highest figure of those with identical answers ({} tok/s), but one round gives no interval against {against}.",
            p.setting,
            rate(p.value)
        ),
        (_, None) if comparison.settings.len() == 1 => {
            format!("{} reaches {} tok/s; it is the only setting.", p.setting, rate(p.value))
        }
        (_, None) => format!(
            "keep {} ({} tok/s): none of the others gives the same answers.",
            p.flags,
            rate(p.value)
        ),
    }
}

/// The fastest of all, which gives other answers; `same` is the fastest that does not.
fn other_answers(p: &Pick, same: &Pick) -> String {
    let against = p.against.as_deref().unwrap_or("the others");
    match &p.ratio {
        Some(i) if p.clear => {
            format!("use {}: {} times as fast as {against}.", p.flags, ratio_text(i))
        }
        Some(i) => format!(
            "nothing clear to gain, stay with {}: {} is {} times as fast as {against}.",
            same.flags,
            p.setting,
            ratio_text(i)
        ),
        None => {
            format!(
                "{} has the highest figure ({} tok/s), but one round gives no interval.",
                p.setting,
                rate(p.value)
            )
        }
    }
}

/// The fastest, where answers were not compared.
fn unjudged(comparison: &Comparison, p: &Pick) -> String {
    let unseen = if comparison.quick {
        "answers were not compared (--quick)"
    } else {
        "answers were not compared"
    };
    match (&p.ratio, p.against.as_deref()) {
        (Some(i), Some(against)) if p.clear => {
            format!(
                "{} is {} times as fast as {against} ({}); {unseen}.",
                p.setting,
                ratio_text(i),
                p.flags
            )
        }
        (Some(i), Some(against)) => {
            format!(
                "no clear difference: {} is {} times as fast as {against}; {unseen}.",
                p.setting,
                ratio_text(i)
            )
        }
        (None, Some(_)) => {
            format!(
                "{} has the highest figure ({} tok/s), but one round gives no interval; {unseen}.",
                p.setting,
                rate(p.value)
            )
        }
        (_, None) => {
            format!("{} reaches {} tok/s; it is the only setting.", p.setting, rate(p.value))
        }
    }
}

/// What each setting with other answers costs, once for all aims.
fn costs(recommendations: &[Recommendation]) -> Vec<String> {
    let mut said: Vec<(String, String)> = Vec::new();
    for p in recommendations
        .iter()
        .filter(|v| v.same_answers.is_some())
        .filter_map(|v| v.any_answers.as_ref())
    {
        let Some(c) = &p.cost else { continue };
        if said.iter().any(|(name, _)| *name == p.setting) {
            continue;
        }
        let parts: Vec<String> = [
            c.answers_identical.map(|a| format!("{} of the answers are identical", percent(a))),
            c.top1_agreement
                .map(|a| format!("the first choice is the same for {} of the tokens", percent(a))),
            c.kl_mean.map(|k| format!("the distributions diverge by {k:.2e} nats")),
            c.perplexity_ratio.map(|r| format!("the perplexity is {r:.4} times as high")),
        ]
        .into_iter()
        .flatten()
        .collect();
        said.push((
            p.setting.clone(),
            format!("What {} costs in quality: {}.", p.setting, parts.join(", ")),
        ));
    }
    said.into_iter().map(|(_, text)| text).collect()
}

fn why(p: &Pick) -> String {
    let w = &p.why;
    let mut parts = Vec::new();
    match w.bound {
        Some(Bound::Memory) => {
            let other = w.bytes_per_token_of_other.filter(|b| *b != w.bytes_per_token);
            let other = other.map_or(String::new(), |b| format!(" instead of {}", megabytes(b)));
            parts.push(format!(
                "Reading memory limits it: {} of weights a token{other}",
                megabytes(w.bytes_per_token)
            ));
        }
        Some(Bound::Compute) => {
            parts.push("Multiply-adds limit it, not reading memory".to_string())
        }
        None => {}
    }
    if let Some(share) = w.share {
        let other = w.share_of_other.zip(p.against.as_deref());
        let other =
            other.map_or(String::new(), |(s, name)| format!(" ({name}: {:.0} %)", s * 100.0));
        parts.push(format!("{} reaches {:.0} % of its limit{other}", p.setting, share * 100.0));
    }
    if parts.is_empty() { String::new() } else { format!("{}.", parts.join("; ")) }
}

/// What bf16 means here, if it was chosen for anything.
fn bf16_sentence(comparison: &Comparison, recommendations: &[Recommendation]) -> Option<String> {
    let picks = recommendations.iter().flat_map(|v| [&v.same_answers, &v.any_answers]).flatten();
    let dtype = |p: &Pick| {
        comparison.settings.iter().find(|s| s.name == p.setting).map(|s| s.dtype.as_str())
    };
    let chosen = picks.into_iter().any(|p| dtype(p) == Some("bf16"));
    let instructions = match comparison.machine.native_bf16() {
        true => "this CPU's bf16 instructions would round the other operand too, and are not used",
        false => "bf16 instructions, which this CPU lacks, are not missed",
    };
    chosen.then(|| {
        format!(
            "bf16 is only how weights are stored: they are widened to f32 exactly; {instructions}."
        )
    })
}

/// The CPU features that matter for the settings chosen, once for all recommendations.
fn features_sentence(recommendations: &[Recommendation]) -> Option<String> {
    let picks = || recommendations.iter().flat_map(|v| [&v.same_answers, &v.any_answers]).flatten();
    let union = |f: fn(&Pick) -> &Vec<String>| {
        let mut names: Vec<String> = Vec::new();
        picks().flat_map(f).for_each(|n| {
            if !names.contains(n) {
                names.push(n.clone())
            }
        });
        names
    };
    let (present, absent) = (union(|p| &p.why.present), union(|p| &p.why.absent));
    match (present.is_empty(), absent.is_empty()) {
        (true, true) => None,
        (false, true) => Some(format!("This CPU has {}.", list(&present))),
        (true, false) => Some(format!("This CPU has no {}.", absent.join(", no "))),
        (false, false) => {
            Some(format!("This CPU has {}; no {}.", list(&present), absent.join(", no ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::compare::recommendation::recommendations;
    use crate::bench::compare::recommendation::tests::{comparison, setting};
    use crate::report::ReportFormat;

    fn example() -> Comparison {
        comparison(vec![
            setting("f32", "f32", 35.0, None, None),
            setting("bf16", "bf16", 65.0, Some(1.86), Some(true)),
            setting("q4_1", "q4_1", 110.0, Some(3.1), Some(false)),
        ])
    }

    /// Everything but the answer itself.
    fn details(c: &Comparison) -> Vec<String> {
        sentences(c, &recommendations(c)).split_off(1)
    }

    #[test]
    fn sentences_say_what_to_use_by_how_much_and_why() {
        let c = example();
        let said = details(&c);
        assert_eq!(said.len(), 6, "{said:#?}");
        for part in [
            "use --dtype bf16: 1.86 (1.80–1.92) times as fast as f32, with identical answers (every score has the same bits).",
            "269 MB of weights a token instead of 538 MB",
            "bf16 reaches 80 % of its limit (f32: 80 %)",
        ] {
            assert!(said[0].contains(part), "{part}\n{}", said[0]);
        }
        assert!(
            said[1].contains("if other answers will do: use --dtype q4_1: 3.10 ("),
            "{}",
            said[1]
        );
        assert!(
            said[2].starts_with("What q4_1 costs in quality: 50 % of the answers are identical"),
            "{}",
            said[2]
        );
        assert!(
            said[3]
                .starts_with("This CPU has avx2 and fma; no avx512f, no avx512bf16, no amx-bf16"),
            "{}",
            said[3]
        );
        assert!(
            said[4].contains("widened to f32 exactly; bf16 instructions, which this CPU lacks"),
            "{}",
            said[4]
        );
        assert!(
            said[5].contains("--dtype auto chooses bf16")
                && said[5].ends_with("that agrees with what was measured here.")
        );
        let mut stored = example();
        stored.auto = Some(crate::bench::compare::comparison::Auto {
            dtype: "q4_1".into(),
            reason: "as stored".into(),
        });
        let said = details(&stored);
        assert!(
            said[5].ends_with(
                "that is the fastest measured here, but its answers are not those of f32."
            ),
            "{}",
            said[5]
        );
    }

    #[test]
    fn where_nothing_else_gives_the_same_answers_the_reference_is_kept_or_left_for_a_price() {
        let only = |ratio: f64| {
            let mut c = comparison(vec![
                setting("f32", "f32", 35.0, None, None),
                setting("bf16", "bf16", 35.0 * ratio, Some(ratio), Some(false)),
            ]);
            c.machine.features.iter_mut().for_each(|f| f.detected = true);
            c.auto = Some(crate::bench::compare::comparison::Auto {
                dtype: "q4_1".into(),
                reason: "as stored".into(),
            });
            details(&c)
        };
        let said = only(1.86);
        assert!(
            said[0].contains(
                "keep --dtype f32 (35.0 tok/s): none of the others gives the same answers."
            ),
            "{}",
            said[0]
        );
        assert!(
            said[1].contains("if other answers will do: use --dtype bf16: 1.86"),
            "{}",
            said[1]
        );
        assert!(
            said.iter().any(|s| s.contains("would round the other operand too, and are not used")),
            "{said:#?}"
        );
        assert!(said.last().unwrap().contains("not among these settings: add q4_1"), "{said:#?}");
        let said = only(1.02);
        assert!(
            said[1].contains("nothing clear to gain, stay with --dtype f32: bf16 is 1.02"),
            "{}",
            said[1]
        );
        // Alone there is nothing to choose; in a hurry nothing is said of answers.
        let mut alone = comparison(vec![setting("f32", "f32", 35.0, None, None)]);
        alone.auto = None;
        assert!(details(&alone)[0].contains("35.0 tok/s; it is the only setting."));
        let page =
            report(&alone, &recommendations(&alone)).render(super::super::ReportFormat::Md, 80);
        assert!(
            page.starts_with("# f32 was measured alone: no ratios, no verdict.\n")
                && !page.contains("reference:"),
            "{page}"
        );
        let mut hurried = comparison(vec![
            setting("f32", "f32", 35.0, None, None),
            setting("bf16", "bf16", 65.0, Some(1.86), None),
        ]);
        hurried.quick = true;
        let said = details(&hurried);
        assert!(
            said[0].contains("answers were not compared (--quick)")
                && !said[0].contains("identical"),
            "{}",
            said[0]
        );
    }

    #[test]
    fn the_first_line_answers_what_was_asked() {
        let first = |c: &Comparison| sentences(c, &recommendations(c)).remove(0);
        let two = |ratio: f64, same| {
            comparison(vec![
                setting("f32", "f32", 35.0, None, None),
                setting("bf16", "bf16", 35.0 * ratio, Some(ratio), same),
            ])
        };
        assert_eq!(
            first(&two(1.86, Some(true))),
            "bf16 is faster than f32 here: one answer at a time 1.86 (1.80–1.92); its answers are identical."
        );
        assert_eq!(
            first(&two(0.5, Some(false))),
            "bf16 is slower than f32 here: one answer at a time 0.50 (0.48–0.52); 50 % of its answers are identical."
        );
        assert!(first(&two(1.01, None)).starts_with(
            "No clear difference between f32 and bf16 here: bf16 is one answer at a time 1.01"
        ));
        let mut mixed = two(1.86, Some(true));
        let slow = Figure {
            measure: Measure::Prefill512,
            against_reference: Some(Interval { low: 0.9, ratio: 0.93, high: 0.96 }),
            ..mixed.settings[1].figures[0].clone()
        };
        mixed.settings[1].figures.push(slow);
        assert!(
            first(&mixed).starts_with(
                "It depends: bf16 is faster than f32 for one answer at a time 1.86 (1.80–1.92); slower for long prompts 0.93"
            ),
            "{}",
            first(&mixed)
        );
        assert_eq!(
            first(&example()),
            "Fastest here, times f32: q4_1 with other answers (one answer at a time 3.10 (3.01–3.19))."
        );
        mixed.busy = Some(crate::machine::Busy { others: 0.4, stolen: 0.1 });
        assert_eq!(
            first(&mixed),
            "No verdict: other processes and guests used 50 % of the machine meanwhile, more than 25 %."
        );
        mixed.settings.truncate(1);
        mixed.busy = None;
        assert_eq!(first(&mixed), "f32 was measured alone: no ratios, no verdict.");
    }

    #[test]
    fn no_interval_and_no_difference_are_not_called_faster() {
        let mut c = example();
        c.settings.truncate(2);
        c.settings[1].figures[0].against_reference = None;
        assert!(details(&c)[0].contains("no interval"));
        c.settings[1] = setting("bf16", "bf16", 35.1, Some(1.002), Some(true));
        assert!(details(&c)[0].contains("no clear difference"));
        let wide = Interval { low: 1e-6, ratio: 1.1, high: 1e9 };
        c.settings[1].figures[0].against_reference = Some(wide);
        let said = &details(&c)[0];
        assert!(said.contains("1.10 (unsteady)") && !said.contains("000000"), "{said}");
    }

    #[test]
    fn the_csv_has_the_contracts_header_and_numbers() {
        let c = example();
        let text = report(&c, &recommendations(&c)).render(ReportFormat::Csv, 80);
        assert!(
            text.starts_with("setting,measure,value,low,high,unit,limit,share\nf32,decode_1,35,34.3,35.7,tok/s,43.75,0.8\n"),
            "{text}"
        );
    }

    #[test]
    fn every_format_can_be_written_and_shares_below_one_are_not_all() {
        let c = example();
        let report = report(&c, &recommendations(&c));
        for format in [ReportFormat::Table, ReportFormat::Md, ReportFormat::Csv, ReportFormat::Json]
        {
            assert!(report.render(format, 100).contains("bf16"));
        }
        // How many weights the model has; another one's where a setting has another model.
        let mut c = example();
        c.settings[1].parameters =
            Some(crate::model::Parameters { total: 30_532_122_624, active: 3_345_000_000 });
        let page = super::report(&c, &recommendations(&c)).render(ReportFormat::Md, 100);
        assert!(page.contains("m (134.5 million parameters): f32 / bf16 / q4"), "{page}");
        assert!(
            page.contains("bf16: bf16 (), 30.53 billion parameters, 3.35 billion active"),
            "{page}"
        );
        assert_eq!(page.matches("parameters").count(), 2, "{page}");
        assert_eq!(
            (percent(0.9999), percent(1.0), percent(0.5)),
            ("99.9 %".into(), "100 %".into(), "50 %".into())
        );
    }
}

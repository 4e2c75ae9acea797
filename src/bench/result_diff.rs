//! Results files side by side: rows lined up by name, each with the ratio of its gains, and what differs between the machines and settings.
//! In: files of `bench` (`result.json`, `speedup.json`) or of `compare`, or their folders. Out: [`ResultDiff`], plain data. Only ratios are
//! compared, never times of different machines or moments.

use super::statistics::{Interval, mean, t_975};
use crate::bench::ablation::analysis::{self, Ratio};
use crate::bench::ablation::result::{BenchResult, without_mark};
use crate::bench::compare::comparison::{self, Comparison};
use crate::machine::Machine;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A larger file is not read.
const MAX_BYTES: u64 = 256 << 20;

/// What one file holds that can be lined up.
#[derive(Debug, Clone)]
pub struct Results {
    /// As typed.
    pub path: String,
    /// `bench` or `compare`: files of two kinds have no rows in common.
    pub kind: &'static str,
    /// Where it was measured, if the file says.
    pub machine: Option<Machine>,
    /// What it was measured with, name and value.
    pub settings: Vec<(String, String)>,
    /// Gains by row name, in the file's order.
    pub rows: Vec<(String, Interval)>,
    /// The smallest effect (a logarithm) its machine could show, if known.
    pub smallest: Option<f64>,
    /// The phases that were measured, if known: totals of other ones are totals of something else.
    pub phases: Option<String>,
}

/// What differs between runs of one setting.
const OF_RUNS: [&str; 2] = ["rounds", "version"];

/// Smaller effects are none, however narrow the interval: peak memory repeats to a tenth of a percent, and nobody would act on that.
const LEAST: f64 = 0.01;

/// With fewer runs of one setting nothing is said of how they differ.
const MIN_RUNS: usize = 3;

/// What a change is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// The whole interval lies above 1, and the ratio by `LEAST` or more.
    Better,
    /// The whole interval lies below 1, and the ratio by `LEAST` or more.
    Worse,
    /// Neither.
    Same,
}

impl Change {
    /// As tables show it.
    pub fn name(self) -> &'static str {
        match self {
            Change::Better => "better",
            Change::Worse => "worse",
            Change::Same => "no clear change",
        }
    }
}

/// A row of one file against the same row of the first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RowDiff {
    /// The row's name.
    pub row: String,
    /// The gain in the first file.
    pub first: Interval,
    /// The gain in this one.
    pub other: Interval,
    /// This one's over the first one's.
    pub ratio: Interval,
    /// What to make of it.
    pub change: Change,
    /// The interval of the ratio is that of how runs of this setting differ, which is wider than what their rounds say.
    pub between: bool,
}

/// How far runs of one setting differ, row by row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spread {
    /// The row's name.
    pub row: String,
    /// Runs of the first file's machine and settings, itself included.
    pub runs: usize,
    /// Least gain of any of them.
    pub least: f64,
    /// Greatest.
    pub greatest: f64,
    /// Standard deviation of their logarithms.
    pub deviation: f64,
    /// What the rounds of a run say: the largest half-width (a logarithm).
    pub within: f64,
}

/// One file against the first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Against {
    /// This file.
    pub path: String,
    /// What differs between the machines and settings, `what: first → this`.
    pub differences: Vec<String>,
    /// The rows that both have.
    pub rows: Vec<RowDiff>,
    /// Rows that only the first has.
    pub only_first: Vec<String>,
    /// Rows that only this one has.
    pub only_other: Vec<String>,
}

/// All files against the first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ResultDiff {
    /// The first file.
    pub reference: String,
    /// The others.
    pub others: Vec<Against>,
    /// How far runs differ; empty with fewer than three files of one machine and settings.
    pub spread: Vec<Spread>,
}

impl Results {
    /// Reads a file or a folder of results. The error is one line naming the file and what is wrong with it.
    pub fn read(path: &Path) -> Result<Results, String> {
        let shown = crate::units::shown_path(path);
        let file = if path.is_dir() { path.join("result.json") } else { path.to_path_buf() };
        let of = if path.is_dir() { "result.json of this folder " } else { "" };
        let told = |e: std::io::Error| format!("{shown}: {of}cannot be read: {e}");
        let meta = std::fs::metadata(&file).map_err(told)?;
        if !meta.is_file() || meta.len() > MAX_BYTES {
            return Err(format!("{shown}: is not a results file of llmopt ({} bytes)", meta.len()));
        }
        let text = std::fs::read_to_string(&file).map_err(told)?;
        let mut results = Results::parse(&text).map_err(|e| format!("{shown}: {e}"))?;
        results.path = shown;
        Ok(results)
    }

    /// Reads text.
    pub fn parse(text: &str) -> Result<Results, String> {
        let text = without_mark(text);
        let value: serde_json::Value = serde_json::from_str(text).map_err(|e| {
            format!("line {}: is not JSON ({})", e.line(), crate::units::shown(&e.to_string()))
        })?;
        let results = if value.is_array() {
            Results::of_speedup(&value)?
        } else if value["kind"] == "compare" {
            Results::of_comparison(text, &value)?
        } else {
            Results::of_bench(&BenchResult::parse(text)?)
        };
        if results.rows.is_empty() {
            return Err(
                "has no row with a ratio and its interval; a complete result.json of llmopt bench or compare would work".into()
            );
        }
        for (name, i) in &results.rows {
            // Two unsteady rounds may leave the ratio unbounded: an interval from 0, or to infinity, is one that says nothing.
            let bad = !(i.ratio.is_finite()
                && i.ratio > 0.0
                && (0.0..=i.ratio).contains(&i.low)
                && i.high >= i.ratio);
            if bad {
                let name = crate::units::shown(name);
                return Err(format!(
                    "row {name}: {} ({} to {}) is no ratio with an interval",
                    i.ratio, i.low, i.high
                ));
            }
        }
        let mut names: Vec<&String> = results.rows.iter().map(|r| &r.0).collect();
        names.sort();
        if let Some(pair) = names.windows(2).find(|w| w[0] == w[1]) {
            return Err(format!("row {}: is there twice", crate::units::shown(pair[0])));
        }
        Ok(results)
    }

    fn of_bench(result: &BenchResult) -> Results {
        let analysed = analysis::analyse(result);
        let rows = analysed.rows.iter().flat_map(|r| {
            let named = |what: &str, ratio: &Option<Ratio>| {
                Some((format!("{}{what}", r.name), ratio.as_ref()?.interval))
            };
            [
                named("", &r.alone),
                named(" (removed)", &r.removed),
                named(" (cumulative)", &r.cumulative),
            ]
        });
        let on =
            |label: &str| result.configs.iter().find(|c| c.label == label).map(|c| c.dtype.clone());
        let everything = result.configs.get(result.everything);
        Results {
            path: String::new(),
            kind: "bench",
            machine: Some(result.machine.clone()),
            settings: vec![
                (
                    "model".into(),
                    format!(
                        "{} ({})",
                        result.model.name,
                        result.model.digest.get(..12).unwrap_or_default()
                    ),
                ),
                (
                    "workload".into(),
                    format!(
                        "{} ({})",
                        result.workload.name,
                        result.workload.digest.get(..12).unwrap_or_default()
                    ),
                ),
                ("quick".into(), result.quick.to_string()),
                ("phases".into(), result.phases.name().to_string()),
                ("threads".into(), result.threads.to_string()),
                ("batch size".into(), result.batch.to_string()),
                ("max tokens".into(), result.workload.max_tokens.to_string()),
                ("temperature".into(), result.workload.temperature.to_string()),
                (
                    "dtype".into(),
                    everything
                        .map(|c| c.dtype.clone())
                        .or_else(|| on("everything"))
                        .unwrap_or_default(),
                ),
                ("kernels".into(), everything.map(|c| c.kernels.join(", ")).unwrap_or_default()),
                ("version".into(), version(&result.version, result.commit.as_deref())),
                ("rounds".into(), result.rounds.len().to_string()),
            ],
            rows: rows.flatten().collect(),
            smallest: analysed.detectable.smallest,
            phases: Some(result.phases.name().to_string()),
        }
    }

    fn of_comparison(text: &str, value: &serde_json::Value) -> Result<Results, String> {
        match value["schema"].as_u64() {
            Some(v) if v == u64::from(comparison::SCHEMA) => {}
            Some(v) => {
                return Err(format!("has schema {v}; this program reads {}", comparison::SCHEMA));
            }
            None => return Err("schema: is missing or no whole number".into()),
        }
        let c: Comparison = serde_json::from_str(text)
            .map_err(|e| format!("line {}: {}", e.line(), crate::units::shown(&e.to_string())))?;
        let rows = c.settings.iter().skip(1).flat_map(|s| {
            s.figures
                .iter()
                .filter_map(|f| {
                    Some((format!("{} {}", s.name, f.measure.name()), f.against_reference?))
                })
                .collect::<Vec<_>>()
        });
        let first = c.settings.first();
        Ok(Results {
            path: String::new(),
            kind: "compare",
            settings: vec![
                (
                    "model".into(),
                    format!("{} ({})", c.model, c.model_digest.get(..12).unwrap_or_default()),
                ),
                ("reference".into(), first.map(|s| s.name.clone()).unwrap_or_default()),
                ("quick".into(), c.quick.to_string()),
                ("threads".into(), first.map(|s| s.threads.to_string()).unwrap_or_default()),
                ("batch size".into(), first.map(|s| s.batch.to_string()).unwrap_or_default()),
                ("version".into(), version(&c.version, c.commit.as_deref())),
                ("rounds".into(), c.rounds.to_string()),
            ],
            rows: rows.collect(),
            machine: Some(c.machine),
            smallest: None,
            phases: None,
        })
    }

    /// `speedup.json`: a list of rows, without machine or settings.
    fn of_speedup(value: &serde_json::Value) -> Result<Results, String> {
        let mut rows = Vec::new();
        for (i, row) in value.as_array().into_iter().flatten().enumerate() {
            let name = row["optimization"]
                .as_str()
                .ok_or(format!("row {}: optimization: is missing or no text", i + 1))?;
            for (what, suffix) in
                [("alone", ""), ("removed", " (removed)"), ("cumulative", " (cumulative)")]
            {
                let number = |key: String| -> Result<Option<f64>, String> {
                    match &row[&key] {
                        serde_json::Value::Null => Ok(None),
                        serde_json::Value::String(text) if text == "inf" => Ok(Some(f64::INFINITY)),
                        v => v.as_f64().map(Some).ok_or_else(|| {
                            format!("row {}: {key}: {v} is no number", crate::units::shown(name))
                        }),
                    }
                };
                let found = (
                    number(what.into())?,
                    number(format!("{what}_low"))?,
                    number(format!("{what}_high"))?,
                );
                match found {
                    (Some(ratio), Some(low), Some(high)) => {
                        rows.push((format!("{name}{suffix}"), Interval { low, ratio, high }));
                    }
                    (_, None, None) => {}
                    _ => {
                        return Err(format!(
                            "row {}: {what} has only one end of its interval",
                            crate::units::shown(name)
                        ));
                    }
                }
            }
        }
        // The phases are those of which an audit's row was measured.
        let measured =
            |row: &serde_json::Value| row["alone"].is_number() && row["difficulty"].is_string();
        let mut phases: Vec<&str> = value
            .as_array()
            .into_iter()
            .flatten()
            .filter(|r| measured(r))
            .filter_map(|r| r["phase"].as_str())
            .collect();
        phases.dedup();
        let phases = (!phases.is_empty()).then(|| phases.join("+"));
        Ok(Results {
            path: String::new(),
            kind: "bench",
            machine: None,
            settings: Vec::new(),
            rows,
            smallest: None,
            phases,
        })
    }

    /// Another run of the same: one machine, one setting.
    fn again(&self, other: &Results) -> bool {
        let known = self.machine.is_some() && other.machine.is_some();
        known
            && self
                .differences(other)
                .iter()
                .all(|d| OF_RUNS.iter().any(|name| d.starts_with(&format!("{name}: "))))
    }

    /// The gain of a row.
    fn row(&self, name: &str) -> Option<Interval> {
        self.rows.iter().find(|r| r.0 == name).map(|r| r.1)
    }

    /// Whether a row means the same in both: a total is of the phases that were measured.
    fn same_row(&self, other: &Results, name: &str) -> bool {
        let total = name == "total" || name.starts_with("total ");
        !total || self.phases == other.phases
    }

    /// What differs, machine first.
    fn differences(&self, other: &Results) -> Vec<String> {
        let mut found = match (&self.machine, &other.machine) {
            (Some(a), Some(b)) => a.differences(b),
            (None, None) => vec!["machines: neither file says where it was measured".into()],
            _ => vec!["machines: one of the files does not say where it was measured".into()],
        };
        for (name, value) in &self.settings {
            if let Some((_, theirs)) = other.settings.iter().find(|(n, v)| n == name && v != value)
            {
                found.push(format!("{name}: {value} → {theirs}"));
            }
        }
        found
    }
}

fn version(version: &str, commit: Option<&str>) -> String {
    commit.map_or(version.to_string(), |c| format!("{version} ({c})"))
}

/// Lines everything up with the first file. Files of two kinds are an error.
pub fn difference(results: &[Results]) -> Result<ResultDiff, String> {
    let (first, others) = results.split_first().ok_or("no results files")?;
    if let Some(odd) = others.iter().find(|o| o.kind != first.kind) {
        return Err(format!(
            "{} is a result of {}, {} one of {}; results of one command would work",
            first.path, first.kind, odd.path, odd.kind
        ));
    }
    let spread = spread(results);
    let against = |other: &Results| {
        let rows = first.rows.iter().filter(|(name, _)| first.same_row(other, name));
        let rows = rows
            .filter_map(|(name, a)| {
                Some(diff(name, (a, first), (&other.row(name)?, other), &spread))
            })
            .collect();
        let missing = |from: &Results, of: &Results| -> Vec<String> {
            of.rows.iter().filter(|(n, _)| from.row(n).is_none()).map(|(n, _)| n.clone()).collect()
        };
        let mut differences = first.differences(other);
        if first.phases != other.phases {
            differences.push("total: is of other phases, and not compared".into());
        }
        let (only_first, only_other) = (missing(other, first), missing(first, other));
        Against { path: other.path.clone(), differences, rows, only_first, only_other }
    };
    let others = others.iter().map(against).collect();
    Ok(ResultDiff { reference: first.path.clone(), others, spread })
}

/// One row of two files.
fn diff(
    name: &str,
    (a, first): (&Interval, &Results),
    (b, other): (&Interval, &Results),
    spread: &[Spread],
) -> RowDiff {
    // Two independent logarithms: their variances add, and so do the squares of what each machine cannot see.
    let widen = |i: &Interval, smallest: Option<f64>| {
        i.widened(smallest.unwrap_or(0.0)).half_width().powi(2)
    };
    let rounds = (widen(a, first.smallest) + widen(b, other.smallest)).sqrt();
    // Each side is one more run of a setting whose runs deviate by `s.deviation`: the difference of two has √2 times that.
    let runs = spread
        .iter()
        .find(|s| s.row == name)
        .map_or(0.0, |s| t_975(s.runs - 1) * s.deviation * 2f64.sqrt());
    let half = rounds.max(runs);
    let log = (b.ratio / a.ratio).ln();
    let ratio = Interval { low: (log - half).exp(), ratio: log.exp(), high: (log + half).exp() };
    let change = match ratio {
        _ if log.abs() < LEAST.ln_1p() => Change::Same,
        Interval { low, .. } if low > 1.0 => Change::Better,
        Interval { high, .. } if high < 1.0 => Change::Worse,
        _ => Change::Same,
    };
    RowDiff { row: name.into(), first: *a, other: *b, ratio, change, between: runs > rounds }
}

/// How far the runs of the first file's machine and settings differ; three at least.
fn spread(results: &[Results]) -> Vec<Spread> {
    let Some(first) = results.first() else { return Vec::new() };
    let runs: Vec<&Results> =
        results.iter().filter(|r| first.again(r) && first.phases == r.phases).collect();
    let one = |(name, _): &(String, Interval)| {
        let all: Vec<Interval> = runs.iter().filter_map(|r| r.row(name)).collect();
        let logs: Vec<f64> = all.iter().map(|i| i.ratio.ln()).collect();
        let mean = mean(&logs).filter(|_| all.len() >= MIN_RUNS)?;
        let deviation =
            (logs.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / (logs.len() - 1) as f64).sqrt();
        Some(Spread {
            row: name.clone(),
            runs: all.len(),
            least: all.iter().map(|i| i.ratio).fold(f64::INFINITY, f64::min),
            greatest: all.iter().map(|i| i.ratio).fold(0.0, f64::max),
            deviation,
            within: all.iter().map(Interval::half_width).fold(0.0, f64::max),
        })
    };
    first.rows.iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::compare::recommendation::tests::{comparison, setting};

    fn speedup(rows: &str) -> Result<Results, String> {
        Results::parse(rows)
    }

    const OLD: &str = r#"[{"optimization":"precision","alone":2.0,"alone_low":1.9,"alone_high":2.1,"removed":null},
        {"optimization":"greedy","alone":1.2,"alone_low":1.1,"alone_high":1.3},
        {"optimization":"cache","alone":1.5,"alone_low":1.4,"alone_high":1.6},
        {"optimization":"gone","alone":1.0,"alone_low":0.9,"alone_high":1.1}]"#;
    const NEW: &str = r#"[{"optimization":"precision","alone":4.0,"alone_low":3.8,"alone_high":4.2},
        {"optimization":"greedy","alone":1.21,"alone_low":1.1,"alone_high":1.3},
        {"optimization":"cache","alone":0.75,"alone_low":0.7,"alone_high":0.8},
        {"optimization":"new","alone":1.0,"alone_low":0.9,"alone_high":1.1}]"#;

    #[test]
    fn rows_line_up_by_name_with_known_ratios() {
        let found = difference(&[speedup(OLD).unwrap(), speedup(NEW).unwrap()]).unwrap();
        let rows = &found.others[0].rows;
        assert_eq!(
            rows.iter().map(|r| r.row.as_str()).collect::<Vec<_>>(),
            ["precision", "greedy", "cache"]
        );
        assert!((rows[0].ratio.ratio - 2.0).abs() < 1e-12 && rows[0].change == Change::Better);
        // Both half-widths are ln(2.1/1.9)/2: together √2 times that.
        let half = (2.1f64 / 1.9).ln() / 2.0 * 2f64.sqrt();
        assert!((rows[0].ratio.high - 2.0 * half.exp()).abs() < 1e-9, "{:?}", rows[0]);
        assert_eq!((rows[1].change, rows[2].change), (Change::Same, Change::Worse));
        assert_eq!(
            (found.others[0].only_first.as_slice(), found.others[0].only_other.as_slice()),
            (&["gone".to_string()][..], &["new".to_string()][..])
        );
    }

    #[test]
    fn a_tenth_of_a_percent_is_no_change_however_sure_it_is() {
        let table = |ratio: f64| {
            let (low, high) = (ratio * 0.9999, ratio * 1.0001);
            let text = format!(
                "\u{feff}[{{\"optimization\":\"x\",\"alone\":{ratio},\"alone_low\":{low},\"alone_high\":{high}}}]"
            );
            speedup(&text).unwrap()
        };
        let change =
            |ratio: f64| difference(&[table(1.0), table(ratio)]).unwrap().others[0].rows[0].change;
        assert_eq!([0.999, 1.001, 1.009].map(change), [Change::Same; 3]);
        assert_eq!([0.98, 1.02].map(change), [Change::Worse, Change::Better]);
    }

    #[test]
    fn what_cannot_be_compared_is_refused_in_one_line() {
        for (text, part) in [
            ("", "is not JSON"),
            ("{}", ""),
            ("[]", "no row with a ratio"),
            (r#"[{"alone":1}]"#, "optimization"),
            (
                r#"[{"optimization":"x","alone":"NaN","alone_low":1,"alone_high":2}]"#,
                "is no number",
            ),
            (r#"[{"optimization":"x","alone":-1,"alone_low":-2,"alone_high":2}]"#, "no ratio"),
            (r#"[{"optimization":"x","alone":3,"alone_low":1,"alone_high":2}]"#, "no ratio"),
            (r#"[{"optimization":"x","alone":3,"alone_low":1}]"#, "one end"),
            (
                r#"[{"optimization":"x","alone":"inf","alone_low":1,"alone_high":"inf"}]"#,
                "no ratio",
            ),
            (r#"[{"optimization":"x","alone":3,"alone_low":-1,"alone_high":"inf"}]"#, "no ratio"),
            (r#"{"kind":"compare","schema":99}"#, "schema 99"),
            (r#"{"kind":"compare"}"#, "schema"),
            (r#"{"kind":"compare","schema":1}"#, "missing field"),
        ] {
            let error = Results::parse(text).unwrap_err();
            assert!(error.contains(part) && error.lines().count() == 1, "{text}: {error}");
        }
        let twice = OLD.replace("greedy", "precision");
        assert!(Results::parse(&twice).unwrap_err().contains("twice"));
    }

    #[test]
    fn an_unbounded_interval_survives_its_file_and_is_no_clear_change() {
        let unbounded = Interval { low: 0.0, ratio: 1.9, high: f64::INFINITY };
        let steady = comparison(vec![
            setting("f32", "f32", 35.0, None, None),
            setting("bf16", "bf16", 65.0, Some(1.86), None),
        ]);
        let mut wild = steady.clone();
        wild.settings[1].figures[0].against_reference = Some(unbounded);
        let text = serde_json::to_string(&wild).unwrap();
        assert!(text.contains(r#""high":null"#), "JSON has no infinity");
        let read = Results::parse(&text).unwrap();
        assert_eq!(read.rows[0].1, unbounded);
        let found =
            difference(&[Results::parse(&serde_json::to_string(&steady).unwrap()).unwrap(), read])
                .unwrap();
        let row = &found.others[0].rows[0];
        assert_eq!((row.change, row.ratio.low, row.ratio.high), (Change::Same, 0.0, f64::INFINITY));
        // The same in `speedup.json`, which writes infinity as text.
        let table = Results::parse(
            r#"[{"optimization":"x","alone":1.9,"alone_low":0,"alone_high":"inf"}]"#,
        )
        .unwrap();
        assert_eq!(table.rows[0].1, unbounded);
    }

    #[test]
    fn three_runs_of_one_setting_say_how_far_runs_differ_and_verdicts_go_by_it() {
        let run = |ratio: f64| {
            let mut c = comparison(vec![
                setting("f32", "f32", 35.0, None, None),
                setting("bf16", "bf16", 65.0, Some(1.86), None),
            ]);
            let narrow = Interval { low: ratio * 0.99, ratio, high: ratio / 0.99 };
            c.settings[1].figures[0].against_reference = Some(narrow);
            Results::parse(&serde_json::to_string(&c).unwrap()).unwrap()
        };
        // Two runs apart look like a change of 20 %; three show that runs differ so far.
        let two = difference(&[run(1.5), run(1.8)]).unwrap();
        assert!(two.spread.is_empty() && two.others[0].rows[0].change == Change::Better);
        let three = difference(&[run(1.5), run(1.8), run(1.6)]).unwrap();
        let spread = &three.spread[0];
        assert_eq!((spread.runs, spread.row.as_str()), (3, "bf16 decode_1"));
        assert!(
            (spread.least - 1.5).abs() < 1e-9
                && (spread.greatest - 1.8).abs() < 1e-9
                && spread.deviation > 0.08
        );
        let row = &three.others[0].rows[0];
        assert!(row.change == Change::Same && row.between, "{row:?}");
        // Steady runs leave a change as clear as their rounds say.
        let steady = difference(&[run(1.5), run(1.501), run(1.499), run(1.8)]).unwrap();
        assert_eq!(steady.spread[0].runs, 4);
    }

    #[test]
    fn totals_of_other_phases_are_not_compared() {
        let table = |phase: &str, total: f64| {
            speedup(&format!(
                r#"[{{"optimization":"greedy","phase":"1","difficulty":"Easy","alone":1.4,"alone_low":1.3,"alone_high":1.5}},
                {{"optimization":"mask","phase":"2","difficulty":"Medium","alone":{phase}}},
                {{"optimization":"total","phase":null,"difficulty":null,"alone":{total},"alone_low":1.0,"alone_high":9.0}}]"#
            ))
            .unwrap()
        };
        let (one, both) =
            (table("null", 2.0), table(r#"1.1,"alone_low":1.0,"alone_high":1.2"#, 3.0));
        let rows = |a: &Results, b: &Results| {
            let found = difference(&[a.clone(), b.clone()]).unwrap();
            let names: Vec<String> = found.others[0].rows.iter().map(|r| r.row.clone()).collect();
            (names.join(" "), found.others[0].differences.iter().any(|d| d.starts_with("total: ")))
        };
        assert_eq!(rows(&one, &one), ("greedy total".into(), false));
        assert_eq!(rows(&one, &both), ("greedy".into(), true));
    }

    #[test]
    fn comparisons_line_up_too_and_say_what_differs() {
        let old = comparison(vec![
            setting("f32", "f32", 35.0, None, None),
            setting("bf16", "bf16", 65.0, Some(1.86), None),
        ]);
        let mut new = old.clone();
        new.machine.cpu = "Other CPU".into();
        new.settings[0].threads = 4;
        if let Some(i) = &mut new.settings[1].figures[0].against_reference {
            *i = Interval { low: 0.92, ratio: 0.93, high: 0.94 };
        }
        let parse = |c: &Comparison| Results::parse(&serde_json::to_string(c).unwrap()).unwrap();
        let found = difference(&[parse(&old), parse(&new)]).unwrap();
        let against = &found.others[0];
        assert!(
            against.differences.contains(&"CPU: AMD EPYC → Other CPU".to_string()),
            "{:?}",
            against.differences
        );
        assert!(against.differences.contains(&"threads: 2 → 4".to_string()));
        assert!(
            (against.rows[0].ratio.ratio - 0.5).abs() < 1e-9
                && against.rows[0].change == Change::Worse
        );
        assert!(
            difference(&[parse(&old), speedup(OLD).unwrap()]).unwrap_err().contains("one command")
        );
    }
}

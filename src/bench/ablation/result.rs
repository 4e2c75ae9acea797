//! A bench's result as plain data: what ran on what, every sample, written whole after every round and read back by the gate and by
//! `compare`. In: measurements. Out: `result.json`. It judges nothing (see `analysis`, `gate`).

use super::answers::Tally;
use super::plan::{Pair, Phases, Plan, PlanRow};
use crate::bench::workload::WorkloadFacts;
use crate::machine::Machine;
use crate::model::Parameters;
use crate::pipeline::StageTimes;
use crate::roofline::{Limits, ReferenceRates};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Version of the fields below; a file of another version is refused.
pub const SCHEMA: u32 = 1;

/// What `schema_name` says, so that other JSON files are recognised as such.
pub const SCHEMA_NAME: &str = "llmopt-bench";

/// A larger file is not read: the largest plan with 100 rounds stays below a tenth of this.
const MAX_BYTES: u64 = 256 << 20;

/// Everything a bench measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchResult {
    /// [`SCHEMA_NAME`].
    pub schema_name: String,
    /// [`SCHEMA`]; another one is refused.
    pub schema: u32,
    /// False in a file written while the bench still ran, or was interrupted.
    pub complete: bool,
    /// Made with `--quick`: small slices, few rounds; compared with its like only.
    pub quick: bool,
    /// UTC, `2026-11-23T12:00:00Z`.
    pub started: String,
    /// As typed.
    pub command: Vec<String>,
    /// Version of this program.
    pub version: String,
    /// Commit of the source tree that the program lies in, `+` if changed, where known.
    pub commit: Option<String>,
    /// Where it ran.
    pub machine: Machine,
    /// Its measured limits; files of earlier versions have none.
    #[serde(default)]
    pub limits: Option<Limits>,
    /// Of all configurations.
    pub model: ModelFacts,
    /// The prompts.
    pub workload: WorkloadFacts,
    /// Which of the audit's phases were measured.
    pub phases: Phases,
    /// Of every configuration.
    pub threads: usize,
    /// Most sequences together, of every configuration.
    pub batch: usize,
    /// Seed of the orders.
    pub seed: u64,
    /// What was measured; rows and rounds name them by index.
    pub configs: Vec<ConfigFacts>,
    /// What is compared with what.
    pub rows: Vec<PlanRow>,
    /// Index of the configuration where it starts.
    pub start: usize,
    /// Index of everything on.
    pub everything: usize,
    /// The same once more: what it differs by is noise.
    pub again: usize,
    /// The trials.
    pub rounds: Vec<Round>,
    /// Fresh processes.
    pub starts: Vec<Start>,
    /// Answers from memory, if there was time.
    pub hit: Option<Hit>,
    /// What became of the answers, for each row and pair.
    pub answers: Vec<RowAnswers>,
    /// Stock candle and our own storages on the same slices.
    #[serde(rename = "yardstick")]
    pub candle_baseline: Option<CandleBaseline>,
    /// Closed-loop clients, if there was time.
    pub clients: Vec<Clients>,
    /// What was left out and why, one line each.
    pub notes: Vec<String>,
}

/// Which model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// As it was asked for.
    pub name: String,
    /// SHA-256.
    pub digest: String,
    /// Its weights; files of earlier versions do not say.
    #[serde(default)]
    pub parameters: Option<Parameters>,
}

impl ModelFacts {
    /// The name with the number of weights, where it is known.
    pub fn shown(&self) -> String {
        self.parameters
            .map_or_else(|| self.name.clone(), |parameters| format!("{} ({parameters})", self.name))
    }
}

/// One configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConfigFacts {
    /// For people: `start + greedy`.
    pub label: String,
    /// Optimizations that are on.
    pub on: Vec<String>,
    /// Storage in use.
    pub dtype: String,
    /// Why that storage.
    pub reason: String,
    /// Names of the kernels in use, such as `x86-avx2-f32-6x16`.
    pub kernels: Vec<String>,
}

/// Every configuration once, on one slice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Which of the repeated runs (`--repeat`) it belongs to, from 0.
    #[serde(default)]
    pub run: usize,
    /// Index of the slice.
    pub slice: usize,
    /// Medians of the fixed reference around the trials of everything-on.
    pub reference: ReferenceRates,
    /// In the order in which they ran.
    pub samples: Vec<Sample>,
}

/// One trial.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Index of the configuration.
    pub config: usize,
    /// Wall time from the first prompt's acceptance to the last answer.
    pub seconds: f64,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Tokens of all answers.
    pub completion_tokens: u64,
    /// Of these, generated (not repeated from memory).
    pub generated_tokens: u64,
    /// Answers that were not generated for their record.
    pub cached: u64,
    /// Forward-pass rows of those answers: 0, or the cache does not do what it says.
    pub cached_rows: u64,
    /// Answers that ended before their limit.
    pub early: u64,
    /// How many there were.
    pub answers: u64,
    /// Where the seconds went.
    pub stages: StageTimes,
    /// Share of the machine's time stolen by the hypervisor, where known.
    pub stolen: Option<f64>,
    /// Share taken by other processes, where known.
    pub others: Option<f64>,
}

/// A fresh process: load, first request, second request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// Which pair of processes, from 0.
    pub pair: usize,
    /// `start`, `start + warmup`, `everything`, `everything - warmup`.
    pub what: String,
    /// Process start to the first request's acceptance, warm-up included.
    pub ready_s: f64,
    /// Seconds of the first request.
    pub first_s: f64,
    /// Seconds of the second.
    pub second_s: f64,
    /// The kernel's high-water mark of resident memory.
    pub peak_rss: Option<u64>,
}

/// A prompt generated and then answered from memory.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Hit {
    /// How many.
    pub prompts: usize,
    /// Seconds to generate all of them, one after the other.
    pub generated_s: f64,
    /// Seconds to answer all of them again.
    pub repeated_s: f64,
    /// Forward passes while they were answered again.
    pub forward_passes: u64,
    /// Tokens that were generated for them; files of earlier versions do not say.
    #[serde(default)]
    pub tokens: Option<u64>,
    /// Seconds of `repeated_s` in which prompts were tokenized; files of earlier versions do not say.
    #[serde(default)]
    pub tokenize_s: Option<f64>,
}

/// What became of a row's answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RowAnswers {
    /// Name of the row.
    pub row: String,
    /// The two configurations.
    pub pair: Pair,
    /// How their answers compare.
    pub tally: Tally,
}

/// Stock candle-transformers and our own storages on the same slices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CandleBaseline {
    /// Seconds per slice, by name (`candle f32`, `f32`, `bf16`, …); all lists are equally long, paired by slice.
    pub seconds: Vec<(String, Vec<f64>)>,
    /// Tokens generated per slice by each.
    pub tokens: Vec<(String, Vec<u64>)>,
}

/// Closed-loop clients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Clients {
    /// How many at a time, each with one request in flight.
    pub clients: usize,
    /// `queue` on.
    pub queue: bool,
    /// Answered in all.
    pub requests: u64,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// Of all answers.
    pub generated_tokens: u64,
    /// Milliseconds, acceptance to the end, of every request.
    pub latency_ms: Vec<f64>,
    /// Milliseconds, acceptance to the first token, of every request.
    pub ttft_ms: Vec<f64>,
}

/// Text without the byte order mark that some editors put in front.
pub fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

impl Round {
    /// The trial of this configuration.
    pub fn of(&self, config: usize) -> Option<&Sample> {
        self.samples.iter().find(|s| s.config == config)
    }
}

/// What is known of a bench before anything is measured.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Made with `--quick`.
    pub quick: bool,
    /// UTC, `2026-11-23T12:00:00Z`.
    pub started: String,
    /// Of the program's source tree, `+` if changed, where known.
    pub commit: Option<String>,
    /// Where it runs.
    pub machine: Machine,
    /// Its measured limits.
    pub limits: Option<Limits>,
    /// Which.
    pub model: ModelFacts,
    /// Which prompts.
    pub workload: WorkloadFacts,
    /// Of every configuration.
    pub threads: usize,
    /// Most sequences together.
    pub batch: usize,
    /// Seed of the orders.
    pub seed: u64,
}

impl BenchResult {
    /// One of this plan with no measurement in it yet.
    pub fn begin(facts: Facts, plan: &Plan) -> BenchResult {
        let Facts {
            quick,
            started,
            commit,
            machine,
            limits,
            model,
            workload,
            threads,
            batch,
            seed,
        } = facts;
        BenchResult {
            schema_name: SCHEMA_NAME.into(),
            schema: SCHEMA,
            complete: false,
            quick,
            started,
            command: std::env::args().collect(),
            version: env!("CARGO_PKG_VERSION").into(),
            commit,
            machine,
            limits,
            model,
            workload,
            phases: plan.phases,
            threads,
            batch,
            seed,
            configs: Vec::new(),
            rows: plan.rows.clone(),
            start: plan.start,
            everything: plan.everything,
            again: plan.again,
            rounds: Vec::new(),
            starts: Vec::new(),
            hit: None,
            answers: Vec::new(),
            candle_baseline: None,
            clients: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Repeated runs behind it; at least one.
    pub fn runs(&self) -> usize {
        self.rounds.iter().map(|r| r.run + 1).max().unwrap_or(1)
    }

    /// As JSON, one line per sample so that a diff can be read. Nine digits of each number: no clock has more.
    pub fn to_json(&self) -> String {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        shorten(&mut value);
        let rounds = value.get_mut("rounds").map(serde_json::Value::take).unwrap_or_default();
        let mut lines = Vec::new();
        for round in rounds.as_array().into_iter().flatten() {
            let samples: Vec<String> = round["samples"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|s| format!("      {s}"))
                .collect();
            lines.push(format!(
                "    {{ \"run\": {}, \"slice\": {}, \"reference\": {}, \"samples\": [\n{}\n    ] }}",
                round["run"],
                round["slice"],
                round["reference"],
                samples.join(",\n")
            ));
        }
        let rounds = if lines.is_empty() {
            "[]".to_string()
        } else {
            format!("[\n{}\n  ]", lines.join(",\n"))
        };
        value["rounds"] = serde_json::Value::Null;
        format!("{value:#}\n").replacen("\"rounds\": null", &format!("\"rounds\": {rounds}"), 1)
    }

    /// Reads and checks a file. The error is one line that names it.
    pub fn read(path: &Path) -> Result<BenchResult, String> {
        let shown = crate::units::shown_path(path);
        let (path, of) = if path.is_dir() {
            (path.join("result.json"), "result.json of this folder ")
        } else {
            (path.to_path_buf(), "")
        };
        let told = |e: std::io::Error| format!("{shown}: {of}cannot be read: {e}");
        let meta = std::fs::metadata(&path).map_err(told)?;
        if !meta.is_file() {
            return Err(format!(
                "{shown}: is not a file; a result.json of llmopt bench would work"
            ));
        }
        if meta.len() > MAX_BYTES {
            return Err(format!(
                "{shown}: has {} bytes; a result.json of llmopt bench has far fewer",
                meta.len()
            ));
        }
        let text = std::fs::read_to_string(path).map_err(told)?;
        BenchResult::parse(&text).map_err(|e| format!("{shown}: {e}"))
    }

    /// Reads and checks text.
    pub fn parse(text: &str) -> Result<BenchResult, String> {
        let text = without_mark(text);
        let value: serde_json::Value = serde_json::from_str(text).map_err(|e| {
            format!(
                "line {}: is not JSON ({e}); a result.json of llmopt bench would work",
                e.line()
            )
        })?;
        match (value["schema_name"].as_str(), value["schema"].as_u64()) {
            (Some(SCHEMA_NAME), Some(v)) if v == u64::from(SCHEMA) => {}
            (Some(SCHEMA_NAME), Some(v)) => {
                return Err(format!(
                    "has schema {v}, this program writes and reads {SCHEMA}; make it anew with this version"
                ));
            }
            _ => return Err("is not a result.json of llmopt bench (no schema_name, schema)".into()),
        }
        let result: BenchResult = serde_json::from_str(text).map_err(|e| {
            let what = e.to_string();
            format!("line {}: {}", e.line(), crate::units::shown(&what))
        })?;
        result.check()?;
        Ok(result)
    }

    /// Numbers that cannot be, and indices that lead nowhere.
    fn check(&self) -> Result<(), String> {
        let configs = self.configs.len();
        let indices = [self.start, self.everything, self.again];
        let pairs = self.rows.iter().flat_map(|r| [r.alone, r.removed, r.cumulative]).flatten();
        let mut of_rows = pairs.flat_map(|p| [p.without, p.with]);
        if indices.iter().any(|i| *i >= configs) || of_rows.any(|i| i >= configs) {
            return Err(format!("a row names a configuration that is not there ({configs} are)"));
        }
        for (i, round) in self.rounds.iter().enumerate() {
            if round.run > i {
                return Err(format!("round {}: run {} of at most {}", i + 1, round.run, i + 1));
            }
            let rates = [round.reference.read, round.reference.fma];
            if !rates.iter().all(|r| r.is_finite() && *r > 0.0) {
                return Err(format!("round {}: reference: rates must be numbers above 0", i + 1));
            }
            for config in 0..configs {
                let times = round.samples.iter().filter(|s| s.config == config).count();
                if times != 1 {
                    return Err(format!(
                        "round {}: has {times} samples of configuration {config}, must have 1",
                        i + 1
                    ));
                }
            }
            if let Some(s) = round.samples.iter().find(|s| s.config >= configs) {
                return Err(format!(
                    "round {}: config: {} of {configs} configurations",
                    i + 1,
                    s.config
                ));
            }
            if let Some(s) =
                round.samples.iter().find(|s| !(s.seconds.is_finite() && s.seconds > 0.0))
            {
                return Err(format!(
                    "round {}: seconds: {} must be a number above 0",
                    i + 1,
                    s.seconds
                ));
            }
        }
        Ok(())
    }
}

/// Rounds every fraction to nine significant digits.
fn shorten(value: &mut serde_json::Value) {
    use serde_json::Value;
    match value {
        Value::Number(n) if n.is_f64() => {
            let short = n
                .as_f64()
                .and_then(|f| format!("{f:.8e}").parse().ok())
                .and_then(serde_json::Number::from_f64);
            *value = short.map_or(Value::Null, Value::Number);
        }
        Value::Array(items) => items.iter_mut().for_each(shorten),
        Value::Object(fields) => fields.values_mut().for_each(shorten),
        _ => {}
    }
}

/// Writes a file whole or not at all: beside it, flushed to the disk, then renamed.
pub fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".writing-").tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    // Temporary files are private; results are for everybody, as the umask of other files has it.
    crate::system::readable_by_all(file.as_file())?;
    crate::system::persist(file, path, false, None).map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::test_data::{as_expected, result};
    use super::*;

    #[test]
    fn a_result_survives_writing_and_reading() {
        // Without noise: serde_json may read the last bit of a long fraction otherwise.
        let before = result(3, 0.0, 1, |label| if label == "baseline" { 4.5 } else { 1.5 });
        let text = before.to_json();
        assert!(BenchResult::parse(&text).unwrap() == before);
        assert!(
            BenchResult::parse(&format!("\u{feff}{text}")).unwrap() == before,
            "a byte order mark does not count"
        );
        assert_eq!(
            text.lines().filter(|l| l.contains("\"generated_tokens\"")).count(),
            27,
            "a line per sample"
        );
    }

    #[test]
    fn a_result_of_all_phases_with_many_rounds_stays_small() {
        // 27 configurations, 40 rounds, every number with all its digits: below 2 MB, and no number longer than it needs to be.
        let mut large = result(40, 0.1, 1, as_expected);
        for round in &mut large.rounds {
            let sample = Sample { seconds: 1.234_567_890_123_45, ..round.samples[0].clone() };
            round.samples.extend((0..18).map(|_| sample.clone()));
        }
        let text = large.to_json();
        assert!(text.len() < 1 << 20, "{}", text.len());
        assert!(text.contains("1.23456789,") && !text.contains("1.234567890"));
    }

    #[test]
    fn files_that_cannot_be_trusted_are_refused_with_a_line() {
        let good = result(2, 0.02, 1, as_expected).to_json();
        let edited = |edit: fn(&mut serde_json::Value)| {
            let mut value: serde_json::Value = serde_json::from_str(&good).unwrap();
            edit(&mut value);
            value.to_string()
        };
        let cases = [
            (String::new(), "line 1: is not JSON"),
            ("{}".into(), "no schema_name"),
            ("[1, 2]".into(), "no schema_name"),
            ("optimization,phase\nprecision,1\n".into(), "is not JSON"),
            (good[..good.len() / 2].to_string(), "is not JSON"),
            (good.replacen("\"seconds\":", "\"seconds\":NaN,\"x\":", 1), "is not JSON"),
            (edited(|v| v["schema"] = 99.into()), "schema 99"),
            (edited(|v| v["rounds"][0]["samples"][0]["seconds"] = (-1.0).into()), "seconds"),
            (
                edited(|v| v["rounds"][0]["samples"][0]["seconds"] = serde_json::Value::Null),
                "invalid type: null",
            ),
            (
                edited(|v| {
                    drop(v["rounds"][0]["samples"][0].as_object_mut().unwrap().remove("seconds"))
                }),
                "missing field `seconds`",
            ),
            (
                edited(|v| drop(v["rounds"][1]["samples"].as_array_mut().unwrap().pop())),
                "has 0 samples",
            ),
            (
                edited(|v| v["rounds"][1]["samples"][0]["config"] = 77.into()),
                "samples of configuration",
            ),
            (edited(|v| v["rounds"][1]["reference"]["read"] = 0.0.into()), "round 2: reference"),
            (edited(|v| v["everything"] = 1000.into()), "not there"),
            (
                edited(|v| drop(v.as_object_mut().unwrap().remove("machine"))),
                "missing field `machine`",
            ),
        ];
        for (text, word) in cases {
            let error = BenchResult::parse(&text).unwrap_err();
            assert!(error.contains(word) && !error.contains('\n'), "{word}: {error}");
        }
    }

    #[test]
    fn files_are_written_whole_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result.json");
        write_whole(&path, "one").unwrap();
        write_whole(&path, "two").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(write_whole(&folder.path().join("no/such/folder"), "x").is_err());
    }
}

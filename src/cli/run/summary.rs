//! What a run says at its end: a few lines on stderr, and `--stats FILE` with histograms beside it. In: a [`RunOutcome`]. Out: text.

use super::Run;
use super::look_ahead::LookAhead;
use super::output;
use crate::cli::Failure;
use crate::cli::console;
use crate::cli::failure::status;
use crate::cli::signals::Signals;
use crate::pipeline::{Ended, LoadedModel, Pipeline, PipelineConfig, ResolvedDtype, RunReport};
use crate::report::histograms;
use crate::units::{self, counted};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What a run came to.
pub struct RunOutcome {
    pub report: RunReport,
    pub failure: Option<Failure>,
    /// Nobody reads standard output any more.
    pub closed: bool,
    pub faults: Faults,
}

impl Run<'_> {
    /// Says the summary and writes `--stats`, whose failure is told last. `kept`: records that the output had before and still has.
    pub fn summarize(
        &mut self,
        RunOutcome { report, faults, .. }: &RunOutcome,
        loaded: &LoadedModel,
        pipeline: &Pipeline,
        ahead: &LookAhead,
        kept: u64,
    ) -> Result<(), Failure> {
        match loaded.prompt_encoder().doubled_bos() {
            0 => {}
            n => self.console.warn(format!(
                "{} with the model's BOS token and got another in front, as the model's file asks; leave it out of raw prompts",
                if n == 1 { "1 prompt begins".to_string() } else { format!("{n} prompts begin") }
            )),
        }
        let about = About {
            model: &loaded.model.name,
            dtype: pipeline.dtype(),
            kernels: pipeline.kernels(),
            config: &self.config,
            kept,
            faults,
        };
        // Of the input's own records: an output may have others besides.
        let had = ahead.all.zip(ahead.todo).map_or(kept, |(all, todo)| all - todo);
        let progress = self.args.resume.then_some(RunProgress { kept: had, all: ahead.all });
        for line in lines(report, faults, progress.as_ref()) {
            self.console.say(format!("llmopt: {line}"));
        }
        let fresh = !self.args.overwrite && !self.args.resume;
        let stats = self.args.stats.as_ref();
        stats.map_or(Ok(()), |path| write(path, fresh, report, &about))
    }

    /// Says what ended a run before its last prompt, and how much is done; the exit status that goes with it.
    pub fn say_cut_short(
        &self,
        report: &RunReport,
        ahead: &LookAhead,
        signals: &Signals,
        can_resume: bool,
    ) -> Option<u8> {
        let answered = match ahead.todo {
            Some(todo) => format!("{} of {todo} answered", report.answers),
            None => format!("{} answered", report.answers),
        };
        let go_on = if can_resume { "; --resume goes on" } else { "" };
        if let Some((signal, status)) = signals.got().filter(|_| report.ended == Ended::Stopped) {
            console::line(&format!("llmopt: interrupted by {signal}: {answered}{go_on}"));
            return Some(status);
        }
        if report.ended == Ended::Deadline {
            console::line(&format!("llmopt: --max-time is over: {answered}{go_on}"));
            return Some(status::LEFT);
        }
        None
    }
}

/// What the figures belong to.
pub struct About<'a> {
    pub model: &'a str,
    pub dtype: &'a ResolvedDtype,
    pub kernels: &'a [String],
    pub config: &'a PipelineConfig,
    /// Records that the output had before.
    pub kept: u64,
    /// What the error records say.
    pub faults: &'a Faults,
}

/// The error records of a run, counted by their code.
#[derive(Debug, Default)]
pub struct Faults(BTreeMap<String, Fault>);

#[derive(Debug)]
struct Fault {
    count: u64,
    /// Place of the first one among the records that were to be answered.
    first: u64,
    /// The same for people: `file:line`.
    place: String,
}

/// Codes that are told apart: they are words of ours.
const MAX_CODES: usize = 64;

impl Faults {
    /// Counts an error record: the `index`-th of the run, at `place` of the input.
    pub fn count(&mut self, code: &str, index: u64, place: &str) {
        if let Some(fault) = self.0.get_mut(code) {
            fault.count += 1;
            if index < fault.first {
                (fault.first, fault.place) = (index, place.to_string());
            }
        } else if self.0.len() < MAX_CODES {
            self.0.insert(
                code.to_string(),
                Fault { count: 1, first: index, place: place.to_string() },
            );
        }
    }

    /// The commonest code (of equals the one that came first), how often it came, and where first.
    fn commonest(&self) -> Option<(&str, u64, &str)> {
        let (code, fault) =
            self.0.iter().min_by_key(|(_, f)| (std::cmp::Reverse(f.count), f.first))?;
        Some((code, fault.count, &fault.place))
    }

    fn json(&self) -> Value {
        let one = |(code, f): (&String, &Fault)| {
            (code.clone(), json!({"count": f.count, "first": f.place}))
        };
        Value::Object(self.0.iter().map(one).collect())
    }
}

/// How far an output is after a resume.
pub struct RunProgress {
    /// Records that it had before.
    pub kept: u64,
    /// Records that the input has, if it could be counted.
    pub all: Option<u64>,
}

/// The summary's lines; `resumed` for a run that went on with an output.
pub fn lines(report: &RunReport, faults: &Faults, resumed: Option<&RunProgress>) -> Vec<String> {
    let r = report;
    let speed = if r.wall_s > 0.0 { r.generated_tokens as f64 / r.wall_s } else { 0.0 };
    let answered = match resumed {
        None => counted(r.answers, "prompt"),
        Some(RunProgress { kept, all: Some(all) }) => {
            format!(
                "{} / {} done ({kept} kept, {} now)",
                kept + r.answers,
                counted(*all, "prompt"),
                r.answers
            )
        }
        Some(RunProgress { kept, all: None }) => {
            format!("{}, {kept} kept", counted(r.answers, "prompt"))
        }
    };
    let latency = &r.latencies.end_to_end;
    let most = if latency.is_empty() {
        "–".to_string()
    } else {
        units::seconds(latency.max() as f64 / 1e6)
    };
    let mut lines = vec![
        format!(
            "{answered}, {} with {}, {} answered from the cache, in {}",
            r.errors,
            if r.errors == 1 { "an error" } else { "errors" },
            r.cached,
            units::seconds(r.wall_s)
        ),
        format!(
            "{}, {}, {} generated: {} tokens/s",
            counted(r.prompt_tokens, "prompt token"),
            counted(r.completion_tokens, "answer token"),
            r.generated_tokens,
            units::rate(speed)
        ),
        format!(
            "latency p50 {}, p90 {}, p99 {}, max {most} (n = {})",
            histograms::percentile(latency, 50.0),
            histograms::percentile(latency, 90.0),
            histograms::percentile(latency, 99.0),
            latency.len()
        ),
    ];
    if let Some((code, count, place)) = faults.commonest() {
        let most = if count == r.errors { "" } else { "the commonest " };
        let times = if count == 1 { "once".to_string() } else { counted(count, "time") };
        let first = if count == 1 { "at" } else { "first at" };
        lines.insert(1, format!("{most}error: {code}, {times}, {first} {place}"));
    }
    lines
}

fn figures(h: &Histogram<u64>) -> Value {
    let p = |percentile| histograms::percentile_ms(h, percentile);
    let most = (!h.is_empty()).then(|| h.max() as f64 / 1e3);
    json!({"n": h.len(), "p50": p(50.0), "p90": p(90.0), "p99": p(99.0), "max": most})
}

/// The summary as JSON.
pub fn json(report: &RunReport, about: &About) -> Value {
    let r = report;
    let stages: serde_json::Map<String, Value> = r
        .stages
        .seconds
        .iter()
        .map(|(stage, s)| {
            (
                serde_json::to_value(stage)
                    .ok()
                    .and_then(|v| v.as_str().map(String::from))
                    .unwrap_or_default(),
                json!(s),
            )
        })
        .collect();
    json!({
        "schema": 1,
        "model": about.model,
        "dtype": about.dtype.name,
        "dtype_reason": about.dtype.reason,
        "kernels": about.kernels,
        "config": about.config,
        "prompts": r.answers,
        "kept": about.kept,
        "errors": r.errors,
        "error_codes": about.faults.json(),
        "cached": r.cached,
        "prompt_tokens": r.prompt_tokens,
        "completion_tokens": r.completion_tokens,
        "generated_tokens": r.generated_tokens,
        "wall_s": r.wall_s,
        "tokens_per_s": if r.wall_s > 0.0 { r.generated_tokens as f64 / r.wall_s } else { 0.0 },
        "queue_ms": figures(&r.latencies.queue),
        "ttft_ms": figures(&r.latencies.ttft),
        "per_token_ms": figures(&r.latencies.per_token),
        "latency_ms": figures(&r.latencies.end_to_end),
        "stage_seconds": stages,
        "prefill_rows": r.stages.prefill_rows,
        "decode_rows": r.stages.decode_rows,
        "forward_passes": r.stages.forward_passes,
        "peak_rss_bytes": crate::machine::peak_rss(),
    })
}

/// `stats.json` → `stats.latency.hgrm`.
fn beside(path: &Path, what: &str, extension: &str) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}.{what}.{extension}"))
}

/// The histograms beside the stats. There are none beside a device or pipe.
fn histogram_files(path: &Path) -> Vec<(&'static str, &'static str, PathBuf)> {
    if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
        return Vec::new();
    }
    let names = ["latency", "ttft", "per-token", "queue"].into_iter();
    names
        .flat_map(|what| {
            ["hgrm", "csv"].map(|extension| (what, extension, beside(path, what, extension)))
        })
        .collect()
}

/// All files that the stats are written to.
pub fn files(path: &Path) -> Vec<PathBuf> {
    std::iter::once(path.to_path_buf())
        .chain(histogram_files(path).into_iter().map(|(_, _, path)| path))
        .collect()
}

/// That the stats can be written, before any work; `replace`: over files that exist.
pub fn check(path: &Path, replace: bool) -> Result<(), Failure> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.is_dir() || path.file_name().is_none() {
        return Err(Failure::usage(format!(
            "--stats {}: is a folder; name a file in it",
            path.display()
        )));
    }
    if let Some(old) = files(path)
        .iter()
        .find(|f| !replace && std::fs::metadata(f).is_ok_and(|meta| meta.is_file()))
    {
        let old = units::shown_path(old);
        return Err(Failure::usage(format!(
            "--stats {old}: exists; name another file, or add --overwrite (--resume) to replace it"
        )));
    }
    if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
        return Ok(());
    }
    // A file that can be made in the folder and goes away again says more than permission bits.
    tempfile::tempfile_in(folder).map_err(|e| {
        Failure::usage(format!("--stats {}: cannot be written: {e}", path.display()))
    })?;
    Ok(())
}

/// Writes the stats and the histograms beside them; `fresh`: over no file that came to be since [`check`].
pub fn write(path: &Path, fresh: bool, report: &RunReport, about: &About) -> Result<(), Failure> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |e: std::io::Error| {
            Failure::failed(format!("--stats {}: {e}; the answers are written", path.display()))
        }
    };
    let text = format!("{:#}\n", json(report, about));
    put(path, fresh, &text).map_err(failed(path))?;
    let l = &report.latencies;
    for (what, extension, path) in histogram_files(path) {
        let histogram = match what {
            "latency" => &l.end_to_end,
            "ttft" => &l.ttft,
            "per-token" => &l.per_token,
            _ => &l.queue,
        };
        let text = if extension == "hgrm" {
            histograms::hgrm(histogram)
        } else {
            histograms::csv(histogram)
        };
        put(&path, fresh, &text).map_err(failed(&path))?;
    }
    Ok(())
}

/// Whole or not at all; where a link leads, and straight into what is no regular file.
fn put(path: &Path, fresh: bool, text: &str) -> std::io::Result<()> {
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() => {
            std::fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
        }
        _ => output::make(path, fresh, &mut |out| out.write_all(text.as_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commonest_error_is_told_with_its_first_place() {
        let mut faults = Faults::default();
        for (code, index, place) in [
            ("bad_json", 9, "a:10"),
            ("empty_prompt", 2, "a:3"),
            ("bad_json", 4, "a:5"),
            ("bad_json", 6, "a:7"),
        ] {
            faults.count(code, index, place);
        }
        let report = RunReport { answers: 12, errors: 4, ..RunReport::new() };
        let said = lines(&report, &faults, None);
        assert!(said[0].starts_with("12 prompts, 4 with errors, "), "{said:?}");
        assert_eq!(said[1], "the commonest error: bad_json, 3 times, first at a:5");
        let mut one = Faults::default();
        one.count("too_long", 0, "b:1");
        let report = RunReport { answers: 1, errors: 1, ..RunReport::new() };
        let said = lines(&report, &one, Some(&RunProgress { kept: 3, all: Some(4) }));
        assert!(
            said[0].starts_with("4 / 4 prompts done (3 kept, 1 now), 1 with an error, "),
            "{said:?}"
        );
        assert_eq!(said[1], "error: too_long, once, at b:1");
        assert_eq!(lines(&RunReport::new(), &Faults::default(), None).len(), 3);
    }

    #[test]
    fn nothing_is_written_beside_a_device() {
        assert_eq!(files(Path::new("/dev/null")), [PathBuf::from("/dev/null")]);
        assert_eq!(files(Path::new("no/s.json")).len(), 9);
        assert!(check(Path::new("/dev/null"), false).is_ok());
    }
}

//! What a run says at its end: a few lines on stderr, and `--stats FILE` with histograms beside it. In: a [`RunReport`]. Out: text.

use crate::cli::Failure;
use crate::pipeline::{PipelineConfig, ResolvedDtype, RunReport};
use crate::report::histograms;
use crate::units;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What the figures belong to.
pub struct About<'a> {
    pub model: &'a str,
    pub dtype: &'a ResolvedDtype,
    pub kernels: &'a [String],
    pub config: &'a PipelineConfig,
    /// Records that the output had before.
    pub kept: u64,
}

/// The summary's lines.
pub fn lines(report: &RunReport, kept: u64) -> Vec<String> {
    let r = report;
    let speed = if r.wall_s > 0.0 { r.generated_tokens as f64 / r.wall_s } else { 0.0 };
    let kept = if kept > 0 { format!(", {kept} kept") } else { String::new() };
    let latency = &r.latencies.end_to_end;
    let most = if latency.is_empty() { "–".to_string() } else { units::seconds(latency.max() as f64 / 1e6) };
    vec![
        format!(
            "{} prompts{kept}, {} with errors, {} answered from the cache, in {}",
            r.answers,
            r.errors,
            r.cached,
            units::seconds(r.wall_s)
        ),
        format!(
            "{} prompt tokens, {} answer tokens, {} generated: {} tokens/s",
            r.prompt_tokens,
            r.completion_tokens,
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
    ]
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
            (serde_json::to_value(stage).ok().and_then(|v| v.as_str().map(String::from)).unwrap_or_default(), json!(s))
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

/// That the stats can be written, before any work.
pub fn check(path: &Path) -> Result<(), Failure> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.is_dir() || path.file_name().is_none() {
        return Err(Failure::usage(format!("--stats {}: is a folder; name a file in it", path.display())));
    }
    // A file that can be made in the folder and goes away again says more than permission bits.
    tempfile::tempfile_in(folder).map_err(|e| Failure::usage(format!("--stats {}: cannot be written: {e}", path.display())))?;
    Ok(())
}

/// Writes the stats and the histograms beside them.
pub fn write(path: &Path, report: &RunReport, about: &About) -> Result<(), Failure> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |e: std::io::Error| Failure::failed(format!("--stats {}: {e}; the answers are written", path.display()))
    };
    let text = format!("{:#}\n", json(report, about));
    std::fs::write(path, text).map_err(failed(path))?;
    let l = &report.latencies;
    for (what, histogram) in [("latency", &l.end_to_end), ("ttft", &l.ttft), ("per-token", &l.per_token), ("queue", &l.queue)] {
        for (extension, text) in [("hgrm", histograms::hgrm(histogram)), ("csv", histograms::csv(histogram))] {
            let path = beside(path, what, extension);
            std::fs::write(&path, text).map_err(failed(&path))?;
        }
    }
    Ok(())
}

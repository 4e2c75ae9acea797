//! Figures of a setting that no bare forward pass tells: load, latency, throughput and memory from fresh processes, and quality. In: their
//! reports, agreements, divergences. Out: [`Figure`]s.

use super::comparison::{Figure, Measure};
use super::quality::{Agreement, Quality};
use crate::units::TokenId;
use serde::{Deserialize, Serialize};

/// What a fresh child process reports of one pass over the workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChildReport {
    /// From opening the model's file to being ready to answer, seconds.
    pub load_s: f64,
    /// Most resident memory until its end.
    pub peak_rss_bytes: Option<u64>,
    /// Wall time of the workload, seconds.
    pub wall_s: f64,
    /// Tokens of all answers.
    pub tokens: u64,
    /// From acceptance to the end, one value an answer, ms.
    pub latencies_ms: Vec<f64>,
    /// Ids of the answers, in the order of the prompts.
    pub answers: Vec<Vec<TokenId>>,
}

/// Figures of a setting from its child processes, one report a round; `reference` are the reference's of the same rounds.
pub fn child_figures(
    reports: &[ChildReport],
    reference: &[ChildReport],
    is_reference: bool,
) -> Vec<Figure> {
    let column = |reports: &[ChildReport], f: &dyn Fn(&ChildReport) -> Option<f64>| {
        reports.iter().filter_map(f).collect::<Vec<_>>()
    };
    let processes = match reports.len() {
        1 => "1 fresh process".to_string(),
        n => format!("{n} fresh processes"),
    };
    let answers = reports.first().map_or(0, |r| r.answers.len());
    let figure = |measure, note: String, f: &dyn Fn(&ChildReport) -> Option<f64>| {
        let values = column(reports, f);
        if values.is_empty() {
            return Figure::missing(measure, "not told by this system");
        }
        let mut figure = Figure::of_rounds(measure, &values, &column(reference, f), note);
        if is_reference {
            figure.against_reference = None;
        }
        figure
    };
    let percentile = |r: &ChildReport, p: f64| {
        let mut sorted = r.latencies_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (p * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().filter(|v| *v > 0.0)
    };
    let latency = |measure, p: f64| {
        // At least ten answers must lie beyond it.
        let needed = (10.0 / (1.0 - p)).round() as usize;
        if answers < needed {
            return Figure::missing(
                measure,
                format!("{answers} answers; this percentile needs {needed}"),
            );
        }
        figure(measure, format!("{answers} answers, {processes}"), &|r| percentile(r, p))
    };
    vec![
        figure(Measure::LoadS, format!("{processes}, the file in the page cache"), &|r| {
            Some(r.load_s)
        }),
        latency(Measure::LatencyP50Ms, 0.5),
        latency(Measure::LatencyP99Ms, 0.99),
        figure(Measure::WorkloadTokS, format!("{answers} prompts, {processes}"), &|r| {
            Some(r.tokens as f64 / r.wall_s.max(1e-9)).filter(|v| *v > 0.0)
        }),
        figure(Measure::PeakRssBytes, processes.clone(), &|r| r.peak_rss_bytes.map(|b| b as f64)),
    ]
}

/// Figures of quality.
pub fn quality_figures(agreement: Option<&Agreement>, quality: Option<&Quality>) -> Vec<Figure> {
    let mut figures = Vec::new();
    if let Some(a) = agreement {
        let first = a
            .first_difference
            .map_or(String::new(), |p| format!(", first difference at token {p} (median)"));
        figures.push(Figure::of(
            Measure::AnswersIdentical,
            a.identical,
            format!("{} answers, {} tokens{first}", a.answers, a.tokens),
        ));
    }
    if let Some(q) = quality {
        let tokens = format!("{} tokens", q.tokens);
        let with = |measure, value: f64, se: f64, note: String| Figure {
            low: Some((value - 1.96 * se).max(0.0)),
            high: Some(value + 1.96 * se),
            ..Figure::of(measure, value, note)
        };
        let p = q.top1_agreement;
        let p_se = (p * (1.0 - p) / q.tokens.max(1) as f64).sqrt();
        let top = with(Measure::Top1Agreement, p, p_se, tokens.clone());
        figures.push(Figure { high: top.high.map(|h| h.min(1.0)), ..top });
        figures.push(with(Measure::KlMean, q.kl_mean, q.kl_mean_se, tokens.clone()));
        figures.push(Figure::of(Measure::KlP99, q.kl_p99, tokens.clone()));
        figures.push(with(
            Measure::Perplexity,
            q.perplexity,
            q.perplexity_se,
            format!(
                "{tokens}, ± {:.3} (s.e.); {:.4} ± {:.4} of the reference's, token by token",
                q.perplexity_se, q.perplexity_ratio, q.perplexity_ratio_se
            ),
        ));
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_tell_load_latency_throughput_and_memory() {
        let report = |load_s: f64, wall_s: f64| ChildReport {
            load_s,
            peak_rss_bytes: Some(1000),
            wall_s,
            tokens: 100,
            latencies_ms: (1..=20).map(f64::from).collect(),
            answers: vec![vec![1]; 20],
        };
        let reference = [report(2.0, 10.0), report(2.0, 10.0)];
        let figures = child_figures(&[report(1.0, 5.0), report(1.0, 5.0)], &reference, false);
        let of = |m: Measure| figures.iter().find(|f| f.measure == m).unwrap();
        assert!((of(Measure::LoadS).value.unwrap() - 1.0).abs() < 1e-9);
        assert!((of(Measure::WorkloadTokS).value.unwrap() - 20.0).abs() < 1e-9);
        assert!((of(Measure::WorkloadTokS).against_reference.unwrap().ratio - 2.0).abs() < 1e-9);
        assert!((of(Measure::LatencyP50Ms).value.unwrap() - 10.0).abs() < 1e-9);
        assert!(
            of(Measure::LatencyP99Ms).value.is_none()
                && of(Measure::LatencyP99Ms).note.contains("1000")
        );
        assert!((of(Measure::PeakRssBytes).value.unwrap() - 1000.0).abs() < 1e-6);
    }
}

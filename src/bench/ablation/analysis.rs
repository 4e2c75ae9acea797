//! From samples to the table's rows: ratios with intervals, verdicts, answers. In: a [`BenchResult`]. Out: [`Analysis`], plain data.

use super::answers::{AnswersSeen, Tally};
use super::plan::{self, Basis, Pair};
use super::result::{BenchResult, Round};
use crate::bench::statistics::{self, DetectableEffect, Interval, Verdict, judge};
use crate::optimizations::{self, Promise};
use serde::{Deserialize, Serialize};

/// A measured ratio.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// With the wider of the two intervals below: what verdicts and tables use.
    pub interval: Interval,
    /// From the rounds alone: what would hold if every run were like these.
    pub within: Interval,
    /// From the means of repeated runs (`--repeat`): what holds for the next run too.
    pub between: Option<Interval>,
    /// It divides seconds per generated token, because the sides generated different numbers of tokens.
    pub per_token: bool,
}

/// A line of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct RowResult {
    /// The optimization's name, or a total's.
    pub name: String,
    /// See [`plan::PlanRow`].
    pub alone: Option<Ratio>,
    /// See [`plan::PlanRow`].
    pub removed: Option<Ratio>,
    /// See [`plan::PlanRow`].
    pub cumulative: Option<Ratio>,
    /// What the audit expects, and whether it came true.
    pub expected: Option<(f64, f64)>,
    /// `None` where the audit gives no range or nothing was measured.
    pub verdict: Option<Verdict>,
    /// What became of the answers.
    pub answers: Option<AnswersSeen>,
    /// The promise and the first prompt that breaks it.
    pub broken: Option<(Promise, String)>,
}

/// All rows, and what they rest on.
#[derive(Debug, Clone, PartialEq)]
pub struct Analysis {
    /// In the table's order.
    pub rows: Vec<RowResult>,
    /// What the machine let us see.
    pub detectable: DetectableEffect,
    /// Medians over all trials: stolen by the hypervisor, taken by other processes.
    pub stolen: Option<f64>,
    /// See `stolen`.
    pub others: Option<f64>,
}

/// Logarithm of the pair's ratio in one round; `per_token` divides seconds per generated token.
fn log_ratio(round: &Round, pair: &Pair, per_token: bool) -> Option<f64> {
    let (a, b) = (round.of(pair.without)?, round.of(pair.with)?);
    let seconds = (a.seconds / b.seconds).ln();
    if !per_token {
        return Some(seconds);
    }
    let tokens = a.generated_tokens as f64 / b.generated_tokens as f64;
    Some(seconds - tokens.ln()).filter(|l| l.is_finite())
}

/// Whether a pair's ratio must be of seconds per generated token in these rounds.
pub fn is_per_token(rounds: &[Round], pair: &Pair) -> bool {
    let differ = |r: &Round| {
        r.of(pair.without).map(|s| s.generated_tokens)
            != r.of(pair.with).map(|s| s.generated_tokens)
    };
    pair.basis == Basis::SecondsOrPerToken && rounds.iter().any(differ)
}

/// Logarithms of a pair's ratios, one per round, and whether they are per token.
pub fn logs(rounds: &[Round], pair: &Pair) -> (Vec<f64>, bool) {
    let per_token = is_per_token(rounds, pair);
    (rounds.iter().filter_map(|r| log_ratio(r, pair, per_token)).collect(), per_token)
}

/// What was measured on a round's slice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OfSlice {
    /// Repeated run that the round belongs to.
    pub run: usize,
    /// Index of the slice.
    pub slice: usize,
    /// Logarithm; NaN where it cannot be worked out.
    pub log: f64,
}

impl OfSlice {
    fn new(round: &Round, log: Option<f64>) -> OfSlice {
        OfSlice { run: round.run, slice: round.slice, log: log.unwrap_or(f64::NAN) }
    }
}

/// The logarithms of a pair's ratios with the slice of each round.
pub fn logs_of_slices(rounds: &[Round], pair: &Pair, per_token: bool) -> Vec<OfSlice> {
    rounds.iter().map(|r| OfSlice::new(r, log_ratio(r, pair, per_token))).collect()
}

impl Ratio {
    /// From logarithms of each round, run by run.
    fn of_runs(runs: &[Vec<f64>], per_token: bool) -> Option<Ratio> {
        let within = Interval::of_logs(&runs.concat())?;
        let means: Vec<f64> = runs.iter().filter_map(|logs| statistics::mean(logs)).collect();
        let between = Interval::of_logs(&means);
        let interval = between.filter(|b| b.half_width() > within.half_width()).unwrap_or(within);
        Some(Ratio { interval, within, between, per_token })
    }
}

/// The rounds of each repeated run.
pub fn by_run(rounds: &[Round]) -> Vec<Vec<&Round>> {
    let mut runs: Vec<Vec<&Round>> = Vec::new();
    for round in rounds {
        if runs.len() <= round.run {
            runs.resize(round.run + 1, Vec::new());
        }
        runs[round.run].push(round);
    }
    runs
}

fn ratio(rounds: &[Round], pair: Option<Pair>) -> Option<Ratio> {
    let pair = pair?;
    let per_token = is_per_token(rounds, &pair);
    let logs =
        |run: Vec<&Round>| run.into_iter().filter_map(|r| log_ratio(r, &pair, per_token)).collect();
    Ratio::of_runs(&by_run(rounds).into_iter().map(logs).collect::<Vec<_>>(), per_token)
}

/// Ratio of first requests in fresh processes, paired.
fn first_request(result: &BenchResult, without: &str, with: &str) -> Option<Ratio> {
    let first = |what: &str, pair: usize| {
        result.starts.iter().find(|s| s.pair == pair && s.what == what).map(|s| s.first_s)
    };
    let pairs = result.starts.iter().map(|s| s.pair + 1).max()?;
    let logs: Vec<f64> =
        (0..pairs).filter_map(|p| Some((first(without, p)? / first(with, p)?).ln())).collect();
    Ratio::of_runs(&[logs], false)
}

/// All pairs whose intervals the stopping rule of a run watches: `alone` of every row.
pub fn watched(result: &BenchResult, run: usize) -> Vec<Vec<f64>> {
    let first = result.rounds.iter().position(|r| r.run == run).unwrap_or(result.rounds.len());
    result
        .rows
        .iter()
        .filter_map(|r| r.alone)
        .map(|pair| logs(&result.rounds[first..], &pair).0)
        .collect()
}

/// The A/A pair.
pub fn a_a(result: &BenchResult) -> Pair {
    Pair { without: result.everything, with: result.again, basis: Basis::Seconds }
}

/// Works everything out.
pub fn analyse(result: &BenchResult) -> Analysis {
    let rounds = &result.rounds;
    let of_samples = |f: fn(&super::result::Sample) -> Option<f64>| {
        statistics::median(
            &rounds.iter().flat_map(|r| &r.samples).filter_map(f).collect::<Vec<_>>(),
        )
    };
    let (stolen, others) = (of_samples(|s| s.stolen), of_samples(|s| s.others));
    let busy = match (stolen, others) {
        (None, None) => None,
        (s, o) => Some(s.unwrap_or(0.0) + o.unwrap_or(0.0)),
    };
    let smallest = statistics::smallest_effect(&logs(rounds, &a_a(result)).0);
    let detectable = DetectableEffect { rounds: rounds.len(), smallest, busy };
    let rows = result.rows.iter().map(|row| {
        let mut tally = Tally::default();
        result.answers.iter().filter(|a| a.row == row.name).for_each(|a| tally.merge(&a.tally));
        let alone_seen = result
            .answers
            .iter()
            .find(|a| a.row == row.name && Some(a.pair) == row.alone)
            .and_then(|a| a.tally.seen());
        let promise = optimizations::find(&row.name).map(|o| o.answers);
        let broken = promise.and_then(|p| Some((p, tally.broken(p)?.to_string())));
        let (alone, removed) = match row.name.as_str() {
            "warmup" => (
                first_request(result, "start", "start + warmup"),
                first_request(result, "everything - warmup", "everything"),
            ),
            _ => (ratio(rounds, row.alone), ratio(rounds, row.removed)),
        };
        let expected = plan::expected(&row.name);
        let verdict = match (expected, alone) {
            (Some((low, _)), Some(_)) if low.is_infinite() => cache_verdict(result),
            (Some(range), Some(ratio)) => Some(judge(&ratio.interval, range, &detectable)),
            _ => None,
        };
        RowResult {
            name: row.name.clone(),
            alone,
            removed,
            cumulative: ratio(rounds, row.cumulative),
            expected,
            verdict,
            answers: alone_seen.or(tally.seen()),
            broken,
        }
    });
    Analysis { rows: rows.collect(), detectable, stolen, others }
}

/// `within` if there were hits and none of them ran a forward step; `below` if one did; `unclear` if there was no hit to look at.
fn cache_verdict(result: &BenchResult) -> Option<Verdict> {
    let samples = || result.rounds.iter().flat_map(|r| &r.samples);
    let hits: u64 = samples().map(|s| s.cached).sum();
    let rows: u64 = samples().map(|s| s.cached_rows).sum();
    let passes = result.hit.map_or(0, |h| h.forward_passes);
    Some(match (hits, rows + passes) {
        (0, 0) => Verdict::Unclear,
        (_, 0) => Verdict::Within,
        _ => Verdict::Below,
    })
}

impl Analysis {
    /// The row of this name.
    pub fn row(&self, name: &str) -> Option<&RowResult> {
        self.rows.iter().find(|r| r.name == name)
    }

    /// The first broken promise: row, promise, prompt.
    pub fn broken(&self) -> Option<(&str, Promise, &str)> {
        self.rows.iter().find_map(|r| {
            r.broken.as_ref().map(|(promise, prompt)| (r.name.as_str(), *promise, prompt.as_str()))
        })
    }
}

/// Logarithms of tokens a second of everything-on over the fixed reference, one per round (both trials of the A/A pair count).
pub fn normalised_speed(result: &BenchResult) -> Vec<OfSlice> {
    let speed = |round: &Round| {
        let (a, b) = (round.of(result.everything)?, round.of(result.again)?);
        let tokens = (a.completion_tokens + b.completion_tokens) as f64;
        Some((tokens / (a.seconds + b.seconds) / round.reference.score()).ln())
            .filter(|l| l.is_finite())
    };
    result.rounds.iter().map(|r| OfSlice::new(r, speed(r))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::test_data::{as_expected, result};
    use super::*;

    #[test]
    fn ratios_and_verdicts_come_out_as_they_were_put_in() {
        let analysis = analyse(&result(8, 0.01, 3, as_expected));
        let row = |name: &str| analysis.row(name).unwrap();
        for (name, ratio, verdict) in [
            ("precision", 1.4, "within"),
            ("greedy", 1.4, "within"),
            ("early-stop", 1.25, "within"),
        ] {
            let alone = row(name).alone.unwrap();
            assert!((alone.interval.ratio / ratio - 1.0).abs() < 0.02, "{name}: {alone:?}");
            assert_eq!(row(name).verdict.map(Verdict::name), Some(verdict), "{name}");
        }
        assert_eq!(row("cache").verdict, Some(Verdict::Within));
        // 4.0 is the upper edge of the total's range, and above phase 1's lower one.
        assert_eq!(row("total").verdict, Some(Verdict::Unclear));
        assert_eq!(row("phase-1").verdict, Some(Verdict::Within));
        assert!(row("mask").alone.is_none() && row("mask").verdict.is_none());
        assert!(analysis.broken().is_none());
    }

    #[test]
    fn repeated_runs_that_differ_widen_the_interval_and_the_verdict_follows() {
        // Three runs of eight quiet rounds whose baseline is 10 % slower from run to run.
        let runs = |drift: f64| {
            let mut all = result(8, 0.01, 3, as_expected);
            for run in 1..3 {
                let slower = |l: &str| {
                    as_expected(l) * if l == "baseline" { 1.0 + drift * run as f64 } else { 1.0 }
                };
                let next = result(8, 0.01, 3 + run as u64, slower).rounds;
                all.rounds.extend(next.into_iter().map(|r| Round { run, ..r }));
            }
            analyse(&all)
        };
        let steady = runs(0.0).row("precision").unwrap().alone.unwrap();
        assert!(steady.between.is_some() && steady.interval.half_width() < 0.03, "{steady:?}");
        let drifting = runs(0.1);
        let row = drifting.row("precision").unwrap();
        let ratio = row.alone.unwrap();
        // Means at 1.40, 1.54, 1.68: t with two degrees of freedom makes 4.3 standard errors of that.
        assert_eq!(Some(ratio.interval), ratio.between);
        assert!(
            ratio.interval.low < 1.3
                && ratio.interval.high > 1.8
                && ratio.within.half_width() < 0.15,
            "{ratio:?}"
        );
        assert_eq!(row.verdict, Some(Verdict::Unclear));
        assert_eq!(
            analyse(&result(8, 0.01, 3, as_expected))
                .row("precision")
                .unwrap()
                .alone
                .unwrap()
                .between,
            None
        );
    }

    #[test]
    fn a_hit_that_ran_a_forward_step_is_no_hit() {
        let mut with_rows = result(6, 0.01, 3, as_expected);
        with_rows.rounds[2]
            .samples
            .iter_mut()
            .for_each(|s| s.cached_rows = u64::from(s.cached > 0));
        assert_eq!(analyse(&with_rows).row("cache").unwrap().verdict, Some(Verdict::Below));
        let mut without_hits = result(6, 0.01, 3, as_expected);
        without_hits.rounds.iter_mut().flat_map(|r| &mut r.samples).for_each(|s| s.cached = 0);
        assert_eq!(analyse(&without_hits).row("cache").unwrap().verdict, Some(Verdict::Unclear));
    }

    #[test]
    fn other_numbers_of_tokens_turn_a_ratio_into_one_per_token_but_not_for_cache_and_early_stop() {
        let mut longer = result(6, 0.0, 3, as_expected);
        let greedy = longer.configs.iter().position(|c| c.label == "baseline + greedy").unwrap();
        let early = longer.configs.iter().position(|c| c.label == "baseline + early-stop").unwrap();
        for round in &mut longer.rounds {
            round.samples[greedy].generated_tokens *= 2;
            round.samples[early].generated_tokens /= 2;
        }
        let analysis = analyse(&longer);
        let greedy = analysis.row("greedy").unwrap().alone.unwrap();
        assert!(greedy.per_token && (greedy.interval.ratio - 2.8).abs() < 1e-9, "{greedy:?}");
        let early = analysis.row("early-stop").unwrap().alone.unwrap();
        assert!(!early.per_token && (early.interval.ratio - 1.25).abs() < 1e-9, "{early:?}");
        assert!(!analysis.row("cache").unwrap().alone.unwrap().per_token);
    }

    #[test]
    fn a_busy_machine_and_few_rounds_make_every_judged_row_unclear() {
        let mut busy = result(8, 0.01, 3, as_expected);
        busy.rounds.iter_mut().flat_map(|r| &mut r.samples).for_each(|s| s.others = Some(0.6));
        for result in [busy, result(5, 0.01, 3, as_expected)] {
            for row in analyse(&result).rows.iter().filter(|r| r.name != "cache") {
                assert!(row.verdict.is_none_or(|v| v == Verdict::Unclear), "{row:?}");
            }
        }
    }

    #[test]
    fn a_broken_promise_names_row_and_prompt() {
        let mut broken = result(6, 0.01, 3, as_expected);
        let cache = broken.answers.iter_mut().find(|a| a.row == "cache").unwrap();
        cache.tally.identical -= 1;
        cache.tally.first_not_identical = Some("07-again".into());
        let analysis = analyse(&broken);
        assert_eq!(analysis.broken(), Some(("cache", Promise::Identical, "07-again")));
        // Answers of a row that may differ break nothing.
        let mut differs = result(6, 0.01, 3, as_expected);
        let greedy = differs.answers.iter_mut().find(|a| a.row == "greedy").unwrap();
        greedy.tally.first_not_identical = Some("01".into());
        assert!(analyse(&differs).broken().is_none());
    }
}

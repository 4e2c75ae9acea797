//! The gate: has this program become slower than a recorded result says? In: two results and thresholds. Out: refusals (the two cannot
//! be compared) or one line per failed row. It fails only if a whole interval is past the threshold, and never passes for want of numbers.

use super::analysis::{Analysis, OfSlice, is_per_token, logs_of_slices, normalised_speed};
use super::result::BenchResult;
use crate::bench::statistics::{MIN_ROUNDS, difference_half_width, mean, mean_interval};

/// `--max-regression` unless it is given: finds a program that takes 10 % longer in 24 rounds on two shared cores (`scripts/gate-study.sh`).
pub const MAX_REGRESSION: f64 = 3.0;

/// The same with `--quick`, whose three short rounds have wide intervals.
pub const QUICK_MAX_REGRESSION: f64 = 20.0;

/// What the gate is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    /// Percent that a row may lose (`--max-regression`).
    pub max_regression: f64,
    /// Another machine is a refusal (`--same-machine`).
    pub same_machine: bool,
}

/// One comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// The row, or `speed` for tokens a second over the fixed reference.
    pub name: String,
    /// Geometric means: recorded, now.
    pub before: f64,
    /// See `before`.
    pub now: f64,
    /// Change in percent with its interval: (low, middle, high); negative is slower.
    pub change: (f64, f64, f64),
    /// The smallest loss in percent that this gate finds in half of all runs with such an interval: the threshold and the half-width.
    pub visible: f64,
    /// The interval is that of repeated runs, which differ by more than rounds do.
    pub between: bool,
    /// The whole interval is past the threshold.
    pub failed: bool,
}

/// What the gate says.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Differences between the machines, to be told first.
    pub machines: Vec<String>,
    /// All comparisons.
    pub checks: Vec<Check>,
}

impl Check {
    /// One line for people.
    pub fn line(&self) -> String {
        let (low, middle, high) = self.change;
        let what = if self.name == "speed" {
            "tokens/s of everything-on over the fixed reference"
        } else {
            "ratio"
        };
        format!(
            "{}: {what} {} → {}, {middle:+.1} % ({low:+.1} to {high:+.1}{})",
            self.name,
            crate::units::rate(self.before),
            crate::units::rate(self.now),
            if self.between { ", between runs" } else { "" }
        )
    }
}

impl Outcome {
    /// Those that failed.
    pub fn failed(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|c| c.failed)
    }

    /// The one that is nearest to failing, or furthest past it.
    pub fn nearest(&self) -> Option<&Check> {
        self.checks.iter().min_by(|a, b| a.change.2.total_cmp(&b.change.2))
    }
}

/// Something that is compared: its logarithms on either side, one per round.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// The row, or `speed`.
    pub name: String,
    /// Recorded.
    pub before: Vec<OfSlice>,
    /// Measured now.
    pub now: Vec<OfSlice>,
}

/// The mean of each slice's values, slices in the order of their first round.
fn by_slice(rounds: &[OfSlice]) -> Vec<(usize, f64)> {
    let mut found: Vec<(usize, f64, usize)> = Vec::new();
    for &OfSlice { slice, log, .. } in rounds.iter().filter(|r| r.log.is_finite()) {
        match found.iter_mut().find(|f| f.0 == slice) {
            Some((_, sum, n)) => (*sum, *n) = (*sum + log, *n + 1),
            None => found.push((slice, log, 1)),
        }
    }
    found.into_iter().map(|(slice, sum, n)| (slice, sum / n as f64)).collect()
}

/// The mean of each repeated run.
fn by_run(rounds: &[OfSlice]) -> Vec<f64> {
    let runs = rounds.iter().map(|r| r.run + 1).max().unwrap_or(0);
    let of = |run: usize| {
        rounds
            .iter()
            .filter(|r| r.run == run && r.log.is_finite())
            .map(|r| r.log)
            .collect::<Vec<_>>()
    };
    (0..runs).filter_map(|run| mean(&of(run))).collect()
}

/// A change between two sides, logarithms.
struct Change {
    before: f64,
    now: f64,
    half: f64,
    between: bool,
}

impl Series {
    /// Slices that both sides ran are compared slice by slice: how long their prompts and answers are moves a speed more than any noise does. With
    /// fewer than six of them (and other slices beside them) all rounds of each side are taken together.
    fn within(&self) -> Option<Change> {
        let (before, now) = (by_slice(&self.before), by_slice(&self.now));
        let theirs = |slice: usize| before.iter().find(|b| b.0 == slice).map(|b| b.1);
        let pairs: Vec<(f64, f64)> =
            now.iter().filter_map(|&(slice, log)| Some((theirs(slice)?, log))).collect();
        let all_common = pairs.len() == before.len() && pairs.len() == now.len();
        if pairs.len() >= MIN_ROUNDS || (all_common && pairs.len() >= 3) {
            let (difference, half) =
                mean_interval(&pairs.iter().map(|(a, b)| b - a).collect::<Vec<_>>())?;
            let before = pairs.iter().map(|p| p.0).sum::<f64>() / pairs.len() as f64;
            return Some(Change { before, now: before + difference, half, between: false });
        }
        let all = |rounds: &[OfSlice]| {
            mean_interval(
                &rounds.iter().map(|r| r.log).filter(|l| l.is_finite()).collect::<Vec<_>>(),
            )
        };
        let (before, now) = (all(&self.before)?, all(&self.now)?);
        Some(Change { before: before.0, now: now.0, half: before.1.hypot(now.1), between: false })
    }

    /// The same, for ratios not narrower than repeated runs of either side say. Tokens/s over the reference is judged by its rounds: the
    /// reference, timed in each, takes out what moves a whole run.
    fn change(&self) -> Option<Change> {
        let within = self.within()?;
        let between = difference_half_width(&by_run(&self.before), &by_run(&self.now))
            .filter(|_| self.name != "speed");
        Some(match between {
            Some(half) if half > within.half => Change { half, between: true, ..within },
            _ => within,
        })
    }

    /// Judged against a threshold in percent. The error says that there are no numbers to judge.
    pub fn check(&self, max_regression: f64) -> Result<Check, String> {
        let Change { before, now, half, between } =
            self.change().ok_or_else(|| match self.name.as_str() {
                "speed" => {
                    "tokens/s of everything-on cannot be worked out from the samples".to_string()
                }
                name => format!(
                    "row '{}' has too few rounds for an interval",
                    crate::units::shown(name)
                ),
            })?;
        let percent = |log: f64| (log.exp() - 1.0) * 100.0;
        let middle = now - before;
        Ok(Check {
            name: self.name.clone(),
            before: before.exp(),
            now: now.exp(),
            change: (percent(middle - half), percent(middle), percent(middle + half)),
            visible: -percent((1.0 - max_regression / 100.0).ln() - half),
            between,
            failed: percent(middle + half) < -max_regression,
        })
    }
}

/// Compares. The error (exit status 2) says why the two cannot be compared.
pub fn compare(
    before: &BenchResult,
    now: &BenchResult,
    thresholds: Thresholds,
) -> Result<Outcome, String> {
    let (machines, series) = series(before, now)?;
    if thresholds.same_machine && !machines.is_empty() {
        return Err(format!(
            "the baseline is of another machine (--same-machine): {}",
            machines.join("; ")
        ));
    }
    let checks =
        series.iter().map(|s| s.check(thresholds.max_regression)).collect::<Result<_, _>>()?;
    Ok(Outcome { machines, checks })
}

/// The differences between the machines, and what is compared; the error says why nothing can be.
pub fn series(
    before: &BenchResult,
    now: &BenchResult,
) -> Result<(Vec<String>, Vec<Series>), String> {
    for (what, result) in [("the baseline", before), ("this run", now)] {
        if result.rounds.len() < 2 {
            return Err(format!(
                "{what} has {} rounds, a gate needs at least 2",
                result.rounds.len()
            ));
        }
    }
    if before.quick != now.quick {
        let name = |quick: bool| if quick { "with --quick" } else { "without --quick" };
        return Err(format!(
            "the baseline was made {}, this run {}; both the same way would work",
            name(before.quick),
            name(now.quick)
        ));
    }
    let comparable = [
        ("model", &before.model.digest, &now.model.digest),
        ("workload", &before.workload.digest, &now.workload.digest),
    ];
    if let Some((what, a, b)) = comparable.iter().find(|(_, a, b)| a != b) {
        return Err(format!(
            "the baseline is of another {what} ({}, now {}); ratios cannot be compared",
            short(a),
            short(b)
        ));
    }
    if before.phases != now.phases {
        return Err(format!(
            "the baseline measured --phase {}, this run --phase {}; ratios cannot be compared",
            before.phases.name(),
            now.phases.name()
        ));
    }
    let mut machines = before.machine.differences(&now.machine);
    if before.threads != now.threads {
        machines.push(format!("threads: {} → {}", before.threads, now.threads));
    }
    if before.batch != now.batch {
        return Err(format!(
            "the baseline used batches of {}, this run of {}",
            before.batch, now.batch
        ));
    }
    let mut series = Vec::new();
    for row in &before.rows {
        let Some(old) = row.alone else { continue };
        let Some(new) = now.rows.iter().find(|r| r.name == row.name).and_then(|r| r.alone) else {
            return Err(format!(
                "the baseline has a row '{}' that this run does not measure",
                crate::units::shown(&row.name)
            ));
        };
        // Both sides divide by the same thing.
        let per_token = is_per_token(&before.rounds, &old) || is_per_token(&now.rounds, &new);
        series.push(Series {
            name: row.name.clone(),
            before: logs_of_slices(&before.rounds, &old, per_token),
            now: logs_of_slices(&now.rounds, &new, per_token),
        });
    }
    // Absolute speed over the reference says something about one kind of machine only.
    if machines.is_empty() {
        series.push(Series {
            name: "speed".into(),
            before: normalised_speed(before),
            now: normalised_speed(now),
        });
    }
    if series.is_empty() {
        return Err("the baseline has no row that could be compared".into());
    }
    Ok((machines, series))
}

/// `--min-speedup`: the line that says why it fails, if it does. The whole interval must lie below to fail.
pub fn min_speedup(analysis: &Analysis, least: f64) -> Result<Option<String>, String> {
    let total = analysis
        .row("total")
        .and_then(|r| r.alone)
        .ok_or("the total speedup was not measured: too few rounds")?;
    let i = total.interval;
    Ok((i.high < least).then(|| {
        format!(
            "total: speedup {} ({} to {}) is below --min-speedup {least}",
            f(i.ratio),
            f(i.low),
            f(i.high)
        )
    }))
}

fn f(value: f64) -> String {
    crate::units::rate(value)
}

fn short(digest: &str) -> String {
    crate::units::shown(&digest.chars().take(12).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::super::analysis::analyse;
    use super::super::test_data::{as_expected, result};
    use super::*;

    const TEN: Thresholds = Thresholds { max_regression: 10.0, same_machine: false };

    fn failed(outcome: &Outcome) -> Vec<&str> {
        outcome.failed().map(|c| c.name.as_str()).collect()
    }

    #[test]
    fn the_same_again_passes_and_every_row_and_the_speed_are_compared() {
        let outcome =
            compare(&result(6, 0.02, 1, as_expected), &result(6, 0.02, 2, as_expected), TEN)
                .unwrap();
        assert!(failed(&outcome).is_empty());
        let names: Vec<&str> = outcome.checks.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(
            names,
            ["precision", "greedy", "cache", "early-stop", "phase-1", "total", "speed"]
        );
    }

    #[test]
    fn a_row_that_lost_its_gain_fails_with_its_name() {
        let slower =
            |label: &str| if label == "baseline + greedy" { 4.0 } else { as_expected(label) };
        let outcome =
            compare(&result(6, 0.02, 1, as_expected), &result(6, 0.02, 2, slower), TEN).unwrap();
        assert_eq!(failed(&outcome), ["greedy"]);
        let line = outcome.failed().next().unwrap().line();
        assert!(
            line.starts_with("greedy: ratio 1.4") && line.contains("→ 1.0") && !line.contains('\n'),
            "{line}"
        );
    }

    #[test]
    fn everything_slower_alike_keeps_the_ratios_but_not_the_speed() {
        let slower = |label: &str| as_expected(label) * 1.3;
        let outcome =
            compare(&result(6, 0.02, 1, as_expected), &result(6, 0.02, 2, slower), TEN).unwrap();
        assert_eq!(failed(&outcome), ["speed"]);
    }

    #[test]
    fn an_interval_that_reaches_back_over_the_threshold_does_not_fail() {
        let slower = |label: &str| {
            if label == "baseline + greedy" { 4.0 / 1.4 * 1.2 } else { as_expected(label) }
        };
        let outcome =
            compare(&result(6, 0.4, 1, as_expected), &result(6, 0.4, 2, slower), TEN).unwrap();
        assert!(failed(&outcome).is_empty());
    }

    #[test]
    fn slices_of_different_length_do_not_hide_a_slower_program() {
        // Slices differ by up to a factor of three, the program by 8 %: seen only if each slice is compared with itself.
        let uneven = |mut r: BenchResult, first: usize, slower: f64| {
            for (i, round) in r.rounds.iter_mut().enumerate() {
                round.slice = first + i;
                let long = 1.0 + ((first + i) * 7 % 12) as f64 / 6.0;
                round.samples.iter_mut().for_each(|s| s.seconds *= long * slower);
            }
            r
        };
        let before = uneven(result(12, 0.02, 1, as_expected), 0, 1.0);
        let speed = |now: &BenchResult| {
            let outcome = compare(&before, now, Thresholds { max_regression: 3.0, ..TEN }).unwrap();
            outcome.checks.into_iter().find(|c| c.name == "speed").unwrap()
        };
        let found = speed(&uneven(result(8, 0.02, 2, as_expected), 2, 1.08));
        assert!(
            found.failed && (found.change.1 - (1.0 / 1.08 - 1.0) * 100.0).abs() < 1.5,
            "{found:?}"
        );
        assert!(!speed(&uneven(result(8, 0.02, 2, as_expected), 2, 1.0)).failed);
        // Five slices in common are too few: all rounds together, and their spread hides it.
        let apart = speed(&uneven(result(8, 0.02, 2, as_expected), 7, 1.08));
        assert!(!apart.failed && apart.change.2 - apart.change.0 > 20.0, "{apart:?}");
    }

    #[test]
    fn the_default_threshold_finds_a_tenth_more_time_and_ten_percent_cannot_by_construction() {
        // Exactly 10 % more time without any noise loses 9.1 % of the speed, which is not past 10 %.
        let before = result(8, 0.0, 1, as_expected);
        let now = result(8, 0.0, 1, |l| as_expected(l) * 1.1);
        let speed = |max_regression| {
            let outcome = compare(&before, &now, Thresholds { max_regression, ..TEN }).unwrap();
            outcome.checks.into_iter().find(|c| c.name == "speed").unwrap()
        };
        assert!(!speed(10.0).failed && (speed(10.0).change.1 + 9.09).abs() < 0.01);
        assert!(speed(9.0).failed && speed(MAX_REGRESSION).failed);
        // Without noise it sees just what is past its threshold.
        assert!((speed(MAX_REGRESSION).visible - MAX_REGRESSION).abs() < 1e-9);
    }

    /// `times` runs, each with its own program speed and its own baseline.
    fn repeated(times: &[(f64, f64)]) -> BenchResult {
        let mut all = result(8, 0.01, 1, as_expected);
        all.rounds.clear();
        for (run, &(speed, baseline)) in times.iter().enumerate() {
            let of =
                |l: &str| as_expected(l) * speed * if l == "baseline" { baseline } else { 1.0 };
            all.rounds.extend(
                result(8, 0.01, 7 + run as u64, of)
                    .rounds
                    .into_iter()
                    .map(|r| super::super::result::Round { run, ..r }),
            );
        }
        all
    }

    #[test]
    fn ratios_are_judged_by_how_repeated_runs_differ_and_the_speed_by_its_rounds() {
        // The baseline's speed moves by 15 % from run to run; now everything takes 10 % longer and the ratio to the baseline is lower.
        let before = repeated(&[(1.0, 0.95), (1.0, 1.0), (1.0, 1.15)]);
        let now = repeated(&[(1.1, 0.9)]);
        let outcome =
            compare(&before, &now, Thresholds { max_regression: MAX_REGRESSION, ..TEN }).unwrap();
        assert_eq!(failed(&outcome), ["speed"]);
        let precision = outcome.checks.iter().find(|c| c.name == "precision").unwrap();
        assert!(
            precision.between && precision.line().ends_with(", between runs)"),
            "{}",
            precision.line()
        );
        // One run alone does not show how far runs differ: the lower ratio counts as a loss.
        let single = compare(
            &repeated(&[(1.0, 1.0)]),
            &now,
            Thresholds { max_regression: MAX_REGRESSION, ..TEN },
        )
        .unwrap();
        assert!(failed(&single).contains(&"precision") && failed(&single).contains(&"speed"));
        // Steady repeats do not hide a lost gain.
        let lost = compare(&repeated(&[(1.0, 1.0); 3]), &repeated(&[(1.0, 0.8); 3]), TEN).unwrap();
        assert!(failed(&lost).contains(&"precision"));
    }

    #[test]
    fn three_common_slices_of_a_quick_run_are_compared_slice_by_slice() {
        let quick = |slower: f64, seed| {
            let mut r = result(3, 0.01, seed, as_expected);
            r.quick = true;
            for round in &mut r.rounds {
                let long = 1.0 + 2.0 * round.slice as f64;
                round.samples.iter_mut().for_each(|s| s.seconds *= long * slower);
            }
            r
        };
        let speed = |slower: f64| {
            let max_regression = QUICK_MAX_REGRESSION;
            let outcome =
                compare(&quick(1.0, 1), &quick(slower, 2), Thresholds { max_regression, ..TEN })
                    .unwrap();
            outcome.checks.into_iter().find(|c| c.name == "speed").unwrap()
        };
        assert!(!speed(1.0).failed && speed(1.6).failed);
        assert!(
            speed(1.0).visible > QUICK_MAX_REGRESSION && speed(1.0).visible < 30.0,
            "{:?}",
            speed(1.0)
        );
    }

    #[test]
    fn what_cannot_be_compared_is_refused_never_passed() {
        let good = || result(6, 0.02, 1, as_expected);
        let refused = |edit: fn(&mut BenchResult), word: &str| {
            let mut other = good();
            edit(&mut other);
            let error = compare(&other, &good(), TEN).unwrap_err();
            assert!(error.contains(word), "{error}");
        };
        refused(|r| r.quick = true, "made with --quick, this run without");
        refused(|r| r.model.digest = "other".into(), "another model");
        refused(|r| r.workload.digest = "other".into(), "another workload");
        refused(|r| r.phases = crate::bench::ablation::plan::Phases::Two, "--phase 2");
        refused(|r| r.rounds.truncate(1), "1 rounds");
        refused(|r| r.batch = 16, "batches of 16");
        refused(|r| r.rows[0].name = "magic".into(), "'magic'");
        refused(
            |r| {
                r.rounds
                    .iter_mut()
                    .flat_map(|r| &mut r.samples)
                    .for_each(|s| s.completion_tokens = 0)
            },
            "tokens/s",
        );
    }

    #[test]
    fn another_machine_compares_ratios_only_or_is_refused() {
        let mut other = result(6, 0.02, 1, |l| as_expected(l) / 3.0);
        other.machine.cpu = "another processor".into();
        let now = result(6, 0.02, 2, as_expected);
        let outcome = compare(&other, &now, TEN).unwrap();
        assert!(outcome.machines[0].contains("another processor") && failed(&outcome).is_empty());
        assert!(outcome.checks.iter().all(|c| c.name != "speed"));
        let error = compare(&other, &now, Thresholds { same_machine: true, ..TEN }).unwrap_err();
        assert!(error.contains("another machine"), "{error}");
    }

    #[test]
    fn the_least_speedup() {
        let result = result(6, 0.02, 1, as_expected);
        let of = |result: &BenchResult, least| min_speedup(&analyse(result), least);
        assert_eq!(of(&result, 3.5), Ok(None));
        assert!(of(&result, 4.5).unwrap().unwrap().contains("below --min-speedup 4.5"));
        let none = super::super::test_data::result(1, 0.02, 1, as_expected);
        assert!(of(&none, 1.0).is_err());
    }
}

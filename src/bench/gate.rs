//! The gate: has this program become slower than a recorded result says? In: two results and thresholds. Out: refusals (the two cannot
//! be compared) or one line per failed row. It fails only if a whole interval is past the threshold, and never passes for want of numbers.

use super::result::BenchResult;
use super::rows::{Analysis, analyse, logs, normalised_interval};
use super::statistics::mean_interval;

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
        let what = if self.name == "speed" { "tokens/s of everything-on over the fixed reference" } else { "ratio" };
        format!(
            "{}: {what} {} → {}, {middle:+.1} % ({low:+.1} to {high:+.1})",
            self.name,
            crate::units::rate(self.before),
            crate::units::rate(self.now)
        )
    }
}

impl Outcome {
    /// Those that failed.
    pub fn failed(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|c| c.failed)
    }
}

/// The change from one mean of logarithms to another, judged against a threshold in percent.
pub fn check(name: &str, before: (f64, f64), now: (f64, f64), max_regression: f64) -> Check {
    let middle = now.0 - before.0;
    let half = before.1.hypot(now.1);
    let percent = |log: f64| (log.exp() - 1.0) * 100.0;
    Check {
        name: name.into(),
        before: before.0.exp(),
        now: now.0.exp(),
        change: (percent(middle - half), percent(middle), percent(middle + half)),
        failed: percent(middle + half) < -max_regression,
    }
}

/// Compares. The error (exit status 2) says why the two cannot be compared.
pub fn compare(before: &BenchResult, now: &BenchResult, thresholds: Thresholds) -> Result<Outcome, String> {
    for (what, result) in [("the baseline", before), ("this run", now)] {
        if result.quick {
            return Err(format!("{what} was made with --quick: too little was measured for a gate; run bench without it"));
        }
        if result.rounds.len() < 2 {
            return Err(format!("{what} has {} rounds, a gate needs at least 2", result.rounds.len()));
        }
    }
    let comparable =
        [("model", &before.model.digest, &now.model.digest), ("workload", &before.workload.digest, &now.workload.digest)];
    if let Some((what, a, b)) = comparable.iter().find(|(_, a, b)| a != b) {
        return Err(format!("the baseline is of another {what} ({}, now {}); ratios cannot be compared", short(a), short(b)));
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
        return Err(format!("the baseline used batches of {}, this run of {}", before.batch, now.batch));
    }
    if thresholds.same_machine && !machines.is_empty() {
        return Err(format!("the baseline is of another machine (--same-machine): {}", machines.join("; ")));
    }
    let mut checks = Vec::new();
    for row in &before.rows {
        let Some(old_pair) = row.alone else { continue };
        let new_pair = now.rows.iter().find(|r| r.name == row.name).and_then(|r| r.alone);
        let Some(new_pair) = new_pair else {
            return Err(format!("the baseline has a row '{}' that this run does not measure", crate::units::shown(&row.name)));
        };
        let (old, new) = (mean_interval(&logs(&before.rounds, &old_pair).0), mean_interval(&logs(&now.rounds, &new_pair).0));
        let (Some(old), Some(new)) = (old, new) else {
            return Err(format!("row '{}' has too few rounds for an interval", crate::units::shown(&row.name)));
        };
        checks.push(check(&row.name, old, new, thresholds.max_regression));
    }
    // Absolute speed over the reference says something about one kind of machine only.
    if machines.is_empty() {
        let (Some(old), Some(new)) = (normalised_interval(before), normalised_interval(now)) else {
            return Err("tokens/s of everything-on cannot be worked out from the samples".into());
        };
        checks.push(check("speed", old, new, thresholds.max_regression));
    }
    if checks.is_empty() {
        return Err("the baseline has no row that could be compared".into());
    }
    Ok(Outcome { machines, checks })
}

/// `--min-speedup`: the line that says why it fails, if it does. The whole interval must lie below to fail.
pub fn min_speedup(analysis: &Analysis, least: f64) -> Result<Option<String>, String> {
    let total = analysis.row("total").and_then(|r| r.alone).ok_or("the total speedup was not measured: too few rounds")?;
    let i = total.interval;
    Ok((i.high < least)
        .then(|| format!("total: speedup {} ({} to {}) is below --min-speedup {least}", f(i.ratio), f(i.low), f(i.high))))
}

fn f(value: f64) -> String {
    crate::units::rate(value)
}

fn short(digest: &str) -> String {
    crate::units::shown(&digest.chars().take(12).collect::<String>())
}

/// For callers that have no analysis yet.
pub fn min_speedup_of(result: &BenchResult, least: f64) -> Result<Option<String>, String> {
    min_speedup(&analyse(result), least)
}

#[cfg(test)]
mod tests {
    use super::super::example::{as_expected, result};
    use super::*;

    const TEN: Thresholds = Thresholds { max_regression: 10.0, same_machine: false };

    fn failed(outcome: &Outcome) -> Vec<&str> {
        outcome.failed().map(|c| c.name.as_str()).collect()
    }

    #[test]
    fn the_same_again_passes_and_every_row_and_the_speed_are_compared() {
        let outcome = compare(&result(6, 0.02, 1, as_expected), &result(6, 0.02, 2, as_expected), TEN).unwrap();
        assert!(failed(&outcome).is_empty());
        let names: Vec<&str> = outcome.checks.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["precision", "greedy", "cache", "early-stop", "phase-1", "total", "speed"]);
    }

    #[test]
    fn a_row_that_lost_its_gain_fails_with_its_name() {
        let slower = |label: &str| if label == "baseline + greedy" { 4.0 } else { as_expected(label) };
        let outcome = compare(&result(6, 0.02, 1, as_expected), &result(6, 0.02, 2, slower), TEN).unwrap();
        assert_eq!(failed(&outcome), ["greedy"]);
        let line = outcome.failed().next().unwrap().line();
        assert!(line.starts_with("greedy: ratio 1.4") && line.contains("→ 1.0") && !line.contains('\n'), "{line}");
    }

    #[test]
    fn everything_slower_alike_keeps_the_ratios_but_not_the_speed() {
        let slower = |label: &str| as_expected(label) * 1.3;
        let outcome = compare(&result(6, 0.02, 1, as_expected), &result(6, 0.02, 2, slower), TEN).unwrap();
        assert_eq!(failed(&outcome), ["speed"]);
    }

    #[test]
    fn an_interval_that_reaches_back_over_the_threshold_does_not_fail() {
        let slower = |label: &str| if label == "baseline + greedy" { 4.0 / 1.4 * 1.2 } else { as_expected(label) };
        let outcome = compare(&result(6, 0.4, 1, as_expected), &result(6, 0.4, 2, slower), TEN).unwrap();
        assert!(failed(&outcome).is_empty());
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
        refused(|r| r.quick = true, "--quick");
        refused(|r| r.model.digest = "other".into(), "another model");
        refused(|r| r.workload.digest = "other".into(), "another workload");
        refused(|r| r.phases = crate::bench::plan::Phases::Two, "--phase 2");
        refused(|r| r.rounds.truncate(1), "1 rounds");
        refused(|r| r.batch = 16, "batches of 16");
        refused(|r| r.rows[0].name = "magic".into(), "'magic'");
        refused(|r| r.rounds.iter_mut().flat_map(|r| &mut r.samples).for_each(|s| s.completion_tokens = 0), "tokens/s");
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
        assert_eq!(min_speedup_of(&result, 3.5), Ok(None));
        assert!(min_speedup_of(&result, 4.5).unwrap().unwrap().contains("below --min-speedup 4.5"));
        let none = super::super::example::result(1, 0.02, 1, as_expected);
        assert!(min_speedup_of(&none, 1.0).is_err());
    }
}

//! Broken promises and gates: lines for people, cases for `junit.xml`, and the exit status.

use super::Args;
use crate::bench::ablation::analysis::{Analysis, RowResult};
use crate::bench::ablation::gate::{self, Check, Thresholds};
use crate::bench::ablation::result::BenchResult;
use crate::cli::Failure;
use crate::cli::failure::status;
use crate::report::speedup;

/// How a case ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Passed,
    Failed,
    /// Nobody judged it.
    NoVerdict,
}

/// A row or a gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// `rows` or `gates`.
    pub suite: &'static str,
    /// The row, `row: gate`, or `--min-speedup`.
    pub name: String,
    /// What was measured or why it failed.
    pub text: String,
    /// How it ended.
    pub state: State,
}

/// What was judged.
#[derive(Debug, Default)]
pub struct Judged {
    /// Lines for people.
    pub lines: Vec<String>,
    /// Cases for programs.
    pub cases: Vec<Case>,
    /// A gate failed, or a promise is broken.
    pub failed: bool,
    /// The gate could not judge at all (exit status 2).
    pub refused: Option<Failure>,
}

/// A 10 % slower program loses this much of its tokens/s, percent.
const TENTH: f64 = 100.0 / 11.0;

impl Judged {
    /// Judges a whole run.
    pub fn of(
        args: &Args,
        baseline: Option<&BenchResult>,
        result: &BenchResult,
        analysis: &Analysis,
    ) -> Judged {
        let mut judged = Judged::default();
        analysis.rows.iter().for_each(|row| judged.row(row));
        if let Some(before) = baseline {
            judged.compared(args, before, result);
        }
        if let Some(least) = args.min_speedup {
            judged.least(least, analysis);
        }
        if let Some(failure) = &judged.refused {
            judged.lines.push(format!("no verdict: {}", failure.message));
        }
        judged
    }

    /// An interrupted run judges nothing.
    pub fn interrupted(args: &Args, analysis: &Analysis, why: &str) -> Judged {
        let mut judged = Judged::default();
        analysis.rows.iter().for_each(|row| judged.row(row));
        judged.failed = false;
        judged.cases.iter_mut().for_each(|c| c.state = State::NoVerdict);
        let gates = [
            (args.baseline.is_some(), "--baseline"),
            (args.min_speedup.is_some(), "--min-speedup"),
        ];
        for (_, name) in gates.into_iter().filter(|g| g.0) {
            judged.case("gates", name, format!("no verdict: {why}"), State::NoVerdict);
        }
        judged.lines = vec![format!("no verdict: {why}")];
        judged
    }

    /// The exit status of a run that was not interrupted.
    pub fn status(self) -> Result<u8, Failure> {
        match self.refused {
            // A failed promise or gate is told by its status, whatever else could not be judged.
            Some(failure) if !self.failed => Err(failure),
            _ => Ok(if self.failed { status::GATE } else { status::DONE }),
        }
    }

    fn case(&mut self, suite: &'static str, name: impl Into<String>, text: String, state: State) {
        self.failed |= state == State::Failed;
        self.cases.push(Case { suite, name: name.into(), text, state });
    }

    /// A measured row fails only by breaking its promise about answers.
    fn row(&mut self, row: &RowResult) {
        if let Some((promise, prompt)) = &row.broken {
            let promise = format!("{promise:?}").to_lowercase();
            let line = format!(
                "answers: {}: must be {promise}, but prompt {prompt} shows others",
                row.name
            );
            self.lines.push(line.clone());
            self.case("rows", &*row.name, line, State::Failed);
        } else if row.alone.is_some() {
            self.case("rows", &*row.name, speedup::row_line(row), State::Passed);
        }
    }

    fn compared(&mut self, args: &Args, before: &BenchResult, result: &BenchResult) {
        let most = args.max_regression();
        let outcome = match gate::compare(
            before,
            result,
            Thresholds { max_regression: most, same_machine: args.same_machine },
        ) {
            Ok(outcome) => outcome,
            Err(why) => {
                let why = format!("--baseline: {why}");
                self.case("gates", "--baseline", why.clone(), State::NoVerdict);
                self.refused = Some(Failure::usage(why));
                return;
            }
        };
        if !outcome.machines.is_empty() {
            let what = outcome.machines.join("; ");
            self.lines
                .insert(0, format!("gate: another machine, so only ratios are compared ({what})"));
        }
        for check in &outcome.checks {
            let state = if check.failed { State::Failed } else { State::Passed };
            self.case(
                "gates",
                format!("{}: --max-regression {most} %", check.name),
                check.line(),
                state,
            );
        }
        let slower: Vec<&Check> = outcome.failed().collect();
        self.lines.extend(
            slower.iter().map(|c| format!("gate: {} is past --max-regression {most} %", c.line())),
        );
        if slower.is_empty() {
            let nearest =
                outcome.nearest().map_or(String::new(), |c| format!("; nearest is {}", c.line()));
            let n = outcome.checks.len();
            self.lines.push(format!(
                "gate: none of {n} comparisons is past --max-regression {most} %{nearest}"
            ));
        }
        self.lines.extend(outcome.checks.iter().find(|c| c.name == "speed").map(visible));
    }

    fn least(&mut self, least: f64, analysis: &Analysis) {
        let name = format!("--min-speedup {least}");
        match gate::min_speedup(analysis, least) {
            Ok(Some(line)) => {
                self.lines.push(format!("gate: {line}"));
                self.case("gates", name, line, State::Failed);
            }
            Ok(None) => {
                let line = format!("the total speedup is not below --min-speedup {least}");
                self.lines.push(format!("gate: {line}"));
                self.case("gates", name, line, State::Passed);
            }
            Err(why) => {
                self.case("gates", name, why.clone(), State::NoVerdict);
                self.refused = Some(Failure::usage(why));
            }
        }
    }
}

/// What this run could have seen.
fn visible(speed: &Check) -> String {
    let blind = match speed.visible > TENTH {
        true => {
            "; a program that takes 10 % longer can pass: more rounds (--rounds 24, --time-budget) see more"
        }
        false => "",
    };
    format!("gate: this run sees a loss of {:.1} % of tokens/s or more{blind}", speed.visible)
}

//! Which configurations a bench runs and which pairs of them make its rows. In: the registry of optimizations and the phases asked
//! for. Out: configurations (each set once, `warmup` aside) and rows in the audit's order. It runs nothing.

use crate::optimizations::{ALL, Expected, Optimization, Phase, Set};
use serde::{Deserialize, Serialize};

/// `--phase`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Phases {
    /// The audit's phase 1.
    #[serde(rename = "1")]
    #[value(name = "1")]
    One,
    /// Phase 2, from phase 1 on.
    #[serde(rename = "2")]
    #[value(name = "2")]
    Two,
    /// Phase 3, from phases 1 and 2 on.
    #[serde(rename = "3")]
    #[value(name = "3")]
    Three,
    /// All of them, and what the audit does not have.
    #[serde(rename = "all")]
    #[value(name = "all")]
    All,
}

impl Phases {
    /// As typed.
    pub fn name(self) -> &'static str {
        match self {
            Phases::One => "1",
            Phases::Two => "2",
            Phases::Three => "3",
            Phases::All => "all",
        }
    }

    fn has(self, phase: Phase) -> bool {
        match self {
            Phases::One => phase == Phase::One,
            Phases::Two => phase == Phase::Two,
            Phases::Three => phase == Phase::Three,
            Phases::All => true,
        }
    }

    /// What is on before anything is measured: the earlier phases.
    fn start(self) -> Set {
        match self {
            Phases::One | Phases::All => Set::none(),
            Phases::Two => Set::of(|o| o.phase == Phase::One),
            Phases::Three => Set::of(|o| o.phase <= Phase::Two),
        }
    }
}

/// What a ratio divides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// Seconds for the slice: stopping early and repeating answers are what is measured.
    Seconds,
    /// Seconds for the slice, but seconds per generated token if the two sides generated different numbers of tokens.
    SecondsOrPerToken,
}

/// Two configurations: the ratio is the first one's time over the second one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// Index of the configuration without.
    pub without: usize,
    /// Index of the configuration with.
    pub with: usize,
    /// What is divided.
    pub basis: Basis,
}

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanRow {
    /// The optimization's name, or `phase-1`, `phase-2`, `total`.
    pub name: String,
    /// Baseline (+ needs) → that and this one; for the totals their ratio.
    pub alone: Option<Pair>,
    /// All but this one → everything; for what the audit does not have: everything → that and this one.
    pub removed: Option<Pair>,
    /// Start → the rows up to this one.
    pub cumulative: Option<Pair>,
}

/// A configuration to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// For people: `baseline`, `baseline + greedy`, `all but mask`.
    pub label: String,
    /// What is on. `warmup` never is: it is measured in fresh processes.
    pub set: Set,
}

/// What to run and what to make of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The phases.
    pub phases: Phases,
    /// The configurations; the last one repeats `everything` (A/A).
    pub configs: Vec<Config>,
    /// The lines of the table, in its order.
    pub rows: Vec<PlanRow>,
    /// Index of the configuration that everything starts from.
    pub start: usize,
    /// Index of the configuration with all audit rows of the selected phases on.
    pub everything: usize,
    /// Index of the same again.
    pub again: usize,
    /// The set behind `start`, `warmup` included.
    pub start_set: Set,
    /// The set behind `everything`, `warmup` included.
    pub everything_set: Set,
}

/// The audit's totals: (name, its title, low, high). "3-5x", "1.5-2x additional", "2.5-4x".
pub const TOTALS: [(&str, &str, f64, f64); 3] = [
    ("phase-1", "Phase 1", 3.0, 5.0),
    ("phase-2", "Phase 2", 1.5, 2.0),
    ("total", "Total combined", 2.5, 4.0),
];

/// The range that the audit expects of a row: (low, high), infinite for the cache.
pub fn expected(name: &str) -> Option<(f64, f64)> {
    let total = TOTALS.iter().find(|t| t.0 == name).map(|t| (t.2, t.3));
    total.or_else(|| match crate::optimizations::find(name)?.expected {
        Expected::Range(low, high) => Some((low, high)),
        Expected::Infinite => Some((f64::INFINITY, f64::INFINITY)),
        Expected::FirstRequest | Expected::Unstated => None,
    })
}

/// Collects configurations, each set once.
struct Configs(Vec<Config>);

impl Configs {
    fn index(&mut self, set: Set, label: impl FnOnce() -> String) -> usize {
        let set = set.without(warmup());
        self.0.iter().position(|c| c.set == set).unwrap_or_else(|| {
            self.0.push(Config { label: label(), set });
            self.0.len() - 1
        })
    }

    fn pair(&mut self, without: usize, with: usize) -> Option<Pair> {
        let changed = self.0[with].set.without(self.0[without].set);
        let seconds = ["early-stop", "cache"].iter().any(|name| changed.has(name));
        let basis = if seconds { Basis::Seconds } else { Basis::SecondsOrPerToken };
        (without != with).then_some(Pair { without, with, basis })
    }
}

fn warmup() -> Set {
    Set::of(|o| o.name == "warmup")
}

fn only(o: &Optimization) -> Set {
    Set::of(|other| other.name == o.name)
}

impl Plan {
    /// The plan for these phases. `removed`: the removed column too. `ladder`: the cumulative column too.
    pub fn new(phases: Phases, removed: bool, ladder: bool) -> Plan {
        let start_set = phases.start();
        let audit = Set::of(|o| phases.has(o.phase) && o.phase != Phase::Beyond);
        let everything_set = start_set.with(audit);
        let mut configs = Configs(Vec::new());
        let start_label = match phases {
            Phases::One | Phases::All => "baseline",
            Phases::Two => "phase 1",
            Phases::Three => "phases 1+2",
        };
        let start = configs.index(start_set, || start_label.into());
        let everything = configs.index(everything_set, || "everything on".into());
        let mut rows = Vec::new();
        let mut climbed = start_set;
        for o in ALL {
            let mut row =
                PlanRow { name: o.name.into(), alone: None, removed: None, cumulative: None };
            if phases.has(o.phase) {
                let beyond = o.phase == Phase::Beyond;
                let below = start_set.with(only(o).with_needs().without(only(o)));
                let without = configs
                    .index(below, || format!("{start_label} + {}", below.without(start_set)));
                let label = || {
                    format!(
                        "{start_label} + {}",
                        below.without(start_set).with(only(o)).to_string().replace('+', " + ")
                    )
                };
                let with = configs.index(below.with(only(o)), label);
                row.alone = configs.pair(without, with);
                if removed && beyond {
                    let more = configs.index(everything_set.with(only(o).with_needs()), || {
                        format!("everything + {}", o.name)
                    });
                    row.removed = configs.pair(everything, more);
                } else if removed {
                    let less = configs
                        .index(everything_set.without(only(o)), || format!("all but {}", o.name));
                    row.removed = configs.pair(less, everything);
                }
                climbed = climbed.with(only(o).with_needs());
                if ladder || climbed == everything_set {
                    let here = configs.index(climbed, || format!("{start_label} … {}", o.name));
                    row.cumulative = configs.pair(start, here);
                }
            }
            rows.push(row);
        }
        let phase_1 = Set::of(|o| o.phase == Phase::One);
        let phase_2 = Set::of(|o| o.phase <= Phase::Two);
        let totals: [(Option<(Set, Set)>, &str); 3] = [
            (
                matches!(phases, Phases::One | Phases::All).then_some((Set::none(), phase_1)),
                "phase-1",
            ),
            (matches!(phases, Phases::Two | Phases::All).then_some((phase_1, phase_2)), "phase-2"),
            (Some((start_set, everything_set)), "total"),
        ];
        // The totals stand between the audit's rows and those beyond it.
        let beyond = ALL.iter().position(|o| o.phase == Phase::Beyond).unwrap_or(ALL.len());
        for (place, (sets, name)) in (beyond..).zip(totals) {
            let mut row =
                PlanRow { name: name.into(), alone: None, removed: None, cumulative: None };
            if let Some((from, to)) = sets {
                let from = configs.index(from, || "phase 1 on".into());
                let to = configs.index(to, || {
                    if name == "phase-1" { "phase 1 on".into() } else { "phases 1+2 on".into() }
                });
                row.alone = configs.pair(from, to);
                row.cumulative = configs.pair(start, to);
            }
            rows.insert(place, row);
        }
        let mut configs = configs.0;
        configs.push(Config { label: "everything on, again".into(), set: configs[everything].set });
        let again = configs.len() - 1;
        Plan { phases, configs, rows, start, everything, again, start_set, everything_set }
    }

    /// The row of this name.
    pub fn row(&self, name: &str) -> Option<&PlanRow> {
        self.rows.iter().find(|r| r.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phase_1_runs_the_nine_configurations_of_the_issue() {
        let plan = Plan::new(Phases::One, false, true);
        // Baseline, four alone, two inner steps of the ladder, phase 1 on, and that again.
        assert_eq!(
            plan.configs.len(),
            9,
            "{:?}",
            plan.configs.iter().map(|c| &c.label).collect::<Vec<_>>()
        );
        assert_eq!(plan.configs[plan.everything].set, plan.configs[plan.again].set);
        assert_eq!(plan.configs[plan.start].set, Set::none());
        assert!(plan.rows.iter().all(|r| r.removed.is_none()));
        assert_eq!(plan.row("total").unwrap().alone, plan.row("phase-1").unwrap().alone);
        assert!(
            plan.row("phase-2").unwrap().alone.is_none()
                && plan.row("mask").unwrap().alone.is_none()
        );
    }

    #[test]
    fn the_rows_are_those_of_the_contract_in_its_order() {
        for phases in [Phases::One, Phases::Two, Phases::Three, Phases::All] {
            let names: Vec<String> =
                Plan::new(phases, true, true).rows.into_iter().map(|r| r.name).collect();
            let expected = "precision greedy cache early-stop tokenizer mask warmup queue static-memory phase-1 phase-2 total \
                            quantized shared-prefix";
            assert_eq!(names.join(" "), expected.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }

    #[test]
    fn no_set_is_run_twice_but_the_a_a_pair_and_none_has_warmup() {
        for phases in [Phases::One, Phases::Two, Phases::Three, Phases::All] {
            let plan = Plan::new(phases, true, true);
            for (i, a) in plan.configs.iter().enumerate() {
                assert!(!a.set.has("warmup"), "{}", a.label);
                for (j, b) in plan.configs.iter().enumerate().skip(i + 1) {
                    assert!(
                        a.set != b.set || (i, j) == (plan.everything, plan.again),
                        "{} = {}",
                        a.label,
                        b.label
                    );
                    assert_ne!(a.label, b.label);
                }
            }
        }
    }

    #[test]
    fn every_pair_differs_by_what_its_row_says() {
        let plan = Plan::new(Phases::All, true, true);
        let set = |i: usize| plan.configs[i].set;
        for o in ALL.iter().filter(|o| o.name != "warmup") {
            let row = plan.row(o.name).unwrap();
            let (alone, removed) = (row.alone.unwrap(), row.removed.unwrap());
            assert_eq!(set(alone.with).without(set(alone.without)), only(o), "{}", o.name);
            assert_eq!(set(removed.with).without(set(removed.without)), only(o), "{}", o.name);
            assert!(set(alone.with).check_needs().is_ok());
            assert_eq!(row.cumulative.unwrap().without, plan.start);
            let seconds = o.name == "cache" || o.name == "early-stop";
            assert_eq!(alone.basis == Basis::Seconds, seconds, "{}", o.name);
        }
        // Warm-up is measured in fresh processes.
        assert!(plan.row("warmup").unwrap().alone.is_none());
        let total = plan.row("total").unwrap().alone.unwrap();
        assert_eq!((total.without, total.with), (plan.start, plan.everything));
        assert!(!plan.everything_set.has("quantized") && plan.everything_set.has("warmup"));
    }

    #[test]
    fn later_phases_start_from_the_earlier_ones() {
        let plan = Plan::new(Phases::Two, false, true);
        assert!(plan.start_set.has("cache") && !plan.start_set.has("mask"));
        assert!(plan.everything_set.has("mask") && !plan.everything_set.has("queue"));
        assert_eq!(plan.row("phase-2").unwrap().alone, plan.row("total").unwrap().alone);
    }

    #[test]
    fn the_audits_ranges() {
        assert_eq!(expected("precision"), Some((1.3, 1.5)));
        assert_eq!(expected("cache"), Some((f64::INFINITY, f64::INFINITY)));
        assert_eq!(expected("total"), Some((2.5, 4.0)));
        assert_eq!(expected("warmup"), None);
    }
}

//! The registry: the audit as data. An optimization is a named edit of a [`PipelineConfig`]; names after `--only`/`--without`, help,
//! the bench plan, the speedup table and the exactness tests all follow from [`ALL`]. One short file per optimization.

use crate::pipeline::PipelineConfig;

mod cache;
mod early_stop;
mod greedy;
mod mask;
mod precision;
mod quantized;
mod queue;
mod shared_prefix;
mod static_memory;
mod tokenizer;
mod warmup;

/// The audit's phase.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// A request's own work: dtype, greedy choice, reused answers, stopping.
    One,
    /// Work besides: tokenizer, padding, warm-up.
    Two,
    /// The loop itself: a continuous queue, memory allocated once.
    Three,
    /// Not in the audit.
    Beyond,
}

/// The audit's "Implementation Difficulty".
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum Difficulty {
    /// "Easy".
    Easy,
    /// "Medium".
    Medium,
    /// The audit does not say.
    Unstated,
}

/// The gain the audit expects.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub enum Expected {
    /// Between these factors.
    Range(f64, f64),
    /// "∞ (cached)".
    Infinite,
    /// Only the first request gains.
    FirstRequest,
    /// The audit gives no figure.
    Unstated,
}

/// What happens to the answers when it is switched on; checked by bench, not assumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Promise {
    /// The same token ids.
    Identical,
    /// The ids are a prefix of the ids without it.
    Prefix,
    /// They may differ.
    Differ,
}

/// An optimization: data, not behaviour. The code it selects lives where its policy is read.
pub struct Optimization {
    /// As typed after `--only` and `--without`.
    pub name: &'static str,
    /// The audit's row title (or ours, for rows the audit has no line for).
    pub audit: &'static str,
    /// One sentence: help, README, tables.
    pub summary: &'static str,
    /// The audit's phase.
    pub phase: Phase,
    /// The audit's difficulty.
    pub difficulty: Difficulty,
    /// The audit's gain.
    pub expected: Expected,
    /// What bench checks of the answers.
    pub answers: Promise,
    /// Names that must be on for this one to mean anything.
    pub needs: &'static [&'static str],
    /// The edit.
    pub apply: fn(&mut PipelineConfig),
}

/// All of them, in the audit's order.
pub static ALL: &[&Optimization] = &[
    &precision::PRECISION,
    &greedy::GREEDY,
    &cache::CACHE,
    &early_stop::EARLY_STOP,
    &tokenizer::TOKENIZER,
    &mask::MASK,
    &warmup::WARMUP,
    &queue::QUEUE,
    &static_memory::STATIC_MEMORY,
    &quantized::QUANTIZED,
    &shared_prefix::SHARED_PREFIX,
];

/// The optimization of this name.
pub fn find(name: &str) -> Option<&'static Optimization> {
    ALL.iter().copied().find(|o| o.name == name)
}

/// A set of switched-on optimizations: bit i is `ALL[i]`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct Set(u32);

impl Set {
    /// None: the audit's starting point.
    pub fn none() -> Set {
        Set(0)
    }

    /// Every optimization.
    pub fn all() -> Set {
        Set((1 << ALL.len()) - 1)
    }

    /// Those for which `keep` holds.
    pub fn of(keep: impl Fn(&Optimization) -> bool) -> Set {
        ALL.iter().enumerate().fold(Set(0), |s, (i, o)| if keep(o) { Set(s.0 | 1 << i) } else { s })
    }

    /// Those named. Errors name the unknown one and list the known.
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Set, String> {
        names.into_iter().try_fold(Set(0), |set, name| {
            match ALL.iter().position(|o| o.name == name) {
                Some(i) => Ok(Set(set.0 | 1 << i)),
                None => Err(format!(
                    "no optimization is called '{}'; {}known are {}",
                    crate::units::shown(name),
                    crate::units::did_you_mean(name, ALL.iter().map(|o| o.name)),
                    ALL.iter().map(|o| o.name).collect::<Vec<_>>().join(", ")
                )),
            }
        })
    }

    /// Whether this one is on.
    pub fn has(self, name: &str) -> bool {
        ALL.iter().position(|o| o.name == name).is_some_and(|i| self.0 & (1 << i) != 0)
    }

    /// This set and that one.
    pub fn with(self, other: Set) -> Set {
        Set(self.0 | other.0)
    }

    /// This set without that one.
    pub fn without(self, other: Set) -> Set {
        Set(self.0 & !other.0)
    }

    /// The optimizations in it, in the audit's order.
    pub fn iter(self) -> impl Iterator<Item = &'static Optimization> {
        ALL.iter().copied().enumerate().filter(move |(i, _)| self.0 & (1 << i) != 0).map(|(_, o)| o)
    }

    /// The set together with everything its members need.
    pub fn with_needs(self) -> Set {
        self.iter().fold(self, |s, o| s.with(Set::named(o.needs.iter().copied()).unwrap_or(Set(0))))
    }

    /// An error if a member's need is off: names both.
    pub fn check_needs(self) -> Result<(), String> {
        for o in self.iter() {
            if let Some(need) = o.needs.iter().find(|n| !self.has(n)) {
                return Err(format!(
                    "'{}' has no effect without '{need}'; add {need} to the list",
                    o.name
                ));
            }
        }
        Ok(())
    }

    /// `baseline` with this set's edits made, in order.
    pub fn apply(self, baseline: &PipelineConfig) -> PipelineConfig {
        let mut config = baseline.clone();
        for o in self.iter() {
            (o.apply)(&mut config);
        }
        config
    }
}

impl std::fmt::Display for Set {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == 0 {
            return f.write_str("none");
        }
        f.write_str(&self.iter().map(|o| o.name).collect::<Vec<_>>().join("+"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{DtypePolicy, Sizes};

    fn baseline() -> PipelineConfig {
        let sizes = Sizes { threads: 2, batch: 16, chunk: 64, kv_bytes: None, kv_dtype: None };
        PipelineConfig::audit_baseline(DtypePolicy::Auto, sizes)
    }

    fn fields(config: &PipelineConfig) -> serde_json::Map<String, serde_json::Value> {
        serde_json::to_value(config).unwrap().as_object().unwrap().clone()
    }

    #[test]
    fn every_edit_changes_exactly_one_field_and_no_two_change_the_same() {
        let base = fields(&baseline());
        let mut seen = std::collections::HashSet::new();
        for o in ALL {
            let edited = fields(&Set::named([o.name]).unwrap().apply(&baseline()));
            let changed: Vec<_> = base.keys().filter(|k| base[*k] != edited[*k]).cloned().collect();
            assert_eq!(changed.len(), 1, "{} changes {changed:?}", o.name);
            assert!(seen.insert(changed[0].clone()), "{} edits {} too", o.name, changed[0]);
        }
    }

    #[test]
    fn needs_are_known_and_checked() {
        for o in ALL {
            assert!(o.needs.iter().all(|n| find(n).is_some()), "{}", o.name);
        }
        assert!(
            Set::named(["quantized"]).unwrap().check_needs().unwrap_err().contains("precision")
        );
        assert!(Set::named(["quantized"]).unwrap().with_needs().check_needs().is_ok());
        assert!(Set::all().check_needs().is_ok() && Set::none().check_needs().is_ok());
    }

    #[test]
    fn unknown_names_are_refused_with_the_list() {
        let error = Set::named(["fast"]).unwrap_err();
        assert!(error.contains("'fast'") && error.contains("shared-prefix"), "{error}");
    }
}

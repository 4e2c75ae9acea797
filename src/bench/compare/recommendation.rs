//! What to use: for prefill, decode, batches and the workload the fastest setting with the reference's answers, and, apart, the fastest of
//! all with what it costs. In: a [`Comparison`]. Out: plain data with the reasons; sentences are made of it in `report`. It measures nothing.

use super::comparison::{Comparison, Measure, MeasuredSetting};
use crate::bench::statistics::{BUSY, Interval};
use crate::machine::Machine;
use crate::roofline::Bound;
use serde::{Deserialize, Serialize};

/// What a user may want to be fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aim {
    /// Reading long prompts.
    Prefill,
    /// One answer at a time.
    Decode,
    /// Many answers at a time.
    Batch,
    /// A file of prompts from end to end.
    Workload,
}

impl Aim {
    /// All, in the order they are told.
    pub const ALL: [Aim; 4] = [Aim::Prefill, Aim::Decode, Aim::Batch, Aim::Workload];

    /// What decides.
    pub fn measure(self) -> Measure {
        match self {
            Aim::Prefill => Measure::Prefill512,
            Aim::Decode => Measure::Decode1,
            Aim::Batch => Measure::DecodeBatch,
            Aim::Workload => Measure::WorkloadTokS,
        }
    }
}

/// What was found for one aim.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recommendation {
    /// For what.
    pub aim: Aim,
    /// The fastest whose answers are the reference's (the reference itself at least); without a comparison of answers, `None`.
    pub same_answers: Option<Pick>,
    /// The fastest of all, if that is another one (or if answers were not compared).
    pub any_answers: Option<Pick>,
}

/// A setting chosen for an aim.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pick {
    /// Its name.
    pub setting: String,
    /// The flags to use.
    pub flags: String,
    /// Tokens a second.
    pub value: f64,
    /// Whom it is compared with: the reference, or, for the reference, the next fastest.
    pub against: Option<String>,
    /// How many times as fast.
    pub ratio: Option<Interval>,
    /// The interval of that ratio does not contain 1.
    pub clear: bool,
    /// What it costs against the reference, where that was measured.
    pub cost: Option<Cost>,
    /// Why.
    pub why: Why,
}

/// What a setting's answers and distributions lose against the reference's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Share of answers with the same token ids.
    pub answers_identical: Option<f64>,
    /// Share of tokens with the same first choice.
    pub top1_agreement: Option<f64>,
    /// Mean divergence, nats.
    pub kl_mean: Option<f64>,
    /// Perplexity over the reference's.
    pub perplexity_ratio: Option<f64>,
    /// Every score had the same bits.
    pub same_bits: bool,
}

/// What explains a speed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Why {
    /// What limits this work.
    pub bound: Option<Bound>,
    /// The part of that limit which the setting reaches.
    pub share: Option<f64>,
    /// The part which the one it is compared with reaches.
    pub share_of_other: Option<f64>,
    /// Bytes of weights read for a token of one sequence.
    pub bytes_per_token: f64,
    /// The same of the one it is compared with.
    pub bytes_per_token_of_other: Option<f64>,
    /// CPU features that matter for the two storages and are there.
    pub present: Vec<String>,
    /// Those that are not.
    pub absent: Vec<String>,
}

/// Judges every aim that was measured; on a machine that is too busy for `bench`'s recommendations, none.
pub fn recommendations(comparison: &Comparison) -> Vec<Recommendation> {
    if comparison.disturbance().is_some_and(|taken| taken > BUSY) {
        return Vec::new();
    }
    Aim::ALL.into_iter().filter_map(|aim| verdict(comparison, aim)).collect()
}

fn verdict(comparison: &Comparison, aim: Aim) -> Option<Recommendation> {
    let value = |s: &&MeasuredSetting| s.figure(aim.measure()).and_then(|f| f.value);
    let mut order: Vec<&MeasuredSetting> =
        comparison.settings.iter().filter(|s| value(s).is_some()).collect();
    order.sort_by(|a, b| value(b).unwrap_or(0.0).total_cmp(&value(a).unwrap_or(0.0)));
    let reference = comparison.settings.first()?;
    let fastest = *order.first()?;
    // Nobody looked at the answers of a hurried comparison, the reference's own apart.
    let looked = comparison.settings.iter().skip(1).any(|s| s.same_answers().is_some())
        || comparison.settings.len() == 1;
    let same: Vec<&MeasuredSetting> = order
        .iter()
        .copied()
        .filter(|s| s.name == reference.name || s.same_answers() == Some(true))
        .collect();
    let pick =
        |chosen: &MeasuredSetting, among: &[&MeasuredSetting]| pick(comparison, aim, chosen, among);
    let same_answers = if looked { same.first().and_then(|s| pick(s, &same)) } else { None };
    let other = same_answers.as_ref().is_none_or(|p| p.setting != fastest.name);
    Some(Recommendation {
        aim,
        same_answers,
        any_answers: if other { pick(fastest, &order) } else { None },
    })
}

/// `among`: the candidates by descending speed.
fn pick(
    comparison: &Comparison,
    aim: Aim,
    chosen: &MeasuredSetting,
    among: &[&MeasuredSetting],
) -> Option<Pick> {
    let reference = comparison.settings.first()?;
    let figure = chosen.figure(aim.measure())?;
    // The reference is compared with the next fastest of the candidates, everyone else with the reference.
    let (against, ratio) = if chosen.name == reference.name {
        let next = among.iter().copied().find(|s| s.name != chosen.name);
        let theirs = next.and_then(|s| s.figure(aim.measure())?.against_reference);
        (
            next,
            theirs.map(|i| Interval { low: 1.0 / i.high, ratio: 1.0 / i.ratio, high: 1.0 / i.low }),
        )
    } else {
        (Some(reference), figure.against_reference)
    };
    let share = |s: &MeasuredSetting| s.figure(aim.measure()).and_then(|f| f.share());
    let is_reference = chosen.name == reference.name;
    let (present, absent) = features(&comparison.machine, &[Some(chosen), against]);
    Some(Pick {
        setting: chosen.name.clone(),
        flags: chosen.flags.clone(),
        value: figure.value?,
        against: against.map(|s| s.name.clone()),
        ratio,
        clear: ratio.is_some_and(|i| i.low > 1.0),
        cost: (!is_reference && (chosen.agreement.is_some() || chosen.quality.is_some())).then(
            || Cost {
                answers_identical: chosen.agreement.as_ref().map(|a| a.identical),
                top1_agreement: chosen.quality.as_ref().map(|q| q.top1_agreement),
                kl_mean: chosen.quality.as_ref().map(|q| q.kl_mean),
                perplexity_ratio: chosen.quality.as_ref().map(|q| q.perplexity_ratio),
                same_bits: chosen.quality.as_ref().is_some_and(|q| q.same_bits),
            },
        ),
        why: Why {
            bound: figure.bound,
            share: share(chosen),
            share_of_other: against.and_then(share),
            bytes_per_token: chosen.bytes_per_token,
            bytes_per_token_of_other: against.map(|s| s.bytes_per_token),
            present,
            absent,
        },
    })
}

/// Leads below this are none: `--dtype auto` has one short timing.
const SLIGHT: f64 = 1.05;

/// Whether what `--dtype auto` chooses is the fastest setting with identical answers (or as good as it); `None` if it is not among the settings
/// or nobody compared answers. It is timed on decode steps of a whole batch, so that is what counts here.
pub fn auto_agrees(comparison: &Comparison, recommendations: &[Recommendation]) -> Option<bool> {
    let auto = comparison.auto.as_ref()?.dtype.as_str();
    let same = |aim: Aim| {
        recommendations.iter().find(|v| v.aim == aim).and_then(|v| v.same_answers.as_ref())
    };
    let pick = same(Aim::Batch).or_else(|| same(Aim::Decode))?;
    let dtype_of =
        |name: &str| comparison.settings.iter().find(|s| s.name == name).map(|s| s.dtype.as_str());
    if comparison.settings.iter().all(|s| s.dtype != auto) {
        return None;
    }
    let slight = !pick.clear || pick.ratio.is_some_and(|i| i.low < SLIGHT);
    Some(
        dtype_of(&pick.setting) == Some(auto)
            || (slight && pick.against.as_deref().and_then(dtype_of) == Some(auto)),
    )
}

/// The features that matter for these settings' storages, present and absent.
fn features(
    machine: &Machine,
    settings: &[Option<&MeasuredSetting>],
) -> (Vec<String>, Vec<String>) {
    let dtypes: Vec<&str> = settings.iter().flatten().map(|s| s.dtype.as_str()).collect();
    let is_arm = machine.arch == "aarch64";
    let mut names: Vec<&str> = if is_arm { vec!["neon"] } else { vec!["avx2", "fma", "avx512f"] };
    for dtype in dtypes {
        let more: &[&str] = match (dtype, is_arm) {
            ("bf16" | "bf16-emulated", false) => &["avx512bf16", "amx-bf16"],
            ("bf16" | "bf16-emulated", true) => &["bf16"],
            ("f16", false) => &["f16c"],
            ("f16", true) => &["fp16"],
            (d, false) if d.starts_with('q') => &["avxvnni", "avx512vnni", "amx-int8"],
            (d, true) if d.starts_with('q') => &["dotprod", "i8mm"],
            _ => &[],
        };
        for name in more {
            if !names.contains(name) {
                names.push(name);
            }
        }
    }
    let (present, absent): (Vec<&str>, Vec<&str>) = names.into_iter().partition(|n| machine.has(n));
    let owned = |list: Vec<&str>| list.into_iter().map(String::from).collect();
    (owned(present), owned(absent))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::bench::compare::comparison::{Amounts, Auto, Figure, SCHEMA};
    use crate::bench::compare::quality::{Agreement, Quality};
    use crate::kernels::probes::Isa;
    use crate::machine::Feature;
    use crate::roofline::{Limits, Rates};
    use crate::units::Bytes;

    fn machine() -> Machine {
        let feature =
            |name: &str, detected| Feature { name: name.into(), detected, compiled: false };
        Machine {
            cpu: "AMD EPYC".into(),
            arch: "x86_64".into(),
            features: vec![
                feature("avx2", true),
                feature("fma", true),
                feature("f16c", true),
                feature("avx512f", false),
                feature("avx512bf16", false),
                feature("amx-bf16", false),
            ],
            caches: vec![],
            logical_cpus: 2,
            physical_cores: 2,
            cpu_quota: None,
            usable_threads: 2,
            memory_total: Bytes(24 << 30),
            memory_usable: Bytes(20 << 30),
            os: "Linux".into(),
            virtual_machine: true,
            huge_pages: None,
            load_average: None,
        }
    }

    pub(crate) fn setting(
        name: &str,
        dtype: &str,
        decode: f64,
        ratio: Option<f64>,
        same: Option<bool>,
    ) -> MeasuredSetting {
        let rate = |measure, value: f64| Figure {
            low: Some(value * 0.98),
            high: Some(value * 1.02),
            limit: Some(value / 0.8),
            bound: Some(Bound::Memory),
            against_reference: ratio.map(|r| Interval { low: r * 0.97, ratio: r, high: r * 1.03 }),
            ..Figure::of(measure, value, "128 steps, 6 rounds")
        };
        MeasuredSetting {
            name: name.into(),
            flags: format!("--dtype {dtype}"),
            parameters: Some(crate::model::Parameters { total: 134_515_008, active: 134_515_008 }),
            dtype: dtype.into(),
            dtype_reason: String::new(),
            threads: 2,
            batch: 16,
            kernels: vec![],
            bytes_per_token: if dtype == "f32" { 538e6 } else { 269e6 },
            figures: vec![rate(Measure::Decode1, decode)],
            agreement: same.map(|s| Agreement {
                answers: 48,
                tokens: 1000,
                identical: if s { 1.0 } else { 0.5 },
                first_difference: (!s).then_some(7),
            }),
            quality: same.map(|s| Quality {
                tokens: 4096,
                top1_agreement: if s { 1.0 } else { 0.94 },
                kl_mean: if s { 0.0 } else { 0.02 },
                kl_mean_se: 0.001,
                kl_p99: 0.1,
                perplexity: 12.0,
                perplexity_se: 0.4,
                perplexity_ratio: if s { 1.0 } else { 1.01 },
                perplexity_ratio_se: 0.001,
                same_bits: s,
            }),
        }
    }

    pub(crate) fn comparison(settings: Vec<MeasuredSetting>) -> Comparison {
        Comparison {
            kind: "compare".into(),
            schema: SCHEMA,
            version: "0".into(),
            commit: None,
            command: vec!["llmopt".into(), "compare".into()],
            started: String::new(),
            model: "m".into(),
            model_digest: String::new(),
            machine: machine(),
            limits: Limits {
                rates: vec![Rates { threads: 2, read: 25e9, fma: 75e9, int8: None }],
                buffer: Bytes(512 << 20),
                passes: 5,
                probes: 1,
                fma_isa: Isa::Avx2,
                int8_isa: None,
            },
            busy: None,
            quick: false,
            rounds: 6,
            amounts: Amounts::FULL,
            auto: Some(Auto { dtype: "bf16".into(), reason: "timed".into() }),
            settings,
            notes: vec![],
        }
    }

    #[test]
    fn the_fastest_with_the_same_answers_and_the_fastest_of_all_are_told_apart() {
        let found = recommendations(&comparison(vec![
            setting("f32", "f32", 35.0, None, None),
            setting("bf16", "bf16", 65.0, Some(1.86), Some(true)),
            setting("q4_1", "q4_1", 110.0, Some(3.1), Some(false)),
        ]));
        assert_eq!(found.len(), 1, "only decode was measured");
        let same = found[0].same_answers.as_ref().unwrap();
        assert_eq!(
            (same.setting.as_str(), same.flags.as_str(), same.clear),
            ("bf16", "--dtype bf16", true)
        );
        assert!(same.cost.unwrap().same_bits);
        assert_eq!(
            (same.why.bytes_per_token, same.why.bytes_per_token_of_other),
            (269e6, Some(538e6))
        );
        assert_eq!(same.why.absent, ["avx512f", "avx512bf16", "amx-bf16"]);
        let any = found[0].any_answers.as_ref().unwrap();
        assert_eq!((any.setting.as_str(), any.cost.unwrap().kl_mean), ("q4_1", Some(0.02)));
    }

    #[test]
    fn a_reference_that_wins_is_compared_with_the_next() {
        let found = recommendations(&comparison(vec![
            setting("f32", "f32", 35.0, None, None),
            setting("bf16-emulated", "bf16-emulated", 7.0, Some(0.2), Some(false)),
            setting("bf16", "bf16", 30.0, Some(0.8), Some(true)),
        ]));
        let same = found[0].same_answers.as_ref().unwrap();
        assert_eq!((same.setting.as_str(), same.against.as_deref()), ("f32", Some("bf16")));
        assert!(
            (same.ratio.unwrap().ratio - 1.25).abs() < 1e-9 && same.clear && same.cost.is_none()
        );
        assert_eq!(found[0].any_answers, None);
    }

    #[test]
    fn auto_agrees_with_the_fastest_of_identical_answers_or_one_as_good() {
        let agrees = |auto: &str, ratio: f64, same: Option<bool>| {
            let mut c = comparison(vec![
                setting("f32", "f32", 35.0, None, None),
                setting("bf16", "bf16", 35.0 * ratio, Some(ratio), same),
            ]);
            c.auto = Some(Auto { dtype: auto.into(), reason: String::new() });
            auto_agrees(&c, &recommendations(&c))
        };
        assert_eq!(
            (agrees("bf16", 1.86, Some(true)), agrees("f32", 1.86, Some(true))),
            (Some(true), Some(false))
        );
        // 1.02 (0.99–1.05) is no lead at all, 1.07 (1.04–1.10) a slight one.
        assert_eq!(
            (agrees("f32", 1.02, Some(true)), agrees("f32", 1.07, Some(true))),
            (Some(true), Some(true))
        );
        // bf16 rounds this file: f32 is the only one with identical answers.
        assert_eq!(
            (agrees("f32", 1.86, Some(false)), agrees("bf16", 1.86, Some(false))),
            (Some(true), Some(false))
        );
        // Not measured, or answers not compared.
        assert_eq!((agrees("q4_1", 1.86, Some(true)), agrees("bf16", 1.86, None)), (None, None));
    }

    #[test]
    fn a_machine_that_others_use_gives_no_verdict() {
        let mut c = comparison(vec![
            setting("f32", "f32", 35.0, None, None),
            setting("bf16", "bf16", 65.0, Some(1.86), Some(true)),
        ]);
        c.busy = Some(crate::machine::Busy { others: 0.2, stolen: 0.04 });
        assert_eq!(recommendations(&c).len(), 1);
        c.busy = Some(crate::machine::Busy { others: 0.2, stolen: 0.06 });
        assert!(recommendations(&c).is_empty());
        assert_eq!(auto_agrees(&c, &[]), None);
    }

    #[test]
    fn nothing_is_said_of_answers_that_nobody_compared() {
        let found = recommendations(&comparison(vec![
            setting("f32", "f32", 35.0, None, None),
            setting("bf16", "bf16", 36.0, Some(1.01), None),
        ]));
        assert_eq!(found[0].same_answers, None);
        let any = found[0].any_answers.as_ref().unwrap();
        assert!(any.setting == "bf16" && !any.clear && any.cost.is_none());
    }
}

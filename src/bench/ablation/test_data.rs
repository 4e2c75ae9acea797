//! Results made up for tests: known ratios, known noise. `benches/gate_study` includes this file too, so it says `llmopt::`.

use llmopt::bench::ablation::answers::Tally;
use llmopt::bench::ablation::plan::{Config, Phases, Plan};
use llmopt::bench::ablation::result::*;
use llmopt::bench::statistics::Random;
use llmopt::bench::workload::WorkloadFacts;
use llmopt::machine::Machine;
use llmopt::pipeline::StageTimes;
use llmopt::roofline::ReferenceRates;

/// A bench of phase 1 with these rounds. `seconds` gives a configuration's time from its label; noise is uniform in ± `noise`.
pub fn result(rounds: usize, noise: f64, seed: u64, seconds: impl Fn(&str) -> f64) -> BenchResult {
    let plan = Plan::new(Phases::One, false, true);
    let mut random = Random::new(seed);
    let config = |c: &Config| ConfigFacts {
        label: c.label.clone(),
        on: c.set.iter().map(|o| o.name.to_string()).collect(),
        dtype: "f32".into(),
        reason: "asked for".into(),
        kernels: vec!["portable-f32".into()],
    };
    let mut sample = |config: usize| Sample {
        config,
        seconds: seconds(&plan.configs[config].label) * (1.0 + noise * (2.0 * random.unit() - 1.0)),
        prompt_tokens: 240,
        completion_tokens: 144,
        generated_tokens: if plan.configs[config].set.has("cache") { 120 } else { 144 },
        cached: u64::from(plan.configs[config].set.has("cache")),
        cached_rows: 0,
        early: 0,
        answers: 6,
        stages: StageTimes::default(),
        stolen: Some(0.0),
        others: Some(0.01),
    };
    let rounds = (0..rounds).map(|slice| Round {
        run: 0,
        slice,
        reference: ReferenceRates { read: 20e9, fma: 80e9 },
        samples: (0..plan.configs.len()).map(&mut sample).collect(),
    });
    let answers = plan.rows.iter().filter_map(|r| {
        let tally = Tally {
            pairs: 6,
            identical: 6,
            prefix: 6,
            agreed: 144,
            tokens: 144,
            ..Tally::default()
        };
        Some(RowAnswers { row: r.name.clone(), pair: r.alone?, tally })
    });
    let facts = Facts {
        quick: false,
        started: "2026-11-23T12:00:00Z".into(),
        commit: None,
        machine: Machine::detect(),
        limits: None,
        model: ModelFacts {
            name: "tiny".into(),
            digest: "abc".into(),
            parameters: Some(crate::model::Parameters {
                total: 30_532_122_624,
                active: 3_345_000_000,
            }),
        },
        workload: WorkloadFacts {
            name: "built-in".into(),
            digest: "def".into(),
            slices: 30,
            prompts: 180,
            repeats: 30,
            max_tokens: 24,
            temperature: 0.2,
        },
        threads: 2,
        batch: 3,
        seed: 0,
    };
    let hit = Hit {
        prompts: 3,
        generated_s: 1.5,
        repeated_s: 0.003,
        forward_passes: 0,
        tokens: Some(72),
        tokenize_s: Some(0.0006),
    };
    BenchResult {
        complete: true,
        command: vec!["llmopt".into(), "bench".into()],
        configs: plan.configs.iter().map(config).collect(),
        rounds: rounds.collect(),
        hit: Some(hit),
        answers: answers.collect(),
        ..BenchResult::begin(facts, &plan)
    }
}

/// The audit's ratios in the middle of their ranges.
pub fn as_expected(label: &str) -> f64 {
    match label {
        "baseline" => 4.0,
        "baseline + precision" | "baseline + greedy" => 4.0 / 1.4,
        "baseline + early-stop" => 4.0 / 1.25,
        "baseline + cache" => 3.3,
        _ => 1.0,
    }
}

//! Settings side by side, as plain data that files hold: measures, figures, settings, a [`Comparison`]. In: what `forward` and `figures`
//! measured. It formats nothing and prints nothing.

use super::quality::{Agreement, Quality};
use crate::bench::statistics::Interval;
use crate::machine::{Busy, Machine};
use crate::model::Parameters;
use crate::roofline::{Bound, Limits};
use serde::{Deserialize, Serialize};

/// Version of the file; another one is refused.
pub const SCHEMA: u32 = 1;

/// A measure of `compare.csv`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Seconds from start to ready.
    LoadS,
    /// Tokens a second through a prompt of 64.
    #[serde(rename = "prefill_64")]
    Prefill64,
    /// Tokens a second through a prompt of 512.
    #[serde(rename = "prefill_512")]
    Prefill512,
    /// Tokens a second of one sequence.
    #[serde(rename = "decode_1")]
    Decode1,
    /// Tokens a second of a whole batch.
    DecodeBatch,
    /// Median of the requests' milliseconds.
    LatencyP50Ms,
    /// 99th percentile of these.
    LatencyP99Ms,
    /// Generated tokens a second of the whole workload.
    WorkloadTokS,
    /// Resident memory's high-water mark.
    PeakRssBytes,
    /// Share of answers with the reference's ids.
    AnswersIdentical,
    /// Share of positions whose most probable token is the reference's.
    #[serde(rename = "top1_agreement")]
    Top1Agreement,
    /// Mean of the divergence from the reference's distribution over positions.
    KlMean,
    /// 99th percentile of it.
    KlP99,
    /// e to the mean negative log probability of the text's tokens.
    Perplexity,
}

impl Measure {
    /// All, in the order of the file.
    pub const ALL: [Measure; 14] = [
        Measure::LoadS,
        Measure::Prefill64,
        Measure::Prefill512,
        Measure::Decode1,
        Measure::DecodeBatch,
        Measure::LatencyP50Ms,
        Measure::LatencyP99Ms,
        Measure::WorkloadTokS,
        Measure::PeakRssBytes,
        Measure::AnswersIdentical,
        Measure::Top1Agreement,
        Measure::KlMean,
        Measure::KlP99,
        Measure::Perplexity,
    ];

    /// Those of the bare forward pass.
    pub const FORWARD: [Measure; 4] =
        [Measure::Prefill64, Measure::Prefill512, Measure::Decode1, Measure::DecodeBatch];

    /// As written in `compare.csv`.
    pub fn name(self) -> &'static str {
        match self {
            Measure::LoadS => "load_s",
            Measure::Prefill64 => "prefill_64",
            Measure::Prefill512 => "prefill_512",
            Measure::Decode1 => "decode_1",
            Measure::DecodeBatch => "decode_batch",
            Measure::LatencyP50Ms => "latency_p50_ms",
            Measure::LatencyP99Ms => "latency_p99_ms",
            Measure::WorkloadTokS => "workload_tok_s",
            Measure::PeakRssBytes => "peak_rss_bytes",
            Measure::AnswersIdentical => "answers_identical",
            Measure::Top1Agreement => "top1_agreement",
            Measure::KlMean => "kl_mean",
            Measure::KlP99 => "kl_p99",
            Measure::Perplexity => "perplexity",
        }
    }

    /// Its unit.
    pub fn unit(self) -> &'static str {
        match self {
            Measure::LoadS => "s",
            Measure::Prefill64
            | Measure::Prefill512
            | Measure::Decode1
            | Measure::DecodeBatch
            | Measure::WorkloadTokS => "tok/s",
            Measure::LatencyP50Ms | Measure::LatencyP99Ms => "ms",
            Measure::PeakRssBytes => "bytes",
            Measure::AnswersIdentical | Measure::Top1Agreement => "share",
            Measure::KlMean | Measure::KlP99 => "nats",
            Measure::Perplexity => "",
        }
    }

    /// Whether more of it is better.
    pub fn more_is_better(self) -> bool {
        matches!(self.unit(), "tok/s" | "share")
    }

    /// Whether it needs answers or distributions (and not only time and memory).
    pub fn is_quality(self) -> bool {
        self >= Measure::AnswersIdentical
    }
}

/// A figure of one setting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Which.
    pub measure: Measure,
    /// The value; `None` if it could not be measured (`note` says why).
    pub value: Option<f64>,
    /// Lower end of the 95 % interval, if there is one.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
    /// The most that the machine's measured rates allow, for rates.
    pub limit: Option<f64>,
    /// What sets that limit.
    pub bound: Option<Bound>,
    /// How much better than the reference (always "more is better": rates, and times and memory inverted), from paired rounds.
    pub against_reference: Option<Interval>,
    /// How many values, tokens or answers are behind it, and what limits it.
    pub note: String,
}

impl Figure {
    /// One without a value.
    pub fn missing(measure: Measure, why: impl Into<String>) -> Figure {
        Figure {
            measure,
            value: None,
            low: None,
            high: None,
            limit: None,
            bound: None,
            against_reference: None,
            note: why.into(),
        }
    }

    /// One with a value.
    pub fn of(measure: Measure, value: f64, note: impl Into<String>) -> Figure {
        Figure { value: Some(value), ..Figure::missing(measure, note) }
    }

    /// The part of the limit that is reached.
    pub fn share(&self) -> Option<f64> {
        Some(self.value? / self.limit?)
    }

    /// From one positive value a round; `reference` are the reference's values of the same rounds.
    pub fn of_rounds(measure: Measure, values: &[f64], reference: &[f64], note: String) -> Figure {
        let logs: Vec<f64> = values.iter().map(|v| v.ln()).collect();
        let mean = (logs.iter().sum::<f64>() / logs.len().max(1) as f64).exp();
        let interval = Interval::of_logs(&logs);
        let sign = if measure.more_is_better() { 1.0 } else { -1.0 };
        let paired: Vec<f64> =
            values.iter().zip(reference).map(|(v, r)| sign * (v / r).ln()).collect();
        Figure {
            value: (!logs.is_empty()).then_some(mean),
            low: interval.map(|i| i.low),
            high: interval.map(|i| i.high),
            against_reference: Interval::of_logs(&paired),
            ..Figure::missing(measure, note)
        }
    }
}

/// One setting and what was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MeasuredSetting {
    /// As typed.
    pub name: String,
    /// The flags to use for it with `run`.
    pub flags: String,
    /// Weights of its model; files of earlier versions do not say.
    #[serde(default)]
    pub parameters: Option<Parameters>,
    /// The storage that the model ran with.
    pub dtype: String,
    /// What chose it, and what was converted.
    pub dtype_reason: String,
    /// Worker threads.
    pub threads: usize,
    /// Most sequences decoded together.
    pub batch: usize,
    /// Names of the kernels.
    pub kernels: Vec<String>,
    /// Bytes of weights that one token of one sequence reads.
    pub bytes_per_token: f64,
    /// One for each [`Measure`] that was asked for, in their order.
    pub figures: Vec<Figure>,
    /// How its answers agree with the reference's.
    pub agreement: Option<Agreement>,
    /// How its distributions do.
    pub quality: Option<Quality>,
}

impl MeasuredSetting {
    /// The figure of a measure.
    pub fn figure(&self, measure: Measure) -> Option<&Figure> {
        self.figures.iter().find(|f| f.measure == measure)
    }

    /// Whether its answers are the reference's; `None` if nobody looked.
    pub fn same_answers(&self) -> Option<bool> {
        let answers = self.agreement.as_ref().map(|a| a.answers > 0 && a.identical == 1.0);
        let bits = self.quality.as_ref().map(|q| q.same_bits);
        match (answers, bits) {
            (None, None) => None,
            (a, b) => Some(a.unwrap_or(true) && b.unwrap_or(true)),
        }
    }
}

/// How much of each measure is run; smaller than asked for only if the time would not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    /// Steps of `decode_1`.
    pub decode: usize,
    /// Steps of `decode_batch`.
    pub batch: usize,
    /// Prompt tokens of `decode_batch`.
    pub prompt: usize,
}

impl Amounts {
    /// What the contract says.
    pub const FULL: Amounts = Amounts { decode: 128, batch: 64, prompt: 64 };
}

/// The whole of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Comparison {
    /// `compare`: tells this file from the other results.
    pub kind: String,
    /// [`SCHEMA`].
    pub schema: u32,
    /// This program's version.
    pub version: String,
    /// Commit of the source tree that the program lies in, `+` if changed, where known.
    pub commit: Option<String>,
    /// As typed.
    pub command: Vec<String>,
    /// UTC, `2026-11-23T12:00:00Z`.
    pub started: String,
    /// Name of the model.
    pub model: String,
    /// SHA-256 of its file.
    pub model_digest: String,
    /// The machine.
    pub machine: Machine,
    /// Its measured limits.
    pub limits: Limits,
    /// What else it did meanwhile.
    pub busy: Option<Busy>,
    /// Speed only, in a hurry.
    pub quick: bool,
    /// Rounds behind the forward measures.
    pub rounds: usize,
    /// What they ran.
    pub amounts: Amounts,
    /// What `--dtype auto` chooses here.
    pub auto: Option<Auto>,
    /// The settings; the first is the reference.
    pub settings: Vec<MeasuredSetting>,
    /// Remarks on how it was measured.
    pub notes: Vec<String>,
}

/// What `--dtype auto` chooses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Auto {
    /// The storage.
    pub dtype: String,
    /// Why.
    pub reason: String,
}

impl Comparison {
    /// The share of the machine that others took, if it was told.
    pub fn disturbance(&self) -> Option<f64> {
        self.busy.map(|b| b.stolen + b.others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::compare::figures::quality_figures;

    #[test]
    fn figures_of_rounds_by_hand() {
        let f = Figure::of_rounds(
            Measure::Decode1,
            &[20.0, 20.0, 20.0],
            &[10.0, 10.0, 10.0],
            String::new(),
        );
        assert!(
            (f.value.unwrap() - 20.0).abs() < 1e-9
                && (f.against_reference.unwrap().ratio - 2.0).abs() < 1e-9
        );
        // Half the time is twice as good.
        let f = Figure::of_rounds(Measure::LoadS, &[1.0, 1.0], &[2.0, 2.0], String::new());
        assert!((f.against_reference.unwrap().ratio - 2.0).abs() < 1e-9);
        let one = Figure::of_rounds(Measure::Decode1, &[20.0], &[10.0], String::new());
        assert!(one.value.is_some() && one.low.is_none() && one.against_reference.is_none());
    }

    #[test]
    fn names_are_those_of_the_file_and_of_json() {
        for m in Measure::ALL {
            assert_eq!(serde_json::to_value(m).unwrap(), m.name());
        }
        assert!(!Measure::PeakRssBytes.is_quality() && Measure::AnswersIdentical.is_quality());
    }

    #[test]
    fn same_answers_needs_both_kinds_of_evidence_that_there_are() {
        let agreement =
            |identical| Agreement { answers: 4, tokens: 9, identical, first_difference: None };
        let mut setting = MeasuredSetting {
            name: "x".into(),
            flags: String::new(),
            parameters: None,
            dtype: "f32".into(),
            dtype_reason: String::new(),
            threads: 1,
            batch: 1,
            kernels: vec![],
            bytes_per_token: 1.0,
            figures: quality_figures(Some(&agreement(1.0)), None),
            agreement: None,
            quality: None,
        };
        assert_eq!(setting.same_answers(), None);
        setting.agreement = Some(agreement(1.0));
        assert_eq!(setting.same_answers(), Some(true));
        setting.agreement = Some(agreement(0.75));
        assert_eq!(setting.same_answers(), Some(false));
        assert_eq!(setting.figure(Measure::AnswersIdentical).unwrap().value, Some(1.0));
    }
}

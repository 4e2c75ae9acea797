//! Settings side by side: what is measured of each, in which order, and the figures. In: decoders and what child processes report.
//! Out: a [`Comparison`], plain data that files hold. Rounds are interleaved: within a round every measure is taken of every setting before
//! the next measure, in seeded random order, so that ratios are of neighbours in time. It formats nothing and prints nothing.

use super::quality::{Agreement, Quality};
use super::speed;
use super::statistics::{Interval, Random, narrow_enough};
use crate::decoder::{DecodeError, Decoder};
use crate::machine::{Busy, Machine};
use crate::roofline::{Bound, Formats, Limits, Rates, Work};
use crate::units::TokenId;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Version of the file; another one is refused.
pub const SCHEMA: u32 = 1;

/// A measure of `compare.csv`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    LoadS,
    #[serde(rename = "prefill_64")]
    Prefill64,
    #[serde(rename = "prefill_512")]
    Prefill512,
    #[serde(rename = "decode_1")]
    Decode1,
    DecodeBatch,
    LatencyP50Ms,
    LatencyP99Ms,
    WorkloadTokS,
    PeakRssBytes,
    AnswersIdentical,
    #[serde(rename = "top1_agreement")]
    Top1Agreement,
    KlMean,
    KlP99,
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
    pub const FORWARD: [Measure; 4] = [Measure::Prefill64, Measure::Prefill512, Measure::Decode1, Measure::DecodeBatch];

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
            Measure::Prefill64 | Measure::Prefill512 | Measure::Decode1 | Measure::DecodeBatch | Measure::WorkloadTokS => "tok/s",
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
    fn of_rounds(measure: Measure, values: &[f64], reference: &[f64], note: String) -> Figure {
        let logs: Vec<f64> = values.iter().map(|v| v.ln()).collect();
        let mean = (logs.iter().sum::<f64>() / logs.len().max(1) as f64).exp();
        let interval = Interval::of_logs(&logs);
        let sign = if measure.more_is_better() { 1.0 } else { -1.0 };
        let paired: Vec<f64> = values.iter().zip(reference).map(|(v, r)| sign * (v / r).ln()).collect();
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
pub struct Setting {
    /// As typed.
    pub name: String,
    /// The flags to use for it with `run`.
    pub flags: String,
    /// Why it is here although nobody asked for it.
    pub added: Option<String>,
    /// The storage that the model ran with.
    pub dtype: String,
    /// What chose it, and what was converted.
    pub dtype_reason: String,
    /// For counting bytes.
    pub formats: Formats,
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

impl Setting {
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
    pub settings: Vec<Setting>,
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

/// A setting ready to run.
pub struct Subject {
    /// Its name.
    pub name: String,
    /// Its forward pass.
    pub decoder: Box<dyn Decoder>,
    /// Sequences of `decode_batch`.
    pub batch: usize,
    /// Worker threads.
    pub threads: usize,
    /// For counting bytes.
    pub formats: Formats,
}

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Time for all rounds together.
    pub budget: Duration,
    /// As many rounds as this, whatever the budget.
    pub least: usize,
    /// No more than this.
    pub most: usize,
    /// Of the order within rounds.
    pub seed: u64,
}

/// Rates of the forward measures: `rates[setting][measure]` is one value a round, in tokens/s; `Err` says why there is none.
pub struct Forward {
    /// Rounds that were run.
    pub rounds: usize,
    /// What they ran.
    pub amounts: Amounts,
    /// See the type.
    pub rates: Vec<[Result<Vec<f64>, String>; 4]>,
}

/// Tokens and a timing of one forward measure.
fn time_of(subject: &mut Subject, measure: Measure, amounts: Amounts) -> Result<(f64, f64), DecodeError> {
    let decoder = subject.decoder.as_mut();
    Ok(match measure {
        Measure::Prefill64 => (64.0, speed::prefill(decoder, 64)?),
        Measure::Prefill512 => (512.0, speed::prefill(decoder, 512)?),
        Measure::Decode1 => (amounts.decode as f64, speed::decode_one(decoder, amounts.decode)?),
        _ => {
            let seconds = speed::decode_batch(decoder, subject.batch, amounts.prompt, amounts.batch)?;
            ((subject.batch * amounts.batch) as f64, seconds)
        }
    })
}

/// Why a measure cannot be taken of a subject, if it cannot.
fn obstacle(subject: &Subject, measure: Measure, amounts: Amounts) -> Option<String> {
    let (capacity, context) = (subject.decoder.capacity(), subject.decoder.spec().context);
    let (sequences, positions) = match measure {
        Measure::Prefill64 => (1, 64),
        Measure::Prefill512 => (1, 512),
        Measure::Decode1 => (1, amounts.decode),
        _ => (subject.batch, amounts.prompt + amounts.batch),
    };
    if positions > context {
        return Some(format!("needs {positions} positions; the model has {context}"));
    }
    if sequences > capacity.slots || sequences * positions.next_multiple_of(16) > capacity.positions {
        return Some(format!(
            "needs keys and values for {sequences} × {positions} positions; there is room for {} (--kv-memory)",
            capacity.positions
        ));
    }
    None
}

/// Runs the rounds. `progress` hears (rounds done, rounds expected).
pub fn forward(subjects: &mut [Subject], plan: &Plan, progress: &mut dyn FnMut(usize, usize)) -> Result<Forward, DecodeError> {
    let start = Instant::now();
    let context = subjects.iter().map(|s| s.decoder.spec().context).min().unwrap_or(0);
    let mut amounts = Amounts::FULL;
    amounts.decode = amounts.decode.min(context);
    if amounts.prompt + amounts.batch > context {
        amounts = Amounts { prompt: context / 2, batch: context / 2, ..amounts };
    }
    let mut estimate = pilot(subjects, amounts)?;
    let budget = plan.budget.saturating_sub(start.elapsed()).as_secs_f64();
    let least = Amounts { decode: amounts.decode.min(16), batch: amounts.batch.min(8), prompt: amounts.prompt.min(16) };
    while estimate.round(amounts) * plan.least as f64 > budget && amounts != least {
        amounts = Amounts {
            decode: (amounts.decode / 2).max(least.decode),
            batch: (amounts.batch / 2).max(least.batch),
            prompt: (amounts.prompt / 2).max(least.prompt),
        };
    }
    let mut rates: Vec<[Result<Vec<f64>, String>; 4]> =
        subjects.iter().map(|s| Measure::FORWARD.map(|m| obstacle(s, m, amounts).map_or(Ok(Vec::new()), Err))).collect();
    let mut random = Random::new(plan.seed);
    let mut rounds = 0;
    loop {
        let begin = Instant::now();
        for (m, measure) in Measure::FORWARD.into_iter().enumerate() {
            let mut order: Vec<usize> = (0..subjects.len()).collect();
            random.shuffle(&mut order);
            for s in order {
                if let Ok(values) = &mut rates[s][m] {
                    let (tokens, seconds) = time_of(&mut subjects[s], measure, amounts)?;
                    values.push(tokens / seconds.max(1e-9));
                }
            }
        }
        rounds += 1;
        estimate.took(begin.elapsed());
        let left = plan.budget.saturating_sub(start.elapsed()).as_secs_f64();
        let more = (left / estimate.last).floor() as usize;
        progress(rounds, (rounds + more).clamp(plan.least, plan.most));
        let logs: Vec<Vec<f64>> = rates[0]
            .iter()
            .enumerate()
            .flat_map(|(m, reference)| rates[1..].iter().map(move |r| (reference, &r[m])))
            .filter_map(|(a, b)| Some(a.as_ref().ok()?.iter().zip(b.as_ref().ok()?).map(|(a, b)| (b / a).ln()).collect()))
            .collect();
        let narrow = !logs.is_empty() && narrow_enough(logs.iter().map(Vec::as_slice), rounds);
        if rounds >= plan.least && (rounds >= plan.most || more == 0 || narrow) {
            return Ok(Forward { rounds, amounts, rates });
        }
    }
}

/// Seconds that a round will take.
struct Estimate {
    prefill: f64,
    step: f64,
    batch_prompt: f64,
    batch_step: f64,
    last: f64,
}

impl Estimate {
    fn round(&self, amounts: Amounts) -> f64 {
        self.prefill + self.step * amounts.decode as f64 + self.batch_prompt + self.batch_step * amounts.batch as f64
    }

    fn took(&mut self, round: Duration) {
        self.last = round.as_secs_f64().max(1e-6);
    }
}

/// A little of everything, which also warms up; what cannot run is left out.
fn pilot(subjects: &mut [Subject], amounts: Amounts) -> Result<Estimate, DecodeError> {
    let mut estimate = Estimate { prefill: 0.0, step: 0.0, batch_prompt: 0.0, batch_step: 0.0, last: 0.0 };
    for s in subjects {
        let mut per_token = 0.0;
        if obstacle(s, Measure::Prefill64, amounts).is_none() {
            per_token = speed::prefill(s.decoder.as_mut(), 64)? / 64.0;
            estimate.prefill += 64.0 * per_token;
        }
        if obstacle(s, Measure::Prefill512, amounts).is_none() {
            estimate.prefill += 512.0 * per_token;
        }
        if obstacle(s, Measure::Decode1, amounts).is_none() {
            estimate.step += speed::decode_one(s.decoder.as_mut(), 4.min(amounts.decode))? / 4.min(amounts.decode).max(1) as f64;
        }
        if obstacle(s, Measure::DecodeBatch, amounts).is_none() {
            estimate.batch_prompt += per_token * (s.batch * amounts.prompt) as f64;
            estimate.batch_step += speed::decode_batch(s.decoder.as_mut(), s.batch, 1, 2.min(amounts.batch))? / 2.0;
        }
    }
    Ok(estimate)
}

/// The most that these rates allow for a measure.
pub fn limit_of(
    measure: Measure,
    spec: &crate::model::ModelSpec,
    formats: Formats,
    batch: usize,
    amounts: Amounts,
    rates: &Rates,
    cached: f64,
) -> Option<(f64, Bound)> {
    let work = match measure {
        Measure::Prefill64 => Work::prefill(spec, formats, 64),
        Measure::Prefill512 => Work::prefill(spec, formats, 512),
        Measure::Decode1 => Work::decode(spec, formats, amounts.decode),
        Measure::DecodeBatch => Work::decode_batch(spec, formats, batch, amounts.prompt, amounts.batch),
        _ => return None,
    };
    work.limit(rates, cached)
}

impl Forward {
    /// The figures of a setting, beside their limits.
    pub fn figures(&self, setting: usize, subject: &Subject, limits: &Limits, cached: f64) -> Vec<Figure> {
        Measure::FORWARD
            .iter()
            .enumerate()
            .map(|(m, &measure)| match &self.rates[setting][m] {
                Err(why) => Figure::missing(measure, why.as_str()),
                Ok(values) => {
                    let empty = Vec::new();
                    let reference = self.rates[0][m].as_ref().unwrap_or(&empty);
                    let what = match measure {
                        Measure::Decode1 => format!("{} steps", self.amounts.decode),
                        Measure::DecodeBatch => format!(
                            "{} sequences × {} steps after prompts of {} tokens",
                            subject.batch, self.amounts.batch, self.amounts.prompt
                        ),
                        Measure::Prefill64 => "64 tokens".into(),
                        _ => "512 tokens".into(),
                    };
                    let mut figure = Figure::of_rounds(measure, values, reference, format!("{what}, {} rounds", values.len()));
                    if setting == 0 {
                        figure.against_reference = None;
                    }
                    let limit = limits.at(subject.threads).and_then(|rates| {
                        limit_of(measure, subject.decoder.spec(), subject.formats, subject.batch, self.amounts, rates, cached)
                    });
                    figure.limit = limit.map(|l| l.0);
                    figure.bound = limit.map(|l| l.1);
                    figure
                }
            })
            .collect()
    }
}

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
pub fn child_figures(reports: &[ChildReport], reference: &[ChildReport], is_reference: bool) -> Vec<Figure> {
    let column =
        |reports: &[ChildReport], f: &dyn Fn(&ChildReport) -> Option<f64>| reports.iter().filter_map(f).collect::<Vec<_>>();
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
            return Figure::missing(measure, format!("{answers} answers; this percentile needs {needed}"));
        }
        figure(measure, format!("{answers} answers, {processes}"), &|r| percentile(r, p))
    };
    vec![
        figure(Measure::LoadS, format!("{processes}, the file in the page cache"), &|r| Some(r.load_s)),
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
        let first = a.first_difference.map_or(String::new(), |p| format!(", first difference at token {p} (median)"));
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

impl Comparison {
    /// The share of the machine that others took, if it was told.
    pub fn disturbance(&self) -> Option<f64> {
        self.busy.map(|b| b.stolen + b.others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::Capacity;
    use crate::decoder::fake::FakeDecoder;
    use crate::kernels::Format;

    fn subject(name: &str, positions: usize) -> Subject {
        let decoder = Box::new(FakeDecoder::new(23, Capacity { slots: 4, positions, rows: 64 }));
        Subject { name: name.into(), decoder, batch: 2, threads: 1, formats: Formats::all(Format::F32) }
    }

    const PLAN: Plan = Plan { budget: Duration::ZERO, least: 2, most: 4, seed: 1 };

    #[test]
    fn every_setting_gets_every_measure_in_every_round() {
        let mut subjects = [subject("a", 2048), subject("b", 2048)];
        let mut heard = Vec::new();
        let found = forward(&mut subjects, &PLAN, &mut |done, all| heard.push((done, all))).unwrap();
        assert_eq!((found.rounds, heard), (2, vec![(1, 2), (2, 2)]));
        for rates in &found.rates {
            assert!(rates.iter().all(|r| r.as_ref().unwrap().len() == 2 && r.as_ref().unwrap().iter().all(|v| *v > 0.0)));
        }
        // No time at all: as little as may be.
        assert_eq!(found.amounts, Amounts { decode: 16, batch: 8, prompt: 16 });
        let limits = Limits::measure(1, crate::roofline::Effort::Quick);
        let figures = found.figures(1, &subjects[1], &limits, 0.0);
        assert_eq!(figures.iter().map(|f| f.measure).collect::<Vec<_>>(), Measure::FORWARD);
        for f in &figures {
            let i = f.against_reference.unwrap();
            assert!(f.low.unwrap() <= f.value.unwrap() && f.value.unwrap() <= f.high.unwrap() && i.low <= i.ratio, "{f:?}");
            assert!(f.limit.unwrap() > 0.0 && f.share().unwrap() > 0.0, "{f:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_said_and_the_rest_is_measured() {
        let mut subjects = [subject("a", 256)];
        let found = forward(&mut subjects, &Plan { budget: Duration::from_secs(9), ..PLAN }, &mut |_, _| {}).unwrap();
        let [p64, p512, d1, batch] = &found.rates[0];
        assert!(p64.is_ok() && d1.is_ok() && batch.is_ok());
        assert!(p512.as_ref().unwrap_err().contains("the model has 256"));
        let mut crowded = [Subject { batch: 5, ..subject("a", 2048) }];
        let found = forward(&mut crowded, &PLAN, &mut |_, _| {}).unwrap();
        assert!(found.rates[0][3].as_ref().unwrap_err().contains("--kv-memory"));
    }

    #[test]
    fn figures_of_rounds_by_hand() {
        let f = Figure::of_rounds(Measure::Decode1, &[20.0, 20.0, 20.0], &[10.0, 10.0, 10.0], String::new());
        assert!((f.value.unwrap() - 20.0).abs() < 1e-9 && (f.against_reference.unwrap().ratio - 2.0).abs() < 1e-9);
        // Half the time is twice as good.
        let f = Figure::of_rounds(Measure::LoadS, &[1.0, 1.0], &[2.0, 2.0], String::new());
        assert!((f.against_reference.unwrap().ratio - 2.0).abs() < 1e-9);
        let one = Figure::of_rounds(Measure::Decode1, &[20.0], &[10.0], String::new());
        assert!(one.value.is_some() && one.low.is_none() && one.against_reference.is_none());
    }

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
        assert!(of(Measure::LatencyP99Ms).value.is_none() && of(Measure::LatencyP99Ms).note.contains("1000"));
        assert!((of(Measure::PeakRssBytes).value.unwrap() - 1000.0).abs() < 1e-6);
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
        let agreement = |identical| Agreement { answers: 4, tokens: 9, identical, first_difference: None };
        let mut setting = Setting {
            name: "x".into(),
            flags: String::new(),
            added: None,
            dtype: "f32".into(),
            dtype_reason: String::new(),
            formats: Formats::all(Format::F32),
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

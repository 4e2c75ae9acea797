//! Bare forward passes of settings side by side. In: decoders. Out: [`Forward`], rates by setting, measure and round. Within a round every
//! measure is taken of every setting before the next measure, in seeded random order, so that ratios are of neighbours in time.

use super::comparison::{Amounts, Figure, Measure};
use crate::bench::speed;
use crate::bench::statistics::{Random, narrow_enough};
use crate::decoder::{DecodeError, Decoder};
use crate::roofline::{Bound, Formats, Limits, Rates, Work};
use std::time::{Duration, Instant};

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
pub struct ForwardPlan {
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
fn time_of(
    subject: &mut Subject,
    measure: Measure,
    amounts: Amounts,
) -> Result<(f64, f64), DecodeError> {
    let decoder = subject.decoder.as_mut();
    Ok(match measure {
        Measure::Prefill64 => (64.0, speed::prefill(decoder, 64)?),
        Measure::Prefill512 => (512.0, speed::prefill(decoder, 512)?),
        Measure::Decode1 => (amounts.decode as f64, speed::decode_one(decoder, amounts.decode)?),
        _ => {
            let seconds =
                speed::decode_batch(decoder, subject.batch, amounts.prompt, amounts.batch)?;
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
    if sequences > capacity.slots || sequences * positions.next_multiple_of(16) > capacity.positions
    {
        return Some(format!(
            "needs keys and values for {sequences} × {positions} positions; there is room for {} (--kv-memory)",
            capacity.positions
        ));
    }
    None
}

/// Runs the rounds. `progress` hears (rounds done, rounds expected).
pub fn forward(
    subjects: &mut [Subject],
    plan: &ForwardPlan,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Forward, DecodeError> {
    let start = Instant::now();
    let context = subjects.iter().map(|s| s.decoder.spec().context).min().unwrap_or(0);
    let mut amounts = Amounts::FULL;
    amounts.decode = amounts.decode.min(context);
    if amounts.prompt + amounts.batch > context {
        amounts = Amounts { prompt: context / 2, batch: context / 2, ..amounts };
    }
    let mut estimate = pilot(subjects, amounts)?;
    let budget = plan.budget.saturating_sub(start.elapsed()).as_secs_f64();
    let least = Amounts {
        decode: amounts.decode.min(16),
        batch: amounts.batch.min(8),
        prompt: amounts.prompt.min(16),
    };
    while estimate.round(amounts) * plan.least as f64 > budget && amounts != least {
        amounts = Amounts {
            decode: (amounts.decode / 2).max(least.decode),
            batch: (amounts.batch / 2).max(least.batch),
            prompt: (amounts.prompt / 2).max(least.prompt),
        };
    }
    let mut rates: Vec<[Result<Vec<f64>, String>; 4]> = subjects
        .iter()
        .map(|s| Measure::FORWARD.map(|m| obstacle(s, m, amounts).map_or(Ok(Vec::new()), Err)))
        .collect();
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
            .filter_map(|(a, b)| {
                Some(
                    a.as_ref()
                        .ok()?
                        .iter()
                        .zip(b.as_ref().ok()?)
                        .map(|(a, b)| (b / a).ln())
                        .collect(),
                )
            })
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
        self.prefill
            + self.step * amounts.decode as f64
            + self.batch_prompt
            + self.batch_step * amounts.batch as f64
    }

    fn took(&mut self, round: Duration) {
        self.last = round.as_secs_f64().max(1e-6);
    }
}

/// A little of everything, which also warms up; what cannot run is left out.
fn pilot(subjects: &mut [Subject], amounts: Amounts) -> Result<Estimate, DecodeError> {
    let mut estimate =
        Estimate { prefill: 0.0, step: 0.0, batch_prompt: 0.0, batch_step: 0.0, last: 0.0 };
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
            estimate.step += speed::decode_one(s.decoder.as_mut(), 4.min(amounts.decode))?
                / 4.min(amounts.decode).max(1) as f64;
        }
        if obstacle(s, Measure::DecodeBatch, amounts).is_none() {
            estimate.batch_prompt += per_token * (s.batch * amounts.prompt) as f64;
            estimate.batch_step +=
                speed::decode_batch(s.decoder.as_mut(), s.batch, 1, 2.min(amounts.batch))? / 2.0;
        }
    }
    Ok(estimate)
}

/// The most that these rates allow for a measure.
pub fn limit_of(
    measure: Measure,
    spec: &crate::model::ModelSpec,
    formats: &Formats,
    batch: usize,
    amounts: Amounts,
    rates: &Rates,
    cached: f64,
) -> Option<(f64, Bound)> {
    let work = match measure {
        Measure::Prefill64 => Work::prefill(spec, formats, 64),
        Measure::Prefill512 => Work::prefill(spec, formats, 512),
        Measure::Decode1 => Work::decode(spec, formats, amounts.decode),
        Measure::DecodeBatch => {
            Work::decode_batch(spec, formats, batch, amounts.prompt, amounts.batch)
        }
        _ => return None,
    };
    work.limit(rates, cached)
}

impl Forward {
    /// The figures of a setting, beside their limits.
    pub fn figures(
        &self,
        setting: usize,
        subject: &Subject,
        limits: &Limits,
        cached: f64,
    ) -> Vec<Figure> {
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
                    let mut figure = Figure::of_rounds(
                        measure,
                        values,
                        reference,
                        format!("{what}, {} rounds", values.len()),
                    );
                    if setting == 0 {
                        figure.against_reference = None;
                    }
                    let limit = limits.at(subject.threads).and_then(|rates| {
                        limit_of(
                            measure,
                            subject.decoder.spec(),
                            &subject.formats,
                            subject.batch,
                            self.amounts,
                            rates,
                            cached,
                        )
                    });
                    figure.limit = limit.map(|l| l.0);
                    figure.bound = limit.map(|l| l.1);
                    figure
                }
            })
            .collect()
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
        Subject {
            name: name.into(),
            decoder,
            batch: 2,
            threads: 1,
            formats: Formats::all(Format::F32),
        }
    }

    const PLAN: ForwardPlan = ForwardPlan { budget: Duration::ZERO, least: 2, most: 4, seed: 1 };

    #[test]
    fn every_setting_gets_every_measure_in_every_round() {
        let mut subjects = [subject("a", 2048), subject("b", 2048)];
        let mut heard = Vec::new();
        let found =
            forward(&mut subjects, &PLAN, &mut |done, all| heard.push((done, all))).unwrap();
        assert_eq!((found.rounds, heard), (2, vec![(1, 2), (2, 2)]));
        for rates in &found.rates {
            assert!(
                rates.iter().all(|r| r.as_ref().unwrap().len() == 2
                    && r.as_ref().unwrap().iter().all(|v| *v > 0.0))
            );
        }
        // No time at all: as little as may be.
        assert_eq!(found.amounts, Amounts { decode: 16, batch: 8, prompt: 16 });
        let limits = Limits::measure(1, crate::roofline::Effort::Quick);
        let figures = found.figures(1, &subjects[1], &limits, 0.0);
        assert_eq!(figures.iter().map(|f| f.measure).collect::<Vec<_>>(), Measure::FORWARD);
        for f in &figures {
            let i = f.against_reference.unwrap();
            assert!(
                f.low.unwrap() <= f.value.unwrap()
                    && f.value.unwrap() <= f.high.unwrap()
                    && i.low <= i.ratio,
                "{f:?}"
            );
            assert!(f.limit.unwrap() > 0.0 && f.share().unwrap() > 0.0, "{f:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_said_and_the_rest_is_measured() {
        let mut subjects = [subject("a", 256)];
        let found = forward(
            &mut subjects,
            &ForwardPlan { budget: Duration::from_secs(9), ..PLAN },
            &mut |_, _| {},
        )
        .unwrap();
        let [p64, p512, d1, batch] = &found.rates[0];
        assert!(p64.is_ok() && d1.is_ok() && batch.is_ok());
        assert!(p512.as_ref().unwrap_err().contains("the model has 256"));
        let mut crowded = [Subject { batch: 5, ..subject("a", 2048) }];
        let found = forward(&mut crowded, &PLAN, &mut |_, _| {}).unwrap();
        assert!(found.rates[0][3].as_ref().unwrap_err().contains("--kv-memory"));
    }
}

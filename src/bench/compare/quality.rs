//! How far the next-token distributions of a setting are from those of the reference, over the same text. In: decoders, token ids.
//! Out: per predicted token its negative log-likelihood, the divergence from the reference and whether both put the same token first.
//! It tokenizes nothing, times nothing and judges nothing.

use crate::decoder::{Batch, DecodeError, Decoder, LogitsOutput, LogitsRequest, Segment};
use crate::units::TokenId;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Fewest predicted tokens that a comparison of quality may rest on.
pub const MIN_TOKENS: usize = 4096;

/// Most tokens of one window; the first is not predicted.
const WINDOW: usize = 513;

/// Text cut into windows that are each read from an empty context, so that any model can read any amount of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows(Vec<Vec<TokenId>>);

impl Windows {
    /// As many windows as [`MIN_TOKENS`] predictions need, of at most `context` tokens each. The error says how many tokens are missing.
    pub fn cut(ids: &[TokenId], context: usize) -> Result<Windows, String> {
        let length = WINDOW.min(context);
        if length < 2 {
            return Err(format!(
                "a context of {context} positions is too short to predict anything"
            ));
        }
        let count = MIN_TOKENS.div_ceil(length - 1);
        if ids.len() < count * length {
            return Err(format!(
                "has {} tokens; {} are needed ({count} windows of {length}, {MIN_TOKENS} predictions)",
                ids.len(),
                count * length
            ));
        }
        Ok(Windows(ids.chunks_exact(length).take(count).map(<[TokenId]>::to_vec).collect()))
    }

    /// Tokens that are predicted.
    pub fn predictions(&self) -> usize {
        self.0.iter().map(|w| w.len() - 1).sum()
    }
}

/// What one predicted token shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenComparison {
    /// −ln p of the token that came, by this setting.
    pub nll: f64,
    /// Σ p ln (p / q), p the reference's distribution, q this setting's; in nats.
    pub kl: f64,
    /// Both put the same token first (ties to the lowest id).
    pub same_top: bool,
}

/// Compares two rows of scores. The same bits have a divergence of exactly 0.
pub fn compare_rows(reference: &[f32], other: &[f32], next: TokenId) -> TokenComparison {
    let q = log_sum_exp(other);
    let nll = q - other[next as usize] as f64;
    if reference == other {
        return TokenComparison { nll, kl: 0.0, same_top: true };
    }
    let p = log_sum_exp(reference);
    let kl: f64 = reference
        .iter()
        .zip(other)
        .map(|(&a, &b)| {
            let ln_p = a as f64 - p;
            ln_p.exp() * (ln_p - (b as f64 - q))
        })
        .sum();
    // Rounding can take a divergence of nothing a hair below 0.
    TokenComparison { nll, kl: kl.max(0.0), same_top: argmax(reference) == argmax(other) }
}

/// ln Σ exp(score), without overflow.
fn log_sum_exp(scores: &[f32]) -> f64 {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    most + scores.iter().map(|&s| (s as f64 - most).exp()).sum::<f64>().ln()
}

fn argmax(scores: &[f32]) -> Option<usize> {
    (0..scores.len()).reduce(|best, i| if scores[i] > scores[best] { i } else { best })
}

/// A setting's rows summed up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Predicted tokens behind every figure.
    pub tokens: usize,
    /// Share of tokens where reference and setting put the same token first.
    pub top1_agreement: f64,
    /// Mean divergence, nats.
    pub kl_mean: f64,
    /// Standard error of it.
    pub kl_mean_se: f64,
    /// The 99 % quantile of the divergence, nats.
    pub kl_p99: f64,
    /// exp(mean negative log-likelihood).
    pub perplexity: f64,
    /// Its standard error.
    pub perplexity_se: f64,
    /// Perplexity divided by the reference's.
    pub perplexity_ratio: f64,
    /// Standard error of that ratio: paired token by token, so far smaller than the two perplexities' own.
    pub perplexity_ratio_se: f64,
    /// Every score was the same, bit for bit.
    pub same_bits: bool,
}

impl Quality {
    /// Sums up a setting's rows; `reference` are the reference's own.
    pub fn of(rows: &[TokenComparison], reference: &[TokenComparison]) -> Quality {
        let column = |f: fn(&TokenComparison) -> f64| rows.iter().map(f).collect::<Vec<f64>>();
        let kl = column(|r| r.kl);
        let (kl_mean, kl_mean_se) = mean_and_se(&kl);
        let (nll, nll_se) = mean_and_se(&column(|r| r.nll));
        let (delta, delta_se) = mean_and_se(
            &rows.iter().zip(reference).map(|(a, b)| a.nll - b.nll).collect::<Vec<f64>>(),
        );
        Quality {
            tokens: rows.len(),
            top1_agreement: rows.iter().filter(|r| r.same_top).count() as f64
                / rows.len().max(1) as f64,
            kl_mean,
            kl_mean_se,
            kl_p99: quantile(kl.clone(), 0.99),
            perplexity: nll.exp(),
            // d exp(x) = exp(x) dx
            perplexity_se: nll.exp() * nll_se,
            perplexity_ratio: delta.exp(),
            perplexity_ratio_se: delta.exp() * delta_se,
            same_bits: kl.iter().all(|k| *k == 0.0) && delta == 0.0 && delta_se == 0.0,
        }
    }
}

/// Mean and standard error of the mean.
fn mean_and_se(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, (variance / n).sqrt())
}

/// The smallest value that at least this share of the values does not exceed.
fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (share * values.len() as f64).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// Reads the windows with every decoder, the first being the reference, and returns each one's rows. `progress` hears predictions done so far.
pub fn measure(
    decoders: &mut [&mut dyn Decoder],
    windows: &Windows,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<TokenComparison>>, DecodeError> {
    let rows = decoders.iter().map(|d| d.capacity().rows).min().unwrap_or(1).clamp(1, 64);
    let mut found: Vec<Vec<TokenComparison>> = vec![Vec::new(); decoders.len()];
    let mut done = 0;
    for window in &windows.0 {
        let mut slots = Vec::new();
        for decoder in decoders.iter_mut() {
            let opened = decoder.open(window, window.len(), false);
            slots.push(
                opened
                    .ok_or_else(|| {
                        DecodeError::Broken(
                            "no room for a window of text; raise --kv-memory".into(),
                        )
                    })?
                    .slot,
            );
        }
        for start in (0..window.len()).step_by(rows) {
            let end = (start + rows).min(window.len());
            let mut scores = Vec::new();
            for (decoder, &slot) in decoders.iter_mut().zip(&slots) {
                let segment = Segment {
                    slot,
                    start,
                    tokens: 0..end - start,
                    logits: LogitsRequest::AllLogits,
                    padding_rows: 0,
                    padded_context: 0,
                };
                let batch = Batch { tokens: window[start..end].to_vec(), segments: vec![segment] };
                let mut outputs = Vec::new();
                decoder.forward(&batch, &mut outputs)?;
                match outputs.pop() {
                    Some(LogitsOutput::Logits(s))
                        if s.len() == (end - start) * decoder.spec().vocab =>
                    {
                        scores.push(s)
                    }
                    _ => {
                        return Err(DecodeError::Broken(
                            "scores were asked for and did not come".into(),
                        ));
                    }
                }
            }
            let next: Vec<TokenId> = window[start + 1..(end + 1).min(window.len())].to_vec();
            let vocab = scores[0].len() / (end - start);
            for (rows, theirs) in found.iter_mut().zip(&scores) {
                let compared: Vec<TokenComparison> = next
                    .par_iter()
                    .enumerate()
                    .map(|(i, &token)| {
                        let range = i * vocab..(i + 1) * vocab;
                        compare_rows(&scores[0][range.clone()], &theirs[range], token)
                    })
                    .collect();
                rows.extend(compared);
            }
            done += next.len();
            progress(done);
        }
        for (decoder, slot) in decoders.iter_mut().zip(slots) {
            decoder.close(slot);
        }
    }
    Ok(found)
}

/// How far one list of answers agrees with the reference's, answer by answer, by token ids.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// Answers compared.
    pub answers: usize,
    /// Tokens in the reference's answers.
    pub tokens: usize,
    /// Share of answers with the same ids.
    pub identical: f64,
    /// Of the answers that differ, the median position (from 0) of the first different token.
    pub first_difference: Option<usize>,
}

impl Agreement {
    /// Compares answers in the same order.
    pub fn of(reference: &[Vec<TokenId>], other: &[Vec<TokenId>]) -> Agreement {
        let mut positions: Vec<usize> = reference
            .iter()
            .zip(other)
            .filter(|(a, b)| a != b)
            .map(|(a, b)| a.iter().zip(b).position(|(x, y)| x != y).unwrap_or(a.len().min(b.len())))
            .collect();
        positions.sort_unstable();
        let answers = reference.len().min(other.len());
        Agreement {
            answers,
            tokens: reference.iter().map(Vec::len).sum(),
            identical: (answers - positions.len()) as f64 / answers.max(1) as f64,
            first_difference: positions.get(positions.len() / 2).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::Capacity;
    use crate::decoder::fake::FakeDecoder;

    #[test]
    fn divergence_and_likelihood_by_hand() {
        // p = (1/2, 1/2), q = (1/4, 3/4): KL = ½ ln 2 + ½ ln ⅔ = ½ ln 4/3; the token 1 has −ln ¾.
        let row = compare_rows(&[0.0, 0.0], &[0.0, 3f32.ln()], 1);
        assert!((row.kl - 0.5 * (4.0f64 / 3.0).ln()).abs() < 1e-7, "{row:?}");
        assert!((row.nll - (4.0f64 / 3.0).ln()).abs() < 1e-7, "{row:?}");
        assert!(!row.same_top);
        // Scores shifted by a constant are the same distribution.
        let row = compare_rows(&[1.0, 2.0, 3.0], &[101.0, 102.0, 103.0], 0);
        assert!(row.kl < 1e-12 && row.same_top, "{row:?}");
        assert_eq!(compare_rows(&[1.0, 2.0], &[1.0, 2.0], 0).kl, 0.0);
        // Large scores do not overflow.
        assert!(compare_rows(&[3e38, 0.0], &[0.0, 3e38], 0).kl.is_finite());
    }

    #[test]
    fn perplexity_of_a_fair_die_is_its_sides() {
        let rows: Vec<TokenComparison> =
            (0..600).map(|i| compare_rows(&[0.5; 6], &[0.5; 6], i % 6)).collect();
        let quality = Quality::of(&rows, &rows);
        assert!(
            (quality.perplexity - 6.0).abs() < 1e-9 && quality.perplexity_se < 1e-9,
            "{quality:?}"
        );
        assert!(
            quality.same_bits
                && quality.kl_mean == 0.0
                && quality.top1_agreement == 1.0
                && quality.tokens == 600
        );
        assert_eq!((quality.perplexity_ratio, quality.perplexity_ratio_se), (1.0, 0.0));
    }

    #[test]
    fn sums_by_hand() {
        let row = |nll: f64, kl: f64, same_top| TokenComparison { nll, kl, same_top };
        let rows = [row(1.0, 0.0, true), row(3.0, 0.4, false)];
        let reference = [row(1.0, 0.0, true), row(2.0, 0.0, true)];
        let q = Quality::of(&rows, &reference);
        // Mean 2, variance 2, standard error √(2/2) = 1.
        assert!(
            (q.perplexity - 2f64.exp()).abs() < 1e-12
                && (q.perplexity_se - 2f64.exp()).abs() < 1e-12,
            "{q:?}"
        );
        assert!(
            (q.perplexity_ratio - 0.5f64.exp()).abs() < 1e-12
                && (q.perplexity_ratio_se - 0.5 * 0.5f64.exp()).abs() < 1e-12
        );
        assert!(
            (q.kl_mean - 0.2).abs() < 1e-12
                && q.kl_p99 == 0.4
                && q.top1_agreement == 0.5
                && !q.same_bits,
            "{q:?}"
        );
        assert_eq!(quantile((1..=1000).map(f64::from).collect(), 0.99), 990.0);
    }

    #[test]
    fn windows_hold_enough_predictions_or_say_what_is_missing() {
        let ids: Vec<TokenId> = (0..5000).collect();
        let windows = Windows::cut(&ids, 8192).unwrap();
        assert_eq!((windows.0.len(), windows.predictions()), (8, 4096));
        assert_eq!(windows.0[1][0], 513);
        assert!(Windows::cut(&ids, 33).unwrap().predictions() >= MIN_TOKENS);
        assert!(
            Windows::cut(&ids[..4000], 8192)
                .unwrap_err()
                .contains("has 4000 tokens; 4104 are needed")
        );
        assert!(Windows::cut(&ids, 1).is_err());
    }

    #[test]
    fn every_prediction_is_of_the_next_token_whatever_the_chunks() {
        let ids: Vec<TokenId> = (0..4400).map(|i| (i * i + 3) % 11).collect();
        let windows = Windows::cut(&ids, 100).unwrap();
        let decoder = |rows| FakeDecoder::new(11, Capacity { slots: 1, positions: 128, rows });
        let (mut a, mut b) = (decoder(7), decoder(64));
        let mut last = 0;
        let found = measure(&mut [&mut a, &mut b], &windows, &mut |done| last = done).unwrap();
        assert_eq!(
            (found[0].len(), found[1].len(), last),
            (windows.predictions(), windows.predictions(), windows.predictions())
        );
        assert_eq!(found[0], found[1]);
        let quality = Quality::of(&found[1], &found[0]);
        assert!(quality.same_bits && quality.tokens >= MIN_TOKENS, "{quality:?}");
        // The first window's third row by hand: context of three tokens, then the fourth token.
        let expected = compare_rows(&a.scores(&ids[..3]), &a.scores(&ids[..3]), ids[3]);
        assert_eq!(found[0][2], expected);
    }

    #[test]
    fn agreement_of_answers() {
        let a = vec![vec![1, 2, 3], vec![4, 5], vec![6], vec![7, 8]];
        let b = vec![vec![1, 2, 3], vec![4, 9], vec![6, 1], vec![7, 8]];
        let found = Agreement::of(&a, &b);
        assert_eq!(
            found,
            Agreement { answers: 4, tokens: 8, identical: 0.5, first_difference: Some(1) }
        );
        assert_eq!(Agreement::of(&a, &a).first_difference, None);
    }
}

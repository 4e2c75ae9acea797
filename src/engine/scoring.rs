//! What becomes of scores besides the choice of a token: penalties, log probabilities. Plain functions of one row's scores; sums have a
//! fixed order.

use super::Penalties;
use super::sampler::highest;
use crate::units::TokenId;
use std::collections::HashMap;

/// A token with the log probability that the model itself gave it.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredToken {
    /// The token.
    pub token: TokenId,
    /// Natural logarithm of its raw probability: before temperature, penalties and masks.
    pub logprob: f32,
    /// The most probable tokens of its place, best first, ties to the lowest id.
    pub top: Vec<(TokenId, f32)>,
}

/// ln Σ e^score. The scores are finite.
pub(super) fn log_sum_exp(scores: &[f32]) -> f64 {
    const LANES: usize = 16;
    /// Chunks that are summed in f32 before they join the f64 sum.
    const CHUNKS: usize = 64;
    let best = highest(scores);
    let mut sum = 0.0f64;
    for block in scores.chunks(LANES * CHUNKS) {
        let mut lanes = [0.0f32; LANES];
        let mut chunks = block.chunks_exact(LANES);
        for chunk in &mut chunks {
            for (lane, score) in lanes.iter_mut().zip(chunk) {
                *lane += exp(score - best);
            }
        }
        for (lane, score) in lanes.iter_mut().zip(chunks.remainder()) {
            *lane += exp(score - best);
        }
        sum += lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>();
    }
    f64::from(best) + sum.ln()
}

/// e^x for x ≤ 0; relative error below 3e-7, 0 below -87. Cephes' expf without a fused step, so that it has the same bits everywhere and
/// compilers make vectors of it.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let x = x.max(-87.5);
    let magic = 12_582_912.0f32;
    let t = x * std::f32::consts::LOG2_E + magic;
    let n = t - magic;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4f32;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_6e-1;
    p = p * r + 0.5;
    let e = p * (r * r) + r + 1.0;
    // 2^n: n lies in the low bits of `t`.
    let power = f32::from_bits((t.to_bits().wrapping_add(127)) << 23);
    if x < -87.0 { 0.0 } else { e * power }
}

/// The log probability of a token, and the `top` best ones.
pub(super) fn scored(scores: &[f32], token: TokenId, top: usize) -> ScoredToken {
    let total = log_sum_exp(scores);
    let logprob = |score: f32| (f64::from(score) - total) as f32;
    let order = |a: &(TokenId, f32), b: &(TokenId, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let mut best: Vec<(TokenId, f32)> = Vec::with_capacity(top + 1);
    for (id, &score) in scores.iter().enumerate() {
        // The list is short, and almost no score gets past its last.
        if best.len() < top || best.last().is_some_and(|last| score > last.1) {
            let entry = (id as TokenId, score);
            let at = best.partition_point(|b| order(b, &entry).is_lt());
            best.insert(at, entry);
            best.truncate(top);
        }
    }
    let top = best.into_iter().map(|(id, score)| (id, logprob(score))).collect();
    ScoredToken {
        token,
        logprob: scores.get(token as usize).map_or(f32::NEG_INFINITY, |s| logprob(*s)),
        top,
    }
}

impl Penalties {
    /// Whether they change no score.
    pub fn are_neutral(&self) -> bool {
        let Penalties { presence, frequency, repetition } = *self;
        presence == 0.0 && frequency == 0.0 && repetition == 1.0
    }

    /// Changes the scores of tokens that the prompt or the answer has: repetition first (transformers'
    /// `RepetitionPenaltyLogitsProcessor`), then frequency and presence in the answer (OpenAI's definition).
    pub(super) fn apply(&self, scores: &mut [f32], prompt: &[TokenId], answer: &[TokenId]) {
        let Penalties { presence, frequency, repetition } = *self;
        let mut counts: HashMap<TokenId, u32> = HashMap::new();
        answer.iter().for_each(|id| *counts.entry(*id).or_default() += 1);
        if repetition != 1.0 {
            let before: HashMap<TokenId, ()> = prompt.iter().map(|id| (*id, ())).collect();
            let after = counts.keys().filter(|id| !before.contains_key(id));
            for id in before.keys().chain(after) {
                if let Some(score) = scores.get_mut(*id as usize) {
                    *score = if *score > 0.0 { *score / repetition } else { *score * repetition };
                }
            }
        }
        for (id, count) in counts {
            if let Some(score) = scores.get_mut(id as usize) {
                *score -= count as f32 * frequency + presence;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Plain reading of the definition.
    fn log_softmax(scores: &[f32]) -> Vec<f64> {
        let total = scores.iter().map(|s| f64::from(*s).exp()).sum::<f64>().ln();
        scores.iter().map(|s| f64::from(*s) - total).collect()
    }

    proptest! {
        #[test]
        fn log_probabilities_are_those_of_the_definition(
            scores in prop::collection::vec(-60.0f32..60.0, 1..3000), pick: prop::sample::Index, top in 0usize..21,
        ) {
            let plain = log_softmax(&scores);
            let token = pick.index(scores.len());
            let got = scored(&scores, token as TokenId, top);
            prop_assert!((f64::from(got.logprob) - plain[token]).abs() < 1e-5, "{} and {}", got.logprob, plain[token]);
            let mut ranked: Vec<usize> = (0..scores.len()).collect();
            ranked.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
            ranked.truncate(top);
            prop_assert_eq!(got.top.iter().map(|t| t.0 as usize).collect::<Vec<_>>(), ranked.clone());
            for ((_, logprob), id) in got.top.iter().zip(ranked) {
                prop_assert!((f64::from(*logprob) - plain[id]).abs() < 1e-5);
            }
        }

        #[test]
        fn penalties_are_those_of_the_definition(
            scores in prop::collection::vec(-9.0f32..9.0, 12),
            prompt in prop::collection::vec(0u32..12, 0..9),
            answer in prop::collection::vec(0u32..12, 0..9),
            presence in -2.0f32..2.0, frequency in -2.0f32..2.0, repetition in 0.5f32..2.0,
        ) {
            let mut got = scores.clone();
            Penalties { presence, frequency, repetition }.apply(&mut got, &prompt, &answer);
            for id in 0..12u32 {
                let mut s = scores[id as usize];
                if prompt.contains(&id) || answer.contains(&id) {
                    s = if s > 0.0 { s / repetition } else { s * repetition };
                }
                let count = answer.iter().filter(|a| **a == id).count() as f32;
                s -= count * frequency + if count > 0.0 { presence } else { 0.0 };
                prop_assert!((s - got[id as usize]).abs() < 1e-5, "token {id}: {s} and {}", got[id as usize]);
            }
        }
    }

    #[test]
    fn neutral_penalties_are_known_as_such() {
        assert!(Penalties::default().are_neutral());
        assert!(!Penalties { frequency: 0.1, ..Penalties::default() }.are_neutral());
    }
}

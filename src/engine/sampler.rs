//! Chooses the next token: which form of scores to ask the decoder for, and the draw from them. In: scores, [`Sampling`]. Out: a token.
//! It keeps no state: a draw is a function of (seed, prompt ids, position) and the scores, so order and batch cannot change it.

use super::{Sampling, SamplingPolicy};
use crate::decoder::{Output, Want};
use crate::units::TokenId;
use sha2::{Digest, Sha256};

/// Above this many candidates all scores are fetched and ranked here; the result is the same.
const MOST_CANDIDATES: usize = 1024;

/// How one request's tokens are chosen.
#[derive(Debug, Clone)]
pub(super) struct Sampler {
    sampling: Sampling,
    method: Method,
    key: [u64; 2],
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Method {
    /// The highest score, found by the decoder.
    Argmax,
    /// A draw from as few ranked candidates as it takes.
    Candidates,
    /// The audit's starting point: every score is fetched and the whole vocabulary sorted, for argmax too.
    WholeVocabulary,
}

impl Sampler {
    pub(super) fn new(sampling: Sampling, policy: SamplingPolicy, prompt: &[TokenId]) -> Sampler {
        let method = match policy {
            SamplingPolicy::AlwaysSample => Method::WholeVocabulary,
            SamplingPolicy::GreedyBelow(_) if is_greedy(sampling, policy) => Method::Argmax,
            SamplingPolicy::GreedyBelow(_) => Method::Candidates,
        };
        let mut hash = Sha256::new();
        hash.update(b"llmopt draw 1");
        hash.update(sampling.seed.to_le_bytes());
        for id in prompt {
            hash.update(id.to_le_bytes());
        }
        let hash = hash.finalize();
        let word = |i: usize| u64::from_le_bytes(hash[i * 8..][..8].try_into().expect("eight bytes"));
        Sampler { sampling, method, key: [word(0), word(1)] }
    }

    /// What to ask the decoder for.
    pub(super) fn want(&self, vocab: usize) -> Want {
        match self.method {
            Method::Argmax => Want::Argmax,
            Method::Candidates if (1..=MOST_CANDIDATES.min(vocab)).contains(&self.sampling.top_k) => {
                Want::TopK(self.sampling.top_k)
            }
            _ => Want::Logits,
        }
    }

    /// The token for `position` (its index in prompt + answer). `None` if the decoder answered something else than was asked.
    pub(super) fn choose(&self, output: &Output, position: usize) -> Option<TokenId> {
        match output {
            Output::Argmax(id, _) => Some(*id),
            Output::TopK(candidates) => {
                let mut ranked = Ranked { items: candidates.clone(), sorted: candidates.len() };
                self.draw(&mut ranked, None, position)
            }
            Output::Logits(scores) => {
                let mut ranked = Ranked::of(scores);
                if self.method == Method::WholeVocabulary {
                    ranked.sort_to(scores.len());
                }
                match self.sampling.top_k {
                    _ if !draws(self.sampling) => ranked.get(0).map(|best| best.0),
                    0 => self.draw(&mut ranked, Some(scores), position),
                    k => {
                        ranked.sort_to(k);
                        ranked.items.truncate(k);
                        self.draw(&mut ranked, None, position)
                    }
                }
            }
            Output::Nothing => None,
        }
    }

    /// A draw in proportion to exp(score / temperature) among the first candidates that together reach `top_p`. The mass of all is summed
    /// over `all` in the order of ids where that is given, over the ranked candidates otherwise.
    fn draw(&self, ranked: &mut Ranked, all: Option<&[f32]>, position: usize) -> Option<TokenId> {
        let best = ranked.get(0)?.1;
        let temperature = f64::from(self.sampling.temperature);
        let weight = |score: f32| ((f64::from(score) - f64::from(best)) / temperature).exp();
        let mass: f64 = match all {
            Some(scores) => scores.iter().map(|&s| weight(s)).sum(),
            None => ranked.items.iter().map(|c| weight(c.1)).sum(),
        };
        let uniform = self.uniform(position);
        let mut kept = mass;
        if self.sampling.top_p < 1.0 {
            let target = mass * f64::from(self.sampling.top_p);
            let mut sum = 0.0;
            let mut n = 0;
            while let Some((_, score)) = ranked.get(n) {
                sum += weight(score);
                n += 1;
                if sum >= target {
                    break;
                }
            }
            ranked.items.truncate(n);
            kept = sum;
        }
        let mut sum = 0.0;
        let mut last = None;
        for n in 0.. {
            let Some((id, score)) = ranked.get(n) else { break };
            sum += weight(score);
            last = Some(id);
            if sum > uniform * kept {
                break;
            }
        }
        last
    }

    /// A number in [0, 1), a function of the key and the position alone.
    fn uniform(&self, position: usize) -> f64 {
        let x = mix(mix(self.key[0].wrapping_add((position as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))) ^ self.key[1]);
        (x >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Whether the highest score is taken without a draw.
pub(super) fn is_greedy(sampling: Sampling, policy: SamplingPolicy) -> bool {
    match policy {
        SamplingPolicy::AlwaysSample => !draws(sampling),
        SamplingPolicy::GreedyBelow(threshold) => !draws(sampling) || sampling.temperature < threshold,
    }
}

/// Temperature 0 is argmax everywhere.
fn draws(sampling: Sampling) -> bool {
    sampling.temperature > 0.0
}

/// The finalizer of splitmix64 (Steele, Lea, Flood 2014).
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Candidates by descending score, ties to the lowest id, sorted only as far as somebody looked.
struct Ranked {
    items: Vec<(TokenId, f32)>,
    sorted: usize,
}

impl Ranked {
    fn of(scores: &[f32]) -> Ranked {
        Ranked { items: scores.iter().enumerate().map(|(id, &s)| (id as TokenId, s)).collect(), sorted: 0 }
    }

    fn get(&mut self, n: usize) -> Option<(TokenId, f32)> {
        if n >= self.sorted {
            self.sort_to((n + 1).max(self.sorted * 2).max(64));
        }
        self.items.get(n).copied()
    }

    fn sort_to(&mut self, n: usize) {
        let n = n.min(self.items.len());
        if n <= self.sorted {
            return;
        }
        let order = |a: &(TokenId, f32), b: &(TokenId, f32)| {
            b.1.partial_cmp(&a.1).unwrap_or(std::cmp::Ordering::Equal).then(a.0.cmp(&b.0))
        };
        let rest = &mut self.items[self.sorted..];
        let count = n - self.sorted;
        if count < rest.len() {
            rest.select_nth_unstable_by(count, order);
        }
        rest[..count].sort_unstable_by(order);
        self.sorted = n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sampling(temperature: f32, top_p: f32, top_k: usize, seed: u64) -> Sampling {
        Sampling { temperature, top_p, top_k, seed }
    }

    /// What the decoder answers to `want`.
    fn answer(scores: &[f32], want: Want) -> Output {
        let mut ranked = Ranked::of(scores);
        ranked.sort_to(scores.len());
        match want {
            Want::Argmax => Output::Argmax(ranked.items[0].0, ranked.items[0].1),
            Want::TopK(k) => Output::TopK(ranked.items.into_iter().take(k).collect()),
            _ => Output::Logits(scores.to_vec()),
        }
    }

    fn choose(s: Sampling, policy: SamplingPolicy, scores: &[f32], position: usize) -> TokenId {
        let sampler = Sampler::new(s, policy, &[1, 2, 3]);
        sampler.choose(&answer(scores, sampler.want(scores.len())), position).unwrap()
    }

    proptest! {
        #[test]
        fn the_fast_path_draws_what_the_fully_sorted_vocabulary_draws(
            scores in prop::collection::vec((-64i32..64).prop_map(|s| s as f32 / 8.0), 1..400),
            temperature in prop_oneof![Just(0.0f32), 0.3f32..3.0],
            top_p in prop_oneof![Just(1.0f32), 0.0f32..1.0],
            top_k in prop_oneof![Just(0usize), 1usize..500],
            seed: u64,
            position in 0usize..10_000,
        ) {
            let s = sampling(temperature, top_p, top_k, seed);
            prop_assert_eq!(
                choose(s, SamplingPolicy::GreedyBelow(0.3), &scores, position),
                choose(s, SamplingPolicy::AlwaysSample, &scores, position)
            );
        }
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let scores = [0.0f32, 1.0, 2.0, -1.0];
        let total: f64 = scores.iter().map(|&s| f64::from(s).exp()).sum();
        let mut counts = [0usize; 4];
        for seed in 0..20_000 {
            counts[choose(sampling(1.0, 1.0, 0, seed), SamplingPolicy::AlwaysSample, &scores, 5) as usize] += 1;
        }
        for (count, score) in counts.iter().zip(scores) {
            let expected = f64::from(score).exp() / total;
            assert!((*count as f64 / 20_000.0 - expected).abs() < 0.015, "{counts:?}");
        }
    }

    #[test]
    fn positions_seeds_and_prompts_each_change_the_draws() {
        let draws = |seed, prompt: &[TokenId]| -> Vec<u64> {
            let s = Sampler::new(sampling(1.0, 1.0, 0, seed), SamplingPolicy::AlwaysSample, prompt);
            (0..8).map(|p| s.uniform(p).to_bits()).collect()
        };
        let base = draws(0, &[1, 2]);
        assert_eq!(base, draws(0, &[1, 2]));
        assert_ne!(base, draws(1, &[1, 2]));
        assert_ne!(base, draws(0, &[2, 1]));
        assert_eq!(base.iter().collect::<std::collections::HashSet<_>>().len(), 8);
    }

    #[test]
    fn the_nucleus_is_the_smallest_set_that_reaches_top_p() {
        // Probabilities 0.5, 0.25, 0.25 (ties by id): 0.7 needs the first two.
        let scores = [0.25f32.ln(), 0.5f32.ln(), 0.25f32.ln()];
        let seen: std::collections::BTreeSet<TokenId> =
            (0..500).map(|seed| choose(sampling(1.0, 0.7, 0, seed), SamplingPolicy::GreedyBelow(0.3), &scores, 0)).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(choose(sampling(1.0, 0.0, 0, 9), SamplingPolicy::GreedyBelow(0.3), &scores, 0), 1);
    }

    #[test]
    fn what_is_greedy_is_what_the_contract_says() {
        let below = SamplingPolicy::GreedyBelow(0.3);
        assert!(is_greedy(sampling(0.2, 0.9, 50, 0), below) && !is_greedy(sampling(0.3, 0.9, 50, 0), below));
        assert!(is_greedy(sampling(0.0, 0.9, 50, 0), SamplingPolicy::AlwaysSample));
        assert!(!is_greedy(sampling(0.2, 0.9, 50, 0), SamplingPolicy::AlwaysSample));
    }
}

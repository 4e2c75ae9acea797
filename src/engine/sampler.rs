//! Chooses the next token: which form of scores to ask the decoder for, and the draw from them. In: scores, [`Sampling`], penalties, a
//! mask. Out: a token. It keeps no state: a draw is a function of (seed, prompt ids, position), the answer so far and the scores, so order
//! and batch cannot change it.

use super::{Extras, Penalties, Request, Sampling, SamplingPolicy};
use crate::decoder::{LogitsOutput, LogitsRequest};
use crate::text::Mask;
use crate::units::TokenId;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Above this many candidates all scores are fetched and ranked here; the result is the same.
const MAX_CANDIDATES: usize = 1024;

/// How one request's tokens are chosen.
#[derive(Debug, Clone)]
pub(super) struct Sampler {
    sampling: Sampling,
    penalties: Penalties,
    min_p: f32,
    /// Every score is needed whatever the method: penalties change them, log probabilities sum them.
    all: bool,
    prompt: Arc<[TokenId]>,
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
    pub(super) fn new(request: &Request, policy: SamplingPolicy) -> Sampler {
        let Request { ticket: _, prompt, max_tokens: _, sampling, stop: _, extras } = request;
        let Extras { penalties, min_p, logprobs, constraint: _, thought: _, choices: _ } = **extras;
        let sampling = *sampling;
        let method = match policy {
            SamplingPolicy::AlwaysSample => Method::WholeVocabulary,
            SamplingPolicy::GreedyBelow(_) if is_greedy(sampling, policy) => Method::Argmax,
            SamplingPolicy::GreedyBelow(_) => Method::Candidates,
        };
        let mut hash = Sha256::new();
        hash.update(b"llmopt draw 1");
        hash.update(sampling.seed.to_le_bytes());
        for id in prompt.iter() {
            hash.update(id.to_le_bytes());
        }
        let hash = hash.finalize();
        let word =
            |i: usize| u64::from_le_bytes(hash[i * 8..][..8].try_into().expect("eight bytes"));
        let all = logprobs.is_some() || !penalties.are_neutral();
        Sampler {
            sampling,
            penalties,
            min_p,
            all,
            prompt: prompt.clone(),
            method,
            key: [word(0), word(1)],
        }
    }

    /// What to ask the decoder for; `masked`: only some tokens will be allowed.
    pub(super) fn logits_request(&self, vocab: usize, masked: bool) -> LogitsRequest {
        match self.method {
            _ if masked && self.is_favourite() => LogitsRequest::LogitsAndArgmax,
            _ if masked || self.all => LogitsRequest::Logits,
            Method::Argmax => LogitsRequest::Argmax,
            Method::Candidates
                if (1..=MAX_CANDIDATES.min(vocab)).contains(&self.sampling.top_k) =>
            {
                LogitsRequest::TopK(self.sampling.top_k)
            }
            _ => LogitsRequest::Logits,
        }
    }

    /// The token that these scores alone choose, where no answer so far, draw or penalty changes it: most often a constraint allows it, and
    /// no mask is needed then.
    pub(super) fn favourite(&self, output: &LogitsOutput) -> Option<TokenId> {
        match output {
            LogitsOutput::LogitsAndArgmax(_, id) if self.is_favourite() => Some(*id),
            _ => None,
        }
    }

    /// Whether [`Sampler::favourite`] is what is chosen where it is allowed.
    pub(super) fn is_favourite(&self) -> bool {
        self.method == Method::Argmax && self.penalties.are_neutral()
    }

    /// The token for `position` (its index in prompt + answer), which goes on from `answer` by one of the mask's tokens. `None` if the
    /// decoder answered something else than was asked, or no token is allowed.
    pub(super) fn choose(
        &self,
        output: &LogitsOutput,
        position: usize,
        answer: &[TokenId],
        mask: Option<&Mask>,
    ) -> Option<TokenId> {
        let mut changed = Vec::new();
        let output = match output {
            LogitsOutput::Logits(scores) if !self.penalties.are_neutral() => {
                changed.extend_from_slice(scores);
                self.penalties.apply(&mut changed, &self.prompt, answer);
                LogitsOutput::Logits(changed)
            }
            other => return self.pick(other, position, mask),
        };
        self.pick(&output, position, mask)
    }

    fn pick(&self, output: &LogitsOutput, position: usize, mask: Option<&Mask>) -> Option<TokenId> {
        match output {
            // A mask needs every score.
            LogitsOutput::Argmax(..) | LogitsOutput::TopK(_) if mask.is_some() => None,
            LogitsOutput::Argmax(id, _) => Some(*id),
            LogitsOutput::TopK(candidates) => {
                let mut ranked = Ranked { items: candidates.clone(), sorted: candidates.len() };
                self.draw(&mut ranked, None, position)
            }
            LogitsOutput::LogitsAndArgmax(scores, first) => best(scores, *first, mask),
            LogitsOutput::Logits(scores) if self.method == Method::Argmax => {
                best(scores, favourite(scores)?, mask)
            }
            LogitsOutput::Logits(scores) => {
                let mut ranked = Ranked::of(scores, mask);
                // The sum over all is made in the order of ids, before anything is sorted.
                let sum = (self.sampling.top_k == 0 && draws(self.sampling))
                    .then(|| self.mass(&ranked.items));
                if self.method == Method::WholeVocabulary {
                    ranked.sort_to(scores.len());
                }
                match self.sampling.top_k {
                    _ if !draws(self.sampling) => ranked.get(0).map(|best| best.0),
                    0 => self.draw(&mut ranked, sum, position),
                    k => {
                        ranked.sort_to(k);
                        ranked.items.truncate(k);
                        self.draw(&mut ranked, None, position)
                    }
                }
            }
            LogitsOutput::Nothing => None,
        }
    }

    /// What a score weighs beside the best one: exp((score - best) / temperature), 0 below `min_p`.
    fn weight(&self, score: f32, best: f32) -> f64 {
        let weight =
            ((f64::from(score) - f64::from(best)) / f64::from(self.sampling.temperature)).exp();
        if weight < f64::from(self.min_p) { 0.0 } else { weight }
    }

    /// The sum of all weights.
    fn mass(&self, items: &[(TokenId, f32)]) -> f64 {
        let best = items.iter().map(|item| item.1).fold(f32::NEG_INFINITY, f32::max);
        items.iter().map(|item| self.weight(item.1, best)).sum()
    }

    /// A draw in proportion to exp(score / temperature) among the candidates that reach `min_p` of the best one's probability, and of them
    /// the first that together reach `top_p`. `mass` is the sum over all of them, that over the ranked candidates if it is not given.
    fn draw(&self, ranked: &mut Ranked, mass: Option<f64>, position: usize) -> Option<TokenId> {
        let best = ranked.get(0)?.1;
        let weight = |score: f32| self.weight(score, best);
        let mass: f64 = mass.unwrap_or_else(|| ranked.items.iter().map(|c| weight(c.1)).sum());
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
            if weight(score) == 0.0 && last.is_some() {
                break;
            }
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
        let x = mix(mix(
            self.key[0].wrapping_add((position as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
        ) ^ self.key[1]);
        (x >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The highest score; NaN is none, and without any it is negative infinity.
pub(super) fn highest(scores: &[f32]) -> f32 {
    // Sixteen maxima at once: a single one would wait for itself at every score.
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = scores.as_chunks::<16>();
    for chunk in chunks {
        for (lane, score) in lanes.iter_mut().zip(chunk) {
            if *score > *lane {
                *lane = *score;
            }
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// The token with the highest score, ties to the lowest id. With its search by parts 3.3 times as fast as a fold and a search one by one
/// (49,152 scores).
fn favourite(scores: &[f32]) -> Option<TokenId> {
    const PART: usize = 64;
    let top = highest(scores);
    let holds = |part: &[f32]| part.iter().fold(false, |any, s| any | (*s == top));
    let (number, part) = scores.chunks(PART).enumerate().find(|(_, part)| holds(part))?;
    let at = part.iter().position(|s| *s == top)?;
    Some((number * PART + at) as TokenId)
}

/// The allowed token with the highest score, ties to the lowest id; `first` is that of all.
fn best(scores: &[f32], first: TokenId, mask: Option<&Mask>) -> Option<TokenId> {
    let Some(mask) = mask else { return Some(first) };
    // Most often the model keeps to the form by itself.
    if mask.allows(first) {
        return Some(first);
    }
    let mut found: Option<(TokenId, f32)> = None;
    for (word, scores) in mask.words().iter().zip(scores.chunks(32).enumerate()) {
        let (at, scores) = scores;
        let mut bits = *word;
        while bits != 0 {
            let bit = bits.trailing_zeros() as usize;
            bits &= bits - 1;
            let Some(&score) = scores.get(bit) else { continue };
            if found.is_none_or(|(_, best)| score > best) {
                found = Some(((at * 32 + bit) as TokenId, score));
            }
        }
    }
    found.map(|(id, _)| id)
}

/// Whether the highest score is taken without a draw.
pub(super) fn is_greedy(sampling: Sampling, policy: SamplingPolicy) -> bool {
    match policy {
        SamplingPolicy::AlwaysSample => !draws(sampling),
        SamplingPolicy::GreedyBelow(threshold) => {
            !draws(sampling) || sampling.temperature < threshold
        }
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
    fn of(scores: &[f32], mask: Option<&Mask>) -> Ranked {
        let all = scores.iter().enumerate().map(|(id, &s)| (id as TokenId, s));
        let items = match mask {
            None => all.collect(),
            Some(mask) => all.filter(|(id, _)| mask.allows(*id)).collect(),
        };
        Ranked { items, sorted: 0 }
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

    #[test]
    fn the_favourite_is_the_first_of_the_highest_scores() {
        let plain = |scores: &[f32]| {
            let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            scores.iter().position(|s| *s == top).map(|at| at as TokenId)
        };
        let mut random = 1u64;
        let mut next = |below: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        for length in (0..200usize).chain([1_023, 1_024, 5_000]) {
            // Few values, so that there are ties.
            let mut scores: Vec<f32> = (0..length).map(|_| next(50) as f32 - 25.0).collect();
            assert_eq!(favourite(&scores), plain(&scores), "{length}");
            for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0] {
                if let Some(at) = length.checked_sub(1) {
                    scores[next(at as u64 + 1) as usize] = odd;
                }
                assert_eq!(favourite(&scores), plain(&scores), "{length} {odd}");
            }
        }
        assert_eq!(
            (favourite(&[f32::NAN; 40]), favourite(&[f32::NEG_INFINITY; 70])),
            (None, Some(0))
        );
    }
    use proptest::prelude::*;

    fn sampling(temperature: f32, top_p: f32, top_k: usize, seed: u64) -> Sampling {
        Sampling { temperature, top_p, top_k, seed }
    }

    /// What the decoder answers to `logits`.
    fn answer(scores: &[f32], logits: LogitsRequest) -> LogitsOutput {
        let mut ranked = Ranked::of(scores, None);
        ranked.sort_to(scores.len());
        match logits {
            LogitsRequest::Argmax => LogitsOutput::Argmax(ranked.items[0].0, ranked.items[0].1),
            LogitsRequest::TopK(k) => {
                LogitsOutput::TopK(ranked.items.into_iter().take(k).collect())
            }
            LogitsRequest::LogitsAndArgmax => {
                LogitsOutput::LogitsAndArgmax(scores.to_vec(), ranked.items[0].0)
            }
            _ => LogitsOutput::Logits(scores.to_vec()),
        }
    }

    fn choose(s: Sampling, policy: SamplingPolicy, scores: &[f32], position: usize) -> TokenId {
        choose_with(s, policy, scores, position, Extras::default(), &[])
    }

    fn request(sampling: Sampling, prompt: &[TokenId], extras: Extras) -> Request {
        let stop = crate::engine::StopRules {
            eos: true,
            strings: Vec::new(),
            sentence: false,
            repetition: false,
        };
        Request {
            ticket: 0,
            prompt: prompt.into(),
            max_tokens: 9,
            sampling,
            stop: Arc::new(stop),
            extras: Arc::new(extras),
        }
    }

    fn choose_with(
        s: Sampling,
        policy: SamplingPolicy,
        scores: &[f32],
        position: usize,
        extras: Extras,
        said: &[TokenId],
    ) -> TokenId {
        let sampler = Sampler::new(&request(s, &[1, 2, 3], extras), policy);
        sampler
            .choose(
                &answer(scores, sampler.logits_request(scores.len(), false)),
                position,
                said,
                None,
            )
            .unwrap()
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
            counts[choose(sampling(1.0, 1.0, 0, seed), SamplingPolicy::AlwaysSample, &scores, 5)
                as usize] += 1;
        }
        for (count, score) in counts.iter().zip(scores) {
            let expected = f64::from(score).exp() / total;
            assert!((*count as f64 / 20_000.0 - expected).abs() < 0.015, "{counts:?}");
        }
    }

    #[test]
    fn positions_seeds_and_prompts_each_change_the_draws() {
        let draws = |seed, prompt: &[TokenId]| -> Vec<u64> {
            let request = request(sampling(1.0, 1.0, 0, seed), prompt, Extras::default());
            let s = Sampler::new(&request, SamplingPolicy::AlwaysSample);
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
        let seen: std::collections::BTreeSet<TokenId> = (0..500)
            .map(|seed| {
                choose(sampling(1.0, 0.7, 0, seed), SamplingPolicy::GreedyBelow(0.3), &scores, 0)
            })
            .collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(
            choose(sampling(1.0, 0.0, 0, 9), SamplingPolicy::GreedyBelow(0.3), &scores, 0),
            1
        );
    }

    /// The tokens that draws give, of many seeds.
    fn drawn(
        s: Sampling,
        policy: SamplingPolicy,
        scores: &[f32],
        extras: &Extras,
        said: &[TokenId],
    ) -> Vec<TokenId> {
        let draw =
            |seed| choose_with(Sampling { seed, ..s }, policy, scores, 0, extras.clone(), said);
        (0..400).map(draw).collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    }

    #[test]
    fn min_p_leaves_out_tokens_below_its_share_of_the_best_ones_probability() {
        // Probabilities 0.5, 0.3, 0.15, 0.05: of the best one's 1, 0.6, 0.3, 0.1.
        let scores = [0.5f32.ln(), 0.3f32.ln(), 0.15f32.ln(), 0.05f32.ln()];
        for policy in [SamplingPolicy::GreedyBelow(0.3), SamplingPolicy::AlwaysSample] {
            for top_k in [0, 4] {
                let of = |min_p, top_p| {
                    drawn(
                        sampling(1.0, top_p, top_k, 0),
                        policy,
                        &scores,
                        &Extras { min_p, ..Extras::default() },
                        &[],
                    )
                };
                assert_eq!(of(0.0, 1.0), [0, 1, 2, 3]);
                assert_eq!(of(0.2, 1.0), [0, 1, 2]);
                assert_eq!(of(0.5, 1.0), [0, 1]);
                assert_eq!(of(1.0, 1.0), [0]);
                // The nucleus is of what is left: 0.5 and 0.3 are 0.84 of 0.95.
                assert_eq!(of(0.2, 0.8), [0, 1]);
                // After the temperature: at 2 the shares are 1, 0.77, 0.55, 0.32.
                let warm = drawn(
                    sampling(2.0, 1.0, top_k, 0),
                    policy,
                    &scores,
                    &Extras { min_p: 0.5, ..Extras::default() },
                    &[],
                );
                assert_eq!(warm, [0, 1, 2]);
            }
        }
    }

    #[test]
    fn penalties_change_greedy_answers_too() {
        let scores = [1.0f32, 3.0, 2.9, 2.0];
        let greedy = sampling(0.0, 1.0, 50, 0);
        let of = |penalties, said: &[TokenId]| {
            let extras = Extras { penalties, ..Extras::default() };
            choose_with(greedy, SamplingPolicy::GreedyBelow(0.3), &scores, 3, extras, said)
        };
        let none = Penalties::default();
        assert_eq!(of(none, &[1]), 1);
        assert_eq!(of(Penalties { presence: 0.2, ..none }, &[1]), 2);
        // The prompt is 1, 2, 3: only repetition counts it.
        assert_eq!(of(Penalties { presence: 0.2, ..none }, &[]), 1);
        assert_eq!(of(Penalties { repetition: 4.0, ..none }, &[]), 0);
        assert_eq!(of(Penalties { frequency: 0.5, ..none }, &[1, 1, 2]), 2);
        assert_eq!(of(Penalties { frequency: 0.6, ..none }, &[1, 1, 2, 2]), 3);
    }

    proptest! {
        #[test]
        fn a_masked_choice_is_the_choice_among_the_allowed_tokens_alone(
            scores in prop::collection::vec((-64i32..64).prop_map(|s| s as f32 / 8.0), 40..300),
            allowed in prop::collection::vec(any::<bool>(), 300),
            temperature in prop_oneof![Just(0.0f32), 0.3f32..3.0],
            top_k in prop_oneof![Just(0usize), 1usize..60],
            seed: u64,
        ) {
            let s = sampling(temperature, 0.9, top_k, seed);
            let ids: Vec<TokenId> = (0..scores.len() as TokenId).filter(|id| allowed[*id as usize] || *id == 7).collect();
            let mask = Mask::of(scores.len(), &ids);
            let few: Vec<f32> = ids.iter().map(|id| scores[*id as usize]).collect();
            for policy in [SamplingPolicy::GreedyBelow(0.3), SamplingPolicy::AlwaysSample] {
                let sampler = Sampler::new(&request(s, &[1, 2, 3], Extras::default()), policy);
                let got = sampler.choose(&LogitsOutput::Logits(scores.clone()), 5, &[], Some(&mask));
                let alone = sampler.choose(&LogitsOutput::Logits(few.clone()), 5, &[], None).map(|i| ids[i as usize]);
                prop_assert_eq!(got, alone);
            }
        }
    }

    #[test]
    fn what_is_greedy_is_what_the_contract_says() {
        let below = SamplingPolicy::GreedyBelow(0.3);
        assert!(
            is_greedy(sampling(0.2, 0.9, 50, 0), below)
                && !is_greedy(sampling(0.3, 0.9, 50, 0), below)
        );
        assert!(is_greedy(sampling(0.0, 0.9, 50, 0), SamplingPolicy::AlwaysSample));
        assert!(!is_greedy(sampling(0.2, 0.9, 50, 0), SamplingPolicy::AlwaysSample));
    }
}

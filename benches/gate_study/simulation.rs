//! How often the gate is wrong: recorded rounds replayed through it. In: a recorded result with many rounds, and one to play "now". Out: the
//! share of replays in which it fails. Resampled rounds, not whole benches, because hours of benches would be needed for the same precision.

use llmopt::bench::ablation::analysis::OfSlice;
use llmopt::bench::ablation::gate::{self, Series};
use llmopt::bench::ablation::result::BenchResult;
use llmopt::bench::statistics::Random;

/// What became of the replays at one threshold.
#[derive(Debug, Clone, PartialEq)]
pub struct Replays {
    /// `--max-regression`.
    pub max_regression: f64,
    /// Replays.
    pub replays: usize,
    /// Of these, the gate failed.
    pub failed: usize,
    /// Of these, the speed over the reference was among what failed.
    pub speed: usize,
}

/// How rounds are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    /// Random slices, a random round of each on either side: two runs with one seed, which go through the same slices.
    Slices,
    /// Runs of consecutive rounds on either side: what drifts slowly differs between the sides, and so do the slices.
    Blocks,
}

/// Replays `before` against `now`, `rounds` rounds on either side, and judges each replay at every threshold. With `None` for `now` both sides
/// are drawn, disjoint, from `before`: every failure is a false alarm.
pub fn replay(
    before: &BenchResult,
    now: Option<&BenchResult>,
    draw: Draw,
    rounds: usize,
    thresholds: &[f64],
    replays: usize,
    seed: u64,
) -> Result<Vec<Replays>, String> {
    let (_, recorded) = gate::series(before, now.unwrap_or(before))?;
    let slices = |result: &BenchResult| result.rounds.iter().map(|r| r.slice).collect::<Vec<_>>();
    let (old, new) = (slices(before), now.map(slices));
    let mut random = Random::new(seed);
    let mut outcome: Vec<Replays> = thresholds
        .iter()
        .map(|&max_regression| Replays { max_regression, replays, failed: 0, speed: 0 })
        .collect();
    for _ in 0..replays {
        let (ours, theirs) = match draw {
            Draw::Slices => pick_slices(&old, new.as_deref(), rounds, &mut random)?,
            Draw::Blocks => {
                pick_blocks(old.len(), new.as_ref().map(Vec::len), rounds, &mut random)?
            }
        };
        let copies = |from: &[OfSlice], places: &[usize]| places.iter().map(|i| from[*i]).collect();
        let played: Vec<Series> = recorded
            .iter()
            .map(|s| Series {
                name: s.name.clone(),
                before: copies(&s.before, &ours),
                now: copies(&s.now, &theirs),
            })
            .collect();
        for counts in &mut outcome {
            let checks = played
                .iter()
                .map(|s| s.check(counts.max_regression))
                .collect::<Result<Vec<_>, _>>()?;
            counts.failed += usize::from(checks.iter().any(|c| c.failed));
            counts.speed += usize::from(checks.iter().any(|c| c.failed && c.name == "speed"));
        }
    }
    Ok(outcome)
}

/// Places of rounds on either side: `count` random slices, a random round of each; with one recording two different ones.
fn pick_slices(
    old: &[usize],
    new: Option<&[usize]>,
    count: usize,
    random: &mut Random,
) -> Result<(Vec<usize>, Vec<usize>), String> {
    let places = |from: &[usize], slice: usize| {
        (0..from.len()).filter(|i| from[*i] == slice).collect::<Vec<_>>()
    };
    let mut slices = old.to_vec();
    slices.sort_unstable();
    slices.dedup();
    slices.retain(|&s| new.map_or(places(old, s).len() >= 2, |new| new.contains(&s)));
    if slices.len() < count {
        return Err(format!(
            "{} slices were recorded often enough, {count} are needed",
            slices.len()
        ));
    }
    random.shuffle(&mut slices);
    let mut found = (Vec::new(), Vec::new());
    for &slice in &slices[..count] {
        let mut ours = places(old, slice);
        random.shuffle(&mut ours);
        found.0.push(ours[0]);
        found.1.push(match new {
            None => ours[1],
            Some(new) => {
                let theirs = places(new, slice);
                theirs[random.below(theirs.len())]
            }
        });
    }
    Ok(found)
}

/// Places of two blocks of consecutive rounds; with one recording they do not overlap.
fn pick_blocks(
    old: usize,
    new: Option<usize>,
    count: usize,
    random: &mut Random,
) -> Result<(Vec<usize>, Vec<usize>), String> {
    let needed = if new.is_none() { 2 * count } else { count };
    let least = old.min(new.unwrap_or(old));
    if least < needed {
        return Err(format!("{least} recorded rounds, {needed} are needed for blocks of {count}"));
    }
    loop {
        let (a, b) = (random.below(old - count + 1), random.below(new.unwrap_or(old) - count + 1));
        if new.is_some() || a.abs_diff(b) >= count {
            return Ok(((a..a + count).collect(), (b..b + count).collect()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{as_expected, result};

    impl Replays {
        /// Share of replays that failed.
        fn rate(&self) -> f64 {
            self.failed as f64 / self.replays.max(1) as f64
        }
    }

    /// 40 rounds of 20 slices.
    fn recorded(seed: u64, slower: f64) -> BenchResult {
        let mut recorded = result(40, 0.05, seed, |label| {
            as_expected(label) * if label.starts_with("everything") { slower } else { 1.0 }
        });
        for (i, round) in recorded.rounds.iter_mut().enumerate() {
            round.slice = i % 20;
            round.samples.iter_mut().for_each(|s| s.seconds *= 1.0 + (i % 20) as f64 / 10.0);
        }
        recorded
    }

    #[test]
    fn equal_sides_seldom_fail_and_a_slower_side_does() {
        let plain = recorded(1, 1.0);
        let alarms = replay(&plain, None, Draw::Slices, 8, &[3.0, 5.0], 300, 1).unwrap();
        assert!(
            alarms.iter().all(|r| r.rate() < 0.04) && alarms[1].failed <= alarms[0].failed,
            "{alarms:?}"
        );
        let found =
            replay(&plain, Some(&recorded(2, 1.1)), Draw::Slices, 8, &[3.0, 10.0], 300, 1).unwrap();
        assert!(found[0].rate() > 0.9 && found[0].speed > 200, "{found:?}");
        // Ten percent more time cannot be past a loss of ten percent; noise alone may be.
        assert!(found[1].speed < 30, "{found:?}");
        for draw in [Draw::Slices, Draw::Blocks] {
            assert_eq!(
                replay(&plain, None, draw, 8, &[5.0], 50, 7),
                replay(&plain, None, draw, 8, &[5.0], 50, 7)
            );
        }
    }

    #[test]
    fn sides_are_disjoint_slices_are_matched_and_blocks_are_consecutive() {
        let mut random = Random::new(5);
        let slices: Vec<usize> = (0..40).map(|i| i % 20).collect();
        for _ in 0..100 {
            let (a, b) = pick_blocks(30, None, 6, &mut random).unwrap();
            assert!(
                a.iter().all(|i| !b.contains(i)) && a.windows(2).all(|w| w[1] == w[0] + 1),
                "{a:?} {b:?}"
            );
            let (a, b) = pick_slices(&slices, None, 12, &mut random).unwrap();
            assert_eq!((a.len(), b.len()), (12, 12));
            assert!(
                a.iter().zip(&b).all(|(i, j)| i != j && slices[*i] == slices[*j]),
                "{a:?} {b:?}"
            );
            let distinct: std::collections::HashSet<usize> = a.iter().map(|i| slices[*i]).collect();
            assert_eq!(distinct.len(), 12);
        }
        let few = result(10, 0.05, 1, as_expected);
        for draw in [Draw::Slices, Draw::Blocks] {
            assert!(replay(&few, None, draw, 8, &[5.0], 10, 1).is_err());
        }
    }
}

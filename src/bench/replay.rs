//! How often the gate is wrong: recorded rounds replayed through it. In: a recorded result with many rounds, and one to play "now". Out: the
//! share of replays in which it fails. Resampled rounds, not whole benches, because hours of benches would be needed for the same precision.

use super::gate::{self, Thresholds};
use super::result::{BenchResult, Round};
use super::statistics::Random;

/// What became of the replays.
#[derive(Debug, Clone, PartialEq)]
pub struct Replays {
    /// Rounds on each side.
    pub rounds: usize,
    /// `--max-regression`.
    pub max_regression: f64,
    /// Replays.
    pub replays: usize,
    /// Of these, the gate failed.
    pub failed: usize,
    /// Of these, the speed over the reference was among what failed.
    pub speed: usize,
}

impl Replays {
    /// Share of replays that failed.
    pub fn rate(&self) -> f64 {
        self.failed as f64 / self.replays.max(1) as f64
    }
}

/// How rounds are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    /// Each round by itself, no round twice on either side.
    Rounds,
    /// Runs of consecutive rounds: what drifts slowly differs between the sides.
    Blocks,
}

/// Replays `before` against `now`. With `None` for `now` both sides are drawn, disjoint, from `before`: every failure is a false alarm.
pub fn replay(
    before: &BenchResult,
    now: Option<&BenchResult>,
    draw: Draw,
    rounds: usize,
    max_regression: f64,
    replays: usize,
    seed: u64,
) -> Result<Replays, String> {
    let needed = if now.is_none() { 2 * rounds } else { rounds };
    let least = before.rounds.len().min(now.map_or(usize::MAX, |n| n.rounds.len()));
    if least < needed {
        return Err(format!("{least} recorded rounds, {needed} are needed for replays of {rounds}"));
    }
    let empty = |result: &BenchResult| BenchResult { rounds: Vec::new(), ..result.clone() };
    let (mut a, mut b) = (empty(before), empty(now.unwrap_or(before)));
    let mut random = Random::new(seed);
    let mut outcome = Replays { rounds, max_regression, replays, failed: 0, speed: 0 };
    let thresholds = Thresholds { max_regression, same_machine: false };
    for _ in 0..replays {
        let picked = pick(before.rounds.len(), needed, rounds, draw, &mut random);
        let theirs = match now {
            None => picked[rounds..].to_vec(),
            Some(now) => pick(now.rounds.len(), rounds, rounds, draw, &mut random),
        };
        let copies = |from: &[Round], places: &[usize]| places.iter().map(|i| from[*i].clone()).collect();
        a.rounds = copies(&before.rounds, &picked[..rounds]);
        b.rounds = copies(&now.unwrap_or(before).rounds, &theirs);
        let result = gate::compare(&a, &b, thresholds)?;
        outcome.failed += usize::from(result.failed().next().is_some());
        outcome.speed += usize::from(result.failed().any(|c| c.name == "speed"));
    }
    Ok(outcome)
}

/// Places of `count` rounds out of `of`: blocks of `block` consecutive ones, or single ones.
fn pick(of: usize, count: usize, block: usize, draw: Draw, random: &mut Random) -> Vec<usize> {
    match draw {
        Draw::Rounds => {
            let mut all: Vec<usize> = (0..of).collect();
            random.shuffle(&mut all);
            all.truncate(count);
            all
        }
        Draw::Blocks => loop {
            let starts: Vec<usize> = (0..count / block).map(|_| random.below(of - block + 1)).collect();
            if starts.iter().enumerate().all(|(i, s)| starts[..i].iter().all(|t| s.abs_diff(*t) >= block)) {
                return starts.iter().flat_map(|s| *s..s + block).collect();
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::example::{as_expected, result};
    use super::*;

    #[test]
    fn equal_sides_seldom_fail_and_a_slower_side_does() {
        let recorded = result(40, 0.05, 1, as_expected);
        let slower = result(40, 0.05, 2, |label| as_expected(label) * if label.starts_with("everything") { 1.1 } else { 1.0 });
        for draw in [Draw::Rounds, Draw::Blocks] {
            let alarms = replay(&recorded, None, draw, 8, 5.0, 300, 1).unwrap();
            assert!(alarms.rate() < 0.02, "{alarms:?}");
            let found = replay(&recorded, Some(&slower), draw, 8, 3.0, 300, 1).unwrap();
            assert!(found.rate() > 0.9 && found.speed > 200, "{found:?}");
        }
    }

    #[test]
    fn sides_are_disjoint_and_blocks_are_consecutive() {
        let mut random = Random::new(5);
        for _ in 0..100 {
            let picked = pick(30, 12, 6, Draw::Blocks, &mut random);
            let distinct: std::collections::HashSet<&usize> = picked.iter().collect();
            assert_eq!(distinct.len(), 12);
            assert!(picked[..6].windows(2).all(|w| w[1] == w[0] + 1));
        }
        assert!(replay(&result(10, 0.05, 1, as_expected), None, Draw::Rounds, 8, 5.0, 10, 1).is_err());
    }
}

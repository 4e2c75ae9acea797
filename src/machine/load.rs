//! How busy the machine was with other things: stolen time and other processes' time between two moments. In: /proc/stat and
//! /proc/self/stat. Out: shares, which a report prints beside its numbers. It waits for nothing and judges nothing.

use super::Files;
use serde::{Deserialize, Serialize};

/// Counters at one moment, in clock ticks of all CPUs together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Activity {
    total: u64,
    idle: u64,
    steal: u64,
    own: u64,
}

/// What happened between two moments, as shares of all CPU time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Busy {
    /// Taken by the hypervisor for other guests.
    pub stolen: f64,
    /// Used by other processes of this system.
    pub others: f64,
}

impl Activity {
    /// Now; `None` where the system does not tell.
    pub fn now() -> Option<Activity> {
        let files = Files::system();
        Activity::parse(&files.read("proc/stat")?, &files.read("proc/self/stat")?)
    }

    /// `stat`: user nice system idle iowait irq softirq steal …; `own`: fields 14 to 17, counted from the process id, are its user and system time
    /// and those of its ended children.
    fn parse(stat: &str, own: &str) -> Option<Activity> {
        let cpu: Vec<u64> = stat
            .lines()
            .find(|l| l.starts_with("cpu "))?
            .split_whitespace()
            .skip(1)
            .map_while(|f| f.parse().ok())
            .collect();
        let fields: Vec<u64> = own
            .rsplit_once(')')?
            .1
            .split_whitespace()
            .skip(11)
            .take(4)
            .map_while(|f| f.parse().ok())
            .collect();
        if cpu.len() < 8 || fields.len() < 4 {
            return None;
        }
        // guest and guest_nice (9, 10) are contained in user and nice.
        Some(Activity {
            total: cpu[..8].iter().sum(),
            idle: cpu[3] + cpu[4],
            steal: cpu[7],
            own: fields.iter().sum(),
        })
    }

    /// Shares since `earlier`; `None` if less than 10 ticks have passed.
    pub fn since(&self, earlier: &Activity) -> Option<Busy> {
        let total = self.total.checked_sub(earlier.total).filter(|t| *t >= 10)? as f64;
        let delta = |f: fn(&Activity) -> u64| f(self).saturating_sub(f(earlier)) as f64;
        let (idle, stolen, own) = (delta(|a| a.idle), delta(|a| a.steal), delta(|a| a.own));
        Some(Busy {
            stolen: stolen / total,
            others: ((total - idle - stolen - own) / total).max(0.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_two_recorded_moments() {
        let own = |user: u64, system: u64| {
            format!(
                "42 (a (b) c) R 1 42 42 0 -1 4194560 100 0 0 0 {user} {system} 0 5 20 0 1 0 100 0 0"
            )
        };
        let a = Activity::parse(
            "cpu  100 0 50 800 50 0 0 10 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n",
            &own(60, 10),
        )
        .unwrap();
        let b = Activity::parse(
            "cpu  200 0 70 850 60 0 0 30 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n",
            &own(130, 20),
        )
        .unwrap();
        // 200 ticks in all: idle 60, stolen 20, own 80, so others 40.
        assert_eq!(b.since(&a), Some(Busy { stolen: 0.1, others: 0.2 }));
        assert_eq!(a.since(&a), None);
        assert_eq!(a.since(&b), None);
    }

    #[test]
    fn nonsense_is_none() {
        assert_eq!(Activity::parse("", ""), None);
        assert_eq!(Activity::parse("cpu  1 2 3\n", "1 (x) R"), None);
    }
}

//! One part of a run that is spread over processes: which records are its own. In: `--shard I/N` or `auto`, an id. Out: yes or no. The
//! rule is one that any program can compute, so that others can foretell it: the first 8 bytes of the SHA-256 of the id's text, as a
//! big-endian number, modulo N.

use sha2::{Digest, Sha256};

/// Part `index` of `of`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    pub index: u64,
    /// How many there are.
    pub of: u64,
}

/// Variables by which job systems tell a process its place.
const SYSTEMS: &str = "SLURM_ARRAY_TASK_ID with SLURM_ARRAY_TASK_MIN, _STEP and _COUNT; JOB_COMPLETION_INDEX with JOB_COMPLETIONS; \
                       SKYPILOT_JOB_RANK with SKYPILOT_NUM_JOBS";

impl Shard {
    /// A value of `--shard`.
    pub fn parse(text: &str) -> Result<Shard, String> {
        Shard::parse_in(text, &|name| std::env::var(name).ok())
    }

    fn parse_in(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Shard, String> {
        if text == "auto" {
            return Shard::of_job(variable);
        }
        let parts =
            text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parts {
            Some((index, of)) if index < of => Ok(Shard { index, of }),
            _ => Err("must be I/N with 0 ≤ I < N, such as 0/4 to 3/4, or auto".into()),
        }
    }

    fn of_job(variable: &dyn Fn(&str) -> Option<String>) -> Result<Shard, String> {
        let number = |name: &str| -> Result<Option<u64>, String> {
            let Some(text) = variable(name).filter(|text| !text.is_empty()) else {
                return Ok(None);
            };
            text.trim().parse().map(Some).map_err(|_| {
                format!("{name} is '{}', which is no whole number", crate::units::shown(&text))
            })
        };
        let needed = |name: &str| {
            number(name)?
                .ok_or(format!("{name} is not set, which says how many parts there are; give I/N"))
        };
        let (index, of) = if let Some(id) = number("SLURM_ARRAY_TASK_ID")? {
            let least = number("SLURM_ARRAY_TASK_MIN")?.unwrap_or(0);
            let step = number("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1);
            let from =
                id.checked_sub(least).ok_or("SLURM_ARRAY_TASK_ID is below SLURM_ARRAY_TASK_MIN")?;
            (from / step, needed("SLURM_ARRAY_TASK_COUNT")?)
        } else if let Some(index) = number("JOB_COMPLETION_INDEX")? {
            (index, needed("JOB_COMPLETIONS")?)
        } else if let Some(rank) = number("SKYPILOT_JOB_RANK")? {
            (rank, needed("SKYPILOT_NUM_JOBS")?)
        } else {
            return Err(format!("no job system says which part this is ({SYSTEMS}); give I/N"));
        };
        match index < of {
            true => Ok(Shard { index, of }),
            false => {
                Err(format!("part {index} of {of} is none: they are counted from 0; give I/N"))
            }
        }
    }

    /// Whether the record of this id is this part's.
    pub fn holds(&self, id: &str) -> bool {
        let digest = Sha256::digest(id.as_bytes());
        let first = digest.iter().take(8).fold(0u64, |number, byte| number << 8 | u64::from(*byte));
        first % self.of == self.index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `scripts/shards.py` with Python's hashlib: an id, then its part of 2, of 7, of 1000.
    const FIXTURE: &str = include_str!("../../tests/data/shards.tsv");

    #[test]
    fn every_record_has_the_part_that_pythons_hashlib_gives_it() {
        let mut lines = 0;
        for line in FIXTURE.lines() {
            let mut cells = line.split('\t');
            let id: String = serde_json::from_str(cells.next().unwrap()).unwrap();
            for (of, index) in [2, 7, 1000].into_iter().zip(cells) {
                let index = index.parse().unwrap();
                assert!(Shard { index, of }.holds(&id), "{id} {index}/{of}");
                assert_eq!((0..of).filter(|&index| Shard { index, of }.holds(&id)).count(), 1);
            }
            lines += 1;
        }
        assert!(lines >= 100, "{lines}");
    }

    #[test]
    fn a_part_is_told_by_hand_or_by_a_job_system() {
        let of = |text: &str, variables: &[(&str, &str)]| {
            Shard::parse_in(text, &|name| {
                variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string())
            })
        };
        assert_eq!(of("0/1", &[]), Ok(Shard { index: 0, of: 1 }));
        assert_eq!(of("3/4", &[]), Ok(Shard { index: 3, of: 4 }));
        for bad in ["4/4", "-1/4", "1", "1/0", "a/b", "1/2/3", ""] {
            assert!(of(bad, &[]).unwrap_err().contains("I/N"), "{bad}");
        }
        let slurm = [
            ("SLURM_ARRAY_TASK_ID", "14"),
            ("SLURM_ARRAY_TASK_MIN", "10"),
            ("SLURM_ARRAY_TASK_STEP", "2"),
            ("SLURM_ARRAY_TASK_COUNT", "5"),
        ];
        assert_eq!(of("auto", &slurm), Ok(Shard { index: 2, of: 5 }));
        assert_eq!(
            of("auto", &[("JOB_COMPLETION_INDEX", "0"), ("JOB_COMPLETIONS", "8")]),
            Ok(Shard { index: 0, of: 8 })
        );
        assert_eq!(
            of("auto", &[("SKYPILOT_JOB_RANK", "3"), ("SKYPILOT_NUM_JOBS", "4")]),
            Ok(Shard { index: 3, of: 4 })
        );
        assert!(of("auto", &[]).unwrap_err().contains("SLURM_ARRAY_TASK_ID"));
        assert!(
            of("auto", &[("JOB_COMPLETION_INDEX", "1")]).unwrap_err().contains("JOB_COMPLETIONS")
        );
        assert!(
            of("auto", &[("JOB_COMPLETION_INDEX", "x"), ("JOB_COMPLETIONS", "2")])
                .unwrap_err()
                .contains("whole number")
        );
        assert!(
            of("auto", &[("SKYPILOT_JOB_RANK", "4"), ("SKYPILOT_NUM_JOBS", "4")])
                .unwrap_err()
                .contains("from 0")
        );
    }
}

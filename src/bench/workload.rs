//! The prompts of a bench, cut into slices of equal make-up. In: the compiled-in set or a user's prompts. Out: [`Workload`]. Each round of
//! a bench answers one slice with every configuration, and the next round the next slice.

use crate::pipeline::{Content, Generation, Prompt};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// Written for this project (prompts/README.md): 30 slices of 6 lines in order.
const BUILT_IN: &str = include_str!("../../prompts/bench.jsonl");

/// Prompts of a slice.
pub const SLICE: usize = 6;

/// Prompts in slices.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// `built-in`, or the files' names.
    pub name: String,
    /// Slices of about [`SLICE`] prompts; at least one, none empty.
    pub slices: Vec<Vec<Prompt>>,
}

/// Which prompts, and what they let an optimization gain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkloadFacts {
    /// `built-in`, or the file's.
    pub name: String,
    /// SHA-256 over slices and generation settings.
    pub digest: String,
    /// How many the prompts were dealt into.
    pub slices: usize,
    /// Prompts of all slices.
    pub prompts: usize,
    /// Of these, exact repeats of an earlier prompt of their slice.
    pub repeats: usize,
    /// The usual limit of tokens.
    pub max_tokens: usize,
    /// The usual one.
    pub temperature: f32,
}

impl Workload {
    /// The compiled-in workload with these generation settings.
    pub fn built_in(generation: &Generation) -> Workload {
        let prompt = |line: &str| {
            let value: serde_json::Value = serde_json::from_str(line).ok()?;
            let text = |key: &str| value[key].as_str().map(str::to_string);
            Some(Prompt {
                id: text("id")?,
                content: Content::Text(text("prompt")?),
                generation: generation.clone(),
                accepts_cut: false,
            })
        };
        let prompts: Vec<Prompt> = BUILT_IN.lines().filter_map(prompt).collect();
        Workload {
            name: "built-in".into(),
            slices: prompts.chunks(SLICE).map(<[Prompt]>::to_vec).collect(),
        }
    }

    /// A user's prompts, dealt into slices of about equal length; repeats of one prompt stay in one slice, where a cache can meet them.
    /// The error says that there are none.
    pub fn of_prompts(name: &str, prompts: Vec<Prompt>) -> Result<Workload, String> {
        if prompts.is_empty() {
            return Err(format!("{}: no prompts to measure with", crate::units::shown(name)));
        }
        let slices = (prompts.len() / SLICE).max(1);
        let mut groups: Vec<Vec<Prompt>> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for prompt in prompts {
            let place = *places.entry(text(&prompt)).or_insert(groups.len());
            match groups.get_mut(place) {
                // More repeats than a slice holds begin a new group.
                Some(group) if group.len() < SLICE => group.push(prompt),
                _ => {
                    places.insert(text(&prompt), groups.len());
                    groups.push(vec![prompt]);
                }
            }
        }
        // Largest groups and longest prompts first, each to the slice that has the least so far.
        groups
            .sort_by_key(|g| std::cmp::Reverse((g.len(), g.first().map_or(0, |p| text(p).len()))));
        let mut dealt: Vec<(usize, usize, Vec<Prompt>)> = vec![(0, 0, Vec::new()); slices];
        for group in groups {
            if let Some(least) = dealt.iter_mut().min_by_key(|s| (s.0, s.1)) {
                least.0 += group.len();
                least.1 += group.iter().map(|p| text(p).len()).sum::<usize>();
                least.2.extend(group);
            }
        }
        let slices = dealt.into_iter().map(|s| s.2).filter(|s| !s.is_empty()).collect();
        Ok(Workload { name: name.into(), slices })
    }

    /// For `--quick`: the first prompts of each slice and one repeat, half the tokens.
    pub fn shortened(mut self) -> Workload {
        for slice in &mut self.slices {
            slice.truncate(2);
            if let Some(first) = slice.first().cloned() {
                slice.push(Prompt { id: format!("{}-again", first.id), ..first });
            }
            for prompt in slice {
                prompt.generation.max_tokens = prompt.generation.max_tokens.div_ceil(2);
            }
        }
        self
    }

    /// What results say of it.
    pub fn facts(&self) -> WorkloadFacts {
        let all = || self.slices.iter().flatten();
        let repeats = |slice: &Vec<Prompt>| {
            let mut seen = std::collections::HashSet::new();
            slice.iter().filter(|p| !seen.insert(text(p))).count()
        };
        let first = all().next().map(|p| &p.generation);
        WorkloadFacts {
            name: self.name.clone(),
            digest: self.digest(),
            slices: self.slices.len(),
            prompts: all().count(),
            repeats: self.slices.iter().map(repeats).sum(),
            max_tokens: first.map_or(0, |g| g.max_tokens),
            temperature: first.map_or(0.0, |g| g.sampling.temperature),
        }
    }

    /// SHA-256 over slices, prompts and generation settings.
    fn digest(&self) -> String {
        let mut sha = Sha256::new();
        for slice in &self.slices {
            sha.update((slice.len() as u64).to_le_bytes());
            for prompt in slice {
                let settings = serde_json::to_string(&prompt.generation).unwrap_or_default();
                for part in [text(prompt), settings] {
                    sha.update((part.len() as u64).to_le_bytes());
                    sha.update(part);
                }
            }
        }
        sha.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }
}

/// A prompt's content, as one string (turns separated by what no text contains unescaped: Debug's quotes).
fn text(prompt: &Prompt) -> String {
    match &prompt.content {
        Content::Text(text) => text.clone(),
        Content::Completion(text) => format!("completion {text}"),
        Content::Messages(messages) => format!("{messages:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation() -> Generation {
        Generation { max_tokens: 24, ..Generation::usual() }
    }

    fn prompt(id: usize, text: &str) -> Prompt {
        Prompt {
            id: id.to_string(),
            content: Content::Text(text.into()),
            generation: generation(),
            accepts_cut: false,
        }
    }

    #[test]
    fn the_built_in_slices_have_equal_make_up_and_are_enough_for_24_rounds() {
        let workload = Workload::built_in(&generation());
        assert_eq!(
            BUILT_IN.lines().count(),
            workload.slices.iter().flatten().count(),
            "a line is not read"
        );
        assert!(workload.slices.len() >= 24);
        let mut openings = std::collections::HashSet::new();
        for slice in &workload.slices {
            let texts: Vec<String> = slice.iter().map(text).collect();
            assert_eq!(texts.len(), SLICE);
            let distinct: std::collections::HashSet<&String> = texts.iter().collect();
            assert_eq!(distinct.len(), SLICE - 1, "one exact repeat: {texts:?}");
            let first_words = |t: &str| t.split(". ").next().unwrap_or("").to_string();
            assert_eq!(first_words(&texts[0]), first_words(&texts[3]), "two share a beginning");
            assert!(
                texts.iter().map(String::len).sum::<usize>() < 500,
                "at most 350 tokens together with the template"
            );
            assert!(openings.insert(texts[0].clone()), "slices are distinct");
        }
        let facts = workload.facts();
        assert_eq!((facts.repeats, facts.prompts), (facts.slices, facts.slices * SLICE));
    }

    #[test]
    fn a_users_prompts_keep_their_repeats_together_and_none_is_lost() {
        let mut prompts: Vec<Prompt> =
            (0..40).map(|i| prompt(i, &"word ".repeat(i % 7 + 1))).collect();
        prompts.extend((40..44).map(|i| prompt(i, &format!("only once {i}"))));
        let ids: std::collections::BTreeSet<String> =
            prompts.iter().map(|p| p.id.clone()).collect();
        let workload = Workload::of_prompts("mine", prompts).unwrap();
        let dealt: std::collections::BTreeSet<String> =
            workload.slices.iter().flatten().map(|p| p.id.clone()).collect();
        assert_eq!(ids, dealt);
        assert_eq!(workload.slices.len(), 44 / SLICE);
        assert!(
            workload.slices.iter().all(|s| (3..=9).contains(&s.len())),
            "{:?}",
            workload.slices.iter().map(Vec::len)
        );
        // 7 texts with 5 or 6 copies each: all but the first copy are repeats within their slice.
        assert_eq!(workload.facts().repeats, 40 - 7);
        assert!(Workload::of_prompts("none", vec![]).is_err());
        assert_eq!(Workload::of_prompts("one", vec![prompt(0, "x")]).unwrap().slices.len(), 1);
    }

    #[test]
    fn the_digest_tells_other_prompts_and_other_settings() {
        let a = Workload::built_in(&generation());
        let b = Workload::built_in(&Generation { max_tokens: 23, ..generation() });
        assert_ne!(a.facts().digest, b.facts().digest);
        assert_ne!(a.facts().digest, a.clone().shortened().facts().digest);
        assert_eq!(a.facts().digest, Workload::built_in(&generation()).facts().digest);
        assert_eq!(a.shortened().facts().repeats, 30);
    }
}

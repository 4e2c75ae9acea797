//! The digest that says which settings an answer was made with: 16 hex digits in every record. The first eight stand for what
//! computes (model, numeric path, template), the last eight for what was asked (generation settings and the two policies that
//! shape answers), so that a resume can check the second half before any model is loaded. Threads, batch size and storage are
//! not in it: they never change an answer.

use super::{Form, Generation};
use crate::engine::{SamplingPolicy, StoppingPolicy};
use crate::text::NEW_TURN;
use sha2::{Digest, Sha256};

/// Both halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Model file, numeric path, template.
    pub model: u32,
    /// Generation settings and policies.
    pub generation: u32,
}

impl Settings {
    /// The half that needs the model: SHA-256 of its file, name of the numeric path, text of the chat template.
    pub fn model_half(model_digest: &str, numeric_path: &str, template: &str) -> u32 {
        digest([model_digest, numeric_path, template])
    }

    /// The half that needs only the flags and the record. All fields count as given, also those that have no effect on a
    /// greedy answer; under [`StoppingPolicy::MaxTokensOnly`] the stop rules are not read and do not count.
    pub fn generation_half(
        generation: &Generation,
        sampling: SamplingPolicy,
        stopping: StoppingPolicy,
    ) -> u32 {
        let Generation { max_tokens, sampling: s, stop, system, raw, turn, form } = generation;
        let early = match stopping {
            StoppingPolicy::MaxTokensOnly => "max-tokens-only".to_string(),
            StoppingPolicy::Early => {
                format!(
                    "eos={} sentence={} loop={} strings={:?}",
                    stop.eos, stop.sentence, stop.repetition, stop.strings
                )
            }
        };
        let greedy = match sampling {
            SamplingPolicy::AlwaysSample => "sample".to_string(),
            SamplingPolicy::GreedyBelow(t) => format!("greedy-below-{t}"),
        };
        // Nothing for a new turn, so that answers from before there were others are found again.
        let turn = if *turn == NEW_TURN { String::new() } else { format!(" turn={turn:?}") };
        let form =
            if **form == Form::default() { String::new() } else { format!(" form={form:?}") };
        digest([
            &format!("max_tokens={max_tokens}"),
            &format!(
                "temperature={} top_p={} top_k={} seed={}",
                s.temperature, s.top_p, s.top_k, s.seed
            ),
            &greedy,
            &early,
            &format!("system={system:?} raw={raw}{turn}{form}"),
        ])
    }

    /// Reads 16 hex digits.
    pub fn parse(text: &str) -> Option<Settings> {
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let value = u64::from_str_radix(text, 16).ok()?;
        Some(Settings { model: (value >> 32) as u32, generation: value as u32 })
    }
}

impl std::fmt::Display for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}{:08x}", self.model, self.generation)
    }
}

/// The first 32 bits of SHA-256 over the parts, each preceded by its length.
fn digest<const N: usize>(parts: [&str; N]) -> u32 {
    let mut sha = Sha256::new();
    for part in parts {
        sha.update((part.len() as u64).to_le_bytes());
        sha.update(part.as_bytes());
    }
    let bytes = sha.finalize();
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Constraint;

    #[test]
    fn every_generation_setting_changes_the_second_half() {
        let half = |g: &Generation| {
            Settings::generation_half(g, SamplingPolicy::GreedyBelow(0.3), StoppingPolicy::Early)
        };
        let base = Generation::usual();
        let edits: [fn(&mut Generation); 23] = [
            |g| g.form.constraint = Some(Constraint::Object),
            |g| g.form.constraint = Some(Constraint::Regex("a".into())),
            |g| g.form.choices = Some(vec!["a".into(), "b".into()]),
            |g| g.form.logprobs = Some(0),
            |g| g.form.logprobs = Some(1),
            |g| g.form.n = 2,
            |g| g.form.penalties.frequency = 0.5,
            |g| g.form.min_p = 0.1,
            |g| g.max_tokens = 127,
            |g| g.sampling.temperature = 0.3,
            |g| g.sampling.top_p = 0.9,
            |g| g.sampling.top_k = 49,
            |g| g.sampling.seed = 1,
            |g| g.stop.eos = false,
            |g| g.stop.sentence = false,
            |g| g.stop.repetition = false,
            |g| g.stop.strings.push("x".into()),
            |g| g.system = Some(String::new()),
            |g| g.system = Some("None".into()),
            |g| g.raw = true,
            |g| g.turn.continue_final = true,
            |g| g.turn.generation_prompt = false,
            |g| g.turn.variables = Some(serde_json::Map::new()),
        ];
        let mut seen = std::collections::HashSet::from([half(&base)]);
        for (i, edit) in edits.iter().enumerate() {
            let mut g = base.clone();
            edit(&mut g);
            assert!(seen.insert(half(&g)), "edit {i}");
        }
        assert!(seen.insert(Settings::generation_half(
            &base,
            SamplingPolicy::AlwaysSample,
            StoppingPolicy::Early
        )));
        assert!(seen.insert(Settings::generation_half(
            &base,
            SamplingPolicy::GreedyBelow(0.3),
            StoppingPolicy::MaxTokensOnly
        )));
    }

    #[test]
    fn the_digest_prints_as_16_digits_and_reads_back() {
        let settings = Settings { model: 0x0012_3456, generation: 7 };
        assert_eq!(settings.to_string(), "0012345600000007");
        assert_eq!(Settings::parse("0012345600000007"), Some(settings));
        for bad in ["", "0012345600000", "+012345600000007", "00123456000000070"] {
            assert_eq!(Settings::parse(bad), None, "{bad}");
        }
    }
}

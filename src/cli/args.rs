//! The flags that `run`, `bench` and `compare` share, as typed, and what they mean. In: clap's values. Out: a configuration and
//! generation settings. Bounds live here, so that a flag and a record's field of the same name are checked by the same function.
//! Over 500 lines: one set of flags; each stands beside the check of its value.

use super::Failure;
use super::console::{Level, ShowProgress};
use crate::engine::Penalties;
use crate::engine::{Sampling, StopRules};
use crate::kernels::{Format, KvElement};
use crate::optimizations::{ALL, Expected, Phase, Set};
use crate::pipeline::{DtypePolicy, Form, Generation, Options, PipelineConfig, Sizes};
use crate::text::Turn;
use crate::text::prompts::{GenerationFields, StopOn};
use crate::units::Bytes;
use std::path::PathBuf;

/// Flags that all commands share, as typed.
#[derive(clap::Args, Debug, Clone)]
pub struct SharedArgs {
    /// A .gguf file, a folder (config.json, *.safetensors, tokenizer.json), a hub id (org/name, org/name:FILE, org/name:QUANT), or an alias
    #[arg(short, long, value_name = "M", default_value = "smollm2-135m", help_heading = "Model")]
    pub model: String,
    /// Numbers to compute with: auto, f32, bf16, f16, q8_0, q4_1, native (as stored in the file), bf16-emulated
    #[arg(long, value_name = "T", default_value = "auto", value_parser = dtype, help_heading = "Model")]
    pub dtype: DtypePolicy,

    /// Worker threads [default: physical cores this process may use]
    #[arg(long, value_name = "N", value_parser = threads, allow_negative_numbers = true, help_heading = "Machine")]
    pub threads: Option<usize>,
    /// Most sequences decoded together
    #[arg(
        long,
        value_name = "N",
        default_value = "16",
        value_parser = batch_size,
        allow_negative_numbers = true,
        help_heading = "Machine"
    )]
    pub batch_size: usize,
    /// Most memory for keys and values, such as 512M [default: a quarter of usable memory, at most batch × 2048 positions]
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, help_heading = "Machine")]
    pub kv_memory: Option<Bytes>,
    /// Keys and values in f32, f16 or q8_0 (half of f16; answers may differ) [default: f16 for quantized weights, else f32]
    #[arg(long, value_name = "T", value_parser = kv_dtype, help_heading = "Machine")]
    pub kv_dtype: Option<KvElement>,
    /// Force a kernel set
    #[arg(long, value_name = "SET", hide = true)]
    pub kernels: Option<String>,

    /// Most tokens of an answer
    #[arg(
        long,
        value_name = "N",
        default_value = "128",
        value_parser = at_least_one,
        allow_negative_numbers = true,
        help_heading = "Generation"
    )]
    pub max_tokens: usize,
    /// 0 is argmax; below 0.3 too, unless `greedy` is off
    #[arg(
        long,
        value_name = "X",
        default_value = "0.2",
        value_parser = temperature,
        allow_negative_numbers = true,
        help_heading = "Generation"
    )]
    pub temperature: f32,
    /// Smallest set of tokens whose probability reaches this; 1 is off
    #[arg(
        long,
        value_name = "X",
        default_value = "0.95",
        value_parser = top_p,
        allow_negative_numbers = true,
        help_heading = "Generation"
    )]
    pub top_p: f32,
    /// Only the N most probable tokens; 0 is off
    #[arg(
        long,
        value_name = "N",
        default_value = "50",
        value_parser = top_k,
        allow_negative_numbers = true,
        help_heading = "Generation"
    )]
    pub top_k: usize,
    /// Key of the sampler's draws
    #[arg(
        long,
        value_name = "N",
        default_value = "0",
        value_parser = whole,
        allow_negative_numbers = true,
        help_heading = "Generation"
    )]
    pub seed: u64,
    /// End an answer before this text; repeatable
    #[arg(long, value_name = "S", value_parser = stop_string, help_heading = "Generation")]
    pub stop: Vec<String>,
    /// What may end an answer early: of eos,strings,sentence,loop; or all, none
    #[arg(long, value_name = "LIST", default_value = "all", value_parser = stop_on, help_heading = "Generation")]
    pub stop_on: StopOn,
    /// A system message for every prompt
    #[arg(long, value_name = "TEXT", help_heading = "Generation", conflicts_with = "raw")]
    pub system: Option<String>,
    /// A variable of the model's chat template, such as enable_thinking=false or date_string='"26 Jul 2024"'; repeatable
    #[arg(long, value_name = "NAME=JSON", value_parser = template_argument, help_heading = "Generation", conflicts_with = "raw")]
    pub template_arg: Vec<(String, serde_json::Value)>,
    /// No chat template: the prompt is the text, control tokens in it are parsed
    #[arg(long, help_heading = "Generation")]
    pub raw: bool,

    /// A chat template in place of the model's, such as @chatml.jinja
    #[arg(long, value_name = "@FILE", value_parser = template_file, help_heading = "Generation", conflicts_with = "raw")]
    pub chat_template: Option<PathBuf>,
    /// Where a conversation ends with the assistant, the answer goes on with that message instead of opening a new turn
    #[arg(long, help_heading = "Generation", conflicts_with = "raw")]
    pub continue_final_message: bool,
    /// Which flags were typed; set by [`SharedArgs::note_typed`].
    #[arg(skip)]
    pub typed: Typed,
    /// The form of answers, from the flags of `run`.
    #[arg(skip)]
    pub form: Form,

    /// Only the first N prompts
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = "Amount")]
    pub limit: Option<u64>,
    /// Count prompts and tokens, estimate the time, then stop
    #[arg(long, help_heading = "Amount")]
    pub dry_run: bool,
    /// Stop in this many seconds
    #[arg(long, value_name = "S", value_parser = positive_seconds, allow_negative_numbers = true, help_heading = "Amount")]
    pub max_time: Option<f64>,

    /// Errors only
    #[arg(short, long, help_heading = "Display", conflicts_with = "verbose")]
    pub quiet: bool,
    /// Choices and their reasons too
    #[arg(short, long, help_heading = "Display")]
    pub verbose: bool,
    /// Progress on stderr
    #[arg(long, value_name = "WHEN", default_value = "auto", help_heading = "Display")]
    pub progress: ShowProgress,
}

/// Which generation flags stand on the command line: those that do not are OpenAI's defaults for OpenAI requests.
#[derive(Debug, Clone, Copy, Default)]
pub struct Typed {
    /// `--max-tokens`.
    pub max_tokens: bool,
    /// `--temperature`.
    pub temperature: bool,
    /// `--top-p`.
    pub top_p: bool,
    /// `--top-k`.
    pub top_k: bool,
    /// `--stop-on`.
    pub stop_on: bool,
}

/// Tokens of an answer to an OpenAI request that gives no limit: the rest of the context, at most this many.
pub const OPENAI_MAX_TOKENS: usize = 2048;

/// `run`'s choice of optimizations, as typed.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct Toggles {
    /// Switch on just these optimizations (comma-separated; `none`)
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "Optimizations")]
    pub only: Option<Vec<String>>,
    /// Switch off these optimizations (comma-separated)
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "Optimizations")]
    pub without: Vec<String>,
}

impl SharedArgs {
    /// Variables of the chat template; the last of two values for a name counts.
    pub fn template_arguments(&self) -> serde_json::Map<String, serde_json::Value> {
        self.template_arg.iter().cloned().collect()
    }

    /// The generation settings of a prompt that has none of its own.
    pub fn generation(&self) -> Generation {
        self.generation_with(&GenerationFields::default())
    }

    /// Remembers which flags were typed.
    pub fn note_typed(&mut self, matches: &clap::ArgMatches) {
        let typed =
            |name: &str| matches.value_source(name) == Some(clap::parser::ValueSource::CommandLine);
        self.typed = Typed {
            max_tokens: typed("max_tokens"),
            temperature: typed("temperature"),
            top_p: typed("top_p"),
            top_k: typed("top_k"),
            stop_on: typed("stop_on"),
        };
    }

    /// The flags as OpenAI requests see them: OpenAI's defaults where no flag was typed.
    pub fn for_openai(&self) -> SharedArgs {
        let mut flags = self.clone();
        let Typed { max_tokens, temperature, top_p, top_k, stop_on } = self.typed;
        flags.max_tokens = if max_tokens { self.max_tokens } else { OPENAI_MAX_TOKENS };
        flags.temperature = if temperature { self.temperature } else { 1.0 };
        flags.top_p = if top_p { self.top_p } else { 1.0 };
        flags.top_k = if top_k { self.top_k } else { 0 };
        if !stop_on {
            flags.stop_on = StopOn { eos: true, strings: true, sentence: false, repetition: false };
        }
        flags
    }

    /// The generation settings of a prompt: its own ones win over the flags.
    pub fn generation_with(&self, own: &GenerationFields) -> Generation {
        let on = own.stop_on.unwrap_or(self.stop_on);
        let strings = own.stop.as_ref().unwrap_or(&self.stop);
        let form = Box::new(self.form_with(own));
        let mut generation = Generation {
            form,
            max_tokens: own.max_tokens.unwrap_or(self.max_tokens),
            sampling: Sampling {
                temperature: own.temperature.unwrap_or(self.temperature),
                top_p: own.top_p.unwrap_or(self.top_p),
                top_k: own.top_k.unwrap_or(self.top_k),
                seed: own.seed.unwrap_or(self.seed),
            },
            stop: StopRules {
                eos: on.eos,
                strings: if on.strings { strings.clone() } else { Vec::new() },
                sentence: on.sentence,
                repetition: on.repetition,
            },
            system: own.system.clone().or_else(|| self.system.clone()),
            raw: own.raw.unwrap_or(self.raw),
            turn: Turn {
                continue_final: own.continue_final_message.unwrap_or(false),
                generation_prompt: own.add_generation_prompt.unwrap_or(true),
                variables: own
                    .chat_template_kwargs
                    .clone()
                    .filter(|variables| !variables.is_empty()),
            },
        };
        if generation.form.rules_its_end() {
            generation.stop =
                StopRules { eos: true, strings: Vec::new(), sentence: false, repetition: false };
        }
        generation
    }

    /// The form of an answer: the record's constraint or choices take the place of the flags'.
    fn form_with(&self, own: &GenerationFields) -> Form {
        let (constraint, choices) = match (&own.constraint, &own.choices) {
            (None, None) => (self.form.constraint.clone(), self.form.choices.clone()),
            (constraint, choices) => {
                (constraint.as_ref().map(|(_, constraint)| constraint.clone()), choices.clone())
            }
        };
        let none = Penalties::default();
        Form {
            constraint,
            choices,
            logprobs: own.logprobs.or(self.form.logprobs),
            n: own.n.unwrap_or(1),
            penalties: Penalties {
                presence: own.presence_penalty.unwrap_or(none.presence),
                frequency: own.frequency_penalty.unwrap_or(none.frequency),
                repetition: own.repetition_penalty.unwrap_or(none.repetition),
            },
            min_p: own.min_p.unwrap_or(0.0),
        }
    }

    /// Numbers with flags. `chunk` is the most rows of one forward pass.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            threads: self.threads.unwrap_or_else(crate::machine::usable_threads),
            batch: self.batch_size,
            chunk: self.batch_size.max(256),
            kv_bytes: self.kv_memory.map(|b| b.0),
            kv_dtype: self.kv_dtype,
        }
    }

    /// The configuration with these optimizations on.
    pub fn config(&self, optimizations: Set) -> PipelineConfig {
        optimizations.apply(&PipelineConfig::audit_baseline(self.dtype, self.sizes()))
    }

    /// What a pipeline needs beyond its configuration.
    pub fn options(&self) -> Options {
        Options { kernels: self.kernels.clone(), ..Options::default() }
    }

    /// How much is said.
    pub fn level(&self) -> Level {
        match (self.quiet, self.verbose) {
            (true, _) => Level::Quiet,
            (_, true) => Level::Verbose,
            _ => Level::Normal,
        }
    }
}

impl Toggles {
    /// The optimizations that are on; an unknown name, or one whose need is off, is bad usage.
    pub fn set(&self) -> Result<Set, Failure> {
        let named =
            |list: &[String]| Set::named(list.iter().map(|s| s.trim()).filter(|s| !s.is_empty()));
        let on = match self.only.as_deref() {
            None => Set::all(),
            Some([only]) if only.trim() == "none" => Set::none(),
            Some(list) => {
                named(list).map_err(|e| Failure::usage(format!("--only: {e}, or none")))?
            }
        };
        let off = named(&self.without).map_err(|e| Failure::usage(format!("--without: {e}")))?;
        let mut set = on.without(off);
        if self.only.is_none() {
            // Switching a need off takes along what cannot work without it: `--without precision` is asked for, not a mistake.
            while let Some(o) = set.iter().find(|o| o.needs.iter().any(|n| !set.has(n))) {
                set = set.without(Set::named([o.name]).map_err(Failure::usage)?);
            }
        }
        set.check_needs().map_err(|e| Failure::usage(format!("--only: {e}")))?;
        Ok(set)
    }
}

/// The list of optimizations, for the end of `run --help`.
pub fn optimizations_help() -> String {
    let phase = |p: Phase| match p {
        Phase::One => "phase 1",
        Phase::Two => "phase 2",
        Phase::Three => "phase 3",
        Phase::Beyond => "beyond ",
    };
    let expected = |e: Expected| match e {
        Expected::Range(low, high) => format!(" Expected {low}–{high}×."),
        _ => String::new(),
    };
    let lines: Vec<String> = ALL
        .iter()
        .map(|o| {
            format!("  {:<14} {}  {}{}", o.name, phase(o.phase), o.summary, expected(o.expected))
        })
        .collect();
    format!("Optimizations (all are on; see --only and --without):\n{}", lines.join("\n"))
}

/// A value of `--dtype`.
pub fn dtype(text: &str) -> Result<DtypePolicy, String> {
    match text {
        "auto" => Ok(DtypePolicy::Auto),
        "native" => Ok(DtypePolicy::Native),
        "bf16-emulated" => Ok(DtypePolicy::Bf16Emulated),
        _ => Format::ALL
            .into_iter()
            .find(|f| f.is_written() && f.name() == text)
            .map(DtypePolicy::Fixed)
            .ok_or_else(|| {
                let formats: Vec<_> =
                    Format::ALL.iter().filter(|f| f.is_written()).map(|f| f.name()).collect();
                let known = ["auto", "native", "bf16-emulated"].into_iter().chain(formats);
                let known: Vec<&str> = known.collect();
                format!(
                    "{}known are {}",
                    crate::units::did_you_mean(text, known.iter().copied()),
                    known.join(", ")
                )
            }),
    }
}

/// A value of `--kv-dtype`.
fn kv_dtype(text: &str) -> Result<KvElement, String> {
    KvElement::ALL
        .into_iter()
        .find(|e| e.name() == text)
        .ok_or_else(|| format!("known are {}", KvElement::ALL.map(KvElement::name).join(", ")))
}

/// More threads than this for each usable core only wait for one another.
const THREADS_PER_CORE: usize = 4;

/// More sequences at a time than this take memory and no longer make a step's rows cheaper.
const MAX_BATCH: usize = 4096;

fn threads(text: &str) -> Result<usize, String> {
    threads_of(text, crate::machine::usable_threads())
}

fn threads_of(text: &str, cores: usize) -> Result<usize, String> {
    let most = cores.saturating_mul(THREADS_PER_CORE);
    match text.parse::<usize>() {
        Ok(n) if (1..=most).contains(&n) => Ok(n),
        _ => Err(format!(
            "must be a whole number from 1 to {most}: {THREADS_PER_CORE} for each of the {} that this process may use",
            crate::units::counted(cores as u64, "core")
        )),
    }
}

fn batch_size(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(n) if (1..=MAX_BATCH).contains(&n) => Ok(n),
        _ => Err(format!("must be a whole number from 1 to {MAX_BATCH}")),
    }
}

fn top_k(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "must be a whole number; 0 is off".to_string())
}

fn whole(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("must be a whole number from 0 to {}", u64::MAX))
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(n) if (1..=1 << 20).contains(&n) => Ok(n),
        _ => Err("must be a whole number from 1 to 1048576".into()),
    }
}

/// Seconds that a clock can count: above 0, at most 10^9 (32 years).
pub(super) fn positive_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if s > 0.0 && s <= 1e9 => Ok(s),
        _ => Err("must be a number of seconds above 0, at most 1e9".into()),
    }
}

/// Checks a temperature, from a flag or a record.
pub fn check_temperature(x: f64) -> Result<f32, String> {
    if x.is_finite() && (0.0..=100.0).contains(&x) {
        Ok(x as f32)
    } else {
        Err("must be a number from 0 to 100".into())
    }
}

/// Checks a top-p, from a flag or a record.
pub fn check_top_p(x: f64) -> Result<f32, String> {
    if x > 0.0 && x <= 1.0 {
        Ok(x as f32)
    } else {
        Err("must be a number above 0 and at most 1".into())
    }
}

fn temperature(text: &str) -> Result<f32, String> {
    check_temperature(text.parse().unwrap_or(f64::NAN))
}

fn top_p(text: &str) -> Result<f32, String> {
    check_top_p(text.parse().unwrap_or(f64::NAN))
}

fn template_file(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix('@') {
        Some(path) if !path.is_empty() => Ok(path.into()),
        _ => Err("is given as a file, with @ before its path: @template.jinja".into()),
    }
}

/// `NAME=JSON`; a value that is no JSON is most often a text without its quotes.
fn template_argument(text: &str) -> Result<(String, serde_json::Value), String> {
    let (name, value) =
        text.split_once('=').ok_or("give NAME=JSON, such as enable_thinking=false")?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty()
        || !name.chars().all(is_name)
        || name.starts_with(|c: char| c.is_ascii_digit())
    {
        return Err("the name of a variable is made of letters, digits and _".into());
    }
    let value = serde_json::from_str(value).map_err(|e| {
        format!("the value is not JSON ({e}); a text needs double quotes: {name}='\"…\"'")
    })?;
    Ok((name.into(), value))
}

fn stop_string(text: &str) -> Result<String, String> {
    if text.is_empty() {
        Err("an empty stop string would end every answer at once".into())
    } else {
        Ok(text.to_string())
    }
}

fn stop_on(text: &str) -> Result<StopOn, String> {
    let mut on = StopOn { eos: false, strings: false, sentence: false, repetition: false };
    for name in text.split(',').map(str::trim) {
        match name {
            "all" => on = StopOn { eos: true, strings: true, sentence: true, repetition: true },
            "none" => {
                on = StopOn { eos: false, strings: false, sentence: false, repetition: false }
            }
            "eos" => on.eos = true,
            "strings" => on.strings = true,
            "sentence" => on.sentence = true,
            "loop" => on.repetition = true,
            _ => {
                let near = crate::units::did_you_mean(
                    name,
                    ["all", "none", "eos", "strings", "sentence", "loop"],
                );
                return Err(format!(
                    "{near}a comma-separated list of eos, strings, sentence, loop; or all, none"
                ));
            }
        }
    }
    Ok(on)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toggles(only: Option<&str>, without: &str) -> Toggles {
        let list = |s: &str| s.split(',').map(String::from).collect();
        Toggles { only: only.map(list), without: list(without) }
    }

    #[test]
    fn only_and_without_choose_from_the_registry() {
        assert_eq!(toggles(None, "").set().unwrap(), Set::all());
        assert_eq!(toggles(Some("none"), "").set().unwrap(), Set::none());
        assert_eq!(
            toggles(Some("cache,mask"), "mask").set().unwrap(),
            Set::named(["cache"]).unwrap()
        );
        let without = toggles(None, "precision").set().unwrap();
        assert!(!without.has("precision") && !without.has("quantized") && without.has("cache"));
        for (only, off, word) in [
            (Some("quantized"), "", "precision"),
            (Some("speed"), "", "'speed'"),
            (None, "x", "'x'"),
        ] {
            let failure = toggles(only, off).set().unwrap_err();
            assert!(failure.status == 2 && failure.message.contains(word), "{failure:?}");
        }
    }

    #[test]
    fn bad_values_are_refused() {
        for bad in ["nan", "-1", "inf", "x", "101"] {
            assert!(temperature(bad).is_err(), "{bad}");
        }
        for bad in ["0", "nan", "1.01", "-0.5"] {
            assert!(top_p(bad).is_err(), "{bad}");
        }
        for bad in ["0", "-1", "x", "99999999999999999999", "2000000"] {
            assert!(at_least_one(bad).is_err(), "{bad}");
        }
        for (bad, cores) in [
            ("0", 2),
            ("9", 2),
            ("10000", 2),
            ("5", 1),
            ("-1", 2),
            ("99999999999999999999", 2),
            ("x", 2),
        ] {
            let error = threads_of(bad, cores).unwrap_err();
            assert!(
                error.contains(if cores == 1 {
                    "1 to 4: 4 for each of the 1 core "
                } else {
                    "1 to 8"
                }),
                "{error}"
            );
        }
        assert_eq!(
            (threads_of("8", 2), threads_of("4", 1), batch_size("4096")),
            (Ok(8), Ok(4), Ok(4096))
        );
        for bad in ["0", "4097", "1048576", "-3"] {
            assert!(batch_size(bad).unwrap_err().contains("4096"), "{bad}");
        }
        assert!(
            whole("-1").is_err() && top_k("-1").is_err() && whole("18446744073709551616").is_err()
        );
        assert_eq!(whole("18446744073709551615"), Ok(u64::MAX));
        assert!(
            template_file("{{ x }}").unwrap_err().contains("@template.jinja")
                && template_file("@").is_err()
        );
        assert_eq!(template_file("@a b/c.jinja"), Ok("a b/c.jinja".into()));
        assert_eq!(dtype("q4_k"), Ok(DtypePolicy::Fixed(Format::Q4K)));
        assert!(dtype("iq4_xs").unwrap_err().contains("q4_k") && dtype("q2_k").is_err());
        assert!(stop_on("eos,words").is_err());
        assert_eq!(
            stop_on("eos, loop"),
            Ok(StopOn { eos: true, strings: false, sentence: false, repetition: true })
        );
    }

    #[test]
    fn openai_requests_have_openais_defaults_where_no_flag_was_typed() {
        use clap::{CommandFactory, FromArgMatches, Parser};
        #[derive(Parser)]
        struct Flags {
            #[command(flatten)]
            shared: SharedArgs,
        }
        let parse = |args: &[&str]| {
            let matches =
                Flags::command().get_matches_from(std::iter::once("x").chain(args.iter().copied()));
            let mut shared = Flags::from_arg_matches(&matches).unwrap().shared;
            shared.note_typed(&matches);
            shared
        };
        let of = |shared: &SharedArgs| {
            let g = shared.generation();
            (
                g.max_tokens,
                g.sampling.temperature,
                g.sampling.top_p,
                g.sampling.top_k,
                g.stop.eos,
                g.stop.sentence,
                g.stop.repetition,
            )
        };
        assert_eq!(of(&parse(&[])), (128, 0.2, 0.95, 50, true, true, true));
        assert_eq!(of(&parse(&[]).for_openai()), (2048, 1.0, 1.0, 0, true, false, false));
        let typed = [
            "--max-tokens",
            "128",
            "--temperature",
            "0.2",
            "--top-p",
            "0.95",
            "--top-k",
            "50",
            "--stop-on",
            "all",
        ];
        assert_eq!(of(&parse(&typed).for_openai()), (128, 0.2, 0.95, 50, true, true, true));
    }

    #[test]
    fn help_lists_every_optimization() {
        let help = optimizations_help();
        assert!(ALL.iter().all(|o| help.contains(o.name) && help.contains(o.summary)));
    }
}

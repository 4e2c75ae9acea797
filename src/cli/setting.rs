//! A setting of `compare`: a dtype, or `key=value,…` over the flags that all commands share and those that choose optimizations. In: what
//! was typed, and the command's own flags as a base. Out: parsed flags and a configuration. The flags' own parser checks the values.

use super::Failure;
use super::args::{SharedArgs, Toggles};
use crate::optimizations::Set;
use crate::pipeline::PipelineConfig;
use crate::units::{did_you_mean, shown};
use clap::{CommandFactory, FromArgMatches, Parser};

/// A parsed setting.
#[derive(Debug, Clone)]
pub struct Setting {
    /// As typed; a repeated one has its number behind it.
    pub name: String,
    /// As typed.
    pub typed: String,
    /// Its keys and values in the order typed.
    pairs: Vec<(String, String)>,
    /// All flags, the base's included.
    pub shared: SharedArgs,
    /// The optimizations that are on.
    pub on: Set,
}

/// The flags that a setting may change.
#[derive(Parser, Debug)]
#[command(name = "setting", no_binary_name = true, disable_help_flag = true)]
struct Flags {
    #[command(flatten)]
    shared: SharedArgs,
    #[command(flatten)]
    toggles: Toggles,
}

/// Flags that say how much is run or shown: the same for all settings.
const NOT_SETTINGS: [&str; 6] = ["limit", "dry-run", "max-time", "quiet", "verbose", "progress"];

/// Flags whose values are lists: joined by `+` in a setting, because `,` separates its keys.
const LISTS: [&str; 3] = ["only", "without", "stop-on"];

/// The keys of a setting.
fn keys() -> Vec<String> {
    let command = Flags::command();
    let flags = command.get_arguments().filter(|a| !a.is_hide_set()).filter_map(|a| a.get_long());
    flags.filter(|f| !NOT_SETTINGS.contains(f)).map(String::from).collect()
}

/// Whether a flag takes no value.
fn is_switch(key: &str) -> bool {
    let command = Flags::command();
    command.get_arguments().any(|a| a.get_long() == Some(key) && !a.get_action().takes_values())
}

impl Setting {
    /// Parses one setting over the command's own flags. The error says what was wrong and what would work.
    pub fn parse(typed: &str, base: &SharedArgs) -> Result<Setting, Failure> {
        let fail = |why: String| Failure::usage(format!("setting '{}': {why}", shown(typed)));
        let pairs = split(typed).map_err(fail)?;
        let mut args: Vec<String> = Vec::new();
        for (key, value) in base_flags(base).into_iter().chain(hidden_flags(base)) {
            // A key of the setting replaces the base's flag, all values of a repeatable one included.
            if pairs.iter().all(|(k, _)| *k != key) {
                args.extend(flag(&key, &value));
            }
        }
        for (key, value) in &pairs {
            if is_switch(key) && !["true", "false"].contains(&value.as_str()) {
                return Err(fail(format!("{key}: is true or false")));
            }
            args.extend(flag(
                key,
                &if LISTS.contains(&key.as_str()) {
                    value.replace('+', ",")
                } else {
                    value.clone()
                },
            ));
        }
        let parsed =
            Flags::command().try_get_matches_from(args).and_then(|m| Flags::from_arg_matches(&m));
        let flags = parsed.map_err(|e| fail(first_line(&e)))?;
        let on = flags.toggles.set().map_err(|f| fail(f.message))?;
        Ok(Setting { name: typed.into(), typed: typed.into(), pairs, shared: flags.shared, on })
    }

    /// Parses all of them; the first is the reference. Repeated ones get a number, so that a setting can be compared with itself.
    pub fn parse_all(typed: &[String], base: &SharedArgs) -> Result<Vec<Setting>, Failure> {
        let mut settings: Vec<Setting> = Vec::new();
        for text in typed {
            let mut setting = Setting::parse(text, base)?;
            let same = settings.iter().filter(|s| s.typed == setting.typed).count();
            if same > 0 {
                setting.name = format!("{} ({})", setting.typed, same + 1);
            }
            settings.push(setting);
        }
        Ok(settings)
    }

    /// Whether only the dtype is chosen.
    pub fn is_only_dtype(&self) -> bool {
        matches!(self.pairs.as_slice(), [(key, _)] if key == "dtype")
    }

    /// The configuration.
    pub fn config(&self) -> PipelineConfig {
        self.shared.config(self.on)
    }

    /// The flags of `run` that do the same.
    pub fn flags(&self) -> String {
        let one = |(key, value): &(String, String)| {
            let value =
                if LISTS.contains(&key.as_str()) { value.replace('+', ",") } else { value.clone() };
            flag(key, &value).iter().map(|a| quoted(a)).collect::<Vec<_>>().join(" ")
        };
        self.pairs.iter().map(one).filter(|f| !f.is_empty()).collect::<Vec<_>>().join(" ")
    }
}

/// A flag as arguments; `--key=value`, so that a value may begin with a hyphen.
fn flag(key: &str, value: &str) -> Vec<String> {
    match (is_switch(key), value) {
        (true, "true") => vec![format!("--{key}")],
        (true, _) => vec![],
        _ => vec![format!("--{key}={value}")],
    }
}

/// For a shell, if it needs quotes; `--key value` reads better than `--key=value`.
fn quoted(arg: &str) -> String {
    let plain = |s: &str| {
        s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.,:/+".contains(c)) && !s.is_empty()
    };
    match arg.split_once('=') {
        Some((key, value)) if plain(value) && !value.starts_with('-') => format!("{key} {value}"),
        Some((key, value)) => format!("{key}='{}'", value.replace('\'', r"'\''")),
        None => arg.to_string(),
    }
}

/// `bf16` or `key=value,key=value` as pairs.
fn split(typed: &str) -> Result<Vec<(String, String)>, String> {
    let known = keys();
    if !typed.contains('=') {
        return match typed.is_empty() {
            true => Err("is empty; a dtype or key=value,… would work".into()),
            false => Ok(vec![("dtype".into(), typed.into())]),
        };
    }
    let mut pairs: Vec<(String, String)> = Vec::new();
    for part in typed.split(',') {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| format!("'{}' is not key=value (lists are joined by +)", shown(part)))?;
        let key = key.trim().replace('_', "-");
        if !known.contains(&key) {
            let near = did_you_mean(&key, known.iter().map(String::as_str));
            return Err(format!(
                "no flag is called '{}'; {near}known are {}",
                shown(&key),
                known.join(", ")
            ));
        }
        if pairs.iter().any(|(k, _)| *k == key) {
            return Err(format!("{key}: is there twice"));
        }
        pairs.push((key, value.trim().to_string()));
    }
    Ok(pairs)
}

/// clap's message without its usage and hints.
fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
    shown(line)
}

/// The command's own flags as keys and values: what a fresh process needs to see the same. Every field is named, so that a new flag
/// cannot be forgotten here.
pub fn base_flags(base: &SharedArgs) -> Vec<(String, String)> {
    let SharedArgs {
        model,
        dtype,
        threads,
        batch_size,
        kv_memory,
        kv_dtype,
        kernels: _,
        max_tokens,
        temperature,
        top_p,
        top_k,
        seed,
        stop,
        stop_on,
        system,
        template_arg,
        raw,
        chat_template,
        continue_final_message,
        typed: _,
        form: _,
        limit: _,
        dry_run: _,
        max_time: _,
        quiet: _,
        verbose: _,
        progress: _,
    } = base;
    let mut flags = vec![
        ("model", Some(model.clone())),
        ("dtype", Some(super::results::dtype_name(*dtype))),
        ("threads", threads.map(|n| n.to_string())),
        ("batch-size", Some(batch_size.to_string())),
        ("kv-memory", kv_memory.map(|b| b.0.to_string())),
        ("kv-dtype", kv_dtype.map(|e| e.name().to_string())),
        ("max-tokens", Some(max_tokens.to_string())),
        ("temperature", Some(temperature.to_string())),
        ("top-p", Some(top_p.to_string())),
        ("top-k", Some(top_k.to_string())),
        ("seed", Some(seed.to_string())),
        ("system", system.clone()),
        ("raw", raw.then(|| "true".to_string())),
        ("chat-template", chat_template.as_ref().map(|path| format!("@{}", path.display()))),
        ("continue-final-message", continue_final_message.then(|| "true".to_string())),
    ];
    flags.extend(
        template_arg.iter().map(|(name, value)| ("template-arg", Some(format!("{name}={value}")))),
    );
    flags.extend(stop.iter().map(|s| ("stop", Some(s.clone()))));
    let on: Vec<&str> = [
        (stop_on.eos, "eos"),
        (stop_on.strings, "strings"),
        (stop_on.sentence, "sentence"),
        (stop_on.repetition, "loop"),
    ]
    .into_iter()
    .filter_map(|(on, name)| on.then_some(name))
    .collect();
    flags.push(("stop-on", Some(if on.is_empty() { "none".into() } else { on.join(",") })));
    flags.into_iter().filter_map(|(k, v)| Some((k.to_string(), v?))).collect()
}

/// Hidden flags, which no setting may change but fresh processes need.
pub fn hidden_flags(base: &SharedArgs) -> Vec<(String, String)> {
    base.kernels.iter().map(|k| ("kernels".to_string(), k.clone())).collect()
}

/// The base's flags as arguments for a fresh process.
pub fn as_arguments(base: &SharedArgs) -> Vec<String> {
    base_flags(base).into_iter().chain(hidden_flags(base)).flat_map(|(k, v)| flag(&k, &v)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Format;
    use crate::pipeline::DtypePolicy;

    fn base(args: &[&str]) -> SharedArgs {
        Flags::parse_from(args).shared
    }

    #[test]
    fn a_dtype_alone_and_keys_with_values() {
        let s = Setting::parse("bf16", &base(&[])).unwrap();
        assert!(
            s.is_only_dtype()
                && s.shared.dtype == DtypePolicy::Fixed(Format::Bf16)
                && s.flags() == "--dtype bf16"
        );
        assert_eq!(s.on, Set::all());
        let s = Setting::parse("dtype=q8_0,batch_size=4,without=queue+mask", &base(&[])).unwrap();
        assert!(
            s.shared.batch_size == 4
                && !s.on.has("queue")
                && !s.on.has("mask")
                && s.on.has("cache")
        );
        assert_eq!(s.flags(), "--dtype q8_0 --batch-size 4 --without queue,mask");
        assert!(!s.is_only_dtype());
        let s = Setting::parse("raw=true,stop=a b,threads=1", &base(&[])).unwrap();
        assert!(s.shared.raw && s.shared.stop == ["a b"] && s.shared.threads == Some(1));
        assert_eq!(s.flags(), "--raw --stop='a b' --threads 1");
        assert!(!Setting::parse("raw=false", &base(&["--raw"])).unwrap().shared.raw);
    }

    #[test]
    fn the_commands_own_flags_are_the_base_and_a_key_replaces_them() {
        let base = base(&[
            "--threads=3",
            "--stop=x",
            "--stop=y",
            "--dtype=bf16-emulated",
            "--stop-on=eos,loop",
            "--seed=7",
            "--template-arg=a=[1, \"x\"]",
        ]);
        let s = Setting::parse("f32", &base).unwrap();
        assert!(s.shared.threads == Some(3) && s.shared.stop == ["x", "y"] && s.shared.seed == 7);
        assert_eq!(Setting::parse("stop=z", &base).unwrap().shared.stop, ["z"]);
        let again = Setting::parse("batch-size=16", &base).unwrap();
        assert_eq!(again.shared.dtype, DtypePolicy::Bf16Emulated);
        assert_eq!(format!("{:?}", again.shared.stop_on), format!("{:?}", base.stop_on));
        let arguments = as_arguments(&base);
        assert_eq!(format!("{:?}", Flags::parse_from(&arguments).shared), format!("{base:?}"));
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line_with_status_2() {
        for (typed, part) in [
            ("bf17", "bf16"),
            ("", "is empty"),
            ("speed=9", "known are model, dtype"),
            (
                "max-token=9",
                "no flag is called 'max-token'; did you mean 'max-tokens'? known are model, dtype",
            ),
            ("threads=0", "threads"),
            ("threads=1,threads=2", "twice"),
            ("dtype=f32,queue", "key=value"),
            ("without=quick", "'quick'"),
            ("only=quantized", "precision"),
            ("raw=maybe", "true or false"),
            ("limit=3", "no flag is called 'limit'"),
            ("kernels=portable", "no flag is called 'kernels'"),
            ("top-p=2", "top-p"),
        ] {
            let failure = Setting::parse(typed, &base(&[])).unwrap_err();
            assert!(
                failure.status == 2 && failure.message.contains(part),
                "{typed}: {}",
                failure.message
            );
            assert_eq!(failure.message.lines().count(), 1, "{typed}");
        }
    }

    #[test]
    fn a_setting_can_be_compared_with_itself() {
        let typed = ["f32".to_string(), "f32".to_string(), "bf16".to_string(), "f32".to_string()];
        let settings = Setting::parse_all(&typed, &base(&[])).unwrap();
        assert_eq!(
            settings.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
            ["f32", "f32 (2)", "bf16", "f32 (3)"]
        );
    }
}

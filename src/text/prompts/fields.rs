//! Generation settings in a record: the flags' names with underscores, the flags' bounds. In: a JSON value or a CSV cell. Out: the
//! setting, or what it must be. `null` and an empty cell mean that the record has no setting of its own.

use super::choices;
use super::fault::Fault;
use crate::text::Constraint;
use serde_json::{Map, Value};

/// What `stop_on` lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopOn {
    /// End-of-sequence tokens.
    pub eos: bool,
    /// The strings of `stop`.
    pub strings: bool,
    /// A sentence's end close to the limit.
    pub sentence: bool,
    /// Going round in circles.
    pub repetition: bool,
}

/// Settings that a record has of its own.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationFields {
    /// 1 to 1,048,576.
    pub max_tokens: Option<usize>,
    /// 0 to 100.
    pub temperature: Option<f32>,
    /// Above 0, at most 1.
    pub top_p: Option<f32>,
    /// 0 is off.
    pub top_k: Option<usize>,
    /// Any 64-bit number.
    pub seed: Option<u64>,
    /// None of them empty.
    pub stop: Option<Vec<String>>,
    /// Which rules may end the answer.
    pub stop_on: Option<StopOn>,
    /// A system message.
    pub system: Option<String>,
    /// No chat template.
    pub raw: Option<bool>,
    /// The answer goes on with the last message, which is the assistant's.
    pub continue_final_message: Option<bool>,
    /// Whether the template opens a turn for the answer.
    pub add_generation_prompt: Option<bool>,
    /// Variables of the chat template.
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// The form that the answer must have, and the field that says so.
    pub constraint: Option<(&'static str, Constraint)>,
    /// The texts among which the answer is scored.
    pub choices: Option<Vec<String>>,
    /// 0 to 20: log probabilities, and so many alternatives.
    pub logprobs: Option<usize>,
    /// 1 to 16 answers.
    pub n: Option<usize>,
    /// -2 to 2.
    pub presence_penalty: Option<f32>,
    /// -2 to 2.
    pub frequency_penalty: Option<f32>,
    /// Above 0, at most 10.
    pub repetition_penalty: Option<f32>,
    /// 0 to 1.
    pub min_p: Option<f32>,
}

/// Names of the settings.
pub(super) const NAMES: [&str; 16] = [
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "stop",
    "stop_on",
    "system",
    "raw",
    "continue_final_message",
    "json_schema",
    "regex",
    "grammar",
    "response_format",
    "choices",
    "logprobs",
];

const MAX_TOKENS: u64 = 1 << 20;
/// Stop strings of one record; OpenAI allows 4.
const MAX_STOPS: usize = 64;

/// A whole number of 0 or more, `8.0` too: programs whose columns have gaps write whole numbers so.
fn whole(value: &Value) -> Option<u64> {
    let float = || {
        value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(x))
    };
    value.as_u64().or_else(|| float().map(|x| x as u64))
}

fn must(name: &str, what: &str) -> Fault {
    ("bad_field", format!("{name} must be {what}"))
}

impl GenerationFields {
    /// Names of all settings that a record can have.
    pub fn names() -> &'static [&'static str] {
        &NAMES
    }

    /// Takes one setting from JSON. Names that are none are the caller's mistake and do nothing.
    #[allow(clippy::too_many_lines, reason = "one arm a field")]
    pub fn set(&mut self, name: &str, value: &Value) -> Result<(), Fault> {
        if value.is_null() {
            return Ok(());
        }
        match name {
            "max_tokens" => {
                let n = whole(value).filter(|n| (1..=MAX_TOKENS).contains(n));
                self.max_tokens =
                    Some(n.ok_or_else(|| must(name, "a whole number from 1 to 1048576"))? as usize);
            }
            "temperature" => {
                let x = value.as_f64().filter(|x| (0.0..=100.0).contains(x));
                self.temperature =
                    Some(x.ok_or_else(|| must(name, "a number from 0 to 100"))? as f32);
            }
            "top_p" => {
                let x = value.as_f64().filter(|x| *x > 0.0 && *x <= 1.0);
                self.top_p =
                    Some(x.ok_or_else(|| must(name, "a number above 0 and at most 1"))? as f32);
            }
            "top_k" => {
                let n = whole(value).and_then(|n| usize::try_from(n).ok());
                self.top_k = Some(n.ok_or_else(|| must(name, "a whole number, 0 or more"))?);
            }
            "seed" => {
                self.seed =
                    Some(whole(value).ok_or_else(|| {
                        must(name, "a whole number from 0 to 18446744073709551615")
                    })?)
            }
            "stop" => {
                let strings: Option<Vec<String>> = match value {
                    Value::String(one) => Some(vec![one.clone()]),
                    Value::Array(many) => {
                        many.iter().map(|s| s.as_str().map(String::from)).collect()
                    }
                    _ => None,
                };
                let good =
                    strings.filter(|s| s.len() <= MAX_STOPS && s.iter().all(|s| !s.is_empty()));
                self.stop = Some(good.ok_or_else(|| {
                    must(name, "a string that is not empty, or at most 64 of them")
                })?);
            }
            "stop_on" => {
                let names: Option<Vec<&str>> = match value {
                    Value::String(list) => Some(list.split(',').map(str::trim).collect()),
                    Value::Array(many) => many.iter().map(Value::as_str).collect(),
                    _ => None,
                };
                self.stop_on = Some(names.and_then(|names| stop_on(&names)).ok_or_else(|| {
                    must(name, "a list of eos, strings, sentence, loop; or all, none")
                })?);
            }
            "system" => {
                self.system =
                    Some(value.as_str().ok_or_else(|| must(name, "a string"))?.to_string())
            }
            "raw" => self.raw = Some(boolean(name, value)?),
            "continue_final_message" => self.continue_final_message = Some(boolean(name, value)?),
            "add_generation_prompt" => self.add_generation_prompt = Some(boolean(name, value)?),
            "chat_template_kwargs" => {
                let Value::Object(variables) = value else { return Err(must(name, "an object")) };
                self.chat_template_kwargs = Some(variables.clone());
            }
            "json_schema" => {
                let schema = Constraint::schema(value)
                    .ok_or_else(|| must(name, "a JSON schema: an object, or its text"))?;
                self.constrain("json_schema", schema)?;
            }
            "regex" => {
                let text = value.as_str().ok_or_else(|| must(name, "a string"))?;
                self.constrain("regex", Constraint::Regex(text.to_string()))?;
            }
            "grammar" => {
                let text = value.as_str().ok_or_else(|| must(name, "a string: a Lark grammar"))?;
                self.constrain("grammar", Constraint::Lark(text.to_string()))?;
            }
            "response_format" => {
                let format = Constraint::response_format(value)
                    .map_err(|what| ("bad_field", format!("{name} {what}")))?;
                if let Some(format) = format {
                    self.constrain("response_format", format)?;
                }
            }
            "structured_outputs" => {
                let constraint = structured(value)?;
                self.constrain("structured_outputs", constraint)?;
            }
            "choices" => {
                let texts = strings(value).ok_or_else(|| must(name, "a list of texts"))?;
                let texts = choices::checked(texts)
                    .map_err(|what| ("bad_field", format!("{name} {what}")))?;
                if let Some((other, _)) = &self.constraint {
                    return Err((
                        "bad_field",
                        format!("{other} and choices exclude each other; give one"),
                    ));
                }
                self.choices = Some(texts);
            }
            "logprobs" => {
                let n = whole(value).filter(|n| *n <= 20);
                self.logprobs =
                    Some(n.ok_or_else(|| must(name, "a whole number from 0 to 20"))? as usize);
            }
            "n" => {
                let n = whole(value).filter(|n| (1..=16).contains(n));
                self.n = Some(n.ok_or_else(|| must(name, "a whole number from 1 to 16"))? as usize);
            }
            "presence_penalty" => {
                self.presence_penalty =
                    Some(number(name, value, -2.0..=2.0, "a number from -2 to 2")?)
            }
            "frequency_penalty" => {
                self.frequency_penalty =
                    Some(number(name, value, -2.0..=2.0, "a number from -2 to 2")?)
            }
            "repetition_penalty" => {
                let penalty = number(name, value, 0.0..=10.0, "a number above 0 and at most 10")?;
                if penalty == 0.0 {
                    return Err(must(name, "a number above 0 and at most 10"));
                }
                self.repetition_penalty = Some(penalty);
            }
            "min_p" => self.min_p = Some(number(name, value, 0.0..=1.0, "a number from 0 to 1")?),
            _ => {}
        }
        Ok(())
    }

    /// Two forms in one record contradict each other.
    fn constrain(&mut self, name: &'static str, constraint: Constraint) -> Result<(), Fault> {
        let other = self
            .constraint
            .as_ref()
            .map(|(other, _)| *other)
            .or(self.choices.as_ref().map(|_| "choices"));
        match other {
            Some(other) => {
                Err(("bad_field", format!("{other} and {name} exclude each other; give one")))
            }
            None => {
                self.constraint = Some((name, constraint));
                Ok(())
            }
        }
    }

    /// Takes one setting from a CSV cell; an empty one sets nothing.
    pub fn set_text(&mut self, name: &str, text: &str) -> Result<(), Fault> {
        let value = match (name, text.trim()) {
            (_, "") => return Ok(()),
            ("stop" | "system" | "json_schema" | "regex" | "grammar", _) => {
                Value::String(text.to_string())
            }
            ("response_format", json) => serde_json::from_str(json).unwrap_or(Value::Bool(false)),
            ("choices", list) if list.starts_with('[') => {
                serde_json::from_str(list).unwrap_or(Value::Bool(false))
            }
            ("choices", list) => {
                list.split(',').map(|one| Value::String(one.trim().to_string())).collect()
            }
            ("stop_on", list) => Value::String(list.to_string()),
            ("raw" | "continue_final_message", "true" | "True" | "1" | "yes") => Value::Bool(true),
            ("raw" | "continue_final_message", "false" | "False" | "0" | "no") => {
                Value::Bool(false)
            }
            ("raw" | "continue_final_message", _) => return Err(must(name, "true or false")),
            // A number as JSON writes it; anything else is told to be none.
            (_, number) => serde_json::from_str(number)
                .ok()
                .filter(Value::is_number)
                .unwrap_or(Value::Bool(false)),
        };
        self.set(name, &value)
    }
}

fn number(
    name: &str,
    value: &Value,
    range: std::ops::RangeInclusive<f64>,
    what: &str,
) -> Result<f32, Fault> {
    value.as_f64().filter(|x| range.contains(x)).map(|x| x as f32).ok_or_else(|| must(name, what))
}

fn strings(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|one| one.as_str().map(String::from)).collect()
}

/// vLLM's `structured_outputs`: one of `json`, `regex`, `choice`, `grammar`.
fn structured(value: &Value) -> Result<Constraint, Fault> {
    const NAME: &str = "structured_outputs";
    let fields = value.as_object().ok_or_else(|| must(NAME, "an object"))?;
    let mut given = fields.iter().filter(|(_, value)| !value.is_null());
    let (Some((name, value)), None) = (given.next(), given.next()) else {
        return Err(must(NAME, "an object with one of json, regex, choice, grammar"));
    };
    let text = || {
        value.as_str().map(String::from).ok_or_else(|| must(&format!("{NAME}.{name}"), "a string"))
    };
    match name.as_str() {
        "json" => Constraint::schema(value).ok_or_else(|| {
            must("structured_outputs.json", "a JSON schema: an object, or its text")
        }),
        "regex" => text().map(Constraint::Regex),
        "grammar" => text().map(Constraint::Lark),
        "choice" => {
            let texts = strings(value)
                .filter(|texts| !texts.is_empty() && texts.iter().all(|text| !text.is_empty()));
            texts.map(Constraint::OneOf).ok_or_else(|| {
                must("structured_outputs.choice", "a list of texts that are not empty")
            })
        }
        other => {
            let other =
                crate::units::shown(&other.chars().take(60).collect::<String>()).to_string();
            Err((
                "unsupported",
                format!(
                    "{NAME}.{other}: this field is not supported; json, regex, choice and grammar are"
                ),
            ))
        }
    }
}

fn boolean(name: &str, value: &Value) -> Result<bool, Fault> {
    value.as_bool().ok_or_else(|| must(name, "true or false"))
}

fn stop_on(names: &[&str]) -> Option<StopOn> {
    let all = |on| StopOn { eos: on, strings: on, sentence: on, repetition: on };
    let mut found = all(false);
    for name in names {
        match *name {
            "all" => found = all(true),
            "none" => found = all(false),
            "eos" => found.eos = true,
            "strings" => found.strings = true,
            "sentence" => found.sentence = true,
            "loop" => found.repetition = true,
            _ => return None,
        }
    }
    Some(found)
}

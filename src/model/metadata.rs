//! What a file says about a model, apart from its tensors: the metadata of a GGUF file or a `config.json`, behind one trait, so that an
//! architecture is read by one function. In: an untrusted file. Out: checked numbers, flags and texts, or one line that names the field.
//! Fields that change what a model computes are refused where nobody asked for them.
//! Over 500 lines: two containers behind one trait, with one set of checks.
// Untrusted input.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use super::ModelError;
use super::gguf::{self, Gguf};
use crate::kernels::Format;
use crate::units::shown;
use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::RangeInclusive;

/// Which container a model comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model) enum Container {
    Gguf,
    /// A folder of safetensors files.
    Checkpoint,
}

/// A field by its names in GGUF metadata (behind the architecture's prefix) and in `config.json` (a path with dots); of several names
/// the first that is there counts.
#[derive(Debug, Clone, Copy)]
pub(in crate::model) struct Key<'a> {
    pub gguf: &'a [&'a str],
    pub hf: &'a [&'a str],
}

/// A field of one name in each.
pub(in crate::model) const fn key<'a>(gguf: &'a &'a str, hf: &'a &'a str) -> Key<'a> {
    Key { gguf: std::slice::from_ref(gguf), hf: std::slice::from_ref(hf) }
}

/// A field's value.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::model) enum Item {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    List(Vec<Item>),
    /// Of a type that no field of a spec has; its name.
    Other(&'static str),
}

impl Item {
    fn shown(&self) -> String {
        match self {
            Item::Integer(n) => n.to_string(),
            Item::Float(x) => x.to_string(),
            Item::Bool(b) => b.to_string(),
            Item::Text(text) => format!("'{}'", shown(&text.chars().take(40).collect::<String>())),
            Item::List(items) => format!("a list of {}", items.len()),
            Item::Other(kind) => kind.to_string(),
        }
    }

    fn number(&self) -> Option<f64> {
        match self {
            Item::Integer(n) => Some(*n as f64),
            Item::Float(x) => Some(*x),
            _ => None,
        }
    }

    fn unsigned(&self) -> Option<u64> {
        match self {
            Item::Integer(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }
}

/// A file's fields and tensor names.
pub(in crate::model) trait Metadata {
    /// Where they come from.
    fn container(&self) -> Container;

    /// A field, and the name it was found under.
    fn find(&self, key: Key) -> Option<(String, Item)>;

    /// The name of a field in messages.
    fn name(&self, key: Key) -> String;

    /// An error about this file.
    fn error(&self, what: &str) -> ModelError;

    /// Whether there is a tensor of this name, in GGUF files and in safetensors files.
    fn has_tensor(&self, gguf: &str, hf: &str) -> bool;

    /// How many tensors there are.
    fn tensors(&self) -> usize;

    /// A short F32 vector of a GGUF file.
    fn vector(&self, name: &str) -> Result<Option<Vec<f32>>, ModelError>;

    /// The vocabulary's size where the file's tokens say it.
    fn vocabulary(&self) -> Option<usize>;
}

impl dyn Metadata + '_ {
    fn wrong(&self, name: &str, item: &Item, wanted: &str) -> ModelError {
        self.error(&format!("{name} is {}; it must be {wanted}", item.shown()))
    }

    /// Whether a config lists what kind each layer is.
    pub(in crate::model) fn has_layer_types(&self) -> bool {
        self.find(key(&"", &"layer_types")).is_some()
    }

    /// A refusal of what a field says.
    pub(in crate::model) fn refuse(&self, key: Key, what: &str) -> ModelError {
        self.error(&format!("{} {what}", self.name(key)))
    }

    pub(in crate::model) fn missing(&self, key: Key) -> ModelError {
        self.refuse(key, "is missing")
    }

    /// An optional integer in `range`.
    pub(in crate::model) fn integer(
        &self,
        key: Key,
        range: RangeInclusive<u64>,
    ) -> Result<Option<usize>, ModelError> {
        let Some((name, item)) = self.find(key) else { return Ok(None) };
        match item.unsigned().filter(|n| range.contains(n)) {
            Some(n) => Ok(Some(n as usize)),
            None => Err(self.wrong(
                &name,
                &item,
                &format!("an integer from {} to {}", range.start(), range.end()),
            )),
        }
    }

    /// An integer that must be there.
    pub(in crate::model) fn need(
        &self,
        key: Key,
        range: RangeInclusive<u64>,
    ) -> Result<usize, ModelError> {
        self.integer(key, range)?.ok_or_else(|| self.missing(key))
    }

    /// One integer for each of `layers` layers: a list of so many, or one for all.
    pub(in crate::model) fn per_layer(
        &self,
        key: Key,
        range: RangeInclusive<u64>,
        layers: usize,
    ) -> Result<Option<Vec<usize>>, ModelError> {
        let Some((name, item)) = self.find(key) else { return Ok(None) };
        let Item::List(items) = &item else {
            return Ok(self.integer(key, range)?.map(|n| vec![n; layers]));
        };
        let numbers: Option<Vec<usize>> = items
            .iter()
            .map(|item| item.unsigned().filter(|n| range.contains(n)).map(|n| n as usize))
            .collect();
        match numbers.filter(|n| n.len() == layers) {
            Some(numbers) => Ok(Some(numbers)),
            None => {
                let wanted =
                    format!("an integer, or {layers}, from {} to {}", range.start(), range.end());
                Err(self.wrong(&name, &item, &wanted))
            }
        }
    }

    /// An optional finite number for which `good` holds; `wanted` says what that is. Also finite, and not rounded to 0, as an f32.
    pub(in crate::model) fn float(
        &self,
        key: Key,
        wanted: &str,
        good: fn(f64) -> bool,
    ) -> Result<Option<f64>, ModelError> {
        let Some((name, item)) = self.find(key) else { return Ok(None) };
        let fits = |x: f64| {
            x.is_finite() && (x as f32).is_finite() && good(x) && good(f64::from(x as f32))
        };
        // GGUF has a type for floats; JSON writes 10000 and 10000.0 for the same.
        let number = match (&item, self.container()) {
            (Item::Integer(_), Container::Gguf) => None,
            _ => item.number(),
        };
        match number.filter(|x| fits(*x)) {
            Some(x) => Ok(Some(x)),
            None => Err(self.wrong(&name, &item, wanted)),
        }
    }

    /// An optional finite number above 0.
    pub(in crate::model) fn positive(&self, key: Key) -> Result<Option<f64>, ModelError> {
        self.float(key, "a finite number above 0", |x| x > 0.0)
    }

    /// Optional numbers.
    pub(in crate::model) fn floats(&self, key: Key) -> Result<Option<Vec<f64>>, ModelError> {
        let Some((name, item)) = self.find(key) else { return Ok(None) };
        let Item::List(items) = &item else {
            return Err(self.wrong(&name, &item, "a list of numbers"));
        };
        let numbers: Option<Vec<f64>> = items.iter().map(Item::number).collect();
        numbers.map(Some).ok_or_else(|| self.wrong(&name, &item, "a list of numbers"))
    }

    /// An optional flag.
    pub(in crate::model) fn bool(&self, key: Key) -> Result<Option<bool>, ModelError> {
        match self.find(key) {
            None => Ok(None),
            Some((_, Item::Bool(b))) => Ok(Some(b)),
            Some((name, item)) => Err(self.wrong(&name, &item, "true or false")),
        }
    }

    /// An optional flag (or 0 and 1) for each of `layers` layers.
    pub(in crate::model) fn flags(
        &self,
        key: Key,
        layers: usize,
    ) -> Result<Option<Vec<bool>>, ModelError> {
        let Some((name, item)) = self.find(key) else { return Ok(None) };
        let Item::List(items) = &item else {
            return Err(self.wrong(&name, &item, "a list of flags"));
        };
        let flag = |item: &Item| match item {
            Item::Bool(b) => Some(*b),
            Item::Integer(n) => Some(*n != 0),
            _ => None,
        };
        let flags: Option<Vec<bool>> = items.iter().map(flag).collect();
        let wanted = format!("a list of {layers} flags, one for each layer");
        flags
            .filter(|f| f.len() == layers)
            .map(Some)
            .ok_or_else(|| self.wrong(&name, &item, &wanted))
    }

    /// An optional list of layers by number; empty where there is none.
    pub(in crate::model) fn indices(
        &self,
        key: Key,
        layers: usize,
    ) -> Result<Vec<usize>, ModelError> {
        let Some((name, item)) = self.find(key) else { return Ok(Vec::new()) };
        let wanted = format!("a list of layers, numbers below {layers}");
        let Item::List(items) = &item else { return Err(self.wrong(&name, &item, &wanted)) };
        let number =
            |item: &Item| item.unsigned().filter(|n| *n < layers as u64).map(|n| n as usize);
        items
            .iter()
            .map(number)
            .collect::<Option<Vec<usize>>>()
            .ok_or_else(|| self.wrong(&name, &item, &wanted))
    }

    /// An optional text.
    pub(in crate::model) fn text(&self, key: Key) -> Result<Option<String>, ModelError> {
        match self.find(key) {
            None => Ok(None),
            Some((_, Item::Text(text))) => Ok(Some(text)),
            Some((name, item)) => Err(self.wrong(&name, &item, "a text")),
        }
    }

    /// An optional list of texts, one for each of `layers` layers.
    pub(in crate::model) fn texts(
        &self,
        key: Key,
        layers: usize,
    ) -> Result<Option<Vec<String>>, ModelError> {
        let Some((name, item)) = self.find(key) else { return Ok(None) };
        let Item::List(items) = &item else {
            return Err(self.wrong(&name, &item, "a list of texts"));
        };
        let text =
            |item: &Item| if let Item::Text(text) = item { Some(text.clone()) } else { None };
        let texts: Option<Vec<String>> = items.iter().map(text).collect();
        let wanted = format!("a list of {layers} texts, one for each layer");
        texts
            .filter(|t| t.len() == layers)
            .map(Some)
            .ok_or_else(|| self.wrong(&name, &item, &wanted))
    }
}

/// What a guarded field may say without meaning anything.
#[derive(Debug, Clone, Copy)]
enum Neutral {
    /// 0 or false.
    Zero,
    /// 0 (as "not set") or 1.
    One,
    /// True.
    True,
    /// One of these texts.
    Text(&'static [&'static str]),
}

/// Fields that change what is computed: an architecture that does not ask for one refuses a file that sets it.
const GUARDED: &[(Key<'static>, Neutral)] = &[
    (
        Key {
            gguf: &["expert_count"],
            hf: &["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"],
        },
        Neutral::One,
    ),
    (key(&"expert_used_count", &"num_experts_per_tok"), Neutral::One),
    (key(&"attention.sliding_window", &"sliding_window"), Neutral::Zero),
    (key(&"embedding_scale", &"embedding_multiplier"), Neutral::One),
    (key(&"residual_scale", &"residual_multiplier"), Neutral::One),
    (Key { gguf: &["logit_scale"], hf: &["logits_scaling", "logit_scale"] }, Neutral::One),
    (key(&"attention.scale", &"attention_multiplier"), Neutral::Zero),
    (key(&"attention.clamp_kqv", &"clip_qkv"), Neutral::Zero),
    (key(&"attn_logit_softcapping", &"attn_logit_softcapping"), Neutral::Zero),
    (key(&"final_logit_softcapping", &"final_logit_softcapping"), Neutral::Zero),
    (key(&"attention.temperature_scale", &"llama_4_scaling_beta"), Neutral::Zero),
    (key(&"attention.causal", &"is_causal"), Neutral::True),
    (key(&"rope.scaling.type", &"rope_scaling.rope_type"), Neutral::Text(&["none", "default"])),
    (key(&"use_parallel_residual", &"use_parallel_residual"), Neutral::Zero),
    (key(&"", &"partial_rotary_factor"), Neutral::One),
    (key(&"", &"attention_bias"), Neutral::Zero),
    (key(&"", &"mlp_bias"), Neutral::Zero),
    (key(&"", &"qkv_bias"), Neutral::Zero),
    (key(&"", &"use_qk_norm"), Neutral::Zero),
    (key(&"", &"qk_layernorm"), Neutral::Zero),
    (key(&"", &"no_rope_layers"), Neutral::Zero),
    (key(&"", &"use_bidirectional_attention"), Neutral::Zero),
    (key(&"", &"hidden_act"), Neutral::Text(&["silu", "swish"])),
];

/// Refuses guarded fields that are set and that nobody asked for.
fn guard(metadata: &dyn Metadata, asked: &HashSet<String>) -> Result<(), ModelError> {
    for (key, neutral) in GUARDED {
        let Some((name, item)) = metadata.find(*key) else { continue };
        if asked.contains(&name) {
            continue;
        }
        let harmless = match (neutral, &item) {
            (Neutral::Zero, Item::Bool(b)) => !b,
            (Neutral::Zero | Neutral::One, item) if item.number() == Some(0.0) => true,
            (Neutral::One, item) => item.number() == Some(1.0),
            (Neutral::True, item) => *item == Item::Bool(true),
            (Neutral::Text(good), Item::Text(text)) => good.contains(&text.as_str()),
            (Neutral::Zero, Item::List(items)) => items.is_empty(),
            _ => false,
        };
        if !harmless {
            let what = if name.contains("expert") {
                "mixtures of experts are not supported"
            } else {
                "not computed by llmopt here"
            };
            return Err(metadata.error(&format!("{name} is set to {}: {what}", item.shown())));
        }
    }
    Ok(())
}

/// The metadata of a GGUF file behind its architecture's prefix.
pub(in crate::model) struct GgufMetadata<'a> {
    pub file: &'a Gguf,
    pub prefix: &'a str,
    pub tokens: usize,
    asked: RefCell<HashSet<String>>,
}

impl<'a> GgufMetadata<'a> {
    pub(in crate::model) fn new(file: &'a Gguf, prefix: &'a str, tokens: usize) -> Self {
        GgufMetadata { file, prefix, tokens, asked: RefCell::default() }
    }

    /// Refuses fields that change what is computed and that nobody asked for.
    pub(in crate::model) fn guard(&self) -> Result<(), ModelError> {
        let asked = self.asked.borrow().clone();
        guard(self, &asked)
    }
}

impl Metadata for GgufMetadata<'_> {
    fn container(&self) -> Container {
        Container::Gguf
    }

    fn find(&self, key: Key) -> Option<(String, Item)> {
        key.gguf.iter().filter(|name| !name.is_empty()).find_map(|name| {
            let full = format!("{}.{name}", self.prefix);
            let item = match self.file.value(&full)? {
                gguf::Value::Unsigned(n) => Item::Integer((*n).into()),
                gguf::Value::Signed(n) => Item::Integer((*n).into()),
                gguf::Value::Float(x) => Item::Float(*x),
                gguf::Value::Bool(b) => Item::Bool(*b),
                gguf::Value::Text(text) => Item::Text(text.clone()),
                gguf::Value::Integers(all) => {
                    Item::List(all.iter().map(|n| Item::Integer((*n).into())).collect())
                }
                gguf::Value::Bools(all) => Item::List(all.iter().map(|b| Item::Bool(*b)).collect()),
                other => Item::Other(other.kind()),
            };
            let name = format!("metadata '{full}'");
            self.asked.borrow_mut().insert(name.clone());
            Some((name, item))
        })
    }

    fn name(&self, key: Key) -> String {
        format!("metadata '{}.{}'", self.prefix, key.gguf.first().copied().unwrap_or_default())
    }

    fn error(&self, what: &str) -> ModelError {
        self.file.error(what)
    }

    fn has_tensor(&self, gguf: &str, _: &str) -> bool {
        self.file.tensors.contains_key(gguf)
    }

    fn tensors(&self) -> usize {
        self.file.tensors.len()
    }

    fn vector(&self, name: &str) -> Result<Option<Vec<f32>>, ModelError> {
        let Some(info) = self.file.tensors.get(name) else { return Ok(None) };
        if info.encoding != Format::F32.into() || info.rows != 1 || info.columns > 1 << 16 {
            return Err(self.file.error(format_args!("tensor {name} is not a short F32 vector")));
        }
        let mut bytes = vec![0; info.columns.saturating_mul(4)];
        self.file.source_of(info).read_at(info.offset, &mut bytes)?;
        Ok(Some(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()))
    }

    fn vocabulary(&self) -> Option<usize> {
        Some(self.tokens)
    }
}

/// A `config.json`. Fields of a `text_config` come before those beside it.
pub(in crate::model) struct ConfigMetadata<'a> {
    pub config: &'a serde_json::Value,
    /// Makes an error about the file.
    pub error: &'a dyn Fn(&str) -> ModelError,
    /// Whether there is a tensor of this name.
    pub has: &'a dyn Fn(&str) -> bool,
    pub tensors: usize,
    asked: RefCell<HashSet<String>>,
}

impl<'a> ConfigMetadata<'a> {
    pub(in crate::model) fn new(
        config: &'a serde_json::Value,
        error: &'a dyn Fn(&str) -> ModelError,
        has: &'a dyn Fn(&str) -> bool,
        tensors: usize,
    ) -> Self {
        ConfigMetadata { config, error, has, tensors, asked: RefCell::default() }
    }

    /// Refuses fields that change what is computed and that nobody asked for.
    pub(in crate::model) fn guard(&self) -> Result<(), ModelError> {
        let asked = self.asked.borrow().clone();
        guard(self, &asked)
    }
}

/// The value at a path with dots; null is absent.
fn at_path<'a>(value: &'a serde_json::Value, path: &str) -> Option<&'a serde_json::Value> {
    path.split('.').try_fold(value, |value, name| value.get(name)).filter(|value| !value.is_null())
}

fn item(value: &serde_json::Value) -> Item {
    match value {
        serde_json::Value::Bool(b) => Item::Bool(*b),
        serde_json::Value::Number(n) => match (n.as_u64(), n.as_i64(), n.as_f64()) {
            (Some(n), _, _) => Item::Integer(n.into()),
            (_, Some(n), _) => Item::Integer(n.into()),
            (_, _, Some(x)) => Item::Float(x),
            _ => Item::Other("a number"),
        },
        serde_json::Value::String(text) => Item::Text(text.clone()),
        serde_json::Value::Array(all) => Item::List(all.iter().map(item).collect()),
        serde_json::Value::Object(_) => Item::Other("an object"),
        serde_json::Value::Null => Item::Other("null"),
    }
}

impl Metadata for ConfigMetadata<'_> {
    fn container(&self) -> Container {
        Container::Checkpoint
    }

    fn find(&self, key: Key) -> Option<(String, Item)> {
        let inner = self.config.get("text_config");
        key.hf.iter().filter(|name| !name.is_empty()).find_map(|name| {
            let value = inner
                .and_then(|inner| at_path(inner, name))
                .or_else(|| at_path(self.config, name))?;
            self.asked.borrow_mut().insert(name.to_string());
            Some((name.to_string(), item(value)))
        })
    }

    fn name(&self, key: Key) -> String {
        key.hf.first().copied().unwrap_or_default().to_string()
    }

    fn error(&self, what: &str) -> ModelError {
        (self.error)(what)
    }

    fn has_tensor(&self, _: &str, hf: &str) -> bool {
        (self.has)(hf)
    }

    fn tensors(&self) -> usize {
        self.tensors
    }

    fn vector(&self, _: &str) -> Result<Option<Vec<f32>>, ModelError> {
        Ok(None)
    }

    fn vocabulary(&self) -> Option<usize> {
        None
    }
}

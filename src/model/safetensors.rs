//! Checkpoints as training leaves them: a folder of `config.json`, `*.safetensors` (in shards or not) and `tokenizer.json`.
//! In: an untrusted folder. Out: spec, vocabulary, and tensors in the order that [`Role`] promises (query and key rows come in
//! half-split rotary order and are permuted when read). Headers are parsed and checked by the `safetensors` crate. No weights are read here.
//! Over 500 lines: one container format; every check stands beside the read that it guards.
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

use super::architectures;
use super::assemble::{Contents, Prefix, Stored, assemble};
use super::gguf::invalid;
use super::metadata::{ConfigMetadata, Container};
use super::source::{Source, shown};
use super::tensors::FileWeights;
use super::tokenizer_json;
use super::vocabulary::MAX_TEMPLATE;
use super::{ModelError, ModelSpec, Vocabulary};
use crate::kernels::Format;
use crate::units::TokenId;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

/// Most bytes of a safetensors header; 100 MB are allowed by the format, 1 MiB is large.
const MAX_HEADER: u64 = 16 << 20;
/// Most bytes of `config.json` and its like.
const MAX_CONFIG: u64 = 1 << 20;
/// Most bytes of the index of shards.
const MAX_INDEX: u64 = 16 << 20;
/// Most bytes of `tokenizer.json`; the largest published ones are some 33 MB.
const MAX_TOKENIZER: u64 = 128 << 20;

/// A checked folder.
pub(super) struct Checkpoint {
    pub(super) spec: ModelSpec,
    pub(super) vocabulary: Vocabulary,
    pub(super) weights: FileWeights,
    /// All files that were used, by name.
    pub(super) files: BTreeMap<String, Arc<Source>>,
}

/// A folder whose files are opened once and remembered for the digest.
struct Folder<'a> {
    path: &'a Path,
    files: BTreeMap<String, Arc<Source>>,
}

impl Folder<'_> {
    /// Opens a file by its plain name; `None` if it does not exist.
    fn open(&mut self, name: &str) -> Result<Option<Arc<Source>>, ModelError> {
        let path = self.path.join(name);
        // A dangling link exists, and is an error of its own.
        if path.symlink_metadata().is_err() {
            return Ok(None);
        }
        let source = Arc::new(Source::open(&path)?);
        self.files.insert(name.into(), source.clone());
        Ok(Some(source))
    }

    fn bytes(&mut self, name: &str, most: u64) -> Result<Option<Vec<u8>>, ModelError> {
        let Some(source) = self.open(name)? else { return Ok(None) };
        if source.len() > most {
            return Err(invalid(
                source.path(),
                format_args!("{} bytes; at most {most} are read", source.len()),
            ));
        }
        let mut bytes = vec![0; source.len() as usize];
        source.read_at(0, &mut bytes)?;
        Ok(Some(bytes))
    }

    fn json<T: for<'de> Deserialize<'de>>(
        &mut self,
        name: &str,
        most: u64,
    ) -> Result<Option<T>, ModelError> {
        let Some(bytes) = self.bytes(name, most)? else { return Ok(None) };
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        serde_json::from_slice(bytes).map(Some).map_err(|e| self.error(name, e))
    }

    fn error(&self, name: &str, what: impl std::fmt::Display) -> ModelError {
        invalid(&self.path.join(name), crate::units::shown(&what.to_string()))
    }

    fn missing(&self, name: &str) -> ModelError {
        invalid(
            self.path,
            format_args!(
                "the folder has no {name}; a checkpoint has config.json, *.safetensors and tokenizer.json"
            ),
        )
    }
}

/// Reads and checks a folder.
pub(super) fn open(path: &Path) -> Result<Checkpoint, ModelError> {
    let mut folder = Folder { path, files: BTreeMap::new() };
    let config: Value =
        folder.json("config.json", MAX_CONFIG)?.ok_or_else(|| folder.missing("config.json"))?;
    let error = |what: &str| invalid(&path.join("config.json"), crate::units::shown(what));
    if !config.is_object() {
        return Err(error("it is not an object"));
    }
    let architecture = architecture(&config).map_err(|text| error(&text))?;
    if config.get("quantization_config").is_some_and(|v| !v.is_null()) {
        return Err(error(
            "quantization_config is set: only F32, F16 and BF16 checkpoints can be read; a GGUF file may be had instead",
        ));
    }
    let found = tensors(&mut folder)?;
    let prefix = Prefix::of(|name| found.contains_key(name));
    let has = |name: &str| found.contains_key(&prefix.apply(name.into()));
    let metadata = ConfigMetadata::new(&config, &error, &has, found.len());
    let spec = architectures::build(architecture, &metadata)?;
    metadata.guard()?;
    let vocabulary = vocabulary(&mut folder, &config, spec.vocab)?;

    let mut stored = HashMap::with_capacity(found.len());
    for (name, (source, info)) in found {
        let format = match info.dtype {
            safetensors::Dtype::F32 => Format::F32,
            safetensors::Dtype::F16 => Format::F16,
            safetensors::Dtype::BF16 => Format::Bf16,
            _ if is_harmless(&name) => continue,
            other => {
                let text =
                    format_args!("tensor {name} is {other:?}; F32, F16 and BF16 can be read");
                return Err(invalid(source.path(), text));
            }
        };
        let Found { dtype: _, shape, offset } = info;
        stored.insert(name, Stored::new(source, shape, format.into(), offset));
    }
    let tied = spec.tied_embeddings;
    let output = prefix.apply("lm_head.weight".into());
    let contents = Contents {
        container: Container::Checkpoint,
        tensors: stored,
        implied_by: "config.json",
        prefix,
        error: &|what| invalid(path, what),
        harmless: &|name| is_harmless(name) || (tied && name == output),
    };
    let weights = assemble(architecture, &spec, contents)?;
    Ok(Checkpoint { spec, vocabulary, weights, files: folder.files })
}

/// Leftovers of some exporters, and what a model that also sees or hears has beside its text part.
fn is_harmless(name: &str) -> bool {
    let other = ["vision_tower.", "multi_modal_projector.", "embed_vision.", "model.visual."];
    // Qwen 3.5 has a part that guesses further tokens.
    let guesses = name.starts_with("mtp.") || name.starts_with("model.mtp.");
    guesses
        || name.ends_with(".rotary_emb.inv_freq")
        || other.iter().any(|part| name.contains(part))
}

/// The architecture that a config names.
fn architecture(config: &Value) -> Result<&'static architectures::Architecture, String> {
    let kind = match config.get("model_type") {
        None | Some(Value::Null) => "",
        Some(Value::String(kind)) => kind,
        Some(_) => return Err("model_type must be a text".into()),
    };
    let classes = match config.get("architectures") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(all)) => {
            all.iter().map(|class| class.as_str().unwrap_or("?").to_string()).collect()
        }
        Some(_) => return Err("architectures must be a list of texts".into()),
    };
    architectures::of_config(kind, &classes)
}

/// A tensor as a header has it.
struct Found {
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    /// Absolute, in bytes.
    offset: u64,
}

/// The tensors of all files of the checkpoint, by name.
fn tensors(folder: &mut Folder) -> Result<HashMap<String, (Arc<Source>, Found)>, ModelError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    const INDEX: &str = "model.safetensors.index.json";
    let index: Option<Index> = folder.json(INDEX, MAX_INDEX)?;
    let names: Vec<String> = match &index {
        Some(index) => {
            let shards: HashSet<&String> = index.weight_map.values().collect();
            if let Some(bad) = shards.iter().filter(|name| !is_shard_name(name)).min() {
                return Err(folder.error(
                    INDEX,
                    format_args!("weight_map names '{bad}', which is not the name of a safetensors file beside it"),
                ));
            }
            let mut shards: Vec<String> = shards.into_iter().cloned().collect();
            shards.sort();
            shards
        }
        None => vec![only_file(folder)?],
    };
    let mut all = HashMap::new();
    for name in names {
        let source = folder.open(&name)?.ok_or_else(|| folder.missing(&name))?;
        for (tensor, found) in header(&source)? {
            if let Some(index) = &index
                && index.weight_map.get(&tensor) != Some(&name)
            {
                return Err(folder.error(
                    INDEX,
                    format_args!("tensor {tensor} is in {name}, but weight_map does not say so"),
                ));
            }
            all.insert(tensor, (source.clone(), found));
        }
    }
    if let Some(missing) =
        index.iter().flat_map(|i| i.weight_map.keys()).find(|name| !all.contains_key(*name))
    {
        return Err(folder.error(
            INDEX,
            format_args!("weight_map names the tensor {missing}, which its file does not hold"),
        ));
    }
    Ok(all)
}

/// The name of the file that holds all tensors where no index says so: `model.safetensors`, or the only one there is.
fn only_file(folder: &Folder) -> Result<String, ModelError> {
    const USUAL: &str = "model.safetensors";
    let entries =
        std::fs::read_dir(folder.path).map_err(|e| super::source::cannot_read(folder.path, &e))?;
    let mut names: Vec<String> =
        entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.retain(|name| is_shard_name(name));
    names.sort();
    match &names[..] {
        _ if names.iter().any(|name| name == USUAL) => Ok(USUAL.into()),
        [one] => Ok(one.clone()),
        [] => Err(invalid(
            folder.path,
            "the folder has no file *.safetensors; a checkpoint has config.json, \
             model.safetensors (or several *.safetensors) and tokenizer.json",
        )),
        [first, second, ..] => Err(invalid(
            folder.path,
            format_args!(
                "the folder has several files such as {first} and {second}, and neither {USUAL} \
                 nor {USUAL}.index.json, which says what is in which"
            ),
        )),
    }
}

/// A plain file name, on any system, that ends in `.safetensors`.
fn is_shard_name(name: &str) -> bool {
    super::cache::is_plain_name(name) && name.ends_with(".safetensors")
}

/// The checked header of a safetensors file: its tensors lie one behind the other and cover the file.
fn header(source: &Source) -> Result<Vec<(String, Found)>, ModelError> {
    let error = |what: &dyn std::fmt::Display| {
        invalid(source.path(), crate::units::shown(&what.to_string()))
    };
    if source.len() < 8 {
        return Err(error(&format_args!(
            "{} bytes are too short for a safetensors file; it is cut off",
            source.len()
        )));
    }
    let mut len = [0; 8];
    source.read_at(0, &mut len)?;
    let len = u64::from_le_bytes(len);
    if len > MAX_HEADER || len > source.len().saturating_sub(8) {
        return Err(error(&format_args!(
            "the header is said to be {len} bytes, but the file has {} and at most {MAX_HEADER} \
             are read; it is cut off or not a safetensors file",
            source.len()
        )));
    }
    let mut bytes = vec![0; len as usize];
    source.read_at(8, &mut bytes)?;
    let base = len.saturating_add(8);
    let metadata =
        parse_header(&bytes, source.len().saturating_sub(base)).map_err(|text| error(&text))?;
    Ok(metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| {
            let found = Found {
                dtype: info.dtype,
                shape: info.shape.clone(),
                offset: base.saturating_add(info.data_offsets.0 as u64),
            };
            (name, found)
        })
        .collect())
}

/// Parses and checks the JSON of a header that is followed by `data` bytes.
pub(super) fn parse_header(
    json: &[u8],
    data: u64,
) -> Result<safetensors::tensor::Metadata, String> {
    // The crate takes the last of several entries of one name.
    let _: UniqueNames = serde_json::from_slice(json).map_err(|e| format!("header: {e}"))?;
    let metadata: safetensors::tensor::Metadata =
        serde_json::from_slice(json).map_err(|e| format!("header: {e}"))?;
    if metadata.data_len() as u64 != data {
        return Err(format!(
            "header: tensors take {} bytes, but {data} follow; the file is cut off or damaged",
            metadata.data_len()
        ));
    }
    Ok(metadata)
}

/// Parses any JSON object of which no name appears twice.
struct UniqueNames;

impl<'de> Deserialize<'de> for UniqueNames {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = UniqueNames;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<UniqueNames, A::Error> {
                let mut names = HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    map.next_value::<serde::de::IgnoredAny>()?;
                    if let Some(twice) = names.replace(name) {
                        return Err(serde::de::Error::custom(format_args!(
                            "tensor {twice} appears twice"
                        )));
                    }
                }
                Ok(UniqueNames)
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// The vocabulary: `tokenizer.json`, and what the files beside it say about special tokens and the template. Whether BOS stands in front
/// of a text is said by the post-processor alone: transformers ignores `add_bos_token` beside a `tokenizer.json`
/// (`tokenization_utils_base.py`, 5.24).
fn vocabulary(folder: &mut Folder, config: &Value, vocab: usize) -> Result<Vocabulary, ModelError> {
    const TOKENIZER: &str = "tokenizer.json";
    let json = folder.bytes(TOKENIZER, MAX_TOKENIZER)?.ok_or_else(|| folder.missing(TOKENIZER))?;
    let json = json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&json);
    let tokenizer_json::Read { mut raw, first } =
        tokenizer_json::read(json).map_err(|text| folder.error(TOKENIZER, text))?;
    let tokens = &raw.spec.tokens;
    if tokens.len() > vocab {
        let text = tokens.last().map(String::as_str).unwrap_or_default();
        return Err(folder.error(
            TOKENIZER,
            format_args!(
                "the token '{text}' has the id {}; vocab_size in config.json is {vocab}",
                tokens.len().saturating_sub(1)
            ),
        ));
    }
    let settings: Value =
        folder.json("tokenizer_config.json", MAX_CONFIG.max(MAX_TOKENIZER))?.unwrap_or(Value::Null);
    let generation: Value =
        folder.json("generation_config.json", MAX_CONFIG)?.unwrap_or(Value::Null);

    let id_of =
        |text: &str| tokens.iter().position(|t| t == text && !t.is_empty()).map(|id| id as TokenId);
    let text_of = |id: TokenId| tokens.get(id as usize).cloned().unwrap_or_default();
    // A special token is a text or an object with a text.
    let special = |name: &str| -> Option<String> {
        let value = settings.get(name)?;
        Some(value.as_str().or_else(|| value.get("content")?.as_str())?.to_string())
    };
    let ids = |file: &str, name: &str, value: Option<&Value>| -> Result<Vec<TokenId>, ModelError> {
        let values = match value {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(values)) => values.clone(),
            Some(one) => vec![one.clone()],
        };
        let id = |v: &Value| v.as_u64().filter(|id| *id < vocab as u64).map(|id| id as TokenId);
        values
            .iter()
            .map(|v| {
                id(v).ok_or_else(|| {
                    folder.error(file, format_args!("{name}: {v} is not a token id below {vocab}"))
                })
            })
            .collect()
    };
    let mut eos = ids("generation_config.json", "eos_token_id", generation.get("eos_token_id"))?;
    if eos.is_empty() {
        eos = ids("config.json", "eos_token_id", config.get("eos_token_id"))?;
    }
    let mut eos_text = special("eos_token").unwrap_or_default();
    eos.extend(id_of(&eos_text).filter(|id| !eos.contains(id)));
    eos.dedup();
    if eos.is_empty() {
        return Err(folder.error(
            "config.json",
            "eos_token_id is missing, here and in generation_config.json and tokenizer_config.json",
        ));
    }
    let mut bos_text = special("bos_token").unwrap_or_default();
    let configured =
        ids("config.json", "bos_token_id", config.get("bos_token_id"))?.first().copied();
    let first = match first {
        Some(text) => Some(id_of(&text).ok_or_else(|| {
            folder.error(
                TOKENIZER,
                format_args!("post_processor names '{text}', which is not a token"),
            )
        })?),
        None => None,
    };
    let bos = first.or_else(|| id_of(&bos_text)).or(configured);
    if eos_text.is_empty() {
        eos_text = eos.first().map(|id| text_of(*id)).unwrap_or_default();
    }
    if bos_text.is_empty() {
        bos_text = bos.map(text_of).unwrap_or_default();
    }
    // Ids of config.json may lie in the padding behind the last token.
    let known = |id: &TokenId| (*id as usize) < tokens.len();
    raw.special = bos.iter().chain(&eos).copied().filter(known).collect();
    let spec = raw.check().map_err(|(field, text)| {
        folder.error(TOKENIZER, format_args!("{}: {text}", tokenizer_json::field(field)))
    })?;
    let eos = super::vocabulary::ends(eos, &spec);
    let chat_template = chat_template(folder, &settings)?;
    let template_variables = serde_json::Map::new();
    let add_bos = first.is_some();
    Ok(Vocabulary {
        tokenizer: Arc::new(spec),
        bos,
        eos,
        add_bos,
        chat_template,
        template_variables,
        bos_text,
        eos_text,
    })
}

/// `chat_template.jinja`, else `chat_template.json`, else the one in `tokenizer_config.json` (the one named `default` of several).
fn chat_template(folder: &mut Folder, settings: &Value) -> Result<Option<String>, ModelError> {
    if let Some(bytes) = folder.bytes("chat_template.jinja", MAX_TEMPLATE as u64)? {
        return match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(folder.error("chat_template.jinja", "not valid UTF-8")),
        };
    }
    let beside: Value = folder
        .json("chat_template.json", (MAX_TEMPLATE as u64).saturating_mul(2))?
        .unwrap_or(Value::Null);
    let (file, value) = match beside.get("chat_template") {
        Some(value) => ("chat_template.json", value),
        None => match settings.get("chat_template") {
            Some(value) => ("tokenizer_config.json", value),
            None => return Ok(None),
        },
    };
    let named =
        |v: &Value| v.as_array()?.iter().find(|t| t["name"] == "default")?.get("template").cloned();
    match named(value).as_ref().unwrap_or(value) {
        Value::String(text) if text.len() <= MAX_TEMPLATE => Ok(Some(text.clone())),
        Value::String(text) => Err(folder.error(
            file,
            format_args!("chat_template has {} bytes; at most {MAX_TEMPLATE} are read", text.len()),
        )),
        Value::Null => Ok(None),
        _ => Err(folder
            .error(file, "chat_template is neither a text nor a list with one named 'default'")),
    }
}

/// The digest of a folder: SHA-256 over `name`, a zero byte and `digest` of its files, sorted by name.
pub(super) fn digest(
    files: &BTreeMap<String, Arc<Source>>,
    tell: &dyn Fn(u64) -> bool,
) -> Result<String, ModelError> {
    use sha2::Digest;
    let mut hash = sha2::Sha256::new();
    let mut before = 0u64;
    for (name, source) in files {
        let one = source.digest(&|done| tell(before.saturating_add(done)))?;
        hash.update(format!("{name}\0{one}\n"));
        before = before.saturating_add(source.len());
    }
    Ok(super::source::hex(&hash.finalize()))
}

/// Shown in errors about a path that is neither.
pub(super) fn looks_like_checkpoint(folder: &Path) -> Result<(), ModelError> {
    if folder.join("config.json").symlink_metadata().is_ok() {
        return Ok(());
    }
    let models: Vec<String> = std::fs::read_dir(folder)
        .map_err(|e| super::source::cannot_read(folder, &e))?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".gguf"))
        .take(3)
        .collect();
    Err(match models.first() {
        Some(name) => invalid(
            folder,
            format_args!(
                "the folder has no config.json; give a GGUF file in it, such as {}",
                shown(&folder.join(name))
            ),
        ),
        None => invalid(
            folder,
            "the folder has no config.json; a checkpoint has config.json, *.safetensors and tokenizer.json",
        ),
    })
}

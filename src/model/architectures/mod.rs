//! Architectures: from a file's metadata to a [`ModelSpec`], one small file each and one line in [`ALL`].
//! In: metadata. Out: a spec. What their tensors are called is a table (`model/kinds.rs`), with the exceptions that an
//! architecture lists. They read no weights.

mod arcee;
mod dense;
mod ernie;
mod exaone4;
mod gemma;
mod glm4;
mod granite;
mod helium;
mod hunyuan;
mod layernorm;
mod layers;
mod llama;
mod mistral;
mod mixture;
mod olmo;
mod phi3;
mod qwen;
mod rope;
mod seed_oss;
mod smollm3;
mod state;

use super::metadata::{Container, Metadata};
use super::{ModelError, ModelSpec, Role};

/// A family of models.
pub struct Architecture {
    /// `general.architecture` of GGUF files, and the name in messages.
    pub name: &'static str,
    /// `model_type` of `config.json`.
    pub model_types: &'static [&'static str],
    /// Classes in `architectures` of `config.json`.
    pub classes: &'static [&'static str],
    /// Order of rotary pairs in GGUF files (llama.cpp's `llama_model_rope_type`).
    pub(super) gguf_pairs: Pairs,
    /// Order of rotary pairs in checkpoints (transformers' `rotate_half`).
    pub(super) hf_pairs: Pairs,
    /// Checkpoints hold the weights of norms less 1.
    pub(super) norms_less_one: bool,
    /// Checkpoints hold the rows of experts as columns, those of gate and up in turn.
    pub(super) experts_turned: bool,
    /// Tensors that are called otherwise than in the table.
    pub(super) renamed: &'static [Renamed],
    /// The spec; its `architecture` is filled in afterwards.
    pub(super) build: fn(&dyn Metadata) -> Result<ModelSpec, ModelError>,
}

/// Order of the rows that rotate together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// Rows 2i and 2i + 1.
    Interleaved,
    /// Rows i and i + dims / 2.
    HalfSplit,
}

/// Another name of a tensor.
pub struct Renamed {
    pub(super) container: Container,
    pub(super) role: fn(usize) -> Role,
    pub(super) name: &'static str,
}

impl Renamed {
    /// In checkpoints.
    const fn hf(role: fn(usize) -> Role, name: &'static str) -> Renamed {
        Renamed { container: Container::Checkpoint, role, name }
    }

    /// In GGUF files.
    const fn gguf(role: fn(usize) -> Role, name: &'static str) -> Renamed {
        Renamed { container: Container::Gguf, role, name }
    }
}

/// Every architecture that can be run.
pub static ALL: &[&Architecture] = &[
    &llama::LLAMA,
    &mistral::MISTRAL,
    &mistral::MINISTRAL,
    &mistral::MISTRAL3,
    &qwen::QWEN2,
    &qwen::QWEN3,
    &gemma::GEMMA,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &phi3::PHI3,
    &smollm3::SMOLLM3,
    &granite::GRANITE,
    &olmo::OLMO,
    &olmo::OLMO2,
    &olmo::OLMO3,
    &glm4::GLM4,
    &ernie::ERNIE,
    &exaone4::EXAONE4,
    &hunyuan::HUNYUAN,
    &seed_oss::SEED_OSS,
    &arcee::ARCEE,
    &helium::HELIUM,
    &layernorm::STARCODER2,
    &layernorm::STABLELM,
    &layernorm::NEMOTRON,
    &layernorm::COHERE,
    &layernorm::COHERE2,
    &mixture::QWEN2_MOE,
    &mixture::QWEN3_MOE,
    &mixture::MIXTRAL,
    &mixture::OLMOE,
    &mixture::GRANITE_MOE,
    &mixture::GPT_OSS,
    &state::LFM2,
    &state::LFM2_MOE,
    &state::QWEN35,
    &state::QWEN35_MOE,
];

/// The names of all, for messages and help.
pub fn known() -> String {
    ALL.iter().map(|a| a.name).collect::<Vec<_>>().join(", ")
}

/// The line that refuses an architecture.
pub(super) fn unknown(name: &str) -> String {
    format!("architecture '{}' is not supported; known: {}", crate::units::shown(name), known())
}

/// The architecture of a GGUF file.
pub(super) fn of_gguf(name: &str) -> Option<&'static Architecture> {
    ALL.iter().copied().find(|a| a.name == name)
}

/// The architecture of a `config.json` with this `model_type`, whose `architectures` names these classes.
pub(super) fn of_config(
    model_type: &str,
    classes: &[String],
) -> Result<&'static Architecture, String> {
    let found = ALL.iter().copied().find(|a| a.model_types.contains(&model_type));
    let found = found.ok_or_else(|| format!("model_type: {}", unknown(model_type)))?;
    match classes.iter().find(|class| !found.classes.contains(&class.as_str())) {
        Some(other) => Err(format!(
            "architectures: '{}' is not supported; known: {}",
            crate::units::shown(other),
            found.classes.join(", ")
        )),
        None => Ok(found),
    }
}

/// The spec of a file, checked.
pub(super) fn build(
    architecture: &Architecture,
    metadata: &dyn Metadata,
) -> Result<ModelSpec, ModelError> {
    let mut spec = (architecture.build)(metadata)?;
    spec.architecture = architecture.name.into();
    dense::check(&spec).map_err(|text| metadata.error(&text))?;
    Ok(spec)
}

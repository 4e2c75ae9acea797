//! Models and texts that settings are measured with.

use super::Args;
use crate::bench::compare::quality::{MIN_TOKENS, Windows};
use crate::bench::workload::Workload;
use crate::cli::args::SharedArgs;
use crate::cli::setting::Setting;
use crate::cli::{Failure, loading};
use crate::pipeline::{LoadedModel, Prompt};
use crate::units::{TokenId, shown, shown_path};
use std::sync::Arc;

/// Written for this project: prompts/README.md.
const TEXT: &str = include_str!("../../../prompts/perplexity.txt");

/// More of a text than this is not read: enough for the predictions of any tokenizer.
const MAX_TEXT: usize = 1 << 20;

/// Each model once; the index of each setting's.
pub struct Models {
    loaded: Vec<(String, Arc<LoadedModel>)>,
}

impl Models {
    /// A setting's.
    pub fn of(&self, setting: &Setting) -> &Arc<LoadedModel> {
        let at = self.loaded.iter().position(|(name, _)| *name == loaded_as(&setting.shared));
        &self.loaded[at.unwrap_or(0)].1
    }
}

/// A model and the variables of its template, as far as they are given.
fn loaded_as(shared: &SharedArgs) -> String {
    shared.template_arg.iter().fold(shared.model.clone(), |all, (name, value)| {
        format!("{all} --template-arg {name}={value}")
    })
}

/// Opens the model that the flags name.
pub fn open_model(shared: &SharedArgs) -> Result<Arc<LoadedModel>, Failure> {
    Ok(LoadedModel::open(loading::open_model(shared, shared.level())?)?)
}

/// Opens each model once. Models of different vocabularies cannot be compared.
pub fn open_models(settings: &[Setting]) -> Result<Models, Failure> {
    let mut models = Models { loaded: Vec::new() };
    for setting in settings {
        let name = loaded_as(&setting.shared);
        if models.loaded.iter().all(|(n, _)| *n != name) {
            models.loaded.push((name, open_model(&setting.shared)?));
        }
    }
    let (first, others) = models.loaded.split_first().ok_or_else(|| Failure::failed("no model"))?;
    for (name, other) in others {
        if other.model.vocabulary.tokenizer.tokens != first.1.model.vocabulary.tokenizer.tokens
            || other.model.spec.vocab != first.1.model.spec.vocab
        {
            return Err(Failure::usage(format!(
                "{} and {}: have different vocabularies, so their tokens cannot be compared",
                shown(&first.0),
                shown(name)
            )));
        }
    }
    Ok(models)
}

/// `--text`, or the built-in one.
pub fn read_text(args: &Args) -> Result<String, Failure> {
    let Some(path) = &args.text else { return Ok(TEXT.into()) };
    let name = shown_path(path);
    let told = |e: std::io::Error| Failure::usage(format!("--text {name}: cannot be read: {e}"));
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(
        &mut std::io::Read::take(std::fs::File::open(path).map_err(told)?, MAX_TEXT as u64),
        &mut bytes,
    )
    .map_err(told)?;
    // The limit may have cut a character in two.
    let valid = match std::str::from_utf8(&bytes) {
        Err(e) if bytes.len() == MAX_TEXT && e.valid_up_to() + 4 > MAX_TEXT => e.valid_up_to(),
        Err(e) => {
            return Err(Failure::usage(format!(
                "--text {name}: is not UTF-8 (byte {})",
                e.valid_up_to()
            )));
        }
        Ok(_) => bytes.len(),
    };
    bytes.truncate(valid);
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    if let Some(zero) = bytes.iter().position(|&b| b == 0) {
        return Err(Failure::usage(format!("--text {name}: is no text: byte {zero} is zero")));
    }
    // No token is shorter than a byte; the exact number is known with the model.
    if bytes.len() < MIN_TOKENS && !args.quick {
        let told = match bytes.len() {
            0 => "is empty".to_string(),
            length => format!("has {length} bytes"),
        };
        return Err(Failure::usage(format!(
            "--text {name}: {told}; {MIN_TOKENS} tokens at least are predicted, for which a text of 30 kB is enough"
        )));
    }
    String::from_utf8(bytes).map_err(|e| Failure::usage(format!("--text {name}: {e}")))
}

/// The text's tokens, in windows.
pub fn windows(
    text: &str,
    settings: &[Setting],
    models: &Models,
    args: &Args,
) -> Result<Windows, Failure> {
    let loaded = models.of(&settings[0]);
    let name = args
        .text
        .as_ref()
        .map_or("the built-in text".to_string(), |p| format!("--text {}", shown_path(p)));
    let fail = |e: String| Failure::usage(format!("{name}: {e}"));
    let ids: Vec<TokenId> =
        loaded.prompt_encoder().tokenizer().encode(text).map_err(|e| fail(e.to_string()))?;
    let context = settings.iter().map(|s| models.of(s).model.spec.context).min().unwrap_or(0);
    Windows::cut(&ids, context).map_err(fail)
}

/// The first prompts of the built-in workload with a setting's generation flags.
pub fn workload(setting: &Setting, prompts: usize, tokens: usize) -> Vec<Prompt> {
    let mut generation = setting.shared.generation();
    generation.max_tokens = generation.max_tokens.min(tokens);
    Workload::built_in(&generation).slices.into_iter().flatten().take(prompts).collect()
}

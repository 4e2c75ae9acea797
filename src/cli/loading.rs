//! Opening the model that the flags name, with progress on stderr.

use super::Failure;
use super::args::SharedArgs;
use super::console::Level;
use super::progress::{Loading, style};
use crate::model::{self, Model, Vocabulary};
use crate::text::{ChatTemplate, RenderLimits};
use std::io::Read;
use std::path::Path;

/// Opens it; may fetch it.
pub fn open_model(shared: &SharedArgs, level: Level) -> Result<Model, Failure> {
    open_under(&Loading::start(style(shared.progress, level), &shared.model), shared)
}

/// The same under a sign of life that goes on afterwards.
pub fn open_under(loading: &Loading, shared: &SharedArgs) -> Result<Model, Failure> {
    let template = shared.chat_template.as_deref().map(read_template).transpose()?;
    let tell = |p: model::OpeningProgress| {
        let what = match p.stage {
            model::OpeningStage::Download => "fetching",
            model::OpeningStage::Check => "reading",
        };
        loading.tell(&format!("{what} {}", p.name), p.done, p.total);
    };
    let options = model::OpenOptions {
        progress: Some(&tell),
        environment: model::Environment::from_process(),
    };
    let mut model = model::open(&shared.model, &options)?;
    model.vocabulary.template_variables = shared.template_arguments();
    if let (Some(source), Some(path)) = (template, &shared.chat_template) {
        let Vocabulary { bos_text, eos_text, template_variables, .. } = &model.vocabulary;
        // Its faults are those of this file, not of the model's.
        ChatTemplate::compile_with(
            &source,
            bos_text,
            eos_text,
            template_variables,
            RenderLimits::default(),
        )
        .map_err(|e| Failure::usage(format!("{}: {e}", named(path))))?;
        model.vocabulary.chat_template = Some(source);
    }
    Ok(model)
}

/// Most bytes of a template; a model's own may have as many.
const MAX_TEMPLATE: u64 = 1 << 20;

fn named(path: &Path) -> String {
    format!("--chat-template {}", crate::units::shown_path(path))
}

fn read_template(path: &Path) -> Result<String, Failure> {
    let failed = |why: String| Failure::usage(format!("{}: {why}", named(path)));
    let told = |e: std::io::Error| failed(format!("cannot be read: {e}"));
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .map_err(told)?
        .take(MAX_TEMPLATE + 1)
        .read_to_end(&mut bytes)
        .map_err(told)?;
    if bytes.len() as u64 > MAX_TEMPLATE {
        return Err(failed(format!("is longer than {MAX_TEMPLATE} bytes")));
    }
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    String::from_utf8(bytes)
        .map_err(|e| failed(format!("is not UTF-8 (byte {})", e.utf8_error().valid_up_to())))
}

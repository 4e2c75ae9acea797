//! Opening the model that the flags name, with a sign of life on stderr.

use super::Failure;
use super::args::Shared;
use super::console::Level;
use super::run::progress::{Loading, style};
use crate::model::{self, Model};

/// Opens it; may fetch it.
pub fn open_model(shared: &Shared, level: Level) -> Result<Model, Failure> {
    open_under(&Loading::start(style(shared.progress, level), &shared.model), &shared.model)
}

/// The same under a sign of life that goes on afterwards.
pub fn open_under(loading: &Loading, model: &str) -> Result<Model, Failure> {
    let tell = |p: model::Progress| {
        let what = match p.stage {
            model::Stage::Download => "fetching",
            model::Stage::Check => "reading",
        };
        loading.tell(&format!("{what} {}", p.name), p.done, p.total);
    };
    let options = model::OpenOptions { progress: Some(&tell), environment: model::Environment::from_process() };
    Ok(model::open(model, &options)?)
}

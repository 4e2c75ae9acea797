//! In place of `hub.rs` in a build without the feature `hub`: a hub id is refused by name.

use super::ModelError;
use super::alias::Alias;
use super::cache::Lock;
pub(super) use super::hub_id::Id;
use super::opening::OpenOptions;
use super::source::Place;
use std::path::Path;

const ABSENT: &str = "this llmopt was built without the feature 'hub'";

/// Refuses.
pub(super) fn fetch(id: &Id, _options: &OpenOptions) -> Result<Place, ModelError> {
    let file = id.file.map_or_else(String::new, |file| format!(":{file}"));
    Err(ModelError::Invalid(format!(
        "hub model '{}/{}{file}': {ABSENT}; download its files elsewhere and give the path of the folder or the .gguf file",
        id.organization, id.name
    )))
}

/// Refuses.
pub(super) fn fetch_file(
    _repository: &str,
    _file: &str,
    _alias: &Alias,
    _lock: &Lock,
    _target: &Path,
    _options: &OpenOptions,
) -> Result<(), String> {
    Err(ABSENT.into())
}

#[cfg(test)]
mod tests {
    use crate::model::{OpenOptions, open};

    #[test]
    fn a_hub_id_is_refused_by_name_and_says_what_would_work() {
        let error =
            open("org/name:a.gguf", &OpenOptions::default()).err().expect("no hub").to_string();
        assert!(
            error.contains("'org/name:a.gguf'")
                && error.contains("feature 'hub'")
                && error.contains("give the path"),
            "{error}"
        );
    }
}

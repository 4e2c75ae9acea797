//! Files of hub repositories.

use super::load::OpenOptions;
use super::resolver::Alias;
use std::path::Path;

pub(super) fn fetch_file(
    _repository: &str,
    _file: &str,
    _alias: &Alias,
    _lock: &super::cache::Lock,
    _target: &Path,
    _options: &OpenOptions,
) -> Result<(), String> {
    Err("not reachable".into())
}

//! Any bytes as the `model.safetensors` of an otherwise valid folder: refused or loaded, never a panic.
#![no_main]

#[path = "../../common/mod.rs"]
mod common;

use libfuzzer_sys::fuzz_target;
use llmopt::model::{OpenOptions, open};
use std::sync::LazyLock;

/// The folder around the file, made once.
static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let place = if std::path::Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "." };
    let folder = tempfile::tempdir_in(place).expect("a temporary folder");
    common::Tiny::fuzzed().write_checkpoint(folder.path(), 1);
    folder
});

fuzz_target!(|bytes: &[u8]| {
    std::fs::write(FOLDER.path().join("model.safetensors"), bytes).expect("written");
    let _ = open(FOLDER.path().to_str().expect("a UTF-8 path"), &OpenOptions::default());
});

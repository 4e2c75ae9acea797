//! Any bytes as a `.gguf` file: refused or loaded, tokenizer included; never a panic. An accepted model's weights can be read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmopt::kernels::Format;
use llmopt::model::{OpenOptions, Role, open};
use std::io::Write;

fuzz_target!(|bytes: &[u8]| {
    // A memory file system where there is one: some thousand files a second.
    let folder = if std::path::Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "." };
    let mut file = tempfile::Builder::new().suffix(".gguf").tempfile_in(folder).expect("a temporary file");
    file.write_all(bytes).expect("written");
    let path = file.path().to_str().expect("a UTF-8 path").to_string();
    if let Ok(model) = open(&path, &OpenOptions::default()) {
        let _ = llmopt::text::Tokenizer::build(&model.vocabulary);
        for format in Format::ALL {
            let mut out = Vec::new();
            let _ = model.weights.read(Role::Query(0), 0..1, format, &mut out);
            let _ = model.weights.read(Role::Output, 0..1, format, &mut out);
        }
    }
});

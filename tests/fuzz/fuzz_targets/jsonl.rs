//! Any bytes as a JSONL file, as a JSON array, as OpenAI requests and as a prompt a line: no more records than lines or commas, ids never twice, two readings the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmopt::text::prompts::{InputFormat, PromptFiles};
use std::io::Write;

fuzz_target!(|bytes: &[u8]| {
    let folder = if std::path::Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "." };
    let mut file = tempfile::Builder::new().suffix(".jsonl").tempfile_in(folder).expect("a temporary file");
    file.write_all(bytes).expect("written");
    for format in [Some(InputFormat::Jsonl), Some(InputFormat::Json), Some(InputFormat::OpenAi), Some(InputFormat::Txt), None] {
        let Ok(files) = PromptFiles::open(&[file.path().to_path_buf()], format) else { continue };
        let records: Vec<_> = files.reader().collect();
        assert!(records == files.reader().collect::<Vec<_>>());
        assert!(records.len() <= bytes.split(|b| matches!(b, b'\n' | b',' | b'[')).count());
        let mut ids = std::collections::HashSet::new();
        for record in &records {
            let record = record.as_ref().expect("an ordinary file is read to its end");
            assert!(ids.insert((&record.origin.id, record.origin.id_is_number)));
            if let Err(error) = &record.request {
                assert!(!error.message.chars().any(char::is_control));
            }
        }
    }
});

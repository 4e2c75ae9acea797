//! Any bytes as a JSONL file, as OpenAI requests and as a prompt a line: each line a record, ids never twice, two readings the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmopt::text::prompts::{InputFormat, PromptFiles};
use std::io::Write;

fuzz_target!(|bytes: &[u8]| {
    let folder = if std::path::Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "." };
    let mut file = tempfile::Builder::new().suffix(".jsonl").tempfile_in(folder).expect("a temporary file");
    file.write_all(bytes).expect("written");
    for format in [InputFormat::Jsonl, InputFormat::OpenAi, InputFormat::Txt] {
        let Ok(files) = PromptFiles::open(&[file.path().to_path_buf()], Some(format)) else { continue };
        let records: Vec<_> = files.reader().collect();
        assert!(records == files.reader().collect::<Vec<_>>());
        assert!(records.len() <= bytes.split(|b| *b == b'\n').count());
        let mut ids = std::collections::HashSet::new();
        for record in &records {
            let record = record.as_ref().expect("an ordinary file is read to its end");
            assert!(ids.insert(&record.id));
            if let Err(error) = &record.asked {
                assert!(!error.message.chars().any(char::is_control));
            }
        }
    }
});

//! Any bytes as a CSV file: refused with its line, or read; what is read and written again by the csv crate is read the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmopt::text::prompts::{InputCell, OriginalPrompt, InputFormat, PromptFiles};
use std::io::Write;

/// Prompts and carried columns of the good rows; none if the file is refused.
fn read(bytes: &[u8]) -> Option<Vec<(String, Vec<String>)>> {
    let folder = if std::path::Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "." };
    let mut file = tempfile::Builder::new().suffix(".csv").tempfile_in(folder).expect("a temporary file");
    file.write_all(bytes).expect("written");
    let files = PromptFiles::open(&[file.path().to_path_buf()], Some(InputFormat::Csv)).ok()?;
    let mut rows = Vec::new();
    for record in files.reader() {
        let record = record.expect("an ordinary file is read to its end");
        if let OriginalPrompt::Text(text) = record.origin.prompt {
            let cells = record.origin.carried.into_iter().map(|cell| match cell {
                InputCell::Text(text) => text,
                other => panic!("a CSV file holds texts, not {other:?}"),
            });
            rows.push((text, cells.collect()));
        }
    }
    Some(rows)
}

fuzz_target!(|bytes: &[u8]| {
    // With a header of its own every input gets as far as the rows.
    let whole = [b"prompt,a,b\n", bytes].concat();
    let _ = read(bytes);
    let Some(rows) = read(&whole) else { return };
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["prompt", "a", "b"]).expect("written");
    for (text, carried) in &rows {
        writer.write_record(std::iter::once(text).chain(carried)).expect("written");
    }
    assert_eq!(read(&writer.into_inner().expect("written")), Some(rows));
});

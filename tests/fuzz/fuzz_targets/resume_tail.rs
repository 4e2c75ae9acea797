//! Any bytes behind whole records of an output: cut off or refused, never believed; what is kept reads the same again, holds only
//! whole records, and one more record appended to it is one more record.
//! Input: a byte for format and number of records, a byte for how much of the last record is missing, the tail.
#![no_main]

// The resume_index is private to `llmopt run`: its files are compiled here as they are.
#[allow(dead_code)]
#[path = "../../../src/cli/run/columns.rs"]
mod columns;
#[allow(dead_code)]
#[path = "../../../src/cli/run/format.rs"]
mod format;
#[allow(dead_code)]
#[path = "../../../src/cli/run/resume_index.rs"]
mod resume_index;
#[allow(dead_code)]
#[path = "../../../src/cli/run/output.rs"]
mod output;
#[allow(dead_code)]
#[path = "../../../src/cli/run/answer_json.rs"]
mod answer_json;

use format::{LineFormat, Kind, Line};
use resume_index::{ResumeIndex, Scan, RecordVerdict};
use libfuzzer_sys::fuzz_target;
use llmopt::engine::FinishReason;
use llmopt::pipeline::{Answer, RecordError, Settings};
use llmopt::text::prompts::{OriginalPrompt, Origin};
use llmopt::{cli, engine, pipeline, system, text, units};
use std::path::Path;

/// Ids and prompts; the one without a prompt failed.
const RECORDS: [(&str, &str); 4] = [("a", "q a"), ("b\n", "q\n\"b\","), ("c", ""), ("d", "q d")];

fn line(format: &LineFormat, id: &str, prompt: &str) -> Vec<u8> {
    let failed = prompt.is_empty();
    let answer = Answer {
        reasoning: None,
        json: false,
        choice_probs: None,
        logprobs: None,
        more: Vec::new(),
        index: 0,
        id: id.into(),
        text: if failed { String::new() } else { "some\n\"answer\", yes".into() },
        tokens: vec![],
        finish_reason: if failed { FinishReason::Error } else { FinishReason::Stop },
        greedy: true,
        rope: None,
        prompt_tokens: 5,
        completion_tokens: 2,
        cached: false,
        forward_rows: 6,
        queue_ms: 0.5,
        ttft_ms: 1.5,
        latency_ms: 2.0,
        error: failed.then(|| RecordError::new("x", "broke")),
    };
    let origin = Origin { id: id.into(), id_is_number: false, file: "in".into(), line: 1, prompt: OriginalPrompt::Text(prompt.into()), carried: vec![], input: None };
    let settings = Settings { model: 1, generation: 2 };
    format.line(&Line { answer: &answer, origin: &origin, model: "tiny", dtype: "f32", settings, created: 1 })
}

fn read(format: &LineFormat, bytes: &[u8]) -> Result<(ResumeIndex, Scan), cli::Failure> {
    let mut resume_index = ResumeIndex::default();
    let scan = resume_index.read(Path::new("out"), format, bytes, bytes.len() as u64)?;
    Ok((resume_index, scan))
}

/// Records that an independent reader finds; it must like all of them.
fn counted(format: &LineFormat, bytes: &[u8]) -> u64 {
    if format.is_separated() {
        csv::Reader::from_reader(bytes).records().map(|row| assert_eq!(row.expect("a whole row").len(), 15)).count() as u64
    } else {
        let values = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        values.map(|line| serde_json::from_slice::<serde::de::IgnoredAny>(line).expect("a JSON value")).count() as u64
    }
}

fuzz_target!(|bytes: &[u8]| {
    let [kind, missing, tail @ ..] = bytes else { return };
    let format = [LineFormat::jsonl(), LineFormat::table(Kind::Separated(b','), &[], &[]), LineFormat::open_ai()][usize::from(kind % 3)].clone();
    let count = usize::from(kind / 3) % (RECORDS.len() + 1);
    let lines = format.header().into_iter().chain(RECORDS[..count].iter().map(|(id, prompt)| line(&format, id, prompt)));
    let mut lines: Vec<Vec<u8>> = lines.collect();
    let whole: usize = lines.iter().map(Vec::len).sum();
    let cut = lines.last().map_or(0, |last| usize::from(*missing).min(last.len()));
    let before = lines.pop().map_or(0, |last| {
        lines.push(last[..last.len() - cut].to_vec());
        whole - last.len()
    });
    let output = [lines.concat(), tail.to_vec()].concat();

    let (resume_index, scan) = match read(&format, &output) {
        Ok(read) => read,
        Err(refused) => {
            assert!(refused.status == 2 && refused.message.contains("out") && !refused.message.contains(char::is_control));
            return;
        }
    };
    // Whole records stay, and what is behind them is either kept or cut.
    assert!(scan.keep as usize >= if cut == 0 { whole } else { before });
    assert_eq!(scan.keep + scan.torn, output.len() as u64);
    let kept = &output[..scan.keep as usize];
    let (_, again) = read(&format, kept).expect("what is kept is readable");
    assert_eq!((again.keep, again.torn, again.newline), (scan.keep, 0, scan.newline));
    assert_eq!((again.answers, again.errors, again.bare), (scan.answers, scan.errors, scan.bare));
    assert_eq!(counted(&format, kept), scan.answers + scan.errors);
    // Without more records than ours each is judged as it was written.
    if cut == 0 && scan.answers + scan.errors == count as u64 {
        for (id, prompt) in &RECORDS[..count] {
            let expected = if prompt.is_empty() { RecordVerdict::Retry } else { RecordVerdict::Done };
            // An OpenAI record is known by its request's digest, which these have not.
            if format.kind != Kind::OpenAi {
                assert_eq!(resume_index.judge(id, &format, &OriginalPrompt::Text((*prompt).into()), 2), expected);
            }
        }
    }
    // The output goes on behind what was kept.
    let mut more = kept.to_vec();
    if kept.is_empty() {
        more.extend(format.header().unwrap_or_default());
    } else if scan.newline {
        more.push(b'\n');
    }
    more.extend(line(&format, "new", "q new"));
    let (_, longer) = read(&format, &more).expect("it goes on");
    assert_eq!((longer.keep, longer.torn), (more.len() as u64, 0));
    assert_eq!((longer.answers, longer.errors), (scan.answers + 1, scan.errors));
});

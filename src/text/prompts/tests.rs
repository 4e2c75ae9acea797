//! What the readers make of good and of nasty files.

use super::files::next_in;
use super::record::{MOST_WARNINGS, Warnings};
use super::*;
use crate::text::Content;
use proptest::prelude::*;
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

struct Folder(TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn read(path: &Path, format: Option<InputFormat>) -> Vec<Record> {
    PromptFiles::open(&[path.to_path_buf()], format).unwrap().reader().map(Result::unwrap).collect()
}

fn records(name: &str, bytes: impl AsRef<[u8]>) -> Vec<Record> {
    let folder = Folder::new();
    read(&folder.put(name, bytes), None)
}

fn openai(bytes: &str) -> Vec<Record> {
    let folder = Folder::new();
    read(&folder.put("x.jsonl", bytes), Some(InputFormat::OpenAi))
}

fn refusal(name: &str, bytes: impl AsRef<[u8]>) -> String {
    let folder = Folder::new();
    match PromptFiles::open(&[folder.put(name, bytes)], None) {
        Err(InputError::Bad(message)) => message,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("{name} was accepted"),
    }
}

/// Prompts of the good records, codes of the bad ones.
fn told(records: &[Record]) -> Vec<String> {
    let text = |content: &Content| match content {
        Content::Text(text) | Content::Completion(text) => text.clone(),
        Content::Messages(messages) => messages.iter().map(|m| format!("{}:{}", m.role, m.content)).collect::<Vec<_>>().join("|"),
    };
    records.iter().map(|r| r.asked.as_ref().map_or_else(|e| format!("!{}", e.code), |a| text(&a.content))).collect()
}

#[test]
fn the_same_prompts_in_every_format_are_the_same() {
    let texts = ["What is 2+2?", " ", "say \"hi\", now", "日本語 🦀"];
    let jsonl: String = texts.iter().map(|t| serde_json::json!({ "prompt": t }).to_string() + "\n").collect();
    let csv = "prompt\nWhat is 2+2?\n\" \"\n\"say \"\"hi\"\", now\"\n日本語 🦀\n";
    for bytes in [jsonl.clone(), format!("\u{feff}{}", jsonl.replace('\n', "\r\n")), jsonl.trim_end().to_string()] {
        assert_eq!(told(&records("a.jsonl", bytes)), texts);
    }
    for bytes in
        [csv.to_string(), format!("\u{feff}{}", csv.replace('\n', "\r\n")), csv.replace('\n', "\r"), csv.trim_end().to_string()]
    {
        assert_eq!(told(&records("a.csv", bytes)), texts);
    }
    let txt = texts.join("\n");
    for bytes in [txt.clone(), format!("\u{feff}{}\r\n", txt.replace('\n', "\r\n"))] {
        assert_eq!(told(&records("a.txt", bytes)), texts);
    }
    let lines: String = texts
        .iter()
        .enumerate()
        .map(|(n, t)| {
            let body = serde_json::json!({"model": "m", "messages": [{"role": "user", "content": t}]});
            serde_json::json!({"custom_id": n.to_string(), "method": "POST", "url": "/v1/chat/completions", "body": body})
                .to_string()
                + "\n"
        })
        .collect();
    assert_eq!(told(&openai(&lines)), texts.map(|t| format!("user:{t}")));
}

#[test]
fn ids_are_kept_exactly_and_each_is_used_once() {
    let lines = r#"{"id":"a","prompt":"1"}
{"id":18446744073709551616,"prompt":"2"}
{"id":18446744073709551617,"prompt":"3"}
{"id":1.0,"prompt":"4"}
{"id":1,"prompt":"5"}
{"id":"1","prompt":"6"}
{"id":"a","prompt":"7"}
{"id":null,"prompt":"8"}
{"id":[1],"prompt":"9"}
{"id":"x.jsonl:8","prompt":"10"}
"#;
    let folder = Folder::new();
    let path = folder.put("x.jsonl", lines);
    let name = path.to_string_lossy().into_owned();
    let got = read(&path, None);
    let ids: Vec<&str> = got.iter().map(|r| &r.id[..]).collect();
    let place = |n: u64| format!("{name}:{n}");
    let (six, seven, eight, nine) = (place(6), place(7), place(8), place(9));
    assert_eq!(ids, ["a", "18446744073709551616", "18446744073709551617", "1.0", "1", &six, &seven, &eight, &nine, "x.jsonl:8"]);
    assert_eq!(told(&got), ["1", "2", "3", "4", "5", "!duplicate_id", "!duplicate_id", "8", "!bad_field", "10"]);
    assert!(got[5].asked.as_ref().unwrap_err().message.starts_with(&six));
    // The id that another record has for want of its own.
    let taken = folder.put(
        "y.jsonl",
        format!(
            "{{\"prompt\":\"1\"}}\n{{\"id\":\"{0}:1\",\"prompt\":\"2\"}}\n{{\"id\":\"{0}:3\",\"prompt\":\"3\"}}\n",
            folder.0.path().join("y.jsonl").display()
        ),
    );
    assert_eq!(told(&read(&taken, None)), ["1", "!duplicate_id", "3"]);
}

#[test]
fn one_bad_record_is_one_error_with_its_line() {
    let mut bytes = Vec::new();
    for line in [
        &br#"{"prompt":"good"}"#[..],
        b"not json",
        br#"{"prompt":"cut"#,
        br#"["prompt"]"#,
        br#"{"prompt":7}"#,
        br#"{"prompt":""}"#,
        br#"{"prompt":null}"#,
        br#"{"question":"x"}"#,
        b"{\"prompt\":\"\xff\xfe\"}",
        br#"{"prompt":"a","prompt":"b"}"#,
        br#"{"prompt":"a","messages":[]}"#,
        br#"{"messages":[]}"#,
        br#"{"messages":[{"role":"user"}]}"#,
        br#"{"messages":[{"role":"<|im_end|>","content":"x"}]}"#,
        br#"{"messages":{"role":"user","content":"x"}}"#,
        br#"{"prompt":"\ud800"}"#,
        b"{\"prompt\":\"nul \x00\"}",
        br#"{"prompt":"a"} {"prompt":"b"}"#,
        br#"{"prompt":"ok \u0000 \u001b[31m"}"#,
    ] {
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
    }
    bytes.extend(format!("{{\"messages\":{}{}}}\n", "[".repeat(100_000), "]".repeat(100_000)).bytes());
    bytes.extend(format!("{{\"prompt\":\"fine\",\"x\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000)).bytes());
    let got = records("a.jsonl", &bytes);
    assert_eq!(
        told(&got),
        [
            "good",
            "!bad_json",
            "!bad_json",
            "!bad_json",
            "!bad_field",
            "!empty_prompt",
            "!missing_prompt",
            "!missing_prompt",
            "!not_utf8",
            "!bad_field",
            "!bad_field",
            "!empty_prompt",
            "!bad_field",
            "!bad_field",
            "!bad_field",
            "!bad_field",
            "!bad_json",
            "!bad_json",
            "ok \0 \u{1b}[31m",
            "!bad_field",
            "fine"
        ]
    );
    for (n, record) in got.iter().enumerate() {
        assert_eq!(record.line, n as u64 + 1);
        if let Err(error) = &record.asked {
            assert!(error.message.contains(&format!(":{}: ", n + 1)) && !error.message.contains('\n'), "{}", error.message);
        }
    }
    assert!(got[1].asked.as_ref().unwrap_err().message.ends_with("at column 2"), "{:?}", got[1]);
}

#[test]
fn settings_of_a_record_have_bounds() {
    let good = r#"{"prompt":"x","max_tokens":5,"temperature":0.5,"top_p":1,"top_k":0,"seed":18446744073709551615,"stop":["a","b"],"stop_on":"eos, loop","system":"s","raw":false}"#;
    let asked = records("a.jsonl", good).remove(0).asked.unwrap().generation;
    assert_eq!((asked.max_tokens, asked.temperature, asked.top_p, asked.top_k), (Some(5), Some(0.5), Some(1.0), Some(0)));
    assert_eq!((asked.seed, asked.system.as_deref(), asked.raw), (Some(u64::MAX), Some("s"), Some(false)));
    assert_eq!(asked.stop, Some(vec!["a".to_string(), "b".to_string()]));
    assert_eq!(asked.stop_on, Some(StopOn { eos: true, strings: false, sentence: false, repetition: true }));
    for bad in [
        r#""temperature":NaN"#,
        r#""temperature":"NaN""#,
        r#""temperature":-1"#,
        r#""temperature":1e309"#,
        r#""temperature":101"#,
        r#""top_p":0"#,
        r#""top_p":1.1"#,
        r#""max_tokens":0"#,
        r#""max_tokens":-5"#,
        r#""max_tokens":1.5"#,
        r#""max_tokens":99999999999999999999"#,
        r#""max_tokens":"5""#,
        r#""top_k":-1"#,
        r#""seed":-1"#,
        r#""seed":18446744073709551616"#,
        r#""stop":"""#,
        r#""stop":[1]"#,
        r#""stop_on":"words""#,
        r#""system":1"#,
        r#""raw":"yes""#,
        r#""raw":true,"raw":false"#,
    ] {
        let got = records("a.jsonl", format!("{{\"prompt\":\"x\",{bad}}}\n{{\"prompt\":\"y\"}}"));
        let error = got[0].asked.as_ref().expect_err(bad);
        assert!(matches!(error.code, "bad_field" | "bad_json"), "{bad}: {error:?}");
        assert_eq!(got[1].asked.as_ref().unwrap().generation, GenerationFields::default());
    }
    assert_eq!(
        records("a.jsonl", r#"{"prompt":"x","seed":null}"#).remove(0).asked.unwrap().generation,
        GenerationFields::default()
    );
    let csv = records("a.csv", "prompt,temperature,raw,note,stop\nx,0.5,yes,n,\ny,hot,,,\nz,,maybe,,\nw,,,,\" end\"\n");
    assert_eq!(told(&csv), ["x", "!bad_field", "!bad_field", "w"]);
    let first = csv[0].asked.as_ref().unwrap();
    assert_eq!(
        (first.generation.temperature, first.generation.raw, first.generation.stop.clone()),
        (Some(0.5), Some(true), None)
    );
    assert_eq!(csv[3].asked.as_ref().unwrap().generation.stop, Some(vec![" end".to_string()]));
}

#[test]
fn unknown_fields_are_told_once_a_name() {
    let folder = Folder::new();
    let lines: String =
        (0..50).map(|n| format!("{{\"prompt\":\"x\",\"temprature\":1,\"f{n}\":0,\"a\\u001b[0m\":1}}\n")).collect();
    let files = PromptFiles::open(&[folder.put("a.jsonl", lines)], None).unwrap();
    let mut reader = files.reader();
    assert_eq!(reader.by_ref().filter(|r| r.as_ref().unwrap().asked.is_ok()).count(), 50);
    let warnings = reader.take_warnings();
    assert_eq!(warnings.iter().filter(|w| w.contains("'temprature'")).count(), 1);
    assert!(warnings.len() == MOST_WARNINGS + 1 && warnings.iter().all(|w| !w.chars().any(char::is_control)), "{warnings:?}");
    assert!(reader.take_warnings().is_empty());
}

#[test]
fn csv_columns_are_carried_and_quotes_may_span_lines() {
    let got = records(
        "a.csv",
        "id, prompt ,note\n1,\"two\nlines\",n1\n\n2,\"a\"\"b\",\"x,y\"\n,three,\n2,again,\n4,too,many,fields\n5\n\"6\",nul \0,z",
    );
    assert_eq!(told(&got), ["two\nlines", "a\"b", "three", "!duplicate_id", "!bad_csv", "!bad_csv", "nul \0"]);
    assert_eq!(got.iter().map(|r| r.line).collect::<Vec<_>>(), [2, 5, 6, 7, 8, 9, 10]);
    assert_eq!(got[0].carried, ["n1"]);
    assert_eq!(got[1].carried, ["x,y"]);
    assert!(got[4].asked.as_ref().unwrap_err().message.contains("4 fields, the header 3"));
    assert!(got[6].id == "6" && got[2].id.ends_with("a.csv:6"));
    let folder = Folder::new();
    let (a, b) = (folder.put("a.csv", "prompt,x,y\n1,2,3\n"), folder.put("b.csv", "z,prompt,x\n4,5,6\n"));
    let files = PromptFiles::open(&[a, b], None).unwrap();
    assert_eq!(files.columns(), ["x", "y", "z"]);
    let carried: Vec<_> = files.reader().map(|r| r.unwrap().carried).collect();
    assert_eq!(carried, [["2", "3", ""], ["6", "", "4"]]);
}

#[test]
fn a_quote_that_is_never_closed_is_told_with_its_line() {
    for (bytes, line) in [
        ("prompt,x\na,b\n\"c,d\ne,f\n", 3),
        ("prompt,x\r\n\"a\r\nb\",b\r\nc,\"d\r\ne,f\r\n", 4),
        ("prompt\n\"a\"\"\n", 2),
        ("x,\"prompt\na,b\n", 1),
    ] {
        let message = refusal("a.csv", bytes);
        assert!(message.contains(&format!(":{line}: ")) || message.contains(&format!("line {line} ")), "{bytes:?}: {message}");
        assert!(message.contains("never closed"), "{message}");
    }
}

#[test]
fn files_that_are_none_of_prompts_are_refused_before_any_work() {
    for (name, bytes, message) in [
        ("a.csv", &b"question,x\na,b\n"[..], "no column prompt, but question, x"),
        ("a.csv", b"id;prompt\n1;a\n", "not semicolons"),
        ("a.csv", b"", "the file is empty"),
        ("a.csv", b"prompt,prompt\na,b\n", "two columns prompt"),
        ("a.csv", b"\xff\xfep\0", "UTF-16"),
        ("a.jsonl", b"\x1f\x8b\x08\x00", "gzip"),
        ("a.txt", b"GGUF\x03\0\0\0", "--model"),
        ("a.csv", b"PK\x03\x04", "zip"),
        ("a.doc", b"x", "--input-format"),
        ("a", b"x", "--input-format"),
    ] {
        let error = refusal(name, bytes);
        assert!(error.contains(message) && error.contains(name) && !error.contains('\n'), "{error}");
    }
    let folder = Folder::new();
    let refused = |paths: &[PathBuf], format| match PromptFiles::open(paths, format) {
        Err(InputError::Bad(message)) => message,
        _ => panic!("accepted"),
    };
    assert!(refused(&[folder.0.path().to_path_buf()], None).contains("is a folder"));
    assert!(refused(&[folder.0.path().join("none.txt")], None).contains("no such file"));
    assert!(refused(&[PathBuf::from("-")], None).contains("--input-format"));
    let good = folder.put("a.txt", "x");
    assert!(refused(&[good.clone(), good.clone()], None).contains("twice"));
    std::os::unix::fs::symlink(folder.0.path().join("loop.txt"), folder.0.path().join("loop.txt")).unwrap();
    assert!(!refused(&[folder.0.path().join("loop.txt")], None).is_empty());
    assert_eq!(
        records("a.jsonl", "").len()
            + records("a.txt", "").len()
            + records("a.txt", "\u{feff}").len()
            + records("a.csv", "prompt\n").len(),
        0
    );
    assert_eq!(told(&records("a.txt", "a\n\n\nb\n")), ["a", "!empty_prompt", "!empty_prompt", "b"]);
}

#[test]
fn a_pipe_that_nobody_writes_to_does_not_hang_and_one_with_a_writer_is_read() {
    let folder = Folder::new();
    let fifo = folder.0.path().join("p.txt");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let files = PromptFiles::open(std::slice::from_ref(&fifo), None).unwrap();
    let read: Vec<_> = files.reader().collect();
    assert!(matches!(&read[..], [Err(InputError::Io(message))] if message.contains("nobody writes")), "{read:?}");
    assert!(!files.can_be_read_twice());
    let writer = std::thread::spawn({
        let fifo = fifo.clone();
        move || {
            let mut file = std::fs::OpenOptions::new().write(true).open(fifo).unwrap();
            for line in ["prompt,n\r\n", "a,1\r\n", "b,2\r\n"] {
                file.write_all(line.as_bytes()).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(30));
            }
        }
    });
    let files = PromptFiles::open(&[fifo], Some(InputFormat::Csv)).unwrap();
    assert_eq!(files.columns(), ["n"]);
    let got: Vec<_> = files.reader().map(Result::unwrap).collect();
    writer.join().unwrap();
    assert_eq!(
        (told(&got), got.iter().map(|r| r.line).collect::<Vec<_>>()),
        (vec!["a".to_string(), "b".to_string()], vec![2, 3])
    );
    assert!(matches!(files.reader().next(), Some(Err(InputError::Io(_)))));
}

#[test]
fn huge_records_are_refused_in_bounded_memory_and_the_rest_is_read() {
    let huge = "x".repeat(LONGEST_RECORD + 10);
    for (name, bytes) in [
        ("a.txt", format!("a\n{huge}\nb\n")),
        ("a.jsonl", format!("{{\"prompt\":\"a\"}}\n{{\"prompt\":\"{huge}\"}}\n{{\"prompt\":\"b\"}}\n")),
        ("a.csv", format!("prompt\na\n\"{huge}\n\"\nb\n")),
        ("a.csv", format!("prompt\na\n{}\nb\n", ",".repeat(LONGEST_RECORD + 1))),
    ] {
        let got = records(name, bytes);
        assert_eq!(told(&got), ["a", "!record_too_long", "b"], "{name}");
        assert!(got[1].asked.as_ref().unwrap_err().message.contains("the limit is 8388608"));
    }
    assert_eq!(told(&records("a.txt", " ".repeat(1_200_000))), [" ".repeat(1_200_000)]);
}

#[test]
fn openai_requests_that_cannot_be_met_name_the_field() {
    let line =
        |body: &str| format!("{{\"custom_id\":\"c\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{body}}}");
    let ask = |extra: &str| line(&format!("{{\"model\":\"m\",\"messages\":[{{\"role\":\"user\",\"content\":\"x\"}}]{extra}}}"));
    for harmless in [
        "",
        ",\"n\":1",
        ",\"stream\":false",
        ",\"tools\":[]",
        ",\"logprobs\":null",
        ",\"response_format\":{ \"type\": \"text\" }",
        ",\"user\":\"u\"",
        ",\"presence_penalty\":0",
    ] {
        let got = openai(&ask(harmless));
        assert!(got[0].asked.is_ok() && got[0].id == "c", "{harmless}: {:?}", got[0]);
        assert_eq!(got[0].openai.as_ref().unwrap().model.as_deref(), Some("m"));
    }
    for (field, value) in [
        ("n", "2"),
        ("n", "0"),
        ("tools", "[{}]"),
        ("response_format", "{\"type\":\"json_object\"}"),
        ("logprobs", "true"),
        ("top_logprobs", "3"),
        ("stream", "true"),
        ("frequency_penalty", "0.5"),
        ("logit_bias", "{\"1\":2}"),
        ("temperature", "-1"),
        ("max_completion_tokens", "0"),
        ("max_tokens", "\"x\""),
    ] {
        let got = openai(&ask(&format!(",\"{field}\":{value}")));
        let error = got[0].asked.as_ref().expect_err(field);
        assert!(error.message.contains(field), "{field}: {}", error.message);
        assert!(got[0].openai.is_some() && got[0].id == "c" && matches!(got[0].given, Given::Messages(_)));
    }
    assert_eq!(openai(&ask(",\"max_completion_tokens\":7")).remove(0).asked.unwrap().generation.max_tokens, Some(7));
    assert!(openai(&ask(",\"max_tokens\":8,\"max_completion_tokens\":7"))[0].asked.is_err());
    let completion = line("{\"prompt\":\"Once\"}").replace("chat/", "");
    let got = openai(&completion);
    assert_eq!(got[0].asked.as_ref().unwrap().content, Content::Completion("Once".into()));
    assert_eq!(got[0].openai.as_ref().unwrap().endpoint, Endpoint::Completions);
    for (bad, message) in [
        (line("{}"), "body.messages"),
        (line("[]"), "body"),
        (ask("").replace("POST", "GET"), "method"),
        (ask("").replace("/v1/chat", "/v2/chat"), "url"),
        (ask("").replace("custom_id", "id"), "custom_id"),
        (ask("").replace("\"c\"", "5"), "custom_id"),
        ("x".to_string(), "JSON"),
        (line("{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}"), "content"),
    ] {
        let got = openai(&bad);
        assert!(got[0].asked.as_ref().unwrap_err().message.contains(message), "{:?}", got[0]);
    }
    let parts = line(
        "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"b\"}]}]}",
    );
    assert_eq!(told(&openai(&parts)), ["user:a\nb"]);
    let hint = records("a.jsonl", ask(""));
    assert!(hint[0].asked.as_ref().unwrap_err().message.contains("--input-format openai"));
}

/// A stream that gives one byte at a time counts how far it was read.
#[test]
fn a_stream_is_read_no_further_than_the_record_at_hand() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    struct Slow(&'static [u8], &'static AtomicUsize);
    impl std::io::Read for Slow {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let at = self.1.fetch_add(1, Ordering::Relaxed);
            match self.0.get(at) {
                Some(byte) => {
                    buffer[0] = *byte;
                    Ok(1)
                }
                None => Ok(0),
            }
        }
    }
    static READ: AtomicUsize = AtomicUsize::new(0);
    let text = b"first\nsecond\n";
    let mut lines = lines::Lines::new(Box::new(std::io::BufReader::new(Slow(text, &READ))));
    let first = next_in(&mut lines, InputFormat::Txt, &mut Warnings::default()).unwrap().unwrap();
    assert_eq!((first.0, READ.load(Ordering::Relaxed)), (1, 6));
}

fn csv_cell() -> impl Strategy<Value = String> {
    prop::string::string_regex("[a-z\",\n\r ;é\u{0}]{0,12}").unwrap()
}

proptest! {
    #[test]
    fn csv_that_was_written_is_read_back(rows in prop::collection::vec((csv_cell(), csv_cell()), 1..12)) {
        let mut writer = ::csv::Writer::from_writer(Vec::new());
        writer.write_record(["prompt", "note"]).unwrap();
        for (prompt, note) in &rows {
            writer.write_record([prompt, note]).unwrap();
        }
        let got = records("a.csv", writer.into_inner().unwrap());
        prop_assert_eq!(got.len(), rows.len());
        for (record, (prompt, note)) in got.iter().zip(&rows) {
            prop_assert_eq!(&record.given, &Given::Prompt(prompt.clone()));
            prop_assert_eq!(&record.carried, &vec![note.clone()]);
            prop_assert_eq!(record.asked.is_ok(), !prompt.is_empty());
        }
    }

    #[test]
    fn json_that_was_written_is_read_back(texts in prop::collection::vec(any::<String>(), 1..8), seed in any::<u64>()) {
        let lines: String = texts.iter().enumerate().map(|(n, t)| serde_json::json!({"id": format!("{n}{t}"), "prompt": t, "seed": seed}).to_string() + "\n").collect();
        let got = records("a.jsonl", lines);
        prop_assert_eq!(got.len(), texts.len());
        for (n, (record, text)) in got.iter().zip(&texts).enumerate() {
            prop_assert_eq!(&record.id, &format!("{n}{text}"));
            match &record.asked {
                Ok(asked) => prop_assert_eq!((&asked.content, asked.generation.seed), (&Content::Text(text.clone()), Some(seed))),
                Err(error) => prop_assert!(text.is_empty() && error.code == "empty_prompt"),
            }
        }
    }

    #[test]
    fn any_bytes_are_records_in_bounds_and_never_a_panic(bytes in prop::collection::vec(prop_oneof![Just(b'"'), Just(b','), Just(b'\n'), Just(b'\r'), Just(b'{'), Just(b':'), any::<u8>()], 0..300)) {
        for format in [InputFormat::Jsonl, InputFormat::Txt, InputFormat::OpenAi, InputFormat::Csv] {
            let folder = Folder::new();
            let mut text = if format == InputFormat::Csv { b"prompt,x\n".to_vec() } else { Vec::new() };
            text.extend(&bytes);
            let path = folder.put("a", &text);
            let Ok(files) = PromptFiles::open(&[path], Some(format)) else { continue };
            let (first, second): (Vec<_>, Vec<_>) = (files.reader().collect(), files.reader().collect());
            prop_assert_eq!(&first, &second);
            let lines = text.split(|b| *b == b'\n').count() + text.iter().filter(|b| **b == b'\r').count();
            prop_assert!(first.len() <= lines);
            let ids: std::collections::HashSet<_> = first.iter().map(|r| r.as_ref().unwrap().id.clone()).collect();
            prop_assert_eq!(ids.len(), first.len());
            if format == InputFormat::Txt {
                let expected = text.split(|b| *b == b'\n').count() - usize::from(text.ends_with(b"\n") || text.is_empty());
                prop_assert_eq!(first.len(), expected);
            }
        }
    }
}

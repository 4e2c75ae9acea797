//! What the readers make of good and of nasty files.

use super::record::MAX_WARNINGS;
use super::*;
use crate::text::Constraint;
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

/// The record of a request that stands beside a good one.
fn request(line: &str) -> Record {
    let good = r#"{"custom_id":"good","method":"POST","url":"/v1/chat/completions","body":{"messages":[{"role":"user","content":"x"}]}}"#;
    openai(&format!("{line}\n{good}\n")).remove(0)
}

fn refusal(name: &str, bytes: impl AsRef<[u8]>) -> String {
    let folder = Folder::new();
    match PromptFiles::open(&[folder.put(name, bytes)], None) {
        Err(InputError::Bad(message)) => message,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("{name} was accepted"),
    }
}

/// The text of a carried value; nothing for one that is not there.
fn cell(cell: &InputCell) -> &str {
    match cell {
        InputCell::Missing => "",
        InputCell::Text(text) | InputCell::Json(text) => text,
    }
}

/// The same records read otherwise.
fn read_as(path: &Path, reading: Reading) -> Result<Vec<Record>, InputError> {
    let mut files = PromptFiles::open_as(&[path.to_path_buf()], &[], reading)?;
    files.carry(true, true);
    files.reader().collect()
}

fn template(source: &str) -> Reading {
    Reading {
        template: Some(std::sync::Arc::new(crate::text::RowTemplate::compile(source).unwrap())),
        ..Reading::default()
    }
}

/// Prompts of the good records, codes of the bad ones.
fn told(records: &[Record]) -> Vec<String> {
    let text = |content: &Content| match content {
        Content::Text(text) | Content::Completion(text) => text.clone(),
        Content::Messages(messages) => messages
            .iter()
            .map(|m| format!("{}:{}", m.role, m.content))
            .collect::<Vec<_>>()
            .join("|"),
    };
    records
        .iter()
        .map(|r| r.request.as_ref().map_or_else(|e| format!("!{}", e.code), |a| text(&a.content)))
        .collect()
}

#[test]
fn the_same_prompts_in_every_format_are_the_same() {
    let texts = ["What is 2+2?", " ", "say \"hi\", now", "日本語 🦀"];
    let jsonl: String =
        texts.iter().map(|t| serde_json::json!({ "prompt": t }).to_string() + "\n").collect();
    let csv = "prompt\nWhat is 2+2?\n\" \"\n\"say \"\"hi\"\", now\"\n日本語 🦀\n";
    for bytes in [
        jsonl.clone(),
        format!("\u{feff}{}", jsonl.replace('\n', "\r\n")),
        jsonl.trim_end().to_string(),
    ] {
        assert_eq!(told(&records("a.jsonl", bytes)), texts);
    }
    for bytes in [
        csv.to_string(),
        format!("\u{feff}{}", csv.replace('\n', "\r\n")),
        csv.replace('\n', "\r"),
        csv.trim_end().to_string(),
    ] {
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
    let got = read(&path, None);
    let ids: Vec<(&str, bool)> =
        got.iter().map(|r| (&r.origin.id[..], r.origin.id_is_number)).collect();
    assert_eq!(
        ids,
        [
            ("a", false),
            ("18446744073709551616", true),
            ("18446744073709551617", true),
            ("1.0", true),
            ("1", true),
            ("1", false),
            ("x.jsonl:7", false),
            ("x.jsonl:8", false),
            ("x.jsonl:9", false),
            ("x.jsonl:10", false)
        ]
    );
    assert_eq!(
        told(&got),
        ["1", "2", "3", "4", "5", "6", "!duplicate_id", "8", "!bad_field", "!duplicate_id"]
    );
    assert!(got[6].request.as_ref().unwrap_err().message.starts_with("x.jsonl:7: "));
    assert!(
        matches!(&got[6].origin.prompt, OriginalPrompt::Text(text) if text == "7"),
        "what could be read stays"
    );
    // Where the output is CSV, the number and the text are one id.
    let mut files = PromptFiles::open(&[path], None).unwrap();
    files.take_ids_as_text();
    let as_text: Vec<Record> = files.reader().map(Result::unwrap).collect();
    assert_eq!(
        (told(&as_text)[5].as_str(), &as_text[5].origin.id[..]),
        ("!duplicate_id", "x.jsonl:6")
    );
    // Another record's default id.
    let taken = folder
        .put("y.jsonl", "{\"prompt\":\"1\"}\n{\"id\":\"y.jsonl:1\",\"prompt\":\"2\"}\n{\"id\":\"y.jsonl:3\",\"prompt\":\"3\"}\n");
    assert_eq!(told(&read(&taken, None)), ["1", "!duplicate_id", "3"]);
}

#[test]
fn default_ids_are_the_same_however_a_path_is_typed_and_differ_between_files() {
    let folder = Folder::new();
    std::fs::create_dir(folder.0.path().join("sub")).unwrap();
    let (a, b) = (folder.put("p.txt", "x\ny\n"), folder.put("sub/p.txt", "x\n"));
    let ids = |paths: &[PathBuf]| -> Vec<String> {
        PromptFiles::open(paths, None).unwrap().reader().map(|r| r.unwrap().origin.id).collect()
    };
    for typed in [a.clone(), folder.0.path().join("./p.txt"), folder.0.path().join("sub/../p.txt")]
    {
        assert_eq!(ids(&[typed]), ["p.txt:1", "p.txt:2"]);
    }
    let above = folder.0.path().file_name().unwrap().to_str().unwrap().to_string();
    assert_eq!(
        ids(&[a, b]),
        [format!("{above}/p.txt:1"), format!("{above}/p.txt:2"), "sub/p.txt:1".into()]
    );
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
    bytes.extend(
        format!("{{\"messages\":{}{}}}\n", "[".repeat(100_000), "]".repeat(100_000)).bytes(),
    );
    bytes.extend(
        format!("{{\"prompt\":\"fine\",\"x\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000))
            .bytes(),
    );
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
        assert_eq!(record.origin.line, n as u64 + 1);
        if let Err(error) = &record.request {
            assert!(
                error.message.contains(&format!(":{}: ", n + 1)) && !error.message.contains('\n'),
                "{}",
                error.message
            );
        }
    }
    assert!(got[1].request.as_ref().unwrap_err().message.ends_with("at column 2"), "{:?}", got[1]);
}

#[test]
fn settings_of_a_record_have_bounds() {
    let good = r#"{"prompt":"x","max_tokens":5,"temperature":0.5,"top_p":1,"top_k":0,"seed":18446744073709551615,"stop":["a","b"],"stop_on":"eos, loop","system":"s","raw":false}"#;
    let asked = records("a.jsonl", good).remove(0).request.unwrap().generation;
    assert_eq!(
        (asked.max_tokens, asked.temperature, asked.top_p, asked.top_k),
        (Some(5), Some(0.5), Some(1.0), Some(0))
    );
    assert_eq!(
        (asked.seed, asked.system.as_deref(), asked.raw),
        (Some(u64::MAX), Some("s"), Some(false))
    );
    assert_eq!(asked.stop, Some(vec!["a".to_string(), "b".to_string()]));
    assert_eq!(
        asked.stop_on,
        Some(StopOn { eos: true, strings: false, sentence: false, repetition: true })
    );
    let whole =
        r#"{"prompt":"x","max_tokens":8.0,"top_k":3.0,"seed":4e0,"continue_final_message":false}"#;
    let asked = records("a.jsonl", whole).remove(0).request.unwrap().generation;
    assert_eq!(
        (asked.max_tokens, asked.top_k, asked.seed, asked.continue_final_message),
        (Some(8), Some(3), Some(4), Some(false))
    );
    for bad in [
        r#""max_tokens":8.5"#,
        r#""seed":1e300"#,
        r#""seed":-0.5"#,
        r#""continue_final_message":1"#,
        r#""continue_final_message":true"#,
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
        let error = got[0].request.as_ref().expect_err(bad);
        assert!(matches!(&*error.code, "bad_field" | "bad_json"), "{bad}: {error:?}");
        assert_eq!(got[1].request.as_ref().unwrap().generation, GenerationFields::default());
    }
    assert_eq!(
        records("a.jsonl", r#"{"prompt":"x","seed":null}"#).remove(0).request.unwrap().generation,
        GenerationFields::default()
    );
    let csv = records(
        "a.csv",
        "prompt,temperature,raw,note,stop\nx,0.5,yes,n,\ny,hot,,,\nz,,maybe,,\nw,,,,\" end\"\n",
    );
    assert_eq!(told(&csv), ["x", "!bad_field", "!bad_field", "w"]);
    let first = csv[0].request.as_ref().unwrap();
    assert_eq!(
        (first.generation.temperature, first.generation.raw, first.generation.stop.clone()),
        (Some(0.5), Some(true), None)
    );
    assert_eq!(csv[3].request.as_ref().unwrap().generation.stop, Some(vec![" end".to_string()]));
}

#[test]
fn unknown_fields_are_told_once_a_name() {
    let folder = Folder::new();
    let lines: String = (0..50)
        .map(|n| format!("{{\"prompt\":\"x\",\"temprature\":1,\"f{n}\":0,\"a\\u001b[0m\":1}}\n"))
        .collect();
    let files = PromptFiles::open(&[folder.put("a.jsonl", lines)], None).unwrap();
    let mut reader = files.reader();
    assert_eq!(reader.by_ref().filter(|r| r.as_ref().unwrap().request.is_ok()).count(), 50);
    let warnings = reader.take_warnings();
    assert_eq!(warnings.iter().filter(|w| w.contains("'temprature'")).count(), 1);
    assert!(
        warnings.len() == MAX_WARNINGS + 1
            && warnings.iter().all(|w| !w.chars().any(char::is_control)),
        "{warnings:?}"
    );
    assert!(reader.take_warnings().is_empty());
}

#[test]
fn csv_columns_are_carried_and_quotes_may_span_lines() {
    let got = records(
        "a.csv",
        "id, prompt ,note\n\
         1,\"two\nlines\",n1\n\n\
         2,\"a\"\"b\",\"x,y\"\n,three,\n2,again,kept\n4,too,many,fields\n5\n\"6\",nul \0,z\n7,short\n8,long,z,,\n",
    );
    assert_eq!(
        told(&got),
        [
            "two\nlines",
            "a\"b",
            "three",
            "!duplicate_id",
            "!bad_csv",
            "!bad_csv",
            "nul \0",
            "short",
            "long"
        ]
    );
    assert_eq!(
        got.iter().map(|r| r.origin.line).collect::<Vec<_>>(),
        [2, 5, 6, 7, 8, 9, 10, 11, 12]
    );
    let carried: Vec<&str> = got.iter().map(|r| cell(&r.origin.carried[0])).collect();
    assert_eq!(carried, ["n1", "x,y", "", "kept", "", "", "z", "", "z"]);
    let ids: Vec<&str> = got.iter().map(|r| &r.origin.id[..]).collect();
    assert_eq!(
        ids,
        ["1", "2", "a.csv:6", "a.csv:7", "4", "5", "6", "7", "8"],
        "what stands left of the fault is read"
    );
    assert!(got[4].request.as_ref().unwrap_err().message.contains("4 fields, the header 3"));
    assert!(got[5].request.as_ref().unwrap_err().message.contains("no prompt"));
    assert_eq!(
        (&got[3].origin.prompt, &got[4].origin.prompt),
        (&OriginalPrompt::Text("again".into()), &OriginalPrompt::Nothing)
    );
    let bytes = b"id,prompt,note\n1,\xff,n\n2,fine,\xff\n3,good,n\n";
    let bad = records("a.csv", bytes);
    assert_eq!(told(&bad), ["!not_utf8", "!not_utf8", "good"]);
    assert_eq!(
        (&bad[0].origin.id[..], cell(&bad[0].origin.carried[0]), &bad[1].origin.prompt),
        ("1", "n", &OriginalPrompt::Text("fine".into()))
    );
    let folder = Folder::new();
    let (a, b) =
        (folder.put("a.csv", "prompt,x,y\n1,2,3\n"), folder.put("b.csv", "z,prompt,x\n4,5,6\n"));
    let files = PromptFiles::open(&[a, b], None).unwrap();
    assert_eq!(files.columns(), ["x", "y", "z"]);
    let carried: Vec<Vec<String>> = files
        .reader()
        .map(|r| r.unwrap().origin.carried.iter().map(|c| cell(c).to_string()).collect())
        .collect();
    assert_eq!(carried, [["2", "3", ""], ["6", "", "4"]]);
}

#[test]
fn a_template_makes_the_same_prompts_of_every_kind_of_table_and_all_other_fields_are_data() {
    let folder = Folder::new();
    let expected = ["Summarise: it\nfails (9)", "Summarise: \"slow\" (7)"];
    let csv = "id,temperature,text\nr1,9,\"it\nfails\"\nr2,7,\"\"\"slow\"\"\"\n";
    let semicolons = csv.replace(',', ";");
    let json = r#"[{"id":"r1","temperature":9,"text":"it\nfails"},{"id":"r2","temperature":7,"text":"\"slow\""}]"#;
    let jsonl = json.trim_matches(['[', ']']).replace("},{", "}\n{");
    let gzipped = |text: &str| {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packer.write_all(text.as_bytes()).unwrap();
        packer.finish().unwrap()
    };
    let zstd = |text: &str| {
        ruzstd::encoding::compress_to_vec(
            text.as_bytes(),
            ruzstd::encoding::CompressionLevel::Fastest,
        )
    };
    let two_members = [gzipped(&csv[..30]), gzipped(&csv[30..])].concat();
    let skipped =
        [&b"\x50\x2a\x4d\x18\x03\0\0\0abc"[..], &zstd(&csv[..30]), &zstd(&csv[30..])].concat();
    for (name, bytes) in [
        ("t.csv", csv.as_bytes().to_vec()),
        ("t.csv", semicolons.clone().into_bytes()),
        ("t.csv", csv.replace(',', "\t").into_bytes()),
        ("t.tsv", csv.replace(',', "\t").into_bytes()),
        ("t.json", json.as_bytes().to_vec()),
        ("t.jsonl", jsonl.clone().into_bytes()),
        ("t.csv.gz", gzipped(csv)),
        ("t.csv.gz", two_members),
        ("t.csv.zst", skipped),
        ("t.jsonl.zst", zstd(&jsonl)),
        ("t.jsonl", gzipped(&jsonl)),
        ("unnamed", semicolons.into_bytes()),
    ] {
        let path = folder.put(name, bytes);
        let got = read_as(&path, template("Summarise: {{ text }} ({{ temperature }})")).unwrap();
        assert_eq!(told(&got), expected, "{name}");
        assert_eq!(
            got.iter().map(|r| &r.origin.id[..]).collect::<Vec<_>>(),
            ["r1", "r2"],
            "{name}"
        );
        for record in &got {
            assert_eq!(
                record.request.as_ref().unwrap().generation,
                GenerationFields::default(),
                "{name}: a temperature is data"
            );
            let OriginalPrompt::Text(text) = &record.origin.prompt else { panic!("{name}") };
            assert!(expected.contains(&&text[..]), "the line has the prompt as it was made");
        }
        let object: serde_json::Value =
            serde_json::from_str(got[1].origin.input.as_ref().unwrap()).unwrap();
        assert_eq!(object["text"], "\"slow\"", "{name}");
        assert!(
            object["temperature"] == 7 || object["temperature"] == "7",
            "{name}: as the file has it"
        );
        assert_eq!(
            got[1].origin.carried.iter().map(cell).collect::<Vec<_>>(),
            ["7", "\"slow\""],
            "{name}"
        );
    }
    // Fields that are named as settings are.
    let path = folder.put("s.csv", "temperature,text\n2,a\n900,b\n");
    let settings = Some(vec!["temperature".to_string()]);
    let got =
        read_as(&path, Reading { setting_fields: settings, ..template("{{ text }}") }).unwrap();
    assert_eq!(got[0].request.as_ref().unwrap().generation.temperature, Some(2.0));
    assert_eq!(told(&got), ["a", "!bad_field"]);
}

#[test]
fn packed_files_that_are_damaged_are_bad_files() {
    let folder = Folder::new();
    let text = "prompt\n".to_string() + &"some words\n".repeat(5000);
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(text.as_bytes()).unwrap();
    let gzip = packer.finish().unwrap();
    let zstd = ruzstd::encoding::compress_to_vec(
        text.as_bytes(),
        ruzstd::encoding::CompressionLevel::Fastest,
    );
    for (name, bytes) in [("a.csv.gz", gzip), ("a.csv.zst", zstd)] {
        assert_eq!(read(&folder.put(name, &bytes), None).len(), 5000);
        for cut in [bytes.len() / 2, bytes.len() - 1, 6] {
            let path = folder.put(name, &bytes[..cut]);
            let whole = PromptFiles::open(&[path], None)
                .and_then(|files| files.reader().collect::<Result<Vec<_>, _>>());
            let packing = if name.ends_with("gz") { "gzip" } else { "zstd" };
            assert!(
                matches!(&whole, Err(InputError::Bad(m)) if m.contains(packing) && m.contains("damaged")),
                "{name} {cut}: {whole:?}"
            );
        }
    }
}

#[test]
fn what_no_record_can_have_is_refused_and_what_one_lacks_is_its_error() {
    let folder = Folder::new();
    let csv = folder.put("a.csv", "id,text,text\n1,a,b\n");
    let bad = |path: &Path, reading: Reading| match read_as(path, reading) {
        Err(InputError::Bad(message)) => message,
        other => panic!("{:?}", other.map(|r| told(&r))),
    };
    assert!(
        bad(&csv, template("{{ body }}"))
            .contains("--template asks for body, and the header has id, text, text")
    );
    assert!(bad(&csv, template("{{ text }}")).contains("two columns are called text"));
    let named = |name: &str| Reading { prompt_field: Some(name.into()), ..Reading::default() };
    assert!(bad(&csv, named("body")).contains("--prompt-field asks for body"));
    assert!(
        bad(&csv, Reading { id_field: Some("key".into()), ..named("id") })
            .contains("--id-field asks for key")
    );
    let txt = folder.put("a.txt", "one\n");
    assert!(bad(&txt, template("{{ text }}")).contains("texts have only prompt"));
    assert_eq!(told(&read_as(&txt, template("<{{ prompt }}>")).unwrap()), ["<one>"]);
    // A column that may be absent is no fault.
    let path = folder.put("b.csv", "id,text\n1,a\n2\n");
    let optional = template("{{ text }}{% if note is defined %}{{ note }}{% endif %}");
    assert_eq!(told(&read_as(&path, optional).unwrap()), ["a", "!bad_csv"]);
    let jsonl = folder
        .put("a.jsonl", "{\"a\":\"x\",\"b\":[1]}\n{\"a\":null,\"b\":2}\n{\"b\":3,\"a\":\"y\"}\n");
    let got = read_as(&jsonl, template("{{ a }}{{ b | tojson }}")).unwrap();
    assert_eq!(told(&got), ["x[1]", "!template", "y3"]);
    let error = got[1].request.as_ref().unwrap_err();
    assert!(
        error.message.starts_with("a.jsonl:2: ") && error.message.contains("no a"),
        "{error:?}"
    );
    assert!(
        got[1].origin.input.as_ref().unwrap().contains("\"b\":2"),
        "what can be read of it is kept"
    );
    assert!(bad(&jsonl, template("{{ c }}")).contains("none of its 3 records"));
    // Conversations and OpenAI's requests are no rows.
    let chat = folder
        .put("c.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"a\":\"y\"}\n");
    assert!(bad(&chat, template("{{ a }}")).contains("--template"));
    let line = r#"{"custom_id":"c","method":"POST","url":"/v1/chat/completions","body":{"messages":[{"role":"user","content":"x"}]}}"#;
    let requests = folder.put("o.jsonl", line);
    assert!(
        bad(&requests, template("{{ body }}")).contains("OpenAI")
            && bad(&requests, named("body")).contains("--prompt-field")
    );
}

#[test]
fn a_prompt_field_is_a_text_or_a_conversation_of_either_form() {
    let folder = Folder::new();
    let lines = [
        r#"{"key":7,"q":"what?","prompt":"no"}"#,
        r#"{"key":"a","q":[{"role":"user","content":"hi"}]}"#,
        r#"{"key":"b","q":[{"from":"system","value":"s"},{"from":"human","value":"hi"},{"from":"gpt","value":"ho"}]}"#,
        r#"{"key":"c","q":[{"from":"robot","value":"x"}]}"#,
        r#"{"key":"d","q":5}"#,
        r#"{"key":"e"}"#,
    ];
    let path = folder.put("q.jsonl", lines.join("\n"));
    let reading = Reading {
        prompt_field: Some("q".into()),
        id_field: Some("key".into()),
        ..Reading::default()
    };
    let got = read_as(&path, reading).unwrap();
    assert_eq!(
        told(&got),
        [
            "what?",
            "user:hi",
            "system:s|user:hi|assistant:ho",
            "!bad_field",
            "!bad_field",
            "!missing_prompt"
        ]
    );
    let ids: Vec<(&str, bool)> =
        got.iter().map(|r| (&r.origin.id[..], r.origin.id_is_number)).collect();
    assert_eq!(
        ids,
        [("7", true), ("a", false), ("b", false), ("c", false), ("d", false), ("e", false)]
    );
    assert!(
        got[0].origin.input.as_ref().unwrap().contains("\"prompt\":\"no\""),
        "another field, even if it is called prompt"
    );
}

#[test]
fn a_folder_is_a_prompt_a_file_and_typed_prompts_are_numbered() {
    let folder = Folder::new();
    let root = folder.0.path().join("letters");
    std::fs::create_dir_all(root.join("sub/deep")).unwrap();
    for (name, text) in [
        ("b.txt", "B\n"),
        ("a.md", "A"),
        ("sub/c.TXT", "C"),
        ("sub/deep/d.txt", ""),
        ("e.pdf", "no"),
        (".hidden.txt", "no"),
    ] {
        std::fs::write(root.join(name), text).unwrap();
    }
    std::fs::write(root.join("z.txt"), b"\xff").unwrap();
    let typed = ["one".to_string(), "two".to_string()];
    let files =
        PromptFiles::open_as(std::slice::from_ref(&root), &typed, Reading::default()).unwrap();
    assert!(files.can_be_read_twice());
    let got: Vec<Record> = files.reader().map(Result::unwrap).collect();
    assert_eq!(told(&got), ["A", "B\n", "C", "!empty_prompt", "!not_utf8", "one", "two"]);
    let ids: Vec<&str> = got.iter().map(|r| &r.origin.id[..]).collect();
    let expected = [
        "letters/a.md",
        "letters/b.txt",
        "letters/sub/c.TXT",
        "letters/sub/deep/d.txt",
        "letters/z.txt",
        "prompt:1",
        "prompt:2",
    ];
    assert_eq!(ids, expected);
    assert!(got[4].request.as_ref().unwrap_err().message.starts_with("letters/z.txt"));
    // Its files are looked at twice: another one between is noticed.
    std::fs::write(root.join("b.txt"), "other").unwrap();
    let again: Result<Vec<Record>, InputError> = files.reader().collect();
    assert!(matches!(again, Err(InputError::Io(message)) if message.contains("changed")));
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
        assert!(
            message.contains(&format!(":{line}: ")) || message.contains(&format!("line {line} ")),
            "{bytes:?}: {message}"
        );
        assert!(message.contains("never closed"), "{message}");
    }
}

#[test]
fn files_that_are_none_of_prompts_are_refused_before_any_work() {
    for (name, bytes, message) in [
        ("a.csv", &b"question,x\na,b\n"[..], "no column prompt, but question, x"),
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
        assert!(
            error.contains(message) && error.contains(name) && !error.contains('\n'),
            "{error}"
        );
    }
    let folder = Folder::new();
    let refused = |paths: &[PathBuf], format| match PromptFiles::open(paths, format) {
        Err(InputError::Bad(message)) => message,
        _ => panic!("accepted"),
    };
    assert!(
        refused(&[folder.0.path().to_path_buf()], None).contains("no record"),
        "an empty folder"
    );
    assert!(refused(&[folder.0.path().join("none.txt")], None).contains("no such file"));
    let good = folder.put("a.txt", "x");
    assert!(refused(&[good.clone(), good.clone()], None).contains("twice"));
    std::os::unix::fs::symlink(folder.0.path().join("loop.txt"), folder.0.path().join("loop.txt"))
        .unwrap();
    assert!(!refused(&[folder.0.path().join("loop.txt")], None).is_empty());
    for (name, bytes) in [
        ("a.jsonl", ""),
        ("a.jsonl", "\n \n"),
        ("a.json", "[]"),
        ("a.txt", ""),
        ("a.txt", "\u{feff}"),
        ("a.csv", "prompt\n"),
    ] {
        assert!(refusal(name, bytes).contains("there is no record in it"), "{name} {bytes:?}");
    }
    assert_eq!(told(&records("a.txt", "a\n\n\nb\n")), ["a", "!empty_prompt", "!empty_prompt", "b"]);
}

#[test]
fn a_file_none_of_whose_first_records_has_the_form_of_one_is_refused_with_what_it_seems_to_be() {
    let request =
        r#"{"custom_id":"c","method":"POST","url":"/v1/embeddings","body":{"input":"x"}}"#;
    for (name, bytes, words) in [
        (
            "a.jsonl",
            r#"{"instruction":"Name a fruit.","input":"","output":"Apple"}"#,
            &["a.jsonl:1: ", "Alpaca", "its one record"][..],
        ),
        (
            "a.jsonl",
            r#"{"conversations":[{"from":"human","value":"Hi"}]}"#,
            &["ShareGPT", "--prompt-field conversations"],
        ),
        (
            "a.jsonl",
            "{\"question\":\"a\"}\n{\"question\":\"b\"}",
            &["--prompt-field question", "none of its 2 records"],
        ),
        ("a.jsonl", r#"{"text":"a"}"#, &["--prompt-field text"]),
        ("a.jsonl", r#"{"instruction":"a"}"#, &["--prompt-field instruction"]),
        ("a.jsonl", r#"{"a":1,"b":2}"#, &["its fields are a, b"]),
        ("a.jsonl", "plain\ntext\n", &["not a JSON object", "none of its 2 records"]),
        ("a.jsonl", r#"{"prompt":7}"#, &["prompt must be a string"]),
        ("a.jsonl", request, &["url"]),
        ("a.json", "[1, 2]", &["not a JSON object"]),
        ("a.txt", "caf\u{e9}", &[]),
    ] {
        let bytes = if name == "a.txt" { b"caf\xe9\n".to_vec() } else { bytes.as_bytes().to_vec() };
        let error = refusal(name, &bytes);
        assert!(words.iter().all(|word| error.contains(word)) && !error.contains('\n'), "{error}");
    }
    // One that has it among the first hundred is enough; one after them is not.
    let after = |count: usize| "{\"question\":\"a\"}\n".repeat(count) + "{\"prompt\":\"b\"}\n";
    assert_eq!(records("a.jsonl", after(99)).len(), 100);
    assert!(refusal("a.jsonl", after(100)).contains("none of its first 100 records"));
    // Errors of single records are no wrong file.
    for fine in [
        r#"{"prompt":""}"#,
        r#"{"prompt":"x","seed":-1}"#,
        r#"{"messages":[]}"#,
        r#"{"prompt":"\ud800"}"#,
    ] {
        assert_eq!(told(&records("a.jsonl", fine)).len(), 1, "{fine}");
    }
}

#[test]
fn the_kind_of_a_file_is_told_by_its_content_where_its_name_says_otherwise_or_nothing() {
    let request = r#"{"custom_id":"c","method":"post","url":"/chat/completions","body":{"messages":[{"role":"user","content":"x"}]}}"#;
    let folder = Folder::new();
    let read = |name: &str, bytes: &str| {
        let files = PromptFiles::open(&[folder.put(name, bytes)], None).unwrap();
        let mut reader = files.reader();
        let got: Vec<Record> = reader.by_ref().map(Result::unwrap).collect();
        (told(&got), files.are_openai(), reader.take_warnings().len())
    };
    let texts = |all: &[&str]| all.iter().map(|t| t.to_string()).collect::<Vec<_>>();
    assert_eq!(read("a.jsonl", request), (texts(&["user:x"]), true, 0));
    assert_eq!(
        read("a.jsonl", &format!("\n\u{feff}not json\n{request}\n")),
        (texts(&["!bad_json", "user:x"]), true, 0)
    );
    assert_eq!(read("a.json", &format!("[{request},\n {request}]")).0, ["user:x", "!duplicate_id"]);
    assert_eq!(
        read("a.json", "[\n {\n  \"prompt\": \"a\"\n },\n {\"prompt\": \"b\"}\n]\n"),
        (texts(&["a", "b"]), false, 0)
    );
    assert_eq!(
        read("a.json", "{\"prompt\":\"a\"}\n{\"prompt\":\"b\"}"),
        (texts(&["a", "b"]), false, 1)
    );
    assert_eq!(
        read("a.jsonl", "[{\"prompt\":\"a\"},{\"prompt\":\"b\""),
        (texts(&["a", "!bad_json"]), false, 1)
    );
    assert_eq!(read("a.csv", "{\"prompt\":\"a\"}\n"), (texts(&["a"]), false, 1));
    assert_eq!(read("a.dat", "id,prompt\n1,a\n"), (texts(&["a"]), false, 0));
    assert_eq!(read("a.dat", "{\"prompt\":\"a\"}\n"), (texts(&["a"]), false, 0));
    // TRL's data sets have conversations under the name of prompt.
    assert_eq!(
        read(
            "a.jsonl",
            r#"{"prompt":[{"role":"user","content":"x"},{"role":"developer","content":"y"}]}"#
        )
        .0,
        ["user:x|system:y"]
    );
    let array = folder.put("x.json", "[{\"prompt\":\"a\"},{\"id\":3,\"prompt\":\"b\"}]");
    let ids: Vec<String> = PromptFiles::open(std::slice::from_ref(&array), None)
        .unwrap()
        .reader()
        .map(|r| r.unwrap().origin.id)
        .collect();
    assert_eq!(ids, ["x.json:1", "3"]);
    let both = PromptFiles::open(&[array, folder.put("y.jsonl", request)], None);
    assert!(
        matches!(both, Err(InputError::Bad(message)) if message.contains("OpenAI") && message.contains("two runs"))
    );
}

#[test]
fn half_a_surrogate_pair_is_named() {
    for (line, half) in [
        (r#"{"id":"a","prompt":"half \ud83d emoji"}"#, r"prompt: \ud83d"),
        (r#"{"id":"a","prompt":"\ud83d\ude00 \\ud83d \ude00"}"#, r"prompt: \ude00"),
        (r#"{"id":"a","messages":[{"role":"user","content":"\ud83d\n"}]}"#, r"messages: \ud83d"),
        (r#"{"id":"\udc00","prompt":"x"}"#, r"id: \udc00"),
    ] {
        let got = records("a.jsonl", line);
        let error = got[0].request.as_ref().unwrap_err();
        assert!(
            error.code == "bad_field"
                && error.message.contains(half)
                && error.message.contains("surrogate"),
            "{error:?}"
        );
    }
    assert_eq!(told(&records("a.jsonl", r#"{"prompt":"\ud83d\ude00 \\ud83d"}"#)), ["😀 \\ud83d"]);
}

#[test]
fn a_pipe_that_nobody_writes_to_does_not_hang_and_one_with_a_writer_is_read() {
    let folder = Folder::new();
    let fifo = folder.0.path().join("p.txt");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let files = PromptFiles::open(std::slice::from_ref(&fifo), None).unwrap();
    let read: Vec<_> = files.reader().collect();
    assert!(
        matches!(&read[..], [Err(InputError::Io(message))] if message.contains("nobody writes")),
        "{read:?}"
    );
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
        (told(&got), got.iter().map(|r| r.origin.line).collect::<Vec<_>>()),
        (vec!["a".to_string(), "b".to_string()], vec![2, 3])
    );
    assert!(matches!(files.reader().next(), Some(Err(InputError::Io(_)))));
}

#[test]
fn huge_records_are_refused_in_bounded_memory_and_the_rest_is_read() {
    let huge = "x".repeat(LONGEST_RECORD + 10);
    for (name, bytes) in [
        ("a.txt", format!("a\n{huge}\nb\n")),
        (
            "a.jsonl",
            format!("{{\"prompt\":\"a\"}}\n{{\"prompt\":\"{huge}\"}}\n{{\"prompt\":\"b\"}}\n"),
        ),
        ("a.csv", format!("prompt\na\n\"{huge}\n\"\nb\n")),
        ("a.csv", format!("prompt\na\n{}\nb\n", ",".repeat(LONGEST_RECORD + 1))),
    ] {
        let got = records(name, bytes);
        assert_eq!(told(&got), ["a", "!record_too_long", "b"], "{name}");
        assert!(got[1].request.as_ref().unwrap_err().message.contains("the limit is 8388608"));
    }
    assert_eq!(told(&records("a.txt", " ".repeat(1_200_000))), [" ".repeat(1_200_000)]);
}

const CHAT: &str = "/v1/chat/completions";

fn body_line(url: &str, body: &str) -> String {
    format!("{{\"custom_id\":\"c\",\"method\":\"POST\",\"url\":\"{url}\",\"body\":{body}}}")
}

fn chat_line(extra: &str) -> String {
    body_line(
        CHAT,
        &format!(
            "{{\"model\":\"m\",\"messages\":[{{\"role\":\"user\",\"content\":\"x\"}}]{extra}}}"
        ),
    )
}

#[test]
fn fields_of_openai_requests_are_an_allow_list() {
    // Inert, or at the value that does nothing.
    for harmless in [
        "",
        ",\"user\":\"u\",\"metadata\":{\"a\":\"b\"},\"store\":true,\"service_tier\":\"flex\",\"stream_options\":{}",
        ",\"parallel_tool_calls\":true,\"tools\":[ ],\"logit_bias\":{},\"stream\":false,\"echo\":false,\"best_of\":1",
        ",\"ignore_eos\":false,\"tool_calls\":[],\"logprobs\":false,\"top_logprobs\":0",
        ",\"response_format\":{ \"type\": \"text\" },\"structured_outputs\":null",
        ",\"tools\":null,\"tool_choice\":null,\"suffix\":null,\"whatever\":null,\"logprobs\":null",
    ] {
        let got = request(&chat_line(harmless));
        assert!(got.request.is_ok() && got.origin.id == "c", "{harmless}: {:?}", got.request);
        assert!(
            matches!(&got.origin.prompt, OriginalPrompt::OpenAi(request) if request.model.as_deref() == Some("m"))
        );
        assert_eq!(got.request.unwrap().generation, GenerationFields::default());
    }
    for (field, value) in [
        ("n", "17"),
        ("n", "0"),
        ("tools", "[{}]"),
        ("tool_choice", "\"auto\""),
        ("response_format", "{\"type\":\"xml\"}"),
        ("response_format", "{\"type\":\"json_schema\"}"),
        ("response_format", "{\"type\":\"json_object\",\"schema\":{}}"),
        ("structured_outputs", "{\"regex\":\"a\",\"grammar\":\"b\"}"),
        ("structured_outputs", "{\"structural_tag\":\"a\"}"),
        ("structured_outputs", "{\"choice\":[]}"),
        ("structured_outputs", "{\"regex\":\"a\"},\"response_format\":{\"type\":\"json_object\"}"),
        ("guided_choice", "[\"a\"]"),
        ("logprobs", "3"),
        ("top_logprobs", "3"),
        ("top_logprobs", "21,\"logprobs\":true"),
        ("stream", "true"),
        ("frequency_penalty", "2.5"),
        ("presence_penalty", "-3"),
        ("repetition_penalty", "0"),
        ("min_p", "1.1"),
        ("choices", "[\"a\",\"b\"]"),
        ("ignore_eos", "true"),
        ("logit_bias", "{\"1\":2}"),
        ("reasoning_effort", "\"low\""),
        ("safety_identifier", "\"x\""),
        ("temprature", "1"),
        ("prompt", "\"x\""),
        ("temperature", "-1"),
        ("max_completion_tokens", "0"),
        ("max_tokens", "\"x\""),
        ("top_k", "-2"),
        ("seed", "1.5"),
        ("seed", "18446744073709551616"),
        ("chat_template_kwargs", "[]"),
    ] {
        let got = request(&chat_line(&format!(",\"{field}\":{value}")));
        let error = got.request.as_ref().expect_err(field);
        assert!(error.message.contains(field), "{field}: {}", error.message);
        assert!(got.origin.id == "c" && matches!(got.origin.prompt, OriginalPrompt::OpenAi(_)));
    }
    let generation = |extra: &str| request(&chat_line(extra)).request.unwrap().generation;
    assert_eq!(generation(",\"max_completion_tokens\":7").max_tokens, Some(7));
    assert_eq!(generation(",\"top_k\":-1,\"seed\":-1").top_k, Some(0));
    assert_eq!(generation(",\"seed\":-1").seed, Some(u64::MAX));
    assert_eq!(generation(",\"seed\":18446744073709551615").seed, Some(u64::MAX));
    let kwargs = generation(
        ",\"chat_template_kwargs\":{\"enable_thinking\":false},\"add_generation_prompt\":false",
    );
    assert_eq!(kwargs.chat_template_kwargs.unwrap()["enable_thinking"], false);
    assert_eq!(kwargs.add_generation_prompt, Some(false));
    assert!(request(&chat_line(",\"max_tokens\":8,\"max_completion_tokens\":7")).request.is_err());
    let many = generation(
        ",\"n\":16,\"presence_penalty\":-2,\"frequency_penalty\":0.5,\"repetition_penalty\":1.25,\"min_p\":0.5,\"logprobs\":true",
    );
    let numbers = (
        many.n,
        many.presence_penalty,
        many.frequency_penalty,
        many.repetition_penalty,
        many.min_p,
        many.logprobs,
    );
    assert_eq!(numbers, (Some(16), Some(-2.0), Some(0.5), Some(1.25), Some(0.5), Some(0)));
    assert_eq!(generation(",\"logprobs\":true,\"top_logprobs\":20").logprobs, Some(20));
    let constraint = |extra: &str| generation(extra).constraint.map(|(_, constraint)| constraint);
    let schema = "{\"type\":\"object\",\"properties\":{\"b\":{},\"a\":{}}}";
    for (extra, expected) in [
        ("\"response_format\":{\"type\":\"json_object\"}".to_string(), Constraint::Object),
        (
            format!(
                "\"response_format\":{{\"type\":\"json_schema\",\"json_schema\":{{\"name\":\"x\",\"strict\":true,\"schema\":{schema}}}}}"
            ),
            Constraint::Schema(schema.into()),
        ),
        (
            format!("\"structured_outputs\":{{\"json\":{schema}}}"),
            Constraint::Schema(schema.into()),
        ),
        ("\"structured_outputs\":{\"regex\":\"a+\"}".into(), Constraint::Regex("a+".into())),
        (
            "\"structured_outputs\":{\"grammar\":\"start: \\\"a\\\"\",\"regex\":null}".into(),
            Constraint::Lark("start: \"a\"".into()),
        ),
        (
            "\"structured_outputs\":{\"choice\":[\"a\",\"b\"]}".into(),
            Constraint::OneOf(vec!["a".into(), "b".into()]),
        ),
    ] {
        assert_eq!(constraint(&format!(",{extra}")), Some(expected), "{extra}");
    }
    let completion = |extra: &str| {
        request(&body_line("/v1/completions", &format!("{{\"prompt\":\"x\"{extra}}}"))).request
    };
    assert_eq!(completion(",\"logprobs\":5").unwrap().generation.logprobs, Some(5));
    assert!(
        completion(",\"logprobs\":true").is_err() && completion(",\"top_logprobs\":2").is_err()
    );
}

#[test]
fn a_record_has_a_form_of_its_own_and_two_forms_are_a_fault_that_names_both() {
    let of = |fields: &str| {
        records("a.jsonl", format!("{{\"prompt\":\"x\",{fields}}}\n")).remove(0).request
    };
    let generation = |fields: &str| of(fields).unwrap().generation;
    assert_eq!(
        generation(r#""json_schema":{"type":"null"}"#).constraint,
        Some(("json_schema", Constraint::Schema(r#"{"type":"null"}"#.into())))
    );
    assert_eq!(
        generation(r#""json_schema":"{\"type\":\"null\"}""#).constraint,
        Some(("json_schema", Constraint::Schema(r#"{"type":"null"}"#.into())))
    );
    assert_eq!(
        generation(r#""regex":"[ab]""#).constraint,
        Some(("regex", Constraint::Regex("[ab]".into())))
    );
    assert_eq!(
        generation(r#""response_format":{"type":"json_object"}"#).constraint,
        Some(("response_format", Constraint::Object))
    );
    assert_eq!(
        generation(r#""choices":["a","b"],"logprobs":2"#).choices,
        Some(vec!["a".into(), "b".into()])
    );
    for (fields, words) in [
        (r#""regex":"a","json_schema":{}"#, ["regex", "json_schema"]),
        (r#""choices":["a","b"],"regex":"a""#, ["choices", "regex"]),
        (r#""choices":["a"]"#, ["choices", "2"]),
        (r#""choices":["a","a"]"#, ["choices", "'a'"]),
        (r#""logprobs":21"#, ["logprobs", "20"]),
        (r#""json_schema":3"#, ["json_schema", "object"]),
    ] {
        let error = of(fields).unwrap_err();
        assert!(
            error.code == "bad_field" && words.iter().all(|word| error.message.contains(word)),
            "{fields}: {error:?}"
        );
    }
    let rows = records(
        "a.csv",
        "prompt,choices,regex\nx,\"yes, no\",\ny,,[ab]\nz,\"[\"\"a,b\"\",\"\"c\"\"]\",\n",
    );
    let choices = |n: usize| rows[n].request.clone().unwrap().generation.choices;
    assert_eq!(choices(0), Some(vec!["yes".into(), "no".into()]));
    assert_eq!((choices(1), choices(2)), (None, Some(vec!["a,b".into(), "c".into()])));
}

#[test]
fn messages_of_openai_requests_are_an_allow_list_too() {
    let with = |message: &str| {
        request(&body_line(
            CHAT,
            &format!("{{\"messages\":[{{\"role\":\"user\",\"content\":\"x\"}},{message}]}}"),
        ))
        .request
    };
    for fine in [
        r#"{"role":"user","content":"y","name":"Ann","refusal":null}"#,
        r#"{"role":"assistant","content":"y","tool_calls":[],"audio":null,"refusal":"no"}"#,
        r#"{"role":"developer","content":[{"type":"text","text":"y"}]}"#,
    ] {
        assert!(with(fine).is_ok(), "{fine}: {:?}", with(fine));
    }
    for (bad, word) in [
        (
            r#"{"role":"assistant","content":"","tool_calls":[{"id":"c1"}]}"#,
            "messages[1].tool_calls",
        ),
        (r#"{"role":"tool","tool_call_id":"c1","content":"apple"}"#, "messages[1].tool_call_id"),
        (r#"{"role":"user","content":"y","cache_control":{}}"#, "messages[1].cache_control"),
        (
            r#"{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:x"}}]}"#,
            "messages[1].content",
        ),
        (r#"{"role":"user","content":null}"#, "messages[1].content"),
        (r#"{"role":"robot","content":"y"}"#, "messages[1].role"),
    ] {
        let error = with(bad).unwrap_err();
        assert!(error.message.contains(word), "{error:?}");
    }
    let go_on = |last: &str, extra: &str| {
        let body = format!(
            "{{\"messages\":[{{\"role\":\"{last}\",\"content\":\"x\"}}],\"continue_final_message\":true{extra}}}"
        );
        request(&body_line(CHAT, &body))
            .request
            .map(|asked| asked.generation.continue_final_message)
    };
    assert_eq!(go_on("assistant", ",\"add_generation_prompt\":false"), Ok(Some(true)));
    assert!(go_on("user", "").unwrap_err().message.contains("continue_final_message"));
    assert!(
        go_on("assistant", ",\"add_generation_prompt\":true").unwrap_err().message.contains("both")
    );
}

#[test]
fn openai_requests_are_known_by_every_address_that_servers_use() {
    let got = |url: &str, method: &str| {
        let body = if url.contains("chat") {
            "{\"messages\":[{\"role\":\"user\",\"content\":\"Once\"}]}"
        } else {
            "{\"prompt\":\"Once\"}"
        };
        let record = request(&body_line(url, body).replace("POST", method));
        let OriginalPrompt::OpenAi(request) = record.origin.prompt else { panic!("{url}") };
        record.request.map(|asked| (asked.content, request.endpoint)).map_err(|e| e.message)
    };
    for url in [
        CHAT,
        "/chat/completions",
        "/v1/chat/completions/",
        "https://api.openai.com/v1/chat/completions",
        "HTTP://127.0.0.1:8000/v1/chat/completions?x=1",
        "https://host.example/api/v1/chat/completions",
        "/openai/deployments/gpt-4o/chat/completions?api-version=2024-02-01",
        "https://x.example/openai/v1/chat/completions",
    ] {
        for method in ["POST", "post", "Post"] {
            assert!(
                matches!(got(url, method), Ok((Content::Messages(_), Endpoint::Chat))),
                "{url}"
            );
        }
        let plain = url.replace("chat/", "");
        assert_eq!(
            got(&plain, "POST"),
            Ok((Content::Completion("Once".into()), Endpoint::Completions)),
            "{plain}"
        );
    }
    for url in [
        "/v2/chat/completions",
        "/v1/embeddings",
        "chat/completions",
        "ftp://x/v1/chat/completions",
        "https://x",
        "/v1/chatcompletions",
        "",
    ] {
        assert!(got(url, "POST").unwrap_err().contains("url"), "{url}");
    }
    assert!(got(CHAT, "GET").unwrap_err().contains("method"));
    for (bad, message) in [
        (body_line(CHAT, "{}"), "body.messages"),
        (body_line(CHAT, "[]"), "body"),
        (chat_line("").replace("custom_id", "id"), "custom_id"),
        (chat_line("").replace("\"c\"", "5"), "custom_id"),
        ("x".to_string(), "JSON"),
        (body_line("/v1/completions", "{\"prompt\":[\"a\",\"b\"]}"), "prompt"),
        (
            body_line("/v1/completions", "{\"prompt\":\"a\",\"add_generation_prompt\":false}"),
            "add_generation_prompt",
        ),
    ] {
        let got = request(&bad);
        assert!(got.request.as_ref().unwrap_err().message.contains(message), "{got:?}");
    }
    let parts = body_line(
        CHAT,
        "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"b\"}]}]}",
    );
    assert_eq!(told(&openai(&parts)), ["user:a\nb"]);
    let folder = Folder::new();
    let hint = PromptFiles::open(&[folder.put("a.jsonl", chat_line(""))], Some(InputFormat::Jsonl));
    assert!(
        matches!(hint, Err(InputError::Bad(message)) if message.contains("--input-format openai"))
    );
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
    let first = super::files::text(&mut lines, &super::reading::Rules::default()).unwrap().unwrap();
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
            prop_assert_eq!(&record.origin.prompt, &OriginalPrompt::Text(prompt.clone()));
            prop_assert_eq!(&record.origin.carried, &vec![InputCell::Text(note.clone())]);
            prop_assert_eq!(record.request.is_ok(), !prompt.is_empty());
        }
    }

    #[test]
    fn json_that_was_written_is_read_back(texts in prop::collection::vec(any::<String>(), 1..8), seed in any::<u64>()) {
        let lines: String = texts.iter().enumerate().map(|(n, t)| serde_json::json!({"id": format!("{n}{t}"), "prompt": t, "seed": seed}).to_string() + "\n").collect();
        let got = records("a.jsonl", lines);
        prop_assert_eq!(got.len(), texts.len());
        for (n, (record, text)) in got.iter().zip(&texts).enumerate() {
            prop_assert_eq!(&record.origin.id, &format!("{n}{text}"));
            match &record.request {
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
            let ids: std::collections::HashSet<_> = first.iter().map(|r| r.as_ref().unwrap().origin.id.clone()).collect();
            prop_assert_eq!(ids.len(), first.len());
            if format == InputFormat::Txt {
                let expected = text.split(|b| *b == b'\n').count() - usize::from(text.ends_with(b"\n") || text.is_empty());
                prop_assert_eq!(first.len(), expected);
            }
        }
    }
}

#[test]
fn a_table_whose_first_line_names_its_separator_is_read_by_it() {
    for bytes in [
        "sep=;\nid;prompt\n1;a, b\n",
        "\u{feff}sep=;\r\nid;prompt\r\n1;a, b\r\n",
        "\"sep=;\"\nid;prompt\n1;a, b\n",
        "Sep=|\nid|prompt\n1|a, b\n",
        "sep=\t\nid\tprompt\n1\ta, b\n",
    ] {
        for name in ["a.csv", "a.tsv"] {
            let got = records(name, bytes);
            assert_eq!(
                (told(&got), &got[0].origin.id[..], got[0].origin.line),
                (vec!["a, b".to_string()], "1", 3),
                "{bytes:?}"
            );
        }
    }
}

#[test]
fn a_packed_file_that_asks_for_a_large_window_is_refused_for_that_and_a_bomb_is_an_error_record() {
    let frame = |window: u8, blocks: &[u8]| [b"\x28\xb5\x2f\xfd\0", &[window][..], blocks].concat();
    let block = |kind: u32, last: u32, length: usize, data: &[u8]| {
        [&((length as u32) << 3 | kind << 1 | last).to_le_bytes()[..3], data].concat()
    };
    let line = b"{\"prompt\":\"hi\"}\n";
    let raw = block(0, 1, line.len(), line);
    let folder = Folder::new();
    let refused = |name: &str, bytes: Vec<u8>| {
        PromptFiles::open(&[folder.put(name, bytes)], None).err().unwrap().to_string()
    };
    // 2 GiB, 3.75 TiB.
    for window in [21 << 3, 0xff] {
        let message = refused("w.jsonl.zst", frame(window, &raw));
        assert!(
            message.contains("asks for a window of ") && message.contains("without --long"),
            "{message}"
        );
    }
    assert_eq!(told(&records("w.jsonl.zst", frame(17 << 3, &raw))), ["hi"], "128 MiB");
    // 64 MiB of one letter in 2 kB.
    let letters = block(1, 0, 1 << 17, b"a").repeat(512);
    let bomb = frame(7 << 3, &[letters, block(0, 0, 1, b"\n"), raw].concat());
    assert!(bomb.len() < 3000);
    assert_eq!(told(&records("b.jsonl.zst", bomb)), ["!record_too_long", "hi"]);
}

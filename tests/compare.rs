//! `llmopt compare` from the outside, with tiny models: settings measured side by side, results files lined up, refusals in one line.
//! Times are never judged here: what must hold is which measures are there, what is exactly the same, and what is said.

mod common;

use common::{Stored, Tiny, Values};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const MEASURES: [&str; 14] = [
    "load_s",
    "prefill_64",
    "prefill_512",
    "decode_1",
    "decode_batch",
    "latency_p50_ms",
    "latency_p99_ms",
    "workload_tok_s",
    "peak_rss_bytes",
    "answers_identical",
    "top1_agreement",
    "kl_mean",
    "kl_p99",
    "perplexity",
];

/// A tiny model with a context that holds every measure, and rows that quantized blocks divide.
fn model(folder: &Path, stored: Stored) -> String {
    let template = "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}";
    let tiny = Tiny {
        name: format!("tiny-{stored:?}"),
        context: 1024,
        values: Values::Fine,
        chat_template: Some(template.into()),
        ..Tiny::seeded(5)
    };
    tiny.stored(stored).write(folder).display().to_string()
}

fn compare(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llmopt"));
    command
        .current_dir(folder)
        .stdin(Stdio::null())
        .arg("compare")
        .args(arguments)
        .output()
        .unwrap()
}

#[track_caller]
fn done(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[track_caller]
fn refused(output: Output, part: &str) {
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(
        (output.status.code(), stdout.as_ref(), stderr.lines().count()),
        (Some(2), "", 1),
        "{stderr}"
    );
    assert!(stderr.contains(part), "no '{part}' in: {stderr}");
}

fn figure<'a>(setting: &'a Value, measure: &str) -> &'a Value {
    setting["figures"]
        .as_array()
        .unwrap()
        .iter()
        .find(|f| f["measure"] == measure)
        .unwrap_or_else(|| panic!("no {measure}"))
}

/// The only folder below `results`.
fn results(folder: &Path) -> std::path::PathBuf {
    let found: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

#[test]
fn a_bf16_file_gives_the_same_bits_as_f32_and_int8_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), Stored::Bf16);
    let output = compare(
        folder.path(),
        &[
            "f32",
            "bf16",
            "q8_0",
            "-m",
            &model,
            "--format",
            "json",
            "--max-time",
            "30",
            "--threads",
            "2",
            "--batch-size",
            "4",
            "-q",
        ],
    );
    let json: Value = serde_json::from_str(&done(&output)).unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let settings = json["settings"].as_array().unwrap();
    assert_eq!(
        settings.iter().map(|s| s["name"].as_str().unwrap()).collect::<Vec<_>>(),
        ["f32", "bf16", "q8_0"]
    );
    for setting in settings {
        let weights = 320 * 64 + 2 * (2 * 64 + 64 * 64 * 2 + 2 * 32 * 64 + 3 * 96 * 64) + 64;
        assert_eq!(setting["parameters"], serde_json::json!({"total": weights, "active": weights}));
        let names: Vec<&str> = setting["figures"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| f["measure"].as_str().unwrap())
            .collect();
        assert_eq!(names, MEASURES);
        for measure in MEASURES.iter().filter(|m| **m != "latency_p99_ms") {
            let value = figure(setting, measure)["value"].as_f64();
            assert!(
                value.is_some_and(|v| v.is_finite() && v >= 0.0),
                "{} {measure}: {value:?}",
                setting["name"]
            );
        }
        // 24 answers are not enough for a 99th percentile, and it says so.
        assert!(figure(setting, "latency_p99_ms")["value"].is_null());
        assert!(figure(setting, "latency_p99_ms")["note"].as_str().unwrap().contains("1000"));
        assert!(setting["quality"]["tokens"].as_u64().unwrap() >= 4096);
        // What bounds a rate of these tiny weights, which any cache holds, are multiply-adds.
        assert!(figure(setting, "decode_1")["limit"].as_f64().unwrap() > 0.0);
    }
    let value = |setting: usize, measure: &str| {
        figure(&settings[setting], measure)["value"].as_f64().unwrap()
    };
    assert_eq!(
        (
            value(1, "answers_identical"),
            value(1, "top1_agreement"),
            value(1, "kl_mean"),
            value(1, "kl_p99")
        ),
        (1.0, 1.0, 0.0, 0.0)
    );
    assert_eq!(value(0, "perplexity"), value(1, "perplexity"));
    assert!(settings[1]["quality"]["same_bits"].as_bool().unwrap());
    assert!(
        value(2, "kl_mean") > 0.0
            && value(2, "top1_agreement") < 1.0
            && !settings[2]["quality"]["same_bits"].as_bool().unwrap()
    );

    // The verdict: identical answers come from f32 or bf16 only, and auto chooses one of them. A machine that others use gets none.
    let verdicts = json["verdicts"].as_array().unwrap();
    let busy =
        json["busy"]["others"].as_f64().unwrap() + json["busy"]["stolen"].as_f64().unwrap() > 0.25;
    let aims: Vec<&str> = verdicts.iter().map(|v| v["aim"].as_str().unwrap()).collect();
    assert_eq!(aims, if busy { vec![] } else { vec!["prefill", "decode", "batch", "workload"] });
    for verdict in verdicts {
        let pick = verdict["same_answers"]["setting"].as_str().unwrap();
        assert!(["f32", "bf16"].contains(&pick), "{verdict}");
        assert_eq!(verdict["same_answers"]["flags"], format!("--dtype {pick}"));
    }
    assert!(["f32", "bf16"].contains(&json["auto"]["dtype"].as_str().unwrap()), "{}", json["auto"]);
    let sentences = json["sentences"].as_array().unwrap();
    assert!(
        sentences.iter().any(|s| s.as_str().unwrap().starts_with("--dtype auto chooses ")),
        "{sentences:?}"
    );

    // The same on disk, for people and for programs.
    let written = results(&folder.path().join("results"));
    let csv = std::fs::read_to_string(written.join("compare.csv")).unwrap();
    assert!(csv.starts_with("setting,measure,value,low,high,unit,limit,share\n"), "{csv}");
    assert_eq!(csv.lines().count(), 1 + 3 * MEASURES.len());
    let report = std::fs::read_to_string(written.join("report.md")).unwrap();
    assert!(
        report.starts_with(&format!(
            "# {}",
            if busy { "No verdict: other" } else { "Fastest here, times f32: " }
        )),
        "{report}"
    );
    assert!(report.contains(" parameters): f32 / bf16 / q8"), "{report}");
    assert!(report.contains("## Machine") && report.contains("GFLOP/s"), "{report}");
    assert_eq!(
        serde_json::from_str::<Value>(
            &std::fs::read_to_string(written.join("result.json")).unwrap()
        )
        .unwrap(),
        json
    );

    // Such a result can be compared with itself: nothing differs, no ratio has changed.
    let twice = done(&compare(
        folder.path(),
        &[
            written.to_str().unwrap(),
            written.join("result.json").to_str().unwrap(),
            "--format",
            "csv",
        ],
    ));
    let rows: Vec<&str> = twice.lines().skip(1).collect();
    assert!(rows.len() >= 8 && rows.iter().all(|r| r.ends_with(",no clear change")), "{twice}");
}

#[test]
fn bf16_emulated_is_there_only_when_it_is_named_and_flags_make_settings_too() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), Stored::F32);
    let run = |what: &[&str]| -> Value {
        let common =
            ["-m", &model, "--quick", "--format", "json", "--out", "out", "--max-time", "10", "-q"];
        serde_json::from_str(&done(&compare(folder.path(), &[what, &common[..]].concat()))).unwrap()
    };
    let json = run(&["f32", "bf16"]);
    let settings = json["settings"].as_array().unwrap();
    assert_eq!(
        settings.iter().map(|s| s["name"].as_str().unwrap()).collect::<Vec<_>>(),
        ["f32", "bf16"]
    );
    // In a hurry only speed is measured, and nothing is said of answers.
    assert!(
        json["quick"].as_bool().unwrap() && settings[0]["figures"].as_array().unwrap().len() == 9
    );
    // A machine that others use gets no verdict, and says so first.
    let taken = json["busy"]["others"].as_f64().unwrap() + json["busy"]["stolen"].as_f64().unwrap();
    let (first, verdicts) =
        (json["sentences"][0].as_str().unwrap(), json["verdicts"].as_array().unwrap());
    match taken > 0.25 {
        true => assert!(
            verdicts.is_empty() && first.starts_with("No verdict: other processes"),
            "{first}"
        ),
        false => {
            assert!(
                first.contains("bf16")
                    && verdicts[0]["same_answers"].is_null()
                    && !verdicts[0]["any_answers"].is_null()
            )
        }
    }

    let json = run(&["threads=1", "threads=2,batch-size=2,without=queue+mask"]);
    let settings = json["settings"].as_array().unwrap();
    assert_eq!(
        (
            settings[0]["threads"].as_u64(),
            settings[1]["threads"].as_u64(),
            settings[1]["batch"].as_u64()
        ),
        (Some(1), Some(2), Some(2))
    );
    assert_eq!(settings[1]["flags"], "--threads 2 --batch-size 2 --without queue,mask");
}

#[test]
fn hand_made_results_files_give_their_known_ratios_after_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, rows: &[(&str, f64)]| {
        let rows: Vec<Value> = rows
            .iter()
            .map(|(n, r)| serde_json::json!({"optimization": n, "alone": r, "alone_low": r * 0.95, "alone_high": r / 0.95}))
            .collect();
        std::fs::write(folder.path().join(name), Value::from(rows).to_string()).unwrap();
    };
    write("old.json", &[("precision", 1.5), ("cache", 4.0), ("greedy", 1.2)]);
    write("new.json", &[("precision", 3.0), ("cache", 1.0), ("greedy", 1.21)]);
    let csv = done(&compare(folder.path(), &["old.json", "new.json", "--format", "csv"]));
    let rows: Vec<Vec<&str>> = csv.lines().skip(1).map(|l| l.split(',').collect()).collect();
    let found: Vec<(&str, &str, &str)> = rows.iter().map(|r| (r[1], r[8], r[11])).collect();
    assert_eq!(
        found,
        [
            ("precision", "2", "better"),
            ("cache", "0.25", "worse"),
            ("greedy", "1.00833", "no clear change")
        ]
    );
    let text = done(&compare(folder.path(), &["old.json", "new.json"]));
    // A terminal shows headings in capitals.
    let (differs, rows) =
        (text.to_lowercase().find("what differs").unwrap(), text.find("precision").unwrap());
    assert!(differs < rows, "{text}");
    assert!(!folder.path().join("results").exists(), "nothing is written unless --out says so");
}

#[test]
fn what_cannot_be_compared_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::write(
        path.join("good.json"),
        r#"[{"optimization":"cache","alone":2,"alone_low":1.9,"alone_high":2.1}]"#,
    )
    .unwrap();
    for (content, part) in [
        ("", "is not JSON"),
        ("{\"schema\": 1", "is not JSON"),
        ("{}", "result.json"),
        (r#"[{"optimization":"cache","alone":NaN,"alone_low":1,"alone_high":2}]"#, "is not JSON"),
        (r#"[{"optimization":"cache","alone":1e999,"alone_low":1,"alone_high":2}]"#, "bad.json"),
        (r#"[{"optimization":"cache","alone":-1,"alone_low":-2,"alone_high":0}]"#, "no ratio"),
        (r#"{"kind":"compare","schema":2}"#, "schema 2"),
        (r#"{"schema_name":"llmopt-bench","schema":999}"#, "schema 999"),
    ] {
        std::fs::write(path.join("bad.json"), content).unwrap();
        refused(compare(path, &["good.json", "bad.json"]), part);
        refused(compare(path, &["bad.json", "good.json"]), part);
    }
    refused(compare(path, &["good.json", "none.json"]), "none.json");
    refused(compare(path, &["good.json"]), "two or more");
    refused(compare(path, &["good.json", "f32"]), "'f32' is a setting");
    refused(compare(path, &["f32", "bf17"]), "bf16-emulated");
    refused(compare(path, &["f32", "dtype=bf16,speed=9"]), "'speed'");
    refused(compare(path, &["f32", "bf16", "-m", "none.gguf"]), "none.gguf");
    let model = model(path, Stored::F32);
    std::fs::write(path.join("short.txt"), "too short").unwrap();
    // What is wrong with a text is said before the model is looked for, but for the number of its tokens.
    for (name, content, part) in [
        ("short.txt", &b"too short"[..], "has 9 bytes; 4096 tokens at least"),
        ("empty.txt", b"", "is empty; 4096 tokens"),
        ("mark.txt", b"\xef\xbb\xbf", "is empty; 4096 tokens"),
        ("zeros.txt", &[b'a', 0, 0], "byte 1 is zero"),
        ("bytes.txt", &[0xff, 0xfe, 0x00], "UTF-8"),
    ] {
        std::fs::write(path.join(name), content).unwrap();
        refused(compare(path, &["f32", "bf16", "-m", "none.gguf", "--text", name]), part);
    }
    std::fs::create_dir(path.join("texts")).unwrap();
    refused(
        compare(path, &["f32", "bf16", "-m", "none.gguf", "--text", "texts"]),
        "cannot be read",
    );
    refused(
        compare(path, &["f32", "bf16", "-m", "none.gguf", "--text", "none.txt"]),
        "none.txt: cannot be read",
    );
    refused(
        compare(path, &["f32", "bf16", "-m", "none.gguf", "--text", "/dev/zero"]),
        "byte 0 is zero",
    );
    std::fs::write(path.join("few.txt"), "the ".repeat(1200)).unwrap();
    refused(compare(path, &["f32", "bf16", "-m", &model, "--text", "few.txt"]), "are needed");
    refused(compare(path, &["f32", "bf16", "-m", &model, "--out", "short.txt"]), "short.txt");
    assert!(!path.join("results").exists(), "a refusal writes nothing");
}

//! `llmopt run` from the outside, with tiny models: files in, lines out, exit statuses, and not a word too many on stderr.

mod common;
#[path = "common/process.rs"]
mod process;

use process::{Bench, essences, feed, finish, model, records, wait};
use std::process::Stdio;

const TEXTS: [&str; 5] =
    ["What is 1 & 2?", "name a colour", "What is 1 & 2?", " ", "ünïcode \"quoted\", comma"];

fn jsonl(texts: &[&str]) -> String {
    texts
        .iter()
        .enumerate()
        .map(|(i, t)| serde_json::json!({"id": format!("r{i}"), "prompt": t}).to_string() + "\n")
        .collect()
}

#[test]
fn a_record_has_the_contracts_fields_in_their_order() {
    let bench = Bench::new();
    let input = bench.file("in.jsonl", jsonl(&TEXTS));
    let ran = bench.run(&[input]).expect(0);
    let first = &ran.records()[0];
    let names: Vec<&str> = first.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "id",
        "prompt",
        "answer",
        "finish_reason",
        "decoding",
        "prompt_tokens",
        "completion_tokens",
        "cached",
        "queue_ms",
        "ttft_ms",
        "latency_ms",
        "model",
        "dtype",
        "settings",
        "error",
    ];
    assert_eq!(names, expected);
    assert_eq!(
        (first["model"].as_str(), first["dtype"].as_str()),
        (model().file_name().and_then(|n| n.to_str()), Some("f32"))
    );
    let settings = first["settings"].as_str().unwrap();
    assert!(
        settings.len() == 16
            && settings.bytes().all(|b| b.is_ascii_hexdigit())
            && first["error"].is_null()
    );
    assert!(ran.records().iter().all(|r| r["completion_tokens"].as_u64().unwrap() <= 8));
    assert_eq!(
        ran.records().iter().filter(|r| r["cached"] == true).count(),
        1,
        "the repeated prompt"
    );
    assert!(ran.stderr.contains("5 prompts"), "{}", ran.stderr);
}

#[test]
fn a_record_says_which_set_of_a_longrope_it_was_computed_with() {
    let bench = Bench::new();
    let tiny = process::tiny();
    tiny.write_checkpoint(&bench.path("model"), 1);
    let mut config = tiny.config();
    let half = tiny.head_dim / 2;
    let set = |step: f64| (0..half).map(|i| 1.0 + step * i as f64).collect::<Vec<_>>();
    config["rope_scaling"] = serde_json::json!({"rope_type": "longrope", "short_factor": set(0.1), "long_factor": set(2.0)});
    config["original_max_position_embeddings"] = 64.into();
    std::fs::write(bench.path("model/config.json"), config.to_string()).unwrap();
    let prompt = "a few words to go on from";
    let line = |id: &str, tokens: usize| {
        serde_json::json!({"id": id, "prompt": prompt, "max_tokens": tokens}).to_string() + "\n"
    };
    let at = |tokens: usize| bench.file("one.jsonl", line("one", tokens)).to_string();
    let args = ["-q", "-m", "model", "--stop-on", "eos", "--temperature", "0"];
    let run = |input: &str, more: &[&str]| {
        bench.run(&[&[input][..], &args, more].concat()).expect(0).records()
    };
    // The last of the tokens is never run: so many are just short enough.
    let prompt_tokens = run(&at(2), &[])[0]["prompt_tokens"].as_u64().unwrap() as usize;
    let most = 64 + 1 - prompt_tokens;
    let all: Vec<(String, usize)> =
        [2, most, most + 1, 100, 3].iter().map(|n| (format!("r{n}"), *n)).collect();
    bench.file("in.jsonl", all.iter().map(|(id, n)| line(id, *n)).collect::<String>());
    let sets = ["short", "short", "long", "long", "short"];
    let together = run("in.jsonl", &["--ordered"]);
    for (record, set) in together.iter().zip(sets) {
        assert_eq!(record["rope"], set, "{record}");
    }
    // The other set gives other answers; neighbours change none.
    let begins = |a: usize, b: usize| {
        let text = |i: usize| together[i]["answer"].as_str().unwrap();
        text(b).starts_with(text(a))
    };
    assert!(begins(0, 1) && begins(2, 3) && !begins(1, 2), "{together:#?}");
    let alone = run("in.jsonl", &["--ordered", "--batch-size", "1", "--without", "shared-prefix"]);
    for (a, b) in together.iter().zip(&alone) {
        assert_eq!((&a["answer"], &a["rope"]), (&b["answer"], &b["rope"]));
    }
    let csv = bench.run(
        &[&["in.jsonl"][..], &args, &["--ordered", "-o", "out.csv", "--columns", "id,rope"]]
            .concat(),
    );
    csv.expect(0);
    assert_eq!(
        bench.text("out.csv"),
        "id,rope\nr2,short\n".to_string() + &bench.text("out.csv")["id,rope\nr2,short\n".len()..]
    );
    assert_eq!(bench.text("out.csv").matches(",long").count(), 2);
    // A model with one set says nothing.
    assert!(
        bench.run(&["in.jsonl", "-q"]).expect(0).records().iter().all(|r| r.get("rope").is_none())
    );
}

#[test]
fn the_same_prompts_in_every_format_get_the_same_answers() {
    let bench = Bench::new();
    let texts = ["What is 1 & 2?", "name a colour", "ünïcode \"quoted\", comma"];
    let mut rows = "id,prompt,topic\n".to_string();
    let mut batch = String::new();
    for (i, text) in texts.iter().enumerate() {
        rows += &format!("r{i},\"{}\",t{i}\n", text.replace('"', "\"\""));
        let body = serde_json::json!({"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 8});
        let line = serde_json::json!({"custom_id": format!("r{i}"), "method": "POST", "url": "/v1/chat/completions", "body": body});
        batch += &format!("{line}\n");
    }
    bench.file("a.jsonl", jsonl(&texts));
    bench.file("a.csv", rows);
    bench.file("a.txt", texts.join("\n"));
    bench.file("batch.jsonl", batch);
    let answers = |args: &[&str]| {
        let ran = bench.run(args).expect(0);
        let mut all: Vec<String> =
            ran.records().iter().map(|r| r["answer"].as_str().unwrap().to_string()).collect();
        all.sort();
        all
    };
    let expected = answers(&["a.jsonl"]);
    assert_eq!(expected.len(), 3);
    assert_eq!(answers(&["a.csv"]), expected);
    assert_eq!(answers(&["a.txt"]), expected);
    // Flags that are typed stand in the place of OpenAI's defaults.
    let ours = [
        "batch.jsonl",
        "--temperature",
        "0.2",
        "--top-p",
        "0.95",
        "--top-k",
        "50",
        "--stop-on",
        "all",
    ];
    let ran = bench.run(&ours).expect(0);
    let content = |r: &serde_json::Value| {
        r["response"]["body"]["choices"][0]["message"]["content"].as_str().unwrap().to_string()
    };
    let mut all: Vec<String> = ran.records().iter().map(content).collect();
    all.sort();
    assert_eq!(all, expected);
    assert!(
        ran.records().iter().all(|r| r["error"].is_null() && r["response"]["status_code"] == 200)
    );
    assert!(
        ran.records().iter().all(|r| r["response"]["body"]["model"] == "m"),
        "the request's model is echoed"
    );
    assert_eq!(ran.stderr.matches("asks for model 'm'").count(), 1, "{}", ran.stderr);
    // CSV out: the header first, other columns carried through.
    bench.run(&["a.csv", "-o", "out.csv", "--ordered"]).expect(0);
    let mut reader = csv::Reader::from_path(bench.path("out.csv")).unwrap();
    let header = reader.headers().unwrap().clone();
    assert_eq!((header.get(0), header.iter().next_back()), (Some("id"), Some("topic")));
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    let mut in_csv: Vec<String> = rows.iter().map(|r| r[2].to_string()).collect();
    in_csv.sort();
    assert_eq!(in_csv, expected);
    assert!(rows.iter().enumerate().all(|(i, r)| r[0] == format!("r{i}") && r.iter().next_back() == Some(&format!("t{i}"))));
}

#[test]
fn sizes_and_optimizations_that_promise_the_same_answers_give_them() {
    let bench = Bench::new();
    let input = bench.file("in.jsonl", jsonl(&TEXTS));
    let expected = essences(&bench.run(&[input]).expect(0).stdout);
    for args in [
        &["--batch-size", "1"][..],
        &["--batch-size", "2", "--threads", "1"],
        &["--threads", "4"],
        &["--without", "cache,tokenizer,mask,warmup,queue,static-memory,shared-prefix"],
        &["--without", "queue", "--batch-size", "3"],
        &["--kernels", "portable"],
    ] {
        let mut all = vec![input];
        all.extend(args);
        assert_eq!(essences(&bench.run(&all).expect(0).stdout), expected, "{args:?}");
    }
}

#[test]
fn order_is_the_inputs_if_asked_for() {
    let bench = Bench::new();
    let texts: Vec<String> = (0..60).map(|i| "x".repeat(1 + (i * 37) % 50)).collect();
    let input = bench.file("in.txt", texts.join("\n"));
    let ran = bench.run(&[input, "--ordered", "--batch-size", "4"]).expect(0);
    let ids: Vec<String> =
        ran.records().iter().map(|r| r["id"].as_str().unwrap().to_string()).collect();
    assert_eq!(ids, (1..=60).map(|n| format!("in.txt:{n}")).collect::<Vec<_>>());
}

#[test]
fn a_bad_record_is_an_error_record_and_the_others_are_answered() {
    let bench = Bench::new();
    let long = "x".repeat(600);
    let lines = [
        r#"{"id":"a","prompt":"hello"}"#.to_string(),
        r#"{"id":"a","prompt":"again"}"#.to_string(),
        r#"{"id":"b","prompt":""}"#.to_string(),
        "not json".to_string(),
        r#"{"id":"c","prompt":"x","temperature":"hot"}"#.to_string(),
        format!(r#"{{"id":"d","prompt":"{long}"}}"#),
        r#"{"id":"e","prompt":"bye","max_tokens":2}"#.to_string(),
    ];
    let input = bench.file("in.jsonl", lines.join("\n"));
    for args in [&[input][..], &[input, "--ordered"]] {
        let ran = bench.run(args).expect(4);
        let all = ran.records();
        assert_eq!(all.len(), lines.len(), "records in = records out");
        let code = |id: &str| {
            let found: Vec<_> = all.iter().filter(|r| r["id"] == id).collect();
            assert_eq!(found.len(), 1, "{id}");
            (
                found[0]["error"]["code"].as_str().map(String::from),
                found[0]["error"].to_string(),
                found[0]["completion_tokens"].clone(),
            )
        };
        assert!(code("a").0.is_none() && code("e").0.is_none() && code("e").2.as_u64() <= Some(2));
        assert_eq!(code("in.jsonl:2").0.as_deref(), Some("duplicate_id"));
        assert_eq!(code("b").0.as_deref(), Some("empty_prompt"));
        assert!(code("in.jsonl:4").1.contains("in.jsonl:4") && code("c").1.contains("temperature"));
        assert!(code("d").1.contains("512") && code("d").1.contains("tokens"), "{}", code("d").1);
        assert!(!ran.stderr.contains("panick"), "{}", ran.stderr);
    }
}

#[test]
fn what_cannot_work_is_refused_in_one_line_with_nothing_written() {
    let bench = Bench::new();
    let input = bench.file("in.txt", "hello\n");
    bench.file("old.jsonl", "old\n");
    bench.file("old.dat", "old\n");
    bench.file("bad.gguf", "GGUF and then nonsense");
    bench.file("open.csv", "prompt\n\"never closed\n");
    std::fs::create_dir(bench.path("folder")).unwrap();
    for (args, word) in [
        (&["none.txt"][..], "none.txt"),
        (&["folder"], "folder"),
        (&["open.csv"], "open.csv:2"),
        (&[input, "-m", "bad.gguf"], "bad.gguf"),
        (&[input, "-m", "none.gguf"], "none.gguf"),
        (&[input, "-o", "folder"], "folder"),
        (&[input, "-o", "no/such.jsonl"], "no"),
        (&[input, "-o", "old.jsonl"], "--overwrite"),
        (&[input, "-o", "out.jsonl", "-m", "bad.gguf"], "bad.gguf"),
        (&[input, "--stats", "no/such.json"], "--stats"),
        (&[input, "--only", "speed"], "shared-prefix"),
        (&[input, "--only", "quantized"], "precision"),
        (&[input, "--kernels", "abacus"], "abacus"),
        (&["old.dat"], "--input-format"),
    ] {
        bench.run(args).refused(word);
    }
    // Bad usage may take more lines, but the status is the same.
    for args in [
        &[input, "--temperature", "nan"][..],
        &[input, "--batch-size", "0"],
        &[input, "--nonsense"],
        &[],
    ] {
        assert_eq!(bench.run(args).expect(2).stdout, "");
    }
    assert_eq!(bench.text("old.jsonl"), "old\n");
    assert!(
        !bench.path("out.jsonl").exists(),
        "an output that was made for nothing goes away again"
    );
}

#[test]
fn a_reader_that_goes_away_is_a_quiet_end() {
    let bench = Bench::new();
    let input = bench.file("in.txt", "hello\n".repeat(2000));
    let mut command = bench.command(&[input, "--without", "cache", "-q"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut some = [0; 10];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut some).unwrap();
    drop(child.stdout.take());
    let ran = finish(child).expect(0);
    assert_eq!(ran.stderr, "");
    // The same without any standard streams at all.
    let run = format!(
        "{} run {input} -m {} --max-tokens 2 -q",
        env!("CARGO_BIN_EXE_llmopt"),
        model().display()
    );
    for closed in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
        let mut shell = std::process::Command::new("sh");
        shell.current_dir(&bench.folder).args(["-c", &format!("{run} --limit 3 {closed}")]);
        shell.stdout(Stdio::null()).stderr(Stdio::piped());
        assert_eq!(finish(shell.spawn().unwrap()).expect(0).stderr, "", "{closed}");
    }
}

#[test]
fn a_full_disk_is_status_1_with_the_path() {
    let bench = Bench::new();
    let input = bench.file("in.txt", "hello\n");
    for output in [&["-o", "/dev/full"][..], &[]] {
        let mut args = vec![input];
        args.extend(output);
        let mut command = bench.command(&args);
        command
            .stderr(Stdio::piped())
            .stdout(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
        let ran = finish(command.spawn().unwrap()).expect(1);
        let name = output.last().unwrap_or(&"standard output");
        assert!(
            ran.stderr.contains(name)
                && ran.stderr.contains("No space")
                && !ran.stderr.contains("panick"),
            "{}",
            ran.stderr
        );
    }
    // A limit on file sizes is a full disk too, not a signal.
    let input = bench.file("many.txt", "hello\n".repeat(50));
    let run = format!(
        "ulimit -f 4; exec {} run {input} -m {} -o small.jsonl",
        env!("CARGO_BIN_EXE_llmopt"),
        model().display()
    );
    let mut shell = std::process::Command::new("bash");
    shell.current_dir(&bench.folder).args(["-c", &run]).stderr(Stdio::piped());
    let ran = finish(shell.spawn().unwrap()).expect(1);
    assert!(ran.stderr.contains("small.jsonl"), "{}", ran.stderr);
    let kept = bench.text("small.jsonl");
    assert!(kept.ends_with('\n') && !records(&kept).is_empty(), "whole lines only");
    bench.run(&[input, "-o", "small.jsonl", "--max-tokens", "128", "--resume"]).expect(0);
    assert!(
        bench.text("small.jsonl").starts_with(&kept)
            && records(&bench.text("small.jsonl")).len() == 50
    );
}

#[test]
fn special_files_and_closed_folders_are_handled() {
    let bench = Bench::new();
    let input = bench.file("in.txt", "hello\nthere\n");
    bench.run(&[input, "-o", "/dev/null"]).expect(0);
    bench.run(&[input, "-o", "/dev/null", "--overwrite"]).expect(0);
    bench.run(&[input, "-o", "/dev/null", "--resume"]).refused("regular");
    assert_eq!(records(&bench.run(&[input, "-o", "/dev/stdout"]).expect(0).stdout).len(), 2);
    // A FIFO as output, read by somebody.
    std::process::Command::new("mkfifo").arg(bench.path("pipe")).status().unwrap();
    let child = bench.start(bench.command(&[input, "-o", "pipe"]));
    let read = std::fs::read_to_string(bench.path("pipe")).unwrap();
    finish(child).expect(0);
    assert_eq!(records(&read).len(), 2);
}

#[test]
fn standard_input_is_read_as_a_stream() {
    let bench = Bench::new();
    let mut command = bench.command(&["-", "--input-format", "txt", "-q"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"first\n").unwrap();
    // The first answer comes while the input is still open.
    let mut line = String::new();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    assert_eq!(records(&line)[0]["prompt"], "first");
    feed(&mut child, "second");
    line.clear();
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    assert_eq!((records(&line)[0]["prompt"].as_str(), wait(&mut child)), (Some("second"), 0));
    assert_eq!(
        bench.run(&["-", "--input-format", "txt"]).expect(0).stdout,
        "",
        "an empty input has no answers"
    );
}

#[test]
fn stats_and_summary_say_what_happened() {
    let bench = Bench::new();
    let input = bench.file("in.txt", (0..30).map(|i| format!("prompt {i}\n")).collect::<String>());
    let ran = bench.run(&[input, "--stats", "s.json", "-v"]).expect(0);
    let stats: serde_json::Value = serde_json::from_str(&bench.text("s.json")).unwrap();
    let tokens: u64 = ran.records().iter().map(|r| r["completion_tokens"].as_u64().unwrap()).sum();
    assert_eq!(
        (stats["prompts"].as_u64(), stats["completion_tokens"].as_u64()),
        (Some(30), Some(tokens))
    );
    assert_eq!(stats["latency_ms"]["n"], 30);
    assert!(
        stats["latency_ms"]["p50"].is_number() && stats["latency_ms"]["p99"].is_null(),
        "30 samples say nothing of p99"
    );
    assert!(
        ran.stderr.contains("p99 –")
            && ran.stderr.contains("n = 30")
            && ran.stderr.contains("kernels"),
        "{}",
        ran.stderr
    );
    for name in ["s.latency.hgrm", "s.latency.csv", "s.ttft.hgrm", "s.per-token.csv"] {
        assert!(!bench.text(name).is_empty(), "{name}");
    }
    assert_eq!(bench.run(&[input, "-q"]).expect(0).stderr, "");
}

#[test]
fn a_dry_run_counts_and_answers_nothing() {
    let bench = Bench::new();
    let input = bench.file("in.txt", (0..30).map(|i| format!("prompt {i}\n")).collect::<String>());
    let ran = bench.run(&[input, "--dry-run", "-o", "out.jsonl", "--limit", "20"]).expect(0);
    assert!(
        ran.stdout.is_empty()
            && ran.stderr.contains("20 prompts")
            && ran.stderr.contains("at most 160 answer tokens"),
        "{}",
        ran.stderr
    );
    assert!(!bench.path("out.jsonl").exists());
}

#[test]
fn too_little_memory_and_too_little_time_are_status_75() {
    let bench = Bench::new();
    let input = bench.file("in.txt", "hello\nyou\n");
    let ran = bench.run(&[input, "--kv-memory", "900T", "-o", "out.jsonl"]).expect(75);
    assert!(
        ran.stderr.contains("memory")
            && ran.stderr.lines().count() == 1
            && !bench.path("out.jsonl").exists(),
        "{}",
        ran.stderr
    );
    let ran = bench.run(&[input, "--max-time", "0.000001", "-o", "out.jsonl"]).expect(75);
    assert!(ran.stderr.contains("--resume"), "{}", ran.stderr);
    bench.run(&[input, "-o", "out.jsonl", "--resume"]).expect(0);
    assert_eq!(records(&bench.text("out.jsonl")).len(), 2);
}

#[test]
fn text_from_files_cannot_steer_a_terminal() {
    let bench = Bench::new();
    let input = bench.file(
        "in.jsonl",
        "{\"id\":\"a\\u001b[2J\",\"prompt\":\"x\",\"evil\\u001b]0;t\\u0007\":1}\n{\"id\":\"a\\u001b[2J\",\"prompt\":\"y\"}\n",
    );
    let ran = bench.run(&[input]).expect(4);
    assert!(ran.stderr.bytes().all(|b| b >= 0x20 || b == b'\n'), "{:?}", ran.stderr);
    assert!(ran.stdout.bytes().all(|b| b >= 0x20 || b == b'\n'), "JSON escapes them");
}

#[test]
fn help_lists_the_optimizations() {
    let bench = Bench::new();
    let ran = bench.run(&["--help"]).expect(0);
    assert!(
        ["precision", "shared-prefix", "--ordered", "phase 2"]
            .iter()
            .all(|w| ran.stdout.contains(w)),
        "{}",
        ran.stdout
    );
}

/// Templates that make much of little: each must end in bounded memory (address space) and time (of the processor), one line, no stack
/// overflow. `M` stands for the message, so that a template may first look harmless.
const HOSTILE: [&str; 44] = [
    "{{ ([[M] * 9999] * 9999) ~ '' }}",
    "{{ '' ~ [[[1] * 99999] * 99999] * 99999 }}",
    "{{ [['aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' * 9999] * 9999] * 9999 }}",
    "{{ (['a' * 1000000] * 100000) | join('x') | upper }}",
    "{{ (['a' * 1000000] * 100000) | string | length }}",
    "{{ (['a' * 1000000] * 100000) | tojson }}",
    "{{ [[M] * 9999] * 9999 | upper }}",
    "{{ ([[M] * 9999] * 9999) | upper }}",
    "{{ ([[M] * 9999] * 9999) | trim }}",
    "{{ 'a' | replace('a', [[M] * 9999] * 9999) }}",
    "{{ 'a' | indent(1000000000) }}",
    "{{ '%s' | format([[M] * 9999] * 9999) }}",
    "{{ 'a' in ([[M] * 9999] * 9999) | string }}",
    "{{ ([[M] * 9999] * 9999) in 'abc' }}",
    "{{ 'abc'.startswith([[M] * 9999] * 9999) }}",
    "{{ 'abc' is startingwith([[M] * 9999] * 9999) }}",
    "{{ raise_exception([[M] * 9999] * 9999) }}",
    "{{ debug([[M] * 9999] * 9999) }}",
    "{{ {'a': [[M] * 9999] * 9999} ~ '' }}",
    "{{ namespace(a=[[M] * 9999] * 9999) ~ '' }}",
    "{{ (([1e308] * 400000) ~ '') | length }}",
    "{% set ns = namespace(a=[M]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a ~ '' }}",
    "{% set ns = namespace(a=[M], b=[M]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
    "{% set ns = namespace(a=[M], b=[M]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a in [ns.b] }}",
    "{% set ns = namespace(a=[M], b=[M]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ [ns.a, ns.b] | sort | length }}",
    "{% set ns = namespace(a=[M], b=[M]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ 1 < ns.a < ns.b }}{{ [ns.a].count(ns.b) }}",
    "{% set ns = namespace(a=[M], b=[M]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ {ns.a: 1}[ns.b] }}",
    "{% set ns = namespace(a=[M], b=[M]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{% for i in [1, 2] %}{{ loop.changed([ns.a, ns.b][loop.index0]) }}{% endfor %}",
    "{% set ns = namespace(a=[1] * 100000) %}{% for i in range(600) %}{% set ns.a = ns.a + ns.a %}{% endfor %}{{ ns.a | length }}",
    "{% set ns = namespace(a=[M]) %}{% for i in range(99999) %}{% set ns.a = [ns.a] %}{% endfor %}{{ M }}",
    "{% set ns = namespace(a=[M]) %}{% for i in range(99999) %}{% set ns.a = ns.a[0:] %}{% endfor %}{% for x in ns.a %}{{ x }}{% endfor %}",
    "{% set ns = namespace(a=[M]) %}{% for i in range(99999) %}{% set ns.a = ns.a * 1 %}{% endfor %}{% for x in ns.a %}{{ x }}{% endfor %}",
    "{% set ns = namespace(a=[M]) %}{% for i in range(99999) %}{% set ns.a = ns.a | batch(1) %}{% endfor %}{{ M }}",
    "{% set ns = namespace(a=[M]) %}{% for i in range(99999) %}{% set ns.a = ns.a | reverse %}{% endfor %}{% for x in ns.a %}{{ x }}{% endfor %}",
    "{% set ns = namespace(a=M) %}{% for i in range(99999) %}{% set ns.a = {'a': ns.a} %}{% endfor %}{{ M }}",
    "{% set ns = namespace(a=M) %}{% for i in range(99999) %}{% set n = namespace() %}{% set n.a = ns.a %}{% set ns.a = n %}{% endfor %}{{ M }}",
    "{% set ns = namespace(a=M) %}{% for i in range(99999) %}{% for j in [ns.a] %}{% set ns.a = loop %}{% endfor %}{% endfor %}{{ M }}",
    "{% set ns = namespace(a=M) %}{% set ns.a = ns %}{{ ns ~ '' }}",
    "{% set s = 'a ' * 15000000 %}{{ s.split() | length }}",
    "{% set s = 'a ' * 15000000 %}{{ s | split | list | length }}",
    "{% set s = 'a' * 30000000 %}{{ s | list | length }}",
    "{% set s = 'a' * 15000000 %}{% for i in range(9999) %}{% set t = s ~ i %}{{ t | length }}{% endfor %}",
    "{% include [['a']] * 99999999 %}",
    "{% macro m(a) %}{{ m([a, a]) }}{% endmacro %}{{ m(M) }}",
];

#[test]
fn hostile_templates_are_refused_in_bounded_memory_and_time() {
    let bench = Bench::new();
    let input = bench.file("in.txt", "now\n");
    // At once, and only when the prompt comes.
    for (n, hostile) in HOSTILE.iter().enumerate() {
        let body = hostile.replace('M', "messages[0].content");
        let waits = format!(
            "{{% if messages[0].content == 'now' %}}{body}{{% else %}}{{{{ messages[0].content }}}}{{% endif %}}"
        );
        for (template, status) in [(format!("{body}{{{{ messages[0].content }}}}"), 2), (waits, 4)]
        {
            let name = format!("hostile{n}-{status}");
            let path = common::Tiny { chat_template: Some(template), name, ..process::tiny() }
                .write(&bench.path("."));
            let program = env!("CARGO_BIN_EXE_llmopt");
            let run = format!(
                "ulimit -v 700000 -t 2; exec {program} run {input} -m {} -q --threads 1 --max-tokens 2",
                path.display()
            );
            let mut shell = std::process::Command::new("bash");
            shell
                .current_dir(&bench.folder)
                .args(["-c", &run])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            let ran = finish(shell.spawn().unwrap());
            // What cannot even be compiled is refused before the prompt comes.
            assert!(ran.status == status || ran.status == 2, "{hostile}: {ran:?}");
            let said = if ran.status == 2 { &ran.stderr } else { &ran.stdout };
            assert!(
                said.contains("chat template") && said.lines().count() == 1,
                "{hostile}: {ran:?}"
            );
        }
    }
}

#[test]
fn a_base_model_refuses_conversations_and_says_what_to_do() {
    let bench = Bench::new();
    let path = common::Tiny { chat_template: None, name: "base".into(), ..process::tiny() }
        .write(&bench.path("."));
    let path = path.to_str().unwrap();
    let input = bench.file(
        "in.jsonl",
        "{\"prompt\":\"a\"}\n{\"messages\":[{\"role\":\"user\",\"content\":\"b\"}]}\n{\"prompt\":\"c\",\"raw\":true}\n",
    );
    let ran = bench.run(&["-m", path, input]).expect(4);
    let codes: Vec<_> = ran.records().iter().map(|r| r["error"]["code"].clone()).collect();
    assert_eq!(codes.iter().filter(|c| *c == "no_chat_template").count(), 2, "{}", ran.stdout);
    assert_eq!(
        codes.iter().filter(|c| c.is_null()).count(),
        1,
        "a raw record is a text to be continued"
    );
    let said = ran.stdout.lines().find(|l| l.contains("no_chat_template")).unwrap();
    assert!(
        said.contains("base model")
            && said.contains("--raw")
            && said.contains("--chat-template @FILE"),
        "{said}"
    );
    let text = bench.file("in.txt", "a\n");
    let raw = bench.run(&["-m", path, text, "--raw"]).expect(0);
    assert!(!raw.stderr.contains("base model"), "{}", raw.stderr);
    // With the template of another file the answers are that file's.
    let template = process::tiny().chat_template.unwrap();
    bench.file("chat.jinja", template);
    let own = bench.run(&[text]).expect(0);
    let given = bench.run(&["-m", path, text, "--chat-template", "@chat.jinja"]).expect(0);
    assert_eq!(given.records()[0]["answer"], own.records()[0]["answer"]);
    assert_eq!(given.records()[0]["prompt_tokens"], own.records()[0]["prompt_tokens"]);
    assert_ne!(given.records()[0]["settings"], raw.records()[0]["settings"]);
    for (bad, content, says) in [
        ("none.jinja", None, "cannot be read"),
        ("bad.jinja", Some("{% for m in messages %}"), "--chat-template bad.jinja"),
        ("latin.jinja", Some("\u{e9}"), "--chat-template latin.jinja"),
    ] {
        if let Some(content) = content {
            let bytes = if bad == "latin.jinja" { vec![0xe9] } else { content.as_bytes().to_vec() };
            bench.file(bad, bytes);
        }
        let ran = bench.run(&["-m", path, text, "--chat-template", &format!("@{bad}")]).expect(2);
        assert!(
            ran.stderr.contains(says) && ran.stderr.lines().count() == 1 && ran.stdout.is_empty(),
            "{bad}: {ran:?}"
        );
    }
    let clash = bench
        .run(&[
            "-m",
            path,
            text,
            "--chat-template",
            "@chat.jinja",
            "-o",
            "chat.jinja",
            "--overwrite",
        ])
        .expect(2);
    assert!(clash.stderr.contains("same file"), "{}", clash.stderr);
}

#[test]
fn a_process_that_may_use_one_core_uses_one_thread() {
    let bench = Bench::new();
    let input = bench.file("in.txt", "hello\n");
    let run = format!(
        "exec taskset -c 0 {} run {input} -m {} -v --max-tokens 2",
        env!("CARGO_BIN_EXE_llmopt"),
        model().display()
    );
    let mut shell = std::process::Command::new("sh");
    shell
        .current_dir(&bench.folder)
        .args(["-c", &run])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let ran = finish(shell.spawn().unwrap()).expect(0);
    assert!(ran.stderr.contains("1 thread,"), "{}", ran.stderr);
}

#[test]
fn a_working_folder_or_cache_that_cannot_be_written_is_no_trouble_or_one_line() {
    let bench = Bench::new();
    bench.file("in.txt", "hello\nthere\n");
    let input = bench.path("in.txt");
    let input = input.to_str().unwrap();
    // /proc cannot be written by anybody, root included.
    let mut command = bench.command(&[input]);
    command.current_dir("/proc").env_remove("HOME").env("TMPDIR", "/none");
    assert_eq!(finish(bench.start(command)).expect(0).records().len(), 2);
    for output in ["out.jsonl", "/proc/out.jsonl"] {
        let mut command = bench.command(&[input, "-o", output]);
        command.current_dir("/proc");
        finish(bench.start(command)).refused(output);
    }
    let mut command = bench.command(&[input, "-m", "smollm2-135m"]);
    command.env("LLMOPT_CACHE", "/proc/cache");
    finish(bench.start(command)).refused("LLMOPT_CACHE");
}

#[test]
fn a_model_file_emptied_while_it_is_used_changes_no_answer() {
    let bench = Bench::new();
    let own = process::tiny().write(&bench.path("."));
    let input = bench.file("in.txt", "first\nsecond\n");
    let answers = |text: &str| -> Vec<_> {
        records(text).iter().map(|r| (r["prompt"].clone(), r["answer"].clone())).collect()
    };
    let expected =
        answers(&bench.run(&[input, "-m", own.to_str().unwrap(), "--ordered"]).expect(0).stdout);
    let mut command =
        bench.command(&["-", "--input-format", "txt", "-q", "-m", own.to_str().unwrap()]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"first\n").unwrap();
    let (mut out, mut text) =
        (std::io::BufReader::new(child.stdout.take().unwrap()), String::new());
    std::io::BufRead::read_line(&mut out, &mut text).unwrap();
    std::fs::write(&own, "").unwrap();
    feed(&mut child, "second\n");
    std::io::Read::read_to_string(&mut out, &mut text).unwrap();
    assert_eq!(wait(&mut child), 0);
    assert_eq!(answers(&text), expected);
}

#[test]
fn twenty_files_of_which_one_has_a_bad_record_or_is_missing() {
    let bench = Bench::new();
    let names: Vec<String> = (0..20).map(|i| format!("in{i}.jsonl")).collect();
    for name in &names {
        let bad = if name == "in7.jsonl" { "not json\n" } else { "" };
        bench.file(name, format!("{{\"id\":\"{name}\",\"prompt\":\"hello {name}\"}}\n{bad}"));
    }
    let mut args: Vec<&str> = names.iter().map(String::as_str).collect();
    args.extend(["--max-tokens", "2"]);
    let all = bench.run(&args).expect(4).records();
    assert_eq!((all.len(), all.iter().filter(|r| r["error"].is_null()).count()), (21, 20));
    // One that is not there stops the run before any work.
    std::fs::remove_file(bench.path("in7.jsonl")).unwrap();
    bench.run(&args).refused("in7.jsonl");
}

#[test]
fn at_every_limit_on_the_address_space_it_works_or_ends_with_one_line() {
    let bench = Bench::new();
    let input = bench.file("in.txt", "hello\nthere\n");
    let mut worked = false;
    for mb in (40..640).step_by(5) {
        let program = env!("CARGO_BIN_EXE_llmopt");
        let run = format!(
            "ulimit -c 0 -v {}; exec {program} run {input} -m {} -q --threads 2 --max-tokens 2",
            mb * 1024,
            model().display()
        );
        let mut shell = std::process::Command::new("bash");
        shell.current_dir(&bench.folder).args(["-c", &run]).env_remove("MALLOC_ARENA_MAX");
        let ran = finish(shell.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        if worked || ran.status == 0 {
            // With more memory it does not fail again.
            assert_eq!((ran.status, ran.records().len()), (0, 2), "{mb} MB: {ran:?}");
            worked = true;
        } else {
            assert_eq!((ran.status, ran.stderr.lines().count()), (75, 1), "{mb} MB: {ran:?}");
            assert!(ran.stderr.contains("memory") && ran.stdout.is_empty(), "{mb} MB: {ran:?}");
        }
    }
    assert!(worked);
}

#[test]
fn every_test_that_the_reliability_page_names_is_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    let (mut file, mut found) = (String::new(), 0);
    // `file::test`, and `…::test` for the file named last.
    for code in page.split('`').skip(1).step_by(2) {
        let Some((place, test)) = code.split_once("::") else { continue };
        if place != "…" {
            file = std::fs::read_to_string(root.join(place))
                .unwrap_or_else(|e| panic!("{place}: {e}"));
        }
        assert!(file.contains(&format!("fn {test}(")), "{code} is no test");
        found += 1;
    }
    assert!(found > 100, "{found}");
}

/// Paths that a page of the repository names in backquotes or links, as far as they look like paths into it.
fn paths_of(page: &str) -> Vec<String> {
    let links = page
        .match_indices("](")
        .map(|(at, _)| page[at + 2..].split(')').next().unwrap_or_default());
    let code = page.split('`').skip(1).step_by(2);
    let folders = [
        "src/", "docs/", "scripts/", "tests/", "benches/", "results/", "prompts/", ".ci/",
        ".github/",
    ];
    // In code a path begins with a folder of the repository; a pattern or a place-holder is none.
    let named = |c: &&str| {
        folders.iter().any(|f| c.starts_with(f)) && !c.contains(['*', '{', '<', '…', '$', '|'])
    };
    let code =
        code.filter_map(|c| c.split([' ', ':', ',']).next()).filter(named).map(|c| format!("/{c}"));
    let links = links
        .filter(|l| !l.contains("://") && !l.starts_with('#'))
        .map(|l| l.split('#').next().unwrap_or_default().to_string());
    links.chain(code).filter(|p| !p.is_empty()).collect()
}

#[test]
fn every_path_that_a_page_names_is_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec![
        root.join("README.md"),
        root.join("results/README.md"),
        root.join("scripts/README.md"),
    ];
    pages.extend(
        std::fs::read_dir(root.join("docs"))
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.extension().is_some_and(|e| e == "md")),
    );
    let (mut found, mut missing) = (0, Vec::new());
    for page in &pages {
        for path in paths_of(&std::fs::read_to_string(page).unwrap()) {
            let target = match path.strip_prefix('/') {
                Some(of_root) => root.join(of_root),
                None => page.parent().unwrap().join(&path),
            };
            found += 1;
            // What a run writes, or a study's output, is not in the repository.
            if !target.exists() && !path.starts_with("/results/") {
                missing.push(format!("{}: {path}", page.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(found > 100, "{found}");
    assert_eq!(
        paths_of("[a](../x.md#y) `src/nowhere.rs::t` `cargo test` [b](https://z)"),
        ["../x.md", "/src/nowhere.rs"]
    );
}

#[test]
fn every_script_is_in_the_index_and_tells_what_it_does() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let index = std::fs::read_to_string(root.join("scripts/README.md")).unwrap();
    let mut tried = 0;
    for entry in std::fs::read_dir(root.join("scripts")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        if !path.is_file() || name == "README.md" {
            continue;
        }
        assert!(index.contains(&format!("({name})")), "scripts/README.md does not name {name}");
        if !name.ends_with(".py") && !name.ends_with(".sh") {
            continue;
        }
        let output = std::process::Command::new(&path)
            .arg("--help")
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.lines().count() >= 2,
            "{name} --help: {:?} {text}",
            output.status
        );
        tried += 1;
    }
    assert!(tried > 15, "{tried}");
}

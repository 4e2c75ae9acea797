//! Nothing answered is lost and nothing is answered twice: runs killed, cut, locked out, interrupted, and resumed.
//! `LLMOPT_TEST_KILLS=200 cargo test --release --test resume killed` kills that often.

mod common;
#[path = "common/process.rs"]
mod process;

use process::{Bench, essence, essences, feed_without_end, finish, records, signal, tiny, wait};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Write;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn prompts(count: usize) -> String {
    // Some repeat and some begin alike, so that the cache and shared prefixes have work.
    let line = |i: usize| {
        format!(
            "{{\"id\":\"r{i}\",\"prompt\":\"What is {} & {}?\"}}\n",
            i % 50,
            if i.is_multiple_of(7) { 0 } else { i }
        )
    };
    (0..count).map(line).collect()
}

/// Whether `out` is the answers of `whole`, each once, with every line of `before` still there.
#[track_caller]
fn resumed(out: &str, whole: &str, before: &str) {
    assert_eq!(essences(out), essences(whole));
    let kept = &before[..before.rfind('\n').map_or(0, |at| at + 1)];
    assert!(out.starts_with(kept), "what was written stays");
}

#[test]
fn an_output_cut_at_every_byte_of_its_last_three_lines_is_completed() {
    let bench = Bench::new();
    let input = bench.file("in.jsonl", prompts(6));
    let args = [input, "-q", "--max-tokens", "3"];
    let whole = bench.run(&args).expect(0).stdout;
    let from: usize = whole.split_inclusive('\n').take(3).map(str::len).sum();
    // Two threads halve the time.
    std::thread::scope(|scope| {
        for half in 0..2 {
            let (bench, whole, args) = (&bench, &whole, &args);
            scope.spawn(move || {
                let out = format!("out{half}.jsonl");
                for cut in (from + half..=whole.len()).step_by(2) {
                    // Every 16th time a power cut left zeros behind as well.
                    let nuls = if cut % 16 < 2 { cut % 5000 } else { 0 };
                    std::fs::write(
                        bench.path(&out),
                        [&whole.as_bytes()[..cut], &vec![0; nuls]].concat(),
                    )
                    .unwrap();
                    bench.run(&[&args[..], &["-o", &out, "--resume"]].concat()).expect(0);
                    resumed(&bench.text(&out), whole, &whole[..cut]);
                }
            });
        }
    });
}

#[test]
fn a_csv_output_cut_at_every_byte_of_its_last_three_rows_is_completed() {
    let bench = Bench::new();
    let rows: String =
        (0..5).map(|i| format!("r{i},\"line one {i}\nline \"\"two\"\", {i}\",topic\n")).collect();
    let input = bench.file("in.csv", format!("id,prompt,topic\n{rows}"));
    bench.run(&[input, "-o", "whole.csv", "-q"]).expect(0);
    let answers = |text: &str| -> BTreeMap<String, Vec<String>> {
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        let unchanging = [1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15];
        let all: BTreeMap<_, _> = rows
            .iter()
            .map(|r| (r[0].to_string(), unchanging.map(|i| r[i].to_string()).to_vec()))
            .collect();
        assert_eq!(all.len(), rows.len(), "each id once");
        all
    };
    let whole = bench.text("whole.csv");
    let expected = answers(&whole);
    assert_eq!(expected.len(), 5);
    // Every byte of the last three rows, which take six lines each, and some before them.
    let mut reader = csv::Reader::from_reader(whole.as_bytes());
    let starts: Vec<usize> =
        reader.records().map(|r| r.unwrap().position().unwrap().byte() as usize).collect();
    let cuts: Vec<usize> = (0..starts[2]).step_by(19).chain(starts[2]..whole.len()).collect();
    std::thread::scope(|scope| {
        for half in 0..2 {
            let (bench, cuts, expected, whole, answers) =
                (&bench, &cuts, &expected, &whole, &answers);
            scope.spawn(move || {
                let out = format!("out{half}.csv");
                for cut in cuts.iter().skip(half).step_by(2) {
                    std::fs::write(bench.path(&out), &whole.as_bytes()[..*cut]).unwrap();
                    bench.run(&[input, "-o", &out, "--resume", "-q"]).expect(0);
                    assert_eq!(&answers(&bench.text(&out)), expected, "cut at {cut}");
                }
            });
        }
    });
}

#[test]
fn other_settings_prompts_models_and_broken_files_are_refused_and_left_alone() {
    let bench = Bench::new();
    let input = bench.file("in.jsonl", prompts(6));
    bench.run(&[input, "-o", "out.jsonl", "-q", "--limit", "4"]).expect(0);
    let before = bench.text("out.jsonl");
    let other = common::Tiny { seed: 9, name: "tiny".into(), ..tiny() }.write(&bench.path("."));
    let other = other.to_str().unwrap().to_string();
    bench.file("edited.jsonl", prompts(6).replace("What is 2 &", "What was 2 &"));
    for (args, words) in [
        (vec![input, "--seed", "7"], "--seed 0, this run has 7"),
        (vec![input, "--max-tokens", "9"], "--max-tokens"),
        (vec![input, "--temperature", "0.5"], "--temperature"),
        (vec![input, "--system", "be brief"], ""),
        (vec![input, "--raw"], "--raw"),
        (vec![input, "--stop-on", "eos"], "--stop-on"),
        (vec![input, "--without", "greedy"], "greedy"),
        (vec![input, "--without", "early-stop"], "early-stop"),
        (vec![input, "--dtype", "bf16-emulated"], "dtype"),
        (vec![input, "--without", "precision"], "dtype"),
        (vec![input, "-m", &other], "model"),
        (vec!["edited.jsonl"], "another prompt"),
    ] {
        let ran = bench.run(&[&args[..], &["-o", "out.jsonl", "--resume"]].concat()).refused(words);
        // The digests name the change the other way round: what the file has, then what this run has.
        assert!(ran.stderr.contains("out.jsonl"), "{}", ran.stderr);
        assert_eq!(bench.text("out.jsonl"), before);
    }
    let lines: Vec<&str> = before.split_inclusive('\n').collect();
    for broken in ["garbage\n", "\n", "{\"id\":\"x\"}\n", "\0\0\0\n"] {
        let content = [lines[0], broken, lines[1]].concat();
        bench.file("broken.jsonl", &content);
        bench.run(&[input, "-o", "broken.jsonl", "--resume"]).refused("line 2");
        assert_eq!(bench.text("broken.jsonl"), content);
    }
    // What never changes an answer never blocks a resume.
    bench
        .run(&[
            input,
            "-o",
            "out.jsonl",
            "--resume",
            "--batch-size",
            "2",
            "--threads",
            "1",
            "--without",
            "mask,queue",
        ])
        .expect(0);
    assert!(bench.text("out.jsonl").starts_with(&before));
    assert_eq!(essences(&bench.text("out.jsonl")), essences(&bench.run(&[input]).expect(0).stdout));
}

#[test]
fn a_complete_output_is_left_as_it_is_and_no_model_is_loaded() {
    let bench = Bench::new();
    let input = bench.file("in.jsonl", prompts(6) + "not json\n");
    bench.run(&[input, "-o", "out.jsonl", "-q"]).expect(4);
    let stamp = |path| std::fs::metadata(path).unwrap().modified().unwrap();
    let (before, text) = (stamp(bench.path("out.jsonl")), bench.text("out.jsonl"));
    // So much memory is not there: whoever loads the model ends with 75.
    let no_room = ["--kv-memory", "900T"];
    bench.run(&[&[input, "-o", "other.jsonl"][..], &no_room].concat()).expect(75);
    let ran =
        bench.run(&[&[input, "-o", "out.jsonl", "--resume"][..], &no_room].concat()).expect(4);
    assert!(ran.stderr.contains("complete"), "{}", ran.stderr);
    assert_eq!((stamp(bench.path("out.jsonl")), bench.text("out.jsonl")), (before, text));
    bench.file("in.jsonl", prompts(6));
    bench.run(&[input, "-o", "good.jsonl", "-q"]).expect(0);
    let before = stamp(bench.path("good.jsonl"));
    bench.run(&[&[input, "-o", "good.jsonl", "--resume"][..], &no_room].concat()).expect(0);
    assert_eq!(stamp(bench.path("good.jsonl")), before);
    // Refused because it exists, and replaced if that is wanted.
    bench.run(&[input, "-o", "good.jsonl"]).refused("--resume");
    bench.run(&[input, "-o", "good.jsonl", "--overwrite", "--limit", "2", "-q"]).expect(0);
    assert_eq!(records(&bench.text("good.jsonl")).len(), 2);
}

#[test]
fn a_complete_output_is_compared_with_model_dtype_and_settings_all_the_same() {
    let bench = Bench::new();
    let input = bench.file("in.jsonl", prompts(4));
    bench.run(&[input, "-o", "out.jsonl", "-q"]).expect(0);
    let before = bench.text("out.jsonl");
    let other = common::Tiny { seed: 9, name: "tiny".into(), ..tiny() }.write(&bench.path("."));
    let template = Some("{% for m in messages %}{{ m['content'] }}!{% endfor %}".to_string());
    let templated = common::Tiny { chat_template: template, name: "templated".into(), ..tiny() }
        .write(&bench.path("."));
    for (args, word) in [
        (&["-m", "no-such-model.gguf"][..], "no-such-model.gguf"),
        (&["-m", other.to_str().unwrap()], "model"),
        (&["-m", templated.to_str().unwrap()], "templated.gguf"),
        (&["--dtype", "q8_0"], "dtype f32, this run has q8_0"),
        (&["--dtype", "bf16-emulated"], "dtype"),
        (&["--seed", "7"], "--seed"),
    ] {
        bench.run(&[&[input, "-o", "out.jsonl", "--resume"], args].concat()).refused(word);
        assert_eq!(bench.text("out.jsonl"), before);
    }
    // Shards are joined by cat and one more run.
    let lines: Vec<&str> = before.split_inclusive('\n').collect();
    bench.file("all.jsonl", [lines[1], lines[3], lines[0], lines[2]].concat());
    let ran = bench.run(&[input, "-o", "all.jsonl", "--resume"]).expect(0);
    assert!(ran.stderr.contains("4 answers kept"), "{}", ran.stderr);
}

#[test]
fn an_output_of_other_prompts_is_refused_and_one_by_another_spelling_is_not() {
    let bench = Bench::new();
    bench.file("p.txt", "one\ntwo\nthree\n");
    bench.file("q.txt", "uno\ndue\ntre\n");
    bench.run(&["p.txt", "-o", "out.jsonl", "-q", "--limit", "2"]).expect(0);
    let before = bench.text("out.jsonl");
    let ran = bench
        .run(&["q.txt", "-o", "out.jsonl", "--resume"])
        .refused("none of its 2 records is of these prompts");
    assert!(ran.stderr.contains("'p.txt:1'") && ran.stderr.contains("'q.txt:1'"), "{}", ran.stderr);
    assert_eq!(bench.text("out.jsonl"), before);
    // What an earlier version wrote under the path as typed is found, its errors are replaced.
    let long = "y".repeat(600);
    bench.file("p.txt", format!("one\ntwo\n{long}\nfour\n"));
    bench.run(&["./p.txt", "-o", "all.jsonl", "-q", "--ordered"]).expect(4);
    let whole = bench.text("all.jsonl");
    let old = whole.replace("\"id\":\"p.txt:", "\"id\":\"./p.txt:");
    let cut: String = old.split_inclusive('\n').take(3).collect();
    bench.file("old.jsonl", &cut);
    for spelling in ["p.txt", "./p.txt"] {
        bench.file("old.jsonl", &cut);
        bench.run(&[spelling, "-o", "old.jsonl", "-q", "--resume"]).expect(4);
        let all = bench.text("old.jsonl");
        assert_eq!(records(&all).len(), 4, "{spelling}: {all}");
        assert!(all.starts_with(cut.split_inclusive('\n').next().unwrap()), "{all}");
    }
}

#[test]
fn error_records_are_retried_once_and_replaced() {
    let bench = Bench::new();
    // The second prompt needs more keys and values than the first run has room for.
    let long = "y".repeat(300);
    let input = bench.file(
        "in.jsonl",
        format!(
            "{}{{\"id\":\"long\",\"prompt\":\"{long}\"}}\n{{\"id\":\"z\",\"prompt\":\"z\"}}\n",
            prompts(2)
        ),
    );
    bench.run(&[input, "-o", "out.jsonl", "-q", "--kv-memory", "80K"]).expect(4);
    let failed: Vec<_> =
        records(&bench.text("out.jsonl")).into_iter().filter(|r| !r["error"].is_null()).collect();
    assert_eq!((failed.len(), failed[0]["id"].as_str()), (1, Some("long")), "{failed:?}");
    let before = bench.text("out.jsonl");
    let whole = bench.run(&[input]).expect(0).stdout;
    let good = |text: &str| {
        text.lines()
            .filter(|l| !l.contains("\"id\":\"long\""))
            .map(String::from)
            .collect::<Vec<_>>()
    };
    // From a file, and from a pipe, where nothing is known before the record comes.
    for (from, stdin) in [(input, ""), ("-", bench.text("in.jsonl").as_str())] {
        bench.file("out.jsonl", &before);
        let mut command =
            bench.command(&[from, "--input-format", "jsonl", "-o", "out.jsonl", "--resume", "-q"]);
        command.stdin(Stdio::piped());
        let mut child = bench.start(command);
        let mut pipe = child.stdin.take().unwrap();
        pipe.write_all(stdin.as_bytes()).unwrap();
        drop(pipe);
        finish(child).expect(0);
        let after = bench.text("out.jsonl");
        assert_eq!(good(&after), good(&before), "the good records stay as they are");
        assert_eq!(essences(&after), essences(&whole));
    }
}

/// Errors inside an ordered output are replaced where they stand; a kill in between loses nothing and leaves no third state.
#[test]
fn an_ordered_output_has_its_errors_replaced_in_place() {
    let bench = Bench::new();
    let long = "y".repeat(300);
    let some = |id: usize| match id % 4 {
        1 => format!("{{\"id\":\"r{id}\",\"prompt\":\"{id}{long}\"}}\n"),
        _ => format!("{{\"id\":\"r{id}\",\"prompt\":\"prompt {id}\"}}\n"),
    };
    let input = bench.file("in.jsonl", (0..24).map(some).collect::<String>());
    for out in ["out.jsonl", "out.csv"] {
        let whole = bench.run(&[input, "-o", &format!("whole-{out}"), "--ordered", "-q"]).expect(0);
        assert!(whole.stdout.is_empty());
        let whole = bench.text(&format!("whole-{out}"));
        bench
            .run(&[input, "-o", out, "--ordered", "-q", "--kv-memory", "80K", "--limit", "17"])
            .expect(4);
        let before = bench.text(out);
        assert_eq!(
            before.matches("yyyy\"").count() + before.matches("yyyy,").count(),
            4,
            "{before}"
        );
        // It is gone on with twice: stopped half-way, then to the end.
        bench.run(&[input, "-o", out, "--ordered", "-q", "--resume", "--limit", "9"]).expect(0);
        bench.run(&[input, "-o", out, "--ordered", "-q", "--resume"]).expect(0);
        if out.ends_with("jsonl") {
            let ids = |text: &str| {
                records(text)
                    .iter()
                    .map(|r| r["id"].as_str().unwrap().to_string())
                    .collect::<Vec<_>>()
            };
            assert_eq!(ids(&bench.text(out)), ids(&whole));
            assert_eq!(essences(&bench.text(out)), essences(&whole));
        } else {
            let ids = |text: &str| {
                text.lines().map(|l| l.split(',').next().unwrap().to_string()).collect::<Vec<_>>()
            };
            assert_eq!(ids(&bench.text(out)), ids(&whole));
            assert!(!bench.text(out).contains("error,"), "{}", bench.text(out));
        }
    }
}

#[test]
fn an_output_without_settings_is_matched_by_id_prompt_model_and_dtype() {
    let bench = Bench::new();
    let input = bench.file("in.jsonl", prompts(4));
    bench.run(&[input, "-o", "out.jsonl", "-q", "--limit", "2"]).expect(0);
    let bare: String = records(&bench.text("out.jsonl"))
        .into_iter()
        .map(|mut r| {
            r.as_object_mut().unwrap().remove("settings");
            format!("{r}\n")
        })
        .collect();
    bench.file("out.jsonl", &bare);
    let ran = bench.run(&[input, "-o", "out.jsonl", "--resume"]).expect(0);
    assert!(ran.stderr.contains("2 records kept without settings"), "{}", ran.stderr);
    assert_eq!(records(&bench.text("out.jsonl")).len(), 4);
    bench.file("out.jsonl", bare.replace("\"dtype\":\"f32\"", "\"dtype\":\"q4_1\""));
    bench.run(&[input, "-o", "out.jsonl", "--resume"]).refused("dtype");
}

#[test]
fn a_second_run_is_kept_out_and_let_in_after_the_first_was_killed() {
    let bench = Bench::new();
    let input = bench.file("in.jsonl", prompts(3));
    let mut command = bench.command(&["-", "--input-format", "jsonl", "-o", "out.jsonl"]);
    command.stdin(Stdio::piped());
    let mut first = bench.start(command);
    while !bench.path("out.jsonl").exists() {
        assert!(first.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(2));
    }
    for flag in ["--resume", "--overwrite"] {
        // The file is there a moment before it is locked.
        let ran = (0..100)
            .map(|_| bench.run(&[input, "-o", "out.jsonl", flag]))
            .find(|r| r.status == 2)
            .unwrap();
        assert!(ran.stderr.contains(&format!("process {}", first.id())), "{}", ran.stderr);
    }
    first.kill().unwrap();
    wait(&mut first);
    bench.run(&[input, "-o", "out.jsonl", "--resume"]).expect(0);
    assert_eq!(records(&bench.text("out.jsonl")).len(), 3);
}

#[test]
fn an_interrupted_run_says_how_to_go_on_and_is_whole() {
    let bench = Bench::new();
    let args = [
        "-",
        "--input-format",
        "jsonl",
        "-o",
        "out.jsonl",
        "--without",
        "cache",
        "--max-tokens",
        "60",
        "--stop-on",
        "none",
    ];
    // Under nohup SIGHUP is ignored, and stays so in the processes started here.
    let ignored = std::fs::read_to_string("/proc/self/status").ok().and_then(|s| {
        let mask = s.lines().find_map(|l| l.strip_prefix("SigIgn:"))?.trim().to_string();
        u64::from_str_radix(&mask, 16).ok()
    });
    let nohup = ignored.is_some_and(|mask| mask & 1 != 0);
    for (name, status) in [("INT", 130), ("TERM", 143), ("HUP", 143)]
        .into_iter()
        .filter(|(name, _)| !nohup || *name != "HUP")
    {
        let _ = std::fs::remove_file(bench.path("out.jsonl"));
        let mut command = bench.command(&args);
        command.stdin(Stdio::piped());
        let mut child = bench.start(command);
        feed_without_end(&mut child);
        // Until there are answers.
        while std::fs::metadata(bench.path("out.jsonl")).map_or(0, |m| m.len()) == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
        signal(&child, name);
        let ran = finish(child).expect(status);
        assert!(
            ran.stderr.contains(&format!("interrupted by SIG{name}"))
                && ran.stderr.contains("--resume"),
            "{}",
            ran.stderr
        );
        let text = bench.text("out.jsonl");
        assert!(text.ends_with('\n') && !records(&text).is_empty());
    }
}

#[test]
fn an_ordered_output_stays_a_beginning_of_the_input() {
    let bench = Bench::new();
    let input = bench.file("in.jsonl", prompts(30));
    let whole = bench.run(&[input, "--ordered", "-q"]).expect(0).stdout;
    let ids = |text: &str| {
        records(text).iter().map(|r| r["id"].as_str().unwrap().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&whole), (0..30).map(|i| format!("r{i}")).collect::<Vec<_>>());
    for lines in [0, 1, 17, 29] {
        bench.file(
            "out.jsonl",
            whole.split_inclusive('\n').take(lines).collect::<String>() + "{\"id\":",
        );
        bench.run(&[input, "-o", "out.jsonl", "--resume", "--ordered", "-q"]).expect(0);
        assert_eq!(ids(&bench.text("out.jsonl")), ids(&whole));
        assert_eq!(essences(&bench.text("out.jsonl")), essences(&whole));
    }
    // One that was written in another order is put in this one once nothing is missing.
    bench.file("out.jsonl", whole.split_inclusive('\n').skip(3).take(2).collect::<String>());
    bench.run(&[input, "-o", "out.jsonl", "--resume", "--ordered", "-q"]).expect(0);
    assert_eq!(ids(&bench.text("out.jsonl")), ids(&whole));
    assert_eq!(essences(&bench.text("out.jsonl")), essences(&whole));
}

#[test]
fn runs_killed_at_random_moments_lose_nothing_and_double_nothing() {
    let bench = Bench::new();
    let input = bench.file("in.jsonl", prompts(200));
    let kills: usize =
        std::env::var("LLMOPT_TEST_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let common = ["--max-tokens", "24", "-q"];
    let whole: BTreeMap<String, String> =
        records(&bench.run(&[&[input][..], &common].concat()).expect(0).stdout)
            .iter()
            .map(|r| (r["id"].as_str().unwrap().to_string(), essence(r)))
            .collect();
    assert_eq!(whole.len(), 200);
    let mut random = common::Random::new(std::process::id() as u64, "kills");
    let (mut killed, mut rounds) = (0, 0u64);
    while killed < kills {
        // Cache, prefix sharing and order, on and off in turn.
        let mut args = [&[input, "-o", "out.jsonl", "--resume"][..], &common].concat();
        let off = [(1, "cache"), (2, "shared-prefix")]
            .iter()
            .filter(|(bit, _)| rounds & bit != 0)
            .map(|(_, n)| *n)
            .collect::<Vec<_>>();
        let off = off.join(",");
        args.extend(["--without", &off]);
        let ordered = rounds & 4 != 0;
        args.extend(ordered.then_some("--ordered"));
        rounds += 1;
        let _ = std::fs::remove_file(bench.path("out.jsonl"));
        let mut before = String::new();
        loop {
            let mut child = bench.start(bench.command(&args));
            std::thread::sleep(Duration::from_millis(5 + random.below(250)));
            child.kill().unwrap();
            let ran = finish(child);
            killed += (ran.status == 1009) as usize;
            let text = std::fs::read(bench.path("out.jsonl"))
                .map(|b| String::from_utf8_lossy(&b).into_owned())
                .unwrap_or_default();
            let kept = &before[..before.rfind('\n').map_or(0, |at| at + 1)];
            assert!(text.starts_with(kept), "a line that was written is gone");
            before = text;
            if ran.status == 0 {
                break;
            }
            ran.expect(1009);
        }
        let all = records(&before);
        assert_eq!(all.len(), 200, "each once");
        for (i, record) in all.iter().enumerate() {
            let id = record["id"].as_str().unwrap();
            assert_eq!(&essence(record), &whole[id]);
            assert!(!ordered || id == format!("r{i}"), "in order");
        }
    }
    eprintln!("{killed} kills in {rounds} runs survived");
}

/// A hub on this machine with one repository of one file; while `silent`, it sends the first half only. Returns its address.
fn hub(file: Vec<u8>, silent: Arc<AtomicBool>) -> String {
    use std::io::{BufRead, BufReader, Write};
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let digest: String = Sha256::digest(&file).iter().map(|byte| format!("{byte:02x}")).collect();
    let answer = move |mut stream: std::net::TcpStream| -> Option<()> {
        let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
        let request = lines.next()?.ok()?;
        while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
        let body = match () {
            _ if request.contains("/revision/") => {
                serde_json::json!({"id": "org/name", "sha": commit}).to_string().into_bytes()
            }
            _ if request.contains("/tree/") => {
                let lfs = serde_json::json!({"oid": digest, "size": file.len()});
                serde_json::json!([{"type": "file", "oid": commit, "size": file.len(), "path": "a.gguf", "lfs": lfs}])
                    .to_string()
                    .into_bytes()
            }
            _ => file.clone(),
        };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\nETag: \"e\"\r\nX-Repo-Commit: {commit}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        if request.starts_with("HEAD") {
            return Some(());
        }
        let half = if request.contains("/resolve/") { body.len() / 2 } else { body.len() };
        stream.write_all(&body[..half]).ok()?;
        while half < body.len() && silent.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        stream.write_all(&body[half..]).ok()
    };
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || answer(stream));
        }
    });
    address
}

/// Every file below a folder but locks.
fn below(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return vec![] };
    let (folders, files): (Vec<_>, Vec<_>) =
        entries.flatten().map(|e| e.path()).partition(|p| p.is_dir());
    let files = files.into_iter().filter(|p| p.extension().is_none_or(|e| e != "lock"));
    files.chain(folders.iter().flat_map(|f| below(f))).collect()
}

#[test]
fn a_run_killed_while_its_model_is_fetched_leaves_no_half_model_and_the_next_one_fetches_it() {
    let bench = Bench::new();
    let input = bench.file("in.jsonl", prompts(3));
    let silent = Arc::new(AtomicBool::new(true));
    let address = hub(std::fs::read(process::model()).unwrap(), silent.clone());
    let command = |patience: &str| {
        let mut command = bench.command(&[input, "-o", "out.jsonl", "-m", "org/name", "-q"]);
        command
            .env("HF_HOME", bench.path("hf"))
            .env("HF_ENDPOINT", &address)
            .env("HF_HUB_DOWNLOAD_TIMEOUT", patience);
        command
    };
    let mut first = bench.start(command("600"));
    while !below(&bench.path("hf")).iter().any(|p| std::fs::metadata(p).is_ok_and(|m| m.len() > 0))
    {
        assert!(first.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(Duration::from_millis(2));
    }
    first.kill().unwrap();
    wait(&mut first);
    let left = below(&bench.path("hf"));
    assert!(
        left.iter().all(|p| p.components().any(|c| c.as_os_str() == ".llmopt.fetch")),
        "under no final name: {left:?}"
    );
    std::fs::remove_file(bench.path("out.jsonl")).unwrap();
    // A server that stays silent: one line, and nothing is left.
    let ran = finish(bench.start(command("0.3"))).refused("sent nothing for");
    assert!(ran.stderr.contains("give the path"), "{}", ran.stderr);
    assert_eq!(below(&bench.path("hf")), Vec::<std::path::PathBuf>::new());
    assert!(!bench.path("out.jsonl").exists());
    silent.store(false, Ordering::SeqCst);
    finish(bench.start(command("600"))).expect(0);
    assert_eq!(records(&bench.text("out.jsonl")).len(), 3);
}

#[test]
fn two_processes_that_fetch_one_model_at_once_both_get_it_whole() {
    let bench = Bench::new();
    let input = bench.file("in.jsonl", prompts(3));
    let silent = Arc::new(AtomicBool::new(true));
    let address = hub(std::fs::read(process::model()).unwrap(), silent.clone());
    let start = |out: &str| {
        let mut command = bench.command(&[input, "-o", out, "-m", "org/name", "-q"]);
        command
            .env("HF_HOME", bench.path("hf"))
            .env("HF_ENDPOINT", &address)
            .env("HF_HUB_DOWNLOAD_TIMEOUT", "600");
        bench.start(command)
    };
    let first = start("first.jsonl");
    let second = start("second.jsonl");
    // One of them is in the middle of the file, the other one waits for it or is there too.
    while !below(&bench.path("hf")).iter().any(|p| std::fs::metadata(p).is_ok_and(|m| m.len() > 0))
    {
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(Duration::from_millis(300));
    silent.store(false, Ordering::SeqCst);
    finish(first).expect(0);
    finish(second).expect(0);
    assert_eq!(essences(&bench.text("first.jsonl")), essences(&bench.text("second.jsonl")));
    let left = below(&bench.path("hf"));
    assert!(
        left.iter().all(|p| p.components().all(|c| c.as_os_str() != ".llmopt.fetch")),
        "nothing half stays: {left:?}"
    );
}

#[test]
fn a_bench_killed_while_it_writes_leaves_whole_files_only() {
    let bench = Bench::new();
    let model = common::Tiny { context: 640, ..common::Tiny::default() }.write(&bench.path("."));
    let mut random = common::Random::new(std::process::id() as u64, "bench kills");
    let mut kept = 0;
    for kill in 0..6 {
        let out = bench.path(&format!("results{kill}"));
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_llmopt"));
        command
            .current_dir(&bench.folder)
            .arg("bench")
            .arg("-m")
            .arg(&model)
            .arg("--out")
            .arg(&out);
        command.args([
            "--phase",
            "3",
            "--rounds",
            "9999",
            "--time-budget",
            "300",
            "--max-tokens",
            "2",
            "--limit",
            "4",
        ]);
        command.args(["--concurrency", "none", "--threads", "2"]).stdin(Stdio::null());
        let mut child = bench.start(command);
        // The first time before anything can be written, then at some moment of the rounds, or of the report after an interruption.
        let written =
            || below(&out).iter().any(|p| p.file_name().is_some_and(|n| n == "result.json"));
        while kill > 0 && !written() {
            assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(random.below(120)));
        if kill > 3 {
            signal(&child, "INT");
            std::thread::sleep(Duration::from_millis(random.below(60)));
        }
        let _ = child.kill();
        wait(&mut child);
        for path in below(&out) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            match () {
                _ if name.starts_with(".writing-") => {}
                _ if name == "result.json" => {
                    let result = llmopt::bench::ablation::result::BenchResult::read(&path).unwrap();
                    kept += result.rounds.len();
                }
                _ if name.ends_with(".json") => {
                    assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{name}")
                }
                _ => assert!(text.ends_with('\n'), "{name} is whole: {text}"),
            }
        }
    }
    assert!(kept >= 5, "every bench that had a round keeps it: {kept}");
}

#[test]
fn a_run_without_terminal_goes_on_after_a_hangup_that_is_ignored() {
    let bench = Bench::new();
    let input = bench.file("in.jsonl", prompts(200));
    let run = format!(
        "exec setsid nohup {} run {input} -m {} --threads 2 --max-tokens 24 --without cache -o out.jsonl </dev/null >log 2>&1",
        env!("CARGO_BIN_EXE_llmopt"),
        process::model().display()
    );
    let mut shell = std::process::Command::new("sh");
    shell.current_dir(&bench.folder).args(["-c", &run]);
    let mut child = bench.start(shell);
    let written = || std::fs::metadata(bench.path("out.jsonl")).map_or(0, |m| m.len()) > 0;
    while !written() {
        let ended = child.try_wait().unwrap().is_some();
        assert!(!ended || written(), "{}", bench.text("log"));
        std::thread::sleep(Duration::from_millis(2));
    }
    signal(&child, "HUP");
    assert_eq!(wait(&mut child), 0, "{}", bench.text("log"));
    assert_eq!(records(&bench.text("out.jsonl")).len(), 200);
}

#[test]
fn a_second_signal_leaves_at_once_and_the_output_is_whole() {
    let bench = Bench::new();
    let args = [
        "-",
        "--input-format",
        "jsonl",
        "-o",
        "out.jsonl",
        "--without",
        "cache",
        "--max-tokens",
        "400",
        "--stop-on",
        "none",
    ];
    let mut command = bench.command(&args);
    command.stdin(Stdio::piped());
    let mut child = bench.start(command);
    feed_without_end(&mut child);
    while std::fs::metadata(bench.path("out.jsonl")).map_or(0, |m| m.len()) == 0 {
        std::thread::sleep(Duration::from_millis(2));
    }
    // Signals of one kind that are pending together are one: the second comes until it is heard.
    for _ in 0..50 {
        signal(&child, "INT");
        std::thread::sleep(Duration::from_millis(10));
    }
    let ran = finish(child).expect(130);
    assert!(ran.stderr.contains("--resume goes on"), "{}", ran.stderr);
    let text = bench.text("out.jsonl");
    assert!(text.ends_with('\n') && !records(&text).is_empty());
}

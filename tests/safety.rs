//! Nothing of the user's is lost, run over or told wrong: the commands of the second attack (docs/reliability.md), each with the right end.

mod common;
#[path = "common/process.rs"]
mod process;

use process::{Bench, feed_without_end, finish, model, records, signal};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn prompts(count: usize) -> String {
    (0..count)
        .map(|i| format!("{{\"id\":\"r{i}\",\"prompt\":\"the {i} {}\"}}\n", "x".repeat(200)))
        .collect()
}

fn mkfifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Every file below a folder with its bytes.
fn everything(folder: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => all.extend(everything(&entry.path())),
            kind if kind.is_file() => {
                all.push((entry.path(), std::fs::read(entry.path()).unwrap()))
            }
            _ => all.push((entry.path(), Vec::new())),
        }
    }
    all.sort();
    all
}

#[test]
fn no_file_is_written_that_is_read_or_written_otherwise() {
    let bench = Bench::new();
    bench.file("q.jsonl", prompts(3));
    let own = process::tiny().write(&bench.path("."));
    let own = own.file_name().unwrap().to_str().unwrap();
    std::fs::create_dir(bench.path("sub")).unwrap();
    std::fs::hard_link(bench.path("q.jsonl"), bench.path("hard.jsonl")).unwrap();
    std::os::unix::fs::symlink("q.jsonl", bench.path("link.jsonl")).unwrap();
    std::os::unix::fs::symlink(".", bench.path("here")).unwrap();
    std::fs::hard_link(bench.path(own), bench.path("model.jsonl")).unwrap();
    bench.file("s.latency.csv", "mine\n");
    let before = everything(bench.folder.path());
    for args in [
        &["q.jsonl", "-o", "q.jsonl", "--overwrite"][..],
        &["q.jsonl", "-o", "./q.jsonl", "--resume"],
        &["q.jsonl", "-o", "sub/../q.jsonl", "--overwrite"],
        &["q.jsonl", "-o", "hard.jsonl", "--overwrite"],
        &["q.jsonl", "-o", "link.jsonl", "--overwrite"],
        &["link.jsonl", "-o", "here/hard.jsonl", "--overwrite"],
        &["q.jsonl", "-m", own, "-o", "model.jsonl", "--overwrite"],
        &["q.jsonl", "--stats", "q.jsonl", "--overwrite"],
        &["q.jsonl", "-m", own, "--stats", own, "--overwrite"],
        &["q.jsonl", "-o", "new.jsonl", "--stats", "new.jsonl"],
        &["q.jsonl", "-o", "new.jsonl", "--stats", "./New.jsonl"],
        &["q.jsonl", "-o", "s.latency.csv", "--overwrite", "--stats", "s.json"],
        &["q.jsonl", "-o", "t.ttft.csv", "--stats", "t.json"],
    ] {
        bench.run(args).refused("is the same file as");
        assert!(everything(bench.folder.path()) == before, "{args:?} touched something");
    }
    // Standard streams that are files.
    for redirected in
        ["q.jsonl >> q.jsonl", "- --input-format jsonl -o q.jsonl --overwrite < q.jsonl"]
    {
        let run = format!(
            "exec {} run -m {} {redirected}",
            env!("CARGO_BIN_EXE_llmopt"),
            model().display()
        );
        let mut shell = Command::new("sh");
        shell
            .current_dir(&bench.folder)
            .args(["-c", &run])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        finish(shell.spawn().unwrap()).refused("is the same file as");
        assert!(everything(bench.folder.path()) == before, "{redirected}");
    }
    // What is no regular file may be given twice.
    bench.run(&["q.jsonl", "-q", "-o", "/dev/null", "--stats", "/dev/null"]).expect(0);
    assert!(
        !Path::new("/dev/null.latency.csv").exists() && !Path::new("/dev/null.queue.hgrm").exists()
    );
}

#[test]
fn bench_and_compare_write_over_nothing_that_they_read() {
    let bench = Bench::new();
    bench.file("p.jsonl", prompts(3));
    bench.file("text.txt", "some text\n");
    let before = everything(bench.folder.path());
    let llmopt = env!("CARGO_BIN_EXE_llmopt");
    let tiny = model().display();
    for command in [
        format!("GITHUB_STEP_SUMMARY=p.jsonl {llmopt} bench -m {tiny} p.jsonl"),
        format!("{llmopt} bench -m {tiny} p.jsonl >> p.jsonl"),
        format!("{llmopt} compare -m {tiny} f32 --text text.txt >> text.txt"),
        format!("{llmopt} compare a.json text.txt >> text.txt"),
    ] {
        let mut shell = Command::new("sh");
        shell
            .current_dir(&bench.folder)
            .args(["-c", &command])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let ran = finish(shell.spawn().unwrap()).expect(2);
        assert!(
            ran.stderr.contains("is the same file as") || ran.stderr.contains("a.json"),
            "{command}: {}",
            ran.stderr
        );
        assert!(everything(bench.folder.path()) == before, "{command}");
    }
}

#[test]
fn stats_refuse_what_exists_unless_it_may_be_replaced() {
    let bench = Bench::new();
    let input = bench.file("in.jsonl", prompts(2));
    bench.file("s.queue.csv", "mine\n");
    bench.run(&[input, "-o", "out.jsonl", "--stats", "s.json"]).refused("s.queue.csv: exists");
    assert!(
        !bench.path("out.jsonl").exists()
            && !bench.path("s.json").exists()
            && bench.text("s.queue.csv") == "mine\n"
    );
    std::fs::remove_file(bench.path("s.queue.csv")).unwrap();
    bench.run(&[input, "-q", "-o", "out.jsonl", "--stats", "s.json"]).expect(0);
    let first = bench.text("s.json");
    bench.run(&[input, "--stats", "s.json"]).refused("s.json: exists");
    assert_eq!(bench.text("s.json"), first);
    bench.run(&[input, "-q", "-o", "out.jsonl", "--overwrite", "--stats", "s.json"]).expect(0);
    bench
        .run(&[input, "-q", "-o", "out.jsonl", "--resume", "--limit", "1", "--stats", "s.json"])
        .expect(0);
}

#[test]
fn a_prompt_file_that_changes_before_it_is_read_is_status_1() {
    type Change = fn(&Path);
    let changes: [Change; 4] = [
        |path| std::fs::write(path, "").unwrap(),
        |path| {
            std::io::Write::write_all(
                &mut std::fs::File::options().append(true).open(path).unwrap(),
                b"{\"prompt\":\"x\"}\n",
            )
            .unwrap()
        },
        |path| {
            std::fs::write(path.with_extension("new"), "{\"id\":\"r0\",\"prompt\":\"other\"}\n")
                .unwrap();
            std::fs::rename(path.with_extension("new"), path).unwrap();
        },
        |path| std::fs::remove_file(path).unwrap(),
    ];
    for change in changes {
        let bench = Bench::new();
        let input = bench.file("in.jsonl", prompts(3));
        mkfifo(&bench.path("pipe"));
        // The files are looked at, then the run waits for somebody who reads its answers.
        let child = bench.start(bench.command(&[input, "-q", "-o", "pipe"]));
        std::thread::sleep(Duration::from_millis(700));
        change(&bench.path(input));
        let mut pipe = std::fs::File::open(bench.path("pipe")).unwrap();
        let ran = finish(child).expect(1);
        let mut answers = String::new();
        pipe.read_to_string(&mut answers).unwrap();
        assert!(
            ran.stderr.contains("in.jsonl")
                && ran.stderr.lines().count() == 1
                && answers.is_empty(),
            "{ran:?} {answers}"
        );
    }
}

#[test]
fn a_pipe_that_nobody_reads_is_status_1_after_ten_seconds() {
    let bench = Bench::new();
    let input = bench.file("one.jsonl", prompts(1));
    mkfifo(&bench.path("pipe"));
    let since = Instant::now();
    let ran = bench.run(&[input, "-q", "--max-tokens", "4", "-o", "pipe"]).expect(1);
    assert!(ran.stderr.contains("nobody has read from this pipe for 9.50 s"), "{}", ran.stderr);
    assert!((9..16).contains(&since.elapsed().as_secs()), "{:?}", since.elapsed());
    // And a signal ends the waiting at once.
    let child = bench.start(bench.command(&[input, "-o", "pipe"]));
    std::thread::sleep(Duration::from_millis(300));
    signal(&child, "TERM");
    let since = Instant::now();
    let ran = finish(child).expect(143);
    assert!(
        since.elapsed().as_secs() < 2 && !ran.stderr.contains("--resume"),
        "{:?} {}",
        since.elapsed(),
        ran.stderr
    );
}

#[test]
fn a_pipe_whose_reader_leaves_is_status_1_with_the_number_of_answers_delivered() {
    let bench = Bench::new();
    let input = bench.file("big.jsonl", prompts(400));
    mkfifo(&bench.path("pipe"));
    let child = bench.start(bench.command(&[input, "-q", "--max-tokens", "4", "-o", "pipe"]));
    let mut pipe = std::io::BufReader::new(std::fs::File::open(bench.path("pipe")).unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut pipe, &mut line).unwrap();
    // What the reader's buffer took is delivered, whole answers of it.
    let taken = 1 + pipe.buffer().iter().filter(|b| **b == b'\n').count();
    drop(pipe);
    let since = Instant::now();
    let ran = finish(child).expect(1);
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    let delivered: usize = ran
        .stderr
        .split("has left; ")
        .nth(1)
        .and_then(|t| t.split(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("{}", ran.stderr));
    assert!(delivered == taken && ran.stderr.lines().count() == 1, "{taken}: {}", ran.stderr);
}

#[test]
fn a_reader_that_leaves_is_noticed_while_nothing_is_written() {
    let bench = Bench::new();
    mkfifo(&bench.path("pipe"));
    // No prompt ever comes: nothing is written, so no write can fail.
    let mut command = bench.command(&["-", "--input-format", "jsonl", "-q", "-o", "pipe"]);
    command.stdin(Stdio::piped());
    let child = bench.start(command);
    let pipe = std::fs::File::open(bench.path("pipe")).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    drop(pipe);
    let since = Instant::now();
    let ran = finish(child).expect(1);
    assert!(
        since.elapsed() < Duration::from_secs(2) && ran.stderr.contains("0 answers delivered"),
        "{}",
        ran.stderr
    );
}

#[test]
fn sigterm_ends_a_run_whose_reader_does_not_read() {
    let bench = Bench::new();
    mkfifo(&bench.path("pipe"));
    for output in [&["-o", "pipe"][..], &[]] {
        let mut command = bench.command(
            &[&["-", "--input-format", "jsonl", "-q", "--max-tokens", "2"], output].concat(),
        );
        command.stdin(Stdio::piped());
        let mut child = bench.start(command);
        // It is open, and nobody reads: the run waits in a write once the pipe is full.
        let stalled =
            (!output.is_empty()).then(|| std::fs::File::open(bench.path("pipe")).unwrap());
        let unread = if output.is_empty() { child.stdout.take() } else { None };
        feed_without_end(&mut child);
        std::thread::sleep(Duration::from_secs(2));
        signal(&child, "TERM");
        let since = Instant::now();
        finish(child).expect(143);
        assert!(since.elapsed() < Duration::from_secs(12), "{:?}", since.elapsed());
        drop((stalled, unread));
    }
}

#[test]
fn numbers_that_no_machine_has_are_refused_with_what_would_work() {
    let bench = Bench::new();
    let input = bench.file("in.txt", "hello\nthere\n");
    for (args, word) in [
        (&["--threads", "10000"][..], "4 for each of the"),
        (&["--threads", "0"], "4 for each of the"),
        (&["--batch-size", "1048576"], "1 to 4096"),
        (&["--kv-memory", "x"], "512M"),
        (&["--temperature", "-1"], "from 0 to 100"),
        (&["--seed", "-1"], "from 0 to 18446744073709551615"),
        (&["--top-k", "-1"], "0 is off"),
        (&["--limit", "-1"], "whole number"),
        (&["--max-tokens", "-5"], "from 1 to 1048576"),
        (&["--stop", "-x"], "--stop=-x"),
        (&["--system", "--- be brief"], "--system='--- be brief'"),
    ] {
        let since = Instant::now();
        let ran = bench.run(&[&[input], args].concat()).expect(2);
        assert!(
            ran.stderr.contains(word) && !ran.stderr.contains("'-- -"),
            "{args:?}: {}",
            ran.stderr
        );
        assert!(ran.stdout.is_empty() && since.elapsed().as_secs() < 5, "{args:?}");
    }
    for size in ["0", "1", "8191"] {
        let ran =
            bench.run(&[input, "--kv-memory", size, "-o", "out.jsonl"]).refused("16 positions");
        assert!(
            ran.stderr.contains("--kv-memory") && !ran.stderr.contains("system"),
            "{}",
            ran.stderr
        );
        assert!(!bench.path("out.jsonl").exists());
    }
    bench.run(&[input, "--kv-memory", "8192", "--max-tokens", "1", "--raw"]).expect(0);
}

#[test]
fn too_few_open_files_are_told_as_such() {
    let bench = Bench::new();
    let input = bench.file("in.txt", "hello\nthere\n");
    let mut worked = false;
    for limit in 3..24 {
        let run = format!(
            "ulimit -n {limit}; exec {} run {input} -m {} -o o{limit}.jsonl --max-tokens 2",
            env!("CARGO_BIN_EXE_llmopt"),
            model().display()
        );
        let mut shell = Command::new("bash");
        shell
            .current_dir(&bench.folder)
            .args(["-c", &run])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let ran = finish(shell.spawn().unwrap());
        if ran.status == 0 {
            worked = true;
            continue;
        }
        // Below three or four descriptors not even the program's libraries can be opened.
        if ran.status == 127 && limit < 5 {
            continue;
        }
        assert!(!worked, "with more it does not fail again: {ran:?}");
        assert!(
            [1, 2, 75].contains(&ran.status) && !ran.stderr.contains("memory"),
            "{limit}: {ran:?}"
        );
        assert!(
            ran.stderr.contains("ulimit -n") || ran.stderr.to_lowercase().contains("open files"),
            "{limit}: {ran:?}"
        );
    }
    assert!(worked);
}

#[test]
fn an_output_whose_name_is_of_no_known_format_is_refused() {
    let bench = Bench::new();
    let input = bench.file("in.txt", "hello\n");
    for name in ["o.xlsx", "o.json", "o.txt", "o.jsonl.gz"] {
        bench.run(&[input, "-o", name]).refused(".jsonl, .csv, .tsv or .parquet");
        assert!(!bench.path(name).exists());
    }
    bench.run(&[input, "-q", "-o", "plain"]).expect(0);
    bench.run(&[input, "-q", "-o", "O.JSONL"]).expect(0);
    mkfifo(&bench.path("pipe.x"));
    let child = bench.start(bench.command(&[input, "-o", "pipe.x"]));
    let read = std::fs::read_to_string(bench.path("pipe.x")).unwrap();
    finish(child).expect(0);
    assert_eq!(records(&read).len(), 1, "a pipe takes JSONL whatever its name");
}

#[test]
fn a_pipe_of_the_shell_is_an_output_like_another() {
    let bench = Bench::new();
    let input = bench.file("in.txt", "hello\nthere\n");
    let run = format!(
        "{} run {input} -q -m {} --max-tokens 2 -o",
        env!("CARGO_BIN_EXE_llmopt"),
        model().display()
    );
    for (command, answers) in [
        (format!("{run} >(cat); wait $!"), 2),
        (format!("{run} /dev/fd/1 | cat"), 2),
        (format!("{run} /dev/stdout | head -1"), 1),
    ] {
        let mut shell = Command::new("bash");
        shell
            .current_dir(&bench.folder)
            .args(["-c", &command])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let ran = finish(shell.spawn().unwrap()).expect(0);
        assert_eq!((ran.records().len(), ran.stderr.as_str()), (answers, ""), "{command}");
    }
}

#[test]
fn raw_prompts_are_no_messages() {
    let bench = Bench::new();
    let input = bench.file(
        "in.jsonl",
        "{\"id\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"x<|im_end|>\"}]}\n{\"id\":\"b\",\"prompt\":\"x\"}\n\
         {\"id\":\"c\",\"messages\":[{\"role\":\"system\",\"content\":\"x\"},{\"role\":\"user\",\"content\":\"y\"}]}\n",
    );
    let ran = bench.run(&[input, "--raw", "--ordered"]).expect(4);
    let all = ran.records();
    for bad in [&all[0], &all[2]] {
        assert!(bad["error"]["message"].as_str().unwrap().contains("leave --raw out"), "{bad}");
    }
    assert!(all[1]["error"].is_null());
    assert!(
        ran.stderr.contains("2 with errors") && ran.stderr.contains("2 times, first at in.jsonl:1"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_resumed_run_says_how_much_is_done_of_all() {
    let bench = Bench::new();
    let input = bench.file("in.jsonl", prompts(5) + "not json\n");
    bench.run(&[input, "-o", "out.jsonl", "--limit", "2"]).expect(0);
    let ran = bench.run(&[input, "-o", "out.jsonl", "--resume"]).expect(4);
    assert!(
        ran.stderr.contains("6 / 6 prompts done (2 kept, 4 now), 1 with an error"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("error: bad_json, once, at in.jsonl:6"), "{}", ran.stderr);
    let ran = bench.run(&[input, "--limit", "1"]).expect(0);
    assert!(ran.stderr.contains("llmopt: 1 prompt, 0 with errors"), "{}", ran.stderr);
}

#[test]
fn advice_to_resume_is_given_only_where_there_is_something_to_go_on_with() {
    let bench = Bench::new();
    for (output, advised) in
        [(&["-o", "out.jsonl"][..], true), (&["-o", "/dev/null"], false), (&[], false)]
    {
        let args = [&["-", "--input-format", "jsonl", "--without", "cache", "-q"], output].concat();
        let mut command = bench.command(&args);
        command.stdin(Stdio::piped());
        let mut child = bench.start(command);
        feed_without_end(&mut child);
        let drained = child.stdout.take().map(|mut out| {
            std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()))
        });
        std::thread::sleep(Duration::from_millis(800));
        signal(&child, "INT");
        let ran = finish(child).expect(130);
        assert_eq!(ran.stderr.contains("--resume"), advised, "{output:?}: {}", ran.stderr);
        assert!(ran.stderr.contains("interrupted by SIGINT"), "{}", ran.stderr);
        drop(drained);
    }
}

#[test]
fn an_interrupted_compare_says_so_and_leaves_nothing() {
    let bench = Bench::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_llmopt"));
    command
        .current_dir(&bench.folder)
        .args(["compare", "f32", "bf16", "--quick", "--threads", "2", "--out", "results", "-m"])
        .arg(model());
    command.stdin(Stdio::null());
    let child = bench.start(command);
    let since = Instant::now();
    while std::fs::read_dir(bench.path("results")).map_or(0, |d| d.count()) == 0 {
        assert!(since.elapsed().as_secs() < 60);
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(300));
    signal(&child, "INT");
    let since = Instant::now();
    let ran = finish(child).expect(130);
    assert!(
        ran.stderr.contains("interrupted by SIGINT; nothing was measured")
            && since.elapsed().as_secs() < 3,
        "{}",
        ran.stderr
    );
    assert_eq!(
        std::fs::read_dir(bench.path("results")).unwrap().count(),
        0,
        "no empty folder stays"
    );
    assert!(ran.stdout.is_empty());
}

#[test]
fn an_interrupted_bench_with_a_gate_judges_nothing() {
    let bench = Bench::new();
    let own = common::Tiny { context: 640, ..common::Tiny::default() }.write(&bench.path("."));
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_llmopt"));
        command.current_dir(&bench.folder).arg("bench").arg("-m").arg(&own);
        command.args([
            "--phase",
            "3",
            "--max-tokens",
            "2",
            "--limit",
            "4",
            "--concurrency",
            "none",
            "--threads",
            "2",
        ]);
        command.args(more).stdin(Stdio::null());
        bench.start(command)
    };
    finish(run(&["--rounds", "2", "--out", "before"])).expect(0);
    let baseline =
        std::fs::read_dir(bench.path("before")).unwrap().flatten().next().unwrap().path();
    let child = run(&[
        "--rounds",
        "9999",
        "--time-budget",
        "300",
        "--out",
        "now",
        "--baseline",
        baseline.to_str().unwrap(),
    ]);
    let written = || {
        let folders = std::fs::read_dir(bench.path("now")).into_iter().flatten().flatten();
        folders
            .filter_map(|f| std::fs::read_to_string(f.path().join("result.json")).ok())
            .any(|t| t.contains("\"samples\""))
    };
    let since = Instant::now();
    while !written() {
        assert!(since.elapsed().as_secs() < 100);
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(&child, "INT");
    let ran = finish(child).expect(130);
    assert!(ran.stderr.contains("no verdict") && !ran.stderr.contains("error"), "{}", ran.stderr);
    assert!(ran.stdout.contains("queue"), "what was measured is shown: {}", ran.stdout);
}

#[test]
fn a_bench_on_a_full_disk_is_status_1_with_the_path_and_its_files_are_whole() {
    let bench = Bench::new();
    let own = common::Tiny { context: 640, ..common::Tiny::default() }.write(&bench.path("."));
    // A limit on file sizes is a full disk too: the first rounds fit, those that follow do not.
    let run = format!(
        "ulimit -f 16; exec {} bench -m {} --phase 3 --concurrency none --rounds 9999 --time-budget 300 --max-tokens 2 --limit 4 --threads 2 --out out",
        env!("CARGO_BIN_EXE_llmopt"),
        own.display()
    );
    let mut shell = Command::new("bash");
    shell
        .current_dir(&bench.folder)
        .args(["-c", &run])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let ran = finish(shell.spawn().unwrap()).expect(1);
    assert!(
        ran.stderr.lines().last().unwrap().contains("result.json: cannot be written"),
        "{}",
        ran.stderr
    );
    let left = everything(&bench.path("out"));
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(
        !llmopt::bench::ablation::result::BenchResult::read(&left[0].0).unwrap().rounds.is_empty()
    );
}

#[test]
fn what_stands_under_the_name_of_a_journal_and_is_none_is_left_alone() {
    let bench = Bench::new();
    let input = bench.file("in.jsonl", prompts(2));
    let chosen = [input, "-q", "-o", "out.csv", "--columns", "id,answer"];
    // A journal of ours, as a failed record leaves it, whole and torn.
    bench.file(
        "bad.jsonl",
        "{\"id\":\"r0\",\"prompt\":7}\n".to_string() + &prompts(2)[prompts(1).len()..],
    );
    bench.run(&["bad.jsonl", "-q", "-o", "ours.csv", "--columns", "id,answer"]).expect(4);
    let ours = bench.text("ours.csv.journal.jsonl");
    assert_eq!(ours.lines().count(), 2, "{ours}");
    let journal = "out.csv.journal.jsonl";
    let mine = [
        "my notes\n",
        "my notes",
        "{\"id\":\"1\",\"prompt\":\"x\"}\n",
        "{\"id\":\"1\",\"prompt\":\"x\"}",
        "{\"id\":\"1\",\"prompt\":\"x\",\"answer\":\"y\"}\n",
        "{\n  \"id\": 1\n}\n",
        "\n",
        "[1,2]",
    ];
    for mine in mine {
        bench.file(journal, mine);
        for flags in [&[][..], &["--overwrite"], &["--resume"]] {
            bench
                .run(&[&chosen[..], flags].concat())
                .refused("out.csv.journal.jsonl: is no journal of llmopt");
            assert_eq!(bench.text(journal), mine);
        }
    }
    std::fs::remove_file(bench.path(journal)).unwrap();
    // Links, to whatever they lead, a folder, a pipe.
    bench.file("notes.txt", "mine\n");
    bench.file("journal.jsonl", &ours);
    for to in ["notes.txt", "journal.jsonl", "nothing.txt"] {
        std::os::unix::fs::symlink(to, bench.path(journal)).unwrap();
        for flags in [&[][..], &["--overwrite"], &["--resume"]] {
            bench.run(&[&chosen[..], flags].concat()).refused("is a link");
        }
        std::fs::remove_file(bench.path(journal)).unwrap();
    }
    assert!(
        bench.text("notes.txt") == "mine\n"
            && bench.text("journal.jsonl") == ours
            && !bench.path("nothing.txt").exists()
    );
    std::fs::create_dir(bench.path(journal)).unwrap();
    bench.run(&[&chosen[..], &["--overwrite"]].concat()).refused("is no file");
    std::fs::remove_dir(bench.path(journal)).unwrap();
    mkfifo(&bench.path(journal));
    bench.run(&[&chosen[..], &["--overwrite"]].concat()).refused("is no file");
    std::fs::remove_file(bench.path(journal)).unwrap();
    assert!(!bench.path("out.csv").exists());
    // Ours are replaced or gone on with; what a kill left of the first line is ours too.
    for left in [&ours[..], &ours[..40], "{\"i", "", "\0\0\0"] {
        bench.file(journal, left);
        bench.run(&[&chosen[..], &["--overwrite"]].concat()).expect(0);
        assert!(
            !bench.path(journal).exists() && bench.text("out.csv").lines().count() == 3,
            "{left}"
        );
    }
    bench.file(journal, &ours);
    bench
        .run(&["bad.jsonl", "-q", "-o", "out.csv", "--columns", "id,answer", "--resume"])
        .expect(4);
}

#[test]
fn the_only_line_of_a_strangers_file_is_no_torn_record() {
    let bench = Bench::new();
    let input = bench.file("in.jsonl", prompts(1));
    for mine in [
        "my notes",
        "[{\"id\":\"1\",\"prompt\":\"x\"}]",
        "{\"id\":\"1\",\"prompt\":\"x\"}",
        "{\"text\": \"x",
        "7",
    ] {
        bench.file("out.jsonl", mine);
        bench
            .run(&[input, "-o", "out.jsonl", "--resume"])
            .refused("line 1 is no record of this format");
        assert_eq!(bench.text("out.jsonl"), mine);
    }
    for torn in ["{\"id\":\"r0\",\"prom", "{\"id\"", "\0\0"] {
        bench.file("out.jsonl", torn);
        bench.run(&[input, "-q", "-o", "out.jsonl", "--resume"]).expect(0);
        assert_eq!(records(&bench.text("out.jsonl")).len(), 1);
    }
}

#[test]
fn a_file_that_comes_to_be_while_the_run_goes_on_is_left_alone() {
    let bench = Bench::new();
    let asked = "{\"id\":\"a\",\"prompt\":\"x\"}\n";
    let run = |flags: &[&str], mine: &str| {
        let args = ["-", "--input-format", "jsonl", "--columns", "id,answer", "-o", "out.csv"];
        let mut command = bench.command(&[&args[..], flags].concat());
        let mut child = bench.start({
            command.stdin(Stdio::piped());
            command
        });
        let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.ends_with("ready\n") {
            assert!(std::io::BufRead::read_line(&mut stderr, &mut line).unwrap() > 0, "{line}");
        }
        bench.file(mine, "mine\n");
        process::feed(&mut child, asked);
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).unwrap();
        (process::wait(&mut child), rest)
    };
    let (status, said) = run(&[], "out.csv");
    assert!(status == 1 && said.contains("out.csv: was made by another program"), "{said}");
    assert_eq!(bench.text("out.csv"), "mine\n");
    std::fs::rename(bench.path("out.csv"), bench.path("mine.csv")).unwrap();
    // The answers are in the journal.
    let (status, said) = run(&["--resume"], "other.csv");
    assert!(status == 0 && bench.text("out.csv").starts_with("id,answer\na,"), "{said}");
    std::fs::remove_file(bench.path("out.csv")).unwrap();
    let (status, said) = run(&["--stats", "s.json"], "s.json");
    assert!(
        status == 1 && said.contains("--stats s.json: ") && bench.text("s.json") == "mine\n",
        "{said}"
    );
    std::fs::remove_file(bench.path("out.csv")).unwrap();
    // A link that leads nowhere yet stays one.
    std::os::unix::fs::symlink("there.json", bench.path("link.json")).unwrap();
    let (status, said) = run(&["--stats", "link.json"], "other.csv");
    assert!(
        status == 0
            && bench.path("link.json").is_symlink()
            && bench.text("there.json").contains("schema"),
        "{said}"
    );
}

//! What bench writes and how its gate ends, with the program itself on a tiny model. No time decides anything here.

mod common;

use common::Tiny;
use llmopt::bench::ablation::result::BenchResult;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const HEADER: &str = "optimization,phase,difficulty,expected_low,expected_high,alone,alone_low,alone_high,removed,removed_low,removed_high,cumulative,cumulative_low,cumulative_high,verdict,answers,agreement";
const ROWS: [&str; 14] = [
    "precision",
    "greedy",
    "cache",
    "early-stop",
    "tokenizer",
    "mask",
    "warmup",
    "queue",
    "static-memory",
    "phase-1",
    "phase-2",
    "total",
    "quantized",
    "shared-prefix",
];

/// A folder with a tiny model whose context holds the workload's prompts.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let model = Tiny { context: 640, ..Tiny::default() }.write(folder.path());
    (folder, model)
}

fn command(model: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llmopt"));
    command.current_dir(model.parent().unwrap()).env_remove("GITHUB_STEP_SUMMARY");
    // One thread: others of a busy machine would keep two waiting for each other.
    command.args(["bench", "--threads=1", "--model"]).arg(model).args(args).stdin(Stdio::null());
    command
}

fn bench(model: &Path, args: &[&str]) -> Output {
    command(model, args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The one folder of results below `results`.
fn results(model: &Path) -> PathBuf {
    let mut all: Vec<PathBuf> = std::fs::read_dir(model.with_file_name("results"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

fn csv(path: &Path) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(path).unwrap();
    assert_eq!(text.lines().next(), Some(HEADER));
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    reader.records().map(|r| r.unwrap().iter().map(String::from).collect()).collect()
}

/// Every table has as many cells in each row as in its header.
fn check_markdown(text: &str) {
    let cells = |line: &str| line.replace("\\|", "").matches('|').count();
    let lines: Vec<&str> = text.lines().collect();
    let mut tables = 0;
    for (i, line) in lines.iter().enumerate().filter(|(_, l)| l.starts_with('|')) {
        if i > 0 && lines[i - 1].starts_with('|') {
            assert_eq!(cells(line), cells(lines[i - 1]), "{line}");
        } else {
            tables += 1;
            assert!(lines[i + 1].starts_with("| --"), "{}", lines[i + 1]);
        }
    }
    assert!(tables > 0);
}

/// Opens a page in a headless Chromium, where one is installed, at a width: what it drew, and whether it is wider than the window.
fn in_a_browser(page: &str, width: usize) -> Option<(usize, bool)> {
    let browser = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"]
        .into_iter()
        .find(|p| Path::new(p).exists())?;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("page.html");
    // The page forbids scripts; a copy for the test measures itself by one. A frame is as narrow as asked for, a window is not.
    let copy = page.replacen("<meta http-equiv=", "<meta name=\"was\" data-was=", 1);
    let frame = copy.replace('&', "&amp;").replace('"', "&quot;");
    let script = "onload = () => { const d = document.querySelector('iframe').contentDocument; document.title = \
                  d.querySelectorAll('svg[role=img]').length + ' ' + (d.documentElement.scrollWidth > d.documentElement.clientWidth); };";
    std::fs::write(
        &file,
        format!(
            "<iframe width={width} height=900 srcdoc=\"{frame}\"></iframe><script>{script}</script>"
        ),
    )
    .unwrap();
    let mut command = Command::new(browser);
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-sync",
    ]);
    command.args([
        "--disable-background-networking",
        "--disable-component-update",
        "--virtual-time-budget=5000",
        "--dump-dom",
    ]);
    command.arg(format!("--user-data-dir={}", folder.path().join("profile").display()));
    let output =
        command.arg(format!("file://{}", file.display())).stdin(Stdio::null()).output().unwrap();
    let dom = text(&output.stdout);
    let title = dom
        .split("<title>")
        .nth(1)
        .unwrap_or_else(|| panic!("no title: {dom}"))
        .split("</title>")
        .next()
        .unwrap();
    let (charts, wide) = title.split_once(' ').unwrap_or_else(|| panic!("{title}"));
    Some((charts.parse().unwrap(), wide == "true"))
}

#[test]
fn a_quick_bench_writes_every_file_and_a_report_of_80_columns() {
    let (folder, model) = folder();
    let summary = folder.path().join("summary.md");
    let output =
        command(&model, &["--phase", "1", "--quick", "--rounds", "2", "--time-budget", "3000"])
            .env("GITHUB_STEP_SUMMARY", &summary)
            .output()
            .unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{err}");
    for line in out.lines() {
        // One word may be longer, such as the path in the command.
        assert!(line.chars().count() <= 80 || !line.trim().contains(' '), "{line}");
    }
    assert!(!out.contains('\u{1b}') && !err.contains('\u{1b}'));
    let results = results(&model);
    let rows = csv(&results.join("speedup.csv"));
    assert_eq!(rows.iter().map(|r| r[0].as_str()).collect::<Vec<_>>(), ROWS);
    for row in &rows {
        let measured = ["precision", "greedy", "cache", "early-stop", "phase-1", "total"]
            .contains(&row[0].as_str());
        assert_eq!(!row[5].is_empty(), measured, "{row:?}");
        if measured {
            let [ratio, low, high] = [5, 6, 7].map(|i: usize| row[i].parse::<f64>().unwrap());
            assert!(0.0 < low && low <= ratio && ratio <= high, "{row:?}");
            assert!(
                ["unclear", "within"].contains(&row[14].as_str()),
                "two rounds give no verdict: {row:?}"
            );
            assert!(["identical", "prefix", "differ"].contains(&row[15].as_str()), "{row:?}");
            assert!((0.0..=1.0).contains(&row[16].parse::<f64>().unwrap()), "{row:?}");
        }
    }
    assert!(out.contains("Response caching: hit") && out.contains("∞, no forward pass"), "{out}");
    assert!(
        !out.lines().any(|l| l.contains("unclear") && l.contains("differ")),
        "rows say how far answers agree: {out}"
    );
    assert_eq!(rows[0][1..5], ["1", "Easy", "1.3", "1.5"]);
    assert_eq!(rows[2][3..5], ["inf", "inf"]);
    let result = BenchResult::read(&results).unwrap();
    assert!(
        result.quick && result.complete && result.rounds.len() == 2 && result.configs.len() == 7
    );
    // The tiny model by hand: embedding, two layers, the last norm.
    let weights = 320 * 64 + 2 * (2 * 64 + 64 * 64 * 2 + 2 * 32 * 64 + 3 * 96 * 64) + 64;
    assert_eq!(
        result.model.parameters,
        Some(llmopt::model::Parameters { total: weights, active: weights })
    );
    let page = std::fs::read_to_string(results.join("report.html")).unwrap();
    for text in [&out, &page, &std::fs::read_to_string(results.join("report.md")).unwrap()] {
        let all = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(all.contains(&format!("({weights} parameters)")), "{text}");
    }
    let charts = page.matches("<svg role=\"img\"").count();
    assert!(charts >= 4, "{charts}");
    assert_eq!(
        page.contains(">Lost if removed</th>"),
        page.contains("Lost if removed:"),
        "a column is explained where it stands"
    );
    assert!(!page.contains("http:") && !page.contains("https:") && !page.contains("<script"));
    for width in [360, 768, 1280] {
        if let Some((drawn, wide)) = in_a_browser(&page, width) {
            assert_eq!((drawn, wide), (charts, false), "in a browser {width} pixels wide");
        }
    }
    let junit = std::fs::read_to_string(results.join("junit.xml")).unwrap();
    assert_eq!(junit.matches("<testcase ").count(), 6, "{junit}");
    assert!(
        junit.contains("<testcase name=\"precision\" classname=\"llmopt.rows\"")
            && !junit.contains("<failure"),
        "{junit}"
    );
    for file in ["report.md", "speedup.md"] {
        check_markdown(&std::fs::read_to_string(results.join(file)).unwrap());
    }
    check_markdown(&std::fs::read_to_string(&summary).unwrap());
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(results.join("speedup.json")).unwrap())
            .unwrap();
    assert_eq!(json.as_array().unwrap().len(), ROWS.len());
    // Three histograms of each configuration, in two formats.
    assert_eq!(std::fs::read_dir(results.join("latency")).unwrap().count(), 7 * 3 * 2);
}

#[test]
fn a_bench_of_everything_fills_every_row_and_keeps_every_promise() {
    let (_folder, model) = folder();
    let args = [
        "--rounds",
        "2",
        "--time-budget",
        "900",
        "--concurrency",
        "1,3",
        "--max-tokens",
        "6",
        "--limit",
        "12",
        "--format",
        "csv",
    ];
    let output = bench(&model, &args);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let results = results(&model);
    let rows = csv(&results.join("speedup.csv"));
    assert_eq!(text(&output.stdout), std::fs::read_to_string(results.join("speedup.csv")).unwrap());
    for row in &rows {
        assert!(!row[5].is_empty(), "alone: {row:?}");
        let total = ["phase-1", "phase-2", "total"].contains(&row[0].as_str());
        assert_eq!(row[8].is_empty(), total, "removed: {row:?}");
        assert!(!row[11].is_empty(), "cumulative: {row:?}");
        let answers = match row[0].as_str() {
            "cache" | "tokenizer" | "mask" | "queue" | "static-memory" | "shared-prefix"
            | "phase-2" => &["identical"][..],
            "early-stop" => &["identical", "prefix"],
            "warmup" => &[""],
            _ => continue,
        };
        assert!(answers.contains(&row[15].as_str()), "{row:?}");
    }
    let result = BenchResult::read(&results).unwrap();
    assert!(
        result.starts.len() >= 8 && result.starts.iter().all(|s| s.first_s > 0.0),
        "{:?}",
        result.starts
    );
    assert_eq!(
        result.clients.iter().map(|c| (c.clients, c.queue)).collect::<Vec<_>>(),
        [(1, false), (1, true), (3, false), (3, true)]
    );
    assert!(
        result.clients.iter().all(|c| c.latency_ms.len() as u64 == c.requests && c.requests == 12)
    );
    let candle_baseline = result.candle_baseline.unwrap();
    assert_eq!(candle_baseline.seconds.len(), 4, "{candle_baseline:?}");
    // Same slices, no stopping: all sides generated the same number of tokens.
    assert!(
        candle_baseline.tokens.iter().all(|t| t.1 == candle_baseline.tokens[0].1),
        "{candle_baseline:?}"
    );
    let hit = result.hit.unwrap();
    assert!(
        hit.forward_passes == 0 && hit.tokenize_s.is_some_and(|s| s > 0.0 && s <= hit.repeated_s),
        "{hit:?}"
    );
}

/// Writes an edited copy of a result.
fn edited(result: &Path, name: &str, edit: impl FnOnce(&mut serde_json::Value)) -> String {
    let mut value = serde_json::from_str(&std::fs::read_to_string(result).unwrap()).unwrap();
    edit(&mut value);
    let path = result.with_file_name(name);
    std::fs::write(&path, value.to_string()).unwrap();
    path.to_str().unwrap().to_string()
}

#[test]
fn the_gate_refuses_what_it_cannot_compare_and_names_each_row_that_failed() {
    let (folder, model) = folder();
    let plan = [
        "--phase",
        "1",
        "--rounds",
        "2",
        "--time-budget",
        "3000",
        "--max-tokens",
        "6",
        "--limit",
        "6",
    ];
    let with = |more: &[&str]| bench(&model, &[&plan[..], more].concat());
    let first = with(&["--out", "first", "-q"]);
    assert_eq!(first.status.code(), Some(0), "{}", text(&first.stderr));
    let made =
        std::fs::read_dir(folder.path().join("first")).unwrap().next().unwrap().unwrap().path();
    let result = made.join("result.json");
    let good = result.to_str().unwrap();

    let refused = |more: &[&str], word: &str| {
        let output = with(more);
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{more:?}: {err}");
        assert!(err.lines().count() == 1 && err.contains(word), "{more:?}: {err}");
        assert!(output.stdout.is_empty() && !folder.path().join("results").exists(), "{more:?}");
    };
    let file = |name: &str, edit: fn(&mut serde_json::Value)| edited(&result, name, edit);
    refused(
        &[
            "--baseline",
            &file("a", |v| {
                drop(v["rounds"][0]["samples"][0].as_object_mut().unwrap().remove("seconds"))
            }),
        ],
        "seconds",
    );
    refused(
        &[
            "--baseline",
            &file("b", |v| v["rounds"][0]["samples"][0]["seconds"] = serde_json::Value::Null),
        ],
        "null",
    );
    refused(&["--baseline", &file("c", |v| v["schema"] = 1000.into())], "schema 1000");
    refused(&["--baseline", &file("d", |v| v["model"]["digest"] = "0".into())], "another model");
    refused(
        &["--baseline", &file("e", |v| v["workload"]["digest"] = "0".into())],
        "another workload",
    );
    refused(
        &["--baseline", &file("f", |v| v["quick"] = true.into())],
        "made with --quick, this run without it",
    );
    refused(
        &["--same-machine", "--baseline", &file("g", |v| v["machine"]["cpu"] = "abacus".into())],
        "abacus",
    );
    refused(&["--baseline", "nowhere.json"], "nowhere.json");
    refused(&["--baseline", model.to_str().unwrap()], "tiny.gguf");
    refused(&["--quick", "--baseline", good], "made without --quick, this run with it");
    // A budget that cannot hold two rounds is said before anything is measured, with the least that can.
    refused(&["--max-time", "0.001"], "cannot hold two rounds of 9 configurations");
    refused(
        &["--max-time", "0.001", "--repeat", "3"],
        "--max-time 0.001: cannot hold two rounds of each of 3 runs",
    );
    let nan = made.join("nan.json");
    std::fs::write(
        &nan,
        std::fs::read_to_string(&result).unwrap().replacen(
            "\"seconds\":",
            "\"seconds\":NaN,\"x\":",
            1,
        ),
    )
    .unwrap();
    refused(&["--baseline", nan.to_str().unwrap()], "JSON");
    std::fs::write(folder.path().join("file"), "").unwrap();
    refused(&["--out", "file"], "--out");

    // A baseline in which the start took longer than time has lasted: every ratio is now so far below it that no noise of two rounds
    // (whose intervals are wide: a hiccup in one once hid a factor of ten million) can hide it.
    let impossible = file("h", |v| {
        for round in v["rounds"].as_array_mut().unwrap() {
            for sample in
                round["samples"].as_array_mut().unwrap().iter_mut().filter(|s| s["config"] == 0)
            {
                sample["seconds"] = 1e100.into();
            }
        }
    });
    let output = with(&["--baseline", &impossible, "-q"]);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{err}");
    for row in ["precision", "greedy", "cache", "early-stop", "phase-1", "total"] {
        assert_eq!(
            err.lines().filter(|l| l.starts_with(&format!("llmopt: gate: {row}: "))).count(),
            1,
            "{row}: {err}"
        );
    }
    // Nothing can lose 99.99 % but by a broken gate; another machine is told and ratios are compared.
    let other = file("i", |v| v["machine"]["cpu"] = "abacus".into());
    let output =
        with(&["--baseline", &other, "--max-regression", "99.99", "--min-speedup", "0.000001"]);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{err}");
    assert!(err.contains("abacus") && err.contains("none of 6 comparisons"), "{err}");
    let output = with(&["--min-speedup", "1e90"]);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{err}");
    assert!(err.contains("--min-speedup"), "{err}");
}

#[test]
fn a_quick_gate_compares_with_its_like_and_writes_every_page_before_it_fails() {
    let (folder, model) = folder();
    let plan = [
        "--phase",
        "1",
        "--quick",
        "--max-tokens",
        "4",
        "--limit",
        "6",
        "--repeat",
        "2",
        "--time-budget",
        "3000",
    ];
    let first = bench(&model, &[&plan[..], &["--out", "first", "-q"]].concat());
    assert_eq!(first.status.code(), Some(0), "{}", text(&first.stderr));
    let made =
        std::fs::read_dir(folder.path().join("first")).unwrap().next().unwrap().unwrap().path();
    let result = BenchResult::read(&made).unwrap();
    assert_eq!((result.runs(), result.rounds.len(), result.configs.len()), (2, 6, 7));
    assert!(text(&first.stdout).contains("between runs"), "{}", text(&first.stdout));
    // The recorded program was faster than light.
    let impossible = edited(&made.join("result.json"), "fast", |v| {
        for round in v["rounds"].as_array_mut().unwrap() {
            round["samples"]
                .as_array_mut()
                .unwrap()
                .iter_mut()
                .for_each(|s| s["seconds"] = 1e-9.into());
        }
    });
    let summary = folder.path().join("summary.md");
    let gate = command(&model, &[&plan[..], &["--baseline", &impossible]].concat())
        .env("GITHUB_STEP_SUMMARY", &summary)
        .output();
    let output = gate.unwrap();
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{err}");
    assert!(
        err.contains("is past --max-regression 20 %") && err.contains("this run sees a loss of"),
        "{err}"
    );
    assert!(
        !output.stdout.is_empty()
            && std::fs::read_to_string(summary).unwrap().contains("--max-regression 20 %")
    );
    let junit = std::fs::read_to_string(results(&model).join("junit.xml")).unwrap();
    assert!(junit.contains("<testsuite name=\"gates\"") && junit.contains("<failure"), "{junit}");
}

#[test]
fn completions_the_man_page_and_the_version_tell_what_there_is() {
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_llmopt"))
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let page = run(&["completions", shell]);
        assert!(page.contains("max-regression") && page.contains("compare"), "{shell}");
        assert!(!page.contains("fresh-process"), "hidden flags are offered by nobody: {shell}");
    }
    let man = run(&["man"]);
    for part in [".TH llmopt", ".SH \"BENCH\"", "max\\-regression", ".SH \"EXIT STATUS\"", "resume"]
    {
        assert!(man.contains(part), "{part}");
    }
    let version = run(&["--version"]);
    assert!(version.starts_with(&format!("llmopt {}", env!("CARGO_PKG_VERSION"))), "{version}");
    assert!(
        version.contains("kernel sets of this CPU: ")
            && version.contains("portable")
            && version.contains("features: "),
        "{version}"
    );
}

#[test]
fn a_slip_of_the_fingers_is_told_what_was_meant() {
    let said = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_llmopt"))
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        text(&output.stderr)
    };
    for (args, meant) in [
        (&["run", "--max-token", "9", "x.jsonl"][..], "--max-tokens"),
        (&["run", "--dtype", "q80", "x.jsonl"], "did you mean 'q8_0'?"),
        (&["run", "--without", "earlystop", "x.jsonl"], "did you mean 'early-stop'?"),
        (&["bench", "-m", "smolm2-135m"], "did you mean 'smollm2-135m'?"),
        (&["compare", "f32", "bf61"], "did you mean 'bf16'?"),
        (&["benhc"], "bench"),
    ] {
        let err = said(args);
        assert!(err.contains(meant), "{args:?}: {err}");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_bench_keeps_its_whole_rounds() {
    let (_folder, model) = folder();
    let args = [
        "--phase",
        "3",
        "--rounds",
        "9999",
        "--time-budget",
        "300",
        "--max-tokens",
        "4",
        "--limit",
        "6",
        "--concurrency",
        "none",
    ];
    let mut child =
        command(&model, &args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let written = || {
        let folder = std::fs::read_dir(model.with_file_name("results")).ok()?.next()?.ok()?.path();
        folder.join("result.json").exists().then_some(folder)
    };
    while written().is_none() {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success()
    );
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    let result = BenchResult::read(&written().unwrap()).unwrap();
    assert!(!result.complete && !result.rounds.is_empty());
    assert!(written().unwrap().join("speedup.csv").exists());
}

#[test]
fn a_dry_run_measures_and_writes_nothing() {
    let (folder, model) = folder();
    let output = bench(&model, &["--dry-run"]);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{err}");
    assert!(err.contains("180 prompts") && output.stdout.is_empty(), "{err}");
    assert!(!folder.path().join("results").exists());
}

//! The machine fails at a named point: killed before, in the middle of and after a write, around a sync and a rename, with the lock held,
//! on the way out; locks that do not exist, calls that are interrupted, a wall clock that runs backwards. `tests/common/faults.c` is
//! preloaded into the program for it (Linux with a C compiler, which the build needs anyway). Kills at random: `tests/resume.rs`.
#![cfg(target_os = "linux")]

mod common;
#[path = "common/process.rs"]
mod process;

use process::{Bench, Ran, essences, finish, records};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The library to preload, compiled once.
fn shim() -> &'static Path {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| process::preloadable("faults"))
}

/// A run with a fault at the `at`-th time that a file whose name has `file` in it comes to `point`.
fn faulty(bench: &Bench, point: &str, file: &str, at: usize, arguments: &[&str]) -> Ran {
    let mut command = bench.command(arguments);
    command
        .env("LD_PRELOAD", shim())
        .env("FAULT", point)
        .env("FAULT_AT", at.to_string())
        .env("FAULT_FILE", file);
    finish(bench.start(command))
}

fn prompts(count: usize) -> String {
    (0..count)
        .map(|i| format!("{{\"id\":\"r{i}\",\"prompt\":\"What is {} & {i}?\"}}\n", i % 9))
        .collect()
}

#[test]
fn killed_at_every_named_point_nothing_is_lost_and_nothing_doubled() {
    let bench = Bench::new();
    let input = bench.file("in.jsonl", prompts(12));
    let whole = bench.run(&[input, "-q"]).expect(0).stdout;
    let mut kills = 0;
    for (point, most) in [
        ("before-write", 12),
        ("mid-write", 12),
        ("after-write", 12),
        ("before-sync", 2),
        ("after-sync", 2),
        ("after-lock", 1),
        ("at-exit", 1),
    ] {
        for at in 1..=most {
            for ordered in [&[][..], &["--ordered"]] {
                let args = [&[input, "-o", "out.jsonl", "-q", "--resume"], ordered].concat();
                let _ = std::fs::remove_file(bench.path("out.jsonl"));
                let ran = faulty(&bench, point, "out.jsonl", at, &args);
                // There need not be so many syncs.
                if ran.status == 0 && point.ends_with("sync") && at > 1 {
                    continue;
                }
                ran.expect(1009);
                kills += 1;
                let before = std::fs::read_to_string(bench.path("out.jsonl")).unwrap();
                let lines = match point {
                    "before-write" | "mid-write" => at - 1,
                    "after-write" => at,
                    "after-lock" => 0,
                    _ => 12,
                };
                assert_eq!(before.matches('\n').count(), lines, "{point} {at}");
                assert_eq!(
                    before.ends_with('\n') || before.is_empty(),
                    point != "mid-write",
                    "{point} {at}"
                );
                bench.run(&args).expect(0);
                let after = bench.text("out.jsonl");
                assert!(
                    after.starts_with(&before[..before.rfind('\n').map_or(0, |i| i + 1)]),
                    "{point} {at}"
                );
                assert_eq!(essences(&after), essences(&whole), "{point} {at}");
            }
        }
    }
    assert!(kills >= 2 * 40, "{kills}");
    println!("{kills} kills");
}

#[test]
fn killed_fifty_times_in_a_row_each_kill_loses_nothing() {
    let bench = Bench::new();
    let input = bench.file("in.jsonl", prompts(50));
    let whole = bench.run(&[input, "-q"]).expect(0).stdout;
    let args = [input, "-o", "out.jsonl", "-q", "--resume"];
    for kill in 0..50 {
        // After a whole line, in the middle of one, before one: what is whole stays, and one more is answered now and then.
        let before = std::fs::read_to_string(bench.path("out.jsonl")).unwrap_or_default();
        let point = ["after-write", "mid-write", "before-write"][kill % 3];
        faulty(&bench, point, "out.jsonl", 1, &args).expect(1009);
        let kept = &before[..before.rfind('\n').map_or(0, |i| i + 1)];
        assert!(bench.text("out.jsonl").starts_with(kept), "{kill}");
    }
    assert_eq!(bench.text("out.jsonl").matches('\n').count(), 17);
    bench.run(&args).expect(0);
    assert_eq!(essences(&bench.text("out.jsonl")), essences(&whole));
}

#[test]
fn killed_while_the_model_is_read_the_output_is_as_it_was() {
    let bench = Bench::new();
    let input = bench.file("in.jsonl", prompts(6));
    let args = [input, "-o", "out.jsonl", "-q", "--resume"];
    let whole = bench.run(&[input, "-q"]).expect(0).stdout;
    bench.run(&[&args[..], &["--limit", "3"]].concat()).expect(0);
    let before = bench.text("out.jsonl");
    for at in [1, 2, 5, 15] {
        faulty(&bench, "before-read", ".gguf", at, &args).expect(1009);
        assert_eq!(bench.text("out.jsonl"), before, "{at}");
    }
    bench.run(&args).expect(0);
    assert_eq!(essences(&bench.text("out.jsonl")), essences(&whole));
}

#[test]
fn killed_while_an_old_output_is_replaced_it_is_the_old_or_the_new_one() {
    let bench = Bench::new();
    let input = bench.file("in.jsonl", prompts(6));
    let old = "{\"id\":\"old\"}\n";
    // The file under a temporary name is synced before it is renamed, the folder after it.
    let folder = bench.folder.path().file_name().unwrap().to_str().unwrap().to_string();
    for (point, file, renamed) in [
        ("after-lock", "out.jsonl", false),
        ("before-sync", ".llmopt-", false),
        ("after-sync", ".llmopt-", false),
        ("after-lock", ".llmopt-", false),
        ("before-sync", &folder, true),
        ("after-sync", &folder, true),
    ] {
        bench.file("out.jsonl", old);
        faulty(&bench, point, file, 1, &[input, "-q", "-o", "out.jsonl", "--overwrite"])
            .expect(1009);
        assert_eq!(bench.text("out.jsonl"), if renamed { "" } else { old }, "{point} {file}");
        let way = if renamed { "--resume" } else { "--overwrite" };
        bench.run(&[input, "-q", "-o", "out.jsonl", way]).expect(0);
        assert_eq!(records(&bench.text("out.jsonl")).len(), 6, "{point} {file}");
    }
}

#[test]
fn a_file_system_without_locks_is_named_and_nothing_is_written() {
    let bench = Bench::new();
    let input = bench.file("in.jsonl", prompts(2));
    let ran = faulty(&bench, "no-lock", "", 1, &[input, "-o", "out.jsonl"])
        .refused("another file system");
    assert!(ran.stderr.contains("out.jsonl"), "{}", ran.stderr);
    assert!(!bench.path("out.jsonl").exists() || bench.text("out.jsonl").is_empty());
    // Nothing was left in the way.
    bench.run(&[input, "-q", "-o", "out.jsonl", "--resume"]).expect(0);
}

#[test]
fn calls_that_are_interrupted_are_made_again() {
    let bench = Bench::new();
    let input = bench.file("in.jsonl", prompts(8));
    let whole = bench.run(&[input, "-q"]).expect(0).stdout;
    for out in ["out.jsonl", "out.csv"] {
        for existing in ["--overwrite", "--overwrite", "--resume"] {
            faulty(&bench, "interrupt", "", 1, &[input, "-q", "-o", out, existing]).expect(0);
        }
    }
    assert_eq!(essences(&bench.text("out.jsonl")), essences(&whole));
    assert_eq!(
        essences(&faulty(&bench, "interrupt", "", 1, &[input, "-q"]).expect(0).stdout),
        essences(&whole)
    );
}

#[test]
fn a_wall_clock_that_runs_backwards_gives_no_negative_time_and_the_same_answers() {
    let bench = Bench::new();
    let input = bench.file("in.jsonl", prompts(8));
    let whole = bench.run(&[input, "-q"]).expect(0).stdout;
    let ran = faulty(
        &bench,
        "clock-back",
        "",
        1,
        &[input, "-o", "out.jsonl", "--stats", "stats.json", "--max-time", "600"],
    )
    .expect(0);
    let text = bench.text("out.jsonl");
    assert_eq!(essences(&text), essences(&whole));
    for record in records(&text) {
        for name in ["queue_ms", "ttft_ms", "latency_ms"] {
            let ms = record[name].as_f64().unwrap();
            assert!((0.0..100_000.0).contains(&ms), "{record}");
        }
    }
    let stats = bench.text("stats.json");
    assert!(
        !stats.contains(":-") && !stats.contains(": -") && !ran.stderr.contains(" -"),
        "{stats} {}",
        ran.stderr
    );
}

//! Fresh processes: each loads one setting, answers the workload and reports as JSON.

use super::args::{Args, Budget};
use super::models::{open_model, workload};
use super::tell;
use crate::bench::compare::figures::ChildReport;
use crate::bench::statistics::Random;
use crate::cli::console::Console;
use crate::cli::setting::{self, Setting};
use crate::cli::{Failure, results};
use crate::pipeline::{Control, Ended, Input, Order, Pipeline};
use crate::units::shown;
use std::ops::ControlFlow;
use std::process::{Command, Stdio};
use std::time::Instant;

/// A fresh process: loads one setting, answers the workload, prints a report as JSON.
pub fn child(args: &Args, prompts: usize, tokens: usize) -> Result<u8, Failure> {
    let begin = Instant::now();
    let typed = args.what.first().map(String::as_str).unwrap_or_default();
    let setting = Setting::parse(typed, &args.shared)?;
    let loaded = open_model(&setting.shared)?;
    let mut pipeline = Pipeline::new(&loaded, &setting.config(), &setting.shared.options())?;
    let load_s = begin.elapsed().as_secs_f64();
    let source =
        workload(&setting, prompts, tokens).into_iter().map(|prompt| Input::Prompt(prompt, ()));
    let (mut answers, mut latencies_ms, mut failed) = (Vec::new(), Vec::new(), None);
    let report = pipeline.run(source, Order::Input, &Control::default(), &mut |answer, ()| {
        latencies_ms.push(answer.latency_ms);
        failed = failed.take().or(answer.error.map(|e| e.message));
        answers.push(answer.tokens);
        ControlFlow::Continue(())
    })?;
    if let Some(message) = failed {
        return Err(Failure::failed(format!("a prompt of the workload failed: {message}")));
    }
    if report.ended != Ended::Complete {
        return Err(Failure::failed("the workload was not answered to its end"));
    }
    let report = ChildReport {
        load_s,
        peak_rss_bytes: crate::machine::peak_rss().map(|b| b.0),
        wall_s: report.wall_s,
        tokens: report.completion_tokens,
        latencies_ms,
        answers,
    };
    let text = serde_json::to_string(&report).map_err(|e| Failure::failed(e.to_string()))?;
    results::print(&text)?;
    Ok(0)
}

/// Starts a fresh process of this program for a setting and reads its report.
fn spawn(args: &Args, setting: &Setting, budget: &Budget) -> Result<ChildReport, Failure> {
    let failed = |why: String| {
        Failure::failed(format!("a fresh process for {}: {}", shown(&setting.name), shown(&why)))
    };
    let program = std::env::current_exe().map_err(|e| failed(e.to_string()))?;
    let output = Command::new(program)
        .args([
            "compare",
            "--child",
            &budget.prompts.to_string(),
            &budget.tokens.to_string(),
            "--quiet",
        ])
        .args(setting::as_arguments(&args.shared))
        .args(["--", &setting.typed])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let line = stderr
            .lines()
            .next()
            .unwrap_or("it ended without a word")
            .trim_start_matches("llmopt: error: ");
        // Its own status says what kind of trouble it was: bad usage (2) or not enough memory (75).
        let status = output.status.code().filter(|c| [2, 75].contains(c)).unwrap_or(1) as u8;
        return Err(Failure { status, ..failed(line.to_string()) });
    }
    serde_json::from_slice(&output.stdout).map_err(|e| failed(e.to_string()))
}

/// Rounds of fresh processes, the settings in random order within each. `reports[setting]` has one report a round.
pub fn processes(
    args: &Args,
    console: &mut Console,
    settings: &[Setting],
    budget: &Budget,
    random: &mut Random,
) -> Result<Vec<Vec<ChildReport>>, Failure> {
    let mut reports = vec![Vec::new(); settings.len()];
    let since = Instant::now();
    for pass in 0..budget.passes {
        // Another round only if it will fit, judged by those before.
        if pass > 0 && since.elapsed().mul_f64((pass + 1) as f64 / pass as f64) > budget.processes {
            break;
        }
        let mut order: Vec<usize> = (0..settings.len()).collect();
        random.shuffle(&mut order);
        for s in order {
            tell(
                args,
                console,
                &format!("fresh process {} of {}: {}", pass + 1, budget.passes, settings[s].name),
            );
            reports[s].push(spawn(args, &settings[s], budget)?);
        }
    }
    Ok(reports)
}

//! `llmopt compare`: settings, or results files, side by side. In: settings or paths, flags. Out: a report on standard output, a folder of
//! results, an exit status. Fresh processes tell load time, memory and the workload; then all settings are loaded here, and their
//! distributions and bare forward passes are measured in turns.

mod args;
mod files;
mod fresh;
mod measure;
mod models;

pub use args::Args;

use super::Failure;
use super::args as flags;
use super::console::{Console, Level, ShowProgress};
use super::files::Touched;
use super::results::{self, Folder};
use super::setting::Setting;
use super::signals::Signals;
use crate::bench::compare::comparison::Comparison;
use crate::bench::compare::recommendation::{self, Recommendation};
use crate::machine::Machine;
use crate::report::{self, Report, ReportFormat};
use crate::units::{counted, seconds, shown};
use args::Budget;
use measure::{CompareJob, measure};
use models::{open_models, read_text, windows, workload};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Runs it; the result is the exit status.
pub fn main(args: &Args) -> Result<u8, Failure> {
    if let Some([prompts, tokens]) = args.child.as_deref() {
        super::leave_with_parent();
        return fresh::child(args, *prompts, *tokens);
    }
    match classify(&args.what)? {
        true => files::files(args),
        false => settings(args),
    }
}

/// Whether these are results files (else settings); a mixture is bad usage.
fn classify(what: &[String]) -> Result<bool, Failure> {
    let is_file = |text: &String| {
        let path_like = text.ends_with(".json")
            || text.contains('/')
            || text.contains(std::path::MAIN_SEPARATOR);
        // `model=a/b.gguf` has a slash too. A dtype is a dtype even if a file is called so.
        let dtype = flags::dtype(text).is_ok();
        !dtype && (path_like && !text.contains('=') || Path::new(text).exists())
    };
    let count = what.iter().filter(|w| is_file(w)).count();
    if count == 0 {
        return Ok(false);
    }
    if let Some(odd) = what.iter().find(|w| !is_file(w)) {
        return Err(Failure::usage(format!(
            "'{}' is a setting and the others are files; give only one kind",
            shown(odd)
        )));
    }
    if what.len() < 2 {
        return Err(Failure::usage(format!(
            "{}: one results file alone; two or more are compared",
            shown(&what[0])
        )));
    }
    Ok(true)
}

fn settings(args: &Args) -> Result<u8, Failure> {
    let begin = Instant::now();
    let mut console = Console::new(args.shared.level());
    let settings = Setting::parse_all(&args.what, &args.shared)?;
    let machine = Machine::detect();
    touched(args, &settings).check()?;
    let text = read_text(args)?;
    let signals = Signals::watch(Arc::default())?;
    signals.advise("; nothing was measured to its end, and nothing is written");
    let loaded = open_models(&settings)?;
    let windows = if args.quick { None } else { Some(windows(&text, &settings, &loaded, args)?) };
    let budget = Budget::of(args, args.what.len());
    // Before anything is measured, so that minutes of work have a place to go.
    let folder = match args.shared.dry_run {
        true => None,
        false => Some(Folder::new(
            args.out.as_deref().unwrap_or(Path::new("results")),
            &format!("{}-compare", machine.label()),
        )?),
    };
    signals.created(folder.as_ref().map(|f| f.path().to_path_buf()));
    console.release();
    let plan = format!(
        "llmopt: {}: {}, {}rounds of forward passes; about {}",
        task(&settings),
        counted((budget.passes * settings.len()) as u64, "fresh process"),
        windows.as_ref().map_or(String::new(), |w| format!("{} tokens of text, ", w.predictions())),
        seconds(budget.total.as_secs_f64())
    );
    console.say(plan);
    let Some(folder) = folder else {
        let prompts = workload(&settings[0], budget.prompts, budget.tokens);
        let prompts = counted(prompts.len() as u64, "prompt");
        console.say(format!(
            "llmopt: {prompts} of at most {} each; nothing was run",
            counted(budget.tokens as u64, "token")
        ));
        return Ok(0);
    };
    let job = CompareJob {
        args,
        settings: &settings,
        models: &loaded,
        machine,
        windows: windows.as_ref(),
        budget: &budget,
        begin,
    };
    let comparison = match measure(job, &mut console) {
        Ok(comparison) => comparison,
        Err(failure) => {
            folder.remove_if_empty();
            // Ctrl-C in a terminal ends the fresh processes too: their end is no failure of its own.
            if let Some((_, status)) = signals.got() {
                std::thread::sleep(Duration::from_secs(2));
                return Ok(status);
            }
            return Err(failure);
        }
    };
    // From here on there is something to write, which takes no time.
    signals.begin();
    let recommendations = recommendation::recommendations(&comparison);
    let report = report::compare::report(&comparison, &recommendations);
    let json = as_json(&comparison, &recommendations);
    folder.write("result.json", &pretty(&json))?;
    folder.write("compare.csv", &report.render(ReportFormat::Csv, 0))?;
    folder.write("report.md", &report.render(ReportFormat::Md, 0))?;
    folder.write("report.html", &report.page())?;
    console.say(format!("llmopt: results in {}", folder.shown()));
    show(args.format, &report, &json)?;
    Ok(0)
}

/// Every file that the command reads and writes. Results go into a folder of their own, which is new.
fn touched(args: &Args, settings: &[Setting]) -> Touched {
    let mut touched = Touched::default();
    args.text.iter().for_each(|path| touched.reads("--text", path));
    settings.iter().for_each(|s| touched.reads_model(&s.shared.model));
    settings
        .iter()
        .flat_map(|s| &s.shared.chat_template)
        .for_each(|path| touched.reads("--chat-template", path));
    touched.writes_standard_output();
    touched
}

/// What is done with these settings.
fn task(settings: &[Setting]) -> String {
    match settings {
        [alone] => format!("measuring {} alone (no ratios, no verdict)", alone.name),
        [first, others @ ..] => {
            let others: Vec<&str> = others.iter().map(|s| s.name.as_str()).collect();
            format!("comparing {} with {}", first.name, others.join(", "))
        }
        [] => "nothing to measure".into(),
    }
}

/// A line of progress.
fn tell(args: &Args, console: &mut Console, text: &str) {
    match (args.shared.progress, console.level) {
        (ShowProgress::Never, _) | (ShowProgress::Auto, Level::Quiet) => {}
        _ => console.say(format!("llmopt: {text}")),
    }
}

fn as_json(comparison: &Comparison, recommendations: &[Recommendation]) -> serde_json::Value {
    let mut value = serde_json::to_value(comparison).unwrap_or_default();
    value["verdicts"] = serde_json::to_value(recommendations).unwrap_or_default();
    if comparison.auto.is_some() {
        value["auto"]["agrees"] = recommendation::auto_agrees(comparison, recommendations).into();
    }
    value["sentences"] = report::compare::sentences(comparison, recommendations).into();
    value
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

/// The report on standard output.
fn show(format: ReportFormat, report: &Report, json: &serde_json::Value) -> Result<(), Failure> {
    match format {
        ReportFormat::Json => results::print(&pretty(json)),
        format => results::print(&report.render(format, results::width())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flags::SharedArgs;

    #[test]
    fn files_and_settings_are_told_apart_and_not_mixed() {
        let what =
            |list: &[&str]| classify(&list.iter().map(|s| s.to_string()).collect::<Vec<_>>());
        assert_eq!(what(&["f32", "bf16"]), Ok(false));
        assert_eq!(what(&["threads=1", "model=a/b.gguf"]), Ok(false));
        assert_eq!(what(&["a.json", "results/x"]), Ok(true));
        assert!(what(&["a.json", "f32"]).unwrap_err().message.contains("'f32' is a setting"));
        assert!(what(&["a.json"]).unwrap_err().message.contains("two or more"));
    }

    #[test]
    fn a_setting_alone_is_not_compared_with_nothing() {
        #[derive(clap::Parser)]
        struct Flags {
            #[command(flatten)]
            shared: SharedArgs,
        }
        let shared = <Flags as clap::Parser>::parse_from(["x"]).shared;
        let said = |typed: &[&str]| {
            let typed: Vec<String> = typed.iter().map(|s| s.to_string()).collect();
            task(&Setting::parse_all(&typed, &shared).unwrap())
        };
        assert_eq!(said(&["f32"]), "measuring f32 alone (no ratios, no verdict)");
        assert_eq!(said(&["f32", "bf16", "q8_0"]), "comparing f32 with bf16, q8_0");
    }
}

//! The files of a bench, and the page that GitHub shows for a job.

use super::args::step_summary;
use super::judge::{Case, Judged, State};
use crate::bench::ablation::analysis::{Analysis, analyse};
use crate::bench::ablation::result::BenchResult;
use crate::cli::{Failure, results};
use crate::pipeline::Latencies;
use crate::report::{self, ReportFormat, histograms, speedup};
use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};

/// Everything but `result.json`, which is there already, and that once more.
pub fn all(
    folder: &results::Folder,
    result: &BenchResult,
    report: &report::Report,
    latencies: &[Latencies],
) -> Result<(), Failure> {
    folder.write("result.json", &result.to_json())?;
    folder.write("report.md", &report.render(ReportFormat::Md, 80))?;
    folder.write("report.html", &report.page())?;
    folder.write("speedup.md", &speedup::tables(&analyse(result)))?;
    folder.write("speedup.csv", &report.render(ReportFormat::Csv, 80))?;
    folder.write("speedup.json", &report.render(ReportFormat::Json, 80))?;
    folder.write(
        "machine.json",
        &format!("{:#}\n", serde_json::to_value(&result.machine).unwrap_or_default()),
    )?;
    for (config, l) in result.configs.iter().zip(latencies) {
        let name = results::file_name(&config.label);
        for (what, histogram) in
            [("first-token", &l.ttft), ("per-token", &l.per_token), ("whole", &l.end_to_end)]
        {
            folder.write(&format!("latency/{name}.{what}.hgrm"), &histograms::hgrm(histogram))?;
            folder.write(&format!("latency/{name}.{what}.csv"), &histograms::csv(histogram))?;
        }
    }
    Ok(())
}

/// `junit.xml`: a test case a row and a gate. A gate that failed or an answer that broke its promise is a failure; where no verdict was
/// given, the case is skipped with the reason.
pub fn junit(folder: &results::Folder, judged: &Judged) -> Result<(), Failure> {
    let mut report = quick_junit::Report::new("llmopt bench");
    for name in ["rows", "gates"] {
        let mut suite = TestSuite::new(name);
        suite.add_test_cases(judged.cases.iter().filter(|c| c.suite == name).map(test_case));
        if suite.test_cases.is_empty() {
            continue;
        }
        report.add_test_suite(suite);
    }
    let text = report.to_string().map_err(|e| Failure::failed(format!("junit.xml: {e}")))?;
    folder.write("junit.xml", &text)
}

fn test_case(case: &Case) -> TestCase {
    let text = crate::units::shown(&case.text);
    let status = match case.state {
        State::Passed => TestCaseStatus::success(),
        State::Failed => {
            TestCaseStatus::non_success(NonSuccessKind::Failure).set_message(text.as_str()).clone()
        }
        State::NoVerdict => TestCaseStatus::skipped().set_message(text.as_str()).clone(),
    };
    let mut test = TestCase::new(case.name.as_str(), status);
    test.set_classname(format!("llmopt.{}", case.suite)).set_system_out(text);
    test
}

/// Appends the short report to the page that GitHub shows for a job; a page that cannot be written is not worth a failure.
pub fn summary_page(result: &BenchResult, analysis: &Analysis, gate: &[String]) {
    if let Some(path) = step_summary() {
        let text = speedup::summary(result, analysis, gate).render(ReportFormat::Md, 80);
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        let _ = file.and_then(|mut f| std::io::Write::write_all(&mut f, text.as_bytes()));
    }
}

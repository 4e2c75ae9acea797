//! Results files side by side.

use super::{Args, pretty, show};
use crate::bench::result_diff::{self, Results};
use crate::cli::Failure;
use crate::cli::files::Touched;
use crate::cli::results::Folder;
use crate::report::{self, ReportFormat};
use std::path::Path;

/// Lines them up with the first one.
pub fn files(args: &Args) -> Result<u8, Failure> {
    let mut touched = Touched::default();
    for path in args.what.iter().map(Path::new) {
        touched.reads("", path);
        touched.reads("", &path.join("result.json"));
    }
    touched.writes_standard_output();
    touched.check()?;
    let results: Vec<Results> = args
        .what
        .iter()
        .map(|w| Results::read(Path::new(w)))
        .collect::<Result<_, _>>()
        .map_err(Failure::usage)?;
    let diff = result_diff::difference(&results).map_err(Failure::usage)?;
    let report = report::result_diff::report(&diff);
    let json = serde_json::to_value(&diff).unwrap_or_default();
    if let Some(out) = &args.out {
        let folder = Folder::new(out, "line-up")?;
        folder.write("compare.csv", &report.render(ReportFormat::Csv, 0))?;
        folder.write("result.json", &pretty(&json))?;
        folder.write("report.md", &report.render(ReportFormat::Md, 0))?;
        folder.write("report.html", &report.page())?;
    }
    show(args.format, &report, &json)?;
    Ok(0)
}

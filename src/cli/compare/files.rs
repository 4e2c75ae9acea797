//! Results files side by side.

use super::{Args, pretty, show};
use crate::bench::lineup::{self, Results};
use crate::cli::Failure;
use crate::cli::files::Touched;
use crate::cli::results::Folder;
use crate::report::{self, Format};
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
    let results: Vec<Results> =
        args.what.iter().map(|w| Results::read(Path::new(w))).collect::<Result<_, _>>().map_err(Failure::usage)?;
    let lined_up = lineup::line_up(&results).map_err(Failure::usage)?;
    let report = report::lineup::report(&lined_up);
    let json = serde_json::to_value(&lined_up).unwrap_or_default();
    if let Some(out) = &args.out {
        let folder = Folder::new(out, "line-up")?;
        folder.write("compare.csv", &report.render(Format::Csv, 0))?;
        folder.write("result.json", &pretty(&json))?;
        folder.write("report.md", &report.render(Format::Md, 0))?;
        folder.write("report.html", &report.page())?;
    }
    show(args.format, &report, &json)?;
    Ok(0)
}

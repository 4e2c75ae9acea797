//! Fresh processes of this program: what warm-up is worth to the first request, load time, peak memory. In: this program's own command
//! line. Out: [`Start`]s. The parent starts pairs of children in random order; a child reports one line of JSON on its standard output.

use super::result::Start;
use super::trial::{self, BenchError};
use crate::bench::statistics::Random;
use crate::optimizations::Set;
use crate::pipeline::{Control, LoadedModel, Options, Pipeline, PipelineConfig, Prompt};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

/// What a child says.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ProcessReport {
    /// Seconds from the start of the process to the first request.
    pub ready_s: f64,
    /// Seconds of the first request.
    pub first_s: f64,
    /// Seconds of the second.
    pub second_s: f64,
    /// Resident memory's high-water mark, bytes.
    pub peak_rss: Option<u64>,
}

/// The child's part: two requests, one after the other. `begun`: when the process began.
pub fn measure(
    loaded: &Arc<LoadedModel>,
    config: &PipelineConfig,
    options: &Options,
    prompts: &[Prompt],
    begun: Instant,
    control: &Control,
) -> Result<ProcessReport, BenchError> {
    let mut pipeline = Pipeline::new(loaded, config, options)?;
    let ready_s = begun.elapsed().as_secs_f64();
    let mut requests = prompts.iter().cycle().map(|prompt| {
        let mut prompt = prompt.clone();
        prompt.generation.max_tokens = prompt.generation.max_tokens.min(4);
        trial::answer(&mut pipeline, 0, &[prompt], control).map(|t| t.sample.seconds)
    });
    let mut next = || requests.next().unwrap_or(Err(BenchError::Workload("no prompts".into())));
    let (first_s, second_s) = (next()?, next()?);
    Ok(ProcessReport {
        ready_s,
        first_s,
        second_s,
        peak_rss: crate::machine::peak_rss().map(|b| b.0),
    })
}

/// How to start a child: the program, and the arguments to which the set of optimizations is appended.
#[derive(Debug, Clone)]
pub struct FreshProcess {
    /// This program.
    pub program: std::path::PathBuf,
    /// Everything but the set.
    pub args: Vec<std::ffi::OsString>,
}

impl FreshProcess {
    fn run(&self, set: Set) -> Result<ProcessReport, BenchError> {
        let failed = |why: String| {
            BenchError::Failed(format!(
                "a fresh process of this program failed: {}",
                crate::units::shown(&why)
            ))
        };
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .arg(set.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let output = command.output().map_err(|e| failed(e.to_string()))?;
        if !output.status.success() {
            return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_string()));
        }
        serde_json::from_slice(&output.stdout).map_err(|e| failed(e.to_string()))
    }

    /// `pairs` times each of these configurations in random order. Stops early, after whole pairs, when `enough` says so.
    pub fn pairs(
        &self,
        what: &[(&str, Set)],
        pairs: usize,
        random: &mut Random,
        enough: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Vec<Start>, BenchError> {
        let mut starts = Vec::new();
        for pair in 0..pairs {
            if enough(pair) {
                break;
            }
            let mut order: Vec<&(&str, Set)> = what.iter().collect();
            random.shuffle(&mut order);
            for (name, set) in order {
                let ProcessReport { ready_s, first_s, second_s, peak_rss } = self.run(*set)?;
                starts.push(Start {
                    pair,
                    what: name.to_string(),
                    ready_s,
                    first_s,
                    second_s,
                    peak_rss,
                });
            }
        }
        Ok(starts)
    }
}

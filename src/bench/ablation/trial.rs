//! One trial: one configuration answers one slice, from an empty answer cache and prefix tree. In: a pipeline and prompts. Out: a
//! [`Trial`]. The caller keeps pipelines and weights; nothing is packed or warmed here.

use super::answers::AnswerTokens;
use super::result::Sample;
use crate::engine::FinishReason;
use crate::machine::Activity;
use crate::pipeline::{
    Answer, Control, Ended, Input, Latencies, Order, Pipeline, PipelineError, Prompt,
};
use std::ops::ControlFlow;

/// What a trial gives.
pub struct Trial {
    /// Counts and times.
    pub sample: Sample,
    /// The answers in the order of the prompts.
    pub answers: Vec<AnswerTokens>,
    /// Distributions of its latencies.
    pub latencies: Latencies,
}

/// Why a bench cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The pipeline failed.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// A prompt of the workload got no answer: what is measured would not be what is meant.
    #[error("{0}")]
    Workload(String),
    /// A file could not be written, or a child process failed.
    #[error("{0}")]
    Failed(String),
    /// Told to stop.
    #[error("interrupted")]
    Interrupted,
    /// The time budget is used up.
    #[error("the time was over before two rounds were measured")]
    TimeOver,
}

/// Runs one. `config` is only written into the sample.
pub fn run(
    pipeline: &mut Pipeline,
    config: usize,
    prompts: &[Prompt],
    control: &Control,
) -> Result<Trial, BenchError> {
    pipeline.reset();
    answer(pipeline, config, prompts, control)
}

/// The same without emptying cache and prefixes first.
pub fn answer(
    pipeline: &mut Pipeline,
    config: usize,
    prompts: &[Prompt],
    control: &Control,
) -> Result<Trial, BenchError> {
    let before = Activity::now();
    let mut answers: Vec<Answer> = Vec::with_capacity(prompts.len());
    // Owned: the pipeline reads ahead on a thread of its own.
    let source: Vec<Input> =
        prompts.iter().cloned().map(|prompt| Input::Prompt(prompt, ())).collect();
    let report =
        pipeline.run(source.into_iter(), Order::Finished, control, &mut |answer, ()| {
            answers.push(answer);
            ControlFlow::Continue(())
        })?;
    let busy = before.and_then(|b| Activity::now()?.since(&b));
    match &report.ended {
        Ended::Complete => {}
        Ended::SourceFailed(why) => return Err(BenchError::Workload(why.message.clone())),
        Ended::Stopped => return Err(BenchError::Interrupted),
        Ended::Deadline => return Err(BenchError::TimeOver),
    }
    answers.sort_by_key(|a| a.index);
    if let Some(bad) = answers.iter().find(|a| a.error.is_some()) {
        let why = bad.error.as_ref().map(|e| e.message.as_str()).unwrap_or_default();
        return Err(BenchError::Workload(format!(
            "prompt {}: {why}; leave it out of the workload",
            crate::units::shown(&bad.id)
        )));
    }
    if answers.len() != prompts.len() {
        return Err(BenchError::Workload(format!(
            "{} answers to {} prompts",
            answers.len(),
            prompts.len()
        )));
    }
    let sample = Sample {
        config,
        seconds: report.wall_s,
        prompt_tokens: report.prompt_tokens,
        completion_tokens: report.completion_tokens,
        generated_tokens: report.generated_tokens,
        cached: report.cached,
        cached_rows: answers.iter().filter(|a| a.cached).map(|a| a.forward_rows as u64).sum(),
        early: answers.iter().filter(|a| a.finish_reason != FinishReason::Length).count() as u64,
        answers: report.answers,
        stages: report.stages,
        stolen: busy.map(|b| b.stolen),
        others: busy.map(|b| b.others),
    };
    let answers =
        answers.into_iter().map(|a| AnswerTokens { id: a.id, tokens: a.tokens }).collect();
    Ok(Trial { sample, answers, latencies: report.latencies })
}

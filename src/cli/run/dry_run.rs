//! `--dry-run`: what answering would take, without answering. In: the inputs, the loaded model. Out: the first prompt as the model gets it,
//! counts of prompts and tokens, and a time from a few prompts that are answered and thrown away.

use super::Run;
use super::load::presentable;
use crate::cli::Failure;
use crate::cli::failure::status;
use crate::cli::inputs::Inputs;
use crate::pipeline::{Content, Generation, Input, LoadedModel, Order, Pipeline, Prompt, clipped};
use crate::text::ToEncode;
use crate::units::{self, counted};
use std::ops::ControlFlow;
use std::sync::Arc;

/// The most letters of a prompt that are shown.
const SHOWN: usize = 2000;

/// A prompt for people, each of its lines moved in.
fn shown_prompt(id: &str, content: &Content) -> Vec<String> {
    let text = match content {
        Content::Text(text) | Content::Completion(text) => text.clone(),
        Content::Messages(messages) => messages
            .iter()
            .map(|m| format!("[{}] {}", m.role, m.content))
            .collect::<Vec<_>>()
            .join("\n"),
    };
    let mut lines = vec![format!("llmopt: the first prompt, {}:", units::shown(id))];
    let cut: String = text.chars().take(SHOWN).collect();
    lines.extend(cut.lines().map(|line| format!("    {}", units::shown(line))));
    if cut.len() < text.len() {
        lines.push("    …".to_string());
    }
    lines
}

impl Run<'_> {
    /// Counts prompts and tokens, times a few, and says what the whole would take.
    pub fn dry_run(
        &mut self,
        inputs: Inputs,
        loaded: &Arc<LoadedModel>,
        mut pipeline: Pipeline,
    ) -> Result<u8, Failure> {
        let context = loaded.model.spec.context;
        let (mut prompts, mut errors, mut tokens, mut most) = (0u64, 0u64, 0u64, 0u64);
        let mut sample = Vec::new();
        let mut first = None;
        let records = inputs.records(self.flags.clone(), |_| ());
        for record in records {
            let (_, prompt) = record?;
            let prompt =
                prompt.and_then(|p| presentable(p, loaded.prompt_encoder().has_template()));
            let ids = prompt.as_ref().ok().and_then(|p| {
                let g = &p.generation;
                let prompt = ToEncode {
                    content: &p.content,
                    system: g.system.as_deref(),
                    raw: g.raw,
                    turn: &g.turn,
                };
                let ids = loaded.prompt_encoder().prompt_ids_batch(&[prompt]).pop()?;
                ids.ok().filter(|ids| ids.len() < context)
            });
            prompts += 1;
            if let Ok(prompt) = &prompt
                && first.is_none()
            {
                first = Some(shown_prompt(&prompt.id, &prompt.content));
            }
            let (Some(ids), Ok(prompt)) = (ids, prompt) else {
                errors += 1;
                continue;
            };
            tokens += ids.len() as u64;
            most += clipped(prompt.generation.max_tokens, ids.len(), context) as u64;
            if sample.len() < self.config.sizes.batch {
                let generation = Generation { max_tokens: 16, ..prompt.generation };
                sample.push(Input::Prompt(Prompt { generation, ..prompt }, ()));
            }
        }
        self.console.release();
        first.into_iter().flatten().for_each(|line: String| self.console.say(line));
        let errors =
            if errors > 0 { format!(" ({errors} cannot be answered)") } else { String::new() };
        self.console.say(format!(
            "llmopt: {}{errors}, {}, at most {}",
            counted(prompts, "prompt"),
            counted(tokens, "prompt token"),
            counted(most, "answer token")
        ));
        if sample.is_empty() {
            return Ok(status::DONE);
        }
        let report =
            pipeline.run(sample.into_iter(), Order::Finished, &self.control, &mut |_, ()| {
                ControlFlow::Continue(())
            })?;
        let stages = &report.stages;
        let per_row =
            |stage, rows: u64| if rows == 0 { 0.0 } else { stages.of(stage) / rows as f64 };
        let prefill = per_row(crate::engine::Stage::Prefill, stages.prefill_rows);
        let decode = per_row(crate::engine::Stage::Decode, stages.decode_rows);
        let estimate = prefill * tokens as f64 + decode * most as f64;
        self.console.say(format!(
            "llmopt: at most about {} ({} prompt tokens/s and {} answer tokens/s, timed on a few \
             prompts; answers that end early and repeated prompts take less)",
            units::seconds(estimate),
            units::rate(if prefill > 0.0 { 1.0 / prefill } else { 0.0 }),
            units::rate(if decode > 0.0 { 1.0 / decode } else { 0.0 }),
        ));
        Ok(status::DONE)
    }
}

//! Stock candle-transformers (f32) behind our own loop: a baseline that others wrote, beside the emulated one. In: a loaded model and
//! slices. Out: seconds per slice. One sequence after the other, as candle's model runs them; sampling, tokens and limits as everywhere.

use super::trial::BenchError;
use crate::decoder::Decoder;
use crate::decoder::candle::CandleDecoder;
use crate::engine::{
    BatchingPolicy, Engine, EngineConfig, Event, PaddingPolicy, PrefixPolicy, Request,
    SamplingPolicy, StoppingPolicy, TextDecoder,
};
use crate::pipeline::{Control, LoadedModel, PipelineError, Prompt, Stopping, clipped};
use std::sync::Arc;
use std::time::Instant;

/// candle's model in our engine: every audit row off but `mask` (there is nothing to pad) and `precision`.
pub struct Candle {
    loaded: Arc<LoadedModel>,
    engine: Engine,
}

impl Candle {
    /// Dequantizes the weights to f32 and builds candle's model.
    pub fn new(loaded: &Arc<LoadedModel>, batch: usize) -> Result<Candle, BenchError> {
        let model = &loaded.model;
        let decoder = CandleDecoder::new(&model.spec, model.weights.as_ref(), batch)
            .map_err(PipelineError::from)?;
        let config = EngineConfig {
            sampling: SamplingPolicy::AlwaysSample,
            stopping: StoppingPolicy::MaxTokensOnly,
            padding: PaddingPolicy::Ragged,
            batching: BatchingPolicy::Blocking,
            prefix: PrefixPolicy::Recompute,
            batch,
            chunk: decoder.capacity().rows,
            eos: model.vocabulary.eos.clone().into(),
            fast_forward: true,
            mask_threads: 1,
        };
        let text = loaded.clone();
        let text = Box::new(move || {
            Box::new(text.prompt_encoder().tokenizer().detokenizer()) as Box<dyn TextDecoder>
        });
        Ok(Candle { loaded: loaded.clone(), engine: Engine::new(Box::new(decoder), config, text) })
    }

    /// Seconds for a slice and tokens generated.
    pub fn run(&mut self, prompts: &[Prompt], control: &Control) -> Result<(f64, u64), BenchError> {
        let begin = Instant::now();
        for (ticket, prompt) in prompts.iter().enumerate() {
            let Prompt { content, generation, .. } = prompt;
            let ids = self.loaded.prompt_encoder().prompt_ids(
                content,
                generation.system.as_deref(),
                generation.raw,
            );
            let ids = ids.map_err(|e| BenchError::Workload(e.to_string()))?;
            self.engine.submit(Request {
                ticket: ticket as u64,
                max_tokens: clipped(
                    generation.max_tokens,
                    ids.len(),
                    self.loaded.model.spec.context,
                ),
                prompt: ids.into(),
                sampling: generation.sampling,
                stop: Arc::new(generation.stop.clone()),
                extras: Arc::default(),
            });
        }
        let (mut left, mut tokens, mut events) = (prompts.len(), 0, Vec::new());
        while left > 0 {
            if control.stopping() != Stopping::No {
                self.engine.cancel_all();
                return Err(BenchError::Interrupted);
            }
            if control.deadline.is_some_and(|d| Instant::now() >= d) {
                self.engine.cancel_all();
                return Err(BenchError::TimeOver);
            }
            events.clear();
            self.engine
                .step(&mut events)
                .map_err(|e| BenchError::Failed(format!("candle: {e}")))?;
            for event in &events {
                match event {
                    Event::Finished { completion, .. } => {
                        left -= 1;
                        tokens += completion.tokens.len() as u64;
                    }
                    Event::Failed { message, .. } => {
                        return Err(BenchError::Failed(format!("candle: {message}")));
                    }
                    Event::Admitted { .. } | Event::Token { .. } => {}
                }
            }
        }
        Ok((begin.elapsed().as_secs_f64(), tokens))
    }
}

//! candle-transformers' f32 `llama` on dequantized weights, behind the [`Decoder`] trait: the oracle that parity tests compare with
//! and the stock baseline of benchmarks. In and out: as [`super::Decoder`]. It runs one sequence after the other, shares nothing and
//! does no work on padding. Never candle's `quantized_llama`: its answers are wrong for the default model in q4_1 and q8_0.

use super::{Batch, Capacity, DecodeError, Decoder, LogitsOutput, LogitsRequest, Opened, Slot};
use crate::kernels::Format;
use crate::model::{
    Activation, Attention, Ffn, LayerSpec, Mixer, ModelError, ModelSpec, Norm, NormKind, Norms,
    Role, Rope, Weights, llama_name, roles,
};
use crate::units::TokenId;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama, LlamaConfig};
use std::collections::HashMap;

/// See the module's head.
pub struct CandleDecoder {
    spec: ModelSpec,
    llama: Llama,
    /// An empty cache, with its rotary tables: what every sequence starts from.
    empty: Cache,
    open: Vec<Option<Sequence>>,
}

#[derive(Clone)]
struct Sequence {
    cache: Cache,
    room: usize,
    done: usize,
}

impl CandleDecoder {
    /// Dequantizes every weight to f32 and builds candle's model for at most `slots` sequences. Refuses specs that candle's
    /// `llama` cannot express.
    pub fn new(
        spec: &ModelSpec,
        weights: &dyn Weights,
        slots: usize,
    ) -> Result<CandleDecoder, ModelError> {
        let refuse = |what: &str| {
            Err(ModelError::Invalid(format!(
                "candle's llama knows no {what}; use the native decoder"
            )))
        };
        let sizes = match Sizes::of(spec) {
            Ok(sizes) => sizes,
            Err(what) => return refuse(what),
        };
        let config = config(spec, &sizes);
        let broken = |e: candle_core::Error| {
            ModelError::Invalid(format!("candle cannot build the model: {e}"))
        };
        let tensors = tensors(spec, &sizes, weights)?;
        let builder = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let llama = Llama::load(builder, &config).map_err(broken)?;
        let empty = Cache::new(true, DType::F32, &config, &Device::Cpu).map_err(broken)?;
        Ok(CandleDecoder {
            spec: spec.clone(),
            llama,
            empty,
            open: (0..slots).map(|_| None).collect(),
        })
    }

    /// Scores after the last of these tokens.
    fn run(
        &self,
        tokens: &[TokenId],
        start: usize,
        cache: &mut Cache,
    ) -> candle_core::Result<Vec<f32>> {
        let input = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        self.llama.forward(&input, start, cache)?.flatten_all()?.to_vec1::<f32>()
    }

    fn segment(
        &self,
        tokens: &[TokenId],
        logits: LogitsRequest,
        sequence: &mut Sequence,
    ) -> candle_core::Result<LogitsOutput> {
        let start = sequence.done;
        sequence.done += tokens.len();
        if logits == LogitsRequest::AllLogits {
            // candle gives the last row's scores only, so the rows run one by one.
            let rows = tokens
                .iter()
                .enumerate()
                .map(|(i, &t)| self.run(&[t], start + i, &mut sequence.cache));
            return Ok(LogitsOutput::Logits(
                rows.collect::<candle_core::Result<Vec<_>>>()?.concat(),
            ));
        }
        let scores = self.run(tokens, start, &mut sequence.cache)?;
        let ranked = |k: usize| {
            let mut all: Vec<(TokenId, f32)> =
                scores.iter().enumerate().map(|(id, &s)| (id as TokenId, s)).collect();
            all.sort_by(|a, b| {
                b.1.partial_cmp(&a.1).unwrap_or(std::cmp::Ordering::Equal).then(a.0.cmp(&b.0))
            });
            all.truncate(k);
            all
        };
        Ok(match logits {
            LogitsRequest::Nothing => LogitsOutput::Nothing,
            LogitsRequest::Argmax => ranked(1)
                .first()
                .map_or(LogitsOutput::Nothing, |&(id, score)| LogitsOutput::Argmax(id, score)),
            LogitsRequest::TopK(k) => LogitsOutput::TopK(ranked(k)),
            LogitsRequest::Logits | LogitsRequest::AllLogits => LogitsOutput::Logits(scores),
            LogitsRequest::LogitsAndArgmax => match ranked(1).first() {
                Some(&(id, _)) => LogitsOutput::LogitsAndArgmax(scores, id),
                None => LogitsOutput::Nothing,
            },
        })
    }
}

/// What candle's llama is made of.
struct Sizes {
    heads: usize,
    kv_heads: usize,
    ffn: usize,
    epsilon: f32,
    theta: f32,
}

impl Sizes {
    /// The sizes of a spec, or what it has that candle's llama has not.
    fn of(spec: &ModelSpec) -> Result<Sizes, &'static str> {
        let ModelSpec {
            architecture: _,
            hidden,
            vocab: _,
            context: _,
            layers,
            norm,
            ropes,
            embedding_scale,
            query_growth,
            logit_scale,
            logit_softcap,
            output_bias,
            tied_embeddings: _,
        } = spec;
        let first = layers.first().ok_or("model without layers")?;
        if layers.iter().any(|layer| layer != first) {
            return Err("layers that differ");
        }
        let LayerSpec { mixer: Mixer::Attention(attention), ffn, norms, residual_scale } = first
        else {
            return Err("layers without attention");
        };
        let Attention {
            heads,
            kv_heads,
            head_dim,
            qkv_bias,
            output_bias: o_bias,
            qk_norm,
            rope,
            window,
            scale,
            softcap,
            sinks,
            gate,
        } = *attention;
        let Ffn::Gated {
            width,
            activation: Activation::Silu,
            input_bias: false,
            output_bias: false,
        } = *ffn
        else {
            return Err("feed-forward part but SwiGLU without biases");
        };
        let Norm { kind: NormKind::Rms, epsilon, weights: true, bias: false } = *norm else {
            return Err("norm but RMS with weights");
        };
        let Some(Rope { theta, dims, factors, magnitude, long: None }) =
            rope.and_then(|rope| ropes.get(rope))
        else {
            return Err("layers without positions, or positions that depend on the length");
        };
        match () {
            _ if head_dim * heads != *hidden => {
                Err("heads whose widths do not add up to the hidden size")
            }
            _ if *dims != head_dim => Err("partial rotation"),
            _ if !factors.is_empty() || *magnitude != 1.0 => Err("rotary factors"),
            _ if gate => Err("gates of attention"),
            _ if qkv_bias || o_bias || *output_bias => Err("biases"),
            _ if qk_norm.is_some() => Err("norms of queries and keys"),
            _ if window.is_some() || sinks => Err("sliding windows or sinks"),
            _ if softcap.is_some() || logit_softcap.is_some() => Err("soft caps"),
            _ if *norms != Norms::Before => Err("norms that are not before each branch"),
            _ if *residual_scale != 1.0 || *embedding_scale != 1.0 || *logit_scale != 1.0 => {
                Err("scales")
            }
            _ if query_growth.is_some() || scale != 1.0 / (head_dim as f32).sqrt() => {
                Err("scales of queries")
            }
            _ => Ok(Sizes { heads, kv_heads, ffn: width, epsilon, theta: *theta }),
        }
    }
}

fn config(spec: &ModelSpec, sizes: &Sizes) -> Config {
    let config = LlamaConfig {
        hidden_size: spec.hidden,
        intermediate_size: sizes.ffn,
        vocab_size: spec.vocab,
        num_hidden_layers: spec.layers.len(),
        num_attention_heads: sizes.heads,
        num_key_value_heads: Some(sizes.kv_heads),
        rms_norm_eps: f64::from(sizes.epsilon),
        rope_theta: sizes.theta,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: None,
        // It compares the number of heads with this before it cuts its cache (`k.dims()[1]`), so it must not be tiny.
        max_position_embeddings: spec.context.max(sizes.heads),
        tie_word_embeddings: Some(spec.tied_embeddings),
    };
    config.into_config(false)
}

/// Every weight in f32 under its Hugging Face name, query and key rows in half-split rotary order.
fn tensors(
    spec: &ModelSpec,
    sizes: &Sizes,
    weights: &dyn Weights,
) -> Result<HashMap<String, Tensor>, ModelError> {
    let mut all = HashMap::new();
    let mut add = |name: String, role: Role, heads: Option<usize>| -> Result<(), ModelError> {
        let (rows, columns) = weights.shape(role);
        let mut bytes = Vec::new();
        weights.read(role, 0..rows, Format::F32, &mut bytes)?;
        let values: Vec<f32> =
            bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let tensor = || -> candle_core::Result<Tensor> {
            if rows == 1 {
                return Tensor::from_vec(values, columns, &Device::Cpu);
            }
            let tensor = Tensor::from_vec(values, (rows, columns), &Device::Cpu)?;
            match heads {
                // Rows (2i, 2i + 1) of a head become rows i and i + head_dim / 2.
                Some(heads) => tensor
                    .reshape((heads, rows / heads / 2, 2, columns))?
                    .transpose(1, 2)?
                    .contiguous()?
                    .reshape((rows, columns)),
                None => Ok(tensor),
            }
        };
        all.insert(
            name,
            tensor().map_err(|e| ModelError::Invalid(format!("candle refuses a weight: {e}")))?,
        );
        Ok(())
    };
    for (role, _) in roles(spec) {
        let heads = match role {
            Role::Query(_) => Some(sizes.heads),
            Role::Key(_) => Some(sizes.kv_heads),
            _ => None,
        };
        add(llama_name(role), role, heads)?;
    }
    Ok(all)
}

impl Decoder for CandleDecoder {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn capacity(&self) -> Capacity {
        // Its caches grow as they are used; only the model's context bounds them.
        let slots = self.open.len();
        Capacity { slots, positions: slots * self.spec.context, rows: slots * self.spec.context }
    }

    fn open(&mut self, _: &[TokenId], positions: usize, _: bool) -> Option<Opened> {
        let slot = self
            .open
            .iter()
            .position(Option::is_none)
            .filter(|_| positions <= self.spec.context)?;
        self.open[slot] = Some(Sequence { cache: self.empty.clone(), room: positions, done: 0 });
        Some(Opened { slot: Slot(slot), reused: 0 })
    }

    fn forward(
        &mut self,
        batch: &Batch,
        outputs: &mut Vec<LogitsOutput>,
    ) -> Result<(), DecodeError> {
        outputs.clear();
        // Tensors are shared, not copied, so the sequences as they were cost little to keep until all have succeeded.
        let mut advanced = Vec::with_capacity(batch.segments.len());
        for segment in &batch.segments {
            let tokens = &batch.tokens[segment.tokens.clone()];
            if tokens.is_empty() {
                outputs.push(LogitsOutput::Nothing);
                continue;
            }
            let Some(mut sequence) = self.open.get(segment.slot.0).cloned().flatten() else {
                return Err(DecodeError::Broken(format!("{:?} is not open", segment.slot)));
            };
            if segment.start != sequence.done || segment.start + tokens.len() > sequence.room {
                return Err(DecodeError::Broken(format!(
                    "{:?} cannot run positions from {}",
                    segment.slot, segment.start
                )));
            }
            let output = self.segment(tokens, segment.logits, &mut sequence);
            let output = output.map_err(|e| DecodeError::Broken(format!("candle: {e}")))?;
            let finite = match &output {
                LogitsOutput::Nothing => true,
                LogitsOutput::Argmax(_, score) => score.is_finite(),
                LogitsOutput::TopK(candidates) => candidates.iter().all(|c| c.1.is_finite()),
                LogitsOutput::Logits(scores) | LogitsOutput::LogitsAndArgmax(scores, _) => {
                    scores.iter().all(|s| s.is_finite())
                }
            };
            if !finite {
                return Err(DecodeError::NotFinite(segment.slot));
            }
            outputs.push(output);
            advanced.push((segment.slot, sequence));
        }
        for (slot, sequence) in advanced {
            self.open[slot.0] = Some(sequence);
        }
        Ok(())
    }

    fn close(&mut self, slot: Slot) {
        self.open[slot.0] = None;
    }

    fn clear_prefix_cache(&mut self) {}

    fn used_positions(&self) -> (usize, usize) {
        (self.open.iter().flatten().map(|s| s.room).sum(), 0)
    }

    fn kernels(&self) -> Vec<String> {
        vec!["candle-f32".into()]
    }
}

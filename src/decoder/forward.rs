//! The forward pass: the embedding, the layers by their blueprint, the scores of the rows that want them. A sequence of phases, each run
//! by all workers ([`crate::kernels::Team`]). It takes the blueprint apart without `..`: a field that is not computed here does not
//! compile, and what [`supported`] does not let through is refused.

use super::packed::{Layer, Packed, PackedModel};
use super::workspace::{Step, Workspace};
use super::{Batch, DecodeError, Output};
use crate::kernels::{self, Attending, COLUMNS, Context, KvArena, NormWeights, PAGE, Panels, Rotation, Scores, Scoring, Team};
use crate::model::{Activation, Attention, Ffn, LayerSpec, Mixer, ModelError, ModelSpec, Norm, NormKind, Norms, Rope};

/// Cosines and signed sines of one rope for the positions so far.
pub(super) struct Rotations {
    head_dim: usize,
    /// Angle a position turns each pair of a head by.
    frequencies: Vec<f64>,
    magnitude: f32,
    /// Of each position: cosines, then signed sines, `head_dim` each.
    table: Vec<f32>,
}

impl Rotations {
    /// Of a rope, for heads of this width; `None`: no positions.
    fn new(rope: Option<&Rope>, head_dim: usize) -> Rotations {
        let Some(Rope { theta, dims, factors, magnitude, long: _ }) = rope else {
            return Rotations { head_dim, frequencies: Vec::new(), magnitude: 1.0, table: Vec::new() };
        };
        let frequency = |i: usize| {
            let factor = factors.get(i).copied().unwrap_or(1.0) as f64;
            (*theta as f64).powf(-2.0 * i as f64 / *dims as f64) / factor
        };
        let frequencies = (0..dims / 2).map(frequency).collect();
        Rotations { head_dim, frequencies, magnitude: *magnitude, table: Vec::new() }
    }

    /// One for each of the model's ropes, and one without positions.
    pub(super) fn of(spec: &ModelSpec) -> Vec<Rotations> {
        let head_dim = spec.layers[0].attention().head_dim;
        spec.ropes.iter().map(Some).chain([None]).map(|rope| Rotations::new(rope, head_dim)).collect()
    }

    /// Extends the table to `positions` positions.
    pub(super) fn up_to(&mut self, positions: usize) {
        let hd = self.head_dim;
        for p in self.table.len() / (2 * hd)..positions {
            let from = self.table.len();
            self.table.resize(from + 2 * hd, 0.0);
            for d in 0..hd {
                let frequency = self.frequencies.get(d / 2);
                let (sin, cos) = frequency.map_or(0.0, |f| p as f64 * f).sin_cos();
                let magnitude = frequency.map_or(1.0, |_| self.magnitude as f64);
                let (sin, cos) = (sin * magnitude, cos * magnitude);
                self.table[from + d] = cos as f32;
                self.table[from + hd + d] = if d % 2 == 0 { -sin as f32 } else { sin as f32 };
            }
        }
    }
}

/// Refuses a blueprint that the phases here do not compute, by the name of what is missing.
pub(super) fn supported(spec: &ModelSpec) -> Result<(), ModelError> {
    let ModelSpec {
        architecture,
        hidden: _,
        vocab: _,
        context: _,
        layers,
        norm: Norm { kind, epsilon: _, weights, bias },
        ropes,
        embedding_scale,
        query_growth,
        logit_scale,
        logit_softcap,
        output_bias,
        tied_embeddings: _,
    } = spec;
    let refuse =
        |what: &str| Err(ModelError::Invalid(format!("this {architecture} model has {what}, which llmopt does not compute yet")));
    match () {
        _ if layers.is_empty() => return refuse("no layers"),
        _ if *kind != NormKind::Rms || !weights || *bias => return refuse("a norm that is not RMS with weights alone"),
        _ if ropes.iter().any(|r| r.long.is_some()) => return refuse("rotary factors that depend on the length (longrope)"),
        _ if *embedding_scale != 1.0 => return refuse("scaled embeddings"),
        _ if query_growth.is_some() => return refuse("query scales that grow with the position"),
        _ if *logit_scale != 1.0 => return refuse("scaled logits"),
        _ if logit_softcap.is_some() => return refuse("capped logits"),
        _ if *output_bias => return refuse("a bias of the output matrix"),
        _ => {}
    }
    let first = layers[0].attention();
    for LayerSpec { mixer, ffn, norms, residual_scale } in layers {
        let Mixer::Attention(Attention {
            heads,
            kv_heads,
            head_dim,
            qkv_bias,
            output_bias,
            qk_norm,
            rope: _,
            window,
            scale: _,
            softcap,
            sinks,
        }) = mixer;
        match () {
            _ if (*heads, *kv_heads, *head_dim) != (first.heads, first.kv_heads, first.head_dim) => {
                return refuse("layers with different heads");
            }
            _ if *qkv_bias || *output_bias => return refuse("biases of attention"),
            _ if qk_norm.is_some() => return refuse("norms of queries and keys"),
            _ if window.is_some() => return refuse("sliding windows"),
            _ if softcap.is_some() => return refuse("capped attention scores"),
            _ if *sinks => return refuse("attention sinks"),
            _ if *norms != Norms::Before => return refuse("norms that are not before each branch"),
            _ if *residual_scale != 1.0 => return refuse("scaled branches"),
            _ => {}
        }
        match *ffn {
            Ffn::Gated { width, activation: Activation::Silu, input_bias: false, output_bias: false } => {
                if width != layers[0].ffn.width() {
                    return refuse("feed-forward layers of different widths");
                }
            }
            _ => return refuse("a feed-forward part that is not SwiGLU without biases"),
        }
    }
    Ok(())
}

/// What a pass works with.
pub(super) struct Pass<'a> {
    pub model: &'a PackedModel,
    pub team: &'a mut Team,
    pub kv: &'a mut KvArena,
    pub step: &'a Step,
    pub rotations: &'a [Rotations],
    /// Each segment's pages.
    pub pages: Vec<&'a [u32]>,
    /// Keys and values are copied before attention reads them (the audit's growing cache).
    pub copies: bool,
}

impl Pass<'_> {
    /// Embeddings and all layers; leaves the residual stream in `w.x`.
    pub(super) fn layers(&mut self, batch: &Batch, w: &mut Workspace) {
        let (spec, rows) = (self.model.spec(), self.step.rows.len());
        let embedding = self.model.panels(&self.model.embedding);
        let tokens = &self.step.tokens;
        self.team.fill(&mut w.x, rows, spec.hidden, |r, row| embedding.row(tokens[r] as usize, row));
        for (l, (layer, LayerSpec { mixer, ffn, norms, residual_scale: _ })) in
            self.model.layers.iter().zip(&spec.layers).enumerate()
        {
            let Norms::Before = norms else { unreachable!("`supported` let {norms:?} through") };
            let Mixer::Attention(attention) = mixer;
            self.norm(&layer.attention_norm.weights, w);
            self.attention(batch, l, layer, attention, w);
            let m = panels_of(self.model, &layer.output, self.team, &mut w.wide);
            self.team.add_product(&m, &w.attended, rows, &mut w.x, None, 1.0);
            self.norm(&layer.ffn_norm.weights, w);
            self.ffn(layer, ffn, w);
        }
    }

    /// The residual stream's norm into `w.normed`.
    fn norm(&mut self, weights: &Option<Vec<f32>>, w: &mut Workspace) {
        let spec = self.model.spec();
        let Norm { kind: _, epsilon, weights: _, bias: _ } = spec.norm;
        let weights = weights.as_ref().expect("`supported` wants weights");
        self.team.norm(&w.x, None, self.step.rows.len(), &NormWeights::rms(weights, epsilon), spec.hidden, &mut w.normed);
    }

    /// Queries, keys and values of `w.normed`, and attention into `w.attended`.
    fn attention(&mut self, batch: &Batch, l: usize, layer: &Layer, spec: &Attention, w: &mut Workspace) {
        let Attention {
            heads,
            kv_heads: _,
            head_dim: _,
            qkv_bias: false,
            output_bias: false,
            qk_norm: None,
            rope,
            window: None,
            scale,
            softcap: None,
            sinks: false,
        } = *spec
        else {
            unreachable!("`supported` let {spec:?} through")
        };
        let (model, team, step) = (self.model, &mut *self.team, self.step);
        let table = &self.rotations[rope.unwrap_or(self.rotations.len() - 1)].table;
        let rotation = Rotation { table, scale };
        {
            let [q, k, v] = [&layer.query, &layer.key, &layer.value].map(|m| model.panels(m));
            let (q, k, v) = if model.emulated() {
                let (first, rest) = w.wide.split_at_mut(wide_floats(&q));
                let (second, third) = rest.split_at_mut(wide_floats(&k));
                (team.widen(&q, first), team.widen(&k, second), team.widen(&v, third))
            } else {
                (q, k, v)
            };
            team.qkv([&q, &k, &v], [None; 3], &w.normed, &step.rows, &rotation, self.kv, l, &mut w.queries);
        }
        let mut copies: Vec<Vec<u8>> = Vec::new();
        if self.copies {
            copies.resize(self.pages.len(), Vec::new());
            let (kv, pages) = (&*self.kv, &self.pages);
            team.chunks(&mut copies, 1, |s, copy| {
                let segment = &batch.segments[s];
                let used = (segment.start + segment.tokens.len()).div_ceil(PAGE).max(1);
                copy[0] = kv.copy_layer(l, &pages[s][..used]);
            });
        }
        let contexts: Vec<Context> = match self.copies {
            false => self.pages.iter().map(|p| Context::Pages(p)).collect(),
            true => copies.iter().map(|c| Context::Copy(c)).collect(),
        };
        team.attention(&step.units, &step.rows, &contexts, self.kv, l, Attending::plain(heads), &w.queries, &mut w.attended);
    }

    /// The feed-forward part of `w.normed`, added to the residual stream.
    fn ffn(&mut self, layer: &Layer, ffn: &Ffn, w: &mut Workspace) {
        let Ffn::Gated { width: _, activation: Activation::Silu, input_bias: false, output_bias: false } = *ffn else {
            unreachable!("`supported` let {ffn:?} through")
        };
        let rows = self.step.rows.len();
        let m = panels_of(self.model, &layer.gate_up, self.team, &mut w.wide);
        self.team.gate_up(&m, &w.normed, rows, kernels::Activation::Silu, &mut w.product);
        let m = panels_of(self.model, &layer.down, self.team, &mut w.wide);
        self.team.add_product(&m, &w.product, rows, &mut w.x, None, 1.0);
    }

    /// Scores of the rows that want them.
    pub(super) fn score(&mut self, batch: &Batch, w: &mut Workspace, outputs: &mut Vec<Output>) -> Result<(), DecodeError> {
        let (model, team, step) = (self.model, &mut *self.team, self.step);
        let spec = model.spec();
        let Norm { kind: _, epsilon, weights: _, bias: _ } = spec.norm;
        let mut logits: Vec<Vec<f32>> = batch
            .segments
            .iter()
            .map(|s| match s.want {
                super::Want::Logits => vec![0.0; spec.vocab],
                super::Want::AllLogits => vec![0.0; spec.vocab * s.tokens.len()],
                _ => Vec::new(),
            })
            .collect();
        let scores = if step.scored.is_empty() {
            Vec::new()
        } else {
            let weights = model.output_norm.weights.as_ref().expect("`supported` wants weights");
            team.norm(&w.x, Some(&step.scored), step.scored.len(), &NormWeights::rms(weights, epsilon), spec.hidden, &mut w.last);
            let mut places: Vec<_> = logits.iter_mut().map(|l| l.chunks_exact_mut(spec.vocab)).collect();
            let mut wants = Vec::with_capacity(step.scored.len());
            for &s in &step.scored_for {
                wants.push(match batch.segments[s].want {
                    super::Want::Argmax => crate::kernels::Want::Argmax,
                    super::Want::TopK(k) => crate::kernels::Want::TopK(k),
                    _ => match places[s].next() {
                        Some(place) => crate::kernels::Want::All(place),
                        None => return Err(DecodeError::Broken("a row without a place for its scores".to_string())),
                    },
                });
            }
            let m = panels_of(model, &model.output, team, &mut w.wide);
            team.head(&m, &w.last, &Scoring::PLAIN, &mut wants)
        };
        if let Some(i) = scores.iter().position(|s| *s == Scores::NotFinite) {
            return Err(DecodeError::NotFinite(batch.segments[step.scored_for[i]].slot));
        }
        let mut scores = scores.into_iter();
        for (segment, logits) in batch.segments.iter().zip(logits) {
            let rows = match segment.want {
                super::Want::Nothing => 0,
                super::Want::AllLogits => segment.tokens.len(),
                _ => 1,
            };
            let last = scores.by_ref().take(rows).last();
            outputs.push(match (segment.want, last) {
                (super::Want::Nothing, _) => Output::Nothing,
                (super::Want::Logits | super::Want::AllLogits, _) => Output::Logits(logits),
                (_, Some(Scores::Argmax(id, score))) => Output::Argmax(id, score),
                (_, Some(Scores::TopK(best))) => Output::TopK(best),
                (want, got) => return Err(DecodeError::Broken(format!("{want:?} was answered with {got:?}"))),
            });
        }
        Ok(())
    }
}

/// Floats of a widened matrix, with room to align it.
fn wide_floats(m: &Panels) -> usize {
    m.wide_floats() + COLUMNS
}

/// A matrix as the kernels take it: as packed, or widened anew under the emulated dtype.
fn panels_of<'a>(model: &'a PackedModel, m: &Packed, team: &mut Team, wide: &'a mut [f32]) -> Panels<'a> {
    let panels = model.panels(m);
    if model.emulated() { team.widen(&panels, wide) } else { panels }
}

//! The forward pass: the embedding, the layers by their spec, the scores of the rows that want them. A sequence of phases, each run
//! by all workers ([`crate::kernels::Team`]). It takes the spec apart without `..`: a field that is not computed here does not
//! compile, and what [`supported`] does not let through is refused.
//! Over 500 lines: one pass over the layers in its order; mixtures and layers with a state have files of their own.

use super::packed::{
    AttentionWeights, DenseWeights, FfnInput, FfnWeights, MixerWeights, NormWeights, Packed,
    PackedModel,
};
use super::workspace::{AttentionWorkspace, FfnWorkspace, Step, Workspace, shape_of};
use super::{Batch, DecodeError, LogitsOutput};
use crate::kernels::{
    self, Activations, Attending, COLUMNS, Context, HeadsBy, KvArena, PAGE, Panels, Rotation,
    Scores, Scoring, StateArena, Team,
};
use crate::model::{
    Activation, Attention, DeltaNet, Ffn, LayerSpec, LongRope, Mixer, ModelSpec, Norm, NormKind,
    Norms, QkNorm, QueryGrowth, Rope,
};

/// Cosines and signed sines of one rope for the positions so far.
pub(super) struct Rotations {
    /// Index of the rope; `None`: no positions.
    rope: Option<usize>,
    head_dim: usize,
    /// Angle a position turns each pair of a head by.
    frequencies: Vec<f64>,
    magnitude: f32,
    /// Of each position: cosines, then signed sines, `head_dim` each.
    table: Vec<f32>,
}

impl Rotations {
    /// Of a rope, for heads of this width; `None`: no positions. `long`: for sequences longer than its first set serves.
    fn new(spec: &ModelSpec, rope: Option<usize>, head_dim: usize, long: bool) -> Rotations {
        let Some(Rope { theta, dims, factors, magnitude, long: other }) =
            rope.and_then(|rope| spec.ropes.get(rope))
        else {
            return Rotations {
                rope,
                head_dim,
                frequencies: Vec::new(),
                magnitude: 1.0,
                table: Vec::new(),
            };
        };
        let (factors, magnitude) = match other {
            Some(LongRope { above: _, factors, magnitude }) if long => (factors, magnitude),
            _ => (factors, magnitude),
        };
        let frequency = |i: usize| {
            let factor = factors.get(i).copied().unwrap_or(1.0) as f64;
            (*theta as f64).powf(-2.0 * i as f64 / *dims as f64) / factor
        };
        let frequencies = (0..dims / 2).map(frequency).collect();
        Rotations { rope, head_dim, frequencies, magnitude: *magnitude, table: Vec::new() }
    }

    /// One for each rope and width of heads that layers have.
    pub(super) fn of(spec: &ModelSpec, long: bool) -> Vec<Rotations> {
        let mut all: Vec<Rotations> = Vec::new();
        for attention in spec.layers.iter().filter_map(LayerSpec::attention) {
            if Rotations::find(&all, attention).is_none() {
                all.push(Rotations::new(spec, attention.rope, attention.head_dim, long));
            }
        }
        all
    }

    /// Those of a layer.
    fn find<'a>(all: &'a [Rotations], attention: &Attention) -> Option<&'a Rotations> {
        all.iter().find(|r| (r.rope, r.head_dim) == (attention.rope, attention.head_dim))
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

/// An activation as the kernels have it.
pub(super) fn kernel_activation(activation: Activation) -> kernels::ActivationFn {
    match activation {
        Activation::Silu => kernels::ActivationFn::Silu,
        Activation::Gelu => kernels::ActivationFn::Gelu,
        Activation::GeluTanh => kernels::ActivationFn::GeluTanh,
        Activation::Relu => kernels::ActivationFn::Relu,
        Activation::Relu2 => kernels::ActivationFn::Relu2,
        Activation::Clamped { limit, alpha } => kernels::ActivationFn::Clamped { limit, alpha },
    }
}

/// The inner activations of a dense part, from `normed`.
#[allow(clippy::too_many_arguments)]
pub(super) fn dense<'w>(
    model: &PackedModel,
    team: &mut Team,
    weights: &DenseWeights,
    activation: kernels::ActivationFn,
    width: usize,
    rows: usize,
    normed: &Activations,
    ffn: &'w mut [FfnWorkspace],
    wide: &mut [f32],
) -> &'w mut Activations {
    let FfnWorkspace { width: _, gate, up, product } = Workspace::of_width(ffn, width);
    let [gate_bias, up_bias] = weights.input_biases.each_ref().map(|bias| bias.as_deref());
    match &weights.input {
        FfnInput::Together(m) => {
            let m = panels_of(model, m, team, wide);
            team.gate_up(&m, normed, rows, activation, product);
        }
        FfnInput::Apart { gate: gate_matrix, up: up_matrix } => {
            let m = panels_of(model, gate_matrix, team, wide);
            team.product(&m, normed, rows, gate_bias, gate);
            let m = panels_of(model, up_matrix, team, wide);
            team.product(&m, normed, rows, up_bias, up);
            team.activate(Some(gate), up, activation, rows, product);
        }
        FfnInput::Plain(m) => {
            let m = panels_of(model, m, team, wide);
            team.product(&m, normed, rows, up_bias, up);
            team.activate(None, up, activation, rows, product);
        }
    }
    product
}

/// What a pass works with.
pub(super) struct Pass<'a> {
    pub model: &'a PackedModel,
    pub team: &'a mut Team,
    pub kv: &'a mut KvArena,
    pub step: &'a Step,
    pub rotations: &'a [Rotations],
    /// States of sequences, and where each layer's begin in a block.
    pub states: &'a mut StateArena,
    pub state_offsets: &'a [usize],
    /// Each segment's pages.
    pub pages: Vec<&'a [u32]>,
    /// The same as attention takes them, made once for all layers.
    pub contexts: Vec<Context<'a>>,
    /// Keys and values are copied before attention reads them (the audit's growing cache).
    pub copies: bool,
}

/// What becomes of a branch's output.
#[derive(Clone, Copy)]
enum Join<'a> {
    /// It joins the residual stream at once.
    Add,
    /// It is normed first.
    Norm(&'a NormWeights),
    /// It waits in `branch`: the other branch reads the residual stream as it is.
    Wait,
}

/// What the last product of a branch reads.
#[derive(Clone, Copy)]
enum Inner<'a> {
    /// What this attention gave.
    Attended(&'a Attention),
    /// What the short convolution gave.
    Convolved,
    /// What this delta net gave.
    Delta(&'a DeltaNet),
    /// The inner activations of this width.
    Ffn(usize),
}

impl Pass<'_> {
    /// Embeddings and all layers; leaves the residual stream in `w.x`.
    pub(super) fn layers(&mut self, batch: &Batch, w: &mut Workspace) {
        let ModelSpec {
            architecture: _,
            hidden,
            vocab: _,
            context: _,
            layers,
            norm: _,
            ropes: _,
            embedding_scale,
            query_growth,
            // With the output matrix, in `score`.
            logit_scale: _,
            logit_softcap: _,
            output_bias: _,
            tied_embeddings: _,
        } = self.model.spec();
        let (rows, hidden, scale, emulated) =
            (self.step.rows.len(), *hidden, *embedding_scale, self.model.emulated());
        let embedding = self.model.panels(&self.model.embedding);
        let tokens = &self.step.tokens;
        self.team.fill(&mut w.x, rows, hidden, |r, row| {
            embedding.row(tokens[r] as usize, row);
            if scale != 1.0 {
                row.iter_mut().for_each(|x| *x *= scale);
            }
            if scale != 1.0 && emulated {
                row.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
            }
        });
        let growth = query_growth.map(|growth| self.growth(growth));
        let model = self.model;
        for (l, (layer, LayerSpec { mixer, ffn, norms, residual_scale })) in
            model.layers.iter().zip(layers).enumerate()
        {
            let scale = *residual_scale;
            match norms {
                Norms::After => self.team.activations(&w.x, rows, &mut w.normed),
                Norms::Before | Norms::Both | Norms::Parallel | Norms::ParallelApart => {
                    self.norm(&layer.attention_norm, w)
                }
            }
            let join = match norms {
                Norms::Before | Norms::Parallel => Join::Add,
                Norms::After | Norms::Both => Join::Norm(&layer.attention_post_norm),
                Norms::ParallelApart => Join::Wait,
            };
            match (mixer, &layer.mixer) {
                (Mixer::Attention(attention), MixerWeights::Attention(weights)) => {
                    self.attention(batch, l, weights, attention, growth.as_deref(), w);
                    let from = Inner::Attended(attention);
                    self.join(
                        &weights.output,
                        weights.output_bias.as_deref(),
                        from,
                        join,
                        scale,
                        w,
                    );
                }
                (Mixer::Convolution(convolution), MixerWeights::Convolution(weights)) => {
                    self.convolution(l, weights, convolution, w);
                    self.join(
                        &weights.output,
                        weights.output_bias.as_deref(),
                        Inner::Convolved,
                        join,
                        scale,
                        w,
                    );
                }
                (Mixer::DeltaNet(net), MixerWeights::DeltaNet(weights)) => {
                    self.delta_net(l, weights, net, w);
                    self.join(&weights.output, None, Inner::Delta(net), join, scale, w);
                }
                _ => unreachable!("packed by its spec"),
            }
            match norms {
                Norms::After => self.team.activations(&w.x, rows, &mut w.normed),
                Norms::Before | Norms::Both | Norms::ParallelApart => self.norm(&layer.ffn_norm, w),
                // Both branches read the same norm, which is still there.
                Norms::Parallel => {}
            }
            let join = match norms {
                Norms::Before | Norms::Parallel | Norms::ParallelApart => Join::Add,
                Norms::After | Norms::Both => Join::Norm(&layer.ffn_post_norm),
            };
            match (&layer.ffn, ffn) {
                (
                    FfnWeights::Dense(weights),
                    Ffn::Gated { width, activation, input_bias: _, output_bias: _ }
                    | Ffn::Plain { width, activation, input_bias: _, output_bias: _ },
                ) => {
                    let activation = kernel_activation(*activation);
                    let Workspace { normed, ffn, wide, .. } = w;
                    dense(model, self.team, weights, activation, *width, rows, normed, ffn, wide);
                    self.join(
                        &weights.down,
                        weights.down_bias.as_deref(),
                        Inner::Ffn(*width),
                        join,
                        scale,
                        w,
                    );
                }
                (FfnWeights::Mixture(weights), Ffn::Mixture(mixture)) => {
                    self.mixture(weights, mixture, w);
                    let by = if let Join::Norm(norm) = join { Some(self.by(norm)) } else { None };
                    self.team.add_normed(&mut w.branch, by.as_ref(), hidden, scale, rows, &mut w.x);
                }
                _ => unreachable!("packed by its spec"),
            }
            if *norms == Norms::ParallelApart {
                self.team.add_normed(&mut w.branch, None, hidden, scale, rows, &mut w.x);
            }
        }
    }

    /// Factors of each row's queries.
    fn growth(&self, QueryGrowth { beta, original }: QueryGrowth) -> Vec<f32> {
        let of = |position: u32| {
            1.0 + f64::from(beta) * (1.0 + f64::from(position / original.max(1) as u32)).ln()
        };
        self.step.rows.iter().map(|row| of(row.position) as f32).collect()
    }

    /// Weights as the kernels take them.
    fn by<'w>(&self, norm: &'w NormWeights) -> kernels::NormWeights<'w> {
        let Norm { kind, epsilon, weights: _, bias: _ } = self.model.spec().norm;
        let NormWeights { weights, bias } = norm;
        kernels::NormWeights {
            weights,
            bias: bias.as_deref(),
            epsilon,
            centred: kind == NormKind::Layer,
        }
    }

    /// The residual stream's norm into `w.normed`.
    fn norm(&mut self, weights: &NormWeights, w: &mut Workspace) {
        let by = self.by(weights);
        self.team.norm(
            &w.x,
            None,
            self.step.rows.len(),
            &by,
            self.model.spec().hidden,
            &mut w.normed,
        );
    }

    /// The last product of a branch.
    fn join(
        &mut self,
        m: &Packed,
        bias: Option<&[f32]>,
        from: Inner,
        join: Join,
        scale: f32,
        w: &mut Workspace,
    ) {
        let (rows, hidden) = (self.step.rows.len(), self.model.spec().hidden);
        let Workspace { x, branch, attention, convolution, deltas, ffn, wide, .. } = w;
        let m = panels_of(self.model, m, self.team, wide);
        let input = match from {
            Inner::Attended(of) => &Workspace::of_shape(attention, shape_of(of)).attended,
            Inner::Convolved => &convolution.as_ref().expect("a workspace of the model").out,
            Inner::Delta(net) => &Workspace::of_net(deltas, net).out,
            Inner::Ffn(width) => &Workspace::of_width(ffn, width).product,
        };
        match join {
            Join::Add => self.team.add_product(&m, input, rows, x, bias, scale),
            Join::Wait => self.team.product(&m, input, rows, bias, branch),
            Join::Norm(norm) => {
                self.team.product(&m, input, rows, bias, branch);
                let by = self.by(norm);
                self.team.add_normed(branch, Some(&by), hidden, scale, rows, x);
            }
        }
    }

    /// Queries, keys and values of `w.normed`, and attention into `w.attended`.
    fn attention(
        &mut self,
        batch: &Batch,
        l: usize,
        layer: &AttentionWeights,
        spec: &Attention,
        growth: Option<&[f32]>,
        w: &mut Workspace,
    ) {
        let Attention {
            heads,
            kv_heads: _,
            head_dim: _,
            // The layer has those that there are.
            qkv_bias: _,
            output_bias: _,
            qk_norm,
            rope,
            window,
            scale,
            softcap,
            sinks: _,
            gate,
        } = *spec;
        let (model, step) = (self.model, self.step);
        let table = &Rotations::find(self.rotations, spec).expect("made of the spec").table;
        let Workspace { normed, attention, wide, .. } = w;
        let own = Workspace::of_shape(attention, shape_of(spec));
        let AttentionWorkspace { shape: _, queries, keys, values, attended, both, gates, ungated } =
            own;
        if qk_norm.is_none() && growth.is_none() && !gate {
            let [q, k, v] = [&layer.query, &layer.key, &layer.value].map(|m| model.panels(m));
            let (q, k, v) = if model.emulated() {
                let (first, rest) = wide.split_at_mut(wide_floats(&q));
                let (second, third) = rest.split_at_mut(wide_floats(&k));
                (
                    self.team.widen(&q, first),
                    self.team.widen(&k, second),
                    self.team.widen(&v, third),
                )
            } else {
                (q, k, v)
            };
            let biases = layer.biases.each_ref().map(|bias| bias.as_deref());
            let rotation = Rotation { table, scale };
            self.team.qkv([&q, &k, &v], biases, normed, &step.rows, &rotation, self.kv, l, queries);
        } else {
            let rows = step.rows.len();
            let query = if gate { &mut *both } else { &mut *queries };
            for (m, bias, out) in [
                (&layer.query, &layer.biases[0], query),
                (&layer.key, &layer.biases[1], &mut *keys),
                (&layer.value, &layer.biases[2], &mut *values),
            ] {
                let m = panels_of(model, m, self.team, wide);
                self.team.product(&m, normed, rows, bias.as_deref(), out);
            }
            if gate {
                // Of each head its query, then its gate.
                let (width, hd, both) = (spec.query_width(), spec.head_dim, &*both);
                for (out, from) in [(&mut *queries, 0), (&mut *gates, hd)] {
                    self.team.fill(out, rows, width, |r, row| {
                        for (h, out) in row.chunks_exact_mut(hd).enumerate() {
                            out.copy_from_slice(&both.row(r)[2 * h * hd + from..][..hd]);
                        }
                    });
                }
            }
            let norms = layer.qk_norms.each_ref().map(|norm| self.by(norm));
            let (norms, rotated_first) = match qk_norm {
                None => (None, false),
                Some(QkNorm::PerHead) => (Some(norms), false),
                Some(QkNorm::PerHeadRotated) => (Some(norms), true),
                Some(QkNorm::Whole) => {
                    self.team.norm_in_place(queries, rows, &norms[0], spec.query_width());
                    self.team.norm_in_place(keys, rows, &norms[1], spec.kv_width());
                    (None, false)
                }
            };
            let table = rope.map(|_| table.as_slice());
            let by = HeadsBy { norms, rotated_first, table, scale, row_scales: growth };
            self.team.heads(queries, keys, values, &step.rows, &by, self.kv, l, heads);
        }
        let mut copies: Vec<Vec<u8>> = Vec::new();
        if self.copies {
            copies.resize(self.pages.len(), Vec::new());
            let (kv, pages) = (&*self.kv, &self.pages);
            self.team.chunks(&mut copies, 1, |s, copy| {
                let segment = &batch.segments[s];
                let used = (segment.start + segment.tokens.len()).div_ceil(PAGE).max(1);
                copy[0] = kv.copy_layer(l, &pages[s][..used]);
            });
        }
        let copied: Vec<Context> = copies.iter().map(|c| Context::Copy(c)).collect();
        let contexts = if self.copies { &copied } else { &self.contexts };
        let by = Attending { heads, window, cap: softcap, sinks: layer.sinks.as_deref() };
        let out = if gate { &mut *ungated } else { &mut *attended };
        self.team.attention(
            step.units_of(spec),
            &step.rows,
            contexts,
            self.kv,
            l,
            by,
            queries,
            out,
        );
        if gate {
            self.team.activate(
                Some(gates),
                ungated.rows(),
                kernels::ActivationFn::Sigmoid,
                step.rows.len(),
                attended,
            );
        }
    }

    /// Scores of the rows that want them.
    pub(super) fn score(
        &mut self,
        batch: &Batch,
        w: &mut Workspace,
        outputs: &mut Vec<LogitsOutput>,
    ) -> Result<(), DecodeError> {
        let (model, step) = (self.model, self.step);
        let spec = model.spec();
        let ModelSpec {
            architecture: _,
            hidden: _,
            vocab: _,
            context: _,
            // In `layers`.
            layers: _,
            norm: _,
            ropes: _,
            embedding_scale: _,
            query_growth: _,
            logit_scale,
            logit_softcap,
            // The packed model has it, if there is one.
            output_bias: _,
            tied_embeddings: _,
        } = spec;
        let scoring = Scoring {
            bias: model.output_bias.as_deref(),
            scale: *logit_scale,
            cap: *logit_softcap,
        };
        let by = self.by(&model.output_norm);
        // The last step's vectors serve again: new ones would be pages that the system clears, 2 % of a step of 16 rows of scores.
        let spare = &mut w.spare;
        let mut room = |floats: usize| {
            let mut place = spare.pop().unwrap_or_default();
            place.resize(floats, 0.0);
            place
        };
        let mut logits: Vec<Vec<f32>> = batch
            .segments
            .iter()
            .map(|s| match s.logits {
                super::LogitsRequest::Logits | super::LogitsRequest::LogitsAndArgmax => {
                    room(spec.vocab)
                }
                super::LogitsRequest::AllLogits => room(spec.vocab * s.tokens.len()),
                _ => Vec::new(),
            })
            .collect();
        let scores = if step.scored.is_empty() {
            Vec::new()
        } else {
            let team = &mut *self.team;
            team.norm(&w.x, Some(&step.scored), step.scored.len(), &by, spec.hidden, &mut w.last);
            let mut places: Vec<_> =
                logits.iter_mut().map(|l| l.chunks_exact_mut(spec.vocab)).collect();
            let mut requests = Vec::with_capacity(step.scored.len());
            for &s in &step.scored_for {
                requests.push(match batch.segments[s].logits {
                    super::LogitsRequest::Argmax => crate::kernels::ScoreRequest::Argmax,
                    super::LogitsRequest::TopK(k) => crate::kernels::ScoreRequest::TopK(k),
                    _ => match places[s].next() {
                        Some(place) => crate::kernels::ScoreRequest::All(place),
                        None => {
                            return Err(DecodeError::Broken(
                                "a row without a place for its scores".to_string(),
                            ));
                        }
                    },
                });
            }
            let m = panels_of(model, &model.output, team, &mut w.wide);
            team.head(&m, &w.last, &scoring, &mut requests)
        };
        if let Some(i) = scores.iter().position(|s| *s == Scores::NotFinite) {
            return Err(DecodeError::NotFinite(batch.segments[step.scored_for[i]].slot));
        }
        let mut scores = scores.into_iter();
        for (segment, logits) in batch.segments.iter().zip(logits) {
            let rows = match segment.logits {
                super::LogitsRequest::Nothing => 0,
                super::LogitsRequest::AllLogits => segment.tokens.len(),
                _ => 1,
            };
            let last = scores.by_ref().take(rows).last();
            outputs.push(match (segment.logits, last) {
                (super::LogitsRequest::Nothing, _) => LogitsOutput::Nothing,
                (super::LogitsRequest::Logits | super::LogitsRequest::AllLogits, _) => {
                    LogitsOutput::Logits(logits)
                }
                (super::LogitsRequest::LogitsAndArgmax, Some(Scores::All(id))) => {
                    LogitsOutput::LogitsAndArgmax(logits, id)
                }
                (_, Some(Scores::Argmax(id, score))) => LogitsOutput::Argmax(id, score),
                (_, Some(Scores::TopK(best))) => LogitsOutput::TopK(best),
                (asked, got) => {
                    return Err(DecodeError::Broken(format!(
                        "{asked:?} was answered with {got:?}"
                    )));
                }
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
pub(super) fn panels_of<'a>(
    model: &'a PackedModel,
    m: &Packed,
    team: &mut Team,
    wide: &'a mut [f32],
) -> Panels<'a> {
    let panels = model.panels(m);
    if model.emulated() { team.widen(&panels, wide) } else { panels }
}

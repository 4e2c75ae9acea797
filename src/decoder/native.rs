//! Our own decoder: a model's weights packed into panels once ([`PackedModel`], shared between decoders) and the forward pass over
//! ragged batches with paged keys and values ([`NativeDecoder`]). The pass is a sequence of phases, each run by all workers
//! ([`crate::kernels::Team`]). A row's result depends on nothing but its own sequence, bit for bit: not on the batch, chunks, threads,
//! padding, shared pages or the memory policy.

use super::kv::PageTable;
use super::{Batch, Capacity, DecodeError, Decoder, Opened, Output, Slot};
use crate::kernels::{
    Activations, Arena, AttentionUnit, COLUMNS, Context, Format, KernelSet, KvArena, KvShape, NoMemory, PAGE, Panels, Rotation,
    Row, Rows, Scores, Team, attention_units, pack_panel, padded, panel_bytes,
};
use crate::model::{Model, ModelError, ModelSpec, Norm, Role};
use crate::units::TokenId;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// In which formats the weights are held and computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FormatPlan {
    /// Each matrix in the file's own format; types without a kernel are widened to f32.
    AsStored,
    /// All matrices in this format, converted at load where the file has another.
    All(Format),
    /// The audit's start: bf16, each matrix widened to an f32 temporary on every call, every operation's output rounded to bf16.
    WidenedBf16Emulated,
}

/// Why a model could not be packed or a decoder not be made.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    /// The weights could not be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Memory (exit status 75).
    #[error(
        "{what} need {bytes} bytes of memory, which the system refuses; a smaller --kv-memory, --batch-size or --dtype may fit"
    )]
    Memory { what: &'static str, bytes: u64 },
    /// Threads.
    #[error("cannot start worker threads: {0}; a smaller --threads may work")]
    Threads(std::io::Error),
    /// A worker panicked.
    #[error("{0}")]
    Broken(String),
}

/// A matrix in the arena.
#[derive(Debug, Clone, Copy)]
struct Packed {
    format: Format,
    n: usize,
    k: usize,
    offset: usize,
}

impl Packed {
    fn bytes(&self) -> usize {
        self.n.div_ceil(COLUMNS) * panel_bytes(self.format, self.k)
    }
}

/// A layer's matrices and norms (norms padded to 16 with zeros).
#[derive(Debug, Clone)]
struct Layer {
    attention_norm: Vec<f32>,
    query: Packed,
    key: Packed,
    value: Packed,
    output: Packed,
    ffn_norm: Vec<f32>,
    /// Gate and up panels in turn; `n` counts padded columns.
    gate_up: Packed,
    down: Packed,
}

/// A model's weights in panels, in one block of memory, in the order of execution.
pub struct PackedModel {
    spec: ModelSpec,
    plan: FormatPlan,
    arena: Arena,
    layers: Vec<Layer>,
    output_norm: Vec<f32>,
    output: Packed,
    embedding: Packed,
    notes: Vec<String>,
}

/// The roles that fill one matrix, each given its layer.
type Roles = &'static [fn(usize) -> Role];

/// The matrices of a layer in the order of execution, by the roles that fill them.
fn roles() -> [Roles; 6] {
    [&[Role::Query], &[Role::Key], &[Role::Value], &[Role::AttentionOutput], &[Role::Gate, Role::Up], &[Role::Down]]
}

/// What a plan makes of a model: formats, places, and what there is to say about them.
struct Layout {
    layers: Vec<[Packed; 6]>,
    output: Packed,
    embedding: Packed,
    bytes: usize,
    notes: Vec<String>,
}

impl Layout {
    fn new(model: &Model, plan: FormatPlan) -> Layout {
        let (spec, weights) = (&model.spec, &model.weights);
        let mut widened = BTreeSet::new();
        let mut converted = BTreeSet::new();
        let mut odd = BTreeSet::new();
        let mut unlike = BTreeSet::new();
        let mut format_of = |roles: &[Role]| {
            let k = weights.shape(roles[0]).1;
            let stored = weights.format(roles[0]).filter(|f| roles.iter().all(|r| weights.format(*r) == Some(*f)));
            let wanted = match plan {
                FormatPlan::AsStored => stored.unwrap_or(Format::F32),
                FormatPlan::All(format) => format,
                FormatPlan::WidenedBf16Emulated => Format::Bf16,
            };
            let format = if k.is_multiple_of(wanted.block()) { wanted } else { Format::F32 };
            if format != wanted {
                odd.insert(k);
            }
            for role in roles.iter().filter(|r| weights.format(**r) != Some(format)) {
                let name = weights.type_name(*role);
                match (plan, weights.format(*role)) {
                    // It has a kernel, but its partner is of another type.
                    (FormatPlan::AsStored, Some(_)) => unlike.insert(name),
                    (FormatPlan::AsStored, None) => widened.insert(name),
                    _ => converted.insert((name, format)),
                };
            }
            format
        };
        let mut bytes = 0;
        let mut place = |format: Format, n: usize, k: usize| {
            let packed = Packed { format, n, k, offset: bytes };
            bytes += packed.bytes();
            packed
        };
        let mut layers = Vec::with_capacity(spec.layers);
        for layer in 0..spec.layers {
            layers.push(roles().map(|roles| {
                let roles: Vec<Role> = roles.iter().map(|r| r(layer)).collect();
                let (n, k) = weights.shape(roles[0]);
                // Two matrices in turn: both padded to whole panels.
                let n = if roles.len() == 1 { n } else { roles.len() * padded(n) };
                place(format_of(&roles), n, k)
            }));
        }
        let (n, k) = weights.shape(Role::Output);
        let output = place(format_of(&[Role::Output]), n, k);
        let embedding = match spec.tied_embeddings {
            true => output,
            false => place(format_of(&[Role::TokenEmbedding]), n, k),
        };
        let mut notes = Vec::new();
        if !widened.is_empty() {
            let names: Vec<_> = widened.into_iter().collect();
            notes.push(format!("no kernel computes {} as stored: widened to f32 at load", names.join(", ")));
        }
        if !unlike.is_empty() {
            let names: Vec<_> = unlike.into_iter().collect();
            notes.push(format!(
                "gate and up are computed together, and in some layers one is of another type than the other: {} widened to f32 there",
                names.join(" and ")
            ));
        }
        if !converted.is_empty() {
            let names: Vec<_> = converted.iter().map(|(name, format)| format!("{name} to {format}")).collect();
            notes.push(format!("weights converted at load: {}", names.join(", ")));
        }
        if !odd.is_empty() {
            let sizes: Vec<_> = odd.iter().map(usize::to_string).collect();
            notes.push(format!("rows of {} are no multiple of 32: these matrices are computed in f32", sizes.join(", ")));
        }
        Layout { layers, output, embedding, bytes, notes }
    }
}

impl PackedModel {
    /// Bytes that [`PackedModel::pack`] would take.
    pub fn estimate(model: &Model, plan: FormatPlan) -> u64 {
        Layout::new(model, plan).bytes as u64
    }

    /// Reads, converts and packs all weights on `threads` threads.
    pub fn pack(model: &Model, plan: FormatPlan, threads: usize) -> Result<PackedModel, NativeError> {
        let layout = Layout::new(model, plan);
        let memory = |NoMemory(bytes)| NativeError::Memory { what: "weights", bytes: bytes as u64 };
        let mut arena = Arena::new(layout.bytes).map_err(memory)?;
        let mut team = Team::new(KernelSet::portable(), threads, 2, false).map_err(NativeError::Threads)?;
        let mut fill = |packed: Packed, roles: &[Role]| -> Result<(), NativeError> {
            let bytes = panel_bytes(packed.format, packed.k);
            let rows = model.weights.shape(roles[0]).0;
            let failed = Mutex::new(None);
            team.chunks(&mut arena.bytes_mut()[packed.offset..][..packed.bytes()], bytes.max(1), |panel, out| {
                let from = panel / roles.len() * COLUMNS;
                let range = from.min(rows)..(from + COLUMNS).min(rows);
                let mut buffer = Vec::new();
                match model.weights.read(roles[panel % roles.len()], range, packed.format, &mut buffer) {
                    Ok(()) => pack_panel(packed.format, packed.k, &buffer, out),
                    Err(e) => *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(e),
                }
            });
            match (team.broken(), failed.into_inner().unwrap_or_else(PoisonError::into_inner)) {
                (Some(reason), _) => Err(NativeError::Broken(reason)),
                (None, Some(e)) => Err(e.into()),
                (None, None) => Ok(()),
            }
        };
        let vector = |role: Role| -> Result<Vec<f32>, NativeError> {
            let mut bytes = Vec::new();
            model.weights.read(role, 0..1, Format::F32, &mut bytes)?;
            let mut values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            values.resize(padded(values.len()), 0.0);
            Ok(values)
        };
        let mut layers = Vec::with_capacity(layout.layers.len());
        for (layer, packed) in layout.layers.iter().enumerate() {
            for (packed, roles) in packed.iter().zip(roles()) {
                let roles: Vec<Role> = roles.iter().map(|r| r(layer)).collect();
                fill(*packed, &roles)?;
            }
            let [query, key, value, output, gate_up, down] = *packed;
            let (attention_norm, ffn_norm) = (vector(Role::AttentionNorm(layer))?, vector(Role::FfnNorm(layer))?);
            layers.push(Layer { attention_norm, query, key, value, output, ffn_norm, gate_up, down });
        }
        fill(layout.output, &[Role::Output])?;
        if !model.spec.tied_embeddings {
            fill(layout.embedding, &[Role::TokenEmbedding])?;
        }
        Ok(PackedModel {
            spec: model.spec.clone(),
            plan,
            arena,
            layers,
            output_norm: vector(Role::OutputNorm)?,
            output: layout.output,
            embedding: layout.embedding,
            notes: layout.notes,
        })
    }

    /// The blueprint.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The plan it was packed by.
    pub fn plan(&self) -> FormatPlan {
        self.plan
    }

    /// Bytes of the panels.
    pub fn bytes(&self) -> u64 {
        self.arena.bytes().len() as u64
    }

    /// What was converted or widened at load, a line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    fn matrices(&self) -> impl Iterator<Item = &Packed> {
        let layers = self.layers.iter().flat_map(|l| [&l.query, &l.key, &l.value, &l.output, &l.gate_up, &l.down]);
        layers.chain([&self.output, &self.embedding])
    }

    /// The formats of its matrices, each once.
    pub fn formats(&self) -> Vec<Format> {
        self.matrices().map(|m| m.format).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The format of the layers' largest matrices and of the output matrix, for counting bytes.
    pub fn storage(&self) -> crate::roofline::Formats {
        let output = self.output.format;
        crate::roofline::Formats { layers: self.layers.first().map_or(output, |l| l.gate_up.format), output }
    }

    /// Keys and values are kept in f16: a model with quantized layers. Otherwise in f32.
    pub fn half_kv(&self) -> bool {
        self.layers.iter().any(|l| [l.query, l.key, l.value, l.output, l.gate_up, l.down].iter().any(|m| m.format.is_quantized()))
    }

    fn kv_shape(&self) -> KvShape {
        let spec = &self.spec;
        KvShape { layers: spec.layers, kv_heads: spec.kv_heads, head_dim: spec.head_dim, half: self.half_kv() }
    }

    /// Bytes that the keys and values of one position take.
    pub fn kv_bytes_per_position(&self) -> u64 {
        (self.kv_shape().page_bytes() / PAGE) as u64
    }

    fn panels(&self, m: &Packed) -> Panels<'_> {
        Panels::new(m.format, m.n, m.k, &self.arena.bytes()[m.offset..][..m.bytes()])
    }

    fn emulated(&self) -> bool {
        self.plan == FormatPlan::WidenedBf16Emulated
    }

    /// Floats of the largest temporary of the emulated dtype: q, k and v together, or one matrix.
    fn wide_floats(&self) -> usize {
        let floats = |m: &Packed| m.n.div_ceil(COLUMNS) * COLUMNS * m.k + COLUMNS;
        let layers = self.layers.iter().map(|l| {
            (floats(&l.query) + floats(&l.key) + floats(&l.value))
                .max(floats(&l.output))
                .max(floats(&l.gate_up))
                .max(floats(&l.down))
        });
        if self.emulated() { layers.max().unwrap_or(0).max(floats(&self.output)) } else { 0 }
    }
}

/// When working memory is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// The workspace anew each step; each sequence's keys and values copied into a larger allocation each step and layer.
    PerStep,
    /// Once.
    Preallocated,
}

/// Sizes and choices of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct NativeOptions {
    /// Workers, the calling thread included.
    pub threads: usize,
    /// Which kernels.
    pub kernels: KernelSet,
    /// Sequences open at the same time.
    pub slots: usize,
    /// Most rows of one batch.
    pub rows: usize,
    /// Most bytes for keys and values; reserved, touched only as used.
    pub kv_bytes: u64,
    /// When memory is allocated.
    pub memory: Memory,
}

/// Memory that a decoder needs, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// The packed weights.
    pub weights: u64,
    /// Keys and values when all positions are used.
    pub kv: u64,
    /// Workspace and scratch.
    pub scratch: u64,
}

impl MemoryEstimate {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.kv + self.scratch
    }
}

/// The activations of one step.
struct Workspace {
    /// The residual stream: rows × hidden.
    x: Rows,
    /// Its norm.
    normed: Activations,
    /// Queries: rows × query width.
    queries: Rows,
    /// Attention's output.
    attended: Activations,
    /// silu(gate) * up: rows × ffn.
    product: Activations,
    /// The norm of the rows that are scored.
    last: Activations,
    /// The emulated dtype's f32 temporary.
    wide: Vec<f32>,
}

impl Workspace {
    fn new(model: &PackedModel, rows: usize) -> Workspace {
        let (spec, quantized) = (&model.spec, Quantized::of(model));
        Workspace {
            x: Rows::new(rows, spec.hidden),
            normed: Activations::new(rows, spec.hidden, quantized.hidden),
            queries: Rows::new(rows, spec.query_width()),
            attended: Activations::new(rows, spec.query_width(), quantized.attended),
            product: Activations::new(rows, spec.ffn, quantized.product),
            last: Activations::new(rows, spec.hidden, model.output.format.is_quantized()),
            wide: vec![0.0; model.wide_floats()],
        }
    }

    fn bytes(model: &PackedModel, rows: usize) -> usize {
        let (spec, quantized) = (&model.spec, Quantized::of(model));
        Rows::bytes(rows, spec.hidden)
            + Activations::bytes(rows, spec.hidden, quantized.hidden)
            + Rows::bytes(rows, spec.query_width())
            + Activations::bytes(rows, spec.query_width(), quantized.attended)
            + Activations::bytes(rows, spec.ffn, quantized.product)
            + Activations::bytes(rows, spec.hidden, model.output.format.is_quantized())
            + model.wide_floats() * 4
    }
}

/// Which activations some matrix wants as int8 blocks.
struct Quantized {
    hidden: bool,
    attended: bool,
    product: bool,
}

impl Quantized {
    fn of(model: &PackedModel) -> Quantized {
        let any = |pick: fn(&Layer) -> [Packed; 4]| model.layers.iter().any(|l| pick(l).iter().any(|m| m.format.is_quantized()));
        Quantized {
            hidden: any(|l| [l.query, l.key, l.value, l.gate_up]),
            attended: any(|l| [l.output; 4]),
            product: any(|l| [l.down; 4]),
        }
    }
}

/// What the rows of a batch are, worked out once a step.
#[derive(Default)]
struct Step {
    tokens: Vec<TokenId>,
    rows: Vec<Row>,
    units: Vec<AttentionUnit>,
    /// Rows to score, and the segment each belongs to.
    scored: Vec<u32>,
    scored_for: Vec<usize>,
}

/// See the module's head.
pub struct NativeDecoder {
    model: Arc<PackedModel>,
    options: NativeOptions,
    team: Team,
    table: PageTable,
    kv: KvArena,
    /// Of each position so far: cosines, then signed sines, `head_dim` each.
    rotation: Vec<f32>,
    /// Angle a position turns each pair of a head by.
    frequencies: Vec<f64>,
    workspace: Option<Workspace>,
    step: Step,
}

impl NativeDecoder {
    /// A decoder of a packed model. Fails if memory or threads are refused.
    pub fn new(model: Arc<PackedModel>, options: NativeOptions) -> Result<NativeDecoder, NativeError> {
        let estimate = NativeDecoder::estimate(&model, &options);
        let memory = |what, bytes| NativeError::Memory { what, bytes };
        let shape = model.kv_shape();
        let pages = (options.kv_bytes / shape.page_bytes() as u64).min(u32::MAX as u64 - 1) as usize;
        if pages == 0 {
            let bytes = shape.page_bytes() as u64;
            return Err(memory("keys and values of 16 positions", bytes));
        }
        let kv = KvArena::new(shape, pages).map_err(|_| memory("keys and values", estimate.kv))?;
        let spec = &model.spec;
        let team = Team::new(options.kernels, options.threads, spec.head_dim, model.emulated()).map_err(NativeError::Threads)?;
        let workspace = match options.memory {
            Memory::Preallocated => Some(Workspace::new(&model, options.rows)),
            Memory::PerStep => None,
        };
        let rope = &spec.rope;
        let frequency = |i: usize| {
            let factor = rope.factors.get(i).copied().unwrap_or(1.0) as f64;
            (rope.theta as f64).powf(-2.0 * i as f64 / rope.dims as f64) / factor
        };
        let frequencies = (0..rope.dims / 2).map(frequency).collect();
        let table = PageTable::new(pages, options.slots);
        Ok(NativeDecoder { model, options, team, table, kv, rotation: Vec::new(), frequencies, workspace, step: Step::default() })
    }

    /// The memory such a decoder needs.
    pub fn estimate(model: &PackedModel, options: &NativeOptions) -> MemoryEstimate {
        let scratch =
            Workspace::bytes(model, options.rows) + Team::scratch_bytes(options.threads, model.spec.head_dim, options.rows);
        MemoryEstimate { weights: model.bytes(), kv: options.kv_bytes, scratch: scratch as u64 }
    }

    /// The packed model.
    pub fn model(&self) -> &Arc<PackedModel> {
        &self.model
    }

    /// Works out rows and attention units; checks what the caller promised.
    fn plan(&mut self, batch: &Batch) -> Result<(), DecodeError> {
        let spec = &self.model.spec;
        let step = &mut self.step;
        *step = Step::default();
        // One unit a head instead of one a kv head when there would be too few units for the workers.
        let few = batch.segments.len() * spec.kv_heads < 3 * self.options.threads;
        let heads_apart = few && batch.tokens.len() < 64;
        for (s, segment) in batch.segments.iter().enumerate() {
            let broken = |what: &str| DecodeError::Broken(format!("{what} (slot {:?}, start {})", segment.slot, segment.start));
            if !self.table.is_open(segment.slot) {
                return Err(broken("a segment of a sequence that is not open"));
            }
            let pages = self.table.pages(segment.slot);
            let tokens = batch.tokens.get(segment.tokens.clone()).ok_or_else(|| broken("a segment past the batch's tokens"))?;
            let end = segment.start + tokens.len();
            if end > pages.len() * PAGE {
                return Err(broken("a segment past its sequence's positions"));
            }
            if tokens.iter().any(|t| *t as usize >= spec.vocab) {
                return Err(broken("a token that the vocabulary does not have"));
            }
            let first = step.rows.len();
            step.tokens.extend_from_slice(tokens);
            step.rows.extend((segment.start..end).map(|p| Row { position: p as u32, page: pages[p / PAGE] }));
            let mut units = |first, rows, context| {
                attention_units(s, first, rows, context, spec.heads, spec.kv_heads, heads_apart, &mut step.units);
            };
            units(first, tokens.len(), segment.padded_context);
            if segment.padding_rows > 0 {
                step.tokens.resize(step.tokens.len() + segment.padding_rows, 0);
                let row = Row { position: end.max(1) as u32 - 1, page: Row::NOWHERE };
                step.rows.resize(step.rows.len() + segment.padding_rows, row);
                units(first + tokens.len(), segment.padding_rows, segment.padded_context);
            }
            let scored = match segment.want {
                super::Want::Nothing => 0,
                super::Want::AllLogits => tokens.len(),
                _ if tokens.is_empty() => return Err(broken("a segment without tokens wants scores")),
                _ => 1,
            };
            let last = first + tokens.len();
            step.scored.extend((last - scored..last).map(|r| r as u32));
            step.scored_for.extend(std::iter::repeat_n(s, scored));
        }
        if step.rows.len() > self.options.rows {
            return Err(DecodeError::Broken(format!("a batch of {} rows, {} are the most", step.rows.len(), self.options.rows)));
        }
        Ok(())
    }

    /// Extends the table of rotations to `positions` positions.
    fn rotate_up_to(&mut self, positions: usize) {
        let hd = self.model.spec.head_dim;
        for p in self.rotation.len() / (2 * hd)..positions {
            let angle = |d: usize| self.frequencies.get(d / 2).map_or(0.0, |f| p as f64 * f);
            let from = self.rotation.len();
            self.rotation.resize(from + 2 * hd, 0.0);
            for d in 0..hd {
                let (sin, cos) = angle(d).sin_cos();
                self.rotation[from + d] = cos as f32;
                self.rotation[from + hd + d] = if d % 2 == 0 { -sin as f32 } else { sin as f32 };
            }
        }
    }

    /// All layers; leaves the residual stream in `w.x`.
    fn layers(&mut self, batch: &Batch, w: &mut Workspace) {
        let NativeDecoder { model, team, table, kv, step, rotation, options, .. } = self;
        let (spec, rows) = (&model.spec, step.rows.len());
        let Norm::Rms { epsilon } = spec.norm;
        let rotation = Rotation { table: rotation, scale: 1.0 / (spec.head_dim as f32).sqrt() };
        let pages: Vec<&[u32]> = batch.segments.iter().map(|s| table.pages(s.slot)).collect();
        let embedding = model.panels(&model.embedding);
        team.fill(&mut w.x, rows, spec.hidden, |r, row| embedding.row(step.tokens[r] as usize, row));
        for (l, layer) in model.layers.iter().enumerate() {
            team.norm(&w.x, None, rows, &layer.attention_norm, spec.hidden, epsilon, &mut w.normed);
            {
                let [q, k, v] = [&layer.query, &layer.key, &layer.value].map(|m| model.panels(m));
                let (q, k, v) = if model.emulated() {
                    let (first, rest) = w.wide.split_at_mut(wide_floats(&q));
                    let (second, third) = rest.split_at_mut(wide_floats(&k));
                    (team.widen(&q, first), team.widen(&k, second), team.widen(&v, third))
                } else {
                    (q, k, v)
                };
                team.qkv([&q, &k, &v], &w.normed, &step.rows, &rotation, kv, l, &mut w.queries);
            }
            let mut copies: Vec<Vec<u8>> = Vec::new();
            if options.memory == Memory::PerStep {
                copies.resize(pages.len(), Vec::new());
                let kv = &*kv;
                team.chunks(&mut copies, 1, |s, copy| {
                    let segment = &batch.segments[s];
                    let used = (segment.start + segment.tokens.len()).div_ceil(PAGE).max(1);
                    copy[0] = kv.copy_layer(l, &pages[s][..used]);
                });
            }
            let contexts: Vec<Context> = match options.memory {
                Memory::Preallocated => pages.iter().map(|p| Context::Pages(p)).collect(),
                Memory::PerStep => copies.iter().map(|c| Context::Copy(c)).collect(),
            };
            team.attention(&step.units, &step.rows, &contexts, kv, l, spec.heads, &w.queries, &mut w.attended);
            let m = panels_of(model, &layer.output, team, &mut w.wide);
            team.add_product(&m, &w.attended, rows, &mut w.x);
            team.norm(&w.x, None, rows, &layer.ffn_norm, spec.hidden, epsilon, &mut w.normed);
            let m = panels_of(model, &layer.gate_up, team, &mut w.wide);
            team.gate_up(&m, &w.normed, rows, &mut w.product);
            let m = panels_of(model, &layer.down, team, &mut w.wide);
            team.add_product(&m, &w.product, rows, &mut w.x);
        }
    }

    /// Scores of the rows that want them.
    fn score(&mut self, batch: &Batch, w: &mut Workspace, outputs: &mut Vec<Output>) -> Result<(), DecodeError> {
        let NativeDecoder { model, team, step, .. } = self;
        let spec = &model.spec;
        let Norm::Rms { epsilon } = spec.norm;
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
            team.norm(&w.x, Some(&step.scored), step.scored.len(), &model.output_norm, spec.hidden, epsilon, &mut w.last);
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
            team.head(&m, &w.last, &mut wants)
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

impl Decoder for NativeDecoder {
    fn spec(&self) -> &ModelSpec {
        &self.model.spec
    }

    fn capacity(&self) -> Capacity {
        Capacity { slots: self.options.slots, positions: self.kv.pages() * PAGE, rows: self.options.rows }
    }

    fn open(&mut self, prompt: &[TokenId], positions: usize, share: bool) -> Option<Opened> {
        self.table.open(prompt, positions, share)
    }

    fn forward(&mut self, batch: &Batch, outputs: &mut Vec<Output>) -> Result<(), DecodeError> {
        outputs.clear();
        if let Some(reason) = self.team.broken() {
            return Err(DecodeError::Broken(reason));
        }
        self.plan(batch)?;
        if self.step.rows.is_empty() {
            outputs.resize(batch.segments.len(), Output::Nothing);
            return Ok(());
        }
        let positions = self.step.rows.iter().map(|r| r.position as usize + 1).max().unwrap_or(0);
        self.rotate_up_to(positions);
        let mut workspace = match self.workspace.take() {
            Some(workspace) => workspace,
            None => Workspace::new(&self.model, self.step.rows.len()),
        };
        self.layers(batch, &mut workspace);
        let scored = self.score(batch, &mut workspace, outputs);
        if self.options.memory == Memory::Preallocated {
            self.workspace = Some(workspace);
        }
        if let Some(reason) = self.team.broken() {
            outputs.clear();
            return Err(DecodeError::Broken(reason));
        }
        if let Err(e) = scored {
            outputs.clear();
            return Err(e);
        }
        for segment in &batch.segments {
            self.table.written(segment.slot, segment.start + segment.tokens.len());
        }
        Ok(())
    }

    fn close(&mut self, slot: Slot) {
        self.table.close(slot);
    }

    fn forget_prefixes(&mut self) {
        self.table.forget();
    }

    fn used_positions(&self) -> (usize, usize) {
        self.table.used()
    }

    fn kernels(&self) -> Vec<String> {
        self.options.kernels.kernel_names(&self.model.formats())
    }
}

#[cfg(test)]
#[path = "../../tests/common/mod.rs"]
mod tiny;

#[cfg(test)]
mod tests {
    use super::super::{Segment, Want};
    use super::tiny::{Stored, Tiny, Values};
    use super::*;

    fn load(tiny: &Tiny) -> Model {
        let folder = tempfile::tempdir().unwrap();
        let path = tiny.write(folder.path());
        crate::model::open(path.to_str().unwrap(), &crate::model::OpenOptions::default()).unwrap()
    }

    fn odd(stored: Stored) -> Tiny {
        let quantized = matches!(stored, Stored::Q8_0 | Stored::Q4_1);
        let (hidden, ffn, heads, kv_heads, head_dim) = if quantized { (96, 608, 6, 2, 16) } else { (54, 601, 6, 2, 10) };
        Tiny { hidden, ffn, heads, kv_heads, head_dim, vocab: 333, values: Values::Fine, ..Tiny::seeded(3) }.stored(stored)
    }

    fn decoder(model: &Arc<PackedModel>, kernels: KernelSet, threads: usize, memory: Memory) -> NativeDecoder {
        let options = NativeOptions { threads, kernels, slots: 4, rows: 64, kv_bytes: 8 << 20, memory };
        NativeDecoder::new(model.clone(), options).unwrap()
    }

    fn tokens(n: usize) -> Vec<TokenId> {
        (0..n as u32).map(|i| (i * 37 + i * i) % 320).collect()
    }

    /// All logits of a sequence, fed in chunks.
    fn logits(decoder: &mut NativeDecoder, tokens: &[TokenId], chunk: usize) -> Vec<u32> {
        let opened = decoder.open(tokens, tokens.len(), false).unwrap();
        let mut bits = Vec::new();
        for (i, part) in tokens.chunks(chunk).enumerate() {
            let segment = Segment {
                slot: opened.slot,
                start: i * chunk,
                tokens: 0..part.len(),
                want: Want::AllLogits,
                padding_rows: 0,
                padded_context: 0,
            };
            let mut outputs = Vec::new();
            decoder.forward(&Batch { tokens: part.to_vec(), segments: vec![segment] }, &mut outputs).unwrap();
            let Output::Logits(scores) = &outputs[0] else { panic!("logits were asked for") };
            bits.extend(scores.iter().map(|x| x.to_bits()));
        }
        decoder.close(opened.slot);
        bits
    }

    #[test]
    fn all_kernel_sets_chunks_threads_and_memory_policies_give_the_same_bits() {
        for stored in Stored::ALL {
            let model = Arc::new(PackedModel::pack(&load(&odd(stored)), FormatPlan::AsStored, 2).unwrap());
            let tokens = tokens(75);
            let want = logits(&mut decoder(&model, KernelSet::portable(), 1, Memory::Preallocated), &tokens, 64);
            for set in KernelSet::available() {
                for (threads, chunk, memory) in
                    [(2, 1, Memory::Preallocated), (3, 13, Memory::PerStep), (1, 50, Memory::Preallocated)]
                {
                    let got = logits(&mut decoder(&model, set, threads, memory), &tokens, chunk);
                    let differing = want.iter().zip(&got).filter(|(a, b)| a != b).count();
                    assert_eq!(differing, 0, "{stored:?} {set:?} {threads} threads, chunks of {chunk}, {memory:?}");
                }
            }
        }
    }

    #[test]
    fn the_emulated_dtype_gives_the_same_bits_in_all_sets() {
        let model = Arc::new(PackedModel::pack(&load(&odd(Stored::F32)), FormatPlan::WidenedBf16Emulated, 2).unwrap());
        let tokens = tokens(20);
        let want = logits(&mut decoder(&model, KernelSet::portable(), 1, Memory::PerStep), &tokens, 16);
        assert!(want.iter().all(|bits| bits & 0xffff == 0), "scores are bf16 values");
        for set in KernelSet::available() {
            assert!(want == logits(&mut decoder(&model, set, 2, Memory::Preallocated), &tokens, 7), "{set:?}");
        }
    }

    /// The forward pass as a textbook has it, in f64.
    fn textbook(model: &Model, tokens: &[TokenId]) -> Vec<f64> {
        let spec = &model.spec;
        let read = |role: Role| -> Vec<f64> {
            let (rows, _) = model.weights.shape(role);
            let mut bytes = Vec::new();
            model.weights.read(role, 0..rows, Format::F32, &mut bytes).unwrap();
            bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b) as f64).collect()
        };
        let product = |w: &[f64], x: &[f64]| -> Vec<f64> {
            w.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
        };
        let Norm::Rms { epsilon } = spec.norm;
        let norm = |w: &[f64], x: &[f64]| -> Vec<f64> {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            x.iter().zip(w).map(|(x, w)| x / (mean + epsilon as f64).sqrt() * w).collect()
        };
        let hd = spec.head_dim;
        let rotate = |x: &mut [f64], p: usize| {
            for head in x.chunks_mut(hd) {
                for i in 0..hd / 2 {
                    let (sin, cos) = (p as f64 * (spec.rope.theta as f64).powf(-2.0 * i as f64 / hd as f64)).sin_cos();
                    let (a, b) = (head[2 * i], head[2 * i + 1]);
                    (head[2 * i], head[2 * i + 1]) = (a * cos - b * sin, a * sin + b * cos);
                }
            }
        };
        let embedding = read(Role::TokenEmbedding);
        let mut xs: Vec<Vec<f64>> =
            tokens.iter().map(|t| embedding[*t as usize * spec.hidden..][..spec.hidden].to_vec()).collect();
        for l in 0..spec.layers {
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for (p, x) in xs.iter_mut().enumerate() {
                let h = norm(&read(Role::AttentionNorm(l)), x);
                let mut q = product(&read(Role::Query(l)), &h);
                let mut k = product(&read(Role::Key(l)), &h);
                rotate(&mut q, p);
                rotate(&mut k, p);
                keys.push(k);
                values.push(product(&read(Role::Value(l)), &h));
                let mut attended = vec![0.0; q.len()];
                for head in 0..spec.heads {
                    let kv = head / (spec.heads / spec.kv_heads) * hd;
                    let score = |k: &Vec<f64>| (0..hd).map(|d| q[head * hd + d] * k[kv + d]).sum::<f64>() / (hd as f64).sqrt();
                    let weights: Vec<f64> = keys.iter().map(|k| score(k).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    for (w, v) in weights.iter().zip(&values) {
                        for d in 0..hd {
                            attended[head * hd + d] += w / total * v[kv + d];
                        }
                    }
                }
                let o = product(&read(Role::AttentionOutput(l)), &attended);
                x.iter_mut().zip(o).for_each(|(x, o)| *x += o);
            }
            for x in &mut xs {
                let h = norm(&read(Role::FfnNorm(l)), x);
                let up = product(&read(Role::Up(l)), &h);
                let gate = product(&read(Role::Gate(l)), &h);
                let h: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                let down = product(&read(Role::Down(l)), &h);
                x.iter_mut().zip(down).for_each(|(x, d)| *x += d);
            }
        }
        let (norm_w, output) = (read(Role::OutputNorm), read(Role::Output));
        xs.iter().flat_map(|x| product(&output, &norm(&norm_w, x))).collect()
    }

    #[test]
    fn notes_say_which_types_are_widened_or_converted_and_why() {
        let notes = |partner: Option<Stored>, plan| {
            let tiny = odd(Stored::Q4_1);
            let mut file = tiny.container();
            if let Some(stored) = partner {
                let up = tiny.stored(stored).tensors().into_iter().find(|t| t.name == "blk.1.ffn_up.weight").unwrap();
                *file.tensors.iter_mut().find(|t| t.name == up.name).unwrap() = super::tiny::Tensor::of(&up);
            }
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("mixed.gguf");
            std::fs::write(&path, file.bytes()).unwrap();
            let model = crate::model::open(path.to_str().unwrap(), &crate::model::OpenOptions::default()).unwrap();
            PackedModel::pack(&model, plan, 1).unwrap().notes().to_vec()
        };
        assert_eq!(notes(None, FormatPlan::AsStored), [""; 0]);
        let mixed = notes(Some(Stored::Q8_0), FormatPlan::AsStored);
        assert!(mixed.len() == 1 && mixed[0].contains("gate and up") && mixed[0].ends_with("Q4_1 and Q8_0 widened to f32 there"));
        assert_eq!(notes(Some(Stored::Q8_0), FormatPlan::All(Format::Q8_0)), ["weights converted at load: Q4_1 to q8_0"]);
    }

    #[test]
    fn logits_are_those_of_the_textbook() {
        for (stored, most) in
            [(Stored::F32, 1e-4), (Stored::Bf16, 1e-4), (Stored::F16, 1e-4), (Stored::Q8_0, 0.1), (Stored::Q4_1, 0.1)]
        {
            let model = load(&odd(stored));
            let tokens = tokens(70);
            let want = textbook(&model, &tokens);
            let packed = Arc::new(PackedModel::pack(&model, FormatPlan::AsStored, 1).unwrap());
            let got = logits(&mut decoder(&packed, KernelSet::best(), 2, Memory::Preallocated), &tokens, 33);
            let scale = want.iter().map(|x| x.abs()).fold(0.0, f64::max);
            let worst = want.iter().zip(&got).map(|(w, g)| (w - f32::from_bits(*g) as f64).abs()).fold(0.0, f64::max);
            assert!(worst < most * scale, "{stored:?}: off by {worst} of {scale}");
        }
    }

    #[test]
    fn argmax_and_the_best_k_are_those_of_all_scores() {
        let model = Arc::new(PackedModel::pack(&load(&odd(Stored::Q4_1)), FormatPlan::AsStored, 1).unwrap());
        let tokens = tokens(40);
        for set in KernelSet::available() {
            let mut decoder = decoder(&model, set, 2, Memory::Preallocated);
            let slot = decoder.open(&tokens, tokens.len(), false).unwrap().slot;
            let mut ask = |want| {
                let segment = Segment { slot, start: 0, tokens: 0..tokens.len(), want, padding_rows: 0, padded_context: 0 };
                let mut outputs = Vec::new();
                decoder.forward(&Batch { tokens: tokens.clone(), segments: vec![segment] }, &mut outputs).unwrap();
                outputs.remove(0)
            };
            let Output::Logits(scores) = ask(Want::Logits) else { panic!("logits were asked for") };
            let mut ranked: Vec<(TokenId, f32)> = scores.iter().enumerate().map(|(i, s)| (i as TokenId, *s)).collect();
            ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            assert_eq!(ask(Want::Argmax), Output::Argmax(ranked[0].0, ranked[0].1));
            assert_eq!(ask(Want::TopK(50)), Output::TopK(ranked[..50].to_vec()));
            assert_eq!(ask(Want::TopK(1000)), Output::TopK(ranked));
        }
    }
}

//! A model's weights as panels in one block of memory, in the order of execution: which matrix gets which format and place, and reading,
//! converting and packing them once. In: a [`Model`] and a [`FormatPlan`]. Out: a [`PackedModel`], shared between decoders.
//! Over 500 lines: the layout of the weights and its filling, which must agree byte for byte.

use crate::kernels::{
    Arena, COLUMNS, Format, KernelSet, KvElement, KvLayer, KvShape, NoMemory, PAGE, Panels,
    StateArena, Team, pack_panel, padded, panel_bytes,
};
use crate::model::{
    Activation, Convolution, Ffn, LayerSpec, Mixer, Mixture, Model, ModelError, ModelSpec, Norms,
    QkNorm, Role, matrices, roles,
};
use crate::units::Bytes;
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

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

impl FormatPlan {
    /// In which format a matrix with rows of `k` weights is held and computed that the file has as `stored` (`None`: without a kernel).
    pub fn format_of(self, role: Role, stored: Option<Format>, k: usize) -> Format {
        self.wanted(role, stored).fitting(k)
    }

    /// The same whatever the length of rows.
    fn wanted(self, role: Role, stored: Option<Format>) -> Format {
        match self {
            FormatPlan::WidenedBf16Emulated => Format::Bf16,
            _ if is_kept_in_f32(role) => Format::F32,
            FormatPlan::AsStored => stored.unwrap_or(Format::F32),
            FormatPlan::All(format) => format,
        }
    }
}

/// A router is small, and what it chooses depends on the last bits: it is never quantized (nor is it in files). Nor is what decides how a
/// state decays.
fn is_kept_in_f32(role: Role) -> bool {
    matches!(role, Role::Router(_) | Role::DeltaBeta(_) | Role::DeltaAlpha(_))
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
    Memory {
        /// What there is no room for, in the plural.
        what: &'static str,
        /// How much it needs.
        bytes: u64,
    },
    /// Threads.
    #[error("cannot start worker threads: {0}; a smaller --threads may work")]
    Threads(std::io::Error),
    /// A worker panicked.
    #[error("{0}")]
    Broken(String),
}

/// A matrix in the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// How it is stored and computed.
    pub format: Format,
    /// Outputs; of gate and up together, both in whole panels. Of one expert, where there are several.
    pub n: usize,
    /// Inputs.
    pub k: usize,
    /// Matrices of this shape, one behind the other; 1 but for experts.
    pub experts: usize,
    offset: usize,
}

impl Packed {
    /// Bytes of one of them.
    fn bytes_of_one(&self) -> usize {
        self.n.div_ceil(COLUMNS) * panel_bytes(self.format, self.k)
    }

    fn bytes(&self) -> usize {
        self.experts * self.bytes_of_one()
    }
}

/// A vector padded to 16 with zeros, where the model has it.
pub(super) type Vector = Option<Vec<f32>>;

/// The weights of a norm (ones where the model has none) and its bias.
#[derive(Debug, Clone)]
pub(super) struct NormWeights {
    pub weights: Vec<f32>,
    pub bias: Vector,
}

/// What makes the inner activations of the feed-forward part.
#[derive(Debug, Clone)]
pub(super) enum FfnInput {
    /// Gate and up panels in turn; `n` counts padded columns.
    Together(Packed),
    /// Of different formats, or with biases.
    Apart { gate: Packed, up: Packed },
    /// No gate.
    Plain(Packed),
}

/// A layer's weights; what its spec does not have is `None` and not asked for.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub attention_norm: NormWeights,
    pub mixer: MixerWeights,
    pub attention_post_norm: NormWeights,
    pub ffn_norm: NormWeights,
    pub ffn: FfnWeights,
    pub ffn_post_norm: NormWeights,
}

/// What mixes positions.
#[derive(Debug, Clone)]
pub(super) enum MixerWeights {
    Attention(Box<AttentionWeights>),
    Convolution(Box<ConvolutionWeights>),
    DeltaNet(Box<DeltaWeights>),
}

/// Of a short convolution.
#[derive(Debug, Clone)]
pub(super) struct ConvolutionWeights {
    pub input: Packed,
    pub input_bias: Vector,
    /// [taps][channels up to 16].
    pub taps: Vec<f32>,
    pub taps_bias: Vector,
    pub output: Packed,
    pub output_bias: Vector,
}

/// Of a gated delta net.
#[derive(Debug, Clone)]
pub(super) struct DeltaWeights {
    pub input: Packed,
    pub gate: Packed,
    pub beta: Packed,
    pub alpha: Packed,
    /// [taps][channels up to 16].
    pub taps: Vec<f32>,
    /// Of each value head.
    pub step: Vec<f32>,
    pub decay: Vec<f32>,
    /// What makes unit queries and keys: see [`crate::kernels::Delta::units`].
    pub units: [Vec<f32>; 2],
    pub norm: NormWeights,
    pub output: Packed,
}

impl MixerWeights {
    /// Matrices that multiply normed hidden states.
    fn inputs(&self) -> Vec<&Packed> {
        match self {
            MixerWeights::Attention(a) => vec![&a.query, &a.key, &a.value],
            MixerWeights::Convolution(c) => vec![&c.input],
            MixerWeights::DeltaNet(d) => vec![&d.input, &d.gate, &d.beta, &d.alpha],
        }
    }

    /// The last matrix.
    fn output(&self) -> &Packed {
        match self {
            MixerWeights::Attention(a) => &a.output,
            MixerWeights::Convolution(c) => &c.output,
            MixerWeights::DeltaNet(d) => &d.output,
        }
    }
}

/// Of attention.
#[derive(Debug, Clone)]
pub(super) struct AttentionWeights {
    pub query: Packed,
    pub key: Packed,
    pub value: Packed,
    /// Of queries, keys, values.
    pub biases: [Vector; 3],
    /// Of queries and keys.
    pub qk_norms: [NormWeights; 2],
    pub sinks: Vector,
    pub output: Packed,
    pub output_bias: Vector,
}

/// Of the feed-forward part.
#[derive(Debug, Clone)]
pub(super) enum FfnWeights {
    Dense(DenseWeights),
    Mixture(Box<MixtureWeights>),
}

/// Of a dense part; of the experts of a mixture, one behind the other.
#[derive(Debug, Clone)]
pub(super) struct DenseWeights {
    pub input: FfnInput,
    /// Of gate and up. Those of experts are each padded to whole panels.
    pub input_biases: [Vector; 2],
    pub down: Packed,
    pub down_bias: Vector,
}

/// Of a mixture.
#[derive(Debug, Clone)]
pub(super) struct MixtureWeights {
    pub router: Packed,
    pub router_bias: Vector,
    pub choice_bias: Vector,
    pub experts: DenseWeights,
    pub shared: Option<DenseWeights>,
    /// What tells the shared expert's share.
    pub share: Vector,
}

impl DenseWeights {
    pub(super) fn inputs(&self) -> Vec<&Packed> {
        match &self.input {
            FfnInput::Together(m) | FfnInput::Plain(m) => vec![m],
            FfnInput::Apart { gate, up } => vec![gate, up],
        }
    }
}

impl FfnWeights {
    /// Its dense parts: the experts and the shared one of a mixture.
    pub(super) fn parts(&self) -> impl Iterator<Item = &DenseWeights> {
        let (one, shared) = match self {
            FfnWeights::Dense(dense) => (dense, None),
            FfnWeights::Mixture(mixture) => (&mixture.experts, mixture.shared.as_ref()),
        };
        [one].into_iter().chain(shared)
    }
}

impl Layer {
    /// Its matrices, those that multiply normed hidden states first.
    fn matrices(&self) -> impl Iterator<Item = &Packed> {
        self.hidden_matrices().chain(self.outputs())
    }

    /// Matrices that multiply normed hidden states.
    pub(super) fn hidden_matrices(&self) -> impl Iterator<Item = &Packed> {
        let router = match &self.ffn {
            FfnWeights::Dense(_) => None,
            FfnWeights::Mixture(mixture) => Some(&mixture.router),
        };
        self.mixer
            .inputs()
            .into_iter()
            .chain(router)
            .chain(self.ffn.parts().flat_map(DenseWeights::inputs))
    }

    /// Matrices that multiply what a branch has inside.
    fn outputs(&self) -> impl Iterator<Item = &Packed> {
        [self.mixer.output()].into_iter().chain(self.ffn.parts().map(|part| &part.down))
    }
}

/// A model's weights in panels, in one block of memory, in the order of execution.
pub struct PackedModel {
    spec: ModelSpec,
    emulated: bool,
    arena: Arena,
    pub(super) layers: Vec<Layer>,
    pub(super) output_norm: NormWeights,
    pub(super) output_bias: Vector,
    pub(super) output: Packed,
    pub(super) embedding: Packed,
    formats_of: Vec<(Role, Format)>,
}

/// How a model's weights lie in memory: plans of one layout make the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WeightLayout {
    emulated: bool,
    /// Of the matrices in the order of execution.
    formats: Vec<Format>,
}

/// What a plan makes of a model: formats, places, and what there is to say about them.
struct Layout {
    /// The roles that fill a matrix (panels in turn), and its place; in the order of execution.
    matrices: Vec<(Vec<Role>, Packed)>,
    bytes: usize,
    /// The note about types without a kernel.
    widened: Option<String>,
    notes: Vec<String>,
}

impl Layout {
    fn new(model: &Model, plan: FormatPlan) -> Layout {
        let (spec, weights) = (&model.spec, &model.weights);
        let (mut widened, mut before, mut after) = (BTreeSet::new(), 0, 0);
        let mut converted = BTreeSet::new();
        let mut odd = BTreeSet::new();
        let mut format_of = |role: Role| {
            let (k, stored) = (weights.shape(role).1, weights.format(role));
            let (wanted, format) = (plan.wanted(role, stored), plan.format_of(role, stored, k));
            if is_kept_in_f32(role) && plan != FormatPlan::WidenedBf16Emulated {
                return format;
            }
            if format != wanted && format == Format::F32 {
                odd.insert(k);
            }
            if stored != Some(format) {
                let ((rows, k), encoding) = (weights.shape(role), weights.encoding(role));
                let name = encoding.ggml_name();
                if plan == FormatPlan::AsStored && stored.is_none() {
                    widened.insert(name);
                    before += rows * encoding.row_bytes(k);
                    after += rows * format.row_bytes(k);
                } else {
                    converted.insert((name, format));
                }
            }
            format
        };
        let mut bytes = 0;
        let mut matrices = Vec::new();
        for (roles, format) in order(spec, &mut format_of) {
            let experts = spec.experts_of(roles[0]);
            let (n, k) = weights.shape(roles[0]);
            let n = n / experts;
            // Two matrices in turn: both padded to whole panels.
            let n = if roles.len() == 1 { n } else { roles.len() * padded(n) };
            let packed = Packed { format, n, k, experts, offset: bytes };
            bytes += packed.bytes();
            matrices.push((roles, packed));
        }
        let mut notes = Vec::new();
        let names: Vec<_> = widened.into_iter().collect();
        let widened = (after > 0).then(|| {
            format!(
                "no kernel computes {} as stored: widened to f32 at load, {} become {}",
                names.join(", "),
                Bytes(before as u64),
                Bytes(after as u64)
            )
        });
        notes.extend(widened.clone());
        if !converted.is_empty() {
            let names: Vec<_> =
                converted.iter().map(|(name, format)| format!("{name} to {format}")).collect();
            notes.push(format!("weights converted at load: {}", names.join(", ")));
        }
        if !odd.is_empty() {
            let sizes: Vec<_> = odd.iter().map(usize::to_string).collect();
            notes.push(format!(
                "rows of {} are no multiple of 32: these matrices are computed in f32",
                sizes.join(", ")
            ));
        }
        Layout { matrices, bytes, widened, notes }
    }
}

/// The matrices of a model in the order of execution, by the roles that fill each, with their formats. Gate and up are one where their
/// formats are one and neither has a bias.
fn order(spec: &ModelSpec, format_of: &mut dyn FnMut(Role) -> Format) -> Vec<(Vec<Role>, Format)> {
    let mut all: Vec<(Vec<Role>, Format)> = Vec::new();
    for role in matrices(spec) {
        let format = format_of(role);
        let fused = |layer: usize| {
            matches!(
                spec.layers[layer].ffn,
                Ffn::Gated { input_bias: false, .. } | Ffn::Mixture(Mixture { biases: false, .. })
            )
        };
        match (role, all.last_mut()) {
            (Role::Up(layer), Some((last, of)))
                if *last == [Role::Gate(layer)] && *of == format && fused(layer) =>
            {
                last.push(role);
            }
            (Role::ExpertUp(layer), Some((last, of)))
                if *last == [Role::ExpertGate(layer)] && *of == format && fused(layer) =>
            {
                last.push(role);
            }
            (Role::SharedUp(layer), Some((last, of)))
                if *last == [Role::SharedGate(layer)] && *of == format =>
            {
                last.push(role);
            }
            _ => all.push((vec![role], format)),
        }
    }
    all
}

/// Taps that stand channel by channel, tap by tap: [taps][channels up to 16].
fn taps_first(values: &[f32], channels: usize, taps: usize) -> Vec<f32> {
    let stride = padded(channels);
    let mut out = vec![0.0; stride * taps];
    for (channel, of_channel) in values.chunks_exact(taps).take(channels).enumerate() {
        of_channel.iter().enumerate().for_each(|(tap, value)| out[tap * stride + channel] = *value);
    }
    out
}

thread_local! {
    /// Rows as the file has them, on their way into a panel. It stays: memory that is given back and asked for again is zeroed again.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Some panels of a matrix, or some of its experts, on their way into memory.
struct Piece<'a> {
    packed: Packed,
    roles: &'a [Role],
    /// The first panel or expert.
    first: usize,
    out: &'a mut [u8],
}

impl Piece<'_> {
    /// Bytes of what is counted: a panel, or an expert.
    fn unit(packed: Packed) -> usize {
        if packed.experts == 1 {
            panel_bytes(packed.format, packed.k)
        } else {
            packed.bytes_of_one()
        }
        .max(1)
    }

    /// Reads, converts and packs it.
    fn fill(&mut self, model: &Model) -> Result<(), ModelError> {
        let Piece { packed, roles, first, out } = self;
        let bytes = panel_bytes(packed.format, packed.k).max(1);
        let rows = model.weights.shape(roles[0]).0 / packed.experts;
        BUFFER.with_borrow_mut(|buffer| {
            for (unit, out) in out.chunks_mut(Self::unit(*packed)).enumerate() {
                let unit = *first + unit;
                if packed.experts == 1 {
                    let from = unit / roles.len() * COLUMNS;
                    let range = from.min(rows)..(from + COLUMNS).min(rows);
                    buffer.clear();
                    model.weights.read(roles[unit % roles.len()], range, packed.format, buffer)?;
                    pack_panel(packed.format, packed.k, buffer, out);
                    continue;
                }
                // An expert at a time: some files hold its rows as columns.
                for (part, role) in roles.iter().enumerate() {
                    buffer.clear();
                    model.weights.read(
                        *role,
                        unit * rows..(unit + 1) * rows,
                        packed.format,
                        buffer,
                    )?;
                    let panels = out.chunks_exact_mut(bytes).skip(part).step_by(roles.len());
                    let size = COLUMNS * packed.format.row_bytes(packed.k);
                    panels
                        .zip(buffer.chunks(size.max(1)))
                        .for_each(|(out, rows)| pack_panel(packed.format, packed.k, rows, out));
                }
            }
            Ok(())
        })
    }
}

impl Layout {
    /// All of it in stretches for `threads` threads. A stretch is megabytes of neighbours: two threads in one huge page would both have
    /// it zeroed, and wait for each other.
    fn stretches<'a>(&'a self, mut memory: &'a mut [u8], threads: usize) -> Vec<Vec<Piece<'a>>> {
        let step = (self.bytes / (8 * threads.max(1))).clamp(2 << 20, 16 << 20);
        let (mut stretches, mut room) = (Vec::new(), 0);
        for (roles, packed) in &self.matrices {
            let unit = Piece::unit(*packed);
            let (mut all, others) = std::mem::take(&mut memory).split_at_mut(packed.bytes());
            memory = others;
            let mut first = 0;
            while !all.is_empty() {
                if room == 0 {
                    stretches.push(Vec::new());
                    room = step;
                }
                let size = (room.div_ceil(unit) * unit).min(all.len());
                let (out, after) = std::mem::take(&mut all).split_at_mut(size);
                if let Some(stretch) = stretches.last_mut() {
                    stretch.push(Piece { packed: *packed, roles, first, out });
                }
                (all, first, room) = (after, first + size / unit, room.saturating_sub(size));
            }
        }
        stretches
    }
}

impl PackedModel {
    /// Bytes that [`PackedModel::pack`] would take.
    pub fn estimate(model: &Model, plan: FormatPlan) -> u64 {
        Layout::new(model, plan).bytes as u64
    }

    /// How they would lie.
    pub fn layout(model: &Model, plan: FormatPlan) -> WeightLayout {
        let emulated = plan == FormatPlan::WidenedBf16Emulated;
        let matrices = Layout::new(model, plan).matrices;
        WeightLayout { emulated, formats: matrices.iter().map(|(_, m)| m.format).collect() }
    }

    /// What this plan converts or widens at load, a line each.
    pub fn notes(model: &Model, plan: FormatPlan) -> Vec<String> {
        Layout::new(model, plan).notes
    }

    /// Which of the file's types have no kernel and are widened under this plan, and how much memory that takes.
    pub fn widened(model: &Model, plan: FormatPlan) -> Option<String> {
        Layout::new(model, plan).widened
    }

    /// Reads, converts and packs all weights on `threads` threads.
    #[allow(
        clippy::too_many_lines,
        reason = "one pass over the tensors in the order of the layout"
    )]
    pub fn pack(
        model: &Model,
        plan: FormatPlan,
        threads: usize,
    ) -> Result<PackedModel, NativeError> {
        supported(&model.spec)?;
        let layout = Layout::new(model, plan);
        let memory = |NoMemory(bytes)| NativeError::Memory { what: "weights", bytes: bytes as u64 };
        let mut arena = Arena::new(layout.bytes).map_err(memory)?;
        let mut team =
            Team::new(KernelSet::portable(), threads, 2, false).map_err(NativeError::Threads)?;
        let failed = Mutex::new(None);
        let fail = |e| *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
        team.chunks(&mut layout.stretches(arena.bytes_mut(), threads), 1, |_, stretch| {
            for piece in stretch.iter_mut().flatten() {
                if let Err(e) = piece.fill(model) {
                    return fail(e);
                }
            }
        });
        match (team.broken(), failed.into_inner().unwrap_or_else(PoisonError::into_inner)) {
            (Some(reason), _) => return Err(NativeError::Broken(reason)),
            (None, Some(e)) => return Err(e.into()),
            (None, None) => (),
        }
        let mut placed = HashMap::new();
        for (roles, packed) in &layout.matrices {
            placed.extend(roles.iter().map(|role| (*role, *packed)));
        }
        if model.spec.tied_embeddings {
            placed.insert(Role::TokenEmbedding, placed[&Role::Output]);
        }
        let present: HashMap<Role, (usize, usize)> = roles(&model.spec).collect();
        let vector = |role: Role| -> Result<Vector, NativeError> {
            if !present.contains_key(&role) {
                return Ok(None);
            }
            let mut bytes = Vec::new();
            model.weights.read(role, 0..1, Format::F32, &mut bytes)?;
            let mut values: Vec<f32> =
                bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            values.resize(padded(values.len()), 0.0);
            Ok(Some(values))
        };
        // A norm without weights, or one that this layer does not have: ones.
        let norm =
            |weights: Role, bias: Option<Role>, n: usize| -> Result<NormWeights, NativeError> {
                let mut ones = vec![1.0; n];
                ones.resize(padded(n), 0.0);
                let bias = bias.map(&vector).transpose()?.flatten();
                Ok(NormWeights { weights: vector(weights)?.unwrap_or(ones), bias })
            };
        let hidden = model.spec.hidden;
        let mut layers = Vec::with_capacity(model.spec.layers.len());
        for (i, LayerSpec { mixer, ffn, norms: _, residual_scale: _ }) in
            model.spec.layers.iter().enumerate()
        {
            let mixer = match mixer {
                Mixer::Attention(attention) => {
                    let (query_width, kv_width) = match attention.qk_norm {
                        Some(QkNorm::Whole) => (attention.query_width(), attention.kv_width()),
                        _ => (attention.head_dim, attention.head_dim),
                    };
                    MixerWeights::Attention(Box::new(AttentionWeights {
                        query: placed[&Role::Query(i)],
                        key: placed[&Role::Key(i)],
                        value: placed[&Role::Value(i)],
                        biases: [
                            vector(Role::QueryBias(i))?,
                            vector(Role::KeyBias(i))?,
                            vector(Role::ValueBias(i))?,
                        ],
                        qk_norms: [
                            norm(Role::QueryNorm(i), None, query_width)?,
                            norm(Role::KeyNorm(i), None, kv_width)?,
                        ],
                        sinks: vector(Role::Sinks(i))?,
                        output: placed[&Role::AttentionOutput(i)],
                        output_bias: vector(Role::AttentionOutputBias(i))?,
                    }))
                }
                Mixer::Convolution(Convolution { taps, bias: _ }) => {
                    MixerWeights::Convolution(Box::new(ConvolutionWeights {
                        input: placed[&Role::ConvolutionInput(i)],
                        input_bias: vector(Role::ConvolutionInputBias(i))?,
                        taps: taps_first(
                            &vector(Role::ConvolutionTaps(i))?.unwrap_or_default(),
                            hidden,
                            *taps,
                        ),
                        taps_bias: vector(Role::ConvolutionTapsBias(i))?,
                        output: placed[&Role::ConvolutionOutput(i)],
                        output_bias: vector(Role::ConvolutionOutputBias(i))?,
                    }))
                }
                Mixer::DeltaNet(net) => {
                    let all = |value: f32| {
                        let mut values = vec![value; net.key_dim];
                        values.resize(padded(net.key_dim), 0.0);
                        values
                    };
                    MixerWeights::DeltaNet(Box::new(DeltaWeights {
                        input: placed[&Role::DeltaInput(i)],
                        gate: placed[&Role::DeltaGate(i)],
                        beta: placed[&Role::DeltaBeta(i)],
                        alpha: placed[&Role::DeltaAlpha(i)],
                        taps: taps_first(
                            &vector(Role::DeltaTaps(i))?.unwrap_or_default(),
                            net.channels(),
                            net.taps,
                        ),
                        step: vector(Role::DeltaStep(i))?.unwrap_or_default(),
                        decay: vector(Role::DeltaDecay(i))?.unwrap_or_default(),
                        units: [
                            all(1.0 / net.key_dim as f32),
                            all(1.0 / (net.key_dim as f32).sqrt()),
                        ],
                        norm: norm(Role::DeltaNorm(i), None, net.value_dim)?,
                        output: placed[&Role::DeltaOutput(i)],
                    }))
                }
            };
            let input = |gate: Role, up: Role| match (placed.get(&gate).copied(), placed[&up]) {
                (Some(gate), up) if gate == up => FfnInput::Together(up),
                (Some(gate), up) => FfnInput::Apart { gate, up },
                (None, up) => FfnInput::Plain(up),
            };
            let ffn = match ffn {
                Ffn::Gated { .. } | Ffn::Plain { .. } => FfnWeights::Dense(DenseWeights {
                    input: input(Role::Gate(i), Role::Up(i)),
                    input_biases: [vector(Role::GateBias(i))?, vector(Role::UpBias(i))?],
                    down: placed[&Role::Down(i)],
                    down_bias: vector(Role::DownBias(i))?,
                }),
                Ffn::Mixture(mixture) => {
                    // Each expert's part of a vector, padded.
                    let apart = |role: Role| -> Result<Vector, NativeError> {
                        let of_one = model.spec.shape(role).1 / mixture.experts;
                        let parts = |values: Vec<f32>| {
                            let values = &values[..of_one * mixture.experts];
                            let padding = vec![0.0; padded(of_one) - of_one];
                            values
                                .chunks(of_one.max(1))
                                .flat_map(|v| [v, &padding])
                                .flatten()
                                .copied()
                                .collect()
                        };
                        Ok(vector(role)?.map(parts))
                    };
                    let shared = mixture.shared.map(|_| DenseWeights {
                        input: input(Role::SharedGate(i), Role::SharedUp(i)),
                        input_biases: [None, None],
                        down: placed[&Role::SharedDown(i)],
                        down_bias: None,
                    });
                    FfnWeights::Mixture(Box::new(MixtureWeights {
                        router: placed[&Role::Router(i)],
                        router_bias: vector(Role::RouterBias(i))?,
                        choice_bias: vector(Role::ChoiceBias(i))?,
                        experts: DenseWeights {
                            input: input(Role::ExpertGate(i), Role::ExpertUp(i)),
                            input_biases: [
                                apart(Role::ExpertGateBias(i))?,
                                apart(Role::ExpertUpBias(i))?,
                            ],
                            down: placed[&Role::ExpertDown(i)],
                            down_bias: apart(Role::ExpertDownBias(i))?,
                        },
                        shared,
                        share: vector(Role::SharedShare(i))?,
                    }))
                }
            };
            layers.push(Layer {
                attention_norm: norm(
                    Role::AttentionNorm(i),
                    Some(Role::AttentionNormBias(i)),
                    hidden,
                )?,
                mixer,
                attention_post_norm: norm(Role::AttentionPostNorm(i), None, hidden)?,
                ffn_norm: norm(Role::FfnNorm(i), Some(Role::FfnNormBias(i)), hidden)?,
                ffn,
                ffn_post_norm: norm(Role::FfnPostNorm(i), None, hidden)?,
            });
        }
        Ok(PackedModel {
            spec: model.spec.clone(),
            emulated: plan == FormatPlan::WidenedBf16Emulated,
            arena,
            layers,
            output_norm: norm(Role::OutputNorm, Some(Role::OutputNormBias), hidden)?,
            output_bias: vector(Role::OutputBias)?,
            output: placed[&Role::Output],
            embedding: placed[&Role::TokenEmbedding],
            formats_of: placed.iter().map(|(role, packed)| (*role, packed.format)).collect(),
        })
    }

    /// The spec.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Bytes of the panels.
    pub fn bytes(&self) -> u64 {
        self.arena.bytes().len() as u64
    }

    /// Its matrices layer by layer; the embedding last, again if it is also the output matrix.
    pub fn matrices(&self) -> impl Iterator<Item = &Packed> {
        self.layers.iter().flat_map(Layer::matrices).chain([&self.output, &self.embedding])
    }

    /// The formats of its matrices, each once.
    pub fn formats(&self) -> Vec<Format> {
        self.matrices().map(|m| m.format).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The format of every matrix, for counting bytes.
    pub fn storage(&self, kv: KvElement) -> crate::roofline::Formats {
        let element = kv.bytes_of_16() as f64 / 16.0;
        crate::roofline::Formats::new(self.formats_of.iter().copied(), self.output.format, element)
    }

    /// How keys and values are kept where nothing else is asked for: in f16 by a model with quantized layers, otherwise in f32.
    pub fn usual_kv(&self) -> KvElement {
        match self.layers.iter().any(|l| l.matrices().any(|m| m.format.is_quantized())) {
            true => KvElement::F16,
            false => KvElement::F32,
        }
    }

    pub(super) fn kv_shape(&self, element: KvElement) -> KvShape {
        let layer = |l: &LayerSpec| match l.attention() {
            Some(attention) => {
                KvLayer { kv_heads: attention.kv_heads, head_dim: attention.head_dim }
            }
            None => KvLayer { kv_heads: 0, head_dim: 0 },
        };
        KvShape::new(self.spec.layers.iter().map(layer).collect(), element)
    }

    /// Where each layer's state begins in a block, and how many floats a block has.
    pub(super) fn state_layout(&self) -> (Vec<usize>, usize) {
        let mut next = 0usize;
        let mut begin = |layer: &LayerSpec| {
            let from = next;
            next = next.saturating_add(match &layer.mixer {
                Mixer::Attention(_) => 0,
                Mixer::Convolution(c) => StateArena::convolution_floats(self.spec.hidden, c.taps),
                Mixer::DeltaNet(d) => {
                    StateArena::convolution_floats(d.channels(), d.taps).saturating_add(
                        StateArena::delta_floats(d.value_heads, d.key_dim, d.value_dim),
                    )
                }
            });
            from
        };
        let offsets = self.spec.layers.iter().map(&mut begin).collect();
        (offsets, next)
    }

    /// Bytes that the states of one sequence take: two blocks, one that is read and one that is written. 0 for a model of attention alone.
    pub fn state_bytes_per_sequence(&self) -> u64 {
        self.state_layout().1 as u64 * 4 * 2
    }

    /// Bytes that the keys and values of one position take, kept as usual.
    pub fn kv_bytes_per_position(&self) -> u64 {
        self.kv_bytes_per_position_in(self.usual_kv())
    }

    /// The same, kept so.
    pub fn kv_bytes_per_position_in(&self, element: KvElement) -> u64 {
        (self.kv_shape(element).page_bytes() / PAGE) as u64
    }

    pub(super) fn panels(&self, m: &Packed) -> Panels<'_> {
        self.expert(m, 0)
    }

    /// One of a matrix's experts.
    pub(super) fn expert(&self, m: &Packed, expert: usize) -> Panels<'_> {
        assert!(expert < m.experts, "expert {expert} of {}", m.experts);
        let bytes = m.bytes_of_one();
        Panels::new(m.format, m.n, m.k, &self.arena.bytes()[m.offset + expert * bytes..][..bytes])
    }

    pub(super) fn emulated(&self) -> bool {
        self.emulated
    }

    /// Floats of the largest temporary of the emulated dtype: q, k and v together, or one matrix.
    pub(super) fn wide_floats(&self) -> usize {
        let floats = |m: &Packed| m.n.div_ceil(COLUMNS) * COLUMNS * m.k + COLUMNS;
        let layers = self.layers.iter().map(|l| {
            let together = match &l.mixer {
                MixerWeights::Attention(a) => floats(&a.query) + floats(&a.key) + floats(&a.value),
                MixerWeights::Convolution(_) | MixerWeights::DeltaNet(_) => 0,
            };
            l.matrices().map(floats).max().unwrap_or(0).max(together)
        });
        if self.emulated() { layers.max().unwrap_or(0).max(floats(&self.output)) } else { 0 }
    }
}

/// Refuses a spec that the forward pass does not compute, by the name of what is missing.
fn supported(spec: &ModelSpec) -> Result<(), ModelError> {
    let refuse = |what: &str| {
        let family = &spec.architecture;
        Err(ModelError::Invalid(format!(
            "this {family} model has {what}, which llmopt does not compute yet"
        )))
    };
    if spec.layers.is_empty() {
        return refuse("no layers");
    }
    for layer in &spec.layers {
        match layer.ffn {
            Ffn::Plain { activation: Activation::Clamped { .. }, .. } => {
                return refuse("a clamped activation without a gate");
            }
            Ffn::Mixture(_) if layer.norms == Norms::ParallelApart => {
                return refuse("experts beside attention");
            }
            _ => {}
        }
    }
    Ok(())
}

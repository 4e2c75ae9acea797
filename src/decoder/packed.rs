//! A model's weights as panels in one block of memory, in the order of execution: which matrix gets which format and place, and reading,
//! converting and packing them once. In: a [`Model`] and a [`FormatPlan`]. Out: a [`PackedModel`], shared between decoders.

use crate::kernels::{Arena, COLUMNS, Format, KernelSet, KvShape, NoMemory, PAGE, Panels, Team, pack_panel, padded, panel_bytes};
use crate::model::{Mixer, Model, ModelError, ModelSpec, Role, is_matrix, roles};
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// How it is stored and computed.
    pub format: Format,
    /// Outputs; of gate and up together, both in whole panels.
    pub n: usize,
    /// Inputs.
    pub k: usize,
    offset: usize,
}

impl Packed {
    fn bytes(&self) -> usize {
        self.n.div_ceil(COLUMNS) * panel_bytes(self.format, self.k)
    }
}

/// A vector padded to 16 with zeros.
pub(super) type Vector = Option<Vec<f32>>;

/// The weights and the bias of a norm, where it has them.
#[derive(Debug, Clone)]
pub(super) struct NormWeights {
    pub weights: Vector,
    pub bias: Vector,
}

/// A layer's weights; what its blueprint does not have is `None` and not asked for.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub attention_norm: NormWeights,
    pub query: Packed,
    pub key: Packed,
    pub value: Packed,
    pub output: Packed,
    pub ffn_norm: NormWeights,
    /// Gate and up panels in turn; `n` counts padded columns.
    pub gate_up: Packed,
    pub down: Packed,
}

impl Layer {
    /// Its matrices in the order of execution.
    fn matrices(&self) -> [&Packed; 6] {
        [&self.query, &self.key, &self.value, &self.output, &self.gate_up, &self.down]
    }
}

/// A model's weights in panels, in one block of memory, in the order of execution.
pub struct PackedModel {
    spec: ModelSpec,
    plan: FormatPlan,
    arena: Arena,
    pub(super) layers: Vec<Layer>,
    pub(super) output_norm: NormWeights,
    pub(super) output: Packed,
    pub(super) embedding: Packed,
    notes: Vec<String>,
}

/// What a plan makes of a model: formats, places, and what there is to say about them.
struct Layout {
    /// The roles that fill a matrix (panels in turn), and its place; in the order of execution.
    matrices: Vec<(Vec<Role>, Packed)>,
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
        let mut matrices = Vec::new();
        for roles in order(spec) {
            let (n, k) = weights.shape(roles[0]);
            // Two matrices in turn: both padded to whole panels.
            let n = if roles.len() == 1 { n } else { roles.len() * padded(n) };
            let packed = Packed { format: format_of(&roles), n, k, offset: bytes };
            bytes += packed.bytes();
            matrices.push((roles, packed));
        }
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
        Layout { matrices, bytes, notes }
    }
}

/// The matrices of a model in the order of execution, by the roles that fill each.
fn order(spec: &ModelSpec) -> Vec<Vec<Role>> {
    let mut all: Vec<Vec<Role>> = Vec::new();
    for role in roles(spec).map(|(role, _)| role).filter(|role| is_matrix(*role) && role.layer().is_some()) {
        match (role, all.last_mut()) {
            (Role::Up(layer), Some(last)) if *last == [Role::Gate(layer)] => last.push(role),
            _ => all.push(vec![role]),
        }
    }
    all.push(vec![Role::Output]);
    if !spec.tied_embeddings {
        all.push(vec![Role::TokenEmbedding]);
    }
    all
}

impl PackedModel {
    /// Bytes that [`PackedModel::pack`] would take.
    pub fn estimate(model: &Model, plan: FormatPlan) -> u64 {
        Layout::new(model, plan).bytes as u64
    }

    /// Reads, converts and packs all weights on `threads` threads.
    pub fn pack(model: &Model, plan: FormatPlan, threads: usize) -> Result<PackedModel, NativeError> {
        super::forward::supported(&model.spec)?;
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
        let mut placed = HashMap::new();
        for (roles, packed) in &layout.matrices {
            fill(*packed, roles)?;
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
            let mut values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            values.resize(padded(values.len()), 0.0);
            Ok(Some(values))
        };
        let norm = |weights: Role, bias: Role| -> Result<NormWeights, NativeError> {
            Ok(NormWeights { weights: vector(weights)?, bias: vector(bias)? })
        };
        let mut layers = Vec::with_capacity(model.spec.layers.len());
        for i in 0..model.spec.layers.len() {
            layers.push(Layer {
                attention_norm: norm(Role::AttentionNorm(i), Role::AttentionNormBias(i))?,
                query: placed[&Role::Query(i)],
                key: placed[&Role::Key(i)],
                value: placed[&Role::Value(i)],
                output: placed[&Role::AttentionOutput(i)],
                ffn_norm: norm(Role::FfnNorm(i), Role::FfnNormBias(i))?,
                gate_up: placed[&Role::Up(i)],
                down: placed[&Role::Down(i)],
            });
        }
        Ok(PackedModel {
            spec: model.spec.clone(),
            plan,
            arena,
            layers,
            output_norm: norm(Role::OutputNorm, Role::OutputNormBias)?,
            output: placed[&Role::Output],
            embedding: placed[&Role::TokenEmbedding],
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

    /// Its matrices in the order of execution; the embedding last, again if it is also the output matrix.
    pub fn matrices(&self) -> impl Iterator<Item = &Packed> {
        self.layers.iter().flat_map(Layer::matrices).chain([&self.output, &self.embedding])
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
        self.layers.iter().any(|l| l.matrices().iter().any(|m| m.format.is_quantized()))
    }

    pub(super) fn kv_shape(&self) -> KvShape {
        let Mixer::Attention(attention) = &self.spec.layers[0].mixer;
        let (kv_heads, head_dim) = (attention.kv_heads, attention.head_dim);
        KvShape { layers: self.spec.layers.len(), kv_heads, head_dim, half: self.half_kv() }
    }

    /// Bytes that the keys and values of one position take.
    pub fn kv_bytes_per_position(&self) -> u64 {
        (self.kv_shape().page_bytes() / PAGE) as u64
    }

    pub(super) fn panels(&self, m: &Packed) -> Panels<'_> {
        Panels::new(m.format, m.n, m.k, &self.arena.bytes()[m.offset..][..m.bytes()])
    }

    pub(super) fn emulated(&self) -> bool {
        self.plan == FormatPlan::WidenedBf16Emulated
    }

    /// Floats of the largest temporary of the emulated dtype: q, k and v together, or one matrix.
    pub(super) fn wide_floats(&self) -> usize {
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

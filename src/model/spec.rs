//! The spec of a model as data: everything the forward pass needs to know apart from the weights.
//! Architectures fill it in; nothing that computes asks which architecture it came from. Whoever computes from a spec takes it
//! apart without `..`, so that a field nobody computes does not compile.
//! Over 500 lines: one record of data, a line or two a field.

/// The spec. All sizes are counts of elements; checked by [`crate::model`] before anyone else sees them.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ModelSpec {
    /// Architecture name as the file has it (`llama`).
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Vocabulary size: rows of the embedding and of the output matrix.
    pub vocab: usize,
    /// Positions the model was made for; requests past it are clipped or refused.
    pub context: usize,
    /// Transformer blocks, first to last.
    pub layers: Vec<LayerSpec>,
    /// Normalization of the residual stream, of branches, of queries and keys.
    pub norm: Norm,
    /// Tables of rotary positions that layers refer to.
    pub ropes: Vec<Rope>,
    /// What a token's embedding is multiplied with before the first layer.
    pub embedding_scale: f32,
    /// Queries at position p are multiplied with 1 + beta * ln(1 + floor(p / original)).
    pub query_growth: Option<QueryGrowth>,
    /// What scores are multiplied with.
    pub logit_scale: f32,
    /// Scores become cap * tanh(score / cap), after the scale.
    pub logit_softcap: Option<f32>,
    /// The output matrix has a bias.
    pub output_bias: bool,
    /// The output matrix is the token embedding (the file has no `output.weight`).
    pub tied_embeddings: bool,
}

/// One transformer block.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct LayerSpec {
    /// What mixes positions.
    pub mixer: Mixer,
    /// What works on each position alone.
    pub ffn: Ffn,
    /// Where the two branches are normalized.
    pub norms: Norms,
    /// What each branch is multiplied with before it joins the residual stream.
    pub residual_scale: f32,
}

/// What mixes the positions of a sequence.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub enum Mixer {
    /// Softmax attention over keys and values.
    Attention(Attention),
    /// A short convolution.
    Convolution(Convolution),
    /// A gated delta net.
    DeltaNet(DeltaNet),
}

/// out(C * convolution(B * x)), where (B, C, x) = in(input) are as wide as the layer, and the convolution reaches over the last positions
/// of each channel by itself (LFM2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Convolution {
    /// Positions it reaches over.
    pub taps: usize,
    /// Both matrices and the convolution have biases.
    pub bias: bool,
}

/// Linear attention by the gated delta rule: queries, keys and values pass a short convolution and silu; each value head keeps a state of
/// key × value that decays and is corrected at each position; its outputs are normed and gated (Qwen 3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct DeltaNet {
    /// Heads of queries and keys.
    pub key_heads: usize,
    /// Heads of values; a multiple of `key_heads`.
    pub value_heads: usize,
    /// Width of a query or key.
    pub key_dim: usize,
    /// Width of a value.
    pub value_dim: usize,
    /// Positions that the convolution reaches over.
    pub taps: usize,
    /// Value head h belongs to key head h mod `key_heads` (GGUF files); else to that of its group of neighbours (checkpoints).
    pub tiled: bool,
}

/// Grouped softmax attention.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even. `heads * head_dim` may differ from `hidden`.
    pub head_dim: usize,
    /// The query, key and value matrices have biases.
    pub qkv_bias: bool,
    /// The output matrix has a bias.
    pub output_bias: bool,
    /// Normalization of queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// Index into [`ModelSpec::ropes`]; `None`: this layer knows no positions.
    pub rope: Option<usize>,
    /// A query at position q sees the keys at positions above q - window.
    pub window: Option<usize>,
    /// What queries are multiplied with, usually 1 / sqrt(head_dim).
    pub scale: f32,
    /// Scores become cap * tanh(score / cap) before the softmax.
    pub softcap: Option<f32>,
    /// One more score per head stands in the softmax's denominator (its value is a weight).
    pub sinks: bool,
    /// The query matrix gives a gate behind each head's query; the head's output is multiplied with its sigmoid.
    pub gate: bool,
}

/// Normalization of queries and keys, by the model's [`Norm`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum QkNorm {
    /// Each head by itself, before the rotation; one vector of `head_dim` weights for all heads.
    PerHead,
    /// The same, after the rotation.
    PerHeadRotated,
    /// All heads together, before the rotation: vectors of `heads * head_dim` and `kv_heads * head_dim` weights.
    Whole,
}

/// Feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub enum Ffn {
    /// down(activation(gate(x)) * up(x)).
    Gated {
        /// Between the matrices.
        width: usize,
        /// Of the gate.
        activation: Activation,
        /// `gate` and `up` have biases.
        input_bias: bool,
        /// `down` has a bias.
        output_bias: bool,
    },
    /// down(activation(up(x))).
    Plain {
        /// Between the matrices.
        width: usize,
        /// Of the only product.
        activation: Activation,
        /// `up` has a bias.
        input_bias: bool,
        /// `down` has a bias.
        output_bias: bool,
    },
    /// A weighted sum of a few of many.
    Mixture(Mixture),
}

/// Experts, each down(activation(gate(x)) * up(x)), of which a router chooses a few for each position. Of equal ones it takes the lower
/// index.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Mixture {
    /// How many there are.
    pub experts: usize,
    /// How many each position uses.
    pub used: usize,
    /// Width between an expert's two matrices.
    pub width: usize,
    /// Of the gate.
    pub activation: Activation,
    /// From the router's scores to the experts' weights.
    pub routing: Routing,
    /// The weights of the chosen ones are divided by their sum.
    pub normalized: bool,
    /// What weights are multiplied with at the end.
    pub scale: f32,
    /// The router has a bias.
    pub router_bias: bool,
    /// A vector is added to the weights for the choice alone.
    pub choice_bias: bool,
    /// Each expert has biases of gate, up and down.
    pub biases: bool,
    /// An expert that every position uses.
    pub shared: Option<Shared>,
}

/// From a router's scores to the weights of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum Routing {
    /// Softmax over all, then the choice.
    Softmax,
    /// The choice, then the softmax over the chosen ones.
    SoftmaxOfChosen,
    /// Each by the sigmoid.
    Sigmoid,
}

/// An expert beside those that are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Shared {
    /// Width between its two matrices.
    pub width: usize,
    /// It is multiplied with the sigmoid of a product of a vector and the layer's input.
    pub gate: bool,
}

/// Feed-forward activation.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub enum Activation {
    /// x * sigmoid(x).
    Silu,
    /// x * Phi(x), Phi the normal distribution (by the error function).
    Gelu,
    /// The tanh approximation of gelu.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// max(x, 0) squared.
    Relu2,
    /// With g = min(gate, limit) and u = up within ±limit: g * sigmoid(alpha * g) * (u + 1). It needs a gate.
    Clamped {
        /// Largest gate, and largest magnitude of up.
        limit: f32,
        /// Of the sigmoid.
        alpha: f32,
    },
}

/// Where a layer is normalized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum Norms {
    /// The input of each branch.
    Before,
    /// The output of each branch, before it joins the residual stream.
    After,
    /// Both.
    Both,
    /// One norm whose result both branches take; both join the residual stream together.
    Parallel,
    /// As `Parallel`, each branch with a norm of its own.
    ParallelApart,
}

/// Normalization.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Norm {
    /// How the width of a vector is measured.
    pub kind: NormKind,
    /// Added to the mean square or to the variance.
    pub epsilon: f32,
    /// There are weights to multiply with.
    pub weights: bool,
    /// There is a bias to add.
    pub bias: bool,
}

/// Kind of normalization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum NormKind {
    /// By the root mean square.
    Rms,
    /// Mean taken away, by the standard deviation.
    Layer,
}

/// Rotary position embedding over interleaved pairs (2i, 2i+1) of each head. Loaders of files in the half-split order
/// (i, i + dims / 2) permute what makes queries and keys, so that only one order exists here.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f32,
    /// Dimensions that rotate, counted from the start of each head; even.
    pub dims: usize,
    /// One divisor for each of the `dims / 2` frequencies (linear, llama 3, yarn, longrope scaling); empty means all 1.
    pub factors: Vec<f32>,
    /// What cosines and sines are multiplied with (yarn, longrope).
    pub magnitude: f32,
    /// What takes the place of factors and magnitude for sequences that may become longer than some length.
    pub long: Option<LongRope>,
}

/// The second set of a rope that depends on the length of the sequence (longrope).
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct LongRope {
    /// Requests of more positions than this, prompt and answer together, are computed with this set.
    pub above: usize,
    /// As [`Rope::factors`].
    pub factors: Vec<f32>,
    /// As [`Rope::magnitude`].
    pub magnitude: f32,
}

/// Which of two sets turns a request (longrope). It depends on the request alone, so that an answer does not change with its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RopeSet {
    /// [`Rope::factors`]: all positions fit into [`LongRope::above`].
    Short,
    /// [`LongRope::factors`].
    Long,
}

impl RopeSet {
    /// Its name in a record.
    pub fn name(self) -> &'static str {
        match self {
            RopeSet::Short => "short",
            RopeSet::Long => "long",
        }
    }
}

/// Scale of queries that grows with their position (`attention.temperature_scale`).
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct QueryGrowth {
    /// Weight of the logarithm.
    pub beta: f32,
    /// Positions after which it first grows.
    pub original: usize,
}

/// Sizes of a plain llama: see [`ModelSpec::plain`].
#[derive(Debug, Clone, Copy)]
pub struct Plain {
    /// All of one kind.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width between the feed-forward matrices.
    pub ffn: usize,
    /// Query heads of each layer.
    pub heads: usize,
    /// Key/value heads of each layer; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even, as pairs of it rotate.
    pub head_dim: usize,
    /// Token ids, from 0.
    pub vocab: usize,
    /// Positions.
    pub context: usize,
    /// Base of the rotary frequencies.
    pub theta: f32,
    /// Of every norm.
    pub epsilon: f32,
}

impl ModelSpec {
    /// A tied llama without any extra: what benchmarks, tests and the fake decoder need.
    pub fn plain(sizes: Plain) -> ModelSpec {
        let Plain {
            layers,
            hidden,
            ffn,
            heads,
            kv_heads,
            head_dim,
            vocab,
            context,
            theta,
            epsilon,
        } = sizes;
        ModelSpec {
            architecture: "llama".into(),
            hidden,
            vocab,
            context,
            layers: vec![LayerSpec::plain(heads, kv_heads, head_dim, ffn); layers],
            norm: Norm::rms(epsilon),
            ropes: vec![Rope::plain(theta, head_dim)],
            embedding_scale: 1.0,
            query_growth: None,
            logit_scale: 1.0,
            logit_softcap: None,
            output_bias: false,
            tied_embeddings: true,
        }
    }

    /// Whether layers have a state that a sequence carries from position to position.
    pub fn has_state(&self) -> bool {
        // A convolution over one position is a layer with a state of nothing.
        self.layers.iter().any(|layer| layer.attention().is_none())
    }

    /// Which set of its ropes turns a request that takes so many positions, prompt and answer together; `None` where there is one only.
    pub fn rope_set(&self, positions: usize) -> Option<RopeSet> {
        let mut borders = self
            .ropes
            .iter()
            .filter_map(|rope| rope.long.as_ref())
            .map(|long| long.above)
            .peekable();
        borders.peek()?;
        Some(if borders.any(|above| positions > above) { RopeSet::Long } else { RopeSet::Short })
    }

    /// The attention of all layers that have any, to be changed.
    pub fn attentions_mut(&mut self) -> impl Iterator<Item = &mut Attention> {
        self.layers.iter_mut().filter_map(LayerSpec::attention_mut)
    }
}

impl LayerSpec {
    /// A llama layer: pre-norm, SwiGLU, the first rope.
    pub fn plain(heads: usize, kv_heads: usize, head_dim: usize, ffn: usize) -> LayerSpec {
        LayerSpec {
            mixer: Mixer::Attention(Attention {
                heads,
                kv_heads,
                head_dim,
                qkv_bias: false,
                output_bias: false,
                qk_norm: None,
                rope: Some(0),
                window: None,
                scale: 1.0 / (head_dim as f32).sqrt(),
                softcap: None,
                sinks: false,
                gate: false,
            }),
            ffn: Ffn::Gated {
                width: ffn,
                activation: Activation::Silu,
                input_bias: false,
                output_bias: false,
            },
            norms: Norms::Before,
            residual_scale: 1.0,
        }
    }

    /// Its attention, if it has any.
    pub fn attention(&self) -> Option<&Attention> {
        match &self.mixer {
            Mixer::Attention(attention) => Some(attention),
            Mixer::Convolution(_) | Mixer::DeltaNet(_) => None,
        }
    }

    /// Its short convolution, if it has one.
    pub fn convolution(&self) -> Option<&Convolution> {
        if let Mixer::Convolution(convolution) = &self.mixer { Some(convolution) } else { None }
    }

    /// Its delta net, if it has one.
    pub fn delta_net(&self) -> Option<&DeltaNet> {
        if let Mixer::DeltaNet(net) = &self.mixer { Some(net) } else { None }
    }

    /// Its attention, to be changed.
    pub fn attention_mut(&mut self) -> Option<&mut Attention> {
        match &mut self.mixer {
            Mixer::Attention(attention) => Some(attention),
            Mixer::Convolution(_) | Mixer::DeltaNet(_) => None,
        }
    }
}

impl Attention {
    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Rows of the query matrix: with gates twice as many.
    pub fn query_rows(&self) -> usize {
        self.query_width() * if self.gate { 2 } else { 1 }
    }
}

impl DeltaNet {
    /// Width of all queries (or keys) together.
    pub fn key_width(&self) -> usize {
        self.key_heads * self.key_dim
    }

    /// Width of all values together.
    pub fn value_width(&self) -> usize {
        self.value_heads * self.value_dim
    }

    /// Channels of the convolution: queries, keys and values.
    pub fn channels(&self) -> usize {
        2 * self.key_width() + self.value_width()
    }
}

impl Ffn {
    /// Width between its two matrices (those of one expert).
    pub fn width(&self) -> usize {
        match *self {
            Ffn::Gated { width, .. }
            | Ffn::Plain { width, .. }
            | Ffn::Mixture(Mixture { width, .. }) => width,
        }
    }

    /// Its experts, if it has any.
    pub fn mixture(&self) -> Option<&Mixture> {
        match self {
            Ffn::Mixture(mixture) => Some(mixture),
            Ffn::Gated { .. } | Ffn::Plain { .. } => None,
        }
    }
}

impl Norm {
    /// RMS norm with weights.
    pub fn rms(epsilon: f32) -> Norm {
        Norm { kind: NormKind::Rms, epsilon, weights: true, bias: false }
    }
}

impl Rope {
    /// Unscaled, over these dimensions.
    pub fn plain(theta: f32, dims: usize) -> Rope {
        Rope { theta, dims, factors: Vec::new(), magnitude: 1.0, long: None }
    }
}

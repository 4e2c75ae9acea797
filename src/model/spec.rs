//! The blueprint of a model as data: everything the forward pass needs to know apart from the weights.
//! Architectures fill it in; nothing that computes asks which architecture it came from.

use super::Role;

/// The blueprint. All sizes are counts of elements; checked by [`crate::model`] before anyone else sees them.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ModelSpec {
    /// Architecture name as the file has it (`llama`).
    pub architecture: String,
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward layer.
    pub ffn: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even. `heads * head_dim` may differ from `hidden`.
    pub head_dim: usize,
    /// Vocabulary size: rows of the embedding and of the output matrix.
    pub vocab: usize,
    /// Positions the model was made for; requests past it are clipped or refused.
    pub context: usize,
    /// Normalization of the residual stream.
    pub norm: Norm,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Feed-forward activation.
    pub activation: Activation,
    /// The output matrix is the token embedding (the file has no `output.weight`).
    pub tied_embeddings: bool,
}

/// Normalization.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub enum Norm {
    /// Root mean square with this epsilon.
    Rms { epsilon: f32 },
}

/// Rotary position embedding over interleaved pairs (2i, 2i+1) of each head: the GGUF order. Loaders of files in the
/// half-split order (safetensors) permute the rows of the query and key matrices, so that only one order exists here.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f32,
    /// Dimensions that rotate, counted from the start of each head; even.
    pub dims: usize,
    /// One divisor for each of the `dims / 2` frequencies (llama 3 scaling, linear scaling); empty means all 1.
    pub factors: Vec<f32>,
}

/// Feed-forward activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum Activation {
    /// silu(gate) * up.
    SwiGlu,
}

impl ModelSpec {
    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Rows and columns of a weight: outputs × inputs of a matrix; a vector is one row.
    pub fn shape(&self, role: Role) -> (usize, usize) {
        match role {
            Role::TokenEmbedding | Role::Output => (self.vocab, self.hidden),
            Role::OutputNorm | Role::AttentionNorm(_) | Role::FfnNorm(_) => (1, self.hidden),
            Role::Query(_) => (self.query_width(), self.hidden),
            Role::Key(_) | Role::Value(_) => (self.kv_width(), self.hidden),
            Role::AttentionOutput(_) => (self.hidden, self.query_width()),
            Role::Gate(_) | Role::Up(_) => (self.ffn, self.hidden),
            Role::Down(_) => (self.hidden, self.ffn),
        }
    }
}

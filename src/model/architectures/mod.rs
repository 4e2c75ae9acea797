//! Architectures: from a file's metadata to a [`ModelSpec`] and the names of its tensors, one small file each.
//! In: metadata. Out: a blueprint and a list of (name, role, shape). They read no weights.

pub(super) mod llama;

use super::{ModelSpec, Role};

/// Architectures that can be run, as GGUF files name them.
pub const KNOWN: &[&str] = &["llama"];

/// Every role of a model with its shape (rows, columns), in the order of execution. `Output` only if it is not tied.
pub(super) fn roles(spec: &ModelSpec) -> impl Iterator<Item = (Role, (usize, usize))> + '_ {
    let (h, q, kv, ffn) = (spec.hidden, spec.query_width(), spec.kv_width(), spec.ffn);
    let layers = (0..spec.layers).flat_map(move |i| {
        [
            (Role::AttentionNorm(i), (1, h)),
            (Role::Query(i), (q, h)),
            (Role::Key(i), (kv, h)),
            (Role::Value(i), (kv, h)),
            (Role::AttentionOutput(i), (h, q)),
            (Role::FfnNorm(i), (1, h)),
            (Role::Gate(i), (ffn, h)),
            (Role::Up(i), (ffn, h)),
            (Role::Down(i), (h, ffn)),
        ]
    });
    let output = (!spec.tied_embeddings).then_some((Role::Output, (spec.vocab, h)));
    std::iter::once((Role::TokenEmbedding, (spec.vocab, h))).chain(layers).chain([(Role::OutputNorm, (1, h))]).chain(output)
}

/// The line that refuses an architecture.
pub(super) fn unknown(name: &str) -> String {
    format!("architecture '{}' is not supported; known: {}", crate::units::shown(name), KNOWN.join(", "))
}

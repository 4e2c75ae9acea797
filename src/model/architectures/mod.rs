//! Architectures: from a file's metadata to a [`ModelSpec`] and the names of its tensors, one small file each.
//! In: metadata. Out: a blueprint and a list of (name, role, shape). They read no weights.

pub(super) mod llama;

use super::{ModelSpec, Role};

/// Architectures that can be run, as GGUF files name them.
pub const KNOWN: &[&str] = &["llama"];

/// Every role of a model with its shape (rows, columns), in the order of execution. `Output` only if it is not tied.
pub(super) fn roles(spec: &ModelSpec) -> impl Iterator<Item = (Role, (usize, usize))> + '_ {
    let layers = (0..spec.layers).flat_map(|i| {
        [
            Role::AttentionNorm(i),
            Role::Query(i),
            Role::Key(i),
            Role::Value(i),
            Role::AttentionOutput(i),
            Role::FfnNorm(i),
            Role::Gate(i),
            Role::Up(i),
            Role::Down(i),
        ]
    });
    let output = (!spec.tied_embeddings).then_some(Role::Output);
    let roles = std::iter::once(Role::TokenEmbedding).chain(layers).chain([Role::OutputNorm]).chain(output);
    roles.map(|role| (role, spec.shape(role)))
}

/// The line that refuses an architecture.
pub(super) fn unknown(name: &str) -> String {
    format!("architecture '{}' is not supported; known: {}", crate::units::shown(name), KNOWN.join(", "))
}

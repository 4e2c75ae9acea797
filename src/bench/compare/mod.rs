//! `llmopt compare`: settings side by side, by bare forward passes, fresh processes and the quality of their distributions. In: decoders
//! and what processes reported. Out: a [`comparison::Comparison`] and recommendations. It formats nothing.

pub mod comparison;
pub mod figures;
pub mod forward;
pub mod quality;
pub mod recommendation;

//! The limits of this machine and what a model's step asks of it. In: threads, a `ModelSpec` and the formats of its weights. Out:
//! measured read bandwidth and multiply-add rates; bytes and operations of a step; the fastest it can be. It runs no model.

mod measure;
mod work;

pub use measure::{Effort, Limits, Rates, Reference, ReferenceRates};
pub use work::{Bound, Formats, Work};

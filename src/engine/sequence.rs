//! A sequence in flight, as the scheduler sees it: counts. Its tokens and text are with [`super::StopWatch`], its keys and values with
//! the decoder.

use super::Request;
use crate::decoder::Slot;
use crate::units::TokenId;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) request: Request,
    pub(super) slot: Slot,
    /// Positions whose keys and values exist.
    pub(super) done: usize,
    /// Rows of padding to compute before the prompt's own rows (`mask` off).
    pub(super) padding: usize,
    /// Tokens of the answer that have not run yet: the newest one, or several where a grammar forced them.
    pub(super) pending: Vec<TokenId>,
}

impl Sequence {
    /// Whether prompt tokens are still to be run.
    pub(super) fn is_prefilling(&self) -> bool {
        self.done < self.request.prompt.len()
    }
}

//! What can be wrong with one record before its place is known, and the faults that all formats share.
// Untrusted input.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

/// A record's fault before its place is known.
pub(super) type Fault = (&'static str, String);

/// Longest record in bytes. 16 M tokens of ordinary text do not fit a model, and a file may be made of nothing but such records.
pub const LONGEST_RECORD: usize = 8 << 20;
/// The code of a record past [`LONGEST_RECORD`].
pub(super) const TOO_LONG: &str = "record_too_long";

/// A record longer than is read at all.
pub(super) fn too_long(length: u64) -> Fault {
    (TOO_LONG, format!("the record has {length} bytes; the limit is {LONGEST_RECORD}"))
}

/// Bytes as text, or where they are not.
pub(super) fn utf8(bytes: &[u8]) -> Result<&str, Fault> {
    std::str::from_utf8(bytes).map_err(|e| {
        (
            "not_utf8",
            format!(
                "byte {} of the record is not UTF-8; save the file as UTF-8",
                e.valid_up_to() + 1
            ),
        )
    })
}

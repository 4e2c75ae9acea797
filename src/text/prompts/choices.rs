//! Texts among which an answer is chosen, from a flag or a record. In: the list. Out: the list, or what it must be.
// Untrusted input.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

use crate::units::shown;
use std::collections::HashSet;

/// Choices of one prompt.
const MOST: usize = 1024;

/// That there are at least two, all different, none empty. The error goes on from the field's or flag's name.
pub fn checked(choices: Vec<String>) -> Result<Vec<String>, String> {
    if choices.len() < 2 || choices.len() > MOST || choices.iter().any(String::is_empty) {
        return Err(format!("must be 2 to {MOST} texts that are not empty"));
    }
    let mut seen = HashSet::new();
    match choices.iter().find(|choice| !seen.insert(choice.as_str())) {
        Some(twice) => {
            Err(format!("has '{}' twice", shown(&twice.chars().take(60).collect::<String>())))
        }
        None => Ok(choices),
    }
}

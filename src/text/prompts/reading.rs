//! How records become prompts: which field is the prompt and which the id, a template over all of them, which are settings, and which
//! are carried to the answer's line. In: flags as plain values. Out: the rules that every reader follows.
// Untrusted input.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

use super::fault::Fault;
use super::fields;
use super::record::{InputFormat, OriginalPrompt, prompt};
use crate::text::{Content, RowTemplate};
use crate::units::shown;
use serde_json::Value;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

/// What the command line says of the records.
#[derive(Clone, Default)]
pub struct Reading {
    /// Format of all files; without it the name decides, and the first bytes where they say otherwise.
    pub format: Option<InputFormat>,
    /// What separates CSV columns; told from the header without it.
    pub delimiter: Option<u8>,
    /// The field that is the prompt; `prompt` or `messages` without it.
    pub prompt_field: Option<String>,
    /// The field that is the id; `id` without it.
    pub id_field: Option<String>,
    /// Makes the prompt of a record's fields.
    pub template: Option<Arc<RowTemplate>>,
    /// The only fields that are settings; without it all of their names, or none where the prompt is made by a template or another field.
    pub setting_fields: Option<Vec<String>>,
    /// Fields that lines of answers are to have, if some record has them.
    pub wanted: Vec<String>,
    /// Names that lines of answers have by themselves: one of them may be what was meant.
    pub own: Vec<&'static str>,
}

impl Reading {
    /// Whether fields are data unless they are named as settings.
    pub(super) fn is_data(&self) -> bool {
        self.template.is_some() || self.prompt_field.is_some()
    }

    /// Whether anything is carried to a line that has no columns of its own accord.
    pub(super) fn carries(&self) -> bool {
        self.is_data() || !self.wanted.is_empty()
    }

    /// Name of the field that is the id.
    pub(super) fn id_name(&self) -> &str {
        self.id_field.as_deref().unwrap_or("id")
    }

    /// Names of the fields that are settings.
    pub(super) fn settings(&self) -> impl Iterator<Item = &'static str> {
        fields::NAMES.into_iter().filter(|name| match &self.setting_fields {
            Some(list) => list.iter().any(|n| n == name),
            None => !self.is_data(),
        })
    }

    /// Whether a field of this name is only what the record's line says anyway: its id, its prompt.
    pub(super) fn is_told(&self, name: &str) -> bool {
        match name {
            "id" => self.id_name() == "id",
            "prompt" | "messages" => {
                self.template.is_none()
                    && self.prompt_field.as_deref().is_none_or(|field| field == name)
            }
            _ => false,
        }
    }

    /// Refuses fields that no record can have where all records have just these; the error says what is there.
    pub(super) fn check_names(&self, names: &[String], what: &str) -> Result<(), String> {
        let some: Vec<String> =
            names.iter().take(8).map(|n| n.chars().take(30).collect()).collect();
        let there = shown(&some.join(", "));
        let missing = |name: &&String| !names.contains(name);
        let asked = [
            ("--template", self.template.as_ref().map(|t| t.needed()).unwrap_or_default()),
            ("--prompt-field", self.prompt_field.as_slice()),
            ("--id-field", self.id_field.as_slice()),
            ("--setting-fields", self.setting_fields.as_deref().unwrap_or_default()),
        ];
        for (flag, fields) in asked {
            if let Some(name) = fields.iter().find(missing) {
                return Err(format!("{flag} asks for {}, and {what} {there}", shown(name)));
            }
        }
        let names_in_template = self.template.as_ref().map(|t| t.names()).unwrap_or_default();
        let twice = |name: &&String| names.iter().filter(|n| n == name).count() > 1;
        match names_in_template.iter().find(twice) {
            Some(name) => Err(format!(
                "two columns are called {}, which the template names; rename one",
                shown(name)
            )),
            None => Ok(()),
        }
    }
}

/// What is carried to the lines of answers, besides the rules of reading.
#[derive(Clone, Default)]
pub(super) struct Rules {
    pub reading: Arc<Reading>,
    /// Names of the columns whose values are carried, each once.
    pub columns: Arc<[String]>,
    /// All fields are carried together, as a JSON object.
    pub object: bool,
    /// Columns that are asked for and that no record is known to have yet: those of streams come later, if at all.
    pub hoped: Arc<[String]>,
}

/// What could be read of a record so far, for the line of an error too.
pub(super) struct Found {
    pub prompt: OriginalPrompt,
    /// A prompt is there.
    pub usable: bool,
}

impl Default for Found {
    fn default() -> Self {
        Found { prompt: OriginalPrompt::Nothing, usable: false }
    }
}

/// What a template makes of these fields, as a prompt.
pub(super) fn made(
    template: &RowTemplate,
    values: &[(&str, Value)],
    found: &mut Found,
) -> Result<Content, Fault> {
    let text = template.render(values).map_err(|message| ("template", message))?;
    found.prompt = OriginalPrompt::Text(text.clone());
    prompt(&text)
}

/// Where each of these names stands first among others, in time that grows with the names as they do.
pub(super) fn places<N: Hash + Eq, P: Copy>(
    wanted: &[N],
    among: impl IntoIterator<Item = (P, N)>,
) -> Vec<Option<P>> {
    let mut first = HashMap::new();
    for (place, name) in among {
        first.entry(name).or_insert(place);
    }
    wanted.iter().map(|name| first.get(name).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local!(static COMPARED: Cell<usize> = const { Cell::new(0) });

    /// A name that counts how often names are compared.
    struct Counted(String);

    impl PartialEq for Counted {
        fn eq(&self, other: &Counted) -> bool {
            COMPARED.set(COMPARED.get() + 1);
            self.0 == other.0
        }
    }

    impl Eq for Counted {}

    impl Hash for Counted {
        fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
            self.0.hash(state);
        }
    }

    #[test]
    fn twice_as_many_columns_are_compared_about_twice_as_often() {
        let compared = |count: usize| {
            let names = || (0..count).map(|n| Counted(format!("column {n}")));
            let wanted: Vec<Counted> = names().collect();
            COMPARED.set(0);
            let found = places(&wanted, names().enumerate());
            assert!(found.iter().enumerate().all(|(n, place)| *place == Some(n)));
            COMPARED.get()
        };
        let (once, twice) = (compared(5_000), compared(10_000));
        assert!(
            once >= 5_000 && twice < 3 * once,
            "{once} comparisons of 5,000 names, {twice} of 10,000"
        );
        assert_eq!(
            places(&["b", "c", "a"], [(0, "a"), (1, "b"), (2, "a")]),
            [Some(1), None, Some(0)]
        );
    }
}

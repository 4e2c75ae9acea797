//! The form of a hub id, `org/name` or `org/name:file`. In: what was typed. Out: its parts, or that it is no id.

use super::cache::{is_plain_name, is_plain_path};

/// A hub id.
#[derive(Debug, PartialEq)]
pub(super) struct Id<'a> {
    pub(super) organization: &'a str,
    pub(super) name: &'a str,
    pub(super) file: Option<&'a str>,
}

impl<'a> Id<'a> {
    /// Takes `org/name` and `org/name:file` apart; `None` if it is not of that form.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let (repository, file) = match text.split_once(':') {
            Some((repository, file)) => (repository, Some(file)),
            None => (text, None),
        };
        let (organization, name) = repository.split_once('/')?;
        let good = |part: &str| {
            let allowed =
                part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
            // `--` separates organization and name in the cache's folder names.
            allowed && !part.starts_with('.') && is_plain_name(part) && part.len() <= 96
        };
        let good = good(organization) && good(name) && file.is_none_or(is_plain_path);
        good.then_some(Id { organization, name, file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        let id = |organization, name, file| Some(Id { organization, name, file });
        assert_eq!(Id::parse("org/name"), id("org", "name", None));
        assert_eq!(Id::parse("org/na-me.1:sub/a.gguf"), id("org", "na-me.1", Some("sub/a.gguf")));
        for bad in [
            "name", "a/b/c", "../b", "/b", "a/", "a/b:", "a/b:../c", "a/b:/c", "a/b:c:d", "a b/c",
            "a/..", "a/con", "./b",
        ] {
            assert_eq!(Id::parse(bad), None, "{bad}");
        }
    }
}

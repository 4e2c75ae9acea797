//! What a tokenizer does to text before it cuts words. In: [`Normalizer`]s, text. Out: the changed text, borrowed where nothing changes.

use crate::model::Normalizer;
use std::borrow::Cow;
use unicode_normalization_alignments::UnicodeNormalization;

/// Applies all steps in order; `first` says that the text begins the input.
pub(super) fn normalize<'t>(steps: &[Normalizer], text: &'t str, first: bool) -> Cow<'t, str> {
    let mut text = Cow::Borrowed(text);
    for step in steps {
        if let Some(changed) = apply(step, &text, first) {
            text = Cow::Owned(changed);
        }
    }
    text
}

/// One step; `None` where it changes nothing.
fn apply(step: &Normalizer, text: &str, first: bool) -> Option<String> {
    match step {
        Normalizer::Nfc => (!text.is_ascii()).then(|| text.nfc().map(|(c, _)| c).collect()),
        Normalizer::Nfkc => (!text.is_ascii()).then(|| text.nfkc().map(|(c, _)| c).collect()),
        // Character by character, without the rule for a final sigma, as tokenizers does it.
        Normalizer::Lowercase => Some(text.chars().flat_map(char::to_lowercase).collect()),
        Normalizer::Strip { left, right } => {
            let text = if *left { text.trim_start() } else { text };
            Some(if *right { text.trim_end() } else { text }.to_string())
        }
        Normalizer::OneSpace => {
            let mut out = String::with_capacity(text.len());
            for word in text.split(' ').filter(|word| !word.is_empty()) {
                if !out.is_empty() {
                    out.push(' ');
                }
                out.push_str(word);
            }
            Some(out)
        }
        Normalizer::Replace { from, to } => {
            text.contains(from.as_str()).then(|| text.replace(from.as_str(), to))
        }
        Normalizer::Prepend { text: begin, unless_there, only_first } => {
            let there = *unless_there && text.starts_with(begin.as_str());
            let inside = *only_first && !first;
            let not_wanted = text.is_empty() || inside || there;
            (!not_wanted).then(|| format!("{begin}{text}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(step: Normalizer, text: &str) -> String {
        normalize(&[step], text, false).into_owned()
    }

    #[test]
    fn each_step_does_what_its_name_says() {
        assert_eq!(one(Normalizer::Nfc, "e\u{301}ﬁ"), "éﬁ");
        assert_eq!(one(Normalizer::Nfkc, "e\u{301}ﬁＡ"), "éfiA");
        assert_eq!(one(Normalizer::Lowercase, "ΑΣ İ"), "ας i\u{307}".replace('ς', "σ"));
        assert_eq!(one(Normalizer::Strip { left: true, right: false }, " a "), "a ");
        assert_eq!(one(Normalizer::OneSpace, "  a   b\n "), "a b\n");
        assert_eq!(one(Normalizer::Replace { from: " ".into(), to: "▁".into() }, "a b"), "a▁b");
        let prepend = |unless_there, only_first| Normalizer::Prepend {
            text: "▁".into(),
            unless_there,
            only_first,
        };
        assert_eq!(one(prepend(false, false), "▁a"), "▁▁a");
        assert_eq!(one(prepend(true, false), "▁a"), "▁a");
        assert_eq!(one(prepend(false, true), "a"), "a");
        assert_eq!(normalize(&[prepend(false, true)], "a", true), "▁a");
        assert_eq!(one(prepend(false, false), ""), "");
    }
}

//! Which files of a repository make up the model that was asked for. In: a list of files with their sizes, and what stands after the
//! colon of `org/name:…`, a file or a quantization. Out: the files to fetch, or one line that says what there is. It fetches nothing.
// Untrusted input.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use super::gguf::SplitName;
use std::collections::BTreeMap;
use std::path::Path;

/// Quantization that is taken where none is asked for.
const DEFAULT: &str = "Q4_K_M";
/// Most names in a message.
const MAX_SHOWN: usize = 12;

/// A model among the files: one file, or all parts of a split one.
#[derive(Debug, PartialEq, Eq)]
struct Candidate<'a> {
    /// In order.
    files: Vec<&'a str>,
    bytes: u64,
    /// In capitals, without what is not the type itself (`UD-`); empty if the name says none.
    quantization: String,
    /// `UD-` and the like: another recipe for the same type.
    variant: bool,
}

/// The GGUF files of the model that `asked` names (a path, or a quantization such as `Q4_K_M` in any case), the first part first. Without
/// it: the only model there is, else Q4_K_M, else the smallest of 8 bits.
pub(super) fn choose<'a>(
    files: &'a [(&'a str, u64)],
    asked: Option<&str>,
) -> Result<Vec<&'a str>, String> {
    if let Some(asked) = asked {
        let found = files.iter().find(|(path, _)| *path == asked);
        match found {
            Some((path, _)) => {
                return whole_set(files, path)
                    .map(|set| set.into_iter().map(|(path, _)| path).collect());
            }
            None if asked.contains(['/', '.']) => {
                return Err(format!("it holds no file '{asked}'"));
            }
            None => {}
        }
    }
    let mut all = Vec::new();
    for (path, _) in files.iter().filter(|(path, _)| is_model(path)) {
        // A set is looked at once, by its first part.
        if SplitName::parse(Path::new(path)).is_some_and(|name| name.number > 0) {
            continue;
        }
        let Ok(set) = whole_set(files, path) else { continue };
        let (quantization, variant) = quantization(path);
        let bytes = set.iter().fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        all.push(Candidate {
            files: set.into_iter().map(|(path, _)| path).collect(),
            bytes,
            quantization,
            variant,
        });
    }
    if all.is_empty() {
        return Err("it holds no .gguf file of a whole model".into());
    }
    match asked {
        Some(asked) => named(all, asked),
        None if all.len() == 1 => Ok(all.into_iter().flat_map(|model| model.files).collect()),
        None if all.iter().any(|model| model.quantization == DEFAULT) => named(all, DEFAULT),
        None => {
            let eight = all.iter().filter(|model| model.quantization.starts_with("Q8"));
            match eight.min_by_key(|model| (model.bytes, model.files.first().copied())) {
                Some(model) => Ok(model.files.clone()),
                None => Err(format!(
                    "it holds several models, none of them {DEFAULT} or of 8 bits; add one to the id after a colon: {}",
                    list(&all)
                )),
            }
        }
    }
}

/// The one model of this quantization; where a plain one and a variant exist, the plain one.
fn named<'a>(all: Vec<Candidate<'a>>, asked: &str) -> Result<Vec<&'a str>, String> {
    let (wanted, variant) = plain(asked.to_ascii_uppercase());
    let mut fitting: Vec<&Candidate> =
        all.iter().filter(|model| model.quantization == wanted).collect();
    if fitting.iter().any(|model| model.variant == variant) {
        fitting.retain(|model| model.variant == variant);
    } else if variant {
        fitting.clear();
    }
    match fitting[..] {
        [one] => Ok(one.files.clone()),
        [] => Err(format!("it holds no '{asked}'; there are {}", list(&all))),
        _ => {
            let fitting: Vec<&str> = fitting
                .iter()
                .filter_map(|model| model.files.first().copied())
                .take(MAX_SHOWN)
                .collect();
            Err(format!(
                "it holds several models of '{asked}'; give one of the files after the colon: {}",
                fitting.join(", ")
            ))
        }
    }
}

/// What can be asked for.
fn list(all: &[Candidate]) -> String {
    let mut names: Vec<String> = all
        .iter()
        .map(|model| match (&*model.quantization, model.variant, model.files.first()) {
            ("", _, file) => file.copied().unwrap_or_default().to_string(),
            (name, true, _) => format!("UD-{name}"),
            (name, false, _) => name.to_string(),
        })
        .collect();
    names.sort();
    names.dedup();
    let more = names.len().saturating_sub(MAX_SHOWN);
    names.truncate(MAX_SHOWN);
    if more > 0 { format!("{} and {more} more", names.join(", ")) } else { names.join(", ") }
}

/// Whether a file can be a language model: neither a projector of images nor data for quantizing.
fn is_model(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    name.ends_with(".gguf") && !name.contains("mmproj") && !name.contains("imatrix")
}

/// A file, and if it is a part of a split model all parts in order.
fn whole_set<'a>(files: &'a [(&'a str, u64)], path: &str) -> Result<Vec<(&'a str, u64)>, String> {
    let missing = |path: &str| format!("it holds no file '{path}'");
    let Some(split) = SplitName::parse(Path::new(path)) else {
        return files
            .iter()
            .find(|file| file.0 == path)
            .map(|file| vec![*file])
            .ok_or_else(|| missing(path));
    };
    let by_path: BTreeMap<&str, (&'a str, u64)> =
        files.iter().map(|file| (file.0, *file)).collect();
    (0..split.count)
        .map(|number| {
            let part = split.part(number).to_string_lossy().into_owned();
            by_path
                .get(&*part)
                .copied()
                .ok_or_else(|| format!("{} of a split model", missing(&part)))
        })
        .collect()
}

/// The quantization that a file's name ends with, in capitals, else that of its folder; and whether it is a variant.
fn quantization(path: &str) -> (String, bool) {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let stem = match SplitName::parse(Path::new(path)) {
        Some(split) => split.stem().to_string(),
        None => name.strip_suffix(".gguf").unwrap_or(name).to_string(),
    };
    let folder = folder.rsplit('/').next().unwrap_or(folder);
    [&*stem, folder].into_iter().find_map(ending).unwrap_or_default()
}

/// The longest ending of a name that is a quantization and begins at a separator.
fn ending(name: &str) -> Option<(String, bool)> {
    let name = name.to_ascii_uppercase();
    let begins = std::iter::once(0)
        .chain(name.match_indices(['-', '_', '.']).map(|(at, _)| at.saturating_add(1)));
    begins.filter_map(|at| name.get(at..)).map(plain).find(|(name, _)| is_quantization(name))
}

/// Without the mark of another recipe.
fn plain(name: impl AsRef<str>) -> (String, bool) {
    let name = name.as_ref();
    match name.strip_prefix("UD-") {
        Some(rest) => (rest.to_string(), true),
        None => (name.to_string(), false),
    }
}

/// Names of ggml's types and of mixtures of them: `Q4_K_M`, `IQ2_XXS`, `BF16`.
fn is_quantization(name: &str) -> bool {
    if matches!(name, "BF16" | "F16" | "FP16" | "F32" | "FP32" | "MXFP4" | "MXFP4_MOE" | "NVFP4") {
        return true;
    }
    let rest = name.strip_prefix(['I', 'T']).unwrap_or(name);
    let Some(rest) = rest.strip_prefix('Q') else { return false };
    let mut parts = rest.split('_');
    let bits = parts
        .next()
        .is_some_and(|bits| bits.len() == 1 && bits.bytes().all(|b| b.is_ascii_digit()));
    let mut count = 0usize;
    let good = parts.all(|part| {
        count = count.saturating_add(1);
        (1..=4).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_alphanumeric())
    });
    bits && good && (1..=4).contains(&count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen<'a>(files: &'a [(&'a str, u64)], asked: Option<&str>) -> Result<&'a str, String> {
        choose(files, asked).map(|files| files[0])
    }

    #[test]
    fn quantizations_are_read_from_names_as_people_write_them() {
        let cases = [
            ("Qwen3-0.6B-Q4_K_M.gguf", "Q4_K_M", false),
            ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1", false),
            ("gemma-3-270m-it-qat-q4_0.gguf", "Q4_0", false),
            ("model_q8_0.gguf", "Q8_0", false),
            ("Qwen3-0.6B-UD-Q4_K_XL.gguf", "Q4_K_XL", true),
            ("Llama-3.2-1B-Instruct-IQ2_XXS.gguf", "IQ2_XXS", false),
            ("x-f16.gguf", "F16", false),
            ("BF16/model-BF16-00001-of-00002.gguf", "BF16", false),
            ("Q6_K/model-00001-of-00002.gguf", "Q6_K", false),
            ("gpt-oss-20b-MXFP4.gguf", "MXFP4", false),
            ("q4_k_m.gguf", "Q4_K_M", false),
            ("model.gguf", "", false),
            ("Qwen3-4B.gguf", "", false),
        ];
        for (path, name, variant) in cases {
            assert_eq!(quantization(path), (name.to_string(), variant), "{path}");
        }
    }

    #[test]
    fn a_quantization_picks_its_file_in_any_case() {
        let files = [
            ("a-Q4_K_M.gguf", 4),
            ("a-UD-Q4_K_M.gguf", 5),
            ("a-UD-Q2_K_XL.gguf", 2),
            ("a-Q8_0.gguf", 8),
            ("mmproj-a-Q8_0.gguf", 1),
        ];
        assert_eq!(chosen(&files, Some("Q4_K_M")), Ok("a-Q4_K_M.gguf"));
        assert_eq!(chosen(&files, Some("q8_0")), Ok("a-Q8_0.gguf"));
        assert_eq!(chosen(&files, Some("UD-Q4_K_M")), Ok("a-UD-Q4_K_M.gguf"));
        assert_eq!(chosen(&files, Some("Q2_K_XL")), Ok("a-UD-Q2_K_XL.gguf"));
        assert_eq!(chosen(&files, Some("a-Q8_0.gguf")), Ok("a-Q8_0.gguf"));
        for (asked, says) in [
            ("Q5_K_M", "there are Q4_K_M, Q8_0, UD-Q2_K_XL, UD-Q4_K_M"),
            ("K_M", "no 'K_M'"),
            ("UD-Q8_0", "no 'UD-Q8_0'"),
            ("b.gguf", "no file 'b.gguf'"),
        ] {
            let error = chosen(&files, Some(asked)).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        let twice = [("a-Q8_0.gguf", 8), ("b-Q8_0.gguf", 8)];
        assert!(chosen(&twice, Some("Q8_0")).unwrap_err().contains("a-Q8_0.gguf, b-Q8_0.gguf"));
    }

    #[test]
    fn without_a_name_it_is_q4_k_m_else_the_smallest_of_8_bits() {
        assert_eq!(
            chosen(&[("only.gguf", 1), ("README.md", 1), ("mmproj-f16.gguf", 1)], None),
            Ok("only.gguf")
        );
        assert_eq!(
            chosen(&[("a-Q8_0.gguf", 8), ("a-Q4_K_M.gguf", 4), ("a-Q2_K.gguf", 2)], None),
            Ok("a-Q4_K_M.gguf")
        );
        assert_eq!(
            chosen(&[("a-Q8_K_XL.gguf", 9), ("a-Q8_0.gguf", 8), ("a-Q2_K.gguf", 2)], None),
            Ok("a-Q8_0.gguf")
        );
        let error = chosen(&[("a-Q2_K.gguf", 2), ("a-F16.gguf", 16)], None).unwrap_err();
        assert!(error.contains("F16, Q2_K"), "{error}");
        assert!(
            chosen(&[("a.gguf", 2), ("sub/b.gguf", 16)], None)
                .unwrap_err()
                .contains("a.gguf, sub/b.gguf")
        );
        assert!(chosen(&[("README.md", 2)], None).unwrap_err().contains(".gguf"));
    }

    #[test]
    fn a_split_model_is_fetched_whole_or_not_at_all() {
        let files = [
            ("Q4_K_M/m-Q4_K_M-00002-of-00002.gguf", 1),
            ("Q4_K_M/m-Q4_K_M-00001-of-00002.gguf", 1),
            ("BF16/m-BF16-00001-of-00003.gguf", 1),
            ("BF16/m-BF16-00003-of-00003.gguf", 1),
        ];
        let both = ["Q4_K_M/m-Q4_K_M-00001-of-00002.gguf", "Q4_K_M/m-Q4_K_M-00002-of-00002.gguf"];
        for asked in [None, Some("Q4_K_M"), Some(both[0]), Some(both[1])] {
            assert_eq!(choose(&files, asked).unwrap(), both, "{asked:?}");
        }
        let error = choose(&files, Some("BF16/m-BF16-00001-of-00003.gguf")).unwrap_err();
        assert!(error.contains("m-BF16-00002-of-00003.gguf"), "{error}");
        assert!(choose(&files, Some("BF16")).is_err(), "a set with a gap is no model");
        let bomb = [("x-00001-of-99999.gguf", 1)];
        assert!(choose(&bomb, None).is_err());
    }
}

//! Names of prompt files for the ids of records that have none: the base name, however the path was typed, and more of the path only
//! where two files share it.
// Untrusted input.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

use std::collections::HashMap;
use std::path::Path;

/// The parts of a path from the root, with `.`, `..` and links of its folder resolved, last part first and without `.gz` or `.zst`.
fn parts(path: &Path) -> Vec<String> {
    // A folder is called by its own name however one gets there: `.` and `..` too.
    let resolved = if path.as_os_str() != "-" && path.is_dir() {
        std::fs::canonicalize(path).ok()
    } else {
        None
    };
    let path = resolved.as_deref().unwrap_or(path);
    let Some(name) = path.file_name().filter(|_| path.as_os_str() != "-") else {
        return vec![path.to_string_lossy().into_owned()];
    };
    let name = name.to_string_lossy();
    let name = [".gz", ".zst"]
        .iter()
        .find_map(|end| name.strip_suffix(end))
        .filter(|n| !n.is_empty())
        .unwrap_or(&name);
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_path_buf());
    let above = folder.components().rev().map(|c| c.as_os_str().to_string_lossy().into_owned());
    std::iter::once(name.to_string()).chain(above).collect()
}

/// A label for each path, all different. The error is the place of a path that another one is, too.
pub(super) fn labels<P: AsRef<Path>>(paths: &[P]) -> Result<Vec<String>, usize> {
    let parts: Vec<Vec<String>> = paths.iter().map(|path| parts(path.as_ref())).collect();
    let label = |n: usize, count: usize| -> String {
        let some = parts.get(n).and_then(|all| all.get(..count.min(all.len()))).unwrap_or_default();
        some.iter().rev().map(String::as_str).collect::<Vec<_>>().join("/")
    };
    let mut done: Vec<Option<String>> = vec![None; paths.len()];
    let mut count = 1;
    loop {
        let open: Vec<usize> =
            done.iter().enumerate().filter(|(_, d)| d.is_none()).map(|(n, _)| n).collect();
        let mut same: HashMap<String, Vec<usize>> = HashMap::new();
        for &n in &open {
            same.entry(label(n, count)).or_default().push(n);
        }
        for (label, places) in same {
            match places[..] {
                [only] => {
                    if let Some(place) = done.get_mut(only) {
                        *place = Some(label);
                    }
                }
                // All parts of these paths are in the label already: they are one path.
                [_, second, ..]
                    if places
                        .iter()
                        .all(|&n| parts.get(n).is_none_or(|all| all.len() <= count)) =>
                {
                    return Err(second);
                }
                _ => {}
            }
        }
        if let Some(all) = done.iter().cloned().collect::<Option<Vec<String>>>() {
            return Ok(all);
        }
        count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_called_by_its_base_name_however_its_path_is_typed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::create_dir(root.join("c")).unwrap();
        let of = |paths: &[&str]| labels(&paths.iter().map(|p| root.join(p)).collect::<Vec<_>>());
        for path in ["p.txt", "./p.txt", "a/../p.txt", "a/b/../../p.txt", "p.txt.gz", "p.txt.zst"] {
            assert_eq!(of(&[path]), Ok(vec!["p.txt".to_string()]), "{path}");
        }
        assert_eq!(labels(&["-", "x.csv"]), Ok(vec!["-".to_string(), "x.csv".to_string()]));
        assert_eq!(
            of(&["a/p.txt", "c/p.txt", "q.txt"]),
            Ok(vec!["a/p.txt".to_string(), "c/p.txt".into(), "q.txt".into()])
        );
        assert_eq!(
            of(&["a/b/p.txt", "a/p.txt", "c/q.txt"]),
            Ok(vec!["b/p.txt".to_string(), "a/p.txt".into(), "q.txt".into()])
        );
        assert_eq!(of(&["q.txt", "p.txt", "a/../p.txt"]), Err(2));
        assert_eq!((labels(&["-", "-"]), labels::<&str>(&[])), (Err(1), Ok(vec![])));
    }
}

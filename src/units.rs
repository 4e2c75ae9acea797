//! The quantities everything speaks in: token ids, seconds, bytes, rates, and how they print and parse.
//! In: numbers. Out: numbers and short text for people. It knows nothing of models or machines.

use std::fmt;
use std::str::FromStr;

/// A token id: an index into the model's vocabulary.
pub type TokenId = u32;

/// A size in bytes. Prints in binary units (`1.5 GiB`), parses `512M`, `2GiB`, `1000000`.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        match unit {
            0 => write!(f, "{} B", self.0),
            _ if value >= 100.0 => write!(f, "{value:.0} {}", UNITS[unit]),
            _ => write!(f, "{value:.1} {}", UNITS[unit]),
        }
    }
}

impl FromStr for Bytes {
    type Err = String;

    /// Accepts a number with an optional unit `K`, `M`, `G`, `T` (with or without `B` or `iB`; all binary).
    fn from_str(text: &str) -> Result<Self, String> {
        let help = || {
            format!(
                "'{text}' is not a size; write bytes or a number with K, M, G or T, such as 512M or 2G"
            )
        };
        let text_ = text.trim();
        let split = text_.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text_.len());
        let (number, unit) = text_.split_at(split);
        let number: f64 = number.parse().map_err(|_| help())?;
        let shift = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(help()),
        };
        let bytes = number * (1u64 << shift) as f64;
        if !bytes.is_finite() || bytes >= u64::MAX as f64 {
            Err(help())
        } else {
            Ok(Bytes(bytes as u64))
        }
    }
}

/// `did you mean 'bf16'? ` if one known name is near to what was typed, else nothing: for the front of a list of what is known.
pub fn did_you_mean<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let typed = typed.trim().to_lowercase().replace('_', "-");
    // A third of the letters may be wrong, at least one; nothing is near to a single letter.
    let most = (typed.chars().count() / 3).max(1);
    let plain = |name: &str| name.to_lowercase().replace('_', "-");
    let near = |name: &str| {
        let begins = typed.chars().count() >= 3 && plain(name).starts_with(&typed);
        if begins { 1 } else { edits(&typed, &plain(name)) }
    };
    let best = known
        .into_iter()
        .map(|name| (near(name), name))
        .filter(|(d, _)| *d <= most)
        .min_by_key(|(d, _)| *d);
    best.filter(|_| (2..=MAX_TYPED).contains(&typed.chars().count()))
        .map_or(String::new(), |(_, name)| format!("did you mean '{name}'? "))
}

/// A longer word is no slip of the fingers.
const MAX_TYPED: usize = 64;

/// Letters inserted, removed, replaced or swapped with their neighbour to make one word of another (optimal string alignment distance).
fn edits(a: &str, b: &str) -> usize {
    let chars = |text: &str| text.chars().take(MAX_TYPED + 1).collect::<Vec<char>>();
    let (a, b) = (chars(a), chars(b));
    let mut rows = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = match (i, j) {
                (0, n) | (n, 0) => n,
                _ => {
                    let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    let mut least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                    if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                        least = least.min(rows[i - 2][j - 2] + 1);
                    }
                    least
                }
            };
        }
    }
    rows[a.len()][b.len()]
}

/// Seconds as people read them: `850 µs`, `12.3 ms`, `4.56 s`, `3 min 20 s`, `2 h 05 min`.
pub fn seconds(s: f64) -> String {
    match s {
        s if !s.is_finite() => "–".to_string(),
        s if s < 1e-3 => format!("{:.0} µs", s * 1e6),
        s if s < 0.9995 => format!("{} ms", rate(s * 1e3)),
        s if s < 120.0 => format!("{} s", rate(s)),
        s if s < 7200.0 => format!("{} min {:02} s", (s / 60.0) as u64, (s % 60.0) as u64),
        s => format!("{} h {:02} min", (s / 3600.0) as u64, (s % 3600.0 / 60.0) as u64),
    }
}

/// A rate with three significant figures: `12.3`, `1230`.
pub fn rate(r: f64) -> String {
    match r.abs() {
        r_ if !r_.is_finite() => "–".to_string(),
        r_ if r_ >= 100.0 => format!("{r:.0}"),
        r_ if r_ >= 10.0 => format!("{r:.1}"),
        _ => format!("{r:.2}"),
    }
}

/// A number of things: `1 prompt`, `2 prompts`, `1 process`, `2 processes`.
pub fn counted(count: u64, thing: &str) -> String {
    let ending = match (count, thing.ends_with('s')) {
        (1, _) => "",
        (_, true) => "es",
        _ => "s",
    };
    format!("{count} {thing}{ending}")
}

/// Text that may be shown on a terminal or in a log: control characters become visible escapes, one line only.
pub fn shown(text: &str) -> String {
    text.chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect()
}

/// A path as [`shown`] shows text.
pub fn shown_path(path: &std::path::Path) -> String {
    shown(&path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_name_is_offered_and_a_far_one_is_not() {
        let known = ["auto", "bf16", "q8_0", "q4_1", "early-stop", "shared-prefix", "smollm2-135m"];
        let offered = |typed: &str| did_you_mean(typed, known);
        for (typed, name) in [
            ("bf61", "bf16"),
            ("BF16", "bf16"),
            ("q80", "q8_0"),
            ("q8-0", "q8_0"),
            ("earlystop", "early-stop"),
            ("sharedprefixes", "shared-prefix"),
            ("smollm2", "smollm2-135m"),
            ("smolm2-135m", "smollm2-135m"),
        ] {
            assert_eq!(offered(typed), format!("did you mean '{name}'? "), "{typed}");
        }
        for typed in ["", "x", "llama", "\u{1b}[31m", &"a".repeat(10_000)] {
            assert_eq!(offered(typed), "", "{typed}");
        }
        assert_eq!((edits("ab", "ba"), edits("", "abc"), edits("kitten", "sitting")), (1, 3, 3));
    }

    #[test]
    fn sizes_parse_and_print() {
        assert_eq!("512M".parse(), Ok(Bytes(512 << 20)));
        assert_eq!("1.5 GiB".parse(), Ok(Bytes(3 << 29)));
        assert_eq!("77".parse(), Ok(Bytes(77)));
        for bad in ["", "x", "-1", "1.2.3", "5 parsecs", "1e99"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
        assert_eq!(Bytes(3 << 29).to_string(), "1.5 GiB");
        assert_eq!(Bytes(12).to_string(), "12 B");
    }

    #[test]
    fn one_thing_is_not_two() {
        assert_eq!(["0 prompts", "1 prompt", "2 prompts"], [0, 1, 2].map(|n| counted(n, "prompt")));
        assert_eq!(
            (counted(1, "process"), counted(3, "process")),
            ("1 process".to_string(), "3 processes".to_string())
        );
    }

    #[test]
    fn shown_text_has_no_control_characters() {
        assert_eq!(shown("a\u{1b}[31m\nb"), "a\\u{1b}[31m\\nb");
    }
}

//! The flags that give an answer a form: a constraint, choices, log probabilities. In: flags as typed. Out: the [`Form`] of prompts that
//! have none of their own. Whatever is wrong with them is told before the model is loaded.

use crate::cli::Failure;
use crate::cli::files::Touched;
use crate::pipeline::Form;
use crate::text::Constraint;
use crate::text::prompts::choices;
use crate::units::shown_path;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// As typed.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct StructuredOutputFlags {
    /// The answer is JSON of this schema: a file, or the schema itself
    #[arg(long, value_name = "FILE|JSON", help_heading = "Answers", group = "form")]
    pub json_schema: Option<String>,
    /// The answer is a JSON object
    #[arg(long, help_heading = "Answers", group = "form")]
    pub json: bool,
    /// The answer matches this regular expression as a whole
    #[arg(long, value_name = "RE", help_heading = "Answers", group = "form")]
    pub regex: Option<String>,
    /// The answer follows the Lark grammar in this file
    #[arg(long, value_name = "FILE", help_heading = "Answers", group = "form")]
    pub grammar: Option<PathBuf>,
    /// The answer is the most probable of these: A,B,C, or @FILE with one a line, or a JSON list
    #[arg(long, value_name = "LIST", help_heading = "Answers", group = "form")]
    pub choices: Option<String>,
    /// Log probabilities of the answer's tokens, and of the N best of each place (0 to 20)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=20), help_heading = "Answers")]
    pub logprobs: Option<u8>,
}

impl StructuredOutputFlags {
    /// The files among them.
    pub fn touch(&self, touched: &mut Touched) {
        self.schema_file().into_iter().for_each(|path| touched.reads("--json-schema", path));
        self.grammar.iter().for_each(|path| touched.reads("--grammar", path));
        self.choices_file().into_iter().for_each(|path| touched.reads("--choices", path));
    }

    fn schema_file(&self) -> Option<&Path> {
        self.json_schema.as_deref().filter(|text| !is_json(text)).map(Path::new)
    }

    fn choices_file(&self) -> Option<&Path> {
        self.choices.as_deref().and_then(|text| text.strip_prefix('@')).map(Path::new)
    }

    /// The flag that says which form the answer has, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            _ if self.json_schema.is_some() => "--json-schema",
            _ if self.json => "--json",
            _ if self.regex.is_some() => "--regex",
            _ if self.grammar.is_some() => "--grammar",
            _ => "--choices",
        }
    }

    /// What they mean; files are read, schemas looked at.
    pub fn read(&self) -> Result<Form, Failure> {
        let constraint = match self {
            StructuredOutputFlags { json_schema: Some(text), .. } => {
                Some(Constraint::Schema(match self.schema_file() {
                    Some(path) => file("--json-schema", path)?,
                    None => text.clone(),
                }))
            }
            StructuredOutputFlags { json: true, .. } => Some(Constraint::Object),
            StructuredOutputFlags { regex: Some(regex), .. } => {
                Some(Constraint::Regex(regex.clone()))
            }
            StructuredOutputFlags { grammar: Some(path), .. } => {
                Some(Constraint::Lark(file("--grammar", path)?))
            }
            _ => None,
        };
        if let Some(constraint) = &constraint {
            constraint
                .check()
                .map_err(|message| Failure::usage(format!("{}: {message}", self.name())))?;
        }
        let choices = match (&self.choices, self.choices_file()) {
            (None, _) => None,
            (Some(_), Some(path)) => {
                let text = file("--choices", path)?;
                Some(text.lines().filter(|line| !line.is_empty()).map(String::from).collect())
            }
            (Some(text), None) if text.trim_start().starts_with('[') => {
                Some(serde_json::from_str(text).map_err(|e| {
                    Failure::usage(format!("--choices: not a JSON list of texts: {e}"))
                })?)
            }
            (Some(text), None) => Some(text.split(',').map(|one| one.trim().to_string()).collect()),
        };
        let choices = choices
            .map(choices::checked)
            .transpose()
            .map_err(|what| Failure::usage(format!("--choices {what}")))?;
        Ok(Form {
            constraint,
            choices,
            logprobs: self.logprobs.map(usize::from),
            ..Form::default()
        })
    }
}

/// The most bytes of a file that says the form.
const MOST: u64 = 1 << 20;

/// The text of a file that a flag names, without a byte order mark; one without end is not read to it.
fn file(flag: &str, path: &Path) -> Result<String, Failure> {
    let bad = |what: &str| Failure::usage(format!("{flag}: {}: {what}", shown_path(path)));
    if path.as_os_str().is_empty() {
        return Err(bad("names no file"));
    }
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MOST + 1).read_to_end(&mut bytes));
    if read.map_err(|e| bad(&e.to_string()))? as u64 > MOST {
        return Err(bad(&format!("has more than {MOST} bytes, which are the most")));
    }
    let text = String::from_utf8(bytes).map_err(|_| bad("is not UTF-8; save it as UTF-8"))?;
    Ok(text.strip_prefix('\u{feff}').map(String::from).unwrap_or(text))
}

/// A schema on the command line, rather than the name of a file.
fn is_json(text: &str) -> bool {
    text.trim_start().starts_with('{') || matches!(text.trim(), "true" | "false")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_say_what_form_the_answer_has() {
        let form =
            |flags: StructuredOutputFlags| flags.read().map(|form| (form.constraint, form.choices));
        let schema = r#"{"type": "object"}"#;
        let flags = |text: &str| StructuredOutputFlags {
            json_schema: Some(text.into()),
            ..StructuredOutputFlags::default()
        };
        assert_eq!(form(flags(schema)).unwrap().0, Some(Constraint::Schema(schema.into())));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), schema).unwrap();
        assert_eq!(
            form(flags(file.path().to_str().unwrap())).unwrap().0,
            Some(Constraint::Schema(schema.into()))
        );
        for (bad, word) in [
            ("no-such-file.json", "no-such-file.json"),
            (r#"{"not": {}}"#, "'not'"),
            ("{", "not JSON"),
        ] {
            let failure = form(flags(bad)).unwrap_err();
            assert!(
                failure.status == 2
                    && failure.message.contains("--json-schema")
                    && failure.message.contains(word),
                "{failure:?}"
            );
        }
        std::fs::write(file.path(), format!("\u{feff}{schema}")).unwrap();
        assert_eq!(
            form(flags(file.path().to_str().unwrap())).unwrap().0,
            Some(Constraint::Schema(schema.into()))
        );
        // Files without end are not read to it.
        for flags in [
            flags("/dev/zero"),
            StructuredOutputFlags {
                grammar: Some("/dev/zero".into()),
                ..StructuredOutputFlags::default()
            },
            StructuredOutputFlags {
                choices: Some("@/dev/zero".into()),
                ..StructuredOutputFlags::default()
            },
        ] {
            let failure = form(flags).unwrap_err();
            assert!(
                failure.status == 2 && failure.message.contains("1048576 bytes"),
                "{failure:?}"
            );
        }
        let choices = |text: &str| {
            form(StructuredOutputFlags {
                choices: Some(text.into()),
                ..StructuredOutputFlags::default()
            })
        };
        let two = Some(vec!["yes".to_string(), "no".to_string()]);
        assert_eq!(choices("yes, no").unwrap().1, two);
        assert_eq!(choices(r#"["yes", "no"]"#).unwrap().1, two);
        std::fs::write(file.path(), "yes\nno\n").unwrap();
        assert_eq!(choices(&format!("@{}", file.path().display())).unwrap().1, two);
        for bad in ["yes", "yes,yes", "", "a,,b", "[1, 2]", "@no-such-file", "@"] {
            assert_eq!(choices(bad).unwrap_err().status, 2, "{bad}");
        }
    }
}

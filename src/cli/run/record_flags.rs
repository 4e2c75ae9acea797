//! The flags that say how records become prompts, as typed, and what they mean. In: clap's values. Out: a [`Reading`].

use crate::cli::Failure;
use crate::cli::files::Touched;
use crate::model::ModelError;
use crate::text::prompts::{GenerationFields, InputFormat, Reading};
use crate::text::{RenderLimits, RowTemplate};
use crate::units::{shown, shown_path};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// The flags.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct RecordFlags {
    /// Format of the files, whatever their names: jsonl, json, csv, tsv, txt, parquet, openai
    #[arg(long, value_name = "F", help_heading = "Records")]
    pub input_format: Option<InputFormat>,
    /// What separates CSV columns: a character, or 'tab' [default: told from the header]
    #[arg(long, value_name = "C", value_parser = delimiter, help_heading = "Records")]
    pub delimiter: Option<u8>,
    /// The prompt of a record, made of its fields: 'Summarise: {{ ticket_text }}', or @FILE
    #[arg(
        long,
        value_name = "TEXT|@FILE",
        help_heading = "Records",
        conflicts_with = "prompt_field"
    )]
    pub template: Option<String>,
    /// The field or column that is the prompt: a text, or a list of messages
    #[arg(long, value_name = "NAME", help_heading = "Records")]
    pub prompt_field: Option<String>,
    /// The field or column that is the id
    #[arg(long, value_name = "NAME", help_heading = "Records")]
    pub id_field: Option<String>,
    /// Fields that are settings of their record (comma-separated): with --template or --prompt-field there are none but these
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "Records")]
    pub setting_fields: Option<Vec<String>>,
    /// Fields and columns of the output, in this order (comma-separated): those of answers and the input's own
    #[arg(long, value_name = "LIST", value_parser = columns, help_heading = "Files")]
    pub columns: Option<Columns>,
}

/// Names of columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns(pub Vec<String>);

/// Names with commas between them, as a CSV row has them: one with a comma in it stands in quotes.
fn columns(text: &str) -> Result<Columns, String> {
    let mut row = csv::StringRecord::new();
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text.as_bytes());
    let read = reader.read_record(&mut row).map_err(|e| e.to_string())?;
    let names: Vec<String> = row.iter().map(|name| name.trim().to_string()).collect();
    match names.iter().any(String::is_empty) || !read {
        true => Err("name the columns with commas between them, such as id,customer,answer".into()),
        false => Ok(Columns(names)),
    }
}

fn delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        b"tab" | b"\\t" | b"\t" => Ok(b'\t'),
        [c] if c.is_ascii_graphic() && *c != b'"' && !c.is_ascii_alphanumeric() => Ok(*c),
        _ => Err("must be one character such as , or ; or |, or 'tab'".into()),
    }
}

impl RecordFlags {
    /// The file of the template, if it is in one.
    fn template_file(&self) -> Option<&Path> {
        self.template.as_deref().and_then(|text| text.strip_prefix('@')).map(Path::new)
    }

    /// Notes the files that are read.
    pub fn touch(&self, touched: &mut Touched) {
        self.template_file().iter().for_each(|path| touched.reads("--template", path));
    }

    /// What they mean; a template is compiled. `ours` tells the names of the output's own columns, of which `names` may have been meant.
    pub fn reading(
        &self,
        ours: impl Fn(&str) -> bool,
        names: impl Iterator<Item = &'static str>,
    ) -> Result<Reading, Failure> {
        for name in self.setting_fields.iter().flatten() {
            if !GenerationFields::names().contains(&name.as_str()) {
                let known = GenerationFields::names().join(", ");
                return Err(Failure::usage(format!(
                    "--setting-fields: {} is no setting; known are {known}",
                    shown(name)
                )));
            }
        }
        let template = match (&self.template, self.template_file()) {
            (None, _) => None,
            (Some(_), Some(path)) => Some(compiled(&read(path)?)?),
            (Some(text), None) => Some(compiled(text)?),
        };
        let wanted =
            self.columns.iter().flat_map(|c| &c.0).filter(|name| !ours(name)).cloned().collect();
        Ok(Reading {
            format: self.input_format,
            delimiter: self.delimiter,
            prompt_field: self.prompt_field.clone(),
            id_field: self.id_field.clone(),
            template,
            setting_fields: self.setting_fields.clone(),
            wanted,
            own: names.collect(),
        })
    }
}

fn compiled(source: &str) -> Result<Arc<RowTemplate>, Failure> {
    let template = RowTemplate::compile(source).map_err(|e| match e {
        ModelError::Memory(message) => Failure::failed(format!("--template: {message}")),
        ModelError::Invalid(message) | ModelError::Io(message) => {
            Failure::usage(format!("--template: {message}"))
        }
    })?;
    if !template.looks_at_fields() {
        return Err(Failure::usage(
            "--template: it names no field, so that all prompts would be the same; write a field's name in double braces, as in {{ text }}",
        ));
    }
    Ok(Arc::new(template))
}

fn read(path: &Path) -> Result<String, Failure> {
    let bad = |what: String| Failure::usage(format!("--template @{}: {what}", shown_path(path)));
    if path.as_os_str().is_empty() {
        return Err(bad("names no file; @prompt.txt would work".into()));
    }
    let most = RenderLimits::default().longest as u64;
    let file = std::fs::File::open(path).map_err(|e| bad(e.to_string()))?;
    let mut text = String::new();
    file.take(most + 1).read_to_string(&mut text).map_err(|e| bad(e.to_string()))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_and_separators_are_read_as_people_write_them() {
        assert_eq!(columns("id, customer,\"a, b\"").unwrap().0, ["id", "customer", "a, b"]);
        assert!(columns("").is_err() && columns("id,,answer").is_err());
        assert_eq!(
            (delimiter("tab"), delimiter(";"), delimiter("\\t")),
            (Ok(b'\t'), Ok(b';'), Ok(b'\t'))
        );
        assert!(delimiter("\"").is_err() && delimiter("ab").is_err() && delimiter("").is_err());
    }

    #[test]
    fn a_template_that_says_the_same_for_all_and_an_unknown_setting_are_refused() {
        let of = |records: RecordFlags| {
            records.reading(|_| false, std::iter::empty()).map(|_| ()).unwrap_err()
        };
        let fixed =
            of(RecordFlags { template: Some("Say hello".into()), ..RecordFlags::default() });
        assert!(fixed.status == 2 && fixed.message.contains("names no field"), "{fixed:?}");
        let setting =
            of(RecordFlags { setting_fields: Some(vec!["heat".into()]), ..RecordFlags::default() });
        assert!(
            setting.message.contains("heat") && setting.message.contains("temperature"),
            "{setting:?}"
        );
        let file =
            of(RecordFlags { template: Some("@no such file".into()), ..RecordFlags::default() });
        assert!(file.status == 2 && file.message.contains("no such file"), "{file:?}");
    }
}

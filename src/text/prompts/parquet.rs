//! Parquet to records: only the columns that are needed, one row group after the other, each row as the JSON object that a line of a
//! JSONL file would hold. In: an ordinary file. Out: rows. The crate that reads the pages may panic on a damaged file; that becomes an error.
// Untrusted input.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

use super::json;
use super::reading::Rules;
use super::record::{InputError, Parsed, Warnings};
use super::source::Source;
use crate::units::shown;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::record::reader::RowIter;
use parquet::schema::types::{Type, TypePtr};
use serde_json::{Map, Number, Value};
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

fn damaged(what: impl std::fmt::Display) -> io::Error {
    let what: String = what.to_string().chars().take(200).collect();
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the Parquet data is damaged: {}", shown(&what)),
    )
}

/// The work of the crate, with its panics as errors.
fn guarded<T>(work: impl FnOnce() -> parquet::errors::Result<T>) -> io::Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(damaged),
        Err(_) => Err(damaged("reading it failed")),
    }
}

fn open(source: &Source) -> io::Result<SerializedFileReader<File>> {
    source.unchanged()?;
    let file = File::open(source.path())?;
    guarded(|| SerializedFileReader::new(file))
}

/// Reads what the file says of itself, and checks that it has what is asked for. Gives the names of the columns that are carried.
pub(super) fn check(source: &Source, rules: &Rules) -> Result<Vec<String>, InputError> {
    let bad = |what: String| InputError::Bad(format!("{}: {what}", shown(source.name())));
    let reader = open(source).map_err(|e| bad(super::source::why(&e)))?;
    let schema = reader.metadata().file_metadata().schema_descr().root_schema_ptr();
    let names: Vec<String> = schema.get_fields().iter().map(|f| f.name().to_string()).collect();
    let reading = &rules.reading;
    reading.check_names(&names, "the file has the columns").map_err(bad)?;
    if reader.metadata().file_metadata().num_rows() == 0 {
        return Err(bad("there is no record in it".into()));
    }
    Ok(names.into_iter().filter(|name| !reading.is_told(name)).collect())
}

/// Whether a record needs a column.
fn is_needed(name: &str, rules: &Rules) -> bool {
    let reading = &rules.reading;
    let prompt = match (&reading.template, &reading.prompt_field) {
        (Some(template), _) => template.sees_all() || template.names().iter().any(|n| n == name),
        (None, Some(field)) => field == name,
        (None, None) => matches!(name, "prompt" | "messages"),
    };
    prompt
        || rules.object
        || name == reading.id_name()
        || reading.settings().any(|n| n == name)
        || rules.columns.iter().any(|n| n == name)
}

/// The rows of a file.
pub(super) struct Rows {
    rows: RowIter<'static>,
    source: Source,
    count: u64,
}

impl Rows {
    /// Opens a file that [`check`] has seen.
    pub fn open(source: &Source, rules: &Rules) -> io::Result<Rows> {
        let reader = open(source)?;
        let schema = reader.metadata().file_metadata().schema_descr().root_schema_ptr();
        let needed: Vec<TypePtr> =
            schema.get_fields().iter().filter(|f| is_needed(f.name(), rules)).cloned().collect();
        let rows = guarded(move || {
            let projection = Type::group_type_builder(schema.name()).with_fields(needed).build()?;
            RowIter::from_file_into(Box::new(reader)).project(Some(projection))
        })?;
        Ok(Rows { rows, source: source.clone(), count: 0 })
    }

    /// The next record and its number.
    pub fn next_record(&mut self, rules: &Rules) -> io::Result<Option<(u64, Parsed)>> {
        let rows = &mut self.rows;
        let Some(row) = guarded(|| rows.next().transpose())? else {
            self.source.unchanged()?;
            return Ok(None);
        };
        self.count += 1;
        let object: Map<String, Value> =
            row.get_column_iter().map(|(name, field)| (name.clone(), json_of(field))).collect();
        let text = Value::Object(object).to_string();
        // Columns that mean nothing are no surprise in a table.
        Ok(Some((self.count, json::read(&text, rules, &mut Warnings::default()))))
    }
}

/// A value as JSON has it; dates and times as text.
fn json_of(field: &Field) -> Value {
    let float = |x: f64| Number::from_f64(x).map_or(Value::Null, Value::Number);
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => Value::Bool(*value),
        Field::Byte(n) => Value::from(*n),
        Field::Short(n) => Value::from(*n),
        Field::Int(n) => Value::from(*n),
        Field::Long(n) => Value::from(*n),
        Field::UByte(n) => Value::from(*n),
        Field::UShort(n) => Value::from(*n),
        Field::UInt(n) => Value::from(*n),
        Field::ULong(n) => Value::from(*n),
        // As the shortest digits that are this number: 0.1 and not 0.10000000149.
        Field::Float(x) => x.to_string().parse().map_or(Value::Null, float),
        Field::Double(x) => float(*x),
        Field::Str(text) => Value::String(text.clone()),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::from(text),
            Err(_) => {
                Value::from(bytes.data().iter().map(|b| format!("{b:02x}")).collect::<String>())
            }
        },
        Field::Group(row) => Value::Object(
            row.get_column_iter().map(|(name, field)| (name.clone(), json_of(field))).collect(),
        ),
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(json_of).collect()),
        Field::MapInternal(map) => {
            let name = |key: &Field| match json_of(key) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            Value::Object(
                map.entries().iter().map(|(key, value)| (name(key), json_of(value))).collect(),
            )
        }
        other => Value::String(other.to_string()),
    }
}

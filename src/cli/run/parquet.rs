//! Parquet files from a journal: a first reading tells what the carried columns hold, a second writes row groups of bounded size. In: the
//! lines of a journal. Out: the file.

use super::columns::{TABLE, Type, Value};
use super::format::{Column, LineFormat, Source};
use super::output::lines;
use parquet::basic::{Compression, LogicalType, Repetition, Type as Physical};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::Type as Schema;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::sync::Arc;

/// Most rows of a group, and about the most bytes that wait to be written.
const ROWS: usize = 16_384;
const BYTES: usize = 32 << 20;

/// Rows of a file.
pub fn rows(file: File) -> Result<u64, String> {
    let reader = SerializedFileReader::new(file).map_err(|e| e.to_string())?;
    u64::try_from(reader.metadata().file_metadata().num_rows()).map_err(|e| e.to_string())
}

/// What a column is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cells {
    Text,
    Whole,
    Real,
    Flag,
}

/// What a column's values so far can all be written as.
#[derive(Debug, Clone, Copy, Default)]
struct Met {
    text: bool,
    real: bool,
    whole: bool,
    flag: bool,
}

impl Met {
    fn meet(&mut self, value: &Value) {
        match value {
            Value::Absent | Value::Null => {}
            Value::Json(json) if matches!(&**json, "true" | "false") => self.flag = true,
            Value::Json(json) if json.parse::<i64>().is_ok() => self.whole = true,
            Value::Json(json) if json.starts_with(|c: char| c == '-' || c.is_ascii_digit()) => {
                self.real = true
            }
            Value::Real(_) => self.real = true,
            _ => self.text = true,
        }
    }

    fn cells(self) -> Cells {
        match self {
            Met { text: false, flag: true, real: false, whole: false } => Cells::Flag,
            Met { text: false, flag: false, real: false, whole: true } => Cells::Whole,
            Met { text: false, flag: false, real: true, .. } => Cells::Real,
            _ => Cells::Text,
        }
    }
}

fn other(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(error.to_string())
}

/// Writes the whole file.
pub fn write(format: &LineFormat, journal: &File, out: &mut (dyn Write + Send)) -> io::Result<()> {
    let columns = format.columns();
    let mut met = vec![Met::default(); columns.len()];
    lines(journal, |line| {
        let values = format.journal_values(line).map_err(other)?;
        met.iter_mut().zip(&values).for_each(|(met, value)| met.meet(value));
        Ok(())
    })?;
    let cells: Vec<Cells> =
        columns.iter().zip(met).map(|(column, met)| cells_of(column, met)).collect();
    let fields = columns
        .iter()
        .zip(&cells)
        .map(|(column, cells)| field(&column.name, *cells))
        .collect::<io::Result<Vec<_>>>()?;
    let schema =
        Schema::group_type_builder("answers").with_fields(fields).build().map_err(other)?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_created_by("llmopt".into())
        .build();
    let mut writer =
        SerializedFileWriter::new(out, Arc::new(schema), Arc::new(properties)).map_err(other)?;
    let mut waiting: Vec<Vec<Value<'static>>> = vec![Vec::new(); columns.len()];
    let (mut rows, mut bytes) = (0, 0);
    let mut rewound = journal;
    rewound.rewind()?;
    lines(journal, |line| {
        let values = format.journal_values(line).map_err(other)?;
        waiting.iter_mut().zip(values).for_each(|(column, value)| column.push(value.into_owned()));
        (rows, bytes) = (rows + 1, bytes + line.len());
        if rows >= ROWS || bytes >= BYTES {
            group(&mut writer, &cells, &mut waiting)?;
            (rows, bytes) = (0, 0);
        }
        Ok(())
    })?;
    if rows > 0 {
        group(&mut writer, &cells, &mut waiting)?;
    }
    writer.close().map(drop).map_err(other)
}

fn cells_of(column: &Column, met: Met) -> Cells {
    match &column.source {
        Source::Ours(n) => match TABLE.get(*n).map(|o| (o.name, o.kind)) {
            // Numbers as ids join with the numbers of other tables.
            Some(("id", _)) if met.cells() == Cells::Whole => Cells::Whole,
            Some((_, Type::Whole)) => Cells::Whole,
            Some((_, Type::Real)) => Cells::Real,
            Some((_, Type::Flag)) => Cells::Flag,
            _ => Cells::Text,
        },
        Source::Carried(..) => met.cells(),
        Source::Input | Source::Property(_) => Cells::Text,
    }
}

fn field(name: &str, cells: Cells) -> io::Result<Arc<Schema>> {
    let (physical, logical) = match cells {
        Cells::Text => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
        Cells::Whole => (Physical::INT64, None),
        Cells::Real => (Physical::DOUBLE, None),
        Cells::Flag => (Physical::BOOLEAN, None),
    };
    let built = Schema::primitive_type_builder(name, physical)
        .with_repetition(Repetition::OPTIONAL)
        .with_logical_type(logical);
    built.build().map(Arc::new).map_err(other)
}

/// Writes what waits as one row group.
fn group<W: Write + Send>(
    writer: &mut SerializedFileWriter<W>,
    cells: &[Cells],
    waiting: &mut [Vec<Value>],
) -> io::Result<()> {
    let mut group = writer.next_row_group().map_err(other)?;
    for (cells, values) in cells.iter().zip(waiting) {
        match cells {
            Cells::Text => column::<ByteArrayType, W>(&mut group, values, |v| {
                Some(ByteArray::from(v.cell().as_bytes().to_vec()))
            }),
            Cells::Whole => column::<Int64Type, W>(&mut group, values, |v| v.cell().parse().ok()),
            Cells::Real => column::<DoubleType, W>(&mut group, values, |v| v.cell().parse().ok()),
            Cells::Flag => column::<BoolType, W>(&mut group, values, |v| v.cell().parse().ok()),
        }?;
        values.clear();
    }
    group.close().map(drop).map_err(other)
}

fn column<T: DataType, W: Write + Send>(
    group: &mut SerializedRowGroupWriter<W>,
    values: &[Value],
    of: impl Fn(&Value) -> Option<T::T>,
) -> io::Result<()> {
    let Some(mut writer) = group.next_column().map_err(other)? else {
        return Err(other("there are fewer columns than values"));
    };
    let there = |value: &Value| !matches!(value, Value::Absent | Value::Null);
    let cells: Vec<Option<T::T>> =
        values.iter().map(|value| if there(value) { of(value) } else { None }).collect();
    let levels: Vec<i16> = cells.iter().map(|cell| i16::from(cell.is_some())).collect();
    let present: Vec<T::T> = cells.into_iter().flatten().collect();
    writer.typed::<T>().write_batch(&present, Some(&levels), None).map_err(other)?;
    writer.close().map_err(other)
}

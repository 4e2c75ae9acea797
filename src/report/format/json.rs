//! JSON: a table as a list of objects. Infinity, which JSON has no number for, is the string `inf`.

use crate::report::{CellValue, Table};
use serde_json::{Map, Value as Json};

/// A table as a list of objects, keys in the order of the columns; empty cells are null.
pub fn table(table: &Table) -> Json {
    let row = |cells: &Vec<crate::report::Cell>| {
        let pairs = table.columns.iter().zip(cells).map(|(column, cell)| {
            let value = match &cell.value {
                CellValue::Empty => Json::Null,
                CellValue::Text(text) => Json::String(text.clone()),
                CellValue::Number(n) if n.is_infinite() => Json::String(super::csv::number(*n)),
                CellValue::Number(n) => {
                    serde_json::Number::from_f64(*n).map_or(Json::Null, Json::Number)
                }
            };
            (column.key.clone(), value)
        });
        Json::Object(pairs.collect::<Map<_, _>>())
    };
    Json::Array(table.rows.iter().map(row).collect())
}

/// Indented, with a final newline.
pub fn text(value: &Json) -> String {
    format!("{value:#}\n")
}

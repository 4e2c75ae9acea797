//! Comma-separated values (RFC 4180, `\n` line ends) that a spreadsheet cannot take for formulas.

use crate::report::{CellValue, Table};

/// Text that is safe in a spreadsheet: what would start a formula gets an apostrophe in front (OWASP ASVS 1.2.10).
pub fn safe(text: &str) -> String {
    match text.chars().next() {
        Some('=' | '+' | '-' | '@' | '\t' | '\r' | '\0') => format!("'{text}"),
        _ => text.to_string(),
    }
}

/// A number as written in files: `inf` for infinity, nothing for NaN, otherwise at most six significant decimals.
pub fn number(value: f64) -> String {
    if value.is_nan() {
        String::new()
    } else if value.is_infinite() {
        if value > 0.0 { "inf".into() } else { "-inf".into() }
    } else if value == value.trunc() && value.abs() < 1e15 {
        format!("{value:.0}")
    } else {
        let decimals = (5 - value.abs().log10().floor() as i32).clamp(0, 15) as usize;
        let text = format!("{value:.decimals$}");
        if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_string()
        } else {
            text
        }
    }
}

/// A table: keys as header.
pub fn table(table: &Table) -> String {
    let mut writer = ::csv::WriterBuilder::new()
        .terminator(::csv::Terminator::Any(b'\n'))
        .from_writer(Vec::new());
    let rows = table.rows.iter().map(|row| {
        row.iter().map(|cell| match &cell.value {
            CellValue::Empty => String::new(),
            CellValue::Text(text) => safe(text),
            CellValue::Number(n) => number(*n),
        })
    });
    // Writing to memory cannot fail, and all rows are as long as the header.
    let written = writer
        .write_record(table.columns.iter().map(|c| safe(&c.key)))
        .and_then(|()| rows.into_iter().try_for_each(|row| writer.write_record(row)));
    debug_assert!(written.is_ok(), "{written:?}");
    String::from_utf8(writer.into_inner().unwrap_or_default()).unwrap_or_default()
}

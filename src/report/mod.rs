//! What to show, apart from how: a report is sections of tables, paragraphs, facts and bars, as plain data; `format` turns it into a
//! terminal's text, Markdown, HTML, CSV or JSON. In: results. Out: text. It measures nothing and prints nothing.

pub mod chart;
pub mod compare;
pub mod format;
pub mod histograms;
pub mod machine;
pub mod result_diff;
pub mod speedup;

pub use format::ReportFormat;

use crate::bench::statistics::Interval;

/// A whole report.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The headline.
    pub title: String,
    /// What is read, in order.
    pub sections: Vec<Section>,
    /// What programs read: the table that `--format csv` and `json` write.
    pub data: Table,
}

/// A part of a report.
#[derive(Debug, Clone, Default)]
pub struct Section {
    /// Its heading; empty for none.
    pub title: String,
    /// Its contents.
    pub blocks: Vec<Block>,
}

/// A piece of a section.
#[derive(Debug, Clone)]
pub enum Block {
    /// A paragraph.
    Text(String),
    /// A list of remarks.
    Notes(Vec<String>),
    /// A table.
    Table(Table),
    /// Names and values, a line each.
    Facts(Vec<(String, String)>),
    /// Horizontal bars.
    Bars(Bars),
    /// A picture, shown by HTML alone: a table beside it holds its figures.
    Chart(chart::Chart),
}

/// Where a column's text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A column.
#[derive(Debug, Clone)]
pub struct TableColumn {
    /// Header in CSV and JSON.
    pub key: String,
    /// Header for people.
    pub title: String,
    /// Where its text stands.
    pub align: Align,
}

/// A cell: what people read and what programs read.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// For people.
    pub shown: String,
    /// For programs.
    pub value: CellValue,
}

/// A cell's value.
#[derive(Debug, Clone, PartialEq)]
pub enum CellValue {
    /// Nothing to say.
    Empty,
    /// Text.
    Text(String),
    /// A number; `inf` is allowed, NaN is written as nothing.
    Number(f64),
}

/// A table. Every row has as many cells as there are columns.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// The columns.
    pub columns: Vec<TableColumn>,
    /// The rows.
    pub rows: Vec<Vec<Cell>>,
}

/// Horizontal bars from zero.
#[derive(Debug, Clone, Default)]
pub struct Bars {
    /// What the lengths mean.
    pub title: String,
    /// Label, length (≥ 0), and the length as text.
    pub bars: Vec<(String, f64, String)>,
}

impl Table {
    /// An empty one; each column is (key, title, alignment).
    pub fn new(columns: &[(&str, &str, Align)]) -> Table {
        let columns = columns.iter().map(|(key, title, align)| TableColumn {
            key: (*key).into(),
            title: (*title).into(),
            align: *align,
        });
        Table { columns: columns.collect(), rows: Vec::new() }
    }

    /// One for programs: keys are titles.
    pub fn of_keys(keys: &[&str]) -> Table {
        Table::new(&keys.iter().map(|k| (*k, *k, Align::Left)).collect::<Vec<_>>())
    }

    /// Adds a row; short rows are filled with empty cells.
    pub fn push(&mut self, mut row: Vec<Cell>) {
        debug_assert!(row.len() <= self.columns.len(), "more cells than columns");
        row.resize(self.columns.len(), Cell::empty());
        self.rows.push(row);
    }
}

impl Cell {
    /// Nothing.
    pub fn empty() -> Cell {
        Cell { shown: String::new(), value: CellValue::Empty }
    }

    /// Text.
    pub fn text(text: impl Into<String>) -> Cell {
        let text = text.into();
        Cell {
            shown: text.clone(),
            value: if text.is_empty() { CellValue::Empty } else { CellValue::Text(text) },
        }
    }

    /// A number with its text for people.
    pub fn number(value: f64, shown: impl Into<String>) -> Cell {
        Cell { shown: shown.into(), value: CellValue::Number(value) }
    }

    /// A number as [`crate::units::rate`] prints it, `∞` if infinite; empty if there is none.
    pub fn rate(value: Option<f64>) -> Cell {
        value.map_or_else(Cell::empty, |v| Cell::number(v, factor(v)))
    }
}

/// A factor for people: three significant figures, `∞`, `–`.
pub fn factor(value: f64) -> String {
    if value == f64::INFINITY { "∞".into() } else { crate::units::rate(value) }
}

/// A ratio and its interval for people: `1.42 (1.38–1.46)`.
pub fn interval(i: &Interval) -> String {
    format!("{} ({}–{})", factor(i.ratio), factor(i.low), factor(i.high))
}

impl Bars {
    /// The same as a picture.
    pub fn chart(&self) -> chart::Chart {
        let bar = |(label, value, shown): &(String, f64, String)| chart::Bar {
            label: label.clone(),
            value: *value,
            interval: None,
            shown: shown.clone(),
        };
        let all: Vec<String> =
            self.bars.iter().map(|(label, _, shown)| format!("{label} {shown}")).collect();
        chart::Chart {
            title: self.title.clone(),
            description: format!("Bars from zero: {}.", all.join("; ")),
            marks: chart::ChartMarks::Bars(self.bars.iter().map(bar).collect()),
        }
    }
}

impl Section {
    /// One with a heading.
    pub fn new(title: impl Into<String>, blocks: Vec<Block>) -> Section {
        Section { title: title.into(), blocks }
    }
}

impl Report {
    /// One HTML page with charts that needs nothing else.
    pub fn page(&self) -> String {
        format::html::page(self)
    }

    /// The text in a format. `width`: columns of the terminal (used by [`ReportFormat::Table`] only). Ends with a newline.
    pub fn render(&self, format: ReportFormat, width: usize) -> String {
        match format {
            ReportFormat::Table => format::table::report(self, width),
            ReportFormat::Md => format::markdown::report(self),
            ReportFormat::Csv => format::csv::table(&self.data),
            ReportFormat::Json => format::json::text(&format::json::table(&self.data)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut table = Table::new(&[
            ("name", "Name", Align::Left),
            ("gain", "Gain", Align::Right),
            ("note", "Note", Align::Left),
        ]);
        let hostile = "=cmd|' /C calc'!A0 \u{1b}[31m\n::error::x <img src=x> **b** `c` [l](u)";
        table.push(vec![
            Cell::text(hostile),
            Cell::number(1.234567890, "1.23"),
            Cell::text("a | b ".repeat(40)),
        ]);
        table.push(vec![Cell::text("cache"), Cell::rate(Some(f64::INFINITY)), Cell::empty()]);
        table.push(vec![Cell::text("broken"), Cell::number(f64::NAN, "–")]);
        let bars = Bars {
            title: "Times".into(),
            bars: vec![("a".repeat(200), 3.0, "3 s".into()), ("b".into(), 0.0, "0".into())],
        };
        let blocks = vec![
            Block::Text(format!("::warning:: {}", "word ".repeat(100))),
            Block::Notes(vec![hostile.into()]),
            Block::Table(table.clone()),
            Block::Facts(vec![("CPU".into(), hostile.repeat(4))]),
            Block::Bars(bars),
            Block::Chart(dots()),
        ];
        Report {
            title: hostile.into(),
            sections: vec![Section::new("Results", blocks)],
            data: table,
        }
    }

    fn dots() -> chart::Chart {
        let dot = |label: &str, measured, expected| chart::Dot {
            label: label.into(),
            measured,
            expected,
            shown: "1.2 (1–2)".into(),
        };
        chart::Chart {
            title: "a <b> & \"c\"".into(),
            description: "x</desc><script>alert(1)</script>".into(),
            marks: chart::ChartMarks::Dots(vec![
                dot("narrow", (1.1, 1.2, 1.3), Some((1.3, 1.5))),
                dot("says nothing", (1e-9, 1.0, 1e9), None),
                dot(&"long ".repeat(30), (0.5, 0.6, 0.7), Some((2.0, 2.0))),
            ]),
        }
    }

    /// Every element that is opened is closed, in order; void elements and self-closed ones apart.
    fn assert_well_formed(page: &str) {
        let mut open: Vec<String> = Vec::new();
        let mut rest = &page[page.find("<html").unwrap()..];
        while let Some(at) = rest.find('<') {
            let end = at + rest[at..].find('>').unwrap();
            let tag = &rest[at + 1..end];
            rest = &rest[end + 1..];
            let name: String = tag
                .trim_start_matches('/')
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric())
                .collect();
            if let Some(closed) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(closed), "closed out of order");
            } else if name != "meta" && !tag.ends_with('/') {
                open.push(name);
            }
        }
        assert_eq!(open, Vec::<String>::new());
    }

    #[test]
    fn a_page_needs_nothing_else_is_well_formed_and_texts_in_it_are_dead() {
        let page = report().page();
        assert_well_formed(&page);
        for needle in [
            "<script", "http://", "https://", " href=", "url(", "@import", "<img", "onload",
            "\u{1b}",
        ] {
            assert!(!page.contains(needle), "{needle}");
        }
        assert!(page.contains("&lt;img src=x&gt;"));
        assert_eq!(page.matches("<svg").count(), 2);
        // Each picture has a title and a text of its own.
        for number in 1..=2 {
            for id in
                [format!("id=\"chart-{number}-title\""), format!("id=\"chart-{number}-text\"")]
            {
                assert_eq!(page.matches(&id).count(), 1, "{id}");
            }
        }
        assert_eq!(page, report().page(), "the same report, the same bytes");
        assert!(!page.contains("NaN") && !page.contains("inf%"));
    }

    #[test]
    fn a_point_stands_where_its_axis_says() {
        let page = Report {
            sections: vec![Section::new("", vec![Block::Chart(dots())])],
            ..Report::default()
        }
        .page();
        let place = |needle: &str, nth: usize| -> f64 {
            let at = page.match_indices(needle).nth(nth).unwrap().0 + needle.len();
            page[at..].split('%').next().unwrap().parse().unwrap()
        };
        let x = |nth| place("<circle class=\"dot\" cx=\"", nth);
        // Logarithmic: the distances of 0.6, 1 and 1.2 are those of their logarithms.
        let (narrow, one, low) = (x(0), x(1), x(2));
        assert!(
            ((narrow - one) / (one - low) - 1.2f64.ln() / (1.0f64 / 0.6).ln()).abs() < 0.01,
            "{narrow} {one} {low}"
        );
        assert!((place("<line class=\"one\" x1=\"", 0) - one).abs() < 0.02);
    }

    #[test]
    fn a_terminal_gets_no_wide_lines_no_control_characters_and_no_log_commands() {
        for width in [0, 80, 120] {
            let text = report().render(ReportFormat::Table, width);
            for line in text.lines() {
                assert!(
                    line.chars().count() <= width.max(80) || !line.contains(' '),
                    "{width}: {line}"
                );
                assert!(!line.trim_start().starts_with("::"), "{line}");
            }
            assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
            assert!(text.contains("█") && text.contains("∞"));
        }
    }

    #[test]
    fn figures_and_words_of_titles_stay_whole_where_they_fit() {
        let titles = ["total", "token", "prefill", "decode", "sample", "detok", "queue", "n"];
        let mut table = Table::new(&[("name", "ms per slice", Align::Left)]);
        table
            .columns
            .extend(titles.iter().map(|t| Table::new(&[(t, t, Align::Right)]).columns.remove(0)));
        table.push(
            std::iter::once("baseline + precision + quantized")
                .chain(["1"; 8])
                .map(Cell::text)
                .collect(),
        );
        table.push(std::iter::once("baseline").chain(["88.6 ms"; 3]).map(Cell::text).collect());
        let text = format::table::table(&table, 80);
        let header = text.lines().find(|l| l.contains("ms per slice")).unwrap();
        assert_eq!(header.split_whitespace().skip(3).collect::<Vec<_>>(), titles, "{text}");
        let row = text.lines().find(|l| l.contains("88.6")).unwrap();
        assert_eq!(row.matches("88.6 ms").count(), 3, "{text}");
        assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
    }

    #[test]
    fn markdown_tables_keep_their_shape_and_markup_in_texts_is_dead() {
        let text = report().render(ReportFormat::Md, 80);
        let rows: Vec<&str> = text.lines().filter(|l| l.starts_with('|')).collect();
        assert_eq!(rows.len(), 5);
        for row in rows {
            let bars = row.replace("\\\\", "").replace("\\|", "").matches('|').count();
            assert_eq!(bars, 4, "{row}");
        }
        assert!(
            !text.contains("<img")
                && !text.contains(" **b**")
                && !text.contains(" `c`")
                && !text.contains('\u{1b}')
        );
    }

    #[test]
    fn csv_has_the_keys_as_header_and_no_formulas() {
        let text = report().render(ReportFormat::Csv, 80);
        let mut reader = ::csv::Reader::from_reader(text.as_bytes());
        assert_eq!(reader.headers().unwrap(), vec!["name", "gain", "note"]);
        let rows: Vec<::csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        assert!(rows[0][0].starts_with("'=cmd") && &rows[0][1] == "1.23457");
        assert_eq!(rows[1], vec!["cache", "inf", ""]);
        assert_eq!(rows[2], vec!["broken", "", ""]);
    }

    #[test]
    fn json_is_a_list_of_objects_in_the_order_of_the_columns() {
        let json: serde_json::Value =
            serde_json::from_str(&report().render(ReportFormat::Json, 80)).unwrap();
        assert_eq!(json[1], serde_json::json!({"name": "cache", "gain": "inf", "note": null}));
        assert_eq!(
            json[0].as_object().unwrap().keys().collect::<Vec<_>>(),
            ["name", "gain", "note"]
        );
    }

    #[test]
    fn numbers_in_files() {
        for (value, text) in [
            (1.0, "1"),
            (0.5, "0.5"),
            (1234567.0, "1234567"),
            (0.000123456789, "0.000123457"),
            (-2.5, "-2.5"),
        ] {
            assert_eq!(format::csv::number(value), text);
        }
    }
}

//! Results files side by side, for people and as CSV: what differs first, then rows. In: a [`LineUp`]. Out: a [`Report`].

use super::{Align, Block, Cell, Report, Section, Table, interval};
use crate::bench::lineup::LineUp;

/// The whole report.
pub fn report(found: &LineUp) -> Report {
    let mut sections = Vec::new();
    let mut data = Table::of_keys(&[
        "file",
        "row",
        "first",
        "first_low",
        "first_high",
        "other",
        "other_low",
        "other_high",
        "ratio",
        "low",
        "high",
        "verdict",
    ]);
    for other in &found.others {
        let differences = match other.differences.is_empty() {
            true => vec!["Nothing that is recorded differs between the machines and settings.".to_string()],
            false => other.differences.clone(),
        };
        sections
            .push(Section::new(format!("What differs: {} → {}", found.reference, other.path), vec![Block::Notes(differences)]));
        let mut table = Table::new(&[
            ("row", "gain of", Align::Left),
            ("first", "first", Align::Right),
            ("other", "this", Align::Right),
            ("ratio", "this / first", Align::Right),
            ("verdict", "verdict", Align::Left),
        ]);
        for r in &other.rows {
            table.push(vec![
                Cell::text(&r.row),
                Cell::text(interval(&r.first)),
                Cell::text(interval(&r.other)),
                Cell::text(interval(&r.ratio)),
                Cell::text(r.change.name()),
            ]);
            let numbers = [
                r.first.ratio,
                r.first.low,
                r.first.high,
                r.other.ratio,
                r.other.low,
                r.other.high,
                r.ratio.ratio,
                r.ratio.low,
                r.ratio.high,
            ];
            let mut row = vec![Cell::text(&other.path), Cell::text(&r.row)];
            row.extend(numbers.map(|n| Cell::rate(Some(n))));
            row.push(Cell::text(r.change.name()));
            data.push(row);
        }
        let mut blocks = vec![Block::Table(table)];
        let missing =
            |names: &[String], whose: &str| (!names.is_empty()).then(|| format!("Only in {whose}: {}.", names.join(", ")));
        let notes: Vec<String> = [missing(&other.only_first, &found.reference), missing(&other.only_other, &other.path)]
            .into_iter()
            .flatten()
            .collect();
        if !notes.is_empty() {
            blocks.push(Block::Notes(notes));
        }
        sections.push(Section::new("Gains, row by row", blocks));
    }
    let about = "Only ratios are compared: each file's gains were measured on one machine within one run; times of different moments or machines are not.";
    sections.push(Section::new("", vec![Block::Text(about.into())]));
    Report { title: format!("{} and what followed", found.reference), sections, data }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::lineup::{Against, Change, LinedUp};
    use crate::bench::statistics::Interval;
    use crate::report::Format;

    #[test]
    fn differences_come_before_any_number() {
        let i = |ratio: f64| Interval { low: ratio * 0.9, ratio, high: ratio * 1.1 };
        let found = LineUp {
            reference: "old.json".into(),
            others: vec![Against {
                path: "new.json".into(),
                differences: vec!["CPU: A → B".into()],
                rows: vec![LinedUp { row: "cache".into(), first: i(2.0), other: i(4.0), ratio: i(2.0), change: Change::Better }],
                only_first: vec!["greedy".into()],
                only_other: vec![],
            }],
        };
        for format in [Format::Table, Format::Md] {
            let text = report(&found).render(format, 100);
            let (differs, number) = (text.find("CPU: A → B").unwrap(), text.find("2.00 (1.80").unwrap());
            assert!(differs < number && text.contains("better") && text.contains("Only in old.json: greedy"), "{text}");
        }
        assert!(report(&found).render(Format::Csv, 80).lines().nth(1).unwrap().starts_with("new.json,cache,2,1.8,2.2,4,"));
    }
}

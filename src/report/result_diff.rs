//! Results files side by side, for people and as CSV: what differs first, then rows. In: a [`ResultDiff`]. Out: a [`Report`].

use super::{Align, Block, Cell, Report, Section, Table, factor, interval};
use crate::bench::result_diff::ResultDiff;

/// The whole report.
pub fn report(found: &ResultDiff) -> Report {
    let mut sections: Vec<Section> = spread(found).into_iter().collect();
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
            true => vec![
                "Nothing that is recorded differs between the machines and settings.".to_string(),
            ],
            false => other.differences.clone(),
        };
        sections.push(Section::new(
            format!("What differs: {} → {}", found.reference, other.path),
            vec![Block::Notes(differences)],
        ));
        let mut table = Table::new(&[
            ("row", "gain of", Align::Left),
            ("ratio", "this / first", Align::Right),
            ("verdict", "verdict", Align::Left),
            ("first", "first", Align::Right),
            ("other", "this", Align::Right),
        ]);
        for r in &other.rows {
            table.push(vec![
                Cell::text(&r.row),
                Cell::text(interval(&r.ratio)),
                Cell::text(if r.between {
                    format!("{} (between runs)", r.change.name())
                } else {
                    r.change.name().into()
                }),
                Cell::text(interval(&r.first)),
                Cell::text(interval(&r.other)),
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
        let missing = |names: &[String], whose: &str| {
            (!names.is_empty()).then(|| format!("Only in {whose}: {}.", names.join(", ")))
        };
        let notes: Vec<String> =
            [missing(&other.only_first, &found.reference), missing(&other.only_other, &other.path)]
                .into_iter()
                .flatten()
                .collect();
        if !notes.is_empty() {
            blocks.push(Block::Notes(notes));
        }
        sections.push(Section::new("Gains, row by row", blocks));
    }
    let about = "Only ratios are compared: each file's gains were measured on one machine within \
        one run; times of different moments or machines are not.";
    sections.push(Section::new("", vec![Block::Text(about.into())]));
    Report { title: format!("{} and what followed", found.reference), sections, data }
}

/// How far runs of the first file's setting differ.
fn spread(found: &ResultDiff) -> Option<Section> {
    let runs = found.spread.first()?.runs;
    let mut table = Table::new(&[
        ("row", "gain of", Align::Left),
        ("range", "least–greatest", Align::Right),
        ("between", "between runs (s.d.)", Align::Right),
        ("within", "within a run (95 %)", Align::Right),
    ]);
    let percent = |log: f64| format!("± {:.1} %", log.exp_m1() * 100.0);
    for s in &found.spread {
        let cells = [
            s.row.clone(),
            format!("{}–{}", factor(s.least), factor(s.greatest)),
            percent(s.deviation),
            percent(s.within),
        ];
        table.push(cells.into_iter().map(Cell::text).collect());
    }
    let text = format!(
        "{runs} of these files are runs of one setting on one machine. Where runs differ by more \
         than their rounds say, verdicts go by that."
    );
    Some(Section::new("How far runs differ", vec![Block::Text(text), Block::Table(table)]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::ablation::gate::{self, Thresholds};
    use crate::bench::ablation::result::BenchResult;
    use crate::bench::ablation::test_data::result;
    use crate::bench::compare::recommendation::tests::{comparison, setting};
    use crate::bench::result_diff::{Against, Change, Results, RowDiff, difference};
    use crate::bench::statistics::Interval;
    use crate::report::ReportFormat;

    #[test]
    fn differences_come_before_any_number() {
        let i = |ratio: f64| Interval { low: ratio * 0.9, ratio, high: ratio * 1.1 };
        let found = ResultDiff {
            reference: "old.json".into(),
            others: vec![Against {
                path: "new.json".into(),
                differences: vec!["CPU: A → B".into()],
                rows: vec![RowDiff {
                    row: "cache".into(),
                    first: i(2.0),
                    other: i(4.0),
                    ratio: i(2.0),
                    change: Change::Better,
                    between: false,
                }],
                only_first: vec!["greedy".into()],
                only_other: vec![],
            }],
            spread: vec![],
        };
        for format in [ReportFormat::Table, ReportFormat::Md] {
            let text = report(&found).render(format, 100);
            let (differs, number) =
                (text.find("CPU: A → B").unwrap(), text.find("2.00 (1.80").unwrap());
            assert!(
                differs < number
                    && text.contains("better")
                    && text.contains("Only in old.json: greedy"),
                "{text}"
            );
        }
        assert!(
            report(&found)
                .render(ReportFormat::Csv, 80)
                .lines()
                .nth(1)
                .unwrap()
                .starts_with("new.json,cache,2,1.8,2.2,4,")
        );
    }

    /// Every place of a JSON value; of lists the first element and the last one.
    fn places(value: &serde_json::Value, at: String, found: &mut Vec<String>) {
        found.push(at.clone());
        match value {
            serde_json::Value::Object(fields) => {
                fields.iter().for_each(|(name, v)| places(v, format!("{at}/{name}"), found))
            }
            serde_json::Value::Array(items) => {
                let some =
                    items.iter().enumerate().filter(|(i, _)| *i == 0 || i + 1 == items.len());
                some.for_each(|(i, v)| places(v, format!("{at}/{i}"), found));
            }
            _ => {}
        }
    }

    /// What `compare` and `--baseline` do with a text. An error is one line, and a gate compares something.
    fn used(text: &str, good: &Results, now: &BenchResult) {
        match Results::parse(text) {
            Ok(results) => {
                for pair in [[good.clone(), results.clone()], [results, good.clone()]] {
                    if let Ok(diff) = difference(&pair) {
                        let report = report(&diff);
                        [ReportFormat::Table, ReportFormat::Csv, ReportFormat::Md]
                            .iter()
                            .for_each(|f| drop(report.render(*f, 80)));
                    }
                }
            }
            Err(error) => assert!(!error.is_empty() && !error.contains('\n'), "{error}"),
        }
        if let Ok(before) = BenchResult::parse(text) {
            match gate::compare(
                &before,
                now,
                Thresholds { max_regression: 3.0, same_machine: false },
            ) {
                Ok(outcome) => assert!(
                    !outcome.checks.is_empty(),
                    "a gate that compares nothing passes everything"
                ),
                Err(error) => assert!(!error.is_empty() && !error.contains('\n'), "{error}"),
            }
        }
    }

    #[test]
    fn whatever_is_changed_in_a_results_file_it_is_refused_or_lined_up_and_never_a_panic() {
        let now = result(2, 0.05, 1, |label| if label == "baseline" { 4.5 } else { 1.5 });
        let settings = vec![
            setting("f32", "f32", 35.0, None, None),
            setting("bf16", "bf16", 65.0, Some(1.86), Some(true)),
        ];
        let mut tried = 0;
        for text in [now.to_json(), serde_json::to_string(&comparison(settings)).unwrap()] {
            let good = Results::parse(&text).unwrap();
            let whole: serde_json::Value = serde_json::from_str(&text).unwrap();
            let mut found = Vec::new();
            places(&whole, String::new(), &mut found);
            for (n, place) in found.iter().enumerate() {
                // Three of nine changes at each place: an analysis takes milliseconds.
                let changes = [
                    "null",
                    "-1",
                    "0",
                    "1e308",
                    "18446744073709551615",
                    r#""\u001b[2J\n""#,
                    "[]",
                    "{}",
                    "true",
                ];
                for change in changes.iter().skip(n % 3).step_by(3) {
                    let mut changed = whole.clone();
                    *changed.pointer_mut(place).unwrap() = serde_json::from_str(change).unwrap();
                    used(&changed.to_string(), &good, &now);
                    tried += 1;
                }
            }
            // Cut off and flipped.
            for at in (0..text.len()).step_by(499).filter(|at| text.is_char_boundary(*at)) {
                used(&text[..at], &good, &now);
                let flipped: String =
                    text.char_indices().map(|(i, c)| if i == at { '9' } else { c }).collect();
                used(&flipped, &good, &now);
                tried += 2;
            }
        }
        assert!(tried > 500, "{tried}");
    }
}

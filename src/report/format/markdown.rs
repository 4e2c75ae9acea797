//! Markdown as GitHub shows it.

use super::bar_lines;
use crate::report::{Align, Block, Report, Table};

/// Text that Markdown shows as it is: markup and HTML are escaped, control characters made visible, one line.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // A line that begins with `::` is a command to a CI runner that prints it.
    if text.trim_start().starts_with(':') {
        out.push('\\');
    }
    for c in crate::units::shown(text.trim_start()).chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '#' | '!' | '$' | '@' => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out
}

/// A table.
pub fn table(table: &Table) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut out = line(table.columns.iter().map(|c| escaped(&c.title)).collect());
    out.push_str(&line(
        table
            .columns
            .iter()
            .map(|c| if c.align == Align::Right { "--:".into() } else { "---".into() })
            .collect(),
    ));
    for row in &table.rows {
        out.push_str(&line(row.iter().map(|c| escaped(&c.shown)).collect()));
    }
    out
}

/// A whole report.
pub fn report(report: &Report) -> String {
    let mut out = format!("# {}\n", escaped(&report.title));
    for section in &report.sections {
        if !section.title.is_empty() {
            out.push_str(&format!("\n## {}\n", escaped(&section.title)));
        }
        for block in &section.blocks {
            if matches!(block, Block::Chart(_)) {
                continue;
            }
            out.push('\n');
            match block {
                Block::Chart(_) => {}
                Block::Text(text) => out.push_str(&format!("{}\n", escaped(text))),
                Block::Notes(notes) => {
                    notes.iter().for_each(|n| out.push_str(&format!("* {}\n", escaped(n))))
                }
                Block::Table(t) => out.push_str(&table(t)),
                Block::Facts(facts) => {
                    facts.iter().for_each(|(name, value)| {
                        out.push_str(&format!("* {}: {}\n", escaped(name), escaped(value)))
                    });
                }
                // Four spaces: a code block that no text can end.
                Block::Bars(bars) => {
                    out.push_str(&format!("{}\n\n", escaped(&bars.title)));
                    bar_lines(bars, 76).iter().for_each(|l| out.push_str(&format!("    {l}\n")));
                }
            }
        }
    }
    out
}

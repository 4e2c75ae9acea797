//! Plain text for a terminal or a pipe: no colours, no control characters, no line wider than asked for (80 columns at least).

use super::bar_lines;
use crate::report::{Align, Block, Report, Table};
use crate::units::shown;
use comfy_table::{
    CellAlignment, ColumnConstraint, ContentArrangement, LineStyle, TableStyle, Width,
};

/// A line under the header and none elsewhere: rows stay one line each.
const STYLE: TableStyle = TableStyle::new()
    .header_separator(LineStyle::none().fill('─').junction('─'))
    .bottom_border(LineStyle::none().fill('─').junction('─'));

/// Narrower than this is not tried.
const MIN_WIDTH: usize = 80;

/// A table at most `width` columns wide; long cells are wrapped, those of the first column last.
pub fn table(table: &Table, width: usize) -> String {
    let width = width.max(MIN_WIDTH).min(u16::MAX.into());
    let mut out = comfy_table::Table::new();
    out.load_style(STYLE).force_no_tty().set_content_arrangement(ContentArrangement::Dynamic);
    out.set_width(width as u16);
    for row in &table.rows {
        out.add_row(row.iter().map(|c| shown(&c.shown)));
    }
    let cells = out.column_max_content_widths();
    out.set_header(table.columns.iter().map(|c| shown(&c.title)));
    let natural: Vec<usize> =
        out.column_max_content_widths().into_iter().map(usize::from).collect();
    let gaps = table.columns.len().saturating_sub(1);
    // Two columns are `gap` of padding apart, and one more that is a blank in every row and part of the rule under the header.
    let gap = if natural.iter().sum::<usize>() + 3 * gaps <= width { 2 } else { 1 };
    let word = |title: &str| title.split(' ').map(|w| w.chars().count()).max().unwrap_or(0);
    let whole = |i: usize| word(&table.columns[i].title).max(cells.get(i).map_or(0, |&w| w.into()));
    let whole: Vec<usize> = (0..table.columns.len()).map(whole).collect();
    let taken = whole.iter().skip(1).sum::<usize>() + (gap + 1) * gaps;
    let first = natural.first().copied().unwrap_or(0);
    // Figures and words of titles stay whole where that leaves a quarter of the width for the names.
    let keep = taken + first.min(width / 4) <= width;
    let names = if keep { first.min(width - taken) } else { first.min(width * 3 / 10) };
    for (i, column) in table.columns.iter().enumerate() {
        if let Some(c) = out.column_mut(i) {
            let padding = if i == gaps { 0 } else { gap };
            c.set_padding((0, padding as u16));
            if column.align == Align::Right {
                c.set_cell_alignment(CellAlignment::Right);
            }
            if gaps > 0 && (i == 0 || keep) {
                let least = if i == 0 { names } else { whole[i] };
                c.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(
                    (least + padding) as u16,
                )));
            }
        }
    }
    out.lines().map(|l| format!("{}\n", l.trim_end())).collect()
}

/// Words filled into lines of at most `width` columns, the second and later ones indented.
fn filled(text: &str, width: usize, first: &str, later: &str) -> String {
    let (mut out, mut line, mut empty) = (String::new(), first.to_string(), true);
    for word in shown(text).split(' ').filter(|w| !w.is_empty()) {
        if !empty && line.chars().count() + 1 + word.chars().count() > width {
            out.push_str(line.trim_end());
            out.push('\n');
            (line, empty) = (later.to_string(), true);
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    out.push_str(line.trim_end());
    out.push('\n');
    out
}

/// In capitals as far as it is ours: what follows a colon or stands in brackets may be a path or a name.
fn heading(title: &str) -> String {
    let ours = title.find([':', '(']).unwrap_or(title.len());
    format!("{}{}", title[..ours].to_uppercase(), &title[ours..])
}

/// A whole report.
pub fn report(report: &Report, width: usize) -> String {
    let width = width.max(MIN_WIDTH);
    let mut out = filled(&report.title, width, "", "");
    for section in &report.sections {
        if !section.title.is_empty() {
            out.push_str(&format!("\n{}", filled(&heading(&section.title), width, "", "")));
        }
        for block in &section.blocks {
            match block {
                // The tables beside it hold its figures.
                Block::Chart(_) => {}
                Block::Text(text) => out.push_str(&filled(text, width, "", "")),
                Block::Notes(notes) => {
                    notes.iter().for_each(|n| out.push_str(&filled(n, width, "- ", "  ")))
                }
                Block::Table(t) => out.push_str(&table(t, width)),
                Block::Facts(facts) => {
                    let names = facts.iter().map(|f| f.0.chars().count()).max().unwrap_or(0) + 2;
                    for (name, value) in facts {
                        out.push_str(&filled(
                            value,
                            width,
                            &format!("{name:<names$}"),
                            &" ".repeat(names),
                        ));
                    }
                }
                Block::Bars(bars) => {
                    out.push_str(&filled(&bars.title, width, "", ""));
                    bar_lines(bars, width).iter().for_each(|l| out.push_str(&format!("{l}\n")));
                }
            }
        }
    }
    without_log_commands(&out)
}

/// Lines that a CI runner would take for a command (`::error::…`, `##[…]`) get a mark in front.
fn without_log_commands(text: &str) -> String {
    let line = |l: &str| {
        let command = l.trim_start().starts_with("::") || l.trim_start().starts_with("##[");
        if command { format!("│{l}\n") } else { format!("{l}\n") }
    };
    text.lines().map(line).collect()
}

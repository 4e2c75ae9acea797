//! One page that needs nothing else: no script, no font, no picture from elsewhere (its policy forbids them). Readable at a phone's width,
//! in light and dark and on paper. In: a [`Report`]. Out: HTML, the same bytes for the same report. All texts are escaped.

use super::escape::escaped;
use super::svg;
use crate::report::chart::Chart;
use crate::report::{Align, Block, Report, Table};

/// The whole page.
pub fn page(report: &Report) -> String {
    let title = escaped(&report.title);
    let mut body = format!("<main>\n<h1>{title}</h1>\n");
    let mut charts = 0;
    for section in &report.sections {
        body.push_str("<section>\n");
        if !section.title.is_empty() {
            body.push_str(&format!("<h2>{}</h2>\n", escaped(&section.title)));
        }
        for block in &section.blocks {
            body.push_str(&match block {
                Block::Text(text) => format!("<p>{}</p>\n", prose(text)),
                Block::Notes(notes) => list(notes),
                Block::Table(table) => scrolled(table),
                Block::Facts(facts) => definitions(facts),
                Block::Bars(bars) => {
                    charts += 1;
                    figure(&bars.chart(), charts)
                }
                Block::Chart(chart) => {
                    charts += 1;
                    figure(chart, charts)
                }
            });
        }
        body.push_str("</section>\n");
    }
    body.push_str("</main>\n");
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
}

/// Bytes of a word that is kept whole on a phone.
const LONGEST_FLAG: usize = 32;

/// Sentences, in which no flag is broken behind its hyphens.
fn prose(text: &str) -> String {
    let word = |word: &str| match word.contains("--") && word.len() <= LONGEST_FLAG {
        true => format!("<span class=\"flag\">{}</span>", escaped(word)),
        false => escaped(word),
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn figure(chart: &Chart, number: usize) -> String {
    format!(
        "<figure>\n<figcaption>{}</figcaption>\n{}</figure>\n",
        escaped(&chart.title),
        svg::chart(chart, number)
    )
}

fn list(notes: &[String]) -> String {
    let items: String = notes.iter().map(|n| format!("<li>{}</li>\n", prose(n))).collect();
    if items.is_empty() { items } else { format!("<ul>\n{items}</ul>\n") }
}

fn definitions(facts: &[(String, String)]) -> String {
    let items: String = facts
        .iter()
        .map(|(name, value)| format!("<dt>{}</dt><dd>{}</dd>\n", escaped(name), escaped(value)))
        .collect();
    if items.is_empty() { items } else { format!("<dl>\n{items}</dl>\n") }
}

/// A table that scrolls by itself where it is wider than the page; `tabindex` lets a keyboard do that.
fn scrolled(table: &Table) -> String {
    let class = |i: usize| {
        if table.columns.get(i).is_some_and(|c| c.align == Align::Right) {
            " class=\"right\""
        } else {
            ""
        }
    };
    let head: String = table
        .columns
        .iter()
        .enumerate()
        .map(|(i, c)| format!("<th scope=\"col\"{}>{}</th>", class(i), escaped(&c.title)))
        .collect();
    let row = |cells: &Vec<crate::report::Cell>| {
        let cell = |(i, c): (usize, &crate::report::Cell)| match i {
            0 => format!("<th scope=\"row\"{}>{}</th>", class(0), escaped(&c.shown)),
            _ => format!("<td{}>{}</td>", class(i), escaped(&c.shown)),
        };
        format!("<tr>{}</tr>\n", cells.iter().enumerate().map(cell).collect::<String>())
    };
    let rows: String = table.rows.iter().map(row).collect();
    format!(
        "<div class=\"scroll\" tabindex=\"0\"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n"
    )
}

/// Colours were chosen for a contrast of at least 4.5 (text) and 3 (marks) on both backgrounds.
const STYLE: &str = "\
:root { --paper: #ffffff; --ink: #1b1f24; --faint: #57606a; --rule: #d0d7de; --mark: #0b63c5; --soft: #f0d9a0; --one: #8c3b00;
  --part-0: #0b63c5; --part-1: #b4540a; --part-2: #1a7f5a; --part-3: #7a3fb0; --part-4: #a3195b; --part-5: #57606a; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e6eaee; --faint: #9aa5b1; --rule: #39424d; --mark: #69aefc;
  --soft: #5a4a1e; --one: #f0a35e; --part-0: #69aefc; --part-1: #f0a35e; --part-2: #4fc79a; --part-3: #c39bf0; --part-4: #f286b5;
  --part-5: #9aa5b1; } }
@media print { :root { --paper: #ffffff; --ink: #000000; --faint: #333333; --rule: #999999; --mark: #0b63c5; --soft: #f0d9a0; --one: #8c3b00;
  --part-0: #0b63c5; --part-1: #b4540a; --part-2: #1a7f5a; --part-3: #7a3fb0; --part-4: #a3195b; --part-5: #57606a; }
  figure, tr, dl { break-inside: avoid; } h2 { break-after: avoid; } .scroll { overflow: visible; } rect { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
main { max-width: 56rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; border-bottom: 1px solid var(--rule); }
p, ul, dl { max-width: 46rem; } .flag { white-space: nowrap; } li { margin: 0.2rem 0; }
figure { margin: 1rem 0; } figcaption { font-weight: 600; margin-bottom: 0.25rem; }
.scroll { overflow-x: auto; margin: 0.75rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { text-align: left; padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--rule); white-space: pre; vertical-align: top; }
th { font-weight: 600; } tbody th { font-weight: 400; } .right { text-align: right; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.15rem 1rem; margin: 0.75rem 0; } dt { color: var(--faint); } dd { margin: 0; }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: 0.4rem; } }
svg { display: block; overflow: visible; font-size: 13px; font-variant-numeric: tabular-nums; } svg text { fill: var(--ink);
  stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; paint-order: stroke; }
svg .figure { text-anchor: end; fill: var(--faint); } svg .tick { fill: var(--faint); font-size: 12px; }
.grid { stroke: var(--rule); stroke-width: 1; } .one { stroke: var(--one); stroke-width: 1; stroke-dasharray: 4 3; }
.expected { fill: var(--soft); } .dot { fill: var(--mark); } .bar { fill: var(--mark); } .whisker { stroke: var(--ink); stroke-width: 1.5; }
.mark { stroke: var(--one); stroke-width: 1.5; }
.part-0 { fill: var(--part-0); } .part-1 { fill: var(--part-1); } .part-2 { fill: var(--part-2); } .part-3 { fill: var(--part-3); }
.part-4 { fill: var(--part-4); } .part-5 { fill: var(--part-5); }
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_in_sentences_are_kept_whole_unless_they_are_longer_than_a_phone_is_wide() {
        let long = format!("--out={}", "a".repeat(LONGEST_FLAG));
        assert_eq!(
            prose(&format!("a < b by --repeat 3 (--quick), not -- {long}.")),
            format!(
                "a &lt; b by <span class=\"flag\">--repeat</span> 3 <span class=\"flag\">(--quick),</span> not \
                 <span class=\"flag\">--</span> {long}."
            )
        );
    }
}

//! How to show: one file per format. In: a [`crate::report::Report`] or a part of it. Out: text. Everything shown is escaped for its
//! format: names in models and answers are untrusted text.

pub mod csv;
mod escape;
pub mod html;
pub mod json;
pub mod markdown;
mod svg;
pub mod table;

/// What `--format` chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ReportFormat {
    /// For a terminal.
    Table,
    /// Markdown (GitHub's).
    Md,
    /// The main table, comma-separated.
    Csv,
    /// The main table, a list of objects.
    Json,
}

/// A bar of `cells` cells in eighths; `share` in 0..=1.
fn bar(share: f64, cells: usize) -> String {
    const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (share.clamp(0.0, 1.0) * cells as f64 * 8.0).round() as usize;
    format!("{}{}", "█".repeat(eighths / 8), PARTS[eighths % 8])
}

/// Bars as lines: label, bar, value, at most `width` columns wide.
fn bar_lines(bars: &crate::report::Bars, width: usize) -> Vec<String> {
    let shown = |s: &str| crate::units::shown(s);
    let label =
        bars.bars.iter().map(|b| shown(&b.0).chars().count()).max().unwrap_or(0).min(width / 3);
    let value = bars.bars.iter().map(|b| b.2.chars().count()).max().unwrap_or(0);
    let cells = width.saturating_sub(label + value + 4).clamp(4, 50);
    let most = bars.bars.iter().map(|b| b.1).filter(|l| l.is_finite()).fold(0.0, f64::max);
    let line = |(name, length, text): &(String, f64, String)| {
        let name: String = shown(name).chars().take(label).collect();
        let share = if most > 0.0 && length.is_finite() { length / most } else { 0.0 };
        format!("{name:<label$}  {text:>value$}  {}", bar(share, cells)).trim_end().to_string()
    };
    bars.bars.iter().map(line).collect()
}

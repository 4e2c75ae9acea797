//! Charts as inline SVG. In: a [`Chart`]. Out: one `svg` element. Horizontal places are percentages and sizes of text are pixels, so that
//! a chart is as readable on a phone as on a wide screen. Colours are classes that the page defines for light, dark and paper.

use super::escape::escaped;
use crate::report::chart::{Bar, Chart, ChartMarks, Distributions, Dot, Stack};
use std::fmt::Write;

/// Height of a line of text.
const LINE: usize = 18;
/// Height of a row's marks, and the gap to the next row.
const BAND: usize = 14;
const GAP: usize = 8;
/// Height of a distribution.
const HILL: usize = 48;
/// Label and figures that together have more characters than this stand on two lines: what 320 pixels hold.
const MAX_ON_A_LINE: usize = 44;

/// From values to percentages of the width; a percent is left free at both sides for the ends of lines and circles.
struct Axis {
    low: f64,
    high: f64,
    log: bool,
}

impl Axis {
    fn at(&self, value: f64) -> f64 {
        let f = |v: f64| if self.log { v.max(f64::MIN_POSITIVE).ln() } else { v };
        let span = f(self.high) - f(self.low);
        let share = if span > 0.0 { (f(value) - f(self.low)) / span } else { 0.0 };
        1.0 + 98.0 * share.clamp(0.0, 1.0)
    }

    /// A logarithmic axis that holds all values.
    fn log(values: impl Iterator<Item = f64>) -> Axis {
        let (low, high) = values
            .filter(|v| v.is_finite() && *v > 0.0)
            .fold((1.0f64, 1.0f64), |(l, h), v| (l.min(v), h.max(v)));
        Axis { low: low / 1.05, high: high.max(low * 1.2) * 1.05, log: true }
    }

    /// At most about six round values within the axis.
    fn ticks(&self) -> Vec<f64> {
        if !self.log {
            let rough = (self.high - self.low) / 4.0;
            let power = 10f64.powf(rough.max(f64::MIN_POSITIVE).log10().floor());
            let step = [1.0, 2.0, 5.0, 10.0]
                .into_iter()
                .map(|m| m * power)
                .find(|s| *s >= rough)
                .unwrap_or(power);
            return (0..=8)
                .map(|i| i as f64 * step)
                .filter(|v| *v <= self.high * (1.0 + 1e-9))
                .collect();
        }
        let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let all = |parts: &[f64]| -> Vec<f64> {
            let of = |d: i32| parts.iter().map(move |p| p * 10f64.powi(d)).collect::<Vec<_>>();
            decades.clone().flat_map(of).filter(|v| *v >= self.low && *v <= self.high).collect()
        };
        let levels: [&[f64]; 5] = [
            &[1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0],
            &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0],
            &[1.0, 2.0, 5.0],
            &[1.0, 3.0],
            &[1.0],
        ];
        levels.iter().map(|l| all(l)).find(|t| t.len() <= 6 && !t.is_empty()).unwrap_or_else(|| {
            let ones = all(&[1.0]);
            let every = ones.len().div_ceil(6).max(1);
            ones.into_iter().step_by(every).collect()
        })
    }
}

/// A picture under construction: how far down it reaches, and its elements.
#[derive(Default)]
struct Canvas {
    y: usize,
    body: String,
}

impl Canvas {
    fn element(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.body.write_fmt(text);
        self.body.push('\n');
    }

    /// A label at the left and figures at the right, on two lines if they are long.
    fn label(&mut self, label: &str, figures: &str) {
        let whole = crate::units::shown(label);
        let short = if whole.chars().count() > MAX_ON_A_LINE {
            format!("{}…", whole.chars().take(MAX_ON_A_LINE - 1).collect::<String>())
        } else {
            whole.clone()
        };
        let y = self.y + LINE - 4;
        self.element(format_args!(
            "<text x=\"1%\" y=\"{y}\">{}<title>{}</title></text>",
            escaped(&short),
            escaped(&whole)
        ));
        let together = short.chars().count() + figures.chars().count();
        if together > MAX_ON_A_LINE && !figures.is_empty() {
            self.y += LINE;
        }
        if !figures.is_empty() {
            let y = self.y + LINE - 4;
            self.element(format_args!(
                "<text x=\"99%\" y=\"{y}\" class=\"figure\">{}</text>",
                escaped(figures)
            ));
        }
        self.y += LINE;
    }

    fn rect(&mut self, class: &str, from: f64, to: f64, y: usize, height: usize) {
        let width = (to - from).max(0.0);
        self.element(format_args!(
            "<rect class=\"{class}\" x=\"{from:.2}%\" y=\"{y}\" width=\"{width:.2}%\" height=\"{height}\"/>"
        ));
    }

    fn line(&mut self, class: &str, from: (f64, usize), to: (f64, usize)) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.element(format_args!(
            "<line class=\"{class}\" x1=\"{x1:.2}%\" y1=\"{y1}\" x2=\"{x2:.2}%\" y2=\"{y2}\"/>"
        ));
    }

    /// A line from low to high with ends.
    fn whisker(&mut self, axis: &Axis, low: f64, high: f64, y: usize) {
        let (from, to) = (axis.at(low), axis.at(high));
        self.line("whisker", (from, y), (to, y));
        for x in [from, to] {
            self.line("whisker", (x, y - 4), (x, y + 4));
        }
    }

    /// Ticks at the bottom, their lines and that of `one` up to `top`, drawn behind what is there.
    fn axis(&mut self, axis: &Axis, top: usize, one: Option<f64>, shown: impl Fn(f64) -> String) {
        let marks = std::mem::take(&mut self.body);
        let bottom = self.y;
        for tick in axis.ticks() {
            self.line("grid", (axis.at(tick), top), (axis.at(tick), bottom));
        }
        if let Some(one) = one.map(|one| axis.at(one)) {
            self.line("one", (one, top), (one, bottom));
        }
        self.body.push_str(&marks);
        for tick in axis.ticks() {
            let x = axis.at(tick);
            let anchor = if x < 6.0 {
                "start"
            } else if x > 94.0 {
                "end"
            } else {
                "middle"
            };
            let y = bottom + 14;
            self.element(format_args!(
                "<text class=\"tick\" x=\"{x:.2}%\" y=\"{y}\" text-anchor=\"{anchor}\">{}</text>",
                escaped(&shown(tick))
            ));
        }
        self.y += 20;
    }
}

/// A chart; `number` tells it from the others of its page.
pub fn chart(chart: &Chart, number: usize) -> String {
    let mut canvas = Canvas::default();
    match &chart.marks {
        ChartMarks::Dots(dots) => draw_dots(&mut canvas, dots),
        ChartMarks::Bars(bars) => draw_bars(&mut canvas, bars),
        ChartMarks::Stacks(parts, rows) => draw_stacks(&mut canvas, parts, rows),
        ChartMarks::Distributions(all) => draw_distributions(&mut canvas, all),
    }
    format!(
        "<svg role=\"img\" aria-labelledby=\"chart-{number}-title chart-{number}-text\" width=\"100%\" height=\"{}\">\n\
         <title id=\"chart-{number}-title\">{}</title>\n<desc id=\"chart-{number}-text\">{}</desc>\n{}</svg>\n",
        canvas.y,
        escaped(&chart.title),
        escaped(&chart.description),
        canvas.body
    )
}

fn times(value: f64) -> String {
    format!("{}×", crate::units::rate(value).trim_end_matches('0').trim_end_matches('.'))
}

fn draw_dots(canvas: &mut Canvas, dots: &[Dot]) {
    let ends = |d: &Dot| {
        let expected = d.expected.unwrap_or((d.measured.1, d.measured.1));
        [d.measured.0, d.measured.1, d.measured.2, expected.0, expected.1]
    };
    // An interval that says nothing must not squeeze the others.
    let axis = Axis::log(dots.iter().flat_map(ends).map(|v| v.clamp(0.01, 1000.0)));
    for dot in dots {
        canvas.label(&dot.label, &dot.shown);
        let y = canvas.y;
        if let Some((low, high)) = dot.expected {
            canvas.rect("expected", axis.at(low), axis.at(high), y, BAND);
        }
        let (low, middle, high) = dot.measured;
        canvas.whisker(&axis, low, high, y + BAND / 2);
        let x = axis.at(middle);
        canvas.element(format_args!(
            "<circle class=\"dot\" cx=\"{x:.2}%\" cy=\"{}\" r=\"4.5\"/>",
            y + BAND / 2
        ));
        canvas.y += BAND + GAP;
    }
    canvas.axis(&axis, 0, Some(1.0), times);
}

fn draw_bars(canvas: &mut Canvas, bars: &[Bar]) {
    let steady = |b: &Bar| b.interval.filter(|(_, high)| *high <= 4.0 * b.value);
    let most = bars
        .iter()
        .map(|b| steady(b).map_or(b.value, |i| i.1))
        .filter(|v| v.is_finite())
        .fold(0.0, f64::max);
    let axis = Axis { low: 0.0, high: if most > 0.0 { most } else { 1.0 }, log: false };
    for bar in bars {
        canvas.label(&bar.label, &bar.shown);
        canvas.rect(
            "bar",
            axis.at(0.0),
            axis.at(if bar.value.is_finite() { bar.value } else { 0.0 }),
            canvas.y,
            BAND,
        );
        if let Some((low, high)) = steady(bar) {
            canvas.whisker(&axis, low, high, canvas.y + BAND / 2);
        }
        canvas.y += BAND + GAP;
    }
}

/// Classes of parts that exist.
const PARTS: usize = 6;

fn draw_stacks(canvas: &mut Canvas, parts: &[String], rows: &[Stack]) {
    // The legend: squares and names, one a line, so that long names fit on a phone.
    for (i, name) in parts.iter().enumerate() {
        let y = canvas.y;
        canvas.element(format_args!(
            "<rect class=\"part-{}\" x=\"1%\" y=\"{}\" width=\"12\" height=\"12\"/>",
            i % PARTS,
            y + 3
        ));
        canvas.element(format_args!(
            "<text x=\"1%\" dx=\"18\" y=\"{}\">{}</text>",
            y + LINE - 4,
            escaped(name)
        ));
        canvas.y += LINE;
    }
    canvas.y += GAP;
    let sum = |s: &Stack| s.parts.iter().filter(|p| p.is_finite()).sum::<f64>();
    let most = rows.iter().map(sum).fold(0.0, f64::max);
    let axis = Axis { low: 0.0, high: if most > 0.0 { most } else { 1.0 }, log: false };
    for row in rows {
        canvas.label(&row.label, &row.shown);
        let mut from = 0.0;
        for (i, part) in row.parts.iter().enumerate().filter(|(_, p)| p.is_finite() && **p > 0.0) {
            canvas.rect(
                &format!("part-{}", i % PARTS),
                axis.at(from),
                axis.at(from + part),
                canvas.y,
                BAND,
            );
            from += part;
        }
        canvas.y += BAND + GAP;
    }
}

fn draw_distributions(canvas: &mut Canvas, all: &Distributions) {
    let axis = Axis { low: all.range.0, high: all.range.1, log: true };
    let ratio = (all.range.1 / all.range.0).ln();
    for series in &all.series {
        canvas.label(&series.label, &series.shown);
        let most = series.bins.iter().copied().max().unwrap_or(0).max(1);
        let edge =
            |i: usize| axis.at(all.range.0 * (ratio * i as f64 / series.bins.len() as f64).exp());
        let (top, bottom) = (canvas.y, canvas.y + HILL);
        for (i, count) in series.bins.iter().enumerate().filter(|(_, c)| **c > 0) {
            // One sample is still seen.
            let height = ((count * HILL as u64) as f64 / most as f64).round().max(2.0) as usize;
            canvas.rect("bar", edge(i), edge(i + 1), bottom - height.min(HILL), height.min(HILL));
        }
        for (_, seconds) in &series.marks {
            canvas.line("mark", (axis.at(*seconds), top), (axis.at(*seconds), bottom));
        }
        canvas.y = bottom + GAP;
    }
    canvas.axis(&axis, 0, None, crate::units::seconds);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_of_an_axis_is_drawn_over_a_text() {
        let dot = |label: &str, factor: f64| Dot {
            label: label.into(),
            measured: (factor / 1.5, factor, factor * 1.5),
            expected: None,
            shown: "1.00 (0.70–1.50)".into(),
        };
        let dots = ChartMarks::Dots(vec![dot("one", 1.0), dot("two", 2.0)]);
        let drawn = chart(&Chart { title: "t".into(), description: "d".into(), marks: dots }, 1);
        let text = drawn.find("<text").unwrap();
        assert!(drawn.contains("class=\"one\"") && drawn.contains("class=\"grid\""), "{drawn}");
        for class in ["one", "grid"] {
            assert!(drawn.rfind(&format!("class=\"{class}\"")).unwrap() < text, "{class}: {drawn}");
        }
    }
}

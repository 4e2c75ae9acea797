//! Pictures as plain data: what is drawn, never how. `format::svg` draws them; formats of text leave them out, since a table beside each
//! chart holds the same figures. In: figures. Out: [`Chart`]. It computes bins and ranges, and nothing else.

use hdrhistogram::Histogram;

/// Bins of a latency histogram; 40 leave 8 pixels each on a phone.
pub const BINS: usize = 40;

/// A picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// What it shows, as a caption.
    pub title: String,
    /// The same for people who cannot see it: what the axes are and what stands out.
    pub description: String,
    /// The marks.
    pub marks: ChartMarks,
}

/// The marks of a chart, from top to bottom.
#[derive(Debug, Clone, PartialEq)]
pub enum ChartMarks {
    /// Points with intervals on a logarithmic axis of factors; 1 is marked.
    Dots(Vec<Dot>),
    /// Bars from zero on a linear axis.
    Bars(Vec<Bar>),
    /// Bars of parts laid end to end; the names of the parts, then the rows.
    Stacks(Vec<String>, Vec<Stack>),
    /// Distributions on one logarithmic axis of seconds.
    Distributions(Distributions),
}

/// A factor with its interval.
#[derive(Debug, Clone, PartialEq)]
pub struct Dot {
    /// Its name.
    pub label: String,
    /// Low, middle, high; finite and above 0.
    pub measured: (f64, f64, f64),
    /// The range that was expected, if one was.
    pub expected: Option<(f64, f64)>,
    /// The figures as text.
    pub shown: String,
}

/// A length.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// Its name.
    pub label: String,
    /// The length, at least 0.
    pub value: f64,
    /// Its 95 % interval, if there is one.
    pub interval: Option<(f64, f64)>,
    /// The figure as text.
    pub shown: String,
}

/// A bar of parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Stack {
    /// Its name.
    pub label: String,
    /// One length for each part, at least 0.
    pub parts: Vec<f64>,
    /// The sum as text.
    pub shown: String,
}

/// Histograms over the same bins.
#[derive(Debug, Clone, PartialEq)]
pub struct Distributions {
    /// Seconds at the left edge of the first bin and at the right edge of the last; `low < high`.
    pub range: (f64, f64),
    /// One a row.
    pub series: Vec<Distribution>,
}

/// A histogram.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    /// Its name.
    pub label: String,
    /// Samples in each of [`BINS`] bins of equal width in the logarithm.
    pub bins: Vec<u64>,
    /// Percentiles: name and seconds.
    pub marks: Vec<(String, f64)>,
    /// The percentiles as text.
    pub shown: String,
}

impl Distributions {
    /// Bins over the common range of named histograms of microseconds; `None` if no histogram has a sample.
    pub fn of(named: &[(&str, &Histogram<u64>)]) -> Option<Distributions> {
        let filled = || named.iter().filter(|(_, h)| !h.is_empty());
        let low = filled().map(|(_, h)| h.min().max(1)).min()? as f64 / 1e6;
        let high = filled().map(|(_, h)| h.max().max(1)).max()? as f64 / 1e6;
        // A tenth of the range on both sides, and never an empty range.
        let room = (high / low).powf(0.05).max(1.05);
        let range = (low / room, high * room);
        let width = (range.1 / range.0).ln() / BINS as f64;
        let series = filled().map(|(label, histogram)| {
            let mut bins = vec![0; BINS];
            for value in histogram.iter_recorded() {
                let seconds = value.value_iterated_to().max(1) as f64 / 1e6;
                let bin = ((seconds / range.0).ln() / width).clamp(0.0, (BINS - 1) as f64) as usize;
                bins[bin] += value.count_at_value();
            }
            let marks: Vec<(String, f64)> = [50.0, 90.0, 99.0]
                .into_iter()
                .filter_map(|p| {
                    Some((format!("p{p}"), super::histograms::percentile_ms(histogram, p)? / 1e3))
                })
                .collect();
            let shown: Vec<String> = marks
                .iter()
                .map(|(name, s)| format!("{name} {}", crate::units::seconds(*s)))
                .collect();
            Distribution { label: label.to_string(), bins, marks, shown: shown.join(" · ") }
        });
        Some(Distributions { range, series: series.collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_is_in_a_bin_and_percentiles_need_enough_of_them() {
        let mut many = Histogram::new(3).unwrap();
        (1..=200u64).for_each(|v| many.record(v * 1000).unwrap());
        let mut few = Histogram::new(3).unwrap();
        few.record(5_000).unwrap();
        let empty: Histogram<u64> = Histogram::new(3).unwrap();
        let drawn = Distributions::of(&[("many", &many), ("few", &few), ("none", &empty)]).unwrap();
        assert_eq!(drawn.series.len(), 2);
        assert_eq!(drawn.series[0].bins.iter().sum::<u64>(), 200);
        assert_eq!(drawn.series[1].bins.iter().sum::<u64>(), 1);
        assert!(drawn.range.0 < 0.001 && drawn.range.1 > 0.2);
        assert_eq!(
            drawn.series[0].marks.iter().map(|m| m.0.as_str()).collect::<Vec<_>>(),
            ["p50", "p90"]
        );
        assert_eq!(drawn.series[1].shown, "");
        assert_eq!(Distributions::of(&[("none", &empty)]), None);
    }
}

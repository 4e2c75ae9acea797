//! Latency histograms as files: the `.hgrm` text that HdrHistogram's plotters read, and CSV. In: histograms of microseconds. Out: text
//! in milliseconds.

use hdrhistogram::Histogram;

/// Microseconds to the milliseconds that files and tables show.
const PER_MS: f64 = 1e3;

/// The percentile distribution in HdrHistogram's text format, values in milliseconds, 5 ticks per halving of the distance to 100 %.
pub fn hgrm(histogram: &Histogram<u64>) -> String {
    let mut out = format!(
        "{:>12} {:>14} {:>10} {:>14}\n\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    for v in histogram.iter_quantiles(5) {
        let (value, quantile) = (v.value_iterated_to() as f64 / PER_MS, v.quantile_iterated_to());
        let count: u64 = histogram.count_between(0, v.value_iterated_to());
        if quantile < 1.0 {
            out.push_str(&format!(
                "{value:>12.3} {quantile:>14.12} {count:>10} {:>14.2}\n",
                1.0 / (1.0 - quantile)
            ));
        } else {
            out.push_str(&format!("{value:>12.3} {quantile:>14.12} {count:>10}\n"));
        }
    }
    out.push_str(&format!(
        "#[Mean    = {:>12.3}, StdDeviation   = {:>12.3}]\n",
        histogram.mean() / PER_MS,
        histogram.stdev() / PER_MS
    ));
    out.push_str(&format!(
        "#[Max     = {:>12.3}, Total count    = {:>12}]\n",
        histogram.max() as f64 / PER_MS,
        histogram.len()
    ));
    out.push_str(&format!(
        "#[Buckets = {:>12}, SubBuckets     = {:>12}]\n",
        histogram.buckets(),
        histogram.distinct_values()
    ));
    out
}

/// The same as CSV: `value_ms,percentile,total_count`.
pub fn csv(histogram: &Histogram<u64>) -> String {
    let mut out = "value_ms,percentile,total_count\n".to_string();
    for v in histogram.iter_quantiles(5) {
        let count = histogram.count_between(0, v.value_iterated_to());
        out.push_str(&format!(
            "{:.3},{:.6},{count}\n",
            v.value_iterated_to() as f64 / PER_MS,
            v.quantile_iterated_to() * 100.0
        ));
    }
    out
}

/// A percentile in milliseconds, if there are enough samples to speak of it (at least 10 beyond it).
pub fn percentile_ms(histogram: &Histogram<u64>, percentile: f64) -> Option<f64> {
    let needed = 10.0 / (1.0 - percentile / 100.0);
    // The subtraction leaves rounding noise: 10 / (1 − 0.9) is a little more than 100.
    (histogram.len() as f64 + 1e-6 >= needed)
        .then(|| histogram.value_at_percentile(percentile) as f64 / PER_MS)
}

/// The same for people: `12.3 ms` or `–`.
pub fn percentile(histogram: &Histogram<u64>, p: f64) -> String {
    percentile_ms(histogram, p).map_or("–".into(), |ms| crate::units::seconds(ms / 1e3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: impl IntoIterator<Item = u64>) -> Histogram<u64> {
        let mut histogram = Histogram::new(3).unwrap();
        values.into_iter().for_each(|v| histogram.record(v).unwrap());
        histogram
    }

    #[test]
    fn percentiles_need_enough_samples() {
        let hundred = of((1..=100).map(|v| v * 1000));
        assert!((percentile_ms(&hundred, 50.0).unwrap() - 50.0).abs() < 0.1);
        assert!((percentile_ms(&hundred, 90.0).unwrap() - 90.0).abs() < 0.1);
        assert_eq!(percentile_ms(&hundred, 99.0), None);
        assert_eq!(percentile(&hundred, 99.9), "–");
        assert_eq!(percentile_ms(&of([]), 50.0), None);
    }

    #[test]
    fn files_end_with_the_largest_value_and_the_count() {
        let histogram = of([1000, 2000, 3000]);
        let text = hgrm(&histogram);
        assert!(text.contains("Total count    =            3]"), "{text}");
        let last = text.lines().rfind(|l| !l.starts_with('#')).unwrap();
        assert!(last.contains("3.00") && last.contains("1.000000000000"), "{last}");
        let csv = csv(&histogram);
        assert!(
            csv.starts_with("value_ms,percentile,total_count\n")
                && csv.lines().last().unwrap().ends_with(",100.000000,3"),
            "{csv}"
        );
    }
}

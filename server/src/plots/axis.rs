//! Ranges, ticks and names of axes.

use std::ops::Range;

/// A range that shows every value with some air around, even where there are none or all are one.
pub(super) fn around(values: impl Iterator<Item = f64>, from_zero: bool) -> Range<f64> {
    let finite = values.filter(|value| value.is_finite());
    let (mut low, mut high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if low > high {
        return 0.0..1.0;
    }
    if from_zero && low >= 0.0 && low < 0.6 * high {
        low = 0.0;
    }
    if low == high {
        let air = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
        return low - air..high + air;
    }
    let air = (high - low) * 0.07;
    if low != 0.0 {
        low -= air;
    }
    high += air;
    low..high
}

/// A metric's name with its unit, and what its figures are divided by to be in that unit.
pub(super) fn name_and_scale(metric: &str) -> (String, f64) {
    let words = |text: &str| {
        let mut text = text.replace('_', " ");
        if let Some(first) = text.get_mut(0..1) {
            first.make_ascii_uppercase();
        }
        text
    };
    if let Some(name) = metric.strip_suffix("_ms") {
        return (format!("{} (ms)", words(name)), 1.0);
    }
    if let Some(name) = metric.strip_suffix("_bytes") {
        return (format!("{} (MiB)", words(name)), f64::from(1 << 20));
    }
    match metric {
        "parameters" | "params" => ("Parameters (millions)".to_owned(), 1e6),
        "flops" => ("FLOPs (millions)".to_owned(), 1e6),
        "macs" => ("MACs (billions)".to_owned(), 1e9),
        _ => (words(metric), 1.0),
    }
}

/// A tick's label: as many digits as tell it from its neighbours, no more.
pub(super) fn tick(value: f64) -> String {
    let text = if value.abs() >= 1e6 || (value != 0.0 && value.abs() < 1e-4) {
        format!("{value:.1e}")
    } else {
        let text = format!("{value:.4}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    text.replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_shows_all_values_and_never_vanishes() {
        let values = [3.0, 5.0, f64::NAN, 9.0];
        let range = around(values.into_iter(), false);
        assert!(range.start < 3.0 && range.end > 9.0);
        assert_eq!(around(values.into_iter(), true).start, 0.0);
        assert_eq!(around(std::iter::empty(), false), 0.0..1.0);
        let single = around(std::iter::once(0.5), true);
        assert!(single.start < 0.5 && single.end > 0.5);
    }

    #[test]
    fn metrics_are_named_with_their_unit() {
        assert_eq!(name_and_scale("latency_ms").0, "Latency (ms)");
        assert_eq!(
            name_and_scale("peak_memory_bytes"),
            ("Peak memory (MiB)".to_owned(), 1_048_576.0)
        );
        assert_eq!(name_and_scale("quality").0, "Quality");
    }

    #[test]
    fn ticks_have_no_needless_digits() {
        assert_eq!(tick(0.30), "0.3");
        assert_eq!(tick(-20.0), "−20");
        assert_eq!(tick(0.0), "0");
    }
}

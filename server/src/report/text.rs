//! How numbers are written.

use protocol::Figure;

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// Nothing: a score.
    Plain,
    /// Milliseconds.
    Milliseconds,
    /// Bytes.
    Bytes,
    /// Things.
    Count,
    /// How many times as much.
    Times,
}

/// A number in its unit.
pub(super) fn number(value: f64, unit: Unit) -> String {
    let (scale, name) = scale(value, unit);
    format!("{}{name}", digits(value / scale))
}

/// A figure in its unit, with its standard error where it has one.
pub(super) fn figure(figure: &Figure, unit: Unit) -> String {
    if figure.standard_error == 0.0 {
        return number(figure.value, unit);
    }
    // Two digits of an error are enough, in the unit of the value.
    let (scale, name) = scale(figure.value, unit);
    let decimals = decimals(figure.standard_error / scale, 2);
    let value = format!("{:.decimals$}", figure.value / scale).replace('-', "−");
    format!("{value} ± {:.decimals$}{name}", figure.standard_error / scale)
}

/// What a value is divided by, and the unit that it then has.
fn scale(value: f64, unit: Unit) -> (f64, &'static str) {
    match unit {
        Unit::Milliseconds if value.abs() >= 1000.0 => (1000.0, " s"),
        Unit::Milliseconds => (1.0, " ms"),
        Unit::Bytes if value.abs() >= 1_073_741_824.0 => (1_073_741_824.0, " GiB"),
        Unit::Bytes if value.abs() >= 1_048_576.0 => (1_048_576.0, " MiB"),
        Unit::Bytes => (1024.0, " KiB"),
        Unit::Count if value.abs() >= 1e9 => (1e9, " B"),
        Unit::Count if value.abs() >= 1e6 => (1e6, " M"),
        Unit::Count if value.abs() >= 1e3 => (1e3, " k"),
        Unit::Plain | Unit::Count => (1.0, ""),
        Unit::Times => (1.0, "×"),
    }
}

/// A time, in seconds where it is long.
pub(super) fn milliseconds(value: f64) -> String {
    number(value, Unit::Milliseconds)
}

/// Device time.
pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        short if short < 99.5 => format!("{short:.1} s"),
        middle if middle < 5970.0 => format!("{:.1} min", middle / 60.0),
        long => format!("{:.1} h", long / 3600.0),
    }
}

/// Three significant digits.
fn digits(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    if value == 0.0 {
        return "0".to_owned();
    }
    let decimals = decimals(value, 3);
    format!("{value:.decimals$}").replace('-', "−")
}

/// Decimals that show so many significant digits.
fn decimals(value: f64, digits: i32) -> usize {
    if value == 0.0 || !value.is_finite() {
        return 0;
    }
    (f64::from(digits - 1) - value.abs().log10().floor()).clamp(0.0, 5.0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_fitting_unit() {
        assert_eq!(number(1234.5, Unit::Milliseconds), "1.23 s");
        assert_eq!(number(0.6123, Unit::Plain), "0.612");
        assert_eq!(number(3.5 * 1_048_576.0, Unit::Bytes), "3.50 MiB");
        assert_eq!(number(635e6, Unit::Count), "635 M");
        assert_eq!(number(11.24, Unit::Times), "11.2×");
        assert_eq!(number(-0.0123, Unit::Plain), "−0.0123");
        assert_eq!(number(0.0, Unit::Plain), "0");
        let found = Figure {
            value: 20.0,
            standard_error: 0.5,
        };
        assert_eq!(figure(&found, Unit::Milliseconds), "20.00 ± 0.50 ms");
    }

    #[test]
    fn times_are_readable() {
        assert_eq!(duration(12.34), "12.3 s");
        assert_eq!(duration(600.0), "10.0 min");
        assert_eq!(duration(7200.0), "2.0 h");
    }
}

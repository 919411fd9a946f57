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
    match unit {
        Unit::Plain => digits(value),
        Unit::Milliseconds => milliseconds(value),
        Unit::Bytes if value >= 1_073_741_824.0 => format!("{} GiB", digits(value / 1_073_741_824.0)),
        Unit::Bytes if value >= 1_048_576.0 => format!("{} MiB", digits(value / 1_048_576.0)),
        Unit::Bytes => format!("{} KiB", digits(value / 1024.0)),
        Unit::Count if value >= 1e9 => format!("{} B", digits(value / 1e9)),
        Unit::Count if value >= 1e6 => format!("{} M", digits(value / 1e6)),
        Unit::Count if value >= 1e3 => format!("{} k", digits(value / 1e3)),
        Unit::Count => digits(value),
        Unit::Times => format!("{}×", digits(value)),
    }
}

/// A figure in its unit, with its standard error where it has one.
pub(super) fn figure(figure: &Figure, unit: Unit) -> String {
    if figure.standard_error == 0.0 {
        return number(figure.value, unit);
    }
    format!(
        "{} ± {}",
        number(figure.value, unit),
        number(figure.standard_error, unit)
    )
}

/// A time, in seconds where it is long.
pub(super) fn milliseconds(value: f64) -> String {
    if value >= 1000.0 {
        format!("{} s", digits(value / 1000.0))
    } else {
        format!("{} ms", digits(value))
    }
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
    if value == 0.0 || !value.is_finite() {
        return if value == 0.0 { "0".to_owned() } else { "–".to_owned() };
    }
    let decimals = (2.0 - value.abs().log10().floor()).clamp(0.0, 5.0) as usize;
    format!("{value:.decimals$}").replace('-', "−")
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
        assert_eq!(figure(&found, Unit::Milliseconds), "20.0 ms ± 0.500 ms");
    }

    #[test]
    fn times_are_readable() {
        assert_eq!(duration(12.34), "12.3 s");
        assert_eq!(duration(600.0), "10.0 min");
        assert_eq!(duration(7200.0), "2.0 h");
    }
}

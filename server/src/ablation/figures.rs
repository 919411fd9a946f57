//! Figures over seeds.

use protocol::Figure;

/// Differences under so many standard errors are not told.
const RESOLVED: f64 = 2.0;

/// The mean over seeds with its standard error; of a single seed its own, that over prompts.
pub(super) fn mean(figures: &[Figure]) -> Option<Figure> {
    let count = figures.len() as f64;
    let value = figures.iter().map(|figure| figure.value).sum::<f64>() / count;
    match figures {
        [] => None,
        [single] => Some(*single),
        _ => {
            let squares: f64 = figures.iter().map(|figure| (figure.value - value).powi(2)).sum();
            Some(Figure {
                value,
                standard_error: (squares / (count - 1.0) / count).sqrt(),
            })
        }
    }
}

/// The difference of two figures that know nothing of each other.
pub(super) fn difference(figure: Figure, baseline: Figure) -> Figure {
    Figure {
        value: figure.value - baseline.value,
        standard_error: figure.standard_error.hypot(baseline.standard_error),
    }
}

/// Whether a difference is told: without a known error none is, unless the figures are exact.
pub(super) fn is_resolved(difference: Figure, is_exact: bool) -> bool {
    if is_exact {
        return true;
    }
    difference.standard_error > 0.0 && difference.value.abs() >= RESOLVED * difference.standard_error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(value: f64, standard_error: f64) -> Figure {
        Figure { value, standard_error }
    }

    #[test]
    fn the_standard_error_over_seeds_is_that_of_their_mean() {
        // 1, 2, 3: variance 1, of the mean 1/3.
        let found = mean(&[figure(1.0, 9.0), figure(2.0, 9.0), figure(3.0, 9.0)]).unwrap();
        assert_eq!(found.value, 2.0);
        assert!((found.standard_error - (1.0_f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(mean(&[figure(1.0, 0.5)]), Some(figure(1.0, 0.5)));
        assert_eq!(mean(&[]), None);
    }

    #[test]
    fn a_difference_is_told_from_two_standard_errors_on() {
        let found = difference(figure(5.0, 3.0), figure(1.0, 4.0));
        assert_eq!(found, figure(4.0, 5.0), "errors add in squares");
        assert!(!is_resolved(found, false));
        assert!(is_resolved(figure(-10.0, 5.0), false));
        assert!(!is_resolved(figure(9.999, 5.0), false));
        assert!(
            !is_resolved(figure(1.0, 0.0), false),
            "an error that is not known is not zero"
        );
        assert!(is_resolved(figure(1.0, 0.0), true));
    }
}

//! Correction of predictions by architectures that were measured whole.

use search_spaces::Estimate;
use serde::{Deserialize, Serialize};

/// One architecture, predicted from the table and measured whole, in the same unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// What composition gave, before any calibration.
    pub predicted: f64,
    /// What the device gave.
    pub measured: f64,
}

/// `measured ≈ factor · predicted + offset`: the factor takes up what all blocks share (clocks, a warmer
/// cache), the offset what a whole network has once (launch, conversion).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Multiplies a prediction.
    pub factor: f64,
    /// Is added to it, in the metric's unit.
    pub offset: f64,
    /// Standard deviation of what is left, in the metric's unit, with the fitted numbers taken off the count.
    pub residual: f64,
}

impl Default for Calibration {
    fn default() -> Self {
        Self::IDENTITY
    }
}

impl Calibration {
    /// No correction.
    pub const IDENTITY: Self = Self {
        factor: 1.0,
        offset: 0.0,
        residual: 0.0,
    };

    /// Least squares over the pairs: none, no correction; one or two, a factor; three or more, factor and
    /// offset, unless that would make a costlier prediction cheaper. Pairs that are not finite are left out.
    /// The sum of squares over its own pairs is never above that of the uncorrected predictions.
    pub fn fit(pairs: &[Pair]) -> Self {
        let pairs: Vec<Pair> = pairs
            .iter()
            .copied()
            .filter(|pair| pair.predicted.is_finite() && pair.measured.is_finite())
            .collect();
        let line = if pairs.len() >= 3 { line(&pairs) } else { None };
        let Some((factor, offset, fitted)) = line.or_else(|| proportion(&pairs)) else {
            return Self::IDENTITY;
        };
        // With one pair nothing is left to judge the fit by: the correction itself is the doubt.
        let residual = match pairs.len() - fitted {
            0 => pairs
                .iter()
                .map(|pair| (pair.measured - pair.predicted).abs())
                .fold(0.0, f64::max),
            freedom => (sum_of_squares(&pairs, factor, offset) / freedom as f64).sqrt(),
        };
        Self {
            factor,
            offset,
            residual,
        }
    }

    /// The corrected estimate; the residual joins its uncertainty. A cost is never below zero.
    pub fn apply(&self, estimate: Estimate) -> Estimate {
        Estimate {
            value: (self.factor * estimate.value + self.offset).max(0.0),
            standard_error: (self.factor * estimate.standard_error).hypot(self.residual),
        }
    }
}

/// Factor and offset by least squares, with the count of fitted numbers; none where the predictions coincide
/// or the slope is not positive.
fn line(pairs: &[Pair]) -> Option<(f64, f64, usize)> {
    let count = pairs.len() as f64;
    let predicted_mean = pairs.iter().map(|pair| pair.predicted).sum::<f64>() / count;
    let measured_mean = pairs.iter().map(|pair| pair.measured).sum::<f64>() / count;
    let variance: f64 = pairs.iter().map(|pair| (pair.predicted - predicted_mean).powi(2)).sum();
    let covariance: f64 = pairs
        .iter()
        .map(|pair| (pair.predicted - predicted_mean) * (pair.measured - measured_mean))
        .sum();
    // Predictions that differ by rounding alone carry no slope.
    let distinct = variance > count * (1e-9 * predicted_mean).powi(2);
    (distinct && covariance > 0.0).then(|| {
        let factor = covariance / variance;
        (factor, measured_mean - factor * predicted_mean, 2)
    })
}

/// Factor through the origin by least squares; none where it would not be positive.
fn proportion(pairs: &[Pair]) -> Option<(f64, f64, usize)> {
    let square: f64 = pairs.iter().map(|pair| pair.predicted.powi(2)).sum();
    let product: f64 = pairs.iter().map(|pair| pair.predicted * pair.measured).sum();
    (square > 0.0 && product > 0.0).then(|| (product / square, 0.0, 1))
}

fn sum_of_squares(pairs: &[Pair], factor: f64, offset: f64) -> f64 {
    pairs
        .iter()
        .map(|pair| (pair.measured - factor * pair.predicted - offset).powi(2))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs(values: &[(f64, f64)]) -> Vec<Pair> {
        values
            .iter()
            .map(|&(predicted, measured)| Pair { predicted, measured })
            .collect()
    }

    #[test]
    fn a_line_is_found_again() {
        let fit = Calibration::fit(&pairs(&[(10.0, 12.5), (20.0, 23.5), (40.0, 45.5)]));
        assert!((fit.factor - 1.1).abs() < 1e-12 && (fit.offset - 1.5).abs() < 1e-12 && fit.residual < 1e-9);
    }

    #[test]
    fn the_residual_is_the_textbook_one() {
        // Deviations ±1 around y = x at four places, orthogonal to slope and offset: √(4 / (4 − 2)).
        let fit = Calibration::fit(&pairs(&[(1.0, 2.0), (2.0, 1.0), (3.0, 2.0), (4.0, 5.0)]));
        assert!((fit.factor - 1.0).abs() < 1e-12 && fit.offset.abs() < 1e-12);
        assert!((fit.residual - 2.0_f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn few_pairs_fit_few_numbers() {
        assert_eq!(Calibration::fit(&[]), Calibration::IDENTITY);
        let one = Calibration::fit(&pairs(&[(10.0, 12.0)]));
        assert_eq!((one.factor, one.offset, one.residual), (1.2, 0.0, 2.0));
        assert_eq!(Calibration::fit(&pairs(&[(10.0, 12.0), (20.0, 24.0)])).offset, 0.0);
    }

    #[test]
    fn a_falling_line_is_not_believed() {
        let fit = Calibration::fit(&pairs(&[(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]));
        assert!(fit.factor > 0.0 && fit.offset == 0.0);
    }

    #[test]
    fn the_residual_joins_the_uncertainty() {
        let calibration = Calibration {
            factor: 2.0,
            offset: 1.0,
            residual: 4.0,
        };
        let corrected = calibration.apply(Estimate {
            value: 10.0,
            standard_error: 1.5,
        });
        assert_eq!((corrected.value, corrected.standard_error), (21.0, 5.0));
    }

    proptest! {
        #[test]
        fn a_fit_is_never_worse_than_none_on_its_own_pairs(values in prop::collection::vec((0.01f64..1e3, 0.01f64..1e3), 0..30)) {
            let pairs = pairs(&values);
            let fit = Calibration::fit(&pairs);
            let before = sum_of_squares(&pairs, 1.0, 0.0);
            let after = sum_of_squares(&pairs, fit.factor, fit.offset);
            prop_assert!(after <= before * (1.0 + 1e-9) + 1e-9, "{after} > {before}");
            prop_assert!(fit.factor > 0.0 && fit.residual.is_finite());
        }
    }
}

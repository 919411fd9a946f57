//! How well predictions agree with what was measured whole.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use crate::{ErrorSummary, Pair};

/// Agreement of predictions with measurements over many architectures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Relative errors: mean (MAPE), quantiles, share within ±10 %.
    pub errors: ErrorSummary,
    /// Kendall's τ-b between predicted and measured order, ties taken into account; absent where either side
    /// has one value only.
    pub tau: Option<f64>,
}

impl Accuracy {
    /// Over pairs whose measured side is above zero; none where there is no such pair.
    pub fn of(pairs: &[Pair]) -> Option<Self> {
        let pairs: Vec<Pair> = pairs.iter().copied().filter(|pair| pair.measured > 0.0).collect();
        let errors: Vec<f64> = pairs
            .iter()
            .map(|pair| (pair.predicted - pair.measured).abs() / pair.measured)
            .collect();
        Some(Self {
            errors: ErrorSummary::of(&errors)?,
            tau: kendall(&pairs),
        })
    }
}

/// (concordant − discordant) / √(pairs untied in one · pairs untied in the other).
fn kendall(pairs: &[Pair]) -> Option<f64> {
    let (mut balance, mut untied_predicted, mut untied_measured) = (0.0, 0.0, 0.0);
    for (i, a) in pairs.iter().enumerate() {
        for b in &pairs[..i] {
            let predicted = sign(a.predicted.total_cmp(&b.predicted));
            let measured = sign(a.measured.total_cmp(&b.measured));
            balance += predicted * measured;
            untied_predicted += predicted.abs();
            untied_measured += measured.abs();
        }
    }
    let scale = f64::sqrt(untied_predicted * untied_measured);
    (scale > 0.0).then(|| balance / scale)
}

fn sign(order: Ordering) -> f64 {
    f64::from(order as i8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accuracy(values: &[(f64, f64)]) -> Option<Accuracy> {
        let pairs: Vec<Pair> = values
            .iter()
            .map(|&(predicted, measured)| Pair { predicted, measured })
            .collect();
        Accuracy::of(&pairs)
    }

    #[test]
    fn errors_are_relative_to_what_was_measured() {
        let errors = accuracy(&[(11.0, 10.0), (16.0, 20.0), (30.0, 30.0)])
            .expect("pairs")
            .errors;
        assert!((errors.mean - 0.1).abs() < 1e-12 && (errors.p50 - 0.1).abs() < 1e-12);
        assert!((errors.within_10_percent - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn tau_counts_agreeing_orders_with_ties() {
        // By hand: of 10 pairs 2 agree, 6 disagree, 8 are untied on the left and 9 on the right; −4 / √72.
        let ties = accuracy(&[(12.0, 1.0), (2.0, 4.0), (1.0, 7.0), (12.0, 1.0), (2.0, 0.5)]).expect("pairs");
        assert!(
            (ties.tau.expect("untied") + 4.0 / 72.0_f64.sqrt()).abs() < 1e-8,
            "{ties:?}"
        );
        assert_eq!(
            accuracy(&[(1.0, 1.0), (2.0, 2.0), (3.0, 5.0)]).expect("pairs").tau,
            Some(1.0)
        );
        assert_eq!(accuracy(&[(1.0, 1.0), (1.0, 2.0)]).expect("pairs").tau, None);
        assert_eq!(accuracy(&[]), None);
    }
}

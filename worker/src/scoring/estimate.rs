//! Means over prompts and their standard errors.

use std::collections::BTreeMap;

use search_spaces::Estimate;
use serde::{Deserialize, Serialize};

/// What one prompt's clips scored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptScore {
    /// The prompt.
    pub caption: String,
    /// Means over its clips, by dimension; `color` is absent where no clip shows the object.
    pub values: BTreeMap<String, f64>,
}

/// The mean of a dimension over the prompts that have it, 0 if none has; its standard error is that of a mean of
/// independent prompts, so clips of one prompt count together.
#[must_use]
pub fn mean_of_prompts(scores: &[PromptScore], dimension: &str) -> Estimate {
    let weights = BTreeMap::from([(dimension.to_owned(), 1.0)]);
    quality(scores, &weights)
}

/// The weighted average of dimensions, each a mean over the prompts that have it.
///
/// Its standard error follows from what each prompt adds to it, `u = Σ w (x − mean) P / P_present`: the sample standard
/// deviation of `u` over √P. With every value present this is the standard error of the mean of the prompts' own
/// weighted averages.
#[must_use]
pub fn quality(scores: &[PromptScore], weights: &BTreeMap<String, f64>) -> Estimate {
    let (value, shares) = with_shares(scores, weights);
    Estimate {
        value,
        standard_error: error_of(&shares),
    }
}

/// One model's quality beside another's over the same prompts and seeds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Paired {
    /// The first less the second.
    pub difference: Estimate,
    /// The first over the second.
    pub ratio: Estimate,
}

/// Compares two models prompt by prompt: `u − v` of what each prompt adds to either is what the error of the difference
/// is taken from, and `(u − r v) / second` that of the ratio `r` (the delta method). The prompts are the same, in one
/// order.
#[must_use]
pub fn paired(first: &[PromptScore], second: &[PromptScore], weights: &BTreeMap<String, f64>) -> Paired {
    let ((a, of_a), (b, of_b)) = (with_shares(first, weights), with_shares(second, weights));
    let ratio = a / b;
    let apart = |factor: f64, over: f64| -> f64 {
        let shares: Vec<f64> = of_a.iter().zip(&of_b).map(|(u, v)| (u - factor * v) / over).collect();
        error_of(&shares)
    };
    Paired {
        difference: Estimate {
            value: a - b,
            standard_error: apart(1.0, 1.0),
        },
        ratio: Estimate {
            value: ratio,
            standard_error: apart(ratio, b),
        },
    }
}

/// The quality, and what each prompt adds to it.
fn with_shares(scores: &[PromptScore], weights: &BTreeMap<String, f64>) -> (f64, Vec<f64>) {
    let total: f64 = weights.values().sum();
    let prompts = scores.len() as f64;
    let (mut value, mut shares) = (0.0, vec![0.0; scores.len()]);
    for (dimension, weight) in weights {
        let present: Vec<(usize, f64)> = scores
            .iter()
            .enumerate()
            .filter_map(|(i, s)| Some((i, *s.values.get(dimension)?)))
            .collect();
        if present.is_empty() || total <= 0.0 {
            continue;
        }
        let count = present.len() as f64;
        let mean = present.iter().map(|(_, x)| x).sum::<f64>() / count;
        value += weight / total * mean;
        for (i, x) in present {
            shares[i] += weight / total * (x - mean) * prompts / count;
        }
    }
    (value, shares)
}

/// The standard error of a mean over prompts, each of which adds its share.
fn error_of(shares: &[f64]) -> f64 {
    let (prompts, squares) = (shares.len() as f64, shares.iter().map(|u| u * u).sum::<f64>());
    (squares / (prompts - 1.0).max(1.0) / prompts.max(1.0)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(rows: &[(f64, f64, Option<f64>)]) -> Vec<PromptScore> {
        let row = |(a, b, c): &(f64, f64, Option<f64>)| {
            let mut values = BTreeMap::from([("a".to_owned(), *a), ("b".to_owned(), *b)]);
            values.extend(c.map(|c| ("c".to_owned(), c)));
            PromptScore {
                caption: String::new(),
                values,
            }
        };
        rows.iter().map(row).collect()
    }

    fn weights(names: &[(&str, f64)]) -> BTreeMap<String, f64> {
        names
            .iter()
            .map(|(name, weight)| ((*name).to_owned(), *weight))
            .collect()
    }

    /// 1, 2, 3, 4: mean 2.5, sample variance 5/3, standard error √(5/12).
    #[test]
    fn the_standard_error_is_that_of_a_mean() {
        let scores = scores(&[(1.0, 0.0, None), (2.0, 0.0, None), (3.0, 0.0, None), (4.0, 0.0, None)]);
        let found = mean_of_prompts(&scores, "a");
        assert!((found.value - 2.5).abs() < 1e-12);
        assert!((found.standard_error - (5.0_f64 / 12.0).sqrt()).abs() < 1e-12);
    }

    /// Weighted averages of the prompts are 0.5 and 1.5 (weights 3 to 1): mean 1, standard error 0.5.
    #[test]
    fn quality_averages_dimensions_by_weight_and_clusters_by_prompt() {
        let scores = scores(&[(0.0, 2.0, None), (2.0, 0.0, None)]);
        let found = quality(&scores, &weights(&[("a", 3.0), ("b", 1.0)]));
        assert!((found.value - 1.0).abs() < 1e-12);
        assert!((found.standard_error - 0.5).abs() < 1e-12);
    }

    #[test]
    fn a_prompt_without_a_colour_is_skipped_in_it() {
        let scores = scores(&[(1.0, 1.0, Some(0.2)), (1.0, 1.0, None), (1.0, 1.0, Some(0.6))]);
        let found = mean_of_prompts(&scores, "c");
        assert!((found.value - 0.4).abs() < 1e-12);
        // u = ±0.2·3/2 and 0: √((0.09 + 0.09) / 2 / 3) = 0.3/√3.
        assert!((found.standard_error - 0.3 / 3.0_f64.sqrt()).abs() < 1e-12);
    }

    /// Differences 0.1, 0.3, 0.2: mean 0.2, standard error 0.1/√3. The ratio is 3.6 / 3, what `a` differs from 1.2 `b` by
    /// 0, 0.1 and −0.1, over a mean of 1.
    #[test]
    fn a_pair_of_models_is_compared_prompt_by_prompt() {
        let first = scores(&[(0.6, 0.0, None), (1.3, 0.0, None), (1.7, 0.0, None)]);
        let second = scores(&[(0.5, 0.0, None), (1.0, 0.0, None), (1.5, 0.0, None)]);
        let found = paired(&first, &second, &weights(&[("a", 1.0)]));
        assert!((found.difference.value - 0.2).abs() < 1e-12);
        assert!((found.difference.standard_error - 0.1 / 3.0_f64.sqrt()).abs() < 1e-12);
        assert!((found.ratio.value - 1.2).abs() < 1e-12);
        // 0.6 − 0.6, 1.3 − 1.2, 1.7 − 1.8.
        let error = ((0.01 + 0.01) / 2.0 / 3.0_f64).sqrt();
        assert!((found.ratio.standard_error - error).abs() < 1e-12, "{found:?}");
        let same = paired(&second, &second, &weights(&[("a", 1.0)]));
        assert_eq!((same.difference.value, same.difference.standard_error), (0.0, 0.0));
        assert_eq!((same.ratio.value, same.ratio.standard_error), (1.0, 0.0));
    }
}

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
    let squares: f64 = shares.iter().map(|u| u * u).sum();
    let standard_error = (squares / (prompts - 1.0).max(1.0) / prompts.max(1.0)).sqrt();
    Estimate { value, standard_error }
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
}

//! What tells a signal from noise.

use std::fmt;

/// The figures of the last line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Signal {
    /// Best minus none over the standard error of the paired difference.
    pub best_above_none: f64,
    /// Variance between candidates over variance between seeds of one candidate.
    pub variance_ratio: f64,
    /// Rank correlation of short with long training.
    pub tau: f64,
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            best_above_none,
            variance_ratio,
            tau,
        } = self;
        write!(
            f,
            "signal: best {best_above_none:.1} s.e. above none, variance ratio {variance_ratio:.1}, tau {tau:.2}"
        )
    }
}

/// Sample variance of the candidates' figures over the pooled sample variance of each candidate's seeds. The former
/// holds one seed's share of the latter, so 1 means no signal at all.
pub(super) fn variance_ratio(candidates: &[f64], by_seed: &[Vec<f64>]) -> f64 {
    let groups: Vec<&Vec<f64>> = by_seed.iter().filter(|seeds| seeds.len() > 1).collect();
    let freedom: usize = groups.iter().map(|seeds| seeds.len() - 1).sum();
    let squares: f64 = groups
        .iter()
        .map(|seeds| variance(seeds) * (seeds.len() - 1) as f64)
        .sum();
    variance(candidates) / (squares / freedom as f64)
}

fn variance(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0)
}

/// Kendall's τ-b: concordant minus discordant pairs over the geometric mean of the pairs untied in each list; not a
/// number where the lists differ in length or one is constant.
pub(super) fn kendall_tau(a: &[f64], b: &[f64]) -> f64 {
    if a.len() != b.len() {
        return f64::NAN;
    }
    let (mut agree, mut untied_a, mut untied_b) = (0.0, 0.0, 0.0);
    for i in 0..a.len() {
        for j in 0..i {
            let sign = |x: f64| if x == 0.0 { 0.0 } else { x.signum() };
            let (da, db) = (sign(a[i] - a[j]), sign(b[i] - b[j]));
            agree += da * db;
            untied_a += da * da;
            untied_b += db * db;
        }
    }
    agree / f64::sqrt(untied_a * untied_b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tau_counts_pairs_in_the_same_order() {
        assert_eq!(kendall_tau(&[1.0, 2.0, 3.0, 4.0], &[10.0, 20.0, 30.0, 40.0]), 1.0);
        assert_eq!(kendall_tau(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), -1.0);
        // Five of six pairs agree, one does not.
        assert!((kendall_tau(&[1.0, 2.0, 3.0, 4.0], &[1.0, 3.0, 2.0, 4.0]) - 4.0 / 6.0).abs() < 1e-12);
    }

    /// With a tie in one list of three: 2 concordant pairs, √(3·2) in the denominator.
    #[test]
    fn tied_pairs_count_neither_way() {
        assert!((kendall_tau(&[1.0, 2.0, 3.0], &[1.0, 1.0, 2.0]) - 2.0 / 6.0_f64.sqrt()).abs() < 1e-12);
    }

    /// Candidates 0, 1, 2: variance 1. Seeds ±0.1 twice and ±0.3: (0.02 + 0.02 + 0.18) / 3.
    #[test]
    fn the_variance_ratio_pools_the_seeds() {
        let seeds = [vec![-0.1, 0.1], vec![0.9, 1.1], vec![1.7, 2.3]];
        assert!((variance_ratio(&[0.0, 1.0, 2.0], &seeds) - 3.0 / 0.22).abs() < 1e-9);
    }
}

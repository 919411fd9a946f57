//! What a result elsewhere says about an architecture that was not evaluated: Gaussian-process regression
//! on which choices stand where. Used to order children where not all can be tried, never to judge them.

use crate::{Architecture, Cholesky, Space};

/// Results used at most; the newest count.
const MOST: usize = 256;
/// Variance of a score that the choices do not explain, in units of what they do.
const NOISE: f64 = 0.1;

/// Predicts the quality of an architecture from evaluated ones.
pub(super) struct Promise<'a> {
    space: &'a Space,
    seen: Vec<&'a Architecture>,
    /// Of the seen architectures' similarities.
    factor: Cholesky,
    weights: Vec<f64>,
    mean: f64,
    /// Standard deviation of the seen qualities.
    spread: f64,
}

impl<'a> Promise<'a> {
    pub(super) fn new(space: &'a Space, results: &[(&'a Architecture, f64)]) -> Self {
        let results = &results[results.len().saturating_sub(MOST)..];
        let seen: Vec<&Architecture> = results.iter().map(|(architecture, _)| *architecture).collect();
        let count = results.len().max(1) as f64;
        let mean = results.iter().map(|(_, quality)| quality).sum::<f64>() / count;
        let targets: Vec<f64> = results.iter().map(|(_, quality)| quality - mean).collect();
        let spread = (targets.iter().map(|target| target * target).sum::<f64>() / count).sqrt();
        let mut promise = Self {
            space,
            seen,
            factor: Cholesky::default(),
            weights: Vec::new(),
            mean,
            spread,
        };
        promise.factor = Cholesky::of(promise.seen.iter().map(|a| promise.similarities(a)).collect(), NOISE);
        promise.weights = promise.factor.solve(targets);
        promise
    }

    /// The quality that one may hope for: predicted, plus one standard deviation of what is not known.
    pub(super) fn of(&self, architecture: &Architecture) -> f64 {
        let similarities = self.similarities(architecture);
        let predicted: f64 = similarities.iter().zip(&self.weights).map(|(k, w)| k * w).sum();
        let explained = self.factor.quadratic_form(similarities);
        self.mean + predicted + self.spread * (1.0 - explained).max(0.0).sqrt()
    }

    fn similarities(&self, architecture: &Architecture) -> Vec<f64> {
        self.seen
            .iter()
            .map(|seen| self.similarity(seen, architecture))
            .collect()
    }

    /// Half for the share of positions with the same choice, half for how far the same kinds of choice
    /// are present in the same number, wherever they stand. Dead branches do not count.
    fn similarity(&self, a: &Architecture, b: &Architecture) -> f64 {
        let structure = &self.space.structure;
        let (a, b) = (structure.without_dead_branches(a), structure.without_dead_branches(b));
        let positions = self.space.positions.len().max(1) as f64;
        let same = a.choices().iter().zip(b.choices()).filter(|(a, b)| a == b).count() as f64;
        let codes = |architecture: &Architecture| -> Vec<&str> {
            let mut codes: Vec<&str> = self
                .space
                .chosen(architecture)
                .map(|c| c.map_or("", |c| c.code.as_str()))
                .collect();
            codes.sort_unstable();
            codes
        };
        let (mine, theirs) = (codes(&a), codes(&b));
        (same + overlap(&mine, &theirs) as f64) / (2.0 * positions)
    }
}

/// Size of the intersection of two sorted multisets.
fn overlap(a: &[&str], b: &[&str]) -> usize {
    let (mut i, mut j, mut common) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        match a[i].cmp(b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => (i, j, common) = (i + 1, j + 1, common + 1),
        }
    }
    common
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_that_helped_at_one_position_promises_to_help_at_another() {
        let space = Space::parse(include_str!("../../spaces/shapes-tiny.toml")).unwrap();
        let read = |text| space.architecture(text).unwrap();
        let (none, helped, useless) = (read("-.-.-.-.-"), read("c3.-.-.-.-"), read("-.x1.-.-.-"));
        let promise = Promise::new(&space, &[(&none, 0.0), (&helped, 0.5), (&useless, 0.0)]);
        assert!(promise.of(&read("-.-.c3.-.-")) > promise.of(&read("-.-.x1.-.-")));
    }
}

//! A metric as a sum of what each choice adds: ridge regression on one-hot choices, for expectations only.
//!
//! Solved in its dual form, over evaluations instead of choices: a space may have thousands of choices, and
//! architectures are compared by the positions at which they agree.

use search_spaces::{Architecture, Cholesky, Space};

/// Weight of the penalty: a choice seen once is believed by half.
const RIDGE: f64 = 1.0;

/// Evaluations used at most; the newest count.
const MOST: usize = 512;

/// What each choice adds, learned from evaluated architectures.
pub(super) struct Additive {
    /// What each choice adds, by position.
    weights: Vec<Vec<f64>>,
    seen: Vec<Architecture>,
    /// Of the seen architectures' agreements, the penalty added.
    factor: Cholesky,
    /// Root mean square of the leave-one-out errors.
    pub error: f64,
    /// Evaluations it rests on.
    pub evaluations: usize,
}

impl Additive {
    /// Learns from architectures and their figures, oldest first; none from fewer than three.
    pub(super) fn fit(space: &Space, known: &[(&Architecture, f64)]) -> Option<Self> {
        if known.len() < 3 {
            return None;
        }
        let known = &known[known.len().saturating_sub(MOST)..];
        let count = known.len() as f64;
        let mean = known.iter().map(|(_, figure)| figure).sum::<f64>() / count;
        let seen: Vec<Architecture> = known.iter().map(|(architecture, _)| (*architecture).clone()).collect();
        let agreements = seen.iter().map(|a| seen.iter().map(|b| agreement(a, b)).collect());
        let factor = Cholesky::of(agreements.collect(), RIDGE);
        let targets = known.iter().map(|(_, figure)| figure - mean).collect();
        let dual = factor.solve(targets);
        let mut weights: Vec<Vec<f64>> = space.positions.iter().map(|p| vec![0.0; p.choices.len()]).collect();
        for (architecture, share) in seen.iter().zip(&dual) {
            for (position, choice) in weights.iter_mut().zip(architecture.choices()) {
                if let Some(weight) = position.get_mut(usize::from(*choice)) {
                    *weight += share;
                }
            }
        }
        // The error of an evaluation by all others is its dual share over the inverse's diagonal.
        let left_out = dual.iter().enumerate().map(|(i, share)| {
            let mut unit = vec![0.0; dual.len()];
            unit[i] = 1.0;
            let diagonal = factor.quadratic_form(unit);
            (share / diagonal).powi(2)
        });
        let error = (left_out.sum::<f64>() / count).sqrt();
        Some(Self {
            weights,
            evaluations: seen.len(),
            seen,
            factor,
            error,
        })
    }

    /// Expected difference of the figure from one architecture to another.
    pub(super) fn difference(&self, from: &Architecture, to: &Architecture) -> f64 {
        let changes = self.weights.iter().zip(from.choices()).zip(to.choices());
        let weight = |position: &[f64], choice: u16| position.get(usize::from(choice)).copied().unwrap_or(0.0);
        changes
            .map(|((position, from), to)| weight(position, *to) - weight(position, *from))
            .sum()
    }

    /// Standard error of the difference.
    pub(super) fn standard_error(&self, from: &Architecture, to: &Architecture) -> f64 {
        let changed = from.choices().iter().zip(to.choices()).filter(|(a, b)| a != b).count();
        let closer = self
            .seen
            .iter()
            .map(|a| agreement(a, to) - agreement(a, from))
            .collect();
        let explained = self.factor.quadratic_form(closer);
        // Each changed position takes one choice away and brings one.
        let spread = (2.0 * changed as f64 - explained) / RIDGE;
        self.error * spread.max(0.0).sqrt()
    }
}

/// At how many positions the same is chosen.
fn agreement(a: &Architecture, b: &Architecture) -> f64 {
    a.choices().iter().zip(b.choices()).filter(|(a, b)| a == b).count() as f64
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Random numbers below `below`, the same ones each time.
    fn draws(below: u64) -> impl FnMut() -> u16 {
        let mut state = 7_u64;
        move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            u16::try_from((state >> 33) % below).unwrap()
        }
    }

    fn draw(positions: usize, draw: &mut impl FnMut() -> u16) -> Architecture {
        Architecture::new((0..positions).map(|_| draw()).collect::<Vec<_>>())
    }

    fn nas_bench_macro() -> Space {
        Space::parse(include_str!("../../../search-spaces/spaces/nas-bench-macro.toml")).unwrap()
    }

    #[test]
    fn what_each_choice_adds_is_found_again() {
        let adds = [0.0, 0.1, 0.4];
        let mut state = draws(3);
        let drawn: Vec<Architecture> = (0..400).map(|_| draw(8, &mut state)).collect();
        let figure = |a: &Architecture| a.choices().iter().map(|choice| adds[usize::from(*choice)]).sum::<f64>();
        let known: Vec<(&Architecture, f64)> = drawn.iter().map(|a| (a, figure(a))).collect();
        let model = Additive::fit(&nas_bench_macro(), &known).unwrap();
        let from = Architecture::new(vec![0; 8]);
        let to = from.with(3, 2);
        let (value, error) = (model.difference(&from, &to), model.standard_error(&from, &to));
        assert!((value - 0.4).abs() < 0.02 && error < 0.02, "{value} ± {error}");
        assert!(model.error < 0.02, "{}", model.error);
        assert!(
            Additive::fit(&nas_bench_macro(), &known[..2]).is_none(),
            "two are too few"
        );
    }

    /// The same regression with one unknown a choice, from its normal equations, which is how textbooks have it.
    /// The right side of normal equations, from rows and targets.
    type RightSide<'a> = &'a dyn Fn(&[Vec<f64>], &[f64]) -> Vec<f64>;

    #[test]
    fn the_dual_solution_is_that_of_the_normal_equations() {
        let mut state = draws(3);
        let drawn: Vec<Architecture> = (0..12).map(|_| draw(8, &mut state)).collect();
        let figures: Vec<f64> = (0..12).map(|i| f64::from(i * i % 7)).collect();
        let known: Vec<(&Architecture, f64)> = drawn.iter().zip(figures.iter().copied()).collect();
        let model = Additive::fit(&nas_bench_macro(), &known).unwrap();
        let row = |a: &Architecture| -> Vec<f64> {
            let mut row = vec![0.0; 24];
            for (position, choice) in a.choices().iter().enumerate() {
                row[3 * position + usize::from(*choice)] = 1.0;
            }
            row
        };
        let mean = figures.iter().sum::<f64>() / 12.0;
        let solve = |skip: Option<usize>, right: RightSide<'_>| {
            let kept: Vec<usize> = (0..12).filter(|i| Some(*i) != skip).collect();
            let rows: Vec<Vec<f64>> = kept.iter().map(|&i| row(&drawn[i])).collect();
            let targets: Vec<f64> = kept.iter().map(|&i| figures[i] - mean).collect();
            let gram = (0..24)
                .map(|i| (0..24).map(|j| rows.iter().map(|r| r[i] * r[j]).sum()).collect())
                .collect();
            Cholesky::of(gram, RIDGE).solve(right(&rows, &targets))
        };
        let moments = |rows: &[Vec<f64>], targets: &[f64]| -> Vec<f64> {
            (0..24)
                .map(|i| rows.iter().zip(targets).map(|(r, t)| r[i] * t).sum())
                .collect()
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        let (from, to) = (&drawn[0], Architecture::new(vec![2, 1, 0, 2, 1, 0, 2, 1]));
        let change: Vec<f64> = row(&to).iter().zip(row(from)).map(|(b, a)| b - a).collect();
        let value = dot(&solve(None, &moments), &change);
        assert!((model.difference(from, &to) - value).abs() < 1e-9);
        let left_out: f64 = (0..12)
            .map(|i| (figures[i] - mean - dot(&solve(Some(i), &moments), &row(&drawn[i]))).powi(2))
            .sum();
        assert!((model.error - (left_out / 12.0).sqrt()).abs() < 1e-9);
        let spread = dot(&solve(None, &|_, _| change.clone()), &change);
        assert!((model.standard_error(from, &to) - model.error * spread.sqrt()).abs() < 1e-9);
    }

    #[test]
    fn a_space_of_thousands_of_choices_is_learned_in_a_moment() {
        let choices: String = (0..128)
            .map(|i| format!("{{ name = \"c{i}\", code = \"c{i}\" }}, "))
            .collect();
        let positions: String = (0..128).map(|i| format!("\"p{i}\", ")).collect();
        let toml = format!(
            "name = \"wide\"\nkind = \"categorical\"\npositions = [{positions}]\nchoices = [{choices}]\n\
             objectives = [{{ metric = \"quality\", direction = \"maximise\", range = [0, 1] }}, \
             {{ metric = \"size\", direction = \"minimise\", range = [0, 1] }}]\n\
             search = {{ strategy = \"random\", max_evaluations = 10 }}\n"
        );
        let space = Space::parse(&toml).unwrap();
        let mut state = draws(128);
        let drawn: Vec<Architecture> = (0..100).map(|_| draw(128, &mut state)).collect();
        let known: Vec<(&Architecture, f64)> = drawn.iter().map(|a| (a, f64::from(a.choices()[0]))).collect();
        let started = Instant::now();
        let model = Additive::fit(&space, &known).unwrap();
        assert!(model.error.is_finite() && started.elapsed() < Duration::from_secs(5));
    }
}

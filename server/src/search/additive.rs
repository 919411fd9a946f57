//! A metric as a sum of what each choice adds: ridge regression on one-hot choices, for expectations only.

use search_spaces::{Architecture, Space};

/// Weight of the penalty: a choice seen once is believed by half.
const RIDGE: f64 = 1.0;

/// What each choice adds, learned from evaluated architectures.
pub(super) struct Additive {
    offsets: Vec<usize>,
    weights: Vec<f64>,
    /// Inverse of `XᵀX + λI`.
    inverse: Vec<Vec<f64>>,
    /// Root mean square of the leave-one-out errors.
    pub error: f64,
    /// Evaluations it rests on.
    pub evaluations: usize,
}

/// A figure with its standard error.
pub(super) struct Gain {
    pub value: f64,
    pub standard_error: f64,
}

impl Additive {
    /// Learns from architectures and their figures; none from fewer than three.
    pub(super) fn fit(space: &Space, known: &[(&Architecture, f64)]) -> Option<Self> {
        if known.len() < 3 {
            return None;
        }
        let mut offsets = vec![0];
        offsets.extend(space.positions.iter().scan(0, |sum, position| {
            *sum += position.choices.len();
            Some(*sum)
        }));
        let size = offsets.last().copied().unwrap_or(0);
        let rows: Vec<Vec<usize>> = known
            .iter()
            .map(|(architecture, _)| features(&offsets, architecture))
            .collect();
        let mean = known.iter().map(|(_, figure)| figure).sum::<f64>() / known.len() as f64;
        let mut gram = vec![vec![0.0; size]; size];
        let mut moments = vec![0.0; size];
        for (row, (_, figure)) in rows.iter().zip(known) {
            for &i in row {
                moments[i] += figure - mean;
                for &j in row {
                    gram[i][j] += 1.0;
                }
            }
        }
        for (i, row) in gram.iter_mut().enumerate() {
            row[i] += RIDGE;
        }
        let inverse = inverse(gram)?;
        let weights: Vec<f64> = inverse
            .iter()
            .map(|row| row.iter().zip(&moments).map(|(a, b)| a * b).sum())
            .collect();
        let squares = rows.iter().zip(known).map(|(row, (_, figure))| {
            let fitted = mean + row.iter().map(|&i| weights[i]).sum::<f64>();
            let leverage: f64 = row
                .iter()
                .flat_map(|&i| row.iter().map(move |&j| (i, j)))
                .map(|(i, j)| inverse[i][j])
                .sum();
            ((figure - fitted) / (1.0 - leverage).max(1e-6)).powi(2)
        });
        let error = (squares.sum::<f64>() / known.len() as f64).sqrt();
        Some(Self {
            offsets,
            weights,
            inverse,
            error,
            evaluations: known.len(),
        })
    }

    /// Expected difference of the figure from one architecture to another.
    pub(super) fn difference(&self, from: &Architecture, to: &Architecture) -> Gain {
        let mut change = vec![0.0; self.weights.len()];
        for i in features(&self.offsets, from) {
            change[i] -= 1.0;
        }
        for i in features(&self.offsets, to) {
            change[i] += 1.0;
        }
        let value = change.iter().zip(&self.weights).map(|(c, w)| c * w).sum();
        let spread: f64 = change
            .iter()
            .zip(&self.inverse)
            .map(|(c, row)| c * row.iter().zip(&change).map(|(a, b)| a * b).sum::<f64>())
            .sum();
        Gain {
            value,
            standard_error: self.error * spread.max(0.0).sqrt(),
        }
    }
}

/// Which one-hot features an architecture has.
fn features(offsets: &[usize], architecture: &Architecture) -> Vec<usize> {
    offsets
        .iter()
        .zip(architecture.choices())
        .map(|(offset, choice)| offset + usize::from(*choice))
        .collect()
}

/// Inverse of a symmetric positive definite matrix by Gauss and Jordan; none where it is singular.
fn inverse(mut matrix: Vec<Vec<f64>>) -> Option<Vec<Vec<f64>>> {
    let size = matrix.len();
    for (i, row) in matrix.iter_mut().enumerate() {
        row.extend((0..size).map(|j| if i == j { 1.0 } else { 0.0 }));
    }
    for column in 0..size {
        let pivot = matrix[column][column];
        if pivot.abs() < 1e-12 {
            return None;
        }
        matrix[column].iter_mut().for_each(|x| *x /= pivot);
        let pivot_row = matrix[column].clone();
        for (i, row) in matrix.iter_mut().enumerate() {
            let factor = row[column];
            if i != column && factor != 0.0 {
                row.iter_mut().zip(&pivot_row).for_each(|(x, p)| *x -= factor * p);
            }
        }
    }
    Some(matrix.into_iter().map(|row| row[size..].to_vec()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inverse_times_the_matrix_is_one() {
        let matrix = vec![vec![4.0, 1.0, 0.5], vec![1.0, 3.0, 0.2], vec![0.5, 0.2, 2.0]];
        let inverse = inverse(matrix.clone()).unwrap();
        for (i, row) in matrix.iter().enumerate() {
            let product = |j: usize| row.iter().zip(&inverse).map(|(x, other)| x * other[j]).sum::<f64>();
            let unit = |j: usize| if i == j { 1.0 } else { 0.0 };
            assert!((0..3).all(|j| (product(j) - unit(j)).abs() < 1e-12));
        }
    }

    #[test]
    fn what_each_choice_adds_is_found_again() {
        let space = Space::parse(include_str!("../../../search-spaces/spaces/nas-bench-macro.toml")).unwrap();
        let adds = [0.0, 0.1, 0.4];
        let mut state = 7_u64;
        let mut draw = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            u16::try_from((state >> 33) % 3).unwrap()
        };
        let drawn: Vec<Architecture> = (0..400)
            .map(|_| Architecture::new((0..8).map(|_| draw()).collect::<Vec<_>>()))
            .collect();
        let figure = |a: &Architecture| a.choices().iter().map(|choice| adds[usize::from(*choice)]).sum::<f64>();
        let known: Vec<(&Architecture, f64)> = drawn.iter().map(|a| (a, figure(a))).collect();
        let model = Additive::fit(&space, &known).unwrap();
        let from = Architecture::new(vec![0; 8]);
        let gain = model.difference(&from, &from.with(3, 2));
        assert!(
            (gain.value - 0.4).abs() < 0.02 && gain.standard_error < 0.02,
            "{} ± {}",
            gain.value,
            gain.standard_error
        );
        assert!(model.error < 0.02, "{}", model.error);
        assert!(Additive::fit(&space, &known[..2]).is_none(), "two are too few");
    }
}

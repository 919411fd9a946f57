//! Symmetric positive definite equations, as ridge and Gaussian-process regressions pose them.

/// The factor L of K + λI = L·Lᵀ, with L lower triangular.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cholesky {
    lower: Vec<Vec<f64>>,
}

impl Cholesky {
    /// Factors `k + ridge · I`.
    ///
    /// # Shapes
    /// - `k`: n rows of n numbers, symmetric and positive semidefinite; `ridge` > 0 keeps the sum positive definite
    #[must_use]
    pub fn of(mut k: Vec<Vec<f64>>, ridge: f64) -> Self {
        for i in 0..k.len() {
            k[i][i] += ridge;
            for j in 0..=i {
                let dot: f64 = (0..j).map(|m| k[i][m] * k[j][m]).sum();
                let rest = k[i][j] - dot;
                k[i][j] = if i == j {
                    rest.max(f64::EPSILON).sqrt()
                } else {
                    rest / k[j][j]
                };
            }
        }
        Self { lower: k }
    }

    /// The solution x of (K + λI) x = y; `y` has n numbers.
    #[must_use]
    pub fn solve(&self, y: Vec<f64>) -> Vec<f64> {
        let mut y = self.forward(y);
        for i in (0..y.len()).rev() {
            let dot: f64 = (i + 1..y.len()).map(|m| self.lower[m][i] * y[m]).sum();
            y[i] = (y[i] - dot) / self.lower[i][i];
        }
        y
    }

    /// yᵀ (K + λI)⁻¹ y; `y` has n numbers.
    #[must_use]
    pub fn quadratic_form(&self, y: Vec<f64>) -> f64 {
        self.forward(y).iter().map(|x| x * x).sum()
    }

    /// The solution x of L x = y.
    fn forward(&self, mut y: Vec<f64>) -> Vec<f64> {
        for i in 0..y.len() {
            let dot: f64 = (0..i).map(|m| self.lower[i][m] * y[m]).sum();
            y[i] = (y[i] - dot) / self.lower[i][i];
        }
        y
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_solution_satisfies_its_equations() {
        const RIDGE: f64 = 0.1;
        let k = vec![vec![1.0, 0.5, 0.2], vec![0.5, 1.0, 0.3], vec![0.2, 0.3, 1.0]];
        let y = vec![1.0, -2.0, 0.5];
        let cholesky = Cholesky::of(k.clone(), RIDGE);
        let x = cholesky.solve(y.clone());
        for ((row, y), own) in k.iter().zip(&y).zip(&x) {
            let left: f64 = row.iter().zip(&x).map(|(k, x)| k * x).sum::<f64>() + RIDGE * own;
            assert!((left - y).abs() < 1e-12);
        }
        let form: f64 = x.iter().zip(&y).map(|(x, y)| x * y).sum();
        assert!((cholesky.quadratic_form(y) - form).abs() < 1e-12);
    }
}

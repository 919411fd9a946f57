//! The moving average of the trained weights.

use tch::{Kind, Tensor};

use crate::checkpoint::{Checkpoint, CheckpointError};

/// `a ← d a + (1 − d) w` after every step, in float32; it starts as the weights themselves.
#[derive(Debug)]
pub(super) struct Average {
    decay: f64,
    weights: Vec<(String, Tensor)>,
}

impl Average {
    pub(super) fn new<'w>(decay: f64, weights: impl Iterator<Item = (&'w str, &'w Tensor)>) -> Self {
        let copies = weights.map(|(name, weight)| (name.to_owned(), weight.detach().to_kind(Kind::Float).copy()));
        Self {
            decay,
            weights: copies.collect(),
        }
    }

    /// Takes in the weights after a step, in the order of [`Self::new`].
    pub(super) fn follow<'w>(&mut self, weights: impl Iterator<Item = (&'w str, &'w Tensor)>) {
        tch::no_grad(|| {
            for ((_, average), (_, weight)) in self.weights.iter_mut().zip(weights) {
                let _ = average.g_mul_scalar_(self.decay).g_add_(&(weight * (1.0 - self.decay)));
            }
        });
    }

    pub(super) fn weights(&self) -> &[(String, Tensor)] {
        &self.weights
    }

    pub(super) fn check(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        self.weights
            .iter()
            .try_for_each(|(name, average)| checkpoint.check(&in_checkpoint(name), average))
    }

    pub(super) fn restore(&mut self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        self.weights
            .iter_mut()
            .try_for_each(|(name, average)| checkpoint.copy_into(&in_checkpoint(name), average))
    }

    /// What belongs into a checkpoint.
    pub(super) fn state(&self) -> impl Iterator<Item = (String, Tensor)> {
        let named = |(name, average): &(String, Tensor)| (in_checkpoint(name), average.shallow_clone());
        self.weights.iter().map(named)
    }
}

fn in_checkpoint(name: &str) -> String {
    format!("average.{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_is_the_sum_of_decayed_weights() {
        let at = |value: f32| Tensor::from_slice(&[value]);
        let mut average = Average::new(0.9, [("w", &at(1.0))].into_iter());
        for value in [2.0, 3.0] {
            average.follow([("w", &at(value))].into_iter());
        }
        // 0.81 · 1 + 0.09 · 2 + 0.1 · 3
        let found = average.weights()[0].1.double_value(&[0]);
        assert!((found - 1.29).abs() < 1e-6, "{found}");
    }
}

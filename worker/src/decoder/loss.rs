//! What a decoder learns from.
//!
//! The paper names a distillation loss beside its data and gives neither form nor weights. Here the loss is
//!
//! `w_r R(y, x) + w_d R(y, ŷ) + w_f Σ ‖f − f̂‖² / ‖f̂‖² / levels + w_p LPIPS(y, x)`
//!
//! with `x` what was encoded, `ŷ` and `f̂` output and features of the original decoder for the same latents, and
//! `R(a, b) = |a − b| + 4 (a − b)²` in the mean: the absolute error keeps edges sharp, the squared one minds what is small
//! but quite wrong, and is what PSNR measures.

use tch::{Kind, Tensor};

use super::Part;
use crate::models::vae::Vae;
use crate::scoring::images::Lpips;

/// Weight of the squared error of reconstructions beside the absolute one.
const SQUARED_WEIGHT: f64 = 4.0;

/// `|a − b| + 4 (a − b)²`, the mean over all elements.
pub fn reconstruction(found: &Tensor, wanted: &Tensor) -> Tensor {
    let error = found - wanted;
    error.abs().mean(Kind::Float) + error.square().mean(Kind::Float) * SQUARED_WEIGHT
}

/// Weights of the terms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossWeights {
    /// Of the error against what was encoded.
    pub reconstruction: f64,
    /// Of the error against the original decoder's output.
    pub distillation: f64,
    /// Of the error against its features.
    pub feature: f64,
    /// Of the perceptual distance, of pictures alone.
    pub perceptual: f64,
}

impl From<&search_spaces::Decoder> for LossWeights {
    fn from(settings: &search_spaces::Decoder) -> Self {
        Self {
            reconstruction: settings.reconstruction_weight,
            distillation: settings.distillation_weight,
            feature: settings.feature_weight,
            perceptual: settings.perceptual_weight,
        }
    }
}

/// The terms of a step before they are weighed; zero where they were not asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Terms {
    /// Against what was encoded.
    pub reconstruction: f64,
    /// Against the original's output.
    pub distillation: f64,
    /// Against the original's features.
    pub feature: f64,
    /// Perceptual distance.
    pub perceptual: f64,
}

/// Latents with what they were made of.
#[derive(Debug)]
pub struct Example {
    /// What is decoded: `[b, c, t, h, w]` over time, `[n, c, h, w]` of single frames.
    pub latents: Tensor,
    /// What was encoded: the latents of all frames, or pixels.
    pub target: Tensor,
}

/// A decoder and the one that it learns from.
#[derive(Debug, Clone, Copy)]
pub struct Lesson<'a> {
    /// Which decoder of both.
    pub part: Part,
    /// The original; it is not changed.
    pub original: &'a Vae,
    /// The one that learns.
    pub compressed: &'a Vae,
    /// Of the terms.
    pub weights: LossWeights,
    /// Standard deviation of what is decoded, by which errors are divided: latents have whatever scale their encoder
    /// found.
    pub spread: f64,
    /// For the perceptual term.
    pub lpips: Option<&'a Lpips>,
}

/// What a decoder makes of latents, with its features level by level.
struct Decoded {
    output: Tensor,
    features: Vec<Tensor>,
}

impl Lesson<'_> {
    /// The loss of a micro-batch, with its terms.
    pub fn loss(&self, example: &Example) -> (Tensor, Terms) {
        let weights = self.weights;
        let found = self.decoded(self.compressed, example);
        let apart = |a: &Tensor, b: &Tensor| reconstruction(&(a / self.spread), &(b / self.spread));
        let mut terms = vec![(weights.reconstruction, apart(&found.output, &example.target))];
        if weights.distillation > 0.0 || weights.feature > 0.0 {
            let taught = tch::no_grad(|| self.decoded(self.original, example));
            terms.push((weights.distillation, apart(&found.output, &taught.output)));
            terms.push((weights.feature, between_features(&found.features, &taught.features)));
        } else {
            terms.extend([(0.0, Tensor::from(0f32)), (0.0, Tensor::from(0f32))]);
        }
        terms.push(
            match self
                .lpips
                .filter(|_| self.part == Part::Spatial && weights.perceptual > 0.0)
            {
                Some(lpips) => {
                    let distance = lpips.distance(&found.output, &example.target);
                    (weights.perceptual, distance.mean(Kind::Float))
                }
                None => (0.0, Tensor::from(0f32)),
            },
        );
        let value = |i: usize| terms[i].1.detach().to_kind(Kind::Double).double_value(&[]);
        let told = Terms {
            reconstruction: value(0),
            distillation: value(1),
            feature: value(2),
            perceptual: value(3),
        };
        let weighed = terms.iter().filter(|(weight, _)| *weight > 0.0);
        let loss = weighed
            .map(|(weight, term)| term * *weight)
            .reduce(|sum, term| sum + term);
        (loss.unwrap_or_else(|| Tensor::from(0f32)), told)
    }

    fn decoded(&self, vae: &Vae, example: &Example) -> Decoded {
        let mut features = Vec::new();
        let mut seen = |level: &Tensor| {
            if self.weights.feature > 0.0 {
                features.push(level.shallow_clone());
            }
        };
        let latents = &example.latents;
        let output = match (self.part, &vae.temporal) {
            (Part::Temporal, Some(temporal)) => temporal.decode_seen(latents, example.target.size()[2], &mut seen),
            _ => vae.spatial.decode_seen(latents, &mut seen),
        };
        Decoded { output, features }
    }
}

/// Squared distance over squared length of the original's, the mean over levels that have its channels.
fn between_features(found: &[Tensor], taught: &[Tensor]) -> Tensor {
    let alike = found
        .iter()
        .zip(taught)
        .filter(|(found, taught)| found.size() == taught.size());
    let apart: Vec<Tensor> = alike
        .map(|(found, taught)| {
            let length = taught.square().mean(Kind::Float);
            (found - taught).square().mean(Kind::Float) / (length + 1e-12)
        })
        .collect();
    if apart.is_empty() {
        return Tensor::from(0f32);
    }
    Tensor::stack(&apart, 0).mean(Kind::Float)
}

#[cfg(test)]
mod tests {
    use tch::{Device, nn};

    use super::*;
    use crate::decoder::tests::{compressed, original};
    use crate::models::seeded::{normal, seed_weights};

    #[test]
    fn the_reconstruction_is_by_hand() {
        let found = Tensor::from_slice(&[1f32, -0.5]);
        let wanted = Tensor::from_slice(&[0.5f32, 0.5]);
        // (0.5 + 1) / 2 + 4 (0.25 + 1) / 2
        assert!((reconstruction(&found, &wanted).double_value(&[]) - 3.25).abs() < 1e-6);
        let features = |scale: f64| {
            vec![
                Tensor::from_slice(&[1f32, 1.0]) * scale,
                Tensor::from_slice(&[2f32]) * scale,
            ]
        };
        // (0.5)² of the length, at either level.
        let apart = between_features(&features(1.5), &features(1.0)).double_value(&[]);
        assert!((apart - 0.25).abs() < 1e-6, "{apart}");
    }

    /// Decoders that are the same have nothing to learn from each other; of others, the loss is the weighed sum of its
    /// terms, and its gradient reaches the one that learns and nothing else.
    #[test]
    fn gradients_reach_the_decoder_that_learns_alone() {
        let (before, original) = original();
        let vs = nn::VarStore::new(Device::Cpu);
        let compressed = Vae::new(&vs.root(), &compressed());
        seed_weights(&vs, 9);
        for (name, variable) in vs.variables() {
            let _ = variable.set_requires_grad(Part::of(&name).is_some());
        }
        let weights = LossWeights {
            reconstruction: 1.0,
            distillation: 0.5,
            feature: 0.25,
            perceptual: 0.0,
        };
        for (part, latents, target) in [
            (Part::Temporal, [1, 4, 2, 3, 2].as_slice(), [1, 4, 6, 3, 2].as_slice()),
            (Part::Spatial, &[2, 4, 3, 2], &[2, 3, 24, 16]),
        ] {
            let example = Example {
                latents: normal(latents, 1, Device::Cpu),
                target: normal(target, 2, Device::Cpu),
            };
            let lesson = Lesson {
                part,
                original: &original,
                compressed: &original,
                weights,
                spread: 1.5,
                lpips: None,
            };
            let (_, terms) = lesson.loss(&example);
            assert_eq!((terms.distillation, terms.feature), (0.0, 0.0));
            let (loss, terms) = Lesson {
                compressed: &compressed,
                ..lesson
            }
            .loss(&example);
            assert!(terms.distillation > 0.0 && terms.feature > 0.0);
            let sum = terms.reconstruction + 0.5 * terms.distillation + 0.25 * terms.feature;
            assert!((loss.double_value(&[]) - sum).abs() < 1e-4 * sum);
            loss.backward();
            for (name, variable) in vs.variables() {
                let learns = Part::of(&name) == Some(part);
                let gradient = variable.grad();
                let moved = gradient.defined() && gradient.abs().max().double_value(&[]) > 0.0;
                assert!(!moved || learns, "{name}");
                assert!(gradient.defined() || !learns, "{name} of {part:?}");
            }
            for mut variable in vs.variables().into_values() {
                variable.zero_grad();
            }
            assert!(before.variables().values().all(|variable| !variable.grad().defined()));
        }
    }
}

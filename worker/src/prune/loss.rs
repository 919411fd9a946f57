//! What a pruned UNet is held to: the task, and the full UNet's output and features (BK-SDM, Kim et al. 2023, eq. 1–4).

use std::cell::Cell;

use rand_chacha::ChaCha8Rng;
use search_spaces::{Distillation, Prediction};
use tch::{Kind, Reduction, Tensor};

use super::copy_map::SharedPosition;
use super::process::Process;
use crate::data::latents::Batch;
use crate::models::UNet;
use crate::models::unet::{Activations, Moment};
use crate::train::{Noised, Objective};

/// How much each term counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossWeights {
    /// Error of the prediction against what is to be predicted.
    pub task: f64,
    /// Error of the prediction against the full UNet's.
    pub output: f64,
    /// Sum of the errors of the features at the shared positions.
    pub feature: f64,
}

impl LossWeights {
    /// The task alone: the full UNet is not asked.
    pub const TASK: Self = Self {
        task: 1.0,
        output: 0.0,
        feature: 0.0,
    };

    fn need_teacher(&self) -> bool {
        self.output > 0.0 || self.feature > 0.0
    }
}

impl From<&Distillation> for LossWeights {
    fn from(settings: &Distillation) -> Self {
        Self {
            task: settings.task_weight,
            output: settings.output_weight,
            feature: settings.feature_weight,
        }
    }
}

/// The full UNet; it keeps no gradients.
#[derive(Debug, Clone, Copy)]
pub struct Teacher<'a> {
    /// The network.
    pub unet: &'a UNet,
    /// What it predicts.
    pub predicts: Prediction,
    /// Where its features are compared.
    pub shared: &'a [SharedPosition],
}

/// The terms of a loss, unweighted; those that count nothing are zero.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Terms {
    /// Mean squared error of the prediction.
    pub task: f64,
    /// Mean squared difference from the full UNet's prediction.
    pub output: f64,
    /// Sum over positions of the mean squared difference of features.
    pub feature: f64,
}

/// The loss of a pruned UNet beside its teacher.
///
/// Features are compared on the channels that the pruned UNet's started as. A learned projection to all channels, the
/// usual answer to unequal widths, would have to be learned first and is thrown away afterwards.
#[derive(Debug)]
pub struct Lesson<'a> {
    process: Process,
    weights: LossWeights,
    teacher: Teacher<'a>,
    last: Cell<Terms>,
}

impl<'a> Lesson<'a> {
    /// On latents noised by `process`.
    #[must_use]
    pub const fn new(process: Process, weights: LossWeights, teacher: Teacher<'a>) -> Self {
        Self {
            process,
            weights,
            teacher,
            last: Cell::new(Terms {
                task: 0.0,
                output: 0.0,
                feature: 0.0,
            }),
        }
    }

    /// The terms of the last micro-batch.
    #[must_use]
    pub const fn last(&self) -> Terms {
        self.last.get()
    }
}

impl Objective for Lesson<'_> {
    fn noised(&self, batch: &Batch, rng: &mut ChaCha8Rng) -> Noised {
        self.process.noised(&batch.latents, rng)
    }

    fn loss(&self, unet: &UNet, noised: &Noised, text: &Tensor, activations: Activations) -> Tensor {
        let Self { weights, teacher, .. } = self;
        let compared = if weights.feature > 0.0 { teacher.shared } else { &[] };
        let ours = Pass { text, activations };
        let (prediction, features) = ours.observed(unet, &noised.xs, &noised.time, compared, |at| at.pruned);
        let error = prediction.mse_loss(&noised.target, Reduction::Mean);
        let mut terms = Terms {
            task: error.double_value(&[]),
            ..Terms::default()
        };
        let mut total = error * weights.task;
        if weights.need_teacher() {
            let (taught, taught_features) = tch::no_grad(|| {
                let question = self.process.question(teacher.predicts, noised);
                let theirs = Pass {
                    activations: Activations::Kept,
                    ..ours
                };
                let asked = theirs.observed(teacher.unet, &question.xs, &question.time, compared, |at| at.full);
                (question.read(asked.0), asked.1)
            });
            let apart = prediction.mse_loss(&taught, Reduction::Mean);
            terms.output = apart.double_value(&[]);
            total += apart * weights.output;
            for ((at, ours), theirs) in compared.iter().zip(features).zip(taught_features) {
                let theirs = match &at.channels {
                    Some(channels) => theirs.index_select(1, &Tensor::from_slice(channels).to_device(theirs.device())),
                    None => theirs,
                };
                let apart = ours
                    .to_kind(Kind::Float)
                    .mse_loss(&theirs.to_kind(Kind::Float), Reduction::Mean);
                terms.feature += apart.double_value(&[]);
                total += apart * weights.feature;
            }
        }
        self.last.set(terms);
        total
    }
}

/// What two UNets are passed alike.
#[derive(Clone, Copy)]
struct Pass<'a> {
    text: &'a Tensor,
    activations: Activations,
}

impl Pass<'_> {
    /// The prediction and the features at the compared positions, in their order.
    fn observed(
        self,
        unet: &UNet,
        xs: &Tensor,
        time: &Tensor,
        compared: &[SharedPosition],
        position: impl Fn(&SharedPosition) -> usize,
    ) -> (Tensor, Vec<Tensor>) {
        let mut features = Vec::with_capacity(compared.len());
        let mut observe = |at: usize, hidden: &Tensor| {
            if compared.iter().any(|shared| position(shared) == at) {
                features.push(hidden.shallow_clone());
            }
        };
        let prediction = unet.observed(xs, Moment::Time(time), self.text, self.activations, &mut observe);
        (prediction, features)
    }
}

#[cfg(test)]
mod tests {
    use search_spaces::{Dtype, UnetConfig};
    use tch::{Device, nn};

    use super::*;
    use crate::models::seeded::{generator, normal, seed_weights};
    use crate::prune::copy_map::{CopyMap, shared_positions};

    fn config(channels: Vec<u64>) -> UnetConfig {
        UnetConfig {
            latent_channels: 4,
            frames: 1,
            height: 4,
            width: 4,
            channels,
            layers_per_block: 1,
            attention: vec![false, true],
            middle: true,
            heads: 2,
            text_tokens: 3,
            text_width: 6,
            norm_groups: 4,
            ff_multiplier: 2,
            qk_norm: false,
            rope: false,
            dtype: Dtype::F32,
            parts: 1,
        }
    }

    fn built(config: &UnetConfig) -> (nn::VarStore, UNet) {
        let vs = nn::VarStore::new(Device::Cpu);
        let unet = UNet::new(&vs.root(), config, &[]);
        seed_weights(&vs, 3);
        (vs, unet)
    }

    const EACH: LossWeights = LossWeights {
        task: 1.0,
        output: 1.0,
        feature: 1.0,
    };

    fn flow() -> Process {
        Process::of(Prediction::Velocity, &crate::prune::tests::settings())
    }

    /// The total and its terms.
    fn found(
        pruned: &UNet,
        full: &UNet,
        shared: &[SharedPosition],
        weights: LossWeights,
        (noised, text): &(Noised, Tensor),
    ) -> (Tensor, Terms) {
        let teacher = Teacher {
            unet: full,
            predicts: Prediction::Velocity,
            shared,
        };
        let lesson = Lesson::new(flow(), weights, teacher);
        let total = lesson.loss(pruned, noised, text, Activations::Kept);
        (total, lesson.last())
    }

    fn sample() -> (Noised, Tensor) {
        let clean = normal(&[2, 4, 1, 4, 4], 1, Device::Cpu);
        (
            flow().noised(&clean, &mut generator(2, 0)),
            normal(&[2, 3, 6], 3, Device::Cpu),
        )
    }

    #[test]
    fn a_full_copy_differs_from_its_teacher_in_nothing_and_the_total_is_the_weighted_sum() {
        let full_config = config(vec![8, 16]);
        let (full_vs, full) = built(&full_config);
        let narrow_config = config(vec![8, 8]);
        let sample = sample();
        for (pruned_config, copies) in [(&full_config, true), (&narrow_config, false)] {
            let (vs, pruned) = built(pruned_config);
            let map = CopyMap::new(&full_config, pruned_config).unwrap();
            map.copy(&full_vs.variables(), &vs).unwrap();
            let shared = shared_positions(&full_config, pruned_config).unwrap();
            assert_eq!(shared.len(), 5);
            let weights = LossWeights {
                task: 2.0,
                output: 3.0,
                feature: 0.5,
            };
            let (total, found) = found(&pruned, &full, &shared, weights, &sample);
            assert_eq!(found.output == 0.0 && found.feature == 0.0, copies);
            let sum = 2.0 * found.task + 3.0 * found.output + 0.5 * found.feature;
            assert!((total.double_value(&[]) - sum).abs() < 1e-5 * sum);
        }
    }

    #[test]
    fn features_are_the_sum_over_positions_on_the_channels_that_are_left() {
        let (full_config, narrow_config) = (config(vec![8, 16]), config(vec![8, 8]));
        let ((_, full), (_, narrow)) = (built(&full_config), built(&narrow_config));
        let sample = sample();
        let (noised, text) = &sample;
        let all = |unet: &UNet| {
            let mut seen = Vec::new();
            let mut observe = |_: usize, x: &Tensor| seen.push(x.shallow_clone());
            let _ = unet.observed(
                &noised.xs,
                Moment::Time(&noised.time),
                text,
                Activations::Kept,
                &mut observe,
            );
            seen
        };
        // Level 1 and the middle have 16 channels in 4 groups, of which two each are left.
        let kept = Tensor::from_slice(&[0i64, 1, 4, 5, 8, 9, 12, 13]);
        let expected: f64 = (all(&full).iter().zip(all(&narrow)).enumerate())
            .map(|(i, (theirs, ours))| {
                let theirs = match i {
                    1..=3 => theirs.index_select(1, &kept),
                    _ => theirs.shallow_clone(),
                };
                (ours - theirs).square().mean(Kind::Double).double_value(&[])
            })
            .sum();
        let shared = shared_positions(&full_config, &narrow_config).unwrap();
        let found = found(&narrow, &full, &shared, EACH, &sample).1.feature;
        assert!((found - expected).abs() < 1e-5 * expected, "{found} {expected}");
    }

    #[test]
    fn the_teacher_keeps_no_gradients_and_is_not_asked_where_it_counts_nothing() {
        let full_config = config(vec![8, 16]);
        let ((full_vs, full), (vs, pruned)) = (built(&full_config), built(&full_config));
        let shared = shared_positions(&full_config, &full_config).unwrap();
        found(&pruned, &full, &shared, EACH, &sample()).0.backward();
        assert!(full_vs.variables().values().all(|w| !w.grad().defined()));
        assert!(vs.variables().values().all(|w| w.grad().defined()));
        let (total, terms) = found(&pruned, &full, &shared, LossWeights::TASK, &sample());
        assert_eq!((terms.output, terms.feature), (0.0, 0.0));
        assert!((total.double_value(&[]) - terms.task).abs() < 1e-7);
    }
}

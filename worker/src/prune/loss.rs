//! What a pruned UNet is held to: the task, and the full UNet's output and features (BK-SDM, Kim et al. 2023, eq. 1–4).

use serde::{Deserialize, Serialize};
use tch::{Reduction, Tensor};

use super::copy_map::SharedPosition;
use super::process::{Noised, Process};
use crate::models::UNet;

/// How much each term counts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossWeights {
    /// Error of the prediction against what is to be predicted.
    pub task: f64,
    /// Error of the prediction against the full UNet's.
    pub output: f64,
    /// Sum of the errors of the features at the shared positions.
    pub feature: f64,
}

impl Default for LossWeights {
    /// One each, as BK-SDM has it.
    fn default() -> Self {
        Self {
            task: 1.0,
            output: 1.0,
            feature: 1.0,
        }
    }
}

impl LossWeights {
    /// Whether the full UNet has to be asked.
    #[must_use]
    pub fn need_teacher(&self) -> bool {
        self.output > 0.0 || self.feature > 0.0
    }
}

/// The full UNet; it keeps no gradients.
#[derive(Debug, Clone, Copy)]
pub struct Teacher<'a> {
    /// The network.
    pub unet: &'a UNet,
    /// How it was trained.
    pub process: Process,
    /// Where its features are compared.
    pub shared: &'a [SharedPosition],
}

/// The loss of a step and its terms; those that count nothing are zero.
#[derive(Debug)]
pub struct Loss {
    /// What is minimised.
    pub total: Tensor,
    /// Mean squared error of the prediction.
    pub task: f64,
    /// Mean squared difference from the full UNet's prediction.
    pub output: f64,
    /// Sum over positions of the mean squared difference of features.
    pub feature: f64,
}

/// The loss of a pruned UNet at noised latents.
///
/// Features are compared on the channels that the pruned UNet's started as. A learned projection to all channels, the
/// usual answer to unequal widths, would have to be learned first and is thrown away afterwards.
///
/// # Shapes
/// - `text`: `[b, tokens, width]`
pub fn loss(
    pruned: &UNet,
    process: Process,
    weights: LossWeights,
    teacher: Teacher<'_>,
    noised: &Noised,
    text: &Tensor,
) -> Loss {
    let compared = if weights.feature > 0.0 { teacher.shared } else { &[] };
    let (prediction, features) = observed(pruned, &noised.xs, &noised.time, text, compared, |at| at.pruned);
    let task = prediction.mse_loss(&noised.target, Reduction::Mean);
    let mut total = &task * weights.task;
    let (mut output, mut feature) = (0.0, 0.0);
    if weights.need_teacher() {
        let (taught, taught_features) = tch::no_grad(|| {
            let question = teacher.process.question(&process, noised);
            let (answer, features) = observed(teacher.unet, &question.xs, &question.time, text, compared, |at| at.full);
            (question.read(answer), features)
        });
        let apart = prediction.mse_loss(&taught, Reduction::Mean);
        output = apart.double_value(&[]);
        total += apart * weights.output;
        for ((at, ours), theirs) in compared.iter().zip(features).zip(taught_features) {
            let theirs = match &at.channels {
                Some(channels) => theirs.index_select(1, &Tensor::from_slice(channels).to_device(theirs.device())),
                None => theirs,
            };
            let apart = ours.mse_loss(&theirs, Reduction::Mean);
            feature += apart.double_value(&[]);
            total += apart * weights.feature;
        }
    }
    Loss {
        total,
        task: task.double_value(&[]),
        output,
        feature,
    }
}

/// The prediction and the features at the compared positions, in their order.
fn observed(
    unet: &UNet,
    xs: &Tensor,
    time: &Tensor,
    text: &Tensor,
    compared: &[SharedPosition],
    position: impl Fn(&SharedPosition) -> usize,
) -> (Tensor, Vec<Tensor>) {
    let mut features = Vec::with_capacity(compared.len());
    let prediction = unet.forward_observed(xs, time, text, &mut |at, hidden| {
        if compared.iter().any(|shared| position(shared) == at) {
            features.push(hidden.shallow_clone());
        }
    });
    (prediction, features)
}

#[cfg(test)]
mod tests {
    use search_spaces::{Dtype, UnetConfig};
    use tch::{Device, Kind, nn};

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

    const FLOW: Process = Process::Flow {
        noise_mean: 0.0,
        noise_std: 1.0,
    };

    fn sample() -> (Noised, Tensor) {
        let clean = normal(&[2, 4, 1, 4, 4], 1, Device::Cpu);
        (
            FLOW.noised(&mut generator(2, 0), &clean),
            normal(&[2, 3, 6], 3, Device::Cpu),
        )
    }

    #[test]
    fn a_full_copy_differs_from_its_teacher_in_nothing_and_the_total_is_the_weighted_sum() {
        let full_config = config(vec![8, 16]);
        let (full_vs, full) = built(&full_config);
        let narrow_config = config(vec![8, 8]);
        let (noised, text) = sample();
        for (pruned_config, copies) in [(&full_config, true), (&narrow_config, false)] {
            let (vs, pruned) = built(pruned_config);
            let map = CopyMap::new(&full_config, pruned_config).unwrap();
            map.copy(&full_vs.variables(), &vs).unwrap();
            let shared = shared_positions(&full_config, pruned_config).unwrap();
            assert_eq!(shared.len(), 5);
            let teacher = Teacher {
                unet: &full,
                process: FLOW,
                shared: &shared,
            };
            let weights = LossWeights {
                task: 2.0,
                output: 3.0,
                feature: 0.5,
            };
            let found = loss(&pruned, FLOW, weights, teacher, &noised, &text);
            assert_eq!(found.output == 0.0 && found.feature == 0.0, copies);
            let sum = 2.0 * found.task + 3.0 * found.output + 0.5 * found.feature;
            assert!((found.total.double_value(&[]) - sum).abs() < 1e-5 * sum);
        }
    }

    #[test]
    fn features_are_the_sum_over_positions_on_the_channels_that_are_left() {
        let (full_config, narrow_config) = (config(vec![8, 16]), config(vec![8, 8]));
        let ((_, full), (_, narrow)) = (built(&full_config), built(&narrow_config));
        let (noised, text) = sample();
        let all = |unet: &UNet| {
            let mut seen = Vec::new();
            let _ = unet.forward_observed(&noised.xs, &noised.time, &text, &mut |_, x| {
                seen.push(x.shallow_clone())
            });
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
        let teacher = Teacher {
            unet: &full,
            process: FLOW,
            shared: &shared,
        };
        let found = loss(&narrow, FLOW, LossWeights::default(), teacher, &noised, &text).feature;
        assert!((found - expected).abs() < 1e-5 * expected, "{found} {expected}");
    }

    #[test]
    fn the_teacher_keeps_no_gradients_and_is_not_asked_where_it_counts_nothing() {
        let full_config = config(vec![8, 16]);
        let ((full_vs, full), (vs, pruned)) = (built(&full_config), built(&full_config));
        let shared = shared_positions(&full_config, &full_config).unwrap();
        let (noised, text) = sample();
        let teacher = Teacher {
            unet: &full,
            process: FLOW,
            shared: &shared,
        };
        loss(&pruned, FLOW, LossWeights::default(), teacher, &noised, &text)
            .total
            .backward();
        assert!(full_vs.variables().values().all(|w| !w.grad().defined()));
        assert!(vs.variables().values().all(|w| w.grad().defined()));
        let alone = LossWeights {
            task: 1.0,
            output: 0.0,
            feature: 0.0,
        };
        let found = loss(&pruned, FLOW, alone, teacher, &noised, &text);
        assert_eq!((found.output, found.feature), (0.0, 0.0));
        assert!((found.total.double_value(&[]) - found.task).abs() < 1e-7);
    }
}

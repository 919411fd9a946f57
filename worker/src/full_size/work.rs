//! Floating-point operations of a step, and what the device can do at most.

use std::time::Instant;

use search_spaces::{Step, TemporalLayer, TrainingSettings, UnetConfig, work};
use tch::{Device, Kind, Tensor};

/// Floating-point operations of one step; a multiply-accumulate is two.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Work {
    /// Forward pass, gradients of activations and of trained weights.
    pub model: f64,
    /// The same with the forward passes that a backward pass takes again.
    pub with_recomputation: f64,
}

/// The work of one training step with the backbone frozen.
///
/// A block's input needs a gradient where something trained stands before it; its weights need one where they are
/// temporal. Each costs what the forward pass does.
pub(super) fn training(config: &UnetConfig, layers: &[Option<TemporalLayer>], settings: &TrainingSettings) -> Work {
    let (mut model, mut again, mut behind) = (0.0, 0.0, false);
    for step in config.schedule(layers) {
        let forward = 2.0 * macs(&step, config);
        let trained = step.position.is_some();
        model += forward * (1.0 + f64::from(u8::from(behind)) + f64::from(u8::from(trained)));
        behind |= trained;
        if settings.gradient_checkpointing && behind && is_segment(&step) {
            again += forward;
        }
    }
    let clips = f64::from(settings.batch);
    Work {
        model: clips * model,
        with_recomputation: clips * (model + again),
    }
}

fn macs(step: &Step, config: &UnetConfig) -> f64 {
    work(&step.block, config.dtype).map_or(0.0, |work| work.macs as f64) * f64::from(step.repeat)
}

/// Whether the UNet computes the step again when asked to.
fn is_segment(step: &Step) -> bool {
    step.position.is_some() || ["unet.down", "unet.mid", "unet.up"].contains(&step.block.operator.as_str())
}

/// What square matrix products reach.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ceiling {
    /// Floating-point operations a second of the fastest product.
    pub flops: f64,
    /// Rows and columns.
    pub size: i64,
    /// Products that were timed.
    pub repeats: u32,
}

/// Times square products in the number format of the model.
pub(super) fn ceiling(kind: Kind, device: Device) -> Ceiling {
    let (size, repeats) = if device.is_cuda() { (8192, 30) } else { (2048, 10) };
    let factor = Tensor::randn([size, size], (Kind::Float, device)).to_kind(kind);
    let seconds = || {
        let started = Instant::now();
        let product = factor.matmul(&factor);
        // Reading a number waits for an accelerator to finish.
        let _ = product.get(0).get(0).double_value(&[]);
        started.elapsed().as_secs_f64()
    };
    let best = (0..=repeats).map(|_| seconds()).fold(f64::INFINITY, f64::min);
    Ceiling {
        flops: 2.0 * (size as f64).powi(3) / best,
        size,
        repeats,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipes::recipe;
    use search_spaces::{Operator, Space};

    /// With a layer at the last position alone, gradients reach that layer's weights and what comes after it.
    #[test]
    fn a_training_step_counts_what_gradients_reach() {
        let space = Space::parse(include_str!("../../../search-spaces/spaces/shapes-tiny.toml")).unwrap();
        let config = space.unet().unwrap();
        let last = config.positions().len();
        let mut layers = vec![None; last];
        layers[last - 1] = Some(TemporalLayer {
            operator: Operator::Conv1d,
            depth: 1,
        });
        let settings = TrainingSettings {
            batch: 3,
            gradient_checkpointing: true,
            ..recipe("candidates").unwrap().training
        };
        let found = training(config, &layers, &settings);
        let steps = config.schedule(&layers);
        let temporal = macs(steps.iter().find(|step| step.position.is_some()).unwrap(), config);
        let head = macs(steps.last().unwrap(), config);
        assert_eq!(steps.last().unwrap().block.operator, "unet.conv_out");
        let forward = config.macs(&layers) as f64;
        assert_eq!(found.model, 3.0 * 2.0 * (forward + temporal + head));
        assert_eq!(found.with_recomputation - found.model, 3.0 * 2.0 * temporal);
    }
}

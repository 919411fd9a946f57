//! Training of a candidate's temporal layers on precomputed latents, the backbone frozen.
//!
//! Every draw is named by (seed, step), so the state of a training is its weights, the optimizer's moments and the
//! number of steps taken: from a checkpoint it goes on to the same bytes (same processor, same threads).

use std::ops::ControlFlow;

use search_spaces::Evaluation;
use tch::{Tensor, nn};

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::data::latents::Batch;
use crate::flow;
use crate::models::UNet;
use crate::models::seeded::{generator, normal_from, stream_of};
use crate::models::unet::{freeze_spatial, is_temporal};
use crate::optimizer::{AdamW, AdamWConfig};

/// A training in progress.
#[derive(Debug)]
pub struct Training<'a> {
    unet: &'a UNet,
    weights: Vec<(String, Tensor)>,
    optimizer: AdamW,
    settings: &'a Evaluation,
    seed: u64,
    step: u64,
}

impl<'a> Training<'a> {
    /// Starts at step 0 with the weights as they are; freezes the spatial weights of `vs`.
    pub fn new(unet: &'a UNet, vs: &nn::VarStore, settings: &'a Evaluation, seed: u64) -> Self {
        freeze_spatial(vs);
        let mut weights: Vec<_> = vs
            .variables()
            .into_iter()
            .filter(|(name, _)| is_temporal(name))
            .collect();
        weights.sort_by(|a, b| a.0.cmp(&b.0));
        let config = AdamWConfig {
            weight_decay: settings.weight_decay,
            ..Default::default()
        };
        let optimizer = AdamW::new(
            weights.iter().map(|(name, w)| (name.clone(), w.shallow_clone())),
            config,
        );
        Self {
            unet,
            weights,
            optimizer,
            settings,
            seed,
            step: 0,
        }
    }

    /// Steps taken.
    #[must_use]
    pub const fn step_number(&self) -> u64 {
        self.step
    }

    /// Whether there is anything to train.
    #[must_use]
    pub fn has_layers(&self) -> bool {
        !self.weights.is_empty()
    }

    /// The trained weights by name.
    pub fn weights(&self) -> &[(String, Tensor)] {
        &self.weights
    }

    /// One step; its loss.
    pub fn step(&mut self, batch: &Batch) -> f64 {
        let Evaluation {
            noise_mean,
            noise_std,
            learning_rate,
            ..
        } = *self.settings;
        let mut rng = generator(self.seed ^ stream_of("flow"), self.step);
        let device = batch.latents.device();
        let time = flow::logit_normal(&mut rng, batch.latents.size()[0], noise_mean, noise_std).to_device(device);
        let noise = normal_from(&mut rng, &batch.latents.size(), device);
        let loss = flow::loss(self.unet, &batch.latents, &noise, &time, &batch.text);
        self.optimizer.backward_step(&loss, learning_rate);
        self.step += 1;
        loss.double_value(&[])
    }

    /// Steps until `steps` have been taken or `after` breaks off; `after` sees the number of steps taken and the loss
    /// of the last.
    pub fn run(
        &mut self,
        steps: u64,
        batches: &dyn Fn(u64) -> Batch,
        after: &mut dyn FnMut(&Self, f64) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        while self.has_layers() && self.step < steps {
            let loss = self.step(&batches(self.step));
            after(self, loss)?;
        }
        ControlFlow::Continue(())
    }

    /// Weights, moments and step, from which [`Self::restore`] goes on.
    #[must_use]
    pub fn checkpoint(&self) -> Checkpoint {
        let weights = self
            .weights
            .iter()
            .map(|(name, w)| (format!("weights.{name}"), w.shallow_clone()));
        let moments = self
            .optimizer
            .state()
            .into_iter()
            .map(|(name, m)| (format!("optimizer.{name}"), m));
        Checkpoint::new(self.step, weights.chain(moments))
    }

    /// Goes on from a checkpoint of the same architecture; from any other it takes nothing.
    ///
    /// # Errors
    /// Where a tensor is missing or has another shape.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        for (name, weight) in &self.weights {
            checkpoint.check(&format!("weights.{name}"), weight)?;
        }
        for (name, moment) in self.optimizer.state() {
            checkpoint.check(&format!("optimizer.{name}"), &moment)?;
        }
        for (name, weight) in &mut self.weights {
            checkpoint.copy_into(&format!("weights.{name}"), weight)?;
        }
        self.optimizer.load_state(&checkpoint.under("optimizer."))?;
        self.step = checkpoint.step;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::seeded::seed_weights;
    use search_spaces::{Dtype, Operator, TemporalLayer, UnetConfig};
    use tch::Device;

    fn config() -> UnetConfig {
        UnetConfig {
            latent_channels: 4,
            frames: 3,
            height: 4,
            width: 4,
            channels: vec![8, 16],
            layers_per_block: 1,
            attention: vec![false, true],
            middle: true,
            heads: 2,
            text_tokens: 4,
            text_width: 8,
            norm_groups: 4,
            ff_multiplier: 2,
            qk_norm: true,
            dtype: Dtype::F32,
            parts: 1,
        }
    }

    fn settings() -> Evaluation {
        Evaluation {
            evaluator: "built-in".into(),
            dataset: "shapes".into(),
            steps: 20,
            batch: 2,
            learning_rate: 2e-3,
            weight_decay: 0.01,
            text_dropout: 0.1,
            noise_mean: 0.0,
            noise_std: 1.0,
            inherit: false,
            prompts: 1,
            videos_per_prompt: 1,
            sample_steps: 2,
            guidance: 1.0,
            dimensions: Default::default(),
            checkpoint_every: 10,
            train_seed: 5,
            score_seed: 6,
            ranks: 1,
        }
    }

    fn batch(step: u64) -> Batch {
        let noise = |stream, shape: &[i64]| normal_from(&mut generator(77 + step, stream), shape, Device::Cpu);
        // Frames that brighten with time: something that only temporal layers can follow.
        let ramp = Tensor::linspace(-1.0, 1.0, 3, (tch::Kind::Float, Device::Cpu)).reshape([1, 1, 3, 1, 1]);
        Batch {
            latents: noise(0, &[2, 4, 1, 4, 4]) * 0.1 + ramp,
            text: noise(1, &[2, 4, 8]),
        }
    }

    fn built() -> (nn::VarStore, UNet) {
        let vs = nn::VarStore::new(Device::Cpu);
        use Operator::{Conv1d, Conv3d, CrossAttention1d, SelfAttention3d};
        let layers = [Conv1d, SelfAttention3d, CrossAttention1d, Conv1d, Conv3d]
            .map(|operator| Some(TemporalLayer { operator, depth: 1 }));
        let unet = UNet::new(&vs.root(), &config(), &layers);
        seed_weights(&vs, 3);
        (vs, unet)
    }

    fn run(training: &mut Training<'_>, steps: u64) -> Vec<f64> {
        let mut losses = Vec::new();
        let ended = training.run(steps, &batch, &mut |_, loss| {
            losses.push(loss);
            ControlFlow::Continue(())
        });
        assert!(ended.is_continue());
        losses
    }

    #[test]
    fn a_training_resumed_from_its_checkpoint_ends_with_the_same_bytes() {
        let settings = settings();
        let (vs, unet) = built();
        let mut straight = Training::new(&unet, &vs, &settings, 5);
        let straight_losses = run(&mut straight, 20);

        let (vs, unet) = built();
        let mut first = Training::new(&unet, &vs, &settings, 5);
        let mut losses = run(&mut first, 10);
        let saved = first.checkpoint().encode().unwrap();
        drop(first);
        let (vs, unet) = built();
        let mut second = Training::new(&unet, &vs, &settings, 5);
        second.restore(&Checkpoint::decode(&saved).unwrap()).unwrap();
        losses.extend(run(&mut second, 20));

        assert_eq!(losses, straight_losses);
        assert_eq!(
            second.checkpoint().encode().unwrap(),
            straight.checkpoint().encode().unwrap()
        );
    }

    #[test]
    fn training_lowers_the_loss_and_leaves_the_backbone_alone() {
        let settings = Evaluation {
            learning_rate: 1e-2,
            ..settings()
        };
        let (vs, unet) = built();
        let (clips, noise) = (
            batch(1000),
            normal_from(&mut generator(1, 1), &[2, 4, 3, 4, 4], Device::Cpu),
        );
        let half = Tensor::full([2], 0.5, (tch::Kind::Float, Device::Cpu));
        let loss = || tch::no_grad(|| flow::loss(&unet, &clips.latents, &noise, &half, &clips.text)).double_value(&[]);
        let untrained = loss();
        let before: std::collections::HashMap<_, _> = vs
            .variables()
            .into_iter()
            .map(|(name, w)| (name, w.copy().detach()))
            .collect();
        let mut training = Training::new(&unet, &vs, &settings, 5);
        run(&mut training, 40);
        let trained = loss();
        assert!(trained < 0.9 * untrained, "{untrained} to {trained}");
        for (name, after) in vs.variables() {
            let same = after.detach() == before[&name];
            assert_ne!(same, is_temporal(&name), "{name}");
        }
    }

    #[test]
    fn another_seed_trains_otherwise_and_no_layers_train_nothing() {
        let settings = settings();
        let losses = |seed| {
            let (vs, unet) = built();
            run(&mut Training::new(&unet, &vs, &settings, seed), 2)
        };
        assert_ne!(losses(5), losses(6));
        let vs = nn::VarStore::new(Device::Cpu);
        let unet = UNet::new(&vs.root(), &config(), &[]);
        assert!(run(&mut Training::new(&unet, &vs, &settings, 5), 20).is_empty());
    }

    #[test]
    fn a_checkpoint_of_another_architecture_is_refused() {
        let settings = settings();
        let (vs, unet) = built();
        let checkpoint = Training::new(&unet, &vs, &settings, 5).checkpoint();
        let other = nn::VarStore::new(Device::Cpu);
        use Operator::{Conv1d, Conv3d};
        // The first layer is the same, the second another.
        let layers = [Conv1d, Conv3d].map(|operator| Some(TemporalLayer { operator, depth: 1 }));
        let unet = UNet::new(&other.root(), &config(), &layers);
        seed_weights(&other, 4);
        let mut training = Training::new(&unet, &other, &settings, 5);
        let before = training.checkpoint().encode().unwrap();
        let error = training.restore(&checkpoint).unwrap_err();
        assert!(error.to_string().contains("temporal.down_1.0.conv"), "{error}");
        assert_eq!(
            training.checkpoint().encode().unwrap(),
            before,
            "nothing was taken over"
        );
    }
}

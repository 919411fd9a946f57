//! The training of a pruned UNet through the stages of its recipe.
//!
//! Every draw is named by (seed, stage, step), as in [`crate::train`]: from a checkpoint it goes on to the same bytes.

use std::ops::ControlFlow;

use rand::RngExt;
use search_spaces::UnetConfig;
use tch::{Tensor, nn};

use super::copy_map::{CopyMap, CopyMapError, SharedPosition, shared_positions};
use super::loss::{Loss, Teacher, loss};
use super::recipe::{PruneRecipe, Stage};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::data::latents::Batch;
use crate::models::UNet;
use crate::models::seeded::{generator, seed_weights, stream_of};
use crate::optimizer::{AdamW, AdamWConfig};

/// A UNet with its configuration and weights.
#[derive(Debug)]
pub struct Network {
    /// Its sizes.
    pub config: UnetConfig,
    /// Its weights.
    pub vs: nn::VarStore,
    /// The network.
    pub unet: UNet,
}

impl Network {
    /// A backbone without temporal layers, with weights drawn from a seed.
    #[must_use]
    pub fn seeded(config: &UnetConfig, seed: u64, device: tch::Device) -> Self {
        let vs = nn::VarStore::new(device);
        let unet = UNet::new(&vs.root(), config, &[]);
        seed_weights(&vs, seed);
        Self {
            config: config.clone(),
            vs,
            unet,
        }
    }

    /// A smaller backbone whose weights start from this one's, and from `seed` where this one has nothing of the kind.
    ///
    /// # Errors
    /// Where it is not smaller.
    pub fn pruned(&self, config: &UnetConfig, seed: u64) -> Result<Self, CopyMapError> {
        let map = CopyMap::new(&self.config, config)?;
        let pruned = Self::seeded(config, seed, self.vs.device());
        map.copy(&self.vs.variables(), &pruned.vs)?;
        Ok(pruned)
    }
}

/// A pruning in progress.
#[derive(Debug)]
pub struct Pruning<'a> {
    full: &'a Network,
    pruned: &'a Network,
    recipe: &'a PruneRecipe,
    shared: Vec<SharedPosition>,
    weights: Vec<(String, Tensor)>,
    optimizer: AdamW,
    step: u64,
}

impl<'a> Pruning<'a> {
    /// Starts at step 0 with the weights as they are.
    ///
    /// # Errors
    /// Where the pruned UNet is no smaller version of the full one.
    pub fn new(full: &'a Network, pruned: &'a Network, recipe: &'a PruneRecipe) -> Result<Self, CopyMapError> {
        let mut weights: Vec<_> = pruned.vs.variables().into_iter().collect();
        weights.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(Self {
            full,
            pruned,
            recipe,
            shared: shared_positions(&full.config, &pruned.config)?,
            optimizer: optimizer(&weights, recipe.stages.first()),
            weights,
            step: 0,
        })
    }

    /// Steps taken, over all stages.
    #[must_use]
    pub const fn step_number(&self) -> u64 {
        self.step
    }

    /// The stage of the next step; none once all are taken.
    #[must_use]
    pub fn stage(&self) -> Option<&'a Stage> {
        Some(&self.recipe.stages[self.recipe.stage_of(self.step)?.0])
    }

    /// Steps until all stages are done or `after` breaks off. `batches` gives the clips of a step within a stage;
    /// `after` sees the stage and the loss of the last step.
    pub fn run(
        &mut self,
        batches: &dyn Fn(&Stage, u64) -> Batch,
        after: &mut dyn FnMut(&Self, &Stage, &Loss) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        while let Some((index, within)) = self.recipe.stage_of(self.step) {
            let stage = &self.recipe.stages[index];
            if within == 0 {
                // Moments of another loss would mislead.
                self.optimizer = optimizer(&self.weights, Some(stage));
            }
            let loss = self.step(stage, within, &batches(stage, within));
            after(self, stage, &loss)?;
        }
        ControlFlow::Continue(())
    }

    fn step(&mut self, stage: &Stage, within: u64, batch: &Batch) -> Loss {
        let mut rng = generator(self.recipe.seed ^ stream_of(&stage.name), within);
        let frames = single_frames(batch, &mut rng);
        let noised = stage.process.noised(&mut rng, &frames);
        let teacher = Teacher {
            unet: &self.full.unet,
            process: self.recipe.teacher,
            shared: &self.shared,
        };
        let loss = loss(
            &self.pruned.unet,
            stage.process,
            stage.losses,
            teacher,
            &noised,
            &batch.text,
        );
        self.optimizer.backward_step(&loss.total, stage.rate(within));
        self.step += 1;
        loss
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

    /// Goes on from a checkpoint of the same networks; from any other it takes nothing.
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

impl Stage {
    /// Learning rate of a step: a linear rise, then constant.
    fn rate(&self, step: u64) -> f64 {
        let warm = (step + 1) as f64 / self.warmup_steps.max(1) as f64;
        self.learning_rate * warm.min(1.0)
    }
}

fn optimizer(weights: &[(String, Tensor)], stage: Option<&Stage>) -> AdamW {
    let config = AdamWConfig {
        weight_decay: stage.map_or(0.0, |stage| stage.weight_decay),
        ..Default::default()
    };
    AdamW::new(
        weights.iter().map(|(name, w)| (name.clone(), w.shallow_clone())),
        config,
    )
}

/// One latent frame of each clip, so that a picture shows what a latent frame of a clip shows, its share of motion
/// included.
///
/// # Shapes
/// - output `[b, c, 1, h, w]`
fn single_frames(batch: &Batch, rng: &mut rand_chacha::ChaCha8Rng) -> Tensor {
    let latents = &batch.latents;
    let (clips, frames) = (latents.size()[0], latents.size()[2]);
    let drawn: Vec<Tensor> = (0..clips)
        .map(|clip| latents.get(clip).narrow(1, rng.random_range(0..frames), 1))
        .collect();
    Tensor::stack(&drawn, 0)
}

#[cfg(test)]
mod tests {
    use search_spaces::Dtype;
    use tch::{Device, Kind};

    use super::*;
    use crate::models::seeded::normal_from;
    use crate::prune::loss::LossWeights;
    use crate::prune::process::Process;

    fn config() -> UnetConfig {
        UnetConfig {
            latent_channels: 4,
            frames: 3,
            height: 4,
            width: 4,
            channels: vec![8, 16],
            layers_per_block: 2,
            attention: vec![false, true],
            middle: true,
            heads: 2,
            text_tokens: 4,
            text_width: 8,
            norm_groups: 4,
            ff_multiplier: 2,
            qk_norm: false,
            dtype: Dtype::F32,
            parts: 1,
        }
    }

    fn smaller() -> UnetConfig {
        UnetConfig {
            channels: vec![8, 8],
            layers_per_block: 1,
            qk_norm: true,
            ..config()
        }
    }

    fn stage(name: &str, process: Process, losses: LossWeights) -> Stage {
        Stage {
            name: name.to_owned(),
            process,
            losses,
            steps: 6,
            batch: 4,
            learning_rate: 2e-3,
            warmup_steps: 2,
            weight_decay: 0.01,
            text_dropout: 0.0,
            dataset: None,
        }
    }

    /// Distillation from a diffusion model, then adaptation to rectified flow with the teacher's velocity.
    fn recipe() -> PruneRecipe {
        let flow = Process::Flow {
            noise_mean: 0.0,
            noise_std: 1.0,
        };
        let adapt = LossWeights {
            feature: 0.0,
            ..Default::default()
        };
        PruneRecipe {
            seed: 5,
            teacher: Process::Diffusion {},
            checkpoint_every: 5,
            stages: vec![
                stage("distil", Process::Diffusion {}, LossWeights::default()),
                stage("adapt", flow, adapt),
            ],
        }
    }

    fn batch(stage: &Stage, step: u64) -> Batch {
        let noise = |stream, shape: &[i64]| {
            normal_from(
                &mut generator(77 ^ stream_of(&stage.name), 2 * step + stream),
                shape,
                Device::Cpu,
            )
        };
        Batch {
            latents: noise(0, &[4, 4, 3, 4, 4]),
            text: noise(1, &[4, 4, 8]),
        }
    }

    fn networks() -> (Network, Network) {
        let full = Network::seeded(&config(), 1, Device::Cpu);
        let pruned = full.pruned(&smaller(), 2).unwrap();
        (full, pruned)
    }

    fn run(pruning: &mut Pruning<'_>, until: u64) -> Vec<(String, f64)> {
        let mut losses = Vec::new();
        let _ = pruning.run(&batch, &mut |pruning, stage, loss| {
            losses.push((stage.name.clone(), loss.total.double_value(&[])));
            match pruning.step_number() < until {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        });
        losses
    }

    /// Broken off within a stage, and just where the next begins.
    #[test]
    fn a_pruning_resumed_from_its_checkpoint_ends_with_the_same_bytes() {
        let recipe = recipe();
        let (full, pruned) = networks();
        let mut straight = Pruning::new(&full, &pruned, &recipe).unwrap();
        let straight_losses = run(&mut straight, u64::MAX);
        assert_eq!(straight_losses.len(), 12);
        assert!(straight_losses[..6].iter().all(|(stage, _)| stage == "distil"));
        for at in [4, 6] {
            let (full, pruned) = networks();
            let mut first = Pruning::new(&full, &pruned, &recipe).unwrap();
            let mut losses = run(&mut first, at);
            let saved = first.checkpoint().encode().unwrap();
            let (full, pruned) = networks();
            let mut second = Pruning::new(&full, &pruned, &recipe).unwrap();
            second.restore(&Checkpoint::decode(&saved).unwrap()).unwrap();
            losses.extend(run(&mut second, u64::MAX));
            assert_eq!(losses, straight_losses);
            assert_eq!(
                second.checkpoint().encode().unwrap(),
                straight.checkpoint().encode().unwrap()
            );
        }
    }

    #[test]
    fn the_teacher_stays_as_it_is_and_the_pruned_network_comes_closer_to_it() {
        let mut recipe = recipe();
        recipe.stages.truncate(1);
        (recipe.stages[0].steps, recipe.stages[0].learning_rate) = (60, 5e-3);
        let (full, pruned) = networks();
        let before: Vec<_> = full
            .vs
            .variables()
            .into_iter()
            .map(|(name, w)| (name, w.copy()))
            .collect();
        let mut pruning = Pruning::new(&full, &pruned, &recipe).unwrap();
        let mut apart = Vec::new();
        let _ = pruning.run(&batch, &mut |_, _, loss| {
            apart.push(loss.output + loss.feature);
            ControlFlow::Continue(())
        });
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (first, last) = (mean(&apart[..5]), mean(&apart[55..]));
        assert!(last < 0.75 * first, "{first} to {last}");
        let after = full.vs.variables();
        assert!(before.iter().all(|(name, w)| after[name] == *w));
    }

    #[test]
    fn a_frame_of_each_clip_is_drawn() {
        let clips = Tensor::arange(6, (Kind::Float, Device::Cpu))
            .reshape([1, 1, 6, 1, 1])
            .expand([50, 1, 6, 2, 2], true);
        let clips = Batch {
            latents: clips,
            text: Tensor::zeros([50, 1, 1], (Kind::Float, Device::Cpu)),
        };
        let frames = single_frames(&clips, &mut generator(1, 0));
        assert_eq!(frames.size(), [50, 1, 1, 2, 2]);
        let mut seen = Vec::<f32>::try_from(frames.mean_dim([1i64, 2, 3, 4].as_slice(), false, Kind::Float)).unwrap();
        seen.sort_by(f32::total_cmp);
        seen.dedup();
        assert_eq!(seen, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    }
}

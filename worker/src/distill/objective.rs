//! What the generator is trained for, with the discriminator that learns beside it.

use std::cell::{Cell, RefCell};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use search_spaces::{Adversarial, TimestepShift, TrainingSettings};
use tch::{Kind, Tensor};

use super::discriminator::{Discriminator, detached};
use super::loss::{discriminator_loss, flatness_loss, generator_loss, moved, reconstruction_loss};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::data::latents::Batch;
use crate::flow::{self, Grid};
use crate::models::UNet;
use crate::models::seeded::normal_from;
use crate::models::unet::{Activations, Moment};
use crate::optimizer::{AdamW, AdamWConfig};
use crate::train::{Judge, Mean, Noised, Objective, SyncError};

/// Size of a nudge (FastGen's).
const NUDGE: f64 = 0.1;
/// Beginnings of names in a checkpoint.
const WEIGHTS: &str = "heads.weights.";
const OPTIMIZER: &str = "heads.optimizer.";

/// The losses of the generator, and the discriminator beside it.
///
/// Both move at once: each micro-batch is generated once, the heads learn from it as it is, and the generator learns
/// from the heads as they were before the step.
#[derive(Debug)]
pub struct Adversary {
    discriminator: Discriminator,
    settings: Adversarial,
    shift: TimestepShift,
    learning: RefCell<Learning>,
    last: Cell<Terms>,
}

#[derive(Debug)]
struct Learning {
    optimizer: AdamW,
    /// Clips whose gradients stand at the heads.
    clips: i64,
}

/// The terms of a micro-batch, unweighted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Terms {
    /// What the discriminator lowers (equation 4).
    pub discriminator: f64,
    /// What the generator lowers (equation 5): the judgement of its clips.
    pub adversarial: f64,
    /// The reconstruction (equation 6).
    pub reconstruction: f64,
    /// The judgement of real clips.
    pub real: f64,
}

impl Adversary {
    /// Beside a training of these settings.
    #[must_use]
    pub fn new(discriminator: Discriminator, settings: &Adversarial, training: &TrainingSettings) -> Self {
        let config = AdamWConfig {
            beta1: settings.heads_betas[0],
            beta2: settings.heads_betas[1],
            weight_decay: training.weight_decay,
            max_gradient_norm: training.max_gradient_norm,
            ..Default::default()
        };
        discriminator.let_heads_learn(true);
        let optimizer = AdamW::new(discriminator.learned(), config);
        Self {
            discriminator,
            settings: settings.clone(),
            shift: training.timestep_shift,
            learning: RefCell::new(Learning { optimizer, clips: 0 }),
            last: Cell::default(),
        }
    }

    /// The terms of the last micro-batch.
    #[must_use]
    pub const fn last(&self) -> Terms {
        self.last.get()
    }

    /// What judges.
    #[must_use]
    pub const fn discriminator(&self) -> &Discriminator {
        &self.discriminator
    }
}

impl Objective for Adversary {
    /// Each clip at one of the times of a sample, the first of which is 1 (pure noise).
    ///
    /// # Panics
    /// Where the batch has no captions as a whole, which whoever reads them looks for before.
    fn noised(&self, batch: &Batch, rng: &mut ChaCha8Rng) -> Noised {
        let clips = &batch.latents;
        let (shape, device) = (clips.size(), clips.device());
        let grid = Grid::new(self.settings.sample_steps, flow::shift_of(self.shift, &shape));
        let times = grid.times();
        let drawn: Vec<f32> = (0..shape[0])
            .map(|_| times[rng.random_range(0..times.len())] as f32)
            .collect();
        let time = Tensor::from_slice(&drawn).to_device(device);
        let noise = normal_from(rng, &shape, device);
        let Adversarial {
            noise_mean, noise_std, ..
        } = self.settings;
        let pooled = batch.pooled.as_ref().expect("captions are embedded as a whole");
        let judge = Judge {
            time: flow::logit_normal(rng, shape[0], noise_mean, noise_std).to_device(device),
            pooled: pooled.shallow_clone(),
            nudge: match self.settings.r1_weight > 0.0 {
                true => normal_from(rng, &shape, device) * NUDGE,
                false => Tensor::zeros([shape[0]], (Kind::Float, device)),
            },
        };
        Noised {
            xs: flow::noised(clips, &noise, &time),
            target: flow::target(clips, &noise),
            time,
            judge: Some(judge),
        }
    }

    fn loss(&self, unet: &UNet, noised: &Noised, text: &Tensor, activations: Activations) -> Tensor {
        let judge = noised.judge.as_ref().expect("what `noised` made");
        let (settings, discriminator) = (&self.settings, &self.discriminator);
        let velocity = unet.pass(&noised.xs, Moment::Time(&noised.time), text, activations);
        let at_judge = |velocity: &Tensor| moved(&noised.xs, velocity, &noised.time, &judge.time);
        let (real, fake) = (at_judge(&noised.target), at_judge(&velocity));
        let seen = |xs: &Tensor| discriminator.features(xs, &judge.time, text, activations);
        let seen_fake = seen(&fake);

        discriminator.let_heads_learn(true);
        let judged_real = discriminator.judge(&tch::no_grad(|| seen(&real)), &judge.pooled);
        let judged_fake = discriminator.judge(&detached(&seen_fake), &judge.pooled);
        let told_apart = discriminator_loss(&judged_real, &judged_fake);
        let mut lesson = told_apart.shallow_clone();
        if settings.r1_weight > 0.0 {
            let nudged = tch::no_grad(|| seen(&(&real + &judge.nudge)));
            let nudged = discriminator.judge(&nudged, &judge.pooled);
            lesson += flatness_loss(&judged_real, &nudged) * settings.r1_weight;
        }
        let clips = noised.xs.size()[0];
        // Added up over micro-batches by their clips; divided by all of them before the step.
        (lesson * clips as f64).backward();
        self.learning.borrow_mut().clips += clips;

        discriminator.let_heads_learn(false);
        let adversarial = generator_loss(&discriminator.judge(&seen_fake, &judge.pooled));
        let at_zero = |velocity: &Tensor| moved(&noised.xs, velocity, &noised.time, &noised.time.zeros_like());
        let reconstruction = reconstruction_loss(&at_zero(&velocity), &at_zero(&noised.target), settings.huber_scale);
        discriminator.let_heads_learn(true);
        let value = |tensor: &Tensor| tensor.mean(Kind::Float).double_value(&[]);
        self.last.set(Terms {
            discriminator: value(&told_apart),
            adversarial: value(&adversarial),
            reconstruction: value(&reconstruction),
            real: value(&judged_real),
        });
        adversarial + reconstruction * settings.reconstruction_weight
    }

    fn follow(&self, mean: &Mean<'_>) -> Result<(), SyncError> {
        let mut learning = self.learning.borrow_mut();
        let gradients: Vec<Tensor> = self
            .discriminator
            .learned()
            .iter()
            .map(|(_, weight)| weight.grad())
            .filter(Tensor::defined)
            .collect();
        // All ranks use the same heads, so all have the same gradients: they travel as one.
        let flat: Vec<Tensor> = gradients.iter().map(|gradient| gradient.flatten(0, -1)).collect();
        if !flat.is_empty() {
            let flat = mean(Tensor::cat(&flat, 0) / learning.clips as f64)?;
            let mut start = 0;
            for mut gradient in gradients {
                let length = gradient.numel() as i64;
                let part = flat.narrow(0, start, length).view_as(&gradient);
                tch::no_grad(|| gradient.copy_(&part));
                start += length;
            }
            learning.optimizer.step(self.settings.heads_learning_rate);
        }
        learning.optimizer.zero_gradients();
        learning.clips = 0;
        Ok(())
    }

    fn state(&self) -> Vec<(String, Tensor)> {
        let learning = self.learning.borrow();
        let weights = self.discriminator.learned().into_iter();
        let weights = weights.map(|(name, weight)| (format!("{WEIGHTS}{name}"), weight.detach()));
        let moments = learning.optimizer.state().into_iter();
        weights
            .chain(moments.map(|(name, moment)| (format!("{OPTIMIZER}{name}"), moment)))
            .collect()
    }

    fn restore(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        for (name, mut weight) in self.discriminator.learned() {
            checkpoint.copy_into(&format!("{WEIGHTS}{name}"), &mut weight)?;
        }
        let moments = checkpoint.under(OPTIMIZER);
        Ok(self.learning.borrow_mut().optimizer.load_state(&moments)?)
    }
}

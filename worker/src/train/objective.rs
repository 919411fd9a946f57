//! What a training minimises, apart from how.

use rand_chacha::ChaCha8Rng;
use search_spaces::{TimestepShift, TrainingSettings};
use tch::{Reduction, Tensor};

use super::SyncError;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::data::latents::Batch;
use crate::flow;
use crate::models::UNet;
use crate::models::seeded::normal_from;
use crate::models::unet::{Activations, Moment};

/// Replaces a tensor by its mean over the ranks of a training.
pub type Mean<'a> = dyn Fn(Tensor) -> Result<Tensor, SyncError> + 'a;

/// A loss over noised clips.
pub trait Objective: std::fmt::Debug {
    /// Noises the clips of a step; everything random comes from `rng`.
    fn noised(&self, batch: &Batch, rng: &mut ChaCha8Rng) -> Noised;

    /// The loss of a micro-batch, a mean over its clips. `text`: `[b, tokens, width]`.
    fn loss(&self, unet: &UNet, noised: &Noised, text: &Tensor, activations: Activations) -> Tensor;

    /// Takes a step with what the objective trains itself, once the micro-batches of a step are through.
    ///
    /// # Errors
    /// Where the ranks do not come together.
    fn follow(&self, mean: &Mean<'_>) -> Result<(), SyncError> {
        let _ = mean;
        Ok(())
    }

    /// What the objective remembers from step to step, for a checkpoint.
    fn state(&self) -> Vec<(String, Tensor)> {
        Vec::new()
    }

    /// Looks whether a checkpoint holds a [`Self::state`] of this objective.
    ///
    /// # Errors
    /// Where a tensor is missing or has another shape.
    fn check(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        self.state()
            .iter()
            .try_for_each(|(name, tensor)| checkpoint.check(name, tensor))
    }

    /// Goes on from a checkpoint that [`Self::check`] has passed.
    ///
    /// # Errors
    /// Where libtorch cannot copy a tensor.
    fn restore(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        let _ = checkpoint;
        Ok(())
    }
}

impl<T: Objective + ?Sized> Objective for &T {
    fn noised(&self, batch: &Batch, rng: &mut ChaCha8Rng) -> Noised {
        (**self).noised(batch, rng)
    }

    fn loss(&self, unet: &UNet, noised: &Noised, text: &Tensor, activations: Activations) -> Tensor {
        (**self).loss(unet, noised, text, activations)
    }

    fn follow(&self, mean: &Mean<'_>) -> Result<(), SyncError> {
        (**self).follow(mean)
    }

    fn state(&self) -> Vec<(String, Tensor)> {
        (**self).state()
    }

    fn check(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        (**self).check(checkpoint)
    }

    fn restore(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        (**self).restore(checkpoint)
    }
}

/// Noised clips and what is to be predicted of them.
#[derive(Debug)]
pub struct Noised {
    /// `[b, c, t, h, w]`
    pub xs: Tensor,
    /// `[b]` in [0, 1]
    pub time: Tensor,
    /// As `xs`.
    pub target: Tensor,
    /// What a discriminator goes by, where there is one.
    pub judge: Option<Judge>,
}

/// What a discriminator goes by.
#[derive(Debug)]
pub struct Judge {
    /// The times at which it compares: `[b]` in [0, 1].
    pub time: Tensor,
    /// Embeddings of whole captions: `[b, width]`.
    pub pooled: Tensor,
    /// What real clips are moved by to see how the judgement changes, as `xs`; where nobody asks, zeros `[b]`.
    pub nudge: Tensor,
}

impl Noised {
    /// Each of its tensors through `step`.
    ///
    /// # Errors
    /// The first of `step`.
    pub fn try_map<E>(self, step: impl Fn(&Tensor) -> Result<Tensor, E>) -> Result<Self, E> {
        let judged = |judge: Judge| {
            Ok(Judge {
                time: step(&judge.time)?,
                pooled: step(&judge.pooled)?,
                nudge: step(&judge.nudge)?,
            })
        };
        Ok(Self {
            xs: step(&self.xs)?,
            time: step(&self.time)?,
            target: step(&self.target)?,
            judge: self.judge.map(judged).transpose()?,
        })
    }

    /// In micro-batches, at most `parts` of them.
    pub fn chunk(&self, parts: i64) -> Vec<Self> {
        let size = (self.xs.size()[0] + parts - 1) / parts;
        let rows = |tensor: &Tensor, start: i64| tensor.narrow(0, start, size.min(tensor.size()[0] - start));
        let part = |start: i64| Self {
            xs: rows(&self.xs, start),
            time: rows(&self.time, start),
            target: rows(&self.target, start),
            judge: self.judge.as_ref().map(|judge| Judge {
                time: rows(&judge.time, start),
                pooled: rows(&judge.pooled, start),
                nudge: rows(&judge.nudge, start),
            }),
        };
        (0..self.xs.size()[0]).step_by(size.max(1) as usize).map(part).collect()
    }
}

/// Rectified flow: the mean squared error of the velocity at logit-normal times.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Flow {
    noise_mean: f64,
    noise_std: f64,
    shift: TimestepShift,
}

impl Flow {
    /// With the times of a training.
    #[must_use]
    pub const fn new(settings: &TrainingSettings) -> Self {
        Self {
            noise_mean: settings.noise_mean,
            noise_std: settings.noise_std,
            shift: settings.timestep_shift,
        }
    }

    /// Noises `clips`, `[b, c, t, h, w]`, at times drawn from `rng`.
    pub fn noise(&self, clips: &Tensor, rng: &mut ChaCha8Rng) -> Noised {
        let (shape, device) = (clips.size(), clips.device());
        let time = flow::logit_normal(rng, shape[0], self.noise_mean, self.noise_std).to_device(device);
        let time = flow::shifted(&time, flow::shift_of(self.shift, &shape));
        let noise = normal_from(rng, &shape, device);
        Noised {
            xs: flow::noised(clips, &noise, &time),
            target: flow::target(clips, &noise),
            time,
            judge: None,
        }
    }
}

impl Objective for Flow {
    fn noised(&self, batch: &Batch, rng: &mut ChaCha8Rng) -> Noised {
        self.noise(&batch.latents, rng)
    }

    fn loss(&self, unet: &UNet, noised: &Noised, text: &Tensor, activations: Activations) -> Tensor {
        let velocity = unet.pass(&noised.xs, Moment::Time(&noised.time), text, activations);
        velocity.mse_loss(&noised.target, Reduction::Mean)
    }
}

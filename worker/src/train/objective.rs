//! What a training minimises, apart from how.

use rand_chacha::ChaCha8Rng;
use search_spaces::{TimestepShift, TrainingSettings};
use tch::{Reduction, Tensor};

use crate::flow;
use crate::models::UNet;
use crate::models::seeded::normal_from;
use crate::models::unet::{Activations, Moment};

/// A loss over noised clips.
pub trait Objective: std::fmt::Debug {
    /// Noises the clips of a step, `[b, c, t, h, w]`; everything random comes from `rng`.
    fn noised(&self, clips: &Tensor, rng: &mut ChaCha8Rng) -> Noised;

    /// The loss of a micro-batch, a mean over its clips. `text`: `[b, tokens, width]`.
    fn loss(&self, unet: &UNet, noised: &Noised, text: &Tensor, activations: Activations) -> Tensor;
}

impl<T: Objective + ?Sized> Objective for &T {
    fn noised(&self, clips: &Tensor, rng: &mut ChaCha8Rng) -> Noised {
        (**self).noised(clips, rng)
    }

    fn loss(&self, unet: &UNet, noised: &Noised, text: &Tensor, activations: Activations) -> Tensor {
        (**self).loss(unet, noised, text, activations)
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
}

impl Noised {
    /// Each of its tensors through `step`.
    ///
    /// # Errors
    /// The first of `step`.
    pub fn try_map<E>(self, step: impl Fn(&Tensor) -> Result<Tensor, E>) -> Result<Self, E> {
        Ok(Self {
            xs: step(&self.xs)?,
            time: step(&self.time)?,
            target: step(&self.target)?,
        })
    }

    /// In micro-batches, at most `parts` of them.
    pub fn chunk(&self, parts: i64) -> Vec<Self> {
        let chunks = [&self.xs, &self.time, &self.target].map(|tensor| tensor.chunk(parts, 0));
        let [xs, times, targets] = chunks;
        xs.into_iter()
            .zip(times)
            .zip(targets)
            .map(|((xs, time), target)| Self { xs, time, target })
            .collect()
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
}

impl Objective for Flow {
    fn noised(&self, clips: &Tensor, rng: &mut ChaCha8Rng) -> Noised {
        let (shape, device) = (clips.size(), clips.device());
        let time = flow::logit_normal(rng, shape[0], self.noise_mean, self.noise_std).to_device(device);
        let time = flow::shifted(&time, flow::shift_of(self.shift, &shape));
        let noise = normal_from(rng, &shape, device);
        Noised {
            xs: flow::noised(clips, &noise, &time),
            target: flow::target(clips, &noise),
            time,
        }
    }

    fn loss(&self, unet: &UNet, noised: &Noised, text: &Tensor, activations: Activations) -> Tensor {
        let velocity = unet.pass(&noised.xs, Moment::Time(&noised.time), text, activations);
        velocity.mse_loss(&noised.target, Reduction::Mean)
    }
}

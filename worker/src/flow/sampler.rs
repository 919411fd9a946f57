//! Sampling: from noise to a clip along the learned velocity.

use search_spaces::TimestepShift;
use tch::{Kind, Tensor};

use super::shift_of;
use crate::models::UNet;
use crate::models::unet::Moment;

/// Times of a sample, from 1 (noise) down to 0 (data).
#[derive(Debug, Clone, PartialEq)]
pub struct Grid(Vec<f64>);

impl Grid {
    /// `steps` equal steps, each time moved towards the noise by `shift` (see [`TimestepShift::moved`]); 1 moves none.
    #[must_use]
    pub fn new(steps: u32, shift: f64) -> Self {
        let steps = steps.max(1);
        let time = |i: u32| 1.0 - f64::from(i) / f64::from(steps);
        Self((0..=steps).map(|i| TimestepShift::moved(time(i), shift)).collect())
    }

    /// The times at which the velocity is asked for: all but the last, which is 0.
    #[must_use]
    pub fn times(&self) -> &[f64] {
        &self.0[..self.0.len() - 1]
    }

    /// Each time with the length of the step down from it.
    fn steps(&self) -> impl Iterator<Item = (f64, f64)> {
        self.0.windows(2).map(|pair| (pair[0], pair[0] - pair[1]))
    }
}

/// Follows `velocity(i, x, t)` from noise at t = 1 to data at t = 0 in Euler steps; `i` counts the steps.
pub fn euler(noise: &Tensor, grid: &Grid, velocity: impl Fn(usize, &Tensor, f64) -> Tensor) -> Tensor {
    grid.steps()
        .enumerate()
        .fold(noise.shallow_clone(), |x, (i, (time, step))| {
            let change = velocity(i, &x, time) * step;
            x - change
        })
}

/// How clips are sampled. The size of a clip is that of its noise: any that the UNet and the VAE take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// Euler steps.
    pub steps: u32,
    /// How the grid is moved; the same as in training.
    pub shift: TimestepShift,
    /// Scale of classifier-free guidance; 1 is none, and the UNet runs once a step instead of twice.
    pub guidance: f64,
}

impl Sampler {
    /// The trained model, as the search and the joint training leave it: 25 steps with guidance 7 (the paper's
    /// Appendix A).
    pub const TRAINED: Self = Self {
        steps: 25,
        shift: TimestepShift::None,
        guidance: 7.0,
    };
    /// The distilled model: 4 steps without guidance (the paper's section 3.3).
    pub const DISTILLED: Self = Self {
        steps: 4,
        shift: TimestepShift::None,
        guidance: 1.0,
    };

    /// Passes of the UNet for one clip.
    #[must_use]
    pub fn passes(&self) -> u32 {
        self.steps * if self.guidance == 1.0 { 1 } else { 2 }
    }

    /// The grid for latents of a shape `[batch, c, t, h, w]`.
    #[must_use]
    pub fn grid(&self, latents: &[i64]) -> Grid {
        Grid::new(self.steps, shift_of(self.shift, latents))
    }

    /// Clips sampled from noise with classifier-free guidance. The embeddings of the grid's times are made once (the
    /// paper's Appendix F).
    ///
    /// # Shapes
    /// - `noise`: `[batch, c, t, h, w]`; `text`: `[batch, tokens, width]`; `null_text`: `[1, tokens, width]`;
    ///   output as `noise`
    pub fn sample(&self, unet: &UNet, noise: &Tensor, text: &Tensor, null_text: &Tensor) -> Tensor {
        let times = Tensor::from_slice(self.grid(&noise.size()).times());
        let times = times.to_kind(Kind::Float).to_device(noise.device());
        let embedded = tch::no_grad(|| unet.embed(&times)); // [steps, time_width]
        self.follow(noise, [text, null_text], |Point { step, xs, .. }, text| {
            let moment = embedded.narrow(0, step as i64, 1).expand([xs.size()[0], -1], false);
            unet.forward(xs, Moment::Embedded(&moment), text)
        })
    }

    /// Follows a velocity at a point with a text, with classifier-free guidance: `v = v_∅ + g (v_text − v_∅)` (Ho &
    /// Salimans 2022).
    ///
    /// # Shapes
    /// - as [`Self::sample`]; the velocity is asked for `batch` or, with guidance, `2 · batch` points at once
    pub fn follow(
        &self,
        noise: &Tensor,
        [text, null_text]: [&Tensor; 2],
        velocity: impl Fn(Point<'_>, &Tensor) -> Tensor,
    ) -> Tensor {
        tch::no_grad(|| {
            let (batch, grid) = (noise.size()[0], self.grid(&noise.size()));
            if self.guidance == 1.0 {
                return euler(noise, &grid, |step, xs, time| velocity(Point { step, xs, time }, text));
            }
            let both_texts = Tensor::cat(&[&null_text.expand_as(text), text], 0);
            euler(noise, &grid, |step, x, time| {
                let xs = &Tensor::cat(&[x, x], 0);
                let both = velocity(Point { step, xs, time }, &both_texts);
                let (free, bound) = (both.narrow(0, 0, batch), both.narrow(0, batch, batch));
                &free + (bound - &free) * self.guidance
            })
        })
    }
}

/// Where a sample stands.
#[derive(Debug, Clone, Copy)]
pub struct Point<'a> {
    /// Number of the step.
    pub step: usize,
    /// The clips, `[n, c, t, h, w]`.
    pub xs: &'a Tensor,
    /// The time of all of them.
    pub time: f64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::seeded::{distance, normal, seed_weights};
    use search_spaces::{Dtype, Operator, TemporalLayer, UnetConfig};
    use tch::{Device, nn};

    /// Data N(m, s²) and noise N(0, 1): the marginal velocity is known, and the flow maps ε to m + s ε.
    fn gaussian_velocity(m: f64, s: f64) -> impl Fn(&Tensor, f64) -> Tensor {
        move |x, t| {
            let variance = (1.0 - t).powi(2) * s * s + t * t;
            // E[ε − x₀ | x_t = x] by regression on x_t, whose mean is (1 − t) m.
            let slope = (t - (1.0 - t) * s * s) / variance;
            (x - (1.0 - t) * m) * slope - m
        }
    }

    #[test]
    fn euler_carries_noise_to_a_gaussian_of_known_mean_and_spread() {
        let (m, s) = (3.0, 0.4);
        let noise = normal(&[64], 7, Device::Cpu).to_kind(Kind::Double);
        let expected = &noise * s + m;
        let velocity = gaussian_velocity(m, s);
        let mut errors = [20, 40, 80].map(|steps| {
            let sampled = euler(&noise, &Grid::new(steps, 1.0), |_, x, t| velocity(x, t));
            (sampled - &expected).abs().max().double_value(&[])
        });
        assert!(errors[2] < 0.05, "{errors:?}");
        // A method of first order: half the step, half the error.
        for pair in errors.windows(2) {
            assert!((pair[0] / pair[1] - 2.0).abs() < 0.3, "{errors:?}");
        }
        errors.reverse();
        assert!(errors.is_sorted());
    }

    /// Spec section 4, to its three digits.
    #[test]
    fn grids_are_the_published_ones() {
        for (r, wanted) in [
            (1.0, [1.0, 0.75, 0.5, 0.25]),
            (15f64.sqrt(), [1.0, 0.921, 0.795, 0.563]),
            (5.0, [1.0, 0.9375, 0.833, 0.625]),
        ] {
            let grid = Grid::new(4, r);
            assert_eq!(grid.times().len(), 4);
            for (time, wanted) in grid.times().iter().zip(wanted) {
                assert!((time - wanted).abs() < 6e-4, "{r}: {time} against {wanted}");
            }
            let whole: f64 = grid.steps().map(|(_, step)| step).sum();
            assert!((whole - 1.0).abs() < 1e-12, "it ends at the data");
        }
        let by_rule = Sampler {
            shift: TimestepShift::Resolution,
            ..Sampler::DISTILLED
        };
        assert_eq!(by_rule.grid(&[1, 4, 15, 64, 64]), Grid::new(4, 15f64.sqrt()));
        assert_eq!((Sampler::TRAINED.passes(), Sampler::DISTILLED.passes()), (50, 4));
    }

    fn unet() -> (nn::VarStore, UNet) {
        let config = UnetConfig {
            latent_channels: 4,
            frames: 3,
            height: 6,
            width: 10,
            channels: vec![8, 8, 16],
            layers_per_block: 1,
            attention: vec![false, true, true],
            middle: true,
            heads: 2,
            text_tokens: 4,
            text_width: 8,
            norm_groups: 4,
            ff_multiplier: 2,
            qk_norm: true,
            rope: false,
            dtype: Dtype::F32,
            parts: 1,
        };
        let layers = [Operator::Conv1d, Operator::Conv3d, Operator::SelfAttention3d]
            .map(|operator| Some(TemporalLayer { operator, depth: 1 }));
        let vs = nn::VarStore::new(Device::Cpu);
        let unet = UNet::new(&vs.root(), &config, &layers);
        seed_weights(&vs, 3);
        (vs, unet)
    }

    /// Written out with a time for every pass, without precomputed embeddings and without a joint batch.
    fn plainly(sampler: Sampler, unet: &UNet, noise: &Tensor, text: &Tensor, null_text: &Tensor) -> Tensor {
        let r = shift_of(sampler.shift, &noise.size());
        let time = |i: u32| {
            let t = 1.0 - f64::from(i) / f64::from(sampler.steps);
            r * t / (1.0 + (r - 1.0) * t)
        };
        (0..sampler.steps).fold(noise.shallow_clone(), |x, i| {
            let at = Tensor::full([noise.size()[0]], time(i), (Kind::Float, Device::Cpu));
            let free = unet.forward(&x, &at, &null_text.expand_as(text));
            let bound = unet.forward(&x, &at, text);
            let velocity = &free + (bound - &free) * sampler.guidance;
            x - velocity * (time(i) - time(i + 1))
        })
    }

    #[test]
    fn guidance_and_shift_do_what_their_formulas_say_at_odd_sizes() {
        let (_vs, unet) = unet();
        // 7 rows halve to 4 and 2, 5 columns to 3 and 2.
        let noise = normal(&[2, 4, 3, 7, 5], 1, Device::Cpu);
        let (text, null_text) = (normal(&[2, 4, 8], 2, Device::Cpu), normal(&[1, 4, 8], 3, Device::Cpu));
        for sampler in [
            Sampler {
                steps: 3,
                shift: TimestepShift::Fixed(3.0),
                guidance: 7.0,
            },
            Sampler {
                steps: 2,
                ..Sampler::DISTILLED
            },
        ] {
            let sampled = sampler.sample(&unet, &noise, &text, &null_text);
            let expected = tch::no_grad(|| plainly(sampler, &unet, &noise, &text, &null_text));
            assert_eq!(sampled.size(), noise.size());
            assert!(distance(&sampled, &expected) < 1e-4, "{sampler:?}");
        }
    }
}

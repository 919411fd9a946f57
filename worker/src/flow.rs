//! Rectified flow: straight paths from data to noise, learned as a velocity (Liu et al. 2023; the paper's section 3.1).

use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use crate::models::UNet;
use crate::models::seeded::standard_normal;

/// Times in (0, 1) whose logit is normal with `mean` and `std` (Esser et al. 2024, section 3.1): `[count]`, float32.
pub fn logit_normal(rng: &mut ChaCha8Rng, count: i64, mean: f64, std: f64) -> Tensor {
    let times: Vec<f32> = (0..count)
        .map(|_| (1.0 / (1.0 + (-(mean + std * standard_normal(rng))).exp())) as f32)
        .collect();
    Tensor::from_slice(&times)
}

/// The path `x_t = (1 − t) x₀ + t ε`. `clean`, `noise`: `[batch, …]`; `time`: `[batch]`.
pub fn noised(clean: &Tensor, noise: &Tensor, time: &Tensor) -> Tensor {
    let mut shape = vec![1; clean.dim()];
    shape[0] = -1;
    let time = time.reshape(&shape);
    clean * (1.0 - &time) + noise * &time
}

/// The velocity of the path, `ε − x₀`.
pub fn target(clean: &Tensor, noise: &Tensor) -> Tensor {
    noise - clean
}

/// Mean squared error of the UNet's velocity at `time` on the path from `clean` to `noise`.
///
/// # Shapes
/// - `clean`, `noise`: `[batch, c, t, h, w]`; `time`: `[batch]`; `text`: `[batch, tokens, width]`; output a scalar
pub fn loss(unet: &UNet, clean: &Tensor, noise: &Tensor, time: &Tensor, text: &Tensor) -> Tensor {
    let velocity = unet.forward(&noised(clean, noise, time), time, text);
    velocity.mse_loss(&target(clean, noise), tch::Reduction::Mean)
}

/// Follows `velocity(x, t)` from noise at t = 1 to data at t = 0 in `steps` equal Euler steps.
pub fn euler(noise: &Tensor, steps: u32, velocity: impl Fn(&Tensor, f64) -> Tensor) -> Tensor {
    let step = 1.0 / f64::from(steps);
    (0..steps).fold(noise.shallow_clone(), |x, i| {
        let time = 1.0 - f64::from(i) * step;
        let change = velocity(&x, time) * step;
        x - change
    })
}

/// Clips sampled from noise with classifier-free guidance, `v = v_∅ + g (v_text − v_∅)` (Ho & Salimans 2022);
/// at `guidance` 1 the text alone decides and the UNet runs once a step.
///
/// # Shapes
/// - `noise`: `[batch, c, t, h, w]`; `text`: `[batch, tokens, width]`; `null_text`: `[1, tokens, width]`;
///   output as `noise`
pub fn sample(unet: &UNet, noise: &Tensor, text: &Tensor, null_text: &Tensor, steps: u32, guidance: f64) -> Tensor {
    tch::no_grad(|| {
        let batch = noise.size()[0];
        let times = |time: f64, count: i64| Tensor::full([count], time, (Kind::Float, noise.device()));
        if guidance == 1.0 {
            return euler(noise, steps, |x, time| unet.forward(x, &times(time, batch), text));
        }
        let both_texts = Tensor::cat(&[&null_text.expand_as(text), text], 0);
        euler(noise, steps, |x, time| {
            let both = unet.forward(&Tensor::cat(&[x, x], 0), &times(time, 2 * batch), &both_texts);
            let (free, bound) = (both.narrow(0, 0, batch), both.narrow(0, batch, batch));
            &free + (bound - &free) * guidance
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::seeded::{generator, normal};
    use tch::Device;

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
        let mut errors = [20, 40, 80].map(|steps| {
            let sampled = euler(&noise, steps, gaussian_velocity(m, s));
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

    #[test]
    fn the_path_runs_from_data_to_noise_along_its_velocity() {
        let (clean, noise) = (normal(&[2, 3], 1, Device::Cpu), normal(&[2, 3], 2, Device::Cpu));
        let at = |t: f32| noised(&clean, &noise, &Tensor::from_slice(&[t, t]));
        assert_eq!(at(0.0), clean);
        assert_eq!(at(1.0), noise);
        let difference = (at(0.75) - at(0.25)) / 0.5;
        assert!(difference.allclose(&target(&clean, &noise), 1e-4, 1e-5, false));
    }

    #[test]
    fn drawn_times_have_the_asked_logit() {
        let times = logit_normal(&mut generator(1, 0), 20_000, 0.5, 0.8).to_kind(Kind::Double);
        let logits = times.logit(None::<f64>);
        assert!((logits.mean(Kind::Double).double_value(&[]) - 0.5).abs() < 0.03);
        assert!((logits.std(true).double_value(&[]) - 0.8).abs() < 0.03);
    }
}

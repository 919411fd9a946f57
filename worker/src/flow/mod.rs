//! Rectified flow: straight paths from data to noise, learned as a velocity (Liu et al. 2023; the paper's section 3.1).

mod presets;
mod sampler;

use rand_chacha::ChaCha8Rng;
use search_spaces::TimestepShift;
use tch::Tensor;

use crate::models::seeded::standard_normal;
pub use presets::{PRESETS, Preset};
pub use sampler::{Grid, Point, Sampler, euler};

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

/// r of a timestep shift for latents `[batch, c, t, h, w]`.
pub fn shift_of(shift: TimestepShift, latents: &[i64]) -> f64 {
    let size = |axis: usize| latents.get(axis).map_or(1, |size| size.unsigned_abs());
    shift.factor(size(2), size(3), size(4))
}

/// Times moved towards the noise by `factor`, see [`TimestepShift`]; any shape.
pub fn shifted(time: &Tensor, factor: f64) -> Tensor {
    if factor == 1.0 {
        return time.shallow_clone();
    }
    time * factor / (time * (factor - 1.0) + 1.0)
}

/// Mean squared error of a `velocity(x, t)` at `time` on the path from `clean` to `noise`.
///
/// # Shapes
/// - `clean`, `noise`: `[batch, c, t, h, w]`; `time`: `[batch]`; output a scalar
pub fn loss(
    velocity: impl FnOnce(&Tensor, &Tensor) -> Tensor,
    clean: &Tensor,
    noise: &Tensor,
    time: &Tensor,
) -> Tensor {
    let found = velocity(&noised(clean, noise, time), time);
    found.mse_loss(&target(clean, noise), tch::Reduction::Mean)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::seeded::{generator, normal};
    use tch::{Device, Kind};

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
    fn times_shift_as_numbers_do() {
        let times = Tensor::from_slice(&[1.0f64, 0.75, 0.5, 0.25, 0.0]);
        let moved = Vec::<f64>::try_from(shifted(&times, 5.0)).unwrap();
        for (moved, wanted) in moved.iter().zip([1.0, 0.9375, 5.0 / 6.0, 0.625, 0.0]) {
            assert!((moved - wanted).abs() < 1e-12, "{moved}");
        }
        let r = shift_of(TimestepShift::Resolution, &[2, 4, 15, 64, 64]);
        assert!((r - 15f64.sqrt()).abs() < 1e-12, "{r}");
    }

    #[test]
    fn drawn_times_have_the_asked_logit() {
        let times = logit_normal(&mut generator(1, 0), 20_000, 0.5, 0.8).to_kind(Kind::Double);
        let logits = times.logit(None::<f64>);
        assert!((logits.mean(Kind::Double).double_value(&[]) - 0.5).abs() < 0.03);
        assert!((logits.std(true).double_value(&[]) - 0.8).abs() < 0.03);
    }
}

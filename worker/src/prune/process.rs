//! How noise is added, and what is predicted of it: the diffusion of Stable Diffusion's UNet, and rectified flow.

use std::sync::LazyLock;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use search_spaces::{Prediction, TrainingSettings};
use tch::{Kind, Tensor};

use crate::models::seeded::normal_from;
use crate::train::{Flow, Noised};

/// Steps of the diffusion.
const STEPS: usize = 1000;
/// First and last share of noise that a step adds (Stable Diffusion's `scaled_linear`: linear in the root).
const BETAS: (f64, f64) = (0.00085, 0.012);

/// How noise is added, and at which times a UNet is trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Process {
    /// `x_n = √ᾱ_n x₀ + √(1 − ᾱ_n) ε` with `n` uniform in 0..1000 and at time `n / 1000`; predicted is `ε` (Ho et al.
    /// 2020, eq. 4 and 14).
    Diffusion,
    /// `x_t = (1 − t) x₀ + t ε` with logit-normal `t`; predicted is `ε − x₀`.
    Flow(Flow),
}

impl Process {
    /// Of a UNet that learns to predict something.
    #[must_use]
    pub const fn of(prediction: Prediction, settings: &TrainingSettings) -> Self {
        match prediction {
            Prediction::Noise => Self::Diffusion,
            Prediction::Velocity => Self::Flow(Flow::new(settings)),
        }
    }

    /// Noises `clean`, `[b, c, t, h, w]`, at times drawn from `rng`.
    pub fn noised(&self, clean: &Tensor, rng: &mut ChaCha8Rng) -> Noised {
        match self {
            Self::Diffusion => diffused(clean, rng),
            Self::Flow(flow) => flow.noise(clean, rng),
        }
    }

    /// The question to a teacher that predicts `teacher` about latents noised by this process. One that predicts
    /// velocities can be asked about the flow only.
    pub fn question(&self, teacher: Prediction, noised: &Noised) -> Question {
        match (teacher, self) {
            (Prediction::Noise, Self::Flow(_)) => Question::of_flow(teacher, &noised.xs, &noised.time),
            _ => Question::plain(&noised.xs, &noised.time),
        }
    }
}

fn diffused(clean: &Tensor, rng: &mut ChaCha8Rng) -> Noised {
    let (count, device) = (clean.size()[0], clean.device());
    let steps: Vec<usize> = (0..count).map(|_| rng.random_range(0..STEPS)).collect();
    let noise = normal_from(rng, &clean.size(), device);
    let rooted = |value: fn(f64) -> f64| per_sample(steps.iter().map(|&n| value(SIGNAL[n]).sqrt()), clean);
    Noised {
        xs: clean * rooted(|signal| signal) + &noise * rooted(|signal| 1.0 - signal),
        time: column(steps.iter().map(|&n| n as f64 / STEPS as f64)).to_device(device),
        target: noise,
        judge: None,
    }
}

/// What a teacher is asked, and how its answer is to be read.
#[derive(Debug)]
pub struct Question {
    /// Its input.
    pub xs: Tensor,
    /// Its time.
    pub time: Tensor,
    /// `ᾱ` of each sample, where predicted noise is to be read as a velocity.
    signal: Option<Tensor>,
}

impl Question {
    /// To a teacher that predicts `teacher` about points of the flow, `[b, c, t, h, w]`, at times `[b]`.
    pub fn of_flow(teacher: Prediction, xs: &Tensor, time: &Tensor) -> Self {
        match teacher {
            Prediction::Noise => asked_of_diffusion(xs, time),
            Prediction::Velocity => Self::plain(xs, time),
        }
    }

    fn plain(xs: &Tensor, time: &Tensor) -> Self {
        Self {
            xs: xs.shallow_clone(),
            time: time.shallow_clone(),
            signal: None,
        }
    }

    /// The teacher's prediction as that of the student's process: from `ε̂`, with `x̂₀ = (x − √(1−ᾱ) ε̂) / √ᾱ`, the
    /// velocity `ε̂ − x̂₀`.
    pub fn read(&self, prediction: Tensor) -> Tensor {
        match &self.signal {
            None => prediction,
            Some(signal) => {
                let noise_share: Tensor = 1.0 - signal;
                let noise = &prediction * noise_share.sqrt();
                prediction - (&self.xs - noise) / signal.sqrt()
            }
        }
    }
}

/// A point of the straight path as a point of the diffusion: where noise and data stand in the same ratio, at the
/// diffusion's scale. Beyond the diffusion's range its nearest end answers.
fn asked_of_diffusion(xs: &Tensor, time: &Tensor) -> Question {
    let times = Vec::<f64>::try_from(time.to_kind(Kind::Double)).unwrap_or_default();
    let steps: Vec<f64> = times.iter().map(|&t| step_of(t / (1.0 - t))).collect();
    let ratio = |step: &f64| ratio_at(*step);
    let norm = times.iter().map(|&t| 1.0 / (1.0 - t).hypot(t));
    Question {
        xs: xs * per_sample(norm, xs),
        time: column(steps.iter().map(|step| step / STEPS as f64)).to_device(xs.device()),
        signal: Some(per_sample(
            steps.iter().map(ratio).map(|ratio| 1.0 / (1.0 + ratio * ratio)),
            xs,
        )),
    }
}

/// `ᾱ_n`, the share of the data's variance that is left after step `n`.
static SIGNAL: LazyLock<Vec<f64>> = LazyLock::new(|| {
    let (first, last) = (BETAS.0.sqrt(), BETAS.1.sqrt());
    let mut signal = 1.0;
    (0..STEPS)
        .map(|n| {
            let root = first + (last - first) * n as f64 / (STEPS - 1) as f64;
            signal *= 1.0 - root * root;
            signal
        })
        .collect()
});

/// Noise over data, `√((1 − ᾱ) / ᾱ)`, between two steps by its logarithm.
fn ratio_at(step: f64) -> f64 {
    let log = |n: usize| ((1.0 - SIGNAL[n]) / SIGNAL[n]).ln() / 2.0;
    let below = (step as usize).min(STEPS - 2);
    let share = step - below as f64;
    ((1.0 - share) * log(below) + share * log(below + 1)).exp()
}

/// The step, between two where need be, with this ratio of noise to data; the nearest where there is none.
fn step_of(ratio: f64) -> f64 {
    let above = SIGNAL.partition_point(|signal| (1.0 - signal) / signal < ratio * ratio);
    if above == 0 {
        return 0.0;
    }
    if above == STEPS {
        return (STEPS - 1) as f64;
    }
    let [low, high] = [above - 1, above].map(|n| ratio_at(n as f64).ln());
    (above - 1) as f64 + (ratio.ln() - low) / (high - low)
}

fn column(values: impl Iterator<Item = f64>) -> Tensor {
    Tensor::from_slice(&values.map(|value| value as f32).collect::<Vec<_>>())
}

/// One number a sample, in a shape that multiplies `like`.
fn per_sample(values: impl Iterator<Item = f64>, like: &Tensor) -> Tensor {
    let mut shape = vec![1; like.dim()];
    shape[0] = -1;
    column(values).to_device(like.device()).reshape(&shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::seeded::{distance, generator, normal};
    use tch::Device;

    fn flow() -> Process {
        Process::of(Prediction::Velocity, &crate::prune::tests::settings())
    }

    /// The sum of all β in closed form bounds the logarithm of the last ᾱ; its square root and that of the first are
    /// the largest and smallest ratio of noise known of Stable Diffusion, 14.6146 and 0.0292.
    #[test]
    fn the_schedule_is_stable_diffusions() {
        assert!((SIGNAL[0] - (1.0 - 0.00085)).abs() < 1e-12);
        let (a, n) = (0.00085_f64.sqrt(), 1000.0);
        let d = (0.012_f64.sqrt() - a) / (n - 1.0);
        let sum = n * a * a + a * d * n * (n - 1.0) + d * d * (n - 1.0) * n * (2.0 * n - 1.0) / 6.0;
        // −β − β²/2 · (1 + β) < ln(1 − β) < −β, for β up to 0.012.
        let log = SIGNAL[999].ln();
        assert!(log < -sum && log > -sum - 0.012 * sum / 2.0 * 1.012, "{log} {sum}");
        assert!((ratio_at(999.0) - 14.6146).abs() < 1e-3, "{}", ratio_at(999.0));
        assert!((ratio_at(0.0) - 0.0292).abs() < 1e-4, "{}", ratio_at(0.0));
        assert!(SIGNAL.is_sorted_by(|a, b| a > b));
    }

    #[test]
    fn a_step_is_found_by_its_ratio_of_noise() {
        for step in [0.0, 0.25, 17.0, 400.5, 998.75, 999.0] {
            assert!((step_of(ratio_at(step)) - step).abs() < 1e-9, "{step}");
        }
        assert_eq!(step_of(1e-6), 0.0);
        assert_eq!(step_of(f64::INFINITY), 999.0);
    }

    /// Of noised zeros the variance is that of the noise, of noised ones the mean that of the data.
    #[test]
    fn noise_is_added_as_the_schedule_says() {
        let ones = Tensor::ones([4, 4, 1, 40, 40], (Kind::Float, Device::Cpu));
        let noised = Process::Diffusion.noised(&ones, &mut generator(3, 0));
        for i in 0..4 {
            let n = (noised.time.double_value(&[i]) * 1000.0).round() as usize;
            let xs = noised.xs.get(i).to_kind(Kind::Double);
            assert!((xs.mean(Kind::Double).double_value(&[]) - SIGNAL[n].sqrt()).abs() < 0.05);
            assert!((xs.var(true).double_value(&[]) - (1.0 - SIGNAL[n])).abs() < 0.05);
            let back = (&xs - noised.target.get(i).to_kind(Kind::Double) * (1.0 - SIGNAL[n]).sqrt()) / SIGNAL[n].sqrt();
            assert!((back - 1.0).abs().max().double_value(&[]) < 1e-3);
        }
        let many = Tensor::zeros([4000, 1, 1, 1, 1], (Kind::Float, Device::Cpu));
        let steps = Process::Diffusion.noised(&many, &mut generator(4, 0)).time;
        assert!((steps.mean(Kind::Double).double_value(&[]) - 0.4995).abs() < 0.015);
        assert!(steps.max().double_value(&[]) < 1.0 && steps.min().double_value(&[]) >= 0.0);
    }

    /// Data N(m, s²): the best prediction of the noise and the velocity of the flow are both known, so the first must
    /// be read as the second.
    #[test]
    fn predicted_noise_is_read_as_the_velocity_of_the_flow() {
        let (m, s) = (0.7, 0.4);
        let time = Tensor::from_slice(&[0.03f32, 0.2, 0.5, 0.8, 0.93]);
        let xs = normal(&[5, 1, 1, 8, 8], 7, Device::Cpu);
        let noised = Noised {
            xs: xs.shallow_clone(),
            time: time.shallow_clone(),
            target: xs.zeros_like(),
            judge: None,
        };
        let flow = flow();
        let asked = flow.question(Prediction::Noise, &noised);
        // E[ε | x] for x = √ᾱ x₀ + √(1−ᾱ) ε.
        let signal = asked.time.to_kind(Kind::Double).reshape([5, 1, 1, 1, 1]) * 1000.0;
        let signal = Vec::<f64>::try_from(signal.flatten(0, -1)).unwrap();
        let signal = per_sample(signal.iter().map(|&n| 1.0 / (1.0 + ratio_at(n).powi(2))), &xs);
        let noise_share: Tensor = 1.0 - &signal;
        let variance = &signal * (s * s) + &noise_share;
        let noise = (&asked.xs - signal.sqrt() * m) * noise_share.sqrt() / variance;
        let velocity = asked.read(noise);
        // E[ε − x₀ | x] for x = (1 − t) x₀ + t ε.
        let t = time.reshape([5, 1, 1, 1, 1]);
        let data: Tensor = 1.0 - &t;
        let slope = (&t - &data * (s * s)) / (data.square() * (s * s) + t.square());
        let expected = (xs - data * m) * slope - m;
        assert!(
            distance(&velocity, &expected) < 1e-3,
            "{}",
            distance(&velocity, &expected)
        );
    }

    #[test]
    fn beyond_the_diffusions_range_its_ends_answer() {
        let flow = flow();
        let noised = Noised {
            xs: normal(&[2, 1, 1, 2, 2], 7, Device::Cpu),
            time: Tensor::from_slice(&[1e-7f32, 1.0]),
            target: Tensor::zeros([2, 1, 1, 2, 2], (Kind::Float, Device::Cpu)),
            judge: None,
        };
        let asked = flow.question(Prediction::Noise, &noised);
        assert_eq!(Vec::<f32>::try_from(&asked.time).unwrap(), [0.0, 0.999]);
        let velocity = asked.read(asked.xs.shallow_clone());
        assert!(velocity.isfinite().all().int64_value(&[]) == 1);
    }

    #[test]
    fn a_teacher_of_the_same_kind_is_asked_as_it_is() {
        let clean = normal(&[2, 1, 1, 2, 2], 7, Device::Cpu);
        for (process, teacher) in [(flow(), Prediction::Velocity), (Process::Diffusion, Prediction::Noise)] {
            let noised = process.noised(&clean, &mut generator(1, 0));
            let asked = process.question(teacher, &noised);
            assert_eq!((&asked.xs, &asked.time), (&noised.xs, &noised.time));
            assert_eq!(asked.read(clean.shallow_clone()), clean);
        }
    }
}

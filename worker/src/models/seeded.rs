//! Numbers drawn from a seed: the same on every run, whatever was drawn before them.
//!
//! libtorch's generator is one hidden state for the whole process. Draws here are named by (seed, stream) instead,
//! so a candidate's start does not depend on which layers stand beside it, and a resumed training draws what the
//! undisturbed one would have drawn.

use rand::RngExt;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use sha2::{Digest, Sha256};
use tch::{Device, Tensor, nn};

/// The generator of one stream of a seed.
pub fn generator(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

/// The stream that belongs to a name.
pub fn stream_of(name: &str) -> u64 {
    let digest = Sha256::digest(name.as_bytes());
    u64::from_le_bytes(std::array::from_fn(|i| digest[i]))
}

/// One draw of the standard normal distribution (Box and Muller 1958).
pub fn standard_normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

/// A float32 tensor of standard normal draws from `rng`.
pub fn normal_from(rng: &mut ChaCha8Rng, shape: &[i64], device: Device) -> Tensor {
    let count: i64 = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|_| standard_normal(rng) as f32).collect();
    Tensor::from_slice(&values).reshape(shape).to_device(device)
}

/// A float32 tensor of standard normal draws from the first stream of `seed`.
pub fn normal(shape: &[i64], seed: u64, device: Device) -> Tensor {
    normal_from(&mut generator(seed, 0), shape, device)
}

/// Redraws every random weight of a store from `seed` and the weight's name: uniform in ±1/√fan_in.
///
/// Weights that start as one value (norms, biases, zero projections) keep it.
pub fn seed_weights(vs: &nn::VarStore, seed: u64) {
    for (name, mut variable) in vs.variables() {
        let shape = variable.size();
        if shape.len() < 2 || bool::try_from(variable.eq_tensor(&variable.flatten(0, -1).get(0)).all()).unwrap_or(false)
        {
            continue;
        }
        let bound = 1.0 / (shape[1..].iter().product::<i64>() as f64).sqrt();
        let mut rng = generator(seed, stream_of(&name));
        let values: Vec<f32> = (0..variable.numel())
            .map(|_| ((2.0 * rng.random::<f64>() - 1.0) * bound) as f32)
            .collect();
        let drawn = Tensor::from_slice(&values).reshape(&shape);
        tch::no_grad(|| variable.copy_(&drawn));
    }
}

/// As [`seed_weights`], and draws around their value what starts as one value: a trained model has no projection of
/// zeros and no norm of ones.
pub fn seed_all_weights(vs: &nn::VarStore, seed: u64) {
    seed_weights(vs, seed);
    for (name, mut variable) in vs.variables() {
        let first = variable.flatten(0, -1).get(0);
        if bool::try_from(variable.eq_tensor(&first).all()).unwrap_or(false) {
            let around = normal_from(
                &mut generator(seed, stream_of(&name)),
                &variable.size(),
                variable.device(),
            ) * 0.1;
            tch::no_grad(|| variable += around);
        }
        let _ = variable.set_requires_grad(false);
    }
}

/// Largest absolute difference of two tensors.
#[cfg(test)]
pub(crate) fn distance(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().to_kind(tch::Kind::Double).double_value(&[])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::norm::{Start, linear};
    use tch::Kind;

    #[test]
    fn a_weight_depends_on_its_seed_and_name_only() {
        let alone = nn::VarStore::new(Device::Cpu);
        let layer = linear(alone.root() / "b", 4, 3, true, Start::Random);
        seed_weights(&alone, 9);
        let beside = nn::VarStore::new(Device::Cpu);
        let _other = linear(beside.root() / "a", 5, 5, true, Start::Random);
        let same = linear(beside.root() / "b", 4, 3, true, Start::Random);
        seed_weights(&beside, 9);
        assert_eq!(distance(&layer.ws, &same.ws), 0.0);
        seed_weights(&beside, 10);
        assert!(distance(&layer.ws, &same.ws) > 0.0);
    }

    #[test]
    fn constant_starts_stay() {
        let vs = nn::VarStore::new(Device::Cpu);
        let layer = linear(vs.root(), 4, 3, true, Start::Zero);
        seed_weights(&vs, 9);
        assert_eq!(layer.ws.abs().max().double_value(&[]), 0.0);
    }

    #[test]
    fn normal_draws_have_mean_zero_and_variance_one() {
        let xs = normal(&[20_000], 4, Device::Cpu).to_kind(Kind::Double);
        assert!(xs.mean(Kind::Double).double_value(&[]).abs() < 0.03);
        assert!((xs.var(true).double_value(&[]) - 1.0).abs() < 0.04);
    }
}

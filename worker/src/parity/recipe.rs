//! Numbers that any language draws alike, for weights and inputs that two implementations share.
//!
//! The stream of a name is SplitMix64 (Steele, Lea & Flood 2014) started at the 64-bit FNV-1a hash of `seed/name`; the
//! upper 24 bits of each draw, divided by 2²³ and less 1, are a number in [−1, 1) that float32 holds exactly.
//! `scripts/parity_recipe.py` is the same in Python.

use tch::{Kind, Tensor};

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Draws of one name: 64 bits each.
fn bits(seed: u64, name: &str) -> impl Iterator<Item = u64> {
    let start = format!("{seed}/{name}")
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
        });
    (1..).map(move |i: u64| {
        let z = start.wrapping_add(i.wrapping_mul(GOLDEN));
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}

/// Uniform numbers in [−1, 1) of one name.
fn uniform(seed: u64, name: &str) -> impl Iterator<Item = f64> {
    bits(seed, name).map(|bits| (bits >> 40) as f64 / 8_388_608.0 - 1.0)
}

fn tensor(shape: &[i64], values: impl Iterator<Item = f64>) -> Tensor {
    let count: i64 = shape.iter().product();
    let values: Vec<f32> = values.take(count as usize).map(|value| value as f32).collect();
    Tensor::from_slice(&values).reshape(shape)
}

/// A weight by its name and shape: biases within ±0.1, other vectors (of norms) within 1 ± 0.25, the rest of variance
/// 1 / fan-in, so that neither activations nor gradients vanish or blow up. Float32.
pub fn weight(seed: u64, name: &str, shape: &[i64]) -> Tensor {
    let (center, reach) = if name.ends_with("bias") {
        (0.0, 0.1)
    } else if shape.len() < 2 {
        (1.0, 0.25)
    } else {
        let fan_in: i64 = shape[1..].iter().product();
        (0.0, (3.0 / fan_in as f64).sqrt())
    };
    tensor(shape, uniform(seed, name).map(|u| center + reach * u))
}

/// An input of mean 0 and variance 1. Float32.
pub fn input(seed: u64, name: &str, shape: &[i64]) -> Tensor {
    tensor(shape, uniform(seed, name).map(|u| 3f64.sqrt() * u))
}

/// Whole numbers from 0 to below `limit`. Int64.
pub fn below(limit: u64, seed: u64, name: &str, shape: &[i64]) -> Tensor {
    let count: i64 = shape.iter().product();
    let values: Vec<i64> = bits(seed, name)
        .take(count as usize)
        .map(|bits| ((bits >> 40) % limit) as i64)
        .collect();
    Tensor::from_slice(&values).to_kind(Kind::Int64).reshape(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values from a few lines of Python over its unbounded integers.
    #[test]
    fn draws_are_those_of_plain_integer_arithmetic() {
        let name = "conv_in.weight";
        let upper: Vec<u64> = bits(7, name).take(4).map(|bits| bits >> 40).collect();
        assert_eq!(upper, [2_012_486, 10_793_223, 656_269, 14_646_667]);
        let first = uniform(7, name).next().unwrap_or_default();
        assert_eq!(first, -0.760_092_973_709_106_4);
        assert_eq!(Vec::<i64>::try_from(below(10, 7, name, &[4])).unwrap(), [6, 3, 9, 7]);
    }

    #[test]
    fn weights_have_the_reach_of_their_kind() {
        let range = |name: &str, shape: &[i64]| {
            let drawn = weight(1, name, shape);
            [drawn.min().double_value(&[]), drawn.max().double_value(&[])]
        };
        for (name, shape, low, high) in [
            ("conv.bias", vec![4000], -0.1, 0.1),
            ("norm.weight", vec![4000], 0.75, 1.25),
            ("conv.weight", vec![100, 3, 3, 3], -1.0 / 3.0, 1.0 / 3.0),
        ] {
            let [min, max] = range(name, &shape);
            let slack = 0.01 * (high - low);
            assert!(
                min >= low && min < low + slack && max <= high && max > high - slack,
                "{name}: {min} to {max}"
            );
        }
    }
}

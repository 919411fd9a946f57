//! Inputs of a graph, drawn from a seed.

use half::f16;
use ort::session::SessionInputValue;
use ort::value::{DynValue, Tensor};
use protocol::jobs::TensorSpec;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Elements that one input may have: enough for any clip, and far from what an index overflows at.
const MOST_ELEMENTS: u64 = 1 << 33;

/// Values between −1 and 1, and the tokens 0 and 1, which every vocabulary has.
///
/// # Errors
/// Names the input that cannot be made, and what was found.
pub fn draw(specs: &[TensorSpec], seed: u64) -> Result<Vec<(String, DynValue)>, String> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let one = |spec: &TensorSpec| {
        let at_fault = |problem: String| format!("input `{}`: {problem}", spec.name);
        let size = spec.shape.iter().try_fold(1_u64, |all, size| all.checked_mul(*size));
        let count = size.filter(|size| (1..=MOST_ELEMENTS).contains(size));
        let count = count.ok_or_else(|| at_fault(format!("its shape is {:?}", spec.shape)))? as usize;
        let shape: Vec<usize> = spec.shape.iter().map(|size| *size as usize).collect();
        let value = match spec.dtype.as_str() {
            "f32" => {
                let values: Vec<f32> = (0..count).map(|_| rng.random_range(-1.0..1.0)).collect();
                Tensor::from_array((shape, values)).map(Tensor::into_dyn)
            }
            "f16" => {
                let values: Vec<f16> = (0..count).map(|_| f16::from_f32(rng.random_range(-1.0..1.0))).collect();
                Tensor::from_array((shape, values)).map(Tensor::into_dyn)
            }
            "i64" => {
                let values: Vec<i64> = (0..count).map(|_| rng.random_range(0..2)).collect();
                Tensor::from_array((shape, values)).map(Tensor::into_dyn)
            }
            other => return Err(at_fault(format!("number format `{other}`; allowed: f32, f16, i64"))),
        };
        let value = value.map_err(|error| at_fault(error.to_string()))?;
        Ok((spec.name.clone(), value))
    };
    specs.iter().map(one).collect()
}

/// The inputs as a session takes them.
pub fn views(inputs: &[(String, DynValue)]) -> Vec<(String, SessionInputValue<'_>)> {
    inputs
        .iter()
        .map(|(name, value)| (name.clone(), SessionInputValue::from(value)))
        .collect()
}

//! A graph's outputs against libtorch's.

use tch::{Kind, Tensor};

use super::{OnnxError, Precision, Runtime, Written};

/// How far an output may be off: largest difference over largest value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance(f64);

impl Tolerance {
    /// 10⁻³ in binary32, 10⁻² in binary16.
    #[must_use]
    pub const fn of(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self(1e-3),
            Precision::F16 => Self(1e-2),
        }
    }
}

/// `max|found − expected| / max|expected|`; 0 where both are all zero, infinite where a number is none.
#[must_use]
pub fn relative_error(found: &Tensor, expected: &Tensor) -> f64 {
    if found.size() != expected.size() {
        return f64::INFINITY;
    }
    let (found, expected) = (found.to_kind(Kind::Double), expected.to_kind(Kind::Double));
    let largest = |tensor: Tensor| tensor.abs().max().double_value(&[]);
    let (off, size) = (largest(&found - &expected), largest(expected));
    let ratio = if off == 0.0 { 0.0 } else { off / size };
    if ratio.is_nan() { f64::INFINITY } else { ratio }
}

impl Runtime {
    /// Runs a written graph on inputs by name, of which it takes those it has, and holds each output against libtorch's
    /// of the same name. Returns the largest relative error.
    ///
    /// Floating-point inputs are given in the graph's number format.
    ///
    /// # Errors
    /// Where the graph does not run, or an output is off by more than `tolerance`.
    pub fn verify(
        &self,
        graph: &Written,
        inputs: &[(&str, &Tensor)],
        expected: &[(&str, &Tensor)],
        tolerance: Tolerance,
        threads: usize,
    ) -> Result<f64, OnnxError> {
        let mut given = Vec::new();
        for spec in &graph.inputs {
            let found = inputs.iter().find(|(name, _)| *name == spec.name);
            let (_, tensor) = found.ok_or_else(|| graph.said(format!("no input `{}` was given", spec.name)))?;
            let kind = match spec.dtype.as_str() {
                "f16" => Kind::Half,
                "f32" => Kind::Float,
                _ => Kind::Int64,
            };
            given.push((spec.name.clone(), tensor.to_kind(kind)));
        }
        let found = self.session(graph, threads)?.run(&given)?;
        let mut worst: f64 = 0.0;
        for (spec, found) in graph.outputs.iter().zip(&found) {
            let expected = expected.iter().find(|(name, _)| *name == spec.name);
            let (_, expected) =
                expected.ok_or_else(|| graph.said(format!("nothing to hold `{}` against", spec.name)))?;
            let error = relative_error(found, expected);
            if error > tolerance.0 {
                return Err(OnnxError::Differs {
                    graph: graph.name.clone(),
                    output: spec.name.clone(),
                    found: error,
                    allowed: tolerance.0,
                });
            }
            worst = worst.max(error);
        }
        Ok(worst)
    }
}

impl Written {
    fn said(&self, problem: String) -> OnnxError {
        OnnxError::Graph {
            graph: self.name.clone(),
            problem,
        }
    }
}

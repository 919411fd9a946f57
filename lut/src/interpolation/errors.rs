//! How well left-out entries are predicted from the others.

use std::collections::BTreeMap;

use search_spaces::{Block, Shape};
use serde::{Deserialize, Serialize};

use super::{Axis, neighbours::Around};
use crate::{EntryState, Lut, samples};

/// Sizes of relative errors.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ErrorSummary {
    /// Entries that could be left out.
    pub cases: usize,
    /// Mean of |predicted − measured| / measured (MAPE as a fraction).
    pub mean: f64,
    /// Median of it.
    pub p50: f64,
    /// 95 % quantile of it.
    pub p95: f64,
    /// Share of the cases within ±10 %.
    pub within_10_percent: f64,
}

/// How well one operator is predicted between neighbours that differ in some dimensions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeaveOut {
    /// Operator.
    pub operator: String,
    /// Dimensions in which the neighbours differ.
    pub over: Vec<String>,
    /// What latency is taken to be linear in.
    pub latency_axis: Axis,
    /// Errors of latency.
    pub latency: ErrorSummary,
    /// What peak memory is taken to be linear in.
    pub peak_memory_axis: Axis,
    /// Errors of peak memory, where it was measured.
    pub peak_memory: Option<ErrorSummary>,
}

impl ErrorSummary {
    pub(crate) fn of(errors: &[f64]) -> Option<Self> {
        Some(Self {
            cases: errors.len(),
            mean: errors.iter().sum::<f64>() / errors.len() as f64,
            p50: samples::quantile(errors, 0.5)?,
            p95: samples::quantile(errors, 0.95)?,
            within_10_percent: errors.iter().filter(|error| **error <= 0.1).count() as f64 / errors.len() as f64,
        })
    }
}

/// Predicts every measured entry from the others and sums up the errors.
pub(crate) fn leave_out(lut: &Lut) -> Vec<LeaveOut> {
    lut.operators()
        .flat_map(|(operator, shapes)| leave_out_of(lut, operator, shapes))
        .collect()
}

fn leave_out_of(lut: &Lut, operator: &str, shapes: &BTreeMap<Shape, EntryState>) -> Vec<LeaveOut> {
    let mut cases: BTreeMap<Vec<String>, Cases> = BTreeMap::new();
    for (shape, state) in shapes {
        let EntryState::Measured(measurement) = state else {
            continue;
        };
        let Some(measured) = lut.cost(measurement) else {
            continue;
        };
        let block = Block {
            operator: operator.to_owned(),
            shape: shape.clone(),
        };
        let around = Around::of(lut, shapes, &block);
        let Some(bracket) = around.bracket() else { continue };
        let cases = cases.entry(bracket.over.clone()).or_default();
        for &axis in bracket.axes() {
            cases
                .latency
                .add(axis, bracket.latency(axis).value, measured.latency_ms.value);
            if let (Some(predicted), Some(measured)) = (bracket.peak_memory(axis), measured.peak_memory_bytes) {
                cases.peak_memory.add(axis, predicted.value, measured.value);
            }
        }
    }
    let of_case = |(over, cases): (Vec<String>, Cases)| {
        let (latency_axis, latency) = cases.latency.best()?;
        let peak_memory = cases.peak_memory.best();
        Some(LeaveOut {
            operator: operator.to_owned(),
            over,
            latency_axis,
            latency,
            peak_memory_axis: peak_memory.map_or(latency_axis, |(axis, _)| axis),
            peak_memory: peak_memory.map(|(_, errors)| errors),
        })
    };
    cases.into_iter().filter_map(of_case).collect()
}

/// Relative errors of left-out entries, for each axis.
#[derive(Default)]
struct Cases {
    latency: Errors,
    peak_memory: Errors,
}

#[derive(Default)]
struct Errors(BTreeMap<Axis, Vec<f64>>);

impl Errors {
    fn add(&mut self, axis: Axis, predicted: f64, measured: f64) {
        if measured > 0.0 {
            self.0
                .entry(axis)
                .or_default()
                .push((predicted - measured).abs() / measured);
        }
    }

    /// The axis with the smallest mean error; the first of equals.
    fn best(&self) -> Option<(Axis, ErrorSummary)> {
        let summaries = self
            .0
            .iter()
            .filter_map(|(axis, errors)| Some((*axis, ErrorSummary::of(errors)?)));
        summaries.min_by(|(_, a), (_, b)| a.mean.total_cmp(&b.mean))
    }
}

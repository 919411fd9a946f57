//! Costs of blocks that were not measured, from measured blocks of the same operator in the same table.
//!
//! Two neighbours enclose a block when one is nowhere larger and the other nowhere smaller, and they differ
//! from it in few dimensions. Between them the cost is linear in the operator's own work (multiply-accumulates,
//! bytes moved, activation bytes; whichever predicts left-out entries best), so an operator whose work grows
//! with the square of its input is not drawn as a line over the input's area. Where the work is not known it
//! is the product of the one or two dimensions that vary.

mod errors;
mod neighbours;

use std::collections::BTreeMap;

use search_spaces::{Block, Estimate, Shape, Work};
use serde::{Deserialize, Serialize};

use crate::{Cost, EntryState, Extrapolation, Lookup, Lut, Missing};
use neighbours::{Around, Relative, product};

pub(crate) use errors::leave_out;
pub use errors::{ErrorSummary, LeaveOut};

/// Leave-out cases from which an error is believed.
const ENOUGH_CASES: usize = 3;

/// Two-sided 95 % point of the normal law.
const NORMAL_95: f64 = 1.96;

/// What a cost is taken to be linear in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// Multiply-accumulates.
    Macs,
    /// Bytes read and written.
    BytesMoved,
    /// Bytes of activations.
    ActivationBytes,
    /// Product of the dimensions that vary.
    Product,
}

impl Axis {
    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Macs => "macs",
            Self::BytesMoved => "bytes_moved",
            Self::ActivationBytes => "activation_bytes",
            Self::Product => "product",
        }
    }
}

/// Answers for a block that has no figure of its own.
pub(crate) fn lookup(
    lut: &Lut,
    shapes: &BTreeMap<Shape, EntryState>,
    block: &Block,
    extrapolation: Extrapolation,
) -> Lookup {
    let around = Around::of(lut, shapes, block);
    // A larger shape that ran proves that this one fits, whatever happened to a smaller one.
    if let (Some(shape), []) = (around.full_below, around.above.as_slice()) {
        return Lookup::OutOfMemory {
            detail: format!("{} already ran out of memory at {shape}", block.operator),
        };
    }
    if let Some(bracket) = around.bracket() {
        let errors = lut.leave_out_errors();
        let known = errors
            .iter()
            .find(|error| error.operator == block.operator && error.over == bracket.over);
        return Lookup::Interpolated(bracket.cost(known), known.map(|known| known.latency));
    }
    let (operator, shape, nearest) = (block.operator.clone(), block.shape.to_string(), around.describe());
    match extrapolation {
        Extrapolation::Refused => Lookup::Missing(Missing::Outside {
            operator,
            shape,
            nearest,
        }),
        Extrapolation::Allowed => match around.extrapolate() {
            Some(cost) => Lookup::Extrapolated(cost),
            None => Lookup::Missing(Missing::TooFewNeighbours {
                operator,
                shape,
                nearest,
            }),
        },
    }
}

/// Two measured shapes and the line between them.
struct Bracket<'a> {
    block: &'a Block,
    work: Option<Work>,
    below: &'a Relative<'a>,
    above: &'a Relative<'a>,
    over: Vec<String>,
    mask: u32,
}

impl Bracket<'_> {
    fn axes(&self) -> &'static [Axis] {
        match (self.work, self.below.work, self.above.work) {
            (Some(_), Some(_), Some(_)) => &[Axis::Macs, Axis::BytesMoved, Axis::ActivationBytes],
            _ => &[Axis::Product],
        }
    }

    /// Where the block stands between its neighbours on `axis`: 0 at the lower, 1 at the upper one.
    fn place(&self, axis: Axis) -> f64 {
        let at = |shape: &Shape, work: Option<Work>| match (axis, work) {
            (Axis::Macs, Some(work)) => work.macs as f64,
            (Axis::BytesMoved, Some(work)) => work.bytes_moved as f64,
            (Axis::ActivationBytes, Some(work)) => work.activation_bytes as f64,
            (Axis::Product, _) | (_, None) => product(shape, self.mask),
        };
        let low = at(self.below.shape, self.below.work);
        let high = at(self.above.shape, self.above.work);
        if high == low {
            0.5
        } else {
            (at(&self.block.shape, self.work) - low) / (high - low)
        }
    }

    fn latency(&self, axis: Axis) -> Estimate {
        between(self.below.cost.latency_ms, self.above.cost.latency_ms, self.place(axis))
    }

    fn peak_memory(&self, axis: Axis) -> Option<Estimate> {
        let (below, above) = (self.below.cost.peak_memory_bytes?, self.above.cost.peak_memory_bytes?);
        Some(between(below, above, self.place(axis)))
    }

    /// The block's cost, on the axes that predict best. Its doubt is the leave-out error; before enough
    /// entries could be left out, that of a value which may lie anywhere between the neighbours.
    fn cost(&self, known: Option<&LeaveOut>) -> Cost {
        let first = self.axes()[0];
        let last = self.axes()[self.axes().len() - 1];
        let latency_axis = known.map_or(first, |known| known.latency_axis);
        let memory_axis = known
            .filter(|known| known.peak_memory.is_some())
            .map_or(last, |known| known.peak_memory_axis);
        let doubted = |estimate: Estimate, below: Estimate, above: Estimate, errors: Option<ErrorSummary>| {
            let doubt = match errors.filter(|errors| errors.cases >= ENOUGH_CASES) {
                Some(errors) => estimate.value * errors.p95 / NORMAL_95,
                None => (above.value - below.value).abs() / 12.0_f64.sqrt(),
            };
            Estimate {
                standard_error: estimate.standard_error.hypot(doubt),
                ..estimate
            }
        };
        let (below, above) = (self.below.cost, self.above.cost);
        let latency_ms = doubted(
            self.latency(latency_axis),
            below.latency_ms,
            above.latency_ms,
            known.map(|known| known.latency),
        );
        let peak_memory_bytes = self
            .peak_memory(memory_axis)
            .zip(below.peak_memory_bytes)
            .zip(above.peak_memory_bytes);
        let peak_memory_bytes = peak_memory_bytes.map(|((estimate, below), above)| {
            doubted(estimate, below, above, known.and_then(|known| known.peak_memory))
        });
        Cost {
            latency_ms,
            peak_memory_bytes,
        }
    }

    /// The block's cost beyond `above`, the nearer neighbour; the step from there is its doubt.
    fn beyond(&self) -> Cost {
        let doubted = |estimate: Estimate, near: Estimate| Estimate {
            value: estimate.value.max(0.0),
            standard_error: estimate.standard_error.hypot(estimate.value - near.value),
        };
        let memory_axis = self.axes()[self.axes().len() - 1];
        Cost {
            latency_ms: doubted(self.latency(self.axes()[0]), self.above.cost.latency_ms),
            peak_memory_bytes: self
                .peak_memory(memory_axis)
                .zip(self.above.cost.peak_memory_bytes)
                .map(|(estimate, near)| doubted(estimate, near)),
        }
    }
}

/// The point at `place` on the line from `below` to `above`, whose errors are independent.
fn between(below: Estimate, above: Estimate, place: f64) -> Estimate {
    Estimate {
        value: below.value + (above.value - below.value) * place,
        standard_error: ((1.0 - place) * below.standard_error).hypot(place * above.standard_error),
    }
}

#[cfg(test)]
mod tests;

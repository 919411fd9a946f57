//! Costs of blocks that were not measured, from measured blocks of the same operator in the same table.
//!
//! Two neighbours enclose a block when one is nowhere larger and the other nowhere smaller, and they differ
//! from it in few dimensions. Between them the cost is linear in the operator's own work (multiply-accumulates,
//! bytes moved, activation bytes; whichever predicts left-out entries best), so an operator whose work grows
//! with the square of its input is not drawn as a line over the input's area. Where the work is not known it
//! is the product of the one or two dimensions that vary.

use std::collections::{BTreeMap, BTreeSet};

use search_spaces::{Block, Dtype, Estimate, Shape, Work, work};
use serde::{Deserialize, Serialize};

use crate::{Cost, EntryState, Extrapolation, Lookup, Lut, Missing, samples};

/// Dimensions of the input that grow without changing the layer. They are interpolated over first: the same
/// weights on more data are a nearer relative than other weights.
const EXTENTS: [&str; 5] = ["h", "w", "t", "l", "b"];

/// Most dimensions in which neighbours may differ when the operator's work is known, and when it is not.
const VARYING_WITH_WORK: u32 = 3;
const VARYING_WITHOUT_WORK: u32 = 2;

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

/// A measured relative of a block: nowhere larger, or nowhere smaller.
struct Relative<'a> {
    shape: &'a Shape,
    cost: Cost,
    work: Option<Work>,
    /// Bit i: dimension i of the block differs.
    differs: u32,
}

/// What was measured around a block.
struct Around<'a> {
    block: &'a Block,
    dtype: Dtype,
    work: Option<Work>,
    below: Vec<Relative<'a>>,
    above: Vec<Relative<'a>>,
    /// A shape, nowhere larger than the block's, that ran out of memory.
    full_below: Option<&'a Shape>,
    /// A shape, nowhere smaller, that did.
    full_above: Option<&'a Shape>,
}

enum Side {
    Below,
    Above,
}

impl<'a> Around<'a> {
    fn of(lut: &Lut, shapes: &'a BTreeMap<Shape, EntryState>, block: &'a Block) -> Self {
        let dtype = lut.dtype();
        let own_work = work(block, dtype);
        let most = if own_work.is_some() {
            VARYING_WITH_WORK
        } else {
            VARYING_WITHOUT_WORK
        };
        let (below, above) = (Vec::new(), Vec::new());
        let mut around = Self {
            block,
            dtype,
            work: own_work,
            below,
            above,
            full_below: None,
            full_above: None,
        };
        for (shape, state) in shapes {
            let Some((side, differs)) = compare(shape, &block.shape, most) else {
                continue;
            };
            match (state, side) {
                (EntryState::Measured(measurement), side) => {
                    let Some(cost) = lut.cost(measurement) else { continue };
                    let work = own_work.and_then(|_| around.work_at(shape));
                    let relatives = match side {
                        Side::Below => &mut around.below,
                        Side::Above => &mut around.above,
                    };
                    relatives.push(Relative {
                        shape,
                        cost,
                        work,
                        differs,
                    });
                }
                (EntryState::OutOfMemory { .. }, Side::Below) => around.full_below = Some(shape),
                (EntryState::OutOfMemory { .. }, Side::Above) => around.full_above = Some(shape),
                (EntryState::Unsupported { .. }, _) => {}
            }
        }
        around
    }

    fn work_at(&self, shape: &Shape) -> Option<Work> {
        work(
            &Block {
                operator: self.block.operator.clone(),
                shape: shape.clone(),
            },
            self.dtype,
        )
    }

    /// The nearest enclosing pair over the most closely related dimensions.
    fn bracket(&self) -> Option<Bracket<'_>> {
        let (below, above) = (differences(&self.below), differences(&self.above));
        let unions: BTreeSet<u32> = below.iter().flat_map(|b| above.iter().map(move |a| a | b)).collect();
        let over = unions
            .into_iter()
            .filter(|over| over.count_ones() <= self.most())
            .min_by_key(|&over| self.distance(over))?;
        let size = |relative: &&Relative<'_>| self.size(relative, over);
        let nearest_below = self
            .below
            .iter()
            .filter(|r| r.differs & !over == 0)
            .max_by(|a, b| size(a).total_cmp(&size(b)))?;
        let nearest_above = self
            .above
            .iter()
            .filter(|r| r.differs & !over == 0)
            .min_by(|a, b| size(a).total_cmp(&size(b)))?;
        Some(Bracket {
            block: self.block,
            work: self.work,
            below: nearest_below,
            above: nearest_above,
            over: self.names(over),
            mask: over,
        })
    }

    /// The line through the two nearest shapes on one side, wherever two stand in the same dimensions.
    fn extrapolate(&self) -> Option<Cost> {
        let of_side = |relatives: &'_ [Relative<'_>], nearest_is_largest: bool| {
            let mut sets: Vec<u32> = differences(relatives).into_iter().collect();
            sets.sort_by_key(|&over| self.distance(over));
            sets.into_iter().find_map(|over| {
                let mut within: Vec<&Relative<'_>> = relatives.iter().filter(|r| r.differs & !over == 0).collect();
                within.sort_by(|a, b| self.size(a, over).total_cmp(&self.size(b, over)));
                if nearest_is_largest {
                    within.reverse();
                }
                let near = within.first()?;
                let far = within.iter().find(|r| self.size(r, over) != self.size(near, over))?;
                let bracket = Bracket {
                    block: self.block,
                    work: self.work,
                    below: far,
                    above: near,
                    over: self.names(over),
                    mask: over,
                };
                Some(bracket.beyond())
            })
        };
        of_side(&self.below, true).or_else(|| of_side(&self.above, false))
    }

    fn most(&self) -> u32 {
        if self.work.is_some() {
            VARYING_WITH_WORK
        } else {
            VARYING_WITHOUT_WORK
        }
    }

    /// Order of preference between sets of varying dimensions: fewest that change the layer, then fewest.
    fn distance(&self, over: u32) -> (usize, u32, u32) {
        let names = self.names(over);
        (
            names.iter().filter(|name| !EXTENTS.contains(&name.as_str())).count(),
            over.count_ones(),
            over,
        )
    }

    fn names(&self, over: u32) -> Vec<String> {
        self.block
            .shape
            .iter()
            .enumerate()
            .filter(|(i, _)| over >> i & 1 == 1)
            .map(|(_, (name, _))| name.to_string())
            .collect()
    }

    fn size(&self, relative: &Relative<'_>, over: u32) -> f64 {
        relative
            .work
            .map_or_else(|| product(relative.shape, over), |work| work.macs as f64)
    }

    fn describe(&self) -> String {
        let side = |relatives: &[Relative<'_>], full: Option<&Shape>| match (relatives, full) {
            ([], Some(shape)) => format!("{shape} ran out of memory"),
            ([], None) => "none".to_owned(),
            (relatives, _) => {
                let nearest = relatives.iter().min_by_key(|relative| self.distance(relative.differs));
                nearest.map_or_else(String::new, |nearest| nearest.shape.to_string())
            }
        };
        format!(
            "smaller: {}; larger: {}",
            side(&self.below, self.full_below),
            side(&self.above, self.full_above)
        )
    }
}

fn differences(relatives: &[Relative<'_>]) -> BTreeSet<u32> {
    relatives.iter().map(|relative| relative.differs).collect()
}

/// On which side of `block` a shape stands and where it differs; none when it is larger here and smaller
/// there, has other dimensions, is the same, or differs in more than `most` dimensions.
fn compare(shape: &Shape, block: &Shape, most: u32) -> Option<(Side, u32)> {
    let (mut smaller, mut larger) = (0_u32, 0_u32);
    let (mut ours, mut theirs) = (block.iter(), shape.iter());
    for i in 0.. {
        match (ours.next(), theirs.next()) {
            (None, None) => break,
            (Some((name, size)), Some((other, found))) if name == other && i < u32::BITS => {
                smaller |= u32::from(found < size) << i;
                larger |= u32::from(found > size) << i;
            }
            _ => return None,
        }
        if smaller.count_ones() + larger.count_ones() > most || (smaller != 0 && larger != 0) {
            return None;
        }
    }
    match (smaller, larger) {
        (0, 0) => None,
        (smaller, 0) => Some((Side::Below, smaller)),
        (_, larger) => Some((Side::Above, larger)),
    }
}

fn product(shape: &Shape, over: u32) -> f64 {
    shape
        .iter()
        .enumerate()
        .filter(|(i, _)| over >> i & 1 == 1)
        .map(|(_, (_, size))| size as f64)
        .product()
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

//! The table of one device, runtime and number type, and what it answers.

use std::{collections::BTreeMap, sync::OnceLock};

use search_spaces::{Block, Dtype, Estimate, Shape};
use serde::{Deserialize, Serialize};

use crate::{
    Entry, EntryState, LutKey, Measurement, Runtime, Samples,
    interpolation::{self, ErrorSummary, LeaveOut},
    samples,
};

/// What one block costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// One forward pass, milliseconds.
    pub latency_ms: Estimate,
    /// Output and workspace, bytes; absent where the runtime cannot tell.
    pub peak_memory_bytes: Option<Estimate>,
}

/// Answer of a table to "what does this block cost?".
#[derive(Debug, Clone, PartialEq)]
pub enum Lookup {
    /// Measured at this very shape.
    Measured(Cost),
    /// Between two measured neighbours, with the leave-out error of such interpolations where one is known.
    Interpolated(Cost, Option<ErrorSummary>),
    /// Beyond what was measured; only when asked for.
    Extrapolated(Cost),
    /// It ran out of memory, here or at a smaller shape.
    OutOfMemory {
        /// What the runtime said, or which smaller shape failed.
        detail: String,
    },
    /// The runtime does not offer it.
    Unsupported {
        /// What the runtime said.
        detail: String,
    },
    /// The table does not tell.
    Missing(Missing),
}

/// Why a table does not tell.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// Nothing of this operator was measured.
    #[error("no entry of operator {operator:?} on {device}, {runtime}, {dtype}")]
    Operator {
        /// The operator asked for.
        operator: String,
        /// Device of the table.
        device: String,
        /// Runtime of the table.
        runtime: String,
        /// Number type of the table.
        dtype: String,
    },
    /// The operator was measured, but not on both sides of this shape with all else equal.
    #[error("{operator} at {shape} is outside what was measured ({nearest}); extrapolation was not asked for")]
    Outside {
        /// The operator asked for.
        operator: String,
        /// The shape asked for.
        shape: String,
        /// What stands around it.
        nearest: String,
    },
    /// Extrapolation was asked for, but needs two measured shapes that differ from this one in the same
    /// dimensions.
    #[error("{operator} at {shape} cannot be extrapolated: fewer than two measured neighbours on one side ({nearest})")]
    TooFewNeighbours {
        /// The operator asked for.
        operator: String,
        /// The shape asked for.
        shape: String,
        /// What stands around it.
        nearest: String,
    },
}

/// Whether a table may answer beyond what was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Extrapolation {
    /// It answers `Missing`.
    #[default]
    Refused,
    /// Linear in the operator's work from the two nearest shapes on one side, with the whole step as doubt.
    Allowed,
}

/// Entries of one device, runtime and number type.
#[derive(Debug, Clone)]
pub struct Lut {
    device: String,
    runtime: Runtime,
    dtype: Dtype,
    operators: BTreeMap<String, BTreeMap<Shape, EntryState>>,
    /// Computed from the entries when first needed, forgotten when they change.
    errors: OnceLock<Vec<LeaveOut>>,
    typical_spread: OnceLock<f64>,
}

impl PartialEq for Lut {
    fn eq(&self, other: &Self) -> bool {
        self.device == other.device
            && self.runtime == other.runtime
            && self.dtype == other.dtype
            && self.operators == other.operators
    }
}

impl Lut {
    /// An empty table.
    pub fn new(device: impl Into<String>, runtime: Runtime, dtype: Dtype) -> Self {
        Self {
            device: device.into(),
            runtime,
            dtype,
            operators: BTreeMap::new(),
            errors: OnceLock::new(),
            typical_spread: OnceLock::new(),
        }
    }

    /// Sorts entries into one table for each device, runtime and number type.
    pub fn from_entries(entries: impl IntoIterator<Item = Entry>) -> Vec<Self> {
        let mut tables: BTreeMap<(String, Runtime, Dtype), Self> = BTreeMap::new();
        for Entry {
            key:
                LutKey {
                    device,
                    runtime,
                    dtype,
                    block,
                },
            state,
        } in entries
        {
            tables
                .entry((device.clone(), runtime.clone(), dtype))
                .or_insert_with(|| Self::new(device, runtime, dtype))
                .insert(block, state);
        }
        tables.into_values().collect()
    }

    /// Device of every entry.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Runtime of every entry.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Number type of every entry.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Adds a result, merged with what stands there ([`EntryState::merge`]).
    pub fn insert(&mut self, block: Block, state: EntryState) {
        let shapes = self.operators.entry(block.operator).or_default();
        let merged = match shapes.remove(&block.shape) {
            Some(standing) => standing.merge(state),
            None => state,
        };
        shapes.insert(block.shape, merged);
        self.errors = OnceLock::new();
        self.typical_spread = OnceLock::new();
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.operators.values().map(BTreeMap::len).sum()
    }

    /// True when nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.operators.is_empty()
    }

    /// Operators with their entries by shape.
    pub fn operators(&self) -> impl Iterator<Item = (&str, &BTreeMap<Shape, EntryState>)> {
        self.operators
            .iter()
            .map(|(operator, shapes)| (operator.as_str(), shapes))
    }

    /// What stands at exactly this block.
    pub fn state(&self, block: &Block) -> Option<&EntryState> {
        self.operators.get(&block.operator)?.get(&block.shape)
    }

    /// All entries with their full keys, ordered by operator and shape.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        self.operators.iter().flat_map(move |(operator, shapes)| {
            shapes.iter().map(move |(shape, state)| Entry {
                key: LutKey {
                    device: self.device.clone(),
                    runtime: self.runtime.clone(),
                    dtype: self.dtype,
                    block: Block {
                        operator: operator.clone(),
                        shape: shape.clone(),
                    },
                },
                state: state.clone(),
            })
        })
    }

    /// What `block` costs: measured, or between measured neighbours. Nothing beyond them.
    pub fn get(&self, block: &Block) -> Lookup {
        self.lookup(block, Extrapolation::Refused)
    }

    /// What `block` costs, also beyond what was measured where that is allowed.
    pub fn lookup(&self, block: &Block, extrapolation: Extrapolation) -> Lookup {
        let Some(shapes) = self.operators.get(&block.operator) else {
            return Lookup::Missing(Missing::Operator {
                operator: block.operator.clone(),
                device: self.device.clone(),
                runtime: self.runtime.to_string(),
                dtype: self.dtype.to_string(),
            });
        };
        match shapes.get(&block.shape) {
            Some(EntryState::OutOfMemory { detail }) => Lookup::OutOfMemory { detail: detail.clone() },
            Some(EntryState::Unsupported { detail }) => Lookup::Unsupported { detail: detail.clone() },
            Some(EntryState::Measured(measurement)) => match self.cost(measurement) {
                Some(cost) => Lookup::Measured(cost),
                None => interpolation::lookup(self, shapes, block, extrapolation),
            },
            None => interpolation::lookup(self, shapes, block, extrapolation),
        }
    }

    /// How well blocks are predicted from their neighbours when left out themselves, by operator and by the
    /// dimensions between which was interpolated.
    pub fn leave_out_errors(&self) -> &[LeaveOut] {
        self.errors.get_or_init(|| interpolation::leave_out(self))
    }

    /// Median with its standard error; none without a latency.
    pub(crate) fn cost(&self, measurement: &Measurement) -> Option<Cost> {
        Some(Cost {
            latency_ms: self.estimate(&measurement.latency_ms)?,
            peak_memory_bytes: estimate(&measurement.peak_memory_bytes, 0.0),
        })
    }

    /// A single sample shows no spread of its own; it is given the one that is typical of the table.
    fn estimate(&self, latency: &Samples) -> Option<Estimate> {
        let typical = if latency.len() == 1 { self.typical_spread() } else { 0.0 };
        estimate(latency, typical)
    }

    /// Median over the entries of spread over median of their latencies; 0 where no entry has repeats.
    fn typical_spread(&self) -> f64 {
        *self.typical_spread.get_or_init(|| {
            let spreads: Vec<f64> = self
                .operators
                .values()
                .flat_map(BTreeMap::values)
                .filter_map(|state| match state {
                    EntryState::Measured(Measurement { latency_ms, .. }) => {
                        Some(latency_ms.spread()? / latency_ms.median().filter(|median| *median > 0.0)?)
                    }
                    EntryState::OutOfMemory { .. } | EntryState::Unsupported { .. } => None,
                })
                .collect();
            samples::median(&spreads).unwrap_or(0.0)
        })
    }
}

fn estimate(samples: &Samples, typical_spread: f64) -> Option<Estimate> {
    let value = samples.median()?;
    Some(Estimate {
        value,
        standard_error: samples.standard_error().unwrap_or(typical_spread * value),
    })
}

//! What is known about one block on one device and runtime.

use search_spaces::{Block, Dtype};
use serde::{Deserialize, Serialize};

use crate::{Runtime, Samples};

/// Names one measured cell of a table. A figure never leaves its key: nothing transfers between devices,
/// runtimes or number types.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LutKey {
    /// Device, as it names itself.
    pub device: String,
    /// Runtime with version.
    pub runtime: Runtime,
    /// Number type of weights and activations.
    pub dtype: Dtype,
    /// Operator and shape.
    pub block: Block,
}

/// A key and what stands there: the unit of import, export and upload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Where it stands.
    pub key: LutKey,
    /// What stands there.
    pub state: EntryState,
}

/// Result of profiling a block. A block that does not fit or does not exist on a runtime is a result too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum EntryState {
    /// It ran.
    Measured(Measurement),
    /// The device ran out of memory.
    OutOfMemory {
        /// What the runtime said.
        detail: String,
    },
    /// The runtime does not offer the operator at this shape or number type.
    Unsupported {
        /// What the runtime said.
        detail: String,
    },
}

/// Raw figures of a block that ran.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Time of one forward pass, milliseconds; at least one sample.
    pub latency_ms: Samples,
    /// Allocator peak during the forward pass less what was allocated at its start (input and weights): output
    /// and workspace, bytes. Empty where the runtime cannot tell.
    #[serde(default)]
    pub peak_memory_bytes: Samples,
}

impl EntryState {
    /// Joins two results of one key, the same in either order up to the order of samples. Samples are kept
    /// side by side. A block that once ran does fit, so a measurement outranks out of memory; running out of
    /// memory shows that the runtime knows the operator, so it outranks unsupported.
    pub fn merge(self, other: Self) -> Self {
        use EntryState::{Measured, OutOfMemory, Unsupported};
        match (self, other) {
            (Measured(first), Measured(second)) => Measured(Measurement {
                latency_ms: first.latency_ms.followed_by(second.latency_ms),
                peak_memory_bytes: first.peak_memory_bytes.followed_by(second.peak_memory_bytes),
            }),
            (measured @ Measured(_), _) | (_, measured @ Measured(_)) => measured,
            (OutOfMemory { detail: a }, OutOfMemory { detail: b }) => OutOfMemory { detail: a.min(b) },
            (full @ OutOfMemory { .. }, _) | (_, full @ OutOfMemory { .. }) => full,
            (Unsupported { detail: a }, Unsupported { detail: b }) => Unsupported { detail: a.min(b) },
        }
    }

    /// `measured`, `out_of_memory` or `unsupported`, as in CSV and JSON.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Measured(_) => "measured",
            Self::OutOfMemory { .. } => "out_of_memory",
            Self::Unsupported { .. } => "unsupported",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(latency: &[f64]) -> EntryState {
        EntryState::Measured(Measurement {
            latency_ms: Samples::new(latency.to_vec()).expect("valid"),
            peak_memory_bytes: Samples::default(),
        })
    }

    fn full(detail: &str) -> EntryState {
        EntryState::OutOfMemory { detail: detail.into() }
    }

    fn unsupported(detail: &str) -> EntryState {
        EntryState::Unsupported { detail: detail.into() }
    }

    #[test]
    fn samples_of_two_batches_stand_side_by_side() {
        assert_eq!(
            measured(&[1.0, 2.0]).merge(measured(&[3.0])),
            measured(&[1.0, 2.0, 3.0])
        );
    }

    #[test]
    fn the_rank_is_measured_then_out_of_memory_then_unsupported_in_either_order() {
        let states = [measured(&[1.0]), full("no room"), unsupported("no kernel")];
        for (rank, better) in states.iter().enumerate() {
            for worse in &states[rank + 1..] {
                assert_eq!(&better.clone().merge(worse.clone()), better);
                assert_eq!(&worse.clone().merge(better.clone()), better);
            }
        }
    }

    #[test]
    fn failures_of_one_kind_merge_the_same_in_either_order() {
        assert_eq!(full("a").merge(full("b")), full("b").merge(full("a")));
        assert_eq!(
            unsupported("a").merge(unsupported("b")),
            unsupported("b").merge(unsupported("a"))
        );
    }
}

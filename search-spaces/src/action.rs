//! One change to an architecture.

use serde::{Deserialize, Serialize};

use crate::Architecture;

/// A change at one position. Adding and removing are relative to the space's null choice; where a space
/// declares none every change is a swap. Positions and choices are indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Action {
    /// Put a layer where there is none.
    Add {
        /// Where.
        position: usize,
        /// What.
        choice: u16,
    },
    /// Leave only the null choice.
    Remove {
        /// Where.
        position: usize,
    },
    /// Replace one choice by another.
    Swap {
        /// Where.
        position: usize,
        /// What stood there.
        from: u16,
        /// What stands there now.
        to: u16,
    },
}

impl Action {
    /// The position that changes.
    #[must_use]
    pub const fn position(&self) -> usize {
        match self {
            Self::Add { position, .. } | Self::Remove { position } | Self::Swap { position, .. } => *position,
        }
    }
}

/// An action with the architecture it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The change.
    pub action: Action,
    /// Where it leads.
    pub architecture: Architecture,
}

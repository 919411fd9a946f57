//! One point of a space.

use serde::{Deserialize, Serialize};

/// The choice taken at each position, as indices into the space's positions. Canonical: one
/// architecture has one value. [`crate::Space::print`] gives the form for people and for the wire.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Architecture(Box<[u16]>);

impl Architecture {
    /// From one choice index per position. The space checks whether they exist.
    #[must_use]
    pub fn new(choices: impl Into<Box<[u16]>>) -> Self {
        Self(choices.into())
    }

    /// Choice index per position.
    #[must_use]
    pub fn choices(&self) -> &[u16] {
        &self.0
    }

    /// The same architecture with another choice at one position; unchanged where there is no such
    /// position.
    #[must_use]
    pub fn with(&self, position: usize, choice: u16) -> Self {
        let mut choices = self.0.clone();
        if let Some(slot) = choices.get_mut(position) {
            *slot = choice;
        }
        Self(choices)
    }
}

/// A text or a list of choices that is no architecture of the space.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchitectureError {
    /// Too few or too many positions.
    #[error("`{text}` names {found} positions; {space} has {expected}: {positions}")]
    Length {
        /// What was given.
        text: String,
        /// Name of the space.
        space: String,
        /// Positions named.
        found: usize,
        /// Positions of the space.
        expected: usize,
        /// Their names.
        positions: String,
    },
    /// A position was given a choice it does not have.
    #[error("position {position}: `{found}` is no choice; allowed: {allowed}")]
    Choice {
        /// Name of the position.
        position: String,
        /// What was given.
        found: String,
        /// Codes of the position's choices.
        allowed: String,
    },
}

impl ArchitectureError {
    /// What would have been right.
    #[must_use]
    pub fn allowed(&self) -> String {
        match self {
            Self::Length {
                expected, positions, ..
            } => format!("{expected} codes, for {positions}"),
            Self::Choice { position, allowed, .. } => format!("at {position} one of {allowed}"),
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Space;

    #[test]
    fn every_neighbour_is_one_action_away_and_back() {
        let space = Space::parse(include_str!("../spaces/shapes-tiny.toml")).unwrap();
        let from = space.architecture("-.c1.-.s3.-").unwrap();
        let neighbours = space.neighbours(&from);
        assert_eq!(neighbours.len(), 5 * 6);
        for Neighbour { action, architecture } in neighbours {
            assert_eq!(space.apply(&from, action), architecture);
            let position = action.position();
            let back = space.action(position, architecture.choices()[position], from.choices()[position]);
            assert_eq!(space.apply(&architecture, back), from);
            match action {
                Action::Add { .. } => assert!(matches!(back, Action::Remove { .. })),
                Action::Remove { .. } => assert!(matches!(back, Action::Add { .. })),
                Action::Swap { .. } => assert!(matches!(back, Action::Swap { .. })),
            }
        }
        assert_eq!(
            space.describe(Action::Add { position: 0, choice: 1 }),
            "add conv1d at down.0"
        );
    }
}

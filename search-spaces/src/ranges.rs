//! The box in which hypervolume is taken.

use serde::{Deserialize, Serialize};

use crate::Direction;

/// Lower and upper end of every objective, fixed when a search starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ranges(Vec<(f64, f64)>);

/// Ranges that span no box.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RangesError {
    /// An objective's range has no extent.
    #[error("objective {metric}: the range {low} to {high} has no extent")]
    Empty {
        /// The objective.
        metric: String,
        /// Its lower end.
        low: f64,
        /// Its upper end.
        high: f64,
    },
    /// Neither declared nor derivable.
    #[error("objective {metric}: no range; declare `range = [low, high]` or a limit")]
    Unknown {
        /// The objective.
        metric: String,
    },
}

impl Ranges {
    /// From one range per objective.
    #[must_use]
    pub fn new(ranges: Vec<(f64, f64)>) -> Self {
        Self(ranges)
    }

    /// The range of each objective.
    #[must_use]
    pub fn as_slice(&self) -> &[(f64, f64)] {
        &self.0
    }

    /// A value of the `index`-th objective as a minimised coordinate: 0 is best, 1 the reference. What
    /// lies beyond the good end counts as 0, beyond the bad end as more than 1; NaN stays NaN.
    #[must_use]
    pub fn scale(&self, index: usize, direction: Direction, value: f64) -> f64 {
        let Some(&(low, high)) = self.0.get(index) else {
            return f64::NAN;
        };
        let scaled = match direction {
            Direction::Minimise => (value - low) / (high - low),
            Direction::Maximise => (high - value) / (high - low),
        };
        if scaled < 0.0 { 0.0 } else { scaled }
    }
}

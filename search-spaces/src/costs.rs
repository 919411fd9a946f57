//! What a strategy may ask about an architecture before it is evaluated.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Architecture;

/// A figure with its uncertainty, in the unit that the metric's name states.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// Its standard error; zero for what is known exactly.
    pub standard_error: f64,
}

impl Estimate {
    /// A figure without uncertainty.
    #[must_use]
    pub const fn exact(value: f64) -> Self {
        Self {
            value,
            standard_error: 0.0,
        }
    }
}

/// The architecture cannot run on the device, for instance because a layer ran out of memory there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Infeasible {
    /// Why, in words for a person.
    pub reason: String,
}

/// Metrics that are known without an evaluation: latency and memory from a look-up table, counts in
/// closed form, the columns that a table space declares as known.
pub trait Costs {
    /// The known metrics of an architecture, by name.
    ///
    /// # Errors
    /// [`Infeasible`] when the architecture cannot run at all. Limits are not checked here.
    fn costs(&self, architecture: &Architecture) -> Result<BTreeMap<String, Estimate>, Infeasible>;
}

/// Nothing is known before an evaluation.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoCosts;

impl Costs for NoCosts {
    fn costs(&self, _: &Architecture) -> Result<BTreeMap<String, Estimate>, Infeasible> {
        Ok(BTreeMap::new())
    }
}

//! The coarse step: choices that no feasible architecture can hold leave the space before anything is trained.

use search_spaces::{Choice, Estimate};
use serde::{Deserialize, Serialize};

use crate::{ArchitectureCost, CompositionError, LutCosts};

/// Standard errors by which a prediction must exceed a limit before its choice leaves. A table errs; a choice
/// that leaves wrongly never comes back, one that stays wrongly is still refused as an architecture.
pub const MARGIN: f64 = 2.0;

/// Outcome of the coarse step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Elimination {
    /// Choices that left.
    pub removed: Vec<Removed>,
    /// Choices that stay because the table does not tell what they cost.
    pub undecided: Vec<Undecided>,
    /// Why the space is empty, when what every architecture contains already cannot be feasible.
    pub backbone: Option<Reason>,
    /// Architectures of the whole space.
    pub before: u128,
    /// Architectures without the removed choices. Not all of them are feasible: layers that fit alone may not fit
    /// together.
    pub after: u128,
}

/// A choice that left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Removed {
    /// Index of the position.
    pub position: usize,
    /// Index of the choice there.
    pub choice: u16,
    /// Name of the position.
    pub position_name: String,
    /// Name of the choice.
    pub choice_name: String,
    /// Why.
    pub reason: Reason,
}

/// A choice about which the table is silent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Undecided {
    /// Index of the position.
    pub position: usize,
    /// Index of the choice there.
    pub choice: u16,
    /// What is missing.
    pub missing: String,
}

/// Why something cannot be in any feasible architecture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Reason {
    /// It ran out of memory on the device.
    #[error("{detail}")]
    OutOfMemory {
        /// Which block, and what was said.
        detail: String,
    },
    /// The runtime does not offer it.
    #[error("{detail}")]
    Unsupported {
        /// Which block, and what was said.
        detail: String,
    },
    /// With the backbone alone it is above a limit by more than [`MARGIN`] standard errors.
    #[error("{metric} would be {} with the backbone alone; the limit is {limit}", figure(*value, *standard_error))]
    Limit {
        /// The metric.
        metric: String,
        /// Its predicted value.
        value: f64,
        /// Standard error of that.
        standard_error: f64,
        /// The limit.
        limit: f64,
    },
}

/// A value with two digits of its standard error, or to the thousandth where that is not known.
fn figure(value: f64, standard_error: f64) -> String {
    if standard_error > 0.0 {
        let decimals = (1.0 - standard_error.log10().floor()).clamp(0.0, 6.0) as usize;
        format!("{value:.decimals$} ± {standard_error:.decimals$}")
    } else {
        ((value * 1000.0).round() / 1000.0).to_string()
    }
}

impl Elimination {
    /// True when the choice stays.
    pub fn keeps(&self, position: usize, choice: u16) -> bool {
        self.backbone.is_none()
            && !self
                .removed
                .iter()
                .any(|r| (r.position, r.choice) == (position, choice))
    }
}

/// Tries every choice alone with what every architecture contains (the backbone of a UNet; nothing in other spaces,
/// where this is a lower bound) against the space's limits.
pub fn eliminate(costs: &LutCosts<'_>) -> Elimination {
    let space = costs.space();
    let empty: Vec<Option<&Choice>> = vec![None; space.positions.len()];
    let before = space.size();
    let (mut removed, mut undecided) = (Vec::new(), Vec::new());
    let backbone = match verdict(costs, &empty) {
        Verdict::Out(reason) => Some(reason),
        Verdict::Stays | Verdict::Unknown(_) => None,
    };
    let (mut after, mut alone) = (if backbone.is_some() { 0 } else { 1_u128 }, empty);
    for (position, place) in space.positions.iter().enumerate() {
        let mut left = 0_u128;
        for (index, choice) in (0_u16..).zip(&place.choices) {
            alone[position] = Some(choice);
            let verdict = if backbone.is_some() {
                Verdict::Stays
            } else {
                verdict(costs, &alone)
            };
            match verdict {
                Verdict::Out(reason) => {
                    let (position_name, choice_name) = (place.name.clone(), choice.name.clone());
                    removed.push(Removed {
                        position,
                        choice: index,
                        position_name,
                        choice_name,
                        reason,
                    });
                }
                Verdict::Unknown(missing) => {
                    undecided.push(Undecided {
                        position,
                        choice: index,
                        missing,
                    });
                    left += 1;
                }
                Verdict::Stays => left += 1,
            }
        }
        alone[position] = None;
        after = after.saturating_mul(left);
    }
    Elimination {
        removed,
        undecided,
        backbone,
        before,
        after,
    }
}

enum Verdict {
    Stays,
    Unknown(String),
    Out(Reason),
}

fn verdict(costs: &LutCosts<'_>, chosen: &[Option<&Choice>]) -> Verdict {
    match costs.compose_choices(chosen) {
        Ok(cost) => broken_limit(costs, &cost).map_or(Verdict::Stays, Verdict::Out),
        Err(error @ CompositionError::OutOfMemory { .. }) => Verdict::Out(Reason::OutOfMemory {
            detail: error.to_string(),
        }),
        Err(error @ CompositionError::Unsupported { .. }) => Verdict::Out(Reason::Unsupported {
            detail: error.to_string(),
        }),
        Err(error) => Verdict::Unknown(error.to_string()),
    }
}

/// The first limit that is surely broken.
fn broken_limit(costs: &LutCosts<'_>, cost: &ArchitectureCost) -> Option<Reason> {
    let metrics = cost.metrics();
    costs.space().limits.iter().find_map(|(metric, limit)| {
        let &Estimate { value, standard_error } = metrics.get(metric)?;
        let metric = metric.to_owned();
        (value - MARGIN * standard_error > limit).then_some(Reason::Limit {
            metric,
            value,
            standard_error,
            limit,
        })
    })
}

#[cfg(test)]
mod tests;

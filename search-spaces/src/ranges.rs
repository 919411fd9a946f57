//! The box in which hypervolume is taken.

use serde::{Deserialize, Serialize};

use crate::{Architecture, Costs, Direction, Objective, Position, Space, metric};

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

impl Ranges {
    /// The box of a search without a table. An objective's own range counts; quality lies between 0 and
    /// 1; any other metric lies between the least and the greatest known cost among the references and
    /// the architectures with one choice everywhere, its limit being the upper end where it has one.
    ///
    /// # Errors
    /// Names the objective whose range neither the file declares nor the costs tell.
    pub fn fix(space: &Space, costs: &dyn Costs) -> Result<Self, RangesError> {
        let probes = probes(space);
        let known: Vec<_> = probes
            .iter()
            .filter_map(|architecture| costs.costs(architecture).ok())
            .collect();
        let range = |objective: &Objective| {
            if let Some(range) = objective.range {
                return Ok(range);
            }
            if objective.metric == metric::QUALITY {
                return Ok((0.0, 1.0));
            }
            let values = known
                .iter()
                .filter_map(|costs| Some(costs.get(&objective.metric)?.value));
            let values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
            let low = values.iter().copied().fold(f64::INFINITY, f64::min);
            let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let high = space.limits.get(&objective.metric).unwrap_or(greatest);
            match values.is_empty() {
                true => Err(RangesError::Unknown {
                    metric: objective.metric.clone(),
                }),
                false if low < high => Ok((low, high)),
                false => Err(RangesError::Empty {
                    metric: objective.metric.clone(),
                    low,
                    high,
                }),
            }
        };
        space.objectives.iter().map(range).collect::<Result<_, _>>().map(Self)
    }
}

/// The backbone, every choice everywhere, the references.
fn probes(space: &Space) -> Vec<Architecture> {
    let most = space
        .positions
        .iter()
        .map(|position| position.choices.len())
        .max()
        .unwrap_or(0);
    let everywhere = |choice: usize| {
        let last = |position: &Position| position.choices.len().saturating_sub(1);
        let choices = space
            .positions
            .iter()
            .map(|position| u16::try_from(choice.min(last(position))).unwrap_or(0));
        Architecture::new(choices.collect::<Vec<_>>())
    };
    let uniform = (0..most).map(everywhere);
    let references = space.references.iter().map(|reference| reference.architecture.clone());
    space.backbone().into_iter().chain(uniform).chain(references).collect()
}

//! The deterministic driver: which architecture comes next, and when a search ends.
//!
//! Candidates are numbered in the order of their proposal; the reference architectures come first.
//! Proposal `n` is made from the results of the shortest prefix of candidates whose last number lies in
//! `n − W ..= n − 1` and with which the strategy does not ask to wait, `W` being the width of the search.
//! What is proposed therefore depends on results alone, never on the order or the time in which they
//! arrive, nor on the number of workers.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::pareto::dominates_weakly;
use crate::{Action, Architecture, Costs, Direction, Estimate, Ranges, Space};

/// A candidate with its result.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluated {
    /// Its number in the search, from 0.
    pub number: u64,
    /// What was evaluated.
    pub architecture: Architecture,
    /// What came out.
    pub outcome: Outcome,
}

/// What an evaluation came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The metrics, those of [`Costs`] included or not.
    Metrics(BTreeMap<String, Estimate>),
    /// It could not be evaluated; it is not tried again.
    Failed,
}

/// What a strategy wants evaluated next.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    /// The architecture, not proposed before.
    pub architecture: Architecture,
    /// Number of the candidate that it was made from.
    pub parent: Option<u64>,
    /// The change to the parent, where it is a single one.
    pub action: Option<Action>,
    /// The reason, in words for a person.
    pub why: String,
}

/// All that a strategy sees.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The space.
    pub space: &'a Space,
    /// What is known without an evaluation.
    pub costs: &'a dyn Costs,
    /// Results of candidates `0..m`, in order.
    pub evaluated: &'a [Evaluated],
    /// Candidates from `m` on, without results.
    pub pending: &'a [(u64, Architecture)],
    /// The box of the hypervolume.
    pub ranges: &'a Ranges,
}

/// A strategy's answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Evaluate this.
    Propose(Proposal),
    /// The results of pending candidates decide what is next.
    Wait,
    /// Nothing is left to try.
    Exhausted,
}

/// Proposes architectures. Pure: the same view gives the same answer, and randomness comes from the
/// search's seed and the proposal's number.
pub trait Strategy {
    /// The next step after what the view shows.
    fn next(&self, view: &View) -> Step;
}

/// What a search can do now.
#[derive(Debug, Clone, PartialEq)]
pub enum Advance {
    /// Make this the next candidate.
    Propose(Proposal),
    /// Nothing before more results arrive.
    Blocked,
    /// The strategy has nothing left to try.
    Exhausted,
}

/// The next step of a search. `candidates` are all candidates so far, numbered from 0 without gaps;
/// `finished` holds the results that have arrived, by number, in any order.
pub fn propose_next(
    strategy: &dyn Strategy,
    space: &Space,
    costs: &dyn Costs,
    ranges: &Ranges,
    finished: &BTreeMap<u64, Evaluated>,
    candidates: &[(u64, Architecture)],
    width: u32,
) -> Advance {
    let arrived = prefix(finished);
    let shortest = (candidates.len() + 1).saturating_sub(width.max(1) as usize);
    for seen in shortest..=candidates.len() {
        if arrived.len() < seen {
            return Advance::Blocked;
        }
        let view = View {
            space,
            costs,
            evaluated: &arrived[..seen],
            pending: &candidates[seen..],
            ranges,
        };
        match strategy.next(&view) {
            Step::Propose(proposal) => return Advance::Propose(proposal),
            Step::Exhausted if seen == candidates.len() => return Advance::Exhausted,
            // More results may open more to try.
            Step::Wait | Step::Exhausted => {}
        }
    }
    Advance::Exhausted
}

/// The results of the longest prefix of candidates without gaps, in order.
fn prefix(finished: &BTreeMap<u64, Evaluated>) -> Vec<Evaluated> {
    (0..).map_while(|number| finished.get(&number)).cloned().collect()
}

/// Why a search ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// `max_evaluations` candidates were made.
    MaxEvaluations,
    /// `max_device_hours` were spent.
    MaxDeviceHours,
    /// The hypervolume has not grown for `stall_evaluations` candidates.
    Stalled,
}

/// Whether a search makes no further candidate. Of its `candidates` so far `infeasible` cannot run and are no
/// evaluations. The stall is judged on the results that proposal `candidates` must have seen anyway, so it does not
/// depend on timing; spent hours do.
#[must_use]
pub fn should_stop(
    space: &Space,
    ranges: &Ranges,
    finished: &BTreeMap<u64, Evaluated>,
    candidates: u64,
    infeasible: u64,
    device_hours: f64,
) -> Option<StopReason> {
    let settings = &space.search;
    if candidates.saturating_sub(infeasible) >= u64::from(settings.max_evaluations) {
        return Some(StopReason::MaxEvaluations);
    }
    if settings.max_device_hours.is_some_and(|most| device_hours >= most) {
        return Some(StopReason::MaxDeviceHours);
    }
    let patience = usize::try_from(settings.stall_evaluations?).ok()?;
    let seen = (candidates + 1).saturating_sub(u64::from(settings.width.max(1)));
    let evaluated = prefix(finished);
    let evaluated = evaluated.get(..usize::try_from(seen).ok()?)?;
    let references = space.references.len();
    let since = evaluated
        .len()
        .saturating_sub(last_growth(space, ranges, evaluated).max(references));
    (since >= patience).then_some(StopReason::Stalled)
}

/// How many evaluations had been made when the hypervolume last grew; 0 if it never did.
fn last_growth(space: &Space, ranges: &Ranges, evaluated: &[Evaluated]) -> usize {
    let mut front: Vec<Vec<f64>> = Vec::new();
    let mut last = 0;
    for (i, candidate) in evaluated.iter().enumerate() {
        let Some(point) = admitted_point(space, ranges, candidate) else {
            continue;
        };
        let inside = point.iter().all(|x| *x < 1.0);
        if inside && !front.iter().any(|other| dominates_weakly(other, &point)) {
            front.retain(|other| !dominates_weakly(&point, other));
            front.push(point);
            last = i + 1;
        }
    }
    last
}

/// Where metrics lie in the box of the objectives, minimised; `None` where one is absent or no number.
#[must_use]
pub fn point(space: &Space, ranges: &Ranges, metrics: &BTreeMap<String, Estimate>) -> Option<Vec<f64>> {
    let coordinate = |(i, objective): (usize, &crate::Objective)| {
        let value = metrics.get(&objective.metric)?.value;
        let scaled = ranges.scale(i, objective.direction, value);
        (!scaled.is_nan()).then_some(scaled)
    };
    space.objectives.iter().enumerate().map(coordinate).collect()
}

/// The point of a candidate that was evaluated and keeps every limit.
#[must_use]
pub fn admitted_point(space: &Space, ranges: &Ranges, candidate: &Evaluated) -> Option<Vec<f64>> {
    match &candidate.outcome {
        Outcome::Metrics(metrics) if space.limits.broken(metrics).is_empty() => point(space, ranges, metrics),
        Outcome::Metrics(_) | Outcome::Failed => None,
    }
}

/// Numbers of the non-dominated candidates that keep every limit. Of equal points the first evaluated
/// stays.
#[must_use]
pub fn front(space: &Space, ranges: &Ranges, evaluated: &[Evaluated]) -> Vec<u64> {
    let (numbers, points) = admitted(space, ranges, evaluated);
    crate::pareto::front(&points).into_iter().map(|i| numbers[i]).collect()
}

/// Hypervolume of the front in the search's box.
#[must_use]
pub fn hypervolume(space: &Space, ranges: &Ranges, evaluated: &[Evaluated]) -> f64 {
    crate::hypervolume::hypervolume(&admitted(space, ranges, evaluated).1)
}

fn admitted(space: &Space, ranges: &Ranges, evaluated: &[Evaluated]) -> (Vec<u64>, Vec<Vec<f64>>) {
    let points = evaluated
        .iter()
        .filter_map(|e| Some((e.number, admitted_point(space, ranges, e)?)));
    points.unzip()
}

impl View<'_> {
    /// Number of the proposal that is asked for.
    #[must_use]
    pub fn number(&self) -> u64 {
        (self.evaluated.len() + self.pending.len()) as u64
    }

    /// Every architecture that was proposed, finished or not.
    #[must_use]
    pub fn proposed(&self) -> BTreeSet<&Architecture> {
        let finished = self.evaluated.iter().map(|e| &e.architecture);
        finished
            .chain(self.pending.iter().map(|(_, architecture)| architecture))
            .collect()
    }

    /// The known costs of an architecture that may be evaluated: it can run and, as far as is known
    /// beforehand, keeps every limit.
    #[must_use]
    pub fn admissible(&self, architecture: &Architecture) -> Option<BTreeMap<String, Estimate>> {
        let costs = self.costs.costs(architecture).ok()?;
        self.space.limits.broken(&costs).is_empty().then_some(costs)
    }

    /// The metrics of a finished candidate, completed by what is known anyway.
    #[must_use]
    pub fn metrics(&self, candidate: &Evaluated) -> Option<BTreeMap<String, Estimate>> {
        let Outcome::Metrics(metrics) = &candidate.outcome else {
            return None;
        };
        let mut all = self.costs.costs(&candidate.architecture).unwrap_or_default();
        all.extend(metrics.iter().map(|(name, estimate)| (name.clone(), *estimate)));
        Some(all)
    }

    /// Index of the one maximised objective, where there is exactly one.
    #[must_use]
    pub fn quality(&self) -> Option<usize> {
        let mut maximised = self
            .space
            .objectives
            .iter()
            .enumerate()
            .filter(|(_, o)| o.direction == Direction::Maximise);
        match (maximised.next(), maximised.next()) {
            (Some((index, _)), None) => Some(index),
            _ => None,
        }
    }
}

//! A view as the action strategies read it: one quality, several costs in units of the box.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

use crate::search::View;
use crate::{Action, Architecture, Direction, Estimate};

/// Costs closer than this share of the box's mean side are taken as this far apart, so that a change that
/// costs almost nothing does not get an endless value.
pub(super) const FLOOR: f64 = 1e-3;

/// What is known of an architecture.
#[derive(Clone)]
pub(super) enum Seen {
    New,
    Pending,
    Failed,
    Judged(Rc<Judged>),
}

/// An architecture with its result.
#[derive(Debug)]
pub(super) struct Judged {
    pub(super) number: u64,
    pub(super) architecture: Architecture,
    pub(super) quality: Estimate,
    /// Every cost objective, scaled to the box; 0 is best.
    pub(super) costs: Vec<Option<f64>>,
    /// It breaks a limit, as only its evaluation told.
    pub(super) breaks_limit: bool,
}

pub(super) struct Sight<'a> {
    pub(super) view: &'a View<'a>,
    quality: &'a str,
    results: HashMap<&'a Architecture, Seen>,
    pending: HashSet<&'a Architecture>,
    foreseen: RefCell<HashMap<Architecture, Option<Rc<Foreseen>>>>,
}

/// What is known of an architecture that can run, before it is evaluated.
pub(super) struct Foreseen {
    pub(super) costs: Vec<Option<f64>>,
    /// By how much the limits are broken, each in units of its bound; 0 for an admitted one.
    pub(super) excess: f64,
}

impl<'a> Sight<'a> {
    /// `None` where the space has not exactly one maximised objective.
    pub(super) fn new(view: &'a View<'a>) -> Option<Self> {
        let quality = &view.space.objectives[view.quality()?].metric;
        let mut sight = Self {
            view,
            quality,
            results: HashMap::new(),
            pending: view.pending.iter().map(|(_, architecture)| architecture).collect(),
            foreseen: RefCell::default(),
        };
        for candidate in view.evaluated {
            let judged = view.metrics(candidate).and_then(|metrics| {
                Some(Judged {
                    number: candidate.number,
                    architecture: candidate.architecture.clone(),
                    quality: metrics
                        .get(quality)
                        .copied()
                        .filter(|quality| quality.value.is_finite())?,
                    costs: sight.scaled(&metrics),
                    breaks_limit: !view.space.limits.broken(&metrics).is_empty(),
                })
            });
            let seen = judged.map_or(Seen::Failed, |judged| Seen::Judged(Rc::new(judged)));
            sight.results.insert(&candidate.architecture, seen);
        }
        Some(sight)
    }

    pub(super) fn seen(&self, architecture: &Architecture) -> Seen {
        match self.results.get(architecture) {
            Some(seen) => seen.clone(),
            None if self.pending.contains(architecture) => Seen::Pending,
            None => Seen::New,
        }
    }

    /// Every result, by number.
    pub(super) fn results(&self) -> Vec<Rc<Judged>> {
        let seen = self
            .view
            .evaluated
            .iter()
            .filter_map(|candidate| match self.results.get(&candidate.architecture) {
                Some(Seen::Judged(judged)) => Some(Rc::clone(judged)),
                _ => None,
            });
        seen.collect()
    }

    /// `None` for an architecture that cannot run.
    pub(super) fn foreseen(&self, architecture: &Architecture) -> Option<Rc<Foreseen>> {
        if let Some(known) = self.foreseen.borrow().get(architecture) {
            return known.clone();
        }
        let foreseen = self.view.costs.costs(architecture).ok().map(|metrics| {
            let excess = self
                .view
                .space
                .limits
                .broken(&metrics)
                .into_iter()
                .map(|(_, value, bound)| {
                    let over = (value - bound) / bound.max(f64::MIN_POSITIVE);
                    if over.is_nan() { f64::INFINITY } else { over }
                });
            Rc::new(Foreseen {
                costs: self.scaled(&metrics),
                excess: excess.sum(),
            })
        });
        self.foreseen
            .borrow_mut()
            .insert(architecture.clone(), foreseen.clone());
        foreseen
    }

    /// It can run and, as far as is known, keeps every limit.
    pub(super) fn admits(&self, architecture: &Architecture) -> bool {
        self.foreseen(architecture)
            .is_some_and(|foreseen| foreseen.excess <= 0.0)
    }

    /// What changing one architecture into the other spends, as the mean over the cost objectives of
    /// the change in units of the box; negative where it saves. Before the second is evaluated only
    /// foreseen costs count, and the kind of action tells the sign where none is.
    pub(super) fn spent(&self, from: &Judged, to: &Architecture, action: Action) -> f64 {
        let costs = match self.seen(to) {
            Seen::Judged(judged) => Some(judged.costs.clone()),
            Seen::New | Seen::Pending | Seen::Failed => self.foreseen(to).map(|foreseen| foreseen.costs.clone()),
        };
        let differences: Vec<f64> = costs
            .iter()
            .flatten()
            .zip(&from.costs)
            .filter_map(|(to, from)| Some((*to)? - (*from)?))
            .collect();
        if differences.is_empty() {
            return match action {
                Action::Add { .. } => FLOOR,
                Action::Remove { .. } => -FLOOR,
                Action::Swap { from, to, .. } => FLOOR * (f64::from(to) - f64::from(from)),
            };
        }
        differences.iter().sum::<f64>() / differences.len() as f64
    }

    /// The point of a quality and the cost objectives in the order of the space; unknown costs are 1.
    pub(super) fn point(&self, quality: f64, costs: &[Option<f64>]) -> Vec<f64> {
        let mut costs = costs.iter();
        let objectives = self.view.space.objectives.iter().enumerate();
        let coordinate = |(i, objective): (usize, &crate::Objective)| match objective.direction {
            Direction::Maximise => self.view.ranges.scale(i, Direction::Maximise, quality),
            Direction::Minimise => costs.next().copied().flatten().unwrap_or(1.0),
        };
        objectives.map(coordinate).collect()
    }

    /// The cost objectives without the floor at 0 of [`crate::Ranges::scale`]: differences beyond the
    /// box's good end count as well.
    fn scaled(&self, metrics: &BTreeMap<String, Estimate>) -> Vec<Option<f64>> {
        let objectives = self.view.space.objectives.iter().zip(self.view.ranges.as_slice());
        let costs = objectives.filter(|(objective, _)| objective.metric != self.quality);
        let scaled = costs.map(|(objective, (low, high))| {
            let value = metrics.get(&objective.metric)?.value;
            Some((value - low) / (high - low)).filter(|scaled| scaled.is_finite())
        });
        scaled.collect()
    }
}

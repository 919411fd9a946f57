//! The paper's search (Appendix A): try actions on the layers, carry out the one that is worth most.
//!
//! The paper names the action set (add or remove a temporal layer at a position), the value of an action
//! {ΔQuality/ΔLatency, ΔQuality/ΔMemory}, that latency and memory come from the look-up table, and that
//! each candidate is trained before it is scored. The body of its Algorithm A1 is missing from the text,
//! so the loop follows Algorithm 1 of SnapFusion (Li et al. 2023), from which it descends: while a limit
//! is broken carry out the removal that loses least per unit saved, else the addition that gains most per
//! unit spent. Where both are silent, this is how we read it:
//!
//! * **Trying.** Every action at every position of the incumbent is evaluated, then one is carried out.
//!   A child that cannot run, or whose known costs break a limit, is dropped before it is trained. What
//!   was evaluated before is not evaluated again.
//! * **Combining the ratios.** The cost differences are taken in units of the hypervolume's box, and the
//!   value is the difference in quality over their mean: the harmonic combination of the single ratios.
//!   A cost that an action leaves alone, as peak memory often is, then neither decides nor divides by 0.
//! * **Near zero.** A mean below a thousandth of the box counts as a thousandth. An action that gains
//!   and saves at once so comes before all others; one that loses and spends is never carried out.
//! * **Noise.** The difference in quality has the standard error of both scores. An addition must gain
//!   more than one standard error. Actions whose values differ by less than one standard error of the
//!   difference are equal, and the one that leaves the cheaper architecture is carried out. Known costs
//!   are taken as exact.
//! * **Start.** `backbone` begins with nothing; `filled` with the largest choice everywhere, reduced by
//!   known costs alone until the limits admit it, each time by the change that leaves least beyond them; or a given architecture.
//!
//! `mode = "paper"`: one incumbent, additions and removals only. A gaining addition is carried out; where
//! none gains, or none fits, the cheapest removal makes room. No architecture is incumbent twice, and a search whose
//! start fails ends there.
//!
//! `mode = "front"`, the default, tries swaps as well. It sweeps once through the space: from a backbone
//! upwards, by additions and swaps that spend, until none gains; from elsewhere downwards, by removals
//! and swaps that save, until nothing is left. Whatever was evaluated on the way may stand on the front,
//! not the incumbents alone. Then the gaps of the front are searched: the `parents` of its members that
//! border the widest gaps and have untried neighbours offer all their actions, and the child goes first
//! that would add most hypervolume if its quality were as good as one may hope: the prediction of a
//! regression on which choices stand where, and one standard deviation.
//! With `tries` a step of the search tries no more than that many children, those with the best hoped-for
//! value. This matters where a step has more children than the whole search has evaluations.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::rc::Rc;

use super::promise::Promise;
use super::sight::{FLOOR, Judged, Seen, Sight};
use crate::hypervolume::hypervolume;
use crate::pareto::{crowding, front};
use crate::search::{Proposal, Step, Strategy, View};
use crate::{Action, ActionMode, ActionsSettings, Architecture, Neighbour, Start};

/// The strategy of the paper's Appendix A.
#[derive(Debug, Clone, PartialEq)]
pub struct Actions {
    settings: ActionsSettings,
}

/// Which way a step of the search goes.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Spend for quality.
    Up,
    /// Save with the least loss.
    Down,
}

/// An action that was tried, with its result.
struct Tried {
    action: Action,
    child: Rc<Judged>,
    /// Quality gained, and its standard error.
    gain: f64,
    error: f64,
    /// Mean cost spent, in units of the box.
    spent: f64,
}

impl Actions {
    /// With its settings.
    #[must_use]
    pub fn new(settings: ActionsSettings) -> Self {
        Self { settings }
    }
}

impl Strategy for Actions {
    fn next(&self, view: &View) -> Step {
        let Some(sight) = Sight::new(view) else {
            return Step::Exhausted;
        };
        // The references tell which children to try first, so all of them are awaited.
        if view.evaluated.len() < view.space.references.len() && !view.pending.is_empty() {
            return Step::Wait;
        }
        let Some(start) = start(&sight, &self.settings.start) else {
            return Step::Exhausted;
        };
        match sight.seen(&start) {
            Seen::New => propose(start, None, "where the search starts".into()),
            Seen::Pending => Step::Wait,
            Seen::Judged(start) => self.from(&sight, start),
            Seen::Failed => match self.settings.mode {
                // Without its incumbent the paper's search has nowhere to go.
                ActionMode::Paper => Step::Exhausted,
                ActionMode::Front => self.around_the_front(&sight),
            },
        }
    }
}

impl Actions {
    fn from(&self, sight: &Sight, start: Rc<Judged>) -> Step {
        match self.settings.mode {
            ActionMode::Paper => evolve(sight, start).unwrap_or(Step::Exhausted),
            ActionMode::Front => self.sweep(sight, start).unwrap_or_else(|| self.around_the_front(sight)),
        }
    }

    /// One way through the space; `None` when it is done.
    fn sweep(&self, sight: &Sight, start: Rc<Judged>) -> Option<Step> {
        let way = match self.settings.start {
            Start::Backbone => Way::Up,
            Start::Filled | Start::Given(_) => Way::Down,
        };
        let mut known = references(sight);
        let mut incumbent = start;
        loop {
            known.push(Rc::clone(&incumbent));
            let children = sight.view.space.neighbours(&incumbent.architecture);
            let children = self.promising(sight, &incumbent, children, way, &known);
            let tried = match evaluate(sight, &incumbent, &children) {
                Ok(tried) => tried,
                Err(step) => return Some(step),
            };
            known.extend(tried.iter().map(|tried| Rc::clone(&tried.child)));
            incumbent = Rc::clone(&best(tried.iter(), way)?.child);
        }
    }

    /// The admitted children that go a way, at most `tries`, those with the best hoped-for value first.
    fn promising(
        &self,
        sight: &Sight,
        parent: &Judged,
        children: Vec<Neighbour>,
        way: Way,
        known: &[Rc<Judged>],
    ) -> Vec<Neighbour> {
        let spent = |child: &Neighbour| sight.spent(parent, &child.architecture, child.action);
        let goes = |child: &Neighbour| match way {
            Way::Up => spent(child) > 0.0,
            Way::Down => spent(child) < 0.0,
        };
        let mut children: Vec<Neighbour> = children
            .into_iter()
            .filter(|child| goes(child) && sight.admits(&child.architecture))
            .collect();
        let tries = self.settings.tries.map_or(usize::MAX, |tries| tries as usize);
        if children.len() <= tries {
            return children;
        }
        let results: Vec<_> = known
            .iter()
            .map(|judged| (&judged.architecture, judged.quality.value))
            .collect();
        let promise = Promise::new(sight.view.space, &results);
        let value = |child: &Neighbour| {
            let gain = promise.of(&child.architecture) - parent.quality.value;
            worth(gain, spent(child))
        };
        let mut valued: Vec<(f64, Neighbour)> = children.drain(..).map(|child| (value(&child), child)).collect();
        valued.sort_by(|a, b| b.0.total_cmp(&a.0));
        valued.into_iter().take(tries).map(|(_, child)| child).collect()
    }

    fn around_the_front(&self, sight: &Sight) -> Step {
        let space = sight.view.space;
        let admitted: Vec<Rc<Judged>> = sight
            .results()
            .into_iter()
            .filter(|judged| !judged.breaks_limit)
            .collect();
        let points: Vec<Vec<f64>> = admitted
            .iter()
            .map(|judged| sight.point(judged.quality.value, &judged.costs))
            .collect();
        let members = front(&points);
        let points: Vec<Vec<f64>> = members.iter().map(|&i| points[i].clone()).collect();
        let mut by_gap: Vec<(f64, &Rc<Judged>)> = crowding(&points)
            .into_iter()
            .zip(members.iter().map(|&i| &admitted[i]))
            .collect();
        by_gap.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.number.cmp(&b.1.number)));

        let is_new = |child: &Neighbour| {
            matches!(sight.seen(&child.architecture), Seen::New) && sight.admits(&child.architecture)
        };
        let offers = by_gap.iter().map(|(_, parent)| {
            let children = space.neighbours(&parent.architecture).into_iter().filter(is_new);
            (Rc::clone(parent), children.collect::<Vec<_>>())
        });
        let offers = offers
            .filter(|(_, children)| !children.is_empty())
            .take(self.settings.parents as usize);
        let offers: Vec<_> = offers.collect();

        let results: Vec<_> = admitted
            .iter()
            .map(|judged| (&judged.architecture, judged.quality.value))
            .collect();
        let promise = Promise::new(space, &results);
        let volume = hypervolume(&points);
        let mut first: Option<(f64, u64, Neighbour)> = None;
        for (parent, children) in offers {
            for child in children {
                let costs = sight
                    .foreseen(&child.architecture)
                    .map(|foreseen| foreseen.costs.clone())
                    .unwrap_or_default();
                let mut with = points.clone();
                with.push(sight.point(promise.of(&child.architecture), &costs));
                let grown = hypervolume(&with) - volume;
                if first.as_ref().is_none_or(|(most, ..)| grown > *most) {
                    first = Some((grown, parent.number, child));
                }
            }
        }
        match first {
            Some((_, parent, child)) => {
                let why = format!(
                    "{}, near a gap of the front at number {parent}",
                    space.describe(child.action)
                );
                propose(child.architecture, Some((parent, child.action)), why)
            }
            None if sight.view.pending.is_empty() => Step::Exhausted,
            None => Step::Wait,
        }
    }
}

/// The paper's loop; `None` when no action leads anywhere new.
fn evolve(sight: &Sight, start: Rc<Judged>) -> Option<Step> {
    let mut visited = BTreeSet::from([start.architecture.clone()]);
    let mut incumbent = start;
    loop {
        let children = sight.view.space.neighbours(&incumbent.architecture);
        let children: Vec<Neighbour> = children
            .into_iter()
            .filter(|child| !matches!(child.action, Action::Swap { .. }) && sight.admits(&child.architecture))
            .collect();
        let tried = match evaluate(sight, &incumbent, &children) {
            Ok(tried) => tried,
            Err(step) => return Some(step),
        };
        let open = |tried: &&Tried| !visited.contains(&tried.child.architecture);
        let additions = || {
            tried
                .iter()
                .filter(open)
                .filter(|tried| matches!(tried.action, Action::Add { .. }))
        };
        let removals = || {
            tried
                .iter()
                .filter(open)
                .filter(|tried| matches!(tried.action, Action::Remove { .. }))
        };
        let taken = match incumbent.breaks_limit {
            true => best(removals(), Way::Down),
            false => best(additions(), Way::Up).or_else(|| best(removals(), Way::Down)),
        };
        incumbent = Rc::clone(&taken?.child);
        visited.insert(incumbent.architecture.clone());
    }
}

/// The results of the references, which are known before the first step.
fn references(sight: &Sight) -> Vec<Rc<Judged>> {
    let results =
        sight
            .view
            .space
            .references
            .iter()
            .filter_map(|reference| match sight.seen(&reference.architecture) {
                Seen::Judged(judged) => Some(judged),
                Seen::New | Seen::Pending | Seen::Failed => None,
            });
    results.collect()
}

/// The results of all children, or what must happen before they are there.
fn evaluate(sight: &Sight, parent: &Rc<Judged>, children: &[Neighbour]) -> Result<Vec<Tried>, Step> {
    let mut waits = false;
    let mut tried = Vec::new();
    for Neighbour { action, architecture } in children {
        match sight.seen(architecture) {
            Seen::New => {
                let why = format!("{} of number {}", sight.view.space.describe(*action), parent.number);
                return Err(propose(architecture.clone(), Some((parent.number, *action)), why));
            }
            Seen::Pending => waits = true,
            Seen::Failed => {}
            Seen::Judged(child) => tried.push(Tried {
                action: *action,
                gain: child.quality.value - parent.quality.value,
                error: child.quality.standard_error.hypot(parent.quality.standard_error),
                spent: sight.spent(parent, architecture, *action),
                child,
            }),
        }
    }
    if waits { Err(Step::Wait) } else { Ok(tried) }
}

/// Quality gained per unit spent, or, negated, lost per unit saved: more is better either way.
fn worth(gain: f64, spent: f64) -> f64 {
    gain / spent.abs().max(FLOOR)
}

/// The action to carry out: upwards one that gains more than its error, downwards any.
fn best<'t>(tried: impl Iterator<Item = &'t Tried>, way: Way) -> Option<&'t Tried> {
    let fits = |tried: &&Tried| match way {
        Way::Up => tried.gain > tried.error,
        Way::Down => true,
    };
    let tried: Vec<&Tried> = tried
        .filter(|tried| !tried.child.breaks_limit || way == Way::Down)
        .filter(fits)
        .collect();
    let value = |tried: &Tried| worth(tried.gain, tried.spent);
    let error = |tried: &Tried| worth(tried.error, tried.spent);
    let first = tried
        .iter()
        .copied()
        .reduce(|a, b| if value(b) > value(a) { b } else { a })?;
    let equal = tried
        .into_iter()
        .filter(|other| value(first) - value(other) <= error(first).hypot(error(other)));
    // Without noise only exact ties are left, and the first of the cheapest stays.
    equal.reduce(|a, b| {
        if b.spent.total_cmp(&a.spent) == Ordering::Less {
            b
        } else {
            a
        }
    })
}

fn propose(architecture: Architecture, made: Option<(u64, Action)>, why: String) -> Step {
    let (parent, action) = made.unzip();
    Step::Propose(Proposal {
        architecture,
        parent,
        action,
        why,
    })
}

/// Where the search starts; `None` where the limits admit nothing on the way down from there.
fn start(sight: &Sight, start: &Start) -> Option<Architecture> {
    let space = sight.view.space;
    let mut at = match start {
        Start::Backbone => space.backbone()?,
        Start::Filled => filled(sight),
        Start::Given(architecture) => architecture.clone(),
    };
    // How far beyond the limits, then how small.
    let rank = |architecture: &Architecture| match sight.foreseen(architecture) {
        Some(foreseen) => (foreseen.excess, -foreseen.costs.iter().flatten().sum::<f64>()),
        None => (f64::INFINITY, 0.0),
    };
    while !sight.admits(&at) {
        let children = space
            .neighbours(&at)
            .into_iter()
            .map(|child| (rank(&child.architecture), child.architecture));
        let (least, child) = children.reduce(|a, b| if b.0 < a.0 { b } else { a })?;
        if least.0 >= rank(&at).0 {
            return space.backbone().filter(|backbone| sight.admits(backbone));
        }
        at = child;
    }
    Some(at)
}

/// The largest choice at every position: the last where choices are ordered, else the one that costs
/// most when it stands alone and can run.
fn filled(sight: &Sight) -> Architecture {
    let space = sight.view.space;
    let empty = space
        .backbone()
        .unwrap_or_else(|| Architecture::new(vec![0; space.positions.len()]));
    let mut filled = empty.clone();
    for (position, place) in space.positions.iter().enumerate() {
        let choices = 0..u16::try_from(place.choices.len()).unwrap_or(u16::MAX);
        let cost = |choice: u16| {
            let costs = &sight.foreseen(&empty.with(position, choice))?.costs;
            Some(costs.iter().flatten().sum::<f64>())
        };
        let largest = match space.structure.ordered {
            true => choices.last(),
            false => choices
                .filter_map(|choice| Some((cost(choice)?, choice)))
                .reduce(|a, b| if b.0 >= a.0 { b } else { a })
                .map(|(_, choice)| choice),
        };
        filled = filled.with(position, largest.unwrap_or(0));
    }
    filled
}

//! Searching: results in, proposals out.

use std::collections::BTreeMap;

use protocol::{
    CandidateId, JobId,
    artifacts::{ArtifactRef, ArtifactRole},
    events::EventBody,
    jobs::{EvaluateInput, JobInput, JobKind, LookupInput, OWN_EVALUATOR, ParentWeights},
    searches::{CandidateState, SearchState},
};
use search_spaces::{
    Architecture, Space, metric,
    search::{Advance, Evaluated, Outcome, Proposal, StopReason, front, hypervolume, propose_next, should_stop},
    strategies::AnyStrategy,
};

use super::{SearchError, advance::Move, context::Context, profiling, views};
use crate::{
    dispatch::MAX_ATTEMPTS,
    store::{
        StoreError,
        candidates::{self, CandidateRow, NewCandidate},
        fronts::{self, HistoryPoint},
        jobs::{self, NewJob},
        searches, unsigned,
    },
};

/// A search's candidates with their results, as the strategies see them.
pub(super) struct Candidates {
    pub rows: Vec<CandidateRow>,
    pub architectures: Vec<(u64, Architecture)>,
    pub finished: BTreeMap<u64, Evaluated>,
}

impl Candidates {
    /// Reads all candidates of a search.
    pub(super) async fn read(step: &mut Move<'_>, space: &Space) -> Result<Self, StoreError> {
        Self::of(
            candidates::list(step.tx.connection(), step.search.id, None, None).await?,
            space,
        )
    }

    /// From rows in order of their numbers.
    pub(super) fn of(rows: Vec<CandidateRow>, space: &Space) -> Result<Self, StoreError> {
        let mut architectures = Vec::with_capacity(rows.len());
        let mut finished = BTreeMap::new();
        for row in &rows {
            let number = unsigned(row.number);
            let architecture = space
                .architecture(&row.architecture)
                .map_err(|error| StoreError::inconsistent("candidates", row.id, error))?;
            let outcome = match row.state {
                CandidateState::Evaluated => Some(Outcome::Metrics(views::estimates(&views::known(row)))),
                CandidateState::Infeasible | CandidateState::Failed => Some(Outcome::Failed),
                CandidateState::Proposed | CandidateState::Evaluating => None,
            };
            if let Some(outcome) = outcome {
                finished.insert(
                    number,
                    Evaluated {
                        number,
                        architecture: architecture.clone(),
                        outcome,
                    },
                );
            }
            architectures.push((number, architecture));
        }
        Ok(Self {
            rows,
            architectures,
            finished,
        })
    }

    /// How many cannot run, and are no evaluations.
    fn infeasible(&self) -> u64 {
        let infeasible = |row: &&CandidateRow| row.state == CandidateState::Infeasible;
        self.rows.iter().filter(infeasible).count() as u64
    }

    /// Results that have arrived, in order of their numbers, gaps left out.
    pub(super) fn arrived(&self) -> Vec<Evaluated> {
        self.finished.values().cloned().collect()
    }
}

/// Takes new results over into front and history, proposes what can be proposed, and ends the search when no
/// proposal will follow and every result is there.
pub(super) async fn step(step: &mut Move<'_>) -> Result<bool, SearchError> {
    let context = step.context().await?;
    let (mut known, spent) = take_over(step, &context).await?;
    let end = propose(step, &context, &mut known, spent).await?;
    let Some(reason) = end.filter(|_| known.finished.len() == known.architectures.len()) else {
        return Ok(false);
    };
    end_search(step, &context, &known, reason).await?;
    Ok(true)
}

/// Takes new results over into front and history; answers all candidates and the device-hours spent.
pub(super) async fn take_over(step: &mut Move<'_>, context: &Context) -> Result<(Candidates, f64), StoreError> {
    let known = Candidates::read(step, &context.space).await?;
    let spent = searches::device_seconds(step.tx.connection(), step.search.id)
        .await?
        .total()
        / 3600.0;
    extend_history(step, context, &known, spent).await?;
    update_front(step, context, &known).await?;
    Ok((known, spent))
}

/// Proposes until the width is full or nothing follows; answers why nothing follows.
async fn propose(
    step: &mut Move<'_>,
    context: &Context,
    known: &mut Candidates,
    spent: f64,
) -> Result<Option<&'static str>, SearchError> {
    let space = &context.space;
    let strategy = AnyStrategy::new(&space.search);
    loop {
        let count = known.architectures.len() as u64;
        let infeasible = known.infeasible();
        if let Some(reason) = should_stop(space, &context.ranges, &known.finished, count, infeasible, spent) {
            return Ok(Some(stop_reason(reason)));
        }
        let next = propose_next(
            &strategy,
            space,
            context,
            &context.ranges,
            &known.finished,
            &known.architectures,
            space.search.width,
        );
        match next {
            Advance::Propose(proposal) => {
                insert(step, context, known, count, &proposal).await?;
                known.architectures.push((count, proposal.architecture));
            }
            Advance::Blocked => return Ok(None),
            Advance::Exhausted => return Ok(Some("nothing is left to try")),
        }
    }
}

async fn insert(
    step: &mut Move<'_>,
    context: &Context,
    known: &Candidates,
    number: u64,
    proposal: &Proposal,
) -> Result<(), SearchError> {
    let space = &context.space;
    let predicted = views::metrics(&context.predict(&proposal.architecture).unwrap_or_default());
    let action = proposal.action.map(|action| space.describe(action));
    let id = CandidateId::new();
    let new = NewCandidate {
        id,
        search_id: step.search.id,
        number,
        architecture: &space.print(&proposal.architecture),
        layers: &views::layers(space, &proposal.architecture),
        infeasible: None,
        reference: None,
        parent: proposal.parent,
        action: action.as_deref(),
        why: Some(&proposal.why),
        predicted: &predicted,
    };
    let parent = proposal
        .parent
        .and_then(|parent| known.rows.iter().find(|row| unsigned(row.number) == parent));
    insert_with_job(step, space, &new, parent).await?;
    Ok(())
}

/// Who scores models of a space.
pub(crate) fn evaluator_of(space: &Space) -> &str {
    let evaluation = space.evaluation.as_ref();
    evaluation.map_or(OWN_EVALUATOR, |evaluation| evaluation.evaluator.as_str())
}

/// Inserts a candidate and, unless it is infeasible, the job that evaluates it.
pub(super) async fn insert_with_job(
    step: &mut Move<'_>,
    space: &Space,
    new: &NewCandidate<'_>,
    parent: Option<&CandidateRow>,
) -> Result<(), StoreError> {
    candidates::insert(step.tx, new, step.now).await?;
    if new.infeasible.is_none() {
        let peak = new
            .predicted
            .get(metric::PEAK_MEMORY_BYTES)
            .map_or(0.0, |figure| figure.value);
        let input = evaluation(step, space, new, parent);
        let evaluation = space.evaluation.as_ref();
        let evaluator = evaluator_of(space);
        let job = NewJob {
            id: JobId::new(),
            search_id: Some(step.search.id),
            candidate_id: Some(new.id),
            ranks: match (input.kind(), evaluation) {
                (JobKind::Evaluate, Some(evaluation)) => i32::try_from(evaluation.ranks).unwrap_or(i32::MAX),
                _ => 1,
            },
            evaluator: (input.kind() == JobKind::Evaluate).then(|| evaluator.to_owned()),
            input,
            device: None,
            runtime: None,
            memory_bytes: peak as i64,
            max_attempts: MAX_ATTEMPTS,
        };
        jobs::insert(step.tx, &job, step.now).await?;
    }
    if let Some(row) = candidates::get(step.tx.connection(), new.id).await? {
        step.tx.tell(
            step.search.id,
            EventBody::Candidate {
                candidate: Box::new(views::candidate(row, &[])),
            },
        );
    }
    Ok(())
}

fn evaluation(step: &Move<'_>, space: &Space, new: &NewCandidate<'_>, parent: Option<&CandidateRow>) -> JobInput {
    let (search_id, candidate_id) = (step.search.id, new.id);
    let architecture = new.architecture.to_owned();
    if step.search.table_digest.is_some() {
        return JobInput::Lookup(LookupInput {
            search_id,
            candidate_id,
            architecture,
        });
    }
    let inherits = space.evaluation.as_ref().is_some_and(|evaluation| evaluation.inherit);
    JobInput::Evaluate(EvaluateInput {
        search_id,
        candidate_id,
        number: new.number,
        space: step.search.space.clone(),
        architecture,
        parent_weights: parent.filter(|_| inherits).and_then(parent_weights),
        base: step.search.base.0.clone(),
    })
}

fn parent_weights(parent: &CandidateRow) -> Option<ParentWeights> {
    let weights = parent
        .artifacts
        .iter()
        .find(|artifact: &&ArtifactRef| artifact.role == ArtifactRole::Weights)?;
    Some(ParentWeights {
        architecture: parent.architecture.clone(),
        weights: weights.clone(),
    })
}

/// Appends front and hypervolume after each result, in order of the numbers: a result that overtook another
/// waits for it, so the history does not depend on timing.
async fn extend_history(
    step: &mut Move<'_>,
    context: &Context,
    known: &Candidates,
    spent: f64,
) -> Result<(), StoreError> {
    let last = fronts::last(step.tx.connection(), step.search.id).await?;
    let first = last.map_or(0, |point| point.number + 1);
    let prefix: Vec<Evaluated> = (0..).map_while(|number| known.finished.get(&number)).cloned().collect();
    for number in unsigned(first)..prefix.len() as u64 {
        let seen = &prefix[..=usize::try_from(number).unwrap_or(usize::MAX)];
        let evaluations = known.rows[..seen.len()]
            .iter()
            .filter(|row| row.state != CandidateState::Infeasible)
            .count();
        let members = front(&context.space, &context.ranges, seen);
        let point = HistoryPoint {
            number: number.cast_signed(),
            evaluations: i64::try_from(evaluations).unwrap_or(i64::MAX),
            hypervolume: hypervolume(&context.space, &context.ranges, seen),
            front: members.into_iter().map(u64::cast_signed).collect(),
        };
        fronts::append(step.tx, step.search.id, &point, spent).await?;
    }
    Ok(())
}

/// Marks the front's members among all results so far and tells when it changed.
async fn update_front(step: &mut Move<'_>, context: &Context, known: &Candidates) -> Result<(), StoreError> {
    let arrived = known.arrived();
    let members = front(&context.space, &context.ranges, &arrived);
    let standing = known
        .rows
        .iter()
        .filter(|row| row.on_front)
        .map(|row| unsigned(row.number));
    if standing.eq(members.iter().copied().collect::<std::collections::BTreeSet<_>>()) {
        return Ok(());
    }
    let numbers: Vec<i64> = members.iter().map(|number| number.cast_signed()).collect();
    candidates::set_front(step.tx, step.search.id, &numbers).await?;
    tell_front(step, context, known);
    Ok(())
}

/// Tells the front as it stands.
pub(super) fn tell_front(step: &mut Move<'_>, context: &Context, known: &Candidates) {
    let calibration = step
        .search
        .calibration
        .as_ref()
        .map_or(&[][..], |calibration| calibration.0.as_slice());
    let arrived = known.arrived();
    let members = front(&context.space, &context.ranges, &arrived);
    let points = members
        .iter()
        .filter_map(|number| known.rows.get(usize::try_from(*number).ok()?));
    let points = points
        .map(|row| views::front_point(row, &context.space, calibration))
        .collect();
    let event = EventBody::Front {
        evaluations: (arrived.len() as u64).saturating_sub(known.infeasible()),
        hypervolume: hypervolume(&context.space, &context.ranges, &arrived),
        points,
    };
    step.tx.tell(step.search.id, event);
}

async fn end_search(
    step: &mut Move<'_>,
    context: &Context,
    known: &Candidates,
    reason: &'static str,
) -> Result<(), StoreError> {
    let any = known.rows.iter().any(|row| row.state == CandidateState::Evaluated);
    if !any {
        let first = known
            .rows
            .iter()
            .find_map(|row| row.state_reason.as_deref())
            .unwrap_or("there was none");
        let reason = format!("no candidate could be evaluated ({reason}); the first: {first}");
        return step.go(SearchState::Failed, Some(&reason)).await;
    }
    let measurable = profiling::target(step.search, &context.space).is_some();
    if measurable && context.space.search.finalists > 0 {
        step.go(SearchState::Verifying, Some(reason)).await
    } else {
        step.go(SearchState::Done, Some(reason)).await
    }
}

const fn stop_reason(reason: StopReason) -> &'static str {
    match reason {
        StopReason::MaxEvaluations => "all evaluations of the budget (max_evaluations) were made",
        StopReason::MaxDeviceHours => "the device-hours of the budget (max_device_hours) were spent",
        StopReason::Stalled => "the hypervolume has stopped growing (stall_evaluations)",
    }
}

//! Moving a deployment on.

use std::{collections::BTreeMap, sync::Arc};

use protocol::{
    DeploymentId, JobId, SearchId,
    artifacts::{ArtifactRef, ArtifactRole},
    deployments::{DeployStep, DeploymentSettings, DeploymentState},
    jobs::{JobInput, JobState},
};
use search_spaces::Space;
use sqlx::PgConnection;

use super::{
    DeploymentError,
    plan::{Before, Found, Next, Plan, Standing, next},
};
use crate::{
    app::App,
    aside::aside,
    dispatch::MAX_ATTEMPTS,
    job_requests,
    search::{self, evaluator_of},
    store::{
        StoreError, candidates,
        deployments::{self, DeploymentRow, StepRow},
        jobs::{self, NewJob},
        searches, signed,
    },
};

/// The longest chain of deployments that go on from each other.
const LONGEST_CHAIN: usize = 16;

/// Does all that can be done for a deployment now, and then for those that go on from it. Doing it again changes
/// nothing; several coordinators may at once.
///
/// # Errors
/// When the store fails; the deployment is then as it was, and the next call goes on.
pub async fn advance(app: &Arc<App>, id: DeploymentId) -> Result<(), DeploymentError> {
    let mut waiting = vec![id];
    while let Some(id) = waiting.pop() {
        let mut moved = one_move(app, id, false).await?;
        if let Moved::Measured(search) = moved {
            // Before the end, so that a coordinator that dies in between does it again; in a transaction of its own.
            search::recalibrate(app, search).await?;
            moved = one_move(app, id, true).await?;
        }
        if matches!(moved, Moved::Ended) {
            waiting.extend(app.store.deployments_after(id).await?);
        }
    }
    Ok(())
}

/// What a move came to.
enum Moved {
    /// Something is being done.
    Waits,
    /// All is done, and the search whose candidate was measured has to learn from it.
    Measured(SearchId),
    /// It has ended.
    Ended,
}

/// Advances the deployment whose step a job is, if it is one.
///
/// # Errors
/// As [`advance`].
pub async fn advance_of(app: &Arc<App>, job: JobId) -> Result<(), DeploymentError> {
    match app.store.deployment_of(job).await? {
        Some(id) => advance(app, id).await,
        None => Ok(()),
    }
}

/// Advances every running deployment; what fails for one is logged and does not keep the others.
///
/// # Errors
/// When the list of deployments cannot be read.
pub async fn advance_all(app: &Arc<App>) -> Result<(), StoreError> {
    for id in app.store.running_deployments().await? {
        if let Err(error) = advance(app, id).await {
            tracing::error!(deployment.id = %id, error = &error as &dyn std::error::Error, "a deployment could not be advanced");
        }
    }
    Ok(())
}

/// One move in one transaction under the deployment's row lock.
async fn one_move(app: &App, id: DeploymentId, is_calibrated: bool) -> Result<Moved, DeploymentError> {
    let now = app.clock.now();
    let mut tx = app.store.begin().await?;
    let row = deployments::lock(&mut tx, id).await?;
    let row = row.ok_or(DeploymentError::NotFound(id))?;
    if row.state != DeploymentState::Running {
        return Ok(Moved::Ended);
    }
    let own = standings(tx.connection(), &row).await?;
    let before = before(tx.connection(), &row).await?;
    let start = Start::read(tx.connection(), &row).await?;
    let what = next(&start.plan(&row.settings.0, &row.architecture), &own, &before);
    match what {
        Next::Wait => return Ok(Moved::Waits),
        Next::Ask(step, input) => {
            let job = job(&row, &start.space, step, *input);
            jobs::insert(&mut tx, &job, now).await?;
            deployments::add_step(&mut tx, id, step, job.id).await?;
            tx.wake_followers();
            tx.commit(now).await?;
            return Ok(Moved::Waits);
        }
        Next::Done if own.contains_key(&DeployStep::ProfileModel) && !is_calibrated => {
            return Ok(Moved::Measured(row.search_id));
        }
        Next::Done => deployments::set_state(&mut tx, id, DeploymentState::Done, None, now).await?,
        Next::Fail(why) => deployments::set_state(&mut tx, id, DeploymentState::Failed, Some(&why), now).await?,
    }
    tx.commit(now).await?;
    Ok(Moved::Ended)
}

/// How far a deployment's steps are.
async fn standings(
    connection: &mut PgConnection,
    row: &DeploymentRow,
) -> Result<BTreeMap<DeployStep, Standing>, StoreError> {
    let steps = deployments::steps(connection, &[row.id]).await?;
    Ok(steps.into_iter().map(|step| (step.step, standing(step))).collect())
}

fn standing(step: StepRow) -> Standing {
    match (step.state, step.result) {
        (JobState::Queued | JobState::Leased, _) => Standing::Open,
        (JobState::Succeeded, Some(result)) => Standing::Found(Box::new(Found {
            input: step.input.0,
            result: result.0,
        })),
        (JobState::Cancelled, _) => Standing::Ended(format!("job {} was cancelled", step.job_id)),
        (JobState::Failed | JobState::Succeeded, _) => {
            let error = step.error.unwrap_or_else(|| "it failed".to_owned());
            Standing::Ended(format!("job {}: {error}", step.job_id))
        }
    }
}

/// What a deployment goes on from: the results of the nearest one count.
async fn before(connection: &mut PgConnection, row: &DeploymentRow) -> Result<Before, StoreError> {
    let Some(mut id) = row.after_id else {
        return Ok(Before::Nothing);
    };
    let mut found = BTreeMap::new();
    for _ in 0..LONGEST_CHAIN {
        let earlier = deployments::get(&mut *connection, id).await?;
        let earlier = earlier.ok_or_else(|| StoreError::inconsistent("deployments", id, "another goes on from it"))?;
        match earlier.state {
            DeploymentState::Running => return Ok(Before::Running),
            DeploymentState::Failed | DeploymentState::Cancelled => {
                let why = format!("deployment {id}, from which it goes on, is {}", earlier.state.as_str());
                return Ok(Before::Ended(why));
            }
            DeploymentState::Done => {}
        }
        for (step, standing) in standings(&mut *connection, &earlier).await? {
            if let Standing::Found(result) = standing {
                found.entry(step).or_insert(*result);
            }
        }
        match earlier.after_id {
            Some(before) => id = before,
            None => break,
        }
    }
    Ok(Before::Done(found))
}

/// What never changes of a deployment.
struct Start {
    space: Space,
    weights: Vec<ArtifactRef>,
    base: Vec<ArtifactRef>,
    candidate: Option<protocol::CandidateId>,
}

impl Start {
    async fn read(connection: &mut PgConnection, row: &DeploymentRow) -> Result<Self, DeploymentError> {
        let text = row.space.clone();
        let space = aside(move || Space::parse(&text)).await;
        let space = space.map_err(|error| StoreError::inconsistent("deployments", row.id, error))?;
        let candidate = candidates::get(&mut *connection, row.candidate_id).await?;
        let candidate = candidate.ok_or(DeploymentError::NoCandidate(row.candidate_id))?;
        let search = searches::get(connection, row.search_id).await?;
        let search = search.ok_or_else(|| StoreError::inconsistent("searches", row.search_id, "it has candidates"))?;
        let is_weights = |file: &ArtifactRef| file.role == ArtifactRole::Weights && !row.fresh;
        Ok(Self {
            candidate: (candidate.architecture == row.architecture).then_some(candidate.id),
            weights: candidate.artifacts.0.into_iter().filter(is_weights).collect(),
            base: search.base.0,
            space,
        })
    }

    fn plan<'a>(&'a self, settings: &'a DeploymentSettings, architecture: &'a str) -> Plan<'a> {
        Plan {
            settings,
            space: &self.space,
            architecture,
            candidate: self.candidate,
            weights: &self.weights,
            base: &self.base,
        }
    }
}

fn job(row: &DeploymentRow, space: &Space, step: DeployStep, input: JobInput) -> NewJob {
    let profile = row
        .settings
        .profile
        .as_ref()
        .filter(|_| step == DeployStep::ProfileModel);
    let trains = matches!(step, DeployStep::TrainFinal | DeployStep::Distill);
    NewJob {
        id: JobId::new(),
        search_id: None,
        candidate_id: None,
        ranks: job_requests::ranks(&input),
        evaluator: trains.then(|| evaluator_of(space).to_owned()),
        input,
        device: profile.map(|profile| profile.device.clone()),
        runtime: profile.and_then(|profile| profile.runtime.clone()),
        memory_bytes: if trains { signed(row.settings.memory_bytes) } else { 0 },
        max_attempts: MAX_ATTEMPTS,
    }
}

/// Results of a deployment with those that it goes on from, step by step.
///
/// # Errors
/// When the store fails.
pub(super) async fn results(
    connection: &mut PgConnection,
    row: &DeploymentRow,
) -> Result<BTreeMap<DeployStep, Found>, StoreError> {
    let mut results = match before(&mut *connection, row).await? {
        Before::Done(found) => found,
        _ => BTreeMap::new(),
    };
    for (step, standing) in standings(connection, row).await? {
        if let Standing::Found(found) = standing {
            results.insert(step, *found);
        }
    }
    Ok(results)
}

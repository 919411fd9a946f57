//! Jobs that someone asks for by themselves: making a model what a search starts from, scoring one, taking one to a
//! device.

pub(crate) mod check;

use chrono::{DateTime, Utc};
use protocol::{
    FieldProblem, JobId, SearchId,
    jobs::{DistillInput, JobInput, JobRequest, JobState, TrainFinalInput},
};

use crate::{
    app::App,
    dispatch::MAX_ATTEMPTS,
    search::{SearchError, evaluator_of, read_space},
    store::{
        Store, StoreError,
        jobs::{self, NewJob},
        signed,
    },
};

/// Why a job cannot be had or cancelled.
#[derive(Debug, thiserror::Error)]
pub enum JobRequestError {
    /// There is no such job.
    #[error("there is no job {0}")]
    NotFound(JobId),
    /// Fields of the request are wrong.
    #[error("the request cannot be accepted")]
    Invalid(Vec<FieldProblem>),
    /// The job is a search's, which would ask for it again or wait for it for ever.
    #[error("job {id} belongs to search {search}; cancel the search")]
    OfSearch {
        /// The job.
        id: JobId,
        /// Its search.
        search: SearchId,
    },
    /// The number is another job's.
    #[error("job {0} is another one; draw a fresh id")]
    IdTaken(JobId),
    /// The job has ended.
    #[error("job {id} has ended already: it is {}", state.as_str())]
    Ended {
        /// The job.
        id: JobId,
        /// How it ended.
        state: JobState,
    },
    /// The space of the request is wrong.
    #[error(transparent)]
    Space(#[from] SearchError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Checks a request and queues its job; the same request under the same id again changes nothing.
///
/// # Errors
/// What is wrong with it, by field; or the store fails.
pub async fn submit(app: &App, request: JobRequest) -> Result<JobId, JobRequestError> {
    check::request(app, &request).await?;
    let now = app.clock.now();
    let job = NewJob {
        id: request.id.unwrap_or_default(),
        search_id: None,
        candidate_id: None,
        ranks: ranks(&request.input),
        evaluator: evaluator(&request.input).await?,
        input: request.input,
        device: request.device,
        runtime: None,
        memory_bytes: signed(request.memory_bytes),
        max_attempts: MAX_ATTEMPTS,
    };
    let mut tx = app.store.begin().await?;
    if let Some(standing) = jobs::lock(&mut tx, job.id).await? {
        let is_same = standing.search_id.is_none() && standing.input.0 == job.input && standing.device == job.device;
        return if is_same {
            Ok(job.id)
        } else {
            Err(JobRequestError::IdTaken(job.id))
        };
    }
    jobs::insert(&mut tx, &job, now).await?;
    tx.commit(now).await?;
    Ok(job.id)
}

/// Workers that do a job together.
pub(crate) fn ranks(input: &JobInput) -> i32 {
    let ranks = match input {
        JobInput::PruneBackbone(input) => input.ranks,
        JobInput::TrainFinal(input) => input.ranks,
        JobInput::Distill(input) => input.ranks,
        _ => 1,
    };
    i32::try_from(ranks).unwrap_or(i32::MAX)
}

/// Who must score: of a trained model the evaluator of its space.
pub(crate) async fn evaluator(input: &JobInput) -> Result<Option<String>, SearchError> {
    match input {
        JobInput::Benchmark(input) => Ok(Some(input.evaluator.clone())),
        JobInput::TrainFinal(TrainFinalInput { space, .. }) | JobInput::Distill(DistillInput { space, .. }) => {
            let space = read_space(space).await?;
            Ok(Some(evaluator_of(&space).to_owned()))
        }
        _ => Ok(None),
    }
}

/// Ends a job that belongs to no search; whoever does it learns so by its next heartbeat. Asking again changes nothing.
///
/// # Errors
/// When there is none, it is a search's, or it has ended; or the store fails.
pub async fn cancel(store: &Store, id: JobId, now: DateTime<Utc>) -> Result<(), JobRequestError> {
    let mut tx = store.begin().await?;
    let job = jobs::lock(&mut tx, id).await?.ok_or(JobRequestError::NotFound(id))?;
    if let Some(search) = job.search_id {
        return Err(JobRequestError::OfSearch { id, search });
    }
    match job.state {
        JobState::Cancelled => return Ok(()),
        JobState::Queued | JobState::Leased => jobs::cancel(&mut tx, id, now).await?,
        state @ (JobState::Succeeded | JobState::Failed) => return Err(JobRequestError::Ended { id, state }),
    }
    tx.commit(now).await?;
    Ok(())
}

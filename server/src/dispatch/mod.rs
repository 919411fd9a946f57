//! Handing jobs out and taking results in.
//!
//! A worker takes a job on lease and renews it by heartbeats; hours of work never sit in a transaction. The
//! token of the lease decides who may report, not the clock: a late result of the holder counts, and once
//! the job has been handed on, the old token changes nothing. What several workers do together is in [`gangs`].

mod figures;
mod gangs;
mod graphs;
mod holder;
mod lease;
mod models;
mod reaper;
mod report;

use chrono::{DateTime, TimeDelta, Utc};
use protocol::{FieldProblem, JobId, SearchId, WorkerId, jobs::JobKind};

use crate::{
    config::Config,
    search::views,
    store::{StoreError, Tx, candidates, jobs::JobRow},
};

pub use gangs::{done, rendezvous};
pub use lease::{lease, try_lease};
pub use reaper::{reap, wait_anew};
pub use report::{fail, heartbeat, succeed};

/// How often a job may be handed over before it is given up.
pub const MAX_ATTEMPTS: i32 = 3;

/// Longest part of a log that is kept, in bytes.
pub const LOG_LIMIT: usize = 64 << 10;

/// Longest part of an error that is kept, in bytes.
pub const ERROR_LIMIT: usize = 4 << 10;

/// The longest that a request waits for a job or for the rest of a gang, in seconds.
const LONGEST_WAIT_SECONDS: u32 = 60;

/// How long a waiting request relies on wake-ups: leases run out without one.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// Times by which jobs are dispatched.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Length of a lease.
    pub lease: TimeDelta,
    /// Time between heartbeats.
    pub heartbeat: TimeDelta,
    /// Wait before a failed job is tried again, for each attempt so far.
    pub retry: TimeDelta,
    /// How long the first of a gang waits for the rest.
    pub gather: TimeDelta,
}

impl Rules {
    /// The configured times.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let delta = |duration| TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX);
        Self {
            lease: delta(config.lease),
            heartbeat: delta(config.heartbeat),
            retry: TimeDelta::seconds(1),
            gather: delta(config.gather),
        }
    }

    /// A worker not heard of since then is taken for gone.
    #[must_use]
    pub fn alive_since(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        now - self.lease * 3
    }
}

/// Why a worker's request is refused.
#[derive(Debug, thiserror::Error)]
pub enum DispatchError {
    /// The worker is not registered.
    #[error("worker {0} is not registered; register it first (POST /v1/workers)")]
    UnknownWorker(WorkerId),
    /// There is no such job.
    #[error("there is no job {0}")]
    UnknownJob(JobId),
    /// The token is not, or no longer, that of the job's lease.
    #[error("the lease of job {job} is lost: {why}")]
    LeaseLost {
        /// The job.
        job: JobId,
        /// What became of it.
        why: &'static str,
    },
    /// The job ended with another result under the same token.
    #[error("job {0} has ended with another result; a result is sent again unchanged or not at all")]
    ResultDiffers(JobId),
    /// The report does not fit the job.
    #[error("the report on job {job} cannot be accepted")]
    Unacceptable {
        /// The job.
        job: JobId,
        /// The fields at fault.
        errors: Vec<FieldProblem>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A field at fault in a report.
fn at_fault(job: JobId, field: impl Into<String>, message: impl Into<String>) -> DispatchError {
    let error = FieldProblem {
        field: field.into(),
        line: None,
        column: None,
        message: message.into(),
    };
    DispatchError::Unacceptable {
        job,
        errors: vec![error],
    }
}

/// What becomes of a job whose attempt has ended without a result.
#[derive(Debug, Clone, Copy)]
struct Ending {
    /// Whether another attempt can help.
    retry: bool,
    /// A worker was told to stop: the attempt does not count.
    released: bool,
}

/// Puts a leased job whose attempt has ended back into the queue, or gives it up.
async fn put_back(
    tx: &mut Tx,
    rules: Rules,
    job: &JobRow,
    ending: Ending,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let Ending { retry, released } = ending;
    let goes_on = released || (retry && job.attempts < job.max_attempts);
    if !goes_on {
        return give_up(tx, job, now).await;
    }
    let wait = if released {
        TimeDelta::zero()
    } else {
        rules.retry * job.attempts
    };
    crate::store::jobs::requeue(tx, job.id, now + wait, released).await?;
    let waiting = JobRow {
        progress: 0.0,
        status: None,
        ..job.clone()
    };
    tx.tell(
        job.search_id,
        views::job_event(&waiting, protocol::jobs::JobState::Queued),
    );
    if let Some(candidate) = job.candidate_id
        && candidates::set_proposed(tx, candidate).await?
    {
        tell_candidate(tx, job.search_id, candidate).await?;
    }
    Ok(())
}

/// Gives a leased job up after its attempts, and the candidate with it where the job was to evaluate one.
async fn give_up(tx: &mut Tx, job: &JobRow, now: DateTime<Utc>) -> Result<(), StoreError> {
    crate::store::jobs::fail(tx, job.id, now).await?;
    tx.tell(job.search_id, views::job_event(job, protocol::jobs::JobState::Failed));
    let Some(candidate) = job.candidate_id.filter(|_| job.kind != JobKind::Verify) else {
        return Ok(());
    };
    let errors = crate::store::jobs::errors(tx.connection(), job.id).await?;
    let reason = errors
        .iter()
        .map(|(attempt, error)| format!("attempt {attempt}: {error}"))
        .collect::<Vec<_>>();
    if candidates::set_failed(tx, candidate, &reason.join("; ")).await? {
        tell_candidate(tx, job.search_id, candidate).await?;
    }
    Ok(())
}

/// Tells how a candidate stands now.
async fn tell_candidate(tx: &mut Tx, search: Option<SearchId>, id: protocol::CandidateId) -> Result<(), StoreError> {
    if let Some(row) = candidates::get(tx.connection(), id).await? {
        let candidate = Box::new(views::candidate(row, &[]));
        tx.tell(search, protocol::events::EventBody::Candidate { candidate });
    }
    Ok(())
}

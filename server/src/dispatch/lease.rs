//! Taking jobs.

use std::time::Duration;

use chrono::{DateTime, Utc};
use protocol::{
    jobs::{JobKind, JobState},
    leases::{LeaseRequest, LeasedJob},
};

use super::{DispatchError, Rules, tell_candidate};
use crate::{
    app::Clock,
    event_hub::{EventHub, Topic},
    search::views,
    store::{
        Store, candidates,
        jobs::{self, ClaimTimes, JobRow},
        workers::Capabilities,
    },
};

/// The longest that a request for a job waits, in seconds.
const LONGEST_WAIT_SECONDS: u32 = 60;

/// How long a waiting request relies on wake-ups: leases run out without one.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Leases one job to a worker, waiting for it as long as the request says; none where none came in time.
///
/// # Errors
/// When the worker is not registered or the store fails.
pub async fn lease(
    store: &Store,
    hub: &EventHub,
    clock: &Clock,
    rules: Rules,
    request: &LeaseRequest,
) -> Result<Option<LeasedJob>, DispatchError> {
    let mut woken = hub.subscribe(Topic::Jobs);
    let wait = Duration::from_secs(request.wait_seconds.min(LONGEST_WAIT_SECONDS).into());
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        woken.borrow_and_update();
        let now = clock.now();
        let worker = store.hear_worker(request.worker_id, now).await?;
        let worker = worker.ok_or(DispatchError::UnknownWorker(request.worker_id))?;
        if let Some(job) = try_lease(store, rules, &worker, 1, now).await?.pop() {
            return Ok(Some(job));
        }
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        // Either way the next step is to look; that the hub is gone only means that nobody wakes us.
        let _ = tokio::time::timeout(left.min(LOOK_AGAIN), woken.changed()).await;
    }
}

/// Leases up to `limit` jobs at once, without waiting.
///
/// # Errors
/// When the store fails.
pub async fn try_lease(
    store: &Store,
    rules: Rules,
    worker: &Capabilities,
    limit: i64,
    now: DateTime<Utc>,
) -> Result<Vec<LeasedJob>, DispatchError> {
    let times = ClaimTimes {
        now,
        expires_at: now + rules.lease,
        alive_since: rules.alive_since(now),
    };
    let mut tx = store.begin().await?;
    let taken = jobs::claim(&mut tx, worker, times, limit).await?;
    if taken.is_empty() {
        return Ok(Vec::new());
    }
    for job in &taken {
        tx.note_served(job.search_id);
        tx.tell(job.search_id, views::job_event(job, JobState::Leased));
        if let Some(candidate) = job.candidate_id.filter(|_| job.kind != JobKind::Verify)
            && candidates::set_evaluating(&mut tx, candidate).await?
        {
            tell_candidate(&mut tx, job.search_id, candidate).await?;
        }
    }
    tx.commit(now).await?;
    Ok(taken
        .into_iter()
        .filter_map(|job| leased(job, rules, times.expires_at))
        .collect())
}

/// The lease as its holder sees it; the schema gives every leased job a token.
fn leased(job: JobRow, rules: Rules, expires_at: DateTime<Utc>) -> Option<LeasedJob> {
    Some(LeasedJob {
        job_id: job.id,
        lease_token: job.lease_token?,
        expires_at,
        heartbeat_seconds: u32::try_from(rules.heartbeat.num_seconds()).unwrap_or(1).max(1),
        attempt: job.handovers.unsigned_abs(),
        input: job.input.0,
        checkpoint: job.checkpoint.map(|checkpoint| checkpoint.0),
    })
}

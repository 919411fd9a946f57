//! Taking jobs.

use std::time::Duration;

use chrono::{DateTime, Utc};
use protocol::{
    JobId,
    jobs::{JobKind, JobState},
    leases::{LeaseRequest, LeasedJob, Seat},
};

use super::{DispatchError, LONGEST_WAIT_SECONDS, LOOK_AGAIN, Rules, gangs, tell_candidate};
use crate::{
    app::Clock,
    event_hub::{EventHub, Topic},
    search::views,
    store::{
        Store, StoreError, Tx, candidates,
        jobs::{self, Choice, ClaimTimes, JobRow},
        seats,
        workers::Capabilities,
    },
};

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
        // Searches whose candidates are given up here are moved on by the next sweep.
        gangs::mend(store, rules, now).await?;
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

/// Leases up to `limit` jobs at once, without waiting; of a job for several workers one seat.
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
    let chosen = jobs::choose(&mut tx, worker, times, limit).await?;
    if chosen.is_empty() {
        return Ok(Vec::new());
    }
    let (gangs, alone): (Vec<Choice>, Vec<Choice>) = chosen.into_iter().partition(|job| job.ranks > 1);
    let alone: Vec<JobId> = alone.into_iter().map(|job| job.id).collect();
    let mut leases = Vec::new();
    for job in jobs::take(&mut tx, &alone, worker, times).await? {
        tell_begun(&mut tx, &job).await?;
        leases.extend(leased(job, rules, times.expires_at));
    }
    for job in gangs {
        leases.extend(seated(&mut tx, rules, worker, times, job.id).await?);
    }
    tx.commit(now).await?;
    Ok(leases)
}

/// Gives a worker a seat; the gang begins where it was the last one.
async fn seated(
    tx: &mut Tx,
    rules: Rules,
    worker: &Capabilities,
    times: ClaimTimes,
    id: JobId,
) -> Result<Option<LeasedJob>, StoreError> {
    let Some(job) = jobs::lock(tx, id).await? else {
        return Ok(None);
    };
    let seat = seats::take(tx, id, worker.id, times).await?;
    if let Some(begun) = jobs::begin_gang(tx, id, times).await? {
        tell_begun(tx, &begun).await?;
    }
    let held = JobRow {
        lease_token: Some(seat.token),
        handovers: seat.attempt,
        ..job
    };
    let place = Seat {
        rank: seat.rank.unsigned_abs(),
        ranks: held.ranks.unsigned_abs(),
    };
    let lease = leased(held, rules, times.expires_at);
    Ok(lease.map(|lease| LeasedJob {
        seat: Some(place),
        ..lease
    }))
}

/// Tells that an attempt begins.
async fn tell_begun(tx: &mut Tx, job: &JobRow) -> Result<(), StoreError> {
    tx.note_served(job.search_id);
    tx.tell(job.search_id, views::job_event(job, JobState::Leased));
    if let Some(candidate) = job.candidate_id.filter(|_| job.kind != JobKind::Verify)
        && candidates::set_evaluating(tx, candidate).await?
    {
        tell_candidate(tx, job.search_id, candidate).await?;
    }
    Ok(())
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
        seat: None,
    })
}

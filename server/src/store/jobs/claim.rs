//! Handing jobs out.

use chrono::{DateTime, Utc};
use protocol::{
    CandidateId, JobId, LeaseToken, SearchId, WorkerId,
    artifacts::ArtifactRef,
    jobs::{JobInput, JobKind, JobResult, JobState},
};
use sqlx::types::Json;

use super::{JobRow, attempts::begin_attempt};
use crate::store::{StoreError, Tx, workers::Capabilities};

/// When claims happen and how long they last.
#[derive(Debug, Clone, Copy)]
pub struct ClaimTimes {
    /// Now.
    pub now: DateTime<Utc>,
    /// End of the lease.
    pub expires_at: DateTime<Utc>,
    /// A worker not heard of since then is taken for gone.
    pub alive_since: DateTime<Utc>,
}

/// A job that a worker may take, locked.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    /// The job.
    pub id: JobId,
    /// Workers that do it together.
    pub ranks: i32,
}

/// Up to `limit` jobs that a worker may take, and nobody else until the transaction ends.
///
/// A job may be taken when it waits or its lease has run out, its attempts are not spent, its search runs (or it
/// belongs to none) and the worker can do it. A job that holds its device alone needs the device idle; any other needs
/// that no such job runs or waits there, so that a stream of others cannot keep it waiting for ever. Order: priority,
/// then the search with the fewest running jobs, then the one served longest ago, then age.
///
/// A gang that is being gathered goes before all else, also before a job that waits to hold the device alone: the seats
/// taken there keep that one waiting anyway. A new gang is gathered only where enough workers for it are alive and no
/// other is being gathered that one of them could join: two half-gathered gangs would wait for each other.
///
/// # Errors
/// When Postgres is away.
pub async fn choose(
    tx: &mut Tx,
    worker: &Capabilities,
    times: ClaimTimes,
    limit: i64,
) -> Result<Vec<Choice>, StoreError> {
    // Whether a device is idle is decided by one claim at a time; look-ups run on none.
    if worker.kinds.iter().any(|kind| *kind != JobKind::Lookup) {
        sqlx::query!(
            "SELECT pg_advisory_xact_lock(hashtextextended('device ' || $1, 0))",
            worker.device
        )
        .fetch_one(tx.connection())
        .await?;
        gather_alone(tx).await?;
    }
    let jobs = sqlx::query_as!(
        Choice,
        r#"WITH held AS (
               SELECT j.kind, j.worker_id FROM jobs j
               WHERE j.state = 'leased' AND j.runnable_at > $1 AND j.kind <> 'lookup'
               UNION ALL
               SELECT j.kind, t.worker_id FROM seats t JOIN jobs j ON j.id = t.job_id
               WHERE t.expires_at > $1 AND t.done_at IS NULL AND j.state IN ('queued', 'leased')
                 AND t.attempt = j.handovers + CASE WHEN j.state = 'queued' THEN 1 ELSE 0 END
           ), busy AS (
               SELECT count(*) > 0 AS used, coalesce(bool_or(h.kind IN ('profile', 'verify', 'profile_model')), false) AS held
               FROM held h JOIN workers w ON w.id = h.worker_id WHERE w.device = $4
           ), waiting AS (
               SELECT EXISTS (
                   SELECT FROM jobs j LEFT JOIN searches s ON s.id = j.search_id
                   WHERE j.state IN ('queued', 'leased') AND j.runnable_at <= $1 AND j.attempts < j.max_attempts
                     AND j.kind IN ('profile', 'verify', 'profile_model') AND j.device = $4
                     AND (j.search_id IS NULL OR s.state IN ('profiling', 'verifying'))
                     AND EXISTS (SELECT FROM workers w
                                 WHERE w.device = $4 AND w.last_seen >= $3 AND worker_takes(w, j))
               ) AS exclusive
           ), running AS (
               SELECT search_id, count(*) AS jobs FROM jobs WHERE state = 'leased' AND runnable_at > $1 GROUP BY 1
           ), gathering AS (
               SELECT DISTINCT j.id FROM jobs j JOIN seats t ON t.job_id = j.id AND t.attempt = j.handovers + 1
               WHERE j.ranks > 1 AND j.state = 'queued'
           )
           SELECT j.id AS "id: JobId", j.ranks
           FROM jobs j
           JOIN workers me ON me.id = $2
           LEFT JOIN searches s ON s.id = j.search_id
           LEFT JOIN search_streams t ON t.search_id = j.search_id
           LEFT JOIN running r ON r.search_id = j.search_id
           LEFT JOIN gathering g ON g.id = j.id
           CROSS JOIN busy CROSS JOIN waiting
           WHERE j.state IN ('queued', 'leased') AND j.runnable_at <= $1 AND j.attempts < j.max_attempts
             AND (j.search_id IS NULL OR s.state IN ('profiling', 'searching', 'verifying'))
             AND worker_takes(me, j)
             AND CASE WHEN j.kind IN ('profile', 'verify', 'profile_model') THEN NOT busy.used
                      WHEN j.kind = 'lookup' THEN true
                      ELSE NOT busy.held AND (g.id IS NOT NULL OR NOT waiting.exclusive) END
             AND CASE WHEN j.ranks = 1 THEN true
                      WHEN j.state = 'leased' THEN false
                      WHEN g.id IS NOT NULL THEN true
                      ELSE j.ranks <= (SELECT count(*) FROM workers w WHERE w.last_seen >= $3 AND worker_takes(w, j))
                       AND NOT EXISTS (SELECT FROM gathering o JOIN jobs rival ON rival.id = o.id
                                       JOIN workers w ON w.last_seen >= $3
                                       WHERE worker_takes(w, j) AND worker_takes(w, rival)) END
           ORDER BY (g.id IS NULL), coalesce(s.priority, 0) DESC, coalesce(r.jobs, 0), t.last_served_at NULLS FIRST,
               j.created_at, j.id
           LIMIT $5 FOR UPDATE OF j SKIP LOCKED"#,
        times.now,
        worker.id.0,
        times.alive_since,
        worker.device,
        limit,
    )
    .fetch_all(tx.connection())
    .await?;
    Ok(jobs)
}

/// While gangs wait, seats are given by one claim at a time.
async fn gather_alone(tx: &mut Tx) -> Result<(), StoreError> {
    let waits = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM jobs WHERE ranks > 1 AND state IN ('queued', 'leased')) AS "waits!""#
    );
    if waits.fetch_one(tx.connection()).await? {
        sqlx::query!("SELECT pg_advisory_xact_lock(hashtextextended('gangs', 0))")
            .fetch_one(tx.connection())
            .await?;
    }
    Ok(())
}

/// Leases jobs that were chosen, each to be done by this worker alone.
///
/// # Errors
/// When Postgres is away.
pub async fn take(
    tx: &mut Tx,
    jobs: &[JobId],
    worker: &Capabilities,
    times: ClaimTimes,
) -> Result<Vec<JobRow>, StoreError> {
    let ids: Vec<uuid::Uuid> = jobs.iter().map(|id| id.0).collect();
    let taken = sqlx::query_as!(
        JobRow,
        r#"UPDATE jobs SET state = 'leased', lease_token = gen_random_uuid(), runnable_at = $2, worker_id = $3,
               attempts = attempts + 1, handovers = handovers + 1, progress = 0, status = NULL, metrics = '{}'
           WHERE id = ANY ($1)
           RETURNING id AS "id: JobId", search_id AS "search_id: SearchId",
               candidate_id AS "candidate_id: CandidateId", kind AS "kind: JobKind", input AS "input: Json<JobInput>",
               ranks, device, runtime_name, runtime_version, state AS "state: JobState", attempts, max_attempts,
               handovers, lease_token AS "lease_token: LeaseToken", worker_id AS "worker_id: WorkerId", progress,
               status, checkpoint AS "checkpoint: Json<ArtifactRef>", result AS "result: Json<JobResult>""#,
        &ids,
        times.expires_at,
        worker.id.0,
    )
    .fetch_all(tx.connection())
    .await?;
    for job in &taken {
        begin_attempt(tx, job, worker.id, times.now).await?;
    }
    Ok(taken)
}

/// Leases a queued job to the gang that has taken all its seats, under the token of rank 0; none where one is free.
///
/// # Errors
/// When Postgres is away.
pub async fn begin_gang(tx: &mut Tx, job: JobId, times: ClaimTimes) -> Result<Option<JobRow>, StoreError> {
    let begun = sqlx::query_as!(
        JobRow,
        r#"UPDATE jobs SET state = 'leased', lease_token = first.token, runnable_at = $2, worker_id = first.worker_id,
               attempts = attempts + 1, handovers = handovers + 1, progress = 0, status = NULL, metrics = '{}'
           FROM seats first
           WHERE jobs.id = $1 AND jobs.state = 'queued'
             AND first.job_id = jobs.id AND first.attempt = jobs.handovers + 1 AND first.rank = 0
             AND jobs.ranks = (SELECT count(*) FROM seats t
                               WHERE t.job_id = jobs.id AND t.attempt = jobs.handovers + 1)
           RETURNING jobs.id AS "id: JobId", search_id AS "search_id: SearchId",
               candidate_id AS "candidate_id: CandidateId", kind AS "kind: JobKind", input AS "input: Json<JobInput>",
               ranks, device, runtime_name, runtime_version, state AS "state: JobState", attempts, max_attempts,
               handovers, lease_token AS "lease_token: LeaseToken", jobs.worker_id AS "worker_id: WorkerId", progress,
               status, checkpoint AS "checkpoint: Json<ArtifactRef>", result AS "result: Json<JobResult>""#,
        job.0,
        times.expires_at,
    )
    .fetch_optional(tx.connection())
    .await?;
    if let Some(job) = &begun
        && let Some(worker) = job.worker_id
    {
        begin_attempt(tx, job, worker, times.now).await?;
        tx.wake_workers();
    }
    Ok(begun)
}

//! Seats of gangs: workers that do one job together.

use std::net::SocketAddr;

use chrono::{DateTime, Utc};
use protocol::{JobId, LeaseToken, WorkerId, jobs::DeviceSeconds};

use super::{StoreError, Tx, jobs::ClaimTimes};

/// A worker's place in a gang.
#[derive(Debug, Clone, Copy)]
pub struct SeatRow {
    /// The attempt that it is a place in.
    pub attempt: i32,
    /// From 0.
    pub rank: i32,
    /// Who has it.
    pub worker_id: WorkerId,
    /// Its token.
    pub token: LeaseToken,
}

/// Takes the first free seat of the next attempt at a job that the transaction has locked, or renews the one that the
/// worker has: the answer that told of it was lost.
///
/// # Errors
/// When Postgres is away, or no seat is free.
pub async fn take(tx: &mut Tx, job: JobId, worker: WorkerId, times: ClaimTimes) -> Result<SeatRow, StoreError> {
    let query = sqlx::query_as!(
        SeatRow,
        r#"INSERT INTO seats (job_id, attempt, rank, worker_id, token, taken_at, expires_at)
           SELECT j.id, j.handovers + 1,
               (SELECT min(free) FROM generate_series(0, j.ranks - 1) free
                WHERE NOT EXISTS (SELECT FROM seats t
                                  WHERE t.job_id = j.id AND t.attempt = j.handovers + 1 AND t.rank = free)),
               $2, gen_random_uuid(), $3, $4
           FROM jobs j WHERE j.id = $1
           ON CONFLICT (job_id, attempt, worker_id) DO UPDATE SET expires_at = excluded.expires_at
           RETURNING attempt, rank, worker_id AS "worker_id: WorkerId", token AS "token: LeaseToken""#,
        job.0,
        worker.0,
        times.now,
        times.expires_at,
    );
    Ok(query.fetch_one(tx.connection()).await?)
}

/// The seat of a token.
///
/// # Errors
/// When Postgres is away.
pub async fn find(tx: &mut Tx, job: JobId, token: LeaseToken) -> Result<Option<SeatRow>, StoreError> {
    let query = sqlx::query_as!(
        SeatRow,
        r#"SELECT attempt, rank, worker_id AS "worker_id: WorkerId", token AS "token: LeaseToken"
           FROM seats WHERE job_id = $1 AND token = $2"#,
        job.0,
        token.0,
    );
    Ok(query.fetch_optional(tx.connection()).await?)
}

/// Keeps a seat until a moment, and notes its address where one is given.
///
/// # Errors
/// When Postgres is away.
pub async fn renew(
    tx: &mut Tx,
    seat: &SeatRow,
    expires_at: DateTime<Utc>,
    address: Option<SocketAddr>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE seats SET expires_at = $2, address = coalesce($3, address) WHERE token = $1",
        seat.token.0,
        expires_at,
        address.map(|address| address.to_string()),
    )
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// Notes what a rank has held its device for; its attempt holds the sum over all ranks. Reports may overtake each
/// other: seconds that are known do not shrink.
///
/// # Errors
/// When Postgres is away.
pub async fn note(tx: &mut Tx, job: JobId, seat: &SeatRow, seconds: &DeviceSeconds) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE seats SET train_seconds = greatest(train_seconds, $2), sample_seconds = greatest(sample_seconds, $3),
             score_seconds = greatest(score_seconds, $4), profile_seconds = greatest(profile_seconds, $5)
         WHERE token = $1",
        seat.token.0,
        seconds.train,
        seconds.sample,
        seconds.score,
        seconds.profile,
    )
    .execute(tx.connection())
    .await?;
    sqlx::query!(
        "UPDATE attempts SET train_seconds = all_ranks.train, sample_seconds = all_ranks.sample,
             score_seconds = all_ranks.score, profile_seconds = all_ranks.profile
         FROM (SELECT sum(train_seconds) AS train, sum(sample_seconds) AS sample, sum(score_seconds) AS score,
                      sum(profile_seconds) AS profile
               FROM seats WHERE job_id = $1 AND attempt = $2) all_ranks
         WHERE attempts.job_id = $1 AND attempts.attempt = $2",
        job.0,
        seat.attempt,
    )
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// Notes that a rank has done its share: it sends no heartbeats any more.
///
/// # Errors
/// When Postgres is away.
pub async fn finish(tx: &mut Tx, seat: &SeatRow, now: DateTime<Utc>) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE seats SET done_at = coalesce(done_at, $2) WHERE token = $1",
        seat.token.0,
        now
    )
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// Frees a seat of a gang that is being gathered.
///
/// # Errors
/// When Postgres is away.
pub async fn free(tx: &mut Tx, seat: &SeatRow) -> Result<(), StoreError> {
    sqlx::query!("DELETE FROM seats WHERE token = $1", seat.token.0)
        .execute(tx.connection())
        .await?;
    tx.wake_workers();
    Ok(())
}

/// Frees the seats of a gang that is being gathered: those that expired, or all.
///
/// # Errors
/// When Postgres is away.
pub async fn free_some(
    tx: &mut Tx,
    job: JobId,
    attempt: i32,
    expired: Option<DateTime<Utc>>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "DELETE FROM seats WHERE job_id = $1 AND attempt = $2 AND ($3::timestamptz IS NULL OR expires_at <= $3)",
        job.0,
        attempt,
        expired,
    )
    .execute(tx.connection())
    .await?;
    tx.wake_workers();
    Ok(())
}

/// Where rank 0 of an attempt listens, once it has said so.
///
/// # Errors
/// When Postgres is away, or the address is none.
pub async fn store_address(tx: &mut Tx, job: JobId, attempt: i32) -> Result<Option<SocketAddr>, StoreError> {
    let address = sqlx::query_scalar!(
        "SELECT address FROM seats WHERE job_id = $1 AND attempt = $2 AND rank = 0",
        job.0,
        attempt
    );
    let address = address.fetch_optional(tx.connection()).await?.flatten();
    let parsed = address.map(|text| text.parse()).transpose();
    parsed.map_err(|error| StoreError::inconsistent("seats", job, error))
}

/// Lets every seat that waits or is at work last until a moment at least, and every lease but those of look-ups, which
/// end with their coordinator.
///
/// # Errors
/// When Postgres is away.
pub async fn extend_all(tx: &mut Tx, expires_at: DateTime<Utc>) -> Result<(), StoreError> {
    sqlx::query!(
        "WITH open AS (SELECT id FROM jobs
                       WHERE (state = 'leased' AND kind <> 'lookup') OR (state = 'queued' AND ranks > 1)
                       ORDER BY id FOR NO KEY UPDATE)
         UPDATE jobs SET runnable_at = greatest(runnable_at, $1) FROM open
         WHERE jobs.id = open.id AND jobs.state = 'leased'",
        expires_at,
    )
    .execute(tx.connection())
    .await?;
    sqlx::query!(
        "UPDATE seats SET expires_at = greatest(expires_at, $1) FROM jobs j
         WHERE j.id = seats.job_id AND j.state IN ('queued', 'leased') AND seats.done_at IS NULL
           AND seats.attempt = j.handovers + CASE WHEN j.state = 'queued' THEN 1 ELSE 0 END",
        expires_at,
    )
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// A gang that cannot go on as it is, locked: a worker vanished, or the rest has not come since `overdue`.
///
/// # Errors
/// When Postgres is away.
pub async fn troubled(tx: &mut Tx, now: DateTime<Utc>, overdue: DateTime<Utc>) -> Result<Option<JobId>, StoreError> {
    let query = sqlx::query_scalar!(
        r#"SELECT j.id AS "id: JobId" FROM jobs j
           WHERE j.ranks > 1 AND j.state IN ('queued', 'leased') AND EXISTS (
               SELECT FROM seats t
               WHERE t.job_id = j.id AND t.done_at IS NULL
                 AND t.attempt = j.handovers + CASE WHEN j.state = 'queued' THEN 1 ELSE 0 END
                 AND (t.expires_at <= $1 OR (j.state = 'queued' AND t.taken_at <= $2)))
           ORDER BY j.id LIMIT 1 FOR NO KEY UPDATE OF j SKIP LOCKED"#,
        now,
        overdue,
    );
    Ok(query.fetch_optional(tx.connection()).await?)
}

/// Ranks of an attempt whose workers have vanished, and whether the attempt's first seat was taken before `overdue`.
///
/// # Errors
/// When Postgres is away.
pub async fn trouble(
    tx: &mut Tx,
    job: JobId,
    attempt: i32,
    now: DateTime<Utc>,
    overdue: DateTime<Utc>,
) -> Result<(Vec<i32>, bool), StoreError> {
    let row = sqlx::query!(
        r#"SELECT coalesce(array_agg(rank ORDER BY rank) FILTER (WHERE expires_at <= $3 AND done_at IS NULL), '{}')
                      AS "lost!",
               coalesce(min(taken_at) <= $4, false) AS "is_overdue!"
           FROM seats WHERE job_id = $1 AND attempt = $2"#,
        job.0,
        attempt,
        now,
        overdue,
    )
    .fetch_one(tx.connection())
    .await?;
    Ok((row.lost, row.is_overdue))
}

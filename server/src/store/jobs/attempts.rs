//! Attempts at jobs: their begin and end, what they held and drew.

use chrono::{DateTime, Utc};
use protocol::{
    JobId, WorkerId,
    jobs::{CurvePoint, DeviceSeconds},
};
use sqlx::PgConnection;

use super::JobRow;
use crate::store::{StoreError, Tx, signed};

/// Ends the attempt of a lease that ran out, if there is one, and begins the next.
pub(super) async fn begin_attempt(
    tx: &mut Tx,
    job: &JobRow,
    worker: WorkerId,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    end_attempt(
        tx,
        job.id,
        Some("the lease ran out: its worker sent no heartbeat in time"),
        None,
        now,
    )
    .await?;
    sqlx::query!(
        "INSERT INTO attempts (job_id, attempt, worker_id, started_at) VALUES ($1, $2, $3, $4)",
        job.id.0,
        job.handovers,
        worker.0,
        now,
    )
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// Ends the running attempt of a job; without an error it succeeded. Without a log the last one that came with a
/// heartbeat stays.
///
/// # Errors
/// When Postgres is away.
pub async fn end_attempt(
    tx: &mut Tx,
    job: JobId,
    error: Option<&str>,
    log: Option<&str>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE attempts SET ended_at = $4, error = $2, log = coalesce($3, log) WHERE job_id = $1 AND ended_at IS NULL",
        job.0,
        error,
        log,
        now,
    )
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// Adds to a job's curve; what an attempt draws again replaces what an earlier one drew.
///
/// # Errors
/// When Postgres is away.
pub async fn extend_curve(tx: &mut Tx, id: JobId, curve: &[CurvePoint]) -> Result<(), StoreError> {
    // One row per step, the last one said: a statement may not touch a row twice.
    let points: std::collections::BTreeMap<i64, f64> =
        curve.iter().map(|point| (signed(point.step), point.loss)).collect();
    let (steps, losses): (Vec<i64>, Vec<f64>) = points.into_iter().unzip();
    sqlx::query!(
        "INSERT INTO curve_points (job_id, step, loss) SELECT $1, * FROM unnest($2::bigint[], $3::float8[])
         ON CONFLICT (job_id, step) DO UPDATE SET loss = excluded.loss",
        id.0,
        &steps,
        &losses,
    )
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// Notes what the running attempt of a job has held its device for and, where there is something new, the end of its
/// log. Reports may overtake each other: seconds that are known do not shrink.
///
/// # Errors
/// When Postgres is away.
pub async fn note_attempt(
    tx: &mut Tx,
    id: JobId,
    seconds: &DeviceSeconds,
    log: Option<&str>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE attempts SET train_seconds = greatest(train_seconds, $2),
             sample_seconds = greatest(sample_seconds, $3), score_seconds = greatest(score_seconds, $4),
             profile_seconds = greatest(profile_seconds, $5), log = coalesce($6, log)
         WHERE job_id = $1 AND ended_at IS NULL",
        id.0,
        seconds.train,
        seconds.sample,
        seconds.score,
        seconds.profile,
        log,
    )
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// What all attempts at a job have held their devices for.
///
/// # Errors
/// When Postgres is away.
pub async fn device_seconds(connection: &mut PgConnection, id: JobId) -> Result<DeviceSeconds, StoreError> {
    let query = sqlx::query_as!(
        DeviceSeconds,
        r#"SELECT coalesce(sum(train_seconds), 0) AS "train!", coalesce(sum(sample_seconds), 0) AS "sample!",
               coalesce(sum(score_seconds), 0) AS "score!", coalesce(sum(profile_seconds), 0) AS "profile!"
           FROM attempts WHERE job_id = $1"#,
        id.0,
    );
    Ok(query.fetch_one(connection).await?)
}

/// Errors of a job's attempts, oldest first.
///
/// # Errors
/// When Postgres is away.
pub async fn errors(connection: &mut PgConnection, id: JobId) -> Result<Vec<(i32, String)>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT attempt, error AS "error!" FROM attempts WHERE job_id = $1 AND error IS NOT NULL ORDER BY attempt"#,
        id.0,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.attempt, row.error)).collect())
}

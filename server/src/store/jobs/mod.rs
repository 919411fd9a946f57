//! Jobs and their leases.

use chrono::{DateTime, Utc};
use protocol::{
    CandidateId, JobId, LeaseToken, SearchId, WorkerId,
    artifacts::ArtifactRef,
    devices::RuntimeName,
    jobs::{ExportInput, ExportSubject, JobInput, JobKind, JobResult, JobState, ProfileInput},
    leases::Heartbeat,
    luts::Block,
};
use sqlx::{PgConnection, types::Json};

use super::{StoreError, Tx};

mod attempts;
mod claim;
mod view;

pub use attempts::{device_seconds, end_attempt, errors, extend_curve, note_attempt};
pub use claim::{Choice, ClaimTimes, begin_gang, choose, take};
pub use view::JobFilter;

/// A job as the dispatcher sees it.
#[derive(Debug, Clone)]
pub struct JobRow {
    /// The job.
    pub id: JobId,
    /// The search it belongs to; none for a job that was asked for by itself.
    pub search_id: Option<SearchId>,
    /// The candidate it is for.
    pub candidate_id: Option<CandidateId>,
    /// Its kind.
    pub kind: JobKind,
    /// What to do.
    pub input: Json<JobInput>,
    /// Workers that do it together.
    pub ranks: i32,
    /// The device it must run on.
    pub device: Option<String>,
    /// Name of the runtime that must measure.
    pub runtime_name: Option<String>,
    /// Its version.
    pub runtime_version: Option<String>,
    /// Its state.
    pub state: JobState,
    /// Hand-overs that count.
    pub attempts: i32,
    /// How many may count.
    pub max_attempts: i32,
    /// All hand-overs.
    pub handovers: i32,
    /// Token of the lease, or of the last one.
    pub lease_token: Option<LeaseToken>,
    /// Who holds it, or held it last.
    pub worker_id: Option<WorkerId>,
    /// Share done.
    pub progress: f64,
    /// What it is doing.
    pub status: Option<String>,
    /// Where the next attempt goes on.
    pub checkpoint: Option<Json<ArtifactRef>>,
    /// What was found.
    pub result: Option<Json<JobResult>>,
}

impl JobRow {
    /// The runtime that must measure, where that matters.
    #[must_use]
    pub fn runtime(&self) -> Option<RuntimeName> {
        super::workers::runtime(self.runtime_name.clone(), self.runtime_version.clone())
    }
}

/// What a new job starts with.
pub struct NewJob {
    /// The job.
    pub id: JobId,
    /// The search; none for a job that is asked for by itself.
    pub search_id: Option<SearchId>,
    /// The candidate.
    pub candidate_id: Option<CandidateId>,
    /// What to do.
    pub input: JobInput,
    /// The device it must run on.
    pub device: Option<String>,
    /// The runtime it must be measured with.
    pub runtime: Option<RuntimeName>,
    /// Workers that do it together.
    pub ranks: i32,
    /// The evaluator that its worker must bring; for what is scored, and for that alone.
    pub evaluator: Option<String>,
    /// Memory it needs at least, in bytes.
    pub memory_bytes: i64,
    /// How often it may be handed over.
    pub max_attempts: i32,
}

/// Queues a job.
///
/// # Errors
/// When Postgres is away, or the candidate has such a job already.
pub async fn insert(tx: &mut Tx, new: &NewJob, now: DateTime<Utc>) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO jobs (id, search_id, candidate_id, kind, input, device, runtime_name, runtime_version,
                           memory_bytes, state, runnable_at, max_attempts, created_at, evaluator, ranks)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'queued', $10, $11, $10, $12, $13)",
        new.id.0,
        new.search_id.map(|id| id.0),
        new.candidate_id.map(|id| id.0),
        new.input.kind() as JobKind,
        Json(&new.input) as _,
        new.device,
        new.runtime.as_ref().map(|runtime| runtime.name.as_str()),
        new.runtime.as_ref().map(|runtime| runtime.version.as_str()),
        new.memory_bytes,
        now,
        new.max_attempts,
        new.evaluator,
        new.ranks,
    )
    .execute(tx.connection())
    .await?;
    tx.wake_workers();
    Ok(())
}

/// Reads a job and keeps others from touching it until the transaction ends.
///
/// # Errors
/// When Postgres is away.
pub async fn lock(tx: &mut Tx, id: JobId) -> Result<Option<JobRow>, StoreError> {
    let query = sqlx::query_as!(
        JobRow,
        r#"SELECT id AS "id: JobId", search_id AS "search_id: SearchId",
               candidate_id AS "candidate_id: CandidateId", kind AS "kind: JobKind", input AS "input: Json<JobInput>",
               ranks, device, jobs.runtime_name, jobs.runtime_version, state AS "state: JobState", attempts, max_attempts, handovers,
               lease_token AS "lease_token: LeaseToken", worker_id AS "worker_id: WorkerId", progress, status,
               checkpoint AS "checkpoint: Json<ArtifactRef>", result AS "result: Json<JobResult>"
           FROM jobs WHERE id = $1 FOR NO KEY UPDATE"#,
        id.0,
    );
    Ok(query.fetch_optional(tx.connection()).await?)
}

/// Renews a lease; figures that the heartbeat does not name stand.
///
/// # Errors
/// When Postgres is away.
pub async fn renew(tx: &mut Tx, id: JobId, expires_at: DateTime<Utc>, beat: &Heartbeat) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE jobs SET runnable_at = $2, progress = $3, status = $4, checkpoint = coalesce($5, checkpoint),
             metrics = metrics || $6
         WHERE id = $1 AND state = 'leased'",
        id.0,
        expires_at,
        beat.progress,
        beat.status,
        beat.checkpoint.as_ref().map(Json) as _,
        Json(&beat.metrics) as _,
    )
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// Ends a leased job with its result.
///
/// # Errors
/// When Postgres is away.
pub async fn succeed(tx: &mut Tx, id: JobId, result: &JobResult, now: DateTime<Utc>) -> Result<(), StoreError> {
    note_attempt(tx, id, &result.device_seconds, None).await?;
    sqlx::query!(
        "UPDATE jobs SET state = 'succeeded', result = $2, ended_at = $3, progress = 1
         WHERE id = $1 AND state = 'leased'",
        id.0,
        Json(result) as _,
        now,
    )
    .execute(tx.connection())
    .await?;
    end_attempt(tx, id, None, None, now).await?;
    tx.wake_workers();
    Ok(())
}

/// Puts a leased job back into the queue, not before `runnable_at`; a released attempt does not count.
///
/// # Errors
/// When Postgres is away.
pub async fn requeue(tx: &mut Tx, id: JobId, runnable_at: DateTime<Utc>, released: bool) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE jobs SET state = 'queued', lease_token = NULL, worker_id = NULL, runnable_at = $2,
             attempts = attempts - CASE WHEN $3 THEN 1 ELSE 0 END, progress = 0, status = NULL
         WHERE id = $1 AND state = 'leased'",
        id.0,
        runnable_at,
        released,
    )
    .execute(tx.connection())
    .await?;
    tx.wake_workers();
    Ok(())
}

/// Gives a leased job up.
///
/// # Errors
/// When Postgres is away.
pub async fn fail(tx: &mut Tx, id: JobId, now: DateTime<Utc>) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE jobs SET state = 'failed', ended_at = $2 WHERE id = $1 AND state = 'leased'",
        id.0,
        now
    )
    .execute(tx.connection())
    .await?;
    tx.wake_workers();
    Ok(())
}

/// Puts a queued job off, not to be taken before a moment.
///
/// # Errors
/// When Postgres is away.
pub async fn put_off(tx: &mut Tx, id: JobId, runnable_at: DateTime<Utc>) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE jobs SET runnable_at = $2 WHERE id = $1 AND state = 'queued'",
        id.0,
        runnable_at
    )
    .execute(tx.connection())
    .await?;
    tx.wake_workers();
    Ok(())
}

/// Cancels an open job.
///
/// # Errors
/// When Postgres is away.
pub async fn cancel(tx: &mut Tx, id: JobId, now: DateTime<Utc>) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE jobs SET state = 'cancelled', ended_at = $2 WHERE id = $1 AND state IN ('queued', 'leased')",
        id.0,
        now
    )
    .execute(tx.connection())
    .await?;
    end_attempt(tx, id, Some("the job was cancelled"), None, now).await?;
    tx.wake_workers();
    Ok(())
}

/// Cancels every open job of a search; answers them as they were.
///
/// # Errors
/// When Postgres is away.
pub async fn cancel_open(tx: &mut Tx, search: SearchId, now: DateTime<Utc>) -> Result<Vec<JobId>, StoreError> {
    let cancelled = sqlx::query_scalar!(
        r#"WITH open AS (SELECT id FROM jobs WHERE search_id = $1 AND state IN ('queued', 'leased')
                         ORDER BY id FOR NO KEY UPDATE)
           UPDATE jobs SET state = 'cancelled', ended_at = $2 FROM open WHERE jobs.id = open.id
           RETURNING jobs.id AS "id: JobId""#,
        search.0,
        now,
    )
    .fetch_all(tx.connection())
    .await?;
    for job in &cancelled {
        end_attempt(tx, *job, Some("the search was cancelled"), None, now).await?;
    }
    tx.wake_workers();
    Ok(cancelled)
}

/// Queues an ended job again for as many attempts more; the next one goes on from its checkpoint.
///
/// # Errors
/// When Postgres is away.
pub async fn revive(tx: &mut Tx, id: JobId, attempts: i32, now: DateTime<Utc>) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE jobs SET state = 'queued', lease_token = NULL, worker_id = NULL, runnable_at = $3, ended_at = NULL,
             max_attempts = attempts + $2, progress = 0, status = NULL
         WHERE id = $1 AND state IN ('failed', 'cancelled')",
        id.0,
        attempts,
        now,
    )
    .execute(tx.connection())
    .await?;
    tx.wake_workers();
    Ok(())
}

/// A job whose lease has run out for the last time, locked; none where there is none. Gangs are looked after by
/// their seats.
///
/// # Errors
/// When Postgres is away.
pub async fn spent(tx: &mut Tx, now: DateTime<Utc>) -> Result<Option<JobId>, StoreError> {
    let query = sqlx::query_scalar!(
        r#"SELECT id AS "id: JobId" FROM jobs
           WHERE state = 'leased' AND runnable_at <= $1 AND attempts >= max_attempts AND ranks = 1
           ORDER BY runnable_at LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED"#,
        now,
    );
    Ok(query.fetch_optional(tx.connection()).await?)
}

/// State of every job of a kind in a search.
///
/// # Errors
/// When Postgres is away.
pub async fn states(
    connection: &mut PgConnection,
    search: SearchId,
    kind: JobKind,
) -> Result<Vec<(JobId, Option<CandidateId>, JobState)>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT id AS "id: JobId", candidate_id AS "candidate_id: CandidateId", state AS "state: JobState"
           FROM jobs WHERE search_id = $1 AND kind = $2 ORDER BY id"#,
        search.0,
        kind as JobKind,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.id, row.candidate_id, row.state))
        .collect())
}

/// Device-seconds and number of all blocks that were measured on a device with a runtime; none before any was.
///
/// # Errors
/// When Postgres is away.
pub async fn profile_seconds(
    connection: &mut PgConnection,
    device: &str,
    runtime: &RuntimeName,
) -> Result<Option<(f64, u64)>, StoreError> {
    let row = sqlx::query!(
        r#"SELECT coalesce(sum((SELECT sum(profile_seconds) FROM attempts WHERE job_id = jobs.id)), 0) AS "seconds!",
               coalesce(sum(jsonb_array_length(input -> 'blocks')), 0) AS "blocks!"
           FROM jobs WHERE kind = 'profile' AND state = 'succeeded' AND device = $1
             AND runtime_name = $2 AND runtime_version = $3"#,
        device,
        runtime.name,
        runtime.version,
    )
    .fetch_one(connection)
    .await?;
    Ok((row.blocks > 0).then(|| (row.seconds, super::unsigned(row.blocks))))
}

/// Blocks of a space that a job measures, or exports to be measured.
#[derive(Debug, Clone)]
pub struct OpenMeasurement {
    /// Text of the space file.
    pub space: String,
    /// The blocks.
    pub blocks: Vec<Block>,
}

/// What open jobs measure on a device, or export for it.
///
/// # Errors
/// When Postgres is away.
pub async fn open_measurements(
    connection: &mut PgConnection,
    device: &str,
) -> Result<Vec<OpenMeasurement>, StoreError> {
    let inputs = sqlx::query_scalar!(
        r#"SELECT input AS "input: Json<JobInput>" FROM jobs
           WHERE state IN ('queued', 'leased')
             AND ((kind = 'profile' AND device = $1)
                  OR (kind = 'export' AND input #>> '{subject,profile_on,device}' = $1))"#,
        device,
    )
    .fetch_all(connection)
    .await?;
    let measurements = inputs.into_iter().filter_map(|input| match input.0 {
        JobInput::Profile(ProfileInput { space, blocks, .. })
        | JobInput::Export(ExportInput {
            subject: ExportSubject::Blocks { space, blocks, .. },
            ..
        }) => Some(OpenMeasurement { space, blocks }),
        _ => None,
    });
    Ok(measurements.collect())
}

/// A job of a search that measures blocks or exports them to be measured.
#[derive(Debug, Clone)]
pub struct Measuring {
    /// The job.
    pub id: JobId,
    /// `profile` or `export`.
    pub kind: JobKind,
    /// Its state.
    pub state: JobState,
    /// What it is to do.
    pub input: Json<JobInput>,
}

/// Jobs of a search that measure blocks or export them.
///
/// # Errors
/// When Postgres is away.
pub async fn measuring(connection: &mut PgConnection, search: SearchId) -> Result<Vec<Measuring>, StoreError> {
    let query = sqlx::query_as!(
        Measuring,
        r#"SELECT id AS "id: JobId", kind AS "kind: JobKind", state AS "state: JobState",
               input AS "input: Json<JobInput>"
           FROM jobs WHERE search_id = $1 AND kind IN ('profile', 'export') ORDER BY id"#,
        search.0,
    );
    Ok(query.fetch_all(connection).await?)
}

impl crate::store::Store {
    /// The search of the candidate whose exported model a job measures, if it is such a job.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn search_measured_by(&self, job: JobId) -> Result<Option<SearchId>, StoreError> {
        let query = sqlx::query_scalar!(
            r#"SELECT c.search_id AS "id: SearchId" FROM jobs j
               JOIN candidates c ON c.id = (j.input ->> 'candidate_id')::uuid
               WHERE j.id = $1 AND j.kind = 'profile_model'"#,
            job.0
        );
        Ok(query.fetch_optional(self.pool()).await?)
    }
}

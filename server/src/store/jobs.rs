//! Jobs, their leases and their attempts.

use chrono::{DateTime, Utc};
use protocol::{
    CandidateId, JobId, LeaseToken, Metrics, SearchId, WorkerId,
    artifacts::ArtifactRef,
    devices::RuntimeName,
    jobs::{AttemptView, CurvePoint, DeviceSeconds, JobInput, JobKind, JobResult, JobState, JobView, ProfileInput},
    leases::Heartbeat,
};
use sqlx::{PgConnection, types::Json};

use super::{Store, StoreError, Tx, workers::Capabilities};

/// A job as the dispatcher sees it.
#[derive(Debug, Clone)]
pub struct JobRow {
    /// The job.
    pub id: JobId,
    /// The search it belongs to; none for a profile job that was asked for by itself.
    pub search_id: Option<SearchId>,
    /// The candidate it is for.
    pub candidate_id: Option<CandidateId>,
    /// Its kind.
    pub kind: JobKind,
    /// What to do.
    pub input: Json<JobInput>,
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
    /// The search; only a profile job may belong to none.
    pub search_id: Option<SearchId>,
    /// The candidate.
    pub candidate_id: Option<CandidateId>,
    /// What to do.
    pub input: JobInput,
    /// The device it must run on.
    pub device: Option<String>,
    /// The runtime it must be measured with.
    pub runtime: Option<RuntimeName>,
    /// The evaluator that its worker must bring; for evaluations, and for them alone.
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
                           memory_bytes, state, runnable_at, max_attempts, created_at, evaluator)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'queued', $10, $11, $10, $12)",
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
    )
    .execute(tx.connection())
    .await?;
    tx.wake_workers();
    Ok(())
}

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

/// Hands up to `limit` jobs to a worker.
///
/// A job may be taken when it waits or its lease has run out, its attempts are not spent, its search runs (or it
/// belongs to none) and the worker can do it. A job that holds its device alone needs the device idle; any other needs that no
/// such job runs or waits there, so that a stream of others cannot keep it waiting for ever. Order: priority,
/// then the search with the fewest running jobs, then the one served longest ago, then age.
///
/// # Errors
/// When Postgres is away.
pub async fn claim(
    tx: &mut Tx,
    worker: &Capabilities,
    times: ClaimTimes,
    limit: i64,
) -> Result<Vec<JobRow>, StoreError> {
    // Whether a device is idle is decided by one claim at a time; look-ups run on none.
    if worker.kinds.iter().any(|kind| *kind != JobKind::Lookup) {
        sqlx::query!(
            "SELECT pg_advisory_xact_lock(hashtextextended('device ' || $1, 0))",
            worker.device
        )
        .fetch_one(tx.connection())
        .await?;
    }
    let jobs = sqlx::query_as!(
        JobRow,
        r#"WITH busy AS (
               SELECT count(*) > 0 AS used, coalesce(bool_or(j.kind IN ('profile', 'verify')), false) AS held
               FROM jobs j JOIN workers w ON w.id = j.worker_id
               WHERE j.state = 'leased' AND j.runnable_at > $1 AND j.kind <> 'lookup' AND w.device = $4
           ), waiting AS (
               SELECT EXISTS (
                   SELECT FROM jobs j LEFT JOIN searches s ON s.id = j.search_id
                   WHERE j.state IN ('queued', 'leased') AND j.runnable_at <= $1 AND j.attempts < j.max_attempts
                     AND j.kind IN ('profile', 'verify') AND j.device = $4
                     AND (j.search_id IS NULL OR s.state IN ('profiling', 'verifying'))
                     AND EXISTS (SELECT FROM workers w
                                 WHERE w.device = $4 AND w.last_seen >= $3 AND j.kind = ANY (w.kinds)
                                   AND j.memory_bytes <= w.memory_bytes
                                   AND (j.runtime_name IS NULL
                                        OR (j.runtime_name, j.runtime_version) = (w.runtime_name, w.runtime_version)))
               ) AS exclusive
           ), running AS (
               SELECT search_id, count(*) AS jobs FROM jobs WHERE state = 'leased' AND runnable_at > $1 GROUP BY 1
           ), runnable AS (
               SELECT j.id
               FROM jobs j
               LEFT JOIN searches s ON s.id = j.search_id
               LEFT JOIN search_streams t ON t.search_id = j.search_id
               LEFT JOIN running r ON r.search_id = j.search_id
               CROSS JOIN busy CROSS JOIN waiting
               WHERE j.state IN ('queued', 'leased') AND j.runnable_at <= $1 AND j.attempts < j.max_attempts
                 AND (j.search_id IS NULL OR s.state IN ('profiling', 'searching', 'verifying'))
                 AND j.kind = ANY ($5) AND j.memory_bytes <= $6 AND (j.device IS NULL OR j.device = $4)
                 AND (j.runtime_name IS NULL OR (j.runtime_name = $7 AND j.runtime_version = $8))
                 AND (j.evaluator IS NULL OR j.evaluator = ANY ($11))
                 AND CASE WHEN j.kind IN ('profile', 'verify') THEN NOT busy.used
                          WHEN j.kind = 'lookup' THEN true
                          ELSE NOT busy.held AND NOT waiting.exclusive END
               ORDER BY coalesce(s.priority, 0) DESC, coalesce(r.jobs, 0), t.last_served_at NULLS FIRST, j.created_at, j.id
               LIMIT $9 FOR UPDATE OF j SKIP LOCKED
           )
           UPDATE jobs SET state = 'leased', lease_token = gen_random_uuid(), runnable_at = $2, worker_id = $10,
               attempts = attempts + 1, handovers = handovers + 1, progress = 0, status = NULL,
               metrics = '{}'
           FROM runnable WHERE jobs.id = runnable.id
           RETURNING jobs.id AS "id: JobId", search_id AS "search_id: SearchId",
               candidate_id AS "candidate_id: CandidateId", kind AS "kind: JobKind", input AS "input: Json<JobInput>",
               device, jobs.runtime_name, jobs.runtime_version, state AS "state: JobState", attempts, max_attempts, handovers,
               lease_token AS "lease_token: LeaseToken", worker_id AS "worker_id: WorkerId", progress, status,
               checkpoint AS "checkpoint: Json<ArtifactRef>", result AS "result: Json<JobResult>""#,
        times.now,
        times.expires_at,
        times.alive_since,
        worker.device,
        worker.kinds.as_slice() as &[JobKind],
        worker.memory_bytes,
        worker.runtime.as_ref().map(|runtime| runtime.name.as_str()),
        worker.runtime.as_ref().map(|runtime| runtime.version.as_str()),
        limit,
        worker.id.0,
        worker.evaluators.as_slice(),
    )
    .fetch_all(tx.connection())
    .await?;
    for job in &jobs {
        begin_attempt(tx, job, worker.id, times.now).await?;
    }
    Ok(jobs)
}

/// Ends the attempt of a lease that ran out, if there is one, and begins the next.
async fn begin_attempt(tx: &mut Tx, job: &JobRow, worker: WorkerId, now: DateTime<Utc>) -> Result<(), StoreError> {
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

/// Reads a job and keeps others from touching it until the transaction ends.
///
/// # Errors
/// When Postgres is away.
pub async fn lock(tx: &mut Tx, id: JobId) -> Result<Option<JobRow>, StoreError> {
    let query = sqlx::query_as!(
        JobRow,
        r#"SELECT id AS "id: JobId", search_id AS "search_id: SearchId",
               candidate_id AS "candidate_id: CandidateId", kind AS "kind: JobKind", input AS "input: Json<JobInput>",
               device, jobs.runtime_name, jobs.runtime_version, state AS "state: JobState", attempts, max_attempts, handovers,
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

/// Adds to a job's curve; what an attempt draws again replaces what an earlier one drew.
///
/// # Errors
/// When Postgres is away.
pub async fn extend_curve(tx: &mut Tx, id: JobId, curve: &[CurvePoint]) -> Result<(), StoreError> {
    // One row per step, the last one said: a statement may not touch a row twice.
    let points: std::collections::BTreeMap<i64, f64> = curve
        .iter()
        .map(|point| (super::signed(point.step), point.loss))
        .collect();
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

/// A job whose lease has run out for the last time, locked; none where there is none.
///
/// # Errors
/// When Postgres is away.
pub async fn spent(tx: &mut Tx, now: DateTime<Utc>) -> Result<Option<JobId>, StoreError> {
    let query = sqlx::query_scalar!(
        r#"SELECT id AS "id: JobId" FROM jobs
           WHERE state = 'leased' AND runnable_at <= $1 AND attempts >= max_attempts
           ORDER BY runnable_at LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED"#,
        now,
    );
    Ok(query.fetch_optional(tx.connection()).await?)
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

/// What the open profile jobs of a device ask for.
///
/// # Errors
/// When Postgres is away.
pub async fn open_profiles(connection: &mut PgConnection, device: &str) -> Result<Vec<ProfileInput>, StoreError> {
    let inputs = sqlx::query_scalar!(
        r#"SELECT input AS "input: Json<JobInput>" FROM jobs
           WHERE kind = 'profile' AND device = $1 AND state IN ('queued', 'leased')"#,
        device,
    )
    .fetch_all(connection)
    .await?;
    let profiles = inputs.into_iter().filter_map(|input| match input.0 {
        JobInput::Profile(profile) => Some(profile),
        _ => None,
    });
    Ok(profiles.collect())
}

/// Which jobs to show.
#[derive(Debug, Clone, Copy)]
pub enum JobFilter {
    /// One job.
    One(JobId),
    /// Jobs of a search after a cursor.
    OfSearch(SearchId, Option<JobId>),
    /// Jobs of one search, or of all and none, after a cursor; only those in a state where one is asked for.
    Listed(Option<SearchId>, Option<JobState>, Option<JobId>),
}

impl Store {
    /// Jobs as they are shown, oldest first, at most `limit`.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn job_views(&self, filter: JobFilter, limit: i64) -> Result<Vec<JobView>, StoreError> {
        let (one, search, state, after) = match filter {
            JobFilter::One(id) => (Some(id.0), None, None, None),
            JobFilter::OfSearch(search, after) => (None, Some(search), None, after),
            JobFilter::Listed(search, state, after) => (None, search, state, after),
        };
        let rows = sqlx::query!(
            r#"SELECT id AS "id: JobId", kind AS "kind: JobKind", state AS "state: JobState",
                   search_id AS "search_id: SearchId", candidate_id AS "candidate_id: CandidateId", device,
                   worker_id AS "worker_id: WorkerId", progress, status, metrics AS "metrics: Json<Metrics>",
                   created_at, ended_at
               FROM jobs
               WHERE ($1::uuid IS NULL OR id = $1) AND ($2::uuid IS NULL OR search_id = $2)
                 AND ($3::uuid IS NULL OR id > $3) AND ($4::job_state IS NULL OR state = $4)
               ORDER BY id LIMIT $5"#,
            one,
            search.map(|id| id.0),
            after.map(|id| id.0),
            state as Option<JobState>,
            limit,
        )
        .fetch_all(&self.pool)
        .await?;
        let mut jobs = Vec::with_capacity(rows.len());
        for row in rows {
            let attempts = self.attempts(row.id).await?;
            jobs.push(JobView {
                id: row.id,
                kind: row.kind,
                state: row.state,
                search_id: row.search_id,
                candidate_id: row.candidate_id,
                device: row.device,
                worker_id: row.worker_id,
                progress: row.progress,
                status: row.status,
                metrics: row.metrics.0,
                created_at: row.created_at,
                ended_at: row.ended_at,
                device_seconds: attempts.iter().map(|attempt| attempt.device_seconds).reduce(together),
                attempts,
            });
        }
        Ok(jobs)
    }

    async fn attempts(&self, job: JobId) -> Result<Vec<AttemptView>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT attempt, worker_id AS "worker_id: WorkerId", started_at, ended_at, error, log, train_seconds,
                   sample_seconds, score_seconds, profile_seconds
               FROM attempts WHERE job_id = $1 ORDER BY attempt"#,
            job.0,
        )
        .fetch_all(&self.pool)
        .await?;
        let attempts = rows.into_iter().map(|row| AttemptView {
            attempt: row.attempt.unsigned_abs(),
            worker_id: Some(row.worker_id),
            started_at: row.started_at,
            ended_at: row.ended_at,
            error: row.error,
            log: row.log,
            device_seconds: DeviceSeconds {
                train: row.train_seconds,
                sample: row.sample_seconds,
                score: row.score_seconds,
                profile: row.profile_seconds,
            },
        });
        Ok(attempts.collect())
    }
}

fn together(a: DeviceSeconds, b: DeviceSeconds) -> DeviceSeconds {
    DeviceSeconds {
        train: a.train + b.train,
        sample: a.sample + b.sample,
        score: a.score + b.score,
        profile: a.profile + b.profile,
    }
}

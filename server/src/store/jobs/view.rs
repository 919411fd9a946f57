//! Jobs as they are shown.

use protocol::{
    CandidateId, JobId, Metrics, SearchId, WorkerId,
    jobs::{AttemptView, DeviceSeconds, JobKind, JobResult, JobState, JobView, SeatView},
};
use sqlx::types::Json;

use crate::store::{Store, StoreError};

/// Which jobs to show.
#[derive(Debug, Clone, Copy)]
pub enum JobFilter {
    /// One job.
    One(JobId),
    /// Jobs of a search after a cursor.
    OfSearch(SearchId, Option<JobId>),
    /// Jobs of one search, or of all and none, after a cursor; only those in a state or of a kind where one is asked
    /// for.
    Listed(Option<SearchId>, Option<JobState>, Option<JobKind>, Option<JobId>),
}

impl Store {
    /// Jobs as they are shown, oldest first, at most `limit`.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn job_views(&self, filter: JobFilter, limit: i64) -> Result<Vec<JobView>, StoreError> {
        let (one, search, state, kind, after) = match filter {
            JobFilter::One(id) => (Some(id.0), None, None, None, None),
            JobFilter::OfSearch(search, after) => (None, Some(search), None, None, after),
            JobFilter::Listed(search, state, kind, after) => (None, search, state, kind, after),
        };
        let rows = sqlx::query!(
            r#"SELECT id AS "id: JobId", kind AS "kind: JobKind", state AS "state: JobState",
                   search_id AS "search_id: SearchId", candidate_id AS "candidate_id: CandidateId", device, ranks,
                   worker_id AS "worker_id: WorkerId", progress, status, metrics AS "metrics: Json<Metrics>",
                   created_at, ended_at,
                   CASE WHEN id = $1 THEN result END AS "result: Json<JobResult>"
               FROM jobs
               WHERE ($1::uuid IS NULL OR id = $1) AND ($2::uuid IS NULL OR search_id = $2)
                 AND ($3::uuid IS NULL OR id > $3) AND ($4::job_state IS NULL OR state = $4)
                 AND ($6::job_kind IS NULL OR kind = $6)
               ORDER BY id LIMIT $5"#,
            one,
            search.map(|id| id.0),
            after.map(|id| id.0),
            state as Option<JobState>,
            limit,
            kind as Option<JobKind>,
        )
        .fetch_all(&self.pool)
        .await?;
        let mut jobs = Vec::with_capacity(rows.len());
        for row in rows {
            let attempts = self.attempts(row.id).await?;
            let seats = if row.ranks > 1 {
                self.seats(row.id).await?
            } else {
                Vec::new()
            };
            jobs.push(JobView {
                id: row.id,
                kind: row.kind,
                state: row.state,
                search_id: row.search_id,
                candidate_id: row.candidate_id,
                device: row.device,
                ranks: row.ranks.unsigned_abs(),
                seats,
                worker_id: row.worker_id,
                progress: row.progress,
                status: row.status,
                metrics: row.metrics.0,
                created_at: row.created_at,
                ended_at: row.ended_at,
                device_seconds: attempts.iter().map(|attempt| attempt.device_seconds).reduce(together),
                attempts,
                result: row.result.map(|result| result.0),
            });
        }
        Ok(jobs)
    }

    /// Those that do the job, or wait for the rest.
    async fn seats(&self, job: JobId) -> Result<Vec<SeatView>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT s.rank, s.worker_id AS "worker_id: WorkerId", s.done_at IS NOT NULL AS "done!"
               FROM seats s JOIN jobs j ON j.id = s.job_id
               WHERE j.id = $1 AND s.attempt = j.handovers + CASE WHEN j.state = 'queued' THEN 1 ELSE 0 END
               ORDER BY s.rank"#,
            job.0,
        )
        .fetch_all(&self.pool)
        .await?;
        let seats = rows.into_iter().map(|row| SeatView {
            rank: row.rank.unsigned_abs(),
            worker_id: row.worker_id,
            done: row.done,
        });
        Ok(seats.collect())
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

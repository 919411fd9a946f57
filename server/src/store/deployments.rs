//! Deployments and ablations: their rows, the jobs of their steps.

use chrono::{DateTime, Utc};
use protocol::{
    AblationId, CandidateId, DeploymentId, JobId, Metrics, SearchId,
    ablations::NewAblation,
    deployments::{DeployStep, DeploymentSettings, DeploymentState},
    jobs::{JobInput, JobResult, JobState},
};
use sqlx::{PgConnection, types::Json};

use super::{Store, StoreError, Tx};

/// A deployment as it is stored.
#[derive(Debug, Clone)]
pub struct DeploymentRow {
    /// The deployment.
    pub id: DeploymentId,
    /// The candidate.
    pub candidate_id: CandidateId,
    /// The candidate's search.
    pub search_id: SearchId,
    /// What was asked for.
    pub settings: Json<DeploymentSettings>,
    /// Text of the space file.
    pub space: String,
    /// The architecture in printed form.
    pub architecture: String,
    /// Whether the final training starts from fresh temporal layers.
    pub fresh: bool,
    /// What it goes on from.
    pub after_id: Option<DeploymentId>,
    /// The ablation that it is a cell of.
    pub ablation_id: Option<AblationId>,
    /// Which cell.
    pub cell: Option<String>,
    /// Where it stands.
    pub state: DeploymentState,
    /// Why, for people.
    pub state_reason: Option<String>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
}

/// What a new deployment starts with.
#[derive(Debug, Clone)]
pub struct NewDeploymentRow<'a> {
    /// The deployment.
    pub id: DeploymentId,
    /// The candidate.
    pub candidate_id: CandidateId,
    /// What was asked for.
    pub settings: &'a DeploymentSettings,
    /// Text of the space file.
    pub space: &'a str,
    /// The architecture in printed form.
    pub architecture: &'a str,
    /// Whether the final training starts from fresh temporal layers.
    pub fresh: bool,
    /// The ablation and the cell.
    pub cell: Option<(AblationId, &'a str)>,
}

/// A step that was asked for, with its job.
#[derive(Debug, Clone)]
pub struct StepRow {
    /// The deployment.
    pub deployment_id: DeploymentId,
    /// Which.
    pub step: DeployStep,
    /// Its job.
    pub job_id: JobId,
    /// The job's state.
    pub state: JobState,
    /// What the job is to do.
    pub input: Json<JobInput>,
    /// What it found.
    pub result: Option<Json<JobResult>>,
    /// Share done.
    pub progress: f64,
    /// What it is doing.
    pub status: Option<String>,
    /// Figures so far.
    pub metrics: Json<Metrics>,
    /// Of the attempt that ended last.
    pub error: Option<String>,
}

/// An ablation as it is stored.
#[derive(Debug, Clone)]
pub struct AblationRow {
    /// The ablation.
    pub id: AblationId,
    /// The candidate.
    pub candidate_id: CandidateId,
    /// What was asked for.
    pub request: Json<NewAblation>,
    /// When.
    pub created_at: DateTime<Utc>,
}

/// Inserts a deployment; false, and nothing happens, where its id is taken.
///
/// # Errors
/// When Postgres is away.
pub async fn insert(tx: &mut Tx, new: &NewDeploymentRow<'_>, now: DateTime<Utc>) -> Result<bool, StoreError> {
    let inserted = sqlx::query!(
        "INSERT INTO deployments (id, candidate_id, settings, space, architecture, fresh, after_id, ablation_id, cell,
                                  state, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'running', $10) ON CONFLICT (id) DO NOTHING",
        new.id.0,
        new.candidate_id.0,
        Json(new.settings) as _,
        new.space,
        new.architecture,
        new.fresh,
        new.settings.after.map(|id| id.0),
        new.cell.map(|(id, _)| id.0),
        new.cell.map(|(_, cell)| cell),
        now,
    )
    .execute(tx.connection())
    .await?;
    tx.wake_followers();
    Ok(inserted.rows_affected() == 1)
}

/// Inserts an ablation; false, and nothing happens, where its id is taken.
///
/// # Errors
/// When Postgres is away.
pub async fn insert_ablation(
    tx: &mut Tx,
    id: AblationId,
    request: &NewAblation,
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let inserted = sqlx::query!(
        "INSERT INTO ablations (id, candidate_id, request, created_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (id) DO NOTHING",
        id.0,
        request.candidate_id.0,
        Json(request) as _,
        now,
    )
    .execute(tx.connection())
    .await?;
    Ok(inserted.rows_affected() == 1)
}

/// Reads a deployment and keeps others from touching it until the transaction ends.
///
/// # Errors
/// When Postgres is away.
pub async fn lock(tx: &mut Tx, id: DeploymentId) -> Result<Option<DeploymentRow>, StoreError> {
    sqlx::query!("SELECT FROM deployments WHERE id = $1 FOR NO KEY UPDATE", id.0)
        .fetch_optional(tx.connection())
        .await?;
    get(tx.connection(), id).await
}

/// One deployment.
///
/// # Errors
/// When Postgres is away.
pub async fn get(connection: &mut PgConnection, id: DeploymentId) -> Result<Option<DeploymentRow>, StoreError> {
    let query = sqlx::query_as!(
        DeploymentRow,
        r#"SELECT d.id AS "id: DeploymentId", d.candidate_id AS "candidate_id: CandidateId",
               c.search_id AS "search_id: SearchId", d.settings AS "settings: Json<DeploymentSettings>", d.space,
               d.architecture, d.fresh, d.after_id AS "after_id: DeploymentId",
               d.ablation_id AS "ablation_id: AblationId", d.cell, d.state AS "state: DeploymentState",
               d.state_reason, d.created_at, d.ended_at
           FROM deployments d JOIN candidates c ON c.id = d.candidate_id WHERE d.id = $1"#,
        id.0,
    );
    Ok(query.fetch_optional(connection).await?)
}

/// Which deployments to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeploymentFilter {
    /// Only cells of this ablation.
    pub ablation: Option<AblationId>,
    /// Only of this candidate.
    pub candidate: Option<CandidateId>,
    /// Only in this state.
    pub state: Option<DeploymentState>,
    /// Only those after this one.
    pub after: Option<DeploymentId>,
    /// Also cells of ablations.
    pub cells: bool,
}

/// Deployments, oldest first.
///
/// # Errors
/// When Postgres is away.
pub async fn list(
    connection: &mut PgConnection,
    filter: DeploymentFilter,
    limit: i64,
) -> Result<Vec<DeploymentRow>, StoreError> {
    let query = sqlx::query_as!(
        DeploymentRow,
        r#"SELECT d.id AS "id: DeploymentId", d.candidate_id AS "candidate_id: CandidateId",
               c.search_id AS "search_id: SearchId", d.settings AS "settings: Json<DeploymentSettings>", d.space,
               d.architecture, d.fresh, d.after_id AS "after_id: DeploymentId",
               d.ablation_id AS "ablation_id: AblationId", d.cell, d.state AS "state: DeploymentState",
               d.state_reason, d.created_at, d.ended_at
           FROM deployments d JOIN candidates c ON c.id = d.candidate_id
           WHERE ($1::uuid IS NULL OR d.ablation_id = $1) AND ($2::uuid IS NULL OR d.candidate_id = $2)
             AND ($3::deployment_state IS NULL OR d.state = $3) AND ($4::uuid IS NULL OR d.id > $4)
             AND ($5 OR d.ablation_id IS NULL)
           ORDER BY d.id LIMIT $6"#,
        filter.ablation.map(|id| id.0),
        filter.candidate.map(|id| id.0),
        filter.state as Option<DeploymentState>,
        filter.after.map(|id| id.0),
        filter.cells || filter.ablation.is_some(),
        limit,
    );
    Ok(query.fetch_all(connection).await?)
}

/// Notes which job does a step.
///
/// # Errors
/// When Postgres is away, or the step has a job.
pub async fn add_step(tx: &mut Tx, id: DeploymentId, step: DeployStep, job: JobId) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO deployment_steps (deployment_id, step, job_id) VALUES ($1, $2, $3)",
        id.0,
        step as DeployStep,
        job.0,
    )
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// Moves a deployment on; `ended_at` follows from the state.
///
/// # Errors
/// When Postgres is away.
pub async fn set_state(
    tx: &mut Tx,
    id: DeploymentId,
    state: DeploymentState,
    reason: Option<&str>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE deployments SET state = $2, state_reason = $3,
             ended_at = CASE WHEN $2 = 'running'::deployment_state THEN NULL ELSE $4::timestamptz END
         WHERE id = $1",
        id.0,
        state as DeploymentState,
        reason,
        now,
    )
    .execute(tx.connection())
    .await?;
    tx.wake_followers();
    Ok(())
}

/// Steps of deployments that were asked for, in order, with their jobs.
///
/// # Errors
/// When Postgres is away.
pub async fn steps(connection: &mut PgConnection, ids: &[DeploymentId]) -> Result<Vec<StepRow>, StoreError> {
    let ids: Vec<uuid::Uuid> = ids.iter().map(|id| id.0).collect();
    let query = sqlx::query_as!(
        StepRow,
        r#"SELECT s.deployment_id AS "deployment_id: DeploymentId", s.step AS "step: DeployStep",
               s.job_id AS "job_id: JobId", j.state AS "state: JobState", j.input AS "input: Json<JobInput>",
               j.result AS "result: Json<JobResult>", j.progress, j.status, j.metrics AS "metrics: Json<Metrics>",
               (SELECT a.error FROM attempts a WHERE a.job_id = j.id AND a.error IS NOT NULL
                ORDER BY a.attempt DESC LIMIT 1) AS error
           FROM deployment_steps s JOIN jobs j ON j.id = s.job_id
           WHERE s.deployment_id = ANY ($1) ORDER BY s.deployment_id, s.step"#,
        &ids,
    );
    Ok(query.fetch_all(connection).await?)
}

impl Store {
    /// One deployment.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn deployment(&self, id: DeploymentId) -> Result<Option<DeploymentRow>, StoreError> {
        get(&mut *self.connection().await?, id).await
    }

    /// Deployments, oldest first.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn deployments(&self, filter: DeploymentFilter, limit: i64) -> Result<Vec<DeploymentRow>, StoreError> {
        list(&mut *self.connection().await?, filter, limit).await
    }

    /// Steps of deployments that were asked for.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn deployment_steps(&self, ids: &[DeploymentId]) -> Result<Vec<StepRow>, StoreError> {
        steps(&mut *self.connection().await?, ids).await
    }

    /// Deployments that run.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn running_deployments(&self) -> Result<Vec<DeploymentId>, StoreError> {
        let query = sqlx::query_scalar!(
            r#"SELECT id AS "id: DeploymentId" FROM deployments WHERE state = 'running' ORDER BY id"#
        );
        Ok(query.fetch_all(self.pool()).await?)
    }

    /// The running deployments that a job's end concerns: the one whose step it is.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn deployment_of(&self, job: JobId) -> Result<Option<DeploymentId>, StoreError> {
        let query = sqlx::query_scalar!(
            r#"SELECT deployment_id AS "id: DeploymentId" FROM deployment_steps WHERE job_id = $1"#,
            job.0
        );
        Ok(query.fetch_optional(self.pool()).await?)
    }

    /// The running deployments that go on from one.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn deployments_after(&self, id: DeploymentId) -> Result<Vec<DeploymentId>, StoreError> {
        let query = sqlx::query_scalar!(
            r#"SELECT id AS "id: DeploymentId" FROM deployments WHERE after_id = $1 AND state = 'running' ORDER BY id"#,
            id.0
        );
        Ok(query.fetch_all(self.pool()).await?)
    }

    /// One ablation.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn ablation(&self, id: AblationId) -> Result<Option<AblationRow>, StoreError> {
        let query = sqlx::query_as!(
            AblationRow,
            r#"SELECT id AS "id: AblationId", candidate_id AS "candidate_id: CandidateId",
                   request AS "request: Json<NewAblation>", created_at
               FROM ablations WHERE id = $1"#,
            id.0
        );
        Ok(query.fetch_optional(self.pool()).await?)
    }

    /// Ablations after one, oldest first.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn ablations(&self, after: Option<AblationId>, limit: i64) -> Result<Vec<AblationRow>, StoreError> {
        let query = sqlx::query_as!(
            AblationRow,
            r#"SELECT id AS "id: AblationId", candidate_id AS "candidate_id: CandidateId",
                   request AS "request: Json<NewAblation>", created_at
               FROM ablations WHERE ($1::uuid IS NULL OR id > $1) ORDER BY id LIMIT $2"#,
            after.map(|id| id.0),
            limit,
        );
        Ok(query.fetch_all(self.pool()).await?)
    }
}

//! Candidates.

use chrono::{DateTime, Utc};
use protocol::{
    CandidateId, JobId, Metrics, SearchId,
    artifacts::ArtifactRef,
    jobs::{CurvePoint, DeviceSeconds},
    searches::{CandidateState, LayerView},
};
use sqlx::{PgConnection, types::Json};

use super::{Store, StoreError, Tx, unsigned};

/// A candidate as it is stored.
#[derive(Debug, Clone)]
pub struct CandidateRow {
    /// The candidate.
    pub id: CandidateId,
    /// The search.
    pub search_id: SearchId,
    /// Its number, from 0.
    pub number: i64,
    /// The architecture in printed form.
    pub architecture: String,
    /// The same, position by position.
    pub layers: Json<Vec<LayerView>>,
    /// Where it stands.
    pub state: CandidateState,
    /// Why, where it is infeasible or failed.
    pub state_reason: Option<String>,
    /// The reference architecture's name.
    pub reference: Option<String>,
    /// Number of the candidate it was made from.
    pub parent: Option<i64>,
    /// What made it from its parent.
    pub action: Option<String>,
    /// Why the strategy proposed it.
    pub why: Option<String>,
    /// Figures known before evaluation.
    pub predicted: Json<Metrics>,
    /// Figures of the evaluation.
    pub measured: Json<Metrics>,
    /// Figures measured whole.
    pub verified: Json<Metrics>,
    /// What the device said when it ran out of memory while the whole was measured.
    pub out_of_memory: Option<String>,
    /// Who scored it.
    pub evaluator: Option<String>,
    /// Whether it stands on the front.
    pub on_front: bool,
    /// Device-seconds of its evaluation.
    pub device_seconds: Option<Json<DeviceSeconds>>,
    /// Weights, samples, curve.
    pub artifacts: Json<Vec<ArtifactRef>>,
    /// When it was proposed.
    pub created_at: DateTime<Utc>,
    /// When its figures came.
    pub evaluated_at: Option<DateTime<Utc>>,
    /// The job that evaluates it.
    pub job_id: Option<JobId>,
}

/// What a new candidate starts with.
pub struct NewCandidate<'a> {
    /// The candidate.
    pub id: CandidateId,
    /// The search.
    pub search_id: SearchId,
    /// Its number.
    pub number: u64,
    /// The architecture in printed form.
    pub architecture: &'a str,
    /// The same, position by position.
    pub layers: &'a [LayerView],
    /// Why it is not evaluated; absent where it is.
    pub infeasible: Option<&'a str>,
    /// The reference architecture's name.
    pub reference: Option<&'a str>,
    /// Number of the candidate it is made from.
    pub parent: Option<u64>,
    /// What makes it from its parent.
    pub action: Option<&'a str>,
    /// Why the strategy proposes it.
    pub why: Option<&'a str>,
    /// Figures known before evaluation.
    pub predicted: &'a Metrics,
}

/// Inserts a candidate, proposed or infeasible.
///
/// # Errors
/// When Postgres is away, or number or architecture are taken.
pub async fn insert(tx: &mut Tx, new: &NewCandidate<'_>, now: DateTime<Utc>) -> Result<(), StoreError> {
    let state = if new.infeasible.is_some() {
        CandidateState::Infeasible
    } else {
        CandidateState::Proposed
    };
    sqlx::query!(
        "INSERT INTO candidates (id, search_id, number, architecture, layers, state, state_reason, reference, parent,
                                 action, why, predicted, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
        new.id.0,
        new.search_id.0,
        new.number.cast_signed(),
        new.architecture,
        Json(new.layers) as _,
        state as CandidateState,
        new.infeasible,
        new.reference,
        new.parent.map(u64::cast_signed),
        new.action,
        new.why,
        Json(new.predicted) as _,
        now,
    )
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// Notes that a worker has a proposed candidate in its hands.
///
/// # Errors
/// When Postgres is away.
pub async fn set_evaluating(tx: &mut Tx, id: CandidateId) -> Result<bool, StoreError> {
    let moved = sqlx::query!(
        "UPDATE candidates SET state = 'evaluating' WHERE id = $1 AND state = 'proposed'",
        id.0
    )
    .execute(tx.connection())
    .await?;
    Ok(moved.rows_affected() == 1)
}

/// Notes that a candidate waits for a worker again.
///
/// # Errors
/// When Postgres is away.
pub async fn set_proposed(tx: &mut Tx, id: CandidateId) -> Result<bool, StoreError> {
    let moved = sqlx::query!(
        "UPDATE candidates SET state = 'proposed' WHERE id = $1 AND state = 'evaluating'",
        id.0
    )
    .execute(tx.connection())
    .await?;
    Ok(moved.rows_affected() == 1)
}

/// What an evaluation found.
pub struct Evaluation<'a> {
    /// Its figures.
    pub measured: &'a Metrics,
    /// Who scored.
    pub evaluator: Option<&'a str>,
    /// What it held its device for.
    pub device_seconds: DeviceSeconds,
    /// Weights, samples, curve.
    pub artifacts: &'a [ArtifactRef],
}

/// Stores an evaluation; false, and nothing happens, where the candidate's figures stand or it was given up.
///
/// # Errors
/// When Postgres is away.
pub async fn set_evaluated(
    tx: &mut Tx,
    id: CandidateId,
    evaluation: &Evaluation<'_>,
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let moved = sqlx::query!(
        "UPDATE candidates SET state = 'evaluated', measured = $2, evaluator = $3, device_seconds = $4,
             artifacts = $5, evaluated_at = $6
         WHERE id = $1 AND state IN ('proposed', 'evaluating')",
        id.0,
        Json(evaluation.measured) as _,
        evaluation.evaluator,
        Json(evaluation.device_seconds) as _,
        Json(evaluation.artifacts) as _,
        now,
    )
    .execute(tx.connection())
    .await?;
    Ok(moved.rows_affected() == 1)
}

/// Gives a candidate up.
///
/// # Errors
/// When Postgres is away.
pub async fn set_failed(tx: &mut Tx, id: CandidateId, reason: &str) -> Result<bool, StoreError> {
    let moved = sqlx::query!(
        "UPDATE candidates SET state = 'failed', state_reason = $2
         WHERE id = $1 AND state IN ('proposed', 'evaluating')",
        id.0,
        reason,
    )
    .execute(tx.connection())
    .await?;
    Ok(moved.rows_affected() == 1)
}

/// Stores figures measured whole; artifacts of the measurement join those of the evaluation.
///
/// # Errors
/// When Postgres is away.
pub async fn set_verified(
    tx: &mut Tx,
    id: CandidateId,
    verified: &Metrics,
    artifacts: &[ArtifactRef],
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE candidates SET verified = $2, artifacts = artifacts || $3::jsonb WHERE id = $1",
        id.0,
        Json(verified) as _,
        Json(artifacts) as _,
    )
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// Notes that the device ran out of memory while a candidate was measured whole.
///
/// # Errors
/// When Postgres is away.
pub async fn set_out_of_memory(tx: &mut Tx, id: CandidateId, detail: &str) -> Result<(), StoreError> {
    sqlx::query!("UPDATE candidates SET out_of_memory = $2 WHERE id = $1", id.0, detail)
        .execute(tx.connection())
        .await?;
    Ok(())
}

/// Makes exactly these numbers the front.
///
/// # Errors
/// When Postgres is away.
pub async fn set_front(tx: &mut Tx, search: SearchId, numbers: &[i64]) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE candidates SET on_front = NOT on_front
         WHERE search_id = $1 AND on_front <> (number = ANY ($2))",
        search.0,
        numbers,
    )
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// Candidates of a search after a number, in order of their numbers, at most `limit`.
///
/// # Errors
/// When Postgres is away.
pub async fn list(
    connection: &mut PgConnection,
    search: SearchId,
    after: Option<i64>,
    limit: Option<i64>,
) -> Result<Vec<CandidateRow>, StoreError> {
    let query = sqlx::query_as!(
        CandidateRow,
        r#"SELECT c.id AS "id: CandidateId", c.search_id AS "search_id: SearchId", c.number, c.architecture,
               c.layers AS "layers: Json<Vec<LayerView>>", c.state AS "state: CandidateState", c.state_reason,
               c.reference, c.parent, c.action, c.why, c.predicted AS "predicted: Json<Metrics>",
               c.measured AS "measured: Json<Metrics>", c.verified AS "verified: Json<Metrics>",
               c.out_of_memory, c.evaluator, c.on_front, c.device_seconds AS "device_seconds: Json<DeviceSeconds>",
               c.artifacts AS "artifacts: Json<Vec<ArtifactRef>>", c.created_at, c.evaluated_at,
               j.id AS "job_id?: JobId"
           FROM candidates c LEFT JOIN jobs j ON j.candidate_id = c.id AND (j.kind = 'verify') = false
           WHERE c.search_id = $1 AND ($2::bigint IS NULL OR c.number > $2) ORDER BY c.number LIMIT $3"#,
        search.0,
        after,
        limit,
    );
    Ok(query.fetch_all(connection).await?)
}

/// One candidate.
///
/// # Errors
/// When Postgres is away.
pub async fn get(connection: &mut PgConnection, id: CandidateId) -> Result<Option<CandidateRow>, StoreError> {
    let query = sqlx::query_as!(
        CandidateRow,
        r#"SELECT c.id AS "id: CandidateId", c.search_id AS "search_id: SearchId", c.number, c.architecture,
               c.layers AS "layers: Json<Vec<LayerView>>", c.state AS "state: CandidateState", c.state_reason,
               c.reference, c.parent, c.action, c.why, c.predicted AS "predicted: Json<Metrics>",
               c.measured AS "measured: Json<Metrics>", c.verified AS "verified: Json<Metrics>",
               c.out_of_memory, c.evaluator, c.on_front, c.device_seconds AS "device_seconds: Json<DeviceSeconds>",
               c.artifacts AS "artifacts: Json<Vec<ArtifactRef>>", c.created_at, c.evaluated_at,
               j.id AS "job_id?: JobId"
           FROM candidates c LEFT JOIN jobs j ON j.candidate_id = c.id AND (j.kind = 'verify') = false
           WHERE c.id = $1"#,
        id.0,
    );
    Ok(query.fetch_optional(connection).await?)
}

impl Store {
    /// Candidates of a search after a number, at most `limit`.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn candidates(
        &self,
        search: SearchId,
        after: Option<i64>,
        limit: Option<i64>,
    ) -> Result<Vec<CandidateRow>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        list(&mut connection, search, after, limit).await
    }

    /// One candidate.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn candidate(&self, id: CandidateId) -> Result<Option<CandidateRow>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        get(&mut connection, id).await
    }

    /// The curve that a candidate's evaluation has drawn so far.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn curve(&self, id: CandidateId) -> Result<Vec<CurvePoint>, StoreError> {
        let rows = sqlx::query!(
            "SELECT p.step, p.loss FROM curve_points p JOIN jobs j ON j.id = p.job_id
             WHERE j.candidate_id = $1 AND j.kind <> 'verify' ORDER BY p.step",
            id.0,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| CurvePoint {
                step: unsigned(row.step),
                loss: row.loss,
            })
            .collect())
    }
}

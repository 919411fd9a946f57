//! Searches: their rows, their moves from state to state, and the figures shown with them.

use chrono::{DateTime, Utc};
use protocol::{
    ArtifactDigest, SearchId,
    artifacts::ArtifactRef,
    devices::RuntimeName,
    events::EventBody,
    jobs::DeviceSeconds,
    searches::{CalibrationView, EliminationView, SearchState},
};
use sqlx::{PgConnection, types::Json};

use super::{Store, StoreError, Tx, unsigned, workers::runtime};

/// A search as it is stored.
#[derive(Debug, Clone)]
pub struct SearchRow {
    /// The search.
    pub id: SearchId,
    /// For people.
    pub name: String,
    /// The space's name.
    pub space_name: String,
    /// The space file's text.
    pub space: String,
    /// The device whose costs count.
    pub device: Option<String>,
    /// Name of its runtime.
    pub runtime_name: Option<String>,
    /// Version of its runtime.
    pub runtime_version: Option<String>,
    /// The table of a table space.
    pub table_digest: Option<String>,
    /// The strategy's name.
    pub strategy: String,
    /// The seed's bits.
    pub seed: i64,
    /// Larger goes first.
    pub priority: i32,
    /// The most it may evaluate.
    pub max_evaluations: i64,
    /// Files that evaluations start from.
    pub base: Json<Vec<ArtifactRef>>,
    /// Where it stands.
    pub state: SearchState,
    /// Where it goes on when resumed.
    pub paused_from: Option<SearchState>,
    /// For people.
    pub state_reason: Option<String>,
    /// The coarse step's outcome.
    pub elimination: Option<Json<EliminationView>>,
    /// Box of the hypervolume, per objective.
    pub ranges: Option<Json<Vec<(f64, f64)>>>,
    /// What verification taught.
    pub calibration: Option<Json<Vec<CalibrationView>>>,
    /// When it was submitted.
    pub created_at: DateTime<Utc>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
}

impl SearchRow {
    /// The runtime whose costs count.
    #[must_use]
    pub fn runtime(&self) -> Option<RuntimeName> {
        runtime(self.runtime_name.clone(), self.runtime_version.clone())
    }
}

/// What a new search starts with.
pub struct NewSearchRow<'a> {
    /// The search.
    pub id: SearchId,
    /// For people.
    pub name: &'a str,
    /// The space's name.
    pub space_name: &'a str,
    /// The space file's text.
    pub space: &'a str,
    /// The device whose costs count.
    pub device: Option<&'a str>,
    /// Its runtime.
    pub runtime: Option<&'a RuntimeName>,
    /// The table of a table space.
    pub table: Option<&'a ArtifactDigest>,
    /// The strategy's name.
    pub strategy: &'a str,
    /// The seed.
    pub seed: u64,
    /// Larger goes first.
    pub priority: i32,
    /// The most it may evaluate.
    pub max_evaluations: u32,
    /// Files that evaluations start from.
    pub base: &'a [ArtifactRef],
}

/// Inserts a search in its first state, `profiling`.
///
/// # Errors
/// When Postgres is away.
pub async fn insert(tx: &mut Tx, new: &NewSearchRow<'_>, now: DateTime<Utc>) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO searches (id, name, space_name, space, device, runtime_name, runtime_version, table_digest,
                               strategy, seed, priority, max_evaluations, base, state, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, 'profiling', $14)",
        new.id.0,
        new.name,
        new.space_name,
        new.space,
        new.device,
        new.runtime.map(|runtime| runtime.name.as_str()),
        new.runtime.map(|runtime| runtime.version.as_str()),
        new.table.map(ArtifactDigest::as_str),
        new.strategy,
        new.seed.cast_signed(),
        new.priority,
        i64::from(new.max_evaluations),
        Json(new.base) as _,
        now,
    )
    .execute(tx.connection())
    .await?;
    sqlx::query!("INSERT INTO search_streams (search_id) VALUES ($1)", new.id.0)
        .execute(tx.connection())
        .await?;
    tx.tell(
        new.id,
        EventBody::SearchState {
            state: SearchState::Profiling,
            reason: None,
        },
    );
    Ok(())
}

/// Reads a search and keeps others from advancing it until the transaction ends.
///
/// # Errors
/// When Postgres is away.
pub async fn lock(connection: &mut PgConnection, id: SearchId) -> Result<Option<SearchRow>, StoreError> {
    // NO KEY: rows that only refer to the search may be inserted meanwhile.
    sqlx::query!("SELECT id FROM searches WHERE id = $1 FOR NO KEY UPDATE", id.0)
        .fetch_optional(&mut *connection)
        .await?;
    get(connection, id).await
}

/// Reads a search.
///
/// # Errors
/// When Postgres is away.
pub async fn get(connection: &mut PgConnection, id: SearchId) -> Result<Option<SearchRow>, StoreError> {
    let query = sqlx::query_as!(
        SearchRow,
        r#"SELECT id AS "id: SearchId", name, space_name, space, device, runtime_name, runtime_version, table_digest,
               strategy, seed, priority, max_evaluations, base AS "base: Json<Vec<ArtifactRef>>",
               state AS "state: SearchState",
               paused_from AS "paused_from: SearchState", state_reason,
               elimination AS "elimination: Json<EliminationView>", ranges AS "ranges: Json<Vec<(f64, f64)>>",
               calibration AS "calibration: Json<Vec<CalibrationView>>", created_at, ended_at
           FROM searches WHERE id = $1"#,
        id.0,
    );
    Ok(query.fetch_optional(connection).await?)
}

/// Moves a search from one state to another; false, and nothing happens, where it is not in `from`.
///
/// # Errors
/// When Postgres is away.
pub async fn transition(
    tx: &mut Tx,
    id: SearchId,
    from: SearchState,
    to: SearchState,
    reason: Option<&str>,
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let moved = sqlx::query!(
        "UPDATE searches SET state = $3, state_reason = $4,
             paused_from = CASE WHEN $3 = 'paused'::search_state THEN state END,
             ended_at = CASE WHEN $3 IN ('done'::search_state, 'cancelled', 'failed') THEN $5::timestamptz END
         WHERE id = $1 AND state = $2",
        id.0,
        from as SearchState,
        to as SearchState,
        reason,
        now,
    )
    .execute(tx.connection())
    .await?;
    let moved = moved.rows_affected() == 1;
    if moved {
        tx.tell(
            id,
            EventBody::SearchState {
                state: to,
                reason: reason.map(str::to_owned),
            },
        );
    }
    Ok(moved)
}

/// Stores the coarse step's outcome.
///
/// # Errors
/// When Postgres is away.
pub async fn set_elimination(tx: &mut Tx, id: SearchId, elimination: &EliminationView) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE searches SET elimination = $2 WHERE id = $1",
        id.0,
        Json(elimination) as _
    )
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// Fixes the box of the hypervolume, one (low, high) per objective.
///
/// # Errors
/// When Postgres is away.
pub async fn set_ranges(tx: &mut Tx, id: SearchId, ranges: &[(f64, f64)]) -> Result<(), StoreError> {
    sqlx::query!("UPDATE searches SET ranges = $2 WHERE id = $1", id.0, Json(ranges) as _)
        .execute(tx.connection())
        .await?;
    Ok(())
}

/// Stores what verification taught so far.
///
/// # Errors
/// When Postgres is away.
pub async fn set_calibration(tx: &mut Tx, id: SearchId, calibration: &[CalibrationView]) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE searches SET calibration = $2 WHERE id = $1",
        id.0,
        Json(calibration) as _
    )
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// Keeps the look-up table as it stands, as JSON text.
///
/// # Errors
/// When Postgres is away, or it is kept already.
pub async fn keep_lut(tx: &mut Tx, id: SearchId, entries: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO search_luts (search_id, entries) VALUES ($1, $2)",
        id.0,
        entries
    )
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// The look-up table that was kept, as JSON text.
///
/// # Errors
/// When Postgres is away.
pub async fn kept_lut(connection: &mut PgConnection, id: SearchId) -> Result<Option<String>, StoreError> {
    let query = sqlx::query_scalar!("SELECT entries FROM search_luts WHERE search_id = $1", id.0);
    Ok(query.fetch_optional(connection).await?)
}

/// The submission that an idempotency key stands for: digest of the request and the search it made.
///
/// # Errors
/// When Postgres is away.
pub async fn submission(tx: &mut Tx, key: &str) -> Result<Option<(String, SearchId)>, StoreError> {
    // Two submissions with one key at the same moment: the second waits here and finds the first's search.
    sqlx::query!(
        "SELECT pg_advisory_xact_lock(hashtextextended('idempotency ' || $1, 0))",
        key
    )
    .fetch_one(tx.connection())
    .await?;
    let row = sqlx::query!(
        r#"SELECT request_digest, search_id AS "search_id: SearchId" FROM idempotency_keys WHERE key = $1"#,
        key,
    );
    Ok(row
        .fetch_optional(tx.connection())
        .await?
        .map(|row| (row.request_digest, row.search_id)))
}

/// Remembers which search a key made.
///
/// # Errors
/// When Postgres is away.
pub async fn remember_submission(
    tx: &mut Tx,
    key: &str,
    digest: &str,
    search: SearchId,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO idempotency_keys (key, request_digest, search_id, created_at) VALUES ($1, $2, $3, $4)",
        key,
        digest,
        search.0,
        now,
    )
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// Device-seconds of every finished job of a search.
///
/// # Errors
/// When Postgres is away.
pub async fn device_seconds(connection: &mut PgConnection, id: SearchId) -> Result<DeviceSeconds, StoreError> {
    let query = sqlx::query_as!(
        DeviceSeconds,
        r#"SELECT coalesce(sum(train_seconds), 0) AS "train!", coalesce(sum(sample_seconds), 0) AS "sample!",
               coalesce(sum(score_seconds), 0) AS "score!", coalesce(sum(profile_seconds), 0) AS "profile!"
           FROM jobs WHERE search_id = $1"#,
        id.0,
    );
    Ok(query.fetch_one(connection).await?)
}

/// Figures that a search is shown with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SearchFigures {
    /// Candidates evaluated or given up.
    pub evaluations: u64,
    /// Device-seconds of its finished jobs.
    pub device_seconds: DeviceSeconds,
    /// The last hypervolume of its history.
    pub hypervolume: Option<f64>,
    /// Evaluations since the hypervolume last grew.
    pub stalled: u64,
    /// Members of the front.
    pub front_points: u64,
    /// Number of its newest event, read before the other figures.
    pub last_event: i64,
}

impl Store {
    /// Reads a search.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn search(&self, id: SearchId) -> Result<Option<SearchRow>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        get(&mut connection, id).await
    }

    /// Ids of searches, newest first, before a cursor and in a state, at most `limit`.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn search_ids(
        &self,
        before: Option<SearchId>,
        state: Option<SearchState>,
        limit: i64,
    ) -> Result<Vec<SearchId>, StoreError> {
        let query = sqlx::query_scalar!(
            r#"SELECT id AS "id: SearchId" FROM searches
               WHERE ($1::uuid IS NULL OR id < $1) AND ($2::search_state IS NULL OR state = $2)
               ORDER BY id DESC LIMIT $3"#,
            before.map(|id| id.0),
            state as Option<SearchState>,
            limit,
        );
        Ok(query.fetch_all(&self.pool).await?)
    }

    /// Searches that may have something to do, oldest first; of a paused one, results may wait to be taken over.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn active_searches(&self) -> Result<Vec<SearchId>, StoreError> {
        let query = sqlx::query_scalar!(
            r#"SELECT id AS "id: SearchId" FROM searches
               WHERE state IN ('profiling', 'eliminating', 'searching', 'verifying', 'paused') ORDER BY id"#
        );
        Ok(query.fetch_all(&self.pool).await?)
    }

    /// The figures that a search is shown with.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn search_figures(&self, id: SearchId) -> Result<SearchFigures, StoreError> {
        let last_event = self.last_event(id).await?.unwrap_or(0);
        let mut connection = self.pool.acquire().await?;
        let device_seconds = device_seconds(&mut connection, id).await?;
        let counts = sqlx::query!(
            r#"SELECT count(*) FILTER (WHERE state IN ('evaluated', 'failed')) AS "evaluations!",
                   count(*) FILTER (WHERE on_front) AS "front!"
               FROM candidates WHERE search_id = $1"#,
            id.0,
        )
        .fetch_one(&mut *connection)
        .await?;
        // The hypervolume never shrinks, so the first row with its last value is where it last grew.
        let history = sqlx::query!(
            r#"SELECT last.hypervolume, last.evaluations - min(grew.evaluations) AS "stalled!"
               FROM (SELECT * FROM front_history WHERE search_id = $1 ORDER BY number DESC LIMIT 1) AS last
               JOIN front_history AS grew ON grew.search_id = last.search_id AND grew.hypervolume = last.hypervolume
               GROUP BY last.hypervolume, last.evaluations"#,
            id.0,
        )
        .fetch_optional(&mut *connection)
        .await?;
        Ok(SearchFigures {
            evaluations: unsigned(counts.evaluations),
            device_seconds,
            hypervolume: history.as_ref().map(|row| row.hypervolume),
            stalled: history.map_or(0, |row| unsigned(row.stalled)),
            front_points: unsigned(counts.front),
            last_event,
        })
    }

    /// Device-seconds of each finished evaluation of searches with the same evaluation settings (the same
    /// space text), newest first.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn evaluation_seconds(&self, space_name: &str, limit: i64) -> Result<Vec<(String, f64)>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT s.space, j.train_seconds + j.sample_seconds + j.score_seconds AS "seconds!"
               FROM jobs j JOIN searches s ON s.id = j.search_id
               WHERE s.space_name = $1 AND j.kind = 'evaluate' AND j.state = 'succeeded'
               ORDER BY j.id DESC LIMIT $2"#,
            space_name,
            limit,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(|row| (row.space, row.seconds)).collect())
    }
}

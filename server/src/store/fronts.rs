//! History of front and hypervolume.

use protocol::{SearchId, searches::HypervolumePoint};
use sqlx::PgConnection;

use super::{Store, StoreError, Tx, unsigned};

/// Front and hypervolume after the evaluation of a candidate.
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryPoint {
    /// The candidate's number; all with smaller numbers count too.
    pub number: i64,
    /// Evaluations so far.
    pub evaluations: i64,
    /// Hypervolume, 0 to 1.
    pub hypervolume: f64,
    /// Numbers of the front's members.
    pub front: Vec<i64>,
}

/// Appends to the history.
///
/// # Errors
/// When Postgres is away, or the number is in the history already.
pub async fn append(tx: &mut Tx, search: SearchId, point: &HistoryPoint, device_hours: f64) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO front_history (search_id, number, evaluations, device_hours, hypervolume, front)
         VALUES ($1, $2, $3, $4, $5, $6)",
        search.0,
        point.number,
        point.evaluations,
        device_hours,
        point.hypervolume,
        &point.front,
    )
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// The last point of the history.
///
/// # Errors
/// When Postgres is away.
pub async fn last(connection: &mut PgConnection, search: SearchId) -> Result<Option<HistoryPoint>, StoreError> {
    let query = sqlx::query_as!(
        HistoryPoint,
        "SELECT number, evaluations, hypervolume, front FROM front_history WHERE search_id = $1
         ORDER BY number DESC LIMIT 1",
        search.0,
    );
    Ok(query.fetch_optional(connection).await?)
}

impl Store {
    /// Hypervolume over evaluations.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn history(&self, search: SearchId) -> Result<Vec<HypervolumePoint>, StoreError> {
        let rows = sqlx::query!(
            "SELECT evaluations, device_hours, hypervolume FROM front_history WHERE search_id = $1 ORDER BY number",
            search.0,
        )
        .fetch_all(&self.pool)
        .await?;
        let points = rows.into_iter().map(|row| HypervolumePoint {
            evaluations: unsigned(row.evaluations),
            device_hours: row.device_hours,
            hypervolume: row.hypervolume,
        });
        Ok(points.collect())
    }
}

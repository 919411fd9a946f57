//! Reading a search's stream of events.

use protocol::{SearchId, events::Event};
use sqlx::types::Json;

use super::{Store, StoreError};

impl Store {
    /// Events of a search after a number, oldest first, at most `limit`.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn events_after(&self, search: SearchId, after: i64, limit: i64) -> Result<Vec<Event>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT sequence, at, body AS "body: Json<protocol::events::EventBody>" FROM events
               WHERE search_id = $1 AND sequence > $2 ORDER BY sequence LIMIT $3"#,
            search.0,
            after,
            limit,
        )
        .fetch_all(&self.pool)
        .await?;
        let events = rows.into_iter().map(|row| Event {
            sequence: row.sequence,
            at: row.at,
            body: row.body.0,
        });
        Ok(events.collect())
    }

    /// Number of the newest event of a search; absent where there is no such search.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn last_event(&self, search: SearchId) -> Result<Option<i64>, StoreError> {
        let query = sqlx::query_scalar!(
            "SELECT last_sequence FROM search_streams WHERE search_id = $1",
            search.0
        );
        Ok(query.fetch_optional(&self.pool).await?)
    }
}

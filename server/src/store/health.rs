//! Whether the database answers, and what it holds.

use protocol::jobs::{JobKind, JobState};

use super::{Store, StoreError};
use crate::metrics::JobLabels;

impl Store {
    /// Asks for nothing, to see whether there is an answer.
    ///
    /// # Errors
    /// When the database cannot answer.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query!(r#"SELECT 1 AS "one!""#).fetch_one(self.pool()).await?;
        Ok(())
    }

    /// How many jobs there are of each kind and state.
    ///
    /// # Errors
    /// When the database cannot answer.
    pub async fn job_counts(&self) -> Result<Vec<(JobLabels, i64)>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT kind AS "kind: JobKind", state AS "state: JobState", count(*) AS "count!"
               FROM jobs GROUP BY kind, state ORDER BY kind, state"#
        )
        .fetch_all(self.pool())
        .await?;
        let labels = |kind: JobKind, state: JobState| JobLabels {
            kind: kind.as_str().to_owned(),
            state: format!("{state:?}").to_lowercase(),
        };
        Ok(rows
            .into_iter()
            .map(|row| (labels(row.kind, row.state), row.count))
            .collect())
    }
}

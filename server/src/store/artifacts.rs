//! Which artifacts exist. Their bytes are in the artifact store.

use chrono::{DateTime, Utc};
use protocol::ArtifactDigest;

use super::{Store, StoreError};

/// What is known of a complete artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredArtifact {
    /// Media type its uploader gave it.
    pub media_type: String,
    /// Length in bytes.
    pub bytes: u64,
}

impl Store {
    /// The artifact, where its bytes are complete.
    ///
    /// # Errors
    /// When the database cannot answer.
    pub async fn artifact(&self, digest: &ArtifactDigest) -> Result<Option<StoredArtifact>, StoreError> {
        let row = sqlx::query!(
            "SELECT media_type, bytes FROM artifacts WHERE digest = $1",
            digest.as_str()
        )
        .fetch_optional(self.pool())
        .await?;
        Ok(row.map(|row| StoredArtifact {
            media_type: row.media_type,
            bytes: row.bytes.unsigned_abs(),
        }))
    }

    /// Records an artifact whose bytes are complete; the first media type stands.
    ///
    /// # Errors
    /// When the database cannot answer.
    pub async fn add_artifact(
        &self,
        digest: &ArtifactDigest,
        artifact: &StoredArtifact,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        sqlx::query!(
            "INSERT INTO artifacts (digest, media_type, bytes, created_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (digest) DO NOTHING",
            digest.as_str(),
            artifact.media_type,
            i64::try_from(artifact.bytes).unwrap_or(i64::MAX),
            now,
        )
        .execute(self.pool())
        .await?;
        Ok(())
    }
}

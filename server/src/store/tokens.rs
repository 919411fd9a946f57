//! Access tokens, by the hash of their secret.

use chrono::{DateTime, Utc};
use protocol::{
    TokenId,
    tokens::{Role, TokenView},
};

use super::{Store, StoreError};

/// What authentication asks of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenGrant {
    /// The token.
    pub id: TokenId,
    /// What it admits to.
    pub role: Role,
    /// When it ends.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
}

impl Store {
    /// Keeps a token under the SHA-256 of its secret.
    ///
    /// # Errors
    /// When the database cannot answer.
    pub async fn add_token(&self, token: &TokenView, secret_sha256: &[u8; 32]) -> Result<(), StoreError> {
        sqlx::query!(
            "INSERT INTO tokens (id, secret_sha256, role, name, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6)",
            token.id.0,
            secret_sha256.as_slice(),
            token.role as Role,
            token.name,
            token.created_at,
            token.expires_at,
        )
        .execute(self.pool())
        .await?;
        Ok(())
    }

    /// Finds a token by its secret's hash, and notes its use, to the minute.
    ///
    /// # Errors
    /// When the database cannot answer.
    pub async fn use_token(
        &self,
        secret_sha256: &[u8; 32],
        now: DateTime<Utc>,
    ) -> Result<Option<TokenGrant>, StoreError> {
        let row = sqlx::query!(
            r#"SELECT id, role AS "role: Role", expires_at, revoked_at,
                      coalesce(last_used_at <= $2::timestamptz - interval '1 minute', true) AS "stale!"
               FROM tokens WHERE secret_sha256 = $1"#,
            secret_sha256.as_slice(),
            now,
        )
        .fetch_optional(self.pool())
        .await?;
        let Some(row) = row else { return Ok(None) };
        if row.stale {
            sqlx::query!("UPDATE tokens SET last_used_at = $2 WHERE id = $1", row.id, now)
                .execute(self.pool())
                .await?;
        }
        let (expires_at, revoked_at) = (row.expires_at, row.revoked_at);
        Ok(Some(TokenGrant {
            id: TokenId(row.id),
            role: row.role,
            expires_at,
            revoked_at,
        }))
    }

    /// Up to `limit` tokens after `after`, oldest first.
    ///
    /// # Errors
    /// When the database cannot answer.
    pub async fn tokens(&self, after: Option<TokenId>, limit: i64) -> Result<Vec<TokenView>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT id, role AS "role: Role", name, created_at, expires_at, revoked_at, last_used_at
               FROM tokens WHERE $1::uuid IS NULL OR id > $1 ORDER BY id LIMIT $2"#,
            after.map(|id| id.0),
            limit,
        )
        .fetch_all(self.pool())
        .await?;
        let view = rows.into_iter().map(|row| TokenView {
            id: TokenId(row.id),
            role: row.role,
            name: row.name,
            created_at: row.created_at,
            expires_at: row.expires_at,
            revoked_at: row.revoked_at,
            last_used_at: row.last_used_at,
        });
        Ok(view.collect())
    }

    /// Revokes a token for good; says whether there is such a token. The first revocation's time stands.
    ///
    /// # Errors
    /// When the database cannot answer.
    pub async fn revoke_token(&self, id: TokenId, now: DateTime<Utc>) -> Result<bool, StoreError> {
        let done = sqlx::query!(
            "UPDATE tokens SET revoked_at = coalesce(revoked_at, $2) WHERE id = $1",
            id.0,
            now
        )
        .execute(self.pool())
        .await?;
        Ok(done.rows_affected() == 1)
    }
}

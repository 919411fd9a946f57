//! Access tokens: who may do what.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::TokenId;

/// What a token's holder may do; each route states which roles it admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[cfg_attr(
    feature = "sqlx",
    derive(sqlx::Type),
    sqlx(type_name = "role", rename_all = "snake_case")
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything, tokens included.
    Admin,
    /// Submits and steers searches, imports tables.
    Researcher,
    /// Takes and reports jobs, moves artifacts.
    Worker,
    /// Takes profile and verify jobs and uploads samples.
    Device,
    /// Reads.
    Viewer,
}

/// Asks for a token (`POST /v1/tokens`).
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NewToken {
    /// What it admits to.
    pub role: Role,
    /// For people.
    #[serde(default)]
    pub name: Option<String>,
    /// Seconds until it expires; absent for never.
    #[serde(default)]
    pub expires_in_seconds: Option<u64>,
}

/// A token without its secret.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    /// The token.
    pub id: TokenId,
    /// What it admits to.
    pub role: Role,
    /// For people.
    pub name: Option<String>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it ends.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
    /// When it was last used.
    pub last_used_at: Option<DateTime<Utc>>,
}

/// A fresh token; the secret is shown this once.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CreatedToken {
    /// The token.
    #[serde(flatten)]
    pub token: TokenView,
    /// Send it as `Authorization: Bearer …`.
    pub secret: String,
}

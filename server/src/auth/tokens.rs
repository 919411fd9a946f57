//! Making tokens.

use chrono::{DateTime, TimeDelta, Utc};
use protocol::{
    TokenId,
    tokens::{CreatedToken, NewToken, TokenView},
};

use super::TokenSecret;
use crate::store::{Store, StoreError};

const NAME_LIMIT: usize = 200;

/// Why a token was not made.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The name is too long.
    #[error("name: {0}")]
    Name(String),
    /// The end lies too far ahead.
    #[error("expires_in_seconds: {found} is not from 1 to {allowed} (a hundred years)")]
    Expiry {
        /// Seconds asked for.
        found: u64,
        /// Seconds at most.
        allowed: u64,
    },
    /// The system gave no randomness.
    #[error("the system has no randomness to give")]
    Randomness(#[from] rand::rngs::SysError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is wrong with a name for people, if anything.
#[must_use]
pub fn name_problem(name: &str) -> Option<String> {
    if name.chars().count() > NAME_LIMIT {
        return Some(format!("is longer than {NAME_LIMIT} characters"));
    }
    name.chars()
        .any(char::is_control)
        .then(|| "contains control characters".to_owned())
}

/// Makes a token; its secret is in the answer and nowhere else.
///
/// # Errors
/// When the request is out of range or the store fails.
pub async fn create(store: &Store, request: NewToken, now: DateTime<Utc>) -> Result<CreatedToken, TokenError> {
    if let Some(problem) = request.name.as_deref().and_then(name_problem) {
        return Err(TokenError::Name(problem));
    }
    let token = TokenView {
        id: TokenId::new(),
        role: request.role,
        name: request.name,
        created_at: now,
        expires_at: request
            .expires_in_seconds
            .map(|seconds| end(now, seconds))
            .transpose()?,
        revoked_at: None,
        last_used_at: None,
    };
    let secret = TokenSecret::generate()?;
    store.add_token(&token, &secret.sha256()).await?;
    Ok(CreatedToken {
        token,
        secret: secret.reveal().to_owned(),
    })
}

fn end(now: DateTime<Utc>, seconds: u64) -> Result<DateTime<Utc>, TokenError> {
    const CENTURY: u64 = 100 * 366 * 24 * 3600;
    let out_of_range = || TokenError::Expiry {
        found: seconds,
        allowed: CENTURY,
    };
    if !(1..=CENTURY).contains(&seconds) {
        return Err(out_of_range());
    }
    let span = i64::try_from(seconds)
        .ok()
        .and_then(TimeDelta::try_seconds)
        .ok_or_else(out_of_range)?;
    now.checked_add_signed(span).ok_or_else(out_of_range)
}

//! `/v1/tokens`: only for admins.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode};
use protocol::{
    Page, ProblemDocument, TokenId,
    tokens::{CreatedToken, NewToken, TokenView},
};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    extract::{Json, Path, Query},
    problem::Problem,
};
use crate::{
    app::App,
    auth::{self, TokenError},
};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(revoke))
}

/// Which part of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct Window {
    /// `next_cursor` of the page before.
    cursor: Option<TokenId>,
    /// Items at most, 1 to 1000; 100 unless given.
    limit: Option<u16>,
}

/// Makes a token; its secret is shown this once.
#[utoipa::path(
    post, path = "/v1/tokens", tag = "tokens", request_body = NewToken, security(("token" = [])),
    responses(
        (status = 201, description = "Made", body = CreatedToken),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn create(
    State(app): State<Arc<App>>,
    Json(request): Json<NewToken>,
) -> Result<(StatusCode, Json<CreatedToken>), Problem> {
    let created = auth::create(&app.store, request, app.clock.now()).await?;
    Ok((StatusCode::CREATED, Json(created)))
}

/// Lists tokens, oldest first, without their secrets.
#[utoipa::path(
    get, path = "/v1/tokens", tag = "tokens", params(Window), security(("token" = [])),
    responses(
        (status = 200, description = "A page of tokens", body = Page<TokenView>),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn list(State(app): State<Arc<App>>, Query(window): Query<Window>) -> Result<Json<Page<TokenView>>, Problem> {
    let limit = usize::from(window.limit.unwrap_or(100));
    if !(1..=1000).contains(&limit) {
        return Err(Problem::invalid("limit", format_args!("{limit} is not from 1 to 1000")));
    }
    let mut items = app.store.tokens(window.cursor, limit as i64 + 1).await?;
    let more = items.len() > limit;
    items.truncate(limit);
    let next_cursor = items.last().filter(|_| more).map(|token| token.id.to_string());
    Ok(Json(Page { items, next_cursor }))
}

/// Revokes a token for good.
#[utoipa::path(
    delete, path = "/v1/tokens/{id}", tag = "tokens", params(("id" = TokenId, Path)), security(("token" = [])),
    responses(
        (status = 204, description = "Revoked"),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn revoke(State(app): State<Arc<App>>, Path(id): Path<TokenId>) -> Result<StatusCode, Problem> {
    if app.store.revoke_token(id, app.clock.now()).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Problem::not_found("token", id))
    }
}

impl From<TokenError> for Problem {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Name(message) => Self::invalid("name", message),
            TokenError::Expiry { .. } => Self::invalid("expires_in_seconds", error),
            TokenError::Randomness(_) => Self::internal(&error),
            TokenError::Store(error) => error.into(),
        }
    }
}

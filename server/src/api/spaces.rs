//! Checking space files.

use std::sync::Arc;

use axum::http::StatusCode;
use protocol::ProblemDocument;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{extract::Json, problem::Problem};
use crate::{app::App, search};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(validate))
}

/// A space file to check.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SpaceText {
    /// Its text (TOML).
    space: String,
}

/// What a space file says.
#[derive(Debug, Serialize, ToSchema)]
struct SpaceSummary {
    /// Short name.
    name: String,
    /// One line for people.
    title: String,
    /// `temporal-unet`, `block-sequence`, `categorical` or `table`.
    kind: String,
    /// Names of the positions.
    positions: Vec<String>,
    /// Number of architectures, as decimal text (may exceed 64 bits).
    architectures: String,
    /// Blocks that a look-up table needs for it.
    blocks: u64,
    /// Strategy.
    strategy: String,
    /// Evaluations at most.
    max_evaluations: u64,
}

/// Checks a space file and says what it holds; all that is wrong is named with line, column and field.
#[utoipa::path(
    post, path = "/v1/spaces:validate", tag = "spaces", request_body = SpaceText,
    security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "It is right", body = SpaceSummary),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn validate(Json(text): Json<SpaceText>) -> Result<(StatusCode, Json<SpaceSummary>), Problem> {
    let space = search::read_space(&text.space).await?;
    let summary = SpaceSummary {
        architectures: space.size().to_string(),
        blocks: space.blocks().len() as u64,
        strategy: space.search.strategy.as_str().to_owned(),
        max_evaluations: space.search.max_evaluations.into(),
        kind: space.kind.as_str().to_owned(),
        positions: space.positions.iter().map(|position| position.name.clone()).collect(),
        name: space.name,
        title: space.title,
    };
    Ok((StatusCode::OK, Json(summary)))
}

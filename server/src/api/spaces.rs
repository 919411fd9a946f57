//! Space files: those that ship, and checking any.

use std::sync::Arc;

use axum::http::StatusCode;
use protocol::{Page, ProblemDocument};
use search_spaces::Space;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    extract::{Json, Path, Query},
    problem::Problem,
    window::{Window, page},
};
use crate::{app::App, search, shipped};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(get))
        .routes(routes!(validate))
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

/// A space file that ships.
#[derive(Debug, Serialize, ToSchema)]
struct ShippedSpace {
    /// What it says.
    #[serde(flatten)]
    summary: SpaceSummary,
    /// The file (TOML), which can be submitted as it is.
    text: String,
}

/// Lists the spaces that ship, by name.
#[utoipa::path(
    get, path = "/v1/spaces", tag = "spaces", params(Window), security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "A page of spaces", body = Page<SpaceSummary>),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn list(Query(window): Query<Window>) -> Result<Json<Page<SpaceSummary>>, Problem> {
    let limit = window.limit()?;
    let after = window.cursor.as_deref().unwrap_or_default();
    let most = usize::try_from(limit).unwrap_or(usize::MAX).saturating_add(1);
    let next = shipped::SPACES.iter().filter(|(name, _)| *name > after).take(most);
    let summaries = next
        .map(|(_, text)| search::parse_space(text).map(summary))
        .collect::<Result<_, _>>()?;
    Ok(Json(page(summaries, limit, |space: &SpaceSummary| space.name.clone())))
}

/// One of the spaces that ship, with its text.
#[utoipa::path(
    get, path = "/v1/spaces/{name}", tag = "spaces", params(("name" = String, Path)),
    security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "The space", body = ShippedSpace),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn get(Path(name): Path<String>) -> Result<Json<ShippedSpace>, Problem> {
    let text =
        shipped::space(&name).ok_or_else(|| Problem::not_found("space", name.chars().take(80).collect::<String>()))?;
    Ok(Json(ShippedSpace {
        summary: summary(search::parse_space(text)?),
        text: text.to_owned(),
    }))
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
    Ok((StatusCode::OK, Json(summary(space))))
}

fn summary(space: Space) -> SpaceSummary {
    SpaceSummary {
        architectures: space.size().to_string(),
        blocks: space.blocks().len() as u64,
        strategy: space.search.strategy.as_str().to_owned(),
        max_evaluations: space.search.max_evaluations.into(),
        kind: space.kind.as_str().to_owned(),
        positions: space.positions.iter().map(|position| position.name.clone()).collect(),
        name: space.name,
        title: space.title,
    }
}

//! `/v1/ablations`: groups of deployments that fill a table of the paper.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use protocol::{
    AblationId, Page, ProblemDocument,
    ablations::{AblationView, NewAblation},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    extract::{Json, Path, Query},
    problem::Problem,
    window::{Window, page},
};
use crate::{app::App, deployments::ablations, plots::Format};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(get))
        .routes(routes!(cancel))
        .routes(routes!(retry))
        .routes(routes!(figure_svg))
        .routes(routes!(figure_png))
}

/// Asks for a table of the paper over a candidate: several trainings of each of its cells.
#[utoipa::path(
    post, path = "/v1/ablations", tag = "ablations", request_body = NewAblation,
    security(("token" = ["researcher"])),
    responses(
        (status = 201, description = "Its deployments wait for workers; asking again under the same id changes nothing", body = AblationView),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn create(
    State(app): State<Arc<App>>,
    Json(new): Json<NewAblation>,
) -> Result<(StatusCode, Json<AblationView>), Problem> {
    let id = ablations::submit(&app, &new).await?;
    Ok((StatusCode::CREATED, Json(ablations::view(&app, id).await?)))
}

/// Lists ablations, oldest first.
#[utoipa::path(
    get, path = "/v1/ablations", tag = "ablations", params(Window),
    security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "A page of ablations", body = Page<AblationView>),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn list(State(app): State<Arc<App>>, Query(window): Query<Window>) -> Result<Json<Page<AblationView>>, Problem> {
    let limit = window.limit()?;
    let rows = page(app.store.ablations(window.after()?, limit + 1).await?, limit, |row| {
        row.id
    });
    let mut items = Vec::with_capacity(rows.items.len());
    for row in rows.items {
        items.push(ablations::view(&app, row.id).await?);
    }
    Ok(Json(Page {
        items,
        next_cursor: rows.next_cursor,
    }))
}

/// One ablation, its table as far as it is known.
#[utoipa::path(
    get, path = "/v1/ablations/{id}", tag = "ablations", params(("id" = AblationId, Path)),
    security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "The ablation", body = AblationView),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn get(State(app): State<Arc<App>>, Path(id): Path<AblationId>) -> Result<Json<AblationView>, Problem> {
    Ok(Json(ablations::view(&app, id).await?))
}

/// Ends every deployment of an ablation that runs.
#[utoipa::path(
    post, path = "/v1/ablations/{id}/cancel", tag = "ablations", params(("id" = AblationId, Path)),
    security(("token" = ["researcher"])),
    responses(
        (status = 200, description = "None of it runs", body = AblationView),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn cancel(State(app): State<Arc<App>>, Path(id): Path<AblationId>) -> Result<Json<AblationView>, Problem> {
    ablations::cancel(&app, id).await?;
    get(State(app), Path(id)).await
}

/// Takes every failed or cancelled deployment of an ablation up again.
#[utoipa::path(
    post, path = "/v1/ablations/{id}/retry", tag = "ablations", params(("id" = AblationId, Path)),
    security(("token" = ["researcher"])),
    responses(
        (status = 200, description = "They run", body = AblationView),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn retry(State(app): State<Arc<App>>, Path(id): Path<AblationId>) -> Result<Json<AblationView>, Problem> {
    ablations::retry(&app, id).await?;
    get(State(app), Path(id)).await
}

/// The scores of an ablation's rows as shares of the first one's: the paper's Figure 6.
#[utoipa::path(
    get, path = "/v1/ablations/{id}/radar.svg", tag = "ablations", params(("id" = AblationId, Path)),
    security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "The plot", body = String, content_type = "image/svg+xml"),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn figure_svg(State(app): State<Arc<App>>, Path(id): Path<AblationId>) -> Result<Response, Problem> {
    figure(&app, id, Format::Svg).await
}

/// The same in pixels.
#[utoipa::path(
    get, path = "/v1/ablations/{id}/radar.png", tag = "ablations", params(("id" = AblationId, Path)),
    security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "The plot", body = Vec<u8>, content_type = "image/png"),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn figure_png(State(app): State<Arc<App>>, Path(id): Path<AblationId>) -> Result<Response, Problem> {
    figure(&app, id, Format::Png).await
}

async fn figure(app: &App, id: AblationId, format: Format) -> Result<Response, Problem> {
    let bytes = ablations::figure(app, id, format).await?;
    let headers = [
        (header::CONTENT_TYPE, format.media_type()),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    Ok((headers, bytes).into_response())
}

//! Whether the coordinator works, and what it counts.

use std::sync::Arc;

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use protocol::ProblemDocument;
use serde::Serialize;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{extract::Json, problem::Problem};
use crate::app::App;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(metrics))
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
    version: &'static str,
}

/// `GET /healthz`: 200 while the database answers, else 503.
pub async fn healthz(State(app): State<Arc<App>>) -> Response {
    match app.store.ping().await {
        Ok(()) => Json(Health {
            status: "ok",
            version: env!("CARGO_PKG_VERSION"),
        })
        .into_response(),
        Err(error) => Problem::from(error).into_response(),
    }
}

/// What the coordinator counts, as OpenMetrics text for Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "health", security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "The counters", body = String, content_type = "application/openmetrics-text"),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn metrics(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    let jobs = app.store.job_counts().await?;
    let text = app.metrics.render(&jobs).map_err(|error| Problem::internal(&error))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

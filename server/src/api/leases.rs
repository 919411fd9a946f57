//! Taking jobs.

use std::sync::Arc;

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use protocol::{
    ProblemDocument,
    leases::{LeaseRequest, LeasedJob},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{extract::Json, problem::Problem};
use crate::{
    app::App,
    dispatch::{self, Rules},
};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(take))
}

/// Takes a job on lease, waiting for one as long as asked.
#[utoipa::path(
    post, path = "/v1/leases", tag = "jobs", request_body = LeaseRequest, security(("token" = ["worker", "device"])),
    responses(
        (status = 200, description = "A job", body = LeasedJob),
        (status = 204, description = "There was none in time"),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn take(State(app): State<Arc<App>>, Json(request): Json<LeaseRequest>) -> Result<Response, Problem> {
    let rules = Rules::of(&app.config);
    let job: Option<LeasedJob> = dispatch::lease(&app.store, &app.events, &app.clock, rules, &request).await?;
    Ok(job.map_or_else(
        || StatusCode::NO_CONTENT.into_response(),
        |job| Json(job).into_response(),
    ))
}

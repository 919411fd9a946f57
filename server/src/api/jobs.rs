//! Jobs: shown to everyone, reported on by who holds their lease.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode};
use protocol::{
    JobId, ProblemDocument, SearchId,
    jobs::JobView,
    leases::{FailureReport, Heartbeat, HeartbeatReply, ResultReport},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    extract::{Json, Path},
    problem::Problem,
};
use crate::{
    app::App,
    dispatch::{self, DispatchError, Rules},
    search,
    store::jobs::JobFilter,
};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(get))
        .routes(routes!(heartbeat))
        .routes(routes!(result))
        .routes(routes!(failure))
}

/// One job with its attempts.
#[utoipa::path(
    get, path = "/v1/jobs/{id}", tag = "jobs", params(("id" = JobId, Path)),
    security(("token" = ["researcher", "viewer", "worker", "device"])),
    responses(
        (status = 200, description = "The job", body = JobView),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn get(State(app): State<Arc<App>>, Path(id): Path<JobId>) -> Result<Json<JobView>, Problem> {
    let job = app.store.job_views(JobFilter::One(id), 1).await?.pop();
    job.map(Json).ok_or_else(|| Problem::not_found("job", id))
}

/// Renews a lease and says how far the job is.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/heartbeat", tag = "jobs", params(("id" = JobId, Path)), request_body = Heartbeat,
    security(("token" = ["worker", "device"])),
    responses(
        (status = 200, description = "The lease goes on, unless the job was cancelled", body = HeartbeatReply),
        (status = "default", description = "A problem; 409 `lease-lost` for any token but that of the lease", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn heartbeat(
    State(app): State<Arc<App>>,
    Path(id): Path<JobId>,
    Json(beat): Json<Heartbeat>,
) -> Result<Json<HeartbeatReply>, Problem> {
    let rules = Rules::of(&app.config);
    Ok(Json(
        dispatch::heartbeat(&app.store, rules, id, &beat, app.clock.now()).await?,
    ))
}

/// Ends a job with its result; sending it again changes nothing.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/result", tag = "jobs", params(("id" = JobId, Path)), request_body = ResultReport,
    security(("token" = ["worker", "device"])),
    responses(
        (status = 200, description = "The result counts", body = JobView),
        (status = "default", description = "A problem; 409 `lease-lost` for any token but that of the lease", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn result(
    State(app): State<Arc<App>>,
    Path(id): Path<JobId>,
    Json(report): Json<ResultReport>,
) -> Result<Json<JobView>, Problem> {
    let search = dispatch::succeed(&app.store, id, &report, app.clock.now()).await?;
    advance(&app, search).await;
    get(State(app), Path(id)).await
}

/// Ends an attempt without a result.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/failure", tag = "jobs", params(("id" = JobId, Path)), request_body = FailureReport,
    security(("token" = ["worker", "device"])),
    responses(
        (status = 200, description = "The attempt has ended", body = JobView),
        (status = "default", description = "A problem; 409 `lease-lost` for any token but that of the lease", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn failure(
    State(app): State<Arc<App>>,
    Path(id): Path<JobId>,
    Json(report): Json<FailureReport>,
) -> Result<Json<JobView>, Problem> {
    let search = dispatch::fail(&app.store, Rules::of(&app.config), id, &report, app.clock.now()).await?;
    advance(&app, search).await;
    get(State(app), Path(id)).await
}

/// The report is stored, so its sender is answered even where the search cannot go on yet: a sweep sees to that.
async fn advance(app: &Arc<App>, search: SearchId) {
    if let Err(error) = search::advance(app, search).await {
        tracing::error!(search.id = %search, error = &error as &dyn std::error::Error, "a search could not be advanced");
    }
}

impl From<DispatchError> for Problem {
    fn from(error: DispatchError) -> Self {
        match error {
            DispatchError::UnknownWorker(_) => {
                Self::new(StatusCode::NOT_FOUND, "worker-not-found", "No such worker").detail(error)
            }
            DispatchError::UnknownJob(id) => Self::not_found("job", id),
            DispatchError::LeaseLost { .. } => Self::conflict("lease-lost", error),
            DispatchError::ResultDiffers(_) => Self::conflict("result-differs", error),
            DispatchError::Unacceptable { errors, .. } => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid-request",
                "The request cannot be accepted",
            )
            .errors(errors),
            DispatchError::Store(error) => error.into(),
        }
    }
}

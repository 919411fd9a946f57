//! Jobs: shown to everyone, reported on by who holds their lease.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode};
use protocol::{
    JobId, Page, ProblemDocument, SearchId,
    jobs::{JobKind, JobRequest, JobState, JobView},
    leases::{DoneReport, FailureReport, Heartbeat, HeartbeatReply, RendezvousReply, RendezvousRequest, ResultReport},
};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    extract::{Json, Path, Query},
    problem::Problem,
    searches,
    window::{Window, page},
};
use crate::{
    app::App,
    deployments,
    dispatch::{self, DispatchError, Rules},
    job_requests::{self, JobRequestError},
    search,
    store::jobs::JobFilter,
};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get))
        .routes(routes!(cancel))
        .routes(routes!(heartbeat))
        .routes(routes!(result))
        .routes(routes!(failure))
        .routes(routes!(rendezvous))
        .routes(routes!(done))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Listed {
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Items at most, 1 to 1000; 100 unless given.
    limit: Option<i64>,
    /// Only jobs of this search.
    search: Option<SearchId>,
    /// Only jobs in this state.
    state: Option<JobState>,
    /// Only jobs of this kind.
    kind: Option<JobKind>,
}

/// Lists jobs, oldest first, with their attempts.
#[utoipa::path(
    get, path = "/v1/jobs", tag = "jobs", params(Listed),
    security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "A page of jobs", body = Page<JobView>),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn list(State(app): State<Arc<App>>, Query(listed): Query<Listed>) -> Result<Json<Page<JobView>>, Problem> {
    let window = Window {
        cursor: listed.cursor,
        limit: listed.limit,
    };
    let limit = window.limit()?;
    if let Some(search) = listed.search {
        searches::require(&app, search).await?;
    }
    let filter = JobFilter::Listed(listed.search, listed.state, listed.kind, window.after::<JobId>()?);
    Ok(Json(page(
        app.store.job_views(filter, limit + 1).await?,
        limit,
        |job| job.id,
    )))
}

/// Asks for a job that belongs to no search: one that makes a model, scores it, or takes it to a device.
#[utoipa::path(
    post, path = "/v1/jobs", tag = "jobs", request_body = JobRequest, security(("token" = ["researcher"])),
    responses(
        (status = 201, description = "The job waits for a worker that takes its kind", body = JobView),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn create(
    State(app): State<Arc<App>>,
    Json(request): Json<JobRequest>,
) -> Result<(StatusCode, Json<JobView>), Problem> {
    let id = job_requests::submit(&app, request).await?;
    Ok((StatusCode::CREATED, get(State(app), Path(id)).await?))
}

/// Ends a job that belongs to no search; whoever does it is told by its next heartbeat.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/cancel", tag = "jobs", params(("id" = JobId, Path)),
    security(("token" = ["researcher"])),
    responses(
        (status = 200, description = "The job is cancelled", body = JobView),
        (status = "default", description = "A problem; 409 where it is a search's, or has ended", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn cancel(State(app): State<Arc<App>>, Path(id): Path<JobId>) -> Result<Json<JobView>, Problem> {
    job_requests::cancel(&app.store, id, app.clock.now()).await?;
    deployments_go_on(&app, id).await;
    get(State(app), Path(id)).await
}

/// One job with its attempts and, once it is done, what it found.
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
    recalibrate(&app, id).await;
    deployments_go_on(&app, id).await;
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
    deployments_go_on(&app, id).await;
    get(State(app), Path(id)).await
}

/// Waits for the rest of a gang, and keeps the seat meanwhile.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/rendezvous", tag = "jobs", params(("id" = JobId, Path)),
    request_body = RendezvousRequest, security(("token" = ["worker", "device"])),
    responses(
        (status = 200, description = "Where to meet, or that not all are there yet", body = RendezvousReply),
        (status = "default", description = "A problem; 409 `lease-lost` where the seat is lost", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn rendezvous(
    State(app): State<Arc<App>>,
    Path(id): Path<JobId>,
    Json(request): Json<RendezvousRequest>,
) -> Result<Json<RendezvousReply>, Problem> {
    let rules = Rules::of(&app.config);
    Ok(Json(
        dispatch::rendezvous(&app.store, &app.events, &app.clock, rules, id, &request).await?,
    ))
}

/// Ends the share of a rank other than 0.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/done", tag = "jobs", params(("id" = JobId, Path)), request_body = DoneReport,
    security(("token" = ["worker", "device"])),
    responses(
        (status = 204, description = "The rank has done its share"),
        (status = "default", description = "A problem; 409 `lease-lost` where the seat is lost", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn done(
    State(app): State<Arc<App>>,
    Path(id): Path<JobId>,
    Json(report): Json<DoneReport>,
) -> Result<StatusCode, Problem> {
    dispatch::done(&app.store, id, &report, app.clock.now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The report is stored, so its sender is answered even where the search cannot go on yet: a sweep sees to that.
async fn advance(app: &Arc<App>, search: Option<SearchId>) {
    let advanced = match search {
        Some(search) => search::advance(app, search).await,
        None => search::advance_all(app, &app.store).await.map_err(Into::into),
    };
    if let Err(error) = advanced {
        let id = search.map(|id| id.to_string()).unwrap_or_default();
        tracing::error!(
            search.id = id,
            error = &error as &dyn std::error::Error,
            "a search could not be advanced"
        );
    }
}

/// As [`advance`], of the search whose candidate's exported model the job measured.
async fn recalibrate(app: &Arc<App>, job: JobId) {
    let learned = async {
        match app.store.search_measured_by(job).await? {
            Some(search) => search::recalibrate(app, search).await,
            None => Ok(()),
        }
    };
    if let Err(error) = learned.await {
        tracing::error!(job.id = %job, error = &error as &dyn std::error::Error, "a search could not learn from it");
    }
}

/// As [`advance`], of the deployment whose step the job is.
async fn deployments_go_on(app: &Arc<App>, job: JobId) {
    if let Err(error) = deployments::advance_of(app, job).await {
        tracing::error!(
            job.id = %job,
            error = &error as &dyn std::error::Error,
            "a deployment could not be advanced"
        );
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

impl From<JobRequestError> for Problem {
    fn from(error: JobRequestError) -> Self {
        match error {
            JobRequestError::NotFound(id) => Self::not_found("job", id),
            JobRequestError::Invalid(errors) => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid-request",
                "The request cannot be accepted",
            )
            .errors(errors),
            JobRequestError::OfSearch { .. } => Self::conflict("job-of-search", error),
            JobRequestError::IdTaken(_) => Self::conflict("id-taken", error),
            JobRequestError::Ended { .. } => Self::conflict("wrong-state", error),
            JobRequestError::Space(error) => error.into(),
            JobRequestError::Store(error) => error.into(),
        }
    }
}

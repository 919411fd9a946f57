//! `/v1/searches`.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use protocol::{
    JobId, Page, ProblemDocument, SearchId,
    jobs::JobView,
    searches::{NewSearch, Recommendation, SearchEstimate, SearchState, SearchView},
};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    extract::{Json, Path, Query},
    problem::Problem,
    window::{Window, page},
};
use crate::{
    app::App,
    search::{self, SearchError, Steering, Within, views},
    store::jobs::JobFilter,
};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(get))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(cancel))
        .routes(routes!(jobs))
        .routes(routes!(recommendation))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Submission {
    /// Only estimate cost and time; nothing is stored.
    #[serde(default)]
    dry_run: bool,
}

/// Submits a search; with `dry_run=true` answers what it would cost.
#[utoipa::path(
    post, path = "/v1/searches", tag = "searches", request_body = NewSearch,
    params(Submission, ("Idempotency-Key" = Option<String>, Header, description = "A repeated submission with the same key answers the search that the first one made.")),
    security(("token" = ["researcher"])),
    responses(
        (status = 201, description = "Submitted", body = SearchView),
        (status = 200, description = "Submitted before under the same key (a search), or a dry run (an estimate)", body = SearchEstimate),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn create(
    State(app): State<Arc<App>>,
    Query(submission): Query<Submission>,
    headers: HeaderMap,
    Json(new): Json<NewSearch>,
) -> Result<Response, Problem> {
    if submission.dry_run {
        return Ok(Json(search::estimate(&app, &new).await?).into_response());
    }
    let key = headers.get("idempotency-key").map(|key| key.to_str());
    let key = key
        .transpose()
        .map_err(|_| Problem::invalid("Idempotency-Key", "must be visible ASCII characters"))?;
    let submitted = search::submit(&app, &new, key).await?;
    let status = if submitted.fresh {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok((status, Json(view(&app, submitted.id).await?)).into_response())
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Listed {
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Items at most, 1 to 1000; 100 unless given.
    limit: Option<i64>,
    /// Only searches in this state.
    state: Option<SearchState>,
}

/// Lists searches, newest first.
#[utoipa::path(
    get, path = "/v1/searches", tag = "searches", params(Listed),
    security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "A page of searches", body = Page<SearchView>),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn list(State(app): State<Arc<App>>, Query(listed): Query<Listed>) -> Result<Json<Page<SearchView>>, Problem> {
    let window = Window {
        cursor: listed.cursor,
        limit: listed.limit,
    };
    let limit = window.limit()?;
    let ids = page(
        app.store.search_ids(window.after()?, listed.state, limit + 1).await?,
        limit,
        |id| *id,
    );
    let mut items = Vec::with_capacity(ids.items.len());
    for id in ids.items {
        items.push(view(&app, id).await?);
    }
    Ok(Json(Page {
        items,
        next_cursor: ids.next_cursor,
    }))
}

/// One search.
#[utoipa::path(
    get, path = "/v1/searches/{id}", tag = "searches", params(("id" = SearchId, Path)),
    security(("token" = ["researcher", "viewer", "worker", "device"])),
    responses(
        (status = 200, description = "The search", body = SearchView),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn get(State(app): State<Arc<App>>, Path(id): Path<SearchId>) -> Result<Json<SearchView>, Problem> {
    Ok(Json(view(&app, id).await?))
}

/// Holds a search: what runs is finished, nothing new starts.
#[utoipa::path(
    post, path = "/v1/searches/{id}/pause", tag = "searches", params(("id" = SearchId, Path)),
    security(("token" = ["researcher"])),
    responses(
        (status = 200, description = "It is paused", body = SearchView),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn pause(State(app): State<Arc<App>>, Path(id): Path<SearchId>) -> Result<Json<SearchView>, Problem> {
    steer(&app, id, Steering::Pause).await
}

/// Lets a paused search go on where it stood.
#[utoipa::path(
    post, path = "/v1/searches/{id}/resume", tag = "searches", params(("id" = SearchId, Path)),
    security(("token" = ["researcher"])),
    responses(
        (status = 200, description = "It goes on", body = SearchView),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn resume(State(app): State<Arc<App>>, Path(id): Path<SearchId>) -> Result<Json<SearchView>, Problem> {
    steer(&app, id, Steering::Resume).await
}

/// Ends a search; workers on its jobs are told at their next heartbeat.
#[utoipa::path(
    post, path = "/v1/searches/{id}/cancel", tag = "searches", params(("id" = SearchId, Path)),
    security(("token" = ["researcher"])),
    responses(
        (status = 200, description = "It is cancelled", body = SearchView),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn cancel(State(app): State<Arc<App>>, Path(id): Path<SearchId>) -> Result<Json<SearchView>, Problem> {
    steer(&app, id, Steering::Cancel).await
}

/// Lists a search's jobs, oldest first, with their attempts.
#[utoipa::path(
    get, path = "/v1/searches/{id}/jobs", tag = "searches", params(("id" = SearchId, Path), Window),
    security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "A page of jobs", body = Page<JobView>),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn jobs(
    State(app): State<Arc<App>>,
    Path(id): Path<SearchId>,
    Query(window): Query<Window>,
) -> Result<Json<Page<JobView>>, Problem> {
    let limit = window.limit()?;
    require(&app, id).await?;
    let filter = JobFilter::OfSearch(id, window.after::<JobId>()?);
    Ok(Json(page(
        app.store.job_views(filter, limit + 1).await?,
        limit,
        |job| job.id,
    )))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// Most milliseconds of a step.
    latency_ms: Option<f64>,
    /// Most bytes of memory.
    peak_memory_bytes: Option<f64>,
}

/// The best verified candidate within limits, and what to try next.
#[utoipa::path(
    get, path = "/v1/searches/{id}/recommendation", tag = "searches", params(("id" = SearchId, Path), Wanted),
    security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "The recommendation", body = Recommendation),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn recommendation(
    State(app): State<Arc<App>>,
    Path(id): Path<SearchId>,
    Query(wanted): Query<Wanted>,
) -> Result<Json<Recommendation>, Problem> {
    for (field, bound) in [
        ("latency_ms", wanted.latency_ms),
        ("peak_memory_bytes", wanted.peak_memory_bytes),
    ] {
        if bound.is_some_and(|bound| !bound.is_finite() || bound <= 0.0) {
            return Err(Problem::invalid(field, "must be a number above 0"));
        }
    }
    let within = Within {
        latency_ms: wanted.latency_ms,
        peak_memory_bytes: wanted.peak_memory_bytes,
    };
    Ok(Json(search::recommend(&app, id, within).await?))
}

async fn steer(app: &Arc<App>, id: SearchId, wish: Steering) -> Result<Json<SearchView>, Problem> {
    search::steer(&app.store, id, wish, app.clock.now()).await?;
    search::advance(app, id).await?;
    Ok(Json(view(app, id).await?))
}

/// 404 unless the search is there.
pub(super) async fn require(app: &App, id: SearchId) -> Result<(), Problem> {
    let there = app.store.search(id).await?.is_some();
    if there {
        Ok(())
    } else {
        Err(SearchError::NotFound(id).into())
    }
}

async fn view(app: &App, id: SearchId) -> Result<SearchView, Problem> {
    let row = app.store.search(id).await?.ok_or(SearchError::NotFound(id))?;
    let space = app.searches.space(&row).await?;
    let figures = app.store.search_figures(id).await?;
    Ok(views::search(row, &figures, &space))
}

impl From<SearchError> for Problem {
    fn from(error: SearchError) -> Self {
        match error {
            SearchError::NotFound(id) => Self::not_found("search", id),
            SearchError::Space(errors) => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid-space",
                "The space file cannot be accepted",
            )
            .errors(errors),
            SearchError::Invalid { field, message } => Self::invalid(field, message),
            SearchError::WrongState { .. } => Self::conflict("wrong-state", error),
            SearchError::KeyReused(_) => Self::conflict("idempotency-key-reused", error),
            SearchError::Artifact(error) => error.into(),
            SearchError::Store(error) => error.into(),
        }
    }
}

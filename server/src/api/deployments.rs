//! `/v1/deployments`: candidates on their way to a device.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{self, KeepAlive, Sse},
    },
};
use futures::Stream;
use protocol::{
    CandidateId, DeploymentId, Page, ProblemDocument,
    deployments::{DeploymentState, DeploymentView, NewDeployment},
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
    deployments::{self, DeploymentError, views},
    event_hub::Topic,
    store::deployments::DeploymentFilter,
};

/// How often a deployment is looked at without a wake-up.
const LOOK_ANYWAY: Duration = Duration::from_secs(2);

const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The report shows what it holds and nothing else: no scripts, nothing from elsewhere.
const REPORT_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'";

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(get))
        .routes(routes!(cancel))
        .routes(routes!(retry))
        .routes(routes!(follow))
        .routes(routes!(report))
}

/// Takes a candidate to a device: final training, distillation, compression of the decoder, export, profile.
#[utoipa::path(
    post, path = "/v1/deployments", tag = "deployments", request_body = NewDeployment,
    security(("token" = ["researcher"])),
    responses(
        (status = 201, description = "Its first step waits for a worker; asking again under the same id changes nothing", body = DeploymentView),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn create(
    State(app): State<Arc<App>>,
    Json(new): Json<NewDeployment>,
) -> Result<(StatusCode, Json<DeploymentView>), Problem> {
    let id = deployments::submit(&app, &new).await?;
    Ok((StatusCode::CREATED, Json(views::view(&app, id).await?)))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Listed {
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Items at most, 1 to 1000; 100 unless given.
    limit: Option<i64>,
    /// Only of this candidate.
    candidate: Option<CandidateId>,
    /// Only in this state.
    state: Option<DeploymentState>,
    /// Also those that are cells of ablations.
    #[serde(default)]
    cells: bool,
}

/// Lists deployments, oldest first.
#[utoipa::path(
    get, path = "/v1/deployments", tag = "deployments", params(Listed),
    security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "A page of deployments", body = Page<DeploymentView>),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn list(
    State(app): State<Arc<App>>,
    Query(listed): Query<Listed>,
) -> Result<Json<Page<DeploymentView>>, Problem> {
    let window = Window {
        cursor: listed.cursor,
        limit: listed.limit,
    };
    let limit = window.limit()?;
    let filter = DeploymentFilter {
        ablation: None,
        candidate: listed.candidate,
        state: listed.state,
        after: window.after()?,
        cells: listed.cells,
    };
    let rows = page(app.store.deployments(filter, limit + 1).await?, limit, |row| row.id);
    let ids: Vec<DeploymentId> = rows.items.iter().map(|row| row.id).collect();
    let steps = app.store.deployment_steps(&ids).await?;
    Ok(Json(Page {
        items: rows
            .items
            .into_iter()
            .map(|row| views::deployment(row, &steps))
            .collect(),
        next_cursor: rows.next_cursor,
    }))
}

/// One deployment with its steps.
#[utoipa::path(
    get, path = "/v1/deployments/{id}", tag = "deployments", params(("id" = DeploymentId, Path)),
    security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "The deployment", body = DeploymentView),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn get(State(app): State<Arc<App>>, Path(id): Path<DeploymentId>) -> Result<Json<DeploymentView>, Problem> {
    Ok(Json(views::view(&app, id).await?))
}

/// Ends a deployment; whoever does its job is told by the next heartbeat.
#[utoipa::path(
    post, path = "/v1/deployments/{id}/cancel", tag = "deployments", params(("id" = DeploymentId, Path)),
    security(("token" = ["researcher"])),
    responses(
        (status = 200, description = "It is cancelled", body = DeploymentView),
        (status = "default", description = "A problem; 409 where it has ended", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn cancel(State(app): State<Arc<App>>, Path(id): Path<DeploymentId>) -> Result<Json<DeploymentView>, Problem> {
    deployments::cancel(&app, id).await?;
    get(State(app), Path(id)).await
}

/// Takes a failed or cancelled deployment up again: finished steps stay, the one that ended without a result goes on
/// from its checkpoint.
#[utoipa::path(
    post, path = "/v1/deployments/{id}/retry", tag = "deployments", params(("id" = DeploymentId, Path)),
    security(("token" = ["researcher"])),
    responses(
        (status = 200, description = "It runs, or is done", body = DeploymentView),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn retry(State(app): State<Arc<App>>, Path(id): Path<DeploymentId>) -> Result<Json<DeploymentView>, Problem> {
    deployments::retry(&app, id).await?;
    get(State(app), Path(id)).await
}

/// Tells how a deployment stands, at once and then whenever that changes, until it ends.
///
/// Each event's data is the whole `DeploymentView` as JSON, so that none builds on another and a lost one is no gap.
#[utoipa::path(
    get, path = "/v1/deployments/{id}/events", tag = "deployments", params(("id" = DeploymentId, Path)),
    security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "How it stands, until it ends or the reader leaves", body = DeploymentView, content_type = "text/event-stream"),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn follow(State(app): State<Arc<App>>, Path(id): Path<DeploymentId>) -> Result<Response, Problem> {
    views::view(&app, id).await?;
    let stream = Sse::new(stream(app, id)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    let mut response = stream.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Proxies that collect answers would hold events back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

fn stream(app: Arc<App>, id: DeploymentId) -> impl Stream<Item = Result<sse::Event, Infallible>> {
    async_stream::stream! {
        let _counted = app.metrics.event_stream();
        let mut wake = app.events.subscribe(Topic::Events);
        let mut last = None;
        loop {
            wake.mark_unchanged();
            match views::view(&app, id).await {
                Ok(view) => {
                    let has_ended = view.state != DeploymentState::Running;
                    if last.as_ref() != Some(&view)
                        && let Ok(sent) = sse::Event::default().json_data(&view)
                    {
                        yield Ok(sent);
                    }
                    if has_ended {
                        break;
                    }
                    last = Some(view);
                }
                Err(error) => tracing::warn!(%error, "a deployment cannot be read at the moment"),
            }
            tokio::select! {
                () = app.events.stopped() => break,
                _ = tokio::time::timeout(LOOK_ANYWAY, wake.changed()) => {}
            }
        }
    }
}

/// What a deployment came to, as one page that needs nothing beside it.
#[utoipa::path(
    get, path = "/v1/deployments/{id}/report", tag = "deployments", params(("id" = DeploymentId, Path)),
    security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "The report, as far as the deployment is", body = String, content_type = "text/html"),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn report(State(app): State<Arc<App>>, Path(id): Path<DeploymentId>) -> Result<Response, Problem> {
    let page = deployments::report(&app, id).await?;
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, REPORT_POLICY),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    Ok((headers, page).into_response())
}

impl From<DeploymentError> for Problem {
    fn from(error: DeploymentError) -> Self {
        match error {
            DeploymentError::NotFound(id) => Self::not_found("deployment", id),
            DeploymentError::NoAblation(id) => Self::not_found("ablation", id),
            DeploymentError::NoCandidate(id) => Self::not_found("candidate", id),
            DeploymentError::Invalid(errors) => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid-request",
                "The request cannot be accepted",
            )
            .errors(errors),
            DeploymentError::IdTaken(_) => Self::conflict("id-taken", error),
            DeploymentError::WrongState { .. } => Self::conflict("wrong-state", error),
            DeploymentError::Space(error) => error.into(),
            DeploymentError::Artifact(error) => error.into(),
            DeploymentError::Plot(error) => Self::internal(&error),
            DeploymentError::Store(error) => error.into(),
        }
    }
}

//! `/v1/workers`.

use std::sync::Arc;

use axum::{Extension, extract::State, http::StatusCode};
use protocol::{
    Page, ProblemDocument, WorkerId,
    devices::{WorkerRegistration, WorkerView},
    jobs::JobKind,
    tokens::Role,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    devices,
    extract::{Json, Query},
    problem::Problem,
    window::{Window, page},
};
use crate::{app::App, auth::Identity, store::workers};

/// The most evaluators that a worker may bring, and the longest name of one, in characters.
const MOST_EVALUATORS: usize = 32;
const LONGEST_EVALUATOR: usize = 64;

/// What a token of a device may take: it measures and trains nothing.
const DEVICE_KINDS: [JobKind; 2] = [JobKind::Profile, JobKind::Verify];

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(register, list))
}

/// Registers a worker and its device. With a token of role `device` it may take `profile` and `verify` only.
#[utoipa::path(
    post, path = "/v1/workers", tag = "workers", request_body = WorkerRegistration,
    security(("token" = ["worker", "device"])),
    responses(
        (status = 201, description = "Registered", body = WorkerRegistration),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn register(
    State(app): State<Arc<App>>,
    Extension(identity): Extension<Identity>,
    Json(worker): Json<WorkerRegistration>,
) -> Result<(StatusCode, Json<WorkerRegistration>), Problem> {
    devices::check(&worker.device, "device.")?;
    if worker.name.chars().count() > 200 {
        return Err(Problem::invalid("name", "must have at most 200 characters"));
    }
    if worker.kinds.is_empty() {
        return Err(Problem::invalid("kinds", "must name at least one kind of job"));
    }
    let named = |evaluator: &String| (1..=LONGEST_EVALUATOR).contains(&evaluator.chars().count());
    if worker.evaluators.len() > MOST_EVALUATORS || !worker.evaluators.iter().all(named) {
        return Err(Problem::invalid(
            "evaluators",
            format_args!("allowed: at most {MOST_EVALUATORS} names of 1 to {LONGEST_EVALUATOR} characters"),
        ));
    }
    let forbidden = worker.kinds.iter().find(|kind| !DEVICE_KINDS.contains(kind));
    if let Some(kind) = forbidden.filter(|_| identity.role == Role::Device) {
        let allowed = DEVICE_KINDS.map(JobKind::as_str).join(", ");
        return Err(
            Problem::new(StatusCode::FORBIDDEN, "wrong-role", "The token does not admit to this").field(
                "kinds",
                format_args!("found {kind}; with a token of role device allowed: {allowed}"),
            ),
        );
    }
    let now = app.clock.now();
    let mut tx = app.store.begin().await?;
    workers::register(&mut tx, &worker, now).await?;
    tx.commit(now).await?;
    Ok((StatusCode::CREATED, Json(worker)))
}

/// Lists workers, oldest first.
#[utoipa::path(
    get, path = "/v1/workers", tag = "workers", params(Window), security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "A page of workers", body = Page<WorkerView>),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn list(State(app): State<Arc<App>>, Query(window): Query<Window>) -> Result<Json<Page<WorkerView>>, Problem> {
    let limit = window.limit()?;
    let workers = app.store.workers(window.after::<WorkerId>()?, limit + 1).await?;
    Ok(Json(page(workers, limit, |view| view.worker.id)))
}

//! REST under `/v1`, its description, and the page. Handlers parse, call and render; rules live elsewhere.

use std::{sync::Arc, time::Instant};

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    http::{HeaderName, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use tower::ServiceBuilder;
use tower_http::{
    catch_panic::CatchPanicLayer,
    compression::{
        CompressionLayer,
        predicate::{DefaultPredicate, NotForContentType, Predicate},
    },
    request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer},
    trace::TraceLayer,
};
use tracing::Span;
use utoipa_axum::router::OpenApiRouter;

mod ablations;
pub mod artifacts;
mod candidates;
mod deployments;
mod devices;
pub mod docs;
mod estimates;
pub mod events;
pub mod extract;
mod fronts;
pub mod health;
mod jobs;
mod leases;
mod luts;
pub mod page;
pub mod plots;
pub mod problem;
mod searches;
mod spaces;
pub mod tokens;
mod window;
mod workers;

use crate::{
    app::App,
    auth::{self, Gate, RouteRoles},
};
use problem::Problem;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How long a request may take that neither waits for something nor moves much.
const ANSWER_TIME: std::time::Duration = std::time::Duration::from_secs(60);

/// Routes that wait by design, or take as long as their bytes take to move.
const UNHURRIED: [&str; 5] = [
    "/v1/leases",
    "/v1/jobs/{id}/rendezvous",
    "/v1/searches/{id}/events",
    "/v1/deployments/{id}/events",
    "/v1/artifacts/{digest}",
];

/// Every route that asks who is there, with its description.
fn resources() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(docs::outline())
        .merge(ablations::routes())
        .merge(artifacts::routes())
        .merge(deployments::routes())
        .merge(estimates::routes())
        .merge(events::routes())
        .merge(candidates::routes())
        .merge(devices::routes())
        .merge(fronts::routes())
        .merge(health::routes())
        .merge(jobs::routes())
        .merge(leases::routes())
        .merge(plots::routes())
        .merge(luts::routes())
        .merge(searches::routes())
        .merge(spaces::routes())
        .merge(workers::routes())
        .merge(tokens::routes())
}

/// The OpenAPI document of this coordinator.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    let mut document = resources().into_openapi();
    auth::describe(&mut document);
    document
}

/// Everything the coordinator answers.
pub fn router(app: Arc<App>) -> Router {
    let (resources, document) = resources().split_for_parts();
    let gate = Gate::new(app.clone(), RouteRoles::from_document(&document));
    let guarded = resources
        .route("/v1", axum::routing::any(unknown_route))
        .route("/v1/", axum::routing::any(unknown_route))
        .route("/v1/{*rest}", axum::routing::any(unknown_route))
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn(in_time))
        .layer(middleware::from_fn_with_state(gate, auth::guard));
    let open = Router::new()
        .route("/healthz", axum::routing::get(health::healthz))
        .merge(docs::routes())
        .fallback(page::serve)
        .method_not_allowed_fallback(wrong_method);
    let outer = ServiceBuilder::new()
        .layer(SetRequestIdLayer::new(REQUEST_ID, MakeRequestUuid))
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(span)
                .on_response(())
                .on_failure(()),
        )
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(middleware::from_fn_with_state(app.clone(), observe))
        .layer(CompressionLayer::new().compress_when(compressible()))
        .layer(CatchPanicLayer::custom(panicked));
    guarded.merge(open).layer(outer).with_state(app)
}

/// Text is compressed; streams of events, and bytes that are compressed already, are not.
fn compressible() -> impl Predicate {
    DefaultPredicate::new()
        .and(NotForContentType::const_new("application/octet-stream"))
        .and(NotForContentType::const_new("application/gzip"))
        .and(NotForContentType::const_new("font/"))
        .and(Unranged)
}

/// A range of bytes must stay the bytes that were asked for.
#[derive(Clone, Copy)]
struct Unranged;

impl Predicate for Unranged {
    fn should_compress<B: axum::body::HttpBody>(&self, response: &axum::http::Response<B>) -> bool {
        !response.headers().contains_key(header::ACCEPT_RANGES)
    }
}

fn span(request: &Request) -> Span {
    let id = request
        .headers()
        .get(REQUEST_ID)
        .and_then(|id| id.to_str().ok())
        .unwrap_or_default();
    tracing::info_span!("request", method = %request.method(), path = request.uri().path(), request.id = id)
}

/// Counts and logs every answer under its route.
async fn observe(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("(page)", MatchedPath::as_str)
        .to_owned();
    let response = next.run(request).await;
    let (status, took) = (response.status().as_u16(), started.elapsed());
    app.metrics.answered(method.as_str(), &route, status, took);
    tracing::debug!(status, duration_ms = took.as_millis(), "answered");
    response
}

/// Ends what takes too long, with a problem document.
async fn in_time(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    if route.is_some_and(|route| UNHURRIED.contains(&route)) {
        return next.run(request).await;
    }
    tokio::time::timeout(ANSWER_TIME, next.run(request))
        .await
        .unwrap_or_else(|_| {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too-slow", "The request took too long")
                .detail(format_args!("it was given up after {} seconds", ANSWER_TIME.as_secs()))
                .into_response()
        })
}

fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)");
    Problem::internal(&std::io::Error::other(format!("panicked: {text}"))).into_response()
}

async fn unknown_route(request: Request) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "unknown-route", "No such route")
        .detail(format_args!("there is no {}; see /docs", request.uri().path()))
}

async fn wrong_method(method: Method, request: Request) -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "wrong-method",
        "The route does not take this method",
    )
    .detail(format_args!(
        "{} does not take {method}; see /docs",
        request.uri().path()
    ))
}

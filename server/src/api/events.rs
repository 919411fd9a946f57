//! `/v1/searches/{id}/events`: what a search tells, as server-sent events.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, header},
    response::{
        IntoResponse, Response,
        sse::{self, KeepAlive, Sse},
    },
};
use futures::Stream;
use protocol::{ProblemDocument, SearchId, events::Event};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    extract::{Path, Query},
    problem::Problem,
};
use crate::{app::App, event_hub::Topic};

/// Events read at once.
const BATCH: i64 = 200;

/// How often the table is looked at without a wake-up, and while the database is away.
const LOOK_ANYWAY: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(1);

const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(follow))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct From {
    /// Number of the last event already seen, for who cannot send `Last-Event-ID`; 0 unless given: all events.
    after: Option<i64>,
}

/// Tells what happens in a search: first what happened since `Last-Event-ID`, then what happens, without a gap.
///
/// Each event's data is an `Event` as JSON; its id is the event's number.
#[utoipa::path(
    get, path = "/v1/searches/{id}/events", tag = "searches",
    params(("id" = SearchId, Path), From, ("last-event-id" = Option<i64>, Header, description = "Number of the last event already seen")),
    security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "Events, until the reader leaves", body = Event, content_type = "text/event-stream"),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn follow(
    State(app): State<Arc<App>>,
    Path(id): Path<SearchId>,
    Query(from): Query<From>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let after = last_seen(&headers)?.or(from.after).unwrap_or(0);
    if app.store.last_event(id).await?.is_none() {
        return Err(Problem::not_found("search", id));
    }
    let stream = Sse::new(stream(app, id, after)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    let mut response = stream.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Proxies that collect answers would hold events back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

fn last_seen(headers: &HeaderMap) -> Result<Option<i64>, Problem> {
    let Some(value) = headers.get("last-event-id").filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or("(not text)");
    let number = text.parse().ok().filter(|number| *number >= 0);
    number
        .map(Some)
        .ok_or_else(|| Problem::invalid("last-event-id", format_args!("`{text}` is no number of an event")))
}

/// Numbers become visible in order and without gaps, so reading on from the last one misses nothing.
fn stream(app: Arc<App>, id: SearchId, after: i64) -> impl Stream<Item = Result<sse::Event, Infallible>> {
    async_stream::stream! {
        let _counted = app.metrics.event_stream();
        let mut wake = app.events.subscribe(Topic::Events);
        let mut last = after;
        loop {
            wake.mark_unchanged();
            let patience = match app.store.events_after(id, last, BATCH).await {
                Ok(events) => {
                    let is_full = i64::try_from(events.len()).is_ok_and(|count| count == BATCH);
                    for event in events {
                        last = event.sequence;
                        if let Ok(sent) = sse::Event::default().id(last.to_string()).json_data(&event) {
                            yield Ok(sent);
                        }
                    }
                    if is_full {
                        continue;
                    }
                    LOOK_ANYWAY
                }
                Err(error) => {
                    tracing::warn!(%error, "events cannot be read at the moment");
                    RETRY
                }
            };
            tokio::select! {
                () = app.events.stopped() => break,
                _ = tokio::time::timeout(patience, wake.changed()) => {}
            }
        }
    }
}

//! Look-up tables: upload, list, export and import.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use lut::{Entry, EntryState, ImportError, ImportErrors, Lut, LutKey, Runtime, Samples};
use protocol::{
    FieldProblem, Figure, Page, ProblemDocument,
    devices::RuntimeName,
    luts::{LutEntryView, ProfileReply, ProfileRequest, SampleUpload},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    devices,
    extract::{Json, Path, Query, RawBody},
    problem::Problem,
    window::{Window, page},
};
use crate::{
    app::App,
    aside::aside,
    samples, search,
    store::luts::{self, Batch, BatchOutcome, LutFilter},
};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(upload))
        .routes(routes!(export_csv))
        .routes(routes!(export_json))
        .routes(routes!(import))
        .routes(routes!(profile))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Part {
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Items at most, 1 to 1000; 100 unless given.
    limit: Option<i64>,
    /// Only this runtime, as `name@version`.
    runtime: Option<String>,
    /// Only this operator.
    operator: Option<String>,
    /// With raw latency samples.
    #[serde(default)]
    samples: bool,
}

/// Lists a device's table by runtime, number format, operator and shape.
#[utoipa::path(
    get, path = "/v1/luts/{device}", tag = "luts", params(("device" = String, Path), Part),
    security(("token" = ["researcher", "viewer", "device"])),
    responses(
        (status = 200, description = "A page of entries", body = Page<LutEntryView>),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn list(
    State(app): State<Arc<App>>,
    Path(device): Path<String>,
    Query(part): Query<Part>,
) -> Result<Json<Page<LutEntryView>>, Problem> {
    let window = Window {
        cursor: part.cursor,
        limit: part.limit,
    };
    let limit = window.limit()?;
    devices::require(&app, &device).await?;
    let runtime = part.runtime.as_deref().map(runtime).transpose()?;
    let filter = LutFilter {
        runtime: runtime.as_ref(),
        dtype: None,
        operator: part.operator.as_deref(),
    };
    let tables = Lut::from_entries(app.store.lut_entries(&device, &filter).await?);
    let entries: Vec<Entry> = tables.iter().flat_map(Lut::entries).collect();
    let first = match &window.cursor {
        None => 0,
        Some(cursor) => {
            let last = entries.iter().position(|entry| cursor_of(&entry.key) == *cursor);
            1 + last
                .ok_or_else(|| Problem::invalid("cursor", "is none that a page gave; pass `next_cursor` as it came"))?
        }
    };
    let wanted = usize::try_from(limit).unwrap_or(usize::MAX).saturating_add(1);
    let entries: Vec<Entry> = entries.into_iter().skip(first).take(wanted).collect();
    let entries = page(entries, limit, |entry| cursor_of(&entry.key));
    let items = entries
        .items
        .into_iter()
        .map(|entry| view(entry, part.samples))
        .collect();
    Ok(Json(Page {
        items,
        next_cursor: entries.next_cursor,
    }))
}

/// What an upload came to.
#[derive(Debug, Serialize, ToSchema)]
struct Received {
    /// Entries that are new; 0 where the same was uploaded before.
    stored: u64,
}

/// Takes a batch of raw samples; one that is sent again changes nothing.
#[utoipa::path(
    post, path = "/v1/luts/{device}/samples", tag = "luts", params(("device" = String, Path)),
    request_body = SampleUpload, security(("token" = ["researcher", "worker", "device"])),
    responses(
        (status = 200, description = "They are stored", body = Received),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn upload(
    State(app): State<Arc<App>>,
    Path(device): Path<String>,
    Json(upload): Json<SampleUpload>,
) -> Result<Json<Received>, Problem> {
    devices::require(&app, &device).await?;
    check_runtime(&upload.runtime)?;
    let entries = samples::entries(&device, &upload.runtime, &upload.entries, "entries").map_err(refused)?;
    let content = serde_json::to_vec(&upload).unwrap_or_default();
    let batch = Batch {
        id: upload.batch_id,
        device: &device,
        runtime: &upload.runtime,
        digest: &samples::digest(&content),
        entries: &entries,
    };
    let stored = store(&app, &[batch]).await?;
    Ok(Json(Received { stored }))
}

/// The device's table as CSV, one row an entry, raw samples included.
#[utoipa::path(
    get, path = "/v1/luts/{device}/export.csv", tag = "luts", params(("device" = String, Path)),
    security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "The table", body = String, content_type = "text/csv"),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn export_csv(State(app): State<Arc<App>>, Path(device): Path<String>) -> Result<Response, Problem> {
    let text = lut::formats::csv::export(merged(&app, &device).await?);
    Ok(([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], text).into_response())
}

/// The device's table as JSON, one object an entry, raw samples included.
#[utoipa::path(
    get, path = "/v1/luts/{device}/export.json", tag = "luts", params(("device" = String, Path)),
    security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "The table", body = String, content_type = "application/json"),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn export_json(State(app): State<Arc<App>>, Path(device): Path<String>) -> Result<Response, Problem> {
    let text = lut::formats::json::export(merged(&app, &device).await?);
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}

/// Takes a table as CSV (`text/csv`) or JSON (`application/json`) in the form that export gives; importing the
/// same again changes nothing.
#[utoipa::path(
    post, path = "/v1/luts/{device}/import", tag = "luts", params(("device" = String, Path)),
    request_body(content((String = "text/csv"), (String = "application/json"))),
    security(("token" = ["researcher", "device"])),
    responses(
        (status = 200, description = "It is stored", body = Received),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn import(
    State(app): State<Arc<App>>,
    Path(device): Path<String>,
    headers: HeaderMap,
    RawBody(body): RawBody,
) -> Result<Json<Received>, Problem> {
    devices::require(&app, &device).await?;
    let text = String::from_utf8(body.into()).map_err(|_| Problem::invalid("(whole body)", "is not UTF-8"))?;
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or_default();
    let read = match kind.split(';').next().unwrap_or_default().trim() {
        "text/csv" => lut::formats::csv::import,
        "application/json" => lut::formats::json::import,
        _ => {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "not-a-table",
                "The body must be a table",
            )
            .detail("send `content-type: text/csv` or `application/json`"));
        }
    };
    let entries = aside(move || read(&text)).await.map_err(import_problem)?;
    let mut by_runtime: BTreeMap<Runtime, Vec<Entry>> = BTreeMap::new();
    for (index, entry) in entries.into_iter().enumerate() {
        if entry.key.device != device {
            let found = &entry.key.device;
            return Err(Problem::invalid(
                format!("entries[{index}].device"),
                format_args!("`{found}` is another device; a table is imported under its own"),
            ));
        }
        by_runtime.entry(entry.key.runtime.clone()).or_default().push(entry);
    }
    let names: Vec<(RuntimeName, String, Vec<Entry>)> = by_runtime
        .into_iter()
        .map(|(runtime, entries)| {
            let content = format!("{device}\n{}", lut::formats::json::export(entries.clone()));
            (
                RuntimeName {
                    name: runtime.name,
                    version: runtime.version,
                },
                samples::digest(content.as_bytes()),
                entries,
            )
        })
        .collect();
    let mut batches = Vec::with_capacity(names.len());
    for (runtime, digest, entries) in &names {
        check_runtime(runtime)?;
        batches.push(Batch {
            id: id_of(digest),
            device: &device,
            runtime,
            digest,
            entries,
        });
    }
    let stored = store(&app, &batches).await?;
    Ok(Json(Received { stored }))
}

/// Asks workers on the device to measure blocks that its table lacks: those of the paper's Figure 3, those of a shipped
/// space, or a list. A block that does not fit into a worker's memory becomes an entry that says so.
#[utoipa::path(
    post, path = "/v1/luts/{device}/profile", tag = "luts", params(("device" = String, Path)),
    request_body = ProfileRequest, security(("token" = ["researcher"])),
    responses(
        (status = 202, description = "Queued; read the jobs for how they end", body = ProfileReply),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn profile(
    State(app): State<Arc<App>>,
    Path(device): Path<String>,
    Json(wish): Json<ProfileRequest>,
) -> Result<(StatusCode, Json<ProfileReply>), Problem> {
    devices::require(&app, &device).await?;
    if let Some(runtime) = &wish.runtime {
        check_runtime(runtime)?;
    }
    let queued = search::measure(&app, &device, &wish).await?;
    Ok((StatusCode::ACCEPTED, Json(queued)))
}

/// Stores batches, all or none, and lets searches that waited for them go on.
async fn store(app: &Arc<App>, batches: &[Batch<'_>]) -> Result<u64, Problem> {
    let now = app.clock.now();
    let mut tx = app.store.begin().await?;
    let mut stored = 0;
    for batch in batches {
        match luts::insert_batch(tx.connection(), batch, now).await? {
            BatchOutcome::Stored => stored += batch.entries.len() as u64,
            BatchOutcome::Repeated => {}
            BatchOutcome::Conflicting => {
                return Err(Problem::conflict(
                    "batch-id-reused",
                    format_args!("batch {} holds other samples; choose a fresh id", batch.id),
                ));
            }
        }
    }
    tx.commit(now).await?;
    if stored > 0 {
        search::advance_all(app, &app.store).await?;
    }
    Ok(stored)
}

async fn merged(app: &App, device: &str) -> Result<Vec<Entry>, Problem> {
    devices::require(app, device).await?;
    let tables = Lut::from_entries(app.store.lut_entries(device, &LutFilter::default()).await?);
    Ok(tables.iter().flat_map(Lut::entries).collect())
}

fn view(entry: Entry, with_samples: bool) -> LutEntryView {
    let LutKey {
        runtime, dtype, block, ..
    } = entry.key;
    let figure = |samples: &Samples| {
        let value = samples.median()?;
        Some(Figure {
            value,
            standard_error: samples.standard_error().unwrap_or(0.0),
        })
    };
    let state = entry.state.label().to_owned();
    let (measured, detail) = match entry.state {
        EntryState::Measured(measured) => (Some(measured), None),
        EntryState::OutOfMemory { detail } | EntryState::Unsupported { detail } => (None, Some(detail)),
    };
    let latency = measured.as_ref().map(|measured| &measured.latency_ms);
    LutEntryView {
        runtime: RuntimeName {
            name: runtime.name,
            version: runtime.version,
        },
        dtype: dtype.to_string(),
        block: samples::wire_block(&block),
        state,
        detail,
        latency_ms: latency.and_then(figure),
        latency_spread_ms: latency.and_then(Samples::spread),
        peak_memory_bytes: measured
            .as_ref()
            .and_then(|measured| figure(&measured.peak_memory_bytes)),
        samples: latency.map_or(0, |samples| samples.len() as u64),
        latency_ms_samples: latency
            .filter(|_| with_samples)
            .map(|l| l.values().to_vec())
            .unwrap_or_default(),
    }
}

fn runtime(text: &str) -> Result<RuntimeName, Problem> {
    let runtime: Runtime = text.parse().map_err(|error| Problem::invalid("runtime", error))?;
    Ok(RuntimeName {
        name: runtime.name,
        version: runtime.version,
    })
}

fn check_runtime(runtime: &RuntimeName) -> Result<(), Problem> {
    for (field, text) in [("runtime.name", &runtime.name), ("runtime.version", &runtime.version)] {
        if text.is_empty() || text.len() > 100 || text.contains(char::is_whitespace) {
            return Err(Problem::invalid(field, "must have 1 to 100 characters and no space"));
        }
    }
    Ok(())
}

/// An entry's place in the list, opaque and of one length.
fn cursor_of(key: &LutKey) -> String {
    samples::digest(format!("{} {} {}", key.runtime, key.dtype, key.block).as_bytes())[..32].to_owned()
}

/// The id of an imported batch is its content's.
fn id_of(digest: &str) -> uuid::Uuid {
    let mut bytes = [0; 16];
    for (byte, digits) in bytes.iter_mut().zip(digest.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).unwrap_or_default();
        *byte = u8::from_str_radix(digits, 16).unwrap_or_default();
    }
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

fn refused(errors: Vec<FieldProblem>) -> Problem {
    Problem::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "invalid-request",
        "The request cannot be accepted",
    )
    .errors(errors)
}

fn import_problem(ImportErrors(errors): ImportErrors) -> Problem {
    let number = |number: u64| u32::try_from(number).ok();
    refused(
        errors
            .into_iter()
            .take(100)
            .map(|error| match error {
                ImportError::Value {
                    line,
                    column,
                    field,
                    found,
                    allowed,
                } => FieldProblem {
                    field,
                    line: number(line),
                    column: number(column),
                    message: format!("found {found:?}; allowed: {allowed}"),
                },
                ImportError::Syntax { line, column, message } => FieldProblem {
                    field: "(table)".to_owned(),
                    line: number(line),
                    column: number(column),
                    message,
                },
            })
            .collect(),
    )
}

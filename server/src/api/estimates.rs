//! What a device's tables hold and what they say of blocks that were not measured.

use std::sync::Arc;

use axum::extract::State;
use lut::{Axis, Cost, EntryState, ErrorSummary, Extrapolation, Lookup, Lut, Runtime};
use protocol::{
    ProblemDocument,
    devices::RuntimeName,
    luts::{BlockEstimate, EstimateBasis, LeaveOutError, RelativeErrors, TableSummary},
};
use search_spaces::{Block, Dtype, Shape};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    devices,
    extract::{Json, Path, Query},
    problem::Problem,
};
use crate::{app::App, samples, search::views, store::luts::LutFilter};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(summary)).routes(routes!(estimate))
}

/// The device's tables, one for each runtime and number format: entries by how measuring them ended, and the
/// leave-out error of each operator.
#[utoipa::path(
    get, path = "/v1/luts/{device}/summary", tag = "luts", params(("device" = String, Path)),
    security(("token" = ["researcher", "viewer", "device"])),
    responses(
        (status = 200, description = "The tables", body = Vec<TableSummary>),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn summary(State(app): State<Arc<App>>, Path(device): Path<String>) -> Result<Json<Vec<TableSummary>>, Problem> {
    let tables = tables(&app, &device).await?;
    // Each entry is predicted from all others.
    let summaries = tokio::task::spawn_blocking(move || tables.iter().map(summary_of).collect());
    let summaries = summaries.await.map_err(|error| Problem::internal(&error))?;
    Ok(Json(summaries))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// The operator, such as `conv3d`.
    operator: String,
    /// Its dimensions as name=size with spaces or commas between, such as `b=1,c=64,groups=8,h=8,t=5,w=8`.
    shape: String,
    /// `name@version`; needed where the device has tables of several runtimes.
    runtime: Option<String>,
    /// `f32`, `f16` or `bf16`; needed where the device has tables of several.
    dtype: Option<String>,
    /// Also beyond what was measured.
    #[serde(default)]
    extrapolate: bool,
}

/// What a block costs by the device's table: measured, interpolated between measured neighbours with the doubt of that,
/// or, only when asked for, extrapolated.
#[utoipa::path(
    get, path = "/v1/luts/{device}/estimate", tag = "luts", params(("device" = String, Path), Wanted),
    security(("token" = ["researcher", "viewer", "device"])),
    responses(
        (status = 200, description = "The estimate, or why there is none", body = BlockEstimate),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn estimate(
    State(app): State<Arc<App>>,
    Path(device): Path<String>,
    Query(wanted): Query<Wanted>,
) -> Result<Json<BlockEstimate>, Problem> {
    let shape: Shape = wanted
        .shape
        .replace(',', " ")
        .parse()
        .map_err(|error| Problem::invalid("shape", error))?;
    if shape.is_empty() {
        return Err(Problem::invalid(
            "shape",
            "is empty; allowed: name=size, as in `c=64,h=8,t=5,w=8`",
        ));
    }
    let table = only_table(tables(&app, &device).await?, &device, &wanted)?;
    let block = Block {
        operator: wanted.operator,
        shape,
    };
    let extrapolation = if wanted.extrapolate {
        Extrapolation::Allowed
    } else {
        Extrapolation::Refused
    };
    // The doubt of an interpolation rests on all entries.
    let estimate = tokio::task::spawn_blocking(move || estimate_of(&table, &block, extrapolation));
    Ok(Json(estimate.await.map_err(|error| Problem::internal(&error))?))
}

async fn tables(app: &App, device: &str) -> Result<Vec<Lut>, Problem> {
    devices::require(app, device).await?;
    let entries = app.store.lut_entries(device, &LutFilter::default()).await?;
    Ok(Lut::from_entries(entries))
}

/// The table of the runtime and number format wished for, or the only one.
fn only_table(mut tables: Vec<Lut>, device: &str, wanted: &Wanted) -> Result<Lut, Problem> {
    if let Some(text) = &wanted.runtime {
        let runtime: Runtime = text.parse().map_err(|error| Problem::invalid("runtime", error))?;
        tables.retain(|table| *table.runtime() == runtime);
    }
    if let Some(text) = &wanted.dtype {
        let dtype: Dtype = text
            .parse()
            .map_err(|error: search_spaces::UnknownDtype| Problem::invalid("dtype", error))?;
        tables.retain(|table| table.dtype() == dtype);
    }
    match (tables.pop(), tables.last()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(Problem::not_found(
            "table",
            format_args!("of device {device} with entries"),
        )),
        (Some(one), Some(other)) if one.runtime() != other.runtime() => {
            let (one, other) = (one.runtime(), other.runtime());
            let message = format!(
                "{device} has tables of several, name one: {}@{}, {}@{}",
                one.name, one.version, other.name, other.version
            );
            Err(Problem::invalid("runtime", message))
        }
        (Some(one), Some(other)) => {
            let message = format!(
                "{device} has tables of several, name one: {}, {}",
                one.dtype(),
                other.dtype()
            );
            Err(Problem::invalid("dtype", message))
        }
    }
}

fn summary_of(table: &Lut) -> TableSummary {
    let states: Vec<&EntryState> = table.operators().flat_map(|(_, shapes)| shapes.values()).collect();
    let count = |label: &str| states.iter().filter(|state| state.label() == label).count() as u64;
    let leave_out = table.leave_out_errors().iter().map(|error| LeaveOutError {
        operator: error.operator.clone(),
        over: error.over.clone(),
        latency: relative(error.latency_axis, &error.latency),
        peak_memory: error
            .peak_memory
            .as_ref()
            .map(|errors| relative(error.peak_memory_axis, errors)),
    });
    TableSummary {
        runtime: wire_runtime(table),
        dtype: table.dtype().to_string(),
        measured: count("measured"),
        out_of_memory: count("out_of_memory"),
        unsupported: count("unsupported"),
        leave_out: leave_out.collect(),
    }
}

fn relative(axis: Axis, errors: &ErrorSummary) -> RelativeErrors {
    RelativeErrors {
        linear_in: axis.as_str().to_owned(),
        cases: errors.cases as u64,
        mean: errors.mean,
        p50: errors.p50,
        p95: errors.p95,
        within_10_percent: errors.within_10_percent,
    }
}

fn estimate_of(table: &Lut, block: &Block, extrapolation: Extrapolation) -> BlockEstimate {
    let bare = BlockEstimate {
        runtime: wire_runtime(table),
        dtype: table.dtype().to_string(),
        block: samples::wire_block(block),
        basis: EstimateBasis::Missing,
        detail: None,
        latency_ms: None,
        peak_memory_bytes: None,
        leave_out_error: None,
    };
    let of = |basis, cost: Cost, errors: Option<ErrorSummary>| BlockEstimate {
        basis,
        latency_ms: Some(views::figure_of(cost.latency_ms)),
        peak_memory_bytes: cost.peak_memory_bytes.map(views::figure_of),
        leave_out_error: errors.map(|errors| errors.mean),
        ..bare.clone()
    };
    let without = |basis, detail: String| BlockEstimate {
        basis,
        detail: Some(detail),
        ..bare.clone()
    };
    match table.lookup(block, extrapolation) {
        Lookup::Measured(cost) => of(EstimateBasis::Measured, cost, None),
        Lookup::Interpolated(cost, errors) => of(EstimateBasis::Interpolated, cost, errors),
        Lookup::Extrapolated(cost) => of(EstimateBasis::Extrapolated, cost, None),
        Lookup::OutOfMemory { detail } => without(EstimateBasis::OutOfMemory, detail),
        Lookup::Unsupported { detail } => without(EstimateBasis::Unsupported, detail),
        Lookup::Missing(missing) => without(EstimateBasis::Missing, missing.to_string()),
    }
}

fn wire_runtime(table: &Lut) -> RuntimeName {
    let Runtime { name, version } = table.runtime().clone();
    RuntimeName { name, version }
}

//! Fronts.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use protocol::{ProblemDocument, SearchId, searches::FrontView};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    extract::{Json, Path},
    problem::Problem,
};
use crate::{app::App, search};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(get)).routes(routes!(csv))
}

/// The front: non-dominated candidates within the limits, references beside it, hypervolume over time.
#[utoipa::path(
    get, path = "/v1/searches/{id}/front", tag = "fronts", params(("id" = SearchId, Path)),
    security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "The front", body = FrontView),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn get(State(app): State<Arc<App>>, Path(id): Path<SearchId>) -> Result<Json<FrontView>, Problem> {
    Ok(Json(search::front(&app, id).await?))
}

/// The front as CSV: a row a point, each metric with its standard error, verified figures beside.
#[utoipa::path(
    get, path = "/v1/searches/{id}/front.csv", tag = "fronts", params(("id" = SearchId, Path)),
    security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "The front", body = String, content_type = "text/csv"),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn csv(State(app): State<Arc<App>>, Path(id): Path<SearchId>) -> Result<Response, Problem> {
    let text = rows(&search::front(&app, id).await?).map_err(|error| Problem::internal(&error))?;
    Ok(([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], text).into_response())
}

fn rows(front: &FrontView) -> Result<Vec<u8>, ::csv::Error> {
    let metrics: BTreeSet<&String> = front.points.iter().flat_map(|point| point.metrics.keys()).collect();
    let verified: BTreeSet<&String> = front.points.iter().flat_map(|point| point.verified.keys()).collect();
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    let mut header: Vec<String> = ["number", "architecture", "reference"].map(str::to_owned).to_vec();
    header.extend(
        metrics
            .iter()
            .flat_map(|name| [(*name).clone(), format!("{name}_standard_error")]),
    );
    header.extend(
        verified
            .iter()
            .flat_map(|name| [format!("verified_{name}"), format!("verified_{name}_standard_error")]),
    );
    header.push("verified_within_limits".to_owned());
    writer.write_record(&header)?;
    for point in &front.points {
        let figures = |from: &protocol::Metrics, names: &BTreeSet<&String>| -> Vec<String> {
            let figures = names.iter().flat_map(|name| match from.get(*name) {
                Some(figure) => [figure.value.to_string(), figure.standard_error.to_string()],
                None => [String::new(), String::new()],
            });
            figures.collect()
        };
        let mut row = vec![
            point.number.to_string(),
            point.architecture.clone(),
            point.reference.clone().unwrap_or_default(),
        ];
        row.extend(figures(&point.metrics, &metrics));
        row.extend(figures(&point.verified, &verified));
        row.push(
            point
                .verified_within_limits
                .map(|within| within.to_string())
                .unwrap_or_default(),
        );
        writer.write_record(&row)?;
    }
    writer
        .into_inner()
        .map_err(|error| ::csv::Error::from(error.into_error()))
}

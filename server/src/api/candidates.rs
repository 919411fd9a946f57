//! Candidates of a search.

use std::sync::Arc;

use axum::extract::State;
use protocol::{
    CandidateId, Page, ProblemDocument, SearchId,
    searches::{CandidateDetail, CandidateView},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    extract::{Json, Path, Query},
    problem::Problem,
    window::{Window, page},
};
use crate::{
    app::App,
    search::{SearchError, views},
    store::searches::SearchRow,
};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(get))
}

/// Lists a search's candidates in the order of their numbers.
#[utoipa::path(
    get, path = "/v1/searches/{id}/candidates", tag = "candidates", params(("id" = SearchId, Path), Window),
    security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "A page of candidates", body = Page<CandidateView>),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn list(
    State(app): State<Arc<App>>,
    Path(id): Path<SearchId>,
    Query(window): Query<Window>,
) -> Result<Json<Page<CandidateView>>, Problem> {
    let limit = window.limit()?;
    let search = app.store.search(id).await?.ok_or(SearchError::NotFound(id))?;
    let rows = page(
        app.store.candidates(id, window.after()?, Some(limit + 1)).await?,
        limit,
        |row| row.number,
    );
    let items = rows
        .items
        .into_iter()
        .map(|row| views::candidate(row, calibration(&search)));
    Ok(Json(Page {
        items: items.collect(),
        next_cursor: rows.next_cursor,
    }))
}

/// One candidate with its loss curve.
#[utoipa::path(
    get, path = "/v1/candidates/{id}", tag = "candidates", params(("id" = CandidateId, Path)),
    security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "The candidate", body = CandidateDetail),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn get(State(app): State<Arc<App>>, Path(id): Path<CandidateId>) -> Result<Json<CandidateDetail>, Problem> {
    let row = app
        .store
        .candidate(id)
        .await?
        .ok_or_else(|| Problem::not_found("candidate", id))?;
    let search = app
        .store
        .search(row.search_id)
        .await?
        .ok_or(SearchError::NotFound(row.search_id))?;
    let curve = app.store.curve(id).await?;
    Ok(Json(CandidateDetail {
        candidate: views::candidate(row, calibration(&search)),
        curve,
    }))
}

fn calibration(search: &SearchRow) -> &[protocol::searches::CalibrationView] {
    search
        .calibration
        .as_ref()
        .map_or(&[], |calibration| calibration.0.as_slice())
}

//! Plots as files: `front.svg`, `hypervolume.png`, `figure3.svg` and so on.

use std::sync::Arc;

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use lut::{FigurePoint, Lookup, Lut, Runtime, figure3};
use protocol::{ProblemDocument, SearchId};
use search_spaces::{Space, UnetConfig};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    devices,
    extract::{Path, Query},
    problem::Problem,
};
use crate::{
    app::App,
    aside::aside,
    plots::{self, Format, PlotError},
    search, shipped,
    store::luts::LutFilter,
};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(front_svg))
        .routes(routes!(front_png))
        .routes(routes!(hypervolume_svg))
        .routes(routes!(hypervolume_png))
        .routes(routes!(figure3_svg))
        .routes(routes!(figure3_png))
}

/// The front as a plot.
#[utoipa::path(
    get, path = "/v1/searches/{id}/front.svg", tag = "fronts", params(("id" = SearchId, Path)),
    security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "The plot", body = String, content_type = "image/svg+xml"),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn front_svg(State(app): State<Arc<App>>, Path(id): Path<SearchId>) -> Result<Response, Problem> {
    plot_front(&app, id, Format::Svg).await
}

/// The front as a plot in pixels.
#[utoipa::path(
    get, path = "/v1/searches/{id}/front.png", tag = "fronts", params(("id" = SearchId, Path)),
    security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "The plot", body = Vec<u8>, content_type = "image/png"),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn front_png(State(app): State<Arc<App>>, Path(id): Path<SearchId>) -> Result<Response, Problem> {
    plot_front(&app, id, Format::Png).await
}

/// Hypervolume over evaluations as a plot.
#[utoipa::path(
    get, path = "/v1/searches/{id}/hypervolume.svg", tag = "fronts", params(("id" = SearchId, Path)),
    security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "The plot", body = String, content_type = "image/svg+xml"),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn hypervolume_svg(State(app): State<Arc<App>>, Path(id): Path<SearchId>) -> Result<Response, Problem> {
    plot_hypervolume(&app, id, Format::Svg).await
}

/// Hypervolume over evaluations as a plot in pixels.
#[utoipa::path(
    get, path = "/v1/searches/{id}/hypervolume.png", tag = "fronts", params(("id" = SearchId, Path)),
    security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "The plot", body = Vec<u8>, content_type = "image/png"),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn hypervolume_png(State(app): State<Arc<App>>, Path(id): Path<SearchId>) -> Result<Response, Problem> {
    plot_hypervolume(&app, id, Format::Png).await
}

/// Whose operators Figure 3 shows.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct Figure3Wish {
    /// Shipped space whose UNet's first level gives channels, heads and text: `snapgen-v`, `emoji-small` or
    /// `shapes-tiny`; the one of which most was measured, unless given.
    space: Option<String>,
    /// `name@version`; the runtime of which most was measured, unless given.
    runtime: Option<String>,
}

/// The six temporal operators over the size of their input at 12 frames, closed form beside measured: the
/// paper's Figure 3.
#[utoipa::path(
    get, path = "/v1/luts/{device}/figure3.svg", tag = "luts", params(("device" = String, Path), Figure3Wish),
    security(("token" = ["researcher", "device", "viewer"])),
    responses(
        (status = 200, description = "The plot", body = String, content_type = "image/svg+xml"),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn figure3_svg(
    State(app): State<Arc<App>>,
    Path(device): Path<String>,
    Query(wish): Query<Figure3Wish>,
) -> Result<Response, Problem> {
    plot_figure3(&app, &device, &wish, Format::Svg).await
}

/// The paper's Figure 3 in pixels.
#[utoipa::path(
    get, path = "/v1/luts/{device}/figure3.png", tag = "luts", params(("device" = String, Path), Figure3Wish),
    security(("token" = ["researcher", "device", "viewer"])),
    responses(
        (status = 200, description = "The plot", body = Vec<u8>, content_type = "image/png"),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn figure3_png(
    State(app): State<Arc<App>>,
    Path(device): Path<String>,
    Query(wish): Query<Figure3Wish>,
) -> Result<Response, Problem> {
    plot_figure3(&app, &device, &wish, Format::Png).await
}

async fn plot_front(app: &App, id: SearchId, format: Format) -> Result<Response, Problem> {
    let (view, title) = (search::front(app, id).await?, title(app, id).await?);
    drawn(format, move || plots::front(&view, &title, format)).await
}

async fn plot_hypervolume(app: &App, id: SearchId, format: Format) -> Result<Response, Problem> {
    let (view, title) = (search::front(app, id).await?, title(app, id).await?);
    drawn(format, move || {
        plots::hypervolume(&view, &format!("{title}: hypervolume"), format)
    })
    .await
}

async fn plot_figure3(app: &App, device: &str, wish: &Figure3Wish, format: Format) -> Result<Response, Problem> {
    devices::require(app, device).await?;
    let entries = app.store.lut_entries(device, &LutFilter::default()).await?;
    let mut tables = Lut::from_entries(entries);
    if let Some(text) = &wish.runtime {
        let runtime: Runtime = text.parse().map_err(|error| Problem::invalid("runtime", error))?;
        tables.retain(|table| *table.runtime() == runtime);
    }
    if tables.is_empty() {
        return Err(Problem::not_found(
            "table",
            format_args!("of device {device} with entries"),
        ));
    }
    let unets = unets(wish.space.as_deref())?;
    let drawable = tables
        .iter()
        .flat_map(|table| unets.iter().map(move |(name, unet)| (table, *name, unet)));
    let figures = drawable.map(|(table, name, unet)| (table, name, figure3(table, unet, &search::FIGURE_3_SIZES)));
    let most_known = figures.max_by_key(|(table, _, points)| {
        let known = points.iter().filter(|point| is_known(point)).count();
        (known, table.len())
    });
    let (table, name, points) = most_known.ok_or_else(|| Problem::invalid("space", "has no UNet"))?;
    let title = format!("{device}, {} ({name})", table.runtime());
    drawn(format, move || plots::figure3(&points, &title, format)).await
}

fn is_known(point: &FigurePoint) -> bool {
    !matches!(point.answer, Lookup::Missing(_))
}

/// The UNet of the space wished for, or those of all.
fn unets(wish: Option<&str>) -> Result<Vec<(&'static str, UnetConfig)>, Problem> {
    let all = shipped::SPACES
        .iter()
        .filter_map(|(name, text)| Some((*name, Space::parse(text).ok()?.unet()?.clone())));
    let all: Vec<_> = all.collect();
    let Some(wish) = wish else { return Ok(all) };
    let allowed: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
    let wrong = Problem::invalid(
        "space",
        format_args!(
            "`{}` is none of {}",
            wish.chars().take(80).collect::<String>(),
            allowed.join(", ")
        ),
    );
    let wanted: Vec<_> = all.into_iter().filter(|(name, _)| *name == wish).collect();
    if wanted.is_empty() { Err(wrong) } else { Ok(wanted) }
}

async fn title(app: &App, id: SearchId) -> Result<String, Problem> {
    let search = app
        .store
        .search(id)
        .await?
        .ok_or_else(|| Problem::not_found("search", id))?;
    Ok(match &search.device {
        Some(device) => format!("{} on {device}", search.name),
        None => search.name,
    })
}

/// Draws beside the threads that answer requests: a picture takes a moment.
async fn drawn(
    format: Format,
    draw: impl FnOnce() -> Result<Vec<u8>, PlotError> + Send + 'static,
) -> Result<Response, Problem> {
    let bytes = aside(draw).await.map_err(|error| Problem::internal(&error))?;
    let headers = [
        (header::CONTENT_TYPE, format.media_type()),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    Ok((headers, bytes).into_response())
}

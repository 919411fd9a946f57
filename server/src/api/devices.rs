//! `/v1/devices`.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode};
use protocol::{
    Page, ProblemDocument,
    devices::{Device, DeviceView},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    extract::{Json, Path, Query},
    problem::Problem,
    window::{Window, page},
};
use crate::{app::App, store::devices};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(register, list))
        .routes(routes!(get))
}

/// Registers a device, or takes over what is newly said of it.
#[utoipa::path(
    post, path = "/v1/devices", tag = "devices", request_body = Device,
    security(("token" = ["researcher", "worker", "device"])),
    responses(
        (status = 201, description = "Registered", body = DeviceView),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn register(
    State(app): State<Arc<App>>,
    Json(device): Json<Device>,
) -> Result<(StatusCode, Json<DeviceView>), Problem> {
    check(&device, "")?;
    let now = app.clock.now();
    let mut tx = app.store.begin().await?;
    devices::register(tx.connection(), &device, now).await?;
    tx.commit(now).await?;
    Ok((StatusCode::CREATED, get(State(app), Path(device.name)).await?))
}

/// Lists devices by name.
#[utoipa::path(
    get, path = "/v1/devices", tag = "devices", params(Window), security(("token" = ["researcher", "viewer"])),
    responses(
        (status = 200, description = "A page of devices", body = Page<DeviceView>),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn list(State(app): State<Arc<App>>, Query(window): Query<Window>) -> Result<Json<Page<DeviceView>>, Problem> {
    let limit = window.limit()?;
    let devices = app.store.devices(None, window.cursor.as_deref(), limit + 1).await?;
    Ok(Json(page(devices, limit, |view| view.device.name.clone())))
}

/// One device.
#[utoipa::path(
    get, path = "/v1/devices/{name}", tag = "devices", params(("name" = String, Path)),
    security(("token" = ["researcher", "viewer", "worker", "device"])),
    responses(
        (status = 200, description = "The device", body = DeviceView),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn get(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json<DeviceView>, Problem> {
    Ok(Json(require(&app, &name).await?))
}

/// The device, or 404.
pub(super) async fn require(app: &App, name: &str) -> Result<DeviceView, Problem> {
    let device = app.store.device(name).await?;
    device.ok_or_else(|| Problem::not_found("device", name.chars().take(80).collect::<String>()))
}

/// Whether a device may be called so.
pub(super) fn check(device: &Device, path: &str) -> Result<(), Problem> {
    let slug = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let inside = |byte: u8| slug(byte) || matches!(byte, b'.' | b'_' | b'-');
    let name = device.name.as_bytes();
    if name.is_empty() || name.len() > 63 || !slug(name[0]) || !name.iter().copied().all(inside) {
        let message = "must have 1 to 63 of a-z, 0-9, `.`, `_`, `-` and begin with a letter or digit";
        return Err(Problem::invalid(format!("{path}name"), message));
    }
    if device.description.chars().count() > 500 {
        return Err(Problem::invalid(
            format!("{path}description"),
            "must have at most 500 characters",
        ));
    }
    if device.memory_bytes == Some(0) {
        return Err(Problem::invalid(
            format!("{path}memory_bytes"),
            "must be above 0, or absent",
        ));
    }
    Ok(())
}

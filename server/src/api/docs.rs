//! The OpenAPI document and a page to browse it, both from this program alone.

use std::sync::{Arc, OnceLock};

use axum::{
    Router,
    extract::Path,
    http::{StatusCode, header},
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use utoipa::openapi::{
    ComponentsBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder,
    security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};
use utoipa_swagger_ui::Config;

use super::problem::Problem;
use crate::{app::App, auth};

/// The browsing page sets styles inline; scripts come from this program only.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'";

/// The document before any route is added.
pub(super) fn outline() -> OpenApi {
    let info = InfoBuilder::new()
        .title("temponas")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Hardware-aware neural architecture search. Every error is a problem document (RFC 9457). \
             Lists are read page by page with `cursor`. Each route says which roles of token it admits; \
             on a loopback address no token is needed.",
        ))
        .license(Some(
            LicenseBuilder::new()
                .name("Apache-2.0")
                .identifier(Some("Apache-2.0"))
                .build(),
        ));
    let token = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A token of `temponas token create`"))
        .build();
    let components = ComponentsBuilder::new()
        .security_scheme(auth::SCHEME, SecurityScheme::Http(token))
        .build();
    OpenApiBuilder::new()
        .info(info.build())
        .components(Some(components))
        .build()
}

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/openapi.json", get(openapi))
        .route("/docs", get(|| async { Redirect::permanent("/docs/") }))
        .route("/docs/", get(|| async { browse(Path(String::new())).await }))
        .route("/docs/{*file}", get(browse))
}

/// The document's text, as `temponas openapi` prints it.
#[must_use]
pub fn text() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| super::document().to_pretty_json().unwrap_or_default() + "\n")
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text()).into_response()
}

async fn browse(Path(file): Path<String>) -> Result<Response, Problem> {
    static CONFIG: OnceLock<Arc<Config<'static>>> = OnceLock::new();
    let config = CONFIG.get_or_init(|| Arc::new(Config::from("/openapi.json").try_it_out_enabled(true)));
    let found = utoipa_swagger_ui::serve(&file, config.clone());
    let found = found.map_err(|error| Problem::internal(&std::io::Error::other(error.to_string())))?;
    let Some(found) = found else {
        return Err(Problem::new(StatusCode::NOT_FOUND, "unknown-route", "No such file").detail("see /docs/"));
    };
    let headers = [
        (header::CONTENT_TYPE, found.content_type.as_str()),
        (header::CONTENT_SECURITY_POLICY, POLICY),
    ];
    Ok((headers, found.bytes.into_owned()).into_response())
}

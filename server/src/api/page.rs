//! The page, embedded when the program was built.

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use rust_embed::{EmbeddedFile, RustEmbed};

use super::problem::Problem;

#[derive(RustEmbed)]
#[folder = "../web/dist"]
struct Files;

const INDEX: &str = "index.html";

/// Scripts, styles, pictures and data come from here only, and nothing runs inline.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; \
    img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'none'; \
    form-action 'self'; frame-ancestors 'none'";

/// Everything that is no route: a file of the page, or its index for the page's own addresses.
pub(super) async fn serve(request: Request) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Problem::new(StatusCode::NOT_FOUND, "unknown-route", "No such route")
            .detail(format_args!("there is no {}; see /docs", request.uri().path()))
            .into_response();
    }
    let path = request.uri().path().trim_start_matches('/');
    let looks_like_file = path.rsplit('/').next().is_some_and(|name| name.contains('.'));
    let (name, found) = match Files::get(path).filter(|_| !path.is_empty()) {
        Some(file) => (path, Some(file)),
        None if looks_like_file => (path, None),
        None => (INDEX, Files::get(INDEX)),
    };
    match found {
        Some(file) => send(name, file, request.headers()),
        None => Problem::new(StatusCode::NOT_FOUND, "unknown-file", "No such file")
            .detail(format_args!("the page has no /{path}"))
            .into_response(),
    }
}

fn send(name: &str, file: EmbeddedFile, request: &HeaderMap) -> Response {
    let hash: String = file.metadata.sha256_hash()[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let tag = format!("\"{hash}\"");
    let mut headers = HeaderMap::new();
    let mut set = |header, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(header, value);
        }
    };
    // The builder puts a digest into the names under assets/, so these never change.
    let lifetime = if name.starts_with("assets/") {
        "public, max-age=31536000, immutable"
    } else {
        "no-cache"
    };
    set(header::CACHE_CONTROL, lifetime);
    set(header::ETAG, &tag);
    set(header::CONTENT_TYPE, file.metadata.mimetype());
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::REFERRER_POLICY, "no-referrer");
    set(header::CONTENT_SECURITY_POLICY, POLICY);
    let known = request.get(header::IF_NONE_MATCH).and_then(|known| known.to_str().ok());
    if known.is_some_and(|known| known.contains(&tag)) {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    (headers, file.data.into_owned()).into_response()
}

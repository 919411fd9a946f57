//! `/v1/artifacts/{digest}`: bytes in, bytes out.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::TryStreamExt;
use protocol::{ArtifactDigest, ProblemDocument, artifacts::UPLOAD_OFFSET};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{extract::Path, problem::Problem};
use crate::{
    app::App,
    artifacts::{ArtifactError, requested_range},
    store::artifacts::StoredArtifact,
};

/// Media types a browser may show in place; everything else is offered as a download.
const SHOWN: [&str; 8] = [
    "image/png",
    "image/gif",
    "image/webp",
    "image/jpeg",
    "image/svg+xml",
    "application/json",
    "text/plain",
    "text/csv",
];
const MEDIA_TYPE_LIMIT: usize = 127;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(download, look, upload))
}

/// Tells whether an artifact is there.
///
/// 404 carries `Upload-Offset`, the bytes of an unfinished upload that have arrived.
#[utoipa::path(
    head, path = "/v1/artifacts/{digest}", tag = "artifacts", params(("digest" = ArtifactDigest, Path)),
    security(("token" = ["researcher", "worker", "device", "viewer"])),
    responses(
        (status = 200, description = "It is there; the headers are those of GET"),
        (status = 404, description = "It is not", headers(("upload-offset" = u64, description = "Bytes that have arrived"))),
    )
)]
async fn look(
    State(app): State<Arc<App>>,
    Path(digest): Path<ArtifactDigest>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    match app.store.artifact(&digest).await? {
        Some(artifact) => serve(&app, &digest, &artifact, &Method::HEAD, &headers).await,
        None => {
            let mut response = Problem::not_found("artifact", &digest).into_response();
            let received = app.artifacts.received(&digest).await?;
            response.headers_mut().insert(UPLOAD_OFFSET, received.into());
            Ok(response)
        }
    }
}

/// Sends an artifact, or the range of bytes asked for.
#[utoipa::path(
    get, path = "/v1/artifacts/{digest}", tag = "artifacts", params(("digest" = ArtifactDigest, Path)),
    security(("token" = ["researcher", "worker", "device", "viewer"])),
    responses(
        (status = 200, description = "The bytes, under the media type they came with"),
        (status = 206, description = "The range asked for"),
        (status = 304, description = "The sender of `If-None-Match` has it"),
        (status = 416, description = "The range begins after the last byte", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn download(
    State(app): State<Arc<App>>,
    Path(digest): Path<ArtifactDigest>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let artifact = app
        .store
        .artifact(&digest)
        .await?
        .ok_or_else(|| Problem::not_found("artifact", &digest))?;
    serve(&app, &digest, &artifact, &Method::GET, &headers).await
}

/// Takes an artifact, from byte `Upload-Offset` (0 unless given) to its end.
///
/// It exists once its digest is verified: 201, or 200 where it was there already. A broken upload goes on
/// from the offset that HEAD tells; 409 tells it too.
#[utoipa::path(
    put, path = "/v1/artifacts/{digest}", tag = "artifacts",
    params(
        ("digest" = ArtifactDigest, Path, description = "SHA-256 of the whole artifact"),
        ("upload-offset" = Option<u64>, Header, description = "Where these bytes begin"),
    ),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "The bytes; the media type is kept"),
    security(("token" = ["researcher", "worker", "device"])),
    responses(
        (status = 201, description = "Complete and verified"),
        (status = 200, description = "It was there already"),
        (status = 409, description = "Go on from the `Upload-Offset` of this answer", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 413, description = "It is longer than the coordinator takes", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, description = "The bytes have another digest", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "default", description = "A problem", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
async fn upload(
    State(app): State<Arc<App>>,
    Path(digest): Path<ArtifactDigest>,
    request: Request,
) -> Result<Response, Problem> {
    let (offset, media_type) = (offset(request.headers())?, media_type(request.headers())?);
    app.artifacts
        .admit(offset.saturating_add(announced(request.headers())))?;
    if app.store.artifact(&digest).await?.is_some() {
        return Ok(StatusCode::OK.into_response());
    }
    let body = request.into_body().into_data_stream();
    let counted = body.inspect_ok(|chunk| app.metrics.received(chunk.len() as u64));
    match app.artifacts.upload(&digest, offset, counted).await {
        Ok(bytes) => {
            let artifact = StoredArtifact { media_type, bytes };
            app.store.add_artifact(&digest, &artifact, app.clock.now()).await?;
            Ok(StatusCode::CREATED.into_response())
        }
        Err(ArtifactError::WrongOffset { expected, found }) => {
            let mut response = Problem::from(ArtifactError::WrongOffset { expected, found }).into_response();
            response.headers_mut().insert(UPLOAD_OFFSET, expected.into());
            Ok(response)
        }
        Err(error) => Err(error.into()),
    }
}

async fn serve(
    app: &Arc<App>,
    digest: &ArtifactDigest,
    artifact: &StoredArtifact,
    method: &Method,
    request: &HeaderMap,
) -> Result<Response, Problem> {
    let tag = format!("\"{digest}\"");
    let matches = |name| {
        request
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
            .map(|value| value.contains(&tag))
    };
    let mut response = Response::new(Body::empty());
    describe(response.headers_mut(), artifact, &tag);
    if matches(header::IF_NONE_MATCH) == Some(true) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    let wanted = request
        .get(header::RANGE)
        .filter(|_| matches(header::IF_RANGE) != Some(false));
    let range = match wanted
        .and_then(|range| range.to_str().ok())
        .map(|range| requested_range(range, artifact.bytes))
    {
        None | Some(Ok(None)) => None,
        Some(Ok(Some(range))) => Some(range),
        Some(Err(_)) => {
            let mut response = Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, "bad-range", "No such range")
                .detail(format_args!("the artifact has {} bytes", artifact.bytes))
                .into_response();
            set(
                response.headers_mut(),
                header::CONTENT_RANGE,
                &format!("bytes */{}", artifact.bytes),
            );
            return Ok(response);
        }
    };
    let length = range.as_ref().map_or(artifact.bytes, |range| range.end - range.start);
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    if let Some(range) = &range {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let value = format!("bytes {}-{}/{}", range.start, range.end - 1, artifact.bytes);
        set(response.headers_mut(), header::CONTENT_RANGE, &value);
    }
    if *method == Method::GET && length > 0 {
        app.metrics.sent(length);
        *response.body_mut() = Body::from_stream(app.artifacts.read(digest, range).await?);
    }
    Ok(response)
}

/// What uploaders say of their bytes is not trusted: nothing may run as a page of ours.
fn describe(headers: &mut HeaderMap, artifact: &StoredArtifact, tag: &str) {
    let essence = artifact.media_type.split(';').next().unwrap_or_default().trim();
    let disposition = if SHOWN.contains(&essence) {
        "inline"
    } else {
        "attachment"
    };
    set(headers, header::CONTENT_TYPE, &artifact.media_type);
    set(headers, header::CONTENT_DISPOSITION, disposition);
    set(
        headers,
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'unsafe-inline'; sandbox",
    );
    set(headers, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(headers, header::ACCEPT_RANGES, "bytes");
    set(headers, header::CACHE_CONTROL, "private, max-age=31536000, immutable");
    set(headers, header::ETAG, tag);
}

fn set(headers: &mut HeaderMap, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn offset(headers: &HeaderMap) -> Result<u64, Problem> {
    let Some(value) = headers.get(UPLOAD_OFFSET) else {
        return Ok(0);
    };
    let text = value.to_str().unwrap_or("(not text)");
    text.parse()
        .map_err(|_| Problem::invalid(UPLOAD_OFFSET, format_args!("`{text}` is no number of bytes")))
}

/// Bytes that the sender says will come; 0 where it says nothing.
fn announced(headers: &HeaderMap) -> u64 {
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok());
    length.and_then(|length| length.parse().ok()).unwrap_or(0)
}

fn media_type(headers: &HeaderMap) -> Result<String, Problem> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok("application/octet-stream".to_owned());
    };
    let text = value.to_str().unwrap_or_default();
    if text.contains('/') && text.len() <= MEDIA_TYPE_LIMIT {
        return Ok(text.to_owned());
    }
    Err(Problem::invalid(
        "content-type",
        format_args!("is no media type of at most {MEDIA_TYPE_LIMIT} characters"),
    ))
}

impl From<ArtifactError> for Problem {
    fn from(error: ArtifactError) -> Self {
        match &error {
            ArtifactError::WrongOffset { .. } => Self::conflict("wrong-upload-offset", &error),
            ArtifactError::WrongDigest { .. } => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "wrong-digest",
                "The bytes are not what was announced",
            )
            .detail(&error),
            ArtifactError::TooLarge { .. } => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "artifact-too-large",
                "The artifact is too long",
            )
            .detail(format_args!("{error} (setting --max-artifact-bytes)")),
            ArtifactError::BrokenOff { .. } => {
                Self::new(StatusCode::BAD_REQUEST, "broken-body", "The body broke off").detail(&error)
            }
            ArtifactError::Place { .. } | ArtifactError::Objects(_) => Self::internal(&error),
        }
    }
}

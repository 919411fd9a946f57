//! Extractors whose rejections are problem documents that name the field.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, Request, path::ErrorKind, rejection::PathRejection},
    http::{HeaderMap, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use protocol::FieldProblem;
use serde::{Serialize, de::DeserializeOwned};

use super::problem::Problem;

/// The longest body of a request that is no artifact, in bytes.
pub const BODY_LIMIT: usize = 16 << 20;

/// How much of a body that is too long is read and dropped, so that its sender gets to read the answer.
const DRAIN_LIMIT: usize = 256 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(20);

/// A JSON body, taken or given.
#[derive(Debug, Clone, Copy)]
pub struct Json<T>(pub T);

/// The query string; a repeated or malformed field is named.
#[derive(Debug, Clone, Copy)]
pub struct Query<T>(pub T);

/// The variable parts of the path.
#[derive(Debug, Clone, Copy)]
pub struct Path<T>(pub T);

/// A body of text or bytes up to [`BODY_LIMIT`].
#[derive(Debug, Clone)]
pub struct RawBody(pub Bytes);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(
                Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-json", "The body must be JSON")
                    .detail("send `content-type: application/json`"),
            );
        }
        parse_json(&read(request.into_body()).await?).map(Self)
    }
}

impl<S: Send + Sync> FromRequest<S> for RawBody {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        read(request.into_body()).await.map(Self)
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let pairs = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
        let deserializer = serde_urlencoded::Deserializer::new(pairs);
        serde_path_to_error::deserialize(deserializer)
            .map(Self)
            .map_err(|error| {
                Problem::new(StatusCode::BAD_REQUEST, "bad-query", "The query string cannot be read")
                    .field(error.path().to_string(), error.inner())
            })
    }
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(rejection) => Err(bad_path(rejection)),
        }
    }
}

fn bad_path(rejection: PathRejection) -> Problem {
    let problem = Problem::new(StatusCode::BAD_REQUEST, "bad-path", "The path cannot be read");
    let PathRejection::FailedToDeserializePathParams(failure) = rejection else {
        return Problem::internal(&rejection);
    };
    match failure.into_kind() {
        ErrorKind::ParseErrorAtKey {
            key,
            value,
            expected_type,
        } => problem.field(key, format_args!("`{value}` is no {expected_type}")),
        ErrorKind::DeserializeError { key, value, message } => problem.field(key, format_args!("`{value}`: {message}")),
        ErrorKind::InvalidUtf8InPathParam { key } => problem.field(key, "is not UTF-8"),
        other => problem.detail(other),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

/// Reads JSON and says where it is wrong: 400 where it is not JSON, 422 where it is not what is asked for.
pub(crate) fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let field = error.path().to_string();
        bad_json(error.inner(), &field)
    })?;
    deserializer.end().map_err(|error| bad_json(&error, "."))?;
    Ok(value)
}

fn bad_json(error: &serde_json::Error, field: &str) -> Problem {
    let (status, kind, title) = match error.classify() {
        serde_json::error::Category::Data => (
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid-request",
            "The request cannot be accepted",
        ),
        _ => (
            StatusCode::BAD_REQUEST,
            "malformed-json",
            "The body is not well-formed JSON",
        ),
    };
    let position = |number: usize| u32::try_from(number).ok().filter(|number| *number > 0);
    Problem::new(status, kind, title).errors([FieldProblem {
        field: if field == "." {
            "(whole body)".to_owned()
        } else {
            field.to_owned()
        },
        line: position(error.line()),
        column: position(error.column()),
        message: without_position(&error.to_string()).to_owned(),
    }])
}

/// serde_json ends its messages with the position, which the document carries in fields of its own.
fn without_position(message: &str) -> &str {
    message.rfind(" at line ").map_or(message, |end| &message[..end])
}

async fn read(body: Body) -> Result<Bytes, Problem> {
    let mut stream = body.into_data_stream();
    let mut bytes = BytesMut::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| {
            Problem::new(StatusCode::BAD_REQUEST, "broken-body", "The body broke off").detail(error)
        })?;
        if bytes.len() + chunk.len() > BODY_LIMIT {
            drain(stream, bytes.len()).await;
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

/// A sender that still writes when the connection closes sees a broken pipe instead of the answer.
async fn drain(mut stream: axum::body::BodyDataStream, mut read: usize) {
    let rest = async {
        while let Some(Ok(chunk)) = stream.next().await {
            read += chunk.len();
            if read > DRAIN_LIMIT {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIME, rest).await;
}

fn too_large() -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "The body is too long").detail(format_args!(
        "at most {} MiB are taken here; upload larger things as artifacts (PUT /v1/artifacts/{{digest}}) or in parts",
        BODY_LIMIT >> 20
    ))
}

#[cfg(test)]
mod tests {
    use protocol::searches::NewSearch;

    use super::*;

    fn problem(body: &str) -> Problem {
        parse_json::<NewSearch>(body.as_bytes()).expect_err(body)
    }

    #[test]
    fn what_is_not_json_is_named_by_line_and_column() {
        let problem = problem("{\n  \"space\": \"x\",\n  oops }");
        assert_eq!(problem.status(), StatusCode::BAD_REQUEST);
        let error = &problem.document().errors[0];
        assert_eq!((error.line, error.column), (Some(3), Some(3)));
    }

    #[test]
    fn a_wrong_field_is_named_by_its_path() {
        let wrong = problem(r#"{"space": "x", "runtime": {"name": 3, "version": "1"}}"#);
        assert_eq!(wrong.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(wrong.document().errors[0].field, "runtime.name");
        let unknown = problem(r#"{"space": "x", "colour": 1}"#);
        assert!(unknown.document().errors[0].message.contains("unknown field `colour`"));
    }

    #[test]
    fn what_follows_the_value_is_refused() {
        assert_eq!(problem(r#"{"space": "x"} trailing"#).status(), StatusCode::BAD_REQUEST);
    }
}

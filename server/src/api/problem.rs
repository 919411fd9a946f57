//! Problem documents (RFC 9457): the one shape of every error, and where errors get their status.

use std::{error::Error, fmt::Display};

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use protocol::{FieldProblem, ProblemDocument};

use crate::store::StoreError;

/// An error on its way to the client.
#[derive(Debug, Clone)]
pub struct Problem {
    status: StatusCode,
    document: ProblemDocument,
    retry_after_seconds: Option<u32>,
}

impl Problem {
    /// A problem of the kind `/problems/{kind}`; `title` is the same for every problem of the kind.
    #[must_use]
    pub fn new(status: StatusCode, kind: &str, title: &str) -> Self {
        let document = ProblemDocument {
            kind: format!("/problems/{kind}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: None,
            errors: Vec::new(),
        };
        Self {
            status,
            document,
            retry_after_seconds: None,
        }
    }

    /// Says what happened this time, and how to mend it.
    #[must_use]
    pub fn detail(mut self, detail: impl Display) -> Self {
        self.document.detail = Some(detail.to_string());
        self
    }

    /// Names a field at fault.
    #[must_use]
    pub fn field(self, field: impl Into<String>, message: impl Display) -> Self {
        let message = message.to_string();
        self.errors([FieldProblem {
            field: field.into(),
            line: None,
            column: None,
            message,
        }])
    }

    /// Names several fields at fault.
    #[must_use]
    pub fn errors(mut self, errors: impl IntoIterator<Item = FieldProblem>) -> Self {
        self.document.errors.extend(errors);
        self
    }

    /// 404: nothing of this `kind` (`search`, `job`, …) has the id.
    #[must_use]
    pub fn not_found(kind: &str, id: impl Display) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            &format!("{kind}-not-found"),
            &format!("No such {kind}"),
        )
        .detail(format_args!("there is no {kind} {id}"))
    }

    /// 409: it cannot be done as things stand.
    #[must_use]
    pub fn conflict(kind: &str, detail: impl Display) -> Self {
        Self::new(StatusCode::CONFLICT, kind, "Not possible as things stand").detail(detail)
    }

    /// 422: the request is well-formed and cannot be accepted.
    #[must_use]
    pub fn invalid(field: impl Into<String>, message: impl Display) -> Self {
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid-request",
            "The request cannot be accepted",
        )
        .field(field, message)
    }

    /// 500: a fault of ours. Logs the chain of causes, sends none of it.
    #[must_use]
    pub fn internal(error: &(dyn Error + 'static)) -> Self {
        tracing::error!(error = %chain(error), "a request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "The coordinator failed")
            .detail("the coordinator's log says why, under this answer's x-request-id")
    }

    /// 503: the database is away for the moment.
    #[must_use]
    pub fn database_unavailable() -> Self {
        let mut problem = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "database-unavailable",
            "The database cannot be reached at the moment",
        )
        .detail("nothing was lost: send the request again");
        problem.retry_after_seconds = Some(1);
        problem
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What the client reads.
    #[must_use]
    pub fn document(&self) -> &ProblemDocument {
        &self.document
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self.document).unwrap_or_default();
        let mut response = (
            self.status,
            [(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/problem+json"),
            )],
            body,
        )
            .into_response();
        if let Some(seconds) = self.retry_after_seconds {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Database(source) => Self::from_database(source),
            StoreError::Inconsistent { .. } => Self::internal(&error),
        }
    }
}

impl Problem {
    /// 503 where the database is away, 422 where a text cannot be stored, 500 where it refused a statement of ours.
    #[must_use]
    pub fn from_database(error: &sqlx::Error) -> Self {
        if holds_nul(error) {
            Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid-request",
                "The request cannot be accepted",
            )
            .detail("a text of the request holds the character U+0000, which cannot be stored")
        } else if is_away(error) {
            tracing::warn!(error = %chain(error), "the database is away");
            Self::database_unavailable()
        } else {
            Self::internal(error)
        }
    }
}

/// Postgres' text holds every character but U+0000, as text (22021) and within JSON (22P05).
fn holds_nul(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code == "22021" || code == "22P05")
}

/// Whether trying again later can help: the connection is gone, or Postgres is starting or stopping.
fn is_away(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::Protocol(_) => true,
        // Classes 08 connection, 53 resources, 57P operator intervention, 40 rolled back for others' sake.
        sqlx::Error::Database(database) => database
            .code()
            .is_some_and(|code| ["08", "53", "57P", "40"].iter().any(|class| code.starts_with(class))),
        _ => false,
    }
}

/// The error and its causes in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |cause: &&dyn Error| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_a_document_that_repeats_its_status() {
        let response = Problem::not_found("search", "x").into_response();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        let document = Problem::not_found("search", "x").document().clone();
        assert_eq!(
            (document.status, document.kind.as_str()),
            (404, "/problems/search-not-found")
        );
    }

    #[test]
    fn a_lost_connection_asks_to_come_back_and_a_wrong_statement_does_not() {
        let lost = Problem::from_database(&sqlx::Error::PoolTimedOut).into_response();
        assert_eq!(lost.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(lost.headers().contains_key(header::RETRY_AFTER));
        let wrong = Problem::from_database(&sqlx::Error::ColumnNotFound("secret".into()));
        assert_eq!(wrong.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(
            !format!("{:?}", wrong.document()).contains("secret"),
            "a fault of ours stays in our log"
        );
    }
}

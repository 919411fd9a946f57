//! Problem documents (RFC 9457), the one shape of every error.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `application/problem+json`: what went wrong and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProblemDocument {
    /// A stable name of the kind of problem, as a relative URI: `/problems/search-not-found`.
    #[serde(rename = "type")]
    pub kind: String,
    /// One line, the same for every problem of the kind.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// This occurrence, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The fields at fault, each with what was found and what is allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldProblem>,
}

impl ProblemDocument {
    /// Kind of the 409 that says: the lease belongs to someone else now.
    pub const LEASE_LOST: &str = "/problems/lease-lost";
    /// Kind of the 409 that says: the upload goes on at another byte.
    pub const WRONG_UPLOAD_OFFSET: &str = "/problems/wrong-upload-offset";
}

/// One field of a request or of a space file that cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldProblem {
    /// Path of the field, dotted: `search.max_evaluations`.
    pub field: String,
    /// Line in the document, from 1, where the document is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Column in that line, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
    /// What is wrong, what was found and what is allowed.
    pub message: String,
}

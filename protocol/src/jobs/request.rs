//! Asking for a job by itself.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::JobInput;
use crate::JobId;

/// Asks for a job that belongs to no search (`POST /v1/jobs`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// Its number, a UUID of version 7 that the asker draws, so that asking again after a lost answer asks for nothing
    /// new; the coordinator draws one where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<JobId>,
    /// What to do; every kind but those that a search alone asks for.
    pub input: JobInput,
    /// The device it must run on; any where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Memory that each of its workers must have, in bytes.
    #[serde(default)]
    pub memory_bytes: u64,
}

//! Asking for a job by itself.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::JobInput;

/// Asks for a job that belongs to no search (`POST /v1/jobs`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// What to do: `encode_latents`, `prune_backbone` or `benchmark`.
    pub input: JobInput,
    /// The device it must run on; any where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Memory that each of its workers must have, in bytes.
    #[serde(default)]
    pub memory_bytes: u64,
}

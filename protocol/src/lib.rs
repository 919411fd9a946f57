//! The wire between the coordinator and everyone who talks to it: workers, device agents, the
//! command line, the dashboard and clients in other languages.
//!
//! Plain serde types with OpenAPI schemas and no logic. Architectures travel in their printed form
//! (`search_spaces::Space::print`), spaces as the TOML text the user wrote, metrics under the names of
//! the project's one vocabulary: `quality`, `latency_ms`, `peak_memory_bytes`, `parameters`,
//! `pipeline_latency_ms`, or a column of a table.

pub mod ablations;
pub mod artifacts;
pub mod deployments;
pub mod devices;
pub mod events;
pub mod ids;
pub mod jobs;
pub mod leases;
pub mod luts;
pub mod problem;
pub mod searches;
pub mod tokens;

pub use ids::{AblationId, ArtifactDigest, CandidateId, DeploymentId, JobId, LeaseToken, SearchId, TokenId, WorkerId};
pub use problem::{FieldProblem, ProblemDocument};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A figure with the standard error of its estimate, in the unit its metric's name states.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Figure {
    /// The estimate itself.
    pub value: f64,
    /// Standard error; zero for an exact figure.
    #[serde(default)]
    pub standard_error: f64,
}

/// Figures by metric name.
pub type Metrics = BTreeMap<String, Figure>;

/// One page of a list; `next_cursor` is absent on the last page.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items of this page, oldest first unless the route says otherwise.
    pub items: Vec<T>,
    /// Opaque; pass it as `cursor` to read on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

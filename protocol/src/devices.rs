//! Devices that are measured, and the workers that run on them.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{JobId, WorkerId, jobs::JobKind, jobs::OWN_EVALUATOR};

/// What runs a model on a device; a table never transfers between runtimes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct RuntimeName {
    /// Such as `libtorch-cpu-1t` (one thread).
    pub name: String,
    /// Such as `2.11.0`.
    pub version: String,
}

/// A device under its name (a slug: lower-case letters, digits, `-`, `_`, `.`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Device {
    /// The slug by which LUT entries and searches name it.
    pub name: String,
    /// What it is, for people: processor, memory.
    pub description: String,
    /// Memory that a model may use, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// A device as the coordinator knows it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DeviceView {
    /// The device.
    #[serde(flatten)]
    pub device: Device,
    /// When a worker on it was last heard of.
    pub last_seen: Option<DateTime<Utc>>,
    /// Runtimes that have entries in its table.
    pub runtimes: Vec<RuntimeName>,
    /// Entries in its table, over all runtimes.
    pub lut_entries: u64,
}

/// What a worker says of itself when it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkerRegistration {
    /// Chosen by the worker, fresh at each start.
    pub id: WorkerId,
    /// Host name or any name for people.
    pub name: String,
    /// The device it runs on; registered if it is new.
    pub device: Device,
    /// The runtime it measures with; absent for one that does not.
    pub runtime: Option<RuntimeName>,
    /// Job kinds it takes.
    pub kinds: Vec<JobKind>,
    /// Evaluators it brings, of which an `evaluate` job needs the one that its space names in `[evaluation]`. A
    /// space without that section needs `own`: a worker that evaluates its candidates by means of its own.
    #[serde(default = "own")]
    pub evaluators: Vec<String>,
    /// Memory it may use for a job, in bytes.
    pub memory_bytes: u64,
}

fn own() -> Vec<String> {
    vec![OWN_EVALUATOR.to_owned()]
}

/// A worker as the coordinator knows it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WorkerView {
    /// What it said of itself.
    #[serde(flatten)]
    pub worker: WorkerRegistration,
    /// When it was last heard of.
    pub last_seen: DateTime<Utc>,
    /// What it is doing.
    pub running: Vec<JobId>,
}

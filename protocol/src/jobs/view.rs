//! How jobs are shown.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{DeviceSeconds, JobKind, JobResult};
use crate::{CandidateId, JobId, Metrics, SearchId, WorkerId};

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[cfg_attr(
    feature = "sqlx",
    derive(sqlx::Type),
    sqlx(type_name = "job_state", rename_all = "snake_case")
)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waiting for a worker.
    Queued,
    /// In a worker's hands.
    Leased,
    /// Done; its result counts.
    Succeeded,
    /// Given up; every attempt's error is kept.
    Failed,
    /// Not wanted any more.
    Cancelled,
}

impl JobState {
    /// The name on the wire and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Leased => "leased",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// How one attempt at a job ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AttemptView {
    /// From 1.
    pub attempt: u32,
    /// Who had it.
    pub worker_id: Option<WorkerId>,
    /// When it was leased.
    pub started_at: DateTime<Utc>,
    /// When it ended, if it did.
    pub ended_at: Option<DateTime<Utc>>,
    /// Why it failed; absent while it runs and where it succeeded.
    pub error: Option<String>,
    /// The end of its log.
    pub log: Option<String>,
    /// What it held its devices for, as far as it told; of all ranks.
    pub device_seconds: DeviceSeconds,
}

/// A job as it is shown.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct JobView {
    /// The job.
    pub id: JobId,
    /// Its kind.
    pub kind: JobKind,
    /// Its state.
    pub state: JobState,
    /// The search it belongs to.
    pub search_id: Option<SearchId>,
    /// The candidate it is for.
    pub candidate_id: Option<CandidateId>,
    /// The device it must run on, where that matters.
    pub device: Option<String>,
    /// Workers that do it together.
    pub ranks: u32,
    /// Where several do it together, those that are there, by rank: of the running attempt, or of the one that waits
    /// for the rest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seats: Vec<SeatView>,
    /// Who holds it; rank 0 of several.
    pub worker_id: Option<WorkerId>,
    /// Share done, 0 to 1.
    pub progress: f64,
    /// What it is doing, in a few words.
    pub status: Option<String>,
    /// Figures so far, of the attempt that runs or ran last.
    #[serde(default)]
    pub metrics: Metrics,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// Attempts so far, oldest first.
    pub attempts: Vec<AttemptView>,
    /// Device-seconds of all its attempts so far; absent before the first.
    pub device_seconds: Option<DeviceSeconds>,
    /// What it found, with its artifacts; only where one job is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<JobResult>,
}

/// A worker's place in a job that several do together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SeatView {
    /// From 0.
    pub rank: u32,
    /// Who has it.
    pub worker_id: WorkerId,
    /// Whether it has done its share.
    pub done: bool,
}

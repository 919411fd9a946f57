//! What a search tells as it goes on (`GET /v1/searches/{id}/events`, server-sent events).

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    CandidateId, JobId, Metrics,
    jobs::{CurvePoint, JobKind, JobState},
    searches::{CandidateView, FrontPoint, SearchState},
};

/// One event; its number is the SSE id, so that `Last-Event-ID` reads on without a gap.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Grows with each event of the search, without gaps, from 1.
    pub sequence: i64,
    /// When it happened.
    pub at: DateTime<Utc>,
    /// What happened.
    pub body: EventBody,
}

/// What happened.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EventBody {
    /// The search moved on.
    SearchState {
        /// Where it stands now.
        state: SearchState,
        /// Why, for people.
        reason: Option<String>,
    },
    /// A candidate was proposed, evaluated, verified or failed.
    Candidate {
        /// As it stands now.
        candidate: Box<CandidateView>,
    },
    /// The front or the hypervolume changed.
    Front {
        /// Evaluations so far.
        evaluations: u64,
        /// Hypervolume in the search's box, 0 to 1.
        hypervolume: f64,
        /// Front members.
        points: Vec<FrontPoint>,
    },
    /// A job moved on.
    Job {
        /// The job.
        job_id: JobId,
        /// Its kind.
        kind: JobKind,
        /// Its state.
        state: JobState,
        /// The candidate it is for.
        candidate_id: Option<CandidateId>,
        /// Share done, 0 to 1.
        progress: f64,
        /// What it is doing.
        status: Option<String>,
        /// New points of the curve.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        curve: Vec<CurvePoint>,
        /// Figures so far.
        #[serde(default, skip_serializing_if = "Metrics::is_empty")]
        metrics: Metrics,
    },
}

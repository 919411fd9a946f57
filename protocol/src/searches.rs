//! Searches, candidates, fronts and recommendations.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    ArtifactDigest, CandidateId, Figure, JobId, Metrics, SearchId,
    artifacts::ArtifactRef,
    devices::RuntimeName,
    jobs::{CurvePoint, DeviceSeconds},
};

/// Submits a search (`POST /v1/searches`). With the header `Idempotency-Key` a repeated submission
/// answers with the search that the first one made; with `?dry_run=true` nothing is stored.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSearch {
    /// The space file's text (TOML); it carries objectives, limits, strategy and budget.
    pub space: String,
    /// The device whose costs count; required unless the space is a table.
    #[serde(default)]
    pub device: Option<String>,
    /// Which runtime of the device; the only one it has where absent.
    #[serde(default)]
    pub runtime: Option<RuntimeName>,
    /// The uploaded table of a `table` space.
    #[serde(default)]
    pub table: Option<ArtifactDigest>,
    /// Replaces the space file's seed.
    #[serde(default)]
    pub seed: Option<u64>,
    /// Replaces the space file's name for people.
    #[serde(default)]
    pub name: Option<String>,
    /// Larger goes first.
    #[serde(default)]
    pub priority: i32,
    /// Uploaded files that evaluations start from, laid out under their names: trained parts of the dataset
    /// (`manifest.json` and the files it names) and, with `latents.safetensors`, its training clips, so that a worker
    /// needs none of them. Workers use the parts they ship where it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub base: Vec<ArtifactRef>,
}

/// Where a search stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[cfg_attr(
    feature = "sqlx",
    derive(sqlx::Type),
    sqlx(type_name = "search_state", rename_all = "snake_case")
)]
#[serde(rename_all = "snake_case")]
pub enum SearchState {
    /// The device measures what the table lacks.
    Profiling,
    /// Choices that cannot fit leave the space.
    Eliminating,
    /// Candidates are proposed and evaluated.
    Searching,
    /// Finalists are measured whole.
    Verifying,
    /// Finished.
    Done,
    /// Held by its owner; what runs is finished, nothing new starts.
    Paused,
    /// Ended by its owner.
    Cancelled,
    /// Ended by an error, which it states.
    Failed,
}

/// What a search has spent and what is left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Budget {
    /// Distinct architectures evaluated.
    pub evaluations: u64,
    /// The most it may evaluate.
    pub max_evaluations: u64,
    /// Device-hours spent, all jobs.
    pub device_hours: f64,
    /// The most it may spend.
    pub max_device_hours: Option<f64>,
    /// Device-seconds by part.
    pub device_seconds: DeviceSeconds,
    /// Evaluations since the hypervolume last grew.
    pub stalled_evaluations: u64,
    /// How many of those end the search.
    pub stall_limit: Option<u64>,
}

/// A choice that left the space before the search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EliminatedChoice {
    /// The position.
    pub position: String,
    /// The choice.
    pub choice: String,
    /// Why no feasible architecture can hold it.
    pub reason: String,
}

/// The coarse step's outcome.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EliminationView {
    /// What left.
    pub removed: Vec<EliminatedChoice>,
    /// Architectures before, as decimal text (may exceed 64 bits).
    pub architectures_before: String,
    /// Architectures after.
    pub architectures_after: String,
}

/// An objective as the space states it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ObjectiveView {
    /// The metric.
    pub metric: String,
    /// `maximize` or `minimize`.
    pub direction: String,
    /// The box's side: best and worst scale to 0 and 1 (low, high); absent until it is fixed.
    pub range: Option<(f64, f64)>,
}

/// A limit: the metric may not exceed it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LimitView {
    /// The metric.
    pub metric: String,
    /// Upper bound in the metric's unit.
    pub at_most: f64,
}

/// How verified architectures correct the predictions of a metric: `factor · predicted + offset`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CalibrationView {
    /// The metric.
    pub metric: String,
    /// Multiplies a prediction.
    pub factor: f64,
    /// Is added to it, in the metric's unit.
    pub offset: f64,
    /// Standard deviation of what is left, in the metric's unit.
    pub residual: f64,
    /// Verified architectures it rests on.
    pub architectures: u64,
}

/// A search as it is shown.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SearchView {
    /// The search.
    pub id: SearchId,
    /// Its name for people.
    pub name: String,
    /// The space's name.
    pub space_name: String,
    /// The space file's text.
    pub space: String,
    /// Where it stands.
    pub state: SearchState,
    /// What it goes back to when resumed.
    pub paused_from: Option<SearchState>,
    /// Why it stands there, for people.
    pub state_reason: Option<String>,
    /// The device.
    pub device: Option<String>,
    /// The runtime.
    pub runtime: Option<RuntimeName>,
    /// The strategy's name.
    pub strategy: String,
    /// The seed.
    pub seed: u64,
    /// Files that its evaluations start from; empty where workers use the parts they ship.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub base: Vec<ArtifactRef>,
    /// Objectives with the box of the hypervolume.
    pub objectives: Vec<ObjectiveView>,
    /// Limits.
    pub limits: Vec<LimitView>,
    /// The positions' names, in the order of the architecture's codes.
    pub positions: Vec<String>,
    /// Budget.
    pub budget: Budget,
    /// Hypervolume now, 0 to 1.
    pub hypervolume: Option<f64>,
    /// Size of the front now.
    pub front_points: u64,
    /// The coarse step's outcome.
    pub elimination: Option<EliminationView>,
    /// What verification taught about the predictions.
    #[serde(default)]
    pub calibration: Vec<CalibrationView>,
    /// Number of its newest event: whoever reads the search anew after this follows the events from here.
    #[serde(default)]
    pub last_event: i64,
    /// When it was submitted.
    pub created_at: DateTime<Utc>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
}

/// What a submission would cost (`POST /v1/searches?dry_run=true`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SearchEstimate {
    /// Architectures in the space, as decimal text.
    pub architectures: String,
    /// Blocks that the table lacks and that would be measured.
    pub blocks_to_profile: u64,
    /// Evaluations at most.
    pub max_evaluations: u64,
    /// Device-seconds of one evaluation, from earlier ones on the same evaluation settings; absent without any.
    pub seconds_per_evaluation: Option<Figure>,
    /// Device-hours in all, as far as known.
    pub device_hours: Option<f64>,
    /// Wall-clock hours with the workers now alive.
    pub wall_hours: Option<f64>,
    /// What the estimate rests on.
    pub basis: String,
}

/// Where a candidate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[cfg_attr(
    feature = "sqlx",
    derive(sqlx::Type),
    sqlx(type_name = "candidate_state", rename_all = "snake_case")
)]
#[serde(rename_all = "snake_case")]
pub enum CandidateState {
    /// In the queue.
    Proposed,
    /// In a worker's hands.
    Evaluating,
    /// Its figures stand.
    Evaluated,
    /// A limit or the device forbids it; it was not evaluated.
    Infeasible,
    /// Every attempt failed.
    Failed,
}

/// A layer at a position, for display.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LayerView {
    /// The position.
    pub position: String,
    /// The choice's name, such as `Conv1D ×2` or `none`.
    pub choice: String,
}

/// A candidate as it is shown.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CandidateView {
    /// The candidate.
    pub id: CandidateId,
    /// The search.
    pub search_id: SearchId,
    /// Its number within the search, from 0.
    pub number: u64,
    /// The architecture in printed form.
    pub architecture: String,
    /// The same, position by position.
    pub layers: Vec<LayerView>,
    /// Where it stands.
    pub state: CandidateState,
    /// Why, where it is infeasible or failed.
    pub state_reason: Option<String>,
    /// The reference architecture's name, if it is one.
    pub reference: Option<String>,
    /// The candidate it was made from.
    pub parent: Option<u64>,
    /// What made it from its parent, for people: `add Conv1D at mid`.
    pub action: Option<String>,
    /// Why the strategy proposed it.
    pub why: Option<String>,
    /// Figures known before evaluation, from the look-up table.
    pub predicted: Metrics,
    /// The same, corrected by the architectures that were verified; empty before any was.
    #[serde(default)]
    pub calibrated: Metrics,
    /// Figures of the evaluation.
    pub measured: Metrics,
    /// Figures measured whole on the device.
    pub verified: Metrics,
    /// Who scored it.
    pub evaluator: Option<String>,
    /// Whether it stands on the front now.
    pub on_front: bool,
    /// The job that evaluates it.
    pub job_id: Option<JobId>,
    /// Device-seconds of its evaluation.
    pub device_seconds: Option<DeviceSeconds>,
    /// Weights, samples, curve.
    pub artifacts: Vec<ArtifactRef>,
    /// When it was proposed.
    pub created_at: DateTime<Utc>,
    /// When its figures came.
    pub evaluated_at: Option<DateTime<Utc>>,
}

/// A candidate with its curve (`GET /v1/candidates/{id}`).
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CandidateDetail {
    /// The candidate.
    #[serde(flatten)]
    pub candidate: CandidateView,
    /// Its loss curve so far.
    pub curve: Vec<CurvePoint>,
}

/// A point of the front: predicted and verified side by side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FrontPoint {
    /// The candidate.
    pub candidate_id: CandidateId,
    /// Its number.
    pub number: u64,
    /// The architecture.
    pub architecture: String,
    /// The reference architecture's name, if it is one.
    pub reference: Option<String>,
    /// Figures of evaluation and look-up table together.
    pub metrics: Metrics,
    /// Predicted figures, corrected by the architectures that were verified; empty before any was.
    #[serde(default)]
    pub calibrated: Metrics,
    /// Figures measured whole, where it is verified.
    pub verified: Metrics,
    /// Whether it breaks a limit as measured, where it is verified.
    pub verified_within_limits: Option<bool>,
}

/// A point of the hypervolume's history.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HypervolumePoint {
    /// Evaluations so far.
    pub evaluations: u64,
    /// Device-hours so far.
    pub device_hours: f64,
    /// Hypervolume, 0 to 1.
    pub hypervolume: f64,
}

/// The front (`GET /v1/searches/{id}/front`).
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct FrontView {
    /// The search.
    pub search_id: SearchId,
    /// Objectives.
    pub objectives: Vec<ObjectiveView>,
    /// Limits.
    pub limits: Vec<LimitView>,
    /// Non-dominated candidates within the limits, best quality first.
    pub points: Vec<FrontPoint>,
    /// Reference architectures, on the front or not.
    pub references: Vec<CandidateView>,
    /// Hypervolume over time.
    pub history: Vec<HypervolumePoint>,
}

/// An action not yet taken and what it promises.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NextAction {
    /// From which candidate.
    pub from: u64,
    /// What to do, for people.
    pub action: String,
    /// What it makes.
    pub architecture: String,
    /// Expected gain of quality with its error.
    pub expected_gain: Figure,
    /// Costs from the look-up table.
    pub predicted: Metrics,
    /// What the expectation rests on.
    pub basis: String,
}

/// The best candidate within limits (`GET /v1/searches/{id}/recommendation`).
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Recommendation {
    /// The best verified candidate within the limits, absent when there is none.
    pub best: Option<FrontPoint>,
    /// The best unverified one, where its prediction is better than `best`.
    pub best_unverified: Option<FrontPoint>,
    /// What to try next, most promising first.
    pub next_actions: Vec<NextAction>,
    /// What was spent.
    pub budget: Budget,
}

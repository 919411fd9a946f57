//! Deployments: the chain of jobs that takes a candidate to a device, and how it is shown.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    AblationId, CandidateId, DeploymentId, JobId, Metrics, SearchId,
    devices::RuntimeName,
    jobs::{ExportFormat, ExportPrecision, JobKind, JobState, Scoring, one_rank},
};

/// A step of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[cfg_attr(
    feature = "sqlx",
    derive(sqlx::Type),
    sqlx(type_name = "deployment_step", rename_all = "snake_case")
)]
#[serde(rename_all = "snake_case")]
pub enum DeployStep {
    /// Train the candidate to its end.
    TrainFinal,
    /// Distil it to few steps.
    Distill,
    /// Compress the decoder.
    CompressDecoder,
    /// Write graphs.
    Export,
    /// Measure them on the device.
    ProfileModel,
}

impl DeployStep {
    /// All of them, in the order in which they are done.
    pub const ALL: [Self; 5] = [
        Self::TrainFinal,
        Self::Distill,
        Self::CompressDecoder,
        Self::Export,
        Self::ProfileModel,
    ];

    /// The kind of its job.
    #[must_use]
    pub const fn kind(self) -> JobKind {
        match self {
            Self::TrainFinal => JobKind::TrainFinal,
            Self::Distill => JobKind::Distill,
            Self::CompressDecoder => JobKind::CompressDecoder,
            Self::Export => JobKind::Export,
            Self::ProfileModel => JobKind::ProfileModel,
        }
    }

    /// The name on the wire and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.kind().as_str()
    }
}

impl std::fmt::Display for DeployStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for DeployStep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|step| step.as_str() == text);
        found.ok_or_else(|| {
            let allowed = Self::ALL.map(Self::as_str).join(", ");
            format!("`{text}` is no step of a deployment; allowed: {allowed}")
        })
    }
}

/// Where a deployment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[cfg_attr(
    feature = "sqlx",
    derive(sqlx::Type),
    sqlx(type_name = "deployment_state", rename_all = "snake_case")
)]
#[serde(rename_all = "snake_case")]
pub enum DeploymentState {
    /// A step is being done, or waits for what it starts from.
    Running,
    /// All steps are done.
    Done,
    /// A step failed; it can be retried.
    Failed,
    /// Not wanted any more; it can be taken up again.
    Cancelled,
}

impl DeploymentState {
    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Asks for a candidate to be taken to a device (`POST /v1/deployments`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewDeployment {
    /// Its number, a UUID of version 7 that the asker draws, so that asking again after a lost answer asks for nothing
    /// new; the coordinator draws one where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<DeploymentId>,
    /// The candidate.
    pub candidate_id: CandidateId,
    /// What is done, and how.
    pub settings: DeploymentSettings,
}

/// What is done to a candidate, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeploymentSettings {
    /// Steps to do; all where it is empty, the profile only where `profile` names a device.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<DeployStep>,
    /// A deployment of the same candidate to go on from: it is waited for, and what it made stands for the steps that
    /// are not done here. A final training goes on from the weights of that one's, as fine-tuning at another frame
    /// rate does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<DeploymentId>,
    /// Recipes of the steps that train.
    #[serde(default)]
    pub recipes: DeployRecipes,
    /// Name of the trained parts, which hold the decoder; the dataset of the space where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<String>,
    /// Name of a folder of clips and images below the worker's folder of data, for the decoder; the clips that the
    /// parts' dataset draws where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<String>,
    /// How the models are scored.
    #[serde(default)]
    pub scoring: Scoring,
    /// How graphs are written.
    #[serde(default)]
    pub export: ExportWish,
    /// Where they are measured; nowhere where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<ProfileWish>,
    /// Seed of every step.
    #[serde(default)]
    pub seed: u64,
    /// Workers to train with.
    #[serde(default = "one_rank")]
    pub ranks: u32,
    /// Memory that each worker that trains must have, in bytes.
    #[serde(default)]
    pub memory_bytes: u64,
}

impl Default for DeploymentSettings {
    fn default() -> Self {
        Self {
            steps: Vec::new(),
            after: None,
            recipes: DeployRecipes::default(),
            parts: None,
            dataset: None,
            scoring: Scoring::default(),
            export: ExportWish::default(),
            profile: None,
            seed: 0,
            ranks: one_rank(),
            memory_bytes: 0,
        }
    }
}

/// Recipes as TOML, each needed where its step is done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeployRecipes {
    /// Of the stage `joint`, for the final training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joint: Option<String>,
    /// Of the stage `adversarial`, for the distillation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adversarial: Option<String>,
    /// Of the stage `decoder`, for the compression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoder: Option<String>,
}

/// How graphs are written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportWish {
    /// Number format of weights and activations.
    #[serde(default)]
    pub precision: ExportPrecision,
    /// What to write besides ONNX.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub formats: Vec<ExportFormat>,
    /// Graphs that the UNet is split into (the paper's two).
    #[serde(default = "one_rank")]
    pub unet_parts: u32,
    /// Clips of a pass of the UNet.
    #[serde(default = "one_rank")]
    pub batch: u32,
    /// Euler steps of a sample; of a distilled model those of its recipe where it is absent, else the space's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_steps: Option<u32>,
    /// Scale of classifier-free guidance; none (1) of a distilled model where it is absent, else the space's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f64>,
}

impl Default for ExportWish {
    fn default() -> Self {
        Self {
            precision: ExportPrecision::default(),
            formats: Vec::new(),
            unet_parts: one_rank(),
            batch: one_rank(),
            sample_steps: None,
            guidance: None,
        }
    }
}

/// Runs of a graph where nothing else is asked for.
#[must_use]
pub const fn usual_runs() -> u32 {
    20
}

/// Where and how graphs are measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProfileWish {
    /// The device.
    pub device: String,
    /// Its runtime; any where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeName>,
    /// Runs of each graph after warm-up.
    #[serde(default = "usual_runs")]
    pub runs: u32,
    /// Seconds for which the UNet runs without a pause at the end; 0 for not.
    #[serde(default)]
    pub sustained_seconds: f64,
}

/// A deployment as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeploymentView {
    /// The deployment.
    pub id: DeploymentId,
    /// The candidate.
    pub candidate_id: CandidateId,
    /// Its search.
    pub search_id: SearchId,
    /// The architecture in printed form; the candidate's own unless an ablation changed it.
    pub architecture: String,
    /// The ablation that it is a cell of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ablation_id: Option<AblationId>,
    /// Which cell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cell: Option<String>,
    /// What was asked for.
    pub settings: DeploymentSettings,
    /// Where it stands.
    pub state: DeploymentState,
    /// Why, for people.
    pub state_reason: Option<String>,
    /// Its steps, in order.
    pub steps: Vec<StepView>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
}

/// A step as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepView {
    /// Which.
    pub step: DeployStep,
    /// State of its job; absent before it is asked for.
    pub state: Option<JobState>,
    /// Its job.
    pub job_id: Option<JobId>,
    /// Share done, 0 to 1.
    pub progress: f64,
    /// What it is doing.
    pub status: Option<String>,
    /// Figures so far, or those of the result.
    #[serde(default)]
    pub metrics: Metrics,
}

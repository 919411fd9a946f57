//! Job kinds with their inputs, their results, and how jobs are shown.

mod deploy;
mod model;
mod request;
mod view;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    CandidateId, Metrics, SearchId, artifacts::ArtifactRef, devices::RuntimeName, luts::Block, luts::EntryUpload,
};

pub use deploy::{
    CompressDecoderInput, CompressDecoderOutcome, DistillInput, DistillOutcome, ExportFormat, ExportInput,
    ExportManifest, ExportOutcome, ExportPrecision, ExportSubject, ExportedGraph, GraphFigures, GraphOutcome,
    GraphProfile, NodeFigures, ProfileModelInput, ProfileModelOutcome, ProfileTarget, SamplerGrid, ScoredSteps,
    Scoring, TensorSpec, TrainFinalInput, TrainFinalOutcome,
};
pub use model::{
    BenchmarkInput, BenchmarkOutcome, Bucket, EncodeLatentsInput, EncodeLatentsOutcome, PictureScoring,
    PruneBackboneInput, PruneBackboneOutcome, ResultTable, SkippedFile, VBENCH_EVALUATOR, one_rank,
};
pub use request::JobRequest;
pub use view::{AttemptView, JobState, JobView, SeatView};

/// Evaluator of a space that names none: whatever the worker brings.
pub const OWN_EVALUATOR: &str = "own";

/// The kinds of work a worker may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[cfg_attr(
    feature = "sqlx",
    derive(sqlx::Type),
    sqlx(type_name = "job_kind", rename_all = "snake_case")
)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// Measure blocks of a space on the worker's device; holds the device alone.
    Profile,
    /// Train and score a candidate, by a worker that brings the evaluator of its space.
    Evaluate,
    /// Measure a whole architecture on the worker's device; holds the device alone.
    Verify,
    /// Look a candidate up in a table; the coordinator does this itself.
    Lookup,
    /// Turn captioned clips into sharded latents and text embeddings.
    EncodeLatents,
    /// Prune the spatial backbone by distillation from the full one.
    PruneBackbone,
    /// Score a trained model, by a worker that brings the evaluator asked for.
    Benchmark,
    /// Train a found model to its end, on images and videos.
    TrainFinal,
    /// Distil a trained model to few steps without guidance.
    Distill,
    /// Make the VAE's decoder small and fast.
    CompressDecoder,
    /// Write a model or blocks as graphs that run without libtorch.
    Export,
    /// Measure an exported model on the device; holds it alone.
    ProfileModel,
}

impl JobKind {
    /// All kinds.
    pub const ALL: [Self; 12] = [
        Self::Profile,
        Self::Evaluate,
        Self::Verify,
        Self::Lookup,
        Self::EncodeLatents,
        Self::PruneBackbone,
        Self::Benchmark,
        Self::TrainFinal,
        Self::Distill,
        Self::CompressDecoder,
        Self::Export,
        Self::ProfileModel,
    ];

    /// The name on the wire and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Profile => "profile",
            Self::Evaluate => "evaluate",
            Self::Verify => "verify",
            Self::Lookup => "lookup",
            Self::EncodeLatents => "encode_latents",
            Self::PruneBackbone => "prune_backbone",
            Self::Benchmark => "benchmark",
            Self::TrainFinal => "train_final",
            Self::Distill => "distill",
            Self::CompressDecoder => "compress_decoder",
            Self::Export => "export",
            Self::ProfileModel => "profile_model",
        }
    }

    /// Whether no other job may run on the device meanwhile (measurements would be noise).
    #[must_use]
    pub const fn holds_device(self) -> bool {
        matches!(self, Self::Profile | Self::Verify | Self::ProfileModel)
    }
}

impl std::fmt::Display for JobKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for JobKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| {
            let allowed = Self::ALL.map(Self::as_str).join(", ");
            format!("`{text}` is no job kind; allowed: {allowed}")
        })
    }
}

/// What a job asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum JobInput {
    /// See [`JobKind::Profile`].
    Profile(ProfileInput),
    /// See [`JobKind::Evaluate`].
    Evaluate(EvaluateInput),
    /// See [`JobKind::Verify`].
    Verify(VerifyInput),
    /// See [`JobKind::Lookup`].
    Lookup(LookupInput),
    /// See [`JobKind::EncodeLatents`].
    EncodeLatents(EncodeLatentsInput),
    /// See [`JobKind::PruneBackbone`].
    PruneBackbone(PruneBackboneInput),
    /// See [`JobKind::Benchmark`].
    Benchmark(BenchmarkInput),
    /// See [`JobKind::TrainFinal`].
    TrainFinal(TrainFinalInput),
    /// See [`JobKind::Distill`].
    Distill(DistillInput),
    /// See [`JobKind::CompressDecoder`].
    CompressDecoder(CompressDecoderInput),
    /// See [`JobKind::Export`].
    Export(ExportInput),
    /// See [`JobKind::ProfileModel`].
    ProfileModel(ProfileModelInput),
}

impl JobInput {
    /// The kind of the job.
    #[must_use]
    pub const fn kind(&self) -> JobKind {
        match self {
            Self::Profile(_) => JobKind::Profile,
            Self::Evaluate(_) => JobKind::Evaluate,
            Self::Verify(_) => JobKind::Verify,
            Self::Lookup(_) => JobKind::Lookup,
            Self::EncodeLatents(_) => JobKind::EncodeLatents,
            Self::PruneBackbone(_) => JobKind::PruneBackbone,
            Self::Benchmark(_) => JobKind::Benchmark,
            Self::TrainFinal(_) => JobKind::TrainFinal,
            Self::Distill(_) => JobKind::Distill,
            Self::CompressDecoder(_) => JobKind::CompressDecoder,
            Self::Export(_) => JobKind::Export,
            Self::ProfileModel(_) => JobKind::ProfileModel,
        }
    }
}

/// Blocks to measure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProfileInput {
    /// The space file's text: configuration of the backbone and number format.
    pub space: String,
    /// What to measure.
    pub blocks: Vec<Block>,
    /// Their graphs, one each in the same order, for a runtime that runs graphs; empty for one that builds blocks itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub graphs: Vec<ExportedGraph>,
}

/// A candidate to train and score; every seed is in the space's `evaluation` section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EvaluateInput {
    /// The search.
    pub search_id: SearchId,
    /// The candidate.
    pub candidate_id: CandidateId,
    /// Its number within the search, from 0.
    pub number: u64,
    /// The space file's text.
    pub space: String,
    /// The architecture in printed form.
    pub architecture: String,
    /// Weights to start the temporal layers from, where the space asks to inherit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_weights: Option<ParentWeights>,
    /// Trained parts and latents of the dataset, to lay out under their names; those the worker ships where it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub base: Vec<ArtifactRef>,
}

/// The parent a candidate inherits temporal weights from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ParentWeights {
    /// The parent's architecture in printed form.
    pub architecture: String,
    /// Its trained weights.
    pub weights: ArtifactRef,
}

/// A finalist to measure whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VerifyInput {
    /// The search.
    pub search_id: SearchId,
    /// The candidate.
    pub candidate_id: CandidateId,
    /// The space file's text.
    pub space: String,
    /// The architecture in printed form.
    pub architecture: String,
}

/// A candidate to look up in a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LookupInput {
    /// The search.
    pub search_id: SearchId,
    /// The candidate.
    pub candidate_id: CandidateId,
    /// The architecture in printed form.
    pub architecture: String,
}

/// Seconds that an attempt, or all attempts at a job, held their device, by part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeviceSeconds {
    /// Training, including data loading.
    #[serde(default)]
    pub train: f64,
    /// Sampling clips.
    #[serde(default)]
    pub sample: f64,
    /// Decoding and scoring clips.
    #[serde(default)]
    pub score: f64,
    /// Measuring.
    #[serde(default)]
    pub profile: f64,
}

impl DeviceSeconds {
    /// All parts together.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.train + self.sample + self.score + self.profile
    }
}

/// One point of a training curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CurvePoint {
    /// Training step, from 1.
    pub step: u64,
    /// Mean training loss since the point before.
    pub loss: f64,
}

/// What a finished job found. Sent with the lease's token; sending it again changes nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobResult {
    /// What the attempt that found it held the device for; what earlier attempts did, they told themselves.
    #[serde(default)]
    pub device_seconds: DeviceSeconds,
    /// Artifacts, already uploaded.
    #[serde(default)]
    pub artifacts: Vec<ArtifactRef>,
    /// The outcome, by kind.
    pub outcome: Outcome,
}

/// The outcome of a job, by kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Outcome {
    /// Measured blocks.
    Profile(ProfileOutcome),
    /// A candidate's figures.
    Evaluate(EvaluateOutcome),
    /// A whole architecture's figures.
    Verify(VerifyOutcome),
    /// A row of the table.
    Lookup(LookupOutcome),
    /// Encoded clips.
    EncodeLatents(EncodeLatentsOutcome),
    /// A pruned backbone.
    PruneBackbone(PruneBackboneOutcome),
    /// A model's scores.
    Benchmark(BenchmarkOutcome),
    /// A trained model.
    TrainFinal(TrainFinalOutcome),
    /// A distilled model.
    Distill(DistillOutcome),
    /// A compressed decoder.
    CompressDecoder(CompressDecoderOutcome),
    /// Graphs.
    Export(ExportOutcome),
    /// An exported model's figures.
    ProfileModel(ProfileModelOutcome),
}

/// Measured blocks with their raw samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProfileOutcome {
    /// What measured.
    pub runtime: RuntimeName,
    /// One entry a block asked for.
    pub entries: Vec<EntryUpload>,
}

/// What training and scoring a candidate found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EvaluateOutcome {
    /// `quality` with its dimensions, motion, `parameters`, `train_loss`, `train_step_ms`, `train_peak_memory_bytes`.
    pub metrics: Metrics,
    /// Who scored, and how good it is: such as `built-in shapes 1 (consistency 0.99, object 0.99, color 0.99)`.
    pub evaluator: String,
}

/// A whole architecture measured on the device, or found to be too large for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VerifyOutcome {
    /// What measured.
    pub runtime: RuntimeName,
    /// `latency_ms` and `peak_memory_bytes`, as far as the runtime can tell.
    pub metrics: Metrics,
    /// Raw latency samples in milliseconds.
    pub latency_ms_samples: Vec<f64>,
    /// What the runtime said when it ran out of memory; then there are no figures, and no limit is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_of_memory: Option<String>,
}

/// A row of a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LookupOutcome {
    /// The row's figures by column.
    pub metrics: Metrics,
}

//! Jobs that take a point of the front to the device: final training, distillation to few steps, compression of the
//! decoder, export, and the profile of the exported model.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ResultTable, one_rank};
use crate::{CandidateId, Metrics, artifacts::ArtifactRef, devices::RuntimeName, luts::Block};

/// How a trained model is scored; what is absent is the space's `[evaluation]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Scoring {
    /// Prompts that are scored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts: Option<u32>,
    /// Clips sampled for each prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub videos_per_prompt: Option<u32>,
    /// Euler steps of a sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_steps: Option<u32>,
    /// Scale of classifier-free guidance; 1 is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f64>,
}

/// A model of the front to train to its end, all its weights, on images and videos together (section 4.1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainFinalInput {
    /// Text of the space file: configuration of the backbone, trained parts, scoring.
    pub space: String,
    /// The architecture in printed form.
    pub architecture: String,
    /// What to start from: a candidate's temporal layers, or all layers of an earlier final training; layers that the
    /// architecture has not are left out. Fresh temporal layers on the backbone where it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<ArtifactRef>,
    /// Files of the trained parts and latents to train on, to lay out under their names; those the worker ships where
    /// it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub base: Vec<ArtifactRef>,
    /// Recipe of the stage `joint`, as TOML.
    pub recipe: String,
    /// How the trained model is scored.
    #[serde(default)]
    pub scoring: Scoring,
    /// Seed of training.
    #[serde(default)]
    pub seed: u64,
    /// Processes to train with, each on a worker of its own.
    #[serde(default = "one_rank")]
    pub ranks: u32,
}

/// A trained model; its weights, all of them, are an artifact of the result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TrainFinalOutcome {
    /// `quality` with its dimensions, `parameters`, `train_loss`, `train_step_ms`, `train_peak_memory_bytes`.
    pub metrics: Metrics,
    /// Who scored.
    pub evaluator: String,
}

/// A trained model to distil to few steps without guidance by latent adversarial fine-tuning (section 3.3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DistillInput {
    /// Text of the space file: configuration of the backbone, trained parts, scoring.
    pub space: String,
    /// The architecture in printed form.
    pub architecture: String,
    /// All layers of the diffusion model.
    pub weights: Vec<ArtifactRef>,
    /// Files of the trained parts and latents to train on, to lay out under their names; those the worker ships where
    /// it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub base: Vec<ArtifactRef>,
    /// Recipe of the stage `adversarial`, as TOML.
    pub recipe: String,
    /// How the diffusion model is scored; the distilled one takes the recipe's steps, without guidance.
    #[serde(default)]
    pub scoring: Scoring,
    /// Seed of training.
    #[serde(default)]
    pub seed: u64,
    /// Processes to train with, each on a worker of its own.
    #[serde(default = "one_rank")]
    pub ranks: u32,
}

/// A distilled model; its weights, all of them, are an artifact of the result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DistillOutcome {
    /// `quality` with its dimensions at the recipe's steps, `teacher_quality` and its dimensions, `quality_difference`
    /// and `quality_ratio` over the same prompts and seeds, `denoise_speed_up`, training's own figures.
    pub metrics: Metrics,
    /// Who scored.
    pub evaluator: String,
    /// The columns of the paper's Table 5: the distilled model at 1, 2 and 4 steps beside the diffusion model.
    pub table: ResultTable,
    /// The distilled model's figures by steps of a sample: what the table prints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_steps: Vec<ScoredSteps>,
}

/// A model's scores at some number of steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ScoredSteps {
    /// Euler steps of a sample.
    pub steps: u32,
    /// `quality` with its dimensions.
    pub metrics: Metrics,
}

/// A VAE whose decoder to compress (Appendix B).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CompressDecoderInput {
    /// Name of the trained parts, which hold the VAE.
    pub parts: String,
    /// Files of those parts, to lay out under their names; those the worker ships where it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub base: Vec<ArtifactRef>,
    /// Name of a folder of clips and images below the worker's folder of data; the clips that the parts' dataset draws
    /// where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<String>,
    /// Recipe of the stage `decoder`, as TOML.
    pub recipe: String,
    /// Seed of training.
    #[serde(default)]
    pub seed: u64,
}

/// A compressed decoder; its weights and the manifest of the parts that hold it are artifacts of the result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CompressDecoderOutcome {
    /// `psnr_db`, `ssim`, `lpips` of both decoders, `parameters`, `macs`, `speed_up`, by part as well as whole.
    pub metrics: Metrics,
    /// The original decoder and the compressed one in the columns of the paper's Table A1.
    pub table: ResultTable,
}

/// Number format of exported weights and activations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExportPrecision {
    /// IEEE 754 binary32.
    #[default]
    F32,
    /// IEEE 754 binary16.
    F16,
}

/// What a graph is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExportFormat {
    /// ONNX, verified in ONNX Runtime.
    Onnx,
    /// A Core ML package, saved and validated; by a worker that has `coremltools`.
    CoreMl,
}

/// Something to write down as graphs that run without libtorch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportInput {
    /// What.
    pub subject: ExportSubject,
    /// Number format of weights and activations.
    #[serde(default)]
    pub precision: ExportPrecision,
    /// What to write besides ONNX, which is always written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub formats: Vec<ExportFormat>,
    /// Seed of the inputs that the graphs are verified on, and of the weights of blocks.
    #[serde(default)]
    pub seed: u64,
}

/// What to export.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "of", rename_all = "snake_case", deny_unknown_fields)]
pub enum ExportSubject {
    /// A whole model: text encoder, UNet and decoders.
    Model {
        /// Text of the space file.
        space: String,
        /// The architecture in printed form.
        architecture: String,
        /// All layers of the UNet.
        weights: Vec<ArtifactRef>,
        /// Files of the trained parts, to lay out under their names; those the worker ships where it is empty.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        base: Vec<ArtifactRef>,
        /// The compressed decoder's files; the parts' own decoder where it is empty.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        decoder: Vec<ArtifactRef>,
        /// Graphs that the UNet is split into (the paper's two).
        unet_parts: u32,
        /// Clips of a pass of the UNet.
        #[serde(default = "one_rank")]
        batch: u32,
        /// Euler steps of a sample, whose timestep embeddings are computed ahead.
        sample_steps: u32,
        /// Scale of classifier-free guidance; 1 is none.
        guidance: f64,
    },
    /// Blocks of a space with drawn weights, one graph each: what a device's table is measured on.
    Blocks {
        /// Text of the space file.
        space: String,
        /// Which.
        blocks: Vec<Block>,
        /// Where the graphs are to be measured as soon as they are there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        profile_on: Option<ProfileTarget>,
    },
}

/// A device and its runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProfileTarget {
    /// The device.
    pub device: String,
    /// The runtime.
    pub runtime: RuntimeName,
}

/// What was exported; all files are artifacts of the result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExportOutcome {
    /// `parameters`, `macs`, `file_bytes`, `largest_relative_error`.
    pub metrics: Metrics,
    /// The graphs, in the order in which they run.
    pub manifest: ExportManifest,
}

/// Graphs with all that a program needs to run them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExportManifest {
    /// Version of ONNX's operators.
    pub opset: u32,
    /// Version of what wrote them: one version writes one graph for a block.
    #[serde(default)]
    pub exporter: String,
    /// Number format.
    pub precision: ExportPrecision,
    /// In the order in which they run; of blocks, in the order in which they were asked for. An input of a graph that an
    /// earlier one gives out is that, by its name.
    pub graphs: Vec<ExportedGraph>,
    /// How the UNet is stepped; absent of blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampler: Option<SamplerGrid>,
}

/// One graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExportedGraph {
    /// Such as `text_encoder`, `unet.0`, `temporal_decoder`, `spatial_decoder`.
    pub name: String,
    /// The block that it is, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<Block>,
    /// What goes in.
    pub inputs: Vec<TensorSpec>,
    /// What comes out.
    pub outputs: Vec<TensorSpec>,
    /// The ONNX file first, then the file of its weights where they are apart, then what else was asked for.
    pub files: Vec<ArtifactRef>,
    /// Scalars of its weights.
    pub parameters: u64,
    /// Runs of it that one batch of clips takes: passes of the UNet, chunks and slices of the decoders.
    #[serde(default = "one_rank")]
    pub runs: u32,
    /// Largest |ONNX Runtime − libtorch| over largest |libtorch|, of its worst output.
    pub largest_relative_error: f64,
}

/// Name, number format and shape of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TensorSpec {
    /// The graph's name of it.
    pub name: String,
    /// `f32`, `f16` or `i64`.
    pub dtype: String,
    /// Sizes, outermost first.
    pub shape: Vec<u64>,
}

/// The times of a sample with their embeddings, which are fixed once the steps are (Appendix F).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SamplerGrid {
    /// t of each pass, from 1 down; a last step ends at 0.
    pub times: Vec<f64>,
    /// Scale of classifier-free guidance; 1 is none.
    pub guidance: f64,
    /// What the UNet takes for each time: a safetensors file with `timestep_embeddings`, steps × width.
    pub embeddings: ArtifactRef,
}

/// An exported model to measure on a device; holds the device alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProfileModelInput {
    /// The graphs.
    pub manifest: ExportManifest,
    /// The candidate whose model it is, which the figures go to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate_id: Option<CandidateId>,
    /// Runs of each graph after warm-up.
    pub runs: u32,
    /// Seconds for which the UNet runs without a pause at the end, to show what heat does; 0 for not.
    #[serde(default)]
    pub sustained_seconds: f64,
}

/// A model's figures on a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProfileModelOutcome {
    /// What measured.
    pub runtime: RuntimeName,
    /// `latency_ms` of one pass of the UNet, `text_latency_ms`, `decode_latency_ms`, `pipeline_latency_ms`,
    /// `peak_memory_bytes` where the platform tells it.
    pub metrics: Metrics,
    /// By graph, in the manifest's order.
    pub graphs: Vec<GraphProfile>,
}

/// One graph on a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GraphProfile {
    /// The graph's name.
    pub name: String,
    /// Bytes of its files.
    pub file_bytes: u64,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: GraphOutcome,
}

/// How measuring a graph ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum GraphOutcome {
    /// It ran.
    Measured(GraphFigures),
    /// The device has too little memory for it.
    OutOfMemory {
        /// What was said.
        detail: String,
    },
    /// The runtime cannot run it.
    Unsupported {
        /// What was said.
        detail: String,
    },
}

/// What a graph that ran took.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GraphFigures {
    /// Reading the file and making it ready to run, milliseconds; `compile_ms` included where it is not told apart.
    pub load_ms: f64,
    /// Compiling for the unit it runs on, milliseconds, where the runtime tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compile_ms: Option<f64>,
    /// The first run, milliseconds.
    pub cold_ms: f64,
    /// Raw samples after warm-up, milliseconds.
    pub warm_ms: Vec<f64>,
    /// Raw samples without a pause, milliseconds; empty where it was not asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sustained_ms: Vec<f64>,
    /// Peak memory while it was loaded and ran, bytes, where the platform tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<f64>,
    /// By node, where the runtime's profiler tells.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeFigures>,
    /// Temperature in °C or a state by name, before and after, where it can be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub thermal: Vec<String>,
}

/// One node of a graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeFigures {
    /// Its name in the runtime's own graph, which may have been fused.
    pub name: String,
    /// Its operator.
    pub operator: String,
    /// What ran it, such as `CPUExecutionProvider`.
    pub unit: String,
    /// Mean of a run, milliseconds.
    pub mean_ms: f64,
}

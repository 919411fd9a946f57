//! Jobs that make a model what a search starts from, and that say how good one is: encoding of clips, pruning of the
//! backbone, official scores. They belong to no search.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Metrics, artifacts::ArtifactRef};

/// Evaluator that runs the published `vbench` package in an environment of the worker's.
pub const VBENCH_EVALUATOR: &str = "vbench";

/// Processes that a job which does not say otherwise runs as.
#[must_use]
pub const fn one_rank() -> u32 {
    1
}

/// Captioned clips and images to turn into sharded latents and text embeddings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EncodeLatentsInput {
    /// Name of a folder of captioned clips and images below the worker's folder of data; a plain name, no path.
    pub dataset: String,
    /// Name of the trained parts whose VAE and text encoder encode.
    pub parts: String,
    /// Files of those parts, to lay out under their names; those the worker ships where it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub base: Vec<ArtifactRef>,
    /// What clips are cut to.
    pub buckets: Vec<Bucket>,
    /// Most bytes of a shard.
    pub shard_bytes: u64,
    /// Seed of what is drawn: whether a clip is kept for a bucket.
    #[serde(default)]
    pub seed: u64,
}

/// Clips of one size, length and rate, which can be trained on together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// Frames of a clip; 1 for images.
    pub frames: u32,
    /// Rows of a frame in pixels; a multiple of 8.
    pub height: u32,
    /// Columns of a frame in pixels; a multiple of 8.
    pub width: u32,
    /// Frames a second that clips are resampled to.
    pub frame_rate_hz: f64,
    /// Probability that a clip which fits is kept for this bucket, rather than offered to the next.
    #[serde(default = "always")]
    pub keep: f64,
}

fn always() -> f64 {
    1.0
}

/// What was encoded; index and shards are artifacts of the result, in the role `latents`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EncodeLatentsOutcome {
    /// Clips of several frames.
    pub clips: u64,
    /// Images.
    pub images: u64,
    /// Shards of latents and of texts.
    pub shards: u32,
    /// Bytes of the latents.
    pub latent_bytes: u64,
    /// Bytes of the text embeddings.
    pub text_bytes: u64,
    /// How many files could not be used.
    pub skipped: u64,
    /// The first of them, with the reason.
    #[serde(default)]
    pub skipped_files: Vec<SkippedFile>,
}

/// A file that was not encoded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SkippedFile {
    /// Its name below the dataset's folder.
    pub file: String,
    /// Why.
    pub reason: String,
}

/// A spatial UNet to prune, and to adapt to rectified flow and the VAE's latents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PruneBackboneInput {
    /// Text of a space file; its `[unet]` is the pruned backbone.
    pub space: String,
    /// Name of the trained parts, which hold the full backbone, the VAE and the text encoder.
    pub parts: String,
    /// Files of those parts and latents to train on, to lay out under their names; those the worker ships where it is
    /// empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub base: Vec<ArtifactRef>,
    /// Recipe of the distillation, as TOML.
    pub recipe: String,
    /// Recipe of the adaptation to flow and latents, as TOML; none where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptation: Option<String>,
    /// Name of the trained parts whose VAE made the latents to adapt to; those above where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptation_parts: Option<String>,
    /// Files of those parts and their latents, as `base`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adaptation_base: Vec<ArtifactRef>,
    /// Seed of training.
    #[serde(default)]
    pub seed: u64,
    /// Processes to train with, each on a worker of its own.
    #[serde(default = "one_rank")]
    pub ranks: u32,
    /// Pictures that both backbones are scored by, where the parts bring CLIP.
    #[serde(default)]
    pub scoring: PictureScoring,
}

/// How pictures of the full backbone and of the pruned one are sampled, with the same prompts and seeds, for CLIP score
/// and aesthetic score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PictureScoring {
    /// Pictures of each backbone; none are sampled or scored where it is 0.
    pub pictures: u32,
    /// Euler steps of a sample.
    pub sample_steps: u32,
    /// Scale of classifier-free guidance; 1 is none.
    pub guidance: f64,
    /// Captions of the pictures, in turn; where there are none, the prompts that the parts keep apart.
    pub prompts: Vec<String>,
}

impl Default for PictureScoring {
    fn default() -> Self {
        Self {
            pictures: 64,
            sample_steps: 25,
            guidance: 7.0,
            prompts: Vec::new(),
        }
    }
}

/// A pruned backbone; its weights are an artifact of the result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PruneBackboneOutcome {
    /// `parameters`, `macs`, `speed_up` over the full one, `held_out_loss`, and where the parts bring the models for
    /// them `clip_score` and `aesthetic_score`, means over pictures, and the full one's `full_clip_score` and
    /// `full_aesthetic_score`.
    pub metrics: Metrics,
    /// The full backbone and the pruned one in the columns of the paper's Table A2.
    pub table: ResultTable,
}

/// A trained model to score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BenchmarkInput {
    /// What the model is called in the table.
    pub model: String,
    /// Text of the space file: configuration of the backbone, trained parts and sampling.
    pub space: String,
    /// The architecture in printed form.
    pub architecture: String,
    /// Its trained weights; of the temporal layers alone, or of all layers.
    pub weights: Vec<ArtifactRef>,
    /// Files of the trained parts, to lay out under their names; those the worker ships where it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub base: Vec<ArtifactRef>,
    /// Who scores.
    pub evaluator: String,
    /// Dimensions to score; all that the evaluator has where it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dimensions: Vec<String>,
    /// Clips sampled for each prompt.
    pub videos_per_prompt: u32,
    /// Prompts of each dimension that are scored; all where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts: Option<u32>,
    /// Length, size and rate of the clips by name, `paper-eval` or `paper-demo`; those of the space where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// Euler steps of a sample.
    pub sample_steps: u32,
    /// Scale of classifier-free guidance; 1 is none.
    pub guidance: f64,
    /// Seed of sampling.
    #[serde(default)]
    pub seed: u64,
}

/// What a model scored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BenchmarkOutcome {
    /// Raw scores by dimension, and `quality_score`, `semantic_score` and `total_score` where all of their dimensions
    /// were scored.
    pub metrics: Metrics,
    /// Who scored: the package with its version.
    pub evaluator: String,
    /// The model's rows of the paper's Tables 1 and 2 beside the paper's own.
    pub tables: Vec<ResultTable>,
}

/// A table as the paper prints it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResultTable {
    /// What it shows, and which table of the paper it follows.
    pub title: String,
    /// Headings of the columns.
    pub columns: Vec<String>,
    /// Rows of as many cells; an empty cell is not known.
    pub rows: Vec<Vec<String>>,
}

//! Artifacts: immutable bytes named by their SHA-256.
//!
//! Upload: `HEAD /v1/artifacts/{digest}` answers 200 when it is there, else 404 with `Upload-Offset`,
//! the bytes already received; `PUT` with `Upload-Offset: n` sends the rest from byte n. The
//! coordinator verifies the digest before the artifact exists. Download: `GET` with `Range`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ArtifactDigest;

/// Name of the header that carries how many bytes of an upload have arrived.
pub const UPLOAD_OFFSET: &str = "upload-offset";

/// What an artifact is, for whoever shows or uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ArtifactRole {
    /// Trained weights of a candidate (safetensors).
    Weights,
    /// Optimizer, random state and weights from which training goes on.
    Checkpoint,
    /// An animation of sampled clips (GIF or WebP).
    Animation,
    /// A sheet of frames of sampled clips (PNG).
    Sheet,
    /// Loss curve (JSON array of `CurvePoint`).
    Curve,
    /// Per-prompt scores (JSON).
    Scores,
    /// Text log of an attempt.
    Log,
    /// A table of a `table` space (CSV or CSV.gz).
    Table,
    /// A dataset or base weights that a worker needs.
    Base,
    /// Encoded clips: their index (JSON), or a shard of latents or text embeddings (safetensors).
    Latents,
    /// A graph or its weights (ONNX, external data, timestep embeddings), or a Core ML package (zip).
    Graph,
    /// What a person reads: an HTML report, a table, a figure.
    Report,
}

/// An artifact in its role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ArtifactRef {
    /// What it is for.
    pub role: ArtifactRole,
    /// Its digest.
    pub digest: ArtifactDigest,
    /// A file name to show or to save under.
    pub name: String,
    /// Media type, such as `image/gif`.
    pub media_type: String,
    /// Length in bytes.
    pub bytes: u64,
}

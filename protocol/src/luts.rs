//! Look-up tables on the wire.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{Figure, JobId, devices::RuntimeName};

/// What is measured: an operator at a shape.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct Block {
    /// Such as `self_attention3d` or `unet.down`.
    pub operator: String,
    /// Named dimensions, such as `{"c": 64, "h": 8, "t": 5, "w": 8}`.
    pub shape: BTreeMap<String, u64>,
}

/// How measuring a block ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum EntryOutcome {
    /// It ran.
    Measured {
        /// Raw samples in milliseconds, after warm-up.
        latency_ms: Vec<f64>,
        /// Raw samples in bytes, above what was allocated when the block began; empty where the runtime cannot tell.
        #[serde(default)]
        peak_memory_bytes: Vec<f64>,
    },
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

/// One block's measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EntryUpload {
    /// What was measured.
    pub block: Block,
    /// Number format: `f32`, `f16`, `bf16`.
    pub dtype: String,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: EntryOutcome,
}

/// A batch of samples for one device and runtime (`POST /v1/luts/{device}/samples`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SampleUpload {
    /// Chosen by the sender; a batch that is sent again changes nothing.
    pub batch_id: Uuid,
    /// What measured.
    pub runtime: RuntimeName,
    /// The entries.
    pub entries: Vec<EntryUpload>,
}

/// The batch that a block measured for a job belongs to: whoever measured it, and whether it comes by itself or with the
/// job's result, it is stored once.
#[must_use]
pub fn batch_id(job: JobId, block: &Block) -> Uuid {
    let mut digest = Sha256::new_with_prefix(job.0.as_bytes());
    digest.update(block.operator.as_bytes());
    for (name, size) in &block.shape {
        digest.update(format!("\0{name}={size}"));
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.finalize()[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

/// An entry as it is shown: summary and, where asked for, raw samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LutEntryView {
    /// The runtime.
    pub runtime: RuntimeName,
    /// Number format.
    pub dtype: String,
    /// The block.
    pub block: Block,
    /// `measured`, `out_of_memory` or `unsupported`.
    pub state: String,
    /// Why, where it is not measured.
    pub detail: Option<String>,
    /// Median latency with its standard error, in milliseconds.
    pub latency_ms: Option<Figure>,
    /// Spread of the latency samples (scaled median absolute deviation), in milliseconds.
    pub latency_spread_ms: Option<f64>,
    /// Median peak memory above the block's start, in bytes.
    pub peak_memory_bytes: Option<Figure>,
    /// How many latency samples there are.
    pub samples: u64,
    /// Raw latency samples in milliseconds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latency_ms_samples: Vec<f64>,
}

/// Asks workers on a device to measure blocks for its table (`POST /v1/luts/{device}/profile`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProfileRequest {
    /// Shipped space with a UNet, which gives number format, and channels, heads and text of named sets.
    pub space: String,
    /// Which runtime of the device; the only one it has where absent.
    #[serde(default)]
    pub runtime: Option<RuntimeName>,
    /// What to measure.
    pub blocks: BlockSet,
}

/// Blocks to measure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "set", rename_all = "snake_case", deny_unknown_fields)]
pub enum BlockSet {
    /// The six temporal operators over the size of their input at 12 frames: the paper's Figure 3.
    Figure3 {
        /// Heights and widths of the input in latent pixels; 4, 8, 16, 32 and 64 where empty.
        #[serde(default)]
        sizes: Vec<u64>,
    },
    /// Every block that a search over the space needs.
    Space,
    /// These.
    List {
        /// 1 to 256 blocks.
        blocks: Vec<Block>,
    },
}

/// What was queued.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProfileReply {
    /// The new jobs, the lightest blocks first.
    pub jobs: Vec<JobId>,
    /// Blocks that they measure.
    pub queued: u64,
    /// Blocks that the table has already.
    pub known: u64,
    /// Blocks that wait already because someone asked before.
    pub waiting: u64,
    /// Multiply-accumulates of one pass of the heaviest block that is queued, where its closed form is known.
    pub heaviest_macs: Option<u64>,
}

/// One table of a device: what it holds and how well it predicts (`GET /v1/luts/{device}/summary`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TableSummary {
    /// The runtime.
    pub runtime: RuntimeName,
    /// Number format.
    pub dtype: String,
    /// Entries that were measured.
    pub measured: u64,
    /// Entries that ran out of memory.
    pub out_of_memory: u64,
    /// Entries that the runtime cannot run.
    pub unsupported: u64,
    /// How well each operator is predicted between its neighbours when left out itself.
    pub leave_out: Vec<LeaveOutError>,
}

/// How well one operator is predicted between measured neighbours that differ in some dimensions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LeaveOutError {
    /// The operator.
    pub operator: String,
    /// The dimensions in which the neighbours differ.
    pub over: Vec<String>,
    /// Errors of latency.
    pub latency: RelativeErrors,
    /// Errors of peak memory; absent where it was not measured.
    pub peak_memory: Option<RelativeErrors>,
}

/// Sizes of |predicted − measured| / measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RelativeErrors {
    /// What the figure is taken to be linear in: `macs`, `bytes_moved`, `activation_bytes` or `product` (of the
    /// dimensions that vary).
    pub linear_in: String,
    /// Entries that could be left out.
    pub cases: u64,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 95 % quantile.
    pub p95: f64,
    /// Share of the cases within 10 %.
    pub within_10_percent: f64,
}

/// Where a figure comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EstimateBasis {
    /// Measured at this very shape.
    Measured,
    /// Between two measured neighbours.
    Interpolated,
    /// Beyond what was measured, because it was asked for.
    Extrapolated,
    /// It ran out of memory, here or at a smaller shape.
    OutOfMemory,
    /// The runtime cannot run it.
    Unsupported,
    /// The table does not tell.
    Missing,
}

/// What a table says that a block costs (`GET /v1/luts/{device}/estimate`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BlockEstimate {
    /// The runtime.
    pub runtime: RuntimeName,
    /// Number format.
    pub dtype: String,
    /// The block.
    pub block: Block,
    /// Where the figures come from.
    pub basis: EstimateBasis,
    /// Why there are none, or what stands around the block.
    pub detail: Option<String>,
    /// Latency in milliseconds; its standard error holds the doubt of the interpolation.
    pub latency_ms: Option<Figure>,
    /// Peak memory above the block's start in bytes; absent where the runtime cannot tell.
    pub peak_memory_bytes: Option<Figure>,
    /// Mean relative error of latency of such interpolations where entries were left out; absent before enough could be.
    pub leave_out_error: Option<f64>,
}

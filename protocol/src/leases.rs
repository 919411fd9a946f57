//! Taking a job, keeping it, ending it.

use std::net::SocketAddr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    JobId, LeaseToken, Metrics, WorkerId,
    artifacts::ArtifactRef,
    jobs::{CurvePoint, DeviceSeconds, JobInput, JobResult},
};

/// Asks for one job (`POST /v1/leases`); 204 when there was none in time.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LeaseRequest {
    /// A registered worker; its device, kinds and memory decide what it may get.
    pub worker_id: WorkerId,
    /// How long to wait for a job, in seconds, at most 60.
    #[serde(default)]
    pub wait_seconds: u32,
}

/// A job in a worker's hands.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LeasedJob {
    /// The job.
    pub job_id: JobId,
    /// Must come with every report on the job.
    pub lease_token: LeaseToken,
    /// When the lease ends unless a heartbeat renews it.
    pub expires_at: DateTime<Utc>,
    /// Send a heartbeat at least this often, in seconds.
    pub heartbeat_seconds: u32,
    /// From 1.
    pub attempt: u32,
    /// What to do.
    pub input: JobInput,
    /// The last checkpoint an earlier attempt uploaded: go on from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<ArtifactRef>,
    /// The worker's place where several do the job together: it begins once they have met
    /// (`POST /v1/jobs/{id}/rendezvous`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seat: Option<Seat>,
}

/// A place in a gang: workers that do one job together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Seat {
    /// From 0. Rank 0 reports progress, checkpoints and the result; the others say when they are done.
    pub rank: u32,
    /// How many workers do the job.
    pub ranks: u32,
}

/// Waits for the rest of a gang (`POST /v1/jobs/{id}/rendezvous`), and keeps the seat meanwhile.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RendezvousRequest {
    /// The seat's.
    pub lease_token: LeaseToken,
    /// Where rank 0's store listens, for the others to reach; no other rank gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "10.0.0.7:29500")]
    pub address: Option<SocketAddr>,
    /// How long to wait for the rest, in seconds, at most 60.
    #[serde(default)]
    pub wait_seconds: u32,
}

/// How far a gang is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RendezvousReply {
    /// When the seat is lost unless a heartbeat or another such request renews it.
    pub expires_at: DateTime<Utc>,
    /// Where to meet; absent until all are there: ask again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meeting: Option<Meeting>,
}

/// Where and as what a gang meets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Meeting {
    /// Where rank 0's store listens.
    #[schema(value_type = String, example = "10.0.0.7:29500")]
    pub store: SocketAddr,
    /// Differs between any two attempts at any jobs, so that a late rank of another one is told apart.
    pub generation: String,
}

/// Ends the share of a rank other than 0 (`POST /v1/jobs/{id}/done`).
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DoneReport {
    /// The seat's.
    pub lease_token: LeaseToken,
    /// What this rank held its device for.
    #[serde(default)]
    pub device_seconds: DeviceSeconds,
}

/// Renews a lease and says how far the job is (`POST /v1/jobs/{id}/heartbeat`).
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Heartbeat {
    /// The lease.
    pub lease_token: LeaseToken,
    /// Share done, 0 to 1.
    pub progress: f64,
    /// What it is doing, in a few words.
    #[serde(default)]
    pub status: Option<String>,
    /// Points of the curve since the last heartbeat.
    #[serde(default)]
    pub curve: Vec<CurvePoint>,
    /// Figures so far: `train_loss` while it trains, the running score while it samples. Each stands until the next.
    #[serde(default)]
    pub metrics: Metrics,
    /// A checkpoint uploaded since the last heartbeat.
    #[serde(default)]
    pub checkpoint: Option<ArtifactRef>,
    /// What this attempt has held its device for so far: it counts even if this is the attempt's last word.
    #[serde(default)]
    pub device_seconds: DeviceSeconds,
    /// The end of the attempt's log where it has grown, a few KiB: all that is left of it if the worker vanishes.
    #[serde(default)]
    pub log: Option<String>,
}

/// What a heartbeat answers.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HeartbeatReply {
    /// The new end of the lease.
    pub expires_at: DateTime<Utc>,
    /// The job is not wanted any more: stop and report nothing.
    pub cancelled: bool,
}

/// Ends a job with its result (`POST /v1/jobs/{id}/result`).
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ResultReport {
    /// The lease.
    pub lease_token: LeaseToken,
    /// What was found.
    pub result: JobResult,
}

/// Ends an attempt without a result (`POST /v1/jobs/{id}/failure`).
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct FailureReport {
    /// The lease.
    pub lease_token: LeaseToken,
    /// Why, in a sentence; the first 4 KiB are kept.
    pub error: String,
    /// The end of the attempt's log; the last 64 KiB are kept.
    #[serde(default)]
    pub log: Option<String>,
    /// Whether another attempt can help; `false` fails the job at once.
    pub retry: bool,
    /// The worker was told to stop: the attempt does not count against the job.
    #[serde(default)]
    pub released: bool,
    /// What this attempt held its device for.
    #[serde(default)]
    pub device_seconds: DeviceSeconds,
}

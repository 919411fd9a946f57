//! The worker's life: it registers, takes jobs one at a time, keeps their leases, and hands in what they found.
//!
//! While a job runs and while its result is uploaded, heartbeats keep the lease (see [`crate::lease`]).
//! A result is on disk before it is sent and stays there until the coordinator has taken it, so neither a lost
//! connection nor a killed worker loses one: the next start sends it again, and the lease's token decides whether it
//! still counts.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use protocol::JobId;
use protocol::devices::WorkerRegistration;
use protocol::jobs::{DeviceSeconds, JobResult};
use protocol::leases::{DoneReport, FailureReport, LeasedJob, ResultReport};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::client::{Client, ClientError};
use crate::files::write_atomically;
use crate::lease::{Lease, Pauses};
use crate::pulse::Pulse;
use crate::seat::{self, Gathered, Met};

/// How long one request waits for a job.
const POLL: Duration = Duration::from_secs(30);

/// Why an attempt ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The job is not wanted any more, or the worker stops.
    #[error("interrupted")]
    Interrupted,
    /// The input cannot be used by any worker: another attempt fails the same way.
    #[error("{0}")]
    Input(String),
    /// This attempt failed; another may not.
    #[error("{0}")]
    Attempt(String),
}

impl JobError {
    /// Whether another attempt can help.
    #[must_use]
    pub const fn is_worth_another_attempt(&self) -> bool {
        !matches!(self, Self::Input(_))
    }

    /// An attempt that failed of something.
    pub fn attempt(error: impl std::fmt::Display) -> Self {
        Self::Attempt(error.to_string())
    }
}

/// One attempt at a job, in the hands of whoever does it.
#[derive(Debug)]
pub struct Attempt {
    /// The job.
    pub job: LeasedJob,
    /// What the attempt tells, and whether it should go on.
    pub pulse: Arc<Pulse>,
    /// The coordinator.
    pub client: Client,
    /// Its place where several workers do the job together.
    pub gang: Option<Gathered>,
}

/// What a program does with the jobs it takes.
pub trait Work: Clone + Send + Sync + 'static {
    /// Does a job on the calling thread, from which the runtime's handle can be had.
    ///
    /// # Errors
    /// As [`JobError`] says.
    fn run(&self, attempt: Attempt) -> Result<JobResult, JobError>;

    /// What is to be done each time the worker has registered, before it takes a job.
    ///
    /// # Errors
    /// As [`ClientError`] says; one that is passing is tried again.
    fn registered(&self, client: &Client) -> impl Future<Output = Result<(), ClientError>> + Send {
        let _ = client;
        async { Ok(()) }
    }
}

/// A worker process.
#[derive(Debug)]
pub struct Worker<W> {
    /// What it says of itself.
    pub registration: WorkerRegistration,
    /// What it does with its jobs.
    pub work: W,
    /// Folder of what waits for the coordinator.
    pub cache: PathBuf,
    /// The coordinator.
    pub client: Client,
    /// Host by which other workers reach this one; else the address by which it reaches the coordinator.
    pub advertise: Option<String>,
}

impl<W: Work> Worker<W> {
    /// Takes jobs until `stop` turns true; a job under way is then saved and given back.
    ///
    /// # Errors
    /// When the coordinator refuses the worker.
    pub async fn run(&self, mut stop: watch::Receiver<bool>) -> anyhow::Result<()> {
        let mut pauses = Pauses::default();
        let mut registered = false;
        while !*stop.borrow() {
            let turn = async {
                if !registered {
                    self.client.register(&self.registration).await?;
                    tracing::info!(worker.id = %self.registration.id, device = %self.registration.device.name, "registered");
                    self.send_waiting_results().await?;
                    self.work.registered(&self.client).await?;
                }
                self.client.lease(self.registration.id, POLL).await
            };
            let leased = tokio::select! {
                leased = turn => leased,
                _ = stop.changed() => continue,
            };
            match leased {
                Ok(leased) => {
                    registered = true;
                    pauses = Pauses::default();
                    if let Some(job) = leased {
                        self.attend(job, &mut stop).await;
                    }
                }
                // A coordinator on a fresh database does not know this worker.
                Err(ClientError::Refused { status, .. }) if registered && status == reqwest::StatusCode::NOT_FOUND => {
                    registered = false;
                }
                Err(error @ ClientError::Refused { .. }) => return Err(error).context("this worker cannot work here"),
                Err(error) => {
                    tracing::warn!(%error, "no job");
                    tokio::select! {
                        () = tokio::time::sleep(pauses.next()) => {}
                        _ = stop.changed() => {}
                    }
                }
            }
        }
        Ok(())
    }

    async fn attend(&self, job: LeasedJob, stop: &mut watch::Receiver<bool>) {
        let pulse = Arc::new(Pulse::default());
        let lease = Lease::new(&self.client, &job, &pulse);
        let gang = match self.gather(&job, stop).await {
            Ok(gang) => gang,
            Err(error) => {
                tracing::info!(job.id = %job.job_id, %error, "the gang did not meet");
                return;
            }
        };
        let reports = gang.as_ref().is_none_or(|(gang, _)| gang.rank == 0);
        let mut thread = self.start(&job, &pulse, gang);
        let attempt = async {
            let (ended, ()) = tokio::join!(ended(&mut thread, &pulse, stop), lease.upload_checkpoints());
            Ok(ended)
        };
        let outcome = match lease.during(attempt).await {
            Ok(outcome) => outcome,
            Err(lost) => {
                if !thread.is_finished() {
                    let _ = thread.await;
                }
                tracing::warn!(job.id = %job.job_id, %lost, "what was done is dropped");
                return;
            }
        };
        match outcome {
            Ok(result) if reports => self.hand_in(&job, &lease, result, stop).await,
            Ok(result) => self.say_done(&job, &lease, &result).await,
            Err(error) => {
                // The last checkpoint goes first: whoever comes next starts from it.
                let _ = lease.beat().await;
                let report = FailureReport {
                    lease_token: job.lease_token,
                    error: error.to_string(),
                    log: Some(pulse.log()),
                    retry: error.is_worth_another_attempt(),
                    released: matches!(error, JobError::Interrupted),
                    device_seconds: pulse.news().device_seconds,
                };
                tracing::warn!(job.id = %job.job_id, %error, "attempt ended");
                let sent = self.patiently(stop, || self.client.failure(job.job_id, &report)).await;
                sent.unwrap_or_else(|error| tracing::warn!(%error, "the failure was not taken"));
            }
        }
    }

    /// Waits for the others where several workers do the job together; a seat that cannot be used is given back.
    async fn gather(&self, job: &LeasedJob, stop: &mut watch::Receiver<bool>) -> anyhow::Result<Option<Gathered>> {
        let Some(place) = job.seat else {
            return Ok(None);
        };
        tracing::info!(job.id = %job.job_id, rank = place.rank, ranks = place.ranks, "waiting for the rest of the gang");
        let socket = match place.rank {
            0 => seat::store_socket(self.advertise.as_deref(), self.client.server()).map(Some),
            _ => Ok(None),
        };
        let (socket, address) = match socket {
            Ok(socket) => socket.unzip(),
            Err(error) => {
                self.give_back(job, &error.to_string(), false).await;
                return Err(error);
            }
        };
        match seat::meet(&self.client, job, place, address, stop).await? {
            Met::Gang(gang) => Ok(Some((gang, socket))),
            Met::Stopped => {
                self.give_back(job, "stopped", true).await;
                anyhow::bail!("the worker stops")
            }
        }
    }

    /// Frees a seat.
    async fn give_back(&self, job: &LeasedJob, error: &str, released: bool) {
        let report = FailureReport {
            lease_token: job.lease_token,
            error: error.to_owned(),
            log: None,
            retry: true,
            released,
            device_seconds: DeviceSeconds::default(),
        };
        if let Err(error) = self.client.failure(job.job_id, &report).await {
            tracing::warn!(%error, "the seat was not given back; it expires");
        }
    }

    /// Ends the share of a rank that reports no result.
    async fn say_done(&self, job: &LeasedJob, lease: &Lease, result: &JobResult) {
        let report = DoneReport {
            lease_token: job.lease_token,
            device_seconds: result.device_seconds,
        };
        let mut pauses = Pauses::default();
        let said = lease.during(async {
            loop {
                match self.client.done(job.job_id, &report).await {
                    Err(error) if error.is_passing() => tokio::time::sleep(pauses.next()).await,
                    answer => return answer,
                }
            }
        });
        match tokio::time::timeout(seat::LAST_WORD, said).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "that this rank is done was not taken"),
            Err(_) => tracing::warn!("that this rank is done could not be said"),
        }
    }

    /// Starts the job on a thread of its own.
    fn start(&self, job: &LeasedJob, pulse: &Arc<Pulse>, gang: Option<Gathered>) -> JoinHandle<Outcome> {
        let span = tracing::info_span!("job", job.id = %job.job_id, kind = %job.input.kind(), attempt = job.attempt);
        let attempt = Attempt {
            job: job.clone(),
            pulse: pulse.clone(),
            client: self.client.clone(),
            gang,
        };
        let work = self.work.clone();
        tokio::task::spawn_blocking(move || span.in_scope(|| work.run(attempt)))
    }

    async fn hand_in(&self, job: &LeasedJob, lease: &Lease, result: JobResult, stop: &watch::Receiver<bool>) {
        let waiting = Waiting {
            job_id: job.job_id,
            heartbeat_seconds: job.heartbeat_seconds,
            report: ResultReport {
                lease_token: job.lease_token,
                result,
            },
        };
        let path = self.outbox().join(format!("{}.json", job.job_id));
        let kept = serde_json::to_vec(&waiting).map_err(anyhow::Error::from);
        let kept = kept.and_then(|bytes| Ok(write_atomically(&path, &bytes)?));
        if let Err(error) = kept {
            tracing::error!(%error, path = %path.display(), "the result could not be kept on disk");
        }
        let uploads = self.patiently(stop, || self.upload_artifacts(&waiting));
        let sent = match lease.during(uploads).await {
            Ok(()) => {
                let report = || self.client.result(waiting.job_id, &waiting.report);
                self.patiently(stop, report).await
            }
            unsent => unsent,
        };
        self.settle(&path, sent);
    }

    async fn upload_artifacts(&self, waiting: &Waiting) -> Result<(), ClientError> {
        for artifact in &waiting.report.result.artifacts {
            self.client.upload(artifact).await?;
        }
        Ok(())
    }

    /// Sends a result once.
    async fn send(&self, waiting: &Waiting) -> Result<(), ClientError> {
        let lease = Lease {
            client: self.client.clone(),
            job_id: waiting.job_id,
            token: waiting.report.lease_token,
            every: Duration::from_secs(u64::from(waiting.heartbeat_seconds.max(1))),
            pulse: Arc::new(Pulse::done()),
        };
        lease.during(self.upload_artifacts(waiting)).await?;
        self.client.result(waiting.job_id, &waiting.report).await
    }

    /// Sends what an earlier process of this worker left behind.
    async fn send_waiting_results(&self) -> Result<(), ClientError> {
        let files = std::fs::read_dir(self.outbox())
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        for path in files.filter(|path| path.extension().is_some_and(|extension| extension == "json")) {
            let waiting: Option<Waiting> = std::fs::read(&path)
                .ok()
                .and_then(|bytes| serde_json::from_slice(&bytes).ok());
            let sent = match &waiting {
                Some(waiting) => self.send(waiting).await,
                None => {
                    tracing::warn!(path = %path.display(), "not a result; removed");
                    Ok(())
                }
            };
            if let Err(error) = &sent
                && error.is_passing()
            {
                return sent;
            }
            self.settle(&path, sent);
        }
        Ok(())
    }

    /// A result that was taken, or that will never be, does not wait any more.
    fn settle(&self, path: &std::path::Path, sent: Result<(), ClientError>) {
        match sent {
            Err(error) if error.is_passing() => tracing::warn!(%error, "the result waits on disk"),
            sent => {
                if let Err(error) = sent {
                    tracing::warn!(%error, "the result was not taken");
                }
                // Another worker on the same cache may have sent and removed it.
                if let Err(error) = std::fs::remove_file(path)
                    && error.kind() != std::io::ErrorKind::NotFound
                {
                    tracing::warn!(%error, path = %path.display(), "could not be removed");
                }
            }
        }
    }

    /// Tries until the answer is final or the worker stops.
    async fn patiently<F: Future<Output = Result<(), ClientError>>>(
        &self,
        stop: &watch::Receiver<bool>,
        request: impl Fn() -> F,
    ) -> Result<(), ClientError> {
        let mut pauses = Pauses::default();
        loop {
            match request().await {
                Err(error) if error.is_passing() && !*stop.borrow() => {
                    tracing::warn!(%error, "trying again");
                    tokio::time::sleep(pauses.next()).await;
                }
                answer => return answer,
            }
        }
    }

    fn outbox(&self) -> PathBuf {
        self.cache.join("outbox")
    }
}

/// A result on disk.
#[derive(serde::Serialize, serde::Deserialize)]
struct Waiting {
    job_id: JobId,
    #[serde(default)]
    heartbeat_seconds: u32,
    report: ResultReport,
}

type Outcome = Result<JobResult, JobError>;

/// Waits for a job's thread, and asks it to end when the worker is to stop.
async fn ended(thread: &mut JoinHandle<Outcome>, pulse: &Pulse, stop: &mut watch::Receiver<bool>) -> Outcome {
    let mut stopping = *stop.borrow();
    let ended = loop {
        if stopping {
            pulse.stop();
        }
        tokio::select! {
            ended = &mut *thread => break ended,
            changed = stop.changed(), if !stopping => stopping = changed.is_err() || *stop.borrow(),
        }
    };
    let outcome = ended.unwrap_or_else(|_| Err(JobError::Attempt("the job's thread died".to_owned())));
    // Nobody goes on from the checkpoint of a job that is done.
    pulse.end(outcome.is_err());
    outcome
}

#[cfg(test)]
mod tests;

//! The worker's life: it registers, takes jobs one at a time, keeps their leases, and hands in what they found.
//!
//! A result is on disk before it is sent and stays there until the coordinator has taken it, so neither a lost
//! connection nor a killed worker loses one: the next start sends it again, and the lease's token decides whether it
//! still counts.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use protocol::JobId;
use protocol::devices::WorkerRegistration;
use protocol::jobs::JobResult;
use protocol::leases::{FailureReport, Heartbeat, LeasedJob, ResultReport};
use tokio::sync::watch;

use crate::checkpoint::write_atomically;
use crate::client::{Client, ClientError};
use crate::jobs::{self, JobContext, JobError, Pulse, Settings};

/// How long one request waits for a job.
const POLL: Duration = Duration::from_secs(30);
/// The longest pause between tries to reach the coordinator.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A worker process.
#[derive(Debug)]
pub struct Worker {
    /// What it says of itself.
    pub registration: WorkerRegistration,
    /// What its jobs compute with.
    pub settings: Settings,
    /// The coordinator.
    pub client: Client,
}

impl Worker {
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
                        self.work(job, &mut stop).await;
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

    async fn work(&self, job: LeasedJob, stop: &mut watch::Receiver<bool>) {
        let pulse = Arc::new(Pulse::default());
        let span = tracing::info_span!("job", job.id = %job.job_id, kind = %job.input.kind(), attempt = job.attempt);
        let context = JobContext::new(
            self.settings.clone(),
            pulse.clone(),
            job.checkpoint.clone(),
            self.client.clone(),
        );
        let input = job.input.clone();
        let mut running = tokio::task::spawn_blocking(move || span.in_scope(|| jobs::run(&context, &input)));
        let mut lost = false;
        let mut stopping = *stop.borrow();
        let mut ended = None;
        let every = Duration::from_secs(u64::from(job.heartbeat_seconds.max(1)));
        while ended.is_none() {
            if stopping {
                pulse.stop();
            }
            tokio::select! {
                outcome = &mut running => ended = Some(outcome),
                () = tokio::time::sleep(every) => lost |= self.beat(&job, &pulse).await.is_err(),
                () = pulse.urgent.notified() => lost |= self.beat(&job, &pulse).await.is_err(),
                changed = stop.changed(), if !stopping => stopping = changed.is_err() || *stop.borrow(),
            }
        }
        if lost {
            tracing::warn!(job.id = %job.job_id, "the lease is lost; what was done is dropped");
            return;
        }
        let outcome = match ended {
            Some(Ok(outcome)) => outcome,
            _ => Err(JobError::Attempt("the job's thread died".to_owned())),
        };
        match outcome {
            Ok(result) => self.hand_in(&job, result, stop).await,
            Err(error) => {
                // The last checkpoint goes first: whoever comes next starts from it.
                let _ = self.beat(&job, &pulse).await;
                let report = FailureReport {
                    lease_token: job.lease_token,
                    error: error.to_string(),
                    log: Some(pulse.log()),
                    retry: error.is_worth_another_attempt(),
                    released: matches!(error, JobError::Interrupted),
                };
                tracing::warn!(job.id = %job.job_id, %error, "attempt ended");
                let sent = self.patiently(stop, || self.client.failure(job.job_id, &report)).await;
                sent.unwrap_or_else(|error| tracing::warn!(%error, "the failure was not taken"));
            }
        }
    }

    /// Renews the lease with what is new; `Err` means that the job is not this worker's any more.
    async fn beat(&self, job: &LeasedJob, pulse: &Pulse) -> Result<(), ()> {
        let news = pulse.take();
        let sent = async {
            if let Some(checkpoint) = &news.checkpoint {
                self.client.upload(checkpoint).await?;
            }
            let heartbeat = Heartbeat {
                lease_token: job.lease_token,
                progress: news.progress,
                status: news.status.clone(),
                curve: news.curve.clone(),
                checkpoint: news.checkpoint.clone(),
            };
            self.client.heartbeat(job.job_id, &heartbeat).await
        };
        match sent.await {
            Ok(reply) if !reply.cancelled => Ok(()),
            Ok(_) | Err(ClientError::LeaseLost(_)) => {
                pulse.stop();
                Err(())
            }
            Err(error) => {
                tracing::warn!(%error, "no heartbeat");
                pulse.put_back(news);
                Ok(())
            }
        }
    }

    async fn hand_in(&self, job: &LeasedJob, result: JobResult, stop: &mut watch::Receiver<bool>) {
        let waiting = Waiting {
            job_id: job.job_id,
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
        let sent = self.patiently(stop, || self.send(&waiting)).await;
        self.settle(&path, sent);
    }

    async fn send(&self, waiting: &Waiting) -> Result<(), ClientError> {
        for artifact in &waiting.report.result.artifacts {
            self.client.upload(artifact).await?;
        }
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
                None => Ok(tracing::warn!(path = %path.display(), "not a result; removed")),
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
        self.settings.cache.join("outbox")
    }
}

/// A result on disk.
#[derive(serde::Serialize, serde::Deserialize)]
struct Waiting {
    job_id: JobId,
    report: ResultReport,
}

/// Pauses that double up to a bound.
#[derive(Debug, Default)]
struct Pauses(u32);

impl Pauses {
    fn next(&mut self) -> Duration {
        let pause = Duration::from_millis(200 << self.0.min(8)).min(LONGEST_PAUSE);
        self.0 += 1;
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound() {
        let mut pauses = Pauses::default();
        let all: Vec<u128> = (0..9).map(|_| pauses.next().as_millis()).collect();
        assert_eq!(all, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]);
    }
}

//! Keeping a job's lease: heartbeats go out on their own, whatever else is on its way.

use std::sync::Arc;
use std::time::Duration;

use protocol::leases::{Heartbeat, LeasedJob};
use protocol::{JobId, LeaseToken};

use crate::client::{Client, ClientError};
use crate::pulse::Pulse;

/// The longest pause between tries to reach the coordinator.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A lease with what its heartbeats tell.
#[derive(Debug)]
pub(crate) struct Lease {
    pub client: Client,
    pub job_id: JobId,
    pub token: LeaseToken,
    pub every: Duration,
    pub pulse: Arc<Pulse>,
}

impl Lease {
    pub(crate) fn new(client: &Client, job: &LeasedJob, pulse: &Arc<Pulse>) -> Self {
        Self {
            client: client.clone(),
            job_id: job.job_id,
            token: job.lease_token,
            every: Duration::from_secs(u64::from(job.heartbeat_seconds.max(1))),
            pulse: pulse.clone(),
        }
    }

    /// Does `work` while heartbeats renew the lease.
    ///
    /// # Errors
    /// As `work`, or [`ClientError::LeaseLost`], by which `work` is dropped and the job asked to end.
    pub(crate) async fn during<T>(&self, work: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
        tokio::select! {
            done = work => done,
            lost = self.keep() => Err(lost),
        }
    }

    /// Sends heartbeats until the lease is lost.
    async fn keep(&self) -> ClientError {
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.every) => {}
                () = self.pulse.urgent.notified() => {}
            }
            if let Err(lost) = self.beat().await {
                self.pulse.stop();
                return lost;
            }
        }
    }

    /// Renews the lease with what is new.
    ///
    /// # Errors
    /// [`ClientError::LeaseLost`] where the job is not this worker's any more; all else waits for the next heartbeat.
    pub(crate) async fn beat(&self) -> Result<(), ClientError> {
        let news = self.pulse.news();
        let heartbeat = Heartbeat {
            lease_token: self.token,
            progress: news.progress,
            status: news.status.clone(),
            curve: news.curve.clone(),
            metrics: news.metrics.clone(),
            checkpoint: news.checkpoint.clone(),
            device_seconds: news.device_seconds,
            log: news.log.clone(),
        };
        match self.client.heartbeat(self.job_id, &heartbeat).await {
            Ok(reply) if reply.cancelled => Err(ClientError::LeaseLost("the job is not wanted any more".to_owned())),
            Ok(_) => {
                self.pulse.delivered(&news);
                Ok(())
            }
            Err(lost @ ClientError::LeaseLost(_)) => Err(lost),
            Err(error) => {
                tracing::warn!(%error, "no heartbeat");
                Ok(())
            }
        }
    }

    /// Uploads checkpoints as the job saves them, always the newest, until the job has ended and none waits; then
    /// each is tried once.
    pub(crate) async fn upload_checkpoints(&self) {
        let mut pauses = Pauses::default();
        loop {
            let Some(checkpoint) = self.pulse.saved() else {
                if self.pulse.has_ended() {
                    return;
                }
                self.pulse.to_upload.notified().await;
                continue;
            };
            match self.client.upload(&checkpoint).await {
                Ok(()) => {
                    self.pulse.uploaded(checkpoint);
                    pauses = Pauses::default();
                }
                Err(error) => {
                    tracing::warn!(%error, "the checkpoint was not uploaded");
                    if self.pulse.has_ended() {
                        return;
                    }
                    tokio::select! {
                        () = tokio::time::sleep(pauses.next()) => {}
                        () = self.pulse.to_upload.notified() => {}
                    }
                }
            }
        }
    }
}

/// Pauses that double up to a bound.
#[derive(Debug, Default)]
pub(crate) struct Pauses(u32);

impl Pauses {
    pub(crate) fn next(&mut self) -> Duration {
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

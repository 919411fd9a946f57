//! The worker's side of the coordinator's REST routes.

mod artifacts;

use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::devices::WorkerRegistration;
use protocol::leases::{
    DoneReport, FailureReport, Heartbeat, HeartbeatReply, LeaseRequest, LeasedJob, RendezvousReply, RendezvousRequest,
    ResultReport,
};
use protocol::luts::SampleUpload;
use protocol::{ArtifactDigest, JobId, ProblemDocument, WorkerId};
use reqwest::header::HeaderValue;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use artifacts::digest_of;

/// How long any request but a long poll may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a request had no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The coordinator could not be reached, or could not answer now: worth another try.
    #[error("the coordinator does not answer: {0}")]
    Unreachable(String),
    /// The lease belongs to someone else now.
    #[error("the lease is lost: {0}")]
    LeaseLost(String),
    /// An upload goes on elsewhere: someone else sends the same artifact, or an earlier try left more than was known.
    #[error("the upload goes on elsewhere: {0}")]
    WrongOffset(String),
    /// The coordinator refuses the request; another try gives the same answer.
    #[error("the coordinator refuses ({status}): {detail}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// What its problem document says.
        detail: String,
    },
    /// An artifact is not what its name says.
    #[error("artifact {digest}: {problem}")]
    Artifact {
        /// The artifact.
        digest: ArtifactDigest,
        /// What is wrong.
        problem: String,
    },
    /// The cache on disk cannot be used.
    #[error("{path}: {source}")]
    Disk {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

impl ClientError {
    /// Whether the same request may succeed later.
    #[must_use]
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::WrongOffset(_))
    }
}

impl From<reqwest::Error> for ClientError {
    fn from(error: reqwest::Error) -> Self {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        Self::Unreachable(text)
    }
}

/// Talks to one coordinator; artifacts are kept in a folder by digest.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    server: String,
    token: Option<HeaderValue>,
    artifacts: PathBuf,
}

impl Client {
    /// For the coordinator at `server`; `cache` is the worker's own folder.
    ///
    /// # Errors
    /// Where the token holds characters that no header can carry.
    pub fn new(server: &str, token: Option<&str>, cache: &Path) -> anyhow::Result<Self> {
        let token = token.map(|token| {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))?;
            value.set_sensitive(true);
            anyhow::Ok(value)
        });
        Ok(Self {
            http: reqwest::Client::builder()
                .connect_timeout(Duration::from_secs(10))
                .build()?,
            server: server.trim_end_matches('/').to_owned(),
            token: token.transpose()?,
            artifacts: cache.join("artifacts"),
        })
    }

    /// Makes the worker and its device known.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn register(&self, worker: &WorkerRegistration) -> Result<(), ClientError> {
        self.post::<serde_json::Value>("/v1/workers", worker).await.map(drop)
    }

    /// Waits up to `wait` for a job.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn lease(&self, worker_id: WorkerId, wait: Duration) -> Result<Option<LeasedJob>, ClientError> {
        let request = LeaseRequest {
            worker_id,
            wait_seconds: wait.as_secs() as u32,
        };
        let request = self
            .request(Method::POST, "/v1/leases")
            .timeout(wait + PATIENCE)
            .json(&request);
        let reply = accepted(request.send().await?).await?;
        if reply.status() == StatusCode::NO_CONTENT {
            Ok(None)
        } else {
            Ok(Some(reply.json().await?))
        }
    }

    /// Renews a lease.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn heartbeat(&self, job: JobId, heartbeat: &Heartbeat) -> Result<HeartbeatReply, ClientError> {
        self.post(&format!("/v1/jobs/{job}/heartbeat"), heartbeat).await
    }

    /// Hands in a result.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn result(&self, job: JobId, report: &ResultReport) -> Result<(), ClientError> {
        self.send(&format!("/v1/jobs/{job}/result"), report).await
    }

    /// Gives an attempt up.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn failure(&self, job: JobId, report: &FailureReport) -> Result<(), ClientError> {
        self.send(&format!("/v1/jobs/{job}/failure"), report).await
    }

    /// Waits for the rest of a gang, and keeps the seat meanwhile.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn rendezvous(&self, job: JobId, request: &RendezvousRequest) -> Result<RendezvousReply, ClientError> {
        let request = self
            .request(Method::POST, &format!("/v1/jobs/{job}/rendezvous"))
            .timeout(Duration::from_secs(request.wait_seconds.into()) + PATIENCE)
            .json(request);
        Ok(accepted(request.send().await?).await?.json().await?)
    }

    /// Ends the share of a rank other than 0.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn done(&self, job: JobId, report: &DoneReport) -> Result<(), ClientError> {
        self.send(&format!("/v1/jobs/{job}/done"), report).await
    }

    /// Sends a batch of samples for a device's table; the same batch sent again changes nothing.
    ///
    /// # Errors
    /// As [`ClientError`] says; 409 where another batch has its id.
    pub async fn samples(&self, device: &str, batch: &SampleUpload) -> Result<(), ClientError> {
        self.send(&format!("/v1/luts/{device}/samples"), batch).await
    }

    /// The coordinator's address.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    fn request(&self, method: Method, route: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{route}", self.server));
        match &self.token {
            Some(token) => request.header(reqwest::header::AUTHORIZATION, token.clone()),
            None => request,
        }
    }

    async fn post<T: DeserializeOwned>(&self, route: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let reply = self
            .request(Method::POST, route)
            .timeout(PATIENCE)
            .json(body)
            .send()
            .await?;
        Ok(accepted(reply).await?.json().await?)
    }

    async fn send(&self, route: &str, body: &impl Serialize) -> Result<(), ClientError> {
        let reply = self
            .request(Method::POST, route)
            .timeout(PATIENCE)
            .json(body)
            .send()
            .await?;
        accepted(reply).await.map(drop)
    }
}

async fn accepted(reply: Response) -> Result<Response, ClientError> {
    let status = reply.status();
    if status.is_success() {
        return Ok(reply);
    }
    let text = reply.text().await.unwrap_or_default();
    let problem: Option<ProblemDocument> = serde_json::from_str(&text).ok();
    let kind = problem.as_ref().map(|problem| problem.kind.clone());
    let detail = match problem {
        Some(problem) => {
            let fields = problem
                .errors
                .iter()
                .map(|error| format!("; {}: {}", error.field, error.message));
            fields.fold(problem.detail.unwrap_or(problem.title), |all, field| all + &field)
        }
        None => text.chars().take(300).collect(),
    };
    Err(match status {
        _ if kind.as_deref() == Some(ProblemDocument::LEASE_LOST) => ClientError::LeaseLost(detail),
        _ if kind.as_deref() == Some(ProblemDocument::WRONG_UPLOAD_OFFSET) => ClientError::WrongOffset(detail),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => ClientError::Unreachable(detail),
        _ if status.is_server_error() => ClientError::Unreachable(format!("{status}: {detail}")),
        _ => ClientError::Refused { status, detail },
    })
}

#[cfg(test)]
mod tests {
    use protocol::LeaseToken;
    use protocol::jobs::DeviceSeconds;

    use super::*;
    use crate::fake_coordinator::{Coordinator, Reply};

    #[tokio::test]
    async fn a_coordinator_that_is_not_there_is_worth_another_try() {
        let folder = tempfile::tempdir().unwrap();
        let client = Client::new("http://127.0.0.1:1", None, folder.path()).unwrap();
        let error = client.lease(WorkerId::new(), Duration::ZERO).await.unwrap_err();
        assert!(error.is_passing(), "{error}");
    }

    #[tokio::test]
    async fn only_a_lost_lease_reads_as_one() {
        let folder = tempfile::tempdir().unwrap();
        let server = Coordinator::start(|request| {
            let kind = if request.route.contains("result") {
                "result-differs"
            } else {
                "lease-lost"
            };
            Reply::problem(409, kind)
        })
        .await;
        let client = server.client(folder.path());
        let report = FailureReport {
            lease_token: LeaseToken::new(),
            error: "x".to_owned(),
            log: None,
            retry: true,
            released: false,
            device_seconds: DeviceSeconds::default(),
        };
        let lost = client.failure(JobId::new(), &report).await.unwrap_err();
        assert!(matches!(lost, ClientError::LeaseLost(_)), "{lost}");
        let refused = client.send("/v1/jobs/1/result", &report).await.unwrap_err();
        assert!(matches!(refused, ClientError::Refused { .. }), "{refused}");
    }
}

//! The worker's side of the coordinator's REST routes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::artifacts::{ArtifactRef, ArtifactRole, UPLOAD_OFFSET};
use protocol::devices::WorkerRegistration;
use protocol::leases::{
    DoneReport, FailureReport, Heartbeat, HeartbeatReply, LeaseRequest, LeasedJob, RendezvousReply, RendezvousRequest,
    ResultReport,
};
use protocol::{ArtifactDigest, JobId, ProblemDocument, WorkerId};
use reqwest::header::HeaderValue;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::checkpoint::write_atomically;

/// How long any request but a long poll may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often one upload asks again where to go on.
const OFFSETS: u32 = 4;

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

    /// The coordinator's address.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Keeps bytes in the cache under their digest, ready for [`Self::upload`].
    ///
    /// # Errors
    /// Where they cannot be written.
    pub fn keep(
        &self,
        role: ArtifactRole,
        name: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<ArtifactRef, ClientError> {
        let digest = digest_of(bytes);
        let path = self.place(&digest);
        if !path.exists() {
            write_atomically(&path, bytes).map_err(|source| ClientError::Disk { path, source })?;
        }
        let bytes = bytes.len() as u64;
        Ok(ArtifactRef {
            role,
            digest,
            name: name.to_owned(),
            media_type: media_type.to_owned(),
            bytes,
        })
    }

    /// Sends a kept artifact, from where an earlier try stopped.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn upload(&self, artifact: &ArtifactRef) -> Result<(), ClientError> {
        let path = self.place(&artifact.digest);
        let bytes = tokio::fs::read(&path)
            .await
            .map_err(|source| ClientError::Disk { path, source })?;
        for _ in 1..OFFSETS {
            match self.upload_rest(artifact, &bytes).await {
                Err(ClientError::WrongOffset(detail)) => tracing::debug!(digest = %artifact.digest, detail),
                sent => return sent,
            }
        }
        self.upload_rest(artifact, &bytes).await
    }

    /// Sends what the coordinator lacks of an artifact.
    async fn upload_rest(&self, artifact: &ArtifactRef, bytes: &[u8]) -> Result<(), ClientError> {
        let route = format!("/v1/artifacts/{}", artifact.digest);
        let head = self.request(Method::HEAD, &route).timeout(PATIENCE).send().await?;
        if head.status().is_success() {
            return Ok(());
        }
        let offset = head
            .headers()
            .get(UPLOAD_OFFSET)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .unwrap_or(0);
        let rest = bytes.get(offset..).unwrap_or_default().to_vec();
        let request = self.request(Method::PUT, &route).header(UPLOAD_OFFSET, offset);
        let request = request
            .header("content-type", &artifact.media_type)
            .timeout(10 * PATIENCE)
            .body(rest);
        accepted(request.send().await?).await.map(drop)
    }

    /// The artifact's file in the cache, fetched and verified where it is not there yet.
    ///
    /// # Errors
    /// As [`ClientError`] says; bytes with another digest are refused.
    pub async fn fetch(&self, digest: &ArtifactDigest) -> Result<PathBuf, ClientError> {
        let path = self.place(digest);
        if path.exists() {
            return Ok(path);
        }
        let request = self
            .request(Method::GET, &format!("/v1/artifacts/{digest}"))
            .timeout(10 * PATIENCE);
        let bytes = accepted(request.send().await?).await?.bytes().await?;
        let found = digest_of(&bytes);
        if found != *digest {
            return Err(ClientError::Artifact {
                digest: digest.clone(),
                problem: format!("its bytes have SHA-256 {found}"),
            });
        }
        write_atomically(&path, &bytes).map_err(|source| ClientError::Disk {
            path: path.clone(),
            source,
        })?;
        Ok(path)
    }

    fn place(&self, digest: &ArtifactDigest) -> PathBuf {
        self.artifacts.join(&digest.as_str()[..2]).join(digest.as_str())
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

/// SHA-256 of bytes.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> ArtifactDigest {
    let digits: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    digits.parse().expect("64 hexadecimal digits")
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
    use std::sync::atomic::{AtomicU64, Ordering};

    use protocol::LeaseToken;
    use protocol::jobs::DeviceSeconds;

    use super::*;
    use crate::fake_coordinator::{Coordinator, Reply};

    #[test]
    fn an_artifact_is_kept_once_under_its_digest() {
        let folder = tempfile::tempdir().unwrap();
        let client = Client::new("http://127.0.0.1:1/", None, folder.path()).unwrap();
        let first = client.keep(ArtifactRole::Log, "a.txt", "text/plain", b"abc").unwrap();
        let again = client.keep(ArtifactRole::Log, "a.txt", "text/plain", b"abc").unwrap();
        assert_eq!(first, again);
        // FIPS 180-2, appendix B.1.
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((first.digest.as_str(), first.bytes), (known, 3));
    }

    #[tokio::test]
    async fn a_coordinator_that_is_not_there_is_worth_another_try() {
        let folder = tempfile::tempdir().unwrap();
        let client = Client::new("http://127.0.0.1:1", None, folder.path()).unwrap();
        let error = client.lease(WorkerId::new(), Duration::ZERO).await.unwrap_err();
        assert!(error.is_passing(), "{error}");
    }

    #[tokio::test]
    async fn an_upload_that_goes_on_elsewhere_asks_again_where() {
        let folder = tempfile::tempdir().unwrap();
        let asked = AtomicU64::new(0);
        let server = Coordinator::start(move |request| {
            let offset = request
                .headers
                .get(UPLOAD_OFFSET)
                .map(|value| value.to_str().unwrap().to_owned());
            match (request.method.as_str(), offset.as_deref()) {
                // Between the first question and the bytes, another sender got as far as byte 2.
                ("HEAD", _) => {
                    Reply::empty(404).with(UPLOAD_OFFSET, &(2 * asked.fetch_add(1, Ordering::SeqCst)).to_string())
                }
                ("PUT", Some("2")) if &request.body[..] == b"c" => Reply::empty(201),
                _ => Reply::problem(409, "wrong-upload-offset"),
            }
        })
        .await;
        let client = server.client(folder.path());
        let kept = client.keep(ArtifactRole::Log, "a.txt", "text/plain", b"abc").unwrap();
        client.upload(&kept).await.unwrap();
        assert_eq!(server.requests("PUT ").len(), 2);
    }

    #[tokio::test]
    async fn an_offset_that_stays_wrong_is_worth_another_try_later() {
        let folder = tempfile::tempdir().unwrap();
        let server = Coordinator::start(|request| match request.method.as_str() {
            "HEAD" => Reply::empty(404),
            _ => Reply::problem(409, "wrong-upload-offset"),
        })
        .await;
        let client = server.client(folder.path());
        let kept = client.keep(ArtifactRole::Log, "a.txt", "text/plain", b"abc").unwrap();
        let error = client.upload(&kept).await.unwrap_err();
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

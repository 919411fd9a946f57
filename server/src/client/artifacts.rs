//! Artifacts on their way to and from files.

use std::path::Path;

use futures::StreamExt;
use protocol::{ArtifactDigest, artifacts::UPLOAD_OFFSET};
use reqwest::{Method, header};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Client, ClientError, transport::accepted};

impl Client {
    /// Uploads a file as an artifact, unless it is there, going on where an upload broke off.
    ///
    /// # Errors
    /// When the file cannot be read, or the coordinator refuses or cannot be reached.
    pub async fn upload(&self, path: &Path, media_type: &str) -> Result<ArtifactDigest, ClientError> {
        let unreadable = |source| ClientError::File {
            path: path.display().to_string(),
            source,
        };
        let digest = digest_file(path).await.map_err(unreadable)?;
        let route = format!("/v1/artifacts/{digest}");
        let found = self
            .request(Method::HEAD, &route)
            .send()
            .await
            .map_err(|source| self.unreachable(source))?;
        if found.status().is_success() {
            return Ok(digest);
        }
        let offset = found
            .headers()
            .get(UPLOAD_OFFSET)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let offset: u64 = offset.unwrap_or(0);
        let mut file = tokio::fs::File::open(path).await.map_err(unreadable)?;
        tokio::io::AsyncSeekExt::seek(&mut file, std::io::SeekFrom::Start(offset))
            .await
            .map_err(unreadable)?;
        let body = reqwest::Body::wrap_stream(tokio_util::io::ReaderStream::new(file));
        let request = self.request(Method::PUT, &route).header(UPLOAD_OFFSET, offset);
        let request = request.header(header::CONTENT_TYPE, media_type).body(body);
        accepted(request.send().await.map_err(|source| self.unreachable(source))?).await?;
        Ok(digest)
    }

    /// Downloads an artifact to a file, which is there whole or not at all; one that is there is not sent again.
    ///
    /// # Errors
    /// When the file cannot be written, what arrives is not the artifact, or the coordinator refuses or cannot be
    /// reached.
    pub async fn download(&self, digest: &ArtifactDigest, path: &Path) -> Result<(), ClientError> {
        if digest_file(path).await.is_ok_and(|found| found == *digest) {
            return Ok(());
        }
        let failed = |source| ClientError::File {
            path: path.display().to_string(),
            source,
        };
        let reply = self
            .send(|| self.request(Method::GET, &format!("/v1/artifacts/{digest}")))
            .await?;
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let partial = path.with_file_name(name);
        let mut file = tokio::fs::File::create(&partial).await.map_err(failed)?;
        let mut bytes = reply.bytes_stream();
        while let Some(some) = bytes.next().await {
            let some = some.map_err(|source| self.unreachable(source))?;
            file.write_all(&some).await.map_err(failed)?;
        }
        file.flush().await.map_err(failed)?;
        let found = digest_file(&partial).await.map_err(failed)?;
        if found != *digest {
            let problem = format!("what arrived has SHA-256 {found}, not {digest}");
            return Err(failed(std::io::Error::other(problem)));
        }
        // By renaming: a file of trained parts may be linked from elsewhere, where it must stay as it is.
        tokio::fs::rename(&partial, path).await.map_err(failed)
    }
}

async fn digest_file(path: &Path) -> std::io::Result<ArtifactDigest> {
    let mut file = tokio::fs::File::open(path).await?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = file.read(&mut buffer).await?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
    }
    let digits: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    digits.parse().map_err(std::io::Error::other)
}

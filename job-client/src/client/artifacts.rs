//! Artifacts: kept in a folder by digest, sent and fetched piece by piece, so that the disk bounds their size and not the
//! memory.

use std::io::{Read, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::ArtifactDigest;
use protocol::artifacts::{ArtifactRef, ArtifactRole, UPLOAD_OFFSET};
use reqwest::{Body, Method, Response, StatusCode, header};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use tokio::fs::File;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio_util::io::ReaderStream;

use super::{Client, ClientError, PATIENCE, accepted};
use crate::files::{persist, temporary_beside, write_atomically};

/// How often one upload asks again where to go on.
const OFFSETS: u32 = 4;
/// The slowest connection that an upload is given time for.
const LEAST_BYTES_PER_SECOND: u64 = 256 << 10;

impl Client {
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

    /// As [`Self::keep`] for a file of any size, under its own name: the cache links to it where the disk can.
    ///
    /// # Errors
    /// Where it cannot be read, or be put into the cache.
    pub fn keep_file(&self, role: ArtifactRole, media_type: &str, file: &Path) -> Result<ArtifactRef, ClientError> {
        let disk = |path: &Path| {
            let path = path.to_owned();
            move |source| ClientError::Disk { path, source }
        };
        let (digest, bytes) = digest_of_file(file).map_err(disk(file))?;
        let path = self.place(&digest);
        if !path.exists() {
            link_or_copy(file, &path).map_err(disk(&path))?;
        }
        Ok(ArtifactRef {
            role,
            digest,
            name: file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            media_type: media_type.to_owned(),
            bytes,
        })
    }

    /// Sends a kept artifact, from where an earlier try stopped.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn upload(&self, artifact: &ArtifactRef) -> Result<(), ClientError> {
        for _ in 1..OFFSETS {
            match self.upload_rest(artifact).await {
                Err(ClientError::WrongOffset(detail)) => tracing::debug!(digest = %artifact.digest, detail),
                sent => return sent,
            }
        }
        self.upload_rest(artifact).await
    }

    /// Sends what the coordinator lacks of an artifact.
    async fn upload_rest(&self, artifact: &ArtifactRef) -> Result<(), ClientError> {
        let route = format!("/v1/artifacts/{}", artifact.digest);
        let head = self.request(Method::HEAD, &route).timeout(PATIENCE).send().await?;
        if head.status().is_success() {
            return Ok(());
        }
        let path = self.place(&artifact.digest);
        let disk = |source| ClientError::Disk {
            path: path.clone(),
            source,
        };
        let mut file = File::open(&path).await.map_err(disk)?;
        let length = file.metadata().await.map_err(disk)?.len();
        let offset = head.headers().get(UPLOAD_OFFSET);
        let offset = offset.and_then(|value| value.to_str().ok()?.parse().ok());
        let offset = offset.unwrap_or(0).min(length);
        file.seek(SeekFrom::Start(offset)).await.map_err(disk)?;
        let request = self
            .request(Method::PUT, &route)
            .header(UPLOAD_OFFSET, offset)
            .header(header::CONTENT_TYPE, &artifact.media_type)
            .header(header::CONTENT_LENGTH, length - offset)
            .timeout(PATIENCE + Duration::from_secs((length - offset) / LEAST_BYTES_PER_SECOND))
            .body(Body::wrap_stream(ReaderStream::new(file)));
        accepted(request.send().await?).await.map(drop)
    }

    /// The artifact's file in the cache, fetched and verified where it is not there yet. A broken connection is taken up
    /// again where it broke, as long as each one brings something.
    ///
    /// # Errors
    /// As [`ClientError`] says; bytes with another digest are refused.
    pub async fn fetch(&self, digest: &ArtifactDigest) -> Result<PathBuf, ClientError> {
        let path = self.place(digest);
        if path.exists() {
            return Ok(path);
        }
        let disk = |source| ClientError::Disk {
            path: path.clone(),
            source,
        };
        let partial = temporary_beside(&path).map_err(disk)?;
        let mut download = Download::new(&partial).map_err(disk)?;
        loop {
            let before = download.bytes;
            match self.fetch_rest(digest, &mut download, &disk).await {
                Ok(()) => break,
                Err(error) if error.is_passing() && download.bytes > before => {
                    tracing::warn!(%error, digest = %digest, bytes = download.bytes, "the download broke; going on");
                }
                Err(error) => return Err(error),
            }
        }
        let found = hexadecimal(download.digest);
        if found != digest.as_str() {
            return Err(ClientError::Artifact {
                digest: digest.clone(),
                problem: format!("its bytes have SHA-256 {found}"),
            });
        }
        download.file.flush().await.map_err(disk)?;
        persist(partial, &path).map_err(disk)?;
        Ok(path)
    }

    /// Appends what a download lacks.
    async fn fetch_rest(
        &self,
        digest: &ArtifactDigest,
        download: &mut Download,
        disk: &(dyn Fn(std::io::Error) -> ClientError + Sync),
    ) -> Result<(), ClientError> {
        let mut request = self.request(Method::GET, &format!("/v1/artifacts/{digest}"));
        if download.bytes > 0 {
            request = request.header(header::RANGE, format!("bytes={}-", download.bytes));
        }
        let reply = in_time(request.send()).await??;
        let mut reply = accepted(reply).await?;
        if reply.status() != StatusCode::PARTIAL_CONTENT {
            download.restart().await.map_err(disk)?;
        }
        while let Some(piece) = in_time(Response::chunk(&mut reply)).await?? {
            download.append(&piece).await.map_err(disk)?;
        }
        Ok(())
    }

    fn place(&self, digest: &ArtifactDigest) -> PathBuf {
        self.artifacts.join(&digest.as_str()[..2]).join(digest.as_str())
    }
}

/// What of an artifact has arrived.
struct Download {
    file: File,
    digest: Sha256,
    bytes: u64,
}

impl Download {
    fn new(partial: &NamedTempFile) -> std::io::Result<Self> {
        Ok(Self {
            file: File::from_std(partial.reopen()?),
            digest: Sha256::new(),
            bytes: 0,
        })
    }

    async fn append(&mut self, piece: &[u8]) -> std::io::Result<()> {
        self.file.write_all(piece).await?;
        self.digest.update(piece);
        self.bytes += piece.len() as u64;
        Ok(())
    }

    /// For a coordinator that begins from the start.
    async fn restart(&mut self) -> std::io::Result<()> {
        self.file.set_len(0).await?;
        self.file.seek(SeekFrom::Start(0)).await?;
        (self.digest, self.bytes) = (Sha256::new(), 0);
        Ok(())
    }
}

/// The next answer, unless nothing comes for too long.
async fn in_time<T>(next: impl Future<Output = T>) -> Result<T, ClientError> {
    let silent = |_| ClientError::Unreachable(format!("nothing came for {} s", PATIENCE.as_secs()));
    tokio::time::timeout(PATIENCE, next).await.map_err(silent)
}

/// SHA-256 of a file, and its length.
fn digest_of_file(path: &Path) -> std::io::Result<(ArtifactDigest, u64)> {
    let mut file = std::fs::File::open(path)?;
    let (mut digest, mut bytes, mut piece) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut piece)? {
            0 => break,
            read => {
                digest.update(&piece[..read]);
                bytes += read as u64;
            }
        }
    }
    let digest = hexadecimal(digest).parse().map_err(std::io::Error::other)?;
    Ok((digest, bytes))
}

/// Puts a file that never changes in a second place, at once and whole.
fn link_or_copy(file: &Path, place: &Path) -> std::io::Result<()> {
    let mut copy = temporary_beside(place)?;
    if std::fs::hard_link(file, place).is_err() {
        std::io::copy(&mut std::fs::File::open(file)?, &mut copy)?;
        persist(copy, place)?;
    }
    Ok(())
}

/// SHA-256 of bytes.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> ArtifactDigest {
    let digits = hexadecimal(Sha256::new_with_prefix(bytes));
    digits.parse().expect("64 hexadecimal digits")
}

fn hexadecimal(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

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
    async fn a_broken_download_goes_on_where_it_broke() {
        let folder = tempfile::tempdir().unwrap();
        let server = Coordinator::start(|request| match request.headers.get(header::RANGE) {
            None => Reply::broken_after(200, b"ab"),
            Some(range) if range == "bytes=2-" => Reply::bytes(206, b"c"),
            Some(_) => Reply::empty(416),
        })
        .await;
        let file = server.client(folder.path()).fetch(&digest_of(b"abc")).await.unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"abc");
        assert_eq!(
            std::fs::read_dir(file.parent().unwrap()).unwrap().count(),
            1,
            "nothing else is left"
        );
    }

    #[tokio::test]
    async fn a_coordinator_without_ranges_starts_again_and_other_bytes_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let asked = AtomicU64::new(0);
        let server = Coordinator::start(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
            0 => Reply::broken_after(200, b"ab"),
            _ => Reply::bytes(200, b"abc"),
        })
        .await;
        let client = server.client(folder.path());
        assert!(client.fetch(&digest_of(b"abc")).await.is_ok());
        let error = client.fetch(&digest_of(b"abd")).await.unwrap_err();
        assert!(
            !error.is_passing() && error.to_string().contains("its bytes have SHA-256 ba7816bf"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_download_that_brings_nothing_is_given_up_for_now() {
        let folder = tempfile::tempdir().unwrap();
        let server = Coordinator::start(|_| Reply::broken_after(200, b"")).await;
        let error = server
            .client(folder.path())
            .fetch(&digest_of(b"abc"))
            .await
            .unwrap_err();
        assert!(error.is_passing(), "{error}");
        assert_eq!(server.requests("GET ").len(), 1);
    }
}

//! The bytes of artifacts: a folder or an object store, addressed by SHA-256.
//!
//! An upload arrives in parts, each an object of its own (`uploads/{digest}/{offset}`) that is there
//! whole or not at all; so an upload that broke off, or whose coordinator died, goes on after the last
//! part, through any coordinator. When the last byte is there the parts are read once more, hashed, and
//! written as one object under the digest's name. Only then does the artifact exist.

mod range;

use std::{fmt, path::Path as FolderPath, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use futures::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload, WriteMultipart, local::LocalFileSystem,
    path::Path, prefix::PrefixStore,
};
use protocol::ArtifactDigest;
use sha2::{Digest, Sha256};

pub use range::{BadRange, requested_range};

/// Bytes per part of an upload. What a broken connection loses is less than one part.
const PART_BYTES: usize = 8 << 20;

/// Parts of uploads that nobody went on with are removed after this long.
const ABANDONED: Duration = Duration::from_secs(3 * 24 * 3600);

/// Bytes named by their digest.
#[derive(Clone)]
pub struct ArtifactStore {
    objects: Arc<dyn ObjectStore>,
    part_bytes: usize,
    /// The longest artifact that is taken.
    most_bytes: u64,
}

/// Why the artifact store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The store's place cannot be used.
    #[error("the artifact store {place} cannot be used: {reason}")]
    Place {
        /// Folder or URL.
        place: String,
        /// Why.
        reason: String,
    },
    /// The upload does not begin where the store's bytes end.
    #[error("the upload goes on at byte {expected}, not at {found}")]
    WrongOffset {
        /// Bytes that are there.
        expected: u64,
        /// Where the sender began.
        found: u64,
    },
    /// What came is not what was announced; it was dropped.
    #[error("the bytes have the digest {found}, not {expected}; they were dropped, send them again from byte 0")]
    WrongDigest {
        /// The digest they were sent under.
        expected: ArtifactDigest,
        /// Their digest.
        found: String,
    },
    /// It is longer than what is taken; what came of it was dropped.
    #[error("the artifact is longer than the {most_bytes} bytes that are taken")]
    TooLarge {
        /// Bytes that are taken.
        most_bytes: u64,
    },
    /// The sender's stream broke off; what came before is kept.
    #[error("the upload broke off after byte {received}; go on from there")]
    BrokenOff {
        /// Bytes that are kept.
        received: u64,
    },
    /// The store failed.
    #[error("the artifact store failed")]
    Objects(#[from] object_store::Error),
}

impl fmt::Debug for ArtifactStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ArtifactStore({})", self.objects)
    }
}

impl ArtifactStore {
    /// Opens a folder (made if need be) or an object store's URL.
    ///
    /// # Errors
    /// When the folder cannot be made, or support for the URL's scheme is not built in.
    pub fn open(place: &str) -> Result<Self, ArtifactError> {
        let fail = |reason: String| ArtifactError::Place {
            place: place.to_owned(),
            reason,
        };
        let folder = match place.split_once("://") {
            None => Some(FolderPath::new(place)),
            Some(("file", path)) => Some(FolderPath::new(path)),
            Some(_) => None,
        };
        let objects: Arc<dyn ObjectStore> = if let Some(folder) = folder {
            std::fs::create_dir_all(folder).map_err(|error| fail(error.to_string()))?;
            let files = LocalFileSystem::new_with_prefix(folder).map_err(|error| fail(error.to_string()))?;
            Arc::new(files.with_fsync(true))
        } else {
            let url = reqwest::Url::parse(place).map_err(|error| fail(error.to_string()))?;
            let options = std::env::vars().map(|(name, value)| (name.to_ascii_lowercase(), value));
            let (objects, prefix) =
                object_store::parse_url_opts(&url, options).map_err(|error| fail(error.to_string()))?;
            Arc::new(PrefixStore::new(objects, prefix))
        };
        Ok(Self {
            objects,
            part_bytes: PART_BYTES,
            most_bytes: u64::MAX,
        })
    }

    /// The same store, taking no artifact longer than this.
    #[must_use]
    pub fn limited_to(self, most_bytes: u64) -> Self {
        Self { most_bytes, ..self }
    }

    /// Whether an artifact of so many bytes is taken.
    ///
    /// # Errors
    /// [`ArtifactError::TooLarge`].
    pub fn admit(&self, bytes: u64) -> Result<(), ArtifactError> {
        let most_bytes = self.most_bytes;
        if bytes <= most_bytes {
            Ok(())
        } else {
            Err(ArtifactError::TooLarge { most_bytes })
        }
    }

    /// How many bytes of an unfinished upload are there.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn received(&self, digest: &ArtifactDigest) -> Result<u64, ArtifactError> {
        Ok(self.parts(digest).await?.last().map_or(0, Part::end))
    }

    /// Takes an upload from byte `offset` to its end, verifies it, and answers its length in bytes.
    ///
    /// # Errors
    /// When the offset is wrong, the stream breaks off or is too long, the digest differs, or the store fails.
    pub async fn upload<E>(
        &self,
        digest: &ArtifactDigest,
        offset: u64,
        body: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<u64, ArtifactError> {
        let expected = self.received(digest).await?;
        if offset != expected && offset != 0 {
            return Err(ArtifactError::WrongOffset {
                expected,
                found: offset,
            });
        }
        if offset == 0 {
            self.forget(digest).await?;
        }
        let mut end = offset;
        let mut part = BytesMut::new();
        let mut body = std::pin::pin!(body);
        while let Some(chunk) = body.next().await {
            let Ok(mut chunk) = chunk else {
                end = self.keep_part(digest, end, part.freeze()).await?;
                return Err(ArtifactError::BrokenOff { received: end });
            };
            let length = end.saturating_add((part.len() + chunk.len()) as u64);
            if let Err(too_large) = self.admit(length) {
                self.forget(digest).await?;
                return Err(too_large);
            }
            while !chunk.is_empty() {
                let room = self.part_bytes - part.len();
                part.extend_from_slice(&chunk.split_to(room.min(chunk.len())));
                if part.len() == self.part_bytes {
                    end = self.keep_part(digest, end, part.split().freeze()).await?;
                }
            }
        }
        if end == 0 {
            return self.finish_small(digest, part.freeze()).await;
        }
        self.keep_part(digest, end, part.freeze()).await?;
        self.finish(digest).await
    }

    /// Keeps bytes that are at hand under their digest, for artifacts the coordinator makes itself.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn put(&self, digest: &ArtifactDigest, bytes: Bytes) -> Result<(), ArtifactError> {
        self.finish_small(digest, bytes).await.map(drop)
    }

    /// Streams an artifact's bytes, or a range of them (`start..end`).
    ///
    /// # Errors
    /// When the artifact is not there, or the store fails.
    pub async fn read(
        &self,
        digest: &ArtifactDigest,
        range: Option<std::ops::Range<u64>>,
    ) -> Result<BoxStream<'static, object_store::Result<Bytes>>, ArtifactError> {
        let options = GetOptions {
            range: range.map(GetRange::Bounded),
            ..GetOptions::default()
        };
        Ok(self
            .objects
            .get_opts(&object_path(digest), options)
            .await?
            .into_stream())
    }

    /// All of an artifact's bytes, where there are at most `most_bytes` of them.
    ///
    /// # Errors
    /// When the artifact is not there or longer, or the store fails.
    pub async fn bytes(&self, digest: &ArtifactDigest, most_bytes: u64) -> Result<Bytes, ArtifactError> {
        let found = self.objects.get(&object_path(digest)).await?;
        if found.meta.size > most_bytes {
            return Err(ArtifactError::TooLarge { most_bytes });
        }
        Ok(found.bytes().await?)
    }

    /// Removes parts of uploads that nobody went on with for days; says how many.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn remove_abandoned(&self, now: DateTime<Utc>) -> Result<usize, ArtifactError> {
        let uploads = self.objects.list(Some(&Path::from("uploads")));
        let old: Vec<Path> = uploads
            .try_filter(|part| std::future::ready((now - part.last_modified).to_std().is_ok_and(|age| age > ABANDONED)))
            .map_ok(|part| part.location)
            .try_collect()
            .await?;
        for part in &old {
            self.objects.delete(part).await?;
        }
        Ok(old.len())
    }

    /// The parts that follow each other from byte 0.
    async fn parts(&self, digest: &ArtifactDigest) -> Result<Vec<Part>, ArtifactError> {
        let listed: Vec<ObjectMeta> = self.objects.list(Some(&upload_path(digest))).try_collect().await?;
        let mut listed: Vec<Part> = listed.into_iter().filter_map(Part::from_object).collect();
        listed.sort_by_key(|part| part.offset);
        let mut end = 0;
        // Two senders of one artifact may cut it differently; any chain that fits is as good.
        listed.retain(|part| {
            let follows = part.offset == end;
            if follows {
                end = part.end();
            }
            follows
        });
        Ok(listed)
    }

    /// Writes a part at `offset`; answers where the next one begins.
    async fn keep_part(&self, digest: &ArtifactDigest, offset: u64, bytes: Bytes) -> Result<u64, ArtifactError> {
        if bytes.is_empty() {
            return Ok(offset);
        }
        let end = offset + bytes.len() as u64;
        let path = upload_path(digest).join(format!("{offset:020}"));
        self.objects.put(&path, PutPayload::from_bytes(bytes)).await?;
        Ok(end)
    }

    /// Verifies and keeps what came in one piece.
    async fn finish_small(&self, digest: &ArtifactDigest, bytes: Bytes) -> Result<u64, ArtifactError> {
        verify(digest, Sha256::new_with_prefix(&bytes))?;
        let length = bytes.len() as u64;
        self.objects
            .put(&object_path(digest), PutPayload::from_bytes(bytes))
            .await?;
        Ok(length)
    }

    /// Joins the parts into the artifact, if their digest is right, and removes them either way.
    async fn finish(&self, digest: &ArtifactDigest) -> Result<u64, ArtifactError> {
        let parts = self.parts(digest).await?;
        let mut hash = Sha256::new();
        let mut whole = WriteMultipart::new(self.objects.put_multipart(&object_path(digest)).await?);
        for part in &parts {
            let mut bytes = self.objects.get(&part.path).await?.into_stream();
            while let Some(chunk) = bytes.try_next().await? {
                hash.update(&chunk);
                whole.wait_for_capacity(4).await?;
                whole.put(chunk);
            }
        }
        if let Err(wrong) = verify(digest, hash) {
            whole.abort().await?;
            self.forget(digest).await?;
            return Err(wrong);
        }
        whole.finish().await?;
        self.forget(digest).await?;
        Ok(parts.last().map_or(0, Part::end))
    }

    /// Removes all parts of an upload.
    async fn forget(&self, digest: &ArtifactDigest) -> Result<(), ArtifactError> {
        let parts: Vec<ObjectMeta> = self.objects.list(Some(&upload_path(digest))).try_collect().await?;
        for part in parts {
            match self.objects.delete(&part.location).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// A piece of an unfinished upload.
struct Part {
    path: Path,
    offset: u64,
    length: u64,
}

impl Part {
    fn from_object(object: ObjectMeta) -> Option<Self> {
        let offset = object.location.filename()?.parse().ok()?;
        Some(Self {
            path: object.location,
            offset,
            length: object.size,
        })
    }

    fn end(&self) -> u64 {
        self.offset + self.length
    }
}

/// The digest of bytes at hand.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> ArtifactDigest {
    hexadecimal(&Sha256::digest(bytes))
        .parse()
        .unwrap_or_else(|_| unreachable!("SHA-256 has 32 bytes"))
}

fn verify(expected: &ArtifactDigest, hash: Sha256) -> Result<(), ArtifactError> {
    let found = hexadecimal(&hash.finalize());
    if found == expected.as_str() {
        Ok(())
    } else {
        Err(ArtifactError::WrongDigest {
            expected: expected.clone(),
            found,
        })
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `sha256/ab/abcd…`: two digits of fan-out keep folders small.
fn object_path(digest: &ArtifactDigest) -> Path {
    Path::from(format!("sha256/{}/{digest}", &digest.as_str()[..2]))
}

fn upload_path(digest: &ArtifactDigest) -> Path {
    Path::from(format!("uploads/{digest}"))
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    struct Fixture {
        store: ArtifactStore,
        folder: tempfile::TempDir,
    }

    impl Fixture {
        /// A store in a folder, with parts of 10 bytes.
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = ArtifactStore::open(folder.path().to_str().unwrap()).unwrap();
            Self {
                store: ArtifactStore {
                    part_bytes: 10,
                    ..store
                },
                folder,
            }
        }

        async fn send(
            &self,
            digest: &ArtifactDigest,
            offset: u64,
            bytes: &[u8],
            breaks: bool,
        ) -> Result<u64, ArtifactError> {
            let mut chunks: Vec<Result<Bytes, &str>> =
                bytes.chunks(7).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
            if breaks {
                chunks.push(Err("connection reset"));
            }
            self.store.upload(digest, offset, stream::iter(chunks)).await
        }

        fn exists(&self, digest: &ArtifactDigest) -> bool {
            self.folder.path().join(object_path(digest).as_ref()).exists()
        }
    }

    const TEXT: &[u8] = b"the quick brown fox jumps over the lazy dog";

    #[tokio::test]
    async fn an_upload_that_broke_off_goes_on_where_it_stopped() {
        let t = Fixture::new();
        let digest = digest_of(TEXT);
        let broken = t.send(&digest, 0, &TEXT[..25], true).await;
        assert!(
            matches!(broken, Err(ArtifactError::BrokenOff { received: 25 })),
            "{broken:?}"
        );
        assert!(!t.exists(&digest), "half an artifact is none");
        assert_eq!(t.store.received(&digest).await.unwrap(), 25);
        let early = t.send(&digest, 20, &TEXT[20..], false).await;
        assert!(matches!(
            early,
            Err(ArtifactError::WrongOffset {
                expected: 25,
                found: 20
            })
        ));
        assert_eq!(
            t.send(&digest, 25, &TEXT[25..], false).await.unwrap(),
            TEXT.len() as u64
        );
        assert_eq!(t.store.bytes(&digest, 1000).await.unwrap(), TEXT);
        assert_eq!(t.store.received(&digest).await.unwrap(), 0, "the parts are gone");
    }

    #[tokio::test]
    async fn bytes_of_another_digest_are_refused_and_dropped() {
        let t = Fixture::new();
        let digest = digest_of(TEXT);
        for wrong in [&b"short"[..], b"longer than one part of the upload"] {
            let refused = t.send(&digest, 0, wrong, false).await;
            assert!(matches!(refused, Err(ArtifactError::WrongDigest { .. })), "{refused:?}");
            assert!(!t.exists(&digest));
            assert_eq!(t.store.received(&digest).await.unwrap(), 0);
        }
        assert!(t.send(&digest, 0, TEXT, false).await.is_ok());
    }

    #[tokio::test]
    async fn what_is_too_long_is_refused_dropped_and_never_read_whole() {
        let t = Fixture::new();
        let digest = digest_of(TEXT);
        let small = ArtifactStore {
            part_bytes: 10,
            ..t.store.clone().limited_to(TEXT.len() as u64 - 1)
        };
        let chunks = || stream::iter(TEXT.chunks(7).map(|chunk| Ok::<_, &str>(Bytes::copy_from_slice(chunk))));
        let refused = small.upload(&digest, 0, chunks()).await;
        assert!(
            matches!(refused, Err(ArtifactError::TooLarge { most_bytes: 42 })),
            "{refused:?}"
        );
        assert_eq!(small.received(&digest).await.unwrap(), 0, "nothing is kept");
        let enough = t.store.clone().limited_to(TEXT.len() as u64);
        assert!(enough.upload(&digest, 0, chunks()).await.is_ok());
        let refused = enough.bytes(&digest, 10).await;
        assert!(
            matches!(refused, Err(ArtifactError::TooLarge { most_bytes: 10 })),
            "{refused:?}"
        );
    }

    #[tokio::test]
    async fn an_upload_may_begin_again_from_byte_0() {
        let t = Fixture::new();
        let digest = digest_of(TEXT);
        let _ = t.send(&digest, 0, b"something else altogether", true).await;
        assert_eq!(t.send(&digest, 0, TEXT, false).await.unwrap(), TEXT.len() as u64);
    }

    #[tokio::test]
    async fn the_empty_artifact_and_whole_parts_are_no_exceptions() {
        let t = Fixture::new();
        for bytes in [&b""[..], &[7; 10], &[7; 30]] {
            let digest = digest_of(bytes);
            assert_eq!(t.send(&digest, 0, bytes, false).await.unwrap(), bytes.len() as u64);
            assert_eq!(t.store.bytes(&digest, 1000).await.unwrap(), bytes);
        }
    }

    #[tokio::test]
    async fn a_range_reads_only_its_bytes() {
        let t = Fixture::new();
        let digest = digest_of(TEXT);
        t.send(&digest, 0, TEXT, false).await.unwrap();
        let chunks: Vec<Bytes> = t
            .store
            .read(&digest, Some(4..9))
            .await
            .unwrap()
            .try_collect()
            .await
            .unwrap();
        assert_eq!(chunks.concat(), b"quick");
    }

    #[tokio::test]
    async fn only_old_parts_are_abandoned() {
        let t = Fixture::new();
        let digest = digest_of(TEXT);
        let _ = t.send(&digest, 0, &TEXT[..25], true).await;
        let now: DateTime<Utc> = std::time::SystemTime::now().into();
        assert_eq!(t.store.remove_abandoned(now).await.unwrap(), 0);
        let later = now + chrono::TimeDelta::days(4);
        assert_eq!(t.store.remove_abandoned(later).await.unwrap(), 3);
        assert_eq!(t.store.received(&digest).await.unwrap(), 0);
    }

    #[test]
    fn an_unknown_scheme_is_refused() {
        let error = ArtifactStore::open("gopher://x").unwrap_err().to_string();
        assert!(error.contains("gopher"), "{error}");
    }
}

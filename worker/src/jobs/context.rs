//! What a job needs from the worker around it, and what it tells while it runs.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use protocol::Figure;
use protocol::artifacts::{ArtifactRef, ArtifactRole};
use protocol::jobs::{CurvePoint, DeviceSeconds};
use tch::Device;

use job_client::files::{is_plain, lay_out};
use job_client::{Client, ClientError, Gang, digest_of};

use super::{JobError, Pulse};
use crate::scoring::vbench::Environment;

/// What is the same for every job of a worker.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where libtorch computes.
    pub device: Device,
    /// Threads of libtorch: part of what makes a training reproducible.
    pub threads: u32,
    /// Folder of clips, latents and artifacts.
    pub cache: PathBuf,
    /// Folder of the trained parts that ship, for jobs that name none.
    pub assets: PathBuf,
    /// Folder of datasets to encode, each a folder of captioned clips and images.
    pub data: PathBuf,
    /// Memory a job may use, in bytes.
    pub memory_bytes: u64,
    /// Where the published package `vbench` runs.
    pub vbench: Option<Environment>,
    /// ONNX Runtime's library; where it is absent, that of `ORT_DYLIB_PATH`.
    pub onnxruntime: Option<PathBuf>,
    /// Python of an environment with the package `coremltools`.
    pub coreml: Option<PathBuf>,
    /// Weights of LPIPS.
    pub lpips: Option<PathBuf>,
}

/// A running job's surroundings.
#[derive(Debug)]
pub struct JobContext {
    /// The worker's settings.
    pub settings: Settings,
    /// What the job tells.
    pub pulse: Arc<Pulse>,
    /// Where an earlier attempt stopped.
    pub checkpoint: Option<ArtifactRef>,
    /// This worker's place where several do the job together.
    pub gang: Option<Gang>,
    /// The socket at which the others find rank 0's store, until the store takes it.
    pub store_socket: Mutex<Option<TcpListener>>,
    client: Client,
    tokio: tokio::runtime::Handle,
    started: Instant,
}

impl JobContext {
    /// Around one attempt.
    #[must_use]
    pub fn new(settings: Settings, pulse: Arc<Pulse>, checkpoint: Option<ArtifactRef>, client: Client) -> Self {
        Self {
            settings,
            pulse,
            checkpoint,
            gang: None,
            store_socket: Mutex::default(),
            client,
            tokio: tokio::runtime::Handle::current(),
            started: Instant::now(),
        }
    }

    /// Seconds since the attempt began.
    #[must_use]
    pub fn elapsed_seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Says what the attempt has held its device for so far.
    pub fn spent(&self, seconds: DeviceSeconds) {
        self.pulse.spent(seconds);
    }

    /// Says how far the job is, and learns whether to go on.
    ///
    /// # Errors
    /// [`JobError::Interrupted`] when it should not.
    pub fn progress(&self, share: f64, status: &str) -> Result<(), JobError> {
        self.pulse.progress(share, status);
        if self.pulse.stops() {
            Err(JobError::Interrupted)
        } else {
            Ok(())
        }
    }

    /// Adds a line to the attempt's log.
    pub fn log(&self, line: &str) {
        self.pulse.write(line);
    }

    /// Tells a point of the curve.
    pub fn curve(&self, point: CurvePoint) {
        self.pulse.curve(point);
    }

    /// Tells figures so far; those of other names stand. What is no finite number is not told.
    pub fn figures(&self, figures: impl IntoIterator<Item = (String, Figure)>) {
        self.pulse.figures(figures);
    }

    /// Keeps a checkpoint; it is uploaded, and told of, while the job goes on. Of a gang, rank 0's is the one.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn save(&self, bytes: &[u8]) -> Result<(), JobError> {
        if self.gang.as_ref().is_some_and(|gang| gang.rank > 0) {
            return Ok(());
        }
        let kept = self.keep(
            ArtifactRole::Checkpoint,
            "checkpoint.safetensors",
            "application/octet-stream",
            bytes,
        )?;
        self.pulse.save(kept);
        Ok(())
    }

    /// Keeps an artifact of the result on disk; it is uploaded with the result.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn keep(
        &self,
        role: ArtifactRole,
        name: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<ArtifactRef, JobError> {
        self.client
            .keep(role, name, media_type, bytes)
            .map_err(JobError::attempt)
    }

    /// As [`Self::keep`] for a file of any size.
    ///
    /// # Errors
    /// Where it cannot be read or kept.
    pub fn keep_file(&self, role: ArtifactRole, media_type: &str, file: &Path) -> Result<ArtifactRef, JobError> {
        self.client.keep_file(role, media_type, file).map_err(JobError::attempt)
    }

    /// Sends a kept artifact now: one that a checkpoint names must be there when the checkpoint is. One that cannot be
    /// sent goes with the result.
    pub fn send_ahead(&self, artifact: &ArtifactRef) {
        if let Err(error) = self.tokio.block_on(self.client.upload(artifact)) {
            tracing::warn!(%error, name = artifact.name, "not uploaded yet");
        }
    }

    /// The bytes of an artifact, from the cache or the coordinator.
    ///
    /// # Errors
    /// Where it cannot be had.
    pub fn fetch(&self, artifact: &ArtifactRef) -> Result<Vec<u8>, JobError> {
        self.try_fetch(artifact).map_err(JobError::attempt)
    }

    /// As [`Self::fetch`], for those who tell errors apart.
    ///
    /// # Errors
    /// Where it cannot be had.
    pub fn try_fetch(&self, artifact: &ArtifactRef) -> Result<Vec<u8>, ClientError> {
        let path = self.fetch_file(artifact)?;
        std::fs::read(&path).map_err(|source| ClientError::Disk { path, source })
    }

    fn fetch_file(&self, artifact: &ArtifactRef) -> Result<PathBuf, ClientError> {
        self.tokio.block_on(self.client.fetch(&artifact.digest))
    }

    /// A folder that holds the trained parts of `dataset` below its name: laid out from the artifacts of the job where
    /// it names some, else the one that ships.
    ///
    /// # Errors
    /// Where an artifact cannot be had, or a name is no plain file name.
    pub fn assets(&self, dataset: &str, base: &[ArtifactRef]) -> Result<PathBuf, JobError> {
        let names = base.iter().map(|part| part.name.as_str());
        if let Some(wrong) = names.chain([dataset]).find(|name| !is_plain(name)) {
            return Err(JobError::Input(format!("`{wrong}` is no plain file name")));
        }
        if base.is_empty() {
            return Ok(self.settings.assets.clone());
        }
        let root = self.settings.cache.join("base").join(key_of(base));
        for part in base {
            let place = root.join(dataset).join(&part.name);
            if !place.exists() {
                lay_out(&self.fetch_file(part).map_err(JobError::attempt)?, &place).map_err(JobError::attempt)?;
            }
        }
        Ok(root)
    }
}

impl JobContext {
    /// As [`Self::assets`] with some files in the place of those of the same name.
    ///
    /// # Errors
    /// As [`Self::assets`].
    pub fn assets_with(
        &self,
        dataset: &str,
        base: &[ArtifactRef],
        instead: &[ArtifactRef],
    ) -> Result<PathBuf, JobError> {
        if instead.is_empty() {
            return self.assets(dataset, base);
        }
        let is_replaced = |name: &str| instead.iter().any(|part| part.name == name);
        let kept = base.iter().filter(|part| !is_replaced(&part.name));
        let parts: Vec<ArtifactRef> = kept.chain(instead).cloned().collect();
        let root = self.assets(dataset, &parts)?;
        if base.is_empty() {
            // What ships stands beside what replaces a part of it.
            let shipped = self.settings.assets.join(dataset);
            for entry in std::fs::read_dir(&shipped).map_err(JobError::attempt)? {
                let file = entry.map_err(JobError::attempt)?.path();
                let name = file.file_name().unwrap_or_default();
                let place = root.join(dataset).join(name);
                if file.is_file() && !place.exists() && !is_replaced(&name.to_string_lossy()) {
                    lay_out(&file, &place).map_err(JobError::attempt)?;
                }
            }
        }
        Ok(root)
    }
}

/// The same files give the same key, in whatever order they are named.
fn key_of(base: &[ArtifactRef]) -> String {
    let mut lines: Vec<String> = base
        .iter()
        .map(|part| format!("{} {}", part.name, part.digest))
        .collect();
    lines.sort();
    digest_of(lines.join("\n").as_bytes()).to_string()
}

#[cfg(test)]
impl JobContext {
    /// A job's surroundings without a coordinator.
    pub(crate) fn alone(tokio: &tokio::runtime::Runtime, cache: &std::path::Path) -> Self {
        let _inside = tokio.enter();
        let settings = Settings {
            device: Device::Cpu,
            threads: 1,
            cache: cache.to_owned(),
            assets: PathBuf::from("shipped"),
            data: cache.join("datasets"),
            memory_bytes: 0,
            vbench: None,
            onnxruntime: None,
            coreml: None,
            lpips: None,
        };
        let client = Client::new("http://127.0.0.1:1", None, cache).unwrap();
        Self::new(settings, Arc::default(), None, client)
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Runtime;

    use super::*;

    fn part(context: &JobContext, name: &str, bytes: &[u8]) -> ArtifactRef {
        let kept = context.keep(ArtifactRole::Base, name, "application/octet-stream", bytes);
        kept.unwrap()
    }

    #[test]
    fn base_files_are_laid_out_under_their_names_and_the_name_of_the_dataset() {
        let folder = tempfile::tempdir().unwrap();
        let tokio = Runtime::new().unwrap();
        let context = JobContext::alone(&tokio, folder.path());
        let base = [
            part(&context, "manifest.json", b"{}"),
            part(&context, "vae.safetensors", b"weights"),
        ];
        let root = context.assets("shapes", &base).unwrap();
        assert_eq!(std::fs::read(root.join("shapes/manifest.json")).unwrap(), b"{}");
        assert_eq!(std::fs::read(root.join("shapes/vae.safetensors")).unwrap(), b"weights");

        let reversed = [base[1].clone(), base[0].clone()];
        assert_eq!(
            context.assets("shapes", &reversed).unwrap(),
            root,
            "the order does not matter"
        );
        let other = [base[0].clone(), part(&context, "vae.safetensors", b"other weights")];
        let other = context.assets("shapes", &other).unwrap();
        assert_ne!(other, root, "the bytes do");
        assert_eq!(
            std::fs::read(other.join("shapes/vae.safetensors")).unwrap(),
            b"other weights"
        );
        assert_eq!(std::fs::read(root.join("shapes/vae.safetensors")).unwrap(), b"weights");
        assert_eq!(context.assets("shapes", &[]).unwrap(), PathBuf::from("shipped"));
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused_for_good() {
        let folder = tempfile::tempdir().unwrap();
        let tokio = Runtime::new().unwrap();
        let context = JobContext::alone(&tokio, folder.path());
        for name in ["../vae.safetensors", "/etc/passwd", "a/b", "..", "", "a/"] {
            let base = [part(&context, name, b"x")];
            let error = context.assets("shapes", &base).unwrap_err();
            assert!(!error.is_worth_another_attempt(), "{name}: {error}");
            let error = context.assets(name, &[part(&context, "x", b"x")]).unwrap_err();
            assert!(!error.is_worth_another_attempt(), "dataset {name}: {error}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_fetched_is_worth_another_attempt() {
        let folder = tempfile::tempdir().unwrap();
        let tokio = Runtime::new().unwrap();
        let context = JobContext::alone(&tokio, folder.path());
        let here = part(&context, "a", b"a");
        let elsewhere = ArtifactRef {
            digest: digest_of(b"elsewhere"),
            name: "b".to_owned(),
            ..here.clone()
        };
        let error = context.assets("shapes", &[here, elsewhere]).unwrap_err();
        assert!(error.is_worth_another_attempt(), "{error}");
    }
}

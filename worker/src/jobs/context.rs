//! What a job needs from the worker around it, and what it tells while it runs.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use protocol::artifacts::{ArtifactRef, ArtifactRole};
use protocol::jobs::CurvePoint;
use tch::Device;
use tokio::sync::Notify;

use super::JobError;
use crate::checkpoint::write_atomically;
use crate::client::{Client, digest_of};

/// The end of the log that travels with a failure.
const LOG_BYTES: usize = 60 * 1024;

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
    /// Memory a job may use, in bytes.
    pub memory_bytes: u64,
}

/// What a job has told since the last heartbeat, and whether it should go on.
#[derive(Debug, Default)]
pub struct Pulse {
    state: Mutex<State>,
    stop: AtomicBool,
    /// Something was told that should not wait for the next heartbeat.
    pub urgent: Notify,
}

/// What the next heartbeat carries.
#[derive(Debug, Default, Clone)]
pub struct State {
    /// Share done, 0 to 1.
    pub progress: f64,
    /// What the job is doing.
    pub status: Option<String>,
    /// New points of the curve.
    pub curve: Vec<CurvePoint>,
    /// The newest checkpoint that the coordinator does not know.
    pub checkpoint: Option<ArtifactRef>,
    log: String,
}

impl Pulse {
    /// Asks the job to end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether the job was asked to end.
    #[must_use]
    pub fn stops(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Takes what is new; progress and status stay.
    #[must_use]
    pub fn take(&self) -> State {
        let mut state = self.lock();
        let (curve, checkpoint) = (std::mem::take(&mut state.curve), state.checkpoint.take());
        State {
            progress: state.progress,
            status: state.status.clone(),
            curve,
            checkpoint,
            log: String::new(),
        }
    }

    /// Puts back what a heartbeat could not deliver.
    pub fn put_back(&self, undelivered: State) {
        let mut state = self.lock();
        let newer = std::mem::replace(&mut state.curve, undelivered.curve);
        state.curve.extend(newer);
        state.checkpoint = state.checkpoint.take().or(undelivered.checkpoint);
    }

    /// The end of the attempt's log.
    #[must_use]
    pub fn log(&self) -> String {
        self.lock().log.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
    client: Client,
    tokio: tokio::runtime::Handle,
}

impl JobContext {
    /// Around one attempt.
    #[must_use]
    pub fn new(settings: Settings, pulse: Arc<Pulse>, checkpoint: Option<ArtifactRef>, client: Client) -> Self {
        Self {
            settings,
            pulse,
            checkpoint,
            client,
            tokio: tokio::runtime::Handle::current(),
        }
    }

    /// Says how far the job is, and learns whether to go on.
    ///
    /// # Errors
    /// [`JobError::Interrupted`] when it should not.
    pub fn progress(&self, share: f64, status: &str) -> Result<(), JobError> {
        let mut state = self.pulse.lock();
        state.progress = share.clamp(0.0, 1.0);
        if state.status.as_deref() != Some(status) {
            state.status = Some(status.to_owned());
        }
        drop(state);
        if self.pulse.stops() {
            Err(JobError::Interrupted)
        } else {
            Ok(())
        }
    }

    /// Adds a line to the attempt's log.
    pub fn log(&self, line: &str) {
        tracing::info!("{line}");
        let log = &mut self.pulse.lock().log;
        log.push_str(&chrono::Utc::now().format("%H:%M:%S ").to_string());
        log.push_str(line);
        log.push('\n');
        if log.len() > LOG_BYTES {
            let cut = log.len() - LOG_BYTES / 2;
            let line_end = log.bytes().enumerate().skip(cut).find(|&(_, byte)| byte == b'\n');
            log.drain(..line_end.map_or(log.len(), |(at, _)| at + 1));
        }
    }

    /// Tells a point of the curve.
    pub fn curve(&self, point: CurvePoint) {
        self.pulse.lock().curve.push(point);
    }

    /// Keeps a checkpoint and has the next heartbeat, which goes out at once, carry it.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn save(&self, bytes: &[u8]) -> Result<(), JobError> {
        let kept = self.keep(
            ArtifactRole::Checkpoint,
            "checkpoint.safetensors",
            "application/octet-stream",
            bytes,
        )?;
        self.pulse.lock().checkpoint = Some(kept);
        self.pulse.urgent.notify_one();
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

    /// The bytes of an artifact, from the cache or the coordinator.
    ///
    /// # Errors
    /// Where it cannot be had.
    pub fn fetch(&self, artifact: &ArtifactRef) -> Result<Vec<u8>, JobError> {
        std::fs::read(self.fetch_file(artifact)?).map_err(JobError::attempt)
    }

    fn fetch_file(&self, artifact: &ArtifactRef) -> Result<PathBuf, JobError> {
        self.tokio
            .block_on(self.client.fetch(&artifact.digest))
            .map_err(JobError::attempt)
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
                lay_out(&self.fetch_file(part)?, &place).map_err(JobError::attempt)?;
            }
        }
        Ok(root)
    }
}

fn is_plain(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|file| file == name)
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

/// Puts a file that never changes in a second place, at once and whole: as a link where the disk can.
fn lay_out(file: &Path, place: &Path) -> std::io::Result<()> {
    if let Some(folder) = place.parent() {
        std::fs::create_dir_all(folder)?;
    }
    match std::fs::hard_link(file, place) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            write_atomically(place, &std::fs::read(file)?)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Runtime;

    use super::*;

    fn point(step: u64) -> CurvePoint {
        CurvePoint { step, loss: 1.0 }
    }

    #[test]
    fn what_a_heartbeat_could_not_deliver_goes_with_the_next_in_order() {
        let pulse = Pulse::default();
        pulse.lock().curve = vec![point(1)];
        let undelivered = pulse.take();
        pulse.lock().curve.push(point(2));
        pulse.put_back(undelivered);
        assert_eq!(pulse.take().curve, [point(1), point(2)]);
        assert!(pulse.take().curve.is_empty());
    }

    /// A job's surroundings without a coordinator.
    fn context(tokio: &Runtime, cache: &Path) -> JobContext {
        let _inside = tokio.enter();
        let settings = Settings {
            device: Device::Cpu,
            threads: 1,
            cache: cache.to_owned(),
            assets: PathBuf::from("shipped"),
            memory_bytes: 0,
        };
        let client = Client::new("http://127.0.0.1:1", None, cache).unwrap();
        JobContext::new(settings, Arc::default(), None, client)
    }

    fn part(context: &JobContext, name: &str, bytes: &[u8]) -> ArtifactRef {
        let kept = context.keep(ArtifactRole::Base, name, "application/octet-stream", bytes);
        kept.unwrap()
    }

    #[test]
    fn a_long_log_keeps_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let tokio = Runtime::new().unwrap();
        let context = context(&tokio, folder.path());
        for line in 0..4000 {
            context.log(&format!("line {line} of a log that is long"));
        }
        let log = context.pulse.log();
        assert!(log.len() <= LOG_BYTES && log.ends_with("line 3999 of a log that is long\n"));
        assert!(log.lines().all(|line| line.contains("line ")), "lines are whole");
    }

    #[test]
    fn base_files_are_laid_out_under_their_names_and_the_name_of_the_dataset() {
        let folder = tempfile::tempdir().unwrap();
        let tokio = Runtime::new().unwrap();
        let context = context(&tokio, folder.path());
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
        let context = context(&tokio, folder.path());
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
        let context = context(&tokio, folder.path());
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

//! What a job needs from the worker around it, and what it tells while it runs.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use protocol::artifacts::{ArtifactRef, ArtifactRole};
use protocol::jobs::{CurvePoint, DeviceSeconds};
use protocol::{Figure, Metrics};
use tch::Device;
use tokio::sync::Notify;

use super::JobError;
use crate::checkpoint::write_atomically;
use crate::client::{Client, ClientError, digest_of};
use crate::distributed::Gang;
use crate::scoring::vbench::Environment;

/// The end of the log that travels with a failure.
const LOG_BYTES: usize = 60 * 1024;
/// The end of the log that travels with a heartbeat.
const HEARTBEAT_LOG_BYTES: usize = 8 * 1024;

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
    /// Weights of LPIPS.
    pub lpips: Option<PathBuf>,
}

/// What a job tells for its heartbeats, and whether it should go on.
#[derive(Debug, Default)]
pub struct Pulse {
    state: Mutex<State>,
    stop: AtomicBool,
    /// Something was told that should not wait for the next heartbeat.
    pub urgent: Notify,
    /// A checkpoint waits for its upload, or the job has ended.
    pub to_upload: Notify,
}

#[derive(Debug, Default)]
struct State {
    news: News,
    saved: Option<ArtifactRef>,
    ended: bool,
    log: String,
    /// Lines of the log ever written, and those that the coordinator knows of.
    lines: u64,
    lines_told: u64,
}

/// What the next heartbeat carries.
#[derive(Debug, Default, Clone)]
pub struct News {
    /// Share done, 0 to 1.
    pub progress: f64,
    /// What the job is doing.
    pub status: Option<String>,
    /// Points of the curve that the coordinator does not know.
    pub curve: Vec<CurvePoint>,
    /// Figures so far.
    pub metrics: Metrics,
    /// What the attempt has held its device for.
    pub device_seconds: DeviceSeconds,
    /// The newest uploaded checkpoint, where the coordinator does not know of it.
    pub checkpoint: Option<ArtifactRef>,
    /// The end of the log, where the coordinator does not know it.
    pub log: Option<String>,
    lines: u64,
}

impl Pulse {
    /// Of a job that is done.
    #[must_use]
    pub fn done() -> Self {
        let pulse = Self::default();
        pulse.lock().news.progress = 1.0;
        pulse
    }

    /// Asks the job to end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether the job was asked to end.
    #[must_use]
    pub fn stops(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// What the next heartbeat carries.
    #[must_use]
    pub fn news(&self) -> News {
        let state = self.lock();
        News {
            log: (state.lines > state.lines_told).then(|| last_lines(&state.log, HEARTBEAT_LOG_BYTES).to_owned()),
            lines: state.lines,
            ..state.news.clone()
        }
    }

    /// Takes out what a heartbeat has delivered; what came meanwhile stays.
    pub fn delivered(&self, delivered: &News) {
        let mut state = self.lock();
        state.lines_told = state.lines_told.max(delivered.lines);
        let news = &mut state.news;
        news.curve.drain(..delivered.curve.len().min(news.curve.len()));
        if news.checkpoint == delivered.checkpoint {
            news.checkpoint = None;
        }
    }

    /// The checkpoint that waits for its upload.
    #[must_use]
    pub fn saved(&self) -> Option<ArtifactRef> {
        self.lock().saved.clone()
    }

    /// Has the next heartbeat, which goes out at once, tell of an uploaded checkpoint.
    pub fn uploaded(&self, checkpoint: ArtifactRef) {
        let mut state = self.lock();
        if state.saved.as_ref() == Some(&checkpoint) {
            state.saved = None;
        }
        state.news.checkpoint = Some(checkpoint);
        drop(state);
        self.urgent.notify_one();
    }

    /// Notes that the job has ended; its last checkpoint is still of use, or not.
    pub fn end(&self, checkpoint_counts: bool) {
        let mut state = self.lock();
        state.ended = true;
        if !checkpoint_counts {
            state.saved = None;
        }
        drop(state);
        self.to_upload.notify_one();
    }

    /// Whether the job has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.lock().ended
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
        self.pulse.lock().news.device_seconds = seconds;
    }

    /// Says how far the job is, and learns whether to go on.
    ///
    /// # Errors
    /// [`JobError::Interrupted`] when it should not.
    pub fn progress(&self, share: f64, status: &str) -> Result<(), JobError> {
        let mut state = self.pulse.lock();
        state.news.progress = share.clamp(0.0, 1.0);
        if state.news.status.as_deref() != Some(status) {
            state.news.status = Some(status.to_owned());
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
        let mut state = self.pulse.lock();
        state.lines += 1;
        let log = &mut state.log;
        log.push_str(&chrono::Utc::now().format("%H:%M:%S ").to_string());
        log.push_str(line);
        log.push('\n');
        if log.len() > LOG_BYTES {
            *log = last_lines(log, LOG_BYTES / 2).to_owned();
        }
    }

    /// Tells a point of the curve.
    pub fn curve(&self, point: CurvePoint) {
        self.pulse.lock().news.curve.push(point);
    }

    /// Tells figures so far; those of other names stand. What is no finite number is not told.
    pub fn figures(&self, figures: impl IntoIterator<Item = (String, Figure)>) {
        let finite = figures
            .into_iter()
            .filter(|(_, figure)| figure.value.is_finite() && figure.standard_error.is_finite());
        self.pulse.lock().news.metrics.extend(finite);
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
        self.pulse.lock().saved = Some(kept);
        self.pulse.to_upload.notify_one();
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

/// The whole lines within the last `bytes` of a log.
fn last_lines(log: &str, bytes: usize) -> &str {
    let Some(cut) = log.len().checked_sub(bytes).filter(|&cut| cut > 0) else {
        return log;
    };
    let line_end = log.bytes().enumerate().skip(cut - 1).find(|&(_, byte)| byte == b'\n');
    &log[line_end.map_or(log.len(), |(at, _)| at + 1)..]
}

pub(super) fn is_plain(name: &str) -> bool {
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
impl JobContext {
    /// A job's surroundings without a coordinator.
    pub(crate) fn alone(tokio: &tokio::runtime::Runtime, cache: &Path) -> Self {
        let _inside = tokio.enter();
        let settings = Settings {
            device: Device::Cpu,
            threads: 1,
            cache: cache.to_owned(),
            assets: PathBuf::from("shipped"),
            data: cache.join("datasets"),
            memory_bytes: 0,
            vbench: None,
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

    fn point(step: u64) -> CurvePoint {
        CurvePoint { step, loss: 1.0 }
    }

    #[test]
    fn what_a_heartbeat_could_not_deliver_goes_with_the_next_in_order() {
        let pulse = Pulse::default();
        pulse.lock().news.curve = vec![point(1)];
        let first = pulse.news();
        pulse.lock().news.curve.push(point(2));
        assert_eq!(pulse.news().curve, [point(1), point(2)], "the first was not delivered");
        pulse.delivered(&first);
        assert_eq!(pulse.news().curve, [point(2)]);
        pulse.delivered(&pulse.news());
        assert!(pulse.news().curve.is_empty());
    }

    fn part(context: &JobContext, name: &str, bytes: &[u8]) -> ArtifactRef {
        let kept = context.keep(ArtifactRole::Base, name, "application/octet-stream", bytes);
        kept.unwrap()
    }

    #[test]
    fn a_long_log_keeps_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let tokio = Runtime::new().unwrap();
        let context = JobContext::alone(&tokio, folder.path());
        for line in 0..4000 {
            context.log(&format!("line {line} of a log that is long"));
        }
        let log = context.pulse.log();
        assert!(log.len() <= LOG_BYTES && log.ends_with("line 3999 of a log that is long\n"));
        assert!(log.lines().all(|line| line.contains("line ")), "lines are whole");
    }

    #[test]
    fn figures_stand_until_the_next_and_only_numbers_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let tokio = Runtime::new().unwrap();
        let context = JobContext::alone(&tokio, folder.path());
        let tell = |name: &str, value| {
            let standard_error = 0.0;
            context.figures([(name.to_owned(), Figure { value, standard_error })]);
        };
        tell("train_loss", 0.5);
        tell("quality", 0.7);
        tell("train_loss", 0.25);
        tell("color", f64::NAN);
        let news = context.pulse.news();
        context.pulse.delivered(&news);
        let told = context.pulse.news().metrics;
        let told: Vec<_> = told
            .iter()
            .map(|(name, figure)| (name.as_str(), figure.value))
            .collect();
        assert_eq!(told, [("quality", 0.7), ("train_loss", 0.25)]);
    }

    #[test]
    fn the_end_of_the_log_goes_with_heartbeats_until_it_is_delivered() {
        let folder = tempfile::tempdir().unwrap();
        let tokio = Runtime::new().unwrap();
        let context = JobContext::alone(&tokio, folder.path());
        assert_eq!(context.pulse.news().log, None);
        for line in 0..400 {
            context.log(&format!("line {line} of a log that is long"));
        }
        let first = context.pulse.news();
        let told = first.log.clone().unwrap();
        assert!(told.len() <= HEARTBEAT_LOG_BYTES && told.len() > HEARTBEAT_LOG_BYTES / 2);
        assert!(told.lines().all(|line| line.contains("line ")), "lines are whole");
        context.log("a line during the heartbeat");
        context.pulse.delivered(&first);
        let second = context.pulse.news();
        assert!(second.log.as_ref().unwrap().ends_with("a line during the heartbeat\n"));
        context.pulse.delivered(&second);
        assert_eq!(context.pulse.news().log, None);
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

//! A coordinator without its background tasks: each step happens when a test says so.

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, TimeDelta};
use protocol::{
    ArtifactDigest, Figure, JobId, LeaseToken, Metrics, SearchId, WorkerId,
    devices::{Device, RuntimeName, WorkerRegistration},
    jobs::{
        DeviceSeconds, EvaluateOutcome, JobInput, JobKind, JobResult, JobView, Outcome, ProfileInput, ProfileOutcome,
        VerifyOutcome,
    },
    leases::{FailureReport, LeaseRequest, LeasedJob, ResultReport},
    luts::{EntryOutcome, EntryUpload},
    searches::{CandidateView, NewSearch, SearchState},
};
use sqlx::PgPool;
use temponas_server::{
    app::{App, Clock},
    artifacts::{ArtifactStore, digest_of},
    config::Config,
    dispatch::{self, DispatchError, Rules},
    event_hub::EventHub,
    metrics::Metrics as Counters,
    search::{self, Caches, views},
    store::{Store, artifacts::StoredArtifact, jobs::JobFilter, searches::SearchRow, workers},
};

/// Three positions with three choices each, evaluated by whoever takes the job.
pub(crate) const NAMED: &str = r#"
name = "named"
title = "Three named positions"
kind = "categorical"
positions = ["a", "b", "c"]

[[choices]]
name = "none"
code = "0"

[[choices]]
name = "small"
code = "1"

[[choices]]
name = "large"
code = "2"

[structure]
null = "0"

[[objectives]]
metric = "quality"
direction = "maximise"
range = [0, 1]

[[objectives]]
metric = "size"
direction = "minimise"
range = [0, 7]

[search]
strategy = "nsga2"
seed = 1
width = 4
max_evaluations = 20
finalists = 0

[search.nsga2]
population = 4
crossover = 0.9
"#;

/// The smallest temporal space that ships.
pub(crate) const SHAPES: &str = include_str!("../../../search-spaces/spaces/shapes-tiny.toml");

pub(crate) const LEASE: TimeDelta = TimeDelta::seconds(30);
pub(crate) const SECOND: TimeDelta = TimeDelta::seconds(1);

pub(crate) struct Harness {
    pub(crate) app: Arc<App>,
    folder: Arc<tempfile::TempDir>,
    pool: PgPool,
}

impl Harness {
    pub(crate) fn new(pool: PgPool) -> Self {
        Self::on(
            pool,
            Arc::new(tempfile::tempdir().unwrap()),
            Clock::manual(DateTime::UNIX_EPOCH),
        )
    }

    fn on(pool: PgPool, folder: Arc<tempfile::TempDir>, clock: Clock) -> Self {
        let config = Config::for_folder(folder.path()).unwrap();
        let app = Arc::new(App {
            store: Store::new(pool.clone()),
            artifacts: ArtifactStore::open(&config.artifacts).unwrap(),
            clock,
            events: EventHub::start(pool.clone()),
            metrics: Counters::default(),
            searches: Caches::default(),
            config,
        });
        Self { app, folder, pool }
    }

    /// Another coordinator on the same database and artifacts.
    pub(crate) fn another(&self) -> Self {
        Self::on(self.pool.clone(), self.folder.clone(), self.app.clock.clone())
    }

    pub(crate) fn rules(&self) -> Rules {
        Rules::of(&self.app.config)
    }

    pub(crate) fn pass(&self, time: TimeDelta) {
        self.app.clock.advance(time);
    }

    /// A worker that evaluates, on a device of its own name.
    pub(crate) async fn worker(&self, name: &str) -> WorkerId {
        self.worker_on(name, &[JobKind::Evaluate]).await
    }

    /// A worker that brings both kinds of evaluators there are.
    pub(crate) async fn worker_on(&self, device: &str, kinds: &[JobKind]) -> WorkerId {
        self.worker_with(device, kinds, &["built-in", "own"]).await
    }

    pub(crate) async fn worker_with(&self, device: &str, kinds: &[JobKind], evaluators: &[&str]) -> WorkerId {
        self.worker_running(device, kinds, evaluators, runtime()).await
    }

    pub(crate) async fn worker_running(
        &self,
        device: &str,
        kinds: &[JobKind],
        evaluators: &[&str],
        runtime: RuntimeName,
    ) -> WorkerId {
        let worker = WorkerRegistration {
            id: WorkerId::new(),
            name: format!("worker on {device}"),
            device: Device {
                name: device.to_owned(),
                description: String::new(),
                memory_bytes: Some(1 << 30),
            },
            runtime: Some(runtime),
            kinds: kinds.to_vec(),
            evaluators: evaluators.iter().map(|name| (*name).to_owned()).collect(),
            memory_bytes: 1 << 30,
        };
        let now = self.app.clock.now();
        let mut tx = self.app.store.begin().await.unwrap();
        workers::register(&mut tx, &worker, now).await.unwrap();
        tx.commit(now).await.unwrap();
        worker.id
    }

    /// A job for the worker, if there is one now.
    pub(crate) async fn claim(&self, worker: WorkerId) -> Option<LeasedJob> {
        let request = LeaseRequest {
            worker_id: worker,
            wait_seconds: 0,
        };
        let app = &self.app;
        dispatch::lease(&app.store, &app.events, &app.clock, self.rules(), &request)
            .await
            .unwrap()
    }

    pub(crate) async fn submit(&self, space: &str) -> SearchId {
        self.try_submit(&new_search(space)).await.unwrap()
    }

    pub(crate) async fn try_submit(&self, new: &NewSearch) -> Result<SearchId, search::SearchError> {
        Ok(search::submit(&self.app, new, None).await?.id)
    }

    /// Reports a result without moving the search on, as a coordinator does that dies in between.
    pub(crate) async fn report(&self, job: &LeasedJob, outcome: Outcome) -> Result<SearchId, DispatchError> {
        self.report_as(job.job_id, job.lease_token, outcome).await
    }

    pub(crate) async fn report_as(
        &self,
        job: JobId,
        lease_token: LeaseToken,
        outcome: Outcome,
    ) -> Result<SearchId, DispatchError> {
        let search = self.report_any(job, lease_token, outcome).await?;
        Ok(search.unwrap())
    }

    /// Reports a result of a job that may belong to no search.
    pub(crate) async fn report_any(
        &self,
        job: JobId,
        lease_token: LeaseToken,
        outcome: Outcome,
    ) -> Result<Option<SearchId>, DispatchError> {
        let device_seconds = DeviceSeconds {
            train: 2.0,
            sample: 1.0,
            score: 0.5,
            profile: 0.0,
        };
        let result = JobResult {
            device_seconds,
            artifacts: Vec::new(),
            outcome,
        };
        self.send(job, ResultReport { lease_token, result }).await
    }

    /// Sends a report as it is.
    pub(crate) async fn send(&self, job: JobId, report: ResultReport) -> Result<Option<SearchId>, DispatchError> {
        dispatch::succeed(&self.app.store, job, &report, self.app.clock.now()).await
    }

    /// Does a job and moves the search on.
    pub(crate) async fn finish(&self, job: &LeasedJob) {
        let search = self.report(job, done(job)).await.unwrap();
        search::advance(&self.app, search).await.unwrap();
    }

    pub(crate) async fn fail(&self, job: &LeasedJob, error: &str, retry: bool, released: bool) {
        let search = self.report_failure(job, error, retry, released).await.unwrap();
        search::advance(&self.app, search).await.unwrap();
    }

    /// Ends an attempt at a job that may belong to no search; it may be tried again.
    pub(crate) async fn fail_any(&self, job: &LeasedJob, error: &str) {
        self.report_failure(job, error, true, false).await;
    }

    async fn report_failure(&self, job: &LeasedJob, error: &str, retry: bool, released: bool) -> Option<SearchId> {
        let report = FailureReport {
            lease_token: job.lease_token,
            error: error.to_owned(),
            log: Some(format!("log of {error}")),
            retry,
            released,
            device_seconds: DeviceSeconds::default(),
        };
        let now = self.app.clock.now();
        dispatch::fail(&self.app.store, self.rules(), job.job_id, &report, now)
            .await
            .unwrap()
    }

    /// Does everything that the worker is given until there is nothing more.
    pub(crate) async fn work_off(&self, worker: WorkerId) -> usize {
        let mut done = 0;
        while let Some(job) = self.claim(worker).await {
            self.finish(&job).await;
            done += 1;
        }
        done
    }

    /// Does everything that the worker is given until the search is done.
    pub(crate) async fn work_off_until_done(&self, search: SearchId, worker: WorkerId) {
        while self.state(search).await == SearchState::Searching {
            self.work_off(worker).await;
        }
    }

    pub(crate) async fn search(&self, id: SearchId) -> SearchRow {
        self.app.store.search(id).await.unwrap().unwrap()
    }

    pub(crate) async fn state(&self, id: SearchId) -> SearchState {
        self.search(id).await.state
    }

    pub(crate) async fn candidates(&self, id: SearchId) -> Vec<CandidateView> {
        let rows = self.app.store.candidates(id, None, None).await.unwrap();
        rows.into_iter().map(|row| views::candidate(row, &[])).collect()
    }

    /// Architectures in the order of their numbers.
    pub(crate) async fn architectures(&self, id: SearchId) -> Vec<String> {
        self.candidates(id)
            .await
            .into_iter()
            .map(|candidate| candidate.architecture)
            .collect()
    }

    pub(crate) async fn job(&self, id: JobId) -> JobView {
        self.app
            .store
            .job_views(JobFilter::One(id), 1)
            .await
            .unwrap()
            .pop()
            .unwrap()
    }

    pub(crate) async fn jobs(&self, search: SearchId) -> Vec<JobView> {
        self.app
            .store
            .job_views(JobFilter::OfSearch(search, None), 1000)
            .await
            .unwrap()
    }

    /// Stores bytes as an artifact.
    pub(crate) async fn upload(&self, bytes: &[u8]) -> ArtifactDigest {
        let digest = digest_of(bytes);
        let body = futures::stream::iter([Ok::<_, std::io::Error>(bytes::Bytes::copy_from_slice(bytes))]);
        let length = self.app.artifacts.upload(&digest, 0, body).await.unwrap();
        let stored = StoredArtifact {
            media_type: "text/csv".to_owned(),
            bytes: length,
        };
        self.app
            .store
            .add_artifact(&digest, &stored, self.app.clock.now())
            .await
            .unwrap();
        digest
    }
}

pub(crate) fn runtime() -> RuntimeName {
    RuntimeName {
        name: "libtorch-cpu-1t".to_owned(),
        version: "2.11.0".to_owned(),
    }
}

pub(crate) fn new_search(space: &str) -> NewSearch {
    NewSearch {
        space: space.to_owned(),
        device: None,
        runtime: None,
        table: None,
        seed: None,
        name: None,
        priority: 0,
        base: Vec::new(),
    }
}

/// What an able worker answers: figures that follow from the input alone.
pub(crate) fn done(job: &LeasedJob) -> Outcome {
    match &job.input {
        JobInput::Evaluate(input) => evaluated(&input.architecture),
        JobInput::Profile(input) => profiled(input),
        JobInput::Verify(input) => {
            let metrics = figures(&[
                ("latency_ms", 20.0 + cost(&input.architecture)),
                ("peak_memory_bytes", 2e6),
            ]);
            Outcome::Verify(VerifyOutcome {
                runtime: runtime(),
                metrics,
                latency_ms_samples: vec![20.0],
                out_of_memory: None,
            })
        }
        JobInput::Lookup(input) => panic!("the coordinator looks {} up itself", input.architecture),
        other => panic!("a search asks for no {} jobs", other.kind()),
    }
}

/// Quality and size pull in different directions, and not at every position alike: some architectures lose in both.
pub(crate) fn evaluated(architecture: &str) -> Outcome {
    let metrics = figures(&[("quality", quality(architecture)), ("size", cost(architecture))]);
    Outcome::Evaluate(EvaluateOutcome {
        metrics,
        evaluator: "test".to_owned(),
    })
}

fn quality(architecture: &str) -> f64 {
    let gain: f64 = weighted(architecture, |position| 1.0 / (1.0 + position as f64));
    1.0 - (-0.3 * gain).exp()
}

fn cost(architecture: &str) -> f64 {
    weighted(architecture, |position| 1.0 + 0.1 * position as f64) / 6.0
}

fn weighted(architecture: &str, weight: impl Fn(usize) -> f64) -> f64 {
    architecture
        .bytes()
        .enumerate()
        .map(|(position, code)| f64::from(code % 16) * weight(position))
        .sum()
}

fn figures(figures: &[(&str, f64)]) -> Metrics {
    let figure = |value| Figure {
        value,
        standard_error: 0.0,
    };
    figures
        .iter()
        .map(|(name, value)| ((*name).to_owned(), figure(*value)))
        .collect()
}

fn profiled(input: &ProfileInput) -> Outcome {
    let entries = input.blocks.iter().map(|block| EntryUpload {
        block: block.clone(),
        dtype: "f32".to_owned(),
        outcome: EntryOutcome::Measured {
            latency_ms: vec![1.0, 1.1, 0.9],
            peak_memory_bytes: vec![1e5, 1e5, 1e5],
        },
    });
    Outcome::Profile(ProfileOutcome {
        runtime: runtime(),
        entries: entries.collect(),
    })
}

/// A table over the named space's positions, one row an architecture.
pub(crate) fn table() -> String {
    let codes = ["0", "1", "2"];
    let mut rows = BTreeMap::new();
    for a in codes {
        for b in codes {
            for c in codes {
                let name = format!("{a}{b}{c}");
                let size = cost(&name);
                rows.insert(name.clone(), (quality(&name), size));
            }
        }
    }
    let lines = rows
        .into_iter()
        .map(|(name, (quality, size))| format!("{name},{quality},{size}\n"));
    format!("arch,accuracy,size\n{}", lines.collect::<String>())
}

/// The named space as a table space.
pub(crate) fn table_space() -> String {
    NAMED
        .replace("kind = \"categorical\"", "kind = \"table\"")
        .replace("metric = \"quality\"", "metric = \"accuracy\"")
        .replace("range = [0, 1]\n", "")
        .replace("range = [0, 7]\n", "")
        .replace(
            "[structure]",
            "[table]\nkey = \"arch\"\nknown = [\"size\"]\n\n[structure]",
        )
}

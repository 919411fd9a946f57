//! From published weights and a folder of clips to a searched and scored video model, with the programs a user has: the
//! paper's path at the smallest sizes.

mod user;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use end_to_end::{Coordinator, Process, start_worker_with};
use protocol::{
    JobId, Page, SearchId,
    jobs::{JobKind, JobState, JobView},
    searches::{CandidateState, CandidateView, SearchState},
};
use serde_json::Value;
use user::User;

const DEVICE: &str = "test-machine";
const RUNTIME: &str = "libtorch-cpu-1t@2.11.0";
/// For a machine that does much else meanwhile; alone it takes a tenth.
const PATIENCE: Duration = Duration::from_secs(600);

/// The Python with the package `vbench` that `make test` lays out, or the one that is named; none where it could not be,
/// or where there is no ffmpeg to write videos.
fn vbench() -> Option<PathBuf> {
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let cache = named("TEMPONAS_CACHE").map_or_else(
        || PathBuf::from(named("HOME").unwrap_or_default()).join(".cache/temponas"),
        PathBuf::from,
    );
    let python = named("TEMPONAS_VBENCH_PYTHON").map_or_else(|| cache.join("vbench-0.1.5/bin/python"), PathBuf::from);
    let ffmpeg = named("TEMPONAS_FFMPEG").unwrap_or_else(|| "ffmpeg".into());
    if !python.exists() {
        eprintln!("the search is skipped: no environment with the package vbench; scripts/vbench-env makes one");
        return None;
    }
    // A cache may outlive the system's PyTorch that the environment builds on.
    let works = Command::new(&python)
        .args(["-W", "ignore", "-c", "import vbench.temporal_flickering"])
        .output();
    if !works.is_ok_and(|output| output.status.success()) {
        eprintln!("the search is skipped: {} cannot import vbench", python.display());
        return None;
    }
    if Command::new(ffmpeg).arg("-version").output().is_err() {
        eprintln!("the search is skipped: no ffmpeg on PATH, and none named by TEMPONAS_FFMPEG");
        return None;
    }
    Some(python)
}

/// The coordinator with its workers, which share nothing but the folder of clips.
struct Place {
    coordinator: Coordinator,
    workers: Vec<Process>,
    folder: PathBuf,
    data: PathBuf,
    vbench: Option<PathBuf>,
}

impl Place {
    async fn new(folder: &Path, user: &User) -> Result<Self> {
        let coordinator = Coordinator::start(&folder.join("coordinator")).await?;
        let device = serde_json::json!({ "name": DEVICE, "description": "the machine of this test" });
        coordinator.post::<Value>("/v1/devices", &device).await?;
        Ok(Self {
            coordinator,
            workers: Vec::new(),
            folder: folder.to_owned(),
            data: user.data.clone(),
            vbench: vbench(),
        })
    }

    /// Starts a worker and waits until the coordinator knows it.
    async fn start_worker(&mut self) -> Result<()> {
        let known = self.count_workers().await?;
        let mut flags = vec![("--data-dir", self.data.as_path())];
        flags.extend(self.vbench.as_deref().map(|python| ("--vbench-python", python)));
        let mut worker = start_worker_with(&self.coordinator, DEVICE, &self.cache(self.workers.len()), &flags)?;
        while self.count_workers().await? == known {
            let log = || fs::read_to_string(self.cache(self.workers.len()).with_extension("worker.log"));
            ensure!(!worker.has_ended()?, "the worker ended:\n{}", log().unwrap_or_default());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.workers.push(worker);
        Ok(())
    }

    async fn count_workers(&self) -> Result<usize> {
        let workers: Page<Value> = self.coordinator.get("/v1/workers?limit=100").await?;
        Ok(workers.items.len())
    }

    fn cache(&self, worker: usize) -> PathBuf {
        self.folder.join(format!("worker-{worker}"))
    }

    /// What all workers have logged.
    fn logs(&self) -> Vec<String> {
        let log = |worker| fs::read_to_string(self.cache(worker).with_extension("worker.log")).unwrap_or_default();
        (0..self.workers.len()).map(log).collect()
    }

    async fn job(&self, id: JobId) -> Result<JobView> {
        self.coordinator.get(&format!("/v1/jobs/{id}")).await
    }

    /// Waits until a job is as wished; tells why it failed if it did.
    async fn wait(&self, id: JobId, wished: impl Fn(&JobView) -> bool) -> Result<JobView> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let job = self.job(id).await?;
            if wished(&job) {
                return Ok(job);
            }
            let is_late = Instant::now() > deadline;
            if is_late || matches!(job.state, JobState::Failed | JobState::Succeeded) {
                let logs = self.logs().join("\n\n");
                bail!("late: {is_late}; the job stands at {job:#?}; the workers say:\n{logs}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Puts what a job made into a folder.
    fn fetch(&self, id: &str, folder: &Path) -> Result<()> {
        let arguments = ["job", id, "--fetch", text(folder)?];
        self.coordinator.temponas(&arguments).map(drop)
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the temporary folder's name is no text")
}

fn first_line(printed: &str) -> Result<&str> {
    printed.lines().next().context("nothing was printed")
}

fn read(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(serde_json::from_str(&text)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn published_weights_and_clips_become_a_searched_and_scored_model() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let user = User::new(folder)?;
    let printed = user.import().context("importing the weights")?;
    ensure!(printed.contains("is ready"), "import: {printed}");

    let mut place = Place::new(folder, &user).await?;
    place.start_worker().await?;
    place.start_worker().await?;
    encode(&place, &user).context("encoding the clips")?;
    prune(&mut place, &user).await.context("pruning the backbone")?;
    if place.vbench.is_none() {
        return Ok(());
    }
    let best = search(&place, &user).await.context("searching")?;
    evaluate(&place, &user, &best).context("evaluating the best candidate")?;
    nothing_is_left_behind(&place)
}

/// The clips become latents in two buckets, which then lie beside the parts that made them.
fn encode(place: &Place, user: &User) -> Result<()> {
    let mut arguments = vec![
        "encode",
        User::CLIPS,
        "--parts",
        User::FULL,
        "--assets",
        text(&user.parts)?,
    ];
    arguments.extend(["--bucket", "17x32x32@10", "--bucket", "17x32x48@10", "--watch"]);
    let printed = place.coordinator.temponas(&arguments)?;
    let parts = user.parts.join(User::FULL);
    place.fetch(first_line(&printed)?, &parts)?;
    let index = read(&parts.join("index.json"))?;
    let clips = index["clips"].as_array().context("the index has no clips")?;
    for bucket in [0, 1] {
        let count = clips.iter().filter(|clip| clip["bucket"] == bucket).count();
        ensure!(
            count == 6,
            "{count} clips of bucket {bucket} were encoded, not 6: {printed}"
        );
    }
    Ok(())
}

/// Two workers prune together; one dies meanwhile, and a fresh one takes its place. The parts with the pruned backbone
/// keep the latents, which do not depend on it.
async fn prune(place: &mut Place, user: &User) -> Result<()> {
    let mut arguments = vec!["prune", text(&user.space)?, "--recipe", text(&user.recipe)?];
    arguments.extend(["--parts", User::FULL, "--assets", text(&user.parts)?, "--ranks", "2"]);
    let printed = place.coordinator.temponas(&arguments)?;
    let id = first_line(&printed)?;
    let job: JobId = id.parse()?;
    place
        .wait(job, |job| job.state == JobState::Leased && job.progress > 0.3)
        .await
        .context("waiting for the middle of the training")?;
    place.workers[1].kill()?;
    place.start_worker().await?;
    let ended = place
        .wait(job, |job| job.state == JobState::Succeeded)
        .await
        .context("waiting for the end after a worker was killed")?;

    let errors: Vec<Option<&str>> = ended.attempts.iter().map(|attempt| attempt.error.as_deref()).collect();
    ensure!(
        matches!(errors[..], [Some(_), None]),
        "the first attempt fails, the second does not: {errors:?}"
    );
    let logs = place.logs();
    let resumed: Vec<usize> = (0..logs.len())
        .filter(|&worker| logs[worker].contains("going on from a checkpoint"))
        .collect();
    ensure!(
        resumed == [0, 2],
        "workers {resumed:?} went on from the checkpoint:\n{}",
        logs.join("\n\n")
    );

    let (full, pruned) = (user.parts.join(User::FULL), user.parts.join(User::PRUNED));
    fs::create_dir_all(&pruned)?;
    for file in fs::read_dir(&full)? {
        let file = file?;
        fs::hard_link(file.path(), pruned.join(file.file_name()))?;
    }
    place.fetch(id, &pruned)?;
    let channels = |parts: &Path| -> Result<Value> {
        Ok(read(&parts.join("manifest.json"))?["recipe"]["backbone"]["channels"].clone())
    };
    ensure!(
        channels(&pruned)? == serde_json::json!([16, 24]),
        "{}",
        channels(&pruned)?
    );
    ensure!(
        channels(&full)? == serde_json::json!([16, 32, 32]),
        "the full parts were changed"
    );
    Ok(())
}

/// Two workers train each candidate together from the shards, and the published package scores it.
async fn search(place: &Place, user: &User) -> Result<CandidateView> {
    let id = place.coordinator.submit(&user.space, &user.parts, DEVICE, RUNTIME)?;
    let done = place
        .coordinator
        .wait(id, PATIENCE, |view| view.state == SearchState::Done)
        .await;
    if let Err(error) = done {
        bail!("{error:#}; the workers say:\n{}", place.logs().join("\n\n"));
    }
    let front = place.coordinator.front(id).await?;
    ensure!(!front.points.is_empty(), "the front is empty");
    for job in evaluations(place, id).await? {
        ensure!(job.ranks == 2 && job.state == JobState::Succeeded, "{job:#?}");
    }
    let candidates = place.coordinator.candidates(id).await?;
    let mut evaluated: Vec<CandidateView> = candidates
        .into_iter()
        .filter(|candidate| candidate.state == CandidateState::Evaluated)
        .collect();
    ensure!(
        evaluated.len() == 3,
        "{} candidates were evaluated, not 3",
        evaluated.len()
    );
    for candidate in &evaluated {
        let quality = candidate.measured.get("quality").map(|figure| figure.value);
        ensure!(
            quality.is_some_and(|quality| quality > 0.0 && quality <= 1.0),
            "{}: {quality:?}",
            candidate.architecture
        );
        let by = candidate.evaluator.as_deref().unwrap_or_default();
        ensure!(
            by.starts_with("vbench 0.1"),
            "{} was scored by `{by}`",
            candidate.architecture
        );
    }
    // The backbone alone has no weights to tell apart.
    evaluated.retain(|candidate| candidate.architecture.contains(['c', 's']));
    let quality = |candidate: &CandidateView| candidate.measured["quality"].value;
    evaluated.sort_by(|a, b| quality(a).total_cmp(&quality(b)));
    evaluated.pop().context("no candidate has temporal layers")
}

async fn evaluations(place: &Place, search: SearchId) -> Result<Vec<JobView>> {
    let path = format!("/v1/searches/{search}/jobs?limit=100");
    let jobs: Page<JobView> = place.coordinator.get(&path).await?;
    let mut jobs = jobs.items;
    jobs.retain(|job| job.kind == JobKind::Evaluate);
    Ok(jobs)
}

/// The best candidate's row stands below the paper's.
fn evaluate(place: &Place, user: &User, best: &CandidateView) -> Result<()> {
    let made = place.folder.join("best");
    let job = best.job_id.context("the candidate has no job")?.to_string();
    place.fetch(&job, &made)?;
    let weights = made.join("weights.safetensors");
    let mut arguments = vec!["evaluate", text(&user.space)?, "--architecture", &best.architecture];
    arguments.extend(["--weights", text(&weights)?, "--assets", text(&user.parts)?]);
    arguments.extend([
        "--dimensions",
        "temporal_flickering",
        "--prompts",
        "2",
        "--videos-per-prompt",
        "1",
    ]);
    arguments.extend(["--sample-steps", "2", "--guidance", "4", "--seed", "2", "--watch"]);
    let printed = place.coordinator.temponas(&arguments)?;
    let row = |name: &str| printed.lines().find(|line| line.contains(name));
    ensure!(
        printed.contains("scored by vbench 0.1") && row("ours").is_some(),
        "no row of the model:\n{printed}"
    );
    // Asked for with the search's settings, it scores as it did there.
    let score = printed
        .lines()
        .find_map(|line| line.strip_prefix("temporal_flickering"));
    let score: f64 = score
        .and_then(|rest| rest.split_whitespace().next())
        .context("no temporal_flickering is printed")?
        .parse()?;
    let in_search = best.measured["temporal_flickering"].value;
    ensure!(
        (score - in_search).abs() < 1e-9,
        "{score} here, {in_search} in the search"
    );
    Ok(())
}

fn nothing_is_left_behind(place: &Place) -> Result<()> {
    let work = |worker| fs::read_dir(place.cache(worker).join("vbench")).into_iter().flatten();
    let left: Vec<_> = (0..place.workers.len())
        .flat_map(work)
        .flatten()
        .map(|file| file.path())
        .collect();
    ensure!(left.is_empty(), "{left:?} are of no more use");
    Ok(())
}

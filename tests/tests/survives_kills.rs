//! A search whose worker, coordinator and Postgres are killed ends like one that nobody disturbed.

use std::{collections::BTreeMap, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use end_to_end::{Coordinator, program, repository, start_worker};
use protocol::{
    Metrics, Page, SearchId,
    jobs::{JobKind, JobState, JobView},
    searches::{CandidateState, CandidateView, SearchState},
};

const DEVICE: &str = "test-machine";
const RUNTIME: &str = "libtorch-cpu-1t@2.11.0";
/// For a machine that does much else meanwhile; alone it takes a tenth.
const PATIENCE: Duration = Duration::from_secs(900);

/// The demo's space with fewer and smaller steps, fewer prompts and evaluations: the same code in a minute.
fn small_space() -> Result<String> {
    let text = std::fs::read_to_string(repository().join("search-spaces/spaces/shapes-tiny.toml"))?;
    let mut space: toml::Table = text.parse()?;
    let mut set = |section: &str, key: &str, value: i64| -> Result<()> {
        let table = space
            .get_mut(section)
            .and_then(toml::Value::as_table_mut)
            .context("no such section")?;
        ensure!(
            table.insert(key.to_owned(), value.into()).is_some(),
            "{section}.{key} is not set in the space"
        );
        Ok(())
    };
    set("search", "max_evaluations", 8)?;
    set("search", "finalists", 2)?;
    set("evaluation", "steps", 24)?;
    set("evaluation", "batch", 2)?;
    set("evaluation", "checkpoint_every", 6)?;
    set("evaluation", "prompts", 3)?;
    set("evaluation", "videos_per_prompt", 1)?;
    set("evaluation", "sample_steps", 4)?;
    Ok(toml::to_string(&space)?)
}

/// The shipped parts with the latents of the training clips beside them, so that no worker has to encode clips.
fn parts_with_latents(root: &Path) -> Result<()> {
    let (shipped, folder) = (repository().join("assets/shapes"), root.join("shapes"));
    std::fs::create_dir_all(&folder)?;
    for file in std::fs::read_dir(shipped)? {
        let file = file?;
        std::fs::copy(file.path(), folder.join(file.file_name()))?;
    }
    if folder.join("latents.safetensors").exists() {
        return Ok(());
    }
    let mut command = Command::new(program("temponas-worker")?);
    command.args(["latents", "--dataset", "shapes", "--assets"]).arg(root);
    command.arg("--cache").arg(root.join("cache"));
    let output = command.output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "temponas-worker latents: {complaint}");
    Ok(())
}

/// What must not depend on time, machine load or deaths.
#[derive(Debug, PartialEq)]
struct Deterministic {
    number: u64,
    architecture: String,
    state: CandidateState,
    parent: Option<u64>,
    predicted: Metrics,
    measured: Metrics,
}

/// What a training took, which follows the machine and where the attempt began.
const COSTS: [&str; 3] = ["train_peak_memory_bytes", "train_step_ms", "train_step_spread_ms"];

impl From<CandidateView> for Deterministic {
    fn from(mut candidate: CandidateView) -> Self {
        candidate.measured.retain(|name, _| !COSTS.contains(&name.as_str()));
        Self {
            number: candidate.number,
            architecture: candidate.architecture,
            state: candidate.state,
            parent: candidate.parent,
            predicted: candidate.predicted,
            measured: candidate.measured,
        }
    }
}

/// How a search ended.
struct Ended {
    candidates: Vec<Deterministic>,
    front: Vec<String>,
    /// What was measured whole, by architecture.
    verified: BTreeMap<String, Metrics>,
}

async fn outcome(coordinator: &Coordinator, search: SearchId) -> Result<Ended> {
    let candidates = coordinator.candidates(search).await?;
    let verified = candidates
        .iter()
        .filter(|candidate| !candidate.verified.is_empty())
        .map(|candidate| (candidate.architecture.clone(), candidate.verified.clone()))
        .collect();
    let front = coordinator
        .front(search)
        .await?
        .points
        .into_iter()
        .map(|point| point.architecture)
        .collect();
    Ok(Ended {
        candidates: candidates.into_iter().map(Deterministic::from).collect(),
        front,
        verified,
    })
}

/// Measured figures are not bytes: memory is the allocator's own count, time what a machine that does much else allows.
fn assert_measured_alike(ours: &BTreeMap<String, Metrics>, theirs: &BTreeMap<String, Metrics>) {
    assert!(!ours.is_empty());
    assert!(ours.keys().eq(theirs.keys()), "{ours:?} against {theirs:?}");
    for (architecture, figures) in ours {
        for (metric, most) in [("peak_memory_bytes", 1.01), ("latency_ms", 3.0)] {
            let ratio = figures[metric].value / theirs[architecture][metric].value;
            assert!((1.0 / most..=most).contains(&ratio), "{architecture}: {metric} {ratio}");
        }
    }
}

async fn jobs(coordinator: &Coordinator, search: SearchId) -> Result<Vec<JobView>> {
    Ok(coordinator
        .get::<Page<JobView>>(&format!("/v1/searches/{search}/jobs?limit=100"))
        .await?
        .items)
}

/// Runs the search in peace; also answers with the look-up table it made.
async fn undisturbed(folder: &Path, space: &Path, parts: &Path) -> Result<(Ended, String)> {
    let coordinator = Coordinator::start(&folder.join("peace")).await?;
    let _worker = start_worker(&coordinator, DEVICE, &folder.join("peace-worker"))?;
    register_device(&coordinator).await?;
    let id = coordinator.submit(space, parts, DEVICE, RUNTIME)?;
    coordinator
        .wait(id, PATIENCE, |view| view.state == SearchState::Done)
        .await?;
    let ended = outcome(&coordinator, id).await?;
    let lut = coordinator.text(&format!("/v1/luts/{DEVICE}/export.json")).await?;
    Ok((ended, lut))
}

async fn register_device(coordinator: &Coordinator) -> Result<()> {
    let device = serde_json::json!({ "name": DEVICE, "description": "the machine of this test" });
    coordinator.post::<serde_json::Value>("/v1/devices", &device).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_ends_the_same_after_kills_of_worker_coordinator_and_postgres() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let (space, parts) = (folder.join("space.toml"), folder.join("parts"));
    std::fs::write(&space, small_space()?)?;
    parts_with_latents(&parts)?;
    let (expected, lut) = undisturbed(folder, &space, &parts).await?;
    ensure!(
        expected.front.len() >= 2,
        "the front is too small to compare: {:?}",
        expected.front
    );

    let mut coordinator = Coordinator::start(&folder.join("war")).await?;
    register_device(&coordinator).await?;
    coordinator
        .post_text(&format!("/v1/luts/{DEVICE}/import"), "application/json", lut)
        .await?;
    let mut worker = start_worker(&coordinator, DEVICE, &folder.join("war-worker-0"))?;
    let id = coordinator.submit(&space, &parts, DEVICE, RUNTIME)?;

    // The worker dies in the middle of a candidate; its successor shares nothing with it.
    wait_for_running_evaluation(&coordinator, id).await?;
    worker.kill()?;
    worker = start_worker(&coordinator, DEVICE, &folder.join("war-worker-1"))?;
    coordinator
        .wait(id, PATIENCE, |view| view.budget.evaluations >= 3)
        .await?;

    coordinator.kill_and_restart().await?;
    coordinator
        .wait(id, PATIENCE, |view| view.budget.evaluations >= 5)
        .await?;

    coordinator.kill_postgres().await?;
    coordinator
        .wait(id, PATIENCE, |view| view.state == SearchState::Done)
        .await?;

    let Ended {
        candidates,
        front,
        verified,
    } = outcome(&coordinator, id).await?;
    assert_eq!(
        candidates, expected.candidates,
        "proposals, scores and predicted figures"
    );
    assert_eq!(front, expected.front);
    assert_measured_alike(&verified, &expected.verified);

    let mut architectures: Vec<&str> = candidates
        .iter()
        .map(|candidate| candidate.architecture.as_str())
        .collect();
    architectures.sort_unstable();
    architectures.dedup();
    assert_eq!(
        architectures.len(),
        candidates.len(),
        "no architecture is evaluated twice"
    );

    let evaluations: Vec<JobView> = jobs(&coordinator, id)
        .await?
        .into_iter()
        .filter(|job| job.kind == JobKind::Evaluate)
        .collect();
    assert!(evaluations.iter().all(|job| job.state == JobState::Succeeded));
    assert!(
        evaluations.iter().any(|job| job.attempts.len() > 1),
        "the killed worker's job was tried again"
    );
    worker.kill()
}

async fn wait_for_running_evaluation(coordinator: &Coordinator, search: SearchId) -> Result<()> {
    let deadline = std::time::Instant::now() + PATIENCE;
    while std::time::Instant::now() < deadline {
        let running = jobs(coordinator, search).await?.into_iter().any(|job| {
            job.kind == JobKind::Evaluate && job.state == JobState::Leased && job.progress > 0.2 && job.progress < 0.9
        });
        if running {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!(
        "no evaluation was seen running; the coordinator's log:\n{}",
        coordinator.log()
    )
}

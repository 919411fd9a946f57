//! A search whose worker, coordinator and Postgres are killed ends like one that nobody disturbed.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use end_to_end::{Coordinator, program, repository, start_worker};
use protocol::{
    Metrics, Page, SearchId,
    jobs::{JobKind, JobState, JobView},
    searches::{CandidateState, CandidateView, SearchState},
};

const DEVICE: &str = "test-machine";
const RUNTIME: &str = "libtorch-cpu-1t@2.11.0";
const PATIENCE: Duration = Duration::from_secs(400);

/// The demo's space with fewer steps, prompts and evaluations: the same code in a minute.
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

impl From<CandidateView> for Deterministic {
    fn from(candidate: CandidateView) -> Self {
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

async fn outcome(coordinator: &Coordinator, search: SearchId) -> Result<(Vec<Deterministic>, Vec<String>)> {
    let candidates = coordinator
        .candidates(search)
        .await?
        .into_iter()
        .map(Deterministic::from)
        .collect();
    let front = coordinator
        .front(search)
        .await?
        .points
        .into_iter()
        .map(|point| point.architecture)
        .collect();
    Ok((candidates, front))
}

async fn jobs(coordinator: &Coordinator, search: SearchId) -> Result<Vec<JobView>> {
    Ok(coordinator
        .get::<Page<JobView>>(&format!("/v1/searches/{search}/jobs?limit=100"))
        .await?
        .items)
}

/// Runs the search in peace; also answers with the look-up table it made.
async fn undisturbed(folder: &Path, space: &Path, parts: &Path) -> Result<(Vec<Deterministic>, Vec<String>, String)> {
    let coordinator = Coordinator::start(&folder.join("peace")).await?;
    let _worker = start_worker(&coordinator, DEVICE, &folder.join("peace-worker"))?;
    register_device(&coordinator).await?;
    let id = coordinator.submit(space, parts, DEVICE, RUNTIME)?;
    coordinator
        .wait(id, PATIENCE, |view| view.state == SearchState::Done)
        .await?;
    let (candidates, front) = outcome(&coordinator, id).await?;
    let lut = coordinator.text(&format!("/v1/luts/{DEVICE}/export.json")).await?;
    Ok((candidates, front, lut))
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
    let (expected, expected_front, lut) = undisturbed(folder, &space, &parts).await?;
    ensure!(
        expected_front.len() >= 2,
        "the front is too small to compare: {expected_front:?}"
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

    let (candidates, front) = outcome(&coordinator, id).await?;
    assert_eq!(candidates, expected, "proposals, scores and predicted figures");
    assert_eq!(front, expected_front);

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

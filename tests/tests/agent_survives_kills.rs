//! A real agent with the real ONNX Runtime, killed again and again while it measures: no entry is lost or doubled.
//! Skipped with a line where `ORT_DYLIB_PATH` names no library. `AGENT_KILLS` says how often, 3 times unless given.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use end_to_end::{Coordinator, repository, start_agent};
use job_client::Client;
use protocol::artifacts::{ArtifactRef, ArtifactRole};
use protocol::devices::{Device, WorkerRegistration};
use protocol::jobs::{DeviceSeconds, ExportInput, ExportSubject, JobInput, JobKind, JobResult, JobState, JobView};
use protocol::leases::ResultReport;
use protocol::luts::{BlockSet, LutEntryView, ProfileReply, ProfileRequest};
use protocol::{Page, WorkerId};

const DEVICE: &str = "desk";
const PATIENCE: Duration = Duration::from_secs(240);
/// Samples of one measurement of a block.
const SAMPLES: usize = 15;

#[tokio::test]
async fn a_killed_agent_neither_loses_nor_doubles_an_entry() -> Result<()> {
    let Some(library) = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from) else {
        println!("skipped: ORT_DYLIB_PATH names no library of ONNX Runtime");
        return Ok(());
    };
    let kills: u32 = std::env::var("AGENT_KILLS").map_or(Ok(3), |kills| kills.parse())?;
    let folder = tempfile::tempdir()?;
    let coordinator = Coordinator::start(&folder.path().join("coordinator")).await?;
    let agents = folder.path().join("agent");
    let mut agent = start_agent(&coordinator, DEVICE, &agents, &library)?;
    until(|| async {
        let devices: serde_json::Value = coordinator.get("/v1/devices").await?;
        Ok(devices.to_string().contains(DEVICE))
    })
    .await
    .context("the agent registers")?;

    let wish = ProfileRequest {
        space: "shapes-tiny".to_owned(),
        runtime: None,
        blocks: BlockSet::Space,
    };
    let queued: ProfileReply = coordinator.post(&format!("/v1/luts/{DEVICE}/profile"), &wish).await?;
    ensure!(queued.queued > 20, "too few blocks to be killed among: {queued:?}");
    export_everything(&coordinator, &folder.path().join("exporter")).await?;

    let mut pause = 300;
    for kill in 0..kills {
        // Between a quarter of a second and one, never the same twice in a row.
        pause = 250 + (pause * 7 + 131 * u64::from(kill)) % 750;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        agent.kill()?;
        agent = start_agent(&coordinator, DEVICE, &agents, &library)?;
    }
    let at_the_end = entries(&coordinator).await?.len();
    println!("{at_the_end} of {} entries after {kills} kills", queued.queued);
    until(|| async { Ok(open_jobs(&coordinator).await? == 0) })
        .await
        .with_context(|| std::fs::read_to_string(agents.with_extension("agent.log")).unwrap_or_default())?;
    check(&entries(&coordinator).await?, queued.queued)?;

    // What a last start might send again changes nothing.
    agent.kill()?;
    let _agent = start_agent(&coordinator, DEVICE, &agents, &library)?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    check(&entries(&coordinator).await?, queued.queued)
}

/// Every block once, with the samples of one measurement.
fn check(entries: &[LutEntryView], blocks: u64) -> Result<()> {
    ensure!(
        entries.len() as u64 == blocks,
        "{} entries of {blocks} blocks",
        entries.len()
    );
    for entry in entries {
        let samples = entry.latency_ms_samples.len();
        ensure!(
            entry.state == "measured" && samples == SAMPLES,
            "{samples} samples: {entry:?}"
        );
    }
    Ok(())
}

async fn entries(coordinator: &Coordinator) -> Result<Vec<LutEntryView>> {
    let mut all = Vec::new();
    let mut path = format!("/v1/luts/{DEVICE}?samples=true&limit=100");
    loop {
        let page: Page<LutEntryView> = coordinator.get(&path).await?;
        all.extend(page.items);
        match page.next_cursor {
            Some(cursor) => path = format!("/v1/luts/{DEVICE}?samples=true&limit=100&cursor={cursor}"),
            None => return Ok(all),
        }
    }
}

async fn open_jobs(coordinator: &Coordinator) -> Result<usize> {
    let jobs: Page<JobView> = coordinator.get("/v1/jobs?limit=100").await?;
    let failed = jobs
        .items
        .iter()
        .find(|job| matches!(job.state, JobState::Failed | JobState::Cancelled));
    if let Some(failed) = failed {
        bail!("a job was given up: {failed:?}");
    }
    let open = jobs
        .items
        .iter()
        .filter(|job| matches!(job.state, JobState::Queued | JobState::Leased));
    Ok(open.count())
}

/// Does the export jobs with one small graph for every block: what is measured does not matter here.
async fn export_everything(coordinator: &Coordinator, cache: &Path) -> Result<()> {
    let client = Client::new(&coordinator.url, None, cache)?;
    let registration = WorkerRegistration {
        id: WorkerId::new(),
        name: "exporter".to_owned(),
        device: Device {
            name: "exporter".to_owned(),
            description: String::new(),
            memory_bytes: None,
        },
        runtime: None,
        kinds: vec![JobKind::Export],
        evaluators: vec![],
        memory_bytes: 1 << 40,
    };
    client.register(&registration).await?;
    while let Some(job) = client.lease(registration.id, Duration::from_secs(1)).await? {
        let JobInput::Export(input) = &job.input else {
            bail!("asked for exports alone, got {:?}", job.input.kind());
        };
        let mut artifacts = Vec::new();
        for name in ["conv_f32.onnx", "conv_f32.data"] {
            let bytes = std::fs::read(repository().join("agent/tests/graphs").join(name))?;
            let kept = client.keep(ArtifactRole::Graph, name, "application/octet-stream", &bytes)?;
            client.upload(&kept).await?;
            artifacts.push(kept);
        }
        let outcome = serde_json::from_value(exported(input, &artifacts)?)?;
        let result = JobResult {
            device_seconds: DeviceSeconds::default(),
            artifacts,
            outcome,
        };
        let lease_token = job.lease_token;
        client.result(job.job_id, &ResultReport { lease_token, result }).await?;
    }
    Ok(())
}

fn exported(input: &ExportInput, files: &[ArtifactRef]) -> Result<serde_json::Value> {
    let ExportSubject::Blocks { blocks, .. } = &input.subject else {
        bail!("asked for blocks alone");
    };
    let image = serde_json::json!([{ "name": "x", "dtype": "f32", "shape": [1, 8, 32, 32] }]);
    let graphs = blocks.iter().map(|block| {
        serde_json::json!({
            "name": block.operator, "block": block, "inputs": image, "outputs": [], "files": files,
            "parameters": 0, "largest_relative_error": 0.0
        })
    });
    let manifest = serde_json::json!({
        "opset": 17, "precision": input.precision, "exporter": "test", "graphs": graphs.collect::<Vec<_>>()
    });
    Ok(serde_json::json!({ "kind": "export", "metrics": {}, "manifest": manifest }))
}

async fn until<F: Future<Output = Result<bool>>>(done: impl Fn() -> F) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if done().await? {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    bail!("not there after {PATIENCE:?}")
}

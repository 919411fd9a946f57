//! `temponas jobs` and `temponas job`: what workers do, and why attempts failed.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use protocol::jobs::{AttemptView, JobKind, JobState, JobView};

use super::{Remote, outcome, render};
use crate::{client::Client, config::ConfigFile, search::is_plain_name};

#[derive(Debug, Args)]
pub(super) struct JobsArgs {
    /// Only jobs of this search: its id, or the beginning or end of it
    search: Option<String>,
    /// Only jobs in this state
    #[arg(long, value_enum)]
    state: Option<State>,
    /// Only jobs of this kind, such as `encode_latents`
    #[arg(long)]
    kind: Option<JobKind>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
pub(super) struct JobArgs {
    /// The job's id, or the beginning or end of it
    id: String,
    /// With the log of each failed attempt
    #[arg(long)]
    logs: bool,
    /// Put the files that it made into this folder, in place of those of the same names
    #[arg(long, value_name = "FOLDER")]
    fetch: Option<PathBuf>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
pub(super) struct CancelJobArgs {
    /// The job's id, or the beginning or end of it; of a job that belongs to no search
    id: String,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum State {
    /// Waiting for a worker
    Queued,
    /// In a worker's hands
    Leased,
    /// Done
    Succeeded,
    /// Given up after its last attempt
    Failed,
    /// Not wanted any more
    Cancelled,
}

impl From<State> for JobState {
    fn from(state: State) -> Self {
        match state {
            State::Queued => Self::Queued,
            State::Leased => Self::Leased,
            State::Succeeded => Self::Succeeded,
            State::Failed => Self::Failed,
            State::Cancelled => Self::Cancelled,
        }
    }
}

pub(super) async fn list(args: JobsArgs, file: &ConfigFile) -> anyhow::Result<()> {
    let client = args.remote.client(file)?;
    let search = match &args.search {
        Some(text) => Some(client.find_search(text).await?),
        None => None,
    };
    let jobs = client.jobs(search, args.state.map(Into::into), args.kind).await?;
    let mut table = render::table(["id", "kind", "state", "device", "attempts", "took", "says"]);
    for job in jobs {
        table.add_row([
            job.id.to_string(),
            job.kind.to_string(),
            job.state.as_str().to_owned(),
            job.device.clone().unwrap_or_default(),
            job.attempts.len().to_string(),
            job.device_seconds
                .map_or_else(String::new, |seconds| render::hours(seconds.total() / 3600.0)),
            says(&job),
        ]);
    }
    render::say(&table.to_string())?;
    Ok(())
}

pub(super) async fn show(args: JobArgs, file: &ConfigFile) -> anyhow::Result<()> {
    let client = args.remote.client(file)?;
    let job = client.job(client.find_job(&args.id).await?).await?;
    let optional = |id: Option<String>| id.unwrap_or_else(|| "none".to_owned());
    let rows = [
        ("job", job.id.to_string()),
        ("kind", job.kind.to_string()),
        ("state", job.state.as_str().to_owned()),
        ("search", optional(job.search_id.map(|id| id.to_string()))),
        ("candidate", optional(job.candidate_id.map(|id| id.to_string()))),
        ("device", optional(job.device.clone())),
        ("workers", workers(&job)),
        ("created", job.created_at.to_rfc3339()),
        ("ended", optional(job.ended_at.map(|end| end.to_rfc3339()))),
    ];
    for (name, value) in rows {
        render::say(&format!("{name:<10} {value}"))?;
    }
    if job.state == JobState::Leased {
        render::say(&format!("{:<10} {}", "progress", says(&job)))?;
    }
    if let Some(result) = &job.result {
        outcome::print(result)?;
    }
    for attempt in &job.attempts {
        render::say(&format!("\nattempt {}: {}", attempt.attempt, ended(attempt)))?;
        if let Some(log) = attempt.log.as_ref().filter(|_| args.logs) {
            render::say(log.trim_end())?;
        }
    }
    if let Some(folder) = &args.fetch {
        fetch(&client, &job, folder).await?;
    }
    if !args.logs && job.attempts.iter().any(|attempt| attempt.log.is_some()) {
        render::say("\n--logs shows the logs")?;
    }
    Ok(())
}

/// Downloads what the job made.
async fn fetch(client: &Client, job: &JobView, folder: &Path) -> anyhow::Result<()> {
    let result = job.result.as_ref();
    let result = result.with_context(|| format!("the job is {} and has no files yet (--fetch)", job.state.as_str()))?;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for artifact in &result.artifacts {
        ensure!(
            is_plain_name(&artifact.name),
            "`{}` is no plain file name",
            artifact.name
        );
        let path = folder.join(&artifact.name);
        client.download(&artifact.digest, &path).await?;
        render::say(&format!("{} is there", path.display()))?;
    }
    Ok(())
}

pub(super) async fn cancel(args: CancelJobArgs, file: &ConfigFile) -> anyhow::Result<()> {
    let client = args.remote.client(file)?;
    let job = client.cancel_job(client.find_job(&args.id).await?).await?;
    render::say(&format!("{}: {}", job.id, job.state.as_str()))?;
    Ok(())
}

/// How many do it, and how many of them are there.
fn workers(job: &JobView) -> String {
    match (job.ranks, job.state) {
        (1, _) => "1".to_owned(),
        (ranks, JobState::Queued | JobState::Leased) => format!("{ranks}, of which {} are there", job.seats.len()),
        (ranks, _) => ranks.to_string(),
    }
}

/// What it is doing, or why it failed last.
fn says(job: &JobView) -> String {
    if job.state == JobState::Leased {
        let status = job.status.as_deref().unwrap_or_default();
        return format!("{:.0} % {status}", job.progress * 100.0);
    }
    let error = job.attempts.iter().rev().find_map(|attempt| attempt.error.as_deref());
    let line = error.and_then(|error| error.lines().next()).unwrap_or_default();
    line.chars().take(120).collect()
}

fn ended(attempt: &AttemptView) -> String {
    let worker = attempt
        .worker_id
        .map_or_else(String::new, |worker| format!("worker {worker}, "));
    let began = format!("{worker}from {}", attempt.started_at.to_rfc3339());
    match (attempt.ended_at, &attempt.error) {
        (None, _) => format!("{began}, running"),
        (Some(end), None) => format!("{began} to {}, succeeded", end.to_rfc3339()),
        (Some(end), Some(error)) => format!("{began} to {}\n{error}", end.to_rfc3339()),
    }
}

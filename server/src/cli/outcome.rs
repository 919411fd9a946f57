//! What a job found, and following it until it has.

use std::{io::IsTerminal, process::ExitCode, time::Duration};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use protocol::{
    JobId, Metrics,
    jobs::{GraphOutcome, JobRequest, JobResult, JobState, JobView, Outcome, ResultTable},
};

use super::render;
use crate::client::{Client, ClientError};

/// Time between two looks at a job.
const PAUSE: Duration = Duration::from_secs(1);

/// What every job that is asked for by itself may ask.
#[derive(Debug, Args)]
pub(super) struct WishArgs {
    /// The device it must run on; any, unless given
    #[arg(long)]
    device: Option<String>,
    /// Memory that each of its workers must have, in bytes
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    memory_bytes: u64,
    /// Follow it to its end
    #[arg(long)]
    watch: bool,
}

/// Asks for a job, and follows it where that is wished.
pub(super) async fn ask(client: &Client, input: protocol::jobs::JobInput, wish: WishArgs) -> anyhow::Result<ExitCode> {
    let request = JobRequest {
        id: Some(JobId::new()),
        input,
        device: wish.device,
        memory_bytes: wish.memory_bytes,
    };
    let job = client.ask(&request).await?;
    render::say(&job.id.to_string())?;
    if wish.watch {
        follow(client, job.id).await
    } else {
        Ok(ExitCode::SUCCESS)
    }
}

/// Shows a job's progress until it ends, then what it found; fails unless it succeeded.
async fn follow(client: &Client, id: JobId) -> anyhow::Result<ExitCode> {
    let bar = ProgressBar::new(1000);
    let has_terminal = std::io::stderr().is_terminal();
    if !has_terminal {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{elapsed_precise} {bar:30.green/dim} {percent:>3} %  {msg}") {
        bar.set_style(style.progress_chars("━╸─"));
    }
    let mut said = String::new();
    let job = loop {
        match client.job(id).await {
            Ok(job) if matches!(job.state, JobState::Queued | JobState::Leased) => {
                let doing = doing(&job);
                bar.set_position((job.progress * 1000.0) as u64);
                bar.set_message(doing.clone());
                if !has_terminal && doing != said {
                    eprintln!("{doing}");
                    said = doing;
                }
            }
            Ok(job) => break job,
            Err(error @ ClientError::Unreachable { .. }) => bar.println(format!("{error}; trying again")),
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(PAUSE).await;
    };
    bar.finish_and_clear();
    if let Some(result) = &job.result {
        print(result)?;
        return Ok(ExitCode::SUCCESS);
    }
    render::say(job.state.as_str())?;
    for attempt in &job.attempts {
        if let Some(error) = &attempt.error {
            render::say(&format!("attempt {}: {error}", attempt.attempt))?;
        }
    }
    Ok(ExitCode::FAILURE)
}

fn doing(job: &JobView) -> String {
    match (job.state, job.ranks) {
        (JobState::Queued, 1) => "waits for a worker".to_owned(),
        (JobState::Queued, ranks) => format!("waits for workers: {} of {ranks} are there", job.seats.len()),
        _ => job.status.clone().unwrap_or_else(|| "begins".to_owned()),
    }
}

/// Prints what a job found.
pub(super) fn print(result: &JobResult) -> std::io::Result<()> {
    match &result.outcome {
        Outcome::EncodeLatents(found) => {
            let lines = [
                ("clips", found.clips),
                ("images", found.images),
                ("skipped files", found.skipped),
                ("shards", found.shards.into()),
                ("bytes of latents", found.latent_bytes),
                ("bytes of texts", found.text_bytes),
            ];
            for (name, count) in lines {
                render::say(&format!("{name:<16} {count}"))?;
            }
            for file in &found.skipped_files {
                render::say(&format!("skipped {}: {}", file.file, file.reason))?;
            }
        }
        Outcome::PruneBackbone(found) => {
            figures(&found.metrics)?;
            table(&found.table)?;
        }
        Outcome::Benchmark(found) => {
            render::say(&format!("scored by {}", found.evaluator))?;
            figures(&found.metrics)?;
            for rows in &found.tables {
                table(rows)?;
            }
        }
        Outcome::TrainFinal(found) => {
            render::say(&format!("scored by {}", found.evaluator))?;
            figures(&found.metrics)?;
        }
        Outcome::Distill(found) => {
            render::say(&format!("scored by {}", found.evaluator))?;
            figures(&found.metrics)?;
            table(&found.table)?;
        }
        Outcome::CompressDecoder(found) => {
            figures(&found.metrics)?;
            table(&found.table)?;
        }
        Outcome::Export(found) => {
            figures(&found.metrics)?;
            for graph in &found.manifest.graphs {
                render::say(&format!("{}  error {:.1e}", graph.name, graph.largest_relative_error))?;
            }
        }
        Outcome::ProfileModel(found) => {
            render::say(&format!(
                "measured with {} {}",
                found.runtime.name, found.runtime.version
            ))?;
            figures(&found.metrics)?;
            for graph in &found.graphs {
                render::say(&format!("{}  {}", graph.name, measured(&graph.outcome)))?;
            }
        }
        Outcome::Evaluate(found) => {
            render::say(&format!("scored by {}", found.evaluator))?;
            figures(&found.metrics)?;
        }
        Outcome::Verify(found) => figures(&found.metrics)?,
        Outcome::Lookup(found) => figures(&found.metrics)?,
        Outcome::Profile(found) => render::say(&format!("{} blocks measured", found.entries.len()))?,
    }
    for artifact in &result.artifacts {
        render::say(&format!(
            "{}  {} ({} bytes)",
            artifact.digest, artifact.name, artifact.bytes
        ))?;
    }
    Ok(())
}

/// How measuring a graph ended, in a line.
fn measured(outcome: &GraphOutcome) -> String {
    match outcome {
        GraphOutcome::Measured(found) => {
            let mut warm = found.warm_ms.clone();
            warm.sort_by(f64::total_cmp);
            let median = warm.get(warm.len() / 2).map_or(String::new(), |median| {
                format!(
                    "median {} of {} runs, ",
                    render::value("latency_ms", *median),
                    warm.len()
                )
            });
            format!(
                "{median}first run {}, load {}",
                render::value("latency_ms", found.cold_ms),
                render::value("latency_ms", found.load_ms)
            )
        }
        GraphOutcome::OutOfMemory { detail } => format!("out of memory: {detail}"),
        GraphOutcome::Unsupported { detail } => format!("not supported: {detail}"),
    }
}

fn figures(metrics: &Metrics) -> std::io::Result<()> {
    let width = metrics.keys().map(String::len).max().unwrap_or(0);
    for (name, figure) in metrics {
        let error = match figure.standard_error {
            0.0 => String::new(),
            error => format!(" ± {error}"),
        };
        render::say(&format!("{name:<width$}  {}{error}", figure.value))?;
    }
    Ok(())
}

fn table(rows: &ResultTable) -> std::io::Result<()> {
    render::say(&format!("\n{}", rows.title))?;
    let mut table = render::table(&rows.columns);
    for row in &rows.rows {
        table.add_row(row);
    }
    render::say(&table.to_string())
}

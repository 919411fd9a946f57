//! `temponas submit`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;
use protocol::{devices::RuntimeName, searches::NewSearch};

use super::{Remote, base, render, watch};
use crate::{client::Client, config::ConfigFile};

#[derive(Debug, Args)]
pub(super) struct SubmitArgs {
    /// The space file (TOML)
    space: PathBuf,
    /// The device whose costs count; the only one there is, unless given
    #[arg(long)]
    device: Option<String>,
    /// The device's runtime as NAME@VERSION; the only one it has, unless given
    #[arg(long, value_parser = parse_runtime, value_name = "NAME@VERSION")]
    runtime: Option<RuntimeName>,
    /// The table of a `table` space (CSV or CSV.gz); uploaded unless it is there
    #[arg(long, value_name = "FILE")]
    table: Option<PathBuf>,
    /// Replaces the space file's seed
    #[arg(long)]
    seed: Option<u64>,
    /// A name for people
    #[arg(long)]
    name: Option<String>,
    /// Larger goes first
    #[arg(long, default_value_t = 0, allow_hyphen_values = true)]
    priority: i32,
    #[command(flatten)]
    base: base::BaseArgs,
    /// Only estimate what it would cost
    #[arg(long)]
    dry_run: bool,
    /// Follow it to its end
    #[arg(long, conflicts_with = "dry_run")]
    watch: bool,
    #[command(flatten)]
    remote: Remote,
}

fn parse_runtime(text: &str) -> Result<RuntimeName, String> {
    let (name, version) = text
        .rsplit_once('@')
        .ok_or("write NAME@VERSION, such as libtorch-cpu-1t@2.11.0")?;
    Ok(RuntimeName {
        name: name.to_owned(),
        version: version.to_owned(),
    })
}

pub(super) async fn run(args: SubmitArgs, file: &ConfigFile) -> anyhow::Result<ExitCode> {
    let client = args.remote.client(file)?;
    let space =
        std::fs::read_to_string(&args.space).with_context(|| format!("cannot read {}", args.space.display()))?;
    let table = match &args.table {
        Some(path) => Some(client.upload(path, table_media_type(path)).await?),
        None => None,
    };
    let device = match (&args.device, &table) {
        (None, None) => only_device(&client).await?,
        (device, _) => device.clone(),
    };
    // An estimate changes nothing on the coordinator.
    let base = match args.base.folder(&space)? {
        Some(folder) if !args.dry_run => base::upload(&client, &folder).await?,
        _ => Vec::new(),
    };
    let search = NewSearch {
        space,
        device,
        runtime: args.runtime,
        table,
        seed: args.seed,
        name: args.name,
        priority: args.priority,
        base,
    };
    if args.dry_run {
        let estimate = client.estimate(&search).await?;
        print_estimate(&estimate)?;
        return Ok(ExitCode::SUCCESS);
    }
    let view = client.submit(&search, &uuid::Uuid::new_v4().to_string()).await?;
    render::say(&view.id.to_string())?;
    if args.watch {
        return watch::follow(&client, view.id).await;
    }
    Ok(ExitCode::SUCCESS)
}

/// Where one device is measured, it is meant; where there are several, the coordinator says what is missing.
async fn only_device(client: &Client) -> anyhow::Result<Option<String>> {
    let tables = client
        .devices()
        .await?
        .into_iter()
        .filter(|device| device.lut_entries > 0);
    let measuring = client
        .workers()
        .await?
        .into_iter()
        .filter(|worker| worker.worker.runtime.is_some());
    let names: BTreeSet<String> = tables
        .map(|device| device.device.name)
        .chain(measuring.map(|worker| worker.worker.device.name))
        .collect();
    Ok(if names.len() == 1 {
        names.into_iter().next()
    } else {
        None
    })
}

fn table_media_type(path: &Path) -> &'static str {
    if path.extension().is_some_and(|extension| extension == "gz") {
        "application/gzip"
    } else {
        "text/csv"
    }
}

fn print_estimate(estimate: &protocol::searches::SearchEstimate) -> std::io::Result<()> {
    let unknown = || "not known".to_owned();
    let seconds = estimate.seconds_per_evaluation.map_or_else(unknown, |seconds| {
        format!("{:.1} s ± {:.1} s", seconds.value, seconds.standard_error)
    });
    let rows = [
        ("architectures in the space", estimate.architectures.clone()),
        ("blocks to measure first", estimate.blocks_to_profile.to_string()),
        ("evaluations at most", estimate.max_evaluations.to_string()),
        ("an evaluation takes", seconds),
        (
            "device-hours at most",
            estimate.device_hours.map_or_else(unknown, render::hours),
        ),
        (
            "wall-clock time with today's workers",
            estimate.wall_hours.map_or_else(unknown, render::hours),
        ),
        ("this rests on", estimate.basis.clone()),
    ];
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in rows {
        render::say(&format!("{name:<width$}  {value}"))?;
    }
    Ok(())
}

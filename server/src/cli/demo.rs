//! `temponas demo`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use chrono::TimeDelta;
use clap::Args;
use protocol::{
    devices::{WorkerRegistration, WorkerView},
    searches::{NewSearch, SearchState},
};

use super::{base, render, serve::stop_signal, watch};
use crate::{
    app::Clock,
    client::{Client, ClientError},
    config::{Config, ConfigFile, Settings},
    coordinator::Coordinator,
    demo::{Data, WorkerPlan, Workers, free_address},
};

/// How long a worker may take to tell of its device: libtorch is large, the disk may be slow.
const DEVICE_PATIENCE: Duration = Duration::from_secs(180);

/// A worker that was heard of this recently is one of this demo's.
const ALIVE: TimeDelta = TimeDelta::seconds(20);

/// How the name of a demo's search begins.
const NAME: &str = "demo: ";

/// The status of a command that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// The front must have this many points for the demo to have worked.
const ENOUGH: usize = 3;

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// What to search over
    #[arg(long, value_enum, default_value_t = Data::Shapes)]
    data: Data,
    /// End with the search instead of keeping the page up
    #[arg(long)]
    once: bool,
    /// Port of the page on this machine; the first free one from 8080 on unless given
    #[arg(long)]
    port: Option<u16>,
    /// Worker processes, one thread each
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    #[command(flatten)]
    base: base::BaseArgs,
    /// Folder of the demo's own database, artifacts and logs [default: `demo` in the data folder]
    #[arg(long, value_name = "FOLDER")]
    demo_dir: Option<PathBuf>,
    /// Replaces the space file's seed
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    settings: Box<Settings>,
}

pub(super) async fn run(args: DemoArgs, file: &ConfigFile) -> anyhow::Result<ExitCode> {
    let parts = args.base.folder(args.data.space())?.with_context(|| {
        format!(
            "there are no trained parts for {}: make them with `temponas-worker assets`",
            args.data.title()
        )
    })?;
    let mut config = Config::load(Settings::clone(&args.settings), file)?;
    let folder = args.demo_dir.clone().unwrap_or_else(|| config.data_dir.join("demo"));
    config = Config {
        listen: free_address(args.port)?,
        artifacts: folder.join("artifacts").display().to_string(),
        ..config
    };
    config.data_dir = std::path::absolute(&folder)?;
    eprintln!("starting the coordinator (its folder: {})", config.data_dir.display());
    let coordinator = Coordinator::open(config).await?;
    let url = format!("http://{}", coordinator.address());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(coordinator.run(async {
        let _ = stopped.await;
    }));
    let outcome = attended(&args, &parts, &url, &folder).await;
    drop(stop);
    server.await.context("the coordinator failed")??;
    outcome
}

/// Keeps workers at the search until it is done, and the page up as long as it is wanted.
async fn attended(args: &DemoArgs, parts: &Path, url: &str, folder: &Path) -> anyhow::Result<ExitCode> {
    let client = Client::new(url, None)?;
    let plan = WorkerPlan::beside_this_program(url, &folder.join("workers"))?;
    cancel_unfinished(&client).await?;
    eprintln!(
        "starting {} workers (their logs: {})",
        args.workers,
        plan.folder.display()
    );
    let mut workers = Workers::start(&plan, args.workers)?;
    let mut outcome = tokio::select! {
        outcome = one_search(args, parts, &client) => outcome,
        error = workers.failed() => Err(error),
        () = stop_signal() => Ok(INTERRUPTED.into()),
    };
    if !args.once && outcome.as_ref().is_ok_and(|code| *code != INTERRUPTED.into()) {
        eprintln!("the page stays at {url} until Ctrl-C");
        tokio::select! {
            error = workers.failed() => outcome = Err(error),
            () = stop_signal() => {}
        }
    }
    if outcome.is_err() {
        eprintln!("{}", workers.ends_of_logs());
    }
    if let Err(error) = cancel_unfinished(&client).await {
        eprintln!("the search could not be cancelled: {error}");
    }
    workers.stop().await;
    outcome
}

/// Ends what a demo has not brought to an end: it would take the workers' time from the next one.
async fn cancel_unfinished(client: &Client) -> Result<(), ClientError> {
    for search in client.searches().await? {
        if search.name.starts_with(NAME) && !watch::has_ended(search.state) {
            client.steer(search.id, "cancel").await?;
        }
    }
    Ok(())
}

/// Submits the space, shows how it goes, and prints the outcome.
async fn one_search(args: &DemoArgs, parts: &Path, client: &Client) -> anyhow::Result<ExitCode> {
    let base = base::upload(client, parts).await?;
    let worker = measuring_worker(client).await?;
    let device = worker.device.name;
    let search = NewSearch {
        space: args.data.space().to_owned(),
        device: Some(device.clone()),
        runtime: worker.runtime,
        table: None,
        seed: args.seed,
        name: Some(format!("{NAME}{}", args.data.title())),
        priority: 0,
        base,
    };
    let submitted = client.submit(&search, &uuid::Uuid::new_v4().to_string()).await?;
    eprintln!("searching {} on {device}", submitted.space_name);
    eprintln!("watch it at {}/searches/{}", client.url(), submitted.id);
    let search = watch::until_end(client, submitted.id).await?;
    if search.state != SearchState::Done {
        let reason = search.state_reason.unwrap_or_default();
        bail!("the search is {}: {reason}", render::state(search.state));
    }
    let front = client.front(search.id).await?;
    render::say(&render::front(&front).to_string())?;
    render::say(&render::budget(&search.budget))?;
    render::say(&format!("page: {}/searches/{}", client.url(), search.id))?;
    let enough = front.points.len() >= ENOUGH;
    if !enough {
        render::say(&format!("a front of at least {ENOUGH} points was expected"))?;
    }
    render::say(&format!(
        "front: {} points, hypervolume {:.4}, evaluations {}, device-hours {:.3}",
        front.points.len(),
        search.hypervolume.unwrap_or(0.0),
        search.budget.evaluations,
        search.budget.device_hours,
    ))?;
    Ok(if enough { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A worker that measures, once one has told of itself.
async fn measuring_worker(client: &Client) -> anyhow::Result<WorkerRegistration> {
    let give_up = tokio::time::Instant::now() + DEVICE_PATIENCE;
    loop {
        let now = Clock::System.now();
        let alive = |worker: &WorkerView| worker.worker.runtime.is_some() && (now - worker.last_seen) < ALIVE;
        let workers = client.workers().await?.into_iter().filter(alive);
        if let Some(worker) = workers.max_by_key(|worker| worker.last_seen) {
            return Ok(worker.worker);
        }
        if tokio::time::Instant::now() > give_up {
            bail!(
                "no worker has told of its device within {} s",
                DEVICE_PATIENCE.as_secs()
            );
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

//! How many evaluations a strategy needs until a search over a finished benchmark table has found the table's
//! own front. Everything goes through a coordinator of its own, over REST, as a user's search does.

use std::{
    fmt::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use protocol::{
    ArtifactDigest, SearchId,
    searches::{NewSearch, SearchState},
};
use search_spaces::{Space, Table};

use super::{state_name, tables};
use crate::{client::Client, config::Config, coordinator::Coordinator};

/// The longest that one search may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// A search over a table and what it has to reach.
struct Benchmark {
    name: &'static str,
    space: &'static str,
    /// Below the data folder.
    table: &'static str,
    seeds: std::ops::RangeInclusive<u64>,
    /// Share of the table's own hypervolume.
    share: f64,
    /// Within so many evaluations, in the median of the seeds.
    within: u64,
}

const BENCHMARKS: [Benchmark; 2] = [
    Benchmark {
        name: "NAS-Bench-Macro, accuracy and FLOPs",
        space: include_str!("../../../search-spaces/spaces/nas-bench-macro.toml"),
        table: "nas_bench_macro/nas_bench_macro.csv.gz",
        seeds: 1..=1,
        share: 0.99,
        within: 130,
    },
    Benchmark {
        name: "NAS-Bench-201, CIFAR-100 and Pixel 3",
        space: include_str!("../../../search-spaces/spaces/nas-bench-201.toml"),
        table: "nb201/nb201_acc_latency_compact.csv.gz",
        seeds: 1..=10,
        share: 0.98,
        within: 300,
    },
];

/// One search's outcome.
struct Run {
    seed: u64,
    strategy: String,
    evaluations: u64,
    /// Share of the table's own hypervolume after `within` evaluations.
    share: f64,
    /// Evaluations after which the share was reached.
    reached_after: Option<u64>,
    seconds: f64,
}

/// Runs every benchmark whose table is in `data`, prints a table, and answers whether all reached their mark.
///
/// # Errors
/// When the coordinator cannot start or a search does not end.
pub async fn run(config: Config, data: &Path) -> anyhow::Result<bool> {
    let coordinator = Coordinator::open(config).await?;
    let client = Client::new(&format!("http://{}", coordinator.address()), None)?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(coordinator.run(async {
        let _ = stopped.await;
    }));
    let outcome = run_all(&client, data).await;
    let _ = stop.send(());
    serving.await??;
    outcome
}

async fn run_all(client: &Client, data: &Path) -> anyhow::Result<bool> {
    let mut all = true;
    for benchmark in &BENCHMARKS {
        let path = data.join(benchmark.table);
        if path.is_file() {
            all &= benchmark.run(client, &path).await?;
        } else {
            println!(
                "{}: skipped, {} is not there (TEMPONAS_DATA names the folder)",
                benchmark.name,
                path.display()
            );
        }
    }
    Ok(all)
}

impl Benchmark {
    async fn run(&self, client: &Client, path: &Path) -> anyhow::Result<bool> {
        let space = Space::parse(self.space).with_context(|| format!("the space of {}", self.name))?;
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let table = tables::read(&bytes, &space).with_context(|| format!("the table of {}", self.name))?;
        let own = own_hypervolume(&table, &space)?;
        let digest = client.upload(path, "application/gzip").await?;
        let mut runs = Vec::new();
        for seed in self.seeds.clone() {
            runs.push(self.search(client, &digest, seed, own).await?);
        }
        let mut shares: Vec<f64> = runs.iter().map(|run| run.share).collect();
        shares.sort_by(f64::total_cmp);
        let median = (shares[(shares.len() - 1) / 2] + shares[shares.len() / 2]) / 2.0;
        println!("{}", self.report(&runs, median, own));
        Ok(median >= self.share)
    }

    async fn search(&self, client: &Client, table: &ArtifactDigest, seed: u64, own: f64) -> anyhow::Result<Run> {
        let started = Instant::now();
        let new = NewSearch {
            space: self.space.to_owned(),
            device: None,
            runtime: None,
            table: Some(table.clone()),
            seed: Some(seed),
            name: Some(format!("{}, seed {seed}", self.name)),
            priority: 0,
            base: Vec::new(),
        };
        let search = client.submit(&new, &uuid::Uuid::now_v7().to_string()).await?;
        self.wait(client, search.id).await?;
        let seconds = started.elapsed().as_secs_f64();
        let history = client.front(search.id).await?.history;
        let counted = history.iter().filter(|point| point.evaluations <= self.within);
        let best = counted.map(|point| point.hypervolume).fold(0.0, f64::max);
        let reached = history.iter().find(|point| point.hypervolume >= self.share * own);
        Ok(Run {
            seed,
            strategy: search.strategy,
            evaluations: history.last().map_or(0, |point| point.evaluations),
            share: best / own,
            reached_after: reached.map(|point| point.evaluations),
            seconds,
        })
    }

    async fn wait(&self, client: &Client, id: SearchId) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let search = client.search(id).await?;
            match search.state {
                SearchState::Done => return Ok(()),
                SearchState::Failed | SearchState::Cancelled | SearchState::Paused => {
                    bail!(
                        "{}: the search is {}: {}",
                        self.name,
                        state_name(search.state),
                        search.state_reason.unwrap_or_default()
                    )
                }
                _ if Instant::now() > deadline => bail!("{}: the search has not ended in {PATIENCE:?}", self.name),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    fn report(&self, runs: &[Run], median: f64, own: f64) -> String {
        let mut text = format!("{} (the table's own hypervolume: {own:.4})\n", self.name);
        let _ = writeln!(
            text,
            "  seed  strategy  evaluations  share of hypervolume  {:.0} % after  seconds",
            100.0 * self.share
        );
        for run in runs {
            let reached = run
                .reached_after
                .map_or_else(|| "-".to_owned(), |count| count.to_string());
            let _ = writeln!(
                text,
                "  {:>4}  {:<8}  {:>11}  {:>18.2} %  {:>10}  {:>7.1}",
                run.seed,
                run.strategy,
                run.evaluations,
                100.0 * run.share,
                reached,
                run.seconds
            );
        }
        let verdict = if median >= self.share { "reached" } else { "missed" };
        let _ = write!(
            text,
            "  median {:.2} % within {} evaluations; {:.0} % was asked for: {verdict}",
            100.0 * median,
            self.within,
            100.0 * self.share
        );
        text
    }
}

fn own_hypervolume(table: &Table, space: &Space) -> anyhow::Result<f64> {
    let ranges = table.ranges(space)?;
    Ok(table.hypervolume(space, &ranges))
}

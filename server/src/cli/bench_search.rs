//! `temponas bench-search`.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

use crate::{
    config::{ConfigFile, Settings},
    search::bench_search,
};

/// Runs searches over the public benchmark tables, through a coordinator of its own.
#[derive(Debug, Args)]
pub(crate) struct BenchSearchArgs {
    #[command(flatten)]
    settings: Settings,

    /// Folder with the tables
    #[arg(long, env = "TEMPONAS_DATA", value_name = "FOLDER", default_value = "../shared/data")]
    data: PathBuf,
}

pub(crate) async fn run(args: BenchSearchArgs, file: &ConfigFile) -> anyhow::Result<bool> {
    let scratch = std::env::temp_dir().join(format!("temponas-bench-{}", std::process::id()));
    let mut config = crate::config::Config::load(args.settings, file)?;
    config.data_dir.clone_from(&scratch);
    config.artifacts = scratch.join("artifacts").display().to_string();
    config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let outcome = bench_search::run(config, &args.data).await;
    let _ = std::fs::remove_dir_all(&scratch);
    outcome
}

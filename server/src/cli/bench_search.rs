//! `temponas bench-search`.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::Args;

use crate::{
    config::{Config, ConfigFile, Settings},
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
    let config = apart(Config::load(args.settings, file)?, &scratch);
    let outcome = bench_search::run(config, &args.data).await;
    let _ = std::fs::remove_dir_all(&scratch);
    outcome
}

/// Settings that touch nothing but a folder: neither the database nor the artifacts that settings may name.
fn apart(config: Config, scratch: &Path) -> Config {
    Config {
        database_url: None,
        data_dir: scratch.to_owned(),
        artifacts: scratch.join("artifacts").display().to_string(),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        ..config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_benchmark_keeps_away_from_the_database_of_the_environment() {
        let settings = Settings {
            database_url: "postgres://example.org/precious".parse().ok(),
            artifacts: Some("/precious".to_owned()),
            ..Settings::default()
        };
        let config = Config::load(settings, &ConfigFile::default()).unwrap();
        assert!(config.database_url.is_some());
        let config = apart(config, Path::new("/scratch"));
        assert!(config.database_url.is_none());
        assert_eq!(config.artifacts, "/scratch/artifacts");
    }
}

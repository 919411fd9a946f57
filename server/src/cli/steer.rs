//! `temponas pause`, `resume` and `cancel`.

use clap::Args;

use super::{Remote, render};
use crate::config::ConfigFile;

#[derive(Debug, Args)]
pub(super) struct SteerArgs {
    /// The search's id, or the beginning or end of it
    id: String,
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn run(args: SteerArgs, what: &str, file: &ConfigFile) -> anyhow::Result<()> {
    let client = args.remote.client(file)?;
    let id = client.find_search(&args.id).await?;
    let search = client.steer(id, what).await?;
    render::say(&format!("search {id} is {}", render::state(search.state)))?;
    Ok(())
}

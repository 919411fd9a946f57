//! `temponas list`.

use clap::Args;

use super::{Remote, render};
use crate::config::ConfigFile;

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn run(args: ListArgs, file: &ConfigFile) -> anyhow::Result<()> {
    let searches = args.remote.client(file)?.searches().await?;
    let mut table = render::table([
        "id",
        "name",
        "state",
        "device",
        "evaluations",
        "on devices",
        "front",
        "hypervolume",
    ]);
    for search in searches {
        let budget = &search.budget;
        table.add_row([
            search.id.to_string(),
            search.name,
            render::state(search.state).to_owned(),
            search.device.unwrap_or_default(),
            format!("{}/{}", budget.evaluations, budget.max_evaluations),
            render::hours(budget.device_hours),
            search.front_points.to_string(),
            search
                .hypervolume
                .map_or_else(String::new, |volume| format!("{volume:.4}")),
        ]);
    }
    render::say(&table.to_string())?;
    Ok(())
}

//! `temponas ablate` and `temponas ablation`: the paper's tables over a candidate.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Args;
use protocol::{
    AblationId,
    ablations::{AblationKind, AblationTable, AblationView, NewAblation},
    deployments::DeploymentState,
};

use super::{Remote, deploy::SettingsArgs, progress::Progress, render};
use crate::{
    client::{Client, ClientError},
    config::ConfigFile,
};

/// Time between two looks at an ablation.
const PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(super) struct AblateArgs {
    /// The table: table3, table4, table5 or figure6
    table: AblationKind,
    /// The candidate: its id, or search and number as SEARCH/NUMBER
    candidate: String,
    /// Trainings of each cell, with seeds that count up from --seed
    #[arg(long, default_value_t = 3)]
    seeds: u32,
    /// Do not follow it
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    figure: FigureArgs,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
struct FigureArgs {
    /// Draw the rows' scores as a radar into this file (.svg or .png), as the paper's Figure 6
    #[arg(long, value_name = "FILE")]
    figure: Option<PathBuf>,
}

pub(super) async fn ablate(args: AblateArgs, file: &ConfigFile) -> anyhow::Result<ExitCode> {
    let client = args.remote.client(file)?;
    let new = NewAblation {
        id: Some(AblationId::new()),
        candidate_id: client.find_candidate(&args.candidate).await?,
        table: args.table,
        seeds: args.seeds,
        settings: args.settings.settings(&client, Vec::new()).await?,
    };
    let ablation = client.ablate(&new).await?;
    render::say(&ablation.id.to_string())?;
    if args.detach {
        return Ok(ExitCode::SUCCESS);
    }
    follow(&client, ablation.id, &args.figure).await
}

#[derive(Debug, Args)]
pub(super) struct AblationArgs {
    /// The ablation's id, or the beginning or end of it
    id: String,
    /// Take up again what failed or was cancelled
    #[arg(long, conflicts_with = "cancel")]
    retry: bool,
    /// End what runs
    #[arg(long)]
    cancel: bool,
    /// Follow it to its end
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    figure: FigureArgs,
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn show(args: AblationArgs, file: &ConfigFile) -> anyhow::Result<ExitCode> {
    let client = args.remote.client(file)?;
    let id = client.find_ablation(&args.id).await?;
    let ablation = match (args.retry, args.cancel) {
        (true, _) => client.steer_ablation(id, "retry").await?,
        (_, true) => client.steer_ablation(id, "cancel").await?,
        _ => client.ablation(id).await?,
    };
    if args.watch {
        return follow(&client, id, &args.figure).await;
    }
    print(&ablation)?;
    draw(&client, id, &args.figure).await?;
    Ok(ExitCode::SUCCESS)
}

/// Shows progress until an ablation ends, whatever happens to the connection meanwhile, then its table.
async fn follow(client: &Client, id: AblationId, figure: &FigureArgs) -> anyhow::Result<ExitCode> {
    let mut progress = Progress::new();
    let ablation = loop {
        match client.ablation(id).await {
            Ok(ablation) => {
                let parts = &ablation.deployments;
                let done = parts.iter().filter(|part| part.state == DeploymentState::Done).count();
                let share: f64 = parts.iter().map(|part| part.progress).sum::<f64>() / parts.len().max(1) as f64;
                let doing = format!("{done} of {} models done", parts.len());
                progress.set(ablation.table.as_str(), share, &doing);
                if ablation.state != DeploymentState::Running {
                    break ablation;
                }
            }
            Err(error @ ClientError::Unreachable { .. }) => progress.say(&format!("{error}; trying again")),
            Err(ClientError::Refused(problem)) if problem.status == 503 => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(PAUSE).await;
    };
    progress.finish();
    print(&ablation)?;
    draw(client, id, figure).await?;
    Ok(if ablation.state == DeploymentState::Done {
        ExitCode::SUCCESS
    } else {
        render::say(&format!("`temponas ablation {id} --retry --watch` takes it up again"))?;
        ExitCode::FAILURE
    })
}

async fn draw(client: &Client, id: AblationId, figure: &FigureArgs) -> anyhow::Result<()> {
    let Some(path) = &figure.figure else { return Ok(()) };
    let format = match path.extension().and_then(|extension| extension.to_str()) {
        Some("png") => "png",
        Some("svg") => "svg",
        _ => anyhow::bail!("{}: a figure's name ends with .svg or .png", path.display()),
    };
    let bytes = client.bytes(&format!("/v1/ablations/{id}/radar.{format}"), &[]).await?;
    render::deliver(&bytes, Some(path))?;
    render::say(&format!("the figure is in {}", path.display()))?;
    Ok(())
}

fn print(ablation: &AblationView) -> std::io::Result<()> {
    table(&ablation.result)?;
    for part in &ablation.deployments {
        if let Some(reason) = &part.state_reason {
            render::say(&format!("{} ({}): {reason}", part.cell, part.id))?;
        }
    }
    render::say(ablation.state.as_str())
}

/// One line a score, one column a row of the paper's table: there are more scores than models.
fn table(found: &AblationTable) -> std::io::Result<()> {
    render::say(&found.title)?;
    let heads = found.rows.iter().map(|row| row.settings.join("\n"));
    let first = [found.factors.join("\n"), "evaluator".to_owned()];
    let mut table = render::table(first.into_iter().chain(heads).collect::<Vec<_>>());
    for (index, column) in found.columns.iter().enumerate() {
        let cells = found.rows.iter().map(|row| {
            let text = row.cells.get(index).map_or("", |cell| cell.text.as_str());
            match row.paper.get(index).copied().flatten() {
                Some(paper) => format!("{text}\npaper: {paper}").replace('-', "−"),
                None => text.to_owned(),
            }
        });
        let evaluator = column.evaluator.as_deref().unwrap_or("none");
        let name = if column.difference {
            format!("{} (difference)", column.name)
        } else {
            column.name.clone()
        };
        let line = [name, evaluator.to_owned()].into_iter().chain(cells);
        table.add_row(line.collect::<Vec<_>>());
    }
    render::say(&table.to_string())?;
    for note in &found.notes {
        render::say(note)?;
    }
    Ok(())
}

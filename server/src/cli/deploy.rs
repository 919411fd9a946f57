//! `temponas deploy`, `temponas deployments` and `temponas deployment`: a candidate on its way to a device.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, ensure};
use clap::Args;
use protocol::{
    DeploymentId,
    deployments::{
        DeployRecipes, DeployStep, DeploymentSettings, DeploymentState, DeploymentView, ExportWish, NewDeployment,
        ProfileWish, usual_runs,
    },
    devices::RuntimeName,
    jobs::JobState,
};

use super::{
    Remote,
    model_args::{FormatArgs, ScoringArgs, read},
    progress::Progress,
    render,
};
use crate::{
    client::{Client, ClientError},
    config::ConfigFile,
};

/// Time between two looks at a deployment.
const PAUSE: Duration = Duration::from_secs(1);

/// What is done to a candidate.
#[derive(Debug, Args)]
pub(super) struct SettingsArgs {
    /// Folder of recipes: joint.toml, adversarial.toml, decoder.toml, as far as they are needed
    #[arg(long, value_name = "FOLDER")]
    recipes: Option<PathBuf>,
    /// Recipe of the final training (TOML), in place of that of --recipes
    #[arg(long, value_name = "FILE")]
    joint: Option<PathBuf>,
    /// Recipe of the distillation (TOML), in place of that of --recipes
    #[arg(long, value_name = "FILE")]
    adversarial: Option<PathBuf>,
    /// Recipe of the compression of the decoder (TOML), in place of that of --recipes
    #[arg(long, value_name = "FILE")]
    decoder: Option<PathBuf>,
    /// A deployment of the same candidate to go on from: its id, or the beginning or end of it
    #[arg(long, value_name = "DEPLOYMENT")]
    after: Option<String>,
    /// Name of the trained parts with the decoder; the space's dataset, unless given
    #[arg(long, value_name = "NAME")]
    parts: Option<String>,
    /// Name of a folder of clips and images below each worker's --data-dir, for the decoder
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
    /// The device to measure on; nothing is measured, unless given
    #[arg(long)]
    device: Option<String>,
    /// The device's runtime as NAME@VERSION; any, unless given
    #[arg(long, value_parser = super::parse_runtime, value_name = "NAME@VERSION", requires = "device")]
    runtime: Option<RuntimeName>,
    /// Runs of each graph after warm-up
    #[arg(long, default_value_t = usual_runs())]
    runs: u32,
    /// Seconds for which the UNet runs without a pause at the end, to show what heat does
    #[arg(long, default_value_t = 0.0, value_name = "SECONDS")]
    sustained_seconds: f64,
    /// Seed of every step
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Workers to train with
    #[arg(long, default_value_t = 1)]
    ranks: u32,
    /// Memory that each worker that trains must have, in bytes
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    memory_bytes: u64,
    #[command(flatten)]
    scoring: ScoringArgs,
    #[command(flatten)]
    format: FormatArgs,
}

impl SettingsArgs {
    pub(super) async fn settings(self, client: &Client, steps: Vec<DeployStep>) -> anyhow::Result<DeploymentSettings> {
        let recipe = |own: &Option<PathBuf>, name: &str| -> anyhow::Result<Option<String>> {
            let shared = self.recipes.as_ref().map(|folder| folder.join(name));
            match own.clone().or(shared.filter(|path| path.is_file())) {
                Some(path) => Ok(Some(read(&path)?)),
                None => Ok(None),
            }
        };
        if let Some(folder) = &self.recipes {
            ensure!(folder.is_dir(), "{} is no folder (--recipes)", folder.display());
        }
        let after = match &self.after {
            Some(text) => Some(client.find_deployment(text).await?),
            None => None,
        };
        Ok(DeploymentSettings {
            steps,
            after,
            recipes: DeployRecipes {
                joint: recipe(&self.joint, "joint.toml")?,
                adversarial: recipe(&self.adversarial, "adversarial.toml")?,
                decoder: recipe(&self.decoder, "decoder.toml")?,
            },
            parts: self.parts,
            dataset: self.dataset,
            scoring: self.scoring.scoring(),
            export: ExportWish {
                precision: self.format.precision(),
                formats: self.format.formats(),
                unet_parts: self.format.unet_parts,
                batch: self.format.batch,
                sample_steps: None,
                guidance: None,
            },
            profile: self.device.map(|device| ProfileWish {
                device,
                runtime: self.runtime,
                runs: self.runs,
                sustained_seconds: self.sustained_seconds,
            }),
            seed: self.seed,
            ranks: self.ranks,
            memory_bytes: self.memory_bytes,
        })
    }
}

#[derive(Debug, Args)]
pub(super) struct DeployArgs {
    /// The candidate: its id, or search and number as SEARCH/NUMBER
    candidate: String,
    /// Only these steps, separated by commas: train_final, distill, compress_decoder, export, profile_model [default:
    /// all, the last one only with --device]
    #[arg(long, value_delimiter = ',', value_name = "STEPS")]
    steps: Vec<DeployStep>,
    /// Do not follow it
    #[arg(long)]
    detach: bool,
    /// Where to write the report [default: deployment-ID.html]
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn deploy(args: DeployArgs, file: &ConfigFile) -> anyhow::Result<ExitCode> {
    let client = args.remote.client(file)?;
    let new = NewDeployment {
        id: Some(DeploymentId::new()),
        candidate_id: client.find_candidate(&args.candidate).await?,
        settings: args.settings.settings(&client, args.steps).await?,
    };
    let deployment = client.deploy(&new).await?;
    render::say(&deployment.id.to_string())?;
    if args.detach {
        return Ok(ExitCode::SUCCESS);
    }
    follow(&client, deployment.id, args.report.as_deref()).await
}

#[derive(Debug, Args)]
pub(super) struct DeploymentsArgs {
    /// Also those that are cells of ablations
    #[arg(long)]
    cells: bool,
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn list(args: DeploymentsArgs, file: &ConfigFile) -> anyhow::Result<()> {
    let client = args.remote.client(file)?;
    let mut table = render::table(["id", "architecture", "cell", "state", "steps", "says"]);
    for deployment in client.deployments(args.cells).await? {
        let done = deployment
            .steps
            .iter()
            .filter(|step| step.state == Some(JobState::Succeeded));
        table.add_row([
            deployment.id.to_string(),
            deployment.architecture.clone(),
            deployment.cell.clone().unwrap_or_default(),
            deployment.state.as_str().to_owned(),
            format!("{} of {}", done.count(), deployment.steps.len()),
            says(&deployment),
        ]);
    }
    render::say(&table.to_string())?;
    Ok(())
}

#[derive(Debug, Args)]
pub(super) struct DeploymentArgs {
    /// The deployment's id, or the beginning or end of it
    id: String,
    /// Take it up again where it failed or was cancelled
    #[arg(long, conflicts_with = "cancel")]
    retry: bool,
    /// End it
    #[arg(long)]
    cancel: bool,
    /// Follow it to its end
    #[arg(long)]
    watch: bool,
    /// Write its report, as far as it is
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn show(args: DeploymentArgs, file: &ConfigFile) -> anyhow::Result<ExitCode> {
    let client = args.remote.client(file)?;
    let id = client.find_deployment(&args.id).await?;
    let deployment = match (args.retry, args.cancel) {
        (true, _) => client.steer_deployment(id, "retry").await?,
        (_, true) => client.steer_deployment(id, "cancel").await?,
        _ => client.deployment(id).await?,
    };
    if args.watch {
        return follow(&client, id, args.report.as_deref()).await;
    }
    print(&deployment)?;
    if let Some(path) = &args.report {
        write_report(&client, id, path).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows progress step by step until a deployment ends, whatever happens to the connection meanwhile; then writes its
/// report. Fails unless all steps are done.
async fn follow(client: &Client, id: DeploymentId, report: Option<&Path>) -> anyhow::Result<ExitCode> {
    let mut progress = Progress::new();
    let deployment = loop {
        match client.deployment(id).await {
            Ok(deployment) => {
                for step in &deployment.steps {
                    let name = step.step.as_str().replace('_', " ");
                    progress.set(&name, step.progress, &doing(step.state, step.status.as_deref()));
                }
                if deployment.state != DeploymentState::Running {
                    break deployment;
                }
            }
            Err(error @ ClientError::Unreachable { .. }) => progress.say(&format!("{error}; trying again")),
            Err(ClientError::Refused(problem)) if problem.status == 503 => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(PAUSE).await;
    };
    progress.finish();
    print(&deployment)?;
    let usual = PathBuf::from(format!("deployment-{id}.html"));
    write_report(client, id, report.unwrap_or(&usual)).await?;
    Ok(if deployment.state == DeploymentState::Done {
        ExitCode::SUCCESS
    } else {
        render::say(&format!("`temponas deployment {id} --retry --watch` takes it up again"))?;
        ExitCode::FAILURE
    })
}

async fn write_report(client: &Client, id: DeploymentId, path: &Path) -> anyhow::Result<()> {
    let page = client.report(id).await?;
    std::fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))?;
    render::say(&format!("the report is in {}", path.display()))?;
    Ok(())
}

/// What a step does, in a few words.
pub(super) fn doing(state: Option<JobState>, status: Option<&str>) -> String {
    match state {
        None => "waits for the step before".to_owned(),
        Some(JobState::Queued) => "waits for a worker".to_owned(),
        Some(JobState::Leased) => status.unwrap_or("begins").to_owned(),
        Some(JobState::Succeeded) => "done".to_owned(),
        Some(state) => state.as_str().to_owned(),
    }
}

fn says(deployment: &DeploymentView) -> String {
    if let Some(reason) = &deployment.state_reason {
        let line = reason.lines().next().unwrap_or_default();
        return line.chars().take(120).collect();
    }
    let current = deployment
        .steps
        .iter()
        .find(|step| step.state != Some(JobState::Succeeded) && deployment.state == DeploymentState::Running);
    current.map_or(String::new(), |step| {
        format!("{}: {}", step.step, doing(step.state, step.status.as_deref()))
    })
}

fn print(deployment: &DeploymentView) -> std::io::Result<()> {
    let mut table = render::table(["step", "state", "job", "found"]);
    for step in &deployment.steps {
        let found = step.metrics.iter().filter(|(name, _)| is_headline(name));
        let found: Vec<String> = found
            .map(|(name, figure)| format!("{} {}", render::head(name), render::figure(name, figure)))
            .collect();
        table.add_row([
            step.step.to_string(),
            step.state.map_or("", JobState::as_str).to_owned(),
            step.job_id.map(|id| id.to_string()).unwrap_or_default(),
            found.join(", "),
        ]);
    }
    render::say(&table.to_string())?;
    render::say(deployment.state.as_str())?;
    if let Some(reason) = &deployment.state_reason {
        render::say(reason)?;
    }
    Ok(())
}

/// Figures that say in a line what a step came to.
fn is_headline(name: &str) -> bool {
    const HEADLINES: [&str; 10] = [
        "quality",
        "quality_ratio",
        "denoise_speed_up",
        "speed_up",
        "psnr_db",
        "parameters",
        "largest_relative_error",
        "latency_ms",
        "pipeline_latency_ms",
        "peak_memory_bytes",
    ];
    HEADLINES.contains(&name)
}

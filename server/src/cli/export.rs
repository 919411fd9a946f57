//! `temponas export` and `temponas profile-model`: a model, or a space's blocks, as graphs; and graphs on a device.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use clap::Args;
use protocol::{
    artifacts::ArtifactRole,
    deployments::usual_runs,
    jobs::{ExportInput, ExportSubject, JobInput, Outcome, ProfileModelInput},
    luts::Block,
};
use search_spaces::Space;

use super::{
    Remote, base,
    model_args::{FormatArgs, read, upload_all},
    outcome,
};
use crate::{config::ConfigFile, samples};

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// The space file (TOML)
    space: PathBuf,
    /// The architecture as it is printed, such as `c1.-.s1.s3.c1`
    #[arg(long, required_unless_present = "blocks")]
    architecture: Option<String>,
    /// All weights of the UNet (safetensors); may be given several times
    #[arg(long, required_unless_present = "blocks", value_name = "FILE")]
    weights: Vec<PathBuf>,
    /// Files of the compressed decoder; the parts' own decoder, unless given; may be given several times
    #[arg(long, value_name = "FILE")]
    decoder: Vec<PathBuf>,
    /// Export every block of the space by itself, with drawn weights, instead of a model
    #[arg(long, conflicts_with_all = ["architecture", "weights", "decoder"])]
    blocks: bool,
    /// Euler steps of a sample [default: those of the space]
    #[arg(long)]
    sample_steps: Option<u32>,
    /// Scale of classifier-free guidance; 1 is none [default: that of the space]
    #[arg(long)]
    guidance: Option<f64>,
    /// Seed of the inputs that graphs are verified on
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    base: base::BaseArgs,
    #[command(flatten)]
    wish: outcome::WishArgs,
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn export(args: ExportArgs, file: &ConfigFile) -> anyhow::Result<ExitCode> {
    let client = args.remote.client(file)?;
    let space = read(&args.space)?;
    let (precision, formats) = (args.format.precision(), args.format.formats());
    let subject = if args.blocks {
        let parsed = Space::parse(&space).with_context(|| format!("{} is no space", args.space.display()))?;
        let blocks: Vec<Block> = parsed.blocks().iter().map(samples::wire_block).collect();
        ExportSubject::Blocks {
            space,
            blocks,
            profile_on: None,
        }
    } else {
        let evaluation = Space::parse(&space).ok().and_then(|space| space.evaluation);
        let steps = args
            .sample_steps
            .or(evaluation.as_ref().map(|usual| usual.sample_steps));
        let guidance = args.guidance.or(evaluation.as_ref().map(|usual| usual.guidance));
        ExportSubject::Model {
            base: base::upload_found(&client, args.base.folder(&space)?).await?,
            weights: upload_all(&client, &args.weights, ArtifactRole::Weights).await?,
            decoder: upload_all(&client, &args.decoder, ArtifactRole::Base).await?,
            space,
            architecture: args.architecture.unwrap_or_default(),
            unet_parts: args.format.unet_parts,
            batch: args.format.batch,
            sample_steps: steps.context("the space does not say how many steps a sample has (--sample-steps)")?,
            guidance: guidance.unwrap_or(1.0),
        }
    };
    let input = ExportInput {
        subject,
        precision,
        formats,
        seed: args.seed,
    };
    outcome::ask(&client, JobInput::Export(input), args.wish).await
}

#[derive(Debug, Args)]
pub(super) struct ProfileModelArgs {
    /// The job that exported the model: its id, or the beginning or end of it
    job: String,
    /// The candidate whose model it is, which the figures go to: its id, or SEARCH/NUMBER
    #[arg(long)]
    candidate: Option<String>,
    /// Runs of each graph after warm-up
    #[arg(long, default_value_t = usual_runs())]
    runs: u32,
    /// Seconds for which the UNet runs without a pause at the end, to show what heat does
    #[arg(long, default_value_t = 0.0, value_name = "SECONDS")]
    sustained_seconds: f64,
    #[command(flatten)]
    wish: outcome::WishArgs,
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn profile_model(args: ProfileModelArgs, file: &ConfigFile) -> anyhow::Result<ExitCode> {
    let client = args.remote.client(file)?;
    let job = client.find_job(&args.job).await?;
    let Outcome::Export(exported) = client.result(job).await?.outcome else {
        bail!("job {job} exported no model");
    };
    let candidate_id = match &args.candidate {
        Some(text) => Some(client.find_candidate(text).await?),
        None => None,
    };
    let input = ProfileModelInput {
        manifest: exported.manifest,
        candidate_id,
        runs: args.runs,
        sustained_seconds: args.sustained_seconds,
    };
    outcome::ask(&client, JobInput::ProfileModel(input), args.wish).await
}

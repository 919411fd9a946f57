//! `temponas train-final` and `temponas distill`: a found model is trained to its end, and then distilled.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use protocol::{
    artifacts::ArtifactRole,
    jobs::{DistillInput, JobInput, TrainFinalInput},
};

use super::{
    Remote, base,
    model_args::{ScoringArgs, read, upload_all},
    outcome,
};
use crate::config::ConfigFile;

#[derive(Debug, Args)]
pub(super) struct TrainFinalArgs {
    #[command(flatten)]
    training: TrainingArgs,
    /// Weights to start from (safetensors): a candidate's, or those of an earlier final training; fresh temporal
    /// layers, unless given; may be given several times
    #[arg(long, value_name = "FILE")]
    weights: Vec<PathBuf>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
pub(super) struct DistillArgs {
    #[command(flatten)]
    training: TrainingArgs,
    /// All weights of the trained model (safetensors); may be given several times
    #[arg(long, required = true, value_name = "FILE")]
    weights: Vec<PathBuf>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
struct TrainingArgs {
    /// The space file (TOML)
    space: PathBuf,
    /// The architecture as it is printed, such as `c1.-.s1.s3.c1`
    #[arg(long)]
    architecture: String,
    /// Recipe of the training (TOML)
    #[arg(long, value_name = "FILE")]
    recipe: PathBuf,
    /// Seed of training
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Workers to train with
    #[arg(long, default_value_t = 1)]
    ranks: u32,
    #[command(flatten)]
    scoring: ScoringArgs,
    #[command(flatten)]
    base: base::BaseArgs,
    #[command(flatten)]
    wish: outcome::WishArgs,
}

pub(super) async fn train_final(args: TrainFinalArgs, file: &ConfigFile) -> anyhow::Result<ExitCode> {
    let client = args.remote.client(file)?;
    let training = args.training;
    let space = read(&training.space)?;
    let input = TrainFinalInput {
        recipe: read(&training.recipe)?,
        base: base::upload_found(&client, training.base.folder(&space)?).await?,
        weights: upload_all(&client, &args.weights, ArtifactRole::Weights).await?,
        space,
        architecture: training.architecture,
        scoring: training.scoring.scoring(),
        seed: training.seed,
        ranks: training.ranks,
    };
    outcome::ask(&client, JobInput::TrainFinal(input), training.wish).await
}

pub(super) async fn distill(args: DistillArgs, file: &ConfigFile) -> anyhow::Result<ExitCode> {
    let client = args.remote.client(file)?;
    let training = args.training;
    let space = read(&training.space)?;
    let input = DistillInput {
        recipe: read(&training.recipe)?,
        base: base::upload_found(&client, training.base.folder(&space)?).await?,
        weights: upload_all(&client, &args.weights, ArtifactRole::Weights).await?,
        space,
        architecture: training.architecture,
        scoring: training.scoring.scoring(),
        seed: training.seed,
        ranks: training.ranks,
    };
    outcome::ask(&client, JobInput::Distill(input), training.wish).await
}

//! `temponas compress-decoder`.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use protocol::jobs::{CompressDecoderInput, JobInput};

use super::{Remote, base, model_args::read, outcome};
use crate::config::ConfigFile;

#[derive(Debug, Args)]
pub(super) struct CompressDecoderArgs {
    /// Name of the trained parts with the VAE, a folder of --assets
    parts: String,
    /// Recipe of the compression (TOML)
    #[arg(long, value_name = "FILE")]
    recipe: PathBuf,
    /// Name of a folder of clips and images below each worker's --data-dir; the clips that the parts' dataset draws,
    /// unless given
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
    /// Seed of training
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    base: base::BaseArgs,
    #[command(flatten)]
    wish: outcome::WishArgs,
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn run(args: CompressDecoderArgs, file: &ConfigFile) -> anyhow::Result<ExitCode> {
    let client = args.remote.client(file)?;
    let input = CompressDecoderInput {
        recipe: read(&args.recipe)?,
        base: base::upload_found(&client, args.base.named(&args.parts)?).await?,
        parts: args.parts,
        dataset: args.dataset,
        seed: args.seed,
    };
    outcome::ask(&client, JobInput::CompressDecoder(input), args.wish).await
}

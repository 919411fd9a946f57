//! `temponas prune`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Args;
use protocol::jobs::{JobInput, PruneBackboneInput};
use search_spaces::Space;

use super::{Remote, base, outcome};
use crate::config::ConfigFile;

#[derive(Debug, Args)]
pub(super) struct PruneArgs {
    /// The space file (TOML); its `[unet]` is the pruned backbone
    space: PathBuf,
    /// Name of the trained parts with the full backbone, a folder of --assets; the space's dataset, unless given
    #[arg(long, value_name = "NAME")]
    parts: Option<String>,
    /// Recipe of the distillation (TOML)
    #[arg(long, value_name = "FILE")]
    recipe: PathBuf,
    /// Recipe of the adaptation to rectified flow and the video VAE's latents (TOML)
    #[arg(long, value_name = "FILE")]
    adaptation: Option<PathBuf>,
    /// Name of the trained parts whose VAE made the latents to adapt to, a folder of --assets; --parts, unless given
    #[arg(long, value_name = "NAME", requires = "adaptation")]
    adaptation_parts: Option<String>,
    /// Seed of training
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Workers to train with
    #[arg(long, default_value_t = 1)]
    ranks: u32,
    #[command(flatten)]
    base: base::BaseArgs,
    #[command(flatten)]
    wish: outcome::WishArgs,
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn run(args: PruneArgs, file: &ConfigFile) -> anyhow::Result<ExitCode> {
    let client = args.remote.client(file)?;
    let read =
        |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let space = read(&args.space)?;
    let dataset = || Some(Space::parse(&space).ok()?.evaluation?.dataset);
    let parts = args.parts.or_else(dataset);
    let parts = parts.context("the space names no dataset: name the trained parts (--parts)")?;
    let recipe = read(&args.recipe)?;
    let adaptation = args.adaptation.as_ref().map(read).transpose()?;
    let base = base::upload_found(&client, args.base.named(&parts)?).await?;
    let adaptation_base = match &args.adaptation_parts {
        Some(other) => base::upload_found(&client, args.base.named(other)?).await?,
        None => Vec::new(),
    };
    let input = PruneBackboneInput {
        space,
        parts,
        base,
        recipe,
        adaptation,
        adaptation_parts: args.adaptation_parts,
        adaptation_base,
        seed: args.seed,
        ranks: args.ranks,
    };
    outcome::ask(&client, JobInput::PruneBackbone(input), args.wish).await
}

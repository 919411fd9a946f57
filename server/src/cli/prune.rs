//! `temponas prune`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Args;
use protocol::jobs::{JobInput, PictureScoring, PruneBackboneInput};
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
    /// Pictures of the full and of the pruned backbone that CLIP scores, where the parts bring it; 0 for none
    #[arg(long, default_value_t = 64)]
    pictures: u32,
    /// Captions of these pictures, one a line; the prompts that the parts keep apart, unless given
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Euler steps of a picture
    #[arg(long, default_value_t = 25)]
    sample_steps: u32,
    /// Scale of classifier-free guidance; 1 is none
    #[arg(long, default_value_t = 7.0)]
    guidance: f64,
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
    let prompts = args.prompts.as_ref().map(read).transpose()?.unwrap_or_default();
    let prompts = prompts.lines().map(str::trim).filter(|line| !line.is_empty());
    let scoring = PictureScoring {
        pictures: args.pictures,
        sample_steps: args.sample_steps,
        guidance: args.guidance,
        prompts: prompts.map(str::to_owned).collect(),
    };
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
        scoring,
    };
    outcome::ask(&client, JobInput::PruneBackbone(input), args.wish).await
}

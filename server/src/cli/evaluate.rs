//! `temponas evaluate`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Args;
use protocol::{
    artifacts::ArtifactRole,
    jobs::{BenchmarkInput, JobInput, VBENCH_EVALUATOR},
};

use super::{Remote, base, outcome};
use crate::config::ConfigFile;

#[derive(Debug, Args)]
pub(super) struct EvaluateArgs {
    /// The space file (TOML)
    space: PathBuf,
    /// The architecture as it is printed, such as `ds.0123`
    #[arg(long)]
    architecture: String,
    /// Its trained weights (safetensors); may be given several times
    #[arg(long, required = true, value_name = "FILE")]
    weights: Vec<PathBuf>,
    /// What the model is called in the tables
    #[arg(long, default_value = "ours", value_name = "NAME")]
    model: String,
    /// Who scores; goes to a worker that brings it
    #[arg(long, default_value = VBENCH_EVALUATOR, value_name = "NAME")]
    evaluator: String,
    /// Dimensions to score, separated by commas; all that the evaluator has, unless given
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    dimensions: Vec<String>,
    /// Clips sampled for each prompt
    #[arg(long, default_value_t = 5)]
    videos_per_prompt: u32,
    /// Prompts of each dimension that are scored; all, unless given
    #[arg(long)]
    prompts: Option<u32>,
    /// Length, size and rate of the clips by name: `paper-eval` or `paper-demo`; those of the space, unless given
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// Euler steps of a sample
    #[arg(long, default_value_t = 25)]
    sample_steps: u32,
    /// Scale of classifier-free guidance; 1 is none
    #[arg(long, default_value_t = 7.0)]
    guidance: f64,
    /// Seed of sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    base: base::BaseArgs,
    #[command(flatten)]
    wish: outcome::WishArgs,
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn run(args: EvaluateArgs, file: &ConfigFile) -> anyhow::Result<ExitCode> {
    let client = args.remote.client(file)?;
    let space =
        std::fs::read_to_string(&args.space).with_context(|| format!("cannot read {}", args.space.display()))?;
    let base = base::upload_found(&client, args.base.folder(&space)?).await?;
    let mut weights = Vec::with_capacity(args.weights.len());
    for path in &args.weights {
        weights.push(base::upload_one(&client, path, ArtifactRole::Weights).await?);
    }
    let input = BenchmarkInput {
        model: args.model,
        space,
        architecture: args.architecture,
        weights,
        base,
        evaluator: args.evaluator,
        dimensions: args.dimensions,
        videos_per_prompt: args.videos_per_prompt,
        prompts: args.prompts,
        preset: args.preset,
        sample_steps: args.sample_steps,
        guidance: args.guidance,
        seed: args.seed,
    };
    outcome::ask(&client, JobInput::Benchmark(input), args.wish).await
}

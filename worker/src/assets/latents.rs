//! `temponas-worker latents`: the training clips of a dataset as one file beside its trained parts.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Args;
use tch::Device;

use super::Assets;
use crate::data::default_cache;
use crate::data::encoded::{Encoded, LATENTS};

/// Encode a dataset's training clips into the file that makes them needless elsewhere.
#[derive(Debug, Args)]
pub struct LatentsArgs {
    /// Which dataset: shapes or emoji.
    #[arg(long, default_value = "shapes")]
    dataset: String,
    /// Folder that holds the trained parts in a folder named after the dataset.
    #[arg(long, env = "TEMPONAS_ASSETS", default_value = "assets")]
    assets: PathBuf,
    /// The file [default: `latents.safetensors` beside the trained parts, where submissions look for it].
    #[arg(long)]
    out: Option<PathBuf>,
    /// Where clips are read from.
    #[arg(long, env = "TEMPONAS_CACHE", default_value_os_t = default_cache())]
    cache: PathBuf,
    /// Threads of libtorch.
    #[arg(long, default_value_t = 1)]
    threads: u32,
}

/// Runs the command.
///
/// # Errors
/// Where parts or clips cannot be read or the file cannot be written.
pub fn latents_command(args: &LatentsArgs) -> anyhow::Result<()> {
    ensure!(args.threads > 0, "--threads is 0; it must be at least 1");
    tch::set_num_threads(args.threads.try_into().context("--threads is too large")?);
    let assets = Assets::open(&args.assets, &args.dataset, Device::Cpu)?;
    let mut percent = 0;
    let encoded = Encoded::of_clips(&assets, &args.cache, &mut |share| {
        let now = (10.0 * share) as u32 * 10;
        if now > percent {
            percent = now;
            tracing::info!("encoded {percent} %");
        }
        ControlFlow::Continue(())
    })?;
    let beside = || args.assets.join(&args.dataset).join(LATENTS);
    let out = args.out.clone().unwrap_or_else(beside);
    encoded.write(&assets, &out)?;
    println!("{}: {} clips", out.display(), encoded.captions.len());
    Ok(())
}

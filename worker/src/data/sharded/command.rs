//! `temponas-worker encode`: a folder of captioned clips and pictures to latents in shards.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use tch::Device;

use super::{Bucket, News, Plan, Precision, Settings, encode};
use crate::assets::Assets;
use crate::data::Split;

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Encode a folder of captioned clips and pictures to latents and text embeddings in shards; goes on where it stopped.
#[derive(Debug, Args)]
pub struct EncodeArgs {
    /// The folder, with its `captions.jsonl`.
    #[arg(long)]
    dataset: PathBuf,
    /// Whose VAE and text encoder: a folder below `--assets`.
    #[arg(long, default_value = "shapes")]
    parts: String,
    /// Folder that holds the trained parts in folders.
    #[arg(long, env = "TEMPONAS_ASSETS", default_value = "assets")]
    assets: PathBuf,
    /// Folder of the shards and their index.
    #[arg(long)]
    out: PathBuf,
    /// Size of clips as FRAMESxHEIGHTxWIDTH@RATE:KEEP, where KEEP is the chance that a file is kept; again for more.
    #[arg(long = "bucket", default_value = "17x64x64@24")]
    buckets: Vec<Bucket>,
    /// Number format on disk: bf16, f16, f32.
    #[arg(long, default_value = "bf16")]
    precision: Precision,
    /// Most MiB of a shard; parts of one are allowed.
    #[arg(long, default_value_t = 256.0)]
    shard_mib: f64,
    /// Draws which files a bucket keeps.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Take the lines of the split `held_out` instead of `train`.
    #[arg(long)]
    held_out: bool,
    /// Most clips of one file.
    #[arg(long)]
    clips_per_file: Option<u64>,
    /// Threads of libtorch: part of what makes the shards the same again.
    #[arg(long, default_value_t = 1)]
    threads: u32,
}

/// Runs the command.
///
/// # Errors
/// As [`Plan::of`] and [`encode`], and where the parts cannot be read.
pub fn encode_command(args: &EncodeArgs) -> anyhow::Result<()> {
    ensure!(args.threads > 0, "--threads is 0; it must be at least 1");
    tch::set_num_threads(args.threads.try_into().context("--threads is too large")?);
    let parts = Assets::open(&args.assets, &args.parts, Device::Cpu)?;
    let settings = Settings {
        precision: args.precision,
        shard_bytes: (args.shard_mib * f64::from(1 << 20)) as u64,
        seed: args.seed,
        split: if args.held_out { Split::HeldOut } else { Split::Train },
        clips_per_file: args.clips_per_file,
        ..Settings::of(args.buckets.clone())
    };
    let mut told = Instant::now();
    let mut now_and_then = |doing: &str, share: f64| {
        if told.elapsed() > TELL_EVERY {
            told = Instant::now();
            tracing::info!("{doing}: {:.1} %", 100.0 * share);
        }
    };
    let plan = Plan::of(&args.dataset, &args.out, &parts, &settings, &mut |share| {
        now_and_then("looking through files", share);
        Ok(())
    })?;
    let planned = plan.index();
    tracing::info!(
        clips = planned.clips.len(),
        files = planned.sources.len(),
        skipped = planned.skipped.len(),
        shards = planned.shards.len(),
        "planned"
    );
    let index = encode(&plan, &args.out, &parts, &mut |news| {
        match news {
            News::Encoded(share) => now_and_then("encoding", share),
            News::Shard(number, index) => tracing::info!(file = index.shards[number].file, "there"),
        }
        Ok(())
    })?;
    for (bucket, clips) in settings.buckets.iter().zip(index.clips_by_bucket()) {
        println!("{bucket}: {} clips", clips.len());
    }
    for skipped in &index.skipped {
        println!("skipped {}: {}", skipped.file, skipped.reason);
    }
    println!(
        "{}: {} clips of {} files, {} captions, {} bytes in {} shards",
        args.out.display(),
        index.clips.len(),
        index.sources.len(),
        index.captions.len() - 1,
        index.stored_bytes(),
        index.shards.len()
    );
    Ok(())
}

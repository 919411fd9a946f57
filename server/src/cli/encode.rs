//! `temponas encode`.

use std::{process::ExitCode, str::FromStr};

use clap::Args;
use protocol::jobs::{Bucket, EncodeLatentsInput, JobInput};

use super::{Remote, base, outcome};
use crate::config::ConfigFile;

#[derive(Debug, Args)]
pub(super) struct EncodeArgs {
    /// The dataset: name of a folder of captioned clips and images below the workers' data folder (--data-dir)
    dataset: String,
    /// Name of the trained parts that encode, a folder of --assets
    #[arg(long, value_name = "NAME")]
    parts: String,
    /// Clips to cut, as FRAMESxHEIGHTxWIDTH@HZ, and the share of those that fit which is kept (after `:`, all unless
    /// given), such as 51x256x256@10 or 1x512x512@1:0.5 (images). Several are tried in order
    #[arg(long = "bucket", required = true, value_name = "SHAPE")]
    buckets: Vec<BucketArg>,
    /// Most bytes of a shard
    #[arg(long, default_value_t = 256 << 20, value_name = "NUMBER")]
    shard_bytes: u64,
    /// Seed of what is drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    base: base::BaseArgs,
    #[command(flatten)]
    wish: outcome::WishArgs,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Clone, Copy)]
struct BucketArg(Bucket);

impl FromStr for BucketArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("`{text}` is no bucket; write it like 51x256x256@10 or 1x512x512@1:0.5");
        let (shape, rate) = text.split_once('@').ok_or_else(wrong)?;
        let (rate, keep) = rate.split_once(':').unwrap_or((rate, "1"));
        let lengths: Result<Vec<u32>, _> = shape.split('x').map(str::parse).collect();
        let lengths = lengths.map_err(|_| wrong())?;
        let [frames, height, width] = lengths[..] else {
            return Err(wrong());
        };
        Ok(Self(Bucket {
            frames,
            height,
            width,
            frame_rate_hz: rate.parse().map_err(|_| wrong())?,
            keep: keep.parse().map_err(|_| wrong())?,
        }))
    }
}

pub(super) async fn run(args: EncodeArgs, file: &ConfigFile) -> anyhow::Result<ExitCode> {
    let client = args.remote.client(file)?;
    let base = base::upload_found(&client, args.base.named(&args.parts)?).await?;
    let input = EncodeLatentsInput {
        dataset: args.dataset,
        parts: args.parts,
        base,
        buckets: args.buckets.into_iter().map(|bucket| bucket.0).collect(),
        shard_bytes: args.shard_bytes,
        seed: args.seed,
    };
    outcome::ask(&client, JobInput::EncodeLatents(input), args.wish).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_written_as_its_shape_and_rate() {
        let BucketArg(bucket) = "51x256x320@10".parse().unwrap();
        let shape = (bucket.frames, bucket.height, bucket.width);
        assert_eq!((shape, bucket.frame_rate_hz, bucket.keep), ((51, 256, 320), 10.0, 1.0));
        let BucketArg(bucket) = "1x512x512@1:0.5".parse().unwrap();
        assert_eq!((bucket.frames, bucket.keep), (1, 0.5));
        for wrong in [
            "",
            "51x256@10",
            "51x256x320",
            "51x256x320@ten",
            "1x2x3x4@1",
            "51x256x320@10:",
        ] {
            assert!(
                wrong.parse::<BucketArg>().unwrap_err().contains("write it like"),
                "{wrong}"
            );
        }
    }
}

//! What is made of a folder: buckets, number format, size of the shards.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tch::Kind;

use super::ShardError;
use crate::data::Split;
use crate::models::vae::latent_frames;

/// Pixels a side for one latent (spec section 3).
pub(super) const PIXELS_PER_LATENT: u32 = 8;

/// Clips of one size.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// Frames of a clip; 1 is a picture.
    pub frames: u32,
    /// In pixels, a multiple of 8.
    pub height: u32,
    /// In pixels, a multiple of 8.
    pub width: u32,
    /// Frames a second.
    pub frame_rate_hz: f64,
    /// The chance that a file that fits is taken; else it may fit a bucket further down.
    #[serde(default = "always")]
    pub keep: f64,
}

const fn always() -> f64 {
    1.0
}

impl Bucket {
    /// Pixels of a frame.
    #[must_use]
    pub const fn area(&self) -> u64 {
        self.height as u64 * self.width as u64
    }

    /// Whether it is one of pictures.
    #[must_use]
    pub const fn is_still(&self) -> bool {
        self.frames == 1
    }

    /// Shape of one clip's latents.
    #[must_use]
    pub fn latent_shape(&self, channels: i64) -> [i64; 4] {
        let side = |pixels: u32| i64::from(pixels / PIXELS_PER_LATENT);
        [
            channels,
            latent_frames(self.frames.into()),
            side(self.height),
            side(self.width),
        ]
    }
}

impl std::fmt::Display for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            frames,
            height,
            width,
            frame_rate_hz,
            keep,
        } = self;
        write!(f, "{frames}x{height}x{width}@{frame_rate_hz}")?;
        if *keep < 1.0 { write!(f, ":{keep}") } else { Ok(()) }
    }
}

impl FromStr for Bucket {
    type Err = String;

    /// Reads `FRAMESxHEIGHTxWIDTH[@RATE][:KEEP]`, such as `17x256x256@24`; pictures need no rate.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is no bucket; allowed: FRAMESxHEIGHTxWIDTH@RATE:KEEP, such as 17x256x256@24:0.5");
        let (text, keep) = text
            .split_once(':')
            .map_or((text, None), |(text, keep)| (text, Some(keep)));
        let (size, rate) = text
            .split_once('@')
            .map_or((text, None), |(size, rate)| (size, Some(rate)));
        let sizes: Vec<u32> = size.split('x').map_while(|part| part.parse().ok()).collect();
        let number = |text: Option<&str>| text.map(|text| text.parse::<f64>().map_err(|_| wrong())).transpose();
        let (rate, keep) = (number(rate)?, number(keep)?.unwrap_or(1.0));
        match (sizes.as_slice(), rate) {
            (&[frames, height, width], rate) if size.split('x').count() == 3 && (rate.is_some() || frames == 1) => {
                Ok(Self {
                    frames,
                    height,
                    width,
                    frame_rate_hz: rate.unwrap_or(1.0),
                    keep,
                })
            }
            _ => Err(wrong()),
        }
    }
}

/// Number format of latents and embeddings on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// bfloat16
    Bf16,
    /// IEEE half precision
    F16,
    /// IEEE single precision
    F32,
}

impl Precision {
    /// libtorch's name.
    #[must_use]
    pub const fn kind(self) -> Kind {
        match self {
            Self::Bf16 => Kind::BFloat16,
            Self::F16 => Kind::Half,
            Self::F32 => Kind::Float,
        }
    }

    /// Bytes of a number.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            "f32" => Ok(Self::F32),
            _ => Err(format!("`{text}` is no number format; allowed: bf16, f16, f32")),
        }
    }
}

/// What is made of a folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where files go; see `assign.rs` for the rule.
    pub buckets: Vec<Bucket>,
    /// Number format of latents and embeddings.
    pub precision: Precision,
    /// A shard holds at most this many bytes of numbers, and at least one clip.
    pub shard_bytes: u64,
    /// Draws which files a bucket keeps.
    pub seed: u64,
    /// Which lines of the list are taken; those without a split belong to each.
    pub split: Split,
    /// Most clips of one file, from its beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clips_per_file: Option<u64>,
}

impl Settings {
    /// What is common: bfloat16 in shards of 256 MiB.
    #[must_use]
    pub const fn of(buckets: Vec<Bucket>) -> Self {
        Self {
            buckets,
            precision: Precision::Bf16,
            shard_bytes: 256 << 20,
            seed: 0,
            split: Split::Train,
            clips_per_file: None,
        }
    }

    /// # Errors
    /// For the first setting that is not allowed.
    pub fn check(&self) -> Result<(), ShardError> {
        let wrong = |field: String, found: &dyn std::fmt::Display, allowed: &str| ShardError::Setting {
            field,
            found: found.to_string(),
            allowed: allowed.to_owned(),
        };
        if self.buckets.is_empty() {
            return Err(wrong("buckets".to_owned(), &"empty", "at least one bucket"));
        }
        for (i, bucket) in self.buckets.iter().enumerate() {
            let field = |name: &str| format!("buckets[{i}].{name}");
            if !(1..=4096).contains(&bucket.frames) {
                return Err(wrong(field("frames"), &bucket.frames, "1 to 4096"));
            }
            for (name, pixels) in [("height", bucket.height), ("width", bucket.width)] {
                if !pixels.is_multiple_of(PIXELS_PER_LATENT) || !(8..=8192).contains(&pixels) {
                    return Err(wrong(field(name), &pixels, "multiples of 8 from 8 to 8192"));
                }
            }
            if !(0.01..=1000.0).contains(&bucket.frame_rate_hz) {
                return Err(wrong(field("frame_rate_hz"), &bucket.frame_rate_hz, "0.01 to 1000"));
            }
            if !(0.0..=1.0).contains(&bucket.keep) {
                return Err(wrong(field("keep"), &bucket.keep, "0 to 1"));
            }
            let same = |other: &Bucket| {
                (other.frames, other.height, other.width, other.frame_rate_hz)
                    == (bucket.frames, bucket.height, bucket.width, bucket.frame_rate_hz)
            };
            if self.buckets[..i].iter().any(same) {
                return Err(wrong(format!("buckets[{i}]"), bucket, "each bucket once"));
            }
        }
        if self.shard_bytes == 0 {
            return Err(wrong("shard_bytes".to_owned(), &0, "1 or more"));
        }
        if self.clips_per_file == Some(0) {
            return Err(wrong("clips_per_file".to_owned(), &0, "1 or more"));
        }
        Ok(())
    }
}

//! Latents of a folder of captioned clips and pictures, in shards with an index.
//!
//! A [`Plan`] looks through the folder and says what becomes of each file, as an [`Index`] without digests. [`encode`]
//! makes the shards of a plan, each whole or not at all and the same whoever makes it: an interrupted run makes again
//! the shard it was in, and processes that share the folder share the work. [`Reader`] reads single clips
//! from the shards and [`Sampler`] says which clips a step of training takes.
//!
//! ```text
//! index.json                     what made it, sources, captions, clips, shards with their digests
//! latents-BUCKET-NUMBER.safetensors   `latents` [n, channels, t, h, w]
//! texts-NUMBER.safetensors            `tokens` [n, tokens, width] and, where the encoder has it, `pooled` [n, width]
//! .work/                         what only this machine needs: locks, digests of sources that were looked through
//! ```

mod assign;
mod command;
mod encode;
mod index;
mod parts;
mod plan;
mod reader;
mod sampler;
mod settings;
mod share;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use tch::Tensor;

use super::DataError;
use crate::checkpoint::CheckpointError;
use crate::weights::WeightsError;

pub use command::{EncodeArgs, encode_command};
pub use encode::{News, encode};
pub use index::{Clip, Content, INDEX, Index, MadeBy, Shard, Skipped, Source, Stored, TextShape};
pub use plan::Plan;
pub use reader::Reader;
pub use sampler::{Draw, Sampler, SamplerError};
use settings::PIXELS_PER_LATENT;
pub use settings::{Bucket, Precision, Settings};
pub(crate) use share::{Done, make_together, take_over};

/// Folder of what only this machine needs.
const WORK: &str = ".work";

/// What turns frames and captions into numbers.
pub trait Encoders {
    /// Names the weights: equal names, equal latents and embeddings.
    fn digest(&self) -> String;
    /// Channels of a latent.
    fn latent_channels(&self) -> i64;
    /// Whether clips are encoded, or single pictures alone.
    fn codes_time(&self) -> bool {
        true
    }
    /// Pixels of a latent in height and width.
    fn pixels_per_latent(&self) -> i64 {
        PIXELS_PER_LATENT.into()
    }
    /// Latents of clips.
    ///
    /// # Shapes
    /// - `frames`: `[b, 3, t, 8h, 8w]` in −1..1; output `[b, channels, latent_frames(t), h, w]`
    fn latents(&self, frames: &Tensor) -> Tensor;
    /// Embeddings of captions; the empty one is the null text of guidance.
    fn texts(&self, captions: &[&str]) -> Texts;
}

/// Embeddings of captions.
#[derive(Debug)]
pub struct Texts {
    /// `[captions, tokens, width]`
    pub tokens: Tensor,
    /// `[captions, width]`, where the encoder has it.
    pub pooled: Option<Tensor>,
}

/// Why latents could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// A setting is not allowed.
    #[error("`{field}` is {found}; allowed: {allowed}")]
    Setting {
        /// Its name.
        field: String,
        /// What was asked for.
        found: String,
        /// What may be.
        allowed: String,
    },
    /// A file holds something else than it should.
    #[error("{path}: {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What was found and what is expected, with the field.
        problem: String,
    },
    /// A shard is not the one the index names.
    #[error("{path}: found {found}, the index says {expected}; encode again, which mends it, or restore the file")]
    Damaged {
        /// The shard.
        path: PathBuf,
        /// Its size or digest.
        found: String,
        /// Those of the index.
        expected: String,
    },
    /// No file of the folder can be used.
    #[error("nothing of {folder} can be encoded:\n{}", reasons.join("\n"))]
    NothingLeft {
        /// The folder.
        folder: PathBuf,
        /// Why, by file.
        reasons: Vec<String>,
    },
    /// Whoever asked does not want to wait any longer.
    #[error("interrupted")]
    Interrupted,
    /// A file cannot be read or written.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Nothing can be drawn.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// A shard is no whole file of tensors.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Tensors cannot be written.
    #[error(transparent)]
    Tensors(#[from] CheckpointError),
}

impl ShardError {
    fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Data(DataError::File { path, source })
    }

    fn content(path: &Path, problem: impl std::fmt::Display) -> Self {
        Self::Content {
            path: path.to_owned(),
            problem: problem.to_string(),
        }
    }
}

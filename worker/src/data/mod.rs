//! Captioned clips: where they come from, how they are split, and their latents on disk.

pub mod clips;
pub mod emoji;
pub mod encoded;
pub mod latents;
pub mod shapes;
pub mod sharded;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Frames of a clip: one chunk of the VAE, 5 latent frames.
pub const FRAMES: usize = 17;
/// Height and width of a clip in pixels.
pub const SIDE: usize = 64;
/// Red, green, blue.
pub const CHANNELS: usize = 3;
/// Bytes of one frame.
pub const FRAME_BYTES: usize = SIDE * SIDE * CHANNELS;

/// What a prompt or clip shows, as indices into the [`Vocabulary`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// The object class.
    pub object: usize,
    /// The colour.
    pub color: usize,
    /// The motion, where the caption names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub motion: Option<usize>,
}

/// A caption with what it asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// The caption.
    pub caption: String,
    /// What it names.
    #[serde(flatten)]
    pub attributes: Attributes,
}

/// A captioned clip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clip {
    /// Its caption.
    pub prompt: Prompt,
    /// `FRAMES × SIDE × SIDE × CHANNELS` bytes.
    pub frames: Vec<u8>,
}

/// Names of what can be seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vocabulary {
    /// Object classes.
    pub objects: Vec<String>,
    /// Colours.
    pub colors: Vec<String>,
    /// Motions.
    pub motions: Vec<String>,
}

/// Which clips: those trained on, or those kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Trained on.
    Train,
    /// Kept apart for prompts and for measuring the evaluators.
    HeldOut,
}

/// A dataset of captioned clips.
pub trait ClipSource {
    /// What identifies the clips: two sources with equal settings give equal bytes.
    fn settings(&self) -> serde_json::Value;
    /// What can be seen in them.
    fn vocabulary(&self) -> Vocabulary;
    /// Number of clips.
    fn len(&self, split: Split) -> usize;
    /// Whether there are none.
    fn is_empty(&self, split: Split) -> bool {
        self.len(split) == 0
    }
    /// The caption of a clip, without its frames.
    fn attributes(&self, split: Split, index: usize) -> Prompt;
    /// A clip.
    ///
    /// # Errors
    /// Where its files cannot be read.
    fn clip(&self, split: Split, index: usize) -> Result<Clip, DataError>;
    /// The distinct captions of a split.
    fn prompts(&self, split: Split) -> Vec<Prompt>;
}

/// Opens a dataset by name: `shapes`, `emoji`, or the path of a folder of captioned clips.
///
/// # Errors
/// Where there is no such dataset or its files are missing under `cache`.
pub fn open(dataset: &str, cache: &Path) -> Result<Box<dyn ClipSource>, DataError> {
    match dataset {
        "shapes" => Ok(Box::new(shapes::Shapes::default())),
        "emoji" => Ok(Box::new(emoji::Emoji::open(cache)?)),
        folder if Path::new(folder).is_dir() => Ok(Box::new(clips::ClipFolder::open(Path::new(folder))?)),
        found => Err(DataError::UnknownDataset {
            found: found.to_owned(),
        }),
    }
}

/// The name of a dataset, by which its parts are found: its own, or that of its folder.
#[must_use]
pub fn name_of(dataset: &str) -> &str {
    let last = Path::new(dataset).file_name().and_then(|name| name.to_str());
    last.unwrap_or(dataset)
}

/// Where everything that can be made or fetched again lies: `$TEMPONAS_CACHE`, else `~/.cache/temponas`.
#[must_use]
pub fn default_cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/temponas");
    std::env::var_os("TEMPONAS_CACHE").map_or_else(home, PathBuf::from)
}

/// Why clips could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file holds something else than it should.
    #[error("{path}: {problem}")]
    Content {
        /// The file, with the line where there is one.
        path: String,
        /// What was found and what is allowed.
        problem: String,
    },
    /// Lines of a list of captions are wrong.
    #[error("{}", problems.join("\n"))]
    Captions {
        /// Each with file, line, field, what was found and what is allowed.
        problems: Vec<String>,
    },
    /// No such dataset.
    #[error("`{found}` is no dataset; allowed: shapes, emoji, or the folder of a set of clips")]
    UnknownDataset {
        /// What was asked for.
        found: String,
    },
    /// A package is missing.
    #[error("{folder} does not hold {what}; fetch it with `{command}`")]
    NotFetched {
        /// Where it was looked for.
        folder: PathBuf,
        /// What is missing.
        what: &'static str,
        /// How to get it.
        command: &'static str,
    },
    /// Another program cannot be started.
    #[error("{program}: {problem}")]
    NoProgram {
        /// The program.
        program: String,
        /// What it is needed for and how to get it.
        problem: String,
    },
    /// Another program was ended before it was done.
    #[error("{program} was ended over {path} ({status}); try again")]
    Ended {
        /// The program.
        program: String,
        /// The file that it read.
        path: PathBuf,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// Another program failed.
    #[error("{program}: {problem}")]
    Program {
        /// The program.
        program: String,
        /// What happened.
        problem: String,
    },
}

impl DataError {
    /// Whether another try with the same file may go well.
    pub(crate) const fn is_passing(&self) -> bool {
        matches!(self, Self::NoProgram { .. } | Self::Ended { .. })
    }

    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        |source| Self::File { path, source }
    }

    pub(crate) fn content(path: impl std::fmt::Display, problem: impl Into<String>) -> Self {
        Self::Content {
            path: path.to_string(),
            problem: problem.into(),
        }
    }
}

/// Bytes of clips as numbers in −1..1.
///
/// # Shapes
/// - `clips`: each `FRAMES × SIDE × SIDE × CHANNELS` bytes; output `[clips, 3, FRAMES, SIDE, SIDE]`, float32
pub fn to_tensor(clips: &[&[u8]]) -> Tensor {
    let (frames, side, channels) = (FRAMES as i64, SIDE as i64, CHANNELS as i64);
    let bytes = Tensor::from_slice(&clips.concat()).reshape([clips.len() as i64, frames, side, side, channels]);
    bytes.permute([0, 4, 1, 2, 3]).to_kind(Kind::Float) / 127.5 - 1.0
}

/// Bytes of single frames as numbers in −1..1.
///
/// # Shapes
/// - `frames`: each `SIDE × SIDE × CHANNELS` bytes; output `[frames, 3, SIDE, SIDE]`, float32
pub fn frames_to_tensor(frames: &[&[u8]]) -> Tensor {
    let (side, channels) = (SIDE as i64, CHANNELS as i64);
    let bytes = Tensor::from_slice(&frames.concat()).reshape([frames.len() as i64, side, side, channels]);
    bytes.permute([0, 3, 1, 2]).to_kind(Kind::Float).contiguous() / 127.5 - 1.0
}

/// The reverse of [`to_tensor`], for any number of frames.
///
/// # Shapes
/// - `clip`: `[3, frames, height, width]` in −1..1; output `frames × height × width × 3` bytes
#[must_use]
pub fn to_bytes(clip: &Tensor) -> Vec<u8> {
    let scaled = ((clip.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to_kind(Kind::Uint8);
    let flat = scaled.permute([1, 2, 3, 0]).contiguous().flatten(0, -1);
    Vec::try_from(&flat).unwrap_or_default()
}

//! The small pretrained parts: VAE, text encoder, backbone and evaluators of a dataset, as files with a manifest.
//!
//! They are trained by `temponas-worker assets` from clips that anyone can make again, and say in their manifest how
//! good they are; or they are published weights that `temponas-worker import` laid out, without evaluators.

mod command;
mod evaluators;
mod import;
mod latents;
mod manifest;
mod recipe;
mod replaced;
mod stage;
mod train;
mod words;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use tch::{Device, Tensor, nn};

use crate::data::latents::TrainingSet;
use crate::data::sharded::ShardError;
use crate::data::{DataError, Prompt, Vocabulary, name_of};
use crate::models::clip::ClipModel;
use crate::models::text::{Text, TextEncoder};
use crate::models::tokenizer::TokenizerError;
use crate::models::unet::is_temporal;
use crate::models::vae::Vae;
use crate::scoring::clip::{Aesthetic, PictureScorer};
use crate::scoring::evaluators::{ClipReader, Evaluators, FrameReader};
use crate::weights::{self, Layout, WeightsError};

pub use command::{AssetsArgs, command};
pub use import::{ImportArgs, command as import_command};
pub use latents::{LatentsArgs, latents_command};
pub(crate) use manifest::digest_of;
pub use manifest::{FileEntry, Manifest};
pub use recipe::{Recipe, Schedule, Training};

const MANIFEST: &str = "manifest.json";
pub(crate) const VAE: &str = "vae.safetensors";
pub(crate) const TEXT: &str = "text.safetensors";
const BACKBONE: &str = "backbone.safetensors";
const EVALUATORS: &str = "evaluators.safetensors";
const CLIP: &str = "clip.safetensors";
const AESTHETIC: &str = "aesthetic.safetensors";

/// Why assets could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum AssetsError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A tensor file could not be read or written.
    #[error("{path}: {source}")]
    Tensors {
        /// The file.
        path: PathBuf,
        /// What libtorch says.
        source: tch::TchError,
    },
    /// A tokenizer cannot be read.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Weights do not fit their model.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A file holds something else than it should.
    #[error("{path}: {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        problem: String,
    },
    /// A file is not the one the manifest names.
    #[error(
        "{path} has SHA-256 {found}, its manifest says {expected}; restore it or train it again with `temponas-worker assets --dataset {dataset}`"
    )]
    Checksum {
        /// The file.
        path: PathBuf,
        /// Its digest.
        found: String,
        /// The manifest's.
        expected: String,
        /// The dataset it belongs to.
        dataset: String,
    },
    /// A training came to nothing.
    #[error("`{stage}` cannot be trained on: at step {step} the norm of its gradients is {norm}")]
    Diverged {
        /// What was trained.
        stage: String,
        /// The step, from 0.
        step: u64,
        /// The norm.
        norm: f64,
    },
    /// Whoever asked does not want to wait any longer.
    #[error("interrupted")]
    Interrupted,
    /// The clips cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Their latents cannot be made or read.
    #[error(transparent)]
    Shards(ShardError),
}

impl From<ShardError> for AssetsError {
    fn from(error: ShardError) -> Self {
        match error {
            ShardError::Interrupted => Self::Interrupted,
            error => Self::Shards(error),
        }
    }
}

/// The trained parts of a dataset, ready for use; all weights are fixed.
#[derive(Debug)]
pub struct Assets {
    /// What they are and how good.
    pub manifest: Manifest,
    /// Clips to latents and back.
    pub vae: Vae,
    /// Captions to embeddings.
    pub text: Text,
    /// What reads sampled clips; imported parts have none.
    pub evaluators: Option<Evaluators>,
    folder: PathBuf,
    device: Device,
}

impl Assets {
    /// Reads `root/dataset/`, checks every file against the manifest and puts the parts on `device`.
    ///
    /// # Errors
    /// Where a file is missing, changed, or does not fit the manifest's sizes.
    pub fn open(root: &Path, dataset: &str, device: Device) -> Result<Self, AssetsError> {
        let folder = root.join(name_of(dataset));
        let manifest = Manifest::read(&folder)?;
        manifest.check_files(&folder)?;
        let recipe = &manifest.recipe;
        let vae = load(&folder.join(VAE), &Layout::VAE, device, |vs| {
            Vae::new(&vs.root(), &recipe.vae)
        })?;
        let encoder = |vs: &nn::VarStore| TextEncoder::new(&vs.root(), &recipe.text, manifest.tokenizer.size());
        let text = load(&folder.join(TEXT), &Layout::CLIP_TEXT, device, encoder)?;
        let evaluators = evaluators(&manifest, &folder, device)?;
        let text = Text::new(text, manifest.tokenizer.clone(), &recipe.text, device);
        Ok(Self {
            vae,
            text,
            evaluators,
            manifest,
            folder,
            device,
        })
    }

    /// Copies the backbone's weights into every spatial variable of `vs`; temporal layers stay as they are.
    ///
    /// # Errors
    /// Where the file does not hold exactly the spatial variables: the UNet is not the one that was trained.
    pub fn load_backbone(&self, vs: &nn::VarStore) -> Result<(), AssetsError> {
        let spatial: HashMap<String, Tensor> = vs
            .variables()
            .into_iter()
            .filter(|(name, _)| !is_temporal(name))
            .collect();
        Ok(weights::load_into(
            spatial,
            &self.folder.join(BACKBONE),
            &Layout::PLAIN,
        )?)
    }

    /// Who scores single pictures, read anew, where the parts bring CLIP.
    ///
    /// # Errors
    /// Where its files do not fit the manifest's sizes.
    pub fn picture_scorer(&self) -> Result<Option<PictureScorer>, AssetsError> {
        let Some(config) = self.manifest.recipe.clip else {
            return Ok(None);
        };
        let (tokenizer, device) = (self.manifest.tokenizer.clone(), self.device);
        let clip = load(&self.folder.join(CLIP), &Layout::CLIP, device, |vs| {
            ClipModel::new(&vs.root(), &config, tokenizer.size())
        })?;
        let aesthetic = self.manifest.files.contains_key(AESTHETIC);
        let aesthetic = aesthetic
            .then(|| Aesthetic::read(&self.folder.join(AESTHETIC), config.image.projection, device))
            .transpose()?;
        Ok(Some(PictureScorer {
            clip,
            config,
            tokenizer,
            aesthetic,
            device,
        }))
    }

    /// Latents and texts to train candidates on: from the file beside the parts, else made under `cache` where they
    /// are not there yet.
    ///
    /// # Errors
    /// Where clips cannot be read, latents cannot be written, or `progress` breaks it off.
    pub fn training_set(
        &self,
        cache: &Path,
        progress: &mut dyn FnMut(f64) -> ControlFlow<()>,
    ) -> Result<TrainingSet, AssetsError> {
        TrainingSet::open(self, cache, progress)
    }

    /// Up to `count` prompts that were never trained on, spread over all of them.
    #[must_use]
    pub fn prompts(&self, count: usize) -> Vec<Prompt> {
        let all = &self.manifest.held_out_prompts;
        let count = count.min(all.len());
        (0..count).map(|i| all[i * all.len() / count].clone()).collect()
    }

    /// Shape of one clip's latents: `[channels, frames, height, width]`.
    #[must_use]
    pub fn latent_shape(&self) -> [i64; 4] {
        let unet = &self.manifest.recipe.backbone;
        [unet.latent_channels, unet.frames, unet.height, unet.width].map(|size| size as i64)
    }

    /// The folder they were read from.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the parts are.
    #[must_use]
    pub const fn device(&self) -> Device {
        self.device
    }

    /// Who scores, and how good it is on clips kept apart.
    #[must_use]
    pub fn evaluator_line(&self) -> String {
        let accuracy = |name: &str| self.manifest.accuracies.get(name).copied().unwrap_or(0.0);
        if self.evaluators.is_none() {
            return format!("none: {} was imported", self.manifest.dataset);
        }
        format!(
            "built-in {} {} (right on held-out clips: consistency {:.3}, object {:.3}, color {:.3})",
            self.manifest.dataset,
            &self.manifest.digest()[..8],
            accuracy("overall_consistency"),
            accuracy("object_class"),
            accuracy("color"),
        )
    }
}

/// The evaluators of the parts, where they have some.
fn evaluators(manifest: &Manifest, folder: &Path, device: Device) -> Result<Option<Evaluators>, AssetsError> {
    let (Some(config), Some(vocabulary)) = (manifest.recipe.evaluators, &manifest.vocabulary) else {
        return Ok(None);
    };
    let Vocabulary { objects, colors, .. } = vocabulary;
    let tokenizer = &manifest.tokenizer;
    let (frames, clips) = load(&folder.join(EVALUATORS), &Layout::PLAIN, device, |vs| {
        let root = vs.root();
        let (objects, colors) = (objects.len() as i64, colors.len() as i64);
        (
            FrameReader::new(&(&root / "frames"), config, objects, colors),
            ClipReader::new(&(&root / "clips"), config, tokenizer.size()),
        )
    })?;
    let tokens = manifest.recipe.text.tokens;
    Ok(Some(Evaluators::new(
        frames,
        clips,
        tokenizer.clone(),
        tokens,
        vocabulary.clone(),
    )))
}

/// Builds a part and fills it from a file.
fn load<T>(
    path: &Path,
    layout: &Layout,
    device: Device,
    build: impl FnOnce(&nn::VarStore) -> T,
) -> Result<T, AssetsError> {
    let vs = nn::VarStore::new(device);
    let part = build(&vs);
    weights::load(&vs, path, layout)?;
    for (_, variable) in vs.variables() {
        let _ = variable.set_requires_grad(false);
    }
    Ok(part)
}

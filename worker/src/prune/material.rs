//! What a pruning works with: both networks, and the clips of each stage.

use std::ops::ControlFlow;
use std::path::Path;

use search_spaces::{Precision, UnetConfig};
use tch::{Device, Kind};

use super::copy_map::CopyMapError;
use super::network::Network;
use super::plan::PlanStage;
use crate::assets::{Assets, AssetsError, digest_of};
use crate::data::latents::{Batch, TrainingSet, single_frames};
use crate::data::sharded::ShardError;
use crate::models::seeded::{generator, stream_of};

/// The networks and the clips of a pruning.
#[derive(Debug)]
pub struct Material {
    /// The full UNet, fixed.
    pub full: Network,
    /// The pruned UNet at its start.
    pub start: Network,
    seed: u64,
    /// Of the distillation, and of the adaptation where it has others.
    parts: Vec<(Assets, TrainingSet)>,
}

/// Where everything is read from.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The parts that hold the full UNet, and the latents to distil on.
    pub distillation: Parts<'a>,
    /// The parts whose VAE made the latents to adapt to, where they are others.
    pub adaptation: Option<Parts<'a>>,
    /// Folder of clips and latents.
    pub cache: &'a Path,
    /// Where everything is put.
    pub device: Device,
}

/// Trained parts of a dataset.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// Folder of the parts of all datasets.
    pub assets: &'a Path,
    /// The dataset.
    pub dataset: &'a str,
}

/// Why a pruning cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// Trained parts or clips cannot be read.
    #[error(transparent)]
    Assets(#[from] AssetsError),
    /// The pruned UNet cannot start from the full one.
    #[error(transparent)]
    CopyMap(#[from] CopyMapError),
    /// The latents or texts to adapt to do not fit the networks.
    #[error("the parts `{dataset}` have `{setting}` {found}; the backbone takes {expected}")]
    Misfit {
        /// The parts.
        dataset: String,
        /// The setting.
        setting: &'static str,
        /// What it is there.
        found: u64,
        /// What it should be.
        expected: u64,
    },
}

impl Material {
    /// Reads the full UNet, which is pruned to `config`, and the clips of both stages.
    ///
    /// # Errors
    /// Where they cannot be read or do not fit each other, or `progress` breaks off.
    pub fn open(
        sources: &Sources<'_>,
        config: &UnetConfig,
        seed: u64,
        progress: &mut dyn FnMut(f64) -> ControlFlow<()>,
    ) -> Result<Self, MaterialError> {
        let first = Assets::open(
            sources.distillation.assets,
            sources.distillation.dataset,
            sources.device,
        )?;
        let full = Network::of_parts(&first)?;
        let start = full.pruned(config, seed)?;
        let mut parts = Vec::new();
        let second = sources
            .adaptation
            .map(|parts| Assets::open(parts.assets, parts.dataset, sources.device));
        for assets in [Some(first), second.transpose()?].into_iter().flatten() {
            fits(&assets, &full.config)?;
            let clips = assets.training_set(sources.cache, progress)?;
            parts.push((assets, clips));
        }
        Ok(Self {
            full,
            start,
            seed,
            parts,
        })
    }

    /// Single latent frames of the clips of a step: a picture shows what a latent frame of a clip shows, its share of
    /// motion included.
    ///
    /// # Errors
    /// Where a shard cannot be read.
    pub fn batch(&self, index: usize, stage: &PlanStage<'_>, step: u64) -> Result<Batch, ShardError> {
        let (_, clips) = &self.parts[index.min(self.parts.len() - 1)];
        let seed = self.seed ^ stream_of(stage.name);
        let batch = clips.batch(seed, step, u64::from(stage.settings.batch), stage.settings.text_dropout)?;
        Ok(single_frames(batch, &mut generator(seed ^ stream_of("frame"), step)))
    }

    /// Has the teacher compute in the number format of its pupil's training. What was rounded stays so.
    pub fn compute_in(&mut self, precision: Precision) {
        self.full.set_kind(match precision {
            Precision::F32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
        });
    }

    /// The parts that the full backbone belongs to: those of the first stage.
    #[must_use]
    pub fn first_parts(&self) -> &Assets {
        &self.parts[0].0
    }

    /// Names all parts: a digest of their digests.
    #[must_use]
    pub fn parts_digest(&self) -> String {
        let digests: Vec<String> = self.parts.iter().map(|(assets, _)| assets.manifest.digest()).collect();
        digest_of(&digests)
    }

    /// The parts that the pruned backbone belongs to in the end: those of the last stage.
    #[must_use]
    pub fn last_parts(&self) -> &Assets {
        &self.parts[self.parts.len() - 1].0
    }
}

fn fits(assets: &Assets, full: &UnetConfig) -> Result<(), MaterialError> {
    let theirs = &assets.manifest.recipe.backbone;
    let settings = [
        ("latent_channels", theirs.latent_channels, full.latent_channels),
        ("text_width", theirs.text_width, full.text_width),
    ];
    match settings.into_iter().find(|(_, found, expected)| found != expected) {
        None => Ok(()),
        Some((setting, found, expected)) => Err(MaterialError::Misfit {
            dataset: assets.manifest.dataset.clone(),
            setting,
            found,
            expected,
        }),
    }
}

//! What a pruning works with: both networks, and the clips of each stage.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use search_spaces::UnetConfig;
use tch::{Device, nn};

use super::copy_map::CopyMapError;
use super::recipe::{PruneRecipe, Stage};
use super::training::Network;
use crate::assets::{Assets, AssetsError};
use crate::data::latents::{Batch, TrainingSet};
use crate::models::UNet;

/// The networks, the recipe and the clips of a pruning.
#[derive(Debug)]
pub struct Material {
    /// The full UNet, fixed.
    pub full: Network,
    /// The pruned UNet, at its start.
    pub pruned: Network,
    /// What is done.
    pub recipe: PruneRecipe,
    /// By dataset.
    parts: BTreeMap<String, (Assets, TrainingSet)>,
    dataset: String,
}

/// Where everything is read from.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// Folder of the trained parts of all datasets.
    pub assets: &'a Path,
    /// The dataset whose parts hold the full UNet.
    pub dataset: &'a str,
    /// Folder of clips and latents.
    pub cache: &'a Path,
    /// Where everything is put.
    pub device: Device,
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
    /// The latents or texts of a stage do not fit the networks.
    #[error("stage `{stage}` trains on `{dataset}`, whose {what} is {found}; the backbone takes {expected}")]
    Misfit {
        /// The stage.
        stage: String,
        /// Its parts.
        dataset: String,
        /// The setting.
        what: &'static str,
        /// What it is there.
        found: u64,
        /// What it should be.
        expected: u64,
    },
}

impl Material {
    /// Reads the full UNet, which is pruned to `config`, and the clips of every stage.
    ///
    /// # Errors
    /// Where they cannot be read or do not fit each other, or `progress` breaks off.
    pub fn open(
        sources: &Sources<'_>,
        config: &UnetConfig,
        recipe: PruneRecipe,
        progress: &mut dyn FnMut(f64) -> ControlFlow<()>,
    ) -> Result<Self, MaterialError> {
        let mut parts = BTreeMap::new();
        let named = recipe.stages.iter().filter_map(|stage| stage.dataset.as_deref());
        for dataset in named.chain([sources.dataset]) {
            if !parts.contains_key(dataset) {
                let assets = Assets::open(sources.assets, dataset, sources.device)?;
                let clips = assets.training_set(sources.cache, progress)?;
                parts.insert(dataset.to_owned(), (assets, clips));
            }
        }
        let full = backbone_of(&parts[sources.dataset].0)?;
        let material = Self {
            pruned: full.pruned(config, recipe.seed)?,
            full,
            recipe,
            parts,
            dataset: sources.dataset.to_owned(),
        };
        material.check()?;
        Ok(material)
    }

    /// The clips of a step.
    #[must_use]
    pub fn batch(&self, stage: &Stage, step: u64) -> Batch {
        let (_, clips) = &self.parts[self.dataset_of(stage)];
        clips.batch(self.recipe.seed, step, stage.batch, stage.text_dropout)
    }

    /// The parts that the pruned backbone belongs to in the end: those of the last stage.
    #[must_use]
    pub fn last_parts(&self) -> &Assets {
        let dataset = self
            .recipe
            .stages
            .last()
            .map_or(self.dataset.as_str(), |stage| self.dataset_of(stage));
        &self.parts[dataset].0
    }

    fn dataset_of<'a>(&'a self, stage: &'a Stage) -> &'a str {
        stage.dataset.as_deref().unwrap_or(&self.dataset)
    }

    fn check(&self) -> Result<(), MaterialError> {
        let ours = &self.full.config;
        for stage in &self.recipe.stages {
            let dataset = self.dataset_of(stage);
            let theirs = &self.parts[dataset].0.manifest.recipe.backbone;
            let settings = [
                ("latent_channels", theirs.latent_channels, ours.latent_channels),
                ("text_width", theirs.text_width, ours.text_width),
            ];
            if let Some((what, found, expected)) = settings.into_iter().find(|(_, found, expected)| found != expected) {
                return Err(MaterialError::Misfit {
                    stage: stage.name.clone(),
                    dataset: dataset.to_owned(),
                    what,
                    found,
                    expected,
                });
            }
        }
        Ok(())
    }
}

/// The backbone of trained parts, fixed.
///
/// # Errors
/// Where its weights cannot be read.
pub fn backbone_of(assets: &Assets) -> Result<Network, AssetsError> {
    let config = assets.manifest.recipe.backbone.clone();
    let mut vs = nn::VarStore::new(assets.device());
    let unet = UNet::new(&vs.root(), &config, &[]);
    assets.load_backbone(&vs)?;
    vs.freeze();
    Ok(Network { config, vs, unet })
}

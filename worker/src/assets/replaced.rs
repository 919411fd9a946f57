//! Trained parts with another backbone or another VAE.

use std::path::Path;

use search_spaces::UnetConfig;
use tch::nn;

use super::manifest::{FileEntry, Manifest};
use super::stage::write_tensors;
use super::{Assets, AssetsError, BACKBONE, Recipe, VAE};
use crate::data::encoded::{Encoded, LATENTS};
use crate::data::{DataError, name_of};
use crate::models::vae::VaeConfig;

impl Assets {
    /// Writes these parts below `root` with `backbone` in place of their own; the latents beside them go along, as they
    /// depend on the VAE alone. `command` says how the backbone was made.
    ///
    /// # Errors
    /// Where a file cannot be read or written.
    pub fn write_with_backbone(
        &self,
        root: &Path,
        config: &UnetConfig,
        backbone: &nn::VarStore,
        command: &str,
    ) -> Result<Manifest, AssetsError> {
        let edit = |recipe: &mut Recipe| recipe.backbone = config.clone();
        self.write_with(root, (BACKBONE, backbone), edit, command)
    }

    /// Writes these parts below `root` with `vae`, whose encoder is theirs, in place of their own; so the latents beside
    /// them go along. `command` says how its decoder was made.
    ///
    /// # Errors
    /// Where a file cannot be read or written.
    pub fn write_with_vae(
        &self,
        root: &Path,
        config: &VaeConfig,
        vae: &nn::VarStore,
        command: &str,
    ) -> Result<Manifest, AssetsError> {
        let edit = |recipe: &mut Recipe| recipe.vae = config.clone();
        self.write_with(root, (VAE, vae), edit, command)
    }

    fn write_with(
        &self,
        root: &Path,
        (file, vs): (&str, &nn::VarStore),
        edit: impl FnOnce(&mut Recipe),
        command: &str,
    ) -> Result<Manifest, AssetsError> {
        let dataset = &self.manifest.dataset;
        let folder = root.join(name_of(dataset));
        std::fs::create_dir_all(&folder).map_err(DataError::file(&folder))?;
        let mut manifest = self.manifest.clone();
        for name in manifest.files.keys().filter(|name| *name != file) {
            let (from, to) = (self.folder().join(name), folder.join(name));
            std::fs::copy(&from, &to).map_err(DataError::file(from))?;
        }
        let path = folder.join(file);
        let weights: Vec<_> = vs.variables().into_iter().collect();
        write_tensors(&weights, &path)?;
        manifest.files.insert(file.to_owned(), FileEntry::of(&path)?);
        edit(&mut manifest.recipe);
        if file == VAE {
            // That of another decoder.
            manifest.reconstruction_error = None;
        }
        manifest.command = command.to_owned();
        manifest.write(&folder)?;

        let latents = self.folder().join(LATENTS);
        if latents.exists() {
            let written = Self::open(root, dataset, self.device())?;
            Encoded::read(self, &latents)?.write(&written, &folder.join(LATENTS))?;
        }
        Ok(manifest)
    }
}

//! Trained parts with another backbone.

use std::path::Path;

use search_spaces::UnetConfig;
use tch::nn;

use super::manifest::{FileEntry, Manifest};
use super::stage::write_tensors;
use super::{Assets, AssetsError, BACKBONE};
use crate::data::encoded::{Encoded, LATENTS};
use crate::data::{DataError, name_of};

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
        let dataset = &self.manifest.dataset;
        let folder = root.join(name_of(dataset));
        std::fs::create_dir_all(&folder).map_err(DataError::file(&folder))?;
        let mut manifest = self.manifest.clone();
        for name in manifest.files.keys().filter(|name| *name != BACKBONE) {
            let (from, to) = (self.folder().join(name), folder.join(name));
            std::fs::copy(&from, &to).map_err(DataError::file(from))?;
        }
        let path = folder.join(BACKBONE);
        let weights: Vec<_> = backbone.variables().into_iter().collect();
        write_tensors(&weights, &path)?;
        manifest.files.insert(BACKBONE.to_owned(), FileEntry::of(&path)?);
        manifest.recipe.backbone = config.clone();
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

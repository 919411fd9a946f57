//! A backbone with its sizes and weights.

use std::collections::HashMap;

use search_spaces::UnetConfig;
use tch::{Device, Kind, Tensor, nn};

use super::copy_map::{CopyMap, CopyMapError};
use crate::assets::{Assets, AssetsError};
use crate::models::UNet;
use crate::models::seeded::seed_weights;

/// A backbone without temporal layers.
#[derive(Debug)]
pub struct Network {
    /// Its sizes.
    pub config: UnetConfig,
    /// Its weights.
    pub vs: nn::VarStore,
    /// The network.
    pub unet: UNet,
}

impl Network {
    fn new(config: &UnetConfig, device: Device) -> Self {
        let vs = nn::VarStore::new(device);
        let unet = UNet::new(&vs.root(), config, &[]);
        Self {
            config: config.clone(),
            vs,
            unet,
        }
    }

    /// With weights drawn from a seed.
    #[must_use]
    pub fn seeded(config: &UnetConfig, seed: u64, device: Device) -> Self {
        let network = Self::new(config, device);
        seed_weights(&network.vs, seed);
        network
    }

    /// The backbone of trained parts, fixed.
    ///
    /// # Errors
    /// Where its weights cannot be read.
    pub fn of_parts(assets: &Assets) -> Result<Self, AssetsError> {
        let mut network = Self::new(&assets.manifest.recipe.backbone, assets.device());
        assets.load_backbone(&network.vs)?;
        network.vs.freeze();
        Ok(network)
    }

    /// A smaller backbone whose weights start from this one's, and from `seed` where this one has nothing of the kind.
    ///
    /// # Errors
    /// Where it is not smaller.
    pub fn pruned(&self, config: &UnetConfig, seed: u64) -> Result<Self, CopyMapError> {
        let map = CopyMap::new(&self.config, config)?;
        let pruned = Self::seeded(config, seed, self.vs.device());
        map.copy(&self.vs.variables(), &pruned.vs)?;
        Ok(pruned)
    }

    /// Another one of the same sizes with these weights, by name; what is missing stays as it is here.
    pub(super) fn with_weights(&self, weights: &HashMap<String, Tensor>) -> Result<Self, tch::TchError> {
        let network = Self::new(&self.config, self.vs.device());
        let own = self.vs.variables();
        for (name, mut variable) in network.vs.variables() {
            let weight = weights.get(&name).or_else(|| own.get(&name));
            if let Some(weight) = weight {
                tch::no_grad(|| variable.f_copy_(weight))?;
            }
        }
        Ok(network)
    }

    /// Has it compute in another number format.
    pub fn set_kind(&mut self, kind: Kind) {
        self.vs.set_kind(kind);
    }
}

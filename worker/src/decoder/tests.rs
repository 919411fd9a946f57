//! A small VAE, and its separable twin, for the tests of this module.

use std::path::Path;

use tch::{Device, nn};

use super::material::{Material, Network};
use super::pictures::Dataset;
use crate::assets::Assets;
use crate::data::shapes::Shapes;
use crate::models::seeded::{normal, seed_weights};
use crate::models::vae::{
    Convolutions, SpatialConfig, SpatialDecoder, TemporalConfig, TemporalDecoder, Vae, VaeConfig,
};

/// Its encoder is that of the shipped small VAE in all but its widths.
pub(crate) fn config() -> VaeConfig {
    VaeConfig {
        spatial: SpatialConfig {
            block_out_channels: vec![4, 4, 8, 8],
            layers_per_block: 1,
            norm_groups: 2,
            latent_channels: 4,
            decoder: None,
        },
        temporal: Some(TemporalConfig {
            filters: 4,
            channel_multipliers: vec![1, 1, 2, 2],
            res_blocks: 1,
            norm_groups: 2,
            decoder: None,
        }),
    }
}

pub(crate) fn compressed() -> VaeConfig {
    let mut config = config();
    config.spatial.decoder = Some(SpatialDecoder {
        convolutions: Convolutions::Separable,
        middle_attention: false,
        ..config.spatial.decoder()
    });
    config.temporal = config.temporal.map(|temporal| TemporalConfig {
        decoder: Some(TemporalDecoder {
            convolutions: Convolutions::Separable,
            ..temporal.decoder()
        }),
        ..temporal
    });
    config
}

/// The small VAE with drawn weights and latent statistics, fixed.
pub(crate) fn original() -> (nn::VarStore, Vae) {
    let vs = nn::VarStore::new(Device::Cpu);
    let mut vae = Vae::new(&vs.root(), &config());
    seed_weights(&vs, 3);
    vae.set_statistics(&normal(&[3, 4, 2, 2, 2], 5, Device::Cpu));
    for (_, variable) in vs.variables() {
        let _ = variable.set_requires_grad(false);
    }
    (vs, vae)
}

/// Four steps of each part on the shipped small VAE.
pub(crate) const RECIPE: &str = r#"
    name = "short"
    stage = "decoder"
    trains = "all"
    [training]
    steps = 4
    batch = 2
    accumulate = 2
    learning_rate = 1e-3
    ema = 0.9
    checkpoint_every = 3
    [decoder]
    middle_attention = false
    pictures = 4
    feature_weight = 0.1
"#;

/// The shipped parts of `shapes` with a few clips.
pub(crate) fn material() -> Material {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets");
    let parts = Assets::open(&root, "shapes", Device::Cpu).unwrap();
    let few = Shapes {
        clips_per_combination: 1,
        held_out_per_combination: 1,
        ..Shapes::default()
    };
    Material {
        original: Network::of_parts(&parts).unwrap(),
        pictures: Box::new(Dataset::new(Box::new(few))),
        parts,
    }
}

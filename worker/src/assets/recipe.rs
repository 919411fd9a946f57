//! Sizes and steps of everything `assets` trains, by dataset.

use std::path::Path;

use search_spaces::{Dtype, UnetConfig};
use serde::{Deserialize, Serialize};

use crate::models::clip::ClipConfig;
use crate::models::text::TextConfig;
use crate::models::vae::{SpatialConfig, TemporalConfig, VaeConfig};
use crate::scoring::evaluators::EvaluatorConfig;

/// What is trained, and how long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Seed of all weights and draws.
    pub seed: u64,
    /// The VAE.
    pub vae: VaeConfig,
    /// The text encoder.
    pub text: TextConfig,
    /// The backbone; number format and parts do not matter to it.
    pub backbone: UnetConfig,
    /// The evaluators; none came with imported parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluators: Option<EvaluatorConfig>,
    /// CLIP, which scores single pictures, where the parts bring it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<ClipConfig>,
    /// Steps, batches and learning rates; imported parts were trained elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<Training>,
}

/// Steps, batch and learning rate of each stage.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// The VAE's per-frame stage, on single frames.
    pub vae_spatial: Schedule,
    /// The VAE's stage over time, on the first stage's latents.
    pub vae_temporal: Schedule,
    /// Backbone and text encoder, on single latent frames.
    pub backbone: Schedule,
    /// Mean and standard deviation of the logit of the times they are trained at. What a frame shows is settled near
    /// pure noise, which the standard logit-normal hardly ever draws.
    pub backbone_times: (f64, f64),
    /// The evaluator of single frames.
    pub frame_reader: Schedule,
    /// The evaluator of clips.
    pub clip_reader: Schedule,
}

/// How long one stage trains.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Optimizer steps.
    pub steps: u64,
    /// Frames or clips a step.
    pub batch: u64,
    /// Height of the learning rate.
    pub learning_rate: f64,
}

const fn schedule(steps: u64, batch: u64, learning_rate: f64) -> Schedule {
    Schedule {
        steps,
        batch,
        learning_rate,
    }
}

const SHAPES_TRAINING: Training = Training {
    vae_spatial: schedule(1800, 16, 3e-3),
    vae_temporal: schedule(1500, 8, 3e-3),
    backbone: schedule(4000, 48, 2e-3),
    backbone_times: (0.5, 1.2),
    frame_reader: schedule(2000, 32, 2e-3),
    clip_reader: schedule(1500, 24, 2e-3),
};

impl Recipe {
    /// Looks whether the parts can be built and fit each other.
    ///
    /// # Errors
    /// The size that cannot be, what it is and what is allowed.
    pub fn check(&self) -> Result<(), String> {
        self.vae.check()?;
        self.text.check()?;
        if let Some(evaluators) = &self.evaluators {
            evaluators.check()?;
        }
        if let Some(clip) = &self.clip {
            clip.check()?;
        }
        for (what, of_unet, of_part) in [
            (
                "unet.text_width and text.width",
                self.backbone.text_width,
                self.text.width,
            ),
            (
                "unet.text_tokens and text.tokens",
                self.backbone.text_tokens,
                self.text.tokens,
            ),
            (
                "unet.latent_channels and vae.spatial.latent_channels",
                self.backbone.latent_channels,
                self.vae.spatial.latent_channels,
            ),
        ] {
            if i64::try_from(of_unet) != Ok(of_part) {
                return Err(format!(
                    "{what} are {of_unet} and {of_part}; expected are equal numbers"
                ));
            }
        }
        Ok(())
    }

    /// The recipe of a dataset, where there is one; that of `emoji` serves any folder of clips.
    #[must_use]
    pub fn of(dataset: &str) -> Option<Self> {
        match dataset {
            "shapes" => Some(Self::shapes()),
            "emoji" => Some(Self::emoji()),
            folder if Path::new(folder).is_dir() => Some(Self::emoji()),
            _ => None,
        }
    }

    /// The recipe for `shapes`: about 25 minutes of one core.
    #[must_use]
    pub fn shapes() -> Self {
        Self {
            seed: 1,
            vae: VaeConfig {
                spatial: SpatialConfig {
                    block_out_channels: vec![8, 8, 16, 32],
                    layers_per_block: 1,
                    norm_groups: 4,
                    latent_channels: 4,
                    decoder: None,
                },
                temporal: Some(TemporalConfig {
                    filters: 16,
                    channel_multipliers: vec![1, 1, 2, 2],
                    res_blocks: 1,
                    norm_groups: 4,
                    decoder: None,
                }),
            },
            text: TextConfig {
                tokens: 8,
                width: 32,
                heads: 2,
                layers: 1,
            },
            backbone: UnetConfig {
                latent_channels: 4,
                frames: 5,
                height: 8,
                width: 8,
                channels: vec![32, 64],
                layers_per_block: 1,
                attention: vec![false, true],
                middle: true,
                heads: 4,
                text_tokens: 8,
                text_width: 32,
                norm_groups: 8,
                ff_multiplier: 2,
                qk_norm: true,
                rope: false,
                dtype: Dtype::F32,
                parts: 1,
            },
            evaluators: Some(EvaluatorConfig {
                width: 16,
                embedding: 48,
            }),
            clip: None,
            training: Some(SHAPES_TRAINING),
        }
    }
    /// The recipe for `emoji`: the sizes of `shapes` with longer captions.
    #[must_use]
    pub fn emoji() -> Self {
        const TOKENS: u64 = 12;
        let shapes = Self::shapes();
        Self {
            text: TextConfig {
                tokens: TOKENS as i64,
                ..shapes.text
            },
            backbone: UnetConfig {
                text_tokens: TOKENS,
                ..shapes.backbone
            },
            clip: None,
            training: Some(Training {
                vae_spatial: schedule(1000, 16, 3e-3),
                vae_temporal: schedule(800, 8, 3e-3),
                backbone: schedule(2500, 48, 2e-3),
                frame_reader: schedule(1000, 32, 2e-3),
                clip_reader: schedule(1200, 24, 2e-3),
                ..SHAPES_TRAINING
            }),
            ..shapes
        }
    }
}

#[cfg(test)]
mod tests {
    use search_spaces::Space;

    use super::*;

    #[test]
    fn the_shipped_spaces_search_around_the_backbones_that_are_trained() {
        let shapes = include_str!("../../../search-spaces/spaces/shapes-tiny.toml");
        let emoji = include_str!("../../../search-spaces/spaces/emoji-small.toml");
        for (recipe, toml) in [(Recipe::shapes(), shapes), (Recipe::emoji(), emoji)] {
            let space = Space::parse(toml).unwrap();
            assert_eq!(space.unet(), Some(&recipe.backbone), "{}", space.name);
            assert_eq!(recipe.text.tokens as u64, recipe.backbone.text_tokens);
        }
    }
}

//! What is done to compress a decoder: its sizes and its training, from a recipe.

use search_spaces::{Decoder, Precision, Recipe, SpaceError, Stage, TrainingSettings, Trains};
use serde::Serialize;

use super::Part;
use crate::models::vae::{Convolutions, SpatialDecoder, TemporalDecoder, VaeConfig};

/// A recipe that was found fit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    recipe: Recipe,
    decoder: Decoder,
    /// Seed of every draw, and of the weights that the original has nothing for.
    pub seed: u64,
}

/// Why a recipe cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// It is none.
    #[error("the recipe: {0}")]
    Recipe(#[from] SpaceError),
    /// A field does not do for a decoder, or for this VAE.
    #[error("`{field}` of the recipe `{recipe}` is {found}; allowed: {allowed}")]
    Field {
        /// The recipe's name.
        recipe: String,
        /// The field.
        field: &'static str,
        /// What it is.
        found: String,
        /// What would do.
        allowed: String,
    },
}

impl Plan {
    /// Reads a recipe file.
    ///
    /// # Errors
    /// Where it is no recipe of a decoder.
    pub fn parse(recipe: &str, seed: u64) -> Result<Self, PlanError> {
        Self::new(Recipe::parse(recipe)?, seed)
    }

    /// Of a recipe that was read.
    ///
    /// # Errors
    /// Where it is one of another stage, or asks for what a decoder is not trained with.
    pub fn new(recipe: Recipe, seed: u64) -> Result<Self, PlanError> {
        let Stage::Decoder(decoder) = recipe.stage.clone() else {
            return Err(refused(&recipe, "stage", "another", "decoder"));
        };
        let plan = Self { recipe, decoder, seed };
        let training = &plan.recipe.training;
        if training.precision != Precision::F32 {
            return Err(plan.refused("training.precision", "bf16", "f32"));
        }
        if training.gradient_checkpointing {
            return Err(plan.refused("training.gradient_checkpointing", "true", "false"));
        }
        let (pictures, parts) = (plan.decoder.pictures, training.accumulate.max(1));
        if pictures % parts != 0 {
            let allowed = format!("a multiple of `training.accumulate`, {parts}");
            return Err(plan.refused("decoder.pictures", pictures, allowed));
        }
        Ok(plan)
    }

    fn refused(&self, field: &'static str, found: impl ToString, allowed: impl Into<String>) -> PlanError {
        refused(&self.recipe, field, found, allowed)
    }

    /// The recipe's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.recipe.name
    }

    /// The recipe's own settings of a decoder.
    #[must_use]
    pub const fn settings(&self) -> &Decoder {
        &self.decoder
    }

    /// How weights move.
    #[must_use]
    pub const fn training(&self) -> &TrainingSettings {
        &self.recipe.training
    }

    /// What is trained of a VAE, in order: both decoders, or that over time alone.
    #[must_use]
    pub fn parts(&self, config: &VaeConfig) -> Vec<Part> {
        let over_time = config.temporal.as_ref().map(|_| Part::Temporal);
        let per_frame = (self.recipe.trains == Trains::All).then_some(Part::Spatial);
        over_time.into_iter().chain(per_frame).collect()
    }

    /// Sizes of the VAE with its new decoders; those that are not trained stay as they are.
    ///
    /// # Errors
    /// Where there can be no such VAE, or nothing of it is trained.
    pub fn config(&self, original: &VaeConfig) -> Result<VaeConfig, PlanError> {
        let settings = self.settings();
        let convolutions = match settings.separable {
            true => Convolutions::Separable,
            false => Convolutions::Dense,
        };
        let widths = |named: &Option<Vec<u32>>, of_original: Vec<i64>| match named {
            Some(widths) => widths.iter().map(|&width| width.into()).collect(),
            None => of_original,
        };
        let mut config = original.clone();
        let parts = self.parts(original);
        if parts.contains(&Part::Spatial) {
            let SpatialDecoder {
                block_out_channels,
                middle_attention,
                ..
            } = original.spatial.decoder();
            config.spatial.decoder = Some(SpatialDecoder {
                block_out_channels: widths(&settings.spatial_channels, block_out_channels),
                convolutions,
                middle_attention: middle_attention && settings.middle_attention,
            });
        }
        if let Some(temporal) = &mut config.temporal {
            temporal.decoder = Some(TemporalDecoder {
                level_channels: widths(&settings.temporal_channels, temporal.decoder().level_channels),
                convolutions,
            });
        }
        if parts.is_empty() {
            return Err(self.refused("trains", "temporal", "all, as the VAE is one of single pictures"));
        }
        config
            .check()
            .map_err(|problem| self.refused("decoder", "channels that do not fit the VAE", problem))?;
        let alike = |part: &Part| shares_features(*part, original, &config);
        if settings.feature_weight > 0.0 && !parts.iter().all(alike) {
            let allowed = "0 where no level has the original's channels";
            return Err(self.refused("decoder.feature_weight", settings.feature_weight, allowed));
        }
        Ok(config)
    }
}

fn refused(recipe: &Recipe, field: &'static str, found: impl ToString, allowed: impl Into<String>) -> PlanError {
    PlanError::Field {
        recipe: recipe.name.clone(),
        field,
        found: found.to_string(),
        allowed: allowed.into(),
    }
}

/// Whether there is a level with the same number of channels in both.
fn shares_features(part: Part, a: &VaeConfig, b: &VaeConfig) -> bool {
    let levels = |config: &VaeConfig| match (part, &config.temporal) {
        (Part::Temporal, Some(temporal)) => temporal.decoder().level_channels,
        _ => config.spatial.decoder().block_out_channels,
    };
    levels(a).iter().zip(&levels(b)).any(|(a, b)| a == b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assets::Recipe as Sizes;
    use crate::models::published::open_sora_vae;
    use crate::recipes::recipe;

    fn plan(name: &str) -> Plan {
        Plan::new(recipe(name).unwrap(), 1).unwrap()
    }

    #[test]
    fn the_papers_recipe_keeps_the_published_widths_and_separates() {
        let original = open_sora_vae();
        let config = plan("decoder").config(&original).unwrap();
        let [before, after] = [&original, &config].map(|config| config.decoder_work(17, 64, 64));
        let times = |part: usize| before[part].macs as f64 / after[part].macs as f64;
        assert_eq!([times(0).round(), times(1).round()], [24.0, 8.0]);
        assert_eq!(config.spatial.block_out_channels, original.spatial.block_out_channels);
    }

    #[test]
    fn the_small_recipes_go_together() {
        let small = Sizes::shapes().vae;
        let wide = plan("decoder-wide").config(&small).unwrap();
        assert_eq!(
            wide.spatial.block_out_channels, small.spatial.block_out_channels,
            "the encoder's"
        );
        assert_eq!(wide.spatial.decoder().convolutions, Convolutions::Dense);
        let compressed = plan("decoder-small").config(&wide).unwrap();
        let [before, after] = [&wide, &compressed].map(|config| config.decoder_work(17, 8, 8));
        for part in 0..2 {
            assert!(
                before[part].macs > 5 * after[part].macs,
                "{:?} {:?}",
                before[part],
                after[part]
            );
        }
    }

    #[test]
    fn what_a_decoder_is_not_trained_with_is_refused() {
        let original = open_sora_vae();
        let text = include_str!("../../recipes/decoder.toml");
        let error = |from: &str, to: &str| {
            let plan = Plan::parse(&text.replace(from, to), 1);
            let config = plan.and_then(|plan| plan.config(&original));
            config.unwrap_err().to_string()
        };
        for (from, to, problem) in [
            (
                "\"f32\"",
                "\"bf16\"",
                "`training.precision` of the recipe `decoder` is bf16; allowed: f32",
            ),
            (
                "pictures = 32",
                "pictures = 30",
                "a multiple of `training.accumulate`, 4",
            ),
            (
                "pictures = 32",
                "pictures = 32\nspatial_channels = [32]",
                "as many numbers as the encoder has levels",
            ),
            (
                "pictures = 32",
                "pictures = 32\nspatial_channels = [32, 32, 32, 32]",
                "0 where no level has the original's channels",
            ),
            (
                "pictures = 32",
                "pictures = 32\ntemporal_channels = [8, 8, 8, 8]",
                "norm_groups is 32",
            ),
        ] {
            let found = error(from, to);
            assert!(found.contains(problem), "{found}");
        }
        let other = Plan::new(recipe("pruning").unwrap(), 1).unwrap_err().to_string();
        assert!(other.contains("`stage` of the recipe `pruning`"), "{other}");
        let pictures = VaeConfig {
            temporal: None,
            ..original
        };
        let temporal = Plan::parse(&text.replace("\"all\"", "\"temporal\""), 1).unwrap();
        assert!(
            temporal
                .config(&pictures)
                .unwrap_err()
                .to_string()
                .contains("single pictures")
        );
    }
}

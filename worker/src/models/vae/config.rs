//! Sizes of the VAE, and whether a VAE of these sizes can be built.

use serde::{Deserialize, Serialize};

use super::{SpatialConfig, SpatialDecoder, TemporalConfig, TemporalDecoder};
use crate::models::text::LARGEST;

/// Sizes of the VAE.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaeConfig {
    /// The per-frame stage.
    pub spatial: SpatialConfig,
    /// The stage over time; a VAE of single pictures, as Stable Diffusion's own, has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temporal: Option<TemporalConfig>,
}

/// What the 3×3 and 3×3×3 convolutions of a decoder are.
///
/// Separable ones (Howard et al. 2017; the paper's Appendix B) filter each channel by itself, and then mix the channels
/// of each place: `y = P (D ∗ x)` with a kernel `D` of one filter a channel, and a matrix `P` that carries the bias. The
/// first convolution of a decoder, of a few latent channels, and its last, to them or to colours, stay dense: filters
/// of their own for so few channels would be all that is seen of the latents, and there is little to save. So do
/// convolutions over single places.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Convolutions {
    /// Every channel sees every channel's surroundings, as in the published VAE.
    #[default]
    Dense,
    /// Depth-wise, then point-wise.
    Separable,
}

impl VaeConfig {
    /// Looks whether a VAE of these sizes can be built.
    ///
    /// # Errors
    /// The size that cannot be, what it is and what is allowed.
    pub fn check(&self) -> Result<(), String> {
        let spatial = &self.spatial;
        within([
            ("spatial.layers_per_block", spatial.layers_per_block),
            ("spatial.norm_groups", spatial.norm_groups),
            ("spatial.latent_channels", spatial.latent_channels),
        ])?;
        let widths = &spatial.block_out_channels;
        channels("spatial.block_out_channels", widths, spatial.norm_groups)?;
        if let Some(SpatialDecoder { block_out_channels, .. }) = &spatial.decoder {
            channels(
                "spatial.decoder.block_out_channels",
                block_out_channels,
                spatial.norm_groups,
            )?;
            if block_out_channels.len() != widths.len() {
                return Err(format!(
                    "vae.spatial.decoder.block_out_channels is {block_out_channels:?}; allowed are as many numbers as \
                     the encoder has levels, {}",
                    widths.len()
                ));
            }
        }
        match &self.temporal {
            None => Ok(()),
            Some(temporal) => temporal.check(),
        }
    }
}

impl TemporalConfig {
    fn check(&self) -> Result<(), String> {
        within([
            ("temporal.filters", self.filters),
            ("temporal.res_blocks", self.res_blocks),
            ("temporal.norm_groups", self.norm_groups),
        ])?;
        let multipliers = &self.channel_multipliers;
        if multipliers.len() != 4 || !positive(multipliers) {
            return Err(format!(
                "vae.temporal.channel_multipliers is {multipliers:?}; allowed are 4 numbers from 1, as two of four levels halve time"
            ));
        }
        let filters = multipliers.iter().map(|multiplier| multiplier * self.filters);
        divides("temporal.norm_groups", self.norm_groups, filters)?;
        let Some(TemporalDecoder { level_channels, .. }) = &self.decoder else {
            return Ok(());
        };
        channels("temporal.decoder.level_channels", level_channels, self.norm_groups)?;
        if level_channels.len() == multipliers.len() {
            return Ok(());
        }
        Err(format!(
            "vae.temporal.decoder.level_channels is {level_channels:?}; allowed are 4 numbers from 1"
        ))
    }
}

/// Channels of the levels of one network.
fn channels(name: &str, widths: &[i64], groups: i64) -> Result<(), String> {
    if !(1..=8).contains(&widths.len()) || !positive(widths) {
        return Err(format!("vae.{name} is {widths:?}; allowed are 1 to 8 numbers from 1"));
    }
    let stage = name.split('.').next().unwrap_or_default();
    divides(&format!("{stage}.norm_groups"), groups, widths.iter().copied())
}

fn within(sizes: [(&str, i64); 3]) -> Result<(), String> {
    match sizes.into_iter().find(|(_, found)| !(1..=LARGEST).contains(found)) {
        Some((name, found)) => Err(format!("vae.{name} is {found}; allowed is 1 to {LARGEST}")),
        None => Ok(()),
    }
}

fn positive(list: &[i64]) -> bool {
    list.iter().all(|size| (1..=LARGEST).contains(size))
}

fn divides(name: &str, groups: i64, mut widths: impl Iterator<Item = i64>) -> Result<(), String> {
    match widths.find(|width| width % groups != 0) {
        Some(width) => Err(format!(
            "vae.{name} is {groups}; allowed are divisors of all channels, also {width}"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::published::open_sora_vae;

    #[test]
    fn a_decoder_of_its_own_must_fit_the_encoder() {
        let with = |spatial: &[i64], temporal: &[i64]| {
            let mut config = open_sora_vae();
            config.spatial.decoder = Some(SpatialDecoder {
                block_out_channels: spatial.to_vec(),
                convolutions: Convolutions::Separable,
                middle_attention: false,
            });
            if let Some(over_time) = &mut config.temporal {
                over_time.decoder = Some(TemporalDecoder {
                    level_channels: temporal.to_vec(),
                    convolutions: Convolutions::Separable,
                });
            }
            config.check().err().unwrap_or_default()
        };
        assert_eq!(with(&[32, 64, 64, 96], &[32, 32, 64, 64]), "");
        for (spatial, temporal, problem) in [
            (
                &[32, 64, 64][..],
                &[32; 4][..],
                "spatial.decoder.block_out_channels is [32, 64, 64]",
            ),
            (
                &[32, 64, 0, 64],
                &[32; 4],
                "spatial.decoder.block_out_channels is [32, 64, 0, 64]",
            ),
            (
                &[32, 64, 80, 64],
                &[32; 4],
                "spatial.norm_groups is 32; allowed are divisors of all channels, also 80",
            ),
            (&[32; 4], &[32; 3], "temporal.decoder.level_channels is [32, 32, 32]"),
            (&[32; 4], &[32, 32, 33, 32], "temporal.norm_groups is 32"),
        ] {
            let found = with(spatial, temporal);
            assert!(found.contains(problem), "{found}");
        }
    }

    #[test]
    fn a_decoder_that_mirrors_its_encoder_is_not_written_down() {
        let written = serde_json::to_string(&open_sora_vae()).unwrap();
        assert!(!written.contains("decoder"), "{written}");
    }
}

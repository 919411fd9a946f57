//! The models that are compared, each with the names of its inputs and outputs.

use anyhow::Context;
use search_spaces::{Operator, UnetConfig};
use serde::Deserialize;
use tch::{Tensor, nn};

use super::Tensors;
use crate::models::UNet;
use crate::models::clip::{ClipConfig, ClipModel};
use crate::models::temporal::{Clip, TemporalConfig, TemporalOperator};
use crate::models::text::{TextConfig, TextEncoder, pooled};
use crate::models::vae::{SpatialConfig, SpatialVae, Vae, VaeConfig};

/// One of our models with its sizes.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ModelConfig {
    /// The spatial backbone: `sample` `[b, c, t, h, w]`, `time` `[b]`, `text` `[b, l, d]` → `velocity` as `sample`.
    Unet(UnetConfig),
    /// The text encoder: `tokens` `[b, l]` → `hidden` `[b, l, width]` and `pooled` `[b, width]`.
    TextEncoder {
        /// Sizes.
        config: TextConfig,
        /// Number of tokens known.
        vocabulary: i64,
        /// The token that ends a caption.
        end: i64,
    },
    /// Both towers of CLIP: `pixels` `[b, 3, image, image]`, `tokens` `[b, l]` → `image_features`, `text_features`
    /// `[b, projection]`.
    Clip {
        /// Sizes.
        config: ClipConfig,
        /// Number of tokens known.
        vocabulary: i64,
        /// The token that ends a caption.
        end: i64,
    },
    /// The VAE of single frames: `frames` `[n, 3, 8h, 8w]` → `mean`, `log_variance` `[n, c, h, w]`; `latents`
    /// `[n, c, h, w]` → `decoded` `[n, 3, 8h, 8w]`.
    SpatialVae(SpatialConfig),
    /// Both stages of the VAE: `clip` `[b, 3, t, 8h, 8w]` → `latents` `[b, c, latent_frames(t), h, w]`.
    Vae(VaeConfig),
    /// A temporal operator: `clips` `[b · frames, c, h, w]`, `text` `[b, l, d]` → `moved` as `clips`.
    TemporalOperator {
        /// Which.
        operator: Operator,
        /// Channels.
        channels: i64,
        /// Attention heads.
        heads: i64,
        /// Width of a text token.
        text_width: i64,
        /// Groups of the convolutions' norm.
        groups: i64,
        /// Frames of a clip.
        frames: i64,
    },
}

/// A model with its weights in a store.
#[derive(Debug)]
pub(super) enum Model {
    Unet(Box<UNet>),
    TextEncoder { encoder: TextEncoder, end: i64 },
    Clip { clip: Box<ClipModel>, end: i64 },
    SpatialVae(Box<SpatialVae>),
    Vae(Box<Vae>),
    TemporalOperator { operator: TemporalOperator, frames: i64 },
}

impl Model {
    pub(super) fn new(vs: &nn::Path<'_>, config: &ModelConfig) -> Self {
        match config {
            ModelConfig::Unet(config) => Self::Unet(Box::new(UNet::new(vs, config, &[]))),
            ModelConfig::TextEncoder {
                config,
                vocabulary,
                end,
            } => Self::TextEncoder {
                encoder: TextEncoder::new(vs, config, *vocabulary),
                end: *end,
            },
            ModelConfig::Clip {
                config,
                vocabulary,
                end,
            } => Self::Clip {
                clip: Box::new(ClipModel::new(vs, config, *vocabulary)),
                end: *end,
            },
            ModelConfig::SpatialVae(config) => Self::SpatialVae(Box::new(SpatialVae::new(vs, config))),
            ModelConfig::Vae(config) => Self::Vae(Box::new(Vae::new(vs, config))),
            &ModelConfig::TemporalOperator {
                operator,
                channels,
                heads,
                text_width,
                groups,
                frames,
            } => {
                let sizes = TemporalConfig {
                    channels,
                    heads,
                    text_width,
                    groups,
                };
                Self::TemporalOperator {
                    operator: TemporalOperator::new(vs.clone(), operator, sizes),
                    frames,
                }
            }
        }
    }

    /// One pass from named inputs to named outputs.
    pub(super) fn forward(&self, inputs: &Tensors) -> anyhow::Result<Tensors> {
        let input = |name: &str| {
            inputs
                .get(name)
                .with_context(|| format!("the case has no input `{name}`"))
        };
        let outputs = match self {
            Self::Unet(unet) => vec![(
                "velocity",
                unet.forward(input("sample")?, input("time")?, input("text")?),
            )],
            Self::TextEncoder { encoder, end } => {
                let tokens = input("tokens")?;
                let hidden = encoder.forward(tokens);
                let pooled = pooled(&hidden, tokens, *end);
                vec![("hidden", hidden), ("pooled", pooled)]
            }
            Self::Clip { clip, end } => vec![
                ("image_features", clip.image_features(input("pixels")?)),
                ("text_features", clip.text_features(input("tokens")?, *end)),
            ],
            Self::SpatialVae(vae) => {
                let (mean, log_variance) = vae.moments(input("frames")?);
                let decoded = vae.decode(input("latents")?);
                vec![("mean", mean), ("log_variance", log_variance), ("decoded", decoded)]
            }
            Self::Vae(vae) => vec![("latents", vae.encode(input("clip")?))],
            Self::TemporalOperator { operator, frames } => {
                let clip = Clip {
                    frames: *frames,
                    text: input("text")?,
                };
                vec![("moved", operator.forward(input("clips")?, clip))]
            }
        };
        Ok(outputs
            .into_iter()
            .map(|(name, tensor): (&str, Tensor)| (name.to_owned(), tensor))
            .collect())
    }
}

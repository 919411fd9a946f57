//! The discriminator: the model's own way down, frozen, and a head or two after each of its levels.

use std::collections::BTreeMap;

use search_spaces::{Heads, TemporalLayer, UnetConfig};
use tch::{Device, Kind, Tensor, nn};

use super::head::{Head, HeadConfig, HeadKind};
use crate::models::seeded::{seed_weights, stream_of};
use crate::models::trained::{MisfitError, Trained};
use crate::models::unet::{Activations, Encoder, Features};

/// Judges noised clips: low where they look real.
///
/// The backbone's weights take no gradients; through them, gradients reach the clips and so the generator.
#[derive(Debug)]
pub struct Discriminator {
    encoder: Encoder,
    /// What `encoder` is made of.
    frozen: Vec<(String, Tensor)>,
    /// Of each level, the finest first.
    heads: Vec<Vec<Head>>,
    learned: nn::VarStore,
}

/// What a discriminator is made from.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// Sizes of the diffusion model.
    pub config: &'a UnetConfig,
    /// Its temporal layers.
    pub layers: &'a [Option<TemporalLayer>],
    /// All its weights.
    pub weights: &'a BTreeMap<String, Tensor>,
    /// Width of the embedding of a caption as a whole.
    pub caption_width: i64,
}

impl Discriminator {
    /// With the diffusion model's weights in the number format `kind`, and heads drawn from `seed`.
    ///
    /// # Errors
    /// Where the weights are not all the model's.
    pub fn new(sources: Sources<'_>, heads: Heads, kind: Kind, seed: u64, device: Device) -> Result<Self, MisfitError> {
        let Sources { config, layers, .. } = sources;
        let mut model = Trained::seeded(config, layers, seed, device);
        model.take(sources.weights)?;
        model.vs.freeze();
        if kind != Kind::Float {
            model.vs.set_kind(kind);
        }
        let kept = ["conv_in.", "time_embedding.", "down_blocks.", "temporal.down_"];
        let is_kept = |name: &str| kept.iter().any(|part| name.starts_with(part));
        let frozen = model
            .vs
            .variables()
            .into_iter()
            .filter(|(name, _)| is_kept(name))
            .collect();

        let learned = nn::VarStore::new(device);
        let kinds: &[(&str, HeadKind)] = match heads {
            Heads::Unified => &[("unified", HeadKind::SpaceAndTime)],
            Heads::Separate => &[("space", HeadKind::Space), ("time", HeadKind::Time)],
        };
        let head = |level: usize, channels: u64| {
            let cfg = HeadConfig {
                channels: channels as i64,
                groups: config.norm_groups as i64,
                attention_heads: config.heads as i64,
                time_width: 4 * config.channels[0] as i64,
                text_width: sources.caption_width,
            };
            let new = |(name, kind): &(&str, HeadKind)| Head::new(&(learned.root() / level / *name), *kind, cfg);
            kinds.iter().map(new).collect()
        };
        let heads = config.channels.iter().enumerate();
        let heads = heads.map(|(level, channels)| head(level, *channels)).collect();
        seed_weights(&learned, seed ^ stream_of("heads"));
        Ok(Self {
            encoder: model.unet.into_encoder(),
            frozen,
            heads,
            learned,
        })
    }

    /// What the backbone sees of noised clips `[b, c, t, h, w]` at times `[b]` with texts `[b, tokens, width]`.
    pub fn features(&self, xs: &Tensor, time: &Tensor, text: &Tensor, activations: Activations) -> Features {
        self.encoder.forward(xs, time, text, activations)
    }

    /// The judgement of each clip, the mean over heads of the mean over positions: `[b]`. `caption`: `[b, width]`.
    pub fn judge(&self, features: &Features, caption: &Tensor) -> Tensor {
        let of_level = |(level, heads): (usize, &Vec<Head>)| -> Vec<Tensor> {
            let mean = |head: &Head| {
                let judged = head.forward(features, level, caption); // [b, t, h, w]
                judged.mean_dim([1i64, 2, 3].as_slice(), false, Kind::Float)
            };
            heads.iter().map(mean).collect()
        };
        let all: Vec<Tensor> = self.heads.iter().enumerate().flat_map(of_level).collect();
        Tensor::stack(&all, 0).mean_dim([0i64].as_slice(), false, Kind::Float)
    }

    /// The heads' weights by name, in order.
    #[must_use]
    pub fn learned(&self) -> Vec<(String, Tensor)> {
        let mut all: Vec<(String, Tensor)> = self.learned.variables().into_iter().collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// The backbone's weights by name.
    pub fn frozen(&self) -> &[(String, Tensor)] {
        &self.frozen
    }

    /// Whether what is judged next gives the heads gradients.
    pub fn let_heads_learn(&self, learn: bool) {
        for (_, weight) in self.learned.variables() {
            let _ = weight.set_requires_grad(learn);
        }
    }
}

/// Features that no gradient passes through.
pub(super) fn detached(features: &Features) -> Features {
    Features {
        levels: features.levels.iter().map(Tensor::detach).collect(),
        time: features.time.detach(),
        frames: features.frames,
    }
}

//! The discriminator's heads: what judges a level of the frozen backbone.

use search_spaces::{Operator, TemporalLayer};
use tch::{Kind, Tensor, nn};

use crate::models::chain::Chain;
use crate::models::norm::{Conv2d, GroupNorm, RESNET_EPS, Start, conv2d, group_norm, linear};
use crate::models::resnet::{Resnet, ResnetConfig};
use crate::models::temporal::{Clip, TemporalConfig, TemporalStack};
use crate::models::unet::Features;

/// Channels in which features meet the caption. The paper gives none: StyleGAN-T's.
const MEETING_CHANNELS: i64 = 64;
/// Convolutions over time of a head that looks along time alone.
const CONVOLUTIONS: u8 = 2;

/// Sizes of a [`Head`].
#[derive(Debug, Clone, Copy)]
pub struct HeadConfig {
    /// Channels of the level.
    pub channels: i64,
    /// Groups of the norms; divides `channels`.
    pub groups: i64,
    /// Heads of the attention; divides `channels`.
    pub attention_heads: i64,
    /// Width of the embedding of a time.
    pub time_width: i64,
    /// Width of the embedding of a caption as a whole.
    pub text_width: i64,
}

/// Which way a head looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadKind {
    /// A residual block in space, then self-attention over time at each position (the paper's head).
    SpaceAndTime,
    /// A residual block in space (one of SF-V's two heads).
    Space,
    /// Convolutions over time at each position (SF-V's other).
    Time,
}

/// Judges each position of a level: `⟨W σ(G h), P c⟩ / √m`, with `h` the features after the head's own blocks, `G` a
/// group norm, `W` a 1×1 convolution to `m` channels, and `P` a linear layer of the caption's embedding `c`
/// (conditioning by projection, as StyleGAN-T does it: Sauer et al. 2023).
///
/// The residual block is the backbone's own kind and knows the time of the comparison, as SF-V's heads do; attention
/// and convolutions over time are the temporal layers of the search, so they start as the identity and are skipped on
/// images. A head therefore begins by judging frames, and features come to it in float32 whatever made them.
///
/// # Shapes
/// - level `[batch · frames, channels, h, w]`, caption `[batch, text_width]` → judgements `[batch, frames, h, w]`
#[derive(Debug)]
pub struct Head {
    space: Option<Resnet>,
    time: Option<TemporalStack>,
    norm: GroupNorm,
    out: Conv2d,
    caption: nn::Linear,
}

impl Head {
    /// A head with fresh weights under `vs`.
    pub fn new(vs: &nn::Path<'_>, kind: HeadKind, cfg: HeadConfig) -> Self {
        let channels = cfg.channels;
        let space = || {
            let config = ResnetConfig {
                inputs: channels,
                outputs: channels,
                time_width: cfg.time_width,
                groups: cfg.groups,
            };
            Resnet::new(vs / "space", config)
        };
        let time = |operator, depth| {
            let config = TemporalConfig {
                channels,
                heads: cfg.attention_heads,
                text_width: cfg.text_width,
                groups: cfg.groups,
            };
            TemporalStack::new(vs / "time", TemporalLayer { operator, depth }, config)
        };
        let (space, time) = match kind {
            HeadKind::SpaceAndTime => (Some(space()), Some(time(Operator::SelfAttention1d, 1))),
            HeadKind::Space => (Some(space()), None),
            HeadKind::Time => (None, Some(time(Operator::Conv1d, CONVOLUTIONS))),
        };
        Self {
            space,
            time,
            norm: group_norm(vs / "norm", cfg.groups, channels, RESNET_EPS),
            out: conv2d(vs / "out", channels, MEETING_CHANNELS, 1, 1),
            caption: linear(vs / "caption", cfg.text_width, MEETING_CHANNELS, true, Start::Random),
        }
    }

    /// Judges the level `index` of `features`.
    pub fn forward(&self, features: &Features, index: usize, caption: &Tensor) -> Tensor {
        let frames = features.frames;
        let mut hidden = features.levels[index].to_kind(Kind::Float);
        if let Some(space) = &self.space {
            hidden = space.forward(&hidden, &features.time.to_kind(Kind::Float));
        }
        if let Some(time) = &self.time {
            // No kind of these layers reads the tokens of a text.
            let clip = Clip { frames, text: caption };
            hidden = time.forward(hidden, clip);
        }
        let met = hidden.through(&self.norm).then(Tensor::silu).through(&self.out); // [b * t, m, h, w]
        let met = met.unflatten(0, [-1, frames]); // [b, t, m, h, w]
        let wanted = caption.to_kind(Kind::Float).apply(&self.caption); // [b, m]
        let wanted = wanted.unsqueeze(1).unsqueeze(-1).unsqueeze(-1); // [b, 1, m, 1, 1]
        (met * wanted).sum_dim_intlist([2i64].as_slice(), false, Kind::Float) / (MEETING_CHANNELS as f64).sqrt()
    }
}

//! The spatial UNet: what it is made of and where temporal layers may stand.

use serde::{Deserialize, Serialize};

use crate::{Block, Dtype, Operator, Shape, Step, TemporalLayer, work};

/// A UNet with the layout and keys of Stable Diffusion's.
///
/// `conv_in`, time embedding; down level `i`: `layers_per_block` × (ResNet, attention if `attention[i]`),
/// temporal layers of `down.i`, downsampler except on the last level; mid: ResNet, attention, ResNet,
/// temporal layers of `mid`; up level `i` (down level L−1−i mirrored): (`layers_per_block` + 1) ×
/// (concatenate a skip tensor, ResNet, attention), temporal layers of `up.i`, upsampler except on the
/// last; `conv_out`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct UnetConfig {
    /// Channels of the latent in and out.
    pub latent_channels: u64,
    /// Latent frames of a clip.
    pub frames: u64,
    /// Latent rows; halved at every downsampler.
    pub height: u64,
    /// Latent columns.
    pub width: u64,
    /// Channels of each level, highest resolution first.
    pub channels: Vec<u64>,
    /// ResNets of a down level; an up level has one more.
    pub layers_per_block: u64,
    /// Whether a level has attention, highest resolution first.
    pub attention: Vec<bool>,
    /// Whether there is a mid block.
    pub middle: bool,
    /// Attention heads at every level, and of the temporal layers.
    pub heads: u64,
    /// Tokens of a prompt.
    pub text_tokens: u64,
    /// Width of a text token.
    pub text_width: u64,
    /// Groups of every GroupNorm.
    pub norm_groups: u64,
    /// Inner width of the feed-forward in channels.
    pub ff_multiplier: u64,
    /// Whether spatial attention normalises queries and keys; temporal attention always does.
    pub qk_norm: bool,
    /// Whether queries and keys of spatial self-attention are turned by row and column; temporal attention has a
    /// rotary turn of its own. Left out where false: what was written before stays as it was, digests included.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rope: bool,
    /// Number format in which it is profiled and run.
    pub dtype: Dtype,
    /// Parts into which the UNet is split for a device that cannot load it whole.
    pub parts: u64,
}

/// A place for temporal layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnetPosition {
    /// `down.0` … `mid`, `up.0` ….
    pub name: String,
    /// Channels there.
    pub channels: u64,
    /// Rows there.
    pub height: u64,
    /// Columns there.
    pub width: u64,
}

impl UnetConfig {
    /// Where temporal layers may stand, in the order of the forward pass.
    #[must_use]
    pub fn positions(&self) -> Vec<UnetPosition> {
        let levels = self.channels.len();
        let at = |name: String, level: usize| {
            let (height, width) = self.size(level);
            UnetPosition {
                name,
                channels: self.channels[level],
                height,
                width,
            }
        };
        let down = (0..levels).map(|level| at(format!("down.{level}"), level));
        let mid = self.middle.then(|| at("mid".into(), levels.saturating_sub(1)));
        let up = (0..levels).map(|i| at(format!("up.{i}"), levels - 1 - i));
        down.chain(mid).chain(up).collect()
    }

    /// The block of one temporal layer at a position, at batch 1; `None` where there is no such position.
    #[must_use]
    pub fn temporal_block(&self, position: usize, operator: Operator) -> Option<Block> {
        let place = self.positions().into_iter().nth(position)?;
        Some(self.temporal_block_at(&place, operator))
    }

    pub(crate) fn temporal_block_at(&self, place: &UnetPosition, operator: Operator) -> Block {
        let mut shape = self.video_shape(place.height, place.width).with("c", place.channels);
        if operator.is_convolution() {
            shape = shape.with("groups", self.norm_groups);
        } else {
            shape = shape.with("heads", self.heads);
        }
        if operator.reads_text() {
            shape = shape.with("l", self.text_tokens).with("d", self.text_width);
        }
        Block::new(operator.as_str(), shape)
    }

    /// The text encoder as something to profile.
    #[must_use]
    pub fn text_encoder_block(&self) -> Block {
        Block::new(
            "text_encoder",
            Shape::new([("b", 1), ("l", self.text_tokens), ("d", self.text_width)]),
        )
    }

    /// Decoding of all frames as something to profile.
    #[must_use]
    pub fn decoder_block(&self) -> Block {
        Block::new(
            "vae.decode",
            self.video_shape(self.height, self.width)
                .with("c", self.latent_channels),
        )
    }

    /// Parameters of the UNet with the temporal layers at each position.
    #[must_use]
    pub fn parameters(&self, layers: &[Option<TemporalLayer>]) -> u64 {
        self.schedule(layers)
            .iter()
            .fold(0, |sum: u64, step| sum.saturating_add(step.parameters))
    }

    /// Multiply-accumulates of one forward pass.
    #[must_use]
    pub fn macs(&self, layers: &[Option<TemporalLayer>]) -> u64 {
        let macs =
            |step: &Step| work(&step.block, self.dtype).map_or(0, |work| work.macs.saturating_mul(step.repeat.into()));
        self.schedule(layers).iter().map(macs).fold(0, u64::saturating_add)
    }

    /// Rows and columns of a level.
    pub(crate) fn size(&self, level: usize) -> (u64, u64) {
        let divisor = 1_u64
            .checked_shl(u32::try_from(level).unwrap_or(u32::MAX))
            .unwrap_or(u64::MAX);
        (self.height.div_ceil(divisor), self.width.div_ceil(divisor))
    }

    /// Width of the time embedding.
    pub(crate) fn time_width(&self) -> u64 {
        self.channels.first().map_or(0, |c| c.saturating_mul(4))
    }

    pub(crate) fn video_shape(&self, height: u64, width: u64) -> Shape {
        Shape::new([("b", 1), ("t", self.frames), ("h", height), ("w", width)])
    }

    pub(crate) fn with_attention(&self, shape: Shape) -> Shape {
        let shape = shape
            .with("heads", self.heads)
            .with("l", self.text_tokens)
            .with("d", self.text_width)
            .with("ff", self.ff_multiplier)
            .with("qk_norm", self.qk_norm.into());
        // Named only where it is: blocks without keep the keys under which tables know them.
        if self.rope { shape.with("rope", 1) } else { shape }
    }
}

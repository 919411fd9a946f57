//! The temporal UNet: a spatial backbone with Stable Diffusion's layout and temporal layers at its positions.
//!
//! The order of the pass, where temporal layers stand and which tensors are skips is that of
//! [`UnetConfig::schedule`], which predicts cost from it: a level's temporal layers run on the output of its last layer,
//! and the skip tensor of that layer is the tensor after them. Spatial weights carry Stable Diffusion's keys, temporal
//! ones stand under `temporal.`, so a backbone loads into any architecture.

use search_spaces::{TemporalLayer, UnetConfig};
use tch::{Tensor, nn, nn::Module};

use super::blocks::{Downsample, Head, Layer, MidBlock, TimeEmbedding, Upsample};
use super::chain::Chain;
use super::norm::{Conv2d, conv2d};
use super::resnet::ResnetConfig;
use super::segment::Segment;
use super::temporal::{TemporalConfig, TemporalStack};
use super::transformer::TransformerConfig;

mod export;
mod pass;

pub use super::segment::Activations;
pub(crate) use export::export_conv_in;
pub use export::{PassSizes, UnetGraphs};
pub use pass::{Encoder, Features};

/// First part of the name of every temporal weight.
pub const TEMPORAL: &str = "temporal";

/// Velocity of the flow at a noised clip: `v(x, t, text)`.
///
/// The weights may be of another number format than the clip: the pass runs in theirs, the velocity is in the clip's.
/// # Shapes
/// - `xs`: `[batch, latent_channels, frames, h, w]`; `time`: see [`Moment`];
///   `text`: `[batch, tokens, text_width]`; output as `xs`. `h` and `w` may be odd at any level
#[derive(Debug)]
pub struct UNet {
    time_embedding: TimeEmbedding,
    conv_in: Conv2d,
    down: Vec<DownLevel>,
    mid: Option<Segment<MidBlock>>,
    mid_temporal: Option<Segment<TemporalStack>>,
    up: Vec<UpLevel>,
    head: Head,
}

#[derive(Debug)]
struct DownLevel {
    layers: Vec<Segment<Layer>>,
    temporal: Option<Segment<TemporalStack>>,
    downsample: Option<Downsample>,
}

#[derive(Debug)]
struct UpLevel {
    layers: Vec<Segment<Layer>>,
    temporal: Option<Segment<TemporalStack>>,
    upsample: Option<Upsample>,
}

/// The time of a pass.
#[derive(Debug, Clone, Copy)]
pub enum Moment<'a> {
    /// `[batch]` in [0, 1].
    Time(&'a Tensor),
    /// What [`UNet::embed`] made of a time, `[batch, time_width]`: on a fixed grid once for all passes (the paper's
    /// Appendix F).
    Embedded(&'a Tensor),
}

impl<'a> From<&'a Tensor> for Moment<'a> {
    fn from(time: &'a Tensor) -> Self {
        Self::Time(time)
    }
}

impl UNet {
    /// A UNet with fresh weights under `vs`; `layers` in the order of [`UnetConfig::positions`], a missing entry
    /// meaning no layer. Its temporal layers start as the identity.
    pub fn new(vs: &nn::Path<'_>, config: &UnetConfig, layers: &[Option<TemporalLayer>]) -> Self {
        Builder { vs, config, layers }.build()
    }

    /// One pass.
    pub fn forward<'a>(&self, xs: &Tensor, time: impl Into<Moment<'a>>, text: &Tensor) -> Tensor {
        self.pass(xs, time.into(), text, Activations::Kept)
    }

    /// The embedding of times, `[n]` in [0, 1]: `[n, time_width]`.
    pub fn embed(&self, time: &Tensor) -> Tensor {
        self.time_embedding.forward(time)
    }

    /// One pass that leaves `activations` for the backward pass.
    pub fn pass(&self, xs: &Tensor, time: Moment<'_>, text: &Tensor, activations: Activations) -> Tensor {
        self.observed(xs, time, text, activations, &mut |_, _| ())
    }

    /// One pass that shows the tensor at each of [`UnetConfig::positions`], after the temporal layers there, by the
    /// position's index: `[batch · frames, channels, h, w]`.
    pub fn observed(
        &self,
        xs: &Tensor,
        time: Moment<'_>,
        text: &Tensor,
        activations: Activations,
        observe: &mut dyn FnMut(usize, &Tensor),
    ) -> Tensor {
        self.walk(xs, time, text, activations, observe, &mut |_, _, _| ())
    }
}

/// The first convolution: `[b, c, t, h, w]` to `[b * t, channels, h, w]`.
pub(crate) fn conv_in(conv: &Conv2d, xs: &Tensor) -> Tensor {
    xs.transpose(1, 2).flatten(0, 1).through(conv)
}

/// Where the weights of a position's temporal layers stand: `temporal.down_0` for `down.0`.
pub fn temporal_path(position: &str) -> String {
    // A dot would end the name of a path of weights.
    format!("{TEMPORAL}.{}", position.replace('.', "_"))
}

/// Weights of temporal layers, by name.
pub fn is_temporal(name: &str) -> bool {
    name.split('.').next() == Some(TEMPORAL)
}

/// Where in a pass a weight is used, by its name: the later, the greater. Blocks count as used at once.
pub(crate) fn place_in_pass(name: &str) -> (u8, usize, bool) {
    let (first, rest) = name.split_once('.').unwrap_or((name, ""));
    let level = |text: &str| text.split('.').next().and_then(|level| level.parse().ok()).unwrap_or(0);
    match first {
        "time_embedding" | "conv_in" => (0, 0, false),
        "down_blocks" => (1, level(rest), false),
        "mid_block" => (2, 0, false),
        "up_blocks" => (3, level(rest), false),
        TEMPORAL => match rest.split_once('_') {
            Some(("down", rest)) => (1, level(rest), true),
            Some(("up", rest)) => (3, level(rest), true),
            _ => (2, 0, true),
        },
        _ => (4, 0, false),
    }
}

/// Leaves only the temporal weights of a store trainable.
pub fn freeze_spatial(vs: &nn::VarStore) {
    for (name, variable) in vs.variables() {
        let _ = variable.set_requires_grad(is_temporal(&name));
    }
}

impl TransformerConfig {
    /// The transformer of a level of `channels`.
    pub fn of(config: &UnetConfig, channels: u64) -> Self {
        Self {
            channels: channels as i64,
            heads: config.heads as i64,
            text_width: config.text_width as i64,
            groups: config.norm_groups as i64,
            ff_multiplier: config.ff_multiplier as i64,
            qk_norm: config.qk_norm,
            rope: config.rope,
        }
    }
}

impl TemporalConfig {
    /// The temporal layers at a position of `channels`.
    pub fn of(config: &UnetConfig, channels: u64) -> Self {
        Self {
            channels: channels as i64,
            heads: config.heads as i64,
            text_width: config.text_width as i64,
            groups: config.norm_groups as i64,
        }
    }
}

/// Walks the schedule's order while naming weights.
struct Builder<'a> {
    vs: &'a nn::Path<'a>,
    config: &'a UnetConfig,
    layers: &'a [Option<TemporalLayer>],
}

impl Builder<'_> {
    fn build(&self) -> UNet {
        let (vs, config) = (self.vs, self.config);
        let levels = config.channels.len();
        let (latent, first) = (config.latent_channels as i64, config.channels[0] as i64);
        let last = config.channels[levels - 1];

        let mut running = first;
        let mut skips = vec![first];
        let down = (0..levels)
            .map(|i| {
                let path = vs / "down_blocks" / i;
                let channels = config.channels[i] as i64;
                let layers = (0..config.layers_per_block).map(|j| {
                    let inputs = std::mem::replace(&mut running, channels);
                    skips.push(channels);
                    self.layer(&path, j, i, inputs)
                });
                let layers = layers.collect();
                let downsample = (i + 1 < levels).then(|| {
                    skips.push(channels);
                    Downsample::new(&path / "downsamplers" / 0, channels)
                });
                DownLevel {
                    layers,
                    temporal: self.temporal(i),
                    downsample,
                }
            })
            .collect();

        let mid = config.middle.then(|| {
            let channels = last as i64;
            Segment::new(MidBlock::new(
                &(vs / "mid_block"),
                self.resnet(channels, channels),
                TransformerConfig::of(config, last),
            ))
        });
        let mid_temporal = config.middle.then(|| self.temporal(levels)).flatten();

        let first_up = levels + usize::from(config.middle);
        let up = (0..levels)
            .map(|i| {
                let level = levels - 1 - i;
                let path = vs / "up_blocks" / i;
                let channels = config.channels[level] as i64;
                let layers = (0..=config.layers_per_block).map(|j| {
                    let skip = skips.pop().expect("as many skips as up layers");
                    let inputs = std::mem::replace(&mut running, channels) + skip;
                    self.layer(&path, j, level, inputs)
                });
                let layers = layers.collect();
                let upsample = (level > 0).then(|| Upsample::new(&path / "upsamplers" / 0, channels));
                let temporal = self.temporal(first_up + i);
                UpLevel {
                    layers,
                    temporal,
                    upsample,
                }
            })
            .collect();

        UNet {
            time_embedding: TimeEmbedding::new(vs / "time_embedding", first, self.time_width()),
            conv_in: conv2d(vs / "conv_in", latent, first, 3, 1),
            down,
            mid,
            mid_temporal,
            up,
            head: Head::new(vs, first, latent, config.norm_groups as i64),
        }
    }

    fn time_width(&self) -> i64 {
        4 * self.config.channels[0] as i64
    }

    fn resnet(&self, inputs: i64, outputs: i64) -> ResnetConfig {
        ResnetConfig {
            inputs,
            outputs,
            time_width: self.time_width(),
            groups: self.config.norm_groups as i64,
        }
    }

    fn layer(&self, path: &nn::Path<'_>, index: u64, level: usize, inputs: i64) -> Segment<Layer> {
        let channels = self.config.channels[level];
        let attends = self.config.attention.get(level).copied().unwrap_or(false);
        let attention = attends.then(|| TransformerConfig::of(self.config, channels));
        Segment::new(Layer::new(
            path,
            index as i64,
            self.resnet(inputs, channels as i64),
            attention,
        ))
    }

    fn temporal(&self, position: usize) -> Option<Segment<TemporalStack>> {
        let layer = self.layers.get(position).copied().flatten()?;
        let place = self.config.positions().into_iter().nth(position)?;
        let path = temporal_path(&place.name)
            .split('.')
            .fold(self.vs.clone(), |path, name| path / name);
        Some(Segment::new(TemporalStack::new(
            path,
            layer,
            TemporalConfig::of(self.config, place.channels),
        )))
    }
}

#[cfg(test)]
mod tests;

//! The stage over time: causal 3-D convolutions, with Open-Sora 1.2's keys (spec section 3).

use serde::{Deserialize, Serialize};
use tch::{Tensor, nn, nn::Module};

use super::convolution::{CausalConv3d, ClipConv};
use super::{Convolutions, TIME_FACTOR};
use crate::models::chain::Chain;
use crate::models::norm::{GroupNorm, RESNET_EPS as EPS, group_norm};
use crate::onnx::{Export, Graph, Value};

/// Which levels are followed by a halving of the frames: the second and the third.
pub(super) const HALVES_TIME: [bool; 3] = [false, true, true];

/// Sizes of a [`TemporalVae`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemporalConfig {
    /// Channels of the first level.
    pub filters: i64,
    /// Channels of the four levels as multiples of `filters`.
    pub channel_multipliers: Vec<i64>,
    /// Residual blocks of a level.
    pub res_blocks: i64,
    /// Groups of the norms.
    pub norm_groups: i64,
    /// The decoder's own sizes; it mirrors the encoder where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoder: Option<TemporalDecoder>,
}

/// Sizes of a decoder that does not mirror its encoder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemporalDecoder {
    /// Channels of the four levels in the encoder's order: the last ones see the latents, the first ones all frames.
    pub level_channels: Vec<i64>,
    /// What its convolutions are.
    pub convolutions: Convolutions,
}

impl TemporalConfig {
    /// Sizes of the decoder: its own, or the encoder's.
    #[must_use]
    pub fn decoder(&self) -> TemporalDecoder {
        let mirror = || TemporalDecoder {
            level_channels: self.channel_multipliers.iter().map(|m| m * self.filters).collect(),
            convolutions: Convolutions::Dense,
        };
        self.decoder.clone().unwrap_or_else(mirror)
    }
}

/// Encoder and decoder over time; height and width stay.
///
/// # Shapes
/// - encode: `[b, 4, t, h, w] → [b, 4, ⌈t/4⌉, h, w]`; decode: the reverse
#[derive(Debug)]
pub struct TemporalVae {
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: CausalConv3d,
    post_quant_conv: CausalConv3d,
}

impl TemporalVae {
    /// Fresh weights under `vs`, for latents of `channels` channels.
    pub fn new(vs: &nn::Path<'_>, cfg: &TemporalConfig, channels: i64) -> Self {
        Self {
            encoder: Encoder::new(&(vs / "encoder"), cfg, channels),
            decoder: Decoder::new(&(vs / "decoder"), cfg, channels),
            quant_conv: CausalConv3d::new(&(vs / "quant_conv"), 2 * channels, 2 * channels, 1, 1, true),
            post_quant_conv: CausalConv3d::new(&(vs / "post_quant_conv"), channels, channels, 1, 1, true),
        }
    }

    /// Means and logarithms of the variances (clamped to −30..20). Time is padded with zero frames in front to a
    /// multiple of 4.
    pub fn encode(&self, xs: &Tensor) -> (Tensor, Tensor) {
        let padded = xs.constant_pad_nd([0, 0, 0, 0, padding(xs.size()[2]), 0]);
        let moments = padded.then(|x| self.encoder.forward(x)).through(&self.quant_conv);
        let mut halves = moments.chunk(2, 1);
        let log_variance = halves.remove(1).clamp(-30.0, 20.0);
        (halves.remove(0), log_variance)
    }

    /// Bias of the last layer of the encoder: means first, then logarithms of variances.
    pub(super) const fn moments_bias(&self) -> Option<&Tensor> {
        self.quant_conv.bias.as_ref()
    }

    /// `frames` frames; those that stand for the padding are dropped.
    pub fn decode(&self, latents: &Tensor, frames: i64) -> Tensor {
        self.decode_seen(latents, frames, &mut |_| {})
    }

    /// As [`Self::decode`], showing `seen` what comes out of the decoder's first blocks and of each level.
    ///
    /// # Shapes
    /// - what `seen` gets: `[b, channels, t, h, w]` of the level
    pub fn decode_seen(&self, latents: &Tensor, frames: i64, seen: &mut dyn FnMut(&Tensor)) -> Tensor {
        let all = latents
            .apply(&self.post_quant_conv)
            .then(|x| self.decoder.forward(x, seen));
        all.narrow(2, padding(frames), frames)
    }

    /// [`Self::decode`] as part of a graph.
    pub fn export(&self, graph: &mut Graph, latents: &Value, frames: i64) -> Value {
        let all = latents
            .through(graph, &self.post_quant_conv)
            .through(graph, &self.decoder);
        graph.narrow(&all, 2, padding(frames), frames)
    }
}

fn padding(frames: i64) -> i64 {
    (TIME_FACTOR - frames % TIME_FACTOR) % TIME_FACTOR
}

#[derive(Debug)]
struct Encoder {
    conv_in: CausalConv3d,
    levels: Vec<(Vec<ResBlock>, Option<CausalConv3d>)>,
    res_blocks: Vec<ResBlock>,
    norm1: GroupNorm,
    conv2: CausalConv3d,
}

impl Encoder {
    fn new(vs: &nn::Path<'_>, cfg: &TemporalConfig, channels: i64) -> Self {
        let mut inputs = cfg.filters;
        let mut levels = Vec::new();
        for (level, multiplier) in cfg.channel_multipliers.iter().enumerate() {
            let width = cfg.filters * multiplier;
            let blocks = res_blocks(
                &(vs / "block_res_blocks" / level),
                &mut inputs,
                width,
                cfg,
                Convolutions::Dense,
            );
            let halves = HALVES_TIME.get(level).copied().unwrap_or(false);
            let conv = || CausalConv3d::new(&(vs / "conv_blocks" / level), width, width, 3, 2, true);
            levels.push((blocks, halves.then(conv)));
        }
        let width = inputs;
        Self {
            conv_in: CausalConv3d::new(&(vs / "conv_in"), channels, cfg.filters, 3, 1, false),
            levels,
            res_blocks: res_blocks(&(vs / "res_blocks"), &mut inputs, width, cfg, Convolutions::Dense),
            norm1: group_norm(vs / "norm1", cfg.norm_groups, width, EPS),
            conv2: CausalConv3d::new(&(vs / "conv2"), width, 2 * channels, 1, 1, true),
        }
    }

    fn forward(&self, xs: &Tensor) -> Tensor {
        let mut xs = self.conv_in.forward(xs);
        for (blocks, conv) in &self.levels {
            xs = through(blocks, xs);
            if let Some(conv) = conv {
                xs = xs.through(conv);
            }
        }
        through(&self.res_blocks, xs)
            .through(&self.norm1)
            .then(Tensor::silu)
            .through(&self.conv2)
    }
}

#[derive(Debug)]
struct Decoder {
    conv1: CausalConv3d,
    res_blocks: Vec<ResBlock>,
    /// From the last level to the first; each with the convolution that makes two frames of one.
    levels: Vec<(Vec<ResBlock>, Option<ClipConv>)>,
    norm1: GroupNorm,
    conv_out: CausalConv3d,
}

impl Decoder {
    fn new(vs: &nn::Path<'_>, cfg: &TemporalConfig, channels: i64) -> Self {
        let TemporalDecoder {
            level_channels: widths,
            convolutions,
        } = cfg.decoder();
        let mut inputs = widths[widths.len() - 1];
        let conv1 = CausalConv3d::new(&(vs / "conv1"), channels, inputs, 3, 1, true);
        let width = inputs;
        let first = res_blocks(&(vs / "res_blocks"), &mut inputs, width, cfg, convolutions);
        let mut levels = Vec::new();
        for (level, &width) in widths.iter().enumerate().rev() {
            let blocks = res_blocks(
                &(vs / "block_res_blocks" / level),
                &mut inputs,
                width,
                cfg,
                convolutions,
            );
            let doubles = level > 0 && HALVES_TIME[level - 1];
            let conv = || {
                ClipConv::new(
                    &(vs / "conv_blocks" / (level - 1)),
                    [width, 2 * width],
                    true,
                    convolutions,
                )
            };
            levels.push((blocks, doubles.then(conv)));
        }
        Self {
            conv1,
            res_blocks: first,
            levels,
            norm1: group_norm(vs / "norm1", cfg.norm_groups, inputs, EPS),
            conv_out: CausalConv3d::new(&(vs / "conv_out"), inputs, channels, 3, 1, true),
        }
    }

    /// `seen` is shown what comes out of the first blocks and of each level, before its frames are doubled.
    fn forward(&self, latents: &Tensor, seen: &mut dyn FnMut(&Tensor)) -> Tensor {
        let mut xs = through(&self.res_blocks, self.conv1.forward(latents));
        seen(&xs);
        for (blocks, conv) in &self.levels {
            xs = through(blocks, xs);
            seen(&xs);
            if let Some(conv) = conv {
                xs = xs.through(conv).then(unfold_time);
            }
        }
        xs.through(&self.norm1).then(Tensor::silu).through(&self.conv_out)
    }
}

impl Export for Decoder {
    fn export(&self, graph: &mut Graph, latents: &Value) -> Value {
        let mut xs = latents.through(graph, &self.conv1);
        xs = export_through(graph, &self.res_blocks, xs);
        for (i, (blocks, conv)) in self.levels.iter().enumerate() {
            xs = graph.within(format_args!("up.{i}"), |graph| {
                let xs = export_through(graph, blocks, xs);
                match conv {
                    Some(conv) => {
                        let xs = xs.through(graph, conv);
                        export_unfold_time(graph, &xs)
                    }
                    None => xs,
                }
            });
        }
        let xs = xs.through(graph, &self.norm1);
        graph.silu(&xs).through(graph, &self.conv_out)
    }
}

/// "B (C ts) T H W → B C (T ts) H W" with ts = 2.
fn unfold_time(xs: &Tensor) -> Tensor {
    let size = xs.size();
    xs.reshape([size[0], size[1] / 2, 2, size[2], size[3], size[4]])
        .permute([0, 1, 3, 2, 4, 5])
        .reshape([size[0], size[1] / 2, 2 * size[2], size[3], size[4]])
}

/// [`unfold_time`] as part of a graph, in few dimensions: not every runtime takes six.
fn export_unfold_time(graph: &mut Graph, xs: &Value) -> Value {
    let &[b, c, t, h, w] = xs.shape() else {
        return graph.refuse("frames are [b, c, t, h, w]", xs);
    };
    let apart = graph.reshape(xs, &[b * c / 2, 2, t, h * w]);
    let beside = graph.swap(&apart, 1, 2);
    graph.reshape(&beside, &[b, c / 2, 2 * t, h, w])
}

fn export_through(graph: &mut Graph, blocks: &[ResBlock], xs: Value) -> Value {
    blocks.iter().fold(xs, |xs, block| xs.through(graph, block))
}

fn through(blocks: &[ResBlock], xs: Tensor) -> Tensor {
    blocks.iter().fold(xs, |xs, block| block.forward(&xs))
}

fn res_blocks(
    vs: &nn::Path<'_>,
    inputs: &mut i64,
    width: i64,
    cfg: &TemporalConfig,
    convolutions: Convolutions,
) -> Vec<ResBlock> {
    let make = |i| {
        let block = ResBlock::new(&(vs / i), [*inputs, width], cfg.norm_groups, convolutions);
        *inputs = width;
        block
    };
    (0..cfg.res_blocks).map(make).collect()
}

/// `y = S(x) + C₂ σ G₂ C₁ σ G₁ x`, convolutions without bias; `S` a 1³ convolution where the channels change.
#[derive(Debug)]
struct ResBlock {
    norm1: GroupNorm,
    conv1: ClipConv,
    norm2: GroupNorm,
    conv2: ClipConv,
    conv3: Option<CausalConv3d>,
}

impl ResBlock {
    fn new(vs: &nn::Path<'_>, [inputs, outputs]: [i64; 2], groups: i64, convolutions: Convolutions) -> Self {
        Self {
            norm1: group_norm(vs / "norm1", groups, inputs, EPS),
            conv1: ClipConv::new(&(vs / "conv1"), [inputs, outputs], false, convolutions),
            norm2: group_norm(vs / "norm2", groups, outputs, EPS),
            conv2: ClipConv::new(&(vs / "conv2"), [outputs, outputs], false, convolutions),
            conv3: (inputs != outputs).then(|| CausalConv3d::new(&(vs / "conv3"), inputs, outputs, 1, 1, false)),
        }
    }

    fn forward(&self, xs: &Tensor) -> Tensor {
        let branch = xs
            .apply(&self.norm1)
            .then(Tensor::silu)
            .through(&self.conv1)
            .through(&self.norm2)
            .then(Tensor::silu)
            .through(&self.conv2);
        match &self.conv3 {
            Some(shortcut) => xs.apply(shortcut) + branch,
            None => xs + branch,
        }
    }
}

impl Export for ResBlock {
    fn export(&self, graph: &mut Graph, xs: &Value) -> Value {
        let hidden = xs.through(graph, &self.norm1);
        let hidden = graph
            .silu(&hidden)
            .through(graph, &self.conv1)
            .through(graph, &self.norm2);
        let branch = graph.silu(&hidden).through(graph, &self.conv2);
        match &self.conv3 {
            Some(shortcut) => {
                let xs = xs.through(graph, shortcut);
                graph.add(&xs, &branch)
            }
            None => graph.add(xs, &branch),
        }
    }
}

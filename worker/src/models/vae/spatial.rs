//! The per-frame stage: diffusers' `AutoencoderKL` with its keys (spec section 3).

use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

use super::Convolutions;
use super::convolution::FrameConv;
use crate::models::attention::attend;
use crate::models::chain::Chain;
use crate::models::norm::{Conv2d, GroupNorm, Start, TRANSFORMER_EPS as EPS, conv2d, group_norm, linear};
use crate::onnx::{Export, Graph, Value};

/// Sizes of a [`SpatialVae`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpatialConfig {
    /// Channels of each level; every level but the last halves height and width.
    pub block_out_channels: Vec<i64>,
    /// Residual blocks of an encoder level; a decoder level has one more.
    pub layers_per_block: i64,
    /// Groups of the norms.
    pub norm_groups: i64,
    /// Channels of the latents.
    pub latent_channels: i64,
    /// The decoder's own sizes; it mirrors the encoder where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoder: Option<SpatialDecoder>,
}

/// Sizes of a decoder that does not mirror its encoder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpatialDecoder {
    /// Channels of each level in the encoder's order: the last ones see the latents, the first ones all pixels.
    pub block_out_channels: Vec<i64>,
    /// What its convolutions are.
    pub convolutions: Convolutions,
    /// Whether there is attention over all places of the latents, between the two residual blocks of the middle.
    pub middle_attention: bool,
}

impl SpatialConfig {
    /// Sizes of the decoder: its own, or the encoder's.
    #[must_use]
    pub fn decoder(&self) -> SpatialDecoder {
        let mirror = || SpatialDecoder {
            block_out_channels: self.block_out_channels.clone(),
            convolutions: Convolutions::Dense,
            middle_attention: true,
        };
        self.decoder.clone().unwrap_or_else(mirror)
    }
}

/// Encoder and decoder of single frames.
///
/// # Shapes
/// - encode: `[n, 3, 8h, 8w] → [n, 4, h, w]` (means); decode: the reverse; 8 = 2^(levels − 1)
#[derive(Debug)]
pub struct SpatialVae {
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: Conv2d,
    post_quant_conv: Conv2d,
}

impl SpatialVae {
    /// Fresh weights under `vs`.
    pub fn new(vs: &nn::Path<'_>, cfg: &SpatialConfig) -> Self {
        let latent = cfg.latent_channels;
        Self {
            encoder: Encoder::new(&(vs / "encoder"), cfg),
            decoder: Decoder::new(&(vs / "decoder"), cfg),
            quant_conv: conv2d(vs / "quant_conv", 2 * latent, 2 * latent, 1, 1),
            post_quant_conv: conv2d(vs / "post_quant_conv", latent, latent, 1, 1),
        }
    }

    /// Pixels of a latent in height and width.
    pub(crate) const fn factor(&self) -> i64 {
        1 << (self.decoder.levels.len() - 1)
    }

    /// Means of the latents.
    pub fn encode(&self, frames: &Tensor) -> Tensor {
        self.moments(frames).0
    }

    /// Means and logarithms of the variances, the latter clamped to −30..20.
    pub fn moments(&self, frames: &Tensor) -> (Tensor, Tensor) {
        let moments = self.encoder.forward(frames).apply(&self.quant_conv);
        let mut halves = moments.chunk(2, 1);
        let log_variance = halves.remove(1).clamp(-30.0, 20.0);
        (halves.remove(0), log_variance)
    }

    /// Bias of the last layer of the encoder: means first, then logarithms of variances.
    pub(super) const fn moments_bias(&self) -> Option<&Tensor> {
        self.quant_conv.bs.as_ref()
    }

    /// Frames from latents.
    pub fn decode(&self, latents: &Tensor) -> Tensor {
        self.decode_seen(latents, &mut |_| {})
    }

    /// As [`Self::decode`], showing `seen` what comes out of the decoder's middle and of each level: what a smaller
    /// decoder may learn from.
    ///
    /// # Shapes
    /// - what `seen` gets: `[n, channels, height, width]` of the level
    pub fn decode_seen(&self, latents: &Tensor, seen: &mut dyn FnMut(&Tensor)) -> Tensor {
        latents
            .apply(&self.post_quant_conv)
            .then(|x| self.decoder.forward(x, seen))
    }

    /// [`Self::decode`] as part of a graph.
    pub fn export(&self, graph: &mut Graph, latents: &Value) -> Value {
        latents
            .through(graph, &self.post_quant_conv)
            .through(graph, &self.decoder)
    }
}

#[derive(Debug)]
struct Encoder {
    conv_in: Conv2d,
    levels: Vec<(Vec<Resnet>, Option<Conv2d>)>,
    middle: Middle,
    norm: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn new(vs: &nn::Path<'_>, cfg: &SpatialConfig) -> Self {
        let (widths, groups) = (&cfg.block_out_channels, cfg.norm_groups);
        let mut inputs = widths[0];
        let mut levels = Vec::new();
        for (i, &width) in widths.iter().enumerate() {
            let vs = vs / "down_blocks" / i;
            let resnets = resnets(
                &vs,
                &mut inputs,
                width,
                cfg.layers_per_block,
                groups,
                Convolutions::Dense,
            );
            // Padding is asymmetric, right and below only, so it is done in `forward`.
            let downsample = || Conv2d::new(&vs / "downsamplers" / 0 / "conv", width, width, 3, 2, 0);
            levels.push((resnets, (i + 1 < widths.len()).then(downsample)));
        }
        Self {
            conv_in: conv2d(vs / "conv_in", 3, widths[0], 3, 1),
            levels,
            middle: Middle::new(&(vs / "mid_block"), inputs, groups, Convolutions::Dense, true),
            norm: group_norm(vs / "conv_norm_out", groups, inputs, EPS),
            conv_out: conv2d(vs / "conv_out", inputs, 2 * cfg.latent_channels, 3, 1),
        }
    }

    fn forward(&self, frames: &Tensor) -> Tensor {
        let mut xs = frames.apply(&self.conv_in);
        for (resnets, downsample) in &self.levels {
            for resnet in resnets {
                xs = resnet.forward(&xs);
            }
            if let Some(conv) = downsample {
                xs = xs.constant_pad_nd([0, 1, 0, 1]).through(conv);
            }
        }
        xs.then(|x| self.middle.forward(x))
            .through(&self.norm)
            .then(Tensor::silu)
            .through(&self.conv_out)
    }
}

#[derive(Debug)]
struct Decoder {
    conv_in: Conv2d,
    middle: Middle,
    levels: Vec<(Vec<Resnet>, Option<FrameConv>)>,
    norm: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn new(vs: &nn::Path<'_>, cfg: &SpatialConfig) -> Self {
        let groups = cfg.norm_groups;
        let SpatialDecoder {
            block_out_channels,
            convolutions,
            middle_attention,
        } = cfg.decoder();
        let widths: Vec<i64> = block_out_channels.into_iter().rev().collect();
        let mut inputs = widths[0];
        let mut levels = Vec::new();
        for (i, &width) in widths.iter().enumerate() {
            let vs = vs / "up_blocks" / i;
            let resnets = resnets(&vs, &mut inputs, width, cfg.layers_per_block + 1, groups, convolutions);
            let upsample = || FrameConv::new(&(&vs / "upsamplers" / 0 / "conv"), width, width, convolutions);
            levels.push((resnets, (i + 1 < widths.len()).then(upsample)));
        }
        Self {
            conv_in: conv2d(vs / "conv_in", cfg.latent_channels, widths[0], 3, 1),
            middle: Middle::new(&(vs / "mid_block"), widths[0], groups, convolutions, middle_attention),
            levels,
            norm: group_norm(vs / "conv_norm_out", groups, inputs, EPS),
            conv_out: conv2d(vs / "conv_out", inputs, 3, 3, 1),
        }
    }

    /// `seen` is shown what comes out of the middle and of each level, before it is enlarged.
    fn forward(&self, latents: &Tensor, seen: &mut dyn FnMut(&Tensor)) -> Tensor {
        let mut xs = latents.apply(&self.conv_in).then(|x| self.middle.forward(x));
        seen(&xs);
        for (resnets, upsample) in &self.levels {
            for resnet in resnets {
                xs = resnet.forward(&xs);
            }
            seen(&xs);
            if let Some(conv) = upsample {
                let (height, width) = (xs.size()[2], xs.size()[3]);
                xs = xs
                    .then(|x| x.upsample_nearest2d([2 * height, 2 * width], None, None))
                    .through(conv);
            }
        }
        xs.through(&self.norm).then(Tensor::silu).through(&self.conv_out)
    }
}

impl Export for Decoder {
    fn export(&self, graph: &mut Graph, latents: &Value) -> Value {
        let mut xs = latents.through(graph, &self.conv_in);
        xs = graph.within("middle", |graph| xs.through(graph, &self.middle));
        for (i, (resnets, upsample)) in self.levels.iter().enumerate() {
            xs = graph.within(format_args!("up.{i}"), |graph| {
                let xs = resnets.iter().fold(xs, |xs, resnet| xs.through(graph, resnet));
                match upsample {
                    Some(conv) => {
                        let size = [2 * xs.size(2), 2 * xs.size(3)];
                        graph.resize_nearest(&xs, size).through(graph, conv)
                    }
                    None => xs,
                }
            });
        }
        let xs = xs.through(graph, &self.norm);
        graph.silu(&xs).through(graph, &self.conv_out)
    }
}

fn resnets(
    vs: &nn::Path<'_>,
    inputs: &mut i64,
    width: i64,
    count: i64,
    groups: i64,
    convolutions: Convolutions,
) -> Vec<Resnet> {
    let make = |i| {
        let resnet = Resnet::new(&(vs / "resnets" / i), [*inputs, width], groups, convolutions);
        *inputs = width;
        resnet
    };
    (0..count).map(make).collect()
}

/// ResNet, attention over all places where there is some, ResNet.
#[derive(Debug)]
struct Middle {
    first: Resnet,
    attention: Option<Attention>,
    second: Resnet,
}

impl Middle {
    fn new(vs: &nn::Path<'_>, width: i64, groups: i64, convolutions: Convolutions, attends: bool) -> Self {
        let resnet = |i: usize| Resnet::new(&(vs / "resnets" / i), [width, width], groups, convolutions);
        Self {
            first: resnet(0),
            attention: attends.then(|| Attention::new(&(vs / "attentions" / 0), width, groups)),
            second: resnet(1),
        }
    }

    fn forward(&self, xs: &Tensor) -> Tensor {
        let xs = self.first.forward(xs);
        let xs = match &self.attention {
            Some(attention) => xs.then(|x| attention.forward(x)),
            None => xs,
        };
        xs.then(|x| self.second.forward(x))
    }
}

impl Export for Middle {
    fn export(&self, graph: &mut Graph, xs: &Value) -> Value {
        let xs = xs.through(graph, &self.first);
        let xs = match &self.attention {
            Some(attention) => xs.through(graph, attention),
            None => xs,
        };
        xs.through(graph, &self.second)
    }
}

/// `y = S(x) + C₂ σ G₂ C₁ σ G₁ x`, σ SiLU, `S` a 1×1 convolution where the channels change.
#[derive(Debug)]
struct Resnet {
    norm1: GroupNorm,
    conv1: FrameConv,
    norm2: GroupNorm,
    conv2: FrameConv,
    shortcut: Option<Conv2d>,
}

impl Resnet {
    fn new(vs: &nn::Path<'_>, [inputs, outputs]: [i64; 2], groups: i64, convolutions: Convolutions) -> Self {
        Self {
            norm1: group_norm(vs / "norm1", groups, inputs, EPS),
            conv1: FrameConv::new(&(vs / "conv1"), inputs, outputs, convolutions),
            norm2: group_norm(vs / "norm2", groups, outputs, EPS),
            conv2: FrameConv::new(&(vs / "conv2"), outputs, outputs, convolutions),
            shortcut: (inputs != outputs).then(|| conv2d(vs / "conv_shortcut", inputs, outputs, 1, 1)),
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
        match &self.shortcut {
            Some(shortcut) => xs.apply(shortcut) + branch,
            None => xs + branch,
        }
    }
}

impl Export for Resnet {
    fn export(&self, graph: &mut Graph, xs: &Value) -> Value {
        let hidden = xs.through(graph, &self.norm1);
        let hidden = graph
            .silu(&hidden)
            .through(graph, &self.conv1)
            .through(graph, &self.norm2);
        let branch = graph.silu(&hidden).through(graph, &self.conv2);
        match &self.shortcut {
            Some(shortcut) => {
                let xs = xs.through(graph, shortcut);
                graph.add(&xs, &branch)
            }
            None => graph.add(xs, &branch),
        }
    }
}

/// One head over all places of a frame.
#[derive(Debug)]
struct Attention {
    norm: GroupNorm,
    to_q: nn::Linear,
    to_k: nn::Linear,
    to_v: nn::Linear,
    to_out: nn::Linear,
}

impl Attention {
    fn new(vs: &nn::Path<'_>, width: i64, groups: i64) -> Self {
        let project = |path| linear(path, width, width, true, Start::Random);
        Self {
            norm: group_norm(vs / "group_norm", groups, width, EPS),
            to_q: project(vs / "to_q"),
            to_k: project(vs / "to_k"),
            to_v: project(vs / "to_v"),
            to_out: project(vs / "to_out" / 0),
        }
    }

    fn forward(&self, xs: &Tensor) -> Tensor {
        let tokens = xs.apply(&self.norm).flatten(2, 3).transpose(1, 2); // [n, h*w, c]
        let [q, k, v] = [&self.to_q, &self.to_k, &self.to_v].map(|project| tokens.apply(project).unsqueeze(1));
        let mixed = attend(&q, &k, &v).squeeze_dim(1).through(&self.to_out);
        xs + mixed.transpose(1, 2).reshape(xs.size())
    }
}

impl Export for Attention {
    fn export(&self, graph: &mut Graph, xs: &Value) -> Value {
        let normed = xs.through(graph, &self.norm);
        let normed = graph.flatten(&normed, 2, 3);
        let tokens = graph.swap(&normed, 1, 2); // [n, h*w, c]
        let [q, k, v] = [&self.to_q, &self.to_k, &self.to_v].map(|project| tokens.through(graph, project));
        let mixed = graph.attend(&q, &k, &v, None).through(graph, &self.to_out);
        let mixed = graph.swap(&mixed, 1, 2);
        let mixed = graph.reshape(&mixed, xs.shape());
        graph.add(xs, &mixed)
    }
}

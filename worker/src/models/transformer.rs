//! The spatial transformer of the backbone: attention within a frame, attention to the text, feed-forward.

use tch::{Device, Kind, Tensor, nn};

use super::attention::{Attention, AttentionConfig, Turn};
use super::chain::Chain;
use super::norm::{Conv2d, GroupNorm, Start, TRANSFORMER_EPS, conv2d, group_norm, layer_norm, linear};
use super::rotary::Rotary;
use crate::onnx::{Export, Graph, Value};

/// Sizes of a [`SpatialTransformer`].
#[derive(Debug, Clone, Copy)]
pub struct TransformerConfig {
    /// Channels in and out.
    pub channels: i64,
    /// Number of heads; divides `channels`.
    pub heads: i64,
    /// Width of a text token.
    pub text_width: i64,
    /// Groups of the first norm; divides `channels`.
    pub groups: i64,
    /// Width of the feed-forward's middle, in `channels`.
    pub ff_multiplier: i64,
    /// Whether attention normalises queries and keys.
    pub qk_norm: bool,
    /// Whether queries and keys of the self-attention are turned by row and column.
    pub rope: bool,
}

/// GEGLU feed-forward, `W₂(a · GELU(g)) + b₂` with `(a, g) = W₁ x + b₁` (Shazeer 2020).
///
/// # Shapes
/// - `xs`: `[batch, tokens, channels]`; output as `xs`
#[derive(Debug)]
pub struct FeedForward {
    proj: nn::Linear,
    out: nn::Linear,
}

impl FeedForward {
    /// Middle width `multiplier · channels`.
    pub fn new(vs: nn::Path<'_>, channels: i64, multiplier: i64) -> Self {
        let inner = channels * multiplier;
        Self {
            proj: linear(&vs / "net" / "0" / "proj", channels, 2 * inner, true, Start::Random),
            out: linear(&vs / "net" / "2", inner, channels, true, Start::Random),
        }
    }
}

impl nn::Module for FeedForward {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let gated = {
            let both = xs.apply(&self.proj).chunk(2, -1);
            &both[0] * both[1].gelu("none")
        };
        gated.through(&self.out)
    }
}

impl Export for FeedForward {
    fn export(&self, graph: &mut Graph, xs: &Value) -> Value {
        let both = xs.through(graph, &self.proj);
        let [value, gate] = graph.halves(&both, -1);
        let gate = graph.gelu(&gate);
        graph.mul(&value, &gate).through(graph, &self.out)
    }
}

/// Group norm → 1×1 in → {self-attention, text cross-attention, feed-forward, each after a layer norm and with its
/// residual} → 1×1 out, plus the input (Stable Diffusion 1.5's layout and keys, spec section 1.1).
///
/// Self-attention stays within a frame, and knows rows and columns where asked for. Queries of the cross-attention do not interact, so all frames of a clip share
/// one set of text keys and values.
/// # Shapes
/// - `xs`: `[batch · frames, channels, h, w]`; `text`: `[batch, tokens, text_width]`; output as `xs`
#[derive(Debug)]
pub struct SpatialTransformer {
    norm: GroupNorm,
    proj_in: Conv2d,
    norm1: nn::LayerNorm,
    attn1: Attention,
    norm2: nn::LayerNorm,
    attn2: Attention,
    norm3: nn::LayerNorm,
    ff: FeedForward,
    proj_out: Conv2d,
    /// Channels of a head, where the self-attention knows places.
    turned: Option<i64>,
}

impl SpatialTransformer {
    /// A block with fresh weights under `vs`.
    pub fn new(vs: nn::Path<'_>, cfg: TransformerConfig) -> Self {
        let TransformerConfig {
            channels,
            heads,
            text_width,
            groups,
            ff_multiplier,
            qk_norm,
            rope,
        } = cfg;
        let block = &vs / "transformer_blocks" / "0";
        let attention = |context| AttentionConfig {
            channels,
            context,
            heads,
            qk_norm,
            start: Start::Random,
        };
        Self {
            norm: group_norm(&vs / "norm", groups, channels, TRANSFORMER_EPS),
            proj_in: conv2d(&vs / "proj_in", channels, channels, 1, 1),
            norm1: layer_norm(&block / "norm1", channels),
            attn1: Attention::new(&block / "attn1", attention(channels)),
            norm2: layer_norm(&block / "norm2", channels),
            attn2: Attention::new(&block / "attn2", attention(text_width)),
            norm3: layer_norm(&block / "norm3", channels),
            ff: FeedForward::new(&block / "ff", channels, ff_multiplier),
            proj_out: conv2d(&vs / "proj_out", channels, channels, 1, 1),
            turned: rope.then_some(channels / heads),
        }
    }

    /// One pass.
    pub fn forward(&self, xs: &Tensor, text: &Tensor) -> Tensor {
        let (frames, channels, h, w) = xs.size4().expect("a spatial transformer takes [b*t, c, h, w]");
        let batch = text.size()[0];
        let mut tokens = xs
            .apply(&self.norm)
            .through(&self.proj_in)
            .flatten(2, 3)
            .transpose(1, 2); // [b*t, h*w, c]
        let rotary = self.turned.map(|d| Rotary::over_frame(h, w, d, xs.kind(), xs.device()));
        let turn = rotary.as_ref().map_or(Turn::None, Turn::Both);
        tokens = &tokens + tokens.apply(&self.norm1).then(|x| self.attn1.forward(x, x, turn));
        tokens = tokens.reshape([batch, -1, channels]); // [b, t*h*w, c]
        tokens = &tokens
            + tokens
                .apply(&self.norm2)
                .then(|x| self.attn2.forward(x, text, Turn::None));
        tokens = &tokens + tokens.apply(&self.norm3).through(&self.ff);
        let grid = tokens
            .reshape([frames, h * w, channels])
            .transpose(1, 2)
            .reshape([frames, channels, h, w]);
        drop(tokens);
        xs + grid.through(&self.proj_out)
    }

    /// [`Self::forward`] as part of a graph.
    pub fn export(&self, graph: &mut Graph, xs: &Value, text: &Value) -> Value {
        let &[frames, channels, h, w] = xs.shape() else {
            return graph.refuse("a spatial transformer takes [b*t, c, h, w]", xs);
        };
        let batch = text.size(0);
        let hidden = xs.through(graph, &self.norm).through(graph, &self.proj_in);
        let hidden = graph.flatten(&hidden, 2, 3);
        let mut tokens = graph.swap(&hidden, 1, 2); // [b*t, h*w, c]
        let rotary = self
            .turned
            .map(|d| Rotary::over_frame(h, w, d, Kind::Float, Device::Cpu));
        let turn = rotary.as_ref().map_or(Turn::None, Turn::Both);
        let normed = tokens.through(graph, &self.norm1);
        let branch = self.attn1.export(graph, &normed, &normed, turn);
        tokens = graph.add(&tokens, &branch);
        tokens = graph.reshape(&tokens, &[batch, -1, channels]); // [b, t*h*w, c]
        let normed = tokens.through(graph, &self.norm2);
        let branch = self.attn2.export(graph, &normed, text, Turn::None);
        tokens = graph.add(&tokens, &branch);
        let branch = tokens.through(graph, &self.norm3).through(graph, &self.ff);
        tokens = graph.add(&tokens, &branch);
        let grid = graph.reshape(&tokens, &[frames, h * w, channels]);
        let grid = graph.swap(&grid, 1, 2);
        let grid = graph.reshape(&grid, xs.shape()).through(graph, &self.proj_out);
        graph.add(xs, &grid)
    }
}

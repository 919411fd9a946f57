//! The six temporal operators, inserted into a frozen image backbone.
//!
//! Every operator is `y = x + f(x)` where the last projection of `f` starts at zero (weight and bias), so a fresh layer
//! is the identity and the first training step reaches that projection (spec section 2.1). The paper leaves three
//! points open; they are settled here:
//!
//! - **One-dimensional means one pixel's column.** Conv1D, SelfAttention1D and CrossAttention1D see the frames of one
//!   pixel and nothing else, norms included: Conv1D's group norm takes its statistics over the column. A change of one
//!   pixel moves that column alone.
//! - **CrossAttention1D against 3D.** Queries of a cross-attention do not interact, so grouping them by location or
//!   jointly gives one function (spec section 2.2). What tells them apart is the rotary turn of the queries: time only
//!   in 1D, time, row and column in 3D. 1D runs in the layout `(b·h·w) t c` with the text replicated to each location,
//!   as AnimateDiff's cross variant does; 3D shares keys and values among all tokens of a clip.
//! - **One frame.** On images (T = 1) a temporal layer is skipped, as SVD's blend does for image samples: attention
//!   over one frame and a convolution's centre tap would otherwise change images after training.

use search_spaces::{Operator, TemporalLayer};
use tch::{Device, Kind, Tensor, nn};

use super::attention::{Attention, AttentionConfig, Turn};
use super::chain::Chain;
use super::norm::{Conv3d, GroupNorm, RESNET_EPS, Start, group_norm, layer_norm};
use super::rotary::Rotary;
use crate::onnx::{Graph, Value};

/// Sizes of a temporal operator.
#[derive(Debug, Clone, Copy)]
pub struct TemporalConfig {
    /// Channels in and out.
    pub channels: i64,
    /// Number of heads; divides `channels`.
    pub heads: i64,
    /// Width of a text token.
    pub text_width: i64,
    /// Groups of the convolutions' norm; divides `channels`.
    pub groups: i64,
}

/// What a temporal operator sees beside its input.
#[derive(Debug, Clone, Copy)]
pub struct Clip<'a> {
    /// Frames of a clip.
    pub frames: i64,
    /// `[batch, tokens, text_width]`.
    pub text: &'a Tensor,
}

/// One temporal operator.
///
/// # Shapes
/// - `xs`: `[batch · frames, channels, h, w]`, the frames of one clip adjacent; output as `xs`
#[derive(Debug)]
pub enum TemporalOperator {
    /// Convolution along time, or over time, height and width.
    Conv(TemporalConv),
    /// Self- or cross-attention along time, or over all tokens of a clip.
    Attention(TemporalAttention),
}

impl TemporalOperator {
    /// An operator that starts as the identity.
    pub fn new(vs: nn::Path<'_>, operator: Operator, cfg: TemporalConfig) -> Self {
        match operator {
            Operator::Conv1d => Self::Conv(TemporalConv::new(vs, Reach::Column, cfg)),
            Operator::Conv3d => Self::Conv(TemporalConv::new(vs, Reach::Clip, cfg)),
            Operator::SelfAttention1d => Self::Attention(TemporalAttention::new(vs, Reach::Column, Source::Clip, cfg)),
            Operator::SelfAttention3d => Self::Attention(TemporalAttention::new(vs, Reach::Clip, Source::Clip, cfg)),
            Operator::CrossAttention1d => Self::Attention(TemporalAttention::new(vs, Reach::Column, Source::Text, cfg)),
            Operator::CrossAttention3d => Self::Attention(TemporalAttention::new(vs, Reach::Clip, Source::Text, cfg)),
        }
    }

    /// `x + f(x)`; `xs` itself where a clip has one frame.
    pub fn forward(&self, xs: &Tensor, clip: Clip<'_>) -> Tensor {
        if clip.frames == 1 {
            return xs.shallow_clone();
        }
        match self {
            Self::Conv(conv) => conv.forward(xs, clip.frames),
            Self::Attention(attention) => attention.forward(xs, clip),
        }
    }

    /// [`Self::forward`] as part of a graph; `text` as in [`Clip`].
    pub fn export(&self, graph: &mut Graph, xs: &Value, frames: i64, text: &Value) -> Value {
        if frames == 1 {
            return xs.clone();
        }
        match self {
            Self::Conv(conv) => conv.export(graph, xs, frames),
            Self::Attention(attention) => attention.export(graph, xs, frames, text),
        }
    }
}

/// `depth` operators of one kind, each with its own weights.
#[derive(Debug)]
pub struct TemporalStack(Vec<TemporalOperator>);

impl TemporalStack {
    /// The layers of one position under `vs / "0"`, `vs / "1"`, ….
    pub fn new(vs: nn::Path<'_>, layer: TemporalLayer, cfg: TemporalConfig) -> Self {
        Self(
            (0..layer.depth)
                .map(|i| TemporalOperator::new(&vs / i, layer.operator, cfg))
                .collect(),
        )
    }

    /// The layers one after another; shape as in [`TemporalOperator`].
    pub fn forward(&self, xs: Tensor, clip: Clip<'_>) -> Tensor {
        self.0.iter().fold(xs, |xs, layer| layer.forward(&xs, clip))
    }

    /// [`Self::forward`] as part of a graph.
    pub fn export(&self, graph: &mut Graph, xs: &Value, frames: i64, text: &Value) -> Value {
        let layers = self.0.iter().enumerate();
        layers.fold(xs.clone(), |xs, (i, layer)| {
            graph.within(i, |graph| layer.export(graph, &xs, frames, text))
        })
    }
}

/// How far an operator sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// The frames of one pixel.
    Column,
    /// All pixels of all frames.
    Clip,
}

/// What keys and values are made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Clip,
    Text,
}

/// `x + C(σ(G(x)))`: group norm, SiLU, convolution of kernel (3,1,1) or (3,3,3) with zero padding.
#[derive(Debug)]
pub struct TemporalConv {
    norm: GroupNorm,
    conv: Conv3d,
    reach: Reach,
}

impl TemporalConv {
    fn new(vs: nn::Path<'_>, reach: Reach, cfg: TemporalConfig) -> Self {
        let kernel = match reach {
            Reach::Column => [3, 1, 1],
            Reach::Clip => [3, 3, 3],
        };
        Self {
            norm: group_norm(&vs / "norm", cfg.groups, cfg.channels, RESNET_EPS),
            conv: Conv3d::new(&vs / "conv", cfg.channels, kernel, Start::Zero),
            reach,
        }
    }

    fn forward(&self, xs: &Tensor, frames: i64) -> Tensor {
        let (_, c, h, w) = xs.size4().expect("a temporal operator takes [b*t, c, h, w]");
        let clip = xs.unflatten(0, [-1, frames]); // [b, t, c, h, w]
        let branch = match self.reach {
            Reach::Clip => clip
                .transpose(1, 2)
                .through(&self.norm)
                .then(Tensor::silu)
                .through(&self.conv),
            Reach::Column => clip
                .permute([0, 3, 4, 2, 1])
                .then(|x| x.reshape([-1, c, frames])) // [b*h*w, c, t]
                .through(&self.norm)
                .then(Tensor::silu)
                .then(|x| x.unflatten(0, [-1, h, w]).permute([0, 3, 4, 1, 2]).contiguous())
                .then(|x| self.conv.forward_over_time(x)),
        }; // [b, c, t, h, w]
        branch
            .then(|x| x.transpose(1, 2).reshape([-1, c, h, w]))
            .then(|x| xs + x)
    }

    fn export(&self, graph: &mut Graph, xs: &Value, frames: i64) -> Value {
        let &[_, c, h, w] = xs.shape() else {
            return graph.refuse("a temporal operator takes [b*t, c, h, w]", xs);
        };
        let clip = graph.unflatten(xs, 0, &[-1, frames]); // [b, t, c, h, w]
        let branch = match self.reach {
            Reach::Clip => {
                let clip = graph.swap(&clip, 1, 2).through(graph, &self.norm);
                graph.silu(&clip).through(graph, &self.conv)
            }
            Reach::Column => {
                let columns = graph.permute(&clip, [0, 3, 4, 2, 1]);
                let columns = graph.reshape(&columns, &[-1, c, frames]).through(graph, &self.norm);
                let columns = graph.silu(&columns);
                let columns = graph.unflatten(&columns, 0, &[-1, h, w]);
                let clip = graph.permute(&columns, [0, 3, 4, 1, 2]);
                self.conv.export_over_time(graph, &clip)
            }
        }; // [b, c, t, h, w]
        let branch = graph.swap(&branch, 1, 2);
        let branch = graph.reshape(&branch, xs.shape());
        graph.add(xs, &branch)
    }
}

/// `x + Wₒ · attention(LN(x), source)`, see [`Attention`].
#[derive(Debug)]
pub struct TemporalAttention {
    norm: nn::LayerNorm,
    attention: Attention,
    reach: Reach,
    source: Source,
    head_dim: i64,
}

impl TemporalAttention {
    fn new(vs: nn::Path<'_>, reach: Reach, source: Source, cfg: TemporalConfig) -> Self {
        let TemporalConfig {
            channels,
            heads,
            text_width,
            ..
        } = cfg;
        let context = match source {
            Source::Clip => channels,
            Source::Text => text_width,
        };
        let attention = AttentionConfig {
            channels,
            context,
            heads,
            qk_norm: true,
            start: Start::Zero,
        };
        Self {
            norm: layer_norm(&vs / "norm", channels),
            attention: Attention::new(&vs / "attention", attention),
            reach,
            source,
            head_dim: channels / heads,
        }
    }

    fn forward(&self, xs: &Tensor, clip: Clip<'_>) -> Tensor {
        let (_, c, h, w) = xs.size4().expect("a temporal operator takes [b*t, c, h, w]");
        let (t, kind, device) = (clip.frames, xs.kind(), xs.device());
        let frames = xs.unflatten(0, [-1, t]); // [b, t, c, h, w]
        let (tokens, rotary) = match self.reach {
            Reach::Column => {
                let columns = frames.permute([0, 3, 4, 1, 2]).then(|x| x.reshape([-1, t, c])); // [b*h*w, t, c]
                (columns, Rotary::over_time(t, self.head_dim, kind, device))
            }
            Reach::Clip => {
                let all = frames.permute([0, 1, 3, 4, 2]).then(|x| x.reshape([-1, t * h * w, c])); // [b, t*h*w, c]
                (all, Rotary::over_clip(t, h, w, self.head_dim, kind, device))
            }
        };
        let tokens = tokens.through(&self.norm);
        let branch = match (self.source, self.reach) {
            (Source::Clip, _) => self.attention.forward(&tokens, &tokens, Turn::Both(&rotary)),
            (Source::Text, Reach::Clip) => self.attention.forward(&tokens, clip.text, Turn::Queries(&rotary)),
            (Source::Text, Reach::Column) => {
                let text = clip.text.repeat_interleave_self_int(h * w, 0, None); // [b*h*w, l, d]
                self.attention.forward(&tokens, &text, Turn::Queries(&rotary))
            }
        };
        drop(tokens);
        let branch = match self.reach {
            Reach::Column => branch.unflatten(0, [-1, h, w]).permute([0, 3, 4, 1, 2]),
            Reach::Clip => branch.unflatten(1, [t, h, w]).permute([0, 1, 4, 2, 3]),
        }; // [b, t, c, h, w]
        branch.then(|x| x.reshape([-1, c, h, w])).then(|x| xs + x)
    }

    fn export(&self, graph: &mut Graph, xs: &Value, t: i64, text: &Value) -> Value {
        let &[_, c, h, w] = xs.shape() else {
            return graph.refuse("a temporal operator takes [b*t, c, h, w]", xs);
        };
        let (kind, device) = (Kind::Float, Device::Cpu);
        let frames = graph.unflatten(xs, 0, &[-1, t]); // [b, t, c, h, w]
        let (tokens, rotary) = match self.reach {
            Reach::Column => {
                let columns = graph.permute(&frames, [0, 3, 4, 1, 2]);
                let columns = graph.reshape(&columns, &[-1, t, c]); // [b*h*w, t, c]
                (columns, Rotary::over_time(t, self.head_dim, kind, device))
            }
            Reach::Clip => {
                let all = graph.permute(&frames, [0, 1, 3, 4, 2]);
                let all = graph.reshape(&all, &[-1, t * h * w, c]); // [b, t*h*w, c]
                (all, Rotary::over_clip(t, h, w, self.head_dim, kind, device))
            }
        };
        let tokens = tokens.through(graph, &self.norm);
        let branch = match (self.source, self.reach) {
            (Source::Clip, _) => self.attention.export(graph, &tokens, &tokens, Turn::Both(&rotary)),
            (Source::Text, Reach::Clip) => self.attention.export(graph, &tokens, text, Turn::Queries(&rotary)),
            (Source::Text, Reach::Column) => {
                let text = graph.repeat_each(text, h * w); // [b*h*w, l, d]
                self.attention.export(graph, &tokens, &text, Turn::Queries(&rotary))
            }
        };
        let branch = match self.reach {
            Reach::Column => {
                let columns = graph.unflatten(&branch, 0, &[-1, h, w]);
                graph.permute(&columns, [0, 3, 4, 1, 2])
            }
            Reach::Clip => {
                let all = graph.unflatten(&branch, 1, &[t, h, w]);
                graph.permute(&all, [0, 1, 4, 2, 3])
            }
        }; // [b, t, c, h, w]
        let branch = graph.reshape(&branch, xs.shape());
        graph.add(xs, &branch)
    }
}

#[cfg(test)]
mod tests;

//! The pieces of the UNet that run one after another; each is one entry of a look-up table.

use tch::{Device, Kind, Tensor, nn};

use super::chain::Chain;
use super::norm::{Conv2d, GroupNorm, RESNET_EPS, Start, conv2d, group_norm, linear};
use super::resnet::{Resnet, ResnetConfig};
use super::transformer::{SpatialTransformer, TransformerConfig};
use crate::onnx::{Dtype, Export, Graph, Value};

/// Time `t` in [0, 1] as a vector: sinusoids of `1000 t`, cosines first, through two linear layers (spec section 1.1).
///
/// # Shapes
/// - `time`: `[batch]`; output `[batch, outputs]`
#[derive(Debug)]
pub struct TimeEmbedding {
    linear_1: nn::Linear,
    linear_2: nn::Linear,
    width: i64,
}

impl TimeEmbedding {
    /// Sinusoids of `width` (even), then `width → outputs → outputs` with SiLU between.
    pub fn new(vs: nn::Path<'_>, width: i64, outputs: i64) -> Self {
        Self {
            linear_1: linear(&vs / "linear_1", width, outputs, true, Start::Random),
            linear_2: linear(&vs / "linear_2", outputs, outputs, true, Start::Random),
            width,
        }
    }
}

impl TimeEmbedding {
    /// Width of what comes out.
    pub(crate) fn outputs(&self) -> i64 {
        self.linear_2.ws.size()[0]
    }

    /// `[width / 2]`, float32.
    fn frequencies(&self, device: Device) -> Tensor {
        let half = self.width / 2;
        let exponents = Tensor::arange(half, (Kind::Float, device)) * (-(10_000f64.ln()) / half as f64);
        exponents.exp()
    }
}

impl nn::Module for TimeEmbedding {
    fn forward(&self, time: &Tensor) -> Tensor {
        let frequencies = self.frequencies(time.device());
        let angles = (time.to_kind(Kind::Float) * 1000.0).outer(&frequencies); // [batch, width / 2]
        let sinusoids = Tensor::cat(&[angles.cos(), angles.sin()], -1).to_kind(self.linear_1.ws.kind());
        sinusoids
            .through(&self.linear_1)
            .then(Tensor::silu)
            .through(&self.linear_2)
    }
}

/// Takes the time in binary32, whatever the graph's format: angles go to 1000.
impl Export for TimeEmbedding {
    fn export(&self, graph: &mut Graph, time: &Value) -> Value {
        let places = graph.scale(time, 1000.0);
        let places = graph.reshape(&places, &[time.size(0), 1]);
        let frequencies = graph.table_of(&self.frequencies(Device::Cpu).unsqueeze(0), Dtype::F32);
        let angles = graph.mul(&places, &frequencies);
        let (cos, sin) = (graph.cos(&angles), graph.sin(&angles));
        let sinusoids = graph.concat(&[&cos, &sin], -1);
        let hidden = graph.cast(&sinusoids, graph.dtype()).through(graph, &self.linear_1);
        graph.silu(&hidden).through(graph, &self.linear_2)
    }
}

/// A residual block and, where the level has attention, its spatial transformer.
///
/// # Shapes
/// - `xs`: `[batch · frames, inputs, h, w]`; `time`: `[batch, time_width]`;
///   `text`: `[batch, tokens, text_width]`; output `[batch · frames, outputs, h, w]`
#[derive(Debug)]
pub struct Layer {
    resnet: Resnet,
    attention: Option<SpatialTransformer>,
}

impl Layer {
    /// Layer `index` of a block: keys `resnets.index` and `attentions.index` under `vs`.
    pub fn new(vs: &nn::Path<'_>, index: i64, resnet: ResnetConfig, attention: Option<TransformerConfig>) -> Self {
        Self {
            resnet: Resnet::new(vs / "resnets" / index, resnet),
            attention: attention.map(|cfg| SpatialTransformer::new(vs / "attentions" / index, cfg)),
        }
    }

    /// One pass.
    pub fn forward(&self, xs: &Tensor, time: &Tensor, text: &Tensor) -> Tensor {
        let hidden = self.resnet.forward(xs, time);
        match &self.attention {
            Some(attention) => hidden.then(|h| attention.forward(h, text)),
            None => hidden,
        }
    }

    /// One pass over `xs` with the skip tensor of the way down appended to its channels. Takes both: once they are
    /// joined nobody else needs them.
    pub fn forward_with_skip(&self, xs: Tensor, skip: Tensor, time: &Tensor, text: &Tensor) -> Tensor {
        let joined = Tensor::cat(&[&xs, &skip], 1);
        drop((xs, skip));
        self.forward(&joined, time, text)
    }

    /// [`Self::forward`] as part of a graph.
    pub fn export(&self, graph: &mut Graph, xs: &Value, time: &Value, text: &Value) -> Value {
        let hidden = graph.within("resnet", |graph| self.resnet.export(graph, xs, time));
        match &self.attention {
            Some(attention) => graph.within("attention", |graph| attention.export(graph, &hidden, text)),
            None => hidden,
        }
    }

    /// [`Self::forward_with_skip`] as part of a graph.
    pub fn export_with_skip(&self, graph: &mut Graph, xs: &Value, skip: &Value, time: &Value, text: &Value) -> Value {
        let joined = graph.concat(&[xs, skip], 1);
        self.export(graph, &joined, time, text)
    }
}

/// The middle: residual block, spatial transformer, residual block.
///
/// # Shapes
/// - as [`Layer`], channels unchanged
#[derive(Debug)]
pub struct MidBlock {
    first: Layer,
    second: Layer,
}

impl MidBlock {
    /// Keys `resnets.0`, `attentions.0`, `resnets.1` under `vs`.
    pub fn new(vs: &nn::Path<'_>, resnet: ResnetConfig, attention: TransformerConfig) -> Self {
        Self {
            first: Layer::new(vs, 0, resnet, Some(attention)),
            second: Layer::new(vs, 1, resnet, None),
        }
    }

    /// One pass.
    pub fn forward(&self, xs: &Tensor, time: &Tensor, text: &Tensor) -> Tensor {
        self.first
            .forward(xs, time, text)
            .then(|h| self.second.forward(h, time, text))
    }

    /// [`Self::forward`] as part of a graph.
    pub fn export(&self, graph: &mut Graph, xs: &Value, time: &Value, text: &Value) -> Value {
        let hidden = graph.within("first", |graph| self.first.export(graph, xs, time, text));
        graph.within("second", |graph| self.second.export(graph, &hidden, time, text))
    }
}

/// Halves height and width: 3×3 convolution of stride 2.
#[derive(Debug)]
pub struct Downsample(Conv2d);

impl Downsample {
    /// Key `conv` under `vs`.
    pub fn new(vs: nn::Path<'_>, channels: i64) -> Self {
        Self(conv2d(&vs / "conv", channels, channels, 3, 2))
    }
}

impl nn::Module for Downsample {
    fn forward(&self, xs: &Tensor) -> Tensor {
        xs.apply(&self.0)
    }
}

impl Export for Downsample {
    fn export(&self, graph: &mut Graph, xs: &Value) -> Value {
        xs.through(graph, &self.0)
    }
}

/// Doubles height and width: nearest neighbour, then a 3×3 convolution.
#[derive(Debug)]
pub struct Upsample(Conv2d);

impl Upsample {
    /// Key `conv` under `vs`.
    pub fn new(vs: nn::Path<'_>, channels: i64) -> Self {
        Self(conv2d(&vs / "conv", channels, channels, 3, 1))
    }

    /// One pass to `size` (height, width); an odd size was rounded up on the way down.
    pub fn forward(&self, xs: &Tensor, size: [i64; 2]) -> Tensor {
        xs.upsample_nearest2d(size, None, None).through(&self.0)
    }

    /// [`Self::forward`] as part of a graph.
    pub fn export(&self, graph: &mut Graph, xs: &Value, size: [i64; 2]) -> Value {
        graph.resize_nearest(xs, size).through(graph, &self.0)
    }
}

/// The head: group norm, SiLU, 3×3 convolution to the latent's channels.
#[derive(Debug)]
pub struct Head {
    norm: GroupNorm,
    conv: Conv2d,
}

impl Head {
    /// Keys `conv_norm_out` and `conv_out` under `vs`.
    pub fn new(vs: &nn::Path<'_>, inputs: i64, outputs: i64, groups: i64) -> Self {
        Self {
            norm: group_norm(vs / "conv_norm_out", groups, inputs, RESNET_EPS),
            conv: conv2d(vs / "conv_out", inputs, outputs, 3, 1),
        }
    }
}

impl nn::Module for Head {
    fn forward(&self, xs: &Tensor) -> Tensor {
        xs.apply(&self.norm).then(Tensor::silu).through(&self.conv)
    }
}

impl Export for Head {
    fn export(&self, graph: &mut Graph, xs: &Value) -> Value {
        let hidden = xs.through(graph, &self.norm);
        graph.silu(&hidden).through(graph, &self.conv)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// To an odd size: pixel `i` of 27 comes from ⌊14 i / 27⌋, as in libtorch's own nearest neighbour.
    #[test]
    fn an_upsample_follows_the_size_it_is_given() {
        let vs = nn::VarStore::new(Device::Cpu);
        let upsample = Upsample::new(vs.root(), 1);
        let mut identity = Tensor::zeros([1, 1, 3, 3], (Kind::Float, Device::Cpu));
        let _ = identity.get(0).get(0).get(1).get(1).fill_(1.0);
        identity = identity.contiguous();
        tch::no_grad(|| {
            let mut variables = vs.variables();
            variables.get_mut("conv.weight").unwrap().copy_(&identity);
            let _ = variables.get_mut("conv.bias").unwrap().zero_();
            let xs = Tensor::arange(14, (Kind::Float, Device::Cpu)).reshape([1, 1, 14, 1]);
            let ys = Vec::<f32>::try_from(upsample.forward(&xs, [27, 1]).flatten(0, -1)).unwrap();
            let expected: Vec<f32> = (0..27).map(|i| (14 * i / 27) as f32).collect();
            assert_eq!(ys, expected);
        });
    }
}

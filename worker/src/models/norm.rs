//! Normalisations and weight starts shared by every block.

use tch::{Kind, Tensor, nn};

use crate::onnx::{Export, Geometry, Graph, Value};

/// Epsilon of group norms in residual blocks and temporal convolutions (spec section 1.1).
pub const RESNET_EPS: f64 = 1e-5;
/// Epsilon of the group norm in front of a spatial transformer (spec section 1.1).
pub const TRANSFORMER_EPS: f64 = 1e-6;
/// Epsilon of the root-mean-square norm of queries and keys (spec section 2.1).
pub const QK_EPS: f64 = 1e-6;

/// `y = x / sqrt(mean(x²) + ε) · w` over the last dimension (Zhang & Sennrich 2019, eq. 4).
///
/// # Shapes
/// - `xs`: `[…, width]`; output as `xs`. The weight `[width]` is shared by whatever comes before.
#[derive(Debug)]
pub struct RmsNorm {
    pub(super) weight: Tensor,
    pub(super) eps: f64,
}

impl RmsNorm {
    /// A norm over `width` channels, weight one.
    pub fn new(vs: nn::Path<'_>, width: i64, eps: f64) -> Self {
        Self {
            weight: vs.ones("weight", &[width]),
            eps,
        }
    }
}

impl nn::Module for RmsNorm {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let wide = xs.to_kind(statistics_kind(xs.kind()));
        let mean = wide.square().mean_dim(-1, true, None);
        let scale = (mean + self.eps).rsqrt();
        let normed = (wide * scale).to_kind(xs.kind());
        normed * &self.weight
    }
}

impl Export for RmsNorm {
    fn export(&self, graph: &mut Graph, xs: &Value) -> Value {
        graph.rms_norm(xs, &self.weight, self.eps)
    }
}

/// The format in which statistics of numbers of a `kind` are taken: squares of binary16 overflow, and a mean of bfloat16
/// squares keeps two digits. libtorch's own norms and its softmax do the same inside.
fn statistics_kind(kind: Kind) -> Kind {
    match kind {
        Kind::Half | Kind::BFloat16 => Kind::Float,
        other => other,
    }
}

/// Group norm with weight and bias, and the epsilon that it was made with (Wu & He 2018).
///
/// # Shapes
/// - `xs`: `[n, channels, …]`; output as `xs`
#[derive(Debug)]
pub struct GroupNorm {
    /// `[channels]`.
    pub ws: Option<Tensor>,
    /// `[channels]`.
    pub bs: Option<Tensor>,
    groups: i64,
    eps: f64,
}

impl nn::Module for GroupNorm {
    fn forward(&self, xs: &Tensor) -> Tensor {
        xs.group_norm(self.groups, self.ws.as_ref(), self.bs.as_ref(), self.eps, true)
    }
}

impl Export for GroupNorm {
    fn export(&self, graph: &mut Graph, xs: &Value) -> Value {
        graph.group_norm(xs, self.groups, self.eps, self.ws.as_ref(), self.bs.as_ref())
    }
}

/// Group norm with the project's epsilon for it.
pub fn group_norm(vs: nn::Path<'_>, groups: i64, channels: i64, eps: f64) -> GroupNorm {
    let nn::GroupNorm { ws, bs, .. } = nn::group_norm(vs, groups, channels, Default::default());
    GroupNorm { ws, bs, groups, eps }
}

/// Epsilon of every layer norm, which is libtorch's own.
pub(crate) const LAYER_EPS: f64 = 1e-5;

/// Layer norm over the last dimension, epsilon 1e-5.
pub fn layer_norm(vs: nn::Path<'_>, width: i64) -> nn::LayerNorm {
    nn::layer_norm(vs, vec![width], Default::default())
}

/// How a projection starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Uniform in ±1/√fan_in, bias zero.
    Random,
    /// All zero: the branch that ends in it adds nothing until it is trained.
    Zero,
}

impl Start {
    fn weights(self) -> nn::Init {
        match self {
            Self::Random => nn::init::DEFAULT_KAIMING_UNIFORM,
            Self::Zero => nn::Init::Const(0.0),
        }
    }
}

/// A linear layer `[…, inputs] → […, outputs]`.
pub fn linear(vs: nn::Path<'_>, inputs: i64, outputs: i64, bias: bool, start: Start) -> nn::Linear {
    let config = nn::LinearConfig {
        ws_init: start.weights(),
        bs_init: Some(nn::Init::Const(0.0)),
        bias,
    };
    nn::linear(vs, inputs, outputs, config)
}

/// A square convolution with its stride and zero padding.
///
/// # Shapes
/// - `xs`: `[n, inputs, h, w]`; output `[n, outputs, …]`
#[derive(Debug)]
pub struct Conv2d {
    /// `[outputs, inputs, kernel, kernel]`.
    pub ws: Tensor,
    /// `[outputs]`.
    pub bs: Option<Tensor>,
    stride: i64,
    padding: i64,
}

impl Conv2d {
    /// A convolution with bias and fresh weights.
    pub fn new(vs: nn::Path<'_>, inputs: i64, outputs: i64, kernel: i64, stride: i64, padding: i64) -> Self {
        let nn::Conv2D { ws, bs, .. } = nn::conv2d(vs, inputs, outputs, kernel, Default::default());
        Self {
            ws,
            bs,
            stride,
            padding,
        }
    }
}

impl nn::Module for Conv2d {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        xs.conv2d(&self.ws, self.bs.as_ref(), stride, padding, [1, 1], 1)
    }
}

impl Export for Conv2d {
    fn export(&self, graph: &mut Graph, xs: &Value) -> Value {
        let geometry = Geometry::new([self.stride; 2], [self.padding; 2]);
        graph.conv(xs, &self.ws, self.bs.as_ref(), &geometry)
    }
}

/// A square convolution `[n, inputs, h, w] → [n, outputs, h / stride, w / stride]` with bias and zero padding.
pub fn conv2d(vs: nn::Path<'_>, inputs: i64, outputs: i64, kernel: i64, stride: i64) -> Conv2d {
    Conv2d::new(vs, inputs, outputs, kernel, stride, kernel / 2)
}

/// The weight and bias of a convolution over time (and space), for [`Tensor::conv3d`].
///
/// `tch` sizes the weights of a three-dimensional convolution by one cubic kernel, hence the plain pair.
#[derive(Debug)]
pub struct Conv3d {
    weight: Tensor,
    bias: Tensor,
    padding: [i64; 3],
}

impl Conv3d {
    /// A convolution `[b, channels, t, h, w] → same` with odd `kernel` sizes (time, height, width) and zero padding.
    pub fn new(vs: nn::Path<'_>, channels: i64, kernel: [i64; 3], start: Start) -> Self {
        let [t, h, w] = kernel;
        Self {
            weight: vs.var("weight", &[channels, channels, t, h, w], start.weights()),
            bias: vs.zeros("bias", &[channels]),
            padding: kernel.map(|size| size / 2),
        }
    }
}

impl Export for Conv3d {
    fn export(&self, graph: &mut Graph, xs: &Value) -> Value {
        let geometry = Geometry::new([1; 3], self.padding);
        graph.conv(xs, &self.weight, Some(&self.bias), &geometry)
    }
}

impl Conv3d {
    /// The same convolution where its kernel is 1×1 in space: as a plane of time against pixels it is about twice as
    /// fast on a processor.
    pub fn forward_over_time(&self, xs: &Tensor) -> Tensor {
        let (_, _, _, h, w) = xs.size5().expect("a temporal convolution takes [b, c, t, h, w]");
        let plane = xs.flatten(3, 4).conv2d(
            &self.weight.squeeze_dim(4),
            Some(&self.bias),
            [1, 1],
            [self.padding[0], 0],
            [1, 1],
            1,
        );
        plane.unflatten(3, [h, w])
    }

    /// [`Self::forward_over_time`] as part of a graph.
    pub(crate) fn export_over_time(&self, graph: &mut Graph, xs: &Value) -> Value {
        let plane = graph.flatten(xs, 3, 4);
        let geometry = Geometry::new([1, 1], [self.padding[0], 0]);
        let plane = graph.conv(&plane, &self.weight.squeeze_dim(4), Some(&self.bias), &geometry);
        graph.reshape(&plane, xs.shape())
    }
}

impl nn::Module for Conv3d {
    fn forward(&self, xs: &Tensor) -> Tensor {
        xs.conv3d(&self.weight, Some(&self.bias), [1, 1, 1], self.padding, [1, 1, 1], 1)
    }
}

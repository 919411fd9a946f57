//! The convolutions of both stages: dense, or depth-wise and then point-wise (see [`Convolutions`]).

use tch::{Tensor, nn, nn::Module};

use super::Convolutions;
use crate::models::chain::Chain;
use crate::models::norm::{Conv2d, conv2d};
use crate::onnx::{Export, Geometry, Graph, Value};

/// Places of a kernel along one axis.
pub(super) const KERNEL: i64 = 3;

/// A 3×3 convolution of single frames with bias and zero padding.
///
/// # Shapes
/// - `xs`: `[n, inputs, h, w]`; output `[n, outputs, h, w]`
#[derive(Debug)]
pub(super) enum FrameConv {
    Dense(Conv2d),
    Separable {
        /// `[inputs, 1, 3, 3]`, without bias.
        depthwise: Tensor,
        /// `[outputs, inputs, 1, 1]`
        pointwise: Conv2d,
    },
}

impl FrameConv {
    pub(super) fn new(vs: &nn::Path<'_>, inputs: i64, outputs: i64, convolutions: Convolutions) -> Self {
        match convolutions {
            Convolutions::Dense => Self::Dense(conv2d(vs.clone(), inputs, outputs, KERNEL, 1)),
            Convolutions::Separable => Self::Separable {
                depthwise: (vs / "depthwise").var(
                    "weight",
                    &[inputs, 1, KERNEL, KERNEL],
                    nn::init::DEFAULT_KAIMING_UNIFORM,
                ),
                pointwise: conv2d(vs / "pointwise", inputs, outputs, 1, 1),
            },
        }
    }
}

/// A filter of 3×3 places for each channel.
fn filtered(frames: &Tensor, filters: &Tensor) -> Tensor {
    let channels = filters.size()[0];
    frames.conv2d(filters, None::<&Tensor>, [1, 1], [KERNEL / 2; 2], [1, 1], channels)
}

/// [`filtered`] as part of a graph.
fn export_filtered(graph: &mut Graph, frames: &Value, filters: &Tensor) -> Value {
    let geometry = Geometry::new([1, 1], [KERNEL / 2; 2]).grouped(filters.size()[0]);
    graph.conv(frames, filters, None, &geometry)
}

impl Module for FrameConv {
    fn forward(&self, xs: &Tensor) -> Tensor {
        match self {
            Self::Dense(conv) => xs.apply(conv),
            Self::Separable { depthwise, pointwise } => filtered(xs, depthwise).through(pointwise),
        }
    }
}

impl Export for FrameConv {
    fn export(&self, graph: &mut Graph, xs: &Value) -> Value {
        match self {
            Self::Dense(conv) => xs.through(graph, conv),
            Self::Separable { depthwise, pointwise } => export_filtered(graph, xs, depthwise).through(graph, pointwise),
        }
    }
}

/// A 3×3×3 convolution that sees no later frame.
///
/// # Shapes
/// - `xs`: `[b, inputs, t, h, w]`; output `[b, outputs, t, h, w]`
#[derive(Debug)]
pub(super) enum ClipConv {
    Dense(CausalConv3d),
    Separable(CausalSeparable),
}

impl ClipConv {
    pub(super) fn new(vs: &nn::Path<'_>, [inputs, outputs]: [i64; 2], bias: bool, convolutions: Convolutions) -> Self {
        match convolutions {
            Convolutions::Dense => Self::Dense(CausalConv3d::new(vs, inputs, outputs, KERNEL, 1, bias)),
            Convolutions::Separable => Self::Separable(CausalSeparable::new(vs, inputs, outputs, bias)),
        }
    }
}

impl Module for ClipConv {
    fn forward(&self, xs: &Tensor) -> Tensor {
        match self {
            Self::Dense(conv) => conv.forward(xs),
            Self::Separable(conv) => conv.forward(xs),
        }
    }
}

impl Export for ClipConv {
    fn export(&self, graph: &mut Graph, xs: &Value) -> Value {
        match self {
            Self::Dense(conv) => xs.through(graph, conv),
            Self::Separable(conv) => xs.through(graph, conv),
        }
    }
}

/// A filter of 3×3×3 places for each channel, which sees no later frame (zeros on both sides of height and width, in
/// time two frames of them in front), and then a matrix over the channels of each place.
///
/// The filters are computed as one convolution of single frames for each of the three frames that are seen, whose
/// results are added up: the same sum, faster than a grouped convolution over time (in libtorch and in ONNX Runtime on a
/// processor), and of operators that devices without three-dimensional convolutions have.
///
/// # Shapes
/// - `xs`: `[b, inputs, t, h, w]`; output `[b, outputs, t, h, w]`
#[derive(Debug)]
pub(super) struct CausalSeparable {
    /// `[inputs, 1, 3, 3, 3]`, the earliest frame first.
    depthwise: Tensor,
    /// `[outputs, inputs, 1, 1, 1]`
    pointwise: Tensor,
    bias: Option<Tensor>,
}

impl CausalSeparable {
    fn new(vs: &nn::Path<'_>, inputs: i64, outputs: i64, bias: bool) -> Self {
        let (depthwise, pointwise) = (vs / "depthwise" / "conv", vs / "pointwise" / "conv");
        let weight = |vs: &nn::Path<'_>, shape: &[i64]| vs.var("weight", shape, nn::init::DEFAULT_KAIMING_UNIFORM);
        Self {
            depthwise: weight(&depthwise, &[inputs, 1, KERNEL, KERNEL, KERNEL]),
            pointwise: weight(&pointwise, &[outputs, inputs, 1, 1, 1]),
            bias: bias.then(|| pointwise.zeros("bias", &[outputs])),
        }
    }
}

impl CausalSeparable {
    /// The filters of the frame that is `later` frames before the one they add to: `[inputs, 1, 3, 3]`.
    fn filters(&self, later: i64) -> Tensor {
        self.depthwise.select(2, KERNEL - 1 - later)
    }

    /// `[outputs, inputs, 1, 1]`
    fn matrix(&self) -> Tensor {
        self.pointwise.squeeze_dim(4)
    }
}

impl Module for CausalSeparable {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let (batch, times) = (xs.size()[0], xs.size()[2]);
        let frames = xs.transpose(1, 2).flatten(0, 1); // [b * t, inputs, h, w]
        let of_clips = |frames: Tensor| frames.unflatten(0, [batch, times]);
        let mut sum = of_clips(filtered(&frames, &self.filters(0)));
        for later in (1..KERNEL).filter(|later| *later < times) {
            let heard = of_clips(filtered(&frames, &self.filters(later))).narrow(1, 0, times - later);
            sum += heard.constant_pad_nd([0, 0, 0, 0, 0, 0, later, 0]);
        }
        let mixed = sum
            .flatten(0, 1)
            .conv2d(&self.matrix(), self.bias.as_ref(), [1, 1], [0, 0], [1, 1], 1);
        of_clips(mixed).transpose(1, 2)
    }
}

impl Export for CausalSeparable {
    fn export(&self, graph: &mut Graph, xs: &Value) -> Value {
        let &[batch, channels, times, height, width] = xs.shape() else {
            return graph.refuse("clips are [b, c, t, h, w]", xs);
        };
        let clips = graph.swap(xs, 1, 2);
        let frames = graph.reshape(&clips, &[batch * times, channels, height, width]);
        let of_clips =
            |graph: &mut Graph, frames: &Value| graph.reshape(frames, &[batch, times, frames.size(1), height, width]);
        let now = export_filtered(graph, &frames, &self.filters(0));
        let mut sum = of_clips(graph, &now);
        for later in (1..KERNEL).filter(|later| *later < times) {
            let heard = export_filtered(graph, &frames, &self.filters(later));
            let heard = of_clips(graph, &heard);
            let heard = graph.narrow(&heard, 1, 0, times - later);
            let heard = graph.pad_front(&heard, 1, later);
            sum = graph.add(&sum, &heard);
        }
        let sum = graph.reshape(&sum, &[batch * times, channels, height, width]);
        let mixed = graph.conv(&sum, &self.matrix(), self.bias.as_ref(), &Geometry::new([1, 1], [0, 0]));
        let mixed = of_clips(graph, &mixed);
        graph.swap(&mixed, 1, 2)
    }
}

/// A cubic convolution that sees no later frame: zeros on both sides of height and width, in time in front only,
/// `(k − 1) + (1 − stride)` of them.
#[derive(Debug)]
pub(super) struct CausalConv3d {
    weight: Tensor,
    pub(super) bias: Option<Tensor>,
    kernel: i64,
    stride: i64,
}

impl CausalConv3d {
    pub(super) fn new(vs: &nn::Path<'_>, inputs: i64, outputs: i64, kernel: i64, stride: i64, bias: bool) -> Self {
        let vs = vs / "conv";
        Self {
            weight: vs.var(
                "weight",
                &[outputs, inputs, kernel, kernel, kernel],
                nn::init::DEFAULT_KAIMING_UNIFORM,
            ),
            bias: bias.then(|| vs.zeros("bias", &[outputs])),
            kernel,
            stride,
        }
    }
}

impl CausalConv3d {
    /// Zeros in front of time, and on each side of height and width.
    const fn padding(&self) -> (i64, i64) {
        (self.kernel - 1 + 1 - self.stride, self.kernel / 2)
    }
}

impl Export for CausalConv3d {
    fn export(&self, graph: &mut Graph, xs: &Value) -> Value {
        let (front, space) = self.padding();
        let geometry = Geometry::new([self.stride, 1, 1], [front, space, space]).padded_after([0, space, space]);
        graph.conv(xs, &self.weight, self.bias.as_ref(), &geometry)
    }
}

impl Module for CausalConv3d {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let (front, space) = self.padding();
        let padded = xs.constant_pad_nd([0, 0, 0, 0, front, 0]);
        padded.conv3d(
            &self.weight,
            self.bias.as_ref(),
            [self.stride, 1, 1],
            [0, space, space],
            [1, 1, 1],
            1,
        )
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::models::seeded::{distance, normal, seed_weights};

    fn separable<T>(build: impl FnOnce(&nn::Path<'_>) -> T) -> (nn::VarStore, T) {
        let vs = nn::VarStore::new(Device::Cpu);
        let conv = build(&vs.root());
        seed_weights(&vs, 4);
        for (_, variable) in vs.variables() {
            let _ = variable.set_requires_grad(false);
        }
        (vs, conv)
    }

    /// A separable convolution is the dense one with the kernel `W[o, i] = P[o, i] D[i]`.
    #[test]
    fn a_separable_convolution_of_frames_is_a_dense_one_of_rank_one_kernels() {
        let (vs, conv) = separable(|vs| FrameConv::new(vs, 3, 5, Convolutions::Separable));
        let weights = vs.variables();
        let bias = normal(&[5], 8, Device::Cpu);
        weights["pointwise.bias"].shallow_clone().copy_(&bias);
        let kernel = &weights["pointwise.weight"] * weights["depthwise.weight"].transpose(0, 1);
        assert_eq!(kernel.size(), [5, 3, 3, 3]);
        let xs = normal(&[2, 3, 6, 4], 1, Device::Cpu);
        let dense = xs.conv2d(&kernel, Some(&bias), [1, 1], [1, 1], [1, 1], 1);
        assert!(distance(&conv.forward(&xs), &dense) < 1e-5);
    }

    /// The same over time, for chunks shorter than a kernel too, against libtorch's three-dimensional convolution.
    #[test]
    fn a_separable_convolution_of_clips_is_a_dense_one_of_rank_one_kernels() {
        let (vs, conv) = separable(|vs| ClipConv::new(vs, [4, 3], true, Convolutions::Separable));
        let weights = vs.variables();
        let bias = normal(&[3], 8, Device::Cpu);
        weights["pointwise.conv.bias"].shallow_clone().copy_(&bias);
        let kernel = &weights["pointwise.conv.weight"] * weights["depthwise.conv.weight"].transpose(0, 1);
        assert_eq!(kernel.size(), [3, 4, 3, 3, 3]);
        for times in [1, 2, 3, 5] {
            let xs = normal(&[2, 4, times, 3, 4], 1, Device::Cpu);
            let padded = xs.constant_pad_nd([0, 0, 0, 0, 2, 0]);
            let dense = padded.conv3d(&kernel, Some(&bias), [1, 1, 1], [0, 1, 1], [1, 1, 1], 1);
            let found = conv.forward(&xs);
            assert_eq!(found.size(), dense.size());
            assert!(distance(&found, &dense) < 1e-5, "{times} frames");
        }
    }
}

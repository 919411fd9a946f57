//! The residual block of the spatial backbone.

use tch::{Tensor, nn};

use super::chain::Chain;
use super::norm::{Conv2d, GroupNorm, RESNET_EPS, Start, conv2d, group_norm, linear};
use crate::onnx::{Graph, Value};

/// Sizes of a [`Resnet`].
#[derive(Debug, Clone, Copy)]
pub struct ResnetConfig {
    /// Channels in.
    pub inputs: i64,
    /// Channels out.
    pub outputs: i64,
    /// Width of the time embedding.
    pub time_width: i64,
    /// Groups of the norms; divides `inputs` and `outputs`.
    pub groups: i64,
}

/// `y = S(x) + C₂(σ(G₂(C₁(σ(G₁ x)) + W σ(e))))`, with σ SiLU, `e` the time embedding and `S` the identity, or a 1×1
/// convolution where the channels change (Stable Diffusion 1.5's layout and keys, spec section 1.1).
///
/// # Shapes
/// - `xs`: `[batch · frames, inputs, h, w]`; `time`: `[batch, time_width]`; output `[batch · frames, outputs, h, w]`
#[derive(Debug)]
pub struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: nn::Linear,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl Resnet {
    /// A block with fresh weights under `vs`.
    pub fn new(vs: nn::Path<'_>, cfg: ResnetConfig) -> Self {
        let ResnetConfig {
            inputs,
            outputs,
            time_width,
            groups,
        } = cfg;
        Self {
            norm1: group_norm(&vs / "norm1", groups, inputs, RESNET_EPS),
            conv1: conv2d(&vs / "conv1", inputs, outputs, 3, 1),
            time_emb_proj: linear(&vs / "time_emb_proj", time_width, outputs, true, Start::Random),
            norm2: group_norm(&vs / "norm2", groups, outputs, RESNET_EPS),
            conv2: conv2d(&vs / "conv2", outputs, outputs, 3, 1),
            conv_shortcut: (inputs != outputs).then(|| conv2d(&vs / "conv_shortcut", inputs, outputs, 1, 1)),
        }
    }

    /// One pass.
    pub fn forward(&self, xs: &Tensor, time: &Tensor) -> Tensor {
        let frames = xs.size()[0] / time.size()[0];
        let time = time
            .silu()
            .through(&self.time_emb_proj)
            .repeat_interleave_self_int(frames, 0, None);
        let time = time.unsqueeze(-1).unsqueeze(-1); // [batch * frames, outputs, 1, 1]
        let branch = xs
            .apply(&self.norm1)
            .then(Tensor::silu)
            .through(&self.conv1)
            .then(|h| h + &time)
            .through(&self.norm2)
            .then(Tensor::silu)
            .through(&self.conv2);
        match &self.conv_shortcut {
            Some(shortcut) => xs.apply(shortcut) + branch,
            None => xs + branch,
        }
    }

    /// [`Self::forward`] as part of a graph.
    pub fn export(&self, graph: &mut Graph, xs: &Value, time: &Value) -> Value {
        let frames = xs.size(0) / time.size(0).max(1);
        let time = graph.silu(time).through(graph, &self.time_emb_proj);
        // Clips of one time need not be told apart.
        let time = if time.size(0) == 1 {
            time
        } else {
            graph.repeat_each(&time, frames)
        };
        let time = graph.reshape(&time, &[time.size(0), time.size(1), 1, 1]);
        let hidden = xs.through(graph, &self.norm1);
        let hidden = graph.silu(&hidden).through(graph, &self.conv1);
        let hidden = graph.add(&hidden, &time).through(graph, &self.norm2);
        let branch = graph.silu(&hidden).through(graph, &self.conv2);
        match &self.conv_shortcut {
            Some(shortcut) => {
                let xs = xs.through(graph, shortcut);
                graph.add(&xs, &branch)
            }
            None => graph.add(xs, &branch),
        }
    }
}

//! The transformer layer of both of CLIP's towers, under its published keys (Radford et al. 2021; spec section 1.2).

use tch::{Tensor, nn};

use super::attention::{attend, attend_to_earlier, merge_heads, split_heads};
use super::norm::{Start, layer_norm, linear};
use crate::onnx::{Graph, Value};

/// What a token attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sees {
    /// Itself and what stands before it: captions.
    Earlier,
    /// Everything: the patches of a picture.
    All,
}

/// Attention and a perceptron of four times the width with quick GELU, each behind a layer norm and added.
///
/// # Shapes
/// - `xs`: `[b, tokens, width]`; output as `xs`
#[derive(Debug)]
pub(super) struct EncoderLayer {
    layer_norm1: nn::LayerNorm,
    q_proj: nn::Linear,
    k_proj: nn::Linear,
    v_proj: nn::Linear,
    out_proj: nn::Linear,
    layer_norm2: nn::LayerNorm,
    fc1: nn::Linear,
    fc2: nn::Linear,
    heads: i64,
    sees: Sees,
}

impl EncoderLayer {
    /// Fresh weights; `heads` divides `width`.
    pub(super) fn new(vs: &nn::Path<'_>, width: i64, heads: i64, sees: Sees) -> Self {
        let (attention, mlp) = (vs / "self_attn", vs / "mlp");
        let project = |name| linear(&attention / name, width, width, true, Start::Random);
        Self {
            layer_norm1: layer_norm(vs / "layer_norm1", width),
            q_proj: project("q_proj"),
            k_proj: project("k_proj"),
            v_proj: project("v_proj"),
            out_proj: project("out_proj"),
            layer_norm2: layer_norm(vs / "layer_norm2", width),
            fc1: linear(&mlp / "fc1", width, 4 * width, true, Start::Random),
            fc2: linear(&mlp / "fc2", 4 * width, width, true, Start::Random),
            heads,
            sees,
        }
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Tensor {
        let xs = xs + self.attention(&xs.apply(&self.layer_norm1));
        let hidden = xs.apply(&self.layer_norm2).apply(&self.fc1);
        let quick_gelu = &hidden * (&hidden * 1.702).sigmoid();
        xs + quick_gelu.apply(&self.fc2)
    }

    fn attention(&self, xs: &Tensor) -> Tensor {
        let split = |ys: Tensor| ys.unflatten(-1, [self.heads, -1]).transpose(1, 2); // [b, heads, l, d]
        let [q, k, v] = [&self.q_proj, &self.k_proj, &self.v_proj].map(|project| split(xs.apply(project)));
        let mixed = match self.sees {
            Sees::Earlier => attend_to_earlier(&q, &k, &v),
            Sees::All => attend(&q, &k, &v),
        };
        mixed.transpose(1, 2).flatten(2, 3).apply(&self.out_proj)
    }
    /// [`Self::forward`] as part of a graph; `later` is added to the scores where a token sees what stands before it.
    pub(super) fn export(&self, graph: &mut Graph, xs: &Value, later: Option<&Value>) -> Value {
        let normed = xs.through(graph, &self.layer_norm1);
        let [q, k, v] = [&self.q_proj, &self.k_proj, &self.v_proj].map(|project| {
            let projected = normed.through(graph, project);
            split_heads(graph, &projected, self.heads)
        });
        let mixed = graph.attend(&q, &k, &v, later);
        let mixed = merge_heads(graph, &mixed).through(graph, &self.out_proj);
        let xs = graph.add(xs, &mixed);
        let hidden = xs.through(graph, &self.layer_norm2).through(graph, &self.fc1);
        let hidden = graph.quick_gelu(&hidden).through(graph, &self.fc2);
        graph.add(&xs, &hidden)
    }
}

//! Multi-head attention with normalised queries and keys.

use tch::{Tensor, nn};

use super::chain::Chain;
use super::norm::{QK_EPS, RmsNorm, Start, linear};
use super::rotary::Rotary;
use crate::onnx::{Graph, Value};

/// Sizes of an [`Attention`].
#[derive(Debug, Clone, Copy)]
pub struct AttentionConfig {
    /// Width of queries and of the output.
    pub channels: i64,
    /// Width of what keys and values are made from; `channels` for self-attention.
    pub context: i64,
    /// Number of heads; divides `channels`.
    pub heads: i64,
    /// Whether queries and keys are normalised per head.
    pub qk_norm: bool,
    /// Start of the output projection.
    pub start: Start,
}

/// `Wₒ · softmax(N(Wq x) N(Wk c)ᵀ / √d) Wv c + bₒ` per head (Vaswani et al. 2017, eq. 1), with `N` the
/// root-mean-square norm over a head's channels where asked for (SnapGen, Hu et al. 2024) and an optional rotary turn
/// of queries and keys after it (spec section 2.1).
///
/// Keys as in Stable Diffusion: `to_q`, `to_k`, `to_v` without bias, `to_out.0` with; `norm_q`, `norm_k`.
/// # Shapes
/// - `xs`: `[batch, tokens, channels]`; `context`: `[batch, others, context]`; output as `xs`
#[derive(Debug)]
pub struct Attention {
    to_q: nn::Linear,
    to_k: nn::Linear,
    to_v: nn::Linear,
    to_out: nn::Linear,
    norms: Option<[RmsNorm; 2]>,
    heads: i64,
}

/// Which side of the product is turned.
#[derive(Debug, Clone, Copy)]
pub enum Turn<'a> {
    /// No positions.
    None,
    /// Queries only: the keys have no place on the grid.
    Queries(&'a Rotary),
    /// Queries and keys: both lie on the grid.
    Both(&'a Rotary),
}

impl Attention {
    /// `channels` must be a multiple of `heads`; the space file is checked for it.
    pub fn new(vs: nn::Path<'_>, cfg: AttentionConfig) -> Self {
        let AttentionConfig {
            channels,
            context,
            heads,
            qk_norm,
            start,
        } = cfg;
        let norm = |name| RmsNorm::new(&vs / name, channels / heads, QK_EPS);
        Self {
            to_q: linear(&vs / "to_q", channels, channels, false, Start::Random),
            to_k: linear(&vs / "to_k", context, channels, false, Start::Random),
            to_v: linear(&vs / "to_v", context, channels, false, Start::Random),
            to_out: linear(&vs / "to_out" / "0", channels, channels, true, start),
            norms: qk_norm.then(|| ["norm_q", "norm_k"].map(norm)),
            heads,
        }
    }

    /// Attention of `xs` to `context` (pass `xs` twice for self-attention).
    pub fn forward(&self, xs: &Tensor, context: &Tensor, turn: Turn<'_>) -> Tensor {
        let (on_queries, on_keys) = match turn {
            Turn::None => (None, None),
            Turn::Queries(rotary) => (Some(rotary), None),
            Turn::Both(rotary) => (Some(rotary), Some(rotary)),
        };
        let attended = {
            let q = place(self.heads_of(xs.apply(&self.to_q), 0), on_queries);
            let k = place(self.heads_of(context.apply(&self.to_k), 1), on_keys);
            let v = self.split(&context.apply(&self.to_v));
            attend(&q, &k, &v)
        };
        attended.then(|h| h.transpose(1, 2).flatten(2, 3)).through(&self.to_out) // [batch, tokens, channels]
    }

    /// [`Self::forward`] as part of a graph.
    ///
    /// Where positions are turned, the channels of each head of queries and keys are taken up with the first of each
    /// pair in front: a product does not care about the order of its channels, and halves are cheaper to part than
    /// pairs.
    pub fn export(&self, graph: &mut Graph, xs: &Value, context: &Value, turn: Turn<'_>) -> Value {
        let (on_queries, on_keys) = match turn {
            Turn::None => (None, None),
            Turn::Queries(rotary) => (Some(rotary), None),
            Turn::Both(rotary) => (Some(rotary), Some(rotary)),
        };
        let by_halves = on_queries.is_some();
        let heads_of = |graph: &mut Graph, xs: &Value, which: usize, rotary: Option<&Rotary>| {
            let ordered = |weight: &Tensor| {
                if by_halves {
                    halves_first(weight, self.heads)
                } else {
                    weight.shallow_clone()
                }
            };
            let projection = [&self.to_q, &self.to_k][which];
            let projected = graph.linear(xs, &ordered(&projection.ws), None);
            let mut heads = split_heads(graph, &projected, self.heads);
            if let Some(norms) = &self.norms {
                let norm = &norms[which];
                let weight = if by_halves {
                    halves_first(&norm.weight, 1)
                } else {
                    norm.weight.shallow_clone()
                };
                heads = graph.rms_norm(&heads, &weight, norm.eps);
            }
            match rotary {
                Some(rotary) => rotary.export(graph, &heads),
                None => heads,
            }
        };
        let q = heads_of(graph, xs, 0, on_queries);
        let k = heads_of(graph, context, 1, on_keys);
        let v = context.through(graph, &self.to_v);
        let v = split_heads(graph, &v, self.heads);
        let attended = graph.attend(&q, &k, &v, None);
        merge_heads(graph, &attended).through(graph, &self.to_out)
    }

    /// Heads of projected queries (`which` 0) or keys (1), normalised.
    fn heads_of(&self, projected: Tensor, which: usize) -> Tensor {
        let heads = projected.then(|x| self.split(x));
        match &self.norms {
            Some(norms) => heads.through(&norms[which]),
            None => heads,
        }
    }

    /// `[batch, n, channels]` to `[batch, heads, n, head_dim]`.
    fn split(&self, xs: &Tensor) -> Tensor {
        xs.unflatten(-1, [self.heads, -1]).transpose(1, 2)
    }
}

fn place(heads: Tensor, rotary: Option<&Rotary>) -> Tensor {
    match rotary {
        Some(rotary) => heads.then(|x| rotary.apply(x)),
        None => heads,
    }
}

/// Rows of a weight `[heads · d, …]` with the even channels of each head before its odd ones.
fn halves_first(weight: &Tensor, heads: i64) -> Tensor {
    let by_pair = weight.unflatten(0, [heads, -1, 2]); // [heads, d / 2, 2, …]
    by_pair.transpose(1, 2).flatten(0, 2)
}

/// `[batch, n, channels]` to `[batch, heads, n, head_dim]`.
pub(crate) fn split_heads(graph: &mut Graph, xs: &Value, heads: i64) -> Value {
    let apart = graph.unflatten(xs, -1, &[heads, -1]);
    graph.swap(&apart, 1, 2)
}

/// The reverse of [`split_heads`].
pub(crate) fn merge_heads(graph: &mut Graph, xs: &Value) -> Value {
    let beside = graph.swap(xs, 1, 2);
    graph.flatten(&beside, 2, 3)
}

/// `softmax(Q Kᵀ / √d) V`, unmasked, by libtorch's fused kernel where it has one.
///
/// # Shapes
/// - `q`: `[batch, heads, n, d]`; `k`, `v`: `[batch, heads, m, d]`; output `[batch, heads, n, d]`
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    Tensor::scaled_dot_product_attention(q, k, v, None::<Tensor>, 0.0, false, None, false)
}

/// As [`attend`] where `n` = `m` and nothing sees what comes after it.
pub fn attend_to_earlier(q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    Tensor::scaled_dot_product_attention(q, k, v, None::<Tensor>, 0.0, true, None, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::seeded::{normal, seed_weights};
    use tch::{Device, Kind};

    /// Attention written out over plain numbers, head by head.
    fn naive(q: &Tensor, k: &Tensor, v: &Tensor) -> Vec<f64> {
        let (b, h, n, d) = q.size4().unwrap();
        let m = k.size()[2];
        let mut out = Vec::new();
        for (b, h, i) in (0..b).flat_map(|b| (0..h).flat_map(move |h| (0..n).map(move |i| (b, h, i)))) {
            let scores: Vec<f64> = (0..m)
                .map(|j| {
                    (0..d)
                        .map(|c| q.double_value(&[b, h, i, c]) * k.double_value(&[b, h, j, c]))
                        .sum::<f64>()
                })
                .map(|product| (product / (d as f64).sqrt()).exp())
                .collect();
            let total: f64 = scores.iter().sum();
            out.extend((0..d).map(|c| {
                (0..m)
                    .map(|j| scores[j as usize] / total * v.double_value(&[b, h, j, c]))
                    .sum::<f64>()
            }));
        }
        out
    }

    #[test]
    fn fused_attention_is_softmax_attention() {
        let q = normal(&[2, 3, 5, 4], 1, Device::Cpu);
        let k = normal(&[2, 3, 7, 4], 2, Device::Cpu);
        let v = normal(&[2, 3, 7, 4], 3, Device::Cpu);
        let fused = Vec::<f64>::try_from(attend(&q, &k, &v).to_kind(Kind::Double).flatten(0, -1)).unwrap();
        for (fused, naive) in fused.iter().zip(naive(&q, &k, &v)) {
            assert!((fused - naive).abs() < 1e-5, "{fused} against {naive}");
        }
    }

    #[test]
    fn queries_and_keys_are_normalised() {
        let vs = nn::VarStore::new(Device::Cpu);
        let cfg = AttentionConfig {
            channels: 8,
            context: 6,
            heads: 2,
            qk_norm: true,
            start: Start::Random,
        };
        let attention = Attention::new(vs.root(), cfg);
        seed_weights(&vs, 5);
        let (xs, text) = (normal(&[1, 4, 8], 1, Device::Cpu), normal(&[1, 3, 6], 2, Device::Cpu));
        let once = attention.forward(&xs, &text, Turn::None);
        // Queries carry no bias, so a scaled input gives the same direction and, normalised, the same answer.
        let scaled = attention.forward(&(&xs * 50.0), &text, Turn::None);
        assert!(once.allclose(&scaled, 1e-3, 1e-4, false));
    }
}

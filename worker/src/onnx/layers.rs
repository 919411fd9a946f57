//! Layers of `tch` as parts of a graph.

use tch::nn;

use super::{Graph, Value};
use crate::models::norm::LAYER_EPS;

/// A module of one input as part of a graph; stands beside its `forward`.
pub trait Export {
    /// Adds the module's steps on `xs` to `graph`, and returns what comes out.
    fn export(&self, graph: &mut Graph, xs: &Value) -> Value;
}

impl Export for nn::Linear {
    fn export(&self, graph: &mut Graph, xs: &Value) -> Value {
        graph.linear(xs, &self.ws, self.bs.as_ref())
    }
}

impl Export for nn::LayerNorm {
    fn export(&self, graph: &mut Graph, xs: &Value) -> Value {
        graph.layer_norm(xs, LAYER_EPS, self.ws.as_ref(), self.bs.as_ref())
    }
}

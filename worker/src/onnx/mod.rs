//! Models as ONNX graphs, which run without libtorch.
//!
//! Every block of [`crate::models`] has an `export` beside its `forward`. It reads the same fields and adds the same
//! steps to a [`Graph`] instead of computing them:
//!
//! ```text
//! let mut graph = Graph::new("head", Precision::F32);
//! let xs = graph.input("xs", &[5, 320, 64, 64]);
//! let ys = self.norm.export(&mut graph, &xs); // `Export`: one tensor in, one out
//! let ys = graph.silu(&ys);
//! let ys = self.conv.export(&mut graph, &ys);
//! graph.output("ys", &ys);
//! let written = graph.write(folder, INLINE_BYTES)?; // head.onnx, and head.onnx.data where it is large
//! let outputs = Runtime::find(None)?.session(&written.graph, threads)?.run(&[("xs", tensor)])?;
//! ```
//!
//! - A [`Value`] is a tensor of the graph with its name, number format and shape. All shapes are known: phones compile
//!   for fixed sizes. Operators are methods of [`Graph`] that take values and return one; they say their shapes where
//!   these are not those of libtorch's operator of that name.
//! - [`Graph::weight`] takes a tensor of the model into the graph, in the graph's number format. Nothing is copied until
//!   the graph is written, and a tensor that is used twice is written once.
//! - Operators do not fail: the first use that cannot be (shapes that do not fit) is kept, and [`Graph::write`] returns
//!   it.
//! - [`Graph::within`] puts a block's name in front of the names of its nodes, which a runtime's profiler shows.
//! - In [`Precision::F16`] weights and activations are binary16. Statistics of group norms and root-mean-square norms
//!   are taken in binary32 between two casts, as libtorch takes them; layer norms and softmax do so by their definition.
//!
//! The operators are those of opset 17: the first with layer norm as one operator, and the newest that all of ONNX
//! Runtime's providers for phones and our reader for Core ML take whole.

mod coreml;
mod graph;
mod layers;
mod operators;
mod proto;
mod runtime;
mod verify;
mod write;

#[cfg(test)]
mod tests;

pub use coreml::{CoreMl, CoreMlError};
pub use graph::{Dtype, Graph, Precision, Value};
pub use layers::Export;
pub use operators::Geometry;
pub use runtime::{LIBRARY, Runtime, Session};
pub use verify::{Tolerance, relative_error};
pub use write::{INLINE_BYTES, Written};

use std::path::PathBuf;

/// Version of ONNX's operators that graphs are written for.
pub const OPSET: u32 = 17;
/// Names the program whose graphs these are: graphs of blocks that another one wrote are written anew.
pub const EXPORTER: &str = concat!("temponas-worker ", env!("CARGO_PKG_VERSION"));

/// Why a graph could not be written or run.
#[derive(Debug, thiserror::Error)]
pub enum OnnxError {
    /// An operator was used on tensors that do not fit.
    #[error("graph `{graph}`: {problem}")]
    Graph {
        /// The graph.
        graph: String,
        /// What was found and what fits.
        problem: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// ONNX Runtime's library is not there.
    #[error(
        "ONNX Runtime's library is missing: {0}; name it in ORT_DYLIB_PATH (`scripts/onnxruntime` fetches it and prints its place)"
    )]
    Library(String),
    /// ONNX Runtime refused a graph or a run.
    #[error("graph `{graph}` in ONNX Runtime: {problem}")]
    Runtime {
        /// The graph.
        graph: String,
        /// What it says.
        problem: String,
    },
    /// A graph computes something else than libtorch.
    #[error("graph `{graph}`: output `{output}` is off by {found:.2e} of its largest value, allowed is {allowed:.0e}")]
    Differs {
        /// The graph.
        graph: String,
        /// Its output.
        output: String,
        /// Largest difference over largest value.
        found: f64,
        /// What would do.
        allowed: f64,
    },
}

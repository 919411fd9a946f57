//! The worker of temponas: it measures blocks on its device, trains and scores candidates, and reports to the
//! coordinator. libtorch lives here and nowhere else.

pub mod assets;
pub mod checkpoint;
pub mod client;
pub mod data;
pub mod decoder;
pub mod distributed;
#[cfg(test)]
mod fake_coordinator;
pub mod flow;
pub mod full_size;
pub mod jobs;
mod lease;
pub mod lut_accuracy;
pub mod models;
pub mod onnx;
pub mod optimizer;
pub mod parity;
pub mod profile;
pub mod proxy_check;
pub mod prune;
pub mod prune_check;
pub mod recipes;
pub mod runtime;
pub mod scoring;
mod seat;
pub mod shim;
pub mod train;
pub mod weights;

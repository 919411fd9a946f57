//! The worker of temponas: it measures blocks on its device, trains and scores candidates, and reports to the
//! coordinator. libtorch lives here and nowhere else.

pub mod assets;
pub mod checkpoint;
pub mod data;
pub mod decoder;
pub mod distill;
pub mod distributed;
pub mod export_check;
pub mod export_space;
pub mod flow;
pub mod full_size;
pub mod jobs;
pub mod lut_accuracy;
pub mod models;
pub mod onnx;
pub mod optimizer;
pub mod parity;
mod process;
pub mod profile;
pub mod proxy_check;
pub mod prune;
pub mod prune_check;
pub mod recipes;
pub mod scoring;
pub mod shim;
pub mod train;
pub mod weights;

pub use job_client::client;

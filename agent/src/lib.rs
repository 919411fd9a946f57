//! The device agent of temponas: it measures exported graphs with ONNX Runtime on the device it runs on, for a
//! coordinator. It knows nothing of libtorch.

pub mod child;
pub mod inputs;
pub mod jobs;
pub mod journal;
pub mod lut_accuracy;
pub mod measure;
pub mod nodes;
pub mod runtime;
pub mod system;

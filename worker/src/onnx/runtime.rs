//! Graphs in ONNX Runtime, whose library is loaded when it is first needed.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use half::f16;
use ort::environment::Environment;
use ort::session::SessionInputValue;
use ort::value::{DynValue, Tensor as Array, TensorElementType};
use tch::{Device, Kind, Tensor};

use super::{OnnxError, Written};

/// Names the library where no setting does.
pub const LIBRARY: &str = "ORT_DYLIB_PATH";

/// The library that this process has loaded; there can be one.
static LOADED: OnceLock<Result<Environment, String>> = OnceLock::new();

/// ONNX Runtime, ready to take graphs.
#[derive(Debug, Clone)]
pub struct Runtime(Environment);

impl Runtime {
    /// Loads the library `named`, or that of `ORT_DYLIB_PATH`. A process loads one; later calls get it whatever they
    /// name.
    ///
    /// # Errors
    /// Where neither names a file, or it cannot be loaded.
    pub fn find(named: Option<&Path>) -> Result<Self, OnnxError> {
        let load = || {
            let path = named
                .map(Path::to_owned)
                .or_else(|| std::env::var_os(LIBRARY).map(PathBuf::from));
            let path = path.ok_or_else(|| format!("{LIBRARY} is not set"))?;
            if !path.is_file() {
                return Err(format!("{} is no file", path.display()));
            }
            let said = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
            let builder = ort::environment::init_from(&path).map_err(|error| said(&error))?;
            let builder = builder.with_name(env!("CARGO_PKG_NAME")).with_telemetry(false);
            builder.build().map_err(|error| said(&error))
        };
        match LOADED.get_or_init(load) {
            Ok(environment) => Ok(Self(environment.clone())),
            Err(problem) => Err(OnnxError::Library(problem.clone())),
        }
    }

    /// Reads a graph and makes it ready to run on the processor with so many threads.
    ///
    /// # Errors
    /// What ONNX Runtime says.
    pub fn session(&self, graph: &Written, threads: usize) -> Result<Session, OnnxError> {
        let error = |problem: &dyn std::fmt::Display| OnnxError::Runtime {
            graph: graph.name.clone(),
            problem: problem.to_string(),
        };
        let builder = ort::session::Session::builder(&self.0).map_err(|e| error(&e))?;
        let builder = builder
            .with_log_level(ort::logging::LogLevel::Error)
            .map_err(|e| error(&e))?;
        let mut builder = builder.with_intra_threads(threads.max(1)).map_err(|e| error(&e))?;
        let session = builder.commit_from_file(&graph.graph).map_err(|e| error(&e))?;
        Ok(Session {
            name: graph.name.clone(),
            session,
        })
    }
}

/// A graph that is ready to run.
#[derive(Debug)]
pub struct Session {
    name: String,
    session: ort::session::Session,
}

impl Session {
    /// One run: outputs in the graph's order, each in the graph's number format.
    ///
    /// # Errors
    /// An input that is missing or does not fit, or what ONNX Runtime says.
    pub fn run(&mut self, inputs: &[(String, Tensor)]) -> Result<Vec<Tensor>, OnnxError> {
        let graph = self.name.clone();
        let error = |problem: String| OnnxError::Runtime {
            graph: graph.clone(),
            problem,
        };
        let mut given: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = Vec::new();
        for (name, tensor) in inputs {
            given.push((name.into(), array_of(tensor).map_err(&error)?.into()));
        }
        let outputs = self.session.run(given).map_err(|e| error(e.to_string()))?;
        let read = |value: &DynValue| tensor_of(value).map_err(&error);
        outputs.values().map(|value| read(&value)).collect()
    }
}

fn array_of(tensor: &Tensor) -> Result<DynValue, String> {
    fn taken<T>(shape: Vec<i64>, flat: Result<Vec<T>, tch::TchError>) -> Result<DynValue, String>
    where
        T: ort::value::PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static,
    {
        let flat = flat.map_err(|error| error.to_string())?;
        let array = Array::from_array((shape, flat)).map_err(|error| error.to_string())?;
        Ok(array.into_dyn())
    }
    let (shape, flat) = (tensor.size(), tensor.to_device(Device::Cpu).flatten(0, -1));
    match tensor.kind() {
        Kind::Float => taken(shape, Vec::<f32>::try_from(flat)),
        Kind::Half => taken(shape, Vec::<f16>::try_from(flat)),
        Kind::Int64 => taken(shape, Vec::<i64>::try_from(flat)),
        other => Err(format!("no graph takes tensors of {other:?}")),
    }
}

fn tensor_of(value: &DynValue) -> Result<Tensor, String> {
    let kind = value.dtype().tensor_type();
    let said = |error: ort::Error| error.to_string();
    Ok(match kind {
        Some(TensorElementType::Float32) => {
            let (shape, flat) = value.try_extract_tensor::<f32>().map_err(said)?;
            Tensor::from_slice(flat).reshape(&**shape)
        }
        Some(TensorElementType::Float16) => {
            let (shape, flat) = value.try_extract_tensor::<f16>().map_err(said)?;
            Tensor::from_slice(flat).reshape(&**shape)
        }
        Some(TensorElementType::Int64) => {
            let (shape, flat) = value.try_extract_tensor::<i64>().map_err(said)?;
            Tensor::from_slice(flat).reshape(&**shape)
        }
        other => return Err(format!("an output is of {other:?}")),
    })
}

//! ONNX Runtime: its library, which the user names, and what of the device it can use.

use std::path::{Path, PathBuf};

use ort::environment::Environment;
use ort::ep::{self, ExecutionProvider, ExecutionProviderDispatch};
use ort::session::Session;
use protocol::devices::RuntimeName;

/// Names the library where no flag does.
pub const LIBRARY: &str = "ORT_DYLIB_PATH";

/// Why the runtime cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The library cannot be loaded.
    #[error("ONNX Runtime's library {path}: {problem}")]
    Library {
        /// Its file.
        path: PathBuf,
        /// What was said.
        problem: String,
    },
    /// No such execution provider is known here.
    #[error("execution provider `{0}` is not known; known: {known}", known = Provider::names(&Provider::ALL))]
    Unknown(String),
    /// The library was built without the execution provider.
    #[error("execution provider {provider} is not in this library, which offers: {offers}")]
    NotOffered {
        /// The one that was asked for.
        provider: Provider,
        /// Those that it has.
        offers: String,
    },
}

/// What runs a graph's nodes; nodes that it does not take run on the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// The processor, ONNX Runtime's own kernels.
    Cpu,
    /// The processor, XNNPACK's kernels.
    Xnnpack,
    /// Apple's Core ML.
    CoreMl,
    /// Qualcomm's QNN.
    Qnn,
    /// Android's NNAPI.
    Nnapi,
    /// NVIDIA's CUDA.
    Cuda,
}

impl Provider {
    /// All that are known.
    pub const ALL: [Self; 6] = [
        Self::Cpu,
        Self::Xnnpack,
        Self::CoreMl,
        Self::Qnn,
        Self::Nnapi,
        Self::Cuda,
    ];

    /// Its name in flags and in the runtime's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Xnnpack => "xnnpack",
            Self::CoreMl => "coreml",
            Self::Qnn => "qnn",
            Self::Nnapi => "nnapi",
            Self::Cuda => "cuda",
        }
    }

    fn names(providers: &[Self]) -> String {
        providers.iter().map(|one| one.as_str()).collect::<Vec<_>>().join(", ")
    }

    fn is_in_library(self) -> bool {
        let answer = match self {
            Self::Cpu => ep::CPU::is_available(),
            Self::Xnnpack => ep::XNNPACK::is_available(),
            Self::CoreMl => ep::CoreML::is_available(),
            Self::Qnn => ep::QNN::is_available(),
            Self::Nnapi => ep::NNAPI::is_available(),
            Self::Cuda => ep::CUDA::is_available(),
        };
        answer.unwrap_or(false)
    }

    /// What a session registers; nothing for the processor, which every session has. What cannot be registered is an
    /// error, so that no figure is told as another unit's.
    fn dispatch(self) -> Option<ExecutionProviderDispatch> {
        let dispatch = match self {
            Self::Cpu => return None,
            Self::Xnnpack => ep::XNNPACK::default().build(),
            Self::CoreMl => ep::CoreML::default().build(),
            Self::Qnn => ep::QNN::default().build(),
            Self::Nnapi => ep::NNAPI::default().build(),
            Self::Cuda => ep::CUDA::default().build(),
        };
        Some(dispatch.error_on_failure())
    }
}

impl std::fmt::Display for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Provider {
    type Err = RuntimeError;

    fn from_str(text: &str) -> Result<Self, RuntimeError> {
        let found = Self::ALL.into_iter().find(|one| one.as_str() == text);
        found.ok_or_else(|| RuntimeError::Unknown(text.to_owned()))
    }
}

/// ONNX Runtime as it is to measure.
#[derive(Debug, Clone)]
pub struct Runtime {
    environment: Environment,
    provider: Provider,
    threads: u32,
    version: String,
}

impl Runtime {
    /// Loads the library and checks that it has the execution provider. A process can load one library.
    ///
    /// # Errors
    /// As [`RuntimeError`] says.
    pub fn load(library: &Path, provider: Provider, threads: u32) -> Result<Self, RuntimeError> {
        let failed = |problem: &dyn std::fmt::Display| RuntimeError::Library {
            path: library.to_owned(),
            problem: problem.to_string(),
        };
        if !library.is_file() {
            return Err(failed(&"no such file"));
        }
        let library = library.canonicalize().map_err(|error| failed(&error))?;
        let builder = ort::init_from(&library).map_err(|error| failed(&error))?;
        let builder = builder.with_name(env!("CARGO_PKG_NAME")).with_telemetry(false);
        let runtime = Self {
            environment: builder.build().map_err(|error| failed(&error))?,
            provider,
            threads,
            version: version_of(&library),
        };
        let offers = Self::offered();
        if offers.contains(&provider) {
            Ok(runtime)
        } else {
            let offers = Provider::names(&offers);
            Err(RuntimeError::NotOffered { provider, offers })
        }
    }

    /// Execution providers of the loaded library, of those that are known here.
    #[must_use]
    pub fn offered() -> Vec<Provider> {
        Provider::ALL.into_iter().filter(|one| one.is_in_library()).collect()
    }

    /// The name of the table that measurements go to: provider and threads change every figure.
    #[must_use]
    pub fn name(&self) -> RuntimeName {
        RuntimeName {
            name: format!("onnxruntime-{}-{}t", self.provider, self.threads),
            version: self.version.clone(),
        }
    }

    /// Whether a run stays on the thread that asks for it, so that the time this thread held its core is the run's.
    #[must_use]
    pub const fn is_single_threaded(&self) -> bool {
        matches!(self.provider, Provider::Cpu) && self.threads == 1
    }

    /// Makes a graph ready to run; with `profile`, what its nodes take is written to a file that begins so.
    ///
    /// # Errors
    /// What ONNX Runtime says.
    pub fn open(&self, graph: &Path, profile: Option<&Path>) -> Result<Session, ort::Error> {
        let mut builder = Session::builder(&self.environment)?
            .with_log_level(ort::logging::LogLevel::Error)?
            .with_intra_threads(self.threads as usize)?;
        if let Some(provider) = self.provider.dispatch() {
            builder = builder.with_execution_providers([provider])?;
        }
        if let Some(prefix) = profile {
            builder = builder.with_profiling(prefix)?;
        }
        builder.commit_from_file(graph)
    }
}

/// The library's version, which its symbols carry on Linux and Android and its name elsewhere; else the commit it was
/// built from.
fn version_of(library: &Path) -> String {
    let symbols = std::fs::read(library)
        .ok()
        .and_then(|bytes| version_after(&bytes, b"VERS_"));
    let named = || version_after(library.file_name()?.as_encoded_bytes(), b"onnxruntime.so.");
    let named_otherwise = || version_after(library.file_name()?.as_encoded_bytes(), b"onnxruntime.");
    symbols.or_else(named).or_else(named_otherwise).unwrap_or_else(|| {
        let commit = ort::info().split("git-commit-id=").nth(1);
        let commit = commit.and_then(|rest| rest.split(',').next()).unwrap_or("unknown");
        format!("git-{commit}")
    })
}

/// The first `1.2.3` that stands directly behind the mark.
fn version_after(bytes: &[u8], mark: &[u8]) -> Option<String> {
    bytes.windows(mark.len()).enumerate().find_map(|(at, window)| {
        if window != mark {
            return None;
        }
        let rest = bytes[at + mark.len()..].iter().take(20);
        let digits = rest.take_while(|byte| byte.is_ascii_digit() || **byte == b'.');
        let version: String = digits.map(|byte| char::from(*byte)).collect();
        let version = version.trim_end_matches('.');
        let parts: Vec<&str> = version.split('.').collect();
        (parts.len() == 3 && parts.iter().all(|part| !part.is_empty())).then(|| version.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_that_is_not_known_is_told_with_those_that_are() {
        let error = "tpu".parse::<Provider>().unwrap_err().to_string();
        assert_eq!(
            error,
            "execution provider `tpu` is not known; known: cpu, xnnpack, coreml, qnn, nnapi, cuda"
        );
        assert_eq!("coreml".parse::<Provider>().unwrap(), Provider::CoreMl);
    }

    #[test]
    fn a_library_tells_its_version_by_its_symbols_or_its_name() {
        let symbols = b"\0VERS_1\0VERS_1.32.0\0".as_slice();
        assert_eq!(version_after(symbols, b"VERS_").as_deref(), Some("1.32.0"));
        let name = b"libonnxruntime.1.31.2.dylib".as_slice();
        assert_eq!(version_after(name, b"onnxruntime.").as_deref(), Some("1.31.2"));
        assert_eq!(version_after(b"libonnxruntime.so", b"onnxruntime."), None);
    }
}

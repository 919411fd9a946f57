//! Which program executed a block, and what that means for adding blocks up.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// An inference runtime with its version, such as `libtorch-cpu-1t 2.11.0`. Figures of two runtimes, or of two
/// versions of one, are never compared: a table holds one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Runtime {
    /// Name with what changes its speed: `libtorch-cpu-1t`, `libtorch-cuda`, `tflite-cpu`, `coreml-ne`.
    pub name: String,
    /// Version as the runtime prints it.
    pub version: String,
}

/// How a runtime turns a graph into work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Every layer that is written down runs, also one whose result is never used.
    Eager,
    /// The graph is simplified before it runs: dead branches leave.
    AheadOfTime,
}

/// Families that compile or simplify the graph before the first run.
const AHEAD_OF_TIME: [&str; 9] = [
    "coreml",
    "tflite",
    "litert",
    "onnxruntime",
    "executorch",
    "tensorrt",
    "qnn",
    "nnapi",
    "openvino",
];

impl Runtime {
    /// A runtime by name and version.
    pub fn new(name: impl Into<String>, version: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            version: version.into(),
        }
    }

    /// How figures of this runtime compose, read from the family before the first `-`. A family that is not
    /// known counts as eager: the prediction then errs on the high side.
    pub fn policy(&self) -> Policy {
        let family = self.name.split('-').next().unwrap_or_default().to_ascii_lowercase();
        if AHEAD_OF_TIME.contains(&family.as_str()) {
            Policy::AheadOfTime
        } else {
            Policy::Eager
        }
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

/// A runtime that is not written as name and version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "runtime is {found:?}; allowed: a name and a version with `@` or a space between, such as \"libtorch-cpu-1t@2.11.0\""
)]
pub struct RuntimeError {
    /// What stood there.
    pub found: String,
}

impl FromStr for Runtime {
    type Err = RuntimeError;
    /// `NAME@VERSION` as commands take it, or `NAME VERSION` as tables print it.
    fn from_str(text: &str) -> Result<Self, RuntimeError> {
        let text = text.trim();
        let parts = text.split_once(' ').or_else(|| text.rsplit_once('@'));
        match parts.map(|(name, version)| (name.trim(), version.trim())) {
            Some((name, version)) if !name.is_empty() && !version.is_empty() => Ok(Self::new(name, version)),
            _ => Err(RuntimeError { found: text.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_follows_the_family() {
        assert_eq!(Runtime::new("libtorch-cpu-1t", "2.11.0").policy(), Policy::Eager);
        assert_eq!(Runtime::new("libtorch-cuda", "2.11.0").policy(), Policy::Eager);
        assert_eq!(Runtime::new("tflite-cpu-1t", "2.17").policy(), Policy::AheadOfTime);
        assert_eq!(Runtime::new("CoreML-ne", "18.2").policy(), Policy::AheadOfTime);
        assert_eq!(Runtime::new("homegrown", "1").policy(), Policy::Eager);
    }

    #[test]
    fn text_and_runtime_are_one() {
        let runtime = Runtime::new("libtorch-cpu-1t", "2.11.0");
        assert_eq!(runtime.to_string().parse(), Ok(runtime.clone()));
        assert_eq!("libtorch-cpu-1t@2.11.0".parse(), Ok(runtime));
        for wrong in ["coreml@", "@1", " 1", "@", ""] {
            assert!(wrong.parse::<Runtime>().is_err(), "{wrong:?}");
        }
        assert_eq!(
            "coreml".parse::<Runtime>(),
            Err(RuntimeError { found: "coreml".into() })
        );
    }
}

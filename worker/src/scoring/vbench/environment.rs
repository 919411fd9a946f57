//! The user's Python environment with the package.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use search_spaces::vbench::Dimension;
use serde::Deserialize;
use serde_json::json;
use tch::Device;

use super::VBenchError;
use crate::process::{self, ProcessError};

const DRIVER: &str = include_str!("driver.py");
/// How long an environment may take to import the package.
const IMPORT: Duration = Duration::from_secs(600);

/// A working environment.
#[derive(Debug, Clone)]
pub struct Environment {
    python: PathBuf,
    /// Version of the package.
    pub package: String,
    /// Version of its torch.
    pub torch: String,
    /// The package's list of prompts.
    pub full_info: PathBuf,
    cuda_devices: usize,
    limit: Duration,
}

#[derive(Debug, Deserialize)]
struct Answer {
    vbench: String,
    torch: String,
    full_info: PathBuf,
    cuda_devices: usize,
}

impl Environment {
    /// Starts `python` and has it import the package; one dimension may take `limit`.
    ///
    /// # Errors
    /// Where it cannot, with what it said.
    pub fn probe(python: &Path, limit: Duration) -> Result<Self, VBenchError> {
        let failed = |problem: String| VBenchError::Environment {
            python: python.to_owned(),
            problem,
        };
        let folder = tempfile::tempdir().map_err(|error| failed(error.to_string()))?;
        let answer = folder.path().join("answer.json");
        let mut command = driver(python, &json!({"do": "probe", "answer": answer}));
        process::run(&mut command, IMPORT, &mut |_| (), &mut || true).map_err(|error| failed(error.to_string()))?;
        let text = std::fs::read(&answer).map_err(|error| failed(format!("gave no answer: {error}")))?;
        let Answer {
            vbench,
            torch,
            full_info,
            cuda_devices,
        } = serde_json::from_slice(&text).map_err(|error| failed(format!("gave no answer: {error}")))?;
        Ok(Self {
            python: python.to_owned(),
            package: vbench,
            torch,
            full_info,
            cuda_devices,
            limit,
        })
    }

    /// Who scores, such as `vbench 0.1.5 (torch 2.11.0, cpu)`.
    #[must_use]
    pub fn line(&self, device: Device) -> String {
        format!(
            "vbench {} (torch {}, {})",
            self.package,
            self.torch,
            self.device(device)
        )
    }

    /// The worker's own device where the environment's torch sees it too.
    fn device(&self, device: Device) -> String {
        match device {
            Device::Cuda(index) if index < self.cuda_devices => format!("cuda:{index}"),
            _ => "cpu".to_owned(),
        }
    }

    /// Has the package score one dimension: it writes `{dimension}_eval_results.json` into `output`.
    ///
    /// # Errors
    /// What it said, with the files that the dimension needs and that are not there.
    pub(super) fn score(
        &self,
        dimension: Dimension,
        device: Device,
        [full_info, videos, output]: [&Path; 3],
        said: &mut dyn FnMut(&str),
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<(), VBenchError> {
        let request = json!({
            "do": "score",
            "device": self.device(device),
            "full_info": full_info,
            "output": output,
            "videos": videos,
            "dimension": dimension.name(),
        });
        let mut command = driver(&self.python, &request);
        process::run(&mut command, self.limit, said, goes_on).map_err(|error| match error {
            ProcessError::Interrupted => VBenchError::Interrupted,
            error => VBenchError::Dimension {
                dimension,
                problem: format!("{error}{}", missing_weights(dimension)),
            },
        })
    }
}

fn driver(python: &Path, request: &serde_json::Value) -> Command {
    let mut command = Command::new(python);
    command.args(["-B", "-u", "-c", DRIVER, &request.to_string()]);
    // A progress bar is for a log here.
    command.env("TQDM_MININTERVAL", "30");
    // Another Python's settings lead it astray.
    command.env_remove("PYTHONHOME");
    command
}

/// The files that a dimension reads and that are not in the package's cache, as a sentence.
fn missing_weights(dimension: Dimension) -> String {
    let cache = package_cache();
    let missing: Vec<String> = dimension
        .weights()
        .iter()
        .filter(|file| !cache.join(file).exists())
        .map(|file| format!("`{file}`"))
        .collect();
    if missing.is_empty() {
        return String::new();
    }
    format!(
        "\n`{dimension}` needs {}, missing in {} (VBENCH_CACHE_DIR names another folder)",
        missing.join(" and "),
        cache.display()
    )
}

/// Where the package keeps its weights.
fn package_cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/vbench");
    std::env::var_os("VBENCH_CACHE_DIR").map_or_else(home, PathBuf::from)
}

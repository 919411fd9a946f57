//! Graphs as Core ML packages, by the package `coremltools` in a Python environment.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::Written;
use crate::process::{self, ProcessError};

/// Reads the operators that [`super::Graph`] writes.
const CONVERTER: &str = include_str!("coreml.py");
/// How long an environment may take to import the package.
const IMPORT: Duration = Duration::from_secs(300);
/// How long a conversion may take; that of a full-size part takes minutes.
const LIMIT: Duration = Duration::from_secs(3600);

/// Why there is no package.
#[derive(Debug, thiserror::Error)]
pub enum CoreMlError {
    /// The environment does not work.
    #[error(
        "{python} cannot import coremltools: {problem}; `scripts/coreml-env` makes an environment and prints its Python, to name in TEMPONAS_COREML_PYTHON"
    )]
    Environment {
        /// The Python.
        python: PathBuf,
        /// What it said.
        problem: String,
    },
    /// A graph could not be converted, or its package is not valid.
    #[error("graph `{graph}` as a Core ML package: {problem}")]
    Conversion {
        /// The graph.
        graph: String,
        /// What was said.
        problem: String,
    },
    /// It is not wanted any more.
    #[error("interrupted")]
    Interrupted,
}

/// An environment with `coremltools`.
#[derive(Debug, Clone)]
pub struct CoreMl(PathBuf);

impl CoreMl {
    /// Has a Python import the package.
    ///
    /// # Errors
    /// Where it cannot, with what it said.
    pub fn probe(python: &Path) -> Result<Self, CoreMlError> {
        let mut command = converter(python);
        process::run(&mut command, IMPORT, &mut |_| (), &mut || true).map_err(|error| CoreMlError::Environment {
            python: python.to_owned(),
            problem: error.to_string(),
        })?;
        Ok(Self(python.to_owned()))
    }

    /// Writes `NAME.mlpackage.zip` beside the graph: binary16 inside, inputs and outputs as the graph's. The saved
    /// package is read back and its inputs, outputs and operators are compared with the graph's before it is zipped.
    ///
    /// # Errors
    /// Where an operator has no counterpart, or the package is not what the graph is.
    pub fn package(&self, graph: &Written, goes_on: &mut dyn FnMut() -> bool) -> Result<PathBuf, CoreMlError> {
        let package = graph.graph.with_extension("mlpackage");
        let mut command = converter(&self.0);
        command.arg(&graph.graph).arg(&package);
        process::run(&mut command, LIMIT, &mut |line| tracing::debug!("{line}"), goes_on).map_err(
            |error| match error {
                ProcessError::Interrupted => CoreMlError::Interrupted,
                error => CoreMlError::Conversion {
                    graph: graph.name.clone(),
                    problem: error.to_string(),
                },
            },
        )?;
        Ok(graph.graph.with_extension("mlpackage.zip"))
    }
}

fn converter(python: &Path) -> Command {
    let mut command = Command::new(python);
    command.args(["-B", "-u", "-W", "ignore", "-c", CONVERTER]);
    // Another Python's settings lead it astray.
    command.env_remove("PYTHONHOME");
    command
}

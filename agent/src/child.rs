//! A process for each graph: what ends it is a finding about the graph.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use protocol::jobs::GraphOutcome;

use crate::measure::{Finding, Request, refusal};
use crate::runtime::Provider;
use crate::system;

/// The end of what a child has said that is kept.
const SAID_BYTES: usize = 2000;
/// How often a child is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How children measure.
#[derive(Debug, Clone)]
pub struct Children {
    /// This program.
    pub program: PathBuf,
    /// ONNX Runtime's library.
    pub library: PathBuf,
    /// What runs the graphs.
    pub provider: Provider,
    /// Threads of the runtime.
    pub threads: u32,
    /// How long a graph may take altogether.
    pub patience: Duration,
}

/// Why nothing was found.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// The measuring was broken off.
    #[error("interrupted")]
    Interrupted,
    /// The child could not do its work, which says nothing of the graph.
    #[error("the measuring process {0}")]
    Failed(String),
}

impl Children {
    /// Measures a graph in a process of its own; `stops` is asked again and again whether to go on.
    ///
    /// # Errors
    /// As [`ChildError`] says.
    pub fn measure(&self, request: &Request, stops: &dyn Fn() -> bool) -> Result<Finding, ChildError> {
        let failed = |what: &str, error: std::io::Error| ChildError::Failed(format!("{what}: {error}"));
        let kills = system::out_of_memory_kills();
        let mut command = Command::new(&self.program);
        command
            .arg("measure")
            .arg("--library")
            .arg(&self.library)
            .args([
                "--provider",
                self.provider.as_str(),
                "--threads",
                &self.threads.to_string(),
            ])
            // What a large buffer leaves goes back to the system, so that pages in use are the runtime's.
            .env("MALLOC_MMAP_THRESHOLD_", "65536")
            .env("MALLOC_TRIM_THRESHOLD_", "65536")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = Guard(command.spawn().map_err(|error| failed("cannot start", error))?);
        let (answer, said) = (reader(child.0.stdout.take()), reader(child.0.stderr.take()));
        if let Some(mut stdin) = child.0.stdin.take() {
            let asked = serde_json::to_vec(request).map_err(|error| ChildError::Failed(error.to_string()))?;
            // A child that has ended already says why by itself.
            let _ = stdin.write_all(&asked);
        }
        let deadline = Instant::now() + self.patience;
        let status = loop {
            if let Some(status) = child
                .0
                .try_wait()
                .map_err(|error| failed("cannot be waited for", error))?
            {
                break status;
            }
            if stops() {
                return Err(ChildError::Interrupted);
            }
            if Instant::now() > deadline {
                let detail = format!("it did not end within {} s", self.patience.as_secs());
                return Ok(GraphOutcome::Unsupported { detail }.into());
            }
            std::thread::sleep(LOOK_AGAIN);
        };
        let [answer, said] = [answer, said].map(|reader| reader.join().unwrap_or_default());
        if status.success() {
            return serde_json::from_slice(&answer)
                .map_err(|error| ChildError::Failed(format!("answered nothing of use: {error}")));
        }
        ended_badly(status, &end_of(&said), kills < system::out_of_memory_kills())
    }
}

/// What a child that has not answered tells of its graph.
fn ended_badly(status: ExitStatus, said: &str, memory_was_short: bool) -> Result<Finding, ChildError> {
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    match signal {
        Some(9) if memory_was_short => {
            let detail = "the system ended the process for want of memory".to_owned();
            Ok(GraphOutcome::OutOfMemory { detail }.into())
        }
        // Anyone may send these: they tell nothing of the graph.
        Some(1 | 2 | 9 | 15) => Err(ChildError::Failed(format!(
            "was ended by signal {}",
            signal.unwrap_or(0)
        ))),
        Some(signal) => Ok(refusal(format!("the runtime crashed (signal {signal}): {said}")).into()),
        None => Err(ChildError::Failed(format!("ended with {status}: {said}"))),
    }
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn end_of(said: &[u8]) -> String {
    let from = said.len().saturating_sub(SAID_BYTES);
    String::from_utf8_lossy(&said[from..]).trim().to_owned()
}

/// A child that does not outlive whoever waits for it.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn a_crash_is_a_finding_and_a_kill_is_not() {
        let crash = ended_badly(ExitStatus::from_raw(11), "", false).unwrap();
        assert!(matches!(crash.outcome, GraphOutcome::Unsupported { detail } if detail.contains("signal 11")));
        let said = "terminate called after throwing an instance of 'std::bad_alloc'";
        let crash = ended_badly(ExitStatus::from_raw(6), said, false).unwrap();
        assert!(matches!(crash.outcome, GraphOutcome::OutOfMemory { .. }));
        assert!(ended_badly(ExitStatus::from_raw(9), "", false).is_err());
        let killed = ended_badly(ExitStatus::from_raw(9), "", true).unwrap();
        assert!(matches!(killed.outcome, GraphOutcome::OutOfMemory { .. }));
    }
}

//! Measures one graph in this process. It is a process of its own (see [`crate::child`]), so that a graph that takes all
//! memory, or crashes the runtime, is a result and not the agent's end.
//!
//! - **Load** is reading the file and making it ready; **cold** is the first run; both on the wall.
//! - **Warm** samples follow. A sample is the fastest of some runs, because other processes can only slow one down. On
//!   one thread of the processor it is the time that the thread held its core, otherwise the time on the wall.
//! - **Sustained** samples are all runs of some seconds without a pause.
//! - **Peak memory** is the kernel's count of pages in use (`VmHWM`), reset before. It is taken twice: from before the
//!   graph was loaded, which is what a device must have free; and of one run of a fresh session above what stood before
//!   the run, which is what tables hold. The kernels' code is paged in by then.

use std::path::{Path, PathBuf};
use std::time::Instant;

use ort::session::Session;
use ort::value::DynValue;
use protocol::jobs::{GraphFigures, GraphOutcome, NodeFigures, TensorSpec};
use serde::{Deserialize, Serialize};

use crate::runtime::Runtime;
use crate::{inputs, nodes, system};

/// The most raw samples of one figure.
const MOST_SAMPLES: usize = 10_000;

/// How to measure a graph.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Runs between the first and the first sample.
    pub warmups: u32,
    /// Warm samples.
    pub samples: u32,
    /// Runs of which a warm sample is the fastest.
    pub runs_per_sample: u32,
    /// A graph that has run for so many seconds gets no further warm samples.
    pub seconds: f64,
    /// Seconds without a pause at the end.
    pub sustained_seconds: f64,
    /// Runs under the runtime's profiler.
    pub profiled_runs: u32,
}

impl Plan {
    /// A block for a table: as the worker measures its own.
    #[must_use]
    pub const fn block() -> Self {
        Self {
            warmups: 2,
            samples: 15,
            runs_per_sample: 4,
            seconds: 20.0,
            sustained_seconds: 0.0,
            profiled_runs: 3,
        }
    }

    /// A graph of a model, each run of which counts.
    #[must_use]
    pub const fn model(runs: u32, sustained_seconds: f64) -> Self {
        Self {
            warmups: 2,
            samples: runs,
            runs_per_sample: 1,
            seconds: 600.0,
            sustained_seconds,
            profiled_runs: 3,
        }
    }
}

/// What a child is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// The ONNX file, with its weights beside it.
    pub graph: PathBuf,
    /// What goes in.
    pub inputs: Vec<TensorSpec>,
    /// How.
    pub plan: Plan,
    /// Bytes that the graph may take.
    pub memory_bytes: u64,
}

/// What a child found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// How it ended.
    pub outcome: GraphOutcome,
    /// Peak memory of one run above what stood before it, bytes, where the platform tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_peak_bytes: Option<f64>,
}

impl From<GraphOutcome> for Finding {
    fn from(outcome: GraphOutcome) -> Self {
        Self {
            outcome,
            run_peak_bytes: None,
        }
    }
}

/// Measures a graph; what the runtime refuses is a finding.
#[must_use]
pub fn measure(runtime: &Runtime, request: &Request) -> Finding {
    if let Err(error) = system::limit_memory(request.memory_bytes) {
        tracing::warn!(%error, "memory is not limited");
    }
    match figures(runtime, request) {
        Ok(finding) => finding,
        Err(said) => refusal(said).into(),
    }
}

/// What an error of the runtime means.
#[must_use]
pub fn refusal(said: String) -> GraphOutcome {
    let lower = said.to_lowercase();
    // ONNX Runtime's arena, the C++ library, this program's own allocator, and CUDA, in their words.
    let memory = [
        "bad_alloc",
        "failed to allocate memory",
        "memory allocation of",
        "out of memory",
        "cannot allocate",
    ];
    if memory.iter().any(|words| lower.contains(words)) {
        GraphOutcome::OutOfMemory { detail: said }
    } else {
        GraphOutcome::Unsupported { detail: said }
    }
}

fn figures(runtime: &Runtime, request: &Request) -> Result<Finding, String> {
    let said = |error: ort::Error| error.to_string();
    let plan = request.plan;
    let mut thermal = labelled("before", system::thermal());
    let inputs = inputs::draw(&request.inputs, 1)?;

    let from = system::reset_peak().then(system::resident_bytes).flatten();
    let start = Instant::now();
    let mut session = runtime.open(&request.graph, None).map_err(said)?;
    let load_ms = milliseconds(start);
    let start = Instant::now();
    run(&mut session, &inputs).map_err(said)?;
    let cold_ms = milliseconds(start);
    let peak_memory_bytes = peak_above(from);
    drop(session);

    let mut session = runtime.open(&request.graph, None).map_err(said)?;
    let from = system::reset_peak().then(system::resident_bytes).flatten();
    run(&mut session, &inputs).map_err(said)?;
    let run_peak_bytes = peak_above(from);

    let mut timed = || timed_run(runtime, &mut session, &inputs).map_err(said);
    for _ in 0..plan.warmups {
        timed()?;
    }
    let warm_ms = warm(plan, &mut timed)?;
    let sustained_ms = sustained(plan.sustained_seconds, &mut timed)?;
    thermal.extend(labelled("after", system::thermal()));
    drop(session);
    let figures = GraphFigures {
        load_ms,
        compile_ms: None,
        cold_ms,
        warm_ms,
        sustained_ms,
        peak_memory_bytes,
        nodes: profiled(runtime, request, &inputs).map_err(said)?,
        thermal,
    };
    Ok(Finding {
        outcome: GraphOutcome::Measured(figures),
        run_peak_bytes,
    })
}

fn labelled(when: &str, states: Vec<String>) -> Vec<String> {
    states.into_iter().map(|state| format!("{when}: {state}")).collect()
}

fn milliseconds(since: Instant) -> f64 {
    1000.0 * since.elapsed().as_secs_f64()
}

fn peak_above(from: Option<u64>) -> Option<f64> {
    Some(system::peak_bytes()?.saturating_sub(from?) as f64)
}

fn run(session: &mut Session, inputs: &[(String, DynValue)]) -> Result<(), ort::Error> {
    session.run(inputs::views(inputs)).map(drop)
}

/// Milliseconds that a run holds the device.
///
/// # Errors
/// What the runtime says.
pub fn timed_run(runtime: &Runtime, session: &mut Session, inputs: &[(String, DynValue)]) -> Result<f64, ort::Error> {
    let views = inputs::views(inputs);
    if runtime.is_single_threaded() {
        let start = system::thread_seconds();
        session.run(views).map(drop)?;
        Ok(1000.0 * (system::thread_seconds() - start))
    } else {
        let start = Instant::now();
        session.run(views).map(drop)?;
        Ok(milliseconds(start))
    }
}

fn warm(plan: Plan, timed: &mut impl FnMut() -> Result<f64, String>) -> Result<Vec<f64>, String> {
    let start = Instant::now();
    let mut samples = Vec::new();
    while samples.len() < (plan.samples.max(1) as usize).min(MOST_SAMPLES) {
        let mut fastest = timed()?;
        for _ in 1..plan.runs_per_sample {
            fastest = fastest.min(timed()?);
        }
        samples.push(fastest);
        if start.elapsed().as_secs_f64() > plan.seconds {
            break;
        }
    }
    Ok(samples)
}

/// All runs of some seconds; of more than are kept, every second, fourth, eighth, …
fn sustained(seconds: f64, timed: &mut impl FnMut() -> Result<f64, String>) -> Result<Vec<f64>, String> {
    let start = Instant::now();
    let (mut samples, mut stride, mut runs) = (Vec::new(), 1_usize, 0_usize);
    while start.elapsed().as_secs_f64() < seconds {
        let sample = timed()?;
        if runs.is_multiple_of(stride) {
            samples.push(sample);
        }
        runs += 1;
        if samples.len() == MOST_SAMPLES {
            samples = samples.into_iter().step_by(2).collect();
            stride *= 2;
        }
    }
    Ok(samples)
}

/// What the nodes take, from a session of its own: the profiler slows runs down.
fn profiled(
    runtime: &Runtime,
    request: &Request,
    inputs: &[(String, DynValue)],
) -> Result<Vec<NodeFigures>, ort::Error> {
    if request.plan.profiled_runs == 0 {
        return Ok(Vec::new());
    }
    let Ok(folder) = tempfile::tempdir() else {
        return Ok(Vec::new());
    };
    let mut session = runtime.open(&request.graph, Some(&folder.path().join("profile")))?;
    for _ in 0..request.plan.profiled_runs {
        run(&mut session, inputs)?;
    }
    let file = session.end_profiling()?;
    let text = std::fs::read_to_string(Path::new(&file)).unwrap_or_default();
    Ok(nodes::of_profile(&text).unwrap_or_else(|error| {
        tracing::warn!(%error, "the runtime's profile cannot be read");
        Vec::new()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_runtime_says_of_memory_is_told_from_all_else() {
        let memory = "Non-zero status code … Failed to allocate memory for requested buffer of size 4294967296";
        assert!(matches!(refusal(memory.to_owned()), GraphOutcome::OutOfMemory { .. }));
        assert!(matches!(
            refusal("std::bad_alloc".to_owned()),
            GraphOutcome::OutOfMemory { .. }
        ));
        let operator = "Could not find an implementation for Foo(17) node with name ''";
        assert!(matches!(refusal(operator.to_owned()), GraphOutcome::Unsupported { .. }));
    }

    #[test]
    fn a_sample_is_the_fastest_of_its_runs_and_time_bounds_their_number() {
        let plan = Plan {
            samples: 2,
            runs_per_sample: 3,
            ..Plan::block()
        };
        let mut times = [5.0, 3.0, 4.0, 9.0, 8.0, 7.0].into_iter();
        let mut timed = || times.next().ok_or_else(|| "one run too many".to_owned());
        assert_eq!(warm(plan, &mut timed), Ok(vec![3.0, 7.0]));
        let plan = Plan { seconds: 0.0, ..plan };
        let mut timed = || {
            std::thread::sleep(std::time::Duration::from_millis(1));
            Ok(1.0)
        };
        assert_eq!(warm(plan, &mut timed), Ok(vec![1.0]), "at least one");
    }

    #[test]
    fn sustained_samples_are_bounded() {
        let samples = sustained(0.2, &mut || Ok(1.0)).unwrap();
        assert!(!samples.is_empty() && samples.len() < MOST_SAMPLES);
        assert_eq!(sustained(0.0, &mut || Err("asked for nothing".to_owned())), Ok(vec![]));
    }
}

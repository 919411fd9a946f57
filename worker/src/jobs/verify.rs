//! Measures a whole architecture on this device, alone on it.

use std::time::Instant;

use lut::{EntryState, Samples};
use protocol::Figure;
use protocol::jobs::{JobResult, Outcome, VerifyInput, VerifyOutcome};

use super::profile::{measuring, result, tell};
use super::{JobContext, JobError, parse};
use crate::profile::{measure_whole, runtime_name};

pub(super) fn run(context: &JobContext, input: &VerifyInput) -> Result<JobResult, JobError> {
    let settings = measuring(context);
    let (space, architecture) = parse(&input.space, Some(&input.architecture))?;
    let architecture = architecture.ok_or_else(|| JobError::Input("no architecture".to_owned()))?;
    context.log(&format!("measuring {} whole", input.architecture));
    let started = Instant::now();
    let measured = measure_whole(&space, &architecture, &settings, &mut |share, what| {
        tell(context, share, what)
    });
    let measured = match measured.map_err(|_| JobError::Interrupted)? {
        EntryState::Measured(measured) => measured,
        EntryState::OutOfMemory { detail } => return Err(JobError::Attempt(format!("out of memory: {detail}"))),
        EntryState::Unsupported { detail } => return Err(JobError::Input(format!("not supported: {detail}"))),
    };
    let figures = [
        ("latency_ms", &measured.latency_ms),
        ("peak_memory_bytes", &measured.peak_memory_bytes),
    ];
    let metrics = figures
        .into_iter()
        .filter_map(|(name, samples)| Some((name.to_owned(), figure(samples)?)))
        .collect();
    let outcome = VerifyOutcome {
        runtime: runtime_name(settings.device, settings.threads),
        metrics,
        latency_ms_samples: measured.latency_ms.values().to_vec(),
    };
    Ok(result(started, Outcome::Verify(outcome)))
}

/// Absent where the runtime could not tell.
fn figure(samples: &Samples) -> Option<Figure> {
    Some(Figure {
        value: samples.median()?,
        standard_error: samples.standard_error().unwrap_or(0.0),
    })
}

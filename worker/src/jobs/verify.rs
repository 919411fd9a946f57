//! Measures a whole architecture on this device, alone on it.

use lut::{EntryState, Samples};
use protocol::devices::RuntimeName;
use protocol::jobs::{JobResult, Outcome, VerifyInput, VerifyOutcome};
use protocol::{Figure, Metrics};

use super::profile::{measuring, result, tell};
use super::{JobContext, JobError, parse};
use crate::profile::{measure_whole, runtime_name};

pub(super) fn run(context: &JobContext, input: &VerifyInput) -> Result<JobResult, JobError> {
    let settings = measuring(context);
    let (space, architecture) = parse(&input.space, Some(&input.architecture))?;
    let architecture = architecture.ok_or_else(|| JobError::Input("no architecture".to_owned()))?;
    context.log(&format!("measuring {} whole", input.architecture));
    let measured = measure_whole(&space, &architecture, &settings, &mut |share, what| {
        tell(context, share, what)
    });
    let measured = measured.map_err(|_| JobError::Interrupted)?;
    let runtime = runtime_name(settings.device, settings.threads);
    Ok(result(context, Outcome::Verify(outcome(runtime, measured)?)))
}

/// That the architecture is too large for the device is found as well as its figures are: another attempt finds the
/// same.
fn outcome(runtime: RuntimeName, measured: EntryState) -> Result<VerifyOutcome, JobError> {
    let (metrics, latency_ms_samples, out_of_memory) = match measured {
        EntryState::Measured(measured) => {
            let figures = [
                ("latency_ms", &measured.latency_ms),
                ("peak_memory_bytes", &measured.peak_memory_bytes),
            ];
            let known = figures
                .into_iter()
                .filter_map(|(name, samples)| Some((name.to_owned(), figure(samples)?)));
            (known.collect(), measured.latency_ms.values().to_vec(), None)
        }
        EntryState::OutOfMemory { detail } => (Metrics::default(), Vec::new(), Some(detail)),
        EntryState::Unsupported { detail } => return Err(JobError::Input(format!("not supported: {detail}"))),
    };
    Ok(VerifyOutcome {
        runtime,
        metrics,
        latency_ms_samples,
        out_of_memory,
    })
}

/// Absent where the runtime could not tell.
fn figure(samples: &Samples) -> Option<Figure> {
    Some(Figure {
        value: samples.median()?,
        standard_error: samples.standard_error().unwrap_or(0.0),
    })
}

#[cfg(test)]
mod tests {
    use protocol::{CandidateId, SearchId};

    use super::*;

    #[test]
    fn an_architecture_too_large_for_the_device_is_a_finding_and_no_failure() {
        let (folder, tokio) = (tempfile::tempdir().unwrap(), tokio::runtime::Runtime::new().unwrap());
        let mut context = JobContext::alone(&tokio, folder.path());
        context.settings.memory_bytes = 64 << 10;
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../search-spaces/spaces/shapes-tiny.toml");
        let input = VerifyInput {
            search_id: SearchId::new(),
            candidate_id: CandidateId::new(),
            space: std::fs::read_to_string(path).unwrap(),
            architecture: "s3.s3.s3.s3.s3".to_owned(),
        };
        let Outcome::Verify(found) = run(&context, &input).unwrap().outcome else {
            panic!("a verify job")
        };
        assert!(found.out_of_memory.unwrap().contains("65536 allowed"));
        assert!(found.metrics.is_empty() && found.latency_ms_samples.is_empty());
    }
}

//! Figures that a worker may report. Whatever is stored is summed and squared later, so it has bounds.

use protocol::{FieldProblem, JobId, Metrics, jobs::DeviceSeconds};

use super::{DispatchError, at_fault};

/// The most seconds of one part of a job: some 30 years.
const MOST_SECONDS: f64 = 1e9;

/// The largest magnitude of a figure, as of a sample.
const LARGEST: f64 = lut::LARGEST_SAMPLE;

/// Every part is a time that a job can take.
pub(super) fn require_seconds(job: JobId, seconds: &DeviceSeconds) -> Result<(), DispatchError> {
    let parts = [
        ("train", seconds.train),
        ("sample", seconds.sample),
        ("score", seconds.score),
        ("profile", seconds.profile),
    ];
    all(job, parts, "result.device_seconds", 0.0, MOST_SECONDS)
}

/// Every figure is a number that can be worked with.
pub(super) fn require_figures(job: JobId, metrics: &Metrics) -> Result<(), DispatchError> {
    let field = "result.outcome.metrics";
    let values = metrics.iter().map(|(name, figure)| (name.as_str(), figure.value));
    all(job, values, field, -LARGEST, LARGEST)?;
    let errors = metrics.iter().map(|(name, figure)| (name, figure.standard_error));
    let errors: Vec<(String, f64)> = errors.map(|(name, e)| (format!("{name}.standard_error"), e)).collect();
    all(
        job,
        errors.iter().map(|(name, e)| (name.as_str(), *e)),
        field,
        0.0,
        LARGEST,
    )
}

/// Every raw sample is one that a table would take.
pub(super) fn require_samples(job: JobId, samples: &[f64], field: &str) -> Result<(), DispatchError> {
    match lut::Samples::new(samples.to_vec()) {
        Ok(_) => Ok(()),
        Err(error) => Err(at_fault(job, field, error.to_string())),
    }
}

/// All numbers lie between two ends; every one that does not is named.
fn all<'a>(
    job: JobId,
    numbers: impl IntoIterator<Item = (&'a str, f64)>,
    path: &str,
    least: f64,
    most: f64,
) -> Result<(), DispatchError> {
    let wrong = numbers.into_iter().filter(|(_, found)| !(least..=most).contains(found));
    let errors: Vec<FieldProblem> = wrong
        .map(|(name, found)| FieldProblem {
            field: format!("{path}.{name}"),
            line: None,
            column: None,
            message: format!("found {found:e}; allowed: {least:e} to {most:e}"),
        })
        .collect();
    if errors.is_empty() {
        Ok(())
    } else {
        Err(DispatchError::Unacceptable { job, errors })
    }
}

#[cfg(test)]
mod tests {
    use protocol::Figure;

    use super::*;

    fn fields(result: Result<(), DispatchError>) -> Vec<String> {
        match result {
            Err(DispatchError::Unacceptable { errors, .. }) => errors.into_iter().map(|error| error.field).collect(),
            _ => Vec::new(),
        }
    }

    fn figure(value: f64, standard_error: f64) -> Metrics {
        Metrics::from([("quality".to_owned(), Figure { value, standard_error })])
    }

    #[test]
    fn what_no_sum_survives_is_refused_by_its_field() {
        let job = JobId::new();
        let seconds = |train, score| DeviceSeconds {
            train,
            score,
            ..DeviceSeconds::default()
        };
        assert!(require_seconds(job, &seconds(1e9, 0.0)).is_ok());
        for wrong in [1e308, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(
                fields(require_seconds(job, &seconds(wrong, 1.0))),
                ["result.device_seconds.train"]
            );
            assert_eq!(
                fields(require_figures(job, &figure(0.5, wrong))),
                ["result.outcome.metrics.quality.standard_error"]
            );
        }
        assert_eq!(fields(require_seconds(job, &seconds(-1.0, 2e9))).len(), 2, "every one");
        assert!(require_figures(job, &figure(-1e15, 0.0)).is_ok());
        for wrong in [1e16, -1e308, f64::NAN] {
            assert_eq!(
                fields(require_figures(job, &figure(wrong, 0.0))),
                ["result.outcome.metrics.quality"]
            );
        }
        assert_eq!(fields(require_samples(job, &[1.0, 1e308], "x")), ["x"]);
    }
}

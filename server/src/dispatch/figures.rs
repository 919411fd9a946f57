//! Figures that a worker may report. Whatever is stored is summed and squared later, so it has bounds.

use protocol::{FieldProblem, JobId, Metrics, jobs::DeviceSeconds};

use super::{DispatchError, at_fault};

/// The most seconds of one part of a job: some 30 years.
const MOST_SECONDS: f64 = 1e9;

/// The largest magnitude of a figure, as of a sample.
const LARGEST: f64 = lut::LARGEST_SAMPLE;

/// The most figures that a heartbeat may carry.
const MOST_FIGURES: usize = 32;

/// The longest name of a heartbeat's figure, in bytes.
const LONGEST_NAME: usize = 100;

/// Every part is a time that a job can take; `field` is where they stand.
pub(super) fn require_seconds(job: JobId, field: &str, seconds: &DeviceSeconds) -> Result<(), DispatchError> {
    let parts = [
        ("train", seconds.train),
        ("sample", seconds.sample),
        ("score", seconds.score),
        ("profile", seconds.profile),
    ];
    all(job, parts, field, 0.0, MOST_SECONDS)
}

/// Every figure of a result is a number that can be worked with.
pub(super) fn require_figures(job: JobId, metrics: &Metrics) -> Result<(), DispatchError> {
    require_numbers(job, metrics, "result.outcome.metrics")
}

fn require_numbers(job: JobId, metrics: &Metrics, field: &str) -> Result<(), DispatchError> {
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

/// Figures of a heartbeat are kept and told each time: they must stay few and their names short.
pub(super) fn require_few(job: JobId, metrics: &Metrics) -> Result<(), DispatchError> {
    if metrics.len() > MOST_FIGURES {
        let found = format!("{} figures; at most {MOST_FIGURES} are allowed", metrics.len());
        return Err(at_fault(job, "metrics", found));
    }
    match metrics.keys().find(|name| name.len() > LONGEST_NAME) {
        Some(name) => {
            let start: String = name.chars().take(20).collect();
            let message = format!(
                "`{start}…` has {} bytes; at most {LONGEST_NAME} are allowed",
                name.len()
            );
            Err(at_fault(job, "metrics", message))
        }
        None => require_numbers(job, metrics, "metrics"),
    }
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
        assert!(require_seconds(job, "result.device_seconds", &seconds(1e9, 0.0)).is_ok());
        for wrong in [1e308, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(
                fields(require_seconds(job, "result.device_seconds", &seconds(wrong, 1.0))),
                ["result.device_seconds.train"]
            );
            assert_eq!(
                fields(require_figures(job, &figure(0.5, wrong))),
                ["result.outcome.metrics.quality.standard_error"]
            );
        }
        assert_eq!(
            fields(require_seconds(job, "result.device_seconds", &seconds(-1.0, 2e9))).len(),
            2,
            "every one"
        );
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

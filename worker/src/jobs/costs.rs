//! What a training took on its device.

use lut::Samples;
use protocol::{Figure, Metrics};

/// `train_peak_memory_bytes` of weights, optimizer and activations together, and `train_step_ms`, the median of the steps
/// that this attempt took, with `train_step_spread_ms` of a single step; nothing where nothing was trained.
pub(super) fn of(step_milliseconds: &[f64], peak_bytes: u64) -> Metrics {
    let exact = |value| Figure {
        value,
        standard_error: 0.0,
    };
    let steps = Samples::new(step_milliseconds.to_vec()).unwrap_or_default();
    let median = steps.median().map(|value| Figure {
        value,
        standard_error: steps.standard_error().unwrap_or(0.0),
    });
    let peak = median.as_ref().map(|_| exact(peak_bytes as f64));
    [
        ("train_peak_memory_bytes", peak),
        ("train_step_ms", median),
        ("train_step_spread_ms", steps.spread().map(exact)),
    ]
    .into_iter()
    .filter_map(|(name, figure)| Some((name.to_owned(), figure?)))
    .collect()
}

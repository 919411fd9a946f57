//! Two things that do the same, timed beside each other.

use std::ops::ControlFlow;

use lut::Samples;

use super::{Progress, Settings};

/// Pairs of runs that are timed even where time is up.
const FEWEST_SAMPLES: u32 = 3;

/// Times of both, and how many times faster the second was, pair by pair.
#[derive(Debug, Clone, PartialEq)]
pub struct InTurn {
    /// Milliseconds of a run of the first.
    pub first_ms: Samples,
    /// Milliseconds of a run of the second.
    pub second_ms: Samples,
    /// Time of the first over that of the second.
    pub ratio: Samples,
}

/// Why they were not timed.
#[derive(Debug, thiserror::Error)]
pub enum InTurnError {
    /// Whoever asked does not want to wait any longer.
    #[error("interrupted")]
    Interrupted,
    /// The clock gave no number.
    #[error("the clock: {0}")]
    Clock(#[from] lut::SampleError),
}

/// Runs both in turn, so that each pair runs within one moment of the machine.
///
/// # Errors
/// Where `progress` breaks off.
pub fn in_turn(settings: &Settings, subjects: [&dyn Fn(); 2], progress: Progress<'_>) -> Result<InTurn, InTurnError> {
    let (mut first_ms, mut second_ms) = (Vec::new(), Vec::new());
    let pairs = settings.warmups + settings.samples;
    let mut spent = 0.0;
    for pair in 0..pairs {
        if let ControlFlow::Break(()) = progress(f64::from(pair) / f64::from(pairs), "timing both in turn") {
            return Err(InTurnError::Interrupted);
        }
        if spent > settings.seconds_per_subject && pair >= FEWEST_SAMPLES {
            break;
        }
        // Whoever runs first finds the caches as the other left them.
        let mut seconds = [0.0; 2];
        for which in if pair.is_multiple_of(2) { [0, 1] } else { [1, 0] } {
            seconds[which] = settings.seconds(|| subjects[which]());
        }
        spent += seconds[0] + seconds[1];
        // A slow device has no time for warm-ups.
        if pair >= settings.warmups || seconds[0] > 1.0 {
            first_ms.push(1000.0 * seconds[0]);
            second_ms.push(1000.0 * seconds[1]);
        }
    }
    let ratios = first_ms.iter().zip(&second_ms).map(|(first, second)| first / second);
    Ok(InTurn {
        ratio: Samples::new(ratios.collect())?,
        first_ms: Samples::new(first_ms)?,
        second_ms: Samples::new(second_ms)?,
    })
}

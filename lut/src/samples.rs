//! Raw repeats of one measurement and the robust figures read from them.

use serde::{Deserialize, Serialize};

/// Turns a median absolute deviation into the standard deviation of a normal law: 1 / Φ⁻¹(3/4).
const DEVIATION_SCALE: f64 = 1.482_602_218_505_602;

/// Standard error of a median over that of a mean under a normal law: √(π/2).
const MEDIAN_SCALE: f64 = 1.253_314_137_315_500_3;

/// The largest sample: milliseconds of 30 000 years, bytes of a petabyte. Sums of squares stay finite below it.
pub const LARGEST_SAMPLE: f64 = 1e15;

/// Repeats of one measurement, in the order they were taken; from 0 to [`LARGEST_SAMPLE`]. May be empty: the
/// figure is then absent, not zero.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<f64>", into = "Vec<f64>")]
pub struct Samples(Vec<f64>);

/// A sample that no clock and no allocator can give.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("sample {index} is {found}; allowed: a number from 0 to 1e15")]
pub struct SampleError {
    /// Place of the sample in the list, from 0.
    pub index: usize,
    /// Its value.
    pub found: f64,
}

impl Samples {
    /// Takes the repeats as they are.
    ///
    /// # Errors
    /// The first sample that is negative, too large or not a number.
    pub fn new(values: Vec<f64>) -> Result<Self, SampleError> {
        match values.iter().position(|value| !(0.0..=LARGEST_SAMPLE).contains(value)) {
            Some(index) => Err(SampleError {
                index,
                found: values[index],
            }),
            None => Ok(Self(values)),
        }
    }

    /// The raw values, in the order they were taken.
    pub fn values(&self) -> &[f64] {
        &self.0
    }

    /// True when nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of repeats.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The middle value; the mean of the middle two for an even count.
    pub fn median(&self) -> Option<f64> {
        median(&self.0)
    }

    /// Spread of one repeat: the median absolute deviation from the median, scaled so that it estimates the
    /// standard deviation where the repeats are normal. One outlier does not move it. Absent below two repeats.
    pub fn spread(&self) -> Option<f64> {
        if self.0.len() < 2 {
            return None;
        }
        let centre = self.median()?;
        let distances: Vec<f64> = self.0.iter().map(|value| (value - centre).abs()).collect();
        median(&distances).map(|distance| DEVIATION_SCALE * distance)
    }

    /// Standard error of the median: √(π/2) · spread / √n. Absent below two repeats.
    pub fn standard_error(&self) -> Option<f64> {
        self.spread()
            .map(|spread| MEDIAN_SCALE * spread / (self.0.len() as f64).sqrt())
    }

    /// These repeats followed by `more`.
    pub fn followed_by(mut self, more: Self) -> Self {
        self.0.extend(more.0);
        self
    }
}

impl TryFrom<Vec<f64>> for Samples {
    type Error = SampleError;
    fn try_from(values: Vec<f64>) -> Result<Self, SampleError> {
        Self::new(values)
    }
}

impl From<Samples> for Vec<f64> {
    fn from(samples: Samples) -> Self {
        samples.0
    }
}

/// Middle of `values`, none for an empty list; NaN sorts last.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// The `share`-quantile (0 to 1), linear between the two nearest ranks; none for an empty list.
pub(crate) fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = share * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
    Some(below + (above - below) * rank.fract())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn samples(values: &[f64]) -> Samples {
        Samples::new(values.to_vec()).expect("valid samples")
    }

    #[test]
    fn median_and_spread_are_those_of_the_textbook() {
        let odd = samples(&[1.0, 1.0, 2.0, 2.0, 4.0, 6.0, 9.0]);
        assert_eq!(odd.median(), Some(2.0));
        assert_eq!(odd.spread(), Some(DEVIATION_SCALE));
        assert_eq!(samples(&[4.0, 1.0, 3.0, 2.0]).median(), Some(2.5));
    }

    #[test]
    fn one_stalled_repeat_moves_neither_median_nor_spread_much() {
        let calm = samples(&[10.0, 10.1, 9.9, 10.2, 9.8]);
        let stalled = samples(&[10.0, 10.1, 9.9, 10.2, 900.0]);
        assert!((calm.median().unwrap_or(0.0) - stalled.median().unwrap_or(0.0)).abs() <= 0.1 + 1e-12);
        assert!(stalled.spread().unwrap_or(f64::MAX) < 0.3);
    }

    #[test]
    fn the_spread_estimates_the_deviation_of_normal_repeats() {
        // Quantiles of the standard normal law at (i − ½)/9: its deviation is 1 by construction.
        let normal = [-1.593, -0.967, -0.589, -0.282, 0.0, 0.282, 0.589, 0.967, 1.593].map(|z| z + 10.0);
        let spread = samples(&normal).spread().unwrap_or(0.0);
        assert!((spread - 0.874).abs() < 0.01, "{spread}");
        let error = samples(&normal).standard_error().unwrap_or(0.0);
        assert!((error - 1.2533 * spread / 3.0).abs() < 1e-4);
    }

    #[test]
    fn what_was_not_measured_is_absent() {
        assert_eq!(Samples::default().median(), None);
        assert_eq!(samples(&[3.0]).median(), Some(3.0));
        assert_eq!(samples(&[3.0]).standard_error(), None);
    }

    #[test]
    fn impossible_samples_are_refused_by_place_and_value() {
        let error = Samples::new(vec![1.0, -2.0]).expect_err("negative");
        assert_eq!(error.to_string(), "sample 1 is -2; allowed: a number from 0 to 1e15");
        assert!(Samples::new(vec![f64::NAN]).is_err());
        assert!(Samples::new(vec![f64::INFINITY]).is_err());
        assert!(Samples::new(vec![1e308]).is_err(), "the sum of two would be no number");
        assert!(Samples::new(vec![LARGEST_SAMPLE]).is_ok());
    }

    proptest! {
        #[test]
        fn the_median_lies_within_the_samples_and_scales_with_them(values in prop::collection::vec(0.0f64..1e6, 1..40)) {
            let median = samples(&values).median().expect("not empty");
            let low = values.iter().copied().fold(f64::MAX, f64::min);
            let high = values.iter().copied().fold(0.0, f64::max);
            prop_assert!(low <= median && median <= high);
            let doubled: Vec<f64> = values.iter().map(|value| 2.0 * value).collect();
            prop_assert!((samples(&doubled).median().expect("not empty") - 2.0 * median).abs() <= 1e-9 * high);
        }
    }
}

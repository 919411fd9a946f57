//! Motion measures, logged beside the score: they tell a still clip from a moving one, not a good from a bad one.

use tch::{Kind, Tensor};

/// A pair of frames moves when the largest twentieth of its absolute differences has at least this mean, of 255.
const MOVES: f64 = 12.0;

/// `(255 − mean |Δ|) / 255` over consecutive frames, values of 0..255 (VBench's temporal flickering, spec section 6.2;
/// there on still scenes only).
///
/// # Shapes
/// - `clip`: `[3, t, h, w]` in −1..1
#[must_use]
pub fn temporal_flickering(clip: &Tensor) -> f64 {
    1.0 - differences(clip).mean(Kind::Float).double_value(&[]) / 255.0
}

/// Whether at least half of the pairs of consecutive frames move. The mean over clips is the dynamic degree; no optical
/// flow is measured, so a flickering clip counts as moving too.
///
/// # Shapes
/// - `clip`: `[3, t, h, w]` in −1..1
#[must_use]
pub fn is_dynamic(clip: &Tensor) -> bool {
    let pairs = differences(clip).amax([0i64], false).flatten(1, 2); // [t-1, h*w], the largest of the three colours
    let (pairs_count, pixels) = (pairs.size()[0], pairs.size()[1]);
    let (largest, _) = pairs.topk((pixels / 20).max(1), 1, true, false);
    let moving = largest
        .mean_dim([1i64].as_slice(), false, Kind::Float)
        .ge(MOVES)
        .sum(Kind::Int64)
        .int64_value(&[]);
    2 * moving >= pairs_count && pairs_count > 0
}

/// Absolute differences of consecutive frames on the scale of 0..255, `[3, t−1, h, w]`.
fn differences(clip: &Tensor) -> Tensor {
    let frames = (clip.clamp(-1.0, 1.0) + 1.0) * 127.5;
    let pairs = frames.size()[1] - 1;
    (frames.narrow(1, 1, pairs) - frames.narrow(1, 0, pairs)).abs()
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn a_still_clip_neither_flickers_nor_moves() {
        let clip = Tensor::full([3, 5, 8, 8], 0.3, (Kind::Float, Device::Cpu));
        assert_eq!(temporal_flickering(&clip), 1.0);
        assert!(!is_dynamic(&clip));
    }

    #[test]
    fn frames_that_alternate_between_black_and_white_flicker_fully() {
        let signs = Tensor::from_slice(&[-1f32, 1.0, -1.0, 1.0]).reshape([1, 4, 1, 1]);
        let clip = signs.expand([3, 4, 8, 8], false);
        assert!(temporal_flickering(&clip).abs() < 1e-6);
        assert!(is_dynamic(&clip));
    }
}

//! What a training job remembers of its losses.

use protocol::Figure;
use protocol::jobs::CurvePoint;
use serde::{Deserialize, Serialize};

use super::{JobContext, JobError};
use crate::checkpoint::Checkpoint;

/// Points of a training curve.
const CURVE_POINTS: u64 = 50;
/// Note of a checkpoint that holds the diary.
pub(super) const DIARY: &str = "diary";

/// The curve so far: travels with every checkpoint, so that a resumed training tells the same curve to the last digit.
/// What earlier attempts spent is not in it: each attempt tells the coordinator its own seconds, up to its last word.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Diary {
    pub(super) points: Vec<CurvePoint>,
    sum: f64,
    count: u32,
}

impl Diary {
    /// Steps between points of the curve of a training of `steps`.
    pub(super) fn every(steps: u64) -> u64 {
        (steps / CURVE_POINTS).max(1)
    }

    pub(super) fn note(&mut self, step: u64, loss: f64, every: u64) -> Option<CurvePoint> {
        (self.sum, self.count) = (self.sum + loss, self.count + 1);
        if !step.is_multiple_of(every) {
            return None;
        }
        let point = CurvePoint {
            step,
            loss: self.sum / f64::from(self.count),
        };
        (self.sum, self.count) = (0.0, 0);
        self.points.push(point);
        Some(point)
    }

    /// The loss as a figure by its name, once there is one.
    pub(super) fn figure(&self) -> Option<(String, Figure)> {
        let figure = |value| Figure {
            value,
            standard_error: 0.0,
        };
        Some(("train_loss".to_owned(), figure(self.final_loss()?)))
    }

    /// Mean over the last fifth of the curve.
    pub(super) fn final_loss(&self) -> Option<f64> {
        let tail = &self.points[self.points.len() - self.points.len().div_ceil(5)..];
        (!tail.is_empty()).then(|| tail.iter().map(|point| point.loss).sum::<f64>() / tail.len() as f64)
    }
}

/// The checkpoint of an earlier attempt; one that cannot be read is a reason to start again, not to fail.
pub(super) fn resume(context: &JobContext) -> Result<Option<(Checkpoint, Diary)>, JobError> {
    let Some(artifact) = &context.checkpoint else {
        return Ok(None);
    };
    let bytes = match context.try_fetch(artifact) {
        Err(error) if error.is_passing() => return Err(JobError::attempt(error)),
        fetched => fetched.map_err(anyhow::Error::from),
    };
    match bytes.and_then(|bytes| read(&bytes)) {
        Ok(found) => {
            context.log("going on from a checkpoint");
            Ok(Some(found))
        }
        Err(problem) => {
            context.log(&format!(
                "starting again from step 0: the checkpoint cannot be used: {problem}"
            ));
            Ok(None)
        }
    }
}

fn read(bytes: &[u8]) -> anyhow::Result<(Checkpoint, Diary)> {
    let checkpoint = Checkpoint::decode(bytes)?;
    let diary = checkpoint.notes.get(DIARY).map(|text| serde_json::from_str(text));
    let diary = diary.transpose()?.unwrap_or_default();
    Ok((checkpoint, diary))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diary_that_was_written_down_goes_on_to_the_same_digits() {
        let losses: Vec<f64> = (1..=40).map(|step| 1.0 / f64::from(step) + 0.1).collect();
        let tell = |diary: &mut Diary, steps: std::ops::Range<usize>| {
            for step in steps {
                diary.note(step as u64 + 1, losses[step], 3);
            }
        };
        let mut whole = Diary::default();
        tell(&mut whole, 0..40);
        let mut first = Diary::default();
        tell(&mut first, 0..17);
        let mut second: Diary = serde_json::from_str(&serde_json::to_string(&first).unwrap()).unwrap();
        tell(&mut second, 17..40);
        assert_eq!(second.points, whole.points);
        assert_eq!(second.final_loss(), whole.final_loss());
        assert_eq!(whole.points.len(), 13);
    }

    #[test]
    fn the_final_loss_is_the_mean_of_the_last_fifth() {
        let points = (1..=10)
            .map(|step| CurvePoint {
                step,
                loss: step as f64,
            })
            .collect();
        let diary = Diary {
            points,
            ..Diary::default()
        };
        assert_eq!(diary.final_loss(), Some(9.5));
        assert_eq!(Diary::default().final_loss(), None);
    }
}

//! What jobs that train a UNet and score it have in common: the loop with its checkpoints, and what they leave.

use std::ops::ControlFlow;

use protocol::Metrics;
use protocol::artifacts::{ArtifactRef, ArtifactRole};
use protocol::jobs::DeviceSeconds;
use search_spaces::TrainingSettings;

use super::diary::{DIARY, Diary};
use super::{JobContext, JobError};
use crate::assets::{Assets, AssetsError};
use crate::checkpoint::Checkpoint;
use crate::data::latents::TrainingSet;
use crate::scoring::Score;
use crate::train::{TrainError, Training};

/// A training of a job.
pub(super) struct Run<'a> {
    /// The job.
    pub context: &'a JobContext,
    /// How it is trained.
    pub settings: &'a TrainingSettings,
    /// Seed of the batches.
    pub seed: u64,
    /// What it is trained on.
    pub clips: &'a TrainingSet,
    /// Shares of the job at which it begins and ends.
    pub share: (f64, f64),
    /// What the job says that it is doing.
    pub status: &'static str,
}

impl Run<'_> {
    /// Trains to the end. `tell` gives figures beside the loss.
    pub(super) fn go(
        &self,
        training: &mut Training<'_>,
        mut diary: Diary,
        tell: &dyn Fn() -> Metrics,
    ) -> Result<Diary, JobError> {
        let &Self {
            context,
            settings,
            seed,
            clips,
            share: (from, to),
            status,
        } = self;
        let steps = u64::from(settings.steps);
        let every = Diary::every(steps);
        let batches = |step| Ok(clips.batch(seed, step, u64::from(settings.batch), settings.text_dropout)?);
        let mut failure = None;
        let ran = training.run(steps, &batches, &mut |training, loss| {
            let step = training.step_number();
            if let Some(point) = diary.note(step, loss, every) {
                context.curve(point);
                context.figures(diary.figure());
                context.figures(tell());
            }
            context.spent(trained(context));
            let share = from + (to - from) * step as f64 / steps as f64;
            let interrupted = context.progress(share, status);
            let due = step.is_multiple_of(u64::from(settings.checkpoint_every.max(1))) || interrupted.is_err();
            let saved = if due { save(context, training, &diary) } else { Ok(()) };
            match interrupted.and(saved) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            }
        });
        match (ran, failure) {
            (Ok(ControlFlow::Continue(())), _) => Ok(diary),
            (Ok(ControlFlow::Break(())), failure) => Err(failure.unwrap_or(JobError::Interrupted)),
            (Err(error), _) => {
                // The step of a lost peer did not come about: the one before is whole, and the next attempt's start.
                if matches!(error, TrainError::Sync(_)) {
                    save(context, training, &diary)?;
                }
                Err(error.into())
            }
        }
    }
}

/// All that has gone into training until now, reading the data included.
pub(super) fn trained(context: &JobContext) -> DeviceSeconds {
    DeviceSeconds {
        train: context.elapsed_seconds(),
        ..DeviceSeconds::default()
    }
}

/// The clips of trained parts, encoded first where they have to be; the job is at `share` when they are there.
pub(super) fn clips(context: &JobContext, assets: &Assets, share: f64) -> Result<TrainingSet, JobError> {
    let clips = assets.training_set(&context.settings.cache, &mut |done| {
        context.spent(trained(context));
        match context.progress(share * done, "encoding clips") {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    });
    clips.map_err(|error| match error {
        AssetsError::Interrupted => JobError::Interrupted,
        error => JobError::attempt(error),
    })
}

fn save(context: &JobContext, training: &Training<'_>, diary: &Diary) -> Result<(), JobError> {
    let mut checkpoint = training.checkpoint();
    checkpoint.notes.insert(
        DIARY.to_owned(),
        serde_json::to_string(diary).map_err(JobError::attempt)?,
    );
    context.save(&checkpoint.encode().map_err(JobError::attempt)?)
}

/// Goes on from the checkpoint of an earlier attempt; one that cannot be read is a reason to start again, not to fail.
pub(super) fn resume(context: &JobContext, training: &mut Training<'_>) -> Result<Diary, JobError> {
    let Some(artifact) = &context.checkpoint else {
        return Ok(Diary::default());
    };
    let restored = match context.try_fetch(artifact) {
        Err(error) if error.is_passing() => return Err(JobError::attempt(error)),
        Err(error) => Err(error.into()),
        Ok(bytes) => restore(training, &bytes),
    };
    match restored {
        Ok(diary) => {
            context.log(&format!("going on from step {}", training.step_number()));
            Ok(diary)
        }
        Err(problem) => {
            context.log(&format!(
                "starting again from step 0: the checkpoint cannot be used: {problem}"
            ));
            Ok(Diary::default())
        }
    }
}

/// Takes a checkpoint over whole or not at all.
fn restore(training: &mut Training<'_>, bytes: &[u8]) -> anyhow::Result<Diary> {
    let checkpoint = Checkpoint::decode(bytes)?;
    let diary = checkpoint.notes.get(DIARY).map(|text| serde_json::from_str(text));
    let diary = diary.transpose()?.unwrap_or_default();
    training.restore(&checkpoint)?;
    Ok(diary)
}

/// The weights, the curve, and what scoring left: pictures and the scores of each prompt.
pub(super) fn keep_artifacts(
    context: &JobContext,
    weights: &[u8],
    diary: &Diary,
    scored: &Score,
) -> Result<Vec<ArtifactRef>, JobError> {
    let curve = serde_json::to_vec(&diary.points).map_err(JobError::attempt)?;
    let scores = serde_json::to_vec(&scored.per_prompt).map_err(JobError::attempt)?;
    [
        (
            ArtifactRole::Weights,
            "weights.safetensors",
            "application/octet-stream",
            weights,
        ),
        (
            ArtifactRole::Animation,
            "samples.gif",
            "image/gif",
            &scored.animation[..],
        ),
        (ArtifactRole::Sheet, "samples.png", "image/png", &scored.sheet[..]),
        (ArtifactRole::Curve, "curve.json", "application/json", &curve[..]),
        (ArtifactRole::Scores, "scores.json", "application/json", &scores[..]),
    ]
    .into_iter()
    .map(|(role, name, media_type, bytes)| context.keep(role, name, media_type, bytes))
    .collect()
}

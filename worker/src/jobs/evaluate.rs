//! Trains a candidate's temporal layers with the backbone frozen, samples clips and scores them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Instant;

use protocol::Figure;
use protocol::artifacts::{ArtifactRef, ArtifactRole};
use protocol::jobs::{CurvePoint, DeviceSeconds, EvaluateInput, EvaluateOutcome, JobResult, Outcome, ParentWeights};
use search_spaces::{Architecture, Evaluation, Space};
use serde::{Deserialize, Serialize};
use tch::nn;

use super::{JobContext, JobError, parse};
use crate::assets::{Assets, AssetsError};
use crate::checkpoint::{Checkpoint, decode_tensors, encode_tensors};
use crate::data::latents::TrainingSet;
use crate::models::UNet;
use crate::models::seeded::seed_weights;
use crate::scoring::{Score, score};
use crate::train::Training;

/// Points of a training curve.
const CURVE_POINTS: u32 = 50;
/// Shares of the job at which training begins and ends.
const TRAINING: (f64, f64) = (0.05, 0.65);

pub(super) fn run(context: &JobContext, input: &EvaluateInput) -> Result<JobResult, JobError> {
    tch::set_num_threads(context.settings.threads as i32);
    let (space, architecture) = parse(&input.space, Some(&input.architecture))?;
    let architecture = architecture.ok_or_else(|| JobError::Input("no architecture".to_owned()))?;
    let unet = space
        .unet()
        .ok_or_else(|| JobError::Input(format!("`{}` has no UNet to train", space.name)))?;
    let evaluation = space.evaluation.as_ref();
    let evaluation = evaluation.ok_or_else(|| JobError::Input("the space has no [evaluation] section".to_owned()))?;

    context.progress(0.0, "reading trained parts")?;
    let root = context.assets(&evaluation.dataset, &input.base)?;
    let assets = Assets::open(&root, &evaluation.dataset, context.settings.device).map_err(JobError::attempt)?;
    context.log(&format!(
        "candidate {}: {}; {}",
        input.number,
        input.architecture,
        assets.evaluator_line()
    ));
    let clips = assets.training_set(&context.settings.cache, &mut |share| match context
        .progress(TRAINING.0 * share, "encoding clips")
    {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    });
    let clips = clips.map_err(|error| match error {
        AssetsError::Interrupted => JobError::Interrupted,
        error => JobError::attempt(error),
    })?;

    let vs = nn::VarStore::new(context.settings.device);
    let unet = UNet::new(&vs.root(), unet, &space.layers(&architecture));
    seed_weights(&vs, evaluation.train_seed);
    assets.load_backbone(&vs).map_err(JobError::attempt)?;
    if let Some(parent) = input.parent_weights.as_ref().filter(|_| evaluation.inherit) {
        inherit(context, &space, &architecture, parent, &vs)?;
    }

    let started = Instant::now();
    let mut training = Training::new(&unet, &vs, evaluation, evaluation.train_seed);
    let diary = train(context, &mut training, evaluation, &clips)?;
    let train_seconds = started.elapsed().as_secs_f64();
    context.log(&format!(
        "trained {} steps in {train_seconds:.1} s",
        training.step_number()
    ));

    let mut interrupted = false;
    let scored = score(&assets, evaluation, &unet, &mut |share| {
        interrupted |= context
            .progress(TRAINING.1 + (1.0 - TRAINING.1) * share, "sampling and scoring")
            .is_err();
    });
    if interrupted {
        return Err(JobError::Interrupted);
    }
    let scored = scored.map_err(|error| JobError::Input(error.to_string()))?;
    let device_seconds = DeviceSeconds {
        train: diary.earlier_seconds + train_seconds,
        sample: scored.sample_seconds,
        score: scored.score_seconds,
        profile: 0.0,
    };
    let artifacts = keep_artifacts(context, &training, &diary, &scored)?;
    let figure = |value, standard_error| Figure { value, standard_error };
    let mut metrics: protocol::Metrics = scored
        .metrics
        .iter()
        .map(|(name, e)| (name.clone(), figure(e.value, e.standard_error)))
        .collect();
    if let Some(loss) = diary.final_loss() {
        metrics.insert("train_loss".to_owned(), figure(loss, 0.0));
    }
    let outcome = Outcome::Evaluate(EvaluateOutcome {
        metrics,
        evaluator: assets.evaluator_line(),
    });
    Ok(JobResult {
        device_seconds,
        artifacts,
        outcome,
    })
}

/// The curve so far and what earlier attempts spent: travels with every checkpoint, so that a resumed training tells
/// the same curve to the last digit.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Diary {
    points: Vec<CurvePoint>,
    sum: f64,
    count: u32,
    earlier_seconds: f64,
}

impl Diary {
    fn note(&mut self, step: u64, loss: f64, every: u64) -> Option<CurvePoint> {
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

    /// Mean over the last fifth of the curve.
    fn final_loss(&self) -> Option<f64> {
        let tail = &self.points[self.points.len() - self.points.len().div_ceil(5)..];
        (!tail.is_empty()).then(|| tail.iter().map(|point| point.loss).sum::<f64>() / tail.len() as f64)
    }
}

const DIARY: &str = "diary";

fn train(
    context: &JobContext,
    training: &mut Training<'_>,
    evaluation: &Evaluation,
    clips: &TrainingSet,
) -> Result<Diary, JobError> {
    let mut diary = resume(context, training)?;
    let steps = u64::from(evaluation.steps);
    let every = u64::from((evaluation.steps / CURVE_POINTS).max(1));
    let batches = |step| {
        clips.batch(
            evaluation.train_seed,
            step,
            u64::from(evaluation.batch),
            evaluation.text_dropout,
        )
    };
    let started = Instant::now();
    let mut failure = None;
    let flow = training.run(steps, &batches, &mut |training, loss| {
        let step = training.step_number();
        if let Some(point) = diary.note(step, loss, every) {
            context.curve(point);
        }
        let share = TRAINING.0 + (TRAINING.1 - TRAINING.0) * step as f64 / steps as f64;
        let interrupted = context.progress(share, "training");
        let due = step.is_multiple_of(u64::from(evaluation.checkpoint_every.max(1))) || interrupted.is_err();
        let saved = if due {
            save(context, training, &diary, started)
        } else {
            Ok(())
        };
        match interrupted.and(saved) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    });
    match (flow, failure) {
        (ControlFlow::Continue(()), _) => Ok(diary),
        (ControlFlow::Break(()), failure) => Err(failure.unwrap_or(JobError::Interrupted)),
    }
}

fn save(context: &JobContext, training: &Training<'_>, diary: &Diary, started: Instant) -> Result<(), JobError> {
    let mut checkpoint = training.checkpoint();
    let diary = Diary {
        points: diary.points.clone(),
        earlier_seconds: diary.earlier_seconds + started.elapsed().as_secs_f64(),
        ..*diary
    };
    checkpoint.notes.insert(
        DIARY.to_owned(),
        serde_json::to_string(&diary).map_err(JobError::attempt)?,
    );
    context.save(&checkpoint.encode().map_err(JobError::attempt)?)
}

/// Goes on from the checkpoint of an earlier attempt; one that cannot be read is a reason to start again, not to fail.
fn resume(context: &JobContext, training: &mut Training<'_>) -> Result<Diary, JobError> {
    let Some(artifact) = &context.checkpoint else {
        return Ok(Diary::default());
    };
    let bytes = context.fetch(artifact)?;
    let checkpoint = Checkpoint::decode(&bytes).map_err(JobError::attempt)?;
    let diary = checkpoint
        .notes
        .get(DIARY)
        .map(|text| serde_json::from_str(text))
        .transpose();
    let diary = diary.map_err(JobError::attempt)?.unwrap_or_default();
    training.restore(&checkpoint).map_err(JobError::attempt)?;
    context.log(&format!("going on from step {}", training.step_number()));
    Ok(diary)
}

/// Copies the parent's weights into the layers that stand at the same position with the same operator.
fn inherit(
    context: &JobContext,
    space: &Space,
    architecture: &Architecture,
    parent: &ParentWeights,
    vs: &nn::VarStore,
) -> Result<(), JobError> {
    let other = space.architecture(&parent.architecture);
    let other = other.map_err(|error| JobError::Input(format!("the parent's architecture: {error}")))?;
    let kept = |name: &str| {
        let pairs = space
            .positions
            .iter()
            .zip(architecture.choices().iter().zip(other.choices()));
        pairs.into_iter().any(|(position, (ours, theirs))| {
            ours == theirs && name.starts_with(&format!("temporal.{}.", position.name))
        })
    };
    let saved = decode_tensors(&context.fetch(&parent.weights)?).map_err(JobError::attempt)?;
    let mut count = 0;
    for (name, mut variable) in vs.variables() {
        let same = saved
            .get(&name)
            .filter(|tensor| kept(&name) && tensor.size() == variable.size());
        if let Some(tensor) = same {
            tch::no_grad(|| variable.f_copy_(tensor)).map_err(JobError::attempt)?;
            count += 1;
        }
    }
    context.log(&format!("inherited {count} tensors from {}", parent.architecture));
    Ok(())
}

fn keep_artifacts(
    context: &JobContext,
    training: &Training<'_>,
    diary: &Diary,
    scored: &Score,
) -> Result<Vec<ArtifactRef>, JobError> {
    let weights: BTreeMap<_, _> = training
        .weights()
        .iter()
        .map(|(name, w)| (name.clone(), w.shallow_clone()))
        .collect();
    let weights = encode_tensors(&weights, std::collections::HashMap::new()).map_err(JobError::attempt)?;
    let curve = serde_json::to_vec(&diary.points).map_err(JobError::attempt)?;
    let scores = serde_json::to_vec(&scored.per_prompt).map_err(JobError::attempt)?;
    [
        (
            ArtifactRole::Weights,
            "weights.safetensors",
            "application/octet-stream",
            &weights,
        ),
        (ArtifactRole::Animation, "samples.gif", "image/gif", &scored.animation),
        (ArtifactRole::Sheet, "samples.png", "image/png", &scored.sheet),
        (ArtifactRole::Curve, "curve.json", "application/json", &curve),
        (ArtifactRole::Scores, "scores.json", "application/json", &scores),
    ]
    .into_iter()
    .map(|(role, name, media_type, bytes)| context.keep(role, name, media_type, bytes))
    .collect()
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

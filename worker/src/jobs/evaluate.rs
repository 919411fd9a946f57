//! Trains a candidate's temporal layers with the backbone frozen, samples clips and scores them.

use std::collections::BTreeMap;

use protocol::Metrics;
use protocol::jobs::{DeviceSeconds, EvaluateInput, EvaluateOutcome, JobResult, Outcome, ParentWeights};
use search_spaces::{Architecture, Space};
use tch::{TchError, Tensor, nn};

use super::costs;
use super::gang;
use super::scoring::{Scoring, figures};
use super::training::{Run, clips, keep_artifacts, resume, trained};
use super::{JobContext, JobError, parse};
use crate::assets::Assets;
use crate::checkpoint::{decode_tensors, encode_tensors};
use crate::distributed::ReducerConfig;
use crate::models::UNet;
use crate::models::seeded::seed_weights;
use crate::models::unet::temporal_path;
use crate::shim::{MemoryTracker, PeakBytes};
use crate::train::Training;
use job_client::digest_of;

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
    context.log(&format!("candidate {}: {}", input.number, input.architecture));
    let clips = clips(context, &assets, TRAINING.0)?;

    let memory = MemoryTracker::begin(context.settings.device, None);
    let vs = nn::VarStore::new(context.settings.device);
    let unet = UNet::new(&vs.root(), unet, &space.layers(&architecture));
    seed_weights(&vs, evaluation.train_seed);
    assets.load_backbone(&vs).map_err(JobError::attempt)?;
    if let Some(parent) = input.parent_weights.as_ref().filter(|_| evaluation.inherit) {
        inherit(context, &space, &architecture, parent, &vs)?;
    }

    let mut training =
        Training::new(&unet, &vs, &evaluation.training, evaluation.train_seed).map_err(JobError::attempt)?;
    let diary = resume(context, &mut training)?;
    // From here on the ranks of a gang share the state of rank 0.
    if let Some(group) = gang::join(context)? {
        let shared = training.with_group(group, ReducerConfig::default());
        training = shared.map_err(JobError::attempt)?;
    }
    let standing_bytes = memory.in_use();
    let run = Run {
        context,
        settings: &evaluation.training,
        seed: evaluation.train_seed,
        clips: &clips,
        share: TRAINING,
        status: "training",
    };
    let (diary, PeakBytes(above)) = memory.peak_of(|| run.go(&mut training, diary, &Metrics::new));
    let diary = diary?;
    drop(memory);
    let costs = costs::of(training.step_milliseconds(), standing_bytes + above);
    let mut device_seconds = trained(context);
    context.log(&format!(
        "at step {} after {:.1} s",
        training.step_number(),
        device_seconds.train
    ));
    let weights = training.finish().map_err(JobError::attempt)?;
    if !gang::brings_result(context) {
        return Ok(share_done(device_seconds));
    }

    let weights = encode_tensors(&weights.into_iter().collect(), std::collections::HashMap::new());
    let weights = weights.map_err(JobError::attempt)?;
    let scoring = Scoring {
        context,
        assets: &assets,
        evaluation,
        model: format!(
            "{} {} {}",
            assets.manifest.digest(),
            input.architecture,
            digest_of(&weights)
        ),
        share: (TRAINING.1, 1.0),
    };
    let (scored, evaluator) = scoring.run(&unet, &mut device_seconds)?;
    let artifacts = keep_artifacts(context, &weights, &diary, &scored)?;
    let mut metrics = figures(&scored.metrics);
    metrics.extend(diary.figure());
    metrics.extend(costs);
    let outcome = Outcome::Evaluate(EvaluateOutcome { metrics, evaluator });
    Ok(JobResult {
        device_seconds,
        artifacts,
        outcome,
    })
}

/// What a rank other than 0 ends with: its seconds count, the figures are rank 0's to tell.
fn share_done(device_seconds: DeviceSeconds) -> JobResult {
    let outcome = EvaluateOutcome {
        metrics: Metrics::new(),
        evaluator: String::new(),
    };
    JobResult {
        device_seconds,
        artifacts: Vec::new(),
        outcome: Outcome::Evaluate(outcome),
    }
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
    let saved = decode_tensors(&context.fetch(&parent.weights)?).map_err(JobError::attempt)?;
    let count = copy_shared(space, architecture, &other, &saved, vs).map_err(JobError::attempt)?;
    context.log(&format!("inherited {count} tensors from {}", parent.architecture));
    Ok(())
}

/// Copies the weights of positions where both architectures choose the same; says how many tensors those were.
fn copy_shared(
    space: &Space,
    ours: &Architecture,
    theirs: &Architecture,
    saved: &BTreeMap<String, Tensor>,
    vs: &nn::VarStore,
) -> Result<usize, TchError> {
    let chosen = ours.choices().iter().zip(theirs.choices());
    let shared: Vec<String> = space
        .positions
        .iter()
        .zip(chosen)
        .filter(|(_, (ours, theirs))| ours == theirs)
        .map(|(position, _)| format!("{}.", temporal_path(&position.name)))
        .collect();
    let mut count = 0;
    for (name, mut variable) in vs.variables() {
        let inherits = shared.iter().any(|prefix| name.starts_with(prefix));
        let same = saved.get(&name).filter(|tensor| tensor.size() == variable.size());
        if let Some(tensor) = same.filter(|_| inherits) {
            tch::no_grad(|| variable.f_copy_(tensor))?;
            count += 1;
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests;

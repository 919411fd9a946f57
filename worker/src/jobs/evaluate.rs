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
use crate::client::digest_of;
use crate::distributed::ReducerConfig;
use crate::models::UNet;
use crate::models::seeded::seed_weights;
use crate::models::unet::temporal_path;
use crate::shim::{MemoryTracker, PeakBytes};
use crate::train::Training;

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
mod tests {
    use std::ops::ControlFlow;

    use protocol::artifacts::{ArtifactRef, ArtifactRole};
    use tch::Device;

    use super::super::diary::DIARY;
    use super::*;

    fn shapes() -> Space {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../search-spaces/spaces/shapes-tiny.toml");
        Space::parse(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn built(space: &Space, architecture: &str, seed: u64) -> (nn::VarStore, UNet) {
        let vs = nn::VarStore::new(Device::Cpu);
        let architecture = space.architecture(architecture).unwrap();
        let unet = UNet::new(&vs.root(), space.unet().unwrap(), &space.layers(&architecture));
        seed_weights(&vs, seed);
        (vs, unet)
    }

    #[test]
    fn a_checkpoint_that_cannot_be_used_means_starting_again_from_step_0() {
        let (folder, tokio) = (tempfile::tempdir().unwrap(), tokio::runtime::Runtime::new().unwrap());
        let mut context = JobContext::alone(&tokio, folder.path());
        let space = shapes();
        let evaluation = space.evaluation.as_ref().unwrap();
        let (vs, unet) = built(&space, "c1.-.-.-.-", 1);
        let mut training = Training::new(&unet, &vs, &evaluation.training, 1).unwrap();
        let start = training.checkpoint().encode().unwrap();

        let (vs, unet) = built(&space, "c3.-.-.-.-", 1);
        let other = Training::new(&unet, &vs, &evaluation.training, 1).unwrap();
        let other = other.checkpoint().encode().unwrap();
        let mut wrong_diary = training.checkpoint();
        wrong_diary.notes.insert(DIARY.to_owned(), "no diary".to_owned());
        for bytes in [b"no checkpoint".to_vec(), other, wrong_diary.encode().unwrap()] {
            context.save(&bytes).unwrap();
            context.checkpoint = context.pulse.saved();
            let diary = resume(&context, &mut training).unwrap();
            assert!(diary.points.is_empty());
            assert_eq!(training.checkpoint().encode().unwrap(), start);
        }
        assert_eq!(context.pulse.log().matches("starting again from step 0").count(), 3);
    }

    #[test]
    fn a_checkpoint_that_is_out_of_reach_for_now_is_worth_another_attempt() {
        let (folder, tokio) = (tempfile::tempdir().unwrap(), tokio::runtime::Runtime::new().unwrap());
        let mut context = JobContext::alone(&tokio, folder.path());
        context.checkpoint = Some(ArtifactRef {
            role: ArtifactRole::Checkpoint,
            digest: "ab".repeat(32).parse().unwrap(),
            name: "checkpoint".to_owned(),
            media_type: "text/plain".to_owned(),
            bytes: 1,
        });
        let space = shapes();
        let (vs, unet) = built(&space, "c1.-.-.-.-", 1);
        let mut training = Training::new(&unet, &vs, &space.evaluation.as_ref().unwrap().training, 1).unwrap();
        let error = resume(&context, &mut training).unwrap_err();
        assert!(error.is_worth_another_attempt(), "{error}");
    }

    #[test]
    fn layers_that_parent_and_child_share_inherit_and_the_others_do_not() {
        let space = shapes();
        let (parent, child) = ("c1.s1.x1.x3.c3", "c1.s1.x1.x3.s3");
        let trained = built(&space, parent, 1).0.variables().into_iter();
        let saved: BTreeMap<String, Tensor> = trained.map(|(name, tensor)| (name, tensor.full_like(7))).collect();
        let (vs, _unet) = built(&space, child, 2);
        let architecture = |text| space.architecture(text).unwrap();
        let count = copy_shared(&space, &architecture(child), &architecture(parent), &saved, &vs).unwrap();

        let inherited: Vec<String> = vs
            .variables()
            .into_iter()
            .filter(|(name, variable)| saved.get(name).is_some_and(|tensor| tensor == variable))
            .map(|(name, _)| name)
            .collect();
        assert_eq!(inherited.len(), count);
        for (i, position) in space.positions.iter().enumerate() {
            let here = format!("{}.", temporal_path(&position.name));
            let all = vs.variables().keys().filter(|name| name.starts_with(&here)).count();
            let taken = inherited.iter().filter(|name| name.starts_with(&here)).count();
            assert!(all > 0, "{}", position.name);
            assert_eq!(taken, if i < 4 { all } else { 0 }, "{}", position.name);
        }
        assert!(inherited.iter().all(|name| crate::models::unet::is_temporal(name)));
    }

    #[test]
    fn a_training_tells_what_it_took() {
        let space = shapes();
        let settings = &space.evaluation.as_ref().unwrap().training;
        let (vs, unet) = built(&space, "c1.-.-.-.-", 1);
        let mut training = Training::new(&unet, &vs, settings, 1).unwrap();
        let batch = |_| {
            Ok(crate::data::latents::Batch {
                latents: crate::models::seeded::normal(&[2, 4, 5, 8, 8], 1, Device::Cpu),
                text: crate::models::seeded::normal(&[2, 8, 32], 2, Device::Cpu),
                pooled: None,
            })
        };
        let ran = training.run(3, &batch, &mut |_, _| ControlFlow::Continue(()));
        assert!(ran.unwrap().is_continue());
        let told = costs::of(training.step_milliseconds(), 12_345);
        assert_eq!(told["train_peak_memory_bytes"].value, 12_345.0);
        assert!(told["train_step_ms"].value > 0.0 && told["train_step_spread_ms"].value >= 0.0);
        let (vs, unet) = built(&space, "-.-.-.-.-", 1);
        let idle = Training::new(&unet, &vs, settings, 1).unwrap();
        assert!(costs::of(idle.step_milliseconds(), 1).is_empty(), "nothing was trained");
    }
}
